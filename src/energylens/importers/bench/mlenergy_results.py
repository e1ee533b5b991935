"""``results.json`` of the ML.ENERGY benchmark itself.

Its joules are those of a steady window in the middle of the run, over the tokens made in it; a
request's are those a token times its tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

from energylens.importers.bench.vllm_serve import latency
from energylens.importers.runs import (
    BenchmarkRun,
    Node,
    RefusedFileError,
    Scope,
    StatedEnergy,
    verified,
)

FORMAT = "ML.ENERGY results"


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
    if not steady_j or not steady_s or not each:
        raise RefusedFileError(
            f"{name}: it has no steady window with joules in it, as a run too short to have one."
        )
    _agree(node, steady_j)
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
            ),
        )
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
