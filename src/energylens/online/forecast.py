"""The rate to come, by the recent rate and by what came after rates like it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from energylens.cases import FloatArray
from energylens.online.plans import busiest

WINDOW_S = 60.0
SPELL_S = 10.0  # over which arrivals must be carried: about the life of a request
PAST_S, BURSTS_S = 1800.0, 600.0  # over which busy spells are remembered, and bursts looked for
BURSTY_RATIO = 2.5  # of the busiest spells to the mean, beyond which arrivals come in bursts
FEWEST_PAIRS, NEIGHBOURS, MOST_PAIRS = 20, 40, 2000  # of forecasts and what came


@dataclass(eq=False)
class Forecast:
    """The rate to come, as mean and as upper rate.

    At every call what was forecast a lead time ago is paired with the largest rate of a spell
    since. The upper forecast is a quantile of what followed the recent rates nearest to this one;
    until there are enough of them, ``prior_per_s``, or the busiest spell so far if that is more.
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
        floor = 0.5 / WINDOW_S
        mean = max(rate(max(now_s - WINDOW_S, 0.0), now_s), floor)
        self._said.append((now_s, mean))
        seen = np.diff(
            np.searchsorted(arrivals_s, np.arange(max(now_s - PAST_S, 0.0), now_s + 1e-9, SPELL_S))
        )
        busy = busiest(seen, self.quantile) if seen.sum() else 0.0
        known = max(self.prior_per_s, busy / SPELL_S)
        late = seen[-int(BURSTS_S / SPELL_S) :]
        upper = known
        if len(self._pairs) >= FEWEST_PAIRS:
            said, met = np.array(self._pairs[: -MOST_PAIRS - 1 : -1]).T  # the latest first
            near = np.argsort(np.abs(np.log(said / mean)), kind="stable")[:NEIGHBOURS]
            # Bursts: the last minute tells nothing of the next.
            bursts = late.sum() and busiest(late, self.quantile) > BURSTY_RATIO * late.mean()
            upper = known if bursts else min(float(np.quantile(met[near], self.quantile)), known)
        return mean * self.bias, max(upper, mean) * self.bias
