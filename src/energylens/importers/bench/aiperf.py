"""AIPerf's ``profile_export_aiperf.json`` and ``.csv``, and genai-perf's JSON before it.

Every metric has its unit beside it, which is obeyed. Telemetry lists every GPU of the host. At
first it gave statistics of the energy counter over the profiling and its warm-up, of which the mean
says nothing: joules are its max less its min, scaled to the benchmark. Since 2026 its only figure,
``avg``, is the counter's difference over the profiling. Joules are those of GPUs that were busy.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import replace

from energylens.importers.power.series import Clock, EnergyWindow, PowerLog
from energylens.importers.power.stamps import local_seconds
from energylens.importers.runs import (
    BenchmarkRun,
    Latency,
    Node,
    RefusedFileError,
    Scope,
    StatedEnergy,
    Window,
    verified,
)

FORMAT, OLDER = "AIPerf", "genai-perf"

SECONDS = {"ms": 1e-3, "s": 1.0, "sec": 1.0, "seconds": 1.0, "us": 1e-6, "ns": 1e-9}
SECONDS |= {"milliseconds": 1e-3, "microseconds": 1e-6, "nanoseconds": 1e-9}
JOULES = {"mJ": 1e-3, "J": 1.0, "kJ": 1e3, "MJ": 1e6, "Wh": 3600.0, "kWh": 3.6e6}

#: Names of telemetry; those with a vendor since AIPerf reads several, in CSV by their headings.
_ENERGY: tuple[str, ...] = (
    "energy_consumption",
    "nvidia_energy_consumption",
    "amd_energy_consumption",
)
_POWER: tuple[str, ...] = (
    "gpu_power_usage",
    "nvidia_power_usage",
    "nvidia_gpu_power_usage",
    "amd_power",
    "amd_gpu_power",
)
_BUSY: tuple[str, ...] = (
    "gpu_utilization",
    "nvidia_gpu_utilization",
    "sm_utilization",
    "nvidia_sm_utilization",
    "amd_gfx_activity",
)

#: The counter's difference and mean watts x duration differ by less.
_COUNTER_RATIO = 0.25

_OWN = ("aiperf_version", "schema_version", "benchmark_duration", "was_cancelled", "total_osl")


def matches(document: object) -> bool:
    """Whether a document is an export of AIPerf."""
    return _alike(document) and not _is_older(document)


def matches_older(document: object) -> bool:
    """Whether a document is an export of genai-perf."""
    return _alike(document) and _is_older(document)


def _alike(document: object) -> bool:
    if not isinstance(document, Mapping):
        return False
    if "aiperf_version" in document:
        return True
    throughput = document.get("request_throughput")
    return isinstance(throughput, Mapping) and "unit" in throughput and "avg" in throughput


def _is_older(document: object) -> bool:
    assert isinstance(document, Mapping)
    if any(key in document for key in _OWN):
        return False
    config = document.get("input_config")
    return not (isinstance(config, Mapping) and ({"phases", "loadgen"} & set(config)))


def read(document: Mapping[str, object], name: str) -> BenchmarkRun:
    """Read one export.

    Raises
    ------
    RefusedFileError
        If a rule refuses it: a schema of another major version, a unit that is none of time, no
        completed request, a counter that was averaged.
    """
    node = Node(document, name)
    older = _is_older(document)
    schema = node.text("schema_version")
    if schema is not None and not re.fullmatch(r"1(\.\d+)*", schema):
        raise RefusedFileError(
            f"{name} has schema_version {schema}, and 1.x is what is known here: its fields may "
            "mean something else."
        )
    throughput = _value(node, "request_throughput")
    completed = _value(node, "request_count")
    if completed is None:
        completed = node.within("request_latency").number("count")
    duration = _seconds(node, "benchmark_duration", "avg")
    if completed is None and throughput and duration:
        completed = round(throughput * duration)
    if completed is None and older and throughput:
        completed = _samples(node)
    if completed == 0:
        raise RefusedFileError(
            f"{name}: no request completed, so it holds no measurement: run the benchmark again."
        )
    if completed is None:
        raise RefusedFileError(f"{name} does not say how many requests completed: it is not whole.")
    if duration is None and throughput:
        duration = completed / throughput
    config = node.inner("input_config")
    load = _load(config)
    run = BenchmarkRun(
        format=OLDER if older else FORMAT,
        where=name,
        version=node.text("aiperf_version"),
        llm=_model(config),
        completed=completed,
        failed=_value(node, "error_request_count"),
        notes=("the run was cancelled before its end",) if document.get("was_cancelled") else (),
        input_tokens=_value(node, "input_sequence_length") or None,
        output_tokens=_value(node, "output_sequence_length") or None,
        images=_value(node, "num_images") or None,
        duration_s=duration,
        window=_window(node, duration),
        request_rate_per_s=load[0],
        achieved_rate_per_s=throughput or None,
        max_concurrency=load[1],
        ttft=_latency(node, "time_to_first_token"),
        tpot=_latency(node, "inter_token_latency"),
        itl=_latency(node, "inter_chunk_latency"),
        request_latency=_latency(node, "request_latency"),
    )
    return verified(_with_energy(run, node))


def _samples(node: Node) -> float | None:
    """Requests of a genai-perf export, which counts them nowhere but in its load."""
    config = node.inner("input_config")
    for place in (config, config and config.inner("loadgen"), config and config.inner("input")):
        if isinstance(place, Node):
            for key in ("request_count", "num_requests", "num_prompts"):
                found = place.fields.get(key)
                if isinstance(found, int) and not isinstance(found, bool) and found > 0:
                    return place.need(key)
    return None


def _value(node: Node, key: str) -> float | None:
    return node.within(key).number("avg")


def _seconds(node: Node, key: str, statistic: str) -> float | None:
    metric = node.inner(key)
    if metric is None:
        return None
    unit = metric.text("unit")
    if unit is None or unit.lower() not in SECONDS:
        raise RefusedFileError(
            f"{node.name}: {key} must have a unit of time, not {unit!r}: it cannot be read."
        )
    return metric.seconds(statistic, SECONDS[unit.lower()])


def _latency(node: Node, key: str) -> Latency:
    return Latency.of(lambda statistic: _seconds(node, key, statistic), "avg", "p50")


def _window(node: Node, duration: float | None) -> Window | None:
    moments = [local_seconds(text) for k in ("start_time", "end_time") if (text := node.text(k))]
    if len(moments) != 2 or moments[0] is None or moments[1] is None or duration is None:
        return None
    start, clock = moments[0]
    end = moments[1][0]
    if not end > start:
        raise RefusedFileError(
            f"{node.name}: it ends before it starts, so its times are not right."
        )
    # What start_time and end_time enclose may begin with a warm-up; the benchmark is its end.
    return Window(start_s=end - duration, end_s=end, clock=clock, slack_s=1.0)


def _model(config: Node | None) -> str | None:
    if config is None:
        return None
    models = config.fields.get("models")
    found: object = None
    if isinstance(models, Mapping):
        items = models.get("items")
        if isinstance(items, list) and len(items) == 1 and isinstance(items[0], Mapping):
            found = items[0].get("name")
    if found is None:
        endpoint = config.fields.get("endpoint")
        for place in (endpoint, config.fields):
            names = place.get("model_names") if isinstance(place, Mapping) else None
            if isinstance(names, list) and len(names) == 1:
                found = names[0]
                break
    found = config.fields.get("model") if found is None else found
    return found.strip() or None if isinstance(found, str) and found.isprintable() else None


def _load(config: Node | None) -> tuple[float | None, float | None]:
    """Read the rate offered and the limit on requests in flight."""
    if config is None:
        return None, None
    places: list[Node] = []
    if isinstance(config.fields.get("phases"), list):
        phases = [p for p in config.each("phases") if not p.fields.get("exclude_from_results")]
        places += phases[-1:]
    for key in ("loadgen", "perf_analyzer"):
        inner = config.inner(key) if isinstance(config.fields.get(key), Mapping) else None
        if inner is not None:
            places.append(inner)
            stimulus = inner.fields.get("stimulus")
            if isinstance(stimulus, Mapping):
                places.append(inner.need_inner("stimulus"))
    places.append(config)
    rate = limit = None
    for place in places:
        for key in ("request_rate", "rate"):
            value = place.fields.get(key)
            if rate is None and isinstance(value, int | float) and not isinstance(value, bool):
                rate = place.number(key) or None
        value = place.fields.get("concurrency")
        if limit is None and isinstance(value, int | float) and not isinstance(value, bool):
            limit = place.number("concurrency") or None
    return rate, limit


# ------------------------------------------------------------------------------- telemetry


def _with_energy(run: BenchmarkRun, node: Node) -> BenchmarkRun:
    telemetry = node.inner("telemetry_data")
    if telemetry is None and isinstance(node.fields.get("telemetry_stats"), Mapping):
        return _older_energy(run, node.need_inner("telemetry_stats"))
    gpus: list[tuple[str, Node]] = []
    seen: set[tuple[str, str | None]] = set()
    endpoints = node.within("telemetry_data").within("endpoints")
    for url in endpoints.fields:
        inner = endpoints.need_inner(url).within("gpus")
        for label in inner.fields:
            gpu = inner.need_inner(label)
            # Two exporters on one host list the same GPUs.
            unique = (label, gpu.text("gpu_uuid"))
            if unique not in seen or unique[1] is None:
                gpus.append((label.removeprefix("gpu_"), gpu))
            seen.add(unique)
    if len({label for label, _ in gpus}) < len(gpus):  # several hosts, each with a GPU 0
        gpus = [(f"{place}:{label}", gpu) for place, (label, gpu) in enumerate(gpus)]
    if not gpus or telemetry is None or run.duration_s is None:
        return _derived(run, node)
    span = _span(telemetry, run.duration_s)
    joules, busy = {}, {}
    counted = True
    for label, gpu in gpus:
        metrics = gpu.need_inner("metrics")
        found = _joules(metrics, run, span, f"{node.name} GPU {label}")
        if found is None:
            continue
        joules[label], from_counter = found
        counted &= from_counter
        busy[label] = _busy(metrics)
    if not joules:
        return run
    names = dict.fromkeys(n for _, gpu in gpus if (n := gpu.text("gpu_name")))
    said = "energy counters' differences" if counted else "mean watts x duration"
    if counted and span > 1.01 * run.duration_s:
        said += (
            f", scaled from the {span:.1f} s of telemetry, warm-up included, to the benchmark's "
            f"{run.duration_s:.1f} s"
        )
    log = PowerLog(
        format="AIPerf telemetry",
        name=f"telemetry of {node.name}",
        clock=Clock.NONE,
        windows=(
            EnergyWindow(name="benchmark", elapsed_s=run.duration_s, joules=joules, busy=busy),
        ),
        gpu_names=tuple(names),
        notes=(f"joules are {said}",),
    )
    return replace(run, power=log, gpu=next(iter(names)) if len(names) == 1 else None)


def _span(telemetry: Node, duration: float) -> float:
    summary = telemetry.within("summary")
    moments = [local_seconds(t) for k in ("start_time", "end_time") if (t := summary.text(k))]
    if len(moments) != 2 or moments[0] is None or moments[1] is None:
        return duration
    return max(moments[1][0] - moments[0][0], duration)


def _joules(metrics: Node, run: BenchmarkRun, span: float, who: str) -> tuple[float, bool] | None:
    assert run.duration_s is not None
    watts = _first(metrics, _POWER)
    integrated = None
    if watts is not None:
        unit = (watts.text("unit") or "").strip()
        if unit not in ("W", "watts", "Watts"):
            raise RefusedFileError(f"{who}: its power is in {unit!r}, not in W.")
        integrated = (watts.number("avg") or 0.0) * run.duration_s or None
    energy = _first(metrics, _ENERGY)
    if energy is not None:
        unit = energy.text("unit") or ""
        if unit not in JOULES:
            raise RefusedFileError(f"{who}: energy_consumption is in {unit!r}, no unit of energy.")
        low, high = energy.number("min"), energy.number("max")
        if low is not None and high is not None:
            if high > low:
                return (high - low) * JOULES[unit] * run.duration_s / span, True
        else:
            counted = (energy.number("avg") or 0.0) * JOULES[unit]
            near = integrated is not None and abs(counted / integrated - 1.0) <= _COUNTER_RATIO
            if not near or not low == high:
                raise RefusedFileError(
                    f"{who}: energy_consumption without min and max may be the mean of a counter "
                    "since boot, which is not the energy of the run, and its watts do not show "
                    "that it is the counter's difference."
                )
            return counted, True
    return None if integrated is None else (integrated, False)


def _first(metrics: Node, names: tuple[str, ...]) -> Node | None:
    """Give the first metric of some names that has a value."""
    for name in names:
        metric = metrics.inner(name)
        if metric is not None and metric.has("avg"):
            return metric
    return None


def _busy(metrics: Node) -> bool | None:
    busy = _first(metrics, _BUSY)
    return None if busy is None else (busy.number("avg") or 0) > 1.0


def _derived(run: BenchmarkRun, node: Node) -> BenchmarkRun:
    """Take the total over GPUs that newer versions work out themselves."""
    for key in ("nvidia_total_gpu_energy", "amd_total_gpu_energy", "total_gpu_energy"):
        metric = node.inner(key)
        if metric is not None and metric.number("avg"):
            unit = metric.text("unit") or ""
            if unit not in (*JOULES, "joules", "joule"):
                raise RefusedFileError(f"{node.name}: {key} is in {unit!r}, no unit of energy.")
            joules = (metric.number("avg") or 0) * JOULES.get(unit, 1.0)
            energy = StatedEnergy(joules=joules, scope=Scope.UNKNOWN, how=f"{key} of all GPUs seen")
            return replace(run, energy=energy)
    return run


def _older_energy(run: BenchmarkRun, stats: Node) -> BenchmarkRun:
    """Take genai-perf's telemetry: mean watts of each GPU, gpu0, gpu1, ..."""
    power = stats.inner("gpu_power_usage")
    if power is None or run.duration_s is None:
        return run
    if (power.text("unit") or "W") not in ("W", "watts"):
        raise RefusedFileError(f"{stats.name}: gpu_power_usage must be in W.")
    use = stats.within("gpu_utilization")
    joules, busy = {}, {}
    for label in power.fields:
        if label == "unit" or not isinstance(power.fields[label], Mapping):
            continue
        mean = power.need_inner(label).number("avg")
        if mean:
            short = label.removeprefix("gpu")
            joules[short] = mean * run.duration_s
            share = use.within(label).number("avg")
            busy[short] = None if share is None else share > 0
    if not joules:
        return run
    log = PowerLog(
        format="genai-perf telemetry",
        name=f"telemetry of {stats.name}",
        clock=Clock.NONE,
        windows=(
            EnergyWindow(name="benchmark", elapsed_s=run.duration_s, joules=joules, busy=busy),
        ),
        notes=("joules are mean watts x duration",),
    )
    return replace(run, power=log)


# ------------------------------------------------------------------------------------- CSV


def matches_text(text: str) -> bool:
    """Whether a text is the CSV export."""
    lines = text.splitlines()
    return bool(lines) and lines[0].startswith("Metric,avg,min,max") and "(" in text


def read_text(text: str, name: str) -> BenchmarkRun:
    """Read the CSV export: tables of metrics, of totals, and of GPUs, blank lines between.

    Raises
    ------
    RefusedFileError
        If it breaks off, or a rule refuses it.
    """
    document: dict[str, object] = {"aiperf_version": None}
    gpus: dict[str, dict[str, dict[str, object]]] = {}
    header: list[str] = []
    try:
        rows = list(csv.reader(text.splitlines(), strict=True))
    except csv.Error as fault:
        raise RefusedFileError(f"{name} is no whole CSV: {fault}.") from None
    for number, row in enumerate(rows, 1):
        if not row:
            header = []
            continue
        if not header:
            header = row
            continue
        if len(row) != len(header):
            raise RefusedFileError(
                f"{name} line {number} has {len(row)} cells where its table has {len(header)}: it "
                "breaks off."
            )
        cells = dict(zip(header, row, strict=True))
        key, metric = _metric(cells, name, number)
        if "GPU_Index" in cells:
            gpu = gpus.setdefault(cells.get("Endpoint", ""), {}).setdefault(
                cells["GPU_Index"],
                {
                    "gpu_name": cells.get("GPU_Name"),
                    "gpu_uuid": cells.get("GPU_UUID"),
                    "metrics": {},
                },
            )
            inner = gpu["metrics"]
            assert isinstance(inner, dict)
            inner[key] = metric
        else:
            document[key] = metric
    if "request_count" not in document or "benchmark_duration" not in document:
        raise RefusedFileError(f"{name} has no table of totals: it breaks off.")
    if gpus:
        places = {endpoint: {"gpus": listed} for endpoint, listed in gpus.items()}
        document["telemetry_data"] = {"endpoints": places}
    return read(document, name)


def _metric(cells: Mapping[str, str], name: str, number: int) -> tuple[str, dict[str, object]]:
    match = re.fullmatch(r"(?P<name>.*?)\s*(?:\((?P<unit>[^()]*)\))?", cells.get("Metric", ""))
    key = re.sub(r"[^a-z0-9]+", "_", match["name"].lower()).strip("_") if match else ""
    metric: dict[str, object] = {"unit": (match["unit"] if match else None) or ""}
    for column, cell in cells.items():
        statistic = "avg" if column == "Value" else column
        if column in ("Metric", "Endpoint") or column.startswith("GPU_"):
            continue
        if cell.strip():
            try:
                metric[statistic] = float(cell.replace(",", ""))
            except ValueError:
                if column in ("avg", "Value"):
                    raise RefusedFileError(
                        f"{name} line {number}: {column} must be a number, not {cell[:40]!r}."
                    ) from None
    return key, metric
