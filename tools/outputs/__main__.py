"""Run the commands and the Python of pages, and set what they print.

::

    python -m tools.outputs README.md docs/tasks/*.md

A page's blocks run one after another in one empty folder that holds ``runs.csv``, 48 rows of the
packaged simulated table. A ``console`` block holds commands after ``$`` and what each prints; with
``<!-- first N lines -->`` above it the rest is left out, and ``...`` stands for it. What a
``python`` block prints stands in a ``text`` block that follows it, if there is one. ``sh`` blocks
need what is not at hand (a GPU, a server): they are not run, only parsed.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from energylens import table
from energylens.cli import main as command_line

ROOT = Path(__file__).resolve().parents[2]
ROWS = 48
BLOCK = re.compile(
    r"(?P<limit><!-- first (?P<lines>\d+) lines -->\n)?^```(?P<kind>console|python)\n"
    r"(?P<body>.*?)^```\n"
    r"(?:\n```text\n(?P<output>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)


@contextlib.contextmanager
def folder() -> Iterator[None]:
    """Work in an empty folder that holds runs.csv."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        every = table.read(ROOT / "src" / "energylens" / "data" / "simulated-demo.csv")
        rows = every.take(np.linspace(0, len(every) - 1, ROWS).astype(np.intp))
        table.write(rows, Path(name) / "runs.csv")
        os.chdir(name)
        try:
            yield
        finally:
            os.chdir(before)


def printed(command: str) -> str:
    """Run one energylens command and give what it prints.

    Raises
    ------
    RuntimeError
        If it fails.
    """
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = command_line(shlex.split(command)[1:])
    if code:
        raise RuntimeError(f"{command}: exit {code}: {err.getvalue()}")
    return out.getvalue()


def _console(body: str, lines: int | None) -> str:
    commands = re.findall(r"^\$ (energylens (?:.*\\\n)*.*)\n", body, re.MULTILINE)
    if not commands:
        return body
    shown = []
    for command in commands:
        output = printed(command.replace("\\\n", " ")).rstrip("\n")
        if lines is not None and output.count("\n") >= lines:
            output = "\n".join([*output.split("\n")[:lines], "..."])
        shown.append(f"$ {command}\n{output}\n" if output else f"$ {command}\n")
    return "".join(shown)


def rendered(text: str) -> str:
    """Run the blocks of a page and set what they print; the page's text in, the same out."""
    names: dict[str, Any] = {}

    def again(match: re.Match[str]) -> str:
        limit, body = match["limit"] or "", match["body"]
        lines = int(match["lines"]) if match["lines"] else None
        if match["kind"] == "console":
            return f"{limit}```console\n{_console(body, lines)}```\n" + (
                f"\n```text\n{match['output']}```\n" if match["output"] is not None else ""
            )
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(body, "a page of the documentation", "exec"), names)
        block = f"{limit}```python\n{body}```\n"
        if match["output"] is None:
            return block
        output = out.getvalue().rstrip("\n")
        return f"{block}\n```text\n{output}\n```\n"

    with folder():
        return BLOCK.sub(again, text)


def main() -> None:
    """Render the pages named."""
    for name in sys.argv[1:]:
        path = Path(name).resolve()
        before = path.read_text(encoding="utf-8")
        after = rendered(before)
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(f"{name}: set again")


if __name__ == "__main__":
    main()
