"""The published figures of the time law are had again, and rows without joules are read."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from studies.limits.__main__ import SHOWN
from studies.limits.__main__ import study as limits_study
from studies.limits.stated import study as stated_study
from studies.results.runs import Data
from studies.times.__main__ import sources, study

from energylens import table
from energylens.cli import main
from energylens.errors import TableError

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("ENERGYLENS_DATA", ROOT.parent / "shared" / "data"))
PUBLISHED = json.loads((ROOT / "studies" / "times" / "times.json").read_text())


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "argonne").is_dir(), reason=f"no public measurements in {DATA}")
@pytest.mark.parametrize("source", ["Argonne layouts, A100", "ML.ENERGY v2, A100"])
def test_the_law_has_the_published_errors_of_time(source: str) -> None:
    found = study(Data(DATA), names=("energylens", "log-linear"), only=(source,))[source]
    published = PUBLISHED[source]
    assert found["dataset_digest"] == published["dataset_digest"]
    for protocol in {"few-shot", "unseen-llm"} & set(found):
        for name in ("energylens", "log-linear"):
            assert found[protocol][name]["mape_ratio"] == pytest.approx(
                published[protocol][name]["mape_ratio"], rel=0.02
            )


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "argonne").is_dir(), reason=f"no public measurements in {DATA}")
def test_choices_within_limits_come_out_as_published() -> None:
    published = json.loads((ROOT / "studies" / "limits" / "limits.json").read_text())["v2, A100"]
    rows, _ = sources(Data(DATA))["ML.ENERGY v2, A100"]
    assert rows.digest == published["dataset_digest"]
    found = limits_study(rows, "0.8", ("energylens",))["energylens"]
    for ours, theirs in zip(found, published["0.8"]["energylens"], strict=True):
        for key in SHOWN:
            assert ours[key] == pytest.approx(theirs[key], abs=0.02)


def test_the_law_is_nearer_than_a_log_linear_one_on_every_source() -> None:
    for entry in PUBLISHED.values():
        for protocol in {"few-shot", "unseen-llm"} & set(entry):
            errors = {name: score["mape_ratio"] for name, score in entry[protocol].items()}
            assert errors["energylens"] < errors["log-linear"]


HEADER = (
    "llm,gpu,tensor_parallel,batch_size,input_tokens,output_tokens,"
    "request_latency_s,boundary,source"
)


def timed(path: Path) -> Path:
    lines = [HEADER]
    for degree in (1, 2, 4):
        for batch in (1, 8, 32, 64):
            for tokens in (128, 512):
                seconds = f"{(1.0 + batch / 40) / degree * tokens / 100:.4f}"
                lines.append(
                    f"meta-llama/Llama-3.1-8B,A100-SXM-40GB,{degree},{batch},{tokens},{tokens},"
                    f"{seconds},active_gpus,published"
                )
    path.write_text("\n".join(lines) + "\n")
    return path


def test_times_are_judged_on_rows_without_joules(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = timed(tmp_path / "times.csv")
    with pytest.raises(TableError, match="energy_per_request_j must be a column"):
        table.read(path)
    asked = ["evaluate", str(path), "--protocol", "few-shot", "--train", "8", "--repeats", "2"]
    asked += ["--choose", "tensor_parallel", "--estimators", "energylens,log-linear", "--json"]
    assert main([*asked, "--target", "latency"]) == 0
    assert json.loads(capsys.readouterr().out)["estimators"]["energylens"]["mape_ratio"] > 0
    assert main(asked) != 0
    assert "energy_per_request_j" in capsys.readouterr().err


def test_a_row_needs_joules_or_a_time(tmp_path: Path) -> None:
    path = timed(tmp_path / "times.csv")
    lines = path.read_text().splitlines()
    lines[1] = ",".join(["" if i == 6 else cell for i, cell in enumerate(lines[1].split(","))])
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(TableError, match="or one of request_latency_s"):
        table.read(path, joules=False)


def test_check_takes_rows_with_times_alone_and_says_what_they_are_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "times.csv"
    path.write_text(
        "llm,gpu,batch_size,input_tokens,output_tokens,energy_per_request_j,request_latency_s,source\n"
        "Qwen/Qwen3-8B,H100,1,500,300,900,3.1,measured\n"
        "Qwen/Qwen3-8B,H100,8,500,300,,3.4,measured\n"
    )
    assert main(["check", str(path), "--json"]) == 3
    document = json.loads(capsys.readouterr().out)
    assert document["valid"]
    assert [(d["rows"], d["example"]) for d in document["doubts"]] == [(1, "line 3")]
    assert "--target latency" in document["doubts"][0]["what"]
    # With neither a time nor joules a row is none.
    path.write_text(path.read_text().replace(",,3.4", ",,"))
    assert main(["check", str(path)]) == 1


@pytest.mark.skipif(not (DATA / "mlenergy-v2").is_dir(), reason=f"no public measurements in {DATA}")
def test_what_is_stated_of_choices_is_had_again() -> None:
    published = json.loads((ROOT / "studies" / "limits" / "stated.json").read_text())["v2, A100"]
    found = stated_study(sources(Data(DATA))["ML.ENERGY v2, A100"][0])
    assert found["dataset_digest"] == published["dataset_digest"]
    assert found["covered_ratio"] == pytest.approx(published["covered_ratio"], abs=0.01)
    for kind in ("own", "blind"):
        for key in ("stated_ratio", "kept_ratio"):
            assert found[kind][key] == pytest.approx(published[kind][key], abs=0.01)
    assert found["blind"]["kept_ratio"] >= 0.8
