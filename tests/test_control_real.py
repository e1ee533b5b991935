"""The admission proxy before a real vLLM (CPU, tiny LLM), and a controller that is killed.

It needs the environment of ``make test-engines``. How long work may take is told in what the same
computer takes when it is idle.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from energylens.catalog.hf_write import config_for
from energylens.instrument.engines.folders import write_folder
from energylens.instrument.engines.vllm_server import VllmServer
from energylens.instrument.meters.estimated import EstimatedMeter
from energylens.records import Attention, FeedForward, Llm
from energylens.watching.counters import read_counters

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: make test-engines"
    ),
]

DENSE = Llm(
    id="dense", layers=4, hidden_size=256, vocabulary_size=2048, total_parameters=10**7,
    active_parameters=10**7, attention=Attention(layers=4, heads=4, kv_heads=2, head_size=64),
    feed_forward=FeedForward(layers=4, size=768),
)  # fmt: skip
CONTROLLER = """
import sys, time
from energylens.online.actuators import Consent, Hand, make
target = sys.argv[1]
consent = Consent(actuator="proxy", targets=frozenset([target]), low=1, high=8)
hand = Hand(make("proxy"), consent, lease_s=30)
while True:
    hand.act(target, 3, {})
    print("acting", flush=True)
    time.sleep(0.01)
"""
OURS = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = write_folder(config_for(DENSE).config, tmp_path_factory.mktemp("llm"))
    arguments = {
        "model": str(folder), "served_model_name": "tiny", "load_format": "dummy",
        "skip_tokenizer_init": True, "enforce_eager": True, "max_model_len": 256,
        "max_num_seqs": 8, "dtype": "bfloat16",
    }  # fmt: skip
    environment = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"}
    with closing(VllmServer(arguments, os.environ | environment, 600.0)) as started:
        yield started.url


@pytest.fixture
def proxy(server: str) -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "energylens.online.proxy", server, "--port", "0"],
        stdout=subprocess.PIPE, text=True, env=os.environ | OURS,
    )  # fmt: skip
    assert process.stdout is not None
    yield process.stdout.readline().split()[0]
    process.kill()
    process.wait()
    process.stdout.close()


def ask(url: str) -> Any:
    prompt = {
        "model": "tiny", "prompt": [7] * 60, "max_tokens": 24, "min_tokens": 24,
        "ignore_eos": True, "detokenize": False, "return_token_ids": True,
    }  # fmt: skip
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(prompt).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


def text(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return str(answer.read().decode())


def load(url: str, server: str, requests: int) -> tuple[int, float]:
    """Ask at once; return how many were answered in full, and the most that vLLM ran."""
    answered: list[int] = []

    def one() -> None:
        answered.append(ask(url)["usage"]["completion_tokens"])

    threads = [threading.Thread(target=one) for _ in range(requests)]
    for thread in threads:
        thread.start()
    most = 0.0
    while any(thread.is_alive() for thread in threads):
        counted = read_counters(text(f"{server}/metrics"))
        most = max(most, (counted.running or 0.0) + (counted.waiting or 0.0))
        time.sleep(0.005)
    return sum(tokens == 24 for tokens in answered), most


def limit(proxy: str) -> Any:
    return json.loads(text(f"{proxy}/_energylens/limit"))["limit"]


def act(proxy: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", CONTROLLER, proxy], stdout=subprocess.PIPE, text=True,
        env=os.environ | OURS,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "acting\n"
    return process


FLEET = """
[serve]
llm = "meta-llama/Llama-3.1-8B-Instruct"
gpu = "H100"
replicas = 1
[limits]
ttft = "{ttft_ms:.0f}ms"
tpot = "{tpot_ms:.1f}ms"
share = {share}
[replica]
start_s = 20
[control]
interval_s = 2
"""
ALLOWED, CLIENTS, EACH = 3, 6, 6  # running at once; after the step; requests of each
SHARE = 0.9
# Steps of three sequences do at most the work of three, so that nothing takes more than three
# times as long as it does alone; as much again for whatever else this computer does meanwhile.
SLACK = 2.0


def timed(url: str) -> tuple[float, float]:
    """Seconds to the first token of one streamed request, and per token after it."""
    prompt = {
        "model": "tiny", "prompt": [7] * 60, "max_tokens": 24, "min_tokens": 24, "stream": True,
        "ignore_eos": True, "detokenize": False, "return_token_ids": True,
    }  # fmt: skip
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(prompt).encode(), {"content-type": "application/json"}
    )
    began, at, tokens = time.monotonic(), [], 0
    with urllib.request.urlopen(request, timeout=600) as answer:
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            choices = json.loads(line[6:]).get("choices") or [{}]
            if got := len(choices[0].get("token_ids") or ()):
                tokens += got
                at.append(time.monotonic())
    assert tokens == 24
    return at[0] - began, (at[-1] - at[0]) / (tokens - 1)


def clients(url: str, server: str, many: int, each: int) -> tuple[list[tuple[float, float]], float]:
    """Let some ask one request after the other; times of all, and the most that vLLM ran."""
    found: list[tuple[float, float]] = []

    def one() -> None:
        for _ in range(each):
            found.append(timed(url))

    threads = [threading.Thread(target=one) for _ in range(many)]
    for thread in threads:
        thread.start()
    most = 0.0
    while any(thread.is_alive() for thread in threads):
        counted = read_counters(text(f"{server}/metrics"))
        most = max(most, (counted.running or 0.0) + (counted.waiting or 0.0))
        time.sleep(0.05)
    assert len(found) == many * each
    return found, most


def test_control_holds_vllm_to_its_limits_under_a_step_of_load_with_joules_recorded(
    server: str, proxy: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Limits are told in what this very computer takes alone: they hold on any."""
    assert load(proxy, server, 2)[0] == 2
    alone, _ = clients(proxy, server, 1, 10)
    first, token = (statistics.median(part) for part in zip(*alone, strict=True))
    tpot_s = SLACK * ALLOWED * token
    # Who finds all places taken waits for one: no longer than one of three takes.
    ttft_s = SLACK * ALLOWED * (first + 23 * token + first)
    limits = {"ttft_ms": 1000 * ttft_s, "tpot_ms": 1000 * tpot_s, "share": SHARE}
    (tmp_path / "fleet.toml").write_text(FLEET.format(**limits))
    past = "\n".join(f"{k / 2},60,24" for k in range(400))
    (tmp_path / "past.csv").write_text(f"arrival_s,input_tokens,output_tokens\n{past}\n")
    log = tmp_path / "log.jsonl"
    # Vouched for by its bounds: what an H100 would be told is no measure of this computer.
    controller = subprocess.Popen(
        [
            sys.executable, "-m", "energylens", "control", "--fleet", str(tmp_path / "fleet.toml"),
            "--trace", str(tmp_path / "past.csv"), "--metrics", f"{server}/metrics",
            "--act", "proxy", "--allow", proxy, "--bounds", f"1,{ALLOWED}", "--log", str(log),
            "--json",
        ],
        stdout=subprocess.DEVNULL, env=os.environ | OURS,
    )  # fmt: skip

    def looked() -> list[dict[str, Any]]:
        lines = log.read_text().splitlines() if log.exists() else []
        return [json.loads(line) for line in lines]

    try:
        while limit(proxy) is None:
            assert controller.poll() is None
            clients(proxy, server, 1, 1)
        meter = EstimatedMeter()  # of this process and all it has started, vLLM among them
        before = meter.read()
        calm, _ = clients(proxy, server, 1, EACH)
        step, most = clients(proxy, server, CLIENTS, EACH)
        after = meter.read()
        assert limit(proxy) == ALLOWED
        known = len(looked())
        while len(looked()) < known + 6:  # it looks once more, and has judged them
            assert controller.poll() is None
            clients(proxy, server, 1, 1)
    finally:
        controller.kill()
        controller.wait()
    assert most <= ALLOWED
    for times in (calm, step):
        within = [ttft <= ttft_s and tpot <= tpot_s for ttft, tpot in times]
        assert sum(within) >= SHARE * len(within), (first, token, times)
    joules = after.energy_j[0] - before.energy_j[0]
    assert joules > 0
    ratios = [sorted(part)[int(0.9 * len(step))] for part in zip(*step, strict=True)]
    record_property("estimated_energy_per_request_j", joules / (len(calm) + len(step)))
    record_property("ttft_p90_over_limit", ratios[0] / ttft_s)
    record_property("tpot_p90_over_limit", ratios[1] / tpot_s)
    acted = [a for a in looked() if a.get("actuator") == "proxy"]
    assert acted
    assert {"saved_per_request_j", "ttft_ms", "tpot_ms"} <= set(acted[0])
    # The engine's own histograms tell the controller the same.
    assert acted[-1]["measured_requests"] > len(step) / 2
    assert acted[-1]["measured_within_limits_ratio"] >= SHARE
    while limit(proxy) is not None:
        time.sleep(0.05)
    assert load(proxy, server, 4)[0] == 4


def test_killing_the_controller_leaves_vllm_and_the_proxy_as_they_were(
    server: str, proxy: str
) -> None:
    rng = random.Random(14)
    for _ in range(20):
        controller = act(proxy)
        time.sleep(rng.uniform(0.0, 0.3))
        controller.send_signal(signal.SIGKILL)
        controller.wait()
        assert controller.stdout is not None
        controller.stdout.close()
        while limit(proxy) is not None:
            time.sleep(0.02)
    assert load(proxy, server, 4)[0] == 4
