"""Many who ask at once: one answer for one question, and a bound on how many wait."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

from energylens.errors import InfeasibleError
from energylens.web import app
from energylens.web.models import Loaded


class Work:
    """Takes until it is let go, and counts how often it was done."""

    def __init__(self) -> None:
        self.done = 0
        self.go = threading.Event()

    def __call__(self) -> dict[str, Any]:
        self.go.wait(60)
        self.done += 1
        return {"considered": 1000, "answer": self.done}


def test_one_question_that_many_ask_is_answered_once() -> None:
    async def ask() -> tuple[list[bytes], int]:
        state, work = app.State(Loaded()), Work()
        asking = [
            asyncio.create_task(app._answer(state, "same", work, aside=True)) for _ in range(20)
        ]
        await asyncio.sleep(0)
        asking[0].cancel()  # who goes away does not take the answer from the others
        await asyncio.sleep(0)
        work.go.set()
        answers = await asyncio.gather(*asking[1:])
        assert not state.underway
        again = await app._answer(state, "same", work, aside=True)
        return [bytes(each.body) for each in (*answers, again)], work.done

    bodies, done = asyncio.run(ask())
    assert (set(bodies), done) == ({b'{"considered":1000,"answer":1}'}, 1)


def test_of_too_many_questions_the_last_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "MOST_WAITING", 3)

    async def ask() -> list[int]:
        state, work = app.State(Loaded()), Work()
        asking = [
            asyncio.create_task(app._answer(state, str(n), work, aside=True)) for n in range(5)
        ]
        while len(state.underway) < 3:
            await asyncio.sleep(0)
        work.go.set()
        statuses = [each.status_code for each in await asyncio.gather(*asking)]
        assert (await app._answer(state, "later", work, aside=True)).status_code == 200
        return statuses

    assert asyncio.run(ask()) == [200, 200, 200, 429, 429]


def test_an_error_reaches_all_who_asked_and_is_not_kept() -> None:
    def work() -> dict[str, Any]:
        raise InfeasibleError("no configuration fits")

    async def ask() -> list[Any]:
        state = app.State(Loaded())
        asking = (app._answer(state, "same", work, aside=True) for _ in range(3))
        found = await asyncio.gather(*asking, return_exceptions=True)
        assert not state.underway
        assert state.kept.get("same") is None
        return list(found)

    assert [type(each) for each in asyncio.run(ask())] == [InfeasibleError] * 3
