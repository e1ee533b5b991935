"""The physical counts of a case: bytes read, operations done, bytes sent, per request.

Every number here follows from the LLM, the precision, the layout, the batch and the lengths;
nothing is fitted and nothing knows a joule. The law multiplies these counts with its twelve
coefficients; the learned baselines get the same counts as features, so that comparing them
compares models and not feature engineering.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np

from energylens.cases import Cases, FloatArray
from energylens.records import Llm, Precision

# vLLM's default token budget of one scheduler step (max_num_batched_tokens): a prefill pass
# holds at most this many tokens. ML.ENERGY v3 ran with it in most configurations.
TOKENS_PER_PASS = 8192.0
ACTIVATION_BYTES = 2.0  # activations travel between GPUs in 16 bits


@dataclass(frozen=True, kw_only=True, eq=False)
class Counts:
    """Counts of n cases, each of shape (n,). "Step" is one decode step of all replicas."""

    gpus: FloatArray  # GPUs of the deployment
    idle_gpus: FloatArray  # GPUs of the node outside it (0 at the active_gpus boundary)
    running: FloatArray  # sequences in flight, all replicas
    requests_per_pass: FloatArray  # requests that share one prefill pass
    prefill_passes: FloatArray  # passes per request
    decode_steps: FloatArray  # steps per request, divided by the sequences sharing each
    layers: FloatArray
    step_weight_bytes: FloatArray  # weights read by one decode step, all replicas
    pass_weight_bytes: FloatArray  # weights read by one prefill pass
    token_flop: FloatArray  # 2 x weights that multiply one token
    prefill_flop: FloatArray  # linear layers, per request
    decode_flop: FloatArray
    attention_flop: FloatArray  # prefill attention, per request
    kv_bytes: FloatArray  # cache read while decoding one request
    state_bytes: FloatArray  # state-space state read and written while decoding one request
    allreduce_bytes_per_token: FloatArray  # sent by all GPUs of a tensor-parallel group
    dispatch_bytes_per_token: FloatArray  # sent to experts on other GPUs and back
    stage_hops: FloatArray  # PP - 1
    vision_flop: FloatArray  # vision tower, per request

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


def coverage(share: FloatArray, tokens: FloatArray) -> FloatArray:
    """Share of the experts that ``tokens`` tokens touch when each activates ``share`` of them.

    ``1 - (1 - share)^tokens``: tokens choose independently and evenly.
    """
    return -np.expm1(tokens * np.log1p(-np.minimum(share, 1 - 1e-12)))


def _context(cases: Cases, first: FloatArray, last: FloatArray) -> FloatArray:
    """Tokens attended to, summed over layers, on average while the context grows evenly.

    A sliding-window layer sees at most its window.
    """
    everywhere = cases.of_llm(
        lambda m: m.attention.layers - m.attention.window_layers if m.attention else 0
    )
    windowed = cases.of_llm(lambda m: m.attention.window_layers if m.attention else 0)
    window = cases.of_llm(
        lambda m: (m.attention.window_tokens or math.inf) if m.attention else math.inf
    )
    mean = (first + last) / 2.0
    start, stop = np.minimum(first, window), np.minimum(last, window)
    full = np.where(np.isfinite(window), window, 0.0) * (last - stop - (first - start))
    clipped = ((stop * stop - start * start) / 2.0 + full) / np.maximum(last - first, 1e-9)
    return everywhere * mean + windowed * clipped


def _reductions(llm: Llm) -> float:
    """All-reduces of one token's hidden state: one after each mixer and each feed-forward."""
    mixers = (llm.attention.layers if llm.attention else 0) + (
        llm.state_space.layers if llm.state_space else 0
    )
    dense = llm.feed_forward.layers if llm.feed_forward else 0
    routed = llm.experts.layers if llm.experts else 0
    return float(mixers + dense + routed)


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
    replicas = cases.data_parallel
    running = cases.running
    prompt, output = cases.input_tokens, cases.output_tokens

    pairs, places = np.unique(
        cases.llm_index * len(cases.precisions) + cases.precision_index, return_inverse=True
    )
    table = np.array(
        [
            weight_bytes(
                cases.llms[pair // len(cases.precisions)],
                cases.precisions[pair % len(cases.precisions)],
            )
            for pair in pairs
        ]
    ).reshape(-1, 2)
    always_bytes, expert_bytes = table[places.reshape(-1)].T

    share = cases.of_llm(lambda m: m.expert_share)
    # Expert parallelism holds one copy of the experts, spread over the GPUs; without it every
    # data-parallel replica reads its own copy for its own share of the batch.
    copies = np.where(cases.expert_parallel > 1, 1.0, replicas)
    step_weights = replicas * always_bytes + copies * expert_bytes * coverage(
        share, running / copies
    )
    # A pass of one replica holds up to TOKENS_PER_PASS tokens; requests fill it together.
    per_pass = np.clip(TOKENS_PER_PASS / prompt, 1.0, np.maximum(running / replicas, 1.0))
    chunks = np.maximum(prompt / TOKENS_PER_PASS, 1.0)
    tokens_per_pass = np.minimum(prompt * per_pass, TOKENS_PER_PASS)
    pass_weights = always_bytes + expert_bytes * coverage(share, tokens_per_pass)

    token_flop = 2.0 * cases.of_llm(lambda m: m.computing_parameters)
    kv_elements = cases.of_llm(
        lambda m: m.attention.kv_elements_per_token_layer if m.attention else 0.0
    )
    kv_bits = cases.of_precision(lambda p: p.kv_bits)
    kv_bytes = output * kv_elements * kv_bits / 8.0 * _context(cases, prompt, prompt + output)
    # One read and one write of the state, which engines keep in 32 bits.
    state_bytes = (
        output
        * 2.0
        * 4.0
        * cases.of_llm(lambda m: m.state_space.elements_per_sequence if m.state_space else 0.0)
    )
    # Queries times keys, and weights times values.
    query_size = cases.of_llm(
        lambda m: m.attention.heads * m.attention.head_size if m.attention else 0
    )
    attention_flop = 4.0 * query_size * prompt * _context(cases, np.zeros_like(prompt), prompt)

    layers = cases.of_llm(lambda m: m.layers)
    hidden = cases.of_llm(lambda m: m.hidden_size)
    reductions = cases.of_llm(_reductions)
    tp = cases.tensor_parallel
    # Ring all-reduce: each of TP GPUs sends 2 (TP-1)/TP of the message.
    allreduce = 2.0 * (tp - 1.0) * reductions * hidden * ACTIVATION_BYTES
    routed = cases.of_llm(
        lambda m: float(m.experts.layers * m.experts.active_experts) if m.experts else 0.0
    )
    spread = cases.expert_parallel
    dispatch = (
        np.where(replicas > 1, 2.0 * (1.0 - 1.0 / np.maximum(spread, 1.0)) * routed * hidden, 0.0)
        * ACTIVATION_BYTES
    )

    patches = cases.vision_tokens * cases.of_llm(
        lambda m: m.vision.patches_per_token if m.vision else 0.0
    )
    tower = cases.of_llm(lambda m: float(m.vision.parameters) if m.vision else 0.0)
    return Counts(
        gpus=cases.occupied_gpus,
        idle_gpus=np.where(
            cases.node_boundary & ~np.isnan(cases.node_gpus),
            np.maximum(cases.node_gpus - cases.occupied_gpus, 0.0),
            0.0,
        ),
        running=running,
        requests_per_pass=per_pass,
        prefill_passes=chunks / per_pass,
        decode_steps=output / running,
        layers=layers,
        step_weight_bytes=step_weights,
        pass_weight_bytes=pass_weights,
        token_flop=token_flop,
        prefill_flop=token_flop * prompt,
        decode_flop=token_flop * output,
        attention_flop=attention_flop,
        kv_bytes=kv_bytes,
        state_bytes=state_bytes,
        allreduce_bytes_per_token=allreduce,
        dispatch_bytes_per_token=dispatch,
        stage_hops=cases.pipeline_parallel - 1.0,
        vision_flop=2.0 * tower * patches,
    )
