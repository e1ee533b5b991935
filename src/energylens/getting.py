"""Public measurements over HTTP: downloaded whole, resumed where they broke off, by digest.

Only sources whose licence allows it are named here. Their digests were not known when this was
written (archives that a server packs anew need not be the same to the byte): the first download
records the SHA-256 of what came, in ``energylens-get.json`` beside it, and every later one must
have it. Who knows a digest gives it.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import tarfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from energylens import __version__, files
from energylens.errors import ArtefactError, InputError, UsageError

LEDGER = "energylens-get.json"
CHUNK_BYTES = 1 << 16
MOST_BYTES = 2 << 30  # of a download, or of what is unpacked from one
PATIENCE_S = 60.0  # for the next bytes of a connection
IDLE_ATTEMPTS = 3  # in a row that bring no byte


@dataclass(frozen=True, kw_only=True)
class PublicSource:
    """Where public measurements lie.

    Attributes
    ----------
    url : str
        Of an archive, or of one file.
    licence : str
        Under which they may be downloaded and used.
    importer : str
        Source name of ``energylens import``; empty where it is no table of joules.
    members : str
        Pattern of the files to take from the archive; empty for a single file.
    """

    name: str
    what: str
    url: str
    licence: str
    importer: str = ""
    members: str = ""


SOURCES: dict[str, PublicSource] = {
    source.name: source
    for source in (
        PublicSource(
            name="mlenergy-v3",
            what="ML.ENERGY leaderboard v3: vLLM 0.11.1, chat, code, image and video tasks",
            url="https://github.com/ml-energy/leaderboard/archive/0cd52da.tar.gz",
            licence="Apache-2.0",
            importer="mlenergy-v3",
            members=r"(?:.*/)?(models/[^/]+\.json)",
        ),
        PublicSource(
            name="mlenergy-v2",
            what="ML.ENERGY leaderboard v2: vLLM 0.5.4 on A100 and H100, TP and PP",
            url="https://github.com/ml-energy/leaderboard-v2/archive/c3af7f3.tar.gz",
            licence="Apache-2.0",
            importer="mlenergy-v2",
            members=r"(?:.*/)?((?:ll|mll)m_text_generation/.+/bs[^/]*\.json)",
        ),
        PublicSource(
            name="azure-conversation",
            what="arrivals and lengths of a chat service, for select --lengths; no joules",
            url="https://raw.githubusercontent.com/Azure/AzurePublicDataset/b469a11/data/"
            "AzureLLMInferenceTrace_conv.csv",
            licence="CC BY 4.0",
        ),
        PublicSource(
            name="azure-code",
            what="arrivals and lengths of a code service, for select --lengths; no joules",
            url="https://raw.githubusercontent.com/Azure/AzurePublicDataset/b469a11/data/"
            "AzureLLMInferenceTrace_code.csv",
            licence="CC BY 4.0",
        ),
    )
}

#: Public, and yet not to be had here: why.
WITHHELD = {
    "energy-code-eval": "its repository states no licence",
    "powertrace": "its repository states no licence",
    "argonne": "its files are notebooks and figures of many layouts, not the table that "
    "energylens import argonne reads",
}


@dataclass(frozen=True, kw_only=True)
class Downloaded:
    """A file that came whole. ``resumed_bytes`` were there before the last attempt."""

    path: Path
    url: str
    sha256: str
    size_bytes: int
    resumed_bytes: int


Progress = Callable[[int, int], None]


class _BrokenOffError(Exception):
    """A connection ended before the file did."""


def source(name: str) -> PublicSource:
    """Find a public source by name.

    Raises
    ------
    UsageError
        If there is none, or its licence does not allow it.
    """
    if name in WITHHELD:
        raise UsageError(
            f"{name} is not downloaded: {WITHHELD[name]}. With files of your own, "
            f"energylens import reads what it knows."
        )
    if name not in SOURCES:
        raise UsageError(f"what to get must be one of {', '.join(SOURCES)}, not {name!r}")
    return SOURCES[name]


def fetch(
    url: str,
    path: str | Path,
    *,
    sha256: str | None = None,
    progress: Progress | None = None,
) -> Downloaded:
    """Download a file, going on where an earlier attempt broke off.

    What came so far lies in ``NAME.part``, and in ``NAME.part.json`` of which version it is: it is
    gone on with only where the server says that the file is still the same (``If-Range``).

    Parameters
    ----------
    url : str
        http or https.
    sha256 : str, optional
        Digest that it must have, in hex.
    progress : callable, optional
        Told bytes so far and bytes in all (0 where not known).

    Raises
    ------
    UsageError
        If the address or the digest is none.
    ArtefactError
        If the server does not give it, it breaks off, or it has another digest.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise UsageError(f"an address must begin with https:// or http://, not {url[:80]!r}")
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise UsageError(f"a SHA-256 has 64 hexadecimal digits; given {sha256[:80]!r}")
    path = Path(path)
    part, about = (path.with_name(path.name + end) for end in (".part", ".part.json"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        idle, resumed = 0, 0
        while True:
            before = _size(part)
            try:
                resumed = _attempt(url, part, about, progress)
                break
            except (_BrokenOffError, http.client.HTTPException, OSError) as error:
                if isinstance(error, urllib.error.HTTPError):
                    raise
                idle = idle + 1 if _size(part) <= before else 0
                if idle >= IDLE_ATTEMPTS:
                    raise ArtefactError(
                        f"{url} broke off after {_size(part):,} bytes and brings no more "
                        f"({_said(error)}): run the same command again, and it goes on from there"
                    ) from None
    except urllib.error.HTTPError as error:
        raise ArtefactError(
            f"{url} is not given: the server says {error.code} {error.reason}. Check the address "
            "(--url gives another)"
        ) from None
    digest = _digest(part)
    if sha256 is not None and digest != sha256.lower():
        part.unlink()
        about.unlink(missing_ok=True)
        raise ArtefactError(
            f"{url} must have the SHA-256 {sha256.lower()}, and what came has {digest}: it is not "
            "that file, and was removed. Check where it comes from before you take another digest"
        )
    size = _size(part)
    part.replace(path)
    about.unlink(missing_ok=True)
    return Downloaded(path=path, url=url, sha256=digest, size_bytes=size, resumed_bytes=resumed)


def _attempt(url: str, part: Path, about: Path, progress: Progress | None) -> int:
    """Ask once for what is missing; returns the bytes that were there before."""
    have, known = _size(part), _read_about(about)
    validator = known.get("validator", "")
    if have and (known.get("url") != url or not validator):
        part.unlink()  # of another file, or of which nobody can say whether it is the same
        have = 0
    headers = {"User-Agent": f"energylens/{__version__}", "Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": validator}
    request = urllib.request.Request(url, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=PATIENCE_S)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        # Nothing is left to ask for: whole, or of a file that has become shorter.
        if error.headers.get("Content-Range", "").rpartition("/")[2] == str(have):
            return have
        part.unlink()
        raise _BrokenOffError("the file there is another one now") from None
    with response:
        resumed = 0
        total = _whole(response.headers.get("Content-Length"))
        if response.status == 206:
            span = re.fullmatch(
                r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", "")
            )
            if span is None or int(span[1]) != have:
                part.unlink(missing_ok=True)
                raise _BrokenOffError("the server gave another part than the one asked for")
            resumed, total = have, _whole(span[3])
        elif have:  # all of it, from the beginning
            part.unlink()
        if response.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
            raise ArtefactError(
                f"{url} answers with a web page, not with the file: a sign-in or a proxy may be in "
                "between. Check the address (--url gives another)"
            )
        if (total or 0) > MOST_BYTES:
            raise ArtefactError(
                f"{url} has {total:,} bytes, more than the {MOST_BYTES:,} that are fetched"
            )
        tag = response.headers.get("ETag") or "W/"  # a weak one does not promise the same bytes
        validator = response.headers.get("Last-Modified", "") if tag.startswith("W/") else tag
        about.write_text(json.dumps({"url": url, "validator": validator}), encoding="utf-8")
        got = resumed
        with part.open("ab") as file:
            got = _copy(response, file, got, total, progress)
        if total is not None and got != total:
            raise _BrokenOffError(f"{got:,} of {total:,} bytes came")
    return resumed


def _copy(
    response: Any, file: BinaryIO, got: int, total: int | None, progress: Progress | None
) -> int:
    while True:
        try:
            chunk = response.read1(CHUNK_BYTES)
        except http.client.IncompleteRead as error:
            file.write(error.partial)
            raise
        if not chunk:
            return got
        file.write(chunk)
        got += len(chunk)
        if got > MOST_BYTES:
            raise ArtefactError(f"more than {MOST_BYTES:,} bytes came: it is no data set of these")
        if progress is not None:
            progress(got, total or 0)


def _read_about(about: Path) -> dict[str, str]:
    try:
        known = json.loads(about.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _said(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return str(reason) or type(error).__name__


# ------------------------------------------------------------------------------- what was there


def recorded_digest(folder: str | Path, url: str) -> str | None:
    """Digest that an earlier download of an address had; None where there was none.

    Raises
    ------
    ArtefactError
        If the ledger in the folder cannot be read.
    """
    entry = _ledger(folder).get(url)
    return None if entry is None else str(entry["sha256"])


def record(folder: str | Path, downloaded: Downloaded, licence: str) -> None:
    """Write down what came, so that the next download of it must be the same."""
    entries = _ledger(folder)
    entries[downloaded.url] = {
        "sha256": downloaded.sha256,
        "size_bytes": downloaded.size_bytes,
        "licence": licence,
    }
    files.write_json(Path(folder) / LEDGER, {"downloads": entries})


def _ledger(folder: str | Path) -> dict[str, Any]:
    path = Path(folder) / LEDGER
    if not path.exists():
        return {}
    document = files.read_json(path)
    entries = document.get("downloads") if isinstance(document, dict) else None
    if not isinstance(entries, dict) or not all(
        isinstance(entry, dict) and isinstance(entry.get("sha256"), str)
        for entry in entries.values()
    ):
        raise ArtefactError(
            f"{path} must hold the digests of earlier downloads, and does not: remove it to begin "
            "anew"
        )
    return entries


def unpack(archive: str | Path, folder: str | Path, members: str) -> int:
    """Take files from a tar archive.

    Parameters
    ----------
    folder : str or Path
        Where they go; nothing is written outside of it.
    members : str
        Pattern that a whole member name must match; its first group is the name in the folder.

    Returns
    -------
    int
        Files taken.

    Raises
    ------
    InputError
        If it is no tar archive, is cut off, or has none of the files.
    """
    folder, taken, size = Path(folder), 0, 0
    try:
        with tarfile.open(archive) as packed:
            for member in packed:
                match = re.fullmatch(members, member.name)
                if match is None or not member.isfile():
                    continue
                name = match[1]
                if any(part in ("", ".", "..") for part in name.split("/")):
                    raise InputError(f"{archive} names a file {name!r}, which leads out of it")
                size += member.size
                if size > MOST_BYTES:
                    raise InputError(f"{archive} unpacks to more than {MOST_BYTES:,} bytes")
                inside = packed.extractfile(member)
                if inside is not None:
                    target = folder / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    files.write_bytes(target, inside.read())
                    taken += 1
    except (tarfile.TarError, EOFError, OSError) as error:
        raise InputError(
            f"{archive} is no whole tar archive ({_said(error)}): get it again"
        ) from None
    if not taken:
        raise InputError(
            f"{archive} has none of the files that this source is read from: its layout has "
            "changed, or it is another archive"
        )
    return taken
