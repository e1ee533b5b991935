"""Verbs of an hour on a node: campaign, and pack and unpack for what it brought."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from energylens.cli.console import (
    Subparsers,
    add_json,
    add_seed,
    comma_list,
    numbers,
    positive,
    positive_int,
    print_json,
    print_paragraph,
)
from energylens.cli.node import ENGINES, add_engine_options
from energylens.viewing import picked

if TYPE_CHECKING:
    from energylens.campaign import Campaign
    from energylens.instrument.sweep import SweepProgress


def add_verbs(verbs: Any) -> None:
    """Add the verbs of this module."""
    subparsers = Subparsers(verbs)
    parser = subparsers.add(
        "campaign",
        "measure a node for some minutes and answer: the most telling runs, fit, choice",
        _campaign,
        (
            "energylens campaign --minutes 60 --llm Qwen/Qwen3-8B -o campaign",
            "energylens campaign --minutes 5 --llm Qwen/Qwen3-8B --engine simulated -o trial",
        ),
    )
    parser.add_argument(
        "--minutes",
        type=positive,
        required=True,
        help="of this node in all, starts of engines and those before an interruption counted (of "
        "simulated runs those that they would take); a run is begun only if it should end in time",
    )
    parser.add_argument("--llm", required=True, help="catalog name, or folder with a config.json")
    parser.add_argument(
        "-o",
        "--folder",
        default="campaign",
        metavar="DIR",
        help="plan, rows, model and answer; one that has some goes on (default: campaign)",
    )
    parser.add_argument("--gpu", help="by default what the meter sees")
    parser.add_argument(
        "--gpus", type=positive_int, metavar="N", help="to use at most (default: all of this node)"
    )
    parser.add_argument("--engine", choices=ENGINES, default="vllm")
    parser.add_argument(
        "--precision", type=comma_list, default=(), metavar="LIST", help="default: the LLM's own"
    )
    parser.add_argument("--input-tokens", type=positive_int, default=1024, metavar="N")
    parser.add_argument("--output-tokens", type=positive_int, default=256, metavar="N")
    parser.add_argument("--batch-sizes", type=numbers, default=(1, 8, 32, 128, 512), metavar="LIST")
    add_engine_options(parser)
    add_seed(parser)
    add_json(parser)

    parser = subparsers.add(
        "pack",
        "put rows and their provenance into one file, without names of hosts, users and folders",
        _pack,
        ("energylens pack runs.jsonl -o contribution.zip",),
    )
    parser.add_argument("table", metavar="RUNS.jsonl")
    parser.add_argument("-o", "--output", required=True, metavar="FILE.zip")
    add_json(parser)
    parser = subparsers.add(
        "unpack",
        "check a packed contribution, and write its rows",
        _unpack,
        ("energylens unpack contribution.zip -o runs.jsonl",),
    )
    parser.add_argument("file", metavar="FILE.zip")
    parser.add_argument("-o", "--output", required=True, metavar="RUNS.jsonl")
    add_json(parser)


# ----------------------------------------------------------------------------------- campaign


@contextmanager
def _first_interrupt_held() -> Iterator[list[bool]]:
    """Note an interrupt while a campaign is made ready: it is answered all the same.

    Yields
    ------
    list of bool
        Empty until there is one; a second ends the command.
    """
    noted: list[bool] = []
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:  # ignored, or somebody else's
        yield noted
        return

    def note(*_: object) -> None:
        if noted:
            raise KeyboardInterrupt
        noted.append(True)
        print("Interrupted: answering from what is there.", file=sys.stderr, flush=True)

    signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)


def _campaign(arguments: argparse.Namespace) -> None:
    with _first_interrupt_held() as interrupted:
        work = _made_ready(arguments)
    found = work.run(measuring=not interrupted)
    if arguments.json:
        print_json(found.to_json())
    else:
        for sentence in found.sentences():
            print_paragraph(sentence)
        print(f"Rows, model and answer: {arguments.folder}")
    if found.interrupted:
        raise KeyboardInterrupt


def _made_ready(arguments: argparse.Namespace) -> Campaign:
    from energylens import campaign
    from energylens.cli import node

    node.warn(arguments.engine, arguments.folder)
    gpu, gpus, own = node.find_node(
        arguments.engine, arguments.meter, arguments.gpu, arguments.gpus
    )
    node.told(f"{gpus} x {gpu}, {arguments.minutes:g} minutes, in {arguments.folder}.")
    node.find_llm(arguments.llm)
    left = [60.0 * arguments.minutes]
    line = node.SweepLine(
        lambda _: f", {max(0.0, left[0]) / 60:.0f} of {arguments.minutes:g} minutes left"
    )

    def progress(now: SweepProgress, left_s: float) -> None:
        left[0] = left_s
        line(now)

    question = campaign.Question(
        llm=arguments.llm,
        gpu=gpu,
        engine=arguments.engine,
        gpus=gpus,
        **picked(arguments, "minutes input_tokens output_tokens"),
        precisions=arguments.precision,
        batch_sizes=arguments.batch_sizes,
        weights=arguments.weights,
        options=tuple(node.engine_options(arguments).items()),
        seed=arguments.seed,
    )
    made = node.instrument(arguments, arguments.engine, gpus, own)
    return campaign.Campaign(question, arguments.folder, made, told=node.told, on_progress=progress)


# --------------------------------------------------------------------------------- pack, unpack


def _pack(arguments: argparse.Namespace) -> None:
    from energylens import contribution

    packed = contribution.pack(arguments.table, arguments.output)
    if arguments.json:
        print_json(packed)
        return
    print_paragraph(
        f"{packed['rows']} rows, checked, without names of hosts, users and folders: "
        f"{arguments.output}. Look into it before you give it away: "
        "docs/contributing-measurements.md says how."
    )


def _unpack(arguments: argparse.Namespace) -> None:
    from energylens import contribution

    found = contribution.unpack(arguments.file, arguments.output)
    if arguments.json:
        print_json(found)
        return
    print_paragraph(f"{found['rows']} rows, checked, written to {arguments.output}.")
