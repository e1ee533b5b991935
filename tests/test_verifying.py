"""Measured runs correct the choice; other tools' candidates are ranked by joules."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from energylens import catalog, packaged, table
from energylens.cases import Cases
from energylens.cli import main
from energylens.decisions import LatencyLimit, Load
from energylens.errors import ArtefactError, InputError
from energylens.recommended import read_recommendation
from energylens.records import Configuration, Workload
from energylens.scenarios import Scenario
from energylens.service import Lengths
from energylens.solving import Engine, case_of
from energylens.verifying import Run, read_runs, verify

LLAMA = "meta-llama/Llama-3.3-70B-Instruct"
SCENARIO = Scenario(
    llm=catalog.llm(LLAMA),
    gpu=catalog.gpu("H100"),
    precision=catalog.precision("fp8"),
    workload=Workload(input_tokens=2000, output_tokens=300),
)
LOAD = Load(rate_per_s=3.0, lengths=Lengths(input_tokens=2000, output_tokens=300))
MODEL = packaged.for_gpu("H100-SXM-80GB")[0].model()
TPOT = LatencyLimit(measure="tpot", seconds=0.04)
SELECT = (
    "--llm", LLAMA, "--precision", "fp8", "--gpu", "H100", "--rate", "3", "--tpot", "50ms",
    "--input-tokens", "2000", "--output-tokens", "300",
)  # fmt: skip


def measure(configuration: Configuration, slower: float, dearer: float) -> Run:
    """A node that takes longer and more than the laws say, by known factors."""
    cases = Cases.of([case_of(SCENARIO, configuration)])
    solved = Engine(MODEL, factor=slower, energy_factor=dearer).solve(cases, LOAD, (), odds=False)
    return Run(
        configuration=configuration,
        energy_per_request_j=float(solved.energy_j[0]),
        tpot_s=float(solved.state.tpot_s[0]),
        ttft_s=float(solved.state.ttft_s[0]),
    )


@pytest.mark.parametrize(("slower", "dearer"), [(1.0, 1.0), (1.3, 1.2), (0.8, 0.9)])
def test_runs_find_the_factors_and_an_answer_that_keeps_the_limit(
    slower: float, dearer: float
) -> None:
    runs: list[Run] = []
    for _ in range(4):
        verdict = verify(MODEL, SCENARIO, LOAD, [TPOT], runs)
        if verdict.next is None:
            break
        runs.append(measure(verdict.next.configuration, slower, dearer))
    assert verdict.answer is not None
    assert verdict.meets
    assert len(verdict.runs) <= 3
    assert verdict.time_factor == pytest.approx(slower, rel=0.01)
    assert verdict.energy_factor == pytest.approx(dearer, rel=0.01)
    assert verdict.answer.tpot_s is not None
    assert verdict.answer.tpot_s <= TPOT.seconds


def test_a_run_that_breaks_the_limit_is_no_answer() -> None:
    first = verify(MODEL, SCENARIO, LOAD, [TPOT], [])
    assert first.next is not None
    assert first.answer is None
    broken = replace(measure(first.next.configuration, 1.0, 1.0), tpot_s=0.2)
    verdict = verify(MODEL, SCENARIO, LOAD, [TPOT], [broken])
    assert not verdict.meets
    assert verdict.answer is None
    if verdict.next is not None:
        assert verdict.next.configuration != broken.configuration


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", *SELECT]) == 0
    assert "Measure " in capsys.readouterr().out
    path = tmp_path / "runs.csv"
    path.write_text("configuration,energy_per_request_j,tpot_s\nTP4 B256,640,0.026\n")
    assert main(["verify", *SELECT, "--measured", str(path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["meets"] is True
    assert main(["verify", "--llm", LLAMA]) == 2
    said = capsys.readouterr().err
    assert "--gpu, --input-tokens and --output-tokens must be given" in " ".join(said.split())


def test_a_limit_on_a_percentile_is_judged_by_percentiles() -> None:
    p99 = LatencyLimit(measure="ttft", seconds=1.0, quantile=0.99)
    p97 = LatencyLimit(measure="ttft", seconds=1.0, quantile=0.97)
    run = Run(configuration=Configuration(), energy_per_request_j=5.0, tpot_s=0.02, ttft_s=0.3)
    assert run.meets([TPOT]) is True
    assert run.meets([TPOT, p99]) is None  # the mean says nothing of it
    late = replace(run, percentiles={"ttft_p95_s": 0.9, "ttft_p99_s": 1.5})
    assert (late.keeps(p99), late.keeps(p97)) == (False, None)
    assert replace(run, percentiles={"ttft_p99_s": 0.9}).keeps(p97) is True
    assert replace(run, percentiles={"ttft_p95_s": 1.1}).keeps(p97) is False
    verdict = verify(MODEL, SCENARIO, LOAD, [TPOT, p99], [run])
    assert verdict.unknown == (p99,)
    assert verdict.next is None
    assert not verdict.meets


# ------------------------------------------------------------------------- on the instrument

ON_THE_SIMULATOR = (
    *("verify", "--llm", "Qwen/Qwen3-32B", "--gpu", "H100", "--input-tokens", "500"),
    *("--output-tokens", "100", "--max-gpus", "4", "--measure", "simulated", "--quick", "--json"),
)
TWO_RUNS = ("--rate", "2", "--tpot", "25ms")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ENERGYLENS_HOME", str(tmp_path / "home"))
    return tmp_path


def test_the_choice_is_measured_at_its_load_corrected_and_measured_again(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = home / "node"
    asked = [*ON_THE_SIMULATOR, *TWO_RUNS, "-o", str(folder)]
    assert main(asked) == 0
    document = json.loads(capsys.readouterr().out)
    rows = table.read(folder / "runs.jsonl")
    assert document["runs"] == len(rows) == 2
    assert set(rows.source.tolist()) == {"simulated"}
    assert set(rows.cases.request_rate_per_s.tolist()) == {2.0}
    assert document["meets"] is True
    assert document["answer_source"] == "simulated"
    kept = rows.cases.tpot_s <= 0.025
    assert 0 < kept.sum() < 2  # one of the two broke the limit, and is not the answer
    least = float(rows.energy_per_request_j[kept].min())
    assert document["answer_energy_per_request_j"] == pytest.approx(least)
    # Again, it measures nothing and says the same, in words too.
    before = (folder / "runs.jsonl").read_bytes()
    assert main([word for word in asked if word != "--json"]) == 0
    assert "breaks a limit" in (said := " ".join(capsys.readouterr().out.split()))
    assert "a request, simulated; the limits are met" in said
    assert (folder / "runs.jsonl").read_bytes() == before
    # Another question does not go on there.
    other = [word if word != "500" else "600" for word in asked]
    assert main(other) == 2
    assert "give another folder" in " ".join(capsys.readouterr().out.split())


def test_the_choice_is_measured_with_its_batch_kept_full(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [*ON_THE_SIMULATOR, "--tpot", "40ms", "--choose", "parallelism,batch_size"]
    assert main([*asked, "-o", str(home / "node")]) == 0
    document = json.loads(capsys.readouterr().out)
    rows = [json.loads(line) for line in (home / "node" / "runs.jsonl").read_text().splitlines()]
    assert 2 <= document["runs"] == len(rows) <= 3
    assert {row["x_mode"] for row in rows} == {"phases"}
    kept = [row for row in rows if row["request_latency_s"] / 100 <= 0.04]
    least = min(row["energy_per_request_j"] for row in kept)
    assert document["answer_energy_per_request_j"] == pytest.approx(least)
    assert any("kept full" in note for note in document["notes"])
    assert main([*asked, "--tpot", "40ms:p99", "-o", str(home / "other")]) == 2
    assert "mean times only" in " ".join(capsys.readouterr().out.split())


def test_what_cannot_be_measured_is_said_and_another_is_tried(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [*ON_THE_SIMULATOR, "--rate", "2", "--choose", "pipeline_parallel,tensor_parallel"]
    assert main([*asked, "--tensor-parallel", "1", "--choose", "pipeline_parallel"]) == 0
    capsys.readouterr()
    for wrong, said in (
        (["--measured", "runs.csv"], "give one"),
        (["--choose", "tensor_parallel,gpu", "--gpus", "H100,A100"], "one GPU type"),
        (["--meter", "nvml"], "meter of its own"),
    ):
        assert main([*asked, *wrong, "-o", str(home / "x")]) == 2
        assert said in " ".join(capsys.readouterr().out.split())
    assert main(["verify", *SELECT, "--quick"]) == 2
    assert "without --measure" in " ".join(capsys.readouterr().err.split())


def test_a_verification_killed_after_a_run_goes_on_and_measures_nothing_twice(
    home: Path,
) -> None:
    folder = home / "node"
    command = [sys.executable, "-m", "energylens", *ON_THE_SIMULATOR, *TWO_RUNS, "-o", str(folder)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def measured() -> list[dict[str, Any]]:
        path = folder / "runs.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    while not measured():
        assert running.poll() is None, running.communicate()
        time.sleep(0.005)
    running.kill()
    running.communicate()
    assert running.returncode == -signal.SIGKILL
    first = measured()[0]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["runs"] == 2
    assert measured()[0] == first
    assert len({row["x_case"] for row in measured()}) == len(measured()) == 2


def test_a_run_without_a_limit_has_the_one_of_the_engine_on_that_gpu(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("configuration,energy_per_request_j,tpot_s\nTP2,5,0.1\n")
    for gpu, limit in (("H200", 1024.0), ("A100-SXM-80GB", 256.0), ("L4", 256.0)):
        assert read_runs(path, catalog.gpu(gpu))[0].configuration.batch_size == limit


@pytest.mark.parametrize(
    "line", ["TP4 B8,,0.1", "TP4 B8,-5,0.1", "TP4 B8,five,0.1", ",5,0.1", "TP4 B8,5,nan"]
)
def test_runs_that_are_none_are_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "runs.csv"
    path.write_text(f"configuration,energy_per_request_j,tpot_s\n{line}\n")
    with pytest.raises(InputError, match="line 2"):  # the header is line 1, as check counts
        read_runs(path)


CANDIDATES = {
    "schema_version": "1.0",
    "candidates": [
        {"candidate_id": "a", "status": "feasible", "config": {"decode": {"tp": 8, "bs": 64}}},
        {"candidate_id": "b", "status": "feasible", "config": {"tp_size": 4, "max_num_seqs": 128}},
        {"candidate_id": "c", "status": "infeasible", "config": {"tp": 1}},
    ],
}


def test_candidates_of_others_are_read(tmp_path: Path) -> None:
    path = tmp_path / "recommendation.json"
    path.write_text(json.dumps(CANDIDATES))
    read = read_recommendation(path)
    assert [c.configuration for c in read.candidates] == [
        Configuration(tensor_parallel=8, batch_size=64),
        Configuration(tensor_parallel=4, batch_size=128),
    ]
    assert read.left_out == {"infeasible": 1}
    table = tmp_path / "best_config_topn.csv"
    table.write_text("index,tp,pp,dp,moe_tp,moe_ep,bs,ttft,tpot\n1,2,1,4,1,1,32,90,21\n")
    assert read_recommendation(table).candidates[0].configuration == Configuration(
        tensor_parallel=2, data_parallel=4, batch_size=128
    )


@pytest.mark.parametrize("text", ["{}", "[]", '{"candidates": [{"status": "failed"}]}', "{"])
def test_lists_that_are_none_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recommendation.json"
    path.write_text(text)
    with pytest.raises((InputError, ArtefactError)):
        read_recommendation(path)


def ranked(capsys: pytest.CaptureFixture[str], arguments: Sequence[str]) -> list[float]:
    assert main(["select", *SELECT, *arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert any("feasible candidates" in note for note in document["notes"])
    return [entry["energy_per_request_j"] for entry in document["configurations"]]


def test_candidates_of_others_are_ranked_by_joules(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recommendation.json"
    path.write_text(json.dumps(CANDIDATES))
    found = ranked(capsys, ["--candidates", str(path)])
    assert len(found) == 2
    assert found == sorted(found)


def test_a_row_said_again_is_no_further_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, line = tmp_path / "runs.csv", "TP1 B481,188,0.00656\n"
    runs.write_text("configuration,energy_per_request_j,tpot_s\n" + 3 * line)
    asked = [
        "verify", "--llm", "Qwen/Qwen3-8B", "--gpu", "H100", "--rate", "3", "--input-tokens", "500",
        "--output-tokens", "300", "--tpot", "5ms", "--measured", str(runs), "--json",
    ]  # fmt: skip
    assert main(asked) == 0
    assert json.loads(capsys.readouterr().out)["next"] is not None
