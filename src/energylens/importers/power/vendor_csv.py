"""CSV of ``amd-smi`` and ``rocm-smi``, and of meters at the plug: PDUs and IPMI."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from energylens.importers.power.gather import MOST_GPU_W, MOST_WALL_W, series_by_gpu
from energylens.importers.power.series import Clock, Cover, PowerLog
from energylens.importers.power.sheets import (
    Sheet,
    numbers_of,
    place_of,
    sheet_of,
    watts_of,
)
from energylens.importers.power.stamps import parse_stamps
from energylens.importers.runs import RefusedFileError

AMD, ROCM, WALL = "amd-smi CSV", "rocm-smi CSV", "PDU or IPMI CSV"

_TIMES = ("timestamp", "time", "datetime", "date_time", "date")
_AMD_POWER = ("socket_power", "power_usage", "current_socket_power", "average_socket_power")
_AMD_ENERGY = ("total_energy_consumption",)
_AMD_BUSY = ("gfx_activity", "gfx", "gfx_util", "gpu_activity")
_ROCM_POWER = re.compile(r"^(average|current socket) graphics package power \(w\)$")
_WALL_POWER = re.compile(
    r"^(?:(?:pdu|outlet|wall|plug|ac|psu|server|system|chassis|node|input|total|active|real|"
    r"apparent|instantaneous|ipmi|dcmi)[ _.-]*)*"
    r"(?:power|watts?|power[ _]reading|power[ _]usage|power[ _]draw)"
    r"(?:[ _]?[\[(]?(?P<unit>w|watts|kw|mw)[\])]?)?$"
)


def matches_amd(text: str) -> bool:
    """Whether a text is a log of amd-smi."""
    names = _header(text)
    return "gpu" in names and any(_bare(n) in _AMD_POWER + _AMD_ENERGY for n in names)


def matches_rocm(text: str) -> bool:
    """Whether a text is a log of rocm-smi."""
    names = _header(text)
    return any(_ROCM_POWER.match(n) for n in names) and "device" in names


def matches_wall(text: str) -> bool:
    """Whether a text is a log of a meter at the plug: a time, and one power that says so."""
    names = _header(text)
    if not any(n in _TIMES for n in names) or any("gpu" in n or "power.draw" in n for n in names):
        return False
    return any(_WALL_POWER.match(n) for n in names)


def _header(text: str) -> list[str]:
    first = next((line for line in text.splitlines() if line.strip()), "")
    return [cell.strip().strip('"').lower() for cell in first.split(",")]


def _bare(name: str) -> str:
    return re.sub(r"\s*[\[(].*[\])]$", "", name)


def read_amd(text: str, name: str) -> PowerLog:
    """Read a log of ``amd-smi monitor`` or ``amd-smi metric`` with ``--watch --csv``.

    Raises
    ------
    RefusedFileError
        If it has no time stamps, or no reading can be used.
    """
    sheet, names = _sheet(text, name)
    bare = [_bare(n) for n in names]
    time_s, clock = _times(sheet, bare)
    power = next((c for c in _AMD_POWER if c in bare), None)
    energy = next((c for c in _AMD_ENERGY if c in bare), None)
    watts = np.full(len(sheet.rows), np.nan)
    if power is not None:
        place = place_of(bare, power, name)
        watts = watts_of(sheet.column(place), name, sheet.lines, power, _unit(names[place]))
    joules = None
    if energy is not None:
        place = place_of(bare, energy, name)
        unit = _unit(names[place])
        if unit not in ("", "j"):
            raise RefusedFileError(f"{name}: {energy} must be in J, not in {unit}.")
        joules = numbers_of(sheet.column(place), name, sheet.lines, energy)
        joules = joules if np.isfinite(joules).any() else None
    busy = next((c for c in _AMD_BUSY if c in bare), None)
    use = None
    if busy is not None:
        use = numbers_of(sheet.column(bare.index(busy)), name, sheet.lines, busy) / 100
    series, notes = series_by_gpu(
        name,
        sheet.column(bare.index("gpu")),
        time_s,
        watts,
        energy_j=joules,
        utilisation=use,
        most_w=MOST_GPU_W,
    )
    return PowerLog(format=AMD, name=name, clock=clock, series=series, notes=(*sheet.notes, *notes))


def read_rocm(text: str, name: str) -> PowerLog:
    """Read a log of ``rocm-smi --showpower --csv`` that its logger put times to.

    Raises
    ------
    RefusedFileError
        If it has no time stamps, or no reading can be used.
    """
    sheet, names = _sheet(text, name)
    time_s, clock = _times(sheet, names)
    place = next(i for i, n in enumerate(names) if _ROCM_POWER.match(n))
    watts = watts_of(sheet.column(place), name, sheet.lines, names[place], "W")
    labels = [cell.removeprefix("card") for cell in sheet.column(names.index("device"))]
    series, notes = series_by_gpu(name, labels, time_s, watts)
    return PowerLog(
        format=ROCM, name=name, clock=clock, series=series, notes=(*sheet.notes, *notes)
    )


def read_wall(text: str, name: str) -> PowerLog:
    """Read a log of a PDU, or of IPMI readings: AC power of the whole server.

    Raises
    ------
    RefusedFileError
        If more than one column may be the power, or several outlets are in it.
    """
    sheet, names = _sheet(text, name)
    time_s, clock = _times(sheet, names)
    found = [(i, m) for i, n in enumerate(names) if (m := _WALL_POWER.match(n))]
    real = [item for item in found if "apparent" not in names[item[0]]]
    if len(real) != 1:
        raise RefusedFileError(
            f"{name}: {len(real)} of its columns may be the power of the server: keep the one "
            "that is."
        )
    place, match = real[0]
    for key in ("outlet", "outlet_id", "pdu", "host", "hostname", "server", "node"):
        if key in names and len(set(sheet.column(names.index(key)))) > 1:
            raise RefusedFileError(
                f"{name} has readings of several of {key}: keep those of the server alone."
            )
    watts = watts_of(sheet.column(place), name, sheet.lines, names[place], match["unit"] or "")
    series, notes = series_by_gpu(name, [""] * len(watts), time_s, watts, most_w=MOST_WALL_W)
    return PowerLog(
        format=WALL,
        name=name,
        clock=clock,
        cover=Cover.WALL,
        series=series,
        notes=(*sheet.notes, *notes),
    )


def _sheet(text: str, name: str) -> tuple[Sheet, list[str]]:
    sheet = sheet_of(text, name)
    return sheet, [cell.strip().lower() for cell in sheet.header]


def _unit(header: str) -> str:
    match = re.search(r"[\[(]\s*([A-Za-z]+)\s*[\])]$", header)
    return match[1] if match else ""


def _times(sheet: Sheet, names: Sequence[str]) -> tuple[np.ndarray, Clock]:
    place = next((names.index(n) for n in _TIMES if n in names), None)
    if place is None:
        raise RefusedFileError(
            f"{sheet.name} has no column of time stamps, so it cannot be joined with a benchmark: "
            "log a timestamp with each reading."
        )
    time_s, clock = parse_stamps(sheet.column(place))
    if time_s is None:
        raise RefusedFileError(
            f"{sheet.name} line {sheet.lines[0]}: {sheet.rows[0][place][:40]!r} is no time stamp."
        )
    return time_s, clock
