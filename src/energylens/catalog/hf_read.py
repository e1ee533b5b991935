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
from energylens.catalog.hf_format import native_precision
from energylens.catalog.hf_keys import Keys
from energylens.catalog.hf_vision import UNKNOWN_TOWER, reads_vision, vision_of
from energylens.errors import InputError
from energylens.records import Attention, Experts, FeedForward, Llm, StateSpace

# Model types of a config.json, by the way their layers are described.
_TRANSFORMERS = """
    llama mistral ministral mixtral qwen2 qwen3 gemma gemma2 gemma3 gemma3_text phi phi3 phimoe
    starcoder2 gpt_neox gptj gpt2 opt bloom falcon cohere cohere2 olmo olmo2 olmo3 olmoe granite
    granitemoe stablelm internlm2 deci nemotron-nas smollm3 seed_oss aquila glm4 glm4_moe
    qwen2_moe qwen3_moe gpt_oss llama4 llama4_text minimax_m2 deepseek deepseek_v2 deepseek_v3
    deepseek_v32 kimi_k2 qwen2_vl qwen2_vl_text qwen2_5_vl qwen2_5_vl_text qwen3_vl
    qwen3_vl_text qwen3_vl_moe qwen3_vl_moe_text qwen3_omni_moe_text mllama_text_model phi3_v
    apertus arcee baichuan bailing_moe bailing_moe_v2 chatglm dbrx dots1 ernie4_5 ernie4_5_moe
    exaone exaone4 flex_olmo glm glm4_moe_lite glm_moe_dsa gpt_bigcode granitemoeshared
    hunyuan_v1_dense hunyuan_v1_moe internlm3 mimo minicpm minicpm3 ministral3 mpt nemotron
    """
_HYBRIDS = """
    mamba mamba2 falcon_mamba bamba granitemoehybrid nemotron_h jamba falcon_h1 qwen3_next
    qwen3_5_text qwen3_5_moe_text kimi_linear lfm2 lfm2_moe
    """
# Feed-forward layers of two matrices; all others are gated (three).
_UNGATED = "gpt2 gptj gpt_neox opt bloom falcon starcoder2 phi nemotron_h nemotron "
_UNGATED += "arcee apertus gpt_bigcode mpt"
# Where config.json leaves tie_word_embeddings out, these share one vocabulary matrix.
_TIED = """
    gemma gemma2 gemma3 gemma3_text opt bloom falcon starcoder2 gpt2 mamba falcon_mamba cohere
    cohere2 gpt_bigcode mpt minicpm minicpm3 lfm2 lfm2_moe
    """
_MOST_LAYERS = 10_000  # a slip of the pen beyond it


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
    source, date : str
        Where the file comes from, and when.

    Raises
    ------
    InputError
        If the family is unknown or a key is missing; the message names it.
    """
    if not isinstance(config, Mapping):
        raise InputError(f"the config.json of {id!r} must be an object")
    whole = Keys(config, f"the config.json of {id!r}")
    _refuse_what_generates_no_text(whole)
    text = _in_common_words(_text(whole))
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
    if whole.part("vision_config") is not None and not reads_vision(whole):
        raise InputError(UNKNOWN_TOWER.format(where=whole.where, kind=str(whole.get("model_type"))))
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
        vision=vision_of(whole, hidden),
        native_precision=native_precision(whole, text, roles.attention + roles.state_space, layers),
        context_tokens=_context(whole, text, kind),
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
    **given
        As in `llm_from_config`.

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
# Keys that speak of experts and give neither how many there are nor how they are laid out.
_OF_EXPERTS = re.compile(r"experts?(_|$)|^moe_|_moe_|moe$")


def _refuse_what_generates_no_text(whole: Keys) -> None:
    if "peft_type" in whole.values:
        base = whole.values.get("base_model_name_or_path") or "its base LLM"
        raise InputError(
            f"{whole.where} is that of an adapter ({whole.values['peft_type']}): give the "
            f"config.json of {base}"
        )
    if whole.get("is_encoder_decoder") is True:
        raise InputError(
            f"{whole.where}: model_type {whole.get('model_type')!r} is an encoder with a decoder, "
            "and energylens describes LLMs that read their prompt and write with the same layers"
        )
    if whole.part("thinker_config") is None:
        for part in ("audio_config", "speech_config", "audio_encoder_config", "audio_model_id"):
            if whole.values.get(part):
                raise InputError(
                    f"{whole.where}: model_type {whole.get('model_type')!r} has an audio encoder "
                    f"({part}), which energylens cannot read. Write its row by hand, as "
                    "docs/catalog.md shows."
                )
    names = [str(name) for name in whole.items("architectures")]
    if names and all(map(_NO_TEXT.search, names)):
        raise InputError(
            f"{whole.where}: {', '.join(names)} gives scores or vectors and generates no text; "
            "give the config.json of an LLM that does"
        )


def _refuse_unknown_experts(text: Keys) -> None:
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


# ---------------------------------------------------------------------------- the language model


def _text(whole: Keys) -> Keys:
    """Find the part that describes the language model."""
    outer = whole.part("thinker_config") or whole
    text = outer.part("text_config", "llm_config", "language_config")
    kind = str(whole.values.get("model_type") or "")
    if text is None:
        if not kind:
            raise InputError(f"{whole.where} lacks the key 'model_type'")
        return Keys(whole.values, whole.where, kind)
    if not text.kind:
        text = replace(text, kind=kind)
    return text


def _in_common_words(text: Keys) -> Keys:
    """Say in the words of most families what some say in words, or objects, of their own."""
    more: dict[str, Any] = {}
    if text.kind == "dbrx":
        attention, ffn = text.part("attn_config"), text.part("ffn_config")
        if attention is None or ffn is None:
            raise InputError(f"{text.where} lacks the key 'attn_config' or 'ffn_config'")
        more["num_key_value_heads"] = attention.get("kv_n_heads")
        more["num_local_experts"] = ffn.count("moe_num_experts")
        more["num_experts_per_tok"] = ffn.count("moe_top_k")
        more["intermediate_size"] = ffn.count("ffn_hidden_size")
    elif text.kind == "mpt":
        attention = text.part("attn_config")
        more["num_key_value_heads"] = attention.get("kv_n_heads") if attention else None
        more["intermediate_size"] = text.count("expansion_ratio", default=4) * text.count("d_model")
    elif text.kind == "chatglm":
        if text.flag("multi_query_attention", False):
            more["num_key_value_heads"] = text.count("multi_query_group_num")
        more["head_dim"] = text.get("kv_channels")
        more["intermediate_size"] = text.count("ffn_hidden_size")
    elif text.kind == "gpt_bigcode":
        more["num_key_value_heads"] = 1 if text.flag("multi_query", True) else None
        more["intermediate_size"] = text.count("n_inner", default=4 * text.count("n_embd"))
    elif text.kind == "ernie4_5_moe":
        more["num_experts_per_tok"] = text.count("moe_k", "num_experts_per_tok")
        more["num_shared_experts"] = text.count("moe_num_shared_experts", default=0, least=0)
        more["first_k_dense_replace"] = text.count("moe_layer_start_index", default=0, least=0)
        more["moe_layer_freq"] = text.count("moe_layer_interval", default=1)
    elif text.kind == "hunyuan_v1_moe":
        more["num_experts_per_tok"] = text.count("moe_topk")
        more["num_shared_experts"] = text.count("num_shared_expert", default=0, least=0)
    elif text.kind == "kimi_linear":
        linear = text.part("linear_attn_config")
        if linear is None:
            raise InputError(f"{text.where} lacks the key 'linear_attn_config'")
        listed = [(n, "linear_attention") for n in linear.items("kda_layers")]
        listed += [(n, "full_attention") for n in linear.items("full_attn_layers")]
        more["layer_types"] = [sort for _, sort in listed]
        more["mamba_num_heads"] = linear.count("num_heads")
        more["mamba_head_dim"] = linear.count("head_dim")
        more["conv_kernel"] = linear.count("short_conv_kernel_size", default=4)
        # Of each head a state of head size x head size, with keys and queries of its own.
        more |= {"ssm_state_size": more["mamba_head_dim"], "n_groups": more["mamba_num_heads"]}
        more["mamba_ssm_dtype"] = text.get("mamba_ssm_dtype", "float32")
    elif text.kind.startswith("lfm2"):
        more["tie_word_embeddings"] = text.flag("tie_embedding", True)
        more["first_k_dense_replace"] = text.count("num_dense_layers", default=0, least=0)
        if "layer_types" not in text.values:
            full = text.items("full_attn_idxs")
            more["layer_types"] = [
                "full_attention" if n in full else "conv"
                for n in range(text.count("num_hidden_layers"))
            ]
        if text.kind == "lfm2":
            size = text.count("block_ff_dim", "intermediate_size")
            if text.flag("block_auto_adjust_ff_dim", True):
                step = text.count("block_multiple_of", default=256)
                size = math.ceil(int(2 * size / 3) / step) * step
            more["intermediate_size"] = size
        # A gated convolution of a few tokens: 4 x hidden^2 weights, and next to no state.
        hidden = text.count("hidden_size")
        more |= {"mamba_num_heads": 1, "mamba_head_dim": hidden, "n_groups": max(hidden // 2, 1)}
        more |= {"ssm_state_size": 1, "conv_kernel": text.count("conv_L_cache", default=3)}
    known = {name: value for name, value in more.items() if value is not None}
    return replace(text, values={**text.values, **known}) if known else text


def _context(whole: Keys, text: Keys, kind: str) -> int | None:
    """Give the longest context in tokens, by vLLM's rule; None where the file states none."""
    named = next(
        (n for n in _CONTEXTS if text.get(n) is not None or whole.get(n) is not None), None
    )
    if named is None:
        return None
    stated = (text if text.get(named) is not None else whole).count(named)
    rope = text.part("rope_scaling", "rope_parameters")
    rope = (rope.part("full_attention") or rope) if rope else None
    if rope is None or rope.get("factor") is None:
        return stated
    way, factor = str(rope.get("rope_type", rope.get("type", "default"))), rope.get("factor")
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 1 <= factor < 1e6:
        return stated
    if way == "yarn":
        begun = rope.count(
            "original_max_position_embeddings",
            default=text.count("original_max_position_embeddings", default=stated),
        )
        # Checkpoints state the length before scaling or after it.
        return max(stated, round(begun * factor)) if begun != stated or factor > 1 else stated
    if way in ("linear", "dynamic") and not kind.startswith("gemma3"):
        return round(stated * factor)
    return stated


_CONTEXTS = (
    "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length",
    "max_sequence_length", "n_ctx",
)  # fmt: skip


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


def _roles(text: Keys, kind: str, layers: int) -> _Roles:
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


def _nemotron_h_roles(text: Keys) -> _Roles:
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


def _nemotron_nas_roles(text: Keys, layers: int) -> _Roles:
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


def _mixers(text: Keys, kind: str, layers: int, roles: _Roles) -> None:
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
        state += found.pop("conv", 0) if kind.startswith("lfm2") else 0
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
    if roles.windowed and (tokens := _window(text, kind, name)):
        roles.window_tokens = tokens
    else:
        roles.windowed = 0


# The window that the classes of these fill in where the file has no sliding_window at all.
_WINDOWS = {"gemma2": 4096, "gemma3": 4096, "gemma3_text": 4096, "cohere2": 4096, "olmo3": 4096,
    "exaone4": 4096, "gpt_oss": 128}  # fmt: skip


def _window(text: Keys, kind: str, name: str = "sliding_window") -> int:
    """Tokens of the window, 0 where there is none: a null says so, a missing key does not."""
    if name not in text.values and name == "sliding_window":
        return text.count(name, default=_WINDOWS.get(kind, 0))
    return text.count(name) if text.get(name) else 0


def _windowed_layers(text: Keys, kind: str, layers: int) -> int:
    """Layers with a sliding window where they are not listed one by one."""
    if kind.startswith("llama4"):  # every fourth layer attends to everything
        return layers - layers // 4
    off_unless_said = kind.startswith(("qwen", "smollm3", "mimo"))
    if not _window(text, kind) or not text.flag("use_sliding_window", not off_unless_said):
        return 0
    if kind in ("gemma2", "gpt_oss"):
        return layers - layers // 2
    if isinstance(stated := text.get("sliding_window_pattern"), str) and stated:
        return sum(stated[layer % len(stated)] == "L" for layer in range(layers))
    # Every so many layers, one attends to everything; the class says how many where the file
    # does not.
    pattern = {"olmo3": 4, "gemma3": 6, "gemma3_text": 6, "cohere2": 4, "exaone4": 4}.get(kind)
    if text.get("sliding_window_pattern") or pattern:
        return layers - layers // text.count("sliding_window_pattern", default=pattern)
    if kind.startswith(("qwen", "mimo", "dots1")):
        return layers - min(text.count("max_window_layers", default=layers, least=0), layers)
    return layers


def _routed_layers(text: Keys, kind: str, layers: int) -> int:
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


def _attention(text: Keys, kind: str, hidden: int, roles: _Roles) -> Attention | None:
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
            value_head_size=text.count(
                "v_head_dim", default=hidden // heads if kind == "minicpm3" else None
            ),
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


def _kv_heads(text: Keys, kind: str, heads: int) -> int:
    if kind == "falcon":
        if text.flag("new_decoder_architecture", False):
            return text.count("num_kv_heads", "n_head_kv", default=heads)
        return 1 if text.flag("multi_query", True) else heads
    by_layer = [n for n in text.items("num_key_value_heads_per_layer") if type(n) is int and n > 0]
    if by_layer:
        return max(by_layer)  # engines pad every layer to the largest
    return text.count("num_key_value_heads", default=heads)


def _feed_forward(text: Keys, kind: str, hidden: int, roles: _Roles) -> FeedForward | None:
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


def _expert_count(text: Keys) -> int:
    """Give the number of routed experts, 0 where there is no routing."""
    number = text.count(*_EXPERT_COUNTS, default=0, least=0)
    return number if number > 1 else 0


def _experts(text: Keys, kind: str, roles: _Roles) -> Experts | None:
    if not roles.routed:
        return None
    size = text.count("moe_intermediate_size", "intermediate_size")
    if kind.startswith("llama4"):
        shared = size
    elif kind in ("granitemoehybrid", "granitemoeshared", "minimax_m2"):
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


def _state_space(text: Keys, kind: str, hidden: int, roles: _Roles) -> StateSpace | None:
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
