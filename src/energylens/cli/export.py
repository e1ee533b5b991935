"""The verb export: joules, watts and seconds in the fields that other programs read."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from energylens.cli.configuring import add_case, case_of
from energylens.cli.console import Subparsers, add_json, positive, print_json, print_paragraph
from energylens.errors import UsageError

if TYPE_CHECKING:
    from energylens.exporting import Export, Point
    from energylens.model import EnergyModel
    from energylens.records import Case

#: As in energylens.exporting, named here so that the help needs nothing heavy.
NAMES = (
    "inferencex",
    "otel",
    "dynamo",
    "wva",
    "wva-variants",
    "wva-annotations",
    "semantic-router",
)


def add_verbs(verbs: Any) -> None:
    """Add the verb of this module."""
    case = (
        "--llm Qwen/Qwen3-32B --gpu H100 --tensor-parallel 2 --batch-size 64 "
        "--input-tokens 500 --output-tokens 300"
    )
    parser = Subparsers(verbs).add(
        "export",
        "write joules, watts and seconds in the fields that other programs read",
        _export,
        (
            "energylens export runs.csv --to inferencex -o points.json",
            "energylens export ranking.json --to wva -o variants.yaml",
            f"energylens export h100-vllm-0.11 --to dynamo {case} -o profile",
            f"energylens export h100-vllm-0.11 --to semantic-router --gpu-hour 2.5 {case}",
        ),
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a model (with a case), a tidy table, or what select --json printed",
    )
    parser.add_argument("--to", required=True, choices=NAMES, help="who reads it")
    parser.add_argument(
        "-o", "--output", metavar="PATH", help="file, or folder for dynamo (default: stdout)"
    )
    parser.add_argument(
        "--max-context",
        type=positive,
        metavar="N",
        help="longest context of a dynamo profile (default: 8192)",
    )
    parser.add_argument(
        "--gpu-hour", type=positive, metavar="USD", help="rent of a GPU (semantic-router)"
    )
    add_case(parser)
    for action in parser._actions:
        if action.dest in ("llm", "gpu", "input_tokens", "output_tokens"):
            action.required = False
    add_json(parser)


def _export(arguments: argparse.Namespace) -> None:
    from energylens import files

    export = _made(arguments)
    if not arguments.output:
        _print(arguments, export)
        return
    written = []
    for name, data in export.files.items():
        path = Path(arguments.output, name) if name else Path(arguments.output)
        if name:
            path.parent.mkdir(parents=True, exist_ok=True)
        files.write_bytes(path, data)
        written.append(str(path))
    if arguments.json:
        print_json({"to": arguments.to, "files": written, "notes": list(export.notes)})
        return
    for where in written:
        print(f"Written: {where}")
    for note in export.notes:
        print_paragraph(f"Note: {note}")


def _print(arguments: argparse.Namespace, export: Export) -> None:
    if list(export.files) != [""]:
        raise UsageError(f"{arguments.to} is a folder of files: name it with -o")
    text = export.files[""].decode()
    if arguments.json:
        print_json({"to": arguments.to, "content": text, "notes": list(export.notes)})
        return
    print(text, end="")
    for note in export.notes:
        print(f"Note: {note}", file=sys.stderr)


def _made(arguments: argparse.Namespace) -> Export:
    from energylens import exporting

    for name, to in (("max_context", "dynamo"), ("gpu_hour", "semantic-router")):
        if getattr(arguments, name) is not None and arguments.to != to:
            raise UsageError(f"--{name.replace('_', '-')} is for --to {to}")
    if arguments.to in exporting.OF_A_MODEL:
        model, case = _model_and_case(arguments)
        if arguments.to == "dynamo":
            return exporting.dynamo(model, case, arguments.max_context or 8192.0)
        if arguments.gpu_hour is None:
            raise UsageError("--to semantic-router needs the rent of a GPU: give --gpu-hour")
        return exporting.semantic_router(model, case, arguments.gpu_hour)
    points = _points(arguments)
    if arguments.to == "inferencex":
        return exporting.inferencex(points)
    if arguments.to == "otel":
        return exporting.otel(points, time.time_ns())
    return exporting.wva(
        points,
        annotated=arguments.to == "wva-annotations",
        variants=arguments.to == "wva-variants",
    )


def _model_and_case(arguments: argparse.Namespace) -> tuple[EnergyModel, Case]:
    from energylens.packaged import model_for

    model = model_for(arguments.source, arguments.gpu, arguments.engine)[0]
    missing = [
        f"--{name.replace('_', '-')}"
        for name in ("llm", "gpu", "input_tokens", "output_tokens")
        if getattr(arguments, name) is None
    ]
    if missing:
        raise UsageError(f"{arguments.source} is a model: name the case, {', '.join(missing)}")
    return model, case_of(arguments)


def _points(arguments: argparse.Namespace) -> list[Point]:
    from energylens import exporting, files, table
    from energylens.packaged import TABLES

    source = arguments.source.lower()
    if source.endswith(TABLES) or source == "-":
        rows = table.read(arguments.source)
        if not len(rows):
            raise UsageError(f"{arguments.source} has no row: there is nothing to write")
        return exporting.points_of_table(rows)
    if source.endswith(".json"):
        document = files.read_json(arguments.source)
        if isinstance(document, dict) and ("ranking" in document or "configurations" in document):
            return exporting.points_of_ranking(document, arguments.source)
    return exporting.points_of_model(*_model_and_case(arguments))
