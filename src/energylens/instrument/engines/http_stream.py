"""A small HTTP/1.1 client on asyncio, made for one thing: timing streamed answers.

Hundreds of answers stream at once while the serving engine wants the same cores, so each
arriving piece costs a line split and a clock reading and no more. Connections are kept open
and used again. Whatever a server sends has a limit: lines, heads, bodies and events.

A request that may do something (POST) is sent once: were it sent again, unnoticed, a server
would work for two and be measured for one.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from energylens.errors import InputError
from energylens.foreign import without_secrets

_LONGEST_LINE_BYTES = 1 << 20
#: Of an answer, streamed or not: a million tokens with what goes around them.
LONGEST_ANSWER_BYTES = 1 << 28
_MOST_HEADERS = 200
_MOST_CONTINUES = 10
#: Servers hang up on connections that were idle for some seconds; younger ones are used again.
KEEP_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Response:
    """Status of an answer, and its body in the pieces that it came in."""

    status: int
    headers: dict[str, str]
    pieces: AsyncIterator[bytes]

    async def body(self) -> bytes:
        """Read the whole body."""
        return b"".join([piece async for piece in self.pieces])


class HttpClient:
    """Requests to one server.

    Parameters
    ----------
    url : str
        ``http://`` or ``https://`` address; its path is put before every request's.
    headers : dict of str to str
        Sent with every request.

    Raises
    ------
    InputError
        If the address is none.
    """

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        try:
            parts = urlsplit(url)
            port, host = parts.port, parts.hostname
        except ValueError:  # a port that is none, half a pair of brackets
            host = None
        if host is None or parts.scheme not in ("http", "https"):
            raise InputError(f"a server is given as http://HOST:PORT, not {without_secrets(url)!r}")
        if "@" in parts.netloc:
            raise InputError(
                "the address of a server must hold no name and password: give the key in an "
                "environment variable (api_key_env=NAME)"
            )
        self.host = host
        self._secure = parts.scheme == "https"
        self._port = port or (443 if self._secure else 80)
        self._prefix = parts.path.rstrip("/")
        self._headers = {"Host": parts.netloc.rpartition("@")[2]} | headers
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter, float]] = []

    async def request(self, method: str, path: str, body: bytes = b"") -> Response:
        """Send a request and wait for the head of its answer.

        Raises
        ------
        OSError, asyncio.IncompleteReadError
            If the server cannot be reached, or hangs up.
        """
        while self._idle:
            reader, writer, since_s = self._idle.pop()
            # A kept connection may have been closed by the server meanwhile: then take a new one.
            fresh = time.monotonic() - since_s < KEEP_S
            if not fresh or reader.at_eof() or writer.is_closing():
                writer.close()
                continue
            if method == "POST":
                return await self._send(reader, writer, method, path, body)
            with suppress(OSError, asyncio.IncompleteReadError):
                return await self._send(reader, writer, method, path, body)
            writer.close()
        context = ssl.create_default_context() if self._secure else None
        reader, writer = await asyncio.open_connection(
            self.host, self._port, ssl=context, limit=_LONGEST_LINE_BYTES
        )
        return await self._send(reader, writer, method, path, body)

    async def _send(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        method: str,
        path: str,
        body: bytes,
    ) -> Response:
        headers = self._headers | {"Content-Length": str(len(body))}
        if body:
            headers["Content-Type"] = "application/json"
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        writer.write(f"{method} {self._prefix}{path} HTTP/1.1\r\n{lines}\r\n".encode() + body)
        try:
            await writer.drain()
            status, received = await _read_head(reader)
        except BaseException:
            writer.close()
            raise
        return Response(
            status=status, headers=received, pieces=self._pieces(reader, writer, received)
        )

    async def _pieces(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        headers: dict[str, str],
    ) -> AsyncIterator[bytes]:
        complete, total = False, 0
        try:
            if headers.get("transfer-encoding", "").lower() == "chunked":
                while size := int((await _line(reader)).split(b";")[0], 16):
                    total = _within(total + _at_least_0(size))
                    yield await reader.readexactly(size)
                    await reader.readexactly(2)
                for _ in range(_MOST_HEADERS):  # trailers
                    if not await _line(reader):
                        complete = True
                        break
            elif "content-length" in headers:
                size = _within(_at_least_0(int(headers["content-length"])))
                yield await reader.readexactly(size)
                complete = True
            else:
                while piece := await reader.read(65536):
                    total = _within(total + len(piece))
                    yield piece
        finally:
            # An answer not read to its end (a cancelled request) closes its connection, which
            # tells the server to stop generating.
            if complete and headers.get("connection", "").lower() != "close":
                self._idle.append((reader, writer, time.monotonic()))
            else:
                writer.close()

    def close(self) -> None:
        """Close the connections kept open."""
        for _, writer, _ in self._idle:
            writer.close()
        self._idle.clear()


def _within(total: int) -> int:
    if total > LONGEST_ANSWER_BYTES:
        raise OSError(f"an answer of more than {LONGEST_ANSWER_BYTES >> 20} MiB")
    return total


def _at_least_0(size: int) -> int:
    if size < 0:
        raise OSError(f"an answer of {size} bytes")
    return size


async def _line(reader: asyncio.StreamReader) -> bytes:
    return (await reader.readuntil(b"\n")).rstrip(b"\r\n")


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    for _ in range(_MOST_CONTINUES):
        first = (await _line(reader)).split(None, 2)
        if len(first) < 2 or not first[0].startswith(b"HTTP/") or not first[1].isdigit():
            raise OSError(f"no HTTP answer but {b' '.join(first)[:60]!r}")
        status = int(first[1][:4])
        headers: dict[str, str] = {}
        for _ in range(_MOST_HEADERS):
            line = await _line(reader)
            if not line:
                break
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.strip().lower()] = value.strip()
        else:
            raise OSError(f"an answer with more than {_MOST_HEADERS} headers")
        if status != 100:
            return status, headers
    raise OSError("no answer but to go on, again and again")


async def server_events(response: Response) -> AsyncIterator[bytes]:
    """Yield the ``data:`` of each server-sent event as soon as it is complete."""
    rest = b""
    async for piece in response.pieces:
        lines = (rest + piece).split(b"\n")
        rest = lines.pop()
        if len(rest) > _LONGEST_LINE_BYTES:
            raise OSError(f"an event of more than {_LONGEST_LINE_BYTES >> 20} MiB")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()
