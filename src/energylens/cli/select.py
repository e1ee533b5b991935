"""The verb select, and what a choice is asked with."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from energylens.cli import front_form
from energylens.cli.configuring import BATCH_SIZE, add_case, candidates_of, case_meant
from energylens.cli.console import (
    Subparsers,
    add_json,
    add_max_gpus,
    add_seed,
    comma_list,
    flag,
    numbers,
    positive_int,
    print_json,
    print_paragraph,
    print_wrapped,
)
from energylens.cli.serving import add_load_options, answer, lengths_of, refuse_without_rate
from energylens.errors import UnknownNameError, UsageError
from energylens.records import PARALLELISM

if TYPE_CHECKING:
    from energylens.model import EnergyModel
    from energylens.records import Case
    from energylens.scenarios import Limit
    from energylens.selection import Ranking
    from energylens.service import Lengths

LISTED = 4  # infeasible layouts shown
# What fixes a knob that --choose can free: argument, column that frees it, value by default.
FIXED: tuple[tuple[str, str, Any], ...] = (
    *((degree, degree, 1) for degree in PARALLELISM),
    ("batch_size", "batch_size", None),
    ("precision", "precision_index", None),
    ("power_cap_w", "power_cap_w", None),
    ("clock_mhz", "clock_mhz", None),
)
# What lists the values of a free knob: argument, column that frees it, knob.
LISTS = (
    ("batch_sizes", "batch_size", "batch_size"),
    ("gpus", "gpu_index", "gpu"),
    ("precisions", "precision_index", "precision"),
    ("power_caps", "power_cap_w", "power_cap"),
    ("clocks", "clock_mhz", "clock"),
)


def add_verbs(verbs: Any) -> None:
    """Add the verb."""
    parser = Subparsers(verbs).add(
        "select",
        "rank the feasible configurations by energy",
        _select,
        (
            "energylens select model.json --llm Qwen/Qwen3-32B --gpu H100 "
            "--input-tokens 500 --output-tokens 300",
            "energylens select datasheet --llm Qwen/Qwen3-32B --gpu H200 "
            "--input-tokens 500 --output-tokens 300",
            "energylens select model.json --llm Qwen/Qwen3-235B-A22B --gpu H100 --precision fp8 "
            "--choose parallelism,batch_size --input-tokens 500 --output-tokens 300",
            "energylens select --llm meta-llama/Llama-3.3-70B-Instruct --precision fp8 --gpu H100 "
            "--rate 3 --tpot 50ms --ttft 1s --input-tokens 2000 --output-tokens 300 "
            "--current 'TP8 B256'",
        ),
    )
    add_selection(parser)


def add_selection(parser: argparse.ArgumentParser) -> None:
    """Add what a choice is asked with."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        help="a model.json, a tidy table (fitted as fit does), a model that energylens models "
        "lists, the word datasheet, or a decision file (.toml); by default the packaged model of "
        "the GPU type",
    )
    add_case(parser)
    for action in parser._actions:
        if action.dest in ("llm", "gpu", "input_tokens", "output_tokens"):
            action.required = False  # a decision file or a trace may say
    add_load_options(parser)
    parser.add_argument(
        "--choose",
        type=comma_list,
        default=None,
        metavar="KNOBS",
        help="free knobs, a comma list of tensor_parallel, pipeline_parallel, expert_parallel, "
        "data_parallel, parallelism, batch_size, precision, gpu, power_cap, clock "
        "(default: tensor_parallel,pipeline_parallel, with --rate data_parallel and batch_size "
        "too, less what an option fixes; with --rate batch_size is free unless --batch-size is "
        "given)",
    )
    add_max_gpus(parser)
    parser.add_argument(
        "--batch-sizes", type=numbers, metavar="LIST", help="values of a free batch_size"
    )
    parser.add_argument("--gpus", type=comma_list, default=(), help="values of a free gpu")
    parser.add_argument(
        "--precisions", type=comma_list, default=(), help="values of a free precision"
    )
    parser.add_argument(
        "--power-caps", type=numbers, metavar="LIST", help="values of a free power_cap, in W"
    )
    parser.add_argument(
        "--clocks", type=numbers, metavar="LIST", help="values of a free clock, locked, in MHz"
    )
    parser.add_argument(
        "--top",
        type=positive_int,
        default=8,
        metavar="N",
        help="configurations to list (default: 8)",
    )
    # None tells a knob that was not fixed from one fixed at its default.
    parser.set_defaults(**{name: None for name, _, _ in FIXED})
    add_seed(parser)
    add_json(parser)


def _knobs(arguments: argparse.Namespace) -> None:
    """Refuse what would have no effect, name what is missing, and fill in the defaults."""
    from energylens.dataset import freed_columns

    freed = freed_columns(arguments.choose)
    for name, column, default in FIXED:
        given = getattr(arguments, name)
        if given is not None and column in freed:
            knob = {"power_cap_w": "power_cap", "clock_mhz": "clock"}.get(name, name)
            shown = f"{given:g}" if isinstance(given, float) else given
            raise UsageError(
                f"{flag(name)} {shown} has no effect: {knob} is free (--choose); give --choose "
                "without it, or leave the option out"
            )
        if given is None:
            setattr(arguments, name, default)
    if "batch_size" in freed:  # each limit that is tried is what the engine is told
        arguments.batch_size = BATCH_SIZE
    for name, column, knob in LISTS:
        if getattr(arguments, name) and column not in freed:
            hint = ""
            if name == "gpus" and all(text.isdigit() for text in arguments.gpus):
                hint = f"; for a count of GPUs, say --max-gpus {arguments.gpus[0]}"
            raise UsageError(
                f"{flag(name)} has no effect: {knob} is not free; add {knob} to --choose, or "
                f"leave the option out{hint}"
            )
        if column in freed and not getattr(arguments, name) and name != "batch_sizes":
            raise UsageError(
                f"to choose the {knob} freely, the candidates must list some: give {flag(name)}"
            )


def _caps_seen(model: EnergyModel) -> tuple[Limit, ...]:
    """Limit free power caps to those that the fit can speak of."""
    from energylens import catalog
    from energylens.scenarios import CapsSeen

    if "power_cap_w" not in model.scope.ranges:
        return ()
    low, high = model.scope.ranges["power_cap_w"]
    try:
        tdp_w = [catalog.gpu(name).tdp_w for name in model.scope.gpus]
    except UnknownNameError:
        return ()  # fitted with a catalog of someone else
    # Which GPU type had which cap is not kept: of several, those that rule out the least.
    return (CapsSeen(low_ratio=low / max(tdp_w), high_ratio=high / min(tdp_w)),)


def _unseen_gpus(model: EnergyModel, ranking: Ranking) -> list[str]:
    """Note GPU types that no row speaks of, but for the best one's, which is explained anyway."""
    scope = model.scope_of(ranking.scenario.engine.id)
    ids = {gpu.id for gpu in ranking.cases.gpus} - set(scope.gpus) - {ranking.best.gpu}
    return [
        f"No row of the fit has the GPU {name}: its joules rest on its datasheet."
        for name in sorted(ids)
    ]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a choice is asked about, with its names looked up; ``lengths`` None: no load."""

    model: EnergyModel
    case: Case
    lengths: Lengths | None
    notes: tuple[str, ...]


def _read_file(arguments: argparse.Namespace) -> None:
    """Fill in what a decision file says, where one is named."""
    from energylens.cli import decision_file

    if arguments.model and arguments.model.lower().endswith((".toml", ".yaml", ".yml")):
        decision_file.read(arguments)


def _free(arguments: argparse.Namespace) -> None:
    """Say which knobs are free, where nothing does; several GPU types free that one.

    Under load the batch limit is free unless ``--batch-size`` says it: an engine starts with
    hundreds, and a few dozen that nobody asked for would make every layout look poor.
    """
    from energylens.records import DEFAULT_CHOOSE
    from energylens.solving import DEFAULT_CHOOSE as UNDER_LOAD

    several = bool(arguments.gpu and "," in arguments.gpu)
    types = several or bool(arguments.gpus and arguments.gpu is None)
    if arguments.choose is None:
        free = UNDER_LOAD if arguments.rate is not None else DEFAULT_CHOOSE
        arguments.choose = tuple(knob for knob in free if getattr(arguments, knob) is None)
        if not arguments.choose and arguments.rate is not None:
            if arguments.batch_sizes:
                raise UsageError(
                    "--batch-sizes has no effect: --batch-size fixes the batch limit; leave one out"
                )
            # A batch is of all replicas, a limit that is listed of each.
            each = arguments.batch_size / arguments.data_parallel
            arguments.choose = ("batch_size",)
            arguments.batch_sizes, arguments.batch_size = [each], None
        elif not arguments.choose and not types:
            fixed = " and ".join(flag(knob) for knob in free)
            raise UsageError(
                f"{fixed} leave nothing to choose: leave one out, or ask energylens explain"
            )
        if types:
            arguments.choose = (*arguments.choose, "gpu")
    elif arguments.rate is not None and arguments.batch_size is None:
        arguments.choose = tuple(dict.fromkeys([*arguments.choose, "batch_size"]))
    if several:
        if "gpu" not in arguments.choose:
            raise UsageError(
                f"--gpu {arguments.gpu} names several types: add gpu to --choose, or name one"
            )
        arguments.gpus = arguments.gpus or comma_list(arguments.gpu)
        arguments.gpu = None
    if "gpu" in arguments.choose and arguments.gpu is None and arguments.gpus:
        arguments.gpu = arguments.gpus[0]


def _require(arguments: argparse.Namespace) -> None:
    """Refuse a question that lacks something, and name all of it."""
    several = "gpus" if "gpu" in arguments.choose else "gpu"  # what is chosen from, or the one
    missing = [flag("llm")] if arguments.llm is None else []
    missing += [flag(several)] if arguments.gpu is None else []
    elsewhere = arguments.rate is not None and (arguments.lengths or arguments.mix)
    if not elsewhere:
        tokens = ("input_tokens", "output_tokens")
        missing += [flag(name) for name in tokens if getattr(arguments, name) is None]
    if missing:
        named = " and ".join(filter(None, [", ".join(missing[:-1]), missing[-1]]))
        raise UsageError(f"{named} must be given")


def asked(arguments: argparse.Namespace) -> Asked:
    """Read what :func:`add_selection` describes, once the free knobs and the rest are known."""
    from energylens import catalog
    from energylens.answering import cap_note, choice_notes
    from energylens.lengths import with_prompts_of
    from energylens.packaged import model_for

    model, notes = model_for(arguments.model, arguments.gpu, arguments.engine)
    lengths = None
    if arguments.rate is not None:
        lengths = lengths_of(arguments)
        arguments.input_tokens = lengths.input_tokens
        arguments.output_tokens = lengths.output_tokens
    _knobs(arguments)
    case = case_meant(arguments, model)
    unknown = lengths is None and "power_cap" not in model.extensions
    if unknown and arguments.power_cap_w is not None:
        raise UsageError(
            f"--power-cap-w {arguments.power_cap_w:g} has no effect: the model knows no caps; fit "
            "one with --extend power_cap to rows that have power_cap_w, or leave the cap out"
        )
    if unknown and "power_cap" in arguments.choose:
        raise UsageError(
            f"choosing a power cap takes a model that knows some, and "
            f"{arguments.model or 'the packaged one'} knows "
            "none: fit one with --extend power_cap to rows that have power_cap_w"
        )
    capped = arguments.power_cap_w is not None or "power_cap" in arguments.choose
    if lengths is not None:
        notes = (*notes, *cap_note(model, capped=capped))
        lengths = with_prompts_of(lengths, case.workload)
        others = {catalog.gpu(name).id for name in arguments.gpus} - {case.gpu.id}
        others |= {case.gpu.id} if arguments.model else set()  # else its own note says it
        formats = {catalog.precision(name).id for name in arguments.precisions}
        notes = (*notes, *choice_notes(model, others, formats - {case.precision.id}))
        locked = arguments.clock_mhz is not None or "clock" in arguments.choose
        notes = (*notes, *model.clock_notes(locked=locked))
    return Asked(model=model, case=case, lengths=lengths, notes=notes)


def prepare(arguments: argparse.Namespace) -> None:
    """Fill in a decision file and the free knobs, and name all that is missing."""
    _read_file(arguments)
    _free(arguments)
    _require(arguments)


def _select(arguments: argparse.Namespace) -> None:
    from energylens.explanation import explain
    from energylens.scenarios import Scenario
    from energylens.selection import select
    from energylens.showing import advice, ranking_cells

    prepare(arguments)
    if front_form.is_form(arguments.model):
        if arguments.rate is not None:
            raise UsageError(f"{arguments.model} is a form of energy alone: leave --rate out")
        refuse_without_rate(arguments)
        _knobs(arguments)
        front_form.select_by(arguments)
        return
    if arguments.rate is None:
        refuse_without_rate(arguments)
    question = asked(arguments)
    model, case, packaged_note = question.model, question.case, question.notes
    if question.lengths is not None:
        answer(arguments, model, case, question.lengths, packaged_note)
        return
    model = model.choosing(arguments.choose)  # the explanation speaks of the same joules
    ranking = select(
        model,
        Scenario.of(case, arguments.max_gpus),
        choose=arguments.choose,
        candidates=candidates_of(arguments),
        limits=_caps_seen(model) if "power_cap" in arguments.choose else (),
        seed=arguments.seed,
    )
    fixed = (
        []
        if "batch_size" in ranking.choose
        else [
            f"The batch limit is fixed at {ranking.cases.batch_size[0]:g}; --choose "
            f"{','.join([*ranking.choose, 'batch_size'])} frees it, and larger ones take fewer "
            "joules as a rule."
        ]
    )
    notes = [
        *packaged_note,
        *ranking.notes,
        *fixed,
        *_unseen_gpus(model, ranking),
        "TP, PP, EP and DP are degrees of tensor, pipeline, expert and data parallelism, B is the "
        "batch limit. A batch that is kept full is assumed; --rate R answers for a load.",
    ]
    best = ranking.cases.case(0)
    explanation = explain(model, best)
    if arguments.json:
        document = ranking.to_json()
        document["notes"] = [*explanation.notes, *notes]
        document["explanation"] = explanation.to_json()
        print_json(document)
        return
    print_paragraph(ranking.describe())
    print_paragraph(advice(ranking))
    print()
    header, rows = ranking_cells(ranking, arguments.top)
    print_wrapped(header, rows)
    more = len(ranking.served()) - len(rows)
    if more > 0:
        print(f"... and {more} more")
    print()
    for line in explanation.sentences[1:]:
        print_paragraph(line)
    for note in dict.fromkeys((*explanation.notes, *notes)):
        print_paragraph(f"Note: {note}")
    # One line for each layout, whose batch sizes fail for the same reason, and for each cap.
    layouts = set()
    ruled_out: dict[tuple[str, ...], tuple[str, str]] = {}
    for item in ranking.infeasible():
        layout = item.configuration.describe().partition(" B")[0]
        layouts.add((layout, item.gpu, item.precision))
        name, cap_w = item.configuration.describe(), item.configuration.power_cap_w
        if item.cause.startswith(("power cap", "clock")):
            clock = item.configuration.clock_mhz
            name = f"{f'{cap_w:g} W' if clock is None else f'{clock:g} MHz'} on {item.gpu}"
            layout = name
        ruled_out.setdefault((layout, item.gpu, item.precision), (name, item.reason))
    if ruled_out:
        print()
        print(
            f"Not feasible: {len(ranking.ruled_out)} configurations of {len(layouts)} "
            f"layout{'s' * (len(layouts) > 1)}"
            + (", among them" if len(ruled_out) > LISTED else "")
        )
        # Caps first: there are few, and layouts would crowd them out.
        lines = sorted(ruled_out.values(), key=lambda line: " on " not in line[0])
        for name, reason in lines[:LISTED]:
            print_paragraph(f"{name}: {reason}", "  ")
