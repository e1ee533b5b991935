"""Rerun every accuracy figure that README.md and docs/results.md state.

::

    python -m studies.results                 # everything; about an hour on two cores
    python -m studies.results --only argonne,unseen-llm
    python -m studies.results --only argonne --estimators energylens    # the others as they stand
    python -m studies.results --write-only    # set tables and figures again

The public measurements are read from ``$ENERGYLENS_DATA`` (default ``../shared/data``; their
sources are in docs/data-format.md); none of them is kept in this repository. Results go to
``studies/results/results.json`` study by study, so that a run that is stopped can be resumed, and
from there into the tables between the markers of both documents.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from energylens import files
from studies.results import calibration, tables
from studies.results.runs import STUDIES, Data

ROOT = Path(__file__).resolve().parents[2]


def merged(old: Any, new: Any) -> Any:
    """Put new values in the place of old ones, as deep as both have the same form."""
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{key: merged(old.get(key), value) for key, value in new.items()}}
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [merged(a, b) for a, b in zip(old, new, strict=True)]
    return new


def main() -> None:
    """Run the studies asked for and write what they gave."""
    parser = argparse.ArgumentParser(prog="python -m studies.results")
    parser.add_argument("--only", default=",".join(STUDIES), help="a comma list of studies")
    parser.add_argument("--write-only", action="store_true", help="run nothing, set the tables")
    parser.add_argument("--estimators", help="a comma list, in place of each study's own")
    arguments = parser.parse_args()
    path = ROOT / "studies" / "results" / "results.json"
    results = files.read_json(path) if path.exists() else {}
    if not arguments.write_only:
        data = Data(Path(os.environ.get("ENERGYLENS_DATA", ROOT.parent / "shared" / "data")))
        estimators = tuple(arguments.estimators.split(",")) if arguments.estimators else None
        for name in arguments.only.split(","):
            print(f"{name} ...", flush=True)
            again = STUDIES[name](data, estimators)
            # Named estimators take the place of theirs alone: the others stand as they were.
            results[name] = merged(results.get(name), again) if estimators else again
            files.write_text(path, tables.compact(results))
    if "curve" in results:
        tables.draw_curves(results, ROOT / "docs" / "figures" / "learning-curves.svg")
    if "calibration" in results:
        calibration.write(ROOT / "docs" / "figures" / "calibration.svg", results)
    for document in (ROOT / "docs" / "results.md", ROOT / "README.md"):
        document.write_text(tables.fill(document.read_text(), results, tables.TABLES))


if __name__ == "__main__":
    main()
