"""What this machine can measure, and what to do about each thing that is missing."""

from __future__ import annotations

import itertools
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from energylens import __version__
from energylens.errors import EnergyLensError, UsageError
from energylens.instrument.engine import Engine, Layout
from energylens.instrument.meter import ChannelKind, Meter, MeterError
from energylens.instrument.meters import EstimatedMeter, NvmlMeter, NvmlPowerMeter, ZeusMeter
from energylens.instrument.meters.trail import Trail

#: Packages that an engine or an executor needs, with the extra that brings them.
_PACKAGES = {
    "vllm": ("engine vllm", "pip install vllm, in an environment of its own"),
    "torch": ("engine transformers", "pip install 'energylens[transformers]'"),
    "transformers": ("engine transformers", "pip install 'energylens[transformers]'"),
    "ray": ("executor ray", "pip install 'energylens[ray]'"),
    "submitit": ("executor slurm", "pip install 'energylens[slurm]'"),
}
_RAPL = Path("/sys/class/powercap")
_ENOUGH_DISK_BYTES = 20e9


class Status(StrEnum):
    """How a thing stands."""

    OK = "ok"
    WARNING = "warning"  # it works, and something speaks against the numbers
    MISSING = "missing"  # it is not here; nothing is wrong unless it is wanted


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing looked at. ``advice`` says what to do, and is empty where nothing is."""

    name: str
    status: Status
    detail: str
    advice: str = ""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that was looked at, and the meter that ``--meter auto`` would take."""

    findings: tuple[Finding, ...]
    meter: str | None

    @property
    def can_measure(self) -> bool:
        """Whether there is a meter whose rows may carry an accuracy claim."""
        return self.meter is not None


def examine(folder: str | Path | None = None) -> Report:
    """Look at the machine.

    Parameters
    ----------
    folder : str or Path, optional
        Where results would be written; the current one if not given.

    Returns
    -------
    Report
        A thing that is missing is a finding, never an error.
    """
    findings = [
        Finding(
            name="energylens",
            status=Status.OK,
            detail=f"{__version__} on Python {platform.python_version()}, {platform.platform()}, "
            f"{os.cpu_count()} CPUs",
        )
    ]
    meter = None
    for name, make in (("nvml", NvmlMeter), ("nvml-power", NvmlPowerMeter), ("zeus", ZeusMeter)):
        found, works = _meter(name, make)
        findings += found
        if works and meter is None:
            meter = name
    findings += _rapl()
    findings += _meter("estimated", EstimatedMeter)[0]
    findings += _packages()
    findings.append(_disk(Path(folder or ".")))
    return Report(findings=tuple(findings), meter=meter)


def _meter(name: str, make: Callable[[], Meter]) -> tuple[list[Finding], bool]:
    title = f"meter {name}"
    try:
        meter = make()
    except EnergyLensError as error:
        detail, _, advice = str(error).partition(". ")
        return [Finding(name=title, status=Status.MISSING, detail=detail, advice=advice)], False
    try:
        return list(_describe(title, meter)), True
    except MeterError as error:
        return [
            Finding(
                name=title,
                status=Status.MISSING,
                detail=str(error),
                advice="Use another meter.",
            )
        ], False
    finally:
        meter.close()


def _describe(title: str, meter: Meter) -> Iterator[Finding]:
    period = meter.period_s
    moves = f"moves every {period * 1e3:.0f} ms" if period else "continuous"
    step = _resolution_j(meter)
    yield Finding(
        name=title,
        status=Status.OK,
        detail=f"{len(meter.channels)} channels, {moves}"
        + (f", in steps of {step:.3g} J" if step else "")
        + f"; rows are {meter.source}",
        advice="" if period < 0.5 else "Windows will be long: 20 periods each.",
    )
    for key, value in meter.provenance().items():
        yield Finding(name=f"{title}: {key}", status=Status.OK, detail=value)
    for state in meter.states():
        parts = [
            f"{state.temperature_c:g} C" if state.temperature_c is not None else "",
            f"{state.sm_clock_hz / 1e6:.0f} MHz" if state.sm_clock_hz else "",
            f"{state.power_w:.0f} W" if state.power_w else "",
            f"throttled by {', '.join(state.throttle_reasons)}" if state.throttle_reasons else "",
        ]
        hot = bool(state.throttle_reasons)
        yield Finding(
            name=f"{title}: {state.channel}",
            status=Status.WARNING if hot else Status.OK,
            detail=", ".join(filter(None, parts)) or "says nothing of itself",
            advice="Find out why it is slowed down while idle (cooling, power cap)." if hot else "",
        )
    processes = getattr(meter, "running_processes", lambda: 0)()
    if processes:
        yield Finding(
            name=f"{title}: processes",
            status=Status.WARNING,
            detail=f"{processes} compute processes run on these GPUs",
            advice="End them: their joules cannot be told from those of a case.",
        )


def _resolution_j(meter: Meter) -> float | None:
    """Smallest step seen between readings of the first channel in a few periods."""
    values = []
    for _ in range(12):
        values.append(meter.read().energy_j[0])
        meter.wait(min(meter.period_s, 0.1) / 2)
    steps = [b - a for a, b in itertools.pairwise(values) if b > a]
    return min(steps) if steps and meter.period_s else None


def _rapl() -> list[Finding]:
    zones = sorted(_RAPL.glob("intel-rapl:*/energy_uj")) if _RAPL.exists() else []
    if not zones:
        return [
            Finding(
                name="RAPL",
                status=Status.MISSING,
                detail="no CPU energy counters in /sys/class/powercap",
                advice="In a virtual machine or container there are none; nothing to be done.",
            )
        ]
    closed = [zone for zone in zones if not os.access(zone, os.R_OK)]
    return [
        Finding(
            name="RAPL",
            status=Status.WARNING if closed else Status.OK,
            detail=f"{len(zones)} zones, {len(zones) - len(closed)} of them readable",
            advice="Read it as root, or run zeusd: chmod would be undone at the next start."
            if closed
            else "",
        )
    ]


def _packages() -> Iterator[Finding]:
    for package, (purpose, advice) in _PACKAGES.items():
        found = None
        for name in (package, f"{package}-cpu"):
            try:
                found = found or f"{name} {version(name)}"
            except PackageNotFoundError:
                continue
        yield Finding(
            name=purpose,
            status=Status.OK if found else Status.MISSING,
            detail=found or f"{package} is not installed",
            advice="" if found else advice,
        )


def _disk(folder: Path) -> Finding:
    name = f"disk at {folder}"
    try:
        free = shutil.disk_usage(folder).free
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return Finding(
            name=name,
            status=Status.WARNING,
            detail=f"cannot be written: {error.strerror}",
            advice="Name a folder that can be written (--folder).",
        )
    little = free < _ENOUGH_DISK_BYTES
    return Finding(
        name=name,
        status=Status.WARNING if little else Status.OK,
        detail=f"{free / 1e9:.0f} GB free",
        advice="Checkpoints may not fit; --weights dummy needs none." if little else "",
    )


# ------------------------------------------------------------------------------------------ idle


@dataclass(frozen=True, kw_only=True)
class Idle:
    """What a device draws at rest, in watts for each GPU (or for all, where there is none).

    ``loaded_w`` is with an LLM in memory and nothing to do: the floor under every request that
    does not come from a full queue. ``now_w`` is before anything was loaded by us; a simulated
    node has none.
    """

    meter: str
    source: str
    devices: int
    seconds: float
    now_w: tuple[float, ...]
    loaded_w: tuple[float, ...] = ()
    llm: str = ""
    engine: str = ""
    engine_version: str = ""

    @property
    def loaded_idle_w(self) -> float | None:
        """Mean over the GPUs that hold the LLM: the column of the tidy table."""
        return sum(self.loaded_w) / len(self.loaded_w) if self.loaded_w else None

    def sentences(self) -> tuple[str, ...]:
        """Say it."""
        per = ", ".join(f"{watts:.1f}" for watts in self.now_w)
        said = []
        if self.now_w:
            said.append(
                f"{self.devices} device{'s' * (self.devices != 1)} at rest for {self.seconds:g} s "
                f"drew {per} W ({self.meter}, {self.source})."
            )
        if self.loaded_idle_w is not None:
            said.append(
                f"With {self.llm} loaded by {self.engine} {self.engine_version} and nothing to do: "
                f"{self.loaded_idle_w:.1f} W each ({self.source}; column loaded_idle_w)."
            )
        return tuple(said)


def measure_idle(
    meter: Meter | None = None,
    *,
    engine: Engine | None = None,
    layout: Layout | None = None,
    seconds: float = 10.0,
) -> Idle:
    """Measure what GPUs draw at rest, and with an LLM loaded if an engine is given.

    Parameters
    ----------
    meter : Meter, optional
        What to read; an engine's own, where it has one.
    engine, layout : Engine, Layout, optional
        Started with this layout between two looks, and closed.
    seconds : float
        Length of each look.

    Raises
    ------
    MeterError
        If the meter fails, or something else works on the GPUs meanwhile.
    EngineError
        If the engine cannot start.
    """
    if not 0.1 <= seconds <= 3600:
        raise UsageError(f"a look at idle devices takes 0.1 to 3600 s, not {seconds:g}")
    own = None if engine is None else engine.own_meter()
    reader = own or meter
    if reader is None:
        raise UsageError("idle devices need a meter that is read")
    if engine is not None and own is None and not reader.real_time:
        raise MeterError(
            f"the meter {reader.name} keeps a time of its own, which does not go by while an "
            "engine loads: take one that reads this machine's devices."
        )
    devices = [i for i, c in enumerate(reader.channels) if c.kind is ChannelKind.GPU]
    active = devices or list(range(len(reader.channels)))
    # The meter of a simulated node knows no power before it is told what the node is.
    now = _watts(reader, active, seconds) if own is None else ()
    found = Idle(
        meter=reader.name,
        source=str(reader.source),
        devices=len(active),
        seconds=seconds,
        now_w=now,
    )
    if engine is None or layout is None:
        return found
    try:
        facts = engine.start(layout)
        reader.wait(1.0)  # clocks go down after a load
        used = active[: layout.gpus] if devices else active
        loaded = _watts(reader, used, seconds)
    finally:
        engine.close()
    return replace(
        found,
        loaded_w=loaded,
        llm=layout.llm.id,
        engine=engine.name,
        engine_version=facts.get("engine_version", ""),
    )


def _watts(meter: Meter, active: Sequence[int], seconds: float) -> tuple[float, ...]:
    with Trail(meter, active) as trail:
        begin = trail.moment()
        meter.wait(max(seconds, 20 * meter.period_s))
        end = trail.moment()
        joules = trail.energy_j(begin, end)
    return tuple(joules[i] / (end - begin) for i in active)
