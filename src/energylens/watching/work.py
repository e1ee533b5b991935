"""Operations and bytes of a window, counted as vLLM's ``--enable-mfu-metrics`` counts them.

vLLM exports what it computed and moved, by its own reckoning: every pass reads the weights of its
layers once, a decoded token reads the cache of its context, activations go to memory and back, a
chunk of a prompt attends to its whole context. The same reckoning from token counts alone says
what an engine would have done that computes each token once; the ratio of both says how much more
or less it did (prompts found in a cache, tokens computed again or in vain, longer contexts).
"""

from __future__ import annotations

from dataclasses import dataclass

from energylens.counts import ACTIVATION_BYTES, weight_bytes
from energylens.records import Case


@dataclass(frozen=True, kw_only=True)
class Work:
    """FLOPs and bytes of one GPU."""

    flop: float
    moved_bytes: float


def work_of_tokens(
    case: Case,
    *,
    prompts: float,
    prompt_tokens: float,
    decoded_tokens: float,
    steps: float,
    context_tokens: float,
    prompt_cv: float,
) -> Work:
    """Work of one GPU of a replica.

    Parameters
    ----------
    case : Case
        What is served, and in which layout.
    prompts, prompt_tokens : float
        Prompts that began, and their tokens.
    decoded_tokens : float
        Tokens generated after the first ones.
    steps : float
        Passes, of prompts or tokens or both.
    context_tokens : float
        Mean context of a decoded token.
    prompt_cv : float
        Spread of the prompts' lengths.
    """
    llm, layout = case.llm, case.configuration
    tensor, gpus = layout.tensor_parallel, layout.tensor_parallel * layout.pipeline_parallel
    tokens = prompt_tokens + decoded_tokens
    answered = prompts + decoded_tokens
    width = llm.hidden_size
    linear = llm.backbone_parameters + llm.expert_share * llm.expert_parameters
    flop = 2.0 * linear * tokens / gpus + 2.0 * llm.vocabulary_size * width * answered / tensor
    always, experts = weight_bytes(llm, case.precision)
    per_step = tokens / steps if steps else 0.0
    covered = 1.0
    if llm.experts:
        picked = per_step * llm.experts.active_experts
        covered = min(picked / llm.experts.experts, 1.0)
    moved = steps * (always + covered * experts) / gpus
    mean_prompt = prompt_tokens / prompts if prompts else 0.0
    if llm.attention:
        a = llm.attention
        crossed = decoded_tokens * context_tokens + prompt_tokens * mean_prompt * (1 + prompt_cv**2)
        flop += 4.0 * a.heads * a.head_size * a.layers * crossed / gpus
        keys = 2.0 * a.kv_heads * a.head_size
        if a.kv_rank:
            keys = float(a.kv_rank + a.rope_head_size)
        read = decoded_tokens * context_tokens + prompt_tokens
        moved += keys * ACTIVATION_BYTES * a.layers * (read + tokens) / gpus
        own = 2 * width + (3 * a.heads + 2 * a.kv_heads) * a.head_size
        moved += own * ACTIVATION_BYTES * a.layers * tokens / gpus
    if llm.feed_forward:
        # Products of gate and up, the activation, and the product down: each read and written.
        own = 2 * width + 7 * llm.feed_forward.size
        moved += own * ACTIVATION_BYTES * llm.feed_forward.layers * tokens / gpus
    if llm.experts:
        e = llm.experts
        own = e.active_experts * (2 * width + 7 * e.size)
        moved += own * ACTIVATION_BYTES * e.layers * tokens / gpus
    moved += (width + llm.vocabulary_size / tensor) * ACTIVATION_BYTES * answered
    return Work(flop=flop, moved_bytes=moved)
