"""The campaign's commands; see README.md beside this file.

    python3 -m tools.gpu_campaign run --engine vllm --out OUT [--from EARLIER] [--minutes 9]
    python3 -m tools.gpu_campaign run --shards ...        one GPU's part of larger layouts
    python3 -m tools.gpu_campaign instrument ...          how good is the instrument itself
    python3 -m tools.gpu_campaign merge OUT TABLE...      join what pieces brought back
    python3 -m tools.gpu_campaign derive SHARDS INTO      add the communication model
    python3 -m tools.gpu_campaign compare TABLE TABLE     the same cases on two engines
    python3 -m tools.gpu_campaign pack vllm FOLDER        for a machine without internet

``--rehearsal`` takes the same path on a machine without a GPU, in minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tools.gpu_campaign import derive, instrument_checks, pack, plans, run


def main() -> int:
    """Run one command."""
    parser = argparse.ArgumentParser(
        prog="gpu_campaign",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name in ("run", "instrument"):
        verb = verbs.add_parser(name)
        verb.add_argument("--engine", choices=("vllm", "transformers"), default="vllm")
        verb.add_argument("--out", type=Path, required=True, help="folder of what comes back")
        verb.add_argument("--from", type=Path, dest="earlier", help="folder of an earlier piece")
        verb.add_argument("--minutes", type=float, default=9.0, help="length of this piece")
        verb.add_argument("--rehearsal", action="store_true", help="small, without a GPU")
        verb.add_argument("--shards", action="store_true", help="parts of larger layouts")
    merge = verbs.add_parser("merge")
    merge.add_argument("into", type=Path)
    merge.add_argument("tables", type=Path, nargs="+")
    added = verbs.add_parser("derive")
    added.add_argument("shards", type=Path)
    added.add_argument("into", type=Path)
    compare = verbs.add_parser("compare")
    compare.add_argument("tables", type=Path, nargs=2)
    packed = verbs.add_parser("pack")
    packed.add_argument("kind", choices=("small", "vllm"))
    packed.add_argument("folder", type=Path)
    packed.add_argument("--part-mib", type=int, default=56)
    given = parser.parse_args()
    work: Callable[[argparse.Namespace], None] = {
        "run": _run,
        "instrument": _instrument,
        "merge": lambda g: print(f"{run.merge(g.tables, g.into)} rows in {g.into}"),
        "derive": lambda g: print(f"{derive.derive(g.shards, g.into)} rows in {g.into}"),
        "compare": lambda g: print(comparison(*g.tables)),
        "pack": lambda g: print(*pack.pack(g.kind, g.folder, g.part_mib), sep="\n"),
    }[given.verb]
    return run.told_in_one_sentence(lambda: work(given))


def _place(given: argparse.Namespace) -> tuple[str, str]:
    """Return the GPU that rows are about, and the meter."""
    if given.rehearsal:
        return "H100-SXM-80GB", "estimated"
    return run.gpu_here(), "nvml"


def _run(given: argparse.Namespace) -> None:
    gpu, meter = _place(given)
    name = f"{gpu.split('-')[0].lower()}-{given.engine}{'-shards' if given.shards else ''}"
    given.out.mkdir(parents=True, exist_ok=True)
    table = given.out / f"{name}.jsonl"
    if given.earlier is not None and not table.exists():
        for suffix in (".jsonl", run.KEPT_BESIDE):
            before = given.earlier / f"{name}{suffix}"
            if before.is_file():
                shutil.copyfile(before, table.with_suffix(suffix))
    plan = plans.campaign(
        given.engine,
        gpu,
        options=run.engine_options(given.engine, given.rehearsal),
        shards=given.shards,
        rehearsal=given.rehearsal,
    )
    result = run.run_piece(
        plan, table, meter=meter, minutes=given.minutes, log_folder=given.out / "logs"
    )
    print(run.summary(result))


def _instrument(given: argparse.Namespace) -> None:
    gpu, meter = _place(given)
    given.out.mkdir(parents=True, exist_ok=True)
    settings = instrument_checks.Settings(
        engine=given.engine, gpu=gpu, meter=meter, rehearsal=given.rehearsal
    )
    figures = instrument_checks.check(settings, given.out, given.minutes)
    print(json.dumps(figures, indent=1))


def comparison(one: Path, other: Path) -> str:
    """Compare the joules of the cases that two tables share, as a Markdown table."""
    keys = (
        "llm", "gpu", "precision", "batch_size", "input_tokens", "output_tokens", "images",
        "frames", "tensor_parallel", "pipeline_parallel",
    )  # fmt: skip

    def rows(table: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
        found = (json.loads(line) for line in table.read_text(encoding="utf-8").splitlines())
        return {
            tuple(row.get(key) for key in keys): row for row in found if row["x_mode"] == "phases"
        }

    first, second = rows(one), rows(other)
    lines = [
        f"| case | {one.stem} (J) | {other.stem} (J) | ratio | prefill | decode |",
        "|---|---|---|---|---|---|",
    ]
    ratios = []
    for key in sorted(first.keys() & second.keys(), key=str):
        a, b = first[key], second[key]

        def ratio(column: str, a: dict[str, Any] = a, b: dict[str, Any] = b) -> str:
            if not a.get(column) or not b.get(column):
                return "-"
            return f"{b[column] / a[column]:.2f}"

        whole = "energy_per_request_j"
        ratios.append(b[whole] / a[whole])
        name = f"{key[0]} {key[2]} B{key[3]:g} {key[4]:g}+{key[5]:g}"
        lines.append(
            f"| {name} | {a[whole]:.3g} | {b[whole]:.3g} | {ratio(whole)} | "
            f"{ratio('prefill_energy_per_request_j')} | {ratio('decode_energy_per_request_j')} |"
        )
    if not ratios:
        return "the tables share no case"
    middle = math.exp(statistics.fmean(map(math.log, ratios)))
    return "\n".join([*lines, "", f"{len(ratios)} cases, geometric mean of the ratio {middle:.3f}"])


if __name__ == "__main__":
    sys.exit(main())
