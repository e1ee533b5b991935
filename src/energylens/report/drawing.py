"""One figure: its numbers, its words, and the chart that a page, a notebook and a file draw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from energylens import files
from energylens.charts import render
from energylens.charts.parts import FONT, WIDTH
from energylens.charts.theme import PALETTE, Spec
from energylens.errors import UsageError

PAPER = PALETTE["paper"][0]

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
    draw : callable
        Takes a width in pixels, and gives the chart as a Vega-Lite spec on light paper.
    """

    name: str
    title: str
    caption: str
    alternative: str
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    draw: Callable[[int], Spec]

    def spec(self, width: int = WIDTH) -> Spec:
        """Give the chart as a Vega-Lite spec: a plain dict, for whoever draws it elsewhere.

        Parameters
        ----------
        width : int
            In pixels; panels stand beneath each other where there is little.
        """
        return self.draw(width)

    def svg(self) -> str:
        """Draw as an ``svg`` element for a page whose styles paint it, as `painted_css` does.

        Raises
        ------
        MissingExtraError
            If vl-convert is not installed.
        """
        return render.element(render.svg(self.spec()), self.name, self.alternative)

    def standalone_svg(self) -> str:
        """Draw as an SVG file of its own, light or dark as its reader prefers."""
        head, _, body = self.svg().partition(">")
        style = (
            f"<style>svg {{ font-family: {FONT} }} "
            f"@media (prefers-color-scheme: dark) {{ svg {{ {render.palette_css(1)} }} "
            f"{render.painted_css('svg')} }}</style>"
        )
        return f'{head}>{style}<rect width="100%" height="100%" fill="{PAPER}"/>{body}\n'

    def save(self, path: str | Path) -> None:
        """Write the picture to a file.

        Parameters
        ----------
        path : str or Path
            Ends in ``.svg`` (text stays text, light or dark as its reader prefers), ``.pdf`` or
            ``.png`` (light, 1,380 pixels wide).

        Raises
        ------
        UsageError
            If it ends in something else.
        MissingExtraError
            If vl-convert is not installed.
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
        else:
            drawn = render.pdf if kind == ".pdf" else render.png
            files.write_bytes(path, drawn(self.spec()))

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """Show it in a notebook: drawn anew where Vega-Lite is understood, as SVG elsewhere."""
        return {
            render.NOTEBOOK_TYPE: render.notebook(self.spec()),
            "image/svg+xml": self.standalone_svg(),
            "text/plain": f"{self.title}. {self.alternative}",
        }
