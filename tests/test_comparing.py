"""What changed between two tables or models: planted changes found, noise left alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from energylens import comparing, fitting, modelfile, table
from energylens.cli import main
from energylens.errors import CheckError, UsageError
from energylens.formula import NAMES, design, energy

HEAD = (
    "llm,gpu,tensor_parallel,batch_size,input_tokens,output_tokens,energy_per_request_j,"
    "engine,engine_version,source\n"
)
LLM = "meta-llama/Llama-3.1-8B-Instruct,H100"


def write(path: Path, rows: list[str], version: str = "0.11.1") -> str:
    path.write_text(HEAD + "".join(f"{LLM},{row},vllm,{version},measured\n" for row in rows))
    return str(path)


def compared(capsys, *arguments: str, code: int = 0) -> dict:
    assert main(["compare", *arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_a_change_is_worked_out_by_hand(tmp_path, capsys):
    # Repeats 99 and 101 J: a spread of 1.4 % of one run with 2 degrees of freedom; 20 % is more.
    a = write(tmp_path / "a.csv", ["1,8,512,128,99", "1,8,512,128,101"])
    b = write(tmp_path / "b.csv", ["1,8,512,128,119", "1,8,512,128,121"], "0.12.0")
    found = compared(capsys, a, b)
    assert found["across"] == {"engine": [["vllm 0.11.1"], ["vllm 0.12.0"]]}
    (change,) = found["changes"]
    assert change["energy_per_request_a_j"] == pytest.approx(np.sqrt(99 * 101))
    assert change["energy_per_output_token_b_j"] == pytest.approx(np.sqrt(119 * 121) / 128)
    assert change["energy_per_total_token_b_j"] == pytest.approx(np.sqrt(119 * 121) / 640)
    squares = np.log(101 / 99) ** 2 / 2 + np.log(121 / 119) ** 2 / 2
    spread = np.sqrt(squares / 2)
    assert found["noise_ratio"] == pytest.approx(spread)
    # Student's t with 2 degrees of freedom: 4.303 of sqrt(1/2 + 1/2) spreads.
    assert change["low_ratio"] == pytest.approx(
        change["ratio"] * np.exp(-4.3027 * spread), rel=1e-4
    )
    assert change["verdict"] == "higher"
    assert found["counts"] == {"higher": 1, "lower": 0, "same": 0}


def test_what_lies_within_the_noise_is_no_change(tmp_path, capsys):
    a = write(tmp_path / "a.csv", ["1,8,512,128,90", "1,8,512,128,110"])
    b = write(tmp_path / "b.csv", ["1,8,512,128,95", "1,8,512,128,118"])
    found = compared(capsys, a, b, "--fail-on", "changed,winner")
    assert found["counts"]["same"] == 1
    assert found["failed"] == []


def test_without_repeats_the_noise_is_assumed_and_said(tmp_path, capsys):
    a = write(tmp_path / "a.csv", ["1,8,512,128,100"])
    b = write(tmp_path / "b.csv", ["1,8,512,128,110"])
    found = compared(capsys, a, b)
    assert "nothing was measured twice" in found["noise"]
    assert found["counts"]["same"] == 1  # 10 % of 5 % twice is 1.4 standard deviations
    assert compared(capsys, a, b, "--noise", "1%")["counts"]["higher"] == 1


def test_a_winner_that_changed_fails_the_check_it_was_asked_for(tmp_path, capsys):
    a = write(tmp_path / "a.csv", ["1,8,512,128,100", "2,8,512,128,130"])
    b = write(tmp_path / "b.csv", ["1,8,512,128,160", "2,8,512,128,128"])
    found = compared(capsys, a, b, "--noise", "2%", "--fail-on", "winner", code=1)
    (winner,) = found["winners"]
    assert (winner["winner_a"], winner["winner_b"]) == ("TP1 PP1 B8", "TP2 PP1 B8")
    assert winner["keeping_ratio"] == pytest.approx(160 / 128 - 1)
    assert winner["beyond_noise"]
    assert main(["compare", a, b, "--noise", "2%", "--fail-on", "winner"]) == 1
    said = capsys.readouterr()
    assert "keeping TP1 PP1 B8 takes 25.0 % more" in said.out
    assert "check failed: the configuration of the fewest joules changed in 1 scenario" in said.err
    # The same joules, less sure: another is ahead, but within the noise.
    found = compared(capsys, a, b, "--noise", "30%", "--fail-on", "winner")
    assert not found["winners"][0]["beyond_noise"]


def test_no_change_is_seldom_called_one(draw_cases, make_dataset):
    """All tests of a comparison together are wrong once in twenty at most."""
    cases = draw_cases(30, images=False, node=False)
    false = 0
    for seed in range(40):
        sides = [
            make_dataset(cases * 3, noise_ratio=0.05, seed=100 * seed + side) for side in (1, 2)
        ]
        found = comparing.compare_tables(*sides, ("a", "b"), least_ratio=0.0)
        false += bool(found.fails("changed"))
    assert false <= 6  # of 40 at 5 %: 6 or fewer with 99.7 %


def test_the_term_that_changed_is_named(draw_cases, make_dataset):
    cases = draw_cases(60, images=False, node=False)
    theta = np.ones(len(NAMES))
    changed = theta.copy()
    changed[NAMES.index("decode_weights")] = 1.2
    a = make_dataset(cases * 2, theta=theta, noise_ratio=0.01, engine_version="1")
    b = make_dataset(cases * 2, theta=changed, noise_ratio=0.01, seed=7, engine_version="1")
    found = comparing.compare_tables(a, b, ("a", "b"))
    assert found.terms[0].term == "decode_weights"
    assert found.terms[0].low_ratio > 0
    # What the term takes more, as planted, over all joules of A: within a tenth.
    counted = design(a.cases.take(slice(0, len(cases))))
    grown = energy(counted, changed) / energy(counted, theta) - 1
    assert found.terms[0].share_ratio == pytest.approx(grown.mean(), rel=0.1)
    total = sum(term.share_ratio for term in found.terms) + found.unexplained_ratio
    measured = np.mean([change.ratio - 1 for change in found.changes])
    assert total == pytest.approx(measured, abs=0.01)


def test_rows_are_matched_by_what_was_served_and_how(tmp_path, capsys):
    a = write(tmp_path / "a.csv", ["1,8,512,128,100", "1,16,512,128,60"])
    b = write(tmp_path / "b.csv", ["1,8,512,128,100", "1,8,1024,128,150"])
    found = compared(capsys, a, b)
    assert (found["matched"], found["only_a"], found["only_b"]) == (1, 1, 1)
    other = write(tmp_path / "c.csv", ["4,8,512,128,100"])
    assert main(["compare", a, other]) == 2
    assert "none of the 2 cases of A is in B (1)" in capsys.readouterr().err


def test_lengths_that_scatter_are_no_change(draw_cases, make_dataset):
    """Rows of one task with other mean lengths are compared per output token."""
    from dataclasses import replace

    case = draw_cases(1, images=False, node=False)[0]
    longer = replace(
        case, workload=replace(case.workload, output_tokens=case.workload.output_tokens * 1.1)
    )
    a = make_dataset([case] * 2, np.array([100.0, 101.0]), task="chat")
    b = make_dataset([longer] * 2, np.array([110.0, 111.1]), task="chat")
    found = comparing.compare_tables(a, b, ("a", "b"))
    assert found.changes[0].ratio == pytest.approx(1.0)
    assert any("output lengths differ by up to 10 %" in note for note in found.notes)


def test_two_models_are_compared_within_the_scope_of_both(
    tmp_path, draw_cases, make_dataset, capsys
):
    cases = draw_cases(120, images=False, node=False)
    theta = np.ones(len(NAMES))
    dearer = theta * np.where(np.array(NAMES) == "decode_compute", 3.0, 1.0)
    paths = []
    for name, planted in (("a", theta), ("b", dearer)):
        rows = make_dataset(cases, theta=planted, noise_ratio=0.02)
        paths.append(str(tmp_path / f"{name}.json"))
        modelfile.save(fitting.fit(rows), paths[-1])
    same = compared(capsys, paths[0], paths[0], "--fail-on", "changed")
    assert same["overall_ratio"] == pytest.approx(1.0)
    found = compared(capsys, *paths, "--llm", "Qwen/Qwen3-32B", "--output-tokens", "200")
    assert found["kind"] == "models"
    assert found["overall_ratio"] > 1.05
    assert found["terms"][0]["term"] == "decode_compute"
    assert all("Qwen3-32B" in change["case"] for change in found["changes"])
    total = sum(term["share_ratio"] for term in found["terms"])
    measured = np.mean([change["ratio"] - 1 for change in found["changes"]])
    assert total == pytest.approx(measured, rel=1e-6)


def test_a_model_against_what_was_measured(tmp_path, draw_cases, make_dataset, capsys):
    cases = draw_cases(80, images=False, node=False)
    model, path = tmp_path / "m.json", tmp_path / "runs.csv"
    modelfile.save(fitting.fit(make_dataset(cases, noise_ratio=0.05)), model)
    table.write(make_dataset(cases, noise_ratio=0.05, seed=5), path)
    found = compared(capsys, str(model), str(path), "--fail-on", "changed")
    assert found["kind"] == "model and table"
    dear = make_dataset(cases, noise_ratio=0.05, seed=5).energy_per_request_j * 1.6
    table.write(make_dataset(cases, dear), path)
    found = compared(capsys, str(model), str(path), "--fail-on", "higher", code=1)
    assert found["overall_verdict"] == "higher"
    assert found["overall_ratio"] == pytest.approx(1.6, rel=0.05)
    assert main(["compare", str(path), str(model)]) == 2
    assert "give the model first" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--fail-on", "worse"], "--fail-on takes higher, lower, changed, winner"),
        (["--noise", "0"], "--noise must be above 0"),
        (["--llm", "Qwen/Qwen3-8B"], "--llm is for two models"),
        (["--choose", "colour"], "the free knobs must be one or more of"),
        (["--where-a", "gpu=H200"], "no row has gpu H200"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(arguments, said, tmp_path, capsys):
    a = write(tmp_path / "a.csv", ["1,8,512,128,100"])
    assert main(["compare", a, a, *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_several_values_across_are_not_matched_at_random(draw_cases, make_dataset):
    cases = draw_cases(4, images=False, node=False)
    a = make_dataset(cases, engine_version=["1", "2", "1", "2"])
    b = make_dataset(cases, engine_version="3")
    with pytest.raises(UsageError, match="no engine in common"):
        comparing.compare_tables(a, b, ("a", "b"))
    with pytest.raises(CheckError, match="check failed"):
        comparing.compare_tables(
            b, make_dataset(cases, theta=np.full(len(NAMES), 2.0)), ("a", "b"), noise_ratio=0.01
        ).require(["higher"])
