"""Rerun docs/studies/extensions.md: ``python -m studies.extensions`` (some minutes).

Each extension by itself, and what ``--extend auto`` makes of the training rows, judged where it
should show: on all rows of a source, and on those that it is about.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from energylens.dataset import Dataset
from energylens.evaluation.judge import evaluate
from energylens.fitting import EnergyLens, FitOptions, paying_extensions
from energylens.formula import STRUCTURE
from energylens.words import percent
from studies.command import command
from studies.results.runs import FREE, SEED, Data
from studies.results.tables import Results, Tables, markdown

DRAWS = 20
TRAIN = 50
METRICS = ("mape_ratio", "regret_mean_ratio", "pairwise_ratio")
#: power_cap is not among them: no public row has a cap (docs/studies/structure-study.md).
VARIANTS: Mapping[str, tuple[str, ...]] = {
    STRUCTURE: (),
    "length": ("length",),
    "routing": ("routing",),
    "frames": ("frames",),
    "quantization": ("quantization",),
    "auto": ("auto",),
}


def _estimator(extend: tuple[str, ...]) -> Callable[[int], EnergyLens]:
    return lambda _: EnergyLens(options=FitOptions(extend=extend))


def sources(data: Data) -> dict[str, tuple[Dataset, tuple[str, ...]]]:
    """Rows and free knobs: whole sources, and the rows that an extension is about."""
    v3 = data.v3
    experts = v3.cases.of_llm(lambda m: float(m.experts is not None)) > 0
    layouts = (v3.cases.tensor_parallel > 1) | (v3.cases.pipeline_parallel > 1)
    narrow = v3.precision_ids != "bf16"
    seen = v3.cases.vision_tokens > 0
    return {
        "v3": (v3, FREE),
        "v3, TP > 1": (v3.take(layouts), FREE),
        "v3, experts": (v3.take(experts), FREE),
        "v3, image and video": (v3.take(seen), FREE),
        "v3, not BF16": (v3.take(narrow), FREE),
        "v2": (data.v2, FREE),
        "Argonne": (data.argonne, ("tensor_parallel",)),
        "energy-code-eval": (data.code, ("batch_size",)),
    }


def judge(dataset: Dataset, choose: tuple[str, ...]) -> dict[str, Any]:
    """Error and regret of every variant on one source, and what ``auto`` takes in of all rows."""
    estimators = {name: _estimator(extend) for name, extend in VARIANTS.items()}
    result: dict[str, Any] = {
        "rows": len(dataset),
        "auto": list(paying_extensions(dataset)),
        "protocols": {},
    }
    protocols: dict[str, dict[str, Any]] = {"few-shot": {"train": TRAIN, "repeats": DRAWS}}
    if len(np.unique(dataset.llm_ids)) > 1:
        protocols["unseen-llm"] = {}
    for protocol, options in protocols.items():
        judged = evaluate(
            dataset, estimators, protocol=protocol, choose=choose, seed=SEED, **options
        )
        result["protocols"][protocol] = {
            name: {key: score.to_json()[key] for key in METRICS}
            for name, score in judged.estimators.items()
        }
    return result


def table(results: Results, protocol: str) -> str:
    """One line for each source; error and regret of each variant."""
    rows = []
    for source, found in results.items():
        if protocol not in found["protocols"]:
            continue
        by = found["protocols"][protocol]
        rows.append(
            (
                source,
                str(found["rows"]),
                *(
                    f"{percent(by[v]['mape_ratio'])} / {percent(by[v]['regret_mean_ratio'], 2)}"
                    for v in VARIANTS
                ),
                ", ".join(found["auto"]) or "none",
            )
        )
    return markdown(("MAPE / regret", "rows", *VARIANTS, "auto takes, of all rows"), rows)


TABLES: Tables = {name: partial(table, protocol=name) for name in ("few-shot", "unseen-llm")}


def run(data: Data) -> Results:
    """Judge on every source."""
    results = {}
    for name, (dataset, choose) in sources(data).items():
        print(name, flush=True)
        results[name] = judge(dataset, choose)
    return results


def main() -> None:
    """Run, and set the tables."""
    command(
        "studies.extensions",
        run,
        results="studies/extensions/extensions.json",
        page="docs/studies/extensions.md",
        tables=TABLES,
    )


if __name__ == "__main__":
    main()
