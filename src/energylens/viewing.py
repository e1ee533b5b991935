"""How a record shows itself: as text, in a notebook, as a frame and as a figure.

Records stand low, and what shows them (tables of words, drawings) stands high. So the one who
shows is named here and looked up when it is asked for, as pandas looks up what plots for it:
another may take its place without a record noticing.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

#: The module that shows records: ``text``, ``html``, ``columns`` and ``picture``, each of one.
SHOWN_BY = "energylens.showing"


def picked(record: object, names: str | Iterable[str]) -> dict[str, Any]:
    """Give what a record holds under some names, in their order; in a text blanks part them.

    Examples
    --------
    >>> picked(1 + 2j, "imag real")
    {'imag': 2.0, 'real': 1.0}
    """
    return {
        name: getattr(record, name) for name in (names.split() if isinstance(names, str) else names)
    }


def shown_by() -> Any:
    """Look the module up that shows records."""
    return import_module(SHOWN_BY)


class Figure(Protocol):
    """A figure that a notebook shows and that can be saved."""

    def save(self, path: str | Path) -> None:
        """Write it to a file whose name ends in .svg, .pdf or .png."""

    def svg(self) -> str:
        """Return it as an ``svg`` element."""


class Shown:
    """What all answers have: a short text, a page of a notebook, a frame, a figure."""

    def __repr__(self) -> str:
        shown: str = shown_by().text(self)
        return shown

    def _repr_html_(self) -> str:
        shown: str = shown_by().html(self)
        return shown

    def to_frame(self, library: str | None = None) -> Any:
        """Return the rows as a data frame.

        Parameters
        ----------
        library : {"pandas", "polars", "pyarrow"}, optional
            Default: the first of them that is installed.

        Raises
        ------
        MissingExtraError
            If narwhals (the extra ``frames``) or the library is not installed.
        """
        from energylens.frames import frame_of

        return frame_of(shown_by().columns(self), library)

    def figure(self) -> Figure:
        """Draw it: an object that a notebook shows and that has ``save("x.svg|pdf|png")``.

        Raises
        ------
        MissingExtraError
            If vl-convert (the extra ``report``) is not installed.
        """
        drawn: Figure = shown_by().picture(self)
        return drawn
