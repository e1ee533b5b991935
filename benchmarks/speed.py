"""How fast: fit, predict, select, read, start; each beside a peer in the same run."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np

from energylens import baselines, fitting, packaged, table
from energylens.cases import Cases
from energylens.dataset import Dataset
from energylens.deciding import decide
from energylens.decisions import Decision, LatencyLimit, Load
from energylens.scenarios import Candidates, Scenario
from energylens.selection import select
from energylens.service import Lengths
from energylens.solving import Engine

ENSEMBLES = ("random-forest", "extra-trees", "gradient-boosting", "xgboost", "lightgbm")
ROWS = 50
CASES = 1_000_000


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Median wall time of a call, after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def rows(number: int) -> Dataset:
    """Draw rows of the packaged data set (simulated; only their shape matters here)."""
    with as_file(files("energylens") / "data" / "simulated-demo.csv") as path:
        dataset = table.read(path)
    dataset = dataset.take(dataset.gpu_ids == "H100-SXM-80GB")
    return dataset.take(np.random.default_rng(0).integers(0, len(dataset), number))


def known_batches(cases: Cases) -> Cases:
    """Say what was in flight, as measured rows do."""
    return cases.replace(mean_batch_size=cases.batch_size)


def _under_load(
    scenario: Scenario, candidates: Candidates, number: int, select_s: float
) -> tuple[str, str, str, str]:
    """Measure a choice under load among the same configurations as one of a full batch."""
    model = packaged.for_gpu(scenario.gpu.id)[0].model()
    load = Load(
        rate_per_s=2.0,
        lengths=Lengths(
            input_tokens=scenario.workload.input_tokens,
            output_tokens=scenario.workload.output_tokens,
        ),
    )
    limits = [LatencyLimit(measure="tpot", seconds=0.05)]

    def ask() -> Decision:
        return decide(
            Engine(model), scenario, load, limits, candidates=candidates,
            batch_limits=candidates.batch_size,
        )  # fmt: skip

    room = ask().considered
    took_s = seconds(ask, 3)
    return (
        f"the same under load ({room:,} have room)",
        f"{took_s:.2f} s",
        f"full-batch select of {number:,}: {took_s / select_s:.0f} x its time",
        "<= 2 s, <= 20 x",
    )


def run() -> list[tuple[str, str, str, str]]:
    """Measure everything: what, ours, the peer's, and the bar."""
    lines = []
    training = rows(ROWS)
    fit_s = seconds(lambda: fitting.fit(training), 50)
    peers = {
        name: seconds(partial(baselines.ESTIMATORS[name](0).fit, training), 3) for name in ENSEMBLES
    }
    fastest = min(peers, key=lambda name: peers[name])
    lines.append(
        (
            f"fit {ROWS} rows",
            f"{1e3 * fit_s:.1f} ms",
            f"{fastest}: {1e3 * peers[fastest]:.0f} ms, {peers[fastest] / fit_s:.0f} x",
            "<= 5 ms, >= 10 x",
        )
    )
    model = fitting.fit(training)
    million = known_batches(rows(CASES).cases)
    predict_s = seconds(lambda: model.predict_energy_j(million), 3)
    boosted = baselines.ESTIMATORS["xgboost"](0).fit(training)
    tenth = million.take(slice(0, CASES // 10))
    boosted_s = 10 * seconds(lambda: boosted.predict_energy_j(tenth), 2)
    lines.append(
        (
            f"predict {CASES:,} cases",
            f"{CASES / predict_s / 1e6:.1f} million/s",
            f"xgboost: {CASES / boosted_s / 1e6:.2f} million/s, {boosted_s / predict_s:.0f} x",
            ">= 5 million/s, >= 5 x",
        )
    )
    case = training.cases.case(0)
    candidates = Candidates(
        tensor_parallel=(1, 2, 4, 8),
        pipeline_parallel=(1, 2, 4, 8),
        data_parallel=(1, 2, 4, 8),
        batch_size=tuple(float(b) for b in range(8, 5008)),
    )
    scenario = Scenario(
        llm=case.llm, gpu=case.gpu, precision=case.precision, workload=case.workload, max_gpus=8
    )
    chosen = ("tensor_parallel", "pipeline_parallel", "data_parallel", "batch_size")
    ranking = select(model, scenario, choose=chosen, candidates=candidates)
    number = len(ranking) + len(ranking.ruled_out)
    select_s = seconds(lambda: select(model, scenario, choose=chosen, candidates=candidates), 3)
    lines.append((f"select among {number:,}", f"{select_s:.2f} s", "-", "<= 0.3 s"))
    lines.append(_under_load(scenario, candidates, number, select_s))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.csv"
        table.write(rows(100_000), path)
        read_s = seconds(lambda: table.read(path), 3)
    lines.append(("read a table of 100,000 rows", f"{read_s:.2f} s", "-", "<= 2 s"))

    def start(code: list[str]) -> float:
        return seconds(lambda: subprocess.run(code, check=True, capture_output=True), 5)

    python = start([sys.executable, "-c", "pass"])
    help_s = start([sys.executable, "-m", "energylens", "--help"])
    import_s = start([sys.executable, "-c", "import energylens"])
    bare = f"bare interpreter: {1e3 * python:.0f} ms"
    lines.append(("energylens --help", f"{1e3 * help_s:.0f} ms", bare, "<= 300 ms"))
    net = f"{1e3 * (import_s - python):.0f} ms beyond it"
    lines.append(("import energylens", net, bare, "<= 30 ms"))
    return lines
