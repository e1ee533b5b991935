"""Where the seconds of a request go, and what GPUs draw in them: joules over seconds by term."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from energylens.capacity import Memory
from energylens.cases import Cases
from energylens.counts import in_flight
from energylens.explanation import Explanation
from energylens.latency_terms import NAMES, TERMS
from energylens.model import EnergyModel
from energylens.pacing import full_batch
from energylens.records import Case
from energylens.schemas import headed
from energylens.service import idle_of
from energylens.viewing import picked

# What the hardware does, with the terms of the two laws that are about it.
KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "reading memory": (
        ("decode_weights", "decode_cache", "narrow_weights", "weight_only_weights"),
        ("step_weights", "step_cache", "step_narrow_weights", "step_weight_only"),
    ),
    "multiplying new tokens": (("decode_compute",), ("step_compute",)),
    "computing prompts": (("prefill_compute", "vision"), ("prompt_compute", "vision")),
    "launching kernels": (
        ("decode_launch", "prefill_launch", "narrow_steps"),
        ("step_launch", "prompt_launch"),
    ),
    "the engine's own work": (("decode_sequence",), ("step_sequence", "media")),
    "talking between GPUs": (
        ("tensor_parallel",),
        ("step_link", "step_synchronisation", "prompt_link"),
    ),
    "pipeline stages": (("pipeline_parallel",), ("step_stage", "step_bubble")),
}
LEAST_SHARE = 0.02  # of joules and of seconds, below which a ratio of the two says nothing


@dataclass(frozen=True, kw_only=True)
class KindOfTime:
    """Seconds and joules of a request in which GPUs do one thing.

    ``watts_per_gpu`` is None where seconds or joules are next to none; ``plausible`` whether it
    lies between what a loaded GPU draws idle and its TDP.
    """

    name: str
    seconds: float
    joules: float
    watts_per_gpu: float | None
    plausible: bool


@dataclass(frozen=True, kw_only=True)
class ExplainedTime:
    """The times of a full batch, by term in seconds of a request, and by what GPUs do."""

    tpot_s: float
    request_latency_s: float
    requests_per_s: float
    terms_s: dict[str, float]
    kinds: tuple[KindOfTime, ...]

    def to_json(self) -> dict[str, Any]:
        """Names and values."""
        return {
            **picked(self, "tpot_s request_latency_s requests_per_s terms_s"),
            "watts": {
                kind.name: picked(kind, "seconds joules watts_per_gpu plausible")
                for kind in self.kinds
            },
        }

    @property
    def implausible(self) -> tuple[KindOfTime, ...]:
        """Kinds whose watts no GPU of the type draws: one of the two laws is off there."""
        return tuple(kind for kind in self.kinds if not kind.plausible)


def explain_time(model: EnergyModel, case: Case) -> ExplainedTime | None:
    """Explain where the seconds go; None where the model knows no time.

    Parameters
    ----------
    model : EnergyModel
        Fitted to rows with times.
    """
    time = model.time
    if time is None:
        return None
    cases = Cases.of([case])
    parts = time.predict_parts_s(cases, "latency")[0]
    prefill, decode = model.predict_parts_j(cases)
    joules = dict(zip((t.name for t in model.terms), (prefill + decode)[0], strict=True))
    seconds = dict(zip(NAMES, parts.tolist(), strict=True))
    full = full_batch(model, time, cases)
    total_s, total_j = float(full.latency_s[0]), float((prefill + decode).sum())
    held_back_s = float(full.held_back_s[0])
    configuration = case.configuration
    replica_gpus = configuration.tensor_parallel * configuration.pipeline_parallel
    running = float(in_flight(cases)[0]) / configuration.data_parallel
    low, high = idle_of(model)(case.gpu), case.gpu.tdp_w
    kinds = []
    for name, (of_joules, of_seconds) in KINDS.items():
        j = float(sum(joules.get(term, 0.0) for term in of_joules))
        s = float(sum(seconds.get(term, 0.0) for term in of_seconds))
        telling = s > LEAST_SHARE * total_s and j > LEAST_SHARE * total_j
        # All sequences of the batch share these seconds, and so their joules.
        watts = j * running / (s * replica_gpus) if telling else None
        kinds.append(
            KindOfTime(
                name=name,
                seconds=s,
                joules=j,
                watts_per_gpu=watts,
                plausible=watts is None or low <= watts <= high,
            )
        )
    kinds.append(
        KindOfTime(
            name="held back by the power limit",
            seconds=held_back_s,
            joules=0.0,
            watts_per_gpu=None,
            plausible=True,
        )
    )
    terms_s = {term.name: float(np.round(s, 9)) for term, s in zip(TERMS, parts, strict=True)}
    return ExplainedTime(
        tpot_s=float(full.tpot_s[0]),
        request_latency_s=total_s,
        requests_per_s=float(full.requests_per_s[0]),
        terms_s=terms_s | {"power_limit": float(np.round(held_back_s, 9))},
        kinds=tuple(kinds),
    )


def explanation_document(
    explanation: Explanation, memory: Memory, times: ExplainedTime | None
) -> dict[str, Any]:
    """Put joules, memory and seconds of a case in the document of `energylens.schemas`."""
    return headed(
        "explain",
        explanation.to_json()
        | {"memory": memory.to_json(), "time": None if times is None else times.to_json()},
    )
