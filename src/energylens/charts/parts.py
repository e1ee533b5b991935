"""What specs are put together from: rounded numbers, axes, rows of labels, panels side by side."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from energylens.charts.theme import PALETTE, SCHEMA, Spec, theme

FloatArray = npt.NDArray[np.float64]

WIDTH = 690  # of a chart on a page, axes included, in pixels
NARROW = 340  # of one on a telephone
FONT = "Arial, 'Liberation Sans', Helvetica, sans-serif"  # as wide as the exporter reckons
STEP = 26  # from row to row
LETTER = 7.0  # of a label on average, with room for a reader's wider font
GAP = 24  # between panels

#: Label of a tick in joules, as energylens writes them elsewhere.
JOULES = (
    "datum.value >= 1e6 ? format(datum.value / 1e6, '~g') + ' MJ' : "
    "datum.value >= 1e3 ? format(datum.value / 1e3, '~g') + ' kJ' : "
    "datum.value > 0 && datum.value < 1 ? format(datum.value * 1e3, '~g') + ' mJ' : "
    "format(datum.value, '~g') + ' J'"
)
TIMES = "format(datum.value, '~g') + '×'"
PLAIN = "format(datum.value, '~g')"


def colour(role: str) -> str:
    """Colour of a role on light paper; a page turns it by its style sheet."""
    return PALETTE[role][0]


def rounded(value: float, digits: int = 4) -> float | None:
    """Keep the digits that can be seen: the last bit must not change a drawing."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def table(**columns: Iterable[Any]) -> Spec:
    """Turn columns into inline data; numbers are rounded, and what is not finite is null."""
    names = list(columns)
    return {
        "values": [
            {
                name: rounded(float(cell)) if isinstance(cell, float) else cell
                for name, cell in zip(names, cells, strict=True)
            }
            for cells in zip(*(_plain(column) for column in columns.values()), strict=True)
        ]
    }


def _plain(column: Iterable[Any]) -> list[Any]:
    listed = getattr(column, "tolist", None)
    return listed() if listed is not None else list(column)


def chart(description: str, body: Spec) -> Spec:
    """Make a whole spec of layers or panels."""
    config = theme()
    config["font"] = FONT
    config["axis"] |= {"gridWidth": 0.8, "titlePadding": 8, "labelLimit": 0}
    config["legend"] |= {"titleFontSize": 12, "labelLimit": 0, "symbolStrokeWidth": 1.5}
    config["legend"] |= {"columnPadding": 26, "symbolOpacity": 1}
    config["title"] = {
        "color": colour("ink"),
        "fontSize": 12,
        "fontWeight": "normal",
        "anchor": "start",
        "offset": 8,
    }
    return {
        "$schema": SCHEMA,
        "description": description,
        "config": config | {"concat": {"spacing": GAP}},
        **body,
    }


def fitted(width: int, height: int) -> Spec:
    """Size of a single panel, its axes included in the width."""
    return {
        "width": width,
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
    }


def beside(
    panels: Sequence[Spec],
    width: int,
    *,
    indent: int,
    shares: Sequence[float],
    between: int = GAP,
) -> Spec:
    """Put panels side by side, or beneath each other where there is no room.

    Parameters
    ----------
    width : int
        Of all together.
    indent : int
        What the labels left of the first panel take.
    shares : sequence of float
        Of the rest, one for each panel.
    between : int
        Pixels from a panel to the next, the axis of that included.
    """
    if len(panels) == 1:
        return {**panels[0], "width": width - indent - 16}
    if width < WIDTH:
        return {"vconcat": [{**panel, "width": width - indent - 16} for panel in panels]}
    room = width - indent - 16 - between * (len(panels) - 1)
    return {
        "bounds": "flush",
        "spacing": between,
        "hconcat": [
            {**panel, "width": round(room * share / sum(shares))}
            for panel, share in zip(panels, shares, strict=True)
        ],
    }


def quantity(field: str, title: str | None, *, axis: Spec | None = None, **scale: Any) -> Spec:
    """Encode a number on a linear axis."""
    if "domain" in scale:
        scale["domain"] = [rounded(end) for end in scale["domain"]]
    return {
        "field": field,
        "type": "quantitative",
        "title": title,
        "scale": {"nice": False, "zero": False, **scale},
        "axis": {"tickCount": 5, **(axis or {})},
    }


def log(
    field: str, title: str | None, low: float, high: float, *, label: str = PLAIN, **axis: Any
) -> Spec:
    """Encode a number on a logarithmic axis from ``low`` to ``high``, with ticks at round ones."""
    return {
        "field": field,
        "type": "quantitative",
        "title": title,
        "scale": {"type": "log", "domain": [rounded(low), rounded(high)], "nice": False},
        "axis": {"values": log_ticks(low, high), "labelExpr": label, **axis},
    }


#: A title above its vertical axis: nobody turns their head.
UPRIGHT: Spec = {
    "titleAngle": 0,
    "titleAlign": "left",
    "titleBaseline": "bottom",
    "titleX": -40,
    "titleY": -9,
}


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between two: the fewer to a power of ten, the more powers there are."""
    decades = math.log10(high / low)
    steps = (
        (1.0,)
        if decades > 2.6
        else (1.0, 3.0)
        if decades > 1.4
        else (1.0, 2.0, 5.0)
        if decades > 0.7
        else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
    )
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [
        tick
        for power in powers
        for step in steps
        if low <= (tick := float(f"{step * 10.0**power:.3g}")) <= high
    ]


def places(labels: Sequence[str], *, bold: bool = False, shown: bool = True, most: int = 0) -> Spec:
    """Encode rows from the top down, named by place so that two may have one label.

    Parameters
    ----------
    labels : sequence of str
        A line break sets a label on two lines.
    bold : bool
        Whether the first stands out.
    shown : bool
        Whether labels stand here, or beside the panel to the left.
    most : int
        Of pixels, where labels are cut off.
    """
    label = f"split({json.dumps(list(labels), ensure_ascii=False)}[datum.value], '\\n')"
    axis: Spec | None = {
        "labelExpr": label,
        "labelColor": colour("ink"),
        "domain": False,
        "ticks": False,
        "grid": False,
        "labelPadding": 8,
        "labelLineHeight": 13,
        "minExtent": room(labels, 2 * most if most else 2 * WIDTH) + (10 if bold else 0),
        **({"labelLimit": most} if most else {}),
    }
    if bold and axis is not None:
        axis["labelFontWeight"] = {
            "condition": {"test": "datum.value == 0", "value": "bold"},
            "value": "normal",
        }
    return {
        "field": "row",
        "type": "ordinal",
        "title": None,
        "scale": {"domain": list(range(len(labels)))},
        "axis": axis if shown else None,
    }


def room(labels: Sequence[str], width: int) -> int:
    """Pixels that labels beside rows take, at most half of the width."""
    longest = max((len(line) for label in labels for line in label.split("\n")), default=0)
    return min(round(longest * LETTER) + 12, width // 2)


def key(
    field: str,
    names: Sequence[str],
    colours: Sequence[str],
    width: int,
    *,
    columns: int = 4,
    **legend: Any,
) -> Spec:
    """Encode a category by colour, named above the chart in as many columns as there is room."""
    longest = max(map(len, names), default=0)
    fit = max(1, int(width // (longest * LETTER + 46)))
    return {
        "field": field,
        "type": "nominal",
        "scale": {"domain": list(names), "range": list(colours)},
        "legend": {"title": None, "columns": min(columns, fit), **legend},
    }


def rule(axis: str, value: float, role: str = "muted", **mark: Any) -> Spec:
    """Draw a line across a panel."""
    return {
        "data": {"values": [{"at": rounded(value)}]},
        "mark": {"type": "rule", "color": colour(role), "aria": False, **mark},
        "encoding": {axis: {"field": "at", "type": "quantitative"}},
    }
