"""How well estimators predict and choose: one protocol, the same rows and draws for all.

:func:`evaluate` sees estimators through the seams alone (``Estimator``, ``Predictor``), so the
law, every baseline, an oracle and a random pick are judged by the same lines. What is computed,
to the last convention, is written down in ``docs/evaluation.md``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from energylens.cases import BoolArray, Cases, FloatArray, IntArray
from energylens.dataset import Dataset, StrArray, freed_columns
from energylens.errors import EnergyLensError, InputError, MissingExtraError, UsageError
from energylens.protocols import Estimator, IntervalPredictor

#: From a seed to an estimator, so that whatever draws at random does so anew in every repeat.
EstimatorFactory = Callable[[int], Estimator]

DEFAULT_CHOOSE = ("tensor_parallel", "pipeline_parallel")
DEFAULT_CURVE = (10, 15, 25, 50, 100, 200)
DEFAULT_TRAIN = 50
DEFAULT_REPEATS = 50
SPLIT_TRAIN_RATIO = 0.8

# Predictions closer than this, relatively, are a tie: what floating point leaves of equality.
TIE_RATIO = 1e-9
# Candidate pairs taken of one scenario; beyond it they are drawn at random (2,000 candidates).
PAIR_LIMIT = 2_000_000
_BAND_PERCENTILES = (5.0, 50.0, 95.0)
_LISTED = 20


# --------------------------------------------------------------------------------- the result


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """What is judged; ``None`` where the protocol or the estimator leaves it undefined."""

    top1_ratio: float | None
    top1_within_noise_ratio: float | None
    pairwise_ratio: float | None
    pairwise_clear_ratio: float | None
    pairwise_near_tie_ratio: float | None
    regret_mean_ratio: float | None
    regret_p95_ratio: float | None
    regret_worst_ratio: float | None
    mape_ratio: float | None
    median_ape_ratio: float | None
    r2_ratio: float | None
    interval_coverage_ratio: float | None
    unanswered_ratio: float | None
    prefill_mape_ratio: float | None
    decode_mape_ratio: float | None

    def to_json(self) -> dict[str, float | None]:
        """Names and values."""
        return {name: getattr(self, name) for name in METRICS}

    @classmethod
    def of(cls, values: FloatArray) -> Metrics:
        """Make a record of values in the order of :data:`METRICS`; NaN becomes ``None``."""
        known = [float(v) if np.isfinite(v) else None for v in values]
        return cls(**dict(zip(METRICS, known, strict=True)))


@runtime_checkable
class PartsPredictor(Protocol):
    """A predictor that tells prefill from decode."""

    def predict_parts_j(self, cases: Cases) -> tuple[FloatArray, FloatArray]:
        """Joules per request of prefill and of decode, term by term; each of shape (n, terms)."""
        ...


METRICS = tuple(f.name for f in fields(Metrics))


@dataclass(frozen=True, kw_only=True)
class ScenarioScore:
    """One scenario under one estimator, over all repeats that scored it."""

    scenario: str
    candidates: int
    scored: int
    top1_ratio: float
    top1_within_noise_ratio: float
    regret_mean_ratio: float
    best: str
    chosen: str | None  # most often; None if the estimator never had an answer

    def to_json(self) -> dict[str, Any]:
        """Names and values."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True, kw_only=True, eq=False)
class Score:
    """One estimator under one condition.

    ``metrics`` are means over repeats (``regret_worst_ratio``: the maximum). ``bands`` hold the
    5th percentile, median and 95th percentile over repeats. ``row_error_ratio``, shape
    (rows,), is predicted/measured - 1 of each row, averaged over the repeats that judged it;
    NaN where none did.
    """

    ranks_only: bool
    train_rows: int
    metrics: Metrics
    fit_s: float | None
    fits: int
    failed_fits: int
    failure: str | None
    bands: Mapping[str, tuple[float, float, float] | None]
    mape_group_median_ratio: float | None
    groups: Mapping[str, Metrics]
    modalities: Mapping[str, Metrics]
    llms: Mapping[str, Metrics]
    scenarios: tuple[ScenarioScore, ...]
    row_error_ratio: FloatArray

    @property
    def misses(self) -> tuple[ScenarioScore, ...]:
        """Scenarios whose choice was not always within the noise, costliest first."""
        missed = (s for s in self.scenarios if s.top1_within_noise_ratio < 1 - TIE_RATIO)
        return tuple(sorted(missed, key=lambda s: -s.regret_mean_ratio * s.scored))

    def to_json(self) -> dict[str, Any]:
        """Headline numbers and bands."""
        return {
            "train_rows": self.train_rows,
            **self.metrics.to_json(),
            "mape_group_median_ratio": self.mape_group_median_ratio,
            "fit_s": self.fit_s,
            "fits": self.fits,
            "failed_fits": self.failed_fits,
            "failure": self.failure,
            "ranks_only": self.ranks_only,
            "bands": {
                name: band and dict(zip(("p05", "median", "p95"), band, strict=True))
                for name, band in self.bands.items()
            },
        }

    def breakdown_json(self) -> dict[str, Any]:
        """Where the headline comes from: by group, modality, LLM, and the scenarios missed."""
        return {
            **{
                kind: {name: m.to_json() for name, m in getattr(self, kind).items()}
                for kind in ("groups", "modalities", "llms")
            },
            "misses": [s.to_json() for s in self.misses[:_LISTED]],
            "misses_in_all": len(self.misses),
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Point:
    """All estimators under one condition of the protocol."""

    train: int | None  # rows asked for; None: all that the protocol allows
    calibration: int  # rows of the group left out that were given back
    power_known: bool
    scores: Mapping[str, Score]

    def to_json(self) -> dict[str, Any]:
        """Headline numbers of every estimator."""
        rows = [score.train_rows for score in self.scores.values()]
        return {
            "train_rows": max(rows, default=self.train),
            "calibration_rows": self.calibration,
            "power_known": self.power_known,
            "estimators": {name: score.to_json() for name, score in self.scores.items()},
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """What came of judging some estimators on one dataset by one protocol.

    ``points`` hold one entry for each condition (training sizes of a learning curve, calibration
    sizes, power known or not); ``headline`` says which of them the protocol is about.
    """

    protocol: str
    choose: tuple[str, ...]
    seed: int
    repeats: int
    strict: bool
    objective: str
    batch: str
    noise_ratio: float
    interval_ratio: float
    direction: str | None
    batch_cut: float | None
    per: tuple[str, ...]
    leave: str | None
    rows: int
    scenarios: int
    source_counts: Mapping[str, int]
    accuracy_claim: bool
    in_sample: bool
    dataset_digest: str
    headline: int
    points: tuple[Point, ...]
    notes: tuple[str, ...]

    @property
    def estimators(self) -> Mapping[str, Score]:
        """Scores of the headline condition by estimator."""
        return self.points[self.headline].scores

    def smallest_train_rows(self, estimator: str, metric: str, at_least: float) -> int | None:
        """Fewest training rows among the points at which a metric reaches a value.

        Raises
        ------
        UsageError
            If no such estimator or metric was judged.
        """
        if estimator not in self.estimators or metric not in METRICS:
            raise UsageError(
                f"one of the estimators {', '.join(self.estimators)} and one of the metrics "
                f"{', '.join(METRICS)} must be named; given {estimator!r}, {metric!r}"
            )
        reached = [
            score.train_rows
            for score in (point.scores[estimator] for point in self.points)
            if (value := getattr(score.metrics, metric)) is not None and value >= at_least
        ]
        return min(reached, default=None)

    def to_json(self) -> dict[str, Any]:
        """One document; every number finite or null."""
        document: dict[str, Any] = {
            "protocol": self.protocol,
            "choose": list(self.choose),
            "seed": self.seed,
            "rows": self.rows,
            "scenarios": self.scenarios,
            "estimators": {
                name: {**score.to_json(), **score.breakdown_json()}
                for name, score in self.estimators.items()
            },
        }
        document |= {
            "repeats": self.repeats,
            "strict": self.strict,
            "objective": self.objective,
            "batch": self.batch,
            "noise_ratio": self.noise_ratio,
            "interval_ratio": self.interval_ratio,
            "direction": self.direction,
            "batch_cut": self.batch_cut,
            "per": list(self.per),
            "leave": self.leave,
            "source_counts": dict(self.source_counts),
            "accuracy_claim": self.accuracy_claim,
            "in_sample": self.in_sample,
            "dataset_digest": self.dataset_digest,
            "notes": list(self.notes),
        }
        if len(self.points) > 1:
            document["curve"] = [point.to_json() for point in self.points]
        return document


# --------------------------------------------------------------------- scenarios as flat arrays

_Table = dict[str, NDArray[Any]]  # columns of equal length


@dataclass(frozen=True, kw_only=True, eq=False)
class _Board:
    """Scenarios, their candidates and candidate pairs, numbered through."""

    labels: tuple[str, ...]
    rows: IntArray  # every row of every candidate ...
    row_candidate: IntArray  # ... and whose it is
    owner: IntArray  # scenario of each candidate, ascending
    energy: FloatArray  # measured joules of each candidate, per unit of the objective
    scale: FloatArray  # what divides the joules of each row: 1 or its output tokens
    best: FloatArray  # lowest measured energy of each scenario
    first: IntArray  # candidates of each pair
    second: IntArray
    names: tuple[str, ...]  # of each candidate

    @classmethod
    def of(
        cls, dataset: Dataset, choose: Sequence[str], objective: str, among: BoolArray
    ) -> _Board:
        """Lay out the scenarios of the rows in ``among``."""
        freed = sorted(freed_columns(choose))
        cases = dataset.cases
        scale = cases.output_tokens if objective == "output_token" else np.ones(len(dataset))
        labels: list[str] = []
        rows, candidates, owner, first, second = [], [], [], [], []
        start = 0
        for scenario in dataset.scenarios(choose):
            members = scenario[among[scenario]]
            if len(members) == 0:
                continue
            keys = np.column_stack([getattr(cases, name)[members] for name in freed])
            # A configuration measured twice is one candidate with the mean of its joules.
            distinct, place = np.unique(keys, axis=0, return_inverse=True)
            if len(distinct) < 2:
                continue
            rows.append(members)
            candidates.append(start + place.reshape(-1))
            owner.append(np.full(len(distinct), len(labels)))
            pair = _pairs(len(distinct))
            first.append(start + pair[0])
            second.append(start + pair[1])
            labels.append(_scenario_label(dataset, int(members[0]), freed))
            start += len(distinct)

        def joined(parts: list[IntArray]) -> IntArray:
            return np.concatenate([np.empty(0, dtype=np.intp), *parts]).astype(np.intp)

        row, row_candidate = joined(rows), joined(candidates)
        energy = np.bincount(
            row_candidate, (dataset.energy_per_request_j / scale)[row], minlength=start
        ) / np.bincount(row_candidate, minlength=start)
        one_row = np.zeros(start, dtype=np.intp)
        one_row[row_candidate] = row
        owners = joined(owner)
        a, b = joined(first), joined(second)
        ordered = energy[a] != energy[b]  # equal measurements have no order to get right
        return cls(
            labels=tuple(labels),
            rows=row,
            row_candidate=row_candidate,
            owner=owners,
            energy=energy,
            scale=scale,
            best=np.minimum.reduceat(energy, _starts(owners)) if start else energy,
            first=a[ordered],
            second=b[ordered],
            names=tuple(_candidate_label(cases, int(i), freed) for i in one_row),
        )

    @cached_property
    def first_row(self) -> IntArray:
        """One row of each scenario."""
        result = np.zeros(len(self.labels), dtype=np.intp)
        result[self.owner[self.row_candidate]] = self.rows
        return result

    def touching(self, mask: BoolArray) -> BoolArray:
        """Scenarios with a candidate row in ``mask``; shape (scenarios,)."""
        hits = np.bincount(
            self.owner[self.row_candidate], mask[self.rows], minlength=len(self.labels)
        )
        return np.asarray(hits > 0)

    def marks(self, energy_j: FloatArray, scored: BoolArray, noise_ratio: float) -> _Table:
        """Mark predictions of all rows, shape (rows,), in the scenarios to be scored.

        Ties are broken in expectation: every candidate tied for the lowest prediction is the
        choice with the same probability; without any answer every candidate is.
        """
        owner, count = self.owner, len(self.labels)
        predicted = np.bincount(
            self.row_candidate, (energy_j / self.scale)[self.rows], minlength=len(owner)
        ) / np.bincount(self.row_candidate, minlength=len(owner))
        answered = np.where(np.isfinite(predicted), predicted, np.inf)
        starts = _starts(owner)
        lowest = np.minimum.reduceat(answered, starts) if count else answered
        none = np.isinf(lowest)
        margin = np.where(none, 0.0, lowest) + TIE_RATIO * np.where(none, 0.0, np.abs(lowest))
        tied = (answered <= margin[owner]) | none[owner]
        share = tied / np.bincount(owner, tied, minlength=count)[owner]

        def expected(value: NDArray[Any]) -> FloatArray:
            return np.bincount(owner, share * value, minlength=count).astype(np.float64)

        regret = self.energy / self.best[owner] - 1.0
        chosen = np.full(count, -1, dtype=np.intp)
        places = np.flatnonzero(tied)[::-1]
        chosen[owner[places]] = places  # the first of those tied, to show
        chosen[none] = -1

        a, b = self.first, self.second
        gap = predicted[a] - predicted[b]
        level = np.abs(gap) <= TIE_RATIO * np.maximum(np.abs(predicted[a]), np.abs(predicted[b]))
        right = np.where(
            level | ~np.isfinite(gap), 0.5, (gap < 0) == (self.energy[a] < self.energy[b])
        )
        near = np.abs(self.energy[a] - self.energy[b]) < noise_ratio * np.minimum(
            self.energy[a], self.energy[b]
        )

        def per_scenario(value: NDArray[Any]) -> FloatArray:
            return np.bincount(owner[a], value, minlength=count).astype(np.float64)

        table = {
            "scenario": np.arange(count),
            "chosen": chosen,
            "top1": expected(self.energy <= self.best[owner]),
            "within": expected(self.energy <= self.best[owner] * (1.0 + noise_ratio)),
            "regret": expected(regret),
            "right": per_scenario(right),
            "pairs": per_scenario(np.ones(len(a))),
            "near_right": per_scenario(right * near),
            "near_pairs": per_scenario(near),
        }
        return _pick(table, scored)


def _starts(owner: IntArray) -> IntArray:
    return np.flatnonzero(np.diff(owner, prepend=-1))


def _pairs(size: int) -> tuple[IntArray, IntArray]:
    """All pairs of ``size`` things; of very many things, many pairs drawn at random."""
    if size * (size - 1) // 2 <= PAIR_LIMIT:
        return np.triu_indices(size, 1)
    rng = np.random.default_rng(size)
    first = rng.integers(size, size=PAIR_LIMIT)
    return first, (first + rng.integers(1, size, size=PAIR_LIMIT)) % size


def _pick(table: _Table, mask: NDArray[Any]) -> _Table:
    return {name: column[mask] for name, column in table.items()}


def _join(tables: Sequence[_Table]) -> _Table:
    return {name: np.concatenate([t[name] for t in tables]) for name in tables[0]}


def _scenario_label(dataset: Dataset, row: int, freed: Sequence[str]) -> str:
    cases = dataset.cases
    parts = [str(dataset.llm_ids[row])]
    if "gpu_index" not in freed:
        parts.append(str(dataset.gpu_ids[row]))
    if "precision_index" not in freed:
        parts.append(str(dataset.precision_ids[row]))
    parts.append(str(dataset.task[row]) or str(dataset.modality[row]))
    parts.append(f"{cases.input_tokens[row]:.0f}+{cases.output_tokens[row]:.0f} tokens")
    parts += _layout(cases, row, freed, listed_if_free=False)
    if cases.node_boundary[row]:
        parts.append("node")
    return " | ".join(parts)


def _candidate_label(cases: Cases, row: int, freed: Sequence[str]) -> str:
    parts = _layout(cases, row, freed, listed_if_free=True)
    if "precision_index" in freed:
        parts.append(cases.precisions[cases.precision_index[row]].id)
    if "gpu_index" in freed:
        parts.append(cases.gpus[cases.gpu_index[row]].id)
    return " ".join(parts)


def _layout(cases: Cases, row: int, freed: Sequence[str], *, listed_if_free: bool) -> list[str]:
    symbols = {
        "tensor_parallel": "TP",
        "pipeline_parallel": "PP",
        "expert_parallel": "EP",
        "data_parallel": "DP",
        "batch_size": "B",
    }
    return [
        f"{symbol}{getattr(cases, name)[row]:g}"
        for name, symbol in symbols.items()
        if (name in freed) == listed_if_free
    ]


# -------------------------------------------------------------------------- from marks to numbers


def _share(part: NDArray[Any], whole: NDArray[Any]) -> float:
    total = float(np.sum(whole))
    return float(np.sum(part)) / total if total else np.nan


def _mean_known(values: FloatArray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else np.nan


def _summary(marks: _Table, errors: _Table) -> FloatArray:
    """All metrics, in the order of :data:`METRICS`; NaN where undefined."""
    regret, nan = marks["regret"], np.nan
    joules = np.isfinite(errors["predicted"])
    measured, predicted = errors["measured"][joules], errors["predicted"][joules]
    answered = errors["answered"]
    ape = np.abs(predicted / measured - 1.0)
    spread = float(np.sum((measured - measured.mean()) ** 2)) if len(measured) else 0.0
    values = {
        "top1_ratio": marks["top1"].mean() if len(regret) else nan,
        "top1_within_noise_ratio": marks["within"].mean() if len(regret) else nan,
        "pairwise_ratio": _share(marks["right"], marks["pairs"]),
        "pairwise_clear_ratio": _share(
            marks["right"] - marks["near_right"], marks["pairs"] - marks["near_pairs"]
        ),
        "pairwise_near_tie_ratio": _share(marks["near_right"], marks["near_pairs"]),
        "regret_mean_ratio": regret.mean() if len(regret) else nan,
        "regret_p95_ratio": np.percentile(regret, 95) if len(regret) else nan,
        "regret_worst_ratio": regret.max() if len(regret) else nan,
        "mape_ratio": ape.mean() if len(ape) else nan,
        "median_ape_ratio": np.median(ape) if len(ape) else nan,
        "r2_ratio": 1.0 - np.sum((predicted - measured) ** 2) / spread if spread > 0 else nan,
        "interval_coverage_ratio": _mean_known(errors["inside"]),
        "unanswered_ratio": 1.0 - answered.mean() if len(answered) else nan,
        "prefill_mape_ratio": _mean_known(errors["prefill_ape"]),
        "decode_mape_ratio": _mean_known(errors["decode_ape"]),
    }
    return np.array([values[name] for name in METRICS], dtype=np.float64)


def _nan_reduce(function: Callable[[FloatArray], Any], values: FloatArray) -> Any:
    known = values[np.isfinite(values)]
    return function(known) if len(known) else None


# ------------------------------------------------------------------------------------ protocols


@dataclass(frozen=True, kw_only=True, eq=False)
class _Fold:
    """One fit and what is judged by it."""

    train: IntArray
    judged: IntArray  # rows whose joules are judged: none of them trained on
    scored: BoolArray  # scenarios whose choice is judged; shape (scenarios,)


@dataclass(frozen=True, kw_only=True)
class _Condition:
    train: int | None
    calibration: int = 0
    power_known: bool = True


@dataclass(frozen=True, kw_only=True, eq=False)
class _Setting:
    """What the protocols draw their folds from."""

    dataset: Dataset
    board: _Board
    strict: bool
    judged_batch: BoolArray  # unseen-batch: rows on the judged side of the cut
    left_out: StrArray  # leave-one-out: what leaves together, of each row
    groups: StrArray  # what errors are summed up by besides


def _draw(pool: IntArray, train: int | None, rng: np.random.Generator) -> IntArray:
    """``train`` rows at random, or all. Draws of one generator state are nested."""
    if train is None:
        return pool
    if train > len(pool):
        raise UsageError(
            f"the training rows must fit in the rows that may be trained on ({len(pool)}); "
            f"given {train}: ask for fewer, or bring more rows"
        )
    return rng.permutation(pool)[:train]


def _scenarios_within(setting: _Setting, rows: IntArray) -> BoolArray:
    outside = np.ones(len(setting.dataset), dtype=np.bool_)
    outside[rows] = False
    return ~setting.board.touching(outside)


def _drawn(
    setting: _Setting, rows: IntArray, condition: _Condition, rng: np.random.Generator
) -> Iterator[_Fold]:
    """Few-shot: rows drawn from all rows, every scenario scored, the other rows judged."""
    board, train = setting.board, condition.train or len(rows)
    scored = _scenarios_within(setting, rows)
    if not setting.strict:
        if train >= len(rows):
            raise UsageError(
                f"the training rows must be fewer than the rows ({len(rows)}"
                f"{f' of {apart}' if (apart := setting.groups[rows[0]]) else ''}), so that some "
                f"are left to judge; given {train}"
            )
        chosen = _draw(rows, train, rng)
        yield _Fold(train=chosen, judged=np.setdiff1d(rows, chosen), scored=scored)
        return
    # Strictly held out: whole scenarios leave first, half of them or as many as the training
    # rows allow, and the training rows come from what stays.
    order = rng.permutation(np.flatnonzero(scored))
    sizes = np.bincount(board.owner[board.row_candidate], minlength=len(board.labels))
    out, spare = np.zeros_like(scored), len(rows) - train
    for scenario in order:
        if 2 * np.count_nonzero(out) < len(order) and sizes[scenario] <= spare:
            out[scenario] = True
            spare -= sizes[scenario]
    if not out.any():
        raise UsageError(
            f"a strict draw of {train} training rows must leave at least one of the "
            f"{len(order)} scenarios untouched, and {len(rows)} rows do not: ask for fewer"
        )
    held_rows = np.unique(board.rows[out[board.owner[board.row_candidate]]])
    chosen = _draw(np.setdiff1d(rows, held_rows), train, rng)
    yield _Fold(train=chosen, judged=held_rows, scored=out)


def _split(
    setting: _Setting, rows: IntArray, condition: _Condition, rng: np.random.Generator
) -> Iterator[_Fold]:
    """Four rows in five train, unless a number is given; the rest are judged."""
    train = condition.train or max(1, int(SPLIT_TRAIN_RATIO * len(rows)))
    return _drawn(setting, rows, replace(condition, train=train), rng)


def _in_sample(
    setting: _Setting, rows: IntArray, condition: _Condition, rng: np.random.Generator
) -> Iterator[_Fold]:
    """Fit on all rows and judge the same rows."""
    chosen = _draw(rows, condition.train, rng)
    yield _Fold(train=chosen, judged=rows, scored=_scenarios_within(setting, rows))


def _unseen_batch(
    setting: _Setting, rows: IntArray, condition: _Condition, rng: np.random.Generator
) -> Iterator[_Fold]:
    """Fit one side of the batch cut, judge the other; candidates are those of that side."""
    judged = rows[setting.judged_batch[rows]]
    pool = rows[~setting.judged_batch[rows]]
    if len(judged) and len(pool):
        yield _Fold(
            train=_draw(pool, condition.train, rng),
            judged=judged,
            scored=_scenarios_within(setting, judged),
        )


def _leave_one_out(
    setting: _Setting, rows: IntArray, condition: _Condition, rng: np.random.Generator
) -> Iterator[_Fold]:
    """Leave out each group in turn, but for a few calibration rows."""
    for label in sorted(set(setting.left_out[rows])):
        out = setting.left_out[rows] == label
        pool = _draw(rows[~out], condition.train, rng)
        order = rng.permutation(rows[out])
        known, judged = order[: condition.calibration], order[condition.calibration :]
        if len(pool) == 0 or len(judged) == 0:
            continue
        mask = np.zeros(len(setting.dataset), dtype=np.bool_)
        mask[rows[out]] = True
        scored = setting.board.touching(mask)
        train = np.concatenate([pool, known])
        if setting.strict:
            trained = np.zeros_like(mask)
            trained[train] = True
            scored &= ~setting.board.touching(trained)
        yield _Fold(train=train, judged=judged, scored=scored)


_Folds = Callable[[_Setting, IntArray, _Condition, np.random.Generator], Iterator[_Fold]]

# What each protocol draws. A new one is one row here, and one function if it draws anew.
_FOLDS: dict[str, _Folds] = {
    "few-shot": _drawn,
    "learning-curve": _drawn,
    "no-power": _drawn,
    "split": _split,
    "all": _in_sample,
    "unseen-batch": _unseen_batch,
    "unseen-llm": _leave_one_out,
    "unseen-hardware": _leave_one_out,
    "unseen-modality": _leave_one_out,
}

#: What ``protocol`` may be.
PROTOCOLS = tuple(_FOLDS)


def _same_architecture(cases: Cases) -> StrArray:
    """Name each row by all LLMs that have its architecture: variants of one leave together."""
    keys = {
        llm.id: (
            llm.layers,
            llm.hidden_size,
            llm.vocabulary_size,
            llm.tied_embeddings,
            llm.attention,
            llm.feed_forward,
            llm.experts,
            llm.state_space,
            llm.vision,
        )
        for llm in (cases.llms[i] for i in np.unique(cases.llm_index))
    }
    names = {
        name: " / ".join(other for other, k in keys.items() if k == key)
        for name, key in keys.items()
    }
    return np.array([names.get(llm.id, "") for llm in cases.llms], dtype=object)[cases.llm_index]


# What ``per`` may name, and the label of each row under it.
_PER: dict[str, Callable[[Dataset], StrArray]] = {
    "llm": lambda d: d.llm_ids,
    "gpu": lambda d: d.gpu_ids,
    "precision": lambda d: d.precision_ids,
    "modality": lambda d: d.modality,
    "task": lambda d: d.task,
    "engine_version": lambda d: d.engine_version,
}


# Whose batches are cut apart by unseen-batch, unless the fits are.
_BATCH_GROUPS = ("llm", "gpu", "precision", "task")


def _group_labels(dataset: Dataset, per: Sequence[str]) -> StrArray:
    """Label each row by what ``per`` names, as in ``Qwen3-14B | bf16``."""
    for name in per:
        if name not in _PER:
            raise UsageError(f"per must name some of {', '.join(_PER)}; given {name!r}")
    labels = [_PER[name](dataset) for name in per]
    joined = [" | ".join(map(str, parts)) for parts in zip(*labels, strict=True)]
    return np.array(joined or [""] * len(dataset), dtype=object)


def _left_out_labels(dataset: Dataset, protocol: str, leave: str) -> StrArray:
    if protocol == "unseen-hardware":
        return dataset.gpu_ids
    if protocol == "unseen-modality":
        return np.array([str(value) for value in dataset.modality], dtype=object)
    if protocol == "unseen-llm" and leave == "architecture":
        return _same_architecture(dataset.cases)
    return dataset.llm_ids


def _judged_batches(
    batch_size: FloatArray, groups: StrArray, batch_cut: float | None, direction: str
) -> BoolArray:
    """Rows on the judged side of the cut: by default the median distinct batch of each group."""
    judged = np.zeros(len(batch_size), dtype=np.bool_)
    for group in set(groups):
        rows = groups == group
        distinct = np.unique(batch_size[rows])
        if batch_cut is None and len(distinct) == 1:
            continue  # nothing in it is unseen
        larger = batch_size[rows] > (np.median(distinct) if batch_cut is None else batch_cut)
        judged[rows] = larger if direction == "larger" else ~larger
    return judged


# ------------------------------------------------------------------------------------- the judge


def evaluate(
    dataset: Dataset,
    estimators: Mapping[str, EstimatorFactory],
    *,
    protocol: str = "few-shot",
    choose: Sequence[str] = DEFAULT_CHOOSE,
    train: int | None = None,
    repeats: int | None = None,
    seed: int = 0,
    noise_ratio: float = 0.02,
    strict: bool = False,
    objective: str = "request",
    batch: str = "observed",
    curve: Sequence[int] = DEFAULT_CURVE,
    calibration: Sequence[int] = (0,),
    direction: str = "larger",
    batch_cut: float | None = None,
    per: Sequence[str] = (),
    leave: str = "architecture",
    interval_ratio: float = 0.8,
    allow_simulated: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Judge estimators on measured rows.

    Every estimator is fitted to the same rows, drawn from ``default_rng([seed, repeat])``, and
    judged on the same scenarios and rows. Metrics are taken in each repeat and averaged.

    Parameters
    ----------
    dataset : Dataset
        Measured or published rows.
    estimators : mapping of str to callable
        From a name to what makes the estimator of a seed.
    protocol : str
        One of :data:`PROTOCOLS`.
    choose : sequence of str
        The free knobs, names from :data:`energylens.dataset.KNOBS`.
    train : int, optional
        Training rows (of each group of ``per``). Default: 50 where the protocol is about few
        rows, four fifths for ``split``, else all rows that the protocol allows.
    repeats : int, optional
        Draws. Default: 50 where rows are drawn, 1 where nothing is.
    seed : int
        Source of all chance.
    noise_ratio : float
        Repeatability of a measurement, relative: choices this close to the best count as within
        noise, candidate pairs this close as near ties.
    strict : bool
        Score only scenarios none of whose candidates was trained on.
    objective : str
        ``request``: joules per request as measured. ``output_token``: joules over output
        tokens, which takes the scatter of output lengths between runs out of the ranking.
    batch : str
        What predictors know of the batch: ``observed`` (the mean, as in the rows), ``limit``
        (the configured limit alone, in training and judged cases), ``limit-judged`` (observed
        in training, the limit in judged cases: what one knows before running).
    curve : sequence of int
        Training sizes of ``learning-curve``; those that the rows cannot serve are left out.
    calibration : sequence of int
        Rows of the group left out that are trained on (``unseen-llm``, ``unseen-hardware``,
        ``unseen-modality``); several numbers give a curve whose headline is the first.
    direction : str
        Which side of the batch cut ``unseen-batch`` judges: ``larger`` or ``smaller``.
    batch_cut : float, optional
        Largest batch of the smaller side. Default: the median of the distinct batches of each
        group of ``per``, or of each (LLM, GPU, precision, task).
    per : sequence of str
        Fit separately for each of these: llm, gpu, precision, modality, task, engine_version.
    leave : str
        What leaves together in ``unseen-llm``: ``architecture`` (all LLMs of the same
        architecture) or ``id``.
    interval_ratio : float
        Nominal coverage of the intervals that are judged.
    allow_simulated : bool
        Judge rows that carry no accuracy claim, too; the result is labelled.
    progress : callable, optional
        Called with fits done and fits in all.

    Returns
    -------
    Evaluation
        Scores by estimator, and what they rest on.

    Raises
    ------
    UsageError
        If options contradict each other or the rows.
    """
    choose, per = tuple(choose), tuple(per)
    for option, given, allowed in (
        ("protocol", protocol, PROTOCOLS),
        ("objective", objective, ("request", "output_token")),
        ("batch", batch, ("observed", "limit", "limit-judged")),
        ("direction", direction, ("larger", "smaller")),
        ("leave", leave, ("architecture", "id")),
    ):
        if given not in allowed:
            raise UsageError(f"{option} must be one of {', '.join(allowed)}; given {given!r}")
    for option, number, least in (
        ("train", train, 1),
        ("repeats", repeats, 1),
        ("the smallest of the curve", min(curve, default=None), 1),
        ("the smallest of the calibration rows", min(calibration, default=None), 0),
    ):
        if number is not None and number < least:
            raise UsageError(f"{option} must be {least} or more, not {number}")
    if not (0 <= noise_ratio < 1 and 0 < interval_ratio < 1):
        raise UsageError(
            "noise_ratio must be in [0, 1) and interval_ratio in (0, 1); "
            f"given {noise_ratio} and {interval_ratio}"
        )
    if not estimators:
        raise UsageError("one estimator or more must be given to be judged")
    if freed_columns(choose) & {f"{name}_index" for name in per}:
        raise UsageError(
            f"what is fitted apart cannot be chosen freely: choose {choose}, per {per}"
        )
    accuracy_claim = _check_rows(dataset, allow_simulated)

    setting, parts = _lay_out(
        dataset, protocol, choose, objective, strict, direction, batch_cut, per, leave
    )
    notes: list[str] = []
    if not setting.board.labels:
        notes.append(
            f"no scenario: no two judged rows differ only in {', '.join(choose)}; "
            "ranks cannot be judged"
        )
    conditions = _conditions(setting, parts, protocol, train, curve, calibration, seed, notes)
    drawn = any(c.train is not None or c.calibration for c in conditions) or protocol == "split"
    repeats = repeats or (DEFAULT_REPEATS if drawn else 1)
    judge = _Judge(
        setting=setting, noise_ratio=noise_ratio, interval_ratio=interval_ratio, batch=batch
    )
    done, points = 0, []
    for condition in conditions:
        records: dict[str, _Record] = {name: _Record() for name in estimators}
        for repeat in range(repeats):
            rng = np.random.default_rng([seed, repeat])
            folds = [f for p in parts for f in _FOLDS[protocol](setting, p, condition, rng)]
            if not folds:
                raise UsageError(
                    f"{protocol} needs a group with rows to fit and rows to judge, and finds "
                    "none: bring more rows, or ask for fewer calibration rows"
                )
            views = [judge.view(fold, condition) for fold in folds]
            estimator_seed = int(np.random.default_rng([seed, repeat, 1]).integers(2**31))
            for name, make in estimators.items():
                records[name].repeats.append(
                    [judge.fit_and_mark(make(estimator_seed), v, records[name]) for v in views]
                )
                done += 1
                if progress is not None:
                    progress(done, len(conditions) * repeats * len(estimators))
        points.append(
            Point(
                train=condition.train,
                calibration=condition.calibration,
                power_known=condition.power_known,
                scores={name: judge.score(record) for name, record in records.items()},
            )
        )
    headline = 0
    if protocol == "learning-curve":
        sizes = [condition.train for condition in conditions]
        headline = sizes.index(train) if train in sizes else len(sizes) - 1
    return Evaluation(
        protocol=protocol,
        choose=choose,
        seed=seed,
        repeats=repeats,
        strict=strict,
        objective=objective,
        batch=batch,
        noise_ratio=noise_ratio,
        interval_ratio=interval_ratio,
        direction=direction if protocol == "unseen-batch" else None,
        batch_cut=batch_cut if protocol == "unseen-batch" else None,
        per=per,
        leave=leave if protocol == "unseen-llm" else None,
        rows=len(dataset),
        scenarios=len(setting.board.labels),
        source_counts=dataset.source_counts(),
        accuracy_claim=accuracy_claim and protocol != "all",
        in_sample=protocol == "all",
        dataset_digest=dataset.digest,
        headline=headline,
        points=tuple(points),
        notes=tuple(notes),
    )


def _check_rows(dataset: Dataset, allow_simulated: bool) -> bool:
    """Whether an accuracy claim may rest on the rows; refuse where it may not and need not."""
    if len(dataset) < 2:
        raise UsageError(f"two rows or more are needed to judge anything; given {len(dataset)}")
    unfit = dataset.take(~dataset.carries_accuracy_claim).source_counts()
    if unfit and not allow_simulated:
        raise UsageError(
            "accuracy may only be claimed on measured or published rows, and these are not: "
            + ", ".join(f"{count} {name}" for name, count in unfit.items())
            + ". Leave them out, or allow them and have the result labelled."
        )
    return not unfit


def _lay_out(
    dataset: Dataset,
    protocol: str,
    choose: Sequence[str],
    objective: str,
    strict: bool,
    direction: str,
    batch_cut: float | None,
    per: Sequence[str],
    leave: str,
) -> tuple[_Setting, list[IntArray]]:
    """Number the scenarios, label what is grouped or leaves together; rows of separate fits."""
    fitted_apart = _group_labels(dataset, per)
    parts = [np.flatnonzero(fitted_apart == label) for label in sorted(set(fitted_apart))]
    left_out, groups = fitted_apart, fitted_apart
    judged_batch = np.ones(len(dataset), dtype=np.bool_)
    if _FOLDS[protocol] is _leave_one_out:
        left_out = _left_out_labels(dataset, protocol, leave)
        if len(set(left_out)) < 2:
            raise UsageError(
                f"{protocol} leaves one out and fits the others, so the rows must hold two or "
                f"more; they hold only {left_out[0]}"
            )
        groups = groups if per else left_out
    elif protocol == "unseen-batch":
        groups = _group_labels(dataset, per or _BATCH_GROUPS)
        judged_batch = _judged_batches(dataset.cases.batch_size, groups, batch_cut, direction)
        if judged_batch.all() or not judged_batch.any():
            raise UsageError(
                "unseen-batch needs rows on both sides of the batch cut; all lie on one: "
                "give another batch_cut, or rows with more batch sizes"
            )
    setting = _Setting(
        dataset=dataset,
        board=_Board.of(dataset, choose, objective, judged_batch),
        strict=strict,
        judged_batch=judged_batch,
        left_out=left_out,
        groups=groups,
    )
    return setting, parts


def _conditions(
    setting: _Setting,
    parts: Sequence[IntArray],
    protocol: str,
    train: int | None,
    curve: Sequence[int],
    calibration: Sequence[int],
    seed: int,
    notes: list[str],
) -> list[_Condition]:
    """What is varied, in order. Sizes of a curve that the rows cannot serve are noted."""
    few = DEFAULT_TRAIN if train is None else train
    if protocol == "few-shot":
        return [_Condition(train=few)]
    if protocol == "no-power":
        return [_Condition(train=few, power_known=known) for known in (False, True)]
    if _FOLDS[protocol] is _leave_one_out:
        return [_Condition(train=train, calibration=k) for k in dict.fromkeys(calibration)]
    if protocol != "learning-curve":
        return [_Condition(train=train)]
    served = []
    for size in sorted({*curve, *([train] if train else [])}):
        condition = _Condition(train=size)
        try:
            for part in parts:
                list(_drawn(setting, part, condition, np.random.default_rng([seed, 0])))
        except UsageError as error:
            notes.append(f"left out of the curve: {size} training rows; {error}")
        else:
            served.append(condition)
    if not served:
        raise UsageError(f"no size of the curve can be served: {notes[-1]}")
    return served


@dataclass(kw_only=True, eq=False)
class _Record:
    """What one estimator did under one condition, as it comes in."""

    repeats: list[list[tuple[_Table, _Table]]]
    fit_s: list[float]
    train_rows: list[int]
    failed: int
    failure: str | None
    ranks_only: bool

    def __init__(self) -> None:
        self.repeats, self.fit_s, self.train_rows = [], [], []
        self.failed, self.failure, self.ranks_only = 0, None, False


@dataclass(frozen=True, kw_only=True, eq=False)
class _View:
    """A fold with its rows taken, once for all estimators."""

    fold: _Fold
    training: Dataset
    asked: IntArray  # rows to be predicted
    cases: Cases


@dataclass(frozen=True, kw_only=True, eq=False)
class _Judge:
    setting: _Setting
    noise_ratio: float
    interval_ratio: float
    batch: str

    def view(self, fold: _Fold, condition: _Condition) -> _View:
        """Take what may be seen of the rows of a fold."""
        dataset, board = self.setting.dataset, self.setting.board
        candidates = board.rows[fold.scored[board.owner[board.row_candidate]]]
        asked = np.union1d(fold.judged, candidates)
        hidden = {} if condition.power_known else {"average_power_w": np.nan}
        unknown_batch = {"mean_batch_size": np.nan}
        training = dataset.take(np.sort(fold.train))
        in_training = hidden | (unknown_batch if self.batch == "limit" else {})
        in_judged = hidden | (unknown_batch if self.batch != "observed" else {})
        return _View(
            fold=fold,
            training=replace(training, cases=training.cases.replace(**in_training)),
            asked=asked,
            cases=dataset.cases.take(asked).replace(**in_judged),
        )

    def fit_and_mark(
        self, estimator: Estimator, view: _View, record: _Record
    ) -> tuple[_Table, _Table]:
        """Fit, predict, and mark one fold. A failed fit has no answer anywhere."""
        n = len(self.setting.dataset)
        energy, inside, prefill_ape, decode_ape = np.full((4, n), np.nan)
        record.ranks_only = estimator.ranks_only
        record.train_rows.append(len(view.training))
        try:
            start = time.perf_counter()
            predictor = estimator.fit(view.training)
            record.fit_s.append(time.perf_counter() - start)
            energy[view.asked] = self._checked(
                predictor.predict_energy_j(view.cases), view, estimator.name
            )
            if isinstance(predictor, IntervalPredictor) and not estimator.ranks_only:
                lower, upper = predictor.interval_energy_j(view.cases, self.interval_ratio)
                measured = self.setting.dataset.energy_per_request_j[view.asked]
                inside[view.asked] = np.where(
                    np.isfinite(lower) & np.isfinite(upper),
                    (lower <= measured) & (measured <= upper),
                    np.nan,
                )
            if isinstance(predictor, PartsPredictor):
                dataset = self.setting.dataset
                for terms, measured, ape in zip(
                    predictor.predict_parts_j(view.cases),
                    (dataset.prefill_energy_per_request_j, dataset.decode_energy_per_request_j),
                    (prefill_ape, decode_ape),
                    strict=True,
                ):
                    ape[view.asked] = np.abs(terms.sum(axis=1) / measured[view.asked] - 1.0)
        except MissingExtraError:
            raise
        except EnergyLensError as error:
            record.failed += 1
            record.failure = record.failure or str(error)
        judged = view.fold.judged
        errors = {
            "row": judged,
            "measured": self.setting.dataset.energy_per_request_j[judged],
            "answered": np.isfinite(energy[judged]),
            "predicted": np.full(len(judged), np.nan) if record.ranks_only else energy[judged],
            "inside": inside[judged],
            "prefill_ape": prefill_ape[judged],
            "decode_ape": decode_ape[judged],
        }
        # A score is no energy, so output tokens do not divide it.
        ranked = energy * self.setting.board.scale if record.ranks_only else energy
        return self.setting.board.marks(ranked, view.fold.scored, self.noise_ratio), errors

    def _checked(self, energy: FloatArray, view: _View, name: str) -> FloatArray:
        energy = np.asarray(energy, dtype=np.float64)
        if energy.shape != (len(view.cases),):
            raise InputError(
                f"a predictor must give one number for each of {len(view.cases)} cases; "
                f"{name} gave shape {energy.shape}"
            )
        return np.where(np.isfinite(energy), energy, np.nan)

    def score(self, record: _Record) -> Score:
        """Sum up one estimator under one condition."""
        tables = [
            (_join([marks for marks, _ in folds]), _join([errors for _, errors in folds]))
            for folds in record.repeats
        ]
        marks, errors = _join([m for m, _ in tables]), _join([e for _, e in tables])
        by_repeat = np.array([_summary(m, e) for m, e in tables])
        overall = np.array(
            [
                _nan_reduce(np.max if name == "regret_worst_ratio" else np.mean, column)
                for name, column in zip(METRICS, by_repeat.T, strict=True)
            ],
            dtype=np.float64,
        )
        dataset, first_row = self.setting.dataset, self.setting.board.first_row

        def by(labels: StrArray) -> dict[str, Metrics]:
            of_scenario, of_row = labels[first_row[marks["scenario"]]], labels[errors["row"]]
            return {
                str(label): Metrics.of(
                    _summary(_pick(marks, of_scenario == label), _pick(errors, of_row == label))
                )
                for label in sorted({*of_scenario, *of_row})
            }

        groups = by(self.setting.groups) if len(set(self.setting.groups)) > 1 else {}
        group_mape = [m.mape_ratio for m in groups.values() if m.mape_ratio is not None]
        signed = errors["predicted"] / errors["measured"] - 1.0
        known = np.isfinite(signed)
        times = np.bincount(errors["row"][known], minlength=len(dataset))
        total = np.bincount(errors["row"][known], signed[known], minlength=len(dataset))
        return Score(
            ranks_only=record.ranks_only,
            train_rows=int(np.median(record.train_rows)),
            metrics=Metrics.of(overall),
            fit_s=float(np.median(record.fit_s)) if record.fit_s else None,
            fits=len(record.train_rows),
            failed_fits=record.failed,
            failure=record.failure,
            bands={
                name: _nan_reduce(_band, column)
                for name, column in zip(METRICS, by_repeat.T, strict=True)
            },
            mape_group_median_ratio=float(np.median(group_mape)) if group_mape else None,
            groups=groups,
            modalities=by(dataset.modality.astype(str).astype(object)),
            llms=by(dataset.llm_ids),
            scenarios=self._scenario_scores(marks),
            row_error_ratio=np.where(times > 0, total / np.maximum(times, 1), np.nan),
        )

    def _scenario_scores(self, marks: _Table) -> tuple[ScenarioScore, ...]:
        board = self.setting.board
        sizes = np.bincount(board.owner, minlength=len(board.labels))
        scores = []
        for i in np.unique(marks["scenario"]):
            own = _pick(marks, marks["scenario"] == i)
            picks = own["chosen"][own["chosen"] >= 0]
            best = np.flatnonzero((board.owner == i) & (board.energy <= board.best[i]))[0]
            scores.append(
                ScenarioScore(
                    scenario=board.labels[i],
                    candidates=int(sizes[i]),
                    scored=len(own["top1"]),
                    top1_ratio=float(own["top1"].mean()),
                    top1_within_noise_ratio=float(own["within"].mean()),
                    regret_mean_ratio=float(own["regret"].mean()),
                    best=board.names[best],
                    chosen=board.names[np.bincount(picks).argmax()] if len(picks) else None,
                )
            )
        return tuple(scores)


def _band(values: FloatArray) -> tuple[float, float, float]:
    low, middle, high = np.percentile(values, _BAND_PERCENTILES)
    return float(low), float(middle), float(high)
