"""Rerun docs/studies/structure-study.md: ``python -m studies.structure`` (a minute).

Each form is fitted and judged on five sources: few-shot (50 rows drawn at random, 20 draws) and
with each architecture left out. Only the choosing half of ML.ENERGY v3 is shown to the choice.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from energylens import files
from energylens.cases import FloatArray
from energylens.dataset import Dataset
from energylens.formula import STRUCTURE
from energylens.words import percent
from studies.results.runs import Data
from studies.results.tables import Results, Tables, fill, markdown
from studies.structure.forms import Form, variants
from studies.structure.split import choosing

ROOT = Path(__file__).resolve().parents[2]
DRAWS = 20
TRAIN = 50


def sources(data: Data) -> dict[str, tuple[Dataset, tuple[str, ...]]]:
    """Rows and free knobs of each source."""
    v3, v2 = data.v3, data.v2
    free = ("parallelism", "batch_size")
    chosen = choosing(v3)
    return {
        "v3 choosing": (v3.take(chosen), free),
        "v2 H100": (v2.take(v2.gpu_ids == "H100-SXM-80GB"), free),
        "v2 A100": (v2.take(v2.gpu_ids == "A100-SXM-40GB"), free),
        "Argonne": (data.argonne, ("tensor_parallel",)),
        "code A100": (data.code, ("batch_size",)),
        "v3 judging": (v3.take(~chosen), free),
    }


def architectures(dataset: Dataset) -> FloatArray:
    """Number the architectures: LLMs that differ by name alone share one."""
    return dataset.cases.of_llm(lambda m: m.counted_parameters + 1e-3 * m.layers)


def pairwise(energy: FloatArray, predicted: FloatArray, scenarios: list[Any]) -> float:
    """Share of candidate pairs ordered rightly."""
    right = total = 0.0
    for rows in scenarios:
        i, j = np.triu_indices(len(rows), 1)
        measured = energy[rows][i] - energy[rows][j]
        guessed = predicted[rows][i] - predicted[rows][j]
        right += float((measured * guessed > 0).sum() + 0.5 * (guessed == 0).sum())
        total += len(i)
    return right / total


def judge(form: Form, dataset: Dataset, choose: tuple[str, ...]) -> dict[str, float]:
    """Few-shot and leave-architecture-out errors of one form on one source."""
    x, y = form.design(dataset.cases), dataset.energy_per_request_j
    scenarios = dataset.scenarios(choose)
    few = []
    for draw in range(DRAWS):
        order = np.random.default_rng([0, draw]).permutation(len(y))
        theta = form.fit(x[order[:TRAIN]], y[order[:TRAIN]])
        rest = order[TRAIN:]
        few.append(np.abs(form.predict(x[rest], theta) / y[rest] - 1.0).mean())
    result = {"few_shot_mape_ratio": float(np.mean(few))}
    kinds = architectures(dataset)
    if len(np.unique(kinds)) > 1:
        predicted = np.empty(len(y))
        for kind in np.unique(kinds):
            out = kinds == kind
            predicted[out] = form.predict(x[out], form.fit(x[~out], y[~out]))
        result["left_out_mape_ratio"] = float(np.abs(predicted / y - 1.0).mean())
        result["left_out_pairwise_ratio"] = pairwise(y, predicted, scenarios)
    else:
        predicted = form.predict(x, form.fit(x, y))
        result["left_out_pairwise_ratio"] = pairwise(y, predicted, scenarios)
    return result


def unseen_batch(form: Form, dataset: Dataset) -> dict[str, float]:
    """Fit each LLM and format on one side of batch 32, judge the other: median MAPE."""
    x, y = form.design(dataset.cases), dataset.energy_per_request_j
    keys = np.array(
        [f"{a} {b}" for a, b in zip(dataset.llm_ids, dataset.precision_ids, strict=True)]
    )
    small = dataset.cases.batch_size <= 32
    result = {}
    for name, side in (("larger", small), ("smaller", ~small)):
        errors = []
        for key in np.unique(keys):
            fitted, judged = (keys == key) & side, (keys == key) & ~side
            if fitted.sum() >= 3 and judged.any():
                theta = form.fit(x[fitted], y[fitted])
                errors.append(np.abs(form.predict(x[judged], theta) / y[judged] - 1.0).mean())
        result[f"{name}_mape_ratio"] = float(np.median(errors))
    return result


def table(columns: Mapping[str, tuple[str, str]]) -> Callable[[Results], str]:
    """One line for each form, one column for each pair of source and metric."""

    def of(results: Results) -> str:
        rows = []
        for form, by in results.items():
            cells = [percent(by.get(source, {}).get(m)) for source, m in columns.values()]
            rows.append((f"**{form}**" if form == STRUCTURE else form, *cells))
        return markdown(("form", *columns), rows)

    return of


SOURCES = ("v3 choosing", "v2 H100", "v2 A100", "Argonne", "code A100", "v3 judging")
TABLES: Tables = {
    "few-shot": table({name: (name, "few_shot_mape_ratio") for name in SOURCES}),
    "left-out": table(
        {name: (name, "left_out_mape_ratio") for name in SOURCES if name != "Argonne"}
    ),
    "pairwise": table({name: (name, "left_out_pairwise_ratio") for name in SOURCES}),
    "unseen-batch": table(
        {f"{side} batches": ("code A100", f"{side}_mape_ratio") for side in ("larger", "smaller")}
    ),
}


def main() -> None:
    """Run, and set the tables."""
    parser = argparse.ArgumentParser(prog="python -m studies.structure")
    parser.add_argument("--write-only", action="store_true", help="run nothing, set the tables")
    parser.add_argument("--forms", help="a comma list; the others keep their results")
    arguments = parser.parse_args()
    path = ROOT / "studies" / "structure" / "structure-study.json"
    results: dict[str, Any] = files.read_json(path) if path.exists() else {}
    if not arguments.write_only:
        data = Data(Path(os.environ.get("ENERGYLENS_DATA", ROOT.parent / "shared" / "data")))
        parts = sources(data)
        forms = variants()
        for name in (arguments.forms or ",".join(forms)).split(","):
            print(name, flush=True)
            form = forms[name]
            results[name] = {
                source: judge(form, dataset, choose) for source, (dataset, choose) in parts.items()
            }
            results[name]["code A100"] |= unseen_batch(form, data.code)
            files.write_json(path, results)
    document = ROOT / "docs" / "studies" / "structure-study.md"
    document.write_text(fill(document.read_text(), results, TABLES))


if __name__ == "__main__":
    main()
