"""The seam of an executor: where a task runs, and what comes back of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

# --------------------------------------------------------------------------------- executors


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a task runs.

    Attributes
    ----------
    gpus : tuple of int
        Indices of its GPUs among those of the node, as the driver counts them.
    elsewhere : tuple of (url, token, gpus)
        Meters on the other nodes that the task spans, and its GPUs there.
    shared : bool
        Whether other tasks may run on the same node at the same time.
    stopping : callable
        Says whether to finish the window and return.
    """

    gpus: tuple[int, ...] = ()
    elsewhere: tuple[tuple[str, str, tuple[int, ...]], ...] = ()
    shared: bool = False
    stopping: Callable[[], bool] = field(default=lambda: False)


#: Does a task at a place and yields what is to be sent back, piece by piece. Must be picklable.
Work = Callable[[Any, Place], Iterator[Any]]


@dataclass(frozen=True, kw_only=True)
class Task:
    """Something for an executor to do: ``work(payload, place)``."""

    id: str
    gpus: int
    payload: Any
    limit_s: float  # longest silence between two pieces before the worker is killed
    tensor_parallel: int = 1


class ReportKind(StrEnum):
    """What an executor says of a task."""

    PIECE = "piece"  # one thing that the work yielded
    DONE = "done"
    LOST = "lost"  # the worker died
    SILENT = "silent"  # the worker said nothing for limit_s and was killed


@dataclass(frozen=True, kw_only=True)
class Report:
    """Something that happened to a task. ``message`` says why it was lost."""

    task_id: str
    kind: ReportKind
    piece: Any = None
    message: str = ""


class Executor(Protocol):
    """Runs tasks somewhere, and sends back what they yield."""

    @property
    def gpus(self) -> int:
        """GPUs that tasks can have at the same time; 0 on a machine without any."""

    def begin(self, work: Work) -> None:
        """Say what tasks do. Called once, before the first :meth:`submit`."""

    def submit(self, task: Task) -> None:
        """Queue a task."""

    def reports(self, timeout_s: float) -> list[Report]:
        """Wait for something to happen, ``timeout_s`` at most; may be empty."""

    def finish_soon(self) -> None:
        """Ask every task to finish its window and return, and start no other."""

    def close(self) -> None:
        """Kill what still runs."""
