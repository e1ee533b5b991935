"""Any result file: its format told by its content, its runs read, its joules joined.

`FORMATS` and `POWER_FORMATS` hold one entry for each; a file that none of them or more than one
takes for its own is refused, with the names of those there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from energylens.errors import EnergyLensError, InputError, UsageError
from energylens.importers import documents
from energylens.importers.bench import (
    aiperf,
    guidellm,
    inference_perf,
    inferencex,
    llmd_report,
    mlenergy_results,
    optimum,
    sglang_serving,
    trtllm_bench,
    vllm_serve,
)
from energylens.importers.beside import told
from energylens.importers.collecting import Collector, Imported
from energylens.importers.declared import Row, Setup, question, row_of
from energylens.importers.documents import Document
from energylens.importers.energy_join import Joined, JoinOptions, join
from energylens.importers.power import dcgm, monitors, nvidia_smi, timeline, vendor_csv, wall_text
from energylens.importers.power.series import Clock, PowerLog
from energylens.importers.power.stamps import local_seconds
from energylens.importers.runs import BenchmarkRun, RefusedFileError, Window


@dataclass(frozen=True, kw_only=True)
class Format:
    """One format of benchmark results: ``read`` makes the runs of one object of it."""

    name: str
    matches: Callable[[object], bool]
    read: Callable[[Any, str], BenchmarkRun | Sequence[BenchmarkRun]]


@dataclass(frozen=True, kw_only=True)
class PowerFormat:
    """One format of power logs."""

    name: str
    matches: Callable[[Document], bool]
    read: Callable[[Document, Sequence[str]], PowerLog]


FORMATS: tuple[Format, ...] = (
    Format(name=vllm_serve.FORMAT, matches=vllm_serve.matches, read=vllm_serve.read),
    Format(name=aiperf.FORMAT, matches=aiperf.matches, read=aiperf.read),
    Format(name=llmd_report.FORMAT, matches=llmd_report.matches, read=llmd_report.read),
    Format(name=trtllm_bench.FORMAT, matches=trtllm_bench.matches, read=trtllm_bench.read),
    Format(name=inferencex.FORMAT, matches=inferencex.matches, read=inferencex.read),
    Format(name=guidellm.FORMAT, matches=guidellm.matches, read=guidellm.read),
    Format(name=inference_perf.FORMAT, matches=inference_perf.matches, read=inference_perf.read),
    Format(name=sglang_serving.FORMAT, matches=sglang_serving.matches, read=sglang_serving.read),
    Format(name=optimum.FORMAT, matches=optimum.matches, read=optimum.read),
    Format(
        name=mlenergy_results.FORMAT, matches=mlenergy_results.matches, read=mlenergy_results.read
    ),
    Format(name=aiperf.OLDER, matches=aiperf.matches_older, read=aiperf.read),
)


@dataclass(frozen=True, kw_only=True)
class TextFormat:
    """A format of benchmark results that is text, such as CSV."""

    name: str
    matches: Callable[[str], bool]
    read: Callable[[str, str], BenchmarkRun | Sequence[BenchmarkRun]]


TEXT_FORMATS: tuple[TextFormat, ...] = (
    TextFormat(name="AIPerf CSV", matches=aiperf.matches_text, read=aiperf.read_text),
)


def _of_text(
    name: str, matches: Callable[[str], bool], read: Callable[[str, str], PowerLog]
) -> PowerFormat:
    """Make the entry of a power log that is text."""
    return PowerFormat(
        name=name,
        matches=lambda d: not d.objects and matches(d.text),
        read=lambda d, _: read(d.text, d.name),
    )


POWER_FORMATS: tuple[PowerFormat, ...] = (
    PowerFormat(
        name=f"{nvidia_smi.FORMAT}, {nvidia_smi.GAUDI}",
        matches=lambda d: not d.objects and nvidia_smi.matches(d.text),
        read=lambda d, columns: nvidia_smi.read(d.text, d.name, columns),
    ),
    _of_text(nvidia_smi.DMON, nvidia_smi.matches_dmon, nvidia_smi.read_dmon),
    _of_text(dcgm.TEXT, dcgm.matches_text, dcgm.read_text),
    PowerFormat(
        name=dcgm.RANGE,
        matches=lambda d: bool(d.objects) and all(map(dcgm.matches_range, d.objects)),
        read=lambda d, _: dcgm.read_range(d.objects, d.name),
    ),
    PowerFormat(
        name=timeline.FORMAT,
        matches=lambda d: bool(d.objects) and all(map(timeline.matches, d.objects)),
        read=lambda d, _: timeline.read(d.objects, d.name),
    ),
    _of_text(monitors.ZEUS, monitors.matches_zeus, monitors.read_zeus),
    _of_text(monitors.CODECARBON, monitors.matches_codecarbon, monitors.read_codecarbon),
    _of_text(vendor_csv.AMD, vendor_csv.matches_amd, vendor_csv.read_amd),
    _of_text(vendor_csv.ROCM, vendor_csv.matches_rocm, vendor_csv.read_rocm),
    _of_text(wall_text.PTDAEMON, wall_text.matches_ptdaemon, wall_text.read_ptdaemon),
    _of_text(wall_text.IPMI, wall_text.matches_ipmi, wall_text.read_ipmi),
    _of_text(vendor_csv.WALL, vendor_csv.matches_wall, vendor_csv.read_wall),
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """How files are read and joined."""

    setup: Setup = field(default_factory=Setup)
    join: JoinOptions = field(default_factory=JoinOptions)
    power: tuple[str, ...] = ()
    power_columns: tuple[str, ...] = ()
    start: str | None = None


@dataclass(frozen=True, kw_only=True)
class Taken:
    """One run as it was taken: what it stated, what joined it, and the row it made."""

    run: BenchmarkRun
    joined: Joined | None
    row: Row


class IncompleteError(InputError):
    """Files that do not state what a row needs; what they do state is in ``taken``."""

    def __init__(self, said: str, missing: Sequence[str], taken: Sequence[Taken]) -> None:
        super().__init__(said)
        self.missing = tuple(missing)
        self.taken = list(taken)


def _took(run: BenchmarkRun) -> str:
    """Say in few words what a file was taken for."""
    parts = [run.format]
    if run.counted:
        parts.append(f"{run.completed:g} requests")
    if run.input_tokens is not None and run.output_tokens is not None:
        parts.append(f"{run.input_tokens:.4g} + {run.output_tokens:.4g} tokens")
    if run.ttft.mean_s is not None:
        parts.append(f"TTFT {run.ttft.mean_s:.4g} s")
    if run.tpot.mean_s is not None:
        parts.append(f"TPOT {run.tpot.mean_s:.4g} s")
    return ", ".join(parts)


def runs_of(document: Document) -> list[BenchmarkRun]:
    """Read the runs of a file.

    Raises
    ------
    RefusedFileError
        If it is of no known format, or a rule of its format refuses it.
    """
    objects = list(document.objects)
    if len(objects) == 1 and isinstance(objects[0], list):
        objects = objects[0]
        if not objects:
            raise RefusedFileError(f"{document.name} holds an empty list.")
    runs: list[BenchmarkRun] = []
    for number, item in enumerate(objects, 1):
        name = document.name if len(objects) == 1 else f"{document.name} run {number}"
        found = [form for form in FORMATS if form.matches(item)]
        if len(found) != 1:
            raise _unknown(name, [form.name for form in found])
        made = found[0].read(item, name)
        runs += [made] if isinstance(made, BenchmarkRun) else made
    return runs


def log_of(document: Document, columns: Sequence[str] = ()) -> PowerLog | None:
    """Read a power log, None if the file is none.

    Raises
    ------
    RefusedFileError
        If it is one that a rule refuses.
    """
    found = [form for form in POWER_FORMATS if form.matches(document)]
    if not found:
        return None
    # The last takes any sheet with a time and watts, so it is never told apart from the others.
    told = [form for form in found if form is not POWER_FORMATS[-1]]
    if len(told) > 1:
        raise _unknown(document.name, [form.name for form in told])
    return found[0].read(document, columns)


class UnknownFileError(RefusedFileError):
    """A file that holds neither runs nor power over time, as far as is known here."""


def _unknown(name: str, found: Sequence[str]) -> RefusedFileError:
    if found:
        return RefusedFileError(f"{name} reads as {' and as '.join(found)}: it is ambiguous.")
    known = ", ".join(form.name for form in FORMATS)
    return UnknownFileError(
        f"{name} is of no format known here, or of a version that is not: there are {known}; a "
        "table of your own is read by import table."
    )


def read(
    paths: Sequence[str | Path], options: Options | None = None
) -> tuple[Imported, list[Taken]]:
    """Read result files of whatever format, with a power log beside them if there is one.

    Parameters
    ----------
    paths : sequence of str or Path
        Result files, folders of a sweep, and power logs.
    options : Options, optional
        What the operator declares, and how to join.

    Returns
    -------
    tuple of Imported and list of Taken
        The rows, and each run as it was taken.

    Raises
    ------
    RefusedFileError
        If a file is of no known format, a rule refuses it, or it does not state what a row needs
        and nobody declares it.
    InputError
        If no row can be used.
    """
    options = options or Options()
    found = _Found()
    for path in map(Path, paths):
        if path.is_dir():
            found.take_folder(path, options)
        else:
            found.take(path, options)
    for given in options.power:
        document = _load(Path(given))
        log = log_of(document, options.power_columns)
        if log is None:
            known = ", ".join(form.name for form in POWER_FORMATS)
            raise RefusedFileError(
                f"{document.name} is no power log known here: there are {known}."
            )
        found.logs.append((None, log))
    if not found.runs:
        what = ", ".join(log.name for _, log in found.logs) or "nothing"
        raise UsageError(
            f"a power log says when joules were used, not for what: give the benchmark's result "
            f"file too (given: {what})"
        )
    return _rows(found, options)


@dataclass(kw_only=True)
class _Found:
    """What files hold: runs and power logs, each with its folder (None where named one by one)."""

    runs: list[tuple[Path | None, BenchmarkRun]] = field(default_factory=list)
    logs: list[tuple[Path | None, PowerLog]] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)

    def take(self, path: Path, options: Options, folder: Path | None = None) -> None:
        """Take one file."""
        document = _load(path)
        log = log_of(document, options.power_columns)
        if log is not None:
            self.logs.append((folder, log))
            return
        runs = runs_of(document) if document.objects else _text_runs(document)
        self.runs += [(folder, run) for run in runs]

    def take_folder(self, path: Path, options: Options) -> None:
        """Take the files of a folder; those that hold neither runs nor power are passed over."""
        before = len(self.runs) + len(self.logs), len(self.refused)
        for file in _inside(path):
            where = str(file.relative_to(path))
            try:
                self.take(file, options, file.parent)
            except UnknownFileError:
                self.passed.append(where)
            except EnergyLensError as fault:
                self.refused.append((where, str(fault)))
        if len(self.runs) + len(self.logs) == before[0]:
            reasons = [reason for _, reason in self.refused[before[1] :]]
            more = f": {reasons[0]}" if reasons else "."
            raise RefusedFileError(f"{path} is a folder without a result file{more}")

    def log_of(self, folder: Path | None) -> PowerLog | None:
        """Choose the power log of a run: the one of its folder, else the only one.

        Raises
        ------
        UsageError
            If there are several.
        """
        near = [log for place, log in self.logs if place is not None and place == folder]
        named = [log for place, log in self.logs if place is None]
        logs = named or near or [log for _, log in self.logs]
        if len(logs) > 1:
            names = " and ".join(log.name for log in logs[:3])
            raise UsageError(f"give one power log for a benchmark, not {len(logs)}: {names}")
        return logs[0] if logs else None


def _load(path: Path) -> Document:
    """Read a file; one that is known to hold no run and no power over time is refused for that."""
    document = documents.load(path)
    kind = told(document)
    if kind is not None:
        raise UnknownFileError(f"{document.name} is {kind.name}: {kind.lacks}.")
    return document


def _text_runs(document: Document) -> list[BenchmarkRun]:
    for form in TEXT_FORMATS:
        if form.matches(document.text):
            made = form.read(document.text, document.name)
            return [made] if isinstance(made, BenchmarkRun) else list(made)
    raise _unknown(document.name, [])


#: What results and logs are called; whatever else is in a folder is not looked into.
_ENDS = (".json", ".jsonl", ".yaml", ".yml", ".csv", ".txt", ".log")


def _inside(folder: Path) -> list[Path]:
    """Give the files of a folder in the order of their names, each result once."""
    files = [p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()]
    there = {
        p for p in files if p.with_suffix("" if p.suffix == ".gz" else p.suffix).suffix in _ENDS
    }
    sweeps = {p.parent for p in there if p.match("run=*.json")}
    copies = {p for p in there if p.name == "summary.json" and p.parent in sweeps}
    for path in there:
        # Tools write the same results as JSON and as YAML, AIPerf as JSON and as CSV.
        doubled = path.suffix in (".yaml", ".yml") or "profile_export" in path.name
        if doubled and path.suffix != ".json" and path.with_suffix(".json") in there:
            copies.add(path)
    return sorted(there - copies)


def _rows(found: _Found, options: Options) -> tuple[Imported, list[Taken]]:
    taken: list[Taken] = []
    logs = [found.log_of(folder) for folder, _ in found.runs]
    for (_, run), log in zip(found.runs, logs, strict=True):
        windows = [
            other.window
            for (_, other), its in zip(found.runs, logs, strict=True)
            if its is log and other.window is not None
        ]
        joined = _joined(run, log, options, windows)
        taken.append(Taken(run=run, joined=joined, row=row_of(run, options.setup, joined)))
    missing = list(dict.fromkeys(name for item in taken for name in item.row.missing))
    if missing:
        where = [item.run.where for item in taken if item.row.missing]
        asides = dict.fromkeys(aside for item in taken for aside in item.row.asides)
        version = all(item.row.cells.get("engine_version") for item in taken)
        first = next(item.run for item in taken if item.row.missing)
        where[0] = f"{where[0]} ({_took(first)})"
        raise IncompleteError(
            question(where, missing, tuple(asides), version=version), tuple(missing), taken
        )
    names = dict.fromkeys(run.where.split(" run ")[0] for _, run in found.runs)
    rows = Collector(", ".join(names)[:80])
    for item, log in zip(taken, logs, strict=True):
        source = f"{item.run.format} {item.run.where}"
        origin = f"{source} with {log.name}" if log is not None else source
        rows.add(item.run.where, _known(item.row.cells) | {"origin": origin})
    for file, reason in found.refused:
        rows.skip(reason.rstrip("."), file)
    notes = [
        f"{item.run.where}: {note}"
        for item in taken
        for note in (*item.row.notes, *(item.joined.notes if item.joined else ()))
    ]
    if found.passed:
        more = f" and {len(found.passed) - 4} more" if len(found.passed) > 4 else ""
        notes.append(f"passed over, as no results: {', '.join(found.passed[:4])}{more}")
    return rows.finish(list(dict.fromkeys(notes))), taken


def _known(cells: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in cells.items() if value is not None}


def _joined(
    run: BenchmarkRun, log: PowerLog | None, options: Options, windows: Sequence[Window]
) -> Joined | None:
    if log is None:
        log = run.power
        if log is None:
            return None
    elif run.energy is not None:
        raise RefusedFileError(
            f"{run.where} states joules of its own ({run.energy.how}): leave {log.name} out."
        )
    window = run.window
    if options.start is not None and run.duration_s is not None:
        moment = local_seconds(options.start)
        if moment is None:
            raise UsageError(
                f"--start must be a time, as in 2026-08-16T16:08:53, not {options.start!r}"
            )
        window = Window(start_s=moment[0], end_s=moment[0] + run.duration_s, clock=moment[1])
    if log.windows and run.duration_s is not None and window is None:
        window = Window(start_s=0.0, end_s=run.duration_s, clock=Clock.NONE)
    if window is None:
        raise RefusedFileError(
            f"{run.where} does not say when it ran, so {log.name} cannot be joined by time: say "
            "when it began with --start."
        )
    serving = _serving(run, options.setup)
    beside = () if options.start is not None or log is run.power else windows
    return join(log, window, serving=serving, options=options.join, beside=beside)


def _serving(run: BenchmarkRun, setup: Setup) -> int | None:
    """GPUs of the deployment, as far as file and declaration say."""
    gpus = run.gpus or setup.gpus
    if gpus is not None:
        return gpus
    degrees = [
        getattr(run, name) or getattr(setup, name)
        for name in ("tensor_parallel", "pipeline_parallel", "data_parallel")
    ]
    if degrees[0] is None:
        return None
    return int(degrees[0] * (degrees[1] or 1) * (degrees[2] or 1))
