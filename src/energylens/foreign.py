"""Text that others wrote (servers, drivers, other processes), made fit to keep and to print.

What a server says of itself goes to files that are read for years and to terminals that obey
escape sequences. It comes in here once: printable, of bounded length, without anybody's secrets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

LONGEST_TEXT = 2000
#: Shorter secrets would be found by chance in honest text.
SHORTEST_SECRET = 4
HIDDEN = "[hidden]"

# Keys as providers write them, and passwords in addresses: hidden though nobody named them.
_KEYS = re.compile(
    r"\b(?:sk|hf|gsk|nvapi|ghp|xai)[-_][A-Za-z0-9_-]{8,}|(?<=Bearer )[A-Za-z0-9._~+/=-]{8,}"
)
_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+(?=@)")


def printable(text: object, longest: int = LONGEST_TEXT) -> str:
    r"""Write text as one line of Unicode that any file, table and terminal can hold.

    Control characters, direction marks and halves of surrogate pairs are written as escapes
    (``\x1b``), line breaks and tabs as spaces; what is too long is cut.

    Examples
    --------
    >>> printable("0.1\x1b[31m\ud800\n")
    '0.1\\x1b[31m\\ud800'
    """
    given = str(text)[: longest + 1]
    shown = "".join(
        c if c.isprintable() else " " if c.isspace() else ascii(c)[1:-1] for c in given
    ).strip()
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


def without_secrets(text: str, secrets: Sequence[str] = ()) -> str:
    """Hide the secrets named, keys as providers write them, and passwords in addresses."""
    for secret in secrets:
        if len(secret) >= SHORTEST_SECRET:
            text = text.replace(secret, HIDDEN)
    return _CREDENTIALS.sub(HIDDEN, _KEYS.sub(HIDDEN, text))


def made_printable(document: Any, secrets: Sequence[str] = ()) -> Any:
    """Do both to every text of a document of dicts and lists, names among them."""
    if isinstance(document, str):
        return printable(without_secrets(document, secrets))
    if isinstance(document, Mapping):
        return {
            made_printable(str(key), secrets): made_printable(value, secrets)
            for key, value in document.items()
        }
    if isinstance(document, list | tuple):
        return [made_printable(item, secrets) for item in document]
    return document
