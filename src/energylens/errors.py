"""Everything that can go wrong, as one tree.

::

    EnergyLensError            base: whatever energylens itself raises
    ├── InputError             what was given cannot be used as it is
    │   ├── TableError         a row or column of a measurement table
    │   ├── ArtefactError      a model.json, plan or other file of ours: corrupt, or from the future
    │   ├── UnknownNameError   an LLM, GPU, precision, estimator ... that nobody knows
    │   └── UsageError         arguments that cannot be read, or contradict each other
    ├── FitError               the rows cannot determine a model
    ├── InfeasibleError        no configuration is left to choose from
    ├── CheckError             what was asked to hold does not: a verdict, not a fault
    ├── MeasurementError       an instrument gave nothing that may be called a measurement
    └── MissingExtraError      an optional package is absent; the message names the extra

Every message says what must hold, what was given, and what to do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """What a command ends with; ``docs/exit-codes.md`` says the same to people."""

    DONE = 0
    FAILED = 1  # an error, or what was asked to hold does not
    USAGE = 2  # the command line cannot be read
    PARTLY = 3  # done, but not with all that was given, or in doubt of it
    IMPOSSIBLE = 4  # the answer is that it cannot be
    INTERRUPTED = 130


class EnergyLensError(Exception):
    """Base of every error that energylens raises on purpose."""

    exit_code: ClassVar[ExitCode] = ExitCode.FAILED


class InputError(EnergyLensError):
    """What was given cannot be used as it is."""


class TableError(InputError):
    """A row or a column of a measurement table is wrong."""


class ArtefactError(InputError):
    """A file that energylens writes is corrupt, or newer than this version can read."""


class UnknownNameError(InputError):
    """A name that no catalog or registry holds.

    Parameters
    ----------
    kind : str
        What was looked up, as in "LLM".
    name : str
        What was given.
    known : iterable of str
        The names there are; the nearest are suggested.
    advice : str, optional
        What to do if none of the suggestions is meant.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], advice: str = "") -> None:
        near = _nearest(name, known)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        self.brief = f"unknown {kind} {name!r}.{hint}"  # without advice for the command line
        super().__init__(f"{self.brief}{' ' + advice if advice else ''}")


#: Accelerators that no GPU's name is near, however many letters they share.
_ANOTHER_KIND = re.compile(r"\btpu\b|trillium|inferentia|trainium|\bascend\b|\bapple m\d")


def _nearest(name: str, known: Iterable[str]) -> list[str]:
    """The three known names most like a name, those of its family and size first.

    What an LLM or GPU is called says which family it is of and how large it is, and both weigh
    more than how many letters two names share: Llama-3.3-70B is nearer to Llama-3.1-70B than to
    CodeLlama-70b.
    """
    import difflib

    by_lower = {entry.lower(): entry for entry in known}
    given = name.lower()[:200]
    if _ANOTHER_KIND.search(given):
        return [by_lower[lower] for lower in by_lower if _ANOTHER_KIND.search(lower)][:3]
    family, version, sizes = _parts(given)
    ranked = []
    matcher = difflib.SequenceMatcher(b=given, autojunk=False)
    for lower in by_lower:
        matcher.set_seq1(lower)
        if matcher.real_quick_ratio() < 0.3 or matcher.quick_ratio() < 0.4:
            continue
        other, other_version, other_sizes = _parts(lower)
        alike = max(
            matcher.ratio(),
            difflib.SequenceMatcher(
                None, lower.rsplit("/", 1)[-1], given.rsplit("/", 1)[-1]
            ).ratio(),
        )
        if alike < 0.5:
            continue
        kin = bool(family) and family == other
        alike += 0.3 * kin + 0.1 * (kin and version == other_version)
        alike += 0.2 * (bool(sizes) and sizes == other_sizes)
        ranked.append((-alike, lower))
    best = sorted(ranked)[:3]
    return [by_lower[lower] for score, lower in best if score <= best[0][0] + 0.35]


def _parts(name: str) -> tuple[str, str, frozenset[str]]:
    """Family, first number and sizes of a name: llama, 3.1 and {70b} of Llama-3.1-70B."""
    short = name.rsplit("/", 1)[-1]
    words = re.split(r"[-_ ]+", short)
    if len(words) > 1 and words[0] in ("meta", "nvidia", "amd", "intel"):
        words = words[1:]
    found = re.match(r"([a-z]+)(\d+(?:\.\d+)?)?", words[0])
    family, version = (found[1], found[2] or "") if found else ("", "")
    if not version and len(words) > 1 and re.fullmatch(r"v?\d+(\.\d+)?", words[1]):
        version = words[1]
    return family, version, frozenset(re.findall(r"\d+(?:\.\d+)?(?:x\d+)?[bm]\b", short))


class UsageError(InputError):
    """Arguments that cannot be read, or that contradict each other or the rows they are for."""

    exit_code = ExitCode.USAGE


class UnknownChoiceError(UnknownNameError, UsageError):
    """A name that is none of the few that an option takes: `UnknownNameError` of a closed list."""


class FitError(EnergyLensError):
    """The rows given cannot determine a model."""


class InfeasibleError(EnergyLensError):
    """No configuration is left to choose from."""

    exit_code = ExitCode.IMPOSSIBLE


class CheckError(EnergyLensError):
    """What a command was asked to check does not hold: a verdict, not a fault."""


class MeasurementError(EnergyLensError):
    """An instrument gave nothing that may be called a measurement."""


class MissingExtraError(EnergyLensError):
    """An optional package is absent.

    Parameters
    ----------
    package : str
        The package that could not be imported.
    extra : str or None
        The extra of energylens that brings it; None if it has an environment of its own.
    purpose : str
        What it is needed for.
    """

    def __init__(self, package: str, extra: str | None, purpose: str) -> None:
        how = (
            f"pip install 'energylens[{extra}]'"
            if extra
            else f"make an environment of its own, and pip install {package} and energylens there"
        )
        super().__init__(f"{purpose} needs the package {package}, which is not installed: {how}.")
