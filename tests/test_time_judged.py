"""Judging time: seconds in place of joules, and choices within limits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from energylens import latency, table
from energylens.baselines import ESTIMATORS
from energylens.cases import Cases, FloatArray
from energylens.cli import main
from energylens.dataset import Dataset
from energylens.errors import UsageError
from energylens.fitting import EnergyLens
from energylens.importers import mlenergy_v3
from energylens.limited_choices import _choice, _interpolated, judge_limits
from energylens.time_contestants import HIDDEN, TimeContestant, as_target, time_contestants


def planted(tmp_path: Path, seed: int = 0) -> Path:
    """A table whose times are those of the datasheet's law, and whose joules follow the batch."""
    lines = [
        "llm,gpu,precision,tensor_parallel,batch_size,mean_batch_size,task,input_tokens,"
        "output_tokens,energy_per_request_j,tpot_s,request_latency_s,boundary,source"
    ]
    configurations = [
        (llm, tensor, batch)
        for llm in ("Qwen/Qwen3-8B", "Qwen/Qwen3-14B", "Qwen/Qwen3-32B")
        for tensor in (1, 2, 4)
        for batch in (4, 16, 64, 256)
    ]
    text = "\n".join(
        [
            lines[0],
            *(
                f"{m},H100,bf16,{t},{b},{b},chat,200,500,{900 * t / b**0.8},1,1,active_gpus,"
                "measured"
                for m, t, b in configurations
            ),
        ]
    )
    path = tmp_path / "rows.csv"
    path.write_text(text)
    cases = table.read(path).cases
    scatter = np.exp(0.05 * np.random.default_rng(seed).standard_normal(len(cases)))
    seconds = latency.from_datasheet().predict_s(cases) * scatter
    rows = [
        line.replace(",1,1,active", f",{s / 500},{s},active")
        for line, s in zip(text.splitlines()[1:], seconds, strict=True)
    ]
    path.write_text("\n".join([lines[0], *rows]))
    return path


def test_time_stands_in_for_joules_and_no_case_tells_it(tmp_path: Path) -> None:
    rows = table.read(planted(tmp_path))
    target = as_target(rows, "latency")
    np.testing.assert_array_equal(target.energy_per_request_j, rows.cases.request_latency_s)
    for name in HIDDEN:
        assert np.isnan(getattr(target.cases, name)).all()
    with pytest.raises(UsageError, match="ttft_s"):
        as_target(rows, "ttft")


def test_the_law_and_learners_predict_seconds(tmp_path: Path) -> None:
    target = as_target(table.read(planted(tmp_path)), "latency")
    order = np.random.default_rng(1).permutation(len(target))
    train, test = target.take(order[:20]), target.take(order[20:])
    errors = {}
    for name, make in time_contestants("latency", ESTIMATORS).items():
        if name.startswith(("energylens", "log-linear", "extra")):
            predicted = make(0).fit(train).predict_energy_j(test.cases)
            errors[name] = float(np.abs(predicted / test.energy_per_request_j - 1).mean())
    assert errors["energylens"] < 0.08
    assert errors["energylens"] < errors["log-linear"]
    assert errors["extra-trees-on-datasheet"] < errors["extra-trees"]
    low, high = TimeContestant(target="latency").fit(train).interval_energy_j(test.cases, 0.8)
    inside = (low <= test.energy_per_request_j) & (test.energy_per_request_j <= high)
    assert inside.mean() > 0.5


def test_a_choice_is_the_least_within_the_limit_or_the_fastest() -> None:
    joules, times = np.array([1.0, 2.0, 3.0]), np.array([9.0, 5.0, 4.0])
    assert _choice(joules, times, 6.0) == 1
    assert _choice(joules, times, 1.0) == 2
    assert _choice(joules, times, 10.0) == 0
    assert _choice(np.ones_like(joules), times, 6.0) == int(
        np.argmax(np.where(times <= 6, times, 0))
    )


class Oracle:
    """Knows the joules; no chance."""

    name, ranks_only = "energylens-oracle", False

    def __init__(self, rows: Dataset) -> None:
        self.rows = rows

    def fit(self, _: Dataset) -> Oracle:
        return self

    def predict_energy_j(self, cases: Cases) -> FloatArray:
        assert np.isnan(cases.request_latency_s).all()
        assert np.isnan(cases.tpot_s).all()
        return self.rows.energy_per_request_j


def test_more_certainty_keeps_limits_more_often_and_costs_more(tmp_path: Path) -> None:
    rows = table.read(planted(tmp_path))
    rows = rows.take(rows.by_content)  # as they are judged: the oracle knows them by place
    scores = {}
    for meet in (0.2, 0.8, 0.98):
        judged = judge_limits(
            rows, {"energylens-oracle": lambda _: Oracle(rows)},
            choose=("parallelism", "batch_size"), quantiles=(0.5,), meet=meet, train=20, repeats=8,
        )  # fmt: skip
        scores[meet] = judged.scores["energylens-oracle"][0]
    assert scores[0.98].meets_ratio >= scores[0.8].meets_ratio >= scores[0.2].meets_ratio
    assert scores[0.8].meets_ratio >= 0.8
    assert scores[0.98].regret_mean_ratio >= scores[0.2].regret_mean_ratio
    assert judged.scores["latency-only"][0].meets_ratio == 1.0


def test_measuring_the_choice_keeps_the_limit_and_costs_nothing(tmp_path: Path) -> None:
    rows = table.read(planted(tmp_path))
    judged = judge_limits(
        rows, {"energylens": lambda _: EnergyLens()}, choose=("parallelism", "batch_size"),
        quantiles=(0.25, 0.5, 0.75), verify_runs=3, train=15, repeats=6,
    )  # fmt: skip
    for score in judged.scores["energylens"]:
        assert score.meets_ratio >= 0.98
        assert score.regret_median_ratio <= 0.01


def test_limits_are_judged_alike_however_the_table_is_sorted(tmp_path: Path) -> None:
    rows = table.read(planted(tmp_path))
    shuffled = rows.take(np.random.default_rng(3).permutation(len(rows)))
    first, second = (
        judge_limits(
            dataset, {"energylens": lambda _: EnergyLens()}, choose=("parallelism", "batch_size"),
            quantiles=(0.25, 0.5), train=15, repeats=3,
        ).scores["energylens"]
        for dataset in (rows, shuffled)
    )  # fmt: skip
    for mine, other in zip(first, second, strict=True):
        assert mine.meets_ratio == other.meets_ratio
        assert mine.regret_mean_ratio == pytest.approx(other.regret_mean_ratio, abs=1e-9)


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main(arguments) == 0
    return json.loads(capsys.readouterr().out)


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(planted(tmp_path))
    common = (
        "evaluate", path, "--protocol", "few-shot", "--choose", "parallelism,batch_size",
        "--train", "20", "--repeats", "2", "--estimators", "energylens,log-linear", "--json",
    )  # fmt: skip
    document = call(capsys, *common, "--target", "latency")
    assert document["estimators"]["energylens"]["mape_ratio"] < 0.1
    document = call(capsys, *common, "--limit-quantiles", "0.25,0.5", "--meet", "0.8")
    limits = document["estimators"]["energylens"]["limits"]
    assert [entry["quantile"] for entry in limits] == [0.25, 0.5]
    assert set(limits[0]) == {
        "quantile", "meets_ratio", "regret_mean_ratio", "regret_median_ratio", "top1_ratio",
    }  # fmt: skip
    document = call(capsys, *common, "--limit-quantiles", "0.5", "--verify-runs", "3")
    assert document["limits"]["verify_runs"] == 3
    for wrong in (("--meet", "0.8"), ("--verify-runs", "2"), ("--between", "2")):
        assert main([*common, *wrong]) in (1, 2)
        capsys.readouterr()


def test_choices_within_limits_on_published_rows(public_data: Callable[[str], Path]) -> None:
    folder = public_data("mlenergy-v3")
    rows = mlenergy_v3.read(folder, assume_input_tokens={}, assume_vision_tokens={}).dataset
    estimators = {"energylens": lambda _: EnergyLens()}
    for meet, runs, least in ((0.8, 0, 0.8), (0.95, 0, 0.95), (0.8, 3, 0.98)):
        judged = judge_limits(
            rows, estimators, choose=("parallelism", "batch_size"), quantiles=(0.25, 0.5, 0.75),
            meet=meet, verify_runs=runs, repeats=4,
        )  # fmt: skip
        for score in judged.scores["energylens"]:
            assert score.meets_ratio >= least
            if runs:
                assert score.regret_median_ratio <= 0.01
        fastest = judged.scores["latency-only"]
        for ours, theirs in zip(judged.scores["energylens"], fastest, strict=True):
            assert ours.regret_mean_ratio < theirs.regret_mean_ratio


def test_candidates_between_two_batches_lie_between_them(tmp_path: Path) -> None:
    rows = table.read(planted(tmp_path))
    scenarios = rows.scenarios(("parallelism", "batch_size"))
    times = rows.cases.request_latency_s / rows.cases.output_tokens
    dense, dense_s, grown = _interpolated(rows, times, scenarios, 3)
    assert len(dense) == len(dense_s) > len(rows)
    np.testing.assert_array_equal(dense_s[: len(rows)], times)
    for few, many in zip(scenarios, grown, strict=True):
        assert set(few) < set(many)
        batches, joules = dense.cases.batch_size, dense.energy_per_request_j
        for degree in np.unique(rows.cases.tensor_parallel[few]):
            ours = many[dense.cases.tensor_parallel[many] == degree]
            ours = ours[np.argsort(batches[ours])]
            measured = few[rows.cases.tensor_parallel[few] == degree]
            measured = measured[np.argsort(batches[measured])]
            assert batches[ours][[0, -1]].tolist() == batches[measured][[0, -1]].tolist()
            np.testing.assert_allclose(
                np.log(joules[ours]),
                np.interp(
                    np.log(batches[ours]), np.log(batches[measured]), np.log(joules[measured])
                ),
            )
    judged = judge_limits(
        rows, {"energylens": lambda _: EnergyLens()}, choose=("parallelism", "batch_size"),
        quantiles=(0.5,), between=3, train=15, repeats=2,
    )  # fmt: skip
    assert judged.between == 3
    assert judged.scores["energylens"][0].meets_ratio > 0.5
