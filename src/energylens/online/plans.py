"""What a deployment is planned with, and the best that stays as it is.

A plan knows the past only: the requests of a recorded spell before, or what the user says that the
fleet was deployed for.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np

from energylens.cases import FloatArray
from energylens.errors import InfeasibleError
from energylens.online.fleet import Fleet
from energylens.online.knowledge import Knowledge, Known
from energylens.online.rehearsal import Action
from energylens.online.trace import Trace

PEAK_WINDOW_S = 10.0
# Of the requests, by the rate of the 10 s in which they came, that a static fleet must carry:
PEAK_QUANTILE = 0.99


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What every policy is told beforehand: rates of the past.

    Attributes
    ----------
    peak_per_s : float
        That must be carried: of the busy spells of the past, or what the fleet was deployed for.
    mean_per_s : float
    rates_per_s : tuple of float
        Of successive spells.
    """

    peak_per_s: float
    mean_per_s: float
    rates_per_s: tuple[float, ...]

    @classmethod
    def of(cls, past: Trace, deployed_for_per_s: float | None = None) -> Plan:
        """Plan with a recorded spell in hand."""
        rates = past.rates_per_s(PEAK_WINDOW_S)
        return cls(
            peak_per_s=deployed_for_per_s or busiest(rates, PEAK_QUANTILE),
            mean_per_s=past.rate_per_s,
            rates_per_s=tuple(rates.tolist()),
        )


def busiest(rates: FloatArray, ratio: float) -> float:
    """Rate above which no more than the rest of the requests came: bursts carry most of them."""
    order = np.sort(rates)
    share = np.cumsum(order) / order.sum()
    return float(order[min(int(np.searchsorted(share, ratio)), len(order) - 1)])


def best_static(fleet: Fleet, known: Knowledge, plan: Plan) -> Action:
    """Layout, replicas and batch limit that the service model puts first.

    Where nothing meets the limits at the peak, the largest capacity.
    """
    best: tuple[float, Action] | None = None
    most: tuple[float, Action] | None = None
    for degree in fleet.layouts:
        for setting in known.settings:
            k = known.of(degree, setting)
            sleep, places = fleet.sleep_w(degree), fleet.most_replicas(degree)
            rest = fleet.gpus - places * degree
            for row in np.flatnonzero(k.most_rate > 0):
                replicas = max(ceil(plan.peak_per_s / k.most_rate[row]), 1)
                action = Action(
                    replicas=min(replicas, places), batch_limit=int(k.limits[row]),
                    setting=setting, tensor_parallel=degree,
                )  # fmt: skip
                carried = float(k.most_rate[row]) * places
                if most is None or carried > most[0] * 1.001:
                    most = (carried, action)
                if replicas > places:
                    continue
                watts = replicas * float(k.power_at(plan.mean_per_s / replicas, int(row)))
                watts += (places - replicas) * sleep + rest * fleet.sleep_w(1)
                if best is None or watts < best[0] * 0.9995 or (
                    watts < best[0] * 1.0005 and degree == best[1].tensor_parallel
                    and action.batch_limit > best[1].batch_limit
                ):  # fmt: skip
                    best = (watts, action)
    chosen = best or most
    if chosen is None:
        raise InfeasibleError(
            "no layout meets the limits at any rate, by the service model: relax ttft or tpot"
        )
    return chosen[1]


def most_running(k: Known) -> float:
    """Sequences in flight at the largest rate that meets the limits."""
    row = int(np.argmax(k.most_rate))
    if k.most_rate[row] <= 0:
        return 1.0
    at = k.most_rate[row]
    return float(at * np.interp(at, k.rates[row], k.request_s[row]))
