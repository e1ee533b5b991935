"""``report``: everything that rows say, on one page."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from energylens.cli.console import (
    Progress,
    Subparsers,
    add_choose,
    add_json,
    add_max_gpus,
    add_seed,
    add_tables,
    positive,
    positive_int,
    print_json,
    read_tables,
)
from energylens.cli.judging import contestants
from energylens.errors import EnergyLensError, UsageError
from energylens.viewing import picked

if TYPE_CHECKING:
    from energylens.dataset import Dataset
    from energylens.discovery import Front
    from energylens.evaluation.result import Evaluation
    from energylens.model import EnergyModel
    from energylens.records import Configuration
    from energylens.scenarios import Scenario
    from energylens.selection import Ranking


def add_verbs(verbs: Any) -> None:
    """Add the verbs of this module."""
    parser = Subparsers(verbs).add(
        "report",
        "write one self-contained HTML page, and say the same as text",
        _report,
        (
            "energylens report runs.csv -o report.html --choose parallelism,batch_size",
            "energylens report runs.csv -o report.html --llm Qwen/Qwen3-32B --gpu H100 "
            "--input-tokens 500 --output-tokens 300 --max-gpus 4 --current 'TP4 B64'",
            "energylens report mine.csv --model model.json -o report.html",
            "energylens report runs.csv -o report.html --front front.json",
        ),
    )
    add_tables(parser)
    parser.add_argument("-o", "--output", required=True, metavar="FILE.html")
    add_choose(parser, "free knobs")
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
    add_max_gpus(group)
    group.add_argument(
        "--current",
        metavar="CONFIG",
        help="what runs today, to compare with: 'TP8 B256' or its command line (default: the "
        "fastest of the rows, where one is of the scenario)",
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
            **picked(arguments, "choose repeats seed model current"),
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
    from energylens.records import UNKNOWN_ENGINE, Configuration, Engine, Workload
    from energylens.scenarios import Scenario

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
        engine=Engine.named(arguments.engine) if arguments.engine else UNKNOWN_ENGINE,
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
    current: str | None = None,
) -> dict[str, Any]:
    """Fit, choose and judge on a dataset: what a report is gathered from.

    Rows too few to be judged are shown without a judgement.
    """
    from energylens import fitting
    from energylens.evaluation.judge import evaluate
    from energylens.packaged import model_for
    from energylens.selection import select

    shown = fitting.fit(dataset) if model is None else model_for(model, "", None)[0]
    if asked is None:
        ranking, taken = _largest_scenario(shown, dataset, choose, seed, current)
    else:
        runs, said = _running(current, asked)
        ranking = select(shown, asked, choose=choose, reference=runs, seed=seed)
        taken = f", as asked{said}"
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
        "today": current is not None,
    }


def _running(current: str | None, scenario: Scenario) -> tuple[Configuration | None, str]:
    """Read what runs today, and what is to be said of it.

    Its number format must be that of the scenario.
    """
    from energylens.capacity import layout_problem
    from energylens.errors import UsageError
    from energylens.running import read_running

    if current is None:
        return None, ""
    runs = read_running(current, scenario.llm, scenario.gpu, scenario.precision)
    own = scenario.precision if runs.precision is None else runs.precision
    if own != scenario.precision:
        raise UsageError(
            f"--current serves {own.id} with a cache of {own.kv_bits:g} bits, the report is of "
            f"{scenario.precision.id} with {scenario.precision.kv_bits:g}: energylens select "
            "compares the two"
        )
    c = runs.configuration
    problem = layout_problem(scenario.llm, scenario.precision, **c.degrees)
    if problem:
        raise UsageError(f"--current {current!r} cannot run: {problem}")
    return c, "".join(f". {note.rstrip('.')}" for note in runs.notes)


def _largest_scenario(
    model: EnergyModel, dataset: Dataset, choose: tuple[str, ...], seed: int, current: str | None
) -> tuple[Ranking | None, str]:
    """Rank the configurations of the scenario with the most measured candidates; say so.

    The saving is stated against what runs today, else against the one with the least latency of
    the rows, where there is one. No batch is larger than the largest among the rows, so that the
    choice is one that they can bear out. Where no two rows are of one scenario, it is that of the
    first row, with any batch.
    """
    import numpy as np

    from energylens.scenarios import BATCH_SIZES, Candidates, Scenario
    from energylens.selection import select
    from energylens.words import plural

    scenarios = dataset.scenarios(choose)
    rows = max(scenarios, key=len) if scenarios else np.arange(1)
    largest = float(np.max(dataset.cases.batch_size[rows]))  # infinite where there is no limit
    why = (
        f"{len(rows)} rows are of it, the most of {plural(len(scenarios), 'scenario')}"
        + (f", the largest batch limit {largest:g}" if np.isfinite(largest) else "")
        if scenarios
        else "the only row is of it"
        if len(dataset) == 1
        else "the first row is of it, and no two rows are of one scenario"
    )
    taken = f" (taken because {why}; --llm --gpu --input-tokens --output-tokens ask for another)"
    case = dataset.cases.case(int(rows[0]))
    node_gpus = case.node_gpus
    latency = dataset.cases.request_latency_s[rows]
    if np.isnan(latency).all():
        latency = dataset.cases.tpot_s[rows]
    batches = {size for size in dataset.cases.batch_size[rows].tolist() if np.isfinite(size)}
    asked = Scenario.of(case, node_gpus or int(np.max(dataset.cases.occupied_gpus[rows])))
    reference, said = _running(current, asked)
    if reference is not None:
        largest = max(largest, reference.batch_size)
    batches |= {largest} if np.isfinite(largest) else set()
    batches |= {
        size for size in BATCH_SIZES if min(batches, default=1) <= size <= largest or not scenarios
    }
    if reference is None and not scenarios:
        reference = case.configuration
    elif reference is None and not np.isnan(latency).all():
        reference = dataset.cases.case(int(rows[np.nanargmin(latency)])).configuration
    try:
        ranking = select(
            model,
            asked,
            choose=choose,
            candidates=Candidates(batch_size=tuple(sorted(batches))),
            reference=reference,
            seed=seed,
        )
    except EnergyLensError:
        # The table stands without a choice, as where a free knob has nothing to choose from.
        return None, ""
    return ranking, taken + said
