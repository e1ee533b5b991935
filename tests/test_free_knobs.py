"""Which knobs a question under load leaves free, and what is said of what was chosen among."""

from __future__ import annotations

import json

import numpy as np
import pytest

import energylens as el
from energylens import packaged
from energylens.answering import query
from energylens.cli import main
from energylens.decision_words import binding
from energylens.schemas import DecisionFile
from energylens.solving import Engine

ASKED = (
    "select", "--llm", "Qwen/Qwen3-8B", "--gpu", "H100", "--rate", "20",
    "--input-tokens", "1000", "--output-tokens", "200",
)  # fmt: skip


def answer(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> dict:
    assert main([*ASKED, *words, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_one_more_free_knob_takes_no_more_joules(capsys):
    plain = answer(capsys, "--choose", "parallelism,data_parallel,batch_size")
    named = answer(capsys, "--choose", "parallelism,data_parallel,power_cap", "--power-caps", "700")
    best, capped = plain["configurations"][0], named["configurations"][0]
    assert capped["batch_size"] == best["batch_size"] > 32
    assert capped["energy_per_request_j"] == pytest.approx(best["energy_per_request_j"], rel=1e-3)
    fixed = answer(capsys, "--choose", "parallelism", "--batch-size", "64")
    assert {found["batch_size"] for found in fixed["configurations"]} == {64}


def test_a_degree_that_is_given_is_fixed_and_the_rest_stays_free(capsys):
    made = answer(capsys, "--tensor-parallel", "4")
    found = made["configurations"]
    assert {each["tensor_parallel"] for each in found} == {4}
    assert (
        len({each["batch_size"] for each in found} | {each["data_parallel"] for each in found}) > 1
    )
    all_fixed = ("--tensor-parallel", "4", "--pipeline-parallel", "1", "--data-parallel", "2")
    made = answer(capsys, *all_fixed, "--batch-size", "64")
    (one,) = made["configurations"]
    assert (one["tensor_parallel"], one["data_parallel"]) == (4, 2)
    half = answer(capsys, *all_fixed[:2], *all_fixed[4:], "--batch-size", "64")
    limits = {each["batch_limit_per_replica"] for each in (one, *half["configurations"])}
    assert limits == {32}
    assert main([*ASKED, *all_fixed, "--batch-size", "64", "--batch-sizes", "8,16"]) == 2
    assert "--batch-sizes has no effect" in capsys.readouterr().err
    full = [*ASKED[:5], *ASKED[7:], "--tensor-parallel", "4", "--pipeline-parallel", "1"]
    assert main(full) == 2
    assert "nothing to choose" in capsys.readouterr().err
    gpus = [word for word in full if word not in ("--gpu", "H100")]
    assert main([*gpus, "--gpus", "H100,L40S"]) == 0


def test_nothing_that_meets_is_an_exit_code_with_json_too(capsys):
    made = answer(capsys, "--tpot", "1ms", code=4)
    assert made["configurations"] == []
    assert made["missed"]


def test_a_format_or_gpu_without_rows_is_said_where_it_is_chosen_among(capsys):
    free = ("--choose", "parallelism,precision", "--precisions", "bf16,int8")
    assert any("No row is of int8" in note for note in answer(capsys, *free)["notes"])
    document = DecisionFile.model_validate(
        {
            "serve": {"llm": "Qwen/Qwen3-8B", "gpu": "H100"},
            "load": {"rate_per_s": 20, "input_tokens": 1000, "output_tokens": 200},
            "choose": {
                "knobs": ["parallelism", "precision", "gpu"],
                "precisions": ["bf16", "int8"],
                "gpus": ["H100", "L40S"],
            },
        }
    )
    chosen, _ = packaged.for_gpu("H100-SXM-80GB")
    asked = query(document, Engine(chosen.model()), ())
    assert any("No row is of int8" in note for note in asked.notes)
    assert any("No row is of L40S" in note for note in asked.notes)
    assert "batch_size" in asked.choose


def test_the_command_lists_the_front_that_the_api_lists(capsys):
    assert len(answer(capsys)["front"]) > 1


def test_the_page_says_of_limits_what_the_command_says(capsys):
    chosen, _ = packaged.for_gpu("H100-SXM-80GB")
    document = DecisionFile.model_validate(
        {
            "serve": {"llm": "Qwen/Qwen3-8B", "gpu": "H100"},
            "load": {"rate_per_s": 20, "input_tokens": 1000, "output_tokens": 200},
            "limits": {"tpot": "20ms"},
        }
    )
    said = binding(query(document, Engine(chosen.model()), ()).decide())
    assert main([*ASKED, "--tpot", "20ms"]) == 0
    assert said in " ".join(capsys.readouterr().out.split())


def test_what_runs_today_in_a_format_that_engines_refuse_is_refused_for_that(capsys):
    v100 = ["select", "--llm", "Qwen/Qwen3-8B", "--gpu", "V100-SXM2-32GB", "--precision", "fp16"]
    today = "vllm serve Qwen/Qwen3-8B --dtype bfloat16 --max-num-seqs 64"
    lengths = ["--input-tokens", "1000", "--output-tokens", "200"]
    assert main([*v100, *lengths, "--rate", "1", "--current", today]) == 4
    assert "does not multiply bf16" in capsys.readouterr().err


def test_values_of_a_knob_may_be_an_array():
    found = el.select(
        "datasheet", llm="Qwen/Qwen3-8B", gpu="H100", input_tokens=500, output_tokens=300,
        choose=("batch_size",), batch_sizes=np.array([8.0, 16.0]),
    )  # fmt: skip
    assert set(found.cases.batch_size.tolist()) == {8.0, 16.0}
