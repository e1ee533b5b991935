"""Where engines run: here, in processes of this machine, on a Ray cluster, under Slurm.

An executor knows nothing of energy. It gives a task its GPUs, runs it in a process that may die
without harm, sends back piece by piece what it yields, and says so when it is lost.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for_connections
from pathlib import Path
from typing import Any

from energylens import files
from energylens.errors import MissingExtraError, UsageError
from energylens.instrument import Meter, Place, Report, ReportKind, Task, Work

_DONE = "done"


def _no_work(payload: Any, place: Place) -> Iterator[Any]:  # noqa: ARG001
    raise UsageError("an executor must be told what to do (begin) before it is given tasks.")


class InlineExecutor:
    """One task after the other, in this very process: for simulated engines and for tests.

    Nothing protects against a crash or a hang.

    Parameters
    ----------
    gpus : sequence of int
        GPUs that the tasks may use.
    """

    def __init__(self, gpus: Sequence[int] = ()) -> None:
        self._gpus = tuple(gpus)
        self._work: Work = _no_work
        self._queue: deque[Task] = deque()
        self._running: tuple[Task, Iterator[Any]] | None = None
        self._stopping = False

    @property
    def gpus(self) -> int:
        """GPUs that tasks can have."""
        return len(self._gpus)

    def begin(self, work: Work) -> None:
        """Say what tasks do."""
        self._work = work

    def submit(self, task: Task) -> None:
        """Queue a task."""
        self._queue.append(task)

    def reports(self, timeout_s: float) -> list[Report]:  # noqa: ARG002 - work is done right here
        """Do the next piece of work."""
        if self._running is None:
            if not self._queue:
                return []
            task = self._queue.popleft()
            if self._stopping:
                return [Report(task_id=task.id, kind=ReportKind.DONE)]
            place = Place(gpus=self._gpus[: task.gpus], stopping=lambda: self._stopping)
            self._running = task, self._work(task.payload, place)
        task, pieces = self._running
        try:
            piece = next(pieces)
        except StopIteration:
            self._running = None
            return [Report(task_id=task.id, kind=ReportKind.DONE)]
        return [Report(task_id=task.id, kind=ReportKind.PIECE, piece=piece)]

    def finish_soon(self) -> None:
        """Ask the task to finish its window."""
        self._stopping = True

    def close(self) -> None:
        """Abandon the task that is running."""
        if self._running is not None:
            close = getattr(self._running[1], "close", None)
            if close is not None:
                close()
            self._running = None


# ------------------------------------------------------------------------- processes, this machine


@dataclass(kw_only=True)
class _Process:
    """A worker process and what it was given."""

    task: Task
    process: Any  # a multiprocessing process of the spawn context
    connection: Connection
    gpus: tuple[int, ...]
    heard_s: float = field(default_factory=time.monotonic)
    done: bool = False
    hung_up: bool = False

    @property
    def gone(self) -> bool:
        """Whether it has ended, and all that it said was heard."""
        if self.process.is_alive():
            return False
        return self.hung_up or not self.connection.poll()


class LocalExecutor:
    """A process for each engine, side by side on the GPUs that are free.

    Each process leads a group of its own, so that killing it takes along whatever it started,
    and it kills itself when this process is gone.

    Parameters
    ----------
    gpus : sequence of int
        GPUs, as the driver counts them (``meters.gpu_indices()``). Without any, tasks run one
        after the other on the CPU.
    exclusive : bool
        One task at a time: what runs beside a case shares its power, its heat and its CPUs, and
        the joules of the node's idle GPUs can only be told when they are idle.
    log_folder : str or Path, optional
        Where each process writes what engines print; standard error if not given.
    """

    def __init__(
        self,
        gpus: Sequence[int] = (),
        *,
        exclusive: bool = False,
        log_folder: str | Path | None = None,
    ) -> None:
        self._gpus = tuple(gpus)
        self._exclusive = exclusive or not self._gpus
        self._log_folder = None if log_folder is None else Path(log_folder)
        self._work: Work = _no_work
        self._queue: deque[Task] = deque()
        self._processes: list[_Process] = []
        self._stopping = False

    @property
    def gpus(self) -> int:
        """GPUs that tasks can have at the same time."""
        return len(self._gpus)

    def begin(self, work: Work) -> None:
        """Say what tasks do; ``work`` must be picklable.

        Raises
        ------
        UsageError
            If it is not.
        """
        try:
            pickle.dumps(work)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise UsageError(
                f"engines and meters for other processes must be picklable: {error}. Use "
                "functions of a module, or functools.partial of them."
            ) from None
        self._work = work

    def submit(self, task: Task) -> None:
        """Queue a task; it starts as soon as enough GPUs are free."""
        self._queue.append(task)
        self._start_what_fits()

    def _free(self) -> list[int]:
        taken = {gpu for process in self._processes for gpu in process.gpus}
        return [gpu for gpu in self._gpus if gpu not in taken]

    def _start_what_fits(self) -> None:
        waiting: deque[Task] = deque()
        while self._queue:
            task = self._queue.popleft()
            free = self._free()
            fits = len(free) >= task.gpus if self._gpus else True
            if self._stopping or not fits or (self._exclusive and self._processes):
                waiting.append(task)
            else:
                self._start(task, tuple(free[: task.gpus]))
        self._queue = waiting

    def _start(self, task: Task, gpus: tuple[int, ...]) -> None:
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        log = None
        if self._log_folder is not None:
            self._log_folder.mkdir(parents=True, exist_ok=True)
            log = str(self._log_folder / f"{task.id}.log")
        process = context.Process(
            target=_run_in_process,
            args=(there, self._work, task.payload, gpus, not self._exclusive, log),
            name=task.id,
        )
        process.start()
        there.close()
        self._processes.append(_Process(task=task, process=process, connection=here, gpus=gpus))

    def reports(self, timeout_s: float) -> list[Report]:
        """Collect what the processes have said, and find those that say no more."""
        found: list[Report] = []
        ready = wait_for_connections([p.connection for p in self._processes], timeout_s)
        for process in list(self._processes):
            if process.connection in ready:
                found += self._receive(process)
            silence = time.monotonic() - process.heard_s
            if process.done:
                self._end(process)
                found.append(Report(task_id=process.task.id, kind=ReportKind.DONE))
            elif process.gone:
                code = process.process.exitcode
                self._end(process)
                found.append(
                    Report(
                        task_id=process.task.id,
                        kind=ReportKind.LOST,
                        message=f"the engine's process ended by itself ({_exit_in_words(code)})",
                    )
                )
            elif silence > process.task.limit_s:
                self._end(process)
                found.append(
                    Report(
                        task_id=process.task.id,
                        kind=ReportKind.SILENT,
                        message=f"nothing was heard for {silence:.0f} s, more than its limit of "
                        f"{process.task.limit_s:g} s",
                    )
                )
        if self._stopping:
            found += [Report(task_id=task.id, kind=ReportKind.DONE) for task in self._queue]
            self._queue.clear()
        self._start_what_fits()
        return found

    def _receive(self, process: _Process) -> list[Report]:
        found = []
        try:
            while process.connection.poll():
                kind, piece = process.connection.recv()
                process.heard_s = time.monotonic()
                if kind == _DONE:
                    process.done = True
                    break
                found.append(Report(task_id=process.task.id, kind=ReportKind.PIECE, piece=piece))
        except (EOFError, OSError):
            process.hung_up = True
            process.process.join(timeout=1.0)
        return found

    def _end(self, process: _Process) -> None:
        """Make sure that nothing of a process is left."""
        self._processes.remove(process)
        if process.done:
            process.process.join(timeout=5.0)
        # The group may outlive its leader: workers of an engine that crashed.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.process.pid, signal.SIGKILL)
        process.process.join(timeout=5.0)
        process.connection.close()

    def finish_soon(self) -> None:
        """Ask every process to finish its window, and start no other."""
        self._stopping = True
        for process in self._processes:
            with contextlib.suppress(OSError):
                process.connection.send("stop")

    def close(self) -> None:
        """Kill what still runs."""
        self._queue.clear()
        for process in list(self._processes):
            self._end(process)


def _exit_in_words(code: int | None) -> str:
    if code is None:
        return "no exit status"
    if code < 0:
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"killed by signal {-code}"
    return f"exit status {code}"


def _run_in_process(
    connection: Connection,
    work: Work,
    payload: Any,
    gpus: tuple[int, ...],
    shared: bool,
    log: str | None,
) -> None:
    """Do a task in a process of its own. Runs before anything heavy is imported."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to hand on
    # Engines print as they like; standard output belongs to whoever called us.
    with open(log, "ab") if log else contextlib.nullcontext(sys.stderr) as sink:  # noqa: PTH123
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
    if gpus:
        os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # as the driver counts
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpus))
    stopping = threading.Event()

    def listen() -> None:
        try:
            while connection.recv() == "stop":
                stopping.set()
        except (EOFError, OSError):
            os.killpg(0, signal.SIGKILL)  # the parent is gone, and nobody wants our rows

    threading.Thread(target=listen, daemon=True).start()
    place = Place(gpus=gpus, shared=shared, stopping=stopping.is_set)
    for piece in work(payload, place):
        connection.send(("piece", piece))
    connection.send((_DONE, None))


# ------------------------------------------------------------------------------------------- Ray


class RayExecutor:
    """Tasks on a Ray cluster, each with its GPUs from a placement group.

    A task whose GPUs fit on one node gets them on one node. A larger one (TP x PP over
    nodes) gets one bundle a GPU; it runs in the first, and its engine puts its ranks into the
    others, which it finds through Ray's current placement group. The meters of the other nodes
    are served over HTTP to the task; such a task is expected to have those nodes for itself.

    Parameters
    ----------
    address : str, optional
        Of the cluster; the running one if not given.
    meter_factory : callable, optional
        Opens the meter on the other nodes of a task that spans nodes.
    cpus_per_task : float
        CPUs that a task asks for.

    Raises
    ------
    MissingExtraError
        If ray is not installed.
    UsageError
        If there is no cluster.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        meter_factory: Callable[[], Meter] | None = None,
        cpus_per_task: float = 1.0,
    ) -> None:
        try:
            import ray
        except ImportError:
            raise MissingExtraError("ray", "ray", "measuring on a Ray cluster") from None
        self._ray: Any = ray
        if not ray.is_initialized():
            try:
                ray.init(address=address or "auto", log_to_driver=False)
            except (ConnectionError, ValueError) as error:
                raise UsageError(
                    f"there must be a Ray cluster to run on: {error} Start one with `ray start`."
                ) from None
        self._meter_factory = meter_factory
        self._cpus = cpus_per_task
        self._work: Any = None
        self._tasks: list[_RayTask] = []
        self._stopping = False

    @property
    def gpus(self) -> int:
        """GPUs of the cluster as it is now."""
        return int(self._ray.cluster_resources().get("GPU", 0))

    def begin(self, work: Work) -> None:
        """Say what tasks do."""
        self._work = self._ray.put(work)

    def _largest_node(self) -> int:
        nodes = (node for node in self._ray.nodes() if node["Alive"])
        return max((int(node["Resources"].get("GPU", 0)) for node in nodes), default=0)

    def submit(self, task: Task) -> None:
        """Ask the cluster for the task's GPUs; it starts when they are granted."""
        from ray.util.placement_group import placement_group

        if task.gpus <= max(self._largest_node(), 1):
            bundles = [{"CPU": self._cpus, "GPU": task.gpus}]
        else:
            bundles = [{"CPU": self._cpus, "GPU": 1} for _ in range(task.gpus)]
        group = placement_group(bundles, strategy="PACK")
        self._tasks.append(_RayTask(task=task, group=group, waiting_for=group.ready()))

    def reports(self, timeout_s: float) -> list[Report]:
        """Collect what the tasks have said."""
        if not self._tasks:
            return []
        refs = [t.waiting_for for t in self._tasks]
        ready, _ = self._ray.wait(refs, num_returns=len(refs), timeout=timeout_s)
        found: list[Report] = []
        for entry in list(self._tasks):
            if entry.waiting_for in ready:
                found += self._advance(entry)
            elif entry.actor is not None and entry.silence_s > entry.task.limit_s:
                self._end(entry)
                found.append(
                    Report(
                        task_id=entry.task.id,
                        kind=ReportKind.SILENT,
                        message=f"nothing was heard for {entry.silence_s:.0f} s",
                    )
                )
            elif entry.actor is None and self._stopping:
                self._end(entry)
                found.append(Report(task_id=entry.task.id, kind=ReportKind.DONE))
        return found + self._give_up_waiting()

    def _give_up_waiting(self) -> list[Report]:
        """Find tasks that no node left in the cluster can ever hold."""
        if any(entry.actor is not None for entry in self._tasks):
            for entry in self._tasks:
                if entry.actor is None:
                    entry.heard_s = time.monotonic()  # its turn may still come
            return []
        found = []
        for entry in list(self._tasks):
            if entry.silence_s > entry.task.limit_s:
                self._end(entry)
                found.append(
                    Report(
                        task_id=entry.task.id,
                        kind=ReportKind.LOST,
                        message=f"the cluster found no {entry.task.gpus} GPUs for it in "
                        f"{entry.silence_s:.0f} s; it has {self.gpus}",
                    )
                )
        return found

    def _advance(self, entry: _RayTask) -> list[Report]:
        entry.heard_s = time.monotonic()
        try:
            answer = self._ray.get(entry.waiting_for)
            if entry.actor is None:
                entry.actor = self._start(entry)
                entry.waiting_for = entry.ask()
                return []
        except self._ray.exceptions.RayError as error:
            self._end(entry)
            first = str(error).strip().splitlines()[:1]
            return [
                Report(
                    task_id=entry.task.id,
                    kind=ReportKind.LOST,
                    message=f"the worker is lost: {first[0] if first else type(error).__name__}",
                )
            ]
        kind, piece = answer
        if kind == _DONE:
            self._end(entry)
            return [Report(task_id=entry.task.id, kind=ReportKind.DONE)]
        entry.waiting_for = entry.ask()
        return [Report(task_id=entry.task.id, kind=ReportKind.PIECE, piece=piece)]

    def _start(self, entry: _RayTask) -> Any:
        from ray.util import placement_group_table
        from ray.util.scheduling_strategies import (
            NodeAffinitySchedulingStrategy,
            PlacementGroupSchedulingStrategy,
        )

        nodes = placement_group_table(entry.group)["bundles_to_node_id"]
        here = nodes[0]
        elsewhere = []
        for node in sorted({node for node in nodes.values() if node != here}):
            if self._meter_factory is None:
                continue
            host = self._ray.remote(_RayMeterHost).options(
                num_cpus=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            )
            server = host.remote(self._meter_factory)
            entry.meters.append(server)
            url, token = self._ray.get(server.address.remote())
            elsewhere.append((url, token, ()))
        groups = {"work": 1, "control": 1}
        worker = self._ray.remote(concurrency_groups=groups)(_RayWorker).options(
            num_cpus=self._cpus,
            # With a bundle a GPU, those are for the ranks that the engine puts there.
            num_gpus=entry.task.gpus if len(nodes) == 1 else 0,
            max_restarts=0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                entry.group,
                placement_group_bundle_index=0,
                placement_group_capture_child_tasks=True,
            ),
        )
        return worker.remote(self._work, entry.task.payload, tuple(elsewhere))

    def _end(self, entry: _RayTask) -> None:
        from ray.util import remove_placement_group

        self._tasks.remove(entry)
        for actor in (entry.actor, *entry.meters):
            if actor is not None:
                with contextlib.suppress(self._ray.exceptions.RayError):
                    self._ray.kill(actor)
        with contextlib.suppress(self._ray.exceptions.RayError):
            remove_placement_group(entry.group)

    def finish_soon(self) -> None:
        """Ask every task to finish its window."""
        self._stopping = True
        for entry in self._tasks:
            if entry.actor is not None:
                entry.actor.stop.options(concurrency_group="control").remote()

    def close(self) -> None:
        """Kill what still runs; the cluster stays as it is."""
        for entry in list(self._tasks):
            self._end(entry)


@dataclass(kw_only=True)
class _RayTask:
    task: Task
    group: Any
    waiting_for: Any
    actor: Any = None
    meters: list[Any] = field(default_factory=list)
    heard_s: float = field(default_factory=time.monotonic)

    @property
    def silence_s(self) -> float:
        return time.monotonic() - self.heard_s

    def ask(self) -> Any:
        return self.actor.next_piece.options(concurrency_group="work").remote()


class _RayWorker:
    """The actor in which a task runs. One thread works, another can be told to stop."""

    def __init__(
        self, work: Work, payload: Any, elsewhere: tuple[tuple[str, str, tuple[int, ...]], ...]
    ) -> None:
        import ray

        self._stopping = threading.Event()
        gpus = tuple(int(gpu) for gpu in ray.get_gpu_ids())
        place = Place(gpus=gpus, elsewhere=elsewhere, shared=True, stopping=self._stopping.is_set)
        self._pieces = work(payload, place)

    def next_piece(self) -> tuple[str, Any]:
        """Work until there is something to say."""
        for piece in self._pieces:
            return "piece", piece
        return _DONE, None

    def stop(self) -> None:
        """Ask to finish the window."""
        self._stopping.set()


class _RayMeterHost:
    """An actor that serves the meter of its node."""

    def __init__(self, meter_factory: Callable[[], Meter]) -> None:
        import ray

        from energylens.meters.remote import serve

        self._server = serve(meter_factory(), host=ray.util.get_node_ip_address())

    def address(self) -> tuple[str, str]:
        """URL and token."""
        return self._server.url, self._server.token


# ----------------------------------------------------------------------------------------- Slurm


class SlurmExecutor:
    """Each task a Slurm job, through submitit; pieces come back through a shared folder.

    Jobs outlive a driver that is killed. What they wrote meanwhile is taken in when the next
    one begins, and jobs of the earlier one are cancelled before anything is measured anew.

    Parameters
    ----------
    folder : str or Path
        On a file system that all nodes share.
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
        parameters: dict[str, str | int] | None = None,
        gpus: int = 8,
        cluster: str = "slurm",
    ) -> None:
        try:
            import submitit
        except ImportError:
            raise MissingExtraError("submitit", "slurm", "measuring under Slurm") from None
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._submitit: Any = submitit
        self._cluster = cluster
        self._parameters = dict(parameters or {})
        self._gpus = gpus
        self._work: Work = _no_work
        self._jobs: list[_SlurmJob] = []
        self._earlier: list[Report] = []
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
            note.unlink()

    def submit(self, task: Task) -> None:
        """Submit a job."""
        executor = self._submitit.AutoExecutor(folder=self._folder, cluster=self._cluster)
        executor.update_parameters(
            name="energylens", **{"gpus_per_node": task.gpus, **self._parameters}
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
        job.note.unlink(missing_ok=True)

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
    from energylens.meters import gpu_indices

    visible = os.environ.get("SLURM_JOB_GPUS") or os.environ.get("CUDA_VISIBLE_DEVICES", "")
    gpus = tuple(int(gpu) for gpu in visible.split(",") if gpu.strip().isdigit())
    place = Place(gpus=gpus or gpu_indices(), shared=True, stopping=Path(stop_file).exists)
    files.append_json_line(pieces, ["start", None])
    for piece in work(payload, place):
        files.append_json_line(pieces, ["piece", piece])
    files.append_json_line(pieces, [_DONE, None])
