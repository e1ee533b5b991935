"""The studies: which rows, which protocol, whom to judge. Each returns plain JSON values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from energylens import importers
from energylens.cli.judging import contestants
from energylens.dataset import Dataset
from energylens.evaluation.judge import evaluate
from energylens.evaluation.result import Evaluation, Score

SEED = 0
REPEATS = 50
FEW_REPEATS = 20
ENSEMBLE_REPEATS = 10  # of what takes a hundred times as long to fit as the law
FREE = ("parallelism", "batch_size")
#: Joules and choices of a run that has taken place: its own batch and lengths are told.
HINDSIGHT: dict[str, Any] = {"batch": "observed", "lengths": "own"}
OURS = ("energylens", "energylens-datasheet")
EVERYONE = (
    *OURS,
    "extra-trees-on-datasheet",
    "gradient-boosting-on-datasheet",
    "extra-trees",
    "gradient-boosting",
    "xgboost",
    "log-linear",
    "logistic-batch",
    "tdp-time-predicted",
    "latency-predicted",
    "largest-batch-per-gpu",
    "fewest-gpus",
    "random",
)
ENSEMBLES = tuple(
    name for name in EVERYONE if any(word in name for word in ("trees", "boosting", "xgboost"))
)
SHORT = (*OURS, "extra-trees-on-datasheet", "log-linear", "largest-batch-per-gpu", "fewest-gpus")
METRICS = (
    "train_rows",
    "top1_ratio",
    "top1_within_noise_ratio",
    "pairwise_ratio",
    "regret_mean_ratio",
    "mape_ratio",
    "mape_mean_ratio",
    "interval_coverage_ratio",
)
GROUPS = ("precisions", "architectures", "modalities", "layouts")

Result = dict[str, Any]


class Data:
    """The public measurements, imported when first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, source: str, path: str, **assumed: Mapping[str, float]) -> Dataset:
        """Import one source."""
        lengths = {"assume_input_tokens": {}, "assume_vision_tokens": {}, **assumed}
        return importers.reader(source)(self.folder / path, **lengths).dataset

    @cached_property
    def v3(self) -> Dataset:
        """ML.ENERGY leaderboard v3."""
        return self.read("mlenergy-v3", "mlenergy-v3")

    @cached_property
    def v2(self) -> Dataset:
        """ML.ENERGY leaderboard v2."""
        return self.read("mlenergy-v2", "mlenergy-v2")

    @cached_property
    def engines(self) -> Dataset:
        """The H100 rows of ML.ENERGY v2 and v3: two versions of vLLM."""
        return Dataset.concatenate([self.v2.take(self.v2.gpu_ids == "H100-SXM-80GB"), self.v3])

    @cached_property
    def argonne(self) -> Dataset:
        """DeciLM-7B on a node of four H100 of Argonne's LLM-Inference-Bench."""
        every = self.read("argonne", "argonne/power.csv")
        return every.take((every.llm_ids == "Deci/DeciLM-7B") & (every.gpu_ids == "H100-SXM-80GB"))

    @cached_property
    def code(self) -> Dataset:
        """energy-code-eval on one A100."""
        return self.read("energy-code-eval", "energy-code-eval/batching_a100.csv")


def judge(dataset: Dataset, names: Sequence[str], **options: Any) -> Evaluation:
    """Judge with the seed of all published figures."""
    estimators, _ = contestants(tuple(names))
    return evaluate(dataset, estimators, seed=SEED, **options)


def kept(evaluation: Evaluation) -> Result:
    """Keep what is published of an evaluation, its flags included."""
    document = evaluation.to_json()
    told = (
        "protocol", "choose", "batch", "lengths", "repeats", "rows", "scenarios", "dataset_digest",
    )  # fmt: skip
    result = {key: document[key] for key in told}
    result["estimators"] = {name: _figures(s) for name, s in evaluation.estimators.items()}
    if len(evaluation.points) > 1:
        result["curve"] = [
            {name: _figures(score) for name, score in point.scores.items()}
            for point in evaluation.points
        ]
    ours = evaluation.estimators.get("energylens")
    if ours is not None:
        result["covered"] = {
            kind: {
                name: m.interval_coverage_ratio
                for name, m in getattr(ours, kind).items()
                if m.interval_coverage_ratio is not None
            }
            for kind in GROUPS
        }
    return result


def _figures(score: Score) -> Result:
    values = {"train_rows": score.train_rows, **score.metrics.to_json()}
    return {name: values[name] for name in METRICS if values[name] is not None}


def _pairs(dataset: Dataset) -> int:
    """Scenarios of layouts with one pair of candidates, where one rule has one thing to say."""
    return sum(len(scenario) == 2 for scenario in dataset.scenarios(("parallelism",)))


def parallelism(data: Data) -> Result:
    """The question of the paper: which parallelism, at a fixed batch."""
    result: Result = {}
    for name, train in (("v3", 50), ("v2", 50), ("argonne", 40)):
        dataset = getattr(data, name)
        judged = judge(
            dataset, SHORT, protocol="few-shot", choose=("parallelism",), train=train,
            repeats=FEW_REPEATS,
        )  # fmt: skip
        result[name] = {**kept(judged), "pairs": _pairs(dataset)}
    return result


def few_shot(data: Data, **told: str) -> Result:
    """Learn from 50 rows of v3 drawn at random; all measured rows are candidates."""
    options: dict[str, Any] = {"train": 50, "protocol": "few-shot", "choose": FREE, **told}
    solved = [name for name in EVERYONE if name not in ENSEMBLES]
    result = kept(judge(data.v3, solved, repeats=REPEATS, **options))
    grown = kept(judge(data.v3, ENSEMBLES, repeats=ENSEMBLE_REPEATS, **options))
    result["estimators"] |= grown["estimators"]
    return result


def unseen_llm(data: Data, **told: str) -> Result:
    """Leave out each LLM architecture of v3, whatever the names of its variants."""
    options: dict[str, Any] = dict(told)
    return kept(judge(data.v3, EVERYONE, protocol="unseen-llm", choose=FREE, **options))


def unseen_gpu(data: Data) -> Result:
    """Leave out A100 or H100 of v2; then give back five of its rows."""
    return kept(
        judge(
            data.v2, SHORT, protocol="unseen-hardware", choose=FREE, calibration=(0, 5),
            repeats=FEW_REPEATS, **HINDSIGHT,
        )
    )  # fmt: skip


def few_rows(data: Data) -> Result:
    """Learn from one to ten rows of v3."""
    return kept(
        judge(
            data.v3, ("energylens", "energylens-datasheet", "log-linear"),
            protocol="learning-curve", choose=FREE, curve=(1, 2, 3, 5, 10), train=10,
            repeats=FEW_REPEATS, **HINDSIGHT,
        )
    )  # fmt: skip


def curve(data: Data) -> Result:
    """Learn from 5 to 200 rows of v3, batch and lengths as known beforehand."""
    return kept(
        judge(
            data.v3, (*OURS, "extra-trees-on-datasheet", "extra-trees", "log-linear"),
            protocol="learning-curve", choose=FREE, curve=(5, 10, 25, 50, 100, 200), train=50,
            repeats=ENSEMBLE_REPEATS,
        )
    )  # fmt: skip


def others(data: Data) -> Result:
    """The other sources, 50 rows each (Argonne 40), batch and lengths as known beforehand."""
    return {
        name: kept(
            judge(
                getattr(data, name), SHORT, protocol="few-shot", choose=choose, train=train,
                repeats=FEW_REPEATS,
            )
        )
        for name, choose, train in (
            ("v2", FREE, 50),
            ("code", ("batch_size",), 50),
            ("argonne", ("tensor_parallel",), 40),
        )
    }  # fmt: skip


#: Every study by the name that ``--only`` takes.
STUDIES: dict[str, Callable[[Data], Result]] = {
    "parallelism": parallelism,
    "few-shot": few_shot,
    "few-shot-hindsight": partial(few_shot, **HINDSIGHT),
    "unseen-llm": unseen_llm,
    "unseen-llm-hindsight": partial(unseen_llm, **HINDSIGHT),
    "unseen-gpu": unseen_gpu,
    "few-rows": few_rows,
    "curve": curve,
    "others": others,
}
