"""The figure of docs/results.md on stated probabilities: what was promised, and what came true."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from energylens import files
from energylens.report.drawing import PALETTE, Picture
from energylens.words import percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def picture(results: Mapping[str, Any]) -> Picture:
    """Show how often candidates were best against the probability stated for them."""
    bins, chosen = (results["calibration"][key] for key in ("bins", "chosen"))
    stated, best, near = (
        100 * np.array([b[key] for b in bins])
        for key in ("stated_ratio", "best_ratio", "within_noise_ratio")
    )

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot(
            [0, 100], [0, 100], color=PALETTE["muted"][0], linewidth=1, linestyle="--",
            label="as stated",
        )  # fmt: skip
        axes.plot(
            stated, near, "s-", color=PALETTE["category-2"][0], label="was within 2 % of the best"
        )
        axes.plot(stated, best, "o-", color=PALETTE["category-1"][0], label="was the best")
        axes.plot(
            [100 * b["stated_ratio"] for b in chosen],
            [100 * b["best_ratio"] for b in chosen],
            "^:",
            color=PALETTE["category-3"][0],
            label="chosen, was the best",
        )
        for b in chosen:
            if b["from_ratio"] < 0.5:  # above, whoever has it is the one chosen
                axes.annotate(
                    f"{b['candidates']:,}",
                    (100 * b["stated_ratio"], 100 * b["best_ratio"]),
                    xytext=(-4, 8),
                    textcoords="offset points",
                    fontsize=7.5,
                    color=PALETTE["muted"][0],
                )
        for k, (x, y, b) in enumerate(zip(stated, best, bins, strict=True)):
            axes.annotate(
                f"{b['candidates']:,}",
                (x, y),
                xytext=(6, -11) if k else (-4, 8),
                textcoords="offset points",
                fontsize=7.5,
                color=PALETTE["muted"][0],
            )
        axes.set(
            xlim=(-2, 108),
            ylim=(-8, 104),
            xlabel="stated probability of being the best (%), mean of a bin",
            ylabel="came true (%)",
        )
        figure.legend(loc="outside upper left", ncols=2)

    return Picture(
        name="calibration",
        title="Is the stated probability of being best kept?",
        caption="",
        alternative="Of the candidates, by the probability stated for them: "
        + "; ".join(
            f"{percent(b['stated_ratio'])} stated, {percent(b['best_ratio'])} were best, "
            f"{percent(b['within_noise_ratio'])} within 2 % of it"
            for b in bins
        )
        + ". Of those chosen: "
        + "; ".join(
            f"{percent(b['stated_ratio'])} stated, {percent(b['best_ratio'])} were best"
            for b in chosen
        )
        + ".",
        size_in=(6.4, 3.8),
        draw=draw,
    )


def write(path: Path, results: Mapping[str, Any]) -> None:
    """Draw it."""
    files.write_text(path, picture(results).standalone_svg())
