"""Measured runs correct the choice; other tools' candidates are ranked by joules."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from energylens import catalog, packaged
from energylens.cases import Cases
from energylens.cli import main
from energylens.deciding import Engine, LatencyLimit, Load, case_of
from energylens.errors import ArtefactError, InputError
from energylens.recommended import read_recommendation
from energylens.records import Configuration, Workload
from energylens.selection import Scenario
from energylens.service import Lengths
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
    assert verdict.runs <= 3
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
    assert main(["verify", "--llm", LLAMA, "--gpu", "H100"]) == 2
    assert "--rate" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line", ["TP4 B8,,0.1", "TP4 B8,-5,0.1", "TP4 B8,five,0.1", ",5,0.1", "TP4 B8,5,nan"]
)
def test_runs_that_are_none_are_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "runs.csv"
    path.write_text(f"configuration,energy_per_request_j,tpot_s\n{line}\n")
    with pytest.raises(InputError):
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
