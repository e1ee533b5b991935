"""Verbs of the instrument: doctor, plan, measure and meter."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING, Any

from energylens.cli.console import (
    Subparsers,
    add_json,
    comma_list,
    numbers,
    print_json,
    print_paragraph,
    print_table,
)

if TYPE_CHECKING:
    from energylens.instrument.executor import Executor
    from energylens.instrument.plan import Plan
    from energylens.instrument.planning import Draft, Space
    from energylens.instrument.sweep import SweepProgress, SweepResult
    from energylens.nextruns.answers import Verdict

ENGINES = ("vllm", "transformers", "openai", "simulated")
#: Windows too short for results, to try a plan.
QUICK: dict[str, Any] = {
    "min_window_s": 0.05,
    "min_periods": 2,
    "idle_s": 0.2,
    "cooldown_s": 0.0,
    "steady_window_s": 1.0,
    "reference_every": 0,
    "phase_limit_s": 20.0,
}
LISTED = 12
LOG_PAUSE_S = 30.0


def add_verbs(verbs: Any) -> None:
    """Add the verbs of this module."""
    subparsers = Subparsers(verbs)
    parser = subparsers.add(
        "doctor",
        "say what this machine can measure, and what to do about what is missing",
        _doctor,
        ("energylens doctor", "energylens doctor --folder /scratch"),
    )
    parser.add_argument("--folder", metavar="DIR", help="where results would go")
    add_json(parser)
    _add_plan(subparsers)
    _add_measure(subparsers)

    parser = subparsers.add(
        "meter",
        "serve this host's meter, or look at it",
        _meter,
        (
            "energylens meter serve --port 9021 --token-file token.txt",
            "energylens meter read --meter nvml",
        ),
    )
    parser.add_argument("action", choices=("serve", "read"))
    _add_meter(parser)
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default: loopback)")
    parser.add_argument("--port", type=int, default=9021)
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        help="holds what clients must know (default: $ENERGYLENS_METER_TOKEN, else a random one, "
        "printed)",
    )
    parser.add_argument(
        "--token", help="the same, in sight of everybody who can list this machine's processes"
    )
    add_json(parser)


def _add_meter(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--meter",
        default="auto",
        metavar="NAME",
        help="auto (default), nvml, nvml-power, zeus, estimated, replay:FILE or http://HOST:PORT",
    )


def _add_plan(subparsers: Subparsers) -> None:
    parser = subparsers.add(
        "plan",
        "choose the cases to measure, and write them to a file to read and edit",
        _plan,
        (
            "energylens plan --llm Qwen/Qwen3-8B --gpu H100 --tensor-parallel 1,2 "
            "--batch-sizes 1,8,64 --input-tokens 128,1024 -o plan.jsonl",
            "energylens plan --llm Qwen/Qwen3-8B --gpu H100 --tensor-parallel 1,2,4 --next 8 "
            "--measured runs.jsonl -o plan.jsonl",
            "energylens plan --llm Qwen/Qwen3-8B --gpu H100 --rates 0.5,2,8 --batch-sizes 256 "
            "-o load.jsonl",
            "energylens plan --llm checkpoint/ --gpu A100 --design spread --budget-minutes 60 "
            "-o plan.jsonl",
        ),
    )
    parser.add_argument("-o", "--output", required=True, metavar="PLAN.jsonl")
    parser.add_argument(
        "--llm",
        required=True,
        type=comma_list,
        metavar="LIST",
        help="catalog names, folders with a config.json, or such files",
    )
    parser.add_argument("--gpu", required=True, type=comma_list, metavar="LIST")
    parser.add_argument("--engine", choices=ENGINES, default="vllm")
    parser.add_argument(
        "--precision",
        type=comma_list,
        default=(),
        metavar="LIST",
        help="number formats; by default that of each LLM's name or checkpoint",
    )
    for degree in ("tensor", "pipeline", "expert", "data"):
        parser.add_argument(
            f"--{degree}-parallel", type=numbers, default=(1,), metavar="LIST", help="default: 1"
        )
    parser.add_argument("--batch-sizes", type=numbers, default=(1, 8, 64), metavar="LIST")
    parser.add_argument("--input-tokens", type=numbers, default=(128, 1024), metavar="LIST")
    parser.add_argument("--output-tokens", type=numbers, default=(128,), metavar="LIST")
    parser.add_argument("--images", type=int, default=0, help="images of each request")
    parser.add_argument("--frames", type=int, default=0, help="frames of the video of each request")
    parser.add_argument("--width", type=int, default=448, metavar="PIXELS")
    parser.add_argument("--height", type=int, default=448, metavar="PIXELS")
    parser.add_argument(
        "--mode",
        choices=("phases", "steady"),
        default="phases",
        help="phases: prefill and decode apart (default); steady: a full batch, as in production",
    )
    parser.add_argument(
        "--rates",
        "--rate",
        type=_rates,
        default=(),
        metavar="LIST",
        help="requests a second that arrive by chance, as in 0.5,2,8: an open loop, steady, where "
        "the largest of the batch sizes is the most that run at once",
    )
    parser.add_argument("--weights", default="dummy", help="dummy (default), auto or a path")
    parser.add_argument("--layers", type=int, metavar="N", help="cut the LLM down to N layers")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of the engine (docs/engines.md)",
    )
    parser.add_argument("--design", choices=("grid", "spread"), default="grid")
    parser.add_argument("--budget-cases", type=int, metavar="N")
    parser.add_argument("--budget-minutes", type=float, metavar="N")
    parser.add_argument("--gpus", type=int, metavar="N", help="GPUs that there are")
    parser.add_argument("--repeats", type=int, default=1, metavar="N")
    parser.add_argument("--order", choices=("shuffled", "interleaved", "given"), default="shuffled")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--next",
        type=int,
        metavar="N",
        help="of all feasible cases, the N that tell most: coefficients and candidates apart "
        "(docs/planning.md)",
    )
    parser.add_argument(
        "--measured",
        metavar="RUNS",
        help="with --next: rows measured already, a tidy table; says whether one may stop",
    )
    parser.add_argument(
        "--choose",
        type=comma_list,
        default=("parallelism", "batch_size"),
        metavar="KNOBS",
        help="with --next: what is to be chosen in the end (default: parallelism,batch_size)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="short windows, to try a plan; not for results"
    )
    add_json(parser)


def _add_measure(subparsers: Subparsers) -> None:
    parser = subparsers.add(
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
    _add_meter(parser)
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
    parser.add_argument("--gpus", type=int, metavar="N", help="GPUs to use at most")
    parser.add_argument("--retry-failed", action="store_true")
    parser.add_argument("--dry-run", action="store_true", help="list the cases, measure nothing")
    add_json(parser)


def _rates(text: str) -> tuple[float, ...]:
    """Read a comma list of rates (an argparse type)."""
    found = []
    for part in comma_list(text):
        try:
            rate = float(part)
        except ValueError:
            rate = 0.0
        if not 1e-6 <= rate <= 1e6:
            raise argparse.ArgumentTypeError(
                f"must be requests a second from 1e-6 to 1e6, separated by commas, not {text!r}"
            )
        found.append(rate)
    return tuple(found)


def _pairs(texts: list[str], option: str) -> dict[str, str]:
    from energylens.errors import UsageError

    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"{option} takes NAME=VALUE, not {text!r}")
        pairs[name] = value
    return pairs


# ------------------------------------------------------------------------------------- doctor


def _doctor(arguments: argparse.Namespace) -> None:
    from energylens.instrument.doctor import examine

    report = examine(arguments.folder)
    if arguments.json:
        print_json(
            {
                "meter": report.meter,
                "can_measure": report.can_measure,
                "findings": [
                    {
                        "name": f.name,
                        "status": f.status.value,
                        "detail": f.detail,
                        "advice": f.advice,
                    }
                    for f in report.findings
                ],
            }
        )
        return
    for finding in report.findings:
        print(f"{finding.status.value:8} {finding.name}")
        print_paragraph(finding.detail, "         ")
        if finding.advice:
            print_paragraph(f"-> {finding.advice}", "         ")
    print()
    print_paragraph(
        f"Meter to use: {report.meter}."
        if report.can_measure
        else "There is no energy counter here: rows measured on this machine would be estimates, "
        "marked as such, and carry no accuracy claim. Results of others can be imported."
    )


# --------------------------------------------------------------------------------------- plan


def _space(arguments: argparse.Namespace) -> Space:
    from energylens.instrument.engine import Media
    from energylens.instrument.plan import Mode
    from energylens.instrument.planning import Space

    size = (arguments.height, arguments.width)
    media = Media(
        images=arguments.images,
        image_pixels=size if arguments.images else None,
        frames=arguments.frames,
        frame_pixels=size if arguments.frames else None,
    )
    return Space(
        llms=arguments.llm,
        gpus=arguments.gpu,
        engine=arguments.engine,
        precisions=arguments.precision,
        tensor_parallel=arguments.tensor_parallel,
        pipeline_parallel=arguments.pipeline_parallel,
        expert_parallel=arguments.expert_parallel,
        data_parallel=arguments.data_parallel,
        batch_sizes=arguments.batch_sizes,
        input_tokens=arguments.input_tokens,
        output_tokens=arguments.output_tokens,
        media=(media,),
        mode=Mode(arguments.mode),
        request_rates_per_s=arguments.rates,
        weights=arguments.weights,
        scaled_layers=arguments.layers,
        options=_pairs(arguments.option, "--option"),
        seed=arguments.seed,
    )


def _plan(arguments: argparse.Namespace) -> None:
    from energylens import catalog
    from energylens.catalog.scaling import scaled_down
    from energylens.errors import UsageError
    from energylens.instrument import planfile, planning
    from energylens.instrument.plan import Procedure

    if arguments.measured and arguments.next is None:
        raise UsageError("--measured is read for --next alone: say how many runs to choose")
    if arguments.next is not None and arguments.next < 1:
        raise UsageError(f"--next must be 1 or more, not {arguments.next}")
    if arguments.output.lower().endswith((".csv", ".parquet", ".html")):
        raise UsageError(
            f"a plan is JSON Lines: give it a name like plan.jsonl, not {arguments.output}"
        )
    draft = planning.plan(
        _space(arguments),
        design=arguments.design,
        budget_cases=arguments.budget_cases,
        budget_minutes=arguments.budget_minutes,
        gpus=arguments.gpus,
        repeats=arguments.repeats,
        order=arguments.order,
        seed=arguments.seed,
        procedure=Procedure(**QUICK) if arguments.quick else None,
        scale=scaled_down,
    )
    why: tuple[str, ...] = ()
    verdict: Verdict | None = None
    if arguments.next:
        draft, why, verdict = _most_telling(arguments, draft)
    stop = verdict.stop if verdict else None
    judged = verdict.sentences() if verdict else ()
    if draft.plan.cases:
        planfile.write_plan(arguments.output, draft.plan)
    added = planning.llms_beyond_catalog(draft.plan)
    for llm in added:
        catalog.add_llm(llm)
    if arguments.json:
        print_json(
            {
                "output": arguments.output if draft.plan.cases else None,
                "cases": len(draft.plan.cases),
                "feasible": draft.feasible,
                "skipped": dict(draft.skipped),
                "minutes": draft.minutes,
                "why": [*why, *judged],
                "stop": stop,
                "llms_added": [llm.id for llm in added],
            }
        )
        return
    for sentence in judged:
        print_paragraph(sentence)
    written = f"{_counted(draft)}, {_about(draft.minutes)}, written to {arguments.output}"
    if not draft.plan.cases:
        written = (
            f"All {draft.feasible} feasible cases are measured: {arguments.output} is not written"
        )
    elif stop:
        written = f"No more of these runs are needed. To go on all the same: {written}"
    print_paragraph(f"{written}.")
    for sentence in why:
        print_paragraph(sentence)
    for llm in added:
        print_paragraph(f"{llm.id} was added to your catalog, so that its rows can be read.")
    for reason, number in list(draft.skipped.items())[:LISTED]:
        print_paragraph(f"{number} left out: {reason}", "  ")
    if others := sum(list(draft.skipped.values())[LISTED:]):
        print_paragraph(f"{others} left out for other reasons of the kind", "  ")


def _number(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _about(minutes: float) -> str:
    return f"about {_number(round(minutes), 'minute')}"


def _counted(draft: Draft) -> str:
    """Cases that were chosen, and runs of them where cases are repeated."""
    from dataclasses import replace

    runs = len(draft.plan.cases)
    distinct = len({replace(case, repeat=0).key for case in draft.plan.cases})
    cases = f"{_number(distinct, 'case')} of {_number(draft.feasible, 'feasible one')}"
    return cases if runs == distinct else f"{runs} runs of {cases}"


def _most_telling(
    arguments: argparse.Namespace, draft: Draft
) -> tuple[Draft, tuple[str, ...], Verdict | None]:
    """Keep the cases that tell most, and say why, and whether one may stop already.

    The cases stand even where one may stop: the verdict is about the choice alone, and whoever
    is after the coefficients goes on.
    """
    from dataclasses import replace

    from energylens import table
    from energylens.cases import Cases
    from energylens.errors import InfeasibleError, UsageError
    from energylens.instrument import planning
    from energylens.nextruns import verbs
    from energylens.records import Engine

    measured = table.read(arguments.measured) if arguments.measured else None
    planned = draft.plan.cases
    # Behind an OpenAI interface any engine may serve: which one is not known.
    known = "" if arguments.engine == "openai" else arguments.engine
    candidates = Cases.of([item.case for item in planned]).served_by(Engine(name=known))
    options = {"choose": arguments.choose, "seed": arguments.seed}
    try:
        batch = verbs.next_runs(candidates, measured, count=arguments.next, **options)
    except InfeasibleError:
        if measured is None:
            raise
        batch = None  # everything is measured: the verdict is all there is to say
    kept = replace(draft.plan, cases=tuple(planned[i] for i in batch.index) if batch else ())
    why = batch.sentences() if batch else ()
    verdict = None
    if measured is not None:
        try:
            verdict = verbs.verdict(candidates, measured, more_runs=arguments.next, **options)
        except UsageError as error:  # no two cases compete
            if batch is None:
                raise
            why = (*why, f"Whether to stop cannot be said: {error}.")
    return replace(draft, plan=kept, minutes=planning.minutes(kept)), why, verdict


# ------------------------------------------------------------------------------------- measure


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
                        "gpus": row.gpus,
                        "memory_bytes": row.memory_bytes,
                        "available_bytes": row.available_bytes,
                        "seconds": row.seconds,
                        "problem": row.problem,
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
        f"{_number(len(rows), 'case')} in {_number(len(made.groups()), 'engine start')}, "
        f"{_about(planning.minutes(made))} with loading and windows."
    )


def _sweep_name(output: str) -> str:
    """Name a sweep by the file that it writes, wherever it is started from."""
    import hashlib
    from pathlib import Path

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
            parameters=dict(_pairs(arguments.slurm, "--slurm")),
            gpus=arguments.gpus or max(case.gpus for case in made.cases),
        )
    needs_gpus = arguments.meter.partition(":")[0] in ("auto", "nvml", "nvml-power")
    gpus = meters.gpu_indices() if needs_gpus else ()
    return local.LocalExecutor(
        gpus[: arguments.gpus] if arguments.gpus else gpus, exclusive=arguments.exclusive
    )


def _measure(arguments: argparse.Namespace) -> None:
    import sys
    import time
    from pathlib import Path

    from energylens.catalog.scaling import scaled_down
    from energylens.errors import MeasurementError, UnknownNameError, UsageError
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
        raise UnknownNameError("meter", arguments.meter, kinds, advice)
    live = sys.stderr.isatty()
    pause_s = 0.5 if live else LOG_PAUSE_S  # a log wants a line now and then, no moving one
    shown = [0.0 if live else time.monotonic()]

    def show(progress: SweepProgress) -> None:
        now = time.monotonic()
        if now - shown[0] < pause_s:
            return
        shown[0] = now
        left = "" if progress.remaining_s is None else f", {progress.remaining_s / 60:.0f} min left"
        line = (
            f"{progress.done} of {progress.cases} cases ({progress.failed} failed), "
            f"{_drawn(progress.energy_j, progress.sources)} so far{left}"
        )
        if live:
            print(f"\r{line:<78}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    result = measure(
        made,
        engines.open_engine,
        partial(meters.open_meter, arguments.meter),
        arguments.output,
        executor=_executor(arguments, made),
        gpus=arguments.gpus,
        retry_failed=arguments.retry_failed,
        on_progress=show,
        command_line=sys.argv,
        meter_asked=arguments.meter,
        secrets=_secrets(made),
    )
    if live and shown[0]:
        print(f"\r{'':78}\r", end="", file=sys.stderr, flush=True)
    _tell(result, arguments.json)
    if result.interrupted:
        raise KeyboardInterrupt
    missing = result.cases - result.measured
    if missing:
        here = arguments.executor in ("local", "inline") and not result.measured
        none = f"{missing} of {_number(result.cases, 'case')} have no row"
        raise MeasurementError(
            f"{none if result.measured else 'no case could be measured'}; the reasons are above"
            + (_absent(made) if here else "")
        )


def _secrets(made: Plan) -> tuple[str, ...]:
    """Keys and tokens of this run, which a server that echoes them must not get written down."""
    import os

    from energylens.instrument.meters import TOKEN_VARIABLE

    names = {case.options.get("api_key_env", "OPENAI_API_KEY") for case in made.cases}
    return tuple(filter(None, (os.environ.get(name) for name in (*names, TOKEN_VARIABLE))))


def _absent(made: Plan) -> str:
    """Name the packages of engines that are not here either, whatever else kept them."""
    from importlib.util import find_spec

    wanted = {case.engine for case in made.cases if "url" not in case.options}
    absent = [name for name in ("vllm", "transformers") if name in wanted and not find_spec(name)]
    return "".join(f"; the engine {name} is not installed either" for name in absent)


def _drawn(energy_j: float, sources: tuple[str, ...]) -> str:
    from energylens.words import joules

    guessed = [name for name in sources if name in ("simulated", "estimated")]
    return f"{joules(energy_j)} {' and '.join(guessed) if guessed else 'drawn'}"


def _tell(result: SweepResult, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "cases": result.cases,
                "measured": result.measured,
                "failed": dict(result.failed),
                "unstable": result.unstable,
                "new": result.new,
                "energy_j": result.energy_j,
                "sources": list(result.sources),
                "interrupted": result.interrupted,
                "table": str(result.table),
                "records": str(result.records),
            }
        )
        return
    failed = len(result.failed)
    state = (
        f"{result.measured} of {_number(result.cases, 'case')} measured, {result.unstable} of them "
        f"unstable, {failed} failed"
    )
    if result.new:
        drawn = f"; {_drawn(result.energy_j, result.sources)}" if result.sources else ""
        print_paragraph(f"{state}{drawn}.")
    elif not result.interrupted:
        again = "; --retry-failed tries those that failed again" if failed else ""
        print_paragraph(f"Nothing was left to do, all was there already: {state}{again}.")
    else:
        print_paragraph(f"{state}.")
    reasons: dict[str, list[str]] = {}
    for case, reason in result.failed.items():
        reasons.setdefault(reason, []).append(case)
    for reason, cases in list(reasons.items())[:LISTED]:
        others = f" and {_number(len(cases) - 1, 'other')}" if len(cases) > 1 else ""
        print_paragraph(f"{cases[0]}{others}: {reason}", "  ")
    print(f"Rows: {result.table}\nRaw windows and provenance: {result.records}")


# --------------------------------------------------------------------------------------- meter


def _meter(arguments: argparse.Namespace) -> None:
    import threading

    from energylens.instrument import meters

    meter = meters.open_meter(arguments.meter)
    if arguments.action == "read":
        reading = meter.read()
        document = {
            "time_s": reading.time_s,
            "energy_j": {
                channel.id: joules
                for channel, joules in zip(meter.channels, reading.energy_j, strict=True)
            },
        }
        meter.close()
        if arguments.json:
            print_json(document)
            return
        for channel, joules in zip(meter.channels, reading.energy_j, strict=True):
            print(f"{channel.id} {channel.name}: {joules:.3f} J since the counter began")
        return
    token = _serving_token(arguments)
    server = meters.serve(meter, host=arguments.host, port=arguments.port, token=token)
    if arguments.json:
        print_json({"url": server.url, "token": server.token})
        print(end="", flush=True)
    else:
        # Whoever gave a token knows it, and a terminal's history need not.
        shown = f"; token {server.token}" if token is None else ""
        print(f"Serving {arguments.meter} at {server.url}{shown}", flush=True)
    try:
        threading.Event().wait()
    finally:
        server.close()


def _serving_token(arguments: argparse.Namespace) -> str | None:
    """Take the token from the command line, a file or the environment; None for a random one."""
    import os
    from pathlib import Path

    from energylens.errors import UsageError
    from energylens.instrument.meters import TOKEN_VARIABLE

    if arguments.token is not None and arguments.token_file is not None:
        raise UsageError("the token is given once: with --token-file or with --token")
    if arguments.token is not None:
        return str(arguments.token)
    if arguments.token_file is None:
        return os.environ.get(TOKEN_VARIABLE) or None
    try:
        token = Path(arguments.token_file).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise UsageError(f"{arguments.token_file} cannot be read: {error}") from None
    if not token:
        raise UsageError(f"{arguments.token_file} must hold a token, and is empty")
    return token
