"""model.json: an energy model on disk. Strict, versioned, and sealed against corruption."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from energylens import files, latency, latency_terms
from energylens.cases import FloatArray
from energylens.errors import ArtefactError, UnknownNameError
from energylens.factors import Factors
from energylens.formula import STRUCTURE, terms_of
from energylens.latency import TimeModel
from energylens.model import Coefficients, EnergyModel, Scope
from energylens.words import complaint

FORMAT = "energylens-model"
VERSION = 4

NotNegative = Annotated[FiniteFloat, Field(ge=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Factors(_Strict):
    keys: list[Annotated[list[str], Field(min_length=2, max_length=2)]]
    names: dict[str, str]
    mean: list[FiniteFloat]
    covariance: list[list[FiniteFloat]]
    scale_ratio: Annotated[FiniteFloat, Field(gt=0)]


class _Coefficients(_Strict):
    theta: dict[str, NotNegative]
    covariance: list[list[FiniteFloat]]
    residuals_seen: list[FiniteFloat] = Field(min_length=1)
    residuals_unseen: list[FiniteFloat] = Field(min_length=1)
    llms: Annotated[int, Field(ge=1)]
    spread_ratio: Annotated[FiniteFloat, Field(gt=0)]
    design_effect: NotNegative
    within_ratio: NotNegative
    between_ratio: NotNegative
    reach_doublings: Annotated[FiniteFloat, Field(gt=0)]
    rows: Annotated[int, Field(ge=0)]
    factors: _Factors
    format_scales: dict[str, Annotated[list[NotNegative], Field(min_length=2, max_length=2)]]


class _Scope(_Strict):
    llms: list[str]
    gpus: list[str]
    precisions: list[str]
    ranges: dict[str, Annotated[list[FiniteFloat], Field(min_length=2, max_length=2)]]
    engines: dict[str, _Scope]


class _Time(_Strict):
    structure: str
    scope: _Scope
    pooled: _Coefficients
    groups: dict[str, _Coefficients]
    factors: dict[str, Annotated[FiniteFloat, Field(gt=0)]]
    narrowing_ratio: Annotated[FiniteFloat, Field(gt=0)]
    targets: dict[str, int]
    dataset_digest: str
    energylens_version: str


class _Document(_Strict):
    format: Literal["energylens-model"]
    version: int
    structure: str
    energylens_version: str
    dataset_digest: str
    sources: dict[str, int]
    options: dict[str, str]
    measured_power: bool
    extensions: list[str]
    per: list[Literal["gpu", "llm", "precision", "engine"]]
    scope: _Scope
    pooled: _Coefficients
    groups: dict[str, _Coefficients]
    travel: dict[str, _Coefficients]
    time: _Time | None = None
    loaded_idle_w: dict[str, Annotated[FiniteFloat, Field(gt=0)]] = {}
    seal: str


def save(model: EnergyModel, path: str | Path) -> None:
    """Write a model, atomically.

    Raises
    ------
    ArtefactError
        If the file cannot be written.
    """
    files.write_json(path, to_json(model))


def load(path: str | Path) -> EnergyModel:
    """Read a model.

    Raises
    ------
    ArtefactError
        If the file cannot be read, is not a model, was changed or cut, or comes from a newer
        energylens.
    """
    return from_json(files.read_json(path), str(path))


def to_json(model: EnergyModel) -> dict[str, Any]:
    """Give a model as plain JSON values."""
    document = {"format": FORMAT, "version": VERSION, **_plain(model, _Document)}
    if model.time is None:
        del document["time"]
    if not model.loaded_idle_w:
        del document["loaded_idle_w"]
    return {**document, "seal": _seal(document)}


def _plain(record: Any, schema: type[_Strict]) -> dict[str, Any]:
    """Give what a schema names of a record as JSON has it."""
    held = {name: getattr(record, name) for name in schema.model_fields if hasattr(record, name)}
    laws: tuple[Any, ...] = (EnergyModel, TimeModel)
    if isinstance(record, laws):
        names = (
            latency_terms.NAMES if isinstance(record, TimeModel) else [t.name for t in record.terms]
        )

        def coefficients(c: Coefficients) -> dict[str, Any]:
            theta = dict(zip(names, c.theta.tolist(), strict=True))
            return {**_plain(c, _Coefficients), "theta": theta}

        for name in {"pooled", "groups", "travel"} & set(held):
            value = held[name]
            held[name] = (
                {key: coefficients(c) for key, c in value.items()}
                if isinstance(value, Mapping)
                else coefficients(value)
            )
    return {name: _json_value(value) for name, value in held.items()}


def _json_value(value: Any) -> Any:
    for kind, schema in ((Scope, _Scope), (TimeModel, _Time), (Factors, _Factors)):
        if isinstance(value, kind):
            return _plain(value, schema)
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: _json_value(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(inner) for inner in value]
    return value


def from_json(document: Any, name: str) -> EnergyModel:
    """Make a model of what :func:`to_json` gave.

    Parameters
    ----------
    name : str
        What to call it in errors.

    Raises
    ------
    ArtefactError
        As :func:`load`.
    """
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ArtefactError(
            f"{name} is not an energy model: it must be a JSON object with "
            f'"format": "{FORMAT}", as energylens fit writes it.'
        )
    version = document.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version != VERSION:
        raise ArtefactError(
            f"{name} has model format version {version!r}; this energylens reads version "
            f"{VERSION}. Use the energylens that wrote it, or fit again."
        )
    try:
        read = _Document.model_validate(document)
    except ValidationError as error:
        said = complaint(error.errors()[0])
        raise ArtefactError(f"{name} is not a valid energy model: {said}. Fit again.") from error
    content = {key: value for key, value in document.items() if key != "seal"}
    if read.seal != _seal(content):
        raise ArtefactError(
            f"{name} was changed or damaged after it was written: its seal does not match its "
            "content. Fit again, or restore the file."
        )
    if read.structure != STRUCTURE:
        raise ArtefactError(
            f"{name} holds coefficients of the formula {read.structure}; this energylens has "
            f"{STRUCTURE}. Fit again."
        )
    try:
        names = [term.name for term in terms_of(read.extensions)]
    except UnknownNameError as error:
        raise ArtefactError(f"{name}: {error} Fit again.") from error
    return EnergyModel(
        **_law(read, names, name),
        sources=read.sources,
        options=read.options,
        measured_power=read.measured_power,
        extensions=tuple(read.extensions),
        per=tuple(read.per),
        travel={key: _coefficients(value, names, name) for key, value in read.travel.items()},
        time=None if read.time is None else _time(read.time, name),
        loaded_idle_w=read.loaded_idle_w,
    )


def _law(read: _Document | _Time, names: list[str], name: str) -> dict[str, Any]:
    """Read what the laws of joules and of seconds both have."""
    return {
        "structure": read.structure,
        "scope": _scope_of(read.scope),
        "pooled": _coefficients(read.pooled, names, name),
        "groups": {key: _coefficients(value, names, name) for key, value in read.groups.items()},
        "dataset_digest": read.dataset_digest,
        "energylens_version": read.energylens_version,
    }


def _time(read: _Time, name: str) -> TimeModel:
    if read.structure != latency.STRUCTURE:
        raise ArtefactError(
            f"{name} holds coefficients of the time law {read.structure}; this energylens has "
            f"{latency.STRUCTURE}. Fit again."
        )
    return TimeModel(
        **_law(read, list(latency_terms.NAMES), name),
        factors=read.factors,
        narrowing_ratio=read.narrowing_ratio,
        targets=read.targets,
    )


def _scope_of(read: _Scope) -> Scope:
    return Scope(
        llms=tuple(read.llms),
        gpus=tuple(read.gpus),
        precisions=tuple(read.precisions),
        ranges={name: (ends[0], ends[1]) for name, ends in read.ranges.items()},
        engines={name: _scope_of(inner) for name, inner in read.engines.items()},
    )


def _coefficients(read: _Coefficients, names: list[str], name: str) -> Coefficients:
    if tuple(sorted(read.theta)) != tuple(sorted(names)):
        raise ArtefactError(
            f"{name} must hold the {len(names)} coefficients {', '.join(names)}; "
            f"it has {', '.join(sorted(read.theta)) or 'none'}. Fit again."
        )
    covariance = _array(read.covariance)
    if covariance.shape != (len(names), len(names)):
        raise ArtefactError(
            f"{name} must hold a {len(names)} x {len(names)} covariance, not one of shape "
            f"{covariance.shape}. Fit again."
        )
    return Coefficients(
        theta=np.array([read.theta[key] for key in names]),
        covariance=covariance,
        residuals_seen=np.sort(_array(read.residuals_seen)),
        residuals_unseen=np.sort(_array(read.residuals_unseen)),
        llms=read.llms,
        spread_ratio=read.spread_ratio,
        design_effect=read.design_effect,
        within_ratio=read.within_ratio,
        between_ratio=read.between_ratio,
        reach_doublings=read.reach_doublings,
        rows=read.rows,
        factors=_factors(read.factors, name),
        format_scales={kind: (both[0], both[1]) for kind, both in read.format_scales.items()},
    )


def _factors(read: _Factors, name: str) -> Factors:
    k = len(read.keys)
    mean, covariance = _array(read.mean), _array(read.covariance).reshape(-1)
    if mean.shape != (k,) or len(covariance) != k * k:
        raise ArtefactError(
            f"{name} must hold a mean and a row of covariances for each of its {k} factors. "
            "Fit again."
        )
    return Factors(
        keys=tuple((kind, label) for kind, label in read.keys),
        names=read.names,
        mean=mean,
        covariance=covariance.reshape(k, k),
        scale_ratio=read.scale_ratio,
    )


def _array(values: list[Any]) -> FloatArray:
    if values and isinstance(values[0], list) and len({len(row) for row in values}) != 1:
        return np.empty((0, 0))
    return np.array(values, dtype=np.float64)


def _seal(content: dict[str, Any]) -> str:
    """SHA-256 of the content in canonical form."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
