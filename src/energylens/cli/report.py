"""``report``: everything that rows say, on one page."""

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
    positive,
    positive_int,
    print_json,
    read_tables,
)
from energylens.cli.judging import contestants
from energylens.errors import EnergyLensError, UsageError

if TYPE_CHECKING:
    from energylens.dataset import Dataset
    from energylens.discovery import Front
    from energylens.evaluation.result import Evaluation
    from energylens.model import EnergyModel
    from energylens.selection import Ranking, Scenario


def add_verbs(verbs: Any) -> None:
    """Add the verbs of this module."""
    subparsers = Subparsers(verbs)
    parser = subparsers.add(
        "report",
        "write one self-contained HTML page, and say the same as text",
        _report,
        (
            "energylens report runs.csv -o report.html --choose parallelism,batch_size",
            "energylens report runs.csv -o report.html --llm Qwen/Qwen3-32B --gpu H100 "
            "--input-tokens 500 --output-tokens 300 --max-gpus 4",
            "energylens report mine.csv --model model.json -o report.html",
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
        "--repeats", type=positive_int, default=10, metavar="N", help="draws of the learning curve"
    )
    group = parser.add_argument_group(
        "the scenario (by default that of the rows with the most candidates)"
    )
    group.add_argument("--llm", help="a name from energylens llm list")
    group.add_argument("--gpu", help="a name from energylens gpu list")
    group.add_argument("--precision", help="a number format; the LLM's own by default")
    group.add_argument("--input-tokens", type=positive, metavar="N")
    group.add_argument("--output-tokens", type=positive, metavar="N")
    group.add_argument("--engine", metavar="'NAME VERSION'")
    group.add_argument(
        "--max-gpus",
        type=positive_int,
        default=8,
        metavar="N",
        help="GPUs to use at most (default: 8)",
    )
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help="show the rows against this model, not one fitted to them; one row is enough",
    )
    parser.add_argument(
        "--text", action="store_true", help="print the whole report, not the answer alone"
    )
    parser.add_argument(
        "--static",
        action="store_true",
        help="leave out what lets the drawings answer the pointer: 0.4 MB less",
    )
    parser.add_argument(
        "--front",
        metavar="FRONT.json",
        help="show this front, as energylens discover wrote it, in a section of its own",
    )
    add_seed(parser)
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
FEW_ROWS = 60  # with no more of them a report goes without a judgement, if none is possible


def _report(arguments: argparse.Namespace) -> None:
    from energylens import files
    from energylens.discovery import Front

    path = arguments.front
    require_page(arguments.output)
    # What takes a moment to refuse is read before what takes a minute to work out.
    front = Front.from_json(files.read_json(path), path) if path else None
    asked = _scenario(arguments)
    _tell(
        judged(
            read_tables(arguments),
            choose=arguments.choose,
            repeats=arguments.repeats,
            seed=arguments.seed,
            model=arguments.model,
            asked=asked,
        ),
        arguments.output,
        as_json=arguments.json,
        whole=arguments.text,
        interactive=not arguments.static,
        front=front,
    )


#: What names a scenario: all of these, or none.
ASKED = ("llm", "gpu", "input_tokens", "output_tokens")


def _scenario(arguments: argparse.Namespace) -> Scenario | None:
    """Make the scenario that is asked for; None if none is."""
    from energylens import catalog
    from energylens.cli.configuring import engine_of
    from energylens.records import UNKNOWN_ENGINE, Configuration, Workload
    from energylens.selection import Scenario

    missing = [name for name in ASKED if getattr(arguments, name) is None]
    if len(missing) == len(ASKED):
        return None
    if missing:
        flags = " and ".join("--" + name.replace("_", "-") for name in missing)
        raise UsageError(f"a scenario needs --llm, --gpu, --input-tokens and --output-tokens; give "
                         f"{flags} too, or none of them")  # fmt: skip
    llm = catalog.llm(arguments.llm)
    return Scenario(
        llm=llm,
        gpu=catalog.gpu(arguments.gpu),
        precision=catalog.checkpoint_precision(arguments.llm, arguments.precision or ""),
        workload=Workload(
            input_tokens=arguments.input_tokens, output_tokens=arguments.output_tokens
        ),
        configuration=Configuration(batch_size=32),
        max_gpus=arguments.max_gpus,
        engine=engine_of(arguments.engine) if arguments.engine else UNKNOWN_ENGINE,
    )


def require_page(output: str) -> None:
    """Refuse a name under which no browser would open the page."""
    if not output.lower().endswith((".html", ".htm")):
        raise UsageError(f"-o names the page and must end in .html or .htm, not {output!r}")


def _tell(
    found: dict[str, Any],
    output: str,
    *,
    as_json: bool,
    whole: bool = False,
    interactive: bool = True,
    front: Front | None = None,
) -> None:
    """Gather once; write the page, and print the answer, the whole report or JSON."""
    from energylens import files
    from energylens.report.content import gather
    from energylens.report.html import page
    from energylens.report.text import lines_of, shortest

    report = gather(**found, front=front)
    files.write_text(output, page(report, interactive=interactive))
    ranking, evaluations = found["ranking"], found["evaluations"]
    if as_json:
        dataset = found["dataset"]
        print_json(
            {
                "report": output,
                "rows": len(dataset),
                "source_counts": dataset.source_counts(),
                "ranking": None if ranking is None else ranking.to_json(),
                "evaluation": evaluations[0].to_json() if evaluations else None,
                "front": None if front is None else front.to_json(),
            }
        )
        return
    print(lines_of(report) if whole else shortest(report), end="")
    print(f"\nThe whole report, with its figures: {output}")


def judged(
    dataset: Dataset,
    *,
    choose: tuple[str, ...],
    repeats: int,
    seed: int,
    model: str | None = None,
    asked: Scenario | None = None,
) -> dict[str, Any]:
    """Fit, choose and judge on a dataset: what a report is gathered from.

    Rows too few to be judged are shown without a judgement.
    """
    from energylens import fitting
    from energylens.cli.serving import model_for
    from energylens.evaluation.judge import evaluate
    from energylens.selection import select

    shown = fitting.fit(dataset) if model is None else model_for(model, "", None)[0]
    if asked is None:
        ranking, taken = _largest_scenario(shown, dataset, choose, seed)
    else:
        ranking, taken = select(shown, asked, choose=choose, seed=seed), ", as asked"
    estimators, _ = contestants(None)
    progress = Progress("judging")
    evaluations: tuple[Evaluation, ...] = ()
    try:
        evaluations = (
            evaluate(
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
            ),
        )
    except EnergyLensError:
        if len(dataset) > FEW_ROWS:
            raise
    finally:
        progress.close()
    return {
        "model": shown,
        "dataset": dataset,
        "diagnostics": fitting.diagnose(shown, dataset) if model is None else None,
        "evaluations": evaluations,
        "ranking": ranking,
        "choose": choose,
        "taken": taken,
    }


def _largest_scenario(
    model: EnergyModel, dataset: Dataset, choose: tuple[str, ...], seed: int
) -> tuple[Ranking | None, str]:
    """Rank the configurations of the scenario with the most measured candidates; say so.

    The saving is stated against the one with the least latency of the rows, where there is one.
    No batch is larger than the largest among the rows, so that the choice is one that they can
    bear out.
    """
    import numpy as np

    from energylens.selection import BATCH_SIZES, Candidates, Scenario, select

    scenarios = dataset.scenarios(choose)
    if not scenarios:
        return None, ""
    rows = max(scenarios, key=len)
    taken = (
        f" (taken because {len(rows)} rows are of it, the most of {len(scenarios)} scenarios; "
        "--llm --gpu --input-tokens --output-tokens ask for another)"
    )
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
        ranking = select(
            model,
            Scenario.of(case, node_gpus or int(np.max(dataset.cases.occupied_gpus[rows]))),
            choose=choose,
            candidates=Candidates(batch_size=tuple(sorted(batches))),
            reference=fastest,
            seed=seed,
        )
    except EnergyLensError:
        # The table stands without a choice, as where a free knob has nothing to choose from.
        return None, ""
    return ranking, taken
