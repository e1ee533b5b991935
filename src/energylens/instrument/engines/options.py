"""Settings that only one engine knows: ``Layout.options``, text in, typed values out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from energylens.instrument.engine import EngineError, Reason


class Options:
    """The options of a layout, read by name; what the engine does not know is refused.

    Parameters
    ----------
    engine : str
        Name of the engine, for messages.
    given : mapping of str to str
        ``Layout.options``.
    known : iterable of str
        Every option that the engine has.

    Raises
    ------
    EngineError
        UNSUPPORTED, if an option is not known.
    """

    def __init__(self, engine: str, given: Mapping[str, str], known: Iterable[str]) -> None:
        self._engine = engine
        self._given = given
        names = sorted(known)
        for name in given:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                hint = f"did you mean {near[0]}? " if near else ""
                raise self._refusal(f"has no option {name!r}: {hint}known are {', '.join(names)}")

    def _refusal(self, what: str) -> EngineError:
        return EngineError(f"the {self._engine} engine {what}", reason=Reason.UNSUPPORTED)

    def text(self, name: str, default: str) -> str:
        """Return an option as it was given."""
        return self._given.get(name, default)

    def choice(self, name: str, choices: tuple[str, ...]) -> str:
        """Return an option that must be one of ``choices``, the first of them by default."""
        value = self._given.get(name, choices[0])
        if value not in choices:
            raise self._refusal(f"takes {name}={'|'.join(choices)}, not {value!r}")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """Return an option that must be true or false."""
        value = self._given.get(name, "true" if default else "false").lower()
        if value not in ("true", "false"):
            raise self._refusal(f"takes {name}=true or false, not {value!r}")
        return value == "true"

    def number(self, name: str, default: float) -> float:
        """Return an option that must be a number above 0."""
        value = self._given.get(name)
        if value is None:
            return default
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not 0 < number < float("inf"):
            raise self._refusal(f"takes a number above 0 for {name}, not {value!r}")
        return number
