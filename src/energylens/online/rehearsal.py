"""A fleet serves a trace under a policy, on simulated GPUs.

Each replica is the discrete-event simulation of :mod:`energylens.instrument.engines.load`, whose
physics is none of the closed forms that policies reason with. Requests are routed as they arrive;
a policy is asked at every interval and may start and stop replicas, limit what runs at once in
one, concentrate the requests on few replicas, hold those that find a replica empty, cap power or
lock clocks, and go over to another layout. Starting takes time and joules; a replica that is
stopped finishes what it has. A layout is swapped by rolling: replicas of the old one are stopped
only as far as the next of the new one needs their GPUs, and all of them when those serve.
**Every joule and watt here is simulated.**
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

import numpy as np

from energylens.cases import BoolArray, FloatArray
from energylens.errors import InfeasibleError
from energylens.instrument.engines.load import Replica
from energylens.online.fleet import AS_SHIPPED, Fleet, Setting
from energylens.online.trace import Trace
from energylens.viewing import picked


@dataclass(frozen=True, kw_only=True)
class Action:
    """What a policy may set.

    Attributes
    ----------
    replicas : int
        Awake, or being started.
    batch_limit : int
        Sequences that may run at once in a replica; others wait.
    fill : int, optional
        Requests go to the first replica that has fewer; None: to the one with the fewest.
    hold_s : float
        How long a request that finds its replica empty waits for others to join it.
    setting : Setting
        Power cap or clock of each GPU.
    tensor_parallel : int
        Layout of the replicas.
    """

    replicas: int
    batch_limit: int
    fill: int | None = None
    hold_s: float = 0.0
    setting: Setting = AS_SHIPPED
    tensor_parallel: int = 1

    @property
    def layout(self) -> str:
        """Name the layout."""
        return f"TP{self.tensor_parallel}"

    def describe(self) -> str:
        """Give a short human name."""
        name = f"{self.replicas} x {self.layout}, batch limit {self.batch_limit}"
        if self.fill is not None:
            name += f", filled to {self.fill}"
        if self.hold_s:
            name += f", held {1000 * self.hold_s:.0f} ms"
        held = self.setting.describe()
        return f"{name}, {held}" if held else name


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Requests finished so far, their tokens, and how many were late or wait too long already."""

    finished: int = 0
    late: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """What a policy sees: the past and the present.

    Attributes
    ----------
    now_s : float
    arrivals_s : ndarray
        All so far.
    in_flight : int
        Requests running or waiting, in all replicas.
    awake, starting : int
        Replicas of the layout that is aimed at.
    swapping : bool
        Whether replicas of another layout still serve.
    judged : callable
        What became of the requests so far.
    action : Action
        What holds now.
    """

    now_s: float
    arrivals_s: FloatArray
    in_flight: int
    awake: int
    starting: int
    action: Action
    swapping: bool = False
    judged: Callable[[], Judged] = Judged


class Policy(Protocol):
    """Decides at every interval."""

    @property
    def name(self) -> str:
        """What the command line calls it."""

    def first(self) -> Action:
        """What holds when the trace begins; at no cost."""

    def decide(self, seen: Seen) -> Action:
        """What shall hold from now on."""


class State(StrEnum):
    """Of a replica."""

    ASLEEP = "asleep"
    STARTING = "starting"
    AWAKE = "awake"
    DRAINING = "draining"


@dataclass(eq=False)
class _Place:
    """One replica's place, and what it has drawn so far, in simulated joules."""

    replica: Replica
    state: State
    degree: int
    since_s: float = 0.0  # that its GPUs are taken
    ready_s: float = 0.0
    release_s: float = 0.0
    quiet_s: float = 0.0  # until when nothing ends, so that nobody need look
    numbers: list[int] = field(default_factory=list)  # of the trace, by its own
    taken_s: float = 0.0
    idle_j: float = 0.0
    idle_mark_s: float = 0.0
    open: list[int] = field(default_factory=list)  # its own numbers, not judged yet
    known: int = 0  # of its requests, that were open or are

    def settle(self, now_s: float) -> None:
        """Count idle joules up to now at the watts that hold."""
        if self.state in (State.AWAKE, State.DRAINING):
            self.replica.advance(now_s)  # one with nothing to do is left behind
        self.idle_j += (self.replica.idle_s - self.idle_mark_s) * self.replica.idle_w
        self.idle_mark_s = self.replica.idle_s

    def sleep(self, now_s: float) -> None:
        """Give the GPUs back."""
        self.settle(now_s)
        self.taken_s += now_s - self.since_s
        self.state, self.since_s = State.ASLEEP, now_s


@dataclass(frozen=True, kw_only=True)
class Change:
    """One reconfiguration: simulated joules of a start, requests to drain at a stop."""

    at_s: float
    what: str
    simulated_energy_j: float = 0.0
    start_s: float = 0.0
    drained_requests: int = 0


class World:
    """A fleet and a trace, lived up to a moment.

    Parameters
    ----------
    action : Action
        What holds at the beginning; it serves at once.
    """

    def __init__(self, fleet: Fleet, trace: Trace, action: Action) -> None:
        self.fleet, self.trace, self.action = fleet, trace, action
        self.now_s, self.next = 0.0, 0
        self.changes: list[Change] = []
        self.start_j = 0.0
        self._arrivals: list[float] = trace.arrivals_s.tolist()
        self._inputs: list[int] = trace.input_tokens.tolist()
        self._outputs: list[int] = trace.output_tokens.tolist()
        self._longest = int((trace.input_tokens + trace.output_tokens).max())
        self._swapping = False
        self._sums = [0, 0, 0, 0]  # finished, late, input and output tokens of the finished
        self._how = {action.tensor_parallel: (action.fill, action.batch_limit)}
        # Those asleep have run before: they are woken, not started cold.
        self.places = [
            self._place(action, State.AWAKE if i < action.replicas else State.ASLEEP)
            for i in range(fleet.most_replicas(action.tensor_parallel))
        ]

    def _place(self, action: Action, state: State) -> _Place:
        degree = action.tensor_parallel
        room = self.fleet.cache_tokens(degree)
        if self._longest > room:
            raise InfeasibleError(
                f"{self.trace.name} has a request of {self._longest:,} tokens, and the cache of a "
                f"replica at TP{degree} holds {room:,.0f}: leave such requests out, or that degree "
                "(control.tensor_parallel)"
            )
        replica = Replica(
            self.fleet.table(degree, action.setting),
            slots=action.batch_limit,
            cache_tokens=room,
        )
        replica.now_s = self.now_s
        return _Place(replica, state, degree, since_s=self.now_s)

    @property
    def in_flight(self) -> int:
        """Requests that have arrived and are not finished."""
        return sum(p.replica.outstanding for p in self.places)

    @property
    def free_gpus(self) -> int:
        """GPUs that no replica has, not even one that starts or drains."""
        return self.fleet.gpus - sum(p.degree for p in self.places if p.state is not State.ASLEEP)

    def count(self, state: State) -> int:
        """Replicas in a state."""
        return sum(p.state is state for p in self.places)

    def _up(self, *, other: bool = False) -> list[_Place]:
        """Replicas that serve or start, of the layout aimed at or of others."""
        degree = self.action.tensor_parallel
        return [
            p
            for p in self.places
            if p.state in (State.AWAKE, State.STARTING) and (p.degree != degree) == other
        ]

    def seen(self) -> Seen:
        """What a policy sees now."""
        up = self._up()
        awake = sum(p.state is State.AWAKE for p in up)
        return Seen(
            now_s=self.now_s,
            arrivals_s=self.trace.arrivals_s[: self.next],
            in_flight=self.in_flight,
            awake=awake,
            starting=len(up) - awake,
            action=self.action,
            swapping=self._swapping,
            judged=self.judged,
        )

    def judged(self) -> Judged:
        """Count what has finished, and what is late."""
        waiting, sums = 0, self._sums
        ttft_s, tpot_s = self.fleet.ttft_s, self.fleet.tpot_s
        for place in self.places:
            replica, still = place.replica, []
            place.open.extend(range(place.known, len(place.numbers)))
            place.known = len(place.numbers)
            for i in place.open:
                first, done, number = replica.first_s[i], replica.done_s[i], place.numbers[i]
                waited = (first or self.now_s) - self._arrivals[number]
                if not done:
                    still.append(i)
                    waiting += waited > ttft_s
                    continue
                each = (done - first) / max(replica.outputs[i] - 1, 1)
                late = waited > ttft_s or each > tpot_s
                for k, more in enumerate((1, late, self._inputs[number], self._outputs[number])):
                    sums[k] += more
            place.open = still
        return Judged(
            finished=sums[0], late=sums[1] + waiting, input_tokens=sums[2], output_tokens=sums[3]
        )

    # ----------------------------------------------------------------------- living

    def live(self, until_s: float) -> None:
        """Serve what arrives before a moment, and everything running, up to it."""
        arrivals, n = self._arrivals, len(self._arrivals)
        while self.next < n and arrivals[self.next] < until_s:
            self._advance(arrivals[self.next])
            self._route(self.next)
            self.next += 1
        if until_s < np.inf:
            self._advance(until_s)

    def finish(self) -> None:
        """Serve all that is left; it ends with the last token."""
        self.live(np.inf)
        last = self.now_s
        for place in self.places:
            if place.replica.outstanding:
                place.replica.advance(np.inf)
            if place.replica.arrivals:
                last = max(last, *place.replica.done_s)
        self._advance(last)

    def _advance(self, until_s: float) -> None:
        moved = False
        for place in self.places:
            state = place.state
            if state is State.ASLEEP:
                continue
            if state is State.STARTING:
                if place.ready_s > until_s:
                    continue
                place.state, moved = State.AWAKE, True
            replica = place.replica
            if place.quiet_s < until_s and replica.outstanding:
                replica.advance(until_s)
                place.quiet_s = replica.quiet_until_s()
            if state is State.DRAINING and not replica.outstanding:
                place.sleep(until_s)
                moved = True
        self.now_s = until_s
        if moved and self._swapping:
            self._move()

    def _route(self, number: int) -> None:
        arrival = self._arrivals[number]
        awake = [p for p in self.places if p.state is State.AWAKE]
        if awake:
            chosen = None
            if self.action.fill is not None:
                how, aimed = self._how, self.action.tensor_parallel
                if self._swapping:  # those that stay are filled first
                    awake.sort(key=lambda p: p.degree != aimed)
                chosen = next(
                    (
                        p
                        for p in awake
                        if p.replica.outstanding < (how[p.degree][0] or how[p.degree][1])
                    ),
                    None,
                )
            if chosen is None:
                chosen = min(awake, key=lambda p: p.replica.outstanding / p.degree)
            release = max(arrival, chosen.release_s)
            if self.action.hold_s and not chosen.replica.outstanding:
                release = chosen.release_s = arrival + self.action.hold_s
        else:
            chosen = min(
                (p for p in self.places if p.state is State.STARTING), key=lambda p: p.ready_s
            )
            release = max(arrival, chosen.ready_s)
        chosen.numbers.append(number)
        # A request becomes known to its replica when it is released; never before another one.
        if chosen.replica.arrivals:
            release = max(release, chosen.replica.arrivals[-1])
        chosen.quiet_s = 0.0
        chosen.replica.offer(release, self._inputs[number], self._outputs[number])

    # ----------------------------------------------------------------------- acting

    def act(self, action: Action) -> None:
        """Set what shall hold from now on."""
        fleet, before = self.fleet, self.action
        self.action = action
        self._how[action.tensor_parallel] = (action.fill, action.batch_limit)
        if action.setting != before.setting:
            for place in self.places:
                place.settle(self.now_s)
                place.replica.set_table(fleet.table(place.degree, action.setting))
                place.quiet_s = 0.0
            self._note(action.setting.describe() or "no power cap, top clock")
        for place in self.places:
            place.replica.slots, place.quiet_s = self._how[place.degree][1], 0.0
            if action.hold_s == 0 or action.hold_s < before.hold_s:
                place.release_s = min(place.release_s, self.now_s)
        if action.tensor_parallel != before.tensor_parallel:
            self._note(f"swap {before.layout} for {action.layout}")
        self._move()

    def _move(self) -> None:
        """Start and stop replicas on the way to what is aimed at, as far as GPUs are free."""
        degree = self.action.tensor_parallel
        wanted = int(np.clip(self.action.replicas, 1, self.fleet.most_replicas(degree)))
        up = self._up()
        for place in self.places:
            if len(up) < wanted and place.state is State.DRAINING and place.degree == degree:
                place.state = State.AWAKE if place.ready_s <= self.now_s else State.STARTING
                up.append(place)
        while len(up) < wanted and self.free_gpus >= degree:
            up.append(self._start())
        # Those that are starting have cost already and are wanted least; then the emptiest.
        self._stop_first(up, lambda: len(self._up()) > wanted)
        others = self._up(other=True)
        complete = len(up) >= wanted and all(p.state is State.AWAKE for p in up)
        if others and complete:
            self._stop_first(others, lambda: True)
        elif others and not any(p.state is State.STARTING for p in up):
            # The next wave: as many as the next replica of the new layout needs.
            self._stop_first(others, lambda: self._freed() < degree)
            while len(up) < wanted and self.free_gpus >= degree:
                up.append(self._start())
        self._swapping = bool(self._up(other=True)) or len(up) < wanted

    def _freed(self) -> int:
        """GPUs that are free, or will be when what drains has drained."""
        draining = sum(p.degree for p in self.places if p.state is State.DRAINING)
        return self.free_gpus + draining

    def _stop_first(self, some: list[_Place], more: Callable[[], bool]) -> None:
        """Stop replicas while more are to be stopped; one always serves."""
        place_of = {id(p): i for i, p in enumerate(self.places)}
        order = sorted(
            some, key=lambda p: (p.state is State.AWAKE, p.replica.outstanding, -place_of[id(p)])
        )
        for place in order:
            if not more():
                return
            if place.state is State.AWAKE and self.count(State.AWAKE) == 1:
                continue
            self._stop(place)

    def _start(self) -> _Place:
        degree = self.action.tensor_parallel
        place = next(
            (p for p in self.places if p.state is State.ASLEEP and p.degree == degree), None
        )
        cold = place is None
        if place is None:
            place = self._place(self.action, State.ASLEEP)
            self.places.append(place)
        seconds = self.fleet.start_s(cold=cold)
        joules = self.fleet.start_energy_j(degree, cold=cold)
        place.state, place.since_s = State.STARTING, self.now_s
        place.replica.now_s = place.ready_s = self.now_s + seconds
        self.start_j += joules
        self._note("start", simulated_energy_j=joules, start_s=seconds)
        return place

    def _stop(self, place: _Place) -> None:
        left = place.replica.outstanding
        self._note("stop", drained_requests=left)
        if left:
            place.state = State.DRAINING
        else:  # what the start of one that was starting has cost is lost
            place.sleep(self.now_s)

    def _note(self, what: str, **cost: Any) -> None:
        self.changes.append(Change(at_s=self.now_s, what=what, **cost))

    # ----------------------------------------------------------------------- accounts

    def joules(self) -> dict[str, float]:
        """Simulated joules so far, by what took them."""
        busy = idle = taken = 0.0
        for p in self.places:
            p.settle(self.now_s)
            busy += p.replica.busy_j
            idle += p.idle_j
            taken += p.degree * p.taken_s
            if p.state is not State.ASLEEP:
                taken += p.degree * (self.now_s - p.since_s)
        asleep = self.fleet.gpus * self.now_s - taken  # of GPUs
        return {
            "steps": busy,
            "loaded_idle": idle,
            "sleeping": asleep * self.fleet.sleep_w(1),
            "starting": self.start_j,
        }

    def times(self) -> tuple[FloatArray, FloatArray]:
        """Time to the first token and time per token after, of requests so far; NaN: not yet.

        Those of a single token have 0 per token.
        """
        n = self.next
        ttft, tpot = np.full(n, np.nan), np.full(n, np.nan)
        for place in self.places:
            if not place.numbers:
                continue
            rows = np.array(place.numbers)
            first, done = np.array(place.replica.first_s), np.array(place.replica.done_s)
            outputs = np.array(place.replica.outputs)
            begun = first > 0
            ttft[rows[begun]] = first[begun] - self.trace.arrivals_s[rows[begun]]
            ended = done > 0
            tpot[rows[ended]] = (done - first)[ended] / np.maximum(outputs[ended] - 1, 1)
        return ttft, tpot

    def within(self, n: int) -> BoolArray:
        """Whether each request so far is within its limits; those that wait are by their age."""
        ttft, tpot = self.times()
        age = self.now_s - self.trace.arrivals_s[:n]
        ttft = np.where(np.isnan(ttft), age, ttft)
        tpot = np.where(np.isnan(tpot), 0.0, tpot)
        found: BoolArray = (ttft <= self.fleet.ttft_s) & (tpot <= self.fleet.tpot_s)
        return found


@dataclass(frozen=True, kw_only=True, eq=False)
class Rehearsal:
    """What became of a trace under a policy. Joules are simulated.

    Attributes
    ----------
    policy, layout : str
    requests : int
    duration_s : float
    simulated_joules : dict of str to float
        Of steps, loaded idle, sleeping and starting.
    ttft_s, tpot_s : ndarray, shape (n,)
    within_ratio : float
        Share of requests within both limits.
    changes : tuple of Change
    mean_replicas : float
        Not asleep, over time.
    joules_by_interval : ndarray, shape (m,)
        Simulated joules of each interval between decisions.
    actions : tuple of (float, Action)
        What was set when.
    """

    policy: str
    layout: str
    requests: int
    duration_s: float
    simulated_joules: dict[str, float]
    ttft_s: FloatArray
    tpot_s: FloatArray
    within_ratio: float
    changes: tuple[Change, ...]
    mean_replicas: float
    joules_by_interval: FloatArray
    actions: tuple[tuple[float, Action], ...]

    @property
    def simulated_energy_j(self) -> float:
        """Sum of all."""
        return sum(self.simulated_joules.values())

    def to_json(self) -> dict[str, Any]:
        """Names and values."""
        starts = [c for c in self.changes if c.what == "start"]
        stops = [c for c in self.changes if c.what == "stop"]

        def percentiles(values: FloatArray) -> dict[str, float]:
            return {f"p{q}": float(np.quantile(values, q / 100)) for q in (50, 90, 99)}

        return {
            **picked(self, "policy layout requests duration_s simulated_energy_j"),
            "simulated_energy_per_request_j": self.simulated_energy_j / self.requests,
            "simulated_power_w": self.simulated_energy_j / self.duration_s,
            "simulated_energy_by_part_j": self.simulated_joules,
            "ttft_s": percentiles(self.ttft_s),
            "tpot_s": percentiles(self.tpot_s),
            "within_limits_ratio": self.within_ratio,
            "mean_replicas": self.mean_replicas,
            "reconfigurations": {
                "starts": len(starts),
                "stops": len(stops),
                "layout_swaps": sum(c.what.startswith("swap") for c in self.changes),
                "settings": len(
                    [c for c in self.changes if c.what.split()[0] not in ("start", "stop", "swap")]
                ),
                "start_seconds": sum(c.start_s for c in starts),
                "simulated_start_energy_j": sum(c.simulated_energy_j for c in starts),
                "drained_requests": sum(c.drained_requests for c in stops),
            },
            "first_action": self.actions[0][1].describe(),
        }


def rehearse(fleet: Fleet, trace: Trace, policy: Policy) -> Rehearsal:
    """Serve a trace under a policy.

    Parameters
    ----------
    policy : Policy
        Asked at every ``control.interval_s``.
    """
    action = policy.first()
    world = World(fleet, trace, action)
    actions, interval = [(0.0, action)], fleet.file.control.interval_s
    replica_s, marks = 0.0, [0.0]
    for k in range(1, int(trace.duration_s / interval) + 1):
        world.live(k * interval)
        replica_s += interval * (len(world.places) - world.count(State.ASLEEP))
        marks.append(sum(world.joules().values()))
        wanted = policy.decide(world.seen())
        if wanted != world.action:
            world.act(wanted)
            actions.append((world.now_s, wanted))
    lived_s = world.now_s
    world.finish()
    ttft, tpot = world.times()
    joules = world.joules()
    layouts = list(dict.fromkeys(a.layout for _, a in actions))
    return Rehearsal(
        policy=policy.name,
        layout=" to ".join(layouts) if len(layouts) <= 2 else f"{len(layouts)} layouts",
        requests=len(world.trace),
        duration_s=world.now_s,
        simulated_joules=joules,
        ttft_s=ttft,
        tpot_s=tpot,
        within_ratio=float(world.within(len(world.trace)).mean()),
        changes=tuple(world.changes),
        mean_replicas=replica_s / lived_s if lived_s else float(action.replicas),
        joules_by_interval=np.diff([*marks, sum(joules.values())]),
        actions=tuple(actions),
    )
