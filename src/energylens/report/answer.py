"""What is said first: what to run, why, and how sure; and the choice in figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from energylens.cases import Cases, FloatArray, IntArray
from energylens.dataset import Dataset
from energylens.evaluation.result import Evaluation
from energylens.explanation import SUBJECTS, Explanation, scope_notes
from energylens.model import EnergyModel
from energylens.records import Case, Configuration
from energylens.report import figures, naming
from energylens.report.document import Block, Facts, Figure, Items, Prose, Section, Table
from energylens.report.naming import BARS, OURS, configuration_name
from energylens.report.trust import by_regret, protocol_title
from energylens.selection import Infeasible, Ranking
from energylens.words import J_PER_KWH, likelihood, listed, percent, plural, si


@dataclass(frozen=True, kw_only=True)
class _Times:
    """What the rows know of the latency of what is ranked."""

    scenario: IntArray  # the rows of the same scenario, those with a latency
    latency_s: FloatArray  # of every row of the dataset
    what: str
    word: str  # measured, simulated or recorded
    fastest: int
    chosen: int | None  # the row of the best configuration
    frugal: int  # the row with the fewest joules
    reference_is_fastest: bool


def summary(
    model: EnergyModel,
    dataset: Dataset,
    evaluations: Sequence[Evaluation],
    ranking: Ranking | None,
    explanation: Explanation | None,
    *,
    today: bool,
) -> Section:
    """Say what to run, why, and how sure that is; ``today`` if the reference is what runs now."""
    blocks: list[Block] = []
    reasons: list[str] = []
    if ranking is not None:
        times = times_of(ranking, dataset)
        blocks += _answer(ranking, times, dataset, today=today)
        reasons += _saving_words(model, ranking)
    else:
        error = np.abs(model.predict_energy_j(dataset.cases) / dataset.energy_per_request_j - 1.0)
        seen = model.dataset_digest == dataset.digest
        blocks.append(
            Prose(
                lead=True,
                text=(
                    f"One law of {len(model.terms)} coefficients describes "
                    f"{plural(len(dataset), 'row')} "
                    f"of {plural(len(set(dataset.llm_ids)), 'LLM')} on "
                    f"{listed(sorted(set(dataset.gpu_ids)))} to within "
                    f"{percent(float(error.mean()))} on average"
                    + (
                        ", judged on the rows it was fitted to."
                        if seen
                        else ", on rows it has not seen."
                    )
                ),
            )
        )
    if explanation is not None:
        reasons += explanation.sentences
    if reasons:
        blocks.append(Items(title="Why", items=tuple(reasons)))
    trust = _sure_words(evaluations, ranking)
    if trust:
        blocks.append(Items(title="How sure", items=trust))
    if ranking is not None and (notes := scope_notes(model, ranking.cases.case(0))):
        blocks.append(Items(title="Know before", items=tuple(notes)))
    return Section(name="summary", title="In brief", blocks=tuple(blocks))


def times_of(ranking: Ranking, dataset: Dataset) -> _Times | None:
    """Find the scenario that is ranked among the rows; None if its latencies are not known."""
    asked, cases = ranking.scenario, dataset.cases
    latency, what = naming.known_latency(dataset)
    workload = ranking.cases.case(0).workload  # less what cases do not keep, as the task

    def same(row: int) -> bool:
        case = cases.case(row)
        return (
            (case.llm, case.gpu, case.precision) == (asked.llm, asked.gpu, asked.precision)
            and (case.workload, case.engine) == (workload, asked.engine)
            and (case.boundary, case.node_gpus) == (asked.boundary, asked.node_gpus)
        )

    def row_of(configuration: Configuration, gpu: str, precision: str) -> int | None:
        wanted = (_layout(configuration), gpu, precision)
        for row in rows:
            case = cases.case(int(row))
            if (_layout(case.configuration), case.gpu.id, case.precision.id) == wanted:
                return int(row)
        return None

    scenario = next((s for s in dataset.scenarios(ranking.choose) if same(int(s[0]))), None)
    rows = np.empty(0, np.intp) if scenario is None else scenario[np.isfinite(latency[scenario])]
    if len(rows) < 2:
        return None
    energy = dataset.energy_per_request_j
    fastest = int(rows[np.argmin(latency[rows])])
    best, reference = ranking.served()[0], ranking.reference
    return _Times(
        scenario=rows,
        latency_s=latency,
        what=what,
        word=naming.latency_word(dataset),
        fastest=fastest,
        chosen=row_of(best.configuration, best.gpu, best.precision),
        frugal=int(rows[np.argmin(energy[rows])]),
        reference_is_fastest=reference is not None
        and _layout(cases.case(fastest).configuration) == _layout(reference),
    )


def _layout(configuration: Configuration) -> Configuration:
    """Leave out the batch that really ran: a limit is what one sets."""
    return replace(configuration, mean_batch_size=None)


def _price_words(ranking: Ranking, times: _Times | None, dataset: Dataset) -> str:
    """Say what the choice costs in latency, and why it is compared with what it is."""
    if times is None:
        return ""
    chosen, fastest = times.chosen, times.fastest
    cases = dataset.cases
    name = configuration_name(cases.case(fastest).configuration)
    if chosen == fastest:
        return f"It is also the fastest of the {len(times.scenario)} configurations among the rows."
    why = (
        f"{name}, which it is compared with because it is the fastest of the "
        f"{len(times.scenario)} configurations among the rows"
        if times.reference_is_fastest
        else f"the fastest of the {len(times.scenario)} configurations among the rows, {name}"
    )
    quick = si(float(times.latency_s[fastest]), "s")
    if chosen is None:
        frugal = configuration_name(cases.case(times.frugal).configuration)
        return (
            f"The price is time: no row has {configuration_name(ranking.best.configuration)} "
            f"itself, but with {frugal}, of the rows the one with the fewest joules, the "
            f"{times.word} {times.what} is {si(float(times.latency_s[times.frugal]), 's')}, "
            f"against {quick} with {why}."
        )
    return (
        f"The price is time: its {times.word} {times.what} is "
        f"{si(float(times.latency_s[chosen]), 's')}, against {quick} with {why}."
    )


def _answer(
    ranking: Ranking, times: _Times | None, dataset: Dataset, *, today: bool
) -> list[Block]:
    best = ranking.served()[0]
    name = configuration_name(best.configuration)
    energy = best.energy_per_request_j
    saving, reference = ranking.saving_against_reference_ratio, ranking.reference
    against_j = ranking.reference_energy_per_request_j
    running = best.configuration.mean_batch_size
    # A limit beyond what memory holds is reached by no batch.
    held = "" if running is None else f" ({running:.0f} run at once, as many as fit)"
    lead = (
        f"Run {name}{held} on {plural(best.configuration.gpus, 'GPU')} "
        f"({best.gpu}, {best.precision}): {si(energy, 'J')} per request"
    )
    facts = [
        (
            "Energy per request",
            si(energy, "J"),
            f"{energy * 1e6 / J_PER_KWH:,.1f} kWh per million requests",
        )
    ]
    if saving is not None and reference is not None and against_j is not None:
        difference = against_j - energy
        word = "less" if difference >= 0 else "more"
        own, itself = (
            configuration_name(reference),
            _layout(reference) == _layout(best.configuration),
        )
        fastest = times is not None and times.reference_is_fastest
        # A row that is merely the fastest is nobody's plan: what it takes is a figure, no headline.
        if itself:
            lead += ", which runs today." if today else "."
        elif today or not fastest:
            much = f"{si(abs(difference), 'J')} or {percent(abs(saving), 0)}"
            lead += f", {much} {word} than {own}{', which runs today' if today else ''}."
        else:
            lead += "."
        facts.append(
            (
                "Against the fastest row" if fastest and not today else f"Against {own}",
                f"{percent(abs(saving), 0)} {'saved' if difference >= 0 else 'more'}",
                f"{own} takes {si(against_j, 'J')}; --current names what runs today"
                if fastest and not today
                else f"{si(abs(difference), 'J')} {word} than its {si(against_j, 'J')}",
            )
        )
    else:
        lead += "."
        facts.append(
            (
                "Against the worst feasible",
                f"{likelihood(ranking.saving_against_worst_ratio)} less",
                f"of {plural(len(ranking), 'feasible configuration')}; --current names what "
                "runs today",
            )
        )
    if best.lower_j is not None and best.upper_j is not None:
        facts.append(
            (
                f"{percent(ranking.coverage_ratio, 0)} interval",
                f"{si(best.lower_j, 'J')} to {si(best.upper_j, 'J')}",
                "where a new run should lie",
            )
        )
    if best.probability_best_ratio is not None:
        facts.append(
            (
                "Probability of being best",
                likelihood(best.probability_best_ratio),
                ""
                if ranking.expected_regret_ratio is None
                else "expected to cost "
                f"{percent(ranking.expected_regret_ratio)} over the true best",
            )
        )
    price = _price_words(ranking, times, dataset)
    return [
        Prose(text=lead, lead=True),
        Facts(facts=tuple(facts)),
        *([Prose(text=price)] if price else []),
    ]


def _saving_words(model: EnergyModel, ranking: Ranking) -> list[str]:
    """Say which terms of the law make the difference to the configuration compared with."""
    if ranking.reference is None or model.measured_power:
        return []
    cases = Cases.of([ranking.cases.case(0), _reference_case(ranking)])
    prefill, decode = model.predict_parts_j(cases)
    total = prefill + decode
    saved = total[1] - total[0]
    most = [k for k in np.argsort(-saved)[:2] if saved[k] > 0]
    if not most or saved.sum() <= 0:
        return []
    words = listed(f"{SUBJECTS[model.terms[k].name]} ({si(float(saved[k]), 'J')})" for k in most)
    return [f"What it saves over {configuration_name(ranking.reference)} is mostly {words}."]


def _reference_case(ranking: Ranking) -> Case:
    s = ranking.scenario
    return Case(
        llm=s.llm,
        gpu=s.gpu,
        precision=s.precision,
        workload=s.workload,
        configuration=replace(ranking.reference or s.configuration, mean_batch_size=None),
        boundary=s.boundary,
        node_gpus=s.node_gpus,
        engine=s.engine,
    )


def _likelier(ranking: Ranking) -> str:
    """Name what comes first more often than the choice, where the fewest joules are a tie."""
    entries = ranking.served()
    first = max(entries, key=lambda entry: entry.probability_best_ratio or 0.0)
    if (first.probability_best_ratio or 0.0) <= (entries[0].probability_best_ratio or 0.0):
        return ""
    return (
        f"; {configuration_name(first.configuration)}, at {si(first.energy_per_request_j, 'J')}, "
        f"comes first more often, with {likelihood(first.probability_best_ratio or 0.0)}: the rows "
        "do not settle which"
    )


def _sure_words(evaluations: Sequence[Evaluation], ranking: Ranking | None) -> tuple[str, ...]:
    """Say in two sentences how sure the choice is, and how often such choices are right."""
    said = []
    if ranking is not None and ranking.best.probability_best_ratio is not None:
        best = ranking.served()[0]
        regret = ranking.expected_regret_ratio
        said.append(
            "By the model it is the best with probability "
            f"{likelihood(best.probability_best_ratio)}"
            + (
                ""
                if regret is None
                else f", and is expected to cost {percent(regret)} more than the true best"
            )
            + _likelier(ranking)
            + "."
        )
    judged = [e for e in evaluations if OURS in e.estimators]
    if judged:
        evaluation = judged[0]
        ours = evaluation.estimators[OURS].metrics
        others = [name for name in by_regret(evaluation) if name != OURS]
        parts = [
            f"{percent(ours.top1_within_noise_ratio)} of its choices in "
            f"{plural(evaluation.scenarios, 'scenario')} are within "
            f"{percent(evaluation.asked.noise_ratio, 0)} of the best",
            f"a choice costs {percent(ours.regret_mean_ratio, 2)} too much",
            f"joules are off by {percent(ours.mape_ratio)}",
        ]
        against = (
            f" (least of the others: {others[0]}, "
            f"{percent(evaluation.estimators[others[0]].metrics.regret_mean_ratio, 2)} too much)"
            if others
            else ""
        )
        said.append(
            f"{protocol_title(evaluation)}: {listed(parts)}{against}"
            + ("." if evaluation.accuracy_claim else "; no accuracy claim rests on this.")
        )
    return tuple(said)


def choice(
    model: EnergyModel, dataset: Dataset, ranking: Ranking | None, choose: Sequence[str]
) -> Section:
    """Show the ranking, where the joules go, and what else was possible."""
    blocks: list[Block] = []
    if ranking is not None:
        blocks.append(Figure.of(figures.ranking_with_intervals(ranking)))
        if not model.measured_power:
            _, compared = figures.served(ranking, BARS - 1)
            if ranking.reference is not None:
                compared = Cases.concatenate([compared, Cases.of([_reference_case(ranking)])])
            blocks.append(Figure.of(figures.energy_breakdown(model, compared)))
        if len(ranking.ruled_out):
            blocks.append(_ruled_out(ranking))
    else:
        rows = max(dataset.scenarios(choose), key=len, default=np.arange(min(len(dataset), 12)))
        rows = rows[np.argsort(dataset.energy_per_request_j[rows], kind="stable")]
        blocks.append(
            Figure.of(
                figures.energy_breakdown(
                    model,
                    dataset.cases.take(rows),
                    measured_j=dataset.energy_per_request_j[rows],
                    word=naming.known_as(dataset),
                )
            )
        )
    times = None if ranking is None else times_of(ranking, dataset)
    trade = figures.latency_against_energy(
        dataset, choose, row=None if times is None else times.fastest
    )
    if trade is not None and ranking is not None and times is not None:
        trade = replace(trade, caption=trade.caption + _disagreement(ranking, times, dataset))
    if trade is not None:
        blocks.append(Figure.of(trade))
    title = "Where the joules go" if ranking is None else "The choice"
    # What was ruled out, and the latencies of all scenarios, are looked up, not read.
    shown = [b for b in blocks if isinstance(b, Figure) and b.picture.name != "latency-energy"]
    folded = [block for block in blocks if block not in shown]
    return Section(name="choice", title=title, blocks=(*shown, *folded), open_blocks=len(shown))


def _disagreement(ranking: Ranking, times: _Times, dataset: Dataset) -> str:
    """Say why the rows' most frugal configuration is not the one chosen, where it is not."""
    if times.chosen == times.frugal:
        return ""
    energy, best = dataset.energy_per_request_j, configuration_name(ranking.best.configuration)
    frugal = configuration_name(dataset.cases.case(times.frugal).configuration)
    return (
        f" By the rows, {frugal} has the fewest joules here; the law's choice above is {best}, "
        + (
            "which no row has."
            if times.chosen is None
            else f"with {si(float(energy[times.chosen]), 'J')} against "
            f"{si(float(energy[times.frugal]), 'J')}."
        )
    )


def _ruled_out(ranking: Ranking) -> Table:
    """Group by reason: how many fail for each, and what the one with the smallest batch lacks."""
    causes: dict[str, list[Infeasible]] = {}
    entries = sorted(ranking.infeasible(2000), key=lambda entry: entry.configuration.batch_size)
    for entry in entries:
        causes.setdefault(entry.cause, []).append(entry)
    counts = ranking.infeasible_counts()

    def layouts(group: Sequence[Infeasible]) -> str:
        names = dict.fromkeys(configuration_name(e.configuration).partition(" B")[0] for e in group)
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        return ", ".join(list(names)[:4]) + more

    return Table(
        title="What was ruled out",
        caption=f"{plural(len(ranking.ruled_out), 'configuration')}, by reason.",
        columns=("Reason", "Configurations", "Layouts", "As of the smallest batch"),
        rows=tuple(
            (
                cause,
                f"{counts[cause]:,}",
                layouts(group),
                f"{configuration_name(group[0].configuration)}: {group[0].reason}",
            )
            for cause, group in causes.items()
        ),
    )
