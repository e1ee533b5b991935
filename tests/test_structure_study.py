"""What docs/studies/structure-study.md states is what the study gave, and can be had again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from studies.structure import __main__ as study
from studies.structure.forms import variants
from studies.structure.split import choosing

from energylens.cases import Cases, FloatArray
from energylens.counts import count
from energylens.dataset import Dataset
from energylens.fitting import fit
from energylens.formula import (
    BANDWIDTH_RATIO,
    COMPUTE_RATIO,
    LAUNCH_S,
    NAMES,
    design,
    terms_of,
)
from test_results import data, needs_data

PAGE = Path(__file__).resolve().parents[1] / "docs" / "studies" / "structure-study.md"
CHOOSING = ("v3 choosing", "v2 H100", "v2 A100", "Argonne", "code A100")


def stated() -> dict[str, Any]:
    """What the last run of the study gave."""
    read: dict[str, Any] = json.loads(PAGE.with_suffix(".json").read_text())
    return read


def cost(form: str, source: str, metric: str) -> float:
    """Points that a form loses against the law, by the results file; negative if it gains."""
    change = stated()[form][source][metric] - stated()["2026.1"][source][metric]
    return float(-100 * change if metric == "left_out_pairwise_ratio" else 100 * change)


def few(form: str, source: str) -> float:
    """Points of few-shot MAPE."""
    return cost(form, source, "few_shot_mape_ratio")


def left_out(form: str, source: str) -> float:
    """Points of MAPE with each architecture left out."""
    return cost(form, source, "left_out_mape_ratio")


def test_every_form_has_results() -> None:
    assert list(stated()) == list(variants())


@needs_data
def test_a_form_gives_the_same_figures_again() -> None:
    dataset, choose = study.sources(data())["v2 H100"]
    for name in ("2026.1", "link latency"):
        again = study.judge(variants()[name], dataset, choose)
        assert again == pytest.approx(stated()[name]["v2 H100"], rel=1e-6), name


def test_as_many_terms_pay_as_the_page_says() -> None:
    worth = {
        name: max(
            cost(f"without {name}", source, metric)
            for source in CHOOSING
            for metric in stated()["2026.1"][source]
            if metric in {"few_shot_mape_ratio", "left_out_mape_ratio", "left_out_pairwise_ratio"}
        )
        for name in NAMES
    }
    page = PAGE.read_text()
    assert "Six of them" in page
    assert "Three more are worth 1 to 2 points" in page
    assert {name for name, points in worth.items() if points >= 2} == {
        *("decode_weights", "decode_cache", "decode_sequence", "decode_launch"),
        *("decode_compute", "idle_gpus"),
    }
    assert {name for name, points in worth.items() if 1 <= points < 2} == {
        *("prefill_compute", "vision", "prefill_weights"),
    }


def test_what_the_page_says_of_single_forms_is_in_the_results_file() -> None:
    v3, h100, a100, code = "v3 choosing", "v2 H100", "v2 A100", "code A100"
    figures = (
        (few("without prefill_compute", h100), 0.6),
        (few("without prefill_compute", "Argonne"), 1.3),
        (cost("without prefill_compute", "Argonne", "left_out_pairwise_ratio"), 1.6),
        (few("without vision", v3), 0.6),
        (left_out("without vision", v3), 1.6),
        (few("without prefill_weights", h100), 0.8),
        (left_out("without prefill_weights", h100), 1.2),
        (few("without prefill_weights", v3), -0.1),
        (left_out("without prefill_weights", v3), -0.2),
        (few("without prefill_launch", a100), 0.5),
        (left_out("without prefill_launch", h100), -0.4),
        (few("without tensor_parallel", a100), 0.7),
        (left_out("without tensor_parallel", v3), -0.3),
        (left_out("without pipeline_parallel", a100), 0.4),
        (few("sum", v3), -0.2),
        (left_out("sum", v3), 1.3),
        (few("sum", h100), 0.5),
        (left_out("sum", h100), 0.8),
        (few("link latency", h100), -0.6),
        (few("link latency and bytes", h100), -0.3),
        (left_out("link latency", h100), -1.1),
        (left_out("link latency and bytes", h100), -0.7),
        (few("+ narrow formats apart", v3), -0.1),
        (left_out("+ narrow formats apart", v3), 1.1),
        (few("+ narrow formats apart", code), -0.7),
        (left_out("+ narrow formats apart", code), -1.5),
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
def test_rows_that_the_law_misses_are_off_by_as_much_as_the_page_says() -> None:
    v3 = data().v3
    batch, chose = v3.cases.batch_size, choosing(v3)

    def has(name: str) -> Any:
        return np.array([name in llm for llm in v3.llm_ids])

    def between(ratio: FloatArray, which: Any) -> tuple[float, float]:
        return round(float(ratio[which].min()), 2), round(float(ratio[which].max()), 2)

    of_all, of_half = (
        v3.energy_per_request_j / fit(v3.take(rows)).predict_energy_j(v3.cases)
        for rows in (np.ones(len(v3), dtype=bool), chose)
    )
    large, fp8 = has("Qwen3-235B") | has("Qwen3-VL-235B"), v3.precision_ids == "fp8"
    narrow, full = large & fp8, batch == 512
    assert (narrow[~chose].sum(), narrow[chose].sum()) == (54, 0)
    assert between(of_all, narrow & (v3.modality == "text")) == (1.28, 2.12)
    assert between(of_all, narrow & (v3.modality == "text") & (batch >= 128)) == (1.28, 1.67)
    assert between(of_all, narrow & (v3.modality == "image") & ~full) == (1.32, 2.23)
    assert between(of_all, narrow & (v3.modality == "video") & ~full) == (1.43, 2.37)
    assert between(of_all, narrow & (v3.modality != "text") & full) == (0.60, 0.80)
    assert between(of_half, narrow) == (0.77, 2.89)
    assert between(of_all, large & ~fp8) == (0.77, 1.22)
    chat = has("Nemotron-Nano-12B-v2") & (v3.task == "lm-arena-chat")
    assert between(of_all, chat) == (1.01, 1.26)
    assert between(of_all, has("12B-v2-VL")) == (0.95, 1.18)


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


@needs_data
def test_pipelines_need_weights_read_once_per_microbatch() -> None:
    for gpu, rows, said in (("H100-SXM-80GB", 6, (8.3, 3.3)), ("A100-SXM-40GB", 11, (14.0, 6.9))):
        v2 = data().v2.take(data().v2.gpu_ids == gpu)
        stages, y = v2.cases.pipeline_parallel, v2.energy_per_request_j
        errors = {}
        for term in ("without pipeline_parallel", "2026.1"):
            for microbatches in (False, True):
                form = variants()[term]
                x = form.design(v2.cases).copy()
                if not microbatches:
                    x[:, NAMES.index("decode_weights")] /= stages
                off = np.abs(form.predict(x, form.fit(x, y)) / y - 1)[stages > 1]
                errors[term, microbatches] = round(100 * float(off.mean()), 1)
        assert (stages > 1).sum() == rows
        assert (errors["without pipeline_parallel", False], errors["2026.1", True]) == said
    assert errors["2026.1", False] == 5.6


# ------------------------------------------------------------------------------- power caps


def drawn_ratio(dataset: Dataset) -> FloatArray:
    """Measured mean power per GPU over its TDP."""
    tdp_w = dataset.cases.of_gpu(lambda gpu: gpu.tdp_w)
    ratio: FloatArray = dataset.cases.average_power_w / dataset.cases.occupied_gpus / tdp_w
    return ratio


def expected_draw_ratio(dataset: Dataset) -> tuple[FloatArray, list[FloatArray]]:
    """Draw over the TDP by the law of u: mean over the datasheet's time, and of each phase."""
    cases, n = dataset.cases, count(dataset.cases)
    bandwidth = BANDWIDTH_RATIO * cases.of_gpu(lambda gpu: gpu.memory_bandwidth_bytes_per_s)
    flop_per_s = COMPUTE_RATIO * cases.of_gpu(lambda gpu: gpu.bf16_flop_per_s)
    draws, times = [], []
    for passes, read_bytes, flop in (
        (n.passes, n.pass_weight_bytes, n.prefill_flop + n.vision_flop),
        (n.steps, n.step_weight_bytes + n.cache_bytes, n.decode_flop),
    ):
        reading_s, multiplying_s = read_bytes / bandwidth, flop / flop_per_s
        total_s = LAUNCH_S * n.gpus * n.kernels * passes + np.maximum(reading_s, multiplying_s)
        draws.append(np.minimum(0.4 + (0.3 * reading_s + 0.6 * multiplying_s) / total_s, 1.0))
        times.append(total_s)
    return np.average(draws, axis=0, weights=times), draws


@needs_data
def test_the_law_of_the_draw_meets_measured_power_as_well_as_the_page_says() -> None:
    expected, drawn = expected_draw_ratio(data().v3)[0], drawn_ratio(data().v3)
    assert (round(expected.mean(), 2), round(drawn.mean(), 2)) == (0.69, 0.72)
    assert round(np.abs(expected - drawn).mean(), 2) == 0.09
    assert round(np.corrcoef(expected, drawn)[0, 1], 2) == 0.65
    v2 = data().v2
    h100 = v2.gpu_ids == "H100-SXM-80GB"
    expected, drawn = expected_draw_ratio(v2)[0], drawn_ratio(v2)
    assert (round(expected.mean(), 2), round(drawn.mean(), 2)) == (0.89, 0.43)
    assert (round(expected[h100].mean(), 2), round(drawn[h100].mean(), 2)) == (0.88, 0.39)


def under(cases: Cases, ratio: float) -> Cases:
    return cases.replace(power_cap_w=ratio * cases.of_gpu(lambda gpu: gpu.tdp_w))


@needs_data
def test_caps_that_are_not_reached_move_joules_by_as_much_as_the_page_says() -> None:
    v2 = data().v2
    for dataset in (v2.take(v2.gpu_ids == "H100-SXM-80GB"), data().v3):
        fitted = fit(dataset)
        size = len(NAMES) + 2
        capped = replace(
            fitted,
            pooled=replace(
                fitted.pooled,
                theta=np.append(fitted.pooled.theta, [1.0, 1.0]),
                covariance=np.zeros((size, size)),
            ),
            extensions=("power_cap",),
        )
        left = {
            p: capped.predict_energy_j(under(dataset.cases, p))
            / capped.predict_energy_j(dataset.cases)
            for p in (0.9, 0.8, 0.7)
        }
        if dataset is data().v3:
            assert round(100 * float((left[0.7] > 1.02).mean())) == 15
        else:
            slack = {p: drawn_ratio(dataset) < p - 0.1 for p in left}
            fall = [100 * (1 - np.median(ratio[slack[p]])) for p, ratio in left.items()]
            assert [round(float(points)) for points in fall] == [6, 15, 24]
            # With the fitted joules of each phase in the place of the datasheet's.
            parts = [part.sum(axis=1) for part in fitted.predict_parts_j(dataset.cases)]
            draws = expected_draw_ratio(dataset)[1]
            fall = []
            for p, slack_rows in slack.items():
                slowed_j = design(under(dataset.cases, p), terms_of(("power_cap",)))[:, -1]
                held = [np.minimum(1.0, p / u) * e for u, e in zip(draws, parts, strict=True)]
                ratio = (sum(held) + slowed_j) / sum(parts)
                fall.append(100 * (1 - np.median(ratio[slack_rows])))
            assert [round(float(points)) for points in fall] == [4, 13, 23]
