"""Measured times in, time law out: relative least squares within physical bounds.

As the joules are fitted, with the datasheet as the prior: the law is homogeneous in its
coefficients, so that each Gauss-Newton step is one non-negative least-squares problem. Rows
without a time are left out; rows that have one need no joules.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from energylens import __version__
from energylens.cases import FloatArray, IntArray
from energylens.dataset import Dataset, StrArray
from energylens.errors import FitError
from energylens.latency import (
    COLUMNS,
    TARGETS,
    Target,
    TimeModel,
    check_target,
    design,
    from_datasheet,
    seconds,
    slopes,
)
from energylens.latency_terms import EXPECTED, LOWER_BOUNDS, NAMES, SPREADS
from energylens.linearised import Linearised, bounded
from energylens.model import Coefficients, Scope, group_key
from energylens.service import running_under_load

ROUNDS = 12  # Gauss-Newton steps at most
SPREAD_ROUNDS = 5  # of them also estimate the residual spread that weighs the prior
STEP_LENGTHS = (1.0, 0.5, 0.25, 0.1)
CONVERGED = 1e-4  # a step that moves no coefficient farther is the last
EFFECTIVE = 8.0  # coefficients that rows usually determine
PSEUDO_SQUARES = 0.02  # squared residuals of two rows that stand in where there are few
GROUP_SPREAD = 0.5  # how far a GPU type may lie from its engine's fit, in units of a spread
OVERLAP_FLOOR = 0.5  # least theta at which an overlapped term's slope is taken
FEWEST = 9  # residuals from which a group can tell its own 80 % interval
VARIANCE_FLOOR = 1e-8
OUTLIER_DEVIATIONS = 3.0  # robust standard deviations beyond which a residual says no more
DEVIATIONS_A_MAD = 1.4826  # standard deviations in a median absolute deviation, of a normal
#: Measured times in the order of what they tell of the law.
PREFERRED: tuple[Target, ...] = ("latency", "tpot", "itl")


def observed_s(dataset: Dataset, target: Target) -> FloatArray:
    """Measured seconds of a target, shape (n,); NaN where a row has none.

    Raises
    ------
    UsageError
        If there is no such target.
    """
    check_target(target)
    measured = getattr(dataset.cases, COLUMNS[target], None)
    if measured is None:
        return np.full(len(dataset), np.nan)
    return np.where(measured > 0, measured, np.nan)


def fit_latency(
    dataset: Dataset,
    target: Target | None = None,
    *,
    weights: FloatArray | None = None,
    factors: bool = True,
) -> TimeModel:
    """Fit the time law to the rows that have a time.

    Parameters
    ----------
    dataset : Dataset
        n rows.
    target : {"latency", "tpot", "itl", "ttft"}, optional
        The one time to fit; by default of each row the first of request latency, mean time per
        token and median latency between tokens that it has.
    weights : ndarray, shape (n,), optional
        How much each row counts; 1 by default.
    factors : bool
        Whether each LLM and precision gets a factor of its own.

    Raises
    ------
    FitError
        If no row has a time.
    """
    of = np.full(len(dataset), "", dtype=object)
    measured = np.full(len(dataset), np.nan)
    for name in (target,) if target else PREFERRED:
        seen = observed_s(dataset, name)
        first = np.isnan(measured) & ~np.isnan(seen)
        of[first], measured[first] = name, seen[first]
    rows = np.flatnonzero(~np.isnan(measured))
    if not len(rows):
        columns = ", ".join(COLUMNS[name] for name in ((target,) if target else PREFERRED))
        raise FitError(
            f"a time law needs rows with a time ({columns}); none of {len(dataset)} has one"
        )
    timed = dataset.take(rows)
    if weights is None:
        weights = np.ones(len(dataset))
    if timed.under_load.any():
        # What runs under load follows from times, and times from what runs: start from those of
        # the datasheet, and once more from those of a first fit.
        first = _fit_timed(_met(timed, from_datasheet()), of[rows], measured[rows], weights[rows])
        timed = _met(timed, first)
    return _fit_timed(timed, of[rows], measured[rows], weights[rows], factors=factors)


def _met(dataset: Dataset, model: TimeModel) -> Dataset:
    """Give rows under load the batch that their requests meet, by a time law."""
    loaded = np.flatnonzero(dataset.under_load)
    cases = dataset.cases.take(loaded)
    met = running_under_load(cases, model.steps(cases)).met * cases.data_parallel
    running = dataset.cases.mean_batch_size.copy()
    running[loaded] = met
    return replace(dataset, cases=dataset.cases.replace(mean_batch_size=running))


def _fit_timed(
    timed: Dataset,
    of: StrArray,
    measured: FloatArray,
    weights: FloatArray,
    *,
    factors: bool = False,
) -> TimeModel:
    problem = _Problem(timed, of, measured, weights)
    everything = np.arange(len(timed))
    pooled = problem.solve(everything, EXPECTED, SPREADS)
    groups = _groups(problem, timed, pooled)
    model = TimeModel(
        pooled=pooled,
        groups=groups,
        scope=scope(timed),
        targets={name: int((of == name).sum()) for name in TARGETS if (of == name).any()},
        dataset_digest=timed.digest,
        energylens_version=__version__,
    )
    if not factors:
        return model
    return problem.with_factors(model, timed)


def scope(dataset: Dataset) -> Scope:
    """Which cases the rows speak of."""
    return Scope(
        llms=tuple(sorted(set(dataset.llm_ids))),
        gpus=tuple(sorted(set(dataset.gpu_ids))),
        precisions=tuple(sorted(set(dataset.precision_ids))),
        ranges={
            name: (float(column.min()), float(column.max()))
            for name in (
                "tensor_parallel",
                "pipeline_parallel",
                "input_tokens",
                "output_tokens",
                *(["clock_ratio"] if dataset.cases.clocked.any() else []),
            )
            for column in (getattr(dataset.cases, name),)
        },
    )


def _groups(problem: _Problem, dataset: Dataset, pooled: Coefficients) -> dict[str, Coefficients]:
    """Fit each engine version by itself, and within it each GPU type, drawn toward its engine."""
    groups: dict[str, Coefficients] = {}
    engines = sorted(set(dataset.engine_ids))
    for engine in engines:
        rows = np.flatnonzero(dataset.engine_ids == engine)
        parent = pooled
        if len(engines) > 1 and engine:
            parent = groups[engine] = _lent(problem.solve(rows, EXPECTED, SPREADS), pooled)
        gpus = sorted(set(dataset.gpu_ids[rows]))
        for gpu in gpus if len(gpus) > 1 else ():
            mine = rows[dataset.gpu_ids[rows] == gpu]
            own = problem.solve(mine, parent.theta, GROUP_SPREAD * SPREADS)
            groups[group_key([gpu, engine])] = _lent(own, parent)
    return groups


def _lent(group: Coefficients, parent: Coefficients) -> Coefficients:
    """Lend a group with few rows or LLMs the residuals of all rows."""
    if group.rows < FEWEST:
        group = replace(
            group, residuals_seen=parent.residuals_seen, spread_ratio=parent.spread_ratio
        )
    if group.llms < FEWEST:
        group = replace(group, residuals_unseen=parent.residuals_unseen, llms=parent.llms)
    return group


class _Problem:
    """The least-squares problem of one dataset; solved for all rows or some."""

    def __init__(
        self, dataset: Dataset, of: StrArray, measured: FloatArray, weights: FloatArray
    ) -> None:
        n = len(dataset)
        self.step, self.prompt = np.zeros((n, len(NAMES))), np.zeros((n, len(NAMES)))
        for name in TARGETS:
            rows = np.flatnonzero(of == name)
            if len(rows):
                self.step[rows], self.prompt[rows] = design(dataset.cases.take(rows), name)
        self.step /= measured[:, None]
        self.prompt /= measured[:, None]
        self.weights = weights
        same = {llm.architecture: i for i, llm in enumerate(dataset.cases.llms)}
        self.architecture = np.array([same[m.architecture] for m in dataset.cases.llms])[
            dataset.cases.llm_index
        ]

    def solve(self, rows: IntArray, mean: FloatArray, spread: FloatArray) -> Coefficients:
        """Fit some rows, with theta expected at ``mean`` within ``spread``."""
        step, prompt, weights = self.step[rows], self.prompt[rows], self.weights[rows]
        theta, variance = _minimise(step, prompt, weights, mean, spread)
        apart = np.maximum(theta, OVERLAP_FLOOR)
        steep = slopes(step, prompt, apart) * np.sqrt(weights)[:, None]
        curvature = steep.T @ steep + np.diag(variance / spread**2)
        covariance: FloatArray = variance * np.linalg.inv(curvature).astype(np.float64)
        fitted = Linearised(
            theta=theta,
            free=theta > LOWER_BOUNDS + 1e-9,
            slopes=slopes(step, prompt, theta),
            weights=weights,
            residual=seconds(step, prompt, theta) - 1.0,
            pull=variance / spread**2,
            variance=variance,
        )
        architecture = self.architecture[rows]
        seen, seen_added = fitted.without_rows()
        unseen, unseen_added = fitted.without_groups(architecture)
        effect = fitted.design_effect(architecture)
        kinds = len(np.unique(architecture))
        between = np.array([seen[architecture == a].mean() for a in np.unique(architecture)])
        scale = float(np.sqrt(max(float((seen**2).mean()), VARIANCE_FLOOR)))
        return Coefficients(
            theta=theta,
            covariance=covariance,
            residuals_seen=np.sort(seen / np.sqrt(1.0 + effect * seen_added)),
            residuals_unseen=np.sort(unseen / np.sqrt(1.0 + effect * unseen_added)),
            llms=kinds,
            spread_ratio=scale,
            design_effect=effect,
            within_ratio=float(np.sqrt(max(scale**2 - float(between.var()), VARIANCE_FLOOR))),
            between_ratio=float(between.std()),
            reach_doublings=3.0,
            rows=len(rows),
        )

    def with_factors(self, model: TimeModel, dataset: Dataset) -> TimeModel:
        """Give each LLM and precision a factor, as far as rows of its own ask for one.

        The mean log residual of its n rows, times n / (n + k): k weighs the variance of a row
        about its factor by that of factors about 1 (a random effect). A residual beyond
        `OUTLIER_DEVIATIONS` counts as one there: a layout that the law does not have, as deep
        pipelines, is not what its LLM costs.
        """
        theta = model._theta(dataset.cases)
        residuals = -np.log(seconds(self.step, self.prompt, theta))
        middle = np.median(residuals)
        reach = OUTLIER_DEVIATIONS * DEVIATIONS_A_MAD * np.median(np.abs(residuals - middle))
        logs = np.clip(residuals, middle - reach, middle + reach)
        keys = np.array(
            [f"{m} {p}" for m, p in zip(dataset.llm_ids, dataset.precision_ids, strict=True)]
        )
        names, place = np.unique(keys, return_inverse=True)
        counts = np.bincount(place)
        means = np.bincount(place, logs) / counts
        freedom = len(logs) - len(names)
        if freedom < 1 or len(names) < 3:
            return model
        within = float(((logs - means[place]) ** 2).sum()) / freedom
        between = max(float(np.mean(means**2 - within / counts)), 0.0)
        if between == 0.0:
            return model
        pull = max(within / between, VARIANCE_FLOOR) + 0.0
        shrunk = means * counts / (counts + pull)
        # A row left out takes its share of the factor along.
        without = (means[place] * counts[place] - logs) / np.maximum(
            counts[place] - 1.0 + pull, 1e-9
        )
        left = residuals - without
        scale = float(np.sqrt(max(float((left**2).mean()), VARIANCE_FLOOR)))
        return replace(
            model,
            factors={str(k): float(np.exp(v)) for k, v in zip(names, shrunk, strict=True)},
            narrowing_ratio=min(scale / model.pooled.spread_ratio, 1.0),
        )


def _minimise(
    step: FloatArray, prompt: FloatArray, weights: FloatArray, mean: FloatArray, spread: FloatArray
) -> tuple[FloatArray, float]:
    """Find the coefficients, and the variance of residuals that weighed the prior."""
    n, root = len(step), np.sqrt(weights)
    theta = np.maximum(mean, LOWER_BOUNDS)
    variance = 0.05
    for turn in range(ROUNDS):
        at = np.maximum(theta, 0.0)
        pull = variance / spread**2
        full = bounded(slopes(step, prompt, at), weights, mean, pull, LOWER_BOUNDS, "time")
        best = None
        for length in STEP_LENGTHS:
            tried = theta + length * (full - theta)
            residual = (seconds(step, prompt, tried) - 1.0) * root
            loss = float(residual @ residual + variance * (((tried - mean) / spread) ** 2).sum())
            if best is None or loss < best[0]:
                best = (loss, tried, residual)
        assert best is not None
        moved = float(np.abs(best[1] - theta).max())
        theta = best[1]
        if turn < SPREAD_ROUNDS:
            squares = float(best[2] @ best[2]) + PSEUDO_SQUARES
            variance = max(squares / (max(n - EFFECTIVE, 1.0) + 2.0), 1e-4)
        elif moved < CONVERGED:
            break
    return theta, variance


def fitted_times(dataset: Dataset) -> TimeModel | None:
    """Fit the time law to the rows that have a time; None where none has."""
    try:
        return fit_latency(dataset)
    except FitError:
        return None
