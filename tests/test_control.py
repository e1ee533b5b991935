"""Control of a running fleet: consent, everything put back, no trust in nonsense."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

from energylens.cli import main
from energylens.errors import MeasurementError, UsageError
from energylens.online.actuators import (
    ACTUATORS,
    ActuatorError,
    Consent,
    Hand,
    NotNowError,
    RefusedError,
    ValueFile,
    make,
)
from energylens.online.controller import PATIENCE, Controller
from energylens.online.fleet import Fleet, fleet_of
from energylens.online.knowledge import Knowledge
from energylens.online.ours import Ours
from energylens.online.plans import Plan
from energylens.online.proxy import AdmissionProxy
from energylens.online.trace import Trace
from energylens.watching.counters import Counters

# ----------------------------------------------------------------------- servers that stand in


VLLM = """\
vllm:request_success_total{{model_name="m"}} 9
vllm:prompt_tokens_total{{model_name="m"}} 900
vllm:generation_tokens_total{{model_name="m"}} 90
vllm:num_requests_running{{model_name="m"}} {}
vllm:num_requests_waiting{{model_name="m"}} 0
"""


class Node(ThreadingHTTPServer):
    """The control endpoints of zeusd, SGLang and vLLM, as their documentation has them."""

    daemon_threads = True

    def __init__(self) -> None:
        self.limits_mw = {"0": 700_000, "1": 650_000}
        self.batch_limit = 256
        self.asleep: bool | str = False
        self.requests = 0
        self.broken: set[str] = set()
        self.seen: list[str] = []
        super().__init__(("127.0.0.1", 0), Answering)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Answering(BaseHTTPRequestHandler):
    server: Node

    def log_message(self, *_: object) -> None:
        pass

    def _give(self, document: Any, status: int = 200) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if parts.path == "/gpu/get_power_limit":
            limits = self.server.limits_mw.items()
            self._give({gpu: {"power_limit_mw": limit} for gpu, limit in limits})
        elif parts.path == "/get_server_info":
            state = {"pp_max_micro_batch_size": self.server.batch_limit}
            self._give({"max_running_requests": 999, "internal_states": [state]})
        elif parts.path == "/is_sleeping" and "/is_sleeping" not in self.server.broken:
            self._give({"is_sleeping": self.server.asleep})
        elif parts.path == "/metrics":
            self._text(VLLM.format(self.server.requests))
        else:
            self._give({}, 404)

    def _text(self, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def do_POST(self) -> None:
        parts = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        asked = parse_qs(parts.query)
        self.server.seen.append(self.path)
        if parts.path == "/gpu/set_power_limit":
            (gpu,), (limit,) = asked["gpu_ids"], asked["power_limit_mw"]
            if gpu in self.server.broken:
                self._give({"error": "no"}, 500)
                return
            self.server.limits_mw[gpu] = int(limit)
            self._give({})
        elif parts.path in ("/sleep", "/wake_up"):
            if parts.path in self.server.broken:
                self._give({}, 500)
                return
            self.server.asleep = parts.path == "/sleep"
            self._give({})
        elif parts.path == "/set_internal_state":
            self.server.batch_limit = json.loads(body)["server_args"]["pp_max_micro_batch_size"]
            self._give({})
        else:
            self._give({}, 404)


@pytest.fixture
def node() -> Iterator[Node]:
    server = Node()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def fake_smi(folder: Path) -> str:
    """Make a program with the options of nvidia-smi, which keeps its limit in a file."""
    (folder / "limit").write_text("700.00")
    program = folder / "nvidia-smi"
    program.write_text(
        textwrap.dedent(f"""\
            #!/bin/sh
            if [ "$3" = "-pl" ]; then echo "$4" > {folder}/limit; else cat {folder}/limit; fi
            """)
    )
    program.chmod(0o755)
    return str(program)


REASON = {"saved_per_request_j": 12.0, "ttft_ms": 300.0}


def allowed(name: str, *targets: str, low: float = 1.0, high: float = 800.0) -> Consent:
    return Consent(actuator=name, targets=frozenset(targets), low=low, high=high)


# -------------------------------------------------------------------------------- consent


@pytest.mark.parametrize("name", ACTUATORS)
def test_every_actuator_refuses_by_default(name: str, node: Node, tmp_path: Path) -> None:
    actuator = make(name, url=node.url)
    target = {"keda": tmp_path / "r", "wva": tmp_path / "r", "ray": tmp_path / "r"}.get(name, "0")
    with Hand(actuator) as hand, pytest.raises(RefusedError, match="named"):
        hand.act(str(target), 500.0, REASON)
    other = allowed("another", str(target))
    with Hand(actuator, other) as hand, pytest.raises(RefusedError, match="--act"):
        hand.act(str(target), 500.0, REASON)
    with Hand(actuator, allowed(name)) as hand, pytest.raises(RefusedError, match="--allow"):
        hand.act(str(target), 500.0, REASON)
    for value in (0.0, 900.0, float("nan"), float("inf")):
        with (
            Hand(actuator, allowed(name, str(target))) as hand,
            pytest.raises(RefusedError, match="--bounds"),
        ):
            hand.act(str(target), value, REASON)
    assert node.seen == []
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_actuator_is_named() -> None:
    with pytest.raises(UsageError, match="zeusd"):
        make("hammer")
    with pytest.raises(UsageError, match="--url"):
        make("zeusd")


# ------------------------------------------------------------------------------ put back


def test_zeusd_sets_and_puts_back_what_was_there(node: Node) -> None:
    log: list[dict[str, Any]] = []
    with Hand(make("zeusd", url=node.url), allowed("zeusd", "0", "1"), log.append) as hand:
        hand.act("0", 450.0, REASON)
        hand.act("1", 400.0, REASON)
        hand.act("0", 425.0, REASON)
        assert node.limits_mw == {"0": 425_000, "1": 400_000}
    assert node.limits_mw == {"0": 700_000, "1": 650_000}
    assert log[0]["saved_per_request_j"] == 12.0
    assert log[0]["ttft_ms"] == 300.0
    assert [entry for entry in log if "restored" in entry]


def test_nvidia_smi_sets_and_puts_back(tmp_path: Path) -> None:
    from energylens.online.actuators import NvidiaSmi

    actuator = NvidiaSmi(fake_smi(tmp_path))
    with Hand(actuator, allowed("nvidia-smi", "0")) as hand:
        hand.act("0", 450.0, REASON)
        assert (tmp_path / "limit").read_text().strip() == "450"
    assert (tmp_path / "limit").read_text().strip() == "700"


def test_sglang_sets_and_puts_back(node: Node) -> None:
    with Hand(make("sglang"), allowed("sglang", node.url)) as hand:
        hand.act(node.url, 24.0, REASON)
        assert node.batch_limit == 24
    assert node.batch_limit == 256


def awake(node: Node) -> Consent:
    return allowed("vllm-sleep", node.url, low=0.0, high=1.0)


@pytest.mark.parametrize("before", [False, True])
def test_vllm_sleeps_and_wakes_and_is_put_back(node: Node, before: bool) -> None:
    node.asleep = before
    with Hand(make("vllm-sleep"), awake(node)) as hand:
        hand.act(node.url, 0.0, REASON)
        assert node.asleep is True
        hand.act(node.url, 1.0, REASON)
        assert node.asleep is False
        hand.act(node.url, 1.0, REASON)
        hand.act(node.url, float(before), REASON)
        hand.act(node.url, float(not before), REASON)
    assert node.asleep is before


def test_vllm_that_has_requests_is_left_awake(node: Node) -> None:
    log: list[dict[str, Any]] = []
    with Hand(make("vllm-sleep"), awake(node), log.append) as hand:
        node.requests = 2
        with pytest.raises(NotNowError, match="2 requests"):
            hand.act(node.url, 0.0, REASON)
        assert node.asleep is False
        assert log[-1]["later"] == node.url
        node.requests = 0
        hand.act(node.url, 0.0, REASON)
        assert node.asleep is True
    assert node.asleep is False


@pytest.mark.parametrize(
    ("broken", "asleep", "value", "says"),
    [
        ({"/is_sleeping"}, False, 0.0, "VLLM_SERVER_DEV_MODE"),
        (set(), "perhaps", 0.0, "whether it sleeps"),
        ({"/sleep"}, False, 0.0, "failed"),
        (set(), False, 0.5, "awake, 1, or asleep, 0"),
    ],
)
def test_vllm_that_cannot_be_put_to_sleep_is_said_and_left(
    node: Node, broken: set[str], asleep: bool | str, value: float, says: str
) -> None:
    node.broken, node.asleep = broken, asleep
    with (
        Hand(make("vllm-sleep"), awake(node)) as hand,
        pytest.raises(ActuatorError, match=says),
    ):
        hand.act(node.url, value, REASON)
    assert node.asleep is asleep


def test_a_dry_run_checks_and_logs_and_changes_nothing(node: Node, tmp_path: Path) -> None:
    log: list[dict[str, Any]] = []
    path = tmp_path / "replicas.json"
    for name, target, value in (
        ("vllm-sleep", node.url, 0.0), ("zeusd", "0", 450.0), ("keda", str(path), 2.0),
    ):  # fmt: skip
        consent = allowed(name, target, low=0.0)
        with Hand(make(name, url=node.url), consent, log.append, dry=True) as hand:
            hand.act(target, value, REASON)
            with pytest.raises(RefusedError):
                hand.act(target, 1e6, REASON)
    assert [entry["value"] for entry in log if entry.get("dry_run")] == [0.0, 450.0, 2.0]
    assert log[0]["saved_per_request_j"] == 12.0
    assert node.seen == []
    assert not path.exists()
    node.broken = {"/is_sleeping"}
    with (
        Hand(make("vllm-sleep"), awake(node), dry=True) as hand,
        pytest.raises(ActuatorError, match="DEV_MODE"),
    ):
        hand.act(node.url, 0.0, REASON)


@pytest.mark.parametrize("before", [None, '{"replicas": 4}\n'])
def test_a_value_file_is_put_back(tmp_path: Path, before: str | None) -> None:
    path = tmp_path / "replicas.json"
    if before is not None:
        path.write_text(before)
    with Hand(make("keda"), allowed("keda", str(path))) as hand:
        hand.act(str(path), 2.0, REASON)
        assert json.loads(path.read_text())["replicas"] == 2
        assert json.loads(path.read_text())["expires_at_s"] > time.time()
    assert (path.read_text() if path.exists() else None) == before


def test_an_actuator_that_fails_half_way_leaves_nothing_set(node: Node) -> None:
    node.broken = {"1"}
    with Hand(make("zeusd", url=node.url), allowed("zeusd", "0", "1")) as hand:
        hand.act("0", 450.0, REASON)
        node.broken = {"1"}
        try:
            with pytest.raises(ActuatorError):
                hand.act("1", 450.0, REASON)
        finally:
            node.broken = set()
        assert node.limits_mw["0"] == 700_000
    assert node.limits_mw == {"0": 700_000, "1": 650_000}


def test_what_cannot_be_read_before_is_not_changed(node: Node, tmp_path: Path) -> None:
    with (
        Hand(make("zeusd", url=node.url), allowed("zeusd", "7")) as hand,
        pytest.raises(ActuatorError, match="--default"),
    ):
        hand.act("7", 450.0, REASON)
    with (
        Hand(make("keda"), allowed("keda", str(tmp_path))) as hand,
        pytest.raises(ActuatorError, match="cannot be read"),
    ):
        hand.act(str(tmp_path), 2.0, REASON)
    assert node.seen == []


# ---------------------------------------------------------------------------- it is killed

CONTROLLER = """
import sys, time
from energylens.online.actuators import Consent, Hand, make
path, url, lease = sys.argv[1:4]
consent = Consent(actuator="{name}", targets=frozenset([path]), low=0, high=800)
hand = Hand(make("{name}", url=url), consent, lease_s=float(lease))
for k in range(100000):
    hand.act(path, {value}, {{}})
    if not k:
        print("acting", flush=True)
    time.sleep(0.002)
"""


def begin(name: str, target: str, url: str, lease_s: float) -> subprocess.Popen[str]:
    value = "float(k % 2)" if name == "vllm-sleep" else "300 + k % 100"
    code = CONTROLLER.format(name=name, value=value)
    return subprocess.Popen(
        [sys.executable, "-c", code, target, url, str(lease_s)],
        stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip


def eventually(true: Callable[[], bool]) -> None:
    """Wait for something that must come; a test that hangs is ended from outside."""
    while not true():
        time.sleep(0.02)


def kill_somewhere(node: Node, path: Path, pauses: list[float]) -> None:
    for pause in pauses:
        controllers = [
            begin("keda", str(path), "", 30.0),
            begin("zeusd", "0", node.url, 30.0),
            begin("vllm-sleep", node.url, "", 30.0),
        ]
        for c in controllers:
            assert c.stdout is not None
            if pause > 0.3:
                assert c.stdout.readline() == "acting\n"
        time.sleep(pause if pause <= 0.3 else pause - 0.3)
        for c in controllers:
            c.send_signal(signal.SIGKILL)
            c.wait()
            assert c.stdout is not None
            c.stdout.close()
        eventually(lambda: not path.exists() and node.limits_mw["0"] == 700_000 and not node.asleep)
        # And it stays so: nothing that was under way comes after.
        time.sleep(0.4)
        assert not path.exists()
        assert node.limits_mw["0"] == 700_000
        assert not node.asleep


def test_killing_the_controller_leaves_everything_as_it_was(node: Node, tmp_path: Path) -> None:
    kill_somewhere(node, tmp_path / "replicas.json", [0.1, 0.4])


@pytest.mark.soak
def test_killing_the_controller_at_twenty_instants(node: Node, tmp_path: Path) -> None:
    rng = random.Random(14)
    kill_somewhere(node, tmp_path / "replicas.json", [rng.uniform(0.0, 1.2) for _ in range(20)])


def test_a_controller_that_hangs_loses_its_lease(node: Node) -> None:
    controller = begin("zeusd", "0", node.url, 1.0)
    try:
        assert controller.stdout is not None
        assert controller.stdout.readline() == "acting\n"
        controller.send_signal(signal.SIGSTOP)
        eventually(lambda: node.limits_mw["0"] == 700_000)
    finally:
        controller.kill()
        controller.wait()
        controller.stdout.close()


# --------------------------------------------------------------------- what it is shown

FILE = {
    "serve": {
        "llm": "meta-llama/Llama-3.1-8B-Instruct", "gpu": "H100", "replicas": 4,
        "max_num_seqs": 128,
    },
    "limits": {"ttft": "2s", "tpot": "50ms"},
    "replica": {"start_s": 20},
}  # fmt: skip


@pytest.fixture(scope="module")
def fleet() -> Fleet:
    return fleet_of(FILE, "test")


def past() -> Trace:
    rng = np.random.default_rng(0)
    n = 2000
    return Trace(
        name="past",
        arrivals_s=np.cumsum(rng.exponential(0.2, n)),
        input_tokens=rng.integers(100, 1000, n),
        output_tokens=1 + rng.geometric(1 / 150, n),
    )


class Engine:
    """Counters of an engine at a rate, with whatever is wrong with them."""

    def __init__(self, rate: float = 2.0) -> None:
        self.rate, self.wrong, self.since_s = rate, "", 0.0
        self.now_s = 0.0

    def __call__(self) -> Counters:
        at = self.now_s
        if self.wrong == "missing":
            raise MeasurementError("no metrics")
        if self.wrong == "stale":
            at = self.since_s
        look = Counters(
            engine="vllm",
            model_names=("it",),
            requests=self.rate * at,
            prompt_tokens=0.0,
            output_tokens=150 * self.rate * at,
            running=4.0,
            waiting=0.0,
        )
        if self.wrong == "negative":
            return replace(look, requests=-1.0)
        if self.wrong == "nan":
            return replace(look, requests=float("nan"))
        if self.wrong == "too many tokens":
            return replace(look, output_tokens=1e9 * (1 + at))
        if self.wrong == "too many running":
            return replace(look, running=1e6)
        return look


@pytest.fixture(scope="module")
def known(fleet: Fleet) -> Knowledge:
    return Knowledge(fleet, past().lengths, calibrate=False)


def controller(known: Knowledge, engine: Engine, hand: Hand | None, *targets: str) -> Controller:
    fleet = known.fleet
    return Controller(fleet, Ours(fleet, known, Plan.of(past())), [engine], hand, targets)


def test_advice_has_joules_and_milliseconds_and_changes_nothing(known: Knowledge) -> None:
    engine = Engine()
    c = controller(known, engine, None)
    for k in range(4):
        engine.now_s = 15.0 * k
        advice = c.step(15.0 * k)
    assert advice.action is not None
    assert advice.reason["rate_per_s"] == pytest.approx(2.0, rel=0.2)
    text = advice.describe()
    assert "J a request (by the model)" in text
    assert "ms" in text
    assert json.loads(json.dumps(advice.to_json()))["source"] == "predicted"


class Timed(Engine):
    """An engine that tells times: a share of its requests was late."""

    def __init__(self, rate: float, late: float, tell: str = "requests") -> None:
        super().__init__(rate)
        self.late, self.tell = late, tell

    def __call__(self) -> Counters:
        look, n = super().__call__(), self.rate * self.now_s
        ttft = ((0.5, 0.5 * n), (2.0, (1 - self.late) * n), (9.0, n), (np.inf, n))
        tpot = ((0.025, n), (np.inf, n))
        if self.tell == "gaps":
            slow = 0.02 if not self.late else 0.08
            return replace(look, ttft=ttft, gaps=149 * n, gaps_s=slow * 149 * n)
        return replace(look, ttft=ttft, tpot=tpot)


@pytest.mark.parametrize("tell", ["requests", "gaps"])
def test_more_is_asked_for_where_the_engines_tell_of_late_requests(
    known: Knowledge, tell: str
) -> None:
    replicas, boldness = {}, {}
    for late in (0.0, 0.3):
        engine = Timed(40.0, late, tell)
        c = controller(known, engine, None)
        for k in range(8):
            engine.now_s = 15.0 * k
            advice = c.step(15.0 * k)
        assert advice.action is not None
        replicas[late], boldness[late] = advice.action.replicas, c.policy.boldness
        assert advice.reason["measured_requests"] == 7 * 15 * 40
        met = advice.reason["measured_within_limits_ratio"]
        assert met == pytest.approx(0.0 if late and tell == "gaps" else 1 - late)
        assert "of 4,200 requests within both limits" in advice.describe()
    assert boldness[0.3] < 1 < boldness[0.0]
    assert replicas[0.3] > replicas[0.0]


def test_an_engine_that_tells_no_times_is_not_judged(known: Knowledge) -> None:
    engine = Engine(40.0)
    c = controller(known, engine, None)
    for k in range(4):
        engine.now_s = 15.0 * k
        advice = c.step(15.0 * k)
    assert advice.reason["measured_within_limits_ratio"] is None
    assert "measured" not in advice.describe()
    assert c.policy.boldness == pytest.approx(1.0)


@pytest.mark.parametrize(
    "wrong", ["missing", "stale", "negative", "nan", "too many tokens", "too many running"]
)
def test_what_cannot_be_believed_is_not_acted_on_and_in_the_end_all_is_put_back(
    known: Knowledge, tmp_path: Path, wrong: str
) -> None:
    path = tmp_path / "replicas.json"
    engine = Engine()
    with Hand(ValueFile("keda"), allowed("keda", str(path))) as hand:
        c = controller(known, engine, hand, str(path))
        for k in range(4):
            engine.now_s = 15.0 * k
            c.step(15.0 * k)
        assert path.exists()
        engine.wrong, engine.since_s = wrong, engine.now_s
        for k in range(4, 4 + PATIENCE + 1):
            engine.now_s = 15.0 * k
            advice = c.step(15.0 * k)
            if k > 4:
                assert advice.action is None
                assert advice.doubt
        assert not path.exists()
        engine.wrong = ""
        for k in range(10, 13):
            engine.now_s = 15.0 * k
            c.step(15.0 * k)
        assert path.exists()
    assert not path.exists()


# ----------------------------------------------------------------------------- the proxy


async def upstream(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, counts: dict[str, int]
) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    size = next(
        (int(x.split(b":")[1]) for x in head.split(b"\r\n") if x.lower().startswith(b"content-l")),
        0,
    )
    body = await reader.readexactly(size)
    counts["now"] += 1
    counts["most"] = max(counts["most"], counts["now"])
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for piece in (b"data: 1\n\n", body):
        writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        await writer.drain()
        await asyncio.sleep(0.005)
    counts["now"] -= 1
    writer.write(b"0\r\n\r\n")
    writer.close()


async def ask(url: str, method: str, path: str, body: bytes) -> tuple[int, bytes]:
    from energylens.instrument.engines.http_stream import HttpClient

    client = HttpClient(url, {})
    response = await client.request(method, path, body)
    found = await response.body()
    client.close()
    return response.status, found


async def step_of_load(limit: int | None) -> tuple[int, int, list[tuple[int, bytes]]]:
    counts = {"now": 0, "most": 0}
    server = await asyncio.start_server(lambda r, w: upstream(r, w, counts), "127.0.0.1", 0)
    proxy = AdmissionProxy(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    await proxy.start()
    said = json.dumps({"limit": limit, "lease_s": 60}).encode()
    assert (await ask(proxy.url, "PUT", "/_energylens/limit", said))[0] == 200
    answers = await asyncio.gather(
        *(ask(proxy.url, "POST", "/v1/completions", f"body {k}".encode()) for k in range(40))
    )
    _, state = await ask(proxy.url, "GET", "/_energylens/limit", b"")
    await proxy.close()
    server.close()
    assert json.loads(state)["running"] == json.loads(state)["waiting"] == 0
    return counts["most"], json.loads(state)["most_running"], list(answers)


def test_the_proxy_holds_its_limit_under_a_step_of_load_and_loses_nothing() -> None:
    for limit in (1, 5):
        most, running, answers = asyncio.run(step_of_load(limit))
        assert most <= limit
        assert running <= limit
        for k, (status, body) in enumerate(answers):
            assert status == 200
            assert body == b"data: 1\n\n" + f"body {k}".encode()
    most, _, answers = asyncio.run(step_of_load(None))
    assert most > 5
    assert len(answers) == 40


def test_the_proxy_forgets_a_limit_when_its_lease_ends_and_refuses_nonsense() -> None:
    async def run() -> None:
        proxy = AdmissionProxy("http://127.0.0.1:1")
        await proxy.start()
        nonsense = (
            b"",
            b"3",
            b'{"limit": 0, "lease_s": 5}',
            b'{"limit": 2, "lease_s": 1e9}',
            b'{"limit": "many", "lease_s": 5}',
            b'{"limit": true, "lease_s": 5}',
        )
        for body in nonsense:
            assert (await ask(proxy.url, "PUT", "/_energylens/limit", body))[0] == 400
        assert proxy.gate.limit is None
        proxy.gate.set(2, 0.05)
        assert proxy.gate.limit == 2
        while proxy.gate.limit is not None:
            await asyncio.sleep(0.01)
        status, _ = await ask(proxy.url, "POST", "/v1/completions", b"x")
        assert status == 502
        assert proxy.gate.running == 0
        await proxy.close()

    asyncio.run(run())


def test_a_request_that_gives_up_waiting_leaves_its_place() -> None:
    async def run() -> None:
        proxy = AdmissionProxy("http://127.0.0.1:1")
        gate = proxy.gate
        gate.set(1, 60)
        await gate.enter()
        waits = [asyncio.create_task(gate.enter()) for _ in range(2)]
        await asyncio.sleep(0)
        waits[0].cancel()
        gate.leave()
        await waits[1]
        assert gate.running == 1
        assert gate.waiting == 0
        gate.leave()
        gate.set(None, 0.0)

    asyncio.run(run())


# ------------------------------------------------------------------------------ the verb


def question(tmp_path: Path) -> list[str]:
    trace = past()
    lines = ["arrival_s,input_tokens,output_tokens"]
    rows = zip(trace.arrivals_s, trace.input_tokens, trace.output_tokens, strict=True)
    lines += [f"{a},{p},{o}" for a, p, o in rows]
    (tmp_path / "past.csv").write_text("\n".join(lines))
    (tmp_path / "fleet.toml").write_text(
        '[serve]\nllm = "meta-llama/Llama-3.1-8B-Instruct"\ngpu = "H100"\nreplicas = 1\n'
        '[limits]\nttft = "2s"\ntpot = "50ms"\n[replica]\nstart_s = 20\n'
        "[control]\ninterval_s = 0.3\n"
    )
    return ["control", "--fleet", str(tmp_path / "fleet.toml"), "--trace",
            str(tmp_path / "past.csv")]  # fmt: skip


class Metrics(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Showing)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/metrics"
        self.begun = time.monotonic()


class Showing(BaseHTTPRequestHandler):
    server: Metrics

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        done = 5.0 * (time.monotonic() - self.server.begun)
        label = '{model_name="m"}'
        body = (
            f"vllm:request_success_total{label} {done}\n"
            f"vllm:prompt_tokens_total{label} {500 * done}\n"
            f"vllm:generation_tokens_total{label} {150 * done}\n"
            f"vllm:num_requests_running{label} 6\nvllm:num_requests_waiting{label} 0\n"
        ).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def metrics() -> Iterator[Metrics]:
    server = Metrics()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_verb_only_advises(
    tmp_path: Path, metrics: Metrics, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*question(tmp_path), "--metrics", metrics.url, "--looks", "3"]
    exported, log = tmp_path / "advice.json", tmp_path / "log.jsonl"
    assert main([*arguments, "--json", "--export", str(exported), "--log", str(log)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0]["action"] is None
    assert lines[-1]["action"]["replicas"] >= 1
    assert json.loads(exported.read_text()) == lines[-1]
    assert len(log.read_text().splitlines()) == 3


def test_the_verb_refuses_to_act_without_targets_and_bounds(
    tmp_path: Path, metrics: Metrics, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*question(tmp_path), "--metrics", metrics.url, "--looks", "3"]
    assert main([*arguments, "--act", "keda"]) == 2
    assert "--allow" in capsys.readouterr().err
    assert main([*arguments, "--act", "keda", "--allow", str(tmp_path / "r.json")]) == 2
    assert "--bounds" in capsys.readouterr().err
    assert main([*arguments, "--allow", "0"]) == 2
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, "--listen", "99999"])
    assert "65535" in capsys.readouterr().err
    taken = metrics.server_address[1]
    assert main([*arguments, "--listen", str(taken)]) == 2
    assert "cannot be had" in capsys.readouterr().err
    assert not (tmp_path / "r.json").exists()


def test_sigterm_puts_everything_back(tmp_path: Path, metrics: Metrics) -> None:
    path = tmp_path / "replicas.json"
    path.write_text("before\n")
    arguments = [*question(tmp_path), "--metrics", metrics.url, "--act", "keda", "--allow",
                 str(path), "--bounds", "1,8"]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "energylens", *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.DEVNULL,
    )
    eventually(lambda: path.read_text() != "before\n")
    process.send_signal(signal.SIGTERM)
    process.wait()
    assert path.read_text() == "before\n"
