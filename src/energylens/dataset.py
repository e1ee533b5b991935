"""Measurements as columns: validated as a whole, filtered, split into scenarios.

A :class:`Dataset` is the one place where the instrument side and the model side meet. It
holds the cases, apart from their joules, so that whatever predicts can be handed the former
without the latter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import chain
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from energylens.cases import OPTIONAL, BoolArray, Cases, FloatArray, IntArray
from energylens.errors import InputError, UsageError
from energylens.frames import columns_of_frame
from energylens.records import PARALLELISM, Boundary, Source
from energylens.viewing import Shown

StrArray = NDArray[np.object_]

#: What ``--choose`` may leave free, and the columns of a case that each name frees.
KNOBS: dict[str, tuple[str, ...]] = {
    **{name: (name,) for name in PARALLELISM},
    "parallelism": PARALLELISM,
    "batch_size": ("batch_size",),
    "precision": ("precision_index",),
    "gpu": ("gpu_index",),
    "power_cap": ("power_cap_w",),
    "clock": ("clock_mhz",),
}

# Rows of one task may differ in their mean lengths by chance (ML.ENERGY's output means move by
# several percent between runs of one task); lengths swept on purpose differ by far more.
SAME_TASK_LENGTH_RATIO = 1.25

#: Offered rates this near to each other are one load: no two open-loop runs offer quite the same.
SAME_RATE_RATIO = 1.03


def freed_columns(choose: Sequence[str]) -> frozenset[str]:
    """Columns that the knobs in ``choose`` free.

    Raises
    ------
    UsageError
        If a name is no knob, or none is given.
    """
    unknown = [name for name in choose if name not in KNOBS]
    if unknown or not choose:
        given = ", ".join(repr(name) for name in unknown) or "nothing"
        raise UsageError(
            f"the free knobs must be one or more of {', '.join(KNOBS)} "
            f"(comma separated); given {given}"
        )
    return frozenset(column for name in choose for column in KNOBS[name])


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Dataset(Shown):
    """Measured rows as columns of length n; NaN means not measured, joules are per request.

    ``percentiles_s`` has those percentiles of times that any row gives, by the name of their
    column in the tidy table (``ttft_p99_s``); `percentile_s` reads one, given or not.
    """

    cases: Cases
    energy_per_request_j: FloatArray
    prefill_energy_per_request_j: FloatArray
    decode_energy_per_request_j: FloatArray
    modality: StrArray
    task: StrArray
    source: StrArray
    origin: StrArray
    assumed: StrArray
    declared: StrArray = field(default_factory=lambda: np.empty(0, dtype=object))
    percentiles_s: Mapping[str, FloatArray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.cases)
        if not len(self.declared) and n:
            object.__setattr__(self, "declared", np.full(n, "", dtype=object))
        named = {name: getattr(self, name) for name in self.column_names()}
        for name, column in (named | dict(self.percentiles_s)).items():
            if column.shape != (n,):
                raise InputError(
                    f"every column of a dataset must have one value for each of its {n} cases; "
                    f"{name} has shape {column.shape}"
                )
        for name in self.column_names()[:3]:
            joules = getattr(self, name)
            good = np.isfinite(joules) & (joules > 0)
            if name != "energy_per_request_j":
                good |= np.isnan(joules)
            if not good.all():
                row = int(np.argmin(good))
                raise InputError(
                    f"{name} must be finite and above 0 J in every row; "
                    f"row {row} (from 0) has {float(joules[row])!r} J"
                )

    def __len__(self) -> int:
        return len(self.cases)

    @classmethod
    def from_frame(cls, frame: Any) -> Dataset:
        """Make a dataset of a data frame with the columns of the tidy table.

        Parameters
        ----------
        frame : pandas, polars or PyArrow frame
            n rows; a missing cell is an empty one.

        Raises
        ------
        TableError
            If anything in it is wrong; the first problem is told, the others counted.
        MissingExtraError
            If narwhals (the extra ``frames``) is not installed.
        """
        from importlib import import_module

        # What checks a table stands above what holds it, so it is looked up when it is needed.
        checked: Dataset = import_module("energylens.table").from_columns(columns_of_frame(frame))
        return checked

    @classmethod
    def column_names(cls) -> tuple[str, ...]:
        """Names of the array columns besides the cases."""
        return tuple(f.name for f in fields(cls) if f.name not in ("cases", "percentiles_s"))

    def percentile_s(self, name: str) -> FloatArray:
        """Read a percentile column of the tidy table, shape (n,), in s; NaN where not given."""
        given = self.percentiles_s.get(name)
        return np.full(len(self), np.nan) if given is None else given

    def take(self, index: NDArray[Any] | slice) -> Self:
        """Return the rows at ``index`` (integers, booleans or a slice)."""
        columns = {name: getattr(self, name)[index] for name in self.column_names()}
        percentiles = {name: values[index] for name, values in self.percentiles_s.items()}
        return type(self)(cases=self.cases.take(index), percentiles_s=percentiles, **columns)

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Pool datasets end to end."""
        if not parts:
            raise InputError("cannot pool no datasets at all: give one or more")
        columns = {
            name: np.concatenate([getattr(p, name) for p in parts]) for name in cls.column_names()
        }
        given = dict.fromkeys(name for p in parts for name in p.percentiles_s)
        percentiles = {
            name: np.concatenate([p.percentile_s(name) for p in parts]) for name in given
        }
        cases = Cases.concatenate([p.cases for p in parts])
        return cls(cases=cases, percentiles_s=percentiles, **columns)

    def require_one_meter(self) -> None:
        """Refuse to pool joules of whole servers with joules of GPUs.

        Raises
        ------
        UsageError
            If some rows, but not all, were metered at the power inlet.
        """
        at_wall = int(self.cases.wall_boundary.sum())
        if 0 < at_wall < len(self):
            raise UsageError(
                f"{at_wall} of {len(self)} rows were metered at the power inlet of the server "
                "(boundary wall), the others at their GPUs, and the two are never pooled: keep "
                "one kind with --where boundary=wall or --where 'boundary=active_gpus|node'"
            )

    @cached_property
    def llm_ids(self) -> StrArray:
        """LLM of each row; shape (n,)."""
        return _names([item.id for item in self.cases.llms], self.cases.llm_index)

    @cached_property
    def gpu_ids(self) -> StrArray:
        """GPU type of each row; shape (n,)."""
        return _names([item.id for item in self.cases.gpus], self.cases.gpu_index)

    @cached_property
    def precision_ids(self) -> StrArray:
        """Precision of each row; shape (n,)."""
        return _names([item.id for item in self.cases.precisions], self.cases.precision_index)

    @cached_property
    def boundary(self) -> StrArray:
        """Boundary of each row, as the tidy table says it; shape (n,)."""
        c = self.cases
        place = np.where(c.wall_boundary, 2, np.where(c.node_boundary, 1, 0))
        return _names([Boundary.ACTIVE_GPUS, Boundary.NODE, Boundary.WALL], place)

    @cached_property
    def under_load(self) -> BoolArray:
        """Whether requests came at a rate of their own, not from a full queue; shape (n,)."""
        return ~np.isnan(self.cases.request_rate_per_s)

    @cached_property
    def engine(self) -> StrArray:
        """Name of the engine of each row; shape (n,)."""
        return _names([item.name for item in self.cases.engines], self.cases.engine_index)

    @cached_property
    def engine_version(self) -> StrArray:
        """Version of the engine of each row; shape (n,)."""
        return _names([item.version for item in self.cases.engines], self.cases.engine_index)

    @cached_property
    def engine_ids(self) -> StrArray:
        """Engine and version of each row, as in ``vllm 0.11.1``; shape (n,)."""
        return _names([item.id for item in self.cases.engines], self.cases.engine_index)

    def engine_factors(self, predicted_j: FloatArray) -> dict[str, float]:
        """Find the factor on predictions, shape (n,), that fits each engine's rows best.

        In relative error; under "" that of all rows, for engines not seen.
        """
        ratio = predicted_j / self.energy_per_request_j
        parts = {e: ratio[self.engine_ids == e] for e in set(self.engine_ids)} | {"": ratio}
        return {name: float(part.sum() / (part @ part)) for name, part in parts.items()}

    @property
    def lengths_assumed(self) -> BoolArray:
        """Rows with a length that is assumed; shape (n,)."""
        lengths = {"input_tokens", "output_tokens", "vision_tokens", "images", "frames"}
        said = {text: not lengths.isdisjoint(str(text).split()) for text in set(self.assumed)}
        return np.array([said[text] for text in self.assumed], dtype=np.bool_)

    @cached_property
    def carries_accuracy_claim(self) -> BoolArray:
        """Whether an accuracy figure may rest on each row: measured or published joules."""
        allowed = {source for source in Source if source.carries_accuracy_claim}
        return np.array([value in allowed for value in self.source], dtype=np.bool_)

    def source_counts(self) -> dict[str, int]:
        """Rows by source, most frequent first."""
        names, counts = np.unique(self.source.astype(str), return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return {str(names[i]): int(counts[i]) for i in order}

    @cached_property
    def by_content(self) -> IntArray:
        """Rows in an order that follows from what they hold alone, however they stand; shape (n,).

        What is drawn from rows in this order is drawn the same from a table sorted otherwise.
        """
        columns = [c for c in self._content if len(c) == len(self)]
        return np.lexsort([c.astype(str) if c.dtype == object else c for c in reversed(columns)])

    @property
    def _content(self) -> list[NDArray[Any]]:
        """Columns that say all that rows hold, and names of those that few tables have."""
        columns: list[NDArray[Any]] = [self.llm_ids, self.gpu_ids, self.precision_ids]
        columns += [
            getattr(self.cases, name)
            for name in Cases.column_names()
            if not name.endswith("_index")
            # Rows without a cap or a load keep the digest that they had before there were any.
            and (name != "power_cap_w" or self.cases.capped.any())
            and (name not in OPTIONAL or _any_given(getattr(self.cases, name)))
        ]
        # In the order in which the columns once were, so that digests stay what they were.
        before, after = self.column_names()[:5], self.column_names()[5:8]
        columns += [getattr(self, name) for name in (*before, "engine", "engine_version", *after)]
        if any(self.declared):
            columns.append(self.declared)
        for name in sorted(self.percentiles_s):
            if _any_given(self.percentiles_s[name]):
                columns += [np.array([name], dtype=object), self.percentiles_s[name]]
        return columns

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the content of all rows, in order: names which data a model saw."""
        state = hashlib.sha256()
        for column in self._content:
            if column.dtype == object:
                content = "\x1f".join(map(str, column)).encode()
            else:
                content = np.ascontiguousarray(column).tobytes()
            state.update(len(content).to_bytes(8, "little"))  # text cannot change its column
            state.update(content)
        return state.hexdigest()

    @cached_property
    def workload_index(self) -> IntArray:
        """Which workload each row serves; shape (n,).

        Rows are of one workload if they have the same modality, task, images and frames,
        the same lengths, and the same offered load. With a task named, mean lengths within a
        ratio of 1.25 of their neighbour count as the same, because they scatter from run to run;
        so do offered rates within 3 %.
        """
        c = self.cases
        index = group_rows([self.modality.astype(str), self.task.astype(str), c.images, c.frames])
        tasked = self.task.astype(str) != ""
        for lengths in (c.input_tokens, c.vision_tokens, c.output_tokens):
            index = _split_by_gap(index, lengths, np.where(tasked, SAME_TASK_LENGTH_RATIO, 1.0))
        if self.under_load.any():
            loaded = self.under_load.astype(np.float64)
            index = group_rows([index, loaded])
            rate = np.where(self.under_load, c.request_rate_per_s, 0.0)
            index = _split_by_gap(index, rate, np.full(len(self), SAME_RATE_RATIO))
        return index

    def scenarios(self, choose: Sequence[str]) -> list[IntArray]:
        """Groups of rows with two or more configurations, that differ only in the free knobs.

        A scenario is one LLM, GPU type, precision, workload, boundary and engine version, less
        what ``choose`` frees; its candidates are the measured configurations in it.

        Parameters
        ----------
        choose : sequence of str
            Names from :data:`KNOBS`.

        Returns
        -------
        list of ndarray of int
            Row numbers of each scenario, in order of first appearance.
        """
        freed = freed_columns(choose)
        c = self.cases
        keys: list[NDArray[Any]] = [
            c.llm_index,
            self.workload_index,
            np.where(c.node_boundary, c.node_gpus, 0.0),  # 0: the active_gpus boundary
            c.wall_boundary,
            c.engine_index,
        ]
        for column in dict.fromkeys(chain.from_iterable(KNOBS.values())):
            if column not in freed:
                keys.append(getattr(c, column))
        index = group_rows(keys)
        # Repeats of one configuration leave nothing to choose from.
        configuration = group_rows([getattr(c, column) for column in sorted(freed)])
        order = np.argsort(index, kind="stable")
        groups = np.split(order, np.flatnonzero(np.diff(index[order])) + 1)
        return sorted(
            (g for g in groups if len(np.unique(configuration[g])) >= 2), key=lambda g: int(g[0])
        )


def _names(names: Sequence[str], index: IntArray) -> StrArray:
    return np.array(names, dtype=object)[index]


def group_rows(keys: Sequence[NDArray[Any]]) -> IntArray:
    """Number the distinct combinations of the key columns, shape (n,); NaN equals NaN."""
    n = len(keys[0])
    index = np.zeros(n, dtype=np.intp)
    for key in keys:
        values, places = np.unique(key, return_inverse=True, equal_nan=key.dtype.kind == "f")
        combined = index * len(values) + places.reshape(n)
        index = np.unique(combined, return_inverse=True)[1].reshape(n)
    return index


def _any_given(column: NDArray[Any]) -> bool:
    return bool(column.any() if column.dtype == np.bool_ else (~np.isnan(column)).any())


def _split_by_gap(groups: IntArray, values: FloatArray, ratio: FloatArray) -> IntArray:
    """Split groups wherever sorted values jump by more than the ratio of the upper row."""
    if len(groups) == 0:
        return groups
    order = np.lexsort((values, groups))
    low, high = values[order][:-1], values[order][1:]
    starts = (np.diff(groups[order]) != 0) | (high > low * ratio[order][1:])
    result = np.empty_like(groups)
    result[order] = np.concatenate([[0], np.cumsum(starts)])
    return result
