"""How many replicas of each layout to try: every number that fits, of very many those that may win.

A replica sees the rate divided by their number and nothing else of the others, so the fewest that
meet the limits are looked for by halving, all layouts and batch limits at once. Fewer joules a
request come with fewer replicas, which are fuller: those around the fewest are candidates, and
some far off, for limits that are relaxed and for the front.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from energylens.cases import Cases, IntArray
from energylens.dataset import freed_columns
from energylens.decisions import Enough, LatencyLimit, Load, Running
from energylens.records import Boundary, Configuration
from energylens.scenarios import DEGREES, Candidates, Scenario
from energylens.solving import Engine, Prepared, Spanned

EVERY = 16  # GPUs up to which every number of replicas is tried at every batch limit
MOST = 4096  # replicas that are ever tried
NEAR = (-1, 0, 1, 2)  # numbers tried around the fewest that meet
FAR = 4  # numbers tried between the fewest that keep up and those, and beyond
WIDE = 4  # times the fewest that meet by their means, beyond which odds are not looked for
LAYOUT_GPUS = 64  # of one replica, that what would do is looked for among


def span(
    engine: Engine,
    scenario: Scenario,
    load: Load,
    limits: Sequence[LatencyLimit],
    *,
    meet: float,
    odds: bool,
    choose: Sequence[str],
    candidates: Candidates | None,
    batch_limits: Sequence[float],
    cases: Cases | None,
    current: Configuration | Running | None,
) -> Spanned | None:
    """Prepare what the knobs of a question span, as many replicas as the load may want.

    Parameters are those of :func:`energylens.deciding.decide`. None where nothing fits in memory.
    """
    listed, most = candidates or Candidates(), scenario.gpu_limit
    freed = freed_columns(choose)
    counts = listed.data_parallel
    if not counts and (most <= EVERY or "batch_size" not in freed):
        counts = tuple(range(1, min(most, MOST) + 1))
    if counts or cases is not None or "data_parallel" not in freed:
        return engine.span(
            scenario,
            load.lengths,
            choose=choose,
            candidates=replace(listed, data_parallel=counts),
            batch_limits=batch_limits,
            cases=cases,
            current=current,
        )
    one = engine.span(
        scenario,
        load.lengths,
        choose=choose,
        candidates=replace(listed, data_parallel=DEGREES),
        batch_limits=batch_limits,
    )
    if one is None:
        return None
    every = one.candidates.cases
    # Experts spread over replicas make one engine of them: those are tried as listed.
    alone = np.flatnonzero((every.data_parallel == 1) & (every.expert_parallel == 1))
    base = one.candidates.take(alone)
    rows, count = _worth_trying(engine, base, load, limits, meet, most, odds=odds)
    grown = base.cases.take(rows)
    grown = grown.replace(
        data_parallel=count.astype(np.float64), batch_size=base.slots[rows] * count
    )
    spread = np.flatnonzero(every.expert_parallel > 1)
    held = np.concatenate([base.slots[rows], one.candidates.slots[spread]])
    pairs = np.concatenate(
        [base.layout[rows] * (MOST + 1) + count, -1 - one.candidates.layout[spread]]
    )
    return engine.spanned(
        Cases.concatenate([grown, every.take(spread)]),
        held,
        np.unique(pairs, return_inverse=True)[1],
        scenario,
        load.lengths,
        current,
        one.ruled_out,
    )


def fewest(
    engine: Engine,
    one: Prepared,
    load: Load,
    limits: Sequence[LatencyLimit],
    meet: float,
    low: IntArray,
    high: IntArray,
    *,
    odds: bool,
) -> IntArray:
    """Fewest replicas of each of n cases that meet the limits, between ``low`` and ``high``.

    ``high`` + 1 where none of them meets. More replicas meet where fewer do.
    """
    missing, meeting = low - 1, high + 1
    while len(rows := np.flatnonzero(meeting - missing > 1)):
        middle = (missing[rows] + meeting[rows]) // 2
        solved = engine.solve(
            one.take(rows), load, limits, odds=odds, rates_per_s=load.rate_per_s / middle
        )
        met = solved.meets(limits, meet)
        meeting[rows] = np.where(met, middle, meeting[rows])
        missing[rows] = np.where(met, missing[rows], middle)
    return meeting


def _keeping_up(engine: Engine, one: Prepared, load: Load) -> IntArray:
    """Fewest replicas that keep up, by the rate at which one is full; shape (n,)."""
    state = engine.solve(one, load, (), odds=False).state
    count: IntArray = np.floor(load.rate_per_s / state.saturation_rate_per_s).astype(np.intp) + 1
    return count


def _fewest_meeting(
    engine: Engine,
    one: Prepared,
    load: Load,
    limits: Sequence[LatencyLimit],
    meet: float,
    most: IntArray,
    *,
    odds: bool,
) -> IntArray:
    """Fewest replicas likely enough to meet, ``most`` + 1 where none; by the means first."""
    low = np.minimum(_keeping_up(engine, one, load), most + 1)
    count = fewest(engine, one, load, limits, meet, low, most, odds=False)
    if not odds:
        return count
    high = np.minimum(most, WIDE * count + WIDE)
    surely = fewest(engine, one, load, limits, meet, low, high, odds=True)
    return np.where(surely > high, most + 1, surely)


def _worth_trying(
    engine: Engine,
    one: Prepared,
    load: Load,
    limits: Sequence[LatencyLimit],
    meet: float,
    gpus: int,
    *,
    odds: bool,
) -> tuple[IntArray, IntArray]:
    """Rows of single replicas, and how many of each to try; both of shape (m,)."""
    most = np.minimum(gpus // one.cases.occupied_gpus.astype(np.intp), MOST)
    least = np.minimum(_keeping_up(engine, one, load), most)
    met = np.minimum(_fewest_meeting(engine, one, load, limits, meet, most, odds=odds), most)
    share = np.linspace(0.0, 1.0, FAR + 1)
    below = least[:, None] * (met / least)[:, None] ** share
    beyond = met[:, None] * (most / met)[:, None] ** share
    tried = np.concatenate([met[:, None] + np.array(NEAR), np.rint(below), np.rint(beyond)], axis=1)
    tried = np.clip(tried, least[:, None], most[:, None]).astype(np.intp)
    rows = np.repeat(np.arange(len(one)), tried.shape[1])
    pairs = np.unique(np.column_stack([rows, tried.reshape(-1)]), axis=0)
    return pairs[:, 0], pairs[:, 1]


def enough(
    engine: Engine,
    scenario: Scenario,
    load: Load,
    limits: Sequence[LatencyLimit],
    *,
    meet: float,
    choose: Sequence[str],
    candidates: Candidates | None,
    batch_limits: Sequence[float],
    odds: bool,
) -> Enough | None:
    """Find the fewest GPUs that meet the limits, beyond those allowed; None where none do.

    Parameters are those of :func:`energylens.deciding.decide`.
    """
    freed = freed_columns(choose)
    wide = replace(
        scenario,
        max_gpus=max(scenario.gpu_limit, LAYOUT_GPUS),
        boundary=Boundary.ACTIVE_GPUS,
        node_gpus=None,
    )
    grows = "data_parallel" in freed and "batch_size" in freed
    listed = candidates or Candidates()
    one = engine.span(
        wide,
        load.lengths,
        choose=choose,
        candidates=replace(listed, data_parallel=(1,)) if grows else listed,
        batch_limits=batch_limits,
    )
    if one is None:
        return None
    each = one.candidates.cases.occupied_gpus.astype(np.intp)
    most = np.full(len(one.candidates), MOST if grows else 1, dtype=np.intp)
    if grows:
        count = _fewest_meeting(engine, one.candidates, load, limits, meet, most, odds=False)
    else:
        met = engine.solve(one.candidates, load, limits, odds=odds).meets(limits, meet)
        count = np.where(met, 1, 2).astype(np.intp)
    near = np.argsort(np.where(count > most, np.inf, each * count), kind="stable")[:64]
    near = near[count[near] <= most[near]]
    if not len(near):
        return None
    if grows and odds:
        count[near] = _fewest_meeting(
            engine, one.candidates.take(near), load, limits, meet, most[near], odds=True
        )
        near = near[count[near] <= most[near]]
        if not len(near):
            return None
    best = near[np.argmin(each[near] * count[near])]
    number = int(count[best])
    name = one.candidates.take(best[None]).names[0].partition(", batch")[0]
    return Enough(gpus=int(each[best]) * number, name=f"{number} x {name}" if number > 1 else name)
