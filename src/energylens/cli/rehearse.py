"""The verb rehearse: what policies would have done with a fleet on a trace, simulated."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from energylens.cli.console import (
    Progress,
    Subparsers,
    add_json,
    add_seed,
    comma_list,
    positive,
    print_json,
    print_paragraph,
    print_table,
)

if TYPE_CHECKING:
    from energylens.online.rehearsal import Rehearsal

EVERY = "static-deployed,static-full-batch,static-service,queue,ours"


def add_verbs(verbs: Any) -> None:
    """Add the verb."""
    subparsers = Subparsers(verbs)
    parser = subparsers.add(
        "rehearse",
        "rehearse a fleet on a trace of requests, under one policy or several, in simulation",
        _rehearse,
        (
            "energylens rehearse trace.csv --fleet fleet.toml",
            "energylens rehearse trace.csv --fleet fleet.toml --policy ours,queue,oracle --rate 2",
        ),
    )
    parser.add_argument(
        "trace",
        metavar="TRACE",
        help="one line a request: TIMESTAMP, ContextTokens, GeneratedTokens, as in the Azure "
        "traces, or arrival_s, input_tokens, output_tokens",
    )
    parser.add_argument("--fleet", required=True, metavar="FLEET.toml", help="see docs/online.md")
    parser.add_argument(
        "--policy",
        type=comma_list,
        default=comma_list(EVERY),
        metavar="NAME[,NAME...]",
        help=f"of {EVERY},oracle (default: all but the oracle, which takes minutes)",
    )
    parser.add_argument(
        "--rate", type=positive, default=1.0, metavar="X", help="multiply the rate (default: 1)"
    )
    parser.add_argument(
        "--first", type=positive, metavar="SECONDS", help="rehearse the first seconds only"
    )
    parser.add_argument(
        "--day", action="store_true", help="make a day of the trace: 24 hours, a peak at 15 h"
    )
    parser.add_argument("--reasons", action="store_true", help="print why ours did what it did")
    add_seed(parser)
    add_json(parser)


def _rehearse(arguments: argparse.Namespace) -> None:
    from energylens.errors import UnknownChoiceError, UsageError
    from energylens.online.fleet import read_fleet
    from energylens.online.knowledge import Knowledge
    from energylens.online.oracle import oracle
    from energylens.online.policies import ORACLE, POLICIES, Ours, Plan, policy
    from energylens.online.rehearsal import rehearse
    from energylens.online.trace import read_trace

    names = list(dict.fromkeys(arguments.policy))
    if not names:
        raise UsageError(f"--policy needs a name: of {', '.join((*POLICIES, ORACLE))}")
    for name in names:
        if name not in (*POLICIES, ORACLE):
            raise UnknownChoiceError(
                "policy", name, (*POLICIES, ORACLE), f"Known are {', '.join((*POLICIES, ORACLE))}."
            )
    fleet = read_fleet(arguments.fleet)
    trace = read_trace(arguments.trace, first_s=arguments.first)
    trace = trace.scaled(arguments.rate, arguments.seed)
    if arguments.day:
        trace = trace.day(arguments.seed)
    known = Knowledge(fleet, trace.lengths)
    found: list[Rehearsal] = []
    reasons: list[str] = []
    # The oracle knows what all others would do.
    tried = [n for n in (POLICIES if ORACLE in names else names) if n != ORACLE]
    progress = Progress("rehearsing")
    for done, name in enumerate(tried):
        progress(done, len(tried) + (ORACLE in names))
        chosen = policy(name, fleet, known, trace)
        found.append(rehearse(fleet, trace, chosen))
        if isinstance(chosen, Ours):
            reasons = chosen.reasons
    if ORACLE in names:
        found.append(oracle(fleet, trace, known, found))
    progress.close()
    found = [r for name in names for r in found if r.policy == name]
    if arguments.json:
        document: dict[str, Any] = {
            "source": "simulated",
            "trace": {
                "name": trace.name,
                "made": trace.made,
                "requests": len(trace),
                "duration_s": trace.duration_s,
                "rate_per_s": trace.rate_per_s,
                "peak_rate_per_s": Plan.of(trace).peak_per_s,
            },
            "limits": {
                "ttft_s": fleet.ttft_s,
                "tpot_s": fleet.tpot_s,
                "share": fleet.file.limits.share,
            },
            "policies": [r.to_json() for r in found],
        }
        if arguments.reasons:
            document["reasons"] = reasons
        print_json(document)
        return
    made = f" ({trace.made})" if trace.made else ""
    print_paragraph(
        f"{len(trace):,} requests of {trace.name}{made} in {trace.duration_s / 60:.0f} minutes, "
        f"{trace.rate_per_s:.2f} a second; {fleet.llm.id} in {fleet.precision.id} on up to "
        f"{fleet.gpus} {fleet.gpu.id}; TTFT <= {1000 * fleet.ttft_s:g} ms and TPOT <= "
        f"{1000 * fleet.tpot_s:g} ms for {100 * fleet.file.limits.share:g} % of the requests. All "
        "joules are simulated, and of one request."
    )
    print()
    base = found[0].simulated_energy_j
    print_table(
        ("policy", "layout", "simulated J", "saved", "within", "TTFT p99", "TPOT p99"),
        [_row(r, base) for r in found],
        left=2,
    )  # fmt: skip
    print()
    parts = ("steps", "loaded_idle", "sleeping", "starting")
    print_table(
        ("simulated J", "steps", "idle", "asleep", "starts", "replicas", "starts/stops",
         "drained"),
        [
            (
                r.policy,
                *(f"{r.simulated_joules[p] / r.requests:.1f}" for p in parts),
                f"{r.mean_replicas:.2f}",
                "/".join(str(sum(c.what == w for c in r.changes)) for w in ("start", "stop")),
                str(sum(c.drained_requests for c in r.changes)),
            )
            for r in found
        ],
    )  # fmt: skip
    if arguments.reasons:
        print()
        for reason in reasons:
            print_paragraph(f"{reason} (simulated)")


def _row(r: Rehearsal, base: float) -> tuple[str, ...]:
    document = r.to_json()
    return (
        r.policy,
        r.layout,
        f"{r.simulated_energy_j / r.requests:.1f}",
        f"{100 * (1 - r.simulated_energy_j / base):.1f} %",
        f"{100 * r.within_ratio:.2f} %",
        f"{1000 * document['ttft_s']['p99']:.0f} ms",
        f"{1000 * document['tpot_s']['p99']:.1f} ms",
    )
