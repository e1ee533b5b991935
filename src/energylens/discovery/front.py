"""What discovery returns: one Pareto front of expressions, whichever engine found them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cached_property
from types import NoneType
from typing import Any

import numpy as np

from energylens.cases import Cases, FloatArray
from energylens.discovery.expression import Expression, import_sympy, latex_number
from energylens.discovery.library import quantities, quantity_columns
from energylens.discovery.units import PURE
from energylens.errors import ArtefactError, EnergyLensError
from energylens.words import percent

FORMAT = "energylens-front"
VERSION = 1
UNSETTLED_RATIO = 0.5  # share of resamples below which a term is one guess among several
STAND_IN_RATIO = 0.2  # share of resamples from which a term that stands in for another is named


@dataclass(frozen=True, kw_only=True)
class FrontTerm:
    """One addend of an expression.

    Attributes
    ----------
    expression : Expression
        What the coefficient multiplies.
    coefficient : float
    unit : str
        Of the coefficient; ``"fitted"`` where numbers inside the expression were fitted too.
    meaning : str
    share_ratio : float
        Of the energy, mean over the rows.
    stability_ratio : float or None
        Share of the searches over resampled rows (and other seeds) that have the term in their
        expression of this size; None where none were run.
    stand_ins : mapping of str to float
        Terms that those searches have in its place, and in what share of them: they do nearly the
        same work on these rows. Most frequent first.
    """

    expression: Expression
    coefficient: float
    unit: str
    meaning: str = ""
    share_ratio: float = 0.0
    stability_ratio: float | None = None
    stand_ins: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class FrontPoint:
    """One expression of the front: a Predictor.

    Attributes
    ----------
    terms : tuple of FrontTerm
        Their sum is the energy per request in joules; largest share first.
    size : int
        What the engine counts: terms (own), nodes of the tree (operon, pysr).
    complexity : int
        Names, numbers, operators and functions, counted alike for every engine.
    criterion : float
        Extended Bayesian information criterion; lower is better, comparable within one engine.
    in_sample_mape_ratio : float
    held_out_mape_ratio, held_out_error_ratio : float
        Of rows whose group was left out of search and fit alike, and its standard error over
        groups. Groups are searched anew without each fold, so this judges the size, found and
        fitted honestly, rather than this one expression.
    top1_ratio, regret_mean_ratio : float or None
        Of choosing by those held-out predictions; None without a scenario.
    knee : bool
        Whether this is the expression to take: see ``Front``.
    """

    terms: tuple[FrontTerm, ...]
    size: int
    complexity: int
    criterion: float
    in_sample_mape_ratio: float
    held_out_mape_ratio: float
    held_out_error_ratio: float
    top1_ratio: float | None
    regret_mean_ratio: float | None
    knee: bool = False

    @cached_property
    def expression(self) -> Expression:
        """All of it as one expression in joules per request."""
        return Expression(
            " + ".join(_product(term.coefficient, term.expression) for term in self.terms)
        )

    def predict_energy_j(self, cases: Cases) -> FloatArray:
        """Predict joules per request, shape (n,); NaN where the sum is not above 0."""
        columns = quantity_columns(cases)
        total = np.zeros(len(cases))
        for term in self.terms:
            total += term.coefficient * term.expression.evaluate(columns)
        return np.where(np.isfinite(total) & (total > 0), total, np.nan)

    def to_latex(self, digits: int = 3) -> str:
        r"""Typeset as ``E = ...`` in joules per request, without any dollar signs."""
        return " ".join(self.latex_lines(digits))

    def latex_lines(self, digits: int = 3) -> tuple[str, ...]:
        """Typeset like :meth:`to_latex`, each term on a line of its own."""
        symbols = {name: quantity.symbol for name, quantity in quantities().items()}
        parts = []
        for term in self.terms:
            number = latex_number(abs(term.coefficient), digits)
            body = term.expression.to_latex(symbols)
            if term.expression.is_sum:
                body = rf"\left({body}\right)"
            sign = "-" if term.coefficient < 0 else "+"
            parts.append(rf"{sign} {number} \, {body}")
        return (f"E = {parts[0].removeprefix('+ ')}", *parts[1:])

    def to_sympy(self) -> Any:
        """Give it as a sympy expression over positive symbols named as the quantities.

        Raises
        ------
        MissingExtraError
            If sympy is not installed.
        """
        sympy = import_sympy()
        return sympy.Add(
            *(sympy.Float(t.coefficient) * t.expression.to_sympy() for t in self.terms)
        )

    def to_python(self) -> str:
        """Source of a function that computes it with numpy alone."""
        names = self.expression.names
        known = quantities()
        lines = ["import numpy as np", "", "", "def energy_per_request_j("]
        lines += ["    *,"] if names else []
        lines += [f"    {name}," for name in names]
        lines += ["):", '    """Joules per request, for numbers or numpy arrays.', ""]
        for name in names:
            unit = known[name].unit
            said = "a pure number" if unit == PURE else f"in {unit}"
            lines.append(f"    {name}: {known[name].meaning}, {said}")
        lines += ['    """', "    return ("]
        for place, term in enumerate(self.terms):
            sign = "+ " if place else ""
            value = f"{term.coefficient!r} * ({term.expression.to_numpy()})"
            lines.append(f"        {sign}{value}  # {term.unit}")
        return "\n".join([*lines, "    )", ""])

    def to_json(self) -> dict[str, Any]:
        """Names and values, the expression also as text and LaTeX."""
        terms = [
            {**vars(term), "expression": term.expression.text, "stand_ins": dict(term.stand_ins)}
            for term in self.terms
        ]
        held = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "terms"}
        return {
            **held,
            "expression": self.expression.text,
            "latex": self.to_latex(),
            "terms": terms,
        }


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A form that was not searched for, judged on the same folds for comparison."""

    name: str
    terms: int
    in_sample_mape_ratio: float
    held_out_mape_ratio: float
    top1_ratio: float | None
    regret_mean_ratio: float | None

    def to_json(self) -> dict[str, Any]:
        """Names and values."""
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True)
class Front:
    """Expressions, none of which is both simpler and better on held-out rows than another.

    The *knee* is the simplest expression that is no worse on held-out rows than the best by more
    than one standard error of the difference, over groups; or a simpler one still, if the
    information criterion takes it.

    Attributes
    ----------
    engine : str
    points : tuple of FrontPoint
        From simple to complex; one of them is the knee.
    reference : Reference or None
        The frozen law on the same folds.
    rows, candidates : int
        Rows seen, and terms or inputs that the search could choose from.
    groups : str
        What was left out together: ``llm``, ``workload`` or ``row``.
    folds, samples, seed : int
    choose : tuple of str
        The free knobs that Top-1 and regret are about.
    dataset_digest : str
    sources : mapping of str to int
    notes : tuple of str
        What a reader should know before believing it.
    """

    engine: str
    points: tuple[FrontPoint, ...]
    reference: Reference | None
    rows: int
    candidates: int
    groups: str
    folds: int
    samples: int
    seed: int
    choose: tuple[str, ...]
    dataset_digest: str
    sources: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def knee(self) -> FrontPoint:
        """The expression to take."""
        return next(point for point in self.points if point.knee)

    @property
    def cautions(self) -> tuple[str, ...]:
        """Sentences about terms of the knee that these rows do not settle; empty for none.

        A term that fewer than half of the resamples find, and terms that stand in for another in
        a fifth of them or more.
        """
        said = []
        for term in self.knee.terms:
            if term.stability_ratio is None:
                continue
            unsettled = term.stability_ratio < UNSETTLED_RATIO
            others = [
                f"{text!r} ({percent(share, 0)})"
                for text, share in term.stand_ins.items()
                if share >= STAND_IN_RATIO
            ]
            instead, found = " or ".join(others), percent(term.stability_ratio, 0)
            name = f"{term.expression.text!r}{f' ({term.meaning})' if term.meaning else ''}"
            if unsettled and others:
                said.append(
                    f"{name} is not settled: only {found} of the resamples have it, "
                    f"others have {instead} in its place. These do nearly the same work on "
                    "these rows: read nothing into which of them stands here."
                )
            elif unsettled:
                said.append(
                    f"{name} is not settled: only {found} of the resamples have it, "
                    "and no one term takes its place in the others: do not build on it."
                )
            elif others:
                said.append(f"{name} has a near equivalent: some resamples have {instead} instead.")
        return tuple(said)

    def legend(self) -> dict[str, tuple[str, str, str]]:
        """Symbol, unit and meaning of every quantity on the front, by name."""
        names = sorted({name for point in self.points for name in point.expression.names})
        known = quantities()
        return {n: (known[n].symbol, str(known[n].unit), known[n].meaning) for n in names}

    def to_json(self) -> dict[str, Any]:
        """One document, equal byte for byte for equal input, seed and engine."""
        return {
            "format": FORMAT,
            "version": VERSION,
            **vars(self),
            "choose": list(self.choose),
            "notes": list(self.notes),
            "sources": dict(self.sources),
            "cautions": list(self.cautions),
            "reference": None if self.reference is None else self.reference.to_json(),
            "points": [point.to_json() for point in self.points],
            "legend": {
                name: {"symbol": symbol, "unit": unit, "meaning": meaning}
                for name, (symbol, unit, meaning) in self.legend().items()
            },
        }

    @classmethod
    def from_json(cls, document: Any, name: str) -> Front:
        """Make a front of what :meth:`to_json` gave.

        Parameters
        ----------
        name : str
            What to call it in errors.

        Raises
        ------
        ArtefactError
            If it is no front, or from a newer energylens.
        """
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise ArtefactError(f"{name} must be a front written by energylens discover")
        if document.get("version") != VERSION:
            raise ArtefactError(
                f"{name} has version {document.get('version')!r} of the format and this "
                f"energylens reads {VERSION}: upgrade energylens, or discover again"
            )
        try:
            reference = document["reference"]
            points = tuple(_point(given) for given in document["points"])
            if sum(point.knee for point in points) != 1:
                raise ValueError("one point must be the knee")
            if not re.fullmatch("[0-9a-f]*", document["dataset_digest"]):
                raise ValueError("dataset_digest must be hexadecimal")
            return cls(
                points=points,
                reference=None if reference is None else Reference(**_typed(reference, Reference)),
                **_typed(document, cls, "points", "reference"),
            )
        except (KeyError, TypeError, ValueError, EnergyLensError) as error:
            raise ArtefactError(
                f"{name} is not a whole front ({type(error).__name__}: {error}); discover again"
            ) from None


def _point(given: Mapping[str, Any]) -> FrontPoint:
    terms = tuple(
        FrontTerm(
            expression=Expression(term["expression"]), **_typed(term, FrontTerm, "expression")
        )
        for term in given["terms"]
    )
    known = set(quantities())
    for term in terms:
        if set(term.expression.names) - known:
            raise ValueError(f"unknown quantities in {term.expression.text!r}")
    if not terms:
        raise ValueError("a point has no terms")
    return FrontPoint(terms=terms, **_typed(given, FrontPoint, "terms"))


#: What the annotations of the dataclasses above allow in JSON: types, and those of what is inside.
_KINDS: Mapping[str, tuple[tuple[type, ...], tuple[type, ...]]] = {
    "str": ((str,), ()),
    "bool": ((bool,), ()),
    "int": ((int,), ()),
    "float": ((int, float), ()),
    "float | None": ((int, float, NoneType), ()),
    "tuple[str, ...]": ((list,), (str,)),
    "Mapping[str, int]": ((dict,), (int,)),
    "Mapping[str, float]": ((dict,), (int, float)),
}


def _typed(given: Mapping[str, Any], made: type, *others: str) -> dict[str, Any]:
    """Take the fields of a dataclass except some, each of the type that it declares."""
    values = {}
    for declared in fields(made):
        if declared.name in others:
            continue
        if declared.name not in given and declared.default_factory is not MISSING:
            continue  # a front from before there was such a field
        value, annotation = given[declared.name], str(declared.type)
        kinds, inside = _KINDS[annotation]
        parts = list(value.values()) if isinstance(value, dict) else value
        if not _is(value, kinds) or (inside and not all(_is(part, inside) for part in parts)):
            raise ValueError(f"{declared.name} must be {annotation}, not {value!r}")
        if not all(part.isprintable() for part in _texts_of(value)):
            raise ValueError(f"{declared.name} must be printable text, not {value!r}")
        values[declared.name] = tuple(value) if isinstance(value, list) else value
    return values


def _texts_of(value: object) -> list[str]:
    """Every text of a field, the names of a mapping among them."""
    parts = list(value) if isinstance(value, list | dict) else [value]
    return [part for part in parts if isinstance(part, str)]


def _is(value: object, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))


def _product(coefficient: float, expression: Expression) -> str:
    text = f"({expression.text})" if expression.is_sum else expression.text
    return f"{coefficient!r} * {text}"
