"""The mapping file of `import table`: which column of a foreign table is which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from energylens.columns import BY_NAME, Column
from energylens.errors import ArtefactError, UnknownNameError
from energylens.importers.collecting import HIGHEST, LOWEST

#: Constants of these columns are known to whoever writes the mapping, not invented.
NAMES = frozenset(("llm", "gpu", "precision", "modality", "task", "engine", "engine_version"))
#: What a row says of itself, not of what was measured.
ABOUT = frozenset(("source", "origin", "assumed", "declared"))

_TABLES = ("file", "where", "columns", "constants", "declared", "names")
_SEPARATORS = {"tab": "\t", "comma": ",", "semicolon": ";", "pipe": "|", "space": " "}


@dataclass(frozen=True, kw_only=True)
class ColumnMap:
    """Where a tidy column comes from.

    One of ``column``, ``root`` (a JMESPath from the root of a JSON document), ``least`` and
    ``most`` (the smallest or largest of several columns) is given.
    """

    column: str | None = None
    root: str | None = None
    least: tuple[str, ...] = ()
    most: tuple[str, ...] = ()
    unit: str | None = None
    scale: float | None = None
    multiply_by: tuple[str, ...] = ()
    divide_by: tuple[str, ...] = ()

    @property
    def plain(self) -> bool:
        """Whether the cell is taken as it stands, its unit apart."""
        return self.scale is None and not self.multiply_by and not self.divide_by

    @property
    def own(self) -> tuple[str, ...]:
        """The columns that the value itself comes from."""
        return (self.column,) if self.column is not None else self.least or self.most

    @property
    def names(self) -> tuple[str, ...]:
        """Everything of a row that it asks for."""
        return self.own + self.multiply_by + self.divide_by


@dataclass(frozen=True, kw_only=True)
class Pivot:
    """A long table, whose column ``names`` says what its column ``values`` holds."""

    names: str
    values: str
    units: str | None = None
    by: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Which rows are kept: those with one of these cells, without one, or between two numbers."""

    keep: tuple[object, ...] = ()
    drop: tuple[object, ...] = ()
    above: float | None = None
    below: float | None = None


@dataclass(frozen=True, kw_only=True)
class FileForm:
    """How the file is written; None where it is told by the file."""

    separator: str | None = None
    decimal: str | None = None
    rows: str | None = None
    pivot: Pivot | None = None


@dataclass(frozen=True, kw_only=True)
class Mapped:
    """A mapping file."""

    columns: Mapping[str, ColumnMap]
    constants: Mapping[str, object] = field(default_factory=dict)
    declared: Mapping[str, object] = field(default_factory=dict)
    names: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    where: Mapping[str, Condition] = field(default_factory=dict)
    form: FileForm = field(default_factory=FileForm)

    @property
    def fixed(self) -> dict[str, object]:
        """What is the same in every row, invented or known."""
        return {**self.constants, **self.declared}

    def updated(
        self,
        declared: Mapping[str, object],
        where: Mapping[str, Condition] | None = None,
        form: FileForm = FileForm(),
    ) -> Mapped:
        """Add what the command line declares, keeps, and says of how the file is written.

        Raises
        ------
        ArtefactError
            If the mapping says where the file states it.
        """
        for name in declared:
            if name in self.columns:
                raise ArtefactError(
                    f"{name} is a column of the file by the mapping: leave "
                    f"--{name.replace('_', '-')} out, or take it out of [columns]."
                )
        constants = {k: v for k, v in self.constants.items() if k not in declared}
        return replace(
            self,
            form=FileForm(
                separator=form.separator or self.form.separator,
                decimal=form.decimal or self.form.decimal,
                rows=self.form.rows,
                pivot=self.form.pivot,
            ),
            constants=constants,
            declared={**self.declared, **declared},
            where={**self.where, **(where or {})},
        )


def parse_mapping(document: Mapping[str, Any], name: str) -> Mapped:
    """Check a mapping and make it a record.

    Raises
    ------
    ArtefactError
        If it has a key that means nothing, or a value of the wrong kind.
    """
    _refuse_unknown("table", document, _TABLES, name)
    parts = {key: document.get(key, {}) for key in _TABLES}
    for key, part in parts.items():
        if not isinstance(part, Mapping):
            raise ArtefactError(f"{name}: [{key}] must be a table.")
        if key not in ("file", "where"):
            _refuse_unknown("column of the tidy table", part, BY_NAME, name)
    columns = {key: _column_map(key, value, name) for key, value in parts["columns"].items()}
    fixed: dict[str, str] = {}
    for table in ("constants", "declared"):
        for key, value in parts[table].items():
            if not isinstance(value, str) and not _is_number(value):
                raise ArtefactError(f"{name}: the constant {key} must be text or a number above 0.")
            if key in columns or key in fixed:
                raise ArtefactError(
                    f"{name}: {key} must be a constant or a column, not both."
                    if key in columns
                    else f"{name}: {key} must be in [constants] or in [declared], not both."
                )
            fixed[key] = table
    for key, value in parts["names"].items():
        if not isinstance(value, Mapping) or not all(isinstance(v, str) for v in value.values()):
            raise ArtefactError(f"{name}: [names.{key}] must give a text for each name.")
    mapped = Mapped(
        columns=columns,
        constants=parts["constants"],
        declared=parts["declared"],
        names=parts["names"],
        where={key: condition(key, value, name) for key, value in parts["where"].items()},
        form=file_form(parts["file"], name),
    )
    _refuse_circles(mapped, name)
    return mapped


def _refuse_circles(mapped: Mapped, name: str) -> None:
    """Refuse columns that multiply or divide by each other without end."""

    def visit(key: str, above: tuple[str, ...]) -> None:
        source = mapped.columns[key]
        for term in source.multiply_by + source.divide_by:
            if term in (*above, key) and term in mapped.columns and term not in source.own:
                raise ArtefactError(f"{name}: {term} is made of itself.")
            if term in mapped.columns:
                visit(term, (*above, key))

    for key in mapped.columns:
        visit(key, ())


def _column_map(key: str, value: object, name: str) -> ColumnMap:
    if isinstance(value, str):
        return ColumnMap(column=value)
    if not isinstance(value, Mapping):
        raise ArtefactError(f"{name}: {key} must be the name of a column, or a table.")
    keys = ("column", "root", "min", "max", "unit", "scale", "multiply_by", "divide_by")
    _refuse_unknown("key", value, keys, f"{name}, {key}")
    ways = [way for way in ("column", "root", "min", "max") if value.get(way) is not None]
    column, root, unit, scale = (value.get(k) for k in ("column", "root", "unit", "scale"))
    least, most, multiply_by, divide_by = (
        _texts(value.get(k), f"{name}: {k} of {key}")
        for k in ("min", "max", "multiply_by", "divide_by")
    )
    if len(ways) != 1 or not isinstance(column, str | None) or not isinstance(root, str | None):
        raise ArtefactError(
            f"{name}: {key} must name a column in column, or several in min or max, or a place of "
            "a JSON document in root; one of these."
        )
    if not isinstance(unit, str | None):
        raise ArtefactError(f'{name}: the unit of {key} must be text, as in "ms".')
    if scale is not None and not _is_number(scale):
        raise ArtefactError(f"{name}: the scale of {key} must be a number above 0, not {scale!r}.")
    made = ColumnMap(
        column=column,
        root=root,
        least=least,
        most=most,
        unit=unit,
        scale=None if scale is None else float(scale),
        multiply_by=multiply_by,
        divide_by=divide_by,
    )
    if not BY_NAME[key].is_number and (not made.plain or unit or least or most):
        raise ArtefactError(f"{name}: {key} is no number, it cannot be scaled or divided.")
    return made


def _texts(value: object, what: str) -> tuple[str, ...]:
    """Read a text or a list of texts."""
    if value is None:
        return ()
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        raise ArtefactError(f"{what} must name a column, or several in a list.")
    return tuple(texts)


def condition(column: str, value: object, name: str) -> Condition:
    """Read what rows must have to be kept.

    Raises
    ------
    ArtefactError
        If it is no cell, list of cells, or table of not, above and below.
    """
    if isinstance(value, Mapping):
        _refuse_unknown("key", value, ("not", "above", "below"), f"{name}, {column}")
        bounds = [value.get(key) for key in ("above", "below")]
        if not all(
            bound is None or (isinstance(bound, int | float) and not isinstance(bound, bool))
            for bound in bounds
        ):
            raise ArtefactError(f"{name}: above and below of {column} must be numbers.")
        return Condition(
            drop=_cells(value["not"], column, name) if "not" in value else (),
            above=bounds[0],
            below=bounds[1],
        )
    return Condition(keep=_cells(value, column, name))


def _cells(value: object, column: str, name: str) -> tuple[object, ...]:
    cells = value if isinstance(value, list) else [value]
    if not cells or not all(isinstance(cell, str | int | float) for cell in cells):
        raise ArtefactError(f"{name}: [where] {column} must be a text or number, or several.")
    return tuple(cells)


def file_form(part: Mapping[str, Any], name: str) -> FileForm:
    """Read how a file is written.

    Raises
    ------
    ArtefactError
        If a key means nothing, or is of the wrong kind.
    """
    _refuse_unknown("key", part, ("separator", "decimal", "rows", "pivot"), f"{name}, [file]")
    separator, decimal, rows = (part.get(key) for key in ("separator", "decimal", "rows"))
    if separator is not None:
        separator = _SEPARATORS.get(separator, separator) if isinstance(separator, str) else ""
        if len(separator) != 1 or separator in '"\r\n':
            raise ArtefactError(f'{name}: separator must be one character, as in ";", or "tab".')
    if decimal not in (None, ".", ","):
        raise ArtefactError(f'{name}: decimal must be "." or ",", not {decimal!r}.')
    if not isinstance(rows, str | None):
        raise ArtefactError(f'{name}: rows must be a JMESPath, as in "results[]".')
    pivot = part.get("pivot")
    if pivot is not None:
        pivot = _pivot(pivot, name)
    return FileForm(separator=separator, decimal=decimal, rows=rows, pivot=pivot)


def _pivot(value: object, name: str) -> Pivot:
    if not isinstance(value, Mapping):
        raise ArtefactError(
            f'{name}: pivot must be a table, as in {{ names = "Metric", values = "Value" }}.'
        )
    _refuse_unknown("key", value, ("names", "values", "units", "by"), f"{name}, pivot")
    texts = [value.get(key) for key in ("names", "values", "units")]
    if not all(isinstance(text, str) for text in texts[:2]) or not isinstance(texts[2], str | None):
        raise ArtefactError(f"{name}: pivot must give the columns names and values.")
    by = _texts(value.get("by"), f"{name}: by of pivot")
    return Pivot(names=str(texts[0]), values=str(texts[1]), units=texts[2], by=by)


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return LOWEST <= value <= HIGHEST


def _refuse_unknown(
    kind: str, given: Mapping[str, Any], known: Mapping[str, Column] | Sequence[str], name: str
) -> None:
    for key in given:
        if key not in known:
            advice = f"There are {', '.join(known)}."
            raise ArtefactError(f"{name}: {UnknownNameError(kind, key, known, advice)}")
