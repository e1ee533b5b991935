"""How well estimators predict and choose: one protocol, the same rows and draws for all.

:func:`evaluate` sees estimators through the seams alone (``Estimator``, ``Predictor``), so the
law, every baseline, an oracle and a random pick are judged by the same lines. What is computed,
to the last convention, is written down in ``docs/evaluation.md``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np

from energylens.cases import Cases, FloatArray, IntArray
from energylens.dataset import Dataset, StrArray, freed_columns, group_rows
from energylens.errors import EnergyLensError, InputError, MissingExtraError, UsageError
from energylens.evaluation.folds import FOLDS, Condition, Fold, Setting, conditions_of, lay_out
from energylens.evaluation.options import EvaluationOptions
from energylens.evaluation.result import Evaluation, Point, ScenarioScore, Score
from energylens.evaluation.scoring import METRICS, Metrics, Table, join, pick, summary
from energylens.protocols import Estimator, IntervalPredictor, Predictor

#: From a seed to an estimator, so that whatever draws at random does so anew in every repeat.
EstimatorFactory = Callable[[int], Estimator]

DEFAULT_REPEATS = 50

_BAND_PERCENTILES = (5.0, 50.0, 95.0)


# --------------------------------------------------------------------------------- the result


@runtime_checkable
class PartsPredictor(Protocol):
    """A predictor that tells prefill from decode."""

    def predict_parts_j(self, cases: Cases) -> tuple[FloatArray, FloatArray]:
        """Joules per request of prefill and of decode, term by term; each of shape (n, terms)."""


@runtime_checkable
class ChoosingPredictor(Protocol):
    """A predictor that has another one to choose by, where some knobs are free."""

    def choosing(self, freed: Collection[str]) -> Predictor:
        """Return the one to choose by."""


# ------------------------------------------------------------------------------------- the judge


def evaluate(
    dataset: Dataset,
    estimators: Mapping[str, EstimatorFactory],
    options: EvaluationOptions | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
    **named: Any,
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
    options : EvaluationOptions, optional
        How to judge; or give its fields by name.
    progress : callable, optional
        Called with fits done and fits in all.
    **named
        Fields of :class:`EvaluationOptions`: protocol, choose, train, repeats, seed ...

    Returns
    -------
    Evaluation
        Scores by estimator, and what they rest on.

    Raises
    ------
    UsageError
        If options contradict each other or the rows.
    """
    asked = replace(options or EvaluationOptions(), **named)
    if not estimators:
        raise UsageError("one estimator or more must be given to be judged")
    if freed_columns(asked.choose) & {f"{name}_index" for name in asked.per}:
        raise UsageError(
            f"what is fitted apart cannot be chosen freely: choose {asked.choose}, per {asked.per}"
        )
    accuracy_claim = _check_rows(dataset, asked.allow_simulated)

    protocol, seed = asked.protocol, asked.seed
    setting, parts = lay_out(dataset, asked)
    notes: list[str] = []
    if not setting.board.labels:
        notes.append(
            f"no scenario: no two judged rows differ only in {', '.join(asked.choose)}; "
            "ranks cannot be judged"
        )
    conditions = conditions_of(setting, parts, asked, notes)
    drawn = any(c.train is not None or c.calibration for c in conditions) or protocol == "split"
    repeats = asked.repeats or (DEFAULT_REPEATS if drawn else 1)
    judge = _Judge(setting=setting, asked=asked)
    done, points = 0, []
    for condition in conditions:
        records: dict[str, _Record] = {name: _Record() for name in estimators}
        for repeat in range(repeats):
            rng = np.random.default_rng([seed, repeat])
            folds = [f for p in parts for f in FOLDS[protocol](setting, p, condition, rng)]
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
        missing = [record.missing for record in records.values()]
        if missing[0] is not None and None not in missing:
            raise missing[0]  # an absent package takes out whoever needs it, and here that is all
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
        headline = sizes.index(asked.train) if asked.train in sizes else len(sizes) - 1
    return Evaluation(
        asked=asked,
        repeats=repeats,
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


@dataclass(kw_only=True, eq=False)
class _Record:
    """What one estimator did under one condition, as it comes in."""

    repeats: list[list[tuple[Table, Table]]]
    fit_s: list[float]
    train_rows: list[int]
    failed: int
    failure: str | None
    ranks_only: bool
    missing: MissingExtraError | None  # the package it could not do without

    def __init__(self) -> None:
        self.repeats, self.fit_s, self.train_rows = [], [], []
        self.failed, self.failure, self.ranks_only, self.missing = 0, None, False, None


@dataclass(frozen=True, kw_only=True, eq=False)
class _View:
    """A fold with its rows taken, once for all estimators."""

    fold: Fold
    training: Dataset
    asked: IntArray  # rows to be predicted
    cases: Cases


@dataclass(frozen=True, kw_only=True, eq=False)
class _Judge:
    setting: Setting
    asked: EvaluationOptions

    def view(self, fold: Fold, condition: Condition) -> _View:
        """Take what may be seen of the rows of a fold."""
        dataset, board = self.setting.dataset, self.setting.board
        candidates = board.rows[fold.scored[board.owner[board.row_candidate]]]
        asked = np.union1d(fold.judged, candidates)
        hidden = {} if condition.power_known else {"average_power_w": np.nan}
        training = dataset.take(self.setting.in_order(fold.train))
        in_judged: dict[str, Any] = dict(hidden)
        if self.asked.batch == "limit":
            in_judged["mean_batch_size"] = np.nan
        if self.asked.lengths == "scenario":
            in_judged |= {name: values[asked] for name, values in self.mean_lengths.items()}
        return _View(
            fold=fold,
            training=replace(training, cases=training.cases.replace(**hidden)),
            asked=asked,
            cases=dataset.cases.take(asked).replace(**in_judged),
        )

    @cached_property
    def mean_lengths(self) -> dict[str, FloatArray]:
        """Mean lengths of the rows of each LLM and workload, for each row of it."""
        dataset = self.setting.dataset
        group = group_rows([dataset.cases.llm_index, dataset.workload_index])
        size = np.bincount(group)
        return {
            name: (np.bincount(group, getattr(dataset.cases, name)) / size)[group]
            for name in ("input_tokens", "output_tokens", "vision_tokens")
        }

    def fit_and_mark(
        self, estimator: Estimator, view: _View, record: _Record
    ) -> tuple[Table, Table]:
        """Fit, predict, and mark one fold. A failed fit has no answer anywhere."""
        n = len(self.setting.dataset)
        energy, ordered, inside, prefill_ape, decode_ape = np.full((5, n), np.nan)
        record.ranks_only = estimator.ranks_only
        record.train_rows.append(len(view.training))
        try:
            start = time.perf_counter()
            predictor = estimator.fit(view.training)
            record.fit_s.append(time.perf_counter() - start)
            energy[view.asked] = self._checked(
                predictor.predict_energy_j(view.cases), view, estimator.name
            )
            ordered = energy
            if isinstance(predictor, ChoosingPredictor):
                ordered = np.full(n, np.nan)
                chooser = predictor.choosing(self.asked.choose)
                ordered[view.asked] = self._checked(
                    chooser.predict_energy_j(view.cases), view, estimator.name
                )
            if isinstance(predictor, IntervalPredictor) and not estimator.ranks_only:
                inside[view.asked] = self._inside(predictor, view, record)
            if isinstance(predictor, PartsPredictor):
                dataset = self.setting.dataset
                for terms, measured, ape in zip(
                    predictor.predict_parts_j(view.cases),
                    (dataset.prefill_energy_per_request_j, dataset.decode_energy_per_request_j),
                    (prefill_ape, decode_ape),
                    strict=True,
                ):
                    ape[view.asked] = np.abs(terms.sum(axis=1) / measured[view.asked] - 1.0)
        except EnergyLensError as error:
            if isinstance(error, MissingExtraError):
                record.missing = error
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
        # A score is no energy, so output tokens do not divide it; joules are divided by the output
        # tokens that their prediction was told.
        if self.setting.board.per_token and not record.ranks_only:
            ordered = ordered.copy()
            ordered[view.asked] /= view.cases.output_tokens
        return self.setting.board.marks(ordered, view.fold.scored, self.asked.noise_ratio), errors

    def _inside(self, predictor: IntervalPredictor, view: _View, record: _Record) -> FloatArray:
        """Whether each interval holds what was measured; NaN where there is none.

        A predictor whose intervals fail has still predicted.
        """
        try:
            lower, upper = predictor.interval_energy_j(view.cases, self.asked.interval_ratio)
        except EnergyLensError as error:
            record.failure = record.failure or f"no intervals: {error}"
            return np.full(len(view.asked), np.nan)
        measured = self.setting.dataset.energy_per_request_j[view.asked]
        known = np.isfinite(lower) & np.isfinite(upper)
        return np.where(known, (lower <= measured) & (measured <= upper), np.nan)

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
            (join([marks for marks, _ in folds]), join([errors for _, errors in folds]))
            for folds in record.repeats
        ]
        marks, errors = join([m for m, _ in tables]), join([e for _, e in tables])
        by_repeat = np.array([summary(m, e) for m, e in tables])
        if record.failed == len(record.train_rows):  # nothing was fitted: nothing to score
            by_repeat = np.full_like(by_repeat, np.nan)
            marks, errors = ({k: v[:0] for k, v in table.items()} for table in (marks, errors))
        overall = np.array(
            [
                _nan_reduce(_OVER_DRAWS.get(name, np.mean), column)
                for name, column in zip(METRICS, by_repeat.T, strict=True)
            ],
            dtype=np.float64,
        )
        dataset, first_row = self.setting.dataset, self.setting.board.first_row

        def by(labels: StrArray) -> dict[str, Metrics]:
            of_scenario, of_row = labels[first_row[marks["scenario"]]], labels[errors["row"]]
            return {
                str(label): Metrics.of(
                    summary(pick(marks, of_scenario == label), pick(errors, of_row == label))
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
            precisions=by(dataset.precision_ids),
            architectures=by(_families(dataset)),
            layouts=by(_layouts(dataset)),
            scenarios=self._scenario_scores(marks),
            row_error_ratio=np.where(times > 0, total / np.maximum(times, 1), np.nan),
        )

    def _scenario_scores(self, marks: Table) -> tuple[ScenarioScore, ...]:
        board = self.setting.board
        sizes = np.bincount(board.owner, minlength=len(board.labels))
        scores = []
        for i in np.unique(marks["scenario"]):
            own = pick(marks, marks["scenario"] == i)
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


#: How the metrics of several draws become one, where that is not their mean.
_OVER_DRAWS: dict[str, Callable[[FloatArray], Any]] = {
    "regret_worst_ratio": np.max,
    "mape_ratio": np.median,
}


def _families(dataset: Dataset) -> StrArray:
    """Label each row by the family of its LLM: dense, moe, hybrid and so on."""
    names = np.array([llm.family for llm in dataset.cases.llms], dtype=object)
    return names[dataset.cases.llm_index]


def _layouts(dataset: Dataset) -> StrArray:
    """Label each row by the parallelism in its layout: none, TP, PP, DP, EP or some of them."""
    c = dataset.cases
    used = {
        "TP": c.tensor_parallel > 1,
        "PP": c.pipeline_parallel > 1,
        "EP": c.expert_parallel > 1,
        "DP": c.data_parallel > 1,
    }
    labels = np.full(len(dataset), "", dtype=object)
    for symbol, mask in used.items():
        labels[mask] += np.where(labels[mask] == "", symbol, f" {symbol}")
    labels[labels == ""] = "one GPU"
    return labels


def _band(values: FloatArray) -> tuple[float, float, float]:
    low, middle, high = np.percentile(values, _BAND_PERCENTILES)
    return float(low), float(middle), float(high)


def _nan_reduce(function: Callable[[FloatArray], Any], values: FloatArray) -> Any:
    known = values[np.isfinite(values)]
    return function(known) if len(known) else None
