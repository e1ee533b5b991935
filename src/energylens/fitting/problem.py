"""The least-squares problem of some rows: solved, and what leaving rows out would change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import NormalDist

import numpy as np

from energylens import factors
from energylens.cases import FloatArray, IntArray
from energylens.dataset import Dataset, StrArray, group_rows
from energylens.errors import FitError, UsageError
from energylens.fitting.options import FitOptions
from energylens.formula import (
    NAMES,
    OVERLAPS,
    datasheet,
    design,
    energy,
    power_ratio,
    slopes,
    terms_of,
)
from energylens.linearised import Linearised, bounded
from energylens.model import Coefficients, format_kinds, knob_place

HUBER_RATIO = 0.15  # relative residual beyond which the huber loss grows linearly
STEP_LENGTHS = (1.0, 0.6, 0.3, 0.1, 0.03)  # tried until one lowers the loss
STEPS = 16  # Gauss-Newton steps at most; a handful do
SPREAD_STEPS = 4  # of them also estimate the residual spread that weighs the prior
CONVERGED_RATIO = 1e-5  # a step that lowers the loss by less is the last
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
LEVEL_FREEDOM, LEVEL_STEPS = 4.0, 20  # of Student's t, for engines far off; steps of its mode
ARCHITECTURE_SPREAD = 0.3
SINGLE_SPREAD = 0.22
SINGLE_ROWS = 5.0
PRIOR_ROW_RATIO = 0.1  # spread that a single pseudo-row gives a fit with few rows
FORMAT_ROWS = 5.0  # at the scale of all residuals that those in one kind of format start from
LENT_ROWS = 5.0  # that the pooled fit's residual spread counts for in a group's
ENOUGH = 9  # residuals from which a group can tell its own 80 % interval
# Coefficients that answer for other GPU types. What hardware does stays within TRAVEL_SPREAD of the
# datasheet, and of what is found GPU types have HARDWARE_IN_COMMON; the rest is software's, and of
# rows of g architectures g / (g + 1) carries to others. Set on ML.ENERGY v2 and Argonne
# (docs/studies/transfer.md).
TRAVEL_SPREAD = 0.05
HARDWARE_IN_COMMON = 0.5
LAUNCH, PIPELINE = NAMES.index("decode_launch"), NAMES.index("pipeline_parallel")
LEAST_WAITING = 0.3  # of what the datasheet suggests, for stages of pipelines
NO_PRIOR_SPREAD = 1e4  # stands for "none" where a covariance must exist
REACH_DOUBLINGS = 3.0  # of residual correlation, where rows do not tell
GUESSED_PAIRS = 5.0  # of configurations that such a guess counts for
VARIANCE_FLOOR = 1e-8  # of relative residuals, where rows repeat each other exactly
FACTOR_OFF = 1e6  # from what the datasheet suggests: no measurement, but a wrong unit
# Of a normal distribution, 41 of them: what a few rows cannot tell of their own.
NORMAL_QUANTILES = np.array(
    [NormalDist().inv_cdf((k + 0.5) / 41.0) for k in range(41)], dtype=np.float64
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


class Problem:
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
        self.hardware = np.array([term.hardware for term in terms])
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

    def _minimise(self, rows: IntArray, mean: FloatArray, spread: FloatArray) -> Linearised:
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
            full = bounded(a, row_weights, mean, pull, self.least, "energy")
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
        return Linearised(
            theta=theta,
            free=theta > 0,
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
        level, prior = 0.0, LEVEL_SPREAD**2
        for _ in range(LEVEL_STEPS):
            level_variance = 1.0 / (told + 1.0 / prior)
            level = float(means.mean()) * told * level_variance
            prior = LEVEL_FREEDOM * LEVEL_SPREAD**2 + level**2 + level_variance
            prior /= LEVEL_FREEDOM + 1.0
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

    def _waiting_alike(self, theta: FloatArray) -> FloatArray:
        """Let stages wait as long as each other's launches take, where no row has several.

        At the datasheet's pace stages would wait for longer than those of a faster engine work.
        """
        theta = theta.copy()
        theta[PIPELINE] = np.clip(theta[LAUNCH], LEAST_WAITING, 1.0)
        return theta

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
        if not self.relative[rows, PIPELINE].any():
            fitted = replace(fitted, theta=self._waiting_alike(fitted.theta))
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
        within, between, reach = spreads(alone.residual, self.scenario[rows], self.place[rows])
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

    def near_datasheet(self, rows: IntArray) -> Coefficients:
        """Fit some rows with what hardware does close to the datasheet."""
        spread = np.where(self.hardware, TRAVEL_SPREAD, self.spreads)
        return self.solve(rows, self.expected, spread)

    def travelling(self, rows: IntArray) -> Coefficients:
        """Fit some rows for GPU types that none is of: drawn back toward the datasheet.

        More rows of one GPU type tell no more of how much of it is that type's own.
        """
        found = self.near_datasheet(rows)
        architectures = len(np.unique(self.architecture[rows]))
        common = np.where(self.hardware, HARDWARE_IN_COMMON, architectures / (architectures + 1.0))
        common[list(self.fixed)] = 1.0
        return replace(found, theta=self.expected + common * (found.theta - self.expected))


def borrowing(group: Coefficients, pooled: Coefficients) -> Coefficients:
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


def spreads(logs: FloatArray, scenario: IntArray, place: FloatArray) -> tuple[float, float, float]:
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
