"""The figure of docs/service.md: what the closed form predicts against what is simulated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from energylens import files
from energylens.charts.parts import UPRIGHT, WIDTH, beside, chart, colour, key, log, table
from energylens.charts.render import svg
from energylens.charts.theme import CATEGORIES, Spec

PANELS = (
    ("energy_per_request_j", 1.0, "joules a request, simulated"),
    ("mean_batch_size", 1.0, "sequences that run"),
    ("ttft_s", 1e3, "TTFT, mean (ms)"),
    ("ttft_p99_s", 1e3, "TTFT, p99 (ms)"),
)
BANDS = ("load below 0.6", "0.6 to 0.8", "above 0.8")


def _band(load: float) -> str:
    return BANDS[0 if load < 0.6 else 1 if load < 0.8 else 2]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Draw each setting."""
    panels = [_panel(rows, *panel) for panel in PANELS]
    lines = [beside(panels[i : i + 2], WIDTH, indent=44, shares=(1, 1), between=58) for i in (0, 2)]
    drawn = chart(
        "Closed form against simulation of continuous batching, a point for each setting; on the "
        "diagonal they agree.",
        {"vconcat": lines, "resolve": {"scale": {"color": "shared"}}},
    )
    path.parent.mkdir(exist_ok=True)
    files.write_text(path, svg(drawn))


def _panel(rows: Sequence[dict[str, Any]], name: str, unit: float, title: str) -> Spec:
    simulated = [unit * row[name][0] for row in rows]
    predicted = [unit * row[name][1] for row in rows]
    low, high = min(*simulated, *predicted) / 1.3, max(*simulated, *predicted) * 1.3
    x, y = log("s", title, low, high), log("c", "closed form", low, high, **UPRIGHT)
    ranges = [colour(role) for role in CATEGORIES[: len(BANDS)]]
    return {
        "height": 190,
        "layer": [
            {
                "data": table(s=[low, high], c=[low, high]),
                "mark": {"type": "line", "color": colour("muted"), "strokeWidth": 1},
                "encoding": {"x": x, "y": y},
            },
            {
                "data": table(s=simulated, c=predicted, band=[_band(r["load"]) for r in rows]),
                "mark": {"type": "circle", "size": 18, "opacity": 0.75},
                "encoding": {
                    "x": x,
                    "y": y,
                    "color": key("band", BANDS, ranges, WIDTH, orient="top"),
                },
            },
        ],
    }
