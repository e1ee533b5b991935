"""Whether a stated probability of keeping a limit comes true: ``python -m studies.limits.stated``.

Limits are set as ``studies.limits`` sets them, at quantiles of the candidates' own measured times,
and blindly: evenly on a logarithm between the fastest and the slowest candidate. Of the choices at
0.8 it says what was stated of them, and how many kept the limit.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from energylens import files
from energylens.cases import FloatArray, IntArray
from energylens.dataset import Dataset
from energylens.latency_fitting import fit_latency
from energylens.words import percent
from studies.limits.__main__ import QUANTILES, ROOT, TRAIN
from studies.results.runs import FREE, SEED, Data
from studies.results.tables import Results, fill, markdown

ASKED = 0.8
DRAWS = 8
BLIND = 6  # limits of a scenario that know nothing of its candidates
RATIOS = np.array([0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98])


def study(rows: Dataset) -> dict[str, Any]:
    """Compare what is stated of choices with what comes of them."""
    c = rows.cases
    measured = np.where(c.request_latency_s > 0, c.request_latency_s / c.output_tokens, c.tpot_s)
    known = np.flatnonzero(measured > 0)
    rows, times = rows.take(known), measured[known]
    covered: list[float] = []
    found: dict[str, list[tuple[float, bool]]] = {"own": [], "blind": []}
    for draw in range(DRAWS):
        order = np.random.default_rng([SEED, draw]).permutation(len(rows))
        training, left = np.sort(order[:TRAIN]), order[TRAIN:]
        odds_of, inside = _law(rows, times, training)
        covered.append(float(inside[left].mean()))
        for candidates in rows.scenarios(FREE):
            mine = times[candidates]
            rng = np.random.default_rng([SEED, draw, int(candidates[0])])
            reach = np.log(mine.min()), np.log(mine.max())
            limits = {
                "own": np.quantile(mine, QUANTILES),
                "blind": np.exp(rng.uniform(*reach, BLIND)),
            }
            for kind, values in limits.items():
                for limit in values:
                    odds = odds_of(candidates, float(limit))
                    likely = np.flatnonzero(odds >= ASKED)
                    if len(likely):
                        best = likely[np.argmin(rows.energy_per_request_j[candidates][likely])]
                        found[kind].append((float(odds[best]), bool(mine[best] <= limit)))
    return {
        "rows": len(rows),
        "dataset_digest": rows.digest,
        "covered_ratio": round(float(np.mean(covered)), 3),
        **{
            kind: {
                "choices": len(choices),
                "stated_ratio": round(float(np.mean([odds for odds, _ in choices])), 3),
                "kept_ratio": round(float(np.mean([kept for _, kept in choices])), 3),
            }
            for kind, choices in found.items()
        },
    }


def _law(rows: Dataset, times: FloatArray, training: IntArray) -> tuple[Any, Any]:
    """Fit times; give the odds of candidates at a limit, and who is within the bound of 0.8."""
    tokens = rows.cases.output_tokens
    seen = rows.take(training)
    seen = replace(
        seen, cases=seen.cases.replace(request_latency_s=times[training] * tokens[training])
    )
    law = fit_latency(seen, "latency")
    hidden = rows.cases.replace(
        request_latency_s=np.nan, tpot_s=np.nan, ttft_s=np.nan, median_itl_s=np.nan
    )
    middle = law.predict_s(hidden, "latency") / tokens
    logs = law.logs_at(hidden, RATIOS, "latency")

    def odds(candidates: IntArray, limit: float) -> FloatArray:
        far = np.log(limit / middle[candidates])
        return np.array(
            [
                np.interp(x, logs[:, row], RATIOS, left=0.0, right=1.0)
                for x, row in zip(far, candidates, strict=True)
            ]
        )

    asked = int(np.flatnonzero(RATIOS == ASKED)[0])
    return odds, np.log(times / middle) <= logs[asked]


def stated(results: Results) -> str:
    """Make the table of docs/service.md."""
    lines = []
    for source, entry in results.items():
        pairs = [
            f"{percent(entry[kind]['stated_ratio'])} / {percent(entry[kind]['kept_ratio'])}"
            for kind in ("own", "blind")
        ]
        lines.append([source, percent(entry["covered_ratio"]), *pairs])
    head = ("rows", "rows below their 80 % bound", "limits at candidates' times", "blind limits")
    return markdown(head, lines)


def run(data: Data) -> Mapping[str, Any]:
    """Judge every source."""
    v2 = data.v2
    return {
        "v3, H100": study(data.v3),
        "v2, H100": study(v2.take(v2.gpu_ids == "H100-SXM-80GB")),
        "v2, A100": study(v2.take(v2.gpu_ids == "A100-SXM-40GB")),
        "energy-code-eval, A100": study(data.code),
    }


def main() -> None:
    """Run, write the JSON and set the table."""
    parser = argparse.ArgumentParser(prog="python -m studies.limits.stated")
    parser.add_argument("--write-only", action="store_true", help="run nothing, set the table")
    path = ROOT / "studies" / "limits" / "stated.json"
    if not parser.parse_args().write_only:
        folder = os.environ.get("ENERGYLENS_DATA", ROOT.parent / "shared" / "data")
        files.write_json(path, run(Data(Path(folder))))
    page = ROOT / "docs" / "service.md"
    page.write_text(fill(page.read_text(), files.read_json(path), {"limits-stated": stated}))


if __name__ == "__main__":
    main()
