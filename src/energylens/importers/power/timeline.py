"""Power timelines as Zeus's ``PowerMonitor`` gives them and the ML.ENERGY benchmark keeps them.

By domain and GPU a list of pairs, seconds since 1970 and watts. Of the domains the instantaneous
power of the device is taken, else its one-second average; that of the memory alone is none of the
GPU, and that of CPU packages is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from energylens.importers.power.gather import series_by_gpu
from energylens.importers.power.series import Clock, PowerLog
from energylens.importers.runs import RefusedFileError

FORMAT = "ML.ENERGY or Zeus power timeline"

DOMAINS = ("device_instant", "device_average")
MEMORY = "memory_average"
EPOCH_S = 1e9  # seconds since 1970 are beyond this since 2001; a monotonic clock is not


def power_of(document: object) -> Mapping[str, Any] | None:
    """Find the timelines in a document: its ``timeline.power``, its ``power``, or the whole."""
    if not isinstance(document, Mapping):
        return None
    timeline = document.get("timeline")
    holders = [timeline.get("power")] if isinstance(timeline, Mapping) else []
    for found in (*holders, document.get("power"), document):
        if isinstance(found, Mapping) and any(name in found for name in (*DOMAINS, MEMORY)):
            return found
    return None


def matches(document: object) -> bool:
    """Whether a document is timelines and no result file that has some beside its results."""
    return (
        power_of(document) is not None
        and isinstance(document, Mapping)
        and "completed" not in document
    )


def read(documents: Sequence[Mapping[str, object]], name: str) -> PowerLog:
    """Read the timelines of one document.

    Raises
    ------
    RefusedFileError
        If there are several, or none of the whole GPU, or one cannot be read.
    """
    if len(documents) != 1:
        raise RefusedFileError(f"{name} has {len(documents)} timelines: give one of them.")
    power = power_of(documents[0])
    if power is None:
        raise RefusedFileError(f"{name} has no power timeline in it.")
    return log_of(power, name)


def log_of(power: Mapping[str, Any], name: str) -> PowerLog:
    """Read timelines by domain and GPU.

    Raises
    ------
    RefusedFileError
        If there is none of the whole GPU, or one is no list of pairs of numbers.
    """
    domain = next((domain for domain in DOMAINS if power.get(domain)), None)
    if domain is None:
        raise RefusedFileError(
            f"{name} has no timeline of {' or '.join(DOMAINS)}: power of the memory alone is not "
            "that of a GPU."
        )
    by_gpu = power[domain]
    if not isinstance(by_gpu, Mapping):
        raise RefusedFileError(f"{name}: {domain} must hold one timeline for each GPU.")
    labels: list[str] = []
    rows: list[tuple[float, float]] = []
    for gpu, timeline in by_gpu.items():
        if not isinstance(timeline, list):
            raise RefusedFileError(f"{name}: the timeline of GPU {gpu} is no list.")
        for pair in timeline:
            reading = _reading(pair)
            if reading is None:
                raise RefusedFileError(
                    f"{name}: a timeline must be pairs of seconds and watts; GPU {gpu} has "
                    f"{repr(pair)[:60]}."
                )
            labels.append(str(gpu))
            rows.append(reading)
    if not rows:
        raise RefusedFileError(f"{name}: the timelines of {domain} are empty.")
    time_s, power_w = np.array(rows).T
    if not np.isfinite(time_s).all() or (power_w < 0).any() or np.isinf(power_w).any():
        raise RefusedFileError(f"{name}: watts of a timeline must be 0 or more, and times finite.")
    series, notes = series_by_gpu(name, labels, time_s, power_w)
    clock = Clock.EPOCH if float(time_s.min()) > EPOCH_S else Clock.NONE
    return PowerLog(
        format=FORMAT,
        name=name,
        clock=clock,
        series=series,
        notes=(*notes, f"watts are those of {domain}"),
    )


def _reading(pair: object) -> tuple[float, float] | None:
    """Seconds and watts of one pair; None where it is none."""
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        return None
    numbers = [x for x in pair if isinstance(x, int | float) and not isinstance(x, bool)]
    try:
        time_s, power_w = (float(number) for number in numbers)
    except (ValueError, OverflowError):  # fewer than two, or of hundreds of digits
        return None
    return time_s, power_w
