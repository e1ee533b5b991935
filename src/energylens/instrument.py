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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any, Protocol

from energylens.errors import InputError, MeasurementError
from energylens.records import Case, Gpu, Llm, Modality, Precision, Source

# ------------------------------------------------------------------------------------- errors


class Reason(StrEnum):
    """Why a case has no row."""

    DOES_NOT_FIT = "does_not_fit"  # known beforehand: memory, GPUs
    OUT_OF_MEMORY = "out_of_memory"
    UNSUPPORTED = "unsupported"  # the engine cannot do this, and says so
    CRASHED = "crashed"
    TIMED_OUT = "timed_out"
    WRONG_COUNTS = "wrong_counts"  # tokens asked for and tokens served differ
    METER = "meter"  # the meter gave nothing that may be called a measurement
    WORKER_LOST = "worker_lost"  # the process or the node is gone
    INTERRUPTED = "interrupted"


class EngineError(MeasurementError):
    """An engine could not do what was asked.

    Parameters
    ----------
    message : str
        One sentence: what was asked, what happened, what to do.
    reason : Reason
        The kind of failure, recorded with the case.
    usable : bool
        Whether the engine can go on with the next case without a restart.
    """

    def __init__(self, message: str, *, reason: Reason, usable: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.usable = usable


class MeterError(MeasurementError):
    """A meter gave nothing that may be called a measurement."""


# ------------------------------------------------------------------------- what is to be done

#: More than this of anything is a slip, not a case (as in the tidy table).
LARGEST_COUNT = 10**9
LARGEST_SIDE_PIXELS = 10**5


class Phase(StrEnum):
    """What an engine can repeat (see the top of this module)."""

    PREFILL = "prefill"
    DECODE = "decode"
    REQUEST = "request"
    ENCODE = "encode"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What an engine is started for; it is restarted only when this changes.

    Attributes
    ----------
    llm, precision
        What is served.
    tensor_parallel, pipeline_parallel, expert_parallel, data_parallel
        As in :class:`energylens.records.Configuration`.
    max_sequences : int
        Most sequences that will ever be in flight, all replicas (``max_num_seqs`` and CUDA
        graphs follow from it).
    max_sequence_tokens : int
        Longest prompt plus output that will be asked for (``max_model_len``).
    step_tokens : int or None
        Tokens of one scheduler step (``max_num_batched_tokens``); None: the engine's own
        default. Phases can be told apart exactly only if a whole batch's prompts fit.
    weights : str
        ``dummy`` (random), ``auto`` (from wherever the LLM's name leads) or a folder.
    model_path : str or None
        Hugging Face folder or ``config.json`` that describes the LLM; None: the engine builds
        a config from ``llm``.
    scaled_layers : int or None
        The LLM was cut down to so many layers; rows are marked.
    shard : (int, int) or None
        Run one rank's share of a larger (tensor, pipeline) layout; rows become ``derived``.
    options : mapping of str to str
        Settings that only this engine knows (``url``, ``eager``, ...). An engine refuses those
        it does not know.
    seed : int
        Fixes weights and prompts.
    gpu : Gpu or None
        GPU type that the plan names; only a simulated engine needs to be told.
    """

    llm: Llm
    precision: Precision
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    expert_parallel: int = 1
    data_parallel: int = 1
    max_sequences: int
    max_sequence_tokens: int
    step_tokens: int | None = None
    weights: str = "dummy"
    model_path: str | None = None
    scaled_layers: int | None = None
    shard: tuple[int, int] | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    gpu: Gpu | None = None

    @property
    def gpus(self) -> int:
        """GPUs that the engine occupies: the first so many that its process can see."""
        if self.shard is not None:
            return 1
        return self.tensor_parallel * self.pipeline_parallel * self.data_parallel


@dataclass(frozen=True, kw_only=True)
class Media:
    """Synthetic images and video frames in one request; sizes are (height, width) in pixels."""

    images: int = 0
    image_pixels: tuple[int, int] | None = None
    frames: int = 0
    frame_pixels: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for count, pixels, name in (
            (self.images, self.image_pixels, "image"),
            (self.frames, self.frame_pixels, "frame"),
        ):
            sized = pixels is not None and 1 <= min(pixels) <= max(pixels) <= LARGEST_SIDE_PIXELS
            if not 0 <= count <= LARGEST_COUNT or (count and not sized):
                raise InputError(
                    f"{name}s need a height and a width of 1 to {LARGEST_SIDE_PIXELS} pixels "
                    f"({name}_pixels); given {count} {name}s of {pixels}"
                )

    @property
    def modality(self) -> Modality:
        """What a request with these carries besides text."""
        if self.frames:
            return Modality.VIDEO
        return Modality.IMAGE if self.images else Modality.TEXT


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Requests of one shape, given to the engine at once.

    Attributes
    ----------
    requests : int
        Requests of the batch, all replicas.
    input_tokens : int
        Tokens to prefill for each request, exactly. The engine expands the media first and
        fills up with random text tokens; media that alone exceed this are UNSUPPORTED.
    output_tokens : int
        Tokens to generate for each request, exactly; end-of-sequence is ignored.
    """

    requests: int
    input_tokens: int
    output_tokens: int
    media: Media = field(default_factory=Media)
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Load:
    """Requests that keep coming: either ``concurrency`` at any time (closed loop), or a Poisson
    stream of ``request_rate_per_s`` (open loop).
    """  # noqa: D205

    concurrency: int | None = None
    request_rate_per_s: float | None = None
    input_tokens: int
    output_tokens: int
    media: Media = field(default_factory=Media)
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.concurrency is None) == (self.request_rate_per_s is None):
            raise InputError("a load must have a concurrency or a request rate, and not both")


# ----------------------------------------------------------------------------- what was done


@dataclass(frozen=True, kw_only=True)
class RequestTiming:
    """What one request experienced; seconds from its submission.

    ``token_times_s`` has the arrival of each output token where the engine streams.
    """

    ttft_s: float | None
    latency_s: float
    output_tokens: int
    token_times_s: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Repetition:
    """One repetition of a phase, as the engine counted it; tokens summed over the requests.

    Attributes
    ----------
    requests : int
        Requests worked on.
    input_tokens : int
        Tokens prefilled (0 for DECODE), vision included.
    output_tokens : int
        Tokens generated: 1 per request for PREFILL, n - 1 for DECODE, n for REQUEST, 0 for
        ENCODE.
    vision_tokens : int
        Part of ``input_tokens`` that came from media, after the processor's resizing.
    steps : int or None
        Forward passes, where the engine can count them.
    prefill_s, decode_s : float or None
        The two parts of a REQUEST, where they are exactly apart.
    timings : tuple of RequestTiming
        One per request, where known.
    """

    requests: int
    input_tokens: int
    output_tokens: int
    vision_tokens: int = 0
    steps: int | None = None
    prefill_s: float | None = None
    decode_s: float | None = None
    timings: tuple[RequestTiming, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a steady load has come: totals since it started, and what runs now.

    ``output_tokens`` and ``input_tokens`` count tokens when they are generated or prefilled,
    not when their request ends.
    """

    completed_requests: int
    input_tokens: int
    output_tokens: int
    running_requests: int
    vision_tokens_per_request: int = 0
    steps: int | None = None
    finished: tuple[RequestTiming, ...] = ()  # since the last progress


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What an engine can do, known before it starts."""

    phases: frozenset[Phase]
    splits_requests: bool = False  # REQUEST calls at_decode between its two parts
    steady: bool = False
    modalities: frozenset[Modality] = frozenset({Modality.TEXT})
    source: Source = Source.MEASURED  # SIMULATED for an engine that only computes
    # Whether the work is done on the GPUs that this process sees. A server given by URL is
    # elsewhere: its meter must be named by the user.
    local: bool = True


# ---------------------------------------------------------------------------------- the seams


class Engine(Protocol):
    """Does work of an exact size.

    All calls come from one thread. Every failure is an :class:`EngineError`; foreign
    exceptions are translated by the engine (out of memory above all). GPUs are those that the
    process sees (``CUDA_VISIBLE_DEVICES`` is set before the engine's libraries are imported,
    so heavy imports belong in :meth:`start`).
    """

    @property
    def name(self) -> str:
        """``vllm``, ``transformers``, ``openai``, ``simulated``: the row's ``engine``."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """What it can do; valid before :meth:`start`, narrowed after it if need be."""
        ...

    def start(self, layout: Layout) -> Mapping[str, str]:
        """Load the LLM and return provenance.

        Returns
        -------
        mapping of str to str
            Must have ``engine_version``; further: library and CUDA versions, ``weights`` (what
            they really are, ``dummy uniform 1e-3`` say), what is really loaded
            (``weight_bytes_<dtype>``, ``quantization_methods``), every engine argument that
            matters. Copied into the record of each case.

        Raises
        ------
        EngineError
            ``UNSUPPORTED`` for what it cannot do, ``OUT_OF_MEMORY``, ``CRASHED``.
        """
        ...

    def prepare(self, batch: Batch, phases: Sequence[Phase]) -> None:
        """Do whatever must not fall into a window: allocate, compile, capture graphs.

        Called once per case, before the first :meth:`run_phase` with this batch. May do nothing.
        """
        ...

    def run_phase(
        self,
        phase: Phase,
        batch: Batch,
        repetition: int,
        at_decode: Callable[[], None] | None = None,
    ) -> Repetition:
        """Do the phase once, and return when the devices have finished.

        Parameters
        ----------
        phase : Phase
            One of ``capabilities.phases``.
        batch : Batch
            As prepared.
        repetition : int
            Grows by one with every call; prompts and media must differ between repetitions
            (``seed`` and ``repetition`` fix them) so that nothing is served from a cache.
        at_decode : callable or None
            With REQUEST only: call it when all prefill has finished and no decode step has
            begun, devices idle. An engine that cannot promise that for this batch never calls
            it, and leaves ``prefill_s`` and ``decode_s`` None.

        Raises
        ------
        EngineError
            As in :meth:`start`; ``WRONG_COUNTS`` if tokens are not what was asked.
        """
        ...

    def steady(self, load: Load) -> Iterator[Progress]:
        """Serve a load by continuous batching until the iterator is closed.

        Yields once per scheduler iteration, or at least every 0.1 s. The first requests
        get outputs of staggered lengths, so that the batch is mixed from the start. Closing the
        iterator (``GeneratorExit``) aborts what is in flight.
        """
        ...

    def own_meter(self) -> Meter | None:
        """Return the meter of an engine whose joules only it knows (a simulated one), or None.

        Valid before :meth:`start`.
        """
        ...

    def close(self) -> None:
        """Free every process and every byte; may be called twice, and after a failure."""
        ...


class ChannelKind(StrEnum):
    """What a channel of a meter covers."""

    GPU = "gpu"
    CPU = "cpu"
    DRAM = "dram"
    SYSTEM = "system"


@dataclass(frozen=True, kw_only=True)
class Channel:
    """One counter of a meter. ``uuid_hash`` names a GPU without giving away its serial number."""

    id: str  # "gpu0", "cpu0"
    kind: ChannelKind
    index: int = 0
    name: str = ""  # as the driver calls the device
    uuid_hash: str = ""
    limit_w: float | None = None  # no honest counter says more than a small multiple of this
    power_cap_w: float | None = None  # where that limit was set below the default


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Joules since an arbitrary start, one number per channel, read at ``time_s``."""

    time_s: float
    energy_j: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class DeviceState:
    """What a GPU says of itself at one moment; None: it does not say."""

    channel: str
    temperature_c: float | None = None
    sm_clock_hz: float | None = None
    memory_clock_hz: float | None = None
    power_w: float | None = None
    throttle_reasons: tuple[str, ...] = ()


class Meter(Protocol):
    """Reads joules, and keeps the clock that windows are measured with.

    The clock is the meter's so that a simulated or replayed run has its own time.
    """

    @property
    def name(self) -> str:
        """``nvml``, ``nvml-power``, ``zeus``, ``replay``, ``estimated``, ``http``."""
        ...

    @property
    def source(self) -> Source:
        """What the joules are called in a row: MEASURED only for a hardware counter."""
        ...

    @property
    def channels(self) -> tuple[Channel, ...]:
        """The counters, in the order of :attr:`Reading.energy_j`."""
        ...

    @property
    def real_time(self) -> bool:
        """Whether its clock goes on its own; False where only :meth:`wait` moves it."""
        ...

    @property
    def period_s(self) -> float:
        """Time between two updates of the counter, as measured; 0 if it is continuous."""
        ...

    def read(self) -> Reading:
        """Read all channels now.

        Raises
        ------
        MeterError
            If a channel is gone, forbidden or does not exist.
        """
        ...

    def states(self) -> tuple[DeviceState, ...]:
        """Return clocks, temperatures and throttle flags of the GPUs; empty if there are none."""
        ...

    def provenance(self) -> Mapping[str, str]:
        """Driver, CUDA, power limits, topology ...: copied into the record of each case."""
        ...

    def now_s(self) -> float:
        """Return the time on the clock of :attr:`Reading.time_s`."""
        ...

    def wait(self, seconds: float) -> None:
        """Let so much of that time go by."""
        ...

    def close(self) -> None:
        """Stop threads and let go of devices."""
        ...


# ---------------------------------------------------------------------------------- the plan


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
        return (
            f"{case.llm.id} {case.precision.id} {case.configuration.describe()} "
            f"{w.input_tokens:g}+{w.output_tokens:g}{media}"
            f"{' steady' if self.mode is Mode.STEADY else ''}"
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
        tensor_parallel=configuration.tensor_parallel,
        pipeline_parallel=configuration.pipeline_parallel,
        expert_parallel=configuration.expert_parallel,
        data_parallel=configuration.data_parallel,
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


# --------------------------------------------------------------------------------- executors


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a task runs.

    Attributes
    ----------
    gpus : tuple of int
        Indices of its GPUs among those of the node, as the driver counts them.
    elsewhere : tuple of (url, token, gpus)
        Meters on the other nodes that the task spans, and its GPUs there.
    shared : bool
        Whether other tasks may run on the same node at the same time.
    stopping : callable
        Says whether to finish the window and return.
    """

    gpus: tuple[int, ...] = ()
    elsewhere: tuple[tuple[str, str, tuple[int, ...]], ...] = ()
    shared: bool = False
    stopping: Callable[[], bool] = field(default=lambda: False)


#: Does a task at a place and yields what is to be sent back, piece by piece. Must be picklable.
Work = Callable[[Any, Place], Iterator[Any]]


@dataclass(frozen=True, kw_only=True)
class Task:
    """Something for an executor to do: ``work(payload, place)``."""

    id: str
    gpus: int
    payload: Any
    limit_s: float  # longest silence between two pieces before the worker is killed
    tensor_parallel: int = 1


class ReportKind(StrEnum):
    """What an executor says of a task."""

    PIECE = "piece"  # one thing that the work yielded
    DONE = "done"
    LOST = "lost"  # the worker died
    SILENT = "silent"  # the worker said nothing for limit_s and was killed


@dataclass(frozen=True, kw_only=True)
class Report:
    """Something that happened to a task. ``message`` says why it was lost."""

    task_id: str
    kind: ReportKind
    piece: Any = None
    message: str = ""


class Executor(Protocol):
    """Runs tasks somewhere, and sends back what they yield."""

    @property
    def gpus(self) -> int:
        """GPUs that tasks can have at the same time; 0 on a machine without any."""
        ...

    def begin(self, work: Work) -> None:
        """Say what tasks do. Called once, before the first :meth:`submit`."""
        ...

    def submit(self, task: Task) -> None:
        """Queue a task."""
        ...

    def reports(self, timeout_s: float) -> list[Report]:
        """Wait for something to happen, ``timeout_s`` at most; may be empty."""
        ...

    def finish_soon(self) -> None:
        """Ask every task to finish its window and return, and start no other."""
        ...

    def close(self) -> None:
        """Kill what still runs."""
        ...
