"""The verb audit: what measured rows say by themselves, without a model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from energylens.cli.console import Subparsers, add_json, print_json, print_paragraph
from energylens.errors import UsageError

if TYPE_CHECKING:
    from energylens.audit import Audit
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
        for line in audit.lines(item):
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


def page(audits: list[Audit]) -> str:
    """Write audits as one page that needs no other file."""
    from html import escape

    from energylens.audit import lines

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
