from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from energylens import capacity, catalog
from energylens.errors import (
    ArtefactError,
    EnergyLensError,
    InputError,
    UnknownNameError,
    UsageError,
)
from energylens.instrument import planfile, planning
from energylens.instrument.engine import Media
from energylens.instrument.engines import ENGINES
from energylens.instrument.plan import Mode, Plan, PlannedCase, Procedure, layout_of
from energylens.instrument.planning import Space
from energylens.records import Boundary, Llm
from instrument_fakes import planned

SMALL, LARGE, VISION = "Qwen/Qwen2.5-0.5B", "meta-llama/Llama-3.1-70B", "Qwen/Qwen3-VL-8B-Instruct"


def space(**changes: Any) -> Space:
    return replace(Space(llms=(SMALL,), gpus=("H100-SXM",), engine="vllm"), **changes)


def halved(llm: Llm, layers: int) -> Llm:
    return replace(llm, id=f"{llm.id} ({layers} layers)", layers=layers)


# ------------------------------------------------------------------------------- grid and sample


def test_a_grid_has_every_feasible_combination_and_counts_the_others() -> None:
    draft = planning.plan(
        space(llms=(SMALL, LARGE), tensor_parallel=(1, 2, 4), batch_sizes=(1, 8)), gpus=2
    )
    cases = {(c.case.llm.id, c.gpus, c.case.configuration.batch_size) for c in draft.plan.cases}
    assert (SMALL, 2, 8.0) in cases
    assert not any(gpus > 2 for _, gpus, _ in cases)
    assert not any(llm == LARGE and gpus == 1 for llm, gpus, _ in cases)
    assert draft.skipped["needs more than the 2 GPUs there are"] == 8
    assert draft.skipped["does not fit in memory"] >= 4
    assert draft.feasible == len(draft.plan.cases)
    assert draft.feasible + sum(draft.skipped.values()) == 2 * 3 * 2 * 2


def test_media_need_a_vision_tower() -> None:
    media = (Media(), Media(images=1, image_pixels=(448, 448)))
    draft = planning.plan(space(llms=(SMALL, VISION), media=media, batch_sizes=(1,)))
    assert draft.skipped == {"the LLM has no vision tower": 2}
    pictured = [c for c in draft.plan.cases if c.media.images]
    assert all(c.case.workload.vision_tokens > 0 for c in pictured)


def test_a_format_of_experts_needs_experts() -> None:
    with pytest.raises(UsageError, match="mxfp4 is a format of experts, and the LLM has none"):
        planning.plan(space(llms=(SMALL,), precisions=("mxfp4",)))


def test_nothing_feasible_is_an_error_that_says_why() -> None:
    with pytest.raises(UsageError, match="does not fit in memory"):
        planning.plan(space(llms=(LARGE,)))


def test_the_same_seed_gives_the_same_order_and_another_seed_another() -> None:
    wide = space(batch_sizes=(1, 2, 4, 8, 16, 32))
    orders = [[c.key for c in planning.plan(wide, seed=seed).plan.cases] for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2])
    given_order = planning.plan(wide, order="given").plan.cases
    assert [c.case.configuration.batch_size for c in given_order[:6]] == [1, 2, 4, 8, 16, 32]


def test_layouts_stay_together_whatever_the_order() -> None:
    cases = planning.plan(space(tensor_parallel=(1, 2), batch_sizes=(1, 2, 4))).plan.cases
    layouts = [c.layout_key for c in cases]
    changes = sum(a != b for a, b in itertools.pairwise(layouts))
    assert changes == 1


def test_a_layout_is_weighed_once_however_many_cases_share_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Weighing each case anew made a plan of 10,000 cases take many times as long.
    weighed = []

    def rules(llm: Llm, precision: Any, degrees: Any) -> Any:
        weighed.append(float(degrees.tensor))
        return capacity_rules(llm, precision, degrees)

    capacity_rules = capacity._rules
    capacity._layout_problem.cache_clear()
    monkeypatch.setattr(capacity, "_rules", rules)
    wide = space(tensor_parallel=(1, 2, 3), batch_sizes=(1, 2, 4), input_tokens=(128, 256, 512))
    draft = planning.plan(wide)
    why = f"tensor parallel 3 does not divide the 14 attention heads of {SMALL}"
    assert draft.feasible == 18
    assert draft.skipped == {f"the LLM cannot be laid out so: {why}": 9}
    assert sorted(weighed) == [1.0, 2.0, 3.0]


def test_interleaved_repeats_come_round_by_round() -> None:
    draft = planning.plan(space(batch_sizes=(1, 2, 4)), repeats=3, order="interleaved")
    repeats = [c.repeat for c in draft.plan.cases]
    assert repeats == sorted(repeats)
    assert Counter(repeats) == {0: 6, 1: 6, 2: 6}
    assert len({c.key for c in draft.plan.cases}) == 18


def test_a_spread_sample_keeps_to_its_budget_and_covers_the_corners() -> None:
    wide = space(
        tensor_parallel=(1, 2),
        batch_sizes=(1, 2, 4, 8, 16, 32, 64, 128),
        input_tokens=(128, 256, 512, 1024, 2048),
    )
    draft = planning.plan(wide, design="spread", budget_cases=12, seed=3)
    cases = draft.plan.cases
    assert len(cases) == 12
    batches = {c.case.configuration.batch_size for c in cases}
    assert {1.0, 128.0} <= batches
    assert {c.gpus for c in cases} == {1, 2}
    assert {c.case.workload.input_tokens for c in cases} >= {128, 2048}


def test_a_budget_of_minutes_is_kept() -> None:
    wide = space(batch_sizes=(1, 2, 4, 8, 16, 32, 64, 128))
    draft = planning.plan(wide, design="spread", budget_minutes=5.0)
    assert 0 < draft.minutes <= 5.0
    assert len(draft.plan.cases) < draft.feasible
    with pytest.raises(UsageError, match="not one case fits"):
        planning.plan(wide, design="spread", budget_minutes=0.1)


def test_a_grid_over_its_budget_is_an_error() -> None:
    with pytest.raises(UsageError, match="--design spread"):
        planning.plan(space(), budget_cases=2)
    with pytest.raises(UsageError, match="--design spread"):
        planning.plan(space(), budget_minutes=0.5)


@pytest.mark.parametrize(
    "wrong", [{"design": "random"}, {"order": "none"}, {"repeats": 0}, {"design": "spread"}]
)
def test_arguments_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        planning.plan(space(), **wrong)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_option_that_the_engine_lacks_is_refused_before_it_is_started(
    engine: str, tmp_path: Path
) -> None:
    refused = f"the {engine} engine has no option 'foo': known are "
    with pytest.raises(UsageError, match=refused):
        planning.plan(space(engine=engine, options={"foo": "1"}))
    path = tmp_path / "plan.jsonl"
    path.write_text(HEADER + json.dumps(LINE | {"engine": engine, "options": {"foo": "1"}}))
    with pytest.raises(ArtefactError, match=f"case 1: {refused}"):
        planfile.read_plan(path)


def test_scaling_needs_to_be_given_and_is_marked() -> None:
    with pytest.raises(UsageError, match="scaled"):
        planning.plan(space(scaled_layers=2))
    made = planning.plan(space(scaled_layers=2), scale=halved).plan
    assert made.cases[0].case.llm.layers == 2
    assert made.cases[0].scaled_layers == 2
    assert [llm.id for llm in planning.llms_beyond_catalog(made)] == [f"{SMALL} (2 layers)"]


def test_an_llm_is_cut_down_and_never_stretched() -> None:
    layers = catalog.llm(SMALL).layers
    whole = planning.plan(space(scaled_layers=layers), scale=halved).plan
    assert whole.cases[0].case.llm == catalog.llm(SMALL)
    with pytest.raises(UsageError, match=f"has {layers}, not {layers + 1}"):
        planning.plan(space(scaled_layers=layers + 1), scale=halved)


@pytest.mark.parametrize("budget", [{"budget_cases": 0}, {"budget_minutes": -1.0}])
def test_a_budget_must_be_above_zero(budget: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="must be above 0"):
        planning.plan(space(), **budget)


def test_an_engine_is_started_for_the_largest_of_its_cases() -> None:
    cases = planning.plan(space(batch_sizes=(1, 64), input_tokens=(128, 4096))).plan.cases
    layout = layout_of(cases)
    assert (layout.max_sequences, layout.max_sequence_tokens) == (64, 4096 + 128)


# ----------------------------------------------------------------------------------- LLM by path


CONFIG = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
}


@pytest.mark.parametrize("form", ["folder", "file"])
def test_an_llm_can_be_a_folder_or_a_config(tmp_path: Path, form: str) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    path = folder if form == "folder" else folder / "config.json"
    made = planning.plan(space(llms=(str(path),), batch_sizes=(1,))).plan
    assert made.cases[0].case.llm.id == "tiny"
    assert made.cases[0].model_path == str(path)
    planfile.write_plan(tmp_path / "plan.jsonl", made)
    assert planfile.read_plan(tmp_path / "plan.jsonl") == made


def test_an_unknown_llm_gets_suggestions() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean"):
        planning.plan(space(llms=("Qwen/Qwen2.5-0.5C",)))


# -------------------------------------------------------------------------------------- the file


VARIANTS = st.builds(
    planned,
    batch_size=st.integers(1, 64),
    input_tokens=st.integers(1, 4096),
    output_tokens=st.integers(1, 512),
    tensor_parallel=st.sampled_from([1, 2]),
    pipeline_parallel=st.sampled_from([1, 2]),
    llm=st.sampled_from([SMALL, VISION]),
    mode=st.sampled_from([Mode.PHASES, Mode.STEADY]),
    step_tokens=st.sampled_from([None, 8192]),
    weights=st.sampled_from(["dummy", "auto", "/w"]),
    shard=st.sampled_from([None, (2, 2)]),
    options=st.sampled_from([{}, {"url": "http://h:1"}]),
    seed=st.integers(0, 3),
    repeat=st.integers(0, 3),
    boundary=st.sampled_from([Boundary.ACTIVE_GPUS]),
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    cases=st.lists(VARIANTS, min_size=1, max_size=5, unique_by=lambda c: c.key),
    procedure=st.builds(
        Procedure,
        min_windows=st.integers(2, 3),
        min_window_s=st.floats(0.1, 5.0),
        whole=st.booleans(),
        cool_below_c=st.sampled_from([None, 50.0]),
    ),
)
def test_a_plan_reads_back_as_it_was_written(
    tmp_path: Path, cases: list[PlannedCase], procedure: Procedure
) -> None:
    made = Plan(cases=tuple(cases), procedure=procedure, seed=7)
    path = tmp_path / "plan.jsonl"
    planfile.write_plan(path, made)
    read = planfile.read_plan(path)
    assert [c.key for c in read.cases] == [c.key for c in made.cases]
    assert read == made


def test_media_steady_rates_and_scaled_llms_survive_the_file(tmp_path: Path) -> None:
    media = Media(images=1, image_pixels=(448, 224), frames=8, frame_pixels=(224, 224))
    llm = halved(catalog.llm(SMALL), 2)
    scaled = planned(scaled_layers=2)
    made = Plan(
        cases=(
            replace(
                planning.plan(space(llms=(VISION,), media=(media,), batch_sizes=(1,))).plan.cases[0]
            ),
            planned(mode=Mode.STEADY, request_rate_per_s=2.5),
            replace(scaled, case=replace(scaled.case, llm=llm)),
        )
    )
    path = tmp_path / "plan.jsonl"
    planfile.write_plan(path, made)
    assert planfile.read_plan(path, scale=halved) == made


def test_a_plan_is_lines_that_a_person_can_edit(tmp_path: Path) -> None:
    path = tmp_path / "plan.jsonl"
    planfile.write_plan(path, Plan(cases=(planned(),)))
    header, line = path.read_text().splitlines()
    assert json.loads(header) == {"energylens_plan": 1, "seed": 0}
    assert line.startswith('{"llm": "Qwen/Qwen2.5-0.5B", "gpu": "H100-SXM-80GB"')
    path.write_text(header + "\n" + line.replace('"batch_size": 4', '"batch_size": 32') + "\n")
    assert planfile.read_plan(path).cases[0].case.configuration.batch_size == 32


HEADER = '{"energylens_plan": 1}\n'
LINE = json.loads(
    '{"llm": "Qwen/Qwen2.5-0.5B", "gpu": "H100", "engine": "fake", "batch_size": 4, '
    '"input_tokens": 10, "output_tokens": 5}'
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "header of a plan"),
        ("[]\n", "header of a plan"),
        (json.dumps(LINE) + "\n", "header of a plan"),
        ('{"energylens_plan": 99}\n', "version 99"),
        (HEADER, "no cases"),
        ('{"energylens_plan": 1, "x": 1}\n', "unknown key 'x'"),
        ('{"energylens_plan": 1, "seed": "a"}\n' + json.dumps(LINE), "seed"),
        ('{"energylens_plan": 1, "procedure": {"windows": 3}}\n' + json.dumps(LINE), "windows"),
        ('{"energylens_plan": 1, "procedure": {"idle_s": "x"}}\n' + json.dumps(LINE), "idle_s"),
        ('{"energylens_plan": 1, "procedure": 3}\n' + json.dumps(LINE), "object"),
        (HEADER + "3\n", "case 1"),
        (HEADER + json.dumps(LINE | {"batchsize": 4}), "unknown key 'batchsize'"),
        (HEADER + json.dumps(LINE | {"batch_size": "4"}), "batch_size must be a number, not '4'"),
        (HEADER + json.dumps(LINE | {"seed": 1.5}), "seed must be a whole number, not 1.5"),
        (HEADER + json.dumps(LINE | {"batch_size": True}), "batch_size must be"),
        (HEADER + json.dumps(LINE | {"batch_size": 0}), "batch_size"),
        (HEADER + json.dumps(LINE | {"batch_size": 1.5}), "whole number"),
        (HEADER + json.dumps(LINE | {"llm": "nobody/knows"}), "unknown LLM"),
        (HEADER + json.dumps(LINE | {"mode": "fast"}), "mode must be one of"),
        (HEADER + json.dumps(LINE | {"shard": [1]}), "two whole numbers"),
        (HEADER + json.dumps(LINE | {"images": 2}), "height and a width"),
        (HEADER + json.dumps(LINE | {"options": {"a": 1}}), "options must be text"),
        (HEADER + json.dumps({"llm": SMALL}), "it needs gpu"),
        (HEADER + json.dumps(LINE) + "\n" + json.dumps(LINE), "same as case 1"),
    ],
)
def test_a_plan_that_is_wrong_says_where(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "plan.jsonl"
    path.write_text(text)
    with pytest.raises(ArtefactError, match=words):
        planfile.read_plan(path)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_mutated_plan_is_read_or_refused_and_never_a_traceback(
    tmp_path: Path, data: st.DataObject
) -> None:
    path = tmp_path / "plan.jsonl"
    planfile.write_plan(path, Plan(cases=(planned(), planned(8, options={"a": "b"}))))
    text = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(text))
    try:
        made = planfile.read_plan(path)
    except EnergyLensError:
        return
    assert made.cases


# ------------------------------------------------------------------------------------- dry runs


def test_a_preview_says_what_fits_and_how_long_it_takes() -> None:
    made = Plan(cases=(planned(), planned(tensor_parallel=2), planned(llm=LARGE)))
    rows = planning.preview(made, gpus=1)
    assert rows[0].problem is None
    assert rows[1].problem == "needs more than the one GPU there is"
    assert rows[2].problem
    assert rows[2].memory_bytes > rows[2].available_bytes
    assert all(row.seconds > 0 for row in rows)


@given(st.sampled_from([1, 8, 64]), st.sampled_from([128, 2048]), st.sampled_from([2, 512]))
def test_more_work_is_never_estimated_shorter(batch: int, prompt: int, output: int) -> None:
    shorter = sum(planning.phase_seconds(planned(batch, prompt, output)))
    for more in (
        planned(batch * 2, prompt, output),
        planned(batch, prompt * 2, output),
        planned(batch, prompt, output * 2),
    ):
        assert sum(planning.phase_seconds(more)) >= shorter


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("Qwen/Qwen3-30B-A3B-FP8", "fp8-block"),
        ("meta-llama/Llama-3.1-8B-Instruct-FP8", "fp8"),
        ("deepseek-ai/DeepSeek-V3", "fp8-block"),
        ("Qwen/Qwen3-8B", "bf16"),
    ],
)
def test_a_plan_takes_the_format_that_the_name_or_the_checkpoint_states(
    name: str, precision: str
) -> None:
    degree = 2 if name.startswith("Qwen") else 8
    asked = planning.Space(llms=(name,), gpus=("H200",), engine="vllm", tensor_parallel=(degree,))
    made = planning.plan(asked).plan
    assert {case.case.precision.id for case in made.cases} == {precision}


def test_what_the_engine_is_told_of_its_memory_decides_what_can_be_planned() -> None:
    def room(**options: str) -> float:
        drafted = planning.plan(
            Space(llms=("Qwen/Qwen3-8B",), gpus=("H100",), engine="vllm", options=options)
        )
        return planning.memory_of(drafted.plan.cases[0]).largest_batch

    assert room(gpu_memory_utilization="0.95") > room() > room(gpu_memory_utilization="0.5")
    assert room(kv_cache_dtype="fp8") == pytest.approx(2 * room(), rel=0.05)
    with pytest.raises(InputError, match="gpu_memory_utilization must be a share"):
        room(gpu_memory_utilization="much")


def test_a_format_that_engines_refuse_on_a_gpu_is_not_planned() -> None:
    asked = Space(llms=("Qwen/Qwen3-8B",), gpus=("V100",), engine="vllm")
    with pytest.raises(EnergyLensError, match="serve it as fp16"):
        planning.plan(asked)
    assert planning.plan(replace(asked, precisions=("fp16",))).plan.cases
