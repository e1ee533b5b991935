"""optimum-benchmark's ``benchmark.json``: its configuration and its report together.

Energies are kWh. Those of the scenario energy_star are totals over its samples, those of the
scenario inference of one call of a batch; which it is, only the configuration says.
"""

from __future__ import annotations

from collections.abc import Mapping

from energylens.importers.runs import (
    BenchmarkRun,
    Latency,
    Node,
    RefusedFileError,
    Scope,
    StatedEnergy,
    verified,
)
from energylens.words import J_PER_KWH

FORMAT = "optimum-benchmark"


def matches(document: object) -> bool:
    """Whether a document is one of its files."""
    if not isinstance(document, Mapping):
        return False
    report = document.get("report")
    if isinstance(report, Mapping) and isinstance(document.get("config"), Mapping):
        return True
    return _is_report(document) or _is_config(document)


def _is_report(document: Mapping[str, object]) -> bool:
    parts = [v for v in document.values() if isinstance(v, Mapping)]
    return bool(parts) and all({"latency", "energy", "memory"} <= v.keys() for v in parts)


def _is_config(document: Mapping[str, object]) -> bool:
    return {"backend", "scenario", "launcher", "environment"} <= document.keys()


def read(document: Mapping[str, object], name: str) -> BenchmarkRun:
    """Read one file.

    Raises
    ------
    RefusedFileError
        If it is the report or the configuration alone, or a rule refuses it.
    """
    root = Node(document, name)
    if _is_report(document):
        raise RefusedFileError(
            f"{name} is the report alone, which does not say whether its joules are of one call or "
            "of all samples: give benchmark.json, which holds the configuration too."
        )
    if _is_config(document):
        raise RefusedFileError(
            f"{name} is the configuration alone, without joules: give benchmark.json."
        )
    config, report = root.need_inner("config"), root.need_inner("report")
    backend, scenario = config.need_inner("backend"), config.need_inner("scenario")
    kind = scenario.text("name")
    if kind not in ("energy_star", "inference"):
        raise RefusedFileError(
            f"{name}: its scenario is {kind!r}, and energy_star and inference are known here."
        )
    shapes = scenario.within("input_shapes")
    batch = shapes.whole("batch_size") or 1
    count = scenario.whole("num_samples") if kind == "energy_star" else batch
    if count is None:
        raise RefusedFileError(f"{name}: scenario.num_samples is missing: it is not whole.")
    prefill, decode = _joules(report, "prefill"), _joules(report, "decode")
    if prefill is None:
        raise RefusedFileError(f"{name}: it has no energy of a prefill: run it with energy: true.")
    made = _output(scenario)
    environment = config.within("environment")
    names = environment.fields.get("gpu")
    gpu = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else None
    devices = backend.text("device_ids")
    used = len([d for d in devices.split(",") if d.strip()]) if devices else None
    dtype = backend.text("torch_dtype")
    engine = backend.text("name")
    version = backend.text("version")
    if engine == "pytorch":
        engine = "transformers"
        version = environment.text("transformers_version")
    length = shapes.positive("sequence_length")
    return verified(
        BenchmarkRun(
            format=FORMAT,
            where=name,
            version=environment.text("optimum_benchmark_version"),
            llm=backend.text("model"),
            gpu=gpu,
            gpus=used,
            precision=dtype if dtype != "auto" else None,
            engine=engine,
            engine_version=version,
            completed=float(count),
            input_tokens=length if kind == "inference" else None,
            output_tokens=made,
            max_concurrency=float(batch),
            mean_concurrency=float(batch),
            # Those of energy_star are of all samples together, as its joules are.
            ttft=_latency(report, "prefill") if kind == "inference" else Latency(),
            tpot=_per_token(report, made) if kind == "inference" else Latency(),
            energy=StatedEnergy(
                joules=prefill + (decode or 0.0),
                scope=Scope.ACTIVE_GPUS if used is not None else Scope.UNKNOWN,
                gpus=used,
                how=f"GPU energy of prefill and decode, of {count} requests",
            ),
            prefill_energy_j=prefill if decode else None,
            decode_energy_j=decode,
            notes=("its CPU and RAM energies are estimates, and left out",),
        )
    )


def _joules(report: Node, part: str) -> float | None:
    energy = report.within(part).inner("energy")
    if energy is None:
        return None
    if energy.text("unit") != "kWh":
        raise RefusedFileError(f"{report.name}: the energy of {part} must be in kWh.")
    kwh = energy.number("gpu")
    if kwh == 0:
        raise RefusedFileError(
            f"{report.name}: the GPU energy of {part} is 0 kWh, which is a meter that gave nothing."
        )
    return None if kwh is None else kwh * J_PER_KWH


def _output(scenario: Node) -> float | None:
    """Tokens generated, where the scenario fixes them."""
    made = scenario.within("generate_kwargs")
    low, high = made.positive("min_new_tokens"), made.positive("max_new_tokens")
    return high if low == high else None


def _latency(report: Node, part: str) -> Latency:
    latency = report.within(part).within("latency")
    if latency.text("unit") not in (None, "s"):
        raise RefusedFileError(f"{report.name}: the latency of {part} must be in s.")
    return Latency.of(lambda statistic: latency.seconds(statistic, 1.0), "mean", "p50")


def _per_token(report: Node, made: float | None) -> Latency:
    stated = _latency(report, "per_token")
    if stated.known:
        return stated
    decode = _latency(report, "decode").mean_s
    if decode is None or made is None or made < 2:
        return Latency()
    return Latency(mean_s=decode / (made - 1))
