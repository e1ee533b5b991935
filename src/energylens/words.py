"""How numbers and sentences are written, once for the terminal, the page and the notebook."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

WIDTH = 80  # columns of a terminal
SURE_RATIO = 0.994  # above it a share or a probability is "over 99 %": never the whole
TEN_PERCENT = 0.0949  # above it a saving needs no digit behind the point
J_PER_KWH = 3.6e6
_PREFIXES = ("f", "p", "n", "µ", "m", "", "k", "M", "G", "T")


def si(value: float, unit: str) -> str:
    """Write a quantity with three digits and the prefix that keeps them short.

    Examples
    --------
    >>> si(0.00342, "J/kernel")
    '3.42 mJ/kernel'
    """
    if not math.isfinite(value) or value == 0:
        return f"{value:g} {unit}"
    power = math.floor(math.log10(abs(float(f"{value:.2e}"))) / 3 + 1e-9)
    power = min(max(power, -5), len(_PREFIXES) - 6)
    return f"{value / 1000.0**power:.3g} {_PREFIXES[power + 5]}{unit}"


def joules(value: float) -> str:
    """Write joules with three digits and the prefix that keeps them short."""
    return si(value, "J")


def energies(request_j: float, input_tokens: float, output_tokens: float) -> str:
    """Write joules of a request by what they are told of, side by side, with kWh.

    A token of output and a token of either kind are two units that are often taken for one.

    Examples
    --------
    >>> energies(360.0, 300.0, 100.0)
    '360 J/request, 3.6 J/output token, 900 mJ/total token, 100 mWh/request'
    """
    return (
        f"{joules(request_j)}/request, {joules(request_j / output_tokens)}/output token, "
        f"{joules(request_j / (input_tokens + output_tokens))}/total token, "
        f"{si(request_j / J_PER_KWH * 1e3, 'Wh')}/request"
    )


def complaint(fault: Mapping[str, Any]) -> str:
    """Write the first fault that pydantic finds in a file: where, what must hold, what was given.

    Examples
    --------
    >>> complaint({"type": "missing", "loc": ("replica", "start_s"), "msg": "", "input": {}})
    'replica.start_s must be given'
    """
    where = ".".join(map(str, fault["loc"][:8])) or "the document"
    kind, told = str(fault["type"]), fault.get("ctx") or {}
    if kind == "missing":
        return f"{where} must be given"
    if kind == "extra_forbidden":
        return f"{where} is no key that is known"
    bound = next((f"{w} {told[n]}" for n, w in _BOUNDS.items() if n in told), "")
    must = bound or next((w for start, w in _KINDS.items() if kind.startswith(start)), "")
    if not must:
        said = str(fault["msg"]).removeprefix("Value error, ")
        return f"{where}: {said[:1].lower()}{said[1:300]}"
    given = repr(fault.get("input"))
    return f"{where} must be {must}, not {given[:60]}{'...' if len(given) > 60 else ''}"


_BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most", "expected": "one of"}
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "string": "text",
    "bool": "true or false",
    "list": "a list",
    "tuple": "a list",
    "model": "a table of keys",
    "dict": "a table of keys",
}


def percent(ratio: float | None, digits: int = 1) -> str:
    """Write a ratio in percent; a dash where there is none, no digits where they say nothing."""
    if ratio is None or not math.isfinite(ratio):
        return "-"
    return "> 1000 %" if ratio > 10 else f"{100 * ratio:.{digits}f} %"


def signed(ratio: float) -> str:
    """Write a change in percent, with its sign."""
    return f"{100 * ratio:+.1f} %"


def likelihood(ratio: float | None) -> str:
    """Write a share or a probability, which is never the whole, in whole percent."""
    return "over 99 %" if ratio is not None and ratio > SURE_RATIO else percent(ratio, 0)


def rounded_down(probability: float) -> float:
    """Round a probability to two digits, never to one that it does not reach.

    Examples
    --------
    >>> rounded_down(0.8997), rounded_down(0.29)
    (0.89, 0.29)
    """
    return math.floor(100.0 * probability + 1e-9) / 100.0


def saving(ratio: float) -> str:
    """Write a share that is saved, of which nothing saves all."""
    return likelihood(ratio) if ratio > TEN_PERCENT else percent(ratio, 1)


class Note(str):
    """A sentence beside an answer, with how much it does to the answer and a form of one line.

    It is a string like any other; what has no rank or short form of its own is any sentence.

    Parameters
    ----------
    text : str
    rank : {0, 1, 2, 3, 4, 5}
        0: the answer claims nothing. 1: no row is of what is asked. 2: any other. 3: what the
        answer comes from. 4: what all answers of a fit share. 5: money.
    brief : str
        Where there is little room; by default the whole.
    """

    UNCLAIMED, UNSEEN, OTHER, ORIGIN, SHARED, MONEY = range(6)

    rank: int
    brief: str

    def __new__(cls, text: str, *, rank: int = OTHER, brief: str = "") -> Note:
        """Keep both beside the text."""
        note = super().__new__(cls, text)
        note.rank, note.brief = rank, brief or text
        return note


def notes_in_order(notes: Iterable[str]) -> list[Note]:
    """Sort notes: what does most to the answer first, as they stand where they do as much."""
    made = (note if isinstance(note, Note) else Note(note) for note in notes)
    return sorted(made, key=lambda note: note.rank)


def plural(number: int, noun: str) -> str:
    """Write a number of things.

    Examples
    --------
    >>> plural(1, "row"), plural(1200, "row")
    ('1 row', '1,200 rows')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def listed(parts: Iterable[str]) -> str:
    """Join parts as a sentence does: ``a, b and c``."""
    *head, last = parts
    return f"{', '.join(head)} and {last}" if head else last


def short_name(llm: str) -> str:
    """Leave out the organisation: ``Qwen/Qwen3-8B`` is ``Qwen3-8B``."""
    return llm.rsplit("/", 1)[-1] or llm


def wrapped(text: str, width: int = WIDTH, indent: str = "", first: str | None = None) -> list[str]:
    """Break a text into lines; none of them begins with the sign of a percentage.

    ``first`` begins the first line and ``indent`` the others. What cannot be printed becomes a
    space.
    """
    clean = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    lines = textwrap.wrap(
        clean.replace(" %", "\u00a0%"),
        width,
        initial_indent=indent if first is None else first,
        subsequent_indent=indent,
        break_on_hyphens=False,
    )
    return [line.replace("\u00a0%", " %") for line in lines] or [""]


def table_lines(
    header: Sequence[str],
    rows: Iterable[Iterable[str]],
    *,
    left: int = 1,
    width: int = WIDTH,
) -> list[str]:
    """Set a table: the first ``left`` columns flush left, the others flush right.

    The first column is cut to keep the whole within ``width`` columns.
    """
    body = [list(row) for row in rows]
    widths = [max(len(row[i]) for row in [list(header), *body]) for i in range(len(header))]
    room = width - sum(widths[1:]) - 2 * (len(widths) - 1)
    widths[0] = max(min(widths[0], room), 12)

    def line(cells: list[str]) -> str:
        first = cells[0] if len(cells[0]) <= widths[0] else cells[0][: widths[0] - 1] + "…"
        padded = [first.ljust(widths[0])]
        for i, cell in enumerate(cells[1:], start=1):
            padded.append(cell.ljust(widths[i]) if i < left else cell.rjust(widths[i]))
        return "  ".join(padded).rstrip()

    return [line(list(header)), "  ".join("-" * w for w in widths), *(line(row) for row in body)]


def html_table(header: Sequence[str], rows: Iterable[Iterable[str]], *, title: str = "") -> str:
    """Set a table as HTML for a notebook: text flush left in the first column, then right."""
    from html import escape

    def line(cells: Iterable[str], tag: str) -> str:
        styled = (
            f'<{tag} style="text-align: {"right" if place else "left"}">{escape(cell)}</{tag}>'
            for place, cell in enumerate(cells)
        )
        return f"<tr>{''.join(styled)}</tr>"

    caption = f"<p>{escape(title)}</p>" if title else ""
    body = "".join(line(row, "td") for row in rows)
    return f"{caption}<table><thead>{line(header, 'th')}</thead><tbody>{body}</tbody></table>"
