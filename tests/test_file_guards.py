"""Files made to harm: refused in one sentence, soon, and before they fill the memory."""

import os
import tracemalloc
from pathlib import Path

import pytest

from energylens import files
from energylens.cli import main
from energylens.discovery import Front
from energylens.errors import ArtefactError, ExitCode, TableError
from energylens.importers import documents
from energylens.importers.runs import RefusedFileError

ATTACK = (
    Path(
        os.environ.get("ENERGYLENS_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")
    ).parent
    / "cases"
    / "attack"
)
CASE = ("--llm", "Qwen/Qwen3-8B", "--gpu", "H100", "--input-tokens", "50", "--output-tokens", "20")


# ---------------------------------------------------------------------------------- size


class Counted(str):
    """A text that counts how often it is compared."""

    compared = 0
    __hash__ = str.__hash__

    def __eq__(self, other):
        type(self).compared += 1
        return str.__eq__(self, other)


def test_names_are_not_looked_for_among_all_the_others(monkeypatch):
    names = [Counted(f"x_{i}") for i in range(2_000)]
    monkeypatch.setattr(Counted, "compared", 0)
    files._check_header(names, "t.csv")
    pairs = [(name, 1) for name in names]
    for refuse in (files._refuse_repeats, documents._pairs):
        assert len(refuse(pairs)) == len(names)
        with pytest.raises(ValueError, match="'x_1999'"):
            refuse([*pairs, (Counted("x_1999"), 2)])
    # Not by one for each pair of names, which would be two million.
    assert Counted.compared < 10 * len(names)


def test_a_key_that_is_given_twice_is_named():
    text = ", ".join(f'"key {i}": {i}' for i in range(300))
    with pytest.raises(ArtefactError, match="'key 1' is given twice"):
        files.parse_json(f'{{{text}, "key 1": 0}}', "t.json")
    with pytest.raises(RefusedFileError, match="'key 1' is there twice"):
        documents.parse(f'{{{text}, "key 1": 0}}'.encode(), "t.json")


def test_a_table_of_too_many_cells_is_refused_before_it_is_taken_apart(monkeypatch):
    monkeypatch.setattr(files, "MAX_CELLS", 100_000)
    text = "x_a,x_b,x_c\n" + "1,2,3\n" * 60_000
    quoted = text.replace("1,2", '"1",2')
    for given in (text, quoted):
        tracemalloc.start()
        with pytest.raises(TableError, match=r"about 180,0.. cells, more than the 100,000"):
            files.parse_table(given, "t.csv", "csv")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4 * len(given)  # decoded once or twice, and no cell made
    lines = '{"x_a": 1, "x_b": 2}\n' * 60_000
    with pytest.raises(TableError, match="cells, more than"):
        files.parse_table(lines, "t.jsonl", "jsonl")
    with pytest.raises(TableError, match="cells, more than"):
        files.parse_csv(text.replace(",", ";"), "t.csv", separator=";")


# ------------------------------------------------------------------------------- formulas


@pytest.mark.parametrize(
    "cell", ["=1+1", "+1", "-1", "@SUM(A1)", "'=1", "''+x", "'quoted", "plain", "=a,b", '="x"', "-"]
)
def test_a_cell_that_a_spreadsheet_would_run_is_written_harmless_and_read_back(tmp_path, cell):
    path = tmp_path / "t.csv"
    files.write_table(path, {"task": [cell, "other"], "x": [-1.5, 2.0]})
    written = path.read_text().splitlines()[1]
    assert not written.lstrip('"').startswith(("=", "+", "-", "@"))
    assert "-1.5" in written  # numbers are no formulas
    raw = files.read_table(path)
    assert list(raw.columns["task"]) == [cell, "other"]
    files.write_table(tmp_path / "t.jsonl", {"task": [cell]})
    assert list(files.read_table(tmp_path / "t.jsonl").columns["task"]) == [cell]


# --------------------------------------------------------------------------------- fronts


def front(**changes):
    text = "<script>alert(1)</script>"
    document = {
        "format": "energylens-front",
        "version": 1,
        "engine": "own",
        "rows": 2,
        "candidates": 1,
        "groups": "llm",
        "folds": 2,
        "samples": 0,
        "seed": 0,
        "choose": ["batch_size"],
        "dataset_digest": "ab12",
        "sources": {},
        "notes": [text],
        "cautions": [],
        "reference": None,
        "points": [
            {
                "size": 1,
                "complexity": 3,
                "criterion": -1.5,
                "in_sample_mape_ratio": 0.1,
                "held_out_mape_ratio": 0.2,
                "held_out_error_ratio": 0.1,
                "top1_ratio": None,
                "regret_mean_ratio": None,
                "knee": True,
                "terms": [
                    {
                        "expression": "decode_flop",
                        "coefficient": 1e-12,
                        "unit": "J/FLOP",
                        "meaning": text,
                        "share_ratio": 1.0,
                        "stability_ratio": None,
                        "stand_ins": {},
                    }
                ],
            }
        ],
    }
    return document | changes


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset_digest": "<script>"},
        {"notes": ["\x1b[31m"]},
        {"engine": "own\x1b]0;title\x07"},
        {"sources": {"a\nb": 1}},
        {"points": [{"knee": True}]},
        {"engine": 3},
    ],
)
def test_a_front_that_was_tampered_with_is_refused(changes):
    assert Front.from_json(front(), "front.json").rows == 2
    with pytest.raises(ArtefactError, match="is not a whole front"):
        Front.from_json(front(**changes), "front.json")


# ------------------------------------------------------------------- files that did harm once

TAKERS = {
    "check": ("check", "F"),
    "audit": ("audit", "F"),
    "explain": ("explain", "F", *CASE),
    "import": ("import", "F", "-o", "o.csv"),
    "import table": ("import", "table", "F", "-o", "o.csv"),
    "import table --guess": ("import", "table", "F", "--guess", "--yes", "--mapping", "m.toml"),
    "import mlenergy-v3": ("import", "mlenergy-v3", "F", "-o", "o.csv"),
    "measure": ("measure", "F", "--dry-run"),
    "meter": ("meter", "read", "--meter", "replay:F"),
    "report --front": ("report", "none.csv", "--front", "F", "-o", "r.html"),
    "llm add": ("llm", "add", "F"),
    "pack": ("pack", "F", "-o", "p.zip"),
    "unpack": ("unpack", "F", "-o", "u.jsonl"),
}


@pytest.mark.parametrize("verb", TAKERS)
def test_what_did_harm_once_is_read_or_refused_in_one_sentence(verb, tmp_path, monkeypatch, capsys):
    if not ATTACK.is_dir():
        pytest.skip(f"no {ATTACK}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ENERGYLENS_HOME", str(tmp_path / "home"))
    for path in sorted(ATTACK.iterdir()):
        words = [word.replace("F", str(path)) if word in ("F", "replay:F") else word
                 for word in TAKERS[verb]]  # fmt: skip
        if verb == "import table --guess":
            words += ["-o", "o.csv"]
            Path("m.toml").unlink(missing_ok=True)
        try:
            code = main(words)
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        said = capsys.readouterr()
        assert code in set(ExitCode), (path.name, said.err)
        assert "\x1b" not in said.out + said.err, path.name
        if code == ExitCode.FAILED:
            assert len(said.err.strip().splitlines()[-1]) > 20
