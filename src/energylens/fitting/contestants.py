"""The law as contestants: fitted, scaled by one factor, and as it stands on datasheets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from energylens import latency
from energylens.cases import Cases, FloatArray
from energylens.dataset import Dataset
from energylens.errors import FitError
from energylens.fitting.law import fit_rows, from_datasheet
from energylens.fitting.options import FitOptions
from energylens.loaded import LoadedModel, fit_loaded
from energylens.model import EnergyModel


@dataclass(frozen=True, kw_only=True)
class EnergyLens:
    """The law as a contestant: an Estimator."""

    options: FitOptions = field(default_factory=FitOptions)
    name: str = "energylens"
    ranks_only: bool = False

    def fit(self, dataset: Dataset) -> EnergyModel | LoadedModel:
        """Fit the law to measured rows; a fold of them may have none with a power cap."""
        if len(dataset) and dataset.under_load.any():
            return fit_loaded(dataset, lambda rows: fit_rows(rows, self.options))
        return fit_rows(dataset, self.options)


@dataclass(frozen=True, kw_only=True)
class ScaledDatasheet:
    """The law without a fit, times one factor for each engine version, as a contestant."""

    name: str = "energylens-datasheet-scaled"
    ranks_only: bool = False

    def fit(self, dataset: Dataset) -> _Scaled:
        """Find the factors that fit best in relative error; raises FitError without rows."""
        if len(dataset) == 0:
            raise FitError("a factor needs one row or more; given none")
        plain = from_datasheet()
        predicted = plain.predict_energy_j(dataset.cases)
        return _Scaled(model=plain, factors=dataset.engine_factors(predicted))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Scaled:
    model: EnergyModel
    factors: Mapping[str, float]  # by engine; "" for those not seen

    def predict_energy_j(self, cases: Cases) -> FloatArray:
        factor = cases.of_engine(lambda e: self.factors.get(e.id, self.factors[""]))
        return self.model.predict_energy_j(cases) * factor


@dataclass(frozen=True, kw_only=True)
class Datasheet:
    """The law without a single measurement, as a contestant."""

    name: str = "energylens-datasheet"
    ranks_only: bool = False

    def fit(self, dataset: Dataset) -> EnergyModel | LoadedModel:
        """Ignore the rows, but for whether some are under load."""
        if len(dataset) and dataset.under_load.any():
            return LoadedModel(energy=from_datasheet(), time=latency.from_datasheet())
        return from_datasheet()
