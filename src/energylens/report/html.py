"""A report as one HTML page that needs nothing from outside."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources

from energylens import __version__
from energylens.charts import render
from energylens.charts.parts import NARROW
from energylens.errors import MissingExtraError
from energylens.report.document import Figure, Report


def page(report: Report, *, interactive: bool = True) -> str:
    """Set what was gathered as one HTML page.

    Drawings are in it as SVG, for paper and for a browser without scripts. An interactive page
    also carries their specs and what draws them, packed, and draws them anew where they stand.

    Raises
    ------
    MissingExtraError
        If vl-convert, jinja2 or latex2mathml is not installed.
    """
    try:
        import jinja2
    except ImportError as error:
        raise MissingExtraError("jinja2", "report", "An HTML report") from error
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("energylens", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["marked"] = _marked_up
    script = (resources.files("energylens") / "templates" / "report.js").read_text("utf-8")
    pictures = [
        block.picture
        for section in report.sections
        for block in section.blocks
        if isinstance(block, Figure)
    ]
    drawer = render.bundle() if interactive and pictures else ""
    specs = {
        picture.name: {"wide": picture.spec(), "narrow": picture.spec(NARROW)}
        for picture in (pictures if interactive else ())
    }
    return environment.get_template("report.html").render(
        report=report,
        light=render.palette_css(0),
        dark=render.palette_css(1),
        painted=render.painted_css(".drawing svg"),
        script=script,
        hashes=[_hash(text) for text in (script, drawer) if text],
        drawer=render.packed(drawer) if drawer else "",
        charts=render.packed(render.compact(specs)),
        version=__version__,
    )


def _hash(script: str) -> str:
    """Name a script in a content security policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _marked_up(cell: str) -> str:
    """Set a symbol such as λ_p with its index lowered; other cells as they are."""
    import markupsafe

    match = re.fullmatch(r"([α-ω])_(\w+)|([A-Za-zℓ])_(\w)", cell)
    if match is None:
        return cell
    letter, index = (part for part in match.groups() if part)
    return markupsafe.Markup("<var>{}</var><sub>{}</sub>").format(letter, index)
