"""The verb measure: do what a plan says, and go on where it was stopped."""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from energylens.cli.console import (
    Subparsers,
    about_minutes,
    add_json,
    add_meter,
    name_value_pairs,
    positive_int,
    print_json,
    print_paragraph,
    print_table,
)
from energylens.cli.node import SweepLine, drawn
from energylens.errors import MeasurementError, UnknownChoiceError, UsageError
from energylens.viewing import picked
from energylens.words import plural

if TYPE_CHECKING:
    from energylens.instrument.executor import Executor
    from energylens.instrument.plan import Plan
    from energylens.instrument.sweep import SweepResult

LISTED = 12


def add_verbs(verbs: Any) -> None:
    """Add the verb."""
    parser = Subparsers(verbs).add(
        "measure",
        "measure the cases of a plan; goes on where it was stopped",
        _measure,
        (
            "energylens measure plan.jsonl -o runs.jsonl",
            "energylens measure plan.jsonl --dry-run",
            "energylens measure plan.jsonl -o runs.jsonl --executor ray",
        ),
    )
    parser.add_argument("plan", metavar="PLAN.jsonl")
    parser.add_argument(
        "-o",
        "--output",
        metavar="RUNS.jsonl",
        help="the table; rows are added (needed, but for --dry-run)",
    )
    add_meter(parser)
    parser.add_argument(
        "--executor",
        choices=("local", "inline", "ray", "slurm"),
        default="local",
        help="local: a process for each engine (default); inline: in this one; ray; slurm",
    )
    parser.add_argument("--exclusive", action="store_true", help="one engine at a time")
    parser.add_argument("--ray-address", metavar="ADDRESS")
    parser.add_argument(
        "--slurm-folder", default="slurm", metavar="DIR", help="shared by all nodes"
    )
    parser.add_argument("--slurm", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--gpus", type=positive_int, metavar="N", help="GPUs to use at most")
    parser.add_argument("--retry-failed", action="store_true")
    parser.add_argument("--dry-run", action="store_true", help="list the cases, measure nothing")
    add_json(parser)


def _dry_run(made: Plan, gpus: int | None, as_json: bool) -> None:
    from energylens.instrument import planning

    rows = planning.preview(made, gpus)
    if as_json:
        print_json(
            {
                "cases": [
                    {
                        "llm": row.case.case.llm.id,
                        "configuration": row.case.case.configuration.describe(),
                        "input_tokens": row.case.case.workload.input_tokens,
                        "output_tokens": row.case.case.workload.output_tokens,
                        **picked(row, "gpus memory_bytes available_bytes seconds problem"),
                    }
                    for row in rows
                ],
                "minutes": planning.minutes(made),
            }
        )
        return
    print_table(
        ("LLM", "precision", "configuration", "in", "out", "GPUs", "memory", "time"),
        [
            (
                row.case.case.llm.id,
                row.case.case.precision.id,
                row.case.case.configuration.describe(),
                f"{row.case.case.workload.input_tokens:g}",
                f"{row.case.case.workload.output_tokens:g}",
                str(row.gpus),
                f"{row.memory_bytes / 1e9:.1f} GB"
                if row.memory_bytes <= row.available_bytes
                else "too much",
                f"{row.seconds:.0f} s",
            )
            for row in rows
        ],
        left=3,
    )
    for row in rows:
        if row.problem:
            print_paragraph(f"{row.case.case.configuration.describe()}: {row.problem}")
    print_paragraph(
        f"{plural(len(rows), 'case')} in {plural(len(made.groups()), 'engine start')}, "
        f"{about_minutes(planning.minutes(made))} with loading and windows."
    )


def _sweep_name(output: str) -> str:
    """Name a sweep by the file that it writes, wherever it is started from."""
    import hashlib

    table = Path(output).resolve()
    return f"{table.stem}-{hashlib.sha256(str(table).encode()).hexdigest()[:8]}"


def _executor(arguments: argparse.Namespace, made: Plan) -> Executor:
    from energylens.instrument import meters
    from energylens.instrument.executors import local, ray, slurm

    if arguments.executor == "inline":
        return local.InlineExecutor()
    if arguments.executor == "ray":
        return ray.RayExecutor(
            arguments.ray_address, meter_factory=partial(meters.open_meter, arguments.meter)
        )
    if arguments.executor == "slurm":
        return slurm.SlurmExecutor(
            arguments.slurm_folder,
            sweep=_sweep_name(arguments.output),
            parameters=dict(name_value_pairs(arguments.slurm, "--slurm")),
            gpus=arguments.gpus or max(case.gpus for case in made.cases),
        )
    needs_gpus = arguments.meter.partition(":")[0] in ("auto", "nvml", "nvml-power")
    gpus = meters.gpu_indices() if needs_gpus else ()
    return local.LocalExecutor(
        gpus[: arguments.gpus] if arguments.gpus else gpus, exclusive=arguments.exclusive
    )


def _measure(arguments: argparse.Namespace) -> None:
    from energylens.catalog.scaling import scaled_down
    from energylens.instrument import engines, meters, planfile
    from energylens.instrument.sweep import measure

    made = planfile.read_plan(arguments.plan, scale=scaled_down)
    if arguments.dry_run:
        _dry_run(made, arguments.gpus, arguments.json)
        return
    if not arguments.output:
        raise UsageError("a sweep needs a table to write to: give -o RUNS.jsonl, or --dry-run")
    folder = Path(arguments.output).parent
    if not folder.is_dir():
        raise UsageError(
            f"the folder of the table must exist, and {folder} does not: make it first"
        )
    if arguments.meter != "auto" and {case.engine for case in made.cases} == {"simulated"}:
        raise UsageError("the simulated engine brings a meter of its own: leave --meter out")
    kinds = [name.partition(":")[0] for name in meters.NAMES]
    if arguments.meter.partition(":")[0] not in kinds:
        advice = f"Known are {', '.join(meters.NAMES)}."
        raise UnknownChoiceError("meter", arguments.meter, kinds, advice)
    line = SweepLine(
        lambda now: "" if now.remaining_s is None else f", {now.remaining_s / 60:.0f} min left"
    )
    result = measure(
        made,
        engines.open_engine,
        partial(meters.open_meter, arguments.meter),
        arguments.output,
        executor=_executor(arguments, made),
        gpus=arguments.gpus,
        retry_failed=arguments.retry_failed,
        on_progress=line,
        command_line=sys.argv,
        meter_asked=arguments.meter,
        secrets=_secrets(made),
    )
    line.close()
    _tell(result, arguments.json)
    if result.interrupted:
        raise KeyboardInterrupt
    missing = result.cases - result.measured
    if missing:
        here = arguments.executor in ("local", "inline") and not result.measured
        none = f"{missing} of {plural(result.cases, 'case')} have no row"
        raise MeasurementError(
            f"{none if result.measured else 'no case could be measured'}; the reasons are above"
            + (_absent(made) if here else "")
        )


def _secrets(made: Plan) -> tuple[str, ...]:
    """Keys and tokens of this run, which a server that echoes them must not get written down."""
    from energylens.instrument.meters import TOKEN_VARIABLE

    names = {case.options.get("api_key_env", "OPENAI_API_KEY") for case in made.cases}
    return tuple(filter(None, (os.environ.get(name) for name in (*names, TOKEN_VARIABLE))))


def _absent(made: Plan) -> str:
    """Name the packages of engines that are not here either, whatever else kept them."""
    from importlib.util import find_spec

    wanted = {case.engine for case in made.cases if "url" not in case.options}
    absent = [name for name in ("vllm", "transformers") if name in wanted and not find_spec(name)]
    return "".join(f"; the engine {name} is not installed either" for name in absent)


def _tell(result: SweepResult, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "cases": result.cases,
                "measured": result.measured,
                "failed": dict(result.failed),
                **picked(result, "unstable new energy_j"),
                "sources": list(result.sources),
                "interrupted": result.interrupted,
                "table": str(result.table),
                "records": str(result.records),
            }
        )
        return
    failed = len(result.failed)
    state = (
        f"{result.measured} of {plural(result.cases, 'case')} measured, {result.unstable} of them "
        f"unstable, {failed} failed"
    )
    if result.new:
        joules = f"; {drawn(result.energy_j, result.sources)}" if result.sources else ""
        print_paragraph(f"{state}{joules}.")
    elif not result.interrupted:
        again = "; --retry-failed tries those that failed again" if failed else ""
        print_paragraph(f"Nothing was left to do, all was there already: {state}{again}.")
    else:
        print_paragraph(f"{state}.")
    reasons: dict[str, list[str]] = {}
    for case, reason in result.failed.items():
        reasons.setdefault(reason, []).append(case)
    for reason, cases in list(reasons.items())[:LISTED]:
        others = f" and {plural(len(cases) - 1, 'other')}" if len(cases) > 1 else ""
        print_paragraph(f"{cases[0]}{others}: {reason}", "  ")
    print(f"Rows: {result.table}\nRaw windows and provenance: {result.records}")
