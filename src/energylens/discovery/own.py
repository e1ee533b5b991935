"""Our own engine: best subsets of the physical library, by relative error, non-negative."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from energylens.cases import FloatArray
from energylens.discovery.driver import Found, Problem
from energylens.discovery.library import Term, physical_terms
from energylens.discovery.search import Gram, Subset, best_subsets, distinct_columns
from energylens.errors import UsageError

LARGEST = 14
FULL_WIDTH, FOLD_WIDTH = 8, 4  # subsets of each size carried along, on all rows and in folds
COMPOSITE = {"step_weight_bytes": 2}  # names that stand for a sum, and what that adds


@dataclass(frozen=True, kw_only=True)
class OwnEngine:
    """Search among physical terms.

    Parameters
    ----------
    terms : sequence of Term, optional
        The library; :func:`physical_terms` by default, priced by datasheet for several GPU types.
    largest : int
        Terms of the largest expression.
    rival_penalty, node_penalty : float
        Of the criterion ``n log(loss / n) + k log n + 2 rival_penalty log C(p, k) + node_penalty
        (nodes - k)``: k terms out of p on n rows, with all their nodes.
    """

    terms: Sequence[Term] | None = None
    largest: int = LARGEST
    rival_penalty: float = 1.0
    node_penalty: float = 0.5
    name: str = "own"
    fitted_constants: bool = False

    def __post_init__(self) -> None:
        if self.largest < 1:
            raise UsageError(f"largest must be 1 or more, not {self.largest}")
        for term in self.terms or ():
            term.check()

    def library(self, problem: Problem) -> tuple[Term, ...]:
        """Terms to choose from."""
        if self.terms is not None:
            return tuple(self.terms)
        return physical_terms(by_datasheet=problem.by_datasheet)

    def candidates(self, problem: Problem) -> int:
        """Count the terms that these rows can tell apart."""
        return len(self._columns(problem)[1])

    def _columns(self, problem: Problem) -> tuple[FloatArray, list[Term]]:
        terms = self.library(problem)
        x = np.column_stack(
            [
                np.broadcast_to(t.expression.evaluate(problem.columns), problem.energy_j.shape)
                for t in terms
            ]
        )
        a = x / problem.energy_j[:, None] * np.sqrt(problem.weights)[:, None]
        keep = distinct_columns(a, range(len(terms)))
        return a[:, keep], [terms[j] for j in keep]

    def search(self, problem: Problem, *, seed: int, largest: int | None) -> list[Found]:
        """Find the best subset of each size; chance plays no part."""
        a, terms = self._columns(problem)
        if not terms:
            return []
        root = np.sqrt(problem.weights)
        nodes = np.array([_nodes(term) for term in terms], dtype=np.float64)
        gram = Gram.of(a, root, self.node_penalty * (nodes - 1.0))
        width = FULL_WIDTH if largest is None else FOLD_WIDTH
        limit = min(self.largest, largest or self.largest, len(problem.energy_j) // 2)
        path = best_subsets(gram, limit, width=width)
        return [self._found(a, root, terms, gram, subset) for subset, _ in path]

    def _found(
        self, a: FloatArray, root: FloatArray, terms: list[Term], gram: Gram, subset: Subset
    ) -> Found:
        from scipy.optimize import nnls

        chosen = a[:, subset]
        size = np.sqrt((chosen**2).sum(axis=0))
        solution, norm = nnls(chosen / size, root, maxiter=100 * len(size))
        loss, n, k, p = float(norm) ** 2, gram.rows, len(subset), len(terms)
        score = gram.scores(np.array([subset]), np.array([loss]))[0]
        texts = tuple(terms[j].expression.text for j in subset)
        return Found(
            terms=tuple(
                (float(c), terms[j].expression)
                for c, j in zip(solution / size, subset, strict=True)
            ),
            size=k,
            loss=loss,
            criterion=float(score + k * np.log(n) + 2.0 * self.rival_penalty * _log_choose(p, k)),
            meanings=tuple(terms[j].meaning for j in subset),
            skeletons=texts,
        )


def _nodes(term: Term) -> int:
    return term.expression.complexity + sum(COMPOSITE.get(n, 0) for n in term.expression.names)


def _log_choose(p: int, k: int) -> float:
    from scipy.special import gammaln

    return float(gammaln(p + 1) - gammaln(k + 1) - gammaln(p - k + 1))
