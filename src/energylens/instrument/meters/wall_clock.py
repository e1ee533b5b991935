"""What every meter of real devices has in common: the machine's own monotonic clock."""

from __future__ import annotations

import time
from collections.abc import Mapping

from energylens.instrument.meter import Channel, DeviceState
from energylens.records import Source


class WallClockMeter:
    """A meter on this machine's clock. Subclasses have ``name``, ``channels`` and ``read``."""

    name: str
    source: Source = Source.MEASURED
    real_time: bool = True
    channels: tuple[Channel, ...] = ()

    def states(self) -> tuple[DeviceState, ...]:
        """Nothing is known of the devices."""
        return ()

    def provenance(self) -> Mapping[str, str]:
        """Nothing to add."""
        return {}

    def now_s(self) -> float:
        """Seconds on the monotonic clock."""
        return time.monotonic()

    def wait(self, seconds: float) -> None:
        """Sleep."""
        time.sleep(max(0.0, seconds))

    def close(self) -> None:
        """Nothing to let go of."""
