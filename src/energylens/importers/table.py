"""Any table, by a mapping file that says which of its columns is which.

The mapping is TOML; ``docs/data-format.md`` has all of it::

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

A table whose columns are those of the tidy table already needs no mapping.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from energylens import files, streams, table
from energylens.columns import BY_NAME, Column
from energylens.errors import ArtefactError, TableError
from energylens.importers import foreign, quantities
from energylens.importers.collecting import (
    Collector,
    Fields,
    Imported,
    Unusable,
    refuse_idle_assumptions,
)
from energylens.importers.foreign import Rows
from energylens.importers.mapping import (
    ABOUT,
    NAMES,
    ColumnMap,
    Condition,
    FileForm,
    Mapped,
    parse_mapping,
)

#: What a row is taken to be where its file says nothing of it.
_DEGREES = ("tensor_parallel", "pipeline_parallel", "data_parallel")


def read(
    path: str | Path,
    *,
    assume_input_tokens: Mapping[str, float],
    assume_vision_tokens: Mapping[str, float],
    mapping: str | Path | Mapped | None = None,
    declared: Mapping[str, object] | None = None,
    where: Mapping[str, Condition] | None = None,
    form: FileForm | None = None,
) -> Imported:
    """Read a table through a mapping.

    Parameters
    ----------
    path : str or Path
        Text with any separator, JSON, JSON Lines or Parquet.
    assume_input_tokens : mapping of str to float
        Text tokens of a prompt by task, for rows whose ``input_tokens`` is not known.
    assume_vision_tokens : mapping of str to float
        Vision tokens of a request by task, for rows whose ``vision_tokens`` is not known.
    mapping : str, Path or Mapped, optional
        The mapping file; if not given, ``FILE.toml`` beside the table. With neither, columns
        are what they are called.
    declared : mapping of str to object, optional
        Cells of the tidy table that are the same in every row and known from elsewhere.
    where : mapping of str to Condition, optional
        Which rows of the file to keep, beside those that the mapping keeps.
    form : FileForm, optional
        How the file is written, over what the mapping says.

    Raises
    ------
    ArtefactError
        If the mapping cannot be read, or names something that is no column of the tidy table; if
        there is none, and the table has other columns than that.
    TableError
        If the table cannot be read, lacks a column that the mapping names, or what its cells
        mean cannot be told.
    InputError
        If no row can be used.
    UsageError
        If an assumption is made for a task that no row has.
    """
    if mapping is None and (beside := streams.beside(path, ".toml")).exists():
        mapping = beside
    form = form or FileForm()
    who = str(mapping) if isinstance(mapping, str | Path) else "the mapping"
    if mapping is None:
        rows = foreign.load(path, form)
        plan = as_called(rows, path).updated(declared or {}, where, form)
    else:
        plan = (
            mapping
            if isinstance(mapping, Mapped)
            else parse_mapping(files.read_toml(mapping), str(mapping))
        )
        plan = plan.updated(declared or {}, where, form)
        rows = foreign.load(path, plan.form)
    reader = Reader(rows, plan, who, invents=mapping is not None)
    return reader.collect(assume_input_tokens, assume_vision_tokens)


def as_called(rows: Rows, path: str | Path) -> Mapped:
    """Take every column for what it is called, if that is a column of the tidy table.

    Raises
    ------
    ArtefactError
        If the table has others.
    """
    own = [c for c in rows.columns if c not in BY_NAME and not c.startswith(table.OWN_PREFIX)]
    if own:
        mapping = streams.beside("mapping" if str(path) == "-" else path, ".toml")
        command = import_command(str(path), str(mapping))
        raise ArtefactError(
            f"{path} needs a mapping file that says what its columns mean ({', '.join(own[:3])}"
            f"{', ...' if len(own) > 3 else ''}): have one drafted with --guess, or write "
            f"{mapping}, as docs/data-format.md shows, and run: {command}"
        )
    return Mapped(
        columns={name: ColumnMap(column=name) for name in rows.columns if name in BY_NAME}
    )


def import_command(path: str, mapping: str = "FILE.toml", output: str = "runs.csv") -> str:
    """Spell the command that reads a table through a mapping."""
    return shlex.join(["energylens", "import", "table", path, "--mapping", mapping, "-o", output])


class Reader:
    """Reads the rows of one file by one mapping."""

    def __init__(self, rows: Rows, plan: Mapped, who: str, *, invents: bool) -> None:
        self.plan, self.who = plan, who
        self.notes: list[str] = []
        self.decimal = plan.form.decimal or "."
        rows = self._shaped(rows)
        self.rows = rows
        for source in plan.columns.values():
            for name in source.names:
                if name not in plan.fixed and not (name in BY_NAME and name in plan.columns):
                    rows.require(name, who)
        self._refuse_long_form()
        if plan.form.decimal is None:
            self.decimal = quantities.decimal_sign(self._written(), rows.name)
        self._refuse_units_of_headers()
        self.roots = {
            key: self._root(source.root)
            for key, source in plan.columns.items()
            if source.root is not None
        }
        self.assumed = self._assumed() if invents else []
        self.declared = self._declared() if invents else list(plan.declared)
        self.origin = Path(rows.name).name if invents else None

    # ------------------------------------------------------------------------------ the file

    def _shaped(self, rows: Rows) -> Rows:
        """Leave rows out, and make one of those that a long table has several of."""
        before, pivot = len(rows.cells), self.plan.form.pivot
        first, later = self.plan.where, {}
        if pivot is not None:
            first = {k: v for k, v in self.plan.where.items() if k in rows.columns}
            later = {k: v for k, v in self.plan.where.items() if k not in rows.columns}
        rows = foreign.keep(rows, first, self.decimal, self.who)
        if first:
            self.notes.append(f"[where] keeps {len(rows.cells)} of {before} rows.")
        if pivot is not None:
            long = len(rows.cells)
            rows = foreign.pivoted(rows, pivot, self.who)
            self.notes.append(f"{long} rows of the long table make {len(rows.cells)}.")
            rows = foreign.keep(rows, later, self.decimal, self.who)
        return rows

    def _written(self) -> Iterator[object]:
        """Cells that are read as numbers."""
        for key, source in self.plan.columns.items():
            if BY_NAME[key].is_number:
                for name in source.names:
                    if name in self.rows.columns:
                        yield from self.rows.column(name)

    def _refuse_long_form(self) -> None:
        """Refuse to take the values of a long table for one quantity.

        Raises
        ------
        TableError
            If a column names several quantities that another holds.
        """
        known = [name for source in self.plan.columns.values() for name in source.names]
        for key, source in self.plan.columns.items():
            for name in source.own if BY_NAME[key].is_number else ():
                found = foreign.kinds_within(self.rows, name, known)
                if found is not None:
                    raise self._long(key, name, *found)

    def _long(self, key: str, values: str, says: str, kinds: list[str]) -> TableError:
        """Say that a table is long, and how the kind that is meant may be kept."""
        word = "energy" if key.endswith("_j") else "time" if key.endswith("_s") else key
        meant = next((kind for kind in kinds if word in kind.lower()), kinds[0])
        listed = ", ".join(kinds[:6]) + (", ..." if len(kinds) > 6 else "")
        return TableError(
            f"{self.rows.name} is a long table: its column {says!r} says what {values!r} holds "
            f"({listed}), and {self.who} takes all of them for {key}. Keep one with {says} = "
            f'"{meant}" under [where], or make columns of them with pivot = {{ names = "{says}", '
            f'values = "{values}" }} under [file].'
        )

    def _refuse_units_of_headers(self) -> None:
        """Refuse to pass over a unit that the name of a column states.

        Raises
        ------
        TableError
            If the mapping says nothing of it, and cells do not either.
        """
        for key, source in self.plan.columns.items():
            column = BY_NAME[key]
            if not column.is_number or source.scale is not None:
                continue
            terms = source.multiply_by + source.divide_by
            for name in source.own:
                if key.endswith("_j") and not terms and _per_token(name):
                    raise TableError(
                        f"{self.who}: the column {name!r} is called joules a token, and {key} is "
                        "that of a request: say multiply_by the column of its tokens (scale = 1 if "
                        "the name is wrong)."
                    )
                if source.unit is None:
                    self._refuse_unit(key, name, column, bool(terms))
            for name in terms:
                self._refuse_unit(key, name, column, True)

    def _refuse_unit(self, key: str, name: str, column: Column, formula: bool) -> None:
        unit = quantities.unit_of_header(name)
        if unit is None or unit.factor == 1 or name not in self.rows.columns:
            return
        if unit.dimension != column.unit and not formula:
            return
        if any(not _has_unit(cell, self.decimal) for cell in self.rows.column(name)):
            raise TableError(
                f"{self.who}: the name of the column {name!r} says {unit.name}, and {key} is in "
                f"{column.unit}: say scale = {unit.factor:g} (scale = 1 if the name is wrong)."
            )

    def _root(self, path: str) -> object:
        if self.rows.root is None:
            raise ArtefactError(f"{self.who}: root is for JSON, and {self.rows.name} is none.")
        found = foreign.path_finder(path)(self.rows.root)
        if found is None or isinstance(found, dict | list):
            raise TableError(f"{self.who}: root = {path!r} finds no single value there.")
        return found

    def _assumed(self) -> list[str]:
        """Columns that the mapping invents, and those that go without saying."""
        made = [n for n in self.plan.constants if n not in NAMES | ABOUT]
        given = {**self.plan.columns, **self.plan.fixed}
        if not any(name in given for name in (*_DEGREES, "gpus")):
            made.append("tensor_parallel")
        if "boundary" not in given:
            made.append("boundary")
        if made:
            said = {"tensor_parallel": 1, "boundary": "active_gpus", **self.plan.constants}
            listed = ", ".join(f"{name} {said[name]}" for name in made)
            self.notes.append(f"Assumed, for the file does not state it: {listed}.")
        return made

    def _declared(self) -> list[str]:
        known = [name for name in self.plan.constants if name in NAMES]
        return [*known, *(name for name in self.plan.declared if name not in ABOUT)]

    # ------------------------------------------------------------------------------ the rows

    def collect(
        self, assume_input_tokens: Mapping[str, float], assume_vision_tokens: Mapping[str, float]
    ) -> Imported:
        """Read every row.

        Raises
        ------
        InputError
            If none can be used.
        """
        rows = Collector(self.rows.name)
        tasks: set[str] = set()
        for where, row in foreign.each(self.rows):
            with rows.row(where):
                cells = self.cells(row)
                tasks.add(str(cells.get("task") or ""))
                rows.add(where, _assume(cells, assume_input_tokens, assume_vision_tokens))
        refuse_idle_assumptions("--assume-input-tokens", assume_input_tokens, sorted(tasks))
        refuse_idle_assumptions("--assume-vision-tokens", assume_vision_tokens, sorted(tasks))
        taken = {name for source in self.plan.columns.values() for name in source.names}
        taken |= set(self.plan.where)
        unused = sorted(set(self.rows.columns) - taken)
        notes = list(self.notes)
        if unused and not self.rows.nested:
            notes.insert(0, f"Columns of the file that are left out: {', '.join(unused)}.")
        return rows.finish(notes)

    def cells(self, row: Mapping[str, object]) -> dict[str, object]:
        """Make the cells of the tidy table.

        Raises
        ------
        Unusable
            If one of the row's own cannot be read.
        """
        cells: dict[str, object] = dict(self.plan.fixed)
        for key, source in self.plan.columns.items():
            number = BY_NAME[key].is_number
            cells[key] = self.number(row, key) if number else self._text(row, key, source)
        for name, called in self.plan.names.items():
            cell = cells.get(name)
            if isinstance(cell, str):
                cells[name] = called.get(cell.strip(), cell)
        for name, words in (("assumed", self.assumed), ("declared", self.declared)):
            if words:
                said = str(cells.get(name) or "").split()
                cells[name] = " ".join(dict.fromkeys([*said, *words]))
        if self.origin is not None and not cells.get("origin"):
            cells["origin"] = self.origin
        return cells

    def _text(self, row: Mapping[str, object], key: str, source: ColumnMap) -> str | None:
        cell = self.roots[key] if key in self.roots else self.rows.cell(row, source.own[0])
        if isinstance(cell, dict | list):
            raise Unusable(f"its {source.own[0]} is no single value")
        if cell is None or isinstance(cell, str):
            return cell
        return str(cell)

    def number(self, row: Mapping[str, object], key: str) -> float | None:
        """Work out a number of the tidy table, None where nothing is known.

        Raises
        ------
        Unusable
            If a cell that it needs cannot be read, or is in a unit of something else.
        """
        source, column = self.plan.columns[key], BY_NAME[key]
        values = [self._own(row, key, source, name, column) for name in source.own or ("",)]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            return None
        value = min(known) if source.least else max(known)
        for name in source.multiply_by:
            value *= self._term(row, name)
        for name in source.divide_by:
            divisor = self._term(row, name)
            if not divisor:
                raise Unusable(f"its {name} is 0")
            value /= divisor
        return value * (source.scale or 1.0)

    def _own(
        self, row: Mapping[str, object], key: str, source: ColumnMap, name: str, column: Column
    ) -> float | None:
        cell = self.roots[key] if key in self.roots else self.rows.cell(row, name)
        found = quantities.quantity(cell, name or key, self.decimal)
        if found is None:
            return None
        unit = found.unit
        if source.unit is not None:
            said = self._said_unit(row, source.unit)
            if unit is not None and unit != said:
                raise Unusable(f"its {name} is in {unit.name}, not in {said.name}")
            unit = said
        if unit is None:
            return found.value
        if source.scale is not None and unit.factor != 1:
            raise Unusable(f"its {name} states its unit, {unit.name}: leave scale out")
        formula = bool(source.multiply_by or source.divide_by)
        if unit.dimension != column.unit and not formula:
            of = f"; {key} is in {column.unit}" if column.unit else ""
            raise Unusable(f"its {name} is in {unit.name}{of}")
        return found.value * unit.factor

    def _said_unit(self, row: Mapping[str, object], name: str) -> quantities.Unit:
        known = quantities.unit(name)
        if known is None and name in self.rows.columns:
            spelt = str(self.rows.cell(row, name) or "")
            known = quantities.unit(spelt)
            if known is None:
                raise Unusable(f"its {name} is {spelt[:20]!r}, which is no unit known here")
        if known is None:
            raise ArtefactError(
                f"{self.who}: {name!r} is no unit known here and no column of {self.rows.name}; "
                f"units are {', '.join(quantities.UNITS)}."
            )
        return known

    def _term(self, row: Mapping[str, object], name: str) -> float:
        """Read what a value is multiplied or divided by: a cell, a constant or a tidy column."""
        if name in self.rows.columns or (name not in self.plan.fixed and name not in BY_NAME):
            found = quantities.quantity(self.rows.cell(row, name), name, self.decimal)
            value = None if found is None else found.value
            if found is not None and found.unit is not None:
                value = found.value * found.unit.factor
        elif name in self.plan.fixed:
            value = Fields(self.plan.fixed).known(name)
        else:
            value = self.number(row, name)
        if value is None:
            raise Unusable(f"it has no {name}")
        return value


def _has_unit(cell: object, decimal: str) -> bool:
    """Whether a cell says its unit, or nothing at all."""
    try:
        found = quantities.quantity(cell, "cell", decimal)
    except Unusable:
        return True  # the row is left out for it
    return found is None or found.unit is not None


def _per_token(header: str) -> bool:
    words = re.findall("[a-z]+", header.lower())
    token = any(word in ("tok", "token", "tokens", "toks") for word in words)
    joules = {"j", "mj", "kj", "wh", "mwh", "kwh", "joule", "joules", "energy"}
    return token and any(word in joules for word in words)


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
