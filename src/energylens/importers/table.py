"""Any table, by a mapping file that says which of its columns is which.

The mapping is TOML::

    [constants]                          # the same in every row
    gpu = "H100"
    source = "published"

    [columns]                            # tidy column = column of the file
    llm = "model"
    output_tokens = "generated"
    batch_size = "concurrency"
    energy_per_request_j = { column = "energy_wh", scale = 3600, divide_by = "requests" }

    [names.llm]                          # what a cell says = what the catalog calls it
    "llama 70b" = "meta-llama/Llama-3.1-70B-Instruct"

``scale`` multiplies (a unit conversion), ``divide_by`` divides by another column of the file. A
table whose columns are those of the tidy table already needs no mapping.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from energylens import files, table
from energylens.columns import COLUMNS, Column
from energylens.errors import ArtefactError, TableError, UnknownNameError
from energylens.importers.collecting import (
    HIGHEST,
    LOWEST,
    Collector,
    Fields,
    Imported,
    refuse_idle_assumptions,
)

_TIDY: Mapping[str, Column] = {column.name: column for column in COLUMNS}


@dataclass(frozen=True, kw_only=True)
class ColumnMap:
    """Where a tidy column comes from."""

    column: str
    scale: float | None = None
    divide_by: str | None = None


@dataclass(frozen=True, kw_only=True)
class Mapped:
    """A mapping file."""

    columns: Mapping[str, ColumnMap]
    constants: Mapping[str, object]
    names: Mapping[str, Mapping[str, str]]


def read(
    path: str | Path,
    *,
    assume_input_tokens: Mapping[str, float],
    assume_vision_tokens: Mapping[str, float],
    mapping: str | Path | None = None,
) -> Imported:
    """Read a table through a mapping.

    Parameters
    ----------
    path : str or Path
        CSV, JSON Lines or Parquet.
    assume_input_tokens : mapping of str to float
        Text tokens of a prompt by task, for rows whose ``input_tokens`` is not known.
    assume_vision_tokens : mapping of str to float
        Vision tokens of a request by task, for rows whose ``vision_tokens`` is not known.
    mapping : str or Path, optional
        The mapping file; if not given, ``FILE.toml`` beside the table. With neither, columns
        are what they are called.

    Returns
    -------
    Imported

    Raises
    ------
    ArtefactError
        If the mapping cannot be read, or names something that is no column of the tidy table; if
        there is none, and the table has other columns than that.
    TableError
        If the table cannot be read, or lacks a column that the mapping names.
    InputError
        If no row can be used.
    UsageError
        If an assumption is made for a task that no row has.
    """
    if mapping is None and (beside := Path(path).with_suffix(".toml")).exists():
        mapping = beside
    if mapping is not None:
        plan = parse_mapping(files.read_toml(mapping), str(mapping))
        raw = files.read_table(path)
    else:
        raw = files.read_table(path)
        plan = _as_called(raw, path)
    for source in plan.columns.values():
        for name in (source.column, source.divide_by):
            if name is not None and name not in raw.columns:
                unknown = UnknownNameError("column", name, raw.columns)
                raise TableError(f"{mapping} asks {raw.name} for an {unknown}")
    rows = Collector(raw.name)
    tasks: set[str] = set()
    for where, row in Fields.of_rows(raw):
        with rows.row(where):
            cells = _cells(row, plan)
            tasks.add(str(cells.get("task") or ""))
            rows.add(where, _assume(cells, assume_input_tokens, assume_vision_tokens))
    refuse_idle_assumptions("--assume-input-tokens", assume_input_tokens, sorted(tasks))
    refuse_idle_assumptions("--assume-vision-tokens", assume_vision_tokens, sorted(tasks))
    unused = sorted(set(raw.columns) - {c.column for c in plan.columns.values()})
    notes = [f"Columns of the file that are left out: {', '.join(unused)}."]
    return rows.finish(notes if unused else [])


def _as_called(raw: files.RawTable, path: str | Path) -> Mapped:
    """Take every column for what it is called, if that is a column of the tidy table."""
    own = [c for c in raw.columns if c not in _TIDY and not c.startswith(table.OWN_PREFIX)]
    if own:
        mapping = Path("mapping" if str(path) == "-" else path).with_suffix(".toml")
        command = import_command(str(path), str(mapping))
        raise ArtefactError(
            f"{path} needs a mapping file that says what its columns mean ({', '.join(own[:3])}"
            f"{', ...' if len(own) > 3 else ''}): write {mapping}, as docs/data-format.md shows, "
            f"and run: {command}"
        )
    columns = {name: ColumnMap(column=name) for name in raw.columns if name in _TIDY}
    return Mapped(columns=columns, constants={}, names={})


def import_command(path: str, mapping: str = "FILE.toml", output: str = "runs.csv") -> str:
    """Spell the command that reads a table through a mapping."""
    return shlex.join(["energylens", "import", "table", path, "--mapping", mapping, "-o", output])


def parse_mapping(document: Mapping[str, Any], name: str) -> Mapped:
    """Check a mapping and make it a record.

    Raises
    ------
    ArtefactError
        If it has a key that means nothing, or a value of the wrong kind.
    """
    _refuse_unknown("table", document, ("columns", "constants", "names"), name)
    parts = {key: document.get(key, {}) for key in ("columns", "constants", "names")}
    for key, part in parts.items():
        if not isinstance(part, Mapping):
            raise ArtefactError(f"{name}: [{key}] must be a table.")
        _refuse_unknown("column of the tidy table", part, _TIDY, name)
    columns = {key: _column_map(key, value, name) for key, value in parts["columns"].items()}
    for key, value in parts["constants"].items():
        if not isinstance(value, str) and not _is_number(value):
            raise ArtefactError(f"{name}: the constant {key} must be text or a number above 0.")
        if key in columns:
            raise ArtefactError(f"{name}: {key} must be a constant or a column, not both.")
    for key, value in parts["names"].items():
        if not isinstance(value, Mapping) or not all(isinstance(v, str) for v in value.values()):
            raise ArtefactError(f"{name}: [names.{key}] must give a text for each name.")
    return Mapped(columns=columns, constants=parts["constants"], names=parts["names"])


def _column_map(key: str, value: object, name: str) -> ColumnMap:
    if isinstance(value, str):
        return ColumnMap(column=value)
    if not isinstance(value, Mapping):
        raise ArtefactError(f"{name}: {key} must be the name of a column, or a table.")
    _refuse_unknown("key", value, ("column", "scale", "divide_by"), f"{name}, {key}")
    column, scale, divide_by = (value.get(k) for k in ("column", "scale", "divide_by"))
    if not isinstance(column, str) or not isinstance(divide_by, str | None):
        raise ArtefactError(f"{name}: {key} must name a column in column, and in divide_by if any.")
    if scale is not None and not _is_number(scale):
        raise ArtefactError(f"{name}: the scale of {key} must be a number above 0, not {scale!r}.")
    if not _TIDY[key].is_number and (scale is not None or divide_by is not None):
        raise ArtefactError(f"{name}: {key} is no number, it cannot be scaled or divided.")
    return ColumnMap(column=column, scale=scale, divide_by=divide_by)


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return LOWEST <= value <= HIGHEST


def _refuse_unknown(
    kind: str, given: Mapping[str, Any], known: Mapping[str, Any] | tuple[str, ...], name: str
) -> None:
    for key in given:
        if key not in known:
            advice = f"There are {', '.join(known)}."
            raise ArtefactError(f"{name}: {UnknownNameError(kind, key, known, advice)}")


def _cells(row: Fields, plan: Mapped) -> dict[str, object]:
    cells: dict[str, object] = dict(plan.constants)
    for name, source in plan.columns.items():
        if source.scale is None and source.divide_by is None:
            cells[name] = row.fields.get(source.column)
            continue
        value = row.known(source.column)
        if value is not None and source.divide_by is not None:
            value /= row.number(source.divide_by)
        cells[name] = None if value is None else value * (source.scale or 1.0)
    for name, called in plan.names.items():
        cell = cells.get(name)
        if isinstance(cell, str):
            cells[name] = called.get(cell.strip(), cell)
    return cells


def _assume(
    cells: dict[str, object], text: Mapping[str, float], vision: Mapping[str, float]
) -> dict[str, object]:
    """Fill in lengths that the row lacks; text tokens and vision tokens add up to the input."""
    task = str(cells.get("task") or "")
    assumed = []
    if cells.get("vision_tokens") in (None, "") and task in vision:
        cells["vision_tokens"] = vision[task]
        assumed.append("vision_tokens")
    if cells.get("input_tokens") in (None, "") and task in text:
        seen = Fields(cells).known("vision_tokens") or 0.0
        cells["input_tokens"] = text[task] + seen
        assumed.insert(0, "input_tokens")
    if assumed:
        said = str(cells.get("assumed") or "").split()
        cells["assumed"] = " ".join([*said, *(name for name in assumed if name not in said)])
    return cells
