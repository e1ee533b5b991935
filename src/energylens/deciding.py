"""The fewest joules within latency limits, at a rate: enumerate, solve, judge the odds, rank.

Every configuration that the knobs span is put under the load (``service.py``). The odds that it
meets its limits come from how far the time law was off on rows left out: all seconds of a
deployment are taken longer or shorter by one factor at a time, the queue is solved anew (a slower
engine is also a fuller one), and what the closed form of the queue itself is off by is added.
Of the configurations likely enough to meet, the one with the fewest joules a request is best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from energylens import latency, service
from energylens.capacity import layout_possible, layout_problem
from energylens.cases import BoolArray, Cases, FloatArray, IntArray
from energylens.decisions import (
    NAMES,
    Decision,
    Entry,
    LatencyLimit,
    Load,
    Shadow,
    seconds,
)
from energylens.errors import InfeasibleError, UsageError
from energylens.latency import Steps, TimeModel
from energylens.model import EnergyModel
from energylens.records import Case, Configuration
from energylens.selection import Candidates, Scenario, enumerate_configurations
from energylens.service import JouleSteps, Service

DEFAULT_CHOOSE = ("tensor_parallel", "pipeline_parallel", "data_parallel", "batch_size")
#: Batch limits of one replica, four to a doubling.
BATCH_LIMITS: tuple[float, ...] = tuple(sorted({float(round(2.0 ** (k / 4))) for k in range(41)}))
MEET = 0.9  # probability with which limits must be met, unless said
FACTORS = 9  # quantiles of the time law's error that stand for it
SOLVED_AT_ONCE = 2_000  # configurations whose odds are worked out; the best by joules, of more
ALIKE_RATIO = 1e-3  # joules so close are the same: the larger batch limit is the safer one
RELAXED_RATIOS = (1.1, 1.2, 1.5, 2.0, 3.0)  # by which a limit is relaxed to say what it costs
WORTH_RATIO = 0.01  # joules that a relaxed limit must save to be worth a word
NEEDLESS_FACTOR = 3.0  # configurations over a limit by more are not looked at again
RATES = 32  # at which the largest sustainable rate is looked for at once
RATE_RATIO = 1.005  # how close it is found


@dataclass(frozen=True, eq=False)
class _Slower:
    """Steps that take longer by a factor of each case."""

    steps: Steps
    factor: FloatArray

    def step_s(self, running: FloatArray) -> FloatArray:
        return self.factor * self.steps.step_s(running)

    def prompts_s(self, tokens: FloatArray, running: FloatArray) -> FloatArray:
        return self.factor * self.steps.prompts_s(tokens, running)


# --------------------------------------------------------------------------------- candidates


def candidates_under_load(
    scenario: Scenario,
    load: Load,
    *,
    choose: Sequence[str] = DEFAULT_CHOOSE,
    candidates: Candidates | None = None,
    batch_limits: Sequence[float] = BATCH_LIMITS,
) -> tuple[Cases, int]:
    """List the configurations that can run, and count those that cannot.

    Batch limits are those of one replica; where the memory holds fewer sequences, what it holds.

    Parameters
    ----------
    scenario : Scenario
    load : Load
    choose : sequence of str
        The free knobs.
    candidates : Candidates, optional
        Values of the free knobs besides the batch limit.
    batch_limits : sequence of float
    """
    free = [name for name in choose if name != "batch_size"]
    wide = replace(scenario, configuration=replace(scenario.configuration, batch_size=float(2**20)))
    layouts = (
        enumerate_configurations(wide, choose=free, candidates=candidates)
        if free
        else Cases.of([case_of(wide)])
    )
    possible = np.zeros(len(layouts), dtype=np.bool_)
    for i, llm in enumerate(layouts.llms):
        rows = np.flatnonzero(layouts.llm_index == i)
        possible[rows] = layout_possible(
            llm,
            tensor_parallel=layouts.tensor_parallel[rows],
            pipeline_parallel=layouts.pipeline_parallel[rows],
            expert_parallel=layouts.expert_parallel[rows],
            data_parallel=layouts.data_parallel[rows],
        )
    room = service.slots(layouts, load.lengths)
    fits = possible & (room >= 1.0)
    ruled_out = int((~fits).sum())
    layouts, room = layouts.take(fits), room[fits]
    if "batch_size" in choose:
        limits = np.unique(np.asarray(batch_limits, dtype=np.float64))
    else:
        limits = np.array([max(scenario.configuration.batch_size, 1.0)])
    layout, limit = (
        grid.reshape(-1) for grid in np.meshgrid(np.arange(len(layouts)), limits, indexing="ij")
    )
    held = np.minimum(limit, room[layout])
    if "batch_size" not in choose:
        held = np.minimum(held / layouts.data_parallel[layout], room[layout])
        held = np.maximum(held, 1.0)
    _, first = np.unique(np.column_stack([layout, held]), axis=0, return_index=True)
    layout, held = layout[first], held[first]
    cases = layouts.take(layout)
    return cases.replace(batch_size=held * cases.data_parallel), ruled_out


def case_of(scenario: Scenario, configuration: Configuration | None = None) -> Case:
    """Make a case of a scenario, with another configuration where one is given."""
    return Case(
        llm=scenario.llm,
        gpu=scenario.gpu,
        precision=scenario.precision,
        workload=scenario.workload,
        configuration=configuration or scenario.configuration,
        boundary=scenario.boundary,
        node_gpus=scenario.node_gpus,
        engine=scenario.engine,
    )


# ------------------------------------------------------------------------------- the engine


@dataclass(frozen=True, kw_only=True, eq=False)
class Solved:
    """Cases under the load: their states, and those at each factor of the time law's error."""

    cases: Cases
    state: Service
    values: FloatArray  # (limits, factors, n)
    energy_j: FloatArray
    power_w: FloatArray
    certain: bool  # whether the values are those of all factors, or of the mean alone

    @cached_property
    def layout(self) -> IntArray:
        """Which layout each case has, batch limits apart; shape (n,)."""
        return _layout(self.cases)

    def take(self, rows: IntArray) -> Solved:
        """Some of the cases."""
        return replace(
            self,
            cases=self.cases.take(rows),
            state=self.state.take(rows),
            values=self.values[:, :, rows],
            energy_j=self.energy_j[rows],
            power_w=self.power_w[rows],
        )

    def meets(self, limits: Sequence[LatencyLimit], meet: float) -> BoolArray:
        """Whether each case is likely enough to meet all limits, or does by its means."""
        odds = self.probabilities(limits)[0]
        if not self.certain:
            odds, meet = np.ones(len(self.cases)), 0.5
            for limit, value in zip(limits, self.values[:, 0], strict=True):
                odds = odds * (value <= limit.seconds)
        likely: BoolArray = (odds >= meet) & ~self.state.saturated
        return likely

    def probabilities(self, limits: Sequence[LatencyLimit]) -> tuple[FloatArray, FloatArray]:
        """Probability of meeting all limits (n,), and each alone (limits, n)."""
        from scipy.special import ndtr

        if not limits:
            sure = (~self.state.saturated).astype(np.float64)
            return sure, np.zeros((0, len(self.cases)))
        each = np.stack(
            [
                ndtr(
                    (np.log(limit.seconds) - np.log(np.maximum(value, 1e-300))) / limit.queue_error
                )
                for limit, value in zip(limits, self.values, strict=True)
            ]
        )
        return each.min(axis=0).mean(axis=0), each.mean(axis=1)


class Engine:
    """Answers questions about one LLM's load from an energy and a time model.

    Parameters
    ----------
    energy : EnergyModel
        Its ``time`` says how long things take; without one the datasheet does.
    factor : float
        By which measured times of this deployment were longer than predicted (``verify``).
    energy_factor : float
        The same of joules.
    """

    def __init__(
        self, energy: EnergyModel, *, factor: float = 1.0, energy_factor: float = 1.0
    ) -> None:
        self.energy = energy
        self.time: TimeModel = energy.time or latency.from_datasheet()
        self.factor, self.energy_factor = factor, energy_factor
        self.certain = 1.0  # share of the time law's spread that is left once it was corrected

    def solve(
        self,
        cases: Cases,
        load: Load,
        limits: Sequence[LatencyLimit],
        *,
        odds: bool = True,
        rates_per_s: FloatArray | None = None,
    ) -> Solved:
        """Put n cases under the load, or each under a rate of its own."""
        lengths = load.computed
        steps = self.time.without_factors().steps(cases, load.lengths.output_cv)
        joules = JouleSteps.of(self.energy, cases, load.lengths)
        held = np.maximum(service.slots(cases, load.lengths), 1.0)
        offered = np.asarray(load.rate_per_s) if rates_per_s is None else rates_per_s
        rate = offered / cases.data_parallel

        def at(factor: FloatArray) -> Service:
            return service.steady_state(
                _Slower(steps, self.factor * factor), rate_per_s=rate, lengths=lengths, slots=held
            )

        one = np.ones(len(cases))
        state = service.steady_state(
            _Slower(steps, self.factor * one),
            rate_per_s=rate,
            lengths=lengths,
            slots=held,
            joules=joules,
        )
        power = service.node_power_w(cases, state.power_w) * self.energy_factor
        served = np.minimum(offered, state.saturation_rate_per_s * cases.data_parallel)
        values = np.empty((len(limits), FACTORS if odds else 1, len(cases)))
        if limits and odds:
            law = self.time.without_factors()
            running = np.maximum(state.mean_batch_size, 1.0) * cases.data_parallel
            as_run = cases.replace(mean_batch_size=running)
            for k in range(FACTORS):
                logs = law.logs(as_run, (k + 0.5) / FACTORS, "tpot") * self.certain
                changed = at(np.exp(logs))
                for i, limit in enumerate(limits):
                    # Where the queue grows without end no limit is met for long.
                    values[i, k] = np.where(changed.saturated, np.inf, limit.value(changed))
        else:
            for i, limit in enumerate(limits):
                values[i, 0] = limit.value(state)
        return Solved(
            cases=cases,
            state=state,
            values=values,
            energy_j=power / served,
            power_w=power,
            certain=odds,
        )

    def entries(
        self,
        solved: Solved,
        rows: IntArray,
        limits: Sequence[LatencyLimit],
        current_j: float | None = None,
    ) -> tuple[Entry, ...]:
        """Make entries of some rows."""
        if not len(rows):
            return ()
        odds, each = solved.probabilities(limits)
        if not solved.certain:
            odds, each = np.full_like(odds, np.nan), np.full_like(each, np.nan)
        state, cases = solved.state, solved.cases.take(rows)
        mean = state.mean_batch_size[rows]
        running = np.maximum(mean, 1.0) * cases.data_parallel
        full = cases.replace(mean_batch_size=running)
        low, high = self.energy.interval_energy_j(full, 0.8)
        middle = self.energy.predict_energy_j(full)
        made = []
        for i, row in enumerate(rows):
            joules = float(solved.energy_j[row])
            case = cases.case(i)
            made.append(
                Entry(
                    configuration=case.configuration,
                    gpu=case.gpu.id,
                    precision=case.precision.id,
                    batch_limit=case.configuration.batch_size / case.configuration.data_parallel,
                    mean_batch_size=float(mean[i]),
                    energy_per_request_j=joules,
                    lower_j=joules * float(low[i] / middle[i]),
                    upper_j=joules * float(high[i] / middle[i]),
                    power_w=float(solved.power_w[row]),
                    utilisation_ratio=float(state.utilisation_ratio[row]),
                    saturation_rate_per_s=float(
                        state.saturation_rate_per_s[row] * case.configuration.data_parallel
                    ),
                    tpot_s=float(state.tpot_s[row]),
                    ttft_s=float(state.ttft_s[row]),
                    request_latency_s=float(state.request_latency_s[row]),
                    values_s=tuple(float(limit.value(state)[row]) for limit in limits),
                    probability_of_meeting_ratio=float(odds[row]),
                    probabilities=tuple(map(float, each[:, row])),
                    saving_ratio=None if current_j is None else 1.0 - joules / current_j,
                    row=int(row),
                )
            )
        return tuple(made)


def decide(
    engine: Engine,
    scenario: Scenario,
    load: Load,
    limits: Sequence[LatencyLimit] = (),
    *,
    meet: float = MEET,
    choose: Sequence[str] = DEFAULT_CHOOSE,
    candidates: Candidates | None = None,
    batch_limits: Sequence[float] = BATCH_LIMITS,
    cases: Cases | None = None,
    current: Configuration | None = None,
    front: bool = False,
    odds: bool = True,
) -> Decision:
    """Find the configuration with the fewest joules a request that meets the limits.

    Parameters
    ----------
    engine : Engine
    scenario : Scenario
        What is served, and the knobs that are not free.
    load : Load
    limits : sequence of LatencyLimit
    meet : float
        Probability with which all limits together must be met.
    choose : sequence of str
        The free knobs.
    candidates : Candidates, optional
        Values of the free knobs besides the batch limit.
    batch_limits : sequence of float
        Values of the batch limit of one replica.
    cases : Cases, optional
        The configurations, in place of what the knobs span.
    current : Configuration, optional
        What runs today: savings are against it.
    front : bool
        Whether to list the energy-latency front.
    odds : bool
        Without, what meets its limits by its means counts as meeting them: a tenth of the work.

    Raises
    ------
    UsageError
        If ``meet`` is no probability.
    InfeasibleError
        If no configuration fits in memory.
    """
    if not 0.0 < meet < 1.0:
        raise UsageError(f"the probability of meeting must lie between 0 and 1, not {meet!r}")
    workload = scenario.workload
    if not np.isclose(workload.input_tokens, load.lengths.input_tokens):
        raise UsageError(
            f"the prompts of the load ({load.lengths.input_tokens:g} tokens) must be those of the "
            f"scenario ({workload.input_tokens:g}), images and frames included"
        )
    limits = tuple(limits)
    ruled_out = 0
    if cases is None:
        cases, ruled_out = candidates_under_load(
            scenario, load, choose=choose, candidates=candidates, batch_limits=batch_limits
        )
    if not len(cases):
        # What not even one GPU can lay out, memory aside, no layout can.
        if (refused := layout_problem(scenario.llm, scenario.precision)) is not None:
            raise InfeasibleError(f"{scenario.describe()}: {refused}.")
        raise InfeasibleError(
            f"{scenario.describe()}: no configuration has room in memory for one request. Allow "
            "more GPUs, or weights in fewer bits."
        )
    considered = len(cases)
    if odds and len(cases) > SOLVED_AT_ONCE:
        cases = _promising(engine, cases, load, limits)
    asked = cases if current is None else _with_today(cases, scenario, load, current)
    solved = together = engine.solve(asked, load, limits, odds=odds)
    current_j = None
    if current is not None:
        current_j = float(together.energy_j[-1])
        solved = together.take(np.arange(len(cases), dtype=np.intp))
    likely, _ = solved.probabilities(limits)
    meets = solved.meets(limits, meet)
    order = _ranked(solved, meets)
    hopeless = ~np.isin(solved.layout, solved.layout[meets])
    near = _of_layouts(solved, np.lexsort((solved.energy_j, -likely)), hopeless)[:5]
    best = _front(solved) if front else np.zeros(0, dtype=np.intp)
    last = np.arange(len(cases), len(asked), dtype=np.intp)
    rows = np.concatenate([order, near, best, last])
    made = engine.entries(together, rows, limits, current_j)
    entries, rest = made[: len(order)], made[len(order) :]
    today = None if current is None else replace(made[-1], row=-1, saving_ratio=None)
    fewest = None
    if len(order):
        gpus = solved.cases.occupied_gpus[order]
        fewest = entries[int(np.argmin(gpus))]
    shadows = _shadows(engine, solved, limits, meet, entries) if odds else ()
    return Decision(
        scenario=scenario,
        load=load,
        limits=limits,
        meet=meet,
        entries=entries,
        missed=rest[: len(near)],
        current=today,
        fewest_gpus=fewest,
        shadows=shadows,
        breaks_at_per_s=(
            breaks_at(engine, solved.cases.take(order[:1]), load, limits, meet)
            if len(order) and odds
            else None
        ),
        front=rest[len(near) : len(near) + len(best)],
        considered=considered,
        ruled_out=ruled_out,
        certain=odds,
        solved=solved,
    )


def _promising(engine: Engine, cases: Cases, load: Load, limits: Sequence[LatencyLimit]) -> Cases:
    """Keep those of very many cases that do not miss a limit by far, fewest joules first."""
    solved = engine.solve(cases, load, limits, odds=False)
    near = ~solved.state.saturated
    for limit, value in zip(limits, solved.values[:, 0], strict=True):
        near &= value <= NEEDLESS_FACTOR * limit.seconds
    rows = np.flatnonzero(near)
    rows = rows[np.argsort(solved.energy_j[rows], kind="stable")][:SOLVED_AT_ONCE]
    return cases.take(rows if len(rows) else np.argsort(solved.state.tpot_s)[:SOLVED_AT_ONCE])


def _layout(cases: Cases) -> IntArray:
    from energylens.dataset import group_rows

    return group_rows(
        [
            cases.gpu_index, cases.precision_index, cases.tensor_parallel,
            cases.pipeline_parallel, cases.expert_parallel, cases.data_parallel,
            cases.power_cap_w,
        ]
    )  # fmt: skip


def _of_layouts(solved: Solved, order: IntArray, among: BoolArray) -> IntArray:
    """Keep the first row of each layout, in order."""
    rows = order[among[order]]
    _, first = np.unique(solved.layout[rows], return_index=True)
    return rows[np.sort(first)]


def _ranked(solved: Solved, meets: BoolArray) -> IntArray:
    """Best row of each layout, fewest joules first; of joules alike the larger batch limit."""
    joules, cases, layout = solved.energy_j, solved.cases, solved.layout
    least = np.full(int(layout.max()) + 1, np.inf)
    np.minimum.at(least, layout[meets], joules[meets])
    alike = meets & (joules <= least[layout] * (1.0 + ALIKE_RATIO))
    order = np.lexsort((-cases.batch_size, cases.occupied_gpus, least[layout]))
    return _of_layouts(solved, order, alike)


def _with_today(cases: Cases, scenario: Scenario, load: Load, current: Configuration) -> Cases:
    """Put what runs today behind the candidates, to be solved with them."""
    today = Cases.of([case_of(scenario, current)])
    if service.slots(today, load.lengths)[0] < 1:
        raise InfeasibleError(
            f"the current configuration {current.describe()} has no room in memory for one "
            f"request of {scenario.llm.id}: check what runs today"
        )
    return Cases.concatenate([cases, today])


def _shadows(
    engine: Engine,
    solved: Solved,
    limits: tuple[LatencyLimit, ...],
    meet: float,
    entries: Sequence[Entry],
) -> tuple[Shadow, ...]:
    """The least that each limit must be relaxed by to save something, up to three times."""
    if not entries:
        return ()
    shadows = []
    for i, limit in enumerate(limits):
        for ratio in RELAXED_RATIOS:
            relaxed = replace(limit, seconds=limit.seconds * ratio)
            changed = (*limits[:i], relaxed, *limits[i + 1 :])
            odds, _ = solved.probabilities(changed)
            order = _ranked(solved, (odds >= meet) & ~solved.state.saturated)
            saved = 1.0 - float(solved.energy_j[order[0]]) / entries[0].energy_per_request_j
            if saved >= WORTH_RATIO or ratio == RELAXED_RATIOS[-1]:
                then = engine.entries(solved, order[:1], changed)[0]
                shadows.append(
                    Shadow(
                        limit=limit,
                        relaxed_s=relaxed.seconds,
                        saving_ratio=max(saved, 0.0),
                        configuration=then.describe(),
                    )
                )
                break
    return tuple(shadows)


def breaks_at(
    engine: Engine, case: Cases, load: Load, limits: Sequence[LatencyLimit], meet: float
) -> float | None:
    """Find the largest rate at which one case meets the limits."""
    low = load.rate_per_s
    state = engine.solve(case, load, (), odds=False).state
    high = float(state.saturation_rate_per_s[0] * case.data_parallel[0])
    if high <= low:
        return None
    many = case.take(np.zeros(RATES, dtype=np.intp))
    while high / low >= RATE_RATIO:
        rates = np.geomspace(low, high, RATES + 1)[1:]
        met = engine.solve(many, load, limits, rates_per_s=rates).meets(limits, meet)
        first = int(np.argmin(met)) if not met.all() else RATES
        low, high = (
            (float(rates[k]) for k in (first - 1, min(first, RATES - 1)))
            if first
            else (low, float(rates[0]))
        )
    return low


def _front(solved: Solved) -> IntArray:
    """Rows that no other beats in both joules and time per token."""
    order = np.lexsort((solved.energy_j, solved.state.tpot_s))
    order = order[~solved.state.saturated[order]]
    joules = solved.energy_j[order]
    kept, least = [], np.inf
    for row, value in zip(order.tolist(), joules.tolist(), strict=True):
        if value < least * (1.0 - ALIKE_RATIO):
            least = value
            kept.append(row)
    return np.array(kept, dtype=np.intp)


__all__ = [
    "BATCH_LIMITS",
    "DEFAULT_CHOOSE",
    "MEET",
    "NAMES",
    "Decision",
    "Engine",
    "Entry",
    "LatencyLimit",
    "Load",
    "Shadow",
    "candidates_under_load",
    "case_of",
    "decide",
    "seconds",
]
