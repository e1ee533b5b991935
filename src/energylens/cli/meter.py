"""The verb meter: serve this host's meter to others, or look at it."""

from __future__ import annotations

import argparse
import os
import threading
from typing import Any

from energylens.cli.console import Subparsers, add_json, add_meter, port, print_json
from energylens.errors import UsageError


def add_verbs(verbs: Any) -> None:
    """Add the verb."""
    parser = Subparsers(verbs).add(
        "meter",
        "serve this host's meter, or look at it",
        _meter,
        (
            "energylens meter serve --port 9021 --token-file token.txt",
            "energylens meter read --meter nvml",
        ),
    )
    parser.add_argument("action", choices=("serve", "read"))
    add_meter(parser)
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default: loopback)")
    parser.add_argument("--port", type=port, default=9021)
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        help="holds what clients must know (default: $ENERGYLENS_METER_TOKEN, else a random one, "
        "printed)",
    )
    parser.add_argument(
        "--token", help="the same, in sight of everybody who can list this machine's processes"
    )
    add_json(parser)


def _meter(arguments: argparse.Namespace) -> None:
    from energylens.instrument import meters

    meter = meters.open_meter(arguments.meter)
    if arguments.action == "read":
        reading = meter.read()
        document = {
            "time_s": reading.time_s,
            "energy_j": {
                channel.id: joules
                for channel, joules in zip(meter.channels, reading.energy_j, strict=True)
            },
        }
        meter.close()
        if arguments.json:
            print_json(document)
            return
        for channel, joules in zip(meter.channels, reading.energy_j, strict=True):
            print(f"{channel.id} {channel.name}: {joules:.3f} J since the counter began")
        return
    token = _serving_token(arguments)
    server = meters.serve(meter, host=arguments.host, port=arguments.port, token=token)
    if arguments.json:
        print_json({"url": server.url, "token": server.token})
        print(end="", flush=True)
    else:
        # Whoever gave a token knows it, and a terminal's history need not.
        shown = f"; token {server.token}" if token is None else ""
        print(f"Serving {arguments.meter} at {server.url}{shown}", flush=True)
    try:
        threading.Event().wait()
    finally:
        server.close()


def _serving_token(arguments: argparse.Namespace) -> str | None:
    """Take the token from the command line, a file or the environment; None for a random one."""
    from energylens import files
    from energylens.instrument.meters import TOKEN_VARIABLE

    if arguments.token is not None and arguments.token_file is not None:
        raise UsageError("the token is given once: with --token-file or with --token")
    if arguments.token is not None:
        return str(arguments.token)
    if arguments.token_file is None:
        return os.environ.get(TOKEN_VARIABLE) or None
    token = files.read_text(arguments.token_file).strip()
    if not token:
        raise UsageError(f"{arguments.token_file} must hold a token, and is empty")
    return token
