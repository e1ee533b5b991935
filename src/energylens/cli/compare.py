"""The verb compare: what changed between two tables or models beyond the noise."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from energylens.cli.console import (
    Subparsers,
    add_choose,
    add_json,
    comma_list,
    positive,
    print_json,
    print_paragraph,
    read_tables,
)
from energylens.errors import UsageError
from energylens.words import joules, listed, percent, plural, signed

if TYPE_CHECKING:
    from energylens.comparing import Change, Comparison
    from energylens.dataset import Dataset
    from energylens.model import EnergyModel

SHOWN = 4  # changed cases and winners in the text
TERMS = 8


def add_verbs(verbs: Any) -> None:
    """Add the verb of this module."""
    parser = Subparsers(verbs).add(
        "compare",
        "say what changed between two tables or models beyond the noise, and by which term",
        _compare,
        (
            "energylens compare before.csv after.csv",
            "energylens compare before.csv after.csv --fail-on higher,winner",
            "energylens compare runs.csv runs.csv --where-a engine_version=0.11.1 "
            "--where-b engine_version=0.12.0",
            "energylens compare old.json new.json --llm Qwen/Qwen3-8B --gpu H100",
            "energylens compare model.json runs.csv",
        ),
    )
    for name in ("a", "b"):
        parser.add_argument(
            name, metavar=name.upper(), help="a tidy table, a model.json or a packaged model"
        )
    for name in ("a", "b"):
        parser.add_argument(
            f"--where-{name}",
            action="append",
            default=[],
            metavar="COLUMN=VALUE",
            help=f"keep only these rows of {name.upper()} (as --where of fit)",
        )
    add_choose(parser, "knobs whose best value may change")
    parser.add_argument(
        "--noise",
        type=_share,
        metavar="X",
        help="spread of one run, as in 3%%; default: that of the repeats in the tables",
    )
    parser.add_argument(
        "--least", type=_share, default=0.01, metavar="X", help="a smaller change is none (1%%)"
    )
    parser.add_argument(
        "--fail-on",
        type=comma_list,
        default=(),
        metavar="WHAT",
        help="exit 1 where B's joules are higher, lower or changed beyond the noise, or where a "
        "winner changed: a comma list of higher, lower, changed, winner",
    )
    group = parser.add_argument_group("two models")
    group.add_argument("--llm", type=comma_list, default=(), metavar="NAMES")
    group.add_argument("--gpu", type=comma_list, default=(), metavar="NAMES")
    group.add_argument("--input-tokens", type=positive, metavar="N")
    group.add_argument("--output-tokens", type=positive, metavar="N")
    add_json(parser)


def _share(text: str) -> float:
    """Read ``3%`` or ``0.03``."""
    try:
        value = float(text.rstrip("% ")) / (100.0 if text.rstrip().endswith("%") else 1.0)
    except ValueError:
        value = -1.0
    if not 0.0 <= value < 1.0:
        raise argparse.ArgumentTypeError(f"must be a share of 0 or more, below 1, not {text!r}")
    return value


def _compare(arguments: argparse.Namespace) -> None:
    from energylens import comparing

    for check in arguments.fail_on:
        if check not in comparing.CHECKS:
            raise UsageError(f"--fail-on takes {', '.join(comparing.CHECKS)}, not {check!r}")
    comparison = _comparison(arguments)
    if arguments.json:
        print_json({**comparison.document(), "failed": _failed(arguments, comparison)})
    else:
        _print(comparison)
    comparison.require(arguments.fail_on)


def _failed(arguments: argparse.Namespace, comparison: Comparison) -> list[str]:
    return [check for check in arguments.fail_on if comparison.fails(check)]


def _comparison(arguments: argparse.Namespace) -> Comparison:
    from energylens import comparing

    if arguments.noise == 0.0:
        raise UsageError("--noise must be above 0: no meter is without it")
    sides = [_side(arguments, "a"), _side(arguments, "b")]
    names = (_name(arguments.a, arguments.where_a), _name(arguments.b, arguments.where_b))
    models = [side for side in sides if not _is_table(side)]
    narrowing = {
        name: value
        for name in ("llm", "gpu", "input_tokens", "output_tokens")
        if (value := getattr(arguments, name))
    }
    if len(models) < 2 and narrowing:
        flag = f"--{next(iter(narrowing)).replace('_', '-')}"
        raise UsageError(
            f"{flag} is for two models; of tables keep rows with --where-a and --where-b"
        )
    common: dict[str, Any] = {"choose": arguments.choose, "least_ratio": arguments.least}
    a, b = sides
    if _is_table(a) and _is_table(b):
        return comparing.compare_tables(a, b, names, noise_ratio=arguments.noise, **common)
    if len(models) == 2:
        if arguments.noise is not None:
            raise UsageError("--noise is of runs, and two models have none: leave it out")
        return comparing.compare_models(
            a,
            b,
            names,
            llms=arguments.llm,
            gpus=arguments.gpu,
            input_tokens=arguments.input_tokens,
            output_tokens=arguments.output_tokens,
            **common,
        )
    if _is_table(a):
        raise UsageError(
            f"{arguments.a} is a table and {arguments.b} a model: give the model first, as what "
            "was expected, and the table second, as what came of it"
        )
    return comparing.compare_model_with_table(a, b, names, noise_ratio=arguments.noise, **common)


def _side(arguments: argparse.Namespace, side: str) -> Any:
    """Read a table or a model."""
    from energylens import modelfile, packaged
    from energylens.packaged import model_for

    path, where = getattr(arguments, side), getattr(arguments, f"where_{side}")
    if path.lower() == "datasheet" or packaged.named(path) is not None:
        model: EnergyModel = model_for(path, "", None)[0]
    elif path.lower().endswith(".json"):
        model = modelfile.load(path)
    else:
        rows: Dataset = read_tables(argparse.Namespace(tables=[path], where=where))
        if not len(rows):
            raise UsageError(f"{path} has no row: there is nothing to compare")
        return rows
    if where:
        raise UsageError(f"--where-{side} keeps rows of a table, and {path} is a model")
    return model


def _is_table(side: Any) -> bool:
    from energylens.dataset import Dataset

    return isinstance(side, Dataset)


def _name(path: str, where: list[str]) -> str:
    return " ".join([Path(path).name, *where])


def _print(c: Comparison) -> None:
    kinds = {"tables": "tables", "models": "models", "model and table": "a model and a table"}
    print_paragraph(f"A is {c.a}, B is {c.b}: {kinds[c.kind]}, ratios of B over A.")
    for name, (mine, other) in c.across.items():
        print_paragraph(f"Compared across {name}: {listed(mine)} against {listed(other)}.")
    alone = [
        f"{plural(n, 'case')} of {s} alone" for s, n in (("A", c.only_a), ("B", c.only_b)) if n
    ]
    print_paragraph(
        f"{plural(c.matched, 'case')} on both sides{'; ' + ', '.join(alone) if alone else ''}. "
        f"Noise: {c.noise}."
    )
    print()
    print_paragraph(
        f"Joules per request: {_ratio(c.overall_ratio)} in the mean "
        f"({_ratio(c.overall_low_ratio)} to {_ratio(c.overall_high_ratio)}), "
        + ("within the noise." if c.overall_verdict == "same" else "beyond the noise.")
    )
    print_paragraph(
        f"By case: {c.counts['higher']} higher, {c.counts['lower']} lower, {c.counts['same']} the "
        "same within the noise."
    )
    if c.times:
        said = listed(f"{k.replace('_', ' ')} x{v:.2f}" for k, v in c.times.items())
        print_paragraph(f"Times, in the median: {said}.")
    changed = [change for change in c.changes if change.verdict != "same"]
    if changed:
        print()
        print("Changed beyond the noise:")
        for change in changed[:SHOWN]:
            print_paragraph(
                f"{change.case}: {_ratio(change.ratio)} ({_ratio(change.low_ratio)} to "
                f"{_ratio(change.high_ratio)} with 95 % confidence)",
                "  ",
                "  ",
            )
            print_paragraph(f"{_energies(change, 'a')} in A,", "    ")
            print_paragraph(f"{_energies(change, 'b')} in B", "    ")
        if len(changed) > SHOWN:
            print(f"... and {len(changed) - SHOWN} more (--json lists them)")
    print()
    _print_winners(c)
    _print_terms(c)
    for note in c.notes:
        print_paragraph(f"Note: {note}")


def _energies(change: Change, side: str) -> str:
    """Write what one side takes, per request and per token."""
    names = ("request", "output_token", "total_token")
    return ", ".join(
        f"{joules(getattr(change, f'energy_per_{name}_{side}_j'))}/{name.replace('_', ' ')}"
        for name in names
    )


def _print_winners(c: Comparison) -> None:
    if not c.scenarios:
        print_paragraph("Winners: no two matched cases differ in the free knobs alone.")
        return
    sure = [w for w in c.winners if w.beyond_noise]
    doubtful = len(c.winners) - len(sure)
    text = f"Winners: changed beyond the noise in {len(sure)} of {plural(c.scenarios, 'scenario')}"
    if doubtful:
        text += f"; in {doubtful} more another is ahead within the noise"
    print_paragraph(f"{text}.")
    for w in sure[:SHOWN]:
        print_paragraph(
            f"{w.scenario}: {w.winner_a} in A, {w.winner_b} in B; keeping {w.winner_a} takes "
            f"{percent(w.keeping_ratio)} more.",
            "  ",
        )


def _print_terms(c: Comparison) -> None:
    from energylens.explanation import SUBJECTS

    told = [t for t in c.terms if abs(t.share_ratio) >= 0.005][:TERMS]
    if c.terms and not told:
        print_paragraph("By term: none moved by half a percent of all joules.")
    if not told:
        return
    print_paragraph("By term, as a share of all joules of A (80 % interval where rows say):")
    for t in told:
        wide = (
            ""
            if t.low_ratio == t.high_ratio
            else f" ({signed(t.low_ratio)} .. {signed(t.high_ratio)})"
        )
        print_paragraph(f"{signed(t.share_ratio)}{wide} {SUBJECTS[t.term]}", "  ", "  ")
    if c.unexplained_ratio is not None and abs(c.unexplained_ratio) >= 0.005:
        print_paragraph(f"{signed(c.unexplained_ratio)} that no term explains", "  ")


def _ratio(value: float) -> str:
    return f"x{value:.3f}" if abs(value - 1.0) < 0.1 else f"x{value:.2f}"
