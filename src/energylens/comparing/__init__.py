"""What changed between two tables, two models, or a table and what a model said of it.

Rows are matched by what was served and how; what the two sides share no value of (GPU types,
engine versions, number formats) is what they are compared across. A change counts where it is
beyond the noise: the spread of repeats, or what the fits left uncertain. All tests of one
comparison together are wrong with a probability of 5 % at most (Holm's procedure).
"""

from collections.abc import Sequence

import numpy as np

from energylens.comparing.grids import grids
from energylens.comparing.matching import (
    LEAST_CHANGE_RATIO,
    Sides,
    keys,
    match,
    means,
    noise_of,
    sum_parts,
)
from energylens.comparing.result import CHECKS, Change, Comparison
from energylens.comparing.verdict import decide
from energylens.dataset import Dataset
from energylens.errors import UsageError
from energylens.model import NORMAL_80, EnergyModel

__all__ = [
    "CHECKS",
    "Change",
    "Comparison",
    "compare_model_with_table",
    "compare_models",
    "compare_tables",
]


def compare_tables(
    a: Dataset,
    b: Dataset,
    names: tuple[str, str],
    *,
    choose: Sequence[str] = ("parallelism", "batch_size"),
    noise_ratio: float | None = None,
    least_ratio: float = LEAST_CHANGE_RATIO,
) -> Comparison:
    """Compare two tables of measured rows.

    Parameters
    ----------
    names : (str, str)
        What they are called.
    choose : sequence of str
        Knobs whose best value may change (names of :data:`energylens.dataset.KNOBS`).
    noise_ratio : float, optional
        Spread of one run, as a standard deviation over the mean; by default that of the repeats
        in both tables, and where there are none :data:`ASSUMED_NOISE_RATIO`.
    least_ratio : float
        A smaller change is none.

    Raises
    ------
    UsageError
        If no case of A is in B.
    """
    return decide(match(a, b, noise_ratio), names, choose, least_ratio)


def compare_models(
    a: EnergyModel,
    b: EnergyModel,
    names: tuple[str, str],
    *,
    llms: Sequence[str] = (),
    gpus: Sequence[str] = (),
    input_tokens: float | None = None,
    output_tokens: float | None = None,
    choose: Sequence[str] = ("parallelism", "batch_size"),
    least_ratio: float = LEAST_CHANGE_RATIO,
) -> Comparison:
    """Compare what two models say of cases within the scope of both.

    Parameters
    ----------
    llms, gpus : sequence of str
        Which to compare them at; by default those that both were fitted to.
    input_tokens, output_tokens : float, optional
        Lengths of the requests; by default three within the ranges of both fits.
    choose, least_ratio
        As for :func:`compare_tables`.

    Raises
    ------
    UsageError
        If their scopes have nothing in common.
    """
    sides = grids(a, b, llms, gpus, input_tokens, output_tokens)
    return decide(sides, names, choose, least_ratio)


def compare_model_with_table(
    model: EnergyModel,
    table: Dataset,
    names: tuple[str, str],
    *,
    choose: Sequence[str] = ("parallelism", "batch_size"),
    noise_ratio: float | None = None,
    least_ratio: float = LEAST_CHANGE_RATIO,
) -> Comparison:
    """Compare what a model says (A) with what was measured (B).

    A case changed where its joules lie outside of what the model expects of a new measurement.

    Parameters
    ----------
    table : Dataset
        Rows of a full queue: a model of energy says nothing of a load.
    choose, noise_ratio, least_ratio
        As for :func:`compare_tables`.
    """
    if table.under_load.any():
        raise UsageError(
            f"{names[1]} has rows under load, of which {names[0]} says nothing by itself: compare "
            "it with rows of a full queue, or two tables with each other"
        )
    key, _ = keys(table, table.take(slice(0, 0)))
    joules, runs, first, spread, degrees = means(table, key)
    noise, said, _ = noise_of(noise_ratio, spread, degrees)
    rows = table.take(first)
    predicted = model.predict_energy_j(rows.cases)
    low, high = model.interval_energy_j(rows.cases, 0.8)
    expected = np.log(high / low) / (2.0 * NORMAL_80)
    notes = (model.caution,) if model.caution else ()
    return decide(
        Sides(
            cases_a=rows.cases,
            cases_b=rows.cases,
            rows=rows,
            joules_a=predicted,
            joules_b=joules,
            runs_a=np.zeros(len(rows), dtype=np.intp),
            runs_b=runs,
            deviation=np.sqrt(expected**2 + noise**2 / runs),
            degrees=np.inf,
            noise_ratio=float(np.median(expected)),
            noise=f"what the model expects of a new measurement; {said}",
            kind="model and table",
            parts=(sum_parts(model, rows.cases),) * 2,
            terms=tuple(term.name for term in model.terms),
            notes=notes,
        ),
        names,
        choose,
        least_ratio,
    )
