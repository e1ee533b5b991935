"""Rerun the choices within limits of docs/service.md: ``python -m studies.limits`` (five minutes).

Limits on the mean time per token at three quantiles of a scenario's measured candidates; 50 rows at
random, 50 draws, seed 0, as ``energylens evaluate --limit-quantiles 0.25,0.5,0.75`` judges.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from energylens.cli.judging import contestants
from energylens.dataset import Dataset
from energylens.limited_choices import judge_limits
from energylens.words import percent
from studies.command import command
from studies.results.runs import FREE, SEED, Data
from studies.results.tables import Results, markdown

QUANTILES = (0.25, 0.5, 0.75)
TRAIN, REPEATS, FEW_REPEATS = 50, 50, 5
RULES = ("energylens", "fewest-gpus", "largest-batch-per-gpu")
LEARNERS = ("extra-trees-on-datasheet", "gradient-boosting-on-datasheet")

SHOWN = ("meets_ratio", "regret_mean_ratio", "regret_median_ratio")

#: What is asked, by the name in the table.
SETTINGS: Mapping[str, dict[str, Any]] = {
    "0.8": {"meet": 0.8},
    "0.95": {"meet": 0.95},
    "0.7": {"meet": 0.7},
    "0.8, three runs": {"meet": 0.8, "verify_runs": 3},
    "0.8, fine grid": {"meet": 0.8, "between": 3},
}


def study(
    rows: Dataset, setting: str, names: tuple[str, ...] = RULES, repeats: int = REPEATS
) -> dict[str, list[dict[str, float | None]]]:
    """Judge some contestants within limits."""
    judged = judge_limits(
        rows,
        contestants(names)[0],
        choose=FREE,
        quantiles=QUANTILES,
        train=TRAIN,
        repeats=repeats,
        seed=SEED,
        **SETTINGS[setting],
    )
    return {
        name: [
            {key: None if value != value else round(value, 4) for key, value in s.to_json().items()}
            for s in scores
        ]
        for name, scores in judged.scores.items()
    }


def run(data: Data) -> dict[str, Any]:
    """Judge on every source."""
    v2 = data.v2
    sources = {
        "v3, H100": data.v3,
        "v2, H100": v2.take(v2.gpu_ids == "H100-SXM-80GB"),
        "v2, A100": v2.take(v2.gpu_ids == "A100-SXM-40GB"),
    }
    found: dict[str, Any] = {}
    for source, rows in sources.items():
        found[source] = {"dataset_digest": rows.digest}
        for setting in SETTINGS:
            found[source][setting] = study(rows, setting)
            if setting == "0.8":
                found[source][setting] |= study(rows, setting, LEARNERS, FEW_REPEATS)
    return found


def three(scores: list[dict[str, float]], key: str) -> str:
    """Write a figure at each quantile, in percent; a dash where no choice kept the limit."""
    return " / ".join(percent(s[key], 0).removesuffix(" %") for s in scores)


def limits(results: Results) -> str:
    """Make the table of docs/service.md: at the three quantiles, how often kept, and regret."""
    lines = []
    for source, settings in results.items():
        for setting in SETTINGS:
            for name, scores in settings[setting].items():
                if setting == "0.8" or name == "energylens":
                    lines.append([source, setting, name, *(three(scores, key) for key in SHOWN)])
    head = ("rows", "asked", "contestant", "kept, %", "mean regret, %", "median regret, %")
    return markdown(head, lines)


def main() -> None:
    """Run, write the JSON and set the table."""
    command(
        "studies.limits",
        run,
        results="studies/limits/limits.json",
        page="docs/service.md",
        tables={"limits": limits},
    )


if __name__ == "__main__":
    main()
