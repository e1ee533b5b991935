"""Rows, a model and judgements for the tests of reports: small, quick, and full of traps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from itertools import product

import numpy as np

from energylens.baselines import ESTIMATORS
from energylens.cases import Cases
from energylens.dataset import Dataset
from energylens.evaluation.judge import evaluate
from energylens.evaluation.result import Evaluation
from energylens.fitting import Diagnostics, EnergyLens, diagnose, fit
from energylens.formula import design
from energylens.model import EnergyModel
from energylens.records import (
    Attention,
    Case,
    Configuration,
    Engine,
    Experts,
    FeedForward,
    Gpu,
    Llm,
    Precision,
    Source,
    Workload,
)
from energylens.scenarios import Scenario
from energylens.selection import Ranking, select

#: What an LLM may be called by someone who means ill: HTML, a comment's end, TeX, a long word.
HOSTILE = "evil/<script>alert(1)</script>-->&amp;$x_1$" + "y" * 60

BF16 = Precision(id="bf16", weight_bits=16, compute_bits=16)
DENSE = Llm(
    id="lab/Dense-8B",
    layers=32,
    hidden_size=4096,
    vocabulary_size=128_000,
    total_parameters=8_000_000_000,
    active_parameters=8_000_000_000,
    attention=Attention(layers=32, heads=32, kv_heads=8, head_size=128),
    feed_forward=FeedForward(layers=32, size=14336),
)
SPARSE = Llm(
    id=HOSTILE,
    layers=24,
    hidden_size=2048,
    vocabulary_size=100_000,
    total_parameters=15_000_000_000,
    active_parameters=3_000_000_000,
    attention=Attention(layers=24, heads=32, kv_heads=8, head_size=64),
    experts=Experts(layers=24, experts=64, active_experts=4, size=1024),
)
H100 = Gpu(
    id="H100",
    memory_bytes=80e9,
    memory_bandwidth_bytes_per_s=3.35e12,
    bf16_flop_per_s=989e12,
    tdp_w=700,
    link_bandwidth_bytes_per_s=450e9,
)
A100 = replace(
    H100, id="A100", memory_bandwidth_bytes_per_s=2e12, bf16_flop_per_s=312e12, tdp_w=400
)
WORKLOAD = Workload(input_tokens=512, output_tokens=256, task="chat")
FIGURES = (
    "ranking",
    "breakdown",
    "latency-energy",
    "learning-curve",
    "predicted-measured",
    "residuals",
)
CHOOSE = ("tensor_parallel", "pipeline_parallel", "batch_size")


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """What a full report is made of."""

    model: EnergyModel
    dataset: Dataset
    diagnostics: Diagnostics
    evaluations: tuple[Evaluation, ...]
    ranking: Ranking


@cache
def rows(source: Source = Source.PUBLISHED) -> Dataset:
    """Two LLMs on two GPU types, every layout of up to four GPUs, three batch sizes."""
    cases = Cases.of(
        Case(
            llm=llm,
            gpu=gpu,
            precision=BF16,
            workload=WORKLOAD,
            configuration=Configuration(tensor_parallel=tp, pipeline_parallel=pp, batch_size=b),
        )
        for llm, gpu, (tp, pp), b in product(
            (DENSE, SPARSE), (H100, A100), ((1, 1), (2, 1), (4, 1), (1, 2), (2, 2)), (1, 8, 64)
        )
    )
    n = len(cases)
    rng = np.random.default_rng(0)
    energy = design(cases).sum(axis=1) * np.exp(rng.normal(0.1, 0.08, n))
    gpus = cases.occupied_gpus
    latency = 3.0 * cases.batch_size**0.3 / gpus**0.7 * np.exp(rng.normal(0, 0.05, n))

    def filled(value: str) -> np.ndarray:
        return np.full(n, value, dtype=object)

    return Dataset(
        cases=cases.replace(request_latency_s=latency).served_by(
            Engine(name="vllm", version="0.11.1")
        ),
        energy_per_request_j=energy,
        prefill_energy_per_request_j=np.full(n, np.nan),
        decode_energy_per_request_j=np.full(n, np.nan),
        modality=filled("text"),
        task=filled("chat"),
        source=filled(source.value),
        origin=filled("<b>a table</b>"),
        assumed=filled(""),
    )


@cache
def sample(source: Source = Source.PUBLISHED) -> Sample:
    """Everything that a report can show."""
    dataset = rows(source)
    model = fit(dataset)
    estimators = {
        "energylens": lambda _: EnergyLens(),
        **{name: ESTIMATORS[name] for name in ("random", "log-linear")},
    }
    evaluations = tuple(
        evaluate(
            dataset,
            estimators,
            protocol=protocol,
            choose=CHOOSE,
            curve=(10, 30),
            repeats=2,
            allow_simulated=True,
        )
        for protocol in ("learning-curve", "unseen-hardware")
    )
    return Sample(
        model=model,
        dataset=dataset,
        diagnostics=diagnose(model, dataset),
        evaluations=evaluations,
        ranking=ranking(model),
    )


def ranking(model: EnergyModel) -> Ranking:
    """Configurations of the LLM with the evil name, against one that wastes joules."""
    scenario = Scenario(
        llm=SPARSE,
        gpu=H100,
        precision=BF16,
        workload=WORKLOAD,
        configuration=Configuration(batch_size=64),
        max_gpus=4,
    )
    return select(
        model,
        scenario,
        choose=CHOOSE,
        reference=Configuration(tensor_parallel=4, batch_size=8),
    )
