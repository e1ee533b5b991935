"""What is asked of a service under load, and what is decided: limits, loads, entries, decisions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from energylens.cases import FloatArray
from energylens.errors import InfeasibleError, UsageError
from energylens.records import Configuration, Precision
from energylens.scenarios import Scenario
from energylens.service import Lengths, Service
from energylens.viewing import picked
from energylens.words import rounded_down

if TYPE_CHECKING:
    from energylens.solving import Solved

Measure = Literal["tpot", "ttft", "latency"]
NAMES: dict[Measure, str] = {"tpot": "TPOT", "ttft": "TTFT", "latency": "request latency"}

# What simulated times are above those of the queue's closed form, as a log: the median, and the
# standard deviation above it, at these shares of the saturation rate; of means, 90th and 99th
# percentiles (python -m studies.service.simulated --settings 400 --seed 501).
QUEUE_LOADS = (0.175, 0.45, 0.7, 0.875)
QUEUE_SHARES = (0.9, 0.99)
_QUEUE_LATE: dict[Measure, tuple[tuple[float, ...], ...]] = {
    "tpot": ((0.0, 0.0, 0.0, 0.0), (0.01, 0.02, 0.02, 0.01), (0.05, 0.11, 0.04, 0.0)),
    "ttft": ((0.0, 0.0, 0.0, 0.06), (0.0, 0.0, 0.03, 0.11), (0.18, 0.2, 0.13, 0.14)),
    "latency": ((0.0, 0.0, 0.0, 0.01), (0.0, 0.0, 0.0, 0.0), (0.03, 0.02, 0.01, 0.0)),
}
_QUEUE_SPREAD: dict[Measure, tuple[tuple[float, ...], ...]] = {
    "tpot": ((0.01, 0.02, 0.05, 0.09), (0.06, 0.13, 0.33, 0.25), (0.34, 0.39, 0.29, 0.18)),
    "ttft": ((0.05, 0.05, 0.13, 0.35), (0.06, 0.07, 0.14, 0.56), (0.15, 0.15, 0.31, 0.54)),
    "latency": ((0.02, 0.03, 0.04, 0.15), (0.05, 0.07, 0.08, 0.11), (0.07, 0.08, 0.1, 0.11)),
}


def queue_late(measure: Measure, quantile: float | None, load: FloatArray) -> FloatArray:
    """What simulated times are above the closed form's, as a log.

    Parameters
    ----------
    measure : {"tpot", "ttft", "latency"}
    quantile : float or None
        Of which percentile; None: of the mean.
    load : ndarray
        Share of the saturation rate.

    Returns
    -------
    ndarray, shape (2, *load.shape)
        The median, and the standard deviation above it.
    """
    tables = [table[measure] for table in (_QUEUE_LATE, _QUEUE_SPREAD)]
    if quantile is None:
        lines = [np.array(of[0]) for of in tables]
    else:
        ends = [-np.log1p(-share) for share in QUEUE_SHARES]
        far = float(np.interp(-np.log1p(-quantile), ends, [0.0, 1.0]))
        lines = [(1.0 - far) * np.array(of[1]) + far * np.array(of[2]) for of in tables]
    return np.stack([np.interp(load, QUEUE_LOADS, line) for line in lines])


@dataclass(frozen=True, kw_only=True)
class LatencyLimit:
    """What one time may be at most, on average or for a share of the requests."""

    measure: Measure
    seconds: float
    quantile: float | None = None  # None: the mean

    def __post_init__(self) -> None:
        if not (np.isfinite(self.seconds) and self.seconds > 0):
            raise UsageError(
                f"a limit on {NAMES[self.measure]} must be above 0 s, not {self.seconds!r}"
            )
        if self.quantile is not None and not 0.0 < self.quantile < 1.0:
            raise UsageError(
                f"the percentile of a limit must lie between p1 and p99.9, not {self.quantile!r}"
            )

    def describe(self) -> str:
        """Give a short human name, as in ``TTFT p99 <= 1 s``."""
        of = "" if self.quantile is None else f" p{100 * self.quantile:g}"
        return f"{NAMES[self.measure]}{of} <= {seconds(self.seconds)}"

    def value(self, state: Service) -> FloatArray:
        """Read what is limited off a steady state; shape (n,)."""
        if self.quantile is None:
            means = {
                "tpot": state.tpot_s,
                "ttft": state.ttft_s,
                "latency": state.request_latency_s,
            }
            return means[self.measure]
        reads = {
            "tpot": state.tpot_quantile_s,
            "ttft": state.ttft_quantile_s,
            "latency": state.latency_quantile_s,
        }
        return reads[self.measure](self.quantile)

    def queue_late(self, load: FloatArray) -> FloatArray:
        """What the queue's closed form is off by, as in :func:`queue_late`."""
        return queue_late(self.measure, self.quantile, load)


def seconds(value: float) -> str:
    """Write seconds, or milliseconds below one."""
    if not np.isfinite(value):
        return "unbounded"
    if value < 0.9995:
        return f"{1000 * value:.3g} ms"
    return f"{value:.3g} s"


LEAST_RATE_PER_S = 1e-6  # one request in twelve days: below it all joules are idle ones


@dataclass(frozen=True, kw_only=True)
class Load:
    """What arrives: requests a second over all replicas, and their lengths.

    ``cached_share`` of each prompt is found in the prefix cache: it is not computed, but held.
    """

    rate_per_s: float
    lengths: Lengths
    cached_share: float = 0.0

    def __post_init__(self) -> None:
        if not (np.isfinite(self.rate_per_s) and self.rate_per_s >= LEAST_RATE_PER_S):
            raise UsageError(
                f"the rate must be at least {LEAST_RATE_PER_S:g} requests/s, not "
                f"{self.rate_per_s:g}"
            )
        if not 0.0 <= self.cached_share < 1.0:
            raise UsageError(
                f"the cached share of prompts must be from 0 to below 1, not {self.cached_share!r}"
            )

    @property
    def computed(self) -> Lengths:
        """Lengths of what has to be computed."""
        each = self.lengths
        return Lengths(
            input_tokens=max(each.input_tokens * (1.0 - self.cached_share), 1.0),
            output_tokens=each.output_tokens,
            input_cv=each.input_cv,
            output_cv=each.output_cv,
        )


@dataclass(frozen=True, kw_only=True)
class Running:
    """What runs today, and in what it differs from the question: None is as asked about.

    ``notes`` say what else it was started with.
    """

    configuration: Configuration
    precision: Precision | None = None
    memory_share_ratio: float | None = None
    notes: tuple[str, ...] = ()

    def scenario(self, asked: Scenario) -> Scenario:
        """Give the scenario asked about, in the number format and memory share that run today."""
        share = self.memory_share_ratio or asked.gpu.memory_share_ratio
        return replace(
            asked,
            precision=self.precision or asked.precision,
            gpu=replace(asked.gpu, memory_share_ratio=share),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Entry:
    """One configuration under the load. Joules and watts are those of the whole deployment.

    ``batch_limit`` is that of one replica (``max_num_seqs``), ``mean_batch_size`` what runs there.
    ``values_s`` has the time that each limit is about, ``saving_ratio`` the joules saved against
    the current configuration (None: none was named, or it does not keep up or meet the limits).
    """

    configuration: Configuration
    gpu: str
    precision: str
    batch_limit: float
    mean_batch_size: float
    energy_per_request_j: float
    lower_j: float
    upper_j: float
    power_w: float
    utilisation_ratio: float
    saturation_rate_per_s: float
    tpot_s: float
    ttft_s: float
    request_latency_s: float
    values_s: tuple[float, ...]
    probability_of_meeting_ratio: float
    probabilities: tuple[float, ...]  # of each limit by itself
    saving_ratio: float | None = None
    probability_best_ratio: float | None = None  # of the fewest joules among all that meet
    row: int = -1  # among the candidates; -1: none of them

    @property
    def saturated(self) -> bool:
        """Whether more arrives than it serves."""
        return not np.isfinite(self.ttft_s)

    def describe(self) -> str:
        """Give a short human name: replicas, layout and the batch limit of each."""
        c = self.configuration
        name = f"TP{c.tensor_parallel}"
        name += f" PP{c.pipeline_parallel}" if c.pipeline_parallel > 1 else ""
        name += f" EP{c.expert_parallel}" if c.expert_parallel > 1 else ""
        name = f"{c.data_parallel} x {name}" if c.data_parallel > 1 else name
        name += f", batch limit {self.batch_limit:g}"
        name += "" if c.power_cap_w is None else f", {c.power_cap_w:g} W"
        return name + ("" if c.clock_mhz is None else f", {c.clock_mhz:g} MHz")

    def to_json(self) -> dict[str, Any]:
        """Names and values."""
        c = self.configuration
        return {
            **c.degrees,
            "batch_size": c.batch_size,
            "batch_limit_per_replica": self.batch_limit,
            "power_cap_w": c.power_cap_w,
            "clock_mhz": c.clock_mhz,
            "gpu": self.gpu,
            "precision": self.precision,
            "gpus": c.gpus,
            **picked(self, "mean_batch_size energy_per_request_j lower_j upper_j"),
            "tpot_s": _finite(self.tpot_s),
            "ttft_s": _finite(self.ttft_s),
            "request_latency_s": _finite(self.request_latency_s),
            **picked(self, "power_w utilisation_ratio saturation_rate_per_s"),
            "probability_of_meeting_ratio": _finite(self.probability_of_meeting_ratio),
            "limit_values_s": [_finite(value) for value in self.values_s],
            "saving_ratio": self.saving_ratio,
            "probability_best_ratio": self.probability_best_ratio,
        }


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


@dataclass(frozen=True, kw_only=True)
class Shadow:
    """What one limit costs: relaxed to ``relaxed_s`` it would save ``saving_ratio``."""

    limit: LatencyLimit
    relaxed_s: float
    saving_ratio: float
    entry: Entry

    @property
    def configuration(self) -> str:
        """Name of what would be chosen."""
        return self.entry.describe()


@dataclass(frozen=True, kw_only=True)
class MeetPrice:
    """What another probability would change: with ``meet`` the choice would be ``entry``.

    ``saving_ratio`` is below 0 where it costs joules; no entry: nothing meets.
    """

    meet: float
    saving_ratio: float | None
    entry: Entry | None


@dataclass(frozen=True, kw_only=True)
class Beyond:
    """What takes the fewest joules and does not meet: its odds, and those at relaxed limits."""

    entry: Entry
    relaxed_ratio: float
    relaxed_odds: float


@dataclass(frozen=True, kw_only=True)
class Enough:
    """What would meet the limits on more GPUs than are allowed: how many, and by which layout."""

    gpus: int
    name: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Decision:
    """Configurations that meet the limits with the probability asked, fewest joules first.

    ``entries`` has the best batch limit of each layout. ``missed`` those whose odds are too low,
    likeliest first. ``fewest_gpus`` is the best of those that meet with the fewest GPUs,
    ``breaks_at_per_s`` the rate up to which the first choice meets, ``front`` the choices that no
    other beats in both joules and the probability-weighted time of the first limit. ``keeps`` is
    whether the first choice is what runs today (``running``, as it was told). Not ``certain``
    is what means alone say: then no probability was worked out. ``enough`` says how many GPUs would
    do where those allowed do not. ``solved`` has all candidates.
    """

    scenario: Scenario
    load: Load
    limits: tuple[LatencyLimit, ...]
    meet: float
    entries: tuple[Entry, ...]
    missed: tuple[Entry, ...]
    current: Entry | None
    fewest_gpus: Entry | None
    shadows: tuple[Shadow, ...]
    breaks_at_per_s: float | None
    front: tuple[Entry, ...]
    considered: int
    ruled_out: int
    notes: tuple[str, ...] = ()
    certain: bool = True
    enough: Enough | None = None
    solved: Solved
    meet_prices: tuple[MeetPrice, ...] = ()
    beyond: Beyond | None = None
    saving_interval: tuple[float, float] | None = None  # 80 %, against what runs today
    running: Running | None = None
    keeps: bool = False

    @property
    def best(self) -> Entry:
        """The choice.

        Raises
        ------
        InfeasibleError
            If nothing meets the limits.
        """
        if not self.entries:
            raise InfeasibleError(self.why_none())
        return self.entries[0]

    def why_none(self) -> str:
        """Say what comes nearest where nothing meets."""
        solved = self.solved
        most = solved.state.saturation_rate_per_s * solved.cases.data_parallel
        if len(most) and most.max() <= self.load.rate_per_s:
            c = solved.cases.case(int(most.argmax())).configuration
            return (
                f"nothing on up to {self.scenario.max_gpus} GPUs keeps up with "
                f"{self.load.rate_per_s:g} requests/s: the most is {most.max():.3g}, by "
                f"{c.describe()}. {self._more()}, or spread the load."
            )
        said = " and ".join(limit.describe() for limit in self.limits) or "the rate"
        message = (
            f"nothing on up to {self.scenario.max_gpus} GPUs meets {said} at "
            f"{self.load.rate_per_s:g} requests/s with probability {self.meet:g}"
        )
        if not self.missed:
            return f"{message}: every configuration is over its capacity. {self._more()}."
        near = self.missed[0]
        values = ", ".join(
            f"{NAMES[limit.measure]} {seconds(value)}"
            for limit, value in zip(self.limits, near.values_s, strict=True)
        )
        if self.certain:
            odds = rounded_down(near.probability_of_meeting_ratio)
            values = f"{values}{', ' if values else ''}met with probability {odds:.2f}"
        return f"{message}. Nearest is {near.describe()} ({values or 'by its means'}). " + (
            "Relax a limit or lower --meet." if self.enough is None else f"{self._more()}."
        )

    def _more(self) -> str:
        """Say how many GPUs would do."""
        if self.enough is None:
            return "Allow more GPUs"
        return f"{self.enough.gpus} GPUs would do ({self.enough.name})"

    def to_json(self) -> dict[str, Any]:
        """Names and values."""
        w = self.load.lengths
        return {
            "question": {
                "llm": self.scenario.llm.id,
                "rate_per_s": self.load.rate_per_s,
                "input_tokens": w.input_tokens,
                "vision_tokens": self.scenario.workload.vision_tokens,
                **picked(w, "output_tokens input_cv output_cv"),
                "cached_share": self.load.cached_share,
                "meet": self.meet,
                "max_gpus": self.scenario.max_gpus,
                "node_gpus": self.scenario.node_gpus,
                "limits": [
                    {"of": x.measure, "seconds": x.seconds, "quantile": x.quantile}
                    for x in self.limits
                ],
            },
            "configurations": [entry.to_json() for entry in self.entries],
            "missed": [entry.to_json() for entry in self.missed],
            "current": None if self.current is None else self.current.to_json(),
            "fewest_gpus": None if self.fewest_gpus is None else self.fewest_gpus.to_json(),
            "shadow_prices": [
                {"limit": s.limit.describe(), **picked(s, "relaxed_s saving_ratio configuration")}
                for s in self.shadows
            ],
            "meet_prices": [
                {
                    "meet": price.meet,
                    "saving_ratio": price.saving_ratio,
                    "configuration": price.entry and price.entry.describe(),
                }
                for price in self.meet_prices
            ],
            "saving_interval_ratio": self.saving_interval and list(self.saving_interval),
            "breaks_at_rate_per_s": self.breaks_at_per_s,
            "front": [entry.to_json() for entry in self.front],
            **picked(self, "considered ruled_out certain"),
            "notes": list(self.notes),
        }
