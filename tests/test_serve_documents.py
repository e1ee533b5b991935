"""The curl lines of docs/serve.md run against the real server."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from energylens.schemas import PUBLISHED
from served import Server

PAGE = Path(__file__).resolve().parents[1] / "docs" / "serve.md"
BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)
KINDS = {"select": "decision", "explain": "explanation"}


def examples() -> list[tuple[str, str]]:
    """Each curl line, with what the page says it prints."""
    found: list[tuple[str, str]] = []
    for block in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], ""))
            else:
                found[-1] = (found[-1][0], found[-1][1] + line)
    return found


@pytest.mark.parametrize(("command", "output"), examples(), ids=lambda text: text[:60])
def test_a_curl_line_does_what_the_page_says(server: Server, command: str, output: str) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl here")
    assert "http://127.0.0.1:8421/" in command
    done = subprocess.run(
        ["sh", "-c", command.replace("http://127.0.0.1:8421", server.url)],
        capture_output=True,
        text=True,
        check=True,
    )
    if output:
        assert done.stdout == output
    elif "/metrics" in command:
        assert "energylens_http_requests_total" in done.stdout
    else:
        answer = json.loads(done.stdout)
        path = re.search(r"/v1/(\w+)", command)
        if path:
            PUBLISHED[KINDS.get(path[1], path[1])].model_validate(answer)
        else:
            assert answer["openapi"].startswith("3.1")


def test_the_page_names_every_path(server: Server) -> None:
    text = PAGE.read_text(encoding="utf-8")
    for path in server.json("/openapi.json")["paths"]:
        assert path in text
