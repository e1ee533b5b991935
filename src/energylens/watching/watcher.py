"""Going round: look at the engine and the meter, close a window, judge it, begin the next.

A window closes at the first look after its time at which the meter has moved, so that a counter
that is updated every 30 s is read when it has just been. Between the looks at both ends it is
looked at the requests in flight, which tells for how long nothing ran.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from energylens.errors import EnergyLensError, MeasurementError, UsageError
from energylens.instrument.meter import ChannelKind, Meter
from energylens.records import Source
from energylens.watching.counters import Counters
from energylens.watching.drift import Drift
from energylens.watching.expecting import Done, Expectation
from energylens.watching.windows import Window
from energylens.words import percent

WINDOW_S, POLL_S, DRIFT_RATIO = 60.0, 1.0, 0.1
#: Of the drift allowed to joules, that of times: they bend more with what runs beside.
TIME_FACTOR = 2.0
#: Requests that a window needs to be judged by: the edges of fewer weigh too much.
LEAST_REQUESTS = 5.0
FARTHEST = 1.3  # factor of the law's joules beyond which it is not of this deployment
LONGEST = 1e8  # tokens of a request: no engine serves a tenth of it
STILL_PERIODS = 3.0  # after which a meter that stands still is out of order


@dataclass
class Totals:
    """Sums since the start."""

    energy_j: float = 0.0
    expected_energy_j: float = 0.0
    output_tokens: float = 0.0
    windows: int = 0
    without: int = 0  # windows of which nothing may be said
    restarts: int = 0  # of the engine


@dataclass
class _Open:
    """The window that is open."""

    begun_s: float
    counters: Counters
    energy_j: float | None
    looked_s: float
    running: list[float] = field(default_factory=list)  # in flight, at each look
    empty_s: float = 0.0
    seen_s: float = 0.0
    last_running: float | None = None
    last: Counters | None = None


@dataclass
class _State:
    engine_up: bool = False
    meter_up: bool = False
    engine_problem: str = ""
    meter_problem: str = ""
    meter_reset: bool = False
    idle_w: list[float] = field(default_factory=list)


class Watcher:
    """Watches one deployment.

    Parameters
    ----------
    engine : callable
        Looks at the engine's counters; raises MeasurementError where it cannot.
    meter : Meter or None
        Whose channels are the GPUs of the deployment; without one nothing is measured.
    expectation : Expectation or None
        Without one nothing is expected.
    window_s, poll_s : float
        Length of a window, and time between two looks.
    drift_ratio : float
        Measured over expected joules that are off by so much for two windows raise the alarm, and
        times that are off by twice as much.
    learn_idle : bool
        Whether windows in which nothing ran say what loaded idle GPUs draw.

    Raises
    ------
    UsageError
        If times are not above 0, or the meter's GPUs are not those of the deployment.
    """

    def __init__(
        self,
        engine: Callable[[], Counters],
        meter: Meter | None,
        expectation: Expectation | None,
        *,
        window_s: float = WINDOW_S,
        poll_s: float = POLL_S,
        drift_ratio: float = DRIFT_RATIO,
        learn_idle: bool = True,
    ) -> None:
        if not (0 < poll_s <= window_s < float("inf")):
            raise UsageError(
                "a window must be as long as the time between two looks or longer, and that above "
                f"0 s; given {window_s:g} s and {poll_s:g} s"
            )
        if not 0 < drift_ratio < 10:
            raise UsageError(f"the drift allowed must lie above 0, as 0.1; given {drift_ratio:g}")
        self._engine, self._meter, self.expectation = engine, meter, expectation
        self.window_s, self.poll_s = window_s, poll_s
        self.drift, self.time_drift = Drift(drift_ratio), Drift(TIME_FACTOR * drift_ratio)
        self.totals = Totals()
        self.last: Window | None = None
        self.names: tuple[str, ...] = ()
        self._learn_idle = learn_idle
        self._open: _Open | None = None
        self._state = _State()
        self._energy_before: float | None = None
        self._moved_s: float | None = None
        self._silent_since: float | None = None
        self._lock = threading.Lock()
        if meter is not None and expectation is not None:
            _check_channels(meter, expectation)

    @property
    def source(self) -> Source | None:
        """What the joules are; None without a meter."""
        return None if self._meter is None else self._meter.source

    @property
    def engine_up(self) -> bool:
        """Whether the last look at the engine was answered."""
        return self._state.engine_up

    @property
    def meter_up(self) -> bool:
        """Whether the last reading was answered, and its counter moves."""
        return self._state.meter_up

    def now_s(self) -> float:
        """Time on the meter's clock."""
        return time.monotonic() if self._meter is None else self._meter.now_s()

    def wait(self) -> None:
        """Let the time between two looks go by."""
        if self._meter is None:
            time.sleep(self.poll_s)
        else:
            self._meter.wait(self.poll_s)

    def run(self, windows: int | None, tell: Callable[[Window], None]) -> None:
        """Go round until so many windows are told, or for ever."""
        told = 0
        while windows is None or told < windows:
            window = self.poll()
            if window is not None:
                tell(window)
                told += 1
                if told == windows:
                    return
            self.wait()

    # ----------------------------------------------------------------------------- one look

    def poll(self) -> Window | None:
        """Look once; return the window that this look closes, if it does."""
        with self._lock:
            window = self._poll()
            if window is not None:
                self.last = window
                self.totals.windows += 1
                self.totals.without += bool(window.problem)
            return window

    def _poll(self) -> Window | None:
        energy_j, moved = self._read_meter()
        counters = self._look()
        now = self.now_s()
        state = self._state
        problem = state.engine_problem or state.meter_problem
        if counters is None or problem:
            return self._silent(now, problem)
        self._silent_since = None
        opened = self._open
        if opened is None:
            if moved:
                self._begin(now, counters, energy_j)
            return None
        if counters.since(opened.last or opened.counters) is None:
            self.totals.restarts += 1
            self._begin(now, counters, energy_j)
            return self._nothing(now - opened.begun_s, "the engine has started anew")
        if state.meter_reset:
            self._begin(now, counters, energy_j)
            return self._nothing(now - opened.begun_s, "the meter's counter has started anew")
        self._follow(opened, now, counters)
        if now - opened.begun_s < self.window_s - 1e-9 or not moved:
            return None
        self._begin(now, counters, energy_j)
        return self._judge(opened, now, counters, energy_j)

    def _read_meter(self) -> tuple[float | None, bool]:
        """Joules of all channels, and whether they have moved since the look before."""
        state, meter = self._state, self._meter
        state.meter_problem = ""
        if meter is None:
            return None, True
        try:
            reading = meter.read()
        except MeasurementError as error:
            state.meter_up, state.meter_problem = False, f"the meter: {error}"
            return None, False
        energy_j, now = sum(reading.energy_j), reading.time_s
        before, self._energy_before = self._energy_before, energy_j
        state.meter_reset = before is not None and energy_j < before
        moved = before is not None and energy_j != before
        if moved or self._moved_s is None:
            self._moved_s = now
        still_s = now - self._moved_s
        if still_s > max(STILL_PERIODS * meter.period_s, self.window_s):
            state.meter_up = False
            state.meter_problem = (
                f"the meter has stood still for {still_s:.0f} s, which no GPU under power does"
            )
        else:
            state.meter_up = True
        # A continuous counter has moved at its first reading already.
        return energy_j, moved or (before is None and meter.period_s < self.poll_s)

    def _look(self) -> Counters | None:
        state = self._state
        try:
            counters = self._engine()
        except MeasurementError as error:
            state.engine_up, state.engine_problem = False, str(error).removesuffix(".")
            return None
        state.engine_up, state.engine_problem = True, ""
        self.names = counters.model_names
        return counters

    def _silent(self, now: float, problem: str) -> Window | None:
        """Say once in a window's time that there is nothing to say."""
        if self._silent_since is None:
            self._silent_since = now
            # One look missed is no matter; the window goes on.
            return None
        if now - self._silent_since < self.window_s - 1e-9:
            return None
        seconds, self._silent_since, self._open = now - self._silent_since, now, None
        return self._nothing(seconds, problem)

    def _nothing(self, seconds: float, problem: str) -> Window:
        source = self.source
        return Window(
            time_s=time.time(),
            seconds=seconds,
            problem=problem,
            source="" if source is None else str(source),
            alarm=self.alarm,
        )

    def _begin(self, now: float, counters: Counters, energy_j: float | None) -> None:
        self._open = _Open(
            begun_s=now,
            counters=counters,
            energy_j=energy_j,
            looked_s=now,
            last_running=counters.running,
            last=counters,
        )

    def _follow(self, opened: _Open, now: float, counters: Counters) -> None:
        """Take what is in flight now as what was since the look before, half and half."""
        spell = now - opened.looked_s
        for running in (opened.last_running, counters.running):
            if running is not None:
                opened.seen_s += spell / 2
                opened.empty_s += (running == 0) * spell / 2
        if counters.running is not None:
            opened.running.append(counters.running)
        opened.looked_s, opened.last_running, opened.last = now, counters.running, counters

    # ----------------------------------------------------------------------------- judging

    def _judge(
        self, opened: _Open, now: float, counters: Counters, energy_j: float | None
    ) -> Window:
        seconds = now - opened.begun_s
        counted = counters.since(opened.counters)
        if counted is None:  # looks in between have seen it otherwise
            return self._nothing(seconds, "the engine has started anew")
        notes: list[str] = []
        done = _done(opened, counters, counted, seconds, notes)
        busy = (counters.running or 0) > 0 and (opened.counters.running or 0) > 0
        if busy and not done.output_tokens and not done.prompt_tokens and not done.empty_ratio:
            return self._nothing(
                seconds,
                f"the engine's numbers stand still while {counters.running:.0f} requests run: they "
                "are stale, or the engine hangs",
            )
        lengths = done.lengths
        if lengths is not None and max(lengths.input_tokens, lengths.output_tokens) > LONGEST:
            return self._nothing(seconds, "the engine's numbers say that requests are endless")
        measured = None
        if energy_j is not None and opened.energy_j is not None:
            measured = energy_j - opened.energy_j
            if measured <= 0:
                return self._nothing(seconds, "the meter counted no joules, which no GPU does")
        if self.expectation is not None and done.output_tokens == 0 and done.empty_ratio == 1.0:
            self._learn(measured, seconds)
        window = Window(
            time_s=time.time(),
            seconds=seconds,
            source="" if self.source is None else str(self.source),
            energy_j=measured,
            done=done,
            ttft_s=_mean(counted, "first_token_s", "first_tokens"),
            tpot_s=_mean(counted, "gaps_s", "gaps"),
            notes=tuple(notes),
        )
        return self._compare(window, done, measured)

    def _compare(self, window: Window, done: Done, measured: float | None) -> Window:
        expectation = self.expectation
        if measured is not None:
            self.totals.energy_j += measured
        self.totals.output_tokens += done.output_tokens
        if expectation is None:
            return window
        try:
            expected, saving = expectation.of(done), expectation.saving(done)
        except EnergyLensError as error:  # the law has no answer; what was measured stands
            return replace(window, notes=(*window.notes, f"nothing is expected: {error}"))
        self.totals.expected_energy_j += expected.energy_j
        telling = done.requests >= LEAST_REQUESTS and done.output_tokens > 0
        ratio = None
        if telling and measured is not None and expected.energy_j > 0:
            ratio = measured / expected.energy_j
            self.drift.add(ratio)
        time_ratio = None
        if telling and (time_ratio := expected.time_ratio(done, window.tpot_s)) is not None:
            self.time_drift.add(time_ratio)
        return replace(
            window,
            expected=expected,
            saving=saving,
            drift_ratio=ratio,
            drift_reference_ratio=self.drift.reference,
            time_drift_ratio=time_ratio,
            time_drift_reference_ratio=self.time_drift.reference,
            alarm=self.alarm,
        )

    @property
    def alarm(self) -> str:
        """Why this deployment should be measured again; empty where it need not be."""
        reference = self.drift.reference or 1.0
        off = [
            f"{what} lie {percent(abs(drift.off_ratio), 0)} "
            f"{'above' if drift.off_ratio > 0 else 'below'}"
            for what, drift in (("joules", self.drift), ("times", self.time_drift))
            if drift.alarm and drift.off_ratio is not None
        ]
        if off:
            return (
                f"{' and '.join(off)} what they were against the law: measure this deployment "
                "again and fit"
            )
        if self.source is not Source.ESTIMATED and not 1 / FARTHEST < reference < FARTHEST:
            return (
                f"joules are {reference:.2g} times those of the law since watching began: measure "
                "this deployment and fit"
            )
        return ""

    def _learn(self, measured: float | None, seconds: float) -> None:
        """Take the watts of GPUs that hold an LLM and do nothing."""
        expectation = self.expectation
        if not self._learn_idle or measured is None or expectation is None:
            return
        watts = self._state.idle_w
        watts.append(measured / seconds / expectation.case.configuration.gpus)
        del watts[:-10]
        expectation.loaded_idle_w = sum(watts) / len(watts)


def _mean(counted: dict[str, float | None], total: str, number: str) -> float | None:
    whole, times = counted.get(total), counted.get(number)
    return whole / times if whole is not None and times else None


def _done(
    opened: _Open,
    counters: Counters,
    counted: dict[str, float | None],
    seconds: float,
    notes: list[str],
) -> Done:
    """Make what was counted into what was done."""
    prompt_tokens, output_tokens = counted["prompt_tokens"] or 0.0, counted["output_tokens"] or 0.0
    requests = counted["requests"] or 0.0
    cached = counted.get("cached_tokens")
    computed = prompt_tokens if cached is None else max(prompt_tokens - cached, 0.0)
    first = counted.get("first_tokens")
    if first is None:
        notes.append("the engine does not count first tokens: as many prompts as requests ended")
    if cached is None:
        notes.append("the engine does not count tokens found in a cache: all prompts are computed")
    if len(counters.model_names) > 1:
        notes.append(
            f"the endpoint serves {' and '.join(counters.model_names)}, which are taken as one: "
            "name the one that is meant (--model-name)"
        )
    if counted.get("steps") is None:
        notes.append("the engine does not count steps: requests in flight say how full they were")
    looked = opened.seen_s > 0
    if not looked:
        notes.append("the engine does not say how many requests run")
    flop, read, written = (
        counted.get(name)
        for name in ("flop_per_gpu", "read_bytes_per_gpu", "written_bytes_per_gpu")
    )
    moved = None if read is None else read + (written or 0.0)
    spread = [1.0 if one is None else one for one in counters.cv]
    return Done(
        seconds=seconds,
        requests=requests,
        prompts=requests if first is None else first,
        prompt_tokens=computed,
        output_tokens=output_tokens,
        steps=counted.get("steps") or None,
        running=tuple(opened.running),
        empty_ratio=opened.empty_s / opened.seen_s if looked else None,
        input_cv=spread[0],
        output_cv=spread[1],
        flop_per_gpu=flop or None,
        moved_bytes_per_gpu=moved or None,
    )


def _check_channels(meter: Meter, expectation: Expectation) -> None:
    gpus = sum(channel.kind is ChannelKind.GPU for channel in meter.channels)
    wanted = expectation.case.configuration.gpus
    if gpus and gpus not in (wanted, expectation.case.node_gpus):
        raise UsageError(
            f"the meter must read the {wanted} GPUs of the deployment, and reads {gpus}: name "
            "them, as in nvml:0,1 or dcgm:http://node:9400?gpu=0,1, or say what runs with --current"
        )
