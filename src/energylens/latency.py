r"""The time law: seconds of a decode step and of a prompt, from the counts that joules rest on.

A replica with g GPUs in each of S pipeline stages runs b sequences in m = min(b, S) microbatches.
One decode step, and what a prompt that joins it adds, take

.. math:: \tau(b) = \sqrt{\Big(\sum_{weights} t_k\Big)^2 + t_{compute}^2} + \sum_{rest} t_k,
          \qquad S_p = \sum_{prompt} t_k, \qquad t_k = \theta_k \, D_k \, N_k

``N`` are counts (bytes read, operations, kernels, reductions, bytes sent), ``D`` the seconds that
the datasheet would lead one to expect of one of them: 0.8 of the bandwidth, half of the FLOP/s
and of the link, 10 microseconds a kernel. ``theta`` is what measured rows say of that guess.

A prompt that joins a running batch reads no weights anew, only experts that the step had not
touched; pipelining shortens no step, because each of m microbatches goes through all stages; a
step is that of one replica, so that replicas change nothing. In a batch that is kept full

.. math:: \mathrm{TPOT} = \tau(b) + \frac{b}{L} S_p, \qquad
          \mathrm{latency} = L\,\tau(b) + b\,S_p

for L output tokens, which also holds for a batch that starts and ends together. The *median*
latency between two tokens is that of a step without prompts, :math:`\tau(b)`.

Nothing here reads a measured time of the cases asked about.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np

from energylens import catalog
from energylens.cases import Cases, FloatArray, IntArray
from energylens.clocks import SECONDS_SPREAD, Clocked, log_variance
from energylens.counts import (
    ACTIVATION_BYTES,
    BANDWIDTH_RATIO,
    COMPUTE_RATIO,
    TOKENS_PER_PASS,
    _of_gpu_precision,
    _seen,
    coverage,
    in_flight,
    kernels,
    scaling_kernels,
    weight_bytes,
)
from energylens.errors import UsageError
from energylens.formula import LINK_RATIO, PCIE_BYTES_PER_S
from energylens.latency_terms import EXPECTED, NAMES, SPREADS
from energylens.model import (
    WIDEST_LOG,
    Coefficients,
    Scope,
    conformal_quantiles,
    group_key,
    share_of_term,
)
from energylens.records import Gpu, Llm, Precision

STRUCTURE = "time-2026.1"  # changes whenever TERMS or what they count changes

SEQUENCE_S = 20e-6  # of an engine's own work for one sequence in one step
REDUCTION_S = 10e-6  # from one all-reduce of a small message to the next
HOP_S = 1e-3  # from one pipeline stage to the next
ENDLESS = 1e15  # tokens: no window, and no limit to what is attended to
MEDIA_S = 10e-3  # to prepare one image or frame

#: What a time can be of: the whole request, the mean time per output token after the first, the
#: median latency between two tokens, and the time to the first.
Target = Literal["latency", "tpot", "itl", "ttft"]
TARGETS: tuple[Target, ...] = ("latency", "tpot", "itl", "ttft")
#: Columns of a case in which each is measured; the first that a table has.
COLUMNS: dict[Target, str] = {
    "latency": "request_latency_s",
    "tpot": "tpot_s",
    "itl": "median_itl_s",
    "ttft": "ttft_s",
}


#: Terms of one kernel whose times add before they meet that of multiplying, which runs beside.
READING = tuple(NAMES.index(name) for name in NAMES[:3])
MULTIPLYING = NAMES.index("step_compute")
_K = {name: k for k, name in enumerate(NAMES)}


# ------------------------------------------------------------------------ counts, in seconds


@dataclass(frozen=True, kw_only=True, eq=False)
class StepTimes:
    """Seconds that coefficients of 1 give one replica of n cases; each of shape (n,).

    From these the step at any batch follows, because only the batch changes in them. Where
    data-parallel replicas share their experts (``sharing`` of them) a step of one is a step of
    all; ``stages`` are those of the pipeline.
    """

    always_s: FloatArray  # reading the weights that every step reads
    experts_s: FloatArray  # reading all routed experts
    log_missed: FloatArray  # log of the share of experts that one token does not touch
    sharing: FloatArray
    stages: FloatArray
    narrow_ratio: FloatArray
    weight_only_ratio: FloatArray
    compute_s: FloatArray  # for each sequence, as the three below
    cache_s: FloatArray
    sequence_s: FloatArray
    link_s: FloatArray
    launch_s: FloatArray  # for each step, as the two below
    synchronisation_s: FloatArray
    stage_s: FloatArray
    prompt_compute_s: FloatArray  # for each prompt, as all below
    prompt_experts_s: FloatArray  # if the step has touched no expert
    prompt_launch_s: FloatArray
    prompt_passes: FloatArray
    input_tokens: FloatArray
    vision_s: FloatArray
    media_s: FloatArray
    prompt_link_s: FloatArray
    lockstep_s: FloatArray

    def design(self, running: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Seconds by term at theta = 1 of a step with ``running`` sequences, and of a prompt.

        Parameters
        ----------
        running : ndarray, shape (n,)
            Sequences that one replica has in flight.

        Returns
        -------
        step, prompt : ndarray, shape (n, 17)
        """
        n = len(running)
        step, prompt = np.zeros((n, len(NAMES))), np.zeros((n, len(NAMES)))
        micro = np.clip(running, 1.0, self.stages)
        each = running / micro
        covered = coverage(self.log_missed, self.sharing * each)
        weights = self.always_s + self.experts_s * covered
        step[:, _K["step_weights"]] = weights
        step[:, _K["step_narrow_weights"]] = self.narrow_ratio * weights
        step[:, _K["step_weight_only"]] = self.weight_only_ratio * weights
        step[:, _K["step_compute"]] = self.compute_s * each
        step[:, _K["step_cache"]] = self.cache_s * each
        step[:, _K["step_launch"]] = self.launch_s
        step[:, _K["step_sequence"]] = self.sequence_s * running
        step[:, _K["step_synchronisation"]] = self.synchronisation_s
        step[:, _K["step_link"]] = self.link_s * each
        step[:, _K["step_stage"]] = self.stage_s
        busy = np.hypot(weights, self.compute_s * each) + self.cache_s * each
        step[:, _K["step_bubble"]] = (micro - 1.0) * (busy + self.launch_s + self.synchronisation_s)
        prompt[:, _K["step_weights"]] = self.prompt_experts_s * (1.0 - covered)
        prompt[:, _K["prompt_compute"]] = self.prompt_compute_s
        prompt[:, _K["prompt_launch"]] = self.prompt_launch_s
        prompt[:, _K["vision"]] = self.vision_s
        prompt[:, _K["media"]] = self.media_s
        prompt[:, _K["prompt_link"]] = self.prompt_link_s
        prompt[:, _K["lockstep"]] = self.lockstep_s
        return step, prompt

    def take(self, index: IntArray | slice) -> StepTimes:
        """Return the cases at ``index``."""
        return StepTimes(**{name: value[index] for name, value in vars(self).items()})


def _of_llm(llm: Llm) -> tuple[float, ...]:
    attention, state, experts, vision = llm.attention, llm.state_space, llm.experts, llm.vision
    mixers = (attention.layers if attention else 0) + (state.layers if state else 0)
    dense = llm.feed_forward.layers if llm.feed_forward else 0
    # The latent cache of multi-head latent attention is on every GPU; a state is split.
    heads = np.inf
    if attention:
        heads = 1.0 if attention.kv_rank is not None else attention.kv_heads
    return (
        kernels(llm),
        2.0 * llm.computing_parameters,
        float(np.log1p(-min(llm.expert_share, 1 - 1e-12))),
        attention.kv_elements_per_token_layer if attention else 0.0,
        heads,
        state.bytes_per_sequence if state else 0.0,
        attention.prefill_flop_per_seen_token_layer if attention else 0.0,
        attention.layers * attention.index_flop_per_earlier_token_layer if attention else 0.0,
        attention.layers * attention.index_bytes_per_token_layer if attention else 0.0,
        float((attention.index_tokens if attention else None) or ENDLESS),
        float(attention.layers - attention.window_layers) if attention else 0.0,
        float(attention.window_layers) if attention else 0.0,
        float((attention.window_tokens if attention else None) or ENDLESS),
        float(llm.hidden_size),
        float(mixers + dense + (experts.layers if experts else 0)),
        float(experts.layers * experts.active_experts) if experts else 0.0,
        2.0 * vision.parameters * vision.patches_per_token if vision else 0.0,
    )


def _of_format(llm: Llm, gpu: Gpu, precision: Precision) -> tuple[float, ...]:
    always, experts = weight_bytes(llm, precision)
    bandwidth, peak, equivalent, narrow, weight_only = _of_gpu_precision(gpu, precision)
    bandwidth, peak = BANDWIDTH_RATIO * bandwidth, COMPUTE_RATIO * peak
    link = LINK_RATIO * (gpu.link_bandwidth_bytes_per_s or PCIE_BYTES_PER_S)
    return (
        always / bandwidth,
        experts / bandwidth,
        1.0 / bandwidth,
        1.0 / peak,
        equivalent / peak,
        1.0 / link,
        precision.kv_bits / 8.0,
        narrow,
        weight_only,
        scaling_kernels(llm, precision),
    )


def _attended(
    first: FloatArray,
    last: FloatArray,
    full: FloatArray,
    picked: FloatArray,
    windowed: FloatArray,
    window: FloatArray,
) -> FloatArray:
    """Tokens attended to, summed over layers, on average while the context grows evenly."""
    everywhere = full * (first + last) / 2.0
    if (picked < ENDLESS).any():
        everywhere = full * _seen(first, last, picked)
    if not windowed.any():
        return everywhere
    return everywhere + windowed * _seen(first, last, window)


def step_times(cases: Cases, output_cv: float | FloatArray = 0.0) -> StepTimes:
    """Work out the seconds of each case's replica, at coefficients of 1.

    Parameters
    ----------
    cases : Cases
        n cases.
    output_cv : float or ndarray
        Coefficient of variation of the output length: where it is not 0 the sequences that run
        are longer than the mean, because long ones run longer.
    """
    by_llm = np.array([_of_llm(llm) for llm in cases.llms]).reshape(-1, 17)
    (
        launches, flop, log_missed, kv_elements, heads, state, attention, index_flop, index_bytes,
        picked, full, windowed, window, hidden, reductions, routed, tower,
    ) = by_llm[cases.llm_index].T  # fmt: skip
    shape = (len(cases.llms), len(cases.gpus), len(cases.precisions))
    key = np.ravel_multi_index((cases.llm_index, cases.gpu_index, cases.precision_index), shape)
    places, place = np.unique(key, return_inverse=True)
    formats = []
    for i, j, k in zip(*np.unravel_index(places, shape), strict=True):
        formats.append(_of_format(cases.llms[i], cases.gpus[j], cases.precisions[k]))
    (
        always, experts, per_byte, per_flop, per_narrow_flop, per_link_byte, kv_bytes, narrow,
        weight_only, scalings,
    ) = np.array(formats).reshape(-1, 10)[place.reshape(-1)].T  # fmt: skip

    if cases.clocked.any():
        left = Clocked.of(cases.clock_ratio)
        per_flop, per_narrow_flop = per_flop / left.speed, per_narrow_flop / left.speed
        always, experts, per_byte, per_link_byte = (
            s / left.reading_speed for s in (always, experts, per_byte, per_link_byte)
        )
    prompt, output = cases.input_tokens, cases.output_tokens
    tensor, stages = cases.tensor_parallel, cases.pipeline_parallel
    replicas, spread = cases.data_parallel, cases.expert_parallel
    # Data-parallel attention with experts spread over the replicas: all step together.
    apart = (spread > 1) & (replicas > 1)
    holders = np.where(apart, spread, tensor)  # GPUs that share the experts
    last = prompt + output * (1.0 + np.square(output_cv))
    kv = kv_elements * kv_bytes * _attended(prompt, last, full, picked, windowed, window)
    copies = np.maximum(tensor / heads, 1.0)
    index = index_bytes * (prompt + last) / 2.0 * tensor  # keys of an indexer are on every GPU
    several = (tensor > 1) | apart
    # Ring all-reduce, all GPUs of the group together; to the experts and back where those are
    # elsewhere.
    sent = 2.0 * (tensor - 1.0) * reductions
    sent = sent + 2.0 * np.where(replicas > 1, 1.0 - 1.0 / spread, 0.0) * routed
    link = ACTIVATION_BYTES * hidden * sent * per_link_byte / tensor
    passes = np.maximum(prompt / TOKENS_PER_PASS, 1.0)
    none = np.zeros_like(prompt)
    attention_flop = prompt * (
        attention * _attended(none, prompt, full, picked, windowed, window)
        + index_flop * prompt / 2.0
    )
    prefill = (flop * prompt * per_narrow_flop + attention_flop * per_flop) / tensor
    generations = [catalog.generation(engine) for engine in cases.engines]
    launch_s = np.array([g.launch_s for g in generations])[cases.engine_index]
    launch = (launches + scalings) * launch_s
    return StepTimes(
        always_s=always / tensor,
        experts_s=experts / holders,
        # Copies: a view would hold all columns of its table for as long as it is kept.
        log_missed=log_missed.copy(),
        sharing=np.where(apart, replicas, 1.0),
        stages=stages,
        narrow_ratio=narrow.copy(),
        weight_only_ratio=weight_only.copy(),
        compute_s=flop * per_narrow_flop / tensor,
        cache_s=(kv * copies + index + 2.0 * state) * per_byte / tensor,
        sequence_s=np.full(len(cases), SEQUENCE_S),
        link_s=link,
        launch_s=launch,
        synchronisation_s=reductions * several * REDUCTION_S,
        stage_s=(stages - 1.0) * HOP_S,
        prompt_compute_s=prefill / stages,
        prompt_experts_s=passes * experts / (holders * stages),
        prompt_launch_s=launch * passes,
        prompt_passes=passes,
        input_tokens=prompt,
        vision_s=tower * cases.vision_tokens * per_flop / tensor,
        media_s=(cases.images + cases.frames) * MEDIA_S,
        prompt_link_s=link * prompt / np.where(apart, replicas, 1.0),
        lockstep_s=np.where(apart, replicas - 1.0, 0.0) * prefill,
    )


def seconds(step: FloatArray, prompt: FloatArray, theta: FloatArray) -> FloatArray:
    """Seconds of a step by term (n, 17) and of the prompts in it, under coefficients; shape (n,).

    Coefficients have shape (17,) or (n, 17). Both matrices may have leading axes.
    """
    t = step * theta
    reading = t[..., READING].sum(axis=-1)
    multiplying = t[..., MULTIPLYING]
    rest = t.sum(axis=-1) - reading - multiplying
    total: FloatArray = np.hypot(reading, multiplying) + rest + (prompt * theta).sum(axis=-1)
    return total


def slopes(step: FloatArray, prompt: FloatArray, theta: FloatArray) -> FloatArray:
    """Derivatives of the seconds by each coefficient, shape (n, 17); times theta they add up."""
    slope = step.copy()
    reading = (step[..., READING] * theta[..., READING]).sum(axis=-1)
    multiplying = step[..., MULTIPLYING] * theta[..., MULTIPLYING]
    root = np.hypot(reading, multiplying)
    root = np.where(root > 0, root, 1.0)
    for k in READING:
        slope[..., k] *= reading / root
    slope[..., MULTIPLYING] *= multiplying / root
    total: FloatArray = slope + prompt
    return total


def prompts_per_step(cases: Cases, target: Target, running: FloatArray) -> FloatArray:
    """Prompts whose time one unit of the target holds, in a batch that is kept full; shape (n,).

    A token's step shares b / L prompts with the others; the first token comes after the own
    prompt and those that came with it; the median step holds none.
    """
    share = running / cases.output_tokens
    if target == "itl":
        return np.zeros(len(cases))
    return share if target in ("latency", "tpot") else 1.0 + share


def units(cases: Cases, target: Target) -> FloatArray:
    """Steps that one value of the target holds: all output tokens of a request, or one."""
    return cases.output_tokens if target == "latency" else np.ones(len(cases))


def design(cases: Cases, target: Target) -> tuple[FloatArray, FloatArray]:
    """Seconds by term at theta = 1 that steps and prompts have in a full batch.

    Parameters
    ----------
    cases : Cases
        n cases.
    target : {"latency", "tpot", "itl", "ttft"}

    Returns
    -------
    step, prompt : ndarray, shape (n, 17)
        In seconds of the target.

    Raises
    ------
    UsageError
        If there is no such target.
    """
    check_target(target)
    running = in_flight(cases) / cases.data_parallel
    step, prompt = step_times(cases).design(running)
    many = units(cases, target)[:, None]
    return step * many, prompt * (prompts_per_step(cases, target, running)[:, None] * many)


def check_target(target: str) -> None:
    """Raise a UsageError where a target is none."""
    if target not in TARGETS:
        raise UsageError(f"a time must be one of {', '.join(TARGETS)}, not {target!r}")


# ------------------------------------------------------------------------------ the model


@dataclass(frozen=True, kw_only=True, eq=False)
class _Folded:
    """Coefficients times counts, by what they are multiplied with; each of shape (n,)."""

    reading: FloatArray  # of weights
    multiplying_s: FloatArray  # for each sequence of a microbatch, as the next
    each_s: FloatArray
    sequence_s: FloatArray  # for each sequence
    fixed_s: FloatArray
    piped: IntArray  # cases with pipeline stages, which alone have bubbles; next, of these alone
    bubble: FloatArray
    piped_compute_s: FloatArray
    piped_cache_s: FloatArray
    piped_once_s: FloatArray
    token_s: FloatArray  # for each prompt token
    media_s: FloatArray  # of them, for images and frames
    pass_s: FloatArray
    fresh_s: FloatArray  # reading experts that the step had not touched, all of them
    sparse: bool  # whether any case has experts


@dataclass(frozen=True, kw_only=True, eq=False)
class Steps:
    """Seconds of a step and a prompt of one replica of n cases, as functions of its batch.

    Whatever describes a service (``service.py``) asks these two questions and no more.
    """

    times: StepTimes
    theta: FloatArray  # (n, 17)

    def __len__(self) -> int:
        return len(self.theta)

    def take(self, index: IntArray | slice) -> Steps:
        """Return the cases at ``index``."""
        return Steps(times=self.times.take(index), theta=self.theta[index])

    @cached_property
    def _folded(self) -> _Folded:
        """Terms that depend on the batch alike, added up once for all batches asked about."""
        t, th = self.times, self.theta.T
        launch = th[_K["step_launch"]] * t.launch_s
        together = th[_K["step_synchronisation"]] * t.synchronisation_s
        once = th[_K["prompt_launch"]] * t.prompt_launch_s
        own = (
            th[_K["prompt_compute"]] * t.prompt_compute_s
            + th[_K["vision"]] * t.vision_s
            + th[_K["media"]] * t.media_s
            + th[_K["prompt_link"]] * t.prompt_link_s
            + th[_K["lockstep"]] * t.lockstep_s
        )
        piped = np.flatnonzero(t.stages > 1)
        return _Folded(
            reading=th[0] + th[1] * t.narrow_ratio + th[2] * t.weight_only_ratio,
            multiplying_s=th[MULTIPLYING] * t.compute_s,
            each_s=th[_K["step_cache"]] * t.cache_s + th[_K["step_link"]] * t.link_s,
            sequence_s=th[_K["step_sequence"]] * t.sequence_s,
            fixed_s=launch + together + th[_K["step_stage"]] * t.stage_s,
            piped=piped,
            bubble=th[_K["step_bubble"]][piped],
            piped_compute_s=t.compute_s[piped],
            piped_cache_s=t.cache_s[piped],
            piped_once_s=t.launch_s[piped] + t.synchronisation_s[piped],
            token_s=own / t.input_tokens,
            media_s=(th[_K["vision"]] * t.vision_s + th[_K["media"]] * t.media_s) / t.input_tokens,
            pass_s=once / t.prompt_passes,
            fresh_s=th[0] * t.prompt_experts_s / t.prompt_passes,
            sparse=bool(t.experts_s.any()),
        )

    def _covered(self, each: FloatArray) -> FloatArray | float:
        """Share of the experts that a microbatch touches; of a dense LLM there are none."""
        t = self.times
        return coverage(t.log_missed, t.sharing * each) if self._folded.sparse else 0.0

    def _microbatches(self, running: FloatArray) -> FloatArray:
        """Microbatches that the stages of a pipeline work on at once."""
        between: FloatArray = np.minimum(np.maximum(running, 1.0), self.times.stages)
        return between

    def _each(self, running: FloatArray) -> FloatArray:
        """Sequences of one microbatch."""
        return running / self._microbatches(running) if len(self._folded.piped) else running

    def step_s(self, running: FloatArray) -> FloatArray:
        """Seconds of a decode step with ``running`` sequences in the replica; shape (n,)."""
        t, f = self.times, self._folded
        each = self._each(running)
        weights = t.always_s + t.experts_s * self._covered(each)
        reading, multiplying = f.reading * weights, f.multiplying_s * each
        total: FloatArray = np.sqrt(reading * reading + multiplying * multiplying)
        total += f.each_s * each + f.sequence_s * running + f.fixed_s
        if len(k := f.piped):
            one = each[k]
            busy = np.hypot(weights[k], f.piped_compute_s * one)
            busy += f.piped_cache_s * one
            busy += f.piped_once_s
            total[k] += f.bubble * (self._microbatches(running)[k] - 1.0) * busy
        return total

    def prompts_s(self, tokens: FloatArray, running: FloatArray) -> FloatArray:
        """Seconds that ``tokens`` prompt tokens add to one step; shape (n,).

        Prompts of the cases' mean length; what a pass costs, its launch and the experts that the
        step had not touched, is paid once, up to the token budget of a pass.
        """
        f = self._folded
        total: FloatArray = f.token_s * tokens + f.pass_s
        if f.sparse:
            total += f.fresh_s * (1.0 - self._covered(self._each(running)))
        return total

    def media_s(self, tokens: FloatArray) -> FloatArray:
        """Seconds of :meth:`prompts_s` that images and frames take; shape (n,)."""
        return self._folded.media_s * tokens

    def prompt_s(self, running: FloatArray) -> FloatArray:
        """Seconds that one prompt by itself adds to steps with ``running`` sequences; (n,)."""
        each = self.times.input_tokens / self.times.prompt_passes
        return self.prompts_s(each, running) * self.times.prompt_passes


@dataclass(frozen=True, kw_only=True, eq=False)
class TimeModel:
    """The fitted time law.

    ``groups`` holds coefficients of their own for an engine version, a GPU type, or both
    (joined by a space); ``pooled`` answers for every other case. ``factors`` holds, by LLM and
    precision (joined by a space), what its rows were slower or faster than the law by, shrunk
    toward 1.
    """

    pooled: Coefficients
    scope: Scope
    groups: Mapping[str, Coefficients] = field(default_factory=dict)
    factors: Mapping[str, float] = field(default_factory=dict)
    narrowing_ratio: float = 1.0  # residuals of rows with a factor, over those without
    targets: Mapping[str, int] = field(default_factory=dict)  # rows fitted, by what was measured
    structure: str = STRUCTURE
    dataset_digest: str = ""
    energylens_version: str = ""

    def coefficients(self, gpu: str, engine: str) -> Coefficients:
        """Return the set that answers for one GPU type and engine version, by id."""
        for key in (group_key([gpu, engine]), engine, gpu):
            if key in self.groups:
                return self.groups[key]
        return self.pooled

    def _sets(self, cases: Cases) -> tuple[list[Coefficients], IntArray]:
        sets = [self.coefficients(g.id, e.id) for g in cases.gpus for e in cases.engines]
        return sets, cases.gpu_index * len(cases.engines) + cases.engine_index

    def _theta(self, cases: Cases) -> FloatArray:
        sets, place = self._sets(cases)
        return np.array([s.theta for s in sets]).reshape(-1, len(NAMES))[place]

    def _factor(self, cases: Cases) -> FloatArray:
        if not self.factors:
            return np.ones(len(cases))
        table = np.array(
            [
                [self.factors.get(f"{m.id} {p.id}", 1.0) for p in cases.precisions]
                for m in cases.llms
            ]
        ).reshape(len(cases.llms), len(cases.precisions))
        chosen: FloatArray = table[cases.llm_index, cases.precision_index]
        return chosen

    def steps(self, cases: Cases, output_cv: float | FloatArray = 0.0) -> Steps:
        """Give step and prompt of each case's replica as functions of its batch.

        Without the factors of single LLMs: those were found in full batches, and do not carry to
        a few sequences at a time.

        Parameters
        ----------
        cases : Cases
            n cases.
        output_cv : float or ndarray
            As in :func:`step_times`.
        """
        return Steps(times=step_times(cases, output_cv), theta=self._theta(cases))

    def predict_s(self, cases: Cases, target: Target = "latency") -> FloatArray:
        """Predict seconds in a batch that is kept full, shape (n,).

        Parameters
        ----------
        cases : Cases
            n cases.
        target : {"latency", "tpot", "itl", "ttft"}
            Of the request, per output token on average, between two tokens in the median, or to
            the first token from when the request gets its slot.

        Raises
        ------
        UsageError
            If there is no such target.
        """
        step, prompt = design(cases, target)
        return self._factor(cases) * seconds(step, prompt, self._theta(cases))

    def predict_parts_s(self, cases: Cases, target: Target = "latency") -> FloatArray:
        """Seconds term by term, shape (n, 17); they add up to the prediction."""
        step, prompt = design(cases, target)
        theta = self._theta(cases)
        return self._factor(cases)[:, None] * slopes(step, prompt, theta) * theta

    def step_and_prompt_s(self, cases: Cases) -> tuple[FloatArray, FloatArray]:
        """Seconds of a step without prompts, and of one prompt, in a full batch; each (n,)."""
        step, prompt = step_times(cases).design(in_flight(cases) / cases.data_parallel)
        theta, factor = self._theta(cases), self._factor(cases)
        alone = seconds(step, np.zeros_like(prompt), theta)
        return factor * alone, factor * (prompt * theta).sum(axis=1)

    def most_j(self, cases: Cases, probability_ratio: float) -> FloatArray:
        """Joules a request of all GPUs at their TDP or cap for as long as it may take; shape (n,).

        In a full batch, with a probability that it takes no longer; idle GPUs of the node too.
        """
        with_idle = np.where(cases.node_boundary, np.fmax(cases.node_gpus, cases.occupied_gpus),
                             cases.occupied_gpus) / cases.occupied_gpus  # fmt: skip
        seconds = self.quantile_s(cases, probability_ratio, "latency")
        most: FloatArray = cases.most_w * with_idle * seconds / in_flight(cases)
        return most

    def logs(self, cases: Cases, ratio: float, target: Target = "latency") -> FloatArray:
        """log(measured / predicted) that a new measurement stays below with a probability.

        Conformal, as the intervals of the joules: by rows left out one by one where the fit knows
        the LLM, and with all rows of their LLM's architecture where it does not.

        Parameters
        ----------
        cases : Cases
            n cases.
        ratio : float
            The probability.
        target : {"latency", "tpot", "itl", "ttft"}

        Returns
        -------
        ndarray, shape (n,)
        """
        logs: FloatArray = self.logs_at(cases, np.array([ratio]), target)[0]
        return logs

    def logs_at(self, cases: Cases, ratios: FloatArray, target: Target = "latency") -> FloatArray:
        """Give :meth:`logs` at several probabilities, shape (ratios, n)."""
        for ratio in ratios:
            if not 0.0 < ratio < 1.0:
                raise UsageError(f"a probability must lie between 0 and 1, not {float(ratio)!r}")
        sets, place = self._sets(cases)
        known = np.array([m.id in self.scope.llms for m in cases.llms])[cases.llm_index]

        def tail(ratio: float, s: Coefficients) -> tuple[float, float]:
            """Quantile of residuals of LLMs not seen, and of those seen."""
            inner = abs(2.0 * ratio - 1.0)  # the interval one end of which is the quantile
            end = 1 if ratio >= 0.5 else 0
            unseen = conformal_quantiles(s.residuals_unseen, inner, s.llms)[end]
            return unseen, conformal_quantiles(s.residuals_seen, inner)[end]

        tails = np.array([[tail(ratio, s) for s in sets] for ratio in ratios])
        wider = {
            below: self._widening(cases, target, sets, place, below=below)
            for below in {bool(ratio < 0.5) for ratio in ratios}
        }
        logs = tails[:, place, known.astype(np.intp)]
        logs = logs * np.array([wider[bool(ratio < 0.5)] for ratio in ratios])
        logs = logs * np.where(self._factor(cases) == 1.0, 1.0, self.narrowing_ratio)
        limited: FloatArray = np.clip(logs, -WIDEST_LOG, WIDEST_LOG)
        return limited

    def quantile_s(self, cases: Cases, ratio: float, target: Target = "latency") -> FloatArray:
        """Seconds that a new measurement stays below with probability ``ratio``; shape (n,)."""
        return self.predict_s(cases, target) * np.exp(self.logs(cases, ratio, target))

    def interval_s(
        self, cases: Cases, coverage_ratio: float = 0.8, target: Target = "latency"
    ) -> tuple[FloatArray, FloatArray]:
        """Lower and upper seconds that a new measurement lies between, each of shape (n,)."""
        tail = (1.0 - coverage_ratio) / 2.0
        middle = self.predict_s(cases, target)
        low, high = (self.logs(cases, ratio, target) for ratio in (tail, 1.0 - tail))
        return middle * np.exp(low), middle * np.exp(high)

    def _widening(
        self,
        cases: Cases,
        target: Target,
        sets: list[Coefficients],
        place: IntArray,
        *,
        below: bool,
    ) -> FloatArray:
        """Spread of each case over that of a residual with known coefficients, shape (n,).

        ``below``: of shorter times. No coefficient lies below 0, so none takes away more than its
        term.
        """
        step, prompt = design(cases, target)
        theta = self._theta(cases)
        steep = slopes(step, prompt, theta) / seconds(step, prompt, theta)[:, None]
        ratio = np.ones(len(cases))
        lowest = self.scope.ranges.get("clock_ratio", (1.0, 1.0))[0]
        of_clocks = log_variance(cases, SECONDS_SPREAD, lowest)
        for s, coefficients in enumerate(sets):
            mine = place == s
            if mine.any():
                a, covariance = steep[mine], coefficients.design_effect * coefficients.covariance
                of_theta = np.einsum("ij,jk,ik->i", a, covariance, a)
                if below:
                    a = a * share_of_term(coefficients.theta, covariance)
                    of_theta = np.minimum(of_theta, np.einsum("ij,jk,ik->i", a, covariance, a))
                variance = of_theta + of_clocks[mine]
                ratio[mine] = np.sqrt(1.0 + variance / coefficients.spread_ratio**2)
        return ratio

    def without_factors(self) -> TimeModel:
        """Return the law alone."""
        return replace(self, factors={}, narrowing_ratio=1.0)


def from_datasheet() -> TimeModel:
    """Make the time law that stands before the first measurement.

    Its intervals are a factor of two either way, which is an opinion and not a measurement.
    """
    residuals = np.linspace(-np.log(2.0), np.log(2.0), 41)
    spread = float(residuals.std())
    return TimeModel(
        pooled=Coefficients(
            theta=EXPECTED.copy(),
            covariance=np.diag(SPREADS**2),
            residuals_seen=residuals,
            residuals_unseen=residuals,
            llms=len(residuals),
            spread_ratio=spread,
            design_effect=0.0,
            within_ratio=spread / 2.0,
            between_ratio=spread,
            reach_doublings=3.0,
            rows=0,
        ),
        scope=Scope(llms=(), gpus=(), precisions=()),
    )
