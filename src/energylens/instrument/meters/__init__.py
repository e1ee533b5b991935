"""Meters: whatever reads joules. Each stands behind :class:`energylens.instrument.meter.Meter`.

================  ==========================================================  =========
name              joules come from                                            source
================  ==========================================================  =========
``nvml``          the total-energy counter of an NVIDIA GPU                   measured
``nvml-power``    its power, sampled and integrated (no counter, or a check)  measured
``zeus``          AMD GPU, Jetson, Apple silicon, RAPL through Zeus           measured
``http://...``    a meter that another machine serves                         its own
``dcgm:URL``      NVIDIA's DCGM exporter                                      measured
``zeusd:URL``     Zeus's daemon                                               measured
``replay:FILE``   a recording                                                 its own
``estimated``     CPU time times watts: a guess                               estimated
================  ==========================================================  =========
"""

from __future__ import annotations

import os
from collections.abc import Callable

from energylens.errors import MissingExtraError, UnknownChoiceError, UsageError
from energylens.instrument.meter import Meter, MeterError
from energylens.instrument.meters.combined import CombinedMeter
from energylens.instrument.meters.estimated import EstimatedMeter
from energylens.instrument.meters.exporters import DcgmMeter, ZeusdMeter
from energylens.instrument.meters.nvml import NoCounterError, NvmlMeter, NvmlPowerMeter, gpu_indices
from energylens.instrument.meters.remote import HttpMeter, MeterServer, serve
from energylens.instrument.meters.replay import ReplayMeter, load, record
from energylens.instrument.meters.zeus import ZeusMeter

__all__ = [
    "NAMES",
    "CombinedMeter",
    "DcgmMeter",
    "EstimatedMeter",
    "HttpMeter",
    "MeterServer",
    "NvmlMeter",
    "NvmlPowerMeter",
    "ReplayMeter",
    "ZeusMeter",
    "ZeusdMeter",
    "gpu_indices",
    "open_meter",
    "record",
    "serve",
]

NAMES = (
    "auto", "nvml", "nvml-power", "zeus", "estimated", "replay:FILE", "http://HOST:PORT",
    "dcgm:URL", "zeusd:URL",
)  # fmt: skip
TOKEN_VARIABLE = "ENERGYLENS_METER_TOKEN"


def open_meter(name: str = "auto", *, token: str | None = None) -> Meter:
    """Open a meter by name.

    Parameters
    ----------
    name : str
        One of :data:`NAMES`. ``auto`` takes the first hardware counter there is and never
        falls back to a guess. ``nvml:0,1`` restricts NVML to these GPUs, ``zeus:cpu`` Zeus to a
        kind of device, ``estimated:5`` sets the watts of a busy core, several URLs with commas
        between them are added up; so are ``dcgm:URL,dcgm:URL``, and ``?gpu=0,1`` takes GPUs of
        one.
    token : str, optional
        Of a served meter; ``$ENERGYLENS_METER_TOKEN`` if not given.

    Raises
    ------
    UnknownChoiceError
        If no meter has that name.
    MissingExtraError
        If its package is not installed.
    MeterError
        If there is nothing to read.
    """
    kind, _, rest = name.partition(":")
    if kind == "http":
        secret = token or os.environ.get(TOKEN_VARIABLE, "")
        if not secret:
            raise UsageError(f"a served meter needs its token: give one, or set {TOKEN_VARIABLE}.")
        served = [HttpMeter(url.strip(), secret) for url in name.split(",")]
        return served[0] if len(served) == 1 else CombinedMeter(served)
    if kind in ("dcgm", "zeusd") and rest:
        maker = DcgmMeter if kind == "dcgm" else ZeusdMeter
        exporters = [maker(url) for url in rest.split(f",{kind}:")]
        return exporters[0] if len(exporters) == 1 else CombinedMeter(exporters)
    if kind == "replay":
        return load(rest)
    if kind == "estimated" and rest:
        try:
            return EstimatedMeter(busy_core_w=float(rest))
        except ValueError:
            raise UsageError(f"estimated:WATTS needs a number, not {rest!r}.") from None
    if kind == "zeus" and rest:
        return ZeusMeter(rest)
    if kind in ("nvml", "nvml-power") and rest:
        indices = [part.strip() for part in rest.split(",")]
        if not all(index.isdigit() for index in indices):
            raise UsageError(f"{kind}:GPUS needs numbers with commas between, not {rest!r}.")
        return (NvmlMeter if kind == "nvml" else NvmlPowerMeter)([int(i) for i in indices])
    makers: dict[str, Callable[[], Meter]] = {
        "auto": _open_first,
        "nvml": NvmlMeter,
        "nvml-power": NvmlPowerMeter,
        "zeus": ZeusMeter,
        "estimated": EstimatedMeter,
    }
    if name not in makers:
        raise UnknownChoiceError("meter", name, makers, f"Known are {', '.join(NAMES)}.")
    return makers[name]()


def _open_first() -> Meter:
    reasons = []
    for maker in (NvmlMeter, ZeusMeter):
        try:
            return maker()
        except NoCounterError:
            return NvmlPowerMeter()
        except (MeterError, MissingExtraError) as error:
            reasons.append(str(error))
    raise MeterError(
        f"no energy counter was found: {' '.join(reasons)} For a guess from CPU time, marked as "
        "one, use --meter estimated."
    )
