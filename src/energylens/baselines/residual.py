"""What another model leaves, learned as a smooth function of the knobs and a level for each LLM.

A Gaussian process (Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006) on the
logarithm of measured over predicted joules. Beside trees on the same residual it is the other
way to put a learner on top of a closed form; which model that is, is not known here.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular

from energylens.baselines.ensembles import Base
from energylens.cases import Cases, FloatArray
from energylens.counts import in_flight
from energylens.dataset import Dataset
from energylens.errors import FitError
from energylens.protocols import Predictor

FEWEST_ROWS = 3
# Standard deviations of log joules that are tried, and reaches in doublings of a knob.
SMOOTH = (0.05, 0.1, 0.2, 0.4)
LEVELS = (0.05, 0.1, 0.2, 0.4)
NOISE = (0.03, 0.06, 0.12, 0.24)
REACHES = (1.0, 2.0, 4.0)
# Likelihoods this close, in nats, are a tie: the first of them is taken, which says the least.
SAME_LIKELIHOOD_NATS = 1e-6


@dataclass(frozen=True, kw_only=True)
class Spreads:
    """Standard deviations of the parts of a residual, in log joules, and how far one reaches."""

    smooth: float
    level: float
    noise: float
    reach_doublings: float


@dataclass(frozen=True, kw_only=True, eq=False)
class _Places:
    """Where cases stand: knobs in doublings, shape (n, 4); architecture and precision, by name."""

    knobs: FloatArray
    architectures: list[object]
    precisions: list[str]

    @classmethod
    def of(cls, cases: Cases) -> _Places:
        gpus = cases.occupied_gpus
        knobs = (in_flight(cases), gpus, cases.input_tokens, cases.output_tokens)
        architecture = [llm.architecture for llm in cases.llms]
        precision = [p.id for p in cases.precisions]
        return cls(
            knobs=np.log2(np.column_stack(knobs)),
            architectures=[architecture[i] for i in cases.llm_index],
            precisions=[precision[i] for i in cases.precision_index],
        )

    def shared_with(self, other: _Places) -> tuple[FloatArray, FloatArray]:
        """Squared distances in knobs, and levels shared; both of shape (n, m)."""
        away: FloatArray = ((self.knobs[:, None] - other.knobs[None]) ** 2).sum(axis=2)
        keys = list(zip(self.architectures, self.precisions, strict=True))
        others = list(zip(other.architectures, other.precisions, strict=True))
        # One part is common to all, one to an architecture, one to its precision.
        shared = 1.0 + _same(self.architectures, other.architectures) + _same(keys, others)
        return away, shared


def _same(ours: Sequence[object], theirs: Sequence[object]) -> FloatArray:
    numbers: dict[object, int] = {}
    a, b = (
        np.array([numbers.setdefault(key, len(numbers)) for key in keys]) for keys in (ours, theirs)
    )
    same: FloatArray = np.equal(a[:, None], b[None]).astype(np.float64)
    return same


def _covariance(spreads: Spreads, away: FloatArray, shared: FloatArray) -> FloatArray:
    smooth = np.exp(-0.5 * away / spreads.reach_doublings**2)
    covariance: FloatArray = spreads.smooth**2 * smooth + spreads.level**2 * shared
    return covariance


@dataclass(frozen=True, kw_only=True, eq=False)
class _Smoothed:
    base: Predictor
    places: _Places
    spreads: Spreads
    weights: FloatArray  # of each training row

    def predict_energy_j(self, cases: Cases) -> FloatArray:
        if len(cases) == 0:
            return np.empty(0)
        covariance = _covariance(self.spreads, *_Places.of(cases).shared_with(self.places))
        energy: FloatArray = self.base.predict_energy_j(cases) * np.exp(covariance @ self.weights)
        return energy


@dataclass(frozen=True, kw_only=True)
class SmoothResidual:
    """A model times a smooth function of batch, GPUs and lengths, and a level for each LLM.

    The spreads are those of a grid under which the training rows are likeliest.

    Parameters
    ----------
    name : str
        As tables print it.
    base : callable
        Fits the model underneath to the same rows.
    """

    name: str
    base: Base
    ranks_only: bool = False

    def fit(self, dataset: Dataset) -> _Smoothed:
        """Fit both; raises FitError with fewer than three rows."""
        if len(dataset) < FEWEST_ROWS:
            raise FitError(
                f"a smooth residual needs {FEWEST_ROWS} rows or more; given {len(dataset)}: "
                "add rows or leave this baseline out"
            )
        base = self.base(dataset)
        left = np.log(dataset.energy_per_request_j / base.predict_energy_j(dataset.cases))
        places = _Places.of(dataset.cases)
        away, shared = places.shared_with(places)
        best: tuple[float, Spreads, FloatArray] | None = None
        for level, smooth, reach in itertools.product(LEVELS, SMOOTH, REACHES[::-1]):
            spreads = Spreads(smooth=smooth, level=level, noise=0.0, reach_doublings=reach)
            covariance = _covariance(spreads, away, shared)
            for noise in NOISE:
                root = cholesky(covariance + noise**2 * np.eye(len(left)), lower=True)
                whitened = solve_triangular(root, left, lower=True)
                nats = -0.5 * float(whitened @ whitened) - float(np.log(np.diag(root)).sum())
                if best is None or nats > best[0] + SAME_LIKELIHOOD_NATS:
                    weights = cho_solve((root, True), left)
                    best = (nats, replace(spreads, noise=noise), weights)
        if best is None:  # the grid is never empty
            raise FitError("no spreads to choose from")
        return _Smoothed(base=base, places=places, spreads=best[1], weights=best[2])
