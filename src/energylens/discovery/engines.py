"""The seam to what searches: a problem in, expressions of every size out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from energylens.cases import FloatArray, IntArray
from energylens.discovery.expression import Expression


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """What an engine sees: quantities as columns and joules, each of shape (n,).

    ``weights`` say how much each row's squared relative error counts, mean 1. ``by_datasheet``:
    rows come from several GPU types, so works should be priced by their datasheets.
    """

    columns: Mapping[str, FloatArray]
    energy_j: FloatArray
    weights: FloatArray
    by_datasheet: bool

    def take(self, index: IntArray) -> Problem:
        """Return some rows."""
        return replace(
            self,
            columns={name: column[index] for name, column in self.columns.items()},
            energy_j=self.energy_j[index],
            weights=self.weights[index],
        )

    def relative(self, expressions: list[Expression]) -> FloatArray:
        """Weighted expressions over measured joules, shape (n, k): their sum should be 1.

        Multiplied with the root of the weights, as :attr:`target` is.
        """
        n = len(self.energy_j)
        x = [np.broadcast_to(e.evaluate(self.columns), (n,)) for e in expressions]
        scale = np.sqrt(self.weights) / self.energy_j
        return np.column_stack(x) * scale[:, None]

    @property
    def target(self) -> FloatArray:
        """Root of the weights, shape (n,)."""
        return np.sqrt(self.weights)


@dataclass(frozen=True, kw_only=True)
class Found:
    """One expression that an engine found: a sum of coefficients times expressions.

    Attributes
    ----------
    terms : tuple of (float, Expression)
    size : int
        What the engine counts.
    loss : float
        Weighted sum of squared relative errors.
    criterion : float
        Extended Bayesian information criterion: ``n log(loss / n)``, plus log n for each fitted
        number, plus twice the nats that it takes to name the form among its rivals.
    meanings : tuple of str
        Of each addend, or empty.
    skeletons : tuple of str
        The addends without their fitted numbers, to recognise them again.
    """

    terms: tuple[tuple[float, Expression], ...]
    size: int
    loss: float
    criterion: float
    skeletons: tuple[str, ...]
    meanings: tuple[str, ...] = ()

    def predict_energy_j(self, columns: Mapping[str, FloatArray]) -> FloatArray:
        """Joules per request, shape (n,)."""
        total: FloatArray = np.sum([c * e.evaluate(columns) for c, e in self.terms], axis=0)
        return total


class Engine(Protocol):
    """Whatever searches for expressions."""

    @property
    def name(self) -> str:
        """The name that ``--engine`` takes."""

    @property
    def fitted_constants(self) -> bool:
        """Whether numbers inside its expressions were fitted, so that they may carry units."""

    @property
    def folds(self) -> int:
        """Folds for which its searches are fast enough."""

    @property
    def samples(self) -> int:
        """Resamples for which its searches are fast enough."""

    def candidates(self, problem: Problem) -> int:
        """Count what it may choose from."""

    def search(self, problem: Problem, *, seed: int, largest: int | None) -> list[Found]:
        """Find the best expression of each size, smallest first.

        Parameters
        ----------
        largest : int or None
            Size beyond which nothing is needed; None for the engine's own limit, and for the
            thorough search over all rows.
        """


def fitted(columns: FloatArray, target: FloatArray) -> tuple[FloatArray, float]:
    """Least-squares coefficients of columns, shape (n, k), and the loss that remains."""
    size = np.sqrt((columns**2).sum(axis=0))
    solution, *_ = np.linalg.lstsq(columns / size, target, rcond=1e-12)
    residual = (columns / size) @ solution - target
    return np.asarray(solution / size, dtype=np.float64), float(residual @ residual)
