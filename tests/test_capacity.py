from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from energylens import capacity, catalog
from energylens.cases import Cases
from energylens.cli import main
from energylens.errors import InputError
from energylens.records import Case, Configuration, Workload

DATA = Path(
    os.environ.get("ENERGYLENS_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")
)


def case(
    llm: str,
    gpu: str = "H100",
    precision: str = "bf16",
    *,
    input_tokens: float = 1000.0,
    output_tokens: float = 1000.0,
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
    expert_parallel: int = 1,
    data_parallel: int = 1,
    batch_size: float = 1.0,
) -> Case:
    return Case(
        llm=catalog.llm(llm),
        gpu=catalog.gpu(gpu),
        precision=catalog.precision(precision),
        workload=Workload(input_tokens=input_tokens, output_tokens=output_tokens),
        configuration=Configuration(
            tensor_parallel=tensor_parallel,
            pipeline_parallel=pipeline_parallel,
            expert_parallel=expert_parallel,
            data_parallel=data_parallel,
            batch_size=batch_size,
        ),
    )


# ----------------------------------------------------------------------- bytes on one GPU


@pytest.mark.parametrize(
    ("llm", "precision", "published_bytes"),
    [
        ("meta-llama/Llama-3.1-8B", "bf16", 16.06e9),
        ("google/gemma-2-9b-it", "bf16", 18.48e9),  # one vocabulary matrix, not two
        # vLLM pads the experts of gpt-oss (60.8 GiB, arXiv 2508.10925): 65.97 GiB, its issue 23278.
        ("openai/gpt-oss-120b", "mxfp4", 65.97 * 2**30),
        ("mistralai/Mixtral-8x7B-v0.1", "bf16", 93.4e9),
        ("TheBloke/CodeLlama-34B-Instruct-AWQ", "awq-int4", 18.3e9),
    ],
)
def test_weights_take_what_the_published_checkpoint_takes(
    llm: str, precision: str, published_bytes: float
) -> None:
    found = capacity.memory(case(llm, precision=precision)).weights_bytes
    assert found == pytest.approx(published_bytes, rel=0.015)


def test_the_cache_of_one_sequence_is_keys_and_values_of_every_layer() -> None:
    held = 1000 + 625
    found = capacity.memory(case("meta-llama/Llama-3.1-8B")).kv_cache_bytes
    assert found == held * 32 * 2 * 8 * 128 * 2


def test_the_share_of_output_held_sets_the_cache() -> None:
    one = case("meta-llama/Llama-3.1-8B", input_tokens=100, output_tokens=300)
    half = capacity.memory(one, held_output_ratio=0.5).kv_cache_bytes
    whole = capacity.memory(one, held_output_ratio=1.0).kv_cache_bytes
    assert half / whole == pytest.approx(250 / 400)


def test_tensor_parallelism_splits_weights_and_cache_evenly_while_kv_heads_last() -> None:
    one = capacity.memory(case("meta-llama/Llama-3.1-8B"))
    four = capacity.memory(case("meta-llama/Llama-3.1-8B", tensor_parallel=4))
    assert four.weights_bytes == pytest.approx(one.weights_bytes / 4)
    assert four.kv_cache_bytes == pytest.approx(one.kv_cache_bytes / 4)


def test_fewer_kv_heads_than_gpus_are_copied() -> None:
    four = capacity.memory(case("Qwen/Qwen3-30B-A3B", tensor_parallel=4))
    eight = capacity.memory(case("Qwen/Qwen3-30B-A3B", tensor_parallel=8))
    assert eight.kv_cache_bytes == four.kv_cache_bytes
    assert eight.weights_bytes > four.weights_bytes / 2


def test_every_gpu_holds_the_whole_latent_cache() -> None:
    eight = capacity.memory(
        case("deepseek-ai/DeepSeek-V3", "H200", "fp8", tensor_parallel=8, expert_parallel=8)
    )
    assert eight.kv_cache_bytes == 1625 * 61 * (512 + 64) * 2


def test_a_windowed_layer_keeps_no_more_than_its_window() -> None:
    # gemma-3-12b: 8 of 48 layers attend to everything, 40 to 1024 tokens.
    found = capacity.memory(
        case("google/gemma-3-12b-it", input_tokens=9000, output_tokens=1000)
    ).kv_cache_bytes
    assert found == (8 * 9625 + 40 * 1024) * 2 * 8 * 256 * 2


def test_a_state_does_not_grow_with_the_sequence() -> None:
    short = capacity.memory(case("tiiuae/falcon-mamba-7b", output_tokens=10))
    long = capacity.memory(case("tiiuae/falcon-mamba-7b", output_tokens=10_000))
    assert short.kv_cache_bytes == long.kv_cache_bytes == 0
    # 64 layers of 8192 channels: 16 states and 3 convolution inputs each, in 16 bits (19.9 MB).
    assert short.state_bytes == long.state_bytes == 64 * 8192 * (16 + 3) * 2


def test_pipeline_parallelism_splits_layers_and_the_vocabulary_matrices() -> None:
    llm = catalog.llm("meta-llama/Llama-3.1-70B")
    found = capacity.memory(case(llm.id, pipeline_parallel=2)).weights_bytes
    assert found == pytest.approx(llm.counted_parameters * 2 / 2)
    uneven = capacity.memory(case("Qwen/Qwen3-8B", pipeline_parallel=8))  # 36 layers: 5 at most
    even = capacity.memory(case("Qwen/Qwen3-8B", pipeline_parallel=4))  # 9
    assert uneven.kv_cache_bytes / even.kv_cache_bytes == pytest.approx(5 / 9)


def test_expert_parallelism_spreads_experts_and_data_parallelism_copies_the_rest() -> None:
    llm = catalog.llm("Qwen/Qwen3-235B-A22B")
    found = capacity.memory(
        case(llm.id, expert_parallel=8, data_parallel=8, batch_size=8)
    ).weights_bytes
    rest = llm.counted_parameters - llm.expert_parameters
    assert found == pytest.approx(2 * (llm.expert_parameters / 8 + rest))


def test_expert_parallelism_inside_tensor_parallelism_leaves_the_split_of_experts_the_same() -> (
    None
):
    plain = capacity.memory(case("mistralai/Mixtral-8x7B-v0.1", tensor_parallel=4))
    mixed = capacity.memory(
        case("mistralai/Mixtral-8x7B-v0.1", tensor_parallel=4, expert_parallel=2)
    )
    assert mixed.weights_bytes == plain.weights_bytes


def test_the_vision_tower_takes_memory() -> None:
    text = capacity.memory(case("Qwen/Qwen3-8B")).weights_bytes
    vision = capacity.memory(case("Qwen/Qwen3-VL-8B-Instruct")).weights_bytes
    tower = catalog.llm("Qwen/Qwen3-VL-8B-Instruct").vision
    assert tower is not None
    assert vision - text == pytest.approx(2 * tower.parameters)


def test_the_vision_tower_lies_on_the_first_pipeline_stage() -> None:
    text = capacity.memory(case("Qwen/Qwen3-8B", pipeline_parallel=2)).weights_bytes
    vision = capacity.memory(case("Qwen/Qwen3-VL-8B-Instruct", pipeline_parallel=2)).weights_bytes
    tower = catalog.llm("Qwen/Qwen3-VL-8B-Instruct").vision
    assert tower is not None
    assert vision - text == pytest.approx(2 * tower.parameters)


def test_each_data_parallel_replica_holds_its_share_of_the_batch() -> None:
    one = capacity.memory(case("Qwen/Qwen3-8B", batch_size=8))
    four = capacity.memory(case("Qwen/Qwen3-8B", data_parallel=4, batch_size=32))
    assert four.kv_cache_bytes == one.kv_cache_bytes
    assert four.largest_batch == pytest.approx(4 * one.largest_batch)
    four = capacity.memory(case("Qwen/Qwen3-8B", data_parallel=4, batch_size=8))
    assert four.kv_cache_bytes == one.kv_cache_bytes / 4


# ------------------------------------------------------------------------ what follows


def test_a_case_that_fits_gives_no_reason() -> None:
    found = capacity.memory(case("Qwen/Qwen3-8B", batch_size=8))
    assert found.fits
    assert found.runs
    assert found.reason == ""
    assert found.total_bytes <= found.available_bytes


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (case("meta-llama/Llama-3.1-70B"), "weights take 141.1 GB"),
        (
            case("meta-llama/Llama-3.1-8B", input_tokens=600_000),
            "one sequence of 600625 tokens needs 78.7 GB",
        ),
        (case("meta-llama/Llama-3.1-8B", batch_size=4096), "not 4096; the rest would wait"),
        (
            case("Qwen/Qwen3-8B", tensor_parallel=3),
            "tensor parallel 3 does not divide the 32 attention heads of Qwen/Qwen3-8B",
        ),
        (
            case("microsoft/Phi-3-medium-4k-instruct", tensor_parallel=4),
            "tensor parallel 4 neither divides nor repeats the 10 KV heads",
        ),
        (
            case("Qwen/Qwen3-8B", pipeline_parallel=64),
            "pipeline parallel 64 exceeds the 36 layers",
        ),
        (
            case("Qwen/Qwen3-8B", tensor_parallel=2, expert_parallel=2),
            "expert parallel 2 needs experts",
        ),
        (
            case("ibm-granite/granite-4.0-h-small", tensor_parallel=16, expert_parallel=16),
            "expert parallel 16 does not divide the 72 experts",
        ),
        (
            case("Qwen/Qwen3-30B-A3B", tensor_parallel=2, expert_parallel=4),
            "expert parallel 4 does not divide the 2 x 1 GPUs",
        ),
        (
            case("nvidia/NVIDIA-Nemotron-Nano-9B-v2", tensor_parallel=16),
            "tensor parallel 16 does not divide the 40 attention heads",
        ),
    ],
)
def test_a_case_that_does_not_fit_says_why(asked: Case, says: str) -> None:
    found = capacity.memory(asked)
    assert not found.fits
    assert says in found.reason


def test_a_batch_beyond_the_cache_runs_but_does_not_fit() -> None:
    found = capacity.memory(case("meta-llama/Llama-3.1-8B", batch_size=4096))
    assert found.runs
    assert not found.fits
    assert found.total_bytes > found.available_bytes


def test_an_impossible_layout_does_not_run() -> None:
    found = capacity.memory(case("Qwen/Qwen3-8B", tensor_parallel=3))
    assert found.largest_batch == 0
    assert not found.runs


def test_more_memory_for_the_engine_makes_room_for_more() -> None:
    asked = case("Qwen/Qwen3-14B")
    less = capacity.memory(asked, utilisation_ratio=0.8).largest_batch
    assert less < capacity.memory(asked, utilisation_ratio=0.95).largest_batch


@pytest.mark.parametrize(
    "ratios", [{"utilisation_ratio": 0.0}, {"utilisation_ratio": 1.1}, {"held_output_ratio": 0.0}]
)
def test_a_ratio_out_of_range_is_refused(ratios: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(ratios))} must be"):
        capacity.memory(case("Qwen/Qwen3-8B"), **ratios)


layouts = st.fixed_dictionaries(
    {
        "tensor_parallel": st.sampled_from([1, 2, 3, 4, 8, 16]),
        "pipeline_parallel": st.sampled_from([1, 2, 3, 100]),
        "expert_parallel": st.sampled_from([1, 2, 4, 6, 8]),
        "data_parallel": st.sampled_from([1, 2, 4]),
    }
)
LLMS = (
    "Qwen/Qwen3-8B",
    "Qwen/Qwen3-30B-A3B",
    "deepseek-ai/DeepSeek-V2-Lite",
    "nvidia/NVIDIA-Nemotron-Nano-9B-v2",
    "tiiuae/falcon-mamba-7b",
    "google/gemma-3-12b-it",
    "openai/gpt-oss-120b",
)


@settings(max_examples=60, deadline=None)
@given(
    llm=st.sampled_from(LLMS),
    rows=st.lists(st.tuples(layouts, st.floats(1, 1e6), st.floats(1, 1e5)), min_size=1, max_size=8),
)
def test_many_layouts_at_once_equal_one_by_one(
    llm: str, rows: list[tuple[dict[str, int], float, float]]
) -> None:
    row, gpu, precision = catalog.llm(llm), catalog.gpu("H200"), catalog.precision("fp8")
    columns = {name: np.array([layout[name] for layout, _, _ in rows]) for name in rows[0][0]}
    many = capacity.largest_batch(
        row,
        gpu,
        precision,
        input_tokens=np.array([prompt for _, prompt, _ in rows]),
        output_tokens=np.array([output for _, _, output in rows]),
        batch_size=1.0,
        **columns,
    )
    singly = [
        capacity.memory(
            case(llm, "H200", "fp8", input_tokens=prompt, output_tokens=output, **layout)
        ).largest_batch
        for layout, prompt, output in rows
    ]
    np.testing.assert_allclose(many, singly, rtol=1e-12)
    possible = capacity.layout_possible(row, precision, **columns)
    words = [capacity.layout_problem(row, precision, **layout) for layout, _, _ in rows]
    assert [word is None for word in words] == possible.tolist()


@settings(max_examples=60, deadline=None)
@given(
    llm=st.sampled_from(LLMS),
    prompt=st.floats(1, 1e5),
    output=st.floats(1, 1e5),
    more=st.floats(1, 10),
)
def test_longer_requests_never_make_room_for_more(
    llm: str, prompt: float, output: float, more: float
) -> None:
    found = capacity.largest_batch(
        catalog.llm(llm),
        catalog.gpu("B200"),
        catalog.precision("bf16"),
        input_tokens=[prompt, prompt * more, prompt],
        output_tokens=[output, output, output * more],
    )
    assert found[1] <= found[0]
    assert found[2] <= found[0]


@settings(max_examples=60, deadline=None)
@given(llm=st.sampled_from(LLMS), share=st.floats(0.05, 1.9))
def test_a_batch_fits_exactly_up_to_the_largest(llm: str, share: float) -> None:
    # Room is set aside for sampling up to a limit of 1024.
    most = capacity.memory(case(llm, "B300", tensor_parallel=2, batch_size=1024)).largest_batch
    asked = max(share * most, 1.0)
    found = capacity.memory(case(llm, "B300", tensor_parallel=2, batch_size=asked))
    assert found.fits == (asked <= found.largest_batch)
    assert found.total_bytes <= found.available_bytes * (1 + 1e-12) or not found.fits
    # Up to the sequences for whose sampling an engine sets room aside, the sums agree.
    if asked <= 1024:
        assert found.fits == (found.total_bytes <= found.available_bytes * (1 + 1e-12))


def test_layouts_and_lengths_broadcast() -> None:
    found = capacity.largest_batch(
        catalog.llm("Qwen/Qwen3-8B"),
        catalog.gpu("H100"),
        catalog.precision("bf16"),
        tensor_parallel=np.array([[1], [2], [3]]),
        input_tokens=np.array([100.0, 1000.0]),
        output_tokens=500.0,
    )
    assert found.shape == (3, 2)
    assert (found[2] == 0).all()
    assert (found[1] > 2 * found[0]).all()


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"tensor_parallel": [1, 0]}, "tensor_parallel must be a whole number"),
        ({"data_parallel": [1.5, 1]}, "data_parallel must be a whole number"),
        ({"pipeline_parallel": [float("nan"), 1]}, "pipeline_parallel must be a whole number"),
        ({"input_tokens": [float("nan"), 1]}, "must be numbers above 0"),
    ],
)
def test_columns_that_cannot_be_are_refused(columns: dict[str, list[float]], says: str) -> None:
    arguments = {"input_tokens": [1.0, 1.0], "output_tokens": 1.0} | columns
    with pytest.raises(InputError, match=says):
        capacity.largest_batch(
            catalog.llm("Qwen/Qwen3-8B"),
            catalog.gpu("H100"),
            catalog.precision("bf16"),
            **arguments,  # type: ignore[arg-type]
        )


# ----------------------------------------------------------------------- against engines


@pytest.mark.skipif(not DATA.is_dir(), reason="the public result files are not here")
def test_runs_that_filled_their_cache_held_about_the_largest_batch() -> None:
    """Reasoning runs of ML.ENERGY v3 with far fewer requests running than the limit allowed."""
    checked = 0
    for name in ("Qwen__Qwen3-8B__gpqa.json", "Qwen__Qwen3-14B__gpqa.json"):
        document = json.loads((DATA / "mlenergy-v3" / "models" / name).read_text())
        lengths = document["output_length_distribution"]
        bins, counts = np.array(lengths["bins"]), np.array(lengths["counts"])
        middle = (bins[1:] + bins[:-1]) / 2
        mean = np.average(middle, weights=counts)
        held = np.average(middle**2, weights=counts) / mean**2 / 2
        for entry in document["configurations"]:
            if entry["avg_batch_size"] < 0.93 * entry["max_num_seqs"]:
                asked = case(
                    document["model_id"],
                    tensor_parallel=entry["num_gpus"],
                    input_tokens=250,  # questions of GPQA are short beside their answers
                    output_tokens=entry["avg_output_len"],
                )
                found = capacity.memory(asked, held_output_ratio=held).largest_batch
                assert found == pytest.approx(entry["avg_batch_size"], rel=0.15)
                checked += 1
    assert checked == 2


@pytest.mark.skipif(not DATA.is_dir(), reason="the public result files are not here")
def test_every_configuration_that_was_measured_is_one_that_runs() -> None:
    for path in sorted((DATA / "mlenergy-v2").glob("*/*/*/*/*/*.json")):
        entry = json.loads(path.read_text())
        asked = case(
            entry["Model"],
            entry["GPU"],
            tensor_parallel=entry["TP"],
            pipeline_parallel=entry["PP"],
            input_tokens=150,
            output_tokens=entry["Avg Output Tokens"],
        )
        assert capacity.memory(asked).runs, f"{path}: {capacity.memory(asked).reason}"
    for path in sorted((DATA / "mlenergy-v3" / "models").glob("*.json")):
        document = json.loads(path.read_text())
        llm, stated = catalog.split_precision(document["model_id"])
        for entry in document["configurations"]:
            layout = entry["parallelization"]
            asked = case(
                llm,
                precision=stated or catalog.llm(llm).native_precision,
                tensor_parallel=entry["num_gpus"] // layout["data_parallel"],
                expert_parallel=layout["expert_parallel"],
                data_parallel=layout["data_parallel"],
                input_tokens=1000,
                output_tokens=entry["avg_output_len"],
            )
            assert capacity.memory(asked).runs, f"{path}: {capacity.memory(asked).reason}"


def test_a_format_of_experts_needs_experts() -> None:
    for llm, runs in (("openai/gpt-oss-20b", True), ("Qwen/Qwen3-32B", False)):
        found = capacity.memory(case(llm, precision="mxfp4"))
        assert found.runs is runs
        assert runs or "a format of experts" in found.reason


# ---------------------------------------------------------- figures that engines printed in public


@pytest.mark.parametrize(
    ("llm", "precision", "degree", "starts"),
    [
        ("Qwen/Qwen3-235B-A22B", "fp8", 8, False),  # vLLM issue 17569
        ("Qwen/Qwen3-235B-A22B", "fp8", 4, True),
        ("Qwen/Qwen3-30B-A3B", "fp8", 4, False),  # 25292
        ("Qwen/Qwen3-30B-A3B", "bf16", 4, True),
        ("deepseek-ai/DeepSeek-V3", "fp8", 32, False),
        ("deepseek-ai/DeepSeek-V3", "fp8", 8, True),
        ("Qwen/Qwen2.5-VL-72B-Instruct", "awq-int4", 2, False),  # 13640
        ("meta-llama/Llama-3.1-70B", "fp8", 8, True),
        ("meta-llama/Llama-3.1-8B", "fp8-block", 8, True),
    ],
)
def test_a_cut_through_blocks_that_share_a_scale_does_not_start(
    llm: str, precision: str, degree: int, starts: bool
) -> None:
    problem = capacity.layout_problem(
        catalog.llm(llm), catalog.precision(precision), tensor_parallel=degree
    )
    assert (problem is None) == starts
    assert starts or "share a scale" in str(problem)
    if not starts and llm.startswith("Qwen/Qwen3"):  # whole experts on each GPU are not cut
        assert not capacity.layout_problem(
            catalog.llm(llm),
            catalog.precision(precision),
            tensor_parallel=degree,
            expert_parallel=degree,
        )


@settings(max_examples=40, deadline=None)
@given(llm=st.sampled_from(LLMS), low=st.floats(0.3, 1.0), high=st.floats(0.3, 1.0))
def test_a_larger_share_of_the_memory_never_holds_fewer(llm: str, low: float, high: float) -> None:
    low, high = sorted((low, high))
    few, many = (
        capacity.largest_batch(
            catalog.llm(llm),
            replace(catalog.gpu("H200"), memory_share_ratio=share),
            catalog.precision("bf16"),
            tensor_parallel=2,
            input_tokens=1000,
            output_tokens=500,
        )
        for share in (low, high)
    )
    assert few <= many


# ----------------------------------------------------- what engines print when they start


def at_defaults(asked: Case, utilisation_ratio: float = 0.9) -> Case:
    """The same case where the engine is told no limit of sequences."""
    told = replace(
        asked.gpu,
        max_num_seqs=capacity.default_sequences(asked.gpu),
        memory_share_ratio=utilisation_ratio,
    )
    return replace(asked, gpu=told)


GIB = 2.0**30


def test_an_engine_that_printed_a_cache_below_nothing_does_not_start() -> None:
    """gpt-oss-120b on one H100: weights 65.97 GiB, cache -2.14 (vLLM issue 23278)."""
    asked = case("openai/gpt-oss-120b", precision="mxfp4")
    found = capacity.memory(at_defaults(asked))
    assert found.weights_bytes / GIB == pytest.approx(65.97, rel=0.005)
    assert found.cache_bytes / GIB == pytest.approx(-2.14, abs=0.5)
    assert not found.runs
    assert "is set aside to sample for 1024 sequences; with --max-num-seqs" in found.reason
    # The same at 0.95 printed 1.71 GiB (issue 27508).
    found = capacity.memory(at_defaults(asked, 0.95))
    assert found.cache_bytes / GIB == pytest.approx(1.71, abs=0.7)
    # Few sequences need little set aside: ML.ENERGY v3 measured it with limits up to 64.
    assert capacity.memory(replace(asked, configuration=Configuration(batch_size=64))).runs


def test_the_cache_of_a_large_mixture_is_what_its_engine_printed() -> None:
    """Qwen3-235B-A22B-FP8 at TP4 on H100: 8.11 GiB, 178,880 tokens (vLLM issue 21348)."""
    found = capacity.memory(
        at_defaults(case("Qwen/Qwen3-235B-A22B", precision="fp8", tensor_parallel=4))
    )
    assert found.cache_tokens == pytest.approx(178_880, rel=0.06)
    assert found.to_json()["cache_tokens"] == found.cache_tokens


def test_what_an_engine_takes_beside_small_dense_weights() -> None:
    """Llama-3-8B on H100 printed a peak of 1.26 GiB for 256 sequences (pull request 10511)."""
    asked = case("meta-llama/Llama-3.1-8B", batch_size=256)
    found = capacity.memory(asked)
    assert found.activation_bytes / GIB == pytest.approx(1.26 + 0.16, abs=0.4)
    pair = capacity.memory(replace(asked, configuration=Configuration(tensor_parallel=2)))
    assert found.activation_bytes - pair.activation_bytes < -0.5e9


def test_a_limit_told_to_the_engine_is_the_most_that_runs() -> None:
    asked = case("Qwen/Qwen3-8B", data_parallel=2, batch_size=128)
    told = replace(asked, gpu=replace(asked.gpu, max_num_seqs=16))
    assert capacity.memory(told).largest_batch == 32
    assert capacity.as_run(told).configuration.mean_batch_size == pytest.approx(32, rel=0.1)
    assert capacity.room(Cases.of([told]))[0] == 32


def test_engines_allow_fewer_sequences_on_small_gpus() -> None:
    assert capacity.default_sequences(catalog.gpu("H100")) == 1024
    assert capacity.default_sequences(catalog.gpu("A100")) == 256
    assert capacity.default_sequences(catalog.gpu("L40S")) == 256


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (
            case("Qwen/Qwen3-235B-A22B", precision="fp8", tensor_parallel=8),
            "cuts the 1536 channels of an expert through blocks of 128",  # issue 17569
        ),
        (
            case("Qwen/Qwen3-30B-A3B", precision="fp8", tensor_parallel=4),
            "cuts the 768 channels of an expert",  # issue 25292
        ),
        (
            case("deepseek-ai/DeepSeek-R1", "H200", "fp8", tensor_parallel=32),
            "through blocks of 128",
        ),
    ],
)
def test_a_cut_through_weights_that_share_a_scale_does_not_start(asked: Case, says: str) -> None:
    assert says in capacity.memory(asked).reason
    assert not capacity.memory(asked).runs
    whole = replace(asked, configuration=replace(asked.configuration, tensor_parallel=2))
    assert capacity.layout_problem(whole.llm, whole.precision, tensor_parallel=2) is None


def test_deepseek_fits_eight_h200() -> None:
    found = capacity.memory(
        at_defaults(case("deepseek-ai/DeepSeek-V3", "H200", "fp8", tensor_parallel=8))
    )
    assert found.weights_bytes / GIB == pytest.approx(79, abs=1)
    assert found.runs


@settings(max_examples=80, deadline=None)
@given(
    llm=st.sampled_from(LLMS),
    gpu=st.sampled_from(["A100", "H100", "H200", "B200"]),
    tensor_parallel=st.sampled_from([1, 2, 4]),
    batch_size=st.integers(1, 4096),
    prompt=st.floats(1, 1e5),
    output=st.floats(1, 1e5),
    more=st.floats(1, 4),
)
def test_room_grows_with_memory_and_shrinks_with_lengths(
    llm: str,
    gpu: str,
    tensor_parallel: int,
    batch_size: int,
    prompt: float,
    output: float,
    more: float,
) -> None:
    def held(share: float, prompt: float, output: float, kv_bits: float = 16.0) -> float:
        asked = case(
            llm, gpu, input_tokens=prompt, output_tokens=output,
            tensor_parallel=tensor_parallel, batch_size=batch_size,
        )  # fmt: skip
        told = replace(
            asked,
            gpu=replace(asked.gpu, memory_share_ratio=share),
            precision=replace(asked.precision, kv_bits=kv_bits),
        )
        return float(capacity.room(Cases.of([told]))[0])

    usual = held(0.9, prompt, output)
    assert held(0.9 + 0.02 * more, prompt, output) >= usual
    assert held(0.9, prompt * more, output) <= usual
    assert held(0.9, prompt, output * more) <= usual
    assert held(0.9, prompt, output, 8.0) >= usual


@pytest.mark.parametrize(
    ("gpu", "precision", "says"),
    [
        ("H100", "nvfp4", "widen"),
        ("A100", "fp8", "widen"),
        ("L40S", "nvfp4", "widen"),
        ("A6000", "fp8-block", "widen"),
        ("T4", "fp8", "widen"),
        ("V100", "bf16", "serve it as fp16"),
        ("T4", "bf16", "serve it as fp16"),
        ("V100", "fp8", "nor has kernels that widen it"),
        ("MI250X", "fp8", "nor has kernels that widen it"),
        ("MI300X", "nvfp4", "nor has kernels that widen it"),
        ("B200", "int8", "serve it as fp8"),
        ("V100", "fp16", ""),
        ("B200", "nvfp4", ""),
        ("H100", "fp8", ""),
        ("A100", "int8", ""),
    ],
)
def test_formats_that_a_gpu_does_not_multiply_are_said_so_or_refused(
    gpu: str, precision: str, says: str
) -> None:
    asked = catalog.gpu(gpu), catalog.precision(precision)
    note, refused = capacity.format_note(*asked) or "", capacity.format_problem(*asked)
    served = case("Qwen/Qwen3-8B", gpu, precision, tensor_parallel=2)
    memory, room = capacity.memory(served), capacity.room(Cases.of([served]))
    if says in ("", "widen"):
        assert refused is None
        assert bool(note) == bool(says)
        assert says in note
        assert memory.runs
        assert room[0] >= 1
    else:
        assert not note
        assert says in (refused or "")
        assert not memory.runs
        assert says in memory.reason
        assert room[0] == 0


@pytest.mark.parametrize("load", [(), ("--rate", "1")])
@pytest.mark.parametrize(
    ("gpu", "precision", "says"),
    [("T4", "bf16", "serve it as fp16"), ("MI210", "fp8", "nor has kernels that widen it")],
)
def test_no_verb_recommends_a_format_that_engines_refuse(
    gpu: str,
    precision: str,
    says: str,
    load: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = ("--llm", "Qwen/Qwen3-8B", "--gpu", gpu, "--precision", precision,
             "--input-tokens", "500", "--output-tokens", "300")  # fmt: skip
    assert main(["select", *asked, *load]) == 4
    assert says in " ".join(capsys.readouterr().err.split())
    if not load:
        assert main(["explain", *asked]) == 4
        assert says in " ".join(capsys.readouterr().out.split())
