"""Candidate lists of other tools, to be ranked by joules.

NVIDIA AISimulate writes ``recommendation.json`` (candidates with a status and a configuration),
AIConfigurator ``best_config_topn.csv`` or ``pareto.csv`` (columns tp, pp, dp, moe_ep, bs). Only
the layouts and batch limits are taken; joules and times are those of the laws.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from energylens import files
from energylens.errors import InputError
from energylens.records import Configuration

#: What each knob is called, in the order looked for.
SPELLINGS: Mapping[str, tuple[str, ...]] = {
    "tensor_parallel": ("tp", "tp_size", "tensor_parallel", "tensor_parallel_size"),
    "pipeline_parallel": ("pp", "pp_size", "pipeline_parallel", "pipeline_parallel_size"),
    "data_parallel": (
        "dp", "dp_size", "attention_dp", "attention_dp_size", "data_parallel", "data_parallel_size",
        "replicas", "num_replicas", "workers",
    ),
    "expert_parallel": ("moe_ep", "moe_ep_size", "ep", "ep_size", "expert_parallel"),
    "batch": (
        "bs", "batch_size", "max_batch_size", "max_num_seqs", "concurrency", "max_num_sequences",
    ),
}  # fmt: skip
DEFAULT_BATCH = 256.0
#: Of a row that has prompts and outputs served apart.
APART = ("(p)tp", "(d)tp")


@dataclass(frozen=True, kw_only=True)
class Recommended:
    """One candidate, as another tool named it."""

    name: str
    configuration: Configuration


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """The feasible candidates of a list, and how many were left out by their status."""

    candidates: tuple[Recommended, ...]
    left_out: Mapping[str, int]


def read_recommendation(path: str | Path) -> Recommendation:
    """Read a candidate list: JSON of AISimulate, or CSV of AIConfigurator.

    The batch size of a row is that of one replica.

    Raises
    ------
    ArtefactError or TableError
        If the file cannot be read.
    InputError
        If it holds no feasible candidate with a tensor-parallel degree.
    """
    rows = list(_csv(path) if str(path).lower().endswith(".csv") else _json(path))
    found, left_out = [], dict[str, int]()
    for name, status, values in rows:
        if status not in ("feasible", "ok", "success", ""):
            left_out[status] = left_out.get(status, 0) + 1
            continue
        knobs = {knob: _number(values, spellings) for knob, spellings in SPELLINGS.items()}
        if knobs["tensor_parallel"] is None:
            apart = any(name in values for name in APART)
            why = "disaggregated" if apart else "without a tensor-parallel degree"
            left_out[why] = left_out.get(why, 0) + 1
            continue
        degrees = {knob: int(value) for knob, value in knobs.items() if value and knob != "batch"}
        replicas = degrees.get("data_parallel", 1)
        batch = (knobs["batch"] or DEFAULT_BATCH) * replicas
        found.append(
            Recommended(name=name, configuration=Configuration(**degrees, batch_size=batch))
        )
    if not found:
        raise InputError(
            f"{path} must list feasible candidates with their degrees of parallelism (tp, pp, dp, "
            f"bs); of {len(rows)} it lists none that is"
            + "".join(f"; {count} are {why}" for why, count in left_out.items())
        )
    return Recommendation(candidates=tuple(found), left_out=left_out)


def _json(path: str | Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    document = files.read_json(path)
    listed = document.get("candidates") if isinstance(document, dict) else document
    if not isinstance(listed, list):
        raise InputError(f'{path} must be a JSON object with a list "candidates"')
    for number, item in enumerate(listed, 1):
        if not isinstance(item, dict):
            raise InputError(f"{path}: candidate {number} must be an object")
        values = dict(_flat(item.get("config", item.get("configuration", item))))
        yield (
            str(item.get("candidate_id", number)),
            str(item.get("status", "feasible")).lower(),
            values,
        )


def _csv(path: str | Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for number, row in enumerate(files.read_rows(path), 1):
        values = {key.strip().lower(): value for key, value in row.items()}
        yield f"{number}", str(values.get("status") or "").lower(), values


def _flat(value: Any) -> Iterator[tuple[str, Any]]:
    """All named values of nested objects; the outermost of a name wins."""
    if not isinstance(value, dict):
        return
    inner = [item for item in value.values() if isinstance(item, dict)]
    for item in inner:
        yield from _flat(item)
    for key, item in value.items():
        if not isinstance(item, dict | list):
            yield str(key).lower().replace("-", "_"), item


def _number(values: Mapping[str, Any], spellings: tuple[str, ...]) -> float | None:
    for name in spellings:
        try:
            number = float(values[name])
        except (KeyError, TypeError, ValueError):
            continue
        if number >= 1 and number == int(number):
            return number
    return None
