"""Policies on the Azure traces of 2023 at 0.25 to 4 times their rate, on up to 8 H100, simulated.

    python -m studies.online ../shared/data/azure-llm-trace -o studies/online/online.json
    python -m studies.online --document docs/studies/online.md --figure docs/figures/online.svg

The first makes the numbers (half an hour on one core), the second writes them down.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from energylens.online.fleet import Fleet, fleet_of
from energylens.online.knowledge import Belief, Knowledge
from energylens.online.oracle import oracle
from energylens.online.policies import POLICIES, policy
from energylens.online.rehearsal import Rehearsal, rehearse
from energylens.online.trace import Trace, read_trace
from studies.online.tables import document, figure

SEED = 14
SECONDS = 1200.0
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
        "replica": {"start_s": 45},
    },
    "8B": {
        "serve": {
            "llm": "meta-llama/Llama-3.1-8B-Instruct", "gpu": "H100", "precision": "bf16",
            "tensor_parallel": 1, "replicas": 8,
        },
        "replica": {"start_s": 20},
    },
    "30B-A3B": {
        "serve": {
            "llm": "Qwen/Qwen3-30B-A3B-Instruct-2507", "gpu": "H100", "precision": "bf16",
            "tensor_parallel": 1, "replicas": 8,
        },
        "replica": {"start_s": 30},
    },
}  # fmt: skip
#: Limits of each request. Code has prompts of thousands of tokens and answers of 28.
LIMITS = {
    "conversation": {"70B FP8": ("2s", "60ms"), "8B": ("1s", "40ms"), "30B-A3B": ("1s", "40ms")},
    "code": {"70B FP8": ("10s", "500ms"), "8B": ("4s", "200ms"), "30B-A3B": ("4s", "200ms")},
}
CAPS_W = (600.0, 500.0, 400.0)
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
        "control": {"power_caps_w": CAPS_W, "max_gpus": 8},
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
        "drained_requests": whole["reconfigurations"]["drained_requests"],
    }


def cell(fleet: Fleet, trace: Trace, beam: int = 2) -> dict[str, Any]:
    """All policies and the oracle on one trace."""
    known = Knowledge(fleet, trace.lengths)
    found = [rehearse(fleet, trace, policy(name, fleet, known, trace)) for name in POLICIES]
    # Equal or better: the share asked for, or what the fleet as deployed reaches.
    share = min(fleet.file.limits.share, found[0].within_ratio)
    best = oracle(fleet, trace, known, found, beam=beam, share=share)
    return {
        "requests": len(trace),
        "share_ratio": round(share, 4),
        "policies": {r.policy: summary(r) for r in (*found, best)},
    }


def sensitivity(fleet: Fleet, trace: Trace) -> dict[str, Any]:
    """Ours where what it believes is wrong."""
    rows = {}
    for name, belief in BELIEFS.items():
        known = Knowledge(fleet, trace.lengths, belief)
        rows[name] = summary(rehearse(fleet, trace, policy("ours", fleet, known, trace)))
    return rows


def study(folder: Path, output: Path) -> None:
    """Run everything; what is done is kept, so that a run that was stopped goes on."""
    results: dict[str, Any] = {
        "seed": SEED, "seconds": SECONDS, "source": "simulated", "cells": {}, "sensitivity": {},
    }  # fmt: skip
    if output.exists():
        results = json.loads(output.read_text(encoding="utf-8"))
    for rate in RATES:
        for mix, file in TRACES.items():
            trace = read_trace(folder / file).first(SECONDS).scaled(rate, SEED)
            for llm in LLMS:
                name = f"{llm}, {mix}, {rate:g}"
                if name not in results["cells"]:
                    results["cells"][name] = cell(fleet_for(llm, mix), trace)
                    output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for llm in LLMS:
        if llm not in results["sensitivity"]:
            trace = read_trace(folder / TRACES["conversation"]).first(SECONDS).scaled(2.0, SEED)
            results["sensitivity"][llm] = sensitivity(fleet_for(llm, "conversation"), trace)
            output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Run the study, or write it down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("traces", nargs="?", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    parser.add_argument("--document", type=Path)
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    if arguments.traces:
        study(arguments.traces, arguments.output)
    results = json.loads(arguments.output.read_text(encoding="utf-8"))
    if arguments.document:
        arguments.document.write_text(document(results), encoding="utf-8")
    if arguments.figure:
        figure(results, arguments.figure)


if __name__ == "__main__":
    main()
