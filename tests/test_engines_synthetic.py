"""Prompts, pictures and loads that engines are given."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from energylens.catalog.hf_write import FIRST_PROMPT_TOKEN
from energylens.errors import InputError
from energylens.instrument.engine import Batch, EngineError, Media, Reason
from energylens.instrument.engines import synthetic

TOWER = {"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}


def test_a_prompt_is_as_long_as_asked_and_holds_no_special_token() -> None:
    ids = synthetic.token_prompt(synthetic.random_stream(1, 2), 5000, 32)
    assert len(ids) == 5000
    assert min(ids) == FIRST_PROMPT_TOKEN
    assert max(ids) == 31
    assert all(type(token) is int for token in ids[:3])


def test_repetitions_differ_and_the_same_repetition_repeats() -> None:
    def draw(seed: int, repetition: int) -> list[int]:
        return synthetic.token_prompt(synthetic.random_stream(seed, repetition), 20, 10_000)

    assert draw(1, 1) == draw(1, 1)
    assert draw(1, 1) != draw(1, 2)
    assert draw(1, 1) != draw(2, 1)


def test_a_vocabulary_of_special_tokens_alone_is_refused() -> None:
    with pytest.raises(InputError, match="vocabulary"):
        synthetic.token_prompt(synthetic.random_stream(0, 0), 3, FIRST_PROMPT_TOKEN)


@given(st.integers(1, 20), st.integers(1, 20))
def test_a_png_holds_the_pixels_it_was_made_of(height: int, width: int) -> None:
    pixels = synthetic.image(np.random.default_rng(0), (height, width))
    data = synthetic.png(pixels)
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    place, chunks = 8, {}
    while place < len(data):
        (size,) = struct.unpack(">I", data[place : place + 4])
        kind, body = data[place + 4 : place + 8], data[place + 8 : place + 8 + size]
        (check,) = struct.unpack(">I", data[place + 8 + size : place + 12 + size])
        assert check == zlib.crc32(kind + body)
        chunks[kind] = body
        place += 12 + size
    assert struct.unpack(">IIBBBBB", chunks[b"IHDR"]) == (width, height, 8, 2, 0, 0, 0)
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), dtype=np.uint8).reshape(height, -1)
    assert (rows[:, 0] == 0).all()
    assert (rows[:, 1:].reshape(height, width, 3) == pixels).all()


def test_a_video_url_holds_every_frame() -> None:
    frames = synthetic.video(np.random.default_rng(0), 3, (4, 5))
    head, _, rest = synthetic.video_url(frames).partition(",")
    assert head == "data:video/jpeg;base64"
    assert [base64.b64decode(part) for part in rest.split(",")] == [
        synthetic.png(frame) for frame in frames
    ]


@pytest.mark.parametrize(
    ("pixels", "frames", "tokens"),
    [((224, 224), 1, 64), ((140, 196), 1, 35), ((224, 224), 8, 256), ((10, 10), 1, 1)],
)
def test_vision_tokens_are_those_that_qwen_processors_make(
    pixels: tuple[int, int], frames: int, tokens: int
) -> None:
    assert synthetic.vision_grid(TOWER, pixels, frames).tokens == tokens


def test_media_that_leave_no_room_for_text_are_unsupported() -> None:
    media = Media(images=2, image_pixels=(224, 224))
    tokens = sum(grid.tokens for grid in synthetic.media_grids(TOWER, media))
    assert tokens == 128
    batch = Batch(requests=1, input_tokens=128, output_tokens=1, media=media)
    with pytest.raises(EngineError, match="above 128") as refused:
        synthetic.text_tokens_beside(batch, tokens)
    assert refused.value.reason is Reason.UNSUPPORTED
    assert refused.value.usable


@given(st.integers(1, 500), st.integers(1, 300))
def test_staggered_lengths_spread_the_ends_over_one_whole_output(
    output_tokens: int, requests: int
) -> None:
    lengths = synthetic.staggered_lengths(output_tokens, requests)
    assert len(lengths) == requests
    assert all(1 <= length <= output_tokens for length in lengths)
    assert max(lengths) == output_tokens
    # as in the middle of a long run: half of an output is left on average
    assert np.mean(lengths) == pytest.approx(output_tokens / 2, abs=output_tokens / requests + 1)


def test_poisson_arrivals_come_at_the_rate_and_scatter_as_they_should() -> None:
    random = np.random.default_rng(0)
    gaps = [synthetic.poisson_arrivals(random, 20.0) for _ in range(4000)]
    assert np.mean(gaps) == pytest.approx(1 / 20, rel=0.05)
    assert np.std(gaps) == pytest.approx(1 / 20, rel=0.08)
