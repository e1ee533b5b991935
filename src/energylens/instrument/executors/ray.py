"""Tasks on the nodes of a Ray cluster."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from energylens.errors import InputError, MissingExtraError
from energylens.instrument.executor import Place, Report, ReportKind, Task, Work
from energylens.instrument.executors.local import _DONE
from energylens.instrument.meter import Meter

# ------------------------------------------------------------------------------------------- Ray


class RayExecutor:
    """Tasks on a Ray cluster, each with its GPUs from a placement group.

    A task whose GPUs fit on one node gets them on one node. A larger one (TP x PP over
    nodes) gets one bundle a GPU; it runs in the first, and its engine puts its ranks into the
    others, which it finds through Ray's current placement group. The meters of the other nodes
    are served over HTTP to the task; such a task is expected to have those nodes for itself.

    Parameters
    ----------
    address : str, optional
        Of the cluster; the running one if not given.
    meter_factory : callable, optional
        Opens the meter on the other nodes of a task that spans nodes.
    cpus_per_task : float
        CPUs that a task asks for.

    Raises
    ------
    MissingExtraError
        If ray is not installed.
    UsageError
        If there is no cluster.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        meter_factory: Callable[[], Meter] | None = None,
        cpus_per_task: float = 1.0,
    ) -> None:
        try:
            import ray
        except ImportError:
            raise MissingExtraError("ray", "ray", "measuring on a Ray cluster") from None
        self._ray: Any = ray
        if not ray.is_initialized():
            try:
                ray.init(address=address or "auto", log_to_driver=False)
            except (ConnectionError, ValueError) as error:
                raise InputError(
                    f"there must be a Ray cluster to run on: {error} Start one with `ray start`."
                ) from None
        self._meter_factory = meter_factory
        self._cpus = cpus_per_task
        self._work: Any = None
        self._tasks: list[_RayTask] = []
        self._stopping = False

    @property
    def gpus(self) -> int:
        """GPUs of the cluster as it is now."""
        return int(self._ray.cluster_resources().get("GPU", 0))

    def begin(self, work: Work) -> None:
        """Say what tasks do."""
        self._work = self._ray.put(work)

    def _largest_node(self) -> int:
        nodes = (node for node in self._ray.nodes() if node["Alive"])
        return max((int(node["Resources"].get("GPU", 0)) for node in nodes), default=0)

    def submit(self, task: Task) -> None:
        """Ask the cluster for the task's GPUs; it starts when they are granted."""
        from ray.util.placement_group import placement_group

        if task.gpus <= max(self._largest_node(), 1):
            bundles = [{"CPU": self._cpus, "GPU": task.gpus}]
        else:
            bundles = [{"CPU": self._cpus, "GPU": 1} for _ in range(task.gpus)]
        group = placement_group(bundles, strategy="PACK")
        self._tasks.append(_RayTask(task=task, group=group, waiting_for=group.ready()))

    def reports(self, timeout_s: float) -> list[Report]:
        """Collect what the tasks have said."""
        if not self._tasks:
            return []
        refs = [t.waiting_for for t in self._tasks]
        ready, _ = self._ray.wait(refs, num_returns=len(refs), timeout=timeout_s)
        found: list[Report] = []
        for entry in list(self._tasks):
            if entry.waiting_for in ready:
                found += self._advance(entry)
            elif entry.actor is not None and entry.silence_s > entry.task.limit_s:
                self._end(entry)
                found.append(
                    Report(
                        task_id=entry.task.id,
                        kind=ReportKind.SILENT,
                        message=f"nothing was heard for {entry.silence_s:.0f} s",
                    )
                )
            elif entry.actor is None and self._stopping:
                self._end(entry)
                found.append(Report(task_id=entry.task.id, kind=ReportKind.DONE))
        return found + self._give_up_waiting()

    def _give_up_waiting(self) -> list[Report]:
        """Find tasks that no node left in the cluster can ever hold."""
        if any(entry.actor is not None for entry in self._tasks):
            for entry in self._tasks:
                if entry.actor is None:
                    entry.heard_s = time.monotonic()  # its turn may still come
            return []
        found = []
        for entry in list(self._tasks):
            if entry.silence_s > entry.task.limit_s:
                self._end(entry)
                found.append(
                    Report(
                        task_id=entry.task.id,
                        kind=ReportKind.LOST,
                        message=f"the cluster found no {entry.task.gpus} GPUs for it in "
                        f"{entry.silence_s:.0f} s; it has {self.gpus}",
                    )
                )
        return found

    def _advance(self, entry: _RayTask) -> list[Report]:
        entry.heard_s = time.monotonic()
        try:
            answer = self._ray.get(entry.waiting_for)
            if entry.actor is None:
                entry.actor = self._start(entry)
                entry.waiting_for = entry.ask()
                return []
        except self._ray.exceptions.RayError as error:
            self._end(entry)
            first = str(error).strip().splitlines()[:1]
            return [
                Report(
                    task_id=entry.task.id,
                    kind=ReportKind.LOST,
                    message=f"the worker is lost: {first[0] if first else type(error).__name__}",
                )
            ]
        kind, piece = answer
        if kind == _DONE:
            self._end(entry)
            return [Report(task_id=entry.task.id, kind=ReportKind.DONE)]
        entry.waiting_for = entry.ask()
        return [Report(task_id=entry.task.id, kind=ReportKind.PIECE, piece=piece)]

    def _start(self, entry: _RayTask) -> Any:
        from ray.util import placement_group_table
        from ray.util.scheduling_strategies import (
            NodeAffinitySchedulingStrategy,
            PlacementGroupSchedulingStrategy,
        )

        nodes = placement_group_table(entry.group)["bundles_to_node_id"]
        here = nodes[0]
        elsewhere = []
        for node in sorted({node for node in nodes.values() if node != here}):
            if self._meter_factory is None:
                continue
            host = self._ray.remote(_RayMeterHost).options(
                num_cpus=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            )
            server = host.remote(self._meter_factory)
            entry.meters.append(server)
            url, token = self._ray.get(server.address.remote())
            elsewhere.append((url, token, ()))
        groups = {"work": 1, "control": 1}
        worker = self._ray.remote(concurrency_groups=groups)(_RayWorker).options(
            num_cpus=self._cpus,
            # With a bundle a GPU, those are for the ranks that the engine puts there.
            num_gpus=entry.task.gpus if len(nodes) == 1 else 0,
            max_restarts=0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                entry.group,
                placement_group_bundle_index=0,
                placement_group_capture_child_tasks=True,
            ),
        )
        return worker.remote(self._work, entry.task.payload, tuple(elsewhere))

    def _end(self, entry: _RayTask) -> None:
        from ray.util import remove_placement_group

        self._tasks.remove(entry)
        for actor in (entry.actor, *entry.meters):
            if actor is not None:
                with contextlib.suppress(self._ray.exceptions.RayError):
                    self._ray.kill(actor)
        with contextlib.suppress(self._ray.exceptions.RayError):
            remove_placement_group(entry.group)

    def finish_soon(self) -> None:
        """Ask every task to finish its window."""
        self._stopping = True
        for entry in self._tasks:
            if entry.actor is not None:
                entry.actor.stop.options(concurrency_group="control").remote()

    def close(self) -> None:
        """Kill what still runs; the cluster stays as it is."""
        for entry in list(self._tasks):
            self._end(entry)


@dataclass(kw_only=True)
class _RayTask:
    task: Task
    group: Any
    waiting_for: Any
    actor: Any = None
    meters: list[Any] = field(default_factory=list)
    heard_s: float = field(default_factory=time.monotonic)

    @property
    def silence_s(self) -> float:
        return time.monotonic() - self.heard_s

    def ask(self) -> Any:
        return self.actor.next_piece.options(concurrency_group="work").remote()


class _RayWorker:
    """The actor in which a task runs. One thread works, another can be told to stop."""

    def __init__(
        self, work: Work, payload: Any, elsewhere: tuple[tuple[str, str, tuple[int, ...]], ...]
    ) -> None:
        import ray

        self._stopping = threading.Event()
        gpus = tuple(int(gpu) for gpu in ray.get_gpu_ids())
        place = Place(gpus=gpus, elsewhere=elsewhere, shared=True, stopping=self._stopping.is_set)
        self._pieces = work(payload, place)

    def next_piece(self) -> tuple[str, Any]:
        """Work until there is something to say."""
        for piece in self._pieces:
            return "piece", piece
        return _DONE, None

    def stop(self) -> None:
        """Ask to finish the window."""
        self._stopping.set()


class _RayMeterHost:
    """An actor that serves the meter of its node."""

    def __init__(self, meter_factory: Callable[[], Meter]) -> None:
        import ray

        from energylens.instrument.meters.remote import serve

        self._server = serve(meter_factory(), host=ray.util.get_node_ip_address())

    def address(self) -> tuple[str, str]:
        """URL and token."""
        return self._server.url, self._server.token
