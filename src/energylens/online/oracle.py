"""The least joules with the future known: a dynamic programme over the rehearsal itself.

Stages are intervals, states are (replicas, power cap); of all ways to a state the one with the
fewest simulated joules, late requests at a price, is kept as the simulated fleet that it left.
Actions and their costs are those of every policy, because each stage is lived by the same
simulation. States keep one past each, and of them the most promising, so that the programme
is a search; what any policy did is an answer with the future known, too, and the best that
meets the share asked for is taken. So no policy beats it at that share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from energylens.online.fleet import Fleet
from energylens.online.knowledge import Knowledge
from energylens.online.policies import Ours, Plan
from energylens.online.rehearsal import Action, Rehearsal, World, outcome
from energylens.online.trace import Trace

STAGE_S = 60.0
BEAM = 4  # states that are kept at each stage
LATE_PRICE = 30.0  # joules of so many mean requests, for a request beyond those that may be late


def oracle(
    fleet: Fleet,
    trace: Trace,
    known: Knowledge,
    others: Sequence[Rehearsal] = (),
    *,
    beam: int = BEAM,
    share: float | None = None,
) -> Rehearsal:
    """Find the actions with the fewest simulated joules, the whole trace known.

    Parameters
    ----------
    fleet : Fleet
    trace : Trace
    known : Knowledge
        Of the layout and fills to try.
    others : sequence of Rehearsal
        What policies did; the best of them that meets the share bounds the answer.
    beam : int
        States kept at each stage.
    share : float, optional
        Of requests within limits; that of the fleet's file by default.

    Returns
    -------
    Rehearsal
        With ``policy`` ``oracle``.
    """
    share = fleet.file.limits.share if share is None else share
    planner = Ours(fleet, known, Plan.of(trace))
    found = [_search(fleet, trace, planner, share, beam), *others]
    good = [r for r in found if r.within_ratio >= share]
    best = (
        min(good, key=lambda r: r.simulated_energy_j)
        if good
        else max(found, key=lambda r: r.within_ratio)
    )
    return replace(best, policy="oracle")


def _search(fleet: Fleet, trace: Trace, planner: Ours, share: float, beam: int) -> Rehearsal:
    places = fleet.most_replicas(planner.tensor_parallel)
    stage = max(STAGE_S, fleet.file.control.interval_s)
    caps = list(planner.known.caps_w)
    starts = [
        planner._with(
            replace(planner._start, power_cap_w=cap), k, trace.rate_per_s, planner.plan.peak_per_s
        )
        for k in range(1, places + 1)
        for cap in (caps if places <= 2 else caps[:1])
    ]
    states: list[tuple[World, list[tuple[float, Action]], float]] = [
        (World(fleet, trace, planner.tensor_parallel, a), [(0.0, a)], 0.0) for a in starts
    ]
    edges = np.append(np.arange(stage, trace.duration_s, stage), trace.duration_s + 1e-6)
    for number, edge in enumerate(edges):
        best: dict[tuple[int, float | None], tuple[float, World, list[tuple[float, Action]], float]]
        best = {}
        begin = 0.0 if number == 0 else float(edges[number - 1])
        rate = float(np.diff(np.searchsorted(trace.arrivals_s, (begin, edge)))[0])
        rate = max(rate / (float(edge) - begin), 1e-3)
        for world, actions, awake_s in states:
            for action in _next(planner, world.action, caps, places, rate, number):
                after = world.copy()
                taken = actions
                if action != after.action:
                    after.act(action)
                    taken = [*actions, (after.now_s, action)]
                after.live(float(edge))
                joules = sum(after.joules().values())
                late = after.late()
                allowed = (1.0 - share) * after.next
                price = LATE_PRICE * joules / max(after.next, 1)
                score = joules + price * max(late - allowed, 0.0) + 0.05 * price * late
                key = (action.replicas, action.power_cap_w)
                spent = awake_s + action.replicas * (float(edge) - begin)
                if key not in best or score < best[key][0]:
                    best[key] = (score, after, taken, spent)
        kept = sorted(best.values(), key=lambda x: x[0])[:beam]
        states = [(world, actions, spent) for _, world, actions, spent in kept]
    ends = [
        outcome(world, "oracle", actions, spent / trace.duration_s)
        for world, actions, spent in states
    ]
    good = [r for r in ends if r.within_ratio >= share]
    if good:
        return min(good, key=lambda r: r.simulated_energy_j)
    return max(ends, key=lambda r: r.within_ratio)


def _next(
    planner: Ours, action: Action, caps: list[float | None], places: int, rate: float, number: int
) -> list[Action]:
    """List what may be done next: a replica more or less, the next cap, or nothing."""
    if number == 0:
        return [action]
    at = caps.index(action.power_cap_w)
    found = []
    for k in (action.replicas - 1, action.replicas, action.replicas + 1):
        if not 1 <= k <= places:
            continue
        for cap in (
            {at, min(at + 1, len(caps) - 1), max(at - 1, 0)} if k == action.replicas else {at}
        ):
            found.append(planner._with(replace(action, power_cap_w=caps[cap]), k, rate, 1.5 * rate))
    return found
