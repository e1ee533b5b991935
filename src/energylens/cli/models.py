"""The verb ``models``: what fitted models come with the package."""

from __future__ import annotations

import argparse
from typing import Any

from energylens.cli.console import Subparsers, add_json, print_json, print_paragraph, print_table


def add_verbs(verbs: Any) -> None:
    """Add the verb of this module."""
    parser = Subparsers(verbs).add(
        "models",
        "list the fitted models that come with the package",
        _models,
        ("energylens models", "energylens models --json"),
    )  # fmt: skip
    add_json(parser)


def _models(arguments: argparse.Namespace) -> None:
    from energylens.packaged import packaged

    models = packaged()
    if arguments.json:
        print_json({"models": [item.to_json() for item in models]})
        return
    print_table(
        ("model", "GPU", "engine", "rows", "LLMs", "date"),
        [(m.name, ", ".join(m.gpus), m.engine, f"{m.rows}", f"{m.llms}", m.date) for m in models],
    )
    print()
    for m in models:
        print_paragraph(f"{m.name}: {m.source}, {m.licence}; rows {m.dataset_digest[:12]}")
    print_paragraph(
        "Coefficients only; give a name where a MODEL is asked for. Without one select takes "
        "h100-vllm-0.11, the newest engine, or that of the --engine named. To GPU types without "
        "rows the datasheet carries the coefficients over."
    )
