"""The tidy table: one measured configuration a row, the same columns in every format.

`energylens.columns` defines them; ``docs/data-format.md`` says the same to people. Whatever is
read is checked cell by cell and row by row, whole columns at a time, before anything is made of it.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from energylens import catalog, files
from energylens.cases import BoolArray, Cases, FloatArray, IntArray, factorize
from energylens.columns import BY_NAME, COLUMNS, GPUS, PERCENTILES, SPARSE, Column
from energylens.dataset import Dataset, StrArray
from energylens.errors import InputError, TableError, UnknownNameError
from energylens.files import RawTable
from energylens.records import (
    MODALITIES,
    PARALLELISM,
    Boundary,
    Engine,
    Gpu,
    Llm,
    Modality,
    Precision,
    held_down_problem,
    power_cap_range_w,
)

#: How far the parts of an energy may be from its whole, and a mean batch above its limit.
PARTS_TOLERANCE_RATIO = 0.05
BATCH_TOLERANCE_RATIO = 0.01

#: Unknown names that are answered with the nearest known ones, which takes time; a column put in
#: the wrong place has one in every row.
MOST_UNKNOWN = 20

#: Columns that begin so are the user's own: carried by the file, read by nobody here.
OWN_PREFIX = "x_"


_CASE_NUMBERS = tuple(
    name for name in Cases.column_names() if name in BY_NAME and BY_NAME[name].is_number
)
_JOULES = "energy_per_request_j"
_TIMES = ("request_latency_s", "tpot_s", "ttft_s", "median_itl_s")
_ENERGIES = (
    _JOULES,
    "prefill_energy_per_request_j",
    "decode_energy_per_request_j",
)
_KINDS = frozenset(MODALITIES)
_TEXTS = ("task", "engine", "engine_version", "source", "origin", "assumed", "declared")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is wrong with one cell, or with a column as a whole (line of the header)."""

    line: int
    column: str
    value: object
    reason: str
    place: str = "line"

    def __str__(self) -> str:
        return f"{self.place} {self.line}: {self.column} {self.reason}"


def read(path: str | Path, *, joules: bool = True) -> Dataset:
    """Read a tidy table.

    Parameters
    ----------
    path : str or Path
        CSV, JSON Lines or Parquet; ``-`` is standard input.
    joules : bool
        Whether every row must have joules. Judges of time take rows without, which have a time
        of theirs in the place of joules, in seconds.

    Raises
    ------
    TableError
        If anything in it is wrong; the first problem is told, the others counted.
    """
    return dataset_from_table(files.read_table(path), joules=joules)


def from_columns(
    columns: Mapping[str, Sequence[object]], name: str = "the frame", *, joules: bool = True
) -> Dataset:
    """Check columns of cells as a tidy table, and make a dataset of them; as `read`.

    Raises
    ------
    TableError
        If anything in them is wrong; the first problem is told, the others counted.
    """
    rows = max((len(cells) for cells in columns.values()), default=0)
    raw = RawTable(name=name, columns=columns, lines=range(1, rows + 1), place="row")
    return dataset_from_table(raw, joules=joules)


def write(dataset: Dataset, path: str | Path) -> None:
    """Write a tidy table that reads back as the same dataset.

    Parameters
    ----------
    dataset : Dataset
        n rows.
    path : str or Path
        CSV, JSON Lines or Parquet by its suffix; ``-`` writes CSV to standard output.

    Raises
    ------
    TableError
        If the file cannot be written.
    """
    files.write_table(path, columns_of(dataset))


def columns_of(dataset: Dataset) -> dict[str, list[Any]]:
    """Cells of the tidy table by column; None where a value is not known.

    Columns that most tables have no use for (`SPARSE`) are among them only where a row has a
    value.
    """
    cases = dataset.cases
    cells: dict[str, list[Any]] = {
        "llm": dataset.llm_ids.tolist(),
        "gpu": dataset.gpu_ids.tolist(),
        "precision": dataset.precision_ids.tolist(),
        "modality": [str(value) for value in dataset.modality],
        "boundary": [str(value) for value in dataset.boundary],
    }
    for name in _CASE_NUMBERS:
        cells[name] = _number_cells(getattr(cases, name), BY_NAME[name].kind == "whole")
    for name in _ENERGIES:
        cells[name] = _number_cells(getattr(dataset, name), False)
    for name in _TEXTS:
        cells[name] = [str(value) for value in getattr(dataset, name)]
    for name in PERCENTILES:
        cells[name] = _number_cells(dataset.percentile_s(name), False)
    # Tables without caps and loads stay as they were before there were columns for them.
    unused = {name for name in SPARSE if all(cell in (None, "") for cell in cells[name])}
    return {column.name: cells[column.name] for column in COLUMNS if column.name not in unused}


def _number_cells(values: FloatArray, whole: bool) -> list[Any]:
    if whole:
        return [None if value != value else int(value) for value in values.tolist()]
    return [None if value != value else value for value in values.tolist()]


def dataset_from_table(raw: RawTable, *, joules: bool = True) -> Dataset:
    """Make a dataset of a table as its file holds it; ``joules`` as in `read`.

    Raises
    ------
    TableError
        If anything in it is wrong; the first problem is told, the others counted.
    """
    check = _Check(raw, joules=joules)
    dataset = check.dataset()
    if dataset is None:
        found = check.problems()
        if guide := foreign(raw):
            raise TableError(guide)
        others = f"{len(found) - 1} more" if len(found) > 1 else "no other"
        raise TableError(
            f"{raw.name} {str(found[0]).rstrip('.')}. There {'are' if len(found) > 2 else 'is'} "
            f"{others} problem{'s' if len(found) > 2 else ''}{_where_all_are_listed(raw.name)}"
        )
    return dataset


def foreign(raw: RawTable) -> str:
    """Say how to read a table whose columns have names of their own, "" if it is none such."""
    wanted = [c.name for c in COLUMNS if c.required]
    missing = [name for name in wanted if name not in raw.columns]
    if "energy_per_request_j" in raw.columns or len(missing) < 2 or not Path(raw.name).is_file():
        return ""
    command = shlex.join(["energylens", "import", "table", raw.name, "--guess", "-o", "runs.csv"])
    columns = ", ".join(list(raw.columns)[:6]) + (", ..." if len(raw.columns) > 6 else "")
    return (
        f"{raw.name} has columns of its own ({columns}) and lacks {', '.join(missing)}. To have "
        f"them recognised and shown before anything is written, run: {command}"
    )


def _where_all_are_listed(name: str) -> str:
    if not Path(name).is_file():
        return "."
    return f"; to list all, run: {shlex.join(['energylens', 'check', name])}"


def unclaimed(dataset: Dataset) -> str:
    """Say which rows are neither measured nor published, so that no claim rests on them."""
    counts = dataset.take(~dataset.carries_accuracy_claim).source_counts()
    if not counts:
        return ""
    listed = " and ".join(
        f"{rows} {'is' if rows == 1 else 'are'} {source}" for source, rows in counts.items()
    )
    n = len(dataset)
    return (
        f"Of {n} row{'s' * (n != 1)} {listed}, not measured: no claim about real energy may rest "
        "on them."
    )


def problems(raw: RawTable, *, joules: bool = True) -> list[Problem]:
    """List everything that is wrong with a table, in the order of its lines; [] if nothing is.

    ``joules`` as in `read`.
    """
    check = _Check(raw, joules=joules)
    check.dataset()
    return check.problems()


class _Names:
    """A column of text by its distinct values: ``values[codes]`` is the column."""

    def __init__(self, values: Sequence[str], codes: IntArray) -> None:
        self.values = list(values)
        self.codes = codes

    def column(self) -> StrArray:
        return _objects(self.values)[self.codes]

    def where(self, holds: Callable[[str], bool]) -> BoolArray:
        return np.array([holds(value) for value in self.values], dtype=np.bool_)[self.codes]


class _Check:
    """One pass over a raw table: columns parsed and checked as arrays, faults noted by row."""

    def __init__(self, raw: RawTable, *, joules: bool = True) -> None:
        self.raw = raw
        self.may_lack = () if joules else (_JOULES,)
        self.rows = len(raw)
        self.found: list[tuple[int, int, Problem]] = []
        self.number: dict[str, FloatArray] = {}
        self.text: dict[str, _Names] = {}

    def problems(self) -> list[Problem]:
        return [problem for _, _, problem in sorted(self.found, key=lambda entry: entry[:2])]

    def note(self, column: str, reason: str, row: int | None = None) -> None:
        line = 1 if row is None else self.raw.lines[row]
        cells = self.raw.columns.get(column)
        value = None if row is None or cells is None else cells[row]
        problem = Problem(
            line=line, column=column, value=value, reason=reason, place=self.raw.place
        )
        self.found.append((-1 if row is None else row, len(self.found), problem))

    def flag(self, column: str, bad: BoolArray, reason: str | Callable[[int], str]) -> None:
        if bad.any():
            for row in np.flatnonzero(bad).tolist():
                self.note(column, reason if isinstance(reason, str) else reason(row), row)

    def given(self, column: str, row: int) -> str:
        """What a cell holds, as messages show it."""
        text = repr(self.raw.columns[column][row])
        return text if len(text) <= 60 else f"{text[:57]}..."

    # ----------------------------------------------------------------------------- the whole

    def dataset(self) -> Dataset | None:
        """Build the dataset, or None if anything was found wrong."""
        self._header()
        if self.found:
            return None
        for column in (*COLUMNS, GPUS):
            if column.is_number:
                self.number[column.name] = self._numbers(column)
            else:
                self.text[column.name] = self._texts(column)
        if self.may_lack:
            self._times_without_joules()
        llms = self._llms()
        gpus = self._gpus()
        modality = self._modality()
        self._across()
        if llms is not None:
            blind = np.array([llm.vision is None for llm in llms[0]], dtype=np.bool_)[llms[1]]
            self.flag(
                "modality",
                blind & (modality > 0),
                lambda row: (
                    f"must be text, for {llms[0][llms[1][row]].id} has no vision tower "
                    "in the catalog"
                ),
            )
        if gpus is not None:
            self._power_cap(*gpus)
            self._clock(*gpus)
        if self.found or llms is None or gpus is None:
            return None
        engines = self._engines()
        cases = Cases(
            llms=llms[0],
            llm_index=llms[1],
            precisions=llms[2],
            precision_index=llms[3],
            gpus=gpus[0],
            gpu_index=gpus[1],
            engines=engines[0],
            engine_index=engines[1],
            node_boundary=self.text["boundary"].where(
                lambda value: value in (Boundary.NODE, Boundary.WALL)
            ),
            wall_boundary=self.text["boundary"].where(lambda value: value == Boundary.WALL),
            **{name: self.number[name] for name in _CASE_NUMBERS},
        )
        return Dataset(
            cases=cases,
            modality=_objects([kind.value for kind in MODALITIES])[modality],
            energy_per_request_j=self.number["energy_per_request_j"],
            prefill_energy_per_request_j=self.number["prefill_energy_per_request_j"],
            decode_energy_per_request_j=self.number["decode_energy_per_request_j"],
            task=self.text["task"].column(),
            source=self.text["source"].column(),
            origin=self.text["origin"].column(),
            assumed=self.text["assumed"].column(),
            declared=self.text["declared"].column(),
            percentiles_s={
                name: self.number[name]
                for name in PERCENTILES
                if not np.isnan(self.number[name]).all()
            },
        )

    def _header(self) -> None:
        for name in self.raw.columns:
            if name not in BY_NAME and not name.startswith(OWN_PREFIX):
                advice = f"Begin the name of a column of your own with {OWN_PREFIX}."
                meant = _CALLED_SO.get(name.lower())
                within = [meant] if meant else _columns_within(name)
                if within:
                    advice = f"Did you mean {' or '.join(within)}? {advice}"
                known = () if within else BY_NAME
                self.note(name, f"is an {UnknownNameError('column', name, known, advice)}")
        for column in COLUMNS:
            required = column.required and column.name not in self.may_lack
            if required and column.name not in self.raw.columns:
                self.note(column.name, f"must be a column of the table: {column.meaning}")
        if "batch_size" not in self.raw.columns and "request_rate_per_s" not in self.raw.columns:
            self.note(
                "batch_size", f"must be a column of the table: {BY_NAME['batch_size'].meaning}"
            )
        if not self.rows:
            self.note("the table", "must have one row or more below its header")

    # ----------------------------------------------------------------------------- one column

    def _numbers(self, column: Column) -> FloatArray:
        name = column.name
        cells = self.raw.columns.get(name)
        if cells is None:
            values = np.full(self.rows, np.nan)
        else:
            values, readable = _parse_numbers(cells, self.raw.typed)
            must = f"must be {_range_in_words(column)}"
            bad = ~readable | (values < column.low) | (values > column.high)
            if column.kind == "positive":
                bad |= values == 0
            elif column.kind == "whole":
                bad |= values != np.rint(values)
                bad &= ~(np.isnan(values) & readable)
            required = column.required and name not in self.may_lack
            unknown = "" if required else "; leave the cell empty if it is not known"
            self.flag(name, bad, lambda row: f"{must}, not {self.given(name, row)}{unknown}")
            if required:
                self.flag(name, np.isnan(values) & readable, f"{must}, but the cell is empty")
            values = values + 0.0  # -0.0 becomes 0.0
        if name in PARALLELISM:
            values[np.isnan(values)] = 1.0
        return values

    def _times_without_joules(self) -> None:
        """Put a time of a row in the place of joules that it does not have."""
        values = self.number[_JOULES]
        for name in _TIMES:
            values = np.where(np.isnan(values), self.number[name], values)
        self.flag(_JOULES, np.isnan(values), f"must be given, or one of {', '.join(_TIMES)}")
        self.number[_JOULES] = values

    def _texts(self, column: Column) -> _Names:
        """Check the distinct values, and find the rows only of those that are wrong."""
        name = column.name
        cells = self.raw.columns.get(name)
        if cells is None:
            return _Names([""], np.zeros(self.rows, dtype=np.intp))
        distinct = dict.fromkeys(cells)
        places = {value: place for place, value in enumerate(distinct)}
        codes = np.fromiter(map(places.__getitem__, cells), dtype=np.intp, count=self.rows)
        wrong = {
            place: reason
            for value, place in places.items()
            if (reason := _fault_of_text(column, value)) is not None
        }
        if wrong:
            for row in np.flatnonzero(np.isin(codes, list(wrong))).tolist():
                self.note(name, wrong[int(codes[row])], row)
        values = [value if isinstance(value, str) else "" for value in distinct]
        if column.kind != "text":
            values = [value.strip() for value in values]
        return _Names(values, codes)

    # ------------------------------------------------------------------------- across columns

    def _llms(self) -> tuple[tuple[Llm, ...], IntArray, tuple[Precision, ...], IntArray] | None:
        """Look every distinct pair of LLM and precision up once."""
        names, formats = self.text["llm"], self.text["precision"]
        width = len(formats.values)
        pairs, codes = _in_order(names.codes * width + formats.codes)
        rows: list[tuple[Llm, Precision]] = []
        faults = 0
        for place, pair in enumerate(pairs):
            what = _llm_and_precision(names.values[pair // width], formats.values[pair % width])
            if isinstance(what, tuple):
                rows.append(what)
            elif names.values[pair // width]:  # an empty name is noted already
                self.flag(what.column, codes == place, what.reason)
                faults += 1
            if faults == MOST_UNKNOWN:
                self.flag("llm", codes > place, "was not looked up, as so many before are unknown")
                break
        if len(rows) < len(pairs):
            return None
        llms, llm_places = factorize([row[0] for row in rows], _id)
        precisions, precision_places = factorize([row[1] for row in rows], _id)
        return llms, llm_places[codes], precisions, precision_places[codes]

    def _gpus(self) -> tuple[tuple[Gpu, ...], IntArray] | None:
        rows: list[Gpu] = []
        names = self.text["gpu"]
        faults = 0
        for place, name in enumerate(names.values):
            try:
                rows.append(catalog.gpu(name))
            except InputError as error:
                if name:
                    self.flag("gpu", names.codes == place, f"names an {error}")
                    faults += 1
            if faults == MOST_UNKNOWN:
                late = names.codes > place
                self.flag("gpu", late, "was not looked up, as so many before are unknown")
                break
        if len(rows) < len(names.values):
            return None
        gpus, places = factorize(rows, _id)
        return gpus, places[names.codes]

    def _engines(self) -> tuple[tuple[Engine, ...], IntArray]:
        names, versions = self.text["engine"], self.text["engine_version"]
        pairs, index = np.unique(
            np.column_stack([names.codes, versions.codes]), axis=0, return_inverse=True
        )
        engines = [
            Engine(name=names.values[a], version=versions.values[b]) for a, b in pairs.tolist()
        ]
        return tuple(engines), index.reshape(-1).astype(np.intp)

    def _modality(self) -> IntArray:
        """Fill in modality and the counts that go without saying, and check that they agree.

        Gives the place of each row's modality in MODALITIES: 0 text, 1 image, 2 video.
        """
        counts = ("vision_tokens", "images", "frames")
        for name in counts:
            self.number[name] = np.where(np.isnan(self.number[name]), 0.0, self.number[name])
        vision, images, frames = (self.number[name] for name in counts)
        told = self.text["modality"]
        codes = [MODALITIES.index(Modality(v)) if v in _KINDS else -1 for v in told.values]
        modality = np.array(codes, dtype=np.intp)[told.codes]
        implied = np.where(frames > 0, 2, np.where((images > 0) | (vision > 0), 1, 0))
        modality = np.where(modality < 0, implied, modality)
        text, image, video = (modality == code for code in range(3))
        for name, values in zip(counts, (vision, images, frames), strict=True):
            self.flag(name, text & (values > 0), "must be empty or 0 where modality is text")
        self.flag("images", image & (images == 0), "must be above 0 where modality is image")
        self.flag("frames", image & (frames > 0), "must be empty or 0 where modality is image")
        self.flag("frames", video & (frames == 0), "must be above 0 where modality is video")
        self.flag(
            "vision_tokens",
            ~text & (vision == 0),
            "must be above 0 where modality is image or video",
        )
        return modality

    def _across(self) -> None:
        n = self.number
        gpus = n["tensor_parallel"] * n["pipeline_parallel"] * n["data_parallel"]
        self.flag(
            "gpus",
            ~np.isnan(n["gpus"]) & (n["gpus"] != gpus),
            lambda row: f"must be TP x PP x DP = {gpus[row]:g}, not {n['gpus'][row]:g}",
        )
        hosts, experts = n["tensor_parallel"] * n["data_parallel"], n["expert_parallel"]
        self.flag(
            "expert_parallel",
            np.fmod(hosts, np.maximum(experts, 1)) != 0,
            lambda row: (
                f"must divide TP x DP = {hosts[row]:g}, for experts are split over GPUs "
                f"that are already there; it is {experts[row]:g}"
            ),
        )
        self.flag(
            "batch_size",
            np.isnan(n["batch_size"])
            & np.isnan(n["request_rate_per_s"])
            & self._readable("batch_size"),
            f"must be {_range_in_words(BY_NAME['batch_size'])}, but the cell is empty; only a row "
            "that gives request_rate_per_s can do without",
        )
        self.flag(
            "mean_batch_size",
            n["mean_batch_size"] > n["batch_size"] * (1 + BATCH_TOLERANCE_RATIO),
            lambda row: (
                f"({n['mean_batch_size'][row]:g}) must not exceed the limit batch_size "
                f"({n['batch_size'][row]:g})"
            ),
        )
        self.flag(
            "vision_tokens",
            n["vision_tokens"] > n["input_tokens"],
            lambda row: (
                f"({n['vision_tokens'][row]:g}) must be a part of input_tokens "
                f"({n['input_tokens'][row]:g})"
            ),
        )
        node = self.text["boundary"].where(lambda value: value in (Boundary.NODE, Boundary.WALL))
        silent = self.text["boundary"].where(lambda value: not value)
        known = ~np.isnan(n["node_gpus"])
        self.flag("node_gpus", node & ~known, "must be given where boundary is node or wall")
        self.flag(
            "node_gpus",
            node & (n["node_gpus"] < gpus),
            lambda row: (
                f"must be at least the {gpus[row]:g} GPUs of the deployment, "
                f"not {n['node_gpus'][row]:g}"
            ),
        )
        self.flag("boundary", known & silent, "must be given where node_gpus is")
        self._parts()

    def _readable(self, column: str) -> BoolArray:
        """Rows whose cell of a column has not been found at fault; shape (rows,)."""
        bad = {row for row, _, problem in self.found if problem.column == column}
        return np.array([row not in bad for row in range(self.rows)], dtype=np.bool_)

    def _power_cap(self, gpus: tuple[Gpu, ...], index: IntArray) -> None:
        cap = self.number["power_cap_w"]
        low, high = np.array([power_cap_range_w(gpu) for gpu in gpus]).T[:, index]
        self.flag(
            "power_cap_w",
            (cap < low) | (cap > high),
            lambda row: (
                f"must lie between {low[row]:g} and {high[row]:g} W, for the TDP of a "
                f"{gpus[index[row]].id} is {gpus[index[row]].tdp_w:g} W; it is {cap[row]:g}"
            ),
        )

    def _clock(self, gpus: tuple[Gpu, ...], index: IntArray) -> None:
        clock, cap = self.number["clock_mhz"], self.number["power_cap_w"]
        for row in np.flatnonzero(~np.isnan(clock)):
            refused = held_down_problem(gpus[index[row]], cap[row], clock[row])
            if refused is not None and not refused.startswith("power_cap_w"):
                said = refused.removeprefix("clock_mhz ")
                self.flag("clock_mhz", np.arange(self.rows) == row, said)

    def _parts(self) -> None:
        whole, prefill, decode = (self.number[name] for name in _ENERGIES)
        both = prefill + decode
        slack = PARTS_TOLERANCE_RATIO * whole
        self.flag(
            _JOULES,
            np.abs(both - whole) > slack,
            lambda row: (
                f"({whole[row]:g} J) must be the sum of its prefill and decode parts "
                f"({both[row]:g} J) within 5 %"
            ),
        )
        for name, part in ((_ENERGIES[1], prefill), (_ENERGIES[2], decode)):
            alone = np.isnan(both) & (part > whole + slack)
            self.flag(name, alone, "must not exceed energy_per_request_j")


#: What people call a column that is spelt otherwise here, and that no likeness of letters finds.
_CALLED_SO = {
    "joules": "energy_per_request_j",
    "energy": "energy_per_request_j",
    "energy_j": "energy_per_request_j",
    "model": "llm",
    "tp": "tensor_parallel",
    "pp": "pipeline_parallel",
    "concurrency": "batch_size",
    "rate": "request_rate_per_s",
    "power_w": "average_power_w",
    "isl": "input_tokens",
    "osl": "output_tokens",
}


def _columns_within(name: str) -> list[str]:
    """Columns whose names have every word of this one, those that begin with it alone if any do."""
    words = set(name.lower().split("_"))
    found = [column for column in BY_NAME if words <= set(column.split("_"))]
    return [c for c in found if c.startswith(f"{name.lower()}_")] or found


def _in_order(codes: IntArray) -> tuple[list[int], IntArray]:
    """Distinct codes in order of first appearance, and the place of each code among them."""
    distinct, first, places = np.unique(codes, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return distinct[order].tolist(), rank[places.reshape(len(codes))]


def _fault_of_text(column: Column, value: object) -> str | None:
    """What is wrong with a cell of text, or None."""
    if value is not None and not isinstance(value, str):
        return f"must be text, not {value!r}"
    text = value or ""
    if not text.isprintable():
        return f"must be printable text, not {text[:60]!r}"
    if column.required and not text.strip():
        must = f"one of {', '.join(column.choices)}" if column.choices else column.meaning
        return f"must be given: {must}"
    if column.choices and text.strip() and text.strip() not in column.choices:
        return f"must be one of {', '.join(column.choices)}, not {text[:60]!r}"
    if column.name in ("assumed", "declared"):
        for word in text.split():
            if word not in BY_NAME:
                return f"must name columns of the table; {word[:60]!r} is none"
    return None


def _id(record: Any) -> str:
    return str(record.id)


def _objects(values: Sequence[str]) -> StrArray:
    return np.array(values, dtype=object)


def _range_in_words(column: Column) -> str:
    kind = "a whole number" if column.kind == "whole" else "a number"
    unit = f" {column.unit}" if column.unit in ("J", "W", "s") else ""
    if column.kind == "positive" and column.low < 1:
        return f"{kind} above 0 ({column.low:g} to {column.high:g}{unit})"
    return f"{kind} from {column.low:g} to {column.high:g}"


def _parse_numbers(cells: Sequence[Any], typed: bool) -> tuple[FloatArray, BoolArray]:
    """Values of the cells, NaN where empty or unreadable; and whether each is readable."""
    try:
        if not typed:
            values = _floats(cells)
            odd = np.flatnonzero(~np.isfinite(values)).tolist()
            readable = np.ones(len(cells), dtype=np.bool_)
            readable[[row for row in odd if cells[row]]] = False  # nan, inf and 1e999 in words
        elif set(map(type, cells)) <= {float, int, type(None)}:
            values = np.array(cells, dtype=np.float64)  # None becomes NaN
            readable = ~np.isinf(values)
        else:
            raise ValueError
    except (ValueError, OverflowError):
        each = [_parse_number(cell) for cell in cells]
        values = np.array([np.nan if value is None else value for value in each])
        readable = np.array([value is not None for value in each], dtype=np.bool_)
    values[~readable] = np.nan
    return values, readable


def _floats(cells: Sequence[str]) -> FloatArray:
    try:
        return np.fromiter(map(float, cells), dtype=np.float64, count=len(cells))
    except ValueError:  # some are empty, or worse
        return np.array([float(cell) if cell else np.nan for cell in cells])


def _parse_number(cell: Any) -> float | None:
    """Read one cell: NaN if it is empty, None if it is no finite number."""
    if isinstance(cell, bool):
        return None
    if cell is None or (isinstance(cell, str) and not cell.strip()) or cell != cell:
        return float("nan")
    try:
        value = float(cell)
    except (ValueError, OverflowError, TypeError):
        return None
    return value if np.isfinite(value) else None


@dataclass(frozen=True)
class _Fault:
    column: str
    reason: str


def _llm_and_precision(llm: str, precision: str) -> tuple[Llm, Precision] | _Fault:
    """The records that two cells name."""
    try:
        llm_id, stated = catalog.split_precision(llm)
        record = catalog.llm(llm_id)
    except InputError as error:
        return _Fault("llm", f"names an {error}")
    try:
        given = catalog.checkpoint_precision(llm, precision)
    except InputError as error:
        return _Fault("precision", f"names an {error}")
    # The id of a few checkpoints ends in a format; only a name that says more than the id binds.
    if precision and stated and llm != llm_id and given.id != stated:
        return _Fault("precision", f"is {given.id}, but the name of the LLM says {stated}")
    return record, given
