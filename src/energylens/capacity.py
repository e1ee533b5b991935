"""What a layout needs in the memory of its GPUs, and how many sequences that leaves room for.

An engine loads its weights, sets room for activations aside and gives what is left of its
share of the memory to the cache. Sequences beyond what the cache holds wait in a queue, so the
largest batch is where energy per request stops falling with the batch limit.

The rules of who holds what are those of vLLM (checked against 0.11): tensor parallelism splits
every matrix, with KV heads copied where there are fewer of them than GPUs and the latent cache
of multi-head latent attention on every GPU; pipeline parallelism splits layers; data
parallelism repeats everything but experts that expert parallelism has spread out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from energylens import catalog
from energylens.cases import BoolArray, Cases, FloatArray, IntArray
from energylens.errors import InputError
from energylens.records import Case, Gpu, Llm, Precision
from energylens.viewing import picked
from energylens.words import percent

HELD_OUTPUT_RATIO = 0.625  # of its output, that a running sequence has in the cache: a CV of 0.5
PROGRESS_CV = 0.6  # of what one sequence at random progress holds: even progress has 0.58
LEAST_LOST_RATIO = 1e-5  # of what runs, where a limit is as large as what memory holds
TOKENS_PER_PASS = 8192  # vLLM's default budget of tokens a scheduler step
RUNTIME_BYTES = 0.6e9  # allocator's slack, kernels' workspaces
# Buffers of the collectives of a group of GPUs, by the slowest link that has them: vLLM 0.6.4
# reports 1.8 GiB more outside of PyTorch at TP2 than at TP1 on H100, whose switches add up
# (pull request 10511), and 0.05 GiB on cards without NVLink (issue 13061); A100 lies between.
GROUP_BYTES = ((800e9, 1.9e9), (200e9, 0.75e9), (0.0, 0.1e9))
# What sampling the next token takes for each sequence and vocabulary entry, all alive at once:
# logits in 16 and in 32 bits, their sort with 64-bit places and the sort's own copies of both,
# probabilities and their sums. An engine tries it before it gives memory to the cache, with as
# many sequences as it may run. A forward pass over a full budget of tokens is over by then, so the
# larger of the two is set aside.
SAMPLING_BYTES = 2.0 + 4.0 + (4.0 + 8.0) + (4.0 + 8.0) + 4.0 + 4.0
# Sequences that vLLM runs at most where no limit is set: more on GPUs with much memory.
LARGE_GPU_BYTES = 70 * 2.0**30
SEQUENCES, SEQUENCES_LARGE = 256, 1024
WIDE_BYTES = 2.0  # activations, vocabulary and vision tower: 16 bits

# Bits of a cached key or value by the name that vLLM has for it; None: those of the number format.
KV_BITS = {
    "auto": None, "bf16": 16.0, "fp16": 16.0, "bfloat16": 16.0,
    "fp8": 8.0, "fp8_e4m3": 8.0, "fp8_e5m2": 8.0,
}  # fmt: skip

_LAYOUTS = 4096  # kept in mind: of 10,000 cases that are looked at, a few hundred differ in theirs


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on the fullest GPU of a case, and what follows from them.

    ``largest_batch`` counts sequences of all data-parallel replicas, and is 0 where the layout
    is impossible or not one sequence has room. ``cached_tokens`` are those of the batch asked for,
    of one replica. ``reason`` says in words what is in the way, and
    is empty where the case fits.
    """

    weights_bytes: float
    kv_cache_bytes: float
    state_bytes: float
    activation_bytes: float
    available_bytes: float
    largest_batch: float
    cached_tokens: float
    reason: str

    @property
    def total_bytes(self) -> float:
        """Everything that the batch asked for needs at once."""
        return self.weights_bytes + self.kv_cache_bytes + self.state_bytes + self.activation_bytes

    @property
    def cache_bytes(self) -> float:
        """What is left for the cache; below 0 where the engine does not start."""
        return self.available_bytes - self.weights_bytes - self.activation_bytes

    @property
    def cache_tokens(self) -> float:
        """Tokens that the cache holds, at the bytes that a token of these sequences takes."""
        each = self.kv_cache_bytes / self.cached_tokens
        return max(self.cache_bytes, 0.0) / each if each else float("inf")

    def to_json(self) -> dict[str, float | str | None]:
        """Names and values: bytes on the fullest GPU."""
        tokens = self.cache_tokens
        return {
            **picked(self, "weights_bytes activation_bytes available_bytes cache_bytes"),
            "cache_tokens": tokens if np.isfinite(tokens) else None,
            "largest_batch": self.largest_batch,
            "reason": self.reason,
        }

    @property
    def fits(self) -> bool:
        """Whether the whole batch asked for is in memory at once."""
        return not self.reason

    @property
    def runs(self) -> bool:
        """Whether it can be served at all: beyond the largest batch, sequences wait."""
        return self.largest_batch >= 1.0


def memory(
    case: Case,
    *,
    utilisation_ratio: float | None = None,
    held_output_ratio: float = HELD_OUTPUT_RATIO,
) -> Memory:
    """Account for the memory of one case.

    Parameters
    ----------
    case : Case
        ``configuration.batch_size`` is the batch asked for.
    utilisation_ratio : float, optional
        Share of the GPU's memory that the engine may use; the GPU's ``memory_share_ratio`` by
        default.
    held_output_ratio : float
        Tokens of output that a running sequence holds, over the mean output. At steady state
        ``(1 + CV^2) / 2``, as long outputs run longer, with CV the coefficient of variation of
        their length: 0.5 for outputs all alike, 1 for lengths spread as an exponential, which
        is near what chat traffic shows. 1 also for a batch that starts and ends together. 0.625
        by default.

    Raises
    ------
    InputError
        If a ratio is outside its range.
    """
    utilisation_ratio = _check(utilisation_ratio, held_output_ratio, case.gpu)
    c, w = case.configuration, case.workload
    layout = (c.tensor_parallel, c.pipeline_parallel, c.expert_parallel, c.data_parallel)
    weights, passing, element_bytes, state_each = _share(case.llm, case.precision, *layout)
    sequences = float(_reserved(case.gpu, _floats(c.batch_size / c.data_parallel)))
    sampling = SAMPLING_BYTES * case.llm.vocabulary_size * sequences
    fixed = float(_runtime_bytes(case.gpu, _floats(c.tensor_parallel)))
    activations = fixed + max(passing, sampling)
    available = utilisation_ratio * case.gpu.memory_bytes
    held = _floats(w.input_tokens + held_output_ratio * w.output_tokens)
    degrees = _Degrees.of(*layout)
    kv_each = float(
        _cache_elements(case.llm, held) * element_bytes + _index_bytes(case.llm, held, degrees)
    )
    each = kv_each + state_each
    room = available - weights - activations
    whole = _floats(available - weights - fixed)
    largest = c.data_parallel * float(
        _sequences(whole, _floats(passing), _floats(sampling), each, case.llm, case.gpu)
    )
    per_replica = max(c.batch_size / c.data_parallel, 1.0)
    reason = format_problem(case.gpu, case.precision)
    reason = reason or _layout_problem(case.llm, case.precision, *layout)
    if reason or largest < c.data_parallel:
        largest = 0.0
    if reason is None:
        share = f"the {_gb(available)} that {percent(utilisation_ratio, 0)} of {case.gpu.id} gives"
        if room <= 0:
            reason = (
                f"weights take {_gb(weights)} and activations {_gb(activations)} on each GPU, "
                f"more than {share}"
                + _of_sampling(sequences, sampling, passing, available - weights - fixed)
            )
        elif largest == 0.0:
            reason = (
                f"weights and activations leave {_gb(room)} of {share}, and one sequence of "
                f"{float(held):.0f} tokens needs {_gb(kv_each + state_each)}"
                + _of_sampling(sequences, sampling, passing, available - weights - fixed - each)
            )
        elif largest < per_replica * c.data_parallel:
            reason = (
                f"weights and activations leave {_gb(room)} of {share}: room for about "
                f"{largest:.0f} sequences of {float(held):.0f} tokens, not {c.batch_size:g}; "
                "the rest would wait in the queue"
            )
    return Memory(
        weights_bytes=weights,
        kv_cache_bytes=per_replica * kv_each,
        state_bytes=per_replica * state_each,
        activation_bytes=activations,
        available_bytes=available,
        largest_batch=largest,
        cached_tokens=per_replica * float(held),
        reason=reason or "",
    )


def largest_batch(
    llm: Llm,
    gpu: Gpu,
    precision: Precision,
    *,
    tensor_parallel: ArrayLike = 1,
    pipeline_parallel: ArrayLike = 1,
    expert_parallel: ArrayLike = 1,
    data_parallel: ArrayLike = 1,
    input_tokens: ArrayLike,
    output_tokens: ArrayLike,
    batch_size: ArrayLike = np.inf,
    utilisation_ratio: float | None = None,
    held_output_ratio: float = HELD_OUTPUT_RATIO,
) -> FloatArray:
    """Sequences that fit at once, summed over data-parallel replicas, for many layouts.

    Parameters
    ----------
    llm, gpu, precision
        One of each for all layouts.
    tensor_parallel, pipeline_parallel, expert_parallel, data_parallel : array_like
        Degrees; they broadcast against each other and the token counts.
    input_tokens, output_tokens : array_like
        Tokens of one request.
    batch_size : array_like
        Limits set on the sequences of all replicas: an engine sets memory aside for them. The
        engine's own where none is set.
    utilisation_ratio, held_output_ratio : float
        As in `memory`.

    Returns
    -------
    ndarray of float
        Of the shape that the arguments broadcast to. Not rounded; 0 where engines refuse the
        format, the layout is impossible or not one sequence a replica has room.

    Raises
    ------
    InputError
        If a degree is not a whole number, a token count not above 0, or a ratio outside its
        range.
    """
    utilisation_ratio = _check(utilisation_ratio, held_output_ratio, gpu)
    degrees, place = _Degrees.of(
        tensor_parallel, pipeline_parallel, expert_parallel, data_parallel
    ).distinct()
    room = (
        utilisation_ratio * gpu.memory_bytes
        - _weights_bytes(llm, precision, degrees)
        - _runtime_bytes(gpu, degrees.tensor)
    )
    passing = np.broadcast_to(_activation_bytes(llm, degrees), room.shape)
    served = format_problem(gpu, precision) is None
    room = np.where(_possible(llm, precision, degrees) & served, room, -np.inf)
    held = _floats(input_tokens) + held_output_ratio * _floats(output_tokens)
    if not np.all(held > 0):
        raise InputError("input_tokens and output_tokens must be numbers above 0")
    each = _cache_elements(llm, held) * _cache_element_bytes(llm, precision, degrees)[place]
    each = each + held * _index_bytes(llm, _floats(1.0), degrees)[place]
    each = each + _state_bytes(llm, degrees)[place]
    limit = _floats(batch_size) / degrees.data[place]
    sampling = SAMPLING_BYTES * llm.vocabulary_size * _reserved(gpu, limit)
    fitting = _sequences(room[place], passing[place], sampling, each, llm, gpu)
    return np.where(fitting >= 1.0, fitting * degrees.data[place], 0.0)


def room(cases: Cases, *, held_output_ratio: float = HELD_OUTPUT_RATIO) -> FloatArray:
    """Sequences that fit at once in each case, summed over its replicas, shape (n,).

    Not rounded; 0 where the layout is impossible or not one sequence a replica has room.
    """
    found = np.empty(len(cases))
    for llm, gpu, precision, rows in _groups(cases):
        found[rows] = largest_batch(
            llm,
            gpu,
            precision,
            **cases.degrees(rows),
            input_tokens=cases.input_tokens[rows],
            output_tokens=cases.output_tokens[rows],
            batch_size=cases.batch_size[rows],
            held_output_ratio=held_output_ratio,
        )
    return found


def kept_running(limit: FloatArray, held: FloatArray) -> FloatArray:
    """Sequences that run on average under a limit, in memory that holds so many on average.

    Sequences stand at random progress, so how many fit varies as the sum of their lengths does:
    by the root of their number, times how a single one varies. Of the limit and what fits the
    smaller runs; a limit far beyond the memory keeps it full all the time, one near it does not.
    Where no limit is known (NaN) memory alone is one.
    """
    limit = np.where(np.isfinite(limit), limit, 1e6 * np.maximum(held, 1.0))
    # The mean of the smaller of a limit and a logistic variable, which is nearly a normal one.
    scale = PROGRESS_CV * np.sqrt(3.0 * np.maximum(held, 1.0)) / np.pi
    beyond = (held - limit) / scale
    lost = scale * np.logaddexp(0.0, beyond)
    # Of limits far beyond the memory the larger never has less waiting: they are no exact tie.
    lost = lost + LEAST_LOST_RATIO * held / (1.0 + np.exp(np.clip(beyond, -50, 50))) * held / limit
    kept: FloatArray = np.clip(held - lost, np.minimum(1.0, limit), np.minimum(limit, held))
    return kept


def laid_out(cases: Cases) -> BoolArray:
    """Whether each case can be laid out, memory aside, shape (n,)."""
    found = np.empty(len(cases), dtype=np.bool_)
    for llm, _, precision, rows in _groups(cases):
        found[rows] = layout_possible(llm, precision, **cases.degrees(rows))
    return found


def weights_fit(cases: Cases) -> BoolArray:
    """Whether the weights alone fit in the whole memory of each case's GPUs, shape (n,)."""
    found = np.empty(len(cases), dtype=np.bool_)
    for llm, gpu, precision, rows in _groups(cases):
        degrees = _Degrees.of(*cases.degrees(rows).values())
        found[rows] = _weights_bytes(llm, precision, degrees) <= gpu.memory_bytes
    return found


def _groups(cases: Cases) -> Iterator[tuple[Llm, Gpu, Precision, IntArray]]:
    """Each LLM, GPU type and precision that some cases have, and which."""
    shape = (len(cases.llms), len(cases.gpus), len(cases.precisions))
    key = np.ravel_multi_index((cases.llm_index, cases.gpu_index, cases.precision_index), shape)
    for place in np.unique(key):
        llm, gpu, precision = np.unravel_index(place, shape)
        rows = np.flatnonzero(key == place)
        yield cases.llms[llm], cases.gpus[gpu], cases.precisions[precision], rows


def as_run(case: Case) -> Case:
    """Set the batch that runs where the limit, or the mean given, is beyond what memory holds."""
    c = case.configuration
    held = memory(case).largest_batch
    limit = c.mean_batch_size or c.batch_size
    if 0 < held < limit:
        kept = float(kept_running(_floats(limit), _floats(held)))
        return replace(case, configuration=replace(c, mean_batch_size=kept))
    return case


def format_problem(gpu: Gpu, precision: Precision) -> str | None:
    """Say why engines refuse a number format on a GPU type; None where they serve it.

    GPUs before Ampere multiply no bf16. Kernels that widen narrow weights while they multiply
    (Marlin) need an NVIDIA GPU, Ampere or later, or Turing for FP8; INT8 has no kernels on
    Blackwell (vLLM 0.32, "FP8 W8A8" and "INT8 W8A8"). Of a GPU that somebody added nothing of this
    is known.
    """
    nvidia, amd = gpu.source.startswith("NVIDIA"), gpu.source.startswith("AMD Instinct")
    old = nvidia and "no bf16" in gpu.source and "fp32 peak" not in gpu.source
    if old and precision.id.startswith("bf16"):
        return f"{gpu.id} does not multiply bf16, and engines refuse it there: serve it as fp16"
    if precision.integer and nvidia and gpu.fp4_flop_per_s:
        return f"engines have no kernels for {precision.id} on {gpu.id}: serve it as fp8"
    if gpu.multiplies(precision.compute_bits, integer=precision.integer):
        return None
    turing = old and gpu.int8_op_per_s is not None
    if amd or (old and not (turing and precision.compute_bits == 8)):
        return f"{gpu.id} neither multiplies {precision.id} nor has kernels that widen it"
    return None


def format_note(gpu: Gpu, precision: Precision) -> str | None:
    """Say how a number format is served that a GPU type does not multiply; None where it does."""
    multiplied = gpu.multiplies(precision.compute_bits, integer=precision.integer)
    if multiplied or format_problem(gpu, precision) is not None:
        return None
    return (
        f"{gpu.id} does not multiply {precision.id}: engines keep the weights in it and widen them "
        "to 16 bits before they multiply, as in a weight-only format."
    )


# --------------------------------------------------------------------------- possible layouts


def layout_possible(
    llm: Llm,
    precision: Precision | None = None,
    *,
    tensor_parallel: ArrayLike = 1,
    pipeline_parallel: ArrayLike = 1,
    expert_parallel: ArrayLike = 1,
    data_parallel: ArrayLike = 1,
) -> NDArray[np.bool_]:
    """Whether the LLM can be laid out so, memory aside.

    Parameters
    ----------
    precision : Precision, optional
        Whose blocks of weights that share a scale must not be cut.
    tensor_parallel, pipeline_parallel, expert_parallel, data_parallel : array_like
        Degrees; they broadcast.
    """
    degrees, place = _Degrees.of(
        tensor_parallel, pipeline_parallel, expert_parallel, data_parallel
    ).distinct()
    return _possible(llm, precision, degrees)[place]


def layout_problem(
    llm: Llm,
    precision: Precision | None = None,
    *,
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
    expert_parallel: int = 1,
    data_parallel: int = 1,
) -> str | None:
    """Say why the LLM cannot be laid out so, memory aside; None where it can."""
    return _layout_problem(
        llm, precision, tensor_parallel, pipeline_parallel, expert_parallel, data_parallel
    )


@lru_cache(maxsize=_LAYOUTS, typed=True)
def _layout_problem(
    llm: Llm, precision: Precision | None, tensor: int, pipeline: int, expert: int, data: int
) -> str | None:
    degrees = _Degrees.of(tensor, pipeline, expert, data)
    symbols = {"TP": tensor, "PP": pipeline, "EP": expert, "DP": data}
    for broken, words in _rules(llm, precision, degrees):
        if broken.any():
            said = " ".join(str(symbols.get(word, word)) for word in words.split(" "))
            return f"{said} of {llm.id}"
    return None


def _possible(llm: Llm, precision: Precision | None, d: _Degrees) -> NDArray[np.bool_]:
    possible = np.ones(np.broadcast(d.tensor, d.pipeline, d.expert, d.data).shape, dtype=np.bool_)
    for broken, _ in _rules(llm, precision, d):
        possible &= ~broken
    return possible


def _rules(
    llm: Llm, precision: Precision | None, d: _Degrees
) -> list[tuple[NDArray[np.bool_], str]]:
    """Every rule as where it is broken, and what to say there."""
    tensor = "tensor parallel TP"
    split = {}  # what tensor parallelism cuts into equal parts
    if llm.attention:
        split["attention heads"] = llm.attention.heads
    if llm.state_space:
        ssm = llm.state_space
        split["state-space heads" if ssm.heads else "state-space channels"] = (
            ssm.heads or ssm.inner_size
        )
    if llm.feed_forward:
        split["feed-forward channels"] = llm.feed_forward.size
    rules = [
        (np.mod(count, d.tensor) != 0, f"{tensor} does not divide the {count} {what}")
        for what, count in split.items()
    ]
    if llm.attention and llm.attention.kv_rank is None:
        kv = float(np.ceil(llm.attention.kv_heads))
        uneven = (np.mod(kv, d.tensor) != 0) & (np.mod(d.tensor, kv) != 0)
        rules.append((uneven, f"{tensor} neither divides nor repeats the {kv:g} KV heads"))
    rules += _blocks(llm, precision, d)
    rules.append((d.pipeline > llm.layers, f"pipeline parallel PP exceeds the {llm.layers} layers"))
    spread = d.expert > 1
    if llm.experts is None:
        return [
            *rules,
            (spread, "expert parallel EP needs experts, and there are none in the layers"),
        ]
    experts, size = llm.experts.experts, llm.experts.size
    within = np.maximum(d.tensor / d.expert, 1.0)  # GPUs that share one expert
    return [
        *rules,
        (
            spread & (np.mod(experts, d.expert) != 0),
            f"expert parallel EP does not divide the {experts} experts",
        ),
        (
            spread & (np.mod(d.tensor * d.data, d.expert) != 0),
            "expert parallel EP does not divide the TP x DP GPUs of tensor and data parallelism",
        ),
        (np.mod(size, within) != 0, f"{tensor} does not divide the {size} channels of an expert"),
    ]


def scale_block(llm: Llm, precision: Precision) -> int | None:
    """Weights in a row that share a scale in this LLM's checkpoints of a format; None: all do."""
    if precision.compute_bits == 8 and not precision.integer:
        return precision.block_size or catalog.published_fp8(llm).block_size
    return precision.block_size


def _blocks(
    llm: Llm, precision: Precision | None, d: _Degrees
) -> list[tuple[NDArray[np.bool_], str]]:
    """Rules that engines have for weights that share a scale: a cut must not go through them.

    vLLM refuses a layout whose share of an inner size is no multiple of the block (issues 13640,
    17569 and 25292); formats of experts alone pad theirs.
    """
    if precision is not None and precision.scope == "experts" and llm.experts is None:
        said = f"{precision.id} is a format of experts, and there are none in the layers"
        return [(np.ones(np.shape(d.tensor), dtype=np.bool_), said)]
    if precision is None or (block := scale_block(llm, precision)) is None:
        return []
    inner: list[tuple[float, str, FloatArray]] = []
    if precision.scope != "experts":
        if llm.feed_forward:
            inner.append((llm.feed_forward.size, "feed-forward channels", d.tensor))
        if llm.experts and llm.experts.shared_size:
            inner.append((llm.experts.shared_size, "channels of the shared experts", d.tensor))
        if llm.attention and precision.scope == "linear":
            value_size = llm.attention.value_head_size or llm.attention.head_size
            inner.append((llm.attention.heads * value_size, "attention channels", d.tensor))
        if llm.experts:
            # Expert parallelism gives whole experts to each GPU.
            within = np.maximum(d.tensor / d.expert, 1.0)
            within = np.where(d.expert > 1, within, d.tensor)
            inner.append((llm.experts.size, "channels of an expert", within))
    return [
        (
            (cut > 1) & (np.mod(size / cut, block) != 0),
            f"tensor parallel TP cuts the {size:g} {what} through blocks of {block} that share "
            f"a scale in {precision.id}",
        )
        for size, what, cut in inner
    ]


# ------------------------------------------------------------------------- bytes on one GPU

_DEGREE_LIMIT = 2**15  # four degrees make one 64-bit key


@dataclass(frozen=True)
class _Degrees:
    """Degrees of parallelism as arrays that broadcast."""

    tensor: FloatArray
    pipeline: FloatArray
    expert: FloatArray
    data: FloatArray

    @classmethod
    def of(cls, tensor: Any, pipeline: Any, expert: Any, data: Any) -> _Degrees:
        degrees = [_floats(given) for given in (tensor, pipeline, expert, data)]
        for kind, degree in zip(("tensor", "pipeline", "expert", "data"), degrees, strict=True):
            if not np.all((degree >= 1) & (degree < _DEGREE_LIMIT) & (degree % 1 == 0)):
                raise InputError(f"{kind}_parallel must be a whole number, 1 or more")
        return cls(*degrees)

    def distinct(self) -> tuple[_Degrees, NDArray[np.intp]]:
        """Give each combination once, and where in that list every element's one is.

        Of 100,000 configurations a few dozen combinations are distinct.
        """
        key = np.zeros((), dtype=np.int64)
        for degree in (self.tensor, self.pipeline, self.expert, self.data):
            key = key * _DEGREE_LIMIT + degree.astype(np.int64)
        keys, place = np.unique(key, return_inverse=True)
        columns = []
        for _ in range(4):
            keys, column = np.divmod(keys, _DEGREE_LIMIT)
            columns.append(column.astype(np.float64))
        return _Degrees(*reversed(columns)), place.reshape(key.shape)

    def layers_ratio(self, llm: Llm) -> FloatArray:
        """Share of the layers in the longest pipeline stage."""
        return np.ceil(llm.layers / self.pipeline) / llm.layers


@lru_cache(maxsize=_LAYOUTS, typed=True)
def _share(
    llm: Llm, precision: Precision, tensor: int, pipeline: int, expert: int, data: int
) -> tuple[float, float, float, float]:
    """Bytes of weights, activations, one cached element and one state on the fullest GPU."""
    degrees = _Degrees.of(tensor, pipeline, expert, data)
    return (
        float(_weights_bytes(llm, precision, degrees)),
        float(_activation_bytes(llm, degrees)),
        float(_cache_element_bytes(llm, precision, degrees)),
        float(_state_bytes(llm, degrees)),
    )


def _weights_bytes(llm: Llm, precision: Precision, d: _Degrees) -> FloatArray:
    """Weights on the fullest GPU, shape of the degrees."""
    narrow = precision.weight_bits / 8.0
    wide = max(WIDE_BYTES, narrow)
    attention = llm.attention
    repeated: FloatArray | float = 0.0  # beyond an even split over the tensor-parallel GPUs
    if attention and attention.kv_rank is None:
        value_size = attention.value_head_size or attention.head_size
        head = attention.layers * llm.hidden_size * (attention.head_size + value_size)
        heads_held = np.ceil(attention.kv_heads / d.tensor)
        repeated = head * (heads_held - attention.kv_heads / d.tensor)
    elif attention and attention.kv_rank is not None:
        latent = attention.kv_rank + attention.rope_head_size + (attention.query_rank or 0)
        repeated = attention.layers * llm.hidden_size * latent * (1.0 - 1.0 / d.tensor)
    backbone = (llm.backbone_parameters / d.tensor + repeated) * (
        narrow if precision.scope == "linear" else wide
    )
    if precision.scope == "feed_forward":
        backbone = backbone - llm.feed_forward_parameters / d.tensor * (wide - narrow)
    # Expert parallelism spreads experts over tensor x data parallel GPUs; where it is the
    # smaller degree, tensor parallelism splits each expert further.
    experts = llm.expert_parameters * narrow / np.maximum(d.tensor, d.expert)
    if llm.experts and precision.scope == "experts":
        # Kernels of block formats pad both sides of an expert: gpt-oss's 2880 to 2944 and 3072.
        own = llm.experts.size / np.maximum(d.tensor / d.expert, 1.0)
        experts = experts * _padded(llm.hidden_size, 128) * _padded(own, 256)
    vocabulary = llm.embedding_parameters * wide
    tower = (llm.vision.parameters if llm.vision else 0) * wide
    # The first stage holds the input embedding and the vision tower, the last the output matrix.
    one_stage = tower + vocabulary * (1 if llm.tied_embeddings else 2)
    ends = np.where(d.pipeline > 1, tower + vocabulary, one_stage) / d.tensor
    return (backbone + experts) * d.layers_ratio(llm) + ends


def _padded(size: ArrayLike, multiple: int) -> FloatArray:
    """How much larger a size is when it is filled up to a multiple."""
    given = _floats(size)
    return np.ceil(given / multiple) * multiple / given


def _activation_bytes(llm: Llm, d: _Degrees) -> FloatArray:
    """Room that a full prefill pass needs: the residual stream and the widest layer."""
    inner: list[FloatArray] = [np.zeros_like(d.tensor)]
    if llm.feed_forward:
        inner.append(llm.feed_forward.matrices * llm.feed_forward.size / d.tensor)
    if llm.experts:
        e = llm.experts
        routed = e.active_experts * (llm.hidden_size + e.matrices * e.size / d.tensor)
        inner.append(routed + e.matrices * e.shared_size / d.tensor)
    if llm.state_space:
        inner.append(4.0 * llm.state_space.inner_size / d.tensor)
    widest: FloatArray = np.maximum.reduce(np.broadcast_arrays(*inner))
    passing: FloatArray = TOKENS_PER_PASS * WIDE_BYTES * (4.0 * llm.hidden_size + widest)
    return passing


def _runtime_bytes(gpu: Gpu, tensor: FloatArray) -> FloatArray:
    """What an engine takes besides weights, activations and cache."""
    link = gpu.link_bandwidth_bytes_per_s or 0.0
    group = next(taken for least, taken in GROUP_BYTES if link >= least)
    return RUNTIME_BYTES + np.where(tensor > 1, group, 0.0)


def _sequences(
    room: FloatArray,
    passing: FloatArray,
    sampling: FloatArray,
    each: FloatArray | float,
    llm: Llm,
    gpu: Gpu,
) -> FloatArray:
    """Sequences that run at once in the room that weights and the runtime leave.

    An engine starts if what it sets aside, for a forward pass or to sample for its limit, leaves
    one sequence room. How many then run is told by what each takes, its own sampling included: it
    must not depend on how far a limit lies beyond it, or limits that serve alike would look
    different.
    """
    starts = room - np.maximum(passing, sampling) >= each
    own = SAMPLING_BYTES * llm.vocabulary_size
    spare = np.where(starts, room - passing, 0.0)
    fitting = np.minimum(spare / each, np.where(starts, room, 0.0) / (each + own))
    fitting = np.minimum(fitting, gpu.max_num_seqs or np.inf)
    return np.where(starts, np.maximum(fitting, 1.0), 0.0)


def default_sequences(gpu: Gpu) -> int:
    """Sequences of a replica that vLLM allows where it is told no limit (``max_num_seqs``)."""
    # vLLM counts the A100 among the small ones, whatever its memory.
    large = gpu.memory_bytes >= LARGE_GPU_BYTES and not gpu.id.startswith("A100")
    return SEQUENCES_LARGE if large else SEQUENCES


def _reserved(gpu: Gpu, limit: FloatArray) -> FloatArray:
    """Sequences of a replica that the engine sets memory aside for, given their limit."""
    if gpu.max_num_seqs is not None:
        return np.full_like(limit, float(gpu.max_num_seqs))
    sequences = np.where(np.isfinite(limit), limit, default_sequences(gpu))
    # Limits beyond the largest that engines set by themselves are not met in practice.
    return np.clip(sequences, 1.0, SEQUENCES_LARGE)


def _of_sampling(sequences: float, sampling: float, passing: float, spare: float) -> str:
    """Say what a lower limit of sequences would mend, where it would."""
    if sampling <= passing or passing >= spare:
        return ""
    fewer = int(spare / (sampling / sequences))
    advice = f"; with --max-num-seqs {fewer} or less it may start" if fewer >= 1 else ""
    return f" ({_gb(sampling)} is set aside to sample for {sequences:.0f} sequences{advice})"


def _cache_elements(llm: Llm, held: FloatArray) -> FloatArray:
    """Elements that all layers cache of a sequence of ``held`` tokens; windows limit them."""
    attention = llm.attention
    if attention is None:
        return np.zeros_like(held)
    layer_tokens = (attention.layers - attention.window_layers) * held
    if attention.window_tokens is not None:
        kept = np.minimum(held, attention.window_tokens)
        layer_tokens = layer_tokens + attention.window_layers * kept
    return layer_tokens * attention.kv_elements_per_token_layer


def _cache_element_bytes(llm: Llm, precision: Precision, d: _Degrees) -> FloatArray:
    """Bytes on the fullest GPU for each element cached."""
    attention = llm.attention
    split: FloatArray = np.ones_like(d.tensor)
    if attention and attention.kv_rank is None:
        split = np.ceil(attention.kv_heads / d.tensor) / attention.kv_heads
    return split * d.layers_ratio(llm) * (precision.kv_bits / 8.0)


def _index_bytes(llm: Llm, held: FloatArray, d: _Degrees) -> FloatArray:
    """Keys of an indexer for a sequence of ``held`` tokens, on every GPU of a group."""
    attention = llm.attention
    each = attention.layers * attention.index_bytes_per_token_layer if attention else 0.0
    return held * each * d.layers_ratio(llm)


def _state_bytes(llm: Llm, d: _Degrees) -> FloatArray:
    """State of one sequence."""
    state = llm.state_space.bytes_per_sequence if llm.state_space else 0.0
    return state / d.tensor * d.layers_ratio(llm)


def _floats(values: ArrayLike) -> FloatArray:
    return np.asarray(values, dtype=np.float64)


def _check(utilisation_ratio: float | None, held_output_ratio: float, gpu: Gpu) -> float:
    ratio = gpu.memory_share_ratio if utilisation_ratio is None else utilisation_ratio
    if not 0.0 < ratio <= 1.0:
        raise InputError(f"utilisation_ratio must be above 0, up to 1, not {utilisation_ratio!r}")
    if not 0.0 < held_output_ratio < float("inf"):
        raise InputError(f"held_output_ratio must be above 0, not {held_output_ratio!r}")
    return ratio


def _gb(value: float) -> str:
    return f"{value / 1e9:.1f} GB"
