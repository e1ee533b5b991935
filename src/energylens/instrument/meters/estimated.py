"""A guess for machines without any counter: CPU time of a process tree times watts.

It lets the whole path be tried on any computer. Its rows are *estimated*: no accuracy claim may
rest on them. Spinning threads count as work.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping

from energylens.instrument.meter import Channel, ChannelKind, MeterError, Reading
from energylens.instrument.meters.wall_clock import WallClockMeter
from energylens.records import Source

# A server CPU of 165 W and 32 cores, a third of it drawn when idle: typical, and no more.
WATTS_PER_BUSY_CORE = 3.6
WATTS_PER_CORE = 1.5
MOST_WATTS = 1e4  # nobody sells such a core: it is a slip

# How often to look for new processes. Theirs is a running total, so none of it is lost meanwhile;
# a look costs milliseconds, which readings between two phases of an engine should not.
SCAN_S = 1.0
_SCHEDULER_CLOCK = 2  # CPUCLOCK_SCHED of the kernel: nanoseconds, ended threads included


class EstimatedMeter(WallClockMeter):
    """CPU seconds of a process and its descendants, times watts per core.

    Parameters
    ----------
    busy_core_w : float
        Watts that a busy core draws above an idle one.
    core_w : float
        Watts of an idle core, drawn by every core all the time.
    process_id : int, optional
        The root of the process tree; this process if not given.
    """

    name = "estimated"
    source = Source.ESTIMATED
    channels = (Channel(id="cpu0", kind=ChannelKind.CPU, name="CPU time x watts per core"),)
    period_s = 0.0

    def __init__(
        self,
        *,
        busy_core_w: float = WATTS_PER_BUSY_CORE,
        core_w: float = WATTS_PER_CORE,
        process_id: int | None = None,
    ) -> None:
        if not (0 < busy_core_w <= MOST_WATTS and 0 <= core_w <= MOST_WATTS):
            raise MeterError(
                f"watts per core must be above 0 and at most {MOST_WATTS:g}, not {busy_core_w:g} "
                f"and {core_w:g}."
            )
        if sys.platform != "linux":
            raise MeterError("the estimated meter needs Linux: it reads CPU clocks of processes.")
        self._busy_core_w = busy_core_w
        self._idle_w = core_w * (os.cpu_count() or 1)
        self._root = process_id or os.getpid()
        self._seen_ns: dict[int, int] = {}
        self._total_ns = 0
        self._scanned_s = -SCAN_S
        self._processes: tuple[int, ...] = ()
        self._begin_s = time.monotonic()
        self._lock = threading.Lock()
        self.read()

    def read(self) -> Reading:
        """Add up what the process tree has computed so far."""
        with self._lock:
            now = time.monotonic()
            if now - self._scanned_s >= SCAN_S:
                self._scanned_s, self._processes = now, tuple(_process_tree(self._root))
            for process in self._processes:
                try:
                    used_ns = time.clock_gettime_ns(~process << 3 | _SCHEDULER_CLOCK)
                except OSError:
                    continue  # it has just ended; what was seen stays
                self._total_ns += max(0, used_ns - self._seen_ns.get(process, 0))
                self._seen_ns[process] = used_ns
            now = time.monotonic()
            energy = self._busy_core_w * self._total_ns / 1e9
            energy += self._idle_w * (now - self._begin_s)
        return Reading(time_s=now, energy_j=(energy,))

    def provenance(self) -> Mapping[str, str]:
        """The watts assumed."""
        return {
            "estimate_busy_core_w": f"{self._busy_core_w:g}",
            "estimate_idle_w": f"{self._idle_w:g}",
        }


def _process_tree(root: int) -> Iterator[int]:
    """A process and its descendants."""
    children: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208 - called often
        try:
            with open(f"/proc/{name}/stat", encoding="ascii", errors="replace") as file:  # noqa: PTH123
                parent = int(file.read().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue  # it has just ended
        children.setdefault(parent, []).append(int(name))
    waiting = [root]
    while waiting:
        process = waiting.pop()
        waiting += children.get(process, ())
        yield process
