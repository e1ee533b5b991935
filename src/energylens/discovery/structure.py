"""A discovered structure as a contestant: frozen and refitted, or searched for anew."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from energylens.cases import Cases, FloatArray
from energylens.dataset import Dataset
from energylens.discovery.engines import Engine
from energylens.discovery.expression import Expression
from energylens.discovery.front import FrontPoint
from energylens.discovery.library import quantity_columns
from energylens.discovery.own import OwnEngine
from energylens.discovery.search import discover
from energylens.errors import FitError


@dataclass(frozen=True, kw_only=True)
class FittedStructure:
    """Expressions times coefficients: a Predictor."""

    expressions: tuple[Expression, ...]
    coefficients: tuple[float, ...]

    def predict_energy_j(self, cases: Cases) -> FloatArray:
        """Predict joules per request, shape (n,); NaN where every term is absent."""
        total = _columns(self.expressions, cases) @ np.array(self.coefficients)
        return np.where(total > 0, total, np.nan)


@dataclass(frozen=True, kw_only=True)
class Structure:
    """Expressions whose coefficients are to be fitted: an Estimator.

    Fitting is non-negative least squares of the relative error, without a prior.
    """

    expressions: tuple[Expression, ...]
    name: str = "structure"
    ranks_only: bool = False

    @classmethod
    def of(cls, point: FrontPoint, name: str = "structure") -> Structure:
        """Take the expressions of a point, and leave its coefficients."""
        return cls(expressions=tuple(term.expression for term in point.terms), name=name)

    def fit(self, dataset: Dataset) -> FittedStructure:
        """Fit to measured rows.

        Raises
        ------
        FitError
            If there is no row, or no expression is above 0 on any.
        """
        from scipy.optimize import nnls

        if len(dataset) == 0:
            raise FitError("a structure needs one measured row or more; the dataset has none")
        a = _columns(self.expressions, dataset.cases) / dataset.energy_per_request_j[:, None]
        size = np.sqrt((a**2).sum(axis=0))
        if not (np.isfinite(size).all() and size.any()):
            raise FitError(
                "the expressions of a structure must be finite on every row and above 0 on some; "
                "fit it to rows like those that it was found in"
            )
        size[size == 0] = 1.0
        solution, _ = nnls(a / size, np.ones(len(dataset)), maxiter=100 * len(size))
        return FittedStructure(
            expressions=self.expressions, coefficients=tuple((solution / size).tolist())
        )


@dataclass(frozen=True, kw_only=True)
class Discovery:
    """Search and fit together: an Estimator that finds its own structure in the rows it gets.

    With it, an evaluation judges a form by rows that took no part in choosing it.
    """

    engine: Engine = field(default_factory=OwnEngine)
    seed: int = 0
    name: str = "discovered"
    ranks_only: bool = False

    def fit(self, dataset: Dataset) -> FrontPoint:
        """Discover, and take the knee."""
        return discover(dataset, self.engine, samples=0, seed=self.seed).knee


def _columns(expressions: tuple[Expression, ...], cases: Cases) -> FloatArray:
    columns = quantity_columns(cases)
    return np.column_stack(
        [np.broadcast_to(e.evaluate(columns), (len(cases),)) for e in expressions]
    )
