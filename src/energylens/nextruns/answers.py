"""What is said of the next runs: records only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from energylens.cases import IntArray
from energylens.formula import TERMS
from energylens.records import PARALLELISM, Case
from energylens.viewing import picked
from energylens.words import percent

CHANGE_SHARE = 0.1  # of the target: a smaller expected change is not worth the runs

_KNOBS = (*PARALLELISM, "batch_size")
_LENGTHS = ("input_tokens", "output_tokens", "vision_tokens")


# --------------------------------------------------------------------------------- the answers


@dataclass(frozen=True, kw_only=True)
class Run:
    """One measurement to make.

    Attributes
    ----------
    candidate : int
        Row number among the candidates, from 0.
    purpose : {"coefficients", "choice"}
        Whether it is to tell the coefficients or the candidates apart.
    why : str
        What it would tell, in words.
    gain : float
        For coefficients, nats of information; for the choice, expected fall of the mean
        regret (a ratio). Each given the runs before it.
    energy_per_request_j, batch_energy_j : float
        Predicted joules of one request, and of all that run at once: what the run costs.
    """

    candidate: int
    case: Case
    purpose: str
    why: str
    gain: float
    energy_per_request_j: float
    batch_energy_j: float

    def sentence(self) -> str:
        """Say what to measure, and why."""
        return f"{_describe(self.case)}: {self.why}."

    def to_json(self) -> dict[str, Any]:
        """Names and values."""
        c, w = self.case.configuration, self.case.workload
        return {
            "candidate": self.candidate,
            "llm": self.case.llm.id,
            "gpu": self.case.gpu.id,
            "precision": self.case.precision.id,
            **{name: getattr(c, name) for name in _KNOBS},
            **{name: getattr(w, name) for name in (*_LENGTHS, "images", "frames")},
            **picked(self, "purpose why gain energy_per_request_j batch_energy_j"),
        }


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The next measurements, those for the coefficients first, the most telling first.

    ``spread_before`` and ``spread_after`` say of each coefficient that a candidate speaks of how
    uncertain it is, over how uncertain the datasheet alone leaves it: 1 is "nothing known".
    ``information_nats`` is the rise of the log determinant of the information.
    """

    runs: tuple[Run, ...]
    spread_before: tuple[tuple[str, float], ...]
    spread_after: tuple[tuple[str, float], ...]
    information_nats: float
    choose: tuple[str, ...]
    weight: float
    seed: int
    candidates: int
    infeasible: int
    measured_rows: int

    @property
    def index(self) -> IntArray:
        """Row numbers of the runs among the candidates."""
        return np.array([run.candidate for run in self.runs], dtype=np.intp)

    def sentences(self) -> tuple[str, ...]:
        """Say what to measure, and what will be known then."""
        lines = [f"{i}. {run.sentence()}" for i, run in enumerate(self.runs, 1)]
        after = dict(self.spread_after)
        better = sorted(
            ((name, before, after[name]) for name, before in self.spread_before),
            key=lambda item: item[2] / item[1],
        )
        told = [f"{n} {b:.2g} to {a:.2g}" for n, b, a in better if a < 0.8 * b][:6]
        if told:
            lines.append(
                "Uncertainty of the coefficients, over what the datasheet leaves: "
                f"{', '.join(told)}."
            )
        unknown = [name for name, value in self.spread_after if value > 0.9]
        if unknown:
            needs = {term.name: term.needs for term in TERMS}
            lines.append(
                "Not known then: " + "; ".join(f"{n} (takes {needs[n]})" for n in unknown) + "."
            )
        return tuple(lines)

    def to_json(self) -> dict[str, Any]:
        """Names and values."""
        return {
            "runs": [run.to_json() for run in self.runs],
            "spread_before_ratio": dict(self.spread_before),
            "spread_after_ratio": dict(self.spread_after),
            "information_nats": self.information_nats,
            "choose": list(self.choose),
            **picked(self, "weight seed candidates infeasible measured_rows"),
            "sentences": list(self.sentences()),
        }


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What is believed of one scenario: its winner, and what choosing it may cost."""

    scenario: str
    winner: int  # row number among the candidates
    configuration: str
    configurations: int
    measured: int  # of them
    probability_best_ratio: float
    expected_regret_j: float
    expected_regret_ratio: float

    def to_json(self) -> dict[str, Any]:
        """Names and values."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether to stop measuring.

    Probabilities and regrets are means over the scenarios in ``choices``: all ``scenarios``
    there are, or evenly spaced ones of thousands. ``change_j`` and
    ``change_ratio`` are by how much ``more_runs`` more runs are expected to change the
    regret: 0 or below. ``lacking`` says which rows it takes before these figures may end the
    measuring, ``unclaimed`` which rows are simulated or estimated; both are empty where none are.
    """

    choices: tuple[Choice, ...]
    scenarios: int
    probability_best_ratio: float
    expected_regret_j: float
    expected_regret_ratio: float
    more_runs: int
    change_j: float
    change_ratio: float
    target_ratio: float
    measured_rows: int
    seed: int
    lacking: str = ""
    unclaimed: str = ""

    @property
    def settled(self) -> bool:
        """Whether the expected regret is as low as was asked for."""
        return self.expected_regret_ratio <= self.target_ratio

    @property
    def worthwhile(self) -> bool:
        """Whether more runs are expected to change the regret by a tenth of the target."""
        return self.more_runs > 0 and -self.change_ratio >= CHANGE_SHARE * self.target_ratio

    @property
    def stop(self) -> bool:
        """Whether to stop; not before rows of the kind are measured, whatever others suggest."""
        if not self.measured_rows or self.lacking:
            return False
        return self.settled or not self.worthwhile

    def sentences(self) -> tuple[str, ...]:
        """Say how sure the choice is, what more runs would change, and whether to stop."""
        p, regret = self.probability_best_ratio, self.expected_regret_ratio
        if len(self.choices) == 1:
            only = self.choices[0]
            first = (
                f"{only.configuration} is the best of {only.configurations} configurations with "
                f"probability {p:.2f}"
            )
        else:
            number = f"{len(self.choices)}"
            if len(self.choices) < self.scenarios:
                number += f" of {self.scenarios}"
            least = min(self.choices, key=lambda choice: choice.probability_best_ratio)
            first = (
                f"Over {number} scenarios the winner is the best with probability "
                f"{p:.2f} on average (least sure, {least.probability_best_ratio:.2f}: "
                f"{least.configuration} for {least.scenario})"
            )
        runs = f"{self.more_runs} more run{'s' if self.more_runs != 1 else ''}"
        return (
            f"{first}; expected regret {self.expected_regret_j:.2g} J a request "
            f"({percent(regret, 2)}).",
            f"{runs} would change that by {self.change_j:.2g} J ({percent(self.change_ratio, 2)})."
            if self.more_runs
            else "No run is left that would change that.",
            self._advice(),
            *([self.unclaimed] if self.unclaimed else []),
        )

    def _advice(self) -> str:
        target = f"{100 * self.target_ratio:g} %"
        if not self.measured_rows:
            return "Go on: nothing is measured yet; so far the datasheet alone says so."
        if self.lacking:
            return f"Go on: {self.lacking}; until then the figures above are a guess."
        if self.settled:
            return f"Stop: the expected regret is within {target}."
        if not self.worthwhile:
            return (
                f"Stop: the expected regret is above {target}, but more of these runs would hardly "
                "change it; other candidates or repeats might."
            )
        return f"Go on: the expected regret is above {target}, and more runs are expected to help."

    def to_json(self) -> dict[str, Any]:
        """Names and values."""
        names = [n for n in self.__dataclass_fields__ if n != "choices"]
        return {
            **{name: getattr(self, name) for name in names},
            **picked(self, "settled worthwhile stop"),
            "choices": [choice.to_json() for choice in self.choices],
            "sentences": list(self.sentences()),
        }


def _describe(case: Case) -> str:
    w, c = case.workload, case.configuration
    media = "".join(
        f" + {number:g} {what}" for number, what in ((w.images, "images"), (w.frames, "frames"))
        if number
    )  # fmt: skip
    return (
        f"{case.llm.id} ({case.precision.id}) on {case.gpu.id}, {c.describe()}, "
        f"{w.input_tokens:.0f} + {w.output_tokens:.0f} tokens{media}"
    )
