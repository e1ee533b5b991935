"""Tables of power logs: lines split, a cut last one dropped, cells with units read.

Loggers are killed in the middle of a line; whatever else is wrong in the middle of a log is for
its owner to mend.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from energylens.cases import FloatArray
from energylens.importers.runs import RefusedFileError

#: What loggers write where a sensor gave nothing.
_ABSENT = re.compile(
    r"^(\[[^\]\d]*\]|n/?a(\s*\([^)]*\))?|not supported|unknown error|err!?|nan|none|null|-|)$",
    re.IGNORECASE,
)
_CELL = re.compile(r"^([+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)\s*([A-Za-zµ%°/]*)$")

#: Watts of one unit of power.
WATTS = {"w": 1.0, "watt": 1.0, "watts": 1.0, "mw": 1e-3, "milliwatt": 1e-3, "milliwatts": 1e-3}
WATTS |= {"uw": 1e-6, "µw": 1e-6, "microwatts": 1e-6, "kw": 1e3, "kilowatts": 1e3}


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """Rows of text cells, all of one width, and where each begins."""

    name: str
    header: tuple[str, ...]
    rows: list[list[str]]
    lines: list[int]
    notes: tuple[str, ...] = ()

    def column(self, place: int) -> list[str]:
        """Cells of one column."""
        return [row[place] for row in self.rows]


def sheet_of(text: str, name: str, *, header: bool = True, separator: str = ",") -> Sheet:
    """Split a log into cells.

    Parameters
    ----------
    text : str
        What the file holds.
    name : str
        What messages call it.
    header : bool
        Whether the first line names the columns; repeats of it, as loggers that were started
        again write, are passed over.
    separator : str
        What stands between cells.

    Raises
    ------
    RefusedFileError
        If a line in the middle has another number of cells, or there is no line of readings.
    """
    reader = csv.reader(text.splitlines(), delimiter=separator, skipinitialspace=True)
    try:
        read = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except csv.Error as fault:
        raise RefusedFileError(f"{name} line {reader.line_num} is no CSV: {fault}.") from None
    rows = [row for _, row in read if any(row)]
    lines = [line for line, row in read if any(row)]
    names: tuple[str, ...] = ()
    if header and rows:
        names = tuple(rows[0])
        kept = [i for i, row in enumerate(rows) if tuple(row) != names]
        rows, lines = [rows[i] for i in kept], [lines[i] for i in kept]
    width = len(names) or (len(rows[0]) if rows else 0)
    notes: list[str] = []
    whole_end = text.endswith(("\n", "\r"))
    if rows and not whole_end and _cut(rows[-1], rows[-2] if len(rows) > 1 else None, width):
        rows, lines = rows[:-1], lines[:-1]
        notes.append("its last line was cut in the middle and is left out")
        if not rows:
            raise RefusedFileError(
                f"{name}: its one line of readings breaks off, or lacks the end of line that tells "
                "it has not."
            )
    for row, line in zip(rows, lines, strict=True):
        if len(row) != width:
            raise RefusedFileError(
                f"{name} line {line} has {len(row)} cells where the others have {width}: mend or "
                "remove the line."
            )
    if not rows:
        raise RefusedFileError(f"{name} has no line of readings.")
    return Sheet(name=name, header=names, rows=rows, lines=lines, notes=tuple(notes))


def _cut(last: Sequence[str], before: Sequence[str] | None, width: int) -> bool:
    """Whether the last line, which has no end, breaks off: what is missing may matter.

    Cells are missing, or the unit of the last cell is, or its last digits may be; of decimals those
    that are missing do not matter.
    """
    if len(last) != width:
        return True
    unit = re.sub(r"[\d.\s+-]", "", before[-1]) if before is not None else ""
    if unit:
        return not last[-1].endswith(unit)
    return bool(re.fullmatch(r"[\d+-]*\.?", last[-1]))


def place_of(names: Sequence[str], column: str, name: str) -> int:
    """Find a column by its name.

    Raises
    ------
    RefusedFileError
        If several are called so.
    """
    if names.count(column) > 1:
        raise RefusedFileError(
            f"{name} has {names.count(column)} columns of {column}: keep the one that is it."
        )
    return names.index(column)


def numbers_of(cells: Sequence[str], name: str, lines: Sequence[int], what: str) -> FloatArray:
    """Read numbers whose unit, if each cell has one, is the same in all of them.

    Returns
    -------
    ndarray of float, shape (n,)
        NaN where the sensor gave nothing.

    Raises
    ------
    RefusedFileError
        If a cell is no number.
    """
    return with_unit(cells, name, lines, what)[0]


def with_unit(
    cells: Sequence[str], name: str, lines: Sequence[int], what: str
) -> tuple[FloatArray, str]:
    """Read numbers and the unit that their cells share, "" if they have none."""
    try:
        values = np.array(cells, dtype=np.float64)
        if np.isfinite(values).all():
            return values, ""
    except ValueError:
        pass
    values = np.full(len(cells), np.nan)
    unit: str | None = None
    for i, cell in enumerate(cells):
        if _ABSENT.match(cell):
            continue
        match = _CELL.match(cell)
        if match is None:
            raise RefusedFileError(
                f"{name} line {lines[i]}: {what} must be a number, not {cell!r}."
            )
        if unit is not None and match[2] != unit:
            raise RefusedFileError(
                f"{name} line {lines[i]}: {what} is in {match[2] or 'no unit'} here and in "
                f"{unit or 'no unit'} before: one column must have one unit."
            )
        unit = match[2]
        values[i] = float(match[1])
    return values, unit or ""


def watts_of(
    cells: Sequence[str], name: str, lines: Sequence[int], what: str, header_unit: str = ""
) -> FloatArray:
    """Read watts, from whatever unit of power the header or the cells name.

    Raises
    ------
    RefusedFileError
        If a cell is no number, or the unit is none of power, or cells and header disagree.
    """
    values, unit = with_unit(cells, name, lines, what)
    named = [u for u in (header_unit, unit) if u]
    factors = {WATTS.get(u.strip().lower()) for u in named}
    if None in factors or len(factors) > 1:
        raise RefusedFileError(
            f"{name}: {what} must be in W, mW or kW, not in {' and '.join(named)}."
        )
    watts = values * (factors.pop() if factors else 1.0)  # type: ignore[operator]
    bad = watts < 0
    if bad.any():
        row = int(np.argmax(bad))
        raise RefusedFileError(
            f"{name} line {lines[row]}: {what} must be 0 W or more, not {cells[row]}."
        )
    return watts
