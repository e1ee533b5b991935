"""Verbs of an hour on a node: campaign, and pack and unpack for what it brought."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING, Any

from energylens.cli.console import (
    Subparsers,
    add_json,
    add_seed,
    comma_list,
    name_value_pairs,
    numbers,
    positive_int,
    print_json,
    print_paragraph,
)

if TYPE_CHECKING:
    from energylens.instrument.executor import Executor
    from energylens.instrument.sweep import SweepProgress

ENGINES = ("vllm", "transformers", "openai", "simulated")
SIMULATED_GPU, SIMULATED_GPUS = "H100-SXM-80GB", 8
PAUSE_S = 30.0  # between two lines of progress in a log


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
        "--minutes", type=float, required=True, help="in all, with those before an interruption"
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
    parser.add_argument("--weights", default="dummy", help="dummy (default), auto or a path")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--meter", default="auto", metavar="NAME")
    parser.add_argument(
        "--quick", action="store_true", help="short windows, to try it; not for results"
    )
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


def _node(arguments: argparse.Namespace) -> tuple[str, int, tuple[int, ...]]:
    """GPU type, how many to use, and which; a simulated node has what it is told to have."""
    from energylens import catalog
    from energylens.errors import UsageError
    from energylens.instrument import meters
    from energylens.instrument.meter import ChannelKind

    if arguments.engine == "simulated":
        if arguments.meter != "auto":
            raise UsageError("the simulated engine brings a meter of its own: leave --meter out")
        gpu = catalog.gpu(arguments.gpu or SIMULATED_GPU).id
        return gpu, arguments.gpus or SIMULATED_GPUS, tuple(range(SIMULATED_GPUS))
    meter = meters.open_meter(arguments.meter)
    try:
        names = {c.name for c in meter.channels if c.kind is ChannelKind.GPU and c.name}
        seen = sum(c.kind is ChannelKind.GPU for c in meter.channels)
    finally:
        meter.close()
    gpu = arguments.gpu
    if gpu is None:
        if len(names) != 1:
            raise UsageError(
                "the GPU type must be given with --gpu: the meter "
                + (f"sees {', '.join(sorted(names))}" if names else "does not name one")
            )
        gpu = names.pop()
    own = meters.gpu_indices() if arguments.meter.partition(":")[0] in ("auto", "nvml") else ()
    there = len(own) or seen or arguments.gpus or 1
    return catalog.gpu(gpu).id, min(arguments.gpus or there, there), own


def _campaign(arguments: argparse.Namespace) -> None:
    import sys
    import time
    from pathlib import Path

    from energylens import campaign, catalog
    from energylens.cli.measure import _drawn
    from energylens.cli.plan import QUICK
    from energylens.instrument import engines, meters, planning
    from energylens.instrument.doctor import examine
    from energylens.instrument.executors.local import InlineExecutor, LocalExecutor
    from energylens.instrument.plan import Procedure

    def told(sentence: str) -> None:
        print(sentence, file=sys.stderr, flush=True)

    if arguments.engine != "simulated":
        report = examine(arguments.folder if Path(arguments.folder).is_dir() else None)
        for finding in report.findings:
            if finding.status.value == "warning":
                told(f"{finding.name}: {finding.detail}. {finding.advice}")
    gpu, gpus, own = _node(arguments)
    told(f"{gpus} x {gpu}, {arguments.minutes:g} minutes, in {arguments.folder}.")
    llm, path = planning.find_llm(arguments.llm)
    if path is not None and llm.id not in catalog.llms():
        catalog.add_llm(llm)
        told(f"{llm.id} was added to your catalog, so that its rows can be read.")
    live = sys.stderr.isatty()
    shown = [time.monotonic()]

    def progress(now: SweepProgress, left_s: float) -> None:
        if time.monotonic() - shown[0] < (0.5 if live else PAUSE_S):
            return
        shown[0] = time.monotonic()
        line = (
            f"{now.done} of {now.cases} cases ({now.failed} failed), "
            f"{_drawn(now.energy_j, now.sources)} so far, {max(0.0, left_s) / 60:.0f} of "
            f"{arguments.minutes:g} minutes left"
        )
        print(f"\r{line:<78}" if live else line, end="" if live else "\n", file=sys.stderr)

    def executor() -> Executor:
        if arguments.engine == "simulated":
            return InlineExecutor(own)
        return LocalExecutor(own[:gpus], exclusive=True, log_folder=Path(arguments.folder) / "logs")

    question = campaign.Question(
        llm=arguments.llm,
        gpu=gpu,
        engine=arguments.engine,
        gpus=gpus,
        minutes=arguments.minutes,
        input_tokens=arguments.input_tokens,
        output_tokens=arguments.output_tokens,
        precisions=arguments.precision,
        batch_sizes=arguments.batch_sizes,
        weights=arguments.weights,
        options=tuple(sorted(name_value_pairs(arguments.option, "--option").items())),
        seed=arguments.seed,
    )
    work = campaign.Campaign(
        question,
        arguments.folder,
        engines.open_engine,
        partial(meters.open_meter, arguments.meter),
        executor,
        procedure=Procedure(**QUICK) if arguments.quick else None,
        told=told,
        on_progress=progress,
        measure_options={"command_line": sys.argv, "meter_asked": arguments.meter},
    )
    found = work.run()
    if arguments.json:
        print_json(found.to_json())
    else:
        for sentence in found.sentences():
            print_paragraph(sentence)
        print(f"Rows, model and answer: {arguments.folder}")
    if found.interrupted:
        raise KeyboardInterrupt


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
