"""Everything that can go wrong, as one tree.

::

    EnergyLensError            base: whatever energylens itself raises
    ├── InputError             what was given cannot be used as it is
    │   ├── TableError         a row or column of a measurement table
    │   ├── ArtefactError      a model.json, plan or other file of ours: corrupt, or from the future
    │   ├── UnknownNameError   an LLM, GPU, precision, estimator ... that nobody knows
    │   └── UsageError         arguments that contradict each other
    ├── FitError               the rows cannot determine a model
    ├── InfeasibleError        no configuration is left to choose from
    ├── MeasurementError       an instrument gave nothing that may be called a measurement
    └── MissingExtraError      an optional package is absent; the message names the extra

Every message says what must hold, what was given, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EnergyLensError(Exception):
    """Base of every error that energylens raises on purpose."""


class InputError(EnergyLensError):
    """What was given cannot be used as it is."""


class TableError(InputError):
    """A row or a column of a measurement table is wrong."""


class ArtefactError(InputError):
    """A file that energylens writes is corrupt, or newer than this version can read."""


class UnknownNameError(InputError):
    """A name that no catalog or registry holds.

    Parameters
    ----------
    kind : str
        What was looked up, as in "LLM".
    name : str
        What was given.
    known : iterable of str
        The names there are; the nearest are suggested.
    advice : str, optional
        What to do if none of the suggestions is meant.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], advice: str = "") -> None:
        by_lower = {entry.lower(): entry for entry in known}
        near = [
            by_lower[match]
            for match in difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)
        ]
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        super().__init__(f"unknown {kind} {name!r}.{hint}{' ' + advice if advice else ''}")


class UsageError(InputError):
    """Arguments that are each valid but contradict each other."""


class FitError(EnergyLensError):
    """The rows given cannot determine a model."""


class InfeasibleError(EnergyLensError):
    """No configuration is left to choose from."""


class MeasurementError(EnergyLensError):
    """An instrument gave nothing that may be called a measurement."""


class MissingExtraError(EnergyLensError):
    """An optional package is absent.

    Parameters
    ----------
    package : str
        The package that could not be imported.
    extra : str or None
        The extra of energylens that brings it; None if it has an environment of its own.
    purpose : str
        What it is needed for.
    """

    def __init__(self, package: str, extra: str | None, purpose: str) -> None:
        how = (
            f"pip install 'energylens[{extra}]'"
            if extra
            else f"make an environment of its own, and pip install {package} and energylens there"
        )
        super().__init__(f"{purpose} needs the package {package}, which is not installed: {how}.")
