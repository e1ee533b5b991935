"""Datasets, models, rankings, explanations and evaluations, shown: text, HTML, frame, figure.

One function a question, one case a kind of record; `energylens.viewing` finds them here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import singledispatch
from typing import Any

import numpy as np

from energylens import table
from energylens.dataset import Dataset, freed_columns
from energylens.evaluation.result import Evaluation
from energylens.evaluation.scoring import METRICS
from energylens.explanation import SUBJECTS, Explanation
from energylens.formula import OVERLAPS, datasheet
from energylens.model import EnergyModel
from energylens.records import Configuration
from energylens.selection import Ranked, Ranking
from energylens.viewing import Figure
from energylens.words import (
    html_table,
    joules,
    likelihood,
    listed,
    percent,
    plural,
    saving,
    short_name,
    table_lines,
    wrapped,
)

SHOWN = 5  # configurations that a short text lists
SAME_RATIO = 1e-3  # of the joules: choices nearer to each other than that take the same
NAMED = 56  # letters of a list of names
Columns = dict[str, list[Any]]
Cells = tuple[Sequence[str], Sequence[Sequence[str]]]  # a header, and rows
Parts = tuple[str, Sequence[str], Sequence[Sequence[str]], Sequence[str]]  # ... between sentences


def text(record: object) -> str:
    """Say in a few lines what a record holds."""
    head, header, rows, after = _parts(record)
    lines = [*wrapped(head)]
    if rows:
        words = len(header) == 2  # else numbers follow a name
        lines += ["", *table_lines(header, rows, left=2 if words else 1)]
    for sentence in after:
        lines += ["", *wrapped(sentence)]
    return "\n".join(lines)


def html(record: object) -> str:
    """Show the same in a notebook."""
    from html import escape

    head, header, rows, after = _parts(record)
    shown = html_table(header, rows, title=head) if rows else f"<p>{escape(head)}</p>"
    return shown + "".join(f"<p>{escape(sentence)}</p>" for sentence in after)


@singledispatch
def _parts(record: object) -> Parts:
    raise TypeError(f"nothing is known of how to show a {type(record).__qualname__}")


@singledispatch
def columns(record: object) -> Columns:
    """Columns of a record's frame: cells by name, None where there is none."""
    raise TypeError(f"a {type(record).__qualname__} has no rows")


@singledispatch
def picture(record: object) -> Figure:
    """Draw a record."""
    raise TypeError(f"a {type(record).__qualname__} has no figure")


# ----------------------------------------------------------------------------------- a dataset


def _some(names: Iterable[str]) -> str:
    found = sorted({short_name(name) for name in names})
    count = 1
    while count < len(found) and len(", ".join(found[: count + 1])) <= NAMED:
        count += 1
    more = f" and {len(found) - count} more" if len(found) > count else ""
    return ", ".join(found[:count])[:NAMED] + more


@_parts.register
def _(record: Dataset) -> Parts:
    n = len(record)
    head = f"{plural(n, 'row')} of {plural(len(set(record.llm_ids)), 'LLM')}"
    if not n:
        return f"{head}.", (), [], ()
    energy = record.energy_per_request_j
    batch = record.cases.batch_size
    known = batch[np.isfinite(batch)]
    facts = [
        ("LLMs", _some(record.llm_ids)),
        ("GPU types", _some(record.gpu_ids)),
        ("precisions", _some(record.precision_ids)),
        ("engines", _some(str(e) or "not named" for e in record.engine_ids)),
        ("energy per request", f"{joules(float(energy.min()))} to {joules(float(energy.max()))}"),
        ("source", listed(f"{rows:,} {name}" for name, rows in record.source_counts().items())),
    ]
    if len(known):
        facts.insert(4, ("batch limit", f"{known.min():g} to {known.max():g}"))
    unclaimed = table.unclaimed(record)
    return (
        f"{head} on {_some(record.gpu_ids)}.",
        ("rows", "what they hold"),
        facts,
        ((unclaimed,) if unclaimed else ()),
    )


@columns.register
def _(record: Dataset) -> Columns:
    return table.columns_of(record)


@picture.register
def _(record: Dataset) -> Figure:
    from energylens.report import figures

    return figures.energy_against_batch(record)


# ------------------------------------------------------------------------------------- a model


def _coefficients(record: EnergyModel) -> Columns:
    from energylens import catalog

    pooled, terms = record.pooled, record.terms
    low, high = pooled.interval_80()
    known = catalog.gpus()
    gpus = tuple(known[name] for name in record.scope.gpus if name in known)
    held: Columns = {
        "coefficient": [term.name for term in terms],
        "theta": pooled.theta.tolist(),
        "low": low.tolist(),
        "high": high.tolist(),
        "unit": [term.unit for term in terms],
        "meaning": [term.meaning for term in terms],
    }
    if gpus:
        for gpu, expected in zip(gpus, datasheet(gpus, terms), strict=True):
            sets = record.coefficients("", gpu.id, "", "")
            held[f"value {gpu.id}"] = (sets.theta * expected).tolist()
    return held


@_parts.register
def _(record: EnergyModel) -> Parts:
    held = _coefficients(record)
    rows = [
        (name, f"{theta:.2f}", f"{low:.2f} .. {high:.2f}")
        for name, theta, low, high in zip(
            held["coefficient"], held["theta"], held["low"], held["high"], strict=True
        )
    ]
    n = record.pooled.rows
    head = (
        f"An energy model fitted to {plural(n, 'row')} of "
        f"{plural(len(record.scope.llms), 'LLM')} on {_some(record.scope.gpus)}"
        if n
        else "An energy model that rests on datasheets alone: no row was fitted"
    )
    own = f" Coefficients of their own: {_some(record.groups)}." if record.groups else ""
    return (
        f"{head}. Theta is a coefficient over what the GPU's datasheet suggests.{own}",
        ("coefficient", "theta", "80 % interval"),
        rows,
        (),
    )


@columns.register
def _(record: EnergyModel) -> Columns:
    return _coefficients(record)


@picture.register
def _(record: EnergyModel) -> Figure:
    from energylens.report import judged

    held = _coefficients(record)
    return judged.coefficients(
        held["coefficient"],
        *(np.array(held[name]) for name in ("theta", "low", "high")),
        rows=record.pooled.rows,
    )


def _escaped(name: str) -> str:
    return re.sub(r"([#$%&_{}])", r"\\\1", name)


def latex(model: EnergyModel) -> str:
    """Typeset the fitted law with numbers and intervals, as an ``align`` environment."""
    from energylens.discovery.expression import latex_number

    held, terms = _coefficients(model), model.terms
    roots = [" + ".join(f"e_{{{terms[k].symbol}}}^2" for k in pair) for pair in OVERLAPS]
    inside = {k for pair in OVERLAPS for k in pair}
    plain = [f"e_{{{term.symbol}}}" for k, term in enumerate(terms) if k not in inside]
    law = [*plain, *(rf"\sqrt{{{root}}}" for root in roots)]
    lines = [rf"E &= {law[0]}", *(rf"&\quad + {part}" for part in law[1:])]
    lines.append(r"e_k &= \theta_k \, D_k \, N_k")
    values = [name for name in held if name.startswith("value ")]
    for k, term in enumerate(terms):
        numbers = rf"{held['theta'][k]:.2f} \; [{held['low'][k]:.2f}, {held['high'][k]:.2f}]"
        costs = ", ".join(
            rf"{latex_number(held[name][k])}~\text{{{term.unit} on {_escaped(name[6:])}}}"
            for name in values
        )
        lines.append(
            rf"\theta_{{{term.symbol}}} &= {numbers}"
            + (rf" && \theta D = {costs}" if costs else "")
        )
    return "\n".join([r"\begin{align}", *(f"  {line} \\\\" for line in lines), r"\end{align}"])


# ----------------------------------------------------------------------------------- a ranking


def named(ranking: Ranking, entry: Ranked) -> str:
    """Name a configuration by what was free."""
    name = entry.configuration.describe() + running(entry.configuration)
    name += f" {entry.gpu}" if len(ranking.cases.gpus) > 1 else ""
    return name + (f" {entry.precision}" if len(ranking.cases.precisions) > 1 else "")


def running(configuration: Configuration) -> str:
    """Say how many sequences run where memory holds fewer than the batch limit."""
    mean = configuration.mean_batch_size
    return "" if mean is None else f" ({mean:.0f} at once)"


def advice(ranking: Ranking) -> str:
    """Say what to run, what it saves, and how sure that is."""
    winner, *others = ranking.served()
    said = f"Run {named(ranking, winner)}: {joules(winner.energy_per_request_j)} a request"
    if not others:
        return f"{said}. Nothing else is feasible."
    # Copies of a replica on more GPUs take the same joules a request: nothing is saved on them.
    more = winner.energy_per_request_j * (1.0 + SAME_RATIO)
    alike = [entry for entry in others if entry.energy_per_request_j <= more]
    others = others[len(alike) :]
    if alike:
        least = min(alike, key=lambda entry: entry.configuration.gpus)
        said += f", as {plural(len(alike), 'other')} would ({named(ranking, least)} among them)"
    compared = (
        {"the next best": others[0], "the worst feasible choice": others[-1]} if others else {}
    )
    compared = dict(list(compared.items())[: len(others)])
    least_j = winner.energy_per_request_j
    against = [
        f"{joules(other.energy_per_request_j - least_j)} "
        f"({saving(1.0 - least_j / other.energy_per_request_j)}) less than {what}, "
        f"{named(ranking, other)}"
        for what, other in compared.items()
    ]
    said += "".join(f"{', and ' if place else ', '}{part}" for place, part in enumerate(against))
    if winner.probability_best_ratio is not None:
        regret = ranking.expected_regret_ratio or 0.0
        said += (
            f". It is the best with probability {likelihood(winner.probability_best_ratio)}; "
            f"choosing it is expected to cost {'under 0.1 %' if regret < 5e-4 else percent(regret)}"
            " over the true best"
        )
    return f"{said}."


def ranking_cells(ranking: Ranking, count: int) -> Cells:
    """Header and cells of the first ways of serving."""
    rows = [
        (
            named(ranking, entry),
            str(entry.configuration.gpus),
            joules(entry.energy_per_request_j),
            "-"
            if entry.lower_j is None or entry.upper_j is None
            else f"{joules(entry.lower_j)} .. {joules(entry.upper_j)}",
            likelihood(entry.probability_best_ratio),
        )
        for entry in ranking.served(count)
    ]
    interval = f"{percent(ranking.coverage_ratio, 0)} interval"
    return ("configuration", "GPUs", "per request", interval, "is best"), rows


@_parts.register
def _(record: Ranking) -> Parts:
    header, rows = ranking_cells(record, SHOWN)
    said = (advice(record), *((record.caution,) if record.caution else ()))
    if "batch_size" not in freed_columns(record.choose):
        limit = f"{record.cases.batch_size[0]:g}"
        said += (f"The batch limit is fixed at {limit}: choose batch_size, too, to free it.",)
    return record.describe(), header, rows, tuple(dict.fromkeys((*said, *record.notes)))


@columns.register
def _(record: Ranking) -> Columns:
    return _transposed([entry.to_json() for entry in record.entries()])


@picture.register
def _(record: Ranking) -> Figure:
    from energylens.report import figures

    return figures.ranking_with_intervals(record)


def _transposed(rows: list[dict[str, Any]]) -> Columns:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


# ------------------------------------------------------------------------------ an explanation


@_parts.register
def _(record: Explanation) -> Parts:
    rows = [
        (
            SUBJECTS.get(t.name, t.name),
            joules(t.prefill_j) if t.prefill_j else "-",
            joules(t.decode_j) if t.decode_j else "-",
            percent(t.total_j / record.energy_per_request_j, 0),
        )
        for t in sorted(record.terms, key=lambda t: -t.total_j)
        if t.total_j > 0
    ]
    header = ("where the joules go", "prefill", "decode", "share")
    return record.case, header, rows, (*record.sentences, *record.notes)


@columns.register
def _(record: Explanation) -> Columns:
    return {
        "term": [t.name for t in record.terms],
        "what": [SUBJECTS.get(t.name, t.name) for t in record.terms],
        "prefill_j": [t.prefill_j for t in record.terms],
        "decode_j": [t.decode_j for t in record.terms],
        "low_j": [t.low_j for t in record.terms],
        "high_j": [t.high_j for t in record.terms],
    }


@picture.register
def _(record: Explanation) -> Figure:
    from energylens.report import figures

    return figures.where_the_joules_go(record)


# ------------------------------------------------------------------------------- an evaluation


@_parts.register
def _(record: Evaluation) -> Parts:
    scores = sorted(
        record.estimators.items(),
        key=lambda item: (
            item[1].metrics.regret_mean_ratio is None,
            item[1].metrics.regret_mean_ratio or 0.0,
        ),
    )
    rows = [
        (
            name,
            percent(score.metrics.top1_ratio),
            percent(score.metrics.pairwise_ratio),
            percent(score.metrics.regret_mean_ratio, 2),
            percent(score.metrics.mape_ratio),
        )
        for name, score in scores
    ]
    train = max((score.train_rows for score in record.estimators.values()), default=0)
    asked = record.asked
    head = (
        f"{asked.protocol}: {plural(record.rows, 'row')}, {plural(record.scenarios, 'scenario')}, "
        f"trained on {plural(train, 'row')}, {plural(record.repeats, 'repeat')}, seed {asked.seed}"
        + ("." if record.accuracy_claim else ". NO ACCURACY CLAIM rests on these rows.")
    )
    return head, ("estimator", "Top-1", "pairs", "regret", "MAPE"), rows, ()


@columns.register
def _(record: Evaluation) -> Columns:
    rows: list[dict[str, Any]] = []
    for point in record.points:
        for name, score in point.scores.items():
            rows.append(
                {
                    "estimator": name,
                    "train_rows": score.train_rows,
                    "calibration_rows": point.calibration,
                    "power_known": point.power_known,
                    **{metric: getattr(score.metrics, metric) for metric in METRICS},
                    "fits": score.fits,
                    "failed_fits": score.failed_fits,
                }
            )
    return _transposed(rows)


@picture.register
def _(record: Evaluation) -> Figure:
    from energylens.report import judged

    return (
        judged.learning_curves(record)
        if record.asked.protocol == "learning-curve" and len(record.points) > 1
        else judged.regret_by_estimator(record)
    )
