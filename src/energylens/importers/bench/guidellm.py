"""GuideLLM's reports, version 1 (to 0.3) and 2 (from 0.4): one run for each benchmark in them.

Its ``time_per_output_token_ms`` spreads the first token's time over all of them; time per output
token as others mean it is its ``inter_token_latency_ms``.
"""

from __future__ import annotations

from collections.abc import Mapping

from energylens.importers.power.series import Clock
from energylens.importers.runs import (
    BenchmarkRun,
    Latency,
    Node,
    RefusedFileError,
    Window,
    verified,
)

FORMAT = "GuideLLM"

_OPEN = ("constant", "poisson", "async")


def matches(document: object) -> bool:
    """Whether a document is a report of it."""
    if not isinstance(document, Mapping):
        return False
    benchmarks = document.get("benchmarks")
    if not isinstance(benchmarks, list) or not benchmarks:
        return False
    first = benchmarks[0]
    return isinstance(first, Mapping) and isinstance(first.get("metrics"), Mapping)


def read(document: Mapping[str, object], name: str) -> list[BenchmarkRun]:
    """Read the runs of a report.

    Raises
    ------
    RefusedFileError
        If it is of another version, or a rule refuses one of its runs.
    """
    root = Node(document, name)
    metadata = root.inner("metadata")
    version = metadata.fields.get("version") if metadata is not None else 1
    if version not in (1, 2):
        raise RefusedFileError(
            f"{name} is a report of version {version!r}, and 1 and 2 are known here: its fields "
            "may mean something else."
        )
    made = root.within("metadata").text("guidellm_version")
    benchmarks = root.each("benchmarks")
    return [
        _run(root, item, name if len(benchmarks) == 1 else f"{name} run {i}", made)
        for i, item in enumerate(benchmarks, 1)
    ]


def _run(root: Node, item: Node, where: str, version: str | None) -> BenchmarkRun:
    item = Node(item.fields, where, item.path)
    metrics = item.need_inner("metrics")
    totals = metrics.inner("request_totals") or item.inner("request_totals")
    if totals is None:
        raise RefusedFileError(f"{where}: it does not count its requests: the file is not whole.")
    completed = totals.number("successful")
    if not completed:
        raise RefusedFileError(
            f"{where}: none of its requests succeeded, so its latencies of 0 are no measurement."
        )
    start, end = _times(item)
    duration = item.positive("duration")
    if start is not None and end is not None and end > start:
        # Where version 1 states both, its duration is that of the warm-up too.
        duration = end - start
    window = None
    notes: list[str] = []
    if start is not None and end is not None and end > start:
        window = Window(start_s=start, end_s=end, clock=Clock.EPOCH, slack_s=0.5)
    args = item.fields.get("args")
    parts = ("warmup_number", "cooldown_number")
    if isinstance(args, Mapping) and any(args.get(part) for part in parts):
        window = None
        notes.append("requests of a warm-up or cool-down are left out, at times that it leaves out")
    rate, limit = _load(item)
    in_flight = _mean(metrics, "request_concurrency")
    return verified(
        BenchmarkRun(
            format=FORMAT,
            where=where,
            version=version,
            llm=_model(root, item),
            completed=completed,
            failed=(totals.number("errored") or 0) + (totals.number("incomplete") or 0),
            input_tokens=_mean(metrics, "prompt_token_count"),
            output_tokens=_mean(metrics, "output_token_count"),
            duration_s=duration,
            window=window,
            request_rate_per_s=rate,
            max_concurrency=limit,
            mean_concurrency=in_flight if in_flight and rate is None else None,
            ttft=_latency(metrics, "time_to_first_token_ms", 1e-3),
            tpot=_latency(metrics, "inter_token_latency_ms", 1e-3),
            request_latency=_latency(metrics, "request_latency", 1.0),
            notes=tuple(notes),
        )
    )


def _times(item: Node) -> tuple[float | None, float | None]:
    """Begin and end of what was measured, without the warm-up before and the cool-down after."""
    scheduler = item.inner("scheduler_metrics")
    if scheduler is not None and scheduler.has("measure_start_time"):
        return scheduler.positive("measure_start_time"), scheduler.positive("measure_end_time")
    stats = item.inner("run_stats")
    holder = item if item.has("start_time") or stats is None else stats
    start, end = holder.positive("start_time"), holder.positive("end_time")
    args = item.inner("args") if isinstance(item.fields.get("args"), Mapping) else None
    if args is not None and start is not None and end is not None:
        start += args.number("warmup_duration") or 0.0
        end -= args.number("cooldown_duration") or 0.0
    return start, end


def _mean(metrics: Node, key: str) -> float | None:
    return metrics.within(key).within("successful").number("mean") or None


def _latency(metrics: Node, key: str, unit_s: float) -> Latency:
    metric = metrics.within(key).within("successful")
    percentiles = metric.within("percentiles")

    def read(name: str) -> float | None:
        return (metric if name in ("mean", "median") else percentiles).seconds(name, unit_s)

    return Latency.of(read, "mean", "median")


def _load(item: Node) -> tuple[float | None, float | None]:
    """Read the offered rate, and the limit on requests in flight."""
    for place in ("config", "args"):
        strategy = item.within(place).inner("strategy")
        if strategy is not None:
            kind = strategy.text("type_") or ""
            if kind == "synchronous":
                return None, 1.0
            if kind in ("concurrent", "throughput"):
                return None, strategy.positive("streams") or strategy.positive("max_concurrency")
            if kind in _OPEN:
                return strategy.positive("rate"), None
    return None, None


def _model(root: Node, item: Node) -> str | None:
    for place in (
        root.within("config").within("spec").within("backend"),
        item.within("config").loose("backend"),
        root.loose("args"),
        item.loose("worker"),
    ):
        for key in ("model", "backend_model"):
            if isinstance(place.fields.get(key), str):
                return place.text(key)
    return None
