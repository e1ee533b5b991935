"""NVIDIA GPUs through NVML: the total-energy counter, or power integrated over time.

The counter (``nvmlDeviceGetTotalEnergyConsumption``, Volta and later) is kept by the device in
millijoules since the driver was loaded. Integrating ``nvmlDeviceGetPowerUsage`` is the fallback
for devices without it, and an independent check for those with it; the sensor behind it
sees only part of the time on some GPUs (arXiv 2312.02741), so its joules are marked by the name
of the meter.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from energylens.errors import MissingExtraError
from energylens.guard import Guard
from energylens.instrument.meter import Channel, ChannelKind, DeviceState, MeterError, Reading
from energylens.instrument.meters.period import measure_period
from energylens.instrument.meters.wall_clock import WallClockMeter

# nvml.h, nvmlReturn_t: what happened, and what to do about it.
_FAULTS = {
    3: ("this device does not have it", "Use --meter nvml-power (marked in the rows)."),
    4: (
        "permission is denied",
        "Run as a user in the driver's group, or pass the device into the container.",
    ),
    9: ("the NVIDIA driver is not loaded", "Load it (modprobe nvidia), then run nvidia-smi."),
    12: (
        "the library libnvidia-ml.so.1 is not on this machine",
        "Install the NVIDIA driver, or use another meter.",
    ),
    15: ("the GPU is lost: it fell off the bus", "Reset it or restart the machine."),
    16: ("the GPU needs a reset", "Reset it or restart the machine."),
    18: ("the driver and its library have different versions", "Restart the machine."),
}
NOT_SUPPORTED = 3
#: Sensors renew their reading about this often; a power that stands still does not show it.
STEADY_PERIOD_S = 0.1

# nvml.h, nvmlClocksEventReasons: those that make a measurement less than it seems.
THROTTLE_REASONS = {
    0x04: "power_cap",
    0x08: "hardware_slowdown",
    0x10: "sync_boost",
    0x20: "software_thermal",
    0x40: "hardware_thermal",
    0x80: "power_brake",
}


class NoCounterError(MeterError):
    """The device works, and has no such counter."""


def translate(error: Exception, what: str) -> MeterError:
    """Say in words what an NVML error means."""
    code = int(getattr(error, "value", -1))
    fault, advice = _FAULTS.get(code, (f"NVML says {str(error) or type(error).__name__}", ""))
    kind = NoCounterError if code == NOT_SUPPORTED else MeterError
    return kind(f"{what} cannot be read: {fault}. {advice}".rstrip())


#: For as long as its owner lives, whatever a measurement takes: its end is told by the pipe.
_GUARD_LEASE_S = 1e9


class _Nvml(WallClockMeter):
    """What both NVML meters share: devices, states, provenance, clock."""

    _clock_guard: Guard | None = None

    def __init__(self, indices: Sequence[int] | None) -> None:
        try:
            import pynvml
        except ImportError:
            raise MissingExtraError(
                "nvidia-ml-py", "nvml", "reading the energy of an NVIDIA GPU"
            ) from None
        self._nvml: Any = pynvml
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise translate(error, "NVML") from None
        count = int(self._call("the number of GPUs", "nvmlDeviceGetCount"))
        chosen = tuple(range(count)) if indices is None else tuple(indices)
        if not chosen or max(chosen) >= count:
            raise MeterError(f"this machine has {count} NVIDIA GPUs; asked for {list(chosen)}.")
        self._handles = [self._call(f"GPU {i}", "nvmlDeviceGetHandleByIndex", i) for i in chosen]
        self.channels = tuple(map(self._describe, chosen, self._handles))

    def _call(self, what: str, function: str, *arguments: object) -> Any:
        try:
            return getattr(self._nvml, function)(*arguments)
        except self._nvml.NVMLError as error:
            raise translate(error, what) from None

    def _try(self, function: str, *arguments: object) -> Any:
        """Ask for something that not every device knows; None if it does not."""
        call = getattr(self._nvml, function, None)
        try:
            return None if call is None else call(*arguments)
        except self._nvml.NVMLError:
            return None

    def _describe(self, index: int, handle: object) -> Channel:
        mig = self._try("nvmlDeviceGetMigMode", handle)
        if mig and mig[0]:
            raise MeterError(
                f"GPU {index} must not be divided (MIG): its energy counter covers all its "
                "instances together. Measure on a whole GPU."
            )
        limit = self._try("nvmlDeviceGetEnforcedPowerLimit", handle)
        default = self._try("nvmlDeviceGetPowerManagementDefaultLimit", handle)
        uuid = _text(self._try("nvmlDeviceGetUUID", handle) or "")
        return Channel(
            id=f"gpu{index}",
            kind=ChannelKind.GPU,
            index=index,
            name=_text(self._try("nvmlDeviceGetName", handle) or ""),
            uuid_hash=hashlib.sha256(uuid.encode()).hexdigest()[:12] if uuid else "",
            limit_w=limit / 1e3 if limit else None,
            power_cap_w=limit / 1e3 if limit and default and limit < default else None,
        )

    def states(self) -> tuple[DeviceState, ...]:
        """Clocks, temperatures, power and throttle flags, each where the driver says them."""
        return tuple(map(self._state, self.channels, self._handles))

    def _state(self, channel: Channel, handle: object) -> DeviceState:
        bits = self._try("nvmlDeviceGetCurrentClocksEventReasons", handle)
        if bits is None:  # its name before driver 535
            bits = self._try("nvmlDeviceGetCurrentClocksThrottleReasons", handle)
        sm, memory = (self._try("nvmlDeviceGetClockInfo", handle, kind) for kind in (1, 2))
        power = self._try("nvmlDeviceGetPowerUsage", handle)
        return DeviceState(
            channel=channel.id,
            temperature_c=self._try("nvmlDeviceGetTemperature", handle, 0),
            sm_clock_hz=sm * 1e6 if sm else None,
            memory_clock_hz=memory * 1e6 if memory else None,
            power_w=power / 1e3 if power else None,
            throttle_reasons=tuple(
                name for bit, name in THROTTLE_REASONS.items() if (bits or 0) & bit
            ),
        )

    def provenance(self) -> Mapping[str, str]:
        """Driver, CUDA, and limits, clocks and links of each GPU."""
        facts: dict[str, object] = {
            "driver_version": self._try("nvmlSystemGetDriverVersion"),
            "cuda_driver_version": self._try("nvmlSystemGetCudaDriverVersion"),
        }
        for channel, handle in zip(self.channels, self._handles, strict=True):
            clock = self._try("nvmlDeviceGetMaxClockInfo", handle, 1)
            links = [self._try("nvmlDeviceGetNvLinkState", handle, i) for i in range(18)]
            facts |= {
                f"{channel.id}_name": channel.name,
                f"{channel.id}_uuid_hash": channel.uuid_hash,
                f"{channel.id}_power_limit_w": channel.limit_w,
                f"{channel.id}_max_sm_clock_mhz": clock,
                f"{channel.id}_persistence_mode": self._try("nvmlDeviceGetPersistenceMode", handle),
                f"{channel.id}_nvlinks": sum(bool(up) for up in links),
                f"{channel.id}_pcie_generation": self._try(
                    "nvmlDeviceGetCurrPcieLinkGeneration", handle
                ),
            }
        return {key: _text(value) for key, value in facts.items() if value not in (None, "")}

    def lock_clocks(self, places: Sequence[int], mhz: float | None) -> None:
        """Lock the core clock of some GPUs (``nvidia-smi -lgc``), or none of them again.

        The driver does not tell what was locked before, so that None gives back its default; a
        guard process does the same if this one dies.

        Raises
        ------
        MeterError
            If the driver does not let it: locking needs root.
        """
        for place in places:
            channel, handle = self.channels[place], self._handles[place]
            try:
                if mhz is None:
                    self._nvml.nvmlDeviceResetGpuLockedClocks(handle)
                else:
                    self._clock_guard = self._clock_guard or Guard(_GUARD_LEASE_S)
                    undo = ["nvidia-smi", "-i", str(channel.index), "-rgc"]
                    self._clock_guard.hold(channel.id, [{"run": undo}])
                    self._nvml.nvmlDeviceSetGpuLockedClocks(handle, round(mhz), round(mhz))
            except (self._nvml.NVMLError, OSError) as error:
                fault = _FAULTS.get(int(getattr(error, "value", -1)), (str(error), ""))[0]
                raise MeterError(
                    f"the clock of {channel.id} cannot be locked: {fault}. Locking needs root and "
                    "a Volta or later: leave clock_mhz out of the plan, or measure as root."
                ) from None
        if mhz is None and self._clock_guard is not None:
            for place in places:  # the clocks are back already: a guard that is gone is no matter
                with contextlib.suppress(OSError):
                    self._clock_guard.tell({"done": self.channels[place].id})

    def running_processes(self) -> int:
        """Count the compute processes on all these GPUs: they should be ours alone."""
        lists = (self._try("nvmlDeviceGetComputeRunningProcesses", h) for h in self._handles)
        return sum(len(found or ()) for found in lists)

    def close(self) -> None:
        """Let go of the driver."""
        if self._clock_guard is not None:
            self._clock_guard.close()
        self._try("nvmlShutdown")


class NvmlMeter(_Nvml):
    """The total-energy counters of NVIDIA GPUs.

    Parameters
    ----------
    indices : sequence of int, optional
        GPUs, as NVML counts them; all of the node if not given, so that both boundaries come
        from one run.

    Raises
    ------
    MissingExtraError
        If nvidia-ml-py is not installed.
    MeterError
        If there is no driver, no permission, no such counter, or a GPU is divided (MIG).
    """

    name = "nvml"

    def __init__(self, indices: Sequence[int] | None = None) -> None:
        super().__init__(indices)
        self._period_s: float | None = None
        self.read()

    @property
    def period_s(self) -> float:
        """Time between two updates, measured at the first call."""
        if self._period_s is None:
            self._period_s = measure_period(lambda: self._energy_j(0), self.now_s, self.wait)
        return self._period_s

    def _energy_j(self, place: int) -> float:
        what = f"the energy counter of {self.channels[place].id}"
        function = "nvmlDeviceGetTotalEnergyConsumption"
        return float(self._call(what, function, self._handles[place])) / 1e3

    def read(self) -> Reading:
        """Read the counters, one after the other."""
        begin = time.monotonic()
        energy = tuple(self._energy_j(place) for place in range(len(self._handles)))
        return Reading(time_s=(begin + time.monotonic()) / 2, energy_j=energy)


class NvmlPowerMeter(_Nvml):
    """Power of NVIDIA GPUs, sampled in a thread and integrated by trapezoids.

    Parameters
    ----------
    indices : sequence of int, optional
        As in :class:`NvmlMeter`.
    sample_s : float
        Seconds between samples.
    instantaneous : bool
        Take the instantaneous power (Ampere and later, driver 535) rather than the one
        averaged over a second, where the device has it.
    """

    name = "nvml-power"
    #: A hole in the samples longer than this is not bridged by a straight line.
    longest_gap_s = 1.0

    def __init__(
        self,
        indices: Sequence[int] | None = None,
        *,
        sample_s: float = 0.02,
        instantaneous: bool = True,
    ) -> None:
        super().__init__(indices)
        self._instant = instantaneous and self._instant_power_w(0) is not None
        self._lock = threading.Lock()
        self._energy = [0.0] * len(self._handles)
        self._power = [self._power_w(place) for place in range(len(self._handles))]
        self._time_s = time.monotonic()
        self._fault: MeterError | None = None
        self._period_s: float | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, args=(sample_s,), daemon=True)
        self._thread.start()

    @property
    def period_s(self) -> float:
        """Time between two updates, measured at the first call."""
        if self._period_s is None:
            self._period_s = measure_period(
                lambda: self._power_w(0),
                self.now_s,
                self.wait,
                poll_s=0.005,
                steady_s=STEADY_PERIOD_S,
            )
        return self._period_s

    def _instant_power_w(self, place: int) -> float | None:
        field = getattr(self._nvml, "NVML_FI_DEV_POWER_INSTANT", None)
        values = self._try("nvmlDeviceGetFieldValues", self._handles[place], [field])
        if field is None or not values or values[0].nvmlReturn != 0:
            return None
        return float(values[0].value.uiVal) / 1e3

    def _power_w(self, place: int) -> float:
        power = self._instant_power_w(place) if self._instant else None
        if power is None:
            what = f"the power of {self.channels[place].id}"
            power = float(self._call(what, "nvmlDeviceGetPowerUsage", self._handles[place])) / 1e3
        if not power > 0:
            raise MeterError(f"the power of {self.channels[place].id} must be above 0 W: {power}")
        return power

    def _sample(self, sample_s: float) -> None:
        while not self._stop.wait(sample_s):
            try:
                with self._lock:
                    self._advance()
            except MeterError as fault:
                self._fault = fault
                return
            except Exception as error:  # a thread that dies unseen leaves a hole in the integral
                self._fault = MeterError(f"power cannot be sampled any more: {error}.")
                return

    def _advance(self) -> None:
        power = [self._power_w(place) for place in range(len(self._handles))]
        now = time.monotonic()
        step = now - self._time_s
        if step > self.longest_gap_s:
            raise MeterError(
                f"power must be sampled at least every {self.longest_gap_s:g} s, but a sample "
                f"came after {step:.1f} s: the machine is overloaded."
            )
        for place, (before, after) in enumerate(zip(self._power, power, strict=True)):
            self._energy[place] += step * (before + after) / 2
        self._power, self._time_s = power, now

    def read(self) -> Reading:
        """Take a sample and return the integral so far."""
        if self._fault is not None:
            raise self._fault
        with self._lock:
            self._advance()
            return Reading(time_s=self._time_s, energy_j=tuple(self._energy))

    def close(self) -> None:
        """Stop sampling."""
        self._stop.set()
        self._thread.join(timeout=2.0)
        super().close()


def visible_gpus(count: int, uuids: Sequence[str] = ()) -> tuple[int, ...]:
    """Indices of the GPUs that ``CUDA_VISIBLE_DEVICES`` lets this process use.

    Raises
    ------
    MeterError
        If it names a GPU that is not there.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return tuple(range(count))
    indices = []
    for item in filter(None, (part.strip() for part in given.split(","))):
        if item.isdigit() and int(item) < count:
            indices.append(int(item))
        elif match := [i for i, uuid in enumerate(uuids) if uuid.startswith(item)]:
            indices.append(match[0])
        else:
            raise MeterError(
                f"CUDA_VISIBLE_DEVICES must name GPUs of this machine (0 to {count - 1}); "
                f"given {item!r}."
            )
    return tuple(indices)


def gpu_indices() -> tuple[int, ...]:
    """Indices of the NVIDIA GPUs that this process may use; empty where there are none."""
    try:
        nvml = _Nvml(None)
    except (MeterError, MissingExtraError):
        return ()
    try:
        uuids = [_text(nvml._try("nvmlDeviceGetUUID", handle) or "") for handle in nvml._handles]
        return visible_gpus(len(uuids), uuids)
    finally:
        nvml.close()


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
