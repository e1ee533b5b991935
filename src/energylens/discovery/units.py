"""Units as products of powers, enough to refuse what physics refuses."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Self

from energylens.errors import InputError

_PART = re.compile(r"([A-Za-z]+)(?:\^(-?\d+(?:/\d+)?))?")


@dataclass(frozen=True)
class Unit:
    """A product of powers of names: ``J/byte`` is J to the 1 and byte to the -1.

    Degrees of parallelism, GPUs and sequences in flight are pure numbers (``1``).
    """

    powers: tuple[tuple[str, Fraction], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a unit: names joined by spaces, ``/`` before each that divides, ``^`` for powers.

        Raises
        ------
        InputError
            If the text is no unit.
        """
        powers: dict[str, Fraction] = {}
        for place, part in enumerate(text.split("/")):
            for word in part.split():
                match = _PART.fullmatch(word)
                if match is None and word != "1":
                    raise InputError(
                        f"a unit must be names joined by spaces and '/', as in 'J/byte'; "
                        f"given {text!r}"
                    )
                if match is not None:
                    power = Fraction(match[2] or 1) * (-1 if place else 1)
                    powers[match[1]] = powers.get(match[1], Fraction(0)) + power
        return cls._of(powers)

    @classmethod
    def _of(cls, powers: dict[str, Fraction]) -> Self:
        return cls(tuple(sorted((name, power) for name, power in powers.items() if power)))

    def __mul__(self, other: Self) -> Self:
        powers = dict(self.powers)
        for name, power in other.powers:
            powers[name] = powers.get(name, Fraction(0)) + power
        return self._of(powers)

    def __truediv__(self, other: Self) -> Self:
        return self * other ** Fraction(-1)

    def __pow__(self, power: Fraction) -> Self:
        return type(self)(tuple((name, p * power) for name, p in self.powers))

    def __str__(self) -> str:
        def words(sign: int) -> list[str]:
            return [
                name if power * sign == 1 else f"{name}^{power * sign}"
                for name, power in sorted(self.powers, key=lambda item: item[0].lower())
                if power * sign > 0
            ]

        return "/".join([" ".join(words(1)) or "1", *words(-1)])


PURE = Unit()
JOULES_PER_REQUEST = Unit.parse("J/request")
