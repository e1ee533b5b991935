"""Rerun docs/studies/transfer.md: ``python -m studies.transfer`` (under a minute).

ML.ENERGY v2 ran the same LLMs on A100 and on H100. The law is fitted on one of them and asked for
the joules of the other, with the coefficients of one kind of work scaled by other numbers of the
datasheet than the law's. The law was frozen before, by these rows among others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from energylens import catalog
from energylens.cases import FloatArray, IntArray
from energylens.dataset import Dataset
from energylens.fitting import FitOptions, fit
from energylens.formula import NAMES, datasheet, design, energy
from energylens.records import Gpu
from energylens.words import percent
from studies.command import command
from studies.results.runs import FREE, Data
from studies.results.tables import Results, Tables, markdown
from studies.structure.__main__ import architectures, pairwise
from studies.transfer.unseen import unseen

TYPES = ("A100-SXM-40GB", "H100-SXM-80GB")
SAMPLES = 200
SEED = 0

READING = ("decode_weights", "decode_cache")
MULTIPLYING = ("prefill_compute", "vision", "decode_compute")
WAITING = ("prefill_launch", "decode_launch", "decode_sequence", "pipeline_parallel")

Scaling = Callable[[Gpu], float]

#: How the joules of one unit of work may follow the datasheet; the law's own comes first.
SCALINGS: Mapping[str, Mapping[str, Scaling]] = {
    "reading": {
        "TDP / bandwidth": lambda g: g.tdp_w / g.memory_bandwidth_bytes_per_s,
        "1 / bandwidth": lambda g: 1.0 / g.memory_bandwidth_bytes_per_s,
        "TDP": lambda g: g.tdp_w,
        "nothing": lambda _: 1.0,
    },
    "multiplying": {
        "TDP / FLOP/s": lambda g: g.tdp_w / g.bf16_flop_per_s,
        "1 / FLOP/s": lambda g: 1.0 / g.bf16_flop_per_s,
        "TDP": lambda g: g.tdp_w,
        "nothing": lambda _: 1.0,
    },
    "waiting": {
        "TDP": lambda g: g.tdp_w,
        "nothing": lambda _: 1.0,
    },
}
KINDS = {"reading": READING, "multiplying": MULTIPLYING, "waiting": WAITING}
SHOWN = ("decode_launch", "decode_weights", "decode_compute", "decode_sequence", "decode_cache")


def ratio(scaling: Scaling, source: Gpu, target: Gpu) -> float:
    """What a number of the target is, in those of the source."""
    return scaling(target) / scaling(source)


def carried(theta: FloatArray, rows: Dataset, factors: FloatArray) -> FloatArray:
    """Joules by coefficients of another GPU type, each times a factor; shape (n,)."""
    joules: FloatArray = energy(design(rows.cases) * factors, theta)
    return joules


def scores(predicted: FloatArray, rows: Dataset) -> dict[str, float]:
    """Errors and order of zero-shot predictions."""
    measured = rows.energy_per_request_j
    return {
        "mape_ratio": float(np.abs(predicted / measured - 1.0).mean()),
        "bias_ratio": float(np.exp(np.median(np.log(predicted / measured))) - 1.0),
        "pairwise_ratio": pairwise(measured, predicted, rows.scenarios(FREE)),
    }


def zero_shot(of: Mapping[str, Dataset]) -> dict[str, Any]:
    """Fit one GPU type, predict the other: one kind of work scaled otherwise at a time."""
    result: dict[str, Any] = {}
    for source, target in (TYPES, TYPES[::-1]):
        theta = fit(of[source], FitOptions(per=())).pooled.theta
        here, there = catalog.gpu(source), catalog.gpu(target)
        for kind, scalings in SCALINGS.items():
            law, *_ = scalings.values()
            for name, scaling in scalings.items():
                factors = np.ones(len(NAMES))
                other = ratio(scaling, here, there) / ratio(law, here, there)
                factors[[NAMES.index(term) for term in KINDS[kind]]] = other
                result.setdefault(f"{kind}: {name}", {})[f"{source} to {target}"] = scores(
                    carried(theta, of[target], factors), of[target]
                )
        nothing = datasheet((here,))[0] / datasheet((there,))[0]
        result.setdefault("nothing follows the datasheet", {})[f"{source} to {target}"] = scores(
            carried(theta, of[target], nothing), of[target]
        )
    return result


def values(rows: Dataset, chosen: IntArray) -> FloatArray:
    """Coefficients in joules, fitted to some rows by themselves, without a prior."""
    part = rows.take(chosen)
    theta = fit(part, FitOptions(prior="none", per=())).pooled.theta
    joules: FloatArray = theta * datasheet(part.cases.gpus)[0]
    return joules


def measured_ratios(of: Mapping[str, Dataset]) -> dict[str, Any]:
    """What one unit of work costs on H100 in units of A100, from two separate fits.

    Architectures are drawn with replacement, the same ones for both, ``SAMPLES`` times.
    """
    kinds = {gpu: architectures(rows) for gpu, rows in of.items()}
    names = np.unique(np.concatenate(list(kinds.values())))
    rng = np.random.default_rng(SEED)
    draws = []
    for _ in range(SAMPLES):
        drawn = rng.choice(names, len(names))
        sides = [
            values(of[gpu], np.concatenate([np.flatnonzero(kinds[gpu] == k) for k in drawn]))
            for gpu in TYPES
        ]
        draws.append(sides)
    a100, h100 = np.moveaxis(np.array(draws), 1, 0)
    whole = [values(of[gpu], np.arange(len(of[gpu]))) for gpu in TYPES]
    here, there = (catalog.gpu(name) for name in TYPES)
    result = {}
    for name in SHOWN:
        k = NAMES.index(name)
        both = (a100[:, k] > 0) & (h100[:, k] > 0)
        low, high = np.quantile(h100[both, k] / a100[both, k], [0.1, 0.9])
        kind = next(kind for kind, terms in KINDS.items() if name in terms)
        result[name] = {
            "joules": [float(side[k]) for side in whole],
            "ratio": float(whole[1][k] / whole[0][k]) if whole[0][k] > 0 else None,
            "interval": [float(low), float(high)],
            "determined_ratio": float(both.mean()),
            "scalings": {n: ratio(s, here, there) for n, s in SCALINGS[kind].items()},
        }
    return result


def on_both(rows: Dataset) -> dict[str, Dataset]:
    """Rows of each GPU type, of the LLMs that ran on both."""
    of = {gpu: rows.take(rows.gpu_ids == gpu) for gpu in TYPES}
    common = list(set.intersection(*(set(part.llm_ids.tolist()) for part in of.values())))
    return {gpu: part.take(np.isin(part.llm_ids, common)) for gpu, part in of.items()}


def run(data: Data) -> dict[str, Any]:
    """All of the study, as plain values."""
    of = on_both(data.v2)
    return {
        "rows": {gpu: len(part) for gpu, part in of.items()},
        "llms": len(np.unique(of[TYPES[0]].llm_ids)),
        "seed": SEED,
        "samples": SAMPLES,
        "zero_shot": zero_shot(of),
        "ratios": measured_ratios(of),
        "unseen": unseen(data),
    }


def zero_table(results: Results) -> str:
    """One line for each way of scaling."""
    forward, back = f"{TYPES[0]} to {TYPES[1]}", f"{TYPES[1]} to {TYPES[0]}"
    first = {f"{kind}: {next(iter(scalings))}" for kind, scalings in SCALINGS.items()}
    rows = [
        (
            f"**{name}**" if name in first else name,
            *(
                cell
                for way in (forward, back)
                for cell in (
                    percent(by[way]["mape_ratio"]),
                    f"{100 * by[way]['bias_ratio']:+.0f} %",
                    percent(by[way]["pairwise_ratio"]),
                )
            ),
        )
        for name, by in results["zero_shot"].items()
    ]
    return markdown(
        (
            "joules of ... follow ...",
            *("A100 to H100: MAPE", "bias", "pairwise"),
            *("H100 to A100: MAPE", "bias", "pairwise"),
        ),
        rows,
    )


def ratio_table(results: Results) -> str:
    """One line for each coefficient."""
    rows = [
        (
            f"`{name}`",
            *(f"{value:.3g}" for value in found["joules"]),
            "-" if found["ratio"] is None else f"{found['ratio']:.2f}",
            f"{found['interval'][0]:.2f} .. {found['interval'][1]:.2f}",
            f"{100 * found['determined_ratio']:.0f} %",
            "; ".join(f"{n}: {value:.2f}" for n, value in found["scalings"].items()),
        )
        for name, found in results["ratios"].items()
    ]
    return markdown(
        (
            "coefficient",
            *("A100, J", "H100, J", "H100 / A100", "80 % interval", "found in both"),
            "what the datasheets would have",
        ),
        rows,
    )


def unseen_table(results: Results) -> str:
    """One line for each direction of each source."""
    rows = [
        (
            source,
            f"{way['from']} to {way['to']}",
            f"{way['rows'][0]} of {way['llms']}",
            percent(way["mape_ratio"]),
            percent(way["datasheet_mape_ratio"]),
            percent(way["covered_ratio"]),
        )
        for source, ways in results["unseen"].items()
        for way in ways
    ]
    return markdown(
        ("source", "direction", "rows of LLMs", "the fit's MAPE", "datasheet's", "80 % covers"),
        rows,
    )


TABLES: Tables = {"unseen": unseen_table, "zero": zero_table, "ratios": ratio_table}


def main() -> None:
    """Run, and set the tables."""
    command(
        "studies.transfer",
        run,
        results="studies/transfer/transfer.json",
        page="docs/studies/transfer.md",
        tables=TABLES,
    )


if __name__ == "__main__":
    main()
