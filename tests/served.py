"""A real server in a process of its own, for tests over a socket."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from energylens.cli import main

DEMO = Path(__file__).resolve().parents[1] / "src" / "energylens" / "data" / "simulated-demo.csv"
LLAMA = "meta-llama/Llama-3.3-70B-Instruct"
QUESTION: dict[str, Any] = {
    "llm": LLAMA, "precision": "fp8", "gpu": ["H100-SXM-80GB", "H200-SXM-141GB"], "rate": 3,
    "input_tokens": 2000, "output_tokens": 300, "tpot": "50ms", "ttft": "1s",
    "current": "TP8 B256",
}  # fmt: skip


@dataclass(frozen=True)
class Server:
    """A server that listens, and how to ask it."""

    port: int
    process: subprocess.Popen[str]

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self,
        path: str,
        *,
        method: str = "GET",
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        **query: Any,
    ) -> tuple[int, dict[str, str], bytes]:
        """Ask once; status, headers and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        try:
            target = f"{path}?{urlencode(query, doseq=True)}" if query else path
            connection.request(method, target, body=body, headers=headers or {})
            got = connection.getresponse()
            return got.status, {k.lower(): v for k, v in got.getheaders()}, got.read()
        finally:
            connection.close()

    def json(self, path: str, **query: Any) -> Any:
        """Ask for a document."""
        status, _, body = self.ask(path, **query)
        assert status == 200, body
        return json.loads(body)


@contextlib.contextmanager
def serving(*arguments: str) -> Iterator[Server]:
    """Start `energylens serve` on a free port, and stop it as an operator does."""
    process = subprocess.Popen(
        [sys.executable, "-m", "energylens", "serve", "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r":(\d+)/", line)
        if not found:
            assert process.stderr is not None
            pytest.fail(f"the server did not start: {line}{process.stderr.read()}")
        yield Server(int(found[1]), process)
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=600)


def _packages() -> None:
    for package in ("fastapi", "uvicorn", "prometheus_client", "vl_convert"):
        pytest.importorskip(package)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A server with the packaged models."""
    _packages()
    with serving("--rate", "100000") as started:
        yield started


@pytest.fixture(scope="session")
def front(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forms that are discovered in some of the simulated rows."""
    path = tmp_path_factory.mktemp("forms") / "front.json"
    some = ("gpu=H100-SXM-80GB", "llm=meta-llama/Llama-3.1-8B-Instruct", "precision=bf16")
    where = [word for one in some for word in ("--where", one)]
    with contextlib.redirect_stdout(None):
        assert main(["discover", str(DEMO), *where, "--samples", "4", "-o", str(path)]) == 0
    return path


@pytest.fixture(scope="session")
def server_with_rows(front: Path) -> Iterator[Server]:
    """A server with the simulated rows that come with the package, and forms found in them."""
    _packages()
    with serving("--data", str(DEMO), "--front", str(front), "--rate", "100000") as started:
        yield started
