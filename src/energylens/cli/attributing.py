"""``explain --request``: what single requests take of their batch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from energylens.cli.console import comma_list, positive, print_paragraph
from energylens.words import energies, joules, percent

if TYPE_CHECKING:
    from energylens.attribution import RequestShare
    from energylens.model import EnergyModel
    from energylens.records import Case


def add_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--request``."""
    parser.add_argument(
        "--request",
        type=_lengths,
        action="append",
        default=[],
        metavar="IN,OUT",
        help="price a request of these lengths among others of the case's (repeat for more)",
    )


def _lengths(text: str) -> tuple[float, float]:
    """Read ``1800,240`` (an argparse type)."""
    parts = comma_list(text)
    if len(parts) != 2:
        raise argparse.ArgumentTypeError(
            f"must be the tokens of the prompt and of the output, as in 1800,240, not {text!r}"
        )
    return positive(parts[0]), positive(parts[1])


def requests_of(
    arguments: argparse.Namespace, model: EnergyModel, case: Case
) -> list[RequestShare]:
    """Price the requests that the arguments name."""
    from energylens.attribution import request_in_batch

    return [request_in_batch(model, case, *lengths) for lengths in arguments.request]


def print_requests(requests: Sequence[RequestShare], case: Case) -> None:
    """Print what single requests take of their batch."""
    from energylens import catalog
    from energylens.explanation import SUBJECTS

    others = max(case.configuration.batch_size - 1, 0)
    w = case.workload
    print_paragraph(
        f"Shared among the requests of a batch, each term by what it counts for a request, beside "
        f"{others:g} of {w.input_tokens:g} tokens in and {w.output_tokens:g} out:"
    )
    for request in requests:
        print_paragraph(
            f"{request.input_tokens:.10g} in, {request.output_tokens:.10g} out: "
            f"{energies(request.energy_j, request.input_tokens, request.output_tokens)} "
            f"({joules(request.low_j)} to {joules(request.high_j)}), {request.ratio:.2f} times the "
            "mean request of its batch",
            "  ",
            "  ",
        )
        largest = sorted(request.terms_j.items(), key=lambda item: -item[1])[:3]
        told = ", ".join(
            f"{SUBJECTS[name]} ({percent(j / request.energy_j, 0)})" for name, j in largest
        )
        print_paragraph(f"mostly {told}", "    ", "  ")
        if note := catalog.context_note(case.llm.id, request.input_tokens + request.output_tokens):
            print_paragraph(f"Note: {note}")
