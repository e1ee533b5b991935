"""Policies on equal terms: the same past, layouts, actions and costs; what they look at differs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import ceil

import numpy as np

from energylens.errors import UnknownChoiceError
from energylens.online.fleet import Fleet
from energylens.online.knowledge import Knowledge
from energylens.online.ours import Ours
from energylens.online.plans import Plan, best_static, most_running
from energylens.online.rehearsal import Action, Policy, Seen

QUEUE_SHARE = 0.8  # of the sequences at which limits hold, that a replica is scaled to
QUEUE_TOLERANCE = 0.1  # relative, within which HPA does nothing
QUEUE_STABLE_S = 300.0  # that HPA looks back before it scales down


@dataclass(eq=False)
class Fixed:
    """One action for all time."""

    name: str
    action: Action

    def first(self) -> Action:
        """Give what holds."""
        return self.action

    def decide(self, seen: Seen) -> Action:
        """Change nothing."""
        return seen.action


def deployed(fleet: Fleet) -> Action:
    """What runs today."""
    serve, setting = fleet.file.serve, fleet.settings[0]
    most = int(fleet.table(serve.tensor_parallel, setting).batches[-1])
    return Action(
        replicas=serve.replicas, batch_limit=most, setting=setting,
        tensor_parallel=serve.tensor_parallel,
    )  # fmt: skip


def static_deployed(fleet: Fleet, known: Knowledge, plan: Plan) -> Policy:  # noqa: ARG001
    """Everything as it is deployed today."""
    return Fixed("static-deployed", deployed(fleet))


def static_full_batch(fleet: Fleet, known: Knowledge, plan: Plan) -> Policy:
    """Choose the layout by joules and time per token of full batches, replicas by capacity."""
    best: tuple[float, Action] | None = None
    for degree in fleet.layouts:
        k = known.of(degree, fleet.settings[0])
        good = np.flatnonzero(k.full_tpot_s <= fleet.tpot_s)
        for row in good:
            replicas = max(ceil(plan.peak_per_s / k.saturation[row]), 1)
            if replicas > fleet.most_replicas(degree):
                continue
            joules = float(k.power_w[row, -1] / k.rates[row, -1])
            action = Action(
                replicas=replicas, batch_limit=int(k.limits[row]), setting=k.setting,
                tensor_parallel=degree,
            )  # fmt: skip
            if best is None or joules < best[0]:
                best = (joules, action)
    return Fixed("static-full-batch", deployed(fleet) if best is None else best[1])


def static_service(fleet: Fleet, known: Knowledge, plan: Plan) -> Policy:
    """Choose all by the service model: limits at the peak rate, fewest joules at the mean rate."""
    return Fixed("static-service", best_static(fleet, known, plan))


@dataclass(eq=False)
class _ByQueue:
    """Replicas so that each has a target of requests in flight, as HPA scales on a metric of KEDA.

    desired = ceil(in flight / target); nothing within the tolerance; down only to the largest
    desired of the last five minutes.
    """

    fleet: Fleet
    start: Action
    target: float
    name: str = "queue"
    _wanted: list[tuple[float, int]] = field(default_factory=list)

    def first(self) -> Action:
        return self.start

    def decide(self, seen: Seen) -> Action:
        control = self.fleet.file.control
        now = max(seen.awake + seen.starting, 1)
        ratio = seen.in_flight / (now * self.target)
        desired = now if abs(ratio - 1) <= QUEUE_TOLERANCE else ceil(seen.in_flight / self.target)
        places = self.fleet.most_replicas(self.start.tensor_parallel)
        desired = int(np.clip(desired, control.min_replicas, places))
        self._wanted.append((seen.now_s, desired))
        recent = [k for at, k in self._wanted if at >= seen.now_s - QUEUE_STABLE_S]
        if desired < now:
            desired = min(max(recent), now)
        return replace(seen.action, replicas=desired)


def by_queue(fleet: Fleet, known: Knowledge, plan: Plan) -> Policy:
    """Scale the static best layout on requests in flight."""
    best = best_static(fleet, known, plan)
    k = known.of(best.tensor_parallel, best.setting)
    target = QUEUE_SHARE * most_running(k)
    return _ByQueue(fleet, replace(best, batch_limit=int(k.limits[-1])), max(target, 1.0))


#: By the name that the command line knows.
POLICIES: dict[str, Callable[[Fleet, Knowledge, Plan], Policy]] = {
    "static-deployed": static_deployed,
    "static-full-batch": static_full_batch,
    "static-service": static_service,
    "queue": by_queue,
    "ours": Ours,
}
ORACLE = "oracle"


def policy(name: str, fleet: Fleet, known: Knowledge, plan: Plan) -> Policy:
    """Make a policy by its name.

    Raises
    ------
    UnknownChoiceError
        If there is none.
    """
    if name not in POLICIES:
        raise UnknownChoiceError(
            "policy", name, (*POLICIES, ORACLE), f"Known are {', '.join((*POLICIES, ORACLE))}."
        )
    return POLICIES[name](fleet, known, plan)
