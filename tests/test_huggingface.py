"""Configurations written out by hand, one for each family, against the catalog's rows."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from energylens import catalog
from energylens.catalog.hf_read import llm_from_config, llm_from_path
from energylens.errors import EnergyLensError, InputError

Config = dict[str, Any]


def transformer(
    model_type: str,
    layers: int,
    hidden: int,
    heads: int,
    kv_heads: int | None,
    feed_forward: int,
    vocabulary: int,
    **more: Any,
) -> Config:
    """Spell a configuration the way most families do."""
    config: Config = {
        "model_type": model_type,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "intermediate_size": feed_forward,
        "vocab_size": vocabulary,
    }
    if kv_heads is not None:
        config["num_key_value_heads"] = kv_heads
    return config | more


CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
    "vocab_size": 32000,
}
QWEN3_VISION = {
    "model_type": "qwen3_vl",
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_heads": 16,
    "num_position_embeddings": 2304,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "deepstack_visual_indexes": [8, 16, 24],
}
NEMOTRON_9B = "M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-"

CONFIGS: dict[str, Config] = {
    "meta-llama/Llama-3.1-8B": transformer(
        "llama", 32, 4096, 32, 8, 14336, 128256, tie_word_embeddings=False
    ),
    "mistralai/Mistral-7B-v0.1": transformer(
        "mistral", 32, 4096, 32, 8, 14336, 32000, sliding_window=4096, tie_word_embeddings=False
    ),
    "mistralai/Mistral-7B-v0.3": transformer(
        "mistral", 32, 4096, 32, 8, 14336, 32768, sliding_window=None
    ),
    "Qwen/Qwen2.5-7B": transformer(
        "qwen2",
        28,
        3584,
        28,
        4,
        18944,
        152064,
        sliding_window=131072,
        use_sliding_window=False,
        max_window_layers=28,
        tie_word_embeddings=False,
    ),
    "Qwen/Qwen3-4B": transformer(
        "qwen3", 36, 2560, 32, 8, 9728, 151936, head_dim=128, tie_word_embeddings=True
    ),
    "google/gemma-7b": transformer("gemma", 28, 3072, 16, 16, 24576, 256000, head_dim=256),
    "google/gemma-2-9b": transformer(
        "gemma2", 42, 3584, 16, 8, 14336, 256000, head_dim=256, sliding_window=4096
    ),
    "google/gemma-3-1b-pt": transformer(
        "gemma3_text",
        26,
        1152,
        4,
        1,
        6912,
        262144,
        head_dim=256,
        sliding_window=512,
        sliding_window_pattern=6,
    ),
    "microsoft/Phi-3-mini-4k-instruct": transformer(
        "phi3", 32, 3072, 32, 32, 8192, 32064, sliding_window=2047, tie_word_embeddings=False
    ),
    "microsoft/phi-2": transformer(
        "phi", 32, 2560, 32, 32, 10240, 51200, tie_word_embeddings=False
    ),
    "bigcode/starcoder2-3b": transformer(
        "starcoder2", 30, 3072, 24, 2, 12288, 49152, sliding_window=4096
    ),
    "EleutherAI/gpt-neox-20b": transformer(
        "gpt_neox", 44, 6144, 64, None, 24576, 50432, tie_word_embeddings=False
    ),
    "EleutherAI/gpt-j-6b": {
        "model_type": "gptj",
        "n_layer": 28,
        "n_embd": 4096,
        "n_head": 16,
        "n_inner": None,
        "vocab_size": 50400,
        "tie_word_embeddings": False,
    },
    "openai-community/gpt2": {
        "model_type": "gpt2",
        "n_layer": 12,
        "n_embd": 768,
        "n_head": 12,
        "vocab_size": 50257,
    },
    "facebook/opt-6.7b": {
        "model_type": "opt",
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "ffn_dim": 16384,
        "vocab_size": 50272,
        "word_embed_proj_dim": 4096,
        "torch_dtype": "float16",
    },
    "bigscience/bloom-7b1": {
        "model_type": "bloom",
        "n_layer": 30,
        "hidden_size": 4096,
        "n_head": 32,
        "num_attention_heads": 32,
        "vocab_size": 250880,
    },
    "tiiuae/falcon-7b": {
        "model_type": "falcon",
        "num_hidden_layers": 32,
        "hidden_size": 4544,
        "num_attention_heads": 71,
        "multi_query": True,
        "new_decoder_architecture": False,
        "parallel_attn": True,
        "bias": False,
        "vocab_size": 65024,
    },
    "tiiuae/falcon-40b": {
        "model_type": "falcon",
        "num_hidden_layers": 60,
        "hidden_size": 8192,
        "num_attention_heads": 128,
        "num_kv_heads": 8,
        "new_decoder_architecture": True,
        "parallel_attn": True,
        "bias": False,
        "vocab_size": 65024,
    },
    "CohereForAI/c4ai-command-r-plus": transformer("cohere", 64, 12288, 96, 8, 33792, 256000),
    "allenai/OLMo-2-1124-7B": transformer(
        "olmo2", 32, 4096, 32, 32, 11008, 100352, tie_word_embeddings=False
    ),
    "Deci/DeciLM-7B": transformer(
        "deci", 32, 4096, 32, None, 14336, 32000, num_key_value_heads_per_layer=[4] * 30 + [1, 2]
    ),
    # ------------------------------------------------------------------- mixtures of experts
    "mistralai/Mixtral-8x7B-v0.1": transformer(
        "mixtral", 32, 4096, 32, 8, 14336, 32000, num_local_experts=8, num_experts_per_tok=2
    ),
    "Qwen/Qwen1.5-MoE-A2.7B": transformer(
        "qwen2_moe",
        24,
        2048,
        16,
        16,
        5632,
        151936,
        num_experts=60,
        num_experts_per_tok=4,
        moe_intermediate_size=1408,
        shared_expert_intermediate_size=5632,
        decoder_sparse_step=1,
        sliding_window=32768,
        use_sliding_window=False,
        tie_word_embeddings=False,
    ),
    "Qwen/Qwen3-30B-A3B": transformer(
        "qwen3_moe",
        48,
        2048,
        32,
        4,
        6144,
        151936,
        head_dim=128,
        num_experts=128,
        num_experts_per_tok=8,
        moe_intermediate_size=768,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        tie_word_embeddings=False,
    ),
    "allenai/OLMoE-1B-7B-0924": transformer(
        "olmoe", 16, 2048, 16, 16, 1024, 50304, num_experts=64, num_experts_per_tok=8
    ),
    "microsoft/Phi-3.5-MoE-instruct": transformer(
        "phimoe", 32, 4096, 32, 8, 6400, 32064, num_local_experts=16, num_experts_per_tok=2
    ),
    "deepseek-ai/DeepSeek-V2-Lite": transformer(
        "deepseek_v2",
        27,
        2048,
        16,
        16,
        10944,
        102400,
        q_lora_rank=None,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        n_routed_experts=64,
        num_experts_per_tok=6,
        n_shared_experts=2,
        moe_intermediate_size=1408,
        first_k_dense_replace=1,
        moe_layer_freq=1,
        tie_word_embeddings=False,
    ),
    "deepseek-ai/DeepSeek-V3": transformer(
        "deepseek_v3",
        61,
        7168,
        128,
        128,
        18432,
        129280,
        q_lora_rank=1536,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        n_routed_experts=256,
        num_experts_per_tok=8,
        n_shared_experts=1,
        moe_intermediate_size=2048,
        first_k_dense_replace=3,
        moe_layer_freq=1,
        num_nextn_predict_layers=1,
        tie_word_embeddings=False,
        quantization_config={"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
    ),
    "zai-org/GLM-4.5-Air": transformer(
        "glm4_moe",
        46,
        4096,
        96,
        8,
        10944,
        151552,
        head_dim=128,
        n_routed_experts=128,
        num_experts_per_tok=8,
        n_shared_experts=1,
        moe_intermediate_size=1408,
        first_k_dense_replace=1,
        tie_word_embeddings=False,
    ),
    "openai/gpt-oss-20b": transformer(
        "gpt_oss",
        24,
        2880,
        64,
        8,
        2880,
        201088,
        head_dim=64,
        num_local_experts=32,
        num_experts_per_tok=4,
        sliding_window=128,
        layer_types=["sliding_attention", "full_attention"] * 12,
        tie_word_embeddings=False,
        quantization_config={"quant_method": "mxfp4"},
    ),
    "MiniMaxAI/MiniMax-M2": transformer(
        "minimax_m2",
        62,
        3072,
        48,
        8,
        1536,
        200064,
        head_dim=128,
        num_local_experts=256,
        num_experts_per_tok=8,
        shared_intermediate_size=0,
        tie_word_embeddings=False,
        quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]},
    ),
    # --------------------------------------------------------------- state space and hybrids
    "state-spaces/mamba-2.8b-hf": {
        "model_type": "mamba",
        "num_hidden_layers": 64,
        "hidden_size": 2560,
        "intermediate_size": 5120,
        "state_size": 16,
        "conv_kernel": 4,
        "time_step_rank": 160,
        "vocab_size": 50280,
    },
    "mistralai/Mamba-Codestral-7B-v0.1": {
        "model_type": "mamba2",
        "num_hidden_layers": 64,
        "hidden_size": 4096,
        "num_heads": 128,
        "head_dim": 64,
        "state_size": 128,
        "n_groups": 8,
        "expand": 2,
        "conv_kernel": 4,
        "vocab_size": 32768,
        "tie_word_embeddings": False,
    },
    "tiiuae/falcon-mamba-7b": {
        "model_type": "falcon_mamba",
        "num_hidden_layers": 64,
        "hidden_size": 4096,
        "intermediate_size": 8192,
        "state_size": 16,
        "conv_kernel": 4,
        "time_step_rank": 256,
        "vocab_size": 65024,
        "tie_word_embeddings": False,
    },
    "nvidia/NVIDIA-Nemotron-Nano-9B-v2": {
        "model_type": "nemotron_h",
        "hybrid_override_pattern": NEMOTRON_9B,
        "num_hidden_layers": 56,
        "hidden_size": 4480,
        "intermediate_size": 15680,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "mamba_num_heads": 128,
        "mamba_head_dim": 80,
        "ssm_state_size": 128,
        "mamba_ssm_dtype": "float32",
        "n_groups": 8,
        "conv_kernel": 4,
        "vocab_size": 131072,
        "tie_word_embeddings": False,
    },
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": {
        "model_type": "nemotron_h",
        "hybrid_override_pattern": "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
        "num_hidden_layers": 52,
        "hidden_size": 2688,
        "intermediate_size": 1856,
        "num_attention_heads": 32,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "mamba_num_heads": 64,
        "mamba_head_dim": 64,
        "ssm_state_size": 128,
        "mamba_ssm_dtype": "float32",
        "n_groups": 8,
        "conv_kernel": 4,
        "n_routed_experts": 128,
        "n_shared_experts": 1,
        "num_experts_per_tok": 6,
        "moe_intermediate_size": 1856,
        "moe_shared_expert_intermediate_size": 3712,
        "vocab_size": 131072,
        "tie_word_embeddings": False,
    },
    "ai21labs/Jamba-v0.1": transformer(
        "jamba",
        32,
        4096,
        32,
        8,
        14336,
        65536,
        attn_layer_period=8,
        attn_layer_offset=4,
        expert_layer_period=2,
        expert_layer_offset=1,
        num_experts=16,
        num_experts_per_tok=2,
        mamba_d_state=16,
        mamba_d_conv=4,
        mamba_expand=2,
        mamba_dt_rank=256,
        tie_word_embeddings=False,
    ),
    "ibm-granite/granite-4.0-h-small": transformer(
        "granitemoehybrid",
        40,
        4096,
        32,
        8,
        768,
        100352,
        layer_types=(["mamba"] * 5 + ["attention"] + ["mamba"] * 4) * 4,
        mamba_n_heads=128,
        mamba_d_head=64,
        mamba_d_state=128,
        mamba_n_groups=1,
        mamba_d_conv=4,
        num_local_experts=72,
        num_experts_per_tok=10,
        shared_intermediate_size=1536,
        tie_word_embeddings=True,
    ),
    "ibm-granite/granite-4.0-h-micro": transformer(
        "granitemoehybrid",
        40,
        2048,
        32,
        8,
        8192,
        100352,
        layer_types=(["mamba"] * 5 + ["attention"] + ["mamba"] * 4) * 4,
        mamba_n_heads=64,
        mamba_d_head=64,
        mamba_d_state=128,
        mamba_n_groups=1,
        mamba_d_conv=4,
        num_local_experts=0,
        num_experts_per_tok=0,
        shared_intermediate_size=8192,
        tie_word_embeddings=True,
    ),
    "Qwen/Qwen3-Next-80B-A3B-Instruct": transformer(
        "qwen3_next",
        48,
        2048,
        16,
        2,
        5120,
        151936,
        head_dim=256,
        full_attention_interval=4,
        linear_num_value_heads=32,
        linear_num_key_heads=16,
        linear_key_head_dim=128,
        linear_value_head_dim=128,
        linear_conv_kernel_dim=4,
        num_experts=512,
        num_experts_per_tok=10,
        moe_intermediate_size=512,
        shared_expert_intermediate_size=512,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        tie_word_embeddings=False,
    ),
    # ------------------------------------------------------------------------ vision LLMs
    "Qwen/Qwen2-VL-7B-Instruct": transformer(
        "qwen2_vl",
        28,
        3584,
        28,
        4,
        18944,
        152064,
        tie_word_embeddings=False,
        use_sliding_window=False,
        sliding_window=32768,
        vision_config={
            "model_type": "qwen2_vl",
            "depth": 32,
            "embed_dim": 1280,
            "mlp_ratio": 4,
            "num_heads": 16,
            "hidden_size": 3584,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
    ),
    "Qwen/Qwen2.5-VL-7B-Instruct": transformer(
        "qwen2_5_vl",
        28,
        3584,
        28,
        4,
        18944,
        152064,
        tie_word_embeddings=False,
        vision_config={
            "model_type": "qwen2_5_vl",
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 3584,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
    ),
    "Qwen/Qwen3-VL-8B-Instruct": {
        "model_type": "qwen3_vl",
        "tie_word_embeddings": False,
        "text_config": transformer("qwen3_vl_text", 36, 4096, 32, 8, 12288, 151936, head_dim=128),
        "vision_config": QWEN3_VISION | {"out_hidden_size": 4096},
    },
    "Qwen/Qwen3-Omni-30B-A3B-Instruct": {
        "model_type": "qwen3_omni_moe",
        "thinker_config": {
            "model_type": "qwen3_omni_moe_thinker",
            "text_config": transformer(
                "qwen3_omni_moe_text",
                48,
                2048,
                32,
                4,
                768,
                152064,
                head_dim=128,
                num_experts=128,
                num_experts_per_tok=8,
                moe_intermediate_size=768,
                tie_word_embeddings=False,
            ),
            "vision_config": QWEN3_VISION | {"out_hidden_size": 2048},
        },
    },
    "llava-hf/llava-1.5-7b-hf": {  # saved as the difference from LlamaConfig
        "model_type": "llava",
        "text_config": {"model_type": "llama", "vocab_size": 32064},
        "vision_config": CLIP,
        "tie_word_embeddings": False,
    },
    "llava-hf/llama3-llava-next-8b-hf": {
        "model_type": "llava_next",
        "text_config": {
            "model_type": "llama",
            "intermediate_size": 14336,
            "num_key_value_heads": 8,
            "vocab_size": 128320,
        },
        "vision_config": CLIP,
        "tie_word_embeddings": False,
    },
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": {
        "model_type": "llava_onevision",
        "text_config": transformer(
            "qwen2", 28, 3584, 28, 4, 18944, 152128, use_sliding_window=False
        ),
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_attention_heads": 16,
            "num_hidden_layers": 26,
            "image_size": 384,
            "patch_size": 14,
        },
        "tie_word_embeddings": False,
    },
    "google/gemma-3-12b-pt": {
        "model_type": "gemma3",
        "mm_tokens_per_image": 256,
        "text_config": {
            "model_type": "gemma3_text",
            "hidden_size": 3840,
            "intermediate_size": 15360,
            "num_attention_heads": 16,
            "num_hidden_layers": 48,
            "num_key_value_heads": 8,
            "sliding_window": 1024,
        },
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 1152,
            "image_size": 896,
            "intermediate_size": 4304,
            "num_attention_heads": 16,
            "num_hidden_layers": 27,
            "patch_size": 14,
        },
    },
    "meta-llama/Llama-3.2-11B-Vision": {
        "model_type": "mllama",
        "text_config": transformer(
            "mllama_text_model",
            40,
            4096,
            32,
            8,
            14336,
            128256,
            cross_attention_layers=[3, 8, 13, 18, 23, 28, 33, 38],
            tie_word_embeddings=False,
        ),
        "vision_config": {"model_type": "mllama_vision_model", "image_size": 560},
    },
    "meta-llama/Llama-4-Scout-17B-16E": {
        "model_type": "llama4",
        "text_config": transformer(
            "llama4_text",
            48,
            5120,
            40,
            8,
            8192,
            202048,
            head_dim=128,
            intermediate_size_mlp=16384,
            interleave_moe_layer_step=1,
            attention_chunk_size=8192,
            num_local_experts=16,
            num_experts_per_tok=1,
        ),
        "vision_config": {
            "model_type": "llama4_vision_model",
            "hidden_size": 1408,
            "intermediate_size": 5632,
            "num_hidden_layers": 34,
            "num_attention_heads": 16,
            "image_size": 336,
            "patch_size": 14,
            "vision_output_dim": 4096,
        },
        "tie_word_embeddings": False,
    },
    "OpenGVLab/InternVL3-8B": {
        "model_type": "internvl_chat",
        "downsample_ratio": 0.5,
        "llm_config": transformer(
            "qwen2", 28, 3584, 28, 4, 18944, 151674, tie_word_embeddings=False
        ),
        "vision_config": {
            "model_type": "intern_vit_6b",
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": 448,
            "patch_size": 14,
        },
    },
    "mistralai/Mistral-Small-3.1-24B-Base-2503": {
        "model_type": "mistral3",
        "spatial_merge_size": 2,
        "text_config": transformer(
            "mistral", 40, 5120, 32, 8, 32768, 131072, head_dim=128, sliding_window=None
        ),
        "vision_config": {
            "model_type": "pixtral",
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": 1540,
            "patch_size": 14,
        },
        "tie_word_embeddings": False,
    },
    "mistralai/Pixtral-12B-2409": {
        "model_type": "llava",
        "text_config": {
            "model_type": "mistral",
            "hidden_size": 5120,
            "head_dim": 128,
            "num_hidden_layers": 40,
            "vocab_size": 131072,
        },
        "vision_config": {"model_type": "pixtral", "image_size": 1024, "patch_size": 16},
        "tie_word_embeddings": False,
    },
    "microsoft/Phi-3-vision-128k-instruct": transformer(
        "phi3_v",
        32,
        3072,
        32,
        32,
        8192,
        32064,
        img_processor={"name": "clip_vision_model", "num_img_tokens": 144},
        tie_word_embeddings=False,
    ),
}

ARCHITECTURE = (
    "layers",
    "hidden_size",
    "vocabulary_size",
    "tied_embeddings",
    "attention",
    "feed_forward",
    "experts",
    "state_space",
    "vision",
    "family",
)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_of_each_family_reads_as_the_row_of_the_catalog(name: str) -> None:
    read, row = llm_from_config(CONFIGS[name], name), catalog.llm(name)
    assert {key: getattr(read, key) for key in ARCHITECTURE} == {
        key: getattr(row, key) for key in ARCHITECTURE
    }
    if "quantization_config" in CONFIGS[name]:
        assert read.native_precision == row.native_precision
    if row.count_exempt is None:
        assert read.total_parameters == pytest.approx(row.total_parameters, rel=0.03)


def test_published_counts_and_names_are_kept_where_they_are_given() -> None:
    row = llm_from_config(
        CONFIGS["Qwen/Qwen3-30B-A3B"],
        "my/moe",
        total_parameters=31_000_000_000,
        active_parameters=3_300_000_000,
        aliases=("moe",),
        source="a file",
        date="2026-01-01",
    )
    assert (row.total_parameters, row.active_parameters) == (31_000_000_000, 3_300_000_000)
    assert (row.id, row.aliases, row.source, row.date) == (
        "my/moe",
        ("moe",),
        "a file",
        "2026-01-01",
    )


def test_the_active_parameters_of_a_mixture_are_recounted_where_they_are_not_given() -> None:
    row = llm_from_config(CONFIGS["openai/gpt-oss-20b"], "x")
    assert row.active_parameters == pytest.approx(3.61e9, rel=0.01)


def without(name: str, *keys: str) -> Config:
    """Take a key out of a configuration, along a path."""
    config = copy.deepcopy(CONFIGS[name])
    part = config
    for key in keys[:-1]:
        part = part[key]
    del part[keys[-1]]
    return config


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("meta-llama/Llama-3.1-8B", ("hidden_size",)),
        ("meta-llama/Llama-3.1-8B", ("model_type",)),
        ("mistralai/Mistral-7B-v0.1", ("vocab_size",)),
        ("Qwen/Qwen3-30B-A3B", ("num_experts_per_tok",)),
        ("deepseek-ai/DeepSeek-V3", ("qk_nope_head_dim",)),
        ("nvidia/NVIDIA-Nemotron-Nano-9B-v2", ("hybrid_override_pattern",)),
        ("nvidia/NVIDIA-Nemotron-Nano-9B-v2", ("ssm_state_size",)),
        ("ibm-granite/granite-4.0-h-small", ("layer_types",)),
        ("ai21labs/Jamba-v0.1", ("attn_layer_period",)),
        ("Qwen/Qwen3-VL-8B-Instruct", ("vision_config", "depth")),
        ("Qwen/Qwen3-VL-8B-Instruct", ("text_config", "num_hidden_layers")),
        ("OpenGVLab/InternVL3-8B", ("vision_config", "patch_size")),
    ],
)
def test_a_missing_key_is_named(name: str, keys: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match=f"lacks the key '{keys[-1]}'"):
        llm_from_config(without(name, *keys), name)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("hidden_size", "4096", "hidden_size must be a whole number"),
        ("hidden_size", -1, "hidden_size must be a whole number"),
        ("num_attention_heads", True, "num_attention_heads must be a whole number"),
        ("num_hidden_layers", 10**9, "more than the 10000 allowed"),
        ("tie_word_embeddings", "no", "tie_word_embeddings must be true or false"),
        ("layer_types", ["full_attention", "other"], "layer_types must name 32 layers"),
        ("model_type", "rwkv", "model_type 'rwkv' is not one"),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_its_key(key: str, value: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        llm_from_config(CONFIGS["meta-llama/Llama-3.1-8B"] | {key: value}, "x")


def test_experts_behind_a_latent_projection_are_refused_rather_than_miscounted() -> None:
    config = CONFIGS["nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16"] | {"moe_latent_size": 1024}
    with pytest.raises(InputError, match="latent projection"):
        llm_from_config(config, "x")


def weights(bits: int, kind: str, activations: bool) -> Config:
    group: Config = {"weights": {"num_bits": bits, "type": kind}}
    if activations:
        group["input_activations"] = {"num_bits": bits, "type": kind}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}


@pytest.mark.parametrize(
    ("quantization", "precision"),
    [
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "fbgemm_fp8"}, "fp8"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"quant_method": "awq", "bits": 4}, "awq-int4"),
        ({"quant_method": "gptq", "bits": 4}, "gptq-int4"),
        ({"quant_method": "gptq", "bits": 8}, "w8a16"),
        ({"quant_method": "hqq"}, "hqq-int4"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "nf4"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4"),
        (weights(8, "float", True), "fp8"),
        (weights(8, "int", True), "int8"),
        (weights(8, "int", False), "w8a16"),
        (weights(4, "int", False), "int4"),
    ],
)
def test_the_quantization_of_a_checkpoint_gives_its_precision(
    quantization: Config, precision: str
) -> None:
    config = CONFIGS["meta-llama/Llama-3.1-8B"] | {"quantization_config": quantization}
    assert llm_from_config(config, "x").native_precision == precision
    assert precision in catalog.precisions()


def test_an_unknown_quantization_is_refused() -> None:
    config = CONFIGS["meta-llama/Llama-3.1-8B"] | {"quantization_config": {"quant_method": "aqlm"}}
    with pytest.raises(InputError, match="'aqlm'"):
        llm_from_config(config, "x")


def test_layers_of_an_architecture_search_are_averaged() -> None:
    def block(group: int | None, mult: float) -> Config:
        return {
            "attention": {"no_op": group is None, "n_heads_in_group": group},
            "ffn": {"no_op": False, "ffn_mult": mult},
        }

    config = transformer("nemotron-nas", 3, 8192, 64, None, 1, 128256) | {
        "block_configs": [block(8, 5.25), block(None, 2.625), block(8, 5.25)]
    }
    row = llm_from_config(config, "x")
    assert row.attention is not None
    assert row.feed_forward is not None
    assert (row.attention.layers, row.attention.kv_heads) == (2, 8)
    # 28672, 14336 and 28672: their mean is 23893, in whole blocks of 256.
    assert (row.feed_forward.layers, row.feed_forward.size) == (3, 23808)


junk = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(-5, 200), max_size=3),
    st.just({}),
)


@settings(max_examples=300, deadline=None)
@given(name=st.sampled_from(sorted(CONFIGS)), data=st.data())
def test_a_garbled_configuration_is_read_or_refused_but_never_a_traceback(
    name: str, data: st.DataObject
) -> None:
    config = copy.deepcopy(CONFIGS[name])
    parts = [config, *(value for value in config.values() if isinstance(value, dict))]
    part = data.draw(st.sampled_from(parts))
    key = data.draw(st.sampled_from(sorted(part)))
    part[key] = data.draw(junk)
    try:
        read = llm_from_config(config, name)
    except EnergyLensError:
        return
    assert read.total_parameters > 0
    assert read.counted_parameters == pytest.approx(read.total_parameters)


# ------------------------------------------------------------ what is not read as something else


def qwen3(**changes: Any) -> dict[str, Any]:
    """Give a small configuration of our own."""
    return {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "hidden_size": 512,
        "intermediate_size": 1024,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "vocab_size": 1000,
        **changes,
    }


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"architectures": ["Qwen3ForSequenceClassification"]}, "generates no text"),
        ({"architectures": ["Qwen3Model"]}, "generates no text"),
        ({"architectures": ["LlamaForRewardModel"]}, "generates no text"),
        ({"peft_type": "LORA", "base_model_name_or_path": "a/b"}, "adapter .*config.json of a/b"),
        ({"num_experts_per_tok": 8, "moe_intermediate_size": 64}, "speaks of experts"),
        ({"audio_config": {"model_type": "encoder"}}, "audio encoder"),
        ({"model_type": "new_vl", "vision_config": {"depth": 2}, "text_config": {}}, "new_vl"),
        (
            {"quantization_config": {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}},
            "MIXED_PRECISION mixes",
        ),
    ],
)
def test_what_is_no_llm_that_is_understood_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        llm_from_config(qwen3(**changes), "our/llm")


@pytest.mark.parametrize(
    "name", ["InternVLChatModel", "Qwen2_5OmniModel", "GPT2LMHeadModel", "Qwen3ForCausalLM"]
)
def test_architectures_that_generate_text_are_read(name: str) -> None:
    assert llm_from_config(qwen3(architectures=[name]), "our/llm").layers == 8


def test_what_the_class_says_holds_where_the_file_is_silent() -> None:
    olmo = qwen3(model_type="olmo3", sliding_window=4096)
    found = llm_from_config(olmo, "our/olmo").attention
    assert found is not None
    assert found.window_layers == 6  # every fourth of eight sees everything
    flat = {k: v for k, v in qwen3().items() if k != "head_dim"}
    found = llm_from_config(flat, "our/qwen").attention
    assert found is not None
    assert found.head_size == 128


@pytest.mark.parametrize(
    ("stated", "precision"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8-block"),
        ({"quant_method": "fp8"}, "fp8"),
        (
            {
                "quant_method": "compressed-tensors",
                "ignore": ["re:.*self_attn.*", "re:.*mlp\\.(gate|up|down)_proj.*"],
                "config_groups": {
                    "group_0": {"weights": {"num_bits": 4, "type": "int", "group_size": 32}}
                },
            },
            "int4-g32-experts",
        ),
    ],
)
def test_the_format_of_a_checkpoint_tells_groups_and_blocks(
    stated: dict[str, Any], precision: str
) -> None:
    llm = llm_from_config(qwen3(quantization_config=stated), "our/llm")
    assert llm.native_precision == precision
    assert catalog.precision(precision).id == precision


def test_a_modelopt_folder_says_its_format_beside_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(qwen3(time_step_limit=[0.0, float("inf")])))
    assert llm_from_path(tmp_path, "our/llm").native_precision == "bf16"
    quantization = {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": quantization}))
    assert llm_from_path(tmp_path, "our/llm").native_precision == "fp8"


def test_a_state_has_the_width_that_the_configuration_names() -> None:
    mamba = {"model_type": "mamba2", "hidden_size": 256, "num_hidden_layers": 4, "vocab_size": 100,
             "num_heads": 8, "head_dim": 64, "state_size": 16, "n_groups": 1}  # fmt: skip
    narrow = llm_from_config(mamba, "our/mamba").state_space
    wide = llm_from_config({**mamba, "mamba_ssm_dtype": "float32"}, "our/mamba").state_space
    assert narrow is not None
    assert wide is not None
    assert (narrow.state_bits, wide.state_bits) == (16, 32)
    assert wide.bytes_per_sequence > narrow.bytes_per_sequence


def test_an_indexer_keeps_a_key_of_every_token() -> None:
    llm = catalog.llm("deepseek-ai/DeepSeek-V3.2")
    assert llm.attention is not None
    each = llm.attention.kv_elements_per_token_layer * 2 + llm.attention.index_bytes_per_token_layer
    assert 61 * each == 78_324
