"""A server in simulated time, with vLLM's metrics and a meter: nothing of it is a measurement.

The replica is the repository's discrete-event simulation, which knows nothing of the law. Time goes
on when the meter is told to wait.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

from energylens import capacity
from energylens.instrument.engines.load import Replica, StepTable
from energylens.instrument.meter import Channel, ChannelKind, DeviceState, Reading
from energylens.records import Case, Source

Arrival = tuple[float, int, int]  # moment, prompt and output tokens
LONGEST_TOKENS = 9000.0
EDGES = [m * 10.0**k for k in range(5) for m in (1, 2, 5)]


@functools.cache
def _table(case: Case, seed: int) -> StepTable:
    return StepTable.of(case, LONGEST_TOKENS, seed)


class SimulatedServer:
    """One replica of a case, and its GPUs' meter.

    ``slower`` is what every step takes longer by, at the same watts; ``period_s`` how often the
    meter's counter is updated; ``hidden`` are metrics that are not shown.
    """

    name, source, real_time = "simulated", Source.SIMULATED, False

    def __init__(
        self,
        case: Case,
        arrivals: Sequence[Arrival],
        *,
        slower: float = 1.0,
        period_s: float = 0.0,
        seed: int = 1,
        started_s: float = 0.0,
        energy_j: float = 0.0,
        hidden: frozenset[str] = frozenset(),
    ) -> None:
        self.case, self.period_s, self.hidden = case, period_s, hidden
        self.started_s, self._energy_before_j = started_s, energy_j
        table = _table(case, seed)
        table = replace(table, seconds=table.seconds * slower, joules=table.joules * slower)
        self.idle_w = table.idle_w
        slots = int(case.configuration.batch_size)
        room = capacity.memory(
            replace(case, workload=replace(case.workload, input_tokens=1000.0, output_tokens=200.0))
        ).largest_batch
        self.replica = Replica(table, slots=slots, cache_tokens=room * 1200.0)
        self.replica.now_s = started_s
        for arrival in arrivals:
            self.replica.offer(*arrival)
        self._prompts = np.array([a[1] for a in arrivals], dtype=np.float64)
        gpus = case.configuration.gpus
        self.channels = tuple(
            Channel(id=f"gpu{i}", kind=ChannelKind.GPU, index=i, name=case.gpu.id)
            for i in range(gpus)
        )
        self._shown, self._tick = energy_j, -1
        self._lock = threading.Lock()

    # --------------------------------------------------------------------------- the meter

    @property
    def energy_j(self) -> float:
        return self._energy_before_j + self.replica.busy_j + self.idle_w * self.replica.idle_s

    def read(self) -> Reading:
        with self._lock:
            energy = self.energy_j
            if self.period_s:
                tick = math.floor(self.now_s() / self.period_s)
                if tick != self._tick:
                    self._tick, self._shown = tick, energy
                energy = self._shown
        share = energy / len(self.channels)
        return Reading(time_s=self.now_s(), energy_j=(share,) * len(self.channels))

    def states(self) -> tuple[DeviceState, ...]:
        return ()

    def provenance(self) -> Mapping[str, str]:
        return {}

    def now_s(self) -> float:
        return self.replica.now_s

    def wait(self, seconds: float) -> None:
        with self._lock:
            self.replica.advance(self.replica.now_s + seconds)

    def close(self) -> None:
        pass

    # ------------------------------------------------------------------------- the metrics

    def metrics(self) -> str:
        """Its numbers as vLLM 0.25 and later show them."""
        label = f'engine="0",model_name="{self.case.llm.id}"'
        r = self.replica
        first, done = np.array(r.first_s), np.array(r.done_s)
        begun, ended = first > 0, done > 0
        arrived, outputs = np.array(r.arrivals), np.array(r.outputs, dtype=np.float64)
        lines = [f"process_start_time_seconds {self.started_s}"]

        def show(name: str, kind: str, value: float, more: str = "") -> None:
            if name not in self.hidden:
                family = name.removesuffix("_count").removesuffix("_sum")
                lines.append(f"# TYPE {family} {kind}")
                lines.append(f"{name}{{{label}{more}}} {value}")

        show("vllm:num_requests_running", "gauge", len(r.running))
        show("vllm:num_requests_waiting", "gauge", len(r.waiting))
        show("vllm:prompt_tokens_total", "counter", r.prompt_tokens_done)
        show("vllm:generation_tokens_total", "counter", r.output_tokens_done)
        show("vllm:request_success_total", "counter", r.finished, ',finished_reason="stop"')
        show("vllm:iteration_tokens_total_count", "histogram", r.steps_done)
        show("vllm:time_to_first_token_seconds_count", "histogram", begun.sum())
        show("vllm:time_to_first_token_seconds_sum", "histogram", (first - arrived)[begun].sum())
        show("vllm:inter_token_latency_seconds_count", "histogram", (outputs - 1)[ended].sum())
        show("vllm:inter_token_latency_seconds_sum", "histogram", (done - first)[ended].sum())
        for name, tokens in (
            ("request_prompt_tokens", self._prompts[ended]),
            ("request_generation_tokens", outputs[ended]),
        ):
            lines.append(f"# TYPE vllm:{name} histogram")
            for edge in EDGES:
                below = int((tokens <= edge).sum())
                lines.append(f'vllm:{name}_bucket{{{label},le="{edge}"}} {below}')
            lines.append(f'vllm:{name}_bucket{{{label},le="+Inf"}} {len(tokens)}')
        return "\n".join(lines) + "\n"


def trace_like_the_public_one(seconds: float, rate: float, seed: int) -> list[Arrival]:
    """Bursty arrivals with scattered lengths: like the conversation trace of Azure, and seeded."""
    random = np.random.RandomState(seed)
    arrivals: list[Arrival] = []
    at = 0.0
    while at < seconds:
        # A busier or quieter spell of some seconds.
        spell, busy = random.exponential(8.0), rate * random.gamma(4.0, 0.25)
        end = at + spell
        while at < min(end, seconds):
            at += random.exponential(1.0 / max(busy, 1e-3))
            prompt = int(np.clip(random.lognormal(6.6, 0.9), 16, 8000))
            output = int(np.clip(random.lognormal(4.9, 0.8), 2, 1000))
            arrivals.append((at, prompt, output))
    return arrivals


@contextmanager
def over_http(text: object) -> Iterator[str]:
    """Serve what ``text()`` says under ``/metrics``."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = text().encode()  # type: ignore[operator]
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
