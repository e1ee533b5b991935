"""Any server with the OpenAI interface, by URL: vLLM, SGLang, TensorRT-LLM, TGI, llama.cpp.

The server does the work and counts the tokens; this side sends requests of exact lengths,
reads the streams and takes times. Its joules come from a meter on the server's host.

Exact lengths
-------------
Prompts are lists of random token ids wherever ``/v1/completions`` takes them. Elsewhere (chat,
images, videos, servers that take text only) they are common one-token words, whose number is
adjusted until the server counts the tokens that were asked for. Every answer's count is
checked. ``ignore_eos`` and ``min_tokens`` are understood by vLLM, SGLang, TensorRT-LLM and
llama.cpp; a server that ignores them ends early by chance, which is refused as a wrong count.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from energylens.catalog.hf_write import FIRST_PROMPT_TOKEN
from energylens.errors import EnergyLensError, InputError
from energylens.foreign import printable, without_secrets
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
from energylens.instrument.engines.http_stream import HttpClient, Response, server_events
from energylens.instrument.engines.options import Options
from energylens.instrument.engines.synthetic import (
    image,
    image_url,
    poisson_arrivals,
    random_stream,
    staggered_lengths,
    text_tokens_beside,
    token_prompt,
    video,
    video_url,
)
from energylens.instrument.meter import Meter
from energylens.records import Modality

T = TypeVar("T")

OPTIONS = ("url", "served_llm", "api", "prompts", "api_key_env", "timeout_s", "streaming")
PROGRESS_S = 0.05  # between two looks at a steady load
# Requests to learn how many tokens a prompt of words becomes: the first says it roughly.
CALIBRATION_TRIES = 8
BUSY_TRIES = 5  # of a request that a busy server would not take

# Words that byte-pair vocabularies hold whole, with a space before them.
_WORDS = """
    the of and to in is that for it as was with be by on not he his but at are this have from
    or had an they which one you were her all she there would their we him been has when who
    will more no if out so said what up its about into than them can only other new some could
    time these two may then do first any my now such like our over man me even most made after
    also did many before must through back years where much your way well down should because
    each just those people how too little state good very make world still own see men work
    long get here between both life being under never day same another know while last might
    us great old year off come since against go came right used take three
    """.split()  # noqa: SIM905 (a list of so many strings is no better to read)


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """What the server sent for one request; times in seconds from its submission."""

    input_tokens: int | None
    output_tokens: int | None
    token_times_s: tuple[float, ...]
    latency_s: float

    def timing(self, output_tokens: int) -> RequestTiming:
        times = self.token_times_s
        return RequestTiming(
            ttft_s=times[0] if times else None,
            latency_s=self.latency_s,
            output_tokens=output_tokens,
            # a server may put several tokens in one event: then only the first is known
            token_times_s=times if len(times) == output_tokens else (),
        )


@dataclass(kw_only=True)
class _Totals:
    """Counters of a steady load, written by the loop's thread and read by the engine's."""

    completed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    in_flight: int = 0
    finished: list[RequestTiming] = field(default_factory=list)
    failure: EnergyLensError | None = None


@dataclass(frozen=True, kw_only=True)
class _Prompting:
    """How prompts of a shape are made: text units and what the media become."""

    units: int  # token ids, or words
    media_tokens: int


class OpenAiEngine:
    """Serves batches and loads through a server's OpenAI interface.

    Options (``Layout.options``)
    ----------------------------
    url
        Address of the server, with or without ``/v1``. Needed.
    served_llm
        Name under which it serves the LLM; by default the first that it lists.
    api
        ``completions`` (default) or ``chat``; images and videos always go by chat.
    prompts
        ``auto`` (default): token ids if the server takes them, else text; ``tokens``;
        ``text``.
    streaming
        ``true`` (default) or ``false``, which loses first-token times.
    api_key_env
        Environment variable with the key (default ``OPENAI_API_KEY``).
    timeout_s
        Limit of one request (default 600).
    """

    def __init__(self, name: str = "openai", vision_tokens: Callable[[Media], int] | None = None):
        # vision_tokens: exact count of a request's media, where the caller knows the processor
        self.name = name  # openai, or the engine that started the server
        self._exact_vision_tokens = vision_tokens
        self._loop: _LoopThread | None = None
        self._client: HttpClient | None = None
        self._served_llm = ""
        self._secrets: tuple[str, ...] = ()
        self._chat = False
        self._token_ids = True
        self._streaming = True
        self._timeout_s = 600.0
        self._vocabulary_size = 0
        self._prompting: dict[tuple[int, Media], _Prompting] = {}

    @property
    def capabilities(self) -> Capabilities:
        """Prefill and whole requests, apart only as two runs; steady loads; all modalities."""
        return Capabilities(
            phases=frozenset({Phase.PREFILL, Phase.REQUEST}),
            steady=True,
            modalities=frozenset(Modality),
            local=False,
        )

    # ------------------------------------------------------------------------- start, close

    def start(self, layout: Layout) -> Mapping[str, str]:
        """Connect, find the served LLM, and find out whether prompts can be token ids.

        Raises
        ------
        EngineError
            If the server cannot be reached or does not speak the interface.
        """
        options = Options(self.name, layout.options, OPTIONS)
        url = options.text("url", "")
        if not url:
            raise EngineError(
                "the openai engine needs the address of a server: url=http://HOST:PORT",
                reason=Reason.UNSUPPORTED,
            )
        if layout.shard or layout.scaled_layers:
            raise EngineError(
                "a server that runs already cannot be given a shard or fewer layers: drop them, "
                "or let energylens start the engine",
                reason=Reason.UNSUPPORTED,
            )
        key = os.environ.get(options.text("api_key_env", "OPENAI_API_KEY"), "")
        self._secrets = (key,) if key else ()
        base = url.rstrip("/").removesuffix("/v1")
        self.close()
        try:
            self._client = HttpClient(base, {"Authorization": f"Bearer {key}"} if key else {})
        except InputError as error:
            raise EngineError(str(error), reason=Reason.UNSUPPORTED) from None
        self._loop = _LoopThread()
        self._timeout_s = options.number("timeout_s", 600.0)
        self._streaming = options.flag("streaming", True)
        self._chat = options.choice("api", ("completions", "chat")) == "chat"
        self._vocabulary_size = layout.llm.vocabulary_size
        self._prompting.clear()
        self._served_llm = options.text("served_llm", "") or self._first_served()
        prompts = options.choice("prompts", ("auto", "tokens", "text"))
        self._token_ids = prompts != "text" and not self._chat
        if prompts == "auto" and self._token_ids:
            self._token_ids = self._takes_token_ids()
        return {
            "engine_version": self._version(),
            "url": base,
            "served_llm": self._served_llm,
            "weights": "as served",
            "prompts": "token ids" if self._token_ids else "text",
            "api": "chat" if self._chat else "completions",
        }

    def close(self) -> None:
        """Close every connection."""
        if self._loop is not None:
            if self._client is not None:
                self._loop.call(self._client.close)
            self._loop.stop()
        self._loop = self._client = None

    def own_meter(self) -> Meter | None:
        """None: a server is metered on its host."""
        return None

    def _running(self) -> tuple[HttpClient, _LoopThread]:
        if self._client is None or self._loop is None:
            raise EngineError("the engine is not started", reason=Reason.CRASHED)
        return self._client, self._loop

    def _get(self, path: str) -> tuple[int, bytes]:
        client, loop = self._running()

        async def get() -> tuple[int, bytes]:
            async with asyncio.timeout(min(30.0, self._timeout_s)):
                response = await client.request("GET", path)
                return response.status, await response.body()

        return loop.run(self._translated(get()))

    def _first_served(self) -> str:
        status, body = self._get("/v1/models")
        try:
            return printable(json.loads(body)["data"][0]["id"], 300)
        except (ValueError, LookupError, TypeError, RecursionError):
            raise EngineError(
                f"the server's /v1/models lists no LLM (status {status}): name it with "
                "served_llm=NAME",
                reason=Reason.UNSUPPORTED,
            ) from None

    def _version(self) -> str:
        with suppress(EngineError, ValueError, LookupError, TypeError, RecursionError):
            status, body = self._get("/version")
            if status == 200:
                return printable(json.loads(body)["version"], 100)
        return "unknown"

    def _takes_token_ids(self) -> bool:
        probe = [FIRST_PROMPT_TOKEN, FIRST_PROMPT_TOKEN + 1, FIRST_PROMPT_TOKEN + 2]
        try:
            answer = self._answer_one("/v1/completions", self._body(probe, 1))
        except EngineError as error:
            # A key that is wrong, or a server that is busy, says nothing of what it takes.
            if error.refused_request:
                return False
            raise
        return answer.input_tokens in (None, len(probe), len(probe) + 1)  # some add a first token

    # ---------------------------------------------------------------------- one request

    def _body(self, prompt: list[int] | str | list[dict[str, Any]], tokens: int) -> dict[str, Any]:
        """Return a request; a list of dicts is the content of a chat message."""
        body: dict[str, Any] = {
            "model": self._served_llm,
            "max_tokens": tokens,
            "min_tokens": tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": self._streaming,
        }
        if self._streaming:
            body["stream_options"] = {"include_usage": True}
        if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
            body["prompt"] = prompt
        else:
            body["messages"] = [{"role": "user", "content": prompt}]
        if not isinstance(prompt, str) and "prompt" in body:
            # vLLM without a tokenizer needs the first; both make each event say its tokens
            body |= {"detokenize": False, "return_token_ids": True}
        return body

    def _answer_one(self, path: str, body: dict[str, Any]) -> _Answer:
        """Ask once; where the server is busy, wait and ask again, outside of any window."""
        _, loop = self._running()
        for attempt in range(BUSY_TRIES):
            try:
                return loop.run(self._translated(self._complete(path, body)))
            except EngineError as error:
                if error.busy_s is None or attempt == BUSY_TRIES - 1:
                    raise
                time.sleep(min(error.busy_s * 2**attempt, LONGEST_BACK_OFF_S))
        raise AssertionError("unreachable")

    async def _complete(
        self, path: str, body: dict[str, Any], on_tokens: Callable[[int], None] | None = None
    ) -> _Answer:
        client, _ = self._running()
        text = json.dumps(body).encode()
        began = time.perf_counter()
        times: list[float] = []
        usage: Mapping[str, Any] = {}
        async with asyncio.timeout(self._timeout_s):
            response = await client.request("POST", path, text)
            if response.status != 200:
                raise _refused(path, response, await response.body(), self._secrets)
            if not self._streaming:
                usage = json.loads(await response.body()).get("usage") or {}
            else:
                async for event in server_events(response):
                    if event == b"[DONE]":
                        continue
                    arrived = time.perf_counter() - began
                    piece = json.loads(event)
                    if "error" in piece:
                        raise _refused(path, replace(response, status=500), event, self._secrets)
                    usage = piece.get("usage") or usage
                    tokens = _tokens_of(piece)
                    times += [arrived] * tokens
                    if tokens and on_tokens is not None:
                        on_tokens(tokens)
        return _Answer(
            input_tokens=usage.get("prompt_tokens"),
            output_tokens=usage.get("completion_tokens"),
            token_times_s=tuple(times),
            latency_s=time.perf_counter() - began,
        )

    async def _translated(self, work: Coroutine[Any, Any, T]) -> T:
        """Turn what the network throws into one sentence."""
        host = self._client.host if self._client else "the server"
        try:
            return await work
        except TimeoutError:
            raise EngineError(
                f"{host} did not answer within {self._timeout_s:g} s: raise timeout_s, or lower "
                "the batch size or the lengths",
                reason=Reason.TIMED_OUT,
            ) from None
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            raise EngineError(
                f"{host} cannot be reached or hung up ({error}): is the server running, and is "
                "the url right?",
                reason=Reason.CRASHED,
            ) from None
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            said = printable(without_secrets(str(error), self._secrets), 200)
            raise EngineError(
                f"{host} sent what no OpenAI server sends ({said}): check the url",
                reason=Reason.UNSUPPORTED,
            ) from None

    # ------------------------------------------------------------------ prompts of exact length

    def _request(
        self, random: np.random.Generator, work: Batch | Load, output_tokens: int, how: _Prompting
    ) -> tuple[str, dict[str, Any]]:
        media = work.media
        if media.modality is Modality.TEXT and not self._chat:
            if self._token_ids:
                return "/v1/completions", self._body(
                    token_prompt(random, how.units, self._vocabulary_size), output_tokens
                )
            return "/v1/completions", self._body(_words(random, how.units), output_tokens)
        parts: list[dict[str, Any]] = []
        if media.image_pixels:
            parts += [
                {"type": "image_url", "image_url": {"url": image_url(picture)}}
                for picture in (image(random, media.image_pixels) for _ in range(media.images))
            ]
        if media.frames and media.frame_pixels:
            frames = video(random, media.frames, media.frame_pixels)
            parts.append({"type": "video_url", "video_url": {"url": video_url(frames)}})
        parts.append({"type": "text", "text": _words(random, how.units)})
        return "/v1/chat/completions", self._body(parts, output_tokens)

    def _calibrated(self, work: Batch | Load) -> _Prompting:
        """Find the number of token ids or words that gives ``input_tokens``, by asking."""
        key = (work.input_tokens, work.media)
        if key in self._prompting:
            return self._prompting[key]
        random = random_stream(work.seed, 2**31)
        target, media_tokens = work.input_tokens, 0

        def counted(sample: Batch | Load, units: int) -> int:
            how = _Prompting(units=units, media_tokens=0)
            answer = self._answer_one(*self._request(random, sample, 1, how))
            if answer.input_tokens is None:
                raise EngineError(
                    "the server does not report usage.prompt_tokens, so that lengths cannot be "
                    "exact: serve with a version that does",
                    reason=Reason.WRONG_COUNTS,
                )
            return answer.input_tokens

        units = target
        if work.media.modality is not Modality.TEXT:
            few = min(8, target)
            with_media = counted(work, few)
            if self._exact_vision_tokens is not None:
                media_tokens = self._exact_vision_tokens(work.media)
            else:
                # The media's own tokens with the markers around them.
                plain = replace(work, media=Media())
                was_chat, self._chat = self._chat, True
                media_tokens = with_media - counted(plain, few)
                self._chat = was_chat
            units = text_tokens_beside(work, with_media - few)
        for _ in range(CALIBRATION_TRIES):
            off = target - counted(work, units)
            if off == 0:
                how = _Prompting(units=units, media_tokens=media_tokens)
                self._prompting[key] = how
                return how
            units += off
            if units < 1:
                break
        raise EngineError(
            f"no prompt of exactly {target} tokens could be found for this server in "
            f"{CALIBRATION_TRIES} tries: choose another input_tokens (its chat template alone may "
            "be longer)",
            reason=Reason.WRONG_COUNTS,
            usable=True,
        )

    # ----------------------------------------------------------------------------- the work

    def prepare(self, batch: Batch, phases: Sequence[Phase]) -> None:
        """Find out how a prompt of the batch's length is made."""
        del phases
        self._calibrated(batch)

    def run_phase(
        self,
        phase: Phase,
        batch: Batch,
        repetition: int,
        at_decode: Callable[[], None] | None = None,
    ) -> Repetition:
        """Send all requests at once and wait for the last; ``at_decode`` is never called."""
        del at_decode  # nobody outside a server knows when its last prefill has ended
        if phase not in self.capabilities.phases:
            raise EngineError(
                f"a server cannot repeat {phase.value} alone: measure {Phase.REQUEST.value} and "
                f"{Phase.PREFILL.value}",
                reason=Reason.UNSUPPORTED,
                usable=True,
            )
        how = self._calibrated(batch)
        output_tokens = 1 if phase is Phase.PREFILL else batch.output_tokens
        random = random_stream(batch.seed, repetition)
        requests = [self._request(random, batch, output_tokens, how) for _ in range(batch.requests)]
        _, loop = self._running()

        async def all_at_once() -> list[_Answer]:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._complete(*request)) for request in requests]
            return [task.result() for task in tasks]

        answers = loop.run(self._translated(_first_failure(all_at_once())))
        for answer in answers:
            self._check(answer, batch.input_tokens, output_tokens)
        return Repetition(
            requests=batch.requests,
            input_tokens=batch.requests * batch.input_tokens,
            output_tokens=batch.requests * output_tokens,
            vision_tokens=batch.requests * how.media_tokens,
            timings=tuple(answer.timing(output_tokens) for answer in answers),
        )

    def _check(self, answer: _Answer, input_tokens: int, output_tokens: int) -> None:
        generated = answer.output_tokens
        if self._streaming and generated and not answer.token_times_s:
            raise EngineError(
                f"the server says that it made {generated} tokens, and streamed none of them: "
                "what it did cannot be told. With streaming=false it is believed, without times",
                reason=Reason.WRONG_COUNTS,
                usable=True,
            )
        if generated is None:
            generated = len(answer.token_times_s)
        if answer.input_tokens not in (None, input_tokens) or generated != output_tokens:
            raise EngineError(
                f"{input_tokens} tokens in and {output_tokens} out were asked for, and the server "
                f"counted {answer.input_tokens} in and {generated} out: it must honour ignore_eos "
                "and min_tokens, and its context must be long enough",
                reason=Reason.WRONG_COUNTS,
                usable=True,
            )

    def steady(self, load: Load) -> Iterator[Progress]:
        """Keep requests coming, and report every so often how far they are.

        Yields
        ------
        Progress
            ``running_requests`` are those sent and not yet answered in full.

        Raises
        ------
        EngineError
            As soon as one request fails.
        """
        how = self._calibrated(load)
        _, loop = self._running()
        totals = _Totals()
        random = random_stream(load.seed, 0)
        lengths = iter(staggered_lengths(load.output_tokens, load.concurrency or 0))

        async def one() -> None:
            tokens = next(lengths, load.output_tokens)
            path, body = self._request(random, load, tokens, how)
            seen = 0

            def on_tokens(count: int) -> None:
                nonlocal seen
                totals.output_tokens += count
                if not seen:
                    totals.input_tokens += load.input_tokens
                seen += count

            totals.in_flight += 1
            try:
                answer = await self._translated(self._complete(path, body, on_tokens))
                self._check(answer, load.input_tokens, tokens)
            except EnergyLensError as error:
                totals.failure = totals.failure or error
                raise
            finally:
                totals.in_flight -= 1
            on_tokens(tokens - seen)  # those that came several in one event, or unstreamed
            totals.completed += 1
            totals.finished.append(answer.timing(tokens))

        async def forever() -> None:
            while True:
                await one()

        async def arrivals(rate_per_s: float) -> None:
            async with asyncio.TaskGroup() as group:
                while True:
                    await asyncio.sleep(poisson_arrivals(random, rate_per_s))
                    group.create_task(one())

        async def serve() -> None:
            if load.request_rate_per_s is not None:
                await arrivals(load.request_rate_per_s)
            async with asyncio.TaskGroup() as group:
                for _ in range(load.concurrency or 0):
                    group.create_task(forever())

        served = loop.begin(serve())
        try:
            while True:
                time.sleep(PROGRESS_S)
                if totals.failure is not None:
                    raise totals.failure
                finished, totals.finished = totals.finished, []
                yield Progress(
                    completed_requests=totals.completed,
                    input_tokens=totals.input_tokens,
                    output_tokens=totals.output_tokens,
                    running_requests=totals.in_flight,
                    vision_tokens_per_request=how.media_tokens,
                    finished=tuple(finished),
                )
        finally:
            served.stop()


# --------------------------------------------------------------------------- the loop's thread


class _Served:
    """A coroutine that runs on the loop until it is stopped."""

    def __init__(self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None]) -> None:
        self._future = asyncio.run_coroutine_threadsafe(work, loop)
        self._loop = loop

    def stop(self) -> None:
        self._future.cancel()
        # cancelled tasks close their connections in the loop's next turns
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0.05), self._loop).result()


class _LoopThread:
    """An event loop in a thread of its own, so that streams are read whatever the caller does."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="energylens-openai", daemon=True
        )
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def begin(self, work: Coroutine[Any, Any, None]) -> _Served:
        return _Served(self._loop, work)

    def call(self, function: Callable[[], None]) -> None:
        async def called() -> None:
            function()

        self.run(called())

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _first_failure(work: Coroutine[Any, Any, T]) -> T:
    """Raise the first failure of a task group instead of the group."""
    try:
        return await work
    except BaseExceptionGroup as group:
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None


def _words(random: np.random.Generator, words: int) -> str:
    return " ".join(random.choice(_WORDS, size=words))


def _tokens_of(piece: Mapping[str, Any]) -> int:
    """Count the tokens that an event brings; events without a choice bring none."""
    tokens = 0
    for choice in piece.get("choices") or ():
        delta = choice.get("delta")
        ids = choice.get("token_ids") or (delta or {}).get("token_ids")
        if ids is not None:
            tokens += len(ids)
        elif delta is not None:
            # chat begins with an event that only names the role
            tokens += bool(delta.get("content") or delta.get("reasoning_content"))
        elif choice.get("text") or choice.get("finish_reason") is None:
            tokens += 1
    return tokens


#: The server is there and would not do it now: asked again after a while it may.
_BUSY = (408, 425, 429)
LONGEST_BACK_OFF_S = 60.0


def _refused(
    path: str, response: Response, body: bytes, secrets: Sequence[str] = ()
) -> EngineError:
    status = response.status
    message = body[:65536].decode(errors="replace")
    with suppress(ValueError, LookupError, TypeError, AttributeError, RecursionError):
        document = json.loads(body)
        error = document.get("error", document)
        message = str(error["message"] if isinstance(error, dict) else error)
    lower = message.lower()
    memory = "out of memory" in lower
    busy_s = None
    if status in _BUSY and not memory:
        busy_s = 1.0
        with suppress(ValueError):
            busy_s = min(max(float(response.headers.get("retry-after", "1")), 0.0), 60.0)
    client = 400 <= status < 500
    return EngineError(
        f"the server answered {path} with status {status}: "
        f"{printable(without_secrets(message, secrets), 300)}",
        reason=Reason.OUT_OF_MEMORY
        if memory
        else Reason.TIMED_OUT
        if busy_s is not None
        else Reason.UNSUPPORTED
        if client
        else Reason.CRASHED,
        usable=client or busy_s is not None,
        busy_s=busy_s,
        refused_request=status in (400, 404, 405, 415, 422),
    )
