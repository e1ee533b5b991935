"""The verb explain."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from energylens.cli import attributing, front_form
from energylens.cli.configuring import add_case, case_meant
from energylens.cli.console import Subparsers, add_json, print_json, print_paragraph, print_wrapped
from energylens.cli.serving import print_times
from energylens.errors import ExitCode, UsageError
from energylens.words import joules, percent

if TYPE_CHECKING:
    from energylens.capacity import Memory


def add_verbs(verbs: Any) -> None:
    """Add the verb."""
    parser = Subparsers(verbs).add(
        "explain",
        "say what a configuration costs, term by term, and why",
        _explain,
        (
            "energylens explain model.json --llm Qwen/Qwen3-32B --gpu H100 "
            "--tensor-parallel 2 --batch-size 64 --input-tokens 500 --output-tokens 300",
            "energylens explain model.json --llm Qwen/Qwen3-32B --gpu H100 --batch-size 64 "
            "--input-tokens 500 --output-tokens 300 --request 1800,240",
        ),
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        help="a model.json, a tidy table (fitted as fit does), a model that energylens models "
        "lists, or the word datasheet; by default the packaged model of the GPU type",
    )
    add_case(parser)
    attributing.add_option(parser)
    add_json(parser)


def _explain(arguments: argparse.Namespace) -> ExitCode | None:
    from energylens import capacity
    from energylens.explanation import SUBJECTS, explain
    from energylens.packaged import model_for
    from energylens.time_explained import explain_time, explanation_document

    if front_form.is_form(arguments.model):
        if arguments.request:
            raise UsageError(
                f"{arguments.model} is a form without terms, by which a batch cannot be shared: "
                "leave --request out"
            )
        front_form.explain_by(arguments)
        return None
    model, told = model_for(arguments.model, arguments.gpu, arguments.engine)
    case = case_meant(arguments, model)
    requests = attributing.requests_of(arguments, model, case)
    explanation, times = explain(model, case), explain_time(model, case)
    memory = capacity.memory(case)
    code = ExitCode.DONE if memory.runs else ExitCode.IMPOSSIBLE
    if arguments.json:
        document = explanation_document(explanation, memory, times)
        document["notes"] = [*told, *document.get("notes", [])]
        if requests:
            document["requests"] = [request.to_json() for request in requests]
        print_json(document)
        return code
    print_paragraph(explanation.case)
    print()
    for sentence in explanation.sentences:
        print_paragraph(sentence)
    print_paragraph(_memory_line(memory))
    print()
    print_wrapped(
        ("where the joules go", "prefill", "decode", "share", "80 % interval"),
        [
            (
                SUBJECTS[t.name],
                joules(t.prefill_j) if t.prefill_j else "-",
                joules(t.decode_j) if t.decode_j else "-",
                f"{percent(t.total_j / explanation.energy_per_request_j, 0)}",
                f"{joules(t.low_j)} .. {joules(t.high_j)}",
            )
            for t in sorted(explanation.terms, key=lambda t: -t.total_j)
            if t.total_j > 0
        ],
    )
    if times is not None:
        print()
        print_times(times)
    if requests:
        print()
        attributing.print_requests(requests, case)
    print()
    for note in dict.fromkeys((*told, *explanation.notes)):
        print_paragraph(f"Note: {note}")
    return code


def _memory_line(memory: Memory) -> str:
    """Account for the memory of the fullest GPU, as engines print it."""
    gib = 2.0**30
    line = (
        f"Memory of the fullest GPU: weights {memory.weights_bytes / gib:.1f} GiB, activations "
        f"and runtime {memory.activation_bytes / gib:.1f}, cache {memory.cache_bytes / gib:.1f}"
    )
    if 0.0 < memory.cache_tokens < float("inf"):
        line += f" ({memory.cache_tokens:,.0f} tokens)"
    return f"{line}, of {memory.available_bytes / gib:.1f} that may be used."
