"""Charts of a table of rows: residuals, the learning curve, the front of discovered forms."""

from __future__ import annotations

from energylens.charts.theme import CATEGORIES, SCHEMA, SHAPES, Spec, colour, theme

HEIGHT = 300
AXIS_WIDE = 48


def _chart(description: str, *, dark: bool) -> Spec:
    return {
        "$schema": SCHEMA,
        "description": description,
        "width": "container",
        "height": HEIGHT,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "config": theme(dark=dark),
    }


def residuals(*, dark: bool = False) -> Spec:
    """Draw predicted over measured joules against measured ones.

    Named data: ``rows`` with ``measured``, ``ratio``, ``g`` (place of the category) and what a
    hover says (``llm``, ``gpu``, ``configuration``, ``tokens``, ``predicted``, ``source``).
    """
    places = [str(k) for k in range(len(CATEGORIES))]
    return {
        **_chart(
            "Predicted over measured joules of every row, against the measured joules. At 1 the "
            "two agree.",
            dark=dark,
        ),
        "layer": [
            {
                "data": {"values": [{"ratio": 1}]},
                "mark": {"type": "rule", "color": colour("muted", dark=dark), "aria": False},
                "encoding": {"y": {"field": "ratio", "type": "quantitative"}},
            },
            {
                "data": {"name": "rows"},
                "mark": {"type": "point", "filled": True, "size": 34, "opacity": 0.7,
                         "aria": False},
                "encoding": {
                    "x": {"field": "measured", "type": "quantitative", "title": "measured joules",
                          "scale": {"type": "log", "nice": False, "padding": 10},
                          "axis": {"format": "~s", "tickCount": 5}},
                    "y": {"field": "ratio", "type": "quantitative",
                          "title": "predicted / measured",
                          "scale": {"type": "log", "nice": False, "padding": 10},
                          "axis": {"format": ".2~f", "tickCount": 6, "minExtent": AXIS_WIDE,
                                   "maxExtent": AXIS_WIDE}},
                    "color": {"field": "g", "type": "nominal", "legend": None,
                              "scale": {"domain": places, "range": [
                                  colour(role, dark=dark) for role in CATEGORIES]}},
                    "shape": {"field": "g", "type": "nominal", "legend": None,
                              "scale": {"domain": places, "range": list(SHAPES)}},
                    "tooltip": [
                        {"field": "llm", "title": "LLM"},
                        {"field": "gpu", "title": "GPU type"},
                        {"field": "precision"},
                        {"field": "configuration"},
                        {"field": "tokens", "title": "tokens in + out"},
                        {"field": "measured", "title": "measured J", "format": ".4~g"},
                        {"field": "predicted", "title": "predicted J", "format": ".4~g"},
                        {"field": "source"},
                    ],
                },
            },
        ],
    }  # fmt: skip


def learning(*, dark: bool = False) -> Spec:
    """Draw the mean error against the rows trained on, one line for each estimator.

    Named data: ``curve`` with ``rows``, ``error``, ``g`` and ``name``.
    """
    places = [str(k) for k in range(len(CATEGORIES))]
    return {
        **_chart("Mean error of each estimator against the rows it was trained on.", dark=dark),
        "data": {"name": "curve"},
        "mark": {"type": "line", "strokeWidth": 2, "aria": False,
                 "point": {"size": 46, "filled": True}},
        "encoding": {
            "x": {"field": "rows", "type": "quantitative", "title": "rows trained on",
                  "scale": {"type": "log", "nice": False, "padding": 10},
                  "axis": {"format": "~s", "tickCount": 5}},
            "y": {"field": "error", "type": "quantitative", "title": "mean error of joules, %",
                  "scale": {"type": "log", "nice": False, "padding": 10},
                  "axis": {"format": "~s", "tickCount": 5, "minExtent": AXIS_WIDE,
                           "maxExtent": AXIS_WIDE}},
            "color": {"field": "g", "type": "nominal", "legend": None,
                      "scale": {"domain": places, "range": [
                          colour(role, dark=dark) for role in CATEGORIES]}},
            "shape": {"field": "g", "type": "nominal", "legend": None,
                      "scale": {"domain": places, "range": list(SHAPES)}},
            "tooltip": [
                {"field": "name", "title": "estimator"},
                {"field": "rows", "title": "rows trained on"},
                {"field": "error", "title": "mean error, %", "format": ".3~g"},
                {"field": "regret", "title": "regret, %", "format": ".3~g"},
                {"field": "top1", "title": "best choice found, %", "format": ".3~g"},
            ],
        },
    }  # fmt: skip


def forms(*, dark: bool = False) -> Spec:
    """Draw the held-out error of discovered forms against their complexity.

    Named data: ``forms`` with ``complexity``, ``error``, ``low``, ``high``, ``knee`` and ``form``.
    """
    hue, ink = colour("category-1", dark=dark), colour("ink", dark=dark)
    x = {"field": "complexity", "type": "quantitative", "title": "complexity",
         "scale": {"nice": False, "padding": 12, "zero": False}}  # fmt: skip
    scale = {"type": "log", "nice": False, "padding": 10}
    axis = {"format": "~s", "tickCount": 5, "minExtent": AXIS_WIDE, "maxExtent": AXIS_WIDE}
    return {
        **_chart(
            "Error on rows left out of every discovered form, against its complexity. The ring is "
            "the form to take.",
            dark=dark,
        ),
        "data": {"name": "forms"},
        "layer": [
            {
                "mark": {"type": "rule", "color": hue, "strokeWidth": 1, "aria": False},
                "encoding": {
                    "x": x,
                    "y": {"field": "low", "type": "quantitative", "scale": scale,
                          "title": "error on rows left out, %", "axis": axis},
                    "y2": {"field": "high"},
                },
            },
            {
                "transform": [{"filter": "datum.knee"}],
                "mark": {"type": "point", "size": 230, "strokeWidth": 2.5, "filled": False,
                         "color": ink, "aria": False},
                "encoding": {"x": x, "y": {"field": "error", "type": "quantitative"}},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 60, "color": hue,
                         "aria": False},
                "encoding": {
                    "x": x,
                    "y": {"field": "error", "type": "quantitative"},
                    "tooltip": [
                        {"field": "form"},
                        {"field": "complexity"},
                        {"field": "error", "title": "error left out, %", "format": ".3~g"},
                        {"field": "top1", "title": "best choice found, %", "format": ".3~g"},
                    ],
                },
            },
        ],
    }  # fmt: skip
