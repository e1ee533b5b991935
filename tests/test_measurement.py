from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from energylens import files, table
from energylens.errors import (
    ArtefactError,
    InputError,
    MeasurementError,
    MissingExtraError,
    UsageError,
)
from energylens.instrument import ledger, meters, sweep
from energylens.instrument.engine import (
    Batch,
    Capabilities,
    EngineError,
    Layout,
    Load,
    Media,
    Phase,
    Reason,
    Repetition,
)
from energylens.instrument.executor import Place
from energylens.instrument.executors.local import InlineExecutor
from energylens.instrument.meter import Channel, ChannelKind, DeviceState, Meter, MeterError
from energylens.instrument.meters.trail import Trail
from energylens.instrument.plan import Mode, Plan, PlannedCase, Procedure
from energylens.instrument.windows import (
    Bench,
    Measured,
    StoppedError,
    active_channels,
    measure_case,
    measure_phase,
)
from energylens.records import Boundary, Source
from instrument_fakes import (
    MISCOUNTS,
    OUT_OF_MEMORY,
    QUICK,
    RAISES,
    FakeEngine,
    FakeNvml,
    RealTimeEngine,
    VirtualMeter,
    no_meter,
    open_fake_meter,
    plan_of,
    planned,
)

# What the fake engine really takes, for 4 requests of 11 tokens.
PREFILL_J, DECODE_J = 500 * 0.05 / 4, 300 * 10 * 0.01 / 4


def measured_with(
    engine: FakeEngine,
    case: PlannedCase | None = None,
    procedure: Procedure = QUICK,
    active: Sequence[int] = (0,),
) -> Measured:
    with Trail(engine.meter, active) as trail:
        bench = Bench(
            engine=engine,
            meter=engine.meter,
            trail=trail,
            procedure=procedure,
            active=active,
            stopping=lambda: False,
        )
        return measure_case(bench, case or planned())


def swept(
    tmp_path: Path,
    plan: Plan,
    engine: FakeEngine | None = None,
    meter: Any = no_meter,
    **options: Any,
) -> tuple[sweep.SweepResult, list[dict[str, Any]], list[dict[str, Any]]]:
    engine = engine or FakeEngine()
    result = sweep.measure(
        plan,
        lambda _: engine,
        meter,
        tmp_path / "runs.jsonl",
        executor=options.pop("executor", InlineExecutor()),
        command_line=["energylens", "measure"],
        **options,
    )
    rows = files.read_json_lines(result.table) if result.table.exists() else []
    return result, rows, files.read_json_lines(result.records)


# --------------------------------------------------------------------------------------- phases


def test_phases_that_can_be_repeated_alone_are_measured_alone() -> None:
    found = measured_with(FakeEngine()).active
    assert found.prefill_j == pytest.approx(PREFILL_J)
    assert found.decode_j == pytest.approx(DECODE_J)
    assert found.whole_j == pytest.approx(PREFILL_J + DECODE_J)
    assert found.decode_method == "windows"
    assert found.closure_ratio == pytest.approx(0.0, abs=1e-9)


def test_decode_is_read_at_the_exact_boundary_where_the_engine_calls_it() -> None:
    engine = FakeEngine(native_decode=False, splits=True)
    found = measured_with(engine)
    assert found.active.decode_method == "boundary"
    assert found.active.decode_j == pytest.approx(DECODE_J)
    whole = found.phases[Phase.REQUEST].windows[0]
    assert whole.prefill_s == pytest.approx(whole.repetitions * 0.05)
    assert whole.decode_s == pytest.approx(whole.repetitions * 0.1)
    assert found.time_closure_ratio == pytest.approx(0.0, abs=1e-6)


def test_decode_is_a_difference_where_nothing_else_can_be_had() -> None:
    found = measured_with(FakeEngine(native_decode=False)).active
    assert found.decode_method == "difference"
    assert found.decode_j == pytest.approx(DECODE_J)
    assert found.closure_ratio is None


def test_short_decode_parts_are_not_read_from_a_slow_counter() -> None:
    engine = FakeEngine(VirtualMeter(period_s=0.1), native_decode=False, splits=True)
    found = measured_with(engine).active
    assert found.decode_method == "difference"  # 0.1 s of decode, a period of 0.1 s
    assert found.decode_j == pytest.approx(DECODE_J, rel=0.05)


def test_a_decode_within_the_scatter_of_the_whole_is_not_given() -> None:
    engine = FakeEngine(native_decode=False, scatter=0.3)
    found = measured_with(engine, planned(output_tokens=2))
    assert found.active.decode_j is None
    assert any("decode is smaller" in warning for warning in found.warnings)


def test_one_output_token_needs_no_decode() -> None:
    engine = FakeEngine()
    found = measured_with(engine, planned(output_tokens=1))
    assert set(found.phases) == {"prefill"}
    assert found.active.whole_j == pytest.approx(PREFILL_J)
    assert found.stable


def test_without_the_whole_the_parts_are_added() -> None:
    found = measured_with(FakeEngine(), procedure=replace(QUICK, whole=False))
    assert set(found.phases) == {"prefill", "decode"}
    assert found.active.whole_j == pytest.approx(PREFILL_J + DECODE_J)
    assert found.active.power_w == pytest.approx((500 * 0.05 + 300 * 0.1) / 0.15)


@settings(max_examples=25, deadline=None)
@given(
    period=st.floats(0.0, 0.15),
    prefill_s=st.floats(0.01, 3.0),
    step_s=st.floats(0.001, 0.1),
    output=st.integers(2, 40),
    native=st.booleans(),
    splits=st.booleans(),
)
def test_the_joules_of_each_phase_are_found_whatever_the_counter_and_the_engine(
    period: float, prefill_s: float, step_s: float, output: int, native: bool, splits: bool
) -> None:
    engine = FakeEngine(
        VirtualMeter(period_s=period),
        native_decode=native,
        splits=splits,
        prefill_s=prefill_s,
        step_s=step_s,
    )
    found = measured_with(engine, planned(output_tokens=output)).active
    prefill, decode = 500 * prefill_s / 4, 300 * step_s * (output - 1) / 4
    assert found.prefill_j == pytest.approx(prefill, rel=0.03)
    assert found.whole_j == pytest.approx(prefill + decode, rel=0.03)
    if found.decode_j is not None:
        # A difference is as uncertain as its larger term.
        assert found.decode_j == pytest.approx(decode, rel=0.05, abs=0.05 * prefill)


# ------------------------------------------------------------------------------ warm-up, windows


def test_warm_up_lasts_until_two_halves_agree() -> None:
    found = measured_with(FakeEngine(warm_repetitions=1), planned(output_tokens=1))
    assert found.phases["prefill"].warm
    assert found.active.prefill_j == pytest.approx(PREFILL_J)


def test_windows_are_at_least_twenty_periods_of_the_counter_long() -> None:
    engine = FakeEngine(VirtualMeter(period_s=0.1))
    found = measured_with(engine)
    for result in found.phases.values():
        assert all(w.duration_s >= 2.0 for w in result.windows)
        assert all(w.repetitions > 1 for w in result.windows)


def test_windows_end_early_when_they_agree_and_at_five_when_they_do_not() -> None:
    calm = measured_with(FakeEngine(), planned(output_tokens=1))
    assert len(calm.phases["prefill"].windows) == 3
    wild = measured_with(
        FakeEngine(scatter=0.3), planned(output_tokens=1), replace(QUICK, min_window_s=0.05)
    )
    assert len(wild.phases["prefill"].windows) == 5
    assert not wild.stable
    assert any("spread" in warning for warning in wild.warnings)


def test_a_phase_past_its_limit_ends_with_two_windows() -> None:
    found = measured_with(
        FakeEngine(prefill_s=20.0), planned(output_tokens=1), replace(QUICK, phase_limit_s=30.0)
    )
    assert len(found.phases["prefill"].windows) == 2


def test_hard_throttling_makes_a_case_unstable() -> None:
    engine = FakeEngine()
    engine.meter.throttle = ("power_cap",)
    assert measured_with(engine).stable
    engine.meter.throttle = ("hardware_thermal",)
    assert "throttled: hardware_thermal" in measured_with(engine).warnings


def test_repetitions_are_numbered_so_that_no_prompt_comes_twice() -> None:
    engine = FakeEngine()
    measured_with(engine)
    numbers = [number for _, number in engine.calls]
    assert numbers == list(range(len(numbers)))


def test_tokens_that_were_not_asked_for_are_refused() -> None:
    with pytest.raises(EngineError, match="must have 4 output_tokens"):
        measured_with(FakeEngine(), planned(input_tokens=MISCOUNTS))


def test_the_joules_of_several_gpus_are_summed_and_idle_ones_kept_apart() -> None:
    engine = FakeEngine(VirtualMeter(gpus=4), used=2)
    found = measured_with(engine, active=(0, 1))
    assert found.active.prefill_j == pytest.approx(2 * PREFILL_J)
    assert found.node is not None
    assert found.node.prefill_j == pytest.approx(2 * PREFILL_J + 2 * 100 * 0.05 / 4)


def test_active_channels_are_the_gpus_of_the_place() -> None:
    channels = VirtualMeter(gpus=4).channels
    assert active_channels(channels, Place(gpus=(2, 3)), 2) == (2, 3)
    assert active_channels(channels, Place(), 2) == (0, 1)
    cpu = (Channel(id="cpu0", kind=ChannelKind.CPU), Channel(id="dram0", kind=ChannelKind.DRAM))
    assert active_channels(cpu, Place(gpus=(0,)), 8) == (0, 1)
    with pytest.raises(MeterError, match="4 GPUs of the case"):
        active_channels(channels, Place(gpus=(0,)), 4)


def test_gpus_of_other_nodes_count_as_active() -> None:
    both = meters.CombinedMeter([VirtualMeter(gpus=2), VirtualMeter(gpus=2)])
    place = Place(gpus=(1,), elsewhere=(("http://x:1", "t", ()),))
    assert active_channels(both.channels, place, 3) == (1, 2, 3)


# --------------------------------------------------------------------------------------- steady


def test_a_steady_load_gives_joules_per_request_at_its_mean_batch() -> None:
    found = measured_with(FakeEngine(), planned(mode=Mode.STEADY))
    # 4 tokens every 10 ms at 400 W, 11 tokens a request.
    assert found.active.whole_j == pytest.approx(400 * 0.01 / 4 * 11)
    assert found.active.prefill_j is None
    windows = found.phases["steady"].windows
    assert all(w.running_requests == pytest.approx(4) for w in windows)
    assert found.stable


def test_a_load_that_stands_still_is_refused() -> None:
    engine = FakeEngine()
    honest = engine._work
    engine.steady = lambda load: (  # type: ignore[method-assign]
        replace(p, output_tokens=0) for p in FakeEngine.steady(engine, load)
    )
    assert honest is not None
    with pytest.raises(EngineError, match="must produce tokens"):
        measured_with(engine, planned(mode=Mode.STEADY))


def test_an_engine_that_ends_a_load_by_itself_is_refused() -> None:
    engine = FakeEngine()
    engine.steady = lambda load: iter(  # type: ignore[method-assign]
        [p for p, _ in zip(FakeEngine.steady(engine, load), range(5), strict=False)]
    )
    with pytest.raises(EngineError, match="ended it"):
        measured_with(engine, planned(mode=Mode.STEADY))


# ------------------------------------------------------------------------------- rows and records


def test_a_sweep_writes_a_table_that_reads_back(tmp_path: Path) -> None:
    result, rows, records = swept(tmp_path, plan_of(planned(), planned(8), planned(16)))
    dataset = table.read(result.table)
    assert len(dataset) == len(rows) == 3
    assert dataset.energy_per_request_j[0] == pytest.approx(PREFILL_J + DECODE_J)
    assert dataset.prefill_energy_per_request_j[0] == pytest.approx(PREFILL_J)
    assert set(dataset.source) == {"simulated"}
    assert rows[0]["ttft_s"] == pytest.approx(0.05)
    assert rows[0]["tpot_s"] == pytest.approx(0.01)
    assert rows[0]["request_latency_s"] == pytest.approx(0.15)
    assert rows[0]["average_power_w"] == pytest.approx((500 * 0.05 + 300 * 0.1) / 0.15)
    assert rows[0]["x_idle_power_w"] == pytest.approx(100.0)
    assert rows[0]["x_stable"] is True
    assert rows[0]["engine_version"] == "1.0"
    windows = records[0]["measured"]["phases"]["prefill"]["windows"]
    assert len(windows) == 3
    assert records[0]["provenance"]["driver_version"] == "1.2.3"
    assert records[0]["provenance"]["host"]
    assert records[0]["command_line"] == ["energylens", "measure"]
    assert result.energy_j > 0
    assert (result.measured, result.unstable, result.interrupted) == (3, 0, False)


def test_a_steady_row_has_the_observed_batch(tmp_path: Path) -> None:
    case = planned(8, mode=Mode.STEADY, request_rate_per_s=3.0)
    result, rows, _ = swept(tmp_path, plan_of(case))
    assert rows[0]["mean_batch_size"] == pytest.approx(4.0)
    assert rows[0]["batch_size"] == 8  # the limit that was set
    assert rows[0]["request_rate_per_s"] == 3.0
    assert rows[0]["achieved_rate_per_s"] > 0
    assert rows[0]["loaded_idle_w"] == pytest.approx(100.0)
    assert len(table.read(result.table)) == 1


def test_rows_at_the_boundary_of_the_node_count_every_gpu(tmp_path: Path) -> None:
    engine = FakeEngine(VirtualMeter(gpus=2))
    case = planned(boundary=Boundary.NODE)
    result, rows, _ = swept(tmp_path, plan_of(case), engine)
    assert rows[0]["node_gpus"] == 2
    assert rows[0]["prefill_energy_per_request_j"] == pytest.approx(600 * 0.05 / 4)
    assert len(table.read(result.table)) == 1


def test_a_shard_of_a_larger_layout_is_derived(tmp_path: Path) -> None:
    engine = FakeEngine(VirtualMeter(source=Source.MEASURED))
    case = planned(tensor_parallel=2, shard=(2, 1))
    _, rows, _ = swept(tmp_path, plan_of(case), engine)
    assert rows[0]["source"] == "derived"
    assert rows[0]["tensor_parallel"] == 2
    assert rows[0]["prefill_energy_per_request_j"] == pytest.approx(2 * PREFILL_J)


def test_parts_that_miss_the_whole_are_left_out_of_the_row(tmp_path: Path) -> None:
    engine = FakeEngine()
    honest = engine._work

    def slower_together(power_w: float, seconds: float) -> None:
        honest(power_w * (1.3 if engine.calls[-1][0] is Phase.REQUEST else 1.0), seconds)

    engine._work = slower_together  # type: ignore[method-assign]
    result, rows, _ = swept(tmp_path, plan_of(planned()), engine)
    assert "prefill_energy_per_request_j" not in rows[0]
    assert rows[0]["x_stable"] is False
    assert "miss the whole" in rows[0]["x_warnings"]
    assert len(table.read(result.table)) == 1


def test_the_plan_may_not_name_another_gpu_than_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeEngine()
    engine.meter.channels = (
        Channel(id="gpu0", kind=ChannelKind.GPU, name="NVIDIA H100 80GB HBM3"),
    )
    result, rows, _ = swept(tmp_path, plan_of(planned(gpu="A100-SXM4-80GB")), engine)
    assert rows == []
    assert "set gpu to H100-SXM-80GB" in next(iter(result.failed.values()))


@pytest.mark.parametrize(
    ("caps", "written"),
    [
        ((None, None), None),
        ((450.0, None), 450.0),  # GPUs of one deployment wait for the slowest
        ((450.0, 400.0), 400.0),
        ((40.0, None), None),  # this is none that the catalog describes: no table would take it
    ],
)
def test_a_row_says_which_power_cap_was_set(
    tmp_path: Path, caps: tuple[float | None, ...], written: float | None
) -> None:
    meter = VirtualMeter(gpus=3)
    meter.channels = tuple(
        replace(channel, power_cap_w=cap)
        for channel, cap in zip(meter.channels, (*caps, 300.0), strict=True)  # the last is idle
    )
    case = planned(tensor_parallel=2)
    result, rows, _ = swept(tmp_path, plan_of(case), FakeEngine(meter))
    assert rows[0].get("power_cap_w") == written
    read = table.read(result.table).cases.power_cap_w[0]
    assert np.isnan(read) if written is None else read == written


def test_a_row_says_which_clock_was_locked_and_whether_it_ran(tmp_path: Path) -> None:
    locks: list[float | None] = []

    class Locking(VirtualMeter):
        def lock_clocks(self, places: Sequence[int], mhz: float | None) -> None:
            assert list(places) == [0]
            locks.append(mhz)

        def states(self) -> tuple[DeviceState, ...]:
            return (DeviceState(channel="gpu0", sm_clock_hz=1.4e9),)

    cases = [
        replace(case, case=replace(case.case, configuration=replace(
            case.case.configuration, clock_mhz=clock)))
        for clock in (None, 1400.0, 1600.0) for case in (planned(gpu="H100"),)
    ]  # fmt: skip
    meter = Locking(gpus=1)
    engine = FakeEngine(meter)
    _, rows, _ = swept(tmp_path, plan_of(*cases), engine)
    assert [row.get("clock_mhz") for row in rows] == [None, 1400.0, 1600.0]
    assert len(engine.started) == 1  # one start serves all clocks
    assert locks == [1400.0, 1600.0, None]
    assert "was locked to 1600" in rows[2]["x_warnings"]
    assert not rows[2]["x_stable"]
    assert "locked" not in (rows[1].get("x_warnings") or "")
    # A meter that cannot lock makes no row that says it did.
    other = tmp_path / "other"
    other.mkdir()
    result, rows, _ = swept(other, plan_of(*cases), FakeEngine(VirtualMeter(gpus=1)))
    assert len(rows) == 1
    assert all("cannot lock clocks" in why for why in result.failed.values())
    assert len(result.failed) == 2


def test_a_server_elsewhere_must_say_which_gpus_it_has(tmp_path: Path) -> None:
    class Server(FakeEngine):
        @property
        def capabilities(self) -> Capabilities:
            return replace(super().capabilities, local=False)

    result, rows, _ = swept(tmp_path, plan_of(planned()), Server(VirtualMeter(gpus=2)))
    assert rows == []
    assert "nvml:0,1" in next(iter(result.failed.values()))
    case = planned(tensor_parallel=2)
    _, rows, _ = swept(tmp_path, plan_of(case), Server(VirtualMeter(gpus=2)))
    assert rows[0]["prefill_energy_per_request_j"] == pytest.approx(2 * PREFILL_J)


def test_drift_of_the_reference_case_marks_the_rows_after_it(tmp_path: Path) -> None:
    engine = FakeEngine()
    honest = engine._work

    def hotter_and_hotter(power_w: float, seconds: float) -> None:
        honest(power_w * (1.0 if len(engine.calls) < 60 else 1.2), seconds)

    engine._work = hotter_and_hotter  # type: ignore[method-assign]
    cases = [planned(batch) for batch in (1, 2, 3, 4, 5, 6)]
    result, rows, records = swept(tmp_path, plan_of(*cases, reference_every=2), engine)
    looks = [r for r in records if r["kind"] == "reference"]
    assert len(looks) == 2
    assert looks[-1]["drift_ratio"] == pytest.approx(0.2)
    assert rows[-1]["x_drift_ratio"] == pytest.approx(0.2)
    assert rows[-1]["x_stable"] is False
    assert len(rows) == 6
    assert result.unstable >= 2


def test_estimated_joules_stay_estimated(tmp_path: Path) -> None:
    engine = FakeEngine(VirtualMeter(source=Source.ESTIMATED))
    _, rows, _ = swept(tmp_path, plan_of(planned()), engine)
    assert rows[0]["source"] == "estimated"


def test_a_cool_down_waits_for_the_temperature(tmp_path: Path) -> None:
    engine = FakeEngine()
    _, rows, _ = swept(tmp_path, plan_of(planned(), cool_below_c=50.0), engine)
    assert engine.meter.now_s() > 120.0  # it never got there, and gave up
    assert len(rows) == 1


# ------------------------------------------------------------------------------- things go wrong


def test_one_bad_case_is_recorded_with_its_reason_and_the_sweep_goes_on(tmp_path: Path) -> None:
    engine = FakeEngine()
    cases = [planned(), planned(input_tokens=OUT_OF_MEMORY), planned(2)]
    result, rows, records = swept(tmp_path, plan_of(*cases), engine)
    assert len(rows) == 2
    failed = [r for r in records if r.get("status") == "failed"]
    assert [(r["reason"], r["message"]) for r in failed] == [("out_of_memory", "no memory left.")]
    assert len(engine.started) == 1  # the engine said that it could go on
    assert list(result.failed.values()) == ["no memory left."]


def test_an_error_that_no_engine_should_let_out_restarts_the_engine(tmp_path: Path) -> None:
    engine = FakeEngine()
    cases = [planned(), planned(input_tokens=RAISES), planned(2)]
    _, rows, records = swept(tmp_path, plan_of(*cases), engine)
    assert len(rows) == 2
    assert [r["reason"] for r in records if r.get("status") == "failed"] == ["crashed"]
    assert len(engine.started) == 2
    assert engine.closed == 2


def test_an_engine_that_cannot_start_fails_its_cases_and_no_others(tmp_path: Path) -> None:
    cases = [planned(options={"start": "fails"}), planned(2, options={"start": "fails"}), planned()]
    result, rows, _ = swept(tmp_path, plan_of(*cases))
    assert len(rows) == 1
    assert len(result.failed) == 2


def test_a_missing_package_ends_the_sweep_and_fails_no_case(tmp_path: Path) -> None:
    def needs_more() -> Meter:
        raise MissingExtraError("nvidia-ml-py", "nvml", "reading joules")

    class Metered(FakeEngine):
        def own_meter(self) -> Meter | None:
            return None

    with pytest.raises(MeasurementError, match=r"energylens\[nvml\]"):
        swept(tmp_path, plan_of(planned()), Metered(), needs_more)
    assert files.read_json_lines(tmp_path / "runs.records.jsonl") == []


def test_an_engine_is_restarted_only_where_the_layout_changes(tmp_path: Path) -> None:
    engine = FakeEngine(VirtualMeter(gpus=2))
    cases = [planned(), planned(tensor_parallel=2), planned(8), planned(2, tensor_parallel=2)]
    executor = InlineExecutor(gpus=(0, 1))
    _, rows, _ = swept(tmp_path, plan_of(*cases), engine, executor=executor)
    assert len(rows) == 4
    assert [layout.tensor_parallel for layout in engine.started] == [1, 2]
    assert engine.started[0].max_sequences == 8


def test_a_case_that_needs_more_gpus_than_there_are_is_recorded(tmp_path: Path) -> None:
    engine = FakeEngine()
    executor = InlineExecutor(gpus=(0,))
    result, rows, records = swept(
        tmp_path, plan_of(planned(), planned(tensor_parallel=8)), engine, executor=executor
    )
    assert len(rows) == 1
    assert records[0]["reason"] == "does_not_fit"
    assert "needs 8 GPUs" in next(iter(result.failed.values()))


def test_a_case_beyond_the_gpus_allowed_is_refused_once_and_measured_when_there_are_more(
    tmp_path: Path,
) -> None:
    plan = plan_of(planned(), planned(tensor_parallel=2), planned(tensor_parallel=2, repeat=1))

    def again(gpus: int | None) -> tuple[sweep.SweepResult, int]:
        out = tmp_path / "runs.jsonl"
        engine = FakeEngine(VirtualMeter(gpus=2))
        result = sweep.measure(
            plan, lambda _: engine, no_meter, out, executor=InlineExecutor(), gpus=gpus
        )
        return result, len(files.read_json_lines(tmp_path / "runs.records.jsonl"))

    first, written = again(1)
    assert (first.measured, first.new, written) == (1, 3, 3)
    assert set(first.failed.values()) == {"the case needs 2 GPUs, and there is 1."}
    assert len(first.failed) == 2  # the repeat is a case of its own
    second, written = again(1)
    assert (second.new, second.sources, written) == (0, (), 3)
    third, _ = again(None)
    assert (third.measured, third.new, third.failed) == (3, 2, {})
    with pytest.raises(UsageError, match="must be 1 or more, not 0"):
        again(0)


NVML_FAULTS: dict[str, Callable[[FakeNvml, float], float]] = {
    "absent": lambda nvml, _: raise_nvml(nvml, 3),
    "permission denied": lambda nvml, _: raise_nvml(nvml, 4),
    "reset": lambda nvml, e: 10.0 if e > 0.6 else nvml.honest_mj(e),
    "wrap": lambda nvml, e: nvml.honest_mj(e) % 5.2e6,
    "stuck": lambda nvml, e: nvml.honest_mj(min(e, 0.6)),
    "out of order": lambda nvml, e: nvml.honest_mj(e) - (9e3 if int(e * 1e6) % 2 else 0),
    "lost": lambda nvml, e: raise_nvml(nvml, 15) if e > 0.6 else nvml.honest_mj(e),
}


def raise_nvml(nvml: FakeNvml, code: int) -> float:
    raise nvml.NVMLError(code)


@pytest.mark.parametrize("fault", NVML_FAULTS)
def test_a_meter_fault_gives_a_refused_case_with_its_reason_and_never_a_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    nvml = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    lie = NVML_FAULTS[fault]

    def open_nvml() -> Meter:
        if fault in ("absent", "permission denied"):
            nvml.energy = lambda elapsed: lie(nvml, elapsed)
            return meters.NvmlMeter()
        meter = meters.NvmlMeter()
        assert meter.period_s > 0
        nvml.begin_s = None
        nvml.energy = lambda elapsed: lie(nvml, elapsed)
        return meter

    plan = plan_of(planned(output_tokens=2), idle_s=0.1, min_window_s=0.1)
    result, rows, records = swept(tmp_path, plan, RealTimeEngine(), open_nvml)
    assert rows == []
    assert not (tmp_path / "runs.jsonl").exists()
    found = [(r["status"], r["reason"]) for r in records]
    assert found == [("failed", "meter")], records[0]["message"]
    assert len(next(iter(result.failed.values()))) > 20


def test_an_honest_nvml_counter_gives_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)

    plan = plan_of(planned(output_tokens=2), idle_s=0.1, min_window_s=0.5, whole=False)
    engine = RealTimeEngine(VirtualMeter(source=Source.MEASURED))
    _, rows, _ = swept(tmp_path, plan, engine, meters.NvmlMeter)
    assert rows[0]["source"] == "measured"
    assert rows[0]["x_meter"] == "nvml"
    # Loose: on a busy machine a look comes late, and what is asked here is that all is joined up.
    assert rows[0]["average_power_w"] == pytest.approx(300.0, rel=0.3)
    assert rows[0]["x_sm_clock_hz"] == 1.98e9


# ------------------------------------------------------------------------------- seams and records


def test_a_case_is_named_by_its_content() -> None:
    assert planned().key == planned().key
    assert planned(8).key != planned().key
    assert planned(repeat=1).key != planned().key
    assert planned(8).layout_key == planned().layout_key
    assert planned(tensor_parallel=2).layout_key != planned().layout_key
    assert planned(options={"eager": "1"}).layout_key != planned().layout_key
    assert planned(mode=Mode.STEADY).layout_key == planned().layout_key


@pytest.mark.parametrize(
    "make",
    [
        lambda: Load(input_tokens=1, output_tokens=1),
        lambda: Load(concurrency=1, request_rate_per_s=1.0, input_tokens=1, output_tokens=1),
        lambda: Media(images=1),
        lambda: Media(frames=2, frame_pixels=(0, 5)),
        lambda: planned(request_rate_per_s=1.0),
        lambda: planned(mode=Mode.STEADY, request_rate_per_s=math.nan),
        lambda: planned(batch_size=1.5),
        lambda: Procedure(min_windows=1),
        lambda: Procedure(min_window_s=0.0),
    ],
)
def test_contradictions_are_refused_when_a_record_is_made(make: Any) -> None:
    with pytest.raises(InputError):
        make()


def test_a_table_must_be_json_lines(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"must end in \.jsonl"):
        sweep.measure(
            plan_of(planned()),
            lambda _: FakeEngine(),
            no_meter,
            tmp_path / "runs.csv",
            executor=InlineExecutor(),
        )


def test_a_phase_stops_after_the_window_when_asked(tmp_path: Path) -> None:
    engine = FakeEngine()
    asked = iter([False, False, False, True])
    with Trail(engine.meter, (0,)) as trail:
        bench = Bench(
            engine=engine,
            meter=engine.meter,
            trail=trail,
            procedure=QUICK,
            active=(0,),
            stopping=lambda: next(asked),
        )
        with pytest.raises(StoppedError):
            measure_phase(bench, Phase.PREFILL, Batch(requests=1, input_tokens=9, output_tokens=2))


def test_reasons_and_repetitions_are_plain_words() -> None:
    assert str(Reason.OUT_OF_MEMORY) == "out_of_memory"
    assert Repetition(requests=1, input_tokens=1, output_tokens=1).timings == ()


# ------------------------------------------------------------- whatever is measured can be read


class OddEngine(FakeEngine):
    """An engine that says what a test wants of itself, and draws what it wants."""

    def __init__(self, said: str = "1.0", powers: Sequence[float] = (500.0, 300.0)) -> None:
        super().__init__(native_decode=False)
        self.said, self.powers, self.turn = said, tuple(powers), 0

    def start(self, layout: Layout) -> Mapping[str, str]:
        return dict(super().start(layout)) | {"engine_version": self.said, "note": self.said}

    def _work(self, power_w: float, seconds: float) -> None:
        del power_w
        self.turn += 1
        super()._work(self.powers[self.turn % len(self.powers)], seconds)


@given(
    said=st.text(st.characters(codec=None, exclude_categories=()), max_size=30),
    powers=st.lists(st.floats(1e-6, 1e7), min_size=1, max_size=5),
    output_tokens=st.sampled_from([1, 2, 40]),
    batch=st.sampled_from([1, 7]),
    mode=st.sampled_from(list(Mode)),
    rate=st.sampled_from([None, 0.5, 1e6]),
)
@settings(max_examples=40, deadline=None)
def test_whatever_measure_writes_check_accepts(
    said: str,
    powers: list[float],
    output_tokens: int,
    batch: int,
    mode: Mode,
    rate: float | None,
) -> None:
    case = planned(
        batch,
        output_tokens=output_tokens,
        mode=mode,
        request_rate_per_s=rate if mode is Mode.STEADY else None,
    )
    with tempfile.TemporaryDirectory() as folder:
        plan = plan_of(case, planned(3, output_tokens=2))
        _, rows, records = swept(Path(folder), plan, OddEngine(said, powers))
        assert len(records) == 2
        assert len(rows) + sum(r["status"] == "failed" for r in records) == 2
        if rows:
            assert len(table.read(Path(folder) / "runs.jsonl")) == len(rows)
        # and a second sweep takes it up where it ended
        again, _, _ = swept(Path(folder), plan, OddEngine(said, powers))
        assert again.new == 0


def test_a_part_above_its_whole_is_left_out(tmp_path: Path) -> None:
    record = {
        "row": {
            "llm": "Qwen/Qwen3-8B",
            "gpu": "H100-SXM-80GB",
            "batch_size": 4,
            "input_tokens": 16,
            "output_tokens": 8,
            "energy_per_request_j": 0.0065,
            "prefill_energy_per_request_j": 0.0090,
            "boundary": "active_gpus",
            "source": "estimated",
        }
    }
    row = sweep._acceptable(record)["row"]
    assert "prefill_energy_per_request_j" not in row
    assert "prefill_energy_per_request_j" in row["x_warnings"]
    assert row["x_stable"] is False
    record["row"]["energy_per_request_j"] = 1e99
    refused = sweep._acceptable(record)
    assert (refused["status"], "row" in refused) == ("failed", False)


def test_text_of_a_server_is_made_printable_and_its_echo_of_a_key_hidden(tmp_path: Path) -> None:
    said = "1.0\x1b[2J\ud800 got key sk-abcdefgh1234 and MYKEY-77"
    sweep.measure(
        plan_of(planned()),
        lambda _: OddEngine(said),
        no_meter,
        tmp_path / "runs.jsonl",
        executor=InlineExecutor(),
        secrets=("MYKEY-77",),
    )
    for name in ("runs.jsonl", "runs.records.jsonl"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert "MYKEY-77" not in text
        assert "sk-abcdefgh1234" not in text
        assert "\\u001b" not in text
        assert "1.0\\\\x1b[2J\\\\ud800" in text


def test_a_recording_cannot_meter_a_real_engine(tmp_path: Path) -> None:
    """Its clock would stand still while the engine works, and no window would ever end."""
    _, rows, records = swept(tmp_path, plan_of(planned()), RealTimeEngine(), VirtualMeter)
    assert rows == []
    assert "time of its own" in records[0]["message"]


def test_a_failed_case_is_tried_again_with_another_meter(tmp_path: Path) -> None:
    def lost() -> Meter:
        raise MeterError("the GPU is lost.")

    def again(meter: Callable[[], Meter], asked: str) -> Any:
        return sweep.measure(
            plan_of(planned(output_tokens=2), whole=False),
            lambda _: RealTimeEngine(),
            meter,
            tmp_path / "runs.jsonl",
            executor=InlineExecutor(),
            meter_asked=asked,
        )

    assert len(again(lost, "nvml").failed) == 1
    assert again(open_fake_meter, "nvml").new == 0  # as it was: nothing to hope for
    assert again(open_fake_meter, "nvml-power").measured == 1


def test_a_table_taken_away_in_mid_sweep_is_no_success(tmp_path: Path) -> None:
    runs = tmp_path / "runs.jsonl"

    def take_away(progress: Any) -> None:
        if progress.done == 1:
            runs.unlink(missing_ok=True)

    with pytest.raises(ArtefactError, match="removed or replaced"):
        sweep.measure(
            plan_of(planned(1), planned(2), planned(3)),
            lambda _: FakeEngine(),
            no_meter,
            runs,
            executor=InlineExecutor(),
            on_progress=take_away,
        )
    assert swept(tmp_path, plan_of(planned(1), planned(2), planned(3)))[0].measured == 3
    assert len(table.read(runs)) == 3


@pytest.mark.parametrize("link", ["symbolic", "hard"])
def test_two_names_of_one_table_are_one_table(tmp_path: Path, link: str) -> None:
    swept(tmp_path, plan_of(planned(1)))
    runs, other = tmp_path / "runs.jsonl", tmp_path / "other.jsonl"
    if link == "symbolic":
        other.symlink_to(runs)
    else:
        other.hardlink_to(runs)
    with ledger._locked_table(runs), pytest.raises(ArtefactError, match=r"another sweep|records"):
        sweep.measure(
            plan_of(planned(1)),
            lambda _: FakeEngine(),
            no_meter,
            other,
            executor=InlineExecutor(),
        )
    if link == "symbolic":
        done = sweep.measure(
            plan_of(planned(1), planned(2)),
            lambda _: FakeEngine(),
            no_meter,
            other,
            executor=InlineExecutor(),
        )
        assert (done.measured, done.new) == (2, 1)
        assert len(table.read(runs)) == 2
