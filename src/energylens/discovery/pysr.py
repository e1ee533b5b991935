"""Third engine: PySR, where a user has Julia."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from energylens.discovery.engines import Found, Problem
from energylens.discovery.expression import import_sympy
from energylens.discovery.symbolic import Inputs, found, pruned
from energylens.errors import MissingExtraError


@dataclass(frozen=True, kw_only=True)
class PysrEngine:
    """Search with PySR (Cranmer, arXiv 2305.01582; extra ``pysr``, which downloads Julia).

    Squared relative error against complexity, in one process, so that a seed decides.

    Parameters
    ----------
    largest : int
        Complexity of the largest expression.
    """

    iterations: int = 100
    populations: int = 15
    largest: int = 30
    name: str = "pysr"
    fitted_constants: bool = True
    folds: int = 3
    samples: int = 2

    def candidates(self, problem: Problem) -> int:
        """Count the inputs."""
        return len(Inputs.of(problem).texts)

    def search(self, problem: Problem, *, seed: int, largest: int | None) -> list[Found]:
        """Find a Pareto front of expressions."""
        regressor = _regressor()
        import_sympy()
        inputs = Inputs.of(problem)
        search = regressor(
            niterations=self.iterations,
            populations=self.populations,
            maxsize=max(min(self.largest, largest or self.largest), 7),  # PySR takes no less
            binary_operators=["+", "-", "*", "/", "max"],
            unary_operators=["log"],
            deterministic=True,
            parallelism="serial",
            random_state=seed,
            progress=False,
            verbosity=0,
            temp_equation_file=True,
        )
        search.fit(
            inputs.matrix,
            inputs.target,
            weights=problem.weights / np.square(inputs.target),
            variable_names=[f"x{i + 1}" for i in range(inputs.matrix.shape[1])],
        )
        table = search.equations_
        every = [
            found(str(text).replace("^", "**"), int(size), inputs, problem)
            for text, size in zip(table["equation"], table["complexity"], strict=True)
        ]
        return pruned([item for item in every if item is not None])


def _regressor() -> Any:
    try:
        return import_module("pysr").PySRRegressor
    except ImportError:
        raise MissingExtraError(
            "pysr", "pysr", "the pysr engine (it also downloads Julia)"
        ) from None
