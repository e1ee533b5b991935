"""Charts of a table of rows: residuals, the learning curve, the front of discovered forms."""

from __future__ import annotations

from energylens.charts.theme import Spec, by_category, colour, hover, web_chart, web_log

HEIGHT = 300
WIDE = {"minExtent": 48, "maxExtent": 48}  # of an upright axis, in pixels


def residuals(*, dark: bool = False) -> Spec:
    """Draw predicted over measured joules against measured ones.

    Named data: ``rows`` with ``measured``, ``ratio``, ``g`` (place of the category) and what a
    hover says (``llm``, ``gpu``, ``configuration``, ``tokens``, ``predicted``, ``source``).
    """
    return {
        **web_chart(
            "Predicted over measured joules of every row, against the measured joules. At 1 the "
            "two agree.",
            HEIGHT,
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
                    "x": web_log("measured", "measured joules", format="~s"),
                    "y": web_log("ratio", "predicted / measured", format=".2~f", tickCount=6,
                                 **WIDE),
                    **by_category("g", dark=dark),
                    "tooltip": hover(
                        llm="LLM", gpu="GPU type", precision="precision",
                        configuration="configuration", tokens="tokens in + out",
                        measured=("measured J", ".4~g"), predicted=("predicted J", ".4~g"),
                        source="source",
                    ),
                },
            },
        ],
    }  # fmt: skip


def learning(*, dark: bool = False) -> Spec:
    """Draw the mean error against the rows trained on, one line for each estimator.

    Named data: ``curve`` with ``rows``, ``error``, ``g`` and ``name``.
    """
    return {
        **web_chart(
            "Mean error of each estimator against the rows it was trained on.", HEIGHT, dark=dark
        ),
        "data": {"name": "curve"},
        "mark": {"type": "line", "strokeWidth": 2, "aria": False,
                 "point": {"size": 46, "filled": True}},
        "encoding": {
            "x": web_log("rows", "rows trained on", format="~s"),
            "y": web_log("error", "mean error of joules, %", format="~s", **WIDE),
            **by_category("g", dark=dark),
            "tooltip": hover(
                name="estimator", rows="rows trained on", error=("mean error, %", ".3~g"),
                regret=("regret, %", ".3~g"), top1=("best choice found, %", ".3~g"),
            ),
        },
    }  # fmt: skip


def forms(*, dark: bool = False) -> Spec:
    """Draw the held-out error of discovered forms against their complexity.

    Named data: ``forms`` with ``complexity``, ``error``, ``low``, ``high``, ``knee`` and ``form``.
    """
    hue, ink = colour("category-1", dark=dark), colour("ink", dark=dark)
    x = {"field": "complexity", "type": "quantitative", "title": "complexity",
         "scale": {"nice": False, "padding": 12, "zero": False}}  # fmt: skip
    place = {"x": x, "y": {"field": "error", "type": "quantitative"}}
    told = hover(
        form="form", complexity="complexity", error=("error left out, %", ".3~g"),
        top1=("best choice found, %", ".3~g"),
    )  # fmt: skip
    return {
        **web_chart(
            "Error on rows left out of every discovered form, against its complexity. The ring is "
            "the form to take.",
            HEIGHT,
            dark=dark,
        ),
        "data": {"name": "forms"},
        "layer": [
            {
                "mark": {"type": "rule", "color": hue, "strokeWidth": 1, "aria": False},
                "encoding": {
                    "x": x,
                    "y": web_log("low", "error on rows left out, %", format="~s", **WIDE),
                    "y2": {"field": "high"},
                },
            },
            {
                "transform": [{"filter": "datum.knee"}],
                "mark": {"type": "point", "size": 230, "strokeWidth": 2.5, "filled": False,
                         "color": ink, "aria": False},
                "encoding": place,
            },
            {
                "mark": {"type": "point", "filled": True, "size": 60, "color": hue,
                         "aria": False},
                "encoding": {**place, "tooltip": told},
            },
        ],
    }  # fmt: skip
