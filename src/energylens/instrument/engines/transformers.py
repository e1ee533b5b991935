"""Hugging Face transformers with random weights: what a GPU machine without vLLM can run.

One process and one device. Phases can be repeated each on its own, decode too, so that every
window is as long as wished.

How a decode step is kept the same over and over
------------------------------------------------
A serving engine reads at each step the cache as long as it then is; a static cache reads all
its slots at every step, used or not. So the cache has as many slots as there is context *on
average* over the decode phase, ``input + output / 2``, all of them are attended to without a
mask, and the write position is set back in the middle: the bytes read over the phase are those
that a serving engine reads. What the tokens are is of no interest; shapes and work are.

Prefill runs on a growing cache with causal attention (the fused kernels need no mask), in
groups of at most ``step_tokens`` tokens as an engine's scheduler forms them, and is then copied
into the static cache.
"""

from __future__ import annotations

import gc
import importlib.util
import inspect
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from energylens.catalog.hf_write import (
    FIRST_PROMPT_TOKEN,
    VISION_MODEL_TYPES,
    Config,
    has_vision,
    text_config,
)
from energylens.errors import EnergyLensError, MissingExtraError
from energylens.instrument.engine import (
    Batch,
    Capabilities,
    EngineError,
    Layout,
    Load,
    Media,
    Phase,
    Progress,
    Reason,
    Repetition,
    RequestTiming,
)
from energylens.instrument.engines.folders import layout_config, layout_llm
from energylens.instrument.engines.options import Options
from energylens.instrument.engines.quantization import (
    UNQUANTIZED,
    check_loaded,
    dtype_of,
    loaded_provenance,
)
from energylens.instrument.engines.synthetic import media_grids, text_tokens_beside
from energylens.instrument.engines.transformers_layers import (
    ATTENTION,
    STATE_ATTRIBUTES,
    copy_rows,
    in_blocks,
    quantize_nf4,
    register_attention,
    repeat_states,
    states_of,
    weights_of,
)
from energylens.instrument.meter import Meter
from energylens.records import Modality, Precision

OPTIONS = ("device", "graphs", "compile", "threads")
STEP_TOKENS = 8192  # tokens of one prefill pass where the layout does not say, as vLLM has it


@dataclass(kw_only=True)
class _Prepared:
    """A batch ready to run: its static cache, its tokens and, on a GPU, its captured step."""

    batch: Batch
    cache: Any
    token: Any
    position: Any
    filled: bool = False  # whether the cache holds a prompt
    replay: Callable[[], None] | None = None
    pass_steps: int = 1  # decode steps until the write position is set back
    starts: tuple[int, ...] = ()  # write position of each attention layer to begin with


class TransformersEngine:
    """Runs batches with transformers.

    Options (``Layout.options``)
    ----------------------------
    device
        ``auto`` (default), ``cpu`` or ``cuda``.
    graphs
        ``true``: decode steps are replayed from a CUDA graph, or the case fails. Default: on a
        GPU, wherever the LLM can be captured; the provenance says whether it was.
    compile
        ``true``: the LLM goes through torch.compile. Default false.
    threads
        CPU threads of torch; by default torch's own choice.
    """

    name = "transformers"

    def __init__(self) -> None:
        self._model: Any = None
        self._config: Config = {}
        self._layout: Layout | None = None
        self._device: Any = None
        self._graphs = False
        self._prepared: _Prepared | None = None
        self._phases = frozenset(Phase)
        self._modalities = frozenset(Modality)

    @property
    def capabilities(self) -> Capabilities:
        """Every phase on its own; the vision tower where the LLM has one; no steady loads."""
        return Capabilities(phases=self._phases, splits_requests=True, modalities=self._modalities)

    # ------------------------------------------------------------------------- start, close

    def start(self, layout: Layout) -> Mapping[str, str]:
        """Build the LLM on the device from its configuration, or load a checkpoint.

        Raises
        ------
        EngineError
            As the seam says; UNSUPPORTED for more than one GPU.
        MissingExtraError
            If torch or transformers is not installed.
        """
        options = Options(self.name, layout.options, OPTIONS)
        for package in ("torch", "transformers"):
            if importlib.util.find_spec(package) is None:
                raise MissingExtraError(package, "transformers", "the transformers engine")
        if layout.gpus > 1:
            raise EngineError(
                f"the transformers engine runs on one GPU, not on {layout.gpus}: use vllm, or "
                "measure one GPU's shard",
                reason=Reason.UNSUPPORTED,
            )
        os.environ.setdefault("HF_HUB_OFFLINE", "1" if layout.weights == "dummy" else "0")
        self.close()
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        if threads := round(options.number("threads", 0.0)):
            torch.set_num_threads(threads)
        wanted = options.choice("device", ("auto", "cpu", "cuda"))
        if wanted == "auto":
            wanted = "cuda" if torch.cuda.is_available() else "cpu"
        self._device = torch.device(wanted)
        on_gpu = wanted == "cuda"
        self._graphs = options.flag("graphs", on_gpu)
        if self._graphs and not on_gpu:
            raise EngineError("graphs=true needs device=cuda", reason=Reason.UNSUPPORTED)
        self._layout = layout
        self._config, differences = layout_config(layout)
        register_attention()
        with self._translated("load the LLM"):
            self._model = self._build(layout)
            described = self._quantize(layout.precision)
            if options.flag("compile", False):
                self._model.forward = torch.compile(self._model.forward, dynamic=False)
        graphs = str(self._graphs).lower()
        if self._graphs and "graphs" not in layout.options:
            graphs = self._probed_graphs()
        loaded = loaded_provenance([weights_of(self._model)])
        check_loaded(layout.precision, layout_llm(layout), loaded)
        vision = has_vision(self._config)
        self._phases = frozenset(Phase) if vision else frozenset(Phase) - {Phase.ENCODE}
        self._modalities = frozenset(Modality) if vision else frozenset({Modality.TEXT})
        provenance = {
            "engine_version": str(transformers.__version__),
            "torch_version": str(torch.__version__),
            "cuda_version": str(torch.version.cuda),
            "device": wanted,
            "cuda_graphs": graphs,
            "torch_compile": str(options.flag("compile", False)).lower(),
            "attention": "scaled_dot_product_attention, mean context at every decode step",
            "weights": "dummy normal 0.02" if layout.weights == "dummy" else "checkpoint",
            **described,
            **loaded,
        }
        if self._config["model_type"].startswith("deepseek"):
            differences += ("latent attention caches expanded keys and values",)
        if differences:
            provenance["llm_differences"] = "; ".join(differences)
        return provenance

    def _probed_graphs(self) -> str:
        """Find out on a small batch whether this LLM can be captured, and say so if not."""
        try:
            self.prepare(Batch(requests=1, input_tokens=16, output_tokens=4), [Phase.DECODE])
        except EngineError as error:
            if error.reason is not Reason.UNSUPPORTED:
                raise
            self._graphs = False
            return f"false ({error})"
        finally:
            self._prepared = None
        return "true"

    def _build(self, layout: Layout) -> Any:
        import torch
        import transformers

        dtype = getattr(torch, dtype_of(layout.precision))
        vision = has_vision(self._config)
        kind = "AutoModelForImageTextToText" if vision else "AutoModelForCausalLM"
        factory = getattr(transformers, kind)
        # Vision towers attend within images; their own implementation knows how.
        attention = {"": ATTENTION, "vision_config": "sdpa"} if vision else ATTENTION
        if layout.weights != "dummy":
            source = layout.model_path or layout.llm.id
            if layout.weights != "auto":
                source = layout.weights
            model = factory.from_pretrained(source, dtype=dtype, attn_implementation=attention)
            return model.to(self._device).eval()
        described = transformers.AutoConfig.for_model(**self._config)
        try:
            from transformers.initialization import no_init_weights

            uninitialized = no_init_weights()
        except ImportError:
            uninitialized = nullcontext()
        with torch.device(self._device), uninitialized:
            model = factory.from_config(described, dtype=dtype, attn_implementation=attention)
        model = model.to(dtype).eval()
        # Power depends on what is multiplied, so zeros would be too cheap.
        generator = torch.Generator(self._device).manual_seed(layout.seed)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.dim() == 1 and "norm" in name:
                    weight.fill_(1.0)
                else:
                    weight.normal_(0.0, 0.02, generator=generator)
        return model

    def _quantize(self, precision: Precision) -> dict[str, str]:
        """Quantize the linear layers of the blocks in place."""
        if precision.id in UNQUANTIZED:
            return {}
        if self._layout is not None and self._layout.llm.experts is not None:
            raise EngineError(
                f"transformers keeps the experts of a mixture in 16 bits, so that {precision.id} "
                "would be a name only: use vllm, or bf16",
                reason=Reason.UNSUPPORTED,
            )
        if precision.id == "nf4":
            return quantize_nf4(self._model)
        kinds = {
            "w8a16": "Int8WeightOnlyConfig",
            "int8": "Int8DynamicActivationInt8WeightConfig",
            "int4": "Int4WeightOnlyConfig",
            "fp8": "Float8DynamicActivationFloat8WeightConfig",
        }
        if precision.id not in kinds:
            known = ", ".join([*UNQUANTIZED, *kinds, "nf4"])
            raise EngineError(
                f"the transformers engine has no {precision.id}: choose one of {known}",
                reason=Reason.UNSUPPORTED,
            )
        if importlib.util.find_spec("torchao") is None:
            raise MissingExtraError("torchao", "transformers", f"{precision.id} weights")
        import torchao
        from torchao import quantization

        try:
            config = getattr(quantization, kinds[precision.id])()
            quantization.quantize_(self._model, config, filter_fn=in_blocks)
        except (ImportError, AssertionError, NotImplementedError, RuntimeError) as error:
            raise EngineError(
                f"torchao {torchao.__version__} cannot have {precision.id} on this device "
                f"({error}): choose another precision",
                reason=Reason.UNSUPPORTED,
            ) from None
        return {"quantization": f"torchao {torchao.__version__} {kinds[precision.id]}"}

    def close(self) -> None:
        """Forget the LLM and free the device."""
        self._prepared = None
        self._model = None
        self._free()

    def own_meter(self) -> Meter | None:
        """None: joules come from a hardware meter."""
        return None

    def _free(self) -> None:
        gc.collect()
        if self._device is not None and self._device.type == "cuda":
            import torch

            torch.cuda.empty_cache()

    def _translated(self, what: str) -> _Translated:
        return _Translated(self, what)

    # ------------------------------------------------------------------------------- inputs

    def _media(self, media: Media) -> tuple[list[int], list[Any]]:
        """Return the tokens that stand for a request's media, and their patch grids."""
        if media.modality is Modality.TEXT:
            return [], []
        config = self._config
        if config["model_type"] not in VISION_MODEL_TYPES:
            raise EngineError(
                f"the transformers engine makes images and videos for "
                f"{', '.join(VISION_MODEL_TYPES)}, and this LLM is {config['model_type']}",
                reason=Reason.UNSUPPORTED,
                usable=True,
            )
        grids = media_grids(config["vision_config"], media)
        start, end = config["vision_start_token_id"], config["vision_end_token_id"]
        ids: list[int] = []
        for i, grid in enumerate(grids):
            token = config["image_token_id" if i < media.images else "video_token_id"]
            # Qwen3-VL puts every pair of frames between markers of its own.
            parts = grid.time if str(config["model_type"]).startswith("qwen3") else 1
            ids += ([start] + [token] * (grid.tokens // parts) + [end]) * parts
        return ids, grids

    def _inputs(self, batch: Batch, repetition: int, requests: int) -> dict[str, Any]:
        """Draw the inputs of ``requests`` requests on the device."""
        import torch

        ids, grids = self._media(batch.media)
        text = text_tokens_beside(batch, len(ids))
        generator = torch.Generator(self._device).manual_seed(
            (batch.seed * 1_000_003 + repetition) % 2**63
        )
        vocabulary = int(text_config(self._config)["vocab_size"])
        drawn = torch.randint(
            FIRST_PROMPT_TOKEN,
            vocabulary,
            (requests, text),
            generator=generator,
            device=self._device,
        )
        if not ids:
            return {"input_ids": drawn}
        media = torch.tensor([ids], device=self._device).expand(requests, -1)
        tokens = torch.cat([media, drawn], dim=1)
        inputs: dict[str, Any] = {"input_ids": tokens}
        kinds = torch.zeros_like(tokens, dtype=torch.int)
        vision = self._config["vision_config"]
        patch = 3 * int(vision["temporal_patch_size"]) * int(vision["patch_size"]) ** 2
        for name, values, places in (
            ("image", "pixel_values", grids[: batch.media.images]),
            ("video", "pixel_values_videos", grids[batch.media.images :]),
        ):
            if not places:
                continue
            kinds[tokens == self._config[f"{name}_token_id"]] = 1 if name == "image" else 2
            patches = requests * sum(grid.patches for grid in places)
            inputs[values] = torch.randn(
                patches, patch, generator=generator, device=self._device, dtype=self._model.dtype
            )
            shape = [[grid.time, grid.height, grid.width] for grid in places]
            inputs[f"{name}_grid_thw"] = torch.tensor(shape * requests, device=self._device)
        return inputs | {"mm_token_type_ids": kinds}

    # ------------------------------------------------------------------------------- prepare

    def prepare(self, batch: Batch, phases: Sequence[Phase]) -> None:
        """Allocate the static cache, warm every shape up, and capture the decode step.

        Raises
        ------
        EngineError
            OUT_OF_MEMORY, or UNSUPPORTED where a graph cannot be captured.
        """
        self._prepared = None
        self._free()
        if self._model is None:
            raise EngineError("the engine is not started", reason=Reason.CRASHED)
        with self._translated("prepare the batch"):
            self._prepared = self._prepare(batch, phases)

    def _prepare(self, batch: Batch, phases: Sequence[Phase]) -> _Prepared:
        import torch

        with torch.inference_mode():
            group = self._prefill_group(batch, -1, 0, 1)
            cache, starts, pass_steps = self._static_cache(batch, group)
            ready = _Prepared(
                batch=batch,
                cache=cache,
                token=torch.full((batch.requests, 1), FIRST_PROMPT_TOKEN, device=self._device),
                position=self._position(batch),
                pass_steps=pass_steps,
                starts=starts,
            )
            del group
            self._prefill(ready, -1)
            if batch.output_tokens > 1 and {Phase.DECODE, Phase.REQUEST} & set(phases):
                self._set_back(ready)
                self._step(ready)
                self._check_step(ready)
                for _ in range(min(2, pass_steps - 1)):
                    self._step(ready)
                self._set_back(ready)
                if self._graphs:
                    ready.replay = self._capture(ready)
                self._set_back(ready)
        self._synchronize()
        return ready

    def _cache_name(self) -> str:
        accepted = inspect.signature(type(self._model).forward).parameters
        return "past_key_values" if "past_key_values" in accepted else "cache_params"

    def _position(self, batch: Batch) -> Any:
        """Return the position of the decoded token, with a row for each rotary section."""
        import torch

        shape = (3, batch.requests, 1) if has_vision(self._config) else (batch.requests, 1)
        return torch.full(shape, batch.input_tokens, device=self._device)

    def _static_cache(self, batch: Batch, group: Any) -> tuple[Any, tuple[int, ...], int]:
        """Allocate the cache in the shapes of ``group``, a cache filled by one request."""
        from transformers import cache_utils

        steps = batch.output_tokens - 1
        slots = batch.input_tokens + max(1, math.ceil(batch.output_tokens / 2))
        layers: list[Any] = []
        lengths: list[int] = []
        for source in group.layers:
            if getattr(source, "keys", None) is None:
                layers.append(source)  # a state of fixed size
                repeat_states(source, batch.requests)
                continue
            window = getattr(source, "sliding_window", None)
            length = min(slots, window) if window else slots
            stateful = any(True for _ in states_of(source))  # attention and a state in one layer
            kind = "LinearAttentionAndStaticFullAttentionLayer" if stateful else "StaticLayer"
            layer = getattr(cache_utils, kind)(max_cache_len=length)
            for name in STATE_ATTRIBUTES if stateful else ():
                setattr(layer, name, getattr(source, name))
            repeat_states(layer, batch.requests)
            sample = (batch.requests, *source.keys.shape[1:2], 1)
            layer.lazy_initialization(
                source.keys.new_empty((*sample, source.keys.shape[-1])),
                source.values.new_empty((*sample, source.values.shape[-1])),
            )
            # Random, as zeros would be too cheap; prefill overwrites the prompt's part.
            layer.keys.normal_()
            layer.values.normal_()
            layers.append(layer)
            lengths.append(length)
        pass_steps = max(1, min([math.ceil(steps / 2), *(n - 1 for n in lengths)]))
        starts = tuple(max(0, min(batch.input_tokens, n - pass_steps)) for n in lengths)
        return cache_utils.Cache(layers=layers), starts, pass_steps

    def _set_back(self, ready: _Prepared) -> None:
        starts = iter(ready.starts)
        for layer in ready.cache.layers:
            if getattr(layer, "keys", None) is not None:
                layer.cumulative_length.fill_(next(starts))

    def _check_step(self, ready: _Prepared) -> None:
        """Refuse an LLM whose decode step does other work than one token for each sequence."""
        attention = [c for c in ready.cache.layers if getattr(c, "keys", None) is not None]
        went = {int(c.cumulative_length) - s for c, s in zip(attention, ready.starts, strict=True)}
        if went - {1}:
            raise EngineError(
                f"this version of transformers decodes {sorted(went)} tokens in a step of one with "
                f"{type(self._model).__name__}: use another version, or vllm",
                reason=Reason.UNSUPPORTED,
            )

    def _capture(self, ready: _Prepared) -> Callable[[], None]:
        import torch

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._step(ready)
        torch.cuda.current_stream().wait_stream(stream)
        self._set_back(ready)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._step(ready)
        except RuntimeError as error:
            if "out of memory" in str(error).lower():
                raise
            raise EngineError(
                f"the decode step of this LLM cannot be captured as a CUDA graph "
                f"({str(error).splitlines()[0][:200]}): give graphs=false",
                reason=Reason.UNSUPPORTED,
            ) from None
        replay: Callable[[], None] = graph.replay
        return replay

    # ------------------------------------------------------------------------------ the work

    def _groups(self, batch: Batch) -> Iterator[tuple[int, int]]:
        budget = (self._layout.step_tokens if self._layout else None) or STEP_TOKENS
        size = max(1, budget // batch.input_tokens)
        for first in range(0, batch.requests, size):
            yield first, min(size, batch.requests - first)

    def _prefill_group(self, batch: Batch, repetition: int, first: int, requests: int) -> Any:
        from transformers import DynamicCache

        cache = DynamicCache(config=self._model.config)
        inputs = self._inputs(batch, repetition * 4096 + first, requests)
        self._model(**inputs, use_cache=True, logits_to_keep=1, **{self._cache_name(): cache})
        return cache

    def _prefill(self, ready: _Prepared, repetition: int) -> int:
        """Prefill the batch group by group; return the forward passes."""
        passes = 0
        for first, requests in self._groups(ready.batch):
            group = self._prefill_group(ready.batch, repetition, first, requests)
            for target, source in zip(ready.cache.layers, group.layers, strict=True):
                copy_rows(target, source, first, requests, ready.batch.input_tokens)
            passes += 1
        ready.filled = True
        return passes

    def _step(self, ready: _Prepared) -> None:
        output = self._model(
            input_ids=ready.token,
            position_ids=ready.position,
            use_cache=True,
            logits_to_keep=1,
            **{self._cache_name(): ready.cache},
        )
        # Sampling is part of a step; a graph needs its input where it was.
        chosen = output.logits[:, -1:].argmax(dim=-1)
        ready.token.copy_(chosen.clamp(min=FIRST_PROMPT_TOKEN))

    def _decode(self, ready: _Prepared) -> int:
        if not ready.filled:
            self._prefill(ready, -1)
            self._synchronize()
        steps = ready.batch.output_tokens - 1
        for i in range(steps):
            if i % ready.pass_steps == 0:
                self._set_back(ready)
            if ready.replay is not None:
                ready.replay()
            else:
                self._step(ready)
        return steps

    def _encode(self, batch: Batch, repetition: int) -> None:
        tower: Any = self._model.model.visual
        for first, requests in self._groups(batch):
            inputs = self._inputs(batch, repetition * 4096 + first, requests)
            for name, values in (("image", "pixel_values"), ("video", "pixel_values_videos")):
                if values in inputs:
                    tower(inputs[values], grid_thw=inputs[f"{name}_grid_thw"])

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            import torch

            torch.cuda.synchronize()

    def run_phase(
        self,
        phase: Phase,
        batch: Batch,
        repetition: int,
        at_decode: Callable[[], None] | None = None,
    ) -> Repetition:
        """Run one phase of the batch and wait for the device."""
        if phase not in self._phases or (phase is Phase.ENCODE and not batch.media.modality):
            raise EngineError(
                f"this LLM has no {phase.value} phase", reason=Reason.UNSUPPORTED, usable=True
            )
        if self._prepared is None or self._prepared.batch != batch:
            self.prepare(batch, (phase,))
        ready = self._prepared
        if ready is None:
            raise EngineError("the batch is not prepared", reason=Reason.CRASHED)
        import torch

        clock = time.perf_counter
        steps = 0
        began = clock()
        boundary: tuple[float, float] | None = None
        with self._translated(f"run {phase.value}"), torch.inference_mode():
            if phase in (Phase.PREFILL, Phase.REQUEST):
                steps += self._prefill(ready, repetition)
            if phase is Phase.REQUEST and batch.output_tokens > 1:
                self._synchronize()
                finished = clock()
                if at_decode is not None:
                    at_decode()
                boundary = (finished, clock())
            if phase in (Phase.DECODE, Phase.REQUEST):
                steps += self._decode(ready)
            if phase is Phase.ENCODE:
                self._encode(batch, repetition)
            self._synchronize()
        ended = clock()
        return self._counted(phase, batch, steps, (began, boundary, ended))

    def _counted(
        self,
        phase: Phase,
        batch: Batch,
        steps: int,
        times: tuple[float, tuple[float, float] | None, float],
    ) -> Repetition:
        began, boundary, ended = times
        generated = {
            Phase.PREFILL: 1,
            Phase.DECODE: batch.output_tokens - 1,
            Phase.REQUEST: batch.output_tokens,
            Phase.ENCODE: 0,
        }[phase]
        prefilled = 0 if phase is Phase.DECODE else batch.input_tokens
        vision = 0
        if phase is not Phase.DECODE:
            vision = sum(grid.tokens for grid in self._media(batch.media)[1])
        timings: tuple[RequestTiming, ...] = ()
        if phase in (Phase.PREFILL, Phase.REQUEST):
            first = boundary[0] if boundary else ended
            timing = RequestTiming(
                ttft_s=first - began, latency_s=ended - began, output_tokens=generated
            )
            timings = (timing,) * batch.requests
        return Repetition(
            requests=batch.requests,
            input_tokens=batch.requests * (0 if phase is Phase.ENCODE else prefilled),
            output_tokens=batch.requests * generated,
            vision_tokens=batch.requests * vision,
            steps=steps,
            prefill_s=boundary[0] - began if boundary else None,
            decode_s=ended - boundary[1] if boundary else None,
            timings=timings,
        )

    def steady(self, load: Load) -> Iterator[Progress]:
        """Refuse: transformers has no scheduler.

        Raises
        ------
        EngineError
            UNSUPPORTED.
        """
        raise EngineError(
            "the transformers engine has no continuous batching: measure steady loads with vllm "
            f"or openai (asked for {load.input_tokens} tokens in, {load.output_tokens} out)",
            reason=Reason.UNSUPPORTED,
            usable=True,
        )


# ------------------------------------------------------------------------------------ details


class _Translated:
    """Turns what torch throws into an EngineError."""

    def __init__(self, engine: TransformersEngine, what: str) -> None:
        self._engine = engine
        self._what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, Exception) or isinstance(error, EnergyLensError):
            return
        self._engine._prepared = None
        told = str(error).strip().splitlines() or [type(error).__name__]
        memory = isinstance(error, MemoryError) or "out of memory" in str(error).lower()
        if memory:
            raise EngineError(
                f"the device has too little memory to {self._what}: lower the batch size or the "
                "lengths, or take a smaller LLM",
                reason=Reason.OUT_OF_MEMORY,
                usable=self._engine._model is not None,
            ) from error
        unsupported = isinstance(error, NotImplementedError | ValueError | TypeError)
        raise EngineError(
            f"transformers could not {self._what}: {type(error).__name__}: {told[0][:300]}",
            reason=Reason.UNSUPPORTED if unsupported else Reason.CRASHED,
        ) from error
