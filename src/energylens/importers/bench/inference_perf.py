"""inference-perf's ``stage_N_lifecycle_metrics.json``, in JSON or YAML. All its times are seconds.

Its ``inter_token_latency`` is between chunks, of which many arrive together; time per output token
is its ``time_per_output_token``. Lengths are those that the server counted, ``prompt_tokens`` and
``output_tokens``, where they are stated (since 2026), else those that the client did.
"""

from __future__ import annotations

from collections.abc import Mapping

from energylens.importers.runs import BenchmarkRun, Latency, Node, RefusedFileError, verified

FORMAT = "inference-perf"


def matches(document: object) -> bool:
    """Whether a document is a report of it."""
    return (
        isinstance(document, Mapping)
        and "load_summary" in document
        and isinstance(document.get("successes"), Mapping)
    )


def read(document: Mapping[str, object], name: str) -> BenchmarkRun:
    """Read one stage.

    Raises
    ------
    RefusedFileError
        If it is the Prometheus summary, or a rule refuses it.
    """
    node = Node(document, name)
    good = node.need_inner("successes")
    latency = good.inner("latency")
    if latency is None:
        if good.has("rate") or good.has("queue_len"):
            raise RefusedFileError(
                f"{name} is the Prometheus summary of inference-perf, whose means are the server's "
                "over a window of its own: give stage_N_lifecycle_metrics.json."
            )
        raise RefusedFileError(f"{name}: successes.latency is missing: the file is not whole.")
    completed = good.number("count")
    if not completed:
        raise RefusedFileError(
            f"{name}: none of its requests succeeded, so it holds no measurement."
        )
    summary = node.need_inner("load_summary")
    if not summary.has("requested_rate") and not summary.has("concurrency"):
        raise RefusedFileError(
            f"{name} is the summary over all stages, which may be of several loads: give "
            "stage_N_lifecycle_metrics.json of each."
        )
    if _mean(good, "audio", "count"):
        raise RefusedFileError(
            f"{name}: its requests carry audio, which the tidy table has no columns for."
        )
    per_s = good.within("throughput").positive("requests_per_sec")
    duration = node.positive("benchmark_time_seconds")
    if duration is None and per_s is not None:
        duration = completed / per_s
    limit = summary.positive("concurrency")
    rate = None if limit is not None else summary.positive("requested_rate")
    return verified(
        BenchmarkRun(
            format=FORMAT,
            where=name,
            completed=completed,
            failed=node.within("failures").number("count"),
            input_tokens=_mean(good, "prompt_tokens") or _mean(good, "prompt_len"),
            output_tokens=_mean(good, "output_tokens") or _mean(good, "output_len"),
            images=_mean(good, "image", "count"),
            frames=_mean(good, "video", "frames"),
            duration_s=duration,
            request_rate_per_s=rate,
            achieved_rate_per_s=per_s,
            max_concurrency=limit,
            ttft=_latency(latency, "time_to_first_token"),
            tpot=_latency(latency, "time_per_output_token"),
            request_latency=_latency(latency, "request_latency"),
        )
    )


def _mean(node: Node, *keys: str) -> float | None:
    *media, last = keys
    for key in media:
        node = node.loose(key)
    return node.within(last).number("mean") or None


def _latency(node: Node, key: str) -> Latency:
    inner = node.within(key)
    return Latency.of(lambda statistic: inner.seconds(statistic, 1.0), "mean", "median")
