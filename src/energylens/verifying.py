"""Measure the choice, correct, choose again: a few runs of what the model proposes.

Each measured run says how much slower and how much dearer this deployment is than the laws make
it. One factor on times and one on joules carry that over to the other configurations, and what is
measured is no longer guessed: the answer is the best measured run that keeps the limits, once no
other is expected to be better.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from energylens import capacity, files
from energylens.cases import Cases
from energylens.columns import PERCENTILES
from energylens.deciding import decide
from energylens.decisions import Entry, LatencyLimit, Load
from energylens.errors import InputError, UsageError
from energylens.model import EnergyModel
from energylens.pacing import full_batch
from energylens.records import Configuration, Gpu
from energylens.running import read_configuration
from energylens.scenarios import Candidates, Scenario
from energylens.selection import select
from energylens.solving import FACTORS, Engine, case_of

RUNS = 3  # after which the best measured run is the answer
LEFT_RATIO = 0.6  # of the spread of times, once one factor was measured here
WIDEST_FACTOR = 20.0  # between measured and predicted times
COLUMNS = ("configuration", "energy_per_request_j", "tpot_s", "ttft_s", "request_latency_s")
_STEMS = {"tpot": "tpot", "ttft": "ttft", "latency": "request_latency"}
Target = Literal["tpot", "ttft", "latency"]
#: Which measured time says best how long the steps take.
UNDER_LOAD: tuple[Target, ...] = ("tpot", "latency", "ttft")
KEPT_FULL: tuple[Target, ...] = ("latency", "tpot", "ttft")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One measured run of what is in question. Times not measured are None.

    ``percentiles`` has seconds by column, as in ``ttft_p99_s``; ``source`` says what the joules
    are (measured, simulated ...; empty: not said).
    """

    configuration: Configuration
    energy_per_request_j: float
    tpot_s: float | None = None
    ttft_s: float | None = None
    request_latency_s: float | None = None
    percentiles: Mapping[str, float] = field(default_factory=dict)
    source: str = ""

    @classmethod
    def of_row(cls, row: Mapping[str, Any], configuration: Configuration) -> Run:
        """Make one of a row of the tidy table."""
        return cls(
            configuration=configuration,
            energy_per_request_j=float(row["energy_per_request_j"]),
            percentiles={name: float(row[name]) for name in PERCENTILES if row.get(name)},
            source=str(row.get("source", "")),
            **{name: float(row[name]) if row.get(name) else None for name in COLUMNS[2:]},
        )

    def mean(self, target: Target) -> float | None:
        """Read a mean time."""
        times = {"tpot": self.tpot_s, "ttft": self.ttft_s, "latency": self.request_latency_s}
        return times[target]

    def keeps(self, limit: LatencyLimit) -> bool | None:
        """Whether it keeps a limit; None where no measured time tells.

        A percentile between measured ones is kept if the next one above keeps it, and broken if
        the next one below breaks it.
        """
        if limit.quantile is None:
            value = self.mean(limit.measure)
            return None if value is None else value <= limit.seconds
        of = {
            percent: self.percentiles[name]
            for name, percent in PERCENTILES.items()
            if name.rpartition("_p")[0] == _STEMS[limit.measure] and name in self.percentiles
        }
        asked = 100.0 * limit.quantile
        if any(percent >= asked - 1e-9 and value <= limit.seconds for percent, value in of.items()):
            return True
        below = any(p <= asked + 1e-9 and value > limit.seconds for p, value in of.items())
        return False if below else None

    def meets(self, limits: Sequence[LatencyLimit]) -> bool | None:
        """Whether it keeps all limits; None where a time was not measured."""
        kept = [self.keeps(limit) for limit in limits]
        return False if False in kept else None if None in kept else True


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a number of runs say.

    ``answer`` is the run to stay with (None: go on, or nothing keeps the limits), ``next`` the
    configuration to measure (None: no more are needed). ``time_factor`` and ``energy_factor`` are
    measured over predicted. ``unknown`` has the limits that no run tells of.
    """

    answer: Run | None
    meets: bool
    next: Entry | None
    time_factor: float
    energy_factor: float
    runs: tuple[Run, ...]
    unknown: tuple[LatencyLimit, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Names and values."""
        answer = self.answer
        return {
            "runs": len(self.runs),
            "meets": self.meets,
            "answer": None if answer is None else answer.configuration.describe(),
            "answer_energy_per_request_j": None if answer is None else answer.energy_per_request_j,
            "answer_source": None if answer is None else answer.source or None,
            "next": None if self.next is None else self.next.to_json(),
            "time_factor": self.time_factor,
            "energy_factor": self.energy_factor,
            "limits_not_measured": [limit.describe() for limit in self.unknown],
        }


def read_runs(path: str | Path, gpu: Gpu | None = None) -> list[Run]:
    """Read measured runs: CSV with a configuration (``TP4 B64``), joules and times.

    Where a configuration has no batch limit it is the engine's own on that GPU type.

    Raises
    ------
    TableError
        If the file cannot be read.
    InputError
        If a line lacks joules, or has a number that is none.
    """
    runs = []
    for number, row in enumerate(files.read_rows(path), 2):  # the header is line 1
        values: dict[str, float | None] = {}
        for name in (*COLUMNS[1:], *PERCENTILES):
            text = (row.get(name) or "").strip()
            try:
                value = float(text) if text else None
            except ValueError:
                value = float("nan")
            if value is not None and not 0 < value < float("inf"):
                raise InputError(f"{path} line {number}: {name} must be above 0, not {text!r}")
            values[name] = value
        joules = values.pop("energy_per_request_j")
        percentiles = {n: v for n in PERCENTILES if (v := values.pop(n)) is not None}
        if joules is None or not row.get("configuration"):
            raise InputError(
                f"{path} line {number} must have a configuration and energy_per_request_j "
                f"(columns {', '.join(COLUMNS)})"
            )
        runs.append(
            Run(
                configuration=read_configuration(row["configuration"], gpu),
                energy_per_request_j=joules,
                percentiles=percentiles,
                source=(row.get("source") or "").strip(),
                **values,
            )
        )
    return runs


def verify(
    model: EnergyModel,
    scenario: Scenario,
    load: Load | None,
    limits: Sequence[LatencyLimit],
    runs: Sequence[Run],
    *,
    most: int = RUNS,
    offered: Load | None = None,
    without: Collection[Configuration] = (),
    **question: Any,
) -> Verdict:
    """Say what measured runs make of a choice, and what to measure next.

    Parameters
    ----------
    scenario, limits
        As for :func:`energylens.deciding.decide`.
    load : Load or None
        None: the batch is kept full.
    runs : sequence of Run
        Those measured so far, in any order; none asks for the first.
    most : int
        Runs after which the best measured one is the answer.
    offered : Load, optional
        What the runs were offered, where it differs from ``load``.
    without : collection of Configuration
        Those that cannot be measured.
    question
        What else :func:`~energylens.deciding.decide` takes.
    """
    limits = tuple(limits)
    factors = [_factors(model, scenario, offered or load, run) for run in runs]
    time = float(np.exp(np.mean([np.log(t) for t, _ in factors]))) if factors else 1.0
    joules = float(np.exp(np.mean([np.log(j) for _, j in factors]))) if factors else 1.0
    engine = Engine(model, factor=time, energy_factor=joules)
    engine.certain = LEFT_RATIO if runs else 1.0
    if runs:
        question = {**question, "meet": 0.5}  # it is going to be measured
    if load is None:
        expected = _kept_full(engine, scenario, limits, **question)
    else:
        decision = decide(engine, scenario, load, limits, **question)
        expected = decision.entries or decision.missed
    unknown = tuple(
        limit for limit in limits if runs and all(run.keeps(limit) is None for run in runs)
    )
    kept = [run for run in runs if run.meets(limits)]
    best = min(kept, key=lambda run: run.energy_per_request_j) if kept else None
    same = _layout if load is not None else _layout_and_batch
    closed = {same(run.configuration) for run in runs} | {same(c) for c in without}
    open_ = [
        entry
        for entry in expected
        if same(entry.configuration) not in closed
        and (best is None or entry.energy_per_request_j < best.energy_per_request_j)
    ]
    spent = len({run.configuration for run in runs}) >= most
    following = open_[0] if open_ and not spent and not unknown else None
    return Verdict(
        answer=best if following is None else None,
        meets=best is not None,
        next=following,
        time_factor=time,
        energy_factor=joules,
        runs=tuple(runs),
        unknown=unknown,
    )


def _layout(c: Configuration) -> tuple[float, ...]:
    """What tells runs under load apart: batch limits that do not bind serve alike."""
    return (c.tensor_parallel, c.pipeline_parallel, c.expert_parallel, c.data_parallel)


def _layout_and_batch(c: Configuration) -> tuple[float, ...]:
    return (*_layout(c), c.batch_size)


def _kept_full(
    engine: Engine,
    scenario: Scenario,
    limits: Sequence[LatencyLimit],
    *,
    meet: float,
    choose: Sequence[str],
    candidates: Candidates | None = None,
    batch_limits: Sequence[float] = (),
    **_: Any,
) -> tuple[Entry, ...]:
    """Configurations that meet with a full batch, fewest joules first; else the likeliest to."""
    if any(limit.quantile is not None for limit in limits):
        raise UsageError(
            "a batch that is kept full has mean times only: leave the percentile out, or give the "
            "requests that arrive in a second (--rate)"
        )
    spanned = candidates or Candidates()
    if batch_limits:
        spanned = replace(spanned, batch_size=tuple(batch_limits))
    cases = select(engine.energy, scenario, choose=choose, candidates=spanned).cases
    # Measured is a batch that starts together: one that would queue in part is another run.
    fits = np.array([capacity.memory(cases.case(i)).fits for i in range(len(cases))], dtype=bool)
    cases = cases.take(fits)
    full = full_batch(engine.energy, engine.time, cases, engine.factor)
    times = {"latency": full.latency_s, "tpot": full.tpot_s, "ttft": full.ttft_s}
    met = np.ones((FACTORS, len(cases)), dtype=bool)
    each = []
    for limit in limits:
        logs = engine.time.logs_at(cases, (np.arange(FACTORS) + 0.5) / FACTORS, limit.measure)
        alone = times[limit.measure] * np.exp(logs * engine.certain) <= limit.seconds
        each.append(alone.mean(axis=0))
        met &= alone
    odds = met.mean(axis=0)
    joules = engine.energy.predict_energy_j(cases) * engine.energy_factor
    low, high = engine.energy.interval_energy_j(cases, 0.8)
    rate = cases.batch_size / times["latency"]
    enough = np.flatnonzero(odds >= meet)
    order = enough[np.argsort(joules[enough], kind="stable")]
    if not len(order):
        order = np.lexsort((joules, -odds))
    made = []
    for i in order.tolist():
        case = cases.case(i)
        c = case.configuration
        made.append(
            Entry(
                configuration=c,
                gpu=case.gpu.id,
                precision=case.precision.id,
                batch_limit=c.batch_size / c.data_parallel,
                mean_batch_size=c.batch_size / c.data_parallel,
                energy_per_request_j=float(joules[i]),
                lower_j=float(low[i]) * engine.energy_factor,
                upper_j=float(high[i]) * engine.energy_factor,
                power_w=float(joules[i] * rate[i]),
                utilisation_ratio=1.0,
                saturation_rate_per_s=float(rate[i]),
                tpot_s=float(times["tpot"][i]),
                ttft_s=float(times["ttft"][i]),
                request_latency_s=float(times["latency"][i]),
                values_s=tuple(float(times[limit.measure][i]) for limit in limits),
                probability_of_meeting_ratio=float(odds[i]),
                probabilities=tuple(float(alone[i]) for alone in each),
                row=i,
            )
        )
    return tuple(made)


def _factors(
    model: EnergyModel, scenario: Scenario, load: Load | None, run: Run
) -> tuple[float, float]:
    """Measured over predicted times and joules of one run.

    Under load a slower engine also runs more at once, so the factor on its steps is looked for
    with the queue solved at each.
    """
    cases = Cases.of([case_of(scenario, run.configuration)])
    told = [t for t in (KEPT_FULL if load is None else UNDER_LOAD) if run.mean(t) is not None]
    factor = 1.0
    if load is None:
        if told:
            predicted = float(Engine(model).time.predict_s(cases, told[0])[0])
            factor = float(run.mean(told[0]) or predicted) / predicted
        return factor, run.energy_per_request_j / float(model.predict_energy_j(cases)[0])

    def solved(factor: float) -> Any:
        return Engine(model, factor=factor).solve(cases, load, (), odds=False)

    if told:
        low, high = 1.0 / WIDEST_FACTOR, WIDEST_FACTOR
        limit = LatencyLimit(measure=told[0], seconds=float(run.mean(told[0]) or 0.0))
        for _ in range(40):
            factor = float(np.sqrt(low * high))
            over = float(limit.value(solved(factor).state)[0]) > limit.seconds
            low, high = (low, factor) if over else (factor, high)
    return factor, run.energy_per_request_j / float(solved(factor).energy_j[0])
