"""Argonne's LLM-Inference-Bench: power and latency of fixed batches and lengths.

Source: github.com/argonne-lcf/LLM-Inference-Bench, its figures' data gathered into one CSV.
Power was averaged over a second run of the same batch. See ``docs/data-format.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from energylens import files
from energylens.errors import TableError
from energylens.importers.collecting import (
    Collector,
    Fields,
    Imported,
    Unusable,
    refuse_idle_assumptions,
)
from energylens.records import Boundary, Source

#: GPUs whose power a figure sums, where that is the whole node and not the GPUs in use.
NODE_GPUS: Mapping[tuple[str, str], int] = {
    ("Fig_10", "Nvidia A100 GPU"): 4,
    ("Fig_10", "Nvidia H100 GPU"): 4,
}

#: What figures sum else: one GPU was installed, or its power alone was read.
ACTIVE: frozenset[tuple[str, str]] = frozenset(
    {
        ("Fig_10", "Nvidia GH200 GPU"),
        ("Fig_16_a_b", "Nvidia A100 GPU"),
        ("Fig_16_a_b", "Nvidia H100 GPU"),
        ("Fig_16_a_b", "Nvidia GH200 GPU"),
    }
)

_AGREEMENT_RATIO = 0.01


def read(
    path: str | Path,
    *,
    assume_input_tokens: Mapping[str, float],
    assume_vision_tokens: Mapping[str, float],
) -> Imported:
    """Read the table of power and latency.

    Parameters
    ----------
    path : str or Path
        A CSV with the columns source, gpu, n_gpus, framework, model, io_len, batch_size,
        latency_s, avg_power_w, energy_j_batch.
    assume_input_tokens, assume_vision_tokens : mapping of str to float
        Must be empty: the lengths are known.

    Raises
    ------
    TableError
        If the file is no such table, or one without energy.
    InputError
        If no row can be used.
    """
    refuse_idle_assumptions("--assume-input-tokens", assume_input_tokens, [])
    refuse_idle_assumptions("--assume-vision-tokens", assume_vision_tokens, [])
    raw = files.read_table(path)
    if "energy_j_batch" not in raw.columns:
        raise TableError(
            f"{raw.name} must have a column energy_j_batch: latencies alone say nothing of joules."
        )
    rows = Collector(raw.name)
    for where, row in Fields.of_rows(raw):
        with rows.row(where):
            rows.add(where, _cells(row))
    return rows.finish()


def _cells(row: Fields) -> dict[str, object]:
    figure, gpu = row.text("source"), row.text("gpu")
    node_gpus = NODE_GPUS.get((figure, gpu))
    if node_gpus is None and (figure, gpu) not in ACTIVE:
        raise Unusable(f"it is not known which GPUs the power of {figure} on {gpu} covers")
    batch, latency_s = row.number("batch_size"), row.number("latency_s")
    energy_j, power_w = row.number("energy_j_batch"), row.number("avg_power_w")
    if abs(power_w * latency_s - energy_j) > _AGREEMENT_RATIO * energy_j:
        raise Unusable("its energy_j_batch is not avg_power_w x latency_s within 1 %")
    return {
        "llm": row.text("model"),
        "gpu": gpu,
        "tensor_parallel": row.number("n_gpus"),
        "batch_size": batch,
        "modality": "text",
        "input_tokens": row.number("io_len"),
        "output_tokens": row.number("io_len"),
        "energy_per_request_j": energy_j / batch,
        "request_latency_s": latency_s,
        "average_power_w": power_w,
        "boundary": (Boundary.NODE if node_gpus else Boundary.ACTIVE_GPUS).value,
        "node_gpus": node_gpus,
        "engine": row.text("framework").lower(),
        "source": Source.PUBLISHED.value,
        "origin": f"LLM-Inference-Bench {figure}",
    }
