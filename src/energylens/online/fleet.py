"""A fleet of replicas of one LLM: what runs today, its limits, and what changing it costs."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from energylens import capacity, catalog
from energylens.answering import parse_limit
from energylens.errors import ArtefactError, InfeasibleError, InputError
from energylens.files import read_toml
from energylens.instrument.engines.load import StepTable
from energylens.instrument.engines.simulated_gpu import Board
from energylens.records import Case, Configuration, Gpu, Llm, Precision, Workload
from energylens.words import complaint

LONGEST_CONTEXT = 32_768.0  # tokens, of the tables of steps


class Setting(NamedTuple):
    """What holds the power of each GPU down: a cap in watts, or the clock, of the top one."""

    power_cap_w: float | None = None
    clock_ratio: float | None = None

    def describe(self) -> str:
        """Name it; empty: neither."""
        cap = f"{self.power_cap_w:g} W" if self.power_cap_w else ""
        clock = f"{100 * self.clock_ratio:g} % clock" if self.clock_ratio else ""
        return ", ".join(filter(None, (cap, clock)))


AS_SHIPPED = Setting()


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Serve(_Strict):
    """What is served, on what, and as it is deployed today."""

    llm: str
    gpu: str
    precision: str | None = None
    tensor_parallel: int = Field(default=1, ge=1, le=64)
    replicas: int = Field(ge=1, le=256)
    max_num_seqs: int = Field(default=256, ge=1, le=65536)
    power_cap_w: float | None = Field(default=None, gt=0)
    model: str | None = Field(default=None, description="a model.json, a packaged one, datasheet")
    deployed_for_per_s: float | None = Field(
        default=None, gt=0, description="requests a second that the fleet was deployed for"
    )


class Limits(_Strict):
    """Times that a share of the requests must stay within."""

    ttft: str
    tpot: str
    share: float = Field(default=0.99, gt=0, lt=1)
    probability: float = Field(
        default=0.9, gt=0, lt=1, description="with which a policy that predicts must meet them"
    )


class Change(_Strict):
    """What it costs to start a replica and to keep it asleep."""

    start_s: float = Field(ge=0, le=86400)
    swap_s: float | None = Field(
        default=None, ge=0, le=86400, description="of a start in another layout"
    )
    start_energy_j: float | None = Field(default=None, ge=0)
    sleep_w: float | None = Field(default=None, ge=0, description="of a replica")


class Control(_Strict):
    """What a policy may do, and how often."""

    interval_s: float = Field(default=15.0, gt=0, le=86400)
    max_gpus: int | None = Field(default=None, ge=1, le=1024)
    min_replicas: int = Field(default=1, ge=1)
    tensor_parallel: tuple[Literal[1, 2, 4, 8], ...] = Field(
        default=(1, 2, 4, 8), min_length=1, description="degrees that a policy may choose"
    )
    power_caps_w: tuple[Annotated[float, Field(gt=0)], ...] = ()
    clock_ratios: tuple[Annotated[float, Field(ge=0.35, le=1)], ...] = ()
    max_hold_s: float = Field(default=2.0, ge=0, le=600)
    pays_back_within_s: float = Field(default=600.0, gt=0)


class FleetFile(_Strict):
    """``fleet.toml``."""

    serve: Serve
    limits: Limits
    replica: Change
    control: Control = Control()


@dataclass(frozen=True, eq=False)
class Fleet:
    """A fleet that can be rehearsed, with the catalog's records of what it names.

    All watts and joules are simulated.
    """

    file: FleetFile
    llm: Llm
    gpu: Gpu
    precision: Precision
    ttft_s: float
    tpot_s: float
    _tables: dict[tuple[int, Setting], StepTable] = field(default_factory=dict)

    @property
    def gpus(self) -> int:
        """GPUs that there are, used or not."""
        deployed = self.file.serve.replicas * self.file.serve.tensor_parallel
        return self.file.control.max_gpus or deployed

    def most_replicas(self, tensor_parallel: int) -> int:
        """Replicas of a layout that the GPUs hold."""
        return self.gpus // tensor_parallel

    @cached_property
    def layouts(self) -> tuple[int, ...]:
        """Degrees of tensor parallelism at which a replica runs here."""
        found = []
        for degree in sorted({*self.file.control.tensor_parallel, self.file.serve.tensor_parallel}):
            if degree > self.gpus or capacity.layout_problem(
                self.llm, self.precision, tensor_parallel=degree
            ):
                continue
            if capacity.memory(self.case(degree, 1, 1000.0, 500.0)).largest_batch >= 1:
                found.append(degree)
        return tuple(found)

    @cached_property
    def settings(self) -> tuple[Setting, ...]:
        """Power caps and clocks that a policy may set, what is deployed first."""
        control = self.file.control
        found = [Setting(power_cap_w=self.file.serve.power_cap_w)]
        found += [Setting(power_cap_w=cap) for cap in control.power_caps_w]
        found += [Setting(clock_ratio=ratio) for ratio in control.clock_ratios if ratio < 1]
        return tuple(dict.fromkeys(found))

    def case(
        self, tensor_parallel: int, slots: int, input_tokens: float, output_tokens: float,
        cap_w: float | None = None,
    ) -> Case:  # fmt: skip
        """One replica as a case."""
        return Case(
            llm=self.llm,
            gpu=self.gpu,
            precision=self.precision,
            workload=Workload(input_tokens=input_tokens, output_tokens=output_tokens),
            configuration=Configuration(
                tensor_parallel=tensor_parallel, batch_size=slots, power_cap_w=cap_w
            ),
        )

    def table(self, tensor_parallel: int, setting: Setting) -> StepTable:
        """Steps of a replica on the simulated GPUs.

        Raises
        ------
        InfeasibleError
            If the replica does not fit.
        """
        key = (tensor_parallel, setting)
        if key not in self._tables:
            held = capacity.memory(self.case(tensor_parallel, 1, 999.0, 1.0)).largest_batch
            most = int(min(self.file.serve.max_num_seqs, max(held, 1.0)))
            case = self.case(tensor_parallel, max(most, 1), 999.0, 1.0, setting.power_cap_w)
            clock = setting.clock_ratio or 1.0
            self._tables[key] = StepTable.of(case, LONGEST_CONTEXT, clock_ratio=clock)
        return self._tables[key]

    def cache_tokens(self, tensor_parallel: int) -> float:
        """Tokens that the cache of a replica holds."""
        room = capacity.memory(self.case(tensor_parallel, 1, 999.0, 1.0)).largest_batch
        return float(room) * 1000.0

    def sleep_w(self, tensor_parallel: int) -> float:
        """Watts of a sleeping replica: given, or those of as many GPUs without weights."""
        given = self.file.replica.sleep_w
        if given is None:
            return tensor_parallel * Board(gpu=self.gpu).idle_w
        return given / self.file.serve.tensor_parallel * tensor_parallel

    def start_s(self, *, cold: bool = False) -> float:
        """Seconds from asleep to serving; cold: in a layout that has not run."""
        change = self.file.replica
        return change.start_s if not cold or change.swap_s is None else change.swap_s

    def start_energy_j(self, tensor_parallel: int, *, cold: bool = False) -> float:
        """Joules of a start: given, or those of idling loaded for as long."""
        change, seconds = self.file.replica, self.start_s(cold=cold)
        if change.start_energy_j is None:
            return self.table(tensor_parallel, AS_SHIPPED).idle_w * seconds
        given = change.start_energy_j / self.file.serve.tensor_parallel * tensor_parallel
        return given * seconds / change.start_s if cold and change.start_s else given


def read_fleet(path: str | Path) -> Fleet:
    """Read ``fleet.toml``.

    Raises
    ------
    ArtefactError
        If it cannot be read, or a key is unknown or out of range.
    InfeasibleError
        If a replica as deployed does not fit its GPUs.
    """
    return fleet_of(read_toml(path), str(path))


def fleet_of(document: dict[str, Any], name: str) -> Fleet:
    """Make a fleet of what the file holds."""
    try:
        file = FleetFile.model_validate(document)
    except ValidationError as error:
        raise ArtefactError(f"{name}: {complaint(error.errors()[0])}") from None
    serve = file.serve
    times = {}
    try:
        llm, gpu = catalog.llm(serve.llm), catalog.gpu(serve.gpu)
        precision = catalog.checkpoint_precision(serve.llm, serve.precision or "")
        limits = {
            measure: parse_limit(getattr(file.limits, measure), measure, f"limits.{measure}")
            for measure in ("ttft", "tpot")
        }
    except InputError as error:
        raise ArtefactError(f"{name}: {error}") from None
    for measure, asked in limits.items():
        if asked.quantile is not None:
            raise ArtefactError(
                f"{name}: limits.{measure} is of each request: write {asked.seconds:g}s, and the "
                "share of requests in limits.share"
            )
        times[measure] = asked.seconds
    fleet = Fleet(file, llm, gpu, precision, times["ttft"], times["tpot"])
    deployed = serve.replicas * serve.tensor_parallel
    if fleet.gpus < deployed:
        raise ArtefactError(
            f"{name}: control.max_gpus must be at least the {deployed} GPUs that are deployed, "
            f"replicas x tensor_parallel; it is {fleet.gpus}"
        )
    if serve.tensor_parallel not in fleet.layouts:
        raise InfeasibleError(
            f"{name}: {llm.id} in {precision.id} does not run at tensor_parallel = "
            f"{serve.tensor_parallel} on {gpu.id}; it does at "
            f"{', '.join(map(str, fleet.layouts)) or 'no degree on these GPUs'}"
        )
    return fleet
