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

import fcntl
import itertools
import math
import os
import platform
import shlex
import signal
import statistics
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from energylens import __version__, catalog, files
from energylens.errors import (
    EnergyLensError,
    InputError,
    MeasurementError,
    MissingExtraError,
    UsageError,
)
from energylens.instrument import (
    Channel,
    ChannelKind,
    DeviceState,
    Engine,
    EngineError,
    Executor,
    Layout,
    Meter,
    MeterError,
    Mode,
    Phase,
    Place,
    Plan,
    PlannedCase,
    Procedure,
    Reason,
    Report,
    ReportKind,
    Task,
    Window,
    layout_of,
)
from energylens.meters.combined import CombinedMeter
from energylens.meters.remote import HttpMeter
from energylens.meters.trail import Trail
from energylens.records import Boundary, Source, power_cap_range_w
from energylens.windows import (
    Bench,
    Measured,
    StoppedError,
    active_channels,
    cool_down,
    measure_case,
    measure_idle,
)

EngineFactory = Callable[[str], Engine]
MeterFactory = Callable[[], Meter]


# ---------------------------------------------------------------------------------------- rows


def row_of(
    planned: PlannedCase,
    measured: Measured,
    *,
    source: Source,
    channels: Sequence[Channel],
    active: Sequence[int],
    shared: bool = False,
) -> dict[str, Any]:
    """Make the row of the tidy table; columns that begin with ``x_`` are the instrument's own.

    A shard's joules are those of its rank, times the ranks of the layout: communication is not
    in them.

    Parameters
    ----------
    planned, measured
        The case, and what came of it.
    source : Source
        What its joules may be called.
    channels, active
        Channels of the meter, and places of those that are the deployment's.
    shared : bool
        Whether other work ran on the node: the joules of its other GPUs then mean nothing.

    Raises
    ------
    MeterError
        If the row is asked for at the boundary of the node, whose joules are not known.
    """
    case = planned.case
    configuration, workload = case.configuration, case.workload
    node = None if shared else measured.node
    node_gpus = sum(c.kind is ChannelKind.GPU for c in channels)
    at_node = case.boundary is Boundary.NODE
    energy = node if at_node else measured.active
    if energy is None:
        raise MeterError(
            "a row at the boundary node needs the joules of every GPU of the node, with nothing "
            "else running on them: use --exclusive and a meter that sees them."
        )
    ranks = configuration.gpus if planned.shard else 1

    def joules(value: float | None) -> float | None:
        return None if value is None else value * ranks

    encoder = measured.phases.get(Phase.ENCODE)
    idle = measured.idle
    row: dict[str, Any] = {
        "llm": case.llm.id,
        "gpu": case.gpu.id,
        "precision": case.precision.id,
        "tensor_parallel": configuration.tensor_parallel,
        "pipeline_parallel": configuration.pipeline_parallel,
        "expert_parallel": configuration.expert_parallel,
        "data_parallel": configuration.data_parallel,
        **_batch_sizes(planned, measured),
        "modality": planned.media.modality.value,
        "task": workload.task or None,
        "input_tokens": workload.input_tokens,
        "output_tokens": workload.output_tokens,
        "vision_tokens": max(result.vision_tokens for result in measured.phases.values()),
        "images": planned.media.images,
        "frames": planned.media.frames,
        "energy_per_request_j": joules(energy.whole_j),
        "prefill_energy_per_request_j": joules(energy.prefill_j) if energy.parts_agree else None,
        "decode_energy_per_request_j": joules(energy.decode_j) if energy.parts_agree else None,
        **_latency(planned, measured),
        "average_power_w": energy.power_w * ranks,
        "boundary": case.boundary.value,
        "node_gpus": node_gpus if at_node else None,
        "power_cap_w": _power_cap_w(planned, [channels[i] for i in active]),
        "source": source.value,
        "x_mode": planned.mode.value,
        "x_stable": measured.stable,
        "x_warnings": "; ".join(measured.warnings) or None,
        "x_spread_ratio": measured.spread_ratio,
        "x_windows": sum(len(result.windows) for result in measured.phases.values()),
        "x_decode_method": energy.decode_method,
        "x_closure_ratio": energy.closure_ratio,
        "x_time_closure_ratio": measured.time_closure_ratio,
        "x_idle_power_w": math.fsum(idle.energy_j[i] for i in active) / idle.duration_s
        if idle
        else None,
        "x_node_energy_per_request_j": joules(node.whole_j) if node else None,
        "x_node_gpus": node_gpus if node else None,
        "x_encoder_energy_per_request_j": statistics.fmean(encoder.joules(active))
        if encoder
        else None,
        "x_scaled_layers": planned.scaled_layers,
        "x_shard": "x".join(map(str, planned.shard)) if planned.shard else None,
        **_states(measured.states, [channels[i].id for i in active]),
    }
    return {key: value for key, value in row.items() if value is not None}


def _power_cap_w(planned: PlannedCase, active: Sequence[Channel]) -> float | None:
    """The lowest cap that someone has set on a GPU of the deployment; the others wait for it.

    Left out where no table could hold it, because the GPU is none that the catalog describes.
    """
    low, high = power_cap_range_w(planned.case.gpu)
    cap = min((c.power_cap_w for c in active if c.power_cap_w is not None), default=None)
    return cap if cap is not None and low <= cap <= high else None


def _batch_sizes(planned: PlannedCase, measured: Measured) -> dict[str, float]:
    """The limit set and the mean observed; an open loop has no limit but the most it saw."""
    limit = planned.case.configuration.batch_size
    running = [w.running_requests for w in measured.main.windows if w.running_requests]
    if not running:
        return {"batch_size": limit, "mean_batch_size": limit}
    mean = statistics.fmean(running)
    if planned.request_rate_per_s is not None:
        return {"batch_size": max(1.0, *running), "mean_batch_size": mean}
    return {"batch_size": limit, "mean_batch_size": min(mean, limit)}


def _states(states: Sequence[DeviceState], active: Sequence[str]) -> dict[str, float | str]:
    own = [s for s in states if s.channel in active]
    clocks = [s.sm_clock_hz for s in own if s.sm_clock_hz]
    temperatures = [s.temperature_c for s in own if s.temperature_c]
    throttles = sorted({reason for s in own for reason in s.throttle_reasons})
    row: dict[str, float | str] = {}
    if clocks:
        row["x_sm_clock_hz"] = statistics.fmean(clocks)
    if temperatures:
        row["x_temperature_c"] = max(temperatures)
    if throttles:
        row["x_throttles"] = " ".join(throttles)
    return row


def _latency(planned: PlannedCase, measured: Measured) -> dict[str, float | None]:
    """TTFT, TPOT and latency: as requests felt them where the engine says, else from phases."""
    output = planned.case.workload.output_tokens
    felt = measured.main.timings
    first = [t.ttft_s for t in felt if t.ttft_s]
    steps = [
        (t.latency_s - t.ttft_s) / (t.output_tokens - 1)
        for t in felt
        if t.ttft_s and t.output_tokens > 1 and t.latency_s > t.ttft_s
    ]
    ttft = statistics.fmean(first) if first else None
    tpot = statistics.fmean(steps) if steps else None
    latency = statistics.fmean(t.latency_s for t in felt) if felt else None
    if planned.mode is Mode.PHASES:
        # The whole batch is prefilled before anything is decoded: its time is every request's.
        prefill, decode, whole = (
            measured.phases.get(p) for p in (Phase.PREFILL, Phase.DECODE, Phase.REQUEST)
        )
        if ttft is None and prefill:
            ttft = prefill.seconds_per_repetition
        if latency is None:
            parts = (prefill, decode) if whole is None else (whole,)
            latency = sum(part.seconds_per_repetition for part in parts if part)
        if tpot is None and output > 1:
            rest = decode.seconds_per_repetition if decode else latency - (ttft or 0.0)
            tpot = rest / (output - 1) if rest > 0 else None
    return {"ttft_s": ttft, "tpot_s": tpot, "request_latency_s": latency}


# ---------------------------------------------------------------------------------- the worker


@dataclass(frozen=True, kw_only=True)
class _Job:
    """Cases of one layout for one worker."""

    cases: tuple[PlannedCase, ...]
    layout: Layout
    reference: PlannedCase | None = None
    reference_energy_j: float | None = None


@dataclass(frozen=True, kw_only=True)
class _Worker:
    """Measures the cases of a job where an executor puts it. Pickled, so it holds no state."""

    engine_factory: EngineFactory
    meter_factory: MeterFactory
    procedure: Procedure

    def __call__(self, job: _Job, place: Place) -> Iterator[dict[str, Any]]:
        """Yield ``begin`` before each case and its ``record`` after it."""
        pending = list(job.cases)
        reference_energy = job.reference_energy_j
        since_reference, drift = 0, None
        while pending and not place.stopping():
            yield {"kind": "start"}
            session = _Session(self, job, place)
            try:
                failure = session.open(pending[0])
                if isinstance(failure, MissingExtraError | InputError):
                    # Not about this case: nothing can be measured before it is mended.
                    yield {"kind": "abort", "message": str(failure)}
                    return
                if failure is not None:
                    for planned in pending:
                        yield session.failed(planned, failure)
                    return
                while pending and not place.stopping():
                    planned = pending[0]
                    yield {"kind": "begin", "case": planned.key}
                    record = session.measure(planned)
                    if record is None:
                        return  # asked to stop
                    if drift is not None and "row" in record:
                        self._mark_drift(record["row"], drift)
                    yield record
                    del pending[0]
                    since_reference += 1
                    if job.reference == planned and "row" in record:
                        reference_energy = record["row"]["energy_per_request_j"]
                    due = self.procedure.reference_every
                    if (
                        due
                        and since_reference >= due
                        and session.usable
                        and pending
                        and job.reference is not None
                        and reference_energy is not None
                    ):
                        yield {"kind": "begin", "case": None}
                        look = session.measure(job.reference, quick=True)
                        if look is None:
                            return
                        if "row" in look:
                            drift = look["row"]["energy_per_request_j"] / reference_energy - 1
                            look |= {"drift_ratio": drift}
                        yield look | {"kind": "reference"}
                        since_reference = 0
                    if not session.usable:
                        break
            finally:
                session.close()

    def _mark_drift(self, row: dict[str, Any], drift: float) -> None:
        row["x_drift_ratio"] = drift
        if abs(drift) > self.procedure.drift_limit_ratio:
            row["x_stable"] = False
            warning = f"the reference case had drifted by {drift:+.1%}"
            row["x_warnings"] = "; ".join(filter(None, (row.get("x_warnings"), warning)))


class _Session:
    """One start of an engine, from loading to closing."""

    def __init__(self, worker: _Worker, job: _Job, place: Place) -> None:
        self._worker = worker
        self._job = job
        self._place = place
        self._engine: Engine | None = None
        self._meter: Meter | None = None
        self._facts: dict[str, str] = {}
        self._idle: Window | None = None
        self._active: tuple[int, ...] = ()
        self.usable = True

    def open(self, first: PlannedCase) -> EnergyLensError | None:
        """Start engine and meter; return what prevented it."""
        try:
            engine = self._engine = self._worker.engine_factory(first.engine)
            # A meter that cannot be read should be found out before minutes of loading.
            own = engine.own_meter()
            meter = self._meter = own if own is not None else self._open_meter()
            if engine.capabilities.local:
                self._choose_channels(first, meter, engine)
            facts = engine.start(self._job.layout)
            self._choose_channels(first, meter, engine)  # a start may tell where the work is done
            self._facts = {**_machine_facts(), **meter.provenance(), **facts}
            with Trail(meter, self._active) as trail:
                self._idle = measure_idle(self._bench(trail))
        except EnergyLensError as error:
            return error
        except Exception as error:  # an engine must translate; where it did not, the sweep goes on
            return _crash(error)
        return None

    def _choose_channels(self, first: PlannedCase, meter: Meter, engine: Engine) -> None:
        local = engine.capabilities.local
        place = self._place if local else Place()
        self._active = active_channels(meter.channels, place, first.gpus)
        seen = sum(c.kind is ChannelKind.GPU for c in meter.channels)
        if not local and seen > first.gpus:
            raise MeterError(
                f"the server of this case has {first.gpus} GPUs, and the meter sees {seen}: say "
                "which it is, as in --meter nvml:0,1 (on the server's host)."
            )
        _check_gpu(first, meter, self._active)

    def _open_meter(self) -> Meter:
        meter = self._worker.meter_factory()
        if not self._place.elsewhere:
            return meter
        others = [HttpMeter(url, token) for url, token, _ in self._place.elsewhere]
        return CombinedMeter([meter, *others])

    def _bench(self, trail: Trail, quick: bool = False) -> Bench:
        assert self._engine is not None
        assert self._meter is not None
        procedure = self._worker.procedure
        if quick:
            procedure = replace(procedure, max_windows=procedure.min_windows)
        return Bench(
            engine=self._engine,
            meter=self._meter,
            trail=trail,
            procedure=procedure,
            active=self._active,
            stopping=self._place.stopping,
        )

    def measure(self, planned: PlannedCase, quick: bool = False) -> dict[str, Any] | None:
        """Measure a case and return its record; None if asked to stop."""
        assert self._engine is not None
        assert self._meter is not None
        try:
            with Trail(self._meter, self._active) as trail:
                bench = self._bench(trail, quick)
                cool_down(bench)
                measured = measure_case(bench, planned, self._idle)
            row = row_of(
                planned,
                measured,
                source=self._source(planned),
                channels=self._meter.channels,
                active=self._active,
                shared=self._place.shared,
            )
        except StoppedError:
            return None
        except EnergyLensError as error:
            self.usable = getattr(error, "usable", not isinstance(error, EngineError))
            return self.failed(planned, error)
        except Exception as error:  # as in open
            self.usable = False
            return self.failed(planned, _crash(error))
        record = self._record(planned) | {
            "status": "measured",
            "measured": _plain(asdict(measured)),
            "row": row,
        }
        record["row"] |= {
            "engine": self._engine.name,
            "engine_version": self._facts.get("engine_version", ""),
            "x_meter": self._meter.name,
            "x_case": planned.key,
            "x_run": record["run"],
            "x_weights": self._facts.get("weights", planned.weights),
        }
        return record

    def failed(self, planned: PlannedCase, error: EnergyLensError) -> dict[str, Any]:
        """Record of a case that has no row."""
        return self._record(planned) | {"status": "failed", **_why(error)}

    def _source(self, planned: PlannedCase) -> Source:
        assert self._engine is not None
        assert self._meter is not None
        order = list(Source)
        made = (self._engine.capabilities.source, self._meter.source)
        weakest = max(made, key=order.index)
        if planned.shard and weakest.carries_accuracy_claim:
            return Source.DERIVED
        return weakest

    def _record(self, planned: PlannedCase) -> dict[str, Any]:
        channels = self._meter.channels if self._meter else ()
        return {
            "kind": "case",
            "case": planned.key,
            "run": uuid.uuid4().hex[:12],
            "description": planned.describe(),
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
            "meter": self._meter.name if self._meter else None,
            "channels": [_plain(asdict(channel)) for channel in channels],
            "active": list(self._active),
            "seed": planned.seed,
            "provenance": self._facts,
        }

    def close(self) -> None:
        """Close engine and meter, whatever state they are in."""
        for thing in (self._engine, self._meter):
            if thing is None:
                continue
            try:
                thing.close()
            except Exception as error:  # what was measured must not be lost to a bad goodbye
                self._facts["close_error"] = str(error)


def _crash(error: Exception) -> EngineError:
    text = " ".join(str(error).split())[:500] or type(error).__name__
    memory = isinstance(error, MemoryError) or "out of memory" in text.lower()
    return EngineError(
        f"the engine failed with {type(error).__name__}: {text}",
        reason=Reason.OUT_OF_MEMORY if memory else Reason.CRASHED,
    )


def _why(error: EnergyLensError) -> dict[str, str]:
    if isinstance(error, EngineError):
        reason = error.reason
    elif isinstance(error, MeterError):
        reason = Reason.METER
    else:
        reason = Reason.UNSUPPORTED
    return {"reason": reason.value, "message": str(error)}


def _check_gpu(planned: PlannedCase, meter: Meter, active: Sequence[int]) -> None:
    """Refuse to measure one GPU type under the name of another."""
    for channel in (meter.channels[i] for i in active):
        if channel.kind is not ChannelKind.GPU or not channel.name:
            continue
        try:
            found = catalog.gpu(channel.name).id
        except InputError:
            continue  # a name that no catalog knows contradicts nothing; it is in the record
        if found != planned.case.gpu.id:
            raise EngineError(
                f"the plan says {planned.case.gpu.id}, but {channel.id} is a {channel.name}: "
                f"set gpu to {found} in the plan.",
                reason=Reason.UNSUPPORTED,
            )


def _machine_facts() -> dict[str, str]:
    return {
        "energylens_version": __version__,
        "python_version": platform.python_version(),
        "host": platform.node(),
        "system": platform.platform(),
        "cpus": str(os.cpu_count()),
    }


def _plain(value: Any) -> Any:
    """Make something JSON has words for: NaN is not known."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


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


def records_path(table: str | Path) -> Path:
    """Where the records behind a table lie: ``runs.jsonl`` has ``runs.records.jsonl``."""
    path = Path(table)
    if path.suffix not in (".jsonl", ".ndjson"):
        made, wanted = path.with_suffix(".jsonl"), path
        if path.suffix not in (".csv", ".parquet"):
            wanted = path.with_suffix(".csv")
        command = shlex.join(["energylens", "import", "table", str(made), "-o", str(wanted)])
        raise UsageError(
            f"a sweep writes JSON Lines, so that it can be resumed: {path} must end in .jsonl. To "
            f"convert it afterwards, run: {command}"
        )
    return path.with_suffix(".records" + path.suffix)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file against other sweeps that would write to it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}.") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(
                f"another sweep is writing {path}: wait for it, or give another name."
            ) from None
        yield


class _Ledger:
    """The two files of a sweep, and what they say is done."""

    def __init__(self, table: Path, records: Path) -> None:
        self._table = table
        self._records = records
        self.measured: dict[str, dict[str, Any]] = {}
        self.failed: dict[str, dict[str, Any]] = {}
        self.lost: dict[str, int] = {}
        self.references: dict[str, float] = {}
        self._recorded: set[Any] = set()
        for record in files.read_json_lines(records, allow_torn_end=True):
            self._note(record)
        self._mend_table()

    def _note(self, record: Mapping[str, Any]) -> None:
        try:
            kind, case = record["kind"], str(record["case"])
            if kind == "case" and record["status"] == "measured":
                self.measured[case] = dict(record["row"])
                self._recorded.add(record["row"].get("x_run"))
                self.failed.pop(case, None)
            elif kind == "case":
                self.failed[case] = dict(record)
            elif kind == "lost":
                self.lost[case] = self.lost.get(case, 0) + 1
        except (KeyError, TypeError, AttributeError):
            raise UsageError(
                f"{self._records} must hold the records of a sweep, and does not: give another "
                "name for the table."
            ) from None

    def _mend_table(self) -> None:
        """Add the rows that a kill kept out of the table."""
        present = set()
        if self._table.exists():
            for row in files.read_json_lines(self._table, allow_torn_end=True):
                if isinstance(row, Mapping):
                    present.add(row.get("x_run"))
        strange = present - self._recorded - {None}
        if strange:
            raise UsageError(
                f"every row of {self._table} that a sweep measured must have its record in "
                f"{self._records}, and {len(strange)} have none there: put that file back beside "
                "the table, or give another name for the table."
            )
        for row in self.measured.values():
            if row.get("x_run") not in present:
                files.append_json_line(self._table, row)

    def add(self, record: Mapping[str, Any]) -> bool:
        """Write a record, and its row if it has one; False if the case was measured before."""
        if record["kind"] == "case" and record["case"] in self.measured:
            return False
        files.append_json_line(self._records, record)
        self._note(record)
        if record["kind"] == "case" and record["status"] == "measured":
            files.append_json_line(self._table, record["row"])
        return True


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

    Returns
    -------
    SweepResult

    Raises
    ------
    UsageError
        If ``out`` is no JSON Lines file, is no table of a sweep, has rows without their records,
        or another sweep writes to it.
    MeasurementError
        If no case can be measured at all: a package is missing, or an engine has no such name.
    """
    table, records = Path(out), records_path(out)
    if gpus is not None and gpus < 1:
        raise UsageError(f"the number of GPUs must be 1 or more, not {gpus}")
    with _locked(records):
        ledger = _Ledger(table, records)
        sweep = _Sweep(
            plan, ledger, executor, gpus, retry_failed, on_progress, list(command_line or sys.argv)
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
        return sweep.result(table, records, interrupted.is_set())


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


class _Sweep:
    """What is out with which worker, and what to do when one reports."""

    def __init__(
        self,
        plan: Plan,
        ledger: _Ledger,
        executor: Executor,
        gpus: int | None,
        retry_failed: bool,
        on_progress: Callable[[SweepProgress], None] | None,
        command_line: Sequence[str],
    ) -> None:
        self._plan = plan
        self._ledger = ledger
        self._executor = executor
        self._gpus = gpus
        self._on_progress = on_progress
        self._command_line = command_line
        self._began = time.monotonic()
        self._energy_j = 0.0
        self._sources: set[str] = set()
        self._finished_now = 0
        self._numbers = itertools.count(1)
        self._layouts = {g[0].layout_key: layout_of(g) for g in plan.groups()}
        self._planned = {case.key: case for case in plan.cases}
        self._retry = {
            key for key, record in ledger.failed.items() if retry_failed or _lacked_gpus(record)
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
        failed: dict[str, str] = {}
        for case in self._plan.cases:
            if case.key in ledger.failed:
                name = case.describe()
                name += f" [{case.key}]" if name in failed else ""  # another engine, or options
                failed[name] = str(ledger.failed[case.key].get("message", ""))
        return SweepResult(
            cases=len(self._plan.cases),
            measured=len(rows),
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
        if not self._ledger.add(record):
            return
        if record["kind"] == "case":
            self._finished_now += 1
            self._retry.discard(record["case"])
        measured = record.get("measured")
        if measured:
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
