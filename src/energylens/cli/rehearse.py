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
from energylens.errors import UsageError
from energylens.words import percent

if TYPE_CHECKING:
    from energylens.online.rehearsal import Rehearsal
    from energylens.online.trace import Trace

EVERY = "static-deployed,static-full-batch,static-service,queue,ours"
PAST_RATIO = 0.2  # of the trace, that is the past by default
FEWEST_REQUESTS = 20


def policies(text: str) -> list[str]:
    """Read names of policies from the command line."""
    names = list(dict.fromkeys(comma_list(text)))
    known = (*EVERY.split(","), "oracle")
    wrong = [n for n in names if n not in known]
    if wrong or not names:
        raise argparse.ArgumentTypeError(
            f"no policy is called {', '.join(map(repr, wrong)) or repr(text)}; "
            f"there are {', '.join(known)}"
        )
    return names


def add_verbs(verbs: Any) -> None:
    """Add the verb."""
    parser = Subparsers(verbs).add(
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
        type=policies,
        action="extend",
        metavar="NAME[,NAME...]",
        help=f"of {EVERY},oracle (default: all but the oracle, which takes minutes)",
    )
    parser.add_argument(
        "--past",
        metavar="SECONDS|FILE",
        help="what all policies know of lengths and rates: the first seconds of the trace, which "
        "are not rehearsed then, or another trace (default: the first fifth)",
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
    from energylens.online.fleet import read_fleet
    from energylens.online.knowledge import Knowledge
    from energylens.online.oracle import oracle
    from energylens.online.ours import Ours
    from energylens.online.plans import Plan
    from energylens.online.policies import ORACLE, policy
    from energylens.online.rehearsal import rehearse

    names = list(dict.fromkeys(arguments.policy or policies(EVERY)))
    fleet = read_fleet(arguments.fleet)
    past, trace = _traces(arguments)
    known = Knowledge(fleet, past.lengths)
    plan = Plan.of(past, fleet.file.serve.deployed_for_per_s)
    found: list[Rehearsal] = []
    reasons: list[str] = []
    progress = Progress("rehearsing")
    for done, name in enumerate(names):
        progress(done, len(names))
        if name == ORACLE:
            found.append(oracle(fleet, trace))
            continue
        chosen = policy(name, fleet, known, plan)
        found.append(rehearse(fleet, trace, chosen))
        if isinstance(chosen, Ours):
            reasons = chosen.reasons
    progress.close()
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
            "past": {
                "name": past.name,
                "made": past.made,
                "requests": len(past),
                "rate_per_s": past.rate_per_s,
                "planned_peak_rate_per_s": plan.peak_per_s,
                "input_tokens": past.lengths.input_tokens,
                "output_tokens": past.lengths.output_tokens,
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
        f"policies know {len(past):,} requests of the past, {past.rate_per_s:.2f} a second, and "
        f"plan for {plan.peak_per_s:.2f} a second; the oracle alone knows what comes. All joules "
        "are simulated, and of one request."
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


def _traces(arguments: argparse.Namespace) -> tuple[Trace, Trace]:
    """Read the past, which policies know, and what is rehearsed."""
    from energylens.online.trace import read_trace

    def made(trace: Trace) -> Trace:
        trace = trace.scaled(arguments.rate, arguments.seed)
        return trace.day(arguments.seed) if arguments.day else trace

    trace = made(read_trace(arguments.trace, first_s=arguments.first))
    if arguments.past is None:
        if len(trace) < FEWEST_REQUESTS:
            raise UsageError(
                f"{arguments.trace} has {len(trace)} requests: for {FEWEST_REQUESTS} or more the "
                "first fifth is the past that policies know; give another trace as --past FILE"
            )
        return trace.split(PAST_RATIO * trace.duration_s)
    try:
        seconds = float(arguments.past)
    except ValueError:
        return read_trace(arguments.past), trace
    if not 0 < seconds < trace.duration_s:
        raise UsageError(
            f"--past must be above 0 and below the {trace.duration_s:.0f} s of the trace, or "
            f"another trace; it is {arguments.past}"
        )
    return trace.split(seconds)


def _row(r: Rehearsal, base: float) -> tuple[str, ...]:
    document = r.to_json()
    return (
        r.policy,
        r.layout,
        f"{r.simulated_energy_j / r.requests:.1f}",
        percent(1 - r.simulated_energy_j / base),
        percent(r.within_ratio, 2),
        f"{1000 * document['ttft_s']['p99']:.0f} ms",
        f"{1000 * document['tpot_s']['p99']:.1f} ms",
    )
