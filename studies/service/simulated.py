"""The closed form of a replica under load against a discrete-event simulation.

    python -m studies.service.simulated --settings 300 --seed 11 -o studies/service/service.json \
        --figure docs/figures/service.svg

Both know the same step times and joules, those of the simulated GPU; the closed form knows of the
requests only the means and the coefficients of variation. So this says nothing of GPUs: it says
what the closed form makes of a queue.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from energylens import catalog
from energylens.cases import FloatArray, IntArray
from energylens.instrument.engines.load import Replica, StepTable
from energylens.instrument.engines.simulation import STEP_TOKENS
from energylens.records import Case, Configuration, Workload
from energylens.service import Lengths, Service, steady_state
from studies.service import figure

LLMS = (
    "meta-llama/Llama-3.1-8B-Instruct",
    "meta-llama/Llama-3.1-70B-Instruct",
    "Qwen/Qwen3-32B",
    "Qwen/Qwen3-30B-A3B",
    "Qwen/Qwen2.5-1.5B-Instruct",
    "Qwen/Qwen3-14B",
)
SLOTS = (16, 32, 64, 128, 256, 512)
LOADS = (0.05, 0.95)
BANDS = ((0.05, 0.3), (0.3, 0.6), (0.6, 0.8), (0.8, 0.95))
TENTH_DEVIATIONS = 1.2816  # above which a normal has a tenth of itself
LONGEST_PROMPT, LONGEST_OUTPUT = 30_000, 8_000


@dataclass(frozen=True, kw_only=True, eq=False)
class Mix:
    """A kind of requests."""

    name: str
    draw: Callable[[np.random.Generator, int], tuple[FloatArray, FloatArray]]


def _lognormal(rng: np.random.Generator, n: int, mean: float, cv: float) -> FloatArray:
    sigma = np.sqrt(np.log1p(cv**2))
    return np.asarray(mean * np.exp(sigma * rng.standard_normal(n) - sigma**2 / 2))


def draw_lengths(kind: str, rng: np.random.Generator, n: int) -> tuple[IntArray, IntArray]:
    """Draw lengths of a kind; the means of all but the two services are drawn too."""
    prompt = float(np.exp(rng.uniform(np.log(100), np.log(3000))))
    output = float(np.exp(rng.uniform(np.log(60), np.log(800))))
    if kind == "fixed":
        prompts, outputs = np.full(n, prompt), np.full(n, output)
    elif kind == "exponential":
        prompts, outputs = rng.exponential(prompt, n), rng.exponential(output, n)
    elif kind == "lognormal":
        prompts, outputs = _lognormal(rng, n, prompt, 1.5), _lognormal(rng, n, output, 1.0)
    elif kind == "conversation":  # means and spreads of the conversation trace of Azure, 2023
        prompts, outputs = _lognormal(rng, n, 1155, 0.96), _lognormal(rng, n, 211, 0.77)
    else:  # code: long prompts, short outputs of very different length
        prompts, outputs = _lognormal(rng, n, 2048, 0.93), _lognormal(rng, n, 28, 1.9)
    return (
        np.clip(np.rint(prompts), 1, LONGEST_PROMPT).astype(np.intp),
        np.clip(np.rint(outputs), 1, LONGEST_OUTPUT).astype(np.intp),
    )


KINDS = ("conversation", "code", "fixed", "exponential", "lognormal")


@dataclass(frozen=True, kw_only=True, eq=False)
class TableSteps:
    """What the closed form sees of a table: steps at one context, one replica."""

    table: StepTable
    context: float

    @property
    def idle_w(self) -> FloatArray:
        """Watts with nothing to do."""
        return np.array([self.table.idle_w])

    def _read(self, values: FloatArray, running: FloatArray, tokens: FloatArray) -> FloatArray:
        t = self.table

        def place(axis: FloatArray, x: FloatArray) -> tuple[IntArray, FloatArray]:
            low = np.clip(np.searchsorted(axis, x, side="right") - 1, 0, len(axis) - 2)
            return low, np.maximum((x - axis[low]) / (axis[low + 1] - axis[low]), 0.0)

        i, u = place(t.batches, running)
        j, v = place(t.contexts, np.full_like(running, self.context))
        k, w = place(t.prompts, tokens)
        total = np.zeros_like(running)
        for a, x in ((i, 1 - u), (i + 1, u)):
            for b, y in ((j, 1 - v), (j + 1, v)):
                for c, z in ((k, 1 - w), (k + 1, w)):
                    total += x * y * z * values[a, b, c]
        return total

    def step_s(self, running: FloatArray) -> FloatArray:
        """Seconds of a step."""
        return self._read(self.table.seconds, running, np.zeros_like(running))

    def prompts_s(self, tokens: FloatArray, running: FloatArray) -> FloatArray:
        """Seconds that prompt tokens add."""
        return self._read(self.table.seconds, running, tokens) - self.step_s(running)

    def step_j(self, running: FloatArray) -> FloatArray:
        """Joules of a step."""
        return self._read(self.table.joules, running, np.zeros_like(running))

    def prompts_j(self, tokens: FloatArray, running: FloatArray) -> FloatArray:
        """Joules that prompt tokens add."""
        return self._read(self.table.joules, running, tokens) - self.step_j(running)

    def media_s(self, tokens: FloatArray) -> FloatArray:
        """None: requests are of text."""
        return np.zeros_like(tokens)

    media_j = media_s


@dataclass(frozen=True, kw_only=True, eq=False)
class SimulatedLoad:
    """What became of the requests after a warm-up, and of the replica meanwhile.

    Attributes
    ----------
    ttft_s, latency_s, output_tokens : ndarray, shape (n,)
        Of each request, from its arrival.
    duration_s, joules : float
        From the first of these arrivals to the last.
    arrivals : int
    mean_batch_size, empty_ratio : float
        Over that time.
    preemptions : int
    """

    ttft_s: FloatArray
    latency_s: FloatArray
    output_tokens: FloatArray
    duration_s: float
    joules: float
    arrivals: int
    mean_batch_size: float
    empty_ratio: float
    preemptions: int

    @property
    def energy_per_request_j(self) -> float:
        """Joules over requests, idle time included."""
        return self.joules / self.arrivals

    @property
    def tpot_s(self) -> float:
        """Mean seconds per token after the first, over all tokens."""
        tokens = float((self.output_tokens - 1.0).sum())
        return float((self.latency_s - self.ttft_s).sum()) / tokens

    def tpot_quantile_s(self, ratio: float) -> float:
        """Seconds per token that a share of the requests stays below."""
        several = self.output_tokens >= 2
        decode = (self.latency_s - self.ttft_s)[several]
        return float(np.quantile(decode / (self.output_tokens[several] - 1.0), ratio))


def simulate_load(
    table: StepTable,
    arrivals_s: FloatArray,
    input_tokens: IntArray,
    output_tokens: IntArray,
    *,
    slots: int,
    cache_tokens: float,
    warm: int,
    budget: float = STEP_TOKENS,
) -> SimulatedLoad:
    """Serve requests as they arrive.

    Parameters
    ----------
    table : StepTable
    arrivals_s : ndarray, shape (n,)
        Ascending.
    input_tokens, output_tokens : ndarray of int, shape (n,)
    slots : int
        Sequences that may run at once.
    cache_tokens : float
        Tokens that the cache holds.
    warm : int
        Requests at the start that are not looked at.
    budget : float
        Tokens of a step.
    """
    replica = Replica(table, slots=slots, cache_tokens=cache_tokens, budget=budget)
    n = len(arrivals_s)
    replica.count_from_s, replica.count_to_s = float(arrivals_s[warm]), float(arrivals_s[-1])
    for arrival, prompt, output in zip(
        arrivals_s.tolist(), input_tokens.tolist(), output_tokens.tolist(), strict=True
    ):
        replica.offer(arrival, prompt, output)
    replica.advance(math.inf)
    duration = replica.count_to_s - replica.count_from_s
    kept = slice(warm, n)
    arrived = np.array(replica.arrivals[kept])
    return SimulatedLoad(
        ttft_s=np.array(replica.first_s[kept]) - arrived,
        latency_s=np.array(replica.done_s[kept]) - arrived,
        output_tokens=np.array(replica.outputs[kept], dtype=np.float64),
        duration_s=duration,
        joules=replica.busy_j + replica.idle_w * replica.idle_s,
        arrivals=n - 1 - warm,
        mean_batch_size=replica.area / duration,
        empty_ratio=replica.idle_s / duration,
        preemptions=replica.preempted,
    )


def setting(rng: np.random.Generator) -> dict[str, Any] | None:
    """Draw one replica, its requests and its load, and solve it both ways."""
    llm = catalog.llm(str(rng.choice(LLMS)))
    gpu = catalog.gpu(str(rng.choice(("H100-SXM-80GB", "A100-SXM-80GB"))))
    precision = "fp8" if gpu.id.startswith("H100") and rng.random() < 0.5 else "bf16"
    tensor = int(rng.choice((1, 2, 4, 8)))
    slots = int(rng.choice(SLOTS))
    kind = str(rng.choice(KINDS))
    load = float(rng.uniform(*LOADS))
    prompts, outputs = draw_lengths(kind, rng, 20_000)
    mean_p, mean_l = float(prompts.mean()), float(outputs.mean())
    lengths = Lengths(
        input_tokens=mean_p,
        output_tokens=mean_l,
        input_cv=float(prompts.std() / mean_p),
        output_cv=float(outputs.std() / mean_l),
    )
    case = Case(
        llm=llm,
        gpu=gpu,
        precision=catalog.precision(precision),
        workload=Workload(input_tokens=1000.0, output_tokens=1.0),
        configuration=Configuration(tensor_parallel=tensor, batch_size=slots),
    )
    from energylens.capacity import layout_problem, memory

    if layout_problem(llm, tensor_parallel=tensor):
        return None
    cache_tokens = memory(case).largest_batch * 1001.0
    if cache_tokens < 2.5 * float(prompts.max() + outputs.max()):
        return None
    weighted = float((prompts * outputs).mean()) / mean_l
    context = weighted + mean_l * (1 + lengths.output_cv**2) / 2.0
    held = min(float(slots), cache_tokens / context)
    table = StepTable.of(case, longest=float(prompts.max() + outputs.max()))
    steps = TableSteps(table=table, context=context)

    def closed(rate: float) -> Service:
        return steady_state(
            steps, rate_per_s=np.array([rate]), lengths=lengths, slots=np.array([held]),
            joules=steps,
        )  # fmt: skip

    most = float(closed(1e-3).saturation_rate_per_s[0])
    rate = load * most
    formula = closed(rate)
    n = int(np.clip(4000 + 20 * float(formula.mean_batch_size[0]), 4000, 12_000))
    pick = rng.integers(0, len(prompts), n)
    arrivals = np.cumsum(rng.exponential(1.0 / rate, n))
    truth = simulate_load(
        table, arrivals, prompts[pick], outputs[pick], slots=slots, cache_tokens=cache_tokens,
        warm=n // 5,
    )  # fmt: skip
    return {
        "llm": llm.id, "gpu": gpu.id, "precision": precision, "tensor_parallel": tensor,
        "slots": slots, "kind": kind, "load": load, "rate_per_s": rate,
        **compared(truth, formula),
    }  # fmt: skip


def compared(truth: SimulatedLoad, formula: Service) -> dict[str, list[float]]:
    """Simulated and closed-form values of one setting."""
    pairs = {
        "energy_per_request_j": (truth.energy_per_request_j, formula.energy_per_request_j),
        "mean_batch_size": (truth.mean_batch_size, formula.mean_batch_size),
        "tpot_s": (truth.tpot_s, formula.tpot_s),
        "ttft_s": (float(truth.ttft_s.mean()), formula.ttft_s),
        "request_latency_s": (float(truth.latency_s.mean()), formula.request_latency_s),
    }
    for share in (0.9, 0.99):
        p = f"p{100 * share:.0f}_s"
        ttft, latency = (float(np.quantile(x, share)) for x in (truth.ttft_s, truth.latency_s))
        pairs |= {
            f"tpot_{p}": (truth.tpot_quantile_s(share), formula.tpot_quantile_s(share)),
            f"ttft_{p}": (ttft, formula.ttft_quantile_s(share)),
            f"request_latency_{p}": (latency, formula.latency_quantile_s(share)),
        }
    return {name: [float(a), float(b[0])] for name, (a, b) in pairs.items()}


TIMES = ("tpot", "ttft", "request_latency")
MEASURES = (
    "energy_per_request_j", "mean_batch_size",
    *(f"{name}{p}_s" for name in TIMES for p in ("", "_p90", "_p99")),
)  # fmt: skip


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and median relative errors of all settings, and by band of load."""

    def errors(some: list[dict[str, Any]]) -> dict[str, Any]:
        out: dict[str, Any] = {"settings": len(some)}
        for name in MEASURES:
            ratios = np.array([row[name][1] / row[name][0] - 1.0 for row in some])
            out[name] = {
                "mean_error_ratio": round(float(np.abs(ratios).mean()), 4),
                "median_error_ratio": round(float(np.median(np.abs(ratios))), 4),
                "bias_ratio": round(float(np.median(ratios)), 4),
                "late_log": [round(value, 3) for value in _late(ratios)],
            }
        return out

    bands = {
        f"{low:g}-{high:g}": errors([r for r in rows if low <= r["load"] < high])
        for low, high in BANDS
        if any(low <= r["load"] < high for r in rows)
    }
    kinds = {
        kind: errors(some) for kind in KINDS if (some := [r for r in rows if r["kind"] == kind])
    }
    return {"all": errors(rows), "by_load": bands, "by_kind": kinds}


def _late(ratios: FloatArray) -> tuple[float, float]:
    """Median log of simulated over closed form; standard deviation by which a tenth are above."""
    logs = -np.log1p(ratios)
    middle, tenth = np.quantile(logs, [0.5, 0.9])
    return float(middle), float((tenth - middle) / TENTH_DEVIATIONS)


def study(settings: int, seed: int) -> list[dict[str, Any]]:
    """Run a number of settings."""
    rows: list[dict[str, Any]] = []
    draw = 0
    while len(rows) < settings:
        row = setting(np.random.default_rng([seed, draw]))
        draw += 1
        if row is not None:
            rows.append(row)
    return rows


def main() -> None:
    """Run the study and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", type=int, default=300)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    rows = study(arguments.settings, arguments.seed)
    made = {"settings": arguments.settings, "seed": arguments.seed, **summarise(rows)}
    text = json.dumps(made, indent=1)
    if arguments.figure:
        figure.write(arguments.figure, rows)
    if arguments.output:
        arguments.output.write_text(text + "\n", encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
