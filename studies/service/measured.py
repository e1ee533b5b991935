"""The closed form against measured runs under load: ``python -m studies.service.measured``.

48 runs of vLLM under Poisson arrivals (powertrace-sim: Llama 8B and 70B, A100 and H100, TP 1-8,
0.125 to 4 requests/s). First from coefficients of full-batch rows of an H100 alone, then with 20 of
the rows themselves; idle watts as the runs had them, and as the catalog has them.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from energylens import catalog, table
from energylens.cases import Cases, FloatArray
from energylens.cli.judging import contestants
from energylens.dataset import Dataset
from energylens.evaluation.judge import evaluate
from energylens.fitting import fit
from energylens.latency import TimeModel
from energylens.latency_fitting import fit_latency
from energylens.model import EnergyModel
from energylens.service import JouleSteps, Lengths, Service, loaded_idle_w, slots, steady_state
from energylens.words import percent
from studies.command import command
from studies.results.runs import SEED, Data
from studies.results.tables import Results, markdown

RUNS = Path("powertrace") / "runs_under_load.csv"
OUTPUT_CV = 0.9  # of ShareGPT's answers
SLOTS = 256.0  # vLLM's default at the time; no run comes near
TRAIN, REPEATS = 20, 20
JUDGED = ("energylens", "energylens-datasheet", "extra-trees-on-datasheet", "log-linear")
RULES = ("fewest-gpus",)
KEPT = (
    "llm", "gpu", "precision", "tensor_parallel", "pipeline_parallel", "request_rate_per_s",
    "achieved_rate_per_s", "input_tokens", "output_tokens", "energy_per_request_j",
    "average_power_w", "ttft_s", "tpot_s", "request_latency_s", "boundary", "node_gpus", "engine",
    "source", "origin",
)  # fmt: skip
#: Watts of an idle GPU: those of the runs, those of the catalog, which quotes the same source, and
#: those of GPUs without weights, as the source read them too.
EMPTY_W = {"H100-SXM-80GB": 70.0, "A100-SXM-80GB": 62.0}
FOUND = "found in the rows"
IDLES = ("as measured", "of the catalog", "of an empty GPU", FOUND)


def runs(path: Path, idle: str) -> Dataset:
    """Read the runs with the idle watts of a kind."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    columns: dict[str, Sequence[object]] = {name: [row[name] for row in rows] for name in KEPT}
    if idle != FOUND:
        columns["loaded_idle_w"] = [_idle_w(row, idle) for row in rows]
    return table.from_columns(columns, path.name)


def _idle_w(row: dict[str, str], idle: str) -> str:
    if idle == "as measured":
        return row["loaded_idle_w_per_gpu"]
    return f"{EMPTY_W[row['gpu']] if 'empty' in idle else loaded_idle_w(catalog.gpu(row['gpu']))}"


def answered(energy: EnergyModel, time: TimeModel, cases: Cases) -> Service:
    """Work out each run from models that know full batches."""
    cases = cases.replace(batch_size=np.full(len(cases), SLOTS))
    each: Any = {"input_tokens": cases.input_tokens, "output_tokens": cases.output_tokens}
    lengths = Lengths(**each, output_cv=OUTPUT_CV)
    joules = JouleSteps.of(energy, cases, lengths, engines=np.arange(len(cases)))
    gpus = cases.tensor_parallel * cases.pipeline_parallel
    joules = replace(joules, idle_w=gpus * cases.loaded_idle_w)
    return steady_state(
        time.steps(cases, OUTPUT_CV),
        rate_per_s=cases.achieved_rate_per_s,
        lengths=lengths,
        slots=slots(cases, lengths),
        joules=joules,
    )


def _off(told: FloatArray, measured: FloatArray, mine: Any) -> dict[str, float]:
    mine = mine & (measured > 0)
    errors = np.abs(told[mine] / measured[mine] - 1.0)
    return {
        "rows": int(mine.sum()),
        "mape_mean_ratio": round(float(errors.mean()), 4),
        "mape_ratio": round(float(np.median(errors)), 4),
    }


def run(data: Data) -> dict[str, Any]:
    """Judge from full batches, and with some of the rows."""
    full = data.v3
    energy, time = fit(full), fit_latency(full)
    found: dict[str, Any] = {}
    for name in IDLES:
        rows = runs(data.folder / RUNS, name)
        gpus = np.array([gpu[:4] for gpu in rows.gpu_ids])
        entry: dict[str, Any] = {"dataset_digest": rows.digest}
        if name == FOUND:
            entry["loaded_idle_w"] = {
                gpu: round(watts, 1) for gpu, watts in fit(rows).loaded_idle_w.items()
            }
        else:
            state = answered(energy, time, rows.cases)
        for gpu in ("H100", "A100") if name != FOUND else ():
            entry[gpu] = {
                "joules": _off(state.energy_per_request_j, rows.energy_per_request_j, gpus == gpu),
                "TPOT": _off(state.tpot_s, rows.cases.tpot_s, gpus == gpu),
            }
        judged = evaluate(
            rows,
            contestants((*JUDGED, *RULES))[0],
            protocol="few-shot",
            choose=("tensor_parallel",),
            train=TRAIN,
            repeats=REPEATS,
            seed=SEED,
        )
        entry["few-shot"] = {
            key: {
                measure: round(score[measure], 4)
                for measure in ("mape_mean_ratio", "top1_ratio")
                if score[measure] is not None
            }
            for key, score in judged.to_json()["estimators"].items()
        }
        found[name] = entry
    return found


def from_full_batches(results: Results) -> str:
    """Make the table of what full batches tell of runs under load."""
    lines = []
    for idle, entry in results.items():
        for gpu in ("H100", "A100") if idle != FOUND else ():
            of = [
                f"{percent(entry[gpu][kind]['mape_mean_ratio'])} / "
                f"{percent(entry[gpu][kind]['mape_ratio'])} ({entry[gpu][kind]['rows']})"
                for kind in ("joules", "TPOT")
            ]
            lines.append([gpu, idle, *of])
    return markdown(("GPU", "idle watts", "joules", "TPOT"), lines)


def from_runs_under_load(results: Results) -> str:
    """Make the table of what twenty of the rows tell of the rest, over all draws."""
    lines = []
    for idle, entry in results.items():
        for name, score in entry["few-shot"].items():
            error = percent(score["mape_mean_ratio"]) if "mape_mean_ratio" in score else "-"
            lines.append([name, idle, error, percent(score["top1_ratio"])])
    header = ("contestant", "idle watts", "joules", "Top-1 over TP")
    return markdown(header, lines)


TABLES = {"load-full": from_full_batches, "load-few": from_runs_under_load}


def main() -> None:
    """Run, write the JSON and set the tables."""
    command(
        "studies.service.measured",
        run,
        results="studies/service/measured.json",
        page="docs/service.md",
        tables=TABLES,
    )


if __name__ == "__main__":
    main()
