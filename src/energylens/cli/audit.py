"""The verb audit: what measured rows say by themselves, without a model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from energylens.cli.console import Subparsers, add_json, print_json, print_paragraph
from energylens.errors import UsageError

if TYPE_CHECKING:
    from energylens.audit import Audit, Divergence
    from energylens.dataset import Dataset

#: Folders of public measurements: what lies where, and who reads it.
PUBLIC = (
    ("mlenergy-v3", "mlenergy-v3"),
    ("mlenergy-v2", "mlenergy-v2"),
    ("argonne/power.csv", "argonne"),
    ("energy-code-eval/batching_a100.csv", "energy-code-eval"),
)


def add_verbs(verbs: Any) -> None:
    """Add the verb of this module."""
    parser = Subparsers(verbs).add(
        "audit",
        "say what measured rows waste, miss and contradict, without a model",
        _audit,
        ("energylens audit runs.csv", "energylens audit data -o audit.html"),
    )
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="tidy tables, or a folder that holds the public data sets",
    )
    parser.add_argument("-o", "--output", metavar="FILE.html", help="write a page too")
    add_json(parser)


def _audit(arguments: argparse.Namespace) -> None:
    from energylens import audit, files

    audits = [audit.audit(dataset, name) for name, dataset in _tables(arguments.files)]
    if arguments.output:
        files.write_text(arguments.output, page(audits))
    if arguments.json:
        print_json({"tables": [item.document() for item in audits]})
        return
    for item in audits:
        for line in lines(item):
            print_paragraph(line, hanging="  ")
        print()


def _tables(paths: list[str]) -> list[tuple[str, Dataset]]:
    from energylens import importers, table

    found: list[tuple[str, Dataset]] = []
    nothing: dict[str, Any] = {"assume_input_tokens": {}, "assume_vision_tokens": {}}
    for path in paths:
        if not Path(path).is_dir():
            found.append((Path(path).name, table.read(path)))
            continue
        inside = [(name, s) for name, s in PUBLIC if (Path(path) / name).exists()]
        if not inside:
            raise UsageError(
                f"{path} holds none of {', '.join(name for name, _ in PUBLIC)}: give tidy tables"
            )
        for name, source in inside:
            dataset = importers.reader(source)(Path(path) / name, **nothing).dataset
            found.append((source, dataset))
    return found


def lines(item: Audit) -> list[str]:
    """Say an audit in sentences."""
    said = [f"{item.name}: {item.rows} rows"]
    said += [_diverging(item.fixed_batch), _diverging(item.batch_free)]
    if item.idle is not None:
        median, highest = (item.idle[f"share_{name}_ratio"] for name in ("median", "highest"))
        said.append(
            f"Idle power ({item.idle['idle_power']}) is {_percent(median)} of the joules at the "
            f"loads seen in the median, {_percent(highest)} at most."
        )
    for entry in item.precisions:
        said.append(
            f"{entry['precision']} takes {entry['energy_median_ratio']:.2f} times the joules of "
            f"{entry['over']} in the median of {entry['cases']} cases; it costs energy in "
            f"{_percent(entry['costs_energy_share'])} of them."
        )
    for entry in item.contradictions:
        said.append(f"{entry['rows']} rows: {entry['what']} (as {entry['example']}).")
    if item.unanswered:
        said.append(f"The rows cannot answer: {'; '.join(item.unanswered)}.")
    if item.runs:
        said.append(f"Runs that would help most: {'; '.join(item.runs)}.")
    return said


def _diverging(item: Divergence) -> str:
    if not item.scenarios:
        return f"No two rows differ in {item.free} alone."
    text = (
        f"With {item.free} free, the fastest choice is not the one with the fewest joules in "
        f"{_percent(item.latency_differs_ratio)} of {item.scenarios} scenarios, and takes "
        f"{_percent(item.latency_waste_median_ratio)} more in the median"
    )
    if item.throughput_scenarios:
        text += (
            f"; that of the most requests a second differs in "
            f"{_percent(item.throughput_differs_ratio)}, and takes "
            f"{_percent(item.throughput_waste_median_ratio)} more"
        )
    return f"{text}."


def _percent(ratio: float | int | str | None) -> str:
    return "-" if ratio is None or isinstance(ratio, str) else f"{100 * ratio:.0f} %"


def page(audits: list[Audit]) -> str:
    """Write audits as one page that needs no other file."""
    from html import escape

    parts = []
    for item in audits:
        head, *rest = lines(item)
        said = "".join(f"<li>{escape(line)}</li>" for line in rest)
        parts.append(f"<section><h2>{escape(head)}</h2><ul>{said}</ul></section>")
    style = (
        "body{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem;"
        "color:#1b1b1b;background:#fff}@media(prefers-color-scheme:dark){body{color:#e8e8e8;"
        "background:#161616}}"
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>Energy audit</title><style>{style}</style></head>"
        f"<body><h1>Energy audit</h1>{''.join(parts)}</body></html>\n"
    )
