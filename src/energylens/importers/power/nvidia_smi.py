"""Logs of ``nvidia-smi --query-gpu=timestamp,...,power.draw --format=csv -l``, and of ``hl-smi``.

Gaudi's tool takes the same query (``-Q timestamp,index,power.draw -f csv``) and writes the same.
``nvidia-smi dmon -o DT`` writes a table of its own, with date and time in columns of their own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from energylens.importers.power.gather import series_by_gpu
from energylens.importers.power.series import Clock, PowerLog
from energylens.importers.power.sheets import Sheet, numbers_of, place_of, sheet_of, watts_of
from energylens.importers.power.stamps import is_stamp, parse_stamps
from energylens.importers.runs import RefusedFileError

FORMAT, GAUDI, DMON = "nvidia-smi CSV", "hl-smi CSV", "nvidia-smi dmon"

#: Columns of power in the order in which they are taken. The plain one is a mean over a second on
#: drivers of 2023 and later, as is ``average``; ``instant`` is a sample.
POWER = ("power.draw", "power.draw.average", "power.draw.instant")
BUSY = ("utilization.gpu", "utilization.aip")
GPU = (
    "index",
    "module_id",
    "gpu_index",
    "pci.bus_id",
    "gpu_bus_id",
    "bus_id",
    "uuid",
    "gpu_uuid",
    "serial",
    "gpu_serial",
)
#: Stamps of nvidia-smi, and of hl-smi, at the begin of a line without header.
_STAMP = re.compile(r"^(\d{4}/\d{2}/\d{2} \d{2}:\d{2}:\d{2}|\w{3} \w{3} +\d+ \d{2}:\d{2}:\d{2} )")
_HEADER = re.compile(r"^(?P<name>[^\[(]+?)\s*(?:[\[(](?P<unit>[^\])]*)[\])])?$")


def matches(text: str) -> bool:
    """Whether a file reads as such a log: by its header, or by its first line if it has none."""
    first = next((line for line in _plain(text[:20_000]).splitlines() if line.strip()), "")
    cells = [cell.strip() for cell in first.split(",")]
    names = [_split(cell)[0] for cell in cells]
    if any(name in POWER for name in names):
        return True
    return len(cells) >= 2 and any(_STAMP.match(cell) for cell in cells)


def _plain(text: str) -> str:
    """Give a log as the tool writes it that was commented, quoted or saved by a spreadsheet."""
    text = re.sub(r"^# .*$", "", text, flags=re.MULTILINE).replace('"', "")
    first = next((line for line in text.splitlines() if line.strip()), "")
    separator = next((mark for mark in ";\t" if mark in first and "," not in first), None)
    if separator is None:
        return text
    return re.sub(r"(?<=\d),(?=\d)", ".", text).replace(separator, ",")


def matches_dmon(text: str) -> bool:
    """Whether a text is the table of ``nvidia-smi dmon``, of any of its options."""
    names = _dmon_names(text)
    return "gpu" in names and "type" not in names


def _dmon_names(text: str) -> list[str]:
    first = next((line for line in text.splitlines() if line.strip()), "")
    if not first.startswith("#"):
        return []
    names = re.split(r"[\s,]+", first.lstrip("# \t").strip().lower())
    return names if names[0] in ("date", "time", "gpu") else []


def read_dmon(text: str, name: str) -> PowerLog:
    """Read the table of ``nvidia-smi dmon -s p -o DT``.

    Raises
    ------
    RefusedFileError
        If its lines have no date and time, or it was not asked for power.
    """
    names = _dmon_names(text)
    if "pwr" not in names:
        raise RefusedFileError(f"{name} has no power in it: log nvidia-smi dmon -s p -o DT.")
    if not {"date", "time"} <= set(names):
        raise RefusedFileError(
            f"{name} has no date and time with each reading: log nvidia-smi dmon -s p -o DT."
        )
    lines = [line for line in text.splitlines() if line.strip()]
    if not text.endswith("\n"):
        lines = lines[:-1]
    rows = [re.split(r"[\s,]+", line.strip()) for line in lines if not line.startswith("#")]
    units = next((re.split(r"[\s,]+", line.lstrip("# ").strip()) for line in lines[1:2]), [])
    wrong = next((row for row in rows if len(row) != len(names)), None)
    if wrong is not None or not rows:
        what = f"a line of {len(wrong)} cells" if wrong is not None else "no line"
        raise RefusedFileError(f"{name} has {what}, where its heading names {len(names)}.")
    place = {column: i for i, column in enumerate(names)}
    unit = units[place["pwr"]] if len(units) == len(names) else "W"
    cells = [[row[i] for row in rows] for i in range(len(names))]
    time_s, clock = parse_stamps(
        [f"{d}-{t}" for d, t in zip(cells[place["date"]], cells[place["time"]], strict=True)]
    )
    if time_s is None:
        raise RefusedFileError(f"{name}: {rows[0][0]} {rows[0][1]} is no date and time.")
    numbers = range(1, len(rows) + 1)
    watts = watts_of(cells[place["pwr"]], name, numbers, "pwr", unit)
    use = numbers_of(cells[place["sm"]], name, numbers, "sm") / 100 if "sm" in place else None
    series, notes = series_by_gpu(name, cells[place["gpu"]], time_s, watts, utilisation=use)
    return PowerLog(format=DMON, name=name, clock=clock, series=series, notes=tuple(notes))


def _split(cell: str) -> tuple[str, str]:
    match = _HEADER.match(cell.strip().lower())
    return (match["name"], match["unit"] or "") if match else (cell.strip().lower(), "")


def read(text: str, name: str, columns: Sequence[str] = ()) -> PowerLog:
    """Read a log.

    Parameters
    ----------
    text : str
        What the file holds.
    name : str
        What messages call it.
    columns : sequence of str
        What was queried, where the log has no header (``--power-columns``).

    Raises
    ------
    RefusedFileError
        If the columns cannot be told, or no reading can be used.
    """
    text = _plain(text)
    first = next((line for line in text.splitlines() if line.strip()), "")
    headed = any(_split(cell)[0] in (*POWER, "timestamp") for cell in first.split(","))
    sheet = sheet_of(text, name, header=headed)
    notes = list(sheet.notes)
    units = [""] * len(sheet.rows[0])
    if headed:
        names, units = map(list, zip(*(_split(cell) for cell in sheet.header), strict=True))
    elif columns:
        names = [column.strip().lower() for column in columns]
        if len(names) != len(sheet.rows[0]):
            raise RefusedFileError(
                f"{name} has {len(sheet.rows[0])} columns, but --power-columns names {len(names)}."
            )
    else:
        names, said = _inferred(sheet)
        notes.append(said)
    power = next((column for column in POWER if column in names), None)
    if power is None or "timestamp" not in names:
        raise RefusedFileError(
            f"{name} must have the columns timestamp and power.draw: log again with "
            "--query-gpu=timestamp,index,power.draw."
        )
    if power != "power.draw":
        notes.append(f"watts are {power}")
    stamps = names.index("timestamp")
    time_s, clock = parse_stamps(sheet.column(stamps))
    if time_s is None:
        raise RefusedFileError(
            f"{name} line {sheet.lines[0]}: {sheet.rows[0][stamps]!r} is no time stamp."
        )
    place = place_of(names, power, name)
    watts = watts_of(sheet.column(place), name, sheet.lines, power, units[place])
    whose = next((names.index(column) for column in GPU if column in names), None)
    labels = None if whose is None else sheet.column(whose)
    busy = None
    use = next((column for column in BUSY if column in names), None)
    if use is not None:
        busy = numbers_of(sheet.column(names.index(use)), name, sheet.lines, use) / 100
    series, said_more = series_by_gpu(name, labels, time_s, watts, utilisation=busy)
    gpu_names: tuple[str, ...] = ()
    if "name" in names:
        gpu_names = tuple(dict.fromkeys(sheet.column(names.index("name"))))
    stamped = sheet.rows[0][stamps]  # as 2026/08/16 by nvidia-smi, by hl-smi with names
    gaudi = "utilization.aip" in names or any(n.startswith("HL-") for n in gpu_names)
    gaudi = gaudi or stamped[:1].isalpha()
    return PowerLog(
        format=GAUDI if gaudi else FORMAT,
        name=name,
        clock=clock if clock is not Clock.NONE else Clock.LOCAL,
        series=series,
        gpu_names=gpu_names,
        notes=(*notes, *said_more),
    )


def _inferred(sheet: Sheet) -> tuple[list[str], str]:
    """Tell the columns of a log without header: watts have a unit, or alone have two decimals."""
    first = sheet.rows[0]
    names = [f"column {i + 1}" for i in range(len(first))]
    stamps = [i for i, cell in enumerate(first) if not _is_number(cell) and is_stamp(cell)]
    with_unit = [i for i, cell in enumerate(first) if re.match(r"^[\d.]+ m?W$", cell)]
    decimal = [i for i, cell in enumerate(first) if re.match(r"^\d+\.\d\d?$", cell)]
    watts = with_unit or decimal
    if len(stamps) != 1 or len(watts) != 1:
        raise RefusedFileError(
            f"{sheet.name} has no header, and {len(watts)} of its columns may be watts: say what "
            "was queried with --power-columns timestamp,index,power.draw."
        )
    names[stamps[0]], names[watts[0]] = "timestamp", "power.draw"
    for i, cell in enumerate(first):
        values = set(sheet.column(i))
        if i in (*stamps, *watts):
            continue
        if re.match(r"^(GPU-|[0-9A-Fa-f]{8}:)", cell):
            names[i] = "uuid" if cell.startswith("GPU-") else "pci.bus_id"
        elif values == {str(n) for n in range(len(values))} and _cycles(sheet.column(i)):
            names[i] = "index"
            break
    said = f"it has no header: column {watts[0] + 1} is taken for watts"
    return names, said


def _is_number(cell: str) -> bool:
    return bool(re.match(r"^\d+(\.\d*)?$", cell))


def _cycles(cells: Sequence[str]) -> bool:
    """Whether cells go 0, 1, ... n - 1, over and over."""
    count = len(set(cells))
    numbers = np.array([int(cell) for cell in cells])
    return bool((numbers == np.arange(len(numbers)) % count).all()) and (
        count > 1 or cells[0] == "0"
    )
