"""Many cases as columns: what every predictor is asked about. Nothing here knows a joule."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from functools import cache, cached_property
from math import inf
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from energylens.errors import InputError
from energylens.records import (
    PARALLELISM,
    Boundary,
    Case,
    Configuration,
    Engine,
    Gpu,
    Llm,
    Modality,
    Precision,
    Workload,
)

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.intp]
BoolArray = NDArray[np.bool_]

T = TypeVar("T")

#: Stands for a column of which nothing is known, whatever its length.
_NOT_GIVEN: FloatArray = np.empty(0)


def _optional() -> FloatArray:
    return _NOT_GIVEN


#: Distinct records that cases refer to, and the column that says which is whose.
RECORDS = {
    "llms": "llm_index",
    "gpus": "gpu_index",
    "precisions": "precision_index",
    "engines": "engine_index",
}

#: Columns that are empty in most tables.
OPTIONAL = (
    "median_itl_s",
    "achieved_rate_per_s",
    "loaded_idle_w",
    "request_rate_per_s",
    "wall_boundary",
    "clock_mhz",
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Cases:
    """Cases as columns of length n; NaN means not known, or not set (caps, clocks).

    The columns from ``ttft_s`` to ``loaded_idle_w`` are what a run without an energy meter can
    tell: predictors that rank by latency or power read them, the law does not need them.
    ``node_boundary`` says that joules cover every GPU of the node; with ``wall_boundary`` they
    cover the rest of the server too. ``request_rate_per_s`` is the rate offered (NaN: a queue
    that is never empty); where it is known, ``batch_size`` may be NaN (no limit known) and
    ``mean_batch_size`` and ``achieved_rate_per_s`` are outcomes. Columns that are left out when
    cases are made are NaN (``wall_boundary``: False).
    """

    llms: tuple[Llm, ...]
    gpus: tuple[Gpu, ...]
    precisions: tuple[Precision, ...]
    engines: tuple[Engine, ...]
    llm_index: IntArray
    gpu_index: IntArray
    precision_index: IntArray
    engine_index: IntArray
    tensor_parallel: FloatArray
    pipeline_parallel: FloatArray
    expert_parallel: FloatArray
    data_parallel: FloatArray
    batch_size: FloatArray
    mean_batch_size: FloatArray
    input_tokens: FloatArray
    output_tokens: FloatArray
    vision_tokens: FloatArray
    images: FloatArray
    frames: FloatArray
    node_boundary: BoolArray
    node_gpus: FloatArray
    power_cap_w: FloatArray
    ttft_s: FloatArray
    tpot_s: FloatArray
    request_latency_s: FloatArray
    average_power_w: FloatArray
    median_itl_s: FloatArray = field(default_factory=_optional)
    achieved_rate_per_s: FloatArray = field(default_factory=_optional)
    loaded_idle_w: FloatArray = field(default_factory=_optional)
    request_rate_per_s: FloatArray = field(default_factory=_optional)
    wall_boundary: BoolArray = field(default_factory=lambda: _NOT_GIVEN.astype(np.bool_))
    clock_mhz: FloatArray = field(default_factory=_optional)

    def __post_init__(self) -> None:
        n = len(self.llm_index)
        for name in OPTIONAL:
            column = getattr(self, name)
            if not len(column) and n:
                unknown = False if column.dtype == np.bool_ else np.nan
                object.__setattr__(self, name, np.full(n, unknown))
        for name in self.column_names():
            column = getattr(self, name)
            if column.shape != (n,):
                raise InputError(
                    f"every column of cases must have the length of the first ({n}); "
                    f"{name} has shape {column.shape}"
                )

    def __len__(self) -> int:
        return len(self.llm_index)

    @classmethod
    @cache
    def column_names(cls) -> tuple[str, ...]:
        """Names of the array columns, in order."""
        return tuple(f.name for f in fields(cls) if f.name not in RECORDS)

    @classmethod
    def of(cls, cases: Iterable[Case]) -> Self:
        """Make columns from single cases."""
        rows = list(cases)
        nan = float("nan")

        def column(read: Callable[[Case], float | None]) -> FloatArray:
            values = (read(row) for row in rows)
            return np.array([nan if v is None else v for v in values], dtype=np.float64)

        llms, llm_index = factorize([row.llm for row in rows], _key)
        gpus, gpu_index = factorize([row.gpu for row in rows], _key)
        precisions, precision_index = factorize([row.precision for row in rows], _key)
        engines, engine_index = factorize([row.engine for row in rows], _key)
        empty = np.full(len(rows), nan)
        return cls(
            llms=llms,
            gpus=gpus,
            precisions=precisions,
            engines=engines,
            llm_index=llm_index,
            gpu_index=gpu_index,
            precision_index=precision_index,
            engine_index=engine_index,
            tensor_parallel=column(lambda c: c.configuration.tensor_parallel),
            pipeline_parallel=column(lambda c: c.configuration.pipeline_parallel),
            expert_parallel=column(lambda c: c.configuration.expert_parallel),
            data_parallel=column(lambda c: c.configuration.data_parallel),
            batch_size=column(
                lambda c: c.configuration.batch_size if c.configuration.batch_size < inf else None
            ),
            mean_batch_size=column(lambda c: c.configuration.mean_batch_size),
            input_tokens=column(lambda c: c.workload.input_tokens),
            output_tokens=column(lambda c: c.workload.output_tokens),
            vision_tokens=column(lambda c: c.workload.vision_tokens),
            images=column(lambda c: c.workload.images),
            frames=column(lambda c: c.workload.frames),
            node_boundary=np.array(
                [c.boundary is not Boundary.ACTIVE_GPUS for c in rows], dtype=np.bool_
            ),
            node_gpus=column(lambda c: c.node_gpus),
            power_cap_w=column(lambda c: c.configuration.power_cap_w),
            ttft_s=empty,
            tpot_s=empty,
            request_latency_s=empty,
            average_power_w=empty,
            request_rate_per_s=column(lambda c: c.workload.request_rate_per_s),
            wall_boundary=np.array([c.boundary is Boundary.WALL for c in rows], dtype=np.bool_),
            clock_mhz=column(lambda c: c.configuration.clock_mhz),
        )

    def take(self, index: NDArray[Any] | slice) -> Self:
        """Return the cases at ``index`` (integers, booleans or a slice)."""
        columns = {name: getattr(self, name)[index] for name in self.column_names()}
        return type(self)(**self._records(), **columns)

    def degrees(self, index: NDArray[Any] | slice) -> dict[str, Any]:
        """Return the degrees of parallelism of the cases at ``index``, by name."""
        return {name: getattr(self, name)[index] for name in PARALLELISM}

    def replace(self, **columns: FloatArray | float) -> Self:
        """Return the same cases with other columns; a number fills its column."""
        unknown = set(columns) - set(self.column_names())
        if unknown:
            raise InputError(f"no such column of cases: {', '.join(sorted(unknown))}")
        present = {name: getattr(self, name) for name in self.column_names()}
        for name, value in columns.items():
            present[name] = np.broadcast_to(
                np.asarray(value, dtype=present[name].dtype), (len(self),)
            )
        return type(self)(**self._records(), **present)

    def _records(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in RECORDS}

    def served_by(self, engines: Engine | Sequence[Engine]) -> Self:
        """Return the same cases on one engine, or each on its own (n of them)."""
        each = [engines] * len(self) if isinstance(engines, Engine) else list(engines)
        present = {name: getattr(self, name) for name in self.column_names()}
        distinct, present["engine_index"] = factorize(each, _key)
        return type(self)(**{**self._records(), "engines": distinct}, **present)

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Join cases end to end."""
        if not parts:
            raise InputError("cannot join no cases at all: give one part or more")
        columns: dict[str, Any] = {
            name: np.concatenate([getattr(p, name) for p in parts]) for name in cls.column_names()
        }
        for records, index in RECORDS.items():
            every = [item for p in parts for item in getattr(p, records)]
            joined, places = factorize(every, _key)
            starts = np.cumsum([0, *(len(getattr(p, records)) for p in parts)])
            columns[records] = joined
            columns[index] = np.concatenate(
                [places[starts[i] + getattr(p, index)] for i, p in enumerate(parts)]
            )
        return cls(**columns)

    def configuration(self, row: int) -> Configuration:
        """Return the knobs of one case as a record."""
        return Configuration(
            tensor_parallel=int(self.tensor_parallel[row]),
            pipeline_parallel=int(self.pipeline_parallel[row]),
            expert_parallel=int(self.expert_parallel[row]),
            data_parallel=int(self.data_parallel[row]),
            batch_size=_known(self.batch_size[row]) or inf,
            mean_batch_size=_known(self.mean_batch_size[row]),
            power_cap_w=_known(self.power_cap_w[row]),
            clock_mhz=_known(self.clock_mhz[row]),
        )

    def case(self, row: int) -> Case:
        """Return one case as a record."""
        node_gpus = _known(self.node_gpus[row])
        frames, vision = float(self.frames[row]), float(self.vision_tokens[row])
        images = float(self.images[row])
        modality = (
            Modality.VIDEO if frames else Modality.IMAGE if images or vision else Modality.TEXT
        )
        boundary = Boundary.NODE if self.node_boundary[row] else Boundary.ACTIVE_GPUS
        if self.wall_boundary[row]:
            boundary = Boundary.WALL
        return Case(
            llm=self.llms[self.llm_index[row]],
            gpu=self.gpus[self.gpu_index[row]],
            precision=self.precisions[self.precision_index[row]],
            workload=Workload(
                input_tokens=float(self.input_tokens[row]),
                output_tokens=float(self.output_tokens[row]),
                vision_tokens=vision,
                images=images,
                frames=frames,
                modality=modality,
                request_rate_per_s=_known(self.request_rate_per_s[row]),
            ),
            configuration=self.configuration(row),
            boundary=boundary,
            node_gpus=None if node_gpus is None else int(node_gpus),
            engine=self.engines[self.engine_index[row]],
        )

    def of_llm(self, read: Callable[[Llm], float]) -> FloatArray:
        """Look a number up in each case's LLM; shape (n,)."""
        return np.array([read(item) for item in self.llms], dtype=np.float64)[self.llm_index]

    def of_gpu(self, read: Callable[[Gpu], float]) -> FloatArray:
        """Look a number up in each case's GPU; shape (n,)."""
        return np.array([read(item) for item in self.gpus], dtype=np.float64)[self.gpu_index]

    def of_engine(self, read: Callable[[Engine], float]) -> FloatArray:
        """Look a number up for each case's engine; shape (n,)."""
        return np.array([read(item) for item in self.engines], dtype=np.float64)[self.engine_index]

    def of_precision(self, read: Callable[[Precision], float]) -> FloatArray:
        """Look a number up in each case's precision; shape (n,)."""
        values = np.array([read(item) for item in self.precisions], dtype=np.float64)
        return values[self.precision_index]

    @cached_property
    def capped(self) -> BoolArray:
        """Whether each case has a power cap; shape (n,)."""
        return ~np.isnan(self.power_cap_w)

    @cached_property
    def cap_ratio(self) -> FloatArray:
        """Power cap over the TDP, 1 at most, and 1 where there is none; shape (n,)."""
        return np.fmin(self.power_cap_w / self.of_gpu(lambda gpu: gpu.tdp_w), 1.0)

    @property
    def most_w(self) -> FloatArray:
        """Watts that the GPUs in use draw at their TDP or power cap; shape (n,)."""
        most: FloatArray = self.of_gpu(lambda gpu: gpu.tdp_w) * self.cap_ratio * self.occupied_gpus
        return most

    @cached_property
    def clocked(self) -> BoolArray:
        """Whether the core clock of each case is locked; shape (n,)."""
        return ~np.isnan(self.clock_mhz)

    @cached_property
    def clock_ratio(self) -> FloatArray:
        """Locked clock over the highest, 1 at most, and 1 where it is not locked; shape (n,)."""
        top = self.of_gpu(lambda gpu: gpu.max_clock_mhz or np.nan)
        return np.where(self.clocked, np.minimum(self.clock_mhz / top, 1.0), 1.0)

    @cached_property
    def occupied_gpus(self) -> FloatArray:
        """GPUs of the deployment: TP x PP x DP (experts share them)."""
        return self.tensor_parallel * self.pipeline_parallel * self.data_parallel


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _key(item: Llm | Gpu | Precision | Engine) -> Hashable:
    """Tell records apart: by id, but for engines, of which "a b" may be two."""
    return item if isinstance(item, Engine) else item.id


def factorize(items: Sequence[T], key: Callable[[T], Hashable]) -> tuple[tuple[T, ...], IntArray]:
    """Distinct items in order of first appearance, and the place of each item among them."""
    places: dict[Hashable, int] = {}
    distinct: list[T] = []
    index = np.empty(len(items), dtype=np.intp)
    for i, item in enumerate(items):
        name = key(item)
        if name not in places:
            places[name] = len(distinct)
            distinct.append(item)
        index[i] = places[name]
    return tuple(distinct), index
