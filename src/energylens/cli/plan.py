"""The verb plan: choose the cases to measure."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from energylens.cli.configuring import KV_FORMATS
from energylens.cli.console import (
    Subparsers,
    about_minutes,
    add_choose,
    add_json,
    add_seed,
    comma_list,
    listed,
    name_value_pairs,
    not_negative_int,
    number,
    numbers,
    positive,
    positive_int,
    print_json,
    print_paragraph,
)
from energylens.cli.node import ENGINES
from energylens.errors import InfeasibleError, UsageError
from energylens.viewing import picked
from energylens.words import plural

if TYPE_CHECKING:
    from energylens.instrument.planning import Draft, Space
    from energylens.nextruns.answers import Verdict

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
_rate = number("requests a second from 1e-6 to 1e6", lambda value: 1e-6 <= value <= 1e6)
_clock = number("MHz or none", lambda value: 1 <= value <= 1e5)


def add_verbs(verbs: Any) -> None:
    """Add the verb."""
    parser = Subparsers(verbs).add(
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
    parser.add_argument(
        "--clocks",
        type=listed(lambda text: None if text == "none" else _clock(text)),
        default=(None,),
        metavar="LIST",
        help="clocks that the core of each GPU is locked to, in MHz, as in none,1600,1200; measure "
        "locks them where it may (root)",
    )
    parser.add_argument("--output-tokens", type=numbers, default=(128,), metavar="LIST")
    parser.add_argument("--images", type=not_negative_int, default=0, help="images of each request")
    parser.add_argument(
        "--frames", type=not_negative_int, default=0, help="frames of the video of each request"
    )
    parser.add_argument("--width", type=positive_int, default=448, metavar="PIXELS")
    parser.add_argument("--height", type=positive_int, default=448, metavar="PIXELS")
    parser.add_argument(
        "--mode",
        choices=("phases", "steady"),
        default="phases",
        help="phases: prefill and decode apart (default); steady: a full batch, as in production",
    )
    parser.add_argument(
        "--rates",
        "--rate",
        type=listed(_rate),
        default=(),
        metavar="LIST",
        help="requests a second that arrive by chance, as in 0.5,2,8: an open loop, steady, where "
        "the largest of the batch sizes is the most that run at once",
    )
    parser.add_argument("--weights", default="dummy", help="dummy (default), auto or a path")
    parser.add_argument(
        "--layers", type=positive_int, metavar="N", help="cut the LLM down to N layers"
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of the engine (docs/engines.md)",
    )
    parser.add_argument(
        "--gpu-memory-utilization",
        metavar="RATIO",
        help="share of the GPU's memory that the engine may use, an option of vLLM; default: 0.9",
    )
    parser.add_argument(
        "--kv-cache-dtype",
        choices=KV_FORMATS,
        help="format of the KV cache, an option of vLLM",
    )
    parser.add_argument("--design", choices=("grid", "spread"), default="grid")
    parser.add_argument("--budget-cases", type=positive_int, metavar="N")
    parser.add_argument("--budget-minutes", type=positive, metavar="N")
    parser.add_argument("--gpus", type=positive_int, metavar="N", help="GPUs that there are")
    parser.add_argument("--repeats", type=positive_int, default=1, metavar="N")
    parser.add_argument("--order", choices=("shuffled", "interleaved", "given"), default="shuffled")
    add_seed(parser)
    parser.add_argument(
        "--next",
        type=positive_int,
        metavar="N",
        help="of all feasible cases, the N that tell most: coefficients and candidates apart "
        "(docs/studies/planning.md)",
    )
    parser.add_argument(
        "--measured",
        metavar="RUNS",
        help="with --next: rows measured already, a tidy table; says whether one may stop",
    )
    add_choose(parser, "with --next: what is to be chosen in the end")
    parser.add_argument(
        "--quick", action="store_true", help="short windows, to try a plan; not for results"
    )
    add_json(parser)


def _options(arguments: argparse.Namespace) -> dict[str, str]:
    """Options of the engine: those given by name, and those that are flags here."""
    options = dict(name_value_pairs(arguments.option, "--option"))
    for name in ("gpu_memory_utilization", "kv_cache_dtype"):
        given = getattr(arguments, name)
        if given is None:
            continue
        if arguments.engine != "vllm":
            raise UsageError(
                f"--{name.replace('_', '-')} is an option of vllm alone, not of {arguments.engine}"
            )
        options[name] = given
    return options


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
        **picked(
            arguments, "tensor_parallel pipeline_parallel expert_parallel data_parallel batch_sizes"
        ),
        clocks_mhz=arguments.clocks,
        input_tokens=arguments.input_tokens,
        output_tokens=arguments.output_tokens,
        media=(media,),
        mode=Mode(arguments.mode),
        request_rates_per_s=arguments.rates,
        weights=arguments.weights,
        scaled_layers=arguments.layers,
        options=_options(arguments),
        seed=arguments.seed,
    )


def _plan(arguments: argparse.Namespace) -> None:
    from energylens import catalog
    from energylens.catalog.scaling import scaled_down
    from energylens.instrument import planfile, planning
    from energylens.instrument.plan import Procedure

    if arguments.measured and arguments.next is None:
        raise UsageError("--measured is read for --next alone: say how many runs to choose")
    if arguments.output.lower().endswith((".csv", ".parquet", ".html")):
        raise UsageError(
            f"a plan is JSON Lines: give it a name like plan.jsonl, not {arguments.output}"
        )
    draft = planning.plan(
        _space(arguments),
        **picked(arguments, "design budget_cases budget_minutes gpus repeats order seed"),
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
    written = f"{_counted(draft)}, {about_minutes(draft.minutes)}, written to {arguments.output}"
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
    for reason, cases in list(draft.skipped.items())[:LISTED]:
        print_paragraph(f"{cases} left out: {reason}", "  ")
    if others := sum(list(draft.skipped.values())[LISTED:]):
        print_paragraph(f"{others} left out for other reasons of the kind", "  ")


def _most_telling(
    arguments: argparse.Namespace, draft: Draft
) -> tuple[Draft, tuple[str, ...], Verdict | None]:
    """Keep the cases that tell most, and say why, and whether one may stop already.

    The cases stand even where one may stop: the verdict is about the choice alone, and whoever
    is after the coefficients goes on.
    """
    from energylens import table
    from energylens.cases import Cases
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


def _counted(draft: Draft) -> str:
    """Cases that were chosen, and runs of them where cases are repeated."""
    runs = len(draft.plan.cases)
    distinct = len({replace(case, repeat=0).key for case in draft.plan.cases})
    cases = f"{plural(distinct, 'case')} of {plural(draft.feasible, 'feasible one')}"
    return cases if runs == distinct else f"{runs} runs of {cases}"
