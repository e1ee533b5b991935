r"""THE law: twelve coefficients that turn physical counts into joules per request.

.. math:: E = \sum_k e_k + \sqrt{e_{\beta_p}^2 + e_{\phi_p}^2}
              + \sqrt{e_{\beta_d}^2 + e_{\phi_d}^2},
          \qquad e_k = \theta_k \, D_k(\mathrm{gpu}) \, N_k, \quad \theta_k \ge 0

``N`` are counts that the LLM, the configuration and the workload determine (``counts.py``):
bytes read, operations done, kernels launched, bytes sent. ``D`` is what the datasheet alone
would lead one to expect one such count to cost, in joules: a GPU at work draws 0.7 of its TDP
while it moves 0.8 of its bandwidth or does half of its FLOP/s, and 0.4 of its TDP while it
waits. ``theta`` is what measurements say of that guess: 1 where it is right. The physical
coefficient, in J/byte or J/FLOP, is ``theta D``.

Eight terms simply add. Reading the weights and multiplying with them happen at the same time,
in one kernel, so of these two the larger counts and the smaller hardly shows: a roofline, with
its corner rounded by the root of squares, once for prefill (:math:`\beta_p, \phi_p`) and once
for decode. E is homogeneous of degree one in theta, so it still splits into exact shares:
:math:`E = \sum_k \theta_k \, \partial E / \partial \theta_k`.

Writing the coefficients this way costs nothing and gives two things: the same twelve numbers
can be read on any GPU type, and there is an answer before the first measurement.

To add, drop or exchange a term, edit :data:`TERMS`: one row is one term and its coefficient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from energylens.cases import Cases, FloatArray
from energylens.clocks import CLOCKLESS_RATIO, READING_RATIO, WAITING_RATIO, Clocked
from energylens.counts import BANDWIDTH_RATIO, COMPUTE_RATIO, LAUNCH_S, SEQUENCE_S, Counts, count
from energylens.errors import InputError, UnknownChoiceError
from energylens.records import Gpu

STRUCTURE = "2026.2"  # changes whenever TERMS or the counts they use change

WORKING_POWER_RATIO = READING_RATIO  # of TDP, while kernels run
WAITING_POWER_RATIO = WAITING_RATIO  # of TDP, while a loaded GPU waits for the next kernel
IDLE_POWER_RATIO = 0.1  # of TDP, without a loaded model, where the datasheet is silent
LINK_RATIO = 0.5
PCIE_BYTES_PER_S = 64e9  # the link of a GPU without a faster one
# What a power cap meets: bytes at full speed add 0.3 of TDP to that of waiting (0.7, as above),
# tensor cores 0.6, so that a prefill draws the whole. 0.3 of TDP, memory and leakage, does not
# follow the core clock, and drivers do not go below a fifth of the highest.
READING_POWER_RATIO = WORKING_POWER_RATIO - WAITING_POWER_RATIO
MULTIPLYING_POWER_RATIO = 0.6
CLOCKLESS_POWER_RATIO = CLOCKLESS_RATIO
SLOWEST_CLOCK_RATIO = 0.2
MEDIA_S = 10e-3  # an engine's own work on one image or frame


# The least that a coefficient can be, as a ratio to the expectation of its datasheet: the 5 %
# quantiles of operators measured on H200, B200 and GB200 are 0.51 to 0.68 for a byte of weights,
# 0.33 to 0.48 for one of the cache and 0.81 to 0.97 for a FLOP (AIConfigurator, vLLM 0.22); a FLOP
# at the peak and at TDP is 0.71. Bounds at or below all of these cost nothing on rows left out
# (docs/studies/structure-study.md).
BYTE_FLOOR = 0.5
CACHE_FLOOR = 0.3
FLOP_FLOOR = 0.7


def _per_byte(gpu: Gpu) -> float:
    return WORKING_POWER_RATIO * gpu.tdp_w / (BANDWIDTH_RATIO * gpu.memory_bandwidth_bytes_per_s)


def _per_flop(gpu: Gpu) -> float:
    return WORKING_POWER_RATIO * gpu.tdp_w / (COMPUTE_RATIO * gpu.bf16_flop_per_s)


def _per_link_byte(gpu: Gpu) -> float:
    link = gpu.link_bandwidth_bytes_per_s or PCIE_BYTES_PER_S
    return WORKING_POWER_RATIO * gpu.tdp_w / (LINK_RATIO * link)


def _waiting(seconds: float) -> Callable[[Gpu], float]:
    return lambda gpu: WAITING_POWER_RATIO * gpu.tdp_w * seconds


def _idle_power_w(gpu: Gpu) -> float:
    return gpu.idle_power_w or IDLE_POWER_RATIO * gpu.tdp_w


@dataclass(frozen=True, kw_only=True)
class Term:
    """One coefficient and the counts it multiplies.

    ``datasheet`` gives D for a GPU type. ``spread`` says how far the coefficient may lie from
    it: about a factor of two for what hardware does, more for what an engine's software does.
    ``expected`` is theta before any measurement: 1, or 0 for a surcharge.
    ``needs`` names the rows that determine the coefficient. ``lower_bound`` is the least that
    it can be by physics: 0, or what measured operators do not go below.
    """

    name: str
    symbol: str
    unit: str
    meaning: str
    datasheet: Callable[[Gpu], float]
    prefill: Callable[[Counts], FloatArray] | None = None
    decode: Callable[[Counts], FloatArray] | None = None
    expected: float = 1.0
    spread: float = 1.0
    needs: str = ""
    lower_bound: float = 0.0

    @property
    def hardware(self) -> bool:
        """Whether the coefficient is of bytes and FLOPs, not of waiting."""
        return self.unit in ("J/byte", "J/FLOP")


TERMS: tuple[Term, ...] = (
    # ------------------------------------------------------------------------------- prefill
    Term(
        name="prefill_launch",
        symbol=r"\lambda_p",
        unit="J/kernel",
        meaning="every GPU waiting while one prefill kernel is launched",
        datasheet=_waiting(LAUNCH_S),
        prefill=lambda n: n.pass_gpus * n.kernels * n.launch_ratio,
        spread=3.0,
        needs="short prompts, and LLMs of different depth",
    ),
    Term(
        name="prefill_compute",
        symbol=r"\phi_p",
        unit="J/FLOP",
        meaning="computing the prompt: multiplying it with weights and itself, or reading those",
        datasheet=_per_flop,
        prefill=lambda n: n.prompt_flop,
        lower_bound=FLOP_FLOOR,
        needs="prompts of different length, long ones among them",
    ),
    Term(
        name="vision",
        symbol=r"\phi_v",
        unit="J/FLOP",
        meaning="encoding images or video frames in the vision tower",
        datasheet=_per_flop,
        prefill=lambda n: n.vision_flop,
        needs="requests with images or video",
    ),
    # -------------------------------------------------------------------------------- decode
    Term(
        name="decode_launch",
        symbol=r"\lambda_d",
        unit="J/kernel",
        meaning="every GPU waiting while one decode kernel is launched",
        datasheet=_waiting(LAUNCH_S),
        decode=lambda n: n.step_gpus * n.kernels * n.launch_ratio,
        spread=3.0,
        needs="small batches on LLMs of different depth",
    ),
    Term(
        name="decode_weights",
        symbol=r"\beta_d",
        unit="J/byte",
        meaning="reading the weights that the batch activates, each decode step",
        datasheet=_per_byte,
        decode=lambda n: n.step_weight_bytes,
        lower_bound=BYTE_FLOOR,
        needs="small batches on LLMs of different size",
    ),
    Term(
        name="narrow_weights",
        symbol=r"\beta_n",
        unit="J/byte",
        meaning="what weights in fewer bits cost on top of reading them",
        datasheet=_per_byte,
        decode=lambda n: n.step_weight_bytes * (n.narrow_ratio + n.weight_only_ratio),
        expected=0.0,
        needs="rows in a format of fewer bits beside rows in 16 bits",
    ),
    Term(
        name="decode_compute",
        symbol=r"\phi_d",
        unit="J/FLOP",
        meaning="multiplying each new token with the weights",
        datasheet=_per_flop,
        decode=lambda n: n.decode_flop,
        lower_bound=FLOP_FLOOR,
        needs="large batches",
    ),
    Term(
        name="decode_sequence",
        symbol=r"\sigma",
        unit="J/token",
        meaning="every GPU waiting for the engine's own work on one sequence of a step",
        datasheet=_waiting(SEQUENCE_S),
        decode=lambda n: n.replica_gpus * n.output_tokens * n.sequence_ratio,
        spread=3.0,
        needs="large batches on different numbers of GPUs",
    ),
    Term(
        name="decode_cache",
        symbol=r"\kappa",
        unit="J/byte",
        meaning="reading the KV cache, or reading and writing the state, for each new token",
        datasheet=_per_byte,
        decode=lambda n: n.cache_bytes,
        lower_bound=CACHE_FLOOR,
        needs="different context lengths at large batch",
    ),
    # -------------------------------------------------------------------------------- layout
    Term(
        name="tensor_parallel",
        symbol=r"\tau",
        unit="J/byte",
        meaning="sending activations between the GPUs of a tensor- or expert-parallel group",
        datasheet=_per_link_byte,
        prefill=lambda n: n.prefill_link_bytes,
        decode=lambda n: n.decode_link_bytes,
        needs="rows with tensor_parallel above 1 beside rows with less of it",
    ),
    Term(
        name="pipeline_parallel",
        symbol=r"\pi",
        unit="W",
        meaning="GPUs waiting while other pipeline stages work, or hand over",
        datasheet=_waiting(1.0),
        prefill=lambda n: n.prefill_stage_gpu_s,
        decode=lambda n: n.decode_stage_gpu_s,
        spread=3.0,
        needs="rows with pipeline_parallel above 1",
    ),
    Term(
        name="idle_gpus",
        symbol=r"\iota",
        unit="W",
        meaning="GPUs of the node that serve nothing, while the request runs at datasheet speed",
        datasheet=_idle_power_w,
        prefill=lambda n: n.idle_gpus * n.prefill_s,
        decode=lambda n: n.idle_gpus * n.decode_s,
        needs="rows at the node boundary with different numbers of GPUs in use",
    ),
)
#: Surcharges that a fit takes in when asked to: each a named switch, with its own coefficients.
EXTENSIONS: dict[str, tuple[Term, ...]] = {
    "length": (
        Term(
            name="tensor_length",
            symbol=r"\tau_l",
            unit="J/byte",
            meaning="what tensor-parallel traffic costs more for each 8192 tokens of context",
            datasheet=_per_link_byte,
            prefill=lambda n: n.prefill_link_bytes * n.context_ratio,
            decode=lambda n: n.decode_link_bytes * n.context_ratio,
            expected=0.0,
            needs="rows of different length at each degree of tensor parallelism",
        ),
        Term(
            name="pipeline_length",
            symbol=r"\pi_l",
            unit="W",
            meaning="what waiting for pipeline stages costs more for each 8192 tokens of context",
            datasheet=_waiting(1.0),
            prefill=lambda n: n.prefill_stage_gpu_s * n.context_ratio,
            decode=lambda n: n.decode_stage_gpu_s * n.context_ratio,
            expected=0.0,
            spread=3.0,
            needs="rows of different length at each degree of pipeline parallelism",
        ),
    ),
    "routing": (
        Term(
            name="expert_imbalance",
            symbol=r"\eta",
            unit="J/byte",
            meaning="all GPUs waiting for the one whose experts are asked for most",
            datasheet=_per_byte,
            decode=lambda n: n.expert_wait_bytes,
            expected=0.0,
            needs="rows with expert_parallel above 1 at small batch",
        ),
    ),
    "frames": (
        Term(
            name="media_waiting",
            symbol=r"\mu",
            unit="J/image",
            meaning="every GPU waiting for one image or frame to be prepared",
            datasheet=_waiting(MEDIA_S),
            prefill=lambda n: n.replica_gpus * n.media,
            expected=0.0,
            spread=3.0,
            needs="requests with different numbers of images or frames",
        ),
    ),
    "quantization": (
        Term(
            name="weight_only_weights",
            symbol=r"\beta_w",
            unit="J/byte",
            meaning="widening weights that alone are in fewer bits, beyond what narrow ones cost",
            datasheet=_per_byte,
            decode=lambda n: n.step_weight_bytes * n.weight_only_ratio,
            expected=0.0,
            needs="rows in a weight-only format beside rows in 8 bits and in 16",
        ),
        Term(
            name="narrow_steps",
            symbol=r"\lambda_n",
            unit="J/kernel",
            meaning="every GPU waiting longer for the kernels of formats that multiply fewer bits",
            datasheet=_waiting(LAUNCH_S),
            decode=lambda n: n.step_gpus * n.kernels * n.launch_ratio * n.narrow_ratio,
            expected=0.0,
            spread=3.0,
            needs="rows in an 8-bit format at small batch beside rows in 16 bits",
        ),
    ),
    "power_cap": (
        Term(
            name="capped_headroom",
            symbol=r"\omega",
            unit="J/J",
            meaning="drawing less than the TDP without a cap, so that a cap takes less away",
            datasheet=lambda _: 1.0,
            prefill=lambda n: _capped(n).prefill_headroom_j,
            decode=lambda n: _capped(n).decode_headroom_j,
            needs="rows with a power_cap_w beside rows without",
        ),
        Term(
            name="capped_compute",
            symbol=r"\phi_c",
            unit="J/FLOP",
            meaning="multiplying for longer, where a power cap holds the core clock down",
            datasheet=_per_flop,
            prefill=lambda n: _capped(n).prefill_slowed_flop,
            decode=lambda n: _capped(n).decode_slowed_flop,
            needs="rows with a power_cap_w well below the TDP, long prompts among them",
        ),
    ),
}


# ------------------------------------------------------------------------------- power caps


@dataclass(frozen=True, kw_only=True, eq=False)
class CappedCounts(Counts):
    """Counts, and what the power caps of n cases do to each phase; each of shape (n,).

    Attributes
    ----------
    power_left_ratio : ndarray
        Cap over TDP: the power that is left of a GPU that draws its TDP; 1 without a cap.
    prefill_headroom_j, decode_headroom_j : ndarray
        Joules that such a cap would not take from a GPU that draws what its datasheet suggests.
    prefill_slowed_flop, decode_slowed_flop : ndarray
        FLOPs, times how much longer they take, at the power that is left.
    """

    power_left_ratio: FloatArray
    prefill_headroom_j: FloatArray
    decode_headroom_j: FloatArray
    prefill_slowed_flop: FloatArray
    decode_slowed_flop: FloatArray


def _capped(n: Counts) -> CappedCounts:
    """Counts with caps, or with what none of them does: nothing."""
    if isinstance(n, CappedCounts):
        return n
    zero = np.zeros(len(n.gpus))
    return CappedCounts(
        **{f.name: getattr(n, f.name) for f in fields(Counts)},
        power_left_ratio=zero + 1.0,
        prefill_headroom_j=zero,
        decode_headroom_j=zero,
        prefill_slowed_flop=zero,
        decode_slowed_flop=zero,
    )


def _left(read: Callable[[Counts], FloatArray] | None) -> Callable[[Counts], FloatArray] | None:
    """Count at the power that a cap leaves."""
    if read is None:
        return None
    return lambda n: read(n) * n.power_left_ratio if isinstance(n, CappedCounts) else read(n)


def _under_cap(
    left_ratio: FloatArray, waiting_s: FloatArray, reading_s: FloatArray, multiplying_s: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Power held, and how much longer FLOPs take, in one phase; each of shape (n,)."""
    total = waiting_s + np.maximum(reading_s, multiplying_s)
    busy = READING_POWER_RATIO * reading_s + MULTIPLYING_POWER_RATIO * multiplying_s
    draw = np.minimum(WAITING_POWER_RATIO + busy / np.where(total > 0, total, 1.0), 1.0)
    drawn = np.minimum(left_ratio, draw)
    moving = np.maximum(drawn - CLOCKLESS_POWER_RATIO, 0.0) / (draw - CLOCKLESS_POWER_RATIO)
    clock = np.maximum(np.cbrt(moving), SLOWEST_CLOCK_RATIO)
    return drawn / draw, 1.0 / clock - 1.0


def with_power_caps(cases: Cases, counts: Counts) -> Counts:
    r"""Work out what power caps do to the counts.

    A GPU that draws its TDP and keeps its pace costs, under a cap of p TDP, p times the joules:
    the least that is possible. Two things are on top of that. In a phase it may draw but

    .. math:: u = \min\Big(1,\; 0.4 + \frac{0.3\, t_{bytes} + 0.6\, t_{FLOP}}
                                           {t_{wait} + \max(t_{bytes}, t_{FLOP})}\Big)

    of its TDP, by the times of its datasheet; then :math:`\min(1, p / u)` of the joules are left,
    not p. What is left on top of p is counted in joules of the datasheet, so that the law stays
    linear: above u a cap does nothing only where the fitted joules are omega times those. And
    where p < u the driver lowers the core clock to the share c with
    :math:`0.3 + (u - 0.3)\, c^3 = p` (dynamic power is :math:`f V^2`, the voltage follows the
    clock, memory and leakage do not), so that FLOPs take 1 / c the time, at the power left.
    Memory has a clock of its own, and keeps it.

    Published: decode is bound by memory and may draw less than any cap leaves (Ma et al., arXiv
    2605.11999: 137 to 300 of 700 W on an H200); where a cap is felt it saves energy for little
    time (Samsi et al., arXiv 2310.03003: from 250 to 175 W, 23 % less energy and 6 to 7 % more
    time); prefill is what reaches the TDP (Patel et al., POLCA, arXiv 2308.12908).

    Returns
    -------
    Counts
        A :class:`CappedCounts`; the same counts if no case has a cap.
    """
    if not cases.capped.any():
        return counts
    left = cases.power_cap_w / cases.of_gpu(lambda gpu: gpu.tdp_w)
    left = np.where(cases.capped, np.minimum(left, 1.0), 1.0)
    bandwidth = BANDWIDTH_RATIO * cases.of_gpu(lambda gpu: gpu.memory_bandwidth_bytes_per_s)
    flop_per_s = COMPUTE_RATIO * cases.of_gpu(lambda gpu: gpu.bf16_flop_per_s)
    expected = datasheet(cases.gpus)[cases.gpu_index]
    busy = np.array([term.name != "idle_gpus" for term in TERMS], dtype=np.float64)
    launch_s = LAUNCH_S * counts.launch_ratio * counts.kernels
    headroom, slowed = {}, {}
    for phase, waiting, read_bytes, flop in (
        (
            "prefill",
            counts.pass_gpus,
            counts.pass_weight_bytes,
            counts.prefill_flop + counts.vision_flop,
        ),
        (
            "decode",
            counts.step_gpus,
            counts.step_weight_bytes + counts.cache_bytes,
            counts.decode_flop,
        ),
    ):
        held, longer = _under_cap(
            left, launch_s * waiting, read_bytes / bandwidth, flop / flop_per_s
        )
        whole = energy(_of_phase(phase, counts, expected, TERMS), busy)
        headroom[phase], slowed[phase] = (held - left) * whole, left * longer * flop
    return CappedCounts(
        **{f.name: getattr(counts, f.name) for f in fields(Counts)},
        power_left_ratio=left,
        prefill_headroom_j=headroom["prefill"],
        decode_headroom_j=headroom["decode"],
        prefill_slowed_flop=slowed["prefill"],
        decode_slowed_flop=slowed["decode"],
    )


# ---------------------------------------------------------------------------- locked clocks

_WAITED = ("pass_gpus", "step_gpus", "prefill_stage_gpu_s", "decode_stage_gpu_s", "sequence_ratio")
_READ = (
    "pass_weight_bytes", "step_weight_bytes", "cache_bytes", "prefill_link_bytes",
    "decode_link_bytes", "expert_wait_bytes",
)  # fmt: skip
_MULTIPLIED = ("prefill_flop", "prompt_flop", "decode_flop", "vision_flop")


def at_clocks(cases: Cases, counts: Counts) -> Counts:
    """Count at the joules that a locked core clock leaves of each (:mod:`energylens.clocks`).

    Idle GPUs of the node draw what they drew, for longer where FLOPs and bytes are slower.

    Returns
    -------
    Counts
        The same counts if no clock is locked.
    """
    if not cases.clocked.any():
        return counts
    left = Clocked.of(cases.clock_ratio)
    kinds = ((_WAITED, left.waiting_j), (_READ, left.reading_j), (_MULTIPLIED, left.multiplying_j))
    held = {name: getattr(counts, name) * ratio for names, ratio in kinds for name in names}
    held["media"] = counts.media * left.waiting_j
    held["prefill_s"] = counts.prefill_s / left.speed
    held["decode_s"] = counts.decode_s / left.reading_speed
    return replace(counts, **held)


def counts_for(terms: Sequence[Term], cases: Cases, counts: Counts) -> Counts:
    """Count what clocks leave, and where the terms know power caps what these do."""
    counts = at_clocks(cases, counts)
    return with_power_caps(cases, counts) if _know_caps(terms) else counts


def _know_caps(terms: Sequence[Term]) -> bool:
    return any(term in EXTENSIONS["power_cap"] for term in terms)


def terms_of(extensions: Sequence[str] = ()) -> tuple[Term, ...]:
    """Return the twelve terms, then those of the extensions.

    With ``power_cap`` those of others than idle GPUs are at the power that the cap leaves.

    Raises
    ------
    UnknownChoiceError
        If there is no such extension.
    """
    for name in extensions:
        if name not in EXTENSIONS:
            raise UnknownChoiceError(
                "extension", name, EXTENSIONS, f"There are {', '.join(EXTENSIONS)}."
            )
    terms = (*TERMS, *(term for name in extensions for term in EXTENSIONS[name]))
    if "power_cap" not in extensions:
        return terms
    own = {"idle_gpus", *(term.name for term in EXTENSIONS["power_cap"])}
    return tuple(
        term
        if term.name in own
        else replace(term, prefill=_left(term.prefill), decode=_left(term.decode))
        for term in terms
    )


NAMES: tuple[str, ...] = tuple(term.name for term in TERMS)
SPREADS: FloatArray = np.array([term.spread for term in TERMS])
#: Terms that share their time: of each pair the root of squares counts.
OVERLAPS: tuple[tuple[int, int], ...] = tuple(
    (NAMES.index(f"{phase}_weights"), NAMES.index(f"{phase}_compute")) for phase in ("decode",)
)


def datasheet(gpus: tuple[Gpu, ...], terms: Sequence[Term] = TERMS) -> FloatArray:
    """Joules that one count is expected to cost, shape (gpus, 12); more with extensions."""
    return np.array([[term.datasheet(gpu) for term in terms] for gpu in gpus]).reshape(
        -1, len(terms)
    )


def design_by_phase(cases: Cases, terms: Sequence[Term] = TERMS) -> tuple[FloatArray, FloatArray]:
    """Joules per request and term at theta = 1, for prefill and for decode.

    Parameters
    ----------
    cases : Cases
        n cases.

    Returns
    -------
    prefill, decode : ndarray, shape (n, 12)
    """
    counts = counts_for(terms, cases, count(cases))
    expected = datasheet(cases.gpus, terms)[cases.gpu_index]
    prefill, decode = (_of_phase(phase, counts, expected, terms) for phase in ("prefill", "decode"))
    return prefill, decode


def _of_phase(
    phase: str, counts: Counts, expected: FloatArray, terms: Sequence[Term]
) -> FloatArray:
    """Joules of one phase per request and term at theta = 1, shape (n, 12)."""
    part = np.zeros((len(expected), len(terms)))
    for k, term in enumerate(terms):
        read = getattr(term, phase)
        if read is not None:
            part[:, k] = read(counts) * expected[:, k]
    return part


def design(cases: Cases, terms: Sequence[Term] = TERMS) -> FloatArray:
    """Joules per request and term at theta = 1, shape (n, 12)."""
    prefill, decode = design_by_phase(cases, terms)
    return prefill + decode


def energy(x: FloatArray, theta: FloatArray) -> FloatArray:
    """Joules of terms ``x`` (n, 12) under coefficients (12,) or (n, 12); shape (n,)."""
    e = x * theta
    total: FloatArray = e.sum(axis=-1)
    for a, b in OVERLAPS:
        first, second = e[..., a], e[..., b]
        total += np.sqrt(first * first + second * second) - first - second
    return total


def slopes(x: FloatArray, theta: FloatArray) -> FloatArray:
    """Derivatives of the energy by each coefficient, shape (n, 12); they times theta add to it."""
    slope = x.copy()
    for a, b in OVERLAPS:
        first, second = x[..., a] * theta[..., a], x[..., b] * theta[..., b]
        root = np.sqrt(first * first + second * second)
        root = np.where(root > 0, root, 1.0)  # where neither term counts, neither has a slope
        slope[..., a] *= first / root
        slope[..., b] *= second / root
    return slope


_Reader = tuple[int, Callable[[Counts], FloatArray]]


def _readers(terms: Sequence[Term], indices: Sequence[int]) -> list[_Reader]:
    chosen = ((k, terms[k]) for k in indices)
    return [(k, read) for k, term in chosen for read in (term.prefill, term.decode) if read]


def power_ratio(cases: Cases) -> FloatArray:
    """Measured mean power per GPU over what a working GPU is expected to draw, shape (n,).

    With it as a factor of every term the law only has to explain time.

    Raises
    ------
    InputError
        If a case has no ``average_power_w``.
    """
    missing = int(np.isnan(cases.average_power_w).sum())
    if missing:
        raise InputError(
            "with measured power every row must have average_power_w; "
            f"{missing} of {len(cases)} have none. Leave the option out to do without it."
        )
    expected = WORKING_POWER_RATIO * cases.of_gpu(lambda gpu: gpu.tdp_w)
    covered = np.where(
        cases.node_boundary & ~np.isnan(cases.node_gpus), cases.node_gpus, cases.occupied_gpus
    )
    return cases.average_power_w / covered / expected
