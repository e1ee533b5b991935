"""CSV of ``amd-smi`` and ``rocm-smi``, of loggers of one's own, and of meters at the plug.

Columns as in the tools' own source: ``amd-smi monitor`` (``power_usage``, of ROCm 6 and later) and
``amd-smi metric`` (``socket_power``, ``total_energy_consumption`` in J), both with whole seconds
since 1970 under ``timestamp`` when they watch; ``rocm-smi`` without any time, its power under two
names of which one line has one, and nothing for the second die of an MI250, whose power is counted
with the first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from energylens.importers.power.gather import MOST_GPU_W, MOST_WALL_W, series_by_gpu
from energylens.importers.power.series import Clock, Cover, PowerLog
from energylens.importers.power.sheets import Sheet, numbers_of, place_of, sheet_of, watts_of
from energylens.importers.power.stamps import is_stamp, parse_stamps
from energylens.importers.runs import RefusedFileError

AMD, ROCM, WALL = "amd-smi CSV", "rocm-smi CSV", "PDU or IPMI CSV"
OWN = "CSV of a GPU power logger"

_TIMES = ("timestamp", "time", "datetime", "date_time", "date")
_TIMES_OWN = (*_TIMES, "timestamp_unix", "unix_timestamp", "timestamp_s", "epoch", "epoch_s", "ts")
_AMD_POWER = ("socket_power", "power_usage", "current_socket_power", "average_socket_power")
_AMD_ENERGY = ("total_energy_consumption",)
_AMD_BUSY = ("gfx_activity", "gfx", "gfx_util", "gpu_activity")
#: Columns of loggers of one's own; the unit is part of the name.
_OWN_GPU = ("gpu", "gpu_index", "gpu_id", "gpu_idx", "device", "device_id", "card")
_OWN_POWER = re.compile(
    r"^(?:gpu_|socket_|average_|mean_)*power(?:_draw|_usage)?_(?P<unit>w|watts?|mw|milliwatts)$"
)
_OWN_BUSY = ("gpu_util_pct", "gfx_activity_pct", "utilization_pct", "gpu_utilization_pct")
_ROCM_POWER = re.compile(r"^(average|current socket) graphics package power \(w\)$")
_ROCM_ENERGY, _ROCM_BUSY = "accumulated energy (uj)", "gpu use (%)"
_WALL_WHOSE = (
    r"pdu|outlet|wall|plug|ac|psu|server|system|chassis|node|input|active|real|apparent|ipmi|dcmi"
)
_WALL_POWER = re.compile(
    rf"^(?:(?:(?P<whose>{_WALL_WHOSE})|total|instantaneous)[ _.-]*)*"
    r"(?:power|watts?|power[ _]reading|power[ _]usage|power[ _]draw)"
    r"(?:[ _]?[\[(]?(?P<unit>w|watts|kw|mw)[\])]?)?$"
)
_WALL_PLACES = ("outlet", "outlet_id", "pdu", "host", "hostname", "server", "node")
#: What the tools print between their tables.
_NOISE = re.compile(r"^\s*('CTRL' \+ 'C'|WARNING\b|ERROR\b|={5,}).*$", re.MULTILINE)


def matches_amd(text: str) -> bool:
    """Whether a text is a log of amd-smi, or of a logger of one's own that names GPU and unit."""
    names = _header(text)
    return ("gpu" in names and any(_bare(n) in _AMD_POWER + _AMD_ENERGY for n in names)) or (
        _is_own(names)
    )


def _is_own(names: Sequence[str]) -> bool:
    return any(n in _OWN_GPU for n in names) and any(_OWN_POWER.match(n) for n in names)


def matches_rocm(text: str) -> bool:
    """Whether a text is a log of rocm-smi."""
    names = _header(_stamped(text))
    columns = any(_ROCM_POWER.match(n) for n in names) or _ROCM_ENERGY in names
    return columns and "device" in names


def matches_wall(text: str) -> bool:
    """Whether a text is a log of a meter at the plug: a time, and one power that says so."""
    names = _header(text)
    if not any(n in _TIMES for n in names) or any("gpu" in n or "power.draw" in n for n in names):
        return False
    return any(_WALL_POWER.match(n) for n in names)


def _header(text: str) -> list[str]:
    head = _NOISE.sub("", text[:20_000])
    first = next((line for line in head.splitlines() if line.strip()), "")
    return [cell.strip().strip('"').lower() for cell in first.split(",")]


def _bare(name: str) -> str:
    return re.sub(r"\s*[\[(].*[\])]$", "", name)


def _stamped(text: str) -> str:
    """Put the time that a line of its own tells before the readings that follow it.

    ``rocm-smi`` prints none: loggers call ``date`` before it.
    """
    text = _NOISE.sub("", text)
    lines = text.splitlines(keepends=True)
    first = next((line.strip() for line in lines if line.strip()), "")
    if "," in first or not is_stamp(first):
        return text
    stamp, made = "", []
    for line in lines:
        bare = line.strip()
        if bare and "," not in bare and is_stamp(bare):
            stamp = bare
            made.append("\n")
        elif bare.lower().startswith("device,"):
            made.append(f"timestamp,{line}")
        else:
            made.append(f"{stamp},{line}" if bare else line)
    return "".join(made)


def read_amd(text: str, name: str) -> PowerLog:
    """Read a log of ``amd-smi monitor`` or ``amd-smi metric`` with ``--watch --csv``.

    Raises
    ------
    RefusedFileError
        If it has no time stamps, or no reading can be used.
    """
    sheet, names = _sheet(text, name)
    bare = [_bare(n) for n in names]
    own = not any(n in _AMD_POWER + _AMD_ENERGY for n in bare)
    time_s, clock = _times(sheet, bare, _TIMES_OWN)
    power = next((c for c in _AMD_POWER if c in bare), None)
    energy = next((c for c in _AMD_ENERGY if c in bare), None)
    watts = np.full(len(sheet.rows), np.nan)
    if power is not None:
        place = place_of(bare, power, name)
        watts = watts_of(sheet.column(place), name, sheet.lines, power, _unit(names[place]))
    elif own:
        watts = _own_watts(sheet, names)
    joules = None
    if energy is not None:
        place = place_of(bare, energy, name)
        unit = _unit(names[place])
        if unit not in ("", "j"):
            raise RefusedFileError(f"{name}: {energy} must be in J, not in {unit}.")
        joules = _moved(numbers_of(sheet.column(place), name, sheet.lines, energy))
    busy = next((c for c in _OWN_BUSY if c in bare), None) if own else None
    busy = busy or next((c for c in _AMD_BUSY if c in bare), None)
    use = None
    if busy is not None:
        use = numbers_of(sheet.column(bare.index(busy)), name, sheet.lines, busy) / 100
    gpu = next(c for c in (_OWN_GPU if own else ("gpu",)) if c in names)
    series, notes = series_by_gpu(
        name,
        [_label(cell) for cell in sheet.column(names.index(gpu))],
        time_s,
        watts,
        energy_j=joules,
        utilisation=use,
        most_w=MOST_GPU_W,
    )
    form = OWN if own else AMD
    return PowerLog(
        format=form, name=name, clock=clock, series=series, notes=(*sheet.notes, *notes)
    )


def _own_watts(sheet: Sheet, names: Sequence[str]) -> np.ndarray:
    found = [(i, m["unit"]) for i, n in enumerate(names) if (m := _OWN_POWER.match(n))]
    if len(found) != 1:
        raise RefusedFileError(
            f"{sheet.name}: {len(found)} of its columns may be the power of a GPU: keep the one "
            "that is."
        )
    for key in ("host", "hostname", "node"):
        if key in names and len(set(sheet.column(names.index(key)))) > 1:
            raise RefusedFileError(
                f"{sheet.name} has readings of several of {key}, whose GPUs have the same numbers: "
                "give one file for each."
            )
    place, unit = found[0]
    return watts_of(sheet.column(place), sheet.name, sheet.lines, names[place], unit)


def _label(cell: str) -> str:
    return re.sub(r"^(card|gpu)[ _-]?(?=\d+$)", "", cell, flags=re.IGNORECASE)


def _moved(joules: np.ndarray) -> np.ndarray | None:
    """Give counters, None if none counted: a second die, and some cards, say 0 for ever."""
    joules = np.where(joules > 0, joules, np.nan)
    return joules if np.isfinite(joules).any() else None


def read_rocm(text: str, name: str) -> PowerLog:
    """Read a log of ``rocm-smi --showpower --csv`` that its logger put times to.

    The times are a column, or a line of their own before each table. ``--showenergycounter`` and
    ``--showuse`` are read where they are.

    Raises
    ------
    RefusedFileError
        If it has no time stamps, or no reading can be used.
    """
    sheet, names = _sheet(_stamped(text), name)
    time_s, clock = _times(sheet, names, _TIMES_OWN)
    watts = np.full(len(sheet.rows), np.nan)
    for place, column in enumerate(names):
        if _ROCM_POWER.match(column):
            read = watts_of(sheet.column(place), name, sheet.lines, column, "W")
            watts = np.where(np.isfinite(watts), watts, read)
    joules = use = None
    if _ROCM_ENERGY in names:
        place = place_of(names, _ROCM_ENERGY, name)
        joules = numbers_of(sheet.column(place), name, sheet.lines, _ROCM_ENERGY)
        joules = _moved(joules * 1e-6)
    if _ROCM_BUSY in names:
        place = place_of(names, _ROCM_BUSY, name)
        use = numbers_of(sheet.column(place), name, sheet.lines, _ROCM_BUSY) / 100
    labels = [_label(cell) for cell in sheet.column(names.index("device"))]
    series, notes = series_by_gpu(
        name, labels, time_s, watts, energy_j=joules, utilisation=use, most_w=MOST_GPU_W
    )
    if re.search(r"secondary die", text, re.IGNORECASE):
        notes.append("the power of a second die is counted with the first's")
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
    if not match["unit"] and "watt" not in names[place]:
        raise RefusedFileError(
            f"{name}: its column {sheet.header[place]} names no unit: call it power_w, power_kw or "
            "power_mw."
        )
    if not match["whose"] and not any(key in names for key in _WALL_PLACES):
        raise RefusedFileError(
            f"{name}: its column {sheet.header[place]} does not say whose power it is: call it "
            "wall_power_w if it is the server's at its plug, or add a column gpu with the GPU's "
            "number."
        )
    for key in _WALL_PLACES:
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
    sheet = sheet_of(_NOISE.sub("", text), name)
    return sheet, [cell.strip().lower() for cell in sheet.header]


def _unit(header: str) -> str:
    match = re.search(r"[\[(]\s*([A-Za-z]+)\s*[\])]$", header)
    return match[1] if match else ""


def _times(
    sheet: Sheet, names: Sequence[str], known: Sequence[str] = _TIMES
) -> tuple[np.ndarray, Clock]:
    place = next((names.index(n) for n in known if n in names), None)
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
