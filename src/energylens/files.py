"""The only reader and writer of files: CSV, JSON Lines, Parquet, JSON, TOML.

Nothing here knows what a file means. Files are written whole or not at all; what is read is
refused, with its path and line, wherever it is not exactly what its format says. ``-`` is
standard input or output.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from energylens import streams
from energylens.errors import (
    ArtefactError,
    EnergyLensError,
    InputError,
    MissingExtraError,
    TableError,
)

#: Guards against files that would exhaust memory or the stack rather than mean anything.
MAX_JSON_BYTES = 256 << 20
MAX_CELLS = 40_000_000  # of a table: some gigabytes in memory
MAX_INTEGER_BITS = 1024  # as large as a float can be
MAX_JSON_DEPTH = 64
MAX_NAME_CHARACTERS = 200

_FORMATS = {
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class RawTable:
    """A table as its file holds it: cells are text, numbers, booleans or None.

    Attributes
    ----------
    name : str
        The file, as messages call it.
    columns : mapping of str to sequence
        Cells by column, in the file's order; every column has one cell for each row. A cell
        that a JSON Lines row does not have is None.
    lines : sequence of int
        Where each row begins, counted from 1.
    place : str
        What ``lines`` counts: "line", or "row" in a Parquet file.
    typed : bool
        Whether cells are of several types; False where all are text, as in CSV.
    """

    name: str
    columns: Mapping[str, Sequence[object]]
    lines: Sequence[int]
    place: str = "line"
    typed: bool = True

    def __len__(self) -> int:
        return len(self.lines)


# ---------------------------------------------------------------------------------- tables


def read_table(path: str | Path) -> RawTable:
    """Read a table.

    Parameters
    ----------
    path : str or Path
        A ``.csv``, ``.jsonl`` (``.ndjson``) or ``.parquet`` (``.pq``) file, the first two also
        with ``.gz``. ``-`` (standard input) and names without a suffix are recognised by what
        they hold.

    Raises
    ------
    TableError
        If the file cannot be read, or is not a well-formed table.
    MissingExtraError
        If it is Parquet and pyarrow is not installed.
    """
    name, data, suffixes = read_unzipped(path)
    form = _FORMATS.get(suffixes[-1]) if suffixes else None
    if form is None and suffixes:
        raise TableError(
            f"{name}: the format of a table is told by its name, which must end in "
            f"{', '.join(_FORMATS)} (.gz may follow). Rename or convert it."
        )
    return parse_table(data, name, form)


def read_unzipped(path: str | Path) -> tuple[str, bytes, list[str]]:
    """Read a file that may be gzipped.

    Returns
    -------
    tuple of str, bytes and list of str
        What messages call it, what it holds, and the last suffixes of its name, less ``.gz``.

    Raises
    ------
    TableError
        If it cannot be read, is too large, or is a damaged gzip file.
    """
    name, data = (
        streams.name_of(path, "standard input"),
        streams.read(path, streams.MAX_TABLE_BYTES, TableError),
    )
    suffixes = [] if str(path) == "-" else [s.lower() for s in Path(path).suffixes[-2:]]
    if data[:2] == b"\x1f\x8b":
        data = streams.gunzip(data, name)
        suffixes = [s for s in suffixes if s != ".gz"]
    elif suffixes[-1:] == [".gz"]:
        raise TableError(f"{name} is named .gz but is not a gzip file: rename it.")
    return name, data, suffixes


def read_rows(path: str | Path) -> list[dict[str, str]]:
    """Read a small CSV file of another tool's: a mapping for each line, by column.

    Raises
    ------
    TableError
        If it cannot be read, or is no well-formed CSV.
    """
    name, data, _ = read_unzipped(path)
    table = parse_csv(streams.decode(data, name, TableError), name, foreign=True)
    columns = table.columns.values()
    return [
        dict(zip(table.columns, map(str, cells), strict=True))
        for cells in zip(*columns, strict=True)
    ]


def parse_table(data: bytes | str, name: str, form: str | None = None) -> RawTable:
    """Read a table from memory.

    Parameters
    ----------
    data : bytes or str
        What the file holds.
    name : str
        What messages call it.
    form : str, optional
        "csv", "jsonl" or "parquet"; recognised by content if not given.

    Raises
    ------
    TableError
        If it is not a well-formed table.
    """
    if isinstance(data, str):
        data = data.encode("utf-8", errors="surrogatepass")
    if form == "parquet" or (form is None and data[:4] == b"PAR1"):
        return _parse_parquet(data, name)
    text = streams.decode(data, name, TableError)
    if not text.strip():
        raise TableError(f"{name} is empty: a table needs a header and one row or more.")
    if form is None:
        form = "jsonl" if text.lstrip()[0] == "{" else "csv"
    return _parse_csv(text, name) if form == "csv" else _parse_json_lines(text, name)


def _parse_csv(text: str, name: str) -> RawTable:
    _refuse_many_cells(text.count(",") + text.count("\n"), name)
    plain = None if '"' in text else _split_plain_csv(text)
    if plain is None:
        return parse_csv(text, name)
    header, columns, rows = plain
    _check_header(header, f"{name} line 1")
    return RawTable(
        name=name,
        columns={
            column: list(map(_without_guard, cells)) if _guarded(cells) else cells
            for column, cells in zip(header, columns, strict=True)
        },
        lines=range(2, rows + 2),
        typed=False,
    )


def _refuse_many_cells(cells: int, name: str) -> None:
    """Refuse a table before it is taken apart, for its cells take many times its bytes."""
    if cells > MAX_CELLS:
        raise TableError(
            f"{name} has about {cells:,} cells, more than the {MAX_CELLS:,} that a table may have: "
            "split it."
        )


def _split_plain_csv(text: str) -> tuple[list[str], list[list[str]], int] | None:
    """Split CSV that has no quotes, blank or ragged lines several times faster than row by row.

    None if it has any of them.
    """
    text = text.replace("\r\n", "\n").removesuffix("\n")
    lines = text.split("\n")
    commas = lines[0].count(",")
    if "\r" in text or not all(lines) or any(line.count(",") != commas for line in lines):
        return None
    cells = text.replace("\n", ",").split(",")
    width = commas + 1
    header = [_without_guard(cell.strip()) for cell in cells[:width]]
    return header, [cells[width + i :: width] for i in range(width)], len(lines) - 1


def parse_csv(text: str, name: str, *, separator: str = ",", foreign: bool = False) -> RawTable:
    """Read text whose cells are separated by a character and may be quoted.

    Parameters
    ----------
    text : str
        The whole file.
    name : str
        What messages call it.
    separator : str
        One character.
    foreign : bool
        Call a column without a name, as an index that was written along, by its place, and pass
        over blanks that follow a separator.

    Raises
    ------
    TableError
        If it is not well-formed, or has more cells than a table may have.
    """
    _refuse_many_cells(text.count(separator) + text.count("\n"), name)
    reader = csv.reader(
        io.StringIO(text, newline=""),
        strict=True,
        delimiter=separator,
        skipinitialspace=foreign,
    )
    lines: list[int] = []
    rows: list[list[str]] = []
    begin = 1
    try:
        for row in reader:
            if row:  # blank lines are not rows
                rows.append(row)
                lines.append(begin)
            begin = reader.line_num + 1
    except csv.Error as error:
        raise TableError(f"{name} line {begin} is not valid CSV: {error}.") from None
    if not rows:
        raise TableError(f"{name} is empty: a table needs a header and one row or more.")
    header = [_without_guard(cell.strip()) for cell in rows.pop(0)]
    if foreign:
        header = [cell or f"column {place}" for place, cell in enumerate(header, 1)]
    _check_header(header, f"{name} line {lines.pop(0)}")
    width = len(header)
    ragged = [i for i, row in enumerate(rows) if len(row) != width]
    if ragged:
        first, others = ragged[0], len(ragged) - 1
        rest = f" {others} other rows are ragged too." if others else ""
        raise TableError(
            f"{name} line {lines[first]} has {len(rows[first])} cells, but the header has "
            f"{width}: every row must have as many.{rest}"
        )
    cells: Iterable[Sequence[str]] = zip(*rows, strict=True) if rows else ((),) * width
    columns = {
        column: list(map(_without_guard, values)) if _guarded(values) else values
        for column, values in zip(header, cells, strict=True)
    }
    return RawTable(name=name, columns=columns, lines=lines, typed=False)


#: A spreadsheet takes a cell that begins so for a formula, unless an apostrophe stands before it.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def _guarded(cells: Iterable[str]) -> bool:
    return any(cell[:1] == "'" for cell in cells)


def _without_guard(cell: str) -> str:
    """Take the apostrophe off again that `_with_guard` puts before a cell."""
    bare = cell.lstrip("'")
    return cell[1:] if len(bare) < len(cell) and bare.startswith(_FORMULA) else cell


def _with_guard(text: str) -> str:
    """Put an apostrophe before text that a spreadsheet would run as a formula."""
    return f"'{text}" if text.lstrip("'").startswith(_FORMULA) else text


def _check_header(header: Sequence[str], where: str) -> None:
    seen: set[str] = set()
    for number, column in enumerate(header, 1):
        if not column:
            raise TableError(f"{where}: column {number} of the header has no name.")
        if not column.isprintable() or len(column) > MAX_NAME_CHARACTERS:
            raise TableError(
                f"{where}: the name of column {number} must be printable text of at most "
                f"{MAX_NAME_CHARACTERS} characters, not {column[:40]!r}."
            )
        if column in seen:
            raise TableError(f"{where}: the column {column!r} is in the header twice.")
        seen.add(column)
    if len(header) == 1 and any(mark in header[0] for mark in ";|"):
        raise TableError(
            f"{where}: the columns must be separated by commas. A table written another way is "
            "read by energylens import table --guess."
        )


def _parse_json_lines(text: str, name: str) -> RawTable:
    rows: list[dict[str, object]] = []
    lines: list[int] = []
    columns: dict[str, None] = {}
    # Only a line feed ends a line: the others that str.splitlines knows may stand in a string.
    for number, line in enumerate(text.split("\n"), 1):
        if not line or line.isspace():
            continue
        row = _load_json(line, f"{name} line {number}", TableError, _DECODER)
        if not isinstance(row, dict):
            raise TableError(f"{name} line {number} must be a JSON object, one for each row.")
        for column, cell in row.items():
            if isinstance(cell, dict | list):
                raise TableError(
                    f"{name} line {number}: {column!r} must be a number, text or null."
                )
        columns.update(dict.fromkeys(row))
        rows.append(row)
        lines.append(number)
    _check_header(list(columns), name)
    _refuse_many_cells(len(columns) * len(rows), name)
    return RawTable(
        name=name,
        columns={column: [row.get(column) for row in rows] for column in columns},
        lines=lines,
    )


def _parse_parquet(data: bytes, name: str) -> RawTable:
    arrow, parquet = _pyarrow("reading a Parquet file")
    try:
        file = parquet.ParquetFile(arrow.BufferReader(data))
        schema, shape = file.schema_arrow, file.metadata
        names = [str(column) for column in schema.names]
        _check_header(names, name)
        for field in schema:
            if arrow.types.is_nested(field.type):
                raise TableError(
                    f"{name}: the column {field.name!r} holds {field.type}, where each cell must "
                    "be one number or text; write its parts as columns of their own."
                )
        if shape.num_rows * len(names) > MAX_CELLS:  # a small file may unfold to any size
            raise TableError(
                f"{name}: {shape.num_rows:,} rows of {len(names)} columns are more than the "
                f"{MAX_CELLS:,} cells that a table may have; split it."
            )
        table = file.read()
        columns = {column: table.column(i).to_pylist() for i, column in enumerate(names)}
    except EnergyLensError:
        raise
    except Exception as error:  # pyarrow raises its own, built-in and C++ ones alike
        raise TableError(f"{name} cannot be read as Parquet: {streams.one_line(error)}") from None
    return RawTable(name=name, columns=columns, lines=range(1, table.num_rows + 1), place="row")


def write_table(path: str | Path, columns: Mapping[str, Sequence[object]]) -> None:
    """Write a table, whole or not at all.

    Parameters
    ----------
    path : str or Path
        ``.csv``, ``.jsonl`` (``.ndjson``) or ``.parquet`` (``.pq``), the first two also with
        ``.gz``; ``-`` writes CSV to standard output.
    columns : mapping of str to sequence
        Cells by column: text, finite numbers, or None for an empty one.

    Raises
    ------
    TableError
        If the name says no format, a number is not finite, or the file cannot be written.
    """
    name = streams.name_of(path, "standard output")
    suffixes = [".csv"] if str(path) == "-" else [s.lower() for s in Path(path).suffixes[-2:]]
    zipped = suffixes[-1:] == [".gz"]
    form = _FORMATS.get("".join(suffixes[:-1] if zipped else suffixes[-1:]))
    if form is None or (zipped and form == "parquet"):
        raise TableError(
            f"{name}: the format of a table is told by its name, which must end in "
            f"{', '.join(_FORMATS)} (.gz may follow the first three)."
        )
    if form == "parquet":
        data = _format_parquet(columns, name)
    else:
        text = _format_csv(columns, name) if form == "csv" else _format_json_lines(columns, name)
        data = streams.encode(text, name, TableError)
    if zipped:
        import gzip

        data = gzip.compress(data, mtime=0)
    streams.write(path, data, TableError)


def _cells(column: Sequence[object], name: str) -> list[str]:
    def cell(value: object) -> str:
        if value is None:
            return ""
        if isinstance(value, float):
            if not math.isfinite(value):
                raise TableError(
                    f"{name}: a table cannot hold {value!r}; None marks an empty cell."
                )
            return repr(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
        return _with_guard(value) if isinstance(value, str) else str(value)

    return list(map(cell, column))


def _format_csv(columns: Mapping[str, Sequence[object]], name: str) -> str:
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(map(_with_guard, columns))
    writer.writerows(zip(*(_cells(column, name) for column in columns.values()), strict=True))
    return out.getvalue()


def _format_json_lines(columns: Mapping[str, Sequence[object]], name: str) -> str:
    lines = []
    for row in zip(*columns.values(), strict=True):
        known = {key: cell for key, cell in zip(columns, row, strict=True) if cell is not None}
        lines.append(_format_json(known, name, TableError))
    return "".join(line + "\n" for line in lines)


def _format_parquet(columns: Mapping[str, Sequence[object]], name: str) -> bytes:
    arrow, parquet = _pyarrow("writing a Parquet file")
    sink = io.BytesIO()
    try:
        table = arrow.table({key: arrow.array(list(cells)) for key, cells in columns.items()})
        parquet.write_table(table, sink)
    except Exception as error:  # as above
        raise TableError(
            f"{name} cannot be written as Parquet: {streams.one_line(error)}"
        ) from None
    return sink.getvalue()


def _pyarrow(purpose: str) -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "parquet", purpose) from None
    return pyarrow, pyarrow.parquet


# ------------------------------------------------------------------------------ JSON, TOML


def read_json(path: str | Path, *, infinite: bool = False) -> Any:
    """Read one JSON document, strictly.

    Parameters
    ----------
    infinite : bool
        Take ``Infinity`` and ``NaN``, as Python writes them into files of others: as text.

    Raises
    ------
    ArtefactError
        If it cannot be read, is not JSON, has NaN or Infinity, a key twice, text that is no
        Unicode, or is too deep or too large to be one of ours.
    """
    name = streams.name_of(path, "standard input")
    data = streams.read(path, MAX_JSON_BYTES, ArtefactError)
    return parse_json(data, name, infinite=infinite)


def parse_json(data: bytes | str, name: str, *, infinite: bool = False) -> Any:
    """Read one JSON document from memory, as strictly as `read_json`.

    Raises
    ------
    ArtefactError
        As `read_json`.
    """
    text = streams.decode(data, name, ArtefactError) if isinstance(data, bytes) else data
    if not text.strip():
        raise ArtefactError(f"{name} is empty: it must hold a JSON document.")
    return _parse_json(text, name, ArtefactError, _LENIENT if infinite else _DECODER)


def write_json(path: str | Path, document: Any) -> None:
    """Write one JSON document, indented, whole or not at all.

    Raises
    ------
    ArtefactError
        If the document has a number that is not finite or something JSON has no word for, or
        the file cannot be written.
    """
    name = streams.name_of(path, "standard output")
    text = _format_json(document, name, ArtefactError, indent=2) + "\n"
    streams.write(path, streams.encode(text, name, ArtefactError), ArtefactError)


def read_json_lines(path: str | Path, *, allow_torn_end: bool = False) -> list[Any]:
    """Read a file of one JSON document a line.

    Parameters
    ----------
    path : str or Path
        The file; blank lines are passed over.
    allow_torn_end : bool
        Pass over a last line without its line feed that is not a whole document, as a process
        that was killed while it wrote leaves one.

    Raises
    ------
    ArtefactError
        If the file cannot be read, or a line is not one strict JSON document.
    """
    name = streams.name_of(path, "standard input")
    data = streams.read(path, streams.MAX_TABLE_BYTES, ArtefactError)
    whole, _, end = data.rpartition(b"\n")
    documents = [
        _parse_json(line, f"{name} line {number}", ArtefactError)
        for number, line in enumerate(streams.decode(whole, name, ArtefactError).split("\n"), 1)
        if line and not line.isspace()
    ]
    if end.strip():
        last = data.count(b"\n") + 1
        try:
            text = streams.decode(end, name, ArtefactError)
            documents.append(_parse_json(text, f"{name} line {last}", ArtefactError))
        except ArtefactError:
            if not allow_torn_end:
                raise
    return documents


def append_json_line(path: str | Path, document: Any) -> None:
    """Add one document to a file of JSON Lines; when this returns, it is on the disk.

    A last line that a killed process left torn is cut off first, so that the file stays one
    document a line.

    Raises
    ------
    ArtefactError
        If the document is not JSON, the file ends in something that never was, or it cannot
        be written.
    """
    name = str(path)
    line = streams.encode(_format_json(document, name, ArtefactError) + "\n", name, ArtefactError)
    try:
        with open(path, "a+b") as file:  # noqa: PTH123 - a path may be a plain string
            _mend_end(file, name)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ArtefactError(f"{name} cannot be written: {streams.reason(error)}.") from None


def _mend_end(file: io.BufferedRandom, name: str) -> None:
    """Leave the file empty or ending in a line feed."""
    size = file.seek(0, os.SEEK_END)
    if not size:
        return
    file.seek(-1, os.SEEK_END)
    if file.read(1) == b"\n":
        return
    begin, end = size, b""
    while begin and b"\n" not in end:
        begin = max(0, begin - (1 << 16))
        file.seek(begin)
        end = file.read(size - begin)
    last = end.rpartition(b"\n")[2]
    try:
        json.loads(last)
    except (ValueError, RecursionError):
        if not last.lstrip().startswith(b"{"):
            raise ArtefactError(
                f"{name} does not end in a line of JSON: it is another kind of file. "
                "Give a new name."
            ) from None
        file.truncate(size - len(last))
    else:
        file.write(b"\n")


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises
    ------
    ArtefactError
        If it cannot be read or is not TOML.
    """
    import tomllib

    name, text = streams.name_of(path, "standard input"), read_text(path)
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"{name} is not valid TOML: {streams.one_line(error)}") from None


def read_text(path: str | Path) -> str:
    """Read UTF-8 text.

    Raises
    ------
    ArtefactError
        If the file cannot be read, or is no text.
    """
    name = streams.name_of(path, "standard input")
    return streams.decode(streams.read(path, MAX_JSON_BYTES, ArtefactError), name, ArtefactError)


def write_text(path: str | Path, text: str) -> None:
    """Write text as UTF-8, whole or not at all.

    Raises
    ------
    ArtefactError
        If the text is no Unicode, or the file cannot be written.
    """
    streams.write(path, streams.encode(text, str(path), ArtefactError), ArtefactError)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write bytes, whole or not at all.

    Raises
    ------
    ArtefactError
        If the file cannot be written.
    """
    streams.write(path, data, ArtefactError)


def _parse_json(
    text: str, where: str, error: type[InputError], decoder: json.JSONDecoder | None = None
) -> Any:
    document = _load_json(text, where, error, decoder or _DECODER)
    _check_json(document, where, error)
    return document


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a number that JSON has; leave unknown values out")


def _refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key[:40]!r} is given twice")
            seen.add(key)
    return document


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_refuse_repeats)
_LENIENT = json.JSONDecoder(parse_constant=str, object_pairs_hook=_refuse_repeats)


def _load_json(text: str, where: str, error: type[InputError], decoder: json.JSONDecoder) -> Any:
    try:
        return decoder.decode(text)
    except json.JSONDecodeError as fault:
        at = f"line {fault.lineno} " if "\n" in text.strip() else ""
        raise error(f"{where} is not valid JSON: {at}column {fault.colno}: {fault.msg}.") from None
    except RecursionError:
        raise error(f"{where} is nested too deeply to be a file of ours.") from None
    except ValueError as fault:  # the two above, and integers of more digits than Python takes
        raise error(f"{where} is not valid JSON: {streams.one_line(fault)}.") from None


def _check_json(document: Any, where: str, error: type[InputError]) -> None:
    """Refuse what the JSON grammar lets through: depth, numbers and text beyond use."""
    level: list[Any] = [document]
    for _ in range(MAX_JSON_DEPTH):
        following: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                following += item
                following += item.values()
            elif isinstance(item, list):
                following += item
            elif isinstance(item, str):
                if not item.isascii():
                    streams.encode(item, where, error)
            elif isinstance(item, float) and not math.isfinite(item):
                raise error(f"{where}: a number is too large.")
            elif isinstance(item, int) and item.bit_length() > MAX_INTEGER_BITS:
                raise error(f"{where}: a whole number is too large.")
        if not following:
            return
        level = following
    raise error(f"{where} is nested too deeply to be a file of ours.")


def _format_json(
    document: Any, name: str, error: type[InputError], indent: int | None = None
) -> str:
    try:
        return json.dumps(document, allow_nan=False, indent=indent, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as fault:
        raise error(f"{name} cannot be written as JSON: {streams.one_line(fault)}") from None
