"""The front door: its names, its examples, its frames, figures and what a notebook shows."""

from __future__ import annotations

import doctest
import inspect
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

import energylens as el
from energylens import door, table
from energylens.errors import MissingExtraError, TableError, UsageError
from report_sample import sample

NAMES = [
    "Case",
    "Dataset",
    "EnergyLensError",
    "EnergyModel",
    "discover",
    "evaluate",
    "explain",
    "fit",
    "gpu",
    "llm",
    "load",
    "measure",
    "plan",
    "read",
    "report",
    "select",
]
VERBS = [name for name in NAMES if hasattr(door, name)]


@pytest.fixture(scope="module")
def rows() -> el.Dataset:
    demo = Path(el.__file__).parent / "data" / "simulated-demo.csv"
    everything = table.read(demo)
    return everything.take(np.linspace(0, len(everything) - 1, 24).astype(np.intp))


@pytest.fixture
def folder(rows: el.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    table.write(rows, tmp_path / "runs.csv")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_public_names_are_these_and_no_others():
    assert el.__all__ == NAMES
    assert all(getattr(el, name) is not None for name in NAMES)
    assert set(NAMES) <= set(dir(el))
    with pytest.raises(AttributeError, match="no attribute 'predict'"):
        el.predict  # noqa: B018


@pytest.mark.parametrize("name", VERBS)
def test_example_of_a_verb_runs(name, folder):
    found = doctest.DocTestFinder(recurse=False).find(getattr(door, name), name, globs={})
    assert found[0].examples, "it has no example"
    result = doctest.DocTestRunner().run(found[0])
    assert result.failed == 0
    text = inspect.getdoc(getattr(door, name))
    assert text is not None
    assert all(word in text for word in ("Parameters", "Raises", "Examples"))


def test_report_is_a_verb_whatever_was_imported_before():
    code = "import energylens as el, energylens.report.html; el.report('no-such.csv', 'x.html')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "TableError" in done.stderr.splitlines()[-1]


def test_a_printed_ranking_says_what_no_row_is_of_once():
    asked = {"llm": "Qwen/Qwen3-8B", "input_tokens": 500, "output_tokens": 300}
    said = str(el.select(el.load("h100-vllm-0.11"), gpu="B200", **asked))
    assert said.count("No row of the fit has the GPU B200") == 1


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow"])
def test_rows_survive_a_frame_of_any_library(library, rows):
    pytest.importorskip(library)
    frame = rows.to_frame(library)
    assert type(frame).__module__.partition(".")[0] == library
    again = el.read(frame)
    assert again.digest == rows.digest


def test_frame_is_checked_as_a_table_is(rows):
    pandas = pytest.importorskip("pandas")
    frame = rows.to_frame("pandas")
    frame.loc[3, "energy_per_request_j"] = np.nan
    with pytest.raises(TableError, match="row 4: energy_per_request_j"):
        el.read(frame)
    with pytest.raises(TableError, match="llm must be a column"):
        el.read(pandas.DataFrame({"energy_per_request_j": [1.0]}))
    with pytest.raises(TableError, match="the columns of a data frame must have names"):
        el.read(pandas.DataFrame([[1.0]]))


def test_what_is_no_frame_is_refused():
    polars = pytest.importorskip("polars")
    with pytest.raises(TableError, match="collect a lazy frame first"):
        el.read(polars.LazyFrame({"a": [1]}))
    with pytest.raises(TableError, match=r"as a path or as a data frame .* not as builtins\.int"):
        el.read(3)


def test_frames_name_the_extra_that_brings_them(rows, monkeypatch):
    monkeypatch.setitem(sys.modules, "narwhals", None)
    with pytest.raises(MissingExtraError, match=r"energylens\[frames\]"):
        rows.to_frame()
    with pytest.raises(UsageError, match="a frame is of pandas"):
        rows.to_frame("excel")


def _answers():
    s = sample()
    ranking = s.ranking
    explained = el.explain(s.model, ranking.cases.case(0))
    return [s.dataset, s.model, ranking, explained, *s.evaluations]


def test_answers_show_themselves_shortly_and_escape_names():
    for answer in _answers():
        text, page = repr(answer), answer._repr_html_()
        assert 1 < len(text.splitlines()) <= 45, type(answer)
        assert max(map(len, text.splitlines())) <= 80
        assert "<table>" in page
        assert "<script>" not in page
        assert len(page) < 20_000


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_answers_become_frames(library, folder):
    kind = pytest.importorskip(library).DataFrame
    made = [a.to_frame(library) for a in _answers()]
    assert all(type(frame) is kind for frame in made)
    dataset, model, ranking, explained, evaluation, _ = made
    s = sample()
    assert len(dataset) == len(s.dataset)
    rows = el.read(folder / "runs.csv")
    assert el.Dataset.from_frame(rows.to_frame(library)).digest == rows.digest
    assert len(model) == len(s.model.terms)
    assert list(ranking["rank"]) == list(range(1, len(s.ranking) + 1))
    joules = list(ranking["energy_per_request_j"])
    assert joules == sorted(joules)
    assert sum(explained["prefill_j"]) + sum(explained["decode_j"]) == pytest.approx(
        float(s.ranking.energy_per_request_j[0])
    )
    assert set(evaluation["estimator"]) == set(s.evaluations[0].estimators)
    assert len(evaluation) == sum(len(p.scores) for p in s.evaluations[0].points)


def test_figures_are_saved_by_the_end_of_the_name(tmp_path):
    pytest.importorskip("vl_convert")
    first = {".svg": b"<svg", ".pdf": b"%PDF", ".png": b"\x89PNG"}
    for answer in _answers():
        figure = answer.figure()
        for suffix, magic in first.items():
            figure.save(tmp_path / f"x{suffix}")
            assert (tmp_path / f"x{suffix}").read_bytes().startswith(magic)
        ElementTree.fromstring((tmp_path / "x.svg").read_text(encoding="utf-8"))
        shown = figure._repr_mimebundle_()
        assert "<svg" in shown["image/svg+xml"]
        assert shown["application/vnd.vegalite.v5+json"]["$schema"].endswith("v5.json")
    with pytest.raises(UsageError, match=r"saved as \.svg, \.pdf, \.png"):
        figure.save("x.gif")


def test_law_is_typeset_with_its_numbers(folder, capsys):
    from energylens.cli import main

    model = el.fit("runs.csv")
    text = model.latex()
    assert text.startswith(r"\begin{align}")
    assert text.count(r"\theta_{") == len(model.terms)
    assert text.count("{") == text.count("}")
    for value in model.pooled.theta:
        assert f"= {value:.2f} \\;" in text
    assert main(["fit", "runs.csv", "--latex"]) == 0
    assert capsys.readouterr().out.strip() == text


def test_case_is_described_in_full_or_refused():
    with pytest.raises(UsageError, match="llm and input_tokens must be given"):
        el.explain("datasheet", gpu="H100", output_tokens=3)
    with pytest.raises(UsageError, match="given 'batchsize'"):
        el.explain(
            "datasheet",
            llm="Qwen/Qwen3-8B",
            gpu="H100",
            input_tokens=1,
            output_tokens=3,
            batchsize=2,
        )


def test_model_of_the_package_answers_where_none_is_given():
    told = el.explain(llm="Qwen/Qwen3-8B", gpu="H100", input_tokens=500, output_tokens=300)
    assert told.energy_per_request_j > 0


def test_a_choice_that_rests_on_simulated_rows_says_so() -> None:
    from pathlib import Path

    import energylens as el

    rows = el.read(Path(el.__file__).parent / "data" / "simulated-demo.csv")
    simulated = el.select(
        el.fit(rows), llm="Qwen/Qwen3-32B", gpu="H100", input_tokens=500, output_tokens=300
    )
    assert "simulated: nothing here is a claim" in " ".join(str(simulated).split())
    assert "simulated" in simulated._repr_html_()
    published = el.select(llm="Qwen/Qwen3-32B", gpu="H100", input_tokens=500, output_tokens=300)
    assert not published.caution


def test_select_tells_the_engine_each_limit_that_is_tried_and_names_what_it_fixes():
    asked = {"llm": "Qwen/Qwen3-8B", "gpu": "H100", "input_tokens": 500, "output_tokens": 300}
    free = el.select("datasheet", **asked, max_gpus=1, choose=("batch_size",))
    assert all(gpu.max_num_seqs is None for gpu in free.cases.gpus)
    fixed = el.select("datasheet", **asked, max_gpus=1)
    assert "The batch limit is fixed at 32" in " ".join(repr(fixed).split())
    with pytest.raises(UsageError, match=r"rate, tpot are of a load.*docs/tasks/python\.md"):
        el.select("datasheet", **asked, rate=3, tpot="50ms")


def test_a_ranking_notes_what_no_row_of_the_fit_is_of() -> None:
    asked = {"llm": "Qwen/Qwen3-32B", "input_tokens": 500, "output_tokens": 300}
    ranking = el.select(el.load("h100-vllm-0.11"), gpu="B200", **asked)
    notes = " ".join(ranking.notes)
    assert "No row of the fit has the GPU B200" in notes
    assert ranking.to_json()["notes"] == list(ranking.notes)
