"""DCGM's power and energy: exporter text with time stamps, and range queries of Prometheus.

The energy counter is in mJ; where it is not exported, watts are integrated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from energylens.importers.power.gather import series_by_gpu
from energylens.importers.power.series import Clock, PowerLog, Series
from energylens.importers.runs import Node, RefusedFileError

TEXT, RANGE = "DCGM exporter text", "Prometheus range query"

POWER = ("DCGM_FI_DEV_POWER_USAGE", "DCGM_FI_DEV_POWER_USAGE_INSTANT")
ENERGY = "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"
BUSY = "DCGM_FI_DEV_GPU_UTIL"
JOULES_PER_COUNT = 1e-3

_LINE = re.compile(
    r"^(?P<name>DCGM_FI_\w+)\{(?P<labels>.*)\}\s+(?P<value>\S+)(?:\s+(?P<stamp>-?\d+))?\s*$"
)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class _Reading:
    gpu: str
    time_s: float
    value: float


def matches_text(text: str) -> bool:
    """Whether a text is of the exporter."""
    return re.search(r"^DCGM_FI_\w+\{", text, re.MULTILINE) is not None


def read_text(text: str, name: str) -> PowerLog:
    """Read scrapes of the exporter, one after the other.

    Raises
    ------
    RefusedFileError
        If scrapes have no time stamps, or a GPU has fewer than two.
    """
    found: dict[str, list[_Reading]] = {}
    names: dict[str, None] = {}
    stamped = True
    # A line that the exporter's reader was killed in may still look like a whole one.
    whole = text if text.endswith("\n") else text[: text.rfind("\n") + 1]
    for number, line in enumerate(whole.splitlines(), 1):
        if not line.startswith(("DCGM_FI_DEV_POWER", ENERGY, BUSY)):
            continue
        match = _LINE.match(line)
        if match is None:
            raise RefusedFileError(f"{name} line {number} breaks off in the middle.")
        labels = dict(_LABEL.findall(match["labels"]))
        value = _number(match["value"], f"{name} line {number}")
        stamped &= match["stamp"] is not None
        if labels.get("modelName"):
            names[labels["modelName"]] = None
        stamp = float(match["stamp"] or 0) / 1000
        found.setdefault(match["name"], []).append(_Reading(_gpu(labels), stamp, value))
    if not any(key in found for key in (*POWER, ENERGY)):
        raise RefusedFileError(f"{name} has neither DCGM_FI_DEV_POWER_USAGE nor {ENERGY}.")
    if not stamped:
        raise RefusedFileError(
            f"{name} is a scrape without time stamps: one reading at an unknown time is no log; "
            "query Prometheus over the run (query_range) instead."
        )
    return _log(found, name, TEXT, tuple(names))


def matches_range(document: object) -> bool:
    """Whether a document is the answer to a range query, or the bare list that promtool prints."""
    if isinstance(document, list):
        return bool(document) and all(
            isinstance(item, Mapping) and isinstance(item.get("metric"), Mapping)
            for item in document
        )
    if not isinstance(document, Mapping) or "status" not in document:
        return False
    data = document.get("data")
    return isinstance(data, Mapping) and "resultType" in data


def read_range(documents: Sequence[Mapping[str, object] | list[object]], name: str) -> PowerLog:
    """Read answers to range queries, of power, energy, or both.

    Raises
    ------
    RefusedFileError
        If the query failed or was no range, or has neither power nor energy in it.
    """
    found: dict[str, list[_Reading]] = {}
    names: dict[str, None] = {}
    for document in documents:
        if isinstance(document, list):
            ranges = all(isinstance(item, Mapping) and "values" in item for item in document)
            kind = "matrix" if ranges else "vector"
            document = {"status": "success", "data": {"resultType": kind, "result": document}}
        node = Node(document, name)
        if node.text("status") != "success":
            raise RefusedFileError(f"{name} is the answer to a query that failed.")
        data = node.need_inner("data")
        if data.text("resultType") != "matrix":
            raise RefusedFileError(
                f"{name} is the answer to a query of one moment: ask for a range (query_range)."
            )
        for result in data.each("result"):
            metric = result.need_inner("metric")
            labels = {k: v for k, v in metric.fields.items() if isinstance(v, str)}
            kind = labels.get("__name__", "")
            if not kind:
                raise RefusedFileError(
                    f"{name}: a series has no __name__, as the result of a function: query the "
                    "metric itself, so that its unit is known."
                )
            if labels.get("modelName"):
                names[labels["modelName"]] = None
            values = result.fields.get("values")
            if not isinstance(values, list):
                raise RefusedFileError(f"{name}: a series has no values: the file is not whole.")
            for pair in values:
                if not isinstance(pair, list) or len(pair) != 2 or isinstance(pair[0], bool):
                    raise RefusedFileError(f"{name}: a value is no pair of time and number.")
                if not isinstance(pair[0], int | float) or not isinstance(
                    pair[1], str | int | float
                ):
                    raise RefusedFileError(f"{name}: a value is no pair of time and number.")
                value = _number(str(pair[1]), name)
                found.setdefault(kind, []).append(_Reading(_gpu(labels), float(pair[0]), value))
    if not any(key in found for key in (*POWER, ENERGY)):
        there = ", ".join(sorted(found)[:3]) or "nothing"
        raise RefusedFileError(
            f"{name} has {there}, and neither DCGM_FI_DEV_POWER_USAGE (W) nor {ENERGY} (mJ)."
        )
    return _log(found, name, RANGE, tuple(names))


def _number(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise RefusedFileError(f"{where}: {text[:40]!r} is no number.") from None


def _gpu(labels: Mapping[str, str]) -> str:
    """Whose reading it is: its index, and its host where several are told apart."""
    for key in ("gpu", "GPU", "gpu_id", "device", "minor_number", "UUID", "uuid"):
        if labels.get(key):
            label = labels[key].removeprefix("nvidia")
            host = labels.get("Hostname") or labels.get("hostname") or labels.get("instance") or ""
            return f"{host}\t{label}"
    return "\t0"


def _log(
    found: Mapping[str, list[_Reading]], name: str, form: str, names: tuple[str, ...]
) -> PowerLog:
    power = next((key for key in POWER if key in found), None)
    hosts = {r.gpu.split("\t")[0] for readings in found.values() for r in readings}

    def label(gpu: str) -> str:
        host, own = gpu.split("\t")
        return own if len(hosts) == 1 else f"{host}:{own}"

    times: dict[str, dict[float, list[float]]] = {}
    for place, key in enumerate((power, ENERGY, BUSY)):
        for reading in found.get(key or "", []):
            row = times.setdefault(label(reading.gpu), {}).setdefault(
                reading.time_s, [np.nan, np.nan, np.nan]
            )
            # A GPU in parts, or of several pods, is listed more than once, with the same watts.
            if np.isfinite(row[place]) and abs(row[place] - reading.value) > 0.01 * row[place]:
                if key == BUSY:
                    reading = _Reading(reading.gpu, reading.time_s, max(row[place], reading.value))
                else:
                    raise RefusedFileError(
                        f"{name}: {key} of GPU {label(reading.gpu)} is {row[place]:g} and "
                        f"{reading.value:g} at one time, which cannot both be: its labels do not "
                        "tell the GPUs apart."
                    )
            row[place] = reading.value
    series: list[Series] = []
    notes: list[str] = []
    for gpu, rows in times.items():
        stamps = np.array(sorted(rows))
        table = np.array([rows[t] for t in stamps])
        energy = table[:, 1] * JOULES_PER_COUNT if np.isfinite(table[:, 1]).sum() >= 2 else None
        if energy is None and not np.isfinite(table[:, 0]).any():
            continue
        busy = table[:, 2] / 100 if np.isfinite(table[:, 2]).any() else None
        made, said = series_by_gpu(
            name, [gpu] * len(stamps), stamps, table[:, 0], energy_j=energy, utilisation=busy
        )
        series += made
        notes += said
    if not series:
        raise RefusedFileError(f"{name} has no GPU with two readings of its power or energy.")
    series.sort(key=lambda s: (0, int(s.label), "") if s.label.isdigit() else (1, 0, s.label))
    if any(s.integrated for s in series):
        notes.append(f"no {ENERGY} in it: watts are integrated")
    return PowerLog(
        format=form,
        name=name,
        clock=Clock.EPOCH,
        series=tuple(series),
        gpu_names=names,
        notes=tuple(dict.fromkeys(notes)),
    )
