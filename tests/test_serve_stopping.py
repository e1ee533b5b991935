"""Answers under way when the server is told to stop, and waits no longer."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

pytest.importorskip("fastapi")

from energylens.web.guard import Bucket, Guard, Hosts

SCOPE: dict[str, Any] = {
    "type": "http", "method": "GET", "path": "/v1/select", "raw_path": b"/v1/select",
    "query_string": b"", "headers": [(b"host", b"localhost")],
}  # fmt: skip


def stopped(*, begun: bool) -> tuple[list[Any], list[int], bool]:
    """Messages sent, statuses counted, and whether the cut went on, of an answer that is cut."""
    sent: list[Any] = []
    counted: list[int] = []

    async def never(_scope: Any, _receive: Any, send: Any) -> None:
        if begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.sleep(3600)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    async def run() -> bool:
        guard = Guard(
            never,
            hosts=Hosts(),
            bucket=Bucket(10, 10),
            observe=lambda _route, status, _seconds: counted.append(status),
        )
        task = asyncio.create_task(guard(dict(SCOPE), receive, send))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    return sent, counted, asyncio.run(run())


def test_an_answer_that_is_cut_is_503_and_says_when_to_ask() -> None:
    sent, counted, cancelled = stopped(begun=False)
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert (sent[0]["status"], counted, cancelled) == (503, [503], False)
    assert (b"retry-after", b"1") in sent[0]["headers"]
    assert "stops" in json.loads(sent[1]["body"])["detail"]


def test_half_an_answer_is_not_completed_with_another() -> None:
    sent, counted, cancelled = stopped(begun=True)
    assert [message["type"] for message in sent] == ["http.response.start"]
    assert (counted, cancelled) == ([200], True)
