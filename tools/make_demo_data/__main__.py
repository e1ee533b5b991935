"""Write the packaged demo data set: a grid of simulated rows, the same bytes on every machine.

    python -m tools.make_demo_data [FILE]

Run it from the root of the repository, with energylens installed. Nothing in the file was
measured; docs/simulation.md says what it is good for.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from energylens import capacity, catalog, table
from energylens.cases import Cases
from energylens.dataset import Dataset
from energylens.instrument.engines.simulation import VERSION, simulate
from energylens.records import Boundary, Case, Configuration, Engine, Modality, Source, Workload

SEED = 20260101
ORIGIN = f"tools/make_demo_data seed {SEED}"
TARGET = Path(__file__).parents[2] / "src" / "energylens" / "data" / "simulated-demo.csv"

GPUS = ("H100-SXM-80GB", "A100-SXM-80GB")
BATCHES = (1, 4, 16, 64, 256)
SMALL = ((1, 1), (2, 1), (4, 1), (1, 2), (2, 2), (1, 4))  # tensor x pipeline parallel
LARGE = (*SMALL, (8, 1), (4, 2), (2, 4))
CHAT = Workload(input_tokens=256, output_tokens=512)
DOCUMENT = Workload(input_tokens=4096, output_tokens=128)
IMAGE = Workload(
    input_tokens=1088, output_tokens=256, vision_tokens=1024, images=1, modality=Modality.IMAGE
)


@dataclass(frozen=True)
class Sweep:
    """Every combination of these."""

    llm: str
    layouts: Sequence[tuple[int, int]]
    workloads: Sequence[Workload]
    precisions: Sequence[str] = ("bf16", "fp8")
    node_gpus: int | None = None  # joules cover a whole node of so many


SWEEPS = (
    Sweep("meta-llama/Llama-3.1-8B-Instruct", SMALL, (CHAT, DOCUMENT)),
    Sweep("meta-llama/Llama-3.1-70B-Instruct", LARGE, (CHAT, DOCUMENT)),
    Sweep("Qwen/Qwen3-30B-A3B-Instruct-2507", SMALL, (CHAT, DOCUMENT)),
    Sweep("nvidia/NVIDIA-Nemotron-Nano-9B-v2", SMALL, (CHAT, DOCUMENT)),
    Sweep("Qwen/Qwen3-VL-8B-Instruct", SMALL, (IMAGE,), ("bf16",)),
    Sweep("meta-llama/Llama-3.1-8B-Instruct", SMALL, (CHAT,), ("bf16",), node_gpus=4),
)


def cases() -> Iterator[Case]:
    """All cases of the grid that fit into memory, in the order of the rows."""
    for sweep in SWEEPS:
        llm = catalog.llm(sweep.llm)
        boundary = Boundary.ACTIVE_GPUS if sweep.node_gpus is None else Boundary.NODE
        for gpu in map(catalog.gpu, GPUS):
            for precision in map(catalog.precision, sweep.precisions):
                for workload in sweep.workloads:
                    for tensor, pipeline in sweep.layouts:
                        for batch in BATCHES:
                            case = Case(
                                llm=llm,
                                gpu=gpu,
                                precision=precision,
                                workload=workload,
                                configuration=Configuration(
                                    tensor_parallel=tensor,
                                    pipeline_parallel=pipeline,
                                    batch_size=batch,
                                    mean_batch_size=batch,
                                ),
                                boundary=boundary,
                                node_gpus=sweep.node_gpus,
                            )
                            if capacity.memory(case).fits:
                                yield case


def dataset(grid: Sequence[Case]) -> Dataset:
    """Simulate the cases; five digits are kept, more than scatter leaves of any meaning."""
    runs = [simulate(case, SEED) for case in grid]

    def column(name: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return np.array([float(f"{getattr(run, name):.5g}") for run in runs])

    def words(values: Sequence[str]) -> np.ndarray[tuple[int], np.dtype[np.object_]]:
        return np.array(values, dtype=object)

    n = len(grid)
    latencies = ("ttft_s", "tpot_s", "request_latency_s", "average_power_w")
    return Dataset(
        cases=Cases.of(grid)
        .replace(**{name: column(name) for name in latencies})
        .served_by(Engine(name="simulated", version=VERSION)),
        energy_per_request_j=column("energy_per_request_j"),
        prefill_energy_per_request_j=column("prefill_energy_per_request_j"),
        decode_energy_per_request_j=column("decode_energy_per_request_j"),
        modality=words([case.workload.modality for case in grid]),
        task=words([""] * n),
        source=words([Source.SIMULATED] * n),
        origin=words([ORIGIN] * n),
        assumed=words([""] * n),
    )


def main(arguments: Sequence[str]) -> None:
    """Write the file."""
    target = Path(arguments[0]) if arguments else TARGET
    grid = list(cases())
    table.write(dataset(grid), target)
    print(f"{len(grid)} simulated rows in {target}, {target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
