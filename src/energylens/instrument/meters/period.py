"""How often a counter moves. It is measured, because drivers do not say and differ."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable

from energylens.instrument.meter import MeterError


def measure_period(
    read: Callable[[], float],
    now: Callable[[], float],
    wait: Callable[[float], None],
    *,
    patience_s: float = 3.0,
    changes: int = 10,
    poll_s: float = 0.001,
    steady_s: float | None = None,
) -> float:
    """Watch a counter until it has moved ``changes`` times, and return its median step in time.

    Parameters
    ----------
    steady_s : float, optional
        What to return of something that stands still, as the power of a steady device may. A
        counter must move.

    Returns
    -------
    float
        Seconds between two updates, and not less than between two looks.

    Raises
    ------
    MeterError
        If it moves less than twice within ``patience_s``: it is stuck.
    """
    begin = now()
    value = read()
    moments: list[float] = []
    while len(moments) < changes and now() - begin < patience_s:
        wait(poll_s)
        new = read()
        if new != value:
            moments.append(now())
            value = new
    if len(moments) < 2:
        if steady_s is not None:
            return steady_s
        raise MeterError(
            f"an energy counter must move, but it stood at {value:g} J for {patience_s:g} s: "
            "the driver or the device does not update it. Use another meter."
        )
    return statistics.median(b - a for a, b in itertools.pairwise(moments))
