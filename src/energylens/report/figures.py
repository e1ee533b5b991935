"""Records in, pictures out: what each figure shows in numbers and words, and how it is drawn.

A :class:`Picture` carries its numbers and its text alternative without drawing anything, so
that a text report needs no plotting library. Drawn, it is SVG whose text is text and whose
colours are CSS variables: inside a page it follows the page's theme, on its own the reader's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from energylens.cases import Cases, FloatArray, IntArray
from energylens.charts import energy as charts_energy
from energylens.charts import judged as charts_judged
from energylens.charts.theme import SHAPES, Spec
from energylens.dataset import Dataset, StrArray, group_rows
from energylens.errors import UsageError
from energylens.evaluation.result import Evaluation
from energylens.formula import Term
from energylens.model import EnergyModel
from energylens.protocols import IntervalPredictor, Predictor
from energylens.report.drawing import Picture
from energylens.selection import Ranking
from energylens.words import percent, short_name, si

if TYPE_CHECKING:
    from energylens.discovery import Front

COMPARABLE_RATIO = 6.0  # bars further apart cannot be read on one scale
FRAME_RATIO = 6.0  # of the median: longer bars leave the frame
POINTS = 1500  # most rows that a scatter draws
FEW_DRAWS = 20  # fewer have no nine tenths
BARS = 12  # most configurations or scenarios that a figure lists
LABEL = 40  # most letters of a name beside an axis
CURVES = 6  # most estimators that a learning curve names
OURS = "energylens"

_CURVE_METRICS = (
    ("top1_within_noise_ratio", "choice within noise of the best (%)"),
    ("regret_mean_ratio", "mean regret (%)"),
    ("mape_ratio", "mean absolute error (%)"),
)
_CURVE_KINDS = {
    "top1_within_noise_ratio": "top1",
    "regret_mean_ratio": "regret",
    "mape_ratio": "error",
}


def known_latency(dataset: Dataset) -> tuple[FloatArray, str]:
    """Give the latency that more rows have, shape (rows,) in seconds, and what it is called."""
    cases = dataset.cases
    if np.isfinite(cases.request_latency_s).sum() >= np.isfinite(cases.tpot_s).sum():
        return cases.request_latency_s, "request latency"
    return cases.tpot_s, "time per output token"


def latency_word(dataset: Dataset) -> str:
    """Say what the latencies of these rows are: those of other rows may well be measured."""
    word = known_as(dataset)
    return word if word in ("measured", "simulated") else "recorded"


def _spread(count: int, limit: int) -> IntArray:
    """Return all places of ``count``, or ``limit`` of them, evenly spread, both ends included."""
    return np.unique(np.linspace(0, count - 1, min(count, limit)).round().astype(np.intp))


def row_names(dataset: Dataset, rows: IntArray) -> list[str]:
    """Say what rows are, briefly: what a hover over one of them says."""
    cases = dataset.cases.take(rows)
    return [
        f"{short_name(str(llm))}, {gpu} {precision}, {cases.case(i).configuration.describe()}"
        for i, (llm, gpu, precision) in enumerate(
            zip(
                dataset.llm_ids[rows],
                dataset.gpu_ids[rows],
                dataset.precision_ids[rows],
                strict=True,
            )
        )
    ]


def known_as(dataset: Dataset) -> str:
    """Say in a word what the joules of the rows are: "measured" only if all of them are."""
    if dataset.carries_accuracy_claim.all():
        return "measured"
    kinds = set(dataset.source.astype(str))
    return str(kinds.pop()) if len(kinds) == 1 else "recorded"


# -------------------------------------------------------------------- 1 predicted and measured


def predicted_against_measured(
    predictor: Predictor, dataset: Dataset, *, in_sample: bool, coverage_ratio: float = 0.8
) -> Picture:
    """Show predicted over measured joules of all rows, on logarithmic axes.

    Joules that are not measured are called what they are, as in all figures.

    Parameters
    ----------
    predictor : Predictor
        With intervals, if it is an ``IntervalPredictor``.
    dataset : Dataset
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
    shown = _spread(n, POINTS)
    caption = "On the diagonal the prediction is exact. " + (
        "The model was fitted to these same rows, so this shows how well the law can describe "
        "them, not how well it foretells others."
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
        return charts_judged.predictions(
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


# --------------------------------------------------------------------------- 2 where joules go


def energy_breakdown(
    model: EnergyModel,
    cases: Cases,
    *,
    measured_j: FloatArray | None = None,
    word: str = "measured",
) -> Picture:
    """Show the joules of each case, split by phase and term of the law.

    Parameters
    ----------
    model : EnergyModel
    cases : Cases
        n cases, in the order to be shown; more than a dozen are thinned out.
    measured_j : ndarray, shape (n,), optional
        Measured joules, marked beside.
    word : str
        What they are, as :func:`known_as` says.
    """
    keep = _spread(len(cases), BARS)
    thinned = len(keep) < len(cases)
    cases = cases.take(keep)
    measured = None if measured_j is None else measured_j[keep]
    prefill, decode = model.predict_parts_j(cases)
    parts, total = prefill + decode, (prefill + decode).sum(axis=1)
    labels = configuration_labels(cases)
    visible = (parts / total[:, None]).max(axis=0) >= 0.01
    seen = np.flatnonzero(visible)
    segments = [
        charts_energy.Segment(name=term_title(model.terms[k]), role=role, energy_j=parts[:, k])
        for k, role in zip(seen, _term_roles([model.terms[k] for k in seen]), strict=True)
    ]
    if (parts[:, ~visible] > 0).any():
        others = parts[:, ~visible].sum(axis=1)
        segments.append(
            charts_energy.Segment(name="Others, below 1 % each", role="line", energy_j=others)
        )

    phases = np.array([_phase(term) for term in model.terms])
    columns = [
        (phase.capitalize(), parts[:, phases == phase].sum(axis=1))
        for phase in ("prefill", "decode")
    ]
    columns += [
        (term_title(term), parts[:, k])
        for k, term in enumerate(model.terms)
        if phases[k] == "layout" and parts[:, k].any()
    ]
    rows = tuple(
        (
            label,
            si(float(total[i]), "J"),
            *([] if measured is None else [si(float(measured[i]), "J")]),
            *(si(float(joules[i]), "J") for _, joules in columns),
        )
        for i, label in enumerate(labels)
    )

    # Where one bar dwarfs another, a second panel shows what each consists of.
    panels = 2 if float(total.max() / total.min()) > COMPARABLE_RATIO else 1
    # A few that are far longer than the rest leave the frame, lest the rest be slivers.
    within = total <= FRAME_RATIO * float(np.median(total))
    frame_j = 1.25 * float(total[within].max())

    def draw(width: int) -> Spec:
        return charts_energy.breakdown(
            labels,
            segments,
            frame_j=frame_j,
            beyond=[
                (int(row), f"{si(float(total[row]), 'J')} \N{RIGHTWARDS ARROW}")
                for row in np.flatnonzero(~within)
            ],
            marked_j=None if measured is None else measured.tolist(),
            marked=word,
            shares=panels == 2,
            width=width,
        )

    first, last = (_shares(dict(columns), total, i) for i in (0, -1))
    case = cases.case(0)
    return Picture(
        name="breakdown",
        title="Where the joules go",
        caption=(
            f"{short_name(case.llm.id)}, {case.workload.input_tokens:.0f} tokens in, "
            f"{case.workload.output_tokens:.0f} out. Blue is prefill, orange decode, the rest what "
            "the layout adds. GPUs that wait are in the launch and sequence terms."
            + (f" Diamonds are {word}." if measured is not None else "")
            + ("" if within.all() else " A bar that leaves the frame says how long it is.")
            + (" Evenly spaced from the fewest joules to the most." if thinned else "")
        ),
        alternative=(
            f"Stacked bars of {len(total)} configurations. {labels[0]}: {rows[0][1]}, {first}."
            + (f" {labels[-1]}: {rows[-1][1]}, {last}." if len(total) > 1 else "")
        ),
        columns=(
            "Configuration",
            "Predicted",
            *([] if measured is None else [word.capitalize()]),
            *(name for name, _ in columns),
        ),
        rows=rows,
        draw=draw,
    )


def term_title(term: Term) -> str:
    """Write the name of a term as words."""
    words = term.name.replace("_", " ").replace("gpus", "GPUs")
    return words[0].upper() + words[1:]


def _phase(term: Term) -> str:
    return "decode" if term.prefill is None else "prefill" if term.decode is None else "layout"


def _term_roles(terms: Sequence[Term]) -> tuple[str, ...]:
    """Colour role of each term: shades of a hue for each phase, a hue each for the layout."""
    shades = {"prefill": 4, "decode": 5, "layout": 3}
    used = dict.fromkeys(shades, 0)
    roles = []
    for term in terms:
        phase = _phase(term)
        roles.append(f"{phase}-{used[phase] % shades[phase] + 1}")
        used[phase] += 1
    return tuple(roles)


def _shares(columns: Mapping[str, FloatArray], total: FloatArray, row: int) -> str:
    shares = {name.lower(): float(joules[row] / total[row]) for name, joules in columns.items()}
    return ", ".join(
        f"{name} {percent(share, 0)}" for name, share in shares.items() if share >= 0.005
    )


def configuration_labels(cases: Cases) -> tuple[str, ...]:
    """Name configurations by what differs among them, or in full where nothing does."""
    symbols = {
        "TP": cases.tensor_parallel,
        "PP": cases.pipeline_parallel,
        "EP": cases.expert_parallel,
        "DP": cases.data_parallel,
        "B": cases.batch_size,
    }
    varying = {symbol: column for symbol, column in symbols.items() if np.ptp(column) > 0}
    names = [
        [f"{symbol}{column[i]:g}" for symbol, column in varying.items()] for i in range(len(cases))
    ]
    for records, index in (
        (cases.precisions, cases.precision_index),
        (cases.gpus, cases.gpu_index),
    ):
        if len(set(index.tolist())) > 1:
            for i, place in enumerate(index):
                names[i].append(records[place].id)
    if not any(names):
        return tuple(cases.case(i).configuration.describe() for i in range(len(cases)))
    return tuple(" ".join(parts) for parts in names)


# ------------------------------------------------------------------------------ 3 the ranking


def ranking_with_intervals(ranking: Ranking) -> Picture:
    """Show the first dozen of a ranking: joules, intervals, probability of being the best."""
    count = min(len(ranking), BARS)
    entries = ranking.served(count)
    labels = configuration_labels(ranking.cases.take(slice(0, count)))
    lower, upper = ranking.lower_j[:count], ranking.upper_j[:count]
    sure = len(lower) == count and bool(np.isfinite([lower, upper]).all())
    probable = all(e.probability_best_ratio is not None for e in entries)
    reference = ranking.reference_energy_per_request_j
    widest = float(upper.max()) if sure else entries[-1].energy_per_request_j
    in_frame = reference is not None and reference < 1.5 * widest
    against = ""
    if reference is not None and ranking.reference is not None:
        name = ranking.reference.describe()
        against = (
            f" The dashed line is {name}, compared with."
            if in_frame
            else f" {name}, compared with, lies beyond the frame at {si(reference, 'J')}."
        )

    def draw(width: int) -> Spec:
        return charts_energy.ranking(
            labels,
            [entry.energy_per_request_j for entry in entries],
            lower_j=lower.tolist() if sure else None,
            upper_j=upper.tolist() if sure else None,
            chance_ratio=[e.probability_best_ratio or 0.0 for e in entries] if probable else None,
            reference_j=reference if in_frame else None,
            width=width,
        )

    rows = tuple(
        (
            f"{entry.rank}",
            label,
            f"{entry.configuration.gpus}",
            si(entry.energy_per_request_j, "J"),
            si(entry.energy_per_output_token_j, "J"),
            "-"
            if entry.lower_j is None or entry.upper_j is None
            else f"{si(entry.lower_j, 'J')} to {si(entry.upper_j, 'J')}",
            percent(entry.probability_best_ratio, 0),
        )
        for entry, label in zip(entries, labels, strict=True)
    )
    best = entries[0]
    return Picture(
        name="ranking",
        title="The ranking, and how sure it is",
        caption=(
            f"The first {count} of {len(ranking):,} feasible configurations."
            + (
                f" Lines are {percent(ranking.coverage_ratio, 0)} intervals for a new run;"
                if sure
                else ""
            )
            + (
                " they move together, so overlap does not mean that the order is open: the bars "
                "say how often each comes first in 1,000 joint draws."
                if sure and probable
                else ""
            )
            + against
        ),
        alternative=(
            f"{count} configurations by predicted joules per request. First {labels[0]} with "
            f"{si(best.energy_per_request_j, 'J')}"
            + (
                f", best with a probability of {percent(best.probability_best_ratio, 0)}"
                if probable
                else ""
            )
            + (
                f"; last shown {labels[-1]} with {si(entries[-1].energy_per_request_j, 'J')}"
                if count > 1
                else ""
            )
            + "."
        ),
        columns=(
            "Rank",
            "Configuration",
            "GPUs",
            "Energy per request",
            "Energy per output token",
            f"{percent(ranking.coverage_ratio, 0)} interval",
            "Probability of being best",
        ),
        rows=rows,
        draw=draw,
    )


# ------------------------------------------------------------------------- 4 learning curves


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
    if evaluation.protocol != "learning-curve":
        raise UsageError(
            "learning curves need an evaluation by the protocol learning-curve; "
            f"given {evaluation.protocol}"
        )
    sizes = [point.train or 0 for point in evaluation.points]
    named = _strongest(evaluation)
    others = [name for name in evaluation.estimators if name not in named]
    metrics = [
        (metric, label)
        for metric, label in _CURVE_METRICS
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
        return charts_judged.learning(
            [
                (
                    _CURVE_KINDS[metric],
                    label,
                    {name: curve(name, metric)[0] for name in evaluation.estimators},
                    curve(named[0], metric)[1][:, [0, 2]],
                )
                for metric, label in metrics
            ],
            sizes,
            named=named,
            others=others,
            width=width,
        )

    columns = ("Estimator", "Metric", *(f"n = {size}" for size in sizes))
    rows = tuple(
        (name, label.removesuffix(" (%)"), *(percent(v / 100) for v in curve(name, metric)[0]))
        for metric, label in metrics
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
            f"{percent(evaluation.noise_ratio, 0)} of the best."
            + (
                f" {len(others)} weaker estimators are grey; where they leave the frame, the table "
                "has their numbers."
                if others
                else ""
            )
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


# ------------------------------------------------------------------------- 5 latency and energy


@dataclass(frozen=True, kw_only=True)
class _Tradeoff:
    """The two optima of one scenario, as rows of the dataset."""

    rows: IntArray
    fastest: int
    frugal: int
    extra_energy_ratio: float  # of the fastest over the most frugal
    extra_latency_ratio: float  # of the most frugal over the fastest


def latency_against_energy(
    dataset: Dataset, choose: Sequence[str], *, row: int | None = None
) -> Picture | None:
    """Show latency and energy of the rows, with the optimum of each marked.

    One scenario in its own units, and what one optimum costs in terms of the other in all.

    Parameters
    ----------
    dataset : Dataset
    choose : sequence of str
        The free knobs: what configurations of one scenario differ in.
    row : int, optional
        A row of the scenario to be drawn; by default one whose two optima differ.

    Returns
    -------
    Picture or None
        None if no scenario has two rows with a latency.
    """
    cases, energy = dataset.cases, dataset.energy_per_request_j
    latency, what = known_latency(dataset)
    trades = []
    for scenario in dataset.scenarios(choose):
        known = scenario[np.isfinite(latency[scenario])]
        if len(known) < 2:
            continue
        fastest = int(known[np.lexsort((energy[known], latency[known]))[0]])
        frugal = int(known[np.lexsort((latency[known], energy[known]))[0]])
        trades.append(
            _Tradeoff(
                rows=known,
                fastest=fastest,
                frugal=frugal,
                extra_energy_ratio=float(energy[fastest] / energy[frugal] - 1.0),
                extra_latency_ratio=float(latency[frugal] / latency[fastest] - 1.0),
            )
        )
    if not trades:
        return None
    apart = [t for t in trades if t.fastest != t.frugal]
    shown = next((t for t in trades if row in t.rows), None) or max(
        apart or trades, key=lambda t: len(t.rows)
    )
    extra = float(np.median([t.extra_energy_ratio for t in apart])) if apart else 0.0
    drawn = shown.rows[np.argsort(latency[shown.rows], kind="stable")]
    drawn = np.union1d(drawn[_spread(len(drawn), POINTS)], [shown.fastest, shown.frugal])
    labels = dict(zip(drawn.tolist(), configuration_labels(cases.take(drawn)), strict=True))
    unit = "s" if float(latency[drawn].max()) >= 1.0 else "ms"
    scale = 1.0 if unit == "s" else 1e3

    def optimum(row: int) -> charts_energy.Optimum:
        return charts_energy.Optimum(
            name=labels[row], latency=scale * float(latency[row]), energy_j=float(energy[row])
        )

    plain = np.setdiff1d(drawn, [shown.fastest, shown.frugal])

    def draw(width: int) -> Spec:
        return charts_energy.latency_energy(
            [labels[int(row)] for row in plain],
            (scale * latency[plain]).tolist(),
            energy[plain].tolist(),
            unit=unit,
            what=what,
            title=short_name(str(dataset.llm_ids[shown.rows[0]])),
            frugal=optimum(shown.frugal),
            fastest=optimum(shown.fastest),
            named=len(plain) <= BARS,
            ratios=(
                [1 + t.extra_latency_ratio for t in trades],
                [1 + t.extra_energy_ratio for t in trades],
                [_scenario_name(dataset, t.rows) for t in trades],
            )
            if len(trades) > 1
            else None,
            width=width,
        )

    rows = tuple(
        (
            _scenario_name(dataset, t.rows),
            *(
                value
                for row in (t.frugal, t.fastest)
                for value in (
                    cases.case(row).configuration.describe(),
                    si(float(energy[row]), "J"),
                    si(float(latency[row]), "s"),
                )
            ),
        )
        for t in sorted(trades, key=lambda t: -t.extra_energy_ratio)[:BARS]
    )
    return Picture(
        name="latency-energy",
        title="Latency against energy",
        caption=(
            f"{latency_word(dataset).capitalize()} {what}. In {len(apart)} of {len(trades)} "
            "scenarios the fastest configuration is not the one with the fewest joules"
            + (f"; there it takes {1 + extra:.2f} times as many in the median." if apart else ".")
            + (
                " Left one scenario, right what either choice costs in all of them."
                if len(trades) > 1
                else ""
            )
        ),
        alternative=(
            f"{_scenario_name(dataset, shown.rows)}: {len(shown.rows)} configurations. Fewest "
            f"joules {labels[shown.frugal]} with {si(float(energy[shown.frugal]), 'J')} at "
            f"{si(float(latency[shown.frugal]), 's')}; fastest {labels[shown.fastest]} with "
            f"{si(float(energy[shown.fastest]), 'J')} at {si(float(latency[shown.fastest]), 's')}."
        ),
        columns=(
            "Scenario",
            "Most frugal",
            "Its energy",
            "Its latency",
            "Fastest",
            "Energy of the fastest",
            "Its latency",
        ),
        rows=rows,
        draw=draw,
    )


# --------------------------------------------------------------------------- 6 where we are worst


def residuals_by_scenario(
    dataset: Dataset, error_ratio: FloatArray, *, held_out: bool
) -> Picture | None:
    """Show predicted over measured in the scenarios with the largest errors.

    Parameters
    ----------
    dataset : Dataset
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
            group[np.argsort(ratio[group])][_spread(len(group), POINTS // len(worst))]
            for group in worst
        ]
        return charts_judged.residuals(
            [_scenario_name(dataset, group, "\n") for group in worst],
            [ratio[group] for group in dots],
            [row_names(dataset, group) for group in dots],
            word=known_as(dataset),
            width=width,
        )

    rows = tuple(
        (
            _scenario_name(dataset, group),
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


def _scenario_name(dataset: Dataset, rows: IntArray, separator: str = ", ") -> str:
    cases, row = dataset.cases, int(rows[0])
    lengths = f"{cases.input_tokens[row]:.0f}+{cases.output_tokens[rows].mean():.0f} tokens"
    details = (
        str(dataset.gpu_ids[row]),
        str(dataset.precision_ids[row]),
        str(dataset.task[row]) or lengths,
    )
    name = short_name(str(dataset.llm_ids[row]))
    if separator == "\n":  # in the margin of a figure
        name = name if len(name) <= LABEL else f"{name[: LABEL - 1]}…"
    return f"{name}{separator}{', '.join(details)}"


# ------------------------------------------------------------------------- 7 what discovery found


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
        return charts_judged.forms(
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
