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
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for_connections
from pathlib import Path
from typing import Any

from energylens.errors import UsageError
from energylens.foreign import printable
from energylens.instrument.executor import Place, Report, ReportKind, Task, Work

_DONE = "done"
#: No honest report is longer: the windows of a case with thousands of requests are megabytes.
LONGEST_REPORT_BYTES = 1 << 28


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
    heard_s: float
    done: bool = False
    hung_up: bool = False
    garbled: str = ""  # what it sent that is no report
    pending: bytes = b""  # of a report that has not come in full

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
    clock : callable
        Seconds, by which a silence is told.
    """

    def __init__(
        self,
        gpus: Sequence[int] = (),
        *,
        exclusive: bool = False,
        log_folder: str | Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
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
        # A child that is not yet ready for Ctrl-C would die of it with a traceback: it is handed
        # out to it when it has said what to do with one. What multiprocessing itself starts comes
        # first, as it would let the signal through again.
        resource_tracker.ensure_running()
        held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
        there.close()
        self._processes.append(
            _Process(task=task, process=process, connection=here, gpus=gpus, heard_s=self._clock())
        )

    def reports(self, timeout_s: float) -> list[Report]:
        """Collect what the processes have said, and find those that say no more."""
        found: list[Report] = []
        ready = wait_for_connections([p.connection for p in self._processes], timeout_s)
        for process in list(self._processes):
            if process.connection in ready:
                found += self._receive(process)
            silence = self._clock() - process.heard_s
            if process.done:
                self._end(process)
                found.append(Report(task_id=process.task.id, kind=ReportKind.DONE))
            elif process.garbled:
                self._end(process)
                found.append(
                    Report(task_id=process.task.id, kind=ReportKind.LOST, message=process.garbled)
                )
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
        """Take in what has come: lines of JSON, which neither garbage nor half a report holds up.

        An engine may write to whatever descriptor it finds open, so nothing here is believed
        before it is whole and well-formed, and nothing is executed (as a pickle would be).
        """
        found: list[Report] = []
        try:
            while process.connection.poll():
                part = os.read(process.connection.fileno(), 1 << 20)
                if not part:
                    raise EOFError
                *lines, process.pending = (process.pending + part).split(b"\n")
                for line in lines:
                    kind, piece = _report(line)
                    process.heard_s = self._clock()
                    if kind == _DONE:
                        process.done = True
                        return found
                    found.append(
                        Report(task_id=process.task.id, kind=ReportKind.PIECE, piece=piece)
                    )
                if len(process.pending) > LONGEST_REPORT_BYTES:
                    raise ValueError("a report without end")
        except (EOFError, OSError):
            process.hung_up = True
            process.process.join(timeout=1.0)
        except (ValueError, RecursionError) as error:
            process.garbled = (
                f"the engine's process sent what is no report ({printable(error, 100)}): something "
                "in it writes to descriptors that are not its own"
            )
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
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
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
        _send(connection, "piece", piece)
    _send(connection, _DONE, None)


def _send(connection: Connection, kind: str, piece: Any) -> None:
    """Write a report as a line of JSON."""
    left = memoryview(json.dumps([kind, piece]).encode("ascii") + b"\n")
    while left:
        left = left[os.write(connection.fileno(), left) :]


def _report(line: bytes) -> tuple[str, Any]:
    match json.loads(line):
        case [("piece" | "done") as kind, piece]:
            return kind, piece
        case _:
            raise ValueError("a report of no kind")
