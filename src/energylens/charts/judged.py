"""Charts of how right a model is: predictions, residuals, learning curves, forms, coefficients.

Widths are those of a chart, in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from energylens.charts.parts import (
    JOULES,
    STEP,
    TIMES,
    UPRIGHT,
    WIDTH,
    FloatArray,
    beside,
    chart,
    colour,
    fitted,
    key,
    log,
    places,
    quantity,
    room,
    rule,
    table,
)
from energylens.charts.theme import (
    CATEGORIES,
    PALETTE,
    SHAPES,
    Spec,
    by_category,
    hover,
    web_chart,
    web_log,
)

REGRET_TICKS = (0, 0.5, 1, 2, 5, 10, 30, 100, 300, 1000)
FRAME = 2.0  # ends of the median curve: what goes farther is cut and labelled


def predictions(
    measured_j: FloatArray,
    predicted_j: FloatArray,
    kinds: Sequence[str],
    names: Sequence[str],
    *,
    legend: Mapping[str, str],
    word: str,
    lower_j: FloatArray | None = None,
    upper_j: FloatArray | None = None,
    width: int = WIDTH,
) -> Spec:
    """Draw predicted against measured joules on logarithmic axes.

    Parameters
    ----------
    measured_j, predicted_j, lower_j, upper_j : ndarray, shape (n,)
        Joules of a request, and the interval of the prediction where there is one.
    kinds, names : sequence of str
        Of each row: what it is coloured by, and what a hover says.
    legend : mapping of str to str
        What is said of each kind.
    word : str
        What the measured joules are.
    """
    ends = np.concatenate([measured_j, predicted_j])
    low, high = float(ends.min()) / 1.3, float(ends.max()) * 1.3
    x = log("m", f"{word} (J per request)", low, high, label=JOULES)
    y = log("p", "predicted (J per request)", low, high, label=JOULES, **UPRIGHT)
    said = [legend[kind] for kind in kinds]
    roles, shapes = CATEGORIES[: len(legend)], SHAPES[: len(legend)]
    look: Spec = {"orient": "top-left", "direction": "vertical", "columns": 1,
                  "symbolStrokeWidth": 0, "offset": 6, "symbolSize": 70}  # fmt: skip
    named = list(legend.values())
    layers: list[Spec] = [
        {
            "data": table(m=[low, high], p=[low, high]),
            "mark": {"type": "line", "color": colour("muted"), "strokeWidth": 1, "aria": False},
            "encoding": {"x": x, "y": y},
        }
    ]
    if lower_j is not None and upper_j is not None:
        layers.append(
            {
                "data": table(m=measured_j, p=lower_j, high=upper_j),
                "mark": {"type": "rule", "color": colour("line"), "strokeWidth": 0.8,
                         "clip": True, "aria": False},
                "encoding": {"x": x, "y": y, "y2": {"field": "high"}},
            }
        )  # fmt: skip
    layers.append(
        {
            "data": table(m=measured_j, p=predicted_j, kind=said, name=names),
            "mark": {"type": "point", "filled": True, "size": 32, "opacity": 1, "aria": False,
                     "stroke": colour("paper"), "strokeWidth": 0.5},
            "encoding": {
                "x": x,
                "y": y,
                "color": key("kind", named, [colour(r) for r in roles], width, **look),
                "shape": key("kind", named, list(shapes), width, **look),
                "tooltip": hover(name="row", m=(f"{word}, J", ".4~g"), p=("predicted, J", ".4~g")),
            },
        }
    )  # fmt: skip
    return chart(
        f"Predicted against {word} joules of every row; on the diagonal they agree.",
        {**fitted(width, min(430, round(0.95 * width))), "layer": layers},
    )


def residuals(
    labels: Sequence[str],
    ratios: Sequence[FloatArray],
    names: Sequence[Sequence[str]],
    *,
    word: str,
    width: int = WIDTH,
) -> Spec:
    """Draw predicted over measured joules, a row of dots for each workload.

    Parameters
    ----------
    ratios : sequence of ndarray
        Of each label.
    names : sequence of sequence of str
        What a hover says of each dot.
    word : str
        What the measured joules are.
    """
    middles = [float(np.exp(np.log(ratio).mean())) for ratio in ratios]
    everything = np.concatenate(ratios)
    low = min(float(everything.min()) / 1.1, 0.7)
    high = max(float(everything.max()) * 1.1, 1.4)
    y = places(labels, most=width // 2)
    x = log("ratio", f"predicted / {word} energy (ratio): left too low, right too high", low, high,
            label=TIMES)  # fmt: skip
    side = {
        "condition": {"test": "datum.middle > 1", "value": colour("category-2")},
        "value": colour("category-1"),
    }
    count = [len(ratio) for ratio in ratios]
    return chart(
        f"Predicted over {word} joules by workload, the worst first.",
        {
            **fitted(width, 0),
            "autosize": "pad",
            "width": width - room(labels, width) - 20,
            "height": {"step": STEP + 8},
            "layer": [
                rule("x", 1.0),
                {
                    "data": table(
                        row=np.repeat(np.arange(len(labels)), count),
                        middle=np.repeat(middles, count),
                        ratio=everything,
                        name=[name for group in names for name in group],
                    ),
                    "mark": {"type": "point", "filled": True, "size": 44, "opacity": 1,
                             "stroke": colour("paper"), "strokeWidth": 0.7, "aria": False},
                    "encoding": {
                        "x": x, "y": y, "color": side,
                        "tooltip": hover(name="row", ratio=(f"predicted / {word}", ".3~g")),
                    },
                },
                {
                    "data": table(row=range(len(labels)), middle=middles),
                    "mark": {"type": "tick", "thickness": 2.5, "size": 22, "aria": False,
                             "opacity": 1, "color": colour("ink")},
                    "encoding": {"x": {**x, "field": "middle"}, "y": y},
                },
            ],
        },
    )  # fmt: skip


def every_row(*, dark: bool = False) -> Spec:
    """Draw predicted over measured joules against measured ones.

    Named data: ``rows`` with ``measured``, ``ratio``, ``g`` (place of the category) and what a
    hover says (``llm``, ``gpu``, ``configuration``, ``tokens``, ``predicted``, ``source``).
    """
    return {
        **web_chart(
            "Predicted over measured joules of every row, against the measured joules. At 1 the "
            "two agree.",
            300,
            dark=dark,
        ),
        "layer": [
            {
                "data": {"values": [{"ratio": 1}]},
                "mark": {"type": "rule", "color": PALETTE["muted"][dark], "aria": False},
                "encoding": {"y": {"field": "ratio", "type": "quantitative"}},
            },
            {
                "data": {"name": "rows"},
                "mark": {"type": "point", "filled": True, "size": 34, "opacity": 0.7,
                         "aria": False},
                "encoding": {
                    "x": web_log("measured", "measured joules", format="~s"),
                    "y": web_log("ratio", "predicted / measured", format=".2~f", tickCount=6,
                                 minExtent=48, maxExtent=48),
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


def learning(
    panels: Sequence[tuple[str, str, Mapping[str, FloatArray], FloatArray]],
    sizes: Sequence[int],
    *,
    named: Sequence[str],
    others: Sequence[str],
    width: int = WIDTH,
) -> Spec:
    """Draw metrics against the rows trained on.

    Parameters
    ----------
    panels : sequence of tuple
        Metric (``top1``, ``regret`` or ``error``), title, means in percent by estimator and the
        band of the first named one, shape (sizes, 2).
    sizes : sequence of int
        Rows trained on.
    named, others : sequence of str
        Estimators with a colour of their own, the first of them ours; those in grey.
    """
    names, shapes = list(named), list(SHAPES[: len(named)])
    colours = [colour(role) for role in CATEGORIES[: len(named)]]
    drawn = []
    for metric, title, means, band in panels:
        # How far a curve goes from where all curves want to be: 0, or all choices right.
        far = {name: 100.0 - means[name] if metric == "top1" else means[name] for name in names}
        end = _frame(list(far.values()))
        scale: Spec
        ticks: Spec = {"tickCount": 5}
        if metric == "top1":
            scale = {"domain": [95.0 - end, 101]}
        elif metric == "regret":
            # A few percent matter here, and tens of percent happen.
            scale = {"type": "symlog", "constant": 1, "domain": [0, 1.2 * max(end, 1.0)]}
            ticks = {"values": [t for t in REGRET_TICKS if t <= 1.2 * max(end, 1.0)]}
        else:
            scale = {"domain": [0, 1.1 * end]}
        x = {
            **log("n", "training rows", sizes[0] / 1.1, sizes[-1] * 1.1),
            "axis": {"values": list(sizes), "labelExpr": "format(datum.value, 'd')",
                     "labelOverlap": True},
        }  # fmt: skip
        y = quantity("v", None, axis={**ticks, "labelExpr": "format(datum.value, '~g')"}, **scale)

        def lines(chosen: Sequence[str], means: Mapping[str, FloatArray] = means) -> Spec:
            return table(
                n=[n for _ in chosen for n in sizes],
                v=[v for name in chosen for v in means[name].tolist()],
                name=[name for name in chosen for _ in sizes],
            )

        told = hover(name="estimator", n="training rows", v=(title, ".3~g"))
        layers: list[Spec] = []
        if others:
            layers.append(
                {
                    "data": lines(others),
                    "mark": {"type": "line", "color": colour("line"), "strokeWidth": 1,
                             "clip": True, "aria": False},
                    "encoding": {"x": x, "y": y, "detail": {"field": "name"}, "tooltip": told},
                }
            )  # fmt: skip
        if np.isfinite(band).all():
            layers.append(
                {
                    "data": table(n=sizes, v=band[:, 0], high=band[:, 1]),
                    "mark": {"type": "area", "color": colours[0], "opacity": 0.15, "clip": True,
                             "aria": False},
                    "encoding": {"x": x, "y": y, "y2": {"field": "high"}},
                }
            )  # fmt: skip
        colour_by = key("name", names, colours, width, columns=3)
        shape_by = key("name", names, shapes, width, columns=3)
        thick = {
            "condition": {"test": f"datum.name == {names[0]!r}", "value": 2.6},
            "value": 1.4,
        }
        for mark, extra in (
            ({"type": "line"}, {"strokeWidth": thick}),
            ({"type": "point", "filled": True, "size": 42, "opacity": 1}, {"shape": shape_by}),
        ):
            layers.append(
                {
                    "data": lines(names[::-1]),
                    "mark": {**mark, "clip": True, "aria": False},
                    "encoding": {"x": x, "y": y, "color": colour_by, "tooltip": told, **extra},
                }
            )
        cut = [k for k, name in enumerate(names) if np.nanmax(far[name], initial=0.0) > end]
        for place, k in enumerate(cut):
            worst = int(np.nanargmax(far[names[k]]))
            value, arrow = float(means[names[k]][worst]), "↓" if metric == "top1" else "↑"
            layers.append(
                {
                    "data": table(
                        n=[sizes[worst]],
                        said=[f"{value:.{int(value < 10)}f} % {arrow}"],
                    ),
                    "mark": {"type": "text", "fontSize": 12, "aria": False, "color": colours[k],
                             "align": "right" if worst == len(sizes) - 1 else "left", "dx": 2,
                             "y": 190 - 14 * place if metric == "top1" else 9 + 14 * place},
                    "encoding": {"x": x, "text": {"field": "said"}},
                }
            )  # fmt: skip
        drawn.append({"title": title, "height": 200, "layer": layers})
    return chart(
        "Metrics of every estimator against the rows it was trained on.",
        {
            "resolve": {"scale": {"color": "shared", "shape": "shared"}},
            **beside(drawn, width, indent=30, shares=[1] * len(drawn), between=58),
        },
    )


def _frame(curves: Sequence[FloatArray]) -> float:
    """Where an axis ends so that neither the first curve is cut nor one stretches it for all."""
    ends = [float(np.nanmax(curve, initial=0.0)) for curve in curves]
    return max(ends[0], min(max(ends), FRAME * float(np.median(ends))))


def forms(
    complexity: Sequence[int],
    held_out: Sequence[float],
    spread: Sequence[float],
    in_sample: Sequence[float],
    texts: Sequence[str],
    *,
    knee: int,
    knee_name: str,
    reference: tuple[str, float] | None,
    width: int = WIDTH,
) -> Spec:
    """Draw the error of every expression of a front against its complexity, in percent.

    Parameters
    ----------
    complexity, held_out, spread, in_sample, texts : sequences
        Of each expression: its size, its error on rows left out and one standard error of it,
        its error on the rows it was found in, and its formula.
    knee : int
        Place of the one to take.
    reference : (str, float), optional
        Name and error of what it is compared with.
    """
    # An error cannot be negative, and a logarithmic axis has no 0.
    low = [e - min(s, 0.9 * e) for e, s in zip(held_out, spread, strict=True)]
    high = [e + s for e, s in zip(held_out, spread, strict=True)]
    ends = [*low, *in_sample, *high, *([reference[1]] if reference else [])]
    title = "mean absolute error (%)"
    y = (
        log("e", title, 0.9 * min(ends), 1.1 * max(ends), **UPRIGHT)
        if max(ends) > 8 * min(ends) > 0
        else quantity("e", title, axis=UPRIGHT, domain=[0, 1.08 * max(ends)])
    )
    pad = 0.04 * (complexity[-1] - complexity[0] or 1)
    x = quantity("c", "complexity (names, numbers and operators)",
                 domain=[complexity[0] - pad, complexity[-1] + pad])  # fmt: skip
    found, left_out = "the rows it was found in", "held-out rows"
    names = [left_out, found, knee_name, *([reference[0]] if reference else [])]
    roles = ["category-1", "muted", "category-2", "category-3"][: len(names)]
    by = key("kind", names, [colour(role) for role in roles], width, symbolType="stroke",
             symbolStrokeWidth=3, offset=24)  # fmt: skip

    def points(e: Sequence[float], kind: str) -> Spec:
        return table(c=complexity, e=e, kind=[kind] * len(e), form=texts, low=low, high=high)

    told = hover(form="expression", c="complexity", e=("error, %", ".3~g"))
    layers: list[Spec] = [
        {
            "data": points(in_sample, found),
            "mark": {"type": "line", "strokeWidth": 1.2, "strokeDash": [2, 3], "aria": False},
            "encoding": {"x": x, "y": y, "color": by},
        },
        {
            "data": points(held_out, left_out),
            "mark": {"type": "rule", "strokeWidth": 1, "aria": False},
            "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": by},
        },
        {
            "data": points(held_out, left_out),
            "mark": {"type": "line", "strokeWidth": 1.8, "aria": False},
            "encoding": {"x": x, "y": y, "color": by},
        },
        {
            "data": points(held_out, left_out),
            "mark": {"type": "point", "filled": True, "size": 55, "opacity": 1, "aria": False},
            "encoding": {"x": x, "y": y, "color": by, "tooltip": told},
        },
        {
            "data": table(c=[complexity[knee]], e=[held_out[knee]], kind=[knee_name]),
            "mark": {"type": "point", "size": 260, "strokeWidth": 2.2, "filled": False,
                     "aria": False},
            "encoding": {"x": x, "y": y, "color": by},
        },
    ]  # fmt: skip
    if reference is not None:
        layers.append(
            {
                "data": table(e=[reference[1]], kind=[reference[0]]),
                "mark": {"type": "rule", "strokeDash": [6, 4], "strokeWidth": 1.3, "aria": False},
                "encoding": {"y": y, "color": by},
            }
        )
    return chart(
        "Error of the expressions of a front against their complexity; the ring is the one to "
        "take.",
        {**fitted(width, 290), "layer": layers},
    )


def coefficients(
    labels: Sequence[str],
    theta: FloatArray,
    low: FloatArray,
    high: FloatArray,
    *,
    width: int = WIDTH,
) -> Spec:
    """Draw coefficients with their intervals; 1 is what the datasheet suggests."""
    end = 1.05 * max(2.0, float(theta.max()), min(float(high.max()), 4.0))
    y = places(labels, most=width // 2)
    x = quantity("theta", "coefficient / what the datasheet suggests", domain=[0, end])
    data = table(row=range(len(labels)), name=labels, theta=theta, low=low, high=high)
    accent = colour("accent")
    return chart(
        "Coefficients of the law over what the datasheet suggests, with 80 % intervals.",
        {
            "width": width - room(labels, width) - 16,
            "height": {"step": STEP - 4},
            "layer": [
                rule("x", 1.0, "ink", strokeDash=[5, 4]),
                {
                    "data": data,
                    "mark": {"type": "rule", "strokeWidth": 2, "opacity": 0.6, "color": accent,
                             "clip": True, "aria": False},
                    "encoding": {"y": y, "x": {**x, "field": "low"}, "x2": {"field": "high"}},
                },
                {
                    "data": data,
                    "mark": {"type": "point", "filled": True, "size": 60, "opacity": 1,
                             "color": accent, "aria": False},
                    "encoding": {
                        "y": y, "x": x,
                        "tooltip": hover(name="term", theta=("coefficient", ".3~g"),
                                         low=("from", ".3~g"), high=("to", ".3~g")),
                    },
                },
            ],
        },
    )  # fmt: skip


def regret(names: Sequence[str], percent: FloatArray, *, frame: float, width: int = WIDTH) -> Spec:
    """Draw the mean regret of estimators in percent; bars beyond the frame are cut."""
    y = places(names, most=width // 2)
    x = quantity("v", "mean regret: joules of the choice over the best (%)",
                 domain=[0, 1.18 * frame])  # fmt: skip
    data = table(
        row=range(len(names)),
        name=names,
        v=np.minimum(percent, frame),
        said=[f"{value:.2f} %" for value in percent],
    )
    return chart(
        "Mean regret of every estimator.",
        {
            "width": width - room(names, width) - 16,
            "height": {"step": STEP - 2},
            "data": data,
            "layer": [
                {
                    "mark": {"type": "bar", "color": colour("category-1"), "aria": False,
                             "height": {"band": 0.7}},
                    "encoding": {"y": y, "x": x,
                                 "tooltip": hover(name="estimator", said="mean regret")},
                },
                {
                    "mark": {"type": "text", "align": "left", "dx": 5, "fontSize": 12,
                             "color": colour("ink"), "aria": False},
                    "encoding": {"y": y, "x": x, "text": {"field": "said"}},
                },
            ],
        },
    )  # fmt: skip
