"""What does not depend on the rate is kept, and what is decided is not solved again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from energylens import catalog, packaged, solving
from energylens.cases import Cases
from energylens.deciding import breaks_at, decide
from energylens.decisions import LatencyLimit, Load
from energylens.model import EnergyModel
from energylens.records import Configuration, Workload
from energylens.remembered import Remembered
from energylens.scenarios import Scenario
from energylens.service import JouleSteps, Lengths
from energylens.solving import Engine

LIMITS = (
    LatencyLimit(measure="tpot", seconds=0.05),
    LatencyLimit(measure="ttft", seconds=1.0, quantile=0.9),
)
TODAY = Configuration(tensor_parallel=2, batch_size=256)


@pytest.fixture(scope="module")
def model() -> EnergyModel:
    return packaged.for_gpu("H100-SXM-80GB")[0].model()


def scenario(name: str = "meta-llama/Llama-3.3-70B-Instruct", precision: str = "fp8") -> Scenario:
    return Scenario(
        llm=catalog.llm(name),
        gpu=catalog.gpu("H100"),
        precision=catalog.precision(precision),
        workload=Workload(input_tokens=2000, output_tokens=300),
    )


def load(rate: float, tokens: float = 2000) -> Load:
    return Load(rate_per_s=rate, lengths=Lengths(input_tokens=tokens, output_tokens=300))


@pytest.mark.parametrize("llm", ["meta-llama/Llama-3.3-70B-Instruct", "Qwen/Qwen3-30B-A3B"])
@pytest.mark.parametrize("rate", [0.3, 8.0])
def test_what_is_decided_at_the_ends_is_so_between_them(
    model: EnergyModel, monkeypatch: pytest.MonkeyPatch, llm: str, rate: float
) -> None:
    asked, engine = scenario(llm), Engine(model)
    short = decide(engine, asked, load(rate), LIMITS, current=TODAY)
    monkeypatch.setattr(solving, "DECIDED_SPREADS", np.inf)  # nothing is decided: all is solved
    whole = decide(engine, asked, load(rate), LIMITS, current=TODAY)
    for limits in (LIMITS, [LatencyLimit(measure="tpot", seconds=0.15), LIMITS[1]]):
        for one, other in zip(
            short.solved.probabilities(limits), whole.solved.probabilities(limits), strict=True
        ):
            np.testing.assert_allclose(one, other, atol=1e-8)
    assert [e.describe() for e in short.entries] == [e.describe() for e in whole.entries]
    for short_shadow, whole_shadow in zip(short.shadows, whole.shadows, strict=True):
        assert short_shadow.limit == whole_shadow.limit
        assert short_shadow.relaxed_s == whole_shadow.relaxed_s
        assert short_shadow.saving_ratio == pytest.approx(whole_shadow.saving_ratio, abs=1e-8)
        assert short_shadow.entry.describe() == whole_shadow.entry.describe()


def test_a_question_that_differs_in_its_rate_finds_what_was_worked_out(model: EnergyModel) -> None:
    asked, engine = scenario(), Engine(model)
    for rate in (3.0, 0.5, 20.0):
        again = decide(engine, asked, load(rate), LIMITS, current=TODAY, front=True)
        alone = decide(Engine(model), asked, load(rate), LIMITS, current=TODAY, front=True)
        assert again.to_json() == alone.to_json()
        spanned = engine.span(asked, load(rate).lengths, current=TODAY)
        assert spanned is engine.span(scenario(), load(1.0).lengths, current=TODAY)
    assert spanned is not engine.span(asked, load(1.0, 2001).lengths, current=TODAY)
    assert spanned is not engine.span(asked, load(1.0).lengths)
    narrow = engine.span(asked, load(1.0).lengths)
    assert narrow is not engine.span(scenario(precision="bf16"), load(1.0).lengths)


def test_what_is_kept_is_bounded(model: EnergyModel) -> None:
    engine = Engine(model)
    first = engine.span(scenario(), load(1.0).lengths)
    assert first is not None
    engine = Engine(model, kept=Remembered(int(3.5 * first.size_bytes)))
    first = engine.span(scenario(), load(1.0).lengths)
    for tokens in range(2001, 2009):
        engine.span(scenario(), load(1.0, tokens).lengths)
        assert 0 < engine.kept.size_bytes <= engine.kept.most_bytes
    assert engine.span(scenario(), load(1.0, 2008).lengths) is engine.span(
        scenario(), load(1.0, 2008).lengths
    )
    assert first is not engine.span(scenario(), load(1.0).lengths)  # the oldest went


def test_joules_of_steps_are_the_same_whatever_they_were_made_for(model: EnergyModel) -> None:
    prepared = Engine(model).span(scenario(), load(1.0).lengths)
    assert prepared is not None
    own = prepared.candidates
    wide = JouleSteps.of(model, own.cases, load(1.0).lengths)
    for running in (np.ones(len(own)), 0.6 * own.slots, own.slots + 1.0):
        np.testing.assert_allclose(own.joules.step_j(running), wide.step_j(running), rtol=1e-12)
        np.testing.assert_allclose(
            own.joules.prompts_j(running, running), wide.prompts_j(running, running), rtol=1e-12
        )
    np.testing.assert_allclose(own.joules.idle_w, wide.idle_w)


@pytest.mark.parametrize(
    ("llm", "precision", "tensor", "batch"),
    [
        ("meta-llama/Llama-3.3-70B-Instruct", "fp8", 2, 128),
        ("Qwen/Qwen3-8B", "bf16", 1, 24),
        ("Qwen/Qwen3-30B-A3B", "bf16", 4, 200),
    ],
)
@pytest.mark.parametrize("asked", [(), (LatencyLimit(measure="tpot", seconds=0.15),)])
def test_odds_of_keeping_up_fall_evenly_as_more_arrives(
    model: EnergyModel,
    llm: str,
    precision: str,
    tensor: int,
    batch: float,
    asked: tuple[LatencyLimit, ...],
) -> None:
    engine, offered = Engine(model), load(1.0, 700)
    run = Configuration(tensor_parallel=tensor, batch_size=batch)
    cases = Cases.of([solving.case_of(scenario(llm, precision), run)])
    one = engine.prepare(cases, offered.lengths)
    most = float(engine.solve(one, offered, (), odds=False).state.saturation_rate_per_s[0])
    rates = most * np.exp(np.arange(-0.7, 0.5, 0.01))
    many = one.take(np.zeros(len(rates), dtype=np.intp))
    solved = engine.solve(many, offered, asked, rates_per_s=rates)
    odds = solved.probabilities(asked)[0]
    steps = -np.diff(odds)
    assert (steps >= 0.0).all()
    assert steps.max() < 0.05
    assert (odds <= solved.keeps_up).all()
    assert 0.0 < odds[-1] < 0.02
    assert 0.98 < odds[0] < 1.0
    for meet in (0.6, 0.9):
        low = replace(offered, rate_per_s=0.4 * most)
        stated = breaks_at(engine, one, low, asked, meet)
        assert stated is not None
        assert stated == pytest.approx(float(np.interp(-meet, -odds, rates)), rel=0.01)


def test_a_share_below_a_value_is_that_of_the_quantiles() -> None:
    levels = (np.arange(9) + 0.5) / 9
    z = np.array([-1.5932, -0.9674, -0.5895, -0.2822, 0.0, 0.2822, 0.5895, 0.9674, 1.5932])
    skewed = 0.04 + np.where(z < 0, 0.1, 0.3) * z
    for value, level in zip(skewed, levels, strict=True):
        found = solving.share_below(np.array([value]), skewed[:, None])
        assert found[0] == pytest.approx(level, abs=1e-3)
    assert solving.share_below(np.array([-0.01, 0.01]), np.zeros((9, 2))).tolist() == [0.0, 1.0]
