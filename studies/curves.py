"""Curves against a number of rows: what the figures of the studies are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from energylens.charts.parts import colour, key, log, quantity, rule, table
from energylens.charts.theme import SHAPES, Spec, hover


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a panel: its name, its values, and a band where it has one."""

    name: str
    rows: Sequence[float]
    values: Sequence[float]
    band: Sequence[tuple[float, float]] = ()


def panel(
    curves: Sequence[Curve],
    names: Sequence[str],
    roles: Sequence[str],
    *,
    title: str,
    x_title: str | None,
    ticks: Sequence[float],
    limits: tuple[float, float],
    y_ticks: Sequence[float] = (),
    level: float | None = None,
    height: int = 190,
    width: int = 690,
) -> Spec:
    """Draw curves with points on a logarithmic axis of rows.

    Parameters
    ----------
    curves : sequence of Curve
    names, roles : sequence of str
        Every name of the figure and its colour, so that all panels agree.
    title, x_title : str
    ticks : sequence of float
        On the axis of rows.
    limits : (float, float)
        Of the values; ``y_ticks`` make their axis logarithmic.
    y_ticks : sequence of float
    level : float, optional
        Where a dashed line is drawn.
    height, width : int
        Of the panel, and of the whole figure.
    """
    x = log("n", x_title, min(ticks) / 1.15, max(ticks) * 1.15, values=list(ticks),
            labelExpr="format(datum.value, 'd')", labelOverlap=True)  # fmt: skip
    y = (
        log("v", None, *limits, values=list(y_ticks))
        if y_ticks
        else quantity("v", None, domain=list(limits))
    )
    by = key("name", names, [colour(role) for role in roles], width)
    shape = key("name", names, list(SHAPES[: len(names)]), width)
    layers: list[Spec] = [] if level is None else [rule("y", level, strokeDash=[5, 4])]
    for curve in curves:
        if curve.band:
            low, high = zip(*curve.band, strict=True)
            layers.append(
                {
                    "data": table(n=curve.rows, v=low, high=high),
                    "mark": {"type": "area", "opacity": 0.15, "clip": True, "aria": False,
                             "color": colour(roles[list(names).index(curve.name)])},
                    "encoding": {"x": x, "y": y, "y2": {"field": "high"}},
                }
            )  # fmt: skip
    data = table(
        n=[n for curve in curves for n in curve.rows],
        v=[v for curve in curves for v in curve.values],
        name=[curve.name for curve in curves for _ in curve.rows],
    )
    told = hover(name="", n="rows", v=(title, ".3~g"))
    layers += [
        {
            "data": data,
            "mark": {"type": "line", "strokeWidth": 1.6, "clip": True, "aria": False},
            "encoding": {"x": x, "y": y, "color": by, "tooltip": told},
        },
        {
            "data": data,
            "mark": {"type": "point", "filled": True, "size": 32, "opacity": 1, "clip": True,
                     "aria": False},
            "encoding": {"x": x, "y": y, "color": by, "shape": shape, "tooltip": told},
        },
    ]  # fmt: skip
    return {"title": title, "height": height, "layer": layers}
