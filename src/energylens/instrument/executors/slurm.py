"""Tasks as jobs of a Slurm cluster, through submitit."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from energylens import files
from energylens.errors import MissingExtraError
from energylens.instrument.executor import Place, Report, ReportKind, Task, Work
from energylens.instrument.executors.local import _DONE, _no_work

# ----------------------------------------------------------------------------------------- Slurm


class SlurmExecutor:
    """Each task a Slurm job, through submitit; pieces come back through a shared folder.

    Jobs outlive a driver that is killed. What they wrote meanwhile is taken in when the next
    one begins, and jobs of the earlier one are cancelled before anything is measured anew.

    Parameters
    ----------
    folder : str or Path
        On a file system that all nodes share.
    sweep : str
        Name of the sweep. It has a folder of its own in there, and its jobs bear the name, so
        that another sweep neither takes its rows nor cancels its jobs.
    parameters : mapping of str to str or int, optional
        For submitit, as in ``{"slurm_partition": "h100", "timeout_min": 240}``.
    gpus : int
        GPUs that jobs may have at the same time; the queue decides in the end.
    cluster : str
        ``slurm``, or ``local`` and ``debug`` for trying it without one.

    Raises
    ------
    MissingExtraError
        If submitit is not installed.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        sweep: str = "",
        parameters: dict[str, str | int] | None = None,
        gpus: int = 8,
        cluster: str = "slurm",
    ) -> None:
        try:
            import submitit
        except ImportError:
            raise MissingExtraError("submitit", "slurm", "measuring under Slurm") from None
        self._sweep = re.sub(r"[^A-Za-z0-9._-]+", "-", sweep)[:80].strip("-.")
        self._folder = Path(folder) / self._sweep
        self._folder.mkdir(parents=True, exist_ok=True)
        self._submitit: Any = submitit
        self._cluster = cluster
        self._parameters = dict(parameters or {})
        self._gpus = gpus
        self._work: Work = _no_work
        self._jobs: list[_SlurmJob] = []
        self._earlier: list[Report] = []
        # Notes of jobs whose last pieces have been handed out, and may not be on disk yet.
        self._handed_out: list[Path] = []
        self._session = f"{int(time.time())}-{os.getpid()}"

    @property
    def gpus(self) -> int:
        """GPUs that jobs may have at the same time."""
        return self._gpus

    @property
    def _stop_file(self) -> Path:
        return self._folder / f"{self._session}.stop"

    def begin(self, work: Work) -> None:
        """Say what tasks do, and take in what an earlier driver left behind."""
        self._work = work
        for note in sorted(self._folder.glob("*.job.json")):
            document = json.loads(note.read_text(encoding="utf-8"))
            pieces = self._folder / document["pieces"]
            if self._cluster == "slurm":
                job = self._submitit.SlurmJob(self._folder, document["job"])
                if not job.done():
                    job.cancel(check=False)
            if pieces.exists():
                for kind, piece in files.read_json_lines(pieces, allow_torn_end=True):
                    if kind == "piece":
                        self._earlier.append(
                            Report(task_id="earlier", kind=ReportKind.PIECE, piece=piece)
                        )
            self._handed_out.append(note)

    def submit(self, task: Task) -> None:
        """Submit a job."""
        executor = self._submitit.AutoExecutor(folder=self._folder, cluster=self._cluster)
        executor.update_parameters(
            name="-".join(filter(None, ("energylens", self._sweep))),
            **{"gpus_per_node": task.gpus, **self._parameters},
        )
        pieces = self._folder / f"{self._session}-{task.id}.jsonl"
        job = executor.submit(
            _run_as_job, self._work, task.payload, str(pieces), str(self._stop_file)
        )
        note = self._folder / f"{self._session}-{task.id}.job.json"
        files.write_json(note, {"job": str(job.job_id), "pieces": pieces.name})
        self._jobs.append(_SlurmJob(task=task, job=job, pieces=pieces, note=note))

    def reports(self, timeout_s: float) -> list[Report]:
        """Look into the shared folder, and at the state of the jobs."""
        self._forget_handed_out()  # being asked for more, whoever asks has written what he had
        found, self._earlier = self._earlier, []
        deadline = time.monotonic() + timeout_s
        while not found:
            for job in list(self._jobs):
                found += self._look(job)
            if found or time.monotonic() >= deadline:
                break
            time.sleep(min(0.1, timeout_s))
        return found

    def _look(self, job: _SlurmJob) -> list[Report]:
        over = job.job.done()  # asked first, so that nothing written before it is missed
        found: list[Report] = []
        for kind, piece in job.read():
            if kind == _DONE:
                self._end(job, cancel=False)
                return [*found, Report(task_id=job.task.id, kind=ReportKind.DONE)]
            if kind == "piece":
                found.append(Report(task_id=job.task.id, kind=ReportKind.PIECE, piece=piece))
        if over:
            self._end(job)
            message = f"the job ended as {job.job.state}{self._last_words(job)}"
            found.append(Report(task_id=job.task.id, kind=ReportKind.LOST, message=message))
        elif job.pieces.exists() and job.silence_s > job.task.limit_s:
            self._end(job)
            message = f"nothing was heard for {job.silence_s:.0f} s"
            found.append(Report(task_id=job.task.id, kind=ReportKind.SILENT, message=message))
        return found

    def _end(self, job: _SlurmJob, cancel: bool = True) -> None:
        self._jobs.remove(job)
        if cancel and not job.job.done():
            job.job.cancel()
        self._handed_out.append(job.note)

    def _forget_handed_out(self) -> None:
        for note in self._handed_out:
            note.unlink(missing_ok=True)
        self._handed_out.clear()

    def _last_words(self, job: _SlurmJob) -> str:
        try:
            error = job.job.exception()
        except Exception:  # a job that was killed has nothing to say
            return ""
        lines = [line for line in str(error or "").splitlines() if line.strip()]
        return f": {lines[-1].strip()[:300]}" if lines else ""

    def finish_soon(self) -> None:
        """Ask every job to finish its window."""
        self._stop_file.touch()

    def close(self) -> None:
        """Cancel what still runs."""
        for job in list(self._jobs):
            self._end(job)
        if sys.exception() is None:  # else what was handed out last may not have been written
            self._forget_handed_out()
        self._stop_file.unlink(missing_ok=True)


@dataclass(kw_only=True)
class _SlurmJob:
    task: Task
    job: Any
    pieces: Path
    note: Path
    position: int = 0
    heard_s: float = field(default_factory=time.monotonic)

    @property
    def silence_s(self) -> float:
        return time.monotonic() - self.heard_s

    def read(self) -> list[tuple[str, Any]]:
        """Whole lines that were written since the last look."""
        if not self.pieces.exists():
            return []
        with self.pieces.open("rb") as file:
            file.seek(self.position)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self.position += len(whole)
        if whole:
            self.heard_s = time.monotonic()
        return [tuple(json.loads(line)) for line in whole.splitlines() if line.strip()]


def _run_as_job(work: Work, payload: Any, pieces: str, stop_file: str) -> None:
    """Do a task as a Slurm job; its GPUs are those that Slurm shows it."""
    from energylens.instrument.meters import gpu_indices

    visible = os.environ.get("SLURM_JOB_GPUS") or os.environ.get("CUDA_VISIBLE_DEVICES", "")
    gpus = tuple(int(gpu) for gpu in visible.split(",") if gpu.strip().isdigit())
    place = Place(gpus=gpus or gpu_indices(), shared=True, stopping=Path(stop_file).exists)
    files.append_json_line(pieces, ["start", None])
    for piece in work(payload, place):
        files.append_json_line(pieces, ["piece", piece])
    files.append_json_line(pieces, [_DONE, None])
