"""Verbs about what is known by name: llm and gpu."""

from __future__ import annotations

import argparse
import re
from dataclasses import asdict
from typing import Any

from energylens.cli.console import Subparsers, add_json, print_json, print_paragraph, print_table


def add_verbs(verbs: Any) -> None:
    """Add the verbs of this module."""
    subparsers = Subparsers(verbs)
    parser = subparsers.add(
        "llm",
        "list, show or add language models",
        _llm,
        (
            "energylens llm list qwen3",
            "energylens llm show Qwen/Qwen3-14B",
            "energylens llm add checkpoint/config.json --name my-org/my-llm",
        ),
    )
    parser.add_argument("action", choices=("list", "show", "add"))
    parser.add_argument(
        "what",
        nargs="?",
        metavar="NAME|PATH",
        help="part of a name, a name, or a folder or config.json",
    )
    parser.add_argument("--name", help="the id of an LLM that is added")
    add_json(parser)
    parser = subparsers.add(
        "gpu",
        "list or show GPU types",
        _gpu,
        ("energylens gpu list", "energylens gpu show H100"),
    )
    parser.add_argument("action", choices=("list", "show"))
    parser.add_argument("what", nargs="?", metavar="NAME", help="part of a name, or a name")
    add_json(parser)


def _named(arguments: argparse.Namespace) -> str:
    from energylens.errors import UsageError

    if not arguments.what:
        raise UsageError(f"energylens {arguments.verb} {arguments.action} needs a name or file")
    name: str = arguments.what
    return name


def _billions(parameters: float) -> str:
    return f"{parameters / 1e9:.1f} B"


def _llm(arguments: argparse.Namespace) -> None:
    from energylens import catalog

    if arguments.action == "list":
        part = (arguments.what or "").lower()
        found = [m for name, m in catalog.llms().items() if part in name.lower()]
        if arguments.json:
            print_json([asdict(m) for m in found])
            return
        print_table(
            ("LLM", "family", "total", "active", "layers", "vision"),
            [
                (
                    m.id,
                    m.family,
                    _billions(m.total_parameters),
                    _billions(m.active_parameters),
                    str(m.layers),
                    "yes" if m.vision else "",
                )
                for m in found
            ],
            left=2,
        )
        return
    if arguments.action == "add":
        from pathlib import Path

        from energylens.catalog.hf_read import llm_from_path
        from energylens.errors import UsageError

        path = _named(arguments)
        if not arguments.name:
            raise UsageError("an LLM that is added needs a name: give --name ORG/NAME")
        llm = llm_from_path(Path(path), arguments.name)
        where = catalog.add_llm(llm)
        if not arguments.json:
            print(
                f"{llm.id} ({llm.family}, {_billions(llm.counted_parameters)} parameters counted) "
                f"added to {where}."
            )
            if re.search("embed|rerank|reward", f"{arguments.name} {path}", re.IGNORECASE):
                print_paragraph(
                    "Note: by its name it gives scores or vectors; what is said of it holds for "
                    "an LLM that generates text."
                )
            return
    else:
        llm = catalog.llm(_named(arguments))
    if arguments.json:
        print_json(asdict(llm))
        return
    _print_record(asdict(llm))
    print(f"{'counted parameters':28} {llm.counted_parameters:,.0f}")


def _gpu(arguments: argparse.Namespace) -> None:
    from energylens import catalog

    if arguments.action == "show":
        gpu = catalog.gpu(_named(arguments))
        if arguments.json:
            print_json(asdict(gpu))
        else:
            _print_record(asdict(gpu))
        return
    part = (arguments.what or "").lower()
    found = [g for name, g in catalog.gpus().items() if part in name.lower()]
    if arguments.json:
        print_json([asdict(g) for g in found])
        return
    print_table(
        ("GPU", "memory", "bandwidth", "16 bit", "8 bit", "TDP"),
        [
            (
                g.id,
                f"{g.memory_bytes / 1e9:.0f} GB",
                f"{g.memory_bandwidth_bytes_per_s / 1e12:.2f} TB/s",
                f"{g.bf16_flop_per_s / 1e12:.0f} TFLOP/s",
                f"{g.flop_per_s(8) / 1e12:.0f} TFLOP/s",
                f"{g.tdp_w:.0f} W",
            )
            for g in found
        ],
    )


def _print_record(record: dict[str, Any], indent: str = "") -> None:
    for key, value in record.items():
        if isinstance(value, dict):
            print(f"{indent}{key.replace('_', ' ')}")
            _print_record(value, indent + "  ")
        elif value not in (None, "", ()):
            shown = ", ".join(value) if isinstance(value, tuple) else value
            if isinstance(shown, bool):
                shown = "yes" if shown else "no"
            elif isinstance(shown, int | float):
                shown = f"{shown:,.15g}"
            name = f"{key.replace('_', ' '):{28 - len(indent)}}"
            print_paragraph(f"{name} {shown}", indent, " " * (29 - len(indent)))
