"""``trtllm-bench --report_json``.

Its energy, where there is one, is the difference of NVML's counters over the benchmark. For more
GPUs than one host has, it is that of the first host's multiplied by the number of hosts.
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

FORMAT = "trtllm-bench"

#: Its ``QuantAlgo``; of a mixture of several the checkpoint's name or ``--precision`` says which.
_PRECISIONS: Mapping[str, str] = {
    "W4A16_AWQ": "awq-int4",
    "W4A16_GPTQ": "gptq-int4",
    "W8A16": "w8a16",
    "W8A16_GPTQ": "w8a16",
    "INT8": "w8a16",
    "FP8_PER_CHANNEL_PER_TOKEN": "fp8",
    "FP8_BLOCK_SCALES": "fp8-block",
    "W8A8_SQ_PER_CHANNEL": "int8",
    "W8A8_SQ_PER_TENSOR_PLUGIN": "int8",
    "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN": "int8",
    "W8A8_SQ_PER_CHANNEL_PER_TENSOR_PLUGIN": "int8",
    "W8A8_SQ_PER_TENSOR_PER_TOKEN_PLUGIN": "int8",
    "NVFP4_AWQ": "nvfp4",
    "MXFP4": "mxfp4",
    "W4A8_MXFP4_FP8": "mxfp4",
    "W4A16_MXFP4": "mxfp4",
    "W4A8_MXFP4_MXFP8": "mxfp4",
}


def matches(document: object) -> bool:
    """Whether a document is a report of it."""
    return (
        isinstance(document, Mapping)
        and isinstance(document.get("world_info"), Mapping)
        and isinstance(document.get("performance"), Mapping)
        and isinstance(document.get("engine"), Mapping)
    )


def read(document: Mapping[str, object], name: str) -> BenchmarkRun:
    """Read one report.

    Raises
    ------
    RefusedFileError
        If a rule refuses it: no request, energy extrapolated to other hosts.
    """
    node = Node(document, name)
    engine, world = node.need_inner("engine"), node.need_inner("world_info")
    requests, speed = node.need_inner("request_info"), node.need_inner("performance")
    completed = requests.number("num_requests")
    if not completed:
        raise RefusedFileError(f"{name}: it has no completed request, so it is no measurement.")
    gpu = node.within("machine").text("name")
    size = world.whole("world_size")
    tensor, pipeline = world.whole("tp_size"), world.whole("pp_size")
    duration = speed.need("total_latency_ms") * 1e-3
    streaming = node.within("streaming_metrics")
    return verified(
        BenchmarkRun(
            format=FORMAT,
            where=name,
            llm=engine.text("model"),
            gpu=gpu,
            gpus=size,
            precision=_precision(engine),
            tensor_parallel=tensor,
            pipeline_parallel=pipeline,
            expert_parallel=_expert(world),
            engine="tensorrt-llm",
            engine_version=engine.text("version"),
            completed=completed,
            input_tokens=requests.positive("avg_input_length"),
            output_tokens=requests.positive("avg_output_length"),
            duration_s=duration,
            achieved_rate_per_s=speed.positive("request_throughput_req_s"),
            max_num_seqs=world.positive("max_batch_size"),
            mean_concurrency=requests.positive("avg_num_concurrent_requests"),
            ttft=_latency(streaming, "avg_ttft_ms", "ttft_percentiles"),
            tpot=_latency(streaming, "avg_tpot_ms", "tpot_percentiles"),
            request_latency=_latency(
                speed, "avg_request_latency_ms", "request_latency_percentiles_ms"
            ),
            energy=_energy(node, size, gpu),
        )
    )


def _expert(world: Node) -> int | None:
    value = world.fields.get("ep_size")
    return None if value in (None, -1, 0) else world.whole("ep_size")


def _precision(engine: Node) -> str | None:
    quantized = engine.text("quantization")
    if quantized is not None and quantized.upper() != "NO_QUANT":
        return _PRECISIONS.get(quantized.upper(), quantized.lower().replace("_", "-"))
    return engine.text("dtype")


def _energy(node: Node, size: int | None, gpu: str | None) -> StatedEnergy | None:
    joules = node.within("energy").number("total_energy_j")
    if joules is None:
        return None
    if joules == 0:
        raise RefusedFileError(
            f"{node.name}: its energy is 0 J, which is a meter that gave nothing: log the power "
            "beside the benchmark."
        )
    grace = gpu is not None and any(word.startswith("GB") for word in gpu.split())
    in_host = 4 if grace else 8
    if size is not None and size > in_host:
        raise RefusedFileError(
            f"{node.name}: its energy of {size} GPUs is that of one host's {in_host} multiplied, "
            "not measured: log the power of every host."
        )
    return StatedEnergy(
        joules=joules,
        scope=Scope.ACTIVE_GPUS,
        gpus=size,
        how="NVML energy counters over the benchmark, the begin and end of its load included",
    )


def _latency(node: Node, mean: str, percentiles: str) -> Latency:
    inner = node.within(percentiles)

    def read(name: str) -> float | None:
        return (node if name == mean else inner).seconds(name, 1e-3)

    return Latency.of(read, mean, "p50")
