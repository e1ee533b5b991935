"""The verb control: advise what a running fleet should be, or act where that is allowed."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from energylens.cli.console import Subparsers, port, positive, positive_int, print_paragraph
from energylens.errors import UsageError

if TYPE_CHECKING:
    from energylens.online.controller import Advice


def add_verbs(verbs: Any) -> None:
    """Add the verb."""
    parser = Subparsers(verbs).add(
        "control",
        "advise replicas, batch limit and power cap of a running fleet; act only where allowed",
        _control,
        (
            "energylens control --fleet fleet.toml --trace yesterday.csv "
            "--metrics http://host:8000/metrics",
            "energylens control --fleet fleet.toml --trace yesterday.csv --metrics "
            "http://host:8000/metrics --act proxy --allow http://host:9000 --bounds 8,256",
        ),
    )
    parser.add_argument("--fleet", required=True, metavar="FLEET.toml", help="see docs/online.md")
    parser.add_argument(
        "--trace", required=True, metavar="TRACE", help="requests of the past: lengths and peak"
    )
    parser.add_argument(
        "--metrics",
        action="append",
        required=True,
        metavar="URL",
        help="of one engine, vLLM's or SGLang's; repeat for each replica",
    )
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--advise", action="store_true", help="only print and export (the default)")
    group.add_argument(
        "--act",
        metavar="ACTUATOR",
        help="let one act: zeusd, nvidia-smi, keda, wva, ray, sglang, vllm-sleep or proxy",
    )
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="TARGET",
        help="what it may change: a GPU's index, a server's address, a file (repeat)",
    )
    parser.add_argument(
        "--bounds", metavar="LOW,HIGH", help="within which a value must lie, as in 400,700"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="with --act: check what is allowed, read what is there, and log instead of changing",
    )
    parser.add_argument("--url", default="", help="of zeusd's daemon")
    parser.add_argument(
        "--token-file", metavar="FILE", help="holds the token of zeusd, SGLang or vLLM"
    )
    parser.add_argument(
        "--default", type=positive, metavar="W", help="what zeusd puts back if it cannot tell"
    )
    parser.add_argument("--log", metavar="FILE.jsonl", help="of every advice and action")
    parser.add_argument(
        "--export", metavar="FILE.json", help="keep the latest advice in a file, for others"
    )
    parser.add_argument(
        "--listen",
        type=port,
        metavar="PORT",
        help="show the latest advice at /v1/fleet and /metrics, on the loopback",
    )
    parser.add_argument("--looks", type=positive_int, metavar="N", help="end after so many")
    parser.add_argument("--json", action="store_true", help="print a JSON document a line")


def _bounds(text: str | None) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in (text or "").split(","))
    except ValueError:
        raise UsageError(
            "--act needs --bounds LOW,HIGH, within which a value must lie, as in 400,700; "
            f"{'none were given' if text is None else f'not {text!r}'}"
        ) from None
    if not low <= high:
        raise UsageError(f"--bounds must be LOW,HIGH, not {text!r}")
    return low, high


def _control(arguments: argparse.Namespace) -> None:
    from energylens import files
    from energylens.online.actuators import Consent, Hand, make
    from energylens.online.controller import Controller
    from energylens.online.fleet import read_fleet
    from energylens.online.knowledge import Knowledge
    from energylens.online.ours import Ours
    from energylens.online.plans import Plan
    from energylens.online.trace import read_trace
    from energylens.scraping import endpoint, fetch
    from energylens.watching.counters import read_counters

    hand = None
    if arguments.act:
        if not arguments.allow:
            raise UsageError(
                f"--act {arguments.act} may change nothing yet: give --allow TARGET for each"
            )
        low, high = _bounds(arguments.bounds)
        token = ""
        if arguments.token_file:
            token = files.read_text(arguments.token_file).strip()
        consent = Consent(
            actuator=arguments.act, targets=frozenset(arguments.allow), low=low, high=high
        )
    elif arguments.allow or arguments.bounds or arguments.dry_run:
        raise UsageError("--allow, --bounds and --dry-run mean something only with --act ACTUATOR")
    fleet = read_fleet(arguments.fleet)
    trace = read_trace(arguments.trace)
    # A running engine is not the simulated one: the model stands as it was fitted.
    known = Knowledge(fleet, trace.lengths, calibrate=False)
    policy = Ours(fleet, known, Plan.of(trace, fleet.file.serve.deployed_for_per_s), swaps=False)

    def log(document: dict[str, Any]) -> None:
        if arguments.log:
            stamped = {"time_s": round(time.time(), 3), **document}
            files.append_json_line(arguments.log, stamped)

    interval = fleet.file.control.interval_s
    if arguments.act:
        # What runs out by itself outlives two looks that come to nothing.
        lease_s = 3.0 * interval
        actuator = make(
            arguments.act, url=arguments.url, token=token, default=arguments.default,
            lease_s=lease_s,
        )  # fmt: skip
        hand = Hand(actuator, consent, log, lease_s=lease_s, dry=arguments.dry_run)
    readers = [
        partial(lambda url: read_counters(fetch(url), where=url), endpoint(url))
        for url in arguments.metrics
    ]
    controller = Controller(fleet, policy, readers, hand, arguments.allow, log)

    board = None
    if arguments.listen is not None:
        from energylens.online.showing import Board

        try:
            board = Board("127.0.0.1", arguments.listen)
        except OSError as error:
            raise UsageError(
                f"--listen {arguments.listen}: it cannot be had ({error.strerror}); give another"
            ) from None

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    looks = 0
    try:
        while arguments.looks is None or looks < arguments.looks:
            advice = controller.step(time.monotonic())
            looks += 1
            if board is not None:
                board.advice = advice
            _show(advice, arguments.json)
            if arguments.export:
                files.write_text(arguments.export, json.dumps(advice.to_json()) + "\n")
            if arguments.looks is None or looks < arguments.looks:
                time.sleep(interval)
    finally:
        signal.signal(signal.SIGTERM, before)
        if board is not None:
            board.shutdown()
            board.server_close()
        if hand is not None:
            hand.close()


def _show(advice: Advice, as_json: bool) -> None:
    if as_json:
        print(json.dumps(advice.to_json()), flush=True)
    else:
        print_paragraph(advice.describe())
        sys.stdout.flush()
