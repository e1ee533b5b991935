"""Cases of two tables that are the same but for what they are compared across."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from energylens import fitting
from energylens.cases import Cases, FloatArray, IntArray
from energylens.dataset import Dataset, group_rows
from energylens.errors import FitError, UsageError
from energylens.fitting import FitOptions
from energylens.model import EnergyModel
from energylens.records import PARALLELISM
from energylens.words import percent, plural

#: Spread of one run over another where nothing was measured twice: assumed, and said.
ASSUMED_NOISE_RATIO = 0.05

#: Repeats that are alike to the last digit still stand for a meter with so much noise.
LEAST_NOISE_RATIO = 1e-4

#: A smaller change is none, however sure.
LEAST_CHANGE_RATIO = 0.01

#: What two sides may have no value of in common, and is then what they are compared across.
ACROSS = ("gpu", "engine", "precision", "llm")


@dataclass(frozen=True, kw_only=True, eq=False)
class Sides:
    """Matched cases: m of them, joules of both sides, and the noise of each logarithm."""

    cases_a: Cases
    cases_b: Cases
    rows: Dataset | None  # of A, or of the only table, one for each case: what scenarios are of
    joules_a: FloatArray
    joules_b: FloatArray
    runs_a: IntArray
    runs_b: IntArray
    deviation: FloatArray  # standard deviation of log(B / A)
    degrees: float  # of freedom behind it
    noise_ratio: float
    noise: str
    kind: str
    only_a: int = 0
    only_b: int = 0
    across: dict[str, list[list[str]]] = field(default_factory=dict)
    parts: tuple[FloatArray, FloatArray] | None = None  # joules by term of A and B, where known
    terms: tuple[str, ...] = ()
    times: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def sum_parts(model: EnergyModel, cases: Cases) -> FloatArray:
    """Joules per request by term, both phases together, shape (n, terms)."""
    prefill, decode = model.predict_parts_j(cases)
    return prefill + decode


def _ids(dataset: Dataset) -> dict[str, FloatArray]:
    return {
        "gpu": dataset.gpu_ids.astype(str),
        "engine": dataset.engine_ids.astype(str),
        "precision": dataset.precision_ids.astype(str),
        "llm": dataset.llm_ids.astype(str),
    }


def keys(a: Dataset, b: Dataset) -> tuple[IntArray, dict[str, list[list[str]]]]:
    """Number of each row's case, those of A first, and what the sides are compared across."""
    both = Dataset.concatenate([a, b]) if len(b) else a
    ids, n = _ids(both), len(a)
    across = {}
    for name in ACROSS:
        mine, other = sorted(set(ids[name][:n])), sorted(set(ids[name][n:]))
        if len(b) and not set(mine) & set(other):
            across[name] = [mine, other]
    several = [name for name, (mine, other) in across.items() if len(mine) > 1 or len(other) > 1]
    if several:
        name = several[0]
        raise UsageError(
            f"the two sides have no {name} in common, and one of them has several "
            f"({', '.join(across[name][0])}; {', '.join(across[name][1])}): keep one of each, as "
            f"with --where {name}=..."
        )
    c = both.cases
    keys: list[Any] = [ids[name] for name in ACROSS if name not in across]
    keys += [both.workload_index, both.boundary.astype(str)]
    keys += [np.where(c.node_boundary, c.node_gpus, 0.0)]
    keys += [getattr(c, name) for name in (*PARALLELISM, "batch_size", "power_cap_w", "clock_mhz")]
    return group_rows(keys), across


def means(dataset: Dataset, key: IntArray) -> tuple[FloatArray, IntArray, IntArray, float, int]:
    """Mean joules, runs and first row of each case in the order of keys, and the repeats' spread.

    The mean is that of the logarithm of joules per output token, at the length of the first row;
    the spread the sum of squares about it, over all cases.
    """
    _, first, case, runs = np.unique(
        key, return_index=True, return_inverse=True, return_counts=True
    )
    # Lengths of one task scatter from run to run; what they bring along is no noise of a meter.
    logs = np.log(dataset.energy_per_request_j / dataset.cases.output_tokens)
    mean = np.bincount(case, logs) / runs
    degrees = int((runs - 1).sum())
    squares = float(((logs - mean[case]) ** 2).sum())
    return np.exp(mean) * dataset.cases.output_tokens[first], runs, first, squares, degrees


def noise_of(given: float | None, squares: float, degrees: int) -> tuple[float, str, float]:
    """Spread of one run, what it rests on, and the degrees of freedom behind it."""
    if given is not None:
        return given, f"a spread of {percent(given)} of one run, as given", np.inf
    if degrees == 0:
        return (
            ASSUMED_NOISE_RATIO,
            f"nothing was measured twice: a spread of {percent(ASSUMED_NOISE_RATIO, 0)} of one run "
            "is assumed (--noise)",
            np.inf,
        )
    spread = max(float(np.sqrt(squares / degrees)), LEAST_NOISE_RATIO)
    return (
        spread,
        f"repeats spread by {percent(spread)} ({plural(degrees, 'degree')} of freedom)",
        degrees,
    )


def match(a: Dataset, b: Dataset, noise_ratio: float | None) -> Sides:
    """Find the cases that both tables have, their mean joules and the noise of each."""
    key, across = keys(a, b)
    key_a, key_b = key[: len(a)], key[len(a) :]
    mean_a, runs_a, first_a, squares_a, degrees_a = means(a, key_a)
    mean_b, runs_b, first_b, squares_b, degrees_b = means(b, key_b)
    cases_a, cases_b = np.unique(key_a), np.unique(key_b)
    shared, place_a, place_b = np.intersect1d(cases_a, cases_b, return_indices=True)
    if not len(shared):
        raise UsageError(
            f"none of the {plural(len(cases_a), 'case')} of A is in B ({len(cases_b)}): the two "
            "must have LLM, lengths, load, layout, batch and boundary of some rows in common"
        )
    order = np.argsort(first_a[place_a], kind="stable")
    place_a, place_b = place_a[order], place_b[order]
    noise, said, degrees = noise_of(noise_ratio, squares_a + squares_b, degrees_a + degrees_b)
    rows_a, rows_b = a.take(first_a[place_a]), b.take(first_b[place_b])
    mine, other = runs_a[place_a], runs_b[place_b]
    notes = list(_row_notes(a, b, rows_a, rows_b))
    parts = None
    terms: tuple[str, ...] = ()
    if not rows_a.under_load.any():
        pooled = Dataset.concatenate(
            [a.take(np.isin(key_a, shared)), b.take(np.isin(key_b, shared))]
        )
        try:
            model = fitting.fit(pooled, FitOptions(per=()))
        except (FitError, UsageError) as error:
            notes.append(f"Which terms changed cannot be told: {error}")
        else:
            parts = (sum_parts(model, rows_a.cases), sum_parts(model, rows_b.cases))
            terms = tuple(term.name for term in model.terms)
    else:
        notes.append("Which terms changed is told for rows of a full queue alone.")
    return Sides(
        cases_a=rows_a.cases,
        cases_b=rows_b.cases,
        rows=rows_a,
        joules_a=mean_a[place_a],
        joules_b=mean_b[place_b],
        runs_a=mine,
        runs_b=other,
        deviation=noise * np.sqrt(1.0 / mine + 1.0 / other),
        degrees=degrees,
        noise_ratio=noise,
        noise=said,
        kind="tables",
        only_a=len(cases_a) - len(shared),
        only_b=len(cases_b) - len(shared),
        across=across,
        parts=parts,
        terms=terms,
        times=_times(rows_a.cases, rows_b.cases),
        notes=tuple(notes),
    )


def _row_notes(a: Dataset, b: Dataset, rows_a: Dataset, rows_b: Dataset) -> Iterator[str]:
    sources = [", ".join(side.source_counts()) for side in (a, b)]
    if sources[0] != sources[1]:
        yield f"The joules of A are {sources[0]}, those of B {sources[1]}."
    if not all(side.carries_accuracy_claim.all() for side in (a, b)):
        yield "Some joules are neither measured nor published: nothing here is a claim about GPUs."
    lengths = np.abs(rows_b.cases.output_tokens / rows_a.cases.output_tokens - 1.0)
    if lengths.max() > LEAST_CHANGE_RATIO:
        yield (
            f"Mean output lengths differ by up to {percent(lengths.max(), 0)} between the matched "
            "rows; ratios are at the length of A, as joules per output token are."
        )


def _times(a: Cases, b: Cases) -> dict[str, float]:
    """Median ratio of each time that both sides have."""
    found = {}
    for name in ("request_latency_s", "tpot_s", "ttft_s"):
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = getattr(b, name) / getattr(a, name)
        ratio = ratio[np.isfinite(ratio)]
        if len(ratio):
            found[name.removesuffix("_s")] = float(np.median(ratio))
    return found
