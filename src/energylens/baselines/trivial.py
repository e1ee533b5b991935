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


def random_pick() -> Rule:
    """Every case ties with every other, which counts as the expected value of a random pick."""
    return Rule(name="random", score=lambda cases: np.ones(len(cases)))


def first_candidate() -> Rule:
    """The order in which the cases are given: what taking the first row would be worth."""
    return Rule(name="first-candidate", score=lambda cases: np.arange(1.0, len(cases) + 1.0))


def fewest_gpus() -> Rule:
    """Use as few GPUs as possible; ties where the number is the same."""
    return Rule(name="fewest-gpus", score=lambda cases: cases.occupied_gpus)


def largest_batch() -> Rule:
    """Batch as much as possible (by the limit set); ties where the limit is the same."""
    return Rule(name="largest-batch", score=lambda cases: 1.0 / cases.batch_size)


def largest_batch_per_gpu() -> Rule:
    """Batch as much as possible for each GPU: both rules of thumb in one number."""
    return Rule(
        name="largest-batch-per-gpu", score=lambda cases: cases.occupied_gpus / cases.batch_size
    )
