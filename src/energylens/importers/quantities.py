"""Numbers as people write them into cells: with units, thousands, a decimal comma, or as h:m:s."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from energylens.errors import TableError
from energylens.importers.collecting import HIGHEST, LOWEST, Unusable


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A unit: what it measures, and how many of the tidy table's unit it is."""

    name: str
    dimension: str
    factor: float


#: Joules of one, a thousand or a million tokens.
_JOULES_A_TOKEN = {
    f"{name}/{count}token{'s' * bool(count)}": joules / tokens
    for name, joules in {
        "J": 1,
        "mJ": 1e-3,
        "kJ": 1e3,
        "Wh": 3600,
        "mWh": 3.6,
        "kWh": 3.6e6,
    }.items()
    for count, tokens in {"": 1, "1k ": 1e3, "1M ": 1e6}.items()
}


def _units() -> dict[str, Unit]:
    table: dict[str, tuple[str, dict[str, float]]] = {
        "s": ("s", {"h": 3600, "min": 60, "s": 1, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}),
        "W": ("W", {"MW": 1e6, "kW": 1e3, "W": 1, "mW": 1e-3}),
        "J": (
            "J",
            {
                "MWh": 3.6e9,
                "kWh": 3.6e6,
                "Wh": 3600,
                "mWh": 3.6,
                "MJ": 1e6,
                "kJ": 1e3,
                "J": 1,
                "mJ": 1e-3,
                "Ws": 1,
            },
        ),
        "tokens": ("tokens", {"tokens": 1, "token": 1, "tok": 1, "toks": 1}),
        "GPUs": ("GPUs", {"GPUs": 1, "GPU": 1, "gpus": 1, "gpu": 1}),
        "requests": ("requests", {"requests": 1, "request": 1, "reqs": 1, "req": 1}),
        "1/s": ("1/s", {"1/s": 1, "/s": 1, "Hz": 1, "rps": 1, "qps": 1, "req/min": 1 / 60}),
        "J/token": ("J/token", {"J/tok": 1, "mJ/tok": 1e-3} | _JOULES_A_TOKEN),
        "tokens/s": ("tokens/s", {"tokens/s": 1, "tok/s": 1, "token/s": 1, "t/s": 1, "TPS": 1}),
        "ratio": ("ratio", {"%": 0.01}),
    }
    found = {
        name: Unit(name=name, dimension=dimension, factor=float(factor))
        for dimension, names in table.values()
        for name, factor in names.items()
    }
    words = {
        "s": "sec secs second seconds",
        "ms": "msec msecs millisecond milliseconds",
        "us": "usec microsecond microseconds μs",
        "min": "mins minute minutes",
        "h": "hr hrs hour hours",
        "W": "watt watts",
        "kW": "kilowatt kilowatts",
        "J": "joule joules w·s",
        "kJ": "kilojoule kilojoules",
        "MJ": "megajoule megajoules",
        "mJ": "millijoule millijoules",
        "Wh": "watt-hour watt-hours",
        "kWh": "kilowatt-hour kilowatt-hours",
        "1/s": "req/s reqs/s request/s requests/s req/sec requests/sec",
        "J/token": "joules/token j/token joule/token j/out-tok",
        "tokens/s": "tokens/sec tok/sec tokens/second",
    }
    for name, others in words.items():
        for other in others.split():
            found[other] = found[name]
    return found


UNITS = _units()

#: Spelt in small letters these are two units each, a million and a thousandth.
_TWO_SIZES = ("mj", "mw", "mwh")

_WORDS_FOR_NOTHING = frozenset(
    ("", "-", "--", "—", "–", "n/a", "na", "nan", "null", "none", "[n/a]", "not available", "?")
)
_NUMBER = r"[+-]?[\d.,'’_    ]*\d[.,]?(?:[eE][+-]?\d+)?"
_CELL = re.compile(rf"^(?P<number>{_NUMBER})\s*(?:(?:±|\+/-)\s*{_NUMBER}\s*)?(?P<unit>[^\d\s].*)?$")
_CLOCK = re.compile(r"^(\d+):([0-5]\d):([0-5]\d(?:[.,]\d+)?)$")
_GROUPS = "['’_    ]"


def unit(name: str) -> Unit | None:
    """Look a unit up, as it is spelt or in small letters where that is not ambiguous."""
    name = name.strip().strip("()[]").strip().replace("per ", "/").replace(" / ", "/")
    if name in UNITS:
        return UNITS[name]
    lower = name.lower()
    if lower in _TWO_SIZES:
        return None
    return next((known for key, known in UNITS.items() if key.lower() == lower), None)


#: What a column's figure is of: ``energy_wh_per_request``, ``Wh/query``, ``Wh per 1k tokens``.
_PER = r"(?:[\s_]*/[\s_]*|[\s_]+(?:per|a)[\s_]+)"
_OF_ONE = re.compile(
    rf"{_PER}(?:request|req|query|prompt|response|batch|run|sample|user)(?=[\s_)\]]*$)",
    re.IGNORECASE,
)
_OF_TOKENS = re.compile(
    rf"{_PER}(?P<count>1?[km]|1,?000|1,?000,?000|1)?[\s_]*"
    r"(?:(?:output|generated|out|input|prompt|total)[\s_]*)?(?:tokens?|toks?)"
    r"(?:[\s_]*\((?:output|out|total)\))?[\s_)\]]*$",
    re.IGNORECASE,
)


def unit_of_header(header: str) -> Unit | None:
    """Tell the unit that the name of a column ends in, as in ``TTFT (ms)`` or ``energy_wh``.

    Raises
    ------
    TableError
        If it is spelt like two units, as ``mj`` is.
    """
    header = _OF_ONE.sub("", header)
    of_tokens = _OF_TOKENS.search(header)
    if of_tokens:
        each = unit_of_header(header[: of_tokens.start()] or "")
        thousands = (of_tokens["count"] or "").lower().replace(",", "").replace("000", "k")
        count = {"": "", "1": "", "1k": "1k ", "k": "1k ", "1m": "1M ", "m": "1M ", "1kk": "1M "}
        if each is not None and each.dimension == "J" and thousands in count:
            many = count[thousands]
            return UNITS.get(f"{each.name}/{many}token{'s' * bool(many)}")
    bracket = re.search(r"[(\[]\s*([^()\[\]]+?)\s*[)\]]\s*$", header)
    tail = re.search(r"(?:^|[\s_\-,])([A-Za-zµμ/]+)\s*$", header)
    if bracket:
        name = bracket[1]
    elif tail and tail[1].lower() not in ("min", "h", "gpu", "gpus", "tok", "t/s"):
        name = tail[1]
    else:
        return None
    if name.lower() in _TWO_SIZES and name not in UNITS:
        raise TableError(
            f"the column {header!r} may be in {name[0].upper()}{name[1:].title()} or "
            f"m{name[1:].title()}: say which with unit = in the mapping."
        )
    return unit(name)


# --------------------------------------------------------------------------- decimal signs


def _sign_of(text: str) -> str | None:
    """What a number shows of the decimal sign: ".", ",", "?," or "?." where it may be thousands."""
    found = _CELL.match(text.strip())
    if found is None:
        return None
    number = re.sub(_GROUPS, "", found["number"].lstrip("+-").lower().partition("e")[0])
    for point, other in ((".", ","), (",", ".")):
        if point not in number:
            continue
        if other in number:
            return point if number.rindex(point) > number.rindex(other) else other
        if number.count(point) > 1:
            return other
        whole, _, rest = number.partition(point)
        if len(rest) == 3 and 1 <= len(whole) <= 3 and not whole.startswith("0"):
            return f"?{point}"
        return point
    return None


def decimal_sign(cells: Iterable[object], name: str) -> str:
    """Tell the decimal sign of a table from its numbers.

    Raises
    ------
    TableError
        If some have a decimal comma and others a decimal point, or if nothing tells whether
        ``1,234`` is one or a thousand.
    """
    seen: dict[str, str] = {}
    for cell in cells:
        if isinstance(cell, str) and (sign := _sign_of(cell)) is not None:
            seen.setdefault(sign, cell.strip()[:40])
    if "." in seen and "," in seen:
        raise TableError(
            f"{name} writes numbers with a decimal comma ({seen[',']!r}) and with a decimal point "
            f"({seen['.']!r}): make them one, or leave one of the columns out."
        )
    for sign in ".,":
        if sign in seen:
            return sign
    if "?," in seen:
        raise TableError(
            f"{name} does not show whether {seen['?,']!r} is a decimal or thousands: say decimal = "
            f'"," or decimal = "." under [file] of the mapping.'
        )
    return "."


# ------------------------------------------------------------------------------------ cells


@dataclass(frozen=True)
class Quantity:
    """A number and the unit written beside it."""

    value: float
    unit: Unit | None = None


def quantity(cell: object, name: str, decimal: str = ".") -> Quantity | None:
    """Read a cell: a number of 0 or more, None where nothing is known.

    Raises
    ------
    Unusable
        If it is something else, or has a unit that is not known.
    """
    if cell is None:
        return None
    if isinstance(cell, bool) or not isinstance(cell, int | float | str):
        raise Unusable(f"its {name} is not a number above 0")
    if not isinstance(cell, str):
        return None if cell != cell else Quantity(_bounded(cell, name))
    text = cell.strip()
    if text.lower() in _WORDS_FOR_NOTHING:
        return None
    if clock := _CLOCK.match(text):
        hours, minutes, seconds = int(clock[1]), int(clock[2]), float(clock[3].replace(",", "."))
        return Quantity(_bounded(hours * 3600 + minutes * 60 + seconds, name), UNITS["s"])
    found = _CELL.match(text)
    number = None if found is None else _number(found["number"], decimal)
    if found is None or number is None:
        raise Unusable(f"its {name} is not a number above 0")
    spelt = (found["unit"] or "").strip()
    known = unit(spelt) if spelt else None
    if spelt and known is None:
        raise Unusable(f"its {name} has the unit {spelt[:20]!r}, which is not known")
    return Quantity(_bounded(number, name), known)


def _number(text: str, decimal: str) -> float | None:
    """Read a number with this decimal sign; None if it is none."""
    other = "," if decimal == "." else "."
    mantissa, e, exponent = text.strip().lower().partition("e")
    thousands = rf"[{re.escape(other)}'’_    ]"
    grouped = rf"[+-]?\d{{1,3}}(?:{thousands}\d{{3}})+(?:{re.escape(decimal)}\d*)?"
    if re.fullmatch(grouped, mantissa):
        mantissa = re.sub(thousands, "", mantissa)
    elif not re.fullmatch(
        rf"[+-]?(?:\d+{re.escape(decimal)}?\d*|{re.escape(decimal)}\d+)", mantissa
    ):
        return None
    return float(mantissa.replace(decimal, ".") + e + exponent)


def _bounded(number: float, name: str) -> float:
    try:
        value = float(number)
    except OverflowError:
        value = math.inf
    if value != 0 and not LOWEST <= value <= HIGHEST:
        raise Unusable(f"its {name} is not a number above 0")
    return value
