"""The controller of a running fleet: look, doubt, decide, and advise, or act where allowed.

It looks at the counters of every engine, doubts what cannot be, and asks the same policy that is
rehearsed. What it cannot believe it does not act on: after :data:`PATIENCE` looks without a
number to rely on, everything it has set is put back until there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from energylens.errors import EnergyLensError
from energylens.online.actuators import Hand, NotNowError
from energylens.online.fleet import Fleet
from energylens.online.ours import Ours
from energylens.online.rehearsal import Action, Judged, Seen
from energylens.viewing import picked
from energylens.watching.counters import Counters, above
from energylens.words import percent

PATIENCE = 3  # looks in a row without a reliable number, after which all is put back
IMPOSSIBLE_RATIO = 2.0  # of the tokens or requests that the fleet can make at most


class Reader(Protocol):
    """Looks at one engine."""

    def __call__(self) -> Counters:
        """Read its counters.

        Raises
        ------
        EnergyLensError, OSError
            If there are none.
        """


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What the controller would have, and why; or that it cannot tell.

    ``reason`` has watts, joules and milliseconds of the model, not measured.
    """

    at_s: float
    action: Action | None
    doubt: str
    reason: dict[str, Any]

    def describe(self) -> str:
        """One line."""
        if self.action is None:
            return f"no advice: {self.doubt}"
        r = self.reason
        return (
            f"{self.action.describe()}: {r['rate_per_s']:.2f} requests/s, up to "
            f"{r['upper_rate_per_s']:.2f}; {r['power_now_w'] - r['power_then_w']:+.0f} W saved, "
            f"{r['saved_per_request_j']:+.1f} J a request (by the model); TTFT within "
            f"{r['ttft_ms']:.0f} ms, TPOT within {r['tpot_ms']:.1f} ms{self._measured()}"
        )

    def _measured(self) -> str:
        """Say what the engines themselves tell of their limits."""
        ratio = self.reason["measured_within_limits_ratio"]
        if ratio is None:
            return ""
        count = self.reason["measured_requests"]
        return f"; measured: {percent(ratio)} of {count:,} requests within both limits"

    def to_json(self) -> dict[str, Any]:
        """Names and values."""
        a = self.action
        return {
            "at_s": self.at_s,
            "doubt": self.doubt,
            "source": "predicted",
            "action": None
            if a is None
            else {
                **picked(a, "replicas batch_limit fill hold_s"),
                "power_cap_w": a.setting.power_cap_w,
            },
            **self.reason,
        }


@dataclass(eq=False)
class Controller:
    """Watches engines and asks the policy.

    Parameters
    ----------
    readers : sequence of Reader
        One for each engine; those that do not answer are taken to be asleep if any other does
        and no more than the deployed number is missing.
    hand : Hand, optional
        Acts; without it, there is only advice.
    targets : sequence of str
        What the hand sets.
    """

    fleet: Fleet
    policy: Ours
    readers: Sequence[Reader]
    hand: Hand | None = None
    targets: Sequence[str] = ()
    log: Callable[[dict[str, Any]], None] = lambda _: None
    _arrivals: list[float] = field(default_factory=list)
    _before: dict[int, tuple[float, Counters]] = field(default_factory=dict)
    _unsure: int = 0
    _judged: float = 0.0  # requests whose times were told, and how many of them were late
    _late: float = 0.0
    _set: dict[str, float] = field(default_factory=dict)
    _action: Action | None = None

    def step(self, now_s: float) -> Advice:
        """Look once, and advise; act if there is a hand."""
        advice = self._advise(now_s)
        self.log({"advice": advice.to_json()})
        if self.hand is not None:
            self.hand.beat()
            if advice.action is not None:
                self._act(advice)
            elif self._unsure >= PATIENCE and self._set:
                self.hand.restore(advice.doubt)
                self._set.clear()
        return advice

    def _doubt(self, now_s: float, doubt: str) -> Advice:
        self._unsure += 1
        return Advice(at_s=now_s, action=None, doubt=doubt, reason={})

    def _advise(self, now_s: float) -> Advice:
        looks: dict[int, Counters] = {}
        said = ""
        for number, reader in enumerate(self.readers):
            try:
                looks[number] = reader()
            except (EnergyLensError, OSError, ValueError) as error:
                said = str(error)
        if not looks:
            self._before.clear()
            return self._doubt(now_s, f"no engine shows its metrics ({said})")
        before, self._before = self._before, {n: (now_s, look) for n, look in looks.items()}
        came, spans, tokens = 0.0, [], 0.0
        for number, look in looks.items():
            values = (look.requests, look.output_tokens, look.running or 0.0, look.waiting or 0.0)
            if not all(np.isfinite(v) and v >= 0 for v in values):
                self._before = {}
                return self._doubt(now_s, f"engine {number} shows numbers that cannot be: {values}")
            if number not in before:
                continue
            then_s, then = before[number]
            span = now_s - then_s
            if span <= 0 or look.started_s != then.started_s:
                continue
            if look.requests < then.requests or look.output_tokens < then.output_tokens:
                continue  # started anew
            if look == then and _inside(look) > 0:
                return self._doubt(now_s, f"the metrics of engine {number} stand still")
            came += max(look.requests - then.requests + _inside(look) - _inside(then), 0.0)
            tokens += look.output_tokens - then.output_tokens
            spans.append(span)
            self._judge(look, then)
        if not spans:
            return self._doubt(now_s, "a second look is needed to tell a rate")
        span = float(np.mean(spans))
        k = self.policy.known.of(self.policy.tensor_parallel, self.fleet.settings[0])
        places = self.fleet.most_replicas(self.policy.tensor_parallel)
        most = IMPOSSIBLE_RATIO * places * float(k.saturation.max())
        made = tokens / span / self.policy.known.lengths.output_tokens
        if made > most:
            return self._doubt(
                now_s,
                f"{tokens / span:.0f} output tokens/s are more than this fleet can make: the "
                "metrics are of something else",
            )
        running = sum(look.running or 0.0 for look in looks.values())
        if running > places * self.fleet.file.serve.max_num_seqs:
            return self._doubt(now_s, f"{running:.0f} running requests are more than fit")
        self._unsure = 0
        # Counters tell how many came, not when: evenly.
        count = round(came)
        self._arrivals.extend(now_s - span + span * (np.arange(count) + 0.5) / max(count, 1))
        self._arrivals = [a for a in self._arrivals if a > now_s - 7200.0]
        now = self._action or self.policy.first()
        asleep = 0
        if self.hand is not None and self.hand.actuator.knob == "awake":
            asleep = sum(value == 0.0 for value in self._set.values())
        awake = max(len(looks) - asleep, 1)
        seen = Seen(
            now_s=now_s,
            arrivals_s=np.array(self._arrivals),
            in_flight=int(sum(map(_inside, looks.values()))),
            awake=awake,
            starting=0,
            action=now,
            judged=lambda: Judged(finished=round(self._judged), late=round(self._late)),
        )
        action = self.policy.decide(seen)
        self._action = action
        return Advice(at_s=now_s, action=action, doubt="", reason=self._reason(seen, action))

    def _judge(self, look: Counters, before: Counters) -> None:
        """Count how many requests were late since the look before, as far as the engine tells.

        Late for one limit may be late for the other too: they are added, which errs on the side
        of more capacity. An engine that tells gaps alone, not times per token of requests, has all
        of a look late where their mean is.
        """
        limits = self.fleet.ttft_s, self.fleet.tpot_s
        seen = tuple(
            (now[-1][1] - then[-1][1], above(now, limit) - above(then, limit))
            for now, then, limit in zip(
                (look.ttft, look.tpot), (before.ttft, before.tpot), limits, strict=True
            )
            if now and then
        )
        if not seen or any(count < 0 or late < -1e-6 for count, late in seen):
            return
        came = max(count for count, _ in seen)
        late = sum(late for _, late in seen)
        gaps = (look.gaps or 0.0) - (before.gaps or 0.0)
        gaps_s = (look.gaps_s or 0.0) - (before.gaps_s or 0.0)
        if not look.tpot and gaps > 0 and gaps_s > limits[1] * gaps:
            late = came
        self._judged += came
        self._late += min(late, came)

    def _reason(self, seen: Seen, action: Action) -> dict[str, Any]:
        policy = self.policy
        mean, upper = policy.expected
        k = policy.known.of(policy.tensor_parallel, action.setting)
        today = policy.known.of(policy.tensor_parallel, self.fleet.settings[0])
        row = int(np.argmax(k.most_rate))
        each = upper / action.replicas
        now_w = policy.watts(today, mean, seen.awake)
        then_w = policy.watts(k, mean, action.replicas)
        ttft, tpot = (float(np.interp(each, k.rates[row], k.meets_s[i, row])) for i in (0, 1))
        return {
            "rate_per_s": mean,
            "upper_rate_per_s": upper,
            "power_now_w": now_w,
            "power_then_w": then_w,
            "saved_per_request_j": (now_w - then_w) / mean,
            "ttft_ms": 1000 * ttft,
            "tpot_ms": 1000 * tpot,
            "measured_requests": round(self._judged),
            "measured_within_limits_ratio": 1 - self._late / self._judged if self._judged else None,
        }

    def _act(self, advice: Advice) -> None:
        assert self.hand is not None
        assert advice.action is not None
        knob = self.hand.actuator.knob
        if knob == "awake":
            self._act_awake(advice)
            return
        value = {
            "replicas": float(advice.action.replicas),
            "batch_limit": float(advice.action.fill or advice.action.batch_limit),
            "power_cap_w": float(advice.action.setting.power_cap_w or self.fleet.gpu.tdp_w),
        }[knob]
        value = float(np.clip(value, self.hand.consent.low, self.hand.consent.high))
        for target in self.targets:
            # Again even if it is the same: a lease runs out.
            self.hand.act(target, value, advice.reason)
            self._set[target] = value

    def _act_awake(self, advice: Advice) -> None:
        """Wake or put to sleep one engine each; the first of the targets serve."""
        assert self.hand is not None
        assert advice.action is not None
        replicas = max(min(advice.action.replicas, len(self.targets)), 1)
        for number, target in enumerate(self.targets):
            value = 1.0 if number < replicas else 0.0
            try:
                self.hand.act(target, value, advice.reason)
            except NotNowError:
                continue
            self._set[target] = value


def _inside(look: Counters) -> float:
    """Requests in an engine, as far as it says."""
    return (look.running or 0.0) + (look.waiting or 0.0)
