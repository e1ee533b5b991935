"""Which fitted models answer over HTTP: by name alone, never by a path from outside."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from energylens import catalog, fitting, packaged
from energylens.dataset import Dataset
from energylens.discovery import Front
from energylens.errors import UnknownNameError
from energylens.model import EnergyModel
from energylens.remembered import Remembered
from energylens.solving import KEPT_BYTES, Engine, Spanned

GIVEN = "given"  # the name of the model or table that the server was started with
DATASHEET = "datasheet"


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What the server was started with.

    Attributes
    ----------
    model : EnergyModel or None
        Answers where a question names no model; without it the packaged model of the GPU type.
    name : str
        What it is called for people: the last part of its path.
    dataset : Dataset or None
        Rows of the second view.
    dataset_name, dataset_path : str
    fitted_to_rows : bool
        Whether the model was fitted to these very rows.
    front : Front or None
        Discovered forms of those rows.
    """

    model: EnergyModel | None = None
    name: str = ""
    dataset: Dataset | None = None
    dataset_name: str = ""
    dataset_path: str = ""
    fitted_to_rows: bool = False
    front: Front | None = None
    _known: dict[str, EnergyModel] = field(default_factory=dict)
    _engines: dict[int, Engine] = field(default_factory=dict)
    _kept: Remembered[Spanned] = field(default_factory=lambda: Remembered(KEPT_BYTES))

    def names(self) -> list[str]:
        """List the names that a question may give, the default first."""
        given = [GIVEN] if self.model is not None else []
        return [*given, *(item.name for item in packaged.packaged()), DATASHEET]

    def model_for(
        self, name: str | None, gpu: str, engine: str
    ) -> tuple[EnergyModel, tuple[str, ...]]:
        """Find the model of a name, or the one that answers for a GPU type.

        Parameters
        ----------
        gpu, engine : str
            What a packaged model is chosen by.

        Returns
        -------
        EnergyModel, tuple of str
            And what the reader must know of it.

        Raises
        ------
        UnknownNameError
            If nothing of that name answers here.
        """
        if name is None and self.model is None:
            chosen, note = packaged.for_gpu(catalog.gpu(gpu).id, engine)
            return self._once(chosen.name), (note,)
        if (name is None or name == GIVEN) and self.model is not None:
            return self.model, ()
        assert name is not None
        if name == DATASHEET:
            return self._once(DATASHEET), ()
        known = packaged.named(name)
        if known is None:
            raise UnknownNameError(
                "model", name, self.names(), "A question names a model that /v1/models lists."
            )
        return self._once(known.name), (f"Answered from the packaged model {known.describe()}.",)

    def engine_of(self, model: EnergyModel) -> Engine:
        """The engine of one of these models; all keep what questions share in one place."""
        if id(model) not in self._engines:
            self._engines[id(model)] = Engine(model, kept=self._kept)
        return self._engines[id(model)]

    def _once(self, name: str) -> EnergyModel:
        if name not in self._known:
            known = packaged.named(name)
            self._known[name] = fitting.from_datasheet() if known is None else known.model()
        return self._known[name]

    def listed(self) -> list[dict[str, Any]]:
        """Describe every model that answers, as ``models --json`` does."""
        given = []
        if self.model is not None:
            model = self.model
            given.append(
                {
                    "name": GIVEN,
                    "source": self.name,
                    "licence": "",
                    "date": "",
                    "rows": model.pooled.rows,
                    "llms": len(model.scope.llms),
                    "gpus": list(model.scope.gpus),
                    "engine": ", ".join(model.scope.engines),
                    "dataset_digest": model.dataset_digest,
                }
            )
        return [*given, *(item.to_json() for item in packaged.packaged())]
