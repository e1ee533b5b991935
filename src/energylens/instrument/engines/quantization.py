"""Number formats as each engine is told of them: what to write into ``config.json``.

An engine that is asked for a format it does not have may quantize a part, or nothing, and say
nothing. So every engine reports what it really loaded, and :func:`check_loaded` compares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from energylens.instrument.engine import EngineError, Reason
from energylens.records import Llm, Precision

GROUP = 128
_WIDE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
UNQUANTIZED = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
# Never quantized: the output matrix, and vision towers (which checkpoints keep in 16 bits).
_WIDE = ["lm_head", "re:.*visual.*", "re:.*vision.*"]
_WIDE_NAMES = ["lm_head", "visual", "vision_tower", "model.visual"]


def dtype_of(precision: Precision) -> str:
    """Return the dtype of whatever stays unquantized."""
    return UNQUANTIZED.get(precision.id, "bfloat16")


def vllm_quantization(precision: Precision) -> dict[str, Any] | None:
    """Return the ``quantization_config`` for vLLM, None where nothing is quantized.

    Raises
    ------
    EngineError
        UNSUPPORTED, if vLLM cannot have the format without a real checkpoint.
    """
    if precision.id in UNQUANTIZED:
        return None
    int8 = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    packed = {"symmetric": True, "strategy": "group", "group_size": GROUP, "type": "int"}
    configs: dict[str, dict[str, Any]] = {
        "fp8": {
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "ignored_layers": _WIDE_NAMES,
        },
        "int8": _compressed(
            "int-quantized",
            int8,
            {
                "num_bits": 8,
                "type": "int",
                "symmetric": True,
                "strategy": "token",
                "dynamic": True,
            },
        ),
        "w8a16": _compressed("pack-quantized", packed | {"num_bits": 8}),
        "int4": _compressed("pack-quantized", packed | {"num_bits": 4}),
        "awq-int4": {
            "quant_method": "awq",
            "bits": 4,
            "group_size": GROUP,
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": _WIDE_NAMES,
        },
        "gptq-int4": {
            "quant_method": "gptq",
            "bits": 4,
            "group_size": GROUP,
            "desc_act": False,
            "sym": True,
        },
        "mxfp4": {"quant_method": "mxfp4"},
        "nvfp4": _compressed(
            "nvfp4-pack-quantized",
            _nvfp4(dynamic=False),
            _nvfp4(dynamic="local"),
        ),
    }
    if precision.id not in configs:
        raise EngineError(
            f"vLLM cannot be given {precision.id} without a checkpoint in that format: choose one "
            f"of {', '.join([*UNQUANTIZED, *configs])}, or give weights=PATH",
            reason=Reason.UNSUPPORTED,
        )
    return configs[precision.id]


def _compressed(
    layout: str, weights: dict[str, Any], activations: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return a compressed-tensors configuration for all linear layers."""
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": _WIDE,
    }


def _nvfp4(dynamic: bool | str) -> dict[str, Any]:
    return {
        "num_bits": 4,
        "type": "float",
        "symmetric": True,
        "strategy": "tensor_group",
        "group_size": 16,
        "dynamic": dynamic,
    }


def loaded_provenance(reports: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Sum what the ranks loaded: bytes by dtype, and the methods that their layers use."""
    total: dict[str, int] = {}
    methods: set[str] = set()
    for report in reports:
        for dtype, count in report["bytes"].items():
            total[dtype] = total.get(dtype, 0) + int(count)
        methods.update(report["quantization_methods"])
    return {
        **{f"weight_bytes_{dtype}": str(count) for dtype, count in sorted(total.items())},
        "quantization_methods": ",".join(sorted(methods)) or "none",
    }


def check_loaded(
    precision: Precision, llm: Llm, loaded: Mapping[str, str], replicas: int = 1
) -> None:
    """Refuse weights that are held wider than the format asked for.

    Some kernels pack narrow weights out of sight, so what counts is that they are not still
    there in 16 bits.

    Parameters
    ----------
    precision, llm
        What was asked for; the LLM as it was cut or divided.
    loaded : mapping of str to str
        What :func:`loaded_provenance` gave.
    replicas : int
        How often all of it was loaded.

    Raises
    ------
    EngineError
        UNSUPPORTED, if most of what should be narrow is in 16 bits or more.
    """
    if precision.id in UNQUANTIZED:
        return
    wide = sum(
        int(loaded.get(f"weight_bytes_{dtype}", "0")) / size for dtype, size in _WIDE_BYTES.items()
    )
    narrow = llm.expert_parameters
    if precision.scope == "linear":
        narrow += llm.backbone_parameters
    allowed = llm.counted_parameters - narrow
    if wide > replicas * (allowed + narrow / 2):
        raise EngineError(
            f"{precision.id} was asked for, but the engine holds {wide:.3g} weights in 16 bits or "
            f"more, where {replicas * allowed:.3g} were expected: it has no such kernel for this "
            "LLM here, so choose another precision",
            reason=Reason.UNSUPPORTED,
        )
