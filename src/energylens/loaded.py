"""Rows under load beside rows of full batches: fitted and predicted by one joule law.

A row under load shares its decode steps among fewer sequences than its batch limit, and its joules
hold those of idle time. The time law says how many share a step, and for how long nothing runs;
with these the row is one of a full batch of that size, plus idle joules, and the joule law needs
to know no more of it. ``mean_batch_size`` as measured under load is never read: it is an outcome.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from energylens import latency
from energylens.cases import Cases, FloatArray
from energylens.dataset import Dataset
from energylens.errors import FitError
from energylens.latency import TimeModel
from energylens.latency_fitting import fit_latency
from energylens.model import EnergyModel
from energylens.service import running_under_load

LEAST_RATIO = 0.05  # of a row's joules that are left of it at least, without those of idle time


def time_law(dataset: Dataset) -> TimeModel:
    """Fit the time law to rows that have a time; that of the datasheet where none has."""
    try:
        return fit_latency(dataset)
    except FitError:
        return latency.from_datasheet()


def at_work(cases: Cases, time: TimeModel) -> tuple[Cases, FloatArray]:
    """Make cases under load into full batches of what shares a step, and idle joules.

    Returns
    -------
    Cases, ndarray of shape (n,)
        The idle joules are 0 for cases without a rate.
    """
    loaded = np.flatnonzero(~np.isnan(cases.request_rate_per_s))
    idle = np.zeros(len(cases))
    if not len(loaded):
        return cases, idle
    part = cases.take(loaded)
    running = running_under_load(part, time.without_factors().steps(part))
    mean = cases.mean_batch_size.copy()
    mean[loaded] = running.per_step
    idle[loaded] = running.idle_j
    return cases.replace(mean_batch_size=mean), idle


def rows_at_work(dataset: Dataset, time: TimeModel) -> Dataset:
    """Give rows under load as rows of full batches, less the joules of idle time."""
    cases, idle = at_work(dataset.cases, time)
    joules = dataset.energy_per_request_j
    return replace(
        dataset,
        cases=cases,
        energy_per_request_j=np.maximum(joules - idle, LEAST_RATIO * joules),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedModel:
    """A joule law and a time law that answer for cases under load and for full batches."""

    energy: EnergyModel
    time: TimeModel

    def predict_energy_j(self, cases: Cases) -> FloatArray:
        """Predict joules per request, idle time included; shape (n,)."""
        working, idle = at_work(cases, self.time)
        return self.energy.predict_energy_j(working) + idle

    def interval_energy_j(
        self, cases: Cases, coverage_ratio: float = 0.8
    ) -> tuple[FloatArray, FloatArray]:
        """Lower and upper joules of a new measurement, each of shape (n,)."""
        working, idle = at_work(cases, self.time)
        low, high = self.energy.interval_energy_j(working, coverage_ratio)
        return low + idle, high + idle

    def sample_energy_j(self, cases: Cases, samples: int, seed: int) -> FloatArray:
        """Draw joint predictions, shape (samples, n)."""
        working, idle = at_work(cases, self.time)
        drawn: FloatArray = self.energy.sample_energy_j(working, samples, seed) + idle
        return drawn


def fit_loaded(dataset: Dataset, fit: Callable[[Dataset], EnergyModel]) -> LoadedModel:
    """Fit both laws to rows of which some are under load.

    Parameters
    ----------
    fit : callable
        Fits the joule law to rows of full batches.
    """
    time = time_law(dataset)
    return LoadedModel(energy=fit(rows_at_work(dataset, time)), time=time)
