"""Benchmark files and power logs of our own making, in the formats of others."""

import json
from datetime import UTC, datetime

import numpy as np

#: 2026-08-16 16:00:00, as seconds since 1970 if it were UTC.
NOON = datetime(2026, 8, 16, 16, 0, 0, tzinfo=UTC).timestamp()


def vllm_bench(**changes):
    """One run of `vllm bench serve`: 240 requests in 120 s that end 300 s after NOON."""
    end = changes.pop("end_s", NOON + 300)
    document = {
        "date": datetime.fromtimestamp(end, UTC).strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": "vllm",
        "backend": "vllm",
        "label": None,
        "model_id": "meta-llama/Llama-3.1-8B-Instruct",
        "tokenizer_id": "meta-llama/Llama-3.1-8B-Instruct",
        "num_prompts": 240,
        "request_rate": "inf",
        "burstiness": 1.0,
        "max_concurrency": 8,
        "duration": 120.0,
        "completed": 240,
        "failed": 0,
        "total_input_tokens": 240 * 512,
        "total_output_tokens": 240 * 128,
        "request_throughput": 2.0,
        "request_goodput": None,
        "output_throughput": 256.0,
        "total_token_throughput": 1280.0,
        "mean_ttft_ms": 60.0,
        "median_ttft_ms": 55.0,
        "std_ttft_ms": 10.0,
        "p99_ttft_ms": 110.0,
        "mean_tpot_ms": 30.0,
        "median_tpot_ms": 29.0,
        "std_tpot_ms": 1.0,
        "p99_tpot_ms": 36.0,
        "mean_itl_ms": 30.0,
        "median_itl_ms": 27.0,
        "std_itl_ms": 5.0,
        "p99_itl_ms": 80.0,
    }
    return document | changes


def step_times(period_s, span_s=480.0, jitter=0.0, seed=0):
    """Stamps of a logger from NOON on."""
    times = NOON + np.arange(0, span_s, period_s)
    if jitter:
        times = times + np.random.default_rng(seed).uniform(0, jitter * period_s, len(times))
    return times


def smi_csv(times, watts, *, units=True, header=True, index=True, busy=None):
    """Write a log of `nvidia-smi`: watts by GPU, each of the shape of times."""
    lines = []
    if header:
        names = ["timestamp", *(["index"] if index else []), "power.draw [W]"]
        if busy is not None:
            names.append("utilization.gpu [%]")
        lines.append(", ".join(names))
    for row, time in enumerate(times):
        stamp = datetime.fromtimestamp(float(time), UTC).strftime("%Y/%m/%d %H:%M:%S.%f")[:-3]
        for gpu, values in enumerate(watts):
            cells = [stamp, *([str(gpu)] if index else [])]
            cells.append(f"{values[row]:.2f}{' W' if units else ''}")
            if busy is not None:
                cells.append(f"{busy[gpu][row]:.0f}{' %' if units else ''}")
            lines.append(", ".join(cells))
    return "\n".join(lines) + "\n"


def step(times, begin, end, low, high):
    """A power step: `high` from begin to end, `low` otherwise."""
    return np.where((times >= begin) & (times < end), high, low)


def write_json(path, document):
    path.write_text(json.dumps(document), encoding="utf-8")
    return str(path)
