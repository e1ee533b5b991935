"""An LLM record becomes a folder that engines load, with the shapes of the record."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from energylens import catalog
from energylens.catalog.hf_read import llm_from_config
from energylens.catalog.hf_write import FIRST_PROMPT_TOKEN, IMAGE_TOKEN, config_for, with_layers
from energylens.catalog.scaling import rank_shard, scaled_down
from energylens.errors import InputError, UsageError
from energylens.instrument.engine import EngineError, Layout, Reason
from energylens.instrument.engines.folders import (
    layout_config,
    layout_llm,
    read_config,
    write_folder,
)
from energylens.records import Attention, FeedForward, Llm, StateSpace

DENSE = "Qwen/Qwen3-32B"
MOE = "Qwen/Qwen3-30B-A3B"
SHARED = "Qwen/Qwen2-57B-A14B"
LATENT = "deepseek-ai/DeepSeek-V3"
SSM = "state-spaces/mamba2-2.7b"
HYBRID = "nvidia/NVIDIA-Nemotron-Nano-9B-v2"
HYBRID_MOE = "ibm-granite/granite-4.0-h-small"
VISION = "Qwen/Qwen2.5-VL-7B-Instruct"
VISION_MOE = "Qwen/Qwen3-VL-30B-A3B-Instruct"
KINDS = (DENSE, MOE, SHARED, LATENT, SSM, HYBRID, HYBRID_MOE, VISION, VISION_MOE)


@pytest.fixture(autouse=True, scope="module")
def packaged_catalog_only(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENERGYLENS_HOME", str(tmp_path_factory.mktemp("home")))
        yield


def small(**parts: object) -> Llm:
    shapes = {"layers": 4, "hidden_size": 256, "vocabulary_size": 512}
    counts = {"total_parameters": 10**7, "active_parameters": 10**7}
    return Llm(id="small", **shapes, **counts, **parts)  # type: ignore[arg-type]


def test_every_config_has_the_weights_of_its_record_or_says_what_differs() -> None:
    """Read back by the catalog's own reader, which shares no code with the writer."""
    checked = 0
    for llm in catalog.llms().values():
        made = config_for(llm)
        if made.differences:
            continue
        back = llm_from_config(made.config, llm.id)
        assert back.counted_parameters == pytest.approx(llm.counted_parameters, rel=2e-3), llm.id
        assert back.computing_parameters == pytest.approx(llm.computing_parameters, rel=2e-3)
        assert back.layers == llm.layers
        if llm.attention and back.attention:
            elements = llm.attention.kv_elements_per_token_layer
            assert back.attention.kv_elements_per_token_layer == elements, llm.id
            assert back.attention.window_layers == llm.attention.window_layers, llm.id
        if llm.state_space and back.state_space:
            assert back.state_space.elements_per_sequence == llm.state_space.elements_per_sequence
        checked += 1
    assert checked > 150  # differences are the exception


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("layers", [2, 5])
def test_a_scaled_down_llm_keeps_each_kind_of_layer_and_its_shapes(name: str, layers: int) -> None:
    llm = catalog.llm(name)
    cut = scaled_down(llm, layers)
    assert cut.layers <= max(layers, 4)
    assert str(layers) in cut.id
    assert cut.hidden_size == llm.hidden_size
    for part in ("attention", "feed_forward", "experts", "state_space"):
        assert (getattr(cut, part) is None) == (getattr(llm, part) is None)
    assert cut.total_parameters < llm.total_parameters
    back = llm_from_config(config_for(cut).config, "back")
    assert back.counted_parameters == pytest.approx(cut.counted_parameters, rel=2e-3)
    again = scaled_down(cut, min(layers, cut.layers))
    assert again.counted_parameters == cut.counted_parameters


def test_an_llm_cannot_be_scaled_to_more_layers_than_it_has() -> None:
    with pytest.raises(UsageError, match="from 1 to 64"):
        scaled_down(catalog.llm(DENSE), 65)


@pytest.mark.parametrize("name", [DENSE, MOE, SHARED, SSM, HYBRID_MOE])
@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (1, 2), (4, 2)])
def test_shards_of_all_gpus_have_the_weights_of_the_whole(name: str, tp: int, pp: int) -> None:
    llm = catalog.llm(name)
    shard = rank_shard(llm, tp, pp)
    layers = shard.backbone_parameters + shard.expert_parameters
    whole = llm.backbone_parameters + llm.expert_parameters
    # Routers, and what all heads of a state-space layer share, are on every GPU.
    assert layers * tp * pp == pytest.approx(whole, rel=0.06)
    assert layers * tp * pp >= whole * 0.999
    assert shard.vocabulary_size == pytest.approx(llm.vocabulary_size / tp, abs=1)
    assert f"TP{tp} PP{pp}" in shard.id
    config_for(shard)


def test_key_value_heads_fewer_than_the_degree_are_repeated() -> None:
    shard = rank_shard(catalog.llm(MOE), 8, 1)
    assert shard.attention is not None
    assert shard.attention.kv_heads == 1


@pytest.mark.parametrize(("tp", "pp"), [(3, 1), (0, 1), (1, 65)])
def test_a_degree_that_divides_nothing_is_refused(tp: int, pp: int) -> None:
    with pytest.raises(UsageError):
        rank_shard(catalog.llm(DENSE), tp, pp)


def test_a_mean_number_of_key_value_heads_becomes_one_that_engines_can_have() -> None:
    attention = Attention(layers=4, heads=8, kv_heads=2.7, head_size=32)
    made = config_for(small(attention=attention, feed_forward=FeedForward(layers=4, size=512)))
    assert made.config["num_attention_heads"] % made.config["num_key_value_heads"] == 0
    assert any("key-value heads" in text for text in made.differences)


def test_state_space_layers_may_have_any_width() -> None:
    ssm = StateSpace(layers=4, inner_size=384, state_size=64, heads=8)
    back = llm_from_config(config_for(small(state_space=ssm)).config, "back")
    assert back.state_space == ssm


def test_windows_are_interleaved_as_often_as_the_record_says() -> None:
    attention = Attention(
        layers=4, heads=4, kv_heads=2, head_size=64, window_tokens=128, window_layers=3
    )
    made = config_for(small(attention=attention, feed_forward=FeedForward(layers=4, size=512)))
    assert made.config["layer_types"].count("sliding_attention") == 3
    assert made.config["layer_types"][-1] == "full_attention"


# ------------------------------------------------------------------------------------- folders


def test_a_folder_is_written_once_for_each_configuration(tmp_path: Path) -> None:
    config = config_for(catalog.llm(DENSE)).config
    folder = write_folder(config, tmp_path)
    assert write_folder(config, tmp_path) == folder
    assert read_config(folder) == config
    assert write_folder(config | {"vocab_size": 7}, tmp_path) != folder
    assert sorted(file.name for file in folder.iterdir()) == ["config.json"]


def test_a_vision_language_folder_has_a_tokenizer_for_every_token_id(tmp_path: Path) -> None:
    folder = write_folder(config_for(catalog.llm(VISION)).config, tmp_path)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    ids = sorted(tokenizer["model"]["vocab"].values())
    assert ids == list(range(catalog.llm(VISION).vocabulary_size))
    special = {token["id"] for token in tokenizer["added_tokens"]}
    assert IMAGE_TOKEN in special
    assert max(special) < FIRST_PROMPT_TOKEN
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        settings = json.loads((folder / name).read_text())
        assert settings["patch_size"] == 14
        assert settings["merge_size"] == 2


def test_processors_of_a_given_folder_are_taken_over(tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.mkdir()
    (given / "preprocessor_config.json").write_text('{"crop_size": 336}')
    (given / "config.json").write_text('{"model_type": "llava"}')
    (given / "model.safetensors.index.json").write_text("{}")
    config = {"model_type": "llava", "vision_config": {}, "text_config": {"vocab_size": 99}}
    folder = write_folder(config, tmp_path / "out", processors=given)
    names = sorted(file.name for file in folder.iterdir())
    assert names == ["config.json", "preprocessor_config.json"]
    assert read_config(folder) == config


def test_a_tower_without_processors_of_its_own_is_refused(tmp_path: Path) -> None:
    config = {"model_type": "llava", "vision_config": {}, "text_config": {"vocab_size": 99}}
    with pytest.raises(UsageError, match="whole folder"):
        write_folder(config, tmp_path)


@pytest.mark.parametrize("text", [None, "{", "[1]", "{}"])
def test_what_is_no_config_is_refused_in_one_sentence(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config"):
        read_config(tmp_path)


def test_layers_are_cut_from_lists_and_patterns_too() -> None:
    config = {
        "model_type": "x",
        "num_hidden_layers": 4,
        "layer_types": ["a", "b", "c", "d"],
        "hybrid_override_pattern": "M-M*",
        "mlp_only_layers": [0, 3],
    }
    cut = with_layers(config, 2)
    assert cut["num_hidden_layers"] == 2
    assert cut["layer_types"] == ["a", "b"]
    assert cut["hybrid_override_pattern"] == "M-"
    assert cut["mlp_only_layers"] == [0]
    nested = with_layers({"model_type": "v", "text_config": config}, 3)
    assert nested["text_config"]["num_hidden_layers"] == 3
    with pytest.raises(UsageError, match="4 layers"):
        with_layers(config, 5)


# ------------------------------------------------------------------------------------- layouts


def layout(**settings: object) -> Layout:
    base = Layout(
        llm=catalog.llm(DENSE),
        precision=catalog.precision("bf16"),
        max_sequences=1,
        max_sequence_tokens=8,
    )
    return replace(base, **settings)  # type: ignore[arg-type]


def test_a_layout_is_cut_once_whoever_cuts_it() -> None:
    whole = layout(scaled_layers=2)
    cut = layout(llm=scaled_down(catalog.llm(DENSE), 2), scaled_layers=2)
    assert layout_config(whole) == layout_config(cut)
    assert layout_config(whole)[0]["num_hidden_layers"] == 2


def test_a_shard_is_one_gpus_part_and_only_of_a_record(tmp_path: Path) -> None:
    assert layout_llm(layout(shard=(2, 4))).layers == 16
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(EngineError, match="record") as refused:
        layout_config(layout(shard=(2, 4), model_path=str(tmp_path)))
    assert refused.value.reason is Reason.UNSUPPORTED


def test_a_given_config_is_taken_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"model_type": "llama", "num_hidden_layers": 6, "torch_dtype": "bfloat16"}')
    config, differences = layout_config(layout(model_path=str(file), scaled_layers=3))
    assert config["num_hidden_layers"] == 3
    assert differences == ()
