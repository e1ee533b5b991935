"""Tables of others as rows of named cells: any separator, nested JSON, filtered, pivoted."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from energylens import files
from energylens.errors import ArtefactError, MissingExtraError, TableError, UnknownNameError
from energylens.importers import documents, quantities
from energylens.importers.collecting import Unusable
from energylens.importers.mapping import Condition, FileForm, Pivot

#: Suffixes of files that are text whatever their first character.
_TEXT = (".csv", ".tsv", ".tab", ".txt")
_SEPARATORS = (",", ";", "\t", "|")
#: Lines by which a separator is told.
_LOOKED_AT = 200


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A table of somebody else's, as rows of cells by the names they have there.

    Attributes
    ----------
    name : str
        The file, as messages call it.
    columns : tuple of str
        Names of cells that some row has, in the file's order.
    cells : sequence of mapping
        The rows; cells of JSON may be objects and lists.
    places : sequence of str
        Where each row is, as in "line 3".
    root : object
        The whole JSON document; None if the file is no JSON.
    separator : str or None
        What separates the cells of a text file.
    """

    name: str
    columns: tuple[str, ...]
    cells: Sequence[Mapping[str, object]]
    places: Sequence[str]
    root: object = None
    separator: str | None = None
    _found: dict[str, Callable[[object], object]] = field(default_factory=dict, repr=False)

    @property
    def nested(self) -> bool:
        """Whether the file is JSON, whose cells may lie deeper."""
        return self.root is not None

    def cell(self, row: Mapping[str, object], name: str) -> object:
        """Give the cell of a row: by its name, else, in JSON, by its JMESPath."""
        if name in row or not self.nested or name in self.columns:
            return row.get(name)
        if name not in self._found:
            self._found[name] = path_finder(name)
        return self._found[name](row)

    def column(self, name: str) -> list[object]:
        """Give the cells of a column."""
        return [self.cell(row, name) for row in self.cells]

    def require(self, name: str, who: str) -> None:
        """Refuse a name that no row has.

        Raises
        ------
        TableError
            If so.
        """
        if name in self.columns:
            return
        if self.nested and any(self.cell(row, name) is not None for row in self.cells):
            return
        unknown = UnknownNameError("column", name, self.columns)
        raise TableError(f"{who} asks {self.name} for an {unknown}")


def path_finder(path: str) -> Callable[[object], object]:
    """Compile a JMESPath.

    Raises
    ------
    MissingExtraError
        If jmespath is not installed.
    ArtefactError
        If the path is none.
    """
    try:
        import jmespath
        from jmespath.exceptions import JMESPathError
    except ImportError:
        raise MissingExtraError(
            "jmespath", "jmespath", f"reading {path!r} of a JSON file"
        ) from None
    try:
        compiled = jmespath.compile(path)
    except (JMESPathError, RecursionError) as fault:
        said = " ".join(str(fault).split())[:120]
        raise ArtefactError(f"{path[:60]!r} is no JMESPath: {said}") from None

    def find(document: object) -> object:
        try:
            return compiled.search(document)
        except (JMESPathError, RecursionError, TypeError, ValueError) as fault:
            said = " ".join(str(fault).split())[:120]
            raise ArtefactError(f"the JMESPath {path[:60]!r} cannot be followed: {said}") from None

    return find


# ---------------------------------------------------------------------------------- reading


def load(path: str | Path, form: FileForm) -> Rows:
    """Read a file as rows.

    Raises
    ------
    TableError, ArtefactError
        If it cannot be read, or it cannot be told how it is written.
    """
    suffixes = [] if str(path) == "-" else [s.lower() for s in Path(path).suffixes[-2:]]
    if suffixes[-1:] and suffixes[-1] in (".parquet", ".pq"):
        return _of_table(files.read_table(path), None)
    name, data, suffixes = files.read_unzipped(path)
    if data[:4] == b"PAR1":
        return _of_table(files.parse_table(data, name, "parquet"), None)
    if suffixes[-1:] and suffixes[-1] in _TEXT:
        return _of_text(documents.decoded(data, name), name, form)
    document = documents.parse(data, name)
    if document.objects:
        return _of_json(document, name, form)
    return _of_text(document.text, name, form)


def _of_table(raw: files.RawTable, separator: str | None) -> Rows:
    names = tuple(raw.columns)
    return Rows(
        name=raw.name,
        columns=names,
        cells=[
            dict(zip(names, row, strict=True)) for row in zip(*raw.columns.values(), strict=True)
        ],
        places=[f"{raw.place} {line}" for line in raw.lines],
        separator=separator,
    )


def _of_text(text: str, name: str, form: FileForm) -> Rows:
    if form.rows is not None:
        raise ArtefactError(f"{name} is no JSON: leave rows out of [file].")
    if not text.strip():
        raise TableError(f"{name} is empty: a table needs a header and one row or more.")
    separator = form.separator or separator_of(text, name)
    if separator == "|":
        text = _of_markdown(text)
    raw = files.parse_csv(text, name, separator=separator, foreign=True)
    return _of_table(raw, separator)


def _of_markdown(text: str) -> str:
    """Take the frame of a Markdown table away, line by line; other text comes back as it is."""
    lines = text.splitlines()
    if not all(line.strip().startswith("|") for line in lines if line.strip()):
        return text
    bare = [re.sub(r"\s*\|\s*", "|", line.strip().strip("|")).strip() for line in lines]
    return "\n".join("" if re.fullmatch(r"[\s|:-]*", line) else line for line in bare)


def separator_of(text: str, name: str) -> str:
    """Tell what separates the cells: what makes as many in every line, and most of them.

    Raises
    ------
    TableError
        If two do equally well.
    """
    head = "\n".join(text.split("\n", _LOOKED_AT)[:_LOOKED_AT])
    widths: dict[str, int] = {}
    for separator in _SEPARATORS:
        try:
            rows = list(csv.reader(io.StringIO(head, newline=""), delimiter=separator))
        except csv.Error:
            continue
        found = {len(row) for row in rows if row}
        if len(found) == 1 and min(found) > 1:
            widths[separator] = min(found)
    if not widths:  # one column, or ragged: the reader of commas says which line is at fault
        first = head.split("\n", 1)[0]
        most = max(_SEPARATORS, key=first.count)
        return most if first.count(most) else ","
    best = max(widths.values())
    likely = [separator for separator, width in widths.items() if width == best]
    if len(likely) > 1:
        raise TableError(
            f"{name} may be separated by {' or by '.join(map(repr, likely))}: say separator under "
            "[file] of the mapping."
        )
    return likely[0]


def _of_json(document: documents.Document, name: str, form: FileForm) -> Rows:
    root = document.objects[0] if len(document.objects) == 1 else list(document.objects)
    found: object = root
    if form.rows is not None:
        found = path_finder(form.rows)(root)
        if not isinstance(found, list) or not found:
            raise TableError(
                f"{name}: rows = {form.rows!r} gives no list of rows there; it gives "
                f"{_kind(found)}."
            )
    rows: list[Any] = found if isinstance(found, list) else _columnar(found) or [found]
    for place, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            raise TableError(
                f"{name} row {place} must be an object with named cells, not {_kind(row)}: say "
                "where the rows are with rows under [file] of the mapping."
            )
    columns = dict.fromkeys(key for row in rows for key in row)
    return Rows(
        name=name,
        columns=tuple(columns),
        cells=rows,
        places=[f"{'line' if document.lines else 'row'} {i}" for i in range(1, len(rows) + 1)],
        root=root,
    )


def _kind(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "an object"
    return "a list" if isinstance(value, list) else f"{str(value)[:40]!r}"


def _columnar(document: object) -> list[dict[str, object]] | None:
    """Rows of a document of columns, as data frames are written; None if it is none."""
    if not isinstance(document, Mapping) or not document:
        return None
    columns = list(document.values())
    if all(isinstance(c, list) and not any(isinstance(v, dict | list) for v in c) for c in columns):
        if len({len(c) for c in columns}) != 1:
            return None
        return [dict(zip(document, row, strict=True)) for row in zip(*columns, strict=True)]
    if all(isinstance(c, Mapping) and c.keys() == columns[0].keys() for c in columns) and all(
        not isinstance(v, dict | list) for c in columns for v in c.values()
    ):
        if not all(str(key).isdigit() for key in columns[0]):
            return None
        return [{name: c[key] for name, c in document.items()} for key in columns[0]]
    return None


# --------------------------------------------------------------------------------- shaping


def keep(rows: Rows, where: Mapping[str, Condition], decimal: str, who: str) -> Rows:
    """Leave out the rows that a condition does not hold for.

    Raises
    ------
    TableError
        If none is left, or a condition names no column.
    """
    for name, condition in where.items():
        rows.require(name, who)
        kept = [i for i, cell in enumerate(rows.column(name)) if _holds(condition, cell, decimal)]
        if not kept:
            there = sorted({str(cell)[:40] for cell in rows.column(name)})
            more = f" and {len(there) - 12} more" if len(there) > 12 else ""
            raise TableError(
                f"{rows.name}: no row has the {name} that [where] asks for; there are "
                f"{', '.join(there[:12])}{more}."
            )
        rows = _taken(rows, kept)
    return rows


def _taken(rows: Rows, places: Sequence[int]) -> Rows:
    return Rows(
        name=rows.name,
        columns=rows.columns,
        cells=[rows.cells[i] for i in places],
        places=[rows.places[i] for i in places],
        root=rows.root,
        separator=rows.separator,
    )


def _holds(condition: Condition, cell: object, decimal: str) -> bool:
    if condition.keep and not any(_same(cell, wanted, decimal) for wanted in condition.keep):
        return False
    if any(_same(cell, unwanted, decimal) for unwanted in condition.drop):
        return False
    if condition.above is None and condition.below is None:
        return True
    value = _value(cell, decimal)
    if value is None:
        return False
    above, below = condition.above, condition.below
    return (above is None or value > above) and (below is None or value < below)


def _same(cell: object, wanted: object, decimal: str) -> bool:
    text = ("true" if cell else "false") if isinstance(cell, bool) else str(cell or "").strip()
    if isinstance(wanted, bool):
        return text.lower() == str(wanted).lower()
    if isinstance(wanted, str):
        return text == wanted.strip() or (isinstance(cell, int | float) and str(cell) == wanted)
    value = _value(cell, decimal)
    return value is not None and value == wanted


def _value(cell: object, decimal: str) -> float | None:
    try:
        found = quantities.quantity(cell, "cell", decimal)
    except Unusable:
        return None
    return None if found is None else found.value


def pivoted(rows: Rows, pivot: Pivot, who: str) -> Rows:
    """Make one row of the rows of a long table that differ only in what they measure.

    Raises
    ------
    TableError
        If two rows say the same of the same, or a column is missing.
    """
    for name in (pivot.names, pivot.values, *((pivot.units,) if pivot.units else ()), *pivot.by):
        rows.require(name, who)
    used = {pivot.names, pivot.values, pivot.units}
    by = pivot.by or tuple(name for name in rows.columns if name not in used)
    made: dict[tuple[str, ...], dict[str, object]] = {}
    places: dict[tuple[str, ...], str] = {}
    names: dict[str, None] = {}
    for place, row in zip(rows.places, rows.cells, strict=True):
        key = tuple(str(row.get(name)) for name in by)
        cells = made.setdefault(key, {name: row.get(name) for name in by})
        places.setdefault(key, place)
        measured = str(row.get(pivot.names) or "").strip()
        if not measured:
            raise TableError(f"{rows.name} {place}: its {pivot.names} is empty.")
        if measured in cells:
            raise TableError(
                f"{rows.name} {place} gives {measured!r} a second time for the same "
                f"{', '.join(by) or 'table'}: name the columns that tell the rows apart with by "
                "under pivot, or leave one of the two out with [where]."
            )
        value = row.get(pivot.values)
        if pivot.units and value not in (None, ""):
            value = f"{value} {row.get(pivot.units) or ''}".strip()
        cells[measured] = value
        names[measured] = None
    return Rows(
        name=rows.name,
        columns=(*by, *names),
        cells=[dict.fromkeys(names) | cells for cells in made.values()],
        places=list(places.values()),
        root=rows.root,
        separator=rows.separator,
    )


# ----------------------------------------------------------------------------- long tables

_SAYS_WHAT = re.compile(
    r"(measurement_|metric_)?(metrics?|variable|measure(ment)?|quantity|indicator|parameter|"
    r"statistic|attribute|kpi|key|name)"
)
_HOLDS_IT = re.compile(r"values?|val|amount|reading|result|score|measurement|number")
_QUANTITY = re.compile(
    r"energy|joule|power|watt|time|latency|duration|runtime|co2|emission|carbon|throughput|ttft|"
    r"tpot|itl|token|speed|distance|cost|memory|temperature|utili[sz]ation|perplexity|accuracy"
)


def kinds_within(rows: Rows, values: str, known: Sequence[str]) -> tuple[str, list[str]] | None:
    """Tell the column that says what the column ``values`` holds, and the kinds it names.

    None if the table is not long, or rows of one kind are left.
    """
    named_so = _HOLDS_IT.fullmatch(values.strip().lower()) is not None
    for name in rows.columns:
        if name == values or name in known:
            continue
        said = _SAYS_WHAT.fullmatch(name.strip().lower().replace(" ", "_")) is not None
        said = said and (named_so or name.strip().lower() not in ("name", "key"))
        if not (said or named_so):
            continue
        levels = sorted({str(cell).strip() for cell in rows.column(name)})
        if not 2 <= len(levels) <= 200:
            continue
        if said or sum(_QUANTITY.search(one.lower()) is not None for one in levels) >= 2:
            return name, levels
    return None


def each(rows: Rows) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Give each row, and where it is."""
    yield from zip(rows.places, rows.cells, strict=True)


def flat(row: Mapping[str, Any], limit: int = 400) -> dict[str, object]:
    """Give the cells of a row and of the objects within it, by their JMESPaths."""
    found: dict[str, object] = {}
    stack: list[tuple[str, Any]] = [(step(key), value) for key, value in row.items()]
    while stack and len(found) < limit:
        path, value = stack.pop(0)
        if isinstance(value, Mapping):
            stack += [(f"{path}.{step(key)}", inner) for key, inner in value.items()]
        elif not isinstance(value, list):
            found[path] = value
    return found


def step(key: str) -> str:
    """Spell a key as a step of a JMESPath."""
    plain = key.isascii() and key.replace("_", "a").isalnum() and not key[:1].isdigit()
    return key if plain else '"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"'
