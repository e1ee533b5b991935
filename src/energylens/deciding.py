"""The fewest joules within latency limits, at a rate: enumerate, solve, judge the odds, rank.

Every configuration that the knobs span is put under the load (``service.py``). The odds that it
meets its limits come from how far the time law was off on rows left out: all seconds of a
deployment are taken longer or shorter by one factor at a time, the queue is solved anew (a slower
engine is also a fuller one), and what the closed form of the queue itself is off by is added.
Of the configurations likely enough to meet, the one with the fewest joules a request is best.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from energylens.capacity import format_problem, layout_problem
from energylens.cases import BoolArray, Cases, FloatArray, IntArray
from energylens.decisions import (
    Beyond,
    Decision,
    Entry,
    LatencyLimit,
    Load,
    MeetPrice,
    Running,
    Shadow,
)
from energylens.errors import InfeasibleError, UsageError
from energylens.records import Configuration
from energylens.replicas import enough, span
from energylens.scenarios import Candidates, Scenario
from energylens.selection import SAMPLES, probabilities_of_best
from energylens.solving import (
    BATCH_LIMITS,
    DEFAULT_CHOOSE,
    RELAXED_RATIOS,
    Engine,
    Prepared,
    Solved,
)

MEET = 0.9  # probability with which limits must be met, unless said
SOLVED_AT_ONCE = 2_000  # configurations that are all solved; of more, those that may matter
ALIKE_RATIO = 1e-3  # joules so close are the same: the larger batch limit is the safer one
TIED_RATIO = 1e-6  # joules so close leave layouts to their odds, GPUs and times, as at a power cap
NEAR_RATIO = 0.05  # beyond a limit by as much more is farther from it
ODDS_DIGITS = 2  # to which odds are compared where something else may decide
COMPARED = 16  # entries of which it is said how likely they take the fewest joules
SAVING_ENDS = (0.1, 0.9)
MEETS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)  # probabilities that are tried in place of the one asked
WORTH_RATIO = 0.01  # joules that a relaxed limit must save to be worth a word
NEEDLESS_FACTOR = 3.0  # configurations over a limit by more are not looked at again
RATES = 32  # at which the largest sustainable rate is looked for at once
RATE_RATIO = 1.005  # how close it is found


def decide(
    engine: Engine,
    scenario: Scenario,
    load: Load,
    limits: Sequence[LatencyLimit] = (),
    *,
    meet: float = MEET,
    choose: Sequence[str] = DEFAULT_CHOOSE,
    candidates: Candidates | None = None,
    batch_limits: Sequence[float] = BATCH_LIMITS,
    cases: Cases | None = None,
    current: Configuration | Running | None = None,
    front: bool = False,
    odds: bool = True,
    compared: bool = False,
) -> Decision:
    """Find the configuration with the fewest joules a request that meets the limits.

    Parameters
    ----------
    scenario : Scenario
        What is served, and the knobs that are not free.
    meet : float
        Probability with which all limits together must be met.
    choose : sequence of str
        The free knobs.
    candidates : Candidates, optional
        Values of the free knobs besides the batch limit; as many replicas as fit unless listed.
    batch_limits : sequence of float
        Values of the batch limit of one replica.
    cases : Cases, optional
        The configurations, in place of what the knobs span.
    current : Configuration or Running, optional
        What runs today: savings are against it, and it is a candidate where GPUs allow and it is
        in a number format that is asked about.
    front : bool
        Whether to list the energy-latency front.
    odds : bool
        Without, what meets its limits by its means counts as meeting them: a tenth of the work.
    compared : bool
        Whether to say how likely each entry takes the fewest joules, and between which bounds
        the saving against ``current`` lies.

    Raises
    ------
    UsageError
        If ``meet`` is no probability.
    InfeasibleError
        If no configuration fits in memory.
    """
    if not 0.0 < meet < 1.0:
        raise UsageError(f"the probability of meeting must lie between 0 and 1, not {meet!r}")
    workload = scenario.workload
    if not np.isclose(workload.input_tokens, load.lengths.input_tokens):
        raise UsageError(
            f"the prompts of the load ({load.lengths.input_tokens:g} tokens) must be those of the "
            f"scenario ({workload.input_tokens:g}), images and frames included"
        )
    limits = tuple(limits)
    spanned = span(
        engine,
        scenario,
        load,
        limits,
        meet=meet,
        odds=odds,
        choose=choose,
        candidates=candidates,
        batch_limits=batch_limits,
        cases=cases,
        current=current,
    )
    if spanned is None:
        # What not even one GPU can lay out, memory aside, no layout can.
        refused = layout_problem(scenario.llm, scenario.precision)
        if not {"gpu", "precision"} & set(choose):
            refused = format_problem(scenario.gpu, scenario.precision) or refused
        if refused is not None:
            raise InfeasibleError(f"{scenario.describe()}: {refused}.")
        raise InfeasibleError(
            f"{scenario.describe()}: no configuration has room in memory for one request. Allow "
            "more GPUs, or weights in fewer bits."
        )
    considered = len(spanned.candidates)
    if odds and considered > SOLVED_AT_ONCE:
        spanned = spanned.take(_promising(engine, spanned.candidates, load, limits))
    own = spanned.candidates
    together = engine.solve(spanned.together, load, limits, odds=odds)
    solved = together.of(own)
    now = spanned.current
    # Joules of what does not serve the load within its limits are no measure of a saving.
    serves = now is not None and bool(together.meets(limits, meet)[now])
    current_j = float(together.energy_j[now]) if now is not None and serves else None
    likely, _ = solved.probabilities(limits)
    meets = solved.meets(limits, meet)
    order = _ranked(solved, meets, likely, now)
    hopeless = ~np.isin(solved.layout, solved.layout[meets])
    near = _of_layouts(solved, _nearest(solved, limits, likely), hopeless)[:5]
    best = _front(solved) if front else np.zeros(0, dtype=np.intp)
    last = np.array([] if now is None else [now], dtype=np.intp)
    rows = np.concatenate([order, near, best, last])
    made = engine.entries(together, rows, limits, current_j)
    entries, rest = made[: len(order)], made[len(order) :]
    saved = None
    if compared and len(order):
        entries, saved = _compared(engine, together, entries, order, last[:serves])
    today = None if current is None else replace(made[-1], row=-1, saving_ratio=None)
    fewest = None
    if len(order):
        gpus = solved.cases.occupied_gpus[order]
        fewest = entries[int(np.argmin(gpus))]
    running = Running(configuration=current) if isinstance(current, Configuration) else current
    notes: tuple[str, ...] = ()
    if running is not None and today is not None and now is not None:
        notes = (*running.notes, *_of_today(today, float(together.prepared.slots[now]), solved))
    shadows = _shadows(engine, solved, limits, meet, entries) if odds else ()
    prices = _meet_prices(engine, solved, limits, meet, entries) if odds else ()
    would_do = None
    if not len(order) and cases is None:
        would_do = enough(
            engine,
            scenario,
            load,
            limits,
            meet=meet,
            choose=choose,
            candidates=candidates,
            batch_limits=batch_limits,
            odds=odds,
        )
    return Decision(
        scenario=scenario,
        load=load,
        limits=limits,
        meet=meet,
        entries=entries,
        missed=rest[: len(near)],
        current=today,
        fewest_gpus=fewest,
        shadows=shadows,
        breaks_at_per_s=(
            breaks_at(engine, own.take(order[:1]), load, limits, meet)
            if len(order) and odds
            else None
        ),
        front=rest[len(near) : len(near) + len(best)],
        considered=considered,
        ruled_out=spanned.ruled_out,
        certain=odds,
        enough=would_do,
        solved=solved,
        meet_prices=prices,
        beyond=_beyond(engine, solved, limits, meets, entries) if odds and limits else None,
        saving_interval=saved,
        running=running,
        keeps=bool(len(order)) and int(order[0]) == now,
        notes=notes,
    )


def _of_today(today: Entry, held: float, solved: Solved) -> Iterator[str]:
    """Say where what runs today is no candidate, and where memory sets its limit."""
    cases = solved.cases
    formats = {cases.precisions[i].id for i in np.unique(cases.precision_index)}
    if today.precision not in formats:
        yield (
            f"What runs today is in {today.precision}, and the choice in "
            f"{' or '.join(sorted(formats))}."
        )
    if held < today.batch_limit * (1.0 - ALIKE_RATIO):
        yield (
            f"What runs today allows {today.batch_limit:g} sequences in a replica, and its memory "
            f"holds {int(held)} of such requests."
        )


def _compared(
    engine: Engine,
    together: Solved,
    entries: tuple[Entry, ...],
    order: IntArray,
    last: IntArray,
) -> tuple[tuple[Entry, ...], tuple[float, float] | None]:
    """Say of the first entries how likely each takes the fewest joules, and what today's would."""
    first = order[:COMPARED]
    rows = np.concatenate([first, last])
    cases = together.cases.take(rows)
    running = np.maximum(together.state.mean_batch_size[rows], 1.0) * cases.data_parallel
    full = cases.replace(mean_batch_size=running)
    draws = engine.energy.sample_energy_j(full, SAMPLES, 0) / engine.energy.predict_energy_j(full)
    draws = draws * together.energy_j[rows]
    own = draws[:, : len(first)]
    shares = probabilities_of_best(own).tolist()
    known = tuple(
        replace(entry, probability_best_ratio=share)
        for entry, share in zip(entries, shares, strict=False)
    )
    saved = None
    if len(last):
        low, high = np.quantile(1.0 - own[:, 0] / draws[:, -1], SAVING_ENDS)
        saved = float(low), float(high)
    return (*known, *entries[len(first) :]), saved


def _meet_prices(
    engine: Engine,
    solved: Solved,
    limits: tuple[LatencyLimit, ...],
    meet: float,
    entries: Sequence[Entry],
) -> tuple[MeetPrice, ...]:
    """Find the nearest lower probability that would save something, the next that would cost."""
    if not entries or not limits:
        return ()
    odds, _ = solved.probabilities(limits)
    prices = []
    lower, higher = (sorted(m for m in MEETS if m < meet)[::-1], [m for m in MEETS if m > meet])
    for some, sign in ((lower, 1.0), (higher, -1.0)):
        for asked in some:
            order = _ranked(solved, (odds >= asked) & ~solved.state.saturated, odds)
            if not len(order):
                prices.append(MeetPrice(meet=asked, saving_ratio=None, entry=None))
                break
            saved = 1.0 - float(solved.energy_j[order[0]]) / entries[0].energy_per_request_j
            if sign * saved >= WORTH_RATIO:
                then = engine.entries(solved, order[:1], limits)[0]
                prices.append(MeetPrice(meet=asked, saving_ratio=saved, entry=then))
                break
    return tuple(prices)


def _beyond(
    engine: Engine,
    solved: Solved,
    limits: tuple[LatencyLimit, ...],
    meets: BoolArray,
    entries: Sequence[Entry],
) -> Beyond | None:
    """Find what takes fewer joules, keeps up by its means, and comes nearest to meeting."""
    if not entries:
        return None
    open_ = np.flatnonzero(~meets & ~solved.state.saturated)
    open_ = open_[solved.energy_j[open_] < (1.0 - WORTH_RATIO) * entries[0].energy_per_request_j]
    if not len(open_):
        return None
    ratio = RELAXED_RATIOS[-1]
    relaxed = [replace(limit, seconds=limit.seconds * ratio) for limit in limits]
    odds = solved.probabilities(relaxed)[0]
    row = open_[np.lexsort((solved.energy_j[open_], -odds[open_].round(2)))[:1]]
    return Beyond(
        entry=engine.entries(solved, row, limits)[0],
        relaxed_ratio=ratio,
        relaxed_odds=float(odds[row[0]]),
    )


def _promising(
    engine: Engine, prepared: Prepared, load: Load, limits: Sequence[LatencyLimit]
) -> IntArray:
    """Rows of very many cases: all that meet the limits by their means, and those not far off.

    Of the latter, which a limit would have to be relaxed for, those with the fewest joules.
    """
    solved = engine.solve(prepared, load, limits, odds=False)
    meets = ~solved.state.saturated
    near = meets.copy()
    for limit, value in zip(limits, solved.values[:, 0], strict=True):
        meets &= value <= limit.seconds
        near &= value <= NEEDLESS_FACTOR * limit.seconds
    order = np.argsort(solved.energy_j, kind="stable")
    rows = np.concatenate([order[meets[order]], order[(near & ~meets)[order]][:SOLVED_AT_ONCE]])
    return rows if len(rows) else np.argsort(solved.state.tpot_s)[:SOLVED_AT_ONCE]


def _of_layouts(solved: Solved, order: IntArray, among: BoolArray) -> IntArray:
    """Keep the first row of each layout, in order."""
    rows = order[among[order]]
    _, first = np.unique(solved.layout[rows], return_index=True)
    return rows[np.sort(first)]


def _nearest(solved: Solved, limits: Sequence[LatencyLimit], odds: FloatArray) -> IntArray:
    """All rows, likeliest to meet the limits first.

    Where odds are nearly equal what keeps up comes first, then what exceeds the limit that it
    exceeds most by the least, then what exceeds all of them by less, and fewest joules.
    """
    late = np.zeros((len(limits) + 1, len(solved.cases)))  # the last: no limit
    for i, limit in enumerate(limits):
        late[i] = np.log(np.maximum(limit.value(solved.state) / limit.seconds, 1.0))
    worst, all_ = late.max(axis=0), late.sum(axis=0).round(2)
    likely = odds.round(ODDS_DIGITS) if solved.certain else np.zeros(len(odds))
    saturated, cases = solved.state.saturated, solved.cases
    first = worst[np.lexsort((worst, saturated, -likely))[0]]
    steps = np.floor((worst - (first if np.isfinite(first) else 0.0)) / NEAR_RATIO)
    joules = np.log(solved.energy_j).round(3)
    return np.lexsort((-cases.batch_size, joules, all_, steps, saturated, -likely))


def _ranked(solved: Solved, meets: BoolArray, odds: FloatArray, now: int | None = None) -> IntArray:
    """Best row of each layout, fewest joules first; of joules alike the larger batch limit.

    Layouts whose joules are tied go by their odds, then fewer GPUs, then shorter requests. What
    runs today comes before what takes as many joules.
    """
    joules, cases, layout = solved.energy_j, solved.cases, solved.layout
    least = np.full(int(layout.max()) + 1, np.inf)
    np.minimum.at(least, layout[meets], joules[meets])
    alike = meets & (joules <= least[layout] * (1.0 + ALIKE_RATIO))
    order = np.lexsort((-cases.batch_size, cases.occupied_gpus, least[layout]))
    order = _of_layouts(solved, order, alike)
    if len(order):
        tied = np.cumsum(np.diff(np.log(least[layout[order]]), prepend=-np.inf) > TIED_RATIO)
        likely = odds[order].round(ODDS_DIGITS) if solved.certain else np.zeros(len(order))
        slow, gpus = solved.state.request_latency_s[order], cases.occupied_gpus[order]
        order = order[np.lexsort((slow, gpus, -likely, tied))]
    stays = now is not None and now < len(meets) and bool(meets[now])
    if stays and joules[now] <= least.min() * (1.0 + ALIKE_RATIO):
        order = np.concatenate([[now], order[layout[order] != layout[now]]])
    return order


def _shadows(
    engine: Engine,
    solved: Solved,
    limits: tuple[LatencyLimit, ...],
    meet: float,
    entries: Sequence[Entry],
) -> tuple[Shadow, ...]:
    """The least that each limit must be relaxed by to save something, up to three times."""
    if not entries:
        return ()
    shadows = []
    for i, limit in enumerate(limits):
        for ratio in RELAXED_RATIOS:
            relaxed = replace(limit, seconds=limit.seconds * ratio)
            changed = (*limits[:i], relaxed, *limits[i + 1 :])
            odds, _ = solved.probabilities(changed)
            order = _ranked(solved, (odds >= meet) & ~solved.state.saturated, odds)
            saved = 1.0 - float(solved.energy_j[order[0]]) / entries[0].energy_per_request_j
            if saved >= WORTH_RATIO or ratio == RELAXED_RATIOS[-1]:
                then = engine.entries(solved, order[:1], changed)[0]
                shadows.append(
                    Shadow(
                        limit=limit,
                        relaxed_s=relaxed.seconds,
                        saving_ratio=max(saved, 0.0),
                        entry=then,
                    )
                )
                break
    return tuple(shadows)


def breaks_at(
    engine: Engine, case: Cases | Prepared, load: Load, limits: Sequence[LatencyLimit], meet: float
) -> float | None:
    """Find the largest rate at which one case meets the limits."""
    one = case if isinstance(case, Prepared) else engine.prepare(case, load.lengths)
    low = load.rate_per_s
    state = engine.solve(one, load, (), odds=False).state
    high = float(state.saturation_rate_per_s[0] * one.cases.data_parallel[0])
    if high <= low:
        return None
    many = one.take(np.zeros(RATES, dtype=np.intp))
    while high / low >= RATE_RATIO:
        rates = np.geomspace(low, high, RATES + 1)[1:]
        met = engine.solve(many, load, limits, rates_per_s=rates).meets(limits, meet)
        first = int(np.argmin(met)) if not met.all() else RATES
        low, high = (
            (float(rates[k]) for k in (first - 1, min(first, RATES - 1)))
            if first
            else (low, float(rates[0]))
        )
    return low


def _front(solved: Solved) -> IntArray:
    """Rows that no other beats in both joules and time per token."""
    order = np.lexsort((solved.energy_j, solved.state.tpot_s))
    order = order[~solved.state.saturated[order]]
    joules = solved.energy_j[order]
    kept, least = [], np.inf
    for row, value in zip(order.tolist(), joules.tolist(), strict=True):
        if value < least * (1.0 - ALIKE_RATIO):
            least = value
            kept.append(row)
    return np.array(kept, dtype=np.intp)
