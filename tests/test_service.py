"""A replica under load: limits known in closed form, a simulation in time, and measured runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from studies.results.runs import Data
from studies.service import measured
from studies.service.simulated import study, summarise

from energylens import catalog
from energylens.batch_chain import batch_chain
from energylens.cases import Cases, FloatArray
from energylens.errors import InputError
from energylens.fitting import fit, from_datasheet
from energylens.latency import from_datasheet as time_from_datasheet
from energylens.latency_fitting import fit_latency
from energylens.model import EnergyModel
from energylens.packaged import packaged
from energylens.records import Case, Configuration, Engine, Workload
from energylens.service import JouleSteps, Lengths, Service, slots, steady_state

ROOT = Path(__file__).resolve().parents[1]
LENGTHS = Lengths(input_tokens=500, output_tokens=300)


@dataclass(frozen=True, kw_only=True, eq=False)
class Line:
    """Steps of alpha + beta n seconds, prompts of a fixed time, and as simple joules."""

    alpha: FloatArray
    beta: FloatArray
    prompt: float = 0.0
    idle_w: FloatArray

    def step_s(self, running: FloatArray) -> FloatArray:
        return self.alpha + self.beta * running

    def prompts_s(self, tokens: FloatArray, running: FloatArray) -> FloatArray:
        return self.prompt * tokens / LENGTHS.input_tokens + 0 * running

    def step_j(self, running: FloatArray) -> FloatArray:
        return 300.0 * self.alpha + 500.0 * self.beta * running

    def prompts_j(self, tokens: FloatArray, running: FloatArray) -> FloatArray:
        return 600.0 * self.prompts_s(tokens, running)

    def media_s(self, tokens: FloatArray) -> FloatArray:
        return np.zeros_like(tokens)

    media_j = media_s


def line(n: int = 1, alpha: float = 0.01, beta: float = 1e-4, prompt: float = 0.0) -> Line:
    one = np.ones(n)
    return Line(alpha=alpha * one, beta=beta * one, prompt=prompt, idle_w=100.0 * one)


def serve(steps: Line, rate: float | FloatArray, limit: float = 256.0) -> Service:
    return steady_state(
        steps,
        rate_per_s=rate,
        lengths=LENGTHS,
        slots=np.full(len(steps.alpha), limit),
        joules=steps,
    )


def test_a_rare_request_runs_alone() -> None:
    state = serve(line(), 1e-5)
    alone = 0.01 + 1e-4
    assert state.tpot_s[0] == pytest.approx(alone, rel=0.01)
    assert state.request_latency_s[0] == pytest.approx(300 * alone, rel=0.01)
    # Idle nearly all the time.
    assert state.power_w[0] == pytest.approx(100.0, rel=0.01)
    assert state.energy_per_request_j[0] == pytest.approx(100.0 / 1e-5, rel=0.01)


def test_batch_is_what_little_says() -> None:
    """Steps as alpha + beta n with no prompts: N = lambda L tau(N), solved."""
    rate = 3.0
    offered = rate * 300
    state = serve(line(), rate)
    assert state.mean_batch_size[0] == pytest.approx(
        offered * 0.01 / (1 - offered * 1e-4), rel=0.05
    )


def test_power_is_affine_in_the_rate_once_the_engine_is_never_empty() -> None:
    rates = np.array([5.0, 10.0, 15.0])
    power = serve(line(3), rates).power_w
    assert power[2] - power[1] == pytest.approx(power[1] - power[0], rel=0.02)


@settings(max_examples=200, deadline=None)
@given(st.floats(-2, 3.5), st.floats(0.05, 1.3), st.floats(0.8, 1.2), st.integers(1, 400))
def test_the_chain_is_its_weights_summed(
    log_r: float, load: float, bent: float, limit: int
) -> None:
    alpha, beta = 10.0**log_r, 1.0
    # Of what the slots sustain, which is not quite what the line of the mean would say.
    offered = min(bent * load / (alpha / limit + beta), 0.999 / beta)
    columns = (offered, alpha, beta, float(limit), load)
    chain = batch_chain(*(np.array([x]) for x in columns), moments=True)
    if load >= 1.0:
        assert (chain.full[0], chain.mean[0], chain.queue[0]) == (1.0, limit, np.inf)
        return
    n = np.arange(1, limit + 1)
    logs = np.concatenate([[0.0], np.cumsum(np.log(offered * (alpha / n + beta)))])
    weights = np.exp(logs - logs.max())
    beyond = weights[-1] * load / (1.0 - load)
    held, running = weights.sum() + beyond, np.append(n, limit)
    shares = np.append(weights[1:], beyond) / held
    assert chain.empty[0] == pytest.approx(weights[0] / held, rel=1e-9)
    assert chain.mean[0] == pytest.approx(shares @ running, rel=1e-9)
    variance = shares @ running**2 - (shares @ running) ** 2
    assert chain.variance[0] == pytest.approx(variance, rel=1e-6, abs=1e-9)
    assert chain.full[0] == pytest.approx((weights[-1] + beyond) / held, rel=1e-8, abs=1e-12)
    assert chain.queue[0] == pytest.approx(beyond / (1 - load) / held, rel=1e-8, abs=1e-12)


def test_saturates_where_a_full_batch_does() -> None:
    steps = line(2, prompt=0.02)
    state = serve(steps, np.array([1.0, 1e4]), limit=64)
    most = 64 / (300 * (0.01 + 64e-4) + 64 * 0.02)
    np.testing.assert_allclose(state.saturation_rate_per_s, most)
    assert not state.saturated[0]
    assert state.saturated[1]
    assert np.isinf(state.ttft_s[1])
    assert state.power_w[1] == pytest.approx(state.energy_per_request_j[1] * most)
    assert np.isinf(state.ttft_quantile_s(0.9)[1])
    assert np.isfinite(state.tpot_s[1])


@settings(max_examples=60, deadline=None)
@given(
    st.floats(1e-3, 0.05),
    st.floats(1e-7, 1e-3),
    st.floats(0.0, 0.2),
    st.floats(0.02, 0.9),
    st.sampled_from([2.0, 16.0, 128.0, 1024.0]),
)
def test_more_load_is_a_larger_batch_and_later_tokens(
    alpha: float, beta: float, prompt: float, load: float, limit: float
) -> None:
    steps = line(2, alpha, beta, prompt)
    most = serve(steps, 1e-6, limit).saturation_rate_per_s[0]
    state = serve(steps, most * load * np.array([0.8, 1.0]), limit)
    assert state.mean_batch_size[1] > state.mean_batch_size[0] > 0
    assert (state.mean_batch_size <= limit).all()
    if limit > 2:  # with two slots and long prompts the form is not monotone (docs/service.md)
        assert state.tpot_s[1] >= state.tpot_s[0] * 0.98
    assert state.power_w[1] >= state.power_w[0] * 0.98
    assert (state.tpot_quantile_s(0.99) >= state.tpot_quantile_s(0.5)).all()
    assert (state.ttft_quantile_s(0.99) >= state.ttft_quantile_s(0.5)).all()
    assert (state.latency_quantile_s(0.99) >= state.latency_quantile_s(0.5)).all()
    assert ((state.empty_ratio >= 0) & (state.empty_ratio <= 1)).all()


def test_refuses_what_is_no_load() -> None:
    with pytest.raises(InputError, match="rate_per_s"):
        serve(line(), 0.0)
    with pytest.raises(InputError, match="slots"):
        serve(line(), 1.0, limit=0.0)
    with pytest.raises(InputError, match="output_tokens"):
        Lengths(input_tokens=1, output_tokens=0)
    with pytest.raises(InputError, match="percentile"):
        serve(line(), 1.0).tpot_quantile_s(1.0)


def test_agrees_with_a_simulation_in_time() -> None:
    """Thirty settings; the bounds of the study with 300 (docs/service.md), and its scatter."""
    errors = summarise(study(30, seed=3))["all"]
    for name, most in (
        ("energy_per_request_j", 0.025),
        ("mean_batch_size", 0.06),
        ("tpot_s", 0.06),
        ("ttft_s", 0.15),
        ("ttft_p99_s", 0.3),
    ):
        assert errors[name]["mean_error_ratio"] <= most, name


# ------------------------------------------------------------------------- from the laws


def deployed(llm: str = "Qwen/Qwen3-32B", gpu: str = "H100", **knobs: float) -> Cases:
    return Cases.of(
        [
            Case(
                llm=catalog.llm(llm),
                gpu=catalog.gpu(gpu),
                precision=catalog.precision("bf16"),
                workload=Workload(input_tokens=500, output_tokens=300),
                configuration=Configuration(**knobs),  # type: ignore[arg-type]
                engine=Engine(name="vllm", version="0.11.1"),
            )
        ]
    )


def test_joules_near_saturation_are_those_of_a_full_batch() -> None:
    cases = deployed(tensor_parallel=2, batch_size=64)
    even = Lengths(input_tokens=500, output_tokens=300, input_cv=0, output_cv=0)
    steps = time_from_datasheet().steps(cases)
    model = from_datasheet()
    joules = JouleSteps.of(model, cases, even)
    held = slots(cases, even)
    most = steady_state(steps, rate_per_s=1e-6, lengths=even, slots=held).saturation_rate_per_s
    state = steady_state(steps, rate_per_s=0.98 * most, lengths=even, slots=held, joules=joules)
    full = model.predict_energy_j(cases.replace(mean_batch_size=64.0))
    assert state.energy_per_request_j[0] == pytest.approx(full[0], rel=0.1)


MODELS = {"datasheet": from_datasheet, **{p.name: p.model for p in packaged()}}
SEEING = ("Qwen/Qwen3-VL-8B-Instruct", "Qwen/Qwen2.5-VL-72B-Instruct", "google/gemma-3-27b-it")
ALL = (*SEEING, "meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen3-32B", "Qwen/Qwen3-30B-A3B")
TYPES = ("A100-SXM-80GB", "H100", "H200-SXM-141GB", "L40S", "MI300X", "B200", "L4", "V100")
LAYOUTS = ((1, 1), (4, 1), (1, 4), (2, 4))


def replicas(name: str, llms: tuple[str, ...] = ALL) -> Cases:
    """Layouts of several LLMs and GPU types that have room, by the engine of a model's rows."""
    engine = Engine(name="vllm", version="0.5.4" if name.endswith("0.5") else "0.11.1")
    cases = Cases.of(
        [
            Case(
                llm=catalog.llm(llm),
                gpu=catalog.gpu(gpu),
                precision=catalog.precision("bf16"),
                workload=Workload(input_tokens=500, output_tokens=200),
                configuration=Configuration(
                    tensor_parallel=tp, pipeline_parallel=pp, batch_size=limit
                ),
                engine=engine,
            )
            for llm in llms
            for gpu in TYPES
            for tp, pp in LAYOUTS
            for limit in (8, 512)
        ]
    )
    return cases.take(np.flatnonzero(slots(cases, LENGTHS) >= 4))


def put_under(
    model: EnergyModel,
    cases: Cases,
    rate: FloatArray | float,
    *,
    prompt: float = 500.0,
    output: float = 200.0,
    media: float = 0.0,
    column: str = "images",
) -> Service:
    """Put replicas under a load; images and frames bring 250 tokens each, beside the prompt."""
    lengths = Lengths(input_tokens=prompt + 250 * media, output_tokens=output)
    each = np.ones(len(cases))
    knobs = {
        "input_tokens": lengths.input_tokens * each,
        "output_tokens": output * each,
        "vision_tokens": 250 * media * each,
        column: media * each,
    }
    served = cases.replace(**knobs)
    time = (model.time or time_from_datasheet()).without_factors()
    return steady_state(
        time.steps(served, lengths.output_cv),
        rate_per_s=rate,
        lengths=lengths,
        slots=cases.batch_size,
        joules=JouleSteps.of(model.without_factors(), served, lengths, most=512),
    )


def largest_fall(states: list[Service], column: str = "energy_per_request_j") -> float:
    """By how much a column of states falls from one to the next, at the most."""
    fall = 0.0
    for before, after in pairwise(states):
        kept = ~after.saturated
        ratio = getattr(after, column)[kept] / getattr(before, column)[kept]
        fall = max(fall, 1.0 - float(ratio.min(initial=1.0)))
    return fall


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("load", [0.02, 0.3, 0.7])
def test_more_images_or_frames_never_take_fewer_joules(name: str, load: float) -> None:
    model, cases = MODELS[name](), replicas(name, SEEING)
    rate = load * put_under(model, cases, 1e-9).saturation_rate_per_s
    for column in ("images", "frames"):
        states = [put_under(model, cases, rate, media=k, column=column) for k in (0, 1, 2, 4, 8)]
        assert largest_fall(states) < 0.02


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("prompt", "output"), [(500, 200), (4000, 100), (100, 1000)])
def test_watts_rise_with_the_rate(name: str, prompt: float, output: float) -> None:
    """Pipelines among them. An old engine works on each sequence while its GPUs wait.

    There fuller batches draw less (docs/service.md), by a fifth at the most.
    """
    model, cases = MODELS[name](), replicas(name)
    most = put_under(model, cases, 1e-9, prompt=prompt, output=output).saturation_rate_per_s
    shares = (0.001, 0.03, 0.1, 0.3, 0.6, 0.9, 0.99)
    states = [put_under(model, cases, most * k, prompt=prompt, output=output) for k in shares]
    assert largest_fall(states, "power_w") < (0.22 if name.endswith("0.5") else 0.01)
    idle = np.array([state.power_w for state in states]) / states[0].power_w
    assert (idle > 0.99).all()


@pytest.mark.parametrize("limit", [2.0, 16.0, 256.0])
@pytest.mark.parametrize(("prompt", "output"), [(2000, 5), (4000, 50), (8000, 100), (300, 1000)])
def test_first_tokens_come_later_as_the_rate_rises_up_to_saturation(
    prompt: float, output: float, limit: float
) -> None:
    """Saturated exactly from the saturation rate on, which knows the token budget of a step."""
    model, cases = MODELS["h100-vllm-0.11"](), replicas("h100-vllm-0.11")
    cases = cases.replace(batch_size=limit)
    most = put_under(model, cases, 1e-9, prompt=prompt, output=output).saturation_rate_per_s
    shares = (0.01, 0.1, 0.3, 0.5, 0.7, 0.75, 0.8, 0.85, 0.9, 0.93, 0.96, 0.98, 0.99, 1.001)
    states = [put_under(model, cases, most * k, prompt=prompt, output=output) for k in shares]
    assert not np.array([state.saturated for state in states[:-1]]).any()
    assert states[-1].saturated.all()
    assert largest_fall(states, "ttft_s") < 0.005
    # Where slots are free and prompts have no queue of their own, all that are there run.
    for state in states[:7]:
        free = state.mean_batch_size < 0.5 * limit
        held = state.rate_per_s * state.request_latency_s
        assert (held[free & (limit > 2)] < 1.5 * state.mean_batch_size[free & (limit > 2)]).all()


@pytest.mark.parametrize("load", [0.02, 0.3, 0.7])
def test_longer_requests_take_more_joules(load: float) -> None:
    name = "h100-vllm-0.11"
    model, cases = MODELS[name](), replicas(name)
    rate = load * put_under(model, cases, 1e-9).saturation_rate_per_s
    outputs = [put_under(model, cases, rate, output=k) for k in (20, 50, 200, 800, 3000)]
    prompts = [put_under(model, cases, rate, prompt=k) for k in (50, 200, 500, 1e3, 4e3, 16e3)]
    assert largest_fall(outputs) < 1e-3
    assert largest_fall(prompts) < 0.04


def test_slots_are_the_limit_or_what_the_memory_holds() -> None:
    few, many = (
        deployed(tensor_parallel=2, batch_size=4),
        deployed(tensor_parallel=2, batch_size=1e5),
    )
    none = deployed("meta-llama/Llama-3.1-405B-Instruct", batch_size=8)
    assert slots(few, LENGTHS)[0] == 4
    assert 10 < slots(many, LENGTHS)[0] < 1e5
    assert slots(none, LENGTHS)[0] == 0
    longer = Lengths(input_tokens=500, output_tokens=300, output_cv=2.0)
    assert slots(many, longer)[0] < slots(many, LENGTHS)[0]


def test_measured_runs_under_load_follow_from_full_batches(
    public_data: Callable[[str], Path],
) -> None:
    """Coefficients from full-batch rows of an H100 alone; idle watts as the runs had them."""
    full = Data(public_data("mlenergy-v3").parent).v3
    rows = measured.runs(public_data("powertrace") / measured.RUNS.name, "as measured")
    state = measured.answered(fit(full), fit_latency(full), rows.cases)
    off = np.abs(state.energy_per_request_j / rows.energy_per_request_j - 1)
    h100 = rows.gpu_ids == "H100-SXM-80GB"
    published = json.loads((ROOT / "studies/service/measured.json").read_text())
    of = published["as measured"]
    assert off[h100].mean() == pytest.approx(of["H100"]["joules"]["mape_mean_ratio"], abs=2e-3)
    assert off[~h100].mean() == pytest.approx(of["A100"]["joules"]["mape_mean_ratio"], abs=2e-3)
    assert off[h100].mean() <= 0.06
    assert off[~h100].mean() <= 0.12
    late = np.abs(state.tpot_s / rows.cases.tpot_s - 1)[h100]
    assert np.nanmean(late) <= 0.1
