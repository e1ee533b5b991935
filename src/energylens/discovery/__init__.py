"""From measured rows to a Pareto front of expressions for joules per request.

:func:`discover` runs an engine over a dataset: :class:`OwnEngine` chooses among physical terms,
:class:`OperonEngine` and :class:`PysrEngine` let formulas evolve. Whichever it is, the same loop
leaves groups out, judges, resamples and marks the knee, so that their fronts can be compared.
"""

from __future__ import annotations

from energylens.discovery.engines import Engine, Found, Problem
from energylens.discovery.expression import Expression
from energylens.discovery.front import Front, FrontPoint, FrontTerm, Reference
from energylens.discovery.library import (
    Quantity,
    Term,
    physical_terms,
    quantities,
    quantity_columns,
)
from energylens.discovery.operon import OperonEngine
from energylens.discovery.own import OwnEngine
from energylens.discovery.pysr import PysrEngine
from energylens.discovery.search import GROUPS, Scorer, discover
from energylens.discovery.structure import Discovery, FittedStructure, Structure
from energylens.discovery.units import Unit
from energylens.errors import UnknownChoiceError

__all__ = [
    "ENGINES",
    "GROUPS",
    "Discovery",
    "Engine",
    "Expression",
    "FittedStructure",
    "Found",
    "Front",
    "FrontPoint",
    "FrontTerm",
    "OperonEngine",
    "OwnEngine",
    "Problem",
    "PysrEngine",
    "Quantity",
    "Reference",
    "Scorer",
    "Structure",
    "Term",
    "Unit",
    "discover",
    "engine",
    "physical_terms",
    "quantities",
    "quantity_columns",
]

#: What ``--engine`` takes.
ENGINES: tuple[str, ...] = ("own", "operon", "pysr")


def engine(name: str) -> Engine:
    """Make an engine with its defaults.

    Parameters
    ----------
    name : {"own", "operon", "pysr"}

    Raises
    ------
    UnknownChoiceError
        If there is none of that name.
    """
    for made in (OwnEngine(), OperonEngine(), PysrEngine()):
        if made.name == name:
            return made
    raise UnknownChoiceError("engine", name, ENGINES, f"There are {', '.join(ENGINES)}.")
