"""The seam of an engine: work of an exact size, as often as asked, and the tokens counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from energylens.errors import InputError, MeasurementError
from energylens.instrument.meter import Meter
from energylens.records import Gpu, Llm, Modality, Precision, Source

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
    busy_s : float, optional
        Seconds after which the same may be asked again of a server that is busy now.
    refused_request : bool
        Whether a server refused this kind of request, whoever sends it.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: Reason,
        usable: bool = False,
        busy_s: float | None = None,
        refused_request: bool = False,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.usable = usable
        self.busy_s = busy_s
        self.refused_request = refused_request


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

    @property
    def capabilities(self) -> Capabilities:
        """What it can do; valid before :meth:`start`, narrowed after it if need be."""

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

    def prepare(self, batch: Batch, phases: Sequence[Phase]) -> None:
        """Do whatever must not fall into a window: allocate, compile, capture graphs.

        Called once per case, before the first :meth:`run_phase` with this batch. May do nothing.
        """

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

    def steady(self, load: Load) -> Iterator[Progress]:
        """Serve a load by continuous batching until the iterator is closed.

        Yields once per scheduler iteration, or at least every 0.1 s. The first requests
        get outputs of staggered lengths, so that the batch is mixed from the start. Closing the
        iterator (``GeneratorExit``) aborts what is in flight.
        """

    def own_meter(self) -> Meter | None:
        """Return the meter of an engine whose joules only it knows (a simulated one), or None.

        Valid before :meth:`start`.
        """

    def close(self) -> None:
        """Free every process and every byte; may be called twice, and after a failure."""
