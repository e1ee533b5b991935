"""Verbs that make and use a model: fit, explain and select."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from energylens.cli.console import (
    Subparsers,
    add_case,
    add_json,
    add_seed,
    add_tables,
    case_of,
    comma_list,
    not_negative_int,
    numbers,
    percent,
    positive_int,
    print_json,
    print_paragraph,
    print_table,
    read_tables,
)

if TYPE_CHECKING:
    from energylens.formula import EnergyModel

LISTED = 4  # infeasible layouts shown


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
        ),
    )
    parser.add_argument("model", metavar="MODEL", help="a model.json, or the word datasheet")
    add_case(parser)
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
        ),
    )
    parser.add_argument("model", metavar="MODEL", help="a model.json, or the word datasheet")
    add_case(parser)
    parser.add_argument(
        "--choose",
        type=comma_list,
        default=("tensor_parallel", "pipeline_parallel"),
        metavar="KNOBS",
        help="free knobs, a comma list of tensor_parallel, pipeline_parallel, expert_parallel, "
        "data_parallel, parallelism, batch_size, precision, gpu, power_cap "
        "(default: tensor_parallel,pipeline_parallel)",
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
    add_seed(parser)
    add_json(parser)


def add_fit_options(parser: argparse.ArgumentParser) -> None:
    """Add what says how to fit."""
    group = parser.add_argument_group("the fit")
    group.add_argument(
        "--per",
        type=comma_list,
        help="columns whose values get coefficients of their own: gpu, llm, precision "
        "(default: gpu, where there are several; none for one pooled fit)",
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
        "--measured-power",
        action="store_true",
        help="scale the terms by each row's measured power",
    )


def fit_options(arguments: argparse.Namespace) -> Any:
    """Make the options that :func:`add_fit_options` describes."""
    from energylens.fitting import FitOptions

    per = arguments.per
    return FitOptions(
        loss=arguments.loss,
        prior=arguments.prior,
        per=() if per == ("none",) else per,
        idle_power_w=arguments.idle_power_w,
        measured_power=arguments.measured_power,
        extend=arguments.extend,
    )


def _fit(arguments: argparse.Namespace) -> None:
    from dataclasses import asdict

    import numpy as np

    from energylens import fitting, modelfile
    from energylens.explanation import NORMAL_80
    from energylens.formula import datasheet

    options = fit_options(arguments)
    dataset = read_tables(arguments)
    model = fitting.fit(dataset, options)
    diagnosis = fitting.diagnose(model, dataset)
    if arguments.output:
        modelfile.save(model, arguments.output)
    spread = NORMAL_80 * np.sqrt(np.diag(model.pooled.covariance))
    low, high = np.maximum(model.pooled.theta - spread, 0.0), model.pooled.theta + spread
    if arguments.bootstrap:
        draws = fitting.bootstrap(
            dataset, options, samples=arguments.bootstrap, seed=arguments.seed
        )
        low, high = np.quantile(draws, [0.1, 0.9], axis=0)
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
                "dataset_digest": model.dataset_digest,
            }
        )
        return
    print(f"{len(dataset)} rows; coefficients for {gpu.id} (theta = 1: as its datasheet suggests)")
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
                "no" if term.name in diagnosis.undetermined else "yes",
            )
            for k, term in enumerate(terms)
        ],
    )
    print()
    print_diagnosis(diagnosis, dataset)
    if model.groups:
        print_paragraph(
            f"Coefficients of their own for {len(model.groups)} values of {' x '.join(model.per)}: "
            + ", ".join(model.groups)
            + "."
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
    if arguments.output:
        print(f"Model written to {arguments.output}.")


def print_diagnosis(diagnosis: Any, dataset: Any) -> None:
    """Print what a fit says of its own weakness."""
    print_paragraph(
        f"In-sample error: mean {percent(diagnosis.mape_ratio)}, median "
        f"{percent(diagnosis.median_ape_ratio)}, bias {percent(diagnosis.bias_ratio)}; "
        f"{diagnosis.effective_parameters:.1f} effective parameters, condition number "
        f"{diagnosis.condition_number:.0f}."
    )
    if diagnosis.at_bound:
        print_paragraph(f"At their bound of 0: {', '.join(diagnosis.at_bound)}.")
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
    """Read a model, or make the one that stands before the first measurement."""
    from energylens import fitting, modelfile

    return fitting.from_datasheet() if path == "datasheet" else modelfile.load(path)


def _explain(arguments: argparse.Namespace) -> None:
    from energylens.explanation import SUBJECTS, explain, joules

    model = _model(arguments.model)
    explanation = explain(model, case_of(arguments))
    if arguments.json:
        print_json(explanation.to_json())
        return
    print_paragraph(explanation.case)
    print()
    for note in explanation.notes:
        print_paragraph(f"Note: {note}")
        print()
    for sentence in explanation.sentences:
        print_paragraph(sentence)
    print()
    print_table(
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


def _select(arguments: argparse.Namespace) -> None:
    from energylens import catalog
    from energylens.errors import UsageError
    from energylens.explanation import explain, joules
    from energylens.selection import BATCH_SIZES, Candidates, Infeasible, Scenario, select

    model = _model(arguments.model)
    case = case_of(arguments)
    candidates = Candidates(
        gpus=tuple(catalog.gpu(name) for name in arguments.gpus),
        precisions=tuple(catalog.precision(name) for name in arguments.precisions),
        batch_size=tuple(map(float, arguments.batch_sizes or BATCH_SIZES)),
        power_caps_w=tuple(map(float, arguments.power_caps or ())),
    )
    if "power_cap" in arguments.choose and "power_cap" not in model.extensions:
        raise UsageError(
            f"{arguments.model} knows no power caps, so it cannot choose one: fit it with "
            "--extend power_cap, to rows that have power_cap_w"
        )
    ranking = select(
        model,
        Scenario(
            llm=case.llm,
            gpu=case.gpu,
            precision=case.precision,
            workload=case.workload,
            configuration=case.configuration,
            boundary=case.boundary,
            node_gpus=case.node_gpus,
            max_gpus=arguments.max_gpus,
        ),
        choose=arguments.choose,
        candidates=candidates,
        seed=arguments.seed,
    )
    best = ranking.cases.case(0)
    if arguments.json:
        document = ranking.to_json()
        document["explanation"] = explain(model, best).to_json()
        print_json(document)
        return
    print_paragraph(ranking.scenario.describe())
    print()
    several_gpus = len(ranking.cases.gpus) > 1
    several_precisions = len(ranking.cases.precisions) > 1
    rows = []
    for entry in ranking.entries(arguments.top):
        name = entry.configuration.describe()
        name += f" {entry.gpu}" if several_gpus else ""
        name += f" {entry.precision}" if several_precisions else ""
        interval = (
            "-"
            if entry.lower_j is None or entry.upper_j is None
            else f"{joules(entry.lower_j)} .. {joules(entry.upper_j)}"
        )
        rows.append(
            (
                name,
                str(entry.configuration.gpus),
                joules(entry.energy_per_request_j),
                interval,
                percent(entry.probability_best_ratio, 0),
            )
        )
    print_table(("configuration", "GPUs", "per request", "80 % interval", "is best"), rows)
    more = len(ranking) - len(rows)
    if more > 0:
        print(f"... and {more} more")
    print()
    winner = ranking.best
    saving = ranking.saving_against_worst_ratio
    sentence = f"Run {winner.configuration.describe()}"
    if several_gpus or several_precisions:
        sentence += f" in {winner.precision} on {winner.gpu}"
    sentence += f": {joules(winner.energy_per_request_j)} a request"
    if saving and len(ranking) > 1:
        worst = float(ranking.energy_per_request_j[-1])
        sentence += (
            f", {joules(worst - winner.energy_per_request_j)} ({saving:.0%}) less than the "
            f"worst feasible choice, {ranking.cases.case(-1).configuration.describe()}"
        )
    if winner.probability_best_ratio is not None and len(ranking) > 1:
        sentence += (
            f". It is the best with probability {winner.probability_best_ratio:.0%}; choosing "
            f"it is expected to cost {percent(ranking.expected_regret_ratio)} over the true best"
        )
    print_paragraph(sentence + ".")
    explanation = explain(model, best)
    for line in explanation.sentences[1:]:
        print_paragraph(line)
    for note in explanation.notes:
        print_paragraph(f"Note: {note}")
    # One line for each layout: the batch sizes of one layout fail for the same reason.
    ruled_out: dict[tuple[str, str, str], Infeasible] = {}
    for item in ranking.infeasible():
        layout = item.configuration.describe().partition(" B")[0]
        ruled_out.setdefault((layout, item.gpu, item.precision), item)
    if ruled_out:
        print()
        print(
            f"Not feasible: {len(ranking.ruled_out)} configurations of {len(ruled_out)} "
            f"layout{'s' * (len(ruled_out) > 1)}"
            + (", among them" if len(ruled_out) > LISTED else "")
        )
        for item in list(ruled_out.values())[:LISTED]:
            print_paragraph(f"{item.configuration.describe()}: {item.reason}", "  ")
