"""``energylens watch``: counters read, windows judged, drift told, metrics published."""

from __future__ import annotations

import contextlib
import csv
import datetime
import json
import math
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.simulated_server import (
    Arrival,
    SimulatedServer,
    over_http,
    trace_like_the_public_one,
)

from energylens import catalog, fitting
from energylens.cases import Cases
from energylens.cli import main
from energylens.dataset import Dataset
from energylens.errors import InputError, MeasurementError, UsageError
from energylens.instrument.engines.simulation import VERSION, simulate_steady_state
from energylens.instrument.meter import Channel, ChannelKind, MeterError, Reading
from energylens.instrument.meters import CombinedMeter, open_meter
from energylens.latency_fitting import fit_latency
from energylens.model import EnergyModel
from energylens.records import Case, Configuration, Engine, Source, Workload
from energylens.scraping import ScrapeError, endpoint, fetch, parse
from energylens.watching.counters import NAMES, MetricsError, read_counters
from energylens.watching.drift import Drift
from energylens.watching.expecting import Done, Expectation, Expected
from energylens.watching.publishing import registry, serve_metrics
from energylens.watching.watcher import Watcher
from energylens.watching.windows import Window
from energylens.watching.work import work_of_tokens

pytest.importorskip("prometheus_client")

LLM, GPU = "meta-llama/Llama-3.1-8B-Instruct", "H100-SXM-80GB"
SHARED = Path(__file__).parents[2] / "shared"
TRACE = SHARED / "data" / "azure-llm-trace" / "conv-2023.csv"
SAMPLES = SHARED / "samples"


def case_of(batch: float = 256, input_tokens: float = 1.0, output_tokens: float = 1.0) -> Case:
    return Case(
        llm=catalog.llm(LLM),
        gpu=catalog.gpu(GPU),
        precision=catalog.precision("bf16"),
        workload=Workload(input_tokens=input_tokens, output_tokens=output_tokens),
        configuration=Configuration(batch_size=batch),
        engine=Engine(name="simulated", version=VERSION),
    )


@pytest.fixture(scope="module")
def model() -> EnergyModel:
    """A model fitted to 20 rows of the simulator, each a batch kept full."""
    lengths = ((128, 256), (512, 128), (1024, 256), (2048, 128), (4096, 64))
    grid = [case_of(batch, *pair) for batch in (1, 4, 16, 64) for pair in lengths]
    runs = [simulate_steady_state(case, 7, steps=200) for case in grid]

    def column(name: str) -> Any:
        return np.array([getattr(run, name) for run in runs])

    def words(text: str) -> Any:
        return np.array([text] * len(grid), dtype=object)

    times = ("mean_batch_size", "tpot_s", "ttft_s", "request_latency_s")
    unknown = np.full(len(grid), np.nan)
    rows = Dataset(
        cases=Cases.of(grid).replace(**{name: column(name) for name in times}),
        energy_per_request_j=column("energy_per_request_j"),
        prefill_energy_per_request_j=unknown,
        decode_energy_per_request_j=unknown,
        modality=words("text"),
        task=words(""),
        source=words(Source.SIMULATED),
        origin=words("tests/test_watch.py seed 7"),
        assumed=words(""),
    )
    assert len(rows) == 20
    return replace(fitting.fit(rows, fitting.FitOptions()), time=fit_latency(rows))


class Deployment:
    """What runs at an address: a server that may be replaced by another one."""

    real_time = False
    name, source, period_s = "simulated", Source.SIMULATED, 0.0

    def __init__(self, server: SimulatedServer) -> None:
        self.server = server
        self.channels = server.channels

    def replace(self, arrivals: list[Arrival], slower: float) -> None:
        """Stop what runs and start a slower engine: its counters begin at 0, the GPUs' go on."""
        old = self.server
        self.server = SimulatedServer(
            old.case,
            [a for a in arrivals if a[0] >= old.now_s()],
            slower=slower,
            started_s=old.now_s(),
            energy_j=old.energy_j,
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self.server, name)


def watched(
    server: Any, model: EnergyModel | None, *, idle_w: float | None = None, **settings: Any
) -> Watcher:
    expectation = None
    if model is not None:
        idle = server.idle_w / len(server.channels) if idle_w is None else idle_w
        expectation = Expectation(model, server.case, loaded_idle_w=idle)
    return Watcher(lambda: read_counters(server.metrics()), server, expectation, **settings)


def windows(watcher: Watcher, number: int) -> list[Window]:
    told: list[Window] = []
    watcher.run(number, told.append)
    return told


def public_trace(seconds: float, rate: float) -> list[Arrival]:
    arrivals, first = [], None
    with TRACE.open() as file:
        for row in csv.DictReader(file):
            at = datetime.datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp()
            first = at if first is None else first
            when = (at - first) / rate
            if when >= seconds:
                break
            output = max(int(row["GeneratedTokens"]), 1)
            arrivals.append((when, int(row["ContextTokens"]), output))
    return arrivals


# --------------------------------------------------------------- a trace, and a slower engine


@pytest.mark.parametrize("trace", ["public", "seeded"])
def test_expected_joules_are_those_of_the_simulated_server_until_it_gets_slower(
    trace: str, model: EnergyModel
) -> None:
    if trace == "public" and not TRACE.exists():
        pytest.skip(f"needs {TRACE}")
    seconds, before, after = 480.0, 5, 2
    arrivals = (
        public_trace(seconds, 0.5)
        if trace == "public"
        else trace_like_the_public_one(seconds, 2.0, 3)
    )
    deployment = Deployment(SimulatedServer(case_of(), arrivals))
    watcher = watched(deployment, model)
    told = windows(watcher, before)
    assert [w.problem for w in told] == [""] * before
    measured = sum(w.energy_j or 0.0 for w in told)
    expected = sum(w.expected.energy_j for w in told if w.expected is not None)
    assert expected == pytest.approx(measured, rel=0.05)
    assert [w.drift_ratio for w in told] == pytest.approx([1.0] * before, rel=0.08)
    assert [w.time_drift_ratio for w in told] == pytest.approx([1.0] * before, rel=0.1)
    assert not any(w.alarm for w in told)
    assert {w.source for w in told} == {"simulated"}

    deployment.replace(arrivals, slower=1.3)
    [restart, *later] = windows(watcher, 1 + after)
    assert "started anew" in restart.problem
    assert not restart.alarm
    assert watcher.totals.restarts == 1
    assert any(w.alarm for w in later), [w.drift_ratio for w in later]
    assert "measure" in later[-1].alarm
    assert "times lie" in later[-1].alarm


def test_times_are_judged_where_prompts_crowd_the_steps_too(model: EnergyModel) -> None:
    arrivals = trace_like_the_public_one(400.0, 10.0, 7)
    deployment = Deployment(SimulatedServer(case_of(), arrivals))
    watcher = watched(deployment, model)
    told = windows(watcher, 3)
    assert [w.time_drift_ratio for w in told] == pytest.approx([1.0] * 3, rel=0.1)
    # Tokens in bursts wait for more prompts than the mean step has.
    assert max((w.tpot_s or 0.0) / (w.expected_tpot_s or 1.0) for w in told) > 1.1
    deployment.replace(arrivals, slower=1.3)
    assert any("times lie" in w.alarm for w in windows(watcher, 3))


def test_times_are_not_judged_by_chance() -> None:
    def of(**more: Any) -> Expected:
        joules = {"energy_j": 1.0, "idle_j": 0.0, "empty_ratio": 0.0, "basis": "engine steps"}
        times = {"mean_batch_size": 4.0, "tpot_s": 0.01, "busy_s": 50.0, "decode_ratio": 0.95}
        given: dict[str, Any] = joules | times
        return Expected(**(given | more))

    full, idle = done_of(empty_ratio=0.0), done_of(empty_ratio=0.7)
    assert of().time_ratio(idle, 0.012) == pytest.approx(1.2)
    crowded = of(decode_ratio=0.7)
    assert crowded.time_ratio(full, 0.05) == pytest.approx(60.0 / 50.0)
    assert crowded.time_ratio(idle, 0.05) is None
    assert of(decode_ratio=0.7, busy_s=None).time_ratio(full, 0.05) is None
    assert of(tpot_s=None, busy_s=None).time_ratio(full, 0.05) is None


def test_a_meter_that_is_updated_every_30_s_says_the_same(model: EnergyModel) -> None:
    arrivals = trace_like_the_public_one(300.0, 2.0, 5)
    told = windows(watched(SimulatedServer(case_of(), arrivals, period_s=30.0), model), 3)
    assert [w.drift_ratio for w in told] == pytest.approx([1.0] * 3, rel=0.08)


def test_without_steps_requests_in_flight_say_how_full_they_were(model: EnergyModel) -> None:
    arrivals = trace_like_the_public_one(240.0, 2.0, 5)
    hidden = frozenset({"vllm:iteration_tokens_total_count"})
    told = windows(watched(SimulatedServer(case_of(), arrivals, hidden=hidden), model), 3)
    assert {w.expected.basis for w in told if w.expected} == {"token rates"}
    measured = sum(w.energy_j or 0.0 for w in told)
    assert sum(w.expected.energy_j for w in told if w.expected) == pytest.approx(measured, rel=0.1)
    assert any("steps" in note for note in told[0].notes)


def test_a_window_without_requests_is_idle_and_teaches_what_idle_gpus_draw(
    model: EnergyModel,
) -> None:
    server = SimulatedServer(case_of(), [])
    watcher = watched(server, model, idle_w=10.0)
    [window] = windows(watcher, 1)
    assert window.power_w == pytest.approx(server.idle_w)
    assert watcher.expectation is not None
    assert watcher.expectation.loaded_idle_w == pytest.approx(server.idle_w)
    assert window.expected_power_w == pytest.approx(server.idle_w)
    assert window.idle_energy_ratio == pytest.approx(1.0)
    assert window.energy_per_request_j is None
    assert window.energy_per_output_token_j is None
    assert window.saving is None
    assert window.drift_ratio is None
    text = exposed(watcher)
    assert "per_output_token" not in text
    assert "per_token" not in text
    assert "per_request" not in text
    assert "saving" not in text
    assert f'energylens_power_watts{{model="{LLM}",source="simulated"}}' in text


def test_what_could_be_saved_is_told_and_is_nothing_where_the_best_runs(
    model: EnergyModel,
) -> None:
    wasteful = replace(case_of(), configuration=Configuration(tensor_parallel=4, batch_size=256))
    done = Done(
        seconds=60.0,
        requests=120.0,
        prompts=120.0,
        prompt_tokens=120e3,
        output_tokens=24e3,
        steps=8e3,
        running=(3.0,) * 60,
        empty_ratio=0.1,
    )
    saving = Expectation(model, wasteful).saving(done)
    assert saving is not None
    assert saving.ratio > 0.2
    assert saving.best_gpus < 4
    best = replace(case_of(), configuration=Configuration(batch_size=1024))
    own = Expectation(model, best).saving(done)
    assert own is not None
    assert own.ratio < 0.02


# --------------------------------------------------------------------- what engines show

VLLM_OLD = """\
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{model_name="a"} 100.0
vllm:prompt_tokens_total{model_name="b"} 7.0
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{model_name="a"} 50.0
vllm:generation_tokens_total{model_name="b"} 3.0
# TYPE vllm:request_success_total counter
vllm:request_success_total{finished_reason="stop",model_name="a"} 4.0
vllm:request_success_total{finished_reason="length",model_name="a"} 1.0
vllm:request_success_total{finished_reason="length",model_name="b"} 1.0
# TYPE vllm:time_per_output_token_seconds histogram
vllm:time_per_output_token_seconds_sum{model_name="a"} 2.0
vllm:time_per_output_token_seconds_count{model_name="a"} 40.0
vllm:kv_cache_usage_perc{model_name="a"} NaN
"""

SGLANG = """\
# TYPE sglang:prompt_tokens_total counter
sglang:prompt_tokens_total{model_name="m"} 1000.0
# TYPE sglang:generation_tokens_total counter
sglang:generation_tokens_total{model_name="m"} 500.0
# TYPE sglang:num_requests_total counter
sglang:num_requests_total{model_name="m"} 10.0
# TYPE sglang:cached_tokens_total counter
sglang:cached_tokens_total{cache_source="device",model_name="m"} 150.0
sglang:cached_tokens_total{cache_source="host",model_name="m"} 50.0
sglang:cached_tokens_total{cache_source="total",model_name="m"} 200.0
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{model_name="m",tp_rank="0"} 3.0
sglang:num_running_reqs{model_name="m",tp_rank="1"} 3.0
# TYPE sglang:num_queue_reqs gauge
sglang:num_queue_reqs{model_name="m",tp_rank="0"} 1.0
"""


def test_old_names_and_several_models_of_vllm() -> None:
    both = read_counters(VLLM_OLD)
    assert (both.engine, both.model_names) == ("vllm", ("a", "b"))
    assert (both.requests, both.prompt_tokens, both.output_tokens) == (6.0, 107.0, 53.0)
    one = read_counters(VLLM_OLD, model_name="a")
    assert (one.requests, one.output_tokens, one.gaps, one.gaps_s) == (5.0, 50.0, 40.0, 2.0)
    assert one.steps is None
    assert one.running is None
    with pytest.raises(MetricsError, match="serves a, b, not 'c'"):
        read_counters(VLLM_OLD, model_name="c")


def test_the_ranks_of_sglang_count_once() -> None:
    found = read_counters(SGLANG)
    assert (found.engine, found.running, found.waiting) == ("sglang", 3.0, 1.0)
    assert (found.cached_tokens, found.requests) == (200.0, 10.0)


def test_replicas_of_sglang_whose_ranks_are_numbered_through_count_each() -> None:
    gauges = "".join(
        f'sglang:num_running_reqs{{dp_rank="{dp}",model_name="m",tp_rank="{tp}"}} {running}\n'
        for dp, tp, running in ((0, 0, 5), (0, 1, 5), (1, 2, 7), (1, 3, 7))
    )
    text = SGLANG.replace('sglang:num_running_reqs{model_name="m",tp_rank="0"} 3.0\n', gauges)
    text = text.replace('sglang:num_running_reqs{model_name="m",tp_rank="1"} 3.0\n', "")
    assert read_counters(text).running == 12.0
    alone = "\n".join(
        x for x in SGLANG.splitlines() if 'source="d' not in x and 'source="h' not in x
    )
    assert read_counters(alone + "\n").cached_tokens == 200.0


@pytest.mark.parametrize(("asked", "hits", "found"), [(6.0, 2.0, 64.0), (100.0, 40.0, 40.0)])
def test_early_vllm_counts_its_cache_in_blocks_or_in_tokens(
    asked: float, hits: float, found: float
) -> None:
    early = (
        f'vllm:gpu_prefix_cache_queries_total{{model_name="a"}} {asked}\n'
        f'vllm:gpu_prefix_cache_hits_total{{model_name="a"}} {hits}\n'
        'vllm:cache_config_info{block_size="32",model_name="a"} 1.0\n'
    )
    assert read_counters(VLLM_OLD + early).cached_tokens == found
    assert read_counters(VLLM_OLD).cached_tokens is None


def test_what_an_engine_does_not_count_and_models_taken_as_one_are_said() -> None:
    texts = iter([VLLM_OLD, VLLM_OLD.replace("50.0", "90.0")])
    watcher = Watcher(lambda: read_counters(next(texts)), None, None, window_s=1e-9, poll_s=1e-9)
    [window] = windows(watcher, 1)
    said = " ".join(window.notes)
    assert "tokens found in a cache" in said
    assert "serves a and b, which are taken as one" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must show metrics of vLLM or SGLang"),
        ("DCGM_FI_DEV_GPU_UTIL 3\n", "must show metrics of vLLM or SGLang"),
        ('vllm:num_requests_running{model_name="a"} 0\n', "does not show"),
        (VLLM_OLD.replace("50.0", "NaN").replace("3.0", "+Inf"), "generation_tokens"),
        ("vllm:prompt_tokens_total{broken 1\n", "not with metrics of Prometheus"),
        ("vllm:prompt_tokens_total one\n", "not with metrics of Prometheus"),
        ("<html>vllm: a page</html>\n", "must show metrics"),
    ],
)
def test_what_is_no_engine_is_said(text: str, said: str) -> None:
    with pytest.raises(MeasurementError, match=said):
        read_counters(text)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [n for names in NAMES["vllm"].values() for n in names]
                + ["vllm:request_prompt_tokens_bucket", "sglang:num_requests_total", "vllm:x"]
            ),
            st.dictionaries(st.sampled_from(["le", "model_name", "tp_rank"]), st.text(max_size=5)),
            st.one_of(st.floats(), st.text(max_size=5)),
        ),
        max_size=30,
    )
)
def test_whatever_an_endpoint_says_is_numbers_or_one_error(lines: list[Any]) -> None:
    text = ""
    for name, labels, value in lines:
        inner = ",".join(f'{key}="{label}"' for key, label in labels.items())
        text += f"{name}{{{inner}}} {value}\n"
    try:
        found = read_counters(text)
    except MeasurementError:
        return
    assert found.since(found) is not None


def test_an_engine_that_starts_anew_says_nothing_of_the_time_between() -> None:
    before = read_counters(VLLM_OLD)
    assert before.since(before) is not None
    assert read_counters(VLLM_OLD.replace("100.0", "90.0")).since(before) is None
    later = VLLM_OLD.replace("100.0", "200.0")
    assert read_counters(later).since(before)["prompt_tokens"] == 100.0  # type: ignore[index]
    # Counters that have grown beyond the old ones since: the start of the process tells.
    one, two = (f"process_start_time_seconds {s}\n" for s in (1.0, 2.0))
    assert read_counters(later + two).since(read_counters(VLLM_OLD + one)) is None


def test_a_real_vllm_and_a_real_dcgm_exporter_are_read() -> None:
    folder = SAMPLES / "vllm_metrics"
    if not folder.exists():
        pytest.skip(f"needs {folder}")
    found = read_counters((folder / "metrics_vllm_0_25_1_idle.txt").read_text())
    assert found.model_names == ("opt-125m-tp2",)
    assert (found.requests, found.steps, found.flop_per_gpu, found.running) == (0, 0, 0, 0)
    text = (SAMPLES / "dcgm" / "dcgm-gb200.txt").read_text()
    with over_http(lambda: text) as url:
        meter = open_meter(f"dcgm:{url}?gpu=1,2")
        assert [c.name for c in meter.channels] == ["NVIDIA GB200"] * 2
        assert meter.source is Source.MEASURED
        assert all(joules >= 0 for joules in meter.read().energy_j)


# --------------------------------------------------------------------- exporters as meters

DCGM = """\
# TYPE DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION counter
DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{gpu="0",UUID="GPU-a",modelName="H100",Hostname="n"} 5000
DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{gpu="0",UUID="GPU-a",GPU_I_ID="1",Hostname="n"} 5000
DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{gpu="1",UUID="GPU-b",modelName="H100",Hostname="n"} 7000
"""


def test_dcgm_counts_millijoules_and_each_gpu_once() -> None:
    with over_http(lambda: DCGM) as url:
        assert open_meter(f"dcgm:{url}").read().energy_j == (5.0, 7.0)
        assert open_meter(f"dcgm:{url}?gpu=1").read().energy_j == (7.0,)
        both = open_meter(f"dcgm:{url}?gpu=0,dcgm:{url}?gpu=1")
        assert isinstance(both, CombinedMeter)
        assert both.read().energy_j == (5.0, 7.0)
        with pytest.raises(MeterError, match="no GPU 5; it has 0, 1"):
            open_meter(f"dcgm:{url}?gpu=5")
        with pytest.raises(UsageError, match="must list numbers"):
            open_meter(f"dcgm:{url}?gpu=all")


def test_watts_of_dcgm_are_integrated_where_it_has_no_joules() -> None:
    text = 'DCGM_FI_DEV_POWER_USAGE{gpu="0",UUID="GPU-a"} 100\n'
    with over_http(lambda: text) as url:
        meter = open_meter(f"dcgm:{url}")
        first, second = meter.read(), (time.sleep(0.05), meter.read())[1]
    seconds = second.time_s - first.time_s
    assert second.energy_j[0] - first.energy_j[0] == pytest.approx(100 * seconds)
    assert "integrated" in meter.provenance()["dcgm_metric"]


@pytest.mark.parametrize("text", ['DCGM_FI_DEV_GPU_UTIL{gpu="0"} 3\n', "", "hello"])
def test_an_exporter_without_joules_or_watts_is_refused(text: str) -> None:
    with over_http(lambda: text) as url, pytest.raises(MeterError, match="must export"):
        open_meter(f"dcgm:{url}")


def test_zeusd_is_read_and_what_is_none_is_refused() -> None:
    answer = json.dumps({"0": {"energy_mj": 1500}, "1": {"energy_mj": 2500}})
    with over_http(lambda: answer) as url:
        base = url.removesuffix("/metrics")
        assert open_meter(f"zeusd:{base}").read().energy_j == (1.5, 2.5)
    for wrong in ("[]", "no json", '{"gpu": 1}', '{"0": {"energy_mj": "x"}}', "{}"):
        text = wrong
        with over_http(lambda: text) as url, pytest.raises(MeterError):  # noqa: B023
            open_meter(f"zeusd:{url.removesuffix('/metrics')}")


def test_addresses() -> None:
    assert endpoint("node:8000") == "http://node:8000/metrics"
    assert endpoint("https://node/x/metrics?a=1") == "https://node/x/metrics?a=1"
    for wrong in ("ftp://node", "", "http://", "http://node:99999/"):
        with pytest.raises(UsageError, match="must be an address"):
            endpoint(wrong)
    with pytest.raises(ScrapeError, match="does not answer"):
        fetch(f"http://127.0.0.1:{free_port()}/metrics")


# ------------------------------------------------------------------- what goes wrong, is said


class FakeMeter:
    """A meter whose joules and clock a test sets."""

    real_time, name, source, period_s = False, "fake", Source.MEASURED, 0.0
    channels = (Channel(id="gpu0", kind=ChannelKind.GPU),)

    def __init__(self) -> None:
        self.at, self.joules, self.watts = 0.0, 0.0, 100.0
        self.fails = False

    def read(self) -> Reading:
        if self.fails:
            raise MeterError("the GPU has fallen off the bus.")
        return Reading(time_s=self.at, energy_j=(self.joules,))

    def states(self) -> tuple[()]:
        return ()

    def provenance(self) -> Mapping[str, str]:
        return {}

    def now_s(self) -> float:
        return self.at

    def wait(self, seconds: float) -> None:
        self.at += seconds
        self.joules += self.watts * seconds

    def close(self) -> None:
        pass


def text_of(requests: float, tokens: float, running: float) -> str:
    return (
        f'vllm:prompt_tokens_total{{model_name="m"}} {10 * tokens}\n'
        f'vllm:generation_tokens_total{{model_name="m"}} {tokens}\n'
        f'vllm:request_success_total{{model_name="m"}} {requests}\n'
        f'vllm:num_requests_running{{model_name="m"}} {running}\n'
    )


def test_an_engine_that_does_not_answer_is_said_once_in_a_windows_time() -> None:
    meter = FakeMeter()

    def silent() -> Any:
        raise MeasurementError("http://node:8000/metrics does not answer: refused.")

    watcher = Watcher(silent, meter, None, window_s=10.0)
    told = windows(watcher, 2)
    assert all("does not answer" in w.problem for w in told)
    assert meter.at == pytest.approx(20.0)
    assert not watcher.engine_up
    assert "energylens_engine_up" in exposed(watcher)


def test_numbers_that_stand_still_while_requests_run_are_stale() -> None:
    watcher = Watcher(lambda: read_counters(text_of(5, 50, 3)), FakeMeter(), None, window_s=10.0)
    [window] = windows(watcher, 1)
    assert "stand still while 3 requests run" in window.problem
    assert window.energy_j is None
    assert "energylens_window_valid{" in exposed(watcher)
    assert "energylens_power_watts" not in exposed(watcher)


def test_a_meter_that_stands_still_fails_or_starts_anew_gives_no_joules() -> None:
    meter = FakeMeter()
    meter.watts = 0.0
    engine = lambda: read_counters(text_of(5, 50, 0))  # noqa: E731
    watcher = Watcher(engine, meter, None, window_s=10.0)
    [window] = windows(watcher, 1)
    assert "stood still" in window.problem
    assert window.energy_j is None

    meter = FakeMeter()
    watcher = Watcher(engine, meter, None, window_s=10.0)
    meter.fails = True
    [window] = windows(watcher, 1)
    assert "fallen off the bus" in window.problem
    assert not watcher.meter_up

    meter = FakeMeter()
    watcher = Watcher(engine, meter, None, window_s=10.0)
    for _ in range(5):
        watcher.poll()
        meter.wait(1.0)
    meter.joules = 1.0
    window = watcher.poll()
    assert window is not None
    assert "the meter's counter has started anew" in window.problem


def test_a_law_that_was_never_right_here_is_to_be_measured(model: EnergyModel) -> None:
    arrivals = trace_like_the_public_one(240.0, 2.0, 5)
    server = SimulatedServer(case_of(), arrivals, slower=2.0)
    told = windows(watched(server, model), 3)
    assert [bool(w.alarm) for w in told] == [False, False, True]
    assert "since watching began: measure" in told[-1].alarm
    watcher = watched(server, model)
    assert "energylens_drift_alarm" in exposed(watcher)


def test_idle_joules_are_never_more_than_all(model: EnergyModel) -> None:
    meter = FakeMeter()
    meter.watts = 3.0  # a guess, far below what the GPUs of the law draw
    looks = iter(range(1000))
    expectation = Expectation(model, case_of(), loaded_idle_w=100.0)

    def engine() -> Any:
        look = next(looks)
        return read_counters(text_of(look, 20.0 * look, look % 2))

    [window] = windows(Watcher(engine, meter, expectation, window_s=10.0), 1)
    assert window.idle_energy_ratio is not None
    assert 0.0 < window.idle_energy_ratio < 1.0


def test_numbers_that_cannot_be_are_no_window(model: EnergyModel) -> None:
    meter, looks = FakeMeter(), iter(range(1000))

    def endless() -> Any:
        look = next(looks)
        return read_counters(text_of(look, 1e300 * look, 2))

    expectation = Expectation(model, case_of())
    [window] = windows(Watcher(endless, meter, expectation, window_s=10.0), 1)
    assert "endless" in window.problem


def test_one_look_that_is_missed_is_no_matter() -> None:
    meter = FakeMeter()
    seen = iter(range(1000))

    def engine() -> Any:
        look = next(seen)
        if look == 4:
            raise MeasurementError("a hiccup")
        return read_counters(text_of(look, 20.0 * look, 2))

    [window] = windows(Watcher(engine, meter, None, window_s=10.0), 1)
    assert not window.problem
    assert window.energy_j == pytest.approx(1000.0)
    assert window.energy_per_request_j == pytest.approx(100.0)


def test_gpus_of_the_meter_must_be_those_of_the_deployment(model: EnergyModel) -> None:
    two = replace(case_of(), configuration=Configuration(tensor_parallel=2, batch_size=8))
    with pytest.raises(UsageError, match="must read the 2 GPUs of the deployment, and reads 1"):
        Watcher(lambda: read_counters(""), FakeMeter(), Expectation(model, two))
    for wrong in ({"window_s": 0.0}, {"poll_s": 0.0}, {"window_s": 1.0, "poll_s": 2.0}):
        with pytest.raises(UsageError, match="a window must be as long"):
            Watcher(lambda: read_counters(""), FakeMeter(), None, **wrong)
    with pytest.raises(UsageError, match="the drift allowed"):
        Watcher(lambda: read_counters(""), FakeMeter(), None, drift_ratio=0.0)


# --------------------------------------------------------------------------------- drift


def test_two_windows_that_are_off_raise_the_alarm_and_one_does_not() -> None:
    for off in (1.12, 1 / 1.12, 2.0):
        drift = Drift(0.1)
        assert not any(drift.add(r) for r in (0.97, 1.0, 0.98, 1.02, 0.95, 1.04) * 5)
        assert not drift.add(0.98 * off)
        assert drift.add(0.98 * off)
        assert drift.off_ratio == pytest.approx(off - 1)
        assert drift.add(0.98)  # it stands until somebody has measured
        drift.restart()
        assert not drift.alarm
        assert drift.reference is None


def test_single_windows_far_off_raise_none() -> None:
    drift = Drift(0.1)
    assert not any(drift.add(r) for r in (1.0, 1.0, 1.0, 3.0, 1.0, 1.0, 3.0, 1.0, 1.0))


def test_slow_drift_is_found_too() -> None:
    drift = Drift(0.1)
    assert any(drift.add(1.01**k) for k in range(20))


def test_random_scatter_within_half_of_what_is_allowed_raises_none() -> None:
    random = np.random.RandomState(1)
    for _ in range(50):
        drift = Drift(0.1)
        assert not any(drift.add(math.exp(x)) for x in random.uniform(-0.02, 0.02, 200))


# ----------------------------------------------------------------- the engine's own work


def done_of(**changes: Any) -> Done:
    given = {
        "seconds": 60.0,
        "requests": 100.0,
        "prompts": 100.0,
        "prompt_tokens": 1e5,
        "output_tokens": 2e4,
        "steps": 5e3,
        "running": (4.0,) * 60,
        "empty_ratio": 0.0,
    }
    return Done(**(given | changes))


def test_flops_and_bytes_of_the_engine_correct_what_tokens_say(model: EnergyModel) -> None:
    expectation = Expectation(model, case_of())
    plain = expectation.of(done_of())
    lengths = done_of().lengths
    assert lengths is not None
    own = work_of_tokens(
        case_of(),
        prompts=100.0,
        prompt_tokens=1e5,
        decoded_tokens=2e4 - 100.0,
        steps=5e3,
        context_tokens=lengths.input_tokens + lengths.output_tokens * lengths.running_output_ratio,
        prompt_cv=1.0,
    )
    same = expectation.of(done_of(flop_per_gpu=own.flop, moved_bytes_per_gpu=own.moved_bytes))
    assert same.basis == "engine work"
    assert same.energy_j == pytest.approx(plain.energy_j)
    more = expectation.of(done_of(flop_per_gpu=1.5 * own.flop, moved_bytes_per_gpu=own.moved_bytes))
    assert 1.02 < more.energy_j / plain.energy_j < 1.5
    wider = expectation.of(
        done_of(flop_per_gpu=own.flop, moved_bytes_per_gpu=1.5 * own.moved_bytes)
    )
    assert 1.1 < wider.energy_j / plain.energy_j < 1.5
    other = expectation.of(done_of(flop_per_gpu=20 * own.flop, moved_bytes_per_gpu=own.moved_bytes))
    assert other.basis == "engine steps"
    assert other.energy_j == plain.energy_j


# ------------------------------------------------------------------------------- publishing


def exposed(watcher: Watcher) -> str:
    from prometheus_client import generate_latest

    return generate_latest(registry(watcher)).decode()


@pytest.fixture(scope="module")
def busy(model: EnergyModel) -> Watcher:
    """A watcher that has seen windows with everything in them."""
    server = SimulatedServer(
        replace(case_of(), configuration=Configuration(tensor_parallel=2, batch_size=64)),
        trace_like_the_public_one(130.0, 2.0, 4),
    )
    watcher = watched(server, model, window_s=30.0)
    windows(watcher, 4)
    return watcher


def test_all_metrics_are_there_and_parse_again(busy: Watcher) -> None:
    from energylens.watching import publishing

    text = exposed(busy)
    series = parse(text, ("energylens_", "gen_ai_"))
    names = {s.name for s in series}
    wanted = {name for name, *_ in (*publishing.GAUGES, *publishing.OTEL_GAUGES)}
    wanted |= {name for name, *_ in publishing.COUNTERS}
    wanted |= {"gen_ai_infrastructure_energy_joules_total", "energylens_drift_alarm"}
    wanted |= {"energylens_engine_up", "energylens_meter_up", "energylens_window_valid"}
    assert wanted | {"energylens_watch_info"} <= names
    last = busy.last
    assert last is not None
    value = {s.name: s.value for s in series}
    assert value["energylens_power_watts"] == pytest.approx(last.power_w)
    assert value["gen_ai_infrastructure_power_watts"] == pytest.approx(last.power_w)
    assert value["energylens_energy_joules_total"] == pytest.approx(busy.totals.energy_j)
    assert value["energylens_drift_ratio"] == pytest.approx(1.0, rel=0.1)
    # The power is that of the window: joules a request times requests a second.
    per_request = value["energylens_energy_per_request_joules"]
    rate = value["energylens_request_rate_per_second"]
    assert per_request * rate == pytest.approx(value["energylens_power_watts"])


def test_json_of_a_window_is_json(busy: Watcher) -> None:
    last = busy.last
    assert last is not None
    document = json.loads(json.dumps(last.to_json(), allow_nan=False))
    assert document["source"] == "simulated"
    assert document["best"]["configuration"]
    assert "(simulated)" in last.line()


def free_port() -> int:
    with contextlib.closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def test_a_port_that_is_taken_is_said(busy: Watcher) -> None:
    with contextlib.closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        with pytest.raises(InputError, match="cannot listen on"):
            serve_metrics(busy, "127.0.0.1", one.getsockname()[1])


PROMETHEUS = shutil.which("prometheus")


@pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed: apt-get install")
def test_a_real_prometheus_scrapes_it(busy: Watcher, tmp_path: Path) -> None:
    address, stop = serve_metrics(busy, "127.0.0.1", 0)
    port = free_port()
    config = tmp_path / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 1s, scrape_timeout: 1s}\n"
        "scrape_configs:\n- job_name: energylens\n  static_configs:\n"
        f"  - targets: ['{urllib.parse.urlsplit(address).netloc}']\n"
    )
    assert PROMETHEUS is not None
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [
                PROMETHEUS,
                f"--config.file={config}",
                f"--storage.tsdb.path={tmp_path / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stderr=file,
        )

    def asked(query: str) -> list[Any]:
        url = f"http://127.0.0.1:{port}/api/v1/query?" + urllib.parse.urlencode({"query": query})
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return list(json.load(answer)["data"]["result"])
        except OSError:
            return []

    try:
        found = asked("energylens_power_watts")
        while not found:
            if process.poll() is not None:
                pytest.fail(log.read_text()[-2000:])
            time.sleep(0.1)
            found = asked("energylens_power_watts")
        assert busy.last is not None
        assert float(found[0]["value"][1]) == pytest.approx(busy.last.power_w)
        assert found[0]["metric"]["source"] == "simulated"
        assert asked('up{job="energylens"}')[0]["value"][1] == "1"
        [up] = asked("energylens_engine_up == 1")
        assert up["metric"]["model"] == LLM
    finally:
        process.terminate()
        process.wait()
        stop()


# ------------------------------------------------------------------------- the command line


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Callable[[], None]]]:
    """A server over HTTP whose simulated time goes on with every look."""
    server = SimulatedServer(case_of(), trace_like_the_public_one(600.0, 2.0, 3))

    def look() -> str:
        server.wait(5.0)
        return server.metrics()

    with over_http(look) as url:
        yield url, lambda: None


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    try:
        code = main(["watch", *arguments])
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_command_prints_windows(live: Any, capsys: pytest.CaptureFixture[str]) -> None:
    url, _ = live
    code, out, err = run(
        capsys, "--engine", url, "--meter", "estimated", "--llm", LLM, "--gpu", GPU,
        "--current", "B256", "--window", "0.3", "--poll", "0.1", "--windows", "2", "--json",
        "--serve", "0",
    )  # fmt: skip
    assert code == 0, err
    decoder = json.JSONDecoder()
    first, end = decoder.raw_decode(out)
    second, _ = decoder.raw_decode(out[end:].lstrip())
    for window in (first, second):
        assert window["source"] == "estimated"
        assert window["power_w"] > 0
        assert window["expected_energy_per_request_j"] > 0
        assert window["problem"] is None
    assert "Metrics for Prometheus at http://127.0.0.1:" in err


def test_without_a_law_joules_are_measured_alone(
    live: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    url, _ = live
    code, out, err = run(
        capsys, "--engine", url, "--meter", "estimated", "--window", "0.2", "--poll", "0.1",
        "--windows", "1",
    )  # fmt: skip
    assert code == 0, err
    assert "W (estimated)" in out
    assert "expected" not in out
    assert "none expected" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--engine", "ftp://x"), "must be an address"),
        (("--engine", "x", "--llm", LLM), "both --llm and --gpu"),
        (("--engine", "x", "--meter", "none"), "say what runs"),
        (("datasheet", "--engine", "x"), "give --llm and --gpu"),
        (("--engine", "x", "--llm", "nobody/nothing", "--gpu", GPU), "unknown LLM"),
        (("--engine", "x", "--serve", "70000"), "must be a port"),
        (("--engine", "x", "--llm", LLM, "--gpu", GPU, "--current", "TP0"), "must be a layout"),
    ],
)
def test_wrong_usage_is_one_clear_sentence(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (1 if said == "unknown LLM" else 2, "")
    assert said in err
    assert "Traceback" not in err


def test_without_the_extra_the_message_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from energylens.errors import MissingExtraError

    monkeypatch.setitem(sys.modules, "prometheus_client.parser", None)
    with pytest.raises(MissingExtraError, match=r"energylens\[watch\]"):
        parse("", ())
