"""What several tests share: rows planted with a known law, and where the public data lies."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from energylens import catalog
from energylens.cases import Cases, FloatArray
from energylens.dataset import Dataset
from energylens.formula import NAMES, design, energy, terms_of
from energylens.records import Boundary, Case, Configuration, Engine, Modality, Workload

pytest_plugins = ("own_process", "served", "browsing")

PUBLIC_DATA = Path(
    os.environ.get("ENERGYLENS_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")
)
LLMS = (
    "Qwen/Qwen2.5-1.5B-Instruct",
    "meta-llama/Llama-3.1-8B-Instruct",
    "Qwen/Qwen3-32B",
    "Qwen/Qwen3-30B-A3B",
    "Qwen/Qwen3-VL-8B-Instruct",
    "nvidia/NVIDIA-Nemotron-Nano-9B-v2",
)

DrawCases = Callable[..., list[Case]]
MakeDataset = Callable[..., Dataset]


@pytest.fixture(scope="session")
def public_data() -> Callable[[str], Path]:
    """Find one of the public data sets, or skip."""

    def find(name: str) -> Path:
        path = PUBLIC_DATA / name
        if not path.exists():
            pytest.skip(f"the public data set {name} is not at hand ($ENERGYLENS_DATA)")
        return path

    return find


@pytest.fixture(scope="session")
def draw_cases() -> DrawCases:
    """Draw cases that between them speak of all twelve coefficients."""

    def draw(
        rows: int,
        seed: int = 0,
        *,
        llms: Sequence[str] = LLMS,
        gpus: Sequence[str] = ("H100",),
        precisions: Sequence[str] = ("bf16", "fp8", "awq-int4"),
        pipeline: Sequence[int] = (1, 2, 4),
        images: bool = True,
        node: bool = True,
    ) -> list[Case]:
        rng = np.random.default_rng(seed)

        def one() -> Case:
            llm = catalog.llm(str(rng.choice(llms)))
            pictures = int(images and llm.vision is not None) * int(rng.integers(1, 5))
            vision_tokens = pictures * 1024.0
            batch = float(2 ** rng.integers(0, 9))
            on_node = bool(node and rng.random() < 0.5)
            expert_parallel = int(rng.choice((1, 2))) if llm.experts else 1
            return Case(
                llm=llm,
                gpu=catalog.gpu(str(rng.choice(gpus))),
                precision=catalog.precision(str(rng.choice(precisions))),
                workload=Workload(
                    input_tokens=vision_tokens + float(np.rint(32 * 2 ** rng.uniform(0, 8))),
                    output_tokens=float(np.rint(16 * 2 ** rng.uniform(0, 7))),
                    vision_tokens=vision_tokens,
                    images=pictures,
                    modality=Modality.IMAGE if pictures else Modality.TEXT,
                ),
                configuration=Configuration(
                    tensor_parallel=int(rng.choice((1, 2, 4))),
                    pipeline_parallel=int(rng.choice(pipeline)),
                    expert_parallel=expert_parallel,
                    data_parallel=expert_parallel,
                    batch_size=batch,
                    mean_batch_size=batch,
                ),
                boundary=Boundary.NODE if on_node else Boundary.ACTIVE_GPUS,
                node_gpus=32 if on_node else None,
            )

        return [one() for _ in range(rows)]

    return draw


@pytest.fixture(scope="session")
def make_dataset() -> MakeDataset:
    """Make a dataset of cases, with joules given or those of a planted law and noise."""

    def make(
        cases: Cases | Sequence[Case],
        energy_j: FloatArray | float | None = None,
        *,
        theta: FloatArray | None = None,
        extend: Sequence[str] = (),
        noise_ratio: float = 0.0,
        seed: int = 1,
        power_w: FloatArray | float | None = None,
        task: str | Sequence[str] = "",
        source: str = "measured",
        engine: str | Sequence[str] = "vllm",
        engine_version: str | Sequence[str] = "0.11",
        **columns: object,
    ) -> Dataset:
        if not isinstance(cases, Cases):
            cases = Cases.of(cases)
        served = np.broadcast_arrays(engine, engine_version, np.zeros(len(cases)))[:2]
        cases = cases.served_by(
            [Engine(name=str(a), version=str(b)) for a, b in zip(*served, strict=True)]
        )
        n = len(cases)
        if power_w is not None:
            cases = cases.replace(average_power_w=power_w)
        if energy_j is None:
            planted = np.ones(len(NAMES)) if theta is None else theta
            noise = np.random.default_rng(seed).normal(0.0, noise_ratio, n)
            energy_j = energy(design(cases, terms_of(extend)), planted) * np.exp(noise)
        text = np.where(cases.images > 0, "image", "text")
        values = {
            "energy_per_request_j": energy_j,
            "prefill_energy_per_request_j": np.nan,
            "decode_energy_per_request_j": np.nan,
            "modality": text,
            "task": task,
            "source": source,
            "origin": "planted",
            "assumed": "",
        } | columns
        return Dataset(
            cases=cases,
            **{
                name: np.broadcast_to(
                    np.asarray(value, dtype=float if name.endswith("_j") else object), n
                ).copy()
                for name, value in values.items()
            },
        )

    return make
