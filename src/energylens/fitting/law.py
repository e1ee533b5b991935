"""Fit the law to all rows, and to groups of them; resample; without any, the datasheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from energylens import __version__
from energylens.cases import FloatArray, IntArray
from energylens.dataset import Dataset, StrArray
from energylens.errors import FitError, UsageError
from energylens.fitting.options import FitOptions
from energylens.fitting.problem import (
    ENOUGH_ROWS,
    PRIOR_ROW_RATIO,
    REACH_DOUBLINGS,
    Problem,
    borrowing,
)
from energylens.formula import EXTENSIONS, SPREADS, TERMS
from energylens.loaded import fit_at_work, rows_at_work, time_law, told_idle_w, with_idle
from energylens.model import (
    WIDE,
    Coefficients,
    EnergyModel,
    Scope,
    format_kinds,
    group_key,
    only_version,
)

PAYING_RATIO = 0.03  # by which an extension must lower the error on rows left out
GROUP_SPREAD = 0.5  # how far a group may lie from the pooled fit, in units of a term's spread
#: Half of a fit's own rows missed by more: nobody should choose by it.
BEYOND_USE_RATIO = 0.5
#: Beyond it joules are of another unit, or of something else than a request.
MISFIT_FACTOR = 5.0
#: Over what datasheets suggest: Wh, kWh, mJ and the joules of a whole run are farther off.
UNIT_FACTOR = 100.0
SCOPE_COLUMNS = (
    "tensor_parallel",
    "pipeline_parallel",
    "expert_parallel",
    "data_parallel",
    "batch_size",
    "input_tokens",
    "output_tokens",
    "vision_tokens",
)


def fit(
    dataset: Dataset, options: FitOptions | None = None, *, weights: FloatArray | None = None
) -> EnergyModel:
    """Fit the law to measured rows.

    Parameters
    ----------
    dataset : Dataset
        n rows; one is enough, because the datasheet fills in: a coefficient that no row speaks
        of stays as it suggests, with ``prior="none"`` too.
    weights : ndarray, shape (n,), optional
        How much each row counts; 1 by default.

    Raises
    ------
    FitError
        If there is no row, or the energy of one cannot be in joules per request; or if the
        extension power_cap is asked for and no row has one; or if measured power is, and a row has
        a locked clock.
    InputError
        If power is asked for and a row has none.
    """
    options = options or FitOptions()
    dataset.require_one_meter()
    if "power_cap" in options.extend and not dataset.cases.capped.any():
        raise FitError(
            f"the extension power_cap needs rows with a power_cap_w, and none of these "
            f"{len(dataset)} has one: add the column, or leave the extension out"
        )
    if options.measured_power and dataset.cases.clocked.any():
        raise FitError(
            "measured power already holds what a locked clock does to it: leave the rows with a "
            "clock_mhz out, or measured power"
        )
    if len(dataset) and dataset.under_load.any():
        model, working = fit_at_work(
            dataset, time_law(dataset), lambda rows: fit_rows(rows, options, weights)
        )
        return _owning_up(replace(model, dataset_digest=dataset.digest), working)
    model = replace(fit_rows(dataset, options, weights), loaded_idle_w=told_idle_w(dataset))
    return _owning_up(model, dataset)


def _owning_up(model: EnergyModel, dataset: Dataset) -> EnergyModel:
    """Write into a model that it misses its own rows by so much that nobody should choose by it."""
    miss = np.abs(model.predict_energy_j(dataset.cases) / dataset.energy_per_request_j - 1)
    error = float(np.median(miss))
    if not error > BEYOND_USE_RATIO:
        return model
    return replace(model, options={**model.options, "misfit_ratio": f"{error:.2g}"})


def refuse_misfit(model: EnergyModel, dataset: Dataset) -> None:
    """Refuse a model that its own rows contradict by a factor, as joules of another unit do.

    Raises
    ------
    FitError
        If the median of measured over predicted joules is beyond `MISFIT_FACTOR` either way, or
        over what datasheets suggest beyond `UNIT_FACTOR`: few rows bend a fit to any unit.
    """
    dataset = replace(dataset, cases=with_idle(dataset.cases, model.loaded_idle_w))
    working = rows_at_work(dataset, time_law(dataset))
    for by, said, most in (
        (from_datasheet(), "what the datasheets of their GPUs suggest", UNIT_FACTOR),
        (model, "what the fit of these rows predicts", MISFIT_FACTOR),
    ):
        if by is model and "misfit_ratio" not in model.options:
            return
        predicted = by.predict_energy_j(working.cases)
        ratio = float(np.median(working.energy_per_request_j / predicted))
        if max(ratio, 1 / ratio) <= most:
            continue
        raise FitError(
            f"measured joules are {ratio:.3g} times {said}, at the "
            "median: the energy is in another unit than joules, or of something else than one "
            "request; energylens check says more. If they are right, fit with --accept-misfit"
        )


def fit_rows(
    dataset: Dataset, options: FitOptions, weights: FloatArray | None = None
) -> EnergyModel:
    """Fit, even where a part of the rows has none that an extension is about."""
    if len(dataset) == 0:
        raise FitError("a fit needs one measured row or more; the dataset has none")
    if weights is None:
        weights = np.ones(len(dataset))
    if weights.shape != (len(dataset),) or not (np.isfinite(weights) & (weights > 0)).all():
        raise FitError("weights must be finite numbers above 0, one for each row")
    if options.extend == ("auto",):
        options = replace(options, extend=paying_extensions(dataset, options, weights=weights))
    problem = Problem(dataset, weights, options)
    everything = np.arange(len(dataset))
    pooled = problem.solve(everything, problem.expected, problem.spread)
    travel = _travelling(problem, dataset, everything)
    groups: dict[str, Coefficients] = {}
    per = _columns(dataset, options)
    columns = tuple(name for name in per if name != "engine")
    groups |= _groups_within(problem, dataset, columns, everything, pooled)
    if "engine" in per:
        for engine in sorted(set(_engine_ids(dataset)) - {""}):
            # Rows of one version say little of another's joules, less than the datasheet does
            # (docs/results.md): each is fitted as if it were alone, and lends only its spread.
            rows = np.flatnonzero(_engine_ids(dataset) == engine)
            own = problem.solve(rows, problem.expected, problem.spread)
            groups[engine] = borrowing(own, pooled)
            travel |= {
                group_key([engine, kind]): borrowing(answer, travel[""])
                for kind, answer in _travelling(problem, dataset, rows).items()
            }
            inner = (*columns, "engine")
            groups |= _groups_within(problem, dataset, inner, rows, groups[engine])
    return EnergyModel(
        pooled=pooled,
        per=per,
        groups=groups,
        travel=travel if options.prior == "datasheet" else {},
        scope=_scope(dataset),
        dataset_digest=dataset.digest,
        sources=dataset.source_counts(),
        options={
            "loss": options.loss,
            "prior": options.prior,
            "idle_power_w": "" if options.idle_power_w is None else f"{options.idle_power_w:g}",
            "assumed_rows": str(int(dataset.lengths_assumed.sum()) or ""),
        },
        measured_power=options.measured_power,
        extensions=options.extend,
        energylens_version=__version__,
    )


def _travelling(problem: Problem, dataset: Dataset, rows: IntArray) -> dict[str, Coefficients]:
    """Coefficients for GPU types without rows, by kind of format ("" for all).

    What narrow formats cost is the kernels' of one GPU type: 16 bits are told by rows in 16 bits.
    """
    travel = {"": problem.travelling(rows)}
    wide = rows[format_kinds(dataset.cases)[rows] == WIDE]
    if ENOUGH_ROWS <= len(wide) < len(rows):
        travel[WIDE] = problem.travelling(wide)
    return travel


def _engine_ids(dataset: Dataset) -> StrArray:
    """Engine of each row; rows without a version are of the only version there is, if it is one."""
    known = set(dataset.engine_ids)
    return np.array([only_version(name, known) for name in dataset.engine_ids], dtype=object)


def _columns(dataset: Dataset, options: FitOptions) -> tuple[str, ...]:
    """Columns whose values get coefficients of their own, by default those with several."""
    if options.per is not None:
        return options.per
    kinds = {"gpu": dataset.gpu_ids, "engine": _engine_ids(dataset)}
    return tuple(name for name, ids in kinds.items() if len(set(ids)) > 1)


def _groups_within(
    problem: Problem,
    dataset: Dataset,
    per: Sequence[str],
    rows: IntArray,
    parent: Coefficients,
) -> dict[str, Coefficients]:
    """Fit each group of some rows, drawn toward the fit to all of these; one group is that fit.

    A GPU type with few rows starts from a fit whose hardware is close to the datasheet.
    """
    keys = _group_keys(dataset, per)
    groups = {}
    near: Coefficients | None = None
    distinct = sorted(set(keys[rows]))
    for key in distinct if len(distinct) > 1 else ():
        mine = rows[keys[rows] == key]
        start = parent
        if "gpu" in per and len(mine) < ENOUGH_ROWS:
            near = near or problem.near_datasheet(rows)
            start = near
        group = problem.solve(mine, start.theta, GROUP_SPREAD * problem.spreads, start.factors)
        groups[key] = borrowing(group, parent)
    return groups


def _group_keys(dataset: Dataset, per: Sequence[str]) -> StrArray:
    ids = {
        "gpu": dataset.gpu_ids,
        "llm": dataset.llm_ids,
        "precision": dataset.precision_ids,
        "engine": _engine_ids(dataset),
    }
    rows = zip(*(ids[name] for name in per), strict=True) if per else [()] * len(dataset)
    return np.array([group_key(row) for row in rows], dtype=object)


def paying_extensions(
    dataset: Dataset, options: FitOptions | None = None, *, weights: FloatArray | None = None
) -> tuple[str, ...]:
    """Find the extensions that pay on rows left out.

    One after the other, the one that lowers the mean absolute log error of rows left out with
    their architecture the most is taken, as long as it lowers it by ``PAYING_RATIO`` or more, and
    that of rows left out one by one too. With one architecture only the latter is asked.

    Returns
    -------
    tuple of str
        Names from ``formula.EXTENSIONS``; empty if none pays.
    """
    options = options or FitOptions()
    if weights is None:
        weights = np.ones(len(dataset))
    candidates = [
        name
        for name in EXTENSIONS
        if name != "power_cap" or (dataset.cases.capped.any() and not options.measured_power)
    ]

    def errors(extend: tuple[str, ...]) -> tuple[float, float]:
        return Problem(dataset, weights, replace(options, extend=extend)).errors(parts)

    # Fitted as they will be: engine versions apart.
    engines = (
        _engine_ids(dataset) if "engine" in _columns(dataset, options) else [""] * len(dataset)
    )
    parts = [np.flatnonzero(np.array(engines) == name) for name in sorted(set(engines))]
    llms = [dataset.cases.llms[i] for i in np.unique(dataset.cases.llm_index)]
    several = len({llm.architecture for llm in llms}) > 1
    chosen: tuple[str, ...] = ()
    best = errors(chosen)
    while True:
        tried = {name: errors((*chosen, name)) for name in candidates if name not in chosen}
        if not tried:
            return chosen
        name = min(tried, key=lambda n: tried[n][0 if several else 1])
        unseen, seen = (new / old for new, old in zip(tried[name], best, strict=True))
        pays = (unseen if several else seen) <= 1.0 - PAYING_RATIO and seen <= 1.0
        if not pays:
            return chosen
        chosen, best = (*chosen, name), tried[name]


def from_datasheet() -> EnergyModel:
    """Make the model that stands before the first measurement: every theta is 1.

    Its intervals are a factor of two either way, which is an opinion and not a measurement.
    """
    residuals = np.linspace(-np.log(2.0), np.log(2.0), 41)
    spread = float(residuals.std())
    return EnergyModel(
        pooled=Coefficients(
            theta=np.ones(len(TERMS)),
            covariance=np.diag(SPREADS**2),
            residuals_seen=residuals,
            residuals_unseen=residuals,
            llms=len(residuals),
            spread_ratio=spread,
            design_effect=0.0,
            within_ratio=PRIOR_ROW_RATIO,
            between_ratio=spread,
            # Nearly all of that is common to a scenario: it is not what tells its cases apart.
            reach_doublings=REACH_DOUBLINGS * (spread / PRIOR_ROW_RATIO) ** 2,
            rows=0,
        ),
        scope=Scope(llms=(), gpus=(), precisions=()),
        energylens_version=__version__,
    )


def _scope(dataset: Dataset, *, by_engine: bool = True) -> Scope:
    c, engines = dataset.cases, _engine_ids(dataset)

    def names(ids: Sequence[str]) -> tuple[str, ...]:
        return tuple(sorted(set(ids)))

    # Rows under an open load need not say a batch limit.
    ranges = {
        column: (float(np.nanmin(values)), float(np.nanmax(values)))
        for column in SCOPE_COLUMNS
        if np.isfinite(values := getattr(c, column)).any()
    }
    if c.capped.any():
        caps = np.where(c.capped, c.power_cap_w, c.of_gpu(lambda gpu: gpu.tdp_w))
        ranges["power_cap_w"] = (float(caps.min()), float(caps.max()))
    if c.clocked.any():
        ranges["clock_ratio"] = (float(c.clock_ratio.min()), float(c.clock_ratio.max()))
    return Scope(
        llms=names(dataset.llm_ids.tolist()),
        gpus=names(dataset.gpu_ids.tolist()),
        precisions=names(dataset.precision_ids.tolist()),
        ranges=ranges,
        engines={
            engine: _scope(dataset.take(engines == engine), by_engine=False)
            for engine in names(engines.tolist() if by_engine else ())
            if engine
        },
    )


def bootstrap(
    dataset: Dataset, options: FitOptions | None = None, *, samples: int = 200, seed: int = 0
) -> FloatArray:
    """Refit to rows drawn with replacement: what another sample would have given.

    Returns
    -------
    ndarray, shape (samples, 12)
        The pooled ``theta`` of each draw; wider with extensions, which ``auto`` chooses once.

    Raises
    ------
    FitError
        As :func:`fit`.
    UsageError
        If samples is below 1.
    """
    if samples < 1:
        raise UsageError(f"a bootstrap needs 1 sample or more, not {samples}")
    if seed < 0:
        raise UsageError(f"the seed must be 0 or above, not {seed}")
    rng = np.random.default_rng(seed)
    options = options or FitOptions()
    if options.extend == ("auto",):
        # Chosen once, by all rows: draws that each chose their own would have other coefficients.
        options = replace(options, extend=paying_extensions(dataset, options))
    n = len(dataset)
    draws = (dataset.take(rng.integers(0, n, n)) for _ in range(samples))
    return np.array([fit_rows(draw, options).pooled.theta for draw in draws])
