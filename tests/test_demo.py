"""The demo answers from published measurements, in words and as a page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from energylens.cli import main
from energylens.cli.demo import ASKED


def test_the_demo_says_what_the_command_it_names_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "answer.html"
    assert main(ASKED) == 0
    asked = capsys.readouterr().out
    assert main(["demo", "-o", str(page)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("$ energylens select")
    assert asked in said
    assert "405 published measurements" in " ".join(said.split())
    text = page.read_text()
    best = json.loads(_json(capsys, "demo", "-o", str(page), "--json"))["answer"]["configurations"]
    assert f"on {best[0]['gpus']} x {best[0]['gpu']}" in text
    assert f"TP{best[0]['tensor_parallel']}" in text
    for name in ("front", "joules", "seconds", "curve-energy", "curve-tpot"):
        assert f'id="{name}"' in text
    assert "published measurements" in text
    assert "simulated" not in text + said


def _json(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 0
    return capsys.readouterr().out
