"""What a choice is asked about: a scenario, values of what is free, and every case they span."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from itertools import product
from math import nan
from typing import Any, Protocol

import numpy as np

from energylens.capacity import layout_possible
from energylens.cases import BoolArray, Cases, FloatArray, IntArray
from energylens.dataset import freed_columns
from energylens.errors import InputError, UsageError
from energylens.records import (
    DEFAULT_CHOOSE,
    PARALLELISM,
    UNKNOWN_ENGINE,
    Boundary,
    Case,
    Configuration,
    Engine,
    Gpu,
    Llm,
    Precision,
    Workload,
    held_down_problem,
)

DEGREES = (1, 2, 4, 8)
BATCH_SIZES = tuple(2.0**power for power in range(13))

# How far below the lowest and above the highest power cap of the measured rows one may choose.
CAP_REACH_RATIOS = (0.8, 1.25)


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One LLM to be served for one workload, and what is not to be chosen.

    ``configuration`` holds the value of every knob that is not free; ``max_gpus`` limits
    the GPUs of the deployment. At the ``node`` boundary ``node_gpus`` are counted, idle or not.
    """

    llm: Llm
    gpu: Gpu
    precision: Precision
    workload: Workload
    configuration: Configuration = field(default_factory=Configuration)
    boundary: Boundary = Boundary.ACTIVE_GPUS
    node_gpus: int | None = None
    max_gpus: int = 8
    engine: Engine = UNKNOWN_ENGINE

    def __post_init__(self) -> None:
        if self.max_gpus < 1:
            raise InputError(f"max_gpus must be 1 or more, not {self.max_gpus}")
        if self.boundary is Boundary.NODE and self.node_gpus is None:
            raise InputError(
                "at the node boundary idle GPUs draw power too, so node_gpus must be given"
            )

    @classmethod
    def of(cls, case: Case, max_gpus: int) -> Scenario:
        """Ask for whatever a case serves, on so many GPUs at most."""
        asked = {item.name for item in fields(cls)} - {"max_gpus"}
        return cls(max_gpus=max_gpus, **{name: getattr(case, name) for name in asked})

    def describe(self, gpus: Sequence[Gpu] = (), precisions: Sequence[Precision] = ()) -> str:
        """Give a short human name; where GPU types or precisions are free, name those instead."""
        w = self.workload
        formats = " or ".join(item.id for item in precisions or (self.precision,))
        types = " or ".join(item.id for item in gpus or (self.gpu,))
        return (
            f"{self.llm.id} at {formats} on up to {self.gpu_limit} x {types}, "
            f"{w.input_tokens:g} + {w.output_tokens:g} tokens"
            + (f", engine {self.engine.id}" if self.engine.id else "")
        )

    @property
    def gpu_limit(self) -> int:
        """GPUs that may be used: no more than the node has."""
        return self.max_gpus if self.node_gpus is None else min(self.max_gpus, self.node_gpus)


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Values that free knobs may take. No ``precisions`` or ``gpus``: the scenario's own.

    No ``data_parallel``: 1, 2, 4 and 8, and under load every number of replicas that fits.
    ``power_caps_w`` are limits on the power of each GPU; a cap at the TDP is no cap.
    ``clocks_mhz`` are clocks that the core of each is locked to.
    """

    tensor_parallel: tuple[int, ...] = DEGREES
    pipeline_parallel: tuple[int, ...] = DEGREES
    expert_parallel: tuple[int, ...] = DEGREES
    data_parallel: tuple[int, ...] = ()
    batch_size: tuple[float, ...] = BATCH_SIZES
    precisions: tuple[Precision, ...] = ()
    gpus: tuple[Gpu, ...] = ()
    power_caps_w: tuple[float, ...] = ()
    clocks_mhz: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in (*PARALLELISM, "batch_size"):
            values = getattr(self, name)
            if (not values and name != "data_parallel") or any(
                not np.isfinite(value) or value < 1 for value in values
            ):
                raise InputError(
                    f"candidates: {name} must list numbers of 1 or more, not {values!r}"
                )


class Limit(Protocol):
    """A condition that a configuration must meet besides fitting in memory."""

    @property
    def name(self) -> str:
        """What is limited, as in "time to first token"."""

    def broken(self, cases: Cases) -> BoolArray:
        """Whether each of n cases breaks the limit; shape (n,)."""

    def reason(self, case: Case) -> str:
        """Say in words why a case that breaks the limit does."""


@dataclass(frozen=True, kw_only=True)
class CapsSeen:
    """The limit that power caps are not chosen far outside those that a fit has seen.

    ``low_ratio`` and ``high_ratio`` are the lowest and the highest cap seen, over the TDP. A case
    without a cap meets it.
    """

    low_ratio: float
    high_ratio: float
    name: str = "power caps seen"

    def broken(self, cases: Cases) -> BoolArray:
        """Whether the cap lies far outside; shape (n,)."""
        ratio = cases.power_cap_w / cases.of_gpu(lambda gpu: gpu.tdp_w)
        low, high = CAP_REACH_RATIOS
        outside: BoolArray = (ratio < low * self.low_ratio) | (ratio > high * self.high_ratio)
        return outside

    def reason(self, case: Case) -> str:
        """Say which caps the fit has seen, for the GPU of the case."""
        low, high = (ratio * case.gpu.tdp_w for ratio in (self.low_ratio, self.high_ratio))
        return f"the fit has seen caps from {low:.0f} to {high:.0f} W"


def enumerate_configurations(
    scenario: Scenario,
    *,
    choose: Sequence[str] = DEFAULT_CHOOSE,
    candidates: Candidates | None = None,
) -> Cases:
    """List the cases that the free knobs span, feasible or not.

    Left out are configurations that are none: more GPUs than allowed, fewer sequences than
    data-parallel replicas to split them, and freely chosen expert parallelism other than none or
    over all tensor x data parallel GPUs of an LLM that has experts (as vLLM lays it out).

    Parameters
    ----------
    scenario : Scenario
        What is served, and the knobs that are not free.
    choose : sequence of str
        The free knobs, names from :data:`energylens.dataset.KNOBS`.
    candidates : Candidates, optional
        Their values.

    Returns
    -------
    Cases
        Columns of n cases, each configuration once.

    Raises
    ------
    UsageError
        If a name is no knob, or a free knob has nothing to choose from.
    """
    freed, listed, several = freed_columns(choose), candidates or Candidates(), list[Any]()
    fixed = scenario.configuration
    for name, free, given, otherwise in (
        ("gpu", "gpu_index", listed.gpus, scenario.gpu),
        ("precision", "precision_index", listed.precisions, scenario.precision),
        ("power cap", "power_cap_w", listed.power_caps_w, fixed.power_cap_w or nan),
        ("clock", "clock_mhz", listed.clocks_mhz, fixed.clock_mhz or nan),
    ):
        if free in freed and not given:
            raise UsageError(f"to choose the {name} freely, the candidates must list some")
        several.append(given if free in freed else (otherwise,))
    gpus, precisions, caps, clocks = several
    for cap, clock in product(caps, clocks):
        # A list for several GPU types may hold what is possible on one of them alone.
        if all(refused := [held_down_problem(gpu, cap, clock) for gpu in gpus]):
            raise UsageError(str(refused[0]))

    def values(name: str) -> FloatArray:
        chosen = (getattr(listed, name) or DEGREES) if name in freed else (getattr(fixed, name),)
        return np.unique(np.asarray(chosen, dtype=np.float64))

    tp, pp, ep, dp = (
        grid.reshape(-1) for grid in np.meshgrid(*map(values, PARALLELISM), indexing="ij")
    )
    keep = tp * pp * dp <= scenario.gpu_limit
    if "expert_parallel" in freed:
        keep &= (ep == 1) | ((ep == tp * dp) & (scenario.llm.experts is not None))
        # Without replicas whole experts on each GPU and a part of each cost the same: one of the
        # two is a candidate, experts spread out where they cannot be cut.
        cut = np.all(
            [
                layout_possible(
                    scenario.llm, p, tensor_parallel=tp, pipeline_parallel=pp, data_parallel=dp
                )
                for p in precisions
            ],
            axis=0,
        )
        keep &= (tp == 1) | (dp > 1) | np.where(ep == 1, cut, ~cut)
    layouts = np.column_stack([tp, pp, ep, dp])[keep]
    batches = values("batch_size")
    layout, batch, precision, gpu, cap_w, clock_mhz = (
        grid.reshape(-1)
        for grid in np.meshgrid(
            np.arange(len(layouts)),
            batches,
            np.arange(len(precisions)),
            np.arange(len(gpus)),
            np.unique(np.asarray(caps, dtype=np.float64)),
            np.unique(np.asarray(clocks, dtype=np.float64)),
            indexing="ij",
        )
    )
    possible = layouts[layout, 3] <= batch
    layout, batch = layout[possible], batch[possible]
    return _cases(
        scenario,
        layouts[layout],
        batch,
        gpus,
        gpu[possible],
        precisions,
        precision[possible],
        cap_w[possible],
        clock_mhz[possible],
    )


def _cases(
    scenario: Scenario,
    layouts: FloatArray,
    batch: FloatArray,
    gpus: tuple[Gpu, ...],
    gpu: IntArray,
    precisions: tuple[Precision, ...],
    precision: IntArray,
    power_cap_w: FloatArray,
    clock_mhz: FloatArray,
) -> Cases:
    n, w = len(batch), scenario.workload

    def filled(value: float | None) -> FloatArray:
        return np.full(n, np.nan if value is None else value, dtype=np.float64)

    unknown = filled(None)
    return Cases(
        llms=(scenario.llm,),
        gpus=gpus,
        precisions=precisions,
        engines=(scenario.engine,),
        llm_index=np.zeros(n, dtype=np.intp),
        gpu_index=gpu.astype(np.intp),
        precision_index=precision.astype(np.intp),
        engine_index=np.zeros(n, dtype=np.intp),
        tensor_parallel=layouts[:, 0],
        pipeline_parallel=layouts[:, 1],
        expert_parallel=layouts[:, 2],
        data_parallel=layouts[:, 3],
        batch_size=batch,
        mean_batch_size=unknown,
        input_tokens=filled(w.input_tokens),
        output_tokens=filled(w.output_tokens),
        vision_tokens=filled(w.vision_tokens),
        images=filled(w.images),
        frames=filled(w.frames),
        node_boundary=np.full(n, scenario.boundary is Boundary.NODE),
        node_gpus=filled(scenario.node_gpus),
        power_cap_w=power_cap_w,
        ttft_s=unknown,
        tpot_s=unknown,
        request_latency_s=unknown,
        average_power_w=unknown,
        clock_mhz=clock_mhz,
    )
