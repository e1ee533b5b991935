"""Policies on the Azure traces of 2023 at 0.25 to 4 times their rate, on up to 8 H100, simulated.

    python -m studies.online ../shared/data/azure-llm-trace -o studies/online/online.json
    python -m studies.online --document docs/studies/online.md --figure docs/figures/online.svg

The first makes the numbers (half an hour on one core), the second writes them down.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from energylens.online.fleet import Fleet, fleet_of
from energylens.online.knowledge import Belief, Knowledge
from energylens.online.oracle import oracle
from energylens.online.ours import Ours
from energylens.online.plans import Plan
from energylens.online.policies import POLICIES, policy
from energylens.online.rehearsal import Rehearsal, rehearse
from energylens.online.trace import Trace, read_trace
from studies.online.tables import document, figure

SEED = 14
SECONDS = 900.0
ROUNDS = 7  # of the oracle
BOUNDED_TO = 2.0  # times the rate, up to which the oracle is run: beyond, most cells are overloaded
RATES = (0.25, 0.5, 1.0, 2.0, 4.0)
TRACES = {"conversation": "conv-2023.csv", "code": "code-2023.csv"}
RESULTS = Path(__file__).with_name("online.json")

#: Deployed today: a node of 8 H100, all of it. Start-up from weights in host memory or on disk.
LLMS: dict[str, dict[str, Any]] = {
    "70B FP8": {
        "serve": {
            "llm": "meta-llama/Llama-3.3-70B-Instruct", "gpu": "H100", "precision": "fp8",
            "tensor_parallel": 2, "replicas": 4,
        },
        "replica": {"start_s": 45, "swap_s": 120},
    },
    "8B": {
        "serve": {
            "llm": "meta-llama/Llama-3.1-8B-Instruct", "gpu": "H100", "precision": "bf16",
            "tensor_parallel": 1, "replicas": 8,
        },
        "replica": {"start_s": 20, "swap_s": 60},
    },
    "30B-A3B": {
        "serve": {
            "llm": "Qwen/Qwen3-30B-A3B-Instruct-2507", "gpu": "H100", "precision": "bf16",
            "tensor_parallel": 1, "replicas": 8,
        },
        "replica": {"start_s": 30, "swap_s": 90},
    },
}  # fmt: skip
#: Limits of each request. Code has prompts of thousands of tokens and answers of 28.
LIMITS = {
    "conversation": {"70B FP8": ("2s", "60ms"), "8B": ("1s", "40ms"), "30B-A3B": ("1s", "40ms")},
    "code": {"70B FP8": ("10s", "500ms"), "8B": ("4s", "200ms"), "30B-A3B": ("4s", "200ms")},
}
CAPS_W = (400.0,)
BOLDEST = (1.0, 1.05, 1.1, 1.2, 1.3)  # that are tried elsewhere, at these rates
BOLD_RATES = (0.5, 1.0, 2.0)
CLOCK_RATIOS = (0.7, 0.55)
DEGREES = (1, 2, 4)
BELIEFS = {
    "right": Belief(),
    "joules +20 %": Belief(joules=1.2),
    "joules -20 %": Belief(joules=0.8),
    "times +20 %": Belief(times=1.2),
    "times -20 %": Belief(times=0.8),
    "forecast x 2": Belief(forecast=2.0),
    "forecast / 2": Belief(forecast=0.5),
}


def fleet_for(llm: str, mix: str) -> Fleet:
    """Make the fleet of one LLM with the limits of a trace."""
    ttft, tpot = LIMITS[mix][llm]
    made = {
        **LLMS[llm],
        "limits": {"ttft": ttft, "tpot": tpot},
        "control": {
            "power_caps_w": CAPS_W,
            "clock_ratios": CLOCK_RATIOS,
            "max_gpus": 8,
            "tensor_parallel": DEGREES,
        },
    }
    return fleet_of(made, llm)


def summary(r: Rehearsal) -> dict[str, Any]:
    """Keep what the tables show."""
    whole = r.to_json()
    return {
        "layout": r.layout,
        "simulated_energy_per_request_j": round(whole["simulated_energy_per_request_j"], 2),
        "simulated_by_part_j": {k: round(v / r.requests, 2) for k, v in r.simulated_joules.items()},
        "within_limits_ratio": round(r.within_ratio, 4),
        "mean_replicas": round(r.mean_replicas, 2),
        "ttft_p99_s": round(whole["ttft_s"]["p99"], 3),
        "tpot_p99_s": round(whole["tpot_s"]["p99"], 4),
        "starts": whole["reconfigurations"]["starts"],
        "stops": whole["reconfigurations"]["stops"],
        "layout_swaps": whole["reconfigurations"]["layout_swaps"],
        "drained_requests": whole["reconfigurations"]["drained_requests"],
    }


def traces(path: Path, rate: float) -> tuple[Trace, Trace]:
    """The past that policies know, and what is rehearsed after it."""
    return read_trace(path).first(2 * SECONDS).scaled(rate, SEED).split(SECONDS)


def cell(fleet: Fleet, past: Trace, trace: Trace, *, bounded: bool) -> dict[str, Any]:
    """All policies on one trace, and the oracle if it is to be bounded."""
    known, plan = Knowledge(fleet, past.lengths), Plan.of(past)
    found = [rehearse(fleet, trace, policy(name, fleet, known, plan)) for name in POLICIES]
    # Equal or better: the share asked for, or what the fleet as deployed reaches.
    share = min(fleet.file.limits.share, found[0].within_ratio)
    if bounded:
        found.append(oracle(fleet, trace, share=share, rounds=ROUNDS))
    return {
        "requests": len(trace),
        "share_ratio": round(share, 4),
        "policies": {r.policy: summary(r) for r in found},
    }


def sensitivity(fleet: Fleet, past: Trace, trace: Trace) -> dict[str, Any]:
    """Ours where what it believes is wrong."""
    rows = {}
    for name, belief in BELIEFS.items():
        known = Knowledge(fleet, past.lengths, belief)
        ours = policy("ours", fleet, known, Plan.of(past))
        rows[name] = summary(rehearse(fleet, trace, ours))
    return rows


def elsewhere(path: Path, rate: float) -> tuple[Trace, Trace]:
    """The next half hour of a trace: another past, and what came after it."""
    whole = read_trace(path)
    after = whole.first(4 * SECONDS).split(2 * SECONDS)[1]
    return after.scaled(rate, SEED + 1).split(SECONDS)


def boldness(folder: Path) -> dict[str, Any]:
    """Ours by how much it dares, on the next half hour of both traces."""
    rows: dict[str, Any] = {}
    for mix, file in TRACES.items():
        for rate in BOLD_RATES:
            past, trace = elsewhere(folder / file, rate)
            for llm in LLMS:
                fleet = fleet_for(llm, mix)
                known, plan = Knowledge(fleet, past.lengths), Plan.of(past)
                for boldest in BOLDEST:
                    r = rehearse(fleet, trace, Ours(fleet, known, plan, boldest=boldest))
                    rows.setdefault(f"{boldest:g}", {})[f"{llm}, {mix}, {rate:g}"] = summary(r)
    return rows


def study(folder: Path, output: Path, mixes: Sequence[str] = ()) -> None:
    """Run everything, or the cells of some traces; what is done is kept, to go on with."""
    results: dict[str, Any] = {
        "seed": SEED, "seconds": SECONDS, "source": "simulated", "cells": {}, "sensitivity": {},
    }  # fmt: skip
    if output.exists():
        results = json.loads(output.read_text(encoding="utf-8"))
    for rate in RATES:
        for mix, file in TRACES.items():
            if mixes and mix not in mixes:
                continue
            past, trace = traces(folder / file, rate)
            for llm in LLMS:
                name = f"{llm}, {mix}, {rate:g}"
                if name not in results["cells"]:
                    results["cells"][name] = cell(
                        fleet_for(llm, mix), past, trace, bounded=rate <= BOUNDED_TO
                    )
                    output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for llm in LLMS if not mixes or "conversation" in mixes else ():
        if llm not in results["sensitivity"]:
            past, trace = traces(folder / TRACES["conversation"], 1.0)
            results["sensitivity"][llm] = sensitivity(fleet_for(llm, "conversation"), past, trace)
            output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if (not mixes or "code" in mixes) and "boldness" not in results:
        results["boldness"] = boldness(folder)
        output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Run the study, or write it down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("traces", nargs="?", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    parser.add_argument("--mix", action="append", choices=TRACES, help="its cells only")
    parser.add_argument("--document", type=Path)
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    if arguments.traces:
        study(arguments.traces, arguments.output, arguments.mix or ())
    results = json.loads(arguments.output.read_text(encoding="utf-8"))
    if arguments.document:
        arguments.document.write_text(document(results), encoding="utf-8")
    if arguments.figure:
        figure(results, arguments.figure)


if __name__ == "__main__":
    main()
