from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from energylens import catalog
from energylens.capacity import memory
from energylens.cases import Cases
from energylens.explanation import SUBJECTS, describe, explain, scope_notes
from energylens.fitting import FitOptions, fit, from_datasheet
from energylens.formula import EXTENSIONS, NAMES, OVERLAPS, TERMS, design, terms_of
from energylens.model import Coefficients, physics_flags
from energylens.records import Boundary, Case, Configuration, Engine, Modality, Workload
from energylens.scenarios import Scenario
from energylens.selection import select
from energylens.words import joules, percent


@pytest.fixture(scope="module")
def model(draw_cases, make_dataset):
    return fit(make_dataset(draw_cases(150), noise_ratio=0.1))


@pytest.fixture(scope="module")
def case():
    return Case(
        llm=catalog.llm("Qwen/Qwen3-32B"),
        gpu=catalog.gpu("H100"),
        precision=catalog.precision("bf16"),
        workload=Workload(input_tokens=500, output_tokens=300),
        configuration=Configuration(tensor_parallel=2, batch_size=16),
    )


def laid_out(case, **configuration):
    return replace(case, configuration=replace(case.configuration, **configuration))


def predicted(model, case):
    return float(model.predict_energy_j(Cases.of([case]))[0])


def change(explanation, what):
    return next((c for c in explanation.changes if c.what == what), None)


# --------------------------------------------------------------------------------- numbers


def test_the_parts_of_an_explanation_add_up(model, case):
    e = explain(model, case)
    assert e.energy_per_request_j == predicted(model, case)
    assert tuple(t.name for t in e.terms) == NAMES
    assert sum(t.total_j for t in e.terms) == pytest.approx(e.energy_per_request_j)
    assert sum(t.prefill_j for t in e.terms) == pytest.approx(e.prefill_j)
    assert sum(t.decode_j for t in e.terms) == pytest.approx(e.decode_j)
    assert e.low_j < e.energy_per_request_j < e.high_j


def test_every_term_has_a_subject_for_its_sentence():
    assert set(SUBJECTS) == {term.name for term in terms_of(tuple(EXTENSIONS))}


def test_extensions_are_explained_too(draw_cases, make_dataset, case):
    data = make_dataset(draw_cases(80), noise_ratio=0.1)
    extended = fit(data, FitOptions(extend=("length", "routing")))
    e = explain(extended, case)
    assert len(e.terms) == 15
    assert sum(t.total_j for t in e.terms) == pytest.approx(e.energy_per_request_j)
    assert set(e.to_json()["terms"]) == {t.name for t in extended.terms}


def test_the_interval_of_a_term_is_that_of_its_coefficient(model, case):
    e = explain(model, case)
    spread = np.sqrt(np.diag(model.pooled.covariance))
    overlapped = {k for pair in OVERLAPS for k in pair}
    for k, term in enumerate(e.terms):
        if term.total_j == 0:
            assert term.high_j == 0
            continue
        ratio = 1.2816 * spread[k] / model.pooled.theta[k]
        high = term.total_j * (1 + ratio)
        low = max(term.total_j * (1 - ratio), 0)
        if k in overlapped:  # less hidden by the other term, the larger it is
            assert term.high_j > high
            assert term.low_j <= low
        else:
            assert (term.low_j, term.high_j) == pytest.approx((low, high), abs=1e-12)


def test_one_token_more_costs_what_the_model_says(model, case):
    e = explain(model, case)
    more_in = replace(case, workload=replace(case.workload, input_tokens=501))
    more_out = replace(case, workload=replace(case.workload, output_tokens=301))
    assert e.input_token_j == pytest.approx(predicted(model, more_in) - predicted(model, case))
    assert e.output_token_j == pytest.approx(predicted(model, more_out) - predicted(model, case))
    assert 0 < e.input_token_j < e.output_token_j


@pytest.mark.parametrize(
    ("what", "other"),
    [
        ("double the batch", {"batch_size": 32}),
        ("half the tensor parallelism", {"tensor_parallel": 1}),
        ("half the pipeline parallelism", {"pipeline_parallel": 2}),
    ],
)
def test_a_change_costs_what_the_model_says_of_the_changed_case(model, case, what, other):
    case = laid_out(case, pipeline_parallel=4)
    e = explain(model, case)
    found = change(e, what)
    assert found.energy_per_request_j == pytest.approx(predicted(model, laid_out(case, **other)))
    assert found.difference_j == pytest.approx(found.energy_per_request_j - e.energy_per_request_j)


def test_an_observed_batch_doubles_with_its_limit(model, case):
    busy = laid_out(case, mean_batch_size=12.0)
    found = change(explain(model, busy), "double the batch")
    doubled = laid_out(case, batch_size=32, mean_batch_size=24.0)
    assert found.energy_per_request_j == pytest.approx(predicted(model, doubled))


def test_only_changes_that_exist_are_offered(model, case):
    single = laid_out(case, tensor_parallel=1)
    assert [c.what for c in explain(model, single).changes] == ["double the batch"]
    odd = laid_out(case, tensor_parallel=1, pipeline_parallel=3)
    assert change(explain(model, odd), "half the pipeline parallelism") is None


def test_expert_parallelism_shrinks_with_the_gpus_it_spreads_over(model, case):
    moe = replace(
        laid_out(case, tensor_parallel=4, expert_parallel=4), llm=catalog.llm("Qwen/Qwen3-30B-A3B")
    )
    found = change(explain(model, moe), "half the tensor parallelism")
    halved = laid_out(moe, tensor_parallel=2, expert_parallel=2)
    assert found.energy_per_request_j == pytest.approx(predicted(model, halved))
    assert found.feasible


# --------------------------------------------------------------------------------- in words


def test_the_sentences_say_what_the_numbers_say(model, case):
    case = laid_out(case, pipeline_parallel=2)
    e = explain(model, case)
    text = " ".join(e.sentences)
    assert f"A request costs {joules(e.energy_per_request_j)}" in text
    assert f"{percent(e.prefill_j / e.energy_per_request_j, 0)} in prefill" in text
    largest = max(e.terms, key=lambda t: t.total_j)
    assert f"The largest parts are {SUBJECTS[largest.name]}" in text
    assert "With tensor parallelism of 2, sending activations" in text
    assert "With pipeline parallelism of 2, waiting for other" in text
    halved = change(e, "half the tensor parallelism")
    assert SUBJECTS[halved.mostly] in next(t for t in e.sentences if t.startswith("With tensor"))
    assert f"one more of output {joules(e.output_token_j)}" in text
    doubled = change(e, "double the batch")
    verb = "save" if doubled.difference_j < 0 else "cost another"
    assert f"Twice the batch would {verb} {joules(abs(doubled.difference_j))}" in text
    assert all(re.fullmatch(r"[A-Z].*[^.]\.", sentence) for sentence in e.sentences)


def test_factors_and_the_rows_behind_a_number_are_told(draw_cases, make_dataset, case):
    rows = draw_cases(80, precisions=("bf16", "fp8"))
    dearer = np.where([row.precision.id == "fp8" for row in rows], 1.4, 1.0)
    base = make_dataset(rows, theta=np.ones(12), noise_ratio=0.02)
    data = replace(base, energy_per_request_j=base.energy_per_request_j * dearer)
    fitted_to_few = fit(data)
    asked = replace(rows[0], precision=catalog.precision("fp8"))
    e = explain(fitted_to_few, asked)
    logs, _ = fitted_to_few.pooled.factors.logs(Cases.of([asked]))
    together = np.prod(list(e.factors.values()))
    assert together == pytest.approx(np.exp(logs[0]), rel=0.02)
    text = " ".join(e.sentences)
    for name, ratio in e.factors.items():
        assert f"{name} x{ratio:.2f}" in text
    assert "It rests on 80 measured rows of" in text
    assert explain(from_datasheet(), asked).factors == {}
    assert "It rests on" not in " ".join(explain(from_datasheet(), asked).sentences)


def test_one_gpu_is_not_told_what_its_parallelism_costs(model, case):
    text = " ".join(explain(model, laid_out(case, tensor_parallel=1)).sentences)
    assert "parallelism" not in text


def test_a_change_that_does_not_fit_says_why(model, case):
    large = replace(laid_out(case, batch_size=128), llm=catalog.llm("meta-llama/Llama-3.1-70B"))
    e = explain(model, large)
    half = change(e, "half the tensor parallelism")
    assert not half.feasible
    assert "weights take" in half.reason
    assert "half the degree is not possible: weights take" in " ".join(e.sentences)
    larger = explain(model, laid_out(large, tensor_parallel=1))
    assert not change(larger, "double the batch").feasible
    assert "Twice the batch does not fit: weights take" in " ".join(larger.sentences)
    assert any(note.startswith("Weights take") for note in larger.notes)


def test_a_batch_limit_beyond_memory_runs_at_what_memory_holds(model, case):
    case = laid_out(case, tensor_parallel=1)
    room = memory(case).largest_batch
    assert 32 < room < 64  # or the test shows nothing
    waiting, held = (
        laid_out(case, batch_size=64),
        laid_out(case, batch_size=64, mean_batch_size=room),
    )
    e = explain(model, waiting)
    assert e.energy_per_request_j == pytest.approx(predicted(model, held), rel=0.02)
    said = f"B64 is a limit: memory holds about {room:.0f} sequences, at which it runs"
    assert said in " ".join(e.sentences)
    assert not any("sequences" in note for note in e.notes)


def test_what_a_change_does_is_told_by_the_rule_of_the_ranking(model, case):
    case = laid_out(case, tensor_parallel=1, batch_size=32)
    scenario = Scenario(
        llm=case.llm,
        gpu=case.gpu,
        precision=case.precision,
        workload=case.workload,
        configuration=case.configuration,
    )
    ranking = select(model, scenario, choose=["batch_size"])
    by_batch = {
        entry.configuration.batch_size: entry.energy_per_request_j for entry in ranking.entries()
    }
    doubled = change(explain(model, case), "double the batch")
    assert doubled.feasible
    assert doubled.energy_per_request_j == pytest.approx(by_batch[64.0])
    assert "sequences at once: memory holds no more" in explain(model, case).sentences[-1]
    again = explain(model, laid_out(case, batch_size=64))
    assert by_batch[128.0] == pytest.approx(by_batch[64.0], rel=0.03)
    assert not change(again, "double the batch").feasible
    assert "Twice the batch would change nothing: memory holds" in again.sentences[-1]
    two = explain(model, laid_out(case, tensor_parallel=2, batch_size=64))
    half = change(two, "half the tensor parallelism")
    assert half.feasible
    assert half.energy_per_request_j == pytest.approx(by_batch[64.0])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0 J"),
        (0.01234, "12.3 mJ"),
        (0.9, "900 mJ"),
        (1.0, "1 J"),
        (161.4, "161 J"),
        (999.4, "999 J"),
        (999.6, "1 kJ"),
        (12_345.0, "12.3 kJ"),
        (2e6, "2 MJ"),
        (-2.5, "-2.5 J"),
    ],
)
def test_joules_are_written_with_three_digits_and_a_fitting_unit(value, text):
    assert joules(value) == text


def test_joules_are_never_written_as_powers_of_ten():
    for value in np.geomspace(1e-2, 9e8, 500):
        assert "e" not in joules(float(value)), value


# ------------------------------------------------------------------------------------ scope


def test_a_case_like_the_rows_has_no_notes(model, case):
    assert scope_notes(model, case) == ()


def test_what_no_row_has_is_noted(model, case):
    other = replace(
        case,
        llm=catalog.llm("Qwen/Qwen3-14B"),
        gpu=catalog.gpu("L40S"),
        precision=catalog.precision("int8"),
    )
    notes = scope_notes(model, other)
    assert notes == (
        "No row of the fit has the LLM Qwen/Qwen3-14B.",
        "No row of the fit has the GPU L40S.",
        "No row of the fit has the precision int8, and the interval does not allow for that.",
    )


@pytest.mark.parametrize(
    ("configuration", "workload", "column"),
    [
        ({"tensor_parallel": 8}, {}, "tensor_parallel = 8"),
        ({"pipeline_parallel": 8}, {}, "pipeline_parallel = 8"),
        ({"batch_size": 4096}, {}, "batch_size = 4096"),
        ({}, {"input_tokens": 2}, "input_tokens = 2"),
        ({}, {"output_tokens": 3e4}, "output_tokens = 30000"),
    ],
)
def test_values_outside_the_fitted_range_are_noted(model, case, configuration, workload, column):
    outside = replace(laid_out(case, **configuration), workload=replace(case.workload, **workload))
    low, high = model.scope.ranges[column.split(" ")[0]]
    assert scope_notes(model, outside) == (
        f"{column} lies outside the fitted {low:g} to {high:g}.",
    )


def test_the_datasheet_has_seen_nothing(case):
    (note,) = scope_notes(from_datasheet(), case)
    assert note.startswith("No measurement stands behind this, only the datasheet of the GPU")


def test_rows_that_are_no_measurements_are_noted(model, case):
    mixed = replace(model, sources={"measured": 30, "simulated": 50})
    (note,) = scope_notes(mixed, case)
    assert note.startswith("50 of 80 rows of the fit are simulated: nothing here is a claim")


# ------------------------------------------------------------------------------------- rest


def test_images_and_idle_gpus_get_their_share(model):
    vlm = Case(
        llm=catalog.llm("Qwen/Qwen3-VL-8B-Instruct"),
        gpu=catalog.gpu("H100"),
        precision=catalog.precision("bf16"),
        workload=Workload(
            input_tokens=1500,
            output_tokens=100,
            vision_tokens=1024,
            images=1,
            modality=Modality.IMAGE,
        ),
        configuration=Configuration(batch_size=8),
        boundary=Boundary.NODE,
        node_gpus=8,
    )
    shares = {t.name: t for t in explain(model, vlm).terms}
    assert shares["vision"].prefill_j > 0
    assert shares["vision"].decode_j == 0
    assert shares["idle_gpus"].total_j > 0


def test_a_case_is_named_in_one_line(case):
    assert describe(case) == (
        "Qwen/Qwen3-32B bf16 on 2 x H100-SXM-80GB, TP2 PP1 B16, 500 tokens in, 300 out"
    )


def test_an_explanation_is_plain_json(model, case):
    document = explain(model, case).to_json()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["interval_80_j"][0] < document["energy_per_request_j"]
    assert set(document["terms"]) == set(NAMES)
    parts = sum(t["prefill_j"] + t["decode_j"] for t in document["terms"].values())
    assert parts == pytest.approx(document["energy_per_request_j"])


def test_a_coefficient_at_its_bound_shows_no_joules_and_how_many_it_may_be(model, case):
    zero = model.pooled.theta.copy()
    zero[NAMES.index("decode_cache")] = 0.0
    fields = {name: getattr(model.pooled, name) for name in Coefficients.__dataclass_fields__}
    bounded = replace(model, pooled=Coefficients(**(fields | {"theta": zero})))
    share = explain(bounded, case).terms[NAMES.index("decode_cache")]
    assert (share.total_j, share.low_j) == (0, 0)
    k = NAMES.index("decode_cache")
    spread = np.sqrt(model.pooled.covariance[k, k])
    factor = np.exp(model.pooled.factors.logs(Cases.of([case]))[0][0])
    high = factor * 1.2816 * spread * design(Cases.of([case]))[0, k]
    assert share.high_j == pytest.approx(high)


def test_communication_that_the_rows_do_not_show_is_not_said_to_cost_nothing(model, case):
    zero = model.pooled.theta.copy()
    zero[NAMES.index("tensor_parallel")] = 0.0
    bounded = replace(model, pooled=replace(model.pooled, theta=zero))
    text = " ".join(explain(bounded, case).sentences)
    assert "shows in none of the rows (at most" in text
    assert "which does not say that it costs nothing" in text
    assert "shows in none of the rows" not in " ".join(explain(model, case).sentences)


def test_factors_may_bring_a_coefficient_below_what_hardware_needs():
    theta = np.array([term.lower_bound * 1.2 for term in TERMS])
    assert not physics_flags(theta, TERMS)
    assert not physics_flags(theta, TERMS, 1.5)
    flags = physics_flags(theta, TERMS, 0.8)
    assert set(flags) == {term.name for term in TERMS if term.lower_bound > 0}
    assert "(with the factors of this LLM) is 0.67 of what" in flags["prefill_compute"]


def test_the_terms_of_an_engine_version_have_the_intervals_of_its_own_coefficients(model, case):
    spread = np.sqrt(np.diag(model.pooled.covariance))
    own = replace(model.pooled, theta=2.0 * model.pooled.theta)
    engine = Engine(name="vllm", version="2")
    told = replace(model, per=("engine",), groups={engine.id: own})
    k = NAMES.index("decode_cache")
    share = explain(told, replace(case, engine=engine)).terms[k]
    plain = explain(model, case).terms[k]
    assert share.total_j == pytest.approx(2 * plain.total_j)
    ratio = 1.2816 * spread[k] / own.theta[k]
    assert share.high_j == pytest.approx(share.total_j * (1 + ratio))


def test_a_cap_is_named_in_the_case_and_noted_where_the_model_knows_none(model, case):
    capped = replace(case, configuration=replace(case.configuration, power_cap_w=400.0))
    explained = explain(model, capped)
    assert "TP2 PP1 B16 400W" in explained.case
    assert any("the cap is ignored" in note for note in explained.notes)
    assert explained.energy_per_request_j == explain(model, case).energy_per_request_j


def test_a_model_that_knows_caps_says_what_they_leave(draw_cases, make_dataset, case):
    cases = Cases.of(draw_cases(80))
    caps = np.where(np.arange(80) % 2, np.nan, 350.0)
    data = make_dataset(cases.replace(power_cap_w=caps), theta=np.ones(14), extend=("power_cap",))
    model = fit(data, FitOptions(extend=("power_cap",)))
    capped = replace(case, configuration=replace(case.configuration, power_cap_w=350.0))
    explained = explain(model, capped)
    assert not any("power" in note for note in explained.notes)
    shares = {t.name: t.total_j for t in explained.terms}
    assert shares["capped_headroom"] > 0
    assert sum(shares.values()) == pytest.approx(explained.energy_per_request_j)
    deeper = replace(case, configuration=replace(case.configuration, power_cap_w=200.0))
    assert any("power_cap_w = 200 lies outside" in n for n in explain(model, deeper).notes)


def test_lengths_that_were_assumed_are_repeated_to_whoever_uses_the_fit() -> None:
    model = replace(from_datasheet(), pooled=replace(from_datasheet().pooled, rows=40))
    model = replace(model, sources={"published": 40}, options={"assumed_rows": "30"})
    case = Case(
        llm=catalog.llm("Qwen/Qwen3-8B"),
        gpu=catalog.gpu("H100"),
        precision=catalog.precision("bf16"),
        workload=Workload(input_tokens=100, output_tokens=100),
        configuration=Configuration(batch_size=8),
    )
    said = " ".join(scope_notes(model, case))
    assert "30 of 40 rows of the fit rest on a prompt length that was assumed" in said
    told = replace(model, options={"assumed_rows": ""})
    assert "assumed" not in " ".join(scope_notes(told, case))


def test_how_well_rows_determine_a_coefficient_is_said_in_one_place():
    fitted = from_datasheet().pooled
    theta, wide = np.ones(12), np.full(12, 0.01)
    theta[0], wide[1] = 0.0, 0.5
    coefficients = replace(fitted, theta=theta, covariance=np.diag(wide**2))
    told = coefficients.determined(from_datasheet().terms, {"vision": "images"})
    named = dict(zip((t.name for t in from_datasheet().terms), told, strict=True))
    assert told[:2] == ["at bound", "loosely"]
    assert named["vision"] == "no"
    assert named["decode_weights"] == "yes"
    low, high = coefficients.interval_80()
    assert low[1] == pytest.approx(1 - 1.2816 * 0.5)
    assert high[1] == pytest.approx(1 + 1.2816 * 0.5)
    assert low[0] == 0.0
