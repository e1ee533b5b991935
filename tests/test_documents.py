"""What the README and the pages say: short, and what they print is what the program prints."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tools.outputs.__main__ import BLOCK, rendered

from energylens.cli import build_parser

ROOT = Path(__file__).resolve().parents[1]
TASKS = sorted((ROOT / "docs" / "tasks").glob("*.md"))
MOST_WORDS = 600
AGAIN = "set it again: python -m tools.outputs README.md docs/tasks/*.md"
NUMBER = re.compile(r"(?<![A-Za-z\d.])\d+(?:\.\d+)?(?:e[-+]\d+)?")
CHANCE = re.compile(r"(?<![A-Za-z\d.])(\d+(?:\.\d+)?) %")


def words(text: str) -> list[str]:
    """The words of a page, numbers and the rules of tables apart."""
    return [word for word in NUMBER.sub("#", text).split() if set(word) != {"-"}]


def numbers(text: str) -> list[float]:
    """The numbers of a page, in order."""
    return [float(number) for number in NUMBER.findall(text)]


def stated_commands(text: str) -> list[str]:
    """Lines that run the program, continued ones joined, up to a pipe or redirection."""
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    found = [re.match(r"\s*(?:\$ )?(energylens [a-z].*)", line) for line in lines]
    return [re.split(r"\s(?:[|>&#]|2>)", each[1])[0] for each in found if each]


def test_every_command_of_every_page_can_be_read_by_the_program() -> None:
    parser, count, wrong = build_parser(), 0, []
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        for line in stated_commands(page.read_text(encoding="utf-8")):
            if "..." in line:
                continue
            count += 1
            try:
                parser.parse_args(shlex.split(line)[1:])
            except SystemExit as ended:
                if ended.code != 0:
                    wrong.append((page.name, line))
    assert not wrong
    assert count > 50


def python_blocks() -> list[tuple[str, str]]:
    """Blocks of Python of the reference and the studies, with their page."""
    pages = [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "studies").glob("*.md")]
    return [
        (page.name, block)
        for page in sorted(pages)
        for block in re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    ]


def test_python_of_the_reference_runs_and_fragments_import_what_they_use() -> None:
    whole = set()
    for page, block in python_blocks():
        tree = ast.parse(block)
        given = {"dataset", "cases", "candidates", "measured", "rate", "time_model", "energy_model"}
        named = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        if not named & given:
            whole.add(page)
        else:  # of an example whose rows are the reader's, the names that it imports must be there
            tree.body = [each for each in tree.body if isinstance(each, ast.ImportFrom)]
            assert tree.body, page
        exec(compile(tree, page, "exec"), {})
    assert {"simulation.md", "catalog.md"} <= whole


@pytest.mark.parametrize("page", [ROOT / "README.md", *TASKS], ids=lambda page: page.name)
def test_a_page_prints_what_its_commands_print(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    if BLOCK.search(text) is None:
        pytest.skip("the page runs nothing")
    if "el.read" in text:
        pytest.importorskip("narwhals")
        pytest.importorskip("pandas")
        pytest.importorskip("vl_convert")
    again = rendered(text)
    assert words(again) == words(text), AGAIN
    # Joules to three digits, chances to two points: the last digit may differ between machines.
    assert numbers(CHANCE.sub("", again)) == pytest.approx(
        numbers(CHANCE.sub("", text)), rel=0.02, abs=0.02
    ), AGAIN
    chances = [[float(chance) for chance in CHANCE.findall(each)] for each in (again, text)]
    assert chances[0] == pytest.approx(chances[1], rel=0.02, abs=2.0), AGAIN


def test_a_changed_output_is_found() -> None:
    text = "```console\n$ energylens --version\n```\n"
    with pytest.raises(SystemExit):
        rendered(text)
    text = "```python\nprint(1 + 1)\n```\n\n```text\n3\n```\n"
    assert rendered(text) == text.replace("3", "2")


def test_the_readme_is_short_and_in_order() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= MOST_WORDS
    places = [
        text.index(part)
        for part in (
            "Which way of serving an LLM takes the least energy",
            "$ energylens select",
            "## Install",
            "import energylens as el",
            "docs/figures/",
            "## The law",
            "## Where things are",
        )
    ]
    assert places == sorted(places)
    python = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert [len([line for line in block.splitlines() if line]) for block in python] == [6]


def test_links_of_the_readme_lead_somewhere() -> None:
    for name in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
            assert target.startswith("http") or (ROOT / target).exists(), target


def test_pages_build_strictly(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={"NO_MKDOCS_2_WARNING": "1", "PATH": str(Path(sys.executable).parent)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 20
    loaded = [
        (page.name, address)
        for page in pages
        for address in re.findall(
            r'<(?:script|link|img)[^>]*(?:src|href)="(https?:[^"]+)"',
            page.read_text(encoding="utf-8"),
        )
    ]
    assert not loaded, "pages load nothing from outside"


def test_every_page_is_in_the_navigation() -> None:
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md")}
    assert pages == set(re.findall(r": ([\w/-]+\.md)$", config, re.MULTILINE))


def test_files_for_contributors_and_machines_are_there() -> None:
    assert len((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()) < 60
    assert "2605.10556" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert (ROOT / "SECURITY.md").exists()
    assert ".ci/run" in (ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8")
    assert len(list((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))) == 3
