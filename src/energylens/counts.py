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

from energylens import capacity
from energylens.cases import Cases, FloatArray
from energylens.records import Gpu, Llm, Precision

# vLLM's default token budget of one scheduler step (max_num_batched_tokens): a longer prompt
# takes several passes. ML.ENERGY v3 ran with it in most configurations.
TOKENS_PER_PASS = 8192.0
ACTIVATION_BYTES = 2.0  # activations travel between GPUs in 16 bits
STATE_BYTES = 4.0  # engines keep state-space states in 32 bits

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

CHUNK = 16_384  # cases at a time: their columns stay in the processor's cache


@dataclass(frozen=True, kw_only=True, eq=False)
class Counts:
    """Counts per request of n cases, each of shape (n,)."""

    gpus: FloatArray  # GPUs of the deployment
    idle_gpus: FloatArray  # GPUs of the node outside it (0 at the active_gpus boundary)
    running: FloatArray  # sequences in flight, all replicas
    passes: FloatArray  # prefill passes: one, or more for a prompt over the token budget
    steps: FloatArray  # decode steps, divided by the sequences that share each
    kernels: FloatArray  # kernels of one forward pass
    pass_weight_bytes: FloatArray  # weights that the prefill passes read
    step_weight_bytes: FloatArray  # share of the weights that the decode steps read
    prefill_flop: FloatArray  # linear layers and attention, in 16-bit equivalents
    decode_flop: FloatArray  # linear layers, in 16-bit equivalents
    vision_flop: FloatArray  # vision tower
    cache_bytes: FloatArray  # KV cache and state-space state moved while decoding
    prefill_link_bytes: FloatArray  # sent between the GPUs of a tensor- or expert-parallel group
    decode_link_bytes: FloatArray
    stage_hops: FloatArray  # PP - 1
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


def coverage(log_missed: FloatArray, tokens: FloatArray) -> FloatArray:
    """Share of the experts that ``tokens`` tokens touch.

    ``1 - (1 - share)^tokens``: tokens choose independently and evenly, each a ``share`` of the
    experts; ``log_missed`` is ``log(1 - share)``.
    """
    return -np.expm1(tokens * log_missed)


# What the counts need of an LLM, a precision and a GPU, looked up once for all cases.
_LLM = (
    "kernels", "flop", "log_missed", "kv_elements", "state_elements", "query_size", "full_layers",
    "window_layers", "window", "hidden", "reductions", "routed", "experts", "tower", "patches",
)  # fmt: skip


def _of_llm(llm: Llm) -> tuple[float, ...]:
    attention, experts, state, vision = llm.attention, llm.experts, llm.state_space, llm.vision
    mixers = (attention.layers if attention else 0) + (state.layers if state else 0)
    dense = llm.feed_forward.layers if llm.feed_forward else 0
    return (
        kernels(llm),
        2.0 * llm.computing_parameters,
        math.log1p(-min(llm.expert_share, 1 - 1e-12)),
        attention.kv_elements_per_token_layer if attention else 0.0,
        state.elements_per_sequence if state else 0.0,
        float(attention.heads * attention.head_size) if attention else 0.0,
        float(attention.layers - attention.window_layers) if attention else 0.0,
        float(attention.window_layers) if attention else 0.0,
        float((attention.window_tokens if attention else None) or 1e15),
        float(llm.hidden_size),
        # One all-reduce of a token's hidden state after each mixer and each feed-forward.
        float(mixers + dense + (experts.layers if experts else 0)),
        float(experts.layers * experts.active_experts) if experts else 0.0,
        float(experts.experts) if experts else 1.0,
        2.0 * vision.parameters if vision else 0.0,
        vision.patches_per_token if vision else 0.0,
    )


def _of_gpu_precision(gpu: Gpu, precision: Precision) -> tuple[float, float, float]:
    """Bandwidth, 16-bit FLOP/s, and 16-bit FLOPs that one FLOP in this format is worth."""
    peak = gpu.bf16_flop_per_s
    narrow = gpu.flop_per_s(precision.compute_bits, integer=precision.integer)
    return gpu.memory_bandwidth_bytes_per_s, peak, peak / narrow


def _context(first: FloatArray, last: FloatArray, llm: dict[str, FloatArray]) -> FloatArray:
    """Tokens attended to, summed over layers, on average while the context grows evenly.

    A sliding-window layer sees at most its window.
    """
    everywhere = llm["full_layers"] * (first + last) / 2.0
    if not llm["window_layers"].any():
        return everywhere
    window = llm["window"]
    start, stop = np.minimum(first, window), np.minimum(last, window)
    beyond = window * ((last - stop) - (first - start))
    clipped: FloatArray = ((stop * stop - start * start) / 2.0 + beyond) / (last - first)
    return everywhere + llm["window_layers"] * clipped


@dataclass(frozen=True, eq=False)
class _Tables:
    """Contiguous look-up columns; the last two are indexed by a pair of places."""

    llm: FloatArray  # (len(_LLM), llms)
    kv_bytes_per_element: FloatArray  # (precisions,)
    weights: FloatArray  # (2, llms * precisions)
    peaks: FloatArray  # (3, gpus * precisions)
    formats: FloatArray  # (2, precisions)

    @classmethod
    def of(cls, cases: Cases) -> _Tables:
        weights = [weight_bytes(m, p) for m in cases.llms for p in cases.precisions]
        peaks = [_of_gpu_precision(g, p) for g in cases.gpus for p in cases.precisions]
        return cls(
            np.array([_of_llm(m) for m in cases.llms]).reshape(-1, len(_LLM)).T.copy(),
            np.array([p.kv_bits / 8.0 for p in cases.precisions]),
            np.array(weights).reshape(-1, 2).T.copy(),
            np.array(peaks).reshape(-1, 3).T.copy(),
            np.array(
                [
                    [p.weight_bits < 16 and p.compute_bits < 16 for p in cases.precisions],
                    [p.weight_bits < 16 and p.compute_bits >= 16 for p in cases.precisions],
                ],
                dtype=np.float64,
            ),
        )


def in_flight(cases: Cases) -> FloatArray:
    """Sequences that run at once over all replicas, shape (n,).

    The observed mean where it is known; else the limit set, or what the memory holds if that is
    less, because the rest waits in the queue.
    """
    running = cases.mean_batch_size
    unknown = np.isnan(running)
    if not unknown.any():
        return running
    running = np.where(unknown, cases.batch_size, running)
    held = capacity.room(cases.take(unknown))
    limit = running[unknown]
    # A layout without room at all ran all the same if it was measured: believe the limit.
    running[unknown] = np.where(held > 0, np.minimum(limit, held), limit)
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
    always_bytes, expert_bytes = tables.weights[:, cases.llm_index * width + cases.precision_index]
    bandwidth, peak, equivalent = tables.peaks[:, cases.gpu_index * width + cases.precision_index]
    kv_bytes_per_element = tables.kv_bytes_per_element[cases.precision_index]

    prompt, output = cases.input_tokens, cases.output_tokens
    replicas, gpus = cases.data_parallel, cases.occupied_gpus
    steps = output / running

    # A pipeline is kept busy by as many microbatches as it has stages, and each of them reads all
    # weights. Expert parallelism holds one copy of the experts, spread over the GPUs; without it
    # every data-parallel replica reads its own copy for its own share of the batch.
    stages = cases.pipeline_parallel
    copies = np.where(cases.expert_parallel > 1, 1.0, replicas)
    covered = coverage(llm["log_missed"], running / (copies * stages))
    read_experts = copies * expert_bytes * covered
    step_weight_bytes = steps * stages * (replicas * always_bytes + read_experts)
    # Where experts are spread over GPUs, each holds some of those that a step needs, and all wait
    # for the one that holds the most: the expected maximum of as many binomial draws.
    none = np.zeros(len(cases))
    waited = none
    if extensions:
        each = np.maximum(llm["experts"] / cases.expert_parallel, 1.0)
        touched = np.maximum(covered, 1e-9)
        spread = 2.0 * np.log(cases.expert_parallel) * (1.0 - touched) / (each * touched)
        excess = np.minimum(np.sqrt(spread), 1.0 / touched - 1.0)
        waited = np.where(expert_bytes > 0, steps * stages * read_experts * excess, 0.0)
    # Requests of a busy server arrive one by one, so each has its own prefill pass.
    passes = np.maximum(prompt / TOKENS_PER_PASS, 1.0)
    covered = coverage(llm["log_missed"], np.minimum(prompt, TOKENS_PER_PASS))
    pass_weight_bytes = passes * (always_bytes + expert_bytes * covered)

    # Prefill attention: queries times keys and weights times values, over the causal half.
    attention_flop = 4.0 * llm["query_size"] * prompt * _context(np.zeros_like(prompt), prompt, llm)
    prefill_flop = llm["flop"] * equivalent * prompt + attention_flop
    decode_flop = llm["flop"] * equivalent * output
    kv_bytes = llm["kv_elements"] * kv_bytes_per_element * _context(prompt, prompt + output, llm)
    # The state is read and written once a token.
    cache_bytes = output * (kv_bytes + 2.0 * STATE_BYTES * llm["state_elements"])

    # Ring all-reduce: each of TP GPUs sends 2 (TP-1)/TP of the message, all together 2 (TP-1).
    link = 2.0 * (cases.tensor_parallel - 1.0) * llm["reductions"]
    # With data-parallel attention a token travels to its experts and back.
    away = np.where(replicas > 1, 1.0 - 1.0 / cases.expert_parallel, 0.0)
    link = ACTIVATION_BYTES * llm["hidden"] * (link + 2.0 * away * llm["routed"])

    vision_flop = llm["tower"] * llm["patches"] * cases.vision_tokens
    # Unknown sizes of nodes compare as false: no idle GPU is counted.
    idle = np.where(cases.node_boundary & (cases.node_gpus > gpus), cases.node_gpus - gpus, 0.0)
    return Counts(
        gpus=gpus,
        idle_gpus=idle,
        running=running,
        passes=passes,
        steps=steps,
        kernels=llm["kernels"],
        pass_weight_bytes=pass_weight_bytes,
        step_weight_bytes=step_weight_bytes,
        prefill_flop=prefill_flop,
        decode_flop=decode_flop,
        vision_flop=vision_flop,
        cache_bytes=cache_bytes,
        prefill_link_bytes=link * prompt,
        decode_link_bytes=link * output,
        stage_hops=stages - 1.0,
        narrow_ratio=tables.formats[0][cases.precision_index] if extensions else none,
        weight_only_ratio=tables.formats[1][cases.precision_index] if extensions else none,
        expert_wait_bytes=waited,
        media=cases.images + cases.frames if extensions else none,
        context_ratio=(prompt + output) / TOKENS_PER_PASS if extensions else none,
        prefill_roofline_s=(prefill_flop + vision_flop) / (peak * gpus),
        decode_roofline_s=((step_weight_bytes + cache_bytes) / bandwidth + decode_flop / peak)
        / gpus,
        output_tokens=output,
    )
