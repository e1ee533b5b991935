"""How to fit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from energylens.errors import UsageError

LOSSES = ("relative", "log", "huber", "absolute")
PRIORS = ("datasheet", "none")
GROUPINGS = ("gpu", "llm", "precision", "engine")


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How to fit.

    Parameters
    ----------
    loss : {"relative", "log", "huber", "absolute"}
        ``log`` weighs over- and underprediction alike, ``huber`` grows linearly beyond 15 %,
        ``absolute`` is ordinary least squares in joules, for comparison.
    prior : {"datasheet", "none"}
    per : tuple of {"gpu", "llm", "precision", "engine"}, optional
        Columns whose values get coefficients of their own besides the pooled ones, drawn toward
        those; an engine version's own are not drawn toward those of others, and those of the
        other columns within it are drawn toward the version's. By default each GPU type and each
        engine version has its own, where there is more than one.
    idle_power_w : float, optional
        Known draw of an idle GPU: fixes that coefficient.
    measured_power : bool
        Scale each row's terms by its measured mean power per GPU, so that the law only has to
        explain time. Every row, and every case predicted later, must have ``average_power_w``.
    extend : tuple of str
        Extensions of the formula to take in (``formula.EXTENSIONS``), or ``("auto",)`` for those
        that lower the error on rows left out.
    """

    loss: str = "relative"
    prior: str = "datasheet"
    per: tuple[str, ...] | None = None
    idle_power_w: float | None = None
    measured_power: bool = False
    extend: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for what, value, allowed in (("loss", self.loss, LOSSES), ("prior", self.prior, PRIORS)):
            if value not in allowed:
                raise UsageError(f"{what} must be one of {', '.join(allowed)}, not {value!r}")
        per = self.per or ()
        if set(per) - set(GROUPINGS) or len(set(per)) != len(per):
            raise UsageError(
                f"per takes {', '.join(GROUPINGS)}, each at most once; given {', '.join(per)}"
            )
        if len(set(self.extend)) != len(self.extend):
            raise UsageError(f"extend takes each name at most once; given {', '.join(self.extend)}")
        if self.measured_power and "power_cap" in self.extend:
            raise UsageError(
                "the extension power_cap says what caps do to power, and measured power says it "
                "already: take one of the two"
            )
        if self.idle_power_w is not None and not 0 < self.idle_power_w < np.inf:
            raise UsageError(f"idle_power_w must be above 0 W, not {self.idle_power_w!r}")
