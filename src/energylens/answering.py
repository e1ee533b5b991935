"""A question as a document, answered as a document: what the command and the API share.

A :class:`energylens.schemas.DecisionFile` and a model make a :class:`Query`; what is decided
becomes the document that ``select --json`` prints and ``/v1/select`` gives.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from energylens import catalog
from energylens.cases import Cases
from energylens.deciding import MEET, decide
from energylens.decisions import Decision, Entry, LatencyLimit, Load, Running
from energylens.errors import UsageError
from energylens.lengths import MIXES, with_prompts_of, workload_of
from energylens.model import EnergyModel
from energylens.records import UNKNOWN_ENGINE, Boundary, Case, Configuration
from energylens.records import Engine as Served
from energylens.running import read_running
from energylens.savings import Prices, bill
from energylens.scenarios import Candidates, Scenario
from energylens.schemas import DecisionFile, Month, headed
from energylens.service import Lengths
from energylens.solving import BATCH_LIMITS, DEFAULT_CHOOSE, Engine, case_of
from energylens.words import Note, notes_in_order, plural, short_name

BATCH_SIZE = 32.0  # where none is named
NO_TIMES = Note(
    "The model was fitted to joules alone: times are those of the datasheet, which may be off by "
    "half. Fit rows that have request_latency_s or tpot_s.",
    rank=Note.UNSEEN,
    brief="Fitted to joules alone: times are the datasheet's, maybe off by half.",
)


def parse_limit(text: str, measure: Any, where: str = "") -> LatencyLimit:
    """Read ``50ms``, ``1s`` or ``0.05:p90`` (seconds without a unit).

    Parameters
    ----------
    measure : {"tpot", "ttft", "latency"}
    where : str
        What the limit is called where it was given; its measure by default.

    Raises
    ------
    UsageError
        If the text is no time.
    """
    match = re.fullmatch(
        r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(us|ms|s|min)?\s*(?::\s*p(\d+(?:\.\d+)?))?\s*",
        text,
        re.IGNORECASE | re.ASCII,
    )
    if not match:
        raise UsageError(
            f"{where or measure} must be a time, with a percentile or not, as in 50ms, 1s or "
            f"50ms:p90; not {text!r}"
        )
    if match[2] is None and measure == "tpot" and float(match[1]) >= 1.0:
        raise UsageError(
            f"{where or measure} of {match[1]} would be seconds for each token: say its unit, as "
            f"in {match[1]}ms or {match[1]}s"
        )
    scale = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0}[(match[2] or "s").lower()]
    quantile = None if match[3] is None else float(match[3]) / 100.0
    return LatencyLimit(measure=measure, seconds=float(match[1]) * scale, quantile=quantile)


def refuse_two_formats(name: str, precision: str | None, option: str) -> None:
    """Refuse a number format that contradicts the one in the name of an LLM.

    Raises
    ------
    UsageError
        If it does; ``option`` is what asked for it.
    """
    llm, stated = catalog.split_precision(name)
    if precision and stated and name != llm:
        given = catalog.checkpoint_precision(name, precision).id
        if given != stated:
            raise UsageError(
                f"{option} is {given}, but the name {name} says {stated}: leave one of the two out "
                f"(the LLM without a format is {llm})"
            )


def engine_meant(engine: Served, model: EnergyModel) -> Served:
    """Find the engine version of a model's rows that is meant; of several none is.

    People write vLLM where tables say vllm, and leave out the version where there is one.
    """
    asked = engine.id.casefold()
    meant = [e for e in model.scope.engines if asked in (e.casefold(), e.casefold().split(" ")[0])]
    if not meant:
        return engine
    return Served.named(meant[0]) if len(meant) == 1 else UNKNOWN_ENGINE


# ---------------------------------------------------------------------------- the question


@dataclass(frozen=True, kw_only=True)
class Query:
    """A question with its names looked up: what :func:`energylens.deciding.decide` takes."""

    engine: Engine
    scenario: Scenario
    load: Load
    limits: tuple[LatencyLimit, ...]
    meet: float
    choose: tuple[str, ...]
    candidates: Candidates
    batch_limits: tuple[float, ...]
    current: Running | None
    prices: Prices
    notes: tuple[str, ...]

    @property
    def model(self) -> EnergyModel:
        """The model that answers."""
        return self.engine.energy

    def decide(self, *, front: bool = False, odds: bool = True, compared: bool = False) -> Decision:
        """Answer it, with probabilities or by the means alone."""
        return decide(
            self.engine,
            self.scenario,
            self.load,
            self.limits,
            meet=self.meet,
            choose=self.choose,
            candidates=self.candidates,
            batch_limits=self.batch_limits,
            current=self.current,
            front=front,
            odds=odds,
            compared=compared,
        )


def _lengths(asked: DecisionFile) -> Lengths:
    load = asked.load
    if load.mix is not None:
        if load.input_tokens is not None or load.output_tokens is not None:
            raise UsageError(
                "lengths come from one place: input_tokens and output_tokens, or mix; given both"
            )
        if load.mix not in MIXES:
            raise UsageError(f"mix must be one of {', '.join(MIXES)}, not {load.mix!r}")
        return MIXES[load.mix]
    if load.input_tokens is None or load.output_tokens is None:
        raise UsageError("input_tokens and output_tokens must be given, or mix")
    return Lengths(
        input_tokens=load.input_tokens,
        output_tokens=load.output_tokens,
        input_cv=1.0 if load.input_cv is None else load.input_cv,
        output_cv=1.0 if load.output_cv is None else load.output_cv,
    )


CAPS_BY_PHYSICS = Note(
    "No row of the fit has a power cap: steps are taken to last as long as their joules do at the "
    "cap, and to take no fewer joules for it; the interval is wider the lower the cap.",
    rank=Note.UNSEEN,
    brief="No row of the fit has a power cap: what one does is physics alone.",
)


def cap_note(model: EnergyModel, *, capped: bool) -> list[str]:
    """Say what power caps under load rest on, where the model knows none."""
    return [CAPS_BY_PHYSICS] if capped and "power_cap" not in model.extensions else []


def query(asked: DecisionFile, model: EnergyModel | Engine, notes: Sequence[str] = ()) -> Query:
    """Look up what a document names.

    Parameters
    ----------
    asked : DecisionFile
        Without files: its lengths are means or a named mix.
    model : EnergyModel or Engine
        An engine keeps what questions that differ in rate or limits have in common.
    notes : sequence of str
        What the reader must know of the model.

    Raises
    ------
    UnknownNameError
        If no catalog holds a name.
    UsageError
        If parts of the question contradict each other, or one needs a file.
    """
    answers = model if isinstance(model, Engine) else Engine(model)
    for name, path in (("lengths", asked.load.lengths), ("profile", asked.load.profile)):
        if path is not None:
            raise UsageError(
                f"load.{name} names a file, which is read by the command alone: give numbers"
            )
    serve, load = asked.serve, asked.load
    llm = catalog.llm(serve.llm)
    refuse_two_formats(serve.llm, serve.precision, "precision")
    # The batch limit is always free: a list of one value fixes it.
    choose = tuple(dict.fromkeys([*(asked.choose.knobs or DEFAULT_CHOOSE), "batch_size"]))
    for knob, values in (
        ("gpu", asked.choose.gpus),
        ("precision", asked.choose.precisions),
        ("power_cap", asked.choose.power_caps),
        ("clock", asked.choose.clocks),
    ):
        held = getattr(
            serve, {"power_cap": "power_cap_w", "clock": "clock_mhz"}.get(knob, ""), None
        )
        if held is not None and knob in choose:
            raise UsageError(
                f"the {knob} of {held:g} has no effect: {knob} is free (choose); leave one out"
            )
        if bool(values) != (knob in choose):
            raise UsageError(
                f"to choose the {knob} freely it must be among the knobs, and its values listed; "
                "give both or neither"
            )
    lengths = _lengths(asked)
    workload = workload_of(
        llm,
        lengths.input_tokens,
        lengths.output_tokens,
        images=load.images or 0,
        frames=load.frames or 0,
        vision_tokens=load.vision_tokens,
    )
    lengths = with_prompts_of(lengths, workload)
    gpu = catalog.gpu(serve.gpu)

    engine = Served.named(serve.engine) if serve.engine else UNKNOWN_ENGINE
    scenario = Scenario(
        llm=llm,
        gpu=gpu,
        precision=catalog.checkpoint_precision(serve.llm, serve.precision or ""),
        workload=workload,
        configuration=Configuration(
            batch_size=BATCH_SIZE, power_cap_w=serve.power_cap_w, clock_mhz=serve.clock_mhz
        ),
        boundary=Boundary.NODE if serve.node_gpus else Boundary.ACTIVE_GPUS,
        node_gpus=serve.node_gpus,
        max_gpus=8 if serve.max_gpus is None else serve.max_gpus,
        engine=engine_meant(engine, answers.energy),
    )
    known = model_notes(answers.energy, case_of(scenario))
    given_limits = (
        (measure, getattr(asked.limits, measure)) for measure in ("tpot", "ttft", "latency")
    )
    current, prices = asked.current, asked.prices
    return Query(
        engine=answers,
        scenario=scenario,
        load=Load(
            rate_per_s=load.rate_per_s, lengths=lengths, cached_share=load.cached_share or 0.0
        ),
        limits=tuple(parse_limit(text, measure) for measure, text in given_limits if text),
        meet=MEET if asked.limits.meet is None else asked.limits.meet,
        choose=choose,
        candidates=Candidates(
            gpus=tuple(catalog.gpu(name) for name in asked.choose.gpus),
            precisions=tuple(catalog.precision(name) for name in asked.choose.precisions),
            power_caps_w=tuple(map(float, asked.choose.power_caps or ())),
            clocks_mhz=tuple(map(float, asked.choose.clocks or ())),
        ),
        batch_limits=tuple(map(float, asked.choose.batch_sizes or BATCH_LIMITS)),
        current=None
        if current is None
        else read_running(current.configuration, llm, gpu, scenario.precision),
        prices=Prices.asked(prices.price, prices.carbon, prices.pue, prices.gpu_hour),
        notes=(
            *known,
            *notes,
            *choice_notes(
                answers.energy,
                {catalog.gpu(name).id for name in asked.choose.gpus} - {gpu.id},
                {catalog.precision(name).id for name in asked.choose.precisions}
                - {scenario.precision.id},
            ),
            *answers.energy.clock_notes(locked="clock" in choose or serve.clock_mhz is not None),
            *cap_note(
                answers.energy, capped="power_cap" in choose or serve.power_cap_w is not None
            ),
        ),
    )


def choice_notes(model: EnergyModel, gpus: set[str], precisions: set[str]) -> list[Note]:
    """Say which of the GPU types and number formats that are chosen among no row is of."""
    if not model.pooled.rows:
        return []
    said = (
        (gpus - set(model.scope.gpus), "datasheets carry these"),
        (precisions - set(model.scope.precisions), "formats of as many bits carry these"),
    )
    return [
        Note(f"No row is of {', '.join(sorted(names))}: {what}.", rank=Note.UNSEEN)
        for names, what in said
        if names
    ]


def fit_notes(model: EnergyModel, case: Case) -> list[str]:
    """Say what the rows of a fit lack for a case."""
    if not model.pooled.rows:
        return []
    lacking: list[str] = [
        Note(
            f"No row of the fit has the {what} {name}.",
            rank=Note.UNSEEN,
            brief=f"No row has the {what} {short_name(name)}.",
        )
        for what, name, known in (
            ("LLM", case.llm.id, model.scope.llms),
            ("precision", case.precision.id, model.scope.precisions),
        )
        if name not in known
    ]
    rows, llms = sum(model.sources.values()), len(model.scope.llms)
    said = f"It rests on {plural(rows, 'row')} of {plural(llms, 'LLM')}."
    if assumed := model.options.get("assumed_rows"):
        said = f"Prompt lengths of {assumed} of the fit's {rows} rows are assumed."
    lacking.append(Note(said, rank=Note.SHARED))
    return lacking


def model_notes(model: EnergyModel, case: Case) -> list[str]:
    """Say that requests are too long for the LLM, and what the fit lacks for it."""
    tokens = case.workload.input_tokens + case.workload.output_tokens
    too_long = catalog.context_note(case.llm.id, tokens)
    refused = [Note(too_long, rank=Note.UNSEEN)] if too_long else []
    return [*refused, *fit_notes(model, case)]


def notes_of(model: EnergyModel, notes: Sequence[str]) -> list[str]:
    """Add what a model's fit leaves open to what is said of it already."""
    more = [Note(model.caution, rank=Note.UNCLAIMED)] if model.caution else []
    return [*notes, *more, *([NO_TIMES] if model.time is None else [])]


# ------------------------------------------------------------------------------ the answer


def bills(
    model: EnergyModel, decision: Decision, prices: Prices, rates: Sequence[float] = ()
) -> dict[str, Month]:
    """Work out a month of the choice, and of what runs today where that keeps up.

    Parameters
    ----------
    rates : sequence of float
        A day's rates in place of the one asked.
    """
    if not decision.entries:
        return {}
    named = {"best": decision.best}
    if decision.current is not None:
        named["current"] = decision.current
    made = {name: _bill(model, decision, entry, rates, prices) for name, entry in named.items()}
    return {name: each for name, each in made.items() if each is not None}


def case_of_entry(decision: Decision, entry: Entry) -> Case:
    """Make the case that an entry of a decision is about."""
    cases = decision.solved.cases  # with what was said of the GPU type and the cache's format
    scenario = replace(
        decision.scenario,
        gpu=next(gpu for gpu in cases.gpus if gpu.id == entry.gpu),
        precision=next(each for each in cases.precisions if each.id == entry.precision),
    )
    today = entry is decision.current or (decision.keeps and entry is decision.best)
    if decision.running is not None and today:
        scenario = decision.running.scenario(scenario)
    return case_of(scenario, entry.configuration)


def _bill(
    model: EnergyModel, decision: Decision, entry: Entry, rates: Sequence[float], prices: Prices
) -> Month | None:
    """A month of one configuration; None where it does not keep up."""
    if entry.saturated:
        return None
    load = decision.load
    power, rate = entry.power_w, load.rate_per_s
    if rates:
        engine = Engine(model)
        one = engine.prepare(Cases.of([case_of_entry(decision, entry)]), load.lengths)
        each = one.take(np.zeros(len(rates), dtype=np.intp))
        drawn = engine.solve(each, load, (), odds=False, rates_per_s=np.array(rates)).power_w
        power, rate = float(drawn.mean()), sum(rates) / len(rates)
    return bill(
        power,
        entry.configuration.gpus,
        rate_per_s=rate,
        input_tokens=load.lengths.input_tokens,
        output_tokens=load.lengths.output_tokens,
        prices=prices,
    )


def document(
    decision: Decision, month: Mapping[str, Month], notes: Sequence[str]
) -> dict[str, Any]:
    """Say a decision as the document that :class:`energylens.schemas.Decision` describes."""
    made = headed("select", decision.to_json())
    made["notes"] = [*made["notes"], *map(str, notes_in_order(notes))]
    made["month"] = {name: each.model_dump() for name, each in month.items()}
    return made
