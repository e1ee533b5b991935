"""The physical counts of a case: bytes read, operations done, bytes sent, kernels launched.

Every number here follows from the LLM, the precision, the layout, the batch and the lengths;
nothing is fitted and nothing knows a joule. The law multiplies these counts with its twelve
coefficients; the learned baselines get the same counts as features, so that comparing them
compares models and not feature engineering.

All counts are **per request**: what a decode step costs is shared by the sequences in flight.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np

from energylens import capacity, catalog
from energylens.cases import Cases, FloatArray
from energylens.records import Gpu, Llm, Precision

# vLLM's default token budget of one scheduler step (max_num_batched_tokens): a longer prompt
# takes several passes. ML.ENERGY v3 ran with it in most configurations.
TOKENS_PER_PASS = float(capacity.TOKENS_PER_PASS)
ACTIVATION_BYTES = 2.0  # activations travel between GPUs in 16 bits
# Shares of the peaks that good kernels reach, and the time of a small kernel: round numbers, by
# which a GPU's datasheet says how long something takes. The fit corrects what they are wrong by.
BANDWIDTH_RATIO = 0.8
COMPUTE_RATIO = 0.5
LAUNCH_S = 10e-6
SEQUENCE_S = 100e-6  # of an engine's own work for one sequence in one step
HOP_S = 100e-6  # from one pipeline stage to the next
# What an all-reduce costs each GPU before the first byte, in bytes sent: 1.26 mJ a call and
# 1.51 nJ a byte, fitted to all-reduces measured on B200 (AIConfigurator, 69 rows, 13 % error).
CALL_BYTES = 1.26e-3 / 1.51e-9

# Kernels that one layer of each kind launches in a serving engine's forward pass: attention is
# norm, QKV product, rotary and cache write, attention, output product; a gated feed-forward is
# norm, two products with the activation fused; a mixture of experts adds routing, sorting,
# alignment, grouped products, activation, permutation and the weighted sum; a state-space layer
# is two products, convolution, scan, gate, norms and state copies. Counted by reading vLLM's
# layers; only their ratios matter, because one coefficient scales them all.
KERNELS_ATTENTION = 5.0
KERNELS_FEED_FORWARD = 3.0
KERNELS_EXPERTS = 12.0
KERNELS_STATE_SPACE = 10.0
PRODUCTS_PER_SUBLAYER = 2.0  # of an attention or feed-forward layer, those of one input fused
SCALING_S = 4e-6

# What one FLOP of a format costs over its peak's share of one in 16 bits, in joules: dense GEMMs
# measured on H200, B200 and GB200 (AIConfigurator, vLLM 0.22) cost 0.81 (FP8), 0.63 (FP8 in
# blocks) and 0.39 (NVFP4) of BF16 where peaks say 0.5, 0.5 and 0.25.
NARROW_FLOP_RATIO = 0.81 / 0.5
BLOCK_FLOP_RATIO = 0.63 / 0.5
FP4_FLOP_RATIO = 0.39 / 0.25

CHUNK = 16_384  # cases at a time: their columns stay in the processor's cache


@dataclass(frozen=True, kw_only=True, eq=False)
class Counts:
    """Counts per request of n cases, each of shape (n,)."""

    gpus: FloatArray  # GPUs of the deployment
    replica_gpus: FloatArray  # GPUs of one data-parallel replica
    idle_gpus: FloatArray  # GPUs of the node outside it (0 at the active_gpus boundary)
    running: FloatArray  # sequences in flight, all replicas
    microbatches: FloatArray  # that the stages of a replica's pipeline work on at once
    passes: FloatArray  # prefill passes: one, or more for a prompt over the token budget
    steps: FloatArray  # decode steps, divided by the sequences that share each
    kernels: FloatArray  # kernels of one forward pass
    launch_ratio: FloatArray  # time from kernel to kernel in the engine's generation / LAUNCH_S
    sequence_ratio: FloatArray  # its own work on a sequence of a step / SEQUENCE_S
    pass_gpus: FloatArray  # GPUs that wait for each kernel of a pass, summed over passes ...
    step_gpus: FloatArray  # ... and of the decode steps
    pass_weight_bytes: FloatArray  # weights that are read for the prompt alone
    step_weight_bytes: FloatArray  # share of the weights that the decode steps read
    prefill_flop: FloatArray  # linear layers and attention, in 16-bit equivalents
    prompt_flop: FloatArray  # the same, or what takes as long: reading the pass's weights
    prefill_attention_flop: FloatArray  # the part of attention in it
    decode_flop: FloatArray  # linear layers and attention, in 16-bit equivalents
    vision_flop: FloatArray  # vision tower
    cache_bytes: FloatArray  # KV cache and state-space state moved while decoding
    prefill_link_bytes: FloatArray  # sent between the GPUs of a tensor- or expert-parallel group,
    decode_link_bytes: FloatArray  # each call counted as CALL_BYTES more
    stage_hops: FloatArray  # PP - 1
    prefill_stage_gpu_s: FloatArray  # GPU-seconds in which pipeline stages wait for each other
    decode_stage_gpu_s: FloatArray
    prefill_s: FloatArray  # seconds of the deployment that a request takes up at the pace that
    decode_s: FloatArray  # the datasheet suggests, waits for kernels included
    prefill_roofline_s: FloatArray  # shortest time that the datasheet allows, on these GPUs
    decode_roofline_s: FloatArray
    output_tokens: FloatArray
    narrow_ratio: FloatArray  # 1 where weights and activations have 8 bits or fewer, else 0
    weight_only_ratio: FloatArray  # 1 where only the weights do, else 0
    expert_wait_bytes: FloatArray  # expert weights that the busiest GPU reads beyond its share
    media: FloatArray  # images and frames
    context_ratio: FloatArray  # longest context over 8192 tokens

    def matrix(self) -> tuple[tuple[str, ...], FloatArray]:
        """Names and values of all counts, shape (n, k), for learned baselines."""
        names = tuple(f.name for f in fields(self))
        return names, np.column_stack([getattr(self, name) for name in names])


def weight_bytes(llm: Llm, precision: Precision) -> tuple[float, float]:
    """Bytes of the weights that every pass reads, and of all routed experts.

    The output vocabulary matrix stays in 16 bits in every format.
    """
    narrow = precision.weight_bits / 8.0
    wide = max(2.0, narrow)
    backbone = narrow if precision.scope == "linear" else wide
    always = llm.backbone_parameters * backbone + llm.embedding_parameters * wide
    if precision.scope == "feed_forward":
        always -= llm.feed_forward_parameters * (wide - narrow)
    return always, llm.expert_parameters * narrow


def kernels(llm: Llm) -> float:
    """Kernels that one forward pass of an LLM launches."""
    total = KERNELS_ATTENTION * llm.attention.layers if llm.attention else 0.0
    if llm.feed_forward:
        total += KERNELS_FEED_FORWARD * llm.feed_forward.layers
    if llm.experts:
        shared = KERNELS_FEED_FORWARD if llm.experts.shared_size else 0.0
        total += (KERNELS_EXPERTS + shared) * llm.experts.layers
    if llm.state_space:
        total += KERNELS_STATE_SPACE * llm.state_space.layers
    return total


def scaling_kernels(llm: Llm, precision: Precision) -> float:
    """Kernels more that block-scaled formats launch in a forward pass, one scaling each input.

    Where both factors are scaled in blocks (8-bit products with a scale for every 128 weights) an
    own kernel finds the scales of each product's input: 4 microseconds a product in graph-captured
    latent-attention modules on H200 and B200 (AIConfigurator), whatever the bytes.
    """
    if precision.block_size is None or precision.compute_bits != 8:
        return 0.0
    layers = 0
    if precision.scope == "linear":
        layers += llm.attention.layers if llm.attention else 0
        layers += llm.state_space.layers if llm.state_space else 0
    layers += llm.feed_forward.layers if llm.feed_forward else 0
    layers += llm.experts.layers if llm.experts else 0
    return PRODUCTS_PER_SUBLAYER * SCALING_S / LAUNCH_S * layers


def coverage(log_missed: FloatArray, tokens: FloatArray) -> FloatArray:
    """Share of the experts that ``tokens`` tokens touch.

    ``1 - (1 - share)^tokens``: tokens choose independently and evenly, each a ``share`` of the
    experts; ``log_missed`` is ``log(1 - share)``.
    """
    return -np.expm1(tokens * log_missed)


# What the counts need of an LLM, a precision and a GPU, looked up once for all cases.
_LLM = (
    "kernels", "flop", "logits_flop", "log_missed", "kv_elements", "kv_heads", "state_bytes",
    "prefill_attention", "decode_attention", "index_flop", "index_bytes", "index_tokens",
    "full_layers", "window_layers", "window", "hidden", "reductions", "routed", "exchanges",
    "experts", "tower", "tower_attention", "patches",
)  # fmt: skip
_ENDLESS = 1e15  # tokens: no window, and no limit to what is attended to


def _of_llm(llm: Llm) -> tuple[float, ...]:
    attention, experts, state, vision = llm.attention, llm.experts, llm.state_space, llm.vision
    mixers = (attention.layers if attention else 0) + (state.layers if state else 0)
    dense = llm.feed_forward.layers if llm.feed_forward else 0
    return (
        kernels(llm),
        2.0 * (llm.computing_parameters - llm.embedding_parameters),
        2.0 * llm.embedding_parameters,
        math.log1p(-min(llm.expert_share, 1 - 1e-12)),
        attention.kv_elements_per_token_layer if attention else 0.0,
        # The latent of multi-head latent attention is like a single head.
        (1.0 if attention.kv_rank is not None else attention.kv_heads) if attention else _ENDLESS,
        state.bytes_per_sequence if state else 0.0,
        attention.prefill_flop_per_seen_token_layer if attention else 0.0,
        attention.decode_flop_per_seen_token_layer if attention else 0.0,
        attention.layers * attention.index_flop_per_earlier_token_layer if attention else 0.0,
        attention.layers * attention.index_bytes_per_token_layer if attention else 0.0,
        float((attention.index_tokens if attention else None) or _ENDLESS),
        float(attention.layers - attention.window_layers) if attention else 0.0,
        float(attention.window_layers) if attention else 0.0,
        float((attention.window_tokens if attention else None) or _ENDLESS),
        float(llm.hidden_size),
        # One all-reduce of a token's hidden state after each mixer and each feed-forward.
        float(mixers + dense + (experts.layers if experts else 0)),
        float(experts.layers * experts.active_experts) if experts else 0.0,
        2.0 * experts.layers if experts else 0.0,
        float(experts.experts) if experts else 1.0,
        2.0 * vision.parameters if vision else 0.0,
        # Every patch attends to all of its image: queries times keys, weights times values.
        4.0 * vision.layers * vision.hidden_size if vision else 0.0,
        vision.patches_per_token if vision else 0.0,
    )


def _of_gpu_precision(gpu: Gpu, precision: Precision) -> tuple[float, ...]:
    """Bandwidth, 16-bit FLOP/s, 16-bit FLOPs that one FLOP is worth, and the kind of format."""
    peak = gpu.bf16_flop_per_s
    narrow = gpu.flop_per_s(precision.compute_bits, integer=precision.integer)
    reduced = precision.weight_bits < 16
    multiplied = precision.compute_bits < 16 and gpu.multiplies(
        precision.compute_bits, integer=precision.integer
    )
    dearer = 1.0
    if reduced and multiplied and not precision.integer:
        of_eight = BLOCK_FLOP_RATIO if precision.block_size else NARROW_FLOP_RATIO
        dearer = FP4_FLOP_RATIO if precision.compute_bits < 8 else of_eight
    return (
        gpu.memory_bandwidth_bytes_per_s,
        peak,
        min(peak / narrow * dearer, 1.0),
        float(reduced and multiplied),
        float(reduced and not multiplied),
    )


def _seen(first: FloatArray, last: FloatArray, limit: FloatArray) -> FloatArray:
    """Tokens that one layer sees on average while the context grows evenly, ``limit`` at most."""
    start, stop = np.minimum(first, limit), np.minimum(last, limit)
    beyond = limit * ((last - stop) - (first - start))
    mean: FloatArray = ((stop * stop - start * start) / 2.0 + beyond) / (last - first)
    return mean


def _context(first: FloatArray, last: FloatArray, llm: dict[str, FloatArray]) -> FloatArray:
    """Tokens attended to, summed over layers, on average while the context grows evenly.

    A sliding-window layer sees at most its window, sparse attention what its indexer picks.
    """
    if llm["index_flop"].any():
        everywhere = llm["full_layers"] * _seen(first, last, llm["index_tokens"])
    else:
        everywhere = llm["full_layers"] * (first + last) / 2.0
    if not llm["window_layers"].any():
        return everywhere
    return everywhere + llm["window_layers"] * _seen(first, last, llm["window"])


@dataclass(frozen=True, eq=False)
class _Tables:
    """Contiguous look-up columns; the last two are indexed by a pair of places."""

    llm: FloatArray  # (len(_LLM), llms)
    kv_bytes_per_element: FloatArray  # (precisions,)
    weights: FloatArray  # (3, llms * precisions)
    peaks: FloatArray  # (5, gpus * precisions)

    @classmethod
    def of(cls, cases: Cases) -> _Tables:
        weights = [
            (*weight_bytes(m, p), scaling_kernels(m, p))
            for m in cases.llms
            for p in cases.precisions
        ]
        peaks = [_of_gpu_precision(g, p) for g in cases.gpus for p in cases.precisions]
        return cls(
            np.array([_of_llm(m) for m in cases.llms]).reshape(-1, len(_LLM)).T.copy(),
            np.array([p.kv_bits / 8.0 for p in cases.precisions]),
            np.array(weights).reshape(-1, 3).T.copy(),
            np.array(peaks).reshape(-1, 5).T.copy(),
        )


def in_flight(cases: Cases) -> FloatArray:
    """Sequences that run at once over all replicas, shape (n,).

    The observed mean where it is known; else the limit set, or what the memory holds if that is
    less, because the rest waits in the queue (`capacity.kept_running`).
    """
    running = cases.mean_batch_size
    unknown = np.isnan(running)
    if not unknown.any():
        return running
    running = np.where(unknown, cases.batch_size, running)
    held = capacity.room(cases.take(unknown))
    limit = running[unknown]
    # A layout without room at all ran all the same if it was measured: believe the limit. Where no
    # limit is known (rows under load) memory alone is one.
    running[unknown] = np.where(held > 0, capacity.kept_running(limit, held), limit)
    return running


def count(cases: Cases) -> Counts:
    """Count for each case.

    Parameters
    ----------
    cases : Cases
        n cases.

    Returns
    -------
    Counts
        Columns of shape (n,).
    """
    return _count(cases, in_flight(cases), _Tables.of(cases))


def count_in_chunks(cases: Cases, *, extensions: bool = True) -> Iterator[tuple[slice, Counts]]:
    """Count a few thousand cases at a time: less memory, and faster, for millions.

    Without ``extensions`` the counts that only those read are 0.
    """
    tables, running = _Tables.of(cases), in_flight(cases)
    for start in range(0, len(cases), CHUNK):
        rows = slice(start, start + CHUNK)
        part = cases.take(rows) if len(cases) > CHUNK else cases
        yield rows, _count(part, running[rows], tables, extensions=extensions)


def _count(
    cases: Cases, running: FloatArray, tables: _Tables, *, extensions: bool = True
) -> Counts:
    llm = {name: column[cases.llm_index] for name, column in zip(_LLM, tables.llm, strict=True)}
    width = len(cases.precisions)
    always_bytes, expert_bytes, block_kernels = tables.weights[
        :, cases.llm_index * width + cases.precision_index
    ]
    bandwidth, peak, equivalent, narrow, weight_only = tables.peaks[
        :, cases.gpu_index * width + cases.precision_index
    ]
    kv_bytes_per_element = tables.kv_bytes_per_element[cases.precision_index]

    generations = (
        np.array(
            [
                (g.launch_s / LAUNCH_S, g.sequence_s / SEQUENCE_S, g.prefill_apart)
                for g in map(catalog.generation, cases.engines)
            ],
            dtype=np.float64,
        )
        .reshape(-1, 3)
        .T
    )
    launch_ratio = generations[0][cases.engine_index]
    apart = generations[2][cases.engine_index] > 0
    kernels_each = llm["kernels"] + block_kernels

    prompt, output = cases.input_tokens, cases.output_tokens
    replicas, gpus = cases.data_parallel, cases.occupied_gpus
    group, stages = cases.tensor_parallel, cases.pipeline_parallel
    steps = output / running
    # Sequences of one replica. A pipeline works on as many microbatches as it has stages, but a
    # sequence cannot be split: fewer sequences are fewer microbatches.
    own = running / replicas
    microbatches = np.clip(own, 1.0, stages)

    # Each microbatch reads all weights. Expert parallelism holds one copy of the experts, spread
    # over the GPUs; without it every data-parallel replica reads its own copy for its own share
    # of the batch.
    copies = np.where(cases.expert_parallel > 1, 1.0, replicas)
    covered = coverage(llm["log_missed"], running / (copies * microbatches))
    read_experts = copies * expert_bytes * covered
    step_weight_bytes = steps * microbatches * (replicas * always_bytes + read_experts)
    # Where experts are spread over GPUs, each holds some of those that a step needs, and all wait
    # for the one that holds the most: the expected maximum of as many binomial draws.
    none = np.zeros(len(cases))
    waited = none
    if extensions:
        each = np.maximum(llm["experts"] / cases.expert_parallel, 1.0)
        touched = np.maximum(covered, 1e-9)
        spread = 2.0 * np.log(cases.expert_parallel) * (1.0 - touched) / (each * touched)
        excess = np.minimum(np.sqrt(spread), 1.0 / touched - 1.0)
        waited = np.where(expert_bytes > 0, steps * microbatches * read_experts * excess, 0.0)
    # A prompt is computed in passes of the engine's token budget. One that joins a running batch
    # reads no weights anew, as the step it joins reads them, but experts that this step does not
    # touch; one that starts alone reads them all. Of b sequences in flight one is the first.
    # Older engines kept passes for prompts and steps of decoding apart: there every pass reads.
    passes = np.maximum(prompt / TOKENS_PER_PASS, 1.0)
    asked = coverage(llm["log_missed"], np.minimum(prompt, TOKENS_PER_PASS))
    first = np.where(apart, 1.0, 1.0 / np.maximum(own, 1.0))
    fresh = asked * (1.0 - covered * (1.0 - first))
    pass_weight_bytes = passes * (always_bytes * first + expert_bytes * fresh)

    # Prefill attention: queries times keys and weights times values, over the causal half. Logits
    # are computed for the last token of a prompt alone, and for every new token.
    nothing = np.zeros_like(prompt)
    seen = _context(nothing, prompt, llm)
    prefill_attention = prompt * (
        llm["prefill_attention"] * seen + llm["index_flop"] * prompt / 2.0
    )
    linear_flop, logits_flop = llm["flop"] * equivalent, llm["logits_flop"]
    prefill_flop = linear_flop * prompt + logits_flop + prefill_attention
    context = prompt + output / 2.0
    seen = _context(prompt, prompt + output, llm)
    decode_flop = output * (
        linear_flop + logits_flop + llm["decode_attention"] * seen + llm["index_flop"] * context
    )
    # Where tensor parallelism has more GPUs than there are KV heads, heads are copied, and every
    # copy is read; the latent of latent attention and the keys of an indexer are on every GPU.
    repeats = np.maximum(group / llm["kv_heads"], 1.0)
    kv_bytes = llm["kv_elements"] * kv_bytes_per_element * seen * repeats
    index_bytes = llm["index_bytes"] * context * group
    # The state is read and written once a token.
    cache_bytes = output * (kv_bytes + index_bytes + 2.0 * llm["state_bytes"])

    # Ring all-reduce: each of TP GPUs sends 2 (TP-1)/TP of the message, all together 2 (TP-1).
    sent = 2.0 * (group - 1.0) * llm["reductions"]
    calls = np.where(group > 1, llm["reductions"], 0.0)
    # With data-parallel attention a token travels to its experts and back.
    away = np.where(replicas > 1, 1.0 - 1.0 / cases.expert_parallel, 0.0)
    sent = ACTIVATION_BYTES * llm["hidden"] * (sent + 2.0 * away * llm["routed"])
    calls = CALL_BYTES * (calls + np.where(away > 0, llm["exchanges"], 0.0))

    # Of the kernels of a forward pass each stage launches its own, and its GPUs wait for them.
    pass_gpus = group * passes
    step_gpus = group * replicas * microbatches * steps
    # One microbatch on its way through all stages, at the pace that the datasheet suggests; the
    # smaller of bytes and FLOPs hides behind the larger. While it is under way the other stages
    # have the other microbatches: of all GPU time (PP-1) / (microbatches + PP-1) is lost.
    rate, pace = BANDWIDTH_RATIO * bandwidth, COMPUTE_RATIO * peak
    launch_s = LAUNCH_S * launch_ratio * kernels_each
    decode_gpu_s = (
        np.hypot(step_weight_bytes / rate, decode_flop / pace)
        + cache_bytes / rate
        + launch_s * step_gpus
    )
    vision_flop = (
        llm["patches"]
        * cases.vision_tokens
        * (
            llm["tower"]
            + llm["tower_attention"]
            * llm["patches"]
            * cases.vision_tokens
            / np.maximum(cases.images + cases.frames, 1.0)
        )
    )
    prompt_flop = np.hypot(prefill_flop, pass_weight_bytes / rate * pace)
    prefill_gpu_s = (prompt_flop + vision_flop) / pace + launch_s * pass_gpus
    hops = (stages - 1.0) * HOP_S
    lost = (stages - 1.0) / microbatches
    prefill_stage_gpu_s = lost * prefill_gpu_s + hops * pass_gpus
    decode_stage_gpu_s = lost * decode_gpu_s + hops * step_gpus
    # Unknown sizes of nodes compare as false: no idle GPU is counted.
    idle = np.where(cases.node_boundary & (cases.node_gpus > gpus), cases.node_gpus - gpus, 0.0)
    return Counts(
        gpus=gpus,
        replica_gpus=group * stages,
        idle_gpus=idle,
        running=running,
        microbatches=microbatches,
        passes=passes,
        steps=steps,
        kernels=kernels_each,
        launch_ratio=launch_ratio,
        sequence_ratio=generations[1][cases.engine_index],
        pass_gpus=pass_gpus,
        step_gpus=step_gpus,
        pass_weight_bytes=pass_weight_bytes,
        step_weight_bytes=step_weight_bytes,
        prefill_flop=prefill_flop,
        prompt_flop=prompt_flop,
        prefill_attention_flop=prefill_attention,
        decode_flop=decode_flop,
        vision_flop=vision_flop,
        cache_bytes=cache_bytes,
        prefill_link_bytes=sent * prompt + calls * pass_gpus,
        decode_link_bytes=sent * output + calls * step_gpus,
        stage_hops=stages - 1.0,
        prefill_stage_gpu_s=prefill_stage_gpu_s,
        decode_stage_gpu_s=decode_stage_gpu_s,
        prefill_s=(prefill_gpu_s + prefill_stage_gpu_s) / gpus,
        decode_s=(decode_gpu_s + decode_stage_gpu_s) / gpus,
        narrow_ratio=narrow,
        weight_only_ratio=weight_only,
        expert_wait_bytes=waited,
        media=cases.images + cases.frames if extensions else none,
        context_ratio=(prompt + output) / TOKENS_PER_PASS if extensions else none,
        prefill_roofline_s=(prefill_flop + vision_flop) / (peak * gpus),
        decode_roofline_s=((step_weight_bytes + cache_bytes) / bandwidth + decode_flop / peak)
        / gpus,
        output_tokens=output,
    )
