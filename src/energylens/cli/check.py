"""The verb check: a tidy table, row by row."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from energylens.cli.console import Subparsers, add_json, print_json, print_paragraph
from energylens.errors import ExitCode, TableError

if TYPE_CHECKING:
    from energylens.dataset import Dataset
    from energylens.files import RawTable

LISTED = 20
FAR_RATIO = 10.0  # from what the datasheet suggests, beyond which joules are doubted


def add_verbs(verbs: Any) -> None:
    """Add the verb of this module."""
    parser = Subparsers(verbs).add(
        "check",
        "check a tidy table row by row",
        _check,
        ("energylens check runs.csv", "energylens check runs.jsonl --json"),
    )
    parser.add_argument("table", metavar="FILE", help="CSV, JSON Lines or Parquet; - for stdin")
    add_json(parser)


def _check(arguments: argparse.Namespace) -> ExitCode:
    from energylens import files, table

    raw = files.read_table(arguments.table)
    problems = table.problems(raw)
    # Rows with times alone are rows all the same: that nothing but joules is missing is a doubt.
    joules = not problems or bool(table.problems(raw, joules=False))
    if not joules:
        problems = []
    found: list[dict[str, Any]] = []
    if not problems:
        dataset = table.dataset_from_table(raw, joules=joules)
        told = ~_blank(raw, len(dataset))
        found = doubts(dataset.take(told)) + _without_joules(raw, ~told)
    if arguments.json:
        document: dict[str, Any] = {
            "valid": not problems,
            "problems": [
                {"line": p.line, "column": p.column, "reason": p.reason} for p in problems
            ],
        }
        if not problems:
            document |= {"rows": len(dataset), "sources": dataset.source_counts()}
            document["doubts"] = found
        print_json(document)
        if problems:
            raise TableError(table.foreign(raw) or f"{len(problems)} problems, listed above")
        return _code(found)
    if problems:
        if guide := table.foreign(raw):
            raise TableError(guide)
        for p in problems[:LISTED]:
            print_paragraph(f"line {p.line}, {p.column or 'the row'}: {p.reason}", hanging="  ")
        more = len(problems) - LISTED
        raise TableError(
            f"{arguments.table} has {len(problems)} problem{'s' * (len(problems) > 1)}"
            + (f", the first {LISTED} listed above" if more > 0 else ", listed above")
            + ". Nothing was changed; mend the rows and check again."
        )
    rows = f"{len(dataset)} row{'s' if len(dataset) != 1 else ''}"
    if _code(found) is ExitCode.DONE:
        print(f"{arguments.table}: {rows}, {'all ' if len(dataset) != 1 else ''}valid.")
    else:
        print(f"{arguments.table}: {rows}, readable, but not all can be right (Doubt, below).")
    for what, values in (
        ("LLMs", [m.id for m in dataset.cases.llms]),
        ("GPUs", [g.id for g in dataset.cases.gpus]),
        ("precisions", [p.id for p in dataset.cases.precisions]),
    ):
        print_paragraph(f"{what} ({len(values)}): {', '.join(sorted(values))}", "  ")
    sources = ", ".join(f"{n} {name}" for name, n in dataset.source_counts().items())
    print_paragraph(f"source of the {'joules' if told.any() else 'times'}: {sources}", "  ")
    split = int((~_isnan(dataset.prefill_energy_per_request_j)).sum())
    print_paragraph(f"rows with prefill and decode apart: {split}", "  ")
    assumed = int(dataset.lengths_assumed.sum())
    if assumed:
        print_paragraph(f"rows that rest on an assumed length: {assumed}", "  ")
    for item in found:
        print_paragraph(
            f"Doubt: {item['what']} (rows: {item['rows']}; {item['example']}).", "  ", "  "
        )
    if not dataset.carries_accuracy_claim.all():
        print_paragraph(
            "Some rows are neither measured nor published: no accuracy claim may rest on them.",
            "  ",
        )
    return _code(found)


def _code(found: list[dict[str, Any]]) -> ExitCode:
    """Say by the exit code whether some numbers cannot all be right."""
    from energylens.audit import UNUSUAL

    return ExitCode.PARTLY if any(item["what"] != UNUSUAL for item in found) else ExitCode.DONE


def _blank(raw: RawTable, rows: int) -> Any:
    """Which rows have no joules, shape (rows,)."""
    import numpy as np

    cells = raw.columns.get("energy_per_request_j")
    if cells is None:
        return np.ones(rows, dtype=np.bool_)
    return np.array([cell is None or not str(cell).strip() for cell in cells], dtype=np.bool_)


def _without_joules(raw: RawTable, blank: Any) -> list[dict[str, Any]]:
    if not blank.any():
        return []
    return [
        {
            "what": "no energy_per_request_j: such rows can be judged by their times (energylens "
            "evaluate --target latency), and fit and select refuse them",
            "rows": int(blank.sum()),
            "example": "all of them" if blank.all() else f"line {raw.lines[int(blank.argmax())]}",
        }
    ]


def doubts(dataset: Dataset) -> list[dict[str, Any]]:
    """Say of which valid rows the numbers cannot all be right, or are far from the datasheet's."""
    import numpy as np

    from energylens.audit import contradictions
    from energylens.fitting import Datasheet

    found = [dict(item) for item in contradictions(dataset)]
    expected = Datasheet().fit(dataset).predict_energy_j(dataset.cases)
    ratio = dataset.energy_per_request_j / expected
    for far, word in ((ratio > FAR_RATIO, "above"), (ratio < 1 / FAR_RATIO, "below")):
        if far.any():
            by = float(np.median(np.maximum(ratio, 1 / ratio)[far]))
            case = dataset.cases.case(int(np.flatnonzero(far)[0]))
            found.append(
                {
                    "what": f"joules are {by:.3g} times {word} what the GPU's datasheet suggests: "
                    "another unit, or those of a whole run?",
                    "rows": int(far.sum()),
                    "example": f"{case.llm.id} on {case.gpu.id}, {case.configuration.describe()}",
                }
            )
    return found


def _isnan(values: Any) -> Any:
    import numpy as np

    return np.isnan(values)
