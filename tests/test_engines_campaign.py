"""The GPU campaign plans enough, joins its pieces, and says what it only models."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from energylens.instrument import planning
from energylens.instrument.plan import Mode
from energylens.records import Modality

sys.path.insert(0, str(Path(__file__).parents[1]))
from tools.gpu_campaign import __main__ as commands
from tools.gpu_campaign import derive, pack, plans, run

H100 = "H100-SXM-80GB"


@pytest.fixture(autouse=True, scope="module")
def packaged_catalog_only(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENERGYLENS_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.mark.parametrize("engine", ["vllm", "transformers"])
def test_the_plan_has_rows_enough_of_every_kind_that_the_engine_can_do(engine: str) -> None:
    made = plans.campaign(engine, H100, options={})
    assert len(made.cases) >= 150
    batches = {case.case.configuration.batch_size for case in made.cases}
    assert {1, 256} <= batches
    assert {case.media.modality for case in made.cases} == set(Modality)
    families = {case.case.llm.family for case in made.cases}
    wanted = {"dense", "moe", "hybrid", "ssm"} if engine == "vllm" else {"dense", "moe"}
    assert families == wanted
    sizes = [case.case.llm.total_parameters for case in made.cases]
    assert min(sizes) < 0.8e9
    assert max(sizes) > 30e9
    narrow = {case.case.precision.id for case in made.cases} - {"bf16"}
    assert bool(narrow) == (engine == "vllm")
    assert any(case.mode is Mode.STEADY for case in made.cases) == (engine == "vllm")
    assert len({case.key for case in made.cases}) == len(made.cases)
    for case in made.cases:
        assert planning.problem(case, gpus=1) is None
        assert planning.case_seconds(case, made.procedure) <= 40


def test_shards_are_planned_only_where_one_gpu_holds_its_part() -> None:
    made = plans.campaign("vllm", H100, options={}, shards=True)
    assert all(case.shard and case.gpus == 1 for case in made.cases)
    layouts = {(case.case.llm.id, case.shard) for case in made.cases}
    assert ("meta-llama/Llama-3.1-70B", (8, 1)) in layouts
    for case in made.cases:
        degrees = case.case.configuration
        assert (degrees.tensor_parallel, degrees.pipeline_parallel) == case.shard


def test_a_rehearsal_takes_the_same_path_with_few_small_cases() -> None:
    for shards in (False, True):
        made = plans.campaign("transformers", H100, options={}, rehearsal=True, shards=shards)
        assert 4 <= len(made.cases) <= 24
        assert all(case.scaled_layers == 2 for case in made.cases)
        assert all((case.shard is not None) == shards for case in made.cases)


def row(**changes: Any) -> dict[str, Any]:
    return {
        "llm": "meta-llama/Llama-3.1-8B",
        "gpu": H100,
        "precision": "bf16",
        "tensor_parallel": 4,
        "pipeline_parallel": 1,
        "batch_size": 8,
        "input_tokens": 512,
        "output_tokens": 128,
        "energy_per_request_j": 100.0,
        "prefill_energy_per_request_j": 40.0,
        "decode_energy_per_request_j": 60.0,
        "average_power_w": 1600.0,
        "request_latency_s": 2.0,
        "source": "derived",
        "x_shard": "4x1",
        "x_mode": "phases",
    } | changes


def test_communication_is_counted_as_a_ring_does() -> None:
    seconds, joules = derive.communication(row())
    # 64 sums of 639 tokens x 8 KiB x 8 requests, 1.5 times through each GPU, 450 GB/s one way
    moved = 8 * 64 * 639 * 8192 * 1.5
    latency = (1 + 127) * 64 * derive.LATENCY_S
    assert seconds == pytest.approx(moved / (0.75 * 450e9) + latency)
    wires = moved / 8 * 4 * derive.LINK_J_PER_BYTE
    assert joules == pytest.approx(0.5 * 1600 * seconds / 8 + wires)


def test_one_gpu_communicates_nothing() -> None:
    assert derive.communication(row(tensor_parallel=1)) == (0.0, 0.0)


def test_a_pipeline_sends_less_than_tensor_parallelism() -> None:
    tensor = derive.communication(row())
    pipeline = derive.communication(row(tensor_parallel=1, pipeline_parallel=4))
    assert 0 < pipeline[0] < tensor[0]
    assert 0 < pipeline[1] < tensor[1]


def test_derived_rows_say_what_was_measured_and_what_was_not(tmp_path: Path) -> None:
    shards, into = tmp_path / "s.jsonl", tmp_path / "d.jsonl"
    whole = row(x_shard=None)
    shards.write_text(json.dumps(row()) + "\n" + json.dumps(whole) + "\n")
    assert derive.derive(shards, into) == 1
    made = json.loads(into.read_text())
    assert made["source"] == "derived"
    added = made["x_communication_energy_per_request_j"]
    assert made["energy_per_request_j"] == pytest.approx(100.0 + added)
    assert made["x_compute_energy_per_request_j"] == 100.0
    assert "prefill_energy_per_request_j" not in made
    assert "ring" in made["x_communication_model"]


def test_pieces_are_joined_and_no_case_counts_twice(tmp_path: Path) -> None:
    for name, cases, torn in (("a", ("1", "2"), '{"x_case": "4'), ("b", ("2", "3"), "")):
        table = tmp_path / f"{name}.jsonl"
        table.write_text("".join(json.dumps({"x_case": c}) + "\n" for c in cases) + torn)
        records = [{"kind": "case", "case": c, "status": "measured"} for c in cases]
        table.with_suffix(".records.jsonl").write_text(
            "".join(json.dumps(record) + "\n" for record in records)
        )
    into = tmp_path / "out" / "all.jsonl"
    assert run.merge([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], into) == 3
    assert [json.loads(line)["x_case"] for line in into.read_text().splitlines()] == ["1", "2", "3"]
    assert len(into.with_suffix(".records.jsonl").read_text().splitlines()) == 3


def test_engines_are_compared_on_the_cases_that_both_ran(tmp_path: Path) -> None:
    one, other = tmp_path / "vllm.jsonl", tmp_path / "transformers.jsonl"
    one.write_text(json.dumps(row()) + "\n" + json.dumps(row(batch_size=1)) + "\n")
    other.write_text(json.dumps(row(energy_per_request_j=150.0)) + "\n")
    text = commands.comparison(one, other)
    assert "1 cases, geometric mean of the ratio 1.500" in text
    assert "| 1.50 | 1.00 | 1.00 |" in text
    other.write_text("")
    assert commands.comparison(one, other) == "the tables share no case"


def test_a_file_is_cut_into_parts_that_make_it_up_again(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.write_bytes(bytes(range(256)) * 10)
    parts = pack.split(whole, tmp_path, 1000)
    assert [part.stat().st_size for part in parts] == [1000, 1000, 560]
    assert b"".join(part.read_bytes() for part in parts) == whole.read_bytes()
