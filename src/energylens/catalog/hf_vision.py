"""The vision tower of a ``config.json``."""

from __future__ import annotations

import math

from energylens.catalog.hf_keys import DEFAULTS, Keys
from energylens.errors import InputError
from energylens.records import Vision

# Counts of vision tokens are given for an image of this size, and for a frame of that one.
IMAGE_PIXELS = (1024, 1024)
FRAME_PIXELS = (640, 360)

UNKNOWN_TOWER = (
    "{where}: the vision tower of model_type {kind!r} is not one that energylens can read. Write "
    "its row by hand, as docs/catalog.md shows."
)
_VISION_KINDS = """
    llava llava_next llava_onevision gemma3 mistral3 internvl_chat internvl llama4 mllama phi3_v
    """


def reads_vision(whole: Keys) -> bool:
    """Say whether the vision tower of a configuration is one that is read here."""
    kind = str(whole.values.get("model_type") or "")
    return kind.startswith("qwen") or kind in _VISION_KINDS.split()


def vision_of(whole: Keys, hidden: int) -> Vision | None:
    """Read the vision tower, None where there is none; ``hidden`` is the width of the LLM."""
    kind = str(whole.values.get("model_type") or "")
    outer = whole.part("thinker_config") or whole
    part = outer.part("vision_config")
    if kind == "phi3_v":
        part = Keys({}, whole.where, "clip_vision_model", nested=True)
    if part is None:
        return None
    if kind.startswith("qwen"):
        return _qwenvision_of(part, kind, hidden)
    if "patch_size" not in part.values and part.kind not in DEFAULTS:
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
        raise InputError(UNKNOWN_TOWER.format(where=whole.where, kind=kind))
    return Vision(
        parameters=tower + projector,
        layers=layers,
        hidden_size=width,
        patch_pixels=patch,
        patches_per_token=float(ratio),
        tokens_per_image=per_image,
        tokens_per_frame=per_frame,
    )


def _qwenvision_of(part: Keys, kind: str, hidden: int) -> Vision:
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


def _side(part: Keys, name: str) -> int:
    """Give a length in pixels, which some files hold as a pair."""
    value = part.get(name)
    if isinstance(value, list) and value:
        return Keys({name: value[0]}, part.where).count(name)
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
