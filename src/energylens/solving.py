"""Configurations put under a load: their states, and how likely each is to meet its limits.

What does not depend on the rate or the limits (which configurations fit, what a step of each
takes, how much room it has) is worked out once and kept, so that a question that differs from
the last in its rate or limits alone only solves the queue.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from energylens import latency, service
from energylens.capacity import format_problem, layout_possible, layout_problem
from energylens.cases import BoolArray, Cases, FloatArray, IntArray
from energylens.dataset import group_rows
from energylens.decisions import Entry, LatencyLimit, Load, Running
from energylens.errors import InfeasibleError, UsageError
from energylens.latency import Steps, TimeModel
from energylens.model import EnergyModel
from energylens.pacing import Paced
from energylens.records import Case, Configuration
from energylens.remembered import Remembered
from energylens.scenarios import Candidates, Scenario, enumerate_configurations
from energylens.service import JouleSteps, Lengths, Service
from energylens.viewing import picked

DEFAULT_CHOOSE = ("tensor_parallel", "pipeline_parallel", "data_parallel", "batch_size")
#: Batch limits of one replica, four to a doubling.
BATCH_LIMITS: tuple[float, ...] = tuple(sorted({float(round(2.0 ** (k / 4))) for k in range(41)}))
FACTORS = 9  # quantiles of the time law's error that stand for it
RELAXED_RATIOS = (1.1, 1.2, 1.5, 2.0, 3.0)  # by which a limit is relaxed to say what it costs
LEAST_SPREAD = 1e-6  # of a logarithm, where nothing is known to be off
DECIDED_SPREADS = 6.0  # of a limit's own error beyond which a configuration surely meets or misses
KEPT_BYTES = 32 * 2**20  # of what does not depend on the rate
FOLDED_BYTES, NAME_BYTES = 80, 200  # of a case: made when it is first solved, and asked for
VIEWS_BYTES = 32 * 2**10  # some 220 arrays of a question, however few cases they are of


# --------------------------------------------------------------------------------- candidates


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """Cases of one pair of lengths with all that does not depend on the rate.

    ``slots`` is the room of one replica, ``layout`` tells layouts apart, batch limits aside.
    """

    cases: Cases
    steps: Steps
    joules: JouleSteps
    slots: FloatArray
    layout: IntArray

    def __len__(self) -> int:
        return len(self.slots)

    def take(self, rows: IntArray | slice) -> Prepared:
        """Some of the cases."""
        return Prepared(
            cases=self.cases.take(rows),
            steps=self.steps.take(rows),
            joules=self.joules.take(rows),
            slots=self.slots[rows],
            layout=self.layout[rows],
        )

    def paced(self, factor: FloatArray, unsure: FloatArray | float = 1.0) -> Paced:
        """Steps that take longer by a factor of each case, and by what their joules ask for."""
        return Paced.of(self.cases, self.steps, self.joules, factor, unsure)

    def configuration(self, row: int) -> Configuration:
        """Knobs of one case, as a record; those asked about are remembered."""
        known = self._configurations.get(row)
        return known or self._configurations.setdefault(row, self.cases.configuration(row))

    @cached_property
    def _configurations(self) -> dict[int, Configuration]:
        return {}

    @cached_property
    def names(self) -> list[str]:
        """Short names, as those of entries."""
        cases = self.cases
        columns = zip(
            cases.tensor_parallel.astype(int).tolist(),
            cases.pipeline_parallel.astype(int).tolist(),
            cases.expert_parallel.astype(int).tolist(),
            cases.data_parallel.astype(int).tolist(),
            (cases.batch_size / cases.data_parallel).tolist(),
            cases.power_cap_w.tolist(),
            cases.clock_mhz.tolist(),
            strict=True,
        )
        return [
            (f"{dp} x " if dp > 1 else "")
            + f"TP{tp}"
            + (f" PP{pp}" if pp > 1 else "")
            + (f" EP{ep}" if ep > 1 else "")
            + f", batch limit {batch:g}"
            + (f", {cap:g} W" if cap == cap else "")
            + (f", {clock:g} MHz" if clock == clock else "")
            for tp, pp, ep, dp, batch, cap, clock in columns
        ]

    @cached_property
    def size_bytes(self) -> int:
        """Bytes that the columns hold, names and what steps fold together among them."""
        parts = [vars(self), vars(self.cases), vars(self.steps), vars(self.steps.times),
                 vars(self.joules)]  # fmt: skip
        columns = [c for part in parts for c in part.values() if isinstance(c, np.ndarray)]
        held = {id(c): c for c in map(_owner, columns)}
        later = len(self) * (FOLDED_BYTES + NAME_BYTES)
        return sum(int(c.nbytes) for c in held.values()) + later


def _owner(column: FloatArray) -> FloatArray:
    """The array whose memory a column is in."""
    while isinstance(column.base, np.ndarray):
        column = column.base
    return column


@dataclass(frozen=True, kw_only=True, eq=False)
class Spanned:
    """What the knobs of a question span: the candidates, and the row of what runs today, if named.

    ``current`` is among the candidates, or behind them where it takes more GPUs than are allowed.
    """

    candidates: Prepared
    together: Prepared
    ruled_out: int
    current: int | None = None

    @cached_property
    def size_bytes(self) -> int:
        """Bytes held; candidates are views of the whole."""
        return self.together.size_bytes + VIEWS_BYTES

    def take(self, rows: IntArray) -> Spanned:
        """Some of the candidates; what runs today stays."""
        if self.current is None:
            return replace(
                self, candidates=self.candidates.take(rows), together=self.together.take(rows)
            )
        rows = np.append(rows[rows != self.current], self.current)
        among = self.current < len(self.candidates)
        together = self.together.take(rows)
        own = together if among else together.take(slice(0, len(rows) - 1))
        return replace(self, candidates=own, together=together, current=len(rows) - 1)


def _span(
    scenario: Scenario,
    lengths: Lengths,
    choose: Sequence[str],
    candidates: Candidates | None,
    batch_limits: Sequence[float],
) -> tuple[Cases, FloatArray, IntArray, int]:
    """Cases that can run, their slots and layouts, and how many layouts cannot."""
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
        possible[rows] = layout_possible(llm, **layouts.degrees(rows))
    considered = len(layouts)
    room = service.room(layouts, lengths, limits=1.0)
    fits = possible & (room >= 1.0)
    layouts, room = layouts.take(fits), room[fits]
    if "batch_size" in choose:
        limits = np.unique(np.asarray(batch_limits, dtype=np.float64))
    else:
        limits = np.array([max(scenario.configuration.batch_size, 1.0)])
    held = np.minimum(limits, room[:, None])
    if "batch_size" not in choose:
        held = np.minimum(held / layouts.data_parallel[:, None], room[:, None])
        held = np.maximum(held, 1.0)
    # Limits rise: of those beyond the room the first has it all.
    first = np.diff(held, axis=1, prepend=0.0) > 0
    layout, held = np.nonzero(first)[0], held[first]
    starts = service.room(layouts.take(layout), lengths, limits=held) >= 1.0
    layout, held = layout[starts], held[starts]
    cases = layouts.take(layout)
    ruled_out = considered - len(np.unique(layout))
    return cases.replace(batch_size=held * cases.data_parallel), held, layout, ruled_out


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
    choose : sequence of str
        The free knobs.
    candidates : Candidates, optional
        Values of the free knobs besides the batch limit.
    """
    cases, _, _, ruled_out = _span(scenario, load.lengths, choose, candidates, batch_limits)
    return cases, ruled_out


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


def _layout(cases: Cases) -> IntArray:
    return group_rows(
        [
            cases.gpu_index, cases.precision_index, cases.tensor_parallel,
            cases.pipeline_parallel, cases.expert_parallel, cases.data_parallel,
            cases.power_cap_w, cases.clock_mhz,
        ]
    )  # fmt: skip


# ------------------------------------------------------------------------------- the engine


@dataclass(frozen=True, kw_only=True, eq=False)
class Solved:
    """Cases under the load: their states, and those at each factor of the time law's error."""

    prepared: Prepared
    state: Service
    values: FloatArray  # (limits, factors, n)
    energy_j: FloatArray
    power_w: FloatArray
    keeps_up: FloatArray  # probability that the queue does not grow without end
    certain: bool  # whether the values are those of all factors, or of the mean alone

    @property
    def cases(self) -> Cases:
        """The cases."""
        return self.prepared.cases

    @property
    def layout(self) -> IntArray:
        """Which layout each case has, batch limits apart; shape (n,)."""
        return self.prepared.layout

    def of(self, prepared: Prepared) -> Solved:
        """The first of the cases, which were prepared apart."""
        rows = slice(0, len(prepared))
        return Solved(
            prepared=prepared,
            state=self.state.take(rows),
            values=self.values[:, :, rows],
            energy_j=self.energy_j[rows],
            power_w=self.power_w[rows],
            keeps_up=self.keeps_up[rows],
            certain=self.certain,
        )

    def meets(self, limits: Sequence[LatencyLimit], meet: float) -> BoolArray:
        """Whether each case is likely enough to meet all limits, or does by its means."""
        likely: BoolArray = ~self.state.saturated
        if self.certain:
            return likely & (self.probabilities(limits)[0] >= meet)
        for limit, value in zip(limits, self.values[:, 0], strict=True):
            likely &= value <= limit.seconds
        return likely

    def probabilities(self, limits: Sequence[LatencyLimit]) -> tuple[FloatArray, FloatArray]:
        """Probability of meeting all limits (n,), and each alone (limits, n)."""
        from scipy.special import ndtr

        if not limits:
            return self.keeps_up, np.zeros((0, len(self.cases)))
        # Each factor stands for an equal share of the error, fastest first. Of these shares counts
        # what keeps up, the last of them in part: whatever meets keeps up, and nothing jumps.
        shares = len(self.values[0])
        counts = np.clip(shares * self.keeps_up - np.arange(shares)[:, None], 0.0, 1.0) / shares
        each = np.empty(self.values.shape)
        for i, (limit, value) in enumerate(zip(limits, self.values, strict=True)):
            middle, spread = limit.queue_late(self.state.utilisation_ratio)
            late = np.log(limit.seconds) - np.log(np.maximum(value, 1e-300)) - middle
            each[i] = ndtr(late / spread)
        most = self.keeps_up
        odds = (counts * each.min(axis=0)).sum(axis=0), (counts * each).sum(axis=1)
        return np.minimum(odds[0], most), np.minimum(odds[1], most)


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
    kept : Remembered, optional
        Where what does not depend on the rate is kept; engines may share it.
    """

    def __init__(
        self,
        energy: EnergyModel,
        *,
        factor: float = 1.0,
        energy_factor: float = 1.0,
        kept: Remembered[Spanned] | None = None,
    ) -> None:
        self.energy = energy
        self.time: TimeModel = energy.time or latency.from_datasheet()
        self.factor, self.energy_factor = factor, energy_factor
        self.certain = 1.0  # share of the time law's spread that is left once it was corrected
        self.kept = Remembered(KEPT_BYTES) if kept is None else kept

    @cached_property
    def joule_law(self) -> EnergyModel:
        """The law of joules without factors of single LLMs."""
        return self.energy.without_factors()

    @cached_property
    def time_law(self) -> TimeModel:
        """The law of times without factors of single LLMs."""
        return self.time.without_factors()

    def prepare(
        self,
        cases: Cases,
        lengths: Lengths,
        *,
        held: FloatArray | None = None,
        layout: IntArray | None = None,
    ) -> Prepared:
        """Work out what does not depend on the rate.

        Parameters
        ----------
        cases : Cases
            n cases.
        held, layout : ndarray, shape (n,), optional
            Slots of one replica and the number of the layout, where they are known.
        """
        held = np.maximum(service.slots(cases, lengths) if held is None else held, 1.0)
        return Prepared(
            cases=cases,
            steps=self.time_law.steps(cases, lengths.output_cv),
            joules=JouleSteps.of(
                self.joule_law, cases, lengths, engines=layout, most=float(held.max())
            ),
            slots=held,
            layout=_layout(cases) if layout is None else layout,
        )

    def span(
        self,
        scenario: Scenario,
        lengths: Lengths,
        *,
        choose: Sequence[str] = DEFAULT_CHOOSE,
        candidates: Candidates | None = None,
        batch_limits: Sequence[float] = BATCH_LIMITS,
        cases: Cases | None = None,
        current: Configuration | Running | None = None,
    ) -> Spanned | None:
        """Prepare what the knobs of a question span, or ``cases`` in place of it.

        None where nothing fits in memory. What knobs span is kept, and found again by the values
        asked about.

        Raises
        ------
        InfeasibleError
            If what runs today has no room in memory.
        UsageError
            If its cache has another format than that asked about.
        """
        if cases is not None:
            held = np.maximum(service.slots(cases, lengths), 1.0)
            return self.spanned(cases, held, _layout(cases), scenario, lengths, current, 0)
        key: Hashable = (
            self, scenario, lengths, tuple(choose), candidates, tuple(batch_limits), current
        )  # fmt: skip
        if (known := self.kept.get(key)) is not None:
            return known
        cases, held, layout, ruled_out = _span(scenario, lengths, choose, candidates, batch_limits)
        if not len(cases):
            return None
        made = self.spanned(cases, held, layout, scenario, lengths, current, ruled_out)
        self.kept.put(key, made, made.size_bytes)
        return made

    def spanned(
        self,
        cases: Cases,
        held: FloatArray,
        layout: IntArray,
        scenario: Scenario,
        lengths: Lengths,
        running: Configuration | Running | None,
        ruled_out: int,
    ) -> Spanned:
        """Prepare candidates, what runs today among them where it takes no more GPUs than allowed.

        ``held`` and ``layout`` are as in `prepare`. In a number format that is not asked about, it
        is none of them.
        """
        own, among = len(cases), None
        if running is not None:
            told = running if isinstance(running, Running) else Running(configuration=running)
            current, precision = told.configuration, told.precision or scenario.precision
            asked = {each.id: each for each in (*cases.precisions, scenario.precision)}
            if asked.get(precision.id, precision) != precision:
                ours, theirs = precision.kv_bits, asked[precision.id].kv_bits
                raise UsageError(
                    f"what runs today keeps its cache in {ours:g} bits, and the question is about "
                    f"one in {theirs:g}: ask with the same --kv-cache-dtype"
                )
            today = Cases.of([case_of(replace(scenario, precision=precision), current)])
            refused = layout_problem(scenario.llm, precision, **current.degrees)
            if refused is not None:
                raise InfeasibleError(
                    f"the current configuration {current.describe()} cannot be laid out for "
                    f"{scenario.llm.id} at {precision.id}: {refused}"
                )
            as_run = told.scenario(scenario)
            room = service.slots(Cases.of([case_of(as_run, current)]), lengths)
            problem = format_problem(scenario.gpu, precision)
            if problem is not None:
                raise InfeasibleError(
                    f"the current configuration {current.describe()} cannot run: {problem}"
                )
            if room[0] < 1:
                raise InfeasibleError(
                    f"the current configuration {current.describe()} has no room in memory for one "
                    f"request of {scenario.llm.id}: check what runs today"
                )
            joined = Cases.concatenate([cases, today])
            groups = _layout(joined)
            alike = np.flatnonzero(groups[:own] == groups[own])
            same = alike[
                (cases.batch_size[alike] == today.batch_size[0]) & (held[alike] == room[0])
            ]
            if len(same):
                among = int(same[0])
            else:
                number = layout[alike[0]] if len(alike) else layout.max() + 1
                cases, among = joined, own
                held, layout = np.append(held, room), np.append(layout, number)
                fits = today.occupied_gpus[0] <= scenario.gpu_limit
                own += int(fits and precision.id in asked)
        together = self.prepare(cases, lengths, held=held, layout=layout)
        candidates = together if own == len(cases) else together.take(slice(0, own))
        return Spanned(candidates=candidates, together=together, ruled_out=ruled_out, current=among)

    def solve(
        self,
        cases: Cases | Prepared,
        load: Load,
        limits: Sequence[LatencyLimit],
        *,
        odds: bool = True,
        rates_per_s: FloatArray | None = None,
    ) -> Solved:
        """Put n cases under the load, or each under a rate of its own."""
        prepared = cases if isinstance(cases, Prepared) else self.prepare(cases, load.lengths)
        cases = prepared.cases
        offered = np.asarray(load.rate_per_s) if rates_per_s is None else rates_per_s
        rate = offered / cases.data_parallel
        state = service.steady_state(
            prepared.paced(np.full(len(cases), self.factor)),
            rate_per_s=rate,
            lengths=load.computed,
            slots=prepared.slots,
            joules=prepared.joules,
        )
        power = service.node_power_w(cases, state.power_w) * self.energy_factor
        served = np.minimum(offered, state.saturation_rate_per_s * cases.data_parallel)
        keeps_up = (~state.saturated).astype(np.float64)
        if odds:
            factors = self._factors(prepared, state)
            most = self.factor * state.saturation_rate_per_s
            keeps_up = share_below(np.log(most / rate), np.log(factors))
        if limits and odds:
            values = self._spread(prepared, state, rate, load.computed, limits, factors)
        else:
            values = np.array([limit.value(state) for limit in limits])
            values = values.reshape(len(limits), 1, len(cases))
        return Solved(
            prepared=prepared,
            state=state,
            values=values,
            energy_j=power / served,
            power_w=power,
            keeps_up=keeps_up,
            certain=odds,
        )

    def _factors(self, prepared: Prepared, state: Service) -> FloatArray:
        """Quantiles of what times may be longer or shorter by, shape (factors, n)."""
        running = np.maximum(state.mean_batch_size, 1.0) * prepared.cases.data_parallel
        as_run = prepared.cases.replace(mean_batch_size=running)
        logs = self.time_law.logs_at(as_run, (np.arange(FACTORS) + 0.5) / FACTORS, "tpot")
        factors: FloatArray = self.factor * np.exp(logs * self.certain)
        return factors

    def _spread(
        self,
        prepared: Prepared,
        state: Service,
        rate: FloatArray,
        lengths: Lengths,
        limits: Sequence[LatencyLimit],
        factors: FloatArray,
    ) -> FloatArray:
        """What is limited, at each factor of the time law's error; shape (limits, factors, n).

        A slower engine is also a fuller one: the queue is solved anew at each. First at the two
        ends; what surely meets a limit at the slow end, or misses it at the fast end by more than
        it is ever relaxed, does so between them, and is solved there for other limits alone.
        """

        def at(rows: IntArray, k: IntArray) -> FloatArray:
            """Values of some rows, each at one of the factors; shape (limits, rows)."""
            factor = factors[k, rows]
            changed = service.steady_state(
                prepared.take(rows).paced(factor, factor / self.factor),
                rate_per_s=rate[rows],
                lengths=lengths,
                slots=prepared.slots[rows],
            )
            return np.array([limit.value(changed) for limit in limits])

        n = len(prepared)
        ends, inner = np.array([0, FACTORS - 1]), np.arange(1, FACTORS - 1)
        values = np.empty((len(limits), FACTORS, n))
        everywhere = at(np.tile(np.arange(n), 2), np.repeat(ends, n)).reshape(len(limits), 2, n)
        values[:, ends] = everywhere
        open_ = np.zeros(n, dtype=np.bool_)
        for i, (limit, (fast, slow)) in enumerate(zip(limits, everywhere, strict=True)):
            middle, spread = limit.queue_late(state.utilisation_ratio)
            reach = np.exp(middle + DECIDED_SPREADS * spread)
            met = slow * reach <= limit.seconds
            open_ |= ~met & (fast <= limit.seconds * RELAXED_RATIOS[-1] * reach)
            values[i, inner] = np.where(met, slow, fast)
        rows = np.flatnonzero(open_)
        if len(rows):
            found = at(np.tile(rows, len(inner)), np.repeat(inner, len(rows)))
            values[:, inner[:, None], rows] = found.reshape(len(limits), len(inner), len(rows))
        return values

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
        distinct, place = np.unique(rows, return_inverse=True)
        state, cases = solved.state.take(distinct), solved.cases.take(distinct)
        running = np.maximum(state.mean_batch_size, 1.0) * cases.data_parallel
        full = cases.replace(mean_batch_size=running)
        low, high = self.energy.interval_energy_j(full, 0.8)
        middle = self.energy.predict_energy_j(full)
        joules, power_w = solved.energy_j[distinct], solved.power_w[distinct]
        # However uncertain the law: no more than all GPUs at TDP in the time between requests.
        beside_w = service.node_power_w(cases, np.zeros(len(distinct)))
        most_j = joules * np.maximum((cases.most_w + beside_w) / power_w, 1.0)
        columns: dict[str, Any] = {
            "batch_limit": cases.batch_size / cases.data_parallel,
            "mean_batch_size": state.mean_batch_size,
            "energy_per_request_j": joules,
            "lower_j": joules * (low / middle),
            "upper_j": np.minimum(joules * (high / middle), most_j),
            "power_w": power_w,
            "utilisation_ratio": state.utilisation_ratio,
            "saturation_rate_per_s": state.saturation_rate_per_s * cases.data_parallel,
            **picked(state, "tpot_s ttft_s request_latency_s"),
            "probability_of_meeting_ratio": odds[distinct],
        }
        columns = {name: column.tolist() for name, column in columns.items()}
        columns["values_s"] = _tuples([limit.value(state) for limit in limits], len(distinct))
        columns["probabilities"] = _tuples(list(each[:, distinct]), len(distinct))
        columns["saving_ratio"] = (
            [None] * len(distinct) if current_j is None else (1.0 - joules / current_j).tolist()
        )
        columns["row"] = distinct.tolist()
        names = list(columns)
        made = [
            Entry(
                configuration=solved.prepared.configuration(int(row)),
                gpu=cases.gpus[cases.gpu_index[i]].id,
                precision=cases.precisions[cases.precision_index[i]].id,
                **dict(zip(names, values, strict=True)),
            )
            for i, (row, values) in enumerate(
                zip(distinct, zip(*columns.values(), strict=True), strict=True)
            )
        ]
        return tuple(made[i] for i in place)


def share_below(value: FloatArray, quantiles: FloatArray) -> FloatArray:
    """Probability that what has these quantiles, evenly apart, is below a value; shape (n,).

    The distribution is normal on either side of the median, as wide as fits the quantiles there.
    """
    from scipy.special import ndtr, ndtri

    middle = len(quantiles) // 2
    z = ndtri((np.arange(len(quantiles)) + 0.5) / len(quantiles))
    apart = z[:, None] * (quantiles - quantiles[middle])
    low, high = (
        apart[side].sum(axis=0) / np.square(z[side]).sum()
        for side in (slice(0, middle), slice(middle + 1, None))
    )
    beyond = value - quantiles[middle]
    share: FloatArray = ndtr(beyond / np.maximum(np.where(beyond < 0, low, high), LEAST_SPREAD))
    return share


def _tuples(columns: Sequence[FloatArray], n: int) -> list[tuple[float, ...]]:
    if not columns:
        return [()] * n
    return list(zip(*(column.tolist() for column in columns), strict=True))
