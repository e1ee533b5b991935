"""The openai engine against a small server on loopback that counts, and can misbehave."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from energylens import catalog
from energylens.instrument.engine import (
    Batch,
    EngineError,
    Layout,
    Load,
    Media,
    Phase,
    Progress,
    Reason,
)
from energylens.instrument.engines import http_stream, openai
from energylens.instrument.engines.openai import OpenAiEngine

IMAGE_TOKENS, MARKER_TOKENS, TEMPLATE_TOKENS = 35, 2, 5


@dataclass
class Stub:
    """What the server has seen, and how it is to behave."""

    token_ids: bool = True
    usage: bool = True
    keep_alive: bool = True
    tokens_per_event: int = 1
    first_token_s: float = 0.0
    shortfall: int = 0  # tokens that it stops early by
    status: int = 200
    message: str = ""
    hang: bool = False
    cut_after: int | None = None  # events, after which the connection is cut
    busy: int = 0  # requests that it will not take now, with 429
    silent: bool = False  # streams no token, and counts them all the same
    drop_next: bool = False  # reads a request and hangs up
    odd_words: bool = False  # every eighth word is two tokens
    key: str | None = None
    requests: list[dict[str, Any]] = field(default_factory=list)
    connections: int = 0
    in_flight: int = 0
    most_in_flight: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def text_tokens(self, text: str) -> int:
        words = len(text.split())
        return words + (words // 8 if self.odd_words else 0)

    def input_tokens(self, body: dict[str, Any]) -> int:
        if "prompt" in body:
            prompt = body["prompt"]
            return self.text_tokens(prompt) if isinstance(prompt, str) else len(prompt)
        tokens = TEMPLATE_TOKENS
        for part in body["messages"][0]["content"]:
            if part["type"] == "text":
                tokens += self.text_tokens(part["text"])
            else:
                tokens += IMAGE_TOKENS + MARKER_TOKENS
        return tokens


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def setup(self) -> None:
        super().setup()
        with self.stub.lock:
            self.stub.connections += 1

    @property
    def stub(self) -> Stub:
        stub: Stub = self.server.stub
        return stub

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, document: object) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        if not self.stub.keep_alive:
            self.send_header("connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self.answer(200, {"data": [{"id": "stub-llm"}]})
        elif self.path == "/version":
            self.answer(200, {"version": "9.9"})
        else:
            self.answer(404, {})

    def do_POST(self) -> None:
        stub = self.stub
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if stub.key and self.headers.get("authorization") != f"Bearer {stub.key}":
            return self.answer(401, {"error": {"message": "no such key"}})
        if stub.drop_next:
            stub.drop_next = False
            with stub.lock:
                stub.requests.append(body)
            self.close_connection = True
            return self.connection.close()
        if stub.busy:
            stub.busy -= 1
            return self.answer(429, {"error": {"message": "slow down"}})
        if stub.status != 200:
            return self.answer(stub.status, {"error": {"message": stub.message}})
        if isinstance(body.get("prompt"), list) and not stub.token_ids:
            return self.answer(400, {"error": {"message": "prompt must be a string"}})
        with stub.lock:
            stub.requests.append(body)
            stub.in_flight += 1
            stub.most_in_flight = max(stub.most_in_flight, stub.in_flight)
        try:
            self.serve(body)
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            with stub.lock:
                stub.in_flight -= 1

    def serve(self, body: dict[str, Any]) -> None:
        stub = self.stub
        time.sleep(3600 if stub.hang else stub.first_token_s)
        tokens = body["max_tokens"] - stub.shortfall
        usage = {"prompt_tokens": stub.input_tokens(body), "completion_tokens": tokens}
        if not body["stream"]:
            return self.answer(200, {"usage": usage} if stub.usage else {})
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        chat = "messages" in body
        sent = 0
        if chat:
            self.event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
        while sent < tokens and not stub.silent:
            if stub.cut_after is not None and sent >= stub.cut_after:
                self.close_connection = True
                self.connection.close()
                return None
            count = min(stub.tokens_per_event, tokens - sent)
            piece: dict[str, Any] = {"delta": {"content": "w"}} if chat else {"text": ""}
            piece |= {"token_ids": [11] * count} if not chat else {}
            sent += count
            piece["finish_reason"] = "length" if sent == tokens else None
            self.event({"choices": [piece]})
        if stub.usage:
            self.event({"choices": [], "usage": usage})
        self.chunk(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")
        return None

    def event(self, document: object) -> None:
        text = f"data: {json.dumps(document)}\n\n".encode()
        # events need not arrive in one piece
        self.chunk(text[:7])
        self.chunk(text[7:])

    def chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: object) -> None:
        pass  # clients that hang up are part of the tests


@pytest.fixture
def served() -> Iterator[tuple[str, Stub]]:
    server = Server(("127.0.0.1", 0), Handler)
    server.stub = stub = Stub()  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", stub
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def start(served: tuple[str, Stub]) -> Iterator[Callable[..., OpenAiEngine]]:
    engines: list[OpenAiEngine] = []

    def started(**options: str) -> OpenAiEngine:
        engine = OpenAiEngine()
        engines.append(engine)
        engine.start(layout(url=served[0], **options))
        served[1].requests.clear()
        return engine

    yield started
    for engine in engines:
        engine.close()


def layout(**options: str) -> Layout:
    return Layout(
        llm=catalog.llm("Qwen/Qwen3-0.6B"),
        precision=catalog.precision("bf16"),
        max_sequences=8,
        max_sequence_tokens=512,
        options=options,
    )


TEXT = Batch(requests=4, input_tokens=96, output_tokens=8)
Start = Callable[..., OpenAiEngine]


def test_what_the_server_says_of_itself_is_recorded(served: tuple[str, Stub]) -> None:
    with closing(OpenAiEngine()) as engine:
        facts = engine.start(layout(url=served[0] + "/v1/"))
    assert facts["engine_version"] == "9.9"
    assert facts["served_llm"] == "stub-llm"
    assert facts["prompts"] == "token ids"
    assert not engine.capabilities.local


def test_a_batch_has_the_exact_counts_and_every_request_its_times(
    served: tuple[str, Stub], start: Start
) -> None:
    engine = start()
    engine.prepare(TEXT, [Phase.REQUEST])
    before = len(served[1].requests)
    done = engine.run_phase(Phase.REQUEST, TEXT, 1)
    assert (done.requests, done.input_tokens, done.output_tokens) == (4, 4 * 96, 4 * 8)
    assert (done.prefill_s, done.decode_s, done.vision_tokens) == (None, None, 0)
    for timing in done.timings:
        assert timing.output_tokens == len(timing.token_times_s) == 8
        assert timing.ttft_s == timing.token_times_s[0]
        assert list(timing.token_times_s) == sorted(timing.token_times_s)
        assert timing.latency_s >= timing.token_times_s[-1]
    sent = served[1].requests[before:]
    assert all(body["ignore_eos"] and body["min_tokens"] == 8 for body in sent)
    prompts = [tuple(body["prompt"]) for body in sent]
    assert len(set(prompts)) == 4


def test_prefill_asks_for_one_token_and_never_claims_a_boundary(start: Start) -> None:
    done = start().run_phase(Phase.PREFILL, TEXT, 0, at_decode=lambda: pytest.fail("called"))
    assert done.output_tokens == 4


def test_repetitions_send_other_prompts(served: tuple[str, Stub], start: Start) -> None:
    engine = start()
    for repetition in (1, 2, 1):
        engine.run_phase(Phase.PREFILL, TEXT, repetition)
    last = [sorted(tuple(b["prompt"]) for b in served[1].requests[i:][:4]) for i in (-12, -8, -4)]
    assert last[0] == last[2]
    assert last[0] != last[1]


def test_times_of_tokens_that_come_several_at_once_are_not_invented(
    served: tuple[str, Stub], start: Start
) -> None:
    engine = start()
    served[1].tokens_per_event = 3
    done = engine.run_phase(Phase.REQUEST, TEXT, 0)
    assert done.output_tokens == 32
    assert all(timing.ttft_s is not None for timing in done.timings)


def test_a_decode_phase_alone_is_unsupported(start: Start) -> None:
    with pytest.raises(EngineError, match="decode alone") as refused:
        start().run_phase(Phase.DECODE, TEXT, 0)
    assert refused.value.reason is Reason.UNSUPPORTED
    assert refused.value.usable


def test_the_batch_is_really_in_flight_together(served: tuple[str, Stub], start: Start) -> None:
    engine = start()
    served[1].first_token_s = 0.1
    engine.run_phase(Phase.PREFILL, TEXT, 0)
    assert served[1].most_in_flight == 4


def test_connections_are_used_again(served: tuple[str, Stub], start: Start) -> None:
    engine = start()
    engine.run_phase(Phase.REQUEST, TEXT, 0)
    before = served[1].connections
    engine.run_phase(Phase.REQUEST, TEXT, 1)
    assert served[1].connections <= before + 1


def test_a_server_that_closes_its_connections_is_served_too(served: tuple[str, Stub]) -> None:
    served[1].keep_alive = False
    with closing(OpenAiEngine()) as engine:
        engine.start(layout(url=served[0], streaming="false"))
        done = engine.run_phase(Phase.REQUEST, TEXT, 0)
    assert done.output_tokens == 32
    assert done.timings[0].ttft_s is None


# --------------------------------------------------------------------------- prompts as text


def test_a_server_without_token_ids_gets_text_of_the_exact_length(
    served: tuple[str, Stub], start: Start
) -> None:
    served[1].token_ids = False
    done = start().run_phase(Phase.REQUEST, TEXT, 0)
    assert done.input_tokens == 4 * 96
    assert isinstance(served[1].requests[-1]["prompt"], str)


def test_words_that_are_not_one_token_each_are_counted_out(
    served: tuple[str, Stub], start: Start
) -> None:
    served[1].odd_words = True
    done = start(prompts="text").run_phase(Phase.REQUEST, TEXT, 0)
    assert done.input_tokens == 4 * 96
    assert len(served[1].requests[-1]["prompt"].split()) < 96


def test_a_length_that_no_number_of_words_has_is_refused(
    served: tuple[str, Stub], start: Start
) -> None:
    served[1].odd_words = True  # 7 words are 7 tokens, 8 words are 9
    with pytest.raises(EngineError, match="exactly 8 tokens") as refused:
        start(prompts="text").prepare(Batch(requests=1, input_tokens=8, output_tokens=1), [])
    assert refused.value.reason is Reason.WRONG_COUNTS


def test_a_chat_has_its_template_counted_in(served: tuple[str, Stub], start: Start) -> None:
    done = start(api="chat").run_phase(Phase.REQUEST, TEXT, 0)
    assert done.input_tokens == 4 * 96
    words = served[1].requests[-1]["messages"][0]["content"][0]["text"].split()
    assert len(words) == 96 - TEMPLATE_TOKENS
    assert done.timings[0].output_tokens == 8


@pytest.mark.parametrize(
    "media",
    [
        Media(images=2, image_pixels=(8, 8)),
        Media(frames=3, frame_pixels=(8, 8)),
        Media(images=1, image_pixels=(8, 8), frames=2, frame_pixels=(8, 8)),
    ],
)
def test_images_and_videos_count_towards_the_length(
    served: tuple[str, Stub], start: Start, media: Media
) -> None:
    batch = Batch(requests=2, input_tokens=128, output_tokens=4, media=media)
    done = start().run_phase(Phase.REQUEST, batch, 0)
    items = media.images + (1 if media.frames else 0)
    assert done.input_tokens == 2 * 128
    assert done.vision_tokens == 2 * items * (IMAGE_TOKENS + MARKER_TOKENS)
    kinds = [part["type"] for part in served[1].requests[-1]["messages"][0]["content"]]
    assert kinds.count("image_url") == media.images
    assert kinds.count("video_url") == (1 if media.frames else 0)
    urls = [
        part["image_url"]["url"]
        for body in served[1].requests[-2:]
        for part in body["messages"][0]["content"]
        if part["type"] == "image_url"
    ]
    assert len(set(urls)) == len(urls)  # nothing to find in a cache


def test_images_larger_than_the_prompt_are_unsupported(start: Start) -> None:
    batch = Batch(
        requests=1,
        input_tokens=30,
        output_tokens=1,
        media=Media(images=1, image_pixels=(8, 8)),
    )
    with pytest.raises(EngineError, match="raise input_tokens") as refused:
        start().prepare(batch, [])
    assert refused.value.reason is Reason.UNSUPPORTED


# ------------------------------------------------------------------------------------- failures


def test_tokens_that_were_not_generated_are_never_counted(
    served: tuple[str, Stub], start: Start
) -> None:
    engine = start()
    engine.prepare(TEXT, [])
    served[1].shortfall = 1
    with pytest.raises(EngineError, match="8 out were asked for") as refused:
        engine.run_phase(Phase.REQUEST, TEXT, 0)
    assert refused.value.reason is Reason.WRONG_COUNTS


def test_a_server_that_counts_nothing_is_refused(served: tuple[str, Stub], start: Start) -> None:
    served[1].usage = False
    with pytest.raises(EngineError, match="usage") as refused:
        start().prepare(TEXT, [])
    assert refused.value.reason is Reason.WRONG_COUNTS


@pytest.mark.parametrize(
    ("status", "message", "reason"),
    [
        (400, "context too long", Reason.UNSUPPORTED),
        (500, "CUDA out of memory", Reason.OUT_OF_MEMORY),
        (503, "overloaded", Reason.CRASHED),
    ],
)
def test_what_the_server_refuses_is_told_in_its_own_words(
    served: tuple[str, Stub], start: Start, status: int, message: str, reason: Reason
) -> None:
    engine = start()
    engine.prepare(TEXT, [])
    served[1].status, served[1].message = status, message
    with pytest.raises(EngineError, match=message) as refused:
        engine.run_phase(Phase.REQUEST, TEXT, 0)
    assert refused.value.reason is reason
    assert refused.value.usable == (status < 500)


def test_a_server_that_hangs_up_in_the_middle_is_a_crash(
    served: tuple[str, Stub], start: Start
) -> None:
    engine = start()
    engine.prepare(TEXT, [])
    served[1].cut_after = 3
    with pytest.raises(EngineError, match="hung up") as refused:
        engine.run_phase(Phase.REQUEST, TEXT, 0)
    assert refused.value.reason is Reason.CRASHED


def test_a_server_that_hangs_is_given_up_in_time(served: tuple[str, Stub], start: Start) -> None:
    engine = start()
    engine.prepare(TEXT, [])
    served[1].hang = True
    engine._timeout_s = 0.3  # from here on: a busy machine may need longer for what is no hang
    with pytest.raises(EngineError, match=r"within 0\.3 s") as refused:
        engine.run_phase(Phase.REQUEST, TEXT, 0)
    assert refused.value.reason is Reason.TIMED_OUT


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "url=http"),
        ({"url": "http://127.0.0.1:9"}, "cannot be reached"),
        ({"url": "ftp://x"}, "http://HOST:PORT"),
    ],
)
def test_no_server_is_one_sentence(options: dict[str, str], message: str) -> None:
    with closing(OpenAiEngine()) as engine, pytest.raises(EngineError, match=message) as refused:
        engine.start(layout(**options))
    assert "\n" not in str(refused.value)


def test_a_key_is_sent_from_the_environment(
    served: tuple[str, Stub], start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    served[1].key = "k-1"
    with pytest.raises(EngineError, match="no such key"):
        start(prompts="tokens").run_phase(Phase.REQUEST, TEXT, 0)
    monkeypatch.setenv("MY_KEY", "k-1")
    engine = start(prompts="tokens", api_key_env="MY_KEY")
    assert engine.run_phase(Phase.REQUEST, TEXT, 0).output_tokens == 32


# ---------------------------------------------------------------------------------- steady loads


def last(progress: Iterator[Progress], until: Callable[[Progress], bool]) -> list[Progress]:
    seen = []
    with closing(progress) as stream:  # type: ignore[type-var]
        for now in itertools.islice(stream, 20_000):
            seen.append(now)
            if until(now):
                return seen
    raise AssertionError("the load never got there")


def test_a_closed_loop_keeps_so_many_requests_in_flight(
    served: tuple[str, Stub], start: Start
) -> None:
    engine = start()
    served[1].first_token_s = 0.05
    load = Load(concurrency=3, input_tokens=20, output_tokens=6)
    seen = last(engine.steady(load), lambda p: p.completed_requests >= 12)
    assert served[1].most_in_flight == 3
    assert max(p.running_requests for p in seen) == 3
    timings = [timing for progress in seen for timing in progress.finished]
    assert len(timings) == seen[-1].completed_requests
    # the first requests are cut short so that the batch is mixed
    assert sorted(timing.output_tokens for timing in timings)[:3] == [2, 4, 6]
    assert seen[-1].output_tokens >= sum(timing.output_tokens for timing in timings)
    while served[1].in_flight:  # closing the iterator ends what was in flight
        time.sleep(0.02)


def test_an_open_loop_sends_at_its_rate_whatever_is_in_flight(
    served: tuple[str, Stub], start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start()
    engine._calibrated(load := Load(request_rate_per_s=40.0, input_tokens=20, output_tokens=2))
    served[1].hang = True  # no answer comes, and requests go on arriving
    waits: list[float] = []

    def arrivals(random: np.random.Generator, rate_per_s: float) -> float:
        waits.append(rate_per_s)
        return 1e-4

    monkeypatch.setattr(openai, "poisson_arrivals", arrivals)
    last(engine.steady(load), lambda p: p.running_requests >= 20)
    assert served[1].most_in_flight > 5
    assert set(waits) == {40.0}


def test_a_failing_request_ends_a_load_with_its_reason(
    served: tuple[str, Stub], start: Start
) -> None:
    engine = start()
    load = Load(concurrency=2, input_tokens=20, output_tokens=4)
    with closing(engine.steady(load)) as stream:  # type: ignore[type-var]
        next(stream)
        served[1].status, served[1].message = 500, "engine died"
        with pytest.raises(EngineError, match="engine died"):
            for _ in stream:
                pass


# ---------------------------------------------------------------------- servers that are not right


@pytest.mark.parametrize(("status", "reason"), [(401, "unsupported"), (403, "unsupported")])
def test_a_server_that_wants_a_key_is_not_taken_for_one_without_token_ids(
    served: tuple[str, Stub], start: Start, status: int, reason: str
) -> None:
    served[1].status, served[1].message = status, "no such key sk-abcdef123456"
    with pytest.raises(EngineError, match="no such key") as refused:
        start()
    assert refused.value.reason == reason
    assert "sk-abcdef123456" not in str(refused.value)


def test_a_busy_server_is_asked_again_and_its_prompts_stay_token_ids(
    served: tuple[str, Stub], start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(openai.time, "sleep", waits.append)
    served[1].busy = 3
    engine = start()
    assert list(filter(None, waits)) == [1.0, 2.0, 4.0]
    assert engine._token_ids
    engine.prepare(TEXT, [])
    served[1].busy = 1
    with pytest.raises(EngineError, match="429") as refused:
        engine.run_phase(Phase.REQUEST, TEXT, 0)
    assert refused.value.usable
    assert refused.value.busy_s == 1.0  # the case may be measured anew


def test_tokens_that_are_claimed_and_not_streamed_are_not_believed(
    served: tuple[str, Stub], start: Start
) -> None:
    engine = start(prompts="tokens")
    served[1].silent = True
    with pytest.raises(EngineError, match="streamed none of them") as refused:
        engine.run_phase(Phase.REQUEST, TEXT, 0)
    assert refused.value.reason is Reason.WRONG_COUNTS
    assert start(prompts="tokens", streaming="false").run_phase(Phase.REQUEST, TEXT, 0)


def test_a_request_is_never_sent_twice_in_silence(served: tuple[str, Stub], start: Start) -> None:
    engine = start(prompts="tokens")
    one = replace(TEXT, requests=1)
    engine.run_phase(Phase.REQUEST, one, 0)  # leaves a connection open
    served[1].requests.clear()
    served[1].drop_next = True
    with pytest.raises(EngineError, match="hung up"):
        engine.run_phase(Phase.REQUEST, one, 1)
    assert len(served[1].requests) == 1


def raw_answer(data: bytes, endless: bytes = b"") -> str:
    """Serve these bytes to one client; with ``endless`` again and again."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with listening, contextlib.suppress(OSError):
            while True:
                connection, _ = listening.accept()
                with connection, contextlib.suppress(OSError):
                    connection.recv(65536)
                    connection.sendall(data)
                    while endless:
                        connection.sendall(endless)

    threading.Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize(
    ("data", "endless"),
    [
        (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 100),
        (b"HTTP/1.1 200 " + b"y" * (2 << 20), b""),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", b"x" * 65536),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", b""),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffff\r\n", b"x" * 65536),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", b""),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 65536),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n" + b"[" * 200_000, b""),
        (b"SSH-2.0-OpenSSH\r\n", b""),
    ],
)
def test_an_answer_without_bounds_is_given_up(
    monkeypatch: pytest.MonkeyPatch, data: bytes, endless: bytes
) -> None:
    monkeypatch.setattr(http_stream, "LONGEST_ANSWER_BYTES", 1 << 22)
    url = raw_answer(data, endless)
    with closing(OpenAiEngine()) as engine, pytest.raises(EngineError) as refused:
        engine.start(layout(url=url))
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("url", ["http://[::1", "http://x:99999", "http://user:pw@host:1"])
def test_an_address_that_is_none_or_holds_a_password_is_refused(url: str) -> None:
    with closing(OpenAiEngine()) as engine, pytest.raises(EngineError) as refused:
        engine.start(layout(url=url))
    assert "pw" not in str(refused.value)
