"""Data frames of any library (pandas, polars, PyArrow ...), in and out, through narwhals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from energylens.errors import MissingExtraError, TableError, UsageError

#: Libraries that a frame can be of, the one that is taken where none is named first.
LIBRARIES = ("pandas", "polars", "pyarrow")


def _narwhals() -> Any:
    try:
        import narwhals
    except ImportError as error:
        raise MissingExtraError("narwhals", "frames", "Reading or making a data frame") from error
    return narwhals


def columns_of_frame(frame: Any) -> dict[str, list[Any]]:
    """Cells of a data frame by column; what is missing (null, NaN, NaT) is None.

    Raises
    ------
    MissingExtraError
        If narwhals is not installed.
    TableError
        If it is no data frame, or a lazy one.
    """
    try:
        table = _narwhals().from_native(frame, eager_only=True)
    except TypeError:
        kind = f"{type(frame).__module__}.{type(frame).__qualname__}"
        raise TableError(
            "rows must come as a path or as a data frame that is in memory (pandas, polars, "
            f"PyArrow), not as {kind}: collect a lazy frame first"
        ) from None
    cells: dict[str, list[Any]] = {}
    for name in table.columns:
        if not isinstance(name, str):
            raise TableError(f"the columns of a data frame must have names; one has {name!r}")
        cells[name] = [None if _missing(cell) else cell for cell in table[name].to_list()]
    return cells


def _missing(cell: Any) -> bool:
    try:
        return cell is None or bool(cell != cell)
    except (TypeError, ValueError):  # pandas.NA is neither equal nor unequal to itself
        return type(cell).__name__ == "NAType"


def frame_of(columns: Mapping[str, Sequence[Any]], library: str | None = None) -> Any:
    """Make a data frame of columns.

    Parameters
    ----------
    columns : mapping of str to sequence
        Cells by column, None where there is none.
    library : {"pandas", "polars", "pyarrow"}, optional
        Default: the first of them that is installed.

    Raises
    ------
    UsageError
        If energylens makes no frames of that library.
    MissingExtraError
        If narwhals or the library is not installed.
    """
    if library is not None and library not in LIBRARIES:
        raise UsageError(f"a frame is of {', '.join(LIBRARIES)}, not of {library!r}")
    narwhals = _narwhals()
    chosen = library or next((name for name in LIBRARIES if find_spec(name)), LIBRARIES[0])
    if find_spec(chosen) is None:
        raise MissingExtraError(chosen, "frames", "Making a data frame")
    table = narwhals.from_dict({k: list(v) for k, v in columns.items()}, backend=chosen)
    return table.to_native()
