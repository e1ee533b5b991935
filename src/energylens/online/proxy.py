"""An admission proxy: at most so many requests at once in the server behind it, the rest wait.

HTTP/1.1 on asyncio, streamed both ways. Without a limit it only passes on. A limit is set with
``PUT /_energylens/limit`` and ``{"limit": 16, "lease_s": 10}``, and forgotten after the lease
unless it is set again: whatever becomes of the controller, the server is as it was. A request
that finds nothing running may be held for company (``"hold_s"``).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import deque
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from energylens.errors import InputError
from energylens.viewing import picked

LONGEST_HEAD_BYTES = 1 << 16
LONGEST_LEASE_S = 3600.0
MOST_WAITING = 10_000
PIECE_BYTES = 1 << 16
#: Paths that cost the engine nothing: never held back.
FREE = ("/health", "/metrics", "/v1/models", "/ping", "/version", "/get_server_info")


class Gate:
    """Lets a number of requests in at once, first come first served.

    Attributes
    ----------
    running, waiting, most_running : int
        Now, now, and at most so far.
    """

    def __init__(self) -> None:
        self.limit: int | None = None
        self.hold_s = 0.0
        self.until_s = 0.0
        self.running = self.most_running = 0
        self._queue: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._queue)

    def set(self, limit: int | None, lease_s: float, hold_s: float = 0.0) -> None:
        """Hold a limit for a lease; None: no limit."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.limit, self.hold_s = limit, hold_s if limit is not None else 0.0
        if limit is not None:
            self.until_s = time.monotonic() + lease_s
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(lease_s, self.set, None, 0.0)
        self._let_in()

    async def enter(self) -> None:
        """Wait for a place.

        Raises
        ------
        OverflowError
            If too many wait.
        """
        if self.hold_s and not self.running and not self._queue:
            await asyncio.sleep(self.hold_s)
        if self.limit is None or (self.running < self.limit and not self._queue):
            self._in()
            return
        if len(self._queue) >= MOST_WAITING:
            raise OverflowError
        turn = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()
            else:
                self._queue.remove(turn)
            raise

    def leave(self) -> None:
        """Give the place back."""
        self.running -= 1
        self._let_in()

    def _in(self) -> None:
        self.running += 1
        self.most_running = max(self.most_running, self.running)

    def _let_in(self) -> None:
        while self._queue and (self.limit is None or self.running < self.limit):
            turn = self._queue.popleft()
            if not turn.done():
                self._in()
                turn.set_result(None)


class AdmissionProxy:
    """A proxy before one server.

    Parameters
    ----------
    upstream : str
        ``http://HOST:PORT``.
    host, port
        Where it listens; port 0 takes a free one, which ``url`` then has.
    """

    def __init__(self, upstream: str, host: str = "127.0.0.1", port: int = 0) -> None:
        parts = urlsplit(upstream)
        if parts.scheme != "http" or not parts.hostname:
            raise InputError(f"a server behind the proxy is http://HOST:PORT, not {upstream!r}")
        self._host, self._port = parts.hostname, parts.port or 80
        self._listen = (host, port)
        self.gate = Gate()
        self.url = ""
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(
            self._serve, *self._listen, limit=LONGEST_HEAD_BYTES
        )
        host, port = self._server.sockets[0].getsockname()[:2]
        self.url = f"http://{host}:{port}"

    async def close(self) -> None:
        """Stop listening."""
        self.gate.set(None, 0.0)
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._one(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            pass  # whoever asked, or the server, has hung up
        finally:
            with suppress(OSError):
                writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass one request on; the connection ends with it, so that bodies need no parsing."""
        head = await reader.readuntil(b"\r\n\r\n")
        first, _, rest = head.partition(b"\r\n")
        method, target, _ = first.decode("latin-1").split(" ", 2)
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (
                line.partition(":") for line in rest.decode("latin-1").split("\r\n") if line
            )
        }
        path = urlsplit(target).path
        if path == "/_energylens/limit":
            size = int(headers.get("content-length", "0"))
            await self._limit(method, await reader.readexactly(min(size, 4096)), writer)
            return
        kept = [
            line
            for line in rest.decode("latin-1").split("\r\n")
            if line and line.split(":")[0].strip().lower() not in ("connection", "keep-alive")
        ]
        onward = "\r\n".join([first.decode("latin-1"), *kept, "Connection: close", "", ""])
        free = path in FREE or method == "GET"
        if not free:
            try:
                await self.gate.enter()
            except OverflowError:
                await _answer(writer, 503, {"error": "too many requests wait"})
                return
        try:
            await self._pass(onward.encode("latin-1"), headers, reader, writer)
        finally:
            if not free:
                self.gate.leave()

    async def _pass(
        self,
        head: bytes,
        headers: dict[str, str],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        try:
            up, down = await asyncio.open_connection(self._host, self._port)
        except OSError:
            await _answer(writer, 502, {"error": "the server does not answer"})
            return
        try:
            down.write(head)
            left = int(headers.get("content-length", "0"))
            chunked = "chunked" in headers.get("transfer-encoding", "").lower()
            body = asyncio.create_task(_copy(reader, down, None if chunked else left))
            try:
                while piece := await up.read(PIECE_BYTES):
                    writer.write(piece)
                    await writer.drain()
            finally:
                body.cancel()
                with suppress(asyncio.CancelledError, OSError):
                    await body
        finally:
            with suppress(OSError):
                down.close()

    async def _limit(self, method: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        gate = self.gate
        if method == "PUT":
            try:
                asked: Any = json.loads(body)
                limit, lease_s = asked["limit"], float(asked["lease_s"])
                hold_s = float(asked.get("hold_s", 0.0))
                good = limit is None or (type(limit) is int and 1 <= limit <= 1_000_000)
                good = good and 0 < lease_s <= LONGEST_LEASE_S and 0 <= hold_s <= 60
            except (ValueError, TypeError, KeyError, AttributeError):
                good = False
            if not good:
                said = '{"limit": N or null, "lease_s": up to 3600, "hold_s": up to 60}'
                await _answer(writer, 400, {"error": f"a limit is {said}"})
                return
            gate.set(limit, lease_s, hold_s)
        await _answer(writer, 200, picked(gate, "limit hold_s running waiting most_running"))


async def _copy(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, left: int | None
) -> None:
    while left is None or left > 0:
        piece = await reader.read(PIECE_BYTES if left is None else min(left, PIECE_BYTES))
        if not piece:
            break
        left = None if left is None else left - len(piece)
        writer.write(piece)
        await writer.drain()


async def _answer(writer: asyncio.StreamWriter, status: int, document: Any) -> None:
    body = json.dumps(document).encode()
    words = {200: "OK", 400: "Bad Request", 502: "Bad Gateway", 503: "Service Unavailable"}
    writer.write(
        f"HTTP/1.1 {status} {words[status]}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
        + body
    )
    await writer.drain()


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m energylens.online.proxy", description=__doc__)
    parser.add_argument("upstream", help="http://HOST:PORT of the server")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9000)
    arguments = parser.parse_args()

    async def run() -> None:
        proxy = AdmissionProxy(arguments.upstream, arguments.host, arguments.port)
        await proxy.start()
        sys.stdout.write(f"{proxy.url} passes on to {arguments.upstream}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()

    with suppress(KeyboardInterrupt):
        asyncio.run(run())


if __name__ == "__main__":
    main()
