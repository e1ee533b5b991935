r"""Measurements in, energy model out.

The loss is the relative error. The twelve ratios solve

.. math:: \min_{\theta \ge 0} \sum_i w_i \left( \frac{E_i(\theta)}{y_i} - 1 \right)^2
          + s^2 \sum_k \left( \frac{\theta_k - \mu_k}{\rho_k} \right)^2

The law is homogeneous in theta, so linearising it at any point gives :math:`a_i \theta` with
:math:`a_i = \partial E_i / \partial \theta / y_i` and no constant: each Gauss-Newton step is one
non-negative least-squares problem, and a handful of them converge from the datasheet. The
second sum is the datasheet speaking where rows do not: ``mu`` is 1, ``rho``
the spread of each term, ``s`` the spread of the residuals themselves, so that its weight is
that of a fraction of one row. ``prior="none"`` leaves it out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import NormalDist

import numpy as np

from energylens import __version__, factors, latency
from energylens.cases import BoolArray, Cases, FloatArray, IntArray
from energylens.dataset import Dataset, StrArray, group_rows
from energylens.errors import FitError, UsageError
from energylens.formula import (
    EXTENSIONS,
    NAMES,
    OVERLAPS,
    SPREADS,
    TERMS,
    datasheet,
    design,
    energy,
    power_ratio,
    slopes,
    terms_of,
)
from energylens.loaded import LoadedModel, fit_loaded, rows_at_work, time_law
from energylens.model import (
    Coefficients,
    EnergyModel,
    Scope,
    format_kinds,
    group_key,
    knob_place,
    only_version,
    physics_flags,
)

LOSSES = ("relative", "log", "huber", "absolute")
PRIORS = ("datasheet", "none")
GROUPINGS = ("gpu", "llm", "precision", "engine")

HUBER_RATIO = 0.15  # relative residual beyond which the huber loss grows linearly
STEP_LENGTHS = (1.0, 0.6, 0.3, 0.1, 0.03)  # tried until one lowers the loss
STEPS = 16  # Gauss-Newton steps at most; a handful do
SPREAD_STEPS = 4  # of them also estimate the residual spread that weighs the prior
CONVERGED_RATIO = 1e-5  # a step that lowers the loss by less is the last
PAYING_RATIO = 0.03  # by which an extension must lower the error on rows left out
OVERLAP_FLOOR = 0.5  # least theta at which an overlapped term's spread is taken
FIXED_SPREAD = 1e-6  # stands for "known" where a coefficient is given
# Below FEW_ROWS, and up to ENOUGH_ROWS unless all coefficients bring the error on rows left out
# below FIT_PAYS_RATIO of it, the datasheet times one factor. Its logarithm has LEVEL_SPREAD
# before any row, rows of one architecture tell it with ARCHITECTURE_SPREAD, and a single row is
# off by SINGLE_SPREAD, of which SINGLE_ROWS are as good as seen. All of them, as the factors, by
# ML.ENERGY v2, Argonne and energy-code-eval.
FEW_ROWS, ENOUGH_ROWS = 6, 16
FIT_PAYS_RATIO = 0.7
LEVEL_SPREAD = 0.15
ARCHITECTURE_SPREAD = 0.3
SINGLE_SPREAD = 0.22
SINGLE_ROWS = 5.0
PRIOR_ROW_RATIO = 0.1  # spread that a single pseudo-row gives a fit with few rows
FORMAT_ROWS = 5.0  # at the scale of all residuals that those in one kind of format start from
LENT_ROWS = 5.0  # that the pooled fit's residual spread counts for in a group's
ENOUGH = 9  # residuals from which a group can tell its own 80 % interval
TRAVEL_SPREAD = 0.1  # of what hardware does, in coefficients that answer for other GPU types
GROUP_SPREAD = 0.5  # how far a group may lie from the pooled fit, in units of a term's spread
NO_PRIOR_SPREAD = 1e4  # stands for "none" where a covariance must exist
REACH_DOUBLINGS = 3.0  # of residual correlation, where rows do not tell
GUESSED_PAIRS = 5.0  # of configurations that such a guess counts for
EPSILON = float(np.finfo(np.float64).eps)
VARIANCE_FLOOR = 1e-8  # of relative residuals, where rows repeat each other exactly
FACTOR_OFF = 1e6  # from what the datasheet suggests: no measurement, but a wrong unit
# Of a normal distribution, 41 of them: what a few rows cannot tell of their own.
NORMAL_QUANTILES = np.array(
    [NormalDist().inv_cdf((k + 0.5) / 41.0) for k in range(41)], dtype=np.float64
)
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


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How to fit.

    Parameters
    ----------
    loss : {"relative", "log", "huber", "absolute"}
        ``log`` weighs over- and underprediction alike, ``huber`` grows linearly beyond 15 %,
        ``absolute`` is ordinary least squares in joules, for comparison.
    prior : {"datasheet", "none"}
    per : tuple of {"gpu", "llm", "precision", "engine"}, optional
        Columns whose values get coefficients of their own besides the pooled ones, drawn toward
        those; an engine version's own are not drawn toward those of others, and those of the
        other columns within it are drawn toward the version's. By default each GPU type and each
        engine version has its own, where there is more than one.
    idle_power_w : float, optional
        Known draw of an idle GPU: fixes that coefficient.
    measured_power : bool
        Scale each row's terms by its measured mean power per GPU, so that the law only has to
        explain time. Every row, and every case predicted later, must have ``average_power_w``.
    extend : tuple of str
        Extensions of the formula to take in (``formula.EXTENSIONS``), or ``("auto",)`` for those
        that lower the error on rows left out.
    """

    loss: str = "relative"
    prior: str = "datasheet"
    per: tuple[str, ...] | None = None
    idle_power_w: float | None = None
    measured_power: bool = False
    extend: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for what, value, allowed in (("loss", self.loss, LOSSES), ("prior", self.prior, PRIORS)):
            if value not in allowed:
                raise UsageError(f"{what} must be one of {', '.join(allowed)}, not {value!r}")
        per = self.per or ()
        if set(per) - set(GROUPINGS) or len(set(per)) != len(per):
            raise UsageError(
                f"per takes {', '.join(GROUPINGS)}, each at most once; given {', '.join(per)}"
            )
        if len(set(self.extend)) != len(self.extend):
            raise UsageError(f"extend takes each name at most once; given {', '.join(self.extend)}")
        if self.measured_power and "power_cap" in self.extend:
            raise UsageError(
                "the extension power_cap says what caps do to power, and measured power says it "
                "already: take one of the two"
            )
        if self.idle_power_w is not None and not 0 < self.idle_power_w < np.inf:
            raise UsageError(f"idle_power_w must be above 0 W, not {self.idle_power_w!r}")


#: Half of a fit's own rows missed by more: nobody should choose by it.
BEYOND_USE_RATIO = 0.5
#: Beyond it joules are of another unit, or of something else than a request.
MISFIT_FACTOR = 5.0


def fit(
    dataset: Dataset, options: FitOptions | None = None, *, weights: FloatArray | None = None
) -> EnergyModel:
    """Fit the law to measured rows.

    Parameters
    ----------
    dataset : Dataset
        n rows; one is enough, because the datasheet fills in: a coefficient that no row speaks
        of stays as it suggests, with ``prior="none"`` too.
    options : FitOptions, optional
    weights : ndarray, shape (n,), optional
        How much each row counts; 1 by default.

    Returns
    -------
    EnergyModel

    Raises
    ------
    FitError
        If there is no row, or the energy of one cannot be in joules per request; or if the
        extension power_cap is asked for and no row has one.
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
    if len(dataset) and dataset.under_load.any():
        working = rows_at_work(dataset, time_law(dataset))
        model = replace(_fit(working, options, weights), dataset_digest=dataset.digest)
        return _owning_up(model, working)
    return _owning_up(_fit(dataset, options, weights), dataset)


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
        If the median of measured over predicted joules is beyond `MISFIT_FACTOR` either way.
    """
    if "misfit_ratio" not in model.options:
        return
    predicted = model.predict_energy_j(rows_at_work(dataset, time_law(dataset)).cases)
    ratio = float(np.median(dataset.energy_per_request_j / predicted))
    if max(ratio, 1 / ratio) > MISFIT_FACTOR:
        raise FitError(
            f"measured joules are {ratio:.3g} times what the fit of these rows predicts, at the "
            "median: the energy is in another unit than joules, or of something else than one "
            "request; energylens check says more. If they are right, fit with --accept-misfit"
        )


def _fit(dataset: Dataset, options: FitOptions, weights: FloatArray | None = None) -> EnergyModel:
    """Fit, even where a part of the rows has none that an extension is about."""
    if len(dataset) == 0:
        raise FitError("a fit needs one measured row or more; the dataset has none")
    if weights is None:
        weights = np.ones(len(dataset))
    if weights.shape != (len(dataset),) or not (np.isfinite(weights) & (weights > 0)).all():
        raise FitError("weights must be finite numbers above 0, one for each row")
    if options.extend == ("auto",):
        options = replace(options, extend=paying_extensions(dataset, options, weights=weights))
    problem = _Problem(dataset, weights, options)
    everything = np.arange(len(dataset))
    pooled = problem.solve(everything, problem.expected, problem.spread)
    travel = {"": problem.solve(everything, problem.expected, problem.travelling)}
    groups: dict[str, Coefficients] = {}
    per = _columns(dataset, options)
    columns = tuple(name for name in per if name != "engine")
    groups |= _groups_within(problem, dataset, columns, everything, pooled, travel[""])
    if "engine" in per:
        for engine in sorted(set(_engine_ids(dataset)) - {""}):
            # Rows of one version say little of another's joules, less than the datasheet does
            # (docs/results.md): each is fitted as if it were alone, and lends only its spread.
            rows = np.flatnonzero(_engine_ids(dataset) == engine)
            own = problem.solve(rows, problem.expected, problem.spread)
            groups[engine] = _borrowing(own, pooled)
            travel[engine] = _borrowing(
                problem.solve(rows, problem.expected, problem.travelling), travel[""]
            )
            inner = (*columns, "engine")
            groups |= _groups_within(problem, dataset, inner, rows, groups[engine], travel[engine])
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
    problem: _Problem,
    dataset: Dataset,
    per: Sequence[str],
    rows: IntArray,
    parent: Coefficients,
    travelled: Coefficients,
) -> dict[str, Coefficients]:
    """Fit each group of some rows, drawn toward the fit to all of these; one group is that fit.

    A GPU type with few rows starts from what travels to GPU types without.
    """
    keys = _group_keys(dataset, per)
    groups = {}
    distinct = sorted(set(keys[rows]))
    for key in distinct if len(distinct) > 1 else ():
        mine = rows[keys[rows] == key]
        start = travelled if "gpu" in per and len(mine) < ENOUGH_ROWS else parent
        group = problem.solve(mine, start.theta, GROUP_SPREAD * problem.spreads, start.factors)
        groups[key] = _borrowing(group, parent)
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
        return _Problem(dataset, weights, replace(options, extend=extend)).errors(parts)

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


def _check_size(expected: FloatArray, dataset: Dataset) -> None:
    y = dataset.energy_per_request_j
    bad = np.flatnonzero((y < expected / FACTOR_OFF) | (y > expected * FACTOR_OFF))
    if len(bad):
        row = int(bad[0])
        raise FitError(
            "energy_per_request_j must be joules per request; row "
            f"{row} (from 0) has {y[row]:.3g} where the datasheet of its GPUs leads one to expect "
            f"about {expected[row]:.3g}. Look at its unit and its token counts."
        )


class _Problem:
    """The least-squares problem of one dataset; solved for all rows or some."""

    def __init__(self, dataset: Dataset, weights: FloatArray, options: FitOptions) -> None:
        y = dataset.energy_per_request_j
        cases = self.cases = dataset.cases
        terms = terms_of(options.extend)
        self.expected = np.array([term.expected for term in terms])
        self.spreads = np.array([term.spread for term in terms])
        # Physics bounds a coefficient only where the datasheet speaks too.
        self.least = np.array(
            [term.lower_bound if options.prior == "datasheet" else 0.0 for term in terms]
        )
        no_prior = np.full(len(terms), NO_PRIOR_SPREAD)
        self.with_prior = options.prior == "datasheet"
        self.travelling = np.array(
            [TRAVEL_SPREAD if term.hardware else term.spread for term in terms]
        )
        self.spread = self.spreads if options.prior == "datasheet" else no_prior
        x = design(cases, terms)
        if options.measured_power:
            x = x * power_ratio(cases)[:, None]
        _check_size(x.sum(axis=1), dataset)
        self.relative = x / y[:, None]
        self.weights = weights * (y / y.mean()) ** 2 if options.loss == "absolute" else weights
        self.loss = options.loss
        same = {llm.architecture: i for i, llm in enumerate(cases.llms)}
        self.architecture = np.array([same[llm.architecture] for llm in cases.llms])[
            cases.llm_index
        ]
        self.scenario = group_rows(
            [
                cases.llm_index,
                cases.gpu_index,
                cases.precision_index,
                cases.engine_index,
                dataset.workload_index,
            ]
        )
        self.place = knob_place(cases)
        self.fixed: dict[int, float] = {}
        if options.idle_power_w is not None:
            k = NAMES.index("idle_gpus")
            kinds = np.unique(cases.gpu_index)
            if len(kinds) > 1:
                raise UsageError(
                    "a known idle power belongs to one GPU type, and these rows are of "
                    f"{len(kinds)}: fit each type alone (--where gpu=NAME)"
                )
            self.fixed[k] = options.idle_power_w / float(datasheet(cases.gpus)[kinds[0], k])

    def errors(self, parts: Sequence[IntArray]) -> tuple[float, float]:
        """Mean absolute log error of rows left out with their architecture, and one by one.

        Each part of the rows is fitted by itself.
        """
        unseen, seen = [], []
        for rows in parts:
            fitted = self._minimise(rows, self.expected, self.spread)
            unseen.append(fitted.without_groups(self.architecture[rows])[0])
            seen.append(fitted.without_rows()[0])
        both = (np.abs(np.concatenate(logs)).mean() for logs in (unseen, seen))
        left_out_together, one_by_one = map(float, both)
        return left_out_together, one_by_one

    def _minimise(self, rows: IntArray, mean: FloatArray, spread: FloatArray) -> _Fitted:
        relative, weights = self.relative[rows], self.weights[rows]
        mean, spread = mean.copy(), spread.copy()
        for k, value in self.fixed.items():
            mean[k], spread[k] = value, FIXED_SPREAD
        n = len(rows)
        row_weights = weights
        variance = PRIOR_ROW_RATIO**2
        theta, residual = mean, energy(relative, mean) - 1.0
        loss = np.inf
        a = slopes(relative, theta)
        for step in range(STEPS):
            pull = variance / spread**2
            full = _bounded(a, row_weights, mean, pull, self.least)
            before = loss if step >= SPREAD_STEPS else np.inf
            for length in STEP_LENGTHS:
                tried = theta + length * (full - theta)
                residual = energy(relative, tried) - 1.0
                loss = float(row_weights @ residual**2 + pull @ (tried - mean) ** 2)
                if loss < before:
                    break
            theta = tried
            a = slopes(relative, theta)
            if before - loss < CONVERGED_RATIO * loss:
                break
            if step < SPREAD_STEPS:
                if self.loss == "huber":
                    excess = np.abs(residual) / HUBER_RATIO
                    row_weights = weights / np.maximum(excess, 1.0)
                elif self.loss == "log":
                    row_weights = weights / np.clip(1.0 + residual, 0.3, 3.0) ** 2
                active = theta > 0
                normal = ((a * row_weights[:, None]).T @ a)[np.ix_(active, active)]
                used = np.trace(np.linalg.solve(normal + np.diag(pull[active]), normal))
                squares = float(row_weights @ residual**2) + PRIOR_ROW_RATIO**2
                variance = max(squares / (max(n - used, 0.0) + 1.0), VARIANCE_FLOOR)
        return _Fitted(
            theta=theta,
            slopes=a,
            weights=row_weights,
            residual=residual,
            pull=variance / spread**2,
            variance=variance,
        )

    def _scaled(
        self, rows: IntArray, mean: FloatArray, spread: FloatArray, lent: factors.Factors
    ) -> Coefficients:
        """Take what is expected times one shrunk factor: all that a few rows can tell.

        The intervals are those of the expectation, a little narrower or wider as the rows are
        nearer to it or farther off.
        """
        mean = mean.copy()
        for k, value in self.fixed.items():
            mean[k] = value
        logs = -np.log(energy(self.relative[rows], mean)) - lent.logs(self.cases.take(rows))[0]
        weights, architecture = self.weights[rows], self.architecture[rows]
        _, place = np.unique(architecture, return_inverse=True)
        means = np.bincount(place, weights * logs) / np.bincount(place, weights)
        told = len(means) / ARCHITECTURE_SPREAD**2
        level_variance = 1.0 / (told + 1.0 / LEVEL_SPREAD**2)
        level = float(means.mean()) * told * level_variance
        theta = mean * np.exp(level)
        for k, value in self.fixed.items():
            theta[k] = value
        squares = float(((logs - level) ** 2).sum()) + SINGLE_ROWS * SINGLE_SPREAD**2
        scale = float(np.sqrt(squares / (len(rows) + SINGLE_ROWS) + level_variance))
        residuals = scale * NORMAL_QUANTILES
        return Coefficients(
            theta=theta,
            covariance=np.diag(spread**2),
            residuals_seen=residuals,
            residuals_unseen=residuals,
            llms=len(residuals),
            spread_ratio=scale,
            design_effect=0.0,
            within_ratio=PRIOR_ROW_RATIO,
            between_ratio=scale,
            reach_doublings=REACH_DOUBLINGS * (scale / PRIOR_ROW_RATIO) ** 2,
            rows=len(rows),
            factors=lent,
        )

    def solve(
        self,
        rows: IntArray,
        mean: FloatArray,
        spread: FloatArray,
        lent: factors.Factors | None = None,
    ) -> Coefficients:
        """Fit some rows, with theta expected at ``mean`` within ``spread``."""
        few = self.with_prior and len(rows) < ENOUGH_ROWS
        scaled = self._scaled(rows, mean, spread, lent or factors.none()) if few else None
        if scaled and len(rows) < FEW_ROWS:
            return scaled
        fitted = self._minimise(rows, mean, spread)
        if scaled:
            # Rows left out decide between the two; the simpler is given up for a clear gain only.
            own = np.log(energy(self.relative[rows], scaled.theta))
            off = np.abs(own + scaled.factors.logs(self.cases.take(rows))[0]).mean()
            if np.abs(fitted.without_rows()[0]).mean() > FIT_PAYS_RATIO * off:
                return scaled
        # An overlapped term has no slope at 0, yet rows forbid it to be large: the spread is that
        # of a slope some way off.
        apart = fitted.theta.copy()
        overlapped = np.array(OVERLAPS).reshape(-1)
        apart[overlapped] = np.maximum(apart[overlapped], OVERLAP_FLOOR)
        steep = slopes(self.relative[rows], apart)
        curvature = (steep * fitted.weights[:, None]).T @ steep + np.diag(fitted.pull)
        covariance: FloatArray = fitted.variance * np.linalg.inv(curvature).astype(np.float64)
        seen, seen_leverage = fitted.without_rows()
        architecture = self.architecture[rows]
        unseen, unseen_leverage = fitted.without_groups(architecture)
        effect = fitted.design_effect(architecture)
        found, alone, strange = factors.fit(
            self.cases.take(rows),
            seen,
            self.weights[rows] / self.weights[rows].mean(),
            architecture,
        )
        # Left out with its architecture a row loses what others of it say of the factors, and of
        # the coefficients.
        strangers = strange.residual + unseen - seen
        within, between, reach = _spreads(alone.residual, self.scenario[rows], self.place[rows])
        # What rows left out were off by, less what coefficients and factors were uncertain by.
        row = (factors.ROW_SPREAD * found.scale_ratio) ** 2
        of_seen = effect * fitted.variance * seen_leverage + alone.variance
        of_unseen = effect * fitted.variance * unseen_leverage + strange.variance
        near = alone.residual / np.sqrt(1.0 + of_seen / row)
        far = strangers / np.sqrt(1.0 + of_unseen / row)
        # Rows in one kind of format may err more than those in another: their own scale, as far as
        # there are rows of it, makes the quantiles conditional on it.
        formats = format_kinds(self.cases)[rows]
        near, seen_scales = _rescaled(near, formats)
        far, unseen_scales = _rescaled(far, formats)
        return Coefficients(
            theta=fitted.theta,
            covariance=covariance,
            residuals_seen=np.sort(near),
            residuals_unseen=np.sort(far),
            llms=len(np.unique(architecture)),
            spread_ratio=float(np.sqrt(row)),
            design_effect=effect,
            within_ratio=within,
            between_ratio=between,
            reach_doublings=reach,
            rows=len(rows),
            factors=found,
            format_scales={kind: (seen_scales[kind], unseen_scales[kind]) for kind in seen_scales},
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Fitted:
    """The minimum of a problem, linearised there: what it would have been without some rows.

    Exact for the coefficients that are not at their bound: leaving rows g out of a ridge fit with
    N = B^T B + prior changes their residuals to (I - B_g N^-1 B_g^T)^-1 r_g.
    """

    theta: FloatArray
    slopes: FloatArray  # of relative energy, shape (n, terms)
    weights: FloatArray
    residual: FloatArray  # relative: predicted / measured - 1
    pull: FloatArray  # of the prior
    variance: float

    @cached_property
    def root(self) -> FloatArray:
        return np.sqrt(self.weights)

    @cached_property
    def b(self) -> FloatArray:
        """Weighted slopes of the coefficients above 0."""
        weighted: FloatArray = self.slopes[:, self.theta > 0] * self.root[:, None]
        return weighted

    @cached_property
    def normal(self) -> FloatArray:
        moments: FloatArray = self.b.T @ self.b + np.diag(self.pull[self.theta > 0])
        return moments

    @cached_property
    def leverage(self) -> FloatArray:
        """How much of its own prediction each row is; at most 1."""
        own: FloatArray = (self.b * np.linalg.solve(self.normal, self.b.T).T).sum(axis=1)
        return own

    def without_rows(self) -> tuple[FloatArray, FloatArray]:
        """log(measured / predicted) of each row by a fit without it, and its leverage on that.

        The leverage is the variance that the coefficients add to the prediction, in units of that
        of a residual.
        """
        rest = np.maximum(1.0 - self.leverage, 1e-3)
        return self._log(self.residual * self.root / rest), self.leverage / rest

    def without_groups(self, group: IntArray) -> tuple[FloatArray, FloatArray]:
        """Leave out each row with all rows of its group.

        (I - B_g N^-1 B_g^T)^-1 r_g = r_g + B_g (N - B_g^T B_g)^-1 B_g^T r_g (Woodbury): one small
        system for each group, all solved at once.
        """
        order, starts, moment = self._moments(group)
        sorted_b = self.b[order]
        own = np.add.reduceat(sorted_b[:, :, None] * sorted_b[:, None, :], starts)
        inverse = np.linalg.inv(self.normal - own)
        place = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(order))))
        gain = np.einsum("ij,ijk->ik", sorted_b, inverse[place])
        together, leverage = np.empty_like(self.residual), np.empty_like(self.residual)
        together[order] = (gain * moment[place]).sum(axis=1)
        together += self.residual * self.root
        leverage[order] = (gain * sorted_b).sum(axis=1)
        return self._log(together), leverage

    def design_effect(self, group: IntArray) -> float:
        """How much larger the variance of predictions is because rows of one group err alike.

        The sandwich estimate of clusters (Liang and Zeger, 1986) over that of independent rows,
        averaged over the rows; not below 1, and 1 for fewer than three groups.
        """
        _, starts, moment = self._moments(group)
        count = len(starts)
        if count < 3:
            return 1.0
        pushed = np.linalg.solve(self.normal, moment.T)
        clustered = ((self.b @ pushed) ** 2).sum() * count / (count - 1)
        return float(max(clustered / (self.variance * self.leverage.sum()), 1.0))

    def _moments(self, group: IntArray) -> tuple[IntArray, IntArray, FloatArray]:
        """Rows in the order of their groups, where each starts, and its share of the gradient."""
        order = np.argsort(group, kind="stable")
        starts = np.flatnonzero(np.diff(group[order], prepend=-1))
        scaled = (self.residual * self.root)[order]
        return order, starts, np.add.reduceat(self.b[order] * scaled[:, None], starts)

    def _log(self, scaled: FloatArray) -> FloatArray:
        logs: FloatArray = -np.log(np.maximum(1.0 + scaled / self.root, 0.05))
        return logs


def _borrowing(group: Coefficients, pooled: Coefficients) -> Coefficients:
    """Lend a group with few rows or LLMs the residuals of the pooled fit, at its own scale."""
    n = group.rows
    own, lent = group.spread_ratio, pooled.spread_ratio
    spread = float(np.sqrt((n * own**2 + LENT_ROWS * lent**2) / (n + LENT_ROWS)))
    few, strange = n < ENOUGH, group.llms < ENOUGH
    seen, seen_scale = (pooled.residuals_seen, lent) if few else (group.residuals_seen, own)
    unseen, unseen_scale = (
        (pooled.residuals_unseen, lent) if strange else (group.residuals_unseen, own)
    )
    return replace(
        group,
        residuals_seen=seen * (spread / seen_scale),
        residuals_unseen=unseen * (spread / unseen_scale),
        llms=pooled.llms if strange else group.llms,
        spread_ratio=spread,
        format_scales=pooled.format_scales if few else group.format_scales,
    )


def _rescaled(residuals: FloatArray, kinds: StrArray) -> tuple[FloatArray, dict[str, float]]:
    """Bring residuals of all kinds to one scale, and say what each kind's was over that of all."""
    total = max(float((residuals**2).mean()), VARIANCE_FLOOR)
    scales = {}
    for kind in sorted(set(kinds)):
        squares = residuals[kinds == kind] ** 2
        own = (float(squares.sum()) + FORMAT_ROWS * total) / (len(squares) + FORMAT_ROWS)
        scales[kind] = float(np.sqrt(own / total))
    return residuals / np.array([scales[kind] for kind in kinds]), scales


def _bounded(
    a: FloatArray, weights: FloatArray, mean: FloatArray, pull: FloatArray, least: FloatArray
) -> FloatArray:
    """Least squares of ``a theta - 1`` and of the pull toward the mean, theta not below least."""
    from scipy.optimize import nnls

    root, tug = np.sqrt(weights), np.sqrt(pull)
    stacked = np.vstack([a * root[:, None], np.diag(tug)])
    # Columns differ by orders of magnitude where a term hardly occurs: NNLS wants them alike.
    size = np.sqrt((stacked**2).sum(axis=0))
    size[size == 0] = 1.0
    # What is solved for is how far each lies above its least.
    target = np.concatenate([root * (1.0 - a @ least), (mean - least) * tug])
    try:
        solution, _ = nnls(stacked / size, target, maxiter=100 * len(size))
    except RuntimeError as error:
        raise FitError(
            "the least-squares problem did not converge; look for rows whose energy is off by "
            "orders of magnitude (energylens check)"
        ) from error
    above: FloatArray = np.asarray(solution / size, dtype=np.float64)
    return least + above


def _spreads(logs: FloatArray, scenario: IntArray, place: FloatArray) -> tuple[float, float, float]:
    """Standard deviations within scenarios and between their means, and how far residuals reach.

    The squared difference of two residuals of a scenario grows with their distance in ``place``,
    in doublings: by twice their variance for every reach, as long as they are close. So the reach
    is twice the variance, times the distances of all pairs, over their squared differences. A few
    guessed pairs, at the reach to expect, stand in where there are none.
    """
    total = float(logs.var()) if len(logs) > 1 else PRIOR_ROW_RATIO**2
    counts = np.bincount(scenario)
    means = np.bincount(scenario, logs) / np.maximum(counts, 1)
    freedom = int((counts - 1).clip(min=0).sum())
    if freedom == 0:
        return float(np.sqrt(total / 2)), float(np.sqrt(total / 2)), REACH_DOUBLINGS
    squares = (logs - means[scenario]) ** 2
    within = float(squares.sum()) / freedom
    between = max(total - within, 0.0)
    # Sums over the pairs of each scenario without going through them: of n numbers, n times the
    # squares about their mean, and the k-th smallest counted 2 k - n - 1 times.
    apart = float(counts[scenario] @ squares)
    distance = 0.0
    for knob in place.T:
        order = np.lexsort((knob, scenario))
        here = scenario[order]
        rank = np.arange(1, len(order) + 1) - (np.cumsum(counts) - counts)[here]
        distance += float((2 * rank - counts[here] - 1) @ knob[order])
    twice = 2.0 * max(float((logs**2).mean()), VARIANCE_FLOOR)
    reach = twice * (distance + GUESSED_PAIRS * REACH_DOUBLINGS) / (apart + GUESSED_PAIRS * twice)
    return float(np.sqrt(within)), float(np.sqrt(between)), reach


def _scope(dataset: Dataset, *, by_engine: bool = True) -> Scope:
    c, engines = dataset.cases, _engine_ids(dataset)

    def names(ids: Sequence[str]) -> tuple[str, ...]:
        return tuple(sorted(set(ids)))

    ranges = {
        column: (float(getattr(c, column).min()), float(getattr(c, column).max()))
        for column in SCOPE_COLUMNS
    }
    if c.capped.any():
        caps = np.where(c.capped, c.power_cap_w, c.of_gpu(lambda gpu: gpu.tdp_w))
        ranges["power_cap_w"] = (float(caps.min()), float(caps.max()))
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
    return np.array([_fit(draw, options).pooled.theta for draw in draws])


@dataclass(frozen=True, kw_only=True)
class Diagnostics:
    """What is weak about a fit, said by the fit itself.

    Attributes
    ----------
    rows, effective_parameters : int, float
    at_bound : tuple of str
        Coefficients at 0: no row asks for them, or others explain their share.
    below_physics : dict of str to str
        Coefficients that are no more than hardware needs, and what that means.
    undetermined : dict of str to str
        Coefficients that the rows leave within nine tenths of the spread they had before, and
        the rows that would determine them.
    condition_number : float
        Of the relative terms, columns scaled alike; above 1000 some cannot be told apart.
    leverage_max_ratio : float
        Largest weight of one row in its own prediction (1: the fit goes through it).
    leverage_row : int
        That row's number, from 0.
    mape_ratio, median_ape_ratio, bias_ratio : float
        In-sample errors; the bias is the median of predicted over measured, minus 1.
    worst : tuple of (int, float)
        Rows with the largest relative error, and predicted over measured of each.
    """

    rows: int
    effective_parameters: float
    at_bound: tuple[str, ...]
    below_physics: dict[str, str]
    undetermined: dict[str, str]
    condition_number: float
    leverage_max_ratio: float
    leverage_row: int
    mape_ratio: float
    median_ape_ratio: float
    bias_ratio: float
    worst: tuple[tuple[int, float], ...]


def diagnose(
    model: EnergyModel, dataset: Dataset, *, weights: FloatArray | None = None
) -> Diagnostics:
    """Examine a fit against the rows it was made from.

    Parameters
    ----------
    model : EnergyModel
    dataset : Dataset
        The n rows that ``fit`` was given.
    weights : ndarray, shape (n,), optional
        The weights that ``fit`` was given.

    Returns
    -------
    Diagnostics
    """
    if dataset.under_load.any():
        dataset = rows_at_work(dataset, time_law(dataset))
    if weights is None:
        weights = np.ones(len(dataset))
    terms = model.terms
    spreads = np.array([term.spread for term in terms])
    x = design(dataset.cases, terms)
    if model.measured_power:
        x = x * power_ratio(dataset.cases)[:, None]
    y = dataset.energy_per_request_j
    predicted = model.predict_energy_j(dataset.cases)
    theta = model.pooled.theta
    a = slopes(x / y[:, None], theta)
    present: BoolArray = np.any(x > 0, axis=0)
    size = np.sqrt((a[:, present] ** 2).sum(axis=0))
    size[size == 0] = 1.0
    spread = np.sqrt(np.diag(model.pooled.covariance))
    told = spread / spreads
    rests_on_prior = ~present | (told > 0.9)
    alike = np.abs(model.pooled.covariance) / np.maximum(np.outer(spread, spread), 1e-300)
    np.fill_diagonal(alike, 0.0)

    def needs(k: int) -> str:
        """Say which rows would tell; with such rows there, more of them, and from what to tell."""
        if not present[k]:
            return terms[k].needs
        other = int(alike[k].argmax())
        least = f" (least told apart from {terms[other].name})" if alike[k, other] > 0.2 else ""
        return f"more of: {terms[k].needs}{least}"

    undetermined = {
        term.name: needs(k) for k, term in enumerate(terms) if rests_on_prior[k] and spread[k] > 0
    }
    active = (theta > 0) & present
    # By the fit's own loss and prior: rows count as they did, and without a prior none pulls.
    if model.options.get("loss") == "absolute":
        weights = weights * (y / y.mean()) ** 2
    b = a[:, active] * np.sqrt(weights)[:, None]
    variance = max(model.pooled.within_ratio**2 + model.pooled.between_ratio**2, VARIANCE_FLOOR)
    pulled = spreads[active] if model.options.get("prior") != "none" else NO_PRIOR_SPREAD
    pull = np.broadcast_to(variance / np.square(pulled), active.sum())
    leverage = (b * np.linalg.solve(b.T @ b + np.diag(pull), b.T).T).sum(axis=1)
    ratio = predicted / y
    order = np.argsort(-np.abs(ratio - 1.0))[:5].tolist()
    return Diagnostics(
        rows=len(dataset),
        effective_parameters=float(leverage.sum()),
        at_bound=tuple(terms[k].name for k in np.flatnonzero((theta == 0) & present)),
        below_physics={
            name: said
            for name, said in physics_flags(theta, terms).items()
            if present[[term.name for term in terms].index(name)]
        },
        undetermined=undetermined,
        condition_number=float(min(np.linalg.cond(a[:, present] / size), 1.0 / EPSILON)),
        leverage_max_ratio=float(leverage.max()),
        leverage_row=int(leverage.argmax()),
        mape_ratio=float(np.abs(ratio - 1.0).mean()),
        median_ape_ratio=float(np.median(np.abs(ratio - 1.0))),
        bias_ratio=float(np.median(ratio) - 1.0),
        worst=tuple((i, float(ratio[i])) for i in order),
    )


@dataclass(frozen=True, kw_only=True)
class EnergyLens:
    """The law as a contestant: an Estimator."""

    options: FitOptions = FitOptions()
    name: str = "energylens"
    ranks_only: bool = False

    def fit(self, dataset: Dataset) -> EnergyModel | LoadedModel:
        """Fit the law to measured rows; a fold of them may have none with a power cap."""
        if len(dataset) and dataset.under_load.any():
            return fit_loaded(dataset, lambda rows: _fit(rows, self.options))
        return _fit(dataset, self.options)


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
