"""The least joules with the future known: a dynamic programme over positions of the fleet.

Time goes in intervals between decisions. A position is a layout and its replicas that serve; from
one interval to the next replicas may be stopped, started (they serve after whole intervals, and
one start is under way at a time) or swapped for another layout, at the costs of every policy. How
requests are spread, the power cap and the clock are free to change at any interval.

What an interval takes in a position, in joules and late requests, is told by a table: first by
the closed form at the rate that came, then as the rehearsal of each plan found it. A plan that is
best by the table is rehearsed, the table corrected, and so on until the plan comes again or the
rounds end; late requests have the price at which the plan meets the share. The plan with the
fewest simulated joules of those rehearsed that meet it is the answer. The programme is exact for
its table (``plan``); what carries over from one interval to the next, requests in flight, is in
the table only as it was met, which is why the bound holds to a discretisation that the tests and
the study state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import ceil

import numpy as np

from energylens.cases import FloatArray, IntArray
from energylens.online.fleet import Fleet, Setting
from energylens.online.knowledge import Knowledge, Known
from energylens.online.ours import Ours
from energylens.online.plans import Plan
from energylens.online.rehearsal import Action, Rehearsal, Seen, rehearse
from energylens.online.trace import Trace

ROUNDS = 12
MOST_PLANS = 4  # times the rounds, that are rehearsed at most
AGAIN = 6  # plans in a row that have been rehearsed before, after which nothing new is expected
AIM, STEPS = 0.95, (0.5, 1.5)  # of what may be late that is aimed at; how far the aim moves at once
LEAST_MOST = np.array([0.02, 20.0])  # of what may be late, that the table is asked to allow
BISECTIONS = 12
HIGHEST_PRICE = 1e3  # of a late request, in mean requests
FILL_RATIOS = (0.7, 1.0, 1.3)  # of what is in flight where the closed form is sure of limits
ALIKE, DOUBT = 0.1, 1.0  # width of loads that are alike, in logs; weight of not knowing
MARGIN = 1.15  # of the rate at which it is sure, up to which nothing is late, before it is tried


@dataclass(frozen=True, kw_only=True)
class Moves:
    """Ways from one position to another, n positions and m states.

    States are positions with what is starting; the first n are positions where nothing is.

    Attributes
    ----------
    serving : ndarray of int, shape (m,)
        Position that serves in each state.
    following : ndarray of int, shape (m,)
        State one interval later if nothing is decided.
    own : ndarray, shape (m,)
        Joules of an interval in a state, beside those of its position.
    step : ndarray, shape (m, m)
        Joules of going over from one state to another at once; infinite where it cannot be.
    swaps : ndarray of int, shape (k, 4)
        From, to, intervals it takes, position that serves meanwhile.
    swap_j : ndarray, shape (k,)
    """

    serving: IntArray
    following: IntArray
    own: FloatArray
    step: FloatArray
    swaps: IntArray
    swap_j: FloatArray


def plan(costs: FloatArray, moves: Moves) -> tuple[float, list[tuple[int, int]]]:
    """Find the cheapest course of states: an exact dynamic programme.

    Parameters
    ----------
    costs : ndarray, shape (t, n)
        Of each interval in each position.

    Returns
    -------
    float
        Cost of the course.
    list of (int, int)
        Intervals at which something is decided, and the state then aimed at.
    """
    t, n = costs.shape
    m = len(moves.serving)
    value = np.full((t + 1, m), np.inf)
    value[0, :n] = 0.0  # what holds at the beginning is free
    before = np.full((t + 1, m, 3), -1, dtype=np.intp)  # interval, state, state gone over to
    total = np.concatenate([np.zeros((1, n)), np.cumsum(costs, axis=0)])
    source, target, spans, meanwhile = moves.swaps.T
    for at in range(t):
        ways = value[at][:, None] + moves.step
        origin = ways.argmin(axis=0)
        reached = ways[origin, np.arange(m)] + costs[at, moves.serving] + moves.own
        # Several states may be followed by one: the cheapest is written last.
        order = np.argsort(-reached, kind="stable")
        after = moves.following[order]
        better = reached[order] < value[at + 1, after]
        order, after = order[better], after[better]
        value[at + 1, after] = reached[order]
        before[at + 1, after, 0] = at
        before[at + 1, after, 1] = origin[order]
        before[at + 1, after, 2] = order
        if at == 0 or not len(spans):
            continue
        ends = np.minimum(at + spans, t)
        cost = value[at, source] + total[ends, meanwhile] - total[at, meanwhile] + moves.swap_j
        for k in np.flatnonzero(cost < value[ends, target]):
            if cost[k] < value[ends[k], target[k]]:
                value[ends[k], target[k]] = cost[k]
                before[ends[k], target[k]] = at, source[k], -2 - target[k]
    last = int(value[t].argmin())
    found, now, state = [], t, last
    while now > 0:
        at, origin, gone = before[now, state].tolist()
        found.append((at, gone))
        now, state = at, origin
    return float(value[t, last]), found[::-1]


@dataclass(frozen=True, kw_only=True)
class _Mode:
    """How a layout serves: what may change at any interval at no cost."""

    setting: Setting
    fill: int | None
    hold_s: float
    batch_limit: int
    known: Known


@dataclass(eq=False)
class _Table:
    """Joules and late requests of each interval, by position and mode: guessed, then as met."""

    guess_j: FloatArray  # (p, modes, t); infinite where a layout has fewer modes
    guess_late: FloatArray
    load: FloatArray  # (p, modes, t): of what the closed form is sure of
    came: FloatArray  # (t,)
    ranked: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]] = ()
    # Positions of each layout, most replicas first, and modes that differ by speed, fastest first:
    # what was late with more, or faster, is late with less.
    met_j: FloatArray = field(init=False)
    met_late: FloatArray = field(init=False)

    def __post_init__(self) -> None:
        self.met_j = np.full(self.guess_j.shape, np.nan)
        self.met_late = np.full(self.guess_j.shape, np.nan)

    def now(self) -> tuple[FloatArray, FloatArray]:
        """As it is known so far: guesses by the ratio to what was met in the same position."""
        met = np.isfinite(self.met_j)
        joules = self.guess_j.copy()
        sums = np.where(met, self.met_j, 0.0).sum(axis=(1, 2))
        guesses = np.where(met, self.guess_j, 0.0).sum(axis=(1, 2))
        ratio = np.where(sums > 0, sums / np.maximum(guesses, 1e-300), 1.0)
        joules = np.where(met, self.met_j, joules * ratio[:, None, None])
        late = self.guess_late.copy()
        tried = np.isfinite(self.met_late)
        for p, i in zip(*np.nonzero(tried.any(axis=2)), strict=True):
            # As late as where this was tried at loads like this one.
            loads, rows = self.load[p, i], tried[p, i]
            share = self.met_late[p, i, rows] / np.maximum(self.came[rows], 1.0)
            far = np.abs(np.log(loads[:, None] + 0.02) - np.log(loads[rows] + 0.02))
            weight = np.exp(-((far / ALIKE) ** 2))
            alike = (weight * share).sum(axis=1) / (weight.sum(axis=1) + DOUBT)
            late[p, i] = np.maximum(late[p, i], alike * self.came)
        least = np.where(tried, self.met_late, 0.0)
        for positions, chains in self.ranked:
            for more, fewer in pairwise(positions):
                least[fewer] = np.maximum(least[fewer], least[more])
            for chain in chains:
                for fast, slow in pairwise(chain):
                    least[positions, slow] = np.maximum(
                        least[positions, slow], least[positions, fast]
                    )
        return joules, np.where(tried, self.met_late, np.maximum(late, least))


@dataclass(eq=False)
class _Planned:
    """Does what a plan says, at each interval."""

    actions: Sequence[Action]
    interval_s: float
    name: str = "oracle"

    def first(self) -> Action:
        return self.actions[0]

    def decide(self, seen: Seen) -> Action:
        return self.actions[min(round(seen.now_s / self.interval_s), len(self.actions) - 1)]


class Programme:
    """Positions, modes, costs and moves of one fleet on one trace.

    Parameters
    ----------
    known : Knowledge
        Of that trace's own lengths.
    """

    def __init__(self, fleet: Fleet, trace: Trace, known: Knowledge) -> None:
        self.fleet, self.trace, self.known = fleet, trace, known
        self.slot_s = fleet.file.control.interval_s
        self.slots = int(trace.duration_s / self.slot_s) + 1
        self.slot_of = np.minimum((trace.arrivals_s / self.slot_s).astype(np.intp), self.slots - 1)
        self.came = np.bincount(self.slot_of, minlength=self.slots).astype(np.float64)
        self.planner = Ours(fleet, known, Plan.of(trace), swaps=False)
        longest = int((trace.input_tokens + trace.output_tokens).max())
        holding = [d for d in fleet.layouts if fleet.cache_tokens(d) >= longest]
        self.modes = {d: found for d in holding if (found := self._modes(d))}
        self.positions = [
            (d, k) for d in self.modes
            for k in range(min(fleet.file.control.min_replicas, fleet.most_replicas(d)),
                           fleet.most_replicas(d) + 1)
        ]  # fmt: skip
        self.moves, self.states = self._moves()
        self.table = self._guess()

    def _modes(self, degree: int) -> list[_Mode]:
        found = []
        for setting in self.known.settings:
            k = self.known.of(degree, setting)
            if k.most_rate.max() <= 0:
                continue
            limit, fill = int(k.limits[-1]), self.planner.fill(k)
            fills = {None, *(int(fill * r) for r in FILL_RATIOS)}
            hold = self.planner.hold_s(k, self.trace.rate_per_s, self.trace.rate_per_s)
            found += [
                _Mode(setting=setting, fill=f, hold_s=h, batch_limit=limit, known=k)
                for f in sorted(fills, key=lambda x: (x is None, x))
                for h in sorted({0.0, hold})
            ]
        return found

    def _guess(self) -> _Table:
        """Watts of the closed form at the rate of each interval, and what it does not carry."""
        most = max(len(m) for m in self.modes.values())
        shape = (len(self.positions), most, self.slots)
        joules, late, loads = np.full(shape, np.inf), np.zeros(shape), np.zeros(shape)
        # By work, not by number: tokens of prompts and outputs against their means.
        t, lengths = self.trace, self.trace.lengths
        work = t.input_tokens / lengths.input_tokens + t.output_tokens / lengths.output_tokens
        rates = np.bincount(self.slot_of, work / 2, self.slots) / self.slot_s
        for p, (degree, replicas) in enumerate(self.positions):
            for i, mode in enumerate(self.modes[degree]):
                k = mode.known
                row = int(np.argmax(k.most_rate))
                if mode.fill is None:
                    watts = replicas * k.power_at(rates / replicas, row)
                    watts = watts + self.fleet.sleep_w(1) * (self.fleet.gpus - replicas * degree)
                else:
                    watts = np.array([self.planner.watts(k, r, replicas) for r in rates])
                joules[p, i] = watts * self.slot_s
                loads[p, i] = rates / (replicas * float(k.most_rate[row]))
                over = np.clip(1 - MARGIN / np.maximum(loads[p, i], 1e-9), 0.0, 1.0)
                late[p, i] = self.came * over
        ranked = []
        for degree, modes in self.modes.items():
            here = [p for p, (d, _) in enumerate(self.positions) if d == degree]
            chains: dict[tuple[int | None, bool], list[int]] = {}
            for i, mode in enumerate(modes):
                # Fills of a setting are in order of how far they fill.
                rank = [m.fill for m in modes if m.setting == mode.setting].index(mode.fill)
                chains.setdefault((rank, mode.hold_s > 0), []).append(i)
            by_speed = [
                sorted(c, key=lambda i: -modes[i].known.most_rate.max()) for c in chains.values()
            ]
            ranked.append((here[::-1], by_speed))
        return _Table(joules, late, loads, self.came, ranked)

    def _moves(self) -> tuple[Moves, list[tuple[int, int, int]]]:
        """List states as (position, replicas starting, intervals left), and ways between them."""
        fleet, at = self.fleet, {p: i for i, p in enumerate(self.positions)}
        wait = max(ceil(fleet.start_s() / self.slot_s - 1e-9), 1)
        states = [(i, 0, 0) for i in range(len(at))]
        states += [
            (i, more, left)
            for i, (d, k) in enumerate(self.positions)
            for more in range(1, fleet.most_replicas(d) - k + 1)
            for left in range(wait, 0, -1)
        ]
        number = {s: j for j, s in enumerate(states)}
        m = len(states)
        step, own = np.full((m, m), np.inf), np.zeros(m)
        following = np.arange(m)
        np.fill_diagonal(step, 0.0)
        for j, (i, more, left) in enumerate(states):
            d, k = self.positions[i]
            if more:
                own[j] = -more * fleet.sleep_w(d) * fleet.start_s() / wait
                following[j] = number[(i, more, left - 1) if left > 1 else (at[d, k + more], 0, 0)]
                continue
            idle_w = self.modes[d][0].known.idle_w - fleet.sleep_w(d)
            for other, (e, n) in enumerate(self.positions):
                if e == d and n < k:
                    step[j, other] = (k - n) * idle_w * self._life_s(d)
            for n in range(1, fleet.most_replicas(d) - k + 1):
                step[j, number[i, n, wait]] = n * fleet.start_energy_j(d)
        swaps, joules = [], []
        for i, (d, k) in enumerate(self.positions):
            for j, (e, n) in enumerate(self.positions):
                if d == e or (found := self._swap(d, k, e, n)) is None:
                    continue
                waves, served = found
                cold_s = fleet.start_s(cold=True)
                wave = max(ceil(cold_s / self.slot_s), 1)
                swaps.append((i, j, waves * wave, at[d, served]))
                # The first waves idle until the last one serves; at the end the old ones drain.
                waits_w = self.modes[e][0].known.idle_w - fleet.sleep_w(e)
                joules.append(
                    n * (fleet.start_energy_j(e, cold=True) - fleet.sleep_w(e) * cold_s)
                    + n * waits_w * (waves - 1) / 2 * wave * self.slot_s
                    + k * self.modes[d][0].known.idle_w * self._life_s(d)
                )
        moves = Moves(
            serving=np.array([s[0] for s in states], dtype=np.intp),
            following=following.astype(np.intp),
            own=own,
            step=step,
            swaps=np.array(swaps, dtype=np.intp).reshape(-1, 4),
            swap_j=np.array(joules),
        )
        return moves, states

    def _swap(self, d: int, k: int, e: int, n: int) -> tuple[int, int] | None:
        """Waves that a rolling swap takes, and the fewest old replicas that serve meanwhile."""
        free, old, new, waves = self.fleet.gpus - d * k, k, 0, 0
        least = k
        while new < n:
            fit = min(free // e, n - new)
            if not fit:
                stop = ceil((e - free) / d)
                if old - stop < (0 if new else 1):
                    return None
                old, free = old - stop, free + stop * d
                continue
            new, free, waves = new + fit, free - fit * e, waves + 1
            least = min(least, old)
        floor = min(self.fleet.file.control.min_replicas, self.fleet.most_replicas(d))
        return waves, max(least, floor)

    def _life_s(self, degree: int) -> float:
        k = self.modes[degree][0].known
        return float(np.median(k.request_s[int(np.argmax(k.most_rate))]))

    # ---------------------------------------------------------------------- planning

    def course(self, price: float) -> tuple[float, list[Action], list[tuple[int, int, bool]]]:
        """Plan at a price of late requests: how many are late by the table, what is done.

        The third has for each interval the position that serves, the mode, and whether nothing
        moves in it.
        """
        joules, late = self.table.now()
        whole = joules + price * late
        mode = whole.argmin(axis=1)  # (p, t)
        costs = np.take_along_axis(whole, mode[:, None], 1)[:, 0].T
        _, decided = plan(costs, self.moves)
        actions: list[Action] = []
        served: list[tuple[int, int, bool]] = []
        for number, (at, gone) in enumerate(decided):
            end = decided[number + 1][0] if number + 1 < len(decided) else self.slots
            swap = gone < -1
            state = -2 - gone if swap else gone
            i, more, _ = self.states[state]
            d, k = self.positions[i]
            for t in range(at, end):
                j = int(mode[i, t])
                m = self.modes[d][j]
                actions.append(
                    Action(
                        replicas=k + more, batch_limit=m.batch_limit, fill=m.fill,
                        hold_s=m.hold_s, setting=m.setting, tensor_parallel=d,
                    )
                )  # fmt: skip
                still = bool(served) and served[-1][0] == i and not more and not swap
                served.append((i, j, still))
        p, j = np.array([(s[0], s[1]) for s in served]).T
        return float(late[p, j, np.arange(self.slots)].sum()), actions, served

    def cheapest(self, allowed: float) -> tuple[list[Action], list[tuple[int, int, bool]]]:
        """Plan at the lowest price at which no more are late, by the table, than allowed."""
        each = float(np.min(self.table.guess_j[np.isfinite(self.table.guess_j)]))
        each = max(each, 1.0) * self.slots / len(self.trace)
        low, high = -4.0, float(np.log10(HIGHEST_PRICE))
        best = self.course(each * 10**high)
        for _ in range(BISECTIONS if best[0] <= allowed else 0):
            middle = (low + high) / 2
            tried = self.course(each * 10**middle)
            if tried[0] <= allowed:
                best, high = tried, middle
            else:
                low = middle
        return best[1], best[2]

    def learn(self, r: Rehearsal, served: Sequence[tuple[int, int, bool]]) -> None:
        """Put what a rehearsal met into the table, where nothing moved."""
        n = len(self.trace)
        good = (r.ttft_s <= self.fleet.ttft_s) & (r.tpot_s <= self.fleet.tpot_s)
        late = np.bincount(self.slot_of, ~good, self.slots) if n else np.zeros(self.slots)
        for t, (p, j, still) in enumerate(served):
            if (still or t == 0) and t < self.slots - 1:
                self.table.met_j[p, j, t] = r.joules_by_interval[t]
                self.table.met_late[p, j, t] = late[t]
            elif late[t]:
                self.table.met_late[p, j, t] = late[t]


def oracle(
    fleet: Fleet, trace: Trace, *, share: float | None = None, rounds: int = ROUNDS
) -> Rehearsal:
    """Find the actions with the fewest simulated joules, the whole trace known.

    Parameters
    ----------
    share : float, optional
        Of requests within limits; that of the fleet's file by default.
    rounds : int
        Plans that are rehearsed; up to three times as many until one meets the share.

    Returns
    -------
    Rehearsal
        With ``policy`` ``oracle``; where no plan meets the share, the one that comes nearest.
    """
    share = fleet.file.limits.share if share is None else share
    programme = Programme(fleet, trace, Knowledge(fleet, trace.lengths))
    allowed = aimed = (1.0 - share) * len(trace)
    found: list[Rehearsal] = []
    tried: list[tuple[list[Action], Rehearsal]] = []
    since = again = 0  # plans since the best one; plans in a row that came again
    while since < rounds and len(found) < MOST_PLANS * rounds and again < AGAIN:
        actions, served = programme.cheapest(aimed)
        r = next((known for before, known in tried if before == actions), None)
        again = 0 if r is None else again + 1
        if r is None:
            r = rehearse(fleet, trace, _Planned(actions, programme.slot_s))
            tried.append((actions, r))
            programme.learn(r, served)
            least = min((x.simulated_energy_j for x in found if x.within_ratio >= share), default=0)
            better = r.within_ratio >= share and (not least or r.simulated_energy_j < least)
            since = 0 if better or not least else since + 1
            found.append(r)
        # The table knows nothing of what carries over, and is careful where it has not been:
        # aim at more or fewer than are allowed, as far as the last plan was from that.
        late = max((1.0 - r.within_ratio) * len(trace), 0.5)
        aimed = float(np.clip(aimed * np.clip(AIM * allowed / late, *STEPS), *LEAST_MOST * allowed))
        if aimed <= 0:
            break
    good = [r for r in found if r.within_ratio >= share]
    if good:
        return min(good, key=lambda r: r.simulated_energy_j)
    return max(found, key=lambda r: r.within_ratio)
