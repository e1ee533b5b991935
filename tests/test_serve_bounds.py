"""What one client may ask of the server: rate, address, headers, body, rows and candidates."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

from energylens.web import guard
from served import DEMO, QUESTION, Server, serving


def refused(got: tuple[int, dict[str, str], bytes], status: int) -> str:
    """The sentence of a refusal."""
    assert got[0] == status, got[2][:300]
    assert got[1]["content-type"] == "application/problem+json"
    assert json.loads(got[2])["status"] == status
    return str(json.loads(got[2])["detail"])


def test_more_than_the_rate_is_429_and_operators_are_answered_all_the_same() -> None:
    with serving("--rate", "2") as started:
        asked = [started.ask("/v1/gpus", contains="H100") for _ in range(12)]
        last = asked[-1]
        assert asked[0][0] == 200
        assert "ask again" in refused(last, 429)
        assert last[1]["retry-after"] == "1"
        assert {got[0] for got in asked} == {200, 429}
        for path in ("/healthz", "/readyz", "/metrics", "/", "/app.js"):
            assert started.ask(path)[0] == 200
        counted = started.ask("/metrics")[2].decode()
        assert 'status="429"' in counted


def test_addresses_and_headers_have_a_longest(server: Server) -> None:
    assert "address" in refused(server.ask(f"/v1/llms?contains={'x' * 17_000}"), 414)
    long = {f"x-{k}": "y" * 4_000 for k in range(9)}
    assert "headers" in refused(server.ask("/v1/llms", headers=long), 431)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"gpu": ["H100"] * 500}, "gpu"),
        ({"max_gpus": 1_000_000}, "max_gpus"),
        ({"rates": 100_000}, "rates"),
        ({"llm": "x" * 5_000}, "llm"),
    ],
)
def test_one_answer_is_about_so_many_candidates(
    server: Server, more: dict[str, Any], said: str
) -> None:
    path = "/v1/service" if "rates" in more else "/v1/select"
    asked = {**QUESTION, "configuration": "TP8 B8"} if path == "/v1/service" else QUESTION
    assert said in refused(server.ask(path, **{**asked, **more}), 422)


def test_a_product_of_all_knobs_is_refused_before_it_is_made(server: Server) -> None:
    gpus = server.json("/v1/gpus")["gpus"]
    asked = {**QUESTION, "gpu": [gpu["id"] for gpu in gpus][:16], "max_gpus": 1024}
    got = server.ask("/v1/select", **asked, certain="false")
    assert got[0] in (200, 422)
    if got[0] == 422:
        assert len(json.loads(got[2])["detail"]) < 700


def test_a_table_of_more_rows_than_are_allowed_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "energylens", "serve", "--data", str(DEMO), "--most-rows", "10"],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode != 0
    assert "10" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_body_that_does_not_end_is_408_and_nothing_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(guard, "BODY_S", 0.05)
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}

    async def send(message: Any) -> None:
        sent.append(message)

    held = guard.Guard(
        app, hosts=guard.Hosts(), bucket=guard.Bucket(9.0, 9.0), observe=lambda *_: None
    )
    scope = {
        "type": "http", "method": "POST", "path": "/v1/select", "raw_path": b"/v1/select",
        "query_string": b"", "headers": [(b"host", b"localhost")],
    }  # fmt: skip
    asyncio.run(held(scope, receive, send))
    assert sent[0]["status"] == 408
    assert b"must arrive within" in sent[1]["body"]
