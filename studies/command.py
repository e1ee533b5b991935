"""The command line that studies share: run, keep the figures, set the tables of a page."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from energylens import files
from studies.results.runs import Data
from studies.results.tables import Results, Tables, fill

ROOT = Path(__file__).resolve().parents[1]


def command(
    module: str, run: Callable[[Data], Results], *, results: str, page: str, tables: Tables
) -> None:
    """Be ``python -m MODULE [--write-only]``.

    Parameters
    ----------
    module : str
        Name of the study, as in ``studies.times``.
    run : callable
        Makes the figures from the public measurements, in ``$ENERGYLENS_DATA`` or beside the
        repository.
    results, page : str
        Where figures and tables go, from the root of the repository.
    tables : mapping
        What writes the table of each marker of the page.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}")
    parser.add_argument("--write-only", action="store_true", help="run nothing, set the tables")
    path = ROOT / results
    if not parser.parse_args().write_only:
        folder = os.environ.get("ENERGYLENS_DATA", ROOT.parent / "shared" / "data")
        files.write_json(path, run(Data(Path(folder))))
    document = ROOT / page
    document.write_text(fill(document.read_text(), files.read_json(path), tables))
