"""Verbs that bring measurements in: import and check."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from energylens.cli.console import (
    Subparsers,
    add_json,
    assignments,
    print_json,
    print_paragraph,
)
from energylens.errors import TableError

if TYPE_CHECKING:
    from energylens.files import RawTable

SOURCES = ("mlenergy-v3", "mlenergy-v2", "argonne", "energy-code-eval", "table")
LISTED = 20


def add_verbs(verbs: Any) -> None:
    """Add the verbs of this module."""
    subparsers = Subparsers(verbs)
    parser = subparsers.add(
        "import",
        "read the result files of others into a tidy table",
        _import,
        (
            "energylens import mlenergy-v3 leaderboard/models -o runs.csv",
            "energylens import argonne power.csv -o argonne.csv",
            "energylens import mlenergy-v3 data --assume-input-tokens gpqa=300 -o runs.csv",
            "energylens import table mine.csv --mapping mapping.toml -o runs.csv",
            "energylens import table runs.jsonl -o runs.csv",
        ),
    )
    parser.add_argument("source", choices=SOURCES, help="whose files they are")
    parser.add_argument("path", metavar="PATH", help="the folder or file")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="- for stdout")
    parser.add_argument(
        "--mapping",
        metavar="FILE.toml",
        help="which column of a foreign table is which (docs/data-format.md)",
    )
    for what in ("input", "vision"):
        parser.add_argument(
            f"--assume-{what}-tokens",
            action="append",
            default=[],
            metavar="TASK=N",
            help=f"{what} tokens of a task whose source does not state them",
        )
    add_json(parser)

    parser = subparsers.add(
        "check",
        "check a tidy table row by row",
        _check,
        ("energylens check runs.csv", "energylens check runs.jsonl --json"),
    )
    parser.add_argument("table", metavar="FILE", help="CSV, JSON Lines or Parquet; - for stdin")
    add_json(parser)


def _import(arguments: argparse.Namespace) -> None:
    import sys

    from energylens import importers, table
    from energylens.errors import UsageError
    from energylens.importers import table as foreign

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
    if arguments.json and arguments.output == "-":
        raise UsageError("the table and --json cannot both go to stdout: give -o a file")
    if arguments.source == "table":
        imported = foreign.read(arguments.path, mapping=arguments.mapping, **assumed)
    else:
        imported = importers.reader(arguments.source)(arguments.path, **assumed)
    table.write(imported.dataset, arguments.output)
    skipped = sum(s.rows for s in imported.skipped)
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
        )
        return
    # The table itself may go to stdout: what is said about it must not.
    out = sys.stderr if arguments.output == "-" else sys.stdout
    print(
        f"{_rows(len(imported.dataset))} of {_llms(len(imported.dataset.cases.llms))} on "
        f"{', '.join(g.id for g in imported.dataset.cases.gpus)} written to {arguments.output}; "
        f"{_rows(skipped)} skipped.",
        file=out,
    )
    for s in imported.skipped:
        print(f"  {s.rows} skipped: {s.reason} (as {s.example})", file=out)
    for note in imported.notes:
        print(f"Note: {note}", file=out)


def _rows(number: int) -> str:
    return f"{number} row{'s' * (number != 1)}"


def _llms(number: int) -> str:
    return f"{number} LLM{'s' * (number != 1)}"


def _check(arguments: argparse.Namespace) -> None:
    from energylens import files, table

    raw = files.read_table(arguments.table)
    problems = table.problems(raw)
    if arguments.json:
        document: dict[str, Any] = {
            "valid": not problems,
            "problems": [
                {"line": p.line, "column": p.column, "reason": p.reason} for p in problems
            ],
        }
        if not problems:
            dataset = table.dataset_from_table(raw)
            document |= {"rows": len(dataset), "sources": dataset.source_counts()}
        print_json(document)
        if problems:
            raise TableError(f"{len(problems)} problems, listed above")
        return
    if problems:
        for p in problems[:LISTED]:
            print_paragraph(f"line {p.line}, {p.column or 'the row'}: {p.reason}", hanging="  ")
        more = len(problems) - LISTED
        raise TableError(
            f"{arguments.table} has {len(problems)} problem{'s' * (len(problems) > 1)}"
            + (f", the first {LISTED} listed above" if more > 0 else ", listed above")
            + ". Nothing was changed; mend the rows and check again."
            + _if_foreign(arguments.table, raw)
        )
    dataset = table.dataset_from_table(raw)
    print(f"{arguments.table}: {len(dataset)} row{'s, all' if len(dataset) != 1 else ','} valid.")
    for what, values in (
        ("LLMs", [m.id for m in dataset.cases.llms]),
        ("GPUs", [g.id for g in dataset.cases.gpus]),
        ("precisions", [p.id for p in dataset.cases.precisions]),
    ):
        print_paragraph(f"{what} ({len(values)}): {', '.join(sorted(values))}", "  ")
    sources = ", ".join(f"{n} {name}" for name, n in dataset.source_counts().items())
    print_paragraph(f"source of the joules: {sources}", "  ")
    split = int((~_isnan(dataset.prefill_energy_per_request_j)).sum())
    print_paragraph(f"rows with prefill and decode apart: {split}", "  ")
    assumed = int((dataset.assumed != "").sum())
    if assumed:
        print_paragraph(f"rows that rest on an assumed length: {assumed}", "  ")
    if not dataset.carries_accuracy_claim.all():
        print_paragraph(
            "Some rows are neither measured nor published: no accuracy claim may rest on them.",
            "  ",
        )


def _if_foreign(path: str, raw: RawTable) -> str:
    """Say how to read a table whose columns have names of their own, if this may be one."""
    from energylens.importers.table import import_command

    if "energy_per_request_j" in raw.columns or path == "-":
        return ""
    return (
        " If its columns are called otherwise, write a FILE.toml that says which is which "
        f"(docs/data-format.md) and run: {import_command(path)}"
    )


def _isnan(values: Any) -> Any:
    import numpy as np

    return np.isnan(values)
