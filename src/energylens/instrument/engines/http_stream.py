"""A small HTTP/1.1 client on asyncio, made for one thing: timing streamed answers.

Hundreds of answers stream at once while the serving engine wants the same cores, so each
arriving piece costs a line split and a clock reading and no more. Connections are kept open
and used again.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from energylens.errors import InputError

_LONGEST_LINE_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Response:
    """Status of an answer, and its body in the pieces that it came in."""

    status: int
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
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"a server is given as http://HOST:PORT, not {url!r}")
        self.host = parts.hostname
        self._secure = parts.scheme == "https"
        self._port = parts.port or (443 if self._secure else 80)
        self._prefix = parts.path.rstrip("/")
        self._headers = {"Host": parts.netloc.rpartition("@")[2]} | headers
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def request(self, method: str, path: str, body: bytes = b"") -> Response:
        """Send a request and wait for the head of its answer.

        Raises
        ------
        OSError, asyncio.IncompleteReadError
            If the server cannot be reached, or hangs up.
        """
        while self._idle:
            reader, writer = self._idle.pop()
            # A kept connection may have been closed by the server meanwhile: then take a new one.
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
        return Response(status=status, pieces=self._pieces(reader, writer, received))

    async def _pieces(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        headers: dict[str, str],
    ) -> AsyncIterator[bytes]:
        complete = False
        try:
            if headers.get("transfer-encoding", "").lower() == "chunked":
                while size := int((await _line(reader)).split(b";")[0], 16):
                    yield await reader.readexactly(size)
                    await reader.readexactly(2)
                while await _line(reader):  # trailers
                    pass
                complete = True
            elif "content-length" in headers:
                yield await reader.readexactly(int(headers["content-length"]))
                complete = True
            else:
                while piece := await reader.read(65536):
                    yield piece
        finally:
            # An answer not read to its end (a cancelled request) closes its connection, which
            # tells the server to stop generating.
            if complete and headers.get("connection", "").lower() != "close":
                self._idle.append((reader, writer))
            else:
                writer.close()

    def close(self) -> None:
        """Close the connections kept open."""
        for _, writer in self._idle:
            writer.close()
        self._idle.clear()


async def _line(reader: asyncio.StreamReader) -> bytes:
    return (await reader.readuntil(b"\n")).rstrip(b"\r\n")


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    status = 100
    headers: dict[str, str] = {}
    while status == 100:
        first = (await _line(reader)).split(None, 2)
        if len(first) < 2 or not first[0].startswith(b"HTTP/") or not first[1].isdigit():
            raise OSError(f"no HTTP answer but {b' '.join(first)[:60]!r}")
        status = int(first[1])
        headers = {}
        while line := await _line(reader):
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.strip().lower()] = value.strip()
    return status, headers


async def server_events(response: Response) -> AsyncIterator[bytes]:
    """Yield the ``data:`` of each server-sent event as soon as it is complete."""
    rest = b""
    async for piece in response.pieces:
        lines = (rest + piece).split(b"\n")
        rest = lines.pop()
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()
