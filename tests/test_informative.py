"""Runs chosen for what they tell, the verdict on when to stop, and the study of both."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from studies.planning import figure, tables
from studies.planning.replay import Subject, as_telling, needed

from energylens import catalog
from energylens.cases import Cases, FloatArray, IntArray
from energylens.dataset import Dataset
from energylens.errors import InfeasibleError, InputError, UsageError
from energylens.formula import NAMES, SPREADS, STRUCTURE, design
from energylens.nextruns import deciding, ground, information, verbs
from energylens.nextruns.answers import Choice, Verdict
from energylens.nextruns.information import Information
from energylens.nextruns.verbs import next_runs, verdict
from energylens.records import Case, Configuration, Engine, Workload

ROOT = Path(__file__).resolve().parents[1]
PLANTED = np.array([0.6, 1.4, 0.9, 1.8, 0.4, 1.1, 2.0, 0.7, 1.3, 0.5, 1.6, 0.8])
LAYOUTS = ("tensor_parallel", "pipeline_parallel")
PIPELINE = NAMES.index("pipeline_parallel")

MakeDataset = Callable[..., Dataset]


def grid(
    *,
    llms: tuple[str, ...] = ("Qwen/Qwen3-8B", "Qwen/Qwen3-32B"),
    tensor: tuple[int, ...] = (1, 2, 4),
    pipeline: tuple[int, ...] = (1, 2),
    batch: tuple[float, ...] = (1, 8, 64),
    tokens: tuple[tuple[float, float], ...] = ((128, 256), (2048, 256)),
) -> Cases:
    """Every combination, as one might ask for."""
    return Cases.of(
        Case(
            llm=catalog.llm(llm),
            gpu=catalog.gpu("H100"),
            precision=catalog.precision("bf16"),
            workload=Workload(input_tokens=prompt, output_tokens=output),
            configuration=Configuration(tensor_parallel=tp, pipeline_parallel=pp, batch_size=b),
        )
        for llm in llms
        for tp in tensor
        for pp in pipeline
        for b in batch
        for prompt, output in tokens
    )


@pytest.fixture(scope="module")
def cases() -> Cases:
    return grid()


@pytest.fixture(scope="module")
def measure(cases: Cases, make_dataset: MakeDataset) -> Callable[[IntArray], Dataset]:
    """Measure some candidates, in a world with a planted law and noise of a fiftieth."""
    every = make_dataset(cases, theta=PLANTED, noise_ratio=0.02)
    return every.take


# ----------------------------------------------------------------------------- the information


def some_rows(seed: int, n: int = 12, kin: int = 4) -> tuple[FloatArray, IntArray, FloatArray]:
    rng = np.random.default_rng(seed)
    theta = rng.uniform(0.2, 3.0, (2, 12))
    return rng.uniform(0.0, 5.0, (n, 12)), rng.integers(0, kin, n), theta


def test_one_row_adds_its_slopes_over_its_whole_variance() -> None:
    # One term alone: log E = log(theta x), so its slope is 1 / theta whatever x is.
    x = np.zeros((1, 12))
    x[0, PIPELINE] = 7.0
    theta = np.full((1, 12), 0.5)
    known = Information(x, np.array([0]), theta, within=0.3, between=0.4)
    assert known.gains(np.array([0]))[0] == pytest.approx(np.log1p((2 * 3) ** 2 / 0.25))
    known.add(0)
    # Prior spread 3, so information 1/9 before and 1/9 + 2**2 / (0.3**2 + 0.4**2) after.
    assert known.matrix[0, PIPELINE, PIPELINE] == pytest.approx(1 / 9 + 4 / 0.25)
    assert known.spreads()[0, PIPELINE] == pytest.approx((1 / 9 + 16) ** -0.5 / 3)


@given(st.integers(0, 1000), st.floats(0.01, 1), st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_rows_added_one_by_one_are_generalised_least_squares(
    seed: int, within: float, between: float
) -> None:
    x, kin, theta = some_rows(seed)
    known = Information(x, kin, theta, within=within, between=between)
    for row in range(len(x)):
        known.add(row)
    covariance = within**2 * np.eye(len(x)) + between**2 * (kin[:, None] == kin)
    for d in range(2):
        slope = ground.log_slopes(x, theta[d])
        direct = np.diag(1 / SPREADS**2) + slope.T @ np.linalg.solve(covariance, slope)
        assert known.matrix[d] == pytest.approx(direct, rel=1e-6, abs=1e-6 * np.abs(direct).max())


@given(st.integers(0, 1000), st.integers(0, 11))
@settings(max_examples=30, deadline=None)
def test_a_row_never_lowers_the_information_and_gains_what_it_said(seed: int, last: int) -> None:
    x, kin, theta = some_rows(seed)
    known = Information(x, kin, theta, within=0.1, between=0.2)
    for row in range(last):
        before, said = known.log_det(), known.gains(np.array([row]))[0]
        known.add(row)
        assert (known.log_det() >= before - 1e-9).all()
        assert (known.log_det() - before).mean() == pytest.approx(said, rel=1e-6, abs=1e-9)
        assert (known.spreads() <= 1 + 1e-9).all()


def test_taking_a_row_out_undoes_taking_it_in() -> None:
    x, kin, theta = some_rows(3)
    known = Information(x, kin, theta, within=0.1, between=0.2)
    known.add(0)
    before = known.copy()
    known.add(5)
    known.add(7)
    known.remove(5)
    before.add(7)
    assert known.matrix == pytest.approx(before.matrix)
    assert known.gains(np.arange(12)) == pytest.approx(before.gains(np.arange(12)))


def test_of_runs_that_tell_alike_the_cheapest_is_taken() -> None:
    gains, cost = np.array([1.0, 0.995, 0.5, 0.993]), np.array([9.0, 4.0, 1.0, 4.0])
    assert information._cheapest_of_best(gains, cost) == 1


# --------------------------------------------------------------------------------- the next runs


def test_a_coefficient_that_no_row_speaks_of_is_what_the_next_run_tells(
    cases: Cases, measure: Callable[[IntArray], Dataset]
) -> None:
    done = np.flatnonzero(cases.pipeline_parallel == 1)
    batch = next_runs(cases, measure(done), choose=LAYOUTS, count=1, weight=0.0)
    run = batch.runs[0]
    assert run.case.configuration.pipeline_parallel == 2
    assert run.purpose == "coefficients"
    assert "pipeline_parallel (1 to 0" in run.why
    before, after = dict(batch.spread_before), dict(batch.spread_after)
    assert before["pipeline_parallel"] == pytest.approx(1, abs=1e-6)
    assert after["pipeline_parallel"] < 0.2
    assert any("pipeline_parallel 1 to 0." in line for line in batch.sentences())


def test_before_the_first_row_every_run_is_for_the_coefficients(cases: Cases) -> None:
    batch = next_runs(cases, choose=LAYOUTS, count=6)
    assert {run.purpose for run in batch.runs} == {"coefficients"}
    assert len(set(batch.index.tolist())) == 6
    gains = [run.gain for run in batch.runs]
    assert sum(gains) == pytest.approx(batch.information_nats)
    assert all(a >= 0.98 * b for a, b in pairwise(gains))
    # Small, large, deep, wide, long, short: no six runs at random tell nearly as much.
    rng = np.random.default_rng(0)
    at_random = [told(cases, rng.choice(len(cases), 6, replace=False)) for _ in range(20)]
    assert told(cases, batch.index) > max(at_random)


def told(cases: Cases, rows: IntArray) -> float:
    """Nats that rows tell at the datasheet's coefficients."""
    known = Information(
        design(cases),
        np.arange(len(cases)),
        np.ones((1, 12)),
        within=0.1,
        between=0.1,
    )
    before = known.log_det()[0]
    for row in rows.tolist():
        known.add(row)
    return float(known.log_det()[0] - before)


def test_a_batch_is_split_by_weight_and_the_same_for_the_same_seed(
    cases: Cases, measure: Callable[[IntArray], Dataset]
) -> None:
    done = np.array([0, 20, 45, 70])
    batches = [
        next_runs(cases, measure(done), choose=LAYOUTS, count=4, weight=0.5, seed=3)
        for _ in range(2)
    ]
    assert json.dumps(batches[0].to_json()) == json.dumps(batches[1].to_json())
    assert [run.purpose for run in batches[0].runs] == ["coefficients"] * 2 + ["choice"] * 2
    assert not set(batches[0].index.tolist()) & set(done.tolist())
    only = next_runs(cases, measure(done), choose=LAYOUTS, count=4, weight=1.0)
    assert {run.purpose for run in only.runs} == {"choice"}


def test_a_run_for_the_choice_says_which_configurations_it_tells_apart(
    make_dataset: MakeDataset,
) -> None:
    cases = grid(llms=("Qwen/Qwen3-8B",), tokens=((512, 512),))
    done = np.array([0, 17])
    rows = make_dataset(cases, theta=PLANTED).take(done)
    run = next_runs(cases, rows, choose=("parallelism", "batch_size"), count=1, weight=1.0).runs[0]
    assert run.purpose == "choice"
    assert " from " in run.why
    assert run.why.endswith("for Qwen/Qwen3-8B, 512 + 512 tokens")
    assert 0 < run.gain < 1
    assert run.batch_energy_j == pytest.approx(
        run.energy_per_request_j * run.case.configuration.batch_size
    )


def test_without_a_choice_to_make_all_runs_are_for_the_coefficients(
    make_dataset: MakeDataset,
) -> None:
    cases = grid(tensor=(1,), pipeline=(1,), batch=(8,))
    rows = make_dataset(cases, theta=PLANTED).take(slice(0, 1))
    batch = next_runs(cases, rows, choose=LAYOUTS, count=2, weight=1.0)
    assert {run.purpose for run in batch.runs} == {"coefficients"}
    with pytest.raises(UsageError, match="two or more feasible candidates that differ only in"):
        verdict(cases, rows, choose=LAYOUTS)


def test_only_what_fits_in_memory_is_chosen() -> None:
    cases = grid(
        llms=("meta-llama/Llama-3.1-70B-Instruct",), tensor=(1, 4), pipeline=(1,), batch=(1, 8)
    )
    batch = next_runs(cases, choose=LAYOUTS, count=100)
    assert {run.case.configuration.tensor_parallel for run in batch.runs} == {4}
    assert len(batch.runs) == 4
    assert batch.infeasible == 4
    small = cases.take(cases.tensor_parallel == 1)
    with pytest.raises(InfeasibleError, match="4 do not fit in memory; widen the candidates"):
        next_runs(small, choose=LAYOUTS, count=1)
    # Whatever was seen to run is feasible.
    ran = small.replace(mean_batch_size=1.0)
    assert len(next_runs(ran, choose=LAYOUTS, count=9).runs) == 4


def test_what_is_measured_is_not_measured_again(
    cases: Cases, measure: Callable[[IntArray], Dataset]
) -> None:
    done = np.arange(0, len(cases) - 3)
    rows = measure(done)
    # Counted lengths differ a little from those planned; the row is of its candidate all the same.
    counted = rows.cases.replace(output_tokens=rows.cases.output_tokens * 1.02)
    batch = next_runs(cases, replace(rows, cases=counted), choose=LAYOUTS, count=10)
    assert sorted(batch.index.tolist()) == [len(cases) - 3, len(cases) - 2, len(cases) - 1]
    with pytest.raises(InfeasibleError, match="none of the 72 candidates is left to measure"):
        next_runs(cases, measure(np.arange(len(cases))), choose=LAYOUTS, count=1)


def test_of_very_many_candidates_a_pool_tells_nearly_as_much_as_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cases = grid(
        batch=(1, 2, 4, 8, 16, 32), tokens=tuple((a, b) for a in (64, 512, 4096) for b in (16, 256))
    )
    full = next_runs(cases, choose=LAYOUTS, count=5).information_nats
    monkeypatch.setattr(information, "POOL", 60)
    monkeypatch.setattr(information, "POOL_PER_TERM", 16)
    pooled = next_runs(cases, choose=LAYOUTS, count=5).information_nats
    assert pooled > 0.97 * full


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "1 or more, not 0"),
        ({"weight": 1.5}, "weight must lie between 0 and 1, both included; given 1.5"),
        ({"choose": ("colour",)}, "free knobs must be one or more of"),
        ({"workload": np.zeros(3, dtype=np.intp)}, "one number for each of 72 candidates"),
    ],
)
def test_an_argument_out_of_range_is_refused_in_a_sentence(
    cases: Cases, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        next_runs(cases, **{"choose": LAYOUTS, "count": 2, **arguments})


def test_no_candidates_at_all_are_refused(cases: Cases) -> None:
    with pytest.raises(UsageError, match="one candidate or more"):
        next_runs(cases.take(slice(0, 0)), choose=LAYOUTS, count=2)


# ---------------------------------------------------------------------- the knowledge gradient


def test_the_knowledge_gradient_of_two_candidates_is_the_one_of_the_textbook() -> None:
    # Two independent beliefs, apart by 0.1, spread 0.3: a run without noise on either gains
    # s (phi(d/s) - d/s Phi(-d/s)) (Frazier, Powell and Dayanik 2009, section 2).
    spread = np.sqrt(0.3**2 - deciding.REPEAT_RATIO**2)
    covariance, mean = np.diag([spread**2] * 2), np.array([0.0, 0.1])
    gain, _ = deciding._knowledge_gradient(covariance, mean, np.array([0]), np.array([0, 1]))
    s = spread**2 / 0.3
    expected = s * (norm.pdf(0.1 / s) - 0.1 / s * norm.cdf(-0.1 / s))
    assert gain == pytest.approx([expected, expected], rel=0.1)


def test_what_is_known_already_gains_nothing_and_kin_gain_through_each_other() -> None:
    covariance = np.array([[0.0, 0.0, 0.0], [0.0, 0.04, 0.04], [0.0, 0.04, 0.04]])
    mean = np.array([0.0, 0.05])
    gain, _ = deciding._knowledge_gradient(covariance, mean, np.array([0]), np.arange(3))
    assert gain[0] == pytest.approx(0, abs=1e-12)
    assert gain[1] > 0.01
    assert gain[2] == pytest.approx(gain[1])


def test_the_best_linear_estimate_returns_what_was_measured_exactly() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(400, 3)) + 5
    updated = deciding._best_linear(values, values[:, :1])
    assert updated[:, 0] == pytest.approx(values[:, 0])
    assert updated[:, 1:].std(axis=0).max() < 0.2
    assert deciding._best_linear(values, values[:, :0]).std(axis=0).max() < 1e-9


# ----------------------------------------------------------------------------------- the verdict


def test_rows_make_the_verdict_surer_until_it_says_stop(
    cases: Cases, measure: Callable[[IntArray], Dataset]
) -> None:
    order = np.random.default_rng(0).permutation(len(cases))
    verdicts = [
        verdict(cases, measure(order[:n]) if n else None, choose=LAYOUTS) for n in (0, 8, 72)
    ]
    probabilities = [v.probability_best_ratio for v in verdicts]
    regrets = [v.expected_regret_ratio for v in verdicts]
    assert probabilities == sorted(probabilities)
    assert regrets == sorted(regrets, reverse=True)
    everything = measure(np.arange(len(cases))).energy_per_request_j
    for choice in (c for v in verdicts[1:] for c in v.choices if c.expected_regret_ratio > 1e-6):
        # Joules and percent are of the same thing: about what the winner takes.
        ratio = choice.expected_regret_j / choice.expected_regret_ratio / everything[choice.winner]
        assert 0.5 < ratio < 2.0
    assert not verdicts[0].stop
    assert verdicts[0].sentences()[2].startswith("Go on: nothing is measured yet")
    last = verdicts[-1]
    assert last.stop
    assert last.settled
    assert last.more_runs == 0
    assert last.sentences()[1] == "No run is left that would change that."
    assert last.probability_best_ratio > 0.9
    rows = measure(np.arange(len(cases)))
    truth = rows.energy_per_request_j
    best = {choice.winner: choice for choice in last.choices}
    for scenario in rows.scenarios(LAYOUTS):
        (winner,) = set(best) & set(scenario.tolist())
        assert truth[winner] <= 1.02 * truth[scenario].min()
        assert best[winner].measured == best[winner].configurations == len(scenario)


def test_the_winner_is_the_measured_best_where_all_is_measured(make_dataset: MakeDataset) -> None:
    # The law would not have chosen it: TP 2 costs half of what any planted law says.
    cases = grid(llms=("Qwen/Qwen3-8B",), tokens=((512, 512),), batch=(8,), pipeline=(1,))
    rows = make_dataset(cases, theta=PLANTED)
    joules = rows.energy_per_request_j.copy()
    joules[cases.tensor_parallel == 2] *= 0.5
    found = verdict(cases, replace(rows, energy_per_request_j=joules), choose=LAYOUTS)
    assert len(found.choices) == 1
    assert found.choices[0].configuration == "TP2 PP1 B8"
    assert found.probability_best_ratio > 0.95
    assert "TP2 PP1 B8 is the best of 3 configurations with probability" in found.sentences()[0]


def test_a_verdict_is_the_same_for_the_same_seed_and_can_be_written(
    cases: Cases, measure: Callable[[IntArray], Dataset]
) -> None:
    rows = measure(np.array([0, 20, 45, 70]))
    first, second = (verdict(cases, rows, choose=LAYOUTS, seed=5) for _ in range(2))
    document = first.to_json()
    assert json.dumps(document, allow_nan=False) == json.dumps(second.to_json())
    assert document["measured_rows"] == 4
    assert len(document["choices"]) == document["scenarios"] == 12
    with pytest.raises(FrozenInstanceError):
        first.seed = 1  # type: ignore[misc]


def test_with_thousands_of_scenarios_some_speak_for_all(
    cases: Cases, measure: Callable[[IntArray], Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verbs, "LARGEST_VERDICT", 20)
    monkeypatch.setattr(deciding, "LARGEST_BELIEF", 20)
    found = verdict(cases, measure(np.array([0, 20, 45, 70])), choose=LAYOUTS)
    assert 0 < len(found.choices) < found.scenarios == 12
    assert found.sentences()[0].startswith(f"Over {len(found.choices)} of 12 scenarios the winner")


def test_a_draw_of_unsettled_coefficients_gives_no_joules_beyond_this_world(
    cases: Cases, measure: Callable[[IntArray], Dataset]
) -> None:
    known = ground._Ground.of(cases, measure(np.array([0, 20, 45, 70])), LAYOUTS, None, None)
    wide = replace(known.coefficients, covariance=1e4 * known.coefficients.covariance)
    unsettled = replace(known, coefficients=wide)
    at = np.arange(len(cases))
    drawn = deciding._Belief.of(unsettled, at).draw(unsettled, 200, np.random.default_rng(1))
    # Some draws have all coefficients at 0 that a measured row speaks of.
    assert np.abs(drawn - np.log(known.energy_j[at])).max() < 20.0


@pytest.mark.parametrize("target", [0.0, 1.0])
def test_a_target_outside_its_range_is_refused(cases: Cases, target: float) -> None:
    with pytest.raises(UsageError, match="target_ratio must lie between 0 and 1"):
        verdict(cases, choose=LAYOUTS, target_ratio=target)


def says(regret: float, change: float, *, more: int = 4) -> Verdict:
    choice = Choice(
        scenario="an-llm, 1 + 2 tokens",
        winner=3,
        configuration="TP2 PP1 B64",
        configurations=24,
        measured=2,
        probability_best_ratio=0.83,
        expected_regret_j=120 * regret,
        expected_regret_ratio=regret,
    )
    return Verdict(
        choices=(choice,),
        scenarios=1,
        probability_best_ratio=0.83,
        expected_regret_j=120 * regret,
        expected_regret_ratio=regret,
        more_runs=more,
        change_j=120 * change,
        change_ratio=change,
        target_ratio=0.01,
        measured_rows=8,
        seed=0,
    )


def test_the_verdict_speaks_in_sentences() -> None:
    assert says(0.025, -0.01).sentences() == (
        "TP2 PP1 B64 is the best of 24 configurations with probability 0.83; expected regret "
        "3 J a request (2.50 %).",
        "4 more runs would change that by -1.2 J (-1.00 %).",
        "Go on: the expected regret is above 1 %, and more runs are expected to help.",
    )
    assert says(0.005, -0.01, more=1).sentences()[1:] == (
        "1 more run would change that by -1.2 J (-1.00 %).",
        "Stop: the expected regret is within 1 %.",
    )


@pytest.mark.parametrize(
    ("regret", "change", "more", "stop", "word"),
    [
        (0.025, -0.01, 4, False, "Go on"),
        (0.005, -0.01, 4, True, "within 1 %"),
        (0.025, -0.0005, 4, True, "would hardly change it"),
        (0.025, 0.0, 0, True, "would hardly change it"),
    ],
)
def test_one_stops_where_the_regret_is_low_or_runs_would_not_lower_it(
    regret: float, change: float, more: int, stop: bool, word: str
) -> None:
    given = says(regret, change, more=more)
    assert given.stop is stop
    assert word in given.sentences()[2]


def test_one_never_stops_while_rows_are_lacking_and_is_told_which_are_no_measurements() -> None:
    given = replace(says(0.005, 0.0), lacking="no row is of it", unclaimed="Of 2 rows 2 are made.")
    assert not given.stop
    assert given.sentences()[2:] == (
        "Go on: no row is of it; until then the figures above are a guess.",
        "Of 2 rows 2 are made.",
    )


def test_rows_of_another_engine_or_too_few_of_it_do_not_end_the_measuring(
    cases: Cases, make_dataset: MakeDataset
) -> None:
    served = cases.served_by(Engine(name="vllm"))

    def lacking(engine: str, rows: int) -> str:
        every = make_dataset(cases, theta=PLANTED, engine=engine)
        return verdict(served, every.take(np.arange(rows)), choose=LAYOUTS).lacking

    other = lacking("simulated", 72)
    assert other.startswith(
        "no measured row is of H100-SXM-80GB with the engine vllm, and it takes"
    )
    assert lacking("vLLM", 1).startswith("only 1 measured row is of H100-SXM-80GB with the engine")
    assert lacking("vLLM", 8).startswith("only 8 measured rows are")
    assert lacking("vLLM", 9) == ""


def test_a_case_measured_on_another_engine_is_left_to_measure(
    cases: Cases, make_dataset: MakeDataset
) -> None:
    served = cases.served_by(Engine(name="vllm"))
    for engine, left in (("simulated", 4), ("vllm", 0), ("", 0)):
        rows = make_dataset(cases, theta=PLANTED, engine=engine)
        if left:
            assert len(next_runs(served, rows, choose=LAYOUTS, count=4).runs) == left
        else:
            with pytest.raises(InfeasibleError, match="none of the 72 candidates is left"):
                next_runs(served, rows, choose=LAYOUTS, count=4)


def test_a_run_does_not_claim_to_tell_what_it_leaves_as_it_was() -> None:
    before = np.full((1, 12), 0.5)
    after = before.copy()
    after[0, :2] = 0.4999, 0.498
    assert information._what_it_tells(before, after) == "confirms what is known"
    after[0, 1] = 0.4
    assert information._what_it_tells(before, after) == f"tells {NAMES[1]} (0.5 to 0.4)"


# ------------------------------------------------------------------------------------- the study


def curves(top1: list[float], regret: list[float], mape: list[float]) -> dict[str, Any]:
    def band(values: list[float]) -> list[list[float]]:
        return [[v, v, v] for v in values]

    made = {
        "way": "random",
        "fit": "law",
        "sizes": [4, 8, 12],
        "top1_ratio": band(top1),
        "regret_ratio": band(regret),
        "mape_ratio": band(mape),
        "information_nats": band([1.0, 2.0, 3.0]),
    }
    planned = {**made, "way": "planned", "information_nats": band([1.9, 2.5, 9.0])}
    final = {"top1_ratio": 1.0, "regret_ratio": 0.001, "mape_ratio": 0.1}
    return {"curves": [made, planned], "final": {"law": final}}


@pytest.mark.parametrize(
    ("top1", "regret", "rows"),
    [
        ([0.96, 0.96, 0.96], [0.005] * 3, 4),
        ([0.96, 0.90, 0.96], [0.005] * 3, 12),
        ([0.96, 0.96, 0.96], [0.02, 0.009, 0.001], 8),
        ([0.96, 0.96, 0.90], [0.005] * 3, None),
    ],
)
def test_rows_needed_are_those_from_which_on_both_marks_are_kept(
    top1: list[float], regret: list[float], rows: int | None
) -> None:
    assert needed(curves(top1, regret, [0.2] * 3), "random", "law", "choice") == rows


def test_rows_needed_for_the_error_and_for_as_much_information() -> None:
    result = curves([1] * 3, [0] * 3, [0.2, 0.109, 0.1])
    assert needed(result, "random", "law", "error") == 8
    assert needed(result, "random", "xgboost", "error") is None
    assert as_telling(result, "planned", 4) == 8
    assert as_telling(result, "planned", 12) is None


def test_a_replay_judges_the_choice_in_each_scenario(
    cases: Cases, measure: Callable[[IntArray], Dataset]
) -> None:
    rows = measure(np.arange(len(cases)))
    subject = Subject(rows, LAYOUTS)
    exact = subject.score(rows.energy_per_request_j)
    assert exact == {"top1_ratio": 1.0, "regret_ratio": 0.0, "mape_ratio": 0.0}
    tied = subject.score(np.ones(len(rows)))
    assert tied["top1_ratio"] == pytest.approx(1 / 6)
    unanswered = subject.score(np.full(len(rows), np.nan))
    assert unanswered["regret_ratio"] == pytest.approx(tied["regret_ratio"])


def test_planning_halves_the_rows_that_chance_needs_in_as_many_lines_as_the_page_says() -> None:
    results = json.loads((ROOT / "studies" / "planning" / "planning.json").read_text())

    def rows(source: str, way: str, fit: str) -> float:
        return needed(results[source], way, fit, "choice") or np.inf  # not within the replay

    halved = {
        (source, fit)
        for source in results
        for fit in tables.LAWS
        if np.inf > rows(source, "random", fit) >= 2 * rows(source, "planned", fit)
    }
    # A change of the counts asks for the study to be run again.
    assert {result["structure"] for result in results.values()} == {STRUCTURE}
    assert "in 1 of 8 lines" in (ROOT / "docs" / "studies" / "planning.md").read_text()
    assert halved == {("v2-h100", "law, no prior")}


def test_the_figure_of_the_page_shows_its_results(tmp_path: Path) -> None:
    results = json.loads((ROOT / "studies" / "planning" / "planning.json").read_text())
    figure.write(tmp_path / "planning.svg", results)
    number = re.compile(r"-?\d+(?:\.\d+)?")
    drawn, again = (
        path.read_text(encoding="utf-8")
        for path in (ROOT / "docs" / "figures" / "planning.svg", tmp_path / "planning.svg")
    )
    assert number.sub("#", drawn) == number.sub("#", again)
    places = [np.array(number.findall(text), dtype=float) for text in (drawn, again)]
    assert places[0] == pytest.approx(places[1], abs=0.5)
