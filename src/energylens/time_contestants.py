"""Time in place of joules: the same protocols, scenarios and contestants judge seconds.

The rows that have the time asked about stand in with it as what is predicted, and with every
measured time taken out of their cases, so that whatever learns joules learns seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from energylens import latency
from energylens.cases import Cases, FloatArray
from energylens.dataset import Dataset
from energylens.errors import UsageError
from energylens.latency import COLUMNS, Target, TimeModel
from energylens.latency_fitting import fit_latency, observed_s
from energylens.protocols import Estimator, Predictor

HIDDEN = ("ttft_s", "tpot_s", "request_latency_s", "median_itl_s", "average_power_w")


def as_target(dataset: Dataset, target: Target) -> Dataset:
    """Put a time in place of joules, in the rows that have it.

    Raises
    ------
    UsageError
        If fewer than two rows have it.
    """
    measured = observed_s(dataset, target)
    known = ~np.isnan(measured)
    if known.sum() < 2:
        raise UsageError(
            f"--target {target} needs rows with {COLUMNS[target]}, and {int(known.sum())} of "
            f"{len(dataset)} have it"
        )
    rows = dataset.take(known)
    nothing = np.full(len(rows), np.nan)
    return replace(
        rows,
        cases=rows.cases.replace(**dict.fromkeys(HIDDEN, np.nan)),
        energy_per_request_j=measured[known],
        prefill_energy_per_request_j=nothing,
        decode_energy_per_request_j=nothing,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class TimePredictor:
    """A time law behind the seam that judges look through."""

    model: TimeModel
    target: Target

    def predict_energy_j(self, cases: Cases) -> FloatArray:
        """Predict seconds, shape (n,)."""
        return self.model.predict_s(cases, self.target)

    def interval_energy_j(
        self, cases: Cases, coverage_ratio: float
    ) -> tuple[FloatArray, FloatArray]:
        """Lower and upper seconds of a new measurement, each of shape (n,)."""
        return self.model.interval_s(cases, coverage_ratio, self.target)

    def sample_energy_j(self, cases: Cases, samples: int, seed: int) -> FloatArray:
        """Draw predictions as the intervals say, shape (samples, n)."""
        rng = np.random.default_rng(seed)
        ratio = rng.uniform(0.02, 0.98, samples)
        return np.stack([self.model.quantile_s(cases, float(r), self.target) for r in ratio])


@dataclass(frozen=True, kw_only=True)
class TimeContestant:
    """The time law, fitted to rows whose joules are seconds (:func:`as_target`)."""

    target: Target
    name: str = "energylens"
    ranks_only: bool = False
    factors: bool = True
    fitted: bool = True

    def fit(self, dataset: Dataset) -> TimePredictor:
        """Fit to the training rows, or take the datasheet's law."""
        if not self.fitted:
            return TimePredictor(model=latency.from_datasheet(), target=self.target)
        column = {COLUMNS[self.target]: dataset.energy_per_request_j}
        rows = replace(dataset, cases=dataset.cases.replace(**column))
        model = fit_latency(rows, self.target, factors=self.factors)
        return TimePredictor(model=model, target=self.target)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Times:
    inner: Predictor
    target: Target

    def predict_energy_j(self, cases: Cases) -> FloatArray:
        sheet = latency.from_datasheet().predict_s(cases, self.target)
        return self.inner.predict_energy_j(cases) * sheet


@dataclass(frozen=True, kw_only=True)
class OnDatasheet:
    """Any learner, on the ratio of measured seconds to those of the datasheet's law."""

    inner: Estimator
    target: Target

    @property
    def name(self) -> str:
        """As tables print it."""
        return f"{self.inner.name}-on-datasheet"

    @property
    def ranks_only(self) -> bool:
        """Whether it gives no seconds."""
        return self.inner.ranks_only

    def fit(self, dataset: Dataset) -> _Times:
        """Fit the learner to the ratios."""
        sheet = latency.from_datasheet().predict_s(dataset.cases, self.target)
        rows = replace(dataset, energy_per_request_j=dataset.energy_per_request_j / sheet)
        return _Times(inner=self.inner.fit(rows), target=self.target)


Factory = Callable[[int], Estimator]
#: Contestants that predict something in its own right, and so seconds as well as joules.
LEARNERS = (
    "log-linear", "random-forest", "extra-trees", "gradient-boosting", "xgboost", "lightgbm",
)  # fmt: skip
ON_DATASHEET = ("extra-trees", "gradient-boosting", "xgboost")


def time_contestants(target: Target, learners: Mapping[str, Factory]) -> dict[str, Factory]:
    """Make the contestants that judge a time: the law, and learners that are given.

    Parameters
    ----------
    target : {"latency", "tpot", "itl", "ttft"}
    learners : mapping of str to callable
        All contestants for joules; those that predict are kept, some on the datasheet too.
    """

    def law(factors: bool, fitted: bool, name: str) -> Factory:
        return lambda _: TimeContestant(target=target, name=name, factors=factors, fitted=fitted)

    def on(make: Factory) -> Factory:
        return lambda seed: OnDatasheet(inner=make(seed), target=target)

    made = {
        "energylens": law(True, True, "energylens"),
        "energylens-no-factors": law(False, True, "energylens-no-factors"),
        "energylens-datasheet": law(False, False, "energylens-datasheet"),
    }
    for name in LEARNERS:
        if name in learners:
            made[name] = learners[name]
            if name in ON_DATASHEET:
                made[f"{name}-on-datasheet"] = on(learners[name])
    return made
