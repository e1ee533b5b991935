"""What all figures share: colours, axes, and drawing to SVG."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from energylens import files
from energylens.charts.theme import PALETTE as PALETTE
from energylens.errors import MissingExtraError, UsageError
from energylens.words import si

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure


#: What a picture can be saved as.
KINDS = (".svg", ".pdf", ".png")


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """One figure: its numbers, its words, and how to draw it.

    Attributes
    ----------
    name : str
        Short and unique in a report: the id in the page.
    title, caption : str
        What it shows, and how to read it.
    alternative : str
        What one would see, in words.
    columns, rows : tuple of str, tuple of tuple of str
        The numbers behind it, where they are few enough to be read.
    size_in : tuple of float
        Width and height.
    draw : callable
        Draws on an empty figure of that size.
    """

    name: str
    title: str
    caption: str
    alternative: str
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    size_in: tuple[float, float]
    draw: Callable[[Figure], None]

    def svg(self) -> str:
        """Draw as an ``svg`` element for a page that defines ``--role`` for all of `PALETTE`.

        Raises
        ------
        MissingExtraError
            If matplotlib is not installed.
        """
        drawn = _drawn(self.draw, self.size_in).decode()
        return _inline(drawn, self.name, self.alternative)

    def standalone_svg(self) -> str:
        """Draw as an SVG file of its own, light or dark as its reader prefers."""
        style = (
            f"<style>svg {{ {palette_css(0)} font-family: system-ui, sans-serif }} "
            f"@media (prefers-color-scheme: dark) {{ svg {{ {palette_css(1)} }} }}</style>"
        )
        head, _, body = self.svg().partition(">")
        background = '<rect width="100%" height="100%" style="fill: var(--paper)"/>'
        return f"{head}>{style}{background}{body}\n"

    def save(self, path: str | Path) -> None:
        """Write the picture to a file.

        Parameters
        ----------
        path : str or Path
            Ends in ``.svg`` (text stays text, light or dark as its reader prefers), ``.pdf`` or
            ``.png`` (light, 200 dots an inch).

        Raises
        ------
        UsageError
            If it ends in something else.
        ArtefactError
            If the file cannot be written.
        """
        kind = Path(path).suffix.lower()
        if kind not in KINDS:
            raise UsageError(
                f"a figure is saved as {', '.join(KINDS)}: end its name in one of them, not "
                f"{str(path)!r}"
            )
        if kind == ".svg":
            files.write_text(path, self.standalone_svg())
            return
        paper = {"savefig.facecolor": PALETTE["paper"][0], "savefig.dpi": 200}
        drawn = _drawn(self.draw, self.size_in, paper, kind=kind.removeprefix("."))
        files.write_bytes(path, drawn)

    def _repr_html_(self) -> str:
        return (
            f"<figure><figcaption><b>{_attribute(self.title)}</b></figcaption>"
            f"{self.standalone_svg()}<figcaption>{_attribute(self.caption)}</figcaption></figure>"
        )


def palette_css(theme: int) -> str:
    """Give the palette as CSS declarations: 0 for light, 1 for dark."""
    return " ".join(f"--{role}: {colours[theme]};" for role, colours in PALETTE.items())


# ------------------------------------------------------------------------- drawing, made themable


def typeset(tex: str, spoken: str, name: str) -> str:
    """Set a formula as an ``svg`` element, its letters 1.4 times those around it.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    """

    def draw(figure: Figure) -> None:
        figure.text(0.0, 0.0, f"${tex}$", fontsize=13, parse_math=True)

    settings: dict[str, Any] = {
        "svg.fonttype": "path",
        "mathtext.fontset": "stix",
        "savefig.bbox": "tight",
    }
    settings |= {"savefig.pad_inches": 0.02}
    svg = _inline(_drawn(draw, (1.0, 1.0), settings).decode(), name, spoken)
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    width = 1.4 * float(box.group(1)) / 13 if box else 20.0
    return svg.replace(" role=", f' style="width: {width:.2f}em" role=', 1)


def _drawn(
    draw: Callable[[Figure], None],
    size_in: tuple[float, float],
    others: Mapping[Any, Any] | None = None,
    kind: str = "svg",
) -> bytes:
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "report", "Drawing figures") from error
    ink, muted, line = (PALETTE[role][0] for role in ("ink", "muted", "line"))
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "energylens",
        "text.parse_math": False,  # an LLM's name may hold a dollar sign
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.titlelocation": "left",
        "axes.titlecolor": ink,
        "axes.labelcolor": muted,
        "axes.edgecolor": line,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "grid.color": line,
        "grid.linewidth": 0.6,
        "xtick.color": line,
        "ytick.color": line,
        "xtick.labelcolor": muted,
        "ytick.labelcolor": muted,
        "text.color": ink,
        "legend.frameon": False,
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "savefig.facecolor": "none",
    }
    out = io.BytesIO()
    undated: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind, {})
    with matplotlib.rc_context(), warnings.catch_warnings():
        # Characters that the metrics' font lacks are in the reader's.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings | dict(others or {}))
        figure = Figure(figsize=size_in, layout="constrained")
        draw(figure)
        maker = "Software" if kind == "png" else "Creator"
        figure.savefig(out, format=kind, metadata={**undated, maker: None})
    return out.getvalue()


def _inline(svg: str, name: str, alternative: str) -> str:
    """Turn an SVG document into an element: ids its own, colours by role, the page's font."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'((?:xlink:)?href="#|url\(#)', rf"\g<1>{name}-", body)
    body = re.sub(r"(font-size: [\d.]+)px; font-family: [^;\"]*", r"\g<1>px", body)
    body = re.sub(r"font: ((?:[a-z0-9]+ )*?)([\d.]+)px [^;\"]*", r"font-size: \g<2>px", body)
    for role, (light, _) in PALETTE.items():
        body = body.replace(light, f"var(--{role})")
    view = re.search(r'viewBox="[^"]*"', body)
    end = body.index(">")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'{view.group() if view else ""} role="img" aria-label="{_attribute(alternative)}">'
        + re.sub(r"\s*\n\s*", "\n", body[end + 1 :]).strip()
    )


def _attribute(text: str) -> str:
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;")):
        text = text.replace(character, entity)
    return text


def _colour(role: str) -> str:
    return PALETTE[role][0]


def _log_joules(axes: Axes, which: str, low: float, high: float) -> None:
    """Label a logarithmic axis in joules; a narrow one at more than the powers of ten."""
    from matplotlib.ticker import FuncFormatter

    axis = axes.xaxis if which == "x" else axes.yaxis
    decades = math.log10(high / low)
    steps = (1.0,) if decades > 2.5 else (1.0, 3.0) if decades > 1.2 else (1.0, 2.0, 5.0)
    _log_ticks(axis, steps)
    axis.set_major_formatter(FuncFormatter(lambda value, _: si(value, "J")))


def _times(axis: Axis) -> None:
    """Label a logarithmic axis of ratios."""
    from matplotlib.ticker import FuncFormatter

    low, high = axis.get_view_interval()
    decades = math.log10(high / low)
    wide = decades > 1.3
    _log_ticks(
        axis,
        (1.0, 3.0)
        if wide
        else (1.0, 2.0, 5.0)
        if decades > 0.7
        else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0),
    )
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))


def _log_ticks(axis: Axis, steps: tuple[float, ...]) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set_major_locator(LogLocator(base=10.0, subs=steps))
    axis.set_minor_locator(NullLocator())


def _rows_upside_down(axes: Axes, labels: Sequence[str]) -> None:
    """Label rows from the top down."""
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0, labelcolor=_colour("ink"))
    axes.grid(visible=False, axis="y")
