"""What is kept between questions is bounded, in bytes and in number."""

from __future__ import annotations

import socket

from energylens.cli.serve import _listen
from energylens.remembered import Remembered
from energylens.web.models import Loaded
from served import QUESTION


def test_the_oldest_go_first_and_what_is_asked_for_is_young_again() -> None:
    kept: Remembered[str] = Remembered(100)
    for name in "abc":
        kept.put(name, name.upper(), 30)
    assert kept.get("a") == "A"
    kept.put("d", "D", 30)
    assert kept.get("b") is None
    assert [kept.get(name) for name in "acd"] == ["A", "C", "D"]
    assert kept.size_bytes == 90


def test_what_is_large_is_not_kept_and_number_is_bounded() -> None:
    kept: Remembered[int] = Remembered(100, most=2, share=0.25)
    kept.put("large", 1, 26)
    assert kept.get("large") is None
    for n in range(5):
        kept.put(n, n, 1)
    assert (len(kept), kept.size_bytes) == (2, 2)
    kept.put(4, 40, 1)
    assert (kept.get(4), kept.size_bytes) == (4, 2)


def test_all_models_share_one_bound() -> None:
    from energylens.schemas import Question
    from energylens.web import answers

    loaded = Loaded()
    small = {**QUESTION, "precision": ["fp8"], "gpu": ["H100"], "current": None}
    for name in ("datasheet", None):
        answers.select(loaded, Question(**{**small, "model": name}).document(), certain=False)
    first, second = (loaded.engine_of(loaded.model_for(name, "H100", "")[0])
                     for name in ("datasheet", None))  # fmt: skip
    assert first is not second
    assert first.kept is second.kept
    assert len(first.kept) == 2


def test_answers_do_not_wait_for_acknowledgements() -> None:
    """asyncio turns Nagle's algorithm off for what says that it is TCP, and for nothing else."""
    with (
        _listen("127.0.0.1", 0) as listening,
        socket.create_connection(listening.getsockname()),
        listening.accept()[0] as accepted,
    ):
        assert accepted.proto == socket.IPPROTO_TCP
