"""The number format that a checkpoint is stored in, by its ``config.json``.

Every method that quantises checkpoints writes its own keys. What is read gives the id of a row in
``precisions.toml``; a format that has none, or a mixture of several, is refused by what it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

from energylens.catalog.hf_keys import Keys
from energylens.errors import InputError


def native_precision(whole: Keys, text: Keys, mixers: int, layers: int) -> str:
    """Give the precision that the checkpoint is stored in, by catalog id.

    Where attention is left in 16 bits, that of the feed-forward layers with ``-mlp`` after it.

    Raises
    ------
    InputError
        If the catalog has no such format, or the checkpoint mixes several.
    """
    stated = None
    for keys in (whole, text):
        stated = stated or keys.part("quantization_config", "compression_config")
    if stated is None:
        dtype = str(text.get("torch_dtype", text.get("dtype", whole.get("torch_dtype", ""))))
        return "fp16" if dtype.endswith("float16") and "bfloat" not in dtype else "bf16"
    if (inner := stated.part("quantization")) is not None:  # as ModelOpt nests it
        stated = inner
    method = str(stated.get("quant_method", "")).lower()
    if not method and "quant_algo" in stated.values:
        method = "modelopt"
    method = _SAME.get(method, method)
    read = _METHODS.get(method)
    if read is None:
        _refuse(whole, f"quant_method {method!r}")
    found = read(whole, stated)
    if found is None:
        _refuse(whole, f"what {method} makes of its weights")
    if found in _OF_EXPERTS:
        return found
    if _left_in_16_bits(stated, _FEED_FORWARD, layers):
        _refuse(whole, "feed-forward layers that are left in 16 bits")
    return f"{found}-mlp" if _left_in_16_bits(stated, _ATTENTION, mixers) else found


# Formats that the routed experts alone have, whatever else is left out by name.
_OF_EXPERTS = ("mxfp4", "int4-g32-experts", "int4-experts")
# Where each method lists the modules that it leaves as they are.
_LISTS = """
    ignore ignored_layers modules_to_not_convert exclude_modules exclude skip_modules
    llm_int8_skip_modules
    """
# What no format counts as a layer's: towers, vocabulary, and what sends tokens to experts.
_SMALL_OR_APART = re.compile(
    r"vis(ion|ual)|audio|projector|tower|mtp|lm_head|embed|router|norm|conv|shared|"
    r"(mlp|moe|ffn|feed_forward|experts?|\*)[\\.]*(shared_expert_)?gate\$?$|^gate$"
)
_ATTENTION = re.compile(r"att(n|ention)|mixer|mamba|[qkvo]_proj|qkv")
_FEED_FORWARD = re.compile(r"mlp|ffn|feed_forward|experts|(up|down)_proj|fc[12]|w[123]\b")


def _left_in_16_bits(stated: Keys, sort: re.Pattern[str], layers: int) -> bool:
    """Whether a sort of module is left as it is in most of the ``layers`` that have one."""
    names = [str(n) for key in _LISTS.split() for n in _listed(stated.get(key))]
    dynamic = stated.get("dynamic")  # GPTQModel: "-:pattern" leaves out what matches
    names += [n[2:] for n in map(str, _listed(dynamic)) if n.startswith("-:")]
    named = [n for n in names if sort.search(n) and not _SMALL_OR_APART.search(n)]
    each = [re.search(r"(?:layers|blocks|h)[\\.]+(\d+)\b", name) for name in named]
    return None in each or 2 * len({int(found[1]) for found in each if found}) > layers


def _listed(given: object) -> list[Any]:
    return list(given) if isinstance(given, list | Mapping) else []


_SAME = {
    "gptq_marlin": "gptq",
    "awq_marlin": "awq",
    "auto_round": "auto-round",
    "intel/auto-round": "auto-round",
    "inc": "auto-round",
    "modelopt_fp4": "modelopt",
    "modelopt_fp8": "modelopt",
    "finegrained_fp8": "fp8",
    "bnb": "bitsandbytes",
}


def _refuse(whole: Keys, what: str) -> NoReturn:
    raise InputError(
        f"{whole.where}: quantization_config with {what} is not one that energylens knows; take "
        "the config.json of the unquantised checkpoint"
    )


def _grouped(whole: Keys, bits: object, group: object, at_128: str = "int4") -> str:
    """Give the format of integer weights in groups that share a scale, which are widened."""
    if bits == 8:
        return "w8a16"
    if bits != 4:
        _refuse(whole, f"weights of {str(bits)[:20]} bits")
    for size, found in ((128, at_128), (64, "int4-g64"), (32, "int4-g32")):
        if group == size:
            return found
    _refuse(whole, f"weights of 4 bits in groups of {str(group)[:20]}")


def _one_of(whole: Keys, formats: Iterable[str | None]) -> str | None:
    """Give the one format there is, None where one is unknown; refuse several."""
    found = dict.fromkeys(formats)
    if len(found) > 1:
        named = " and ".join(name or "another format" for name in found)
        _refuse(whole, f"a mixture of {named}")
    return next(iter(found), None)


def _fp8(whole: Keys, stated: Keys) -> str | None:
    block = stated.get("weight_block_size")
    if block is None:
        return "fp8"
    if block != [128, 128]:
        _refuse(whole, f"FP8 in blocks of {str(block)[:40]}")
    return "fp8-block"


def _gptq(whole: Keys, stated: Keys) -> str | None:
    return _grouped(whole, stated.get("bits", 4), stated.get("group_size", 128), "gptq-int4")


def _awq(whole: Keys, stated: Keys) -> str | None:
    bits = stated.get("bits", stated.get("w_bit", 4))
    return _grouped(
        whole, bits, stated.get("group_size", stated.get("q_group_size", 128)), "awq-int4"
    )


def _auto_round(whole: Keys, stated: Keys) -> str | None:
    kind = str(stated.get("data_type", "int"))
    if not kind.startswith("int"):
        _refuse(whole, f"data_type {kind[:40]!r} of auto-round")
    bits, group = stated.get("bits", 4), stated.get("group_size", 128)
    # Layers that are left in 16 bit are no mixture; those of other widths are.
    others = stated.get("extra_config", {})
    each = others.values() if isinstance(others, Mapping) else ()
    widths = {part.get("bits", bits) for part in each if isinstance(part, Mapping)} - {bits, 16, 32}
    if widths:
        _refuse(whole, f"a mixture of {bits} and {', '.join(map(str, widths))} bits")
    return _grouped(whole, bits, group, "gptq-int4")


def _hqq(whole: Keys, stated: Keys) -> str | None:
    part = stated.part("quant_config")
    weights = part.part("weight_quant_params") if part else None
    if weights is None:
        return "hqq-int4"
    bits, group = weights.get("nbits", 4), weights.get("group_size", 64)
    if (bits, group) == (4, 64):
        return "hqq-int4"
    return _grouped(whole, bits, group)


def _bitsandbytes(_: Keys, stated: Keys) -> str | None:
    if stated.get("load_in_4bit") or stated.get("_load_in_4bit"):
        return "nf4"
    if stated.get("load_in_8bit") or stated.get("_load_in_8bit"):
        return "int8"
    return None


_MODELOPT = {
    "FP8": "fp8",
    "FP8_PER_CHANNEL_PER_TOKEN": "fp8",
    "FP8_PB_WO": "fp8-block",
    "FP8_PB_REAL": "fp8-block",
    "NVFP4": "nvfp4",
    "NVFP4_AWQ": "nvfp4",
    "W4A16": "int4",
    "W4A16_AWQ": "awq-int4",
    "INT4_AWQ": "awq-int4",
    "W8A16": "w8a16",
    "INT8": "int8",
    "INT8_SQ": "int8",
    "W8A8_SQ_PER_CHANNEL": "int8",
}


def _modelopt(whole: Keys, stated: Keys) -> str | None:
    algorithm = str(stated.get("quant_algo", "")).upper()
    if algorithm not in _MODELOPT:
        raise InputError(
            f"{whole.where}: the number format {algorithm or 'that ModelOpt gave it'} mixes or "
            "names what energylens does not know; say which one most weights have with "
            "--precision and the config.json of the unquantised checkpoint"
        )
    return _MODELOPT[algorithm]


def _compressed_tensors(whole: Keys, stated: Keys) -> str | None:
    sparse = stated.part("sparsity_config")
    if sparse is not None and sparse.get("format", "dense") != "dense":
        _refuse(whole, f"sparse weights ({str(sparse.get('format'))[:40]})")
    groups = stated.part("config_groups")
    parts = [g for g in groups.values.values() if isinstance(g, Mapping)] if groups else []
    # A group without weights is that of the cache.
    parts = [g for g in parts if isinstance(g.get("weights"), Mapping)]
    ignored = " ".join(map(str, stated.items("ignore")))
    experts_alone = "attn" in ignored and "mlp" in ignored
    return _one_of(whole, (_of_group(whole, g, experts_alone) for g in parts))


def _of_group(whole: Keys, group: Mapping[str, Any], experts_alone: bool) -> str | None:
    weights, inputs = group["weights"], group.get("input_activations")
    bits, kind, size = weights.get("num_bits"), str(weights.get("type")), weights.get("group_size")
    width = inputs.get("num_bits") if isinstance(inputs, Mapping) else None
    if (bits, kind, width) == (4, "int", None):
        if weights.get("strategy") == "channel":
            _refuse(whole, "weights of 4 bits with one scale a channel")
        if experts_alone and size in (None, 32, 128):
            return "int4-g32-experts" if size == 32 else "int4-experts"
        return _grouped(whole, 4, size or 128)
    if (bits, kind) == (8, "float") and str(weights.get("strategy")) == "block":
        return "fp8-block"
    if (bits, kind) == (4, "float"):
        if size == 32:  # MXFP4, a row of the catalog where the experts alone have it
            if experts_alone:
                return "mxfp4"
            _refuse(whole, "MXFP4 in every linear layer")
        if width == 4:
            return "nvfp4"
    for what, found in _KNOWN.items():
        if what == (bits, kind, width):
            return found
    inputs_of = f", inputs of {str(width)[:20]} bits" if width else ""
    _refuse(whole, f"weights of {str(bits)[:20]} bits ({kind[:20]}){inputs_of}")


_KNOWN = {
    (8, "float", 8): "fp8",
    (8, "int", 8): "int8",
    (8, "int", None): "w8a16",
    (8, "float", None): "w8a16",
}


def _quark(whole: Keys, stated: Keys) -> str | None:
    parts = [part] if (part := stated.get("global_quant_config")) else []
    layers = stated.get("layer_quant_config", {})
    parts += list(layers.values()) if isinstance(layers, Mapping) else []
    excluded = " ".join(map(str, stated.items("exclude")))
    found = []
    for part in parts:
        weights = part.get("weight") if isinstance(part, Mapping) else None
        if isinstance(weights, list) and len(weights) == 1:
            weights = weights[0]
        if not isinstance(weights, Mapping):
            return None
        kind, narrow = str(weights.get("dtype")), bool(part.get("input_tensors"))
        if kind.startswith("fp8"):
            block = weights.get("qscheme") == "per_block"
            found.append("fp8-block" if block else "fp8" if narrow else "w8a16")
        elif kind == "int8":
            found.append("int8" if narrow else "w8a16")
        elif kind in ("int4", "uint4") and not narrow:
            found.append(_grouped(whole, 4, weights.get("group_size")))
        elif kind == "fp4" and weights.get("group_size") == 32 and "attn" in excluded:
            found.append("mxfp4")
        else:
            _refuse(whole, f"Quark's {kind[:40]} in every linear layer")
    return _one_of(whole, found)


_TORCHAO = {
    "int8weightonly": "w8a16",
    "float8weightonly": "w8a16",
    "int8dynamicactivationint8weight": "int8",
    "float8dynamicactivationfloat8weight": "fp8",
    "float8staticactivationfloat8weight": "fp8",
}


def _torchao(whole: Keys, stated: Keys) -> str | None:
    given: Any = stated.get("quant_type")
    if isinstance(given, Mapping):
        given = given.get("default", given)
    settings: Any = given.get("_data", {}) if isinstance(given, Mapping) else {}
    name = given.get("_type", "") if isinstance(given, Mapping) else given
    kind = str(name).replace("_", "").lower().removesuffix("config")
    if kind == "int4weightonly":
        return _grouped(whole, 4, settings.get("group_size", 128))
    if kind not in _TORCHAO:
        _refuse(whole, f"torchao's {str(name)[:60] or 'format'}")
    return _TORCHAO[kind]


_METHODS: dict[str, Callable[[Keys, Keys], str | None]] = {
    "fp8": _fp8,
    "fbgemm_fp8": lambda *_: "fp8",
    "mxfp4": lambda *_: "mxfp4",
    "awq": _awq,
    "gptq": _gptq,
    "auto-round": _auto_round,
    "hqq": _hqq,
    "bitsandbytes": _bitsandbytes,
    "eetq": lambda *_: "w8a16",
    "modelopt": _modelopt,
    "compressed-tensors": _compressed_tensors,
    "quark": _quark,
    "torchao": _torchao,
}
