"""What an engine is given to load: a folder with a ``config.json`` and no weights.

Energy depends on shapes, not on what the weights say, so an LLM record is enough to build
one. Families are mapped to the architecture that transformers and vLLM both have and whose
shapes are closest; whatever of the record that architecture cannot carry is listed in
``LlmConfig.differences`` and travels with the row.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from energylens.catalog.hf_write import (
    _SPECIAL_TOKENS,
    BOS_TOKEN,
    CONTEXT_TOKENS,
    EOS_TOKEN,
    IMAGE_TOKEN,
    UNKNOWN_TOKEN,
    VIDEO_TOKEN,
    VISION_END_TOKEN,
    VISION_MODEL_TYPES,
    VISION_START_TOKEN,
    Config,
    config_for,
    has_vision,
    text_config,
    with_layers,
)
from energylens.catalog.scaling import rank_shard, scaled_down
from energylens.errors import InputError, UsageError
from energylens.instrument.engine import EngineError, Layout, Reason
from energylens.records import Llm

# ---------------------------------------------------------------------------------- folders


def read_config(path: Path) -> Config:
    """Read ``config.json``, given itself or its folder.

    Raises
    ------
    InputError
        If there is none, or it is no JSON object with a ``model_type``.
    """
    file = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{path} holds no config.json: give a Hugging Face folder, a config.json or a name"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read as JSON: {error}") from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise InputError(f"{file} is no Hugging Face config: it has no model_type")
    return config


def layout_llm(layout: Layout) -> Llm:
    """Return the LLM that an engine loads for a layout: whole, cut down, or one GPU's part.

    Raises
    ------
    EngineError
        UNSUPPORTED, if it cannot be cut so.
    """
    try:
        llm = layout.llm
        if layout.shard is not None:
            llm = rank_shard(llm, *layout.shard)
        if layout.scaled_layers is not None and llm.layers > layout.scaled_layers:
            llm = scaled_down(llm, layout.scaled_layers)
    except InputError as error:
        raise EngineError(str(error), reason=Reason.UNSUPPORTED) from None
    return llm


def layout_config(layout: Layout) -> tuple[Config, tuple[str, ...]]:
    """Return the Hugging Face configuration that a layout describes, and what it cannot carry.

    Raises
    ------
    EngineError
        UNSUPPORTED, if there is none for this LLM, or none that can be cut so.
    """
    try:
        if layout.model_path is None:
            made = config_for(layout_llm(layout))
            return made.config, made.differences
        if layout.shard is not None:
            raise UsageError(
                "a shard is built from the LLM's record: give the LLM by its catalog name"
            )
        config = read_config(Path(layout.model_path))
        if layout.scaled_layers is not None:
            config = with_layers(config, layout.scaled_layers)
        return config, ()
    except InputError as error:
        raise EngineError(str(error), reason=Reason.UNSUPPORTED) from None


def write_folder(config: Mapping[str, Any], root: Path, processors: Path | None = None) -> Path:
    """Write a folder that an engine can load offline: no weights, no hub.

    The folder's name is a digest of the configuration, so that writing twice is harmless. A
    vision-language LLM needs a tokenizer and processors even for prompts of token ids: those
    of the folder ``processors`` where it has them, else a word-level tokenizer and the Qwen-VL
    processors.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    UsageError
        If processors are needed and there are none for this kind of LLM.
    """
    text = json.dumps(config, indent=1, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    folder = root / f"{config['model_type']}-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    if processors is not None and (processors / "preprocessor_config.json").is_file():
        for file in sorted(processors.iterdir()):
            described = file.suffix in (".json", ".txt", ".model", ".jinja")
            if described and file.name != "config.json" and ".index." not in file.name:
                shutil.copyfile(file, folder / file.name)
    elif has_vision(config):
        if config["model_type"] not in VISION_MODEL_TYPES:
            raise UsageError(
                f"a {config['model_type']} LLM needs its own tokenizer and processors: give its "
                f"whole folder; without one only {', '.join(VISION_MODEL_TYPES)} can be made"
            )
        _write_tokenizer(folder, int(text_config(config)["vocab_size"]))
        _write_processors(folder, config)
    config_file = folder / "config.json"
    partial = folder / "config.json.partial"
    partial.write_text(text, encoding="utf-8")
    partial.replace(config_file)  # last and at once: a folder with a config.json is complete
    return folder


def _write_tokenizer(folder: Path, vocabulary_size: int) -> None:
    names = {i: _SPECIAL_TOKENS.get(i, f"w{i}") for i in range(vocabulary_size)}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": name, "special": True} | special
            for i, name in _SPECIAL_TOKENS.items()
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {
            "type": "WordLevel",
            "vocab": {name: i for i, name in names.items()},
            "unk_token": names[UNKNOWN_TOKEN],
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    vision = "<|vision_start|><|{}_pad|><|vision_end|>"
    template = (
        "{% for m in messages %}<|im_start|> {{ m.role }} "
        "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
        "{% if c.type.startswith('image') %}" + vision.format("image") + "{% elif "
        "c.type.startswith('video') %}" + vision.format("video") + "{% else %} {{ c.text }}"
        "{% endif %}{% endfor %}{% endif %} <|im_end|> {% endfor %}<|im_start|> assistant "
    )
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": _SPECIAL_TOKENS[BOS_TOKEN],
        "eos_token": _SPECIAL_TOKENS[EOS_TOKEN],
        "pad_token": _SPECIAL_TOKENS[EOS_TOKEN],
        "unk_token": names[UNKNOWN_TOKEN],
        "image_token": _SPECIAL_TOKENS[IMAGE_TOKEN],
        "video_token": _SPECIAL_TOKENS[VIDEO_TOKEN],
        "vision_start_token": _SPECIAL_TOKENS[VISION_START_TOKEN],
        "vision_end_token": _SPECIAL_TOKENS[VISION_END_TOKEN],
        "model_max_length": CONTEXT_TOKENS,
        "chat_template": template,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def _write_processors(folder: Path, config: Mapping[str, Any]) -> None:
    vision = config["vision_config"]
    third = str(config["model_type"]).startswith("qwen3")
    unit = (vision["patch_size"] * vision["spatial_merge_size"]) ** 2
    pixels = {"shortest_edge": 4 * unit, "longest_edge": 16384 * unit}
    common = {
        "processor_class": "Qwen3VLProcessor" if third else "Qwen2_5_VLProcessor",
        "patch_size": vision["patch_size"],
        "temporal_patch_size": vision["temporal_patch_size"],
        "merge_size": vision["spatial_merge_size"],
        "size": pixels,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
    }
    if not third:
        common |= {"min_pixels": pixels["shortest_edge"], "max_pixels": pixels["longest_edge"]}
    image_type = "Qwen2VLImageProcessorFast" if third else "Qwen2VLImageProcessor"
    video_type = "Qwen3VLVideoProcessor" if third else "Qwen2VLVideoProcessor"
    image = common | {"image_processor_type": image_type}
    video = common | {"video_processor_type": video_type}
    (folder / "preprocessor_config.json").write_text(json.dumps(image), encoding="utf-8")
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video), encoding="utf-8")
