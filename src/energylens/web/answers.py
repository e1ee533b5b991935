"""What the API and the page answer, without HTTP: questions in, documents out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from energylens import capacity, catalog, packaged
from energylens.answering import (
    BATCH_SIZE,
    Query,
    bills,
    case_of_entry,
    document,
    engine_meant,
    notes_of,
    query,
)
from energylens.cases import Cases, FloatArray, IntArray
from energylens.deciding import breaks_at
from energylens.decision_words import binding
from energylens.decisions import Decision, Entry
from energylens.deploying import EMITTERS, emit
from energylens.errors import EnergyLensError, InfeasibleError, UsageError
from energylens.explanation import explain, scope_notes
from energylens.formula import OVERLAPS, datasheet
from energylens.latency_terms import TERMS as TIME_TERMS
from energylens.lengths import case_described
from energylens.model import EnergyModel
from energylens.records import PARALLELISM, UNKNOWN_ENGINE, Case, Gpu, Precision
from energylens.records import Engine as Served
from energylens.remembered import Remembered
from energylens.replicas import EVERY
from energylens.running import read_running
from energylens.schemas import CaseQuestion, DecisionFile, Question, headed
from energylens.service import idle_of, slots
from energylens.solving import Engine, case_of
from energylens.time_explained import explain_time, explanation_document
from energylens.web.models import Loaded

MOST_CANDIDATES = 20_000  # that one question may span
BARS = 10  # configurations whose joules and seconds are divided over terms
RATES = 40  # of a load curve
DIGITS = 5  # of numbers in columns
LEAST = 1e-250  # below it a number in a column is 0
_LINES: Remembered[dict[str, str]] = Remembered(2**20)
IDLE, NODE, WAITING = "idle between requests", "idle GPUs of the node", "waiting"


def asked(loaded: Loaded, question: DecisionFile) -> Query:
    """Look a question up.

    Raises
    ------
    UsageError
        If it spans more candidates than a server answers about.
    """
    serve, choose = question.serve, question.choose
    model, notes = loaded.model_for(serve.model, serve.gpu, serve.engine or "")
    found = query(question, loaded.engine_of(model), notes_of(model, notes))
    degrees = 1
    for name in PARALLELISM:
        if name in found.choose or "parallelism" in found.choose:
            degrees *= len(getattr(found.candidates, name)) or min(found.scenario.gpu_limit, EVERY)
    span = degrees * max(len(choose.gpus), 1) * max(len(choose.precisions), 1)
    span *= max(len(choose.power_caps or ()), 1) * max(len(choose.clocks or ()), 1)
    limits = len(found.batch_limits) if "batch_size" in found.choose else 1
    # Layouts on more GPUs than are allowed fall away at once; about a third are left.
    if span * limits > 3 * MOST_CANDIDATES:
        raise UsageError(
            f"the question spans {span * limits} configurations, and one answer is about at most "
            f"{3 * MOST_CANDIDATES}: free fewer knobs, or list fewer values"
        )
    return found


# ----------------------------------------------------------------------------- the documents


def select(loaded: Loaded, question: DecisionFile, *, certain: bool = True) -> dict[str, Any]:
    """Answer as ``select --json`` does, the front among it."""
    found = asked(loaded, question)
    return _decision(found, found.decide(front=True, odds=certain, compared=certain))


def _worded(text: str) -> str:
    """Say a sentence of the command in words of the page, which has no options."""
    text = text.replace("lower --meet", "lower the probability asked")
    return text.replace("With --meet ", "With probability ").replace("--meet ", "Probability ")


def _decision(found: Query, decision: Decision) -> dict[str, Any]:
    month = bills(found.model, decision, found.prices)
    priced = [found.prices.describe()] if month else []
    made = document(decision, month, [*found.notes, *priced])
    if not decision.entries:
        why = _worded(decision.why_none())
        made["notes"] = [f"{why[0].upper()}{why[1:]}", *made["notes"]]
    return made


def pareto(loaded: Loaded, question: DecisionFile, *, certain: bool = True) -> dict[str, Any]:
    """List every candidate in columns, and which of them are on the front."""
    found = asked(loaded, question)
    return _pareto(found, found.decide(front=True, odds=certain))


def _pareto(found: Query, decision: Decision) -> dict[str, Any]:
    solved = decision.solved
    odds = solved.probabilities(decision.limits)[0] if solved.certain else None
    answer = {
        "certain": decision.certain,
        "candidates": {
            "configuration": solved.prepared.names,
            "gpu": _ids(solved.cases.gpus, solved.cases.gpu_index),
            "precision": _ids(solved.cases.precisions, solved.cases.precision_index),
            "gpus": solved.cases.occupied_gpus.astype(int).tolist(),
            "energy_per_request_j": short(solved.energy_j),
            "tpot_s": short(solved.state.tpot_s),
            "ttft_s": short(solved.state.ttft_s),
            "power_w": short(solved.power_w),
            "meets": solved.meets(decision.limits, decision.meet).tolist(),
            "probability_of_meeting_ratio": None if odds is None else short(odds),
        },
        "front": [entry.row for entry in decision.front],
        "considered": decision.considered,
        "ruled_out": decision.ruled_out,
        "notes": list(found.notes),
    }
    return headed("pareto", answer)


def _ids(of: Sequence[Gpu | Precision], index: IntArray) -> list[str]:
    names = [each.id for each in of]
    return [names[i] for i in index.tolist()]


def service(
    loaded: Loaded, question: DecisionFile, configuration: str, *, rates: int = RATES
) -> dict[str, Any]:
    """Put one configuration under many rates.

    Parameters
    ----------
    question : DecisionFile
        Its rate is the one that the break point is looked for from.
    configuration : str
        As in ``TP4 B64``, or a command line of ``vllm serve``.
    rates : int
        How many.
    """
    found = asked(loaded, question)
    asked_of = found.scenario
    told = read_running(configuration, asked_of.llm, asked_of.gpu, asked_of.precision)
    case = case_of(told.scenario(asked_of), told.configuration)
    cases = Cases.of([case])
    problem = capacity.format_problem(case.gpu, case.precision)
    if problem is not None:
        raise InfeasibleError(f"{case.configuration.describe()} cannot run: {problem}")
    if slots(cases, found.load.lengths)[0] < 1:
        raise InfeasibleError(
            f"{case.configuration.describe()} has no room in memory for one request of "
            f"{case.llm.id} on {case.gpu.id}: use more GPUs, or weights in fewer bits"
        )
    answer = {
        "configuration": case.configuration.describe(),
        "gpu": case.gpu.id,
        "precision": case.precision.id,
        **_curve(found, cases, rates),
        "notes": [*told.notes, *found.notes],
    }
    return headed("service", answer)


def _curve(found: Query, case: Cases, count: int) -> dict[str, Any]:
    """Columns of a load curve, up to the rate beyond which the queue grows without end."""
    engine, load = found.engine, found.load
    state = engine.solve(case, load, (), odds=False).state
    most = float(state.saturation_rate_per_s[0] * case.data_parallel[0])
    least = min(most / 100.0, load.rate_per_s)
    inside = np.geomspace(least, 0.995 * most, count)
    if load.rate_per_s < most:
        inside = np.unique(np.append(inside, load.rate_per_s))
    solved = engine.solve(
        case.take(np.zeros(len(inside), dtype=np.intp)), load, (), odds=False, rates_per_s=inside
    )
    state = solved.state
    return {
        "rate_per_s": short(inside),
        "energy_per_request_j": short(solved.energy_j),
        "power_w": short(solved.power_w),
        "tpot_s": short(state.tpot_s),
        "ttft_s": short(state.ttft_s),
        "request_latency_s": short(state.request_latency_s),
        "mean_batch_size": short(state.mean_batch_size),
        "utilisation_ratio": short(state.utilisation_ratio),
        "saturation_rate_per_s": most,
        "breaks_at_rate_per_s": _breaks_at(engine, found, case, most) if found.limits else None,
    }


def _breaks_at(engine: Engine, found: Query, case: Cases, most: float) -> float | None:
    """Find the largest rate at which one configuration keeps the limits; None if it never does."""
    least = replace(found.load, rate_per_s=most / 1000.0)
    if not engine.solve(case, least, found.limits).meets(found.limits, found.meet)[0]:
        return None
    return breaks_at(engine, case, least, found.limits, found.meet)


def explanation(loaded: Loaded, question: CaseQuestion) -> dict[str, Any]:
    """Explain one configuration kept full, as ``explain --json`` does."""
    engine = Served.named(question.engine) if question.engine else UNKNOWN_ENGINE
    model, notes = loaded.model_for(question.model, question.gpu, engine.id)
    case = case_described(
        question,
        gpu=replace(catalog.gpu(question.gpu), max_num_seqs=None),
        precision=catalog.checkpoint_precision(question.llm, question.precision or ""),
        engine=engine_meant(engine, model),
        node_option="node_gpus",
    )
    made = explanation_document(
        explain(model, case), capacity.memory(case), explain_time(model, case)
    )
    made["notes"] = [*notes, *made["notes"]]
    return made


# ---------------------------------------------------------------------------------- the page


def page(loaded: Loaded, question: Question, *, certain: bool) -> dict[str, Any]:
    """Everything that the page shows of one question.

    Without ``certain`` the ranking by means and its front; with it the probabilities, limits and
    their price, where joules and seconds go, the load curve, the law and its rows too.
    """
    decision_file = question.document()
    found = asked(loaded, decision_file)
    decision = found.decide(front=True, odds=certain)
    made: dict[str, Any] = {
        "decision": _decision(found, decision),
        "pareto": _pareto(found, decision),
        "rows": [entry.row for entry in decision.entries],
        "names": [entry.describe() for entry in decision.entries],
        "limit_words": [limit.describe() for limit in decision.limits],
    }
    best = decision.entries[0] if decision.entries else None
    if best is not None:
        made["commands"] = _commands(question.llm, best)
    made["decision_file"] = toml_of(decision_file)
    if not certain:
        return made
    top = (decision.entries or decision.missed)[:BARS]
    top = tuple(e for e in top if not decision.solved.state.saturated[e.row])
    made["bars"] = [entry.describe() for entry in top]
    made["bar_gpus"] = [entry.gpu for entry in top]
    made["joules"] = joules_by_term(found, decision, top)
    made["seconds"] = seconds_by_term(found, decision, top)
    subject = best or (decision.missed[0] if decision.missed else None)
    if subject is not None:
        case = case_of_entry(decision, subject)
        made["curve"] = {
            "configuration": subject.describe(),
            "gpu": subject.gpu,
            **_curve(replace(found, limits=()), Cases.of([case]), RATES),
            "breaks_at_rate_per_s": decision.breaks_at_per_s if best else None,
        }
        made["law"] = law(found.model, case)
        made["behind"] = behind(loaded, found, case)
        made["sentences"] = [_worded(binding(decision))] if best else []
    return made


def _commands(llm: str, best: Entry) -> dict[str, str]:
    """Lines to copy, of each engine that has such a layout; the last are remembered."""
    # All that they say comes from these: a slider seldom moves the choice.
    rows = catalog.llm(llm), catalog.gpu(best.gpu), catalog.precision(best.precision)
    key = (llm, rows, best.configuration, best.batch_limit)
    if (known := _LINES.get(key)) is not None:
        return known
    made = {}
    for kind in EMITTERS:
        try:
            made[kind] = emit(kind, llm, best)
        except EnergyLensError:
            continue
    _LINES.put(key, made, sum(map(len, made.values())))
    return made


def joules_by_term(
    found: Query, decision: Decision, entries: Sequence[Entry]
) -> list[dict[str, Any]]:
    """Divide the joules of a request over the terms of the law, idle time apart.

    Terms are those of a full batch of as many sequences as share a step on average, scaled so
    that they and the idle joules add to what is predicted under the load.
    """
    if not entries:
        return []
    rows = np.array([entry.row for entry in entries], dtype=np.intp)
    solved, state = decision.solved, decision.solved.state
    cases = solved.cases.take(rows)
    rate = state.rate_per_s[rows]
    share = rate * cases.output_tokens / np.maximum(state.steps_per_s[rows], 1e-12)
    per_step = np.clip(share, 1.0, cases.batch_size / cases.data_parallel)
    running = cases.replace(mean_batch_size=per_step * cases.data_parallel, node_boundary=False)
    law = found.engine.joule_law
    prefill, decode = law.predict_parts_j(running)
    idle = cases.tensor_parallel * cases.pipeline_parallel * cases.of_gpu(idle_of(law))
    idle = idle * state.empty_ratio[rows] / rate
    served = solved.power_w[rows] / solved.energy_j[rows]
    node = (solved.power_w[rows] - state.power_w[rows] * cases.data_parallel) / served
    node = np.where(np.abs(node) < 1e-6 * solved.energy_j[rows], 0.0, np.maximum(node, 0.0))
    parts = prefill + decode
    left = np.maximum(solved.energy_j[rows] - idle - node, 0.0)
    parts = parts * (left / parts.sum(axis=1))[:, None]
    names = [term.name for term in law.terms]
    return _parts([*names, IDLE, NODE], np.column_stack([parts, idle, node]), "j")


def seconds_by_term(
    found: Query, decision: Decision, entries: Sequence[Entry]
) -> list[dict[str, Any]]:
    """Divide the seconds of a request over the terms of the time law, waiting apart.

    Terms are those of a request in the batch that runs on average; what is left of the time under
    the load is waiting: for a slot, for a step to end, for the prompts of others.
    """
    if not entries:
        return []
    rows = np.array([entry.row for entry in entries], dtype=np.intp)
    state, cases = decision.solved.state, decision.solved.cases.take(rows)
    running = np.maximum(state.mean_batch_size[rows], 1.0) * cases.data_parallel
    time = found.engine.time_law
    parts = time.predict_parts_s(cases.replace(mean_batch_size=running), "latency")
    total = state.request_latency_s[rows]
    own = parts.sum(axis=1)
    parts = parts * np.minimum(total / own, 1.0)[:, None]
    waiting = np.maximum(total - own, 0.0)
    names = [term.name for term in TIME_TERMS]
    return _parts([*names, WAITING], np.column_stack([parts, waiting]), "s")


def _parts(names: Sequence[str], values: FloatArray, unit: str) -> list[dict[str, Any]]:
    """Long rows of a stacked bar; what is nowhere as much as a thousandth is left out."""
    seen = (values / values.sum(axis=1, keepdims=True)).max(axis=0) >= 1e-3
    kept = [(k, names[k]) for k in np.flatnonzero(seen).tolist()]
    return [
        {"rank": i, "term": name, "k": k, unit: float(f"{row[k]:.4g}")}
        for i, row in enumerate(values.tolist())
        for k, name in kept
    ]


def short(values: FloatArray | IntArray) -> list[Any]:
    """Numbers of a column to a few digits; None for what is not finite."""
    finite = np.isfinite(values)
    nothing = np.abs(values) < LEAST  # a chance may be far below what has a power of ten
    safe = np.where(finite & ~nothing, values, 1.0).astype(np.float64)
    scale = 10.0 ** (DIGITS - 1 - np.floor(np.log10(np.abs(safe))))
    rounded = np.where(nothing, 0.0, np.round(safe * scale) / scale)
    listed: list[Any] = rounded.tolist()
    if finite.all():
        return listed
    return [value if good else None for value, good in zip(listed, finite.tolist(), strict=True)]


def law(model: EnergyModel, case: Case) -> dict[str, Any]:
    """The joule law and the time law with their numbers for a GPU type and engine."""
    fitted = model.coefficients(case.llm.id, case.gpu.id, case.precision.id, case.engine.id)
    low, high = fitted.interval_80()
    expected = datasheet((case.gpu,), model.terms)[0]
    time = Engine(model).time
    seconds = time.coefficients(case.gpu.id, case.engine.id)
    return {
        "gpu": case.gpu.id,
        "engine": case.engine.id,
        "terms": [
            {
                "name": term.name,
                "symbol": term.symbol,
                "theta": float(fitted.theta[k]),
                "low": float(low[k]),
                "high": float(high[k]),
                "value": float(fitted.theta[k] * expected[k]),
                "unit": term.unit,
                "meaning": term.meaning,
            }
            for k, term in enumerate(model.terms)
        ],
        "overlaps": [list(pair) for pair in OVERLAPS],
        "time": [
            {
                "name": term.name,
                "theta": float(seconds.theta[k]),
                "unit": term.unit,
                "meaning": term.meaning,
            }
            for k, term in enumerate(TIME_TERMS)
        ],
    }


def behind(loaded: Loaded, found: Query, case: Case) -> dict[str, Any]:
    """Which rows stand behind an answer, and where it goes beyond them."""
    model = found.model
    known = next((p for p in packaged.packaged() if p.dataset_digest == model.dataset_digest), None)
    scope = model.scope_of(case.engine.id)
    return {
        "rows": model.pooled.rows,
        "rows_with_a_time": model.time.pooled.rows if model.time else 0,
        "sources": {str(name): count for name, count in model.sources.items()},
        "source": known.source if known else (loaded.name or "datasheets"),
        "licence": known.licence if known else "",
        "date": known.date if known else "",
        "llms": len(scope.llms),
        "llm_among_them": case.llm.id in scope.llms,
        "gpus": list(scope.gpus),
        "precisions": list(scope.precisions),
        "engines": sorted(model.scope.engines),
        "dataset_digest": model.dataset_digest,
        "ranges": {name: list(span) for name, span in scope.ranges.items()},
        "notes": list(scope_notes(model, case)),
    }


def toml_of(question: DecisionFile) -> str:
    """Write a question as a decision file that ``energylens select FILE`` takes."""
    lines = [
        "# A question to EnergyLens: energylens select FILE",
        "# (schema: docs/schemas/v1/decision-file.schema.json)",
    ]
    for table, values in question.model_dump(exclude_none=True).items():
        kept = {name: value for name, value in values.items() if value != []}
        if kept:
            lines += ["", f"[{table}]", *(f"{name} = {_toml(kept[name])}" for name in kept)]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    """One TOML value; JSON's strings and numbers are TOML's, but for DEL."""
    return json.dumps(value).replace("\x7f", "\\u007f")


__all__ = ["BATCH_SIZE", "explanation", "page", "pareto", "select", "service", "toml_of"]
