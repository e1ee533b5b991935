"""One window of time: what was counted, what was measured, what the law expected."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from energylens.viewing import picked
from energylens.watching.expecting import Done, Expected, Saving
from energylens.words import joules, percent


@dataclass(frozen=True, kw_only=True)
class Window:
    """A window, or the reason why there is none.

    What is None is not known, or means nothing: joules a token where no token was made.

    Attributes
    ----------
    time_s : float
        When it ended, in seconds since 1970.
    problem : str
        Why nothing may be said of it; empty where all is well.
    source : str
        What the joules are: measured, estimated or simulated; empty without a meter.
    energy_j : float or None
        Of all channels of the meter.
    """

    time_s: float
    seconds: float
    problem: str = ""
    source: str = ""
    energy_j: float | None = None
    done: Done | None = None
    expected: Expected | None = None
    saving: Saving | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None
    drift_ratio: float | None = None
    drift_reference_ratio: float | None = None
    time_drift_ratio: float | None = None
    time_drift_reference_ratio: float | None = None
    alarm: str = ""
    notes: tuple[str, ...] = field(default=())

    @property
    def power_w(self) -> float | None:
        """Watts, on average."""
        return None if self.energy_j is None else self.energy_j / self.seconds

    def _over(self, value: float | None, name: str) -> float | None:
        number = getattr(self.done, name) if self.done is not None else 0.0
        return value / number if value is not None and number > 0 else None

    @property
    def energy_per_request_j(self) -> float | None:
        """Measured, over the requests that ended."""
        return self._over(self.energy_j, "requests")

    @property
    def energy_per_output_token_j(self) -> float | None:
        """Measured, over the tokens generated."""
        return self._over(self.energy_j, "output_tokens")

    @property
    def _expected_j(self) -> float | None:
        return None if self.expected is None else self.expected.energy_j

    @property
    def expected_energy_per_request_j(self) -> float | None:
        """By the law."""
        return self._over(self._expected_j, "requests")

    @property
    def expected_energy_per_output_token_j(self) -> float | None:
        """By the law."""
        return self._over(self._expected_j, "output_tokens")

    @property
    def expected_power_w(self) -> float | None:
        """By the law."""
        return None if self._expected_j is None else self._expected_j / self.seconds

    @property
    def expected_tpot_s(self) -> float | None:
        """By the time law."""
        return None if self.expected is None else self.expected.tpot_s

    @property
    def idle_energy_ratio(self) -> float | None:
        """Share of the joules that idle time takes: of those measured, where there are so many."""
        if self.expected is None or self.expected.energy_j <= 0:
            return None
        measured, idle_j = self.energy_j or 0.0, self.expected.idle_j
        return idle_j / (measured if measured >= idle_j > 0 else self.expected.energy_j)

    @property
    def saving_w(self) -> float | None:
        """Watts that the best configuration would save at this load."""
        if self.saving is None:
            return None
        watts = self.power_w if self.power_w is not None else self.expected_power_w
        return None if watts is None else watts * self.saving.ratio

    def to_json(self) -> dict[str, Any]:
        """Everything, None where nothing is known."""
        done, expected, saving = self.done, self.expected, self.saving
        return {
            "time_s": self.time_s,
            "seconds": self.seconds,
            "problem": self.problem or None,
            "source": self.source or None,
            "requests": None if done is None else done.requests,
            "request_rate_per_s": None if done is None else done.requests / self.seconds,
            "prompt_tokens": None if done is None else done.prompt_tokens,
            "output_tokens": None if done is None else done.output_tokens,
            "mean_batch_size": None if expected is None else expected.mean_batch_size,
            **picked(self, "energy_j power_w energy_per_request_j energy_per_output_token_j"),
            "expected_energy_j": self._expected_j,
            "expected_power_w": self.expected_power_w,
            "expected_energy_per_request_j": self.expected_energy_per_request_j,
            "expected_energy_per_output_token_j": self.expected_energy_per_output_token_j,
            "expected_basis": None if expected is None else expected.basis,
            "work_ratio": (
                None
                if expected is None or expected.work_ratio is None
                else list(expected.work_ratio)
            ),
            "empty_ratio": None if expected is None else expected.empty_ratio,
            **picked(self, "idle_energy_ratio ttft_s tpot_s expected_tpot_s"),
            "best": None if saving is None else asdict(saving) | {"saving_ratio": saving.ratio},
            "saving_w": self.saving_w,
            "drift_ratio": self.drift_ratio,
            **picked(self, "drift_reference_ratio time_drift_ratio time_drift_reference_ratio"),
            "alarm": self.alarm or None,
            "notes": list(self.notes),
        }

    def line(self) -> str:
        """One line for a terminal."""
        if self.problem:
            return f"no window: {self.problem}"
        parts = []
        done = self.done
        if done is not None:
            parts.append(f"{done.requests / self.seconds:.3g} requests/s")
        if self.power_w is not None:
            marked = "" if self.source == "measured" else f" ({self.source})"
            parts.append(f"{self.power_w:.0f} W{marked}")
        for name, measured, law in (
            ("a request", self.energy_per_request_j, self.expected_energy_per_request_j),
            (
                "an output token",
                self.energy_per_output_token_j,
                self.expected_energy_per_output_token_j,
            ),
        ):
            if measured is not None and law is not None:
                parts.append(f"{joules(measured)} {name}, {joules(law)} expected")
            elif measured is not None:
                parts.append(f"{joules(measured)} {name}")
            elif law is not None:
                parts.append(f"{joules(law)} {name} expected")
        if done is not None and not done.output_tokens:
            parts.append("no tokens")
        if self.idle_energy_ratio is not None:
            parts.append(f"{percent(self.idle_energy_ratio, 0)} idle")
        if self.saving is not None and self.saving.ratio >= 0.005:
            parts.append(
                f"{self.saving.configuration} would save {percent(self.saving.ratio, 0)}"
                + ("" if self.saving_w is None else f" ({self.saving_w:.0f} W)")
            )
        return "; ".join(parts) + (f". ALARM: {self.alarm}" if self.alarm else "")
