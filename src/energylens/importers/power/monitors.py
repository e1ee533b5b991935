"""Joules of named stretches of time: Zeus and CodeCarbon."""

from __future__ import annotations

import re

import numpy as np

from energylens.importers.power.series import EnergyWindow, PowerLog
from energylens.importers.power.sheets import numbers_of, sheet_of
from energylens.importers.power.stamps import parse_stamps
from energylens.importers.runs import RefusedFileError
from energylens.words import J_PER_KWH

ZEUS, CODECARBON = "Zeus CSV", "CodeCarbon emissions.csv"


def matches_zeus(text: str) -> bool:
    """Whether a text is the log of a ZeusMonitor."""
    return text.startswith("start_time,window_name,elapsed_time")


def read_zeus(text: str, name: str) -> PowerLog:
    """Read the windows of a ZeusMonitor.

    Their start is of the time of day in releases since 2024, before of a clock that no other file
    has.

    Raises
    ------
    RefusedFileError
        If it breaks off, or a GPU has no joules.
    """
    sheet = sheet_of(text, name)
    gpus = [(i, m[1]) for i, c in enumerate(sheet.header) if (m := re.match(r"gpu(\d+)_energy", c))]
    if not gpus:
        raise RefusedFileError(f"{name} has no column gpu0_energy: no GPU was measured.")
    elapsed = numbers_of(sheet.column(2), name, sheet.lines, "elapsed_time")
    begins, clock = parse_stamps(sheet.column(0))
    joules = {
        label: numbers_of(sheet.column(i), name, sheet.lines, sheet.header[i]) for i, label in gpus
    }
    windows = []
    for row, window in enumerate(sheet.column(1)):
        values = {label: float(column[row]) for label, column in joules.items()}
        if not elapsed[row] > 0 or not all(value >= 0 for value in values.values()):
            raise RefusedFileError(
                f"{name} line {sheet.lines[row]}: a window must have a time above 0 s and joules "
                "of 0 or more."
            )
        end_s = float(begins[row] + elapsed[row]) if begins is not None else None
        windows.append(
            EnergyWindow(name=window, elapsed_s=float(elapsed[row]), joules=values, end_s=end_s)
        )
    return PowerLog(format=ZEUS, name=name, clock=clock, windows=tuple(windows), notes=sheet.notes)


def matches_codecarbon(text: str) -> bool:
    """Whether a text is a table of CodeCarbon, of any generation."""
    header = text.split("\n", 1)[0].split(",")
    return {"timestamp", "duration", "emissions"} <= set(header) and (
        "energy_consumed" in header or "gpu_energy" in header
    )


def read_codecarbon(text: str, name: str) -> PowerLog:
    """Read runs of CodeCarbon: energies are cumulative since each run's start, in kWh.

    They are multiplied by the ``pue`` that the run was told, which is taken out again: it is the
    building's, not the GPUs'.

    Raises
    ------
    RefusedFileError
        If it has no GPU energy, or only zeros, as without counters.
    """
    sheet = sheet_of(text, name)
    place = {column: i for i, column in enumerate(sheet.header)}
    if "gpu_energy" not in place:
        raise RefusedFileError(
            f"{name} has no column gpu_energy: energy_consumed adds estimates of CPU and RAM."
        )
    run_column = "run_id" if "run_id" in place else "project_name"
    if run_column not in place:
        raise RefusedFileError(f"{name} has no column run_id: its rows cannot be told apart.")
    seconds, clock = parse_stamps(sheet.column(place["timestamp"]))
    if seconds is None:
        raise RefusedFileError(f"{name}: its timestamp is no time.")
    elapsed = numbers_of(sheet.column(place["duration"]), name, sheet.lines, "duration")
    kwh = numbers_of(sheet.column(place["gpu_energy"]), name, sheet.lines, "gpu_energy")
    pue = np.ones(len(kwh))
    if "pue" in place:
        stated = numbers_of(sheet.column(place["pue"]), name, sheet.lines, "pue")
        pue = np.where(np.isfinite(stated), stated, 1.0)
    counts = sheet.column(place["gpu_count"]) if "gpu_count" in place else None
    last: dict[str, int] = {}
    for row, run in enumerate(sheet.column(place[run_column])):
        last[run or f"line {sheet.lines[row]}"] = row
    windows = []
    for run, row in last.items():
        if not (elapsed[row] > 0 and kwh[row] > 0):
            continue
        if not pue[row] >= 1:
            raise RefusedFileError(
                f"{name} line {sheet.lines[row]}: pue must be 1 or more, not {pue[row]:g}."
            )
        count = re.fullmatch(r"(\d{1,4})(?:\.0)?", counts[row]) if counts is not None else None
        task = sheet.rows[row][place["task_name"]] if "task_name" in place else ""
        windows.append(
            EnergyWindow(
                name=task or run,
                elapsed_s=float(elapsed[row]),
                joules={"all": float(kwh[row] / pue[row]) * J_PER_KWH},
                end_s=float(seconds[row]),
                all_gpus=True,
                gpus=int(count[1]) or None if count is not None else None,
            )
        )
    if not windows:
        raise RefusedFileError(
            f"{name} has a gpu_energy of 0 kWh in every run, as without energy counters: it gave "
            "nothing."
        )
    notes = [*sheet.notes, "joules are gpu_energy, the last row of the run"]
    if (pue > 1).any():
        notes.append("gpu_energy is multiplied by the building's PUE, which is taken out again")
    return PowerLog(
        format=CODECARBON, name=name, clock=clock, windows=tuple(windows), notes=tuple(notes)
    )
