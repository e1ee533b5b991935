"""What all charts share: colours by role, and the look of axes and legends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Spec = dict[str, Any]

#: The grammar's version, as a name: nothing fetches it.
SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"

#: Colours by role, for light and for dark paper. Categories are those of Okabe and Ito, made
#: darker or lighter where the paper asks for it; prefill is blue, decode orange in all figures.
PALETTE: Mapping[str, tuple[str, str]] = {
    "paper": ("#ffffff", "#12161b"),
    "panel": ("#f5f7f9", "#1a1f26"),
    "ink": ("#1b2027", "#e8ebef"),
    "muted": ("#56606b", "#a7b0bb"),
    "line": ("#d8dde3", "#363f4a"),
    "accent": ("#00639c", "#63b5ee"),
    "warning": ("#a33b00", "#ff9d66"),
    "warning-panel": ("#fff2ea", "#33200f"),
    "category-1": ("#0072b2", "#5fb2ea"),
    "category-2": ("#d55e00", "#ff8f4f"),
    "category-3": ("#009e73", "#35c9a0"),
    "category-4": ("#a8518a", "#e39ac8"),
    "category-5": ("#c98600", "#f3bd4d"),
    "category-6": ("#4b5bb5", "#9fabf5"),
    "prefill-1": ("#0b4f8a", "#3d87c9"),
    "prefill-2": ("#2f7fc1", "#62a6de"),
    "prefill-3": ("#74b0de", "#8fc3ee"),
    "prefill-4": ("#b0d3ee", "#c0e0fa"),
    "decode-1": ("#9a3a00", "#cf6420"),
    "decode-2": ("#d0560a", "#ee7f38"),
    "decode-3": ("#ee8432", "#ff9f5e"),
    "decode-4": ("#f8ab69", "#ffbd8a"),
    "decode-5": ("#fcd0a4", "#ffd9b8"),
    "decode-6": ("#5c2500", "#9c4710"),
    "decode-7": ("#b58a66", "#d2ab88"),
    "layout-1": ("#00876a", "#2fc39c"),
    "layout-2": ("#8d4f9f", "#cf93de"),
    "layout-3": ("#7d868f", "#98a2ad"),
    "layout-4": ("#66b39b", "#86e0c6"),
}

#: Roles and shapes of categories, in the order in which they are taken.
CATEGORIES = tuple(f"category-{k}" for k in range(1, 7))
SHAPES = ("circle", "square", "triangle-up", "cross", "diamond", "triangle-down")


def colour(role: str, *, dark: bool) -> str:
    """Colour of a role on light or dark paper."""
    return PALETTE[role][int(dark)]


_TURNED = dict(PALETTE.values())


def turned(spec: Any) -> Any:
    """Turn a spec drawn for light paper into one for dark, each role in its other colour."""
    if isinstance(spec, dict):
        return {name: turned(part) for name, part in spec.items()}
    if isinstance(spec, list):
        return [turned(part) for part in spec]
    return _TURNED.get(spec, spec) if isinstance(spec, str) else spec


def theme(*, dark: bool = False) -> Spec:
    """Make the ``config`` of a chart."""
    ink, muted, line = (colour(role, dark=dark) for role in ("ink", "muted", "line"))
    return {
        "background": None,
        "font": "system-ui, sans-serif",
        "view": {"stroke": None},
        "axis": {
            "labelColor": muted,
            "titleColor": ink,
            "gridColor": line,
            "domainColor": line,
            "tickColor": line,
            "titleFontWeight": "normal",
            "labelFontSize": 12,
            "titleFontSize": 12,
        },
        "legend": {
            "labelColor": ink,
            "titleColor": muted,
            "labelFontSize": 12,
            "orient": "top",
            "symbolStrokeWidth": 0,
        },
    }


def web_chart(description: str, height: int, *, dark: bool) -> Spec:
    """Begin a chart that fills the width of its place in a page."""
    return {
        "$schema": SCHEMA,
        "description": description,
        "width": "container",
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "config": theme(dark=dark),
    }


def web_log(field: str, title: str, **axis: object) -> Spec:
    """Encode a quantity on a logarithmic axis."""
    return {
        "field": field,
        "type": "quantitative",
        "title": title,
        "scale": {"type": "log", "nice": False, "padding": 10},
        "axis": {"format": "~g", "tickCount": 5, **axis},
    }


def by_category(field: str, *, dark: bool) -> Spec:
    """Encode the place of a category by colour and shape, named beside the chart."""
    places = [str(k) for k in range(len(CATEGORIES))]
    looks = {
        "color": [colour(role, dark=dark) for role in CATEGORIES],
        "shape": list(SHAPES),
    }
    return {
        channel: {
            "field": field,
            "type": "nominal",
            "legend": None,
            "scale": {"domain": places, "range": values},
        }
        for channel, values in looks.items()
    }


def hover(**titles: str | tuple[str, str]) -> list[Spec]:
    """Name what a hover says: field by title, or by title and number format."""
    return [
        {"field": name, "title": said}
        if isinstance(said, str)
        else {"field": name, "title": said[0], "format": said[1]}
        for name, said in titles.items()
    ]
