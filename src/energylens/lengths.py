"""Lengths of requests: from a trace of a service, or a named mix."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from energylens import catalog, files
from energylens.errors import InputError, UsageError
from energylens.records import (
    PARALLELISM,
    Boundary,
    Case,
    Configuration,
    Engine,
    Gpu,
    Llm,
    Modality,
    Precision,
    Workload,
)
from energylens.service import Lengths
from energylens.viewing import picked

#: What a column of prompt and output tokens may be called.
INPUT = ("input_tokens", "ContextTokens", "prompt_tokens", "num_prefill_tokens", "input_length")
OUTPUT = (
    "output_tokens", "GeneratedTokens", "completion_tokens", "num_decode_tokens", "output_length",
)  # fmt: skip

#: Means and spreads of two services, of the Azure LLM inference traces of November 2023
#: (github.com/Azure/AzurePublicDataset, CC BY 4.0): 19,366 and 8,819 requests.
MIXES = {
    "conversation": Lengths(
        input_tokens=1154.7, output_tokens=211.1, input_cv=0.96, output_cv=0.77
    ),
    "code": Lengths(input_tokens=2047.8, output_tokens=27.9, input_cv=0.96, output_cv=2.15),
}


def read_lengths(path: str | Path) -> Lengths:
    """Read means and coefficients of variation off a trace in CSV.

    Parameters
    ----------
    path : str or Path
        One line a request, with a column of prompt tokens and one of output tokens, under any of
        the names that :data:`INPUT` and :data:`OUTPUT` list.

    Raises
    ------
    TableError
        If the file cannot be read.
    InputError
        If it lacks a column, or has a length that is none.
    """
    rows = files.read_rows(path)
    return Lengths(
        **_moments(rows, INPUT, "input", str(path)), **_moments(rows, OUTPUT, "output", str(path))
    )


def _moments(
    rows: list[dict[str, str]], names: tuple[str, ...], what: str, path: str
) -> dict[str, float]:
    name = next((n for n in names if rows and n in rows[0]), None)
    if name is None:
        raise InputError(
            f"{path} must be CSV with a line for each request and a column of {what} tokens "
            f"({', '.join(names)})"
        )
    try:
        values = [float(row[name]) for row in rows]
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: {name} must be a number in every line") from error
    if not all(math.isfinite(v) and v >= 0 for v in values):
        raise InputError(f"{path}: {name} must be 0 or more in every line")
    mean = sum(values) / len(values)
    if mean <= 0:
        raise InputError(f"{path}: {name} is 0 in every line")
    variance = sum((v - mean) ** 2 for v in values) / len(values)
    return {f"{what}_tokens": mean, f"{what}_cv": math.sqrt(variance) / mean}


def workload_of(
    llm: Llm,
    input_tokens: float,
    output_tokens: float,
    *,
    images: float = 0.0,
    frames: float = 0.0,
    vision_tokens: float | None = None,
) -> Workload:
    """Say what a request brings, its images and frames included.

    Parameters
    ----------
    input_tokens, output_tokens : float
        Tokens a request. Those of images and frames are added to the prompt as the catalog knows
        them; ``vision_tokens`` that are given are part of it already.
    images, frames : float
        A request.

    Raises
    ------
    UsageError
        If a length is below one token, the LLM sees nothing, or the catalog does not know how many
        tokens it makes of what it sees.
    """
    for name, tokens in (("input_tokens", input_tokens), ("output_tokens", output_tokens)):
        if not tokens >= 1.0:
            raise UsageError(f"{name} must be at least 1 token, not {tokens:g}")
    if not (images or frames or vision_tokens):
        return Workload(input_tokens=input_tokens, output_tokens=output_tokens)
    if llm.vision is None:
        raise UsageError(f"{llm.id} has no vision tower: leave images and frames out")
    if vision_tokens is None:
        each_image, each_frame = llm.vision.tokens_per_image, llm.vision.tokens_per_frame
        if (images and not each_image) or (frames and not each_frame):
            raise UsageError(
                f"the catalog does not know how many tokens {llm.id} makes of an image or "
                "frame: give --vision-tokens"
            )
        vision_tokens = images * (each_image or 0) + frames * (each_frame or 0)
        input_tokens += vision_tokens
    return Workload(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        vision_tokens=vision_tokens,
        images=images,
        frames=frames,
        modality=Modality.VIDEO if frames else Modality.IMAGE,
    )


def with_prompts_of(lengths: Lengths, workload: Workload) -> Lengths:
    """Make prompts as long as those of a workload: what is added is the same in every request."""
    longer = workload.input_tokens / lengths.input_tokens
    return replace(lengths, input_tokens=workload.input_tokens, input_cv=lengths.input_cv / longer)


def case_described(
    asked: Any, *, gpu: Gpu, precision: Precision, engine: Engine, node_option: str
) -> Case:
    """Make the case that options of ``energylens explain`` describe.

    Parameters
    ----------
    asked : CaseQuestion or Namespace
        Vision tokens that the catalog knows are added to its input tokens; those that it gives
        are taken to be part of them.
    gpu, precision : Gpu, Precision
        With what the engine is told of memory and cache.
    engine : Engine
    node_option : str
        What asked for the GPUs of a node.

    Raises
    ------
    UsageError
        If a node has fewer GPUs than the deployment, or a length is none.
    """
    llm = catalog.llm(asked.llm)
    configuration = Configuration(
        **picked(asked, PARALLELISM),
        **picked(asked, "power_cap_w clock_mhz"),
        batch_size=float(asked.batch_size),
    )
    if asked.node_gpus and asked.node_gpus < configuration.gpus:
        raise UsageError(
            f"{node_option} must be at least the {configuration.gpus} GPUs of the deployment, "
            f"tensor x pipeline x data parallel ones; given {asked.node_gpus}"
        )
    return Case(
        llm=llm,
        gpu=gpu,
        precision=precision,
        workload=workload_of(
            llm,
            asked.input_tokens,
            asked.output_tokens,
            **picked(asked, "images frames vision_tokens"),
        ),
        configuration=configuration,
        boundary=Boundary.NODE if asked.node_gpus else Boundary.ACTIVE_GPUS,
        node_gpus=asked.node_gpus,
        engine=engine,
    )
