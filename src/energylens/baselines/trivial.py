"""Rules of thumb. They need no measurements, and a contestant must beat them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from energylens.cases import Cases, FloatArray
from energylens.dataset import Dataset


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Orders configurations by a number that is known beforehand; lower is better.

    Fitting is a formality: the rule is its own predictor.
    """

    name: str
    score: Callable[[Cases], FloatArray]
    ranks_only: bool = True

    def fit(self, dataset: Dataset) -> Rule:  # noqa: ARG002
        """Return the rule itself; the rows are not looked at."""
        return self

    def predict_energy_j(self, cases: Cases) -> FloatArray:
        """Give the score of each case, shape (n,): it orders, it is not joules."""
        return self.score(cases)


#: Every case ties (a random pick); the order given; few GPUs; large batches by the limit set; both.
RULES = (
    Rule(name="random", score=lambda cases: np.ones(len(cases))),
    Rule(name="first-candidate", score=lambda cases: np.arange(1.0, len(cases) + 1.0)),
    Rule(name="fewest-gpus", score=lambda cases: cases.occupied_gpus),
    Rule(name="largest-batch", score=lambda cases: 1.0 / cases.batch_size),
    Rule(name="largest-batch-per-gpu", score=lambda cases: cases.occupied_gpus / cases.batch_size),
)
