"""The controller: fewest joules at the forecast rate, of what meets the limits at the upper one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import ceil

import numpy as np

from energylens.online.fleet import Fleet, Setting
from energylens.online.forecast import BURSTY_RATIO, Forecast
from energylens.online.knowledge import Knowledge, Known
from energylens.online.plans import Plan, best_static, most_running
from energylens.online.rehearsal import Action, Judged, Seen

CROWDED_RATIO = 1.3  # in flight over what fills all replicas, at which one more is started
FILL_RATIOS = (0.75, 1.25)  # that boldness may change a fill by
WORTH_RATIO = 0.98  # of the watts, below which another setting is worth the change
PLAN_RATES = 32  # that stand for those of all spells planned for
BOLDEST, MOST_CAREFUL = 1.1, 0.6  # of the rate that the closed form is sure of: what was seen at
# low load says little of full load
LENGTHS_WINDOW_S, FEWEST_LENGTHS, LENGTHS_OFF = 300.0, 300, 0.1
BUDGET_PRIOR = 3.0  # late requests that the share would allow, before any is counted
HOLD_SHARE = 0.5  # of what the TTFT limit leaves, that a request is held at most


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What one layout would have: simulated or predicted watts, as the knowledge is."""

    short_per_s: float  # of the upper rate, that nothing carries
    watts: float
    replicas: int
    setting: Setting


@dataclass(eq=False)
class Ours:
    """Up at once; down, and to another layout, when the saving pays back within the stated time.

    Parameters
    ----------
    swaps : bool
        Whether it may go over to another layout.
    boldest : float
        Most that is asked of a replica, over the rate that the closed form is sure of.
    """

    fleet: Fleet
    known: Knowledge
    plan: Plan
    swaps: bool = True
    boldest: float = BOLDEST
    name: str = "ours"
    reasons: list[str] = field(default_factory=list)
    expected: tuple[float, float] = (0.0, 0.0)  # mean and upper rate of the last decision
    boldness: float = 1.0  # of the rate that the closed form is sure of, that is asked of a replica
    _past: list[tuple[float, Judged]] = field(default_factory=list)
    _solved_s: float = -np.inf
    _low: list[tuple[float, int]] = field(default_factory=list)
    _saved: list[tuple[float, dict[int, float]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        control, change = self.fleet.file.control, self.fleet.file.replica
        self._start = self._layout()
        self.tensor_parallel = self._start.tensor_parallel
        self._ran = {self.tensor_parallel}
        self.forecast = Forecast(
            lead_s=change.start_s + control.interval_s,
            prior_per_s=self.plan.peak_per_s,
            quantile=self.fleet.file.limits.share,
            bias=self.known.belief.forecast,
        )

    # ---------------------------------------------------------------------- look-ups

    def _layout(self) -> Action:
        """The layout with the fewest joules over the rates planned for, each with its replicas."""
        static = best_static(self.fleet, self.known, self.plan)
        spells = np.sort(self.plan.rates_per_s)
        rates = [float(part.mean()) for part in np.array_split(spells, PLAN_RATES) if len(part)]
        above = self.plan.peak_per_s / max(self.plan.mean_per_s, 1e-9)
        best, chosen = np.inf, static
        for degree in self.fleet.layouts:
            peak = self.choose(degree, self.plan.mean_per_s, self.plan.peak_per_s)
            if peak is None or peak.short_per_s:
                continue
            found = [
                self.choose(degree, rate, min(max(above, 1.0) * rate, self.plan.peak_per_s))
                for rate in rates
            ]
            watts = sum(c.watts for c in found if c is not None)
            if watts < best * 0.999:
                best = watts
                chosen = replace(
                    static, replicas=peak.replicas, setting=peak.setting, tensor_parallel=degree
                )
        return chosen

    def watts(self, k: Known, rate: float, replicas: int) -> float:
        """Watts of all GPUs at a rate, replicas filled one after the other.

        What is in flight varies about its mean, and with it how far the next replica is needed:
        the mean over three rates (Gauss and Hermite) stands for that.
        """
        row = int(np.argmax(k.most_rate))
        most = max(float(k.most_rate[row]) * self.boldness, 1e-9)
        running = max(rate * float(np.interp(rate, k.rates[row], k.request_s[row])), 1e-9)
        spread = min(np.sqrt(3.0 / running), 1.0)
        total = 0.0
        for weight, off in ((2 / 3, 0.0), (1 / 6, -spread), (1 / 6, spread)):
            full, rest = divmod(rate * (1 + off), most)
            if full >= replicas:
                total += weight * replicas * float(k.power_at(rate * (1 + off) / replicas, row))
                continue
            total += weight * full * float(k.power_at(most, row))
            total += weight * float(k.power_at(rest, row))
            total += weight * (replicas - full - 1) * k.idle_w
        asleep = self.fleet.gpus - replicas * k.tensor_parallel
        return total + asleep * self.fleet.sleep_w(1)

    def fill(self, k: Known) -> int:
        """Requests up to which a replica is filled before the next one.

        As many as are in flight at the most that it carries within the limits.
        """
        careful = float(np.clip(self.boldness, *FILL_RATIOS))
        return max(int(careful * most_running(k)), 1)

    def hold_s(self, k: Known, rate: float, upper: float) -> float:
        """How long an empty replica waits for company: what pays, within the TTFT limit."""
        row = int(np.argmax(k.most_rate))
        if upper > min(float(k.most_rate[row]), BURSTY_RATIO * rate):
            return 0.0  # a burst brings company enough
        ttft = float(np.interp(upper, k.rates[row], k.meets_s[0, row]))
        room = HOLD_SHARE * max(self.fleet.ttft_s - ttft, 0.0)
        longest = min(room, self.fleet.file.control.max_hold_s)
        life = float(np.interp(rate, k.rates[row], k.request_s[row]))
        saved = hold_saving(rate, life, longest)
        return float(round(longest, 3)) if saved > 0.002 and longest > 0.01 else 0.0

    def _held_by(self, degree: int, replicas: int, mean: float, upper: float) -> Setting:
        """Cap or clock of so many replicas: the fewest watts of those that carry the upper rate."""

        def cost(setting: Setting) -> tuple[float, float]:
            k = self.known.of(degree, setting)
            short = upper - replicas * float(k.most_rate.max()) * self.boldness
            return short if short > 0.001 * upper else 0.0, self.watts(k, mean, replicas)

        good = (s for s in self.known.settings if self.known.of(degree, s).most_rate.max() > 0)
        return min(good, key=cost)

    def choose(
        self, degree: int, mean: float, upper: float, now: Setting | None = None
    ) -> Choice | None:
        """Replicas and setting of a layout; None where it meets the limits at no rate."""
        places = self.fleet.most_replicas(degree)
        least = min(self.fleet.file.control.min_replicas, places)
        found = []
        for setting in self.known.settings:
            k = self.known.of(degree, setting)
            most = float(k.most_rate.max()) * self.boldness
            if most <= 0:
                continue
            replicas = int(np.clip(ceil(upper / most), least, places))
            short = upper - replicas * most
            found.append(
                Choice(
                    short_per_s=short if short > 0.001 * upper else 0.0,
                    watts=self.watts(k, mean, replicas),
                    replicas=replicas,
                    setting=setting,
                )
            )
        best = min(found, key=lambda c: (c.short_per_s, c.watts, c.replicas), default=None)
        for c in found:
            if (
                best is not None and c.setting == now and c.replicas <= best.replicas
                and c.short_per_s <= best.short_per_s and WORTH_RATIO * c.watts <= best.watts
            ):  # fmt: skip
                return c
        return best

    # --------------------------------------------------------------------- decisions

    def first(self) -> Action:
        """The layout planned for, filled replica by replica."""
        return self._with(self._start, self.plan.mean_per_s, self.plan.peak_per_s)

    def _with(self, action: Action, rate: float, upper: float) -> Action:
        k = self.known.of(action.tensor_parallel, action.setting)
        each = max(upper, rate) / action.replicas
        return replace(
            action,
            batch_limit=int(k.limits[-1]),
            fill=self.fill(k),
            hold_s=self.hold_s(k, rate / action.replicas, each),
        )

    def decide(self, seen: Seen) -> Action:
        """Forecast, look up, and change what pays."""
        mean, upper = self.expected = self.forecast(seen.now_s, seen.arrivals_s)
        degree = self.tensor_parallel
        self._learn(seen.now_s, seen.judged())
        choice = self.choose(degree, mean, upper, seen.action.setting)
        assert choice is not None, "a layout that serves meets the limits at some rate"
        now = seen.awake + seen.starting
        why = ""
        if seen.swapping:  # on the way: more, if need be, but not less
            now = seen.action.replicas
            replicas = max(choice.replicas, now)
        else:
            if self.swaps and (other := self._swap(seen, choice, mean, upper)) is not None:
                degree, choice, why = other
                self._low.clear()
                replicas, now = choice.replicas, choice.replicas
            else:
                replicas = self._down(seen, self._crowded(seen, choice, now), now)
        setting = choice.setting
        if degree == self.tensor_parallel and not seen.swapping and 0 < seen.awake < replicas:
            # Those that start do not serve yet: until then the others need their pace.
            setting = self._held_by(degree, seen.awake, mean, upper)
        k = self.known.of(degree, setting)
        aimed = replace(seen.action, replicas=replicas, setting=setting, tensor_parallel=degree)
        action = self._with(aimed, mean, upper)
        if choice.short_per_s:
            action = replace(action, fill=None, hold_s=0.0)  # all there is, evenly
        told = replace(action, fill=seen.action.fill, hold_s=seen.action.hold_s)
        if told != seen.action:
            old = self.known.of(seen.action.tensor_parallel, seen.action.setting)
            before = self.watts(old, mean, max(seen.awake + seen.starting, 1))
            self._say(seen, action, k, (mean, upper), before, why)
        self.tensor_parallel = degree
        self._ran.add(degree)
        return action

    def _learn(self, now_s: float, judged: Judged) -> None:
        """Take the lengths of late, where they are others, and how many were late."""
        self.boldness = self._boldness(judged.finished, judged.late)
        self._past.append((now_s, judged))
        while len(self._past) > 1 and self._past[1][0] <= now_s - LENGTHS_WINDOW_S:
            self._past.pop(0)
        before = self._past[0][1]
        if (n := judged.finished - before.finished) < FEWEST_LENGTHS or not judged.output_tokens:
            return  # too few, or whoever judged told no lengths
        means = (
            (judged.input_tokens - before.input_tokens) / n,
            (judged.output_tokens - before.output_tokens) / n,
        )
        known = self.known.lengths
        off = np.abs(np.log(np.array(means) / (known.input_tokens, known.output_tokens)))
        if off.max() > LENGTHS_OFF and now_s >= self._solved_s + LENGTHS_WINDOW_S:
            lengths = replace(known, input_tokens=means[0], output_tokens=means[1])
            self.known, self._solved_s = self.known.told(lengths), now_s

    def _boldness(self, finished: int, late: int) -> float:
        """More of a replica where fewer are late than may be, less where more are.

        The limits allow a share of late requests; what has been spent of it so far says how far
        the closed form, with its margins, is from this engine. Late requests scatter (Poisson), and
        the share is to be kept with the stated probability: as many more count as spent.
        """
        from scipy.special import ndtri

        limits, prior = self.fleet.file.limits, BUDGET_PRIOR
        sure = max(float(ndtri(limits.probability)), 0.0)
        counted = late + sure * float(np.sqrt(late)) + prior
        spent = counted / ((1 - limits.share) * finished + prior)
        if spent > 1:
            return max(1 / spent, MOST_CAREFUL)
        return 1 + (self.boldest - 1) * (1 - spent)

    def _crowded(self, seen: Seen, choice: Choice, now: int) -> int:
        """What already waits needs room too."""
        k = self.known.of(self.tensor_parallel, choice.setting)
        held = self.fill(k)
        if seen.in_flight <= CROWDED_RATIO * held * now:
            return choice.replicas
        places = self.fleet.most_replicas(self.tensor_parallel)
        return max(choice.replicas, min(ceil(seen.in_flight / held), places))

    def _down(self, seen: Seen, replicas: int, now: int) -> int:
        """Fewer only if they were enough for as long as a start takes to pay back."""
        control, degree = self.fleet.file.control, self.tensor_parallel
        self._low.append((seen.now_s, replicas))
        if replicas >= now:
            return replicas
        idle_w = self.known.of(degree, self.known.settings[0]).idle_w
        each = idle_w - self.fleet.sleep_w(degree)
        pays_s = self.fleet.start_energy_j(degree) / max(each, 1e-9)
        if pays_s > control.pays_back_within_s:
            return now
        wait = max(pays_s, 2 * control.interval_s)
        if seen.now_s - self._low[0][0] < wait:
            return now
        return min(max(n for at, n in self._low if at >= seen.now_s - wait), now)

    def _swap(
        self, seen: Seen, choice: Choice, mean: float, upper: float
    ) -> tuple[int, Choice, str] | None:
        """Another layout, where it has saved for long enough to pay the swap back, or must be."""
        control, here = self.fleet.file.control, self.tensor_parallel
        others = {d: self.choose(d, mean, upper) for d in self.fleet.layouts if d != here}
        found = {d: c for d, c in others.items() if c is not None}
        self._saved.append(
            (seen.now_s, {d: choice.watts - c.watts for d, c in found.items() if not c.short_per_s})
        )
        best: tuple[float, int, Choice, str] | None = None
        for degree, c in found.items():
            must = choice.short_per_s > 2 * c.short_per_s
            if not self._room(seen, degree, mean if must else upper):
                continue
            cost = c.replicas * self.fleet.start_energy_j(degree, cold=degree not in self._ran)
            # The old ones drain beside the new ones.
            old = self.known.of(here, seen.action.setting)
            life_s = float(np.median(old.request_s[int(np.argmax(old.most_rate))]))
            cost += seen.awake * old.idle_w * life_s
            saved_w = choice.watts - c.watts
            if must:
                why = f"TP{here} does not carry the rate"
            elif c.short_per_s > choice.short_per_s or saved_w <= 0:
                continue
            else:
                pays_s = cost / saved_w
                if pays_s > control.pays_back_within_s:
                    continue
                wait = max(pays_s, 2 * control.interval_s)
                if seen.now_s - self._saved[0][0] < wait:
                    continue
                recent = [s.get(degree, 0.0) for at, s in self._saved if at >= seen.now_s - wait]
                if min(recent) <= 0:
                    continue
                why = f"the swap's {cost:.0f} J pay back in {pays_s:.0f} s"
            if best is None or saved_w > best[0]:
                best = saved_w, degree, c, why
        if best is None:
            return None
        self._saved.clear()
        return best[1:]

    def _room(self, seen: Seen, degree: int, rate: float) -> bool:
        """Whether what is left carries a rate while the first new replica starts."""
        here, now = self.tensor_parallel, seen.awake + seen.starting
        left = now - max(ceil((degree - self.fleet.gpus + now * here) / here), 0)
        k = self.known.of(here, seen.action.setting)
        return left >= 1 and left * float(k.most_rate.max()) >= rate

    def _say(
        self, seen: Seen, action: Action, k: Known, rates: tuple[float, float], before: float,
        why: str,
    ) -> None:  # fmt: skip
        mean, upper = rates
        saved = before - self.watts(k, mean, action.replicas)
        row = int(np.argmax(k.most_rate))
        ttft = float(np.interp(upper / action.replicas, k.rates[row], k.meets_s[0, row]))
        self.reasons.append(
            f"{seen.now_s:.0f} s: {action.describe()}: {mean:.2f} requests/s now, up to "
            f"{upper:.2f}; {saved:+.0f} W saved, {saved / mean:+.1f} J a request; TTFT within "
            f"{1000 * ttft:.0f} ms{f'; {why}' if why else ''}"
        )


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
