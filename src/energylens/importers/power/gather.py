"""From columns of a log to a series for each GPU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from energylens.cases import FloatArray
from energylens.importers.power.series import Series
from energylens.importers.runs import RefusedFileError

#: A clock that a log sees step back by more than this was set in between, s.
STEP_BACK_S = 1.0

#: More watts than any GPU, or any server for readings at the plug: a unit mistaken for another.
MOST_GPU_W, MOST_WALL_W = 5e3, 2e5


def series_by_gpu(
    name: str,
    labels: Sequence[str] | None,
    time_s: FloatArray,
    power_w: FloatArray,
    *,
    energy_j: FloatArray | None = None,
    utilisation: FloatArray | None = None,
    most_w: float = MOST_GPU_W,
) -> tuple[tuple[Series, ...], list[str]]:
    """Sort readings by GPU and by time.

    Parameters
    ----------
    name : str
        The log, as messages call it.
    labels : sequence of str or None
        Whose reading each is, n; None where no column says, so that repeating stamps must.
    time_s, power_w : ndarray of float, shape (n,)
        Seconds and watts; readings that are NaN are gaps.
    energy_j, utilisation : ndarray of float, shape (n,), optional
        Counter in J, and share of time busy.
    most_w : float
        More watts than this are refused.

    Returns
    -------
    tuple of (tuple of Series) and (list of str)
        Series in the order of their labels, and remarks.

    Raises
    ------
    RefusedFileError
        If a stamp cannot be read, the clock steps back, or no GPU has two readings.
    """
    if np.isnan(time_s).any():
        row = int(np.argmax(np.isnan(time_s)))
        raise RefusedFileError(f"{name}: reading {row + 1} has no time stamp that can be read.")
    if np.nanmax(power_w, initial=0.0) > most_w:
        raise RefusedFileError(
            f"{name}: {np.nanmax(power_w):g} W is more than one meter of its kind can see "
            f"({most_w:g} W), so the readings are in another unit."
        )
    notes: list[str] = []
    if labels is None:
        labels, said = _by_turns(name, time_s)
        notes += said
    order: dict[str, list[int]] = {}
    for row, label in enumerate(labels):
        order.setdefault(label, []).append(row)
    found: list[Series] = []
    blind: list[str] = []
    for label in sorted(order, key=_numeric_first):
        rows = np.array(order[label])
        whole = Series(
            label=label,
            time_s=time_s[rows],
            power_w=power_w[rows],
            energy_j=None if energy_j is None else energy_j[rows],
            utilisation=None if utilisation is None else utilisation[rows],
        )
        kept = _rising(name, whole)
        if len(kept.time_s) < 2:
            blind.append(label)
        else:
            found.append(kept)
    if not found:
        raise RefusedFileError(f"{name} has no GPU with two readings of its power or energy.")
    if blind:
        notes.append(f"GPU {', '.join(blind)} gave no power and is left out")
    return tuple(found), notes


def _rising(name: str, series: Series) -> Series:
    known = np.isfinite(series.power_w)
    if series.energy_j is not None:
        known |= np.isfinite(series.energy_j)
    series = series.take(known)
    if not len(series.time_s):
        return series
    back = np.flatnonzero(np.diff(series.time_s) < -STEP_BACK_S)
    if len(back):
        raise RefusedFileError(
            f"{name}: its clock goes back by "
            f"{-np.diff(series.time_s)[back[0]]:.0f} s after reading {back[0] + 1} of GPU "
            f"{series.label or '0'}: cut the log there."
        )
    order = np.argsort(series.time_s, kind="stable")
    series = series.take(order)
    first = np.append(True, np.diff(series.time_s) > 0)
    return series.take(first)


def _numeric_first(label: str) -> tuple[int, int, str]:
    return (0, int(label), "") if label.isdigit() else (1, 0, label)


def _by_turns(name: str, time_s: FloatArray) -> tuple[list[str], list[str]]:
    """Tell GPUs apart by stamps that come in groups of the same size."""
    steps = np.diff(time_s)
    if len(steps) < 2 or not (steps >= 0).all():
        return ["0"] * len(time_s), []
    if not (steps == 0).any() and steps.min() > 0.2 * steps.max():
        return ["0"] * len(time_s), []
    # Readings of one round are at one stamp, or within a fraction of the round.
    width = max(np.quantile(steps, 0.99) / 3, 0.0)
    begins = np.append(0, np.flatnonzero(steps > width) + 1)
    sizes = np.diff(np.append(begins, len(time_s)))
    size = int(np.median(sizes))
    if size == 1:
        return ["0"] * len(time_s), []
    if (sizes[:-1] != size).any() or sizes[-1] > size:
        raise RefusedFileError(
            f"{name} has several GPUs and no column that tells them apart, and not every stamp "
            f"has as many readings: log again with index among the queried columns."
        )
    labels = [str(i) for n in sizes for i in range(n)]
    return labels, [f"no column says whose reading is whose: {size} GPUs by repeating stamps"]
