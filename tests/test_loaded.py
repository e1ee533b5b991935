"""Rows under load, fitted and judged beside any others."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from energylens import modelfile, table
from energylens.cases import Cases
from energylens.dataset import Dataset
from energylens.fitting import Datasheet, EnergyLens, diagnose, fit, from_datasheet
from energylens.latency import from_datasheet as times_from_datasheet
from energylens.latency_fitting import fit_latency
from energylens.loaded import LoadedModel, at_work, rows_at_work
from energylens.service import idle_of, loaded_idle_w

KEPT = (
    "llm", "gpu", "precision", "tensor_parallel", "pipeline_parallel", "request_rate_per_s",
    "achieved_rate_per_s", "mean_batch_size", "input_tokens", "output_tokens",
    "energy_per_request_j", "average_power_w", "ttft_s", "tpot_s", "request_latency_s",
    "boundary", "node_gpus", "engine", "source", "origin",
)  # fmt: skip


def planted(tmp_path: Path) -> Dataset:
    """Rows whose joules are those of the datasheet's laws."""
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["llm", "gpu", "precision", "tensor_parallel", "batch_size", "request_rate_per_s",
             "input_tokens", "output_tokens", "energy_per_request_j", "boundary", "source"]
        )  # fmt: skip
        for llm in ("meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen3-32B"):
            for tensor in (1, 2, 4):
                for rate in (0.1, 0.5, 2.0):
                    writer.writerow(
                        [llm, "H100", "bf16", tensor, 64, rate, 300, 250, 1, "active_gpus",
                         "measured"]
                    )  # fmt: skip
    rows = table.read(path)
    model = LoadedModel(energy=from_datasheet(), time=times_from_datasheet())
    return replace(rows, energy_per_request_j=model.predict_energy_j(rows.cases))


def test_a_fit_finds_the_law_behind_rows_under_load(tmp_path: Path) -> None:
    rows = planted(tmp_path)
    predicted = EnergyLens().fit(rows).predict_energy_j(rows.cases)
    np.testing.assert_allclose(predicted, rows.energy_per_request_j, rtol=0.02)
    model = fit(rows)
    assert model.dataset_digest == rows.digest
    assert diagnose(model, rows).mape_ratio < 0.03


def test_fewer_requests_cost_more_each(tmp_path: Path) -> None:
    rows = planted(tmp_path)
    joules = rows.energy_per_request_j.reshape(-1, 3)
    assert (np.diff(joules, axis=1) < 0).all()
    working, idle = at_work(rows.cases, times_from_datasheet())
    assert (idle > 0).all()
    assert (np.diff(working.mean_batch_size.reshape(-1, 3), axis=1) >= 0).all()


@pytest.mark.parametrize("ratio", [0.6, 1.6])
def test_rows_under_load_tell_the_idle_watts(ratio: float, tmp_path: Path) -> None:
    rows = planted(tmp_path)
    expected = loaded_idle_w(rows.cases.gpus[0])
    told = rows.cases.replace(loaded_idle_w=expected * ratio)
    model = LoadedModel(energy=from_datasheet(), time=times_from_datasheet())
    rows = replace(rows, energy_per_request_j=model.predict_energy_j(told))
    found = fit(rows)
    assert found.loaded_idle_w == {"H100-SXM-80GB": pytest.approx(expected * ratio, rel=0.1)}
    # What rows say of themselves goes before what they ask for, and is kept in the file.
    said = fit(replace(rows, cases=rows.cases.replace(loaded_idle_w=99.0)))
    assert said.loaded_idle_w == {"H100-SXM-80GB": 99.0}
    assert modelfile.from_json(modelfile.to_json(said), "m").loaded_idle_w == said.loaded_idle_w
    assert idle_of(said)(rows.cases.gpus[0]) == 99.0
    np.testing.assert_allclose(
        EnergyLens().fit(rows).predict_energy_j(rows.cases), rows.energy_per_request_j, rtol=0.03
    )


def test_the_measured_batch_is_not_read(tmp_path: Path) -> None:
    rows = planted(tmp_path)
    model = EnergyLens().fit(rows)
    told = rows.cases.replace(mean_batch_size=40.0)
    np.testing.assert_array_equal(model.predict_energy_j(told), model.predict_energy_j(rows.cases))


def test_rows_without_a_rate_stay_as_they_are(tmp_path: Path) -> None:
    full = planted(tmp_path).cases.replace(request_rate_per_s=np.nan)
    working, idle = at_work(full, times_from_datasheet())
    assert working is full
    assert not idle.any()


def under_load(public_data: Callable[[str], Path], tmp_path: Path) -> Dataset:
    path = tmp_path / "load.csv"
    with (public_data("powertrace") / "runs_under_load.csv").open() as file:
        rows = list(csv.DictReader(file))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*KEPT, "loaded_idle_w"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows([{**r, "loaded_idle_w": r["loaded_idle_w_per_gpu"]} for r in rows])
    return table.read(path)


def test_twenty_measured_runs_tell_the_joules_of_the_rest(
    public_data: Callable[[str], Path], tmp_path: Path
) -> None:
    data = under_load(public_data, tmp_path)
    errors: list[float] = []
    unfitted: list[float] = []
    for repeat in range(4):
        order = np.random.default_rng([0, repeat]).permutation(len(data))
        train, test = data.take(order[:20]), data.take(order[20:])
        for estimator, out in ((EnergyLens(), errors), (Datasheet(), unfitted)):
            predicted = estimator.fit(train).predict_energy_j(test.cases)
            out.append(float(np.abs(predicted / test.energy_per_request_j - 1).mean()))
    assert np.mean(errors) <= 0.05
    assert np.mean(errors) < np.mean(unfitted) <= 0.15


def test_times_under_load_are_fitted_too(
    public_data: Callable[[str], Path], tmp_path: Path
) -> None:
    data = under_load(public_data, tmp_path)
    timed = ~np.isnan(data.cases.tpot_s)
    model = fit_latency(data)
    assert model.pooled.rows == int(timed.sum())
    assert rows_at_work(data, model).energy_per_request_j.min() > 0
    assert isinstance(data.cases, Cases)


@pytest.mark.parametrize("estimator", [EnergyLens(), Datasheet()])
def test_contestants_answer_for_both_kinds_of_rows(
    estimator: EnergyLens | Datasheet, tmp_path: Path
) -> None:
    rows = planted(tmp_path)
    model = estimator.fit(rows)
    full = rows.cases.replace(request_rate_per_s=np.nan)
    assert np.isfinite(model.predict_energy_j(full)).all()
    assert (model.predict_energy_j(full) < model.predict_energy_j(rows.cases)).all()
