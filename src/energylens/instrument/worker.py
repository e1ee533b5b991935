"""The process that holds an engine and a meter, and measures one case after another."""

from __future__ import annotations

import math
import os
import platform
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from energylens import __version__, catalog
from energylens.errors import EnergyLensError, InputError, MissingExtraError
from energylens.instrument.engine import Engine, EngineError, Layout, Reason
from energylens.instrument.executor import Place
from energylens.instrument.meter import ChannelKind, Meter, MeterError
from energylens.instrument.meters.combined import CombinedMeter
from energylens.instrument.meters.remote import HttpMeter
from energylens.instrument.meters.trail import Trail
from energylens.instrument.plan import PlannedCase, Procedure, Window
from energylens.instrument.rows import row_of
from energylens.instrument.windows import (
    Bench,
    StoppedError,
    active_channels,
    cool_down,
    measure_case,
    measure_idle,
)
from energylens.records import Source
from energylens.words import signed

#: How often a case is measured anew because its server was busy, and the longest wait before.
BUSY_TRIES = 3
LONGEST_BACK_OFF_S = 60.0

EngineFactory = Callable[[str], Engine]
MeterFactory = Callable[[], Meter]


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
            warning = f"the reference case had drifted by {signed(drift)}"
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
        self._locked_mhz: float | None = None
        self.usable = True

    def open(self, first: PlannedCase) -> EnergyLensError | None:
        """Start engine and meter; return what prevented it."""
        try:
            engine = self._engine = self._worker.engine_factory(first.engine)
            # A meter that cannot be read should be found out before minutes of loading.
            own = engine.own_meter()
            meter = self._meter = own if own is not None else self._open_meter()
            if own is None and not meter.real_time:
                raise MeterError(
                    f"the meter {meter.name} keeps a time of its own, which does not go by while "
                    f"{engine.name} works: take one that reads this machine's devices."
                )
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
        """Measure a case and return its record; None if asked to stop.

        A server that is busy is left alone for a while, and the case measured anew from its
        warm-up: what was taken meanwhile would hold the waiting.
        """
        for attempt in range(BUSY_TRIES):
            record, busy_s = self._measure_once(planned, quick)
            if busy_s is None or attempt == BUSY_TRIES - 1:
                break
            until = time.monotonic() + min(busy_s * 2**attempt, LONGEST_BACK_OFF_S)
            while time.monotonic() < until:
                if self._place.stopping():
                    return None
                time.sleep(min(0.1, max(0.0, until - time.monotonic())))
        return record

    def _measure_once(
        self, planned: PlannedCase, quick: bool
    ) -> tuple[dict[str, Any] | None, float | None]:
        """Return the record, and how long to wait where a server was busy."""
        assert self._engine is not None
        assert self._meter is not None
        try:
            self._lock(planned.case.configuration.clock_mhz)
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
            return None, None
        except EnergyLensError as error:
            self.usable = getattr(error, "usable", not isinstance(error, EngineError))
            return self.failed(planned, error), getattr(error, "busy_s", None)
        except Exception as error:  # as in open
            self.usable = False
            return self.failed(planned, _crash(error)), None
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
        return record, None

    def _lock(self, clock_mhz: float | None) -> None:
        """Lock the core clock of the deployment's GPUs, or none where the case says none."""
        if clock_mhz == self._locked_mhz:
            return
        lock = getattr(self._meter, "lock_clocks", None)
        if lock is None:
            assert self._meter is not None
            raise EngineError(
                f"the meter {self._meter.name} cannot lock clocks: measure with nvml on the GPUs' "
                "own machine, or leave clock_mhz out of the plan.",
                reason=Reason.UNSUPPORTED,
                usable=True,
            )
        self._locked_mhz = math.nan  # nobody knows, should it fail half-way
        lock(self._active, clock_mhz)
        self._locked_mhz = clock_mhz

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
        try:
            if self._meter is not None:
                self._lock(None)
        except Exception as error:
            self._facts["close_error"] = str(error)
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
