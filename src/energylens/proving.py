"""A choice measured on the instrument: measure, correct, choose again, in two or three runs.

`energylens.verifying` says what to measure next and when to stay; here the engines of `measure`
do it, one case at a time, at the load in question or with the batch kept full. Everything is in
one folder, on the disk before the next begins: the same command goes on where it was stopped or
killed, and measures nothing twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from energylens.catalog.scaling import scaled_down
from energylens.decisions import Entry, LatencyLimit, Load
from energylens.errors import UsageError
from energylens.instrument import planning, sweep
from energylens.instrument.folder import Instrument, SweepFolder
from energylens.instrument.plan import PlannedCase
from energylens.model import EnergyModel
from energylens.records import Configuration
from energylens.scenarios import Scenario
from energylens.verifying import RUNS, Run, Verdict, verify


@dataclass(frozen=True, kw_only=True)
class Engines:
    """Which engine serves the LLM, and from what: as in a plan."""

    name: str
    llm: str  # a catalog name, or the folder of a checkpoint
    weights: str = "dummy"
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What was measured, and what it says.

    ``failed`` has the configurations that could not be measured, with the reason.
    """

    verdict: Verdict
    failed: Mapping[str, str]
    interrupted: bool = False


def prove(
    model: EnergyModel,
    scenario: Scenario,
    load: Load | None,
    limits: Sequence[LatencyLimit],
    folder: str | Path,
    engines: Engines,
    instrument: Instrument,
    *,
    most: int = RUNS,
    told: Callable[[str], None] = lambda _: None,
    on_progress: Callable[[sweep.SweepProgress], None] | None = None,
    **question: Any,
) -> Proof:
    """Measure the choice, correct, choose again, until one is to stay with.

    Parameters
    ----------
    model, scenario, load, limits, most, question
        As for :func:`energylens.verifying.verify`.
    folder : str or Path
        Where plan, rows and records lie. One that has some goes on from there.
    told : callable, optional
        Told in a sentence what is measured.
    on_progress : callable, optional
        Told of each change.

    Returns
    -------
    Proof
        From whatever is there, after an interrupt too.

    Raises
    ------
    UsageError
        If the folder is about something else, or the engine can measure none of it.
    """
    work = SweepFolder(folder, instrument)
    offered = None if load is None else replace(load, lengths=_as_offered(load), cached_share=0.0)
    _about_the_same(work, scenario, load, engines)
    interrupted = False
    while True:
        if work.cases and not interrupted:  # what a kill left is mended, if there is no more to do
            interrupted = work.measure(on_progress).interrupted
        runs, failed = _outcome(work, kept_full=load is None)
        verdict = verify(
            model, scenario, load, limits, runs,
            most=most, offered=offered, without=[c for c, _ in failed], **question,
        )  # fmt: skip
        open_ = interrupted or verdict.next is None or len(failed) >= most
        if open_:
            reasons = {c.describe(): reason for c, reason in failed}
            return Proof(verdict=verdict, failed=reasons, interrupted=interrupted)
        assert verdict.next is not None
        case = planned(verdict.next, scenario, load, engines, seed=instrument.seed)
        told(f"Run {len(runs) + len(failed) + 1}: {case.describe()}.")
        work.add([case])


def planned(
    entry: Entry, scenario: Scenario, load: Load | None, engines: Engines, *, seed: int = 0
) -> PlannedCase:
    """Make the case that measures a choice: at its load, or as a batch that starts together.

    Raises
    ------
    UsageError
        If the engine cannot run it.
    """
    c = entry.configuration
    if c.power_cap_w is not None:
        raise UsageError("verify sets no power caps: choose among configurations without")
    if c.clock_mhz is not None:
        raise UsageError("verify locks no clocks: choose among configurations without")
    if entry.gpu != scenario.gpu.id:
        raise UsageError(
            f"the choice is on {entry.gpu}, and measured can be {scenario.gpu.id} alone: leave the "
            "GPU type fixed"
        )
    w = scenario.workload
    if w.vision_tokens:
        raise UsageError("verify offers requests of text alone: measure images with plan, measure")
    space = planning.Space(
        llms=(engines.llm,),
        gpus=(entry.gpu,),
        engine=engines.name,
        precisions=(entry.precision,),
        tensor_parallel=(c.tensor_parallel,),
        pipeline_parallel=(c.pipeline_parallel,),
        expert_parallel=(c.expert_parallel,),
        data_parallel=(c.data_parallel,),
        batch_sizes=(int(c.batch_size),),
        input_tokens=(max(1, round(w.input_tokens)),),
        output_tokens=(max(2, round(w.output_tokens)),),
        request_rates_per_s=() if load is None else (load.rate_per_s,),
        boundary=scenario.boundary,
        node_gpus=scenario.node_gpus,
        weights=engines.weights,
        options=dict(engines.options),
        seed=seed,
    )
    return planning.plan(space, order="given", scale=scaled_down).plan.cases[0]


def _as_offered(load: Load) -> Any:
    """Requests are offered at their mean lengths, whole tokens each."""
    each = load.lengths
    return replace(
        each,
        input_tokens=float(max(1, round(each.input_tokens))),
        output_tokens=float(max(2, round(each.output_tokens))),
        input_cv=0.0,
        output_cv=0.0,
    )


def _about_the_same(
    work: SweepFolder, scenario: Scenario, load: Load | None, engines: Engines
) -> None:
    """Refuse a folder about something else."""
    rate = None if load is None else load.rate_per_s
    w = scenario.workload
    lengths = (max(1, round(w.input_tokens)), max(2, round(w.output_tokens)))
    for planned in work.cases:
        case = planned.case
        served = (case.llm.id, case.gpu.id, case.precision.id, case.boundary, case.node_gpus)
        wanted = (
            scenario.llm.id, scenario.gpu.id, scenario.precision.id, scenario.boundary,
            scenario.node_gpus,
        )  # fmt: skip
        there = (*served, planned.engine, planned.request_rate_per_s)
        asked = (*wanted, engines.name, rate)
        tokens = (int(case.workload.input_tokens), int(case.workload.output_tokens))
        if there != asked or tokens != lengths:
            raise UsageError(
                f"{work.path} holds runs of {planned.describe()} in {case.precision.id} on "
                f"{case.gpu.id} with "
                f"{planned.engine}, another question than this: give another folder."
            )


def _outcome(
    work: SweepFolder, *, kept_full: bool
) -> tuple[list[Run], list[tuple[Configuration, str]]]:
    """What was measured so far, and what could not be.

    A batch that starts together decodes without the prompts of others, which one that is kept
    full has in its steps: its time per token is that of the whole request.
    """
    cases = {case.key: case.case.configuration for case in work.cases}
    rows = {str(row["x_case"]): row for row in work.rows() if "x_case" in row}
    runs = [Run.of_row(rows[key], cases[key]) for key in cases if key in rows]
    if kept_full:
        runs = [
            replace(run, tpot_s=run.request_latency_s / rows[key]["output_tokens"])
            if run.request_latency_s
            else run
            for key, run in zip((key for key in cases if key in rows), runs, strict=True)
        ]
    failed = [
        (cases[key], str(record.get("message") or record.get("reason") or "no reason given"))
        for key, record in work.ended().items()
        if key in cases and key not in rows and record.get("status") == "failed"
    ]
    return runs, failed
