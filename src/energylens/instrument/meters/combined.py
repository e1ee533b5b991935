"""Several meters as one: the GPUs of a replica that spans nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from energylens.instrument.meter import Channel, DeviceState, Meter, MeterError, Reading
from energylens.records import Source


class CombinedMeter:
    """The channels of several meters side by side; GPUs are numbered on from one to the next.

    Parameters
    ----------
    meters : sequence of Meter
        Two or more, on one clock (a served one translates into this machine's).
    """

    def __init__(self, meters: Sequence[Meter]) -> None:
        if not meters:
            raise MeterError("several meters in one need one or more.")
        self._meters = tuple(meters)
        channels: list[Channel] = []
        for number, meter in enumerate(self._meters):
            taken = max((c.index + 1 for c in channels), default=0)
            channels += [
                replace(c, id=f"node{number}-{c.id}", index=c.index + taken) for c in meter.channels
            ]
        self.channels = tuple(channels)
        self.name = "+".join(dict.fromkeys(meter.name for meter in self._meters))
        # The weakest of them says what the sum is.
        order = list(Source)
        self.source = max((meter.source for meter in self._meters), key=order.index)
        self.real_time = all(meter.real_time for meter in self._meters)
        self.period_s = max(meter.period_s for meter in self._meters)

    def read(self) -> Reading:
        """Read all meters, one after the other."""
        readings = [meter.read() for meter in self._meters]
        return Reading(
            time_s=sum(r.time_s for r in readings) / len(readings),
            energy_j=tuple(e for r in readings for e in r.energy_j),
        )

    def states(self) -> tuple[DeviceState, ...]:
        """States of all devices."""
        return tuple(
            replace(state, channel=f"node{number}-{state.channel}")
            for number, meter in enumerate(self._meters)
            for state in meter.states()
        )

    def provenance(self) -> Mapping[str, str]:
        """What each meter says, by node."""
        return {
            f"node{number}_{key}": value
            for number, meter in enumerate(self._meters)
            for key, value in meter.provenance().items()
        }

    def now_s(self) -> float:
        """Time on the first meter's clock."""
        return self._meters[0].now_s()

    def wait(self, seconds: float) -> None:
        """Wait on the first meter's clock."""
        self._meters[0].wait(seconds)

    def close(self) -> None:
        """Close them all."""
        for meter in self._meters:
            meter.close()
