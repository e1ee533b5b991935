"""Verbs that report: report and demo."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from energylens.cli.console import (
    Progress,
    Subparsers,
    add_json,
    add_seed,
    add_tables,
    comma_list,
    print_json,
    read_tables,
)
from energylens.cli.judging import contestants

if TYPE_CHECKING:
    from energylens.dataset import Dataset
    from energylens.discovery import Front
    from energylens.model import EnergyModel
    from energylens.selection import Ranking


def add_verbs(verbs: Any) -> None:
    """Add the verbs of this module."""
    subparsers = Subparsers(verbs)
    parser = subparsers.add(
        "report",
        "write one self-contained HTML page, and say the same as text",
        _report,
        (
            "energylens report runs.csv -o report.html --choose parallelism,batch_size",
            "energylens report runs.csv -o report.html --repeats 5",
            "energylens report runs.csv -o report.html --front front.json",
        ),
    )
    add_tables(parser)
    parser.add_argument("-o", "--output", required=True, metavar="FILE.html")
    parser.add_argument(
        "--choose",
        type=comma_list,
        default=("parallelism", "batch_size"),
        metavar="KNOBS",
        help="free knobs (default: parallelism,batch_size)",
    )
    parser.add_argument(
        "--repeats", type=int, default=10, metavar="N", help="draws of the learning curve"
    )
    parser.add_argument(
        "--front",
        metavar="FRONT.json",
        help="show this front, as energylens discover wrote it, in a section of its own",
    )
    add_seed(parser)
    add_json(parser)

    parser = subparsers.add(
        "demo",
        "run the main job on the packaged data set",
        _demo,
        ("energylens demo", "energylens demo -o report.html"),
    )
    parser.add_argument(
        "-o",
        "--output",
        default="energylens-demo.html",
        metavar="FILE.html",
        help="where to write the report (default: energylens-demo.html)",
    )
    add_json(parser)


#: Whom the report's learning curves show: the law, the law unfitted, the ensembles, and the
#: simplest that may do as well.
REPORTED = (
    "energylens",
    "energylens-datasheet",
    "random-forest",
    "extra-trees",
    "xgboost",
    "log-linear",
    "logistic-batch",
    "workload",
    "tdp-time-predicted",
    "latency-measured",
    "largest-batch",
    "largest-batch-per-gpu",
)
REPORT_CURVE = (10, 25, 50, 100, 200)


def _report(arguments: argparse.Namespace) -> None:
    from energylens import files
    from energylens.discovery import Front

    path = arguments.front
    _require_page(arguments.output)
    _tell(
        read_tables(arguments),
        arguments.output,
        choose=arguments.choose,
        repeats=arguments.repeats,
        seed=arguments.seed,
        as_json=arguments.json,
        brief=False,
        front=Front.from_json(files.read_json(path), path) if path else None,
    )


def _demo(arguments: argparse.Namespace) -> None:
    from importlib.resources import as_file, files

    from energylens import table

    _require_page(arguments.output)
    with as_file(files("energylens") / "data" / "simulated-demo.csv") as path:
        dataset = table.read(path)
    _tell(
        dataset,
        arguments.output,
        choose=("parallelism", "batch_size"),
        repeats=2,
        seed=0,
        as_json=arguments.json,
        brief=True,
    )


def _require_page(output: str) -> None:
    """Refuse a name under which no browser would open the page."""
    from energylens.errors import UsageError

    if not output.lower().endswith((".html", ".htm")):
        raise UsageError(
            f"-o names the page and must end in .html or .htm, not {output!r}; the same report as "
            "text is printed, so > report.txt keeps that"
        )


def _tell(
    dataset: Dataset,
    output: str,
    *,
    choose: tuple[str, ...],
    repeats: int,
    seed: int,
    as_json: bool,
    brief: bool,
    front: Front | None = None,
) -> None:
    """Fit, choose and judge on a dataset; write the page and print it as text."""
    from energylens import files
    from energylens.report.html import report_html
    from energylens.report.text import report_text

    found = judged(dataset, choose=choose, repeats=repeats, seed=seed)
    files.write_text(output, report_html(**found, front=front))
    ranking, (evaluation,) = found["ranking"], found["evaluations"]
    if as_json:
        print_json(
            {
                "report": output,
                "rows": len(dataset),
                "source_counts": dataset.source_counts(),
                "ranking": None if ranking is None else ranking.to_json(),
                "evaluation": evaluation.to_json(),
                "front": None if front is None else front.to_json(),
            }
        )
        return
    print(report_text(**found, front=front, brief=brief), end="")
    print(f"\nThe whole report, with its figures: {output}")


def judged(dataset: Dataset, *, choose: tuple[str, ...], repeats: int, seed: int) -> dict[str, Any]:
    """Fit, choose and judge on a dataset: what a report is written of."""
    from energylens import fitting
    from energylens.evaluation.judge import evaluate

    model = fitting.fit(dataset)
    ranking = _largest_scenario(model, dataset, choose, seed)
    estimators, _ = contestants(None)
    progress = Progress("judging")
    try:
        evaluation = evaluate(
            dataset,
            {name: make for name, make in estimators.items() if name in REPORTED},
            protocol="learning-curve",
            choose=choose,
            train=50,
            curve=REPORT_CURVE,
            repeats=repeats,
            seed=seed,
            allow_simulated=True,
            progress=progress,
        )
    finally:
        progress.close()
    return {
        "model": model,
        "dataset": dataset,
        "diagnostics": fitting.diagnose(model, dataset),
        "evaluations": (evaluation,),
        "ranking": ranking,
        "choose": choose,
    }


def _largest_scenario(
    model: EnergyModel, dataset: Dataset, choose: tuple[str, ...], seed: int
) -> Ranking | None:
    """Rank the configurations of the scenario with the most measured candidates.

    The saving is stated against the one with the least latency of the rows, where there is one.
    No batch is larger than the largest among the rows, so that the choice is one that they can
    bear out.
    """
    import numpy as np

    from energylens.errors import EnergyLensError
    from energylens.selection import BATCH_SIZES, Candidates, Scenario, select

    scenarios = dataset.scenarios(choose)
    if not scenarios:
        return None
    rows = max(scenarios, key=len)
    case = dataset.cases.case(int(rows[0]))
    node_gpus = case.node_gpus
    latency = dataset.cases.request_latency_s[rows]
    if np.isnan(latency).all():
        latency = dataset.cases.tpot_s[rows]
    batches = set(dataset.cases.batch_size[rows].tolist())
    batches |= {size for size in BATCH_SIZES if min(batches) <= size <= max(batches)}
    fastest = None
    if not np.isnan(latency).all():
        fastest = dataset.cases.case(int(rows[np.nanargmin(latency)])).configuration
    try:
        return select(
            model,
            Scenario(
                llm=case.llm,
                gpu=case.gpu,
                precision=case.precision,
                workload=case.workload,
                configuration=case.configuration,
                boundary=case.boundary,
                node_gpus=node_gpus,
                max_gpus=node_gpus or int(np.max(dataset.cases.occupied_gpus[rows])),
                engine=case.engine,
            ),
            choose=choose,
            candidates=Candidates(batch_size=tuple(sorted(batches))),
            reference=fastest,
            seed=seed,
        )
    except EnergyLensError:
        # The table stands without a choice, as where a free knob has nothing to choose from.
        return None
