"""What genetic engines share: scaled inputs, and turning their formulas into sums of terms.

Energy spans four orders of magnitude and such engines minimise squared errors, so both sides are
divided by :data:`SCALE`, a datasheet energy of each case: the target is then a number near 1, the
inputs are pure numbers, and squared error is nearly relative error. The scale adds prefill and
decode in quadrature: were it their plain sum, it would be a sum of the inputs, and a constant
could stand for any one of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from energylens.cases import FloatArray
from energylens.discovery.engines import Found, Problem, fitted
from energylens.discovery.expression import Expression, import_sympy
from energylens.discovery.subsets import PERFECT

SCALE = "scale_j"
WORKS = (
    "passes * gpus",
    "kernels * passes * gpus",
    "pass_weight_bytes",
    "prefill_flop",
    "vision_flop",
    "prefill_link_bytes",
    "steps * gpus",
    "kernels * steps * gpus",
    "step_weight_bytes",
    "decode_flop",
    "cache_bytes",
    "decode_link_bytes",
    "output_tokens * gpus",
    "output_tokens * routing",
    "idle_gpus * (prefill_roofline_s + decode_roofline_s)",
)
DEGREES = ("tensor_parallel", "log2(tensor_parallel)", "pipeline_parallel - 1", "running")
OPERATORS = 8
FITTED = "#"  # stands for a fitted number in a skeleton
SMALLEST_SHARE = 1e-4  # of the energy of any row, below which an addend is rounding
MOST_TERMS = 60  # addends beyond which an expanded formula is not worth reading
SAME_INPUT = 1e-12


@dataclass(frozen=True, kw_only=True, eq=False)
class Inputs:
    """Scaled inputs x1, x2, ..., what each is, and the scaled target.

    Attributes
    ----------
    matrix : ndarray, shape (n, k)
    texts : tuple of str
        Each input as an expression over quantities.
    means : tuple of float
        What each was divided by.
    target : ndarray, shape (n,)
    """

    matrix: FloatArray
    texts: tuple[str, ...]
    means: tuple[float, ...]
    target: FloatArray

    @classmethod
    def of(cls, problem: Problem) -> Inputs:
        """Take what varies over the rows of a problem, each thing once."""
        columns: list[FloatArray] = []
        texts, means = [], []
        scale = problem.columns[SCALE]
        for text in (*WORKS, *DEGREES):
            column = Expression(text).evaluate(problem.columns)
            if text not in DEGREES:
                column = column / scale
                text = f"({text}) / {SCALE}"
            mean = float(column.mean())
            if mean == 0 or not np.isfinite(mean):
                continue
            column = column / mean
            if column.std() < SAME_INPUT or any(np.allclose(column, c) for c in columns):
                continue
            columns.append(column)
            texts.append(text)
            means.append(mean)
        return cls(
            matrix=np.column_stack(columns),
            texts=tuple(texts),
            means=tuple(means),
            target=problem.energy_j / scale,
        )


def found(formula: str, size: int, inputs: Inputs, problem: Problem) -> Found | None:
    """Expand a formula over x1, x2, ... into addends in joules, and fit their factors again.

    Parameters
    ----------
    formula : str
        As :class:`Expression` has it, over the names of the inputs.
    size : int
        What the engine counts.

    Returns
    -------
    Found or None
        None where the formula has no finite value on the rows, or too many addends to read.
    """
    sympy = import_sympy()
    values = {
        sympy.Symbol(f"x{i + 1}", positive=True): Expression(text).to_sympy() / mean
        for i, (text, mean) in enumerate(zip(inputs.texts, inputs.means, strict=True))
    }
    scaled = sympy.expand(Expression(formula).to_sympy()).xreplace(values)
    addends = sympy.Add.make_args(sympy.expand(sympy.Symbol(SCALE, positive=True) * scaled))
    if len(addends) > MOST_TERMS or not all(addend.is_real for addend in addends):
        return None
    factors: dict[str, float] = {}
    for addend in addends:
        factor, body = addend.as_coeff_Mul()
        text = as_text(body)
        factors[text] = factors.get(text, 0.0) + float(factor)
    expressions = [Expression(text) for text in factors]
    a = problem.relative(expressions)
    if not np.isfinite(a).all():
        return None
    largest = np.abs(a * np.array(list(factors.values()))).max(axis=0)
    kept = np.flatnonzero(largest > SMALLEST_SHARE)
    if len(kept) == 0:
        return None
    solution, loss = fitted(a[:, kept], problem.target)
    skeletons = tuple(skeleton(expressions[k]) for k in kept)
    n = len(problem.energy_j)
    numbers = len(kept) + sum(text.count(FITTED) for text in skeletons)
    return Found(
        terms=tuple((float(c), expressions[k]) for c, k in zip(solution, kept, strict=True)),
        size=size,
        loss=loss,
        # A tree of so many nodes is one of about (inputs + operators) ** size: half of the nats
        # that name it, because many trees are the same formula.
        criterion=n * math.log(max(loss / n, PERFECT))
        + numbers * math.log(n)
        + size * math.log(len(inputs.texts) + OPERATORS),
        skeletons=skeletons,
    )


def skeleton(expression: Expression) -> str:
    """The expression with every fitted number replaced by ``#``."""
    return re.sub(r"\d+\.\d*(?:[eE][+-]?\d+)?|\d+[eE][+-]?\d+", FITTED, expression.text)


def pruned(path: Sequence[Found]) -> list[Found]:
    """Smallest first, and each better than all smaller ones."""
    kept: list[Found] = []
    for item in sorted(path, key=lambda f: (f.size, f.loss)):
        if not kept or (item.loss < kept[-1].loss and item.size > kept[-1].size):
            kept.append(item)
    return kept


def as_text(node: Any) -> str:
    """Write a sympy expression the way :class:`Expression` reads it."""
    sympy = import_sympy()
    if isinstance(node, sympy.Max | sympy.Min):
        word = "max" if isinstance(node, sympy.Max) else "min"
        first, *rest = sorted(node.args, key=sympy.default_sort_key)
        text = as_text(first)
        for other in rest:
            text = f"{word}({text}, {as_text(other)})"
        return text
    if node.is_Add:
        return " + ".join(f"({as_text(part)})" for part in node.as_ordered_terms())
    if node.is_Mul:
        above, below = [], []
        for part in node.as_ordered_factors():
            if part.is_Pow and part.exp.is_number and part.exp.is_negative:
                below.append(_factor(1 / part))
            else:
                above.append(_factor(part))
        text = " * ".join(above) or "1"
        return text + "".join(f" / {part}" for part in below)
    if node.is_Pow:
        if node.exp == -1:
            return f"1 / {_factor(node.base)}"
        return f"{_factor(node.base)} ** {_factor(node.exp)}"
    if node.is_Function:
        word = {"Abs": "abs"}.get(type(node).__name__, type(node).__name__)
        return f"{word}({as_text(node.args[0])})"
    if node.is_Symbol:
        return str(node)
    if node.is_Integer:
        return str(int(node))
    return repr(float(node))


def _factor(node: Any) -> str:
    text = as_text(node)
    return text if node.is_Symbol or node.is_Function or node.is_Integer else f"({text})"
