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
from energylens.files import read_json_lines

Config = dict[str, Any]
CASES = Path(__file__).parents[2] / "shared" / "cases"


#: By name: configuration, parameters as published (billions), bytes of cache a token in 16 bit,
#: context.
KINDS: dict[str, tuple[Config, float, float | None, int | None]] = {
    row["name"]: (row["config"], row["billions"], row["cache_bytes_per_token"], row["context"])
    for row in read_json_lines(Path(__file__).with_name("huggingface_kinds.jsonl"))
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


LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
}


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
