"""Policies on equal terms: the same layouts, actions and costs; what they look at differs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import ceil

import numpy as np

from energylens.cases import FloatArray
from energylens.errors import InfeasibleError, UnknownChoiceError
from energylens.online.fleet import Fleet
from energylens.online.knowledge import Knowledge, Known
from energylens.online.rehearsal import Action, Policy, Seen
from energylens.online.trace import Trace

PEAK_WINDOW_S = 10.0
# Of the requests, by the rate of the 10 s in which they came, that a static fleet must carry:
PEAK_QUANTILE = 0.99
CROWDED_RATIO = 1.3  # in flight over what fills all replicas, at which one more is started
PLAN_MARGIN = 1.2  # of rates, in planning a layout that is scaled
QUEUE_SHARE = 0.8  # of the sequences at which limits hold, that a replica is scaled to
QUEUE_TOLERANCE = 0.1  # relative, within which HPA does nothing
QUEUE_STABLE_S = 300.0  # that HPA looks back before it scales down
FORECAST_WINDOW_S = 60.0
BURSTY_RATIO = 2.5  # of the busiest spells to the mean, beyond which arrivals come in bursts
FEWEST_PAIRS, NEIGHBOURS, MOST_PAIRS = 20, 40, 2000  # of forecasts and what came
SPELL_S = 10.0  # over which arrivals must be carried: about the life of a request
HOLD_SHARE = 0.5  # of what the TTFT limit leaves, that a request is held at most


@dataclass(eq=False)
class _Fixed:
    """One action for all time."""

    name: str
    tensor_parallel: int
    action: Action

    def first(self) -> Action:
        return self.action

    def decide(self, seen: Seen) -> Action:
        return seen.action


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a static deployment is planned for: rates of the trace's minutes."""

    peak_per_s: float
    mean_per_s: float
    rates_per_s: tuple[float, ...]

    @classmethod
    def of(cls, trace: Trace) -> Plan:
        """Plan with the trace in hand, which favours what is static."""
        rates = trace.rates_per_s(PEAK_WINDOW_S)
        return cls(
            peak_per_s=_busiest(rates, PEAK_QUANTILE),
            mean_per_s=trace.rate_per_s,
            rates_per_s=tuple(rates.tolist()),
        )


def _busiest(rates: FloatArray, ratio: float) -> float:
    """Rate above which no more than the rest of the requests came: bursts carry most of them."""
    order = np.sort(rates)
    share = np.cumsum(order) / order.sum()
    return float(order[min(int(np.searchsorted(share, ratio)), len(order) - 1)])


def deployed(fleet: Fleet) -> Action:
    """What runs today."""
    serve = fleet.file.serve
    most = int(fleet.table(serve.tensor_parallel, serve.power_cap_w).batches[-1])
    return Action(replicas=serve.replicas, batch_limit=most, power_cap_w=serve.power_cap_w)


def static_deployed(fleet: Fleet, known: Knowledge, plan: Plan) -> Policy:  # noqa: ARG001
    """Everything as it is deployed today."""
    return _Fixed("static-deployed", fleet.file.serve.tensor_parallel, deployed(fleet))


def static_full_batch(fleet: Fleet, known: Knowledge, plan: Plan) -> Policy:
    """Choose the layout by joules and time per token of full batches, replicas by capacity."""
    best: tuple[float, int, Action] | None = None
    for degree in fleet.layouts:
        k = known.of(degree, fleet.file.serve.power_cap_w)
        good = np.flatnonzero(k.full_tpot_s <= fleet.tpot_s)
        for row in good:
            replicas = max(ceil(plan.peak_per_s / k.saturation[row]), 1)
            if replicas > fleet.most_replicas(degree):
                continue
            joules = k.power_w[row, -1] / k.rates[row, -1]
            action = Action(replicas=replicas, batch_limit=int(k.limits[row]),
                            power_cap_w=k.power_cap_w)  # fmt: skip
            if best is None or joules < best[0]:
                best = (float(joules), degree, action)
    if best is None:
        return replace_name(static_deployed(fleet, known, plan), "static-full-batch")
    return _Fixed("static-full-batch", best[1], best[2])


def replace_name(policy: Policy, name: str) -> Policy:
    """Give what another policy does under a name."""
    return _Fixed(name, policy.tensor_parallel, policy.first())


def static_service(fleet: Fleet, known: Knowledge, plan: Plan) -> Policy:
    """Choose all by the service model: limits at the peak rate, fewest joules at the mean rate."""
    return _Fixed("static-service", *best_static(fleet, known, plan))


def best_static(fleet: Fleet, known: Knowledge, plan: Plan) -> tuple[int, Action]:
    """Layout, replicas and batch limit that the service model puts first.

    Where nothing meets the limits at the peak, the largest capacity.
    """
    best: tuple[float, int, Action] | None = None
    most: tuple[float, int, Action] | None = None
    for degree in fleet.layouts:
        for cap in known.caps_w:
            k = known.of(degree, cap)
            sleep, places = fleet.sleep_w(degree), fleet.most_replicas(degree)
            rest = fleet.gpus - places * degree
            for row in np.flatnonzero(k.most_rate > 0):
                replicas = max(ceil(plan.peak_per_s / k.most_rate[row]), 1)
                action = Action(
                    replicas=min(replicas, places), batch_limit=int(k.limits[row]), power_cap_w=cap
                )
                carried = float(k.most_rate[row]) * places
                if most is None or carried > most[0] * 1.001:
                    most = (carried, degree, action)
                if replicas > places:
                    continue
                watts = replicas * float(k.power_at(plan.mean_per_s / replicas, int(row)))
                watts += (places - replicas) * sleep + rest * fleet.sleep_w(1)
                if best is None or watts < best[0] * 0.9995 or (
                    watts < best[0] * 1.0005 and degree == best[1]
                    and action.batch_limit > best[2].batch_limit
                ):  # fmt: skip
                    best = (watts, degree, action)
    chosen = best or most
    if chosen is None:
        raise InfeasibleError(
            "no layout meets the limits at any rate, by the service model: relax ttft or tpot"
        )
    return chosen[1], chosen[2]


# ------------------------------------------------------------------------------- by queue


@dataclass(eq=False)
class _ByQueue:
    """Replicas so that each has a target of requests in flight, as HPA scales on a metric of KEDA.

    desired = ceil(in flight / target); nothing within the tolerance; down only to the largest
    desired of the last five minutes.
    """

    fleet: Fleet
    tensor_parallel: int
    start: Action
    target: float
    name: str = "queue"
    _wanted: list[tuple[float, int]] = field(default_factory=list)

    def first(self) -> Action:
        return self.start

    def decide(self, seen: Seen) -> Action:
        control = self.fleet.file.control
        now = max(seen.awake + seen.starting, 1)
        ratio = seen.in_flight / (now * self.target)
        desired = now if abs(ratio - 1) <= QUEUE_TOLERANCE else ceil(seen.in_flight / self.target)
        desired = int(
            np.clip(desired, control.min_replicas, self.fleet.most_replicas(self.tensor_parallel))
        )
        self._wanted.append((seen.now_s, desired))
        recent = [k for at, k in self._wanted if at >= seen.now_s - QUEUE_STABLE_S]
        if desired < now:
            desired = min(max(recent), now)
        return replace(seen.action, replicas=desired)


def by_queue(fleet: Fleet, known: Knowledge, plan: Plan) -> Policy:
    """Scale the static best layout on requests in flight."""
    degree, best = best_static(fleet, known, plan)
    k = known.of(degree, best.power_cap_w)
    target = QUEUE_SHARE * _most_running(k)
    most = int(k.limits[-1])
    return _ByQueue(fleet, degree, replace(best, batch_limit=most), max(target, 1.0))


def _most_running(k: Known) -> float:
    """Sequences in flight at the largest rate that meets the limits."""
    row = int(np.argmax(k.most_rate))
    if k.most_rate[row] <= 0:
        return 1.0
    at = k.most_rate[row]
    return float(at * np.interp(at, k.rates[row], k.request_s[row]))


# ---------------------------------------------------------------------------------- ours


@dataclass(eq=False)
class Forecast:
    """The rate to come by the recent rate, and by what came after rates like it.

    At every call what was forecast a lead time ago is paired with the largest rate of a spell
    since. The upper forecast is a quantile of what followed the recent rates nearest to this one;
    until there are enough of them, ``prior_per_s``.
    """

    lead_s: float
    prior_per_s: float
    quantile: float = 0.99
    bias: float = 1.0
    _said: list[tuple[float, float]] = field(default_factory=list)
    _pairs: list[tuple[float, float]] = field(default_factory=list)

    def __call__(self, now_s: float, arrivals_s: FloatArray) -> tuple[float, float]:
        """Mean and upper rate to come."""

        def rate(begin: float, end: float) -> float:
            a, b = np.searchsorted(arrivals_s, (begin, end))
            return float(b - a) / max(end - begin, 1e-9)

        while self._said and self._said[0][0] <= now_s - self.lead_s:
            at, said = self._said.pop(0)
            edges = np.arange(at, at + self.lead_s + 1e-9, SPELL_S)
            if len(edges) < 2:
                edges = np.array([at, at + self.lead_s])
            places = np.searchsorted(arrivals_s, edges)
            self._pairs.append((said, float((np.diff(places) / np.diff(edges)).max())))
        floor = 0.5 / FORECAST_WINDOW_S
        mean = max(rate(max(now_s - FORECAST_WINDOW_S, 0.0), now_s), floor)
        self._said.append((now_s, mean))
        upper = self.prior_per_s
        if len(self._pairs) >= FEWEST_PAIRS:
            said, met = np.array(self._pairs[: -MOST_PAIRS - 1 : -1]).T  # the latest first
            near = np.argsort(np.abs(np.log(said / mean)), kind="stable")[:NEIGHBOURS]
            upper = float(np.quantile(met[near], self.quantile))
            seen = np.diff(np.searchsorted(arrivals_s, np.arange(0.0, now_s + 1e-9, SPELL_S)))
            if _busiest(seen, self.quantile) > BURSTY_RATIO * seen.mean():
                # Bursts: the last minute tells nothing of the next.
                upper = max(upper, self.prior_per_s)
        return mean * self.bias, max(upper, mean) * self.bias


@dataclass(eq=False)
class Ours:
    """Fewest joules at the forecast rate, of what meets the limits at the upper forecast.

    Up at once; down when the saving pays a start back within the stated time.
    """

    fleet: Fleet
    known: Knowledge
    plan: Plan
    name: str = "ours"
    reasons: list[str] = field(default_factory=list)
    expected: tuple[float, float] = (0.0, 0.0)  # mean and upper rate of the last decision
    _low: list[tuple[float, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tensor_parallel, self._start = self._layout()
        control, change = self.fleet.file.control, self.fleet.file.replica
        self.forecast = Forecast(
            lead_s=change.start_s + control.interval_s,
            prior_per_s=self.plan.peak_per_s,
            quantile=self.fleet.file.limits.share,
            bias=self.known.belief.forecast,
        )

    def _layout(self) -> tuple[int, Action]:
        """The layout with the fewest joules over the rates planned for, each with its replicas."""
        static_degree, static = best_static(self.fleet, self.known, self.plan)
        best, chosen = np.inf, (static_degree, static)
        for degree in self.fleet.layouts:
            self.tensor_parallel = degree
            k = self.known.of(degree, static.power_cap_w)
            most = float(k.most_rate.max())
            places = self.fleet.most_replicas(degree)
            if most <= 0 or ceil(self.plan.peak_per_s / most) > places:
                continue
            row = int(np.argmax(k.most_rate))
            watts = 0.0
            for rate in self.plan.rates_per_s:
                replicas = int(np.clip(ceil(PLAN_MARGIN * rate / most), 1, places))
                watts += self.watts(k, row, rate, replicas)
            spare = self.fleet.gpus - places * degree
            watts += spare * self.fleet.sleep_w(1) * len(self.plan.rates_per_s)
            if watts < best * 0.999:
                replicas = max(ceil(self.plan.peak_per_s / most), 1)
                best = watts
                chosen = degree, replace(static, replicas=min(replicas, places))
        return chosen

    def first(self) -> Action:
        """The static best, filled replica by replica."""
        return self._with(
            self._start, self._start.replicas, self.plan.mean_per_s, self.plan.peak_per_s
        )

    def _with(self, action: Action, replicas: int, rate: float, upper: float) -> Action:
        k = self.known.of(self.tensor_parallel, action.power_cap_w)
        fill, row = self.fill(k)
        return replace(
            action,
            replicas=replicas,
            batch_limit=int(k.limits[-1]),
            fill=fill,
            hold_s=self.hold_s(k, rate / replicas, max(upper, rate) / replicas, row),
        )

    def fill(self, k: Known) -> tuple[int | None, int]:
        """Sequences up to which a replica is filled before the next one: limits hold there.

        None where they hold at no batch that is kept full: then requests are spread.
        """
        row = int(np.argmax(k.most_rate))
        # A replica that is kept filled is at its limit nearly always: TPOT there, margin included.
        good = np.flatnonzero(k.meets_s[1, :, -1] <= self.fleet.tpot_s)
        return int(k.limits[good[-1]]) if len(good) else None, row

    def hold_s(self, k: Known, rate: float, upper: float, row: int) -> float:
        """How long an empty replica waits for company: what pays, within the TTFT limit."""
        if upper > min(float(k.most_rate[row]), BURSTY_RATIO * rate):
            return 0.0  # a burst brings company enough
        ttft = float(np.interp(upper, k.rates[row], k.meets_s[0, row]))
        room = HOLD_SHARE * max(self.fleet.ttft_s - ttft, 0.0)
        longest = min(room, self.fleet.file.control.max_hold_s)
        life = float(np.interp(rate, k.rates[row], k.request_s[row]))
        saved = hold_saving(rate, life, longest)
        return float(round(longest, 3)) if saved > 0.002 and longest > 0.01 else 0.0

    def needed(self, k: Known, upper: float) -> int | None:
        """Replicas that carry a rate within the limits."""
        most = float(k.most_rate.max())
        if most <= 0:
            return None
        places = self.fleet.most_replicas(self.tensor_parallel)
        return int(np.clip(ceil(upper / most), self.fleet.file.control.min_replicas, places))

    def decide(self, seen: Seen) -> Action:
        """Forecast, look up, and change what pays."""
        control = self.fleet.file.control
        mean, upper = self.forecast(seen.now_s, seen.arrivals_s)
        # No more than it was planned for, as all others are, unless that much is here.
        upper = max(min(upper, self.plan.peak_per_s * self.known.belief.forecast), mean)
        self.expected = mean, upper
        choices = []
        for cap in self.known.caps_w:
            k = self.known.of(self.tensor_parallel, cap)
            replicas = self.needed(k, upper)
            if replicas is None:
                continue
            row = int(np.argmax(k.most_rate))
            watts = self.watts(k, row, mean, replicas)
            carried = replicas * float(k.most_rate.max())
            # Where nothing carries the upper rate, what carries most comes first.
            short = max(upper - carried, 0.0) if upper > carried * 1.001 else 0.0
            choices.append((short, watts, replicas, cap))
        short, watts, replicas, cap = min(choices, key=lambda c: c[:3])
        k = self.known.of(self.tensor_parallel, cap)
        now = seen.awake + seen.starting
        # What already waits needs room too.
        fill, row = self.fill(k)
        held = fill or _most_running(k)
        if seen.in_flight > CROWDED_RATIO * held * now:
            places = self.fleet.most_replicas(self.tensor_parallel)
            replicas = max(replicas, min(ceil(seen.in_flight / held), places))
        self._low.append((seen.now_s, replicas))
        if replicas < now:
            # Down only to what was enough for as long as a start takes to pay back.
            each = k.idle_w - self.fleet.sleep_w(self.tensor_parallel)
            cost = self.fleet.start_energy_j(self.tensor_parallel)
            pays = min(cost / max(each, 1e-9), control.pays_back_within_s)
            wait = max(pays, 2 * control.interval_s)
            recent = [n for at, n in self._low if at >= seen.now_s - wait]
            enough = seen.now_s - self._low[0][0] >= wait
            replicas = min(max(recent), now) if enough else now
            if each <= 0 or cost / max(each, 1e-9) > control.pays_back_within_s:
                replicas = now
        action = self._with(replace(seen.action, power_cap_w=cap), replicas, mean, upper)
        if short:
            action = replace(action, fill=None, hold_s=0.0)  # all there is, evenly
        if action != seen.action:
            old = self.known.of(self.tensor_parallel, seen.action.power_cap_w)
            before = self.watts(old, int(np.argmax(old.most_rate)), mean, max(now, 1))
            after = self.watts(k, row, mean, replicas)
            ttft = float(np.interp(upper / replicas, k.rates[row], k.meets_s[0, row]))
            self.reasons.append(
                f"{seen.now_s:.0f} s: {action.describe()}: {mean:.2f} requests/s now, up to "
                f"{upper:.2f}; {before - after:+.0f} W saved, {(before - after) / mean:+.1f} J a "
                f"request; TTFT within {1000 * ttft:.0f} ms"
            )
        return action

    def watts(self, k: Known, row: int, rate: float, replicas: int) -> float:
        """Watts of the fleet at a rate, replicas filled one after the other."""
        most = max(float(k.most_rate[row]), 1e-9)
        full, rest = divmod(rate, most)
        full = min(int(full), replicas)
        total = full * float(k.power_at(most, row))
        if full < replicas:
            total += float(k.power_at(rest, row)) + (replicas - full - 1) * k.idle_w
        places = self.fleet.most_replicas(self.tensor_parallel)
        return total + (places - replicas) * self.fleet.sleep_w(self.tensor_parallel)


def hold_saving(rate_per_s: float, request_s: float, hold_s: float) -> float:
    """Share of a replica's busy time that holding saves, where requests do not wait otherwise.

    With a = rate x life of a request, an empty replica is busy for (e^a - 1) / rate after a first
    arrival. Held for h, the first brings 1 + rate h with it and the cycle is h longer; the first
    group ends together but for the harmonic spread of its lives. Nothing is saved where the
    replica is hardly ever empty (a well above 1), or where nobody comes within h.
    """
    a = rate_per_s * request_s
    if a > 20 or rate_per_s <= 0:
        return 0.0
    busy = np.expm1(a) / rate_per_s
    group = 1.0 + rate_per_s * hold_s
    longer = request_s * (np.log(group) + 0.5 * (1 - 1 / group)) * np.exp(a) * 0.5
    before = busy / (busy + 1 / rate_per_s)
    after = (busy + longer) / (busy + longer + 1 / rate_per_s + hold_s)
    return float(max(1.0 - after / before, 0.0))


def ours(fleet: Fleet, known: Knowledge, plan: Plan) -> Policy:
    """The controller."""
    return Ours(fleet, known, plan)


#: By the name that the command line knows.
POLICIES: dict[str, Callable[[Fleet, Knowledge, Plan], Policy]] = {
    "static-deployed": static_deployed,
    "static-full-batch": static_full_batch,
    "static-service": static_service,
    "queue": by_queue,
    "ours": ours,
}
ORACLE = "oracle"


def policy(name: str, fleet: Fleet, known: Knowledge, trace: Trace) -> Policy:
    """Make a policy by its name.

    Raises
    ------
    UnknownChoiceError
        If there is none.
    """
    if name not in POLICIES:
        raise UnknownChoiceError(
            "policy", name, (*POLICIES, ORACLE), f"Known are {', '.join((*POLICIES, ORACLE))}."
        )
    return POLICIES[name](fleet, known, Plan.of(trace))


__all__ = ["ORACLE", "POLICIES", "Ours", "Plan", "hold_saving", "policy"]
