# ruff: noqa: ARG002, ARG005
from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import math
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from energylens.errors import (
    ArtefactError,
    EnergyLensError,
    MissingExtraError,
    UnknownNameError,
    UsageError,
)
from energylens.instrument import meters
from energylens.instrument.meter import Channel, ChannelKind, Meter, MeterError, Reading
from energylens.instrument.meters import remote
from energylens.instrument.meters.period import measure_period
from energylens.instrument.meters.trail import Trail
from energylens.records import Source
from instrument_fakes import FakeNvml, VirtualMeter


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    library = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", library)
    return library


def watch(meter: Meter, active: Sequence[int], looks: int = 50) -> tuple[Trail, float, float]:
    """Watch a meter until it has been looked at so often; return the trail and its window."""
    with Trail(meter, active) as trail:
        begin = trail.moment()
        while len(trail._looks) < looks:
            time.sleep(0.001)
            trail.moment()  # raises what the watching thread has found
        return trail, begin, trail.moment()


def late_s(trail: Trail, meter: Meter) -> float:
    """The longest that a move of the counter can have gone unseen, at both edges together."""
    gaps = [b - a for a, b in itertools.pairwise(trail._looks)]
    return 2 * (max(gaps) + meter.period_s)


def watch_until_refused(meter: Meter) -> None:
    """Take windows until one is refused: a test that hangs here has found a lie believed."""
    with Trail(meter, [0]) as trail:
        go_on(trail, trail.moment())


def go_on(trail: Trail, begin: float) -> None:
    while True:
        time.sleep(0.02)
        trail.energy_j(begin, trail.moment())


# ------------------------------------------------------------------------------------------ NVML


def test_the_nvml_counter_gives_the_joules_of_every_gpu(nvml: FakeNvml) -> None:
    nvml.gpus = 2
    meter = meters.NvmlMeter()
    trail, begin, end = watch(meter, [0, 1])
    assert [c.index for c in meter.channels] == [0, 1]
    assert meter.source is Source.MEASURED
    joules = trail.energy_j(begin, end)
    assert joules == pytest.approx([300.0 * (end - begin)] * 2, abs=300.0 * late_s(trail, meter))


def test_the_period_of_a_counter_is_measured() -> None:
    now = [0.0]

    def wait(seconds: float) -> None:
        now[0] += seconds

    found = measure_period(lambda: now[0] // 0.03, lambda: now[0], wait)
    assert found == pytest.approx(0.03, abs=0.001)  # as often as it was looked at
    with pytest.raises(MeterError, match="must move"):
        measure_period(lambda: 7.0, lambda: now[0], wait)


def test_the_nvml_meter_can_be_restricted_to_some_gpus(nvml: FakeNvml) -> None:
    nvml.gpus = 4
    assert [c.index for c in meters.open_meter("nvml:1,3").channels] == [1, 3]
    with pytest.raises(MeterError, match="has 4 NVIDIA GPUs"):
        meters.open_meter("nvml:7")
    with pytest.raises(UsageError, match="numbers"):
        meters.open_meter("nvml:a")


def test_a_power_limit_is_a_cap_only_below_the_default(nvml: FakeNvml) -> None:
    nvml.gpus = 3
    nvml.limits_w = [700.0, 450.0, 720.0]
    channels = meters.NvmlMeter().channels
    assert [c.limit_w for c in channels] == [700.0, 450.0, 720.0]
    assert [c.power_cap_w for c in channels] == [None, 450.0, None]


def test_a_driver_that_does_not_say_its_default_limit_leaves_the_cap_unknown(
    nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml.limits_w = [450.0]
    monkeypatch.delattr(FakeNvml, "nvmlDeviceGetPowerManagementDefaultLimit")
    assert meters.NvmlMeter().channels[0].power_cap_w is None


def test_uuids_are_hashed_and_states_are_read(nvml: FakeNvml) -> None:
    meter = meters.NvmlMeter()
    assert len(meter.channels[0].uuid_hash) == 12
    assert "secret" not in str(dict(meter.provenance()))
    state = meter.states()[0]
    assert state.throttle_reasons == ("power_cap", "hardware_thermal")
    assert state.sm_clock_hz == 1.98e9


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (4, "permission is denied"),
        (9, "driver is not loaded"),
        (12, "not on this machine"),
        (999, "NVML says"),
    ],
)
def test_a_driver_that_cannot_be_asked_is_named(nvml: FakeNvml, code: int, words: str) -> None:
    nvml.init_error = code
    with pytest.raises(MeterError, match=words):
        meters.NvmlMeter()


def raise_code(nvml: FakeNvml, code: int) -> Callable[[float], float]:
    def lie(elapsed_s: float) -> float:
        raise nvml.NVMLError(code)

    return lie


def test_an_absent_counter_is_refused_and_auto_integrates_power_instead(nvml: FakeNvml) -> None:
    nvml.energy = raise_code(nvml, 3)
    with pytest.raises(MeterError, match="does not have it"):
        meters.NvmlMeter()
    meter = meters.open_meter("auto")
    try:
        assert meter.name == "nvml-power"
    finally:
        meter.close()


def test_a_forbidden_counter_is_never_replaced_by_power(nvml: FakeNvml) -> None:
    nvml.energy = raise_code(nvml, 4)
    with pytest.raises(MeterError, match="permission is denied"):
        meters.open_meter("auto")


def test_a_divided_gpu_is_refused(nvml: FakeNvml) -> None:
    nvml.mig = True
    with pytest.raises(MeterError, match="MIG"):
        meters.NvmlMeter()


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        (lambda honest, e: 1000.0 if e > 0.1 else honest(e), "never go back"),
        (lambda honest, e: honest(e) % 5.03e6, "never go back"),  # wraps after 0.1 s
        (lambda honest, e: honest(e) - (8e3 if int(e * 1e6) % 2 else 0), "never go back"),
        (lambda honest, e: honest(min(e, 0.1)), "stuck|must move"),
        (lambda honest, e: math.nan if e > 0.1 else honest(e), "must say joules"),
        (lambda honest, e: honest(e) + (1e9 if e > 0.1 else 0), "jumped"),
    ],
    ids=["reset", "wrap", "out of order", "stuck", "not a number", "jump"],
)
def test_a_counter_that_lies_gives_no_joules(
    nvml: FakeNvml, lie: Callable[[Callable[[float], float], float], float], words: str
) -> None:
    meter = meters.NvmlMeter()
    assert meter.period_s > 0
    nvml.begin_s = None
    nvml.energy = lambda elapsed: lie(nvml.honest_mj, elapsed)
    with pytest.raises(MeterError, match=words):
        watch_until_refused(meter)


def test_a_gpu_lost_in_mid_window_gives_no_joules(nvml: FakeNvml) -> None:
    meter = meters.NvmlMeter()
    assert meter.period_s > 0
    nvml.begin_s = None

    def lost(elapsed_s: float) -> float:
        if elapsed_s > 0.05:
            raise nvml.NVMLError(15)
        return nvml.honest_mj(elapsed_s)

    nvml.energy = lost
    with pytest.raises(MeterError, match="the GPU is lost"):
        watch_until_refused(meter)


def test_a_fault_of_an_idle_gpu_leaves_the_others_alone(nvml: FakeNvml) -> None:
    nvml.gpus = 2
    meter = meters.NvmlMeter()
    honest = meter._energy_j

    def second_stands_still(place: int) -> float:
        return honest(0) if place == 0 else 7.0

    meter._energy_j = second_stands_still  # type: ignore[method-assign]
    trail, begin, end = watch(meter, [0])
    joules = trail.energy_j(begin, end)
    assert joules[0] > 0
    assert math.isnan(joules[1])


def test_power_is_integrated_where_asked(nvml: FakeNvml) -> None:
    meter = meters.NvmlPowerMeter(sample_s=0.005)
    try:
        begin = end = meter.read()
        while end.time_s == begin.time_s:
            time.sleep(0.01)
            end = meter.read()
    finally:
        meter.close()
    power = (end.energy_j[0] - begin.energy_j[0]) / (end.time_s - begin.time_s)
    assert power == pytest.approx(300.0, rel=1e-6)


def test_power_of_zero_is_no_measurement(nvml: FakeNvml) -> None:
    nvml.power_w = 0.0
    with pytest.raises(MeterError, match="above 0 W"):
        meters.NvmlPowerMeter()


def test_a_hole_in_the_power_samples_is_not_bridged(nvml: FakeNvml) -> None:
    meter = meters.NvmlPowerMeter(sample_s=60.0)
    meter._time_s -= 5.0
    try:
        with pytest.raises(MeterError, match="overloaded"):
            meter.read()
    finally:
        meter.close()


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(MissingExtraError, match=r"energylens\[nvml\]"):
        meters.NvmlMeter()
    assert meters.gpu_indices() == ()


def test_only_visible_gpus_may_be_used(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml.gpus = 4
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert meters.gpu_indices() == (0, 1, 2, 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-1111")
    assert meters.gpu_indices() == (3, 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    with pytest.raises(MeterError, match="CUDA_VISIBLE_DEVICES"):
        meters.gpu_indices()


# -------------------------------------------------------------------------------- trail, period


@settings(max_examples=60, deadline=None)
@given(
    period=st.floats(0.05, 0.2),
    offset=st.floats(0.0, 1.0),
    power=st.floats(10.0, 1000.0),
    length=st.floats(2.0, 8.0),
)
def test_edges_between_two_steps_of_a_counter_are_found_by_a_line(
    period: float, offset: float, power: float, length: float
) -> None:
    meter = VirtualMeter(period_s=period)
    meter.power_w = [power]
    meter.wait(offset)
    with Trail(meter, [0]) as trail:
        for _ in range(5):
            meter.wait(period)
            trail.moment()
        begin = trail.moment()
        meter.wait(length)
        end = trail.moment()
        joules = trail.energy_j(begin, end)[0]
    assert joules == pytest.approx(power * length, rel=0.02)


class JumpingMeter(VirtualMeter):
    """A counter that moves every 100 ms, of a device whose power jumps between two phases."""

    real_time = True  # so that it is taken for a stepped one

    def __init__(self, levels_w: tuple[float, float], lengths_s: tuple[float, float]) -> None:
        super().__init__(period_s=0.1)
        self.levels_w, self.lengths_s = levels_w, lengths_s

    def drawn_j(self, moment_s: float) -> float:
        """Joules since the first prefill began."""
        cycles, rest = divmod(moment_s, sum(self.lengths_s))
        first = min(rest, self.lengths_s[0])
        joules = [
            level * length for level, length in zip(self.levels_w, self.lengths_s, strict=True)
        ]
        return cycles * sum(joules) + first * self.levels_w[0] + (rest - first) * self.levels_w[1]

    def read(self) -> Reading:
        moved_s = math.floor(self._now_s / self.period_s) * self.period_s
        return Reading(time_s=self._now_s, energy_j=(1.0 + self.drawn_j(moved_s),))


@pytest.mark.parametrize("levels", [(700.0, 350.0), (650.0, 250.0), (300.0, 600.0), (500.0, 500.0)])
def test_a_phase_between_two_jumps_of_power_keeps_its_joules(levels: tuple[float, float]) -> None:
    lengths = (0.537, 2.113)  # of prefill and decode: their edges fall anywhere in a step
    meter = JumpingMeter(levels, lengths)
    trail = Trail(meter, [0])
    while meter.now_s() < 40 * sum(lengths):
        trail._look()
        meter.wait(0.0201)
    decode_j = lengths[1] * levels[1]
    found = []
    for cycle in range(1, 39):
        begin = cycle * sum(lengths) + lengths[0]
        found.append(trail.energy_inside_j(begin, begin + lengths[1])[0])
    assert math.fsum(found) / len(found) == pytest.approx(decode_j, rel=0.002)
    assert found == pytest.approx([decode_j] * len(found), rel=0.02)


@given(st.lists(st.floats(0.5, 5.0), min_size=2, max_size=6))
def test_windows_that_follow_each_other_add_up_to_the_whole(lengths: list[float]) -> None:
    meter = VirtualMeter(period_s=0.1)
    with Trail(meter, [0]) as trail:
        meter.wait(0.3)
        edges = [trail.moment()]
        for number, length in enumerate(lengths):
            meter.power_w = [100.0 * (1 + number)]
            meter.wait(length)
            edges.append(trail.moment())
        parts = [trail.energy_j(a, b)[0] for a, b in itertools.pairwise(edges)]
        assert math.fsum(parts) == pytest.approx(trail.energy_j(edges[0], edges[-1])[0])


def test_zero_joules_are_refused() -> None:
    meter = VirtualMeter()
    meter.power_w = [0.0]
    with Trail(meter, [0]) as trail:
        begin = trail.moment()
        meter.wait(1.0)
        with pytest.raises(MeterError, match="must move"):
            trail.energy_j(begin, trail.moment())


def test_a_clock_that_goes_back_is_refused() -> None:
    meter = VirtualMeter()
    with Trail(meter, [0]) as trail:
        meter.wait(5.0)
        trail.moment()
        meter._now_s -= 3.0
        with pytest.raises(MeterError, match="clock was set back"):
            trail.moment()


def test_a_counter_that_never_moves_has_no_period() -> None:
    meter = VirtualMeter()
    with pytest.raises(MeterError, match="stood at"):
        measure_period(lambda: 7.0, meter.now_s, meter.wait)


def test_a_period_is_not_shorter_than_the_time_between_looks() -> None:
    meter = VirtualMeter()
    period = measure_period(lambda: meter.read().energy_j[0], meter.now_s, meter.wait, poll_s=0.003)
    assert period == pytest.approx(0.003)


# ------------------------------------------------------------------------------ other local meters


def test_the_estimated_meter_follows_the_work_and_says_that_it_guesses() -> None:
    meter = meters.EstimatedMeter(busy_core_w=10.0, core_w=1e-9)
    begin = meter.read()
    cpu = time.process_time()
    while time.process_time() - cpu < 0.1:
        math.sqrt(2.0)
    end = meter.read()
    assert end.energy_j[0] - begin.energy_j[0] >= 0.9 * 10.0 * 0.1
    assert meter.source is Source.ESTIMATED
    assert not meter.source.carries_accuracy_claim


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Python 3.12
def test_the_estimated_meter_counts_children_and_forgets_nothing_when_they_end() -> None:
    meter = meters.EstimatedMeter(busy_core_w=10.0, core_w=1e-9)
    release, go = os.pipe()
    child = os.fork()
    if child == 0:
        cpu = time.process_time()
        while time.process_time() - cpu < 0.1:
            math.sqrt(2.0)
        os.read(release, 1)
        os._exit(0)
    while meter.read().energy_j[0] < 0.9:
        time.sleep(0.01)
    busy = meter.read().energy_j[0]
    os.write(go, b"x")
    os.waitpid(child, 0)
    assert busy >= 0.9
    assert meter.read().energy_j[0] >= busy
    os.close(release)
    os.close(go)


def test_a_recording_plays_back_what_was_recorded(tmp_path: Path) -> None:
    meter = VirtualMeter(gpus=2, period_s=0.1)
    written = meters.record(meter, 3.0, tmp_path / "rec.jsonl", poll_s=0.02)
    replay = meters.open_meter(f"replay:{tmp_path / 'rec.jsonl'}")
    assert written > 100
    assert [c.id for c in replay.channels] == ["gpu0", "gpu1"]
    assert replay.source is Source.MEASURED
    with Trail(replay, [0, 1]) as trail:
        replay.wait(0.5)
        begin = trail.moment()
        replay.wait(2.0)
        assert trail.energy_j(begin, trail.moment()) == pytest.approx([200.0, 200.0], rel=0.02)
    replay.wait(5.0)
    with pytest.raises(MeterError, match="recording ends"):
        replay.read()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}\n",
        '{"energylens_recording": 2}\n',
        '{"energylens_recording": 1, "source": "measured", "period_s": 0, "channels": [{}]}\n',
        '{"energylens_recording": 1, "source": "measured", "period_s": 0, "channels": '
        '[{"id": "a", "kind": "gpu"}]}\n{"time_s": "x", "energy_j": []}\n',
    ],
)
def test_a_file_that_is_no_recording_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "rec.jsonl").write_text(text)
    with pytest.raises(EnergyLensError):
        meters.open_meter(f"replay:{tmp_path / 'rec.jsonl'}")


def test_a_future_recording_says_so(tmp_path: Path) -> None:
    (tmp_path / "rec.jsonl").write_text('{"energylens_recording": 9}\n')
    with pytest.raises(ArtefactError, match="newer energylens"):
        meters.open_meter(f"replay:{tmp_path / 'rec.jsonl'}")


def test_an_unknown_meter_gets_the_names_of_the_known() -> None:
    with pytest.raises(UnknownNameError, match="nvml-power"):
        meters.open_meter("nvlm")
    with pytest.raises(UsageError, match="number"):
        meters.open_meter("estimated:much")


# ------------------------------------------------------------------------------------------ Zeus


class FakeZeusGpus:
    def __init__(self, trusted: bool = True) -> None:
        self.trusted = trusted
        self.begin = time.monotonic()
        self.power_w = 250.0

    def __len__(self) -> int:
        return 2

    def get_name(self, index: int) -> str:
        return "AMD Instinct MI300X"

    def supports_get_total_energy_consumption(self, index: int) -> bool:
        return self.trusted

    def get_total_energy_consumption(self, index: int) -> float:
        return 1e3 * self.power_w * (time.monotonic() - self.begin)

    def get_gpu_temperature(self, index: int) -> int:
        return 50


def install_zeus(monkeypatch: pytest.MonkeyPatch, **devices: Any) -> None:
    def absent() -> Any:
        raise RuntimeError("nothing here")

    modules = {
        "zeus": SimpleNamespace(__path__=[]),
        "zeus.device": SimpleNamespace(__path__=[]),
        "zeus.device.gpu": SimpleNamespace(get_gpus=devices.get("gpu", absent)),
        "zeus.device.cpu": SimpleNamespace(get_cpus=devices.get("cpu", absent)),
        "zeus.device.soc": SimpleNamespace(get_soc=devices.get("soc", absent)),
    }
    modules["zeus"].device = modules["zeus.device"]
    for kind in ("gpu", "cpu", "soc"):
        setattr(modules["zeus.device"], kind, modules[f"zeus.device.{kind}"])
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("energylens.instrument.meters.zeus.version", lambda name: "0.16.0")


def test_zeus_reads_amd_gpus_cpus_and_memory_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    class Cpus:
        def __len__(self) -> int:
            return 1

        def supports_get_dram_energy_consumption(self, index: int) -> bool:
            return True

        def get_total_energy_consumption(self, index: int) -> Any:
            now = time.monotonic()
            return SimpleNamespace(cpu_mj=now * 1e5, dram_mj=now * 1e4)

    install_zeus(monkeypatch, gpu=FakeZeusGpus, cpu=Cpus)
    meter = meters.open_meter("zeus")
    assert [c.id for c in meter.channels] == ["gpu0", "gpu1", "cpu0", "dram0"]
    assert meter.states()[0].temperature_c == 50
    moments = [time.monotonic()]
    begin = meter.read()
    moments.append(time.monotonic())
    time.sleep(0.05)
    moments.append(time.monotonic())
    end = meter.read()
    moments.append(time.monotonic())
    drawn = [b - a for a, b in zip(begin.energy_j, end.energy_j, strict=True)]
    for joules, watts in zip(drawn, [250, 250, 100, 10], strict=True):
        shortest, longest = moments[2] - moments[1], moments[3] - moments[0]
        assert watts * shortest <= joules <= watts * longest


def test_zeus_reads_a_system_on_a_chip(monkeypatch: pytest.MonkeyPatch) -> None:
    class Chip:
        def get_total_energy_consumption(self) -> Any:
            return SimpleNamespace(gpu_mj=time.monotonic() * 1e3, cpu_total_mj=None)

    install_zeus(monkeypatch, soc=Chip)
    assert [c.kind for c in meters.open_meter("zeus:soc").channels] == [ChannelKind.GPU]


def test_zeus_without_a_device_is_refused_rather_than_zero_joules(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install_zeus(monkeypatch)
    with pytest.raises(MeterError, match="there is none"):
        meters.ZeusMeter()


def test_zeus_counters_that_zeus_does_not_trust_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install_zeus(monkeypatch, gpu=lambda: FakeZeusGpus(trusted=False))
    with pytest.raises(MeterError, match="trusts"):
        meters.ZeusMeter()


def test_without_zeus_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zeus", None)
    with pytest.raises(MissingExtraError, match=r"energylens\[zeus\]"):
        meters.ZeusMeter()


def test_auto_never_falls_back_to_a_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setitem(sys.modules, "zeus", None)
    with pytest.raises(MeterError, match="--meter estimated"):
        meters.open_meter("auto")


# ------------------------------------------------------------------------------------------ HTTP


class AheadMeter(VirtualMeter):
    """A real-time meter whose machine's clock is 1000 s ahead."""

    real_time = True
    ahead_s = 1000.0

    def now_s(self) -> float:
        return time.monotonic() + self.ahead_s

    def read(self) -> Reading:
        now = self.now_s()
        return Reading(time_s=now, energy_j=tuple(200.0 * now for _ in self.channels))


@pytest.fixture
def served() -> Iterator[meters.MeterServer]:
    server = meters.serve(AheadMeter(gpus=2), token="right")
    yield server
    server.close()


def test_a_served_meter_is_read_in_the_time_of_the_reader(served: meters.MeterServer) -> None:
    meter = meters.HttpMeter(served.url, "right")
    before = time.monotonic()
    reading = meter.read()
    after = time.monotonic()
    uncertain = meter.clock_uncertainty_s
    assert meter.clock_offset_s == pytest.approx(1000.0, abs=uncertain + 1e-6)
    assert before - uncertain <= reading.time_s <= after + uncertain
    assert len(meter.channels) == 2
    assert meter.states()[1].temperature_c == 60.0
    assert meter.provenance()["driver_version"] == "1.2.3"
    meter.close()


def test_a_served_meter_is_as_good_as_a_local_one(served: meters.MeterServer) -> None:
    meter = meters.open_meter(f"{served.url},{served.url}", token="right")
    before = time.monotonic()
    with Trail(meter, range(4)) as trail:
        begin = trail.moment()
        first = time.monotonic()
        time.sleep(0.1)
        second = time.monotonic()
        joules = trail.energy_j(begin, trail.moment())
    after = time.monotonic()
    assert [c.index for c in meter.channels] == [0, 1, 2, 3]
    # Each edge is read somewhere within its call.
    assert all(200.0 * (second - first) <= j <= 200.0 * (after - before) for j in joules)
    meter.close()


def test_a_wrong_token_is_refused(served: meters.MeterServer) -> None:
    with pytest.raises(MeterError, match="token"):
        meters.HttpMeter(served.url, "wrong")


def test_a_served_meter_needs_a_token(
    served: meters.MeterServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ENERGYLENS_METER_TOKEN", raising=False)
    with pytest.raises(UsageError, match="ENERGYLENS_METER_TOKEN"):
        meters.open_meter(served.url)
    monkeypatch.setenv("ENERGYLENS_METER_TOKEN", "right")
    meters.open_meter(served.url).close()


def test_the_server_answers_nothing_else(served: meters.MeterServer) -> None:
    parts = urlsplit(served.url)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=5)
    connection.request("GET", "/etc/passwd", headers={"Authorization": "Bearer right"})
    answer = connection.getresponse()
    answer.read()
    assert answer.status == 404
    connection.request("GET", "/v1/reading")
    answer = connection.getresponse()
    answer.read()
    assert answer.status == 401
    connection.close()


def test_a_fault_of_the_served_meter_travels_with_its_reason() -> None:
    meter = AheadMeter()
    server = meters.serve(meter, token="t")
    client = meters.HttpMeter(server.url, "t")

    def lost() -> Reading:
        raise MeterError("the GPU is lost.")

    meter.read = lost  # type: ignore[method-assign]
    with pytest.raises(MeterError, match="the GPU is lost"):
        client.read()
    client.close()
    server.close()


def test_a_server_that_went_away_is_named() -> None:
    server = meters.serve(AheadMeter(), token="t")
    client = meters.HttpMeter(server.url, "t", timeout_s=2.0)
    client.close()
    server.close()
    with pytest.raises(MeterError, match="does not answer"):
        client.read()


@pytest.mark.parametrize("url", ["http://", "ftp://x:1", "http://x:port"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="URL"):
        meters.HttpMeter(url, "t")


def test_a_port_that_is_taken_is_named(served: meters.MeterServer) -> None:
    with pytest.raises(MeterError, match="cannot listen"):
        meters.serve(VirtualMeter(), port=urlsplit(served.url).port or 0)


def test_the_weakest_of_combined_meters_says_what_the_sum_is() -> None:
    strong, weak = VirtualMeter(), VirtualMeter(source=Source.ESTIMATED)
    both = meters.CombinedMeter([strong, weak])
    assert both.source is Source.ESTIMATED
    assert both.channels[1] == Channel(id="node1-gpu0", kind=ChannelKind.GPU, index=1)
    both.wait(1.0)
    assert both.now_s() == 1.0


# ----------------------------------------------------------------------- meters that are not right


class Ticking(VirtualMeter):
    """A stepped meter on this machine's clock, whose readings a test can spoil."""

    real_time = True

    def __init__(self, period_s: float = 0.01) -> None:
        super().__init__(period_s=period_s)
        self.spoil: Callable[[Reading], Any] = lambda reading: reading

    def now_s(self) -> float:
        return time.monotonic()

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def read(self) -> Reading:
        now = time.monotonic()
        honest = Reading(time_s=now, energy_j=(300.0 * (now - now % 0.01),))
        spoilt: Reading = self.spoil(honest)
        return spoilt


def raises(error: BaseException) -> Callable[[Reading], Any]:
    def spoil(reading: Reading) -> Any:
        raise error

    return spoil


@pytest.mark.parametrize(
    "spoil",
    [
        raises(ValueError("too many values")),
        raises(OverflowError("int too large to convert to float")),
        raises(RecursionError("maximum recursion depth exceeded")),
        raises(MemoryError()),
        lambda reading: replace(reading, energy_j=(*reading.energy_j, 1.0)),
        lambda reading: replace(reading, energy_j=()),
        lambda reading: replace(reading, time_s=1e300),
        lambda reading: replace(reading, time_s=math.nan),
        lambda reading: replace(reading, time_s=reading.time_s + 3600),
        lambda reading: replace(reading, time_s=5.0),
        lambda reading: replace(reading, energy_j=(math.inf,)),
        lambda reading: replace(reading, energy_j=(1e300,)),
        lambda reading: replace(reading, energy_j=("much",)),
        lambda reading: None,
    ],
)
def test_a_meter_that_fails_while_it_is_watched_ends_the_window(
    spoil: Callable[[Reading], Any],
) -> None:
    """Else the last power would be carried on, and a row would say what nobody has measured."""
    meter = Ticking()
    with Trail(meter, [0]) as trail:
        begin = trail.moment()
        while len(trail._times[0]) < 5:
            time.sleep(0.01)
        meter.spoil = spoil
        with pytest.raises(MeterError):
            go_on(trail, begin)
        with pytest.raises(MeterError):
            trail.energy_j(begin, begin + 0.01)  # nothing of that trail is believed any more


def test_a_meter_that_repeats_its_last_reading_ends_the_window() -> None:
    meter = Ticking()
    with Trail(meter, [0]) as trail:
        begin = trail.moment()
        while len(trail._times[0]) < 5:
            time.sleep(0.01)
        last = meter.read()
        meter.spoil = lambda reading: last
        with pytest.raises(MeterError, match="no new ones"):
            go_on(trail, begin)


@pytest.mark.parametrize("period_s", [1e9, math.nan, -5.0, math.inf])
def test_a_period_that_no_counter_has_is_refused(period_s: float) -> None:
    meter = Ticking()
    meter.period_s = period_s
    with pytest.raises(MeterError, match="move every"):
        Trail(meter, [0])


HEADER = {
    "energylens_recording": 1,
    "source": "measured",
    "period_s": 1,
    "channels": [{"id": "g", "kind": "gpu"}],
}


@pytest.mark.parametrize(
    ("header", "line"),
    [
        ({"period_s": 1e9}, {}),
        ({"period_s": "often"}, {}),
        ({"period_s": None}, {}),
        ({"channels": 7}, {}),
        ({"channels": []}, {}),
        ({"channels": [{"id": "g", "kind": "gpu", "limit_w": "700"}]}, {}),
        ({"channels": [{"id": "g", "kind": "gpu", "index": -1}]}, {}),
        ({"channels": [{"id": "g", "kind": ["gpu"]}]}, {}),
        ({"channels": ["g"]}, {}),
        ({"source": "rumour"}, {}),
        ({}, {"time_s": 10**400}),
        ({}, {"energy_j": [10**400]}),
        ({}, {"energy_j": [1e308]}),
        ({}, {"energy_j": [1, 2]}),
        ({}, {"energy_j": "1"}),
        ({}, {"energy_j": [[1]]}),
        ({}, {"time_s": True}),
    ],
)
def test_a_damaged_recording_is_one_sentence(
    tmp_path: Path, header: dict[str, object], line: dict[str, object]
) -> None:
    path = tmp_path / "rec.jsonl"
    reading = {"time_s": 0, "energy_j": [1]} | line
    path.write_text(f"{json.dumps(HEADER | header)}\n{json.dumps(reading)}\n")
    with pytest.raises((ArtefactError, MeterError)) as refused:
        meters.open_meter(f"replay:{path}")
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    "name", ["http://[::1", "http://x:99999", "http://u:pw@x:1", "estimated:1e400", "estimated:nan"]
)
def test_a_meter_that_cannot_be_is_refused_in_words(name: str) -> None:
    with pytest.raises(EnergyLensError) as refused:
        meters.open_meter(name, token="t")
    assert "pw" not in str(refused.value)


# ------------------------------------------------------------------------------- the meter's server


def test_a_served_reading_comes_in_one_packet_so_that_clocks_agree(
    served: meters.MeterServer,
) -> None:
    meter = meters.HttpMeter(served.url, "right")
    # Of many tries the best tells: with an answer in two packets each would wait for 40 ms.
    while abs(meter.clock_offset_s - 1000.0) > 1e-3 or meter.clock_uncertainty_s > 1e-3:
        meter._compare_clocks()
    meter.close()
    parts = urlsplit(served.url)
    with socket.create_connection((parts.hostname, parts.port)) as raw:
        raw.sendall(b"GET /v1/time HTTP/1.1\r\nAuthorization: Bearer right\r\n\r\n")
        assert b'"time_s"' in raw.recv(1 << 16)  # head and body at once


def test_a_meter_server_hangs_up_on_the_silent_and_takes_so_many_at_a_time(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(remote, "PATIENCE_S", 0.2)
    monkeypatch.setattr(remote, "MOST_CONNECTIONS", 3)
    server = meters.serve(AheadMeter(), token="t")
    parts = urlsplit(server.url)
    silent = [socket.create_connection((parts.hostname, parts.port)) for _ in range(20)]
    for half in silent:
        with contextlib.suppress(OSError):
            half.sendall(b"GET /v1/reading HTT")
    for half in silent:  # every one of them is hung up on, and nobody waits for ever
        with contextlib.suppress(ConnectionError):
            assert half.recv(1) == b""
        half.close()
    # One that resets its connection leaves no traceback behind.
    with socket.create_connection((parts.hostname, parts.port)) as rude:
        rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        rude.sendall(b"GET /v1/reading HTTP/1.1\r\n")
    client = meters.HttpMeter(server.url, "t")
    assert client.read().energy_j[0] > 0
    client.close()
    server.close()
    assert "Traceback" not in capfd.readouterr().err


def test_an_address_to_listen_on_is_named_in_full() -> None:
    with pytest.raises(UsageError, match=r"0\.0\.0\.0"):
        meters.serve(VirtualMeter(), host="")
    with pytest.raises(UsageError, match="token"):
        meters.serve(VirtualMeter(), token=" ")
    with pytest.raises(MeterError, match="cannot listen"):
        meters.serve(VirtualMeter(), host="no.such.host.invalid")
    try:
        server = meters.serve(AheadMeter(), host="::1", token="t")
    except MeterError:
        pytest.skip("this machine has no IPv6")
    assert server.url.startswith("http://[::1]:")
    client = meters.HttpMeter(server.url, "t")
    assert client.read().energy_j[0] > 0
    client.close()
    server.close()


class Liar:
    """An HTTP server that says what a test wants."""

    def __init__(self, answers: dict[str, bytes]) -> None:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = answers.get(self.path, b"{}")
                with contextlib.suppress(OSError):
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


ABOUT: dict[str, Any] = HEADER | {"name": "nvml", "provenance": {}}


@pytest.mark.parametrize(
    "answers",
    [
        {"/v1/meter": b"[" * 100_000},
        {"/v1/meter": b"7"},
        {"/v1/meter": b"x" * (5 << 20)},
        {"/v1/meter": json.dumps(ABOUT | {"period_s": 1e9}).encode()},
        {"/v1/meter": json.dumps(ABOUT | {"provenance": 1}).encode()},
        {"/v1/time": b'{"time_s": 1' + b"0" * 400 + b"}"},
        {"/v1/time": b'{"time_s": "now"}'},
        {"/v1/time": b"[]"},
        {"/v1/reading": b'{"time_s": 1, "energy_j": [1, 2]}'},
        {"/v1/reading": b'{"time_s": 1, "energy_j": [1' + b"0" * 400 + b"]}"},
        {"/v1/reading": b'{"time_s": NaN, "energy_j": [1]}'},
        {"/v1/states": b'{"states": [{"temperature_c": "hot"}]}'},
        {"/v1/states": b'{"states": 7}'},
    ],
)
def test_a_server_that_is_no_meter_is_one_sentence(answers: dict[str, bytes]) -> None:
    good = {"/v1/meter": json.dumps(ABOUT).encode(), "/v1/time": b'{"time_s": 1.0}'}
    liar = Liar(good | answers)

    def ask() -> None:
        with contextlib.closing(meters.HttpMeter(liar.url, "t")) as meter:
            meter.read()
            meter.states()

    with pytest.raises(MeterError) as refused:
        ask()
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500
    liar.close()


def test_names_that_a_server_gives_are_made_printable() -> None:
    odd = ABOUT | {"name": "nv\x1b[31mml", "channels": [{"id": "g\ud800", "kind": "gpu"}]}
    liar = Liar({"/v1/meter": json.dumps(odd).encode(), "/v1/time": b'{"time_s": 1.0}'})
    meter = meters.HttpMeter(liar.url, "t")
    assert (meter.name, meter.channels[0].id) == ("nv\\x1b[31mml", "g\\ud800")
    meter.close()
    liar.close()


def test_a_steady_power_is_no_stuck_counter(nvml: FakeNvml) -> None:
    meter = meters.NvmlPowerMeter(sample_s=0.005)
    assert meter.period_s == 0.1
    meter.close()
