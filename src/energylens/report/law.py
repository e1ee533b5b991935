"""The law with its numbers, the structure that a search found, and the fit's weak points."""

from __future__ import annotations

import re
import textwrap
from typing import TYPE_CHECKING

from energylens.dataset import Dataset
from energylens.formula import OVERLAPS, TERMS, datasheet
from energylens.model import EnergyModel
from energylens.report import judged, naming
from energylens.report.document import (
    LISTED,
    Block,
    Equation,
    Facts,
    Figure,
    Items,
    Prose,
    Section,
    Table,
)
from energylens.words import WIDTH, listed, percent, plural, short_name, si

if TYPE_CHECKING:
    from energylens.discovery import Front, FrontPoint, FrontTerm
    from energylens.fitting import Diagnostics


_GREEK = {
    "lambda": "λ", "beta": "β", "phi": "φ", "sigma": "σ", "kappa": "κ", "tau": "τ", "pi": "π",
    "iota": "ι", "alpha": "α", "gamma": "γ", "delta": "δ", "epsilon": "ε", "eta": "η", "mu": "μ",
    "nu": "ν", "rho": "ρ", "chi": "χ", "psi": "ψ", "omega": "ω", "theta": "θ", "zeta": "ζ",
    "ell": "ℓ",
}  # fmt: skip


def law(model: EnergyModel, dataset: Dataset, diagnostics: Diagnostics | None) -> Section:
    """Set the law with its numbers, and what they stand for."""
    gpus = dataset.cases.gpus
    used = sorted(set(dataset.cases.gpu_index.tolist()), key=lambda g: gpus[g].id)
    expected = datasheet(gpus, model.terms)
    pooled = model.pooled
    low, high = pooled.interval_80()
    undetermined = diagnostics.undetermined if diagnostics else {}
    by_gpu = "gpu" in model.per and set(model.per) <= {"gpu", "engine"}
    per_gpu = [(model.groups.get(gpus[g].id, pooled) if by_gpu else pooled, g) for g in used]
    rows = []
    for k, term in enumerate(model.terms):
        rows.append(
            (
                _symbol(term.symbol),
                naming.term_title(term),
                *(si(float(fitted.theta[k] * expected[g, k]), term.unit) for fitted, g in per_gpu),
                f"{pooled.theta[k]:.2f}",
                f"{low[k]:.2f} to {high[k]:.2f}",
            )
        )
    blocks: list[Block] = [
        _equation(),
        Prose(
            text="E is the energy of a request in joules. N counts what the LLM, the layout, "
            "the batch and the lengths make the GPUs do in prefill and in decode: bytes read, "
            "operations done, kernels launched, bytes sent. "
            + (
                "What stands under one root happens at the same time: the larger counts, and the "
                "smaller hardly shows. The sum goes over what stands under none. "
                if OVERLAPS
                else ""
            )
            + "D is what one such count should cost "
            "by the GPU's datasheet alone, and θ what the rows say of that: 1 where the datasheet "
            "is right. What one count does cost, in joules, is θ times D."
            + (
                " Each term is scaled by the measured power of its row."
                if model.measured_power
                else ""
            )
        ),
        Table(
            title=f"The {len(model.terms)} coefficients",
            caption=f"Fitted to {plural(pooled.rows, 'row')}. The interval holds θ with 80 % "
            "probability."
            + (
                " θ is that of all GPU types together; θD is with each type's own, listed below."
                if by_gpu
                else ""
            ),
            columns=(
                "Symbol",
                "Term",
                *(f"θD on {gpus[g].id}" for _, g in per_gpu),
                "θ",
                "80 % interval of θ",
            ),
            rows=tuple(rows),
        ),
        Table(
            title="What they stand for, and what the rows say of them",
            caption="Determined loosely: the 80 % interval reaches down to half of θ or less.",
            columns=("Symbol", "What it costs to do", "What the rows say"),
            rows=tuple(
                (_symbol(term.symbol), term.meaning, _verdict(k, model, undetermined))
                for k, term in enumerate(model.terms)
            ),
        ),
    ]
    if model.groups:
        keys = sorted(model.groups)
        blocks.append(
            Table(
                title=f"θ for each {_grouping(model)}",
                caption="Drawn toward the pooled values above where rows are few."
                + (f" {LISTED} of {len(keys)} are listed." if len(keys) > LISTED else ""),
                columns=("Group", "Rows", *(_symbol(term.symbol) for term in model.terms)),
                rows=tuple(
                    (
                        key,
                        f"{model.groups[key].rows}",
                        *(f"{value:.2f}" for value in model.groups[key].theta),
                    )
                    for key in keys[:LISTED]
                ),
            )
        )
    return Section(name="law", title="The law", blocks=tuple(blocks), open_blocks=2)


def _grouping(model: EnergyModel) -> str:
    return " and ".join(
        {"gpu": "GPU type", "llm": "LLM", "engine": "engine version"}.get(name, name)
        for name in model.per
    )


def _equation() -> Equation:
    """Write the law down as `formula.py` has it: sums, and roots over what overlaps."""
    roots = [[TERMS[k].symbol for k in pair] for pair in OVERLAPS]
    tex = [r"E = \sum_k \, e_k"]
    tex += [rf"\sqrt{{{' + '.join(f'e_{{{symbol}}}^2' for symbol in pair)}}}" for pair in roots]
    words = ["E = sum of e_k"]
    words += [f"sqrt({' + '.join(f'e_{_symbol(symbol)}^2' for symbol in pair)})" for pair in roots]
    return Equation(
        tex=(" + ".join(tex), r"e_k = \theta_k \, D_k \, N_k, \quad \theta_k \geq 0"),
        lines=("\n    + ".join(words), "e_k = θ_k D_k N_k, θ_k >= 0"),
    )


def _symbol(tex: str) -> str:
    return re.sub(r"\\([a-z]+)", lambda match: _GREEK.get(match.group(1), match.group(1)), tex)


def _verdict(k: int, model: EnergyModel, undetermined: dict[str, str]) -> str:
    term = model.terms[k]
    told = model.pooled.determined(model.terms, undetermined)[k]
    if told == "no":
        guess = model.options.get("prior", "datasheet") == "datasheet"
        return (
            f"not determined{', the datasheet stands in' if guess else ''}; "
            f"it would take {term.needs}"
        )
    if told == "at bound":
        return f"at its bound of {term.lower_bound:g}: other terms explain its share"
    if told == "loosely":
        return f"determined loosely; it would help to have {term.needs}"
    return "determined"


def structure(front: Front, dataset: Dataset) -> Section:
    """Show what a search found: the front, its knee as a formula, and what is not settled."""
    knee, reference = front.knee, front.reference
    best = min(point.held_out_mape_ratio for point in front.points)
    lead = (
        f"A search over {front.candidates} candidates ({front.engine} engine, seed {front.seed}) "
        f"found {plural(len(front.points), 'expression')} in {plural(front.rows, 'row')}, from "
        f"simple to complex. The knee has {plural(len(knee.terms), 'term')} and is off by "
        f"{percent(knee.held_out_mape_ratio)} on rows left out of search and fit alike "
        f"({front.folds} folds by {front.groups}); the best of any size by {percent(best)}."
    )
    if reference is not None:
        lead += (
            f" On the same folds the {reference.name}, with {plural(reference.terms, 'term')}, is "
            f"off by {percent(reference.held_out_mape_ratio)}."
        )
    if front.dataset_digest != dataset.digest:
        lead += f" The search saw other rows than those shown ({front.dataset_digest[:16]})."
    blocks: list[Block] = [
        Prose(text=lead),
        Figure.of(judged.discovery_front(front)),
        Table(
            title="The front",
            caption="The knee is marked. Errors and choices are on held-out rows, ± one standard "
            f"error; free are {listed(name.replace('_', ' ') for name in front.choose)}. "
            f"Stability: the share of {plural(front.samples, 'resample')} that find the least "
            "settled of its terms.",
            columns=(
                "Complexity",
                "Terms",
                "Held-out error",
                "In sample",
                "Top-1",
                "Mean regret",
                "Stability",
                "Expression",
            ),
            rows=tuple(_point_row(point) for point in front.points),
            highlight=_complexity(knee),
        ),
        Equation(
            name="knee",
            tex=tuple(
                line if k == 0 else rf"\quad {line}" for k, line in enumerate(knee.latex_lines())
            ),
            lines=tuple(
                "\n      ".join(
                    textwrap.wrap(f"{'+' if k else 'E ='} {_term_words(term)}", WIDTH - 12)
                )
                for k, term in enumerate(knee.terms)
            ),
        ),
        Table(
            title="What its letters stand for",
            caption="Each is determined by the case before anything is measured; E is in joules "
            "per request.",
            columns=("Symbol", "Name", "Unit", "Meaning"),
            rows=tuple(
                (_symbol(symbol), name, unit, meaning)
                for name, (symbol, unit, meaning) in front.legend().items()
                if name in knee.expression.names
            ),
        ),
        Table(
            title="The terms of the knee",
            caption="Share: of the energy, mean over the rows. In resamples: the share of searches "
            "over resampled rows that find the term; where they do not, what stands in its place.",
            columns=("Term", "Coefficient", "Share", "In resamples", "Meaning", "In its place"),
            rows=tuple(
                (
                    term.expression.text,
                    f"{term.coefficient:.3g} {term.unit}",
                    percent(term.share_ratio, 0),
                    percent(term.stability_ratio, 0),
                    term.meaning or "-",
                    "; ".join(f"{t} ({percent(r, 0)})" for t, r in term.stand_ins.items()) or "-",
                )
                for term in knee.terms
            ),
        ),
    ]
    if front.cautions:
        blocks.append(Items(title="What these rows do not settle", items=front.cautions))
    if front.notes:
        blocks.append(Items(items=front.notes))
    return Section(
        name="structure", title="The structure that a search found", blocks=tuple(blocks)
    )


def _term_words(term: FrontTerm) -> str:
    body = term.expression.text
    return f"{term.coefficient:.3g} * {f'({body})' if term.expression.is_sum else body}"


def _complexity(point: FrontPoint) -> str:
    return f"{point.complexity}{' (knee)' if point.knee else ''}"


def _point_row(point: FrontPoint) -> tuple[str, ...]:
    known = [t.stability_ratio for t in point.terms if t.stability_ratio is not None]
    return (
        _complexity(point),
        f"{len(point.terms)}",
        f"{percent(point.held_out_mape_ratio)} ± {100 * point.held_out_error_ratio:.1f}",
        percent(point.in_sample_mape_ratio),
        percent(point.top1_ratio),
        percent(point.regret_mean_ratio, 2),
        percent(min(known), 0) if known else "-",
        "E = " + " + ".join(_term_words(term) for term in point.terms),
    )


def fit(model: EnergyModel, dataset: Dataset, diagnostics: Diagnostics) -> Section:
    """Say how well the law fits its rows, and where it is weak."""
    d, pooled = diagnostics, model.pooled
    options = ", ".join(f"{name} {value}" for name, value in model.options.items() if value)
    condition = (
        "some terms cannot be told apart by these rows"
        if d.condition_number > 1000
        else "low enough to tell the terms apart"
    )
    facts = (
        (
            "Rows",
            f"{d.rows:,}",
            f"determine {d.effective_parameters:.1f} of {len(model.terms)} coefficients",
        ),
        (
            "Mean error on these rows",
            percent(d.mape_ratio),
            f"median {percent(d.median_ape_ratio)}, bias {percent(d.bias_ratio)}",
        ),
        ("Condition number", f"{d.condition_number:.3g}", condition),
        (
            "Spread left within a scenario",
            percent(pooled.within_ratio),
            f"{percent(pooled.between_ratio)} between scenarios",
        ),
    )
    blocks: list[Block] = [Facts(facts=facts)]
    titles = {term.name: naming.term_title(term) for term in model.terms}
    weak = [f"{titles[name]} is at its bound of 0." for name in d.at_bound]
    weak += [f"{said[0].upper()}{said[1:]}" for said in d.below_physics.values()]
    weak += [
        f"{titles[name]} is not determined by these rows; it would take {needs}."
        for name, needs in d.undetermined.items()
    ]
    weak.append(
        f"Row {d.leverage_row} ({_row_words(dataset, d.leverage_row)}) pulls hardest on its own "
        f"prediction: it decides {percent(d.leverage_max_ratio, 0)} of it."
    )
    blocks.append(Items(title="What these rows leave open", items=tuple(weak)))
    predicted = model.predict_energy_j(dataset.cases)
    blocks.append(
        Table(
            title="The rows it describes worst",
            caption="Numbers count rows from 0, in the order of the table.",
            columns=(
                "Row",
                "What",
                (word := naming.known_as(dataset)).capitalize(),
                "Predicted",
                f"Predicted / {word}",
            ),
            rows=tuple(
                (
                    f"{row}",
                    _row_words(dataset, row),
                    si(float(dataset.energy_per_request_j[row]), "J"),
                    si(float(predicted[row]), "J"),
                    f"{ratio:.2f}",
                )
                for row, ratio in d.worst
            ),
        )
    )
    blocks.append(
        Prose(
            text=f"Structure {model.structure}; {options or 'default options'}; coefficients "
            f"{'for each ' + _grouping(model) if model.per else 'pooled'}; fitted by "
            f"energylens {model.energylens_version or 'of unknown version'}."
        )
    )
    return Section(
        name="fit", title="The fit, and its weak points", blocks=tuple(blocks), open_blocks=0
    )


def _row_words(dataset: Dataset, row: int) -> str:
    case = dataset.cases.case(row)
    task = str(dataset.task[row])
    name = naming.configuration_name(case.configuration)
    return f"{short_name(case.llm.id)} {case.precision.id}, {name}" + (f", {task}" if task else "")
