"""What runs inside vLLM's workers, one on each rank: mixed into its worker class by name.

vLLM imports this in processes of its own, after torch and before any weights are loaded, so
nothing else that is heavy may be imported here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from energylens.instrument.engines.amx import NO_AMX_VARIABLE

#: Bytes by dtype that each module had when its weights were loaded, before kernels packed them.
_loaded: dict[str, dict[str, int]] = {}


def own_bytes(module: Any) -> dict[str, int]:
    """Bytes of a module's own parameters and buffers, by dtype; tables of angles are no weights."""
    found: dict[str, int] = {}
    buffers = [b for name, b in module.named_buffers(recurse=False) if "cos_sin" not in name]
    for tensor in (*module.parameters(recurse=False), *buffers):
        dtype = str(tensor.dtype).removeprefix("torch.")
        found[dtype] = found.get(dtype, 0) + tensor.numel() * tensor.element_size()
    return found


def note_loaded(model: Any) -> None:
    """Remember what every module has now."""
    _loaded.clear()
    _loaded.update((name, own_bytes(module)) for name, module in model.named_modules())


def weights_of(model: Any) -> dict[str, Any]:
    """Count the bytes of a model's weights by dtype, and name the methods of its layers.

    Some CPU kernels keep a packed copy out of sight and leave an empty parameter behind. What
    such a layer had when it was loaded is what counts; a layer whose method narrows its weights
    counts as it is afterwards.
    """
    total: dict[str, int] = {}
    methods: set[str] = set()
    seen: set[int] = set()
    for name, module in model.named_modules():
        method = getattr(module, "quant_method", None)
        if method is not None:
            # compressed-tensors hides what it does in a scheme of its own
            scheme = getattr(module, "scheme", None) or method
            methods.add(type(scheme).__name__)
        now = own_bytes(module)
        before = _loaded.get(name, {})
        plain = method is None or type(method).__name__.startswith("Unquantized")
        shared = {id(p) for p in module.parameters(recurse=False)}
        if shared and shared <= seen:
            continue  # an output matrix tied to the embedding
        seen |= shared
        counted = before if plain and sum(before.values()) > sum(now.values()) else now
        for dtype, count in counted.items():
            total[dtype] = total.get(dtype, 0) + count
    return {"bytes": total, "quantization_methods": sorted(methods)}


def _note_before_packing() -> None:
    """Have vLLM's loader tell us of the weights before kernels lay them out their way."""
    loader = sys.modules.get("vllm.model_executor.model_loader.base_loader")
    process: Callable[..., Any] | None = getattr(loader, "process_weights_after_loading", None)
    if process is None or hasattr(process, "notes_loaded"):
        return

    def noted(model: Any, *rest: Any, **named: Any) -> Any:
        note_loaded(model)
        return process(model, *rest, **named)

    noted.notes_loaded = True  # type: ignore[attr-defined]
    loader.process_weights_after_loading = noted  # type: ignore[union-attr]


def _forget_amx() -> None:
    """Let torch say that there is no AMX: vLLM asks it before it takes a kernel."""
    cpu = getattr(sys.modules.get("torch"), "cpu", None)
    for name in ("_is_amx_tile_supported", "_is_amx_fp16_supported"):
        if hasattr(cpu, name):
            setattr(cpu, name, lambda: False)


if os.environ.get(NO_AMX_VARIABLE):
    _forget_amx()
_note_before_packing()


class WorkerExtension:
    """Methods that ``collective_rpc`` can call on every rank."""

    model_runner: Any

    def energylens_weights(self) -> dict[str, Any]:
        """Count the bytes that this rank really loaded, by dtype, and name their methods."""
        return weights_of(self.model_runner.model)

    def energylens_prepare_pipeline(self) -> int:
        """Make the buffer that later pipeline stages receive into, where none was made.

        vLLM 0.32 on CPU makes it in a warm-up that eager mode skips, and then fails.
        """
        from vllm.distributed import get_pp_group

        runner = self.model_runner
        group = get_pp_group()
        if not group.is_first_rank and getattr(runner, "intermediate_tensors", 0) is None:
            runner.intermediate_tensors = runner.model.make_empty_intermediate_tensors(
                batch_size=runner.max_num_tokens,
                dtype=runner.model_config.dtype,
                device=runner.device,
            )
        return int(group.rank_in_group)
