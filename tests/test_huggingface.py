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
from energylens.capacity import memory
from energylens.catalog.hf_read import llm_from_config, llm_from_path
from energylens.counts import weight_bytes
from energylens.errors import EnergyLensError, InputError
from energylens.files import read_json_lines
from energylens.records import Case, Configuration, Workload

Config = dict[str, Any]


CONFIGS: dict[str, Config] = {
    row["name"]: row["config"]
    for row in read_json_lines(Path(__file__).with_name("huggingface_configs.jsonl"))
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

    config = {
        "model_type": "nemotron-nas",
        "num_hidden_layers": 3,
        "hidden_size": 8192,
        "num_attention_heads": 64,
        "vocab_size": 128256,
        "intermediate_size": 1,
        "block_configs": [block(8, 5.25), block(None, 2.625), block(8, 5.25)],
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
        ({"audio_model_id": "a/b", "architectures": ["HearingModel"]}, "audio encoder"),
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
    for kind, windowed in (("exaone4", 6), ("gemma2", 4), ("gpt_oss", 4), ("qwen2", 0)):
        silent = {"sliding_window": 4096} if kind == "qwen2" else {}
        found = llm_from_config(qwen3(model_type=kind, **silent), "our/llm").attention
        assert found is not None
        assert found.window_layers == windowed, kind
        assert found.window_tokens == (128 if kind == "gpt_oss" else 4096 if windowed else None)
    none = llm_from_config(qwen3(model_type="cohere2", sliding_window=None), "our/llm").attention
    assert none is not None
    assert none.window_layers == 0
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


GROUPS = {"group_0": {"weights": {"num_bits": 4, "type": "int", "group_size": 64}}}


@pytest.mark.parametrize(
    ("stated", "precision"),
    [
        (
            {"quant_method": "compressed-tensors", "ignore": ["lm_head"], "config_groups": GROUPS},
            "int4-g64",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "ignore": ["lm_head", "re:.*self_attn.*"],
                "config_groups": GROUPS,
            },
            "int4-g64-mlp",
        ),
        (
            {
                "quant_method": "fbgemm_fp8",
                "modules_to_not_convert": [f"model.layers.{n}.self_attn.k_proj" for n in range(8)]
                + ["model.layers.0.mlp.down_proj"],
            },
            "fp8-mlp",
        ),
        (
            {
                "quant_algo": "NVFP4",
                "exclude_modules": ["lm_head", "model.layers.0.self_attn.q_proj", "*.mlp.gate"],
            },
            "nvfp4",
        ),
        ({"quant_method": "gptq", "dynamic": {"-:.*attn": {}}}, "gptq-int4-mlp"),
        ({"quant_method": "awq", "modules_to_not_convert": ["visual"]}, "awq-int4"),
    ],
)
def test_layers_that_a_checkpoint_leaves_in_16_bits_are_told_apart(
    stated: dict[str, Any], precision: str
) -> None:
    llm = llm_from_config(qwen3(quantization_config=stated), "our/llm")
    assert llm.native_precision == precision
    found = catalog.precision(precision)
    assert found.scope == ("feed_forward" if precision.endswith("-mlp") else "linear")
    narrow = llm.feed_forward_parameters
    if found.scope == "linear":
        narrow = llm.backbone_parameters
    bytes_read = narrow * found.weight_bits / 8 + 2 * (llm.always_parameters - narrow)
    assert weight_bytes(llm, found)[0] == pytest.approx(bytes_read)
    case = Case(
        llm=llm,
        gpu=catalog.gpu("H100"),
        precision=found,
        workload=Workload(input_tokens=10, output_tokens=10),
        configuration=Configuration(batch_size=1),
    )
    assert memory(case).weights_bytes == pytest.approx(bytes_read + 2 * llm.embedding_parameters)


def test_feed_forward_layers_in_16_bits_alone_are_refused() -> None:
    stated = {"quant_method": "fp8", "modules_to_not_convert": ["model.layers.*.mlp"]}
    with pytest.raises(InputError, match="feed-forward layers that are left in 16 bits"):
        llm_from_config(qwen3(quantization_config=stated), "our/llm")


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
