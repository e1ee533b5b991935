"""What structures are made of: quantities with units, and the physical terms built from them.

A *quantity* is something that a case determines: bytes read, operations, launches, degrees of
parallelism, sequences in flight. A *term* is an expression over quantities times one coefficient
in a stated unit; coefficient times expression must be joules per request, or the term is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np

from energylens.cases import Cases, FloatArray
from energylens.counts import ACTIVATION_BYTES, count, weight_bytes
from energylens.discovery.expression import Expression
from energylens.discovery.units import JOULES_PER_REQUEST, Unit
from energylens.errors import InputError
from energylens.records import Llm

PCIE_BYTES_PER_S = 64e9  # the link of a GPU whose datasheet names none: PCIe 5.0 x16, one way


# --------------------------------------------------------------------------------- quantities


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """Something that a case determines, with its LaTeX symbol and its unit."""

    name: str
    symbol: str
    unit: Unit
    meaning: str


_QUANTITIES = (
    # ---------------------------------------------------------------------- knobs and lengths
    ("tensor_parallel", "T", "1", "tensor-parallel degree"),
    ("pipeline_parallel", "P", "1", "pipeline stages"),
    ("data_parallel", "D", "1", "data-parallel replicas"),
    ("gpus", "G", "1", "GPUs of the deployment"),
    ("idle_gpus", "G_0", "1", "GPUs of the node outside it"),
    ("running", "B", "1", "sequences in flight"),
    ("input_tokens", "L_i", "token/request", "tokens prefilled"),
    ("output_tokens", "L_o", "token/request", "tokens generated"),
    ("context_ratio", "c", "1", "longest context over 8192 tokens"),
    ("vision_tokens", "L_v", "token/request", "tokens from images or frames"),
    ("images", "n_i", "image/request", "images encoded"),
    ("frames", "n_f", "image/request", "frames encoded"),
    # ---------------------------------------------------------------------- passes and kernels
    ("passes", "n_p", "pass/request", "prefill passes"),
    ("steps", "n_d", "pass/request", "decode steps, shared by the batch"),
    ("kernels", "K", "kernel/pass", "kernels of one forward pass"),
    ("pass_gpus", "G_p", "pass/request", "passes, times the GPUs that wait for each kernel"),
    ("step_gpus", "G_d", "pass/request", "steps, times the GPUs that wait for each kernel"),
    ("replica_gpus", "G_r", "1", "GPUs of one data-parallel replica"),
    ("launch_ratio", "k", "1", "time between kernels in the engine's generation over 10 us"),
    ("sequence_ratio", "h", "1", "an engine generation's work on a sequence over 100 us"),
    # ------------------------------------------------------------------------------- prefill
    ("prompt_flop", "F_r", "FLOP/request", "operations of prefill, or reading that takes as long"),
    ("prefill_stage_gpu_s", "T_p", "s/request", "GPU-seconds of stages waiting in prefill"),
    ("decode_stage_gpu_s", "T_d", "s/request", "GPU-seconds of stages waiting in decode"),
    ("prefill_s", "u_p", "s/request", "prefill at the datasheet's pace, launches included"),
    ("decode_s", "u_d", "s/request", "decode at the datasheet's pace, launches included"),
    ("pass_weight_bytes", "W_p", "byte/request", "weights read by the prefill passes"),
    ("prefill_flop", "F_p", "FLOP/request", "operations of prefill"),
    ("prefill_attention_flop", "F_a", "FLOP/request", "the part that multiplies prompt by prompt"),
    ("vision_flop", "F_v", "FLOP/request", "operations of the vision tower"),
    ("prefill_message_bytes", "M_p", "byte/request", "hidden states reduced in prefill"),
    ("prefill_link_bytes", "S_p", "byte/request", "bytes between GPUs in prefill"),
    # -------------------------------------------------------------------------------- decode
    ("step_weight_bytes", "W_d", "byte/request", "weights read by decode, experts as touched"),
    ("step_always_bytes", "W_a", "byte/request", "weights besides experts, read by decode"),
    ("step_expert_bytes", "W_e", "byte/request", "experts that the batch touches, read by decode"),
    ("step_all_bytes", "W_t", "byte/request", "weights if decode read all, touched or not"),
    ("decode_flop", "F_d", "FLOP/request", "operations of decode"),
    ("cache_bytes", "C", "byte/request", "KV cache and state moved while decoding"),
    ("state_bytes", "C_s", "byte/request", "state-space state moved while decoding"),
    (
        "expert_wait_bytes",
        "W_x",
        "byte/request",
        "what the busiest GPU reads of experts beyond its share",
    ),
    ("decode_message_bytes", "M_d", "byte/request", "hidden states reduced in decode"),
    ("decode_link_bytes", "S_d", "byte/request", "bytes between GPUs in decode"),
    ("routing", "R", "expert/token", "experts that one token visits, over all layers"),
    # --------------------------------------------------------------------- formats, hardware
    ("weight_only_ratio", "q_w", "1", "1 where only weights have 8 bits or fewer"),
    ("narrow_ratio", "q_n", "1", "1 where weights and activations have 8 bits or fewer"),
    ("tdp_w", "P_g", "J/s", "TDP of a GPU"),
    ("bandwidth_bytes_per_s", r"\beta", "byte/s", "memory bandwidth of a GPU"),
    ("flop_per_s", r"\phi", "FLOP/s", "16-bit peak of a GPU"),
    ("link_bytes_per_s", r"\ell", "byte/s", "bandwidth between GPUs"),
    ("prefill_roofline_s", "t_p", "s/request", "shortest prefill by the datasheet"),
    ("decode_roofline_s", "t_d", "s/request", "shortest decode by the datasheet"),
    ("scale_j", "E_0", "J/request", "TDP over the shortest prefill and decode, in quadrature"),
)


@cache
def quantities() -> Mapping[str, Quantity]:
    """Every quantity that a term may use, by name."""
    return {
        name: Quantity(name=name, symbol=symbol, unit=Unit.parse(unit), meaning=meaning)
        for name, symbol, unit, meaning in _QUANTITIES
    }


@cache
def quantity_units() -> Mapping[str, Unit]:
    """Units of all quantities, by name."""
    return {name: quantity.unit for name, quantity in quantities().items()}


def quantity_columns(cases: Cases) -> dict[str, FloatArray]:
    """Compute all quantities of n cases, by name; each of shape (n,)."""
    counts = count(cases)
    rows, llm, precision = slice(None), cases.llm_index, cases.precision_index
    always, experts = np.array(
        [[weight_bytes(m, p) for p in cases.precisions] for m in cases.llms]
    ).reshape(len(cases.llms), -1, 2)[llm, precision, rows].T  # fmt: skip
    message = ACTIVATION_BYTES * cases.of_llm(_reduced_elements)
    # Each of the microbatches that keep a pipeline busy reads all weights, as counts.py has it.
    readings = counts.steps * counts.microbatches * cases.data_parallel
    always_bytes = readings * always
    tdp_w = cases.of_gpu(lambda g: g.tdp_w)
    derived = {
        "prefill_attention_flop": counts.prefill_attention_flop,
        "prefill_message_bytes": message * cases.input_tokens,
        "decode_message_bytes": message * cases.output_tokens,
        "step_always_bytes": always_bytes,
        "step_expert_bytes": np.where(
            experts > 0, np.maximum(counts.step_weight_bytes - always_bytes, 0.0), 0.0
        ),
        "step_all_bytes": always_bytes + readings * experts,
        "state_bytes": 2.0 * cases.of_llm(_state_bytes) * cases.output_tokens,
        "routing": cases.of_llm(_routing),
        "tdp_w": tdp_w,
        "bandwidth_bytes_per_s": cases.of_gpu(lambda g: g.memory_bandwidth_bytes_per_s),
        "flop_per_s": cases.of_gpu(lambda g: g.bf16_flop_per_s),
        "link_bytes_per_s": cases.of_gpu(
            lambda g: g.link_bandwidth_bytes_per_s or PCIE_BYTES_PER_S
        ),
        "scale_j": counts.gpus
        * tdp_w
        * np.hypot(counts.prefill_roofline_s, counts.decode_roofline_s),
    }
    columns = {}
    for name in quantities():
        if name in derived:
            columns[name] = derived[name]
        else:
            columns[name] = getattr(counts if hasattr(counts, name) else cases, name)
    return columns


def _reduced_elements(llm: Llm) -> float:
    """Elements that one token's all-reduces carry: a hidden state after each sub-layer."""
    parts = (llm.attention, llm.state_space, llm.feed_forward, llm.experts)
    return float(sum(part.layers for part in parts if part) * llm.hidden_size)


def _state_bytes(llm: Llm) -> float:
    return llm.state_space.bytes_per_sequence if llm.state_space else 0.0


def _routing(llm: Llm) -> float:
    return float(llm.experts.layers * llm.experts.active_experts) if llm.experts else 0.0


# --------------------------------------------------------------------------------------- terms


@dataclass(frozen=True, kw_only=True)
class Term:
    """One coefficient and the expression that it multiplies.

    Parameters
    ----------
    unit : Unit
        Of the coefficient.
    """

    expression: Expression
    unit: Unit
    meaning: str = ""

    @classmethod
    def of(cls, text: str, unit: str, meaning: str = "") -> Term:
        """Make a term of texts, and check its units.

        Parameters
        ----------
        text : str
            An expression over the quantities of :func:`quantities`.
        unit : str
            Of the coefficient, as in ``"J/byte"``.

        Raises
        ------
        InputError
            If a quantity is unknown, or coefficient times expression is not joules per request.
        """
        term = cls(expression=Expression(text), unit=Unit.parse(unit), meaning=meaning)
        term.check()
        return term

    def check(self) -> None:
        """Refuse the term unless coefficient times expression is in joules per request.

        Raises
        ------
        InputError
        """
        own = self.expression.unit(quantity_units())
        assert own is not None  # numbers in a term are pure
        if own * self.unit != JOULES_PER_REQUEST:
            raise InputError(
                f"a term must be in {JOULES_PER_REQUEST}: {self.expression.text!r} with a "
                f"coefficient in {self.unit} is in {own * self.unit}; "
                f"it needs a coefficient in {JOULES_PER_REQUEST / own}"
            )


# Works that keep every GPU of the deployment waiting, and what else they may grow with.
_WAITING = (
    ("passes", "pass", "one prefill pass"),
    ("kernels * passes", "kernel", "launching the kernels of prefill"),
    ("steps", "pass", "one decode step"),
    ("kernels * steps", "kernel", "launching the kernels of decode"),
    ("output_tokens", "token", "the engine's own work for a token"),
    ("input_tokens", "token", "the engine's own work for a prompt token"),
)
_WAITING_LAYOUTS = (
    ("gpus * {}", "on every GPU"),
    ("{}", "on one GPU"),
    ("gpus * {} * (tensor_parallel - 1)", "waiting for tensor-parallel peers in turn"),
    ("gpus * {} * log2(tensor_parallel)", "waiting for a tree of tensor-parallel peers"),
    ("gpus * {} * (pipeline_parallel - 1)", "waiting for the other pipeline stages"),
)
# Works that GPUs share, and how layouts may make them dearer or cheaper.
_WORKING = (
    ("pass_weight_bytes", "byte", "reading weights in prefill"),
    ("prefill_flop", "FLOP", "computing the prompt"),
    ("step_weight_bytes", "byte", "reading the activated weights in decode"),
    ("decode_flop", "FLOP", "computing new tokens"),
    ("cache_bytes", "byte", "reading the cache"),
)
_WORKING_LAYOUTS = (
    ("{}", ""),
    ("{} / tensor_parallel", "less with tensor parallelism"),
    ("{} * (tensor_parallel - 1)", "more with each tensor-parallel peer"),
    ("{} * (tensor_parallel - 1) / tensor_parallel", "more with tensor parallelism, saturating"),
    ("{} * log2(tensor_parallel)", "more with each doubling of tensor parallelism"),
    ("{} * (pipeline_parallel - 1)", "more with each pipeline stage"),
    ("{} * (pipeline_parallel - 1) / running", "pipeline bubbles that the batch fills"),
)
_BATCH_WORKS = (
    ("step_weight_bytes", "byte", "reading the activated weights"),
    ("decode_flop", "FLOP", "computing new tokens"),
    ("cache_bytes", "byte", "reading the cache"),
    ("gpus * output_tokens", "token", "every GPU, for a token"),
)
_BATCH_FORMS = (
    ("{} * sqrt(running)", "growing with the root of the batch"),
    ("{} / sqrt(running)", "falling with the root of the batch"),
    ("{} * running / (running + 8)", "saturating at a batch of 8"),
    ("{} * running / (running + 64)", "saturating at a batch of 64"),
    ("{} / (running + 8)", "shared by the batch beyond 8"),
    ("{} / (running + 64)", "shared by the batch beyond 64"),
)
_SINGLE = (
    ("pass_gpus * kernels * launch_ratio", "J/kernel", "launching the kernels of prefill"),
    ("step_gpus * kernels * launch_ratio", "J/kernel", "launching the kernels of decode"),
    ("replica_gpus * output_tokens * sequence_ratio", "J/token",
     "the engine's own work on a sequence of a step"),
    ("prompt_flop", "J/FLOP", "computing the prompt, or reading its weights"),
    ("prefill_stage_gpu_s + decode_stage_gpu_s", "J/s", "waiting for other pipeline stages"),
    ("idle_gpus * (prefill_s + decode_s)", "J/s", "idle GPUs, launches included"),
    ("prefill_flop - prefill_attention_flop", "J/FLOP", "prompt times weights"),
    ("prefill_attention_flop", "J/FLOP", "prompt times itself"),
    ("prefill_link_bytes", "J/byte", "sending activations in prefill"),
    ("decode_link_bytes", "J/byte", "sending activations in decode"),
    ("prefill_link_bytes + decode_link_bytes", "J/byte", "sending activations"),
    ("prefill_message_bytes * (tensor_parallel - 1) / tensor_parallel", "J/byte",
     "a ring all-reduce in prefill, for each GPU"),
    ("decode_message_bytes * (tensor_parallel - 1) / tensor_parallel", "J/byte",
     "a ring all-reduce in decode, for each GPU"),
    ("prefill_message_bytes * log2(tensor_parallel)", "J/byte", "a tree all-reduce in prefill"),
    ("decode_message_bytes * log2(tensor_parallel)", "J/byte", "a tree all-reduce in decode"),
    ("gpus * (pipeline_parallel - 1) * (passes + steps)", "J/pass",
     "waiting for the hand-over to the next stage"),
    ("vision_flop", "J/FLOP", "the vision tower"),
    ("vision_tokens", "J/token", "handling vision tokens"),
    ("images + frames", "J/image", "decoding and resizing images"),
    ("gpus * (images + frames)", "J/image", "every GPU waiting for an image"),
    ("step_always_bytes", "J/byte", "reading weights besides experts"),
    ("step_expert_bytes", "J/byte", "reading the experts that the batch touches"),
    ("step_all_bytes", "J/byte", "reading every weight, touched or not"),
    ("output_tokens * routing", "J/expert", "dispatching new tokens to experts"),
    ("input_tokens * routing", "J/expert", "dispatching the prompt to experts"),
    ("state_bytes", "J/byte", "moving the state of state-space layers"),
    ("weight_only_ratio * step_weight_bytes", "J/byte", "widening weights while decoding"),
    ("weight_only_ratio * decode_flop", "J/FLOP", "computing tokens with widened weights"),
    ("weight_only_ratio * prefill_flop", "J/FLOP", "computing the prompt with widened weights"),
    ("narrow_ratio * step_weight_bytes", "J/byte", "narrowing activations while decoding"),
    ("narrow_ratio * decode_flop", "J/FLOP", "narrow operands dearer than their peak, decode"),
    ("narrow_ratio * prefill_flop", "J/FLOP", "narrow operands dearer than their peak, prefill"),
    ("narrow_ratio * gpus * kernels * steps", "J/kernel", "more kernels for narrow operands"),
    ("expert_wait_bytes", "J/byte", "waiting for the GPU whose experts are asked for most"),
    ("(prefill_link_bytes + decode_link_bytes) * context_ratio", "J/byte",
     "sending activations, dearer with long contexts"),
    ("gpus * (pipeline_parallel - 1) * (passes + steps) * context_ratio", "J/pass",
     "waiting for the next stage, longer with long contexts"),
    ("idle_gpus * (prefill_roofline_s + decode_roofline_s)", "J/s",
     "GPUs of the node that serve nothing"),
    ("idle_gpus * kernels * steps", "J/kernel", "idle GPUs during launches of decode"),
    ("idle_gpus * output_tokens", "J/token", "idle GPUs, for a token"),
)  # fmt: skip

# GPU-seconds of a phase in which reading and computing share their time: the slower of both, or
# the root of their squares, with computing at a share of its peak.
_READING = (
    ("pass_weight_bytes", "prefill_flop", "prefill"),
    ("step_weight_bytes", "decode_flop", "decode"),
    ("step_weight_bytes + cache_bytes", "decode_flop", "decode, cache included"),
)
_OVERLAPS = (
    ("max({0} / bandwidth_bytes_per_s, {1} / flop_per_s)", "the slower of reading and computing"),
    ("max({0} / bandwidth_bytes_per_s, 2 * {1} / flop_per_s)",
     "the slower of reading and computing at half its peak"),
    ("sqrt(({0} / bandwidth_bytes_per_s) ** 2 + ({1} / flop_per_s) ** 2)",
     "reading and computing in quadrature"),
    ("sqrt(({0} / bandwidth_bytes_per_s) ** 2 + (2 * {1} / flop_per_s) ** 2)",
     "reading and computing at half its peak in quadrature"),
)  # fmt: skip

#: What one count costs on a GPU type by its datasheet, by the unit it is counted in: where rows
#: come from several types, terms are multiplied with it and coefficients become ratios.
_PRICES = {
    "byte": "tdp_w / bandwidth_bytes_per_s",
    "FLOP": "tdp_w / flop_per_s",
}


@cache
def physical_terms(*, by_datasheet: bool = False) -> tuple[Term, ...]:
    """The library: what energy per request may be made of.

    Parameters
    ----------
    by_datasheet : bool
        Multiply each term by what the GPU's datasheet says one byte, operation or second
        costs, so that one coefficient can serve several GPU types.

    Returns
    -------
    tuple of Term
        Simple ones first; all with their units checked.
    """
    return tuple(_priced(term) if by_datasheet else term for term in _terms())


def _terms() -> Iterator[Term]:
    for forms, works in ((_WAITING_LAYOUTS, _WAITING), (_WORKING_LAYOUTS, _WORKING)):
        for form, how in forms:
            for work, unit, meaning in works:
                yield Term.of(
                    form.format(work), f"J/{unit}", ", ".join(filter(None, (meaning, how)))
                )
    for text, unit, meaning in _SINGLE:
        yield Term.of(text, unit, meaning)
    for form, how in _OVERLAPS:
        for reading, flop, phase in _READING:
            sum_ = f"({reading})" if "+" in reading else reading
            yield Term.of(form.format(sum_, flop), "J/s", f"{phase}: {how}")
    for form, how in _BATCH_FORMS:
        for work, unit, meaning in _BATCH_WORKS:
            yield Term.of(form.format(work), f"J/{unit}", f"{meaning}, {how}")


def _priced(term: Term) -> Term:
    unit = str(term.unit).removeprefix("J/")
    links = any("link" in name or "message" in name for name in term.expression.names)
    price = "tdp_w / link_bytes_per_s" if links else _PRICES.get(unit, "tdp_w")
    expression = Expression(term.expression.times(price))
    own = expression.unit(quantity_units())
    assert own is not None
    return Term(expression=expression, unit=JOULES_PER_REQUEST / own, meaning=term.meaning)
