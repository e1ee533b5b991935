"""Verbs about what is known by name: llm and gpu."""

from __future__ import annotations

import argparse
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from energylens.cli.console import (
    Subparsers,
    add_json,
    positive,
    print_json,
    print_paragraph,
    print_table,
)
from energylens.errors import UsageError

if TYPE_CHECKING:
    from energylens.records import Gpu


def add_verbs(verbs: Any) -> None:
    """Add the verbs of this module."""
    subparsers = Subparsers(verbs)
    parser = subparsers.add(
        "llm",
        "list, show or add language models",
        _llm,
        (
            "energylens llm list qwen3",
            "energylens llm show Qwen/Qwen3-14B",
            "energylens llm add checkpoint/config.json --name my-org/my-llm",
        ),
    )
    parser.add_argument("action", choices=("list", "show", "add"))
    parser.add_argument(
        "what",
        nargs="?",
        metavar="NAME|PATH",
        help="part of a name, a name, or a folder or config.json",
    )
    parser.add_argument("--name", help="the id of an LLM that is added")
    add_json(parser)
    parser = subparsers.add(
        "gpu",
        "list, show or add GPU types",
        _gpu,
        (
            "energylens gpu list",
            "energylens gpu show H100",
            "energylens gpu add H100-SXM-64GB --like H100 --memory-gb 68.7 --source 'vendor brief'",
        ),
    )
    parser.add_argument("action", choices=("list", "show", "add"))
    parser.add_argument("what", nargs="?", metavar="NAME", help="part of a name, or a name")
    group = parser.add_argument_group("what a GPU type that is added has, per GPU")
    group.add_argument("--like", metavar="GPU", help="take what is not given from this GPU type")
    for flag, (_, _, unit, meaning) in _GPU_FLAGS.items():
        group.add_argument(f"--{flag}", type=positive, metavar=unit, help=meaning)
    group.add_argument(
        "--alias", action="append", default=[], metavar="NAME", help="another name, as NVML has it"
    )
    group.add_argument("--source", default="", metavar="TEXT", help="where the numbers are from")
    add_json(parser)


# Flag, field of the record, factor to its unit, unit of the flag, meaning.
_GPU_FLAGS: dict[str, tuple[str, float, str, str]] = {
    "memory-gb": ("memory_bytes", 1e9, "GB", "memory that the driver reports (1e9 bytes)"),
    "memory-bandwidth-gb-per-s": ("memory_bandwidth_bytes_per_s", 1e9, "GB/s", "of its memory"),
    "bf16-tflop-per-s": ("bf16_flop_per_s", 1e12, "TFLOP/s", "dense peak in bf16"),
    "fp8-tflop-per-s": ("fp8_flop_per_s", 1e12, "TFLOP/s", "dense peak in FP8; none: no unit"),
    "int8-top-per-s": ("int8_op_per_s", 1e12, "TOP/s", "dense peak in INT8; none: no unit"),
    "fp4-tflop-per-s": ("fp4_flop_per_s", 1e12, "TFLOP/s", "dense peak in FP4; none: no unit"),
    "tdp-w": ("tdp_w", 1.0, "W", "power limit it ships with"),
    "max-clock-mhz": ("max_clock_mhz", 1.0, "MHz", "highest clock of its core (SM)"),
    "idle-power-w": ("idle_power_w", 1.0, "W", "power without weights and requests"),
    "loaded-idle-w": ("loaded_idle_w", 1.0, "W", "power with weights loaded and no request"),
    "link-bandwidth-gb-per-s": (
        "link_bandwidth_bytes_per_s", 1e9, "GB/s", "of all links, both directions",
    ),
}  # fmt: skip


def _named(arguments: argparse.Namespace) -> str:
    if not arguments.what:
        raise UsageError(f"energylens {arguments.verb} {arguments.action} needs a name or file")
    name: str = arguments.what
    return name


def _billions(parameters: float) -> str:
    return f"{parameters / 1e9:.1f} B"


def _llm(arguments: argparse.Namespace) -> None:
    from energylens import catalog

    if arguments.action == "list":
        part = (arguments.what or "").lower()
        found = [m for name, m in catalog.llms().items() if part in name.lower()]
        if arguments.json:
            print_json({"llms": [asdict(m) for m in found]})
            return
        print_table(
            ("LLM", "family", "total", "active", "layers", "vision"),
            [
                (
                    m.id,
                    m.family,
                    _billions(m.total_parameters),
                    _billions(m.active_parameters),
                    str(m.layers),
                    "yes" if m.vision else "",
                )
                for m in found
            ],
            left=2,
        )
        return
    if arguments.action == "add":
        from energylens.catalog.hf_read import llm_from_path

        path = _named(arguments)
        if not arguments.name:
            raise UsageError("an LLM that is added needs a name: give --name ORG/NAME")
        llm = llm_from_path(Path(path), arguments.name)
        where = catalog.add_llm(llm)
        if not arguments.json:
            print(
                f"{llm.id} ({llm.family}, {_billions(llm.counted_parameters)} parameters counted) "
                f"added to {where}."
            )
            if re.search("embed|rerank|reward", f"{arguments.name} {path}", re.IGNORECASE):
                print_paragraph(
                    "Note: by its name it gives scores or vectors; what is said of it holds for "
                    "an LLM that generates text."
                )
            return
    else:
        llm = catalog.llm(_named(arguments))
    if arguments.json:
        print_json(asdict(llm))
        return
    _print_record(asdict(llm))
    print(f"{'counted parameters':28} {llm.counted_parameters:,.0f}")


def _gpu(arguments: argparse.Namespace) -> None:
    from energylens import catalog

    if arguments.action in ("show", "add"):
        name = _named(arguments)
        if arguments.action == "show":
            gpu = catalog.gpu(name)
        else:
            gpu = _new_gpu(name, arguments)
            where = catalog.add_gpu(gpu)
            if not arguments.json:
                print(f"{gpu.id} added to {where}.")
        if arguments.json:
            print_json(asdict(gpu))
        else:
            _print_record(asdict(gpu))
        return
    part = (arguments.what or "").lower()
    found = [g for name, g in catalog.gpus().items() if part in name.lower()]
    if arguments.json:
        print_json({"gpus": [asdict(g) for g in found]})
        return
    print_table(
        ("GPU", "memory", "bandwidth", "16 bit", "8 bit", "TDP"),
        [
            (
                g.id,
                f"{g.memory_bytes / 1e9:.0f} GB",
                f"{g.memory_bandwidth_bytes_per_s / 1e12:.2f} TB/s",
                f"{g.bf16_flop_per_s / 1e12:.0f} TFLOP/s",
                f"{g.flop_per_s(8) / 1e12:.0f} TFLOP/s",
                f"{g.tdp_w:.0f} W",
            )
            for g in found
        ],
    )


def _new_gpu(name: str, arguments: argparse.Namespace) -> Gpu:
    """Make a GPU type of the flags, and of another one where they are silent."""
    from datetime import date

    from energylens import catalog
    from energylens.records import Gpu

    given: dict[str, Any] = {}
    for flag, (field, factor, _, _) in _GPU_FLAGS.items():
        value = getattr(arguments, flag.replace("-", "_"))
        if value is not None:
            given[field] = value * factor
    given |= {
        "id": name.strip(),
        "aliases": tuple(arguments.alias),
        "source": arguments.source or (f"like {arguments.like}" if arguments.like else ""),
        "date": date.today().isoformat(),
    }
    if arguments.like:
        return replace(catalog.gpu(arguments.like), **given)
    missing = [
        f"--{flag}"
        for flag, (field, *_) in _GPU_FLAGS.items()
        if field not in given
        and field in ("memory_bytes", "memory_bandwidth_bytes_per_s", "bf16_flop_per_s", "tdp_w")
    ]
    if missing:
        raise UsageError(
            f"a GPU type needs {', '.join(missing)} too, or --like GPU to take them from another"
        )
    return Gpu(**given)


def _print_record(record: dict[str, Any], indent: str = "") -> None:
    for key, value in record.items():
        if isinstance(value, dict):
            print(f"{indent}{key.replace('_', ' ')}")
            _print_record(value, indent + "  ")
        elif value not in (None, "", ()):
            shown = ", ".join(value) if isinstance(value, tuple) else value
            if isinstance(shown, bool):
                shown = "yes" if shown else "no"
            elif isinstance(shown, int | float):
                shown = f"{shown:,.15g}"
            name = f"{key.replace('_', ' '):{28 - len(indent)}}"
            print_paragraph(f"{name} {shown}", indent, " " * (29 - len(indent)))
