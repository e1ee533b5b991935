"""LLMs cut to a size that fits: fewer layers, or the shard of one rank."""

from __future__ import annotations

import math
from dataclasses import replace

from energylens.errors import UsageError
from energylens.records import Llm

# ----------------------------------------------------------------- other sizes of the same LLM


def scaled_down(llm: Llm, layers: int) -> Llm:
    """Return the LLM with ``layers`` layers, each kind of layer in its old proportion.

    At least one layer of each kind stays, so the result can have more layers than asked for
    (a hybrid of three kinds has at least three). Its id says what it is.

    Raises
    ------
    UsageError
        If ``layers`` is not between 1 and the layers that the LLM has.
    """
    if not 1 <= layers <= llm.layers:
        raise UsageError(
            f"{llm.id} has {llm.layers} layers and cannot be scaled down to {layers}: "
            f"give a number from 1 to {llm.layers}"
        )
    return _with_share_of_layers(llm, layers / llm.layers, f"{llm.id} ({layers} layers)")


def rank_shard(llm: Llm, tensor_parallel: int, pipeline_parallel: int) -> Llm:
    """Return what one GPU of a larger layout computes, as an LLM of its own.

    Heads, feed-forward and expert sizes, state-space heads and the vocabulary are divided by
    the tensor-parallel degree and layers by the pipeline-parallel degree, as vLLM divides
    them; key-value heads fewer than the degree are repeated, as vLLM repeats them. Of a
    pipeline it is the last stage, which holds the output matrix.

    Raises
    ------
    UsageError
        If the degrees do not divide what they must.
    """
    tp, pp = tensor_parallel, pipeline_parallel
    if tp < 1 or pp < 1:
        raise UsageError(f"a shard needs degrees of 1 or more, not {tp} and {pp}")

    def divided(value: int, what: str, degree: int = tp) -> int:
        if value % degree:
            raise UsageError(f"{llm.id}: {what} ({value}) cannot be divided by {degree}")
        return value // degree

    if llm.layers < pp:
        raise UsageError(f"{llm.id} has {llm.layers} layers, too few for {pp} stages")
    attention = llm.attention
    if attention:
        attention = replace(
            attention,
            heads=divided(attention.heads, "attention heads"),
            kv_heads=max(1.0, attention.kv_heads / tp),
        )
    feed_forward = llm.feed_forward
    if feed_forward:
        feed_forward = replace(feed_forward, size=divided(feed_forward.size, "feed-forward size"))
    experts = llm.experts
    if experts:
        experts = replace(
            experts,
            size=divided(experts.size, "expert size"),
            shared_size=divided(experts.shared_size, "shared expert size"),
        )
    state_space = llm.state_space
    if state_space:
        state_space = replace(
            state_space,
            inner_size=divided(state_space.inner_size, "state-space size"),
            heads=divided(state_space.heads, "state-space heads"),
            groups=max(1, state_space.groups // tp),
        )
    cut = replace(
        llm,
        vocabulary_size=math.ceil(llm.vocabulary_size / tp),
        attention=attention,
        feed_forward=feed_forward,
        experts=experts,
        state_space=state_space,
    )
    return _with_share_of_layers(cut, 1 / pp, f"{llm.id} (one GPU of TP{tp} PP{pp})")


def _with_share_of_layers(llm: Llm, share: float, llm_id: str) -> Llm:
    parts = {
        "attention": llm.attention,
        "state_space": llm.state_space,
        "feed_forward": llm.feed_forward,
        "experts": llm.experts,
    }
    before = {name: part.layers for name, part in parts.items() if part is not None}
    counts = {name: max(1, round(count * share)) for name, count in before.items()}
    if _one_kind_per_layer(llm):
        layers = sum(counts.values())
    else:
        layers = max(1, round(llm.layers * share))
        for one, other in (("attention", "state_space"), ("feed_forward", "experts")):
            if one in before and other in before and before[one] + before[other] == llm.layers:
                # each layer has one of the two: both kinds stay
                layers = max(layers, 2)
                counts[one] = min(counts[one], layers - 1)
                counts[other] = layers - counts[one]
        for name, count in before.items():  # what was in every layer still is
            counts[name] = layers if count == llm.layers else min(counts[name], layers)
    attention = llm.attention
    if attention is not None:
        count = counts["attention"]
        windowed = round(attention.window_layers * count / attention.layers)
        attention = replace(attention, layers=count, window_layers=min(count, windowed))
    state_space, feed_forward, experts = llm.state_space, llm.feed_forward, llm.experts
    small = replace(
        llm,
        id=llm_id,
        layers=layers,
        attention=attention,
        state_space=state_space and replace(state_space, layers=counts["state_space"]),
        feed_forward=feed_forward and replace(feed_forward, layers=counts["feed_forward"]),
        experts=experts and replace(experts, layers=counts["experts"]),
        aliases=(),
        count_exempt="a scaled or divided LLM has no published count",
        total_parameters=1,
        active_parameters=1,
    )
    total = max(1, round(small.counted_parameters))
    idle = round(small.expert_parameters * (1 - small.expert_share))
    return replace(small, total_parameters=total, active_parameters=max(total - idle, 1))


def _one_kind_per_layer(llm: Llm) -> bool:
    """Whether a layer is a mixer or a feed-forward, never both (Nemotron-H)."""
    kinds = (llm.attention, llm.state_space, llm.feed_forward, llm.experts)
    return llm.state_space is not None and llm.layers == sum(k.layers for k in kinds if k)
