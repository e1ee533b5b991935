"""The nouns: immutable records, checked when they are made.

Nothing here reads a file or computes an energy. ``None`` always means *not known*,
never zero. Sizes are counts (elements, tokens, heads) unless the name ends in a unit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

from energylens.errors import InputError


class Source(StrEnum):
    """Where the joules of a row come from."""

    MEASURED = "measured"  # by an energy counter, by energylens
    SELF_MEASURED = "self_measured"  # by whoever gives the row, with another tool
    PUBLISHED = "published"  # measured by others and published
    SIMULATED = "simulated"  # computed by a simulator
    ESTIMATED = "estimated"  # guessed from time or TDP
    DERIVED = "derived"  # partly measured, partly modelled

    @property
    def carries_accuracy_claim(self) -> bool:
        """Whether an accuracy figure may rest on such rows."""
        return self in (Source.MEASURED, Source.SELF_MEASURED, Source.PUBLISHED)


class Boundary(StrEnum):
    """What the joules cover."""

    ACTIVE_GPUS = "active_gpus"  # the GPUs of the deployment, idle floor included
    NODE = "node"  # every GPU of the node, idle ones too
    WALL = "wall"  # the whole server at its power inlet: GPUs, host, fans, losses


class Modality(StrEnum):
    """What a request carries besides text."""

    TEXT = "text"
    IMAGE = "image"
    VIDEO = "video"


MODALITIES = tuple(Modality)
BOUNDARIES = tuple(Boundary)
SOURCES = tuple(Source)

#: The degrees of parallelism, and those that are free where nothing says which knobs are.
PARALLELISM = ("tensor_parallel", "pipeline_parallel", "expert_parallel", "data_parallel")
DEFAULT_CHOOSE = PARALLELISM[:2]

#: Power caps that a GPU can be given, in units of its TDP: drivers allow about a quarter of it at
#: least, and some boards a little more than their datasheet says.
POWER_CAP_RATIOS = (0.1, 1.05)
CLOCK_RATIOS = (0.1, 1.05)  # likewise, of the highest core clock: drivers take 210 MHz and up


def _require(condition: bool, owner: str, must: str) -> None:
    if not condition:
        raise InputError(f"{owner}: {must}")


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False


def _short(value: object) -> str:
    """What was given, cut where it fills the screen."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return "an integer of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _require_names(owner: str, *names: str) -> None:
    for name in names:
        if not name.strip() or not name.isprintable():
            raise InputError(f"{owner}: names must be printable text, not {_short(name)}")


def _require_each(
    owner: str, record: object, names: str, must: str, low: float, *, whole: bool = False
) -> None:
    """Check numbers of a record by their names; one that is not known passes."""
    for name in names.split():
        value = getattr(record, name)
        if value is not None and not (
            value >= low and _finite(value) and not (whole and value % 1)
        ):
            raise InputError(f"{owner}: {name} must be a {must}, not {_short(value)}")


def _require_positive(owner: str, record: object, names: str) -> None:
    least = math.ulp(0.0)  # the smallest number above 0
    _require_each(owner, record, names, "finite number above 0", least)


def _require_not_negative(owner: str, record: object, names: str) -> None:
    _require_each(owner, record, names, "finite number, 0 or more", 0.0)


def _require_whole(owner: str, record: object, names: str) -> None:
    _require_each(owner, record, names, "whole number, 1 or more", 1.0, whole=True)


# ------------------------------------------------------------------------- LLM architecture


@dataclass(frozen=True, kw_only=True)
class Attention:
    """The attention layers of an LLM.

    ``kv_heads`` may be a mean over layers where an LLM varies it. With multi-head latent
    attention (``kv_rank`` set) the cache holds ``kv_rank + rope_head_size`` elements a
    token and layer instead of ``2 kv_heads head_size``.

    Sparse attention (``index_tokens`` set; DeepSeek-V3.2, arXiv 2512.02556) has an indexer of
    ``index_heads`` heads of ``index_head_size``: it compares each token with one key of every
    earlier one, and attention sees the ``index_tokens`` that it picks.
    """

    layers: int
    heads: int
    kv_heads: float
    head_size: int
    window_tokens: int | None = None
    window_layers: int = 0
    query_rank: int | None = None
    kv_rank: int | None = None
    rope_head_size: int = 0
    value_head_size: int | None = None
    index_heads: int = 0
    index_head_size: int = 0
    index_tokens: int | None = None

    def __post_init__(self) -> None:
        _require_positive(
            "attention",
            self,
            "layers heads kv_heads head_size window_tokens query_rank kv_rank value_head_size "
            "index_tokens",
        )
        _require_not_negative(
            "attention", self, "window_layers rope_head_size index_heads index_head_size"
        )
        _require(
            self.index_tokens is None or (self.index_heads > 0 and self.index_head_size > 0),
            "attention",
            "index_tokens needs index_heads and index_head_size",
        )
        _require(self.window_layers <= self.layers, "attention", "window_layers exceeds layers")
        _require(
            not self.window_layers or self.window_tokens is not None,
            "attention",
            "window_layers needs window_tokens",
        )

    def parameters(self, hidden_size: int) -> float:
        """Weights of all attention layers, those of an indexer included."""
        value_size = self.value_head_size or self.head_size
        # An indexer's queries come from the query latent; its key and the weight of each of its
        # heads from the hidden state.
        index = float(
            (self.query_rank or hidden_size) * self.index_heads * self.index_head_size
            + hidden_size * (self.index_head_size + self.index_heads)
        )
        if self.kv_rank is None:
            per_layer = hidden_size * self.head_size * (self.heads + self.kv_heads)
            per_layer += hidden_size * value_size * (self.heads + self.kv_heads)
            return self.layers * (per_layer + index)
        # Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): head_size excludes
        # the rotary part, which the keys of all heads share.
        query = self.heads * (self.head_size + self.rope_head_size)
        per_layer = float(hidden_size * (self.kv_rank + self.rope_head_size))
        per_layer += self.kv_rank * self.heads * (self.head_size + value_size)
        per_layer += self.heads * value_size * hidden_size
        if self.query_rank is None:
            per_layer += hidden_size * query
        else:
            per_layer += self.query_rank * (hidden_size + query)
        return self.layers * (per_layer + index)

    @property
    def index_bytes_per_token_layer(self) -> float:
        """Bytes of an indexer's key of one token and layer: 8 bits an element and a scale."""
        return self.index_head_size + 4.0 if self.index_head_size else 0.0

    @property
    def decode_flop_per_seen_token_layer(self) -> float:
        """FLOPs of one new token for each earlier token that it attends to, in one layer.

        Latent attention multiplies in the latent while decoding: 128 heads with 576 and 512
        elements, where DeepSeek-V3's heads have 192 and 128.
        """
        if self.kv_rank is not None:
            return 2.0 * self.heads * (2 * self.kv_rank + self.rope_head_size)
        return 2.0 * self.heads * (self.head_size + (self.value_head_size or self.head_size))

    @property
    def prefill_flop_per_seen_token_layer(self) -> float:
        """The same of a token of the prompt, where latent attention widens its keys and values."""
        value_size = self.value_head_size or self.head_size
        rotary = self.rope_head_size if self.kv_rank is not None else 0
        return 2.0 * self.heads * (self.head_size + rotary + value_size)

    @property
    def index_flop_per_earlier_token_layer(self) -> float:
        """FLOPs of an indexer for each pair of a token and an earlier one, in one layer."""
        return 2.0 * self.index_heads * self.index_head_size

    @property
    def kv_elements_per_token_layer(self) -> float:
        """Elements that one token leaves in the cache of one layer."""
        if self.kv_rank is not None:
            return float(self.kv_rank + self.rope_head_size)
        return self.kv_heads * (self.head_size + (self.value_head_size or self.head_size))


@dataclass(frozen=True, kw_only=True)
class FeedForward:
    """The dense feed-forward layers: ``matrices`` of ``hidden_size x size`` each (3 if gated)."""

    layers: int
    size: int
    matrices: int = 3

    def __post_init__(self) -> None:
        _require_positive("feed_forward", self, "layers size")
        _require(self.matrices in (2, 3), "feed_forward", "matrices must be 2 or 3 (gated)")


@dataclass(frozen=True, kw_only=True)
class Experts:
    """The mixture-of-experts layers: ``active_experts`` of ``experts`` for each token.

    Shared experts run for every token; their summed inner size is ``shared_size``.
    """

    layers: int
    experts: int
    active_experts: int
    size: int
    shared_size: int = 0
    matrices: int = 3

    def __post_init__(self) -> None:
        _require_positive("experts", self, "layers experts active_experts size")
        _require_not_negative("experts", self, "shared_size")
        _require(self.active_experts <= self.experts, "experts", "active_experts exceeds experts")
        _require(self.matrices in (2, 3), "experts", "matrices must be 2 or 3 (gated)")


@dataclass(frozen=True, kw_only=True)
class StateSpace:
    """The state-space layers (Mamba 1 or 2): a state of fixed size for each sequence.

    ``inner_size`` is heads x head size; Mamba 1 has ``heads = 0`` and a low-rank step size.
    ``state_bits`` is the width of the recurrent state: engines keep it, as the convolution's
    tail, in the LLM's 16 bits unless its configuration says otherwise (``mamba_ssm_dtype``).
    """

    layers: int
    inner_size: int
    state_size: int
    heads: int = 0
    groups: int = 1
    convolution_width: int = 4
    state_bits: float = 16.0

    def __post_init__(self) -> None:
        _require_positive(
            "state_space", self, "state_bits layers inner_size state_size groups convolution_width"
        )
        _require_not_negative("state_space", self, "heads")

    def parameters(self, hidden_size: int) -> float:
        """Weights of all state-space layers."""
        inner, state = self.inner_size, self.state_size
        if self.heads:  # Mamba 2: one projection gives z, x, B, C and the step of each head
            projected = 2 * inner + 2 * self.groups * state + self.heads
            convolved = inner + 2 * self.groups * state
            per_layer = hidden_size * projected + convolved * self.convolution_width
        else:  # Mamba 1: step sizes through a rank of hidden/16, as its reference code has it
            rank = math.ceil(hidden_size / 16)
            per_layer = hidden_size * 2 * inner + inner * (rank + 2 * state) + rank * inner
            per_layer += inner * (state + self.convolution_width)
        return self.layers * (per_layer + inner * hidden_size)

    @property
    def elements_per_sequence(self) -> float:
        """Elements of state, convolution tail included, that one sequence keeps."""
        convolved = self.inner_size + (2 * self.groups * self.state_size if self.heads else 0)
        per_layer = self.inner_size * self.state_size + convolved * (self.convolution_width - 1)
        return float(self.layers * per_layer)

    @property
    def bytes_per_sequence(self) -> float:
        """Bytes of state that one sequence keeps; the tail of the convolution is in 16 bits."""
        state = float(self.layers * self.inner_size * self.state_size)
        return state * self.state_bits / 8.0 + (self.elements_per_sequence - state) * 2.0


@dataclass(frozen=True, kw_only=True)
class Vision:
    """The vision tower. It runs on patches; ``patches_per_token`` of them become one LLM token."""

    parameters: int
    layers: int
    hidden_size: int
    patch_pixels: int
    patches_per_token: float = 1.0
    tokens_per_image: int | None = None
    tokens_per_frame: int | None = None

    def __post_init__(self) -> None:
        _require_positive(
            "vision",
            self,
            "layers parameters hidden_size patch_pixels patches_per_token tokens_per_image "
            "tokens_per_frame",
        )


@dataclass(frozen=True, kw_only=True)
class Llm:
    """A language model: the architecture that its energy depends on.

    ``total_parameters`` and ``active_parameters`` are the published counts (vision tower
    included); the ``*_parameters`` properties are recomputed from the architecture.
    ``context_tokens`` is the longest context, prompt and output together, where it is known.
    """

    id: str
    layers: int
    hidden_size: int
    vocabulary_size: int
    total_parameters: int
    active_parameters: int
    tied_embeddings: bool = False
    attention: Attention | None = None
    feed_forward: FeedForward | None = None
    experts: Experts | None = None
    state_space: StateSpace | None = None
    vision: Vision | None = None
    native_precision: str = "bf16"
    context_tokens: int | None = None
    aliases: tuple[str, ...] = ()
    source: str = ""
    date: str = ""
    count_exempt: str | None = None

    def __post_init__(self) -> None:
        owner = f"LLM {self.id!r}"
        _require(bool(self.id.strip()), "LLM", "id must not be empty")
        _require_names("LLM", self.id, *self.aliases)
        _require_positive(
            owner,
            self,
            "layers hidden_size vocabulary_size total_parameters active_parameters context_tokens",
        )
        _require(
            self.attention is not None or self.state_space is not None,
            owner,
            "needs attention or state-space layers, or both",
        )
        _require(
            self.active_parameters <= self.total_parameters,
            owner,
            "active_parameters exceeds total_parameters",
        )

    @property
    def family(self) -> str:
        """One of dense, moe, hybrid, hybrid-moe, ssm."""
        if self.state_space is not None:
            if self.attention is None:
                return "ssm"
            return "hybrid-moe" if self.experts is not None else "hybrid"
        return "moe" if self.experts is not None else "dense"

    @property
    def architecture(self) -> tuple[object, ...]:
        """What it computes with, whatever its name: variants of one LLM share it."""
        return (
            self.layers,
            self.hidden_size,
            self.vocabulary_size,
            self.tied_embeddings,
            self.attention,
            self.feed_forward,
            self.experts,
            self.state_space,
            self.vision,
        )

    @cached_property
    def embedding_parameters(self) -> float:
        """One vocabulary matrix: the input embedding, looked up rather than read."""
        return float(self.vocabulary_size * self.hidden_size)

    @cached_property
    def expert_parameters(self) -> float:
        """Weights of all routed experts."""
        e = self.experts
        return float(e.layers * e.experts * e.matrices * self.hidden_size * e.size) if e else 0.0

    @cached_property
    def backbone_parameters(self) -> float:
        """Weights in the layers that every token goes through (no experts, no vocabulary)."""
        total = self.attention.parameters(self.hidden_size) if self.attention else 0.0
        total += self.feed_forward_parameters
        if self.experts:
            total += self.experts.layers * self.hidden_size * self.experts.experts
        if self.state_space:
            total += self.state_space.parameters(self.hidden_size)
        return float(total)

    @cached_property
    def feed_forward_parameters(self) -> float:
        """Weights of the feed-forward layers and shared experts, those routed to left out."""
        ff, e = self.feed_forward, self.experts
        total = ff.layers * ff.matrices * self.hidden_size * ff.size if ff else 0
        total += e.layers * self.hidden_size * e.matrices * e.shared_size if e else 0
        return float(total)

    @property
    def always_parameters(self) -> float:
        """Weights read by every forward pass: backbone and output vocabulary matrix."""
        return self.backbone_parameters + self.embedding_parameters

    @property
    def expert_share(self) -> float:
        """Share of the routed experts that one token activates."""
        return self.experts.active_experts / self.experts.experts if self.experts else 0.0

    @property
    def computing_parameters(self) -> float:
        """Weights that multiply each token: backbone, its share of the experts, output matrix."""
        return self.always_parameters + self.expert_share * self.expert_parameters

    @property
    def counted_parameters(self) -> float:
        """All weights, recomputed from the architecture, vision tower included."""
        embeddings = self.embedding_parameters * (1 if self.tied_embeddings else 2)
        vision = self.vision.parameters if self.vision else 0
        return self.backbone_parameters + self.expert_parameters + embeddings + vision


# ----------------------------------------------------------------------- hardware, precision


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU type, from its datasheet. FLOP/s are dense (no structured sparsity).

    ``memory_share_ratio`` is not the GPU's but the deployment's: the share of its memory that the
    engine may use (``--gpu-memory-utilization``; 0.9 is vLLM's default). Nor is ``max_num_seqs``,
    the sequences of a replica that the engine is told to run at most, and sets memory aside for
    (``--max-num-seqs``; None: the batch limit). ``loaded_idle_w`` is what a GPU draws with weights
    loaded and no request, ``idle_power_w`` without weights; None: nothing to quote.
    """

    id: str
    memory_bytes: float
    memory_bandwidth_bytes_per_s: float
    bf16_flop_per_s: float
    fp8_flop_per_s: float | None = None
    int8_op_per_s: float | None = None
    fp4_flop_per_s: float | None = None
    tdp_w: float
    idle_power_w: float | None = None
    loaded_idle_w: float | None = None
    max_clock_mhz: float | None = None
    link_bandwidth_bytes_per_s: float | None = None
    memory_share_ratio: float = 0.9
    max_num_seqs: int | None = None
    aliases: tuple[str, ...] = ()
    source: str = ""
    date: str = ""

    def __post_init__(self) -> None:
        _require(
            0.0 < self.memory_share_ratio <= 1.0,
            f"GPU {self.id!r}",
            f"memory_share_ratio must be above 0, up to 1, not {self.memory_share_ratio!r}",
        )
        _require(bool(self.id.strip()), "GPU", "id must not be empty")
        _require_whole(f"GPU {self.id!r}", self, "max_num_seqs")
        _require_names("GPU", self.id, *self.aliases)
        _require_positive(
            f"GPU {self.id!r}",
            self,
            "memory_bytes memory_bandwidth_bytes_per_s bf16_flop_per_s fp8_flop_per_s "
            "int8_op_per_s fp4_flop_per_s tdp_w idle_power_w loaded_idle_w max_clock_mhz "
            "link_bandwidth_bytes_per_s",
        )

    def multiplies(self, compute_bits: int, *, integer: bool = False) -> bool:
        """Whether tensor cores multiply operands of a width as they are.

        Where they do not, engines keep the weights in the format and widen them to 16 bits
        before they multiply (FP8 on A100, NVFP4 on Hopper), as in a weight-only format.
        """
        return compute_bits >= 16 or self._narrow_flop_per_s(compute_bits, integer) is not None

    def flop_per_s(self, compute_bits: int, *, integer: bool = False) -> float:
        """Peak dense FLOP/s (or integer op/s) at an operand width; at 16 bits if it has none.

        Integers of fewer bits are widened to 8.
        """
        if compute_bits >= 16:
            return self.bf16_flop_per_s
        return self._narrow_flop_per_s(compute_bits, integer) or self.bf16_flop_per_s

    def _narrow_flop_per_s(self, compute_bits: int, integer: bool) -> float | None:
        if integer:
            return self.int8_op_per_s
        return {8: self.fp8_flop_per_s, 4: self.fp4_flop_per_s}.get(compute_bits)


def power_cap_range_w(gpu: Gpu) -> tuple[float, float]:
    """Lowest and highest power cap, in W, that one GPU of a type can have been given."""
    low, high = POWER_CAP_RATIOS
    return low * gpu.tdp_w, high * gpu.tdp_w


def held_down_problem(gpu: Gpu, power_cap_w: float | None, clock_mhz: float | None) -> str | None:
    """Say why a GPU cannot have a power cap or a locked clock; None or NaN: it has none."""
    cap, clock = (math.nan if v is None else v for v in (power_cap_w, clock_mhz))
    low, high = power_cap_range_w(gpu)
    if cap < low or cap > high:
        return (
            f"power_cap_w must lie between {low:g} and {high:g} W on a {gpu.id} "
            f"(TDP {gpu.tdp_w:g} W), not {cap:g}"
        )
    if math.isnan(clock):
        return None
    if (top := gpu.max_clock_mhz) is None:
        return (
            f"clock_mhz needs the highest clock of a {gpu.id}, which the catalog does not know: "
            "add the GPU type with it (energylens gpu add --max-clock-mhz), or leave the clock out"
        )
    low, high = CLOCK_RATIOS
    if not low * top <= clock <= high * top:
        return (
            f"clock_mhz must lie between {low * top:g} and {high * top:g} MHz on a {gpu.id} "
            f"(highest clock {top:g} MHz), not {clock:g}"
        )
    if cap < gpu.tdp_w:
        return (
            "clock_mhz and a power_cap_w below the TDP must not be given together: leave out the "
            "one that does not hold the GPU down"
        )
    return None


@dataclass(frozen=True, kw_only=True)
class Precision:
    """A number format for serving: what weights take in memory, and what multiplies them.

    ``weight_bits`` includes scales. ``scope`` says which weights have it: every linear layer
    of the blocks, those of the feed-forward layers (experts among them), or the routed experts
    alone; the rest (always the vocabulary) is 16 bit.
    ``integer`` formats multiply as integers. ``block_size`` weights in a row share a scale
    (None: a tensor, a channel or a token does); where both factors are so scaled, as in
    block-scaled FP8, every product is an own kernel and an extra one to scale its input.
    ``publishers`` are those whose FP8 checkpoints have this format.
    """

    id: str
    weight_bits: float
    compute_bits: int
    integer: bool = False
    scope: str = "linear"
    kv_bits: float = 16.0
    block_size: int | None = None
    publishers: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require_positive(
            f"precision {self.id!r}", self, "weight_bits compute_bits kv_bits block_size"
        )
        _require(
            self.scope in ("linear", "feed_forward", "experts"),
            f"precision {self.id!r}",
            "scope must be linear, feed_forward or experts",
        )

    @property
    def weight_only(self) -> bool:
        """Whether weights are widened before they multiply."""
        return self.weight_bits < self.compute_bits


@dataclass(frozen=True, kw_only=True)
class Engine:
    """What serves an LLM: software whose versions differ in joules. Empty where not known."""

    name: str = ""
    version: str = ""

    @classmethod
    def named(cls, text: str) -> Engine:
        """Read a name and a version, as in ``vllm 0.11.1`` or ``vllm==0.11.1``."""
        name, _, version = text.replace("==", " ").strip().partition(" ")
        return cls(name=name, version=version.strip())

    @property
    def id(self) -> str:
        """Name and version, as in ``vllm 0.11.1``."""
        return f"{self.name} {self.version}".strip()


UNKNOWN_ENGINE = Engine()


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What engines of one name and time wait for: before rows of one's own, the prior of a fit.

    ``launch_s`` lies between the starts of two small kernels of a step, ``sequence_s`` is the
    engine's own work on one sequence in a step, and ``spread`` how far either may be off, as a
    standard deviation of its logarithm. ``since`` and ``before`` bound the versions
    (empty: no bound). With ``prefill_apart`` prompts are computed in passes of their own
    instead of joining the steps of running sequences.
    """

    id: str
    engine: str = ""
    since: str = ""
    before: str = ""
    launch_s: float
    sequence_s: float
    spread: float
    prefill_apart: bool = False
    aliases: tuple[str, ...] = ()
    source: str = ""
    date: str = ""

    def __post_init__(self) -> None:
        _require(bool(self.id.strip()), "engine generation", "id must not be empty")
        _require_positive(f"engine generation {self.id!r}", self, "launch_s sequence_s spread")


# ---------------------------------------------------------------------------- what is served


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What one request brings and asks for, in tokens (means are allowed).

    ``input_tokens`` counts everything the LLM prefills, ``vision_tokens`` the part of it
    that comes from images or frames. ``request_rate_per_s`` is the load offered over all
    replicas; ``None`` is a queue that is never empty.
    """

    input_tokens: float
    output_tokens: float
    vision_tokens: float = 0.0
    images: float = 0.0
    frames: float = 0.0
    modality: Modality = Modality.TEXT
    task: str = ""
    request_rate_per_s: float | None = None

    def __post_init__(self) -> None:
        _require_positive("workload", self, "input_tokens output_tokens request_rate_per_s")
        _require_not_negative("workload", self, "vision_tokens images frames")
        _require(
            self.vision_tokens <= self.input_tokens,
            "workload",
            f"input_tokens ({self.input_tokens:g}) must include the "
            f"vision_tokens ({self.vision_tokens:g})",
        )


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """How an LLM is laid out on GPUs and batched.

    GPUs = tensor x pipeline x data parallel. Expert parallelism splits the experts over GPUs
    that are already there (tensor x data parallel ones), as vLLM counts it, so it adds none.
    ``batch_size`` is the limit set, summed over data-parallel replicas (infinite where none is
    known, under a load that is); ``mean_batch_size`` what was observed (``None``: not known).
    ``power_cap_w`` is the limit set on the power of each GPU (``nvidia-smi -pl``; ``None``: its
    TDP), ``clock_mhz`` the clock that the core of each is locked to (``nvidia-smi -lgc``;
    ``None``: not locked).
    """

    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    expert_parallel: int = 1
    data_parallel: int = 1
    batch_size: float = 1.0
    mean_batch_size: float | None = None
    power_cap_w: float | None = None
    clock_mhz: float | None = None

    def __post_init__(self) -> None:
        _require_whole(
            "configuration", self, "tensor_parallel pipeline_parallel expert_parallel data_parallel"
        )
        _require_positive("configuration", self, "mean_batch_size power_cap_w clock_mhz")
        if self.batch_size != math.inf:
            _require_positive("configuration", self, "batch_size")

    @property
    def degrees(self) -> dict[str, Any]:
        """The degrees of parallelism by name, each a whole number."""
        return {name: getattr(self, name) for name in PARALLELISM}

    @property
    def gpus(self) -> int:
        """GPUs that the deployment occupies."""
        return self.tensor_parallel * self.pipeline_parallel * self.data_parallel

    def describe(self) -> str:
        """Give a short human name, as in ``TP2 PP1 B64``, ``... 400W`` with a cap."""
        parts = [f"TP{self.tensor_parallel}", f"PP{self.pipeline_parallel}"]
        if self.expert_parallel > 1:
            parts.append(f"EP{self.expert_parallel}")
        if self.data_parallel > 1:
            parts.append(f"DP{self.data_parallel}")
        if math.isfinite(self.batch_size):
            parts.append(f"B{self.batch_size:g}")
        if self.power_cap_w is not None:
            parts.append(f"{self.power_cap_w:g}W")
        if self.clock_mhz is not None:
            parts.append(f"{self.clock_mhz:g}MHz")
        return " ".join(parts)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One LLM served one way on one GPU type for one workload."""

    llm: Llm
    gpu: Gpu
    precision: Precision
    workload: Workload
    configuration: Configuration
    boundary: Boundary = Boundary.ACTIVE_GPUS
    node_gpus: int | None = None
    engine: Engine = UNKNOWN_ENGINE

    def __post_init__(self) -> None:
        _require_whole("case", self, "node_gpus")
        c = self.configuration
        refused = held_down_problem(self.gpu, c.power_cap_w, c.clock_mhz)
        _require(refused is None, "case", refused or "")
