"""``vllm bench serve --save-result`` and ``vllm bench sweep serve``: one object a run.

The same object is written by benchmark_serving.py before it, and with more keys by tools that
build on it. Latencies are in ms, as their names say; forks that write them without the suffix, in
seconds, are another format.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from energylens.importers.power.series import Clock
from energylens.importers.power.stamps import local_seconds
from energylens.importers.runs import (
    BenchmarkRun,
    Latency,
    Node,
    RefusedFileError,
    Window,
    only_one,
    verified,
)

FORMAT = "vllm bench serve"

#: ``date`` has whole seconds, and is taken once the results are worked out.
DATE_SLACK_S = 2.0

_DEGREES: Mapping[str, tuple[str, ...]] = {
    "tensor_parallel": ("tensor_parallel_size", "tensor_parallel", "tp", "tp_size"),
    "pipeline_parallel": ("pipeline_parallel_size", "pipeline_parallel", "pp", "pp_size"),
    "data_parallel": ("data_parallel_size", "data_parallel", "dp", "dp_size"),
}


def matches(document: object) -> bool:
    """Whether a document is one run of it."""
    if not isinstance(document, Mapping):
        return False
    keys = document.keys()
    return (
        {"model_id", "duration", "completed", "total_output_tokens"} <= keys
        and ("num_prompts" in keys or "request_throughput" in keys)
        and "steady_state_duration" not in keys
        and "hw" not in keys
    )


def read(document: Mapping[str, object], name: str) -> BenchmarkRun:
    """Read one run.

    Raises
    ------
    RefusedFileError
        If a rule refuses it: no request completed, a value of the wrong kind or unit, a
        contradiction.
    """
    node = Node(document, name)
    seconds = [
        key for key in document if key.startswith(("mean_", "median_")) and key.endswith("_ttft")
    ]
    if seconds and not any(key.endswith("_ttft_ms") for key in document):
        raise RefusedFileError(
            f"{name}: {seconds[0]} has no unit in its name, and forks of this tool give it in "
            "seconds where the tool itself gives ms: state the unit by renaming the keys to _ms."
        )
    completed = node.number("completed")
    if completed is None:
        raise node.refuse("completed", "a number")
    if completed == 0:
        raise RefusedFileError(
            f"{name}: none of its {node.number('num_prompts') or 0:g} requests completed, so its "
            "latencies of 0 are no measurement: run the benchmark again."
        )
    if node.has("ramp_up_strategy"):
        raise RefusedFileError(
            f"{name}: its request rate ramps up from {node.number('ramp_up_start_rps'):g} to "
            f"{node.number('ramp_up_end_rps'):g} a second, so its joules are of no one load: run "
            "the benchmark at one rate."
            if node.has("ramp_up_start_rps") and node.has("ramp_up_end_rps")
            else f"{name}: its request rate ramps up, so its joules are of no one load."
        )
    duration = node.need("duration")
    rate = _rate(node)
    limit = node.positive("max_concurrency")
    prompts = node.positive("num_prompts")
    if limit is not None and prompts is not None:
        limit = min(limit, prompts)
    failed = node.number("failed")
    if failed is None and prompts is not None:
        failed = max(prompts - completed, 0)
    notes = (f"{failed:g} requests failed; their joules are part of the others'",) if failed else ()
    return verified(
        BenchmarkRun(
            format=FORMAT,
            where=name,
            llm=node.text("model_id"),
            gpus=None,
            engine=_engine(node),
            engine_version=node.text("engine_version") or node.text("vllm_version"),
            gpu=node.text("gpu"),
            precision=node.text("precision"),
            tensor_parallel=_degree(node, _DEGREES["tensor_parallel"]),
            pipeline_parallel=_degree(node, _DEGREES["pipeline_parallel"]),
            data_parallel=_degree(node, _DEGREES["data_parallel"]),
            completed=completed,
            failed=failed,
            input_tokens=_mean(node, "total_input_tokens", completed),
            output_tokens=_mean(node, "total_output_tokens", completed),
            duration_s=duration,
            window=_window(node, duration),
            request_rate_per_s=rate,
            achieved_rate_per_s=node.positive("request_throughput"),
            max_concurrency=limit,
            max_num_seqs=_degree(node, ("max_num_seqs",)),
            ttft=latency(node, "ttft"),
            tpot=latency(node, "tpot"),
            itl=latency(node, "itl"),
            request_latency=latency(node, "e2el"),
            notes=notes,
        )
    )


def latency(node: Node, what: str, suffix: str = "_ms", unit_s: float = 1e-3) -> Latency:
    """Read the statistics of one latency by the names that vLLM gives them."""

    def stated(statistic: str) -> float | None:
        return node.seconds(f"{statistic}_{what}{suffix}", unit_s)

    median = only_one(node.name, f"the median {what}", stated("median"), stated("p50"))
    return replace(Latency.of(stated, "mean", "median"), median_s=median)


def _mean(node: Node, key: str, completed: float) -> float | None:
    total = node.number(key)
    return total / completed if total else None


def _rate(node: Node) -> float | None:
    """Read the offered rate: a number, or the text "inf" for all at once."""
    value = node.fields.get("request_rate")
    if value is None or value == math.inf:
        return None
    if isinstance(value, str):
        if value.strip().lower() in ("inf", "infinity"):
            return None
        try:
            value = float(value)
        except ValueError:
            raise node.refuse("request_rate", 'a number above 0 or "inf"') from None
        return Node({"request_rate": value}, node.name).positive("request_rate")
    return node.positive("request_rate")


def _degree(node: Node, keys: tuple[str, ...]) -> int | None:
    """Read a parallel degree, which ``--metadata`` writes as text."""
    for key in keys:
        value = node.fields.get(key)
        if isinstance(value, str) and value.strip().isdigit():
            value = int(value)
        if value is not None:
            return Node({key: value}, node.name).whole(key)
    return None


def _engine(node: Node) -> str | None:
    """Name the engine where the client's backend does; openai and the like name none."""
    for key in ("backend", "endpoint_type"):
        value = node.text(key)
        if value:
            kind = value.lower().split("-")[0]
            if kind in ("vllm", "sglang", "tgi", "lmdeploy", "trt", "tensorrt"):
                return "tensorrt-llm" if kind in ("trt", "tensorrt") else kind
    return None


def _window(node: Node, duration: float) -> Window | None:
    start = node.positive("benchmark_start_time_unix")
    end = node.positive("benchmark_end_time_unix")
    if start is not None and end is not None:
        if not end > start or abs(end - start - duration) > max(2.0, 0.05 * duration):
            raise RefusedFileError(
                f"{node.name}: its begin and end are {end - start:g} s apart, but duration is "
                f"{duration:g} s: it contradicts itself."
            )
        return Window(start_s=start, end_s=end, clock=Clock.EPOCH, slack_s=0.1)
    date = node.text("date")
    if date is None:
        return None
    moment = local_seconds(date)
    if moment is None:
        raise node.refuse("date", "a time as in 20260816-160853")
    return Window(
        start_s=moment[0] - duration, end_s=moment[0], clock=moment[1], slack_s=DATE_SLACK_S
    )
