from __future__ import annotations

import dataclasses
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energylens.errors import EnergyLensError, InputError, MissingExtraError, UnknownNameError
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
    Source,
    StateSpace,
    Vision,
    Workload,
)

ATTENTION = Attention(layers=2, heads=4, kv_heads=2, head_size=16)
FEED_FORWARD = FeedForward(layers=2, size=128)
EXPERTS = Experts(layers=2, experts=8, active_experts=2, size=32)
STATE_SPACE = StateSpace(layers=2, inner_size=128, state_size=16, heads=4)
VISION = Vision(parameters=1000, layers=2, hidden_size=32, patch_pixels=14)
LLM = Llm(
    id="small",
    layers=2,
    hidden_size=64,
    vocabulary_size=100,
    total_parameters=10**6,
    active_parameters=10**6,
    attention=ATTENTION,
    feed_forward=FEED_FORWARD,
)
GPU = Gpu(
    id="G",
    memory_bytes=80e9,
    memory_bandwidth_bytes_per_s=1e12,
    bf16_flop_per_s=1e14,
    tdp_w=500,
)
PRECISION = Precision(id="bf16", weight_bits=16, compute_bits=16)
WORKLOAD = Workload(input_tokens=100, output_tokens=10, vision_tokens=64, images=1)
CONFIGURATION = Configuration(tensor_parallel=2, batch_size=8)
CASE = Case(llm=LLM, gpu=GPU, precision=PRECISION, workload=WORKLOAD, configuration=CONFIGURATION)
RECORDS = (
    ATTENTION,
    FEED_FORWARD,
    EXPERTS,
    STATE_SPACE,
    VISION,
    LLM,
    GPU,
    PRECISION,
    WORKLOAD,
    CONFIGURATION,
    CASE,
)

# Numbers that may be 0, and those that are no number to check.
MAY_BE_ZERO = {
    "index_heads",
    "index_head_size",
    "window_layers",
    "rope_head_size",
    "shared_size",
    "heads",
    "vision_tokens",
    "images",
    "frames",
}


def numbers_of(record):
    for field in dataclasses.fields(record):
        kind = str(field.type)
        if ("int" in kind or "float" in kind) and field.name != "matrices":
            yield field.name


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_records_are_immutable_and_take_keywords_only(record):
    field = dataclasses.fields(record)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(record, field, getattr(record, field))
    with pytest.raises(TypeError):
        type(record)(getattr(record, field))
    assert replace(record) == record
    assert hash(replace(record)) == hash(record)


@pytest.mark.parametrize(
    ("record", "name"),
    [(record, name) for record in RECORDS for name in numbers_of(record)],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_quantity_that_is_no_size_is_refused_by_name(record, name):
    impossible = [-1, math.nan, math.inf]
    if name == "batch_size":  # under a load no limit may be known
        impossible.remove(math.inf)
    zero_allowed = name in MAY_BE_ZERO and not (record is ATTENTION and name == "heads")
    if not zero_allowed:
        impossible.append(0)
    for value in impossible:
        with pytest.raises(InputError, match=name):
            replace(record, **{name: value})


@pytest.mark.parametrize(
    ("record", "changes", "message"),
    [
        (ATTENTION, {"window_layers": 3, "window_tokens": 8}, "window_layers exceeds layers"),
        (ATTENTION, {"window_layers": 1}, "window_layers needs window_tokens"),
        (FEED_FORWARD, {"matrices": 4}, "matrices must be 2 or 3"),
        (EXPERTS, {"matrices": 1}, "matrices must be 2 or 3"),
        (EXPERTS, {"active_experts": 9}, "active_experts exceeds experts"),
        (LLM, {"id": "  "}, "id must not be empty"),
        (LLM, {"attention": None}, "needs attention or state-space layers"),
        (LLM, {"active_parameters": 2 * 10**6}, "exceeds total_parameters"),
        (GPU, {"id": ""}, "id must not be empty"),
        (PRECISION, {"scope": "everything"}, "scope must be linear, feed_forward or experts"),
        (WORKLOAD, {"vision_tokens": 101}, r"input_tokens \(100\) must include"),
        (CASE, {"node_gpus": 0}, "node_gpus"),
    ],
)
def test_what_contradicts_itself_is_refused(record, changes, message):
    with pytest.raises(InputError, match=message):
        replace(record, **changes)


@pytest.mark.parametrize("degree", ["tensor", "pipeline", "expert", "data"])
def test_a_part_of_a_gpu_is_refused(degree):
    with pytest.raises(InputError, match=f"{degree}_parallel must be a whole number"):
        Configuration(**{f"{degree}_parallel": 1.5})
    assert getattr(Configuration(**{f"{degree}_parallel": 2.0}), f"{degree}_parallel") == 2


def test_not_known_is_none_and_never_zero():
    assert CONFIGURATION.mean_batch_size is None
    assert GPU.idle_power_w is None
    assert CASE.node_gpus is None
    with pytest.raises(InputError, match="mean_batch_size"):
        replace(CONFIGURATION, mean_batch_size=0)


# ---------------------------------------------------------------------- parameters, by hand


def test_the_parameters_of_a_dense_llm_are_counted_by_hand():
    # attention: 2 layers x 64 x 16 x (4 + 2) x 2 (Q and O with 4 heads, K and V with 2)
    assert ATTENTION.parameters(64) == 2 * 12_288
    # feed-forward: 2 layers x 3 matrices x 64 x 128
    assert LLM.backbone_parameters == 24_576 + 49_152
    assert LLM.embedding_parameters == 6_400
    assert LLM.always_parameters == LLM.computing_parameters == 80_128
    assert LLM.counted_parameters == 73_728 + 2 * 6_400
    assert replace(LLM, tied_embeddings=True).counted_parameters == 80_128
    assert replace(LLM, vision=VISION).counted_parameters == 87_528


def test_values_may_have_a_head_size_of_their_own():
    narrow = replace(ATTENTION, value_head_size=8)
    assert narrow.parameters(64) == 2 * 64 * (4 + 2) * (16 + 8)
    assert narrow.kv_elements_per_token_layer == 2 * (16 + 8)
    assert ATTENTION.kv_elements_per_token_layer == 64


def test_the_experts_of_a_mixture_are_counted_by_hand():
    moe = replace(LLM, feed_forward=None, experts=replace(EXPERTS, shared_size=16))
    assert moe.expert_parameters == 2 * 8 * 3 * 64 * 32
    # attention + shared experts (3 x 64 x 16) and the router (64 x 8) of both layers
    assert moe.backbone_parameters == 24_576 + 2 * (3 * 64 * 16 + 64 * 8)
    assert moe.expert_share == 0.25
    assert moe.computing_parameters == moe.always_parameters + 0.25 * moe.expert_parameters


def test_latent_attention_is_counted_by_hand():
    latent = Attention(layers=1, heads=2, kv_heads=2, head_size=4, kv_rank=6, rope_head_size=2)
    # down 8 x (6 + 2), up 6 x 2 x (4 + 4), out 2 x 4 x 8, query 8 x 2 x (4 + 2)
    assert latent.parameters(8) == 64 + 96 + 64 + 96
    assert replace(latent, query_rank=3).parameters(8) == 64 + 96 + 64 + 3 * (8 + 12)
    assert latent.kv_elements_per_token_layer == 8


def test_state_space_layers_are_counted_by_hand():
    second = StateSpace(layers=1, inner_size=16, state_size=4, heads=2)
    # in 8 x (32 + 8 + 2), convolution (16 + 8) x 4, out 16 x 8
    assert second.parameters(8) == 336 + 96 + 128
    assert second.elements_per_sequence == 16 * 4 + 24 * 3
    first = StateSpace(layers=1, inner_size=16, state_size=4)
    # rank 1: in 8 x 32, to step and B, C 16 x 9, step 16, A and convolution 16 x 8, out 128
    assert first.parameters(8) == 256 + 144 + 16 + 128 + 128
    assert first.elements_per_sequence == 16 * 4 + 16 * 3


@pytest.mark.parametrize(
    ("parts", "family"),
    [
        ({}, "dense"),
        ({"experts": EXPERTS}, "moe"),
        ({"state_space": STATE_SPACE}, "hybrid"),
        ({"state_space": STATE_SPACE, "experts": EXPERTS}, "hybrid-moe"),
        ({"state_space": STATE_SPACE, "attention": None}, "ssm"),
    ],
)
def test_the_family_follows_from_the_layers(parts, family):
    assert replace(LLM, **parts).family == family


# -------------------------------------------------------------- hardware, precision, layout


def test_a_gpu_without_a_narrow_format_widens_the_operands():
    assert GPU.flop_per_s(4) == GPU.flop_per_s(8) == GPU.flop_per_s(16) == 1e14
    rich = replace(GPU, fp8_flop_per_s=2e14, int8_op_per_s=3e14, fp4_flop_per_s=4e14)
    assert rich.flop_per_s(16) == 1e14
    assert rich.flop_per_s(8) == 2e14
    assert rich.flop_per_s(8, integer=True) == 3e14
    assert rich.flop_per_s(4) == 4e14
    assert rich.flop_per_s(4, integer=True) == 3e14
    # engines widen 4-bit floating point to 16 bits, not to 8
    assert replace(rich, fp4_flop_per_s=None).flop_per_s(4) == 1e14
    assert not replace(rich, fp4_flop_per_s=None).multiplies(4)
    assert rich.multiplies(4)
    assert GPU.multiplies(16)
    assert not GPU.multiplies(8, integer=True)


def test_a_format_is_weight_only_if_its_weights_are_widened():
    assert not PRECISION.weight_only
    assert replace(PRECISION, weight_bits=4.25).weight_only


def test_expert_parallelism_adds_no_gpus():
    layout = Configuration(
        tensor_parallel=2, pipeline_parallel=3, data_parallel=4, expert_parallel=8, batch_size=64
    )
    assert layout.gpus == 24
    assert layout.describe() == "TP2 PP3 EP8 DP4 B64"
    assert Configuration(batch_size=0.5).describe() == "TP1 PP1 B0.5"


def test_only_measured_and_published_joules_carry_a_claim():
    claims = {Source.MEASURED, Source.SELF_MEASURED, Source.PUBLISHED}
    assert {s for s in Source if s.carries_accuracy_claim} == claims
    assert set(Boundary) == {"active_gpus", "node", "wall"}


# -------------------------------------------------------------------------------- the errors


def test_an_unknown_name_comes_with_the_nearest_ones_and_advice():
    error = UnknownNameError("LLM", "qwen3-23b", ["Qwen3-32B", "gemma"], "Add it.")
    assert str(error) == "unknown LLM 'qwen3-23b'. Did you mean Qwen3-32B? Add it."
    assert str(UnknownNameError("GPU", "zzz", ["H100"])) == "unknown GPU 'zzz'."


def test_a_missing_package_names_its_extra():
    error = MissingExtraError("pyarrow", "parquet", "reading a Parquet file")
    assert "pip install 'energylens[parquet]'" in str(error)
    assert isinstance(error, EnergyLensError)


@pytest.mark.parametrize("cap", [0.0, -400.0, float("nan"), 0.4, 69.0, 736.0, 400_000.0])
def test_a_power_cap_that_no_gpu_can_have_is_refused(cap):
    hundred = replace(CASE, gpu=replace(GPU, tdp_w=700.0))
    with pytest.raises(InputError, match="power_cap_w must"):
        replace(hundred, configuration=replace(CONFIGURATION, power_cap_w=cap))
    capped = replace(CONFIGURATION, power_cap_w=400.0)
    assert replace(hundred, configuration=capped).configuration.describe() == "TP2 PP1 B8 400W"


@given(st.integers(1, 64), st.integers(1, 16), st.integers(1, 16), st.floats(0.1, 1e6))
def test_the_gpus_are_the_product_of_the_three_degrees(tensor, pipeline, data, batch):
    layout = Configuration(
        tensor_parallel=tensor, pipeline_parallel=pipeline, data_parallel=data, batch_size=batch
    )
    assert layout.gpus == tensor * pipeline * data
    assert (f"DP{data}" in layout.describe()) == (data > 1)
