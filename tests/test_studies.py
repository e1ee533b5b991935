"""What the pages of docs state is what their studies gave, and can be had again."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from studies import command
from studies.extensions import __main__ as extensions
from studies.planning import tables as planning
from studies.results import tables as results
from studies.transfer import __main__ as transfer
from studies.transfer import unseen

from test_results import ROOT, data, needs_data


def stated(name: str) -> dict[str, Any]:
    """What the last run of a study gave."""
    folder = {"structure-study": "structure"}.get(name, name)
    path = ROOT / "studies" / folder / f"{name}.json"
    read: dict[str, Any] = json.loads(path.read_text())
    return read


def set_again(module: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the tables of a study's pages from its figures, in a copy of them."""
    shutil.copytree(ROOT / "docs", folder / "docs")
    shutil.copytree(ROOT / "studies", folder / "studies")
    shutil.copy(ROOT / "README.md", folder)
    study = importlib.import_module(module)
    for owner in (study, command):
        if hasattr(owner, "ROOT"):
            monkeypatch.setattr(owner, "ROOT", folder)
    monkeypatch.setattr(sys, "argv", [module, "--write-only"])
    study.main()


@pytest.mark.parametrize(
    "study", ["times.__main__", "limits.__main__", "limits.stated", "service.measured"]
)
def test_the_tables_of_time_and_load_are_those_of_their_studies(
    study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "docs/service.md").read_text()
    blank = results.MARK.sub(r"\1\n\3", text)
    set_again(f"studies.{study}", tmp_path, monkeypatch)
    assert (tmp_path / "docs/service.md").read_text() == text
    (tmp_path / "docs/service.md").write_text(blank)
    importlib.import_module(f"studies.{study}").main()
    assert (tmp_path / "docs/service.md").read_text() != blank  # it sets some table of the page


@pytest.mark.parametrize(
    ("study", "made", "documents", "given"),
    [
        ("results", results.TABLES, results.DOCUMENTS, "results"),
        ("planning", planning.TABLES, ("docs/studies/planning.md",), "planning"),
        ("extensions", extensions.TABLES, ("docs/studies/extensions.md",), "extensions"),
        ("transfer", transfer.TABLES, ("docs/studies/transfer.md",), "transfer"),
    ],
)
def test_the_tables_of_a_page_are_those_that_its_study_sets_from_the_results_file(
    study: str,
    made: results.Tables,
    documents: tuple[str, ...],
    given: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_again(f"studies.{study}.__main__", tmp_path, monkeypatch)
    for document in documents:
        text = (ROOT / document).read_text()
        assert (tmp_path / document).read_text() == text
        # What has no results is left as it stands: every table of a page must have some.
        for _, name, _ in results.MARK.findall(text):
            assert made[name](stated(given)).startswith("| ")
    # No table is made in vain.
    pages = "".join((ROOT / document).read_text() for document in documents)
    assert {name for _, name, _ in results.MARK.findall(pages)} == set(made)


@needs_data
def test_extensions_give_the_same_figures_again() -> None:
    source = "v3, image and video"  # the smallest with every protocol
    again = extensions.judge(*extensions.sources(data())[source])
    assert again["auto"] == stated("extensions")[source]["auto"]
    for protocol, by_name in stated("extensions")[source]["protocols"].items():
        for name, figures in by_name.items():
            assert again["protocols"][protocol][name] == pytest.approx(figures, rel=1e-6)


@needs_data
def test_transfer_gives_the_same_figures_again() -> None:
    again = transfer.zero_shot(transfer.on_both(data().v2))
    for name, by_way in stated("transfer")["zero_shot"].items():
        for way, figures in by_way.items():
            assert again[name][way] == pytest.approx(figures, rel=1e-6), (name, way)


@needs_data
def test_no_gpu_type_of_the_operators_is_predicted_worse_than_by_its_datasheet() -> None:
    sources = unseen.sources(data())
    stated_ways = stated("transfer")["unseen"]
    assert set(sources) == set(stated_ways)
    for name in (name for name in sources if "derived" in name):
        again = unseen.directions(unseen.by_gpu(sources[name]))
        assert len(again) == 6
        for way, figures in zip(again, stated_ways[name], strict=True):
            assert way["mape_ratio"] == pytest.approx(figures["mape_ratio"], rel=1e-5)
            assert way["mape_ratio"] <= way["datasheet_mape_ratio"], way
    for way in stated_ways["ML.ENERGY v2"]:
        assert way["mape_ratio"] <= 0.14
