"""Closed-form expressions: text that can be evaluated, checked for units, measured and typeset.

An expression is written as Python writes arithmetic, over names of quantities, numbers and the
functions of :data:`FUNCTIONS`; nothing else gets past the parser.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from importlib import import_module
from typing import Any

import numpy as np

from energylens.cases import FloatArray
from energylens.discovery.units import PURE, Unit
from energylens.errors import InputError, MissingExtraError

#: Functions that expressions may call, and what computes them.
FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "max": np.maximum,
    "min": np.minimum,
    "log2": np.log2,
    "log": np.log,
    "exp": np.exp,
    "sqrt": np.sqrt,
    "abs": np.abs,
}
_SAME_UNIT = ("max", "min", "abs")  # the unit of the arguments is that of the value
_OPERATORS: Mapping[type[ast.operator], Callable[..., Any]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
    ast.Pow: np.power,
}
_PRECEDENCE: Mapping[type[ast.operator], int] = {
    ast.Add: 1,
    ast.Sub: 1,
    ast.Mult: 2,
    ast.Div: 2,
    ast.Pow: 3,
}


@dataclass(frozen=True)
class Expression:
    """One expression, as text.

    Raises
    ------
    InputError
        If the text is not an expression, or uses something besides numbers, names, arithmetic
        and the functions there are.
    """

    text: str

    def __post_init__(self) -> None:
        _ = self.tree

    @cached_property
    def tree(self) -> ast.expr:
        """The parsed text."""
        try:
            tree = ast.parse(self.text, mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise InputError(f"not an expression: {self.text!r}") from None
        for node in ast.walk(tree):
            self._check(node)
        return tree

    def _check(self, node: ast.AST) -> None:
        if isinstance(node, ast.Constant):
            allowed = _is_number(node) and math.isfinite(_number(node))
        elif isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else ""
            arguments = 2 if name in ("max", "min") else 1
            allowed = name in FUNCTIONS and len(node.args) == arguments and not node.keywords
        else:
            allowed = isinstance(
                node,
                (ast.BinOp, ast.UnaryOp, ast.Name, ast.Load, ast.USub, *_OPERATORS),
            )
        if not allowed:
            raise InputError(
                "an expression may hold numbers, names, + - * / ** and the functions "
                f"{', '.join(FUNCTIONS)}; given {self.text!r}"
            )

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Quantities in it, in alphabetical order."""
        found = {node.id for node in ast.walk(self.tree) if isinstance(node, ast.Name)}
        return tuple(sorted(found - FUNCTIONS.keys()))

    @cached_property
    def complexity(self) -> int:
        """Names, numbers, operators and functions in it, counted."""
        counted = (ast.BinOp, ast.UnaryOp, ast.Call, ast.Constant)
        nodes = sum(isinstance(node, counted) for node in ast.walk(self.tree))
        names = sum(
            isinstance(node, ast.Name) and node.id not in FUNCTIONS for node in ast.walk(self.tree)
        )
        return nodes + names

    @property
    def is_sum(self) -> bool:
        """Whether its last operation is an addition or subtraction."""
        tree = self.tree
        return isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Add | ast.Sub)

    def times(self, factor: str) -> str:
        """Text of this times ``factor``, whose text must not be a sum."""
        return f"({self.text}) * {factor}" if self.is_sum else f"{self.text} * {factor}"

    def evaluate(self, columns: Mapping[str, FloatArray]) -> FloatArray:
        """Compute the value for each row.

        Parameters
        ----------
        columns : mapping of str to ndarray, shape (n,)
            Quantities by name.

        Returns
        -------
        ndarray of float, shape (n,), or a number where no name occurs.

        Raises
        ------
        InputError
            If a name is no quantity.
        """

        def value(node: ast.expr) -> Any:
            match node:
                case ast.Constant():
                    return _number(node)
                case ast.Name():
                    if node.id not in columns:
                        raise InputError(
                            f"no quantity is called {node.id!r} (in {self.text!r}); "
                            f"there are {', '.join(columns)}"
                        )
                    return columns[node.id]
                case ast.UnaryOp():
                    return -value(node.operand)
                case ast.BinOp():
                    return _OPERATORS[type(node.op)](value(node.left), value(node.right))
                case ast.Call(func=ast.Name(id=name)):
                    return FUNCTIONS[name](*(value(argument) for argument in node.args))
            raise AssertionError(ast.dump(node))

        with np.errstate(all="ignore"):
            result: FloatArray = np.asarray(value(self.tree), dtype=np.float64)
        return result

    def unit(self, units: Mapping[str, Unit], *, free_constants: bool = False) -> Unit | None:
        """Work the unit out, and refuse what has none.

        Parameters
        ----------
        units : mapping of str to Unit
            Units of the quantities.
        free_constants : bool
            Whether numbers were fitted and so may carry any unit; otherwise they are pure.

        Returns
        -------
        Unit or None
            None where fitted numbers leave the unit open.

        Raises
        ------
        InputError
            If unlike units are added or compared, or a function or a power is taken of a
            quantity that has a unit.
        """

        def alike(parts: list[Unit | None], node: ast.expr, what: str) -> Unit | None:
            known = {part for part in parts if part is not None}
            if len(known) > 1:
                listed = " and ".join(sorted(map(str, known)))
                raise InputError(
                    f"{what} needs like units; {ast.unparse(node)!r} puts {listed} together"
                )
            return next(iter(known), None)

        def pure(part: Unit | None, node: ast.expr, what: str) -> None:
            if part is not None and part != PURE:
                raise InputError(f"{what} needs a pure number; {ast.unparse(node)!r} is in {part}")

        def of(node: ast.expr) -> Unit | None:
            match node:
                case ast.Constant():
                    return None if free_constants else PURE
                case ast.Name():
                    if node.id not in units:
                        raise InputError(f"no quantity is called {node.id!r} (in {self.text!r})")
                    return units[node.id]
                case ast.UnaryOp():
                    return of(node.operand)
                case ast.BinOp(op=ast.Add() | ast.Sub()):
                    return alike([of(node.left), of(node.right)], node, "a sum")
                case ast.BinOp(op=ast.Pow()):
                    base = of(node.left)
                    if not any(isinstance(part, ast.Name) for part in ast.walk(node.right)):
                        power = float(Expression(ast.unparse(node.right)).evaluate({}))
                        exact = Fraction(power).limit_denominator(1000)
                        return None if base is None else base**exact
                    pure(of(node.right), node.right, "an exponent")
                    pure(base, node.left, "the base of a power that varies")
                    return base
                case ast.BinOp():
                    left, right = of(node.left), of(node.right)
                    if left is None or right is None:
                        return None
                    return left * right if isinstance(node.op, ast.Mult) else left / right
                case ast.Call(func=ast.Name(id=name)):
                    inside = [of(argument) for argument in node.args]
                    if name in _SAME_UNIT:
                        return alike(inside, node, name)
                    if name == "sqrt":
                        return None if inside[0] is None else inside[0] ** Fraction(1, 2)
                    pure(inside[0], node.args[0], name)
                    return PURE
            raise AssertionError(ast.dump(node))

        return of(self.tree)

    def to_latex(self, symbols: Mapping[str, str]) -> str:
        """Typeset it, in the part of LaTeX that pages understand too.

        Parameters
        ----------
        symbols : mapping of str to str
            LaTeX of the quantities; a name without one is set upright.
        """

        def wrapped(node: ast.expr, least: int) -> str:
            text = latex(node)
            own = (
                _PRECEDENCE[type(node.op)]
                if isinstance(node, ast.BinOp) and not isinstance(node.op, ast.Div)
                else 1
                if isinstance(node, ast.UnaryOp)
                else 4
            )
            return rf"\left({text}\right)" if own < least else text

        def latex(node: ast.expr) -> str:
            match node:
                case ast.Constant():
                    return latex_number(_number(node))
                case ast.Name():
                    upright = node.id.replace("_", r"\ ")
                    return symbols.get(node.id, rf"\mathrm{{{upright}}}")
                case ast.UnaryOp():
                    return f"-{wrapped(node.operand, 2)}"
                case ast.BinOp(op=ast.Add()):
                    return f"{latex(node.left)} + {latex(node.right)}"
                case ast.BinOp(op=ast.Sub()):
                    return f"{latex(node.left)} - {wrapped(node.right, 2)}"
                case ast.BinOp(op=ast.Mult()):
                    return rf"{wrapped(node.left, 2)} \, {wrapped(node.right, 2)}"
                case ast.BinOp(op=ast.Div()):
                    return rf"\frac{{{latex(node.left)}}}{{{latex(node.right)}}}"
                case ast.BinOp():
                    return f"{wrapped(node.left, 4)}^{{{latex(node.right)}}}"
                case ast.Call(func=ast.Name(id=name)):
                    inside = ", ".join(latex(argument) for argument in node.args)
                    if name == "sqrt":
                        return rf"\sqrt{{{inside}}}"
                    word = {"log2": r"\log_2", "abs": r"\mathrm{abs}"}.get(name, rf"\{name}")
                    return rf"{word}\left({inside}\right)"
            raise AssertionError(ast.dump(node))

        return latex(self.tree)

    def to_sympy(self) -> Any:
        """Give it as a sympy expression over positive symbols.

        Raises
        ------
        MissingExtraError
            If sympy is not installed.
        """
        sympy = import_sympy()
        scope: dict[str, Any] = {name: sympy.Symbol(name, positive=True) for name in self.names} | {
            "max": sympy.Max,
            "min": sympy.Min,
            "log2": lambda x: sympy.log(x) / sympy.log(2),
            "log": sympy.log,
            "exp": sympy.exp,
            "sqrt": sympy.sqrt,
            "abs": sympy.Abs,
        }

        def build(node: ast.expr) -> Any:
            match node:
                case ast.Constant():
                    number = _number(node)
                    whole = number == int(number)
                    return sympy.Integer(int(number)) if whole else sympy.Float(number)
                case ast.Name():
                    return scope[node.id]
                case ast.UnaryOp():
                    return -build(node.operand)
                case ast.BinOp():
                    left, right = build(node.left), build(node.right)
                    match node.op:
                        case ast.Add():
                            return left + right
                        case ast.Sub():
                            return left - right
                        case ast.Mult():
                            return left * right
                        case ast.Div():
                            return left / right
                    return left**right
                case ast.Call(func=ast.Name(id=name)):
                    return scope[name](*(build(argument) for argument in node.args))
            raise AssertionError(ast.dump(node))

        return build(self.tree)

    def to_numpy(self) -> str:
        """Python source that computes it on numbers or arrays, with numpy as ``np``."""
        names = {"max": "np.maximum", "min": "np.minimum", "abs": "np.abs"}

        class Qualify(ast.NodeTransformer):
            def visit_Call(self, node: ast.Call) -> ast.expr:
                assert isinstance(node.func, ast.Name)
                name = names.get(node.func.id, f"np.{node.func.id}")
                arguments = [self.visit(argument) for argument in node.args]
                return ast.Call(ast.Name(name, ast.Load()), arguments, [])

        return ast.unparse(Qualify().visit(ast.parse(self.text, mode="eval").body))


def _is_number(node: ast.Constant) -> bool:
    return type(node.value) in (int, float)


def _number(node: ast.Constant) -> float:
    assert isinstance(node.value, int | float)
    return float(node.value)


def latex_number(value: float, digits: int = 3) -> str:
    r"""Typeset a number to some digits, as in ``1.23 \times 10^{-9}``."""
    mantissa, _, exponent = f"{value:.{digits}g}".partition("e")
    return rf"{mantissa} \times 10^{{{int(exponent)}}}" if exponent else mantissa


def import_sympy() -> Any:
    """Import sympy, or say which extra brings it."""
    try:
        return import_module("sympy")
    except ImportError:
        raise MissingExtraError("sympy", "discover", "a symbolic expression") from None
