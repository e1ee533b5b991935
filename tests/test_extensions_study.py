"""What docs/extensions.md states is what the study gave, and can be had again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from studies.extensions import __main__ as study

from test_results import data, needs_data

PAGE = Path(__file__).resolve().parents[1] / "docs" / "extensions.md"


def stated() -> dict[str, Any]:
    """What the last run of the study gave."""
    read: dict[str, Any] = json.loads(PAGE.with_suffix(".json").read_text())
    return read


def test_the_tables_of_the_page_are_those_of_the_results_file() -> None:
    tables = study.tables(stated())
    text = PAGE.read_text()
    assert [name for _, name, _ in study.MARK.findall(text)] == list(tables)
    assert study.MARK.sub(lambda m: f"{m[1]}{tables[m[2]]}\n{m[3]}", text) == text


@needs_data
def test_the_study_gives_the_same_figures_again() -> None:
    source = "v3, image and video"  # the smallest with every protocol
    again = study.judge(*study.sources(data())[source])
    assert again["auto"] == stated()[source]["auto"]
    for protocol, by_name in stated()[source]["protocols"].items():
        for name, figures in by_name.items():
            assert again["protocols"][protocol][name] == pytest.approx(figures, rel=1e-6)
