"""Rerun every accuracy figure that README.md and docs/results.md state.

::

    python -m studies.results                 # everything; about a quarter of an hour on one core
    python -m studies.results --only few-shot,unseen-llm
    python -m studies.results --write-only    # set the tables again from results.json

The public measurements are read from ``$ENERGYLENS_DATA`` (default ``../shared/data``; their
sources are in docs/data-format.md); none of them is kept in this repository. Results go to
``studies/results/results.json`` study by study, so that a stopped run can be resumed, and from
there into the tables between the markers of both documents.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from energylens import files
from studies.results import tables
from studies.results.runs import STUDIES, Data

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Run the studies asked for and write what they gave."""
    parser = argparse.ArgumentParser(prog="python -m studies.results")
    parser.add_argument("--only", default=",".join(STUDIES), help="a comma list of studies")
    parser.add_argument("--write-only", action="store_true", help="run nothing, set the tables")
    arguments = parser.parse_args()
    path = ROOT / "studies" / "results" / "results.json"
    results = files.read_json(path) if path.exists() else {}
    if not arguments.write_only:
        data = Data(Path(os.environ.get("ENERGYLENS_DATA", ROOT.parent / "shared" / "data")))
        for name in arguments.only.split(","):
            print(f"{name} ...", flush=True)
            results[name] = STUDIES[name](data)
            files.write_text(path, tables.compact(results))
    if "curve" in results:
        tables.draw_curves(results, ROOT / "docs" / "figures" / "learning-curves.svg")
    for name in tables.DOCUMENTS:
        document = ROOT / name
        document.write_text(tables.fill(document.read_text(), results, tables.TABLES))


if __name__ == "__main__":
    main()
