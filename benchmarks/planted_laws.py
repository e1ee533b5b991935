"""Does discovery find laws again that were planted in synthetic rows of realistic cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from energylens import capacity, catalog
from energylens.cases import Cases, FloatArray
from energylens.dataset import Dataset
from energylens.discovery.expression import Expression
from energylens.discovery.library import quantity_columns

GPU = "H100-SXM-80GB"
DENSE = (
    "Qwen/Qwen2.5-1.5B-Instruct",
    "meta-llama/Llama-3.2-3B-Instruct",
    "meta-llama/Llama-3.1-8B-Instruct",
    "google/gemma-2-9b-it",
    "Qwen/Qwen3-14B",
    "Qwen/Qwen3-32B",
    "meta-llama/Llama-3.1-70B-Instruct",
)
MOE = (
    "allenai/OLMoE-1B-7B-0924-Instruct",
    "deepseek-ai/DeepSeek-V2-Lite-Chat",
    "Qwen/Qwen3-30B-A3B",
    "mistralai/Mixtral-8x7B-Instruct-v0.1",
    "microsoft/Phi-3.5-MoE-instruct",
    "meta-llama/Llama-3.1-8B-Instruct",
    "Qwen/Qwen3-32B",
)
VISION = (
    "Qwen/Qwen2.5-VL-3B-Instruct",
    "Qwen/Qwen2.5-VL-7B-Instruct",
    "google/gemma-3-12b-it",
    "google/gemma-3-27b-it",
    "Qwen/Qwen2.5-VL-72B-Instruct",
)
LARGEST_BATCH, LARGEST_INPUT, LARGEST_OUTPUT = 64.0, 4096.0, 1024.0


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A law: the terms it is made of, each a share of the energy, on what kind of cases."""

    name: str
    terms: tuple[str, ...]
    llms: tuple[str, ...] = DENSE
    pipeline: bool = False
    node: bool = False
    in_library: bool = True


STRUCTURES: tuple[Planted, ...] = (
    Planted(name="memory-bound decode", terms=("step_weight_bytes", "cache_bytes")),
    Planted(
        name="prefill + decode",
        terms=("prefill_flop", "step_weight_bytes", "decode_flop", "cache_bytes"),
    ),
    Planted(
        name="launches",
        terms=(
            "gpus * kernels * passes",
            "prefill_flop",
            "gpus * kernels * steps",
            "step_weight_bytes",
        ),
    ),
    Planted(
        name="TP traffic",
        terms=("prefill_flop", "step_weight_bytes", "prefill_link_bytes + decode_link_bytes"),
    ),
    Planted(
        name="TP ring share",
        terms=(
            "prefill_flop",
            "step_weight_bytes",
            "decode_message_bytes * (tensor_parallel - 1) / tensor_parallel",
            "gpus * kernels * steps",
        ),
    ),
    Planted(
        name="TP tree",
        terms=(
            "prefill_flop",
            "step_weight_bytes",
            "gpus * steps * log2(tensor_parallel)",
            "gpus * output_tokens",
        ),
    ),
    Planted(
        name="PP hops",
        terms=(
            "prefill_flop",
            "step_weight_bytes",
            "cache_bytes",
            "gpus * (pipeline_parallel - 1) * (passes + steps)",
        ),
        pipeline=True,
    ),
    Planted(
        name="PP bubbles",
        terms=(
            "prefill_flop",
            "step_weight_bytes",
            "step_weight_bytes * (pipeline_parallel - 1) / running",
            "gpus * output_tokens",
        ),
        pipeline=True,
    ),
    Planted(
        name="MoE coverage",
        terms=("prefill_flop", "step_weight_bytes", "gpus * kernels * steps", "cache_bytes"),
        llms=MOE,
    ),
    Planted(
        name="MoE dispatch",
        terms=(
            "prefill_flop",
            "step_always_bytes",
            "step_expert_bytes",
            "output_tokens * routing",
        ),
        llms=MOE,
    ),
    Planted(
        name="saturating batch",
        terms=("prefill_flop", "step_weight_bytes", "decode_flop * running / (running + 64)"),
    ),
    Planted(
        name="max of rooflines",
        terms=(
            "max(prefill_flop / flop_per_s, pass_weight_bytes / bandwidth_bytes_per_s)",
            "max(decode_flop / flop_per_s, "
            "(step_weight_bytes + cache_bytes) / bandwidth_bytes_per_s)",
            "gpus * output_tokens",
        ),
    ),
    Planted(
        name="vision",
        terms=("vision_flop", "prefill_flop", "step_weight_bytes", "gpus * kernels * steps"),
        llms=VISION,
    ),
    Planted(
        name="idle node",
        terms=(
            "prefill_flop",
            "step_weight_bytes",
            "cache_bytes",
            "idle_gpus * (prefill_roofline_s + decode_roofline_s)",
        ),
        node=True,
    ),
    Planted(
        name="eight terms",
        terms=(
            "prefill_flop",
            "gpus * kernels * passes",
            "step_weight_bytes",
            "gpus * kernels * steps",
            "gpus * output_tokens",
            "cache_bytes",
            "prefill_link_bytes + decode_link_bytes",
            "gpus * (pipeline_parallel - 1) * (passes + steps)",
        ),
        pipeline=True,
    ),
    Planted(
        name="TP x PP interaction",
        terms=(
            "prefill_flop",
            "step_weight_bytes",
            "step_weight_bytes * (tensor_parallel - 1) * (pipeline_parallel - 1)",
        ),
        pipeline=True,
        in_library=False,
    ),
    Planted(
        name="power-law utilisation",
        terms=("prefill_flop", "step_weight_bytes ** 0.7 * decode_flop ** 0.3", "cache_bytes"),
        in_library=False,
    ),
    Planted(
        name="saturation off the grid",
        terms=("prefill_flop", "step_weight_bytes", "decode_flop * running / (running + 22)"),
        in_library=False,
    ),
    Planted(
        name="queueing knee",
        terms=("prefill_flop", "step_weight_bytes", "prefill_flop * max(running / 16 - 1, 0)"),
        in_library=False,
    ),
)


def draw_cases(law: Planted, rows: int, rng: np.random.Generator, *, beyond: bool = False) -> Cases:
    """Draw feasible cases at random; ``beyond``: up to 4x the batch and 2x the lengths."""
    gpu = catalog.gpu(GPU)
    llms = tuple(catalog.llm(name) for name in law.llms)
    precision = catalog.precision("bf16")
    m = 40 * rows
    low, high = (1.0, 4.0) if beyond else (1.0 / LARGEST_BATCH, 1.0)
    batch = np.round(LARGEST_BATCH * low * (high / low) ** rng.random(m))
    batch = batch if beyond else 2.0 ** rng.integers(0, 7, m)
    spread = 2.0 if beyond else 1 / 32.0
    inputs = np.round(LARGEST_INPUT * spread ** rng.random(m))
    outputs = np.round(LARGEST_OUTPUT * spread ** rng.random(m))
    tensor = 2.0 ** rng.integers(0, 4, m)
    pipeline = 2.0 ** rng.integers(0, 3, m) if law.pipeline else np.ones(m)
    llm_index = rng.integers(0, len(llms), m)
    images = rng.integers(0, 4, m).astype(float) if llms[0].vision else np.zeros(m)
    per_image = np.array(
        [(item.vision.tokens_per_image or 256) if item.vision else 0 for item in llms], dtype=float
    )
    vision = images * per_image[llm_index]
    room = np.zeros(m)
    for i, item in enumerate(llms):
        mine = llm_index == i
        room[mine] = capacity.largest_batch(
            item,
            gpu,
            precision,
            tensor_parallel=tensor[mine],
            pipeline_parallel=pipeline[mine],
            input_tokens=inputs[mine] + vision[mine],
            output_tokens=outputs[mine],
        )
    keep = np.flatnonzero((room >= batch) & (tensor * pipeline <= 8))[:rows]
    assert len(keep) == rows
    nan = np.full(rows, np.nan)
    zero = np.zeros(rows, dtype=np.intp)
    return Cases(
        llms=llms,
        gpus=(gpu,),
        precisions=(precision,),
        llm_index=llm_index[keep].astype(np.intp),
        gpu_index=zero,
        precision_index=zero,
        tensor_parallel=tensor[keep],
        pipeline_parallel=pipeline[keep],
        expert_parallel=np.ones(rows),
        data_parallel=np.ones(rows),
        batch_size=batch[keep],
        mean_batch_size=nan,
        input_tokens=(inputs + vision)[keep],
        output_tokens=outputs[keep],
        vision_tokens=vision[keep],
        images=images[keep],
        frames=np.zeros(rows),
        node_boundary=np.full(rows, law.node),
        node_gpus=np.full(rows, 8.0) if law.node else nan,
        ttft_s=nan,
        tpot_s=nan,
        request_latency_s=nan,
        average_power_w=nan,
    )


def term_values(terms: Sequence[str], cases: Cases) -> FloatArray:
    columns: Mapping[str, FloatArray] = quantity_columns(cases)
    return np.column_stack([Expression(text).evaluate(columns) for text in terms])


def plant(values: FloatArray, scale_j: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Coefficients that give each term its share of the energy on the rows that have it.

    Shares are drawn within a factor of 3 of each other; ``scale_j`` sets the joules.
    """
    shares = rng.uniform(0.5, 1.5, values.shape[1])
    shares /= shares.sum()
    present = values > 0
    coefficients = shares / (values / scale_j[:, None]).mean(axis=0)
    for _ in range(50):
        parts = values * coefficients
        reached = (parts / parts.sum(axis=1, keepdims=True)).sum(axis=0) / present.sum(axis=0)
        coefficients *= np.sqrt(shares / reached)
    return coefficients / np.median(values @ coefficients / scale_j)


def dataset_of(cases: Cases, energy_j: FloatArray) -> Dataset:
    n = len(cases)

    def text(value: str) -> np.ndarray:
        return np.array([value] * n, dtype=object)

    nan = np.full(n, np.nan)
    return Dataset(
        cases=cases,
        energy_per_request_j=energy_j,
        prefill_energy_per_request_j=nan,
        decode_energy_per_request_j=nan,
        modality=text("text"),
        task=text(""),
        engine=text("planted"),
        engine_version=text(""),
        source=text("simulated"),
        origin=text("planted"),
        assumed=text(""),
    )
