from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from energylens.capacity import memory
from energylens.cases import BoolArray, Cases, FloatArray
from energylens.errors import InfeasibleError, InputError, UsageError
from energylens.records import (
    Attention,
    Boundary,
    Case,
    Configuration,
    Experts,
    FeedForward,
    Gpu,
    Llm,
    Precision,
    Workload,
)
from energylens.scenarios import Candidates, CapsSeen, Scenario, enumerate_configurations
from energylens.selection import SAMPLED, Ranking, select

BF16 = Precision(id="bf16", weight_bits=16, compute_bits=16)
FP8 = Precision(id="fp8", weight_bits=8, compute_bits=8)

DENSE = Llm(
    id="dense-8b",
    layers=32,
    hidden_size=4096,
    vocabulary_size=128_000,
    total_parameters=8 * 10**9,
    active_parameters=8 * 10**9,
    attention=Attention(layers=32, heads=32, kv_heads=8, head_size=128),
    feed_forward=FeedForward(layers=32, size=14_336),
)
MOE = replace(
    DENSE,
    id="moe",
    feed_forward=None,
    experts=Experts(layers=32, experts=16, active_experts=2, size=1024),
)
H100 = Gpu(
    id="H100",
    memory_bytes=80e9,
    memory_bandwidth_bytes_per_s=3e12,
    bf16_flop_per_s=1e15,
    tdp_w=700,
)
SMALL = replace(H100, id="small", memory_bytes=26e9)
WORKLOAD = Workload(input_tokens=1000, output_tokens=500)
SCENARIO = Scenario(
    llm=DENSE,
    gpu=H100,
    precision=BF16,
    workload=WORKLOAD,
    configuration=Configuration(batch_size=8),
)


@dataclass(frozen=True)
class Says:
    """A predictor that says what a function of cases says."""

    answer: Callable[[Cases], FloatArray]

    def predict_energy_j(self, cases: Cases) -> FloatArray:
        return self.answer(cases)


@dataclass(frozen=True)
class SaysAbout(Says):
    """The same, give or take: independent draws of a relative spread."""

    spread_ratio: float = 0.1

    def interval_energy_j(
        self, cases: Cases, coverage_ratio: float
    ) -> tuple[FloatArray, FloatArray]:
        middle = self.answer(cases)
        return middle * (1 - coverage_ratio / 2), middle * (1 + coverage_ratio / 2)

    def sample_energy_j(self, cases: Cases, samples: int, seed: int) -> FloatArray:
        rng = np.random.default_rng(seed)
        return self.answer(cases) * np.exp(
            rng.normal(0.0, self.spread_ratio, (samples, len(cases)))
        )


def running(cases: Cases) -> FloatArray:
    return np.where(np.isnan(cases.mean_batch_size), cases.batch_size, cases.mean_batch_size)


def joules(cases: Cases) -> FloatArray:
    """More GPUs cost more, larger batches less: one optimum in every direction."""
    return 100.0 * cases.occupied_gpus / running(cases) + running(cases) / 10.0 + cases.gpu_index


def names(ranking: Ranking) -> list[str]:
    return [entry.configuration.describe() for entry in ranking.entries()]


# ------------------------------------------------------------------------------- enumeration


def test_the_default_knobs_span_tensor_and_pipeline_parallelism_within_the_gpus_allowed() -> None:
    cases = enumerate_configurations(SCENARIO)
    pairs = list(zip(cases.tensor_parallel, cases.pipeline_parallel, strict=True))
    assert sorted(pairs) == [(t, p) for t in (1, 2, 4, 8) for p in (1, 2, 4, 8) if t * p <= 8]
    assert set(cases.batch_size) == {8}
    assert np.isnan(cases.mean_batch_size).all()
    assert set(cases.input_tokens) == {1000}
    assert not cases.node_boundary.any()
    assert len(enumerate_configurations(replace(SCENARIO, max_gpus=1))) == 1


def test_the_node_boundary_counts_its_gpus_and_no_deployment_exceeds_them() -> None:
    cases = enumerate_configurations(
        replace(SCENARIO, boundary=Boundary.NODE, node_gpus=4, max_gpus=8)
    )
    assert cases.node_boundary.all()
    assert set(cases.node_gpus) == {4}
    assert cases.occupied_gpus.max() == 4
    with pytest.raises(InputError, match="node_gpus must be given"):
        replace(SCENARIO, boundary=Boundary.NODE)


def test_parallelism_frees_all_four_degrees_and_experts_only_where_there_are_some() -> None:
    dense = enumerate_configurations(SCENARIO, choose=["parallelism"])
    assert set(dense.expert_parallel) == {1}
    assert set(dense.data_parallel) == {1, 2, 4, 8}
    moe = enumerate_configurations(replace(SCENARIO, llm=MOE), choose=["parallelism"])
    spread = moe.expert_parallel > 1
    assert spread.any()
    np.testing.assert_array_equal(
        moe.expert_parallel[spread], (moe.tensor_parallel * moe.data_parallel)[spread]
    )
    layouts = np.column_stack(
        [moe.tensor_parallel, moe.pipeline_parallel, moe.expert_parallel, moe.data_parallel]
    )
    assert len(np.unique(layouts, axis=0)) == len(layouts)


def test_every_replica_gets_a_sequence() -> None:
    cases = enumerate_configurations(
        SCENARIO, choose=["data_parallel", "batch_size"], candidates=Candidates(batch_size=(1, 4))
    )
    pairs = set(zip(cases.data_parallel, cases.batch_size, strict=True))
    assert pairs == {(1, 1), (1, 4), (2, 4), (4, 4)}


def test_free_gpus_and_precisions_are_taken_from_the_candidates() -> None:
    cases = enumerate_configurations(
        SCENARIO,
        choose=["gpu", "precision"],
        candidates=Candidates(gpus=(H100, SMALL), precisions=(BF16, FP8)),
    )
    got = {
        (cases.gpus[g].id, cases.precisions[p].id)
        for g, p in zip(cases.gpu_index, cases.precision_index, strict=True)
    }
    assert got == {(g, p) for g in ("H100", "small") for p in ("bf16", "fp8")}
    assert len(cases) == 4


@pytest.mark.parametrize(
    ("choose", "message"),
    [
        (["gpu"], "to choose the gpu freely"),
        (["precision"], "to choose the precision freely"),
        (["voltage"], "the free knobs must be"),
        ([], "the free knobs must be"),
    ],
)
def test_free_knobs_without_values_are_refused(choose: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        enumerate_configurations(SCENARIO, choose=choose)


def test_values_below_one_are_refused() -> None:
    with pytest.raises(InputError, match="batch_size must list numbers of 1 or more"):
        Candidates(batch_size=(0, 1))
    with pytest.raises(InputError, match="tensor_parallel must list"):
        Candidates(tensor_parallel=())
    with pytest.raises(InputError, match="max_gpus must be 1 or more"):
        replace(SCENARIO, max_gpus=0)


# ----------------------------------------------------------------------------------- ranking


def test_the_ranking_is_by_predicted_joules_and_states_the_savings() -> None:
    ranking = select(
        Says(joules),
        SCENARIO,
        choose=["tensor_parallel"],
        reference=Configuration(tensor_parallel=4, batch_size=8),
    )
    assert names(ranking) == ["TP1 PP1 B8", "TP2 PP1 B8", "TP4 PP1 B8", "TP8 PP1 B8"]
    # 100 G / 8 + 0.8 joules for each request.
    assert ranking.energy_per_request_j == pytest.approx([13.3, 25.8, 50.8, 100.8])
    assert ranking.best.energy_per_output_token_j == pytest.approx(13.3 / 500)
    assert ranking.saving_against_worst_ratio == pytest.approx(1 - 13.3 / 100.8)
    assert ranking.reference_energy_per_request_j == pytest.approx(50.8)
    assert ranking.saving_against_reference_ratio == pytest.approx(1 - 13.3 / 50.8)
    assert ranking.best.probability_best_ratio is None
    assert ranking.best.lower_j is None


def test_equal_joules_stand_from_the_fewest_gpus_up() -> None:
    ranking = select(Says(lambda c: np.ones(len(c))), SCENARIO, choose=["tensor_parallel"])
    assert names(ranking) == ["TP1 PP1 B8", "TP2 PP1 B8", "TP4 PP1 B8", "TP8 PP1 B8"]


def test_the_probability_of_being_best_follows_the_joint_draws() -> None:
    two = Candidates(tensor_parallel=(1, 2))

    def chances(spread: float, gap: float) -> list[float]:
        ranking = select(
            SaysAbout(lambda c: 10 + gap * c.tensor_parallel, spread),
            SCENARIO,
            choose=["tensor_parallel"],
            candidates=two,
        )
        assert ranking.probability_best_ratio.sum() == pytest.approx(1)
        return list(ranking.probability_best_ratio)

    assert chances(0.1, 0.0) == pytest.approx([0.5, 0.5], abs=0.05)
    assert chances(0.01, 5.0) == [1.0, 0.0]
    assert 0.5 < chances(0.1, 1.0)[0] < 0.9
    assert chances(0.0, 0.0) == [0.5, 0.5]  # draws that tie share the win


def test_intervals_and_expected_regret_come_from_the_predictor() -> None:
    sure = select(SaysAbout(joules, 0.0), SCENARIO, choose=["tensor_parallel"], coverage_ratio=0.5)
    assert (sure.best.lower_j, sure.best.upper_j) == pytest.approx((13.3 * 0.75, 13.3 * 1.25))
    assert sure.expected_regret_ratio == 0.0
    level = Says(lambda c: np.full(len(c), 5.0))
    unsure = select(SaysAbout(level.answer, 0.1), SCENARIO, choose=["tensor_parallel"])
    # The lowest of four equal lognormal draws of spread 0.1 is about 11 % below any one.
    assert unsure.expected_regret_ratio == pytest.approx(0.11, abs=0.02)


def test_draws_follow_the_seed() -> None:
    def chances(seed: int) -> FloatArray:
        return select(SaysAbout(joules, 0.5), SCENARIO, seed=seed).probability_best_ratio

    np.testing.assert_array_equal(chances(1), chances(1))
    assert not np.array_equal(chances(1), chances(2))


def test_a_configuration_without_a_prediction_is_ruled_out_and_says_so() -> None:
    ranking = select(
        Says(lambda c: np.where(c.tensor_parallel == 2, np.nan, joules(c))),
        SCENARIO,
        choose=["tensor_parallel"],
    )
    assert "TP2 PP1 B8" not in names(ranking)
    (missing,) = ranking.infeasible()
    assert missing.reason == "the energy model has no prediction for it"
    assert ranking.infeasible_counts() == {"no prediction": 1}


def test_a_prediction_of_the_wrong_shape_is_refused() -> None:
    with pytest.raises(InputError, match=r"it gave shape \(2,\)"):
        select(Says(lambda _: np.ones(2)), SCENARIO)


# -------------------------------------------------------------------------------- feasibility


def batches(queueing: bool, gpu: Gpu = SMALL) -> Ranking:
    return select(
        Says(lambda c: 1000.0 / running(c)),
        replace(SCENARIO, gpu=gpu),
        choose=["batch_size"],
        queueing=queueing,
    )


def test_limits_beyond_memory_are_ranked_with_what_really_runs() -> None:
    room = memory(
        Case(
            llm=DENSE,
            gpu=SMALL,
            precision=BF16,
            workload=WORKLOAD,
            configuration=Configuration(batch_size=512),
        )
    ).largest_batch
    assert 2 < room < 256  # or the test shows nothing
    ranking = batches(queueing=True)
    waiting = {
        e.configuration.batch_size: e.configuration.mean_batch_size
        for e in ranking.entries()
        if e.configuration.mean_batch_size is not None
    }
    assert set(waiting) == {b for b in 2.0 ** np.arange(13) if b > room}
    assert waiting[512] == pytest.approx(room)
    best = ranking.best
    assert best.configuration.batch_size == max(waiting)  # of limits that serve alike
    assert best.energy_per_request_j == pytest.approx(1000 / room)
    assert not ranking.infeasible()
    (note,) = ranking.notes
    assert "A batch size is a limit" in note
    assert ranking.to_json()["notes"] == [note]
    assert not select(Says(joules), SCENARIO).notes


def test_without_a_queue_every_batch_beyond_memory_is_ruled_out() -> None:
    kept = {e.configuration.batch_size for e in batches(queueing=False).entries()}
    every = batches(queueing=True).entries()
    assert kept == {
        e.configuration.batch_size for e in every if e.configuration.mean_batch_size is None
    }
    ruled_out = batches(queueing=False).infeasible()
    assert "the rest would wait in the queue" in ruled_out[0].reason


def test_what_waits_in_the_reference_is_not_counted_as_running() -> None:
    big = Configuration(batch_size=512)
    ranking = select(
        Says(lambda c: 1000.0 / running(c)),
        replace(SCENARIO, gpu=SMALL),
        choose=["batch_size"],
        reference=big,
    )
    (same,) = (e for e in ranking.entries() if e.configuration.batch_size == 512)
    assert ranking.reference_energy_per_request_j == pytest.approx(same.energy_per_request_j)


def test_layouts_that_do_not_divide_the_heads_are_ruled_out_with_the_reason() -> None:
    ranking = select(
        Says(joules),
        SCENARIO,
        choose=["tensor_parallel"],
        candidates=Candidates(tensor_parallel=(1, 3)),
    )
    assert names(ranking) == ["TP1 PP1 B8"]
    (three,) = ranking.infeasible()
    assert "tensor parallel 3 does not divide the 32 attention heads" in three.reason
    assert ranking.infeasible_counts() == {"layout": 1}


def test_when_nothing_fits_the_most_common_reason_is_given_in_words() -> None:
    tiny = replace(H100, id="tiny", memory_bytes=1e9)
    with pytest.raises(
        InfeasibleError, match=r"10 of 10 fail on memory.*0.9 GB that 90 % of tiny gives"
    ):
        select(Says(joules), replace(SCENARIO, gpu=tiny))


def test_knobs_that_span_nothing_are_refused() -> None:
    with pytest.raises(InfeasibleError, match="allow more GPUs"):
        select(
            Says(joules),
            SCENARIO,
            choose=["tensor_parallel"],
            candidates=Candidates(tensor_parallel=(16,)),
        )


@dataclass(frozen=True)
class AtMost:
    """Allow so many GPUs and no more."""

    gpus: int
    asked: list[Cases]
    name: str = "GPU budget"

    def broken(self, cases: Cases) -> BoolArray:
        self.asked.append(cases)
        return cases.occupied_gpus > self.gpus

    def reason(self, case: Case) -> str:
        return f"{case.configuration.gpus} GPUs exceed the budget of {self.gpus}"


def test_limits_rule_out_with_their_own_reason_what_memory_allows() -> None:
    limit = AtMost(2, [])
    ranking = select(
        Says(joules),
        SCENARIO,
        choose=["tensor_parallel"],
        candidates=Candidates(tensor_parallel=(1, 2, 3, 4, 8)),
        limits=[limit],
    )
    assert names(ranking) == ["TP1 PP1 B8", "TP2 PP1 B8"]
    assert 3 not in limit.asked[0].tensor_parallel  # ruled out before any limit is asked
    assert ranking.infeasible_counts() == {"GPU budget": 2, "layout": 1}
    assert ranking.infeasible()[-1].reason == "8 GPUs exceed the budget of 2"
    with pytest.raises(InfeasibleError, match="8 GPUs exceed the budget of 0"):
        select(Says(joules), SCENARIO, choose=["tensor_parallel"], limits=[AtMost(0, [])])


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.sampled_from(["parallelism", "batch_size", "precision", "gpu"]), min_size=1),
    st.sampled_from([DENSE, MOE]),
    st.integers(1, 16),
    st.booleans(),
)
def test_every_configuration_is_ranked_or_ruled_out_once_and_what_is_ranked_runs(
    choose: list[str], llm: Llm, max_gpus: int, queueing: bool
) -> None:
    scenario = replace(SCENARIO, llm=llm, max_gpus=max_gpus)
    listed = Candidates(gpus=(H100, SMALL), precisions=(BF16, FP8))
    every = enumerate_configurations(scenario, choose=choose, candidates=listed)
    ranking = select(Says(joules), scenario, choose=choose, candidates=listed, queueing=queueing)
    assert len(ranking) + len(ranking.ruled_out) == len(every)
    assert (np.diff(ranking.energy_per_request_j) >= 0).all()
    for i in range(0, len(ranking), 7):
        need = memory(ranking.cases.case(i))
        assert need.runs
        assert queueing or need.fits
    assert all(entry.reason for entry in ranking.infeasible(20))


# --------------------------------------------------------------------------- size and document


def many() -> tuple[Scenario, Candidates, list[str]]:
    scenario = replace(SCENARIO, llm=MOE, max_gpus=64)
    listed = Candidates(
        batch_size=tuple(float(b) for b in range(1, 600)),
        gpus=(H100, replace(H100, id="other", memory_bytes=140e9)),
        precisions=(BF16, FP8),
    )
    return scenario, listed, ["parallelism", "batch_size", "gpu", "precision"]


def test_a_hundred_thousand_configurations_are_ranked_without_a_loop_over_them() -> None:
    scenario, listed, choose = many()
    calls = 0

    def counted(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(counted)
    try:
        ranking = select(SaysAbout(joules), scenario, choose=choose, candidates=listed)
    finally:
        sys.setprofile(None)
    assert len(ranking) + len(ranking.ruled_out) > 100_000
    assert len(ranking.probability_best_ratio) == SAMPLED
    assert ranking.entries(SAMPLED + 1)[-1].probability_best_ratio is None
    assert calls < 25_000  # of functions; the benchmark has the seconds


def test_the_document_lists_both_kinds_and_holds_no_nan() -> None:
    ranking = select(
        SaysAbout(lambda c: np.where(c.tensor_parallel == 8, np.nan, joules(c))),
        replace(SCENARIO, gpu=SMALL),
        choose=["parallelism", "batch_size"],
        reference=Configuration(),
    )
    document = ranking.to_json(listed=3)
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert (len(document["ranking"]), len(document["infeasible_listed"])) == (3, 3)
    assert document["feasible"] == len(ranking)
    assert document["infeasible"] == sum(document["infeasible_counts"].values())
    first = document["ranking"][0]
    assert first["rank"] == 1
    assert first["energy_per_request_j"] == ranking.best.energy_per_request_j
    assert 0 < first["probability_best_ratio"] <= 1
    assert document["reference"] == "TP1 PP1 B1"
    assert document["saving_against_reference_ratio"] > 0


def test_a_coverage_outside_its_range_is_refused() -> None:
    with pytest.raises(UsageError, match="coverage_ratio must lie between 0 and 1"):
        select(Says(joules), SCENARIO, coverage_ratio=1.0)


# -------------------------------------------------------------------------------- power caps


def test_power_caps_are_candidates_where_they_are_free() -> None:
    def hungry(cases: Cases) -> FloatArray:
        """Least at 400 W."""
        return joules(cases) * (1 + np.abs(np.nan_to_num(cases.power_cap_w, nan=700) - 400) / 700)

    caps = Candidates(power_caps_w=(700.0, 300.0, 400.0))
    ranking = select(Says(hungry), SCENARIO, choose=("power_cap",), candidates=caps)
    assert names(ranking) == ["TP1 PP1 B8 400W", "TP1 PP1 B8 300W", "TP1 PP1 B8 700W"]
    assert ranking.to_json()["ranking"][0]["power_cap_w"] == 400
    assert ranking.saving_against_worst_ratio == pytest.approx(1 - 1 / (1 + 300 / 700))
    free = select(Says(hungry), SCENARIO)
    assert free.cases.capped.sum() == 0
    assert "power_cap_w" not in free.to_json()["ranking"][0]
    fixed = replace(SCENARIO, configuration=Configuration(batch_size=8, power_cap_w=300.0))
    assert set(select(Says(hungry), fixed).cases.power_cap_w) == {300.0}


def test_a_cap_that_one_gpu_type_cannot_have_is_ruled_out_there_and_refused_if_none_can() -> None:
    weak = replace(H100, id="weak", tdp_w=300.0)
    listed = Candidates(gpus=(H100, weak), power_caps_w=(250.0, 600.0))
    choose = ("gpu", "power_cap")
    ranking = select(Says(joules), SCENARIO, choose=choose, candidates=listed)
    kept = {(entry.gpu, entry.configuration.power_cap_w) for entry in ranking.entries()}
    assert kept == {("H100", 250.0), ("H100", 600.0), ("weak", 250.0)}
    (impossible,) = ranking.infeasible()
    assert (impossible.gpu, impossible.configuration.power_cap_w) == ("weak", 600.0)
    assert impossible.reason.startswith("power_cap_w must lie between 30 and 315 W on a weak")
    assert ranking.to_json()["infeasible_counts"] == {"power cap": 1}
    for caps, words in (
        ((), "to choose the power cap freely, the candidates must list some"),
        (
            (400.0, 4e5),
            r"power_cap_w must lie between 70 and 735 W on a H100 \(TDP 700 W\), not 400000",
        ),
    ):
        with pytest.raises(UsageError, match=words):
            select(
                Says(joules),
                SCENARIO,
                choose=("power_cap",),
                candidates=Candidates(power_caps_w=caps),
            )


def test_caps_far_outside_those_seen_are_ruled_out_in_watts_of_the_gpu() -> None:
    seen = CapsSeen(low_ratio=300 / 700, high_ratio=500 / 700)
    ranking = select(
        Says(joules),
        SCENARIO,
        choose=("power_cap",),
        candidates=Candidates(power_caps_w=(71.0, 239.0, 241.0, 624.0, 626.0)),
        limits=[seen],
    )
    assert {e.configuration.power_cap_w for e in ranking.entries()} == {241.0, 624.0}
    assert {i.reason for i in ranking.infeasible()} == {"the fit has seen caps from 300 to 500 W"}
    assert len(select(Says(joules), SCENARIO, limits=[seen])) > 0  # no cap is none far outside


def test_limits_that_serve_alike_are_one_way_of_serving() -> None:
    ranking = batches(queueing=True)
    first, *others = ranking.served()
    assert first.configuration == ranking.best.configuration
    assert first.configuration.mean_batch_size is not None
    assert all(e.configuration.mean_batch_size is None for e in others)
    assert [e.rank for e in ranking.served(2)] == [first.rank, others[0].rank]


def test_the_whole_table_is_predicted_once_by_the_model_that_may_choose() -> None:
    asked: list[int] = []

    @dataclass(frozen=True)
    class Chooses(Says):
        def choosing(self, freed: object) -> Says:
            assert tuple(freed) == ("precision", "batch_size")  # type: ignore[call-overload]
            return Says(counted)

    def counted(cases: Cases) -> FloatArray:
        asked.append(len(cases))
        return joules(cases)

    def never(cases: Cases) -> FloatArray:
        raise AssertionError("factors of what is free must not choose")

    ranking = select(
        Chooses(never),
        SCENARIO,
        choose=("precision", "batch_size"),
        candidates=Candidates(precisions=(BF16, FP8)),
    )
    assert asked == [len(ranking)]
