"""SGLang's ``bench_serving`` JSON Lines: one object a run, appended from run to run.

Lengths are means of what was sent and made: ``random_input_len`` is a maximum where
``random_range_ratio`` is below 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from energylens.importers.bench.vllm_serve import latency
from energylens.importers.runs import BenchmarkRun, Node, RefusedFileError, verified

FORMAT = "SGLang bench_serving"


def matches(document: object) -> bool:
    """Whether a document is one run of it."""
    return (
        isinstance(document, Mapping)
        and {"backend", "dataset_name", "total_input_tokens", "total_output_tokens"}
        <= document.keys()
        and ("total_output_tokens_retokenized" in document or "random_range_ratio" in document)
    )


def read(document: Mapping[str, object], name: str) -> BenchmarkRun:
    """Read one run.

    Raises
    ------
    RefusedFileError
        If a rule refuses it.
    """
    node = Node(document, name)
    completed = node.number("completed")
    if completed == 0:
        raise RefusedFileError(
            f"{name}: none of its requests completed, so it holds no measurement."
        )
    if completed is None:
        raise RefusedFileError(f"{name}: completed is missing: the file is not whole.")
    rate = node.fields.get("request_rate")
    open_rate = None
    if rate is not None and rate != math.inf and rate != "inf" and rate != "trace":
        open_rate = node.positive("request_rate")
    server = node.loose("server_info")

    def served(key: str) -> int | None:
        value = server.fields.get(key)
        return value if type(value) is int and value >= 1 else None

    tensor, data = served("tp_size"), served("dp_size")
    if server.fields.get("enable_dp_attention") and tensor and data:
        # The data-parallel copies of attention are on the GPUs of tp_size, not beside them.
        tensor = max(tensor // data, 1)
    limit = node.positive("max_concurrency")
    model, version = server.fields.get("model_path"), server.fields.get("version")
    backend = node.text("backend") or ""
    kind = backend.lower().split("-")[0]
    return verified(
        BenchmarkRun(
            format=FORMAT,
            where=name,
            llm=node.text("model") or (model if isinstance(model, str) else None),
            engine=kind if kind in ("sglang", "vllm", "lmdeploy") else None,
            engine_version=version if isinstance(version, str) else None,
            tensor_parallel=tensor,
            pipeline_parallel=served("pp_size"),
            data_parallel=data,
            expert_parallel=served("ep_size"),
            completed=completed,
            input_tokens=_mean(node, "total_input_tokens", completed),
            output_tokens=_mean(node, "total_output_tokens", completed),
            vision_tokens=_mean(node, "total_input_vision_tokens", completed),
            duration_s=node.need("duration"),
            request_rate_per_s=open_rate,
            achieved_rate_per_s=node.positive("request_throughput"),
            max_concurrency=limit,
            max_num_seqs=served("max_running_requests"),
            mean_concurrency=node.positive("concurrency"),
            ttft=latency(node, "ttft"),
            tpot=latency(node, "tpot"),
            itl=latency(node, "itl"),
            request_latency=latency(node, "e2e_latency"),
        )
    )


def _mean(node: Node, key: str, completed: float) -> float | None:
    total = node.number(key)
    return total / completed if total else None
