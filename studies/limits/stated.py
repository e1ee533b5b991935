"""Whether a stated probability of keeping a limit comes true: ``python -m studies.limits.stated``.

Limits are set as ``studies.limits`` sets them, at quantiles of the candidates' own measured times,
and blindly: evenly on a logarithm between the fastest and the slowest candidate. Of the choices at
0.8 it says what was stated of them, and how many kept the limit; and what is left of the regret
where the true joules are told, or the true times.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from energylens.cases import FloatArray, IntArray
from energylens.dataset import Dataset
from energylens.fitting import fit
from energylens.latency_fitting import fit_latency
from energylens.words import percent
from studies.command import command
from studies.limits.__main__ import QUANTILES, TRAIN
from studies.results.runs import FREE, SEED, Data
from studies.results.tables import Results, markdown

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
    left_over: dict[str, list[list[float]]] = {"joules": [], "times": []}
    for draw in range(DRAWS):
        order = np.random.default_rng([SEED, draw]).permutation(len(rows))
        training, left = np.sort(order[:TRAIN]), order[TRAIN:]
        odds_of, inside = _law(rows, times, training)
        expected = fit(rows.take(training)).predict_energy_j(rows.cases)
        told: dict[str, list[list[float]]] = {kind: [[] for _ in QUANTILES] for kind in left_over}
        covered.append(float(inside[left].mean()))
        for candidates in rows.scenarios(FREE):
            mine, joules = times[candidates], rows.energy_per_request_j[candidates]
            rng = np.random.default_rng([SEED, draw, int(candidates[0])])
            reach = np.log(mine.min()), np.log(mine.max())
            limits = {
                "own": np.quantile(mine, QUANTILES),
                "blind": np.exp(rng.uniform(*reach, BLIND)),
            }
            for kind, values in limits.items():
                for place, limit in enumerate(values):
                    odds = odds_of(candidates, float(limit))
                    likely, within = np.flatnonzero(odds >= ASKED), np.flatnonzero(mine <= limit)
                    best = likely[np.argmin(joules[likely])] if len(likely) else None
                    if best is not None:
                        found[kind].append((float(odds[best]), bool(mine[best] <= limit)))
                    if kind == "own":
                        least = joules[within].min()
                        if best is not None and mine[best] <= limit:
                            told["joules"][place].append(joules[best] / least - 1.0)
                        taken = within[np.argmin(expected[candidates][within])]
                        told["times"][place].append(joules[taken] / least - 1.0)
        for kind, regrets in told.items():
            left_over[kind].append([float(np.mean(at)) if at else np.nan for at in regrets])
    return {
        "rows": len(rows),
        "dataset_digest": rows.digest,
        "regret_mean_ratio_told": {
            kind: [round(float(r), 4) for r in np.nanmean(draws, axis=0)]
            for kind, draws in left_over.items()
        },
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
        told = [
            " / ".join(percent(r, 0).removesuffix(" %") for r in entry["regret_mean_ratio_told"][k])
            for k in ("joules", "times")
        ]
        lines.append([source, percent(entry["covered_ratio"]), *pairs, *told])
    head = (
        "rows",
        "rows below their 80 % bound",
        "limits at candidates' times",
        "blind limits",
        "regret told joules, %",
        "regret told times, %",
    )
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
    command(
        "studies.limits.stated",
        run,
        results="studies/limits/stated.json",
        page="docs/service.md",
        tables={"limits-stated": stated},
    )


if __name__ == "__main__":
    main()
