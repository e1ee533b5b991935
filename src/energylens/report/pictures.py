"""The figures of single answers: a table, a model, an explanation, an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from energylens.cases import FloatArray
from energylens.dataset import Dataset
from energylens.evaluation.result import Evaluation
from energylens.explanation import SUBJECTS, Explanation
from energylens.report.drawing import Picture, _colour, _log_joules, _rows_upside_down
from energylens.words import joules, percent, plural

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH_IN = 7.2
LLMS = 6  # LLMs with a colour of their own
WORST_RATIO = 3.0  # times the median regret: longer bars leave the frame


def energy_against_batch(dataset: Dataset) -> Picture:
    """Show the joules of every row against its batch, by LLM."""
    batch = dataset.cases.batch_size
    energy = dataset.energy_per_request_j
    known = np.isfinite(batch)
    names, counts = np.unique(dataset.llm_ids.astype(str), return_counts=True)
    shown = [str(names[i]) for i in np.argsort(-counts, kind="stable")[:LLMS]]

    def draw(figure: Figure) -> None:
        from matplotlib.ticker import NullLocator

        axes = figure.subplots()
        others = known & ~np.isin(dataset.llm_ids.astype(str), shown)
        if others.any():
            axes.plot(
                batch[others], energy[others], ".", color=_colour("muted"), label="other LLMs"
            )
        for number, name in enumerate(shown, start=1):
            mine = known & (dataset.llm_ids == name)
            axes.plot(
                batch[mine], energy[mine], "o", ms=4, color=_colour(f"category-{number}"),
                label=name,
            )  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel="batch size (requests in flight)")
        axes.set_ylabel("energy per request")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
        _log_joules(axes, "y", float(energy.min()), float(energy.max()) * 1.01)
        figure.legend(loc="outside upper left", ncols=2)

    return Picture(
        name="rows",
        title="Energy per request against the batch",
        caption=f"{plural(len(dataset), 'row')} as given.",
        alternative=(
            f"{plural(len(dataset), 'row')} between {joules(float(energy.min()))} and "
            f"{joules(float(energy.max()))} a request."
        ),
        size_in=(WIDTH_IN, 4.0),
        draw=draw,
    )


def coefficients(
    names: Sequence[str], theta: FloatArray, low: FloatArray, high: FloatArray, *, rows: int
) -> Picture:
    """Show coefficients with their intervals; 1 is what the datasheet suggests."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.axvline(1.0, color=_colour("ink"), linewidth=1, linestyle=(0, (4, 3)))
        places = np.arange(len(names))
        axes.hlines(places, low, high, color=_colour("accent"), linewidth=2, alpha=0.55)
        axes.plot(theta, places, "o", color=_colour("accent"), markersize=6)
        _rows_upside_down(axes, [name.replace("_", " ") for name in names])
        axes.set_xlim(0, 1.05 * max(2.0, float(theta.max()), min(float(high.max()), 4.0)))
        axes.set_xlabel("coefficient / what the datasheet suggests")

    return Picture(
        name="coefficients",
        title="The coefficients",
        caption=f"Fitted to {plural(rows, 'row')}; lines are 80 % intervals.",
        alternative=", ".join(
            f"{name} {value:.2f}" for name, value in zip(names, theta, strict=True)
        ),
        size_in=(WIDTH_IN, 1.0 + 0.3 * len(names)),
        draw=draw,
    )


def where_the_joules_go(explanation: Explanation) -> Picture:
    """Show the terms of one explained case, prefill and decode apart."""
    terms = [t for t in sorted(explanation.terms, key=lambda t: -t.total_j) if t.total_j > 0]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        places = np.arange(len(terms))
        prefill = np.array([t.prefill_j for t in terms])
        decode = np.array([t.decode_j for t in terms])
        axes.barh(places, prefill, height=0.6, color=_colour("category-1"), label="prefill")
        axes.barh(
            places, decode, left=prefill, height=0.6, color=_colour("category-2"), label="decode"
        )
        _rows_upside_down(axes, [SUBJECTS.get(t.name, t.name) for t in terms])
        axes.set_xlabel("energy (J per request)")
        figure.legend(loc="outside upper left", ncols=2)

    whole = explanation.energy_per_request_j
    return Picture(
        name="terms",
        title="Where the joules of a request go",
        caption=explanation.case,
        alternative=", ".join(
            f"{SUBJECTS.get(t.name, t.name)} {percent(t.total_j / whole, 0)}" for t in terms
        ),
        size_in=(WIDTH_IN, 1.2 + 0.3 * len(terms)),
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

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.barh(np.arange(len(names)), np.minimum(regret, frame), color=_colour("category-1"))
        for place, value in enumerate(regret):
            axes.text(min(value, frame), place, f" {value:.2f} %", va="center", fontsize=8.5)
        _rows_upside_down(axes, names)
        axes.set_xlim(0, 1.2 * frame)
        axes.set_xlabel("mean regret: joules of the choice over the best (%)")

    return Picture(
        name="regret",
        title="What a choice costs over the best",
        caption="Bars that are longer than the frame are cut; their numbers stand beside them.",
        alternative=", ".join(
            f"{name} {value:.2f} %" for name, value in zip(names, regret, strict=True)
        ),
        size_in=(WIDTH_IN, 1.0 + 0.3 * max(len(names), 1)),
        draw=draw,
    )
