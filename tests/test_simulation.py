"""The simulated node behaves like a node, repeats itself, and made the packaged demo data."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from energylens import capacity, catalog, table
from energylens.instrument.engine import EngineError, Reason
from energylens.instrument.engines import simulated_gpu, simulation
from energylens.instrument.engines.simulation import simulate, simulate_steady_state
from energylens.records import Boundary, Case, Configuration, Modality, Source, Workload

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "src" / "energylens" / "data" / "simulated-demo.csv"
LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
LARGE = "meta-llama/Llama-3.1-70B-Instruct"
MOE = "Qwen/Qwen3-30B-A3B"
HYBRID = "nvidia/NVIDIA-Nemotron-Nano-9B-v2"
LATENT = "deepseek-ai/DeepSeek-V2-Lite"
WINDOWED = "google/gemma-3-27b-it"
VISION = "Qwen/Qwen3-VL-8B-Instruct"


@pytest.fixture(autouse=True, scope="module")
def packaged_catalog_only(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A user's own catalog may not change what these tests see."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENERGYLENS_HOME", str(tmp_path_factory.mktemp("home")))
        yield


def make(
    llm: str = LLAMA,
    *,
    gpu: str = "H100-SXM-80GB",
    precision: str = "bf16",
    tp: int = 1,
    pp: int = 1,
    batch: float = 1,
    prompt: float = 256,
    output: float = 512,
    node_gpus: int | None = None,
    **more: Any,
) -> Case:
    degrees = {key: more.pop(key) for key in ("data_parallel", "expert_parallel") if key in more}
    return Case(
        llm=catalog.llm(llm),
        gpu=catalog.gpu(gpu),
        precision=catalog.precision(precision),
        workload=Workload(input_tokens=prompt, output_tokens=output, **more),
        configuration=Configuration(
            tensor_parallel=tp, pipeline_parallel=pp, batch_size=batch, **degrees
        ),
        boundary=Boundary.ACTIVE_GPUS if node_gpus is None else Boundary.NODE,
        node_gpus=node_gpus,
    )


def joules_per_token(case: Case) -> float:
    return simulate(case, 0).energy_per_request_j / case.workload.output_tokens


# ------------------------------------------------------------------------------ independence


@pytest.mark.parametrize("module", [simulation, simulated_gpu])
def test_the_physics_imports_nothing_of_the_law(module: ModuleType) -> None:
    assert module.__file__ is not None
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    imported = {
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
        for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
    }
    assert "energylens.cases" in imported  # the names are those that the next line means
    assert not imported & {f"energylens.{name}" for name in ("formula", "counts", "fitting")}


# -------------------------------------------------------------------------------- repetition


def test_the_same_case_and_seed_give_the_same_run() -> None:
    case = make(MOE, batch=16, tp=2)
    assert simulate(case, 3) == simulate(case, 3)
    once, again = (simulate_steady_state(case, 3, steps=50) for _ in range(2))
    assert np.array_equal(once.step_energy_j, again.step_energy_j)


def test_other_seeds_scatter_by_about_one_percent() -> None:
    joules = np.array([simulate(make(batch=16), seed).energy_per_request_j for seed in range(40)])
    assert 0.004 < joules.std() / joules.mean() < 0.02


# -------------------------------------------------------------------------------- accounting

CONFIGURATIONS = st.fixed_dictionaries(
    {
        "llm": st.sampled_from([LLAMA, MOE, HYBRID, LATENT, WINDOWED, "tiiuae/falcon-mamba-7b"]),
        "gpu": st.sampled_from(["H100-SXM-80GB", "A100-SXM-80GB", "MI300X", "L40S"]),
        "precision": st.sampled_from(["bf16", "fp8", "awq-int4"]),
        "tp": st.sampled_from([1, 2, 4]),
        "pp": st.sampled_from([1, 2, 3]),
        "batch": st.sampled_from([1, 3, 40, 300.5]),
        "prompt": st.sampled_from([1, 130.7, 5000, 20000]),
        "output": st.sampled_from([1, 2, 70.2, 3000]),
    }
)


@given(CONFIGURATIONS)
def test_power_lies_between_idle_and_the_limit_whatever_is_served(choice: dict[str, Any]) -> None:
    case = make(**choice)
    if not capacity.memory(case).fits:
        with pytest.raises(EngineError):
            simulate(case, 0)
        return
    run = simulate(case, 0)
    gpus, board = case.configuration.gpus, simulated_gpu.Board(gpu=case.gpu)
    for joules, seconds in (
        (run.prefill_energy_j, run.prefill_s),
        *([(run.decode_energy_j, run.decode_s)] if run.decode_steps else []),
    ):
        assert math.isfinite(joules)
        assert seconds > 0
        # Three standard deviations of the meter are above the limit.
        assert board.idle_w * 0.97 < joules / seconds / gpus < case.gpu.tdp_w * 1.03
    assert 0 < run.ttft_s <= run.prefill_s * (1 + 1e-12)
    whole = run.average_power_w * run.duration_s
    assert whole == pytest.approx(run.energy_per_request_j * run.requests)


def test_one_output_token_has_no_decode_part() -> None:
    run = simulate(make(output=1, batch=4), 0)
    assert (run.decode_steps, run.decode_s, run.decode_energy_j) == (0, 0.0, 0.0)
    assert run.decode_energy_per_request_j is None
    assert run.tpot_s is None


def test_prompts_are_prefilled_in_passes_of_the_token_budget() -> None:
    assert simulate(make(prompt=2048, batch=4, output=2), 0).prefill_passes == 1
    assert simulate(make(prompt=2049, batch=4, output=2), 0).prefill_passes == 2
    assert simulate(make(prompt=20000, batch=1, output=2), 0).prefill_passes == 3


def test_idle_gpus_of_the_node_add_their_idle_draw() -> None:
    alone, node = simulate(make(batch=8), 0), simulate(make(batch=8, node_gpus=8), 0)
    idle_w = simulated_gpu.Board(gpu=catalog.gpu("H100")).idle_w
    assert node.average_power_w - alone.average_power_w == pytest.approx(7 * idle_w, rel=0.05)


def test_replicas_serve_their_part_of_the_batch_each() -> None:
    alone, four = simulate(make(batch=8), 0), simulate(make(batch=32, data_parallel=4), 0)
    assert four.average_power_w == pytest.approx(4 * alone.average_power_w, rel=0.05)
    assert four.energy_per_request_j == pytest.approx(alone.energy_per_request_j, rel=0.05)


# ------------------------------------------------------------------------------- the landscape


@pytest.mark.parametrize(
    ("case", "low", "high"),
    [
        (make(batch=1), 2.0, 3.0),
        (make(batch=256), 0.05, 0.1),
        (make(LARGE, batch=256, tp=4), 0.3, 0.8),
        (make(MOE, batch=8), 0.5, 0.8),
        (make(MOE, batch=64), 0.15, 0.3),
        (make(batch=1, gpu="A100-SXM-80GB"), 2.0, 3.0),
    ],
    ids=["8B", "8B batch 256", "70B TP4 batch 256", "MoE batch 8", "MoE batch 64", "8B A100"],
)
def test_joules_per_token_are_of_the_published_order(case: Case, low: float, high: float) -> None:
    assert low < joules_per_token(case) < high


def test_gains_from_batching_saturate() -> None:
    joules = [joules_per_token(make(batch=batch)) for batch in (1, 16, 256)]
    assert joules[0] > 8 * joules[1]
    assert joules[1] < 6 * joules[2]


def test_tensor_parallelism_is_faster_and_costs_energy() -> None:
    for batch in (1, 256):
        one, four = (simulate(make(tp=tp, batch=batch), 0) for tp in (1, 4))
        assert four.duration_s < 0.6 * one.duration_s
        assert four.energy_per_request_j > 1.05 * one.energy_per_request_j


def test_tensor_parallelism_saves_energy_where_the_whole_node_counts() -> None:
    one, two = (joules_per_token(make(tp=tp, batch=16, node_gpus=4)) for tp in (1, 2))
    assert two < 0.97 * one


def test_a_pipeline_costs_energy_until_the_batch_fills_it() -> None:
    def cost(batch: int, prompt: int, output: int) -> float:
        one, two = (
            simulate(make(pp=pp, batch=batch, prompt=prompt, output=output), 0) for pp in (1, 2)
        )
        return two.energy_per_request_j / one.energy_per_request_j

    assert cost(1, 256, 512) > 1.15  # one stage waits while the other works
    assert cost(2, 256, 512) > 1.7  # each sequence reads the weights for itself
    assert cost(64, 4096, 16) < 1.05


def test_a_step_reads_more_experts_as_the_batch_grows() -> None:
    def slowdown(llm: str) -> float:
        alone, many = (simulate(make(llm, batch=batch), 0).decode_s for batch in (1, 16))
        return many / alone

    assert slowdown(MOE) > 2.5
    assert slowdown(LLAMA) < 1.3


def test_spread_experts_are_exchanged_between_replicas() -> None:
    case = make(MOE, batch=64, data_parallel=2, expert_parallel=2)
    alone = make(MOE, batch=64, data_parallel=2)
    # Half of the experts to read for each GPU: faster, in spite of the exchange.
    assert simulate(case, 0).decode_s < 0.9 * simulate(alone, 0).decode_s


def test_a_state_does_not_grow_with_the_context() -> None:
    def slowdown(llm: str) -> float:
        short, long = (simulate(make(llm, batch=16, prompt=p), 0).decode_s for p in (256, 8192))
        return long / short

    assert slowdown("tiiuae/falcon-mamba-7b") == pytest.approx(1.0, abs=0.02)
    assert slowdown(LLAMA) > 1.5


def test_windows_and_latents_spare_the_cache() -> None:
    windowed = make(WINDOWED, batch=4, tp=4, prompt=20000, output=64)
    attention = windowed.llm.attention
    assert attention is not None
    unlimited = dataclasses.replace(attention, window_layers=0)
    full = dataclasses.replace(windowed, llm=dataclasses.replace(windowed.llm, attention=unlimited))
    assert simulate(windowed, 0).decode_s < 0.9 * simulate(full, 0).decode_s

    latent = make(LATENT, batch=16, prompt=8192, output=64)
    attention = latent.llm.attention
    assert attention is not None
    plain = dataclasses.replace(attention, kv_rank=None, rope_head_size=0)
    heads = dataclasses.replace(latent, llm=dataclasses.replace(latent.llm, attention=plain))
    assert simulate(latent, 0).decode_s < 0.9 * simulate(heads, 0).decode_s


def test_fp8_saves_energy_and_speeds_prefill_only_where_a_unit_multiplies_it() -> None:
    for gpu, speedup in (("H100-SXM-80GB", 1.5), ("A100-SXM-80GB", 0.0)):
        wide, narrow = (
            simulate(make(gpu=gpu, precision=p, batch=16, prompt=2048), 0) for p in ("bf16", "fp8")
        )
        assert narrow.decode_energy_j < 0.9 * wide.decode_energy_j
        assert wide.prefill_s / narrow.prefill_s > speedup
    assert narrow.prefill_s > wide.prefill_s  # the A100 widens


def test_a_hot_board_lowers_its_clock_to_stay_within_its_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = make(batch=16, prompt=4096, output=2)
    nominal = simulate(case, 0)
    monkeypatch.setattr(simulated_gpu, "COMPUTE_POWER", 1.5)
    hungry = simulate(case, 0)
    limit_w = case.gpu.tdp_w
    assert 0.97 * limit_w < hungry.prefill_energy_j / hungry.prefill_s < 1.03 * limit_w
    assert hungry.prefill_s > 1.05 * nominal.prefill_s


def test_images_cost_more_than_as_many_tokens_of_text() -> None:
    text = simulate(make(VISION, prompt=1088, batch=8), 0)
    image = simulate(
        make(VISION, prompt=1088, batch=8, vision_tokens=1024, images=1, modality=Modality.IMAGE),
        0,
    )
    assert image.prefill_energy_j > 1.05 * text.prefill_energy_j
    assert image.decode_energy_j == pytest.approx(text.decode_energy_j, rel=0.05)


# ---------------------------------------------------------------------------------- refusals


def test_what_does_not_fit_is_refused_with_the_reason() -> None:
    for case in (make(LARGE), make(batch=4096)):
        with pytest.raises(EngineError, match="does not fit: weights") as refusal:
            simulate(case, 0)
        assert refusal.value.reason is Reason.DOES_NOT_FIT
    with pytest.raises(EngineError):
        simulate_steady_state(make(LARGE), 0)


def test_an_impossible_layout_is_unsupported() -> None:
    with pytest.raises(EngineError, match="does not divide the 32 attention heads") as refusal:
        simulate(make(tp=3), 0)
    assert refusal.value.reason is Reason.UNSUPPORTED


# ------------------------------------------------------------------------------- steady state


def test_steady_state_keeps_the_batch_full_and_serves_whole_requests() -> None:
    case = make(batch=32, prompt=300, output=200)
    run = simulate_steady_state(case, 0, steps=400)
    assert run.mean_batch_size == 32
    assert run.preemptions == 0
    assert len(run.step_s) == 400
    # Sequences get a token in each step but those of their prefill.
    assert 0.97 * 400 * 32 < run.output_tokens.sum() <= 400 * 32
    assert run.input_tokens.sum() == pytest.approx(run.requests * 300, rel=0.05)
    assert run.average_power_w * run.duration_s == pytest.approx(run.step_energy_j.sum())
    batch = simulate(case, 0)
    assert run.energy_per_request_j == pytest.approx(batch.energy_per_request_j, rel=0.25)
    assert run.request_latency_s > run.ttft_s > 0


def test_energy_turns_up_where_the_cache_runs_full() -> None:
    fits, queues = (
        simulate_steady_state(make(batch=batch, prompt=512, output=2048), 0, steps=300)
        for batch in (384, 1024)
    )
    assert fits.preemptions == 0
    assert queues.preemptions > 0
    assert queues.mean_batch_size < 420
    assert queues.energy_per_request_j > 1.03 * fits.energy_per_request_j


# ------------------------------------------------------------------------------- the demo data


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    path = ROOT / "tools" / "make_demo_data" / "__main__.py"
    if not path.exists():
        pytest.skip("the generator is in the repository, not in an installed package")
    spec = importlib.util.spec_from_file_location("make_demo_data", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_packaged_rows_come_out_again_to_the_byte(
    generator: ModuleType, tmp_path: Path
) -> None:
    lines = DEMO.read_bytes().splitlines()
    grid = list(generator.cases())
    assert len(lines) == len(grid) + 1
    sample = range(0, len(grid), 40)
    table.write(generator.dataset([grid[row] for row in sample]), tmp_path / "again.csv")
    again = (tmp_path / "again.csv").read_bytes().splitlines()
    assert again == [lines[0], *(lines[1 + row] for row in sample)]


def test_every_packaged_row_says_that_it_is_simulated() -> None:
    demo = table.read(DEMO)
    assert set(demo.source) == {Source.SIMULATED}
    assert all("make_demo_data seed" in origin for origin in demo.origin)
    assert DEMO.stat().st_size < 300_000
    assert 600 <= len(demo) <= 1200
    parts = demo.prefill_energy_per_request_j + demo.decode_energy_per_request_j
    np.testing.assert_allclose(parts, demo.energy_per_request_j, rtol=1e-4)


def test_the_packaged_landscape_is_no_foregone_conclusion() -> None:
    demo = table.read(DEMO)
    scenarios = demo.scenarios(["parallelism", "batch_size"])
    gpus, joules = demo.cases.occupied_gpus, demo.energy_per_request_j
    fewest = [joules[s][gpus[s] == gpus[s].min()].min() <= joules[s].min() for s in scenarios]
    assert 0.3 < np.mean(fewest) < 0.8
    scenarios = demo.scenarios(["tensor_parallel", "pipeline_parallel"])
    latency = demo.cases.request_latency_s
    same = [joules[s].argmin() == latency[s].argmin() for s in scenarios]
    assert np.mean(same) < 0.5
