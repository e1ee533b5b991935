"""When measured joules no longer go with the law's: a cumulative sum of the windows that stand off.

A law is never quite right, so that the ratio of measured to expected joules of the first windows is
the reference. Each later window that is off the reference by more than half the drift allowed adds
to the sum of its side, none so much that a single window could raise the alarm; the others take
from it. Two windows in a row that are off by the whole of it do.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field

LEARNED = 3  # windows that the reference is the median of
ALLOWANCE, DECISION = 0.5, 1.0  # in units of the drift allowed
MOST_OF_ONE = 0.75  # that one window adds: two are needed


@dataclass
class Drift:
    """Watches one ratio.

    Parameters
    ----------
    allowed_ratio : float
        As 0.1 for ten percent.
    reference : float, optional
        Ratio that is right; learned from the first windows if not given.
    """

    allowed_ratio: float = 0.1
    reference: float | None = None
    alarm: bool = False
    ratio: float | None = None  # of the last window
    windows: int = 0
    _learned: list[float] = field(default_factory=list)
    _sums: list[float] = field(default_factory=lambda: [0.0, 0.0])  # below, above

    def add(self, ratio: float) -> bool:
        """Take the ratio of one more window; return whether the alarm stands.

        An alarm stands until :meth:`restart`: what has changed once is to be measured.
        """
        self.ratio, self.windows = ratio, self.windows + 1
        if self.reference is None:
            self._learned.append(ratio)
            if len(self._learned) < LEARNED:
                return self.alarm
            self.reference = statistics.median(self._learned)
        off = math.log(ratio / self.reference) / math.log1p(self.allowed_ratio)
        for side, signed in enumerate((-off, off)):
            more = min(signed - ALLOWANCE, MOST_OF_ONE)
            self._sums[side] = max(0.0, self._sums[side] + more)
        # What three quarters twice or a half twice come to, whatever the last bit.
        self.alarm = self.alarm or max(self._sums) >= DECISION - 1e-9
        return self.alarm

    @property
    def off_ratio(self) -> float | None:
        """How far the last window is off the reference, as 0.2 for a fifth above."""
        if self.ratio is None or self.reference is None:
            return None
        return self.ratio / self.reference - 1.0

    def restart(self) -> None:
        """Begin anew, as after measuring: the reference is learned again."""
        self.reference, self.alarm, self.windows = None, False, 0
        self._learned.clear()
        self._sums[:] = [0.0, 0.0]
