r"""Shrunken factors: what LLMs and formats cost above or below the law, as a few numbers.

.. math:: \log(y / E_{law}) = c + u_{architecture} + u_{architecture \times precision}
          + u_{precision} + u_{family} + e,
          \qquad u \sim N(0, \kappa \sigma^2),\; e \sim N(0, \kappa s^2)

Random effects (Henderson, 1975; Laird and Ware, 1982) on the residuals of a fit: each is shrunk
toward 0 by as much as few rows leave it unknown, so that with few rows all factors are 1. The
level c is the law's own and stays out, so that an LLM without rows gets the plain law times what
its format and family have in common. All are constant within a scenario whose free knobs are
parallelism and batch: they move joules and no choice.

The standard deviations are those that rows of ML.ENERGY v2 (A100 and H100) and energy-code-eval
show, left out of fits to 100 others; none comes from ML.ENERGY v3.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

from energylens.cases import Cases, FloatArray, IntArray
from energylens.records import Llm

#: Kinds of factors, and the standard deviation of the logarithm of each.
SPREADS: Mapping[str, float] = {
    "architecture": 0.09,
    "architecture_precision": 0.14,
    "precision": 0.12,
    "family": 0.05,
}
ROW_SPREAD = 0.12  # of a single row about them
PSEUDO_ROWS = 4.0  # at these spreads that the scale of all of them starts from


def architecture_key(llm: Llm) -> str:
    """Name what an LLM computes with, whatever its own name."""
    return hashlib.sha256(repr(llm.architecture).encode()).hexdigest()[:12]


def _labels(cases: Cases) -> dict[str, list[str]]:
    """Label of each case for each kind of factor, as places (llm, precision) of the cases."""
    keys = [architecture_key(llm) for llm in cases.llms]
    names = [p.id for p in cases.precisions]
    pairs = list(zip(cases.llm_index.tolist(), cases.precision_index.tolist(), strict=True))
    return {
        "architecture": [keys[m] for m, _ in pairs],
        "architecture_precision": [f"{keys[m]} {names[p]}" for m, p in pairs],
        "precision": [names[p] for _, p in pairs],
        "family": [cases.llms[m].family for m, _ in pairs],
    }


@dataclass(frozen=True, kw_only=True, eq=False)
class Factors:
    """What the rows of a fit say of each label, as a normal distribution of its logarithm.

    Attributes
    ----------
    keys : tuple of (str, str)
        Kind and label of each of k factors.
    names : mapping of str to str
        From a key of an architecture to the LLM that it is shown by.
    mean : ndarray, shape (k,)
    covariance : ndarray, shape (k, k)
    scale_ratio : float
        Square root of kappa: the spreads of this fit over those above.
    """

    keys: tuple[tuple[str, str], ...] = ()
    names: Mapping[str, str]
    mean: FloatArray
    covariance: FloatArray
    scale_ratio: float = 1.0

    def logs(self, cases: Cases) -> tuple[FloatArray, FloatArray]:
        """Logarithm of each case's factor, and its variance beyond that of a row, shape (n,).

        A label that no row has is 0, as uncertain as labels are.
        """
        if not len(cases):
            return np.zeros(0), np.zeros(0)
        width = len(cases.precisions)
        places, index = np.unique(
            cases.llm_index * width + cases.precision_index, return_inverse=True
        )
        first = np.array([int(np.flatnonzero(index == i)[0]) for i in range(len(places))])
        labels = _labels(cases.take(first))
        number = {key: k for k, key in enumerate(self.keys)}
        known = {kind for kind, _ in self.keys}
        which = np.zeros((len(places), len(self.keys)))
        spare = np.zeros(len(places))
        for kind, own in labels.items():
            for i, label in enumerate(own):
                if (kind, label) in number:
                    which[i, number[kind, label]] = 1.0
                elif kind in known:
                    spare[i] += (self.scale_ratio * SPREADS[kind]) ** 2
        variance = np.einsum("ij,jk,ik->i", which, self.covariance, which) + spare
        return (which @ self.mean)[index.reshape(-1)], variance[index.reshape(-1)]

    def without(self, kinds: Collection[str]) -> Factors:
        """Leave kinds out: what is to be chosen freely must not be moved by a factor."""
        keep = np.array(
            [k for k, (kind, _) in enumerate(self.keys) if kind not in kinds], dtype=int
        )
        return replace(
            self,
            keys=tuple(self.keys[k] for k in keep),
            mean=self.mean[keep],
            covariance=self.covariance[np.ix_(keep, keep)],
        )

    def told(self, cases: Cases) -> list[tuple[str, float]]:
        """Words and factor for each label that the first case has and rows have moved."""
        number = {key: k for k, key in enumerate(self.keys)}
        said = []
        for kind, labels in _labels(cases.take(np.arange(1))).items():
            k = number.get((kind, labels[0]))
            if k is not None:
                said.append((self.words(kind, labels[0]), float(np.exp(self.mean[k]))))
        return said

    def words(self, kind: str, label: str) -> str:
        """Say what a factor is of, as in ``Qwen/Qwen3-32B in fp8``."""
        key, _, precision = label.partition(" ")
        name = self.names.get(key, label)
        if kind == "architecture_precision":
            return f"{name} in {precision}"
        return f"{name} LLMs" if kind == "family" else name


def none() -> Factors:
    """Make the factors of a fit without rows: there are none."""
    return Factors(names={}, mean=np.zeros(0), covariance=np.zeros((0, 0)))


@dataclass(frozen=True, kw_only=True, eq=False)
class LeftOut:
    """Residuals with the factors that other rows give, and the variance that these have."""

    residual: FloatArray
    variance: FloatArray


def fit(
    cases: Cases, logs: FloatArray, weights: FloatArray, group: IntArray
) -> tuple[Factors, LeftOut, LeftOut]:
    """Fit factors to the residuals of a law.

    Parameters
    ----------
    cases : Cases
        n cases.
    logs : ndarray, shape (n,)
        ``log(measured / law)`` of each, of a fit without it.
    weights : ndarray, shape (n,)
        How much each row counts.
    group : ndarray of int, shape (n,)
        What is left out together.

    Returns
    -------
    Factors, LeftOut, LeftOut
        The factors; and residuals of each row where the factors do not know of it, and where
        they know nothing of its group. Their variances are those of the factors alone.
    """
    labels = _labels(cases)
    # A kind with a single label says nothing that the law's coefficients do not say.
    labels = {kind: own for kind, own in labels.items() if len(set(own)) > 1}
    keys = tuple((kind, label) for kind, own in labels.items() for label in sorted(set(own)))
    number = {key: k for k, key in enumerate(keys)}
    n = len(logs)
    which = np.zeros((n, len(keys)))
    for kind, own in labels.items():
        which[np.arange(n), [number[kind, label] for label in own]] = 1.0
    prior = np.array([SPREADS[kind] ** 2 for kind, _ in keys])
    level = float(weights @ logs / weights.sum())
    centred = logs - level
    noise = ROW_SPREAD**2 / weights
    # In the space of the labels, of which there are few: the posterior of ridge regression.
    told = (which / noise[:, None]).T
    precision = np.diag(1.0 / prior) + told @ which
    spread: FloatArray = np.linalg.inv(precision).astype(np.float64)
    moment = told @ centred
    mean = spread @ moment
    misfit = float(centred @ ((centred - which @ mean) / noise))
    scale = (misfit + PSEUDO_ROWS) / (n + PSEUDO_ROWS)
    fitted = Factors(
        keys=keys,
        names={
            architecture_key(llm): llm.id
            for llm in (cases.llms[i] for i in sorted(set(cases.llm_index.tolist()), reverse=True))
        },
        mean=mean,
        covariance=scale * spread,
        scale_ratio=float(np.sqrt(scale)),
    )
    # Without a row the variance of its factors grows from v to v / (1 - v / noise).
    own = (which @ spread * which).sum(axis=1)
    rest = np.maximum(1.0 - own / noise, 1e-9)
    seen = LeftOut(residual=level + (centred - which @ mean) / rest, variance=scale * own / rest)
    residual, variance = np.empty(n), np.empty(n)
    for g in np.unique(group):
        rows = np.flatnonzero(group == g)
        without = np.linalg.inv(precision - told[:, rows] @ which[rows])
        left = without @ (moment - told[:, rows] @ centred[rows])
        residual[rows] = level + centred[rows] - which[rows] @ left
        variance[rows] = scale * (which[rows] @ without * which[rows]).sum(axis=1)
    return fitted, seen, LeftOut(residual=residual, variance=variance)
