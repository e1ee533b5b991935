"""A recorded meter, played back: the same readings every time, on its own clock."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from energylens import files
from energylens.errors import ArtefactError
from energylens.instrument.meter import Channel, Meter, MeterError, Reading
from energylens.instrument.meters import wire
from energylens.instrument.meters.wall_clock import WallClockMeter
from energylens.records import Source

_VERSION = 1


class ReplayMeter(WallClockMeter):
    """Readings made before, given out again as time goes by.

    Time passes only in :meth:`wait`, so whatever is measured against this meter spends its
    time there. It gives the last reading made so far, with the time at which that was made.

    Parameters
    ----------
    readings : sequence of Reading
        In order of time.
    channels : sequence of Channel
        The counters, as many as each reading has numbers.
    source : Source
        What the recorded joules are.
    period_s : float
        Update period of the counter that was recorded.
    """

    name = "replay"
    real_time = False

    def __init__(
        self,
        readings: Sequence[Reading],
        channels: Sequence[Channel],
        *,
        source: Source = Source.SIMULATED,
        period_s: float = 0.0,
    ) -> None:
        if not readings or any(len(r.energy_j) != len(channels) for r in readings):
            raise MeterError("a recording needs readings, each with one number for each channel.")
        self._readings = tuple(readings)
        self._times = [r.time_s for r in self._readings]
        self.channels = tuple(channels)
        self.source = source
        self.period_s = period_s
        self._now_s = self._times[0]

    def read(self) -> Reading:
        """Return what the recorded counter showed at this time."""
        if self._now_s > self._times[-1]:
            raise MeterError(
                f"the recording ends at {self._times[-1]:g} s, asked for {self._now_s:g} s: "
                "measure less, or record for longer."
            )
        at = max(0, bisect.bisect_right(self._times, self._now_s) - 1)
        return self._readings[at]

    def now_s(self) -> float:
        """Time of the recording."""
        return self._now_s

    def wait(self, seconds: float) -> None:
        """Let time go by: nothing else does."""
        self._now_s += max(0.0, seconds)


def record(meter: Meter, seconds: float, path: str | Path, *, poll_s: float = 0.01) -> int:
    """Write what a meter says for a while to a file that :func:`load` plays back.

    Returns
    -------
    int
        Readings written.
    """
    header = {
        "energylens_recording": _VERSION,
        "source": str(meter.source),
        "period_s": meter.period_s,
        "channels": [asdict(channel) for channel in meter.channels],
    }
    lines: list[object] = [header]
    begin = meter.now_s()
    while meter.now_s() - begin < seconds:
        reading = meter.read()
        lines.append({"time_s": reading.time_s - begin, "energy_j": list(reading.energy_j)})
        meter.wait(poll_s)
    import json

    files.write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
    return len(lines) - 1


def load(path: str | Path) -> ReplayMeter:
    """Read a recording.

    Raises
    ------
    ArtefactError
        If the file is no recording, or one of a later version.
    """
    header, *lines = files.read_json_lines(path) or [None]
    if not isinstance(header, dict) or header.get("energylens_recording") != _VERSION:
        raise ArtefactError(
            f"{path} must begin with a recording header of version {_VERSION}: it is not one of "
            "our recordings, or one from a newer energylens."
        )
    try:
        channels = wire.channels(header["channels"])
        readings = [wire.reading(line, len(channels)) for line in lines]
        source, period_s = Source(header["source"]), wire.period_s(header["period_s"])
    except (KeyError, ValueError) as error:
        raise ArtefactError(f"{path} is a damaged recording: {error!r}") from None
    except MeterError as error:
        raise ArtefactError(f"{path} is a damaged recording: {error}") from None
    return ReplayMeter(readings, channels, source=source, period_s=period_s)
