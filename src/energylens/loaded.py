"""Rows under load beside rows of full batches: fitted and predicted by one joule law.

A row under load shares its decode steps among fewer sequences than its batch limit, and its joules
hold those of idle time. The time law says how many share a step, and for how long nothing runs;
with these the row is one of a full batch of that size, plus idle joules, and the joule law needs
to know no more of it. ``mean_batch_size`` as measured under load is never read: it is an outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from energylens import latency
from energylens.cases import Cases, FloatArray
from energylens.dataset import Dataset
from energylens.errors import FitError
from energylens.latency import TimeModel
from energylens.latency_fitting import fit_latency
from energylens.model import EnergyModel
from energylens.records import Gpu
from energylens.service import loaded_idle_w, running_under_load

MOST_IDLE_RATIO = 2.5  # of the expected idle watts, and one over it, that are tried
IDLE_SPREAD = 0.3  # as a log, how far loaded idle may lie from what is expected of a type
FEWEST_LOADED = 3  # rows under load from which they may say so
LEAST_VARIANCE = 1e-4
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


def with_idle(cases: Cases, watts: Mapping[str, float]) -> Cases:
    """Tell cases of the GPU types named what a loaded GPU idles at, where their rows do not."""
    if not watts:
        return cases
    told = cases.of_gpu(lambda gpu: watts.get(gpu.id, np.nan))
    return cases.replace(loaded_idle_w=np.where(cases.loaded_idle_w > 0, cases.loaded_idle_w, told))


def told_idle_w(dataset: Dataset) -> dict[str, float]:
    """Median of the rows' own loaded idle, by GPU type, in W; types without any are left out."""
    watts = dataset.cases.loaded_idle_w
    gpus, known = dataset.gpu_ids, watts > 0
    return {gpu: float(np.median(watts[known & (gpus == gpu)])) for gpu in sorted(set(gpus[known]))}


def idle_watts(
    dataset: Dataset, time: TimeModel, fit: Callable[[Dataset], EnergyModel]
) -> dict[str, float]:
    """Find what a GPU with weights loaded idles at, by type: as the rows say, or as they ask for.

    The median of ``loaded_idle_w`` where rows of a type have it. Where none has, and rows are under
    load, the watts with which the law misses those least are taken: as of any coefficient, the
    prior is the catalog's value, within `IDLE_SPREAD`.

    Parameters
    ----------
    dataset : Dataset
    time : TimeModel
        Of the same rows.
    fit : callable
        Fits the joule law to rows of full batches.
    """
    watts = told_idle_w(dataset)
    for gpu in dataset.cases.gpus:
        mine = (dataset.gpu_ids == gpu.id) & dataset.under_load
        if gpu.id not in watts and mine.sum() >= FEWEST_LOADED:
            watts[gpu.id] = _asked_for(dataset, time, fit, gpu, watts)
    return watts


def _asked_for(
    dataset: Dataset,
    time: TimeModel,
    fit: Callable[[Dataset], EnergyModel],
    gpu: Gpu,
    known: Mapping[str, float],
) -> float:
    """Watts of one type with which the rows under load are missed least, weighed by the prior."""
    from scipy.optimize import minimize_scalar

    mine = (dataset.gpu_ids == gpu.id) & dataset.under_load
    expected, freedom = loaded_idle_w(gpu), max(mine.sum() - 2.0, 1.0)

    def cost(log_ratio: float) -> float:
        watts = {**known, gpu.id: expected * float(np.exp(log_ratio))}
        cases = with_idle(dataset.cases, watts)
        working, idle = at_work(cases, time)
        rows = rows_at_work(replace(dataset, cases=cases), time)
        told = fit(rows).predict_energy_j(working) + idle
        off = np.log(told / dataset.energy_per_request_j)[mine]
        # The variance is as unknown as the watts: that of these residuals.
        likelihood = freedom * np.log(float(off @ off) / freedom + LEAST_VARIANCE)
        return float(likelihood + (log_ratio / IDLE_SPREAD) ** 2)

    reach = np.log(MOST_IDLE_RATIO)
    found = minimize_scalar(cost, bounds=(-reach, reach), method="bounded", options={"xatol": 0.01})
    return float(expected * np.exp(found.x))


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedModel:
    """A joule law and a time law that answer for cases under load and for full batches."""

    energy: EnergyModel
    time: TimeModel

    def _at_work(self, cases: Cases) -> tuple[Cases, FloatArray]:
        return at_work(with_idle(cases, self.energy.loaded_idle_w), self.time)

    def predict_energy_j(self, cases: Cases) -> FloatArray:
        """Predict joules per request, idle time included; shape (n,)."""
        working, idle = self._at_work(cases)
        return self.energy.predict_energy_j(working) + idle

    def interval_energy_j(
        self, cases: Cases, coverage_ratio: float = 0.8
    ) -> tuple[FloatArray, FloatArray]:
        """Lower and upper joules of a new measurement, each of shape (n,)."""
        working, idle = self._at_work(cases)
        low, high = self.energy.interval_energy_j(working, coverage_ratio)
        return low + idle, high + idle

    def sample_energy_j(self, cases: Cases, samples: int, seed: int) -> FloatArray:
        """Draw joint predictions, shape (samples, n)."""
        working, idle = self._at_work(cases)
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
    energy, _ = fit_at_work(dataset, time, fit)
    return LoadedModel(energy=energy, time=time)


def fit_at_work(
    dataset: Dataset, time: TimeModel, fit: Callable[[Dataset], EnergyModel]
) -> tuple[EnergyModel, Dataset]:
    """Fit the joule law and the loaded idle, and give the rows of full batches it was fitted to."""
    watts = idle_watts(dataset, time, fit)
    told = replace(dataset, cases=with_idle(dataset.cases, watts))
    working = rows_at_work(told, time)
    return replace(fit(working), loaded_idle_w=watts), working
