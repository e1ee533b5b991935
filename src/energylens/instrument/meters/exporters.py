"""Joules that another exporter on the node reads: NVIDIA's DCGM exporter, and Zeus's daemon.

Both read the energy counter of the driver, in mJ since the driver was loaded. DCGM's exporter
looks at it every 30 s unless it was told otherwise: its counter stands still between two looks.
Where it exports watts alone, they are integrated from reading to reading.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qs, urlencode, urlsplit, urlunsplit

from energylens.errors import UsageError
from energylens.foreign import printable, without_secrets
from energylens.instrument.meter import Channel, ChannelKind, MeterError, Reading
from energylens.instrument.meters import wire
from energylens.instrument.meters.wall_clock import WallClockMeter
from energylens.scraping import ScrapeError, Series, endpoint, fetch, parse

ENERGY_MJ = "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"
POWER_W = ("DCGM_FI_DEV_POWER_USAGE", "DCGM_FI_DEV_POWER_USAGE_INSTANT")
EXPORTER_PERIOD_S = 30.0  # of dcgm-exporter, unless told otherwise
JOULES_PER_COUNT = 1e-3
ZEUSD_TOKEN_VARIABLE = "ZEUSD_TOKEN"


def _gpus_asked(url: str, path: str) -> tuple[str, tuple[int, ...]]:
    """Take ``?gpu=0,1`` off an address."""
    parts = urlsplit(endpoint(url, path))
    query = parse_qs(parts.query)
    text = ",".join(query.pop("gpu", []))
    wanted = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdigit() for part in wanted):
        raise UsageError(
            f"?gpu= must list numbers with commas between, not {printable(text, 60)!r}"
        )
    plain = parts._replace(query=urlencode(query, doseq=True))
    return urlunsplit(plain), tuple(map(int, wanted))


def _tidy(name: str) -> str:
    return printable(name, 100)


@dataclass(frozen=True)
class _Gpu:
    key: str  # host and UUID or index
    index: int
    model: str


class DcgmMeter(WallClockMeter):
    """The GPUs of a dcgm-exporter.

    Parameters
    ----------
    url : str
        As in ``http://node:9400/metrics``; ``?gpu=0,1`` takes these GPUs alone.

    Raises
    ------
    MeterError
        If it does not answer, or knows neither joules nor watts of a GPU.
    """

    name = "dcgm"

    def __init__(self, url: str) -> None:
        self._url, wanted = _gpus_asked(url, "/metrics")
        found = self._look()
        self._counter = any(ENERGY_MJ in values for values in found.values())
        name = (
            ENERGY_MJ
            if self._counter
            else next((p for p in POWER_W if any(p in values for values in found.values())), "")
        )
        if not name:
            raise MeterError(
                f"{without_secrets(self._url)} must export {ENERGY_MJ} or {POWER_W[0]}, and has "
                "neither: add the first to the exporter's list of counters."
            )
        self._metric = name
        gpus = [g for g in found if name in found[g] and (not wanted or g.index in wanted)]
        self._gpus = tuple(sorted(gpus, key=lambda g: (g.key.split("\t")[0], g.index)))
        if missing := sorted(set(wanted) - {g.index for g in self._gpus}):
            raise MeterError(
                f"{without_secrets(self._url)} has no GPU {', '.join(map(str, missing))}; it has "
                f"{', '.join(str(g.index) for g in sorted(found, key=lambda g: g.index))}."
            )
        self.period_s = EXPORTER_PERIOD_S
        self.channels = tuple(
            Channel(id=f"gpu{place}", kind=ChannelKind.GPU, index=place, name=_tidy(gpu.model))
            for place, gpu in enumerate(self._gpus)
        )
        self._energy_j = [0.0] * len(self._gpus)
        self._before: tuple[float, list[float]] | None = None

    def _look(self) -> dict[_Gpu, dict[str, float]]:
        try:
            series = parse(fetch(self._url), (ENERGY_MJ, *POWER_W), without_secrets(self._url))
        except ScrapeError as error:
            raise MeterError(str(error)) from None
        found: dict[_Gpu, dict[str, float]] = {}
        known: dict[str, _Gpu] = {}
        for one in series:
            gpu = _gpu_of(one)
            # Slices of one GPU each repeat the number of the whole.
            values = found.setdefault(known.setdefault(gpu.key, gpu), {})
            values[one.name] = max(one.value, values.get(one.name, -math.inf))
        return found

    def read(self) -> Reading:
        """Scrape the exporter."""
        found = self._look()
        values = []
        for gpu in self._gpus:
            value = found.get(gpu, {}).get(self._metric)
            if value is None:
                where = without_secrets(self._url)
                raise MeterError(f"{where} no longer shows {self._metric} of GPU {gpu.index}.")
            values.append(wire.number(value, self._metric, 0.0, 1e3 * wire.LARGEST_ENERGY_J))
        now = self.now_s()
        if self._counter:
            return Reading(time_s=now, energy_j=tuple(v * JOULES_PER_COUNT for v in values))
        if self._before is not None:
            then, watts = self._before
            for place, (old, new) in enumerate(zip(watts, values, strict=True)):
                self._energy_j[place] += 0.5 * (old + new) * (now - then)
        self._before = (now, values)
        return Reading(time_s=now, energy_j=tuple(self._energy_j))

    def provenance(self) -> Mapping[str, str]:
        """Where the joules come from."""
        how = "counter" if self._counter else "integrated watts"
        return {"meter_url": without_secrets(self._url), "dcgm_metric": f"{self._metric} ({how})"}


def _gpu_of(series: Series) -> _Gpu:
    labels = series.labels
    host = labels.get("Hostname") or labels.get("hostname") or ""
    label = labels.get("gpu", "") or labels.get("device", "").removeprefix("nvidia")
    index = int(label) if label.isdigit() else 0
    return _Gpu(
        f"{host}\t{labels.get('UUID') or labels.get('uuid') or label}",
        index,
        labels.get("modelName", ""),
    )


class ZeusdMeter(WallClockMeter):
    """The GPUs of a node where Zeus's daemon listens on TCP.

    Parameters
    ----------
    url : str
        As in ``http://node:4938``; ``?gpu=0,1`` takes these GPUs alone.
    token : str, optional
        A JSON web token with the scope ``gpu-read``; ``$ZEUSD_TOKEN`` if not given.

    Raises
    ------
    MeterError
        If it does not answer, refuses the token, or has no GPU.
    """

    name = "zeusd"
    period_s = 0.1  # of the driver's counter on data-centre GPUs

    def __init__(self, url: str, token: str | None = None) -> None:
        base, wanted = _gpus_asked(url, "/gpu/get_cumulative_energy")
        query = f"gpu_ids={','.join(map(str, wanted))}" if wanted else ""
        self._url = urlunsplit(urlsplit(base)._replace(query=query))
        self._token = token or os.environ.get(ZEUSD_TOKEN_VARIABLE, "")
        first = self._look()
        if not first:
            raise MeterError(f"{without_secrets(self._url)} answers, and has no GPU.")
        self._ids = tuple(sorted(first))
        self.channels: tuple[Channel, ...] = tuple(
            Channel(id=f"gpu{index}", kind=ChannelKind.GPU, index=index) for index in self._ids
        )

    def _look(self) -> dict[int, float]:
        where = without_secrets(self._url)
        try:
            document = json.loads(fetch(self._url, token=self._token))
        except ScrapeError as error:
            raise MeterError(
                f"{error} A zeusd with authentication needs ${ZEUSD_TOKEN_VARIABLE}."
            ) from None
        except (ValueError, RecursionError):
            raise MeterError(f"{where} answers, but is no zeusd.") from None
        if not isinstance(document, dict) or not all(
            str(key).isdigit() and isinstance(value, dict) for key, value in document.items()
        ):
            raise MeterError(f"{where} answers, but is no zeusd.")
        return {
            int(key): wire.number(
                value.get("energy_mj"), "energy_mj of zeusd", 0.0, 1e3 * wire.LARGEST_ENERGY_J
            )
            * JOULES_PER_COUNT
            for key, value in document.items()
        }

    def read(self) -> Reading:
        """Ask the daemon."""
        found = self._look()
        if missing := [index for index in self._ids if index not in found]:
            raise MeterError(f"{without_secrets(self._url)} no longer knows GPU {missing[0]}.")
        return Reading(time_s=self.now_s(), energy_j=tuple(found[index] for index in self._ids))

    def provenance(self) -> Mapping[str, str]:
        """Where the joules come from."""
        return {"meter_url": without_secrets(self._url)}
