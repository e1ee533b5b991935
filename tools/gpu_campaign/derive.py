"""Rows of whole layouts from one GPU's measured part and a stated model of communication.

The compute of a rank is measured: ``--shard TPxPP`` runs its share of heads, feed-forward and
layers. What a single GPU cannot show is the traffic between GPUs. It is added here by a model
that anyone can read, and the rows say ``derived``: they never carry an accuracy claim.

Per token and layer, tensor parallelism sums hidden states twice over TP GPUs (Megatron-LM,
arXiv 1909.08053). A ring moves ``2 (TP-1)/TP`` of the message through each GPU, at the share
``LINK_SHARE`` of the link's bandwidth in one direction, after ``LATENCY_S`` per all-reduce.
Pipeline stages send one hidden state per token to the next. While it communicates, a GPU draws
``COMMUNICATION_POWER_SHARE`` of what it drew while it computed; moving a byte over NVLink adds
``LINK_J_PER_BYTE``. None of it overlaps with compute.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from energylens import catalog

LINK_SHARE = 0.75
LATENCY_S = 12e-6
# 1.3 pJ per bit on the wire (NVIDIA, Hot Chips 34, 2022) and as much again in the switch.
LINK_J_PER_BYTE = 2 * 8 * 1.3e-12
COMMUNICATION_POWER_SHARE = 0.5
STEP_TOKENS = 8192  # of one prefill pass
COMPUTE_ALONE = (
    *("prefill_energy_per_request_j", "decode_energy_per_request_j"),
    *("ttft_s", "tpot_s", "average_power_w"),
)
MODEL = (
    f"ring all-reduce at {LINK_SHARE:g} of the link, {LATENCY_S * 1e6:g} us each, "
    f"{COMMUNICATION_POWER_SHARE:g} of the measured power meanwhile, "
    f"{LINK_J_PER_BYTE * 1e12:.3g} pJ per byte, no overlap, no pipeline bubbles"
)


def communication(row: Mapping[str, Any]) -> tuple[float, float]:
    """Return the seconds and joules of communication per request, all GPUs together.

    Parameters
    ----------
    row : mapping
        A row of a shard: energies and power are those of all ranks, without communication.
    """
    gpu = catalog.gpu(row["gpu"])
    # A scaled-down LLM bears the name of the whole one before its number of layers.
    llm = catalog.llm(str(row["llm"]).split(" (")[0])
    layers = int(row.get("x_scaled_layers") or llm.layers)
    tp, pp = int(row["tensor_parallel"]), int(row["pipeline_parallel"])
    batch, prompt, output = row["batch_size"], row["input_tokens"], row["output_tokens"]
    tokens = prompt + output - 1
    message = 2.0 * llm.hidden_size  # bytes of one token's hidden state
    link = (gpu.link_bandwidth_bytes_per_s or 64e9) / 2 * LINK_SHARE
    sums = 2 * layers if tp > 1 else 0
    moved = sums * tokens * message * 2 * (tp - 1) / tp  # bytes through each GPU of a stage
    passes = max(1.0, batch * prompt / STEP_TOKENS) + output - 1  # of the whole batch
    hops = pp - 1
    # A batch's seconds are every request's: bytes add up over it, latencies are shared.
    seconds = batch * (moved + hops * tokens * message) / link + passes * (sums + hops) * LATENCY_S
    ranks = tp * pp
    watts = COMMUNICATION_POWER_SHARE * row["average_power_w"]
    joules = watts * seconds / batch / pp  # only one stage works at a time
    joules += LINK_J_PER_BYTE * (moved * ranks / pp + hops * tokens * message * tp)
    return seconds, joules


def derive(shards: Path, into: Path) -> int:
    """Write the rows of ``shards`` with communication added; return how many there are."""
    lines = []
    for line in shards.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if not row.get("x_shard"):
            continue
        seconds, joules = communication(row)
        row |= {
            "energy_per_request_j": row["energy_per_request_j"] + joules,
            "source": "derived",
            "x_compute_energy_per_request_j": row["energy_per_request_j"],
            "x_communication_energy_per_request_j": joules,
            "x_communication_s": seconds,
            "x_communication_model": MODEL,
        }
        if row.get("request_latency_s"):
            row["request_latency_s"] += seconds
        # The rest is about compute alone, and would not go with the new whole.
        for part in COMPUTE_ALONE:
            if part in row:
                row[f"x_compute_{part}"] = row.pop(part)
        lines.append(json.dumps(row))
    into.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return len(lines)
