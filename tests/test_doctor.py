from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from energylens import catalog
from energylens.cli import main
from energylens.errors import UsageError
from energylens.instrument import doctor
from energylens.instrument.doctor import Status
from energylens.instrument.engine import Layout
from energylens.instrument.meter import MeterError
from instrument_fakes import FakeNvml, VirtualMeter


def by_name(report: doctor.Report) -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in report.findings}


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("pynvml", "zeus"):
        monkeypatch.setitem(sys.modules, package, None)


@pytest.mark.usefixtures("bare")
def test_a_machine_without_a_counter_can_only_estimate(tmp_path: Path) -> None:
    report = doctor.examine(tmp_path)
    found = by_name(report)
    assert not report.can_measure
    assert report.meter is None
    assert found["meter nvml"].status is Status.MISSING
    assert "energylens[nvml]" in found["meter nvml"].detail
    assert found["meter estimated"].status is Status.OK
    assert "estimated" in found["meter estimated"].detail
    assert found[f"disk at {tmp_path}"].status in (Status.OK, Status.WARNING)


@pytest.mark.usefixtures("bare")
def test_a_gpu_with_a_counter_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(period_s=0.02))
    report = doctor.examine(tmp_path)
    found = by_name(report)
    assert report.meter == "nvml"
    assert "moves every" in found["meter nvml"].detail
    assert "in steps of" in found["meter nvml"].detail
    assert found["meter nvml: driver_version"].detail == "570.1"
    assert found["meter nvml: gpu0"].status is Status.WARNING  # the fake one is throttled
    assert "hardware_thermal" in found["meter nvml: gpu0"].detail


@pytest.mark.usefixtures("bare")
def test_a_divided_gpu_and_other_processes_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(mig=True))
    assert "MIG" in by_name(doctor.examine(tmp_path))["meter nvml"].detail
    busy = FakeNvml(period_s=0.02)
    busy.nvmlDeviceGetComputeRunningProcesses = lambda _: [1, 2]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pynvml", busy)
    finding = by_name(doctor.examine(tmp_path))["meter nvml: processes"]
    assert finding.status is Status.WARNING
    assert finding.detail.startswith("2 compute processes")


@pytest.mark.usefixtures("bare")
def test_a_driver_without_permission_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbidden = FakeNvml()
    forbidden.init_error = 4
    monkeypatch.setitem(sys.modules, "pynvml", forbidden)
    finding = by_name(doctor.examine(tmp_path))["meter nvml"]
    assert "permission is denied" in finding.detail
    assert "container" in finding.advice


@pytest.mark.usefixtures("bare")
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    finding = by_name(doctor.examine(missing))[f"disk at {missing}"]
    assert finding.status is Status.WARNING
    assert finding.advice


@pytest.mark.usefixtures("bare")
def test_every_missing_thing_comes_with_advice_or_a_way_to_install_it(tmp_path: Path) -> None:
    for finding in doctor.examine(tmp_path).findings:
        if finding.status is Status.MISSING:
            assert finding.advice or "pip install" in finding.detail


# ------------------------------------------------------------------------------------------ idle


def test_idle_is_measured_before_and_with_an_llm_loaded() -> None:
    from energylens.instrument.engines import open_engine

    layout = Layout(
        llm=catalog.llm("Qwen/Qwen3-8B"),
        precision=catalog.precision("bf16"),
        tensor_parallel=2,
        max_sequences=1,
        max_sequence_tokens=64,
        gpu=catalog.gpu("H100"),
    )
    found = doctor.measure_idle(engine=open_engine("simulated"), layout=layout, seconds=1.0)
    assert found.source == "simulated"
    assert (len(found.now_w), len(found.loaded_w)) == (0, 2)
    assert found.loaded_idle_w == pytest.approx(found.loaded_w[0])
    assert found.loaded_idle_w is not None
    assert 40 < found.loaded_idle_w < 200
    assert any("loaded_idle_w" in sentence for sentence in found.sentences())


class Steady(VirtualMeter):
    def wait(self, seconds: float) -> None:
        self.power_w[:] = [70.0, 62.0][: len(self.power_w)]
        super().wait(seconds)


def test_idle_of_a_meter_is_watts_of_each_gpu() -> None:
    found = doctor.measure_idle(Steady(gpus=2), seconds=5.0)
    assert found.now_w == pytest.approx((70.0, 62.0))
    assert found.loaded_idle_w is None
    with pytest.raises(UsageError, match="3600"):
        doctor.measure_idle(Steady(), seconds=0.0)
    with pytest.raises(UsageError, match="meter"):
        doctor.measure_idle()


def test_a_meter_that_stands_still_has_no_idle_power() -> None:
    meter = VirtualMeter(gpus=1)
    meter.power_w = [0.0]
    with pytest.raises(MeterError):
        doctor.measure_idle(meter, seconds=1.0)


def test_doctor_says_idle_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["doctor", "--idle", "--llm", "Qwen/Qwen3-8B", "--engine", "simulated", "--json"]
    assert main([*asked, "--seconds", "1"]) == 0
    idle = json.loads(capsys.readouterr().out)["idle"]
    assert idle["loaded_idle_w"] > 40
    assert idle["llm"] == "Qwen/Qwen3-8B"
    assert main(["doctor", "--idle", "--meter", "estimated", "--seconds", "0.2"]) == 0
    assert "at rest" in capsys.readouterr().out
    assert main(["doctor", "--llm", "Qwen/Qwen3-8B"]) in (1, 2)
