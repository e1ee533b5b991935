"""From a record of an LLM to the config.json that engines read: the inverse of hf_read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from energylens.catalog.scaling import _one_kind_per_layer
from energylens.errors import UsageError
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
    if attention.index_tokens:
        differences.append("attention to every token, without the indexer of sparse attention")
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


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a configuration that describes the LLM itself."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def has_vision(config: Mapping[str, Any]) -> bool:
    """Whether the LLM takes images and videos."""
    return "vision_config" in config
