"""Measurements of others: one reader for each published source, found by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from energylens.errors import UnknownChoiceError
from energylens.importers import argonne, energy_code_eval, mlenergy_v2, mlenergy_v3, table
from energylens.importers.collecting import Imported, Skipped

__all__ = ["READERS", "Imported", "Reader", "Skipped", "reader"]


class Reader(Protocol):
    """Reads one source."""

    def __call__(
        self,
        path: str | Path,
        *,
        assume_input_tokens: Mapping[str, float],
        assume_vision_tokens: Mapping[str, float],
    ) -> Imported:
        """Read the rows of a source; lengths that it lacks are assumed by task."""


READERS: Mapping[str, Reader] = MappingProxyType(
    {
        "mlenergy-v3": mlenergy_v3.read,
        "mlenergy-v2": mlenergy_v2.read,
        "argonne": argonne.read,
        "energy-code-eval": energy_code_eval.read,
        "table": table.read,
    }
)


def reader(name: str) -> Reader:
    """Find a reader by the name of its source.

    Raises
    ------
    UnknownChoiceError
        If there is none.
    """
    if name not in READERS:
        raise UnknownChoiceError("source", name, READERS, f"There are {', '.join(READERS)}.")
    return READERS[name]
