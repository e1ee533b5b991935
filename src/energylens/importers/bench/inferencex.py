"""InferenceX's aggregate JSON (InferenceMAX before), one object a point, or a list of them.

Latencies have no suffix and are in seconds; ``intvty`` is tokens a second and user. Joules are
taken where the power keys are of schema version 2, in which they are whole-deployment energy; in
earlier ones they meant other things.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from energylens.importers.bench.vllm_serve import latency
from energylens.importers.runs import (
    BenchmarkRun,
    Node,
    RefusedFileError,
    Scope,
    StatedEnergy,
    verified,
)

FORMAT = "InferenceX aggregate"

POWER_SCHEMA = 2
_ENGINES = {"trt": "tensorrt-llm", "trtllm": "tensorrt-llm", "tensorrt-llm": "tensorrt-llm"}
_PRECISIONS = {"fp4": "nvfp4"}


def matches(document: object) -> bool:
    """Whether a document is one point of it."""
    if not isinstance(document, Mapping):
        return False
    metrics = document.get("metrics")
    flat = "hw" in document and "tput_per_gpu" in document
    row = "hardware" in document and isinstance(metrics, Mapping) and "tput_per_gpu" in metrics
    return flat or row


def read(document: Mapping[str, object], name: str) -> BenchmarkRun:
    """Read one point.

    Raises
    ------
    RefusedFileError
        If prefill and decode are on GPUs of their own, or power is invalid or of another schema.
    """
    metrics = document.get("metrics")
    if isinstance(metrics, Mapping) and "hardware" in document:
        document = {
            "hw": document["hardware"],
            "tp": document.get("tp", document.get("decode_tp")),
            "ep": document.get("ep", document.get("decode_ep")),
            "dp_attention": document.get("dp_attention", document.get("decode_dp_attention")),
            **document,
            **metrics,
        }
    kind = document.get("benchmark_type")
    if kind not in (None, "", "single_turn"):
        raise RefusedFileError(
            f"{name}: its benchmark_type is {str(kind)[:40]!r}, whose requests find most of their "
            "prompts in the cache: only single_turn is a row."
        )
    node = Node(document, name)
    if _flag(node, "disagg"):
        raise RefusedFileError(
            f"{name} has prefill and decode on GPUs of their own, which the tidy table has no "
            "columns for."
        )
    tensor, pipeline = node.whole("tp"), _degree(node, "pp")
    parts = (pipeline or 1) * (_degree(node, "pcp_size") or 1)
    gpus = tensor * parts if tensor is not None else None
    counted = _degree(node, "num_decode_gpu")
    if gpus is not None and counted is not None and counted != gpus:
        raise RefusedFileError(
            f"{name}: it ran on {counted} GPUs, but its degrees make {gpus}: what its joules cover "
            "is not told."
        )
    shared = _flag(node, "dp_attention")
    sent, made, energy = _energy(node, gpus)
    notes = []
    if sent is None or made is None:
        sent, made = node.positive("isl"), node.positive("osl")
        notes.append("lengths are those asked for (isl, osl): drawn ones are up to a fifth shorter")
    engine = node.text("framework")
    version = re.search(r":v?(\d+\.\d+(?:\.\d+)?[\w.]*)", node.text("image") or "")
    precision = node.text("precision")
    return verified(
        BenchmarkRun(
            format=FORMAT,
            where=name,
            llm=node.text("model"),
            gpu=_gpu(node.text("hw")),
            gpus=gpus,
            precision=_PRECISIONS.get(precision or "", precision),
            # With attention data-parallel each GPU keeps whole attention layers of its own.
            tensor_parallel=1 if shared else tensor,
            pipeline_parallel=pipeline,
            data_parallel=tensor if shared else None,
            expert_parallel=_degree(node, "ep"),
            engine=_ENGINES.get((engine or "").lower(), engine),
            engine_version=version[1] if version is not None else None,
            completed=1.0,
            counted=False,
            input_tokens=sent,
            output_tokens=made,
            max_concurrency=node.positive("conc"),
            mean_concurrency=None,
            ttft=latency(node, "ttft", "", 1.0),
            tpot=latency(node, "tpot", "", 1.0),
            itl=latency(node, "itl", "", 1.0),
            request_latency=latency(node, "e2el", "", 1.0),
            energy=energy,
            notes=tuple(notes),
        )
    )


def _degree(node: Node, key: str) -> int | None:
    return None if node.fields.get(key) in (None, 0) else node.whole(key)


def _flag(node: Node, key: str) -> bool:
    value = node.fields.get(key)
    if value is None or value is False or value == "":
        return False
    if value is True:
        return True
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise node.refuse(key, "true or false")


def _gpu(hardware: str | None) -> str | None:
    """Take the GPU off the name of a runner, as in h200-trt or b200-nv_3."""
    return re.split(r"[-_]", hardware)[0].upper() if hardware else None


def _energy(node: Node, gpus: int | None) -> tuple[float | None, float | None, StatedEnergy | None]:
    """Read joules a query, and the lengths that they and joules a token imply."""
    keys = [key for key in node.fields if key.startswith("joules_per_") and node.has(key)]
    if not keys:
        return None, None, None
    if node.fields.get("power_metric_schema_version") != POWER_SCHEMA:
        raise RefusedFileError(
            f"{node.name}: {keys[0]} is of power_metric_schema_version "
            f"{node.fields.get('power_metric_schema_version')!r}, and only in version "
            f"{POWER_SCHEMA} is it the energy of the whole deployment."
        )
    if node.fields.get("power_valid") not in (1, True):
        raise RefusedFileError(
            f"{node.name}: power_valid is {node.fields.get('power_valid')!r}: its own check found "
            "the joules invalid."
        )
    query = node.positive("joules_per_successful_query")
    each = node.positive("joules_per_output_token")
    if query is None:
        made = node.positive("osl")
        if each is None or made is None:
            raise RefusedFileError(
                f"{node.name}: it has neither joules_per_successful_query nor "
                "joules_per_output_token, and per total token alone says not of which length."
            )
        energy = StatedEnergy(
            joules=each * made,
            scope=Scope.ACTIVE_GPUS,
            gpus=gpus,
            how="joules_per_output_token x osl, of the whole deployment",
        )
        return None, None, energy
    energy = StatedEnergy(
        joules=query,
        scope=Scope.ACTIVE_GPUS,
        gpus=gpus,
        how="joules_per_successful_query, of the whole deployment",
    )
    sent = node.positive("joules_per_input_token")
    if each is None or sent is None:
        return None, None, energy
    return query / sent, query / each, energy
