"""Meters at the plug that log text: SPEC's PTDaemon, as MLPerf uses it, and ``ipmitool dcmi``."""

from __future__ import annotations

import re

import numpy as np

from energylens.importers.power.gather import MOST_WALL_W, series_by_gpu
from energylens.importers.power.series import Cover, PowerLog
from energylens.importers.power.stamps import parse_stamps
from energylens.importers.runs import RefusedFileError

PTDAEMON, IPMI = "PTDaemon log", "ipmitool dcmi power reading"

_PT_LINE = re.compile(r"^Time,(?P<time>[^,]+),Watts,(?P<watts>[^,]+)(?:,|$)")
#: What PTDaemon writes in place of a reading that the meter did not give.
_PT_FAULT = re.compile(r"^Time,[^,]+,(ERROR|WARNING),")
_IPMI_WATTS = re.compile(r"Instantaneous power reading\s*:\s*(\d+(?:\.\d+)?)\s*(\w+)")
_IPMI_TIME = re.compile(r"IPMI timestamp\s*:\s*(.+?)\s*$")


def matches_ptdaemon(text: str) -> bool:
    """Whether a text is a log of PTDaemon."""
    return re.search(r"^Time,[^,]+,Watts,", text, re.MULTILINE) is not None


def read_ptdaemon(text: str, name: str) -> PowerLog:
    """Read a log of PTDaemon; its stamps are local to the machine it ran on.

    Raises
    ------
    RefusedFileError
        If a line in the middle breaks off, or watts are none.
    """
    times, watts, notes = [], [], []
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        if not line.startswith("Time,") or _PT_FAULT.match(line):
            continue
        match = _PT_LINE.match(line)
        try:
            value = float(match["watts"]) if match else float("nan")
        except ValueError:
            value = float("nan")
        if match is None or not np.isfinite(value):
            if number == len(lines) and not text.endswith("\n"):
                notes.append("its last line was cut in the middle and is left out")
                continue
            raise RefusedFileError(f"{name} line {number} has no watts: mend or remove the line.")
        # The meter writes -1 where it is between ranges.
        times.append(match["time"])
        watts.append(value if value >= 0 else float("nan"))
    return _wall(times, watts, name, PTDAEMON, notes)


def matches_ipmi(text: str) -> bool:
    """Whether a text is repeated answers of ``ipmitool dcmi power reading``."""
    return "Instantaneous power reading" in text


def read_ipmi(text: str, name: str) -> PowerLog:
    """Read repeated answers of ``ipmitool dcmi power reading``.

    Raises
    ------
    RefusedFileError
        If readings and times do not come in pairs.
    """
    times, watts = [], []
    whole = text if text.endswith("\n") else text[: text.rfind("\n") + 1]
    for line in whole.splitlines():
        if match := _IPMI_WATTS.search(line):
            if match[2].lower() not in ("watts", "watt", "w"):
                raise RefusedFileError(f"{name}: its power is in {match[2]}, not in W.")
            watts.append(float(match[1]))
        elif match := _IPMI_TIME.search(line):
            times.append(match[1])
    if len(watts) - len(times) == 1 and not text.endswith("\n"):
        watts = watts[:-1]
    if len(times) != len(watts):
        raise RefusedFileError(
            f"{name} has {len(watts)} readings and {len(times)} times: it breaks off, or leaves "
            "the times out."
        )
    return _wall(times, watts, name, IPMI, [])


def _wall(times: list[str], watts: list[float], name: str, form: str, notes: list[str]) -> PowerLog:
    time_s, clock = parse_stamps(times)
    if time_s is None:
        raise RefusedFileError(f"{name} has no reading with a time.")
    series, said = series_by_gpu(
        name, [""] * len(watts), time_s, np.array(watts), most_w=MOST_WALL_W
    )
    return PowerLog(
        format=form,
        name=name,
        clock=clock,
        cover=Cover.WALL,
        series=series,
        notes=(*notes, *said),
    )
