"""A folder whose plan grows while it is measured: what a kill leaves is gone on from.

``plan.jsonl`` holds every case that was decided on, before it is measured; ``runs.jsonl`` and
``runs.records.jsonl`` are those of a sweep. `energylens.campaign` and `energylens.proving` decide
what comes next; both go on where they were stopped or killed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from energylens import files, table
from energylens.catalog.scaling import scaled_down
from energylens.dataset import Dataset
from energylens.errors import EnergyLensError
from energylens.instrument import planfile, sweep
from energylens.instrument.executor import Executor
from energylens.instrument.plan import Plan, PlannedCase, Procedure
from energylens.instrument.worker import EngineFactory, MeterFactory


@dataclass(kw_only=True)
class Instrument:
    """What measures: engines, a meter, where they run, and how.

    Parameters
    ----------
    engine_factory, meter_factory
        As in :func:`energylens.instrument.sweep.measure`.
    make_executor : callable
        Makes an executor for each round.
    procedure : Procedure
        How cases are measured.
    gpus : int, optional
        GPUs that a case may have at most.
    options : dict
        Further arguments of :func:`energylens.instrument.sweep.measure`.
    """

    engine_factory: EngineFactory
    meter_factory: MeterFactory
    make_executor: Callable[[], Executor]
    procedure: Procedure = field(default_factory=Procedure)
    gpus: int | None = None
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)


class SweepFolder:
    """Plan, rows and records of one folder, made where there is none."""

    def __init__(self, path: str | Path, instrument: Instrument) -> None:
        self.path = Path(path)
        self.instrument = instrument
        self.path.mkdir(parents=True, exist_ok=True)
        self.cases: list[PlannedCase] = []
        if self.file("plan.jsonl").exists():
            earlier = planfile.read_plan(self.file("plan.jsonl"), scale=scaled_down)
            self.cases = list(earlier.cases)
        self._seen: tuple[int, set[str]] = (-1, set())

    def file(self, name: str) -> Path:
        """A file of the folder."""
        return self.path / name

    @property
    def plan(self) -> Plan:
        """Every case decided on so far."""
        made = self.instrument
        return Plan(cases=tuple(self.cases), procedure=made.procedure, seed=made.seed)

    def add(self, cases: Sequence[PlannedCase]) -> None:
        """Decide on cases, on the disk before they are measured."""
        self.cases += cases
        planfile.write_plan(self.file("plan.jsonl"), self.plan)

    def records(self) -> list[dict[str, Any]]:
        """Records so far; a line torn by a kill is left out."""
        path = self.file("runs.records.jsonl")
        if not path.exists():
            return []
        return [r for r in files.read_json_lines(path, allow_torn_end=True) if isinstance(r, dict)]

    def ended(self) -> dict[str, dict[str, Any]]:
        """Records of the cases that were measured or failed, by their key; the last of each."""
        return {str(r["case"]): r for r in self.records() if r.get("kind") == "case"}

    def done(self) -> set[str]:
        """Keys of the cases that need no further work."""
        path = self.file("runs.records.jsonl")
        size = path.stat().st_size if path.exists() else 0
        if self._seen[0] != size:
            self._seen = (size, set(self.ended()))
        return self._seen[1]

    def unfinished(self) -> bool:
        """Whether a case that was decided on is not measured yet."""
        return any(case.key not in self.done() for case in self.cases)

    def rows(self) -> list[dict[str, Any]]:
        """Rows measured so far, as they are written; one torn by a kill is left out."""
        path = self.file("runs.jsonl")
        if not path.exists():
            return []
        return [r for r in files.read_json_lines(path, allow_torn_end=True) if isinstance(r, dict)]

    def dataset(self) -> Dataset | None:
        """Rows measured so far; None if there are none."""
        path = self.file("runs.jsonl")
        if not path.exists() or not path.stat().st_size:
            return None
        try:
            files.read_json_lines(path)
        except EnergyLensError:  # torn by a kill, and mended when the sweep goes on
            whole = self.rows()
            if not whole:
                return None
            text = "".join(json.dumps(row) + "\n" for row in whole)
            return table.dataset_from_table(files.parse_table(text, str(path), "jsonl"))
        return table.read(path)

    def measure(
        self, on_progress: Callable[[sweep.SweepProgress], None] | None = None
    ) -> sweep.SweepResult:
        """Measure what is decided on and not measured yet."""
        made = self.instrument
        return sweep.measure(
            self.plan,
            made.engine_factory,
            made.meter_factory,
            self.file("runs.jsonl"),
            executor=made.make_executor(),
            gpus=made.gpus,
            on_progress=on_progress,
            **made.options,
        )
