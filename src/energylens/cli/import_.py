"""The verb import: measurements of others into a tidy table."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any

from energylens.cli import import_auto, import_table
from energylens.cli.console import Subparsers, add_json, assignments, print_json
from energylens.errors import ExitCode, UsageError
from energylens.words import plural

if TYPE_CHECKING:
    from energylens.importers import Imported

SOURCES = ("mlenergy-v3", "mlenergy-v2", "argonne", "energy-code-eval", "table", "auto")


def add_verbs(verbs: Any) -> None:
    """Add the verb of this module."""
    parser = Subparsers(verbs).add(
        "import",
        "read the result files of others into a tidy table",
        _import,
        (
            "energylens import mlenergy-v3 leaderboard/models -o runs.csv",
            "energylens import argonne power.csv -o argonne.csv",
            "energylens import mlenergy-v3 data --assume-input-tokens gpqa=300 -o runs.csv",
            "energylens import table mine.csv --mapping mapping.toml -o runs.csv",
            "energylens import table mine.csv --guess --gpu H100 -o runs.csv",
            "energylens import auto bench.json --power smi.csv --llm Qwen/Qwen3-8B --gpu H100 "
            "--gpus 1 --engine-version 0.11.1 -o runs.csv",
        ),
    )
    parser.add_argument(
        "source", type=_source, metavar="SOURCE", help=f"whose files they are: {', '.join(SOURCES)}"
    )
    parser.add_argument("path", nargs="*", metavar="PATH", help="the folder or file")
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="- for stdout, where import auto writes without it"
    )
    for what in ("input", "vision"):
        parser.add_argument(
            f"--assume-{what}-tokens",
            action="append",
            default=[],
            metavar="TASK=N",
            help=f"{what} tokens of a task whose source does not state them",
        )
    import_table.add_arguments(parser)
    import_auto.add_arguments(parser)
    parser.set_defaults(refuse=parser.error)
    add_json(parser)


def _source(text: str) -> str:
    """Read whose files they are, or the first file itself (an argparse type)."""
    if text not in SOURCES and not os.path.exists(text):  # noqa: PTH110 - imports nothing
        raise argparse.ArgumentTypeError(
            f"must be a file or one of {', '.join(SOURCES)}, not {text!r}"
        )
    return text


def _import(arguments: argparse.Namespace) -> ExitCode:
    from energylens import importers
    from energylens.importers import table as foreign

    automatic = arguments.source not in SOURCES or arguments.source == "auto"
    if arguments.source != "table":
        import_table.refuse_elsewhere(arguments)
    if arguments.guess and arguments.output is None:
        arguments.path = _one_path(arguments)
        import_table.print_draft(arguments)
        return ExitCode.DONE
    if arguments.output is None and not automatic:
        arguments.refuse("say where to write the table: -o FILE, or -o - for stdout")
    if arguments.json and arguments.output == "-":
        raise UsageError("the table and --json cannot both go to stdout: give -o a file")
    if automatic:
        return _import_auto(arguments)
    arguments.path = _one_path(arguments)
    assumed = {
        "assume_input_tokens": assignments(arguments.assume_input_tokens, "--assume-input-tokens"),
        "assume_vision_tokens": assignments(
            arguments.assume_vision_tokens, "--assume-vision-tokens"
        ),
    }
    if arguments.source != "table" and arguments.mapping is not None:
        command = foreign.import_command(arguments.path, arguments.mapping, arguments.output)
        raise UsageError(
            f"--mapping is for tables of your own: leave it out to read {arguments.source}, or "
            f"run: {command}"
        )
    if arguments.source == "table":
        imported = import_table.read(arguments, assumed)
    else:
        if said := import_table.declared(arguments):
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in said)
            raise UsageError(f"the files of {arguments.source} state it: leave {flags} out")
        imported = importers.reader(arguments.source)(arguments.path, **assumed)
    return _report(imported, arguments, {}, [])


def _one_path(arguments: argparse.Namespace) -> str:
    if len(arguments.path) != 1:
        raise UsageError(
            f"import {arguments.source} takes one PATH, not {len(arguments.path)}: to read several "
            "benchmark files at once, use import auto"
        )
    return str(arguments.path[0])


def _import_auto(arguments: argparse.Namespace) -> ExitCode:
    """Read files of whatever format; without the word auto where the first is a file."""
    from energylens.importers import auto

    paths = list(arguments.path)
    if arguments.source != "auto":
        paths.insert(0, arguments.source)
    try:
        imported, taken = auto.read(paths, import_auto.options_of(arguments))
    except auto.IncompleteError as error:
        if arguments.json:
            runs = import_auto.describe(error.taken)
            print_json({"rows": 0, "missing": list(error.missing), "runs": runs})
        raise
    return _report(
        imported, arguments, {"runs": import_auto.describe(taken)}, import_auto.lines_of(taken)
    )


def _report(
    imported: Imported, arguments: argparse.Namespace, more: dict[str, Any], lines: list[str]
) -> ExitCode:
    """Write the table, and say what came of the import."""
    from energylens import table

    # With --json and no file to write, the document is all that is asked for.
    if arguments.output is None and not arguments.json:
        arguments.output = "-"
    if arguments.output is not None:
        table.write(imported.dataset, arguments.output)
    skipped = sum(s.rows for s in imported.skipped)
    code = ExitCode.PARTLY if skipped else ExitCode.DONE
    if arguments.json:
        print_json(
            {
                "rows": len(imported.dataset),
                "skipped_rows": skipped,
                "skipped": [
                    {"reason": s.reason, "rows": s.rows, "example": s.example}
                    for s in imported.skipped
                ],
                "assumed_rows": int((imported.dataset.assumed != "").sum()),
                "sources": imported.dataset.source_counts(),
                "notes": list(imported.notes),
                "output": arguments.output,
                "dataset_digest": imported.dataset.digest,
            }
            | more
        )
        return code
    # The table itself may go to stdout: what is said about it must not.
    out = sys.stderr if arguments.output == "-" else sys.stdout
    cases = imported.dataset.cases
    print(
        f"{plural(len(imported.dataset), 'row')} of {plural(len(cases.llms), 'LLM')} on "
        f"{', '.join(g.id for g in cases.gpus)} written to {arguments.output}; "
        f"{plural(skipped, 'row')} skipped.",
        file=out,
    )
    for line in lines:
        print(line, file=out)
    for s in imported.skipped:
        print(f"  {s.rows} skipped: {s.reason} (as {s.example})", file=out)
    for note in imported.notes:
        print(f"Note: {note}", file=out)
    return code
