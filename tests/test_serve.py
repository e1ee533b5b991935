"""The API over a real socket: answers, refusals, bounds, and how the server stops."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

from energylens import schemas
from energylens.cli import decision_file, main
from energylens.errors import InputError
from energylens.web.answers import short
from energylens.web.guard import Bucket, Hosts
from served import LLAMA, QUESTION, Server, serving

CASE = {"llm": LLAMA, "gpu": "H100", "input_tokens": 2000, "output_tokens": 300}


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def assert_alike(one: Any, other: Any) -> None:
    """The same keys, words and numbers, the last bits of numbers apart."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert set(one) == set(other)
        for key in one:
            assert_alike(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for first, second in zip(one, other, strict=True):
            assert_alike(first, second)
    else:
        assert one == (pytest.approx(other) if isinstance(other, float) else other)


def test_select_answers_as_the_command_does(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = {**QUESTION, "gpu": "H100"}
    command = printed(
        capsys, "select", "--llm", LLAMA, "--precision", "fp8", "--gpu", "H100", "--rate", "3",
        "--input-tokens", "2000", "--output-tokens", "300", "--tpot", "50ms", "--ttft", "1s",
        "--current", "TP8 B256", "--front",
    )  # fmt: skip
    answer = server.json("/v1/select", **asked)
    assert_alike(answer, command)


@pytest.mark.parametrize(("knob", "value"), [("clock_mhz", "1200"), ("power_cap_w", "450")])
def test_what_holds_gpus_down_is_asked_for_as_on_the_command_line(
    server: Server, knob: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    case = {"llm": "Qwen/Qwen3-8B", "gpu": "H100", "input_tokens": "700", "output_tokens": "200"}
    options = [
        part for name, said in case.items() for part in (f"--{name.replace('_', '-')}", said)
    ]
    option = f"--{knob.replace('_', '-')}"
    command = printed(capsys, "select", *options, "--rate", "2", option, value, "--front")
    answer = server.json("/v1/select", **case, rate="2", **{knob: value})
    assert_alike(answer, command)
    assert {entry[knob] for entry in answer["configurations"]} == {float(value)}
    held, free_running = (server.json("/v1/explain", **case, **of) for of in ({knob: value}, {}))
    if knob == "clock_mhz":
        assert held["energy_per_request_j"] != free_running["energy_per_request_j"]
    else:  # no row of this model has a cap
        assert any("cap is ignored" in note for note in held["notes"])
    free = {"power_cap_w": ("power_cap", "power_caps"), "clock_mhz": ("clock", "clocks")}[knob]
    wrong = {knob: value, "choose": free[0], free[1]: "500"}
    status, _, body = server.ask("/v1/select", **case, rate="2", **wrong)
    assert status == 422
    assert f"{free[0]} is free" in body.decode()


def test_a_decision_file_is_a_body(server: Server) -> None:
    question = schemas.Question(**{**QUESTION, "gpu": ["H100"], "precision": ["fp8"]}).document()
    status, headers, body = server.ask(
        "/v1/select",
        method="POST",
        body=question.model_dump_json().encode(),
        headers={"content-type": "application/json"},
    )
    assert status == 200
    assert headers["content-type"] == "application/json"
    asked = server.json("/v1/select", **{**QUESTION, "gpu": "H100"})
    assert json.loads(body) == asked


def test_ranking_at_once_is_a_decision_without_odds(server: Server) -> None:
    answer = server.json("/v1/select", **QUESTION, certain="false")
    schemas.Decision.model_validate(answer)
    assert answer["considered"] > 1000
    assert not answer["certain"]
    assert {e["probability_of_meeting_ratio"] for e in answer["configurations"]} == {None}
    joules = [e["energy_per_request_j"] for e in answer["configurations"]]
    assert joules == sorted(joules)
    assert all(e["tpot_s"] <= 0.05 and e["ttft_s"] <= 1 for e in answer["configurations"])
    sure = server.json("/v1/select", **QUESTION)
    assert sure["certain"]
    assert joules[0] <= sure["configurations"][0]["energy_per_request_j"] * 1.0001


def test_where_nothing_meets_the_nearest_is_said_with_and_without_odds(server: Server) -> None:
    for certain in ("true", "false"):
        found = server.json("/v1/select", **{**QUESTION, "tpot": "1ms"}, certain=certain)
        assert not found["configurations"]
        assert "Nearest is" in found["notes"][0]
        assert ("met with probability" in found["notes"][0]) == (certain == "true")
        assert "nan" not in found["notes"][0]


def test_pareto_lists_every_candidate_and_the_front(server: Server) -> None:
    answer = server.json("/v1/pareto", **QUESTION)
    schemas.Pareto.model_validate(answer)
    columns = answer["candidates"]
    assert {len(values) for values in columns.values()} == {answer["considered"]}
    found = [columns[name] for name in ("energy_per_request_j", "tpot_s", "ttft_s")]
    keeping_up = [(j, t) for j, t, first in zip(*found, strict=True) if first is not None]
    assert keeping_up
    for i in answer["front"]:
        joules, tpot = columns["energy_per_request_j"][i], columns["tpot_s"][i]
        assert not any(j < joules * 0.998 and t < tpot for j, t in keeping_up)


def test_service_puts_a_configuration_under_rates(server: Server) -> None:
    answer = server.json("/v1/service", **{**QUESTION, "gpu": "H100"}, configuration="TP4 B64")
    schemas.Service.model_validate(answer)
    rates, joules = answer["rate_per_s"], answer["energy_per_request_j"]
    assert rates == sorted(rates)
    assert joules[0] > 5 * joules[-1]
    assert answer["tpot_s"] == sorted(answer["tpot_s"])
    assert 0 < answer["breaks_at_rate_per_s"] < answer["saturation_rate_per_s"]


def test_explain_answers_as_the_command_does(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    command = printed(
        capsys, "explain", "h100-vllm-0.11", "--llm", LLAMA, "--gpu", "H100", "--input-tokens",
        "2000", "--output-tokens", "300", "--tensor-parallel", "8", "--batch-size", "64",
    )  # fmt: skip
    answer = server.json(
        "/v1/explain", **CASE, model="h100-vllm-0.11", tensor_parallel=8, batch_size=64
    )
    schemas.Explanation.model_validate(answer)
    assert_alike(answer, command)


def test_names_are_those_of_the_commands(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    assert server.json("/v1/models") == printed(capsys, "models")
    assert server.json("/v1/gpus", contains="h100") == printed(capsys, "gpu", "list", "h100")
    found = server.json("/v1/llms", contains="qwen3-32b")
    assert found == printed(capsys, "llm", "list", "qwen3-32b")
    assert found["llms"]


@pytest.mark.parametrize(
    ("path", "query", "said"),
    [
        ("/v1/select", {**QUESTION, "llm": "<script>alert(1)</script>"}, "unknown LLM"),
        ("/v1/select", {**QUESTION, "gpu": "H1000"}, "Did you mean"),
        ("/v1/select", {**QUESTION, "rate": -1}, "greater than 0"),
        ("/v1/select", {**QUESTION, "rate": "nan"}, "query.rate"),
        ("/v1/select", {**QUESTION, "rate": "1e300"}, "less than or equal"),
        ("/v1/select", {**QUESTION, "rate": "1e-300"}, "at least 1e-06 requests/s"),
        ("/v1/select", {**QUESTION, "output_tokens": "1e-17"}, "at least 1 token, not 1e-17"),
        ("/v1/explain", {**CASE, "output_tokens": 1e-9}, "at least 1 token"),
        ("/v1/select", {**QUESTION, "gpu": "H100,H1000"}, "unknown GPU 'H1000'"),
        ("/v1/select", {**QUESTION, "tpot": "soon"}, "must be a time"),
        ("/v1/select", {**QUESTION, "current": "everything"}, "must be a layout"),
        ("/v1/select", {**QUESTION, "colour": "red"}, "colour"),
        ("/v1/select", {**QUESTION, "model": "/etc/passwd"}, "/v1/models"),
        ("/v1/select", {**QUESTION, "model": "../../model.json"}, "unknown model"),
        ("/v1/select", {**QUESTION, "max_gpus": 10**9}, "max_gpus"),
        ("/v1/select", {**QUESTION, "batch_sizes": list(range(1, 66))}, "64"),
        (
            "/v1/service",
            {**QUESTION, "precision": "bf16", "configuration": "TP1 B1"},
            "no room in memory",
        ),
        ("/v1/explain", {**CASE, "llm": "x" * 300}, "200"),
        ("/v1/explain", {**CASE, "input_tokens": 0}, "greater than 0"),
        ("/v1/explain", {**CASE, "tensor_parallel": 8, "node_gpus": 4}, "node_gpus"),
    ],
)
def test_a_refusal_is_a_problem_document(
    server: Server, path: str, query: dict[str, Any], said: str
) -> None:
    status, headers, body = server.ask(path, **query)
    assert status == 422
    assert headers["content-type"] == "application/problem+json"
    problem = schemas.Problem.model_validate_json(body)
    assert problem.status == 422
    assert said in problem.detail
    assert "Traceback" not in problem.detail


def test_numbers_of_columns_are_short_and_finite() -> None:
    values = np.array([0.0, 1e-320, 123456.7, -0.00123456, np.inf, np.nan, 1e300])
    assert short(values) == [0.0, 0.0, 123460.0, -0.0012346, None, None, 1e300]


def test_lists_may_have_commas_as_those_of_the_command() -> None:
    asked = {**QUESTION, "precision": ["fp8,bf16"], "gpu": ["H100,H200", "B200"]}
    question = schemas.Question(  # type: ignore[arg-type]
        **asked, choose=["gpu,precision", "batch_size"], batch_sizes=["8,16"]
    )
    assert question.gpu == ["H100", "H200", "B200"]
    assert question.batch_sizes == [8.0, 16.0]
    assert question.document().choose.precisions == ["fp8", "bf16"]


def test_a_precision_that_is_free_is_not_stated_too(server: Server, tmp_path: Path) -> None:
    """One rule for the file, the body and the command."""
    document: dict[str, dict[str, Any]] = {
        "serve": {"llm": "Qwen/Qwen3-8B", "gpu": "H100", "precision": "fp8"},
        "load": {"rate_per_s": 2, "input_tokens": 500, "output_tokens": 300},
        "choose": {"knobs": ["precision"], "precisions": ["fp8", "bf16"]},
    }
    status, _, body = server.ask(
        "/v1/select",
        method="POST",
        body=json.dumps(document).encode(),
        headers={"content-type": "application/json"},
    )
    assert status == 422
    assert b"no effect where precision is free" in body
    lines = []
    for name, part in document.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in part.items())]
    file = tmp_path / "decision.toml"
    file.write_text("\n".join(lines))
    with pytest.raises(InputError, match="no effect where precision is free"):
        decision_file.parse(str(file))


def test_a_body_names_no_file(server: Server, tmp_path: Path) -> None:
    question = schemas.Question(**{**QUESTION, "precision": ["fp8"]}).document()
    made = question.model_dump()
    for part, value in (("lengths", str(tmp_path / "trace.csv")), ("profile", "/etc/passwd")):
        changed = {**made, "load": {**made["load"], part: value}}
        status, _, body = server.ask(
            "/v1/select",
            method="POST",
            body=json.dumps(changed).encode(),
            headers={"content-type": "application/json"},
        )
        assert status == 422
        assert "names a file" in json.loads(body)["detail"]


@pytest.mark.parametrize("path", ["/nothing", "/v1/nothing", "/docs", "/redoc", "/app.css/../x"])
def test_what_is_not_there_is_a_problem_document(server: Server, path: str) -> None:
    status, headers, body = server.ask(path)
    assert status == 404
    assert headers["content-type"] == "application/problem+json"
    assert json.loads(body)["status"] == 404


def test_nothing_can_be_changed(server: Server) -> None:
    for method in ("PUT", "DELETE", "PATCH"):
        status, headers, _ = server.ask("/v1/select", method=method)
        assert status == 405
        assert headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "0x7f000001", "a"])
def test_another_host_is_not_answered(server: Server, host: str) -> None:
    status, headers, _ = server.ask("/healthz", headers={"Host": host})
    assert status == 421
    assert headers["content-type"] == "application/problem+json"


def test_hosts_are_names_of_this_server() -> None:
    mine = Hosts()
    assert all(map(mine.answers, ("localhost:8421", "127.0.0.1", "[::1]:80", "127.0.0.2:1")))
    assert not any(map(mine.answers, ("10.0.0.7", "[::1]x", "localhost:x", "a.b")))
    wide = Hosts(listens="0.0.0.0", allowed=("energy.example.org",))
    assert all(map(wide.answers, ("10.0.0.7:8421", "energy.example.org", "localhost")))
    assert not wide.answers("rebound.example.org")


def test_pages_say_what_a_browser_may_do(server: Server) -> None:
    for path in ("/", "/rows", "/app.js", "/v1/models", "/nothing"):
        _, headers, _ = server.ask(path)
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe-eval" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in headers


def test_a_large_body_is_refused(server: Server) -> None:
    status, headers, _ = server.ask("/v1/select", method="POST", body=b"x" * 70_000)
    assert status == 413
    assert headers["content-type"] == "application/problem+json"
    with socket.create_connection(("127.0.0.1", server.port), timeout=600) as slow:
        # Chunked, so that no length is named beforehand.
        slow.sendall(
            b"POST /v1/select HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for _ in range(5):
            slow.sendall(b"4000\r\n" + b"x" * 0x4000 + b"\r\n")
        assert b" 413 " in slow.recv(4096).split(b"\r\n")[0]


def test_more_than_the_rate_waits() -> None:
    now = [0.0]
    bucket = Bucket(2.0, 3.0, clock=lambda: now[0])
    assert [bucket.take() for _ in range(4)] == [True, True, True, False]
    now[0] += 0.5
    assert [bucket.take() for _ in range(2)] == [True, False]


def test_a_server_counts_what_it_answers(server: Server) -> None:
    server.ask("/v1/gpus")
    status, headers, body = server.ask("/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain")
    text = body.decode()
    assert 'energylens_http_requests_total{path="/v1/gpus",status="200"}' in text
    assert "energylens_http_request_duration_seconds_bucket" in text


def test_it_describes_itself(server: Server) -> None:
    described = server.json("/openapi.json")
    assert described["openapi"].startswith("3.1")
    assert set(described["paths"]) == {
        "/v1/select", "/v1/pareto", "/v1/service", "/v1/explain", "/v1/models", "/v1/llms",
        "/v1/gpus", "/healthz", "/readyz", "/metrics",
    }  # fmt: skip
    decision = described["components"]["schemas"]["Decision"]
    published = schemas.Decision.model_json_schema(ref_template="#/components/schemas/{model}")
    assert set(decision["properties"]) == set(published["properties"])
    assert decision["required"] == published["required"]
    assert server.json("/healthz") == {"status": "ok"}
    assert server.json("/readyz") == {"status": "ready"}


def test_it_stops_after_the_answers_under_way() -> None:
    with serving() as started:
        connection = socket.create_connection(("127.0.0.1", started.port), timeout=600)
        from urllib.parse import urlencode

        target = f"/v1/select?{urlencode({**QUESTION, 'rate': 2.5}, doseq=True)}"
        connection.sendall(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        # The loop took that question before it says that it lives; the answer is made aside.
        assert started.json("/healthz") == {"status": "ok"}
        started.process.send_signal(signal.SIGTERM)
        answer = b""
        while part := connection.recv(1 << 16):
            answer += part
            if answer.endswith(b"}") and b'"month"' in answer:
                break
        connection.close()
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert started.process.wait(timeout=600) == 0
    assert started.process.stderr is not None


def test_it_stops_when_told_so_before_its_first_answer() -> None:
    with serving() as started:
        started.process.send_signal(signal.SIGTERM)
        assert started.process.wait(timeout=600) == 0


def test_a_port_in_use_is_said(server: Server) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "energylens", "serve", "--port", str(server.port)],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode in (1, 2)
    assert "give another --port" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nothing.json",), "nothing.json"),
        (("--data", "nothing.csv"), "nothing.csv"),
        (("--front", "front.json"), "give --data too"),
    ],
)
def test_a_server_that_cannot_start_says_why(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *arguments]) in (1, 2)
    assert said in capsys.readouterr().err


def test_its_own_rows_answer_and_say_that_they_are_simulated(server_with_rows: Server) -> None:
    answer = server_with_rows.json("/v1/select", **{**QUESTION, "gpu": "H100"}, certain="false")
    assert any("simulated" in note for note in answer["notes"])
    assert server_with_rows.json("/v1/models")["models"][0]["name"] == "given"
    found = server_with_rows.json("/page/rows")
    assert not found["claim"]
    assert len(found["residuals"]["measured_j"]) == found["residuals"]["rows"]


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from energylens.cli import serve

    monkeypatch.setattr(serve, "_there", lambda package: package != "uvicorn")
    assert main(["serve"]) == 1
    assert "energylens[serve]" in capsys.readouterr().err


def test_what_is_asked_twice_is_refused_and_lists_are_not(server: Server) -> None:
    for path in ("/v1/select", "/v1/pareto", "/page/answer", "/v1/explain", "/v1/gpus"):
        status, _, body = server.ask(path, **{**QUESTION, "certain": "false", "rate": [2, 5]})
        assert status == 422, path
        assert json.loads(body)["detail"] == "rate must be given once, not 2 times: leave one"
    assert server.json("/v1/select", **{**QUESTION, "certain": "false"})["configurations"]


def test_what_is_no_number_is_called_so(server: Server) -> None:
    for value in ("nan", "inf", "-inf"):
        status, _, body = server.ask("/v1/select", **{**QUESTION, "rate": value})
        assert status == 422
        assert "finite number" in json.loads(body)["detail"]
