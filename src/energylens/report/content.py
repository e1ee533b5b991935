"""What a report says, gathered once as sections of plain blocks for the page and for text.

Every number comes from a record that the caller gives.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from energylens import __version__
from energylens.dataset import Dataset
from energylens.errors import UsageError
from energylens.evaluation.result import Evaluation
from energylens.explanation import Explanation, explain
from energylens.model import EnergyModel
from energylens.records import Boundary, Source
from energylens.report import answer, law, trust
from energylens.report.document import LISTED, Banner, Block, Items, Report, Section, Table
from energylens.scenarios import Scenario as Asked
from energylens.selection import Ranking
from energylens.words import listed, plural, short_name, si

if TYPE_CHECKING:
    from energylens.discovery import Front
    from energylens.fitting import Diagnostics


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


def gather(
    model: EnergyModel,
    dataset: Dataset,
    *,
    diagnostics: Diagnostics | None = None,
    evaluations: Sequence[Evaluation] = (),
    ranking: Ranking | None = None,
    explanation: Explanation | None = None,
    choose: Sequence[str] | None = None,
    front: Front | None = None,
    taken: str = "",
    today: bool = False,
) -> Report:
    """Gather what a report says, once for the page, the text and the terminal.

    Parameters
    ----------
    model : EnergyModel
        The fitted law.
    dataset : Dataset
        Rows to show it against, as a rule those that it was fitted to.
    diagnostics : Diagnostics, optional
        What the fit says of its own weakness.
    evaluations : sequence of Evaluation
        How well the law and others choose and predict.
    ranking : Ranking, optional
        The configurations of a scenario, ranked by this model.
    explanation : Explanation, optional
        Why the chosen configuration costs what it does; made from the model if not given.
    choose : sequence of str, optional
        Free knobs of the measured scenarios shown. Default: those of the ranking, else of the
        first evaluation, else parallelism and batch size.
    front : Front, optional
        What a search for the structure found, to be shown beside the law.
    taken : str
        Why the scenario is the one it is.
    today : bool
        Whether the reference of the ranking is what runs today.

    Raises
    ------
    UsageError
        If the ranking is not one by this model, or the dataset has no row.
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
            else evaluations[0].asked.choose
            if evaluations
            else ("parallelism", "batch_size")
        )
    sections = [
        answer.summary(model, dataset, evaluations, ranking, explanation, today=today),
        answer.choice(model, dataset, ranking, choose),
        trust.judgement(model, dataset, evaluations),
        law.law(model, dataset, diagnostics),
        *([law.structure(front, dataset)] if front else []),
        *([law.fit(model, dataset, diagnostics)] if diagnostics else []),
        _rows(model, dataset),
    ]
    gpus = ", ".join(sorted(set(dataset.gpu_ids)))
    llms = sorted(set(map(str, dataset.llm_ids)))
    named = short_name(llms[0]) if len(llms) == 1 else plural(len(llms), "LLM")
    return Report(
        title=(
            f"What to run for {short_name(ranking.scenario.llm.id)}"
            if ranking is not None
            else f"What a request costs: {named} on {gpus}"
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
            f"Assumed in {_of_rows(assumed, len(dataset))}, because the source does not state it: "
            f"{what.replace('_', ' ')}."
        )
    lines.append(f"Dataset {dataset.digest[:16]} (SHA-256), energylens {__version__}.")
    return Banner(loud=loud, headline=headline, lines=tuple(lines))


def _of_rows(some: int, count: int) -> str:
    """``the one row``, ``all 12 rows`` or ``3 of 12 rows``."""
    if count == 1:
        return "the one row"
    return f"{'all' if some == count else f'{some:,} of'} {plural(count, 'row')}"


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
