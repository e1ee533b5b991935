"""Files of others, read as what their content is: JSON, JSON Lines, YAML, or text.

More tolerant than `energylens.files` where the writers are: bare NaN counts as absent, Infinity
as a number. A file that breaks off, or has one key twice, is refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from energylens import streams
from energylens.errors import EnergyLensError, MissingExtraError
from energylens.importers.runs import RefusedFileError

#: Guard against files that would exhaust memory rather than mean anything.
MAX_BYTES = 512 << 20
MAX_YAML_BYTES = 32 << 20

_YAML_LINE = re.compile(r"^(---|[A-Za-z_][\w .-]*:(\s|$)|- )")


@dataclass(frozen=True, kw_only=True)
class Document:
    """A file: the objects in it, or its text if it has none.

    ``objects`` is one for JSON and YAML, one a line for JSON Lines; empty for text.
    """

    name: str
    text: str
    objects: tuple[Any, ...] = ()
    lines: bool = False


def load(path: str | Path) -> Document:
    """Read a file and say what its content is.

    Raises
    ------
    RefusedFileError
        If it cannot be read, is no text, or begins as JSON or YAML and is none.
    MissingExtraError
        If it is YAML and pyyaml is not installed.
    """
    name = Path(path).name or str(path)
    data = streams.read(path, MAX_BYTES, RefusedFileError)
    if data[:2] == b"\x1f\x8b":
        data = _unzipped(data, name)
    return parse(data, name)


def _unzipped(data: bytes, name: str) -> bytes:
    import gzip
    import io
    import zlib

    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            plain = file.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error):
        raise RefusedFileError(f"{name} is a damaged gzip file.") from None
    if len(plain) > MAX_BYTES:
        raise RefusedFileError(f"{name} unpacks to more than {MAX_BYTES >> 20} MiB.")
    return plain


def parse(data: bytes, name: str) -> Document:
    """Read a file from memory: see `load`."""
    text = decoded(data, name)
    begin = text.lstrip()[:1]
    if not begin:
        raise RefusedFileError(f"{name} is empty.")
    if begin in "{[":
        return _json(text, name)
    first = next(
        line
        for line in [*text.splitlines(), ""]
        if not line or (line.strip() and not line.startswith("#"))
    )
    if _YAML_LINE.match(first) and "," not in first and "{" not in first:
        return _yaml(text, name)
    return Document(name=name, text=text)


def decoded(data: bytes, name: str) -> str:
    """Read bytes as text: UTF-8, or UTF-16 with its mark.

    Raises
    ------
    RefusedFileError
        If they are none.
    """
    code = "utf-8-sig"
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):  # as PowerShell redirects
        code = "utf-16"
    try:
        text = data.decode(code)
    except UnicodeDecodeError:
        raise RefusedFileError(f"{name} is not text in UTF-8.") from None
    if "\0" in text:
        raise RefusedFileError(f"{name} holds a NUL character: it is damaged, or no text.")
    return text


def _constant(word: str) -> float | None:
    return math.inf if word == "Infinity" else None


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key[:40]!r} is there twice")
            seen.add(key)
    return document


_DECODER = json.JSONDecoder(parse_constant=_constant, object_pairs_hook=_pairs)


def _json(text: str, name: str) -> Document:
    try:
        return Document(name=name, text=text, objects=(_DECODER.decode(text),))
    except RecursionError:
        raise RefusedFileError(f"{name} is nested too deeply.") from None
    except json.JSONDecodeError as fault:
        if "Extra data" in fault.msg:
            return _json_lines(text, name)
        torn = len(text.rstrip()) - fault.pos < 3 or "Unterminated" in fault.msg
        how = "breaks off: it was cut while it was written" if torn else f"is no JSON: {fault.msg}"
        raise RefusedFileError(f"{name} {how} (line {fault.lineno}).") from None
    except ValueError as fault:
        raise RefusedFileError(f"{name} is no JSON: {str(fault)[:120]}.") from None


def _json_lines(text: str, name: str) -> Document:
    objects: list[Any] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            objects.append(_DECODER.decode(line))
        except RecursionError:
            raise RefusedFileError(f"{name} line {number} is nested too deeply.") from None
        except ValueError as fault:
            raise RefusedFileError(
                f"{name} line {number} is no JSON object, or breaks off: {str(fault)[:120]}."
            ) from None
    return Document(name=name, text=text, objects=tuple(objects), lines=True)


def _yaml(text: str, name: str) -> Document:
    try:
        import yaml
    except ImportError:
        raise MissingExtraError("pyyaml", "yaml", f"reading {name}, which is YAML,") from None
    if len(text) > MAX_YAML_BYTES:
        raise RefusedFileError(f"{name} is YAML of more than {MAX_YAML_BYTES >> 20} MiB.")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        documents = [item for item in yaml.load_all(text, Loader=loader) if item is not None]
    except EnergyLensError:
        raise
    except RecursionError:
        raise RefusedFileError(f"{name} is nested too deeply.") from None
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, OverflowError) as fault:
        said = " ".join(str(getattr(fault, "problem", None) or fault).split())[:120]
        raise RefusedFileError(f"{name} is no YAML, or breaks off: {said}.") from None
    if not documents or not all(isinstance(item, Mapping) for item in documents):
        # Text that looked like a mapping in its first line alone.
        return Document(name=name, text=text)
    return Document(name=name, text=text, objects=tuple(documents), lines=len(documents) > 1)
