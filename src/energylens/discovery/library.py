"""What structures are made of: quantities with units, and the physical terms built from them.

A *quantity* is something that a case determines: bytes read, operations, launches, degrees of
parallelism, sequences in flight. A *term* is an expression over quantities times one coefficient
in a stated unit; coefficient times expression must be joules per request, or the term is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from energylens.cases import Cases, FloatArray
from energylens.counts import ACTIVATION_BYTES, STATE_BYTES, Counts, count, weight_bytes
from energylens.discovery.expression import Expression
from energylens.discovery.units import JOULES_PER_REQUEST, Unit
from energylens.errors import InputError

PCIE_BYTES_PER_S = 64e9  # the link of a GPU whose datasheet names none: PCIe 5.0 x16, one way


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """Something that a case determines, with its LaTeX symbol and its unit."""

    name: str
    symbol: str
    unit: Unit
    meaning: str
    read: Callable[[Cases, Counts], FloatArray]


@dataclass(frozen=True, kw_only=True)
class Term:
    """One coefficient and the expression that it multiplies.

    Parameters
    ----------
    expression : Expression
    unit : Unit
        Of the coefficient.
    meaning : str
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
        meaning : str, optional

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


# --------------------------------------------------------------------------------- quantities


def _of_precision_pair(cases: Cases, read: Callable[[int, int], float], firsts: int) -> FloatArray:
    """Look up a table by the place of an LLM or a GPU and of a precision; shape (n,)."""
    index = cases.gpu_index if firsts == len(cases.gpus) else cases.llm_index
    table = np.array([[read(i, j) for j in range(len(cases.precisions))] for i in range(firsts)])
    return np.asarray(table[index, cases.precision_index], dtype=np.float64)


def _weights(cases: Cases, part: int) -> FloatArray:
    """Bytes of the weights always read (part 0) or of all routed experts (1); shape (n,)."""
    table = np.array([[weight_bytes(m, p)[part] for p in cases.precisions] for m in cases.llms])
    return np.asarray(
        table.reshape(len(cases.llms), -1)[cases.llm_index, cases.precision_index],
        dtype=np.float64,
    )


def _step_always_bytes(cases: Cases, counts: Counts) -> FloatArray:
    return counts.steps * cases.data_parallel * _weights(cases, 0)


def _step_all_bytes(cases: Cases, counts: Counts) -> FloatArray:
    return counts.steps * cases.data_parallel * (_weights(cases, 0) + _weights(cases, 1))


def _prefill_linear_flop(cases: Cases, counts: Counts) -> FloatArray:
    # In 16-bit equivalents, as counts.py has it.
    worth = np.array(
        [
            [g.bf16_flop_per_s / g.flop_per_s(p.compute_bits, integer=p.integer)
             for p in cases.precisions]
            for g in cases.gpus
        ]
    ).reshape(len(cases.gpus), -1)[cases.gpu_index, cases.precision_index]  # fmt: skip
    flop = cases.of_llm(lambda m: 2.0 * m.computing_parameters)
    return np.minimum(flop * worth * cases.input_tokens, counts.prefill_flop)


def _message_bytes(cases: Cases, tokens: FloatArray) -> FloatArray:
    """Bytes of all hidden states that a tensor-parallel group reduces, one copy of each."""

    def reductions(m: object) -> float:
        from energylens.records import Llm

        assert isinstance(m, Llm)
        layers = m.attention.layers if m.attention else 0
        layers += m.state_space.layers if m.state_space else 0
        layers += m.feed_forward.layers if m.feed_forward else 0
        layers += m.experts.layers if m.experts else 0
        return float(layers * m.hidden_size)

    return ACTIVATION_BYTES * cases.of_llm(reductions) * tokens


def _routing(cases: Cases) -> FloatArray:
    return cases.of_llm(lambda m: m.experts.layers * m.experts.active_experts if m.experts else 0.0)


def _state_bytes(cases: Cases) -> FloatArray:
    elements = cases.of_llm(lambda m: m.state_space.elements_per_sequence if m.state_space else 0.0)
    return 2.0 * STATE_BYTES * elements * cases.output_tokens


@cache
def quantities() -> Mapping[str, Quantity]:
    """Every quantity that a term may use, by name."""
    table: tuple[tuple[str, str, str, str, Callable[[Cases, Counts], FloatArray]], ...] = (
        # ------------------------------------------------------------------ knobs and lengths
        ("tensor_parallel", "T", "1", "tensor-parallel degree", lambda c, n: c.tensor_parallel),
        ("pipeline_parallel", "P", "1", "pipeline stages", lambda c, n: c.pipeline_parallel),
        ("data_parallel", "D", "1", "data-parallel replicas", lambda c, n: c.data_parallel),
        ("gpus", "G", "1", "GPUs of the deployment", lambda c, n: n.gpus),
        ("idle_gpus", "G_0", "1", "GPUs of the node outside it", lambda c, n: n.idle_gpus),
        ("running", "B", "1", "sequences in flight", lambda c, n: n.running),
        ("input_tokens", "L_i", "token/request", "tokens prefilled", lambda c, n: c.input_tokens),
        ("output_tokens", "L_o", "token/request", "tokens generated",
         lambda c, n: c.output_tokens),
        ("vision_tokens", "L_v", "token/request", "tokens from images or frames",
         lambda c, n: c.vision_tokens),
        ("images", "n_i", "image/request", "images encoded", lambda c, n: c.images),
        ("frames", "n_f", "image/request", "frames encoded", lambda c, n: c.frames),
        # ------------------------------------------------------------------ passes and kernels
        ("passes", "n_p", "pass/request", "prefill passes", lambda c, n: n.passes),
        ("steps", "n_d", "pass/request", "decode steps, shared by the batch",
         lambda c, n: n.steps),
        ("kernels", "K", "kernel/pass", "kernels of one forward pass", lambda c, n: n.kernels),
        # --------------------------------------------------------------------------- prefill
        ("pass_weight_bytes", "W_p", "byte/request", "weights read by the prefill passes",
         lambda c, n: n.pass_weight_bytes),
        ("prefill_flop", "F_p", "FLOP/request", "operations of prefill", lambda c, n: n.prefill_flop),
        ("prefill_attention_flop", r"F_{att}", "FLOP/request", "prompt times itself",
         lambda c, n: n.prefill_flop - _prefill_linear_flop(c, n)),
        ("vision_flop", "F_v", "FLOP/request", "operations of the vision tower",
         lambda c, n: n.vision_flop),
        ("prefill_message_bytes", "M_p", "byte/request", "hidden states reduced in prefill",
         lambda c, n: _message_bytes(c, c.input_tokens)),
        ("prefill_link_bytes", "S_p", "byte/request", "sent between GPUs in prefill",
         lambda c, n: n.prefill_link_bytes),
        # ---------------------------------------------------------------------------- decode
        ("step_weight_bytes", "W_d", "byte/request",
         "weights read by decode steps, experts as far as the batch touches them",
         lambda c, n: n.step_weight_bytes),
        ("step_always_bytes", "W_a", "byte/request", "weights besides experts, read by steps",
         _step_always_bytes),
        ("step_expert_bytes", "W_e", "byte/request", "experts that the batch touches",
         lambda c, n: n.step_weight_bytes - _step_always_bytes(c, n)),
        ("step_all_bytes", "W_{all}", "byte/request", "all weights, touched or not, each step",
         _step_all_bytes),
        ("decode_flop", "F_d", "FLOP/request", "operations of decode", lambda c, n: n.decode_flop),
        ("cache_bytes", "C", "byte/request", "KV cache and state moved while decoding",
         lambda c, n: n.cache_bytes),
        ("state_bytes", "C_s", "byte/request", "state-space state moved while decoding",
         lambda c, n: _state_bytes(c)),
        ("decode_message_bytes", "M_d", "byte/request", "hidden states reduced in decode",
         lambda c, n: _message_bytes(c, c.output_tokens)),
        ("decode_link_bytes", "S_d", "byte/request", "sent between GPUs in decode",
         lambda c, n: n.decode_link_bytes),
        ("routing", "E", "expert/token", "experts that one token visits, over all layers",
         lambda c, n: _routing(c)),
        # ------------------------------------------------------------------- formats, hardware
        ("weight_only", "q", "1", "1 where weights are widened before they multiply",
         lambda c, n: c.of_precision(lambda p: float(p.weight_only))),
        ("narrow", "q_c", "1", "1 where operands have fewer than 16 bits",
         lambda c, n: c.of_precision(lambda p: float(p.compute_bits < 16))),
        ("tdp_w", "P_{tdp}", "J/s", "TDP", lambda c, n: c.of_gpu(lambda g: g.tdp_w)),
        ("bandwidth_bytes_per_s", r"\beta", "byte/s", "memory bandwidth",
         lambda c, n: c.of_gpu(lambda g: g.memory_bandwidth_bytes_per_s)),
        ("flop_per_s", r"\phi", "FLOP/s", "16-bit peak",
         lambda c, n: c.of_gpu(lambda g: g.bf16_flop_per_s)),
        ("link_bytes_per_s", r"\ell", "byte/s", "bandwidth between GPUs",
         lambda c, n: c.of_gpu(lambda g: g.link_bandwidth_bytes_per_s or PCIE_BYTES_PER_S)),
        ("prefill_roofline_s", "t_p", "s/request", "shortest prefill by the datasheet",
         lambda c, n: n.prefill_roofline_s),
        ("decode_roofline_s", "t_d", "s/request", "shortest decode by the datasheet",
         lambda c, n: n.decode_roofline_s),
        ("scale_j", "E_0", "J/request",
         "TDP of every GPU over the shortest prefill and decode, in quadrature",
         lambda c, n: n.gpus
         * c.of_gpu(lambda g: g.tdp_w)
         * np.hypot(n.prefill_roofline_s, n.decode_roofline_s)),
    )  # fmt: skip
    return {
        name: Quantity(name=name, symbol=symbol, unit=Unit.parse(unit), meaning=meaning, read=read)
        for name, symbol, unit, meaning, read in table
    }


@cache
def quantity_units() -> Mapping[str, Unit]:
    """Units of all quantities, by name."""
    return {name: quantity.unit for name, quantity in quantities().items()}


def quantity_columns(cases: Cases, names: Sequence[str] | None = None) -> dict[str, FloatArray]:
    """Compute quantities of cases.

    Parameters
    ----------
    cases : Cases
        n cases.
    names : sequence of str, optional
        Which; all by default.

    Returns
    -------
    dict of str to ndarray, shape (n,)

    Raises
    ------
    InputError
        If a name is no quantity.
    """
    known = quantities()
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise InputError(f"no quantity is called {unknown[0]!r}; there are {', '.join(known)}")
    counts = count(cases)
    return {name: known[name].read(cases, counts) for name in (known if names is None else names)}


# --------------------------------------------------------------------------------------- terms

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
    ("max(prefill_flop / flop_per_s, pass_weight_bytes / bandwidth_bytes_per_s)", "J/s",
     "GPU-seconds of prefill: the slower of computing and reading"),
    ("max(decode_flop / flop_per_s, (step_weight_bytes + cache_bytes) / bandwidth_bytes_per_s)",
     "J/s", "GPU-seconds of decode: the slower of computing and reading"),
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
    ("weight_only * step_weight_bytes", "J/byte", "widening weights while decoding"),
    ("weight_only * decode_flop", "J/FLOP", "computing tokens with widened weights"),
    ("weight_only * prefill_flop", "J/FLOP", "computing the prompt with widened weights"),
    ("narrow * prefill_flop", "J/FLOP", "narrow operands dearer than their peak says, prefill"),
    ("narrow * decode_flop", "J/FLOP", "narrow operands dearer than their peak says, decode"),
    ("narrow * gpus * kernels * steps", "J/kernel", "more kernels for narrow operands"),
    ("idle_gpus * (prefill_roofline_s + decode_roofline_s)", "J/s",
     "GPUs of the node that serve nothing"),
    ("idle_gpus * kernels * steps", "J/kernel", "idle GPUs during launches of decode"),
    ("idle_gpus * output_tokens", "J/token", "idle GPUs, for a token"),
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
    for form, how in _BATCH_FORMS:
        for work, unit, meaning in _BATCH_WORKS:
            yield Term.of(form.format(work), f"J/{unit}", f"{meaning}, {how}")


def _priced(term: Term) -> Term:
    unit = str(term.unit).removeprefix("J/")
    links = any("link" in name or "message" in name for name in term.expression.names)
    price = "tdp_w / link_bytes_per_s" if links else _PRICES.get(unit, "tdp_w")
    text = term.expression.text
    factor = f"({text})" if "+" in text.split("(")[0] else text
    expression = Expression(f"{factor} * {price}")
    own = expression.unit(quantity_units())
    assert own is not None
    return Term(expression=expression, unit=JOULES_PER_REQUEST / own, meaning=term.meaning)
