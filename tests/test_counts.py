"""The counts, on architectures small enough to count by hand."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from energylens import counts as counts_module
from energylens.cases import Cases
from energylens.counts import (
    CALL_BYTES,
    HOP_S,
    Counts,
    count,
    count_in_chunks,
    coverage,
    in_flight,
    weight_bytes,
)
from energylens.records import (
    Attention,
    Boundary,
    Case,
    Configuration,
    Engine,
    Experts,
    FeedForward,
    Gpu,
    Llm,
    Precision,
    StateSpace,
    Vision,
    Workload,
)

BF16 = Precision(id="bf16", weight_bits=16, compute_bits=16)
FP8 = Precision(id="fp8", weight_bits=8, compute_bits=8)
INT4 = Precision(id="int4", weight_bits=4, compute_bits=16, scope="experts")
GPU = Gpu(
    id="G",
    memory_bytes=80e9,
    memory_bandwidth_bytes_per_s=1e12,
    bf16_flop_per_s=1e14,
    fp8_flop_per_s=2e14,
    tdp_w=500,
)
# Attention 2 x 8 x 4 x (2 + 1) x 2 = 384 weights, feed-forward 2 x 3 x 8 x 16 = 768,
# one vocabulary matrix 800: 1952 weights multiply each token, 3904 FLOP.
DENSE = Llm(
    id="dense",
    layers=2,
    hidden_size=8,
    vocabulary_size=100,
    total_parameters=10**4,
    active_parameters=10**4,
    attention=Attention(layers=2, heads=2, kv_heads=1, head_size=4),
    feed_forward=FeedForward(layers=2, size=16),
)
# Attention 384, routers 2 x 8 x 8 = 128, vocabulary 800: 1312 always;
# experts 2 x 8 x 3 x 8 x 4 = 1536, a quarter of them for each token.
MOE = replace(
    DENSE,
    id="moe",
    feed_forward=None,
    experts=Experts(layers=2, experts=8, active_experts=2, size=4),
)
LATENT = replace(
    DENSE,
    id="latent",
    attention=Attention(layers=2, heads=2, kv_heads=2, head_size=4, kv_rank=6, rope_head_size=2),
)
WINDOWED = replace(
    DENSE,
    id="windowed",
    attention=Attention(
        layers=2, heads=2, kv_heads=1, head_size=4, window_tokens=60, window_layers=1
    ),
)
HYBRID = replace(
    DENSE,
    id="hybrid",
    attention=replace(DENSE.attention, layers=1),
    state_space=StateSpace(layers=1, inner_size=16, state_size=4, heads=2),
)
SEEING = replace(
    DENSE,
    id="seeing",
    vision=Vision(parameters=1000, layers=2, hidden_size=8, patch_pixels=14, patches_per_token=4),
)
LLMS = (DENSE, MOE, LATENT, WINDOWED, HYBRID, SEEING)
BASE = Case(
    llm=DENSE,
    gpu=GPU,
    precision=BF16,
    workload=Workload(input_tokens=100, output_tokens=50),
    configuration=Configuration(batch_size=4, mean_batch_size=4),
)


def laid_out(llm=DENSE, *, batch=4.0, tokens=(100, 50), precision=BF16, **configuration):
    return replace(
        BASE,
        llm=llm,
        precision=precision,
        workload=Workload(input_tokens=tokens[0], output_tokens=tokens[1]),
        configuration=Configuration(batch_size=batch, mean_batch_size=batch, **configuration),
    )


def counted(case):
    counts = count(Cases.of([case]))
    return {f.name: float(getattr(counts, f.name)[0]) for f in fields(counts)}


# --------------------------------------------------------------------------------- by hand


def test_a_dense_llm_on_one_gpu_counts_as_by_hand():
    assert counted(BASE) == {
        "gpus": 1,
        "replica_gpus": 1,
        "idle_gpus": 0,
        "running": 4,
        "microbatches": 1,
        "passes": 1,
        "steps": 12.5,  # 50 tokens, each step shared by 4 sequences
        "kernels": 16,  # 2 x 5 of attention, 2 x 3 of feed-forward
        "launch_ratio": 1,
        "sequence_ratio": 1,
        "pass_gpus": 1,
        "step_gpus": 12.5,
        "pass_weight_bytes": 3_904 / 4,  # 1952 weights of 2 bytes, read for one of 4 prompts
        "step_weight_bytes": 48_800,  # 12.5 times that
        # 100 x 2304, logits once, and 4 x 8 query channels x 100 tokens x 50 seen on average
        # x 2 layers
        "prefill_flop": 230_400 + 1_600 + 320_000,
        "prompt_flop": pytest.approx(np.hypot(552_000, 976 / 0.8e12 * 0.5e14)),
        "prefill_attention_flop": 320_000,
        "decode_flop": 195_200 + 50 * 4 * 8 * 125 * 2,
        "vision_flop": 0,
        # 8 elements a token and layer of 2 bytes, 125 tokens on average, 2 layers, 50 times
        "cache_bytes": 200_000,
        "prefill_link_bytes": 0,
        "decode_link_bytes": 0,
        "stage_hops": 0,
        "prefill_stage_gpu_s": 0,
        "decode_stage_gpu_s": 0,
        "prefill_s": pytest.approx(np.hypot(552_000, 61_000) / 0.5e14 + 16 * 10e-6),
        "decode_s": pytest.approx(
            np.hypot(48_800 / 0.8e12, 595_200 / 0.5e14) + 200_000 / 0.8e12 + 16 * 10e-6 * 12.5
        ),
        "prefill_roofline_s": 552_000 / 1e14,
        "decode_roofline_s": 248_800 / 1e12 + 595_200 / 1e14,
        "output_tokens": 50,
        "narrow_ratio": 0,
        "weight_only_ratio": 0,
        "expert_wait_bytes": 0,
        "media": 0,
        "context_ratio": 150 / 8192,
    }


def test_a_mixture_reads_the_experts_that_its_batch_touches():
    c = counted(laid_out(MOE, batch=2, tokens=(3, 10)))
    # decode: 5 steps of 1312 x 2 bytes and of 3072 x (1 - 0.75^2)
    assert c["step_weight_bytes"] == pytest.approx(5 * (2_624 + 1_344))
    # prefill of 3 tokens touches 1 - 0.75^3 of the experts; of two prompts in flight one starts
    # alone and reads all it needs, the other what the step that it joins does not touch
    touched = 3_072 * (1 - 0.75**3)
    assert c["pass_weight_bytes"] == pytest.approx(
        2_624 / 2 + touched * (1 / 2 + (1 - (1 - 0.75**2)) / 2)
    )
    linear = 2 * (1_312 + 1_536 / 4)
    assert c["decode_flop"] == pytest.approx(10 * (linear + 4 * 8 * 8 * 2))
    assert c["kernels"] == 2 * 5 + 2 * 12


def test_shared_experts_are_read_always_and_launch_kernels():
    shared = replace(MOE, experts=replace(MOE.experts, shared_size=4))
    before = counted(laid_out(MOE, batch=2, tokens=(3, 10)))
    after = counted(laid_out(shared, batch=2, tokens=(3, 10)))
    # 2 layers x 3 matrices x 8 x 4 = 192 weights more
    assert after["step_weight_bytes"] - before["step_weight_bytes"] == pytest.approx(5 * 384)
    assert after["decode_flop"] - before["decode_flop"] == pytest.approx(10 * 384)
    assert after["kernels"] - before["kernels"] == 2 * 3


def test_latent_attention_caches_its_latent():
    # 6 + 2 elements instead of 2 x 2 x 4, at 125 tokens x 2 layers x 50 x 2 bytes
    assert counted(laid_out(LATENT))["cache_bytes"] == 200_000
    wide = replace(LATENT, attention=replace(LATENT.attention, kv_rank=14))
    assert counted(laid_out(wide))["cache_bytes"] == 400_000


def test_a_sliding_window_limits_what_is_seen_and_read():
    c = counted(laid_out(WINDOWED))
    # decode from 100 to 150: one layer reads 125 tokens, the other 60
    assert c["cache_bytes"] == 8 * 2 * (125 + 60) * 50
    # prefill from 0 to 100: 50 on average in one layer, (60^2 / 2 + 40 x 60) / 100 in the other
    assert c["prefill_flop"] == 230_400 + 1_600 + 4 * 8 * 100 * (50 + 42)
    assert c["decode_flop"] == 195_200 + 50 * 4 * 8 * (125 + 60)
    # inside the window nothing differs
    short = counted(laid_out(WINDOWED, tokens=(30, 20)))
    assert short == counted(laid_out(tokens=(30, 20)))


def test_a_state_space_layer_reads_and_writes_its_state():
    c = counted(laid_out(HYBRID))
    # one attention layer: 8 x 2 bytes x 125; state of 16 x 4 + 24 x 3 elements of 2 bytes, twice
    assert c["cache_bytes"] == 50 * (2_000 + 2 * 2 * 136)
    # where the LLM says so the recurrent part, not the convolution's tail, is in 32 bits
    wide = replace(HYBRID, state_space=replace(HYBRID.state_space, state_bits=32))
    assert counted(laid_out(wide))["cache_bytes"] == 50 * (2_000 + 2 * (4 * 64 + 2 * 72))
    assert c["kernels"] == 5 + 10 + 2 * 3
    # its size does not depend on the context
    longer = counted(laid_out(HYBRID, tokens=(300, 50)))
    assert longer["cache_bytes"] - c["cache_bytes"] == 50 * 8 * 2 * 200


def test_an_image_costs_the_tower_four_patches_a_token():
    case = replace(laid_out(SEEING), workload=replace(BASE.workload, vision_tokens=10, images=1))
    with_image, without = counted(case), counted(laid_out(SEEING))
    # 40 patches, and each of them attends to the 40 of its image: 4 x 8 x 2 layers x 40 x 40
    assert with_image["vision_flop"] == 2 * 1_000 * 40 + 4 * 8 * 2 * 40 * 40
    two = counted(replace(case, workload=replace(case.workload, images=2)))
    assert two["vision_flop"] == 2 * 1_000 * 40 + 4 * 8 * 2 * 40 * 20
    assert with_image["prefill_flop"] == without["prefill_flop"]
    assert with_image["prefill_roofline_s"] - without["prefill_roofline_s"] == pytest.approx(
        (80_000 + 102_400) / 1e14
    )


def test_tensor_parallelism_sends_each_hidden_state_around_the_ring():
    c = counted(laid_out(tensor_parallel=4))
    # 2 (4 - 1) messages of 8 x 2 bytes after 4 sublayers
    # and every call costs each of the 4 GPUs as much as CALL_BYTES more
    assert c["prefill_link_bytes"] == pytest.approx(100 * 6 * 4 * 16 + 4 * 4 * CALL_BYTES)
    assert c["decode_link_bytes"] == pytest.approx(50 * 6 * 4 * 16 + 12.5 * 4 * 4 * CALL_BYTES)
    assert c["gpus"] == 4
    assert c["step_weight_bytes"] == 48_800  # split, not repeated


def test_key_heads_are_copied_where_there_are_fewer_than_gpus():
    # one KV head: every GPU reads it; two heads on four GPUs: each of them twice
    assert counted(laid_out(tensor_parallel=4))["cache_bytes"] == 4 * 200_000
    two = replace(DENSE, attention=replace(DENSE.attention, kv_heads=2, heads=4))
    assert counted(laid_out(two, tensor_parallel=2))["cache_bytes"] == 400_000
    assert counted(laid_out(two, tensor_parallel=4))["cache_bytes"] == 800_000
    # the latent of latent attention is on every GPU
    assert counted(laid_out(LATENT, tensor_parallel=8))["cache_bytes"] == 8 * 200_000


def test_latent_attention_multiplies_in_its_latent_while_decoding():
    # 2 heads x (6 + 2 with queries, 6 with values), 2 FLOP each, 125 tokens, 2 layers
    c = counted(laid_out(LATENT))
    linear = 2 * (LATENT.computing_parameters)
    assert c["decode_flop"] == pytest.approx(50 * (linear + 2 * 2 * (8 + 6) * 125 * 2))
    # and in full width in the prompt: 2 heads x (4 + 2 and 4)
    assert c["prefill_attention_flop"] == pytest.approx(100 * 2 * 2 * 10 * 50 * 2)


def test_sparse_attention_reads_what_its_indexer_picks_and_every_index_key():
    sparse = replace(
        LATENT,
        attention=replace(LATENT.attention, index_heads=3, index_head_size=8, index_tokens=40),
    )
    c = counted(laid_out(sparse))
    # 40 latents of 8 elements of 2 bytes in 2 layers, 125 keys of 8 bytes and a scale of 4
    assert c["cache_bytes"] == pytest.approx(50 * 2 * (40 * 16 + 125 * 12))
    plain = counted(laid_out(LATENT))
    index = 2 * 3 * 8 * 125 * 2
    seen = 2 * 2 * (8 + 6) * (125 - 40) * 2
    weights = 2 * (8 * 3 * 8 + 8 * (8 + 3)) * 2
    assert c["decode_flop"] - plain["decode_flop"] == pytest.approx(50 * (index - seen + weights))
    # short of its choice it attends to all, as without it
    short = counted(laid_out(sparse, tokens=(20, 10)))
    assert short["cache_bytes"] == pytest.approx(10 * 2 * 25 * (16 + 12))


def test_pipeline_stages_work_on_a_microbatch_each():
    c = counted(laid_out(MOE, batch=8, tokens=(3, 16), pipeline_parallel=4))
    # 2 steps, in each of which 4 microbatches of 2 sequences read all weights
    assert c["step_weight_bytes"] == pytest.approx(2 * 4 * (2_624 + 1_344))
    assert c["stage_hops"] == 3
    assert c["gpus"] == 4
    assert c["decode_link_bytes"] == 0
    # each stage launches its own kernels, for each microbatch
    assert c["step_gpus"] == 2 * 4


@pytest.mark.parametrize("stages", [2, 4, 8])
def test_a_sequence_cannot_be_split_into_microbatches(stages):
    alone, plain = counted(laid_out(batch=1, pipeline_parallel=stages)), counted(laid_out(batch=1))
    assert alone["microbatches"] == 1
    for name in ("step_weight_bytes", "pass_weight_bytes", "step_gpus", "pass_gpus"):
        assert alone[name] == plain[name]
    # while one stage works the others wait: all GPU time but 1 / PP is lost, and the hops
    busy = plain["decode_s"]
    hops = (stages - 1) * HOP_S * 50
    assert alone["decode_stage_gpu_s"] == pytest.approx((stages - 1) * busy + hops)
    assert alone["decode_s"] == pytest.approx(busy + hops / stages)
    two = counted(laid_out(batch=2, pipeline_parallel=stages))
    assert two["microbatches"] == 2


def test_data_parallel_replicas_read_their_own_weights():
    c = counted(laid_out(MOE, batch=8, tokens=(3, 16), data_parallel=4))
    # 2 steps of 4 replicas with 2 sequences each
    assert c["step_weight_bytes"] == pytest.approx(2 * 4 * (2_624 + 1_344))
    assert c["decode_link_bytes"] == 0


def test_expert_parallelism_keeps_one_copy_of_the_experts_and_sends_tokens_to_them():
    c = counted(laid_out(MOE, batch=8, tokens=(3, 16), data_parallel=4, expert_parallel=4))
    touched = 1 - 0.75**8
    assert c["step_weight_bytes"] == pytest.approx(2 * (4 * 2_624 + 3_072 * touched))
    # there and back to 2 experts in 2 layers, 3 of 4 of them elsewhere, 16 bytes each; 4 calls of
    # each GPU and step
    assert c["decode_link_bytes"] == pytest.approx(16 * 16 * 2 * 0.75 * 4 + 2 * 4 * 4 * CALL_BYTES)
    assert c["gpus"] == 4
    # inside one tensor-parallel group the all-reduce does it
    grouped = counted(laid_out(MOE, batch=8, tensor_parallel=4, expert_parallel=4))
    plain = counted(laid_out(MOE, batch=8, tensor_parallel=4))
    assert grouped.pop("expert_wait_bytes") > plain.pop("expert_wait_bytes") == 0
    assert grouped == plain


def test_all_wait_for_the_gpu_whose_experts_are_asked_for_most():
    c = counted(laid_out(MOE, batch=8, tokens=(3, 16), data_parallel=4, expert_parallel=4))
    touched = 1 - 0.75**8
    # of 4 GPUs with 2 experts each, the busiest: sqrt(2 ln 4) deviations of a binomial share,
    # or all of its experts if that is less
    excess = np.sqrt(2 * np.log(4) * (1 - touched) / (2 * touched))
    assert excess > 1 / touched - 1
    assert c["expert_wait_bytes"] == pytest.approx(2 * 3_072 * (1 - touched))
    wide = replace(MOE, experts=replace(MOE.experts, experts=800, size=1))
    c = counted(laid_out(wide, batch=200, tokens=(3, 200), data_parallel=4, expert_parallel=4))
    touched = 1 - (1 - 2 / 800) ** 200
    excess = np.sqrt(2 * np.log(4) * (1 - touched) / (200 * touched))
    assert excess < 1 / touched - 1
    assert c["expert_wait_bytes"] == pytest.approx(2 * 2 * 800 * 3 * 8 * touched * excess)


def test_formats_and_media_are_counted_for_the_extensions():
    weights = replace(FP8, id="w8", weight_bits=8, compute_bits=16)
    for precision, narrow, weight_only in ((BF16, 0, 0), (FP8, 1, 0), (weights, 0, 1)):
        c = counted(laid_out(precision=precision))
        assert (c["narrow_ratio"], c["weight_only_ratio"]) == (narrow, weight_only)
    seen = replace(BASE, workload=replace(BASE.workload, images=2, frames=3))
    assert counted(seen)["media"] == 5


def test_the_node_boundary_counts_the_gpus_that_serve_nothing():
    node = replace(laid_out(tensor_parallel=2), boundary=Boundary.NODE, node_gpus=8)
    assert counted(node)["idle_gpus"] == 6
    assert counted(replace(node, boundary=Boundary.ACTIVE_GPUS))["idle_gpus"] == 0
    assert counted(replace(node, node_gpus=None))["idle_gpus"] == 0
    assert counted(replace(node, node_gpus=1))["idle_gpus"] == 0


def test_a_prompt_over_the_token_budget_takes_several_passes():
    long = counted(laid_out(tokens=(16_384, 50)))
    assert long["passes"] == 2
    assert long["pass_weight_bytes"] == 2 * 3_904 / 4
    mixture = counted(laid_out(MOE, batch=1, tokens=(16_384, 50)))
    assert mixture["pass_weight_bytes"] == pytest.approx(2 * (2_624 + 3_072))


def test_older_engines_read_the_weights_for_every_prompt():
    old = Engine(name="vllm", version="0.5.4")
    c = counted(replace(BASE, engine=old))
    assert c["pass_weight_bytes"] == 3_904
    assert (c["launch_ratio"], c["sequence_ratio"]) == pytest.approx((4, 1.2))
    new = counted(replace(BASE, engine=Engine(name="vllm", version="0.11.1")))
    assert (new["launch_ratio"], new["sequence_ratio"]) == (1, 1)
    assert new["pass_weight_bytes"] == 3_904 / 4


def test_a_format_that_a_gpu_cannot_multiply_is_widened():
    without = replace(GPU, fp8_flop_per_s=None)
    c = counted(replace(laid_out(precision=FP8), gpu=without))
    assert (c["narrow_ratio"], c["weight_only_ratio"]) == (0, 1)
    assert c["decode_flop"] == counted(laid_out())["decode_flop"]
    # NVFP4 where there are 8-bit products but none of 4 bits
    fp4 = replace(FP8, id="nvfp4", weight_bits=4.5, compute_bits=4)
    c = counted(laid_out(precision=fp4))
    assert (c["narrow_ratio"], c["weight_only_ratio"]) == (0, 1)
    assert c["decode_flop"] == counted(laid_out())["decode_flop"]


def test_block_scaled_products_launch_a_kernel_more_each():
    block = replace(FP8, id="fp8-block", block_size=128)
    c, plain = counted(laid_out(precision=block)), counted(laid_out(precision=FP8))
    # 2 products in each of 4 sublayers, 4 microseconds each
    assert c["kernels"] - plain["kernels"] == pytest.approx(8 * 0.4)
    assert c["step_weight_bytes"] == plain["step_weight_bytes"]


def test_a_number_format_narrows_the_linear_layers_and_not_the_vocabulary():
    assert weight_bytes(DENSE, BF16) == (3_904, 0)
    assert weight_bytes(DENSE, FP8) == (1_152 + 1_600, 0)
    assert weight_bytes(MOE, INT4) == (2_624, 768)
    c = counted(laid_out(precision=FP8))
    assert c["step_weight_bytes"] == 12.5 * 2_752
    # 8-bit products come twice as fast, at 1.62 times the joules of the peak; logits do not
    attention = 50 * 4 * 8 * 125 * 2
    assert c["decode_flop"] == pytest.approx(115_200 * 0.81 + 80_000 + attention)
    assert counted(laid_out(precision=INT4))["decode_flop"] == 195_200 + attention
    assert counted(laid_out(precision=replace(FP8, kv_bits=8)))["cache_bytes"] == 100_000


# ------------------------------------------------------------------- sequences in flight


def test_the_observed_batch_is_believed_before_the_limit():
    case = replace(BASE, configuration=Configuration(batch_size=64, mean_batch_size=10))
    assert counted(case)["running"] == 10
    unknown = replace(case, configuration=Configuration(batch_size=64))
    assert counted(unknown)["running"] == 64


def test_a_limit_beyond_the_memory_is_what_the_memory_holds():
    heavy = replace(DENSE, attention=replace(DENSE.attention, kv_heads=2**20))
    case = replace(BASE, llm=heavy, configuration=Configuration(batch_size=4096))
    held = counted(case)["running"]
    assert 1 <= held < 4096
    roomy = replace(case, gpu=replace(GPU, memory_bytes=160e9))
    assert counted(roomy)["running"] > 1.5 * held
    assert counted(replace(case, configuration=Configuration(batch_size=2)))[
        "running"
    ] == pytest.approx(2, rel=1e-3)


def test_a_layout_without_room_that_was_measured_all_the_same_is_believed():
    tiny = replace(GPU, memory_bytes=1e6)
    case = replace(BASE, gpu=tiny, configuration=Configuration(batch_size=32))
    assert counted(case)["running"] == 32


def test_known_and_unknown_batches_mix():
    cases = Cases.of(
        [BASE, replace(BASE, configuration=Configuration(batch_size=9)), laid_out(MOE, batch=3)]
    )
    assert in_flight(cases).tolist() == [4, 9, 3]
    assert np.isnan(cases.mean_batch_size[1])  # and the cases stay as they were


# ---------------------------------------------------------------------------- properties


@st.composite
def any_case(draw):
    llm = draw(st.sampled_from(LLMS))
    expert = draw(st.sampled_from((1, 2))) if llm.experts else 1
    batch = draw(st.floats(1, 4096))
    return Case(
        llm=llm,
        gpu=GPU,
        precision=draw(st.sampled_from((BF16, FP8, INT4))),
        workload=Workload(
            input_tokens=draw(st.floats(16, 1e5)),
            output_tokens=draw(st.floats(1, 1e4)),
            vision_tokens=draw(st.sampled_from((0.0, 16.0))) if llm.vision else 0.0,
        ),
        configuration=Configuration(
            tensor_parallel=draw(st.sampled_from((1, 2, 4))),
            pipeline_parallel=draw(st.sampled_from((1, 2))),
            data_parallel=expert,
            expert_parallel=expert,
            batch_size=batch,
            mean_batch_size=batch,
        ),
        boundary=draw(st.sampled_from(tuple(Boundary))),
        node_gpus=16,
    )


def changed(case, **changes):
    workload = {k: v for k, v in changes.items() if k in ("input_tokens", "output_tokens")}
    batch = changes.get("batch", case.configuration.batch_size)
    return replace(
        case,
        workload=replace(case.workload, **workload),
        configuration=replace(case.configuration, batch_size=batch, mean_batch_size=batch),
    )


FAST = settings(max_examples=60, deadline=None)


@FAST
@given(any_case())
def test_every_count_is_finite_and_not_negative(case):
    for name, value in counted(case).items():
        assert np.isfinite(value), name
        assert value >= 0, name


@FAST
@given(any_case())
def test_twice_the_output_is_twice_the_decode_work(case):
    one, two = counted(case), counted(changed(case, output_tokens=2 * case.workload.output_tokens))
    for name in ("steps", "step_weight_bytes", "decode_link_bytes", "output_tokens", "step_gpus"):
        assert two[name] == pytest.approx(2 * one[name], rel=1e-12), name
    for name in ("prefill_flop", "pass_weight_bytes", "prefill_link_bytes", "vision_flop"):
        assert two[name] == one[name], name
    # longer outputs attend to a longer context too
    for name in ("cache_bytes", "decode_flop"):
        assert two[name] >= 2 * one[name] * (1 - 1e-12), name


@FAST
@given(any_case(), st.floats(1, 10))
def test_a_larger_batch_never_reads_more_weights_a_request(case, factor):
    one = counted(case)
    more = counted(changed(case, batch=factor * case.configuration.batch_size))
    assert more["step_weight_bytes"] <= one["step_weight_bytes"] * (1 + 1e-12)
    assert more["steps"] <= one["steps"] * (1 + 1e-12)
    assert more["pass_weight_bytes"] <= one["pass_weight_bytes"] * (1 + 1e-12)
    for name in ("prefill_flop", "decode_flop", "cache_bytes"):
        assert more[name] == one[name], name


@FAST
@given(any_case(), st.floats(1.01, 10))
def test_a_longer_prompt_never_costs_less(case, factor):
    one = counted(case)
    more = counted(changed(case, input_tokens=factor * case.workload.input_tokens))
    # all but the logits, which are computed once
    logits = 2 * case.llm.embedding_parameters
    assert more["prefill_flop"] - logits >= factor * (one["prefill_flop"] - logits) * (1 - 1e-9)
    assert more["cache_bytes"] >= one["cache_bytes"] * (1 - 1e-12)
    assert more["pass_weight_bytes"] >= one["pass_weight_bytes"] * (1 - 1e-12)
    assert more["decode_flop"] >= one["decode_flop"] * (1 - 1e-12)


@FAST
@given(any_case(), st.sampled_from((2, 3, 8)))
def test_independent_replicas_do_the_same_for_each_request(case, replicas):
    c = case.configuration
    alone = replace(c, data_parallel=1, expert_parallel=1)
    batch = replicas * c.batch_size
    many = replace(alone, data_parallel=replicas, batch_size=batch, mean_batch_size=batch)
    active = replace(case, boundary=Boundary.ACTIVE_GPUS, node_gpus=None)
    one, more = (counted(replace(active, configuration=layout)) for layout in (alone, many))
    shared = {"gpus", "running", "steps", "prefill_s", "decode_s"}  # of all replicas together
    shared |= {"prefill_roofline_s", "decode_roofline_s"}
    for name, value in one.items():
        if name not in shared:
            assert more[name] == pytest.approx(value, rel=1e-12), name


@FAST
@given(st.floats(1e-4, 0.999), st.floats(0.5, 1e5), st.floats(0, 1e4))
def test_coverage_grows_with_tokens_from_the_share_of_one_to_everything(share, tokens, more):
    log_missed = np.log1p(-np.array([share]))
    one, few, many = (
        float(coverage(log_missed, np.array([t]))[0]) for t in (1.0, tokens, tokens + more)
    )
    assert one == pytest.approx(share)
    assert 0 < few <= many <= 1


@FAST
@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 500), st.sampled_from((1, 2, 5)))
def test_the_context_is_the_mean_of_what_each_token_sees(prompt, output, window, layers):
    # In the limit of many tokens the sum over tokens is the integral; here, to half a token.
    llm = replace(
        WINDOWED,
        attention=replace(WINDOWED.attention, layers=layers, window_tokens=window),
    )
    seen = sum(
        (layers - 1) * (prompt + i + 0.5) + min(prompt + i + 0.5, window) for i in range(output)
    )
    cache = counted(laid_out(llm, tokens=(prompt, output)))["cache_bytes"]
    assert cache / (8 * 2) == pytest.approx(seen, abs=0.26)  # one token crosses the window's edge


@pytest.fixture(scope="module")
def many(draw_cases):
    return Cases.of(draw_cases(64, seed=9, gpus=("H100", "A100-SXM-80GB")))


def test_counting_in_chunks_is_counting_at_once(many, monkeypatch):
    monkeypatch.setattr(counts_module, "CHUNK", 10)
    whole = count(many).matrix()[1]
    chunks = list(count_in_chunks(many))
    assert [rows.start for rows, _ in chunks] == [0, 10, 20, 30, 40, 50, 60]
    assert np.array_equal(np.concatenate([part.matrix()[1] for _, part in chunks]), whole)


def test_counts_do_not_depend_on_the_neighbours_or_the_order(many):
    names, whole = count(many).matrix()
    assert names == tuple(f.name for f in fields(Counts))
    order = np.random.default_rng(0).permutation(len(many))
    assert np.array_equal(count(many.take(order)).matrix()[1], whole[order])
    single = np.concatenate([count(Cases.of([many.case(i)])).matrix()[1] for i in range(20)])
    assert np.allclose(single, whole[:20], rtol=1e-14)


def test_no_cases_have_no_counts():
    assert count(Cases.of([])).matrix()[1].shape == (0, len(fields(Counts)))
