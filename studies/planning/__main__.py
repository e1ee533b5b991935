"""Rerun docs/studies/planning.md: ``python -m studies.planning`` (about ten minutes on two cores).

::

    python -m studies.planning                    # everything
    python -m studies.planning --only argonne     # one source
    python -m studies.planning --write-only       # tables and figure, from planning.json

The public measurements are read from ``$ENERGYLENS_DATA`` (default ``../shared/data``); none of
them is kept in this repository.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from energylens import files
from studies.planning import figure
from studies.planning.replay import SEEDS, Subject, replay
from studies.planning.tables import TABLES
from studies.results.runs import FREE, Data
from studies.results.tables import compact, fill

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = {"planned": 0.5, "coefficients only": 0.0, "choice only": 1.0}


def subjects(data: Data) -> dict[str, Subject]:
    """Rows and free knobs of each source."""
    v2 = data.v2
    return {
        "v3": Subject(data.v3, FREE),
        "argonne": Subject(data.argonne, ("tensor_parallel",)),
        "v2-a100": Subject(v2.take(v2.gpu_ids == "A100-SXM-40GB"), FREE),
        "v2-h100": Subject(v2.take(v2.gpu_ids == "H100-SXM-80GB"), FREE),
    }


def main() -> None:
    """Replay the sources asked for and write what came of it."""
    parser = argparse.ArgumentParser(prog="python -m studies.planning")
    parser.add_argument("--only", default="v3,argonne,v2-a100,v2-h100", help="a comma list")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="replays")
    parser.add_argument("--write-only", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    path = ROOT / "studies" / "planning" / "planning.json"
    results = files.read_json(path) if path.exists() else {}
    if not arguments.write_only:
        data = Data(Path(os.environ.get("ENERGYLENS_DATA", ROOT.parent / "shared" / "data")))
        every = subjects(data)
        for name in arguments.only.split(","):
            start = time.monotonic()
            results[name] = replay(
                every[name],
                weights=WEIGHTS,
                ensembles=("random-forest", "xgboost"),
                judged=("planned", "random") if name in ("v3", "argonne") else (),
                seeds=arguments.seeds,
            )
            files.write_text(path, compact(results))
            print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
    figure.write(ROOT / "docs" / "figures" / "planning.svg", results)
    document = ROOT / "docs" / "studies" / "planning.md"
    document.write_text(fill(document.read_text(), results, TABLES))


if __name__ == "__main__":
    main()
