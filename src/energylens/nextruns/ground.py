"""What a choice of runs stands on: the candidates, the rows there are, the law's gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from energylens import fitting
from energylens.capacity import laid_out, room
from energylens.cases import BoolArray, Cases, FloatArray, IntArray
from energylens.counts import in_flight
from energylens.dataset import Dataset, freed_columns, group_rows
from energylens.errors import UsageError
from energylens.fitting import FitOptions
from energylens.fitting.problem import PRIOR_ROW_RATIO
from energylens.formula import SPREADS, design, energy, slopes
from energylens.model import Coefficients, EnergyModel, draw_theta
from energylens.nextruns.answers import _KNOBS, _LENGTHS, Choice, Run

THETA_FLOOR = 0.02  # a drawn coefficient of 0 would hide that rows can speak of it
WEIGHT_OF_GUESS = 4.0  # rows that the guessed spread of residuals is worth
SAME_LENGTH_RATIO = 1.25  # a row within this of a candidate's lengths is of that candidate


# -------------------------------------------------------------------------- what is known so far


@dataclass(frozen=True, kw_only=True, eq=False)
class _Ground:
    """Candidates and measured rows side by side, and the fit to the latter."""

    choose: tuple[str, ...]
    cases: Cases  # n candidates, then m measured rows
    n: int
    x: FloatArray  # joules of each term at theta = 1, shape (n + m, 12)
    kin: IntArray  # rows that share an error: one LLM, GPU type, precision and workload
    done: IntArray  # candidate of each measured row, or -1; shape (m,)
    feasible: BoolArray  # (n,)
    open: BoolArray  # feasible and not measured, (n,)
    scenarios: list[IntArray]  # candidates that compete
    coefficients: Coefficients
    within: float  # spread of a row's own error, and of the one it shares
    between: float
    energy_j: FloatArray  # predicted, (n + m,)
    spot: IntArray  # case that stands for each measured row: its candidate, or itself; (m,)
    measured_j: FloatArray  # (m,)

    @classmethod
    def of(
        cls,
        candidates: Cases,
        measured: Dataset | None,
        choose: Sequence[str],
        workload: IntArray | None,
        done: IntArray | None,
    ) -> _Ground:
        n = len(candidates)
        freed = freed_columns(choose)
        if n == 0:
            raise UsageError("there must be one candidate or more to choose from; given none")
        rows = measured if measured is not None and len(measured) else None
        m = len(rows) if rows is not None else 0
        cases = candidates if rows is None else Cases.concatenate([candidates, rows.cases])
        # One set of coefficients for all GPU types: a run on one tells of the others.
        model: EnergyModel = (
            fitting.from_datasheet()
            if rows is None
            else fitting.fit(rows, FitOptions(per=()))
        )  # fmt: skip
        if workload is None:
            lengths = [getattr(candidates, name) for name in _LENGTHS]
            workload = group_rows([*lengths, candidates.images, candidates.frames])
        if done is None:
            done = _same_case(cases, n)
        if workload.shape != (n,) or done.shape != (m,) or (m and done.max() >= n):
            raise UsageError(
                f"workload must have one number for each of {n} candidates, and done a candidate "
                f"or -1 for each of {m} rows; given shapes {workload.shape} and {done.shape}"
            )
        served = np.concatenate([workload, _served(cases, n, workload, done)])
        kin = group_rows([cases.llm_index, cases.gpu_index, cases.precision_index, served])
        feasible = _feasible(candidates)
        measurable = feasible.copy()
        measurable[done[done >= 0]] = False
        ran = feasible.copy()
        ran[done[done >= 0]] = True
        x = design(cases)
        predicted = np.maximum(energy(x, model.pooled.theta), np.finfo(np.float64).tiny)
        joules = np.empty(0) if rows is None else rows.energy_per_request_j
        within, between = _spreads(x[n:], kin[n:], model.pooled, joules)
        return cls(
            choose=tuple(choose),
            cases=cases,
            n=n,
            x=x,
            kin=kin,
            done=done,
            feasible=ran,
            open=measurable,
            scenarios=_scenarios(candidates, served[:n], freed, ran),
            coefficients=model.pooled,
            within=within,
            between=between,
            energy_j=predicted,
            spot=np.where(done >= 0, done, n + np.arange(m)),
            measured_j=joules,
        )

    @cached_property
    def engine_names(self) -> NDArray[np.object_]:
        """Engine of each case without its version, empty where it is not known; (n + m,)."""
        return _engine_names(self.cases)

    @cached_property
    def log_ratio(self) -> FloatArray:
        """Log of measured over predicted energy of each measured row, shape (m,)."""
        return np.asarray(np.log(self.measured_j / self.energy_j[self.spot]))

    @cached_property
    def batch_energy_j(self) -> FloatArray:
        """Predicted joules of all requests that run at once, shape (n,): what a run costs."""
        running = in_flight(self.cases.take(slice(0, self.n)))
        return np.asarray(self.energy_j[: self.n] * running)

    def draw_theta(self, draws: int, rng: np.random.Generator) -> FloatArray:
        """Draw coefficients that the rows leave possible, shape (draws, 12)."""
        return np.maximum(draw_theta(self.coefficients, draws, rng), THETA_FLOOR)

    def run(self, row: int, purpose: str, why: str, gain: float) -> Run:
        """Make the record of one run."""
        return Run(
            candidate=row,
            case=self.cases.case(row),
            purpose=purpose,
            why=why,
            gain=gain,
            energy_per_request_j=float(self.energy_j[row]),
            batch_energy_j=float(self.batch_energy_j[row]),
        )

    def name(self, scenario: int) -> str:
        """Name a scenario: its LLM and lengths."""
        case = self.cases.case(int(self.scenarios[scenario][0]))
        w = case.workload
        return f"{case.llm.id}, {w.input_tokens:.0f} + {w.output_tokens:.0f} tokens"

    def choice(self, scenario: int, winner: int, **believed: float) -> Choice:
        """Make the record of one scenario."""
        rows = self.scenarios[scenario]
        return Choice(
            scenario=self.name(scenario),
            winner=winner,
            configuration=self.configuration(winner),
            configurations=len(rows),
            measured=int(np.isin(rows, self.done).sum()),
            **believed,
        )

    def configuration(self, row: int) -> str:
        """Describe what may be chosen of one candidate."""
        case = self.cases.case(row)
        parts = [case.configuration.describe()]
        parts += [case.precision.id] if "precision" in self.choose else []
        parts += [case.gpu.id] if "gpu" in self.choose else []
        return " ".join(parts)


def _spreads(
    x: FloatArray, kin: IntArray, fitted: Coefficients, joules: FloatArray
) -> tuple[float, float]:
    """Spread of a row's own error and of the one it shares with its kin.

    Rows chosen for what they tell are extreme ones: left out one by one, as the fit's own
    intervals do, they mispredict each other far more than ordinary rows. So residuals of the fit
    are counted here, over the rows that it left free; a guess helps out while rows are few.
    """
    guess = PRIOR_ROW_RATIO**2
    n = len(joules)
    if n == 0:
        return float(np.sqrt(guess)), float(np.sqrt(guess))
    residual = np.log(joules / np.maximum(energy(x, fitted.theta), np.finfo(np.float64).tiny))
    slope = log_slopes(x, fitted.theta)
    noise = fitted.within_ratio**2 + fitted.between_ratio**2 + guess / n
    normal = slope.T @ slope
    used = float(np.trace(np.linalg.solve(normal + noise * np.diag(1.0 / SPREADS**2), normal)))
    free_ratio = max(1.0 - used / n, 0.0)
    _, place, counts = np.unique(kin, return_inverse=True, return_counts=True)
    apart = residual - (np.bincount(place, residual) / counts)[place]

    def spread(squares: float, rows: float) -> float:
        return (squares + WEIGHT_OF_GUESS * guess) / (rows * free_ratio + WEIGHT_OF_GUESS)

    own = spread(float(apart @ apart), float((counts - 1).sum()))
    every = spread(float(residual @ residual), float(n))
    return float(np.sqrt(own)), float(np.sqrt(max(every - own, 0.0) + guess / (1.0 + n)))


def _same_case(cases: Cases, n: int) -> IntArray:
    """Which of the first n cases each later one is: the same knobs, the nearest lengths.

    Of two engines that are both known it is the same one, whatever its version.
    """
    key = group_rows(
        [
            cases.llm_index, cases.gpu_index, cases.precision_index, cases.images, cases.frames,
            cases.node_boundary, cases.node_gpus, cases.power_cap_w, cases.clock_mhz,
            *(getattr(cases, name) for name in _KNOBS),
        ]
    )  # fmt: skip
    lengths = np.log1p(np.column_stack([getattr(cases, name) for name in _LENGTHS]))
    order = np.argsort(key[:n], kind="stable")
    first, last = (np.searchsorted(key[order], key[n:], side=side) for side in ("left", "right"))
    found = np.full(len(cases) - n, -1, dtype=np.intp)
    engines = _engine_names(cases)
    for i, (start, stop) in enumerate(zip(first, last, strict=True)):
        members = order[start:stop]
        if engines[n + i]:
            members = members[(engines[members] == engines[n + i]) | (engines[members] == "")]
        if len(members):
            away = np.abs(lengths[members] - lengths[n + i]).max(axis=1)
            nearest = int(np.argmin(away))
            if away[nearest] <= np.log(SAME_LENGTH_RATIO):
                found[i] = members[nearest]
    return found


def _engine_names(cases: Cases) -> NDArray[np.object_]:
    names = [engine.name.casefold() for engine in cases.engines]
    return np.array(names, dtype=object)[cases.engine_index]


def _served(cases: Cases, n: int, workload: IntArray, done: IntArray) -> IntArray:
    """Workload of each measured row: that of its candidate, or one of its own."""
    lengths = [getattr(cases, name)[n:] for name in _LENGTHS]
    own = group_rows([*lengths, cases.images[n:], cases.frames[n:]])
    return np.where(done >= 0, workload[np.maximum(done, 0)], workload.max() + 1 + own)


def _feasible(cases: Cases) -> BoolArray:
    """Whether each case can be laid out and served, shape (n,); the rest of a batch may wait."""
    feasible = laid_out(cases) & (room(cases) > 0)
    feasible &= cases.batch_size >= cases.data_parallel
    return feasible | ~np.isnan(cases.mean_batch_size)


def _scenarios(
    cases: Cases, served: IntArray, freed: frozenset[str], feasible: BoolArray
) -> list[IntArray]:
    """Feasible candidates that differ in the free knobs alone, two configurations or more."""
    columns = (
        *_KNOBS, "gpu_index", "precision_index", "power_cap_w", "clock_mhz", "node_gpus",
        "llm_index", "node_boundary",
    )  # fmt: skip
    keys: list[NDArray[Any]] = [served]
    keys += [getattr(cases, name) for name in columns if name not in freed]
    scenario = group_rows(keys)
    configuration = group_rows([getattr(cases, name) for name in sorted(freed)])
    rows = np.flatnonzero(feasible)
    rows = rows[np.argsort(scenario[rows], kind="stable")]
    groups = np.split(rows, np.flatnonzero(np.diff(scenario[rows])) + 1)
    return sorted(
        (g for g in groups if len(g) > 1 and len(np.unique(configuration[g])) > 1),
        key=lambda g: int(g[0]),
    )


def log_slopes(x: FloatArray, theta: FloatArray) -> FloatArray:
    """Change of log energy with each coefficient, shape (n, 12)."""
    joules = np.maximum(energy(x, theta), np.finfo(np.float64).tiny)
    return np.asarray(slopes(x, theta) / joules[:, None])
