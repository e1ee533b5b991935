"""The floors are kept, and a room without a floor is found."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WINGS = (
    "", "instrument", "report", "evaluation", "nextruns", "web", "charts", "fitting", "comparing",
)  # fmt: skip


def test_a_room_without_a_floor_fails_lint_in_every_wing(tmp_path: Path) -> None:
    pytest.importorskip("importlinter")
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for number, wing in enumerate(WINGS):
        room = tmp_path / "src" / "energylens" / wing / f"attic_{number}.py"
        room.write_text('"""A room that nobody placed."""\n', encoding="utf-8")
    program = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports())"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "src")},
    )
    assert done.returncode != 0
    missed = [wing for number, wing in enumerate(WINGS) if f"attic_{number}" not in done.stdout]
    assert not missed, done.stdout
