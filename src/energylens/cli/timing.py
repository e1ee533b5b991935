"""``evaluate`` on time: seconds in place of joules, and choices within limits."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from energylens.cli.console import (
    listed,
    not_negative_int,
    number,
    print_paragraph,
    print_table,
    share,
)
from energylens.errors import UsageError
from energylens.viewing import picked
from energylens.words import percent

if TYPE_CHECKING:
    from energylens.dataset import Dataset
    from energylens.limited_choices import Limits
    from energylens.protocols import Estimator

Factories = Mapping[str, Callable[[int], "Estimator"]]
TARGETS = ("energy", "latency", "tpot", "ttft")


def add_time_options(parser: argparse.ArgumentParser) -> None:
    """Add what asks for time."""
    group = parser.add_argument_group("time")
    group.add_argument(
        "--target",
        choices=TARGETS,
        default="energy",
        help="what is predicted: joules (default), request latency, mean time per token or time "
        "to the first token",
    )
    group.add_argument(
        "--limit-quantiles",
        type=listed(number("a number", math.isfinite)),
        metavar="LIST",
        help="judge choices within limits at these quantiles of a scenario's mean times per token",
    )
    group.add_argument(
        "--meet",
        type=share,
        default=None,
        metavar="P",
        help="probability with which a choice shall keep its limit (default: 0.8)",
    )
    group.add_argument(
        "--verify-runs",
        type=not_negative_int,
        default=None,
        metavar="N",
        help="measure so many choices before the answer, each correcting the guesses",
    )
    group.add_argument(
        "--between",
        type=not_negative_int,
        default=None,
        metavar="N",
        help="candidates between two measured batch limits; their joules and times are "
        "interpolated",
    )


def on_time(
    arguments: argparse.Namespace, dataset: Dataset, estimators: Factories
) -> tuple[Dataset, Factories]:
    """Put the time asked about in place of joules; contestants of time in place of the others."""
    for name in ("meet", "verify_runs", "between"):
        if getattr(arguments, name) is not None and not arguments.limit_quantiles:
            raise UsageError(f"--{name.replace('_', '-')} has no effect without --limit-quantiles")
    if arguments.target == "energy":
        return dataset, estimators
    from energylens.baselines import ESTIMATORS
    from energylens.time_contestants import as_target, time_contestants

    if arguments.limit_quantiles:
        raise UsageError("--limit-quantiles judges joules within a limit: leave --target out")
    available = {name: make for name, make in ESTIMATORS.items() if name in estimators}
    made = time_contestants(arguments.target, available)
    if arguments.estimators:
        made = {
            name: make
            for name, make in time_contestants(arguments.target, ESTIMATORS).items()
            if name in arguments.estimators
        }
        if missing := [name for name in arguments.estimators if name not in made]:
            raise UsageError(f"{', '.join(missing)} predict no time; leave them out")
    return as_target(dataset, arguments.target), made


def limits(arguments: argparse.Namespace, dataset: Dataset, estimators: Factories) -> Limits | None:
    """Judge choices within limits, where they are asked for."""
    if not arguments.limit_quantiles:
        return None
    from energylens.limited_choices import judge_limits

    if arguments.protocol != "few-shot":
        raise UsageError(
            f"--limit-quantiles goes with --protocol few-shot, not {arguments.protocol}"
        )
    return judge_limits(
        dataset,
        dict(estimators),
        choose=arguments.choose,
        quantiles=arguments.limit_quantiles,
        meet=0.8 if arguments.meet is None else arguments.meet,
        verify_runs=arguments.verify_runs or 0,
        between=arguments.between or 0,
        train=arguments.train or 50,
        repeats=arguments.repeats or 50,
        seed=arguments.seed,
    )


def attach(document: dict[str, Any], judged: Limits | None) -> dict[str, Any]:
    """Put limits into the JSON of an evaluation, at each estimator."""
    if judged is None:
        return document
    document["limits"] = {
        "meet": judged.meet,
        "verify_runs": judged.verify_runs,
        "interpolated_between": judged.between,
        **picked(judged, "scenarios repeats train"),
    }
    scored = {
        name: [
            {key: None if value != value else value for key, value in s.to_json().items()}
            for s in scores
        ]
        for name, scores in judged.scores.items()
    }
    for name, found in scored.items():
        document["estimators"].setdefault(name, {})["limits"] = found
    return document


def print_limits(judged: Limits | None) -> None:
    """Print what came of choices within limits."""
    if judged is None:
        return
    print()
    runs = f", {judged.verify_runs} choices measured first" if judged.verify_runs else ""
    print_paragraph(
        f"Choices within a limit on the mean time per token, kept with probability "
        f"{judged.meet:g}{runs}: {judged.scenarios} scenarios, {judged.repeats} draws of "
        f"{judged.train} rows."
    )
    rows = [
        (
            name,
            f"{s.quantile:g}",
            percent(s.meets_ratio, 0),
            percent(None if s.regret_mean_ratio != s.regret_mean_ratio else s.regret_mean_ratio),
            percent(
                None if s.regret_median_ratio != s.regret_median_ratio else s.regret_median_ratio
            ),
            percent(s.top1_ratio, 0),
        )
        for name, scores in judged.scores.items()
        for s in scores
    ]
    print_table(("estimator", "limit at", "keeps", "regret", "median", "Top-1"), rows)
    print_paragraph("Regret is over the best that keeps the limit, where the choice does.")
