"""Figures of joules: by term, by configuration, by batch, against latency.

A `Picture` carries its numbers and its text alternative without drawing anything, so that a text
report needs no plotting library.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from energylens.cases import Cases, FloatArray, IntArray
from energylens.charts import energy as charts
from energylens.charts.service import JOULE_ROLES
from energylens.charts.theme import Spec
from energylens.dataset import Dataset
from energylens.explanation import SUBJECTS, Explanation
from energylens.formula import Term
from energylens.model import EnergyModel
from energylens.report.drawing import Picture
from energylens.report.naming import (
    BARS,
    POINTS,
    configuration_labels,
    configuration_name,
    known_latency,
    latency_word,
    scenario_name,
    spread,
    term_title,
)
from energylens.selection import Ranked, Ranking
from energylens.words import joules, percent, plural, short_name, si

COMPARABLE_RATIO = 6.0  # bars further apart cannot be read on one scale

FRAME_RATIO = 6.0  # of the median: longer bars leave the frame

LLMS = 6  # LLMs with a colour of their own


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
    cases : Cases
        n cases, in the order to be shown; more than a dozen are thinned out.
    measured_j : ndarray, shape (n,), optional
        Measured joules, marked beside.
    word : str
        What they are, as :func:`known_as` says.
    """
    keep = spread(len(cases), BARS)
    thinned = len(keep) < len(cases)
    cases = cases.take(keep)
    measured = None if measured_j is None else measured_j[keep]
    prefill, decode = model.predict_parts_j(cases)
    parts, total = prefill + decode, (prefill + decode).sum(axis=1)
    labels = configuration_labels(cases)
    visible = (parts / total[:, None]).max(axis=0) >= 0.01
    seen = np.flatnonzero(visible)
    segments = [
        charts.Segment(
            name=term_title(model.terms[k]),
            role=JOULE_ROLES[model.terms[k].name],
            energy_j=parts[:, k],
        )
        for k in seen
    ]
    if (parts[:, ~visible] > 0).any():
        others = parts[:, ~visible].sum(axis=1)
        segments.append(charts.Segment(name="Others, below 1 % each", role="line", energy_j=others))

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
        return charts.breakdown(
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


def _phase(term: Term) -> str:
    return "decode" if term.prefill is None else "prefill" if term.decode is None else "layout"


def _shares(columns: Mapping[str, FloatArray], total: FloatArray, row: int) -> str:
    shares = {name.lower(): float(joules[row] / total[row]) for name, joules in columns.items()}
    return ", ".join(
        f"{name} {percent(share, 0)}" for name, share in shares.items() if share >= 0.005
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


def served(ranking: Ranking, count: int) -> tuple[tuple[Ranked, ...], Cases]:
    """Give the first ways of serving, and their cases."""
    entries = ranking.served(count)
    return entries, ranking.cases.take(np.array([entry.rank - 1 for entry in entries]))


def ranking_with_intervals(ranking: Ranking) -> Picture:
    """Show the first dozen of a ranking: joules, intervals, probability of being the best."""
    entries, cases = served(ranking, BARS)
    count = len(entries)
    labels = configuration_labels(cases)
    lower = [entry.lower_j for entry in entries if entry.lower_j is not None]
    upper = [entry.upper_j for entry in entries if entry.upper_j is not None]
    sure = len(lower) == len(upper) == count
    probable = all(e.probability_best_ratio is not None for e in entries)
    reference = ranking.reference_energy_per_request_j
    widest = max(upper) if sure else entries[-1].energy_per_request_j
    in_frame = reference is not None and reference < 1.5 * widest
    against = ""
    if reference is not None and ranking.reference is not None:
        name = configuration_name(ranking.reference)
        against = (
            f" The dashed line is {name}, compared with."
            if in_frame
            else f" {name}, compared with, lies beyond the frame at {si(reference, 'J')}."
        )

    def draw(width: int) -> Spec:
        return charts.ranking(
            labels,
            [entry.energy_per_request_j for entry in entries],
            lower_j=lower if sure else None,
            upper_j=upper if sure else None,
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
            f"The first {count} of {len(ranking):,} feasible configurations"
            + (
                "; limits beyond what memory holds serve alike, and the largest stands for them."
                if len(ranking.served()) < len(ranking)
                else "."
            )
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
    drawn = np.union1d(drawn[spread(len(drawn), POINTS)], [shown.fastest, shown.frugal])
    labels = dict(zip(drawn.tolist(), configuration_labels(cases.take(drawn)), strict=True))
    unit = "s" if float(latency[drawn].max()) >= 1.0 else "ms"
    scale = 1.0 if unit == "s" else 1e3

    def optimum(row: int) -> charts.Optimum:
        return charts.Optimum(
            name=labels[row], latency=scale * float(latency[row]), energy_j=float(energy[row])
        )

    plain = np.setdiff1d(drawn, [shown.fastest, shown.frugal])

    def draw(width: int) -> Spec:
        return charts.latency_energy(
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
                [scenario_name(dataset, t.rows) for t in trades],
            )
            if len(trades) > 1
            else None,
            width=width,
        )

    rows = tuple(
        (
            scenario_name(dataset, t.rows),
            *(
                value
                for row in (t.frugal, t.fastest)
                for value in (
                    configuration_name(cases.case(row).configuration),
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
            f"{scenario_name(dataset, shown.rows)}: {len(shown.rows)} configurations. Fewest "
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
