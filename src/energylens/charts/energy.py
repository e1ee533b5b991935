"""Charts of joules: by row, by term, by configuration, and against latency.

Widths are those of a chart, in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
from energylens.charts.theme import CATEGORIES, SHAPES, Spec, hover

DOT = 55  # square pixels of a mark
PER_REQUEST = "energy (J per request)"


def ranking(
    labels: Sequence[str],
    energy_j: Sequence[float],
    *,
    lower_j: Sequence[float] | None,
    upper_j: Sequence[float] | None,
    chance_ratio: Sequence[float] | None,
    reference_j: float | None,
    width: int = WIDTH,
) -> Spec:
    """Draw configurations with their intervals, and how often each is the best.

    Parameters
    ----------
    labels : sequence of str
        Of the configurations, best first.
    energy_j, lower_j, upper_j : sequence of float
        Joules of a request, and the interval where it is known.
    chance_ratio : sequence of float, optional
        Probability of being the best.
    reference_j : float, optional
        What they are compared with.
    """
    count = len(labels)
    y = places(labels, bold=True, most=width // 2)
    low = min(lower_j if lower_j is not None else energy_j)
    high = max([*(upper_j if upper_j is not None else energy_j), reference_j or 0.0])
    pad = 0.05 * (high - low or high)
    x = quantity("j", "predicted energy (J per request)", domain=[low - pad, high + pad])
    data = {"row": range(count), "name": labels, "j": energy_j}
    role = {"condition": {"test": "datum.row == 0", "value": colour("accent")}, "value":
            colour("muted")}  # fmt: skip
    layers: list[Spec] = []
    if lower_j is not None and upper_j is not None:
        data |= {"low": lower_j, "high": upper_j}
        layers.append(
            {
                "data": table(**data),
                "mark": {"type": "rule", "strokeWidth": 2, "opacity": 0.6, "aria": False},
                "encoding": {"y": y, "x": {**x, "field": "low"}, "x2": {"field": "high"},
                             "color": role},
            }
        )  # fmt: skip
    if reference_j is not None:
        left = 2 * reference_j > low + high  # where there is room for its words
        layers.append(rule("x", reference_j, "ink", strokeDash=[5, 4]))
        layers.append(
            {
                "data": table(at=[reference_j]),
                "mark": {"type": "text", "text": "compared with",
                         "align": "right" if left else "left", "dx": -5 if left else 5,
                         "y": 7, "color": colour("muted"), "fontSize": 11, "aria": False},
                "encoding": {"x": {"field": "at", "type": "quantitative"}},
            }
        )  # fmt: skip
    told = hover(name="configuration", j=("J a request", ".4~g"))
    if lower_j is not None:
        told += hover(low=("interval from, J", ".4~g"), high=("to, J", ".4~g"))
    layers.append(
        {
            "data": table(**data),
            "mark": {"type": "point", "filled": True, "size": 75, "opacity": 1, "aria": False},
            "encoding": {"y": y, "x": x, "color": role, "tooltip": told},
        }
    )
    panels: list[Spec] = [{"height": {"step": STEP}, "layer": layers}]
    if chance_ratio is not None:
        chances = table(
            row=range(count),
            name=labels,
            chance=[100 * chance for chance in chance_ratio],
            said=[f"{100 * chance:.0f} %" for chance in chance_ratio],
        )
        across = quantity("chance", "best in (% of draws)", axis={"values": [0, 50, 100]},
                          domain=[0, 125])  # fmt: skip
        down = places(labels, shown=width < WIDTH, most=width // 2)
        panels.append(
            {
                "height": {"step": STEP},
                "data": chances,
                "layer": [
                    {
                        "mark": {"type": "bar", "color": colour("category-1"), "aria": False,
                                 "height": {"band": 0.6}},
                        "encoding": {"y": down, "x": across,
                                     "tooltip": hover(name="configuration", said="best in")},
                    },
                    {
                        "mark": {"type": "text", "align": "left", "dx": 5, "fontSize": 12,
                                 "color": colour("ink"), "aria": False},
                        "encoding": {"y": down, "x": across, "text": {"field": "said"}},
                    },
                ],
            }
        )  # fmt: skip
    return chart(
        "Configurations by predicted joules of a request, with intervals and how often each is "
        "the best.",
        beside(panels, width, indent=room(labels, width) + 10, shares=(3, 1)),
    )


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A part of every bar."""

    name: str
    role: str  # of its colour
    energy_j: FloatArray  # shape (bars,)


def breakdown(
    labels: Sequence[str],
    segments: Sequence[Segment],
    *,
    frame_j: float,
    beyond: Sequence[tuple[int, str]] = (),
    marked_j: Sequence[float] | None = None,
    marked: str = "",
    shares: bool = False,
    width: int = WIDTH,
) -> Spec:
    """Draw the joules of configurations, divided over the terms of the law.

    Parameters
    ----------
    labels : sequence of str
        Of the bars, from the top.
    segments : sequence of Segment
        In the order of the stack.
    frame_j : float
        Where the axis ends.
    beyond : sequence of (int, str)
        Bars that leave the frame, and what is said there.
    marked_j, marked : sequence of float, str
        Joules to set a diamond at, and what they are.
    shares : bool
        Whether a second panel shows what each bar consists of.
    """
    count = len(labels)
    joules = np.array([segment.energy_j for segment in segments])
    high = np.cumsum(joules, axis=0)
    low, whole = high - joules, high[-1]
    parts = table(
        row=list(range(count)) * len(segments),
        name=list(labels) * len(segments),
        term=[segment.name for segment in segments for _ in labels],
        low=low.ravel(),
        high=high.ravel(),
        j=joules.ravel(),
        from_share=(100 * low / whole).ravel(),
        to_share=(100 * high / whole).ravel(),
        share=(joules / whole).ravel(),
    )
    colours = key(
        "term",
        [segment.name for segment in segments],
        [colour(segment.role) for segment in segments],
        width,
        symbolType="square",
        symbolStrokeWidth=0,
    )
    told = hover(name="configuration", term="term", j=("J a request", ".3~g"),
                 share=("share", ".0%"))  # fmt: skip
    y = places(labels, most=width // 2)

    def bars(x: Spec, ends: str, down: Spec) -> Spec:
        return {
            "data": parts,
            "mark": {"type": "bar", "stroke": colour("paper"), "strokeWidth": 0.6, "clip": True,
                     "height": {"band": 0.7}, "aria": False},
            "encoding": {"y": down, "x": x, "x2": {"field": ends}, "color": colours,
                         "tooltip": told},
        }  # fmt: skip

    x = quantity("low", PER_REQUEST, domain=[0, frame_j])
    layers = [bars(x, "high", y)]
    if beyond:
        said = table(
            row=[row for row, _ in beyond],
            said=[words for _, words in beyond],
            at=[frame_j] * len(beyond),
        )
        for halo in ({"stroke": colour("paper"), "strokeWidth": 5, "strokeJoin": "round"}, {}):
            layers.append(
                {
                    "data": said,
                    "mark": {"type": "text", "align": "right", "dx": -6, "fontSize": 12,
                             "color": colour("ink"), "aria": False, **halo},
                    "encoding": {"y": y, "x": {**x, "field": "at"}, "text": {"field": "said"}},
                }
            )  # fmt: skip
    if marked_j is not None:
        layers.append(
            {
                "data": table(row=range(count), name=labels, j=marked_j),
                "mark": {"type": "point", "shape": "diamond", "filled": True, "opacity": 1,
                         "size": 70, "color": colour("ink"), "stroke": colour("paper"),
                         "clip": True, "aria": False},
                "encoding": {"y": y, "x": {**x, "field": "j"},
                             "tooltip": hover(name="configuration", j=(marked + ", J", ".4~g"))},
            }
        )  # fmt: skip
    panels: list[Spec] = [{"height": {"step": STEP}, "layer": layers}]
    if shares:
        across = quantity("from_share", "share of the prediction (%)", domain=[0, 100],
                          axis={"grid": False})  # fmt: skip
        panels.append(
            {
                "height": {"step": STEP},
                **bars(across, "to_share",
                       places(labels, shown=width < WIDTH, most=width // 2)),
            }
        )  # fmt: skip
    return chart(
        "Joules of a request by configuration, divided over the terms of the law.",
        {
            "resolve": {"scale": {"color": "shared"}},
            **beside(panels, width, indent=room(labels, width), shares=(1, 1)),
        },
    )


def terms(
    labels: Sequence[str], prefill_j: FloatArray, decode_j: FloatArray, *, width: int = WIDTH
) -> Spec:
    """Draw the terms of one case, prefill and decode apart."""
    segments = (
        Segment(name="prefill", role="category-1", energy_j=prefill_j),
        Segment(name="decode", role="category-2", energy_j=decode_j),
    )
    most = float((prefill_j + decode_j).max(initial=0.0)) or 1.0
    return breakdown(labels, segments, frame_j=1.05 * most, width=width)


def by_batch(
    batch: FloatArray,
    energy_j: FloatArray,
    llms: Sequence[str],
    shown: Sequence[str],
    *,
    width: int = WIDTH,
) -> Spec:
    """Draw joules against the batch, coloured by LLM.

    Parameters
    ----------
    batch, energy_j : ndarray, shape (n,)
    llms : sequence of str
        LLM of each row.
    shown : sequence of str
        Those with a colour of their own.
    """
    others = "other LLMs"
    names = [*shown, *([others] if set(llms) - set(shown) else [])]
    roles = [*CATEGORIES[: len(shown)], "muted"][: len(names)]
    kinds = [name if name in shown else others for name in llms]
    colours = key("kind", names, [colour(role) for role in roles], width, columns=2, offset=24)
    marks = [*SHAPES[: len(shown)], "circle"][: len(names)]
    shapes = key("kind", names, marks, width, columns=2, offset=24)
    low, high = float(energy_j.min()), float(energy_j.max())
    return chart(
        "Joules of a request against the batch size of every row, by LLM.",
        {
            **fitted(width, 320),
            "data": table(batch=batch, j=energy_j, kind=kinds, llm=llms),
            "mark": {"type": "point", "filled": True, "size": 30, "opacity": 1, "aria": False,
                     "stroke": colour("paper"), "strokeWidth": 0.4},
            "encoding": {
                "x": log("batch", "batch size (requests in flight)", 0.8 * float(batch.min()),
                         1.25 * float(batch.max())),
                "y": log("j", "energy per request", low / 1.2, high * 1.2, label=JOULES, **UPRIGHT),
                "color": colours,
                "shape": shapes,
                "tooltip": hover(llm="LLM", batch="batch size", j=("J a request", ".4~g")),
            },
        },
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """A row that is the best of its scenario in one sense."""

    name: str
    latency: float
    energy_j: float


def latency_energy(
    names: Sequence[str],
    latency: Sequence[float],
    energy_j: Sequence[float],
    *,
    unit: str,
    what: str,
    title: str,
    frugal: Optimum,
    fastest: Optimum,
    named: bool,
    ratios: tuple[Sequence[float], Sequence[float], Sequence[str]] | None,
    width: int = WIDTH,
) -> Spec:
    """Draw latency and joules of a scenario with both optima, and the price of either in all.

    Parameters
    ----------
    names, latency, energy_j : sequences
        The rows of the scenario but for the optima.
    unit, what, title : str
        Of the latency; what it is; the scenario.
    frugal, fastest : Optimum
        The same one where they agree.
    named : bool
        Whether the rows are few enough for their names to stand beside them.
    ratios : tuple of sequences, optional
        Of every scenario: latency of the most frugal over the fastest, energy of the fastest over
        the most frugal, and its name.
    """
    everything = [*energy_j, frugal.energy_j, fastest.energy_j]
    low, high = min(everything), max(everything)
    wide = high > 8 * low
    times = [*latency, frugal.latency, fastest.latency]
    span = max(times) - min(times) or max(times)
    end = max(times) + (0.2 if named else 0.08) * span
    x = quantity("t", f"{what} ({unit})", domain=[min(times) - 0.08 * span, end])
    pad = 0.1 * (high - low or high)
    y = (
        log("j", PER_REQUEST, low / 1.2, high * 1.2, label=JOULES, **UPRIGHT)
        if wide
        else quantity("j", PER_REQUEST, axis=UPRIGHT, domain=[low - pad, high + pad])
    )
    told = hover(name="configuration", j=("J a request", ".4~g"), t=(f"{what}, {unit}", ".4~g"))
    plain = table(t=latency, j=energy_j, name=names)
    layers: list[Spec] = [
        {
            "data": plain,
            "mark": {"type": "point", "filled": True, "size": DOT, "opacity": 1, "aria": False,
                     "color": colour("muted"), "stroke": colour("paper"), "strokeWidth": 0.5},
            "encoding": {"x": x, "y": y, "tooltip": told},
        }
    ]  # fmt: skip
    if named:
        layers.append(
            {
                "data": plain,
                "mark": {"type": "text", "align": "left", "dx": 7, "dy": -5, "fontSize": 10.5,
                         "color": colour("muted"), "aria": False},
                "encoding": {"x": x, "y": y, "text": {"field": "name"}},
            }
        )  # fmt: skip
    same = frugal == fastest
    optima = [frugal] if same else [frugal, fastest]
    kinds = (
        [f"fastest and fewest joules: {frugal.name}"]
        if same
        else [f"fewest joules: {frugal.name}", f"fastest: {fastest.name}"]
    )
    legend = {"symbolSize": 110, "symbolStrokeWidth": 0}
    marks = {"square": "category-3", "triangle-up": "category-2"}
    layers.append(
        {
            "data": table(
                t=[o.latency for o in optima], j=[o.energy_j for o in optima],
                name=[o.name for o in optima], kind=kinds,
            ),
            "mark": {"type": "point", "filled": True, "size": 150, "opacity": 1, "aria": False,
                     "stroke": colour("paper")},
            "encoding": {
                "x": x, "y": y, "tooltip": told,
                "color": key("kind", kinds, [colour(r) for r in marks.values()][: len(kinds)],
                             width, columns=2, **legend),
                "shape": key("kind", kinds, list(marks)[: len(kinds)], width, columns=2, **legend),
            },
        }
    )  # fmt: skip
    panels: list[Spec] = [{"height": 270, "title": {"text": title, "offset": 26}, "layer": layers}]
    if ratios is not None:
        slower, dearer, scenarios = ratios
        panels.append(
            {
                "height": 270,
                "title": {"text": f"all {len(slower)} scenarios", "offset": 26},
                "data": table(slower=slower, dearer=dearer, name=scenarios),
                "mark": {"type": "point", "filled": True, "size": DOT, "opacity": 1,
                         "color": colour("category-1"), "stroke": colour("paper"),
                         "strokeWidth": 0.5, "aria": False},
                "encoding": {
                    "x": log("slower", "latency, most frugal / fastest", 0.93,
                             1.2 * max(slower), label=TIMES),
                    "y": log("dearer", "energy, fastest / most frugal", 0.93,
                             1.2 * max(dearer), label=TIMES, **UPRIGHT),
                    "tooltip": hover(name="scenario", slower=("latency ratio", ".3~g"),
                                     dearer=("energy ratio", ".3~g")),
                },
            }
        )  # fmt: skip
    return chart(
        "Latency against joules of a request of the configurations of one scenario, and what "
        "either optimum costs in all scenarios.",
        {
            "resolve": {"scale": {"color": "shared", "shape": "shared"}},
            **beside(panels, width, indent=46, shares=(3, 2), between=70),
        },
    )
