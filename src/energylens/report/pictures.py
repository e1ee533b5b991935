"""The figures of single answers: a table, a model, an explanation, an evaluation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from energylens.cases import FloatArray
from energylens.charts import energy as charts
from energylens.charts import judged
from energylens.charts.theme import Spec
from energylens.dataset import Dataset
from energylens.evaluation.result import Evaluation
from energylens.explanation import SUBJECTS, Explanation
from energylens.report.drawing import Picture
from energylens.words import joules, percent, plural

LLMS = 6  # LLMs with a colour of their own
WORST_RATIO = 3.0  # times the median regret: longer bars leave the frame


def energy_against_batch(dataset: Dataset) -> Picture:
    """Show the joules of every row against its batch, by LLM."""
    batch = dataset.cases.batch_size
    energy = dataset.energy_per_request_j
    known = np.isfinite(batch)
    names, counts = np.unique(dataset.llm_ids.astype(str), return_counts=True)
    shown = [str(names[i]) for i in np.argsort(-counts, kind="stable")[:LLMS]]

    def draw(width: int) -> Spec:
        return charts.by_batch(
            batch[known],
            energy[known],
            dataset.llm_ids[known].astype(str).tolist(),
            shown,
            width=width,
        )

    return Picture(
        name="rows",
        title="Energy per request against the batch",
        caption=f"{plural(len(dataset), 'row')} as given.",
        alternative=(
            f"{plural(len(dataset), 'row')} between {joules(float(energy.min()))} and "
            f"{joules(float(energy.max()))} a request."
        ),
        draw=draw,
    )


def coefficients(
    names: Sequence[str], theta: FloatArray, low: FloatArray, high: FloatArray, *, rows: int
) -> Picture:
    """Show coefficients with their intervals; 1 is what the datasheet suggests."""

    def draw(width: int) -> Spec:
        labels = [name.replace("_", " ") for name in names]
        return judged.coefficients(labels, theta, low, high, width=width)

    return Picture(
        name="coefficients",
        title="The coefficients",
        caption=f"Fitted to {plural(rows, 'row')}; lines are 80 % intervals.",
        alternative=", ".join(
            f"{name} {value:.2f}" for name, value in zip(names, theta, strict=True)
        ),
        draw=draw,
    )


def where_the_joules_go(explanation: Explanation) -> Picture:
    """Show the terms of one explained case, prefill and decode apart."""
    terms = [t for t in sorted(explanation.terms, key=lambda t: -t.total_j) if t.total_j > 0]

    def draw(width: int) -> Spec:
        return charts.terms(
            [SUBJECTS.get(t.name, t.name) for t in terms],
            np.array([t.prefill_j for t in terms]),
            np.array([t.decode_j for t in terms]),
            width=width,
        )

    whole = explanation.energy_per_request_j
    return Picture(
        name="terms",
        title="Where the joules of a request go",
        caption=explanation.case,
        alternative=", ".join(
            f"{SUBJECTS.get(t.name, t.name)} {percent(t.total_j / whole, 0)}" for t in terms
        ),
        draw=draw,
    )


def regret_by_estimator(evaluation: Evaluation) -> Picture:
    """Show the mean regret of every estimator, best first."""
    found = {
        name: score.metrics.regret_mean_ratio
        for name, score in evaluation.estimators.items()
        if score.metrics.regret_mean_ratio is not None
    }
    names = sorted(found, key=lambda name: found[name])
    regret = 100 * np.array([found[name] for name in names], dtype=np.float64)
    frame = WORST_RATIO * float(np.median(regret)) if len(regret) else 1.0
    frame = max(frame, float(regret.min(initial=0.0)) * 1.2, 0.1)

    def draw(width: int) -> Spec:
        return judged.regret(names, regret, frame=frame, width=width)

    return Picture(
        name="regret",
        title="What a choice costs over the best",
        caption="Bars that are longer than the frame are cut; their numbers stand beside them.",
        alternative=", ".join(
            f"{name} {value:.2f} %" for name, value in zip(names, regret, strict=True)
        ),
        draw=draw,
    )
