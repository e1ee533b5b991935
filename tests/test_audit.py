import json
import os
from pathlib import Path

import pytest

from energylens import audit, table
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


TABLE = (
    "llm,gpu,precision,tensor_parallel,batch_size,input_tokens,output_tokens,energy_per_request_j"
)
ROW = "Qwen/Qwen3-8B,H100,bf16"


def said_of(tmp_path, more, *rows):
    path = tmp_path / "t.csv"
    lines = [f"{TABLE},{more},source", *(f"{ROW},{row},measured" for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return "\n".join(audit.lines(audit.audit(table.read(path), "t.csv")))


def test_one_row_is_one_row(tmp_path):
    said = said_of(tmp_path, "task", "1,8,512,128,235,")
    assert "t.csv: 1 row\n" in said
    assert "No two rows differ in layout at fixed batch alone." in said


def test_rows_under_load_have_no_throughput_to_choose_and_no_batch_to_name(tmp_path):
    said = said_of(
        tmp_path,
        "request_rate_per_s,achieved_rate_per_s,mean_batch_size",
        "1,,512,128,235,2,1.99,5",
        "2,,512,128,335,2,1.99,4",
        "1,,512,128,135,4,3.99,9",
    )
    assert "In 1 scenario rows differ in layout at fixed batch alone, but fewer than two" in said
    assert "requests a second differs" not in said
    assert "TP4 PP1 at the same load" in said
    assert "nan" not in said


def test_boundaries_are_not_the_same_thing_measured_twice(tmp_path):
    rows = [f"{tp},8,512,128,{j},{s},{b}" for tp, j, s, b in (
        (1, 235, 2.6, "active_gpus,"), (2, 250, 1.9, "active_gpus,"), (1, 900, 2.6, "node,8"),
        (2, 700, 1.9, "node,8"), (2, 1700, 1.9, "wall,8"),
    )]  # fmt: skip
    said = said_of(tmp_path, "request_latency_s,boundary,node_gpus", *rows)
    assert "times apart" not in said
    assert "in 50 % of 2 scenarios" in said
    again = said_of(
        tmp_path,
        "request_latency_s,boundary,node_gpus",
        rows[0],
        rows[4],
        rows[4].replace("1700", "300"),
    )
    assert "2 rows: the same configuration with joules more than 2 times apart" in again


def test_rates_of_more_rows_than_times_are_said_apart(tmp_path):
    said = said_of(
        tmp_path,
        "request_latency_s,achieved_rate_per_s",
        "1,8,512,128,235,2.6,3.1",
        "2,8,512,128,250,1.9,4.2",
        "1,16,512,128,200,,5.1",
        "2,16,512,128,210,,6.2",
    )
    assert "in 100 % of 1 scenario, and takes 6 % more in the median." in said
    assert "That of the most requests a second differs in 100 % of 2 scenarios" in said


def test_weights_beyond_memory_and_a_simulation_called_measured_are_named(tmp_path, capsys):
    header = (
        "llm,gpu,batch_size,input_tokens,output_tokens,energy_per_request_j,average_power_w,"
        "request_latency_s,engine,source\n"
    )
    path = tmp_path / "t.csv"
    for llm, engine, said in (
        ("meta-llama/Llama-3.1-405B-Instruct", "vllm", "the weights take more than the memory"),
        ("meta-llama/Llama-3.1-8B-Instruct", "simulated", "the engine is a simulation"),
        ("meta-llama/Llama-3.1-8B-Instruct", "vllm", None),
    ):
        path.write_text(f"{header}{llm},H100,8,500,200,240,600,3.2,{engine},measured\n")
        assert main(["check", str(path)]) == (3 if said else 0)
        out = " ".join(capsys.readouterr().out.split())
        assert ("Doubt" not in out) if said is None else (said in out)


@pytest.mark.parametrize(
    ("assumed", "lengths"), [("boundary", False), ("boundary input_tokens", True)]
)
def test_only_assumed_lengths_leave_open_how_lengths_matter(tmp_path, assumed, lengths):
    said = said_of(tmp_path, "assumed", f"1,8,512,128,235,{assumed}", f"2,8,512,128,255,{assumed}")
    assert ("how lengths matter" in said) is lengths


def doubts_of(tmp_path, header, *rows):
    path = tmp_path / "own.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return table.read(path)


def test_of_an_open_load_what_arrives_is_completed_and_the_limit_is_no_batch(tmp_path):
    head = (
        "llm,gpu,batch_size,request_rate_per_s,input_tokens,output_tokens,energy_per_request_j,"
        "request_latency_s,average_power_w,source"
    )
    rows = doubts_of(
        tmp_path,
        head,
        f"{LLM},256,1,500,300,300,5.0,300,measured",
        f"{LLM},256,2,500,300,200,5.5,400,measured",
        f"{LLM},256,9,500,300,100,50,500,measured",  # more arrives than is completed
        f"{LLM},256,2,500,300,100,5.5,400,measured",  # 200 W do not make 400 W
    )
    assert audit.rate_per_s(rows).tolist() == [1.0, 2.0, 9.0, 2.0]
    found = {item["what"]: item["rows"] for item in audit.contradictions(rows)}
    assert found["joules are not mean power x time within 10 %"] == 1


def test_a_time_of_a_token_is_not_faster_than_that_of_a_request(tmp_path):
    head = (
        "llm,gpu,tensor_parallel,batch_size,input_tokens,output_tokens,energy_per_request_j,"
        "tpot_s,request_latency_s,source"
    )
    mixed = [f"{LLM},1,32,500,300,100,,5.0,measured", f"{LLM},2,32,500,300,300,0.05,,measured"]
    found = audit.audit(doubts_of(tmp_path, head, *mixed), "own").fixed_batch
    assert (found.scenarios, found.untimed) == (0, 1)
    both = [mixed[0].replace(",,5.0", ",0.02,5.0"), mixed[1]]
    found = audit.audit(doubts_of(tmp_path, head, *both), "own").fixed_batch
    assert (found.scenarios, found.latency_differs_ratio) == (1, 0.0)


def test_joules_and_token_times_that_make_too_many_watts_are_doubted(tmp_path):
    head = "llm,gpu,batch_size,input_tokens,output_tokens,energy_per_request_j,tpot_s,source"
    said = "joules and TPOT make watts above the TDP at a full batch"
    # 64 requests of 200 J in 256 times 30 ms are 1.7 kW; of 60 J they are 0.5 kW.
    for joules, doubted in ((200, True), (60, False)):
        rows = doubts_of(tmp_path, head, f"{LLM},64,512,256,{joules},0.03,self_measured")
        assert (said in {item["what"] for item in audit.contradictions(rows)}) == doubted
