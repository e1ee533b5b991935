"""What runs inside vLLM's workers, one on each rank: mixed into its worker class by name.

vLLM imports this in processes of its own, so nothing heavy may be imported here.
"""

from __future__ import annotations

from typing import Any


class WorkerExtension:
    """Methods that ``collective_rpc`` can call on every rank."""

    model_runner: Any

    def energylens_weights(self) -> dict[str, Any]:
        """Count the bytes that this rank really loaded, by dtype, and name their methods."""
        model = self.model_runner.model
        loaded: dict[str, int] = {}
        buffers = [b for name, b in model.named_buffers() if "cos_sin" not in name]  # no weights
        for tensor in (*model.parameters(), *buffers):
            dtype = str(tensor.dtype).removeprefix("torch.")
            loaded[dtype] = loaded.get(dtype, 0) + tensor.numel() * tensor.element_size()
        methods = set()
        for module in model.modules():
            method = getattr(module, "quant_method", None)
            if method is not None:
                # compressed-tensors hides what it does in a scheme of its own
                scheme = getattr(module, "scheme", None) or method
                methods.add(type(scheme).__name__)
        return {"bytes": loaded, "quantization_methods": sorted(methods)}

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
