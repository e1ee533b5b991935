"""The verb get: public measurements, downloaded, checked and imported."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from energylens.cli.console import Progress, Subparsers, add_json, print_json, print_paragraph
from energylens.errors import ExitCode, UsageError
from energylens.viewing import picked
from energylens.words import plural


def add_verbs(verbs: Any) -> None:
    """Add the verb of this module."""
    parser = Subparsers(verbs).add(
        "get",
        "download public measurements, check their digest, and import them",
        _get,
        (
            "energylens get",
            "energylens get mlenergy-v3 -o v3.csv",
            "energylens get mlenergy-v2 --folder data -o v2.csv",
        ),
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="without it: list what there is")
    parser.add_argument("-o", "--output", metavar="FILE", help="tidy table to write")
    parser.add_argument(
        "--folder", metavar="DIR", default="energylens-data", help="default: energylens-data"
    )
    parser.add_argument("--url", metavar="URL", help="where else it lies, as a mirror")
    parser.add_argument("--sha256", metavar="HEX", help="digest that it must have")
    parser.add_argument(
        "--changed",
        action="store_true",
        help="take it though it is not what an earlier download was",
    )
    add_json(parser)


def _get(arguments: argparse.Namespace) -> ExitCode | None:
    from energylens import getting

    if arguments.name is None:
        _list(arguments)
        return None
    source = getting.source(arguments.name)
    if arguments.output and not source.importer:
        raise UsageError(f"{source.name} has no joules, so no table comes of it: leave -o out")
    url = arguments.url or source.url
    folder = Path(arguments.folder) / source.name
    expected = arguments.sha256 or (
        None if arguments.changed else getting.recorded_digest(folder, url)
    )
    progress = Progress(f"getting {source.name} (bytes)")
    target = folder / (Path(url.partition("?")[0]).name or "download")
    try:
        downloaded = getting.fetch(url, target, sha256=expected, progress=progress)
    finally:
        progress.close()
    notes = [f"{source.what}. Licence: {source.licence}."]
    if expected is None:
        notes.append(
            "Nobody has vouched for this digest: it is what came this time, recorded in "
            f"{folder / getting.LEDGER}, and later downloads must have it."
        )
    document: dict[str, Any] = {
        "name": source.name,
        "url": url,
        "file": str(downloaded.path),
        **picked(downloaded, "size_bytes resumed_bytes sha256"),
        "digest": "checked" if expected else "first seen",
        "licence": source.licence,
    }
    if source.members:
        document["files"] = getting.unpack(target, folder / "files", source.members)
    if source.importer and arguments.output:
        document |= _import(source.importer, folder / "files", arguments.output)
    # Last, so that what turned out to be of no use is not what later downloads must be.
    getting.record(folder, downloaded, source.licence)
    if arguments.json:
        print_json({**document, "notes": notes})
        return _left_out(document)
    print_paragraph(
        f"{source.name}: {downloaded.size_bytes:,} bytes"
        + (
            f", {downloaded.resumed_bytes:,} of them from before"
            if downloaded.resumed_bytes
            else ""
        )
        + f", SHA-256 {downloaded.sha256} ({document['digest']})."
    )
    if "rows" in document:
        print_paragraph(
            f"{plural(document['rows'], 'row')} written to {arguments.output}"
            + (f"; {document['skipped']} left out" if document["skipped"] else "")
            + "."
        )
    elif "files" in document:
        print_paragraph(
            f"{plural(document['files'], 'file')} in {folder / 'files'}: energylens import "
            f"{source.importer} {folder / 'files'} -o {source.name}.csv reads them."
        )
    else:
        print(f"File: {downloaded.path}")
    for note in notes:
        print_paragraph(f"Note: {note}")
    return _left_out(document)


def _left_out(document: dict[str, Any]) -> ExitCode | None:
    """As import does: a script must see that rows are missing."""
    return ExitCode.PARTLY if document.get("skipped") else None


def _import(importer: str, folder: Path, output: str) -> dict[str, Any]:
    from energylens import importers, table

    nothing: dict[str, Any] = {"assume_input_tokens": {}, "assume_vision_tokens": {}}
    imported = importers.reader(importer)(folder, **nothing)
    table.write(imported.dataset, output)
    left_out = sum(skipped.rows for skipped in imported.skipped)
    return {"output": output, "rows": len(imported.dataset), "skipped": left_out}


def _list(arguments: argparse.Namespace) -> None:
    from energylens import getting

    if arguments.json:
        print_json(
            {
                "sources": [vars(source) for source in getting.SOURCES.values()],
                "withheld": getting.WITHHELD,
            }
        )
        return
    for source in getting.SOURCES.values():
        print_paragraph(f"{source.name}: {source.what} ({source.licence}; {source.url})", "", "  ")
    for name, why in getting.WITHHELD.items():
        print_paragraph(f"{name} is not downloaded: {why}.", "", "  ")
