"""What every importer shares: rows taken or refused by reason, and what came of it.

An importer translates one source into cells of the tidy table; whether they make a row is for
`energylens.table` to say. A row that cannot be used is counted under its reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

from energylens import table
from energylens.columns import COLUMNS, GPUS
from energylens.dataset import Dataset
from energylens.errors import InputError, TableError, UsageError
from energylens.files import RawTable

#: Between these, whatever importers multiply and divide stays finite.
LOWEST, HIGHEST = 1e-12, 1e15


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """Rows that could not be used, for one reason."""

    reason: str
    rows: int
    example: str


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What an import gave: the rows, those left out by reason, and remarks for the reader."""

    dataset: Dataset
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()


class Unusable(Exception):  # noqa: N818 - says what a row is; never leaves an importer
    """The row at hand cannot be used; the text is the reason."""


class Fields:
    """One row of a source by its own field names; wrong or missing ones make it unusable."""

    def __init__(self, fields: object) -> None:
        if not isinstance(fields, Mapping):
            raise Unusable("it is no object with fields")
        self.fields = fields

    @classmethod
    def of_rows(cls, raw: RawTable) -> Iterator[tuple[str, Self]]:
        """Give each row of a table, and where it is."""
        for line, *cells in zip(raw.lines, *raw.columns.values(), strict=True):
            yield f"{raw.place} {line}", cls(dict(zip(raw.columns, cells, strict=True)))

    def inner(self, name: str) -> Fields:
        """Give the fields of an object within this one."""
        if not isinstance(self.fields.get(name), Mapping):
            raise Unusable(f"it has no {name}")
        return Fields(self.fields[name])

    def text(self, name: str) -> str:
        """Read a text that must be there."""
        value = self.fields.get(name)
        if not isinstance(value, str) or not value.strip():
            raise Unusable(f"it has no {name}")
        return value.strip()

    def number(self, name: str) -> float:
        """Read a number above 0 that must be there."""
        value = self.known(name)
        if value is None:
            raise Unusable(f"it has no {name}")
        return value

    def known(self, name: str) -> float | None:
        """Read a number above 0, None if it is absent or empty."""
        value = self.fields.get(name)
        if value is None or value == "":
            return None
        try:
            number = float("nan") if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = float("nan")
        if not LOWEST <= number <= HIGHEST:
            raise Unusable(f"its {name} is not a number above 0")
        return number


class Collector:
    """Gathers rows as cells of the tidy table, and reasons for those that are none."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._rows: list[tuple[str, Mapping[str, object]]] = []
        self._skipped: dict[str, list[str]] = {}

    @contextmanager
    def row(self, where: str) -> Iterator[None]:
        """Count what the block finds `Unusable` as a row left out."""
        try:
            yield
        except Unusable as fault:
            self.skip(str(fault), where)

    def skip(self, reason: str, where: str) -> None:
        """Leave a row out."""
        self._skipped.setdefault(reason, []).append(where)

    def add(self, where: str, cells: Mapping[str, object]) -> None:
        """Take a row: cells by column of the tidy table, None or absent where not known."""
        self._rows.append((where, cells))

    def finish(self, notes: Sequence[str] = ()) -> Imported:
        """Check all rows and make the dataset of those that stand.

        Raises
        ------
        InputError
            If none does.
        """
        kept, dataset = self._rows, None
        if kept:
            try:
                dataset = table.dataset_from_table(self._raw(kept))
            except TableError:
                kept = self._sound_rows()
        skipped = tuple(
            Skipped(reason=reason, rows=len(places), example=places[0])
            for reason, places in sorted(self._skipped.items(), key=lambda item: -len(item[1]))
        )
        if not kept:
            why = "; ".join(f"{s.rows} rows: {s.reason} (as {s.example})" for s in skipped[:4])
            raise InputError(f"{self.name} gave no row that can be used. {why or 'It has none'}.")
        if dataset is None:
            dataset = table.dataset_from_table(self._raw(kept))
        return Imported(dataset=dataset, skipped=skipped, notes=tuple(notes))

    def _sound_rows(self) -> list[tuple[str, Mapping[str, object]]]:
        """Leave out every row that is no row of the tidy table."""
        faults: dict[int, table.Problem] = {}
        for problem in table.problems(self._raw(self._rows)):
            faults.setdefault(problem.line, problem)
        for place, problem in faults.items():
            where = self._rows[place - 1][0]
            self.skip(_reason(problem), f"{where}: {problem.column} {problem.reason}")
        return [row for place, row in enumerate(self._rows, 1) if place not in faults]

    def _raw(self, rows: Sequence[tuple[str, Mapping[str, object]]]) -> RawTable:
        told = any(cells.get(GPUS.name) is not None for _, cells in rows)
        columns = (*COLUMNS, GPUS) if told else COLUMNS
        return RawTable(
            name=self.name,
            columns={c.name: [cells.get(c.name) for _, cells in rows] for c in columns},
            lines=range(1, len(rows) + 1),
            place="row",
        )


def _reason(problem: table.Problem) -> str:
    kinds = {"llm": "LLM", "gpu": "GPU", "precision": "precision"}
    if problem.column in kinds and problem.reason.startswith("names an unknown"):
        return f"the {kinds[problem.column]} {problem.value!r} is in no catalog"
    return f"its {problem.column} cannot be right"


def refuse_idle_assumptions(
    option: str, assumed: Mapping[str, float], tasks: Sequence[str]
) -> None:
    """Refuse assumptions for tasks that no row has, most often a slip of spelling.

    Raises
    ------
    UsageError
        If there is one, or a number of tokens is not above 0.
    """
    for task, tokens in assumed.items():
        if task not in tasks:
            known = ", ".join(sorted(set(tasks))) or "none that such an assumption applies to"
            raise UsageError(f"{option} {task}=...: no row has that task; there are {known}.")
        if not (math.isfinite(tokens) and tokens > 0):
            raise UsageError(f"{option} {task}={tokens:g}: tokens must be a number above 0.")
