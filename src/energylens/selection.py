"""Which configuration costs the fewest joules: enumerate, rule out, rank, say how sure.

:func:`select` asks a predictor about every configuration of a scenario that the free knobs
span and the GPUs' memory allows, measured or not. It sees the predictor through the seam alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import nan
from typing import Any

import numpy as np

from energylens.capacity import (
    as_run,
    format_problem,
    kept_running,
    laid_out,
    layout_problem,
    memory,
    room,
)
from energylens.cases import Cases, FloatArray, IntArray
from energylens.dataset import group_rows
from energylens.errors import InfeasibleError, InputError, UsageError
from energylens.protocols import IntervalPredictor, Predictor
from energylens.records import DEFAULT_CHOOSE, Case, Configuration, held_down_problem
from energylens.scenarios import Candidates, Limit, Scenario, enumerate_configurations
from energylens.viewing import Shown, picked

# Intervals and joint draws are taken of the best this many by predicted joules; a configuration
# ranked below them has practically no chance to be the best, and is given none.
SAMPLED = 256
SAMPLES = 1000


# --------------------------------------------------------------------------------- the answer


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """One feasible configuration. ``None`` where the predictor cannot say, or was not asked.

    ``configuration.mean_batch_size`` is set where the batch limit exceeds the memory: so many
    sequences run at once, and the others wait.
    """

    rank: int
    configuration: Configuration
    gpu: str
    precision: str
    energy_per_request_j: float
    energy_per_output_token_j: float
    energy_per_total_token_j: float
    lower_j: float | None
    upper_j: float | None
    probability_best_ratio: float | None

    def to_json(self) -> dict[str, Any]:
        """Names and values."""
        return {
            "rank": self.rank,
            **_configuration_json(self.configuration, self.gpu, self.precision),
            "energy_per_request_j": self.energy_per_request_j,
            "energy_per_output_token_j": self.energy_per_output_token_j,
            "energy_per_total_token_j": self.energy_per_total_token_j,
            "running_batch_size": self.configuration.mean_batch_size,
            **picked(self, "lower_j upper_j probability_best_ratio"),
        }


@dataclass(frozen=True, kw_only=True)
class Infeasible:
    """One configuration that was ruled out, and why: ``cause`` in a word, ``reason`` in full."""

    configuration: Configuration
    gpu: str
    precision: str
    cause: str
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Names and values."""
        return {
            **_configuration_json(self.configuration, self.gpu, self.precision),
            "cause": self.cause,
            "reason": self.reason,
        }


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Ranking(Shown):
    """Feasible configurations from the fewest predicted joules up, and those ruled out.

    ``lower_j``, ``upper_j`` (an interval of ``coverage_ratio``) and ``probability_best_ratio``
    have one value for each of the first ``min(n, 256)`` of the n feasible cases, or none if the
    predictor gives no intervals. ``expected_regret_ratio`` is what choosing the first is
    expected to cost over the true best, under the same joint draws. Configurations with equal
    joules stand from the fewest GPUs up, and of those the largest batch limit first.
    """

    scenario: Scenario
    choose: tuple[str, ...]
    cases: Cases
    energy_per_request_j: FloatArray
    lower_j: FloatArray
    upper_j: FloatArray
    probability_best_ratio: FloatArray
    coverage_ratio: float
    seed: int
    expected_regret_ratio: float | None
    reference: Configuration | None
    reference_energy_per_request_j: float | None
    ruled_out: Cases
    ruled_out_because: IntArray
    causes: tuple[str, ...]
    limits: tuple[Limit, ...] = field(repr=False)
    caution: str = ""  # what the predictor says of the rows that it rests on
    known: tuple[str, ...] = ()  # where the best lies outside those rows, and the like

    def __len__(self) -> int:
        return len(self.cases)

    @property
    def best(self) -> Ranked:
        """The configuration with the fewest predicted joules."""
        return self.entries(1)[0]

    @property
    def saving_against_worst_ratio(self) -> float | None:
        """Share of the joules of the worst feasible configuration that the best saves."""
        return _saving_ratio(self.energy_per_request_j[0], self.energy_per_request_j[-1])

    @property
    def saving_against_reference_ratio(self) -> float | None:
        """Share of the joules of the reference configuration that the best saves."""
        if self.reference_energy_per_request_j is None:
            return None
        return _saving_ratio(self.energy_per_request_j[0], self.reference_energy_per_request_j)

    def describe(self) -> str:
        """Name what was asked: the scenario, and what was free in it."""
        return self.scenario.describe(self.cases.gpus, self.cases.precisions)

    def entries(self, count: int | None = None) -> tuple[Ranked, ...]:
        """Return the first ``count`` configurations, or all."""
        stop = len(self) if count is None else min(count, len(self))
        return tuple(self._entry(i) for i in range(stop))

    def served(self, count: int | None = None) -> tuple[Ranked, ...]:
        """Return the first ``count`` ways of serving, or all.

        Batch limits beyond what memory holds serve alike: of those the largest stands for all,
        with the probability that one of them is best.
        """
        merged: dict[tuple[object, ...], Ranked] = {}
        for entry in self.entries():
            c = entry.configuration
            waits = c.mean_batch_size is not None
            alike = replace(c, batch_size=1.0, mean_batch_size=None) if waits else c
            way = (waits, alike, entry.gpu, entry.precision)
            first = merged.get(way)
            if first is None:
                if len(merged) == count:
                    break
                merged[way] = entry
            elif first.probability_best_ratio is not None:
                more = entry.probability_best_ratio or 0.0
                merged[way] = replace(
                    first, probability_best_ratio=first.probability_best_ratio + more
                )
        return tuple(merged.values())

    def _entry(self, i: int) -> Ranked:
        case, joules = self.cases.case(i), float(self.energy_per_request_j[i])

        def known(values: FloatArray) -> float | None:
            return float(values[i]) if i < len(values) and np.isfinite(values[i]) else None

        return Ranked(
            rank=i + 1,
            configuration=case.configuration,
            gpu=case.gpu.id,
            precision=case.precision.id,
            energy_per_request_j=joules,
            energy_per_output_token_j=joules / case.workload.output_tokens,
            energy_per_total_token_j=joules
            / (case.workload.input_tokens + case.workload.output_tokens),
            lower_j=known(self.lower_j),
            upper_j=known(self.upper_j),
            probability_best_ratio=known(self.probability_best_ratio),
        )

    def infeasible(self, count: int | None = None) -> tuple[Infeasible, ...]:
        """Return the first ``count`` configurations that were ruled out, or all."""
        stop = len(self.ruled_out) if count is None else min(count, len(self.ruled_out))
        return tuple(
            _infeasible(self.ruled_out, i, int(self.ruled_out_because[i]), self.causes, self.limits)
            for i in range(stop)
        )

    def infeasible_counts(self) -> dict[str, int]:
        """Configurations ruled out by cause, most frequent first."""
        counts = np.bincount(self.ruled_out_because, minlength=len(self.causes))
        order = np.argsort(-counts, kind="stable")
        return {self.causes[i]: int(counts[i]) for i in order if counts[i]}

    @property
    def notes(self) -> tuple[str, ...]:
        """What must be known to read the ranking, in sentences."""
        notes = []
        if "batch_size" in self.choose:
            limit = self.cases.batch_size
            tried = np.concatenate([limit, self.ruled_out.batch_size])
            if limit[0] == tried.max() and np.isnan(self.cases.mean_batch_size[0]):
                notes.append(
                    f"The best batch limit is the largest that was tried, {limit[0]:g}: larger "
                    "ones may take fewer joules still (--batch-sizes)."
                )
        if not np.isnan(self.cases.mean_batch_size).all():
            notes.append(
                "A batch size is a limit: beyond what memory holds, as many sequences run as it "
                "holds, and a larger limit only lengthens the queue."
            )
        return (*self.known, *notes)

    def to_json(self, listed: int = 100) -> dict[str, Any]:
        """One document with the first ``listed`` configurations of either kind."""
        return {
            "scenario": self.describe(),
            "llm": self.scenario.llm.id,
            "input_tokens": self.scenario.workload.input_tokens,
            "output_tokens": self.scenario.workload.output_tokens,
            "choose": list(self.choose),
            "boundary": str(self.scenario.boundary),
            "node_gpus": self.scenario.node_gpus,
            "max_gpus": self.scenario.max_gpus,
            "seed": self.seed,
            "coverage_ratio": self.coverage_ratio,
            "feasible": len(self),
            "ranking": [entry.to_json() for entry in self.entries(listed)],
            "saving_against_worst_ratio": self.saving_against_worst_ratio,
            "reference": None if self.reference is None else self.reference.describe(),
            "reference_energy_per_request_j": self.reference_energy_per_request_j,
            "saving_against_reference_ratio": self.saving_against_reference_ratio,
            "expected_regret_ratio": self.expected_regret_ratio,
            "infeasible": len(self.ruled_out),
            "infeasible_counts": self.infeasible_counts(),
            "infeasible_listed": [entry.to_json() for entry in self.infeasible(listed)],
            "notes": list(self.notes),
        }


def _saving_ratio(energy_j: float, against_j: float) -> float | None:
    """Undefined where a score stands in for joules and is not positive."""
    return 1.0 - float(energy_j / against_j) if energy_j > 0 and against_j > 0 else None


def _configuration_json(configuration: Configuration, gpu: str, precision: str) -> dict[str, Any]:
    held = {"power_cap_w": configuration.power_cap_w, "clock_mhz": configuration.clock_mhz}
    return {
        "configuration": configuration.describe(),
        "gpu": gpu,
        "precision": precision,
        "gpus": configuration.gpus,
        **configuration.degrees,
        "batch_size": configuration.batch_size,
        **{name: value for name, value in held.items() if value is not None},
    }


# ------------------------------------------------------------------------------------ selection

# Why a configuration is ruled out, by number; after the limits comes having no prediction.
_LAYOUT, _MEMORY, _HELD, _FIRST_LIMIT = 0, 1, 2, 3


def select(
    predictor: Predictor,
    scenario: Scenario,
    *,
    choose: Sequence[str] = DEFAULT_CHOOSE,
    candidates: Candidates | None = None,
    limits: Sequence[Limit] = (),
    queueing: bool = True,
    reference: Configuration | None = None,
    coverage_ratio: float = 0.8,
    seed: int = 0,
) -> Ranking:
    """Rank the feasible configurations of a scenario by predicted joules per request.

    A configuration is feasible if the LLM can be laid out so, memory allows it, the GPU can have
    the power cap, and no limit is broken. An engine runs as many sequences as its cache has room
    for and lets the others wait; so of the batch limits beyond that the smallest is kept, with
    the batch that really runs, and the larger ones are ruled out: they would only lengthen the
    queue.

    Parameters
    ----------
    predictor : Predictor
        What predicts joules; intervals and probabilities come with an ``IntervalPredictor``.
    scenario : Scenario
        What is served, and the knobs that are not free.
    choose : sequence of str
        The free knobs, names from :data:`energylens.dataset.KNOBS`.
    candidates : Candidates, optional
        Values of the free knobs.
    limits : sequence of Limit
        Further conditions, checked in this order on what memory allows.
    queueing : bool
        Whether the engine lets sequences wait. If not, every batch that is not in memory as a
        whole is ruled out.
    reference : Configuration, optional
        What to state the saving against, on the scenario's own GPU and precision.
    coverage_ratio : float
        Nominal coverage of the intervals.
    seed : int
        Source of the joint draws.

    Raises
    ------
    UsageError
        If the free knobs span nothing.
    InfeasibleError
        If no configuration is feasible; the message carries the most common reason.
    """
    if not 0 < coverage_ratio < 1:
        raise UsageError(f"coverage_ratio must lie between 0 and 1; given {coverage_ratio}")
    # What only some values of a free knob have been seen to do must not decide between them.
    if (choosing := getattr(predictor, "choosing", None)) is not None:
        predictor = choosing(choose)
    every = enumerate_configurations(scenario, choose=choose, candidates=candidates)
    if len(every) == 0:
        raise InfeasibleError(
            f"no configuration of {scenario.describe()} is left to rank: the degrees of "
            "parallelism and batch sizes given allow none within that many GPUs; allow more "
            "GPUs, or smaller degrees"
        )
    held = "clock" if every.clocked.any() else "power cap"
    causes = ("layout", "memory", held, *(limit.name for limit in limits), "no prediction")
    every, because = _rule_out(every, limits, queueing)
    left = np.flatnonzero(because < 0)
    asked = every.take(left)
    energy = np.asarray(predictor.predict_energy_j(asked), dtype=np.float64)
    if energy.shape != left.shape:
        raise InputError(
            f"a predictor must give one number for each of {len(left)} cases; it gave "
            f"shape {energy.shape}"
        )
    answered = np.isfinite(energy)
    because[left[~answered]] = len(causes) - 1
    left, energy = left[answered], energy[answered]
    if len(left) == 0:
        raise _nothing_feasible(scenario, every, because, causes, limits)
    order = np.lexsort((-every.batch_size[left], every.occupied_gpus[left], energy))
    ranked, energy = every.take(left[order]), energy[order]

    lower = upper = probability = np.empty(0)
    expected_regret = None
    if isinstance(predictor, IntervalPredictor):
        top = ranked.take(slice(0, SAMPLED))
        if len(top) == len(asked):  # the very table that was predicted: models remember it
            ends = predictor.interval_energy_j(asked, coverage_ratio)
            lower, upper = (end[order] for end in ends)
        else:
            lower, upper = predictor.interval_energy_j(top, coverage_ratio)
        draws = predictor.sample_energy_j(top, SAMPLES, seed)
        draws = np.where(np.isfinite(draws), draws, np.inf)
        lowest, probability = draws.min(axis=1), probabilities_of_best(draws)
        if np.isfinite(draws[:, 0]).all() and (lowest > 0).all():
            expected_regret = float(np.mean(draws[:, 0] / lowest - 1.0))
    ruled_out = np.flatnonzero(because >= 0)
    return Ranking(
        scenario=scenario,
        choose=tuple(choose),
        cases=ranked,
        energy_per_request_j=energy,
        lower_j=lower,
        upper_j=upper,
        probability_best_ratio=probability,
        coverage_ratio=coverage_ratio,
        seed=seed,
        expected_regret_ratio=expected_regret,
        reference=reference,
        reference_energy_per_request_j=_reference_energy_j(predictor, scenario, reference),
        ruled_out=every.take(ruled_out),
        ruled_out_because=because[ruled_out],
        causes=causes,
        limits=tuple(limits),
        caution=str(getattr(predictor, "caution", "")),
    )


def probabilities_of_best(draws: FloatArray) -> FloatArray:
    """How often each is lowest in joint draws of shape (samples, n); equals share. Shape (n,)."""
    wins = draws <= draws.min(axis=1, keepdims=True)
    shares: FloatArray = (wins / wins.sum(axis=1, keepdims=True)).mean(axis=0)
    return shares


def _rule_out(cases: Cases, limits: Sequence[Limit], queueing: bool) -> tuple[Cases, IntArray]:
    """Cases with the batch that runs, and the cause that rules each out or -1; shape (n,)."""
    because = np.full(len(cases), -1, dtype=np.intp)
    held = room(cases)
    exceeds = cases.batch_size > held
    waiting = exceeds & (held > 0) & queueing
    because[exceeds & ~waiting] = _MEMORY
    cases = cases.replace(
        mean_batch_size=np.where(waiting, kept_running(cases.batch_size, held), np.nan)
    )
    because[~laid_out(cases)] = _LAYOUT
    if (cases.capped | cases.clocked).any():
        kind = group_rows([cases.gpu_index, cases.power_cap_w, cases.clock_mhz])
        for row in np.unique(kind, return_index=True)[1]:
            gpu = cases.gpus[cases.gpu_index[row]]
            if held_down_problem(gpu, cases.power_cap_w[row], cases.clock_mhz[row]):
                because[kind == kind[row]] = _HELD
    for number, limit in enumerate(limits, start=_FIRST_LIMIT):
        left = np.flatnonzero(because < 0)
        because[left[limit.broken(cases.take(left))]] = number
    return cases, because


def _infeasible(
    cases: Cases, row: int, cause: int, causes: Sequence[str], limits: Sequence[Limit]
) -> Infeasible:
    """Describe a case that was ruled out."""
    if cause != _HELD:
        case = cases.case(row)
        configuration, reason = case.configuration, _reason(case, cause, limits)
    else:
        # No case can have such a cap or clock.
        cap, clock = float(cases.power_cap_w[row]), float(cases.clock_mhz[row])
        case = cases.replace(power_cap_w=nan, clock_mhz=nan).case(row)
        c = case.configuration
        configuration = replace(
            c, power_cap_w=None if cap != cap else cap, clock_mhz=None if clock != clock else clock
        )
        reason = held_down_problem(case.gpu, cap, clock) or ""
    return Infeasible(
        configuration=configuration,
        gpu=case.gpu.id,
        precision=case.precision.id,
        cause=causes[cause],
        reason=reason,
    )


def _reason(case: Case, cause: int, limits: Sequence[Limit]) -> str:
    """Say in words why a case was ruled out."""
    c = case.configuration
    if cause == _LAYOUT:
        problem = layout_problem(case.llm, case.precision, **c.degrees)
        return problem or "the LLM cannot be laid out so"
    if cause == _MEMORY:
        return memory(case).reason or "the batch does not fit in memory"
    if cause < _FIRST_LIMIT + len(limits):
        return limits[cause - _FIRST_LIMIT].reason(case)
    return "the energy model has no prediction for it"


def _nothing_feasible(
    scenario: Scenario,
    cases: Cases,
    because: IntArray,
    causes: Sequence[str],
    limits: Sequence[Limit],
) -> InfeasibleError:
    counts = np.bincount(because)
    cause = int(counts.argmax())
    rows = np.flatnonzero(because == cause)
    # The one that comes closest: the most GPUs, and of those the smallest batch.
    closest = rows[np.lexsort((cases.batch_size[rows], -cases.occupied_gpus[rows]))[0]]
    item = _infeasible(cases, int(closest), cause, causes, limits)
    if format_problem(scenario.gpu, scenario.precision) == item.reason:
        return InfeasibleError(
            f"no configuration of {scenario.describe()} is feasible: {item.reason}."
        )
    return InfeasibleError(
        f"no configuration of {scenario.describe()} is feasible; {counts[cause]} of {len(cases)} "
        f"fail on {causes[cause]}, as {item.configuration.describe()} does: "
        f"{item.reason}. Allow more GPUs, a narrower precision or a smaller "
        "batch, or relax a limit."
    )


def _reference_energy_j(
    predictor: Predictor, scenario: Scenario, reference: Configuration | None
) -> float | None:
    if reference is None:
        return None
    case = Case(
        llm=scenario.llm,
        gpu=scenario.gpu,
        precision=scenario.precision,
        workload=scenario.workload,
        configuration=reference,
        boundary=scenario.boundary,
        node_gpus=scenario.node_gpus,
        engine=scenario.engine,
    )
    energy = float(predictor.predict_energy_j(Cases.of([as_run(case)]))[0])
    return energy if np.isfinite(energy) else None
