"""The objects of a ``config.json``, which say what they lack."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from energylens.errors import InputError

# What transformers fills in where the text_config or vision_config of a vision LLM, which is
# saved as the difference from its class, says nothing.
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32000,
        "max_position_embeddings": 2048,
    },
    "mistral": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
        "max_position_embeddings": 131072,
    },
    "gemma3_text": {
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262208,
        "sliding_window": 4096,
        "max_position_embeddings": 131072,
        "sliding_window_pattern": 6,
    },
    "mllama_text_model": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
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


@dataclass(frozen=True)
class Keys:
    """One object of a config.json, which says what it lacks."""

    values: Mapping[str, Any]
    where: str
    kind: str = ""
    nested: bool = False

    def get(self, name: str, default: Any = None) -> Any:
        """Give a value, the default also where the file says null."""
        value = self.values.get(name)
        if value is None and self.nested:
            value = DEFAULTS.get(self.kind, {}).get(name)
        return default if value is None else value

    def count(self, *names: str, default: int | None = None, least: int = 1) -> int:
        """Give a whole number under the first of some names, or refuse."""
        name, value = next(((n, v) for n in names if (v := self.get(n)) is not None), ("", None))
        if value is None:
            if default is not None:
                return default
            also = f" (or {', '.join(names[1:])})" if names[1:] else ""
            raise InputError(f"{self.where} lacks the key {names[0]!r}{also}")
        if isinstance(value, list) and value and value == value[:1] * len(value):
            value = value[0]  # one for each layer, all alike
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

    def part(self, *names: str) -> Keys | None:
        """Give a nested object, None where there is none of those names."""
        for name in names:
            value = self.values.get(name)
            if isinstance(value, Mapping):
                kind = str(value.get("model_type") or "")
                return Keys(value, f"{self.where}, {name}", kind, nested=True)
        return None
