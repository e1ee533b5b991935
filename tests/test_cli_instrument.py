"""The verbs of the instrument, run as a user runs them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from energylens import table
from energylens.cli import main

LLM = "Qwen/Qwen3-8B"
PLAN = (
    *("plan", "--llm", LLM, "--gpu", "H100", "--engine", "simulated", "--quick"),
    *("--batch-sizes", "1,8", "--input-tokens", "64", "--output-tokens", "16"),
)


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ENERGYLENS_HOME", str(tmp_path / "home"))

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def edit(path: Path, change: Callable[[dict[str, Any]], None], line: int) -> None:
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    change(lines[line])
    path.write_text("".join(json.dumps(document) + "\n" for document in lines))


def test_measure_exits_one_when_a_case_failed(run: Any, tmp_path: Path) -> None:
    assert run(*PLAN, "-o", "plan.jsonl")[0] == 0
    code, _, _ = run("measure", "plan.jsonl", "-o", "all.jsonl", "--executor", "inline")
    assert code == 0
    edit(tmp_path / "plan.jsonl", lambda case: case.update(tensor_parallel=3), 1)
    code, out, error = run("measure", "plan.jsonl", "-o", "runs.jsonl", "--executor", "inline")
    assert code == 1
    assert "1 of 2 cases have no row" in error
    assert "1 failed" in out
    assert len(table.read("runs.jsonl")) == 1  # what could be measured is there


def test_a_plan_of_rates_is_measured_under_load(run: Any) -> None:
    code, out, _ = run(*PLAN, "--rates", "0.5,2,8", "-o", "plan.jsonl")
    assert (code, "3 cases" in out) == (0, True)
    assert run("measure", "plan.jsonl", "-o", "runs.jsonl", "--executor", "inline")[0] == 0
    rows = [json.loads(line) for line in Path("runs.jsonl").read_text().splitlines()]
    assert sorted(row["request_rate_per_s"] for row in rows) == [0.5, 2, 8]
    for row in rows:
        assert row["achieved_rate_per_s"] == pytest.approx(row["request_rate_per_s"], rel=0.7)
        assert row["batch_size"] == 8  # the slots: the largest of the batch sizes named
        assert 0 < row["mean_batch_size"] < 8
        for name in ("ttft_s", "tpot_s", "request_latency_s", "ttft_p50_s", "loaded_idle_w"):
            assert row[name] > 0, name
    # Few at a time share the idle power of their GPU.
    joules = {row["request_rate_per_s"]: row["energy_per_request_j"] for row in rows}
    assert joules[0.5] > joules[2] > joules[8]
    assert len(table.read("runs.jsonl")) == 3
    assert run("plan", *PLAN[1:], "--rate", "2", "-o", "one.jsonl")[0] == 0
    for bad in ("0", "-1", "nan", "often", "1e400"):
        with pytest.raises(SystemExit):
            run(*PLAN, f"--rates={bad}", "-o", "bad.jsonl")


def serve(tmp_path: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    command = ["meter", "serve", "--meter", "estimated", "--port", "0", "--json", *arguments]
    return subprocess.Popen(
        [sys.executable, "-m", "energylens", *command],
        stdout=subprocess.PIPE,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "ENERGYLENS_METER_TOKEN"} | environment,
        cwd=tmp_path,
    )


@pytest.mark.parametrize("way", ["file", "environment", "random"])
def test_a_meter_s_token_need_not_stand_on_the_command_line(tmp_path: Path, way: str) -> None:
    (tmp_path / "token.txt").write_text("from-a-file\n")
    arguments = ("--token-file", "token.txt") if way == "file" else ()
    environment = {"ENERGYLENS_METER_TOKEN": "from-there"} if way == "environment" else {}
    with serve(tmp_path, *arguments, **environment) as server:
        assert server.stdout is not None
        text = ""  # in a pipe it is there at once
        while not text.endswith("}\n"):
            text += server.stdout.readline()
        told = json.loads(text)
        wanted = {"file": "from-a-file", "environment": "from-there"}.get(way, told["token"])
        assert told["token"] == wanted
        request = urllib.request.Request(
            told["url"] + "/v1/reading", headers={"Authorization": f"Bearer {wanted}"}
        )
        assert json.loads(urllib.request.urlopen(request).read())["energy_j"][0] >= 0
        server.terminate()


def test_a_token_is_given_once_and_is_no_empty_file(run: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    serve_it = ("meter", "serve", "--meter", "estimated", "--port", "0")
    for arguments, words in (
        (("--token-file", "empty"), "empty"),
        (("--token-file", "absent"), "cannot be read"),
        (("--token-file", "empty", "--token", "t"), "once"),
        (("--host", ""), r"0\.0\.0\.0"),
    ):
        code, _, error = run(*serve_it, *arguments)
        assert code in (1, 2)
        assert re.search(words, error)


@pytest.mark.parametrize("url", ["http://user:secret@host:1", "https://:secret@host"])
def test_a_password_in_an_address_is_refused_before_it_is_written(
    run: Any, tmp_path: Path, url: str
) -> None:
    code, _, error = run(
        *("plan", "--llm", LLM, "--gpu", "H100", "--engine", "openai", "--option", f"url={url}"),
        *("-o", "plan.jsonl"),
    )
    assert code == 2
    assert "secret" not in error
    assert "api_key_env" in error
    assert not (tmp_path / "plan.jsonl").exists()
