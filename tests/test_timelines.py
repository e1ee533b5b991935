"""Power timelines of ML.ENERGY and Zeus: joules worked out by hand, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tests import import_documents as ours
from tests.import_fixtures import NOON, step, step_times, vllm_bench
from tests.test_fuzz_imports import check_benchmark, mutated

from energylens.importers import auto, documents
from energylens.importers.auto import Options
from energylens.importers.declared import Setup
from energylens.importers.energy_join import JoinOptions
from energylens.importers.power.series import Clock
from energylens.importers.runs import RefusedFileError

BEGIN, END = NOON + 30.0, NOON + 150.0  # of the run: 120 s
TIMES = np.arange(NOON, NOON + 180.0, 0.1)


def pairs_of(times, begin, end, watts):
    drawn = step(times, begin, end, 80.0, watts)
    return [[float(t), float(w)] for t, w in zip(times, drawn, strict=True)]


def timeline(watts=1000.0, domain="device_instant", gpus=("0",), **times):
    """One GPU that draws 80 W at rest and so many in the run, read ten times a second."""
    pairs = pairs_of(TIMES, BEGIN, END, watts)
    return {
        "benchmark_start_time": BEGIN,
        "benchmark_end_time": END,
        "steady_state_start_time": NOON + 60.0,
        "steady_state_end_time": NOON + 120.0,
        "power": {
            domain: dict.fromkeys(gpus, pairs),
            "memory_average": {gpu: [[NOON, 30.0], [NOON + 1, 30.0]] for gpu in gpus},
        },
    } | times


def imported(tmp_path, *texts):
    paths = []
    for place, text in enumerate(texts):
        path = tmp_path / f"f{place}.json"
        path.write_text(json.dumps(text))
        paths.append(path)
    setup = Setup(gpu="H100", gpus=1, engine="vllm", engine_version="0.11.1")
    return auto.read(paths, Options(setup=setup, join=JoinOptions(timezone="UTC")))


def test_the_timeline_of_a_file_must_give_the_joules_of_its_counter(tmp_path):
    # 60 s at 1000 W are 60,000 J, as the counter of the steady window says.
    rows, _ = imported(tmp_path, ours.mlenergy(timeline=timeline()))
    assert rows.dataset.energy_per_request_j[0] == pytest.approx(100.0)
    assert any("give 6e+04 J in the steady window" in note for note in rows.notes)
    with pytest.raises(RefusedFileError, match="give 42000 J in the same window"):
        imported(tmp_path, ours.mlenergy(timeline=timeline(700.0)))
    part = timeline()
    part["power"]["device_instant"]["0"] = part["power"]["device_instant"]["0"][:900]
    rows, _ = imported(tmp_path, ours.mlenergy(timeline=part))
    assert any("does not cover the steady window" in note for note in rows.notes)


def test_a_run_without_a_steady_window_is_taken_from_its_timeline(tmp_path):
    # 120 s at 500 W over 1000 requests: 60 J each.
    short = ours.mlenergy(timeline=timeline(500.0), steady_state_energy=0, steady_state_duration=0)
    rows, _ = imported(tmp_path, short)
    assert rows.dataset.energy_per_request_j[0] == pytest.approx(60.0, rel=0.005)
    assert rows.dataset.cases.average_power_w[0] == pytest.approx(500.0, rel=0.005)
    assert any("whole run, ramp included" in note for note in rows.notes)


@pytest.mark.parametrize("form", ["timeline", "power", "bare"])
def test_a_timeline_beside_another_benchmark_file(tmp_path, form):
    """120 s at 400 W over 240 requests: 200 J each."""
    power = {"device_instant": {"0": pairs_of(step_times(0.25), NOON + 180, NOON + 300, 400.0)}}
    document = {"timeline": {"timeline": {"power": power}}, "power": {"power": power}}
    rows, taken = imported(tmp_path, vllm_bench(), document.get(form, power))
    assert rows.dataset.energy_per_request_j[0] == pytest.approx(200.0, rel=0.005)
    assert taken[0].joined.active == ("0",)


def test_the_average_is_taken_where_there_is_nothing_better():
    text = json.dumps({"timeline": timeline(400.0, "device_average", ("0", "1"))})
    log = auto.log_of(documents.parse(text.encode(), "t.json"))
    assert log.format == "ML.ENERGY or Zeus power timeline"
    assert log.clock is Clock.EPOCH
    assert [item.label for item in log.series] == ["0", "1"]
    assert any("device_average" in note for note in log.notes)


@pytest.mark.parametrize(
    ("power", "said"),
    [
        ({"memory_average": {"0": [[NOON, 30.0]]}}, "memory alone"),
        ({"device_instant": [1, 2]}, "one timeline for each GPU"),
        ({"device_instant": {"0": 5}}, "is no list"),
        ({"device_instant": {"0": [[NOON, 1.0, 2.0]]}}, "pairs of seconds and watts"),
        ({"device_instant": {"0": [[NOON, "1"]]}}, "pairs of seconds and watts"),
        ({"device_instant": {"0": [[NOON, True]]}}, "pairs of seconds and watts"),
        ({"device_instant": {"0": []}}, "are empty"),
        ({"device_instant": {"0": [[NOON, -1.0], [NOON + 1, 2.0]]}}, "0 or more"),
        ({"device_instant": {"0": [[NOON, 4e5], [NOON + 1, 4e5]]}}, "in another unit"),
        ({"device_instant": {"0": [[NOON, 400.0]]}}, "two readings"),
    ],
)
def test_what_is_no_timeline_of_a_gpu_is_refused(power, said):
    text = json.dumps({"timeline": {"power": power}})
    with pytest.raises(RefusedFileError, match=said):
        auto.log_of(documents.parse(text.encode(), "t.json"))
    broken = json.dumps(ours.mlenergy(timeline={"power": power}))
    with pytest.raises(RefusedFileError, match=said):
        auto.runs_of(documents.parse(broken.encode(), "t.json"))


def test_windows_that_end_before_they_begin_are_refused():
    text = json.dumps(
        ours.mlenergy(timeline=timeline(steady_state_end_time=NOON, steady_state_start_time=END))
    )
    with pytest.raises(RefusedFileError, match="ends before it begins"):
        auto.runs_of(documents.parse(text.encode(), "t.json"))


def test_mutated_timelines_give_a_right_row_or_one_sentence():
    rng = np.random.default_rng(3)
    power = {"device_instant": {"0": pairs_of(np.arange(NOON, NOON + 180, 6.0), BEGIN, END, 1e3)}}
    document = ours.mlenergy(timeline=timeline(power=power))
    for _ in range(250):
        kept = json.loads(json.dumps(document))
        kept["timeline"] = mutated(kept["timeline"], rng)
        check_benchmark(json.dumps(kept).encode())
