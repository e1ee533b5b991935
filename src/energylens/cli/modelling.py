"""Verbs that make and use a model: fit, explain and select."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from energylens.cli import attributing, front_form
from energylens.cli.console import (
    BATCH_SIZE,
    Subparsers,
    add_case,
    add_json,
    add_seed,
    add_tables,
    case_of,
    comma_list,
    gpu_of,
    not_negative_int,
    numbers,
    positive_int,
    precision_of,
    print_json,
    print_paragraph,
    print_table,
    read_tables,
)
from energylens.cli.serving import (
    add_load_options,
    answer,
    lengths_of,
    model_for,
    print_times,
    refuse_without_rate,
    time_law,
)
from energylens.errors import ExitCode
from energylens.words import WIDTH, joules, percent

if TYPE_CHECKING:
    from energylens.capacity import Memory
    from energylens.dataset import Dataset
    from energylens.model import EnergyModel
    from energylens.records import Case
    from energylens.selection import Limit, Ranking

LISTED = 4  # infeasible layouts shown
NAMED = 6  # engine versions named in a note
ILL_CONDITIONED = 1000.0
MOST_GPUS = 32_767  # in one degree of parallelism, as far as memory is accounted for
DEGREES = ("tensor_parallel", "pipeline_parallel", "expert_parallel", "data_parallel")

# What fixes a knob that --choose can free: argument, column that frees it, value by default.
FIXED: tuple[tuple[str, str, Any], ...] = (
    *((degree, degree, 1) for degree in DEGREES),
    ("batch_size", "batch_size", None),
    ("precision", "precision_index", None),
    ("power_cap_w", "power_cap_w", None),
)
# What lists the values of a free knob: argument, column that frees it, knob.
LISTS = (
    ("batch_sizes", "batch_size", "batch_size"),
    ("gpus", "gpu_index", "gpu"),
    ("precisions", "precision_index", "precision"),
    ("power_caps", "power_cap_w", "power_cap"),
)


def add_verbs(verbs: Any) -> None:
    """Add the verbs of this module."""
    subparsers = Subparsers(verbs)
    parser = subparsers.add(
        "fit",
        "fit the twelve coefficients to measured rows",
        _fit,
        (
            "energylens fit runs.csv -o model.json",
            "energylens fit runs.csv --where gpu=H100-SXM-80GB -o h100.json",
            "energylens fit runs.csv --per llm,precision -o model.json",
        ),
    )
    add_tables(parser)
    parser.add_argument("-o", "--output", metavar="FILE", help="where to write the model")
    parser.add_argument(
        "--latex", action="store_true", help="print the fitted law as LaTeX, with its numbers"
    )
    add_fit_options(parser)
    parser.add_argument(
        "--bootstrap",
        type=not_negative_int,
        default=0,
        metavar="N",
        help="take the intervals from N resamples",
    )
    add_seed(parser)
    add_json(parser)

    parser = subparsers.add(
        "explain",
        "say what a configuration costs, term by term, and why",
        _explain,
        (
            "energylens explain model.json --llm Qwen/Qwen3-32B --gpu H100 "
            "--tensor-parallel 2 --batch-size 64 --input-tokens 500 --output-tokens 300",
            "energylens explain model.json --llm Qwen/Qwen3-32B --gpu H100 --batch-size 64 "
            "--input-tokens 500 --output-tokens 300 --request 1800,240",
        ),
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a model.json, a tidy table (fitted as fit does), or the word datasheet",
    )
    add_case(parser)
    attributing.add_option(parser)
    add_json(parser)

    parser = subparsers.add(
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
    _add_selection(parser)

    parser = subparsers.add(
        "verify",
        "measure the choice under load, correct it, choose again",
        _select,
        (
            "energylens verify --llm meta-llama/Llama-3.3-70B-Instruct --precision fp8 --gpu H100 "
            "--rate 3 --tpot 50ms --input-tokens 2000 --output-tokens 300",
            "energylens verify decision.toml --measured runs.csv",
        ),
    )
    _add_selection(parser)
    parser.add_argument(
        "--measured",
        metavar="RUNS.csv",
        help="what was measured so far: configuration (as TP4 B64), energy_per_request_j, tpot_s, "
        "ttft_s, request_latency_s",
    )
    parser.add_argument(
        "--runs",
        type=positive_int,
        default=3,
        metavar="N",
        help="runs after which the best measured one is the answer (default: 3)",
    )


def _add_selection(parser: argparse.ArgumentParser) -> None:
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
        "data_parallel, parallelism, batch_size, precision, gpu, power_cap "
        "(default: tensor_parallel,pipeline_parallel; with --rate data_parallel and batch_size "
        "too)",
    )
    parser.add_argument(
        "--max-gpus", type=int, default=8, metavar="N", help="GPUs to use at most (default: 8)"
    )
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


def add_fit_options(parser: argparse.ArgumentParser) -> None:
    """Add what says how to fit."""
    group = parser.add_argument_group("the fit")
    group.add_argument(
        "--per",
        type=comma_list,
        help="columns whose values get coefficients of their own: gpu, llm, precision, engine "
        "(default: gpu and engine, where there are several; none for one pooled fit)",
    )
    group.add_argument(
        "--loss", default="relative", help="relative (default), log, huber or absolute"
    )
    group.add_argument(
        "--prior",
        default="datasheet",
        help="datasheet (default: it speaks where rows do not) or none",
    )
    group.add_argument(
        "--idle-power-w", type=float, metavar="W", help="known draw of an idle GPU: fixes that term"
    )
    group.add_argument(
        "--extend",
        type=comma_list,
        default=(),
        metavar="NAMES",
        help="extensions of the formula: length, routing, frames, quantization, power_cap, or auto "
        "for those that pay on rows left out",
    )
    group.add_argument(
        "--accept-misfit",
        action="store_true",
        help="keep a fit although its rows are several times what it predicts",
    )
    group.add_argument(
        "--measured-power",
        action="store_true",
        help="scale the terms by each row's measured power",
    )


def fit_options(arguments: argparse.Namespace) -> Any:
    """Make the options that :func:`add_fit_options` describes."""
    from energylens.errors import UsageError
    from energylens.fitting import FitOptions

    per = arguments.per
    if "auto" in arguments.extend and len(arguments.extend) > 1:
        raise UsageError(
            "--extend auto stands alone, for it finds the extensions that pay itself; given "
            + ",".join(arguments.extend)
        )
    return FitOptions(
        loss=arguments.loss,
        prior=arguments.prior,
        per=() if per == ("none",) else per,
        idle_power_w=arguments.idle_power_w,
        measured_power=arguments.measured_power,
        extend=arguments.extend,
    )


def _fit(arguments: argparse.Namespace) -> None:
    from dataclasses import asdict, replace

    import numpy as np

    from energylens import fitting, latency, modelfile
    from energylens.explanation import LOOSE_RATIO, NORMAL_80
    from energylens.formula import datasheet

    options = fit_options(arguments)
    dataset = _rows(arguments)
    model = replace(fitting.fit(dataset, options), time=time_law(dataset))
    if not arguments.accept_misfit:
        fitting.refuse_misfit(model, dataset)
    notes = _row_notes(dataset, model)
    diagnosis = fitting.diagnose(model, dataset)
    if arguments.output:
        modelfile.save(model, arguments.output)
    if arguments.latex:
        print(model.latex())
        return
    spread = NORMAL_80 * np.sqrt(np.diag(model.pooled.covariance))
    low, high = np.maximum(model.pooled.theta - spread, 0.0), model.pooled.theta + spread
    if arguments.bootstrap:
        draws = fitting.bootstrap(
            dataset, options, samples=arguments.bootstrap, seed=arguments.seed
        )
        # Rows that say nothing of a coefficient say so again in every resample.
        told = [term.name not in diagnosis.undetermined for term in model.terms]
        low, high = np.where(told, np.quantile(draws, [0.1, 0.9], axis=0), (low, high))
    gpu = dataset.cases.gpus[int(np.bincount(dataset.cases.gpu_index).argmax())]
    terms = model.terms
    expected = datasheet((gpu,), terms)[0]
    if arguments.json:
        print_json(
            {
                "output": arguments.output,
                "rows": len(dataset),
                "sources": dict(model.sources),
                "gpu": gpu.id,
                "parameters": {
                    term.name: {
                        "theta": float(model.pooled.theta[k]),
                        "interval_80": [float(low[k]), float(high[k])],
                        "value": float(model.pooled.theta[k] * expected[k]),
                        "unit": term.unit,
                        "meaning": term.meaning,
                    }
                    for k, term in enumerate(terms)
                },
                "groups": {
                    name: dict(zip((t.name for t in terms), c.theta.tolist(), strict=True))
                    for name, c in model.groups.items()
                },
                "diagnostics": asdict(diagnosis),
                "extensions": list(model.extensions),
                "time": None
                if model.time is None
                else {
                    "rows": model.time.pooled.rows,
                    "targets": dict(model.time.targets),
                    "parameters": dict(
                        zip(latency.NAMES, model.time.pooled.theta.tolist(), strict=True)
                    ),
                },
                "dataset_digest": model.dataset_digest,
                "notes": notes,
            }
        )
        return
    print(f"{len(dataset)} rows; coefficients for {gpu.id} (theta = 1: as its datasheet suggests)")
    if model.groups:
        print_paragraph(
            f"theta is that of all rows together; values are what it makes of {gpu.id}, which has "
            "the most. Predictions use the coefficients of each group of rows, named below."
        )
    print()
    print_table(
        ("coefficient", "theta", "80 % interval", "value", "unit", "determined"),
        [
            (
                term.name,
                f"{model.pooled.theta[k]:.2f}",
                f"{low[k]:.2f} .. {high[k]:.2f}",
                f"{model.pooled.theta[k] * expected[k]:.3g}",
                term.unit,
                "no"
                if term.name in diagnosis.undetermined
                else "at 0"
                if not model.pooled.theta[k]
                else "loosely"
                if low[k] <= LOOSE_RATIO * model.pooled.theta[k]
                else "yes",
            )
            for k, term in enumerate(terms)
        ],
    )
    print()
    print_diagnosis(diagnosis, dataset)
    if "misfit_ratio" in model.options:
        print_paragraph(f"Note: {model.caution}")
    if model.groups:
        print_paragraph(
            f"Coefficients of their own for {len(model.groups)} values of {' x '.join(model.per)}: "
            + ", ".join(model.groups)
            + '. --json and the model file list them, under "groups".'
        )
    if options.extend == ("auto",):
        print_paragraph(
            f"--extend auto took in: {', '.join(model.extensions)}."
            if model.extensions
            else "--extend auto took in nothing: no extension pays on rows left out."
        )
    capped = int(dataset.cases.capped.sum())
    if capped and "power_cap" not in model.extensions:
        print_paragraph(
            f"{capped} of the rows have a power cap, which this fit ignores: --extend power_cap "
            "takes it in, --extend auto if it pays."
        )
    if not dataset.carries_accuracy_claim.all():
        print_paragraph(
            "Some rows are neither measured nor published: no accuracy claim may rest on this fit."
        )
    for note in notes:
        print_paragraph(f"Note: {note}")
    if model.time is not None:
        print_paragraph(
            f"Times: {model.time.pooled.rows} of the rows have one, and the time law is fitted to "
            "them too (--json lists its coefficients); select --rate answers under load."
        )
    if arguments.output:
        print(f"Model written to {arguments.output}.")


def _rows(arguments: argparse.Namespace) -> Dataset:
    """Read the rows to fit to, and check the options that only they can tell about."""
    import numpy as np

    from energylens.errors import UsageError

    dataset = read_tables(arguments)
    idle_w = arguments.idle_power_w
    weakest = min(
        (dataset.cases.gpus[i] for i in np.unique(dataset.cases.gpu_index)),
        key=lambda gpu: gpu.tdp_w,
    )
    if idle_w is not None and idle_w > weakest.tdp_w:
        raise UsageError(
            f"--idle-power-w must be below the TDP of {weakest.id}, {weakest.tdp_w:g} W, "
            f"not {idle_w:g}"
        )
    return dataset


def _row_notes(dataset: Dataset, model: EnergyModel) -> list[str]:
    """Say what the rows of one fit should not have in them."""
    import numpy as np

    from energylens.cases import Cases
    from energylens.dataset import group_rows

    notes = []
    columns: list[Any] = [dataset.llm_ids, dataset.gpu_ids, dataset.precision_ids]
    columns += [getattr(dataset.cases, name) for name in Cases.column_names()]
    columns += [getattr(dataset, name) for name in dataset.column_names()]
    columns = [column.astype(str) if column.dtype == object else column for column in columns]
    again = len(dataset) - len(np.unique(group_rows(columns)))
    if again:
        notes.append(
            f"{again} row{'s are' if again > 1 else ' is'} there twice: the same as another row in "
            "every column, and counted twice by the fit."
        )
    versions = sorted(
        model.scope.engines, key=lambda name: [int(n) for n in re.findall(r"[0-9]+", name)]
    )
    if len(versions) > 1:
        named = ", ".join(versions[:NAMED]) + ", ..." * (len(versions) > NAMED)
        advice = (
            "each is fitted by itself; name yours to explain and select with --engine"
            if "engine" in model.per
            else "add engine to --per for coefficients of their own"
        )
        notes.append(
            f"Rows of {len(versions)} engine versions ({named}): joules differ between them "
            f"(docs/results.md), so {advice}."
        )
    return notes


def print_diagnosis(diagnosis: Any, dataset: Any) -> None:
    """Print what a fit says of its own weakness."""
    print_paragraph(
        f"In-sample error: mean {percent(diagnosis.mape_ratio)}, median "
        f"{percent(diagnosis.median_ape_ratio)}, bias {percent(diagnosis.bias_ratio)}; "
        f"{diagnosis.effective_parameters:.1f} effective parameters, condition number "
        + (
            f"{diagnosis.condition_number:.0f}."
            if diagnosis.condition_number < ILL_CONDITIONED
            else "above 1000: some of the terms cannot be told apart by these rows."
        )
    )
    if diagnosis.at_bound:
        print_paragraph(
            f"At their bound of 0: {', '.join(diagnosis.at_bound)}. Other terms explain their "
            "share of these rows, which does not say that they cost nothing."
        )
    for said in diagnosis.below_physics.values():
        print_paragraph(f"{said[0].upper()}{said[1:]}")
    for name, needs in diagnosis.undetermined.items():
        print_paragraph(f"These rows do not determine {name}; what would: {needs}.")
    if diagnosis.leverage_max_ratio > 0.5:
        print_paragraph(
            f"Row {diagnosis.leverage_row} (from 0) decides {diagnosis.leverage_max_ratio:.0%} of "
            "its own prediction: no other row is like it."
        )
    row, ratio = diagnosis.worst[0]
    print_paragraph(
        f"Worst row: {dataset.llm_ids[row]}, "
        f"{dataset.cases.case(row).configuration.describe()}, predicted {ratio:.2f} times "
        "what was measured."
    )


def _model(path: str) -> EnergyModel:
    """Read a model, take a packaged one, or make the one that stands before any measurement."""
    return model_for(path, "", None)[0]


def _case(arguments: argparse.Namespace, model: EnergyModel) -> Case:
    """Make the case, whose name and format must not contradict each other."""
    from dataclasses import replace

    from energylens import catalog
    from energylens.answering import engine_meant
    from energylens.errors import UsageError

    for name in DEGREES:
        if getattr(arguments, name) > MOST_GPUS:
            raise UsageError(
                f"{_flag(name)} must be {MOST_GPUS} or less, not {getattr(arguments, name)}"
            )
    llm, stated = catalog.split_precision(arguments.llm)
    if arguments.precision and stated and arguments.llm != llm:
        given = catalog.checkpoint_precision(arguments.llm, arguments.precision).id
        if given != stated:
            raise UsageError(
                f"--precision is {given}, but the name {arguments.llm} says {stated}: leave one "
                f"of the two out (the LLM without a format is {llm})"
            )
    case = case_of(arguments)
    return replace(case, engine=engine_meant(case.engine, model))


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _explain(arguments: argparse.Namespace) -> ExitCode | None:
    from energylens import capacity
    from energylens.errors import UsageError
    from energylens.explanation import SUBJECTS, explain
    from energylens.time_explained import explain_time, explanation_document

    if front_form.is_form(arguments.model):
        if arguments.request:
            raise UsageError(
                f"{arguments.model} is a form without terms, by which a batch cannot be shared: "
                "leave --request out"
            )
        front_form.explain_by(arguments)
        return None
    model = _model(arguments.model)
    case = _case(arguments, model)
    requests = attributing.requests_of(arguments, model, case)
    explanation, times = explain(model, case), explain_time(model, case)
    memory = capacity.memory(case)
    code = ExitCode.DONE if memory.runs else ExitCode.IMPOSSIBLE
    if arguments.json:
        document = explanation_document(explanation, memory, times)
        if requests:
            document["requests"] = [request.to_json() for request in requests]
        print_json(document)
        return code
    print_paragraph(explanation.case)
    print()
    for note in explanation.notes:
        print_paragraph(f"Note: {note}")
        print()
    for sentence in explanation.sentences:
        print_paragraph(sentence)
    print_paragraph(_memory_line(memory))
    print()
    _print_wrapped(
        ("where the joules go", "prefill", "decode", "share", "80 % interval"),
        [
            (
                SUBJECTS[t.name],
                joules(t.prefill_j) if t.prefill_j else "-",
                joules(t.decode_j) if t.decode_j else "-",
                f"{t.total_j / explanation.energy_per_request_j:.0%}",
                f"{joules(t.low_j)} .. {joules(t.high_j)}",
            )
            for t in sorted(explanation.terms, key=lambda t: -t.total_j)
            if t.total_j > 0
        ],
    )
    if times is not None:
        print()
        print_times(times)
    if requests:
        print()
        attributing.print_requests(requests, case)
    return code


def _memory_line(memory: Memory) -> str:
    """Account for the memory of the fullest GPU, as engines print it."""
    gib = 2.0**30
    line = (
        f"Memory of the fullest GPU: weights {memory.weights_bytes / gib:.1f} GiB, activations "
        f"and runtime {memory.activation_bytes / gib:.1f}, cache {memory.cache_bytes / gib:.1f}"
    )
    if 0.0 < memory.cache_tokens < float("inf"):
        line += f" ({memory.cache_tokens:,.0f} tokens)"
    return f"{line}, of {memory.available_bytes / gib:.1f} that may be used."


def _print_wrapped(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table whose first column goes on below where it is too wide."""
    rest = [max(len(row[i]) for row in [header, *rows]) for i in range(1, len(header))]
    room = max(WIDTH - sum(rest) - 2 * len(rest), len(header[0]))
    lines: list[Sequence[str]] = []
    for first, *cells in rows:
        head, *more = textwrap.wrap(first, room, subsequent_indent="  ", break_on_hyphens=False)
        lines.append((head, *cells))
        lines += [(line, *("" for _ in rest)) for line in more]
    print_table(header, lines)


def _knobs(arguments: argparse.Namespace) -> None:
    """Refuse what would have no effect, name what is missing, and fill in the defaults."""
    from energylens.dataset import freed_columns
    from energylens.errors import UsageError

    freed = freed_columns(arguments.choose)
    for name, column, default in FIXED:
        given = getattr(arguments, name)
        if given is not None and column in freed:
            knob = {"power_cap_w": "power_cap"}.get(name, name)
            shown = f"{given:g}" if isinstance(given, float) else given
            raise UsageError(
                f"{_flag(name)} {shown} has no effect: {knob} is free (--choose); give --choose "
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
                f"{_flag(name)} has no effect: {knob} is not free; add {knob} to --choose, or "
                f"leave the option out{hint}"
            )
        if column in freed and not getattr(arguments, name) and name != "batch_sizes":
            raise UsageError(
                f"to choose the {knob} freely, the candidates must list some: give {_flag(name)}"
            )


def _caps_seen(model: EnergyModel) -> tuple[Limit, ...]:
    """Limit free power caps to those that the fit can speak of."""
    from energylens import catalog
    from energylens.errors import UnknownNameError
    from energylens.selection import CapsSeen

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


def _select(arguments: argparse.Namespace) -> None:
    from energylens.cli import decision_file
    from energylens.deciding import DEFAULT_CHOOSE as UNDER_LOAD
    from energylens.errors import UsageError
    from energylens.explanation import explain
    from energylens.selection import BATCH_SIZES, DEFAULT_CHOOSE, Candidates, Scenario, select
    from energylens.showing import advice, ranking_cells

    if arguments.model and arguments.model.lower().endswith((".toml", ".yaml", ".yml")):
        decision_file.read(arguments)
    under_load = arguments.rate is not None
    if arguments.verb == "verify" and not under_load:
        raise UsageError("verify measures a choice under load: --rate must be given")
    if arguments.choose is None:
        arguments.choose = UNDER_LOAD if under_load else DEFAULT_CHOOSE
    if "gpu" in arguments.choose:
        if arguments.gpu and "," in arguments.gpu and not arguments.gpus:
            arguments.gpus = comma_list(arguments.gpu)
            arguments.gpu = None
        if arguments.gpu is None and arguments.gpus:
            arguments.gpu = arguments.gpus[0]
    for name in ("llm", "gpu") + (() if under_load else ("input_tokens", "output_tokens")):
        if getattr(arguments, name) is None:
            raise UsageError(f"{_flag(name)} must be given")
    if front_form.is_form(arguments.model):
        if under_load:
            raise UsageError(f"{arguments.model} is a form of energy alone: leave --rate out")
        refuse_without_rate(arguments)
        _knobs(arguments)
        front_form.select_by(arguments)
        return
    model, packaged_note = model_for(arguments.model, arguments.gpu, arguments.engine)
    if under_load:
        lengths = lengths_of(arguments)
        arguments.input_tokens = lengths.input_tokens
        arguments.output_tokens = lengths.output_tokens
    else:
        refuse_without_rate(arguments)
    _knobs(arguments)
    case = _case(arguments, model)
    if under_load:
        answer(arguments, model, case, lengths, packaged_note)
        return
    model = model.choosing(arguments.choose)  # the explanation speaks of the same joules
    candidates = Candidates(
        gpus=tuple(gpu_of(arguments, name) for name in arguments.gpus),
        precisions=tuple(precision_of(arguments, name) for name in arguments.precisions),
        batch_size=tuple(map(float, arguments.batch_sizes or BATCH_SIZES)),
        power_caps_w=tuple(map(float, arguments.power_caps or ())),
    )
    if "power_cap" in arguments.choose and "power_cap" not in model.extensions:
        raise UsageError(
            f"choosing a power cap takes a model that knows some, and "
            f"{arguments.model or 'the packaged one'} knows "
            "none: fit one with --extend power_cap to rows that have power_cap_w"
        )
    ranking = select(
        model,
        Scenario.of(case, arguments.max_gpus),
        choose=arguments.choose,
        candidates=candidates,
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
        "A batch that is kept full is assumed; --rate R answers for a load.",
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
    print()
    header, rows = ranking_cells(ranking, arguments.top)
    _print_wrapped(header, rows)
    more = len(ranking.served()) - len(rows)
    if more > 0:
        print(f"... and {more} more")
    print()
    print_paragraph(advice(ranking))
    for line in explanation.sentences[1:]:
        print_paragraph(line)
    for note in (*explanation.notes, *notes):
        print_paragraph(f"Note: {note}")
    # One line for each layout, whose batch sizes fail for the same reason, and for each cap.
    layouts = set()
    ruled_out: dict[tuple[str, ...], tuple[str, str]] = {}
    for item in ranking.infeasible():
        layout = item.configuration.describe().partition(" B")[0]
        layouts.add((layout, item.gpu, item.precision))
        name, cap_w = item.configuration.describe(), item.configuration.power_cap_w
        if item.cause.startswith("power cap"):
            name = f"{cap_w:g} W on {item.gpu}"
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
        lines = sorted(ruled_out.values(), key=lambda line: " W on " not in line[0])
        for name, reason in lines[:LISTED]:
            print_paragraph(f"{name}: {reason}", "  ")
