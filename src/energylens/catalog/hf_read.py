"""Reads the architecture of an LLM from the ``config.json`` of a Hugging Face repository.

Only families whose every layer is understood are read: a configuration with layers that this
module does not know would give a row that is quietly wrong, so it is refused by name.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from energylens import files
from energylens.errors import InputError
from energylens.records import Attention, Experts, FeedForward, Llm, StateSpace, Vision

__all__ = ["llm_from_config", "llm_from_path"]

# Model types of a config.json, by the way their layers are described.
_TRANSFORMERS = """
    llama mistral ministral mixtral qwen2 qwen3 gemma gemma2 gemma3 gemma3_text phi phi3 phimoe
    starcoder2 gpt_neox gptj gpt2 opt bloom falcon cohere cohere2 olmo olmo2 olmo3 olmoe granite
    granitemoe stablelm internlm2 deci nemotron-nas smollm3 seed_oss aquila glm4 glm4_moe
    qwen2_moe qwen3_moe gpt_oss llama4 llama4_text minimax_m2 deepseek deepseek_v2 deepseek_v3
    deepseek_v32 kimi_k2 qwen2_vl qwen2_vl_text qwen2_5_vl qwen2_5_vl_text qwen3_vl
    qwen3_vl_text qwen3_vl_moe qwen3_vl_moe_text qwen3_omni_moe_text mllama_text_model phi3_v
    """
_HYBRIDS = """
    mamba mamba2 falcon_mamba bamba granitemoehybrid nemotron_h jamba falcon_h1 qwen3_next
    qwen3_5_text qwen3_5_moe_text
    """
# Feed-forward layers of two matrices; all others are gated (three).
_UNGATED = "gpt2 gptj gpt_neox opt bloom falcon starcoder2 phi nemotron_h"
# Where config.json leaves tie_word_embeddings out, these share one vocabulary matrix.
_TIED = """
    gemma gemma2 gemma3 gemma3_text opt bloom falcon starcoder2 gpt2 mamba falcon_mamba cohere
    cohere2
    """
# What transformers fills in where the text_config or vision_config of a vision LLM, which is
# saved as the difference from its class, says nothing.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32000,
    },
    "mistral": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
    },
    "gemma3_text": {
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262208,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
    },
    "mllama_text_model": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
    "clip_vision_model": {
        "hidden_size": 1024,  # of ViT-L/14 at 336 px, which every LLaVA states or means
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "image_size": 336,
        "patch_size": 14,
    },
    "pixtral": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "image_size": 1024,
        "patch_size": 16,
    },
    "mllama_vision_model": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_global_layers": 8,
        "image_size": 448,
        "patch_size": 14,
        "vision_output_dim": 7680,
    },
    "llama4_vision_model": {
        "hidden_size": 1408,
        "intermediate_size": 5632,
        "num_hidden_layers": 34,
        "image_size": 336,
        "patch_size": 14,
        "vision_output_dim": 4096,
    },
}

_MOST_LAYERS = 10_000  # a slip of the pen beyond it

# Counts of vision tokens are given for an image of this size, and for a frame of that one.
IMAGE_PIXELS = (1024, 1024)
FRAME_PIXELS = (640, 360)


def llm_from_config(
    config: Mapping[str, Any],
    id: str,
    *,
    total_parameters: int | None = None,
    active_parameters: int | None = None,
    aliases: tuple[str, ...] = (),
    source: str = "",
    date: str = "",
) -> Llm:
    """Make the catalog row of an LLM from its ``config.json``.

    Parameters
    ----------
    config : mapping
        The file, decoded.
    id : str
        The name to give it, as in ``"Qwen/Qwen3-8B"``.
    total_parameters, active_parameters : int, optional
        The published counts; by default those recounted from the architecture.
    aliases : tuple of str
    source, date : str
        Where the file comes from, and when.

    Returns
    -------
    Llm

    Raises
    ------
    InputError
        If the family is unknown or a key is missing; the message names it.
    """
    if not isinstance(config, Mapping):
        raise InputError(f"the config.json of {id!r} must be an object")
    whole = _Keys(config, f"the config.json of {id!r}")
    _refuse_what_generates_no_text(whole)
    text = _text(whole)
    kind = text.kind
    if kind not in (known := sorted((_TRANSFORMERS + _HYBRIDS).split())):
        raise InputError(
            f"{whole.where}: model_type {kind!r} is not one that energylens can read. Write its "
            "row by hand, as docs/catalog.md shows. Known are "
            f"{', '.join(known)}."
        )
    if text.get("moe_latent_size"):
        raise InputError(f"{text.where}: experts behind a latent projection cannot be described")
    _refuse_unknown_experts(text)
    if whole.part("vision_config") is not None and not _reads_vision(whole):
        raise InputError(
            _UNKNOWN_TOWER.format(where=whole.where, kind=str(whole.get("model_type")))
        )
    listed = text.items("layers_block_type") or text.items("layer_types")
    layers = text.count(
        "num_hidden_layers", "n_layer", "n_layers", "num_layers", default=len(listed) or None
    )
    if layers > _MOST_LAYERS:
        raise InputError(f"{text.where}: {layers} layers are more than the {_MOST_LAYERS} allowed")
    hidden = text.count("hidden_size", "n_embd", "n_embed", "d_model")
    roles = _roles(text, kind, layers)
    tied = text.flag("tie_word_embeddings", kind in _TIED.split())
    row = Llm(
        id=id,
        layers=layers,
        hidden_size=hidden,
        vocabulary_size=text.count("vocab_size", "padded_vocab_size"),
        tied_embeddings=whole.flag("tie_word_embeddings", tied),
        attention=_attention(text, kind, hidden, roles),
        feed_forward=_feed_forward(text, kind, hidden, roles),
        experts=_experts(text, kind, roles),
        state_space=_state_space(text, kind, hidden, roles),
        vision=_vision(whole, hidden),
        native_precision=_native_precision(whole, text),
        aliases=aliases,
        source=source,
        date=date,
        total_parameters=1,  # until counted
        active_parameters=1,
    )
    total = total_parameters or round(row.counted_parameters)
    computing = round(row.computing_parameters) if row.experts else total
    return replace(
        row, total_parameters=total, active_parameters=active_parameters or min(total, computing)
    )


def llm_from_path(path: Path, id: str, **given: Any) -> Llm:
    """Make the catalog row of an LLM from its folder, or from a ``config.json``.

    A ``hf_quant_config.json`` beside the configuration says what number format ModelOpt gave the
    checkpoint, where the configuration itself does not.

    Parameters
    ----------
    path : Path
        A folder with a ``config.json``, or such a file.
    id : str
    **given
        As in `llm_from_config`.

    Returns
    -------
    Llm

    Raises
    ------
    InputError
        If there is no configuration, or it cannot be read; the message says what is missing.
    """
    file = path / "config.json" if path.is_dir() else path
    if path.is_dir() and not file.exists() and (path / "adapter_config.json").exists():
        file = path / "adapter_config.json"
    document = files.read_json(file, infinite=True)
    if not isinstance(document, dict):
        raise InputError(f"{file} must hold the configuration of an LLM: a JSON object.")
    beside = file.with_name("hf_quant_config.json")
    if "quantization_config" not in document and file.name == "config.json" and beside.is_file():
        stated = files.read_json(beside)
        part = stated.get("quantization") if isinstance(stated, dict) else None
        if not isinstance(part, dict):
            raise InputError(f"{beside} must hold an object with the key 'quantization'.")
        document["quantization_config"] = {"quant_method": "modelopt", **part}
    return llm_from_config(document, id, **given)


# ------------------------------------------------------------------------------ what is refused

# What an architecture's name ends with that gives scores or vectors and no text.
_NO_TEXT = re.compile(
    r"For(SequenceClassification|TokenClassification|QuestionAnswering|MaskedLM|MultipleChoice|"
    r"Retrieval|Embedding|Reward|ImageClassification|Sequence\w*Reward)\w*$|"
    r"(Reward|Embedding|Retriev\w*|Reranker)Model$|^(?!\w*(Chat|Omni|VL)\w*)[A-Z]\w*(?<!LM)(?<!LMHead)Model$"
)
_UNKNOWN_TOWER = (
    "{where}: the vision tower of model_type {kind!r} is not one that energylens can read. Write "
    "its row by hand, as docs/catalog.md shows."
)
_VISION_KINDS = """
    llava llava_next llava_onevision gemma3 mistral3 internvl_chat internvl llama4 mllama phi3_v
    """
# Keys that speak of experts and give neither how many there are nor how they are laid out.
_OF_EXPERTS = re.compile(r"experts?(_|$)|^moe_|_moe_|moe$")


def _refuse_what_generates_no_text(whole: _Keys) -> None:
    if "peft_type" in whole.values:
        base = whole.values.get("base_model_name_or_path") or "its base LLM"
        raise InputError(
            f"{whole.where} is that of an adapter ({whole.values['peft_type']}): give the "
            f"config.json of {base}"
        )
    names = [str(name) for name in whole.items("architectures")]
    if names and all(map(_NO_TEXT.search, names)):
        raise InputError(
            f"{whole.where}: {', '.join(names)} gives scores or vectors and generates no text; "
            "give the config.json of an LLM that does"
        )
    if whole.part("thinker_config") is None:
        for part in ("audio_config", "speech_config", "audio_encoder_config"):
            if whole.part(part) is not None:
                raise InputError(
                    f"{whole.where}: model_type {whole.get('model_type')!r} has an audio encoder "
                    f"({part}), which energylens cannot read. Write its row by hand, as "
                    "docs/catalog.md shows."
                )


def _refuse_unknown_experts(text: _Keys) -> None:
    """Refuse experts without a count that is understood: they would pass for a dense LLM."""
    if any(text.get(name) is not None for name in _EXPERT_COUNTS):
        return
    said = [
        name
        for name, value in text.values.items()
        if _OF_EXPERTS.search(str(name)) and type(value) is int and value > 1
    ]
    if said:
        raise InputError(
            f"{text.where} speaks of experts ({', '.join(map(str, said[:3]))}) and lacks their "
            f"number under a name that energylens knows: {', '.join(_EXPERT_COUNTS)}"
        )


def _reads_vision(whole: _Keys) -> bool:
    kind = str(whole.values.get("model_type") or "")
    return kind.startswith("qwen") or kind in _VISION_KINDS.split()


# --------------------------------------------------------------------------- reading of keys


@dataclass(frozen=True)
class _Keys:
    """One object of a config.json, which says what it lacks."""

    values: Mapping[str, Any]
    where: str
    kind: str = ""
    nested: bool = False

    def get(self, name: str, default: Any = None) -> Any:
        """Give a value, the default also where the file says null."""
        value = self.values.get(name)
        if value is None and self.nested:
            value = _DEFAULTS.get(self.kind, {}).get(name)
        return default if value is None else value

    def count(self, *names: str, default: int | None = None, least: int = 1) -> int:
        """Give a whole number under the first of some names, or refuse."""
        name, value = next(((n, v) for n in names if (v := self.get(n)) is not None), ("", None))
        if value is None:
            if default is not None:
                return default
            also = f" (or {', '.join(names[1:])})" if names[1:] else ""
            raise InputError(f"{self.where} lacks the key {names[0]!r}{also}")
        if type(value) is not int or not least <= value < 10**15:
            raise InputError(
                f"{self.where}: {name} must be a whole number, {least} or more, not {value!r}"
            )
        return value

    def flag(self, name: str, default: bool) -> bool:
        """Give a yes or no."""
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise InputError(f"{self.where}: {name} must be true or false, not {value!r}")
        return value

    def items(self, name: str) -> list[Any]:
        """Give a list, an empty one where there is none."""
        value = self.get(name, [])
        if not isinstance(value, list):
            raise InputError(f"{self.where}: {name} must be a list, not {value!r}")
        return value

    def part(self, *names: str) -> _Keys | None:
        """Give a nested object, None where there is none of those names."""
        for name in names:
            value = self.values.get(name)
            if isinstance(value, Mapping):
                kind = str(value.get("model_type") or "")
                return _Keys(value, f"{self.where}, {name}", kind, nested=True)
        return None


def _text(whole: _Keys) -> _Keys:
    """Find the part that describes the language model."""
    outer = whole.part("thinker_config") or whole
    text = outer.part("text_config", "llm_config", "language_config")
    kind = str(whole.values.get("model_type") or "")
    if text is None:
        if not kind:
            raise InputError(f"{whole.where} lacks the key 'model_type'")
        return _Keys(whole.values, whole.where, kind)
    if not text.kind:
        text = replace(text, kind=kind)
    return text


# ---------------------------------------------------------------------- what each layer is


@dataclass
class _Roles:
    """How many layers of each sort there are."""

    attention: int = 0
    windowed: int = 0  # of the attention layers
    window_tokens: int | None = None
    state_space: int = 0
    dense: int = 0
    routed: int = 0
    kv_heads: int | None = None  # where layers differ
    dense_size: int | None = None


def _roles(text: _Keys, kind: str, layers: int) -> _Roles:
    if kind == "nemotron_h":
        return _nemotron_h_roles(text)
    if kind == "nemotron-nas":
        return _nemotron_nas_roles(text, layers)
    roles = _Roles()
    _mixers(text, kind, layers, roles)
    if kind in ("mamba", "mamba2", "falcon_mamba"):
        return roles
    roles.routed = _routed_layers(text, kind, layers)
    roles.dense = layers - roles.routed
    return roles


def _nemotron_h_roles(text: _Keys) -> _Roles:
    stated = text.get("hybrid_override_pattern")
    pattern = list(stated) if isinstance(stated, str) else text.items("layers_block_type")
    if not pattern:
        raise InputError(f"{text.where} lacks the key 'hybrid_override_pattern'")
    if text.get("moe_latent_size"):
        raise InputError(f"{text.where}: experts behind a latent projection cannot be described")
    found = Counter(map(str, pattern))
    roles = _Roles(
        attention=found.pop("*", 0) + found.pop("attention", 0),
        state_space=found.pop("M", 0) + found.pop("mamba", 0),
        dense=found.pop("-", 0) + found.pop("mlp", 0),
        routed=found.pop("E", 0) + found.pop("moe", 0),
    )
    if found:
        raise InputError(f"{text.where}: hybrid_override_pattern has unknown layers {set(found)}")
    return roles


def _nemotron_nas_roles(text: _Keys, layers: int) -> _Roles:
    """Layers of an architecture search: attention may be absent, feed-forward sizes differ."""
    blocks = text.items("block_configs")
    if len(blocks) != layers:
        raise InputError(f"{text.where} lacks the key 'block_configs' with one entry a layer")
    hidden, heads = text.count("hidden_size"), text.count("num_attention_heads")
    groups, sizes = [], []
    try:
        for block in blocks:
            attention, ffn = block["attention"], block["ffn"]
            if not attention["no_op"]:
                groups.append(heads // attention["n_heads_in_group"])
            if not ffn["no_op"]:
                wanted = int(2 * ffn["ffn_mult"] * hidden / 3)
                sizes.append(math.ceil(wanted / 256) * 256)
            if attention.get("replace_with_linear") or ffn.get("replace_with_linear"):
                raise InputError(f"{text.where}: linear replacement layers cannot be described")
    except (KeyError, TypeError, ValueError, ArithmeticError):
        raise InputError(f"{text.where}: block_configs lacks the sizes of a layer") from None
    if not groups or not sizes:
        raise InputError(f"{text.where}: block_configs has no attention or no feed-forward layers")
    return _Roles(
        attention=len(groups),
        dense=len(sizes),
        kv_heads=max(groups),
        dense_size=256 * round(sum(sizes) / len(sizes) / 256),
    )


def _mixers(text: _Keys, kind: str, layers: int, roles: _Roles) -> None:
    """Count what mixes tokens: full attention, windowed attention, state space."""
    listed = text.items("layer_types") or text.items("layers_block_type")
    if kind in ("mamba", "mamba2", "falcon_mamba"):
        roles.state_space = layers
    elif kind == "falcon_h1":  # both side by side in every layer
        roles.attention = roles.state_space = layers
    elif kind == "jamba":
        period = text.count("attn_layer_period")
        offset = text.count("attn_layer_offset", default=0, least=0)
        roles.attention = sum(layer % period == offset for layer in range(layers))
        roles.state_space = layers - roles.attention
    elif listed:
        found = Counter(map(str, listed))
        state = sum(found.pop(name, 0) for name in ("linear_attention", "mamba", "mamba2"))
        windowed = sum(found.pop(name, 0) for name in ("sliding_attention", "chunked_attention"))
        full = sum(found.pop(name, 0) for name in ("full_attention", "attention"))
        if found or state + windowed + full != layers:
            raise InputError(
                f"{text.where}: layer_types must name {layers} layers of known sorts; "
                f"found {dict(Counter(map(str, listed)))}"
            )
        roles.attention, roles.state_space = windowed + full, state
        roles.windowed = windowed
    elif kind == "bamba":
        roles.attention = len(text.items("attn_layer_indices"))
        roles.state_space = layers - roles.attention
    elif kind in ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"):
        roles.attention = layers // text.count("full_attention_interval", default=4)
        roles.state_space = layers - roles.attention
    elif kind in _HYBRIDS.split():
        raise InputError(f"{text.where} lacks the key 'layer_types'")
    else:
        roles.attention = layers
        roles.windowed = _windowed_layers(text, kind, layers)
    name = "attention_chunk_size" if kind.startswith("llama4") else "sliding_window"
    if roles.windowed and text.get(name):
        roles.window_tokens = text.count(name)
    else:
        roles.windowed = 0


def _windowed_layers(text: _Keys, kind: str, layers: int) -> int:
    """Layers with a sliding window where they are not listed one by one."""
    if kind.startswith("llama4"):  # every fourth layer attends to everything
        return layers - layers // 4
    if not text.get("sliding_window") or not text.flag("use_sliding_window", True):
        return 0
    if kind == "gemma2":
        return layers - layers // 2
    if kind == "gpt_oss":
        return layers // 2
    # Every so many layers, one attends to everything; the class says how many where the file
    # does not.
    pattern = {"olmo3": 4, "gemma3": 6, "gemma3_text": 6, "cohere2": 4}.get(kind)
    if text.get("sliding_window_pattern") or pattern:
        return layers - layers // text.count("sliding_window_pattern", default=pattern)
    if kind.startswith("qwen"):
        return layers - min(text.count("max_window_layers", default=layers, least=0), layers)
    return layers


def _routed_layers(text: _Keys, kind: str, layers: int) -> int:
    """Layers whose feed-forward part is a mixture of experts."""
    if not _expert_count(text):
        return 0
    if kind.startswith("llama4"):
        listed = len(text.items("moe_layers"))
        return listed or layers // text.count("interleave_moe_layer_step")
    if kind == "jamba":
        period = text.count("expert_layer_period")
        offset = text.count("expert_layer_offset", default=0, least=0)
        return sum(layer % period == offset for layer in range(layers))
    if kind.startswith("qwen"):
        step = text.count("decoder_sparse_step", default=1)
        dense = text.items("mlp_only_layers")
        return sum(layer not in dense and (layer + 1) % step == 0 for layer in range(layers))
    first = text.count("first_k_dense_replace", default=0, least=0)
    step = text.count("moe_layer_freq", default=1)
    return sum(layer % step == 0 for layer in range(first, layers))


# -------------------------------------------------------------------------- parts of a layer


def _attention(text: _Keys, kind: str, hidden: int, roles: _Roles) -> Attention | None:
    if not roles.attention:
        return None
    heads = text.count("num_attention_heads", "n_head", "n_heads")
    if text.get("kv_lora_rank"):
        return Attention(
            layers=roles.attention,
            heads=heads,
            kv_heads=heads,
            head_size=text.count("qk_nope_head_dim"),
            query_rank=text.count("q_lora_rank") if text.get("q_lora_rank") else None,
            kv_rank=text.count("kv_lora_rank"),
            rope_head_size=text.count("qk_rope_head_dim"),
            value_head_size=text.count("v_head_dim"),
            index_heads=text.count("index_n_heads", default=0, least=0),
            index_head_size=text.count("index_head_dim", default=0, least=0),
            index_tokens=text.count("index_topk") if text.get("index_topk") else None,
        )
    return Attention(
        layers=roles.attention,
        heads=heads,
        kv_heads=roles.kv_heads or _kv_heads(text, kind, heads),
        head_size=text.count(
            "head_dim",
            "attention_head_dim",
            default=_HEAD_SIZES.get(kind, max(hidden // heads, 1)),
        ),
        window_tokens=roles.window_tokens,
        window_layers=roles.windowed,
    )


# What the classes of these fill in where the file has no head_dim.
_HEAD_SIZES = {"gemma": 256, "gemma2": 256, "gemma3": 256, "gemma3_text": 256, "qwen3": 128,
    "qwen3_moe": 128, "gpt_oss": 64}  # fmt: skip


def _kv_heads(text: _Keys, kind: str, heads: int) -> int:
    if kind == "falcon":
        if text.flag("new_decoder_architecture", False):
            return text.count("num_kv_heads", "n_head_kv", default=heads)
        return 1 if text.flag("multi_query", True) else heads
    by_layer = [n for n in text.items("num_key_value_heads_per_layer") if type(n) is int and n > 0]
    if by_layer:
        return max(by_layer)  # engines pad every layer to the largest
    return text.count("num_key_value_heads", default=heads)


def _feed_forward(text: _Keys, kind: str, hidden: int, roles: _Roles) -> FeedForward | None:
    if not roles.dense:
        return None
    if roles.dense_size:
        size = roles.dense_size
    elif kind.startswith("llama4"):
        size = text.count("intermediate_size_mlp", "intermediate_size")
    elif kind == "granitemoehybrid":
        size = text.count("shared_intermediate_size", "intermediate_size")
    elif kind in ("gpt2", "gptj", "bloom", "falcon"):
        size = text.count("n_inner", "ffn_hidden_size", default=4 * hidden)
    else:
        size = text.count("intermediate_size", "ffn_dim", "n_inner")
    return FeedForward(layers=roles.dense, size=size, matrices=2 if kind in _UNGATED.split() else 3)


_EXPERT_COUNTS = (
    "num_local_experts", "num_experts", "n_routed_experts", "num_routed_experts",
    "moe_num_experts",
)  # fmt: skip


def _expert_count(text: _Keys) -> int:
    """Give the number of routed experts, 0 where there is no routing."""
    number = text.count(*_EXPERT_COUNTS, default=0, least=0)
    return number if number > 1 else 0


def _experts(text: _Keys, kind: str, roles: _Roles) -> Experts | None:
    if not roles.routed:
        return None
    size = text.count("moe_intermediate_size", "intermediate_size")
    if kind.startswith("llama4"):
        shared = size
    elif kind in ("granitemoehybrid", "minimax_m2"):
        shared = text.count("shared_intermediate_size", default=0, least=0)
    elif text.get("shared_expert_intermediate_size"):
        shared = text.count("shared_expert_intermediate_size")
    else:
        each = text.count("moe_shared_expert_intermediate_size", default=size)
        shared = each * text.count("n_shared_experts", "num_shared_experts", default=0, least=0)
    return Experts(
        layers=roles.routed,
        experts=_expert_count(text),
        active_experts=text.count("num_experts_per_tok", "num_experts_per_token", "moe_top_k"),
        size=size,
        shared_size=shared,
        matrices=2 if kind in _UNGATED.split() else 3,
    )


def _state_space(text: _Keys, kind: str, hidden: int, roles: _Roles) -> StateSpace | None:
    if not roles.state_space:
        return None
    layers = roles.state_space
    wide = str(text.get("mamba_ssm_dtype", text.get("mamba_ssm_cache_dtype", "")))
    state_bits = 32.0 if wide.endswith("float32") else 16.0
    if kind in ("mamba", "falcon_mamba", "jamba"):
        expand = text.count("expand", "mamba_expand", default=2)
        return StateSpace(
            layers=layers,
            inner_size=expand * hidden
            if kind == "jamba"
            else text.count("intermediate_size", "d_inner", default=expand * hidden),
            state_size=text.count("state_size", "mamba_d_state", default=16),
            state_bits=state_bits,
            convolution_width=text.count("conv_kernel", "mamba_d_conv", default=4),
        )
    if kind.startswith("qwen3"):  # a gated delta network: the same shapes as Mamba 2
        heads = text.count("linear_num_value_heads")
        return StateSpace(
            layers=layers,
            inner_size=heads * text.count("linear_value_head_dim"),
            state_size=text.count("linear_key_head_dim"),
            heads=heads,
            groups=text.count("linear_num_key_heads"),
            state_bits=state_bits,
            convolution_width=text.count("linear_conv_kernel_dim", default=4),
        )
    heads = text.count("mamba_num_heads", "mamba_n_heads", "num_heads")
    return StateSpace(
        layers=layers,
        inner_size=heads * text.count("mamba_head_dim", "mamba_d_head", "head_dim"),
        state_size=text.count("ssm_state_size", "mamba_d_state", "state_size"),
        heads=heads,
        groups=text.count("n_groups", "mamba_n_groups", default=1),
        state_bits=state_bits,
        convolution_width=text.count("conv_kernel", "mamba_d_conv", default=4),
    )


# ------------------------------------------------------------------------------ vision tower


def _vision(whole: _Keys, hidden: int) -> Vision | None:
    kind = str(whole.values.get("model_type") or "")
    outer = whole.part("thinker_config") or whole
    part = outer.part("vision_config")
    if kind == "phi3_v":
        part = _Keys({}, whole.where, "clip_vision_model", nested=True)
    if part is None:
        return None
    if kind.startswith("qwen"):
        return _qwen_vision(part, kind, hidden)
    if "patch_size" not in part.values and part.kind not in _DEFAULTS:
        raise InputError(f"{part.where} lacks the key 'patch_size'")
    layers = part.count("num_hidden_layers")
    width, inner = part.count("hidden_size"), part.count("intermediate_size")
    patch, image = _side(part, "patch_size"), _side(part, "image_size")
    side = image // patch
    gated = 3 if part.kind == "pixtral" else 2
    layers += part.count("num_global_layers", default=0)
    tower = layers * (4 * width * width + gated * width * inner)
    tower += 3 * patch * patch * width
    if part.kind != "pixtral":  # which rotates instead of adding a table of positions
        tower += side * side * width
    projector, ratio, per_image, per_frame = 0, 1, side * side, None
    if kind == "llava":
        projector = width * hidden + hidden * hidden
        if part.kind == "pixtral":  # native resolution, one token to end each row
            per_image = _native_tokens(IMAGE_PIXELS, patch, row_ends=True)
    elif kind == "llava_next":
        projector = width * hidden + hidden * hidden
        per_image = _tiled_with_row_ends(2, side)
    elif kind == "llava_onevision":
        projector = width * hidden + hidden * hidden
        per_image = _tiled_with_row_ends(3, side)
        per_frame = math.ceil(side / 2) ** 2
    elif kind == "gemma3":
        projector = width * hidden
        per_image = per_frame = whole.count("mm_tokens_per_image", default=256)
        ratio = side * side // per_image
    elif kind == "mistral3":
        merge = whole.count("spatial_merge_size", default=2)
        projector = merge * merge * width * width + width * hidden + hidden * hidden
        ratio = merge * merge
        per_image = _native_tokens(IMAGE_PIXELS, patch * merge, row_ends=True)
    elif kind in ("internvl_chat", "internvl"):
        ratio = 4
        projector = ratio * width * hidden + hidden * hidden
        tile = side * side // ratio
        per_image, per_frame = _tiles(image, most=12) * tile, tile
    elif kind == "llama4":
        ratio = 4
        out = part.count("vision_output_dim")
        projector = ratio * width * out + out * out + out * hidden
        tile = side * side // ratio
        per_image, per_frame = 17 * tile, tile  # 4 x 4 tiles cover 1024 px, and an overview
    elif kind == "mllama":
        projector = part.count("vision_output_dim") * hidden
        tower += 9 * 4 * (side * side + 1) * width  # a position table for each aspect ratio
        per_image = 4 * (side * side + 1)
    elif kind == "phi3_v":
        ratio = 4
        projector = 4 * width * hidden + hidden * hidden
        per_image = 17 * (side * side // ratio) + 61  # 4 x 4 crops and an overview, row ends
    else:
        raise InputError(_UNKNOWN_TOWER.format(where=whole.where, kind=kind))
    return Vision(
        parameters=tower + projector,
        layers=layers,
        hidden_size=width,
        patch_pixels=patch,
        patches_per_token=float(ratio),
        tokens_per_image=per_image,
        tokens_per_frame=per_frame,
    )


def _qwen_vision(part: _Keys, kind: str, hidden: int) -> Vision:
    layers, patch = part.count("depth"), part.count("patch_size", "spatial_patch_size")
    merge = part.count("spatial_merge_size", default=2)
    if kind == "qwen2_vl":  # here hidden_size is that of the LLM
        width = part.count("embed_dim")
        per_layer = 4 * width * width + 2 * width * part.count("mlp_ratio", default=4) * width
        out = part.count("hidden_size", default=hidden)
    else:
        width = part.count("hidden_size")
        matrices = 3 if kind == "qwen2_5_vl" else 2
        per_layer = 4 * width * width + matrices * width * part.count("intermediate_size")
        out = part.count("out_hidden_size", default=hidden)
    merged = merge * merge * width
    mergers = 1 + len(part.items("deepstack_visual_indexes"))
    parameters = layers * per_layer + mergers * merged * (merged + out)
    temporal = part.count("temporal_patch_size", default=2)
    parameters += 3 * temporal * patch * patch * width
    parameters += part.count("num_position_embeddings", default=0, least=0) * width
    return Vision(
        parameters=parameters,
        layers=layers,
        hidden_size=width,
        patch_pixels=patch,
        patches_per_token=float(merge * merge),
        tokens_per_image=_native_tokens(IMAGE_PIXELS, patch * merge),
        tokens_per_frame=round(_native_tokens(FRAME_PIXELS, patch * merge) / temporal),
    )


def _side(part: _Keys, name: str) -> int:
    """Give a length in pixels, which some files hold as a pair."""
    value = part.get(name)
    if isinstance(value, list) and value:
        return _Keys({name: value[0]}, part.where).count(name)
    return part.count(name)


def _native_tokens(pixels: tuple[int, int], step: int, *, row_ends: bool = False) -> int:
    """Count the tokens of an image at its own resolution, ``step`` pixels a token."""
    columns, rows = (max(round(side / step), 1) for side in pixels)
    return rows * (columns + row_ends)


def _tiles(tile_pixels: int, most: int) -> int:
    """Count InternVL's tiles for a square image, the overview included.

    The largest square of tiles is taken that the image fills by more than half.
    """
    area = IMAGE_PIXELS[0] * IMAGE_PIXELS[1]
    squares = [n * n for n in range(1, math.isqrt(most) + 1) if 2 * area > tile_pixels**2 * n * n]
    count = max(squares, default=1)
    return count + (count > 1)


def _tiled_with_row_ends(tiles: int, side: int) -> int:
    """Count LLaVA's tokens for ``tiles`` x ``tiles`` tiles, row ends and the overview."""
    rows = tiles * side
    return rows * (rows + 1) + side * side


# ----------------------------------------------------------------------------- number format


def _native_precision(whole: _Keys, text: _Keys) -> str:
    """Give the precision that the checkpoint is stored in, by catalog id."""
    stated = whole.part("quantization_config") or text.part("quantization_config")
    if stated is None:
        dtype = str(text.get("torch_dtype", text.get("dtype", whole.get("torch_dtype", ""))))
        return "fp16" if dtype == "float16" else "bf16"
    method = str(stated.get("quant_method", "")).lower()
    if method == "fp8" and stated.get("weight_block_size"):
        return "fp8-block"
    bits = stated.get("bits", stated.get("w_bit", 4))
    if method in ("fp8", "fbgemm_fp8", "mxfp4"):
        return "mxfp4" if method == "mxfp4" else "fp8"
    if method in ("awq", "gptq", "auto-round") and bits in (4, 8):
        return "w8a16" if bits == 8 else "awq-int4" if method == "awq" else "gptq-int4"
    if method == "hqq":
        return "hqq-int4"
    if method == "bitsandbytes":
        return "nf4" if stated.get("load_in_4bit") else "int8"
    if method == "modelopt" or "quant_algo" in stated.values:
        algorithm = str(stated.get("quant_algo", "")).upper()
        if algorithm in ("FP8", "NVFP4"):
            return algorithm.lower()
        if algorithm in _MODELOPT:
            return _MODELOPT[algorithm]
        raise InputError(
            f"{whole.where}: the number format {algorithm or 'that ModelOpt gave it'} mixes or "
            "names what energylens does not know; say which one most weights have with "
            "--precision and the config.json of the unquantised checkpoint"
        )
    if method == "compressed-tensors":
        found = _compressed_tensors(stated)
        if found:
            return found
    raise InputError(
        f"{whole.where}: quantization_config with quant_method {method!r} is not one that "
        "energylens knows; take the config.json of the unquantised checkpoint"
    )


_MODELOPT = {
    "FP8_PB_WO": "fp8-block",
    "W4A16_AWQ": "awq-int4",
    "INT4_AWQ": "awq-int4",
    "W8A8_SQ_PER_CHANNEL": "int8",
}


def _compressed_tensors(stated: _Keys) -> str | None:
    groups = stated.get("config_groups", {})
    group: Any = next(iter(groups.values()), {}) if isinstance(groups, Mapping) else {}
    weights = group.get("weights") if isinstance(group, Mapping) else None
    if not isinstance(weights, Mapping):
        return None
    both = bool(group.get("input_activations"))
    if (weights.get("num_bits"), str(weights.get("type")), both) == (4, "int", False):
        # Attention and the dense layers left out: only the experts have the format.
        ignored = " ".join(map(str, stated.items("ignore")))
        experts = "-experts" if "attn" in ignored and "mlp" in ignored else ""
        group = weights.get("group_size")
        return {32: f"int4-g32{experts}", 128: f"int4{experts}"}.get(group or 128)
    if weights.get("num_bits") == 8 and str(weights.get("strategy")) == "block":
        return "fp8-block"
    known: dict[tuple[Any, Any, bool], str] = {
        (8, "float", True): "fp8",
        (8, "int", True): "int8",
        (8, "int", False): "w8a16",
        (8, "float", False): "w8a16",
        (4, "float", True): "nvfp4",
    }
    return known.get((weights.get("num_bits"), str(weights.get("type")), both))
