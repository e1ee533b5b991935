"""Runs that decide most: what they are expected to change about the configurations chosen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from energylens.cases import BoolArray, FloatArray, IntArray
from energylens.fitting.problem import REACH_DOUBLINGS
from energylens.formula import OVERLAPS
from energylens.model import draw_theta, knob_place, residual_covariance
from energylens.nextruns.ground import _Ground, log_slopes
from energylens.nextruns.information import _cheapest_of_best

CONTENDERS = 12  # configurations of a scenario, by predicted joules, that may be the best
LARGEST_BELIEF = 1000  # configurations whose joint distribution a choice of runs looks at
BESIDE = 100  # runs besides the contenders that may tell them apart
NODES = 9  # of the quadrature over a run's outcome
LEAST_RATIO = 0.1  # of the joules that the law expects, which no draw of it is below
REPEAT_RATIO = 0.02  # by which a repeated measurement differs


# ---------------------------------------------------------------------- telling candidates apart


@dataclass(frozen=True, kw_only=True, eq=False)
class _Belief:
    """What is believed of the log energies of some candidates.

    The law at coefficients that are uncertain, plus a residual that kin share and that
    neighbouring configurations have in common; measured kin tell of both.
    """

    at: IntArray
    mean: FloatArray  # (T,)
    slope: FloatArray  # change with the coefficients, less what measured kin would show of it
    residual: tuple[tuple[IntArray, FloatArray], ...]  # places of kin, and their covariance
    known: FloatArray  # (T, m): weight of each measured row's residual

    @classmethod
    def of(cls, ground: _Ground, at: IntArray) -> _Belief:
        """Lay out the belief about the candidates at ``at``, shape (T,)."""
        place, spot = knob_place(ground.cases), ground.spot
        known = np.zeros((len(at), len(spot)))
        residual = []
        kin_at, kin_of = ground.kin[at], ground.kin[spot]
        order = np.argsort(kin_at, kind="stable")
        for mine in np.split(order, np.flatnonzero(np.diff(kin_at[order])) + 1):
            here = place[at[mine]]
            covariance = cls._shared(ground, here, here)
            rows = np.flatnonzero(kin_of == kin_at[mine[0]])
            if len(rows):
                there = place[spot[rows]]
                across = cls._shared(ground, here, there)
                noise = REPEAT_RATIO**2 * np.eye(len(rows))
                weight = np.linalg.solve(cls._shared(ground, there, there) + noise, across.T).T
                known[np.ix_(mine, rows)] = weight
                covariance = covariance - weight @ across.T
            residual.append((mine, covariance))
        slope = log_slopes(ground.x, ground.coefficients.theta)
        return cls(
            at=at,
            mean=np.log(ground.energy_j[at]) + known @ ground.log_ratio,
            slope=slope[at] - known @ slope[spot],
            residual=tuple(residual),
            known=known,
        )

    @staticmethod
    def _shared(ground: _Ground, a: FloatArray, b: FloatArray) -> FloatArray:
        """Prior covariance of the residuals of kin at two lists of places."""
        common, own = ground.between**2, ground.within**2
        return residual_covariance(a, b, common=common, own=own, reach=REACH_DOUBLINGS)

    def covariance(self, ground: _Ground) -> FloatArray:
        """Covariance of the log energies, linear in the coefficients; shape (T, T)."""
        covariance: FloatArray = self.slope @ ground.coefficients.covariance @ self.slope.T
        for mine, residual in self.residual:
            covariance[np.ix_(mine, mine)] += residual
        return covariance

    def draw(self, ground: _Ground, samples: int, rng: np.random.Generator) -> FloatArray:
        """Draw log energies jointly, shape (samples, T): the law itself, not its tangent."""
        theta = np.maximum(draw_theta(ground.coefficients, samples, rng), 0.0)
        # Coefficients cut at 0 may leave a draw next to no joules, which no request takes, and
        # what measured rows took beyond it would then be believed of their kin.
        least = np.log(ground.energy_j) + np.log(LEAST_RATIO)
        drawn: FloatArray = np.maximum(_log_energies(ground.x[self.at], theta), least[self.at])
        spot = ground.spot
        # Each draw of the coefficients leaves residuals of its own at the measured rows.
        seen = ground.log_ratio + np.log(ground.energy_j[spot])
        drawn += (seen - np.maximum(_log_energies(ground.x[spot], theta), least[spot])) @ (
            self.known.T
        )
        for mine, residual in self.residual:
            values, vectors = np.linalg.eigh(residual)
            root = vectors * np.sqrt(np.maximum(values, 0.0))
            drawn[:, mine] += rng.standard_normal((samples, len(mine))) @ root.T
        return drawn


def _log_energies(x: FloatArray, theta: FloatArray) -> FloatArray:
    """Log energies of n cases under each of s coefficient sets, shape (s, n)."""
    total = theta @ x.T
    for a, b in OVERLAPS:
        first, second = np.outer(theta[:, a], x[:, a]), np.outer(theta[:, b], x[:, b])
        total += np.sqrt(first * first + second * second) - first - second
    return np.log(np.maximum(total, np.finfo(np.float64).tiny))


def _contenders(ground: _Ground, theta: FloatArray) -> list[IntArray]:
    """Of each scenario, the candidates that may be its best: lowest now, or in some draw."""
    most = max(2, min(CONTENDERS, LARGEST_BELIEF // len(ground.scenarios)))
    candidates = np.concatenate(ground.scenarios)
    drawn = _log_energies(ground.x[candidates], theta)
    start = 0
    contenders = []
    for rows in ground.scenarios:
        part = drawn[:, start : start + len(rows)]
        start += len(rows)
        lowest = np.argsort(ground.energy_j[rows], kind="stable")[:most]
        measured = np.flatnonzero(np.isin(ground.done, rows))
        kept = [rows[lowest], rows[part.argmin(axis=1)]]
        if len(measured):
            kept.append(ground.done[measured[[int(np.argmin(ground.measured_j[measured]))]]])
        contenders.append(np.unique(np.concatenate(kept)))
    return contenders


def _within(contenders: list[IntArray], limit: int) -> IntArray:
    """Places of all scenarios, or evenly spaced ones with so many configurations together."""
    together = sum(len(rows) for rows in contenders)
    return np.arange(0, len(contenders), -(-together // limit))


@dataclass(frozen=True, kw_only=True)
class _Deciding:
    """A run that is to tell candidates apart."""

    place: int  # in the pool
    why: str
    gain: float


def _most_deciding(
    ground: _Ground, contenders: list[IntArray], pool: IntArray, free: BoolArray, count: int
) -> list[_Deciding]:
    """Choose runs of the pool by the knowledge gradient; those not ``free`` are made as well.

    Of a run's outcome only its spread is known beforehand; each next run is chosen with that
    taken into account and the expectation left where it is.
    """
    looked_at = _within(contenders, LARGEST_BELIEF)
    contenders = [contenders[s] for s in looked_at]
    competing = np.concatenate(contenders)
    starts = np.cumsum([0, *(len(c) for c in contenders)])[:-1]
    beside = np.linspace(0, len(pool) - 1, min(BESIDE, len(pool))).astype(np.intp)
    made = pool[~free]
    at = np.concatenate([competing, np.setdiff1d([*made, *pool[beside]], competing)])
    belief = _Belief.of(ground, at)
    covariance, mean = belief.covariance(ground), belief.mean[: len(competing)]
    left = ground.open[at]
    for known in np.flatnonzero(np.isin(at, made)):
        left[known] = False
        _condition(covariance, int(known))
    chosen = []
    for _ in range(count):
        options = np.flatnonzero(left)
        if not len(options):
            break
        gain, by_scenario = _knowledge_gradient(covariance, mean, starts, options)
        if gain.max() <= 1e-9:
            break
        best = _cheapest_of_best(gain, ground.batch_energy_j[at[options]])
        place = int(options[best])
        helped = int(np.argmax(by_scenario[:, best]))
        left[at == at[place]] = False
        in_pool = int(np.searchsorted(pool, at[place]))
        free[in_pool] = False
        stop = starts[helped] + len(contenders[helped])
        rivals = contenders[helped][np.argsort(mean[starts[helped] : stop], kind="stable")[:2]]
        chosen.append(
            _Deciding(
                place=in_pool,
                why=f"tells {' from '.join(map(ground.configuration, map(int, rivals)))} for "
                f"{ground.name(int(looked_at[helped]))}",
                gain=float(gain[best]),
            )
        )
        _condition(covariance, place)
    return chosen


def _condition(covariance: FloatArray, place: int) -> None:
    """Take one run into account, in place."""
    column = covariance[:, place].copy()
    covariance -= np.outer(column, column / (column[place] + REPEAT_RATIO**2))


def _knowledge_gradient(
    covariance: FloatArray, mean: FloatArray, starts: IntArray, options: IntArray
) -> tuple[FloatArray, FloatArray]:
    """Expected fall of the log energy of the choice by each run.

    Returns
    -------
    mean, by_scenario : ndarray, shape (options,), (scenarios, options)
    """
    spread = np.sqrt(np.maximum(covariance[options, options], 0.0) + REPEAT_RATIO**2)
    shift = covariance[: len(mean)][:, options] / spread
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    weights = weights / weights.sum()
    expected = np.zeros((len(starts), len(options)))
    for node, weight in zip(nodes, weights, strict=True):
        expected += weight * np.minimum.reduceat(mean[:, None] + node * shift, starts, axis=0)
    gain = np.maximum(np.minimum.reduceat(mean, starts)[:, None] - expected, 0.0)
    return gain.mean(axis=0), gain


def _best_linear(values: FloatArray, outcomes: FloatArray) -> FloatArray:
    """Best linear estimate of each value from the outcomes, over joint draws of both."""
    centred = outcomes - outcomes.mean(axis=0)
    weights = np.linalg.lstsq(centred, values - values.mean(axis=0), rcond=1e-10)[0]
    return np.asarray(values.mean(axis=0) + centred @ weights)
