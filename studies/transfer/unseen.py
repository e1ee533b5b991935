"""Fitted on one GPU type and asked about another, by everything that the model does about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

from energylens import files, table
from energylens.dataset import Dataset
from energylens.fitting import fit, from_datasheet
from studies.results.runs import Data

COVERAGE = 0.8
LEAST_ROWS = 5
COMPOSED = "operators/composed_pass_energy.csv"
LLMS = {
    "Llama-3.1-8B": "meta-llama/Llama-3.1-8B-Instruct",
    "Llama-3.1-70B": "meta-llama/Llama-3.1-70B-Instruct",
    "Qwen3-32B": "Qwen/Qwen3-32B",
}
GPUS = {"h200_sxm": "H200-SXM-141GB", "b200_sxm": "B200", "gb200": "GB200"}
FORMATS = {"bfloat16": "bf16", "fp8": "fp8", "fp8_block": "fp8-block"}
ENGINE = {"engine": "vllm", "engine_version": "0.22.0"}


def composed(path: Path, formats: Sequence[str]) -> Dataset:
    """Requests whose joules are sums of measured operators (derived; no host, no waiting).

    A request of L tokens that generates L: one pass over its prompt, and L steps whose joules go
    evenly from those at a context of L to those at 2 L.
    """
    raw = files.read_table(path)
    passes: dict[tuple[str, ...], float] = {}
    names = ("gpu", "dtype", "model", "tp", "batch", "length", "phase")
    joules = raw.columns["energy_j_all_gpus"]
    for *key, energy_j in zip(*(raw.columns[name] for name in names), joules, strict=True):
        passes[tuple(map(str, key))] = float(str(energy_j))
    rows: dict[str, list[object]] = {}
    for (gpu, dtype, llm, tp, batch, length, phase), prefill_j in passes.items():
        first, last = (
            passes.get((gpu, dtype, llm, tp, batch, str(context), "decode"))
            for context in (int(length), 2 * int(length))
        )
        if phase != "prefill" or dtype not in formats or first is None or last is None:
            continue
        row: dict[str, object] = {
            "llm": LLMS[llm],
            "gpu": GPUS[gpu],
            "precision": FORMATS[dtype],
            "tensor_parallel": tp,
            "batch_size": batch,
            "mean_batch_size": batch,
            "input_tokens": length,
            "output_tokens": length,
            "energy_per_request_j": (prefill_j + int(length) * (first + last) / 2) / int(batch),
            "source": "derived",
            **ENGINE,
        }
        for name, value in row.items():
            rows.setdefault(name, []).append(value)
    return table.from_columns(rows, str(path))


def by_gpu(rows: Dataset) -> dict[str, Dataset]:
    """Rows of each GPU type that has a few."""
    of = {gpu: rows.take(rows.gpu_ids == gpu) for gpu in dict.fromkeys(rows.gpu_ids)}
    return {gpu: part for gpu, part in of.items() if len(part) >= LEAST_ROWS}


def sources(data: Data) -> dict[str, Dataset]:
    """Rows of several GPU types: served, and composed of operators."""
    argonne = data.read("argonne", "argonne/power.csv")
    node = np.array(argonne.cases.node_boundary)
    return {
        "ML.ENERGY v2": data.v2,
        "Argonne, node": argonne.take(node),
        "Argonne, GPUs in use": argonne.take(~node),
        "operators, BF16 (derived)": composed(data.folder / COMPOSED, ["bfloat16"]),
        "operators, all formats (derived)": composed(data.folder / COMPOSED, list(FORMATS)),
    }


def directions(of: Mapping[str, Dataset]) -> list[dict[str, Any]]:
    """Errors of the fit and of the datasheet, from each GPU type to each other."""
    found = []
    plain = from_datasheet()
    for here, there in permutations(of, 2):
        asked = of[there]
        measured = asked.energy_per_request_j
        model = fit(of[here])
        low, high = model.interval_energy_j(asked.cases, COVERAGE)
        errors = [
            float(np.abs(m.predict_energy_j(asked.cases) / measured - 1).mean())
            for m in (model, plain)
        ]
        found.append(
            {
                "from": here,
                "to": there,
                "rows": [len(of[here]), len(asked)],
                "llms": len(set(of[here].llm_ids)),
                "mape_ratio": errors[0],
                "datasheet_mape_ratio": errors[1],
                "covered_ratio": float(((low <= measured) & (measured <= high)).mean()),
            }
        )
    return found


def unseen(data: Data) -> dict[str, Any]:
    """All directions of all sources."""
    return {name: directions(by_gpu(rows)) for name, rows in sources(data).items()}
