"""The figure of docs/studies/planning.md: what so many rows give, planned and at random."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from energylens import files
from energylens.report.drawing import PALETTE, Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = (
    ("v3", "law, no prior", "ML.ENERGY v3, no prior"),
    ("argonne", "law", "Argonne, datasheet prior"),
)
METRICS = (("top1_ratio", "Top-1 (%)"), ("regret_ratio", "regret (%)"), ("mape_ratio", "MAPE (%)"))
LINES = (
    ("planned", None, "law, planned", "category-1", "o"),
    ("random", None, "law, random", "category-2", "s"),
    ("random", "random-forest", "random forest, random", "category-3", "^"),
    ("random", "xgboost", "xgboost, random", "category-4", "D"),
)
LIMITS = {"top1_ratio": (20, 102), "regret_ratio": (0.03, 60), "mape_ratio": (1.5, 130)}
SHOWN = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 200)


def write(path: Path, results: Mapping[str, Any]) -> None:
    """Draw the sources there are."""
    if not all(source in results for source, _, _ in PANELS):
        return

    def draw(figure: Figure) -> None:
        axes = figure.subplots(len(PANELS), len(METRICS), sharex="row")
        for line, (source, fit, title) in zip(axes, PANELS, strict=True):
            for ax, (metric, label) in zip(line, METRICS, strict=True):
                _panel(ax, results[source], fit, metric)
                ax.set_title(label)
            line[0].set_ylabel(title)
        for ax in axes[-1]:
            ax.set_xlabel("measured rows")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)

    picture = Picture(
        name="planning",
        title="Planned against random measurements",
        caption="",
        alternative="Top-1, regret and error against the number of measured rows: planned rows "
        "reach the final choice with a fraction of the rows that random ones take; learned "
        "ensembles take many more.",
        size_in=(7.2, 4.6),
        draw=draw,
    )
    path.parent.mkdir(exist_ok=True)
    files.write_text(path, picture.standalone_svg())


def _panel(ax: Axes, result: Mapping[str, Any], law: str, metric: str) -> None:
    for way, fit, label, role, marker in LINES:
        curve = next(
            (c for c in result["curves"] if (c["way"], c["fit"]) == (way, fit or law)), None
        )
        if curve is None:
            continue
        sizes = np.array(curve["sizes"])
        shown = np.isin(sizes, SHOWN)
        values = 100 * np.array(curve[metric])[shown]
        colour = PALETTE[role][0]
        ax.plot(
            sizes[shown], values[:, 0], color=colour, marker=marker, markersize=3, linewidth=1.2,
            label=label,
        )  # fmt: skip
        if fit is None:
            ax.fill_between(
                sizes[shown], values[:, 1], values[:, 2], color=colour, alpha=0.15, linewidth=0
            )
    final = 100 * result["final"][law][metric]
    ax.axhline(final, color=PALETTE["muted"][0], linewidth=0.8, linestyle="--")
    ax.set_xscale("log", base=2)
    ax.set_xticks((4, 8, 16, 32, 64, 128), ("4", "8", "16", "32", "64", "128"))
    ax.minorticks_off()
    if metric != "top1_ratio":
        ax.set_yscale("log")
        ticks = (0.1, 1, 10) if metric == "regret_ratio" else (2, 5, 10, 20, 50, 100)
        ax.set_yticks(ticks, [f"{t:g}" for t in ticks])
        ax.minorticks_off()
    ax.set_ylim(*LIMITS[metric])
