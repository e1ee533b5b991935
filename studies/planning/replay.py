"""Replay public measurements as if they were made one batch after the other.

In each replay a random fifth of the rows cannot be measured, by nobody, so that replays differ even
where planning itself hardly draws. The planner knows of a row what one knows beforehand: its knobs,
lengths and memory, but neither its joules nor the batch that was observed. Whatever was measured is
fitted, and the fit is judged on the choice in every scenario and on all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from energylens import fitting
from energylens.baselines import ESTIMATORS
from energylens.cases import Cases, FloatArray, IntArray
from energylens.counts import in_flight
from energylens.dataset import Dataset, freed_columns, group_rows
from energylens.errors import FitError
from energylens.fitting import FitOptions
from energylens.formula import STRUCTURE, design
from energylens.nextruns.information import Information
from energylens.nextruns.verbs import next_runs, verdict
from energylens.protocols import Predictor

SEEDS = 20
BATCH = 4
PLANNED_ROWS = 48
SIZES = (*range(4, 49, 4), 56, 64, 80, 96, 128, 160, 200, 240, 300)
ENSEMBLE_SIZES = (8, 16, 32, 48, 64, 128, 200, 300)
VERDICT_SIZES = (4, 8, 16, 32)
VERDICT_SEEDS = 10
KEPT_RATIO = 0.8
SAME_RATIO = 1 + 1e-9

REGRET_RATIO = 0.01
REGRET_MARGIN_RATIO = 0.0025  # where the final regret is above 1 % itself
TOP1_SHARE = 0.95
MAPE_SHARE = 1.1

STATED = (
    "probability_ratio", "top1_ratio", "expected_regret_ratio", "regret_ratio", "change_ratio",
    "stop_ratio",
)  # fmt: skip
METRICS = ("top1_ratio", "regret_ratio", "mape_ratio", "information_nats")
Scores = dict[str, float]
Fit = Callable[[Dataset], Predictor]


@dataclass(frozen=True)
class Subject:
    """Rows to replay, and the question they are to answer."""

    rows: Dataset
    choose: tuple[str, ...]

    @cached_property
    def candidates(self) -> Cases:
        """Cases as they are known before measuring: the batch that memory lets run."""
        cases = self.rows.cases
        blind = cases.replace(mean_batch_size=np.nan)
        return cases.replace(mean_batch_size=in_flight(blind))

    @cached_property
    def _scenarios(self) -> list[tuple[IntArray, IntArray, FloatArray]]:
        """Rows, the configuration of each, and the joules of each configuration."""
        columns = [getattr(self.rows.cases, name) for name in sorted(freed_columns(self.choose))]
        laid_out = []
        for rows in self.rows.scenarios(self.choose):
            place = group_rows([column[rows] for column in columns])
            joules = np.bincount(place, self.rows.energy_per_request_j[rows])
            laid_out.append((rows, place, joules / np.bincount(place)))
        return laid_out

    def regrets(self, winners: Mapping[int, int]) -> FloatArray:
        """Regret of choosing the row ``winners[scenario]``, by scenario."""
        found = []
        for s, winner in winners.items():
            rows, place, joules = self._scenarios[s]
            found.append(joules[place[rows.tolist().index(winner)]] / joules.min() - 1)
        return np.array(found)

    @property
    def scenarios(self) -> int:
        """Number of choices to make."""
        return len(self._scenarios)

    def score(self, predicted: FloatArray) -> Scores:
        """Judge predictions of all rows; ties count in expectation, no answer as a random pick."""
        top1, regret = [], []
        for rows, place, joules in self._scenarios:
            guess = np.bincount(place, predicted[rows]) / np.bincount(place)
            tied = ~(guess > np.min(guess) * SAME_RATIO)
            chosen = joules[tied]
            top1.append(np.mean(chosen <= joules.min()))
            regret.append(np.mean(chosen / joules.min() - 1))
        error = np.abs(predicted / self.rows.energy_per_request_j - 1)
        return {
            "top1_ratio": float(np.mean(top1)),
            "regret_ratio": float(np.mean(regret)),
            "mape_ratio": float(error.mean()),
        }

    @cached_property
    def everything(self) -> Information:
        """All rows as information about the coefficients, at the fit to all of them."""
        fitted = fitting.fit(self.rows, FitOptions(per=())).pooled
        kin = group_rows(
            [self.rows.cases.llm_index, self.rows.cases.gpu_index, self.rows.workload_index]
        )
        return Information(
            design(self.rows.cases),
            kin,
            np.maximum(fitted.theta, 0.02)[None],
            within=fitted.within_ratio,
            between=fitted.between_ratio,
        )


def law(prior: str) -> Fit:
    """Fit the law with or without the datasheet's prior, one set for all rows."""
    options = FitOptions(prior=prior, per=())
    return lambda rows: fitting.fit(rows, options)


def ensemble(name: str, seed: int) -> Fit:
    """Fit one of the learned baselines."""
    return ESTIMATORS[name](seed).fit


FITS: dict[str, Callable[[int], Fit]] = {
    "law": lambda _: law("datasheet"),
    "law, no prior": lambda _: law("none"),
    "random-forest": lambda seed: ensemble("random-forest", seed),
    "xgboost": lambda seed: ensemble("xgboost", seed),
}


def planned(subject: Subject, kept: IntArray, seed: int, weight: float) -> IntArray:
    """Rows in the order in which planning measures them."""
    candidates = subject.candidates.take(kept)
    workload = subject.rows.workload_index[kept]
    rows = np.empty(0, dtype=np.intp)
    while len(rows) < min(PLANNED_ROWS, len(kept)):
        batch = next_runs(
            candidates,
            subject.rows.take(rows) if len(rows) else None,
            choose=subject.choose,
            count=BATCH,
            seed=seed,
            weight=weight,
            workload=workload,
            done=np.searchsorted(kept, rows),
        )
        rows = np.append(rows, kept[batch.index])
    return rows


def curve(subject: Subject, order: IntArray, fit: Fit, sizes: Sequence[int]) -> list[Scores]:
    """Score the fits to the first rows of an order, size by size."""
    scores = []
    for size in sizes:
        try:
            predicted = fit(subject.rows.take(order[:size])).predict_energy_j(subject.rows.cases)
        except FitError:
            predicted = np.full(len(subject.rows), np.nan)
        scores.append(subject.score(predicted))
    return scores


def information(subject: Subject, order: IntArray, sizes: Sequence[int]) -> list[float]:
    """Nats that the first rows of an order tell of the coefficients."""
    known = subject.everything.copy()
    start = float(known.log_det()[0])
    told = []
    for i, row in enumerate(order[: max(sizes)].tolist(), 1):
        known.add(row)
        if i in sizes:
            told.append(float(known.log_det()[0]) - start)
    return told


def replay(
    subject: Subject,
    *,
    weights: Mapping[str, float],
    ensembles: Sequence[str] = (),
    judged: Sequence[str] = (),
    seeds: int = SEEDS,
) -> dict[str, Any]:
    """Replay one source under every order and fit.

    Parameters
    ----------
    subject : Subject
    weights : mapping of str to float
        Ways of planning by name: the ``weight`` of each.
    ensembles : sequence of str
        Learned baselines to fit to rows in random order.
    judged : sequence of str
        Ways whose verdicts are compared with the truth.
    seeds : int
        Replays.

    Returns
    -------
    dict
        ``curves``, ``final``, ``datasheet`` and ``verdicts`` as plain JSON values.
    """
    final = {
        name: subject.score(FITS[name](0)(subject.rows).predict_energy_j(subject.rows.cases))
        for name in ("law", "law, no prior")
    }
    runs: dict[tuple[str, str], list[list[Scores]]] = {}
    sizes: dict[tuple[str, str], list[int]] = {}
    said: dict[tuple[str, int], list[list[float]]] = {}
    n = len(subject.rows)
    for seed in range(seeds):
        shuffled = np.random.default_rng([7, seed]).permutation(n)[: int(KEPT_RATIO * n)]
        every = {
            way: planned(subject, np.sort(shuffled), seed, weight)
            for way, weight in weights.items()
        }
        every["random"] = shuffled
        for way, order in every.items():
            if way in judged and seed < VERDICT_SEEDS:
                for size in reachable(VERDICT_SIZES, order):
                    said.setdefault((way, size), []).append(stated(subject, order[:size], seed))
            told = information(subject, order, reachable(SIZES, order))
            for name in ("law", "law, no prior"):
                fit = FITS[name](seed)
                sizes[way, name] = reachable(SIZES, order)
                scores = curve(subject, order, fit, sizes[way, name])
                for score, nats in zip(scores, told, strict=True):
                    score["information_nats"] = nats
                runs.setdefault((way, name), []).append(scores)
        for name in ensembles:
            order = every["random"]
            sizes["random", name] = reachable(ENSEMBLE_SIZES, order)
            scores = curve(subject, order, FITS[name](seed), sizes["random", name])
            runs.setdefault(("random", name), []).append(scores)
    datasheet = fitting.from_datasheet().predict_energy_j(subject.rows.cases)
    return {
        "structure": STRUCTURE,
        "rows": len(subject.rows),
        "scenarios": subject.scenarios,
        "seeds": seeds,
        "final": rounded(final),
        "datasheet": rounded(subject.score(datasheet)),
        "curves": [
            {"way": way, "fit": name, "sizes": sizes[way, name], **banded(scores)}
            for (way, name), scores in runs.items()
        ],
        "verdicts": [
            {"way": way, "rows": size}
            | rounded(dict(zip(STATED, np.mean(lines, axis=0).tolist(), strict=True)))
            for (way, size), lines in said.items()
        ],
    }


def reachable(sizes: Sequence[int], order: IntArray) -> list[int]:
    """Sizes that an order is long enough for."""
    return [size for size in sizes if size <= len(order)]


def banded(runs: Sequence[Sequence[Scores]]) -> dict[str, list[list[float]]]:
    """Mean, 10th and 90th percentile over replays of each metric, size by size."""
    bands = {}
    for metric in METRICS:
        if metric in runs[0][0]:
            values = np.array([[score[metric] for score in run] for run in runs])
            low, high = np.nanpercentile(values, (10, 90), axis=0)
            table = np.column_stack([values.mean(axis=0), low, high])
            bands[metric] = [[float(f"{v:.4g}") for v in line] for line in table]
    return bands


def rounded(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Keep four digits."""
    return {
        key: rounded(value) if isinstance(value, Mapping) else float(f"{value:.4g}")
        for key, value in scores.items()
    }


def needed(result: Mapping[str, Any], way: str, fit: str, question: str) -> int | None:
    """Fewest rows from which on the mean over replays answers a question as well as asked.

    ``choice``: Top-1 at 95 % of the final one and regret at most 1 % (where the final regret is
    above that, a quarter of a point above it). ``error``: MAPE at most 1.1 times the final one.
    Ensembles are held to the final marks of the law.
    """
    curve = next((c for c in result["curves"] if (c["way"], c["fit"]) == (way, fit)), None)
    if curve is None:
        return None
    final = result["final"].get(fit, result["final"]["law"])
    mean = {metric: np.array(curve[metric])[:, 0] for metric in METRICS if metric in curve}
    if question == "choice":
        regret = max(REGRET_RATIO, final["regret_ratio"] + REGRET_MARGIN_RATIO)
        met = (mean["top1_ratio"] >= TOP1_SHARE * final["top1_ratio"]) & (
            mean["regret_ratio"] <= regret
        )
    else:
        met = mean["mape_ratio"] <= MAPE_SHARE * final["mape_ratio"]
    if not met[-1]:
        return None
    failed = np.flatnonzero(~met)
    return int(curve["sizes"][failed[-1] + 1 if len(failed) else 0])


def as_telling(result: Mapping[str, Any], way: str, rows: int) -> int | None:
    """Random rows that tell as much of the coefficients as so many planned ones."""
    told = {
        c["way"]: (c["sizes"], np.array(c["information_nats"])[:, 0])
        for c in result["curves"]
        if c["fit"] == "law"
    }
    sizes, nats = told[way]
    target = nats[sizes.index(rows)]
    sizes, nats = told["random"]
    reached = np.flatnonzero(nats >= target)
    return int(sizes[reached[0]]) if len(reached) else None


def stated(subject: Subject, done: IntArray, seed: int) -> list[float]:
    """What a verdict says, beside what is true: the values of ``STATED``."""
    given = verdict(
        subject.candidates,
        subject.rows.take(done),
        choose=subject.choose,
        more_runs=BATCH,
        seed=seed,
        workload=subject.rows.workload_index,
        done=done,
    )
    regret = subject.regrets({s: c.winner for s, c in enumerate(given.choices)})
    return [
        given.probability_best_ratio,
        float(np.mean(regret <= 0)),
        given.expected_regret_ratio,
        float(np.mean(regret)),
        given.change_ratio,
        float(given.stop),
    ]
