"""What an evaluation found: records only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from energylens.cases import FloatArray
from energylens.evaluation.options import EvaluationOptions
from energylens.evaluation.scoring import TIE_RATIO, Metrics
from energylens.viewing import Shown, picked

_LISTED = 20
_TOLD = ("mape_group_median_ratio", "fit_s", "fits", "failed_fits", "failure", "ranks_only")
_KINDS = ("groups", "modalities", "llms", "precisions", "architectures", "layouts")


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
    precisions: Mapping[str, Metrics]
    architectures: Mapping[str, Metrics]
    layouts: Mapping[str, Metrics]
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
            **{name: getattr(self, name) for name in _TOLD},
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
                for kind in _KINDS
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


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Evaluation(Shown):
    """What came of judging some estimators on one dataset by one protocol.

    ``points`` hold one entry for each condition (training sizes of a learning curve, calibration
    sizes, power known or not); ``headline`` says which of them the protocol is about.
    """

    asked: EvaluationOptions
    repeats: int  # draws that were made
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

    @property
    def scenarios_of_one_pair(self) -> int:
        """Scenarios with two candidates: a pick at random is right in half of them."""
        scores = next(iter(self.estimators.values()), None)
        return sum(s.candidates == 2 for s in scores.scenarios) if scores else 0

    def to_json(self) -> dict[str, Any]:
        """One document; every number finite or null."""
        asked = self.asked
        cut = asked.protocol in ("unseen-batch", "unseen-length")
        document: dict[str, Any] = {
            "protocol": asked.protocol,
            "choose": list(asked.choose),
            "seed": asked.seed,
            **picked(self, "rows scenarios"),
            "estimators": {
                name: {**score.to_json(), **score.breakdown_json()}
                for name, score in self.estimators.items()
            },
            **picked(self, "scenarios_of_one_pair repeats"),
            **picked(asked, "strict objective batch lengths noise_ratio interval_ratio"),
            "direction": asked.direction if cut else None,
            "batch_cut": asked.batch_cut if asked.protocol == "unseen-batch" else None,
            "length_cut": asked.length_cut if asked.protocol == "unseen-length" else None,
            "per": list(asked.per),
            "leave": asked.leave if asked.protocol == "unseen-llm" else None,
            "source_counts": dict(self.source_counts),
            **picked(self, "accuracy_claim in_sample dataset_digest"),
            "notes": list(self.notes),
        }
        if len(self.points) > 1:
            document["curve"] = [point.to_json() for point in self.points]
        return document
