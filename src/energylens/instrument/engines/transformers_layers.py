"""Attention, narrow weights and layer states inside a transformers model."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

from energylens.errors import MissingExtraError

ATTENTION = "energylens"  # our name among transformers' attention functions


def register_attention() -> None:
    """Make our attention known to transformers: fused, grouped heads, never a mask."""
    import torch
    from transformers import AttentionInterface, AttentionMaskInterface

    def attention(
        module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **settings: Any
    ) -> tuple[Any, None]:
        del attention_mask
        causal = query.shape[2] > 1 and bool(getattr(module, "is_causal", True))
        output = torch.nn.functional.scaled_dot_product_attention(
            query,
            key,
            value,
            is_causal=causal,
            scale=settings.get("scaling"),
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return output.transpose(1, 2).contiguous(), None

    AttentionInterface.register(ATTENTION, attention)
    AttentionMaskInterface.register(ATTENTION, lambda **_: None)


def in_blocks(module: Any, name: str) -> bool:
    """Whether a layer is one that number formats are for: linear, in a block of the LLM."""
    import torch

    outside = ("lm_head", "visual", "vision")
    return isinstance(module, torch.nn.Linear) and not any(part in name for part in outside)


def quantize_nf4(model: Any) -> dict[str, str]:
    """Put bitsandbytes layers in the place of those that the format is for."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError("bitsandbytes", "transformers", "nf4 weights")
    import bitsandbytes

    for name, module in list(model.named_modules()):
        if not in_blocks(module, name):
            continue
        narrow = bitsandbytes.nn.Linear4bit(
            module.in_features,
            module.out_features,
            bias=module.bias is not None,
            compute_dtype=module.weight.dtype,
            quant_type="nf4",
        )
        device = module.weight.device
        narrow.weight = bitsandbytes.nn.Params4bit(
            module.weight.data, requires_grad=False, quant_type="nf4"
        )
        narrow.bias = module.bias
        parent, _, child = name.rpartition(".")
        # moving it to its device is what quantizes
        setattr(model.get_submodule(parent), child, narrow.to(device))
    return {"quantization": f"bitsandbytes {bitsandbytes.__version__} nf4"}


def weights_of(model: Any) -> dict[str, Any]:
    """Count the bytes really held, by dtype, looking into tensors made of others."""
    loaded: dict[str, int] = {}
    kinds: set[str] = set()

    def count(tensor: Any) -> None:
        flatten = getattr(tensor, "__tensor_flatten__", None)
        names = flatten()[0] if flatten is not None else []
        if names:
            kinds.add(type(tensor).__name__)
            for name in names:
                count(getattr(tensor, name))
            return
        dtype = str(tensor.dtype).removeprefix("torch.")
        loaded[dtype] = loaded.get(dtype, 0) + tensor.numel() * tensor.element_size()

    for tensor in (*model.parameters(), *model.buffers()):
        if type(tensor).__name__ == "Params4bit":
            kinds.add("Params4bit")
        count(tensor.data if type(tensor).__name__ == "Parameter" else tensor)
    return {"bytes": loaded, "quantization_methods": sorted(kinds)}


# What a layer with a state of fixed size keeps of it.
STATE_ATTRIBUTES = (
    *("conv_states", "recurrent_states", "has_previous_state", "conv_kernel_size"),
    *("is_conv_states_initialized", "is_recurrent_states_initialized", "dtype", "device"),
)


def states_of(layer: Any) -> Iterator[dict[int, Any]]:
    """Find the states of fixed size that a layer keeps, of each sequence."""
    for name in ("conv_states", "recurrent_states"):
        states = getattr(layer, name, None)
        if isinstance(states, dict):
            yield states


def repeat_states(layer: Any, requests: int) -> None:
    """Make room for ``requests`` sequences in a layer of fixed state that holds one."""
    for states in states_of(layer):
        for i, state in states.items():
            if state is not None:
                states[i] = state.repeat(requests, *[1] * (state.dim() - 1))


def copy_rows(target: Any, source: Any, first: int, requests: int, tokens: int) -> None:
    """Copy what a group of requests left in one layer into the batch's cache."""
    rows = slice(first, first + requests)
    if getattr(source, "keys", None) is not None:
        kept = min(tokens, target.max_cache_len, source.keys.shape[2])
        target.keys[rows, :, :kept].copy_(source.keys[:, :, -kept:])
        target.values[rows, :, :kept].copy_(source.values[:, :, -kept:])
    for into, states in zip(states_of(target), states_of(source), strict=True):
        for i, state in states.items():
            if state is not None:
                into[i][rows].copy_(state)
