"""llm-d's benchmark report, versions 0.1, 0.2 and 0.2.1, in YAML or JSON.

Every quantity has its ``units``, which are obeyed. Reports are made from the results of other
tools, and examples in the wild carry made-up numbers: one that contradicts itself is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import Any

from energylens.importers.power.series import Clock
from energylens.importers.power.stamps import local_seconds
from energylens.importers.runs import (
    BenchmarkRun,
    Latency,
    Node,
    RefusedFileError,
    Window,
    verified,
)

FORMAT = "llm-d benchmark report"

VERSIONS = ("0.1", "0.2", "0.2.1")

#: The harness reads DCGM_FI_DEV_POWER_USAGE off each pod's scrape by its bare name, and drops the
#: labels of the GPUs: those of the pod (of the host, where the exporter lists them) follow one
#: another in one series, which is averaged over all scrapes. Nothing in the report counts them.
POWER_OF_NONE = (
    "the watts in it are means over GPUs whose labels were dropped, neither one GPU's nor their sum"
)

SECONDS: Mapping[str, float] = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9, "seconds": 1.0}
PER_TOKEN: Mapping[str, float] = {f"{unit}/token": factor for unit, factor in SECONDS.items()}
_PER_S = ("queries/s", "requests/s", "req/s", "1/s")


def matches(document: object) -> bool:
    """Whether a document is a report of it."""
    return (
        isinstance(document, Mapping)
        and "version" in document
        and isinstance(document.get("scenario"), Mapping)
        and ("metrics" in document or "results" in document or "run" in document)
    )


def read(document: Mapping[str, object], name: str) -> BenchmarkRun:
    """Read one report.

    Raises
    ------
    RefusedFileError
        If it is of another version, deploys prefill and decode apart, or a rule refuses it.
    """
    node = Node(document, name)
    version = str(document["version"])
    if version not in VERSIONS:
        raise RefusedFileError(
            f"{name} is a report of version {version[:20]}, and {', '.join(VERSIONS)} are known "
            "here: its fields may mean something else."
        )
    return _first(node) if version == "0.1" else _second(node, version)


# -------------------------------------------------------------------------------- version 0.1


def _first(node: Node) -> BenchmarkRun:
    scenario, metrics = node.need_inner("scenario"), node.need_inner("metrics")
    accelerators = scenario.within("host").each("accelerator")
    served = _served(node.name, [_Part.of(a, "both", 1) for a in accelerators])
    engines = scenario.within("platform").each("engine")
    load = scenario.within("load")
    args = load.loose("args")
    time = metrics.within("time")
    duration, start = time.positive("duration"), time.positive("start")
    window = None
    if start is not None and duration is not None and start > 1e9:
        window = Window(start_s=start, end_s=start + duration, clock=Clock.EPOCH, slack_s=2.0)
    image = engines[0].text("name") if engines else None
    stated = engines[0].text("version") if engines else None
    kind, tag = _image(stated or image)
    return _run(
        node,
        power=_says_power(metrics.fields.get("resources")),
        version="0.1",
        llm=scenario.within("model").text("name"),
        served=served,
        engine=_image(image)[0] or kind,
        engine_version=tag,
        requests=metrics.need_inner("requests"),
        latency=metrics.need_inner("latency"),
        per_s=metrics.within("throughput").positive("requests_per_sec"),
        duration=duration,
        window=window,
        rate=_if_number(args, "request_rate"),
        limit=_if_number(args, "max_concurrency"),
    )


# -------------------------------------------------------------------------------- version 0.2


def _second(node: Node, version: str) -> BenchmarkRun:
    scenario = node.need_inner("scenario")
    results = node.need_inner("results")
    performance = results.need_inner("request_performance").need_inner("aggregate")
    parts: list[_Part] = []
    llm = engine = tag = None
    for component in scenario.each("stack"):
        standard = component.need_inner("standardized")
        if standard.text("kind") != "inference_engine":
            continue
        accelerator = standard.inner("accelerator")
        if accelerator is not None:
            role = standard.text("role") or "both"
            parts.append(_Part.of(accelerator, role, standard.whole("replicas") or 1))
        llm = llm or standard.within("model").text("name")
        kind, found = _image(standard.text("tool_version"))
        engine = engine or kind or _known_engine(standard.text("tool"))
        tag = tag or found
    load = scenario.within("load").within("standardized")
    per_s = None
    if measured := performance.within("throughput").inner("request_rate"):
        units = measured.text("units")
        if units not in _PER_S:
            raise RefusedFileError(
                f"{node.name}: request_rate must be in queries/s, not in {units!r}."
            )
        per_s = measured.positive("mean")
    duration, window = _times(node, node.within("run").inner("time"))
    return _run(
        node,
        power=_says_power(results.fields.get("observability")),
        version=version,
        llm=llm,
        served=_served(node.name, parts),
        engine=engine,
        engine_version=tag,
        requests=performance.need_inner("requests"),
        latency=performance.need_inner("latency"),
        per_s=per_s,
        duration=duration,
        window=window,
        rate=_if_number(load, "rate_qps"),
        limit=_if_number(load, "concurrency"),
    )


def _times(node: Node, time: Node | None) -> tuple[float | None, Window | None]:
    if time is None:
        return None, None
    duration = None
    text = time.text("duration") if isinstance(time.fields.get("duration"), str) else None
    if text is not None:
        match = re.fullmatch(
            r"P(?:(?P<d>\d+)D)?T(?:(?P<h>\d+)H)?(?:(?P<m>\d+)M)?(?:(?P<s>\d+(?:\.\d+)?)S)?", text
        )
        if match is None:
            raise time.refuse("duration", "a duration as in PT49.9S")
        days, hours, minutes, seconds = (float(match[k] or 0) for k in "dhms")
        duration = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    moments = [_moment(time, key) for key in ("start", "end")]
    if moments[0] is None or moments[1] is None:
        return duration, None
    start, clock = moments[0]
    end = moments[1][0]
    if not end > start:
        raise RefusedFileError(
            f"{node.name}: it ends before it starts, so its times are not right."
        )
    if duration is not None and abs(end - start - duration) > max(2.0, 0.05 * duration):
        # What they enclose is the whole harness, deployment and warm-up included.
        return duration, None
    return duration or end - start, Window(start_s=start, end_s=end, clock=clock, slack_s=1.0)


def _moment(time: Node, key: str) -> tuple[float, Clock] | None:
    value: Any = time.fields.get(key)
    if isinstance(value, datetime):
        if value.tzinfo is None:
            return value.replace(tzinfo=UTC).timestamp(), Clock.LOCAL
        return value.timestamp(), Clock.EPOCH
    if isinstance(value, str):
        return local_seconds(value)
    if value is None or isinstance(value, date):
        return None
    raise time.refuse(key, "a time")


# --------------------------------------------------------------------------------- in common


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Accelerators of one component."""

    role: str
    gpu: str | None
    replicas: int
    tensor: int | None
    pipeline: int | None
    data: int | None
    expert: int | None

    @classmethod
    def of(cls, accelerator: Node, role: str, replicas: int) -> _Part:
        degrees = accelerator.within("parallelism")

        def degree(key: str) -> int | None:
            # -1 is what the harness writes where a setting was not made.
            return None if degrees.fields.get(key) == -1 else degrees.whole(key)

        return cls(
            role=role,
            gpu=accelerator.text("model"),
            replicas=replicas,
            tensor=degree("tp"),
            pipeline=degree("pp"),
            data=degree("dp"),
            expert=degree("ep"),
        )


def _served(name: str, parts: list[_Part]) -> _Part | None:
    """Take the one kind of deployment there is, all its replicas together."""
    if not parts:
        return None
    roles = {part.role for part in parts}
    if {"prefill", "decode"} <= roles:
        raise RefusedFileError(
            f"{name} has prefill and decode on GPUs of their own, which the tidy table has no "
            "columns for."
        )
    kinds = {(p.gpu, p.tensor, p.pipeline, p.data, p.expert) for p in parts}
    if len(kinds) > 1:
        raise RefusedFileError(
            f"{name} has engines of {len(kinds)} different layouts, and does not say which served "
            "which requests."
        )
    one, replicas = parts[0], sum(part.replicas for part in parts)
    data = (one.data or 1) * replicas
    return replace(one, replicas=replicas, data=data if one.tensor is not None else None)


def _run(
    node: Node,
    *,
    version: str,
    llm: str | None,
    served: _Part | None,
    engine: str | None,
    engine_version: str | None,
    requests: Node,
    latency: Node,
    per_s: float | None,
    duration: float | None,
    window: Window | None,
    rate: float | None,
    limit: float | None,
    power: bool,
) -> BenchmarkRun:
    total, failed = requests.number("total"), requests.number("failures") or 0
    if total is None:
        raise RefusedFileError(f"{node.name}: it does not count its requests: it is not whole.")
    completed = total - failed
    if not completed > 0:
        raise RefusedFileError(
            f"{node.name}: none of its {total:g} requests succeeded, so it is no measurement."
        )
    return verified(
        BenchmarkRun(
            format=FORMAT,
            where=node.name,
            version=version,
            llm=llm,
            gpu=served.gpu if served is not None else None,
            tensor_parallel=served.tensor if served is not None else None,
            pipeline_parallel=served.pipeline if served is not None else None,
            data_parallel=served.data if served is not None else None,
            expert_parallel=served.expert if served is not None else None,
            engine=engine,
            engine_version=engine_version,
            completed=completed,
            failed=failed,
            input_tokens=_count(requests, "input_length"),
            output_tokens=_count(requests, "output_length"),
            duration_s=duration,
            window=window,
            request_rate_per_s=rate if limit is None else None,
            achieved_rate_per_s=per_s,
            max_concurrency=limit,
            ttft=_latency(latency, "time_to_first_token", SECONDS),
            tpot=_latency(latency, "time_per_output_token", {**SECONDS, **PER_TOKEN}),
            itl=_latency(latency, "inter_token_latency", {**SECONDS, **PER_TOKEN}),
            request_latency=_latency(latency, "request_latency", SECONDS),
            unusable=POWER_OF_NONE if power else None,
        )
    )


def _says_power(part: object, depth: int = 0) -> bool:
    """Whether a part of a report states power somewhere."""
    if depth > 8:
        return False
    if isinstance(part, Mapping):
        named = ("power", "power_consumption", "DCGM_FI_DEV_POWER_USAGE")
        return any(part.get(name) for name in named) or any(
            _says_power(inner, depth + 1) for inner in part.values()
        )
    return isinstance(part, list) and any(_says_power(inner, depth + 1) for inner in part)


def _count(requests: Node, key: str) -> float | None:
    inner = requests.within(key)
    units = inner.text("units")
    if units not in (None, "count", "tokens"):
        raise RefusedFileError(f"{requests.name}: {key} must be a count, not in {units!r}.")
    return inner.number("mean") or None


def _latency(latency: Node, key: str, units: Mapping[str, float]) -> Latency:
    inner = latency.within(key)
    if not any(inner.has(k) for k in ("mean", "p50", "p90", "p99")):
        return Latency()
    unit = inner.text("units")
    if unit not in units:
        raise RefusedFileError(
            f"{latency.name}: {key} must be in one of {', '.join(units)}, not in {unit!r}."
        )
    unit_s = units[str(unit)]
    return Latency.of(lambda statistic: inner.seconds(statistic, unit_s), "mean", "p50")


def _if_number(node: Node, key: str) -> float | None:
    """Read a number; infinity and texts such as "inf" say that there is no limit."""
    value = node.fields.get(key)
    if value is None or isinstance(value, str) or value == float("inf"):
        return None
    return node.positive(key)


def _known_engine(tool: str | None) -> str | None:
    name = (tool or "").lower()
    return next((kind for kind in ("vllm", "sglang", "tensorrt-llm", "tgi") if kind in name), None)


def _image(text: str | None) -> tuple[str | None, str | None]:
    """Read engine and version off the name of a container image, where it says them."""
    if text is None:
        return None, None
    name, _, tag = text.rpartition(":") if ":" in text else ("", "", text)
    kind = _known_engine(name or text)
    match = re.fullmatch(r"v?(\d+\.\d+(?:\.\d+)?[\w.+-]*)", tag)
    # The tag of another project's image is that project's version, not the engine's.
    return kind, match[1] if match is not None and (kind or not name) else None
