"""The verb fit."""

from __future__ import annotations

import argparse
import re
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from energylens.cli.console import (
    Subparsers,
    add_json,
    add_seed,
    add_tables,
    comma_list,
    not_negative_int,
    positive,
    print_json,
    print_paragraph,
    print_table,
    read_tables,
)
from energylens.errors import UsageError
from energylens.viewing import picked
from energylens.words import percent

if TYPE_CHECKING:
    from energylens.dataset import Dataset
    from energylens.model import EnergyModel

NAMED = 6  # engine versions named in a note
ILL_CONDITIONED = 1000.0


def add_verbs(verbs: Any) -> None:
    """Add the verb."""
    parser = Subparsers(verbs).add(
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
        "--idle-power-w",
        type=positive,
        metavar="W",
        help="known draw of an idle GPU: fixes that term",
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
        **picked(arguments, "idle_power_w measured_power extend"),
    )


def _fit(arguments: argparse.Namespace) -> None:
    import numpy as np

    from energylens import fitting, latency_terms, modelfile
    from energylens.formula import datasheet
    from energylens.latency_fitting import fitted_times

    options = fit_options(arguments)
    dataset = _rows(arguments)
    model = replace(fitting.fit(dataset, options), time=fitted_times(dataset))
    if not arguments.accept_misfit:
        fitting.refuse_misfit(model, dataset)
    notes = _row_notes(dataset, model)
    diagnosis = fitting.diagnose(model, dataset)
    if arguments.output:
        modelfile.save(model, arguments.output)
    if arguments.latex:
        print(model.latex())
        return
    low, high = model.pooled.interval_80()
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
                        zip(latency_terms.NAMES, model.time.pooled.theta.tolist(), strict=True)
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
    determined = model.pooled.determined(terms, diagnosis.undetermined)
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
                determined[k],
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
            f"Row {diagnosis.leverage_row} (from 0) decides "
            f"{percent(diagnosis.leverage_max_ratio, 0)} of its own prediction: no other "
            "row is like it."
        )
    row, ratio = diagnosis.worst[0]
    print_paragraph(
        f"Worst row: {dataset.llm_ids[row]}, "
        f"{dataset.cases.case(row).configuration.describe()}, predicted {ratio:.2f} times "
        "what was measured."
    )
