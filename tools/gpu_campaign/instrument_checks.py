"""How good is the instrument itself? Four figures, from a GPU that has work to do.

repeatability
    Relative spread of the joules per request of ten runs of one and the same case; aim 1 %.
closure
    Prefill and decode, measured apart, against the whole request; aim 2 %.
overhead
    Time of a phase with the meter read all the time, against the same phase without; aim 0.5 %.
integration
    Joules of the energy counter against power integrated by another reader; aim 2 %.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tools.gpu_campaign.plans import PROCEDURE, REHEARSAL
from tools.gpu_campaign.run import engine_options, run_piece

from energylens import catalog
from energylens.catalog.scaling import scaled_down
from energylens.errors import EnergyLensError
from energylens.instrument.engine import Batch, Engine, Phase
from energylens.instrument.engines import open_engine
from energylens.instrument.meter import ChannelKind, Meter
from energylens.instrument.meters import open_meter
from energylens.instrument.meters.trail import Trail
from energylens.instrument.plan import Plan, PlannedCase, Procedure, layout_of
from energylens.records import Case, Configuration, Workload

REPEATS = 10
ROUNDS = 6  # with and without a meter, by turns


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where and how the checks run."""

    engine: str
    gpu: str
    meter: str
    rehearsal: bool

    @property
    def procedure(self) -> Procedure:
        """Whole requests too: closure needs them."""
        return replace(REHEARSAL if self.rehearsal else PROCEDURE, whole=True, reference_every=0)

    def case(self, repeat: int = 0) -> PlannedCase:
        """Return the case that is run over and over."""
        llm = catalog.llm("Qwen/Qwen3-0.6B" if self.rehearsal else "meta-llama/Llama-3.1-8B")
        small = self.rehearsal
        return PlannedCase(
            case=Case(
                llm=scaled_down(llm, 2) if small else llm,
                gpu=catalog.gpu(self.gpu),
                precision=catalog.precision("bf16"),
                workload=Workload(
                    input_tokens=32 if small else 1024, output_tokens=4 if small else 128
                ),
                configuration=Configuration(batch_size=2 if small else 16),
            ),
            engine=self.engine,
            options=engine_options(self.engine, small),
            scaled_layers=2 if small else None,
            repeat=repeat,
        )


def check(settings: Settings, folder: Path, minutes: float) -> dict[str, Any]:
    """Take all four figures and write them to ``folder/instrument.json``.

    A figure that this machine cannot give is null, with the reason beside it.
    """
    table = folder / "repeats.jsonl"
    repeats = tuple(settings.case(i) for i in range(REPEATS))
    plan = Plan(cases=repeats, procedure=settings.procedure)
    run_piece(plan, table, meter=settings.meter, minutes=minutes, log_folder=folder / "logs")
    rows = [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]
    figures: dict[str, Any] = {"settings": vars(settings), "repeats": len(rows)}
    figures |= repeatability(rows)
    meter = open_meter(settings.meter)
    engine = open_engine(settings.engine)
    try:
        planned = settings.case()
        engine.start(layout_of([planned]))
        batch = Batch(
            requests=int(planned.case.configuration.batch_size),
            input_tokens=int(planned.case.workload.input_tokens),
            output_tokens=int(planned.case.workload.output_tokens),
        )
        engine.prepare(batch, [Phase.REQUEST])
        length_s = 0.3 if settings.rehearsal else 5.0
        figures["overhead_ratio"] = overhead(engine, meter, batch, length_s)
        figures |= integration(engine, meter, batch, length_s * 3)
    finally:
        engine.close()
        meter.close()
    (folder / "instrument.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")
    return figures


def repeatability(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Spread of the rows' joules, and how far parts miss the whole."""
    joules = [row["energy_per_request_j"] for row in rows]
    closures = [abs(row["x_closure_ratio"]) for row in rows if row.get("x_closure_ratio")]
    spread = statistics.stdev(joules) / statistics.fmean(joules) if len(joules) > 1 else None
    return {
        "repeatability_ratio": spread,
        "closure_ratio": statistics.fmean(closures) if closures else None,
        "worst_closure_ratio": max(closures, default=None),
    }


def overhead(engine: Engine, meter: Meter, batch: Batch, length_s: float) -> float:
    """Time per repetition with the meter's trail running over that without, minus 1."""
    numbers = iter(range(10**9))

    def seconds() -> float:
        done, began = 0, time.perf_counter()
        while time.perf_counter() - began < length_s:
            engine.run_phase(Phase.REQUEST, batch, next(numbers))
            done += 1
        return (time.perf_counter() - began) / done

    places = tuple(range(len(meter.channels)))
    seconds()
    ratios = []
    for _ in range(ROUNDS):  # by turns, so that a drift falls on both
        plain = seconds()
        with Trail(meter, places):
            metered = seconds()
        ratios.append(metered / plain - 1)
    return statistics.median(ratios)


def integration(engine: Engine, meter: Meter, batch: Batch, length_s: float) -> dict[str, Any]:
    """Compare the energy counter with power integrated by a reader of its own."""
    try:
        power = open_meter("nvml-power")
    except EnergyLensError as error:
        return {"integration_ratio": None, "integration_note": str(error)}
    try:
        time.sleep(1.0)  # its first samples
        first, first_power = meter.read(), power.read()
        began, number = time.perf_counter(), 10**6
        while time.perf_counter() - began < length_s:
            engine.run_phase(Phase.REQUEST, batch, number)
            number += 1
        last, last_power = meter.read(), power.read()

        def joules(channels: Any, a: Any, b: Any) -> float:
            places = [i for i, c in enumerate(channels) if c.kind is ChannelKind.GPU][:1]
            return math.fsum(b.energy_j[i] - a.energy_j[i] for i in places)

        counted = joules(meter.channels, first, last)
        integrated = joules(power.channels, first_power, last_power)
        return {"integration_ratio": integrated / counted - 1, "integration_j": counted}
    finally:
        power.close()
