"""From the raw windows of one case to its row of the tidy table."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from energylens.columns import PERCENTILES
from energylens.instrument.engine import Phase
from energylens.instrument.meter import Channel, ChannelKind, DeviceState, MeterError
from energylens.instrument.plan import Mode, PlannedCase
from energylens.instrument.windows import Measured
from energylens.records import Boundary, Source, power_cap_range_w

CLOCK_TOLERANCE_RATIO = 0.03  # between the clock that was locked and the one that ran

# ---------------------------------------------------------------------------------------- rows


def row_of(
    planned: PlannedCase,
    measured: Measured,
    *,
    source: Source,
    channels: Sequence[Channel],
    active: Sequence[int],
    shared: bool = False,
) -> dict[str, Any]:
    """Make the row of the tidy table; columns that begin with ``x_`` are the instrument's own.

    A shard's joules are those of its rank, times the ranks of the layout: communication is not
    in them.

    Parameters
    ----------
    planned, measured
        The case, and what came of it.
    source : Source
        What its joules may be called.
    channels, active
        Channels of the meter, and places of those that are the deployment's.
    shared : bool
        Whether other work ran on the node: the joules of its other GPUs then mean nothing.

    Raises
    ------
    MeterError
        If the row is asked for at the boundary of the node, whose joules are not known.
    """
    case = planned.case
    configuration, workload = case.configuration, case.workload
    node = None if shared else measured.node
    node_gpus = sum(c.kind is ChannelKind.GPU for c in channels)
    at_node = case.boundary is Boundary.NODE
    energy = node if at_node else measured.active
    if energy is None:
        raise MeterError(
            "a row at the boundary node needs the joules of every GPU of the node, with nothing "
            "else running on them: use --exclusive and a meter that sees them."
        )
    ranks = configuration.gpus if planned.shard else 1

    def joules(value: float | None) -> float | None:
        return None if value is None else value * ranks

    # Within the scatter prefill may come out above the whole: then no part of it is known.
    parts = energy.parts_agree and (energy.prefill_j or 0.0) <= energy.whole_j
    encoder = measured.phases.get(Phase.ENCODE)
    idle = measured.idle
    of_gpus = all(channels[i].kind is ChannelKind.GPU for i in active)
    row: dict[str, Any] = {
        "llm": case.llm.id,
        "gpu": case.gpu.id,
        "precision": case.precision.id,
        **configuration.degrees,
        **_batch_sizes(planned, measured),
        "modality": planned.media.modality.value,
        "task": workload.task or None,
        "input_tokens": workload.input_tokens,
        "output_tokens": workload.output_tokens,
        "vision_tokens": max(result.vision_tokens for result in measured.phases.values()),
        "images": planned.media.images,
        "frames": planned.media.frames,
        "energy_per_request_j": joules(energy.whole_j),
        "prefill_energy_per_request_j": joules(energy.prefill_j) if parts else None,
        "decode_energy_per_request_j": joules(energy.decode_j) if parts else None,
        **_latency(planned, measured),
        **_under_load(planned, measured),
        "average_power_w": energy.power_w * ranks,
        "boundary": case.boundary.value,
        "node_gpus": node_gpus if at_node else None,
        "power_cap_w": _power_cap_w(planned, [channels[i] for i in active]),
        "clock_mhz": configuration.clock_mhz,
        "source": source.value,
        "loaded_idle_w": math.fsum(idle.energy_j[i] for i in active) / idle.duration_s / len(active)
        if idle and of_gpus and active
        else None,
        "x_mode": planned.mode.value,
        "x_stable": measured.stable,
        "x_warnings": "; ".join(measured.warnings) or None,
        "x_spread_ratio": measured.spread_ratio,
        "x_windows": sum(len(result.windows) for result in measured.phases.values()),
        "x_decode_method": energy.decode_method,
        "x_closure_ratio": energy.closure_ratio,
        "x_time_closure_ratio": measured.time_closure_ratio,
        "x_idle_power_w": math.fsum(idle.energy_j[i] for i in active) / idle.duration_s
        if idle
        else None,
        "x_node_energy_per_request_j": joules(node.whole_j) if node else None,
        "x_node_gpus": node_gpus if node else None,
        "x_encoder_energy_per_request_j": statistics.fmean(encoder.joules(active))
        if encoder
        else None,
        "x_scaled_layers": planned.scaled_layers,
        "x_shard": "x".join(map(str, planned.shard)) if planned.shard else None,
        **_states(measured.states, [channels[i].id for i in active]),
    }
    ran_hz = row.get("x_sm_clock_hz")
    if configuration.clock_mhz and ran_hz and not _near(ran_hz / 1e6, configuration.clock_mhz):
        row["x_stable"] = False
        warning = (
            f"the core ran at {ran_hz / 1e6:.0f} MHz and was locked to {configuration.clock_mhz:g}"
        )
        row["x_warnings"] = "; ".join(filter(None, (row["x_warnings"], warning)))
    return {key: value for key, value in row.items() if value is not None}


def _near(ran_mhz: float, locked_mhz: float) -> bool:
    return abs(ran_mhz / locked_mhz - 1.0) <= CLOCK_TOLERANCE_RATIO


def _power_cap_w(planned: PlannedCase, active: Sequence[Channel]) -> float | None:
    """The lowest cap that someone has set on a GPU of the deployment; the others wait for it.

    Left out where no table could hold it, because the GPU is none that the catalog describes.
    """
    low, high = power_cap_range_w(planned.case.gpu)
    cap = min((c.power_cap_w for c in active if c.power_cap_w is not None), default=None)
    return cap if cap is not None and low <= cap <= high else None


def _batch_sizes(planned: PlannedCase, measured: Measured) -> dict[str, float | None]:
    """The limit set and the mean observed; a server that others started has its own limit."""
    limit = planned.case.configuration.batch_size
    running = [w.running_requests for w in measured.main.windows if w.running_requests]
    if not running:
        return {"batch_size": limit, "mean_batch_size": limit}
    mean = statistics.fmean(running)
    foreign = planned.engine == "openai" or "url" in planned.options
    if planned.request_rate_per_s is not None and foreign:
        return {"batch_size": None, "mean_batch_size": mean}
    return {"batch_size": limit, "mean_batch_size": min(mean, limit)}


def _under_load(planned: PlannedCase, measured: Measured) -> dict[str, float | None]:
    """Rates offered and served, and percentiles over requests, of a run of arrivals."""
    if planned.mode is not Mode.STEADY:
        return {}
    windows, felt = measured.main.windows, measured.main.timings
    row: dict[str, float | None] = {}
    if planned.request_rate_per_s is not None:
        row["request_rate_per_s"] = planned.request_rate_per_s
        seconds = math.fsum(w.duration_s for w in windows)
        row["achieved_rate_per_s"] = math.fsum(w.requests for w in windows) / seconds
    gaps = [b - a for t in felt for a, b in itertools.pairwise(t.token_times_s) if b > a]
    times = {
        "ttft": [t.ttft_s for t in felt if t.ttft_s],
        "tpot": [
            (t.latency_s - t.ttft_s) / (t.output_tokens - 1)
            for t in felt
            if t.ttft_s and t.output_tokens > 1 and t.latency_s > t.ttft_s
        ],
        "itl": gaps,
        "request_latency": [t.latency_s for t in felt],
    }
    for name, percent in PERCENTILES.items():
        values = times[name.rpartition("_p")[0]]
        # A percentile beyond which not one request lies is not known.
        if len(values) * (100 - percent) >= 100:
            row[name] = float(np.percentile(values, percent))
    if len(gaps) > 1:
        row["median_itl_s"] = statistics.median(gaps)
    return row


def _states(states: Sequence[DeviceState], active: Sequence[str]) -> dict[str, float | str]:
    own = [s for s in states if s.channel in active]
    clocks = [s.sm_clock_hz for s in own if s.sm_clock_hz]
    temperatures = [s.temperature_c for s in own if s.temperature_c]
    throttles = sorted({reason for s in own for reason in s.throttle_reasons})
    row: dict[str, float | str] = {}
    if clocks:
        row["x_sm_clock_hz"] = statistics.fmean(clocks)
    if temperatures:
        row["x_temperature_c"] = max(temperatures)
    if throttles:
        row["x_throttles"] = " ".join(throttles)
    return row


def _latency(planned: PlannedCase, measured: Measured) -> dict[str, float | None]:
    """TTFT, TPOT and latency: as requests felt them where the engine says, else from phases."""
    output = planned.case.workload.output_tokens
    felt = measured.main.timings
    first = [t.ttft_s for t in felt if t.ttft_s]
    steps = [
        (t.latency_s - t.ttft_s) / (t.output_tokens - 1)
        for t in felt
        if t.ttft_s and t.output_tokens > 1 and t.latency_s > t.ttft_s
    ]
    ttft = statistics.fmean(first) if first else None
    tpot = statistics.fmean(steps) if steps else None
    latency = statistics.fmean(t.latency_s for t in felt) if felt else None
    if planned.mode is Mode.PHASES:
        # The whole batch is prefilled before anything is decoded: its time is every request's.
        prefill, decode, whole = (
            measured.phases.get(p) for p in (Phase.PREFILL, Phase.DECODE, Phase.REQUEST)
        )
        if ttft is None and prefill:
            ttft = prefill.seconds_per_repetition
        if latency is None:
            parts = (prefill, decode) if whole is None else (whole,)
            latency = sum(part.seconds_per_repetition for part in parts if part)
        if tpot is None and output > 1:
            rest = decode.seconds_per_repetition if decode else latency - (ttft or 0.0)
            tpot = rest / (output - 1) if rest > 0 else None
    return {"ttft_s": ttft, "tpot_s": tpot, "request_latency_s": latency}
