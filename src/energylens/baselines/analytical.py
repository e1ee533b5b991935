"""Published closed forms: of the lengths alone, of the batch alone, and a power law of all knobs.

The two laws of the lengths (and the logistic in the batch) know nothing of GPUs, so they are
fitted to groups of rows in which only their own variables move. A group that is too small for a
fit of its own takes the law of the next larger one, rescaled to the rows it does have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from energylens.baselines.features import engine_columns, engines_apart, knobs
from energylens.baselines.least_squares import Ridge, fit_nonnegative, fit_ridge
from energylens.cases import Cases, FloatArray, IntArray
from energylens.counts import in_flight
from energylens.dataset import Dataset
from energylens.errors import FitError

Key = tuple[object, ...]

# A key runs from coarse to fine; its first 0, 4, 5, 6 and 11 parts name the nested pools:
# everything; a system (GPU type, engine, boundary); an LLM on it; its precision; a configuration.
POOLS = (0, 4, 5, 6, 11)
# Columns whose singular values differ by more cannot be told apart by real, noisy rows.
LARGEST_CONDITION = 100.0
# Curves whose mean squared errors differ by less are equally good: the plainest is taken.
SAME_CURVE_ERROR = 1e-9


def pool_keys(cases: Cases, engines: Sequence[str]) -> tuple[list[Key], IntArray]:
    """Distinct keys of the cases, and the place of each case's key among them.

    Engines that are not to be told apart are no part of them.
    """
    apart = np.array([engine.id in engines for engine in cases.engines], dtype=np.bool_)
    node_gpus = np.where(cases.node_boundary, np.nan_to_num(cases.node_gpus, nan=0.0), 0.0)
    columns = np.column_stack(
        [
            cases.gpu_index,
            np.where(apart[cases.engine_index], cases.engine_index, -1),
            cases.node_boundary,
            node_gpus,
            cases.llm_index,
            cases.precision_index,
            cases.tensor_parallel,
            cases.pipeline_parallel,
            cases.expert_parallel,
            cases.data_parallel,
            np.nan_to_num(cases.batch_size, nan=0.0),
        ]
    )
    distinct, places = np.unique(columns, axis=0, return_inverse=True)
    keys: list[Key] = [
        (
            cases.gpus[int(row[0])].id,
            cases.engines[int(row[1])].id if row[1] >= 0 else "",
            *row[2:4].tolist(),
            cases.llms[int(row[4])].id,
            cases.precisions[int(row[5])].id,
            *row[6:].tolist(),
        )
        for row in distinct
    ]
    return keys, places.reshape(-1)


# ------------------------------------------------------------------------ laws of the lengths


def workload_terms(input_tokens: FloatArray, output_tokens: FloatArray) -> FloatArray:
    """Lin, Lout, Lin Lout; shape (n, 3). Eq. 3 of Wilkins, Keshav and Mortier."""
    return np.column_stack([input_tokens, output_tokens, input_tokens * output_tokens])


def sequence_length_terms(input_tokens: FloatArray, output_tokens: FloatArray) -> FloatArray:
    """1, Lin, Lin^2, Lout, Lin Lout, Lout^2; shape (n, 6). arXiv 2602.05695."""
    return np.column_stack(
        [
            np.ones_like(input_tokens),
            input_tokens,
            input_tokens**2,
            output_tokens,
            input_tokens * output_tokens,
            output_tokens**2,
        ]
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _LengthPredictor:
    terms: Callable[[FloatArray, FloatArray], FloatArray]
    coefficients: Mapping[Key, FloatArray]
    engines: tuple[str, ...]
    floor_j: float

    def predict_energy_j(self, cases: Cases) -> FloatArray:
        if len(cases) == 0:
            return np.empty(0)
        keys, places = pool_keys(cases, self.engines)
        finest = np.array(
            [
                next(
                    self.coefficients[key[:depth]]
                    for depth in reversed(POOLS)
                    if key[:depth] in self.coefficients
                )
                for key in keys
            ]
        )
        terms = self.terms(cases.input_tokens, cases.output_tokens)
        predicted: FloatArray = (terms * finest[places]).sum(axis=1)
        return np.maximum(predicted, self.floor_j)


@dataclass(frozen=True, kw_only=True)
class LengthLaw:
    """A law linear in functions of the two lengths, one for each pool of rows.

    Pools are nested: everything, system, LLM, precision, configuration (all degrees of
    parallelism and the batch). A pool whose rows can tell the terms apart has coefficients of
    its own; a smaller one takes those of the pool around it times the one factor that fits its
    rows best. A case is answered by the finest pool seen in training. The original papers stop
    at one law for each LLM and system; configurations and the factors are added here, because
    without them all configurations would tie.

    With the ordinary loss coefficients are unbounded, as published; with the relative one they
    are 0 or more, which keeps joules positive. A prediction below a tenth of the least energy
    in training is raised to that.
    """

    name: str
    terms: Callable[[FloatArray, FloatArray], FloatArray]
    relative: bool = True
    ranks_only: bool = False

    def fit(self, dataset: Dataset) -> _LengthPredictor:
        """Fit every pool; raises FitError without rows."""
        energy = dataset.energy_per_request_j
        if len(energy) == 0:
            raise FitError("a law of the lengths needs one row or more; given none")
        terms = self.terms(dataset.cases.input_tokens, dataset.cases.output_tokens)
        weights = 1.0 / energy if self.relative else np.ones_like(energy)
        design, target = terms * weights[:, None], energy * weights
        engines = engines_apart(dataset.cases)
        keys, places = pool_keys(dataset.cases, engines)
        coefficients: dict[Key, FloatArray] = {}
        for outer, depth in zip((0, *POOLS), POOLS, strict=False):
            pools: dict[Key, list[int]] = {}
            for row, place in enumerate(places):
                pools.setdefault(keys[place][:depth], []).append(row)
            for key, rows in pools.items():
                around = coefficients.get(key[:outer]) if depth else None
                if around is None or _determined(design[rows]):
                    coefficients[key] = self._solve(design[rows], target[rows])
                else:
                    predicted = design[rows] @ around
                    size = float(predicted @ predicted)
                    factor = float(predicted @ target[rows]) / size if size > 0 else 1.0
                    coefficients[key] = around * (factor if factor > 0 else 1.0)
        return _LengthPredictor(
            terms=self.terms,
            coefficients=coefficients,
            engines=engines,
            floor_j=float(energy.min()) / 10.0,
        )

    def _solve(self, design: FloatArray, target: FloatArray) -> FloatArray:
        if self.relative:
            return fit_nonnegative(design, target)
        size = np.linalg.norm(design, axis=0)
        scaled = np.linalg.lstsq(design / size, target, rcond=1.0 / LARGEST_CONDITION)[0]
        return np.asarray(scaled / size, dtype=np.float64)


def _determined(design: FloatArray) -> bool:
    """Whether there are more rows than terms, and rows that tell the terms apart."""
    if len(design) <= design.shape[1]:
        return False
    singular = np.linalg.svd(design / np.linalg.norm(design, axis=0), compute_uv=False)
    return bool(singular[-1] * LARGEST_CONDITION > singular[0])


#: Wilkins et al. (arXiv 2407.04014) with the relative loss, and as published: ordinary least
#: squares, no bounds; six terms from FLOPs and memory traffic (SweetSpot, arXiv 2602.05695).
LENGTH_LAWS = (
    LengthLaw(name="workload", terms=workload_terms),
    LengthLaw(name="workload-ols", terms=workload_terms, relative=False),
    LengthLaw(name="sequence-length", terms=sequence_length_terms),
)


# ------------------------------------------------------------------------------- a power law


def log_knobs(
    cases: Cases, engines: Sequence[str] = (), *, without: Sequence[str] = ()
) -> FloatArray:
    """Logarithms of all knobs but some, and a column for each engine told apart; shape (n, k)."""
    columns = [values for name, values in knobs(cases).items() if name not in without]
    return np.column_stack([np.log(np.column_stack(columns)), engine_columns(cases, engines)])


@dataclass(frozen=True, kw_only=True, eq=False)
class PowerLaw:
    """A fitted power law in the knobs."""

    ridge: Ridge
    engines: tuple[str, ...]
    log_range_j: tuple[float, float]

    def predict_energy_j(self, cases: Cases) -> FloatArray:
        """Predict joules per request, shape (n,)."""
        # Beyond a millionfold of anything seen the exponents, not the case, are at fault.
        low, high = self.log_range_j[0] - np.log(1e6), self.log_range_j[1] + np.log(1e6)
        return np.exp(np.clip(self.ridge.predict(log_knobs(cases, self.engines)), low, high))


def fit_power_law(cases: Cases, energy_j: FloatArray) -> PowerLaw:
    """Fit the exponents to n cases and their joules."""
    log_energy, engines = np.log(energy_j), engines_apart(cases)
    return PowerLaw(
        ridge=fit_ridge(log_knobs(cases, engines), log_energy),
        engines=engines,
        log_range_j=(float(log_energy.min()), float(log_energy.max())),
    )


@dataclass(frozen=True, kw_only=True)
class LogLinear:
    """A power law: log E linear in the log of every knob, one for all rows.

    With rows of several engines, each has a level of its own.

    The classical empirical form of performance models. Ridge-stabilised, the penalty chosen by
    leave-one-out on the training rows, so that it neither blows up at 10 rows nor is shrunk
    at 200.
    """

    name: str = "log-linear"
    ranks_only: bool = False

    def fit(self, dataset: Dataset) -> PowerLaw:
        """Fit exponents; raises FitError with fewer than two rows."""
        if len(dataset) < 2:
            raise FitError(f"a power law needs two rows or more; given {len(dataset)}")
        return fit_power_law(dataset.cases, dataset.energy_per_request_j)


# ---------------------------------------------------------------------- logistic in the batch


@dataclass(frozen=True, kw_only=True)
class Logistic:
    """``y = floor + height * sigmoid(steepness * (x - middle))``; floor, height >= 0."""

    floor: float
    height: float
    steepness: float
    middle: float

    def __call__(self, x: FloatArray) -> FloatArray:
        """Evaluate; any shape."""
        return self.floor + self.height * _sigmoid(self.steepness * (x - self.middle))


def _sigmoid(z: FloatArray) -> FloatArray:
    return 0.5 * (1.0 + np.tanh(0.5 * z))


def fit_logistic(x: FloatArray, y: FloatArray) -> Logistic:
    """Fit a logistic by relative least squares: a grid over the shape, exact in the scales.

    ML.ENERGY's own fit (github.com/ml-energy/data, ``modeling/logistic.py``) searches the
    middle and the steepness on a grid and solves for the other two; so does this one, with
    the relative loss, with non-negative scales, and with falling curves admitted.

    Parameters
    ----------
    x : ndarray of float, shape (n,)
        Usually log2 of the batch.
    y : ndarray of float, shape (n,)
        Above 0.
    """
    middles = np.linspace(x.min() - 2.0, x.max() + 2.0, 41)
    steepness = np.concatenate([-np.geomspace(0.1, 8.0, 20), np.geomspace(0.1, 8.0, 20)])
    # In order of preference among equals: the least steep, then the nearest to the rows' middle.
    order = np.lexsort((steepness, np.abs(steepness)))
    centre = np.argsort(np.abs(middles - middles[20]), kind="stable")
    grid_steepness, grid_middle = (
        axis.ravel() for axis in np.meshgrid(steepness[order], middles[centre], indexing="ij")
    )
    flat = 1.0 / y
    curve = _sigmoid(grid_steepness[:, None] * (x[None, :] - grid_middle[:, None])) / y
    # Two non-negative scales in closed form: the free optimum, or the better of the two edges.
    ff, fc, cc = flat @ flat, curve @ flat, (curve * curve).sum(axis=1)
    f1, c1 = flat.sum(), curve.sum(axis=1)
    determinant = ff * cc - fc * fc
    apart = determinant > 1e-9 * ff * cc  # else the curve is flat itself: the edges say the same
    determinant = np.where(apart, determinant, 1.0)
    floor = np.where(apart, (f1 * cc - c1 * fc) / determinant, -1.0)
    height = np.where(apart, (c1 * ff - f1 * fc) / determinant, -1.0)
    only_curve = c1 / np.maximum(cc, 1e-300)
    inside = (floor >= 0) & (height >= 0)
    shape = (
        (np.full_like(only_curve, f1 / ff), np.zeros_like(only_curve)),
        (np.zeros_like(only_curve), only_curve),
        (np.where(inside, floor, f1 / ff), np.where(inside, height, 0.0)),
    )
    low, high = (np.concatenate(parts) for parts in zip(*shape, strict=True))
    curves = np.tile(curve, (len(shape), 1))
    error = ((low[:, None] * flat + high[:, None] * curves - 1.0) ** 2).mean(axis=1)
    best = int(np.argmax(error <= error.min() + SAME_CURVE_ERROR))  # the first of those that tie
    place = best % len(grid_middle)
    return Logistic(
        floor=float(low[best]),
        height=float(high[best]),
        steepness=float(grid_steepness[place]),
        middle=float(grid_middle[place]),
    )


# Distinct batches from which a group gets a curve of its own: as many as it has parameters.
OWN_CURVE_BATCHES = 4
# Lengths within this ratio of a group's own are taken to be its workload.
SAME_WORKLOAD_RATIO = 1.5
BATCH_KNOBS = ("running",)  # what the curve itself explains


@dataclass(frozen=True, kw_only=True, eq=False)
class _Group:
    log_lengths: FloatArray  # mean log of input and output tokens, shape (2,)
    offset: float  # log of its scale over what the knobs predict, shrunk towards 0
    own: Logistic | None


@dataclass(frozen=True, kw_only=True, eq=False)
class _LogisticPredictor:
    groups: Mapping[Key, list[_Group]]
    pooled: Logistic
    scales: Ridge
    engines: tuple[str, ...]

    def predict_energy_j(self, cases: Cases) -> FloatArray:
        x = np.log2(in_flight(cases))
        lengths = np.log(np.column_stack([cases.input_tokens, cases.output_tokens]))
        per_token = np.exp(
            self.scales.predict(log_knobs(cases, self.engines, without=BATCH_KNOBS))
        ) * self.pooled(x)
        keys, places = _layout_keys(cases, self.engines)
        for place, key in enumerate(keys):
            groups = self.groups.get(key)
            if not groups:
                continue
            rows = np.flatnonzero(places == place)
            centres = np.array([group.log_lengths for group in groups])
            away = np.abs(lengths[rows, None, :] - centres).max(axis=2)
            for i, group in enumerate(groups):
                near = rows[(away.argmin(axis=1) == i) & (away[:, i] < np.log(SAME_WORKLOAD_RATIO))]
                if group.own is not None:
                    per_token[near] = group.own(x[near])
                else:
                    per_token[near] *= np.exp(group.offset)
        energy: FloatArray = per_token * cases.output_tokens
        return energy


@dataclass(frozen=True, kw_only=True)
class LogisticBatch:
    """Energy per output token as a logistic in log2 of the batch (ML.ENERGY v3).

    ``y = b0 + L sigmoid(k (log2 B - x0))``, one curve for each group of LLM, system,
    precision, layout and workload, as ``mlenergy-data`` fits its curves
    (github.com/ml-energy/data). A group with fewer than four distinct batches takes the shape
    that all groups share, with a scale from a power law in the other knobs, moved towards its
    own rows by as much as their scatter warrants (a random effect); a group not seen takes
    shape and scale without that. Both fallbacks are added here, to give an answer where the
    original has none. The batch is the number of sequences in flight.
    """

    name: str = "logistic-batch"
    ranks_only: bool = False

    def fit(self, dataset: Dataset) -> _LogisticPredictor:
        """Fit all curves; raises FitError with fewer than two rows."""
        if len(dataset) < 2:
            raise FitError(f"a curve in the batch needs two rows or more; given {len(dataset)}")
        cases = dataset.cases
        x = np.log2(in_flight(cases))
        y = dataset.energy_per_request_j / cases.output_tokens
        engines = engines_apart(cases)
        other = log_knobs(cases, engines, without=BATCH_KNOBS)
        keys, places = _layout_keys(cases, engines)
        workloads = dataset.workload_index
        _, first, group = np.unique(
            places * (int(workloads.max()) + 1) + workloads,
            return_index=True,
            return_inverse=True,
        )
        group = group.reshape(-1)
        size = np.bincount(group)

        pooled = Logistic(floor=1.0, height=0.0, steepness=1.0, middle=0.0)
        scales, offset = fit_ridge(other, np.log(y)), np.zeros(len(first))
        for _ in range(4):  # in turn: the shape, the scales, what the groups add to them
            pooled = fit_logistic(x, y / np.exp(scales.predict(other) + offset[group]))
            level = np.log(y / pooled(x))
            scales = fit_ridge(other, level - offset[group])
            offset = _group_effects(level - scales.predict(other), group)

        groups: dict[Key, list[_Group]] = {}
        lengths = np.log(np.column_stack([cases.input_tokens, cases.output_tokens]))
        for i in range(len(first)):
            rows = np.flatnonzero(group == i)
            enough = size[i] >= OWN_CURVE_BATCHES and (
                len(np.unique(x[rows].round(1))) >= OWN_CURVE_BATCHES
            )
            groups.setdefault(keys[places[rows[0]]], []).append(
                _Group(
                    log_lengths=lengths[rows].mean(axis=0),
                    offset=float(offset[i]),
                    own=fit_logistic(x[rows], y[rows]) if enough else None,
                )
            )
        return _LogisticPredictor(groups=groups, pooled=pooled, scales=scales, engines=engines)


def _group_effects(residual: FloatArray, group: IntArray) -> FloatArray:
    """Means of the groups, shrunk by the share of the scatter that is between groups.

    The one-way random-effects predictor: ``n v / (n v + w)`` of the mean, with ``v`` the
    variance between groups and ``w`` within, both by the method of moments.
    """
    size = np.bincount(group)
    mean = np.bincount(group, residual) / size
    spare = len(residual) - len(size)
    within = float(((residual - mean[group]) ** 2).sum() / spare) if spare else 0.0
    between = max(float(np.mean(mean**2)) - within * float(np.mean(1.0 / size)), 0.0)
    if not spare:  # one row a group tells nothing apart: half of it
        within = between = 1.0
    share = size * between / np.maximum(size * between + within, 1e-300)
    effects: FloatArray = share * mean
    return effects


def _layout_keys(cases: Cases, engines: Sequence[str]) -> tuple[list[Key], IntArray]:
    """Keys of LLM, system, precision and layout: those of the pools less the batch."""
    keys, places = pool_keys(cases, engines)
    numbers: dict[Key, int] = {}
    renumbered = np.array([numbers.setdefault(key[:-1], len(numbers)) for key in keys])
    return list(numbers), renumbered[places]
