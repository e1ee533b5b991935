"""The simulated engine keeps its promises: its own clock, its own counter, exact counts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energylens import catalog
from energylens.instrument.engine import Batch, EngineError, Layout, Load, Media, Phase, Reason
from energylens.instrument.engines.simulated import NODE_GPUS, SimulatedEngine, SimulatedMeter
from energylens.instrument.meter import MeterError
from energylens.records import Source

LLM = "Qwen/Qwen3-8B"
VISION = "Qwen/Qwen2.5-VL-7B-Instruct"
BATCH = Batch(requests=16, input_tokens=512, output_tokens=64)


@pytest.fixture(autouse=True, scope="module")
def packaged_catalog_only(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENERGYLENS_HOME", str(tmp_path_factory.mktemp("home")))
        yield


def layout(llm: str = LLM, **settings: object) -> Layout:
    base = Layout(
        llm=catalog.llm(llm),
        precision=catalog.precision("bf16"),
        max_sequences=64,
        max_sequence_tokens=4096,
    )
    return replace(base, **settings)  # type: ignore[arg-type]


def started(llm: str = LLM, **settings: object) -> tuple[SimulatedEngine, SimulatedMeter]:
    engine = SimulatedEngine()
    meter = engine.own_meter()
    assert isinstance(meter, SimulatedMeter)
    engine.start(layout(llm, **settings))
    return engine, meter


def test_its_rows_say_that_they_are_simulated() -> None:
    engine, meter = started()
    assert engine.capabilities.source is Source.SIMULATED
    assert meter.source is Source.SIMULATED
    assert not meter.real_time


def test_phases_make_up_the_whole_within_their_scatter() -> None:
    engine, meter = started()
    spent = {}
    for phase in (Phase.PREFILL, Phase.DECODE, Phase.REQUEST):
        before, joules = meter.now_s(), sum(meter.read().energy_j)
        for repetition in range(20):
            engine.run_phase(phase, BATCH, repetition)
        spent[phase] = (meter.now_s() - before, sum(meter.read().energy_j) - joules)
    for i in range(2):
        parts = spent[Phase.PREFILL][i] + spent[Phase.DECODE][i]
        assert parts == pytest.approx(spent[Phase.REQUEST][i], rel=0.02)


def test_the_boundary_falls_between_prefill_and_decode() -> None:
    engine, meter = started()
    moments: list[float] = []
    began = meter.now_s()
    done = engine.run_phase(Phase.REQUEST, BATCH, 1, lambda: moments.append(meter.now_s()))
    assert done.prefill_s is not None
    assert done.decode_s is not None
    assert moments == [pytest.approx(began + done.prefill_s)]
    assert done.prefill_s + done.decode_s == pytest.approx(meter.now_s() - began)
    assert (done.input_tokens, done.output_tokens) == (16 * 512, 16 * 64)


@pytest.mark.parametrize(
    ("phase", "prefilled", "generated"),
    [(Phase.PREFILL, 16 * 512, 16), (Phase.DECODE, 0, 16 * 63), (Phase.REQUEST, 16 * 512, 16 * 64)],
)
def test_each_phase_counts_its_own_tokens(phase: Phase, prefilled: int, generated: int) -> None:
    done = started()[0].run_phase(phase, BATCH, 0)
    assert (done.input_tokens, done.output_tokens) == (prefilled, generated)


def test_repetitions_scatter_and_repeat_themselves() -> None:
    def duration(repetition: int) -> float:
        engine, meter = started()
        engine.run_phase(Phase.REQUEST, BATCH, repetition)
        return meter.now_s()

    assert duration(3) == duration(3)
    assert duration(3) != duration(4)
    assert duration(3) == pytest.approx(duration(4), rel=0.05)


def test_gpus_outside_the_deployment_draw_their_idle_power() -> None:
    engine, meter = started(tensor_parallel=2)
    engine.run_phase(Phase.DECODE, BATCH, 0)
    joules = meter.read().energy_j
    assert len(joules) == NODE_GPUS
    assert joules[0] == joules[1] > 1.5 * joules[2]
    assert len(set(joules[2:])) == 1


@given(st.lists(st.floats(0.0, 0.7), max_size=20))
def test_waiting_costs_idle_power_and_nothing_else(waits: list[float]) -> None:
    meter = SimulatedMeter()
    meter.draw(50.0)
    for seconds in waits:
        meter.wait(seconds)
    reading = meter.read()
    assert reading.time_s == pytest.approx(sum(waits))
    assert reading.energy_j == pytest.approx((50.0 * sum(waits),) * NODE_GPUS)
    with pytest.raises(MeterError):
        meter.wait(-1.0)


def test_images_become_tokens_of_the_input() -> None:
    engine, _ = started(VISION)
    media = Media(images=1, image_pixels=(448, 448))
    batch = replace(BATCH, media=media)
    done = engine.run_phase(Phase.PREFILL, batch, 0)
    assert done.vision_tokens == 16 * 256
    assert done.input_tokens == 16 * 512
    with pytest.raises(EngineError, match="vision tower"):
        started()[0].prepare(batch, [])


def test_the_gpu_that_the_plan_names_is_the_one_that_is_simulated() -> None:
    def joules(**settings: object) -> float:
        engine, meter = started(**settings)
        engine.run_phase(Phase.REQUEST, BATCH, 0)
        return meter.read().energy_j[0]

    h100 = joules(gpu=catalog.gpu("H100"))
    assert h100 == joules()
    assert h100 != pytest.approx(joules(gpu=catalog.gpu("A100")), rel=0.1)
    assert joules(gpu=catalog.gpu("L4")) == joules(options={"gpu": "L4"})


def test_what_does_not_fit_is_refused_and_the_engine_goes_on() -> None:
    engine, _ = started("meta-llama/Llama-3.1-70B-Instruct", tensor_parallel=4)
    with pytest.raises(EngineError) as refused:
        engine.prepare(Batch(requests=4000, input_tokens=4096, output_tokens=64), [])
    assert refused.value.reason is Reason.DOES_NOT_FIT
    assert refused.value.usable
    assert engine.run_phase(Phase.PREFILL, BATCH, 0).requests == 16


@pytest.mark.parametrize(
    "settings",
    [{"tensor_parallel": 4, "pipeline_parallel": 4}, {"options": {"gpu": "nonesuch"}}],
)
def test_a_node_that_there_is_not_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(EngineError) as refused:
        started(**settings)
    assert refused.value.reason is Reason.UNSUPPORTED


def test_a_closed_loop_runs_at_its_concurrency() -> None:
    engine, meter = started()
    load = Load(concurrency=32, input_tokens=256, output_tokens=50)
    with closing(engine.steady(load)) as stream:  # type: ignore[type-var]
        seen = list(itertools.islice(stream, 600))
    assert {progress.running_requests for progress in seen} == {32}
    assert seen[-1].output_tokens == pytest.approx(seen[-1].completed_requests * 50, abs=50)
    assert sum(len(p.finished) for p in seen) == seen[-1].completed_requests
    assert meter.now_s() > 0


def test_an_open_loop_has_as_many_in_flight_as_arrive_in_one_latency() -> None:
    engine, _ = started()
    load = Load(request_rate_per_s=8.0, input_tokens=256, output_tokens=50)
    with closing(engine.steady(load)) as stream:  # type: ignore[type-var]
        progress = list(itertools.islice(stream, 600))
    timing = next(p.finished[0] for p in progress if p.finished)
    running = progress[-1].running_requests
    assert running == pytest.approx(8.0 * timing.latency_s, rel=0.5)
    too_much = Load(request_rate_per_s=1e6, input_tokens=256, output_tokens=50)
    with pytest.raises(EngineError):
        next(iter(engine.steady(too_much)))
