"""A meter on another machine: served over HTTP, read by a client that knows its clock.

The server holds one meter and answers whoever knows its token, each answer in one packet. It
hangs up on whoever says nothing for a while, and takes so many connections at a time. The client
measures how far the two clocks are apart (as NTP does: the answer was made half a round trip ago,
and the fastest round trip says so best) and gives readings in its own time.

Traffic is not encrypted: across networks that others share, go through an SSH tunnel.
"""

from __future__ import annotations

import hmac
import http.client
import json
import secrets
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from energylens.errors import UsageError
from energylens.foreign import printable
from energylens.instrument.meter import DeviceState, Meter, MeterError, Reading
from energylens.instrument.meters import wire
from energylens.instrument.meters.wall_clock import WallClockMeter
from energylens.records import Source

_PATHS = ("/v1/meter", "/v1/reading", "/v1/states", "/v1/time")
#: Who says nothing for so long is hung up on; a client connects again by itself.
PATIENCE_S = 10.0
#: Connections at a time: a sweep needs one or two on each node.
MOST_CONNECTIONS = 64
#: No answer of a meter is longer, with thousands of channels.
LONGEST_ANSWER_BYTES = 1 << 22


class _Server(ThreadingHTTPServer):
    """Threads for so many connections and no more, on IPv4 or IPv6."""

    daemon_threads = True

    def __init__(self, address: tuple[Any, ...], family: int, handler: type) -> None:
        self.address_family = family
        self._places = threading.BoundedSemaphore(MOST_CONNECTIONS)
        super().__init__(address, handler)

    def server_bind(self) -> None:
        # HTTPServer would ask the name server who we are, and may wait long for the answer.
        socketserver.TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        error = sys.exception()
        if not isinstance(error, OSError):  # those are clients that hung up: nothing to tell
            said = printable(f"{type(error).__name__}: {error}", 200)
            print(f"a request of {client_address[0]} failed: {said}", file=sys.stderr)  # noqa: T201


class MeterServer:
    """A meter behind HTTP. Made by :func:`serve`."""

    def __init__(self, meter: Meter, server: ThreadingHTTPServer, token: str) -> None:
        self._meter = meter
        self._server = server
        self.token = token
        self._thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Where it listens."""
        host, port = self._server.server_address[:2]
        name = host.decode() if isinstance(host, bytes) else str(host)
        return f"http://{f'[{name}]' if ':' in name else name}:{port}"

    def wait(self) -> None:
        """Serve until :meth:`close` or an interrupt."""
        while self._thread.is_alive():
            self._thread.join(timeout=0.5)

    def close(self) -> None:
        """Stop serving, and close the meter."""
        self._server.shutdown()
        self._server.server_close()
        self._meter.close()


def serve(
    meter: Meter, *, host: str = "127.0.0.1", port: int = 0, token: str | None = None
) -> MeterServer:
    """Serve a meter in a thread.

    Parameters
    ----------
    meter : Meter
        What to serve; the server closes it.
    host, port : str, int
        Where to listen; port 0 takes a free one (see :attr:`MeterServer.url`). ``0.0.0.0`` or
        ``::`` listens on every address of this machine.
    token : str, optional
        What clients must know; a random one if not given.

    Raises
    ------
    UsageError
        If the host is empty, or the token is.
    MeterError
        If the address cannot be listened on.
    """
    if not host.strip():
        raise UsageError(
            "the address to listen on must be named: 127.0.0.1 for this machine alone, 0.0.0.0 for "
            "every address that it has."
        )
    if token is not None and not token.strip():
        raise UsageError("a token must not be empty: leave it out for a random one.")
    secret = token or secrets.token_urlsafe(16)
    about = {
        "name": meter.name,
        "source": str(meter.source),
        "period_s": meter.period_s,
        "channels": [asdict(channel) for channel in meter.channels],
        "provenance": dict(meter.provenance()),
    }
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = PATIENCE_S
        # Head and body leave in one packet: a reading is as late as its answer.
        wbufsize = -1
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            given = self.headers.get("Authorization", "")
            if not hmac.compare_digest(given.encode(), f"Bearer {secret}".encode()):
                self._answer(401, {"error": "the token is missing or wrong"})
            elif self.path not in _PATHS:
                self._answer(404, {"error": f"there is nothing but {', '.join(_PATHS)}"})
            else:
                try:
                    with lock:
                        answer = self._read()
                except Exception as error:  # whatever a device throws, the client must hear of
                    said = str(error) if isinstance(error, MeterError) else repr(error)
                    self._answer(503, {"error": printable(said, 500)})
                else:
                    self._answer(200, answer)

        def _read(self) -> dict[str, Any]:
            if self.path == "/v1/time":
                return {"time_s": meter.now_s()}
            if self.path == "/v1/states":
                return {"states": [asdict(state) for state in meter.states()]}
            return asdict(meter.read()) if self.path == "/v1/reading" else about

        def _answer(self, status: int, document: Mapping[str, Any]) -> None:
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: ARG002
            return None

    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        server = _Server(address, family, Handler)
    except (OSError, OverflowError, UnicodeError) as error:
        raise MeterError(f"cannot listen on {host}:{port}: {error}. Choose another.") from None
    return MeterServer(meter, server, secret)


class HttpMeter(WallClockMeter):
    """A meter that another machine serves, read in this machine's time.

    Parameters
    ----------
    url : str
        As in ``http://node7:9400``.
    token : str
        The one the server was given, or has printed.
    timeout_s : float
        Longest wait for an answer.

    Raises
    ------
    UsageError
        If the URL is none.
    MeterError
        If nothing answers, or the token is wrong.
    """

    #: Clocks drift apart by tens of microseconds a second; look again after this long.
    offset_lifetime_s = 60.0

    def __init__(self, url: str, token: str, *, timeout_s: float = 5.0) -> None:
        try:
            parts = urlsplit(url)
            host, port, scheme = parts.hostname, parts.port, parts.scheme
            named = parts.username is not None or parts.password is not None
        except ValueError:  # a port that is none, half a pair of brackets
            host = port = scheme = None
            named = False
        if named:
            raise UsageError(
                "the URL of a served meter must hold no name and password: its token is given "
                "apart, in $ENERGYLENS_METER_TOKEN."
            )
        if scheme != "http" or not host:
            raise UsageError(f"a served meter has a URL like http://node7:9400, not {url!r}.")
        self._url = url
        self._token = token
        self._lock = threading.Lock()
        self._connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
        self.clock_offset_s = self.clock_uncertainty_s = self._offset_made_s = 0.0
        try:
            about = self._get("/v1/meter")
            self.name = printable(about["name"], 100)
            self.source = Source(about["source"])
            self.period_s = wire.period_s(about["period_s"])
            self._provenance = {
                printable(k, 200): printable(v, 500) for k, v in about["provenance"].items()
            }
            self.channels = wire.channels(about["channels"])
            self._compare_clocks()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            self.close()
            raise MeterError(
                f"{url} is no meter of this version of energylens: {error!r}"
            ) from None
        except MeterError:
            self.close()
            raise

    def _get(self, path: str) -> Any:
        headers = {"Authorization": f"Bearer {self._token}"}
        with self._lock:
            for attempt in (1, 2):
                try:
                    self._connection.request("GET", path, headers=headers)
                    answer = self._connection.getresponse()
                    status, body = answer.status, answer.read(LONGEST_ANSWER_BYTES)
                    if not answer.isclosed():
                        answer.close()
                        raise http.client.HTTPException("an answer longer than any meter's")
                    break
                except (OSError, http.client.HTTPException) as error:
                    self._connection.close()  # a kept-alive connection may have gone stale
                    if attempt == 2:
                        raise MeterError(
                            f"the meter at {self._url} does not answer "
                            f"({error or type(error).__name__}). "
                            "Run `energylens meter serve` on that host."
                        ) from None
        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            raise MeterError(f"{self._url} answers, but is no energylens meter.") from None
        if status != 200:
            said = document.get("error") if isinstance(document, dict) else status
            words = printable(said, 500).removesuffix(".")
            raise MeterError(f"the meter at {self._url} says: {words}.")
        return document

    def _compare_clocks(self, looks: int = 7) -> None:
        trips = []
        for _ in range(looks):
            sent = time.monotonic()
            document = self._get("/v1/time")
            received = time.monotonic()
            if not isinstance(document, dict):
                raise MeterError(f"{self._url} does not say what time it is there.")
            there = wire.time_s(document.get("time_s"))
            trips.append((received - sent, there - (sent + received) / 2))
        trip, offset = min(trips)
        self.clock_offset_s, self.clock_uncertainty_s = offset, trip / 2
        self._offset_made_s = time.monotonic()

    def read(self) -> Reading:
        """Ask for a reading, and give it in this machine's time."""
        if time.monotonic() - self._offset_made_s > self.offset_lifetime_s:
            self._compare_clocks()
        reading = wire.reading(self._get("/v1/reading"), len(self.channels))
        return replace(reading, time_s=reading.time_s - self.clock_offset_s)

    def states(self) -> tuple[DeviceState, ...]:
        """Ask for the states of the devices."""
        document = self._get("/v1/states")
        found = document.get("states") if isinstance(document, dict) else None
        if not isinstance(found, list):
            raise MeterError(f"{self._url} sent no states of devices.")
        return tuple(map(wire.state, found[: wire.MOST_CHANNELS]))

    def provenance(self) -> Mapping[str, str]:
        """What the server said of its meter, and how far apart the clocks are."""
        return self._provenance | {
            "meter_url": self._url,
            "meter_clock_offset_s": f"{self.clock_offset_s:.6f}",
            "meter_clock_uncertainty_s": f"{self.clock_uncertainty_s:.6f}",
        }

    def close(self) -> None:
        """Hang up."""
        with self._lock:
            self._connection.close()
