"""What comes of a comparison: changed cases, winners and terms."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

from energylens.errors import CheckError, UsageError
from energylens.words import plural, signed

#: Ways in which a comparison fails a check.
CHECKS = ("higher", "lower", "changed", "winner")


@dataclass(frozen=True, kw_only=True)
class Change:
    """One case on both sides: joules of A and B per request, and B over A with its interval.

    ``verdict`` is higher, lower or same, of B against A.
    """

    case: str
    runs_a: int
    runs_b: int
    energy_per_request_a_j: float
    energy_per_request_b_j: float
    energy_per_output_token_a_j: float
    energy_per_output_token_b_j: float
    energy_per_total_token_a_j: float
    energy_per_total_token_b_j: float
    ratio: float
    low_ratio: float
    high_ratio: float
    verdict: str


@dataclass(frozen=True, kw_only=True)
class Winner:
    """A scenario whose configuration of the fewest joules is another in B than in A.

    ``keeping_ratio`` is what A's winner takes in B over B's own, less 1.
    """

    scenario: str
    winner_a: str
    winner_b: str
    keeping_ratio: float
    beyond_noise: bool


@dataclass(frozen=True, kw_only=True)
class TermChange:
    """What one term of the law has to do with the change.

    ``share_ratio`` is its joules in B less those in A, over all joules of A, as a mean over the
    matched cases, with its 80 % interval.
    """

    term: str
    share_ratio: float
    low_ratio: float
    high_ratio: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A compared with B; ratios are of B over A, at A's output lengths."""

    a: str
    b: str
    kind: str
    across: dict[str, list[list[str]]]
    noise_ratio: float
    noise: str
    matched: int
    only_a: int
    only_b: int
    overall_ratio: float
    overall_low_ratio: float
    overall_high_ratio: float
    overall_verdict: str
    counts: dict[str, int]
    changes: tuple[Change, ...]
    scenarios: int
    winners: tuple[Winner, ...]
    terms: tuple[TermChange, ...]
    unexplained_ratio: float | None
    times: dict[str, float]
    notes: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """Give it as JSON has it."""
        return asdict(self)

    def fails(self, check: str) -> str:
        """Say in which way it fails a check of :data:`CHECKS`; empty where it does not."""
        if check == "winner":
            sure = [w for w in self.winners if w.beyond_noise]
            return (
                f"the configuration of the fewest joules changed in {plural(len(sure), 'scenario')}"
                if sure
                else ""
            )
        kinds = ("higher", "lower") if check == "changed" else (check,)
        number = sum(self.counts[kind] for kind in kinds)
        if number:
            what = {"higher": "take more joules", "lower": "take fewer joules"}
            return f"{number} of {plural(self.matched, 'case')} {what.get(check, 'changed')} in B"
        if self.overall_verdict in kinds:
            return f"the mean change is {signed(self.overall_ratio - 1)}, beyond the noise"
        return ""

    def require(self, checks: Collection[str]) -> None:
        """Pass, or say what fails.

        Raises
        ------
        CheckError
            If one of the checks fails.
        UsageError
            If there is no such check.
        """
        for check in checks:
            if check not in CHECKS:
                raise UsageError(f"a comparison can fail on {', '.join(CHECKS)}, not on {check!r}")
        failed = [reason for check in checks if (reason := self.fails(check))]
        if failed:
            raise CheckError(f"check failed: {'; '.join(failed)}")
