"""Shrunken factors against the same by the definition: a Gaussian prior, and refits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from energylens import catalog, factors
from energylens.cases import Cases
from energylens.fitting import fit, from_datasheet
from energylens.formula import design, energy

LLMS = ("meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen3-32B", "Qwen/Qwen3-30B-A3B")


@pytest.fixture(scope="module")
def cases(draw_cases):
    return Cases.of(draw_cases(60, llms=LLMS, precisions=("bf16", "fp8")))


@pytest.fixture(scope="module")
def logs(cases):
    rng = np.random.default_rng(0)
    return (
        0.1 * (cases.llm_index == 1) - 0.15 * (cases.precision_index == 1) + rng.normal(0, 0.1, 60)
    )


def by_definition(cases, logs, rows, asked):
    """Mean and variance of the factors of ``asked`` rows, by the covariance of all rows."""
    labels = factors._labels(cases)
    labels = {kind: np.array(own) for kind, own in labels.items()}
    gram = sum(
        factors.SPREADS[kind] ** 2 * (own[:, None] == own[None]) for kind, own in labels.items()
    )
    known = gram[np.ix_(rows, rows)] + factors.ROW_SPREAD**2 * np.eye(len(rows))
    cross = gram[np.ix_(asked, rows)]
    solved = np.linalg.solve(known, cross.T).T
    return solved @ logs[rows], np.diag(gram[np.ix_(asked, asked)] - solved @ cross.T)


def test_factors_are_the_posterior_of_their_prior(cases, logs):
    found, _, _ = factors.fit(cases, logs, np.ones(60), cases.llm_index)
    everything = np.arange(60)
    mean, variance = by_definition(cases, logs - logs.mean(), everything, everything)
    told, spread = found.logs(cases)
    assert told == pytest.approx(mean, abs=1e-9)
    assert spread == pytest.approx(found.scale_ratio**2 * variance, rel=1e-6)


def test_rows_left_out_get_what_the_others_say(cases, logs):
    found, alone, apart = factors.fit(cases, logs, np.ones(60), cases.llm_index)
    centred = logs - logs.mean()
    for row in (0, 7, 31):
        others = np.flatnonzero(np.arange(60) != row)
        mean, variance = by_definition(cases, centred, others, np.array([row]))
        assert alone.residual[row] == pytest.approx(logs[row] - mean[0])
        assert alone.variance[row] == pytest.approx(found.scale_ratio**2 * variance[0])
    for llm in range(3):
        mine, others = (np.flatnonzero((cases.llm_index == llm) == own) for own in (True, False))
        mean, variance = by_definition(cases, centred, others, mine)
        assert apart.residual[mine] == pytest.approx(logs[mine] - mean)
        assert apart.variance[mine] == pytest.approx(found.scale_ratio**2 * variance)


def test_a_row_that_weighs_twice_is_a_row_given_twice(cases, logs):
    weights = np.where(np.arange(60) % 3 == 0, 2.0, 1.0)
    again = np.concatenate([np.arange(60), np.flatnonzero(weights == 2)])
    group = cases.llm_index
    once, _, _ = factors.fit(cases, logs, weights, group)
    twice, _, _ = factors.fit(cases.take(again), logs[again], np.ones(len(again)), group[again])
    assert once.mean == pytest.approx(twice.mean, abs=1e-9)


def test_few_rows_move_a_factor_little_and_many_all_the_way(draw_cases, make_dataset):
    rows = draw_cases(300, seed=3, llms=LLMS, precisions=("bf16",), images=False)
    dearer = np.array([1.3 if row.llm.id == LLMS[1] else 1.0 for row in rows])
    joules = dearer * energy(design(Cases.of(rows)), np.ones(12))
    asked = Cases.of([row for row in rows if row.llm.id == LLMS[1]][:1])
    plain = from_datasheet().predict_energy_j(asked)[0]
    moved = []
    for count in (20, 300):
        model = fit(make_dataset(Cases.of(rows[:count]), joules[:count]))
        moved.append(model.predict_energy_j(asked)[0] / plain)
    assert 1.0 < moved[0] < moved[1] < 1.4
    assert moved[1] > 1.2


def test_an_llm_without_rows_gets_the_plain_law(draw_cases, make_dataset):
    rows = draw_cases(120, llms=LLMS[:2], precisions=("bf16",), images=False)
    model = fit(make_dataset(rows, theta=np.ones(12), noise_ratio=0.1))
    asked = Cases.of([replace(rows[0], llm=catalog.llm("mistralai/Mistral-7B-Instruct-v0.3"))])
    told, spread = model.pooled.factors.logs(asked)
    assert told == pytest.approx([0.0])
    assert spread > model.pooled.factors.logs(Cases.of(rows[:1]))[1]


def test_factors_do_not_choose(draw_cases, make_dataset):
    rows = draw_cases(200, llms=LLMS, precisions=("bf16", "fp8"), images=False)
    dearer = np.array([1.4 if row.precision.id == "fp8" else 1.0 for row in rows])
    data = make_dataset(rows, dearer * energy(design(Cases.of(rows)), np.ones(12)))
    model = fit(data)
    # layouts and batches of one LLM in one format all have the same factor
    one = [replace(row, llm=rows[0].llm, precision=rows[0].precision) for row in rows[:30]]
    told, _ = model.pooled.factors.logs(Cases.of(one))
    assert np.ptp(told) < 1e-12
    # where the format is free those of formats are integrated out, and stay uncertain
    free = model.choosing(("batch_size", "precision"))
    pair = Cases.of([replace(rows[0], precision=catalog.precision(p)) for p in ("bf16", "fp8")])
    assert np.ptp(free.pooled.factors.logs(pair)[0]) == pytest.approx(0.0, abs=1e-12)
    assert np.ptp(model.pooled.factors.logs(pair)[0]) > 0.005
    assert model.choosing(("batch_size",)) is model


def test_a_model_file_keeps_its_factors(draw_cases, make_dataset, tmp_path):
    from energylens import modelfile

    rows = draw_cases(80, llms=LLMS, precisions=("bf16", "fp8"))
    model = fit(make_dataset(rows, theta=np.ones(12), noise_ratio=0.2))
    modelfile.save(model, tmp_path / "model.json")
    read = modelfile.load(tmp_path / "model.json")
    cases = Cases.of(rows)
    assert np.array_equal(read.predict_energy_j(cases), model.predict_energy_j(cases))
    for ours, theirs in zip(
        read.interval_energy_j(cases), model.interval_energy_j(cases), strict=True
    ):
        assert np.array_equal(ours, theirs)


def test_factors_are_told_in_words(cases, logs):
    found, _, _ = factors.fit(cases, logs, np.ones(60), cases.llm_index)
    words = [name for name, _ in found.told(cases)]
    llm, precision = cases.case(0).llm, cases.case(0).precision.id
    assert words == [llm.id, f"{llm.id} in {precision}", precision, f"{llm.family} LLMs"]
