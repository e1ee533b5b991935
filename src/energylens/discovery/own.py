"""Our own engine: best subsets of the physical library, by relative error, non-negative."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from energylens.cases import FloatArray
from energylens.discovery.engines import Found, Problem, fitted
from energylens.discovery.library import Term, physical_terms
from energylens.discovery.subsets import Gram, Subset, best_subsets, distinct_columns
from energylens.errors import UsageError

THOROUGH_WIDTH, QUICK_WIDTH = 8, 4  # subsets of each size carried along: all rows, and folds
BEYOND = 2  # sizes shown beyond the one that the criterion takes
COMPOSITE = {"step_weight_bytes": 2}  # names that stand for a sum, and the nodes that it hides


@dataclass(frozen=True, kw_only=True)
class OwnEngine:
    """Search among physical terms: forward, backward and by swaps, for every size.

    Parameters
    ----------
    terms : sequence of Term, optional
        The library; :func:`physical_terms` by default, priced by datasheet for several GPU types.
    largest : int
        Terms of the largest expression.
    rival_penalty, node_penalty : float
        Of the criterion ``n log(loss / n) + k log n + 2 rival_penalty log C(p, k) + node_penalty
        (nodes - k)`` for k terms out of p on n rows: the extended BIC of Chen and Chen (2008),
        plus a prior for short terms that decides where rows cannot.
    """

    terms: Sequence[Term] | None = None
    largest: int = 14
    rival_penalty: float = 1.0
    node_penalty: float = 0.5
    name: str = "own"
    fitted_constants: bool = False
    folds: int = 8
    samples: int = 40

    def __post_init__(self) -> None:
        if self.largest < 1:
            raise UsageError(f"largest must be 1 or more, not {self.largest}")
        for term in self.terms or ():
            term.check()

    def candidates(self, problem: Problem) -> int:
        """Count the terms that these rows can tell apart."""
        return len(self._columns(problem)[1])

    def _columns(self, problem: Problem) -> tuple[FloatArray, list[Term]]:
        """Terms present in the rows and distinct on them, weighted and over measured joules."""
        terms = self.terms
        if terms is None:
            terms = physical_terms(by_datasheet=problem.by_datasheet)
        a = problem.relative([term.expression for term in terms])
        keep = distinct_columns(a)
        return a[:, keep], [terms[j] for j in keep]

    def search(self, problem: Problem, *, seed: int, largest: int | None) -> list[Found]:
        """Find the best subset of each size; chance plays no part."""
        del seed
        a, terms = self._columns(problem)
        nodes = np.array([_nodes(term) for term in terms], dtype=np.float64)
        gram = Gram.of(a, problem.target, self.node_penalty * (nodes - 1.0))
        width = THOROUGH_WIDTH if largest is None else QUICK_WIDTH
        limit = min(self.largest, largest or self.largest, len(problem.energy_j) // 2)
        subsets = best_subsets(gram, limit, width=width)
        path = [self._found(a, problem, terms, gram, subset) for subset in subsets]
        if largest is None and path:
            # What the criterion finds much too large is never the knee.
            best = min(range(len(path)), key=lambda i: path[i].criterion)
            path = path[: best + 1 + BEYOND]
        return path

    def _found(
        self, a: FloatArray, problem: Problem, terms: list[Term], gram: Gram, subset: Subset
    ) -> Found:
        # The subset was found with every coefficient above 0; rounding may leave one at 0.
        solution, loss = fitted(a[:, subset], problem.target)
        n, k, p = gram.rows, len(subset), len(terms)
        chosen = [terms[j] for j in subset]
        score = float(gram.scores(np.array([subset]), np.array([loss]))[0])
        rivals = math.lgamma(p + 1) - math.lgamma(k + 1) - math.lgamma(p - k + 1)
        return Found(
            terms=tuple(
                (max(float(c), 0.0), term.expression)
                for c, term in zip(solution, chosen, strict=True)
            ),
            size=k,
            loss=loss,
            criterion=score + k * math.log(n) + 2.0 * self.rival_penalty * rivals,
            meanings=tuple(term.meaning for term in chosen),
            skeletons=tuple(term.expression.text for term in chosen),
        )


def _nodes(term: Term) -> int:
    return term.expression.complexity + sum(COMPOSITE.get(n, 0) for n in term.expression.names)
