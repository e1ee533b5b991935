"""Synthetic prompts, images and videos: random, so that nothing can be served from a cache.

Values are noise. An encoder's work depends on the size of its input alone, and noise does not
compress, so nothing that a server keeps by content can be found again.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from energylens.catalog.hf_write import FIRST_PROMPT_TOKEN
from energylens.errors import InputError
from energylens.instrument.engine import Batch, EngineError, Load, Media, Reason

Pixels = NDArray[np.uint8]

VIDEO_FRAMES_PER_S = 2.0


def random_stream(seed: int, repetition: int) -> np.random.Generator:
    """Return the generator of one repetition: the same seed and repetition give the same data."""
    return np.random.default_rng([seed, repetition])


def token_prompt(random: np.random.Generator, tokens: int, vocabulary_size: int) -> list[int]:
    """Draw ``tokens`` ordinary token ids, none of them a special token.

    Raises
    ------
    InputError
        If the vocabulary holds special tokens only.
    """
    if vocabulary_size <= FIRST_PROMPT_TOKEN:
        raise InputError(
            f"prompts are drawn from token {FIRST_PROMPT_TOKEN} upwards, but the vocabulary has "
            f"{vocabulary_size}: give an LLM with a larger one"
        )
    ids: list[int] = random.integers(FIRST_PROMPT_TOKEN, vocabulary_size, size=tokens).tolist()
    return ids


def image(random: np.random.Generator, pixels: tuple[int, int]) -> Pixels:
    """Draw an RGB image of (height, width) ``pixels``; shape (height, width, 3)."""
    return random.integers(0, 256, size=(*pixels, 3), dtype=np.uint8)


def video(random: np.random.Generator, frames: int, pixels: tuple[int, int]) -> Pixels:
    """Draw the frames of a video; shape (frames, height, width, 3)."""
    return random.integers(0, 256, size=(frames, *pixels, 3), dtype=np.uint8)


def video_metadata(frames: int) -> dict[str, Any]:
    """Return what video processors ask for besides the frames; all frames are to be used."""
    return {
        "fps": VIDEO_FRAMES_PER_S,
        "duration": frames / VIDEO_FRAMES_PER_S,
        "total_num_frames": frames,
        "frames_indices": list(range(frames)),
        "video_backend": "synthetic",
        "do_sample_frames": False,
    }


def png(pixels: Pixels) -> bytes:
    """Encode an RGB image of shape (height, width, 3) as PNG (ISO/IEC 15948), uncompressed."""
    height, width, _ = pixels.shape
    # each row begins with its filter type, 0
    rows = np.concatenate(
        [np.zeros((height, 1), dtype=np.uint8), pixels.reshape(height, width * 3)], axis=1
    )

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows.tobytes(), level=0))
        + chunk(b"IEND", b"")
    )


def image_url(pixels: Pixels) -> str:
    """Return an image as the data URL that chat messages carry."""
    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode()


def video_url(frames: Pixels) -> str:
    """Return a video as vLLM takes it in chat messages: its frames, one encoded image each.

    vLLM names the type ``video/jpeg`` but opens each frame as whatever image it is.
    """
    encoded = (base64.b64encode(png(frame)).decode() for frame in frames)
    return "data:video/jpeg;base64," + ",".join(encoded)


# ------------------------------------------------------------------------- vision tokens


@dataclass(frozen=True, kw_only=True)
class VisionGrid:
    """Patches of one image or video as a Qwen-VL tower sees it."""

    time: int
    height: int
    width: int
    merge: int

    @property
    def patches(self) -> int:
        """Patches that go through the tower."""
        return self.time * self.height * self.width

    @property
    def tokens(self) -> int:
        """Tokens that the LLM prefills for them."""
        return self.patches // self.merge**2


def vision_grid(
    vision_config: Mapping[str, Any], pixels: tuple[int, int], frames: int = 1
) -> VisionGrid:
    """Return the patch grid that Qwen-VL processors make of an image (or ``frames`` frames).

    Sides are rounded to whole tokens, as the processors' ``smart_resize`` does for sizes
    within its pixel limits (Qwen2-VL, arXiv 2409.12191); frames are taken in pairs.
    """
    merge = int(vision_config["spatial_merge_size"])
    unit = int(vision_config["patch_size"]) * merge
    height, width = (max(1, round(side / unit)) * merge for side in pixels)
    return VisionGrid(
        time=math.ceil(frames / int(vision_config["temporal_patch_size"])),
        height=height,
        width=width,
        merge=merge,
    )


def media_grids(vision_config: Mapping[str, Any], media: Media) -> list[VisionGrid]:
    """Return the grids of a request's media: its images first, then its video."""
    grids: list[VisionGrid] = []
    if media.images and media.image_pixels:
        grids += [vision_grid(vision_config, media.image_pixels)] * media.images
    if media.frames and media.frame_pixels:
        grids.append(vision_grid(vision_config, media.frame_pixels, media.frames))
    return grids


def text_tokens_beside(work: Batch | Load, media_tokens: int) -> int:
    """Return how many text tokens fill a request up to its length.

    Raises
    ------
    EngineError
        UNSUPPORTED, if the media alone are longer than the request may be.
    """
    left = work.input_tokens - media_tokens
    if left < 1:
        raise EngineError(
            f"the images and frames of a request become {media_tokens} tokens, which leaves no "
            f"room for text in input_tokens={work.input_tokens}: raise input_tokens above "
            f"{media_tokens}, or give fewer or smaller images",
            reason=Reason.UNSUPPORTED,
            usable=True,
        )
    return left


# ---------------------------------------------------------------------------- open loop


def poisson_arrivals(random: np.random.Generator, rate_per_s: float) -> float:
    """Draw the seconds to the next arrival of a Poisson stream."""
    return float(random.exponential(1.0 / rate_per_s))


def staggered_lengths(output_tokens: int, requests: int) -> Sequence[int]:
    """Output lengths that spread the ends of the first ``requests`` requests evenly.

    A batch that begins all at once would also end all at once; with these it is as mixed from
    the start as a batch in the middle of a long run.
    """
    return [max(1, math.ceil(output_tokens * (i + 1) / requests)) for i in range(requests)]
