"""A fleet serves a trace under a policy, on simulated GPUs.

Each replica is the discrete-event simulation of :mod:`energylens.instrument.engines.load`, whose
physics is none of the closed forms that policies reason with. Requests are routed as they arrive;
a policy is asked at every interval and may start and stop replicas, limit what runs at once in
one, concentrate the requests on few replicas, hold those that find a replica empty, and cap
power. Starting takes time and joules; a replica that is stopped finishes what it has.
**Every joule and watt here is simulated.**
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

import numpy as np

from energylens.cases import BoolArray, FloatArray
from energylens.instrument.engines.load import Replica
from energylens.online.fleet import Fleet
from energylens.online.trace import Trace


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
    power_cap_w : float, optional
        Of each GPU.
    """

    replicas: int
    batch_limit: int
    fill: int | None = None
    hold_s: float = 0.0
    power_cap_w: float | None = None

    def describe(self) -> str:
        """Give a short human name."""
        name = f"{self.replicas} replicas, batch limit {self.batch_limit}"
        if self.fill is not None:
            name += f", filled to {self.fill}"
        if self.hold_s:
            name += f", held {1000 * self.hold_s:.0f} ms"
        return name + (f", {self.power_cap_w:g} W" if self.power_cap_w else "")


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
        Replicas.
    action : Action
        What holds now.
    """

    now_s: float
    arrivals_s: FloatArray
    in_flight: int
    awake: int
    starting: int
    action: Action


class Policy(Protocol):
    """Decides at every interval."""

    @property
    def name(self) -> str:
        """What the command line calls it."""
        ...

    @property
    def tensor_parallel(self) -> int:
        """Layout of all replicas."""
        ...

    def first(self) -> Action:
        """What holds when the trace begins; at no cost."""
        ...

    def decide(self, seen: Seen) -> Action:
        """What shall hold from now on."""
        ...


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
    since_s: float = 0.0
    ready_s: float = 0.0
    release_s: float = 0.0
    numbers: list[int] = field(default_factory=list)  # of the trace, by its own
    asleep_s: float = 0.0
    idle_j: float = 0.0
    idle_mark_s: float = 0.0

    def settle(self) -> None:
        """Count idle joules up to now at the watts that hold."""
        self.idle_j += (self.replica.idle_s - self.idle_mark_s) * self.replica.idle_w
        self.idle_mark_s = self.replica.idle_s


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
    fleet : Fleet
    trace : Trace
    tensor_parallel : int
        Of all replicas.
    action : Action
        What holds at the beginning.
    """

    def __init__(self, fleet: Fleet, trace: Trace, tensor_parallel: int, action: Action) -> None:
        self.fleet, self.trace, self.degree = fleet, trace, tensor_parallel
        self.action = action
        self.now_s, self.next = 0.0, 0
        self.changes: list[Change] = []
        self.start_j = 0.0
        self._arrivals: list[float] = trace.arrivals_s.tolist()
        self._inputs: list[int] = trace.input_tokens.tolist()
        self._outputs: list[int] = trace.output_tokens.tolist()
        table = fleet.table(tensor_parallel, action.power_cap_w)
        room = fleet.cache_tokens(tensor_parallel)
        self.places = [
            _Place(
                Replica(table, slots=action.batch_limit, cache_tokens=room),
                State.AWAKE if i < action.replicas else State.ASLEEP,
            )
            for i in range(fleet.most_replicas(tensor_parallel))
        ]

    def copy(self) -> World:
        """Copy it, so that one past may have several futures."""
        memo: dict[int, Any] = {
            id(x): x for x in (self.fleet, self.trace, self._arrivals, self._inputs, self._outputs)
        }
        return copy.deepcopy(self, memo)

    @property
    def in_flight(self) -> int:
        """Requests that have arrived and are not finished."""
        return sum(p.replica.outstanding for p in self.places)

    def count(self, state: State) -> int:
        """Replicas in a state."""
        return sum(p.state is state for p in self.places)

    def seen(self) -> Seen:
        """What a policy sees now."""
        return Seen(
            now_s=self.now_s,
            arrivals_s=self.trace.arrivals_s[: self.next],
            in_flight=self.in_flight,
            awake=self.count(State.AWAKE),
            starting=self.count(State.STARTING),
            action=self.action,
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
            place.replica.count_to_s = np.inf
            place.replica.advance(np.inf)
            if place.replica.arrivals:
                last = max(last, *place.replica.done_s)
        self._advance(last)

    def _advance(self, until_s: float) -> None:
        for place in self.places:
            if place.state is State.STARTING and place.ready_s <= until_s:
                place.state = State.AWAKE
            if place.state is State.ASLEEP or place.state is State.STARTING:
                continue
            place.replica.advance(until_s)
            if place.state is State.DRAINING and not place.replica.outstanding:
                place.settle()
                place.state, place.since_s = State.ASLEEP, until_s
        self.now_s = until_s

    def _route(self, number: int) -> None:
        arrival, fill = self._arrivals[number], self.action.fill
        awake = [p for p in self.places if p.state is State.AWAKE]
        if awake:
            chosen = None
            if fill is not None:
                chosen = next((p for p in awake if p.replica.outstanding < fill), None)
            if chosen is None:
                chosen = min(awake, key=lambda p: p.replica.outstanding)
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
        chosen.replica.offer(release, self._inputs[number], self._outputs[number])

    # ----------------------------------------------------------------------- acting

    def act(self, action: Action) -> None:
        """Set what shall hold from now on."""
        fleet, before = self.fleet, self.action
        wanted = int(np.clip(action.replicas, 1, len(self.places)))
        if action.power_cap_w != before.power_cap_w:
            table = fleet.table(self.degree, action.power_cap_w)
            for place in self.places:
                place.settle()
                place.replica.set_table(table)
            self._note(f"power cap {action.power_cap_w or self.fleet.gpu.tdp_w:g} W")
        for place in self.places:
            place.replica.slots = action.batch_limit
            if action.hold_s == 0 or action.hold_s < before.hold_s:
                place.release_s = min(place.release_s, self.now_s)
        up = [p for p in self.places if p.state in (State.AWAKE, State.STARTING)]
        for place in self.places:
            if len(up) < wanted and place.state is State.DRAINING:
                place.state = State.AWAKE
                up.append(place)
        for place in self.places:
            if len(up) < wanted and place.state is State.ASLEEP:
                self._start(place)
                up.append(place)
        # Those that are starting have cost already and are wanted least; then the emptiest.
        order = sorted(
            up, key=lambda p: (p.state is State.AWAKE, p.replica.outstanding, -self._index(p))
        )
        spare = len(up) - wanted
        awake = sum(p.state is State.AWAKE for p in up)
        for place in order[:spare]:
            if place.state is State.AWAKE and awake == 1:
                continue
            awake -= place.state is State.AWAKE
            self._stop(place)
        self.action = action

    def _index(self, place: _Place) -> int:
        return next(i for i, p in enumerate(self.places) if p is place)

    def _start(self, place: _Place) -> None:
        change = self.fleet.file.replica
        joules = self.fleet.start_energy_j(self.degree)
        place.asleep_s += self.now_s - place.since_s
        place.state, place.ready_s = State.STARTING, self.now_s + change.start_s
        place.replica.now_s = place.ready_s
        self.start_j += joules
        self._note("start", simulated_energy_j=joules, start_s=change.start_s)

    def _stop(self, place: _Place) -> None:
        left = place.replica.outstanding
        self._note("stop", drained_requests=left)
        if place.state is State.STARTING and not left:
            # What its start has cost is lost; it sleeps at once.
            place.state, place.since_s = State.ASLEEP, self.now_s
            return
        if not left:
            place.settle()
            place.state, place.since_s = State.ASLEEP, self.now_s
            return
        place.state = State.DRAINING

    def _note(self, what: str, **cost: Any) -> None:
        self.changes.append(Change(at_s=self.now_s, what=what, **cost))

    # ----------------------------------------------------------------------- accounts

    def joules(self) -> dict[str, float]:
        """Simulated joules so far, by what took them."""
        sleep_w = self.fleet.sleep_w(self.degree)
        busy = idle = asleep = 0.0
        for p in self.places:
            p.settle()
            busy += p.replica.busy_j
            idle += p.idle_j
            asleep += p.asleep_s
            if p.state is State.ASLEEP:
                asleep += self.now_s - p.since_s
        # GPUs that no replica of this layout has room on sleep all the time.
        spare = self.fleet.gpus - len(self.places) * self.degree
        rest_w = self.fleet.sleep_w(1) * spare
        return {
            "steps": busy,
            "loaded_idle": idle,
            "sleeping": asleep * sleep_w + rest_w * self.now_s,
            "starting": self.start_j,
        }

    def late(self) -> int:
        """Requests so far that broke a limit or are breaking one."""
        return int((~self.within(self.next)).sum())

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
        Awake, over time.
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
            "policy": self.policy,
            "layout": self.layout,
            "requests": self.requests,
            "duration_s": self.duration_s,
            "simulated_energy_j": self.simulated_energy_j,
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
                "others": len(self.changes) - len(starts) - len(stops),
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
    fleet : Fleet
    trace : Trace
    policy : Policy
        Asked at every ``control.interval_s``.
    """
    action = policy.first()
    world = World(fleet, trace, policy.tensor_parallel, action)
    actions, interval = [(0.0, action)], fleet.file.control.interval_s
    replica_s = 0.0
    for k in range(1, int(trace.duration_s / interval) + 1):
        world.live(k * interval)
        replica_s += interval * (len(world.places) - world.count(State.ASLEEP))
        wanted = policy.decide(world.seen())
        if wanted != world.action:
            world.act(wanted)
            actions.append((world.now_s, wanted))
    return outcome(world, policy.name, actions, replica_s / max(world.now_s, interval))


def outcome(
    world: World, name: str, actions: list[tuple[float, Action]], mean_replicas: float
) -> Rehearsal:
    """Finish what runs, and sum up."""
    world.finish()
    ttft, tpot = world.times()
    return Rehearsal(
        policy=name,
        layout=f"TP{world.degree}",
        requests=len(world.trace),
        duration_s=world.now_s,
        simulated_joules=world.joules(),
        ttft_s=ttft,
        tpot_s=tpot,
        within_ratio=float(world.within(len(world.trace)).mean()),
        changes=tuple(world.changes),
        mean_replicas=mean_replicas or float(actions[0][1].replicas),
        actions=tuple(actions),
    )
