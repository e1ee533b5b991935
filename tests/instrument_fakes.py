# ruff: noqa: ARG002, N802
"""An engine, a meter and an NVML library whose truth is known, for tests of the instrument."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from energylens import catalog
from energylens.instrument.engine import (
    Batch,
    Capabilities,
    EngineError,
    Layout,
    Load,
    Media,
    Phase,
    Progress,
    Reason,
    Repetition,
)
from energylens.instrument.meter import Channel, ChannelKind, DeviceState, Meter, Reading
from energylens.instrument.plan import Mode, Plan, PlannedCase, Procedure
from energylens.records import Case, Configuration, Source, Workload

# Prompts of these lengths make the fake engine misbehave.
CRASHES, HANGS, OUT_OF_MEMORY, RAISES, MISCOUNTS = 6661, 6662, 6663, 6664, 6665
CRASHES_ONCE = 6666

QUICK = Procedure(min_window_s=0.2, idle_s=0.5, cooldown_s=0.01, steady_window_s=0.5)


class VirtualMeter:
    """A clock that only :meth:`wait` moves, and counters that follow the power set."""

    name = "virtual"
    real_time = False

    def __init__(
        self, gpus: int = 1, period_s: float = 0.0, source: Source = Source.MEASURED
    ) -> None:
        self.channels = tuple(
            Channel(id=f"gpu{i}", kind=ChannelKind.GPU, index=i) for i in range(gpus)
        )
        self.period_s = period_s
        self.source = source
        self.power_w = [100.0] * gpus
        self._now_s = 0.0
        self._energy = [0.0] * gpus
        self.throttle: tuple[str, ...] = ()
        self.fault: Callable[[tuple[float, ...]], tuple[float, ...]] = lambda energy: energy

    def read(self) -> Reading:
        late = math.fmod(self._now_s, self.period_s) if self.period_s else 0.0
        energy = tuple(e - late * p for e, p in zip(self._energy, self.power_w, strict=True))
        return Reading(time_s=self._now_s - late, energy_j=self.fault(energy))

    def states(self) -> tuple[DeviceState, ...]:
        return tuple(
            DeviceState(
                channel=c.id,
                temperature_c=60.0,
                sm_clock_hz=1.5e9,
                throttle_reasons=self.throttle,
            )
            for c in self.channels
        )

    def provenance(self) -> Mapping[str, str]:
        return {"driver_version": "1.2.3"}

    def now_s(self) -> float:
        return self._now_s

    def wait(self, seconds: float) -> None:
        self._now_s += seconds
        for i, power in enumerate(self.power_w):
            self._energy[i] += power * seconds

    def close(self) -> None:
        return None


@dataclass
class FakeEngine:
    """Prefill takes 50 ms at 500 W, a decode step 10 ms at 300 W, on every GPU it has."""

    meter: VirtualMeter = field(default_factory=lambda: VirtualMeter(source=Source.SIMULATED))
    native_decode: bool = True
    splits: bool = False
    pause_s: float = 0.0  # of real time, in each repetition
    scatter: float = 0.0  # of the prefill power, every other repetition
    warm_repetitions: int = 0  # the first so many take double the time
    prefill_s: float = 0.05
    step_s: float = 0.01
    started: list[Layout] = field(default_factory=list)
    calls: list[tuple[Phase, int]] = field(default_factory=list)
    closed: int = 0
    name: str = "fake"
    used: int = 1

    @property
    def capabilities(self) -> Capabilities:
        phases = {Phase.PREFILL, Phase.REQUEST} | ({Phase.DECODE} if self.native_decode else set())
        return Capabilities(
            phases=frozenset(phases),
            splits_requests=self.splits,
            steady=True,
            source=self.meter.source,
        )

    def start(self, layout: Layout) -> Mapping[str, str]:
        self.started.append(layout)
        self.used = layout.gpus
        if layout.options.get("start") == "fails":
            raise EngineError("this layout cannot start.", reason=Reason.OUT_OF_MEMORY)
        return {"engine_version": "1.0", "weights": "fake"}

    def prepare(self, batch: Batch, phases: Sequence[Phase]) -> None:
        self._misbehave(batch.input_tokens)

    def _misbehave(self, prompt: int) -> None:
        once = Path(os.environ.get("FAKE_ENGINE_FOLDER", "/nonexistent")) / "crashed"
        if prompt == CRASHES or (prompt == CRASHES_ONCE and not once.exists()):
            if prompt == CRASHES_ONCE:
                once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if prompt == HANGS:
            once.with_name("hung").touch()
            time.sleep(3600)
        if prompt == OUT_OF_MEMORY:
            raise EngineError("no memory left.", reason=Reason.OUT_OF_MEMORY, usable=True)
        if prompt == RAISES:
            raise ValueError("something that no engine should let out")

    def _work(self, power_w: float, seconds: float) -> None:
        idle = list(self.meter.power_w)
        for i in range(self.used):
            self.meter.power_w[i] = power_w
        self.meter.wait(seconds)
        self.meter.power_w[:] = idle

    def run_phase(
        self,
        phase: Phase,
        batch: Batch,
        repetition: int,
        at_decode: Callable[[], None] | None = None,
    ) -> Repetition:
        self.calls.append((phase, repetition))
        if self.pause_s:
            time.sleep(self.pause_s)
        slow = 2.0 if len(self.calls) <= self.warm_repetitions else 1.0
        uneven = 1 + self.scatter * (-1) ** (len(self.calls) // 4)
        began = self.meter.now_s()
        if phase in (Phase.PREFILL, Phase.REQUEST):
            self._work(500.0 * uneven, self.prefill_s * slow)
        middle = self.meter.now_s()
        splits = phase is Phase.REQUEST and self.splits
        if splits and at_decode is not None:
            at_decode()
        if phase in (Phase.DECODE, Phase.REQUEST):
            self._work(300.0, (batch.output_tokens - 1) * self.step_s)
        output = {
            Phase.PREFILL: 1,
            Phase.DECODE: batch.output_tokens - 1,
            Phase.REQUEST: batch.output_tokens,
        }[phase]
        if batch.input_tokens == MISCOUNTS:
            output += 1
        return Repetition(
            requests=batch.requests,
            input_tokens=0 if phase is Phase.DECODE else batch.requests * batch.input_tokens,
            output_tokens=batch.requests * output,
            prefill_s=middle - began if splits else None,
            decode_s=self.meter.now_s() - middle if splits else None,
        )

    def steady(self, load: Load) -> Iterator[Progress]:
        running = load.concurrency or 4
        tokens = 0
        while True:
            yield Progress(
                completed_requests=tokens // load.output_tokens,
                input_tokens=0,
                output_tokens=tokens,
                running_requests=running,
            )
            self._work(400.0, self.step_s)
            tokens += running

    def own_meter(self) -> Meter | None:
        return self.meter

    def close(self) -> None:
        self.closed += 1


def make_engine(name: str) -> FakeEngine:
    """Engine factory for other processes; the environment says how slow it is."""
    return FakeEngine(
        meter=VirtualMeter(gpus=4, source=Source.SIMULATED),
        pause_s=float(os.environ.get("FAKE_ENGINE_PAUSE_S", "0")),
    )


def no_meter() -> Meter:
    raise AssertionError("the engine has its own meter")


def planned(
    batch_size: int = 4,
    input_tokens: int = 100,
    output_tokens: int = 11,
    *,
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
    llm: str = "Qwen/Qwen2.5-0.5B",
    gpu: str = "H100-SXM",
    mode: Mode = Mode.PHASES,
    **rest: Any,
) -> PlannedCase:
    """A case for the fake engine."""
    media = rest.pop("media", Media())
    return PlannedCase(
        case=Case(
            llm=catalog.llm(llm),
            gpu=catalog.gpu(gpu),
            precision=catalog.precision("bf16"),
            workload=Workload(input_tokens=input_tokens, output_tokens=output_tokens),
            configuration=Configuration(
                tensor_parallel=tensor_parallel,
                pipeline_parallel=pipeline_parallel,
                batch_size=batch_size,
            ),
            **{k: rest.pop(k) for k in ("boundary", "node_gpus") if k in rest},
        ),
        engine="fake",
        mode=mode,
        media=media,
        **rest,
    )


def plan_of(*cases: PlannedCase, **changes: Any) -> Plan:
    """A plan with windows short enough for tests."""
    from dataclasses import replace

    return Plan(cases=cases, procedure=replace(QUICK, **changes))


# ------------------------------------------------------------------------------------------ NVML


class NVMLError(Exception):
    """As in pynvml: the number says what happened."""

    def __init__(self, value: int) -> None:
        super().__init__(f"NVML error {value}")
        self.value = value


class FakeNvml:
    """A pynvml module over GPUs that draw a constant power.

    ``energy`` can be replaced to make the counter lie; ``calls`` counts its readings.
    """

    NVMLError = NVMLError

    def __init__(
        self, gpus: int = 1, *, period_s: float = 0.004, power_w: float = 300.0, mig: bool = False
    ) -> None:
        self.gpus = gpus
        self.period_s = period_s
        self.power_w = power_w
        self.mig = mig
        self.limits_w = [700.0] * gpus  # as enforced; the default is 700 W
        self.init_error: int | None = None
        self.lock_error: int | None = None
        self.locked_mhz: dict[int, int] = {}
        self.locks: list[tuple[int, int | None]] = []
        self.calls = 0
        self.begin_s: float | None = None  # of the counter's time: the first reading, if None
        self.energy: Callable[[float], float] = self.honest_mj

    def honest_mj(self, elapsed_s: float) -> float:
        steps = elapsed_s // self.period_s if self.period_s else elapsed_s
        return 5e6 + 1e3 * self.power_w * steps * (self.period_s or 1.0)

    def nvmlInit(self) -> None:
        if self.init_error is not None:
            raise NVMLError(self.init_error)

    def nvmlShutdown(self) -> None:
        return None

    def nvmlDeviceGetCount(self) -> int:
        return self.gpus

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetMigMode(self, handle: int) -> list[int]:
        return [int(self.mig), int(self.mig)]

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: int) -> int:
        return int(1e3 * self.limits_w[handle]) if handle < len(self.limits_w) else 700_000

    def nvmlDeviceGetPowerManagementDefaultLimit(self, handle: int) -> int:
        return 700_000

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return f"GPU-{handle}{handle}{handle}{handle}-secret"

    def nvmlDeviceGetName(self, handle: int) -> str:
        return "NVIDIA H100 80GB HBM3"

    def nvmlSystemGetDriverVersion(self) -> str:
        return "570.1"

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:
        return 55

    def nvmlDeviceSetGpuLockedClocks(self, handle: int, low: int, high: int) -> None:
        assert low == high
        if self.lock_error is not None and handle == 1:
            raise NVMLError(self.lock_error)
        self.locked_mhz[handle] = high
        self.locks.append((handle, high))

    def nvmlDeviceResetGpuLockedClocks(self, handle: int) -> None:
        self.locked_mhz.pop(handle, None)
        self.locks.append((handle, None))

    def nvmlDeviceGetClockInfo(self, handle: int, kind: int) -> int:
        return 1980

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        return int(self.power_w * 1e3)

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: int) -> int:
        return 0x04 | 0x40

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> float:
        self.calls += 1
        if self.begin_s is None:
            self.begin_s = time.monotonic()
        return self.energy(time.monotonic() - self.begin_s)


class RealTimeMeter(VirtualMeter):
    """Two GPUs at 200 W on this machine's clock."""

    real_time = True

    def __init__(self) -> None:
        super().__init__(gpus=2)

    def now_s(self) -> float:
        return time.monotonic()

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def read(self) -> Reading:
        now = time.monotonic()
        return Reading(time_s=now, energy_j=(200.0 * now, 200.0 * now))


def open_fake_meter() -> Meter:
    return RealTimeMeter()


class RealTimeEngine(FakeEngine):
    """An engine whose joules are read by a meter."""

    def own_meter(self) -> Meter | None:
        return None

    def _work(self, power_w: float, seconds: float) -> None:
        time.sleep(seconds / 4)
