"""From a spec to SVG, PNG, PDF, a notebook and a page: the one place that knows the exporter."""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections import Counter
from functools import cache
from typing import Any

from energylens.charts.theme import PALETTE, Spec
from energylens.errors import MissingExtraError

#: What notebooks understand: JupyterLab and VS Code draw the grammar's version 5.
NOTEBOOK_SCHEMA = "https://vega.github.io/schema/vega-lite/v5.json"
NOTEBOOK_TYPE = "application/vnd.vegalite.v5+json"
PIXELS = 2.0  # of a PNG, for each of the chart's
REPEATED = 8  # marks alike are drawn once and used this often or more


def svg(spec: Spec) -> str:
    """Draw as an SVG document, on light paper.

    Raises
    ------
    MissingExtraError
        If vl-convert is not installed.
    """
    drawn: str = _exporter().vegalite_to_svg(spec)
    return _shortened(drawn)


def png(spec: Spec) -> bytes:
    """Draw as a PNG on white paper; raises as `svg`."""
    drawn: bytes = _exporter().vegalite_to_png(_papered(spec), scale=PIXELS)
    return drawn


def pdf(spec: Spec) -> bytes:
    """Draw as a PDF on white paper; raises as `svg`."""
    drawn: bytes = _exporter().vegalite_to_pdf(_papered(spec))
    return drawn


def notebook(spec: Spec) -> Spec:
    """Name the version of the grammar that notebooks draw; specs keep to what both have."""
    return {**_papered(spec), "$schema": NOTEBOOK_SCHEMA}


@cache
def bundle() -> str:
    """Take vega, vega-lite and vega-embed out of the exporter, for a page; raises as `svg`.

    The script sets ``vegaEmbed``, and nothing else.
    """
    made: str = _exporter().javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return f"(() => {{{made}\n}})();"


def packed(text: str) -> str:
    """Compress a text for a page: gzip, in base64, the same each time."""
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=9, mtime=0)).decode()


def compact(spec: Any) -> str:
    """Write a spec as JSON without spaces."""
    return json.dumps(spec, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def palette_css(theme: int) -> str:
    """Give the palette as CSS declarations: 0 for light, 1 for dark."""
    return " ".join(f"--{role}: {colours[theme]};" for role, colours in PALETTE.items())


@cache
def painted_css(selector: str) -> str:
    """Give the rules by which a drawing on light paper follows the page's ``--role`` colours.

    Parameters
    ----------
    selector : str
        Of the elements that are drawings.
    """
    return "\n".join(
        f'{selector} [{what}="{light}"] {{ {what}: var(--{role}) }}'
        for role, (light, _) in PALETTE.items()
        for what in ("fill", "stroke")
    )


def element(drawn: str, name: str, alternative: str) -> str:
    """Turn an SVG document into an element of a page: ids its own, the page's font, spoken."""
    body = drawn[drawn.index("<svg") :]
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'((?:xlink:)?href="#|url\([\'"]?#)', rf"\g<1>{name}-", body)
    body = re.sub(r' font-family="[^"]*"', "", body)
    view = re.search(r'viewBox="[^"]*"', body)
    said = alternative
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;")):
        said = said.replace(character, entity)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'{view.group() if view else ""} role="img" aria-label="{said}">'
        + body[body.index(">") + 1 :].strip()
    )


def _papered(spec: Spec) -> Spec:
    paper = PALETTE["paper"][0]
    return {**spec, "config": {**spec.get("config", {}), "background": paper}}


def _exporter() -> Any:
    try:
        import vl_convert
    except ImportError as error:
        raise MissingExtraError("vl-convert-python", "report", "Drawing figures") from error
    return vl_convert


_MARK = re.compile(r'<path transform="translate\(([-\d.]+),([-\d.]+)\)" ([^>]*?)/>')
_LINE = re.compile(
    r'<line transform="translate\(([-\d.]+),([-\d.]+)\)" x2="([-\d.]+)" y2="([-\d.]+)"([^>]*?)/>'
)
_LINES = re.compile(rf"(?:{_LINE.pattern}){{2,}}")
_UNSEEN = re.compile(
    r' (?:class|role|aria-hidden|aria-roledescription|aria-label|pointer-events)="[^"]*"'
    r'| opacity="1"|<path[^>]* d="M0,0h0v0h0Z"[^>]*/>|<path[^>]* display="none"[^>]*/>'
)


def _shortened(drawn: str) -> str:
    """Leave out what is not seen, and draw marks alike once: clouds are most of an SVG."""
    drawn = _UNSEEN.sub("", drawn)
    for place, name in enumerate(dict.fromkeys(re.findall(r'id="(\w+)"', drawn))):
        # The exporter counts on from drawing to drawing.
        drawn = re.sub(rf'(id="|#){name}\b', rf"\g<1>c{place}", drawn)
    drawn = re.sub(r"\d+\.\d{3,}", lambda m: f"{float(m.group()):.2f}", drawn)
    drawn = _LINES.sub(_joined, drawn)
    often = {
        look: f"m{place}"
        for place, (look, times) in enumerate(
            Counter(match.group(3) for match in _MARK.finditer(drawn)).items()
        )
        if times >= REPEATED
    }

    def used(match: re.Match[str]) -> str:
        name = often.get(match.group(3))
        if name is None:
            return match.group()
        return f'<use xlink:href="#{name}" x="{match.group(1)}" y="{match.group(2)}"/>'

    drawn = _MARK.sub(used, drawn)
    defined = "".join(f'<path id="{name}" {look}/>' for look, name in often.items())
    end = drawn.index(">") + 1
    return f"{drawn[:end]}<defs>{defined}</defs>{drawn[end:]}" if often else drawn


def _joined(match: re.Match[str]) -> str:
    """Make one path of lines that follow each other and look alike."""
    paths: dict[str, list[str]] = {}
    for x, y, dx, dy, look in _LINE.findall(match.group()):
        paths.setdefault(look, []).append(f"M{x},{y}l{dx},{dy}")
    return "".join(f'<path d="{"".join(lines)}"{look}/>' for look, lines in paths.items())
