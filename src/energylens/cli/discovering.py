"""The verb discover: from measured rows to a front of structures."""

from __future__ import annotations

import argparse
from typing import Any

from energylens.cli.console import (
    Subparsers,
    add_choose,
    add_json,
    add_seed,
    add_tables,
    not_negative_int,
    print_json,
    print_paragraph,
    print_table,
    read_tables,
)
from energylens.viewing import picked
from energylens.words import percent

ENGINES = ("own", "operon", "pysr")


def add_verbs(verbs: Any) -> None:
    """Add the verbs of this module."""
    parser = Subparsers(verbs).add(
        "discover",
        "search for the structure of energy in measured rows",
        _discover,
        (
            "energylens discover runs.csv -o front.json",
            "energylens discover runs.csv --engine operon --seed 1 -o front.json",
        ),
    )
    add_tables(parser)
    parser.add_argument("-o", "--output", metavar="FRONT.json", help="where to write the front")
    parser.add_argument("--engine", choices=ENGINES, default="own")
    add_choose(parser, "free knobs that Top-1 and regret are about")
    parser.add_argument(
        "--leave",
        choices=("auto", "llm", "workload", "row"),
        default="auto",
        help="what is left out together (default: the first with four or more groups)",
    )
    parser.add_argument(
        "--samples", type=not_negative_int, metavar="N", help="resamples to count stability over"
    )
    add_seed(parser)
    parser.add_argument(
        "--show", choices=("text", "latex", "python"), default="text", help="how to print the knee"
    )
    add_json(parser)


def _discover(arguments: argparse.Namespace) -> None:
    from energylens import discovery, files

    front = discovery.discover(
        read_tables(arguments),
        discovery.engine(arguments.engine),
        **picked(arguments, "choose leave samples seed"),
    )
    if arguments.output:
        files.write_json(arguments.output, front.to_json())
    if arguments.json:
        print_json(front.to_json())
        return
    print_paragraph(
        f"{len(front.points)} expressions from {front.rows} rows, {front.candidates} candidates "
        f"({front.engine} engine, {front.folds} folds by {front.groups}, seed {front.seed})"
    )
    print()
    rows = [
        (
            f"{point.size}{' <- knee' if point.knee else ''}",
            str(point.complexity),
            percent(point.in_sample_mape_ratio),
            percent(point.held_out_mape_ratio),
            percent(point.top1_ratio),
            percent(point.regret_mean_ratio, 2),
        )
        for point in front.points
    ]
    if front.reference is not None:
        known = front.reference
        rows.append(
            (
                f"{known.terms} {known.name}",
                "-",
                percent(known.in_sample_mape_ratio),
                percent(known.held_out_mape_ratio),
                percent(known.top1_ratio),
                percent(known.regret_mean_ratio, 2),
            )
        )
    print_table(("terms", "complexity", "in sample", "held out", "Top-1", "regret"), rows)
    print()
    knee = front.knee
    if arguments.show == "latex":
        print(knee.to_latex())
    elif arguments.show == "python":
        print(knee.to_python())
    else:
        for term in knee.terms:
            stable = (
                "not resampled"
                if term.stability_ratio is None
                else f"in {percent(term.stability_ratio, 0)} of the resamples"
            )
            print_paragraph(
                f"{term.coefficient:.3g} {term.unit} x {term.expression.text}: "
                f"{percent(term.share_ratio, 0)} of the energy, {stable}"
            )
    if front.cautions:
        print()
        print("Warning: not every term of the knee is settled by these rows.")
        for caution in front.cautions:
            print_paragraph(f"- {caution}", hanging="  ")
    for note in front.notes:
        print_paragraph(f"Note: {note}")
    if arguments.output:
        print(f"Front written to {arguments.output}.")
