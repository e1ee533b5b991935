"""What stands before every answer: who may ask, how much, how fast; and what is counted.

A pure ASGI middleware: names of hosts (DNS rebinding reaches loopback, so loopback alone is no
protection), bodies bounded in size and time, a bound on requests a second, security headers.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from energylens.web.problems import problem

MOST_BODY_BYTES = 64 * 1024
MOST_ADDRESS_BYTES = 16 * 1024
MOST_HEADER_BYTES = 32 * 1024
BODY_S = 10.0
LOOPBACK = ("localhost", "127.0.0.1", "::1")
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


def is_loopback(host: str) -> bool:
    """Whether a host is this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


@dataclass(frozen=True, kw_only=True)
class Hosts:
    """The names under which the server answers.

    An address is never a rebound name, so where the server listens beyond loopback any address is
    taken, besides the names that were allowed.
    """

    listens: str = "127.0.0.1"
    allowed: tuple[str, ...] = ()

    def answers(self, header: str) -> bool:
        """Whether a ``Host`` header names this server."""
        name = header.strip().lower()
        if name.startswith("["):
            name, closed, port = name[1:].partition("]")
            port = port.removeprefix(":") if closed else "?"
        else:
            name, _, port = name.partition(":")
        if port and not port.isdecimal():
            return False
        if name in (*LOOPBACK, *(each.lower() for each in self.allowed)):
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return not is_loopback(self.listens) or address.is_loopback


class Bucket:
    """At most ``rate`` requests a second, ``burst`` of them at once."""

    def __init__(
        self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.rate, self.burst, self.clock = rate, burst, clock
        self.left, self.last = burst, clock()

    def take(self) -> bool:
        """Take one request's worth, if there is any left."""
        now = self.clock()
        self.left = min(self.burst, self.left + (now - self.last) * self.rate)
        self.last = now
        if self.left < 1.0:
            return False
        self.left -= 1.0
        return True


class BodyRefusedError(Exception):
    """A body beyond what is read, in size or time."""


class Guard:
    """Middleware around the whole application.

    Parameters
    ----------
    observe : callable
        Is told path, status and seconds of every answer.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: Hosts,
        bucket: Bucket,
        observe: Callable[[Any, int, float], None],
    ) -> None:
        self.app, self.hosts, self.bucket, self.observe = app, hosts, bucket, observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status, begun = time.perf_counter(), 500, False
        refusal: JSONResponse | None = None

        async def telling(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if scope["path"].startswith(("/v1", "/metrics", "/page")):
                    headers.setdefault("cache-control", "no-store")
            await send(message)

        async def sending(message: Message) -> None:
            # Who reads the body hides why it could not be read: that is said in its place.
            if refusal is None or begun:
                await telling(message)

        def refuse(answer: JSONResponse) -> None:
            nonlocal refusal
            refusal = answer

        try:
            await self._answer(scope, self._bounded(scope, receive, refuse), sending)
        except BodyRefusedError:
            if begun:
                raise
        except asyncio.CancelledError:
            # Told to stop, the server waits for answers under way no longer than it may.
            if begun:
                raise
            refusal = problem(
                503, "the server stops: ask again in a second", headers={"retry-after": "1"}
            )
        finally:
            if refusal is not None and not begun:
                await refusal(scope, receive, telling)
            self.observe(scope.get("route"), status, time.perf_counter() - started)

    @staticmethod
    def _bounded(scope: Scope, receive: Receive, refuse: Callable[[JSONResponse], None]) -> Receive:
        """Read a body up to a size and a time."""
        headers = Headers(scope=scope)
        until = asyncio.get_running_loop().time() + BODY_S
        length = headers.get("content-length", "0")
        named = int(length[:18]) if length.isdecimal() else 0
        read, complete = 0, False
        large = problem(413, f"a body must be at most {MOST_BODY_BYTES} bytes")
        slow = problem(408, f"the body must arrive within {BODY_S:g} s")

        async def receiving() -> Message:
            nonlocal read, complete
            if complete:
                return await receive()
            if named > MOST_BODY_BYTES:
                refuse(large)
                raise BodyRefusedError
            try:
                async with asyncio.timeout_at(until):
                    message = await receive()
            except TimeoutError:
                refuse(slow)
                raise BodyRefusedError from None
            read += len(message.get("body", b""))
            if read > MOST_BODY_BYTES:
                refuse(large)
                raise BodyRefusedError
            complete = not message.get("more_body", False)
            return message

        return receiving

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        given = [value for name, value in scope["headers"] if name == b"host"]
        if len(given) != 1 or not self.hosts.answers(headers.get("host", "")):
            refused = problem(
                421,
                "the Host header must name this server: loopback, an address that it listens on, "
                "or a name given with --allow-host",
            )
            await refused(scope, receive, send)
            return
        if len(scope["raw_path"]) + len(scope["query_string"]) > MOST_ADDRESS_BYTES:
            refused = problem(414, f"an address must be at most {MOST_ADDRESS_BYTES} bytes")
            await refused(scope, receive, send)
            return
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MOST_HEADER_BYTES:
            refused = problem(431, f"headers must be at most {MOST_HEADER_BYTES} bytes")
            await refused(scope, receive, send)
            return
        path = scope["path"]
        if path.startswith(("/v1/", "/page/")) and not self.bucket.take():
            refused = problem(
                429,
                f"more than {self.bucket.rate:g} requests/s: ask again in a second",
                headers={"retry-after": "1"},
            )
            await refused(scope, receive, send)
            return
        await self.app(scope, receive, send)
