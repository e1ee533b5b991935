"""How many replicas are tried: every number that fits, and of very many those that may win."""

from __future__ import annotations

from typing import Any

import pytest

from energylens import catalog, packaged
from energylens.cli import main
from energylens.deciding import decide
from energylens.decisions import Decision, LatencyLimit, Load
from energylens.records import Boundary, Configuration, Workload
from energylens.scenarios import Candidates, Scenario
from energylens.service import Lengths
from energylens.solving import Engine

LENGTHS = Lengths(input_tokens=700, output_tokens=250)
TPOT = LatencyLimit(measure="tpot", seconds=0.03)


def asked(llm: str, precision: str, gpus: int, gpu: str = "H100", **more: Any) -> Scenario:
    return Scenario(
        llm=catalog.llm(llm),
        gpu=catalog.gpu(gpu),
        precision=catalog.precision(precision),
        workload=Workload(input_tokens=700, output_tokens=250),
        max_gpus=gpus,
        **more,
    )


def chosen(scenario: Scenario, rate: float, limits: Any = (TPOT,), **options: Any) -> Decision:
    model = packaged.for_gpu(scenario.gpu.id)[0].model()
    return decide(
        Engine(model), scenario, Load(rate_per_s=rate, lengths=LENGTHS), limits, **options
    )


@pytest.mark.parametrize(
    ("llm", "precision", "gpu", "gpus", "rate"),
    [
        ("Qwen/Qwen3-32B", "bf16", "H100", 7, 18.0),  # no power of two is the best
        ("Qwen/Qwen3-32B", "bf16", "H100", 40, 60.0),
        ("openai/gpt-oss-120b", "mxfp4", "H100", 24, 90.0),
        ("meta-llama/Llama-3.1-70B-Instruct", "fp8", "H200", 56, 35.0),
    ],
)
def test_no_number_of_replicas_that_fits_would_take_fewer_joules(
    llm: str, precision: str, gpu: str, gpus: int, rate: float
) -> None:
    scenario = asked(llm, precision, gpus, gpu)
    found = chosen(scenario, rate).best
    every = chosen(
        scenario, rate, candidates=Candidates(data_parallel=tuple(range(1, gpus + 1)))
    ).best
    assert found.energy_per_request_j <= every.energy_per_request_j * 1.001
    assert found.configuration.gpus <= gpus
    assert found.probability_of_meeting_ratio >= 0.9


def test_more_gpus_than_the_load_wants_make_few_candidates() -> None:
    scenario = asked("Qwen/Qwen3-32B", "bf16", 1000)
    decision = chosen(scenario, 400.0)
    assert decision.considered < 10_000
    replicas = decision.best.configuration.data_parallel
    assert replicas > 16
    fewer = chosen(scenario, 400.0, candidates=Candidates(data_parallel=(replicas - 1,)))
    names = {
        (e.configuration.tensor_parallel, e.configuration.pipeline_parallel) for e in fewer.entries
    }
    c = decision.best.configuration
    assert (c.tensor_parallel, c.pipeline_parallel) not in names  # one fewer misses the limit


def test_what_runs_today_is_a_candidate_where_its_gpus_are_allowed() -> None:
    scenario = asked("Qwen/Qwen3-32B", "bf16", 8)
    choice = chosen(scenario, 6.0).best
    best = choice.configuration
    today = Configuration(
        tensor_parallel=best.tensor_parallel,
        data_parallel=best.data_parallel,
        batch_size=(choice.batch_limit - 1.0) * best.data_parallel,  # no limit that is tried
    )
    decision = chosen(scenario, 6.0, current=today)
    assert decision.best.configuration == today
    assert decision.best.saving_ratio == pytest.approx(0.0, abs=1e-9)
    decision = chosen(
        asked("Qwen/Qwen3-32B", "bf16", best.gpus),
        6.0,
        current=Configuration(tensor_parallel=8, data_parallel=2, batch_size=64.0),
    )
    assert decision.best.configuration.gpus <= best.gpus
    assert decision.current is not None
    assert decision.current.configuration.gpus == 16


def test_today_keeps_its_own_name_where_memory_is_the_limit() -> None:
    wide = Configuration(tensor_parallel=1, batch_size=4096.0)
    decision = chosen(asked("Qwen/Qwen3-32B", "bf16", 4), 1.0, current=wide)
    assert decision.current is not None
    assert decision.current.batch_limit == 4096


def test_says_how_many_gpus_would_do(capsys: pytest.CaptureFixture[str]) -> None:
    rate = 150.0
    scenario = asked("Qwen/Qwen3-32B", "bf16", 4)
    enough = chosen(scenario, rate).enough
    assert enough is not None
    assert enough.gpus > 4
    assert chosen(asked("Qwen/Qwen3-32B", "bf16", enough.gpus), rate).best
    fewer = chosen(asked("Qwen/Qwen3-32B", "bf16", enough.gpus - 1), rate)
    assert not fewer.entries
    words = "--llm Qwen/Qwen3-32B --gpu H100 --input-tokens 700 --output-tokens 250"
    options = ["--rate", f"{rate:g}", "--tpot", "30ms", "--max-gpus", "4"]
    assert main(["select", *words.split(), *options]) == 4
    assert f"{enough.gpus} GPUs would do" in capsys.readouterr().err


def test_no_number_of_gpus_meets_what_no_gpu_can_do() -> None:
    never = LatencyLimit(measure="tpot", seconds=0.0005)
    assert chosen(asked("Qwen/Qwen3-32B", "bf16", 4), 2.0, [never]).enough is None


def test_a_node_has_no_more_replicas_than_gpus() -> None:
    scenario = asked("Qwen/Qwen3-8B", "bf16", 64, boundary=Boundary.NODE, node_gpus=6)
    best = chosen(scenario, 20.0).best
    assert best.configuration.gpus <= 6
