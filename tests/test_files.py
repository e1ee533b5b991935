import gzip
import io
import os
import stat
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from energylens import files
from energylens.errors import ArtefactError, MissingExtraError, TableError

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8)
CELLS = st.one_of(
    st.none(), TEXT.filter(bool), st.floats(allow_nan=False, allow_infinity=False), st.integers()
)


def csv(text, name="t.csv"):
    return files.parse_table(text, name, "csv")


def rows_of(raw):
    return list(zip(*raw.columns.values(), strict=True))


# ------------------------------------------------------------------------------------- CSV


def test_plain_csv_gives_columns_of_text_with_line_numbers():
    raw = csv("a,b\n1,2\n3,4\n")
    assert {k: list(v) for k, v in raw.columns.items()} == {"a": ["1", "3"], "b": ["2", "4"]}
    assert list(raw.lines) == [2, 3]
    assert not raw.typed


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_line_end_and_a_byte_order_mark_are_read_alike(end):
    raw = csv("\ufeff" + end.join(["a,b", "1,2", "3,4"]) + end)
    assert rows_of(raw) == [("1", "2"), ("3", "4")]
    assert list(raw.lines) == [2, 3]


def test_a_quoted_line_feed_keeps_later_line_numbers_right():
    raw = csv('a,b\n"x\ny, ""z""",2\n3,4\n')
    assert rows_of(raw) == [('x\ny, "z"', "2"), ("3", "4")]
    assert list(raw.lines) == [2, 4]


def test_blank_lines_are_no_rows_and_do_not_shift_line_numbers():
    raw = csv("\na,b\n1,2\n\n3,4\n\n")
    assert rows_of(raw) == [("1", "2"), ("3", "4")]
    assert list(raw.lines) == [3, 5]


def test_a_header_without_rows_is_a_table_of_no_rows():
    assert len(csv("a,b\n")) == 0
    assert list(csv("a,b").columns) == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        (" \n\n", "empty"),
        ("a,b\n1\n2,3\n4,5,6\n", "line 2 has 1 cells"),
        ("a,b\n1,2\n4,5,6\n7\n", "1 other"),
        ("a,a\n1,2\n", "twice"),
        ("a,\n1,2\n", "column 2 of the header has no name"),
        ("a;b\n1;2\n", "separated by commas"),
        ("a\tb\n1\t2\n", "column 1 must be printable"),
        ('a,"b\nc"\n1,2\n', "column 2 must be printable"),
        ("a," + "b" * 300 + "\n1,2\n", "at most 200"),
        ('a,b\n"1,2\n', "not valid CSV"),
        ('a,b\n"1"x,2\n', "line 2 is not valid CSV"),
        ("a,b\n1,\x00\n", "line 2 holds a NUL"),
        ('a,b\n"' + "x" * 200_000 + '",2\n', "not valid CSV"),
    ],
)
def test_a_malformed_csv_is_refused_with_its_place(text, words):
    with pytest.raises(TableError, match=r"t\.csv") as caught:
        csv(text)
    assert words in str(caught.value)


def test_bytes_that_are_not_utf8_are_refused_with_their_line():
    with pytest.raises(TableError, match="line 2 is not UTF-8"):
        csv(b"a,b\n1,\xff\n")


# ------------------------------------------------------------------------------ JSON Lines


def test_json_lines_give_typed_cells_and_none_where_a_row_lacks_a_key():
    raw = files.parse_table('{"a": 1, "b": "x"}\n\n{"a": 2.5}\n', "t.jsonl", "jsonl")
    assert rows_of(raw) == [(1, "x"), (2.5, None)]
    assert list(raw.lines) == [1, 3]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1}\n[1]\n', "line 2 must be a JSON object"),
        ('{"a": NaN}', "NaN is not a number"),
        ('{"a": -Infinity}', "-Infinity is not a number"),
        ('{"a": 1, "a": 2}', "'a' is given twice"),
        ('{"a": {"b": 1}}', "must be a number, text or null"),
        ('{"a\\n": 1}', "column 1 must be printable"),
        ('{"a": 1', "line 1 is not valid JSON"),
        ('{"a": ' + "9" * 5000 + "}", "not valid JSON"),
        ('{"a":' + "[" * 100_000, "nested too deeply"),
    ],
)
def test_malformed_json_lines_are_refused_with_their_line(text, words):
    with pytest.raises(TableError) as caught:
        files.parse_table(text, "t.jsonl", "jsonl")
    assert words in str(caught.value)


# --------------------------------------------------------------------- files and their names


def test_the_format_is_told_by_the_suffix_gzip_or_not(tmp_path):
    text = b"a,b\n1,2\n"
    (tmp_path / "t.csv").write_bytes(text)
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(text))
    (tmp_path / "bare").write_bytes(b'{"a": "1", "b": "2"}\n')
    for name in ("t.csv", "t.csv.gz", "bare"):
        assert rows_of(files.read_table(tmp_path / name)) == [("1", "2")]


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("t.xlsx", b"PK", "must end in"),
        ("t.csv.gz", b"a,b\n1,2\n", "not a gzip file"),
        ("t.csv.gz", gzip.compress(b"a,b\n1,2\n", mtime=0)[:-9], "damaged gzip"),
        ("t.parquet", b"PAR1 nothing", "cannot be read as Parquet"),
    ],
)
def test_a_file_of_another_kind_is_refused_by_name(tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(TableError, match=words):
        files.read_table(tmp_path / name)


@pytest.mark.parametrize("path", ["missing.csv", ".", "\0.csv"])
def test_a_path_that_cannot_be_read_is_one_clear_error(tmp_path, path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TableError, match="cannot be read"):
        files.read_table(path)


@pytest.mark.parametrize("data", [b"a,b\n1,2\n", b'{"a": "1", "b": "2"}\n'])
def test_standard_input_is_recognised_by_what_it_holds(monkeypatch, data):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    raw = files.read_table("-")
    assert rows_of(raw) == [("1", "2")]
    assert raw.name == "standard input"


def test_standard_output_gets_csv(capfdbinary):
    files.write_table("-", {"a": [1.0, None], "b": ["x", "y"]})
    assert capfdbinary.readouterr().out == b"a,b\n1,x\n,y\n"


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=5))
def test_json_lines_read_back_exactly_what_was_written(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("t") / "t.jsonl"
    columns = {"a": [r[0] for r in rows], "b": [r[1] for r in rows], "c": ["c"] * len(rows)}
    files.write_table(path, columns)
    raw = files.read_table(path)
    for name, cells in columns.items():
        assert list(raw.columns.get(name, [None] * len(rows))) == cells


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1),
    texts=st.data(),
)
def test_csv_reads_back_every_float_bit_for_bit_and_every_text(tmp_path_factory, values, texts):
    path = tmp_path_factory.mktemp("t") / "t.csv"
    names = texts.draw(st.lists(TEXT, min_size=len(values), max_size=len(values)))
    files.write_table(path, {"a": values, "b": names})
    raw = files.read_table(path)
    assert [float(cell) for cell in raw.columns["a"]] == values
    assert list(raw.columns["b"]) == names


def test_parquet_reads_back_what_was_written(tmp_path):
    pytest.importorskip("pyarrow")
    columns = {"a": [1.5, None], "b": ["x", "y"], "c": [None, None], "d": [1, 2]}
    files.write_table(tmp_path / "t.parquet", columns)
    raw = files.read_table(tmp_path / "t.parquet")
    assert {k: list(v) for k, v in raw.columns.items()} == columns
    assert (list(raw.lines), raw.place) == ([1, 2], "row")


def test_without_pyarrow_parquet_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"energylens\[parquet\]"):
        files.write_table(tmp_path / "t.parquet", {"a": [1]})


# ------------------------------------------------------------------------------ safe writing


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_number_that_is_not_finite_is_never_written(tmp_path, suffix):
    path = tmp_path / f"t.{suffix}"
    path.write_text("kept")
    with pytest.raises(TableError):
        files.write_table(path, {"a": [1.0, float("nan")]})
    assert path.read_text() == "kept"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "m.json"
    files.write_json(path, {"a": 1})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ArtefactError, match="No space left"):
        files.write_json(path, {"a": 2})
    monkeypatch.undo()
    assert files.read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["m.json"]


def test_writing_keeps_the_mode_of_the_file_and_follows_a_link(tmp_path):
    real, link = tmp_path / "real.json", tmp_path / "link.json"
    real.write_text("{}")
    real.chmod(0o640)
    link.symlink_to(real)
    files.write_json(link, {"a": 1})
    assert link.is_symlink()
    assert files.read_json(real) == {"a": 1}
    assert stat.S_IMODE(real.stat().st_mode) == 0o640


def test_a_device_is_written_to_and_a_folder_is_not(tmp_path):
    files.write_text("/dev/null", "x")
    with pytest.raises(ArtefactError, match="cannot be written"):
        files.write_text(tmp_path, "x")
    with pytest.raises(ArtefactError, match="cannot be written"):
        files.write_text(tmp_path / "no" / "such" / "folder.txt", "x")


# ------------------------------------------------------------------------------------- JSON


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("{", "m.json is not valid JSON"),
        ('{\n"a": 1,\n}', "line 3"),
        ('{"a": 1, "a": 1}', "twice"),
        ('{"a": Infinity}', "Infinity is not a number"),
        ('{"a": 1e999}', "too large"),
        ('{"a": "\\ud800"}', "no Unicode"),
        ("[" * 70 + "]" * 70, "nested too deeply"),
        ("[" * 100_000, "nested too deeply"),
        ("1" * 5000, "not valid JSON"),
    ],
)
def test_a_damaged_json_document_is_refused_in_words(text, words):
    with pytest.raises(ArtefactError) as caught:
        files.parse_json(text, "m.json")
    assert words in str(caught.value)


@pytest.mark.parametrize("document", [{"a": float("nan")}, {"a": object()}, {"a": "\ud800"}])
def test_what_is_no_json_is_not_written(tmp_path, document):
    with pytest.raises(ArtefactError):
        files.write_json(tmp_path / "m.json", document)
    assert [p.name for p in tmp_path.iterdir()] == []


@settings(max_examples=40, deadline=None)
@given(
    document=st.recursive(
        st.one_of(
            st.none(),
            st.booleans(),
            st.integers(),
            st.floats(allow_nan=False, allow_infinity=False),
            st.text(st.characters(exclude_categories=["Cs"])),
        ),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(
                st.text(st.characters(exclude_categories=["Cs"]), max_size=4), inner, max_size=3
            ),
        ),
        max_leaves=8,
    )
)
def test_json_reads_back_exactly_what_was_written(tmp_path_factory, document):
    path = tmp_path_factory.mktemp("t") / "m.json"
    files.write_json(path, document)
    assert files.read_json(path) == document


def test_a_sweep_appends_lines_that_survive_a_torn_end(tmp_path):
    path = tmp_path / "sweep.jsonl"
    files.append_json_line(path, {"n": 1})
    files.append_json_line(path, {"n": 2})
    with path.open("ab") as file:
        file.write(b'{"n": 3, "half')
    assert files.read_json_lines(path, allow_torn_end=True) == [{"n": 1}, {"n": 2}]
    with pytest.raises(ArtefactError, match="line 3"):
        files.read_json_lines(path)
    files.append_json_line(path, {"n": 4})
    assert files.read_json_lines(path) == [{"n": 1}, {"n": 2}, {"n": 4}]


def test_a_whole_last_line_without_its_line_feed_is_kept(tmp_path):
    path = tmp_path / "sweep.jsonl"
    path.write_text('{"n": 1}')
    files.append_json_line(path, {"n": 2})
    assert files.read_json_lines(path) == [{"n": 1}, {"n": 2}]


def test_appending_refuses_a_file_of_another_kind_and_leaves_it_alone(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("my notes")
    with pytest.raises(ArtefactError, match="another kind"):
        files.append_json_line(path, {"n": 1})
    assert path.read_text() == "my notes"


def test_a_line_torn_in_the_middle_of_a_file_is_never_passed_over(tmp_path):
    path = tmp_path / "sweep.jsonl"
    path.write_text('{"n": 1}\n{"n": \n{"n": 3}\n')
    with pytest.raises(ArtefactError, match="line 2"):
        files.read_json_lines(path, allow_torn_end=True)


def test_toml_is_read_and_what_is_none_is_refused(tmp_path):
    path = tmp_path / "m.toml"
    path.write_text('a = 1\n[b]\nc = "x"\n')
    assert files.read_toml(path) == {"a": 1, "b": {"c": "x"}}
    path.write_text("a = \n")
    with pytest.raises(ArtefactError, match="not valid TOML"):
        files.read_toml(path)


def test_cells_of_lists_and_whole_numbers_beyond_use_are_refused(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"llm": [["a", "b"], []]}), tmp_path / "nested.parquet")
    with pytest.raises(TableError, match="column 'llm' holds list"):
        files.read_table(tmp_path / "nested.parquet")
    (tmp_path / "long.json").write_text('{"seed": ' + "9" * 400 + "}")
    with pytest.raises(ArtefactError, match="too large"):
        files.read_json(tmp_path / "long.json")


def test_a_locale_without_the_letters_shows_them_escaped(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "energylens", "check", "µ.csv"],
        capture_output=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
    )
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
