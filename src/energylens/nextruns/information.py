"""Runs that tell most of the coefficients: an exact-size design by exchange."""

from __future__ import annotations

from copy import copy

import numpy as np

from energylens.cases import BoolArray, FloatArray, IntArray
from energylens.formula import NAMES, SPREADS
from energylens.nextruns.ground import _Ground, log_slopes

TIE_RATIO = 0.01  # gains closer than this are a tie: the cheaper run is taken
EXCHANGES = 3  # rounds of them at most
POOL = 4000  # runs compared in full; of more candidates the most telling
POOL_PER_TERM = 200  # ... and those in which one term has its largest share


# --------------------------------------------------------------------- telling coefficients apart


class Information:
    """What measured rows tell of the twelve coefficients, at each of D draws of them.

    Parameters
    ----------
    x : ndarray, shape (n, 12)
        Joules of each term at theta = 1.
    kin : ndarray of int, shape (n,)
        Rows with the same number share an error.
    theta : ndarray, shape (D, 12)
        Coefficients at which the law is linearised.
    within, between : float
        Spread of a row's own relative error, and of the one that it shares with its kin.
    """

    def __init__(
        self, x: FloatArray, kin: IntArray, theta: FloatArray, within: float, between: float
    ) -> None:
        self.slope = np.array([log_slopes(x, draw) for draw in theta])  # (D, n, 12)
        self.kin, self.own, self.shared = kin, within**2, between**2
        self.matrix = np.tile(np.diag(1.0 / SPREADS**2), (len(theta), 1, 1))
        self.rows = np.zeros(int(kin.max()) + 1)
        self.sums = np.zeros((len(theta), len(self.rows), len(SPREADS)))

    def copy(self) -> Information:
        """Return the same, to add other rows to."""
        other = copy(self)
        other.matrix, other.rows = self.matrix.copy(), self.rows.copy()
        other.sums = self.sums.copy()
        return other

    def log_det(self) -> FloatArray:
        """Log determinant of the information at each draw, shape (D,)."""
        return np.asarray(np.linalg.slogdet(self.matrix)[1])

    def spreads(self) -> FloatArray:
        """Standard deviation of each coefficient over its prior one, shape (D, 12)."""
        variance = np.diagonal(np.linalg.inv(self.matrix), axis1=1, axis2=2)
        return np.asarray(np.sqrt(variance) / SPREADS)

    def gains(self, rows: IntArray) -> FloatArray:
        """Nats that each row would add, mean over draws; shape of ``rows``."""
        total = np.zeros(len(rows))
        for d, inverse in enumerate(np.linalg.inv(self.matrix)):
            h, variance = self._apart(rows, d)
            total += np.log1p(((h @ inverse) * h).sum(axis=1) / variance)
        return total / len(self.matrix)

    def add(self, row: int) -> None:
        """Take one row in."""
        self._tell(row, 1.0)
        self._count(row, 1.0)

    def remove(self, row: int) -> None:
        """Take one row out that was taken in."""
        self._count(row, -1.0)
        self._tell(row, -1.0)

    def _count(self, row: int, sign: float) -> None:
        self.rows[self.kin[row]] += sign
        self.sums[:, self.kin[row]] += sign * self.slope[:, row]

    def _tell(self, row: int, sign: float) -> None:
        for d in range(len(self.matrix)):
            h, variance = self._apart(np.array([row]), d)
            self.matrix[d] += sign * h.T @ h / variance

    def _apart(self, rows: IntArray, d: int) -> tuple[FloatArray, FloatArray]:
        """What rows say beyond the error that their kin have shown, and the variance of it."""
        kin = self.kin[rows]
        rho = self.shared / (self.own + self.rows[kin] * self.shared)
        return self.slope[d, rows] - rho[:, None] * self.sums[d, kin], self.own * (1.0 + rho)


def _pool(ground: _Ground, theta: FloatArray, contenders: list[IntArray]) -> IntArray:
    """Candidates worth comparing in full: all, or the most telling of very many."""
    rows = np.flatnonzero(ground.open)
    if len(rows) <= POOL:
        return rows
    gain = np.zeros(len(rows))
    extreme = []
    x = ground.x[rows]
    for draw in theta:
        slope = log_slopes(x, draw)
        gain += np.log1p((slope**2) @ SPREADS**2 / ground.within**2)
        share = slope * draw
        extreme.append(np.argpartition(-share, POOL_PER_TERM // len(theta), axis=0))
    best = np.argpartition(-gain, POOL // 2)[: POOL // 2]
    tops = [part[: POOL_PER_TERM // len(theta)].reshape(-1) for part in extreme]
    competing = np.concatenate([np.empty(0, dtype=np.intp), *contenders])
    telling = rows[np.concatenate([best, *tops])]
    return np.unique(np.concatenate([telling, competing[ground.open[competing]]]))


def _most_telling(
    information: Information,
    free: BoolArray,
    count: int,
    cost: FloatArray,
    *,
    exchanges: int = EXCHANGES,
) -> list[int]:
    """Take in the rows that raise the log determinant most: greedily, then by exchanges.

    The first ``len(free)`` rows of the information may be taken where ``free`` says so.
    """
    every = np.arange(len(free))

    def best() -> tuple[int, FloatArray]:
        gains = np.where(free, information.gains(every), -np.inf)
        return _cheapest_of_best(gains, cost), gains

    chosen: list[int] = []
    for _ in range(min(count, int(free.sum()))):
        place, _ = best()
        free[place] = False
        information.add(place)
        chosen.append(place)
    for _ in range(exchanges):
        before = list(chosen)
        for i, place in enumerate(chosen):
            information.remove(place)
            free[place] = True
            other, gains = best()
            if gains[other] > gains[place] * (1.0 + TIE_RATIO):
                chosen[i] = other
            free[chosen[i]] = False
            information.add(chosen[i])
        if chosen == before:
            break
    return chosen


def _in_order(information: Information, rows: list[int], cost: FloatArray) -> list[int]:
    """Order runs so that each tells the most that is left to tell."""
    known, left, order = information.copy(), np.array(rows, dtype=np.intp), []
    while len(left):
        place = _cheapest_of_best(known.gains(left), cost[left])
        order.append(int(left[place]))
        known.add(order[-1])
        left = np.delete(left, place)
    return order


def _cheapest_of_best(gains: FloatArray, cost: FloatArray) -> int:
    """Place of the highest gain; of those that tie with it, of the cheapest, then the first."""
    tied = np.flatnonzero(gains >= gains.max() * (1.0 - TIE_RATIO))
    return int(tied[np.argmin(cost[tied])])


def _named(spreads: FloatArray, spoken: BoolArray) -> tuple[tuple[str, float], ...]:
    mean = spreads.mean(axis=0)
    return tuple((name, float(mean[k])) for k, name in enumerate(NAMES) if spoken[k])


def _what_it_tells(before: FloatArray, after: FloatArray) -> str:
    """Name the one or two coefficients of which a run tells most."""
    fall = np.log(before / after).mean(axis=0)
    order = np.argsort(-fall, kind="stable")
    named = [k for k in order[:2] if fall[k] > 0.5 * fall[order[0]]]
    shown = {NAMES[k]: [f"{x[:, k].mean():.2g}" for x in (before, after)] for k in named}
    names = [f"{name} ({was} to {now})" for name, (was, now) in shown.items() if was != now]
    return f"tells {' and '.join(names)}" if names else "confirms what is known"
