"""Measure the choice, correct, choose again: a few runs of what the model proposes.

Each measured run says how much slower and how much dearer this deployment is than the laws make
it. One factor on times and one on joules carry that over to the other configurations, and what is
measured is no longer guessed: the answer is the best measured run that keeps the limits, once no
other is expected to be better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from energylens import files
from energylens.cases import Cases
from energylens.deciding import Decision, Engine, Entry, LatencyLimit, Load, case_of, decide
from energylens.deploying import read_configuration
from energylens.errors import InputError
from energylens.model import EnergyModel
from energylens.records import Configuration
from energylens.selection import Scenario

RUNS = 3  # after which the best measured run is the answer
LEFT_RATIO = 0.6  # of the spread of times, once one factor was measured here
WIDEST_FACTOR = 20.0  # between measured and predicted times
COLUMNS = ("configuration", "energy_per_request_j", "tpot_s", "ttft_s", "request_latency_s")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One measured run at the load in question. Times not measured are None."""

    configuration: Configuration
    energy_per_request_j: float
    tpot_s: float | None = None
    ttft_s: float | None = None
    request_latency_s: float | None = None

    def of(self, limit: LatencyLimit) -> float | None:
        """Read the time that a limit is about."""
        times = {"tpot": self.tpot_s, "ttft": self.ttft_s, "latency": self.request_latency_s}
        return times[limit.measure]

    def meets(self, limits: Sequence[LatencyLimit]) -> bool | None:
        """Whether it keeps all limits; None where a time was not measured."""
        values = [(limit, self.of(limit)) for limit in limits]
        if any(value is not None and value > limit.seconds for limit, value in values):
            return False
        return None if any(value is None for _, value in values) else True


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a number of runs say.

    ``answer`` is the run to stay with (None: go on), ``next`` the configuration to measure (None:
    no more are needed). ``time_factor`` and ``energy_factor`` are measured over predicted.
    """

    answer: Run | None
    meets: bool
    next: Entry | None
    time_factor: float
    energy_factor: float
    runs: int
    decision: Decision

    def to_json(self) -> dict[str, Any]:
        """Names and values."""
        return {
            "runs": self.runs,
            "meets": self.meets,
            "answer": None if self.answer is None else self.answer.configuration.describe(),
            "answer_energy_per_request_j": None
            if self.answer is None
            else self.answer.energy_per_request_j,
            "next": None if self.next is None else self.next.to_json(),
            "time_factor": self.time_factor,
            "energy_factor": self.energy_factor,
        }


def read_runs(path: str | Path) -> list[Run]:
    """Read measured runs: CSV with a configuration (``TP4 B64``), joules and times.

    Raises
    ------
    TableError
        If the file cannot be read.
    InputError
        If a line lacks joules, or has a number that is none.
    """
    runs = []
    for number, row in enumerate(files.read_rows(path), 1):
        values: dict[str, float | None] = {}
        for name in COLUMNS[1:]:
            text = (row.get(name) or "").strip()
            try:
                value = float(text) if text else None
            except ValueError:
                value = float("nan")
            if value is not None and not 0 < value < float("inf"):
                raise InputError(f"{path} line {number}: {name} must be above 0, not {text!r}")
            values[name] = value
        joules = values.pop("energy_per_request_j")
        if joules is None or not row.get("configuration"):
            raise InputError(
                f"{path} line {number} must have a configuration and energy_per_request_j "
                f"(columns {', '.join(COLUMNS)})"
            )
        runs.append(
            Run(
                configuration=read_configuration(row["configuration"]),
                energy_per_request_j=joules,
                **values,
            )
        )
    return runs


def verify(
    model: EnergyModel,
    scenario: Scenario,
    load: Load,
    limits: Sequence[LatencyLimit],
    runs: Sequence[Run],
    *,
    most: int = RUNS,
    **question: Any,
) -> Verdict:
    """Say what measured runs make of a choice, and what to measure next.

    Parameters
    ----------
    model : EnergyModel
    scenario, load, limits
        As for :func:`energylens.deciding.decide`.
    runs : sequence of Run
        Those measured so far, in any order; none asks for the first.
    most : int
        Runs after which the best measured one is the answer.
    question
        What else :func:`~energylens.deciding.decide` takes.
    """
    limits = tuple(limits)
    factors = [_factors(model, scenario, load, run) for run in runs]
    time = float(np.exp(np.mean([np.log(t) for t, _ in factors]))) if factors else 1.0
    joules = float(np.exp(np.mean([np.log(j) for _, j in factors]))) if factors else 1.0
    engine = Engine(model, factor=time, energy_factor=joules)
    engine.certain = LEFT_RATIO if runs else 1.0
    if runs:
        question = {**question, "meet": 0.5}  # it is going to be measured
    decision = decide(engine, scenario, load, limits, **question)
    kept = [run for run in runs if run.meets(limits)]
    best = min(kept, key=lambda run: run.energy_per_request_j) if kept else None
    measured = {_layout(run.configuration) for run in runs}
    open_ = [
        entry
        for entry in decision.entries or decision.missed
        if _layout(entry.configuration) not in measured
        and (best is None or entry.energy_per_request_j < best.energy_per_request_j)
    ]
    following = open_[0] if open_ and len(runs) < most else None
    return Verdict(
        answer=best if following is None else None,
        meets=best is not None,
        next=following,
        time_factor=time,
        energy_factor=joules,
        runs=len(runs),
        decision=decision,
    )


def _layout(c: Configuration) -> tuple[float, ...]:
    """What tells runs apart: batch limits that do not bind serve alike."""
    return (c.tensor_parallel, c.pipeline_parallel, c.expert_parallel, c.data_parallel)


def _factors(model: EnergyModel, scenario: Scenario, load: Load, run: Run) -> tuple[float, float]:
    """Measured over predicted times and joules of one run.

    A slower engine also runs more at once, so the factor on its steps is looked for with the
    queue solved at each.
    """
    cases = Cases.of([case_of(scenario, run.configuration)])

    def solved(factor: float) -> Any:
        return Engine(model, factor=factor).solve(cases, load, (), odds=False)

    measured = run.tpot_s or run.request_latency_s or run.ttft_s
    factor = 1.0
    if measured is not None:
        low, high = 1.0 / WIDEST_FACTOR, WIDEST_FACTOR
        for _ in range(40):
            factor = float(np.sqrt(low * high))
            state = solved(factor).state
            value = (
                state.tpot_s
                if run.tpot_s
                else state.request_latency_s
                if run.request_latency_s
                else state.ttft_s
            )[0]
            low, high = (low, factor) if value > measured else (factor, high)
    return factor, run.energy_per_request_j / float(solved(factor).energy_j[0])
