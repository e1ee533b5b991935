"""Bytes in and out of files, pipes and standard streams, with one sentence where that fails.

What would never begin or never end, as a device or a pipe that nobody writes to, is refused; files
are written whole or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
import select
import stat
import sys
import time
import zlib
from pathlib import Path

from energylens.errors import InputError, TableError

MAX_TABLE_BYTES = 2 << 30
PIPE_PATIENCE_S = 10.0  # within which a named pipe must have a writer
_STREAMS = ("/dev/stdin", "/dev/fd/0", "/dev/tty", "/dev/null")


def name_of(path: str | Path, stream: str) -> str:
    """Give what messages call a file; ``-`` is a standard stream."""
    return stream if str(path) == "-" else str(path)


def reason(error: Exception) -> str:
    """Give why something failed, without a full stop."""
    return (getattr(error, "strerror", None) or one_line(error)).rstrip(".")


def beside(path: str | Path, suffix: str) -> Path:
    """Give the file of another suffix beside a file; paths without a name, as / and "", too."""
    path = Path(path)
    return path.with_suffix(suffix) if path.name else path / f"file{suffix}"


def one_line(error: Exception) -> str:
    """Give what an error says on one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def read(path: str | Path, limit: int, error: type[InputError]) -> bytes:
    """Read a file or standard input (``-``) of at most ``limit`` bytes, or raise ``error``."""
    name = name_of(path, "standard input")
    try:
        if str(path) == "-":
            data = sys.stdin.buffer.read(limit + 1)
        else:
            with _opened(path) as file:
                data = file.read(limit + 1)
    except (OSError, ValueError) as fault:  # ValueError: a NUL in the path
        raise error(f"{name} cannot be read: {reason(fault)}.") from None
    if len(data) > limit:
        raise error(f"{name} is larger than {limit >> 20} MiB, more than can be read at once.")
    return data


def _opened(path: str | Path) -> io.BufferedReader:
    """Open a file to read, and refuse at once what would never end or never begin.

    Raises
    ------
    OSError
        If it cannot be read, is a device, or is a pipe that nobody writes to.
    """
    kind = os.stat(path).st_mode  # noqa: PTH116 - a path may be a plain string
    if stat.S_ISBLK(kind) or (stat.S_ISCHR(kind) and str(path) not in _STREAMS):
        raise OSError("it is a device and no file")
    if not stat.S_ISFIFO(kind):
        return open(path, "rb")  # noqa: PTH123 - a path may be a plain string
    # To wait for a pipe's writer in open() could be to wait for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not select.select([descriptor], [], [], PIPE_PATIENCE_S)[0]:
        with contextlib.suppress(BlockingIOError):  # a writer is there, and takes its time
            os.read(descriptor, 1)
            os.close(descriptor)
            raise OSError("it is a pipe that nobody writes to")
    os.set_blocking(descriptor, True)
    return os.fdopen(descriptor, "rb")


def gunzip(data: bytes, name: str) -> bytes:
    """Unpack gzipped bytes, or raise TableError."""
    import gzip

    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            plain = file.read(MAX_TABLE_BYTES + 1)
    except (OSError, EOFError, zlib.error) as fault:
        raise TableError(f"{name} is a damaged gzip file: {reason(fault)}.") from None
    if len(plain) > MAX_TABLE_BYTES:
        raise TableError(f"{name} unpacks to more than {MAX_TABLE_BYTES >> 20} MiB.")
    return plain


def decode(data: bytes, name: str, error: type[InputError]) -> str:
    """Read UTF-8 text without NUL characters, or raise ``error``."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        line = data.count(b"\n", 0, fault.start) + 1
        raise error(f"{name} line {line} is not UTF-8 text: save the file as UTF-8.") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise error(f"{name} line {line} holds a NUL character: the file is damaged, or no text.")
    return text


def encode(text: str, name: str, error: type[InputError]) -> bytes:
    """Give text as UTF-8, or raise ``error``."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise error(f"{name}: some text has half of a character pair and is no Unicode.") from None


def write(path: str | Path, data: bytes, error: type[InputError]) -> None:
    """Write to a temporary file beside the target, then put it in its place.

    A pipe whose reader has gone raises BrokenPipeError, which only the command line can answer.
    """
    if str(path) == "-":
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    try:
        target = Path(path).resolve()  # a link stays a link
        mode = target.stat().st_mode if target.exists() else None
        if mode is not None and not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            with os.fdopen(_device(target), "wb") as device:  # /dev/null, a named pipe
                device.write(data)
            return
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            with os.fdopen(descriptor, "wb") as file:
                if mode is not None:
                    os.fchmod(file.fileno(), stat.S_IMODE(mode))
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except (OSError, ValueError, RuntimeError) as fault:
        if isinstance(fault, BrokenPipeError):
            raise
        raise error(f"{path} cannot be written: {reason(fault)}.") from None


def _device(target: Path) -> int:
    """Open what is no file to write, and do not wait for ever for a pipe's reader."""
    ends = time.monotonic() + PIPE_PATIENCE_S
    while True:
        try:
            descriptor = os.open(target, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as fault:
            if fault.errno != errno.ENXIO:
                raise
            if time.monotonic() > ends:
                raise OSError("it is a pipe that nobody reads") from None
            time.sleep(0.05)
        else:
            os.set_blocking(descriptor, True)
            return descriptor
