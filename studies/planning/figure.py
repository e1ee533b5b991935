"""The figure of docs/studies/planning.md: what so many rows give, planned and at random."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from energylens import files
from energylens.charts.parts import beside, chart
from energylens.charts.theme import Spec
from energylens.report.drawing import Picture
from studies.curves import Curve, panel

PANELS = (
    ("v3", "law, no prior", "ML.ENERGY v3, no prior"),
    ("argonne", "law", "Argonne, datasheet prior"),
)
METRICS = (("top1_ratio", "Top-1 (%)"), ("regret_ratio", "regret (%)"), ("mape_ratio", "MAPE (%)"))
LINES = (
    ("planned", None, "law, planned", "category-1"),
    ("random", None, "law, random", "category-2"),
    ("random", "random-forest", "random forest, random", "category-3"),
    ("random", "xgboost", "xgboost, random", "category-4"),
)
LIMITS = {"top1_ratio": (20, 102), "regret_ratio": (0.03, 60), "mape_ratio": (1.5, 130)}
TICKS: dict[str, tuple[float, ...]] = {
    "top1_ratio": (), "regret_ratio": (0.1, 1, 10), "mape_ratio": (2, 5, 10, 20, 50, 100),
}  # fmt: skip
SHOWN = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 200)


def write(path: Path, results: Mapping[str, Any]) -> None:
    """Draw the sources there are."""
    if not all(source in results for source, _, _ in PANELS):
        return

    def draw(width: int) -> Spec:
        lines = []
        for source, fit, title in PANELS:
            panels = [
                _panel(results[source], fit, metric, f"{title}: {label}" if k == 0 else label)
                for k, (metric, label) in enumerate(METRICS)
            ]
            lines.append(beside(panels, width, indent=30, shares=(1, 1, 1), between=58))
        return chart(
            "Top-1, regret and error against the number of measured rows.",
            {"vconcat": lines, "resolve": {"scale": {"color": "shared", "shape": "shared"}}},
        )

    picture = Picture(
        name="planning",
        title="Planned against random measurements",
        caption="",
        alternative="Top-1, regret and error against the number of measured rows: planned rows "
        "reach the final choice with a fraction of the rows that random ones take; learned "
        "ensembles take many more.",
        draw=draw,
    )
    path.parent.mkdir(exist_ok=True)
    files.write_text(path, picture.standalone_svg())


def _panel(result: Mapping[str, Any], law: str, metric: str, title: str) -> Spec:
    curves = []
    for way, fit, label, _ in LINES:
        found = next(
            (c for c in result["curves"] if (c["way"], c["fit"]) == (way, fit or law)), None
        )
        if found is None:
            continue
        sizes = np.array(found["sizes"])
        shown = np.isin(sizes, SHOWN)
        values = 100 * np.array(found[metric])[shown]
        curves.append(
            Curve(
                name=label,
                rows=sizes[shown].tolist(),
                values=values[:, 0].tolist(),
                band=[] if fit else [(low, high) for low, high in values[:, 1:3].tolist()],
            )
        )
    return panel(
        curves,
        [label for _, _, label, _ in LINES],
        [role for _, _, _, role in LINES],
        title=title,
        x_title="measured rows",
        ticks=(4, 8, 16, 32, 64, 128, 200),
        limits=LIMITS[metric],
        y_ticks=TICKS[metric],
        level=100 * result["final"][law][metric],
        height=150,
    )
