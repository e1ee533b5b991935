import json
import os
from pathlib import Path

import pytest

from energylens.cli import main

DATA = Path(
    os.environ.get("ENERGYLENS_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")
)
HEAD = (
    "llm,gpu,tensor_parallel,batch_size,input_tokens,output_tokens,energy_per_request_j,"
    "request_latency_s,average_power_w,source\n"
)
LLM = "meta-llama/Llama-3.1-8B-Instruct,H100"


def audited(tmp_path, capsys, rows):
    path = tmp_path / "runs.csv"
    path.write_text(HEAD + "".join(f"{row},published\n" for row in rows))
    assert main(["audit", str(path), "-o", str(tmp_path / "a.html"), "--json"]) == 0
    page = (tmp_path / "a.html").read_text()
    assert "runs.csv" in page
    assert "<script" not in page
    return json.loads(capsys.readouterr().out)["tables"][0]


def test_what_the_fastest_choice_wastes_is_worked_out_by_hand(tmp_path, capsys):
    # At batch 8, TP 2 takes half the time and 30 J instead of 20 J: half as much again.
    found = audited(
        tmp_path,
        capsys,
        [f"{LLM},1,8,512,128,20,4.0,40", f"{LLM},2,8,512,128,30,2.0,120"],
    )
    fixed = found["fixed_batch"]
    assert fixed["scenarios"] == 1
    assert fixed["latency_differs_ratio"] == 1.0
    assert fixed["latency_waste_median_ratio"] == pytest.approx(0.5)
    assert found["contradictions"] == []


def test_rows_that_contradict_themselves_are_named(tmp_path, capsys):
    found = audited(
        tmp_path,
        capsys,
        [
            f"{LLM},1,8,512,128,20,4.0,80",  # 20 J x 2 a second are 40 W
            f"{LLM},1,16,512,128,200,4.0,800",  # above the TDP of 700 W
            f"{LLM},1,32,512,128,25,4.0,200",  # and falling
        ],
    )
    said = {item["what"]: item["rows"] for item in found["contradictions"]}
    assert said == {
        "joules are not mean power x time within 10 %": 1,
        "watts above the TDP": 1,
        "watts fall by more than 10 % while the batch grows": 1,
    }


@pytest.mark.parametrize(
    ("name", "scenarios", "differs", "waste"),
    [("mlenergy-v3", 67, 0.94, 0.21), ("mlenergy-v2", 22, 0.64, None), ("argonne", 20, 1.0, None)],
)
def test_public_data_diverges_at_fixed_batch(name, scenarios, differs, waste, capsys):
    if not (DATA / "mlenergy-v3").exists():
        pytest.skip("the public data is not at hand ($ENERGYLENS_DATA)")
    assert main(["audit", str(DATA), "--json"]) == 0
    tables = {item["name"]: item for item in json.loads(capsys.readouterr().out)["tables"]}
    found = tables[name]["fixed_batch"]
    assert found["scenarios"] == scenarios
    assert found["latency_differs_ratio"] == pytest.approx(differs, abs=0.005)
    if waste is not None:
        assert found["latency_waste_median_ratio"] == pytest.approx(waste, abs=0.01)


def test_the_page_says_what_the_audit_of_the_public_data_says(capsys):
    if not (DATA / "mlenergy-v3").exists():
        pytest.skip("the public data is not at hand ($ENERGYLENS_DATA)")
    assert main(["audit", str(DATA)]) == 0
    page = (Path(__file__).resolve().parents[1] / "docs" / "audit.md").read_text(encoding="utf-8")
    assert " ".join(capsys.readouterr().out.split()) in " ".join(page.split())
