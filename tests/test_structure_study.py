"""What docs/studies/structure-study.md states is what the study gave, and can be had again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from studies.structure.split import choosing

from energylens.formula import STRUCTURE
from test_results import data, needs_data

STATED = Path(__file__).resolve().parents[1] / "studies" / "structure" / "structure-study.json"
CHOOSING = ("v3 choosing", "v2 H100", "v2 A100", "Argonne", "code A100")


def stated() -> dict[str, Any]:
    """What the last run of the study gave."""
    read: dict[str, Any] = json.loads(STATED.read_text())
    return read


def cost(form: str, source: str, metric: str) -> float:
    """Points that a form loses against the law, by the results file; negative if it gains."""
    change = stated()[form][source][metric] - stated()[STRUCTURE][source][metric]
    return float(-100 * change if metric == "left_out_pairwise_ratio" else 100 * change)


def few(form: str, source: str) -> float:
    """Points of few-shot MAPE."""
    return cost(form, source, "few_shot_mape_ratio")


def left_out(form: str, source: str) -> float:
    """Points of MAPE with each architecture left out."""
    return cost(form, source, "left_out_mape_ratio")


def test_what_the_page_says_of_single_forms_is_in_the_results_file() -> None:
    v3, h100, a100, code = "v3 choosing", "v2 H100", "v2 A100", "code A100"
    figures = (
        (few("without prefill_compute", h100), 2.3),
        (few("without prefill_compute", a100), 2.7),
        (cost("without prefill_compute", "Argonne", "left_out_pairwise_ratio"), 3.2),
        (cost("without idle_gpus", "Argonne", "left_out_pairwise_ratio"), 9.5),
        (few("without decode_launch", v3), 1.1),
        (few("without vision", v3), 0.7),
        (left_out("without vision", v3), 1.9),
        (few("without narrow_weights", code), 0.8),
        (left_out("without narrow_weights", code), 1.4),
        (left_out("without narrow_weights", v3), -1.1),
        (few("without prefill_launch", a100), 0.5),
        (left_out("without prefill_launch", h100), -0.3),
        (few("without tensor_parallel", a100), 0.8),
        (left_out("without pipeline_parallel", a100), 0.7),
        (few("launch per layer", v3), 1.0),
        (few("sum", v3), -0.5),
        (left_out("sum", v3), 0.5),
        (few("link latency", h100), -0.5),
        (few("link latency and bytes", h100), -0.3),
        (left_out("link latency", h100), -0.9),
        (left_out("link latency and bytes", h100), -0.5),
    )
    for place, (points, said) in enumerate(figures):
        assert round(points, 1) == said, place


@needs_data
def test_three_text_backbones_lie_in_both_halves() -> None:
    v3 = data().v3
    chose = choosing(v3)
    text = [(llm.layers, llm.hidden_size, llm.family) for llm in v3.cases.llms]
    backbone = np.array([text.index(shape) for shape in text])[v3.cases.llm_index]
    both = np.intersect1d(backbone[chose], backbone[~chose])
    named = set(v3.llm_ids[chose & np.isin(backbone, both)])
    assert {llm.split("/")[1] for llm in named} == {
        "Qwen3-VL-30B-A3B-Instruct",
        "Qwen3-VL-8B-Instruct",
        "NVIDIA-Nemotron-Nano-12B-v2-VL-BF16",
    }
    assert (np.isin(backbone, both)[~chose].sum(), (~chose).sum()) == (90, 211)


@needs_data
def test_scenarios_turn_up_at_the_largest_batch_as_the_page_says() -> None:
    v3 = data().v3
    y, batch = v3.energy_per_request_j, v3.cases.batch_size
    rises = {}
    for llm, task, gpus in (
        ("meta-llama/Llama-3.1-8B-Instruct", "lm-arena-chat", 1),
        ("Qwen/Qwen3-32B", "lm-arena-chat", 2),
        ("openai/gpt-oss-20b", "gpqa", 1),
    ):
        rows = np.flatnonzero(
            (v3.llm_ids == llm) & (v3.task == task) & (v3.cases.tensor_parallel == gpus)
        )
        before, last = rows[np.argsort(batch[rows])][-2:]
        rises[llm] = (100 * (y[last] / y[before] - 1), v3.cases.mean_batch_size[last], batch[last])
    assert [round(float(rise), 1) for rise, _, _ in rises.values()] == [1.8, 0.7, 10.4]
    assert [round(float(mean)) for _, mean, _ in rises.values()] == [691, 340, 2047]
    assert [int(limit) for _, _, limit in rises.values()] == [768, 384, 2048]
