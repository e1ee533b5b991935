"""The options that describe one configuration, and the case that they make."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from energylens.cli.console import flag, positive, positive_int, share
from energylens.errors import UsageError
from energylens.records import PARALLELISM, UNKNOWN_ENGINE, Engine

if TYPE_CHECKING:
    from energylens.model import EnergyModel
    from energylens.records import Case, Gpu, Precision
    from energylens.scenarios import Candidates

KV_FORMATS = ("auto", "bf16", "fp16", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2")
BATCH_SIZE = 32  # where none is named
MOST_GPUS = 32_767  # in one degree of parallelism, as far as memory is accounted for


def add_case(parser: argparse.ArgumentParser) -> None:
    """Add what describes one case."""
    group = parser.add_argument_group("the case")
    group.add_argument("--llm", required=True, help="a name from energylens llm list")
    group.add_argument("--gpu", required=True, help="a name from energylens gpu list")
    group.add_argument("--precision", help="a number format; the LLM's own by default")
    for degree in ("tensor", "pipeline", "expert", "data"):
        group.add_argument(
            f"--{degree}-parallel", type=positive_int, default=1, metavar="N", help="default: 1"
        )
    group.add_argument(
        "--batch-size", type=positive_int, metavar="N", help=f"default: {BATCH_SIZE}"
    )
    group.add_argument(
        "--power-cap-w", type=positive, metavar="W", help="power limit of each GPU; default: none"
    )
    group.add_argument(
        "--clock-mhz",
        type=positive,
        metavar="MHZ",
        help="clock that the core of each GPU is locked to (nvidia-smi -lgc); default: not locked",
    )
    add_memory(group)
    group.add_argument("--input-tokens", type=positive, required=True, metavar="N")
    group.add_argument("--output-tokens", type=positive, required=True, metavar="N")
    group.add_argument(
        "--vision-tokens",
        type=positive,
        metavar="N",
        help="those of images or frames among the input tokens; by default what the catalog "
        "says, on top of them",
    )
    group.add_argument("--images", type=positive_int, default=0, metavar="N")
    group.add_argument("--frames", type=positive_int, default=0, metavar="N")
    group.add_argument(
        "--node-gpus",
        type=positive_int,
        metavar="N",
        help="count every GPU of a node of this size, idle ones too",
    )
    group.add_argument(
        "--engine",
        type=Engine.named,
        metavar="'NAME VERSION'",
        help="what serves it, as in 'vllm 0.11.1', where the fit has rows of several",
    )


def add_memory(group: Any) -> None:
    """Add what an engine is told of the memory of its GPUs."""
    group.add_argument(
        "--gpu-memory-utilization",
        type=share,
        metavar="RATIO",
        help="share of the GPU's memory that the engine may use; default: 0.9",
    )
    group.add_argument(
        "--kv-cache-dtype",
        choices=KV_FORMATS,
        default="auto",
        help="format of the KV cache; default: auto, that of the number format",
    )
    group.add_argument(
        "--max-num-seqs",
        type=positive_int,
        metavar="N",
        help="sequences of a replica that the engine may run, for which it sets memory aside; "
        "default: the batch size given, or where none is given the engine's own default",
    )


def gpu_of(arguments: argparse.Namespace, name: str) -> Gpu:
    """Look a GPU type up, with what the engine is told of its memory."""
    from energylens import capacity, catalog

    gpu, share = catalog.gpu(name), arguments.gpu_memory_utilization
    if share is not None:
        gpu = replace(gpu, memory_share_ratio=share)
    told = arguments.max_num_seqs
    if told is None and getattr(arguments, "engine_default_limit", False):
        told = capacity.default_sequences(gpu)
    return gpu if told is None else replace(gpu, max_num_seqs=told)


def precision_of(arguments: argparse.Namespace, name: str) -> Precision:
    """Look a number format up, with the format that the KV cache is given."""
    from energylens import capacity, catalog

    precision, bits = catalog.precision(name), capacity.KV_BITS[arguments.kv_cache_dtype]
    return precision if bits is None else replace(precision, kv_bits=bits)


def candidates_of(arguments: argparse.Namespace) -> Candidates:
    """Make the values of free knobs."""
    from energylens.scenarios import BATCH_SIZES, Candidates

    return Candidates(
        gpus=tuple(gpu_of(arguments, name) for name in arguments.gpus),
        precisions=tuple(precision_of(arguments, name) for name in arguments.precisions),
        batch_size=tuple(map(float, arguments.batch_sizes or BATCH_SIZES)),
        power_caps_w=tuple(map(float, arguments.power_caps or ())),
        clocks_mhz=tuple(map(float, arguments.clocks or ())),
    )


def case_of(arguments: argparse.Namespace) -> Case:
    """Make the case that the arguments describe.

    The vision tokens that the catalog knows are added to the input tokens; those given with
    ``--vision-tokens`` are taken to be part of them.
    """
    from energylens import catalog
    from energylens.lengths import case_described

    if arguments.batch_size is None:
        # Who names no limit starts an engine that takes its own.
        arguments.batch_size, arguments.engine_default_limit = BATCH_SIZE, True
    catalog.llm(arguments.llm)  # whose name is the first to be wrong
    stated = catalog.checkpoint_precision(arguments.llm, arguments.precision or "")
    return case_described(
        arguments,
        gpu=gpu_of(arguments, arguments.gpu),
        precision=precision_of(arguments, stated.id),
        engine=arguments.engine or UNKNOWN_ENGINE,
        node_option="--node-gpus",
    )


def case_meant(arguments: argparse.Namespace, model: EnergyModel) -> Case:
    """Make the case, whose name and format must not contradict each other."""
    from energylens.answering import engine_meant, refuse_two_formats

    for name in PARALLELISM:
        if getattr(arguments, name) > MOST_GPUS:
            raise UsageError(
                f"{flag(name)} must be {MOST_GPUS} or less, not {getattr(arguments, name)}"
            )
    refuse_two_formats(arguments.llm, arguments.precision, "--precision")
    case = case_of(arguments)
    return replace(case, engine=engine_meant(case.engine, model))
