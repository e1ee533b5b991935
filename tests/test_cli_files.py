"""What the command line never does to files: write over its input, or over measurements."""

from __future__ import annotations

import json
from importlib.resources import files as resources
from pathlib import Path

import pytest

from energylens.cli import main
from energylens.instrument.meter import MeterError

PLAN = ("plan", "--llm", "Qwen/Qwen3-8B", "--gpu", "H100", "--engine", "simulated")


@pytest.fixture(autouse=True)
def own_catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENERGYLENS_HOME", str(tmp_path / "home"))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    lines = (resources("energylens") / "data" / "simulated-demo.csv").read_text().splitlines()
    path = tmp_path / "runs.csv"
    path.write_text("\n".join(lines[:30]) + "\n")
    return path


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "plan.jsonl"
    assert main([*PLAN, "--batch-sizes", "1,8", "--input-tokens", "64", "-o", str(path)]) == 0
    return path


@pytest.mark.parametrize(
    "command",
    [
        ("fit", "{table}", "-o", "{table}"),
        ("report", "{table}", "-o", "{folder}/../{name}/runs.csv"),
        ("discover", "{table}", "-o", "{table}"),
        ("import", "argonne", "{table}", "-o", "{table}"),
        (*PLAN, "--next", "2", "--measured", "{table}", "-o", "{table}"),
        ("measure", "{plan}", "-o", "{plan}"),
    ],
    ids=lambda command: command[0],
)
def test_a_command_does_not_write_over_what_it_reads(
    command: tuple[str, ...], table: Path, plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = table.read_bytes(), plan.read_bytes()
    names = {"table": table, "plan": plan, "folder": table.parent, "name": table.parent.name}
    assert main([word.format(**names) for word in command]) == 2
    assert "is read by this command and would be written over" in capsys.readouterr().err
    assert (table.read_bytes(), plan.read_bytes()) == before


def test_a_plan_or_a_model_does_not_replace_a_table_of_measurements(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.csv"
    other.write_bytes(table.read_bytes())
    for command in (PLAN, ("fit", str(table))):
        assert main([*command, "-o", str(other)]) == 2
        assert "is a table of measurements and would be written over" in capsys.readouterr().err
    assert other.read_bytes() == table.read_bytes()


def test_a_table_without_its_records_is_not_gone_on_with(
    plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = plan.parent / "runs.jsonl"
    measure = ["measure", str(plan), "-o", str(runs)]
    assert main(measure) == 0
    assert main(measure) == 0
    before = runs.read_bytes()
    runs.with_name("runs.records.jsonl").rename(plan.parent / "elsewhere.jsonl")
    capsys.readouterr()
    assert main(measure) == 1
    assert "2 have none there: put that file back" in capsys.readouterr().err
    assert runs.read_bytes() == before
    assert len({json.loads(line)["x_run"] for line in before.splitlines()}) == 2


NEXT = (*PLAN, "--batch-sizes", "1,2,4,8,16,64", "--input-tokens", "64,512", "--next", "2")


@pytest.fixture
def grid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """Every case that ``NEXT`` may choose from, measured."""
    path, runs = tmp_path / "grid.jsonl", tmp_path / "grid-runs.jsonl"
    assert main([*NEXT[:-2], "-o", str(path)]) == 0
    assert main(["measure", str(path), "-o", str(runs)]) == 0
    capsys.readouterr()
    return runs


def test_a_plan_that_one_may_do_without_says_so_before_it_lists_its_cases(
    grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = grid.read_text().splitlines(keepends=True)
    some, path = tmp_path / "some.jsonl", tmp_path / "next.jsonl"
    some.write_text("".join(lines[:9]))
    command = [*NEXT, "--measured", str(some), "-o", str(path)]
    assert main(command) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.index("Stop: ") < said.index(
        "No more of these runs are needed. To go on all the same: 2"
    )
    assert said.index("2 cases of 12 feasible ones") < said.index("1. Qwen/Qwen3-8B")
    assert len(path.read_text().splitlines()) == 1 + 2
    assert main([*command, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["stop"], document["cases"], document["output"]) == (True, 2, str(path))
    # Asked to choose among layouts, of which there is one: no verdict, but runs all the same.
    assert main([*command, "--choose", "tensor_parallel"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Whether to stop cannot be said: there must be two or more feasible" in said
    assert "needed" not in said


def test_without_enough_rows_of_its_engine_a_plan_says_go_on_and_what_is_missing(
    grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = tmp_path / "few.jsonl"
    few.write_text("".join(grid.read_text().splitlines(keepends=True)[:8]))
    for rows, command, missing in (
        (few, NEXT, "Go on: only 8 measured rows are of H100-SXM-80GB "
         "with the engine simulated, and it takes 9 "),
        (grid, (*NEXT, "--engine", "vllm"), "no measured row is of H100-SXM-80GB with the engine "
         "vllm, and it takes 9 "),
        (grid, (*NEXT, "--gpu", "A100"), "no measured row is of A100-SXM-80GB with the engine "),
    ):  # fmt: skip
        options = ["--measured", str(rows), "-o", str(tmp_path / "next.jsonl")]
        assert main([*command, *options]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert missing in said
        assert "Stop" not in said
        assert "2 cases of 12 feasible ones" in said
        assert "are simulated, not measured: no claim about real energy may rest" in said


def test_a_plan_that_would_help_does_not_say_that_one_may_do_without(
    grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, path = tmp_path / "one.jsonl", tmp_path / "next.jsonl"
    runs.write_text("".join(grid.read_text().splitlines(keepends=True)[:9]))
    command = [*NEXT, "-o", str(path), "--json"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["stop"] is None
    monkeypatch.setattr("energylens.nextruns.answers.Verdict.settled", False)
    monkeypatch.setattr(
        "energylens.nextruns.answers.CHANGE_SHARE", 0.0
    )  # any change is worth a run
    command += ["--measured", str(runs)]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["stop"] is False
    command.remove("--json")
    assert main(command) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Go on: " in said
    assert "needed" not in said


def test_once_everything_is_measured_there_is_a_verdict_and_no_plan(
    grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = [*NEXT, "--measured", str(grid), "-o", "next.jsonl"]
    assert main(command) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "No run is left that would change that. Stop: " in said
    assert "All 12 feasible cases are measured: next.jsonl is not written." in said
    assert main([*command, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["stop"], document["cases"], document["output"]) == (True, 0, None)
    assert not Path("next.jsonl").exists()
    assert main([*command, "--choose", "tensor_parallel"]) == 2


def said_by(capsys: pytest.CaptureFixture[str], *command: str, code: int = 0) -> str:
    capsys.readouterr()
    assert main(command) == code
    captured = capsys.readouterr()
    return " ".join((captured.out + captured.err).split())


def test_a_sweep_says_what_is_simulated_and_what_was_there_already(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, runs = str(tmp_path / "plan.jsonl"), str(tmp_path / "runs.jsonl")
    small = ("--batch-sizes", "1", "--input-tokens", "64", "--tensor-parallel", "1,2,3")
    said = said_by(capsys, *PLAN, *small, "--repeats", "2", "--quick", "-o", path)
    assert "4 runs of 2 cases of 2 feasible ones, about 1 minute, written to" in said
    assert "1 left out: the LLM cannot be laid out so: tensor parallel 3 does not divide" in said
    measure = ("measure", path, "-o", runs)
    said = said_by(capsys, *measure, "--gpus", "1", code=1)  # two cases failed
    assert "2 of 4 cases measured, 0 of them unstable, 2 failed; " in said
    assert "J simulated. " in said
    assert "and 1 other: the case needs 2 GPUs, and there is 1." in said
    assert "drawn" not in said
    assert "4 of 4 cases measured" in said_by(capsys, *measure)
    said = said_by(capsys, *measure)
    assert said.startswith("Nothing was left to do, all was there already: 4 of 4 cases measured")
    assert " J" not in said


def test_what_no_case_can_do_without_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> None:
        raise MeterError(f"there is no meter {name}.")

    monkeypatch.setattr("energylens.instrument.meters.open_meter", absent)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    path, runs = str(tmp_path / "plan.jsonl"), str(tmp_path / "runs.jsonl")
    said_by(capsys, *PLAN, "--engine", "vllm", "-o", path)
    measure = ("measure", path, "-o", runs, "--executor", "inline")
    said = said_by(capsys, *measure, code=1)
    assert said.count("there is no meter auto.") == 1
    assert "and 5 others: there is no meter auto." in said
    assert "the reasons are above; the engine vllm is not installed either" in said
    assert "--retry-failed tries those that failed again" in said_by(capsys, *measure, code=1)
    said = said_by(capsys, *measure, "--meter", "nope", code=2)
    assert said.startswith("energylens measure: unknown meter 'nope'. Known are auto")


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ((*PLAN, "--measured", "{plan}", "-o", "{new}.jsonl"), "--measured is read for --next"),
        ((*PLAN, "-o", "{new}.csv"), "a plan is JSON Lines"),
        (("measure", "{plan}", "-o", "{new}/runs.jsonl"), "the folder of the table must exist"),
        (
            ("measure", "{plan}", "-o", "{new}.jsonl", "--meter", "bogus"),
            "the simulated engine brings a meter of its own",
        ),
        (
            ("evaluate", "{plan}", "--protocol", "few-shot", "--length-cut", "100"),
            "--length-cut is for --protocol unseen-length, not few-shot",
        ),
    ],
)
def test_what_would_have_no_effect_is_refused(
    command: tuple[str, ...], told: str, plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = plan.parent / "new"
    capsys.readouterr()
    assert main([word.format(plan=plan, new=new) for word in command]) == 2
    assert told in capsys.readouterr().err
    assert not list(plan.parent.glob("new*"))
