r"""Which runs next, and when to stop: measurements chosen for what they would tell.

Two questions, and a part of each batch for each of them.

*Which coefficients?* A row that the law predicts as E tells of the twelve through
:math:`a = \partial \log E / \partial \theta`. Rows of one LLM and workload share an error of
spread b besides their own of spread w; with n of them measured, whose slopes add to v, one more
adds the rank-one term :math:`h h^\top / t^2` to the information about the coefficients, with

.. math:: h = a - \rho_n v, \qquad t^2 = w^2 (1 + \rho_n), \qquad
          \rho_n = \frac{b^2}{w^2 + n b^2}

and :math:`\log(1 + h^\top S h / t^2)` to its log determinant, S being the inverse information. The
datasheet's prior is the information before the first row; because the slopes depend on theta, the
rise is averaged over draws of it (Bayesian D-optimality: Chaloner and Verdinelli, Statistical
Science 10(3), 1995), and a greedy choice is improved by exchanges (Fedorov, *Theory of Optimal
Experiments*, 1972). Runs come whole and each at most once, so nothing is left to round.

*Which candidate?* The knowledge gradient with correlated beliefs (Frazier, Powell and Dayanik,
INFORMS Journal on Computing 21(4), 2009): the run after which the expected regret of choosing the
configuration with the lowest expected energy, averaged over scenarios, is lowest.

What is believed of a candidate is the law, its coefficients uncertain as the fit left them, plus
what its measured neighbours say of its own residual (kriging). :func:`verdict` draws from that
belief how probable it is that the winner is the best, and what regret to expect now and after more
runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from energylens import fitting, table
from energylens.capacity import largest_batch, layout_possible
from energylens.cases import BoolArray, Cases, FloatArray, IntArray
from energylens.counts import in_flight
from energylens.dataset import Dataset, freed_columns, group_rows
from energylens.errors import InfeasibleError, UsageError
from energylens.fitting import FitOptions
from energylens.formula import (
    NAMES,
    OVERLAPS,
    SPREADS,
    TERMS,
    Coefficients,
    EnergyModel,
    design,
    draw_theta,
    energy,
    knob_place,
    slopes,
)
from energylens.records import Case

DEFAULT_WEIGHT = 0.5  # share of a batch that tells the candidates apart
DEFAULT_MORE = 4  # runs that a verdict looks ahead
DEFAULT_TARGET_RATIO = 0.01  # expected regret at which one may stop

THETA_DRAWS = 8  # of the coefficients, over which information is averaged
THETA_FLOOR = 0.02  # a drawn coefficient of 0 would hide that rows can speak of it
TIE_RATIO = 0.01  # gains closer than this are a tie: the cheaper run is taken
EXCHANGES = 3  # rounds of them at most
POOL = 4000  # runs compared in full; of more candidates the most telling
POOL_PER_TERM = 200  # ... and those in which one term has its largest share
SAMPLES = 1000  # joint draws of a verdict
CONTENDERS = 12  # configurations of a scenario, by predicted joules, that may be the best
LARGEST_BELIEF = 1000  # configurations whose joint distribution a choice of runs looks at
LARGEST_VERDICT = 8000  # ... and a verdict
BESIDE = 100  # runs besides the contenders that may tell them apart
NODES = 9  # of the quadrature over a run's outcome
WEIGHT_OF_GUESS = 4.0  # rows that the guessed spread of residuals is worth
SAME_LENGTH_RATIO = 1.25  # a row within this of a candidate's lengths is of that candidate
REPEAT_RATIO = 0.02  # by which a repeated measurement differs
CHANGE_SHARE = 0.1  # of the target: a smaller expected change is not worth the runs

_KNOBS = (
    "tensor_parallel", "pipeline_parallel", "expert_parallel", "data_parallel", "batch_size",
)  # fmt: skip
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
            "purpose": self.purpose,
            "why": self.why,
            "gain": self.gain,
            "energy_per_request_j": self.energy_per_request_j,
            "batch_energy_j": self.batch_energy_j,
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
            "weight": self.weight,
            "seed": self.seed,
            "candidates": self.candidates,
            "infeasible": self.infeasible,
            "measured_rows": self.measured_rows,
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
            f"{first}; expected regret {self.expected_regret_j:.2g} J a request ({regret:.2%}).",
            f"{runs} would change that by {self.change_j:.2g} J ({self.change_ratio:.2%})."
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
            "settled": self.settled,
            "worthwhile": self.worthwhile,
            "stop": self.stop,
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


# ------------------------------------------------------------------------------------ the verbs


def next_runs(
    candidates: Cases,
    measured: Dataset | None = None,
    *,
    choose: Sequence[str],
    count: int,
    seed: int = 0,
    weight: float = DEFAULT_WEIGHT,
    workload: IntArray | None = None,
    done: IntArray | None = None,
) -> Batch:
    """Choose the next measurements.

    Parameters
    ----------
    candidates : Cases
        n cases that could be measured. Those that do not fit in memory are left out, unless
        they have an observed ``mean_batch_size``, which says that they ran.
    measured : Dataset, optional
        m rows measured already.
    choose : sequence of str
        The free knobs, names from :data:`energylens.dataset.KNOBS`: candidates that differ in
        them alone compete.
    count : int
        Runs to choose; fewer come back if fewer are left.
    seed : int
        Source of the draws of coefficients.
    weight : float
        Share of the runs that are to tell the candidates apart, rather than the coefficients.
    workload : ndarray of int, shape (n,), optional
        Which workload each candidate serves (as ``Dataset.workload_index``), where mean
        lengths scatter. By default equal lengths are one workload.
    done : ndarray of int, shape (m,), optional
        Which candidate each measured row is of, -1 for none. By default the one with the same
        knobs and engine and the nearest lengths, within a ratio of 1.25.

    Returns
    -------
    Batch

    Raises
    ------
    UsageError
        If there is no candidate, or an argument is out of its range.
    InfeasibleError
        If no candidate is left to measure.
    """
    _check(count=count, weight=weight)
    ground = _Ground.of(candidates, measured, choose, workload, done)
    return _next_runs(ground, count, seed, weight)


def _next_runs(ground: _Ground, count: int, seed: int, weight: float) -> Batch:
    if not ground.open.any():
        measured = len(np.unique(ground.done[ground.done >= 0]))
        raise InfeasibleError(
            f"none of the {ground.n} candidates is left to measure: {measured} "
            f"are measured and {int((~ground.feasible).sum())} do not fit in memory; widen the "
            "candidates"
        )
    count = min(count, int(ground.open.sum()))
    # Before the first row every candidate might be the best: learn what the rows have in common.
    sure = len(ground.spot) > 0 and len(ground.scenarios) > 0
    for_choice = int(np.floor(weight * count + 0.5)) if sure else 0
    theta = ground.draw_theta(THETA_DRAWS, np.random.default_rng(seed))
    contenders = _contenders(ground, theta) if for_choice else []
    pool = _pool(ground, theta, contenders)
    rows = np.concatenate([pool, np.arange(ground.n, len(ground.cases))])
    cost = ground.batch_energy_j[pool]
    kin = np.unique(ground.kin[rows], return_inverse=True)[1].reshape(-1)
    before = Information(ground.x[rows], kin, theta, within=ground.within, between=ground.between)
    for place in range(len(pool), len(rows)):
        before.add(place)

    after, free = before.copy(), np.ones(len(pool), dtype=np.bool_)
    told = _most_telling(after, free, count - for_choice, cost)
    chosen = _most_deciding(ground, contenders, pool, free, for_choice) if for_choice else []
    for deciding in chosen:
        after.add(deciding.place)
    # Where nothing is left to decide, learn instead.
    told += _most_telling(after, free, count - len(told) - len(chosen), cost, exchanges=0)

    known, runs = before.copy(), []
    for place in _in_order(known, told, cost):
        gain, was = float(known.gains(np.array([place]))[0]), known.spreads()
        known.add(place)
        why = _what_it_tells(was, known.spreads())
        runs.append(ground.run(int(pool[place]), "coefficients", why, gain))
    runs += [ground.run(int(pool[one.place]), "choice", one.why, one.gain) for one in chosen]
    spoken: BoolArray = np.any(ground.x[: ground.n] > 0, axis=0)
    return Batch(
        runs=tuple(runs),
        spread_before=_named(before.spreads(), spoken),
        spread_after=_named(after.spreads(), spoken),
        information_nats=float((after.log_det() - before.log_det()).mean()),
        choose=ground.choose,
        weight=weight,
        seed=seed,
        candidates=ground.n,
        infeasible=int((~ground.feasible).sum()),
        measured_rows=len(ground.cases) - ground.n,
    )


def verdict(
    candidates: Cases,
    measured: Dataset | None = None,
    *,
    choose: Sequence[str],
    more_runs: int = DEFAULT_MORE,
    seed: int = 0,
    weight: float = DEFAULT_WEIGHT,
    target_ratio: float = DEFAULT_TARGET_RATIO,
    workload: IntArray | None = None,
    done: IntArray | None = None,
) -> Verdict:
    """Say how sure the choice is, and what more runs would change.

    The regret after more runs is a preposterior estimate: for each joint draw of all energies
    the runs that :func:`next_runs` would choose are "measured" in it, the energies are estimated
    anew (best linear estimate), and the configuration then chosen is compared with the best
    of the draw.

    Parameters
    ----------
    candidates, measured, choose, seed, weight, workload, done
        As in :func:`next_runs`.
    more_runs : int
        Runs to look ahead.
    target_ratio : float
        Expected regret, over the joules of the best, at which one may stop.

    Returns
    -------
    Verdict

    Raises
    ------
    UsageError
        If there is no candidate, no scenario with two or more of them, or an argument is out
        of its range.
    """
    _check(count=max(more_runs, 1), weight=weight)
    if not 0.0 < target_ratio < 1.0:
        raise UsageError(f"target_ratio must lie between 0 and 1; given {target_ratio}")
    ground = _Ground.of(candidates, measured, choose, workload, done)
    if not ground.scenarios:
        raise UsageError(
            "there must be two or more feasible candidates that differ only in "
            f"{', '.join(ground.choose)}: free other knobs, or bring more candidates"
        )
    rng = np.random.default_rng(seed)
    every = _contenders(ground, ground.draw_theta(THETA_DRAWS, rng))
    judged = _within(every, LARGEST_VERDICT)
    contenders = [every[s] for s in judged]
    runs = np.empty(0, dtype=np.intp)
    if more_runs > 0 and ground.open.any():
        runs = _next_runs(ground, more_runs, seed, weight).index
    at = np.concatenate([*contenders, runs])
    belief = _Belief.of(ground, at)
    draws = belief.draw(ground, SAMPLES, rng)
    split = len(at) - len(runs)
    outcomes = draws[:, split:] + rng.normal(0.0, REPEAT_RATIO, (SAMPLES, len(runs)))
    updated = _best_linear(draws[:, :split], outcomes)

    choices, later_j, later = [], [], []
    starts = np.cumsum([0, *(len(rows) for rows in contenders)])
    for s, rows in enumerate(contenders):
        part = slice(starts[s], starts[s + 1])
        joules, lowest = np.exp(draws[:, part]), np.exp(draws[:, part].min(axis=1))
        winner = int(np.argmin(belief.mean[part]))
        lost = joules[:, winner] - lowest
        then = joules[np.arange(SAMPLES), np.argmin(updated[:, part], axis=1)] - lowest
        later_j.append(float(then.mean()))
        later.append(float((then / lowest).mean()))
        choices.append(
            ground.choice(
                int(judged[s]),
                int(rows[winner]),
                probability_best_ratio=float((joules[:, winner] <= lowest).mean()),
                expected_regret_j=float(lost.mean()),
                expected_regret_ratio=float((lost / lowest).mean()),
            )
        )
    regret_j = float(np.mean([choice.expected_regret_j for choice in choices]))
    regret = float(np.mean([choice.expected_regret_ratio for choice in choices]))
    return Verdict(
        choices=tuple(choices),
        scenarios=len(ground.scenarios),
        probability_best_ratio=float(np.mean([c.probability_best_ratio for c in choices])),
        expected_regret_j=regret_j,
        expected_regret_ratio=regret,
        more_runs=len(runs),
        change_j=min(float(np.mean(later_j)) - regret_j, 0.0),
        change_ratio=min(float(np.mean(later)) - regret, 0.0),
        target_ratio=target_ratio,
        measured_rows=len(ground.cases) - ground.n,
        seed=seed,
        lacking=_lacking(ground),
        unclaimed=table.unclaimed(measured) if measured is not None else "",
    )


def _lacking(ground: _Ground) -> str:
    """Say which rows are missing before one may stop; empty if none are.

    How far the law is off on a GPU type and an engine can be told from rows of them alone. Where
    all that competes is measured, no law is asked.
    """
    competing = np.concatenate(ground.scenarios)
    if np.isin(competing, ground.done).all():
        return ""
    engines, kinds = ground.engine_names, ground.cases.gpu_index
    for gpu, engine in sorted({(int(kinds[row]), engines[row]) for row in competing}):
        same = kinds[ground.n :] == gpu
        if engine:
            same &= (engines[ground.n :] == engine) | (engines[ground.n :] == "")
        rows, most = int(same.sum()), fitting.ENOUGH
        if rows < most:
            of = f"of {ground.cases.gpus[gpu].id}" + (
                f" with the engine {engine}" if engine else ""
            )
            number = f"only {rows}" if rows else "no"
            return (
                f"{number} measured row{'s are' if rows > 1 else ' is'} {of}, and it takes {most} "
                "to know how far the law is off there"
            )
    return ""


def _check(*, count: int, weight: float) -> None:
    if count < 1:
        raise UsageError(f"the number of runs must be 1 or more, not {count}")
    if not 0.0 <= weight <= 1.0:
        raise UsageError(f"weight must lie between 0 and 1, both included; given {weight}")


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
    guess = fitting.PRIOR_ROW_RATIO**2
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
            cases.node_boundary, cases.node_gpus, cases.power_cap_w,
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
    """Whether each case can be laid out and its whole batch fits in memory, shape (n,)."""
    shape = (len(cases.llms), len(cases.gpus), len(cases.precisions))
    key = np.ravel_multi_index((cases.llm_index, cases.gpu_index, cases.precision_index), shape)
    feasible = np.zeros(len(cases), dtype=np.bool_)
    for place in np.unique(key):
        rows = np.flatnonzero(key == place)
        llm, gpu, precision = np.unravel_index(place, shape)
        part = cases.take(rows)
        layout: dict[str, Any] = {name: getattr(part, name) for name in _KNOBS[:4]}
        room = largest_batch(
            cases.llms[llm],
            cases.gpus[gpu],
            cases.precisions[precision],
            **layout,
            input_tokens=part.input_tokens,
            output_tokens=part.output_tokens,
        )
        feasible[rows] = layout_possible(cases.llms[llm], **layout) & (part.batch_size <= room)
    feasible &= cases.batch_size >= cases.data_parallel
    return feasible | ~np.isnan(cases.mean_batch_size)


def _scenarios(
    cases: Cases, served: IntArray, freed: frozenset[str], feasible: BoolArray
) -> list[IntArray]:
    """Feasible candidates that differ in the free knobs alone, two configurations or more."""
    columns = (
        *_KNOBS, "gpu_index", "precision_index", "power_cap_w", "node_gpus", "llm_index",
        "node_boundary",
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


# --------------------------------------------------------------------- telling coefficients apart


class Information:
    """What measured rows tell of the twelve coefficients, at each of D draws of them.

    Parameters
    ----------
    x : ndarray, shape (n, 12)
        Joules of each term at theta = 1.
    kin : ndarray of int, shape (n,)
        Rows with the same number share an error.
    theta : ndarray, shape (D, 12)
        Coefficients at which the law is linearised.
    within, between : float
        Spread of a row's own relative error, and of the one that it shares with its kin.
    """

    def __init__(
        self, x: FloatArray, kin: IntArray, theta: FloatArray, within: float, between: float
    ) -> None:
        self.slope = np.array([log_slopes(x, draw) for draw in theta])  # (D, n, 12)
        self.kin, self.own, self.shared = kin, within**2, between**2
        self.matrix = np.tile(np.diag(1.0 / SPREADS**2), (len(theta), 1, 1))
        self.rows = np.zeros(int(kin.max()) + 1)
        self.sums = np.zeros((len(theta), len(self.rows), len(SPREADS)))

    def copy(self) -> Information:
        """Return the same, to add other rows to."""
        other = copy(self)
        other.matrix, other.rows = self.matrix.copy(), self.rows.copy()
        other.sums = self.sums.copy()
        return other

    def log_det(self) -> FloatArray:
        """Log determinant of the information at each draw, shape (D,)."""
        return np.asarray(np.linalg.slogdet(self.matrix)[1])

    def spreads(self) -> FloatArray:
        """Standard deviation of each coefficient over its prior one, shape (D, 12)."""
        variance = np.diagonal(np.linalg.inv(self.matrix), axis1=1, axis2=2)
        return np.asarray(np.sqrt(variance) / SPREADS)

    def gains(self, rows: IntArray) -> FloatArray:
        """Nats that each row would add, mean over draws; shape of ``rows``."""
        total = np.zeros(len(rows))
        for d, inverse in enumerate(np.linalg.inv(self.matrix)):
            h, variance = self._apart(rows, d)
            total += np.log1p(((h @ inverse) * h).sum(axis=1) / variance)
        return total / len(self.matrix)

    def add(self, row: int) -> None:
        """Take one row in."""
        self._tell(row, 1.0)
        self._count(row, 1.0)

    def remove(self, row: int) -> None:
        """Take one row out that was taken in."""
        self._count(row, -1.0)
        self._tell(row, -1.0)

    def _count(self, row: int, sign: float) -> None:
        self.rows[self.kin[row]] += sign
        self.sums[:, self.kin[row]] += sign * self.slope[:, row]

    def _tell(self, row: int, sign: float) -> None:
        for d in range(len(self.matrix)):
            h, variance = self._apart(np.array([row]), d)
            self.matrix[d] += sign * h.T @ h / variance

    def _apart(self, rows: IntArray, d: int) -> tuple[FloatArray, FloatArray]:
        """What rows say beyond the error that their kin have shown, and the variance of it."""
        kin = self.kin[rows]
        rho = self.shared / (self.own + self.rows[kin] * self.shared)
        return self.slope[d, rows] - rho[:, None] * self.sums[d, kin], self.own * (1.0 + rho)


def log_slopes(x: FloatArray, theta: FloatArray) -> FloatArray:
    """Change of log energy with each coefficient, shape (n, 12)."""
    joules = np.maximum(energy(x, theta), np.finfo(np.float64).tiny)
    return np.asarray(slopes(x, theta) / joules[:, None])


def _pool(ground: _Ground, theta: FloatArray, contenders: list[IntArray]) -> IntArray:
    """Candidates worth comparing in full: all, or the most telling of very many."""
    rows = np.flatnonzero(ground.open)
    if len(rows) <= POOL:
        return rows
    gain = np.zeros(len(rows))
    extreme = []
    x = ground.x[rows]
    for draw in theta:
        slope = log_slopes(x, draw)
        gain += np.log1p((slope**2) @ SPREADS**2 / ground.within**2)
        share = slope * draw
        extreme.append(np.argpartition(-share, POOL_PER_TERM // len(theta), axis=0))
    best = np.argpartition(-gain, POOL // 2)[: POOL // 2]
    tops = [part[: POOL_PER_TERM // len(theta)].reshape(-1) for part in extreme]
    competing = np.concatenate([np.empty(0, dtype=np.intp), *contenders])
    telling = rows[np.concatenate([best, *tops])]
    return np.unique(np.concatenate([telling, competing[ground.open[competing]]]))


def _most_telling(
    information: Information,
    free: BoolArray,
    count: int,
    cost: FloatArray,
    *,
    exchanges: int = EXCHANGES,
) -> list[int]:
    """Take in the rows that raise the log determinant most: greedily, then by exchanges.

    The first ``len(free)`` rows of the information may be taken where ``free`` says so.
    """
    every = np.arange(len(free))

    def best() -> tuple[int, FloatArray]:
        gains = np.where(free, information.gains(every), -np.inf)
        return _cheapest_of_best(gains, cost), gains

    chosen: list[int] = []
    for _ in range(min(count, int(free.sum()))):
        place, _ = best()
        free[place] = False
        information.add(place)
        chosen.append(place)
    for _ in range(exchanges):
        before = list(chosen)
        for i, place in enumerate(chosen):
            information.remove(place)
            free[place] = True
            other, gains = best()
            if gains[other] > gains[place] * (1.0 + TIE_RATIO):
                chosen[i] = other
            free[chosen[i]] = False
            information.add(chosen[i])
        if chosen == before:
            break
    return chosen


def _in_order(information: Information, rows: list[int], cost: FloatArray) -> list[int]:
    """Order runs so that each tells the most that is left to tell."""
    known, left, order = information.copy(), np.array(rows, dtype=np.intp), []
    while len(left):
        place = _cheapest_of_best(known.gains(left), cost[left])
        order.append(int(left[place]))
        known.add(order[-1])
        left = np.delete(left, place)
    return order


def _cheapest_of_best(gains: FloatArray, cost: FloatArray) -> int:
    """Place of the highest gain; of those that tie with it, of the cheapest, then the first."""
    tied = np.flatnonzero(gains >= gains.max() * (1.0 - TIE_RATIO))
    return int(tied[np.argmin(cost[tied])])


def _named(spreads: FloatArray, spoken: BoolArray) -> tuple[tuple[str, float], ...]:
    mean = spreads.mean(axis=0)
    return tuple((name, float(mean[k])) for k, name in enumerate(NAMES) if spoken[k])


def _what_it_tells(before: FloatArray, after: FloatArray) -> str:
    """Name the one or two coefficients of which a run tells most."""
    fall = np.log(before / after).mean(axis=0)
    order = np.argsort(-fall, kind="stable")
    named = [k for k in order[:2] if fall[k] > 0.5 * fall[order[0]]]
    shown = {NAMES[k]: [f"{x[:, k].mean():.2g}" for x in (before, after)] for k in named}
    names = [f"{name} ({was} to {now})" for name, (was, now) in shown.items() if was != now]
    return f"tells {' and '.join(names)}" if names else "confirms what is known"


# ---------------------------------------------------------------------- telling candidates apart


@dataclass(frozen=True, kw_only=True, eq=False)
class _Belief:
    """What is believed of the log energies of some candidates.

    The law at coefficients that are uncertain, plus a residual that kin share and that
    neighbouring configurations have in common; measured kin tell of both.
    """

    at: IntArray
    mean: FloatArray  # (T,)
    slope: FloatArray  # change with the coefficients, less what measured kin would show of it
    residual: tuple[tuple[IntArray, FloatArray], ...]  # places of kin, and their covariance
    known: FloatArray  # (T, m): weight of each measured row's residual

    @classmethod
    def of(cls, ground: _Ground, at: IntArray) -> _Belief:
        """Lay out the belief about the candidates at ``at``, shape (T,)."""
        place, spot = knob_place(ground.cases), ground.spot
        known = np.zeros((len(at), len(spot)))
        residual = []
        kin_at, kin_of = ground.kin[at], ground.kin[spot]
        order = np.argsort(kin_at, kind="stable")
        for mine in np.split(order, np.flatnonzero(np.diff(kin_at[order])) + 1):
            here = place[at[mine]]
            covariance = cls._shared(ground, here, here)
            rows = np.flatnonzero(kin_of == kin_at[mine[0]])
            if len(rows):
                there = place[spot[rows]]
                across = cls._shared(ground, here, there)
                noise = REPEAT_RATIO**2 * np.eye(len(rows))
                weight = np.linalg.solve(cls._shared(ground, there, there) + noise, across.T).T
                known[np.ix_(mine, rows)] = weight
                covariance = covariance - weight @ across.T
            residual.append((mine, covariance))
        slope = log_slopes(ground.x, ground.coefficients.theta)
        return cls(
            at=at,
            mean=np.log(ground.energy_j[at]) + known @ ground.log_ratio,
            slope=slope[at] - known @ slope[spot],
            residual=tuple(residual),
            known=known,
        )

    @staticmethod
    def _shared(ground: _Ground, a: FloatArray, b: FloatArray) -> FloatArray:
        """Prior covariance of the residuals of kin at two lists of places."""
        distance = np.abs(a[:, None] - b[None]).sum(axis=2)
        near = np.exp(-distance / fitting.REACH_DOUBLINGS)
        return np.asarray(ground.between**2 + ground.within**2 * near)

    def covariance(self, ground: _Ground) -> FloatArray:
        """Covariance of the log energies, linear in the coefficients; shape (T, T)."""
        covariance: FloatArray = self.slope @ ground.coefficients.covariance @ self.slope.T
        for mine, residual in self.residual:
            covariance[np.ix_(mine, mine)] += residual
        return covariance

    def draw(self, ground: _Ground, samples: int, rng: np.random.Generator) -> FloatArray:
        """Draw log energies jointly, shape (samples, T): the law itself, not its tangent."""
        theta = np.maximum(draw_theta(ground.coefficients, samples, rng), 0.0)
        drawn = _log_energies(ground.x[self.at], theta)
        # Each draw of the coefficients leaves residuals of its own at the measured rows.
        seen = ground.log_ratio + np.log(ground.energy_j[ground.spot])
        drawn += (seen - _log_energies(ground.x[ground.spot], theta)) @ self.known.T
        for mine, residual in self.residual:
            values, vectors = np.linalg.eigh(residual)
            root = vectors * np.sqrt(np.maximum(values, 0.0))
            drawn[:, mine] += rng.standard_normal((samples, len(mine))) @ root.T
        return drawn


def _log_energies(x: FloatArray, theta: FloatArray) -> FloatArray:
    """Log energies of n cases under each of s coefficient sets, shape (s, n)."""
    total = theta @ x.T
    for a, b in OVERLAPS:
        first, second = np.outer(theta[:, a], x[:, a]), np.outer(theta[:, b], x[:, b])
        total += np.sqrt(first * first + second * second) - first - second
    return np.log(np.maximum(total, np.finfo(np.float64).tiny))


def _contenders(ground: _Ground, theta: FloatArray) -> list[IntArray]:
    """Of each scenario, the candidates that may be its best: lowest now, or in some draw."""
    most = max(2, min(CONTENDERS, LARGEST_BELIEF // len(ground.scenarios)))
    candidates = np.concatenate(ground.scenarios)
    drawn = _log_energies(ground.x[candidates], theta)
    start = 0
    contenders = []
    for rows in ground.scenarios:
        part = drawn[:, start : start + len(rows)]
        start += len(rows)
        lowest = np.argsort(ground.energy_j[rows], kind="stable")[:most]
        measured = np.flatnonzero(np.isin(ground.done, rows))
        kept = [rows[lowest], rows[part.argmin(axis=1)]]
        if len(measured):
            kept.append(ground.done[measured[[int(np.argmin(ground.measured_j[measured]))]]])
        contenders.append(np.unique(np.concatenate(kept)))
    return contenders


def _within(contenders: list[IntArray], limit: int) -> IntArray:
    """Places of all scenarios, or evenly spaced ones with so many configurations together."""
    together = sum(len(rows) for rows in contenders)
    return np.arange(0, len(contenders), -(-together // limit))


@dataclass(frozen=True, kw_only=True)
class _Deciding:
    """A run that is to tell candidates apart."""

    place: int  # in the pool
    why: str
    gain: float


def _most_deciding(
    ground: _Ground, contenders: list[IntArray], pool: IntArray, free: BoolArray, count: int
) -> list[_Deciding]:
    """Choose runs of the pool by the knowledge gradient; those not ``free`` are made as well.

    Of a run's outcome only its spread is known beforehand; each next run is chosen with that
    taken into account and the expectation left where it is.
    """
    looked_at = _within(contenders, LARGEST_BELIEF)
    contenders = [contenders[s] for s in looked_at]
    competing = np.concatenate(contenders)
    starts = np.cumsum([0, *(len(c) for c in contenders)])[:-1]
    beside = np.linspace(0, len(pool) - 1, min(BESIDE, len(pool))).astype(np.intp)
    made = pool[~free]
    at = np.concatenate([competing, np.setdiff1d([*made, *pool[beside]], competing)])
    belief = _Belief.of(ground, at)
    covariance, mean = belief.covariance(ground), belief.mean[: len(competing)]
    left = ground.open[at]
    for known in np.flatnonzero(np.isin(at, made)):
        left[known] = False
        _condition(covariance, int(known))
    chosen = []
    for _ in range(count):
        options = np.flatnonzero(left)
        if not len(options):
            break
        gain, by_scenario = _knowledge_gradient(covariance, mean, starts, options)
        if gain.max() <= 1e-9:
            break
        best = _cheapest_of_best(gain, ground.batch_energy_j[at[options]])
        place = int(options[best])
        helped = int(np.argmax(by_scenario[:, best]))
        left[at == at[place]] = False
        in_pool = int(np.searchsorted(pool, at[place]))
        free[in_pool] = False
        stop = starts[helped] + len(contenders[helped])
        rivals = contenders[helped][np.argsort(mean[starts[helped] : stop], kind="stable")[:2]]
        chosen.append(
            _Deciding(
                place=in_pool,
                why=f"tells {' from '.join(map(ground.configuration, map(int, rivals)))} for "
                f"{ground.name(int(looked_at[helped]))}",
                gain=float(gain[best]),
            )
        )
        _condition(covariance, place)
    return chosen


def _condition(covariance: FloatArray, place: int) -> None:
    """Take one run into account, in place."""
    column = covariance[:, place].copy()
    covariance -= np.outer(column, column / (column[place] + REPEAT_RATIO**2))


def _knowledge_gradient(
    covariance: FloatArray, mean: FloatArray, starts: IntArray, options: IntArray
) -> tuple[FloatArray, FloatArray]:
    """Expected fall of the log energy of the choice by each run.

    Returns
    -------
    mean, by_scenario : ndarray, shape (options,), (scenarios, options)
    """
    spread = np.sqrt(np.maximum(covariance[options, options], 0.0) + REPEAT_RATIO**2)
    shift = covariance[: len(mean)][:, options] / spread
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    weights = weights / weights.sum()
    expected = np.zeros((len(starts), len(options)))
    for node, weight in zip(nodes, weights, strict=True):
        expected += weight * np.minimum.reduceat(mean[:, None] + node * shift, starts, axis=0)
    gain = np.maximum(np.minimum.reduceat(mean, starts)[:, None] - expected, 0.0)
    return gain.mean(axis=0), gain


def _best_linear(values: FloatArray, outcomes: FloatArray) -> FloatArray:
    """Best linear estimate of each value from the outcomes, over joint draws of both."""
    centred = outcomes - outcomes.mean(axis=0)
    weights = np.linalg.lstsq(centred, values - values.mean(axis=0), rcond=1e-10)[0]
    return np.asarray(values.mean(axis=0) + centred @ weights)
