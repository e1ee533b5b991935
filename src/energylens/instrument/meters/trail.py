"""Joules at any moment, from a counter that moves in steps.

A counter with a period of 100 ms says at 1.07 s what was true at 1.00 s. Taken at face value,
each edge of a window is wrong by up to a period. A trail looks often enough to see *when* the
counter moved, and draws straight lines between those moments: as power is level across the
edges of a window (repetitions follow each other without pause), what remains is the
uncertainty of a look, a fifth of a period. Between prefill and decode it is not level:
:meth:`Trail.energy_inside_j` is for those.

It is also where a counter that lies is found out: one that goes back, stands still, or runs
faster than the device can draw.
"""

from __future__ import annotations

import bisect
import itertools
import math
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from energylens.foreign import printable
from energylens.instrument.meter import Meter, MeterError, Reading
from energylens.instrument.meters.wire import LARGEST_ENERGY_J, LONGEST_PERIOD_S

#: Looks in one period of the counter, and bounds on the time between two looks.
LOOKS_PER_PERIOD = 5
SHORTEST_LOOK_S, LONGEST_LOOK_S = 0.001, 0.05
#: A counter that stood still for so many periods, looked at so often, is stuck.
STUCK_PERIODS, STUCK_S, STUCK_LOOKS = 10, 0.5, 5
#: No honest counter says that a device drew more than this multiple of its power limit.
LARGEST_POWER_RATIO = 2.0
#: Clocks of two machines are compared to within this; a step back by less is no fault.
CLOCK_TOLERANCE_S = 0.05
#: A window may end this much, in looks, after the last reading: beyond it nobody watched.
LATE_LOOKS = 3


class Trail:
    """A meter watched for as long as the block lasts.

    Parameters
    ----------
    meter : Meter
        What to watch.
    active : sequence of int
        Places of the channels that must be right. A fault in another channel makes that
        channel NaN.

    Examples
    --------
    ::

        with Trail(meter, active=[0]) as trail:
            begin = trail.moment()
            work()
            joules = trail.energy_j(begin, trail.moment())
    """

    def __init__(self, meter: Meter, active: Sequence[int]) -> None:
        self._meter = meter
        self._active = frozenset(active)
        period = meter.period_s
        if not 0 <= period <= LONGEST_PERIOD_S:
            raise MeterError(
                f"a counter must move every {LONGEST_PERIOD_S:g} s at least, but {meter.name} says "
                f"that its own does so every {period:g} s: no window could be told by it."
            )
        self._stepped = period > 0 and meter.real_time
        pause = min(LONGEST_LOOK_S, max(SHORTEST_LOOK_S, period / LOOKS_PER_PERIOD))
        self._pause_s = pause
        n = len(meter.channels)
        # Per channel: moments at which it moved, and what it said from then on.
        self._times: list[list[float]] = [[] for _ in range(n)]
        self._joules: list[list[float]] = [[] for _ in range(n)]
        self._faults: list[str | None] = [None] * n
        self._looks: list[float] = []
        self._lock = threading.Lock()
        self._error: MeterError | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._look()
        if self._stepped:
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(self._pause_s):
            try:
                self._look()
            except MeterError:
                return  # kept as the error of the trail

    def _look(self) -> float:
        """Read the meter once; whatever goes wrong is the end of the trail."""
        with self._lock:
            try:
                reading = self._meter.read()
                self._note(reading)
            except MeterError as error:
                self._error = error
                raise
            except Exception as error:  # a watcher that dies unseen would let the last power go on
                said = printable(f"{type(error).__name__}: {error}", 200)
                self._error = MeterError(
                    f"the meter {self._meter.name} failed while it was watched ({said}): nothing "
                    "is known of the joules after that."
                )
                raise self._error from error
            return reading.time_s

    def _note(self, reading: Reading) -> None:
        now, n = reading.time_s, len(self._times)
        if len(reading.energy_j) != n:
            raise MeterError(
                f"a reading must have a number for each of the {n} channels of {self._meter.name}, "
                f"but one had {len(reading.energy_j)}."
            )
        ahead = now - self._meter.now_s()
        if not math.isfinite(now) or (self._meter.real_time and ahead > CLOCK_TOLERANCE_S):
            raise MeterError(
                f"a reading cannot be of a time to come, but one was {ahead:.3f} s ahead of the "
                f"clock of {self._meter.name}: set the clocks, or measure again."
            )
        before = self._looks[-1] if self._looks else now
        if now < before - CLOCK_TOLERANCE_S:
            raise MeterError(
                f"readings must follow each other in time, but one of {now:.3f} s came after one "
                f"of {before:.3f} s: the clock was set back."
            )
        if now <= before and self._looks:
            return
        for place, joules in enumerate(reading.energy_j):
            fault = self._add(place, before, now, joules)
            if fault and place in self._active:
                raise MeterError(fault)
            self._faults[place] = self._faults[place] or fault
        self._looks.append(now)

    def _add(self, place: int, before: float, now: float, joules: float) -> str | None:
        name = self._meter.channels[place].id
        if not 0 <= joules <= LARGEST_ENERGY_J:
            return f"the counter of {name} must say joules, but said {joules!r}."
        times, values = self._times[place], self._joules[place]
        if not values:
            times.append(now)
            values.append(joules)
            return None
        if joules < values[-1] - 1e-9 * abs(values[-1]):
            return (
                f"the counter of {name} must never go back, but went from {values[-1]:.3f} J to "
                f"{joules:.3f} J: it was reset (driver reloaded), wrapped around, or gave its "
                "readings out of order. Measure the case again."
            )
        if joules == values[-1]:
            return None
        limit = self._meter.channels[place].limit_w
        # The step was due some time in the last period or two, not only since the last look.
        longest = now - before + 2 * self._meter.period_s + 0.1
        if limit and joules - values[-1] > LARGEST_POWER_RATIO * limit * max(
            longest, now - times[-1]
        ):
            return (
                f"the counter of {name} jumped by {joules - values[-1]:.1f} J in "
                f"{now - times[-1]:.3f} s, more than {LARGEST_POWER_RATIO:g} times its power limit "
                f"of {limit:g} W: it wrapped around or is faulty."
            )
        # It moved somewhere between two looks.
        times.append((before + now) / 2 if self._stepped else now)
        values.append(joules)
        return None

    def moment(self) -> float:
        """Mark a moment and return its time.

        A stepped counter is watched anyway, so this costs nothing; a continuous one is read.

        Raises
        ------
        MeterError
            If the meter has failed since.
        """
        if self._error is not None:
            raise self._error
        if self._stepped:
            return self._meter.now_s()
        looked = self._look()
        return looked if self._meter.real_time else self._meter.now_s()

    def energy_j(self, begin_s: float, end_s: float) -> tuple[float, ...]:
        """Joules of each channel between two moments.

        Returns
        -------
        tuple of float
            One number per channel; NaN for an inactive channel that failed.

        Raises
        ------
        MeterError
            If an active channel did not move, stood still in between, or the meter failed.
        """
        self._catch_up(end_s)
        with self._lock:
            return tuple(self._between(place, begin_s, end_s) for place in range(len(self._times)))

    def _catch_up(self, end_s: float) -> None:
        """Look once more if nobody has since ``end_s``; refuse a window that ends unwatched."""
        if self._error is not None:
            raise self._error
        if not self._stepped or self._looks[-1] >= end_s:
            return
        self._look()
        unseen = end_s - self._looks[-1]
        if unseen > max(LATE_LOOKS * self._pause_s, CLOCK_TOLERANCE_S):
            raise MeterError(
                f"the last reading of {self._meter.name} was {unseen:.2f} s before the end of a "
                "window: the meter gives no new ones."
            )

    def energy_inside_j(self, begin_s: float, end_s: float) -> tuple[float, ...]:
        """Joules of each channel between two moments at which power jumps.

        A straight line across the step in which power jumped would spread the joules of one side
        over the other. So only moves of the counter inside are taken, and what they say of the
        power there is extended to the edges.

        Returns
        -------
        tuple of float
            As :meth:`energy_j`.

        Raises
        ------
        MeterError
            As :meth:`energy_j`.
        """
        self._catch_up(end_s)
        with self._lock:
            places = range(len(self._times))
            return tuple(self._between(place, begin_s, end_s, inside=True) for place in places)

    def _between(self, place: int, begin_s: float, end_s: float, *, inside: bool = False) -> float:
        fault = self._faults[place] or self._stuck(place, begin_s, end_s)
        if fault is None:
            if inside:
                joules = self._inside(place, begin_s, end_s)
            else:
                joules = self._at(place, end_s) - self._at(place, begin_s)
            if joules > 0:
                return joules
            fault = (
                f"the counter of {self._meter.channels[place].id} must move while it is watched, "
                f"but gave {joules:g} J in {end_s - begin_s:.3f} s."
            )
        if place in self._active:
            raise MeterError(fault)
        self._faults[place] = fault
        return math.nan

    def _stuck(self, place: int, begin_s: float, end_s: float) -> str | None:
        if not self._stepped:
            return None
        patience = max(STUCK_S, STUCK_PERIODS * self._meter.period_s)
        times = self._times[place]
        first = max(0, bisect.bisect_right(times, begin_s) - 1)
        last = bisect.bisect_left(times, end_s)
        moments = [*times[first:last], min(end_s, self._looks[-1])]
        for before, after in itertools.pairwise(moments):
            looks = bisect.bisect_left(self._looks, after) - bisect.bisect_right(
                self._looks, before
            )
            if after - before > patience and looks >= STUCK_LOOKS:
                return (
                    f"the counter of {self._meter.channels[place].id} must move every "
                    f"{self._meter.period_s:.3g} s, but stood still for {after - before:.2f} s: "
                    "it is stuck."
                )
        return None

    def _inside(self, place: int, begin_s: float, end_s: float) -> float:
        """Joules between two moments, by the moves of the counter between them."""
        times, values = self._times[place], self._joules[place]
        first, last = bisect.bisect_left(times, begin_s), bisect.bisect_right(times, end_s) - 1
        reach = min(LOOKS_PER_PERIOD, last - first)
        if not self._stepped or reach < 1:
            return self._at(place, end_s) - self._at(place, begin_s)

        def power(begin: int, end: int) -> float:
            return (values[end] - values[begin]) / (times[end] - times[begin])

        before = power(first, first + reach) * (times[first] - begin_s)
        after = power(last - reach, last) * (end_s - times[last])
        return before + values[last] - values[first] + after

    def _at(self, place: int, moment_s: float) -> float:
        """Joules at a moment: on the line between two moves, or on as it went last."""
        times, values = self._times[place], self._joules[place]
        if len(times) < 2:
            return values[0]
        at = min(max(bisect.bisect_right(times, moment_s), 1), len(times) - 1)
        if moment_s > times[-1] and self._meter.period_s > 0:
            back = max(0, len(times) - 1 - LOOKS_PER_PERIOD)
            slope = (values[-1] - values[back]) / (times[-1] - times[back])
            return values[-1] + slope * (moment_s - times[-1])
        if moment_s >= times[-1]:
            return values[-1]
        span = times[at] - times[at - 1]
        share = max(0.0, (moment_s - times[at - 1]) / span) if span > 0 else 1.0
        return values[at - 1] + share * (values[at] - values[at - 1])
