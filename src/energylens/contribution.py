"""Rows for others: packed with what is known of how they came to be, and nothing of who and where.

A contribution is a zip of three files: ``rows.jsonl`` (the tidy table), ``provenance.jsonl`` (one
line a row: versions, formats, clocks, windows) and ``manifest.json`` (format, version, digests).
Provenance is taken by name, so what nobody thought of stays at home; and every text goes through
:func:`without_places` besides.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import json
import platform
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from energylens import __version__, files, table
from energylens.errors import ArtefactError, InputError, UsageError
from energylens.foreign import HIDDEN, made_printable
from energylens.instrument.ledger import records_path

FORMAT, VERSION = "energylens_contribution", 1
ROWS, PROVENANCE, MANIFEST = "rows.jsonl", "provenance.jsonl", "manifest.json"
LARGEST_BYTES = 1 << 28

#: What of a record's provenance goes along.
_KEPT = re.compile(
    r".*_version|weights|mode|api|prompts|enforce_eager|async_scheduling|engine_arguments|"
    r"weight_bytes_\w+|quantization_methods|kv_cache_tokens|llm_differences|amx|kernels|cpus|"
    r"(node\d+_)?gpu\d+_(name|power_limit_w|max_sm_clock_mhz|persistence_mode|nvlinks|"
    r"pcie_generation)|estimate_\w+|(node\d+_)?meter_clock_\w+"
)
_KEPT_OF_RECORD = ("case", "run", "ended", "meter", "seed", "measured")
#: What names a machine, a person or a place, whoever they are; searched for in this order.
_TELLING = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"\b[a-z][a-z0-9+.-]*://[^\s\"',;)\]}]+",  # addresses
        # A text that begins as a path is one to its end, blanks in names and all.
        r"^(?:~|[a-z]:)?[/\\].*|^\.{1,2}[/\\].*",
        # Paths within a text; a slash inside a name (Qwen/Qwen3-8B, tokens/s) begins none.
        r"(?<![\w.:/\\])(?:~|\.{1,2}|[a-z]:|\$\{?\w+\}?|%\w+%)?[/\\][^\s\"',;:()\[\]{}]+",
        # People at hosts; what follows the sign may also be a revision of a model.
        r"\b[\w.+-]+@(?!main\b|[0-9a-f]{7,40}\b)[\w.-]+",
        # Names of hosts under domains that are known as such.
        r"\b(?:[a-z0-9-]+\.)+(?:com|org|net|edu|gov|mil|int|info|io|ai|cloud|local|lan|internal|intra|"
        r"corp|cluster|hpc|eu|us|uk|de|fr|ch|at|nl|be|it|es|pt|se|no|fi|dk|pl|cz|ca|au|jp|cn|kr|in|br|"
        r"sg|tw|hk|il|ru)\b(?::\d+)?",
        r"\b\d{1,3}(?:\.\d{1,3}){3}\b(?::\d+)?",  # IPv4
        r"\[?(?<![\w:.])(?:(?:[0-9a-f]{1,4}:){7}[0-9a-f]{1,4}|(?=[0-9a-f:]*::)(?=:*[0-9a-f])[0-9a-f]{0,4}"
        r"(?::[0-9a-f]{0,4}){2,7})(?![\w:.])(?:%\w+)?\]?(?::\d+)?",  # IPv6
        r"\b(?:[0-9a-f]{2}[:-]){5}[0-9a-f]{2}\b",  # MAC
        r"\b(?:GPU|MIG)-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b",  # serial numbers
        # Of a dump of the environment, and of a command line.
        r"\b\w*(?:HOST|USER|LOGNAME|HOME|PWD|PATH|NODELIST|TOKEN|SECRET|PASSWORD|API_KEY)\w*="
        r"[^\s,;]+",
        r"--(?:host|[\w-]*hostname|user(?:name)?|api-key|hf-token|token|node-?rank-?ip|[\w-]*addr"
        r"(?:ess)?)[= ]\S+",
    )
)
#: Names of fields whose text says where or who, whatever it is.
_TELLING_FIELD = re.compile(
    r"(?:^|_)(?:host|hosts|hostname|nodename|node|machine|user|username|login|email|mail|owner|author|"
    r"operator|person|cwd|pwd|home|path|folder|directory|url|endpoint|server|address|ip|uuid|serial)$",
    re.IGNORECASE,
)
_USER_IN_PATH = re.compile(r"[/\\](?:home|Users|users)[/\\]([^/\\\s\"']+)")
#: Names that say nothing of anybody, and may stand in honest text.
_NOBODY = frozenset({"root", "user", "users", "home", "localhost", "ubuntu", "admin", ""})


def without_places(document: Any, names: Sequence[str] = ()) -> Any:
    """Hide what tells where and who, and the names given, in every text of a document."""
    named = [re.escape(name) for name in sorted(set(names), key=len, reverse=True)]
    pattern = (
        re.compile(rf"(?<![A-Za-z0-9])(?:{'|'.join(named)})(?![A-Za-z0-9])", re.IGNORECASE)
        if named
        else None
    )

    def hidden(value: Any) -> Any:
        if isinstance(value, str):
            for each in (*_TELLING, pattern):
                value = value if each is None else each.sub(HIDDEN, value)
            return value
        if isinstance(value, Mapping):
            return {
                hidden(str(key)): HIDDEN
                if isinstance(item, str) and item and _TELLING_FIELD.search(str(key))
                else hidden(item)
                for key, item in value.items()
            }
        if isinstance(value, list | tuple):
            return [hidden(item) for item in value]
        return value

    return hidden(document)


def _names(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Hosts and users that records name, and this machine's own."""
    found = {platform.node()}
    with contextlib.suppress(KeyError, OSError):
        found.add(getpass.getuser())
    found |= {Path.home().name}
    for record in records:
        host = record.get("provenance", {}).get("host")
        if isinstance(host, str):
            found.add(host)
        found |= set(_USER_IN_PATH.findall(json.dumps(record, ensure_ascii=False)))
    found |= {name.partition(".")[0] for name in found}
    return [name for name in found if name.lower() not in _NOBODY and len(name) > 1]


def pack(path: str | Path, out: str | Path) -> dict[str, Any]:
    """Pack a sweep's table for others.

    Parameters
    ----------
    path : str or Path
        The table of a sweep, ``.jsonl``; its records lie beside it.
    out : str or Path
        The zip to write.

    Returns
    -------
    dict
        The manifest.

    Raises
    ------
    InputError
        If the table is not one that ``check`` accepts, or not of a sweep.
    """
    rows_path = Path(path)
    if Path(out).suffix.lower() != ".zip":
        raise UsageError(f"a contribution is a zip: {out} must end in .zip.")
    if rows_path.suffix not in (".jsonl", ".ndjson"):
        raise UsageError(
            "pack takes the .jsonl that energylens measure wrote, with its records beside it; "
            f"{path} is none, and how its rows were measured is not on record"
        )
    beside = records_path(rows_path)
    if not beside.exists():
        raise InputError(
            f"{beside} must lie beside the table: what is packed is what a sweep measured, with "
            "how it did so."
        )
    rows = files.read_json_lines(rows_path)
    records = files.read_json_lines(beside)
    names = _names([record for record in records if isinstance(record, Mapping)])
    measured = {
        record.get("run"): record
        for record in records
        if isinstance(record, Mapping) and record.get("status") == "measured"
    }
    told = []
    for row in rows:
        record = measured.get(row.get("x_run"), {})
        kept = {name: record[name] for name in _KEPT_OF_RECORD if name in record}
        provenance = record.get("provenance", {})
        kept["provenance"] = {k: v for k, v in provenance.items() if _KEPT.fullmatch(str(k))}
        told.append(kept)
    contents = {
        ROWS: _lines(without_places(made_printable(rows), names)),
        PROVENANCE: _lines(without_places(made_printable(told), names)),
    }
    _checked(contents[ROWS], str(rows_path))
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "energylens_version": __version__,
        "rows": len(rows),
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()},
    }
    contents[MANIFEST] = (json.dumps(manifest, indent=2) + "\n").encode()
    try:
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in contents.items():
                # A fixed date: the same rows make the same file.
                archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), data)
    except OSError as error:
        raise ArtefactError(f"{out} cannot be written: {error.strerror}.") from None
    return manifest


def unpack(path: str | Path, out: str | Path) -> dict[str, Any]:
    """Check a contribution and write its rows.

    Returns
    -------
    dict
        The manifest.

    Raises
    ------
    ArtefactError
        If it is no contribution, is damaged, or its rows are not what ``check`` accepts.
    """
    if Path(out).suffix not in (".jsonl", ".ndjson"):
        raise UsageError(f"the rows are JSON Lines: {out} must end in .jsonl.")
    if Path(out).exists():
        raise UsageError(f"{out} is there already: give another name, or remove it first.")
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {item.filename: item.file_size for item in archive.infolist()}
            if set(sizes) != {ROWS, PROVENANCE, MANIFEST} or len(sizes) != len(archive.infolist()):
                raise ArtefactError(
                    f"{path} must hold {ROWS}, {PROVENANCE} and {MANIFEST}, and nothing else."
                )
            if sum(sizes.values()) > LARGEST_BYTES:
                raise ArtefactError(f"{path} would be larger than {LARGEST_BYTES >> 20} MiB.")
            contents = {name: archive.read(name) for name in sizes}
    except (zipfile.BadZipFile, zlib.error, OSError, RuntimeError, NotImplementedError) as error:
        raise ArtefactError(f"{path} cannot be read as a zip: {error}.") from None
    manifest = files.parse_json(contents[MANIFEST], f"{path}: {MANIFEST}")
    if not isinstance(manifest, dict) or (manifest.get("format"), manifest.get("version")) != (
        FORMAT,
        VERSION,
    ):
        raise ArtefactError(f"{path} is no contribution of version {VERSION}.")
    for name in (ROWS, PROVENANCE):
        digests = manifest.get("sha256")
        wanted = digests.get(name) if isinstance(digests, dict) else None
        if hashlib.sha256(contents[name]).hexdigest() != wanted:
            raise ArtefactError(f"{path}: {name} is not what its digest says: it was changed.")
    _checked(contents[ROWS], f"{path}: {ROWS}")
    files.write_text(out, contents[ROWS].decode("utf-8"))
    return manifest


def _lines(documents: Sequence[Any]) -> bytes:
    return "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in documents).encode()


def _checked(data: bytes, name: str) -> None:
    try:
        table.dataset_from_table(files.parse_table(data, name, "jsonl"))
    except InputError as error:
        raise ArtefactError(f"its rows must be what energylens check accepts: {error}") from None
