"""Joules of a benchmark from a power log beside it, joined by time.

Watts of each GPU are integrated by the trapezoid over the window of the benchmark, with the power
at its edges interpolated. Where an edge falls between a reading at idle and one under load, the
step was at the edge, and the reading inside it is held: a ramp over a whole sampling interval is
the sampling's, not the GPU's. Energy counters are read instead where the log has them.

Two files seldom share a clock. What they share is the step in power: the offset between the clocks
is the one that best parts the readings into those inside the window and those outside it, in the
sense of least squares about two levels. It is reported, and refused where it is larger than asked
for or the log does not show it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from energylens.cases import FloatArray
from energylens.importers.integrating import RISE_SHARE, joules_within
from energylens.importers.power.series import Clock, Cover, EnergyWindow, PowerLog, Series
from energylens.importers.power.stamps import to_epoch, zone_of
from energylens.importers.runs import RefusedFileError, Window

#: Clocks further apart than this are not joined unless the offset is given, s.
LARGEST_OFFSET_S = 30.0

#: A gap in the readings that is still bridged by a straight line, s, and in sampling periods.
LARGEST_GAP_S, LARGEST_GAP_PERIODS = 5.0, 3.0

#: Share of the window that gaps beyond `LARGEST_GAP_PERIODS` may take.
GAPS_SHARE = 0.1

#: A GPU served if its power rose by more than both of these while the benchmark ran.
RISE_W = 15.0  # and RISE_SHARE of its power

#: Share of time busy above which a GPU served, where power does not tell.
BUSY_SHARE = 0.05

#: An offset is told only if the two levels explain at least this share of the variance.
STEP_SHARE = 0.3

#: How long before and after the window idle power is taken from, and how near to it not, s.
IDLE_S, IDLE_GUARD_S = 60.0, 2.0

#: How much longer than the benchmark a window of joules may be before it holds a warm-up too.
WINDOW_SLACK_SHARE = 0.05


@dataclass(frozen=True, kw_only=True)
class JoinOptions:
    """What the operator says about a join; None asks for an answer from the files."""

    timezone: str | None = None
    power_timezone: str | None = None
    gpus_active: tuple[str, ...] | None = None
    clock_offset_s: float | None = None
    largest_offset_s: float = LARGEST_OFFSET_S
    largest_gap_s: float | None = None
    power_window: str | None = None


@dataclass(frozen=True, kw_only=True)
class Joined:
    """Joules of a window within every boundary that the log covers.

    Attributes
    ----------
    active_j, node_j, wall_j : float or None
        Joules of the GPUs that served, of all GPUs in the log, of the whole server at its plug.
    active : tuple of str
        Labels of the GPUs that served.
    listed : tuple of str
        Labels of all GPUs in the log.
    covered : int or None
        How many GPUs ``node_j`` covers, None where the log does not count them.
    offset_s : float
        Seconds that the log's clock is ahead of the benchmark's.
    offset_known : bool
        Whether the step in power told it; otherwise it was given, or taken for 0.
    idle_before_w, idle_after_w : float or None
        Mean watts of the GPUs that served (of the server) before and after the window.
    mean_w : float
        Mean watts over the window, of the narrowest boundary.
    largest_gap_s, period_s : float
        Between readings within the window.
    counted : bool
        Whether joules are from a counter.
    notes : tuple of str
        How it was done, for people.
    """

    active_j: float | None
    node_j: float | None
    wall_j: float | None
    active: tuple[str, ...]
    listed: tuple[str, ...]
    covered: int | None = None
    offset_s: float = 0.0
    offset_known: bool = False
    idle_before_w: float | None = None
    idle_after_w: float | None = None
    mean_w: float
    largest_gap_s: float = 0.0
    period_s: float = 0.0
    counted: bool
    notes: tuple[str, ...] = ()


def join(
    log: PowerLog,
    window: Window,
    *,
    serving: int | None,
    options: JoinOptions | None = None,
    beside: Sequence[Window] = (),
) -> Joined:
    """Find the joules of a window in a power log.

    Parameters
    ----------
    log : PowerLog
        What was logged beside the benchmark.
    window : Window
        When the benchmark ran.
    serving : int or None
        GPUs of the deployment, where known.
    options : JoinOptions, optional
        Time zones, GPUs that served, offset and gaps allowed.
    beside : sequence of Window
        Windows of other runs in the same log, by the same clock: they help to tell its offset.

    Raises
    ------
    RefusedFileError
        If the log does not cover the window, has a gap in it, its clock cannot be matched, or it
        is not told which of its GPUs served.
    """
    options = options or JoinOptions()
    if log.windows:
        return _join_windows(log, window, serving, options)
    start_s, end_s, log_shift_s, notes = _on_one_clock(log, window, options)
    series = [_shifted(item, log_shift_s) for item in log.series]
    duration_s = end_s - start_s
    if not duration_s > 0:
        raise RefusedFileError(f"{log.name}: the benchmark's window has no length.")
    others = [_on_one_clock(log, w, options)[:2] for w in beside if w.clock is window.clock]
    spans = np.array([(start_s, end_s), *others])
    offset = _offset(log, series, spans, window.slack_s, options)
    active = series
    if log.cover is Cover.GPUS:
        active, said = _active(log, series, start_s + offset.seconds, duration_s, serving, options)
        notes += said
        if len(active) < len(series) and options.clock_offset_s is None:
            offset = _offset(log, active, spans, window.slack_s, options)
    notes += offset.notes
    begin, end = start_s + offset.seconds, end_s + offset.seconds
    each: dict[str, float] = {}
    gaps, periods = [], []
    for item in series if log.cover is Cover.GPUS else active:
        needed = item in active
        try:
            gap, period = _covered(log, item, begin, end, options)
            each[item.label] = joules_within(log, item, begin, end)
        except RefusedFileError:
            if needed:
                raise
            notes.append(f"GPU {item.label} did not serve, and its readings do not cover the run")
            continue
        if needed:
            gaps.append(gap)
            periods.append(period)
    total = sum(each[item.label] for item in active)
    if not total > 0:
        raise RefusedFileError(
            f"{log.name}: the readings within the run come to 0 J, which is a meter that gave "
            "nothing, not a measurement."
        )
    counted = all(not item.integrated for item in active)
    if log.cover is Cover.GPUS and not counted and not any("integrated" in n for n in log.notes):
        notes.append("it has no energy counter: joules are watts integrated over time")
    before, after = _idle(active, begin, end)
    wall = log.cover is Cover.WALL
    return Joined(
        active_j=None if wall else total,
        node_j=None if wall or len(each) < len(series) else sum(each.values()),
        wall_j=total if wall else None,
        active=() if wall else tuple(item.label for item in active),
        listed=() if wall else tuple(item.label for item in series),
        covered=None if wall else len(series),
        offset_s=offset.seconds,
        offset_known=offset.told,
        idle_before_w=before,
        idle_after_w=after,
        mean_w=total / duration_s,
        largest_gap_s=max(gaps),
        period_s=max(periods),
        counted=counted,
        notes=(*log.notes, *notes),
    )


# ------------------------------------------------------------------------------------- clocks


def _on_one_clock(
    log: PowerLog, window: Window, options: JoinOptions
) -> tuple[float, float, float, list[str]]:
    """Begin and end of the window, and what to add to the log's stamps, on one clock."""
    if Clock.NONE in (log.clock, window.clock):
        which = log.name if log.clock is Clock.NONE else "the benchmark file"
        raise RefusedFileError(
            f"{log.name} cannot be joined by time: {which} has no time of day to join it by."
        )
    start, end, shift = window.start_s, window.end_s, 0.0
    notes: list[str] = []
    bench_zone = options.timezone
    log_zone = options.power_timezone or options.timezone
    both_local = log.clock is Clock.LOCAL and window.clock is Clock.LOCAL
    if both_local and not (bench_zone and log_zone):
        notes.append("both files have local times without a zone, taken for the same one")
        return start, end, shift, notes
    for clock, zone, option, what in (
        (window.clock, bench_zone, "--timezone", "the benchmark file"),
        (log.clock, log_zone, "--timezone", log.name),
    ):
        if clock is Clock.LOCAL and zone is None:
            raise RefusedFileError(
                f"{what} has local times and the other file has UTC: say the zone with {option}, "
                "as in --timezone Europe/Zurich."
            )
    if window.clock is Clock.LOCAL:
        bench = zone_of(str(bench_zone))
        start, end = to_epoch(start, bench), to_epoch(end, bench)
    if log.clock is Clock.LOCAL:
        first = float(log.series[0].time_s[0])
        last = float(log.series[0].time_s[-1])
        logged = zone_of(str(log_zone))
        shift = to_epoch(first, logged) - first
        if abs(to_epoch(last, logged) - last - shift) > 1:
            raise RefusedFileError(
                f"{log.name}: its zone changes to or from summer time within the log, so its local "
                "times are ambiguous: cut the log before or after the change."
            )
    return start, end, shift, notes


def _shifted(series: Series, by_s: float) -> Series:
    if by_s == 0:
        return series
    return Series(
        label=series.label,
        time_s=series.time_s + by_s,
        power_w=series.power_w,
        energy_j=series.energy_j,
        utilisation=series.utilisation,
    )


@dataclass(frozen=True, kw_only=True)
class _Offset:
    seconds: float
    told: bool
    notes: tuple[str, ...] = ()


def _offset(
    log: PowerLog,
    series: Sequence[Series],
    spans: FloatArray,
    slack_s: float,
    options: JoinOptions,
) -> _Offset:
    """Tell the offset between the clocks; the first of ``spans``, shape (k, 2), is the run's."""
    if options.clock_offset_s is not None:
        return _Offset(seconds=options.clock_offset_s, told=False, notes=("clock offset as given",))
    start_s, end_s = spans[0]
    time_s, power_w = total_power(series)
    limit = options.largest_offset_s + slack_s
    reach = 2 * limit + 10
    found = estimate_offset(time_s, power_w, spans, reach)
    if found is not None and max(-found[1], found[2]) < reach:
        seconds, low, high = found
        if abs(seconds) > limit:
            raise _too_far(log, seconds, limit)
        _alone(log, time_s, power_w, spans, seconds, slack_s)
        if low <= 0 <= high and high - low > 4 * float(np.median(np.diff(time_s))):
            said = (
                "power was at load for longer than the run, so the offset between the clocks is "
                f"only known to lie between {low:+.1f} and {high:+.1f} s: taken for 0 s"
            )
            return _Offset(seconds=0.0, told=False, notes=(said,))
        said = f"clock offset {seconds:+.2f} s, told by the step in power"
        return _Offset(seconds=seconds, told=True, notes=(said,))
    if min(end_s, time_s[-1]) <= max(start_s, time_s[0]):
        anywhere = estimate_offset(time_s, power_w, spans[:1], np.inf)
        if anywhere is not None:
            raise _too_far(log, anywhere[0], limit)
        before = time_s[-1] < start_s
        apart = start_s - time_s[-1] if before else time_s[0] - end_s
        raise RefusedFileError(
            f"{log.name} does not cover the run: its {time_s[-1] - time_s[0]:.0f} s "
            f"{'end' if before else 'begin'} {apart:.0f} s "
            f"{'before it began' if before else 'after it ended'}; if its clock is of another "
            "zone, say so with --timezone or --power-timezone."
        )
    said = "no step in power tells the offset between the clocks: taken for 0 s"
    return _Offset(seconds=0.0, told=False, notes=(said,))


def _alone(
    log: PowerLog,
    time_s: FloatArray,
    power_w: FloatArray,
    spans: FloatArray,
    seconds: float,
    slack_s: float,
) -> None:
    """Refuse a shift that leaves a part of the run outside its window, for other load within.

    A warm-up that ends where the run begins draws the window towards itself when it draws more.
    Where the shift frees a stretch at one end of the window, power must be down there.
    """
    period = float(np.median(np.diff(time_s)))
    if abs(seconds) <= slack_s + 3 * period:
        return
    start_s, end_s = spans[0]
    freed = (end_s + seconds, end_s) if seconds < 0 else (start_s, start_s + seconds)
    there = (time_s > freed[0] + period) & (time_s < freed[1] - slack_s)
    for begin, end in spans[1:] + seconds:  # the next run of a series is load, and none of its own
        there &= (time_s < begin) | (time_s > end)
    inside = (time_s >= start_s + seconds) & (time_s <= end_s + seconds)
    if not there.any() or not inside.any():
        return
    level, floor = float(np.median(power_w[inside])), float(np.min(power_w))
    if float(np.median(power_w[there])) < (level + floor) / 2:
        return
    raise RefusedFileError(
        f"{log.name}: the step in power is {seconds:+.1f} s from where the file has the run, but "
        f"power was at load {'after' if seconds < 0 else 'before'} the run so placed too, as with "
        "a warm-up or another run right beside it: say how far the log's clock is ahead with "
        "--clock-offset, 0 if both files are of one machine."
    )


def _too_far(log: PowerLog, seconds: float, limit: float) -> RefusedFileError:
    hours = round(seconds / 900) * 900
    how = (
        f"it is near {hours / 3600:+g} h, so one of the clocks is of another zone: say so with "
        "--timezone or --power-timezone"
        if hours and abs(seconds - hours) < 120
        else "if it is right, give it with --clock-offset"
    )
    return RefusedFileError(
        f"{log.name}: the step in power is {seconds:+.1f} s from where the file has the run, and "
        f"offsets beyond {limit:g} s are not bridged unasked; {how}."
    )


def total_power(series: Sequence[Series]) -> tuple[FloatArray, FloatArray]:
    """Sum the watts of several GPUs at the stamps of the one that was read most often.

    Returns
    -------
    tuple of (ndarray of float, shape (n,)) and (ndarray of float, shape (n,))
        Seconds and watts, over the time that all of them were read.
    """
    watts = [_watts(item) for item in series]
    low = max(time[0] for time, _ in watts)
    high = min(time[-1] for time, _ in watts)
    finest = max(watts, key=lambda item: len(item[0]))[0]
    time_s = finest[(finest >= low) & (finest <= high)]
    if len(time_s) < 2:
        time_s = np.array([low, max(high, low + 1e-6)])
    return time_s, np.sum([np.interp(time_s, t, w) for t, w in watts], axis=0)


def _watts(item: Series) -> tuple[FloatArray, FloatArray]:
    known = np.isfinite(item.power_w)
    if known.sum() >= 2:
        return item.time_s[known], item.power_w[known]
    if item.energy_j is None:
        return item.time_s, np.zeros(len(item.time_s))
    middle = (item.time_s[1:] + item.time_s[:-1]) / 2
    rate = np.diff(item.energy_j) / np.diff(item.time_s)
    if len(middle) < 2:
        return item.time_s, np.repeat(rate, 2)
    return middle, rate


def estimate_offset(
    time_s: FloatArray, power_w: FloatArray, spans: FloatArray, reach_s: float
) -> tuple[float, float, float] | None:
    """Find the shift of windows that best parts readings into two levels, the higher inside.

    Parameters
    ----------
    time_s, power_w : ndarray of float, shape (n,)
        Rising seconds, and watts.
    spans : ndarray of float, shape (k, 2)
        Begin and end of windows that share a clock.
    reach_s : float
        Shifts beyond it are not tried.

    Returns
    -------
    tuple of (float, float, float) or None
        The shift in s, and the ends of the stretch of shifts that part the readings as well; None
        if no shift leaves readings on both sides, or the step explains less than `STEP_SHARE` of
        the variance.
    """
    spans = _merged(spans)
    # Readings far from every window are of something else.
    near = (time_s >= spans[0, 0] - reach_s - IDLE_S) & (time_s <= spans[-1, 1] + reach_s + IDLE_S)
    time_s, power_w = time_s[near], power_w[near]
    if len(time_s) < 4:
        return None
    weight = np.gradient(time_s)
    total = weight.sum()
    mean = float((weight * power_w).sum() / total)
    variance = float((weight * (power_w - mean) ** 2).sum())
    if not variance > 0:
        return None
    # Which readings are inside changes only where an edge passes a reading.
    edges = spans.ravel()
    parts = [time_s[np.abs(time_s - edge) <= reach_s] - edge for edge in edges]
    turns = np.unique(np.concatenate(parts))
    if len(turns) < 2:
        return None
    shifts = (turns[1:] + turns[:-1]) / 2
    inside = np.concatenate([[0.0], np.cumsum(weight)])
    joules = np.concatenate([[0.0], np.cumsum(weight * (power_w - mean))])
    w, sums = np.zeros(len(shifts)), np.zeros(len(shifts))
    for start, end in spans:
        first = np.searchsorted(time_s, start + shifts)
        last = np.maximum(np.searchsorted(time_s, end + shifts), first)
        w += inside[last] - inside[first]
        sums += joules[last] - joules[first]
    # A window may hang over an end of the log: that it is not covered is for others to say.
    within = (w > 0) & (w < total * (1 - 1e-9)) & (sums > 0)
    if not within.any():
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        explained = np.where(within, sums**2 / w * total / (total - w), -1.0)
    best = float(explained.max())
    if best < STEP_SHARE * variance:
        return None
    alike = np.flatnonzero(explained >= best * (1 - 1e-3))
    place = int(np.argmax(explained))
    ends = alike[_run_around(alike, place)]
    low, high = float(turns[ends[0]]), float(turns[ends[-1] + 1])
    return (low + high) / 2, low, high


def _merged(spans: FloatArray) -> FloatArray:
    """Windows in order, those that overlap as one."""
    order = spans[np.argsort(spans[:, 0])]
    found = [list(order[0])]
    for start, end in order[1:]:
        if start <= found[-1][1]:
            found[-1][1] = max(found[-1][1], end)
        else:
            found.append([start, end])
    return np.array(found)


def _run_around(near: np.ndarray, place: int) -> slice:
    """Which entries of a rising list of places join up with one of them."""
    at = int(np.searchsorted(near, place))
    low = high = at
    while low > 0 and near[low - 1] == near[low] - 1:
        low -= 1
    while high + 1 < len(near) and near[high + 1] == near[high] + 1:
        high += 1
    return slice(low, high + 1)


# -------------------------------------------------------------------------------- which GPUs


def _active(
    log: PowerLog,
    series: list[Series],
    begin: float,
    duration_s: float,
    serving: int | None,
    options: JoinOptions,
) -> tuple[list[Series], list[str]]:
    labels = [item.label for item in series]
    if options.gpus_active is not None:
        missing = [label for label in options.gpus_active if label not in labels]
        if missing:
            raise RefusedFileError(
                f"{log.name} has no GPU {', '.join(missing)}: it has {', '.join(labels)}."
            )
        if serving is not None and len(options.gpus_active) != serving:
            raise RefusedFileError(
                f"{len(options.gpus_active)} GPUs are said to have served, but the deployment has "
                f"{serving}: make --gpus-active and the parallel degrees agree."
            )
        return [item for item in series if item.label in options.gpus_active], []
    if len(series) == 1:
        if serving is not None and serving > 1:
            raise RefusedFileError(
                f"{log.name} has the power of one GPU, but the deployment has {serving}: log all "
                "of them."
            )
        return series, []
    if serving is not None and len(series) < serving:
        raise RefusedFileError(
            f"{log.name} has the power of {len(series)} GPUs, but the deployment has {serving}: "
            "log all of them."
        )
    if serving == len(series):
        return series, []
    blank = [item.label for item in series if not _read_within(item, begin, begin + duration_s)]
    if blank:
        raise RefusedFileError(
            f"{log.name} has no watts of GPU{'s' * (len(blank) > 1)} {', '.join(blank)} during the "
            "run (empty cells or [N/A], or no line at all): say which served with --gpus-active, "
            "or bring a log that has their watts."
        )
    rose = [item for item in series if _rose(item, begin, begin + duration_s)]
    if serving is None or len(rose) == serving:
        if not rose:
            raise RefusedFileError(
                f"{log.name} has {len(series)} GPUs and none drew more during the run than "
                "outside it: say which served with --gpus-active."
            )
        idle = [item.label for item in series if item not in rose]
        said = f"GPU{'s' * (len(rose) > 1)} {', '.join(item.label for item in rose)} served"
        return rose, [f"{said}, told by the rise of their power; {', '.join(idle)} did not"]
    raise RefusedFileError(
        f"{log.name} has {len(series)} GPUs of which {len(rose)} drew more during the run, but the "
        f"deployment has {serving}: say which served with --gpus-active."
    )


def _read_within(item: Series, begin: float, end: float) -> bool:
    inside = (item.time_s >= begin) & (item.time_s <= end)
    return item.energy_j is not None or bool((inside & np.isfinite(item.power_w)).any())


def _rose(item: Series, begin: float, end: float) -> bool:
    time_s, power_w = _watts(item)
    inside = (time_s >= begin) & (time_s <= end)
    if not inside.any():
        return False
    if not inside.all():
        high, low = float(power_w[inside].mean()), float(power_w[~inside].mean())
        if high - low > max(RISE_W, RISE_SHARE * low):
            return True
    if item.utilisation is not None:
        busy = item.utilisation[(item.time_s >= begin) & (item.time_s <= end)]
        busy = busy[np.isfinite(busy)]
        return bool(len(busy) and busy.mean() > BUSY_SHARE)
    return False


# ------------------------------------------------------------------------------------ joules


def _covered(
    log: PowerLog, item: Series, begin: float, end: float, options: JoinOptions
) -> tuple[float, float]:
    """Refuse readings that leave a part of the window out; give the largest gap and the period."""
    time_s = item.time_s
    period = float(np.median(np.diff(time_s)))
    who = f"{log.name}, GPU {item.label}" if item.label else log.name
    early, late = time_s[0] - begin, end - time_s[-1]
    if early > period or late > period:
        raise RefusedFileError(
            f"{who}: the readings do not cover the run, of which "
            f"{max(early, 0) + max(late, 0):.1f} s "
            f"{'at its begin' if early > late else 'at its end'} are missing: start the log before "
            "the benchmark and stop it after."
        )
    inside = np.concatenate(
        [[begin], time_s[(time_s > begin) & (time_s < end)], [end]],
    )
    around = time_s[(time_s >= begin - period) & (time_s <= end + period)]
    steps = np.diff(inside if len(around) < 2 else around)
    largest = float(steps.max())
    allowed = options.largest_gap_s
    if allowed is None:
        allowed = max(LARGEST_GAP_S, LARGEST_GAP_PERIODS * period)
    if largest > allowed:
        raise RefusedFileError(
            f"{who}: no reading for {largest:.1f} s within the run, and gaps beyond {allowed:g} s "
            "are not bridged: log again, or allow it with --max-gap."
        )
    missing = float(steps[steps > LARGEST_GAP_PERIODS * period].sum())
    if options.largest_gap_s is None and missing > GAPS_SHARE * (end - begin):
        raise RefusedFileError(
            f"{who}: gaps take {missing:.0f} of the {end - begin:.0f} s of the run, more than a "
            f"tenth: log again, or allow them with --max-gap {largest:.0f}."
        )
    return largest, period


def _idle(active: Sequence[Series], begin: float, end: float) -> tuple[float | None, float | None]:
    """Mean watts of some GPUs before and after a window, None where they were not read then."""
    time_s, power_w = total_power(active)

    def mean(low: float, high: float) -> float | None:
        there = (time_s >= low) & (time_s <= high)
        return float(power_w[there].mean()) if there.any() else None

    return (
        mean(begin - IDLE_S, begin - IDLE_GUARD_S),
        mean(end + IDLE_GUARD_S, end + IDLE_S),
    )


# ----------------------------------------------------------------------------------- windows


def _join_windows(
    log: PowerLog, window: Window, serving: int | None, options: JoinOptions
) -> Joined:
    """Take the joules of the one window that is the run's."""
    duration_s = window.end_s - window.start_s
    item = _window_of(log, window, options)
    excess = item.elapsed_s / duration_s - 1
    if excess > WINDOW_SLACK_SHARE:
        raise RefusedFileError(
            f"{log.name}: the window {item.name!r} took {item.elapsed_s:.1f} s and the benchmark "
            f"{duration_s:.1f} s, so its joules include a warm-up or a start: measure the run "
            "alone."
        )
    if excess < -WINDOW_SLACK_SHARE:
        raise RefusedFileError(
            f"{log.name}: the window {item.name!r} took {item.elapsed_s:.1f} s, less than the "
            f"benchmark's {duration_s:.1f} s: its joules leave a part of the run out."
        )
    labels = tuple(item.joules)
    notes = [f"joules of the window {item.name!r}, {item.elapsed_s:.1f} s long"]
    chosen = options.gpus_active or labels
    if options.gpus_active is None and not item.all_gpus and serving != len(labels):
        busy = tuple(label for label in labels if item.busy.get(label))
        if busy and (serving is None or len(busy) == serving):
            chosen = busy
            notes.append(f"GPUs {', '.join(busy)} were busy and served, told by their use")
        elif len(labels) > 1 and serving is None:
            raise RefusedFileError(
                f"{log.name} lists {len(labels)} GPUs of the host and does not tell which served: "
                "say which with --gpus-active."
            )
    missing = [label for label in chosen if label not in labels]
    if missing:
        raise RefusedFileError(
            f"{log.name} has no GPU {', '.join(missing)}: it has {', '.join(labels)}."
        )
    if item.all_gpus:
        # One figure for every GPU of the box: it is the deployment's only if that is all of them.
        total = sum(item.joules.values())
        return Joined(
            active_j=None,
            node_j=total,
            wall_j=None,
            active=(),
            listed=labels,
            covered=item.gpus,
            mean_w=total / item.elapsed_s,
            counted=True,
            notes=(*log.notes, *notes),
        )
    if serving is not None and len(chosen) != serving:
        raise RefusedFileError(
            f"{log.name} has the joules of {len(chosen)} GPUs, but the deployment has {serving}: "
            "say which served with --gpus-active."
        )
    active_j = sum(item.joules[label] for label in chosen)
    if not active_j > 0:
        raise RefusedFileError(
            f"{log.name}: the window {item.name!r} holds 0 J, which is a meter that gave nothing."
        )
    return Joined(
        active_j=active_j,
        node_j=sum(item.joules.values()),
        wall_j=None,
        active=tuple(chosen),
        listed=labels,
        covered=len(labels),
        mean_w=active_j / item.elapsed_s,
        counted=True,
        notes=(*log.notes, *notes),
    )


def _window_of(log: PowerLog, window: Window, options: JoinOptions) -> EnergyWindow:
    duration_s = window.end_s - window.start_s
    names = [item.name for item in log.windows]
    if options.power_window is not None:
        found = [item for item in log.windows if item.name == options.power_window]
        if len(found) != 1:
            raise RefusedFileError(
                f"{log.name} has {len(found)} windows named {options.power_window!r}: it has "
                f"{', '.join(names[:8])}."
            )
        return found[0]
    windows = _at_its_time(log, window, duration_s)
    if len(windows) == 1:
        return windows[0]
    near = [
        item
        for item in windows
        if abs(item.elapsed_s - duration_s) <= WINDOW_SLACK_SHARE * duration_s
    ]
    if len(near) != 1:
        raise RefusedFileError(
            f"{log.name} has {len(log.windows)} windows of which {len(near)} took as long as the "
            f"benchmark ({duration_s:.1f} s): say which is its own with --power-window, as in "
            f"--power-window {names[0]}."
        )
    return near[0]


def _at_its_time(log: PowerLog, window: Window, duration_s: float) -> list[EnergyWindow]:
    """Keep the windows that ended when the benchmark did, where both say when by one clock."""
    if log.clock is not window.clock or any(item.end_s is None for item in log.windows):
        return list(log.windows)
    apart = [float(item.end_s or 0.0) - window.end_s for item in log.windows]
    slack = LARGEST_OFFSET_S + window.slack_s + WINDOW_SLACK_SHARE * duration_s
    found = [w for w, by in zip(log.windows, apart, strict=True) if abs(by) <= slack]
    if not found:
        place = int(np.argmin(np.abs(apart)))
        nearest, when = log.windows[place].name, "after" if apart[place] > 0 else "before"
        raise RefusedFileError(
            f"{log.name}: none of its windows ended when the benchmark did; the nearest, "
            f"{nearest!r}, ended {abs(apart[place]):.0f} s {when} it: if it is the benchmark's "
            f"own, say --power-window {nearest}."
        )
    return found
