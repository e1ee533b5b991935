"""Kinds of ``config.json`` beyond the catalog: published counts, formats of each method, contexts.

Each is the least that the family's class needs, written by hand; counts are as published.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from energylens import catalog
from energylens.catalog.hf_read import llm_from_config, llm_from_path
from energylens.cli import main
from energylens.errors import InputError

Config = dict[str, Any]
CASES = Path(__file__).parents[2] / "shared" / "cases"


def transformer(
    kind: str, layers: int, hidden: int, heads: int, size: int, vocabulary: int, **more: Any
) -> Config:
    """Spell a configuration the way most families do."""
    return {
        "model_type": kind,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "intermediate_size": size,
        "vocab_size": vocabulary,
    } | more


#: Configuration, parameters as published (billions), bytes of cache a token in 16 bit, context.
KINDS: dict[str, tuple[Config, float, float | None, int | None]] = {
    "Kimi-Linear-48B": (
        transformer(
            "kimi_linear",
            27,
            2304,
            32,
            9216,
            163840,
            num_key_value_heads=32,
            head_dim=72,
            num_experts=256,
            num_experts_per_token=8,
            moe_intermediate_size=1024,
            num_shared_experts=1,
            first_k_dense_replace=1,
            moe_layer_freq=1,
            kv_lora_rank=512,
            q_lora_rank=None,
            qk_nope_head_dim=128,
            qk_rope_head_dim=64,
            v_head_dim=128,
            linear_attn_config={
                "full_attn_layers": [4, 8, 12, 16, 20, 24, 27],
                "kda_layers": [
                    1,
                    2,
                    3,
                    5,
                    6,
                    7,
                    9,
                    10,
                    11,
                    13,
                    14,
                    15,
                    17,
                    18,
                    19,
                    21,
                    22,
                    23,
                    25,
                    26,
                ],
                "head_dim": 128,
                "num_heads": 32,
                "short_conv_kernel_size": 4,
            },
            tie_word_embeddings=False,
            model_max_length=1048576,
        ),
        49.1,
        8064,
        None,
    ),
    "GLM-4.7-Flash": (
        transformer(
            "glm4_moe_lite",
            47,
            2048,
            20,
            10240,
            154880,
            num_key_value_heads=20,
            n_routed_experts=64,
            num_experts_per_tok=4,
            n_shared_experts=1,
            moe_intermediate_size=1536,
            first_k_dense_replace=1,
            q_lora_rank=768,
            kv_lora_rank=512,
            qk_nope_head_dim=192,
            qk_rope_head_dim=64,
            v_head_dim=256,
            tie_word_embeddings=False,
            max_position_embeddings=202752,
        ),
        29.9,
        54144,
        None,
    ),
    "GLM-5": (
        transformer(
            "glm_moe_dsa",
            78,
            6144,
            64,
            12288,
            154880,
            num_key_value_heads=64,
            n_routed_experts=256,
            num_experts_per_tok=8,
            n_shared_experts=1,
            moe_intermediate_size=2048,
            first_k_dense_replace=3,
            q_lora_rank=2048,
            kv_lora_rank=512,
            qk_nope_head_dim=192,
            qk_rope_head_dim=64,
            v_head_dim=256,
            index_n_heads=32,
            index_head_dim=128,
            index_topk=2048,
            tie_word_embeddings=False,
        ),
        744,
        None,
        None,
    ),
    "GLM-4-9b chatglm": (
        {
            "model_type": "chatglm",
            "num_layers": 40,
            "hidden_size": 4096,
            "num_attention_heads": 32,
            "multi_query_attention": True,
            "multi_query_group_num": 2,
            "kv_channels": 128,
            "ffn_hidden_size": 13696,
            "padded_vocab_size": 151552,
            "seq_length": 131072,
            "tie_word_embeddings": False,
        },
        9.4,
        40960,
        131072,
    ),
    "glm-4-9b-hf": (
        transformer(
            "glm",
            40,
            4096,
            32,
            13696,
            151552,
            num_key_value_heads=2,
            head_dim=128,
            tie_word_embeddings=False,
        ),
        9.4,
        None,
        None,
    ),
    "granite-4.0-micro": (
        transformer(
            "granitemoehybrid",
            40,
            2560,
            40,
            8192,
            100352,
            num_key_value_heads=8,
            layer_types=["attention"] * 40,
            shared_intermediate_size=8192,
            num_local_experts=0,
            num_experts_per_tok=0,
            tie_word_embeddings=True,
        ),
        3.4,
        None,
        None,
    ),
    "LFM2-1.2B": (
        transformer(
            "lfm2",
            16,
            2048,
            32,
            12288,
            65536,
            num_key_value_heads=8,
            block_ff_dim=12288,
            block_auto_adjust_ff_dim=True,
            block_ffn_dim_multiplier=1.0,
            block_multiple_of=256,
            conv_L_cache=3,
            tie_word_embeddings=True,
            layer_types=[
                "conv",
                "conv",
                "full_attention",
                "conv",
                "conv",
                "full_attention",
                "conv",
                "conv",
                "full_attention",
                "conv",
                "full_attention",
                "conv",
                "full_attention",
                "conv",
                "full_attention",
                "conv",
            ],
        ),
        1.17,
        12288,
        None,
    ),
    "gemma-3-27b": (
        {
            "model_type": "gemma3",
            "mm_tokens_per_image": 256,
            "text_config": {
                "model_type": "gemma3_text",
                "hidden_size": 5376,
                "intermediate_size": 21504,
                "num_hidden_layers": 62,
                "num_attention_heads": 32,
                "num_key_value_heads": 16,
                "head_dim": 128,
                "sliding_window": 1024,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            },
            "vision_config": {
                "model_type": "siglip_vision_model",
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "num_hidden_layers": 27,
                "num_attention_heads": 16,
                "image_size": 896,
                "patch_size": 14,
            },
        },
        27.4,
        507904,
        131072,
    ),
    "phi-4-mini": (
        transformer(
            "phi3",
            32,
            3072,
            24,
            8192,
            200064,
            num_key_value_heads=8,
            tie_word_embeddings=True,
            max_position_embeddings=131072,
            original_max_position_embeddings=4096,
            rope_scaling={"type": "longrope", "long_factor": [1.0], "short_factor": [1.0]},
        ),
        3.84,
        None,
        131072,
    ),
    "ERNIE-4.5-21B-A3B": (
        transformer(
            "ernie4_5_moe",
            28,
            2560,
            20,
            12288,
            103424,
            num_key_value_heads=4,
            moe_num_experts=64,
            moe_k=6,
            moe_intermediate_size=1536,
            moe_num_shared_experts=2,
            moe_layer_start_index=1,
            moe_layer_interval=1,
            tie_word_embeddings=True,
            max_position_embeddings=131072,
        ),
        21.8,
        57344,
        None,
    ),
    "ERNIE-4.5-300B-A47B": (
        transformer(
            "ernie4_5_moe",
            54,
            8192,
            64,
            28672,
            103424,
            num_key_value_heads=8,
            moe_num_experts=64,
            moe_k=8,
            moe_intermediate_size=3584,
            moe_num_shared_experts=0,
            moe_layer_start_index=3,
            moe_layer_interval=1,
            moe_layer_end_index=53,
            tie_word_embeddings=False,
        ),
        299.7,
        None,
        None,
    ),
    "ERNIE-4.5-0.3B": (
        transformer(
            "ernie4_5",
            18,
            1024,
            16,
            3072,
            103424,
            num_key_value_heads=2,
            head_dim=128,
            tie_word_embeddings=True,
        ),
        0.361,
        None,
        None,
    ),
    "Hunyuan-A13B": (
        transformer(
            "hunyuan_v1_moe",
            32,
            4096,
            32,
            3072,
            128167,
            num_key_value_heads=8,
            head_dim=128,
            num_experts=64,
            moe_topk=[8] * 32,
            moe_intermediate_size=[3072] * 32,
            num_shared_expert=[1] * 32,
            use_mixed_mlp_moe=True,
            tie_word_embeddings=True,
        ),
        80.4,
        None,
        None,
    ),
    "Hunyuan-7B": (
        transformer(
            "hunyuan_v1_dense",
            32,
            4096,
            32,
            14336,
            128256,
            num_key_value_heads=8,
            head_dim=128,
            tie_word_embeddings=True,
            max_position_embeddings=262144,
        ),
        7.5,
        None,
        None,
    ),
    "dots.llm1": (
        transformer(
            "dots1",
            62,
            4096,
            32,
            10944,
            152064,
            num_key_value_heads=32,
            n_routed_experts=128,
            num_experts_per_tok=6,
            n_shared_experts=2,
            moe_intermediate_size=1408,
            first_k_dense_replace=1,
            tie_word_embeddings=False,
            max_position_embeddings=32768,
        ),
        142.8,
        None,
        32768,
    ),
    "flex_olmo": (
        transformer(
            "flex_olmo",
            32,
            4096,
            32,
            11008,
            100352,
            num_key_value_heads=32,
            num_experts=7,
            num_experts_per_tok=5,
            tie_word_embeddings=False,
        ),
        33.3,
        None,
        None,
    ),
    "EXAONE-4.0-32B": (
        transformer(
            "exaone4",
            64,
            5120,
            40,
            27392,
            102400,
            num_key_value_heads=8,
            head_dim=128,
            sliding_window=4096,
            sliding_window_pattern="LLLG",
            tie_word_embeddings=False,
            max_position_embeddings=131072,
        ),
        32.0,
        None,
        None,
    ),
    "EXAONE-3.5-7.8B": (
        {
            "model_type": "exaone",
            "num_layers": 32,
            "hidden_size": 4096,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "intermediate_size": 14336,
            "vocab_size": 102400,
            "tie_word_embeddings": False,
            "max_position_embeddings": 32768,
        },
        7.82,
        None,
        None,
    ),
    "Apertus-8B": (
        transformer(
            "apertus", 32, 4096, 32, 21504, 131072, num_key_value_heads=8, tie_word_embeddings=False
        ),
        8.05,
        None,
        None,
    ),
    "gpt-oss-20b": (
        transformer(
            "gpt_oss",
            24,
            2880,
            64,
            2880,
            201088,
            num_key_value_heads=8,
            head_dim=64,
            num_local_experts=32,
            num_experts_per_tok=4,
            sliding_window=128,
            layer_types=[
                "sliding_attention",
                "full_attention",
                "sliding_attention",
                "full_attention",
                "sliding_attention",
                "full_attention",
                "sliding_attention",
                "full_attention",
                "sliding_attention",
                "full_attention",
                "sliding_attention",
                "full_attention",
                "sliding_attention",
                "full_attention",
                "sliding_attention",
                "full_attention",
                "sliding_attention",
                "full_attention",
                "sliding_attention",
                "full_attention",
                "sliding_attention",
                "full_attention",
                "sliding_attention",
                "full_attention",
            ],
            tie_word_embeddings=False,
            max_position_embeddings=131072,
            rope_scaling={
                "rope_type": "yarn",
                "factor": 32.0,
                "original_max_position_embeddings": 4096,
            },
            quantization_config={
                "quant_method": "mxfp4",
                "modules_to_not_convert": ["model.layers.*.self_attn"],
            },
        ),
        20.9,
        None,
        131072,
    ),
    "Nemotron-4-340B": (
        transformer(
            "nemotron",
            96,
            18432,
            96,
            73728,
            256000,
            num_key_value_heads=8,
            tie_word_embeddings=False,
        ),
        341,
        None,
        None,
    ),
    "AFM-4.5B": (
        transformer(
            "arcee",
            36,
            2560,
            20,
            18432,
            128004,
            num_key_value_heads=4,
            head_dim=128,
            tie_word_embeddings=False,
        ),
        4.62,
        None,
        None,
    ),
    "Ling-mini-2.0": (
        transformer(
            "bailing_moe_v2",
            20,
            2048,
            16,
            5120,
            157184,
            num_key_value_heads=4,
            head_dim=128,
            num_experts=256,
            num_experts_per_tok=8,
            moe_intermediate_size=512,
            num_shared_experts=1,
            moe_shared_expert_intermediate_size=512,
            first_k_dense_replace=1,
            tie_word_embeddings=False,
        ),
        16.3,
        None,
        None,
    ),
    "internlm3-8b": (
        transformer(
            "internlm3",
            48,
            4096,
            32,
            10240,
            128512,
            num_key_value_heads=2,
            head_dim=128,
            tie_word_embeddings=False,
        ),
        8.8,
        None,
        None,
    ),
    "Baichuan2-7B": (
        transformer("baichuan", 32, 4096, 32, 11008, 125696, tie_word_embeddings=False),
        7.51,
        None,
        None,
    ),
    "MiniCPM-2B": (
        transformer(
            "minicpm", 40, 2304, 36, 5760, 122753, num_key_value_heads=36, tie_word_embeddings=True
        ),
        2.72,
        None,
        None,
    ),
    "MiniCPM3-4B": (
        transformer(
            "minicpm3",
            62,
            2560,
            40,
            6400,
            73448,
            num_key_value_heads=40,
            q_lora_rank=768,
            kv_lora_rank=256,
            qk_nope_head_dim=64,
            qk_rope_head_dim=32,
            tie_word_embeddings=True,
        ),
        4.07,
        None,
        None,
    ),
    "starcoder gpt_bigcode": (
        {
            "model_type": "gpt_bigcode",
            "n_layer": 40,
            "n_embd": 6144,
            "n_head": 48,
            "n_inner": 24576,
            "vocab_size": 49152,
            "multi_query": True,
            "tie_word_embeddings": True,
            "n_positions": 8192,
        },
        15.5,
        20480,
        8192,
    ),
    "mpt-7b": (
        {
            "model_type": "mpt",
            "n_layers": 32,
            "d_model": 4096,
            "n_heads": 32,
            "expansion_ratio": 4,
            "vocab_size": 50432,
            "max_seq_len": 2048,
        },
        6.65,
        None,
        2048,
    ),
    "dbrx": (
        {
            "model_type": "dbrx",
            "n_layers": 40,
            "d_model": 6144,
            "n_heads": 48,
            "attn_config": {"kv_n_heads": 8},
            "ffn_config": {"ffn_hidden_size": 10752, "moe_num_experts": 16, "moe_top_k": 4},
            "vocab_size": 100352,
        },
        131.6,
        None,
        None,
    ),
    "MiMo-7B": (
        transformer(
            "mimo",
            36,
            4096,
            32,
            11008,
            151680,
            num_key_value_heads=8,
            tie_word_embeddings=False,
            num_nextn_predict_layers=1,
        ),
        7.6,
        None,
        None,
    ),
    "Ministral-3-8B": (
        {
            "model_type": "mistral3",
            "spatial_merge_size": 2,
            "text_config": {
                "model_type": "ministral3",
                "hidden_size": 4096,
                "intermediate_size": 14336,
                "num_hidden_layers": 34,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "vocab_size": 131072,
                "tie_word_embeddings": False,
                "max_position_embeddings": 262144,
            },
            "vision_config": {
                "model_type": "pixtral",
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "image_size": 1540,
                "patch_size": 14,
                "head_dim": 64,
            },
        },
        8.9,
        None,
        None,
    ),
    "Llama-3-405B fp8 fbgemm": (
        transformer(
            "llama",
            126,
            16384,
            128,
            53248,
            128256,
            num_key_value_heads=8,
            tie_word_embeddings=False,
            max_position_embeddings=131072,
            rope_scaling={
                "factor": 8.0,
                "rope_type": "llama3",
                "original_max_position_embeddings": 8192,
            },
            quantization_config={"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0},
        ),
        405.9,
        None,
        131072,
    ),
    "Qwen2.5-72B yarn": (
        transformer(
            "qwen2",
            80,
            8192,
            64,
            29568,
            152064,
            num_key_value_heads=8,
            tie_word_embeddings=False,
            max_position_embeddings=32768,
            rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
        ),
        72.7,
        None,
        131072,
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_has_the_parameters_cache_and_context_that_are_published(name: str) -> None:
    config, total, cache, context = KINDS[name]
    llm = llm_from_config(config, f"our/{name}")
    assert llm.counted_parameters / 1e9 == pytest.approx(total, rel=0.01)
    if cache is not None:
        attention = llm.attention
        assert attention is not None
        assert 2 * attention.layers * attention.kv_elements_per_token_layer == cache
    if context is not None:
        assert llm.context_tokens == context


LLAMA = transformer("llama", 32, 4096, 32, 14336, 128256, num_key_value_heads=8)


def group(bits: int, kind: str, inputs: int | None = None, **more: Any) -> Config:
    """Give a group of compressed-tensors."""
    narrow = {"num_bits": inputs, "type": kind} if inputs else None
    return {"weights": {"num_bits": bits, "type": kind} | more, "input_activations": narrow}


def packed(*groups: Config, **more: Any) -> Config:
    """Give what compressed-tensors writes."""
    named = {f"group_{place}": each for place, each in enumerate(groups)}
    return {"quant_method": "compressed-tensors", "config_groups": named} | more


def quark(kind: str, **more: Any) -> Config:
    """Give what Quark writes."""
    each = {"weight": {"dtype": kind} | more, "input_tensors": {"dtype": kind}}
    return {"quant_method": "quark", "global_quant_config": each, "exclude": ["lm_head"]}


#: What a checkpoint states, and the row of precisions.toml; None where there is none.
FORMATS: dict[str, tuple[Config, str | None]] = {
    "awq g128": ({"quant_method": "awq", "bits": 4, "group_size": 128}, "awq-int4"),
    "awq g64": ({"quant_method": "awq", "bits": 4, "group_size": 64}, "int4-g64"),
    "awq g32": ({"quant_method": "awq", "w_bit": 4, "q_group_size": 32}, "int4-g32"),
    "gptq 3": ({"quant_method": "gptq", "bits": 3, "group_size": 128}, None),
    "gptq 8": ({"quant_method": "gptq", "bits": 8, "group_size": 32}, "w8a16"),
    "gptq 4 -1": ({"quant_method": "gptq", "bits": 4, "group_size": -1}, None),
    "gptq 4 g32": ({"quant_method": "gptq", "bits": 4, "group_size": 32}, "int4-g32"),
    "fp8 block": ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8-block"),
    "fp8 odd": ({"quant_method": "fp8", "weight_block_size": [1, 32]}, None),
    "fp8": ({"quant_method": "fp8", "activation_scheme": "static"}, "fp8"),
    "ct w8a8": (packed(group(8, "int", 8, strategy="channel")), "int8"),
    "ct fp8": (packed(group(8, "float", 8, strategy="channel")), "fp8"),
    "ct fp8 block": (packed(group(8, "float", 8, strategy="block")), "fp8-block"),
    "ct w4a16": (packed(group(4, "int", group_size=128, strategy="group")), "int4"),
    "ct w4a16 channel": (packed(group(4, "int", strategy="channel")), None),
    "ct nvfp4": (packed(group(4, "float", 4, group_size=16, strategy="tensor_group")), "nvfp4"),
    "ct nvfp4a16": (packed(group(4, "float", group_size=16)), None),
    "ct mxfp4": (packed(group(4, "float", group_size=32)), None),
    "ct mixed": (packed(group(8, "float", 8), group(4, "float", 4, group_size=16)), None),
    "ct w4a8": (packed(group(4, "int", 8, group_size=128)), None),
    "ct sparse": (
        packed(group(8, "float", 8), sparsity_config={"format": "sparse-24-bitmask"}),
        None,
    ),
    "ct kv only group": (packed(group(8, "float", 8), {"weights": None}), "fp8"),
    "ct w3": (packed(group(3, "int", group_size=128)), None),
    "bnb nf4": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        "nf4",
    ),
    "bnb8": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8"),
    "mo fp8": ({"quant_method": "modelopt", "quant_algo": "FP8"}, "fp8"),
    "mo nvfp4": (
        {"quant_method": "modelopt", "quant_algo": "NVFP4", "producer": {"name": "modelopt"}},
        "nvfp4",
    ),
    "mo mixed": ({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}, None),
    "mo nested": (
        {
            "producer": {"name": "modelopt"},
            "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"},
        },
        "fp8",
    ),
    "quark fp8": (quark("fp8_e4m3", qscheme="per_tensor"), "fp8"),
    "quark mxfp4": (quark("fp4", group_size=32, qscheme="per_group", scale_format="e8m0"), None),
    "quark mixed": (
        {
            "quant_method": "quark",
            "global_quant_config": {"weight": {"dtype": "fp8_e4m3"}, "input_tensors": {"a": 1}},
            "layer_quant_config": {"x": {"weight": {"dtype": "int4", "group_size": 128}}},
        },
        None,
    ),
    "auto-round": (
        {
            "quant_method": "auto-round",
            "bits": 4,
            "group_size": 128,
            "sym": True,
            "packing_format": "auto_round:auto_gptq",
        },
        "gptq-int4",
    ),
    "auto-round 2": ({"quant_method": "auto-round", "bits": 2, "group_size": 128}, None),
    "auto-round mixed": (
        {
            "quant_method": "auto-round",
            "bits": 4,
            "extra_config": {"a": {"bits": 8}, "b": {"bits": 16}},
        },
        None,
    ),
    "auto-round mx": (
        {"quant_method": "auto-round", "bits": 4, "data_type": "mx_fp", "group_size": 32},
        None,
    ),
    "torchao i4": (
        {
            "quant_method": "torchao",
            "quant_type": {
                "default": {"_type": "Int4WeightOnlyConfig", "_data": {"group_size": 128}}
            },
        },
        "int4",
    ),
    "torchao str": ({"quant_method": "torchao", "quant_type": "int8_weight_only"}, "w8a16"),
    "torchao fp8": (
        {
            "quant_method": "torchao",
            "quant_type": {
                "default": {"_type": "Float8DynamicActivationFloat8WeightConfig", "_data": {}}
            },
        },
        "fp8",
    ),
    "torchao other": (
        {"quant_method": "torchao", "quant_type": {"default": {"_type": "UIntXWeightOnlyConfig"}}},
        None,
    ),
    "hqq4": (
        {
            "quant_method": "hqq",
            "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64}},
        },
        "hqq-int4",
    ),
    "hqq3": (
        {
            "quant_method": "hqq",
            "quant_config": {"weight_quant_params": {"nbits": 3, "group_size": 64}},
        },
        None,
    ),
    "hqq8": (
        {
            "quant_method": "hqq",
            "quant_config": {"weight_quant_params": {"nbits": 8, "group_size": 64}},
        },
        "w8a16",
    ),
    "eetq": ({"quant_method": "eetq"}, "w8a16"),
    "ct bad": ({"quant_method": "compressed-tensors", "config_groups": [1]}, None),
    "gptq list": ({"quant_method": "gptq", "bits": 4, "group_size": [128]}, None),
    "quark bad": ({"quant_method": "quark", "global_quant_config": [1]}, None),
    "torchao none": ({"quant_method": "torchao"}, None),
}


@pytest.mark.parametrize("name", FORMATS)
def test_the_format_of_every_method_is_read_or_refused_by_what_it_is(name: str) -> None:
    stated, precision = FORMATS[name]
    for key in ("quantization_config", "compression_config"):
        config = LLAMA | {key: stated}
        if precision is None:
            with pytest.raises(InputError, match=r"not one that energylens|does not know"):
                llm_from_config(config, "our/llm")
        else:
            found = llm_from_config(config, "our/llm").native_precision
            assert (found, catalog.precision(found).id) == (precision, precision)


@pytest.mark.parametrize(
    ("stated", "tokens"),
    [
        ({"max_position_embeddings": 8192}, 8192),
        ({"seq_length": 4096}, 4096),
        ({"n_positions": 1024}, 1024),
        ({}, None),
        ({"max_position_embeddings": 4096,
          "rope_scaling": {"type": "linear", "factor": 4.0}}, 16384),
        ({"max_position_embeddings": 8192,
          "rope_scaling": {"rope_type": "dynamic", "factor": 2}}, 16384),
        ({"max_position_embeddings": 40960, "rope_scaling":
          {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}}, 131072),
        ({"max_position_embeddings": 131072, "rope_parameters":
          {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096}}, 131072),
        ({"max_position_embeddings": 131072, "rope_scaling":
          {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}},
         131072),
        ({"max_position_embeddings": 131072, "rope_scaling":
          {"type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}}, 131072),
        ({"max_position_embeddings": 32768, "rope_scaling": None}, 32768),
    ],
)  # fmt: skip
def test_the_context_is_that_of_the_configuration_with_its_scaling(
    stated: Config, tokens: int | None
) -> None:
    assert llm_from_config(LLAMA | stated, "our/llm").context_tokens == tokens


def test_a_request_beyond_the_context_of_an_added_llm_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ENERGYLENS_HOME", str(tmp_path / "home"))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA | {"max_position_embeddings": 8192}))
    assert main(["llm", "add", str(path), "--name", "our/llm"]) == 0
    assert catalog.llm("our/llm").context_tokens == 8192
    case = ["explain", "datasheet", "--llm", "our/llm", "--gpu", "H100", "--output-tokens", "200"]
    for tokens, said in (("7000", False), ("8000", True)):
        capsys.readouterr()
        assert main([*case, "--input-tokens", tokens]) == 0
        assert ("8,192 tokens" in " ".join(capsys.readouterr().out.split())) is said


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model_type": "t5", "is_encoder_decoder": True}, "an encoder with a decoder"),
        ({"model_type": "whisper", "is_encoder_decoder": True}, "an encoder with a decoder"),
        ({"model_type": "rwkv7", "hidden_size": 4096}, "'rwkv7' is not one"),
        ({"model_type": "zamba2", "hidden_size": 4096}, "'zamba2' is not one"),
        (LLAMA | {"num_attention_heads": [32, 16]}, "num_attention_heads must be a whole number"),
        (LLAMA | {"model_type": "dbrx"}, "attn_config"),
        (LLAMA | {"model_type": "kimi_linear"}, "linear_attn_config"),
    ],
)  # fmt: skip
def test_what_is_not_described_is_refused_by_what_it_is(config: Config, says: str) -> None:
    with pytest.raises(InputError, match=says):
        llm_from_config(config, "our/llm")


def test_contexts_of_the_catalog_are_those_of_the_configurations_at_hand() -> None:
    if not CASES.is_dir():
        pytest.skip(f"no {CASES}")
    for name, file in (
        ("deepseek-ai/DeepSeek-V3", "configs/01-infersim-deepseek_v3.json"),
        ("deepseek-ai/DeepSeek-V3.2", "configs/11-deepseek-v3.2.json"),
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", "configs/13-qwen3-next-state.json"),
        ("nvidia/Nemotron-H-56B-Base-8K", "configs/14-nemotron-h-56b-Infinity.json"),
        ("moonshotai/Kimi-K2-Thinking", "configs/08-kimi-k2.5-text-int4-experts.json"),
        ("deepseek-ai/DeepSeek-V3.1", "modelopt/DeepSeek-V3.1-NVFP4"),
        ("meta-llama/Llama-3.1-70B-Instruct", "modelopt/Llama-3.1-70B-Instruct-FP8"),
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",
         "modelopt/NVIDIA-Nemotron-3-Nano-30B-A3B-NVFP4"),
    ):  # fmt: skip
        tokens = llm_from_path(CASES / file, name).context_tokens
        assert tokens is not None
        assert not catalog.context_note(name, tokens), name
        assert f"{tokens:,} tokens" in catalog.context_note(name, tokens + 1)
