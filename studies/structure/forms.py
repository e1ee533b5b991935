"""The forms compared: the law, the law less each term, and what was tried instead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import nnls

from energylens.cases import Cases, FloatArray
from energylens.counts import Counts, count, weight_bytes
from energylens.formula import NAMES, OVERLAPS, SPREADS, STRUCTURE, TERMS, datasheet

PLACE = {name: k for k, name in enumerate(NAMES)}
PRIOR_ROW_RATIO = 0.1
STEPS = 12


@dataclass(frozen=True)
class Form:
    """A structure: how to change the law's columns, and how its terms combine.

    ``columns`` gets the joules per term at theta = 1, the cases, their counts and the
    datasheet's expectations, and returns columns of its own (more or fewer). ``power`` is the
    exponent of the overlap: 1 adds, 2 is the root of squares, infinity the larger of two.
    """

    name: str
    what: str
    columns: Callable[[FloatArray, Cases, Counts, FloatArray], FloatArray] | None = None
    power: float = 2.0
    pairs: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = tuple(
        ((a,), (b,)) for a, b in OVERLAPS
    )
    observed_batch: bool = True

    def design(self, cases: Cases) -> FloatArray:
        """Joules per request and term at theta = 1."""
        counts = count(cases)
        expected = datasheet(cases.gpus)[cases.gpu_index]
        x = np.zeros((len(cases), len(TERMS)))
        for k, term in enumerate(TERMS):
            for read in (term.prefill, term.decode):
                if read is not None:
                    x[:, k] += read(counts) * expected[:, k]
        return x if self.columns is None else self.columns(x, cases, counts, expected)

    def slopes(self, x: FloatArray, theta: FloatArray) -> FloatArray:
        """Derivatives of the energy by each coefficient."""
        slope = x.copy()
        for first, second in self.pairs:
            a, b = (x[:, list(g)] @ theta[list(g)] for g in (first, second))
            root = (a**self.power + b**self.power + 1e-300) ** (1.0 / self.power)
            for group, value in ((first, a), (second, b)):
                slope[:, list(group)] *= ((value / np.maximum(root, 1e-30)) ** (self.power - 1.0))[
                    :, None
                ]
        return slope

    def fit(self, x: FloatArray, y: FloatArray) -> FloatArray:
        """Fit as the law is fitted: relative error, non-negative, the datasheet's weak voice."""
        width = x.shape[1]
        spread = np.concatenate([SPREADS, np.ones(max(width - len(SPREADS), 0))])[:width]
        theta, variance = np.ones(width), PRIOR_ROW_RATIO**2
        for _ in range(STEPS):
            slope = self.slopes(x, theta) / y[:, None]
            pull = np.sqrt(variance) / spread
            full, _ = nnls(
                np.vstack([slope, np.diag(pull)]),
                np.concatenate([np.ones(len(y)), pull]),
                maxiter=200 * width,
            )
            theta = 0.5 * (theta + full)
            residual = self.predict(x, theta) / y - 1.0
            squares = residual @ residual + PRIOR_ROW_RATIO**2
            variance = max(float(squares) / (max(len(y) - 8, 1) + 1.0), 1e-5)
        return theta

    def predict(self, x: FloatArray, theta: FloatArray) -> FloatArray:
        """Joules per request."""
        joules: FloatArray = self.slopes(x, theta) @ theta
        return joules


Change = Callable[[FloatArray, Cases, Counts, FloatArray], FloatArray]


def _without(name: str) -> Change:
    def change(x: FloatArray, *_: object) -> FloatArray:
        x = x.copy()
        x[:, PLACE[name]] = 0.0
        return x

    return change


def _instead(name: str, column: Change) -> Change:
    def change(x: FloatArray, cases: Cases, counts: Counts, expected: FloatArray) -> FloatArray:
        x = x.copy()
        x[:, PLACE[name]] = column(x, cases, counts, expected)
        return x

    return change


def _besides(column: Change) -> Change:
    return lambda x, cases, counts, expected: np.column_stack(
        [x, column(x, cases, counts, expected)]
    )


def _launch(
    x: FloatArray, cases: Cases, counts: Counts, expected: FloatArray, per: object
) -> FloatArray:
    """GPUs waiting in each step, by another count than kernels."""
    unit = expected[:, PLACE["decode_launch"]]
    return np.asarray(counts.gpus * per * counts.steps * unit)  # type: ignore[operator]


def _experts_read(cases: Cases, counts: Counts) -> tuple[FloatArray, FloatArray]:
    """Weight bytes of the decode steps: those always read, and those of experts."""
    always = np.array([[weight_bytes(m, p)[0] for p in cases.precisions] for m in cases.llms])[
        cases.llm_index, cases.precision_index
    ]
    dense = always * cases.data_parallel * cases.pipeline_parallel * counts.steps
    return dense, np.maximum(counts.step_weight_bytes - dense, 0.0)


def _all_experts(x: FloatArray, cases: Cases, counts: Counts, expected: FloatArray) -> FloatArray:
    dense, _ = _experts_read(cases, counts)
    every = np.array([[weight_bytes(m, p)[1] for p in cases.precisions] for m in cases.llms])[
        cases.llm_index, cases.precision_index
    ]
    copies = np.where(cases.expert_parallel > 1, 1.0, cases.data_parallel)
    read = dense + every * copies * cases.pipeline_parallel * counts.steps
    return read * expected[:, PLACE["decode_weights"]]


def _imbalance(x: FloatArray, cases: Cases, counts: Counts, expected: FloatArray) -> FloatArray:
    """Experts read by the busiest GPU, times the GPUs: the others wait for it."""
    dense, routed = _experts_read(cases, counts)
    experts = cases.of_llm(lambda m: float(m.experts.experts) if m.experts else 1.0)
    share = cases.of_llm(lambda m: m.expert_share)
    spread = cases.expert_parallel
    touched = 1.0 - (1.0 - np.minimum(share, 1 - 1e-12)) ** counts.running
    each = experts / spread
    deviation = np.sqrt(each * touched * (1.0 - touched) * 2.0 * np.log(np.maximum(spread, 1.0)))
    busiest = np.minimum(each * touched + deviation, each)
    factor = np.where((spread > 1) & (share > 0), busiest / np.maximum(each * touched, 1e-9), 1.0)
    return (dense + routed * factor) * expected[:, PLACE["decode_weights"]]


def _reductions(cases: Cases) -> FloatArray:
    def of(m: object) -> float:
        parts = (getattr(m, n) for n in ("attention", "state_space", "feed_forward", "experts"))
        return float(sum(part.layers for part in parts if part))

    return cases.of_llm(of)


def _link_latency(x: FloatArray, cases: Cases, counts: Counts, expected: FloatArray) -> FloatArray:
    rounds = counts.gpus * np.log2(cases.tensor_parallel) * _reductions(cases)
    return rounds * (counts.steps + counts.passes) * expected[:, PLACE["decode_launch"]]


def _layers(cases: Cases) -> FloatArray:
    return cases.of_llm(lambda m: 6.0 * m.layers)


FORMS: tuple[Form, ...] = (
    Form(STRUCTURE, "the law"),
    *(Form(f"without {name}", f"the law less {name}", _without(name)) for name in NAMES),
    Form("sum", "reading and multiplying add", power=1.0),
    Form("overlap 1.5", "a rounder corner", power=1.5),
    Form("overlap 3", "a sharper corner", power=3.0),
    Form(
        "cache overlaps too",
        "weights and cache against multiplying",
        pairs=(((PLACE["decode_weights"], PLACE["decode_cache"]), (PLACE["decode_compute"],)),),
    ),
    Form(
        "launch per step",
        "GPUs wait once a step, however many kernels it has",
        _instead("decode_launch", lambda x, c, n, d: _launch(x, c, n, d, 100.0)),
    ),
    Form(
        "launch per layer",
        "all kinds of layers launch alike",
        _instead("decode_launch", lambda x, c, n, d: _launch(x, c, n, d, _layers(c))),
    ),
    Form(
        "all experts read",
        "every step reads every expert",
        _instead("decode_weights", _all_experts),
    ),
    Form(
        "busiest expert GPU",
        "the fullest GPU sets the pace",
        _instead("decode_weights", _imbalance),
    ),
    Form(
        "link latency",
        "all-reduce by rounds, not bytes",
        _instead("tensor_parallel", _link_latency),
    ),
    Form(
        "link latency and bytes",
        "all-reduce by rounds and bytes together",
        _instead(
            "tensor_parallel",
            lambda x, c, n, d: x[:, PLACE["tensor_parallel"]] + _link_latency(x, c, n, d),
        ),
    ),
    Form(
        "vision by waiting",
        "GPUs wait for images and frames to be prepared",
        _instead(
            "vision",
            lambda x, c, n, d: 0.1 * n.gpus * c.vision_tokens * d[:, PLACE["decode_sequence"]],
        ),
    ),
    Form(
        "+ experts apart",
        "a thirteenth coefficient for bytes of experts",
        _besides(lambda x, c, n, d: _experts_read(c, n)[1] * d[:, PLACE["decode_weights"]]),
    ),
    Form(
        "+ state apart",
        "a thirteenth for state-space layers",
        _besides(
            lambda x, c, n, d: _launch(
                x,
                c,
                n,
                d,
                c.of_llm(lambda m: 10.0 * m.state_space.layers if m.state_space else 0.0),
            )
        ),
    ),
)


def variants() -> dict[str, Form]:
    """All forms by name."""
    return {form.name: replace(form) for form in FORMS}
