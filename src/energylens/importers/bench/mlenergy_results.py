"""``results.json`` of the ML.ENERGY benchmark itself.

Its joules are those of a steady window in the middle of the run, over the tokens made in it; a
request's are those a token times its tokens. Where the file keeps the power timeline, the watts of
that window must give the same joules; a run too short for a steady window is taken as a whole, from
the timeline.
"""

from __future__ import annotations

from collections.abc import Mapping

from energylens.importers.bench.vllm_serve import latency
from energylens.importers.integrating import integrate
from energylens.importers.power import timeline
from energylens.importers.power.series import PowerLog
from energylens.importers.runs import (
    BenchmarkRun,
    Node,
    RefusedFileError,
    Scope,
    StatedEnergy,
    Window,
    verified,
)

FORMAT = "ML.ENERGY results"

#: Integrated watts and the energy counter of one window differ by less.
TIMELINE_RATIO = 0.1


def matches(document: object) -> bool:
    """Whether a document is such a file."""
    return isinstance(document, Mapping) and "steady_state_duration" in document


def read(document: Mapping[str, object], name: str) -> BenchmarkRun:
    """Read one run.

    Raises
    ------
    RefusedFileError
        If a rule refuses it: no steady state, joules that contradict each other.
    """
    node = Node(document, name)
    completed = node.number("completed")
    if not completed:
        raise RefusedFileError(f"{name}: none of its requests completed: it is no measurement.")
    steady_j, steady_s = node.number("steady_state_energy"), node.number("steady_state_duration")
    each = node.number("steady_state_energy_per_token")
    kept = timeline.power_of(document)
    log = None if kept is None else timeline.log_of(kept, name)
    notes: tuple[str, ...] = ()
    if steady_j and steady_s and each:
        _agree(node, steady_j)
        notes = _agree_with_timeline(node, log, steady_j)
    elif log is None:
        raise RefusedFileError(
            f"{name}: it has no steady window with joules in it, as a run too short to have one."
        )
    else:
        notes = ("it has no steady window: joules are those of the whole run, ramp included",)
    made = node.need("total_output_tokens") / completed
    sent = node.number("total_input_tokens")
    gpus = node.whole("num_gpus")
    rate = node.fields.get("request_rate")
    return verified(
        BenchmarkRun(
            format=FORMAT,
            where=name,
            llm=node.text("model_id"),
            gpu=node.text("gpu_model"),
            gpus=gpus,
            engine="vllm",
            completed=completed,
            input_tokens=sent / completed if sent else None,
            output_tokens=made,
            duration_s=node.need("duration"),
            request_rate_per_s=(
                node.positive("request_rate") if isinstance(rate, int | float) else None
            ),
            achieved_rate_per_s=node.positive("request_throughput"),
            max_num_seqs=node.positive("max_num_seqs"),
            max_concurrency=node.positive("max_concurrency"),
            ttft=latency(node, "ttft"),
            tpot=latency(node, "tpot"),
            itl=latency(node, "itl"),
            request_latency=latency(node, "e2el"),
            energy=StatedEnergy(
                joules=each * made * completed,
                scope=Scope.ACTIVE_GPUS,
                gpus=gpus,
                power_w=steady_j / steady_s,
                how=f"joules a token of a steady window of {steady_s:.0f} s x tokens a request",
            )
            if steady_j and steady_s and each
            else None,
            power=None if steady_j and steady_s and each else log,
            window=_span(node, "benchmark", log),
            notes=notes,
        )
    )


def _span(node: Node, what: str, log: PowerLog | None) -> Window | None:
    """Give a window of the timeline, None where the file does not have it."""
    kept = node.inner("timeline")
    if kept is None or log is None:
        return None
    begin, end = (kept.number(f"{what}_{edge}_time") for edge in ("start", "end"))
    if begin is None or end is None:
        return None
    if end <= begin:
        raise RefusedFileError(
            f"{node.name}: the {what} window of its timeline ends before it begins."
        )
    return Window(start_s=begin, end_s=end, clock=log.clock)


def _agree_with_timeline(node: Node, log: PowerLog | None, steady_j: float) -> tuple[str, ...]:
    """Refuse joules that are not those of the watts in the same window."""
    window = _span(node, "steady_state", log)
    if log is None or window is None:
        return ()
    measured = node.inner("steady_state_measurement")
    counted = measured.inner("gpu_energy") if measured is not None else None
    served = set(counted.fields) if counted is not None else {item.label for item in log.series}
    parts = [item for item in log.series if item.label in served]
    if any(
        item.time_s[0] > window.start_s or item.time_s[-1] < window.end_s for item in parts
    ) or len(parts) != len(served):
        return ("its power timeline does not cover the steady window, and was not compared",)
    joules = sum(
        integrate(item.time_s, item.power_w, window.start_s, window.end_s) for item in parts
    )
    if abs(joules / steady_j - 1.0) > TIMELINE_RATIO:
        raise RefusedFileError(
            f"{node.name}: steady_state_energy is {steady_j:g} J, but the watts of its timeline "
            f"give {joules:g} J in the same window."
        )
    return (
        f"the watts of its timeline give {joules:.4g} J in the steady window, its counter "
        f"{steady_j:.4g} J",
    )


def _agree(node: Node, steady_j: float) -> None:
    """Refuse a total that is not the sum over the GPUs."""
    measured = node.inner("steady_state_measurement")
    gpus = measured.inner("gpu_energy") if measured is not None else None
    if gpus is None:
        return
    total = sum(gpus.number(key) or 0.0 for key in gpus.fields)
    if total and abs(total - steady_j) > 0.01 * steady_j:
        raise RefusedFileError(
            f"{node.name}: steady_state_energy is {steady_j:g} J, but its GPUs sum to {total:g} J."
        )
