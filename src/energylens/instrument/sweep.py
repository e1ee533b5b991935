"""A whole sweep of measured cases that survives anything.

``measure`` runs a plan: an executor gives each layout an engine in a process of its own, a worker
there measures case after case, and the records come back one by one. Two files are written,
line by line, each line on the disk before the next begins:

``runs.records.jsonl``
    Everything: raw windows, states of the devices, provenance, and the cases that failed with
    their reason. It is what a resumed sweep goes by.
``runs.jsonl``
    The tidy table of what was measured, made from the records and mended from them if a kill
    fell between the two.
"""

from __future__ import annotations

import itertools
import json
import math
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from energylens import files
from energylens.columns import PERCENTILES
from energylens.errors import InputError, MeasurementError, UsageError
from energylens.foreign import made_printable
from energylens.instrument.engine import Reason
from energylens.instrument.executor import Executor, Report, ReportKind, Task
from energylens.instrument.ledger import _Ledger, _locked, _locked_table, records_path
from energylens.instrument.plan import Plan, PlannedCase, layout_of
from energylens.instrument.worker import EngineFactory, MeterFactory, _Job, _Worker
from energylens.table import dataset_from_table

# ----------------------------------------------------------------------------------- the sweep


@dataclass(frozen=True, kw_only=True)
class SweepProgress:
    """How far a sweep has come."""

    cases: int
    measured: int
    failed: int
    energy_j: float  # drawn by the devices while cases were measured, this time
    sources: tuple[str, ...]  # what these joules are: measured, simulated ...
    elapsed_s: float
    remaining_s: float | None
    current: tuple[str, ...] = ()

    @property
    def done(self) -> int:
        """Cases that need no further work."""
        return self.measured + self.failed


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """What a sweep came to."""

    cases: int
    measured: int
    failed: Mapping[str, str]  # what each failed case was, and its reason in words
    unstable: int
    new: int  # cases that this sweep measured or gave up; the others were there already
    energy_j: float  # of the new ones
    sources: tuple[str, ...]  # what these joules are: measured, simulated ...
    interrupted: bool
    table: Path
    records: Path


def measure(
    plan: Plan,
    engine_factory: EngineFactory,
    meter_factory: MeterFactory,
    out: str | Path,
    *,
    executor: Executor,
    gpus: int | None = None,
    retry_failed: bool = False,
    on_progress: Callable[[SweepProgress], None] | None = None,
    command_line: Sequence[str] | None = None,
    meter_asked: str = "",
    secrets: Sequence[str] = (),
) -> SweepResult:
    """Measure every case of a plan that is not yet measured.

    An interrupt (Ctrl-C) lets each worker finish its window and ends the sweep; a second one, or
    a SIGTERM, ends it at once with a KeyboardInterrupt. Either way, and after a kill, calling
    again goes on where this ended.

    Parameters
    ----------
    plan : Plan
        What to measure.
    engine_factory : callable
        Makes an engine from its name; picklable unless the executor is in this process.
    meter_factory : callable
        Opens the meter where the engine runs; picklable too.
    out : str or Path
        The tidy table, ``.jsonl``. Rows are added to what is there.
    executor : Executor
        Where engines run. It is closed at the end.
    gpus : int, optional
        GPUs that a case may have at most, simulated ones too: what needs more is refused before
        an engine is started, and tried again once there are more.
    retry_failed : bool
        Try again what failed in an earlier sweep.
    on_progress : callable, optional
        Told whenever something has changed.
    command_line : sequence of str, optional
        Recorded with the rows; ``sys.argv`` if not given.
    meter_asked : str
        How the meter was named. A case that failed under another name is tried again; one whose
        engine options have changed is another case, and tried anyway.
    secrets : sequence of str
        Keys and tokens that must not be written, wherever a server may have put them.

    Raises
    ------
    UsageError
        If ``out`` is no JSON Lines file, is no table of a sweep, has rows without their records,
        or another sweep writes to it.
    MeasurementError
        If no case can be measured at all: a package is missing, or an engine has no such name.
    """
    named = Path(out)
    records_path(named)  # refuses what is no JSON Lines file
    table = named.resolve()  # a symbolic link leads to the one file, and its records
    records = records_path(table)
    if gpus is not None and gpus < 1:
        raise UsageError(f"the number of GPUs must be 1 or more, not {gpus}")
    with _locked(records), _locked_table(table):
        ledger = _Ledger(table, records)
        sweep = _Sweep(
            plan,
            ledger,
            executor,
            gpus,
            retry_failed,
            on_progress,
            list(command_line or sys.argv),
            meter_asked,
            secrets,
        )
        executor.begin(
            _Worker(
                engine_factory=engine_factory,
                meter_factory=meter_factory,
                procedure=plan.procedure,
            )
        )
        try:
            with _finish_on_interrupt() as interrupted:
                sweep.run(interrupted)
        finally:
            executor.close()
        return sweep.result(named, records_path(named), interrupted.is_set())


@contextmanager
def _finish_on_interrupt() -> Iterator[threading.Event]:
    """Turn the first SIGINT into an event; the second, or a SIGTERM, is a KeyboardInterrupt."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def note(number: int, frame: object) -> None:  # noqa: ARG001
        # Who sends SIGTERM will not wait for a window: it ends at once, and rows are safe.
        if event.is_set() or number == signal.SIGTERM:
            signal.default_int_handler(number, None)
        event.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(eq=False)
class _Sweep:
    """What is out with which worker, and what to do when one reports."""

    _plan: Plan
    _ledger: _Ledger
    _executor: Executor
    _gpus: int | None
    _retry_failed: bool
    _on_progress: Callable[[SweepProgress], None] | None
    _command_line: Sequence[str]
    _meter_asked: str
    _secrets: Sequence[str]

    def __post_init__(self) -> None:
        self._began = time.monotonic()
        self._energy_j = 0.0
        self._sources: set[str] = set()
        self._finished_now = 0
        self._numbers = itertools.count(1)
        self._layouts = {g[0].layout_key: layout_of(g) for g in self._plan.groups()}
        self._planned = {case.key: case for case in self._plan.cases}
        self._retry = {
            key
            for key, record in self._ledger.failed.items()
            if self._retry_failed
            or _lacked_gpus(record)
            or record.get("meter_asked", self._meter_asked) != self._meter_asked
        }
        self._out: dict[str, list[PlannedCase]] = {}  # cases by the task that has them
        self._current: dict[str, str | None] = {}  # the case that each task is at
        self._start_losses: dict[str, int] = {}
        self._stopping = False

    # ---------------------------------------------------------------------------------- state

    def _is_done(self, case: PlannedCase) -> bool:
        if case.key in self._ledger.measured:
            return True
        return case.key in self._ledger.failed and case.key not in self._retry

    def _tell(self) -> None:
        if self._on_progress is None:
            return
        done = [case for case in self._plan.cases if self._is_done(case)]
        left = len(self._plan.cases) - len(done)
        elapsed = time.monotonic() - self._began
        each = elapsed / self._finished_now if self._finished_now else None
        measured = sum(case.key in self._ledger.measured for case in done)
        self._on_progress(
            SweepProgress(
                cases=len(self._plan.cases),
                measured=measured,
                failed=len(done) - measured,
                energy_j=self._energy_j,
                sources=tuple(sorted(self._sources)),
                elapsed_s=elapsed,
                remaining_s=None if each is None else each * left,
                current=tuple(
                    self._planned[key].describe()
                    for key in self._current.values()
                    if key in self._planned
                ),
            )
        )

    def result(self, table: Path, records: Path, interrupted: bool) -> SweepResult:
        """Sum up."""
        ledger = self._ledger
        rows = [ledger.measured[k] for k in self._planned if k in ledger.measured]
        measured = ledger.count_rows(list(self._planned))
        failed: dict[str, str] = {}
        for case in self._plan.cases:
            if case.key in ledger.failed:
                name = case.describe()
                name += f" [{case.key}]" if name in failed else ""  # another engine, or options
                failed[name] = str(ledger.failed[case.key].get("message", ""))
        return SweepResult(
            cases=len(self._plan.cases),
            measured=measured,
            failed=failed,
            unstable=sum(row.get("x_stable") is False for row in rows),
            new=self._finished_now,
            energy_j=self._energy_j,
            sources=tuple(sorted(self._sources)),
            interrupted=interrupted,
            table=table,
            records=records,
        )

    # ------------------------------------------------------------------------------------ work

    def run(self, interrupted: threading.Event) -> None:
        """Hand out tasks and take in records until all is done or an interrupt comes."""
        self._submit_all()
        self._tell()
        while self._out:
            if interrupted.is_set() and not self._stopping:
                self._stopping = True
                self._executor.finish_soon()
            for report in self._executor.reports(0.2):
                self._take(report)
                self._tell()

    def _submit_all(self) -> None:
        room = self._executor.gpus
        batches = []
        for group in self._plan.groups():
            cases = [case for case in group if not self._is_done(case)]
            if not cases:
                continue
            most = min(room or math.inf, self._gpus or math.inf)
            if cases[0].gpus > most:
                for case in cases:
                    self._refuse(case, int(most))
                continue
            batches.append(cases)
        for cases in _spread(batches, room):
            self._submit(cases)

    def _submit(self, cases: list[PlannedCase]) -> None:
        first = cases[0]
        group = next(g for g in self._plan.groups() if g[0].layout_key == first.layout_key)
        known = self._ledger.measured.get(group[0].key, {})
        task = Task(
            id=f"{next(self._numbers)}-{first.layout_key}",
            gpus=first.gpus,
            tensor_parallel=first.case.configuration.tensor_parallel,
            limit_s=self._plan.procedure.case_limit_s,
            payload=_Job(
                cases=tuple(cases),
                layout=self._layouts[first.layout_key],
                reference=group[0],
                reference_energy_j=known.get("energy_per_request_j"),
            ),
        )
        self._out[task.id] = list(cases)
        self._current[task.id] = None
        self._executor.submit(task)

    def _refuse(self, case: PlannedCase, gpus: int) -> None:
        """Fail a case that needs more GPUs than it may have, unless that is written already."""
        self._retry.discard(case.key)
        if not _lacked_gpus(self._ledger.failed.get(case.key, {})):
            there = f"there {'is' if gpus == 1 else 'are'} {gpus}"
            message = f"the case needs {case.gpus} GPUs, and {there}."
            self._fail(case, Reason.DOES_NOT_FIT, message)

    def _fail(self, case: PlannedCase, reason: Reason, message: str) -> None:
        self._write(
            {
                "kind": "case",
                "case": case.key,
                "run": uuid.uuid4().hex[:12],
                "description": case.describe(),
                "ended": datetime.now(UTC).isoformat(timespec="seconds"),
                "status": "failed",
                "reason": reason.value,
                "message": message,
            }
        )

    def _write(self, record: dict[str, Any]) -> None:
        record["command_line"] = list(self._command_line)
        record["meter_asked"] = self._meter_asked
        # Here everything that servers, drivers and engines say of themselves comes in.
        record = made_printable(record, self._secrets)
        if "row" in record:
            record = _acceptable(record)
        if not self._ledger.add(record):
            return
        if record["kind"] == "case":
            self._finished_now += 1
            self._retry.discard(record["case"])
        measured = record.get("measured")
        if measured and "row" in record:
            self._energy_j += measured["total_energy_j"]
            self._sources.add(record["row"]["source"])

    def _take(self, report: Report) -> None:
        task = report.task_id
        if report.kind is ReportKind.PIECE:
            piece = report.piece
            if piece["kind"] == "begin":
                self._current[task] = piece["case"]
            elif piece["kind"] == "abort":
                raise MeasurementError(piece["message"])
            elif piece["kind"] in ("case", "reference"):
                self._write(piece)
                if piece["kind"] == "case":
                    left = self._out.get(task, [])
                    left[:] = [case for case in left if case.key != piece["case"]]
                    self._current[task] = None
                    self._start_losses.pop(self._layout_of_task(task), None)
            return
        left = [case for case in self._out.pop(task, []) if not self._is_done(case)]
        current = self._current.pop(task, None)
        if not left or self._stopping:
            return
        if report.kind is ReportKind.DONE:
            # The work ended without an answer for some of its cases.
            report = replace(report, kind=ReportKind.LOST, message="the worker ended early")
        self._lose(left, current, report)

    def _layout_of_task(self, task: str) -> str:
        return task.partition("-")[2]

    def _lose(self, left: list[PlannedCase], current: str | None, report: Report) -> None:
        """Decide what to do with the cases of a worker that is gone."""
        silent = report.kind is ReportKind.SILENT
        reason = Reason.TIMED_OUT if silent else Reason.WORKER_LOST
        attempts = 1 if silent else self._plan.procedure.attempts
        case = next((c for c in left if c.key == current), None)
        if case is None:  # it died while the engine started
            layout = left[0].layout_key
            losses = self._start_losses[layout] = self._start_losses.get(layout, 0) + 1
            if losses >= attempts:
                for each in left:
                    self._fail(each, reason, f"the engine did not start: {report.message}")
                return
        else:
            self._ledger.add({"kind": "lost", "case": case.key, "message": report.message})
            left.remove(case)
            if self._ledger.lost[case.key] >= attempts:
                self._fail(case, reason, report.message)
            else:
                left.append(case)
        if left:
            self._submit(left)


#: Parts of a row that it can do without, in the order in which they are given up.
_DISPENSABLE = (
    ("prefill_energy_per_request_j", "decode_energy_per_request_j"),
    ("ttft_s", "tpot_s", "median_itl_s", "request_latency_s", *PERCENTILES),
    ("average_power_w", "loaded_idle_w", "power_cap_w"),
)


def _acceptable(record: dict[str, Any]) -> dict[str, Any]:
    """Give a record whose row every reader of tables takes, or one of a failed case.

    A part that contradicts the rest is left out and said so; a row that is refused all the same
    is no row.
    """
    row, refused, dropped = dict(record["row"]), "", []
    for parts in ((), *_DISPENSABLE):
        row = {name: value for name, value in row.items() if name not in parts}
        dropped += [name for name in parts if name in record["row"]]
        try:
            dataset_from_table(
                files.parse_table(json.dumps(row, ensure_ascii=False), "the row", "jsonl")
            )
        except InputError as error:
            refused = refused or str(error)
            continue
        if dropped:
            row["x_stable"] = False
            warning = f"left out, being refused ({refused}): {', '.join(dropped)}"
            row["x_warnings"] = "; ".join(filter(None, (row.get("x_warnings"), warning)))
        return record | {"row": row}
    failed = {name: value for name, value in record.items() if name != "row"}
    reason = f"what was measured makes no row: {refused}"
    return failed | {"status": "failed", "reason": Reason.WRONG_COUNTS.value, "message": reason}


def _lacked_gpus(record: Mapping[str, Any]) -> bool:
    """Whether a case was refused for its number of GPUs, before any engine was asked."""
    return record.get("reason") == Reason.DOES_NOT_FIT and "meter" not in record


def _spread(batches: list[list[PlannedCase]], room: int) -> list[list[PlannedCase]]:
    """Divide the largest batches until every GPU has something to do."""
    batches = [list(batch) for batch in batches]
    while batches:
        largest = max(batches, key=len)
        used = sum(batch[0].gpus for batch in batches)
        if len(largest) < 2 or used + largest[0].gpus > room:
            break
        half = len(largest) // 2
        batches.append(largest[half:])
        del largest[half:]
    return batches
