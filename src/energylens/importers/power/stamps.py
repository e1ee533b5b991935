"""Time stamps of power logs, whole columns at a time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone, tzinfo

import numpy as np

from energylens.cases import FloatArray
from energylens.errors import UsageError
from energylens.importers.power.series import Clock

_ISO = re.compile(r"^\d{4}[-/]\d{2}[-/]\d{2}[T ]\d{2}:\d{2}:\d{2}([.,]\d+)?$")
_NUMBER = re.compile(r"^\d+(\.\d*)?$")

#: Ways of writing a time, besides ISO 8601 and seconds since 1970; zones by name are taken off.
_WAYS = (
    "%a %b %d %H:%M:%S %Y",
    "%a %b %d %I:%M:%S %p %Y",
    "%a %d %b %Y %I:%M:%S %p",
    "%a %d %b %Y %H:%M:%S",
    "%m-%d-%Y %H:%M:%S.%f",
    "%m-%d-%Y %H:%M:%S",
    "%d-%m-%Y %H:%M:%S.%f",
    "%d-%m-%Y %H:%M:%S",
    "%m/%d/%Y %H:%M:%S.%f",
    "%m/%d/%Y %H:%M:%S",
    "%m/%d/%y %H:%M:%S",
    "%m/%d/%Y %I:%M:%S %p",
    "%d.%m.%Y %H:%M:%S.%f",
    "%d.%m.%Y %H:%M:%S",
    "%Y%m%d-%H:%M:%S.%f",
    "%Y%m%d-%H:%M:%S",
    "%Y%m%d-%H%M%S",
)
#: The name of a zone, as at the end of a time or before its year; AM and PM are none.
_NAMED = re.compile(r"\s+(?!AM\b|PM\b)([A-Z]{3,5})(?=\s+\d{4}$|$)")


def is_stamp(cell: str) -> bool:
    """Whether a cell reads as a time of day with its date."""
    return parse_stamps([cell])[0] is not None


def parse_stamps(cells: Sequence[str]) -> tuple[FloatArray | None, Clock]:
    """Read a column of time stamps.

    Parameters
    ----------
    cells : sequence of str
        n stamps, all written the same way.

    Returns
    -------
    tuple of (ndarray of float, shape (n,), or None) and Clock
        Seconds since 1970, of UTC or of the unnamed local zone; NaN where a cell is no stamp.
        None if the first cell is none.
    """
    cells = [cell.strip() for cell in cells]
    if not cells:
        return None, Clock.NONE
    first = cells[0]
    if _NUMBER.match(first):
        return _numbers(cells)
    if _ISO.match(first):
        return _local_iso(cells), Clock.LOCAL
    best: list[tuple[float, Clock] | None] = []
    # All are written one way: of 12-12-2026 and 13-12-2026 the second says which is the month.
    for way in (None, *_WAYS):
        if _parse(first, (way,)) is None:
            continue
        moments = [_parse(cell, (way,)) for cell in cells]
        if not best or moments.count(None) < best.count(None):
            best = moments
        if None not in best:
            break
    clocks = {moment[1] for moment in best if moment is not None}
    if len(clocks) != 1:
        return None, Clock.NONE
    seconds = [np.nan if moment is None else moment[0] for moment in best]
    return np.array(seconds, dtype=np.float64), clocks.pop()


def _numbers(cells: Sequence[str]) -> tuple[FloatArray | None, Clock]:
    values = np.array([float(c) if _NUMBER.match(c) else np.nan for c in cells], dtype=np.float64)
    for unit, low, high in ((1.0, 1e9, 5e9), (1e-3, 1e12, 5e12), (1e-6, 1e15, 5e15)):
        if low <= values[0] <= high:
            return values * unit, Clock.EPOCH
    if 1e18 <= values[0] <= 5e18:  # nanoseconds: beyond what a float holds to the last one
        return values * 1e-9, Clock.EPOCH
    return None, Clock.NONE


def _local_iso(cells: Sequence[str]) -> FloatArray:
    seconds = np.full(len(cells), np.nan)
    good = [i for i, cell in enumerate(cells) if _ISO.match(cell)]
    texts = [cells[i].replace("/", "-").replace(" ", "T").replace(",", ".") for i in good]
    try:
        stamps = np.array(texts, dtype="datetime64[us]")
        seconds[good] = stamps.astype(np.int64) / 1e6
    except ValueError:  # a day or an hour that does not exist
        for i, text in zip(good, texts, strict=True):
            moment = _parse(text)
            seconds[i] = np.nan if moment is None else moment[0]
    return seconds


def _parse(cell: str, ways: Sequence[str | None] = (None, *_WAYS)) -> tuple[float, Clock] | None:
    """Read one stamp by the first of some ways that fits; None is ISO 8601."""
    text = cell.strip()
    named = _NAMED.search(text)
    text = _NAMED.sub("", text)
    moment: datetime | None = None
    for way in ways:
        try:
            if way is None:
                moment = datetime.fromisoformat(text.replace("/", "-"))
            else:
                moment = datetime.strptime(text, way)
            break
        except ValueError:
            continue
    if moment is None:
        return None
    if moment.tzinfo is None:
        # Three letters name several zones each: but for UTC they are the log's own.
        universal = named is not None and named[1] in ("UTC", "GMT")
        return moment.replace(tzinfo=UTC).timestamp(), Clock.EPOCH if universal else Clock.LOCAL
    return moment.timestamp(), Clock.EPOCH


def local_seconds(text: str) -> tuple[float, Clock] | None:
    """Read one stamp: seconds since 1970 of UTC or of an unnamed zone, None if it is none."""
    seconds, clock = parse_stamps([text])
    return None if seconds is None else (float(seconds[0]), clock)


def zone_of(name: str) -> tzinfo:
    """Find a time zone by its name or offset, as in ``Europe/Zurich`` or ``+02:00``.

    Raises
    ------
    UsageError
        If there is none of that name.
    """
    from zoneinfo import ZoneInfo

    match = re.fullmatch(r"(?:UTC)?([+-])(\d{1,2})(?::?(\d{2}))?", name.strip())
    if match:
        minutes = int(match[2]) * 60 + int(match[3] or 0)
        if minutes <= 14 * 60:
            return timezone(timedelta(minutes=minutes if match[1] == "+" else -minutes))
    try:
        return ZoneInfo(name.strip())
    except (ValueError, OSError, KeyError):
        raise UsageError(
            f"--timezone must be the name of a zone or an offset, as in Europe/Zurich or +02:00, "
            f"not {name!r}"
        ) from None


def to_epoch(local_s: float, zone: tzinfo) -> float:
    """Turn local seconds, written as if they were UTC, into seconds since 1970 UTC."""
    naive = datetime.fromtimestamp(local_s, UTC).replace(tzinfo=None)
    return naive.replace(tzinfo=zone).timestamp()
