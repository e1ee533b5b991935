"""Hostile questions to the real server: no 500, every refusal a problem document, still alive."""

from __future__ import annotations

import json
import random
import socket
import string
from typing import Any

import pytest

from energylens import schemas
from served import QUESTION, Server

#: Of the requests of the soak test a part runs always.
FEW, MANY = 5, 150  # examples for each operation and kind
FEW_MADE, MANY_MADE = 200, 7_500  # made by hand below

NASTY: tuple[Any, ...] = (
    "<script>alert(1)</script>", "'; DROP TABLE llms; --", "../../../../etc/passwd", "\x00",
    "\u202e", "50ms:p0",
    "%s%n%x", "{{7*7}}", "${jndi:ldap://127.0.0.1/a}", "A" * 10_000, "\U0001f4a9" * 50, "NaN",
    "Infinity", "-Infinity", "1e308", "1e-308", "-0", "0x10", "null", "true", "[]", "", " ",
    "0ms", "1e9min:p99.9999", "TP0 B0", "TP99999999999999 B1", "TP8 B256 " * 300, "--tp", "'", '"',
    "--tensor-parallel-size " * 100, "TP8 B" + "9" * 400, "٣ms", "50ms\n", "²",
)  # fmt: skip


BODIES = ("/v1/select?certain=false", "/v1/pareto?certain=false", "/v1/explain")


def fits(status: int, headers: dict[str, str], body: bytes) -> None:
    """An answer, or a refusal that says why."""
    assert status < 500, body[:500]
    assert b"Traceback" not in body
    if status >= 400 and headers.get("content-type", "").startswith("application/"):
        problem = schemas.Problem.model_validate_json(body)
        assert problem.status == status
        assert len(problem.detail) < 1000


def question(random_: random.Random) -> dict[str, Any]:
    """A question with a few fields changed into something nasty."""
    asked: dict[str, Any] = {**QUESTION, "certain": "false"}
    names = [*schemas.Question.model_fields, "certain", "configuration", "anything"]
    for name in random_.sample(names, random_.randint(1, 4)):
        value = random_.choice(NASTY)
        if random_.random() < 0.3:
            value = "".join(random_.choice(string.printable) for _ in range(random_.randint(1, 60)))
        if random_.random() < 0.2:
            value = random_.choice([10.0**k for k in range(-12, 18, 3)]) * random_.choice([1, -1])
        asked[name] = [value] * random_.choice([1, 1, 1, 9])
    return asked


def body(random_: random.Random) -> bytes:
    """A body that is wrong in some way."""
    base = schemas.Question(**{**QUESTION, "precision": ["fp8"]}).document().model_dump()
    part = random_.choice(list(base))
    kind = random_.randrange(6)
    if kind == 0:
        return b"{" * random_.randint(1, 20_000)
    if kind == 1:
        return bytes(random_.randrange(256) for _ in range(random_.randint(0, 400)))
    if kind == 2:
        base[part] = random_.choice([None, [], 1, "x", {"a": {"b": "c"}}])
    elif isinstance(base[part], dict):
        name = random_.choice(list(base[part]))
        base[part][name] = random_.choice([*NASTY, 1e308, -1, [], {}, [[[]]] * 100])
    text = json.dumps(base)
    return (text.replace("2000.0", "1e999") if kind == 5 else text).encode(errors="replace")


def made_by_hand(server: Server, count: int, seed: int) -> None:
    """Ask so many nasty questions."""
    random_ = random.Random(seed)
    for _ in range(count):
        path = random_.choice(["/v1/select", "/v1/pareto", "/v1/service", "/v1/explain",
                               "/page/answer", "/v1/llms", "/v1/gpus"])  # fmt: skip
        if random_.random() < 0.35:
            fits(
                *server.ask(
                    random_.choice(
                        ["/v1/select?certain=false", "/v1/pareto?certain=false", "/v1/explain"]
                    ),
                    method="POST",
                    body=body(random_),
                    headers={"content-type": random_.choice(["application/json", "text/html"])},
                )
            )
        else:
            fits(*server.ask(path, **question(random_)))
    assert server.json("/readyz") == {"status": "ready"}


def by_schema(server: Server, examples: int) -> None:
    """Ask what schemathesis makes of our own description, valid and not."""
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, given, seed, settings
    from schemathesis import GenerationMode

    described = schemathesis.openapi.from_dict(server.json("/openapi.json"))
    for found in described.get_all_operations():
        operation = found.ok()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            try:
                strategy = operation.as_strategy(generation_mode=mode)
            except Exception:  # nothing of an operation without parameters can be wrong
                continue

            @seed(0)
            @settings(
                max_examples=examples,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            )
            @given(case=strategy)
            def ask(case: Any) -> None:
                response = case.call(base_url=server.url)
                fits(
                    response.status_code,
                    {name.lower(): value[0] for name, value in response.headers.items()},
                    response.content,
                )

            try:
                ask()
            except Exception as error:
                if "Unsatisfiable" not in type(error).__name__:
                    raise


@pytest.mark.filterwarnings("ignore")
def test_what_our_description_allows_or_forbids_is_answered(server: Server) -> None:
    by_schema(server, FEW)


def test_nasty_questions_are_refused(server: Server) -> None:
    made_by_hand(server, FEW_MADE, seed=1)


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore")
def test_ten_thousand_hostile_requests(server: Server) -> None:
    by_schema(server, MANY)
    made_by_hand(server, MANY_MADE, seed=2)


RAW = (
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n",
    b"GET http://evil/ HTTP/1.1\r\nHost: evil\r\n\r\n",
    b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"POST /v1/select HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999\r\n\r\n",
    b"POST /v1/select HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
    b"GET /?" + b"x" * 60_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200,
)


@pytest.mark.parametrize("raw", RAW, ids=lambda raw: repr(raw[:32]))
def test_raw_rubbish_is_refused_and_the_server_lives(server: Server, raw: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=600) as opened:
        opened.sendall(raw)
        answer = opened.recv(65536)
    assert b" 200 " not in answer.split(b"\r\n")[0]
    assert b"root:" not in answer
    assert b" 500 " not in answer.split(b"\r\n")[0]
    assert server.json("/healthz") == {"status": "ok"}


@pytest.mark.soak
def test_slow_bodies_hold_up_nobody(server: Server) -> None:
    slow = []
    for _ in range(60):
        opened = socket.create_connection(("127.0.0.1", server.port), timeout=600)
        opened.sendall(
            b"POST /v1/select HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\n{"
        )
        slow.append(opened)
    assert server.json("/v1/select", **QUESTION, certain="false")["configurations"]
    assert {opened.recv(4096).split(b"\r\n")[0] for opened in slow} == {
        b"HTTP/1.1 408 Request Timeout"
    }
    for opened in slow:
        opened.close()


@pytest.mark.soak
def test_headers_that_never_end_are_cut(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=600) as opened:
        opened.sendall(b"SSH-2.0-x\r\n")
        assert opened.recv(4096) == b""


@pytest.mark.soak
def test_memory_is_flat_over_ten_thousand_answers(server: Server) -> None:
    def resident() -> float:
        text = server.ask("/metrics")[2].decode()
        line = next(x for x in text.splitlines() if x.startswith("process_resident_memory_bytes "))
        return float(line.split()[1])

    small = {**QUESTION, "gpu": "H100", "llm": "Qwen/Qwen3-8B", "current": "TP2 B64",
             "max_gpus": 2, "certain": "false"}  # fmt: skip

    def answer(numbers: range) -> None:
        for n in numbers:
            # Each is new, and its lengths are those of 2,000 questions before.
            moved = {"rate": 1 + n / 1000, "input_tokens": 500 + n % 2_000}
            server.json("/v1/select", **{**small, **moved})

    answer(range(2_000))  # models are read, and what is kept is full after 350 lengths
    before = resident()
    answer(range(2_000, 12_000))
    assert resident() < 1.05 * before, f"from {before / 2**20:.0f} to {resident() / 2**20:.0f} MiB"
