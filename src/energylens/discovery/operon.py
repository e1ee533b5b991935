"""Second engine: pyoperon's genetic programming, error against length, constants optimised."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from energylens.discovery.engines import Found, Problem
from energylens.discovery.expression import import_sympy
from energylens.discovery.symbolic import Inputs, found, pruned
from energylens.errors import FitError, MissingExtraError

ATTEMPTS = 3
NEXT_SEED = 1_000_003
ROW_UNCERTAINTY_RATIO = 0.05  # of joules whose rows state none


@dataclass(frozen=True, kw_only=True)
class OperonEngine:
    """Search with pyoperon (Burlacu, Kronberger and Kommenda, 2020; extra ``discover``).

    NSGA-II on the Gaussian likelihood of the relative error and the length of the tree.

    Parameters
    ----------
    evaluations : int
        Trees tried in one search; a number of evaluations, not of seconds, keeps a seed's result
        the same on any machine.
    largest : int
        Nodes of the largest tree.
    symbols : str
        Functions allowed, as pyoperon names them; ``fmax`` and ``log`` are others worth a try.
    """

    evaluations: int = 200_000
    population: int = 500
    largest: int = 30
    symbols: str = "add,sub,mul,div,constant,variable"
    name: str = "operon"
    fitted_constants: bool = True
    folds: int = 4
    samples: int = 4

    def candidates(self, problem: Problem) -> int:
        """Count the inputs."""
        return len(Inputs.of(problem).texts)

    def search(self, problem: Problem, *, seed: int, largest: int | None) -> list[Found]:
        """Find a Pareto front of expressions."""
        regressor = _regressor()
        import_sympy()
        inputs = Inputs.of(problem)
        # Rows that count more are surer; the level matters only for pyoperon's own criteria.
        sigma = ROW_UNCERTAINTY_RATIO * inputs.target / np.sqrt(problem.weights)
        names = [f"x{i + 1}" for i in range(inputs.matrix.shape[1])]
        for attempt in range(ATTEMPTS):
            search = regressor(
                allowed_symbols=self.symbols,
                objectives=["gauss", "length"],
                optimizer_iterations=5,
                population_size=self.population,
                pool_size=self.population,
                generations=1_000_000,
                max_evaluations=self.evaluations,
                max_length=min(self.largest, largest or self.largest),
                uncertainty=sigma.tolist(),
                add_model_intercept_term=False,
                random_state=seed + attempt * NEXT_SEED,
                n_threads=1,
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # overflow in trees that are thrown away
                try:
                    search.fit(inputs.matrix, inputs.target)
                except ValueError:  # a tree of its front is not finite on the rows
                    continue
                formulas = [
                    (search.get_model_string(tree["tree"], 9, names), int(tree["length"]))
                    for tree in search.pareto_front_
                ]
            break
        else:
            raise FitError(
                f"pyoperon gave formulas that are not finite on these rows, {ATTEMPTS} times; "
                "allow fewer functions or try another seed"
            )
        every = [found(_translated(text), size, inputs, problem) for text, size in formulas]
        return pruned([item for item in every if item is not None])


def _translated(formula: str) -> str:
    """Pyoperon's infix as Python's."""
    return formula.replace("^", "**").replace("fmax(", "max(").replace("fmin(", "min(")


def _regressor() -> Any:
    try:
        return import_module("pyoperon.sklearn").SymbolicRegressor
    except ImportError:
        raise MissingExtraError("pyoperon", "discover", "the operon engine") from None
