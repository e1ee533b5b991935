"""The verb ``serve``: the page and the HTTP API."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from energylens.cli.console import Subparsers, add_json, port, positive, positive_int, print_json
from energylens.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from energylens.web.models import Loaded

PORT = 8421
STOP_S = 20  # for answers under way when the server is told to stop; pods get 30
MOST_CONNECTIONS = 256


def add_verbs(verbs: Any) -> None:
    """Add the verb of this module."""
    parser = Subparsers(verbs).add(
        "serve",
        "show the page, and answer over HTTP",
        _serve,
        (
            "energylens serve",
            "energylens serve model.json --data runs.csv",
            "energylens serve --host 0.0.0.0 --allow-host energylens.example.org",
        ),
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        help="a model.json, a tidy table (fitted as fit does), a model that energylens models "
        "lists, or the word datasheet; by default the rows of --data, fitted, or the packaged "
        "model of each GPU type",
    )
    parser.add_argument("--data", metavar="RUNS.csv", help="a tidy table for the second view")
    parser.add_argument(
        "--front", metavar="FRONT.json", help="discovered forms of these rows (energylens discover)"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this "
        "machine alone)"
    )  # fmt: skip
    parser.add_argument(
        "--port", type=port, default=PORT, help=f"default: {PORT}; 0 takes a free one"
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="answer under this name too (repeat for more)",
    )
    parser.add_argument(
        "--rate",
        type=positive,
        default=200.0,
        metavar="R",
        help="questions that are answered in a second (default: 200)",
    )
    parser.add_argument(
        "--most-rows",
        type=positive_int,
        default=1_000_000,
        metavar="N",
        help="rows that --data may have (default: 1000000)",
    )
    add_json(parser)


def _serve(arguments: argparse.Namespace) -> None:
    # Answers are many small products of matrices: threads of BLAS would only wait for each other.
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    for package in ("fastapi", "uvicorn", "prometheus_client", "vl_convert"):
        if not _there(package):
            raise MissingExtraError(package.replace("_", "-"), "serve", "the page")
    import uvicorn

    from energylens.web.app import create
    from energylens.web.guard import Hosts
    from energylens.web.listening import PatientProtocol

    loaded = _loaded(arguments)
    listening = _listen(arguments.host, arguments.port)
    host, port = listening.getsockname()[:2]
    app = create(
        loaded,
        hosts=Hosts(listens=host, allowed=tuple(arguments.allow_host)),
        most_rate=arguments.rate,
    )
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=STOP_S,
            timeout_keep_alive=15,
            limit_concurrency=MOST_CONNECTIONS,
            h11_max_incomplete_event_size=32 * 1024,
            http=PatientProtocol,
        )
    )

    def stop(*_: Any) -> None:
        server.should_exit = True

    # SIGTERM ends it after the answers under way, also before it listens to signals itself; uvicorn
    # raises the signal again afterwards.
    signal.signal(signal.SIGTERM, stop)
    shown = f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{port}/"
    if arguments.json:
        print_json({"url": url, "host": host, "port": port, "models": loaded.names()})
    else:
        print(f"{url}  (Ctrl-C stops)")
    sys.stdout.flush()
    with listening:
        server.run(sockets=[listening])


def _there(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is not None


def _loaded(arguments: argparse.Namespace) -> Loaded:
    """Read what the server answers from."""
    from energylens import files, fitting, table
    from energylens.discovery import Front
    from energylens.latency_fitting import fitted_times
    from energylens.packaged import model_for
    from energylens.web.models import Loaded

    dataset, model, name, own = None, None, "", False
    if arguments.data:
        dataset = table.read(arguments.data)
        if not len(dataset):
            raise UsageError(f"{arguments.data} has no rows: give a table with one or more")
        if len(dataset) > arguments.most_rows:
            raise UsageError(
                f"{arguments.data} has {len(dataset)} rows and --most-rows allows "
                f"{arguments.most_rows}: give fewer rows, or allow more"
            )
    if arguments.front and dataset is None:
        raise UsageError("--front shows forms beside the rows they were found in: give --data too")
    if arguments.model:
        model, _ = model_for(arguments.model, "", None)
        name, own = Path(arguments.model).name, arguments.model == arguments.data
    elif dataset is not None:
        model = replace(fitting.fit(dataset, fitting.FitOptions()), time=fitted_times(dataset))
        name, own = Path(arguments.data).name, True
    front = arguments.front
    return Loaded(
        model=model,
        name=name,
        dataset=dataset,
        dataset_name=Path(arguments.data).name if arguments.data else "",
        dataset_path=str(Path(arguments.data).resolve()) if arguments.data else "",
        fitted_to_rows=own,
        front=Front.from_json(files.read_json(front), front) if front else None,
    )


def _listen(host: str, port: int) -> socket.socket:
    """Open the socket, so that a port in use is said before anything is served."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # Named as TCP, or asyncio leaves Nagle's algorithm on: 40 ms of each answer that follows
        # another on a connection.
        opened = socket.socket(family, kind, protocol)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(2048)  # who asks early waits
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host} port {port}: {error.strerror or error}; give another --port, "
            "or 0 for a free one"
        ) from error
    return opened
