"""The verb verify: measure the choice, correct, choose again."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from energylens.cli.configuring import candidates_of
from energylens.cli.console import Subparsers, positive_int, print_json, print_paragraph
from energylens.cli.node import ENGINES, add_engine_options
from energylens.cli.select import add_selection, asked, prepare
from energylens.cli.serving import limits_of, notes_on, refuse_without_rate, under_load
from energylens.errors import UsageError
from energylens.words import joules

if TYPE_CHECKING:
    from energylens.cli.select import Asked
    from energylens.decisions import LatencyLimit, Load
    from energylens.proving import Proof
    from energylens.scenarios import Scenario
    from energylens.verifying import Verdict

#: Limits that a batch that is kept full can be asked about too.
KEPT_FULL = ("tpot", "ttft", "latency", "meet")


def add_verbs(verbs: Any) -> None:
    """Add the verb."""
    parser = Subparsers(verbs).add(
        "verify",
        "measure the choice, correct it, choose again",
        _verify,
        (
            "energylens verify --llm meta-llama/Llama-3.3-70B-Instruct --precision fp8 --gpu H100 "
            "--rate 3 --tpot 50ms --input-tokens 2000 --output-tokens 300 --measure vllm -o node",
            "energylens verify --llm Qwen/Qwen3-8B --gpu H100 --rate 3 --input-tokens 500 "
            "--output-tokens 300 --measure simulated -o trial",
            "energylens verify decision.toml --measured runs.csv",
        ),
    )
    add_selection(parser)
    parser.add_argument(
        "--measured",
        metavar="RUNS.csv",
        help="what was measured so far: configuration (as TP4 B64), energy_per_request_j, tpot_s, "
        "ttft_s, request_latency_s, and percentiles as ttft_p99_s",
    )
    parser.add_argument(
        "--runs",
        type=positive_int,
        default=3,
        metavar="N",
        help="runs after which the best measured one is the answer (default: 3)",
    )
    group = parser.add_argument_group("on the instrument (without --measure the run is proposed)")
    group.add_argument(
        "--measure",
        choices=ENGINES,
        metavar="ENGINE",
        help="measure here, at the rate given or with the batch kept full: " + ", ".join(ENGINES),
    )
    group.add_argument(
        "-o",
        "--folder",
        metavar="DIR",
        help="plan, rows and records; one that has some goes on (default: verify)",
    )
    add_engine_options(group)


def _verify(arguments: argparse.Namespace) -> None:
    from energylens.cli import node
    from energylens.verifying import read_runs, verify

    if arguments.measure and arguments.measured:
        raise UsageError("runs are measured here (--measure) or told (--measured): give one")
    for name in ("folder", "option", "quick"):
        if getattr(arguments, name) and not arguments.measure:
            raise UsageError(f"--{name} has no effect without --measure ENGINE")
    where = arguments.llm
    if arguments.measure and arguments.llm:
        llm, path = node.find_llm(arguments.llm)
        arguments.llm = llm.id if path else arguments.llm
    prepare(arguments)
    where = where or arguments.llm
    for knob, words in (("gpu", "one GPU type"), ("precision", "one number format")):
        if knob in arguments.choose:
            raise UsageError(
                f"what is measured corrects {words}: name one with --{knob}, and leave it fixed"
            )
    if arguments.rate is None:
        refuse_without_rate(arguments, but=KEPT_FULL)
    question = asked(arguments)
    model, scenario, load, limits, options, notes = _question(arguments, question)
    if arguments.measure:
        proof = _prove(arguments, where, model, scenario, load, limits, options)
        verdict = proof.verdict
        if load is not None and (load.lengths.input_cv or load.lengths.output_cv):
            notes.append(
                "Requests of the mean lengths were offered: where lengths differ, percentiles are "
                "longer than measured here."
            )
    else:
        proof = None
        runs = read_runs(arguments.measured, scenario.gpu) if arguments.measured else []
        verdict = verify(model, scenario, load, limits, runs, most=arguments.runs, **options)
    if arguments.json:
        document = {**verdict.to_json(), "notes": notes}
        if proof is not None:
            document |= {"failed": dict(proof.failed), "folder": arguments.folder}
        print_json(document)
    else:
        _show(arguments, verdict, scenario, load, limits, proof)
        for note in notes:
            print_paragraph(f"Note: {note}")
    if proof is not None and proof.interrupted:
        raise KeyboardInterrupt


def _question(arguments: argparse.Namespace, question: Asked) -> tuple[Any, ...]:
    """What is asked, under a load or with the batch kept full."""
    from energylens.deciding import MEET
    from energylens.scenarios import Scenario

    model, case = question.model, question.case
    if question.lengths is not None:
        made = under_load(arguments, model, case, question.lengths, question.notes)
        return model, made.scenario, made.load, made.limits, made.question, made.notes
    notes = notes_on(model, case, question.notes)
    notes.append("A batch that is kept full is assumed; --rate R verifies at a load.")
    options = {
        "meet": MEET if arguments.meet is None else arguments.meet,
        "choose": arguments.choose,
        "candidates": candidates_of(arguments),
        "batch_limits": tuple(map(float, arguments.batch_sizes or ())),
    }
    model = model.choosing(arguments.choose)
    scenario = Scenario.of(case, arguments.max_gpus)
    return model, scenario, None, limits_of(arguments), options, notes


def _prove(
    arguments: argparse.Namespace,
    llm: str,
    model: Any,
    scenario: Scenario,
    load: Load | None,
    limits: Sequence[LatencyLimit],
    options: dict[str, Any],
) -> Proof:
    """Drive the instrument."""
    from energylens import proving
    from energylens.cli import node

    arguments.folder = arguments.folder or "verify"
    engine = arguments.measure
    node.warn(engine, arguments.folder)
    _, gpus, own = node.find_node(engine, arguments.meter, scenario.gpu.id, arguments.max_gpus)
    node.told(f"{gpus} x {scenario.gpu.id}, in {arguments.folder}.")
    return proving.prove(
        model,
        replace(scenario, max_gpus=min(gpus, scenario.max_gpus)),
        load,
        limits,
        arguments.folder,
        proving.Engines(
            name=engine, llm=llm, weights=arguments.weights, options=node.engine_options(arguments)
        ),
        node.instrument(arguments, engine, gpus, own),
        most=arguments.runs,
        told=node.told,
        on_progress=node.SweepLine(lambda _: ""),
        **options,
    )


def _show(
    arguments: argparse.Namespace,
    verdict: Verdict,
    scenario: Scenario,
    load: Load | None,
    limits: Sequence[LatencyLimit],
    proof: Proof | None,
) -> None:
    """Say what the runs make of the choice, and what to measure next."""
    from energylens.decisions import seconds
    from energylens.deploying import emit

    at = "with the batch kept full" if load is None else f"at {load.rate_per_s:g} requests/s"
    for run in verdict.runs:
        times = [
            f"{name} {seconds(value)}"
            for name, value in (
                ("TPOT", run.tpot_s),
                ("TTFT", run.ttft_s),
                ("request", run.request_latency_s),
            )
            if value is not None
        ]
        kept = run.meets(limits)
        if limits and kept is not None:
            times.append("keeps the limits" if kept else "breaks a limit")
        print_paragraph(
            f"{_measured(run.source)} {run.configuration.describe()} {at}: "
            f"{joules(run.energy_per_request_j)} a request, {', '.join(times)}."
        )
    for name, reason in (proof.failed if proof else {}).items():
        print_paragraph(f"Could not be measured: {name}: {reason}.")
    if verdict.runs:
        print_paragraph(
            f"This deployment takes {verdict.time_factor:.2f} times the time and "
            f"{verdict.energy_factor:.2f} times the joules that were predicted."
        )
    if verdict.unknown:
        print_paragraph(
            f"No run tells of {', '.join(limit.describe() for limit in verdict.unknown)}: longer "
            "runs have more requests, and so the percentile; or limit a mean."
        )
    elif verdict.answer is not None:
        run = verdict.answer
        within = "; the limits are met" if limits else ""
        print_paragraph(
            f"Stay with {run.configuration.describe()}: "
            f"{joules(run.energy_per_request_j)} a request, {_measured(run.source).lower()}"
            f"{within}."
        )
    elif verdict.next is None and verdict.runs:
        print_paragraph(
            "No measured run keeps the limits, and nothing else is expected to: relax a limit, or "
            "allow more GPUs."
        )
    elif verdict.next is None or (proof is not None and not proof.interrupted):
        print_paragraph("Nothing could be measured.")
    following = verdict.next
    if following is None or proof is not None:
        return
    said = "The limits are kept so far. " if verdict.meets and limits else ""
    print_paragraph(
        f"{said}Measure {following.describe()} {at}; expected are "
        f"{joules(following.energy_per_request_j)} a request, TPOT {seconds(following.tpot_s)} and "
        f"TTFT {seconds(following.ttft_s)}. Then add the run to a table and give it with "
        "--measured, or let --measure ENGINE do it."
    )
    print()
    print(emit("vllm", arguments.llm or scenario.llm.id, following))


def _measured(source: str) -> str:
    """What joules of a source are called."""
    return (source or "measured").capitalize()
