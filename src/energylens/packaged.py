"""Fitted models that come with the package: coefficients from published measurements, no rows.

``python -m studies.packaged`` makes them again from the public rows.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any

from energylens import catalog, modelfile
from energylens.errors import ArtefactError
from energylens.latency_fitting import fitted_times
from energylens.model import EnergyModel
from energylens.records import Engine
from energylens.words import Note

FOLDER = "models"
DEFAULT = "h100-vllm-0.11"  # answers for GPU types that no model was fitted to


@dataclass(frozen=True, kw_only=True)
class Packaged:
    """One model, with where its rows came from. ``gpus`` are those it was fitted to."""

    name: str
    source: str
    licence: str
    date: str
    rows: int
    llms: int
    gpus: tuple[str, ...]
    engine: str
    dataset_digest: str
    document: dict[str, Any]

    def model(self) -> EnergyModel:
        """Read the coefficients.

        Raises
        ------
        ArtefactError
            If they are of another version of the formula.
        """
        return modelfile.from_json(self.document, f"the packaged model {self.name}")

    def describe(self) -> str:
        """Say what it rests on, in one sentence."""
        return (
            f"{self.name}: {self.rows} published measurements of {self.llms} LLMs on "
            f"{', '.join(self.gpus)}, {self.engine} ({self.source}, {self.date})"
        )

    def to_json(self) -> dict[str, Any]:
        """Names and values, less the coefficients."""
        return {key: value for key, value in vars(self).items() if key != "document"}


@cache
def packaged() -> tuple[Packaged, ...]:
    """Return all models that come with the package, by name.

    Raises
    ------
    ArtefactError
        If the installation is damaged.
    """
    folder = resources.files("energylens") / "data" / FOLDER
    found = []
    for path in sorted(folder.iterdir(), key=lambda p: p.name) if folder.is_dir() else ():
        if not path.name.endswith(".json"):
            continue
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            about = document["about"]
            found.append(
                Packaged(**{**about, "gpus": tuple(about["gpus"])}, document=document["model"])
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ArtefactError(
                f"the packaged model {path.name} is damaged: install energylens again"
            ) from error
    return tuple(found)


def named(name: str) -> Packaged | None:
    """Return the model of a name, if there is one."""
    return next((item for item in packaged() if item.name == name.lower()), None)


def for_gpu(gpu: str, engine: str = "") -> tuple[Packaged, str]:
    """Choose the model that answers for a GPU type and engine where none is given.

    Parameters
    ----------
    gpu : str
        Its id.
    engine : str
        Name and version, or the name alone; empty where not known.

    Returns
    -------
    Packaged, str
        And what the reader must know of it.

    Raises
    ------
    ArtefactError
        If no model comes with this installation.
    """
    models = packaged()
    if not models:
        raise ArtefactError(
            "no fitted model comes with this installation: give a model.json, or the word datasheet"
        )
    wanted = engine.casefold().strip()
    versioned = [m for m in models if m.engine.casefold() == wanted and gpu in m.gpus]
    chosen = versioned[0] if versioned else next(m for m in models if m.name == DEFAULT)
    note = f"Answered from the packaged model {chosen.describe()}."
    unseen = [] if gpu in chosen.gpus else [gpu]
    unseen += [engine] if wanted and wanted not in chosen.engine.casefold() else []
    brief = f"Answered from the packaged model {chosen.name}: {chosen.rows} published rows."
    if unseen:
        own = [name.partition("-")[0] for name in chosen.gpus]
        short = gpu if gpu.partition("-")[0] in own else gpu.partition("-")[0]
        brief = f"No row is of {' or '.join([short if n == gpu else n for n in unseen])}: "
        brief += f"rows of {chosen.engine if gpu in chosen.gpus else ', '.join(own)} answer"
        brief += "." if gpu in chosen.gpus else ", times err twice as much."
    if gpu not in chosen.gpus:
        note += (
            f" None of them is of {gpu}: its datasheet carries the coefficients over, which on "
            "other types doubled the error of times; fit rows of your own to do better."
        )
        kind = gpu.rpartition("-")[0]  # one with other memory is nearer than another type
        for near in (m for m in models for own in m.gpus if kind and own.startswith(f"{kind}-")):
            of = "it" if gpu in near.gpus else ", ".join(near.gpus)
            note += f" {near.name} is of {of}, with {near.engine}: name it to ask that one."
    if engine in unseen:
        note += f" None of them is of {engine}: coefficients differ between engines."
    return chosen, Note(note, rank=Note.UNSEEN if unseen else Note.ORIGIN, brief=brief)


#: How the names of tidy tables end.
TABLES = (".csv", ".jsonl", ".ndjson", ".parquet", ".pq", ".csv.gz", ".jsonl.gz")


def model_for(
    name: str | None, gpu: str, engine: Engine | None
) -> tuple[EnergyModel, tuple[str, ...]]:
    """Read a model: a file, a table to fit, a packaged one, the datasheet, or a GPU type's own.

    Returns
    -------
    EnergyModel, tuple of str
        And what the reader must know of it.
    """
    from energylens import fitting, table

    if name is None:
        chosen, note = for_gpu(catalog.gpu(gpu).id, "" if engine is None else engine.id)
        return chosen.model(), (note,)
    if name.lower() == "datasheet":
        return fitting.from_datasheet(), ()
    known = named(name)
    if known is not None:
        return known.model(), (f"Answered from the packaged model {known.describe()}.",)
    if name.lower().endswith(TABLES):
        rows = table.read(name)
        model = fitting.fit(rows, fitting.FitOptions())
        fitting.refuse_misfit(model, rows)
        return replace(model, time=fitted_times(rows)), ()
    return modelfile.load(name), ()
