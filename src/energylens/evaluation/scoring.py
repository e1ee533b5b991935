"""Scenarios as flat arrays, the marks that predictions get on them, and the metrics of marks.

Conventions are written down in ``docs/evaluation.md``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from energylens.cases import BoolArray, Cases, FloatArray, IntArray
from energylens.dataset import Dataset, freed_columns

# Predictions closer than this, relatively, are a tie: what floating point leaves of equality.
TIE_RATIO = 1e-9
# Candidate pairs taken of one scenario; beyond it they are drawn at random (2,000 candidates).
PAIR_LIMIT = 2_000_000

Table = dict[str, NDArray[Any]]  # columns of equal length


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
    mape_mean_ratio: float | None
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


METRICS = tuple(f.name for f in fields(Metrics))


@dataclass(frozen=True, kw_only=True, eq=False)
class Board:
    """Scenarios, their candidates and candidate pairs, numbered through."""

    labels: tuple[str, ...]
    rows: IntArray  # every row of every candidate ...
    row_candidate: IntArray  # ... and whose it is
    owner: IntArray  # scenario of each candidate, ascending
    energy: FloatArray  # measured joules of each candidate, per unit of the objective
    per_token: bool  # whether the objective is joules per output token, not per request
    best: FloatArray  # lowest measured energy of each scenario
    first: IntArray  # candidates of each pair
    second: IntArray
    names: tuple[str, ...]  # of each candidate

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        choose: Sequence[str],
        objective: str,
        among: BoolArray,
        *,
        whole: bool = False,
    ) -> Board:
        """Lay out the scenarios of the rows in ``among``; with ``whole``, those all in it."""
        freed = sorted(freed_columns(choose))
        cases = dataset.cases
        per_token = objective == "output_token"
        scale = cases.output_tokens if per_token else np.ones(len(dataset))
        labels: list[str] = []
        rows, candidates, owner, first, second = [], [], [], [], []
        start = 0
        for scenario in dataset.scenarios(choose):
            members = scenario[among[scenario]]
            if len(members) == 0 or (whole and len(members) < len(scenario)):
                continue
            # What is not set, as a power cap may be, is a value like any other.
            keys = np.nan_to_num(
                np.column_stack([getattr(cases, name)[members] for name in freed]), nan=-1.0
            )
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
            per_token=per_token,
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

    def marks(self, predictions: FloatArray, scored: BoolArray, noise_ratio: float) -> Table:
        """Mark predictions of all rows, shape (rows,), in the scenarios to be scored.

        They are joules per unit of the objective, or scores that order as those.

        Ties are broken in expectation: every candidate tied for the lowest prediction is the
        choice with the same probability; without any answer every candidate is.
        """
        owner, count = self.owner, len(self.labels)
        predicted = np.bincount(
            self.row_candidate, predictions[self.rows], minlength=len(owner)
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
        return pick(table, scored)


def _starts(owner: IntArray) -> IntArray:
    return np.flatnonzero(np.diff(owner, prepend=-1))


def _pairs(size: int) -> tuple[IntArray, IntArray]:
    """All pairs of ``size`` things; of very many things, many pairs drawn at random."""
    if size * (size - 1) // 2 <= PAIR_LIMIT:
        return np.triu_indices(size, 1)
    rng = np.random.default_rng(size)
    first = rng.integers(size, size=PAIR_LIMIT)
    return first, (first + rng.integers(1, size, size=PAIR_LIMIT)) % size


def pick(table: Table, mask: NDArray[Any]) -> Table:
    """Rows of a table in ``mask``."""
    return {name: column[mask] for name, column in table.items()}


def join(tables: Sequence[Table]) -> Table:
    """Tables of the same columns end to end."""
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
    parts = [
        f"{symbol}{getattr(cases, name)[row]:g}"
        for name, symbol in symbols.items()
        if (name in freed) == listed_if_free
    ]
    if cases.capped[row] and ("power_cap_w" in freed) == listed_if_free:
        parts.append(f"{cases.power_cap_w[row]:g}W")
    if cases.clocked[row] and ("clock_mhz" in freed) == listed_if_free:
        parts.append(f"{cases.clock_mhz[row]:g}MHz")
    return parts


def _share(part: NDArray[Any], whole: NDArray[Any]) -> float:
    total = float(np.sum(whole))
    return float(np.sum(part)) / total if total else np.nan


def _mean_known(values: FloatArray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else np.nan


def summary(marks: Table, errors: Table) -> FloatArray:
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
        # One figure in one draw; of several, the median and the mean.
        "mape_ratio": ape.mean() if len(ape) else nan,
        "mape_mean_ratio": ape.mean() if len(ape) else nan,
        "median_ape_ratio": np.median(ape) if len(ape) else nan,
        "r2_ratio": 1.0 - np.sum((predicted - measured) ** 2) / spread if spread > 0 else nan,
        "interval_coverage_ratio": _mean_known(errors["inside"]),
        "unanswered_ratio": 1.0 - answered.mean() if len(answered) else nan,
        "prefill_mape_ratio": _mean_known(errors["prefill_ape"]),
        "decode_mape_ratio": _mean_known(errors["decode_ape"]),
    }
    return np.array([values[name] for name in METRICS], dtype=np.float64)
