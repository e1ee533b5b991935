"""Why a case costs what it costs: joules per term and phase, and what a change would do."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from energylens import capacity, catalog
from energylens.capacity import as_run
from energylens.cases import Cases, FloatArray
from energylens.formula import design_by_phase, slopes
from energylens.model import Coefficients, EnergyModel, known_engine, physics_flags
from energylens.records import Case, Configuration, Workload
from energylens.viewing import Shown, picked
from energylens.words import J_PER_KWH, energies, joules, percent, plural

COVERAGE_RATIO = 0.8

# What each term is, as the subject of a sentence.
SUBJECTS = {
    "prefill_launch": "GPUs waiting for kernels during prefill",
    "prefill_compute": "computing the prompt",
    "vision": "encoding images or frames",
    "decode_launch": "GPUs waiting for kernels during decode",
    "decode_weights": "reading the weights for each decode step",
    "decode_compute": "multiplying the new tokens",
    "decode_sequence": "GPUs waiting for the engine's work on each sequence",
    "decode_cache": "reading the KV cache or state",
    "tensor_parallel": "sending activations between GPUs",
    "pipeline_parallel": "waiting for other pipeline stages",
    "idle_gpus": "idle GPUs of the node",
    "tensor_length": "tensor parallelism at this length",
    "pipeline_length": "pipeline parallelism at this length",
    "expert_imbalance": "waiting for the busiest experts",
    "media_waiting": "waiting for images or frames",
    "weight_only_weights": "widening the weights",
    "narrow_weights": "working with weights in fewer bits",
    "narrow_steps": "waiting longer for the kernels of a narrow format",
    "capped_headroom": "what the power cap does not take away",
    "capped_compute": "multiplying for longer under the power cap",
}


@dataclass(frozen=True, kw_only=True)
class TermShare:
    """Joules per request of one term, both phases, with the interval its coefficient leaves."""

    name: str
    prefill_j: float
    decode_j: float
    low_j: float
    high_j: float

    @property
    def total_j(self) -> float:
        """Joules of both phases."""
        return self.prefill_j + self.decode_j


@dataclass(frozen=True, kw_only=True)
class Change:
    """What another setting of the same case would cost, by the model.

    ``running_batch_size`` is set where memory holds fewer sequences than the batch limit allows;
    ``mostly`` is the term that changes most the way the whole does.
    """

    what: str
    energy_per_request_j: float
    difference_j: float
    feasible: bool
    reason: str = ""
    running_batch_size: float | None = None
    mostly: str = ""


@dataclass(frozen=True, kw_only=True, repr=False)
class Explanation(Shown):
    """A case explained.

    Attributes
    ----------
    energy_per_request_j, low_j, high_j : float
        Prediction and its 80 % interval for a new measurement.
    energy_per_output_token_j, energy_per_total_token_j : float
        The same over the tokens of output, and over those of prompt and output.
    terms : tuple of TermShare
        All twelve, in the order of the formula.
    input_token_j, output_token_j : float
        What one more token of prompt, or of output, costs.
    factors : dict of str to float
        What the rows say of the LLM and its format besides the law, by what it is of.
    changes : tuple of Change
        Half the tensor and pipeline parallelism, double the batch, where they make sense.
    notes : tuple of str
        Where the case lies outside what the fit has seen, and why it does not fit in memory.
    sentences : tuple of str
        All of it in words.
    """

    case: str
    energy_per_request_j: float
    energy_per_output_token_j: float
    energy_per_total_token_j: float
    low_j: float
    high_j: float
    prefill_j: float
    decode_j: float
    terms: tuple[TermShare, ...]
    input_token_j: float
    output_token_j: float
    factors: dict[str, float]
    changes: tuple[Change, ...]
    notes: tuple[str, ...]
    sentences: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Give everything as plain JSON values."""
        return {
            "case": self.case,
            "energy_per_request_j": self.energy_per_request_j,
            "energy_per_output_token_j": self.energy_per_output_token_j,
            "energy_per_total_token_j": self.energy_per_total_token_j,
            "energy_per_request_kwh": self.energy_per_request_j / J_PER_KWH,
            "interval_80_j": [self.low_j, self.high_j],
            "prefill_energy_per_request_j": self.prefill_j,
            "decode_energy_per_request_j": self.decode_j,
            "terms": {
                t.name: {
                    "prefill_j": t.prefill_j,
                    "decode_j": t.decode_j,
                    "interval_80_j": [t.low_j, t.high_j],
                }
                for t in self.terms
            },
            **picked(self, "input_token_j output_token_j factors"),
            "changes": [
                {
                    **picked(
                        c,
                        "what energy_per_request_j difference_j feasible reason running_batch_size",
                    )
                }
                for c in self.changes
            ],
            "notes": list(self.notes),
            "sentences": list(self.sentences),
        }


def explain(model: EnergyModel, case: Case) -> Explanation:
    """Explain one case.

    Of a batch limit beyond what memory holds, what memory holds runs, as in
    :func:`energylens.selection.select`.

    Parameters
    ----------
    model : EnergyModel
        Fitted without measured power, which a case does not have.
    """
    case = as_run(case)
    variants = _variants(case)
    cases = Cases.of([case, *(variant for _, variant in variants)])
    energies = model.predict_energy_j(cases)
    energy = float(energies[0])
    low, high = model.interval_energy_j(cases.take(np.arange(1)), COVERAGE_RATIO)
    all_prefill, all_decode = model.predict_parts_j(cases)
    prefill, decode = all_prefill[:1], all_decode[:1]
    parts = all_prefill + all_decode
    more = (parts - parts[0]) * np.sign(parts.sum(axis=1) - parts[0].sum())[:, None]
    mostly = {
        name: model.terms[k].name
        for (name, _), k in zip(variants, more[1:].argmax(axis=1), strict=True)
    }
    low_j, high_j = _term_intervals_j(model, case)
    terms = tuple(
        TermShare(
            name=term.name,
            prefill_j=float(prefill[0, k]),
            decode_j=float(decode[0, k]),
            low_j=float(low_j[k]),
            high_j=float(high_j[k]),
        )
        for k, term in enumerate(model.terms)
    )
    by_name = dict(zip((name for name, _ in variants), energies[1:], strict=True))
    tokens = {name: float(by_name.pop(name) - energy) for name in ("input token", "output token")}
    changes = tuple(
        _change(name, variant, float(by_name[name]), energy, mostly[name])
        for name, variant in variants
        if name in by_name
    )
    fitted = model.coefficients(case.llm.id, case.gpu.id, case.precision.id, case.engine.id)
    own = Cases.of([case])
    told = {name: ratio for name, ratio in fitted.factors.told(own) if abs(ratio - 1.0) >= 0.005}
    present = {t.name for t in terms if t.total_j > 0}
    said = _sentences(case, energy, float(low[0]), float(high[0]), terms, tokens, changes)
    together = float(np.exp(fitted.factors.logs(own)[0][0]))
    flags = physics_flags(fitted.theta, model.terms, together) if fitted.rows else {}
    notes = (
        *scope_notes(model, case),
        *_memory_notes(case),
        *(f"{flag[0].upper()}{flag[1:]}" for name, flag in flags.items() if name in present),
    )
    return Explanation(
        case=describe(case),
        energy_per_request_j=energy,
        energy_per_output_token_j=energy / case.workload.output_tokens,
        energy_per_total_token_j=energy
        / (case.workload.input_tokens + case.workload.output_tokens),
        low_j=float(low[0]),
        high_j=float(high[0]),
        prefill_j=float(prefill.sum()),
        decode_j=float(decode.sum()),
        terms=terms,
        input_token_j=tokens["input token"],
        output_token_j=tokens["output token"],
        factors=told,
        changes=changes,
        notes=notes,
        sentences=(
            said[0],
            *_factor_sentences(model, fitted, told, together),
            *said[1:],
        ),
    )


def _factor_sentences(
    model: EnergyModel, fitted: Coefficients, told: dict[str, float], all_together: float
) -> list[str]:
    """Say what factors the rows gave, and how many rows stand behind the number."""
    sentences = []
    if told:
        parts = ", ".join(f"{name} x{ratio:.2f}" for name, ratio in told.items())
        together = f"; together x{all_together:.2f}" if len(told) > 1 else ""
        sentences.append(
            f"Measured rows took more or less than the law, which is counted in: {parts}{together}."
        )
    if fitted.rows:
        llms = len(model.scope.llms)
        sentences.append(
            f"It rests on {plural(fitted.rows, 'measured row')} of {plural(llms, 'LLM')}."
        )
    return sentences


def _term_intervals_j(model: EnergyModel, case: Case) -> tuple[FloatArray, FloatArray]:
    """Joules of each term at either end of its coefficient's 80 % interval, others as fitted.

    Not in proportion to the coefficient where two terms overlap: the smaller hardly shows.
    """
    fitted = model.coefficients(case.llm.id, case.gpu.id, case.precision.id, case.engine.id)
    factor = np.exp(fitted.factors.logs(Cases.of([case]))[0]) if fitted.factors.keys else 1.0
    phases = design_by_phase(Cases.of([case]), model.terms)
    ends = []
    for values in fitted.interval_80():
        moved = np.where(np.eye(len(values), dtype=np.bool_), values, fitted.theta)
        parts = [np.diag(slopes(x[[0] * len(values)], moved)) * values for x in phases]
        ends.append((parts[0] + parts[1]) * factor)
    return ends[0], ends[1]


def describe(case: Case) -> str:
    """Name a case in one line."""
    w = case.workload
    gpus = case.configuration.gpus
    return (
        f"{case.llm.id} {case.precision.id} on {gpus} x {case.gpu.id}, "
        f"{case.configuration.describe()}, {w.input_tokens:g} tokens in, {w.output_tokens:g} out"
    )


def scope_notes(model: EnergyModel, case: Case) -> tuple[str, ...]:
    """Say where a case lies outside the rows that a model was fitted to."""
    notes = []
    workload, c = case.workload, case.configuration
    tokens = workload.input_tokens + workload.output_tokens
    if too_long := catalog.context_note(case.llm.id, tokens):
        notes.append(too_long)
    if case.configuration.power_cap_w is not None and "power_cap" not in model.extensions:
        notes.append(
            "This model knows no power caps, so the cap is ignored"
            + (": fit it with --extend power_cap." if model.pooled.rows else ".")
        )
    notes += model.clock_notes(locked=c.clock_mhz is not None)
    if not model.pooled.rows:
        return (
            "No measurement stands behind this, only the datasheet of the GPU: the order of "
            "configurations is worth more than their joules (docs/results.md, "
            "energylens-datasheet).",
            *notes,
        )
    if model.caution:
        notes.append(model.caution)
    if assumed := model.options.get("assumed_rows"):
        notes.append(
            f"{assumed} of {sum(model.sources.values())} rows of the fit rest on a prompt length "
            "that was assumed: what it says of prompts is only as good as that."
        )
    engines, name = model.scope.engines, case.engine.id
    scope = model.scope_of(name)
    no_row = "No row of the fit" if scope is model.scope else f"No row of {name}"
    for what, asked, known in (
        ("LLM", case.llm.id, scope.llms),
        ("GPU", case.gpu.id, scope.gpus),
    ):
        if asked not in known:
            notes.append(f"{no_row} has the {what} {asked}.")
    if case.precision.id not in scope.precisions:
        notes.append(
            f"{no_row} has the precision {case.precision.id}, and the interval does not allow "
            "for that."
        )
    if len(engines) > 1 and "engine" not in model.per:
        notes.append(
            f"The rows are of {len(engines)} engine versions, whose joules differ, and this fit "
            "does not tell them apart: fit again with engine among --per."
        )
    elif name and not known_engine(case.engine, engines):
        told = f": they are of {', '.join(engines)}" if engines else ""
        notes.append(
            f"No row of the fit has the engine {name}{told}. Between versions joules may differ "
            "twofold, more than the interval says; their order carries over (docs/results.md)."
        )
    elif not name and len(engines) > 1:
        notes.append(
            f"The rows are of {len(engines)} engine versions, whose joules differ, and this "
            f"rests on all of them: name yours with --engine ({', '.join(engines)})."
        )
    w = workload
    values = {
        **c.degrees,
        "batch_size": c.batch_size,
        **picked(w, "input_tokens output_tokens vision_tokens"),
        "power_cap_w": case.gpu.tdp_w if c.power_cap_w is None else c.power_cap_w,
        "clock_ratio": float(Cases.of([case]).clock_ratio[0]),
    }
    for column, (low, high) in scope.ranges.items():
        value = values[column]
        if not low <= value <= high:
            notes.append(f"{column} = {value:g} lies outside the fitted {low:g} to {high:g}.")
    return tuple(notes)


def _memory_notes(case: Case) -> tuple[str, ...]:
    memory = capacity.memory(case)
    served = capacity.format_note(case.gpu, case.precision)
    told = (served,) if served else ()
    return told if memory.runs else (*told, f"{memory.reason[0].upper()}{memory.reason[1:]}.")


def _variants(case: Case) -> list[tuple[str, Case]]:
    c, w = case.configuration, case.workload

    def laid_out(configuration: Configuration) -> Case:
        return as_run(replace(case, configuration=configuration))

    def asked(workload: Workload) -> Case:
        return replace(case, workload=workload)

    variants = [
        ("input token", asked(replace(w, input_tokens=w.input_tokens + 1))),
        ("output token", asked(replace(w, output_tokens=w.output_tokens + 1))),
        (
            "double the batch",
            laid_out(
                replace(
                    c,
                    batch_size=2 * c.batch_size,
                    mean_batch_size=2 * c.mean_batch_size if c.mean_batch_size else None,
                )
            ),
        ),
    ]
    if c.tensor_parallel % 2 == 0:
        half = c.tensor_parallel // 2
        expert = min(c.expert_parallel, half * c.data_parallel)
        halved = replace(c, tensor_parallel=half, expert_parallel=expert)
        variants.append(("half the tensor parallelism", laid_out(halved)))
    if c.pipeline_parallel % 2 == 0:
        halved = replace(c, pipeline_parallel=c.pipeline_parallel // 2)
        variants.append(("half the pipeline parallelism", laid_out(halved)))
    return variants


def _change(what: str, case: Case, energy: float, before: float, mostly: str) -> Change:
    memory, held = capacity.memory(case), _held(case)
    reason = "" if memory.runs else memory.reason
    # As in a ranking, a limit above one that is beyond memory already only lengthens the queue.
    if what == "double the batch" and held and held < case.configuration.batch_size / 2:
        reason = f"memory holds about {held:.0f} sequences, so the others would only wait"
    return Change(
        what=what,
        energy_per_request_j=energy,
        difference_j=energy - before,
        feasible=not reason,
        reason=reason,
        running_batch_size=held,
        mostly=mostly,
    )


def _held(case: Case) -> float | None:
    """Sequences that memory holds, where they run and the batch limit is beyond them."""
    room = capacity.memory(case).largest_batch
    return room if 1.0 <= room < case.configuration.batch_size else None


def _sentences(
    case: Case,
    energy: float,
    low: float,
    high: float,
    terms: tuple[TermShare, ...],
    tokens: dict[str, float],
    changes: tuple[Change, ...],
) -> list[str]:
    prefill = sum(t.prefill_j for t in terms)
    sentences = [
        f"A request costs {joules(energy)} (a new measurement lies between {joules(low)} and "
        f"{joules(high)} with 80 % probability): {percent(prefill / energy, 0)} in prefill, "
        f"{percent(1 - prefill / energy, 0)} in decode.",
        f"By unit: {energies(energy, case.workload.input_tokens, case.workload.output_tokens)}.",
    ]
    held = _held(case)
    if held is not None:
        sentences.append(
            f"B{case.configuration.batch_size:g} is a limit: memory holds about {held:.0f} "
            "sequences, at which it runs; the others wait."
        )
    largest = [t for t in sorted(terms, key=lambda t: -t.total_j)[:3] if t.total_j > 0]
    sentences.append(
        "The largest parts are "
        + ", ".join(f"{SUBJECTS[t.name]} ({percent(t.total_j / energy, 0)})" for t in largest)
        + "."
    )
    by_name = {t.name: t for t in terms}
    for degree, name, plain in (
        (case.configuration.tensor_parallel, "tensor_parallel", "Tensor"),
        (case.configuration.pipeline_parallel, "pipeline_parallel", "Pipeline"),
    ):
        if degree == 1:
            continue
        term = by_name[name]
        sentence = f"With {plain.lower()} parallelism of {degree}, {SUBJECTS[name]} "
        sentence += (
            f"costs {joules(term.total_j)} ({joules(term.low_j)} to {joules(term.high_j)})"
            if term.total_j > 0
            else f"shows in none of the rows (at most {joules(term.high_j)}): other terms explain "
            "its share, which does not say that it costs nothing"
        )
        half = next((c for c in changes if c.what == f"half the {plain.lower()} parallelism"), None)
        if half and half.feasible:
            verb = "save" if half.difference_j < 0 else "cost another"
            sentence += (
                f"; half the degree would {verb} {joules(abs(half.difference_j))} a request, "
                f"most of it on {SUBJECTS[half.mostly]}"
            )
            if half.running_batch_size:
                sentence += f", with about {half.running_batch_size:.0f} sequences at once"
        elif half:
            sentence += (
                f"; half the degree is not possible: {half.reason[0].lower()}{half.reason[1:]}"
            )
        sentences.append(sentence.rstrip(".") + ".")
    sentences.append(
        f"One more token of prompt costs {joules(tokens['input token'])}, "
        f"one more of output {joules(tokens['output token'])}."
    )
    double = next(c for c in changes if c.what == "double the batch")
    if double.feasible:
        verb = "save" if double.difference_j < 0 else "cost another"
        sentence = (
            f"Twice the batch would {verb} {joules(abs(double.difference_j))} a request "
            f"({percent(abs(double.difference_j) / energy, 0)})"
        )
        if double.running_batch_size:
            sentence += (
                f", with about {double.running_batch_size:.0f} sequences at once: memory holds "
                "no more"
            )
    elif double.running_batch_size:
        sentence = f"Twice the batch would change nothing: {double.reason}"
    else:
        sentence = f"Twice the batch does not fit: {double.reason[0].lower()}{double.reason[1:]}"
    sentences.append(sentence.rstrip(".") + ".")
    return sentences
