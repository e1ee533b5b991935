"""Joules of one series of readings over a window: counters read, or watts integrated."""

from __future__ import annotations

import numpy as np

from energylens.cases import FloatArray
from energylens.importers.power.series import PowerLog, Series
from energylens.importers.runs import RefusedFileError

RISE_SHARE = 0.15  # of the level under load, by which power rises at a step


def joules_within(log: PowerLog, item: Series, begin: float, end: float) -> float:
    """Joules of one series over a window: by its counter, or else from its watts."""
    if item.energy_j is not None:
        return _counted(log, item, begin, end)
    known = np.isfinite(item.power_w)
    return integrate(item.time_s[known], item.power_w[known], begin, end)


def _counted(log: PowerLog, item: Series, begin: float, end: float) -> float:
    assert item.energy_j is not None
    known = np.isfinite(item.energy_j)
    time_s, energy_j = item.time_s[known], item.energy_j[known]
    near = (time_s >= begin - 60) & (time_s <= end + 60)
    if (np.diff(energy_j[near]) < 0).any():
        raise RefusedFileError(
            f"{log.name}: the energy counter of GPU {item.label} falls within the run, as at a "
            "restart of its driver, so its difference is not the energy of the run."
        )
    joules = float(np.interp(end, time_s, energy_j) - np.interp(begin, time_s, energy_j))
    if not joules > 0:
        raise RefusedFileError(
            f"{log.name}: the energy counter of GPU {item.label} does not move within the run: it "
            "gave nothing."
        )
    return joules


def integrate(time_s: FloatArray, power_w: FloatArray, begin: float, end: float) -> float:
    """Integrate watts over a window by the trapezoid.

    Parameters
    ----------
    time_s, power_w : ndarray of float, shape (n,)
        Rising seconds, and watts.
    begin, end : float
        The window; beyond the first and last reading their power is held.

    Returns
    -------
    float
        J. At an edge between a reading near the lower level of the log and one near the level of
        the window, the latter is held up to the edge; otherwise power is interpolated.
    """
    inside = (time_s > begin) & (time_s < end)
    if not inside.any():
        edge = np.interp([begin, end], time_s, power_w)
        return float(edge.mean() * (end - begin))
    place = np.flatnonzero(inside)
    level = float(np.median(power_w[inside]))
    at_begin = _edge(time_s, power_w, begin, place[0], place[0] - 1, level)
    at_end = _edge(time_s, power_w, end, place[-1], place[-1] + 1, level)
    times = np.concatenate([[begin], time_s[inside], [end]])
    watts = np.concatenate([[at_begin], power_w[inside], [at_end]])
    return float(np.diff(times) @ (watts[1:] + watts[:-1]) / 2)  # numpy 1.26 has no trapezoid


def _edge(
    time_s: FloatArray, power_w: FloatArray, edge: float, inner: int, outer: int, level: float
) -> float:
    """Power at an edge of the window between a reading inside it and one outside."""
    if not 0 <= outer < len(time_s):
        return float(power_w[inner])
    inside, outside = float(power_w[inner]), float(power_w[outer])
    # A step goes most of the way from the lowest reading to the level of the window at once.
    floor = float(np.min(power_w))
    if level - floor > RISE_SHARE * level and inside - outside > (level - floor) / 2:
        return inside
    share = (edge - time_s[inner]) / (time_s[outer] - time_s[inner])
    return float(inside + share * (outside - inside))
