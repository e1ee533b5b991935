"""A form that was discovered, in place of a model: ``front.json#3``, the third of its front."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, Any

from energylens.cli.configuring import candidates_of, case_of
from energylens.cli.console import print_json, print_paragraph, print_table
from energylens.errors import UsageError
from energylens.words import joules, percent, plural

if TYPE_CHECKING:
    from energylens.discovery import Front, FrontPoint

_FORM = re.compile(r"(.+\.json)#(\d+)")


def is_form(name: str | None) -> bool:
    """Whether a name is that of a form of a front."""
    return name is not None and _FORM.fullmatch(name) is not None


def read_form(name: str) -> tuple[Front, FrontPoint]:
    """Read a front and take one of its forms, counted from 1, simple to complex.

    Raises
    ------
    UsageError
        If the front has no such form.
    ArtefactError
        If the file is no front.
    """
    from energylens import files
    from energylens.discovery import Front

    match = _FORM.fullmatch(name)
    if match is None:
        raise UsageError(f"a form is named FRONT.json#N, not {name!r}")
    path, number = match[1], int(match[2])
    front = Front.from_json(files.read_json(path), path)
    if not 1 <= number <= len(front.points):
        raise UsageError(
            f"{path} has {plural(len(front.points), 'form')}, #1 (the simplest) to "
            f"#{len(front.points)}; given #{number}"
        )
    return front, front.points[number - 1]


def note(front: Front, point: FrontPoint) -> str:
    """Say what a reader must know of a form before believing it."""
    return (
        f"The structure of this form was chosen on the {plural(front.rows, 'row')} it was "
        f"discovered in; left out of search and fit it is off by "
        f"{percent(point.held_out_mape_ratio)}. It gives no intervals, and outside those rows "
        "it may be far off."
    )


def select_by(arguments: argparse.Namespace) -> None:
    """Rank configurations by a form."""
    from energylens.records import DEFAULT_CHOOSE
    from energylens.scenarios import Scenario
    from energylens.selection import select
    from energylens.showing import ranking_cells

    front, point = read_form(arguments.model)
    case = case_of(arguments)
    ranking = select(
        point,
        Scenario.of(case, arguments.max_gpus),
        choose=arguments.choose or DEFAULT_CHOOSE,
        candidates=candidates_of(arguments),
        seed=arguments.seed,
    )
    notes = [note(front, point), *ranking.notes]
    if arguments.json:
        print_json({**ranking.to_json(), "notes": notes, "form": point.to_json()})
        return
    print_paragraph(f"{ranking.describe()}, by {arguments.model}")
    print()
    print_table(*ranking_cells(ranking, arguments.top))
    print()
    for sentence in notes:
        print_paragraph(f"Note: {sentence}")


def explain_by(arguments: argparse.Namespace) -> None:
    """Say what each term of a form costs in a case."""
    from energylens.capacity import as_run
    from energylens.cases import Cases
    from energylens.discovery import quantity_columns
    from energylens.explanation import describe

    front, point = read_form(arguments.model)
    case = as_run(case_of(arguments))
    columns = quantity_columns(Cases.of([case]))
    parts: list[tuple[Any, float]] = [
        (term, float((term.coefficient * term.expression.evaluate(columns)).reshape(-1)[0]))
        for term in point.terms
    ]
    total = sum(value for _, value in parts)
    if arguments.json:
        print_json(
            {
                "case": describe(case),
                "energy_per_request_j": total,
                "terms": {term.expression.text: value for term, value in parts},
                "notes": [note(front, point)],
            }
        )
        return
    print_paragraph(f"{describe(case)}: {joules(total)} a request, by {arguments.model}")
    print()
    print_table(
        ("term", "joules", "share"),
        [(t.expression.text, joules(v), percent(v / total, 0)) for t, v in parts],
    )
    print()
    print_paragraph(f"Note: {note(front, point)}")
