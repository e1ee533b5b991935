"""How one case becomes numbers: warm-up, windows, and what they say of prefill and decode.

The protocol is drawn as a timeline in ``docs/measurement.md``. Nothing here writes a file.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from energylens.instrument.engine import (
    Batch,
    Engine,
    EngineError,
    Phase,
    Progress,
    Reason,
    Repetition,
    RequestTiming,
)
from energylens.instrument.executor import Place
from energylens.instrument.meter import Channel, ChannelKind, DeviceState, Meter, MeterError
from energylens.instrument.meters.trail import Trail
from energylens.instrument.plan import WINDOW_ARRIVALS, Mode, PlannedCase, Procedure, Window
from energylens.words import percent, signed

#: Parts that miss their whole by more than this are not given as parts (the table refuses them).
PARTS_TOLERANCE_RATIO = 0.05
#: Requests that an open loop must have finished before its windows begin.
SETTLED_REQUESTS = 5
#: Throttling that makes a window say less about the LLM than about the room.
HARD_THROTTLES = frozenset(
    {"hardware_slowdown", "software_thermal", "hardware_thermal", "power_brake"}
)


class StoppedError(Exception):
    """Somebody asked to stop, and the window is finished. Never leaves the instrument."""


@dataclass(kw_only=True)
class Bench:
    """An engine at work with a meter running: what every phase needs."""

    engine: Engine
    meter: Meter
    trail: Trail
    procedure: Procedure
    active: Sequence[int]  # places of the channels whose sum is the deployment's energy
    stopping: Callable[[], bool]
    repetition: Iterator[int] = field(default_factory=itertools.count)
    states: list[DeviceState] = field(default_factory=list)

    @property
    def window_s(self) -> float:
        """Shortest window that this meter can tell anything about."""
        return self.procedure.window_s(self.meter)

    def look_at_devices(self) -> None:
        """Note clocks, temperatures and throttle flags."""
        self.states += self.meter.states()

    def check_stop(self) -> None:
        """Raise :class:`StoppedError` if somebody asked to stop."""
        if self.stopping():
            raise StoppedError


def active_channels(channels: Sequence[Channel], place: Place, gpus: int) -> tuple[int, ...]:
    """Places of the channels that a deployment's joules are the sum of.

    The GPUs of the deployment; on a meter that knows no GPU, all of its channels.

    Raises
    ------
    MeterError
        If the meter sees fewer GPUs than the deployment has.
    """
    devices = [i for i, channel in enumerate(channels) if channel.kind is ChannelKind.GPU]
    if not devices:
        return tuple(range(len(channels)))
    if place.elsewhere:
        here = [i for i in devices if channels[i].id.startswith("node0-")]
        there = [i for i in devices if i not in here]
        if place.gpus:
            here = [i for i in here if channels[i].index in place.gpus]
        chosen = here + there
    elif place.gpus:
        chosen = [i for i in devices if channels[i].index in place.gpus]
    else:
        chosen = devices
    if len(chosen) < gpus:
        raise MeterError(
            f"the meter must see the {gpus} GPUs of the case, but sees {len(chosen)} of them."
        )
    return tuple(chosen[:gpus])


# -------------------------------------------------------------------------------------- windows


@dataclass(frozen=True, kw_only=True)
class PhaseResult:
    """Windows of one phase."""

    phase: str
    windows: tuple[Window, ...]
    warm: bool  # whether two halves of the warm-up agreed
    timings: tuple[RequestTiming, ...] = ()
    vision_tokens: int = 0  # per request

    def joules(self, places: Sequence[int]) -> list[float]:
        """Joules per request of each window, summed over the channels at ``places``."""
        return [math.fsum(w.energy_j[i] for i in places) / w.requests for w in self.windows]

    def power_w(self, places: Sequence[int]) -> float:
        """Mean power of the channels at ``places``."""
        joules = math.fsum(w.energy_j[i] for w in self.windows for i in places)
        return joules / math.fsum(w.duration_s for w in self.windows)

    @property
    def seconds_per_repetition(self) -> float:
        """Mean duration of one repetition."""
        return sum(w.duration_s for w in self.windows) / sum(w.repetitions for w in self.windows)


def spread_ratio(values: Sequence[float]) -> float:
    """Sample standard deviation over the mean of two or more values."""
    return statistics.stdev(values) / statistics.fmean(values)


@dataclass(kw_only=True)
class _Chunk:
    """Repetitions since the last edge."""

    begin_s: float
    repetitions: int = 0
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    vision_tokens: int = 0
    decode_spans: list[tuple[float, float]] = field(default_factory=list)
    parts_s: list[tuple[float, float]] = field(default_factory=list)  # prefill, decode
    timings: list[RequestTiming] = field(default_factory=list)

    def add(self, done: Repetition, decode_span: tuple[float, float] | None) -> None:
        self.repetitions += 1
        self.requests += done.requests
        self.input_tokens += done.input_tokens
        self.output_tokens += done.output_tokens
        self.vision_tokens += done.vision_tokens
        self.timings += done.timings
        if decode_span is not None:
            self.decode_spans.append(decode_span)
        if done.prefill_s is not None and done.decode_s is not None:
            self.parts_s.append((done.prefill_s, done.decode_s))


def _run_chunk(
    bench: Bench, phase: Phase, batch: Batch, begin_s: float, length_s: float
) -> tuple[_Chunk, float]:
    """Repeat a phase until ``length_s`` have passed; return what was done and the moment."""
    chunk = _Chunk(begin_s=begin_s)
    boundaries: list[float] = []

    def at_decode() -> None:
        boundaries.append(bench.trail.moment())

    while True:
        boundaries.clear()
        done = bench.engine.run_phase(
            phase, batch, next(bench.repetition), at_decode if phase is Phase.REQUEST else None
        )
        _check_counts(phase, batch, done)
        now = bench.trail.moment()
        chunk.add(done, (boundaries[0], now) if boundaries else None)
        if now - begin_s >= length_s:
            return chunk, now


def _check_counts(phase: Phase, batch: Batch, done: Repetition) -> None:
    output = {
        Phase.PREFILL: 1,
        Phase.DECODE: batch.output_tokens - 1,
        Phase.REQUEST: batch.output_tokens,
        Phase.ENCODE: 0,
    }[phase]
    asked = {"requests": batch.requests, "output_tokens": batch.requests * output}
    if phase in (Phase.PREFILL, Phase.REQUEST):
        asked["input_tokens"] = batch.requests * batch.input_tokens
    for name, number in asked.items():
        if getattr(done, name) != number:
            raise EngineError(
                f"a repetition of {phase} must have {number} {name}, but the engine counted "
                f"{getattr(done, name)}: its row would be about another case.",
                reason=Reason.WRONG_COUNTS,
                usable=True,
            )


def measure_phase(bench: Bench, phase: Phase, batch: Batch) -> PhaseResult:
    """Warm up until two halves agree, then take windows until their spread is small.

    Raises
    ------
    EngineError, MeterError
        As the engine and the meter raise them.
    """
    procedure, began = bench.procedure, bench.meter.now_s()
    edge = bench.trail.moment()
    halves: list[tuple[float, float]] = []
    warm = late = False
    while not (warm or late or len(halves) >= procedure.max_warmup_halves):
        chunk, now = _run_chunk(bench, phase, batch, edge, bench.window_s / 2)
        joules = math.fsum(bench.trail.energy_j(edge, now)[i] for i in bench.active)
        halves.append(((now - edge) / chunk.repetitions, joules / chunk.repetitions))
        edge = now
        warm = _agree(halves, procedure)
        late = now - began > procedure.phase_limit_s
        bench.check_stop()

    windows: list[Window] = []
    timings: list[RequestTiming] = []
    vision_tokens = 0
    while not _enough(windows, bench.active, procedure, late):
        bench.look_at_devices()
        chunk, now = _run_chunk(bench, phase, batch, bench.trail.moment(), bench.window_s)
        windows.append(_window(bench, phase, chunk, now))
        timings += chunk.timings
        vision_tokens = chunk.vision_tokens // chunk.requests
        late = now - began > procedure.phase_limit_s
        bench.check_stop()
    return PhaseResult(
        phase=phase,
        windows=tuple(windows),
        warm=warm,
        timings=tuple(timings),
        vision_tokens=vision_tokens,
    )


def _agree(halves: Sequence[tuple[float, ...]], procedure: Procedure) -> bool:
    """Whether the last two halves of a warm-up agree in all that was noted of them."""
    return len(halves) > 1 and all(
        abs(a / b - 1) <= procedure.warmup_agreement_ratio
        for a, b in zip(halves[-2], halves[-1], strict=True)
    )


def _enough(
    windows: Sequence[Window], places: Sequence[int], procedure: Procedure, late: bool
) -> bool:
    if len(windows) < 2:
        return False
    if len(windows) >= procedure.max_windows or late:
        return True
    joules = [math.fsum(w.energy_j[i] for i in places) / w.requests for w in windows]
    return (
        len(windows) >= procedure.min_windows
        and spread_ratio(joules) < procedure.spread_limit_ratio
    )


def _window(bench: Bench, phase: Phase, chunk: _Chunk, end_s: float) -> Window:
    decode_j = None
    if len(chunk.decode_spans) == chunk.repetitions:
        shortest = min(end - begin for begin, end in chunk.decode_spans)
        # Each part has two edges of its own: only long ones are read directly.
        if shortest > bench.procedure.min_periods * bench.meter.period_s:
            spans = chunk.decode_spans
            parts = [bench.trail.energy_inside_j(begin, end) for begin, end in spans]
            decode_j = tuple(math.fsum(column) for column in zip(*parts, strict=True))
    apart = len(chunk.parts_s) == chunk.repetitions
    return Window(
        phase=phase,
        begin_s=chunk.begin_s,
        end_s=end_s,
        repetitions=chunk.repetitions,
        requests=chunk.requests,
        input_tokens=chunk.input_tokens,
        output_tokens=chunk.output_tokens,
        energy_j=bench.trail.energy_j(chunk.begin_s, end_s),
        prefill_s=math.fsum(prefill for prefill, _ in chunk.parts_s) if apart else None,
        decode_s=math.fsum(decode for _, decode in chunk.parts_s) if apart else None,
        decode_energy_j=decode_j,
    )


def measure_steady(bench: Bench, planned: PlannedCase) -> PhaseResult:
    """Serve a load until its rate settles, then take windows of it.

    A window's requests are its output tokens over the tokens of one request, so that requests
    begun before it or ended after it count with their share.

    Raises
    ------
    EngineError, MeterError
        As the engine and the meter raise them.
    """
    if not bench.engine.capabilities.steady:
        raise EngineError(
            f"the engine {bench.engine.name} cannot keep a batch full: use mode phases.",
            reason=Reason.UNSUPPORTED,
            usable=True,
        )
    procedure, load = bench.procedure, planned.load()
    length_s = max(procedure.steady_window_s, bench.window_s)
    rate = load.request_rate_per_s
    if rate is not None:
        length_s = max(length_s, WINDOW_ARRIVALS / rate)
    windows: list[Window] = []
    timings: list[RequestTiming] = []
    halves: list[tuple[float, ...]] = []
    settled = warm = False
    with closing(_stream(bench.engine, planned)) as stream:
        progress = first = next(stream)
        edge, began = bench.trail.moment(), bench.meter.now_s()
        running = _Running(edge)
        for progress in stream:
            now = bench.meter.now_s()
            running.add(now, progress.running_requests)
            if settled:
                timings += progress.finished
            if now - edge < (length_s if settled else length_s / 2):
                continue
            now = bench.trail.moment()
            output = progress.output_tokens - first.output_tokens
            if output <= 0 and rate is not None and now - began <= procedure.phase_limit_s:
                bench.check_stop()
                continue  # nobody may have come for a while
            if output <= 0:
                raise EngineError(
                    f"a steady load must produce tokens, but gave none in {now - edge:.1f} s.",
                    reason=Reason.CRASHED,
                )
            late = now - began > procedure.phase_limit_s
            if settled:
                windows.append(
                    Window(
                        phase="steady",
                        begin_s=edge,
                        end_s=now,
                        repetitions=1,
                        requests=output / load.output_tokens,
                        input_tokens=progress.input_tokens - first.input_tokens,
                        output_tokens=output,
                        energy_j=bench.trail.energy_j(edge, now),
                        running_requests=running.mean(),
                    )
                )
            else:
                halves.append((output / (now - edge),))
                # Arrivals by chance never agree to a few percent: there it is enough to have seen
                # requests come and go.
                warm = (
                    _agree(halves, procedure)
                    if rate is None
                    else len(halves) > 1 and progress.completed_requests >= SETTLED_REQUESTS
                )
                settled = warm or late or len(halves) >= procedure.max_warmup_halves
            bench.check_stop()
            if _enough(windows, bench.active, procedure, late):
                break
            bench.look_at_devices()
            first, edge = progress, bench.trail.moment()
            running = _Running(edge)
    if len(windows) < 2:
        raise EngineError(
            "a steady load must go on until it is stopped, but the engine ended it.",
            reason=Reason.CRASHED,
        )
    return PhaseResult(
        phase="steady",
        windows=tuple(windows),
        warm=warm,
        timings=tuple(timings),
        vision_tokens=progress.vision_tokens_per_request,
    )


def _stream(engine: Engine, planned: PlannedCase) -> Generator[Progress, None, None]:
    """The engine's progress as a generator: closing it closes the engine's own."""
    yield from engine.steady(planned.load())


class _Running:
    """Mean number of requests in flight, weighted with time."""

    def __init__(self, begin_s: float) -> None:
        self._begin_s = self._last_s = begin_s
        self._sum = 0.0

    def add(self, now_s: float, running: int) -> None:
        self._sum += running * (now_s - self._last_s)
        self._last_s = now_s

    def mean(self) -> float | None:
        span = self._last_s - self._begin_s
        return self._sum / span if span > 0 and self._sum > 0 else None


def measure_idle(bench: Bench) -> Window:
    """Joules of the devices at rest with the LLM loaded: the floor under every window."""
    bench.meter.wait(bench.procedure.cooldown_s)
    begin = bench.trail.moment()
    bench.meter.wait(max(bench.procedure.idle_s, bench.window_s))
    end = bench.trail.moment()
    return Window(
        phase="idle",
        begin_s=begin,
        end_s=end,
        repetitions=0,
        requests=0,
        input_tokens=0,
        output_tokens=0,
        energy_j=bench.trail.energy_j(begin, end),
    )


def cool_down(bench: Bench, longest_s: float = 120.0) -> None:
    """Let the devices rest, and get below the temperature that the procedure asks for."""
    bench.meter.wait(bench.procedure.cooldown_s)
    limit, began = bench.procedure.cool_below_c, bench.meter.now_s()
    while limit is not None and bench.meter.now_s() - began < longest_s:
        temperatures = [s.temperature_c for s in bench.meter.states() if s.temperature_c]
        if not temperatures or max(temperatures) < limit:
            return
        bench.meter.wait(1.0)


# ------------------------------------------------------------------------------------- one case


@dataclass(frozen=True, kw_only=True)
class Energies:
    """Joules per request over some channels.

    Attributes
    ----------
    whole_j, prefill_j, decode_j : float
        None for a part that is not known.
    decode_method : str
        How decode was found: ``windows`` (of its own), ``boundary`` (read where it begins),
        ``difference`` (whole less prefill), ``none``.
    closure_ratio : float or None
        (prefill + decode) / whole - 1, where all three were measured.
    power_w : float
        Mean power over the whole.
    """

    whole_j: float
    prefill_j: float | None
    decode_j: float | None
    decode_method: str
    closure_ratio: float | None
    power_w: float

    @property
    def parts_agree(self) -> bool:
        """Whether the parts may be given beside the whole."""
        return self.closure_ratio is None or abs(self.closure_ratio) <= PARTS_TOLERANCE_RATIO


def energies(phases: Mapping[str, PhaseResult], places: Sequence[int]) -> Energies:
    """Work out what the windows say of the channels at ``places``.

    Parameters
    ----------
    phases : mapping of str to PhaseResult
        Either ``steady`` alone, or the phases of a batch.
    places : sequence of int
        The deployment's channels, or all GPUs of the node.
    """
    whole = phases.get("steady") or phases.get(Phase.REQUEST)
    prefill, decode = phases.get(Phase.PREFILL), phases.get(Phase.DECODE)
    prefill_j = statistics.fmean(prefill.joules(places)) if prefill else None
    decode_j, method = _decode(whole, prefill, decode, places)
    if whole is not None:
        whole_j = statistics.fmean(whole.joules(places))
        both = None if prefill_j is None or decode_j is None else prefill_j + decode_j
        closure = None if both is None or method == "difference" else both / whole_j - 1
        power = whole.power_w(places)
    else:
        whole_j, closure = (prefill_j or 0.0) + (decode_j or 0.0), None
        seconds = joules = 0.0
        for part in filter(None, (prefill, decode)):
            seconds += part.seconds_per_repetition
            joules += part.seconds_per_repetition * part.power_w(places)
        power = joules / seconds
    return Energies(
        whole_j=whole_j,
        prefill_j=prefill_j,
        decode_j=decode_j,
        decode_method=method,
        closure_ratio=closure,
        power_w=power,
    )


def _decode(
    whole: PhaseResult | None,
    prefill: PhaseResult | None,
    decode: PhaseResult | None,
    places: Sequence[int],
) -> tuple[float | None, str]:
    if decode is not None:
        return statistics.fmean(decode.joules(places)), "windows"
    if whole is None or prefill is None:
        return None, "none"
    parts = [w.decode_energy_j for w in whole.windows]
    read = [part for part in parts if part is not None]
    if len(read) == len(parts):
        joules = math.fsum(part[i] for part in read for i in places)
        return joules / sum(w.requests for w in whole.windows), "boundary"
    wholes, prefills = whole.joules(places), prefill.joules(places)
    rest = statistics.fmean(wholes) - statistics.fmean(prefills)
    # A difference within the scatter of its two terms is no measurement.
    noise = math.hypot(statistics.stdev(wholes), statistics.stdev(prefills))
    return (rest, "difference") if rest > noise else (None, "none")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One case, measured: every window, and what they say."""

    phases: Mapping[str, PhaseResult]
    idle: Window | None
    states: tuple[DeviceState, ...]
    total_energy_j: float  # all that the deployment drew while the case was measured
    duration_s: float
    active: Energies
    node: Energies | None  # all GPUs that the meter sees; None if one of them is not known
    spread_ratio: float
    warnings: tuple[str, ...]

    @property
    def stable(self) -> bool:
        """Whether nothing speaks against this row."""
        return not self.warnings

    @property
    def time_closure_ratio(self) -> float | None:
        """(prefill + decode) / whole - 1 in seconds, where the engine tells the parts apart."""
        whole = self.phases.get(Phase.REQUEST)
        if whole is None:
            return None
        parts = [(w.prefill_s, w.decode_s) for w in whole.windows]
        known = [p + d for p, d in parts if p is not None and d is not None]
        if len(known) < len(parts):
            return None
        return math.fsum(known) / math.fsum(w.duration_s for w in whole.windows) - 1

    @property
    def main(self) -> PhaseResult:
        """The phase that stands for the whole."""
        names = ("steady", Phase.REQUEST, Phase.DECODE, Phase.PREFILL)
        return next(self.phases[name] for name in names if name in self.phases)


def measure_case(bench: Bench, planned: PlannedCase, idle: Window | None = None) -> Measured:
    """Measure one case on an engine that runs.

    Raises
    ------
    EngineError
        If the engine cannot do it.
    MeterError
        If the joules cannot be trusted.
    """
    bench.states.clear()
    began = bench.trail.moment()
    phases: dict[str, PhaseResult] = {}
    if planned.mode is Mode.STEADY:
        phases["steady"] = measure_steady(bench, planned)
    else:
        batch, wanted = planned.batch(), _phases(bench, planned)
        bench.engine.prepare(batch, wanted)
        for phase in wanted:
            phases[phase.value] = measure_phase(bench, phase, batch)
    bench.look_at_devices()
    ended = bench.trail.moment()
    total = bench.trail.energy_j(began, ended)
    own = energies(phases, bench.active)
    spread = max(spread_ratio(result.joules(bench.active)) for result in phases.values())
    return Measured(
        phases=phases,
        idle=idle,
        states=tuple(bench.states),
        total_energy_j=math.fsum(total[i] for i in bench.active),
        duration_s=ended - began,
        active=own,
        node=_node_energies(bench, phases),
        spread_ratio=spread,
        warnings=tuple(_warnings(bench, planned, phases, own, spread)),
    )


def _phases(bench: Bench, planned: PlannedCase) -> list[Phase]:
    able = bench.engine.capabilities.phases
    wanted = [Phase.PREFILL]
    if planned.case.workload.output_tokens > 1:
        if Phase.DECODE in able:
            wanted.append(Phase.DECODE)
        if Phase.DECODE not in able or bench.procedure.whole:
            wanted.append(Phase.REQUEST)
    if Phase.ENCODE in able and (planned.media.images or planned.media.frames):
        wanted.append(Phase.ENCODE)
    missing = [phase for phase in wanted if phase not in able]
    if missing:
        raise EngineError(
            f"the engine {bench.engine.name} cannot repeat {', '.join(missing)}.",
            reason=Reason.UNSUPPORTED,
            usable=True,
        )
    return wanted


def _node_energies(bench: Bench, phases: Mapping[str, PhaseResult]) -> Energies | None:
    places = [i for i, c in enumerate(bench.meter.channels) if c.kind is ChannelKind.GPU]
    known = all(
        math.isfinite(window.energy_j[i])
        for result in phases.values()
        for window in result.windows
        for i in places
    )
    return energies(phases, places) if places and known else None


def _warnings(
    bench: Bench,
    planned: PlannedCase,
    phases: Mapping[str, PhaseResult],
    own: Energies,
    spread: float,
) -> Iterator[str]:
    if spread > bench.procedure.spread_limit_ratio:
        yield f"windows spread by {percent(spread)}"
    if not all(result.warm for result in phases.values()):
        yield "warm-up halves never agreed"
    if own.closure_ratio is not None and not own.parts_agree:
        yield f"prefill and decode miss the whole by {signed(own.closure_ratio)}"
    wants_decode = planned.mode is Mode.PHASES and planned.case.workload.output_tokens > 1
    if wants_decode and own.decode_j is None:
        yield "decode is smaller than the scatter of the whole and of prefill"
    throttled = HARD_THROTTLES & {r for s in bench.states for r in s.throttle_reasons}
    if throttled:
        yield f"throttled: {', '.join(sorted(throttled))}"
