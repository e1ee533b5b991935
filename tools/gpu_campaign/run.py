"""Runs the campaign in pieces: each ends in time, and the next goes on where it ended."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from energylens import catalog
from energylens.errors import EnergyLensError, MeasurementError
from energylens.instrument import sweep
from energylens.instrument.engines import open_engine
from energylens.instrument.executors.local import LocalExecutor
from energylens.instrument.meter import ChannelKind
from energylens.instrument.meters import open_meter
from energylens.instrument.plan import Plan
from energylens.instrument.sweep import SweepProgress, SweepResult

# What a GPU machine without a compiler for every kernel can start: graphs without torch.compile.
VLLM_ON_GPU = {
    "compilation": '{"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}',
    "gpu_memory_utilization": "0.92",
}
STOPPING_S = 45.0  # a window that runs is finished, an engine is closed
KEPT_BESIDE = ".records.jsonl"


def engine_options(engine: str, rehearsal: bool) -> Mapping[str, str]:
    """Return what an engine is told besides the plan."""
    if rehearsal:
        return {"threads": "1"} if engine == "transformers" else {}
    return VLLM_ON_GPU if engine == "vllm" else {}


def gpu_here() -> str:
    """Name the GPU of this machine as the catalog does.

    Raises
    ------
    MeasurementError
        If there is none with an energy counter.
    """
    meter = open_meter("nvml")
    try:
        names = [c.name for c in meter.channels if c.kind is ChannelKind.GPU]
    finally:
        meter.close()
    if not names:
        raise MeasurementError("this machine has no GPU that NVML can read")
    return catalog.gpu(names[0].removeprefix("NVIDIA ")).id


def run_piece(
    plan: Plan, table: Path, *, meter: str, minutes: float, log_folder: Path
) -> SweepResult:
    """Measure until all is done or the time is over.

    Cases measured before, according to ``table`` and the records beside it, are left out; a
    case that the end interrupts is measured again by the next piece.
    """
    gpus = () if meter == "estimated" else (0,)
    log_folder.mkdir(parents=True, exist_ok=True)
    executor = LocalExecutor(gpus, exclusive=True, log_folder=log_folder)
    with _interrupted_after(max(minutes * 60 - STOPPING_S, 1.0)):
        return sweep.measure(
            plan,
            open_engine,
            functools.partial(open_meter, meter),
            table,
            executor=executor,
            on_progress=_Told(),
        )


@contextmanager
def _interrupted_after(seconds: float) -> Iterator[None]:
    """Send ourselves the interrupt that ends a sweep in good order."""
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class _Told:
    """Prints a line whenever a case has ended."""

    def __init__(self) -> None:
        self._done = -1

    def __call__(self, progress: SweepProgress) -> None:
        done = progress.measured + progress.failed
        if done == self._done:
            return
        self._done = done
        print(
            f"{progress.elapsed_s:6.0f} s  {progress.measured} measured, {progress.failed} failed "
            f"of {progress.cases}, {progress.energy_j:.0f} J",
            file=sys.stderr,
            flush=True,
        )


def merge(tables: list[Path], into: Path) -> int:
    """Join the tables and records of pieces that ran apart; each case counts once.

    Returns
    -------
    int
        Rows of the joined table.
    """
    into.parent.mkdir(parents=True, exist_ok=True)
    rows = 0
    for suffix, key in ((".jsonl", "x_case"), (KEPT_BESIDE, "case")):
        target = into.with_suffix(suffix)
        seen: set[str] = set()
        lines: list[str] = []
        for table in tables:
            file = table.with_suffix(suffix)
            if not file.is_file():
                continue
            for line in file.read_text(encoding="utf-8").splitlines():
                try:
                    record = json.loads(line)
                except ValueError:
                    continue  # the torn last line of a piece that was killed
                name = str(record.get(key) or "")
                again = f"{name} {record.get('status', '')}" in seen
                if name and record.get("kind", "case") == "case":
                    if again:
                        continue
                    seen.add(f"{name} {record.get('status', '')}")
                lines.append(line)
        partial = target.with_suffix(".partial")
        partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        partial.replace(target)
        if suffix == ".jsonl":
            rows = len(lines)
    return rows


def summary(result: SweepResult) -> str:
    """Say what a piece has done, and why cases failed."""
    lines = [
        f"{result.measured} of {result.cases} cases measured, {len(result.failed)} failed, "
        f"{result.unstable} unstable, {result.energy_j:.0f} J in this piece"
        + (", time is over: run it again to go on" if result.interrupted else "")
    ]
    for message, count in Counter(result.failed.values()).most_common(8):
        lines.append(f"  {count} x {message[:160]}")
    return "\n".join(lines)


def told_in_one_sentence(work: Callable[[], Any]) -> int:
    """Run ``work``; an error of ours is a sentence, not a traceback."""
    began = time.monotonic()
    try:
        work()
    except EnergyLensError as error:
        print(f"gpu_campaign: {error}", file=sys.stderr)
        return 1
    print(f"took {time.monotonic() - began:.0f} s", file=sys.stderr)
    return 0
