"""One report, two forms: a self-contained HTML page, and the same facts as text.

What is said is gathered once, as sections of plain blocks; the two renderers only set it. Every
number comes from a record that was handed in.
"""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from energylens import __version__
from energylens.cases import Cases, FloatArray, IntArray
from energylens.dataset import Dataset
from energylens.errors import UsageError
from energylens.evaluation.result import Evaluation, Score
from energylens.explanation import LOOSE_RATIO, NORMAL_80, SUBJECTS, explain, scope_notes
from energylens.formula import OVERLAPS, TERMS, datasheet
from energylens.model import Coefficients, EnergyModel
from energylens.records import Boundary, Case, Configuration, Source
from energylens.report import figures
from energylens.report.document import (
    Banner,
    Block,
    Equation,
    Facts,
    Figure,
    Items,
    Prose,
    Report,
    Section,
    Table,
)
from energylens.report.drawing import Picture
from energylens.report.figures import BARS, OURS
from energylens.selection import Infeasible, Ranking
from energylens.selection import Scenario as Asked
from energylens.words import WIDTH, likelihood, listed, percent, plural, short_name, si

if TYPE_CHECKING:
    from energylens.discovery import Front, FrontPoint, FrontTerm
    from energylens.fitting import Diagnostics

TIE_RATIO = 0.001  # of mean regret: estimators closer than this choose as well as each other
LISTED = 40  # most lines of a table that grows with the data
JOULES_PER_KWH = 3.6e6

DATASHEET = "energylens-datasheet"  # the law without a fit

_SOURCES = {
    Source.MEASURED: "read from an energy counter by energylens",
    Source.SELF_MEASURED: "measured with another tool by whoever gave the rows",
    Source.PUBLISHED: "measured by others and published",
    Source.SIMULATED: "computed by a simulator, not measured",
    Source.ESTIMATED: "guessed from time or rated power, not measured",
    Source.DERIVED: "partly measured, partly modelled",
}
_BOUNDARIES = {
    Boundary.ACTIVE_GPUS: "the GPUs of the deployment, their idle floor included, the host not",
    Boundary.NODE: "every GPU of the node, idle ones too, the host not",
    Boundary.WALL: "the whole server at its power inlet",
}
_PROTOCOLS = {
    "few-shot": "fitted to rows drawn at random, judged on the others",
    "learning-curve": "fitted to more and more rows drawn at random, judged on the others",
    "unseen-batch": "fitted to some batch sizes, judged on the others",
    "unseen-length": "fitted to some sequence lengths, judged on the others",
    "unseen-llm": "every LLM left out in turn, and judged by a fit to the others",
    "unseen-hardware": "every GPU type left out in turn, and judged by a fit to the others",
    "unseen-modality": "every modality left out in turn, and judged by a fit to the others",
    "unseen-engine": "every engine version left out in turn, and judged by a fit to the others",
    "no-power": "without measured power, and with it",
    "split": "fitted to most rows, judged on the rest",
    "all": "judged on the very rows that it was fitted to: no test of anything but the form",
}
_GREEK = {
    "lambda": "λ", "beta": "β", "phi": "φ", "sigma": "σ", "kappa": "κ", "tau": "τ", "pi": "π",
    "iota": "ι", "alpha": "α", "gamma": "γ", "delta": "δ", "epsilon": "ε", "eta": "η", "mu": "μ",
    "nu": "ν", "rho": "ρ", "chi": "χ", "psi": "ψ", "omega": "ω", "theta": "θ", "zeta": "ζ",
    "ell": "ℓ",
}  # fmt: skip


class Explained(Protocol):
    """Whatever says in sentences why a case costs what it costs."""

    @property
    def sentences(self) -> tuple[str, ...]:
        """Each a full sentence."""
        ...


# ------------------------------------------------------------------------------------ what is said


def gather(
    model: EnergyModel,
    dataset: Dataset,
    *,
    diagnostics: Diagnostics | None = None,
    evaluations: Sequence[Evaluation] = (),
    ranking: Ranking | None = None,
    explanation: Explained | None = None,
    choose: Sequence[str] | None = None,
    front: Front | None = None,
    taken: str = "",
) -> Report:
    """Gather what a report says, once for the page, the text and the terminal.

    Parameters as in :func:`report_html`; ``taken`` says why the scenario is the one it is.
    """
    if len(dataset) == 0:
        raise UsageError("a report needs one row or more to show; the dataset has none")
    if ranking is not None:
        _require_own(model, ranking)
    if explanation is None and ranking is not None and not model.measured_power:
        explanation = explain(model, ranking.cases.case(0))
    if choose is None:
        choose = (
            ranking.choose
            if ranking is not None
            else evaluations[0].choose
            if evaluations
            else ("parallelism", "batch_size")
        )
    sections = [
        _summary(model, dataset, evaluations, ranking, explanation),
        _choice(model, dataset, ranking, choose),
        _judgement(model, dataset, evaluations),
        _law(model, dataset, diagnostics),
        *([_structure(front, dataset)] if front else []),
        *([_fit(model, dataset, diagnostics)] if diagnostics else []),
        _rows(model, dataset),
    ]
    gpus = ", ".join(sorted(set(dataset.gpu_ids)))
    llms = len(set(dataset.llm_ids))
    return Report(
        title=(
            f"What to run for {short_name(ranking.scenario.llm.id)}"
            if ranking is not None
            else f"What a request costs: {plural(llms, 'LLM')} on {gpus}"
        ),
        subtitle=(
            _scenario_words(ranking.scenario) + taken
            if ranking is not None
            else (
                f"A law of {len(model.terms)} coefficients, fitted to "
                f"{plural(model.pooled.rows, 'row')}"
            )
        ),
        banner=_banner(model, dataset, evaluations, front),
        sections=tuple(sections),
    )


def _scenario_words(asked: Asked) -> str:
    """Describe what is served, for people: whole tokens, and a simulation by its name."""
    w, most, engine = asked.workload, asked.max_gpus, asked.engine
    words = (
        f"{asked.llm.id} at {asked.precision.id} on up to "
        f"{most if asked.node_gpus is None else min(most, asked.node_gpus)} x {asked.gpu.id}, "
        f"{w.input_tokens:.0f} tokens in and {w.output_tokens:.0f} out"
    )
    if engine.name == "simulated":
        return f"{words}, in a simulated engine (version {engine.version})"
    return f"{words}, served by {engine.id}" if engine.id else words


def _require_own(model: EnergyModel, ranking: Ranking) -> None:
    energy = model.predict_energy_j(ranking.cases.take(slice(0, 1)))
    if not np.allclose(energy, ranking.energy_per_request_j[:1], rtol=1e-6):
        raise UsageError(
            "a report needs a ranking by the model it shows; this ranking has "
            f"{ranking.energy_per_request_j[0]:.4g} J where the model says {energy[0]:.4g} J: "
            "select again with this model"
        )


def _claims(source: str) -> bool:
    return source in tuple(Source) and Source(source).carries_accuracy_claim


def _banner(
    model: EnergyModel,
    dataset: Dataset,
    evaluations: Sequence[Evaluation],
    front: Front | None,
) -> Banner:
    sources = dataset.source_counts()
    unfit = {
        "shown": {name: n for name, n in sources.items() if not _claims(name)},
        "fitted": {name: n for name, n in model.sources.items() if not _claims(name)},
        "searched": {n: c for n, c in (front.sources if front else {}).items() if not _claims(n)},
    }
    judged = [e for e in evaluations if any(not _claims(name) for name in e.source_counts)]
    loud = bool(judged) or any(unfit.values())
    if loud:
        kinds = sorted(
            {
                *(name for names in unfit.values() for name in names),
                *(n for e in judged for n in e.source_counts if not _claims(n)),
            }
        )
        headline = f"This rests on {listed(kinds)} rows: no accuracy claim rests on these."
    else:
        headline = "Every row behind this report is measured or published."
    mix = listed(
        f"{n:,} {name} ({_SOURCES.get(Source(name), '')})"
        if name in tuple(Source)
        else f"{n:,} {name}"
        for name, n in sources.items()
    )
    lines = [f"Rows shown: {mix}."]
    if model.dataset_digest != dataset.digest:
        fitted = listed(f"{n:,} {name}" for name, n in model.sources.items()) or "unknown"
        lines.append(f"The model was fitted to other rows than those shown: {fitted}.")
    boundaries = [
        f"{kind.value}: {words}"
        for kind, words in _BOUNDARIES.items()
        if (dataset.boundary == kind).any()
    ]
    lines.append(f"Boundary, {'; '.join(boundaries)}.")
    assumed = int(np.sum(dataset.assumed.astype(str) != ""))
    if assumed:
        what = listed(sorted({w for cell in set(map(str, dataset.assumed)) for w in cell.split()}))
        lines.append(
            f"In {'all' if assumed == len(dataset) else f'{assumed:,} of'} "
            f"{plural(len(dataset), 'row')} the {what.replace('_', ' ')} are assumed, because the "
            "source does not publish them."
        )
    lines.append(f"Dataset {dataset.digest[:16]} (SHA-256), energylens {__version__}.")
    return Banner(loud=loud, headline=headline, lines=tuple(lines))


def _summary(
    model: EnergyModel,
    dataset: Dataset,
    evaluations: Sequence[Evaluation],
    ranking: Ranking | None,
    explanation: Explained | None,
) -> Section:
    blocks: list[Block] = []
    reasons: list[str] = []
    if ranking is not None:
        times = _times(ranking, dataset)
        blocks += _answer(ranking, times, dataset)
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


def _times(ranking: Ranking, dataset: Dataset) -> _Times | None:
    """Find the scenario that is ranked among the rows; None if its latencies are not known."""
    asked, cases = ranking.scenario, dataset.cases
    latency, what = figures.known_latency(dataset)
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
        word=figures.latency_word(dataset),
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
    name = cases.case(fastest).configuration.describe()
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
        frugal = cases.case(times.frugal).configuration.describe()
        return (
            f"The price is time: no row has {ranking.best.configuration.describe()} itself, but "
            f"with {frugal}, of the rows the one with the fewest joules, the {times.word} "
            f"{times.what} is {si(float(times.latency_s[times.frugal]), 's')}, against {quick} "
            f"with {why}."
        )
    return (
        f"The price is time: its {times.word} {times.what} is "
        f"{si(float(times.latency_s[chosen]), 's')}, against {quick} with {why}."
    )


def _answer(ranking: Ranking, times: _Times | None, dataset: Dataset) -> list[Block]:
    best = ranking.served()[0]
    name = best.configuration.describe()
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
            f"{energy * 1e6 / JOULES_PER_KWH:,.1f} kWh per million requests",
        )
    ]
    if saving is not None and reference is not None and against_j is not None:
        difference = against_j - energy
        word = "less" if difference >= 0 else "more"
        much = f"{si(abs(difference), 'J')} or {percent(abs(saving), 0)}"
        fast = (
            f", the fastest of the {times.word} rows"
            if times is not None and times.reference_is_fastest
            else ""
        )
        itself = _layout(reference) == _layout(best.configuration)
        lead += "." if itself else f", {much} {word} than {reference.describe()}{fast}."
        facts.append(
            (
                f"Against {reference.describe()}",
                f"{percent(saving, 0)} saved" if difference >= 0 else f"{percent(-saving, 0)} more",
                f"{si(abs(difference), 'J')} {word} than its {si(against_j, 'J')}",
            )
        )
    else:
        lead += "."
        facts.append(
            (
                "Against the worst feasible",
                f"{likelihood(ranking.saving_against_worst_ratio)} less",
                f"of {plural(len(ranking), 'feasible configuration')}",
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
    return [f"What it saves over {ranking.reference.describe()} is mostly {words}."]


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


def _sure_words(evaluations: Sequence[Evaluation], ranking: Ranking | None) -> tuple[str, ...]:
    """Say in two sentences how sure the choice is, and how often such choices are right."""
    said = []
    if ranking is not None and ranking.best.probability_best_ratio is not None:
        best = ranking.served()[0]
        regret = ranking.expected_regret_ratio
        said.append(
            "By the model it is the best with probability "
            f"{likelihood(best.probability_best_ratio)}"
            + ("" if regret is None else f", and costs {percent(regret)} over the true best")
            + "."
        )
    judged = [e for e in evaluations if OURS in e.estimators]
    if judged:
        evaluation = judged[0]
        ours = evaluation.estimators[OURS].metrics
        others = [name for name in _by_regret(evaluation) if name != OURS]
        parts = [
            f"{percent(ours.top1_within_noise_ratio)} of its choices in "
            f"{plural(evaluation.scenarios, 'scenario')} are within "
            f"{percent(evaluation.noise_ratio, 0)} of the best",
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
            f"{_protocol_title(evaluation)}: {listed(parts)}{against}"
            + ("." if evaluation.accuracy_claim else "; no accuracy claim rests on this.")
        )
    return tuple(said)


def _evaluation_words(evaluation: Evaluation) -> str:
    scores = evaluation.estimators
    said = f"{_protocol_title(evaluation)}: "
    if OURS in scores:
        ours = scores[OURS].metrics
        parts = []
        if ours.top1_within_noise_ratio is not None:
            parts.append(
                f"the choice is within {percent(evaluation.noise_ratio, 0)} of the best in "
                f"{percent(ours.top1_within_noise_ratio)} of "
                f"{plural(evaluation.scenarios, 'scenario')}"
            )
        if ours.regret_mean_ratio is not None:
            parts.append(f"it costs {percent(ours.regret_mean_ratio, 2)} too much on average")
        if ours.mape_ratio is not None:
            parts.append(f"joules are off by {percent(ours.mape_ratio)}")
        said += listed(parts) if parts else "nothing could be judged"
        said += "".join(f". {words}" for words in _others_words(evaluation))
    else:
        said += f"judged {listed(scores)}"
    return f"{said}." + ("" if evaluation.accuracy_claim else " No accuracy claim rests on this.")


def _others_words(evaluation: Evaluation) -> list[str]:
    """Say along the learning curve, and of the others, what the headline alone would hide."""
    scores, said = evaluation.estimators, []
    ours = scores[OURS].metrics
    near = f"within {percent(evaluation.noise_ratio, 0)}"
    points = evaluation.points if evaluation.protocol == "learning-curve" else ()
    along = [point.scores[OURS].metrics.top1_within_noise_ratio for point in points]
    if len(along) > 1 and None not in along:
        said.append(
            f"With {listed(f'{point.train}' for point in points)} rows it is {near} in "
            f"{listed(percent(value) for value in along)}"
        )
    others = [name for name in _by_regret(evaluation) if name != OURS]
    judged = [(name, scores[name].metrics) for name in others]
    if not judged:
        return said
    name, best = judged[0]
    ahead = [
        other
        for other, m in judged
        if m.regret_mean_ratio is not None
        and ours.regret_mean_ratio is not None
        and m.regret_mean_ratio <= ours.regret_mean_ratio + TIE_RATIO
    ]
    place = "First" if ahead and _by_regret(evaluation)[0] != OURS else "Next"
    said.append(
        f"{place} by regret is {name}: {near} in {percent(best.top1_within_noise_ratio)}, "
        f"{percent(best.regret_mean_ratio, 2)} too much"
        + (
            ", and it predicts no joules"
            if best.mape_ratio is None
            else f", joules off by {percent(best.mape_ratio)}"
        )
    )
    often, most = max(judged, key=lambda item: item[1].top1_within_noise_ratio or 0.0)
    top = most.top1_within_noise_ratio or 0.0
    if top > max(best.top1_within_noise_ratio or 0.0, ours.top1_within_noise_ratio or 0.0):
        said.append(f"Most often {near} is {often}, in {percent(top)}")
    if ahead:
        said.append(
            f"For the choice alone {listed(ahead)} would have done as well as the law or better"
        )
    if DATASHEET in ahead:
        said.append(
            "To choose, no fit was needed here: the datasheet alone costs "
            f"{percent(scores[DATASHEET].metrics.regret_mean_ratio, 2)} too much"
        )
    return said


def _by_regret(evaluation: Evaluation) -> list[str]:
    """Estimators from the lowest mean regret up, those without one last."""

    def regret(name: str) -> float:
        value = evaluation.estimators[name].metrics.regret_mean_ratio
        return float("inf") if value is None else value

    return sorted(evaluation.estimators, key=regret)


def _protocol_title(evaluation: Evaluation) -> str:
    title = evaluation.protocol.replace("-", " ").replace("llm", "LLM")
    point = evaluation.points[evaluation.headline]
    rows = f", {point.train} training rows" if point.train else ""
    return f"{title[0].upper()}{title[1:]}{rows}"


def _choice(
    model: EnergyModel, dataset: Dataset, ranking: Ranking | None, choose: Sequence[str]
) -> Section:
    blocks: list[Block] = []
    if ranking is not None:
        blocks.append(_figure(figures.ranking_with_intervals(ranking)))
        if not model.measured_power:
            compared = ranking.cases.take(slice(0, BARS - 1))
            if ranking.reference is not None:
                compared = Cases.concatenate([compared, Cases.of([_reference_case(ranking)])])
            blocks.append(_figure(figures.energy_breakdown(model, compared)))
        if len(ranking.ruled_out):
            blocks.append(_ruled_out(ranking))
    else:
        rows = max(dataset.scenarios(choose), key=len, default=np.arange(min(len(dataset), 12)))
        rows = rows[np.argsort(dataset.energy_per_request_j[rows], kind="stable")]
        blocks.append(
            _figure(
                figures.energy_breakdown(
                    model,
                    dataset.cases.take(rows),
                    measured_j=dataset.energy_per_request_j[rows],
                    word=figures.known_as(dataset),
                )
            )
        )
    times = None if ranking is None else _times(ranking, dataset)
    trade = figures.latency_against_energy(
        dataset, choose, row=None if times is None else times.fastest
    )
    if trade is not None and ranking is not None and times is not None:
        trade = replace(trade, caption=trade.caption + _disagreement(ranking, times, dataset))
    if trade is not None:
        blocks.append(_figure(trade))
    title = "Where the joules go" if ranking is None else "The choice"
    # What was ruled out, and the latencies of all scenarios, are looked up, not read.
    shown = [b for b in blocks if isinstance(b, Figure) and b.picture.name != "latency-energy"]
    folded = [block for block in blocks if block not in shown]
    return Section(name="choice", title=title, blocks=(*shown, *folded), open_blocks=len(shown))


def _disagreement(ranking: Ranking, times: _Times, dataset: Dataset) -> str:
    """Say why the rows' most frugal configuration is not the one chosen, where it is not."""
    if times.chosen == times.frugal:
        return ""
    energy, best = dataset.energy_per_request_j, ranking.best.configuration.describe()
    frugal = dataset.cases.case(times.frugal).configuration.describe()
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
        names = dict.fromkeys(e.configuration.describe().partition(" B")[0] for e in group)
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
                f"{group[0].configuration.describe()}: {group[0].reason}",
            )
            for cause, group in causes.items()
        ),
    )


def _figure(picture: Picture) -> Figure:
    table = None
    if picture.rows:
        table = Table(
            caption=f"The numbers: {picture.title[0].lower()}{picture.title[1:]}",
            columns=picture.columns,
            rows=picture.rows,
            highlight=OURS,
        )
    return Figure(picture=picture, table=table)


def _judgement(model: EnergyModel, dataset: Dataset, evaluations: Sequence[Evaluation]) -> Section:
    seen = model.dataset_digest == dataset.digest
    blocks: list[Block] = []
    if not evaluations:
        blocks.append(
            Prose(
                text="No evaluation was handed in, so nothing here says how well the model "
                "foretells rows that it has not seen."
            )
        )
    blocks.append(_figure(figures.predicted_against_measured(model, dataset, in_sample=seen)))
    for evaluation in evaluations:
        blocks += _evaluation_blocks(evaluation, dataset)
    errors, held_out = _errors(model, dataset, evaluations)
    worst = figures.residuals_by_scenario(dataset, errors, held_out=held_out)
    if worst is not None:
        blocks.append(_figure(worst))
    curve = [b for b in blocks if isinstance(b, Figure) and b.picture.name == "learning-curve"]
    first = curve[:1] or blocks[:1]
    blocks = [*first, *(block for block in blocks if block not in first)]
    return Section(
        name="judgement", title="How far to trust it", blocks=tuple(blocks), open_blocks=1
    )


def _errors(
    model: EnergyModel, dataset: Dataset, evaluations: Sequence[Evaluation]
) -> tuple[FloatArray, bool]:
    """Relative error of each row, by fits without it where an evaluation of these rows has any."""
    for evaluation in evaluations:
        ours = evaluation.estimators.get(OURS)
        if (
            ours is not None
            and not evaluation.in_sample
            and evaluation.dataset_digest == dataset.digest
            and np.isfinite(ours.row_error_ratio).any()
        ):
            return ours.row_error_ratio, True
    predicted = model.predict_energy_j(dataset.cases)
    return predicted / dataset.energy_per_request_j - 1.0, model.dataset_digest != dataset.digest


def _evaluation_blocks(evaluation: Evaluation, dataset: Dataset) -> list[Block]:
    scores = evaluation.estimators
    how = _PROTOCOLS.get(evaluation.protocol, evaluation.protocol)
    caption = (
        f"{how[0].upper()}{how[1:]}. "
        f"{plural(evaluation.rows, 'row')}, {plural(evaluation.scenarios, 'scenario')}, free "
        f"{listed(name.replace('_', ' ') for name in evaluation.choose)}, "
        f"{plural(evaluation.repeats, 'draw')}, seed {evaluation.seed}; within noise means within "
        f"{percent(evaluation.noise_ratio, 0)} of the best."
    )
    if not evaluation.accuracy_claim:
        caption += " No accuracy claim rests on these figures."
    if evaluation.dataset_digest != dataset.digest:
        caption += f" Judged on other rows than those shown ({evaluation.dataset_digest[:16]})."
    blocks: list[Block] = [
        Prose(text=_evaluation_words(evaluation)),
        Table(
            title=_protocol_title(evaluation),
            caption=caption,
            columns=(
                "Estimator",
                "Rows fitted",
                "Top-1",
                "Within noise",
                "Pairs in order",
                "Mean regret",
                "95 % regret",
                "Mean error",
                "Median error",
                f"{percent(evaluation.interval_ratio, 0)} interval covers",
            ),
            rows=tuple(_score_row(name, scores[name]) for name in _by_regret(evaluation)),
            highlight=OURS,
        ),
    ]
    failures = tuple(
        f"{name}: {score.failed_fits} of {plural(score.fits, 'fit')} failed ({score.failure})."
        for name, score in scores.items()
        if score.failed_fits
    )
    if failures or evaluation.notes:
        blocks.append(Items(items=(*failures, *evaluation.notes)))
    if evaluation.protocol == "learning-curve":
        blocks.append(_figure(figures.learning_curves(evaluation)))
    ours = scores.get(OURS)
    if ours is not None and ours.misses:
        missed = ours.misses
        blocks.append(
            Table(
                title="Where it chose wrong",
                caption=f"{_protocol_title(evaluation)}: scenarios in which {OURS} did not always "
                f"choose within noise, costliest first ({min(8, len(missed))} of {len(missed)}).",
                columns=("Scenario", "Best", "Chosen", "Within noise", "Mean regret"),
                rows=tuple(
                    (
                        s.scenario,
                        s.best,
                        s.chosen or "-",
                        percent(s.top1_within_noise_ratio, 0),
                        percent(s.regret_mean_ratio),
                    )
                    for s in missed[:8]
                ),
            )
        )
    return blocks


def _score_row(name: str, score: Score) -> tuple[str, ...]:
    m = score.metrics
    return (
        name,
        f"{score.train_rows}",
        percent(m.top1_ratio),
        percent(m.top1_within_noise_ratio),
        percent(m.pairwise_ratio),
        percent(m.regret_mean_ratio, 2),
        percent(m.regret_p95_ratio),
        percent(m.mape_ratio),
        percent(m.median_ape_ratio),
        percent(m.interval_coverage_ratio),
    )


def _law(model: EnergyModel, dataset: Dataset, diagnostics: Diagnostics | None) -> Section:
    gpus = dataset.cases.gpus
    used = sorted(set(dataset.cases.gpu_index.tolist()), key=lambda g: gpus[g].id)
    expected = datasheet(gpus, model.terms)
    pooled = model.pooled
    low, high = _theta_interval(pooled)
    undetermined = diagnostics.undetermined if diagnostics else {}
    by_gpu = "gpu" in model.per and set(model.per) <= {"gpu", "engine"}
    per_gpu = [(model.groups.get(gpus[g].id, pooled) if by_gpu else pooled, g) for g in used]
    rows = []
    for k, term in enumerate(model.terms):
        rows.append(
            (
                _symbol(term.symbol),
                figures.term_title(term),
                *(si(float(fitted.theta[k] * expected[g, k]), term.unit) for fitted, g in per_gpu),
                f"{pooled.theta[k]:.2f}",
                f"{low[k]:.2f} to {high[k]:.2f}",
            )
        )
    blocks: list[Block] = [
        _equation(),
        Prose(
            text="E is the energy of a request in joules. N counts what the LLM, the layout, "
            "the batch and the lengths make the GPUs do in prefill and in decode: bytes read, "
            "operations done, kernels launched, bytes sent. "
            + (
                "What stands under one root happens at the same time: the larger counts, and the "
                "smaller hardly shows. The sum goes over what stands under none. "
                if OVERLAPS
                else ""
            )
            + "D is what one such count should cost "
            "by the GPU's datasheet alone, and θ what the rows say of that: 1 where the datasheet "
            "is right. What one count does cost, in joules, is θ times D."
            + (
                " Each term is scaled by the measured power of its row."
                if model.measured_power
                else ""
            )
        ),
        Table(
            title=f"The {len(model.terms)} coefficients",
            caption=f"Fitted to {plural(pooled.rows, 'row')}. The interval holds θ with 80 % "
            "probability."
            + (
                " θ is that of all GPU types together; θD is with each type's own, listed below."
                if by_gpu
                else ""
            ),
            columns=(
                "Symbol",
                "Term",
                *(f"θD on {gpus[g].id}" for _, g in per_gpu),
                "θ",
                "80 % interval of θ",
            ),
            rows=tuple(rows),
        ),
        Table(
            title="What they stand for, and what the rows say of them",
            caption="Determined loosely: the 80 % interval reaches down to half of θ or less.",
            columns=("Symbol", "What it costs to do", "What the rows say"),
            rows=tuple(
                (_symbol(term.symbol), term.meaning, _verdict(k, model, undetermined))
                for k, term in enumerate(model.terms)
            ),
        ),
    ]
    if model.groups:
        keys = sorted(model.groups)
        blocks.append(
            Table(
                title=f"θ for each {_grouping(model)}",
                caption="Drawn toward the pooled values above where rows are few."
                + (f" {LISTED} of {len(keys)} are listed." if len(keys) > LISTED else ""),
                columns=("Group", "Rows", *(_symbol(term.symbol) for term in model.terms)),
                rows=tuple(
                    (
                        key,
                        f"{model.groups[key].rows}",
                        *(f"{value:.2f}" for value in model.groups[key].theta),
                    )
                    for key in keys[:LISTED]
                ),
            )
        )
    return Section(name="law", title="The law", blocks=tuple(blocks), open_blocks=2)


def _grouping(model: EnergyModel) -> str:
    return " and ".join(
        {"gpu": "GPU type", "llm": "LLM", "engine": "engine version"}.get(name, name)
        for name in model.per
    )


def _equation() -> Equation:
    """Write the law down as `formula.py` has it: sums, and roots over what overlaps."""
    roots = [[TERMS[k].symbol for k in pair] for pair in OVERLAPS]
    tex = [r"E = \sum_k \, e_k"]
    tex += [rf"\sqrt{{{' + '.join(f'e_{{{symbol}}}^2' for symbol in pair)}}}" for pair in roots]
    words = ["E = sum of e_k"]
    words += [f"sqrt({' + '.join(f'e_{_symbol(symbol)}^2' for symbol in pair)})" for pair in roots]
    return Equation(
        tex=(" + ".join(tex), r"e_k = \theta_k \, D_k \, N_k, \quad \theta_k \geq 0"),
        lines=("\n    + ".join(words), "e_k = θ_k D_k N_k, θ_k >= 0"),
    )


def _theta_interval(fitted: Coefficients) -> tuple[FloatArray, FloatArray]:
    half = NORMAL_80 * np.sqrt(np.diag(fitted.covariance))
    return np.maximum(fitted.theta - half, 0.0), fitted.theta + half


def _symbol(tex: str) -> str:
    return re.sub(r"\\([a-z]+)", lambda match: _GREEK.get(match.group(1), match.group(1)), tex)


def _verdict(k: int, model: EnergyModel, undetermined: dict[str, str]) -> str:
    term, fitted = model.terms[k], model.pooled
    if term.name in undetermined:
        guess = model.options.get("prior", "datasheet") == "datasheet"
        return (
            f"not determined{', the datasheet stands in' if guess else ''}; "
            f"it would take {term.needs}"
        )
    if fitted.theta[k] <= term.lower_bound:
        return f"at its bound of {term.lower_bound:g}: other terms explain its share"
    if _theta_interval(fitted)[0][k] <= LOOSE_RATIO * fitted.theta[k]:
        return f"determined loosely; it would help to have {term.needs}"
    return "determined"


def _structure(front: Front, dataset: Dataset) -> Section:
    """Show what a search found: the front, its knee as a formula, and what is not settled."""
    knee, reference = front.knee, front.reference
    best = min(point.held_out_mape_ratio for point in front.points)
    lead = (
        f"A search over {front.candidates} candidates ({front.engine} engine, seed {front.seed}) "
        f"found {plural(len(front.points), 'expression')} in {plural(front.rows, 'row')}, from "
        f"simple to complex. The knee has {plural(len(knee.terms), 'term')} and is off by "
        f"{percent(knee.held_out_mape_ratio)} on rows left out of search and fit alike "
        f"({front.folds} folds by {front.groups}); the best of any size by {percent(best)}."
    )
    if reference is not None:
        lead += (
            f" On the same folds the {reference.name}, with {plural(reference.terms, 'term')}, is "
            f"off by {percent(reference.held_out_mape_ratio)}."
        )
    if front.dataset_digest != dataset.digest:
        lead += f" The search saw other rows than those shown ({front.dataset_digest[:16]})."
    blocks: list[Block] = [
        Prose(text=lead),
        _figure(figures.discovery_front(front)),
        Table(
            title="The front",
            caption="The knee is marked. Errors and choices are on held-out rows, ± one standard "
            f"error; free are {listed(name.replace('_', ' ') for name in front.choose)}. "
            f"Stability: the share of {plural(front.samples, 'resample')} that find the least "
            "settled of its terms.",
            columns=(
                "Complexity",
                "Terms",
                "Held-out error",
                "In sample",
                "Top-1",
                "Mean regret",
                "Stability",
                "Expression",
            ),
            rows=tuple(_point_row(point) for point in front.points),
            highlight=_complexity(knee),
        ),
        Equation(
            name="knee",
            tex=tuple(
                line if k == 0 else rf"\quad {line}" for k, line in enumerate(knee.latex_lines())
            ),
            lines=tuple(
                "\n      ".join(
                    textwrap.wrap(f"{'+' if k else 'E ='} {_term_words(term)}", WIDTH - 12)
                )
                for k, term in enumerate(knee.terms)
            ),
        ),
        Table(
            title="What its letters stand for",
            caption="Each is determined by the case before anything is measured; E is in joules "
            "per request.",
            columns=("Symbol", "Name", "Unit", "Meaning"),
            rows=tuple(
                (_symbol(symbol), name, unit, meaning)
                for name, (symbol, unit, meaning) in front.legend().items()
                if name in knee.expression.names
            ),
        ),
        Table(
            title="The terms of the knee",
            caption="Share: of the energy, mean over the rows. In resamples: the share of searches "
            "over resampled rows that find the term; where they do not, what stands in its place.",
            columns=("Term", "Coefficient", "Share", "In resamples", "Meaning", "In its place"),
            rows=tuple(
                (
                    term.expression.text,
                    f"{term.coefficient:.3g} {term.unit}",
                    percent(term.share_ratio, 0),
                    percent(term.stability_ratio, 0),
                    term.meaning or "-",
                    "; ".join(f"{t} ({percent(r, 0)})" for t, r in term.stand_ins.items()) or "-",
                )
                for term in knee.terms
            ),
        ),
    ]
    if front.cautions:
        blocks.append(Items(title="What these rows do not settle", items=front.cautions))
    if front.notes:
        blocks.append(Items(items=front.notes))
    return Section(
        name="structure", title="The structure that a search found", blocks=tuple(blocks)
    )


def _term_words(term: FrontTerm) -> str:
    body = term.expression.text
    return f"{term.coefficient:.3g} * {f'({body})' if term.expression.is_sum else body}"


def _complexity(point: FrontPoint) -> str:
    return f"{point.complexity}{' (knee)' if point.knee else ''}"


def _point_row(point: FrontPoint) -> tuple[str, ...]:
    known = [t.stability_ratio for t in point.terms if t.stability_ratio is not None]
    return (
        _complexity(point),
        f"{len(point.terms)}",
        f"{percent(point.held_out_mape_ratio)} ± {100 * point.held_out_error_ratio:.1f}",
        percent(point.in_sample_mape_ratio),
        percent(point.top1_ratio),
        percent(point.regret_mean_ratio, 2),
        percent(min(known), 0) if known else "-",
        "E = " + " + ".join(_term_words(term) for term in point.terms),
    )


def _fit(model: EnergyModel, dataset: Dataset, diagnostics: Diagnostics) -> Section:
    d, pooled = diagnostics, model.pooled
    options = ", ".join(f"{name} {value}" for name, value in model.options.items() if value)
    condition = (
        "some terms cannot be told apart by these rows"
        if d.condition_number > 1000
        else "low enough to tell the terms apart"
    )
    facts = (
        (
            "Rows",
            f"{d.rows:,}",
            f"determine {d.effective_parameters:.1f} of {len(model.terms)} coefficients",
        ),
        (
            "Mean error on these rows",
            percent(d.mape_ratio),
            f"median {percent(d.median_ape_ratio)}, bias {percent(d.bias_ratio)}",
        ),
        ("Condition number", f"{d.condition_number:.3g}", condition),
        (
            "Spread left within a scenario",
            percent(pooled.within_ratio),
            f"{percent(pooled.between_ratio)} between scenarios",
        ),
    )
    blocks: list[Block] = [Facts(facts=facts)]
    titles = {term.name: figures.term_title(term) for term in model.terms}
    weak = [f"{titles[name]} is at its bound of 0." for name in d.at_bound]
    weak += [f"{said[0].upper()}{said[1:]}" for said in d.below_physics.values()]
    weak += [
        f"{titles[name]} is not determined by these rows; it would take {needs}."
        for name, needs in d.undetermined.items()
    ]
    weak.append(
        f"Row {d.leverage_row} ({_row_words(dataset, d.leverage_row)}) pulls hardest on its own "
        f"prediction: it decides {percent(d.leverage_max_ratio, 0)} of it."
    )
    blocks.append(Items(title="What these rows leave open", items=tuple(weak)))
    predicted = model.predict_energy_j(dataset.cases)
    blocks.append(
        Table(
            title="The rows it describes worst",
            caption="Numbers count rows from 0, in the order of the table.",
            columns=(
                "Row",
                "What",
                (word := figures.known_as(dataset)).capitalize(),
                "Predicted",
                f"Predicted / {word}",
            ),
            rows=tuple(
                (
                    f"{row}",
                    _row_words(dataset, row),
                    si(float(dataset.energy_per_request_j[row]), "J"),
                    si(float(predicted[row]), "J"),
                    f"{ratio:.2f}",
                )
                for row, ratio in d.worst
            ),
        )
    )
    blocks.append(
        Prose(
            text=f"Structure {model.structure}; {options or 'default options'}; coefficients "
            f"{'for each ' + _grouping(model) if model.per else 'pooled'}; fitted by "
            f"energylens {model.energylens_version or 'of unknown version'}."
        )
    )
    return Section(
        name="fit", title="The fit, and its weak points", blocks=tuple(blocks), open_blocks=0
    )


def _row_words(dataset: Dataset, row: int) -> str:
    case = dataset.cases.case(row)
    task = str(dataset.task[row])
    return f"{short_name(case.llm.id)} {case.precision.id}, {case.configuration.describe()}" + (
        f", {task}" if task else ""
    )


def _rows(model: EnergyModel, dataset: Dataset) -> Section:
    energy = dataset.energy_per_request_j
    groups = Counter(
        zip(dataset.llm_ids, dataset.gpu_ids, dataset.precision_ids, dataset.source, strict=True)
    )
    names = sorted(groups, key=lambda key: tuple(map(str, key)))
    keys = [dataset.llm_ids, dataset.gpu_ids, dataset.precision_ids, dataset.source]

    def span(key: tuple[object, ...]) -> str:
        mine = energy[np.logical_and.reduce([c == k for c, k in zip(keys, key, strict=True)])]
        low, high = si(float(mine.min()), "J"), si(float(mine.max()), "J")
        return low if low == high else f"{low} to {high}"

    engines = Counter(
        f"{name} {version}".strip()
        for name, version in zip(dataset.engine, dataset.engine_version, strict=True)
    )
    origins = Counter(map(str, dataset.origin))
    lines = [
        f"Digest of the rows shown: {dataset.digest}.",
        f"Digest of the rows fitted: {model.dataset_digest or 'unknown'}.",
    ]
    for what, counts in (("Engines", engines), ("Origins", origins)):
        known = [f"{name} ({plural(n, 'row')})" for name, n in counts.most_common(3) if name]
        more = f", and {len(counts) - 3} more" if len(counts) > 3 else ""
        if known:
            lines.append(f"{what}: {', '.join(known)}{more}.")
    ranges = [
        f"{name.replace('_', ' ')} {low:,.0f}" + (f" to {high:,.0f}" if high != low else "")
        for name, (low, high) in model.scope.ranges.items()
    ]
    lines.append(f"The fit has seen {'; '.join(ranges)}.")
    blocks: list[Block] = [
        Table(
            title="What there is",
            caption="Rows by LLM, GPU, precision and source"
            + (f"; {LISTED} of {len(names)} kinds are listed." if len(names) > LISTED else "."),
            columns=("LLM", "GPU", "Precision", "Source", "Rows", "Energy per request"),
            rows=tuple(
                (str(key[0]), str(key[1]), str(key[2]), str(key[3]), f"{groups[key]}", span(key))
                for key in names[:LISTED]
            ),
        ),
        Items(items=tuple(lines)),
    ]
    return Section(name="rows", title="The rows behind it", blocks=tuple(blocks), open_blocks=0)
