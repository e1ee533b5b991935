"""Figures of how right a model is: predictions, residuals, learning curves, forms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from energylens.cases import FloatArray
from energylens.charts import judged as charts
from energylens.charts.theme import SHAPES, Spec
from energylens.dataset import Dataset, StrArray, group_rows
from energylens.errors import UsageError
from energylens.evaluation.result import Evaluation
from energylens.protocols import IntervalPredictor, Predictor
from energylens.report.drawing import Picture
from energylens.report.naming import BARS, OURS, POINTS, known_as, row_names, scenario_name, spread
from energylens.words import percent, plural, short_name, si

if TYPE_CHECKING:
    from energylens.discovery import Front


FEW_DRAWS = 20  # fewer have no nine tenths

CURVES = 6  # most estimators that a learning curve names

WORST_RATIO = 3.0  # times the median regret: longer bars leave the frame

#: Metrics of a learning curve: as recorded, as drawn, as named.
METRICS = (
    ("top1_within_noise_ratio", "top1", "choice within noise of the best (%)"),
    ("regret_mean_ratio", "regret", "mean regret (%)"),
    ("mape_ratio", "error", "mean absolute error (%)"),
)


def predicted_against_measured(
    predictor: Predictor, dataset: Dataset, *, in_sample: bool, coverage_ratio: float = 0.8
) -> Picture:
    """Show predicted over measured joules of all rows, on logarithmic axes.

    Joules that are not measured are called what they are, as in all figures.

    Parameters
    ----------
    predictor : Predictor
        With intervals, if it is an ``IntervalPredictor``.
    in_sample : bool
        Whether the predictor was fitted to these rows: the caption says so.
    coverage_ratio : float
        Nominal coverage of the intervals.
    """
    measured, word = dataset.energy_per_request_j, known_as(dataset)
    predicted = predictor.predict_energy_j(dataset.cases)
    lower = upper = None
    if isinstance(predictor, IntervalPredictor):
        lower, upper = predictor.interval_energy_j(dataset.cases, coverage_ratio)
    what, labels = _categories(dataset)
    error = np.abs(predicted / measured - 1.0)
    names = sorted(set(labels), key=lambda name: -int(np.sum(labels == name)))
    rows = tuple(
        (
            str(name),
            f"{int(np.sum(labels == name)):,}",
            percent(float(np.mean(error[labels == name]))),
            percent(float(np.median(error[labels == name]))),
        )
        for name in names
    )
    n = len(dataset)
    shown = spread(n, POINTS)
    caption = "On the diagonal the prediction is exact. " + (
        "The model was fitted to these same rows, so this shows how well the law can describe "
        "them, not how well it predicts others."
        if in_sample
        else "The model was fitted to other rows than these."
    )
    inside = ""
    if lower is not None and upper is not None:
        share = float(np.mean((lower <= measured) & (measured <= upper)))
        caption += f" Thin lines are {percent(coverage_ratio, 0)} intervals for a new run."
        inside = f" {percent(share)} of the rows lie in their interval."
    if len(shown) < n:
        caption += f" {len(shown):,} of {n:,} rows are drawn, evenly spread over the table."

    def draw(width: int) -> Spec:
        return charts.predictions(
            measured[shown],
            predicted[shown],
            [str(label) for label in labels[shown]],
            row_names(dataset, shown),
            legend={
                str(name): f"{name}: {row[1]} rows, mean error {row[2]}"
                for name, row in zip(names, rows, strict=True)
            },
            word=word,
            lower_j=None if lower is None else lower[shown],
            upper_j=None if upper is None else upper[shown],
            width=width,
        )

    return Picture(
        name="predicted-measured",
        title=f"Predicted against {word} energy",
        caption=caption,
        alternative=(
            f"Scatter of {n:,} rows, {word} from {si(float(measured.min()), 'J')} to "
            f"{si(float(measured.max()), 'J')} per request. Predictions are off by "
            f"{percent(float(error.mean()))} on average, {percent(float(np.median(error)))} in "
            f"the median.{inside}"
        ),
        columns=(what, "Rows", "Mean error", "Median error"),
        rows=rows,
        draw=draw,
    )


def _categories(dataset: Dataset) -> tuple[str, StrArray]:
    """Tell rows apart by what has few values, whatever of it has more than one."""
    families = np.array([llm.family for llm in dataset.cases.llms], dtype=object)
    choices: tuple[tuple[str, StrArray], ...] = (
        ("Architecture", families[dataset.cases.llm_index]),
        ("GPU", dataset.gpu_ids),
        ("LLM", np.array([short_name(name) for name in dataset.llm_ids], dtype=object)),
        ("Precision", dataset.precision_ids),
    )
    for what, labels in choices:
        if 2 <= len(set(labels)) <= len(SHAPES):
            return what, labels
    return "Rows", np.full(len(dataset), "all", dtype=object)


def residuals_by_scenario(
    dataset: Dataset, error_ratio: FloatArray, *, held_out: bool
) -> Picture | None:
    """Show predicted over measured in the scenarios with the largest errors.

    Parameters
    ----------
    error_ratio : ndarray, shape (n,)
        Predicted over measured, minus 1; NaN where a row was not judged.
    held_out : bool
        Whether rows were predicted by fits without them: the caption says so.

    Returns
    -------
    Picture or None
        None if no row was judged.
    """
    judged = np.flatnonzero(np.isfinite(error_ratio) & (error_ratio > -1))
    if len(judged) == 0:
        return None
    ratio = 1.0 + error_ratio
    cases = dataset.cases
    index = group_rows(
        [cases.llm_index, cases.gpu_index, cases.precision_index, dataset.workload_index]
    )
    groups = [judged[index[judged] == i] for i in np.unique(index[judged])]
    groups.sort(key=lambda group: -float(np.abs(np.log(ratio[group])).mean()))
    worst = groups[:BARS]

    def draw(width: int) -> Spec:
        dots = [
            group[np.argsort(ratio[group])][spread(len(group), POINTS // len(worst))]
            for group in worst
        ]
        return charts.residuals(
            [scenario_name(dataset, group, "\n") for group in worst],
            [ratio[group] for group in dots],
            [row_names(dataset, group) for group in dots],
            word=known_as(dataset),
            width=width,
        )

    rows = tuple(
        (
            scenario_name(dataset, group),
            f"{len(group)}",
            percent(float(np.exp(np.log(ratio[group]).mean()) - 1.0)),
            percent(float(np.abs(ratio[group] - 1.0).mean())),
        )
        for group in worst
    )
    return Picture(
        name="residuals",
        title="Where the model is worst",
        caption=(
            f"The {len(worst)} of {len(groups)} workloads with the largest errors. A dot is a row, "
            "a bar the geometric mean. "
            + (
                "Every row was predicted by fits that had not seen it."
                if held_out
                else "The model has seen these rows, so errors on others will be larger."
            )
        ),
        alternative=(
            f"Errors by workload. Worst: {rows[0][0]}, where predictions are off by {rows[0][3]} "
            f"on average (mean {rows[0][2]}, {rows[0][1]} rows)."
        ),
        columns=("Workload", "Rows", "Mean (signed)", "Mean error"),
        rows=rows,
        draw=draw,
    )


def learning_curves(evaluation: Evaluation) -> Picture:
    """Show three metrics against the training rows, for the law and the strongest others.

    Parameters
    ----------
    evaluation : Evaluation
        Of the protocol ``learning-curve``.

    Raises
    ------
    UsageError
        If it is of another protocol.
    """
    if evaluation.asked.protocol != "learning-curve":
        raise UsageError(
            "learning curves need an evaluation by the protocol learning-curve; "
            f"given {evaluation.asked.protocol}"
        )
    sizes = [point.train or 0 for point in evaluation.points]
    named = _strongest(evaluation)
    others = [name for name in evaluation.estimators if name not in named]
    metrics = [
        (metric, kind, label)
        for metric, kind, label in METRICS
        if any(
            getattr(score.metrics, metric) is not None for score in evaluation.estimators.values()
        )
    ]

    def curve(name: str, metric: str) -> tuple[FloatArray, FloatArray]:
        scores = [point.scores[name] for point in evaluation.points]
        means = [getattr(score.metrics, metric) for score in scores]
        bands = [score.bands[metric] or (np.nan, np.nan, np.nan) for score in scores]
        return (
            100 * np.array([np.nan if v is None else v for v in means], dtype=np.float64),
            100 * np.array(bands, dtype=np.float64),
        )

    def draw(width: int) -> Spec:
        return charts.learning(
            [
                (
                    kind,
                    label,
                    {name: curve(name, metric)[0] for name in evaluation.estimators},
                    curve(named[0], metric)[1][:, [0, 2]],
                )
                for metric, kind, label in metrics
            ],
            sizes,
            named=named,
            others=others,
            width=width,
        )

    columns = ("Estimator", "Metric", *(f"n = {size}" for size in sizes))
    rows = tuple(
        (name, label.removesuffix(" (%)"), *(percent(v / 100) for v in curve(name, metric)[0]))
        for metric, kind, label in metrics
        for name in evaluation.estimators
    )
    ours = [percent(v / 100) for v in curve(named[0], metrics[0][0])[0]] if metrics else []
    return Picture(
        name="learning-curve",
        title="How many rows it takes",
        caption=(
            f"Means over {evaluation.repeats} draws of training rows; the band "
            + (
                f"holds 90 % of the draws of {named[0]}"
                if evaluation.repeats >= FEW_DRAWS
                else f"is as wide as the {evaluation.repeats} draws of {named[0]} are apart"
            )
            + ". The choice is within noise if its joules are within "
            f"{percent(evaluation.asked.noise_ratio, 0)} of the best."
            + " Where a curve leaves the frame, an arrow says how far it goes."
            + (f" {len(others)} weaker estimators are grey, in the table too." if others else "")
        ),
        alternative=(
            f"Learning curves of {', '.join(named)} over {sizes[0]} to {sizes[-1]} training rows."
            + (
                f" {named[0]} chooses within noise of the best in {ours[0]} of scenarios at "
                f"{sizes[0]} rows and {ours[-1]} at {sizes[-1]}."
                if ours
                else ""
            )
        ),
        columns=columns,
        rows=rows,
        draw=draw,
    )


def _strongest(evaluation: Evaluation) -> list[str]:
    """The law first, then the others from the lowest regret up (else the lowest error)."""

    def loss(name: str) -> tuple[float, float]:
        m = evaluation.estimators[name].metrics
        regret, error = m.regret_mean_ratio, m.mape_ratio
        return (
            math.inf if regret is None else regret,
            math.inf if error is None else error,
        )

    ranked = sorted(evaluation.estimators, key=loss)
    return sorted(ranked, key=lambda name: name != OURS)[:CURVES]


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
        return charts.regret(names, regret, frame=frame, width=width)

    return Picture(
        name="regret",
        title="What a choice costs over the best",
        caption="Bars that are longer than the frame are cut; their numbers stand beside them.",
        alternative=", ".join(
            f"{name} {value:.2f} %" for name, value in zip(names, regret, strict=True)
        ),
        draw=draw,
    )


def discovery_front(front: Front) -> Picture:
    """Show the held-out error of every expression of a front against its complexity.

    Parameters
    ----------
    front : Front
        Its knee is marked; whiskers are one standard error over groups.
    """
    points, knee, reference = front.points, front.knee, front.reference
    complexity = [point.complexity for point in points]
    held_out = 100 * np.array([point.held_out_mape_ratio for point in points])
    spread = 100 * np.array([point.held_out_error_ratio for point in points])
    in_sample = 100 * np.array([point.in_sample_mape_ratio for point in points])

    def draw(width: int) -> Spec:
        return charts.forms(
            complexity,
            held_out.tolist(),
            spread.tolist(),
            in_sample.tolist(),
            [" + ".join(term.expression.text for term in point.terms) for point in points],
            knee=points.index(knee),
            knee_name=f"the knee: {_terms(len(knee.terms))}",
            reference=None
            if reference is None
            else (
                f"{reference.name}, {_terms(reference.terms)}",
                100 * reference.held_out_mape_ratio,
            ),
            width=width,
        )

    return Picture(
        name="front",
        title="Error against complexity",
        caption=(
            "Every dot is the best expression of its size; whiskers are one standard error over "
            "what was left out together. The knee is the simplest that is no worse than the best "
            "by more than one standard error of the difference."
        ),
        alternative=(
            f"{len(points)} expressions of complexity {complexity[0]} to {complexity[-1]}: the "
            f"held-out error falls from {percent(held_out[0] / 100)} to "
            f"{percent(float(held_out.min()) / 100)}; the knee has {_terms(len(knee.terms))}, "
            f"complexity {knee.complexity} and {percent(knee.held_out_mape_ratio)}."
            + (
                f" The {reference.name} has {percent(reference.held_out_mape_ratio)}."
                if reference is not None
                else ""
            )
        ),
        draw=draw,
    )


def _terms(number: int) -> str:
    return f"{number} term{'' if number == 1 else 's'}"


def coefficients(
    names: Sequence[str], theta: FloatArray, low: FloatArray, high: FloatArray, *, rows: int
) -> Picture:
    """Show coefficients with their intervals; 1 is what the datasheet suggests."""

    def draw(width: int) -> Spec:
        labels = [name.replace("_", " ") for name in names]
        return charts.coefficients(labels, theta, low, high, width=width)

    return Picture(
        name="coefficients",
        title="The coefficients",
        caption=f"Fitted to {plural(rows, 'row')}; lines are 80 % intervals.",
        alternative=", ".join(
            f"{name} {value:.2f}" for name, value in zip(names, theta, strict=True)
        ),
        draw=draw,
    )
