"""What the operator declares of a run, and the rows that a run and its declaration make.

A benchmark client sees an address, not the GPUs behind it. What its file does not state is
declared by flags or a small TOML, and the columns that rest on it are named in ``declared``: they
are statements of the operator, not measurements.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from energylens import catalog, files
from energylens.columns import COLUMNS
from energylens.errors import ArtefactError, InputError, UsageError
from energylens.importers.energy_join import Joined
from energylens.importers.runs import BenchmarkRun, Latency, RefusedFileError, Scope
from energylens.records import BOUNDARIES, PARALLELISM, SOURCES, Boundary, Source

#: Own measurements with a tool that is not energylens.
OWN_SOURCE = "self_measured" if "self_measured" in SOURCES else Source.MEASURED.value


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What served a benchmark, as far as the operator says; None where they do not.

    ``batch_size`` is the engine's limit on sequences in flight over all replicas, such as
    ``--max-num-seqs`` of vLLM; ``input_tokens`` to ``frames`` are means a request.
    """

    llm: str | None = None
    gpu: str | None = None
    gpus: int | None = None
    precision: str | None = None
    tensor_parallel: int | None = None
    pipeline_parallel: int | None = None
    expert_parallel: int | None = None
    data_parallel: int | None = None
    batch_size: float | None = None
    boundary: str | None = None
    node_gpus: int | None = None
    engine: str | None = None
    engine_version: str | None = None
    input_tokens: float | None = None
    output_tokens: float | None = None
    vision_tokens: float | None = None
    images: float | None = None
    frames: float | None = None
    task: str | None = None
    power_cap_w: float | None = None
    clock_mhz: float | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("boundary", self.boundary, [str(b) for b in BOUNDARIES]),
            ("source", self.source, [str(s) for s in SOURCES]),
        ):
            if value is not None and value not in allowed:
                raise UsageError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")

    def updated(self, other: Setup) -> Setup:
        """Give this setup with what another one says over it."""
        said = {f.name: getattr(other, f.name) for f in fields(other)}
        return replace(self, **{name: value for name, value in said.items() if value is not None})


_WHOLE = ("gpus", *PARALLELISM, "node_gpus")
_NUMBERS = (
    "batch_size",
    "input_tokens",
    "output_tokens",
    "vision_tokens",
    "images",
    "frames",
    "power_cap_w",
    "clock_mhz",
)
#: Names that people write in a setup file for what is called otherwise here.
_ALSO = {"tp": "tensor_parallel", "pp": "pipeline_parallel", "dp": "data_parallel"}
_ALSO |= {"ep": "expert_parallel", "max_num_seqs": "batch_size", "model": "llm"}


def read_setup(path: str | Path) -> Setup:
    """Read a setup file: TOML with the names of `Setup` as keys.

    Raises
    ------
    ArtefactError
        If it cannot be read, has a key that means nothing, or a value of the wrong kind.
    """
    document = files.read_toml(path)
    known = [f.name for f in fields(Setup)]
    values: dict[str, Any] = {}
    for key, value in document.items():
        name = _ALSO.get(key, key)
        if name not in known:
            raise ArtefactError(f"{path}: {key} means nothing here; there are {', '.join(known)}.")
        if name in _WHOLE and not (type(value) is int and value >= 1):
            raise ArtefactError(f"{path}: {key} must be a whole number, 1 or more, not {value!r}.")
        if name in _NUMBERS and not (type(value) in (int, float) and 0 < value <= 1e9):
            raise ArtefactError(f"{path}: {key} must be a number above 0, not {value!r}.")
        if name not in (*_WHOLE, *_NUMBERS) and not isinstance(value, str):
            raise ArtefactError(f"{path}: {key} must be text, not {value!r}.")
        values[name] = value
    return Setup(**values)


@dataclass(frozen=True, kw_only=True)
class Row:
    """Cells of the tidy table, the columns that were declared, and what is still missing."""

    cells: Mapping[str, object]
    declared: tuple[str, ...]
    missing: tuple[str, ...]
    asides: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


#: How each thing that a file may leave out is given.
ASKED: Mapping[str, str] = {
    "llm": "--llm NAME",
    "gpu": "--gpu NAME",
    "tensor_parallel": "--tensor-parallel N",
    "batch_size": "--batch-size N (the engine's limit on sequences in flight)",
    "boundary": "--boundary active_gpus|node (which GPUs the joules cover)",
    "node_gpus": "--node-gpus N",
    "input_tokens": "--input-tokens N",
    "output_tokens": "--output-tokens N",
    "vision_tokens": "--vision-tokens N (those of the prompt from its images or frames)",
    "images": "--images N (a request; --frames N where they are of videos)",
    "energy": "--power LOG (a power log of the run; the file has no joules)",
}


class _Taken:
    """Values from a run and its setup; what both say must agree."""

    def __init__(self, run: BenchmarkRun, setup: Setup) -> None:
        self.run, self.setup = run, setup
        self.declared: list[str] = []
        self.missing: list[str] = list(run.needs)
        self.cells: dict[str, object] = {}
        self.asides: list[str] = []
        self.notes: list[str] = []

    def take(self, name: str, stated: Any, *, required: bool = False, said: Any = None) -> Any:
        """Take a value from the file, else from the setup."""
        said = getattr(self.setup, name, None) if said is None else said
        if stated is not None and said is not None and stated != said:
            raise RefusedFileError(
                f"{self.run.where}: it states {name} {stated}, but {said} is declared: leave the "
                "declaration out, or mend it."
            )
        value = stated if stated is not None else said
        if stated is None and said is not None:
            self.declared.append(name)
        if value is None and required:
            self.missing.append(name)
        self.cells[name] = value
        return value


def row_of(run: BenchmarkRun, setup: Setup, joined: Joined | None = None) -> Row:
    """Make the cells of the tidy table that a run, its setup and its power log give.

    Parameters
    ----------
    run : BenchmarkRun
        What the file states.
    setup : Setup
        What the operator declares.
    joined : Joined, optional
        Joules from a power log.

    Raises
    ------
    RefusedFileError
        If the file and the declaration contradict each other, or joules do not cover what they
        must.
    """
    taken = _Taken(run, setup)
    _names(taken)
    gpus = _layout(taken)
    _load(taken)
    notes = [*run.notes, *taken.notes]
    notes += _energy(taken, gpus, joined)
    _latencies(taken)
    _seen(taken)
    for name in ("task", "power_cap_w", "clock_mhz"):
        taken.take(name, None)
    taken.cells["source"] = setup.source or OWN_SOURCE
    taken.cells["declared"] = " ".join(dict.fromkeys(taken.declared))
    return Row(
        cells=taken.cells,
        declared=tuple(dict.fromkeys(taken.declared)),
        missing=tuple(dict.fromkeys(taken.missing)),
        asides=tuple(dict.fromkeys(taken.asides)),
        notes=tuple(notes),
    )


def _names(taken: _Taken) -> None:
    run, setup = taken.run, taken.setup
    taken.take("llm", *_named(run.where, "llm", run.llm, setup.llm, _llm_id), required=True)
    taken.take("gpu", *_named(run.where, "gpu", run.gpu, setup.gpu, _gpu_id), required=True)
    for name, stated, known in (("llm", run.llm, _llm_id), ("gpu", run.gpu, _gpu_id)):
        # A name that the file has and no catalog knows must be translated by the operator.
        if stated is not None and taken.cells[name] == stated and known(stated) is None:
            taken.missing.append(name)
            taken.asides.append(f"it says {name} {stated!r}, which no catalog knows")
    if setup.llm is not None and taken.cells["llm"] == setup.llm:
        taken.declared.append("llm")
    if setup.gpu is not None and taken.cells["gpu"] == setup.gpu:
        taken.declared.append("gpu")
    stated = run.precision if _precision_id(run.precision) else None
    taken.take("precision", *_named(run.where, "precision", stated, setup.precision, _precision_id))
    taken.take("engine", None if setup.engine else run.engine)
    taken.take("engine_version", None if setup.engine_version else run.engine_version)


def _named(
    where: str, what: str, stated: str | None, said: str | None, known: Any
) -> tuple[str | None]:
    """Choose between the name of the file and the operator's; two known ones must be the same."""
    if stated is not None and said is not None:
        first, second = known(stated), known(said)
        if first is not None and second is not None and first != second:
            raise RefusedFileError(
                f"{where}: it states the {what} {stated}, but {said} is declared: mend the one "
                "that is wrong."
            )
        # A name of the operator's own server is none that the catalog knows.
        return (None,)
    return (stated,)


def _llm_id(name: str) -> tuple[str, str | None] | None:
    try:
        return catalog.llm(name).id, None
    except InputError:
        return None


def _gpu_id(name: str) -> str | None:
    try:
        return catalog.gpu(name).id
    except InputError:
        return None


def _precision_id(name: str | None) -> str | None:
    try:
        return catalog.precision(name).id if name else None
    except InputError:
        return None


def _layout(taken: _Taken) -> int | None:
    """Take the parallel degrees; give the GPUs of the deployment, None where not known."""
    run, setup = taken.run, taken.setup
    degrees = {}
    for name in ("tensor_parallel", "pipeline_parallel", "data_parallel", "expert_parallel"):
        degrees[name] = taken.take(name, getattr(run, name))
    gpus = setup.gpus if run.gpus is None else run.gpus
    if run.gpus is not None and setup.gpus is not None and run.gpus != setup.gpus:
        raise RefusedFileError(
            f"{run.where}: it states {run.gpus} GPUs, but {setup.gpus} are declared."
        )
    if degrees["tensor_parallel"] is None:
        others = (degrees["pipeline_parallel"] or 1) * (degrees["data_parallel"] or 1)
        if gpus is not None and gpus == others:
            taken.cells["tensor_parallel"] = degrees["tensor_parallel"] = 1
            if run.gpus is None:
                taken.declared.append("tensor_parallel")
        else:
            taken.missing.append("tensor_parallel")
            return gpus
    product = (
        degrees["tensor_parallel"]
        * (degrees["pipeline_parallel"] or 1)
        * (degrees["data_parallel"] or 1)
    )
    if gpus is not None and gpus != product:
        raise RefusedFileError(
            f"{run.where}: {gpus} GPUs are not TP x PP x DP = {product}: give the degrees that "
            "make them up with --tensor-parallel, --pipeline-parallel and --data-parallel."
        )
    return int(product)


def _load(taken: _Taken) -> None:
    """Take lengths, and what was in flight."""
    run, setup = taken.run, taken.setup
    for name in ("input_tokens", "output_tokens"):
        taken.take(name, getattr(run, name), required=True)
    limit = run.max_num_seqs if run.max_num_seqs is not None else setup.batch_size
    said = run.max_num_seqs is None and setup.batch_size is not None
    if run.max_concurrency is not None and (limit is None or run.max_concurrency < limit):
        if said:
            taken.notes.append(
                f"batch_size: the client kept at most {run.max_concurrency:g} requests in flight, "
                f"fewer than --batch-size {limit:g}, and that is the limit of the row"
            )
        said, limit = False, run.max_concurrency
    if said:
        taken.declared.append("batch_size")
    if limit is not None and run.counted:
        limit = max(min(limit, run.completed + (run.failed or 0)), 1.0)
    taken.cells["batch_size"] = limit
    needs_batch = next(c.required for c in COLUMNS if c.name == "batch_size")
    if limit is None and (needs_batch or not run.open_loop):
        taken.missing.append("batch_size")
    taken.cells["request_rate_per_s"] = run.request_rate_per_s
    if run.open_loop:
        taken.cells["achieved_rate_per_s"] = run.rate_per_s
    mean = run.mean_concurrency
    latency = mean_latency_s(run)
    if mean is None and latency is not None and run.rate_per_s is not None:
        # Little's law: what is in flight is the rate times the mean time in flight.
        mean = latency * run.rate_per_s
    bound = taken.cells["batch_size"]
    if mean is not None and isinstance(bound, float | int):
        # Queued requests are in flight for the client, not for the engine.
        mean = min(mean, float(bound))
    taken.cells["mean_batch_size"] = mean


def _seen(taken: _Taken) -> None:
    """Take what requests carry besides text; with either known, both are needed."""
    vision, images, frames = (
        taken.take(name, getattr(taken.run, name)) for name in ("vision_tokens", "images", "frames")
    )
    if vision and not (images or frames):
        taken.missing.append("images")
    elif (images or frames) and not vision:
        taken.missing.append("vision_tokens")


def mean_latency_s(run: BenchmarkRun) -> float | None:
    """Mean time of a request: stated, or TTFT and the tokens after it; None if neither is."""
    if run.request_latency.mean_s is not None:
        return run.request_latency.mean_s
    if run.ttft.mean_s is None or run.tpot.mean_s is None or run.output_tokens is None:
        return None
    return run.ttft.mean_s + run.tpot.mean_s * max(run.output_tokens - 1, 0)


def _latencies(taken: _Taken) -> None:
    run = taken.run
    cells: list[tuple[str, Latency]] = [
        ("ttft", run.ttft),
        ("tpot", run.tpot),
        ("itl", run.itl),
        ("request_latency", run.request_latency),
    ]
    for name, latency in cells:
        taken.cells[f"{name}_s"] = latency.mean_s
        taken.cells[f"{name}_p50_s"] = latency.median_s
        for percentile in ("p90", "p95", "p99"):
            taken.cells[f"{name}_{percentile}_s"] = getattr(latency, f"{percentile}_s")
    taken.cells["median_itl_s"] = run.itl.median_s
    taken.cells["request_latency_s"] = mean_latency_s(run)


# ------------------------------------------------------------------------------------ joules


def _energy(taken: _Taken, gpus: int | None, joined: Joined | None) -> list[str]:
    """Take joules of the boundary that is asked for."""
    run, setup = taken.run, taken.setup
    cells = taken.cells
    notes: list[str] = []
    if joined is not None:
        of_log, joules, covered = _of_log(run, setup, gpus, joined)
        boundary: str | None = of_log
        duration = run.duration_s or (run.window.end_s - run.window.start_s if run.window else None)
        cells["average_power_w"] = joules / duration if duration else None
    elif run.energy is not None:
        boundary, joules, covered = _of_file(taken, gpus)
        whole_w = joules / run.duration_s if run.duration_s else None
        cells["average_power_w"] = run.energy.power_w or whole_w
        notes.append(f"joules: {run.energy.how}")
    else:
        taken.missing.append("energy")
        if run.unusable is not None:
            taken.asides.append(run.unusable)
        return notes
    if boundary is None:
        taken.missing.append("boundary")
        return notes
    cells["boundary"] = boundary
    if boundary != Boundary.ACTIVE_GPUS.value:
        cells["node_gpus"] = covered or setup.node_gpus
        if covered is None and setup.node_gpus is not None:
            taken.declared.append("node_gpus")
        if cells["node_gpus"] is None:
            taken.missing.append("node_gpus")
    cells["energy_per_request_j"] = joules / run.completed
    if joined is None:
        for name in ("prefill", "decode"):
            part = getattr(run, f"{name}_energy_j")
            cells[f"{name}_energy_per_request_j"] = part / run.completed if part else None
    return notes


def _of_log(
    run: BenchmarkRun, setup: Setup, gpus: int | None, joined: Joined
) -> tuple[str, float, int | None]:
    have = {
        "active_gpus": joined.active_j,
        "node": joined.node_j,
        "wall": joined.wall_j,
    }
    asked = setup.boundary
    if asked is None:
        asked = next(name for name, joules in have.items() if joules is not None)
        if asked == "node" and gpus is not None and gpus == joined.covered:
            asked = "active_gpus"
    if asked == "active_gpus" and have[asked] is None and joined.covered in (None, gpus):
        # A log that does not count its GPUs covers what the operator says that it covers.
        have[asked] = joined.node_j
    joules = have[asked]
    if joules is None:
        there = " and ".join(name for name, value in have.items() if value is not None)
        raise RefusedFileError(
            f"{run.where}: the power log has no joules of the boundary {asked}: it has those of "
            f"{there}."
        )
    return asked, joules, joined.covered


def _of_file(taken: _Taken, gpus: int | None) -> tuple[str | None, float, int | None]:
    run, setup = taken.run, taken.setup
    energy = run.energy
    assert energy is not None
    boundary: str | None = setup.boundary
    if energy.scope is not Scope.UNKNOWN:
        boundary = energy.scope.value
        if boundary == "node" and gpus is not None and gpus == energy.gpus:
            boundary = "active_gpus"
        if setup.boundary is not None and setup.boundary != boundary:
            raise RefusedFileError(
                f"{run.where}: its joules cover {boundary}, but the boundary {setup.boundary} is "
                "declared."
            )
    elif boundary is not None:
        taken.declared.append("boundary")
    if boundary == "active_gpus" and None not in (energy.gpus, gpus) and energy.gpus != gpus:
        raise RefusedFileError(
            f"{run.where}: its joules are those of {energy.gpus} GPUs, but the deployment has "
            f"{gpus}: they cover GPUs that served nothing, or leave some out."
        )
    return boundary, energy.joules, energy.gpus


def question(
    where: Sequence[str], missing: Sequence[str], asides: Sequence[str] = (), *, version: bool
) -> str:
    """Ask once for everything that the files do not state.

    Parameters
    ----------
    where : sequence of str
        The runs that lack something.
    missing, asides : sequence of str
        What they lack, and what they say that is of no use.
    version : bool
        Whether the version of the engine is known; a row needs none, but joules depend on it.
    """
    flags = ", ".join(ASKED[name] for name in missing)
    named = where[0] if len(where) == 1 else f"{where[0]} and {len(where) - 1} more"
    more = "" if version else "; also --engine and --engine-version, on which joules depend"
    aside = f" ({'; '.join(asides[:3])})" if asides else ""
    verb = "does" if len(where) == 1 else "do"
    return (
        f"{named} {verb} not state {_listed(missing)}{aside}: give {flags}{more}; what serves a "
        "benchmark may also stand in a file, --setup setup.toml."
    )


def _listed(missing: Sequence[str]) -> str:
    names = ["joules" if name == "energy" else name for name in missing]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
