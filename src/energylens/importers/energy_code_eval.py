"""energy-code-eval: offline batches of code LLMs and their quantizations on one A100-80GB.

Source: github.com/nhathuy25/energy-code-eval. All requests of a run have the same prompt length
and generate to the same limit, so batches run in waves. See ``docs/data-format.md``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from energylens import files
from energylens.importers.collecting import Collector, Fields, Imported, refuse_idle_assumptions
from energylens.records import Boundary, Source

#: The engine of every run.
ENGINE, ENGINE_VERSION = "vllm", "0.8.4"


def read(
    path: str | Path,
    *,
    assume_input_tokens: Mapping[str, float],
    assume_vision_tokens: Mapping[str, float],
) -> Imported:
    """Read the table of runs.

    Parameters
    ----------
    path : str or Path
        A CSV with the columns gpu, base_model, quant, window_name, max_num_seqs, n_samples,
        input_len, output_len, elapsed_s, gpu_energy_j, avg_power_w, est_prefill_energy_j,
        est_decode_energy_j, split_ok, decode_time_per_token_ms.
    assume_input_tokens, assume_vision_tokens : mapping of str to float
        Must be empty: the lengths are known.

    Raises
    ------
    TableError
        If the file is no table.
    InputError
        If no row can be used.
    """
    refuse_idle_assumptions("--assume-input-tokens", assume_input_tokens, [])
    refuse_idle_assumptions("--assume-vision-tokens", assume_vision_tokens, [])
    raw = files.read_table(path)
    rows = Collector(raw.name)
    for where, row in Fields.of_rows(raw):
        with rows.row(where):
            rows.add(where, _cells(row))
    return rows.finish()


def _cells(row: Fields) -> dict[str, object]:
    requests = row.number("n_samples")
    batch = min(row.number("max_num_seqs"), requests)
    waves = math.ceil(requests / batch)
    # Full waves keep `batch` requests in flight; a last one that is not full, fewer.
    mean_batch = None if waves * batch == requests else requests / waves
    split = row.text("split_ok").lower() == "true"
    return {
        "llm": row.text("base_model"),
        "gpu": row.text("gpu"),
        "precision": row.text("quant"),
        "batch_size": batch,
        "mean_batch_size": mean_batch,
        "modality": "text",
        "input_tokens": row.number("input_len"),
        "output_tokens": row.number("output_len"),
        "energy_per_request_j": row.number("gpu_energy_j") / requests,
        "prefill_energy_per_request_j": (
            row.number("est_prefill_energy_j") / requests if split else None
        ),
        "decode_energy_per_request_j": (
            row.number("est_decode_energy_j") / requests if split else None
        ),
        # Of all requests together in the file; of one here. The split in time is as good as
        # the split in energy.
        "tpot_s": row.number("decode_time_per_token_ms") / 1000 * batch if split else None,
        "request_latency_s": row.number("elapsed_s") / waves,
        "average_power_w": row.number("avg_power_w"),
        "boundary": Boundary.ACTIVE_GPUS.value,
        "engine": ENGINE,
        "engine_version": ENGINE_VERSION,
        "source": Source.PUBLISHED.value,
        "origin": f"energy-code-eval {row.text('window_name')}",
        "assumed": "mean_batch_size" if mean_batch else "",
    }
