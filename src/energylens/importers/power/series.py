"""Power over time as a log holds it: samples for each GPU, and which clock stamped them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from energylens.cases import BoolArray, FloatArray


class Clock(StrEnum):
    """What time stamps count from."""

    EPOCH = "epoch"  # seconds since 1970-01-01 UTC
    LOCAL = "local"  # wall time of an unnamed zone, written as if it were UTC
    NONE = "none"  # no time that another file could share


class Cover(StrEnum):
    """What the meter of a log sees."""

    GPUS = "gpus"  # each GPU alone
    WALL = "wall"  # the whole server, at its plug


@dataclass(frozen=True, kw_only=True, eq=False)
class Series:
    """Readings of one GPU, or of one server at its plug.

    Attributes
    ----------
    label : str
        Index of the GPU as the log has it, else its bus address or UUID; "" for a server.
    time_s : ndarray of float, shape (n,)
        Seconds of the log's clock, strictly rising.
    power_w : ndarray of float, shape (n,)
        Watts; NaN where only the counter was read.
    energy_j : ndarray of float, shape (n,), or None
        An energy counter in J, of any zero, if there is one.
    utilisation : ndarray of float, shape (n,), or None
        Share of time with a kernel running, 0 to 1.
    """

    label: str
    time_s: FloatArray
    power_w: FloatArray
    energy_j: FloatArray | None = None
    utilisation: FloatArray | None = None

    @property
    def integrated(self) -> bool:
        """Whether joules must be integrated from watts, for want of a counter."""
        return self.energy_j is None

    def take(self, keep: BoolArray | NDArray[np.intp]) -> Series:
        """Give some of the samples."""
        return Series(
            label=self.label,
            time_s=self.time_s[keep],
            power_w=self.power_w[keep],
            energy_j=None if self.energy_j is None else self.energy_j[keep],
            utilisation=None if self.utilisation is None else self.utilisation[keep],
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class EnergyWindow:
    """Joules of one named stretch of time, as energy monitors write them.

    ``joules`` are by GPU label, as is ``busy``: whether the GPU was used, None where not known;
    ``end_s`` is None where the file has no time of day. With ``all_gpus`` the one entry of
    ``joules`` is of every GPU that was metered, ``gpus`` of them where the file counts them.
    """

    name: str
    elapsed_s: float
    joules: dict[str, float]
    end_s: float | None = None
    busy: Mapping[str, bool | None] = field(default_factory=dict)
    all_gpus: bool = False
    gpus: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class PowerLog:
    """A power log: series in time, or windows with joules.

    Attributes
    ----------
    format : str
        What wrote it.
    name : str
        The file, as messages call it.
    clock : Clock
        What its time stamps count from.
    cover : Cover
        What its meter sees.
    series : tuple of Series
        One for each GPU, or one in all for a server.
    windows : tuple of EnergyWindow
        Where the log holds joules of stretches instead.
    gpu_names : tuple of str
        Names of the GPUs where the log has them, without repeats.
    notes : tuple of str
        What was passed over or inferred, for people.
    """

    format: str
    name: str
    clock: Clock
    cover: Cover = Cover.GPUS
    series: tuple[Series, ...] = ()
    windows: tuple[EnergyWindow, ...] = ()
    gpu_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
