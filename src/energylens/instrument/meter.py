"""The seam of a meter: channels, readings, states of devices; joules and nothing of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from energylens.errors import MeasurementError
from energylens.records import Source


class MeterError(MeasurementError):
    """A meter gave nothing that may be called a measurement."""


class ChannelKind(StrEnum):
    """What a channel of a meter covers."""

    GPU = "gpu"
    CPU = "cpu"
    DRAM = "dram"
    SYSTEM = "system"


@dataclass(frozen=True, kw_only=True)
class Channel:
    """One counter of a meter. ``uuid_hash`` names a GPU without giving away its serial number."""

    id: str  # "gpu0", "cpu0"
    kind: ChannelKind
    index: int = 0
    name: str = ""  # as the driver calls the device
    uuid_hash: str = ""
    limit_w: float | None = None  # no honest counter says more than a small multiple of this
    power_cap_w: float | None = None  # where that limit was set below the default


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Joules since an arbitrary start, one number per channel, read at ``time_s``."""

    time_s: float
    energy_j: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class DeviceState:
    """What a GPU says of itself at one moment; None: it does not say."""

    channel: str
    temperature_c: float | None = None
    sm_clock_hz: float | None = None
    memory_clock_hz: float | None = None
    power_w: float | None = None
    throttle_reasons: tuple[str, ...] = ()


class Meter(Protocol):
    """Reads joules, and keeps the clock that windows are measured with.

    The clock is the meter's so that a simulated or replayed run has its own time.
    """

    @property
    def name(self) -> str:
        """``nvml``, ``nvml-power``, ``zeus``, ``replay``, ``estimated``, ``http``."""

    @property
    def source(self) -> Source:
        """What the joules are called in a row: MEASURED only for a hardware counter."""

    @property
    def channels(self) -> tuple[Channel, ...]:
        """The counters, in the order of :attr:`Reading.energy_j`."""

    @property
    def real_time(self) -> bool:
        """Whether its clock goes on its own; False where only :meth:`wait` moves it."""

    @property
    def period_s(self) -> float:
        """Time between two updates of the counter, as measured; 0 if it is continuous."""

    def read(self) -> Reading:
        """Read all channels now.

        Raises
        ------
        MeterError
            If a channel is gone, forbidden or does not exist.
        """

    def states(self) -> tuple[DeviceState, ...]:
        """Return clocks, temperatures and throttle flags of the GPUs; empty if there are none."""

    def provenance(self) -> Mapping[str, str]:
        """Driver, CUDA, power limits, topology ...: copied into the record of each case."""

    def now_s(self) -> float:
        """Return the time on the clock of :attr:`Reading.time_s`."""

    def wait(self, seconds: float) -> None:
        """Let so much of that time go by."""

    def close(self) -> None:
        """Stop threads and let go of devices."""
