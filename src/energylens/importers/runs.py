"""What a benchmark file states, in one record whatever tool wrote it.

The file says what was measured, the operator says what measured it, and the record keeps which is
which: a `BenchmarkRun` holds only what its file states, None where it states nothing. Times are
in seconds, tokens are means over completed requests, joules cover what `StatedEnergy` says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from energylens.errors import ArtefactError
from energylens.importers.power.series import Clock, PowerLog


class RefusedFileError(ArtefactError):
    """A benchmark file or power log that a rule refuses; the message is one sentence."""


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Statistics of one latency over completed requests, in seconds; None where not stated."""

    mean_s: float | None = None
    median_s: float | None = None
    p90_s: float | None = None
    p95_s: float | None = None
    p99_s: float | None = None

    @property
    def known(self) -> bool:
        """Whether any statistic is."""
        return any(
            value is not None
            for value in (self.mean_s, self.median_s, self.p90_s, self.p95_s, self.p99_s)
        )

    @classmethod
    def of(cls, read: Callable[[str], float | None], mean: str, median: str) -> Latency:
        """Read all statistics, the percentiles by the names p90, p95 and p99."""
        return cls(
            mean_s=read(mean),
            median_s=read(median),
            p90_s=read("p90"),
            p95_s=read("p95"),
            p99_s=read("p99"),
        )


NO_LATENCY = Latency()


class Scope(StrEnum):
    """What joules cover, as far as a file says."""

    ACTIVE_GPUS = "active_gpus"  # the GPUs of the deployment
    NODE = "node"  # every GPU of the host
    WALL = "wall"  # the whole server, at its plug
    UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class StatedEnergy:
    """Joules that the file itself states, over the requests of the run.

    Attributes
    ----------
    joules : float
        Of all GPUs covered, J.
    scope : Scope
        Which GPUs those are.
    gpus : int or None
        How many.
    how : str
        What it was taken from, for people.
    power_w : float or None
        Mean watts while they were used, where that is not the whole run.
    """

    joules: float
    scope: Scope
    gpus: int | None = None
    how: str
    power_w: float | None = None


@dataclass(frozen=True, kw_only=True)
class Window:
    """When requests ran: begin and end in seconds of ``clock``, each known within ``slack_s``."""

    start_s: float
    end_s: float
    clock: Clock
    slack_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class BenchmarkRun:
    """One run of a benchmark, as its file states it.

    ``request_rate_per_s`` is the rate offered by an open loop, None for a closed one or all at
    once. ``max_concurrency`` is the client's limit on requests in flight, ``max_num_seqs`` the
    engine's; ``mean_concurrency`` what was observed. ``completed`` requests succeeded; with
    ``counted`` False the file does not count them, and joules are those of one. ``unusable`` says
    why power that the file states gives no joules.
    """

    format: str
    where: str
    version: str | None = None
    llm: str | None = None
    gpu: str | None = None
    gpus: int | None = None
    precision: str | None = None
    tensor_parallel: int | None = None
    pipeline_parallel: int | None = None
    expert_parallel: int | None = None
    data_parallel: int | None = None
    engine: str | None = None
    engine_version: str | None = None
    completed: float
    failed: float | None = None
    input_tokens: float | None = None
    output_tokens: float | None = None
    vision_tokens: float | None = None
    images: float | None = None
    frames: float | None = None
    duration_s: float | None = None
    window: Window | None = None
    request_rate_per_s: float | None = None
    achieved_rate_per_s: float | None = None
    max_concurrency: float | None = None
    max_num_seqs: float | None = None
    mean_concurrency: float | None = None
    ttft: Latency = NO_LATENCY
    tpot: Latency = NO_LATENCY
    itl: Latency = NO_LATENCY
    request_latency: Latency = NO_LATENCY
    energy: StatedEnergy | None = None
    prefill_energy_j: float | None = None
    decode_energy_j: float | None = None
    power: PowerLog | None = None
    unusable: str | None = None
    counted: bool = True
    needs: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def rate_per_s(self) -> float | None:
        """Completed requests a second."""
        if self.achieved_rate_per_s is not None:
            return self.achieved_rate_per_s
        return self.completed / self.duration_s if self.duration_s else None

    @property
    def open_loop(self) -> bool:
        """Whether requests came at a rate of their own, not as others finished."""
        return self.request_rate_per_s is not None


# ---------------------------------------------------------------------------- reading documents


@dataclass(frozen=True)
class Node:
    """One object of a document, read strictly: a value of the wrong kind is refused by its path."""

    fields: Mapping[str, object]
    name: str
    path: str = ""

    def at(self, key: str) -> str:
        """Say where a key is."""
        return f"{self.path}.{key}" if self.path else key

    def refuse(self, key: str, must: str) -> RefusedFileError:
        """Make the refusal of one value."""
        given = repr(self.fields.get(key))
        given = given if len(given) <= 60 else f"{given[:57]}..."
        return RefusedFileError(f"{self.name}: {self.at(key)} must be {must}, not {given}.")

    def has(self, key: str) -> bool:
        """Whether the key is there with something in it."""
        return self.fields.get(key) is not None

    def inner(self, key: str) -> Node | None:
        """Give an object within this one, None where there is none."""
        value = self.fields.get(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.refuse(key, "an object")
        return Node(value, self.name, self.at(key))

    def within(self, key: str) -> Node:
        """Give an object within this one, one without any value where there is none."""
        return self.inner(key) or Node({}, self.name, self.at(key))

    def loose(self, key: str) -> Node:
        """The same, also where something else than an object is there."""
        found = self.fields.get(key)
        return Node(found if isinstance(found, Mapping) else {}, self.name, self.at(key))

    def need_inner(self, key: str) -> Node:
        """Give an object within this one that must be there."""
        node = self.inner(key)
        if node is None:
            raise RefusedFileError(
                f"{self.name}: {self.at(key)} is missing: the file is not whole."
            )
        return node

    def each(self, key: str) -> list[Node]:
        """Give the objects of a list, none where the key is absent."""
        value = self.fields.get(key)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
            raise self.refuse(key, "a list of objects")
        return [Node(item, self.name, f"{self.at(key)}[{i}]") for i, item in enumerate(value)]

    def text(self, key: str) -> str | None:
        """Read a text, None where it is absent or blank."""
        value = self.fields.get(key)
        if value is None:
            return None
        if not isinstance(value, str) or not value.isprintable():
            raise self.refuse(key, "a printable text")
        return value.strip() or None

    def number(self, key: str) -> float | None:
        """Read a finite number of 0 or more, None where it is absent."""
        value = self.fields.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.refuse(key, "a number")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number) or number < 0:
            raise self.refuse(key, "a finite number, 0 or more")
        if number > 1e30:
            raise self.refuse(key, "a number that something real can have")
        return number

    def positive(self, key: str) -> float | None:
        """Read a number above 0, None where it is absent."""
        number = self.number(key)
        if number == 0:
            raise self.refuse(key, "a number above 0")
        return number

    def need(self, key: str) -> float:
        """Read a number above 0 that must be there."""
        number = self.positive(key)
        if number is None:
            raise RefusedFileError(
                f"{self.name}: {self.at(key)} is missing: the file is not whole."
            )
        return number

    def whole(self, key: str) -> int | None:
        """Read a whole number of 1 or more, None where it is absent."""
        number = self.number(key)
        if number is None:
            return None
        if number < 1 or number != int(number):
            raise self.refuse(key, "a whole number, 1 or more")
        return int(number)

    def seconds(self, key: str, unit_s: float) -> float | None:
        """Read a latency in units of ``unit_s``; 0 says that it was not measured."""
        number = self.number(key)
        return number * unit_s if number else None

    def signed(self, key: str) -> float | None:
        """Read a finite number of either sign, None where it is absent."""
        value = self.fields.get(key)
        if value is None:
            return None
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
            or abs(value) > 1e30
        ):
            raise self.refuse(key, "a finite number")
        return float(value)


#: Latencies beyond these are a unit mistaken for another, not a measurement.
PLAUSIBLE_S: Mapping[str, tuple[float, float]] = {
    "time to first token": (1e-4, 3600.0),
    "time per output token": (2e-5, 60.0),
    "inter-token latency": (1e-7, 60.0),
    "request latency": (1e-4, 86_400.0),
}


def verified(run: BenchmarkRun) -> BenchmarkRun:
    """Check a run against itself and give it back.

    Raises
    ------
    RefusedFileError
        If no request completed, a latency is in another unit than its name says, or counts,
        duration and rate contradict each other.
    """
    if not run.completed > 0:
        raise RefusedFileError(
            f"{run.where}: no request completed, so its latencies of 0 and its tokens are no "
            "measurement: run the benchmark again."
        )
    if run.failed is not None and run.failed > run.completed:
        raise RefusedFileError(
            f"{run.where}: {run.failed:g} requests failed or did not finish and "
            f"{run.completed:g} did, so joules over those that did are not theirs: run the "
            "benchmark again."
        )
    for what, latency in (
        ("time to first token", run.ttft),
        ("time per output token", run.tpot),
        ("inter-token latency", run.itl),
        ("request latency", run.request_latency),
    ):
        low, high = PLAUSIBLE_S[what]
        if what != "inter-token latency" and latency.mean_s is None:
            value = latency.median_s
        else:
            value = latency.mean_s
        if value is not None and not low <= value <= high:
            raise RefusedFileError(
                f"{run.where}: a {what} of {value:g} s is none of a served request, so the "
                "file gives it in another unit than its name says."
            )
    _agree(run)
    return run


def _agree(run: BenchmarkRun) -> None:
    latency, ttft, tpot = run.request_latency.mean_s, run.ttft.mean_s, run.tpot.mean_s
    if latency is not None and ttft is not None and ttft > 1.05 * latency:
        raise RefusedFileError(
            f"{run.where}: its time to first token ({ttft:g} s) exceeds the latency of the "
            f"whole request ({latency:g} s), so one of them is in another unit."
        )
    if latency is not None and tpot is not None and run.output_tokens is not None:
        decode = tpot * max(run.output_tokens - 1, 0)
        if decode > 20 * latency:
            raise RefusedFileError(
                f"{run.where}: {run.output_tokens:g} tokens of {tpot:g} s each take far "
                f"longer than the request ({latency:g} s), so one of them is in another unit."
            )
    if run.duration_s is not None and latency is not None and latency > 1.5 * run.duration_s:
        raise RefusedFileError(
            f"{run.where}: a mean request latency of {latency:g} s does not fit into a run of "
            f"{run.duration_s:g} s, so one of them is in another unit."
        )
    rate = run.achieved_rate_per_s
    if rate is not None and run.duration_s is not None:
        counted = run.completed / run.duration_s
        if not 0.8 <= rate / counted <= 1.25:
            raise RefusedFileError(
                f"{run.where}: {run.completed:g} requests in {run.duration_s:g} s are "
                f"{counted:g} a second, but the file says {rate:g}: it contradicts itself."
            )


def only_one(name: str, what: str, first: float | None, second: float | None) -> float | None:
    """Take a number that a file states twice; refuse if the two differ by more than 5 %."""
    if first is None or second is None:
        return first if second is None else second
    if abs(first - second) > 0.05 * max(first, second):
        raise RefusedFileError(
            f"{name}: it states {what} as {first:g} and as {second:g}, which cannot both be."
        )
    return first
