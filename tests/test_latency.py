"""The time law: what physics says it must do, and what published rows say of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from energylens import catalog
from energylens.cases import Cases, FloatArray
from energylens.dataset import Dataset
from energylens.errors import FitError, UsageError
from energylens.importers import mlenergy_v2, mlenergy_v3
from energylens.latency import (
    TARGETS,
    TimeModel,
    design,
    from_datasheet,
    seconds,
    slopes,
    step_times,
)
from energylens.latency_fitting import fit_latency, observed_s
from energylens.latency_terms import EXPECTED, NAMES
from energylens.records import Case, Configuration, Engine, Workload

LLAMA, MIXTURE = "meta-llama/Llama-3.1-70B-Instruct", "Qwen/Qwen3-30B-A3B"


def case(
    llm: str = LLAMA,
    precision: str = "bf16",
    tokens: tuple[float, float] = (500, 300),
    engine: str = "",
    gpu: str = "H100",
    **configuration: float,
) -> Case:
    return Case(
        llm=catalog.llm(llm),
        gpu=catalog.gpu(gpu),
        precision=catalog.precision(precision),
        workload=Workload(input_tokens=tokens[0], output_tokens=tokens[1]),
        configuration=Configuration(**configuration),  # type: ignore[arg-type]
        engine=Engine(name=engine, version="1" if engine else ""),
    )


def cases(*rows: Case) -> Cases:
    return Cases.of(rows)


def tpot(*rows: Case) -> FloatArray:
    return from_datasheet().predict_s(cases(*rows), "tpot")


def test_batch_of_one_reads_the_weights_once_a_token() -> None:
    llm, gpu = catalog.llm(LLAMA), catalog.gpu("H100")
    one = cases(case(tensor_parallel=4, batch_size=1, tokens=(1, 1000)))
    read_s = 2 * llm.always_parameters / (4 * 0.8 * gpu.memory_bandwidth_bytes_per_s)
    reading = from_datasheet().predict_parts_s(one, "itl")[0, NAMES.index("step_weights")]
    assert reading == pytest.approx(read_s, rel=1e-3)


def test_replicas_do_not_change_a_step() -> None:
    one = case(tensor_parallel=2, batch_size=32, mean_batch_size=32)
    two = case(tensor_parallel=2, batch_size=64, mean_batch_size=64, data_parallel=2)
    for target in TARGETS:
        first, second = from_datasheet().predict_s(cases(one, two), target)
        assert first == pytest.approx(second, rel=1e-12)


def test_stages_shorten_no_step_at_batch_one_and_add_hops() -> None:
    alone, staged = tpot(
        case(tensor_parallel=2, batch_size=1, tokens=(1, 1000)),
        case(tensor_parallel=2, pipeline_parallel=2, batch_size=1, tokens=(1, 1000)),
    )
    assert staged == pytest.approx(alone + 1e-3, rel=1e-3)


def test_few_kv_heads_are_copied() -> None:
    """With 8 KV heads, TP 16 reads as many cache bytes a GPU as TP 8."""
    eight, sixteen = (
        step_times(cases(case(tensor_parallel=n, batch_size=1))).cache_s[0] for n in (8, 16)
    )
    assert sixteen == pytest.approx(eight)


def test_latent_cache_is_on_every_gpu() -> None:
    deepseek = next(m for m in catalog.llms().values() if m.attention and m.attention.kv_rank)
    one, eight = (
        step_times(cases(case(llm=deepseek.id, tensor_parallel=n, batch_size=1))).cache_s[0]
        for n in (1, 8)
    )
    assert eight == pytest.approx(one)


def test_sequences_that_run_are_longer_where_lengths_scatter() -> None:
    row = cases(case(batch_size=8, tokens=(100, 1000)))
    alike, spread = step_times(row).cache_s[0], step_times(row, 1.0).cache_s[0]
    assert spread / alike == pytest.approx((100 + 1000) / (100 + 500))


def test_windows_limit_what_a_step_reads() -> None:
    windowed = next(
        m
        for m in catalog.llms().values()
        if m.attention and m.attention.window_layers and not m.experts
    )
    short, long = (
        step_times(cases(case(llm=windowed.id, batch_size=1, tokens=(n, 10)))).cache_s[0]
        for n in (20_000, 40_000)
    )
    assert long < 2 * short


@pytest.mark.parametrize("llm", [LLAMA, MIXTURE])
@pytest.mark.parametrize("stages", [1, 2])
def test_steps_are_the_design_times_the_coefficients(llm: str, stages: int) -> None:
    rng = np.random.default_rng(1)
    theta = EXPECTED + rng.uniform(0.1, 1.0, len(NAMES))
    rows = cases(
        *(case(llm=llm, precision=p, tensor_parallel=2, pipeline_parallel=stages, batch_size=4)
          for p in ("bf16", "fp8"))
    )  # fmt: skip
    pooled = from_datasheet().pooled
    model = TimeModel(
        pooled=type(pooled)(**{**vars(pooled), "theta": theta}),
        scope=from_datasheet().scope,
        factors={f"{catalog.llm(llm).id} bf16": 1.2},  # of full batches
    )
    steps, running = model.steps(rows), np.array([3.0, 40.0])
    step, prompt = step_times(rows).design(running)
    zero = np.zeros_like(step)
    np.testing.assert_allclose(steps.step_s(running), seconds(step, zero, theta))
    np.testing.assert_allclose(steps.prompt_s(running), seconds(zero, prompt, theta))


@given(st.integers(0, 10_000))
def test_slopes_times_coefficients_are_the_seconds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    step, prompt = rng.uniform(0, 2, (2, 5, len(NAMES)))
    theta = rng.uniform(0, 3, len(NAMES))
    parts = slopes(step, prompt, theta) * theta
    np.testing.assert_allclose(parts.sum(axis=1), seconds(step, prompt, theta))


def timed(rows: list[Case], theta: FloatArray, noise: float = 0.0) -> Dataset:
    columns = Cases.of(rows)
    step, prompt = design(columns, "latency")
    scatter = np.exp(noise * np.random.default_rng(0).standard_normal(len(rows)))
    latency = seconds(step, prompt, theta) * scatter
    n = len(rows)
    kinds = {field.name: field.type for field in fields(Dataset) if field.name != "cases"}
    parts: dict[str, Any] = {
        name: np.full(n, "", dtype=object) if kind == "StrArray" else np.full(n, np.nan)
        for name, kind in kinds.items()
        if kind in ("StrArray", "FloatArray")
    }
    parts |= {
        "energy_per_request_j": np.ones(n),
        "modality": np.full(n, "text", dtype=object),
        "source": np.full(n, "measured", dtype=object),
    }
    return Dataset(cases=columns.replace(request_latency_s=latency), **parts)


def planted_rows(engine: str = "") -> list[Case]:
    return [
        case(llm=llm, precision=p, tensor_parallel=tp, batch_size=b, tokens=tokens, engine=engine)
        for llm in ("meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen3-32B", MIXTURE, LLAMA)
        for p in ("bf16", "fp8")
        for tp in (2, 4, 8)
        for b in (1, 16, 96)
        for tokens in ((100.0, 500.0), (3000.0, 200.0))
    ]


def test_finds_the_law_that_made_the_rows() -> None:
    theta = EXPECTED.copy()
    theta[NAMES.index("step_launch")] = 2.0
    theta[NAMES.index("prompt_compute")] = 1.4
    theta[NAMES.index("step_narrow_weights")] = 0.5
    model = fit_latency(timed(planted_rows(), theta))
    rows = cases(case(tensor_parallel=4, batch_size=48, tokens=(1500, 250), precision="fp8"))
    step, prompt = design(rows, "latency")
    assert model.predict_s(rows)[0] == pytest.approx(seconds(step, prompt, theta)[0], rel=0.01)
    for name in ("step_launch", "prompt_compute", "step_narrow_weights"):
        k = NAMES.index(name)
        assert model.pooled.theta[k] == pytest.approx(theta[k], abs=0.1)


def test_each_engine_version_has_its_own_coefficients() -> None:
    slow = EXPECTED.copy()
    slow[NAMES.index("step_launch")] = 8.0
    fast_rows, slow_rows = planted_rows("new"), planted_rows("old")
    both = Dataset.concatenate([timed(fast_rows, EXPECTED), timed(slow_rows, slow)])
    model = fit_latency(both)
    for rows, theta in ((fast_rows, EXPECTED), (slow_rows, slow)):
        step, prompt = design(Cases.of(rows), "latency")
        np.testing.assert_allclose(
            model.predict_s(Cases.of(rows)), seconds(step, prompt, theta), rtol=0.03
        )


def test_a_quantile_comes_true_as_often_as_it_says() -> None:
    data = timed(planted_rows(), EXPECTED, noise=0.1)
    half = np.arange(len(data)) % 2 == 0
    model = fit_latency(data.take(half), factors=False)
    rest = data.take(~half)
    met = rest.cases.request_latency_s <= model.quantile_s(rest.cases, 0.8)
    assert 0.65 <= met.mean() <= 0.95
    low, high = model.interval_s(rest.cases, 0.8)
    assert (low < high).all()


def test_never_reads_the_times_of_the_cases_asked_about() -> None:
    model = fit_latency(timed(planted_rows(), EXPECTED))
    rows = Cases.of(planted_rows())
    for target in TARGETS:
        np.testing.assert_array_equal(
            model.predict_s(rows, target),
            model.predict_s(rows.replace(request_latency_s=1.0, tpot_s=2.0, ttft_s=3.0), target),
        )


def test_says_what_it_needs() -> None:
    data = timed(planted_rows(), EXPECTED)
    untimed = replace(data, cases=data.cases.replace(request_latency_s=np.nan))
    with pytest.raises(FitError, match="rows with a time"):
        fit_latency(untimed)
    with pytest.raises(UsageError, match="must be one of latency"):
        from_datasheet().predict_s(data.cases, "speed")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="probability"):
        from_datasheet().quantile_s(data.cases, 1.5)


# ------------------------------------------------------------------------- published rows


def _published(public_data: Callable[[str], Path], name: str) -> Dataset:
    reader = {"mlenergy-v3": mlenergy_v3, "mlenergy-v2": mlenergy_v2}[name]
    folder = public_data(name)
    data: Dataset = reader.read(folder, assume_input_tokens={}, assume_vision_tokens={}).dataset
    return data


@pytest.mark.parametrize(
    ("name", "gpu", "most"),
    [
        ("mlenergy-v3", "H100-SXM-80GB", 0.12),
        ("mlenergy-v2", "H100-SXM-80GB", 0.105),
        ("mlenergy-v2", "A100-SXM-40GB", 0.105),
    ],
)
def test_fifty_published_rows_tell_the_latency_of_the_rest(
    public_data: Callable[[str], Path], name: str, gpu: str, most: float
) -> None:
    data = _published(public_data, name)
    data = data.take(data.gpu_ids == gpu)
    measured = observed_s(data, "latency")
    errors = {"law": [], "datasheet": []}  # type: dict[str, list[float]]
    for repeat in range(6):
        order = np.random.default_rng([0, repeat]).permutation(len(data))
        train, test = data.take(order[:50]), data.take(order[50:])
        laws = {"law": fit_latency(train, "latency"), "datasheet": from_datasheet()}
        for key, law in laws.items():
            ratio = law.predict_s(test.cases, "latency") / measured[order[50:]]
            errors[key].append(float(np.abs(ratio - 1).mean()))
    assert np.mean(errors["law"]) <= most
    assert np.mean(errors["law"]) < 0.7 * np.mean(errors["datasheet"])


def test_the_median_between_tokens_follows_from_means(
    public_data: Callable[[str], Path],
) -> None:
    """ML.ENERGY v3 gives the median; a fit to mean times alone tells step and prompts apart."""
    data = _published(public_data, "mlenergy-v3")
    median = observed_s(data, "itl")
    if np.isnan(median).all():
        pytest.skip("the table has no column for the median between tokens")
    error = np.abs(fit_latency(data, "latency").predict_s(data.cases, "itl") / median - 1)
    assert error.mean() <= 0.13
