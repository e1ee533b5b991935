"""What one request of a batch takes: shares that add up to the batch's joules."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from energylens import attribution, catalog, fitting
from energylens.capacity import as_run
from energylens.cases import Cases
from energylens.cli import main
from energylens.explanation import explain
from energylens.records import Case, Configuration, Workload


@pytest.fixture(scope="module")
def fitted(draw_cases, make_dataset):
    return fitting.fit(make_dataset(draw_cases(120), noise_ratio=0.05))


@given(
    place=st.integers(0, 29),
    requests=st.lists(
        st.tuples(st.floats(1.0, 3e4), st.floats(1.0, 1e4), st.integers(1, 50)),
        min_size=1,
        max_size=12,
    ),
)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_requests_of_a_batch_share_all_of_its_joules(fitted, draw_cases, place, requests):
    case = draw_cases(30, seed=3)[place]
    vision = case.workload.vision_tokens
    prompts = [vision + prompt for prompt, _, _ in requests]
    outputs = [output for _, output, _ in requests]
    counts = np.array([count for _, _, count in requests], dtype=float)
    shares = attribution.share(fitted, case, prompts, outputs, counts)
    # The batch's joules: as many requests of mean lengths, in the batch that runs.
    weight = counts / counts.sum()
    workload = replace(
        case.workload,
        input_tokens=float(weight @ prompts),
        output_tokens=float(weight @ outputs),
    )
    mean = as_run(replace(case, workload=workload))
    expected = counts.sum() * float(fitted.predict_energy_j(Cases.of([mean]))[0])
    total = sum(n * one.energy_j for n, one in zip(counts, shares, strict=True))
    assert total == pytest.approx(expected, rel=1e-9)
    for one in shares:
        assert one.energy_j >= 0
        assert one.low_j <= one.energy_j <= one.high_j
        assert sum(one.terms_j.values()) == pytest.approx(one.energy_j)
        assert one.prefill_j + one.decode_j == pytest.approx(one.energy_j)


def test_requests_that_are_alike_pay_alike_and_longer_ones_more(fitted):
    case = Case(
        llm=catalog.llm("Qwen/Qwen3-32B"),
        gpu=catalog.gpu("H100"),
        precision=catalog.precision("bf16"),
        workload=Workload(input_tokens=500, output_tokens=300),
        configuration=Configuration(tensor_parallel=2, batch_size=64),
    )
    whole = explain(fitted, case).energy_per_request_j
    same = attribution.request_in_batch(fitted, case, 500.0, 300.0)
    assert same.energy_j == pytest.approx(whole)
    assert same.ratio == pytest.approx(1.0)
    longer = attribution.request_in_batch(fitted, case, 1800.0, 300.0)
    further = attribution.request_in_batch(fitted, case, 500.0, 900.0)
    assert longer.prefill_j > 3 * same.prefill_j
    assert further.decode_j > 2.9 * same.decode_j
    one, other = attribution.share(fitted, case, [100.0, 700.0], [50.0, 50.0])
    assert other.decode_j > one.decode_j  # it reads a longer cache
    assert other.prefill_j > one.prefill_j


def test_the_command_prices_requests_beside_others(capsys):
    command = [
        "explain", "datasheet", "--llm", "Qwen/Qwen3-8B", "--gpu", "H100", "--batch-size", "16",
        "--input-tokens", "500", "--output-tokens", "300",
    ]  # fmt: skip
    assert main([*command, "--request", "1800,240", "--request", "500,300", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    long, mean = document["requests"]
    assert long["energy_per_output_token_j"] == pytest.approx(long["energy_per_request_j"] / 240)
    assert long["energy_per_total_token_j"] == pytest.approx(long["energy_per_request_j"] / 2040)
    assert mean["energy_per_request_j"] == pytest.approx(document["energy_per_request_j"])
    kwh = document["energy_per_request_kwh"]
    assert kwh * 3.6e6 == pytest.approx(document["energy_per_request_j"])
    assert document["energy_per_total_token_j"] == pytest.approx(
        document["energy_per_request_j"] / 800
    )
    assert main([*command, "--request", "1800,240"]) == 0
    text = capsys.readouterr().out
    assert "beside 15 of 500 tokens in and 300 out" in " ".join(text.split())
    for wrong in ("1800", "0,5", "a,b", "1,2,3", "nan,3", "inf,3"):
        with pytest.raises(SystemExit):
            main([*command, "--request", wrong])
        assert "Traceback" not in capsys.readouterr().err
