"""What an engine is given to load: a folder with a ``config.json`` and no weights.

Energy depends on shapes, not on what the weights say, so an LLM record is enough to build
one. Families are mapped to the architecture that transformers and vLLM both have and whose
shapes are closest; whatever of the record that architecture cannot carry is listed in
``LlmConfig.differences`` and travels with the row.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from energylens.errors import InputError, UsageError
from energylens.instrument import EngineError, Layout, Reason
from energylens.records import Attention, Experts, FeedForward, Llm, StateSpace, Vision

Config = dict[str, Any]

CONTEXT_TOKENS = 131_072  # position limit written into every config; engines lower it themselves

# Ids of the special tokens of a vision-language LLM. They sit at the front of the vocabulary,
# so that any vocabulary has them; synthetic prompts draw from FIRST_PROMPT_TOKEN upwards.
BOS_TOKEN, EOS_TOKEN, UNKNOWN_TOKEN = 1, 2, 3
IMAGE_TOKEN, VIDEO_TOKEN, VISION_START_TOKEN, VISION_END_TOKEN = 4, 5, 6, 7
TURN_START_TOKEN, TURN_END_TOKEN = 8, 9
FIRST_PROMPT_TOKEN = 10

_SPECIAL_TOKENS = {
    BOS_TOKEN: "<|bos|>",
    EOS_TOKEN: "<|endoftext|>",
    IMAGE_TOKEN: "<|image_pad|>",
    VIDEO_TOKEN: "<|video_pad|>",
    VISION_START_TOKEN: "<|vision_start|>",
    VISION_END_TOKEN: "<|vision_end|>",
    TURN_START_TOKEN: "<|im_start|>",
    TURN_END_TOKEN: "<|im_end|>",
}

# A folder that names one of these as its architecture is given images and videos.
VISION_MODEL_TYPES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")


@dataclass(frozen=True, kw_only=True)
class LlmConfig:
    """A Hugging Face configuration with the shapes of an LLM."""

    config: Config
    differences: tuple[str, ...] = ()


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


# ------------------------------------------------------------------------- record to config


def config_for(llm: Llm) -> LlmConfig:
    """Give a Hugging Face configuration with the shapes of ``llm``.

    Parameters
    ----------
    llm : Llm
        From the catalog, or scaled, or a shard.

    Returns
    -------
    LlmConfig
        The configuration (what ``config.json`` would hold) and, in words, whatever the chosen
        architecture does differently from the record.

    Raises
    ------
    UsageError
        If no architecture comes close; such an LLM is given by its own ``config.json``.
    """
    differences: list[str] = []
    common: Config = {
        "vocab_size": llm.vocabulary_size,
        "hidden_size": llm.hidden_size,
        "num_hidden_layers": llm.layers,
        "max_position_embeddings": CONTEXT_TOKENS,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "tie_word_embeddings": llm.tied_embeddings,
        "torch_dtype": "bfloat16",
        "bos_token_id": BOS_TOKEN,
        "eos_token_id": EOS_TOKEN,
        "pad_token_id": EOS_TOKEN,
    }
    if llm.vision is not None:
        config = _vision_language(llm, llm.vision, common, differences)
    elif llm.state_space is not None:
        config = _state_space(llm, llm.state_space, common, differences)
    else:
        config = _text(llm, common, differences)
    return LlmConfig(config=config, differences=tuple(differences))


def _attention_keys(llm: Llm, differences: list[str]) -> Config:
    attention = llm.attention
    if attention is None:
        raise UsageError(f"{llm.id} has no attention layers: give its own config.json instead")
    if llm.state_space is None and attention.layers != llm.layers:
        differences.append(f"attention in each of {llm.layers} layers, not {attention.layers}")
    kv_heads = max(1, round(attention.kv_heads))
    while attention.heads % kv_heads:  # engines need whole groups of queries
        kv_heads += 1
    if kv_heads != attention.kv_heads:
        differences.append(f"{kv_heads} key-value heads in place of {attention.kv_heads:g}")
    if attention.kv_rank is None and attention.value_head_size not in (None, attention.head_size):
        differences.append(f"values are {attention.head_size} wide, as keys are")
    return {
        "num_attention_heads": attention.heads,
        "num_key_value_heads": kv_heads,
        "head_dim": attention.head_size,
        "rope_theta": 10000.0,
    }


def _layer_types(layers: int, windowed: int) -> list[str]:
    """Spread ``layers - windowed`` full-attention layers evenly, as interleaving LLMs do."""
    full = layers - windowed
    places = {math.floor((i + 1) * layers / full) - 1 for i in range(full)} if full else set()
    return ["full_attention" if i in places else "sliding_attention" for i in range(layers)]


def _text(llm: Llm, common: Config, differences: list[str]) -> Config:
    attention, feed_forward = llm.attention, llm.feed_forward
    keys = _attention_keys(llm, differences)
    if attention is not None and attention.kv_rank is not None:
        return _latent_attention(llm, attention, common, differences)
    if llm.experts is not None:
        return _mixture(llm, llm.experts, common | keys, differences)
    if feed_forward is None or attention is None:
        raise UsageError(f"{llm.id} has no feed-forward layers: give its own config.json instead")
    if feed_forward.layers != llm.layers:
        differences.append(f"a feed-forward in each of {llm.layers} layers")
    config = common | keys | {"intermediate_size": feed_forward.size}
    if feed_forward.matrices == 2:
        if attention.heads * attention.head_size != llm.hidden_size:
            differences.append(f"heads of {llm.hidden_size // attention.heads} elements")
        config |= {
            "architectures": ["Starcoder2ForCausalLM"],
            "model_type": "starcoder2",
            "hidden_act": "gelu_pytorch_tanh",
            "norm_epsilon": 1e-5,
            "use_bias": True,
            "residual_dropout": 0.0,
            "embedding_dropout": 0.0,
            "attention_dropout": 0.0,
            "sliding_window": attention.window_tokens,
        }
        config.pop("head_dim")
        return config
    if not attention.window_layers:
        return config | {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    if attention.window_layers == attention.layers:
        return config | {
            "architectures": ["MistralForCausalLM"],
            "model_type": "mistral",
            "sliding_window": attention.window_tokens,
        }
    return config | {
        "architectures": ["MinistralForCausalLM"],
        "model_type": "ministral",
        "sliding_window": attention.window_tokens,
        "layer_types": _layer_types(llm.layers, attention.window_layers),
    }


def _latent_attention(
    llm: Llm, attention: Attention, common: Config, differences: list[str]
) -> Config:
    experts, feed_forward = llm.experts, llm.feed_forward
    dense_layers = llm.layers - (experts.layers if experts else 0)
    if experts and experts.shared_size % experts.size:
        differences.append(f"shared experts of {_shared(experts) * experts.size} elements")
    # n_group and topk_group of 1 route over all experts at once
    return common | {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.heads,
        "q_lora_rank": attention.query_rank,
        "kv_lora_rank": attention.kv_rank,
        "qk_nope_head_dim": attention.head_size,
        "qk_rope_head_dim": attention.rope_head_size,
        "v_head_dim": attention.value_head_size or attention.head_size,
        "rope_theta": 10000.0,
        "intermediate_size": feed_forward.size if feed_forward else llm.hidden_size,
        "first_k_dense_replace": dense_layers,
        "n_routed_experts": experts.experts if experts else 2,
        "num_experts_per_tok": experts.active_experts if experts else 1,
        "moe_intermediate_size": experts.size if experts else llm.hidden_size,
        "n_shared_experts": _shared(experts) if experts else 0,
        "moe_layer_freq": 1,
        "n_group": 1,
        "topk_group": 1,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
        "num_nextn_predict_layers": 0,
    }


def _shared(experts: Experts) -> int:
    return math.ceil(experts.shared_size / experts.size)


def _mixture(llm: Llm, experts: Experts, config: Config, differences: list[str]) -> Config:
    attention, feed_forward = llm.attention, llm.feed_forward
    dense_layers = llm.layers - experts.layers
    if experts.matrices == 2:
        differences.append("gated experts (3 matrices)")
    config |= {
        "num_experts_per_tok": experts.active_experts,
        "moe_intermediate_size": experts.size,
        "intermediate_size": feed_forward.size if feed_forward else experts.size,
        "norm_topk_prob": True,
    }
    windowed = attention.window_layers if attention else 0
    if windowed and attention and not experts.shared_size and not dense_layers:
        return config | {
            "architectures": ["GptOssForCausalLM"],
            "model_type": "gpt_oss",
            "intermediate_size": experts.size,
            "num_local_experts": experts.experts,
            "sliding_window": attention.window_tokens,
            "layer_types": _layer_types(llm.layers, windowed),
            "rope_scaling": None,
            "attention_bias": True,
            "swiglu_limit": 7.0,
        }
    if windowed and attention:
        differences.append(f"no window of {attention.window_tokens} tokens: all attention is full")
    if experts.shared_size:
        if experts.shared_size % experts.size:
            differences.append(f"shared experts of {_shared(experts) * experts.size} elements")
        if dense_layers:
            differences.append(f"the {dense_layers} dense layers come first")
        return config | {
            "architectures": ["Glm4MoeForCausalLM"],
            "model_type": "glm4_moe",
            "n_routed_experts": experts.experts,
            "n_shared_experts": _shared(experts),
            "first_k_dense_replace": dense_layers,
            "n_group": 1,
            "topk_group": 1,
            "routed_scaling_factor": 1.0,
            "partial_rotary_factor": 0.5,
            "attention_bias": False,
            "use_qk_norm": False,
            "num_nextn_predict_layers": 0,
        }
    return config | {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "num_experts": experts.experts,
        "decoder_sparse_step": 1,
        "mlp_only_layers": list(range(dense_layers)),
    }


def _state_space(llm: Llm, ssm: StateSpace, common: Config, differences: list[str]) -> Config:
    config = common | {"conv_kernel": ssm.convolution_width, "use_conv_bias": True}
    if llm.attention is not None:
        return _hybrid(llm, ssm, common, differences)
    if ssm.inner_size % llm.hidden_size:
        return common | _one_mixer_layers(llm, ssm, differences)
    if ssm.heads:
        return config | {
            "architectures": ["Mamba2ForCausalLM"],
            "model_type": "mamba2",
            "state_size": ssm.state_size,
            "num_heads": ssm.heads,
            "head_dim": ssm.inner_size // ssm.heads,
            "expand": ssm.inner_size // llm.hidden_size,
            "intermediate_size": ssm.inner_size,
            "n_groups": ssm.groups,
            "chunk_size": 256,
            "rms_norm": True,
            "use_bias": False,
            "layer_norm_epsilon": 1e-5,
        }
    return config | {
        "architectures": ["MambaForCausalLM"],
        "model_type": "mamba",
        "state_size": ssm.state_size,
        "expand": ssm.inner_size // llm.hidden_size,
        "intermediate_size": ssm.inner_size,
        "time_step_rank": math.ceil(llm.hidden_size / 16),
        "use_bias": False,
        "layer_norm_epsilon": 1e-5,
    }


def _hybrid(llm: Llm, ssm: StateSpace, common: Config, differences: list[str]) -> Config:
    attention = llm.attention
    if attention is None:
        raise UsageError(f"{llm.id} is no hybrid")
    config = common | _attention_keys(llm, differences)
    heads = ssm.heads or max(1, ssm.inner_size // 64)
    parallel = attention.layers == llm.layers and ssm.layers == llm.layers
    if _one_kind_per_layer(llm) or (ssm.inner_size % llm.hidden_size and not parallel):
        return config | _one_mixer_layers(llm, ssm, differences)
    if parallel:
        feed_forward = llm.feed_forward
        if feed_forward is None:
            raise UsageError(f"{llm.id}: no architecture matches; give its own config.json")
        return config | {
            "architectures": ["FalconH1ForCausalLM"],
            "model_type": "falcon_h1",
            "intermediate_size": feed_forward.size,
            "mamba_d_ssm": ssm.inner_size,
            "mamba_n_heads": heads,
            "mamba_d_head": ssm.inner_size // heads,
            "mamba_n_groups": ssm.groups,
            "mamba_d_state": ssm.state_size,
            "mamba_d_conv": ssm.convolution_width,
            "mamba_chunk_size": 256,
            "mamba_rms_norm": True,
        }
    experts, feed_forward = llm.experts, llm.feed_forward
    if experts and feed_forward:
        return config | _jamba(llm, ssm, attention, experts, feed_forward, differences)
    if experts and experts.layers != llm.layers:
        raise UsageError(f"{llm.id}: no architecture matches; give its own config.json")
    if not ssm.heads:
        differences.append("Mamba-2 layers of 64-element heads in place of Mamba-1 layers")
    if experts:
        shared = experts.shared_size
    else:
        shared = feed_forward.size if feed_forward else llm.hidden_size
    places = set(_spread(attention.layers, llm.layers))
    if attention.heads * attention.head_size != llm.hidden_size:
        differences.append(f"attention heads of {llm.hidden_size // attention.heads} elements")
    config.pop("head_dim")
    return config | {
        "architectures": ["GraniteMoeHybridForCausalLM"],
        "model_type": "granitemoehybrid",
        "layer_types": ["attention" if i in places else "mamba" for i in range(llm.layers)],
        "intermediate_size": experts.size if experts else shared,
        "shared_intermediate_size": shared,
        "num_local_experts": experts.experts if experts else 0,
        "num_experts_per_tok": experts.active_experts if experts else 0,
        "mamba_n_heads": heads,
        "mamba_d_head": ssm.inner_size // heads,
        "mamba_n_groups": ssm.groups,
        "mamba_d_state": ssm.state_size,
        "mamba_d_conv": ssm.convolution_width,
        "mamba_expand": ssm.inner_size // llm.hidden_size,
        "mamba_chunk_size": 256,
        "position_embedding_type": "nope",
        "embedding_multiplier": 1.0,
        "logits_scaling": 1.0,
        "residual_multiplier": 1.0,
        "attention_multiplier": attention.head_size**-0.5,
        "attention_bias": False,
    }


def _jamba(
    llm: Llm,
    ssm: StateSpace,
    attention: Attention,
    experts: Experts,
    feed_forward: FeedForward,
    differences: list[str],
) -> Config:
    """Mamba-1 and attention layers, every so many of them with experts (arXiv 2403.19887)."""
    period, attention_period = llm.layers // experts.layers, llm.layers // attention.layers
    if ssm.heads:
        differences.append("Mamba-1 layers in place of Mamba-2 layers")
    if feed_forward.size != experts.size:
        differences.append(f"dense feed-forward layers of {experts.size} elements")
    if experts.shared_size:
        differences.append("no shared expert")
    return {
        "architectures": ["JambaForCausalLM"],
        "model_type": "jamba",
        "intermediate_size": experts.size,
        "num_experts": experts.experts,
        "num_experts_per_tok": experts.active_experts,
        "expert_layer_period": period,
        "expert_layer_offset": period - 1,
        "attn_layer_period": attention_period,
        "attn_layer_offset": attention_period // 2,
        "mamba_d_state": ssm.state_size,
        "mamba_d_conv": ssm.convolution_width,
        "mamba_expand": ssm.inner_size // llm.hidden_size,
        "mamba_dt_rank": math.ceil(llm.hidden_size / 16),
        "use_mamba_kernels": True,
    }


def _spread(some: int, places: int) -> list[int]:
    return [math.floor((i + 0.5) * places / some) for i in range(some)]


def _one_mixer_layers(llm: Llm, ssm: StateSpace, differences: list[str]) -> Config:
    """Layers that hold one thing each, of any width (Nemotron-H, arXiv 2504.03624)."""
    attention, feed_forward, experts = llm.attention, llm.feed_forward, llm.experts
    heads = ssm.heads or max(1, ssm.inner_size // 64)
    if not ssm.heads:
        differences.append("Mamba-2 layers of 64-element heads in place of Mamba-1 layers")
    # Its feed-forward layers have two matrices: gated ones become half as large again.
    size = feed_forward.size if feed_forward else 0
    if feed_forward and feed_forward.matrices == 3:
        size = round(size * 1.5)
        differences.append(f"plain feed-forward layers of {size} elements, as many weights")
    expert_size, shared_size = (experts.size, experts.shared_size) if experts else (0, 0)
    if experts and experts.matrices == 3:
        expert_size, shared_size = round(expert_size * 1.5), round(shared_size * 1.5)
        differences.append(f"plain experts of {expert_size} elements, as many weights")
    # Kinds are interleaved by their share: the one furthest behind its share comes next.
    wanted = {
        "M": ssm.layers,
        "*": attention.layers if attention else 0,
        "-": feed_forward.layers if feed_forward else 0,
        "E": experts.layers if experts else 0,
    }
    placed = dict.fromkeys(wanted, 0)
    pattern = ""
    layers = sum(wanted.values())
    for place in range(1, layers + 1):
        kind = max(wanted, key=lambda k: wanted[k] * place / layers - placed[k])
        placed[kind] += 1
        pattern += kind
    return {
        "architectures": ["NemotronHForCausalLM"],
        "model_type": "nemotron_h",
        "num_hidden_layers": layers,
        "hybrid_override_pattern": pattern,
        "intermediate_size": size or llm.hidden_size,
        "mlp_hidden_act": "relu2",
        "mamba_hidden_act": "silu",
        "mamba_num_heads": heads,
        "mamba_head_dim": ssm.inner_size // heads,
        "ssm_state_size": ssm.state_size,
        "n_groups": ssm.groups,
        "conv_kernel": ssm.convolution_width,
        "expand": max(1, ssm.inner_size // llm.hidden_size),
        "chunk_size": 256,
        "use_conv_bias": True,
        "use_bias": False,
        "mlp_bias": False,
        "attention_bias": False,
        "mamba_proj_bias": False,
        "layer_norm_epsilon": 1e-5,
        "residual_in_fp32": False,
        "n_routed_experts": experts.experts if experts else 8,
        "num_experts_per_tok": experts.active_experts if experts else 2,
        "moe_intermediate_size": expert_size or llm.hidden_size,
        "moe_shared_expert_intermediate_size": shared_size,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
        "num_nextn_predict_layers": 0,
    }


def _vision_language(llm: Llm, vision: Vision, common: Config, differences: list[str]) -> Config:
    if llm.state_space is not None or (llm.attention and llm.attention.kv_rank is not None):
        # No vision-language architecture that the engines know has such an LLM in it.
        differences.append("no vision tower: text only")
        if llm.state_space is not None:
            return _state_space(llm, llm.state_space, common, differences)
        return _text(llm, common, differences)
    if llm.experts and llm.experts.shared_size:
        # Qwen3-VL has no shared experts: they become routed ones, as often used and as large.
        extra = _shared(llm.experts)
        differences.append(f"the {extra} shared experts are routed like the others")
        llm = replace(
            llm,
            experts=replace(
                llm.experts,
                shared_size=0,
                experts=llm.experts.experts + extra,
                active_experts=llm.experts.active_experts + extra,
            ),
        )
    if llm.attention and llm.attention.window_layers:
        differences.append("no attention window")
        llm = replace(llm, attention=replace(llm.attention, window_layers=0, window_tokens=None))
    text = _text(llm, common, differences)
    if text["model_type"] not in ("llama", "qwen3_moe"):
        differences.append(f"LLM layers of Qwen-VL in place of {text['model_type']}")
    head_size = llm.attention.head_size if llm.attention else 0
    mixture = llm.experts is not None
    merge = max(1, round(math.sqrt(vision.patches_per_token)))
    if merge**2 != vision.patches_per_token:
        differences.append(f"{merge**2} patches become a token")
    heads = _divisor(vision.hidden_size, (80, 72, 64, 88, 96, 128))
    tower: Config = {
        "depth": vision.layers,
        "hidden_size": vision.hidden_size,
        "num_heads": heads,
        "out_hidden_size": llm.hidden_size,
        "in_chans": 3,
        "in_channels": 3,
        "patch_size": vision.patch_pixels,
        "spatial_patch_size": vision.patch_pixels,
        "spatial_merge_size": merge,
        "temporal_patch_size": 2,
    }
    # The published count of the tower fixes its feed-forward: attention 4h^2, merger and patch
    # embedding are known, the rest is depth x matrices x h x size.
    hidden, merged = vision.hidden_size, vision.hidden_size * merge**2
    merger = merged * (merged + llm.hidden_size)
    patches = 6 * vision.patch_pixels**2 * hidden
    # Qwen2.5-VL derives the size of a head from the hidden size; Qwen3-VL states it.
    free_heads = llm.attention is not None and llm.hidden_size != head_size * llm.attention.heads
    third = mixture or vision.patch_pixels == 16 or free_heads
    mrope = _mrope_section(head_size)
    special = {
        "image_token_id": IMAGE_TOKEN,
        "video_token_id": VIDEO_TOKEN,
        "vision_start_token_id": VISION_START_TOKEN,
        "vision_end_token_id": VISION_END_TOKEN,
    }
    if third:  # Qwen3-VL: plain feed-forward, learned positions, three deep-stack mergers
        # The deep-stack mergers of a tower that pools more than Qwen's would outweigh the tower.
        deep = _spread(3, vision.layers) if vision.layers >= 3 and merge <= 2 else []
        rest = vision.parameters - merger * (1 + len(deep)) - patches - 2304 * hidden
        tower |= {
            "intermediate_size": _tower_size(vision, rest, 2, differences),
            "hidden_act": "gelu_pytorch_tanh",
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": deep,
        }
        kind = "qwen3_vl_moe" if mixture else "qwen3_vl"
        text_config = text | {
            "model_type": f"{kind}_text",
            "rope_scaling": {
                "rope_type": "default",
                "mrope_section": mrope,
                "mrope_interleaved": True,
            },
        }
        text_config.pop("architectures")
        name = "Qwen3VLMoe" if mixture else "Qwen3VL"
        return special | {
            "architectures": [f"{name}ForConditionalGeneration"],
            "model_type": kind,
            "tie_word_embeddings": llm.tied_embeddings,
            "torch_dtype": "bfloat16",
            "text_config": text_config,
            "vision_config": tower | {"model_type": kind},
        }
    rest = vision.parameters - merger - patches
    tower |= {
        "model_type": "qwen2_5_vl",
        "intermediate_size": _tower_size(vision, rest, 3, differences),
        "hidden_act": "silu",
        "window_size": 8 * vision.patch_pixels,
        "fullatt_block_indexes": _spread(min(4, vision.layers), vision.layers),
        "tokens_per_second": 2,
    }
    text.pop("head_dim", None)
    return (
        text
        | special
        | {
            "architectures": ["Qwen2_5_VLForConditionalGeneration"],
            "model_type": "qwen2_5_vl",
            "vision_token_id": UNKNOWN_TOKEN,
            "rope_scaling": {"type": "mrope", "mrope_section": mrope},
            "vision_config": tower,
        }
    )


def _divisor(size: int, head_sizes: Sequence[int]) -> int:
    for head_size in head_sizes:
        if size % head_size == 0:
            return size // head_size
    return 1


def _mrope_section(head_size: int) -> list[int]:
    """Split half a head's rotations over time, height and width as 1:1.5:1.5."""
    half = head_size // 2
    time = half // 4
    height = (half - time) // 2
    return [half - 2 * height, height, height]


def _tower_size(vision: Vision, weights: float, matrices: int, differences: list[str]) -> int:
    hidden = vision.hidden_size
    size = (weights / vision.layers - 4 * hidden**2) / (matrices * hidden)
    if size < hidden / 2:
        differences.append(f"vision feed-forward of {4 * hidden} elements")
        return 4 * hidden
    return max(4, round(size / 4) * 4)


# ---------------------------------------------------------------------------------- folders


def read_config(path: Path) -> Config:
    """Read ``config.json``, given itself or its folder.

    Raises
    ------
    InputError
        If there is none, or it is no JSON object with a ``model_type``.
    """
    file = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{path} holds no config.json: give a Hugging Face folder, a config.json or a name"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read as JSON: {error}") from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise InputError(f"{file} is no Hugging Face config: it has no model_type")
    return config


def with_layers(config: Mapping[str, Any], layers: int) -> Config:
    """Return the configuration with its first ``layers`` layers only.

    Raises
    ------
    UsageError
        If the configuration does not say how many layers there are, or has fewer.
    """
    text = config.get("text_config")
    if isinstance(text, dict):
        return dict(config) | {"text_config": with_layers(text, layers)}
    present = config.get("num_hidden_layers") or len(config.get("hybrid_override_pattern", ""))
    if not isinstance(present, int) or not 1 <= layers <= present:
        raise UsageError(f"this config.json has {present} layers: cannot keep {layers} of them")
    changed: Config = dict(config) | {"num_hidden_layers": layers}
    for key, value in config.items():
        if isinstance(value, list | str) and len(value) == present and key != "model_type":
            changed[key] = value[:layers]
        elif key in ("mlp_only_layers", "attn_layer_indices") and isinstance(value, list):
            changed[key] = [place for place in value if place < layers]
    return changed


def layout_llm(layout: Layout) -> Llm:
    """Return the LLM that an engine loads for a layout: whole, cut down, or one GPU's part.

    Raises
    ------
    EngineError
        UNSUPPORTED, if it cannot be cut so.
    """
    try:
        llm = layout.llm
        if layout.shard is not None:
            llm = rank_shard(llm, *layout.shard)
        if layout.scaled_layers is not None and llm.layers > layout.scaled_layers:
            llm = scaled_down(llm, layout.scaled_layers)
    except InputError as error:
        raise EngineError(str(error), reason=Reason.UNSUPPORTED) from None
    return llm


def layout_config(layout: Layout) -> tuple[Config, tuple[str, ...]]:
    """Return the Hugging Face configuration that a layout describes, and what it cannot carry.

    Raises
    ------
    EngineError
        UNSUPPORTED, if there is none for this LLM, or none that can be cut so.
    """
    try:
        if layout.model_path is None:
            made = config_for(layout_llm(layout))
            return made.config, made.differences
        if layout.shard is not None:
            raise UsageError(
                "a shard is built from the LLM's record: give the LLM by its catalog name"
            )
        config = read_config(Path(layout.model_path))
        if layout.scaled_layers is not None:
            config = with_layers(config, layout.scaled_layers)
        return config, ()
    except InputError as error:
        raise EngineError(str(error), reason=Reason.UNSUPPORTED) from None


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a configuration that describes the LLM itself."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def has_vision(config: Mapping[str, Any]) -> bool:
    """Whether the LLM takes images and videos."""
    return "vision_config" in config


def write_folder(config: Mapping[str, Any], root: Path, processors: Path | None = None) -> Path:
    """Write a folder that an engine can load offline: no weights, no hub.

    The folder's name is a digest of the configuration, so that writing twice is harmless. A
    vision-language LLM needs a tokenizer and processors even for prompts of token ids: those
    of the folder ``processors`` where it has them, else a word-level tokenizer and the Qwen-VL
    processors.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    UsageError
        If processors are needed and there are none for this kind of LLM.
    """
    text = json.dumps(config, indent=1, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    folder = root / f"{config['model_type']}-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    if processors is not None and (processors / "preprocessor_config.json").is_file():
        for file in sorted(processors.iterdir()):
            described = file.suffix in (".json", ".txt", ".model", ".jinja")
            if described and file.name != "config.json" and ".index." not in file.name:
                shutil.copyfile(file, folder / file.name)
    elif has_vision(config):
        if config["model_type"] not in VISION_MODEL_TYPES:
            raise UsageError(
                f"a {config['model_type']} LLM needs its own tokenizer and processors: give its "
                f"whole folder; without one only {', '.join(VISION_MODEL_TYPES)} can be made"
            )
        _write_tokenizer(folder, int(text_config(config)["vocab_size"]))
        _write_processors(folder, config)
    config_file = folder / "config.json"
    partial = folder / "config.json.partial"
    partial.write_text(text, encoding="utf-8")
    partial.replace(config_file)  # last and at once: a folder with a config.json is complete
    return folder


def _write_tokenizer(folder: Path, vocabulary_size: int) -> None:
    names = {i: _SPECIAL_TOKENS.get(i, f"w{i}") for i in range(vocabulary_size)}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": name, "special": True} | special
            for i, name in _SPECIAL_TOKENS.items()
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {
            "type": "WordLevel",
            "vocab": {name: i for i, name in names.items()},
            "unk_token": names[UNKNOWN_TOKEN],
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    vision = "<|vision_start|><|{}_pad|><|vision_end|>"
    template = (
        "{% for m in messages %}<|im_start|> {{ m.role }} "
        "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
        "{% if c.type.startswith('image') %}" + vision.format("image") + "{% elif "
        "c.type.startswith('video') %}" + vision.format("video") + "{% else %} {{ c.text }}"
        "{% endif %}{% endfor %}{% endif %} <|im_end|> {% endfor %}<|im_start|> assistant "
    )
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": _SPECIAL_TOKENS[BOS_TOKEN],
        "eos_token": _SPECIAL_TOKENS[EOS_TOKEN],
        "pad_token": _SPECIAL_TOKENS[EOS_TOKEN],
        "unk_token": names[UNKNOWN_TOKEN],
        "image_token": _SPECIAL_TOKENS[IMAGE_TOKEN],
        "video_token": _SPECIAL_TOKENS[VIDEO_TOKEN],
        "vision_start_token": _SPECIAL_TOKENS[VISION_START_TOKEN],
        "vision_end_token": _SPECIAL_TOKENS[VISION_END_TOKEN],
        "model_max_length": CONTEXT_TOKENS,
        "chat_template": template,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def _write_processors(folder: Path, config: Mapping[str, Any]) -> None:
    vision = config["vision_config"]
    third = str(config["model_type"]).startswith("qwen3")
    unit = (vision["patch_size"] * vision["spatial_merge_size"]) ** 2
    pixels = {"shortest_edge": 4 * unit, "longest_edge": 16384 * unit}
    common = {
        "processor_class": "Qwen3VLProcessor" if third else "Qwen2_5_VLProcessor",
        "patch_size": vision["patch_size"],
        "temporal_patch_size": vision["temporal_patch_size"],
        "merge_size": vision["spatial_merge_size"],
        "size": pixels,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
    }
    if not third:
        common |= {"min_pixels": pixels["shortest_edge"], "max_pixels": pixels["longest_edge"]}
    image_type = "Qwen2VLImageProcessorFast" if third else "Qwen2VLImageProcessor"
    video_type = "Qwen3VLVideoProcessor" if third else "Qwen2VLVideoProcessor"
    image = common | {"image_processor_type": image_type}
    video = common | {"video_processor_type": video_type}
    (folder / "preprocessor_config.json").write_text(json.dumps(image), encoding="utf-8")
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video), encoding="utf-8")
