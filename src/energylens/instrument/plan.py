"""The seams of the instrument: what an engine, a meter and an executor promise, and what they say.

An *engine* does work of an exact size when asked, as often as asked, and counts tokens. It
knows nothing of joules. A *meter* reads joules and knows nothing of tokens. ``measurement``
brings the two together; neither imports the other, and nothing here knows the energy law.

How a phase becomes a window
----------------------------
An energy counter moves in steps (about every 100 ms on a data-centre GPU), while one prefill
takes milliseconds. So a phase is something an engine can *repeat*, and a window is as many
repetitions as it takes to be long against the counter's step::

    PREFILL   all requests of the batch up to and including their first output token, and no
              further (on a serving engine: the batch with one output token)
    DECODE    the remaining ``output_tokens - 1`` steps alone, from a cache that holds the prompts
              (a static cache set back; impossible on engines that own their cache)
    REQUEST   both, as a user sees it
    ENCODE    the vision tower alone

An engine lists in ``Capabilities.phases`` what it can repeat. Every engine has REQUEST, and
PREFILL comes with it. Where DECODE is absent (vLLM, any server) ``measurement`` takes decode
from the readings at the exact boundary inside REQUEST if every decode part is long against
the counter's step (the engine calls ``at_decode``), and otherwise as REQUEST minus PREFILL,
both from long windows. Windows are consecutive repetitions of one stream without pauses, so
power is level across their edges.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

from energylens.errors import InputError
from energylens.instrument.engine import LARGEST_COUNT, Batch, Layout, Load, Media
from energylens.instrument.meter import Meter, MeterError
from energylens.records import Case, Gpu, Llm, Precision

# ---------------------------------------------------------------------------------- the plan


#: Requests that arrive in a window of an open loop, on average, at the least.
WINDOW_ARRIVALS = 20


class Mode(StrEnum):
    """How a case is run."""

    PHASES = "phases"  # fixed batches, prefill and decode apart
    STEADY = "steady"  # continuous batching at a steady mean batch


@dataclass(frozen=True, kw_only=True)
class PlannedCase:
    """One line of a plan: a case, and how to run it.

    ``case.configuration.batch_size`` is the batch of a PHASES run and the concurrency of a
    STEADY one, unless ``request_rate_per_s`` opens the loop. ``repeat`` tells replicates apart.
    """

    case: Case
    engine: str
    mode: Mode = Mode.PHASES
    media: Media = field(default_factory=Media)
    request_rate_per_s: float | None = None
    step_tokens: int | None = None
    weights: str = "dummy"
    model_path: str | None = None
    scaled_layers: int | None = None
    shard: tuple[int, int] | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    repeat: int = 0

    def __post_init__(self) -> None:
        workload, configuration = self.case.workload, self.case.configuration
        for name, value in (
            ("input_tokens", workload.input_tokens),
            ("output_tokens", workload.output_tokens),
            ("batch_size", configuration.batch_size),
        ):
            if not (1 <= value <= LARGEST_COUNT and value == int(value)):
                raise InputError(
                    f"a planned case must have a whole number of {name} from 1 to "
                    f"{LARGEST_COUNT:.0g}, not {value!r}"
                )
        if self.request_rate_per_s is not None:
            if self.mode is not Mode.STEADY:
                raise InputError("request_rate_per_s goes with mode steady only")
            if not (math.isfinite(self.request_rate_per_s) and self.request_rate_per_s > 0):
                raise InputError(
                    f"request_rate_per_s must be above 0, not {self.request_rate_per_s}"
                )

    @cached_property
    def key(self) -> str:
        """Name of the case by its content: an edited line is another case."""
        return _digest(self, ())

    @cached_property
    def layout_key(self) -> str:
        """Name of what an engine must be restarted for."""
        return _digest(
            self,
            (
                "workload",
                "batch_size",
                "mean_batch_size",
                "clock_mhz",
                "media",
                "mode",
                "request_rate_per_s",
                "repeat",
                "boundary",
                "node_gpus",
            ),
        )

    @property
    def gpus(self) -> int:
        """GPUs that the case really occupies: one for a shard of a larger layout."""
        return 1 if self.shard else self.case.configuration.gpus

    def batch(self) -> Batch:
        """Return the batch of a PHASES run."""
        return Batch(
            requests=int(self.case.configuration.batch_size),
            input_tokens=int(self.case.workload.input_tokens),
            output_tokens=int(self.case.workload.output_tokens),
            media=self.media,
            seed=self.seed,
        )

    def load(self) -> Load:
        """Return the load of a STEADY run."""
        return Load(
            concurrency=None
            if self.request_rate_per_s is not None
            else int(self.case.configuration.batch_size),
            request_rate_per_s=self.request_rate_per_s,
            input_tokens=int(self.case.workload.input_tokens),
            output_tokens=int(self.case.workload.output_tokens),
            media=self.media,
            seed=self.seed,
        )

    def describe(self) -> str:
        """Give a short human name."""
        case = self.case
        w = case.workload
        media = f" {self.media.images} images" if self.media.images else ""
        media += f" {self.media.frames} frames" if self.media.frames else ""
        load = " steady" if self.mode is Mode.STEADY else ""
        if self.request_rate_per_s is not None:
            load = f" {self.request_rate_per_s:g}/s"
        return (
            f"{case.llm.id} {case.precision.id} {case.configuration.describe()} "
            f"{w.input_tokens:g}+{w.output_tokens:g}{media}"
            f"{load}"
            f"{f' (repeat {self.repeat})' if self.repeat else ''}"
        )


def _digest(case: PlannedCase, ignored: Sequence[str]) -> str:
    """SHA-256 over what a case says; LLM, GPU and precision count by their ids."""

    def plain(value: Any) -> Any:
        if isinstance(value, Llm | Gpu | Precision):
            return value.id
        if is_dataclass(value):
            return {
                f.name: plain(getattr(value, f.name))
                for f in fields(value)
                if f.name not in ignored and getattr(value, f.name) != f.default
            }
        if isinstance(value, Mapping):
            return {str(key): plain(item) for key, item in sorted(value.items())}
        if isinstance(value, float) and value == int(value):
            return int(value)
        return value

    text = json.dumps(plain(case), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def layout_of(cases: Sequence[PlannedCase]) -> Layout:
    """Return the layout that serves all these cases, which share a ``layout_key``."""
    first = cases[0]
    configuration = first.case.configuration
    return Layout(
        llm=first.case.llm,
        precision=first.case.precision,
        **configuration.degrees,
        max_sequences=max(int(c.case.configuration.batch_size) for c in cases),
        max_sequence_tokens=max(
            int(c.case.workload.input_tokens + c.case.workload.output_tokens) for c in cases
        ),
        step_tokens=first.step_tokens,
        weights=first.weights,
        model_path=first.model_path,
        scaled_layers=first.scaled_layers,
        shard=first.shard,
        options=first.options,
        seed=first.seed,
        gpu=first.case.gpu,
    )


@dataclass(frozen=True, kw_only=True)
class Procedure:
    """How a case is measured; the defaults are explained in ``docs/measurement.md``.

    A window is at least ``min_periods`` updates of the counter and ``min_window_s`` long. A
    phase ends after ``min_windows`` if their relative spread is below ``spread_limit_ratio``,
    and after ``max_windows`` in any case.
    """

    min_periods: float = 20.0
    min_window_s: float = 1.0
    min_windows: int = 3
    max_windows: int = 5
    spread_limit_ratio: float = 0.02
    warmup_agreement_ratio: float = 0.05  # of two consecutive halves, in time and in joules
    max_warmup_halves: int = 8
    idle_s: float = 4.0
    cooldown_s: float = 1.0
    cool_below_c: float | None = None  # wait for this temperature, two minutes at most
    phase_limit_s: float = 180.0  # past it, two windows are enough
    steady_window_s: float = 10.0
    whole: bool = True  # REQUEST windows too, where PREFILL and DECODE can be repeated alone
    reference_every: int = 10  # cases between two looks at the reference case; 0: none
    drift_limit_ratio: float = 0.03
    case_limit_s: float = 1800.0  # a case or an engine start that takes longer is killed
    attempts: int = 2  # how often a case may lose its worker

    def __post_init__(self) -> None:
        for field_ in fields(self):
            value = getattr(self, field_.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(f"{field_.name} must be finite, not {value}")
            if value is not None and value < 0 and field_.name != "cool_below_c":
                raise InputError(f"{field_.name} must be 0 or more, not {value}")
        for name in ("min_window_s", "spread_limit_ratio", "case_limit_s", "steady_window_s"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be above 0, not {getattr(self, name)}")
        if not 2 <= self.min_windows <= self.max_windows:
            raise InputError(
                "a phase needs two windows or more, and min_windows may not exceed max_windows: "
                f"given {self.min_windows} and {self.max_windows}"
            )

    def window_s(self, meter: Meter) -> float:
        """Length of a window for this meter, in seconds."""
        return max(self.min_window_s, self.min_periods * meter.period_s)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Cases in the order in which they are to be measured, and how."""

    cases: tuple[PlannedCase, ...]
    procedure: Procedure = field(default_factory=Procedure)
    seed: int = 0

    def groups(self) -> list[tuple[PlannedCase, ...]]:
        """Cases by layout, in order of first appearance: one engine start each."""
        groups: dict[str, list[PlannedCase]] = {}
        for case in self.cases:
            groups.setdefault(case.layout_key, []).append(case)
        return [tuple(group) for group in groups.values()]


# --------------------------------------------------------------------------- windows, results


@dataclass(frozen=True, kw_only=True)
class Window:
    """Repetitions of one phase between two moments, and their joules per channel.

    The two parts of a REQUEST window are in the engine's own seconds, None where it does not
    tell them apart; decode joules are None where they could not be read directly.
    """

    phase: str  # a Phase, or "idle" or "steady"
    begin_s: float
    end_s: float
    repetitions: int
    requests: float
    input_tokens: int
    output_tokens: int
    energy_j: tuple[float, ...]
    prefill_s: float | None = None
    decode_s: float | None = None
    decode_energy_j: tuple[float, ...] | None = None
    running_requests: float | None = None

    @property
    def duration_s(self) -> float:
        """Seconds from begin to end."""
        return self.end_s - self.begin_s

    def __post_init__(self) -> None:
        if not (math.isfinite(self.duration_s) and self.duration_s > 0):
            raise MeterError(f"a {self.phase} window lasted {self.duration_s!r} s: clock went back")
