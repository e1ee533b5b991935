"""AMD GPUs, Jetson, Apple silicon, and CPU and memory through RAPL, read by Zeus.

Zeus (https://ml.energy/zeus) knows the vendors' libraries. Its ``ZeusMonitor`` reports 0 J where
it found no device at all, so this meter asks the devices themselves and refuses to exist
without one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from typing import Any

from energylens.errors import MissingExtraError
from energylens.instrument.meter import Channel, ChannelKind, DeviceState, MeterError, Reading
from energylens.instrument.meters.period import measure_period
from energylens.instrument.meters.wall_clock import WallClockMeter

# Fields of Zeus' measurements of a system on a chip (Apple, Jetson), in millijoules.
_CHIP_FIELDS = {
    "gpu_mj": ChannelKind.GPU,
    "gpu_energy_mj": ChannelKind.GPU,
    "cpu_total_mj": ChannelKind.CPU,
    "cpu_energy_mj": ChannelKind.CPU,
    "dram_mj": ChannelKind.DRAM,
    "total_energy_mj": ChannelKind.SYSTEM,
}


class ZeusMeter(WallClockMeter):
    """Whatever energy counters Zeus finds.

    Parameters
    ----------
    devices : {"all", "gpu", "cpu", "soc"}
        Which kinds to look for.

    Raises
    ------
    MissingExtraError
        If zeus is not installed.
    MeterError
        If there is nothing of that kind here, or it may not be read.
    """

    name = "zeus"

    def __init__(self, devices: str = "all") -> None:
        if devices not in ("all", "gpu", "cpu", "soc"):
            raise MeterError(f"zeus devices must be all, gpu, cpu or soc, not {devices!r}.")
        try:
            import zeus.device.cpu
            import zeus.device.gpu
            import zeus.device.soc
        except ImportError:
            raise MissingExtraError("zeus", "zeus", "reading energy through Zeus") from None
        self._counters: list[tuple[Channel, Callable[[], float]]] = []
        self._gpus: Any = None
        self._period_s: float | None = None
        found: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {
            "gpu": (zeus.device.gpu.get_gpus, self._add_gpus),
            "cpu": (zeus.device.cpu.get_cpus, self._add_cpus),
            "soc": (zeus.device.soc.get_soc, self._add_chip),
        }
        reasons = []
        for kind, (discover, add) in found.items():
            if devices not in ("all", kind):
                continue
            try:
                add(discover())
            except Exception as error:  # Zeus lets its vendors' errors through
                reasons.append(f"{kind}: {' '.join(str(error).split())}")
        if not self._counters:
            raise MeterError(
                f"Zeus must find an energy counter, but there is none ({'; '.join(reasons)}). "
                "RAPL needs read access to /sys/class/powercap (root, or zeusd)."
            )
        self.channels = tuple(channel for channel, _ in self._counters)
        self.read()

    def _add_gpus(self, gpus: Any) -> None:
        for index in range(len(gpus)):
            if not gpus.supports_get_total_energy_consumption(index):
                raise MeterError(f"GPU {index} has no energy counter that Zeus trusts")
        self._gpus = gpus
        for index in range(len(gpus)):
            channel = Channel(
                id=f"gpu{index}", kind=ChannelKind.GPU, index=index, name=str(gpus.get_name(index))
            )
            self._counters.append((channel, partial(_gpu_j, gpus, index)))

    def _add_cpus(self, cpus: Any) -> None:
        for index in range(len(cpus)):
            self._counters.append(
                (
                    Channel(id=f"cpu{index}", kind=ChannelKind.CPU, index=index),
                    partial(_cpu_j, cpus, index, "cpu_mj"),
                )
            )
            if cpus.supports_get_dram_energy_consumption(index):
                self._counters.append(
                    (
                        Channel(id=f"dram{index}", kind=ChannelKind.DRAM, index=index),
                        partial(_cpu_j, cpus, index, "dram_mj"),
                    )
                )

    def _add_chip(self, chip: Any) -> None:
        first = chip.get_total_energy_consumption()
        for field, kind in _CHIP_FIELDS.items():
            if getattr(first, field, None) is not None:
                self._counters.append(
                    (
                        Channel(id=f"{kind}0", kind=kind, name="system on a chip"),
                        partial(_chip_j, chip, field),
                    )
                )

    @property
    def period_s(self) -> float:
        """Time between two updates of the slowest counter, measured at the first call."""
        if self._period_s is None:
            self._period_s = max(
                measure_period(counter, self.now_s, self.wait) for _, counter in self._counters
            )
        return self._period_s

    def read(self) -> Reading:
        """Read the counters, one after the other."""
        begin = time.monotonic()
        try:
            energy = tuple(float(counter()) for _, counter in self._counters)
        except Exception as error:  # as above
            raise MeterError(f"Zeus cannot read its counters any more: {error}") from None
        return Reading(time_s=(begin + time.monotonic()) / 2, energy_j=energy)

    def states(self) -> tuple[DeviceState, ...]:
        """Temperatures, where the vendor says them."""
        if self._gpus is None:
            return ()
        found = []
        for channel in self.channels:
            if channel.kind is not ChannelKind.GPU:
                continue
            try:
                temperature = float(self._gpus.get_gpu_temperature(channel.index))
            except Exception:  # a temperature is welcome, never needed
                continue
            found.append(DeviceState(channel=channel.id, temperature_c=temperature))
        return tuple(found)

    def provenance(self) -> Mapping[str, str]:
        """Version of Zeus and names of the devices."""
        return {"zeus_version": version("zeus")} | {
            f"{channel.id}_name": channel.name for channel in self.channels if channel.name
        }


def _gpu_j(gpus: Any, index: int) -> float:
    return float(gpus.get_total_energy_consumption(index)) / 1e3


def _cpu_j(cpus: Any, index: int, field: str) -> float:
    return float(getattr(cpus.get_total_energy_consumption(index), field)) / 1e3


def _chip_j(chip: Any, field: str) -> float:
    return float(getattr(chip.get_total_energy_consumption(), field)) / 1e3
