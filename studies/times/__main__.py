"""Rerun the times of docs/service.md: ``python -m studies.times`` (three minutes).

Request latency of full batches on rows left out: 50 rows at random, 20 draws, seed 0, or every LLM
left out in turn; batch and lengths as observed. Each source is judged as ``energylens evaluate
--target latency`` judges it.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from energylens import catalog, table
from energylens.baselines import ESTIMATORS
from energylens.dataset import Dataset
from energylens.evaluation.judge import evaluate
from energylens.latency_fitting import fit_latency
from energylens.time_contestants import as_target, time_contestants
from energylens.words import percent
from studies.command import command
from studies.results.runs import FREE, HINDSIGHT, SEED, Data
from studies.results.tables import Results, markdown

TRAIN, REPEATS = 50, 20
LARGE_BATCH = 16
JUDGED = (
    "energylens",
    "energylens-no-factors",
    "extra-trees-on-datasheet",
    "gradient-boosting-on-datasheet",
    "log-linear",
)

#: (tensor, pipeline, expert parallel) of a layout that the table names on n GPUs.
LAYOUTS: Mapping[str, Any] = {
    "Tensor Parallelism": lambda n: (n, 1, 1),
    "TP": lambda n: (n, 1, 1),
    "Pipeline Parallelism": lambda n: (1, n, 1),
    "PP": lambda n: (1, n, 1),
    "EP": lambda n: (n, 1, n),
    "Hybird Tensor (2) and Pipeline (2) Parallelism": lambda _: (2, 2, 1),
    "Hybrid TP = 2 and PP = 2": lambda _: (2, 2, 1),
    "Hybrid TP = 2 and EP = 2": lambda n: (n, 1, 2),
}


def argonne_layouts(path: Path) -> Dataset:
    """Latencies of TP, PP and EP layouts on A100s (Argonne's bench); no joules were read."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    degrees = [LAYOUTS[row["parallelism"]](int(row["n_gpus"])) for row in rows]
    columns: dict[str, Sequence[object]] = {
        "llm": [row["model"] for row in rows],
        "gpu": [catalog.gpu(row["gpu"]).id for row in rows],
        "precision": ["fp16"] * len(rows),
        "tensor_parallel": [tensor for tensor, _, _ in degrees],
        "pipeline_parallel": [pipeline for _, pipeline, _ in degrees],
        "expert_parallel": [expert for _, _, expert in degrees],
        "batch_size": [float(row["batch_size"]) for row in rows],
        "input_tokens": [float(row["io_len"]) for row in rows],
        "output_tokens": [float(row["io_len"]) for row in rows],
        "request_latency_s": [float(row["latency_s"]) for row in rows],
        "engine": ["tensorrt-llm"] * len(rows),
        "boundary": ["active_gpus"] * len(rows),
        "source": ["published"] * len(rows),
    }
    return table.from_columns(columns, path.name, joules=False)


def sources(data: Data) -> dict[str, tuple[Dataset, tuple[str, ...]]]:
    """Rows by the name of their source, and what is free to choose among them."""
    v2 = data.v2
    return {
        "ML.ENERGY v3, H100": (data.v3, FREE),
        "ML.ENERGY v2, H100": (v2.take(v2.gpu_ids == "H100-SXM-80GB"), FREE),
        "ML.ENERGY v2, A100": (v2.take(v2.gpu_ids == "A100-SXM-40GB"), FREE),
        "energy-code-eval, A100": (data.code, ("batch_size",)),
        "Argonne layouts, A100": (
            argonne_layouts(data.folder / "argonne" / "tp_pp_latency_no_power.csv"),
            ("tensor_parallel",),
        ),
    }


def study(
    data: Data, names: Sequence[str] = JUDGED, only: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """Judge times on each source."""
    found: dict[str, dict[str, Any]] = {}
    for name, (dataset, free) in sources(data).items():
        if only and name not in only:
            continue
        options: dict[str, dict[str, Any]] = {"few-shot": {"train": TRAIN, "repeats": REPEATS}}
        if "v3" in name or "v2" in name:
            options["unseen-llm"] = {}
        rows = as_target(dataset, "latency")
        entry: dict[str, Any] = {"rows": len(rows), "dataset_digest": dataset.digest}
        for protocol, more in options.items():
            made = {
                key: make
                for key, make in time_contestants("latency", ESTIMATORS).items()
                if key in names
            }
            asked = {**HINDSIGHT, **more}
            judged = evaluate(rows, made, protocol=protocol, choose=free, seed=SEED, **asked)
            entry[protocol] = {
                key: {
                    "mape_ratio": round(score["mape_ratio"], 4),
                    "interval_coverage_ratio": score["interval_coverage_ratio"],
                }
                for key, score in judged.to_json()["estimators"].items()
            }
        if (dataset.cases.pipeline_parallel > 1).sum() > TRAIN // 2:
            entry["deep"] = deep_pipelines(dataset)
        found[name] = entry
    return found


def deep_pipelines(dataset: Dataset) -> dict[str, Any]:
    """Error on pipelines at a large batch apart, with 50 rows of any kind at random."""
    rng = np.random.default_rng(SEED)
    cases, errors = dataset.cases, []
    deep = (cases.pipeline_parallel > 1) & (cases.batch_size >= LARGE_BATCH)
    for _ in range(REPEATS):
        taken = np.zeros(len(dataset), dtype=np.bool_)
        taken[rng.choice(len(dataset), TRAIN, replace=False)] = True
        model = fit_latency(dataset.take(taken), "latency")
        asked = deep & ~taken
        told = model.predict_s(cases.take(asked), "latency")
        errors.append(float(np.mean(np.abs(told / cases.request_latency_s[asked] - 1.0))))
    # With all other rows known: measured over predicted, by LLM.
    model = fit_latency(dataset.take(~deep), "latency")
    measured = cases.request_latency_s[deep]
    ratios = measured / model.predict_s(cases.take(deep), "latency")
    llms = dataset.llm_ids[deep]
    return {
        "rows": int(deep.sum()),
        "mape_ratio": round(float(np.median(errors)), 4),
        "all_others_known": {
            "mape_mean_ratio": round(float(np.mean(np.abs(1.0 / ratios - 1.0))), 4),
            "measured_over_predicted": {
                str(llm): {
                    "rows": int((llms == llm).sum()),
                    "least": round(float(ratios[llms == llm].min()), 2),
                    "most": round(float(ratios[llms == llm].max()), 2),
                }
                for llm in np.unique(llms)
            },
        },
    }


def times(results: Results) -> str:
    """Make the table of docs/service.md."""
    lines = []
    for name, entry in results.items():
        for protocol, said in (("few-shot", "50 rows"), ("unseen-llm", "LLM left out")):
            if protocol in entry:
                scores = entry[protocol]
                covers = scores["energylens"]["interval_coverage_ratio"]
                errors = [percent(scores[key]["mape_ratio"]) for key in JUDGED]
                lines.append([name, f"{entry['rows']}", said, *errors, percent(covers, 0)])
    return markdown(("source", "rows", "judged on", *JUDGED, "covers"), lines)


def main() -> None:
    """Run, write the JSON and set the table."""
    command(
        "studies.times",
        study,
        results="studies/times/times.json",
        page="docs/service.md",
        tables={"times": times},
    )


if __name__ == "__main__":
    main()
