"""The seams: what can be exchanged, and what may be assumed of it.

Anything with these methods stands in; nothing needs to inherit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from energylens.cases import Cases, FloatArray

if TYPE_CHECKING:
    from energylens.dataset import Dataset


class Predictor(Protocol):
    """Whatever predicts joules. There is no unfitted predictor."""

    def predict_energy_j(self, cases: Cases) -> FloatArray:
        """Predict the energy per request of each case.

        Parameters
        ----------
        cases : Cases
            n cases.

        Returns
        -------
        ndarray of float, shape (n,)
            Joules per request. A predictor that can only rank (latency as a proxy) returns a
            score that orders like joules; its estimator says so with ``ranks_only``. NaN where
            the predictor has no answer.
        """


@runtime_checkable
class IntervalPredictor(Protocol):
    """A predictor that says how sure it is."""

    def predict_energy_j(self, cases: Cases) -> FloatArray:
        """Predict as :class:`Predictor` does."""

    def interval_energy_j(
        self, cases: Cases, coverage_ratio: float
    ) -> tuple[FloatArray, FloatArray]:
        """Lower and upper joules per request, each of shape (n,), that should cover a new
        measurement with probability ``coverage_ratio``.
        """  # noqa: D205

    def sample_energy_j(self, cases: Cases, samples: int, seed: int) -> FloatArray:
        """Draw joint predictions, shape (samples, n), from what the fit leaves uncertain."""


class Estimator(Protocol):
    """Whatever can be fitted to measurements."""

    @property
    def name(self) -> str:
        """The name that tables print and ``--estimators`` takes."""

    @property
    def ranks_only(self) -> bool:
        """Whether predictions order configurations without being joules."""

    def fit(self, dataset: Dataset) -> Predictor:
        """Fit to measured rows.

        Raises
        ------
        FitError
            If the rows cannot determine this estimator.
        """
