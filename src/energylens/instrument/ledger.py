"""The two files of a sweep: what is on disk, line by line, and who may write it."""

from __future__ import annotations

import fcntl
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from energylens import files, streams
from energylens.errors import ArtefactError, UsageError


def records_path(table: str | Path) -> Path:
    """Where the records behind a table lie: ``runs.jsonl`` has ``runs.records.jsonl``."""
    path = Path(table)
    if path.suffix not in (".jsonl", ".ndjson"):
        made, wanted = streams.beside(path, ".jsonl"), path
        if path.suffix not in (".csv", ".parquet"):
            wanted = streams.beside(path, ".csv")
        command = shlex.join(["energylens", "import", "table", str(made), "-o", str(wanted)])
        raise UsageError(
            f"a sweep writes JSON Lines, so that it can be resumed: {path} must end in .jsonl. To "
            f"convert it afterwards, run: {command}"
        )
    return path.with_suffix(".records" + path.suffix)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file against other sweeps that would write to it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    except OSError as error:
        raise ArtefactError(f"{path} cannot be written: {error.strerror}.") from None
    with file:
        _lock(file, path)
        yield


def _lock(file: IO[bytes], path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise ArtefactError(
            f"another sweep is writing {path}: wait for it, or give another name."
        ) from None


@contextmanager
def _locked_table(path: Path) -> Iterator[None]:
    """Hold a table that is there already: another name of the same file is no other file."""
    try:
        file = path.open("r+b")
    except FileNotFoundError:
        yield  # no second name can lead to a file that is not there
        return
    except OSError as error:
        raise ArtefactError(f"{path} cannot be written: {error.strerror}.") from None
    with file:
        _lock(file, path)
        yield


def _identity(path: Path) -> tuple[int, int] | None:
    """Say which file a name leads to; None for none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


class _Ledger:
    """The two files of a sweep, and what they say is done."""

    def __init__(self, table: Path, records: Path) -> None:
        self._table = table
        self._records = records
        self.measured: dict[str, dict[str, Any]] = {}
        self.failed: dict[str, dict[str, Any]] = {}
        self.lost: dict[str, int] = {}
        self.references: dict[str, float] = {}
        self._recorded: set[Any] = set()
        for record in files.read_json_lines(records, allow_torn_end=True):
            self._note(record)
        self._mend_table()
        self._files = {path: _identity(path) for path in (table, records)}

    def _note(self, record: Mapping[str, Any]) -> None:
        try:
            kind, case = record["kind"], str(record["case"])
            if kind == "case" and record["status"] == "measured":
                self.measured[case] = dict(record["row"])
                self._recorded.add(record["row"].get("x_run"))
                self.failed.pop(case, None)
            elif kind == "case":
                self.failed[case] = dict(record)
            elif kind == "lost":
                self.lost[case] = self.lost.get(case, 0) + 1
        except (KeyError, TypeError, AttributeError):
            raise ArtefactError(
                f"{self._records} must hold the records of a sweep, and does not: give another "
                "name for the table."
            ) from None

    def _mend_table(self) -> None:
        """Add the rows that a kill kept out of the table."""
        present = set()
        if self._table.exists():
            for row in files.read_json_lines(self._table, allow_torn_end=True):
                if isinstance(row, Mapping):
                    present.add(row.get("x_run"))
        strange = present - self._recorded - {None}
        if strange:
            raise ArtefactError(
                f"every row of {self._table} that a sweep measured must have its record in "
                f"{self._records}, and {len(strange)} have none there: put that file back beside "
                "the table, or give another name for the table."
            )
        for row in self.measured.values():
            if row.get("x_run") not in present:
                files.append_json_line(self._table, row)

    def add(self, record: Mapping[str, Any]) -> bool:
        """Write a record, and its row if it has one; False if the case was measured before."""
        if record["kind"] == "case" and record["case"] in self.measured:
            return False
        self._check_files()
        files.append_json_line(self._records, record)
        self._note(record)
        if record["kind"] == "case" and record["status"] == "measured":
            files.append_json_line(self._table, record["row"])
            self._files[self._table] = _identity(self._table)
        return True

    def _check_files(self) -> None:
        """Refuse to go on where a file was taken away or replaced under the sweep."""
        for path, before in self._files.items():
            if before is not None and _identity(path) != before:
                raise ArtefactError(
                    f"{path} was removed or replaced while the sweep wrote to it: what was "
                    "measured since is not there. Put it back and measure again: the sweep goes "
                    "on where its files end."
                )

    def count_rows(self, keys: Sequence[str]) -> int:
        """Count the cases of these keys that the table on the disk has, not those remembered."""
        self._check_files()
        if not self._table.exists():
            return 0
        rows = files.read_json_lines(self._table, allow_torn_end=True)
        runs = {row.get("x_run") for row in rows if isinstance(row, Mapping)}
        return sum(k in self.measured and self.measured[k].get("x_run") in runs for k in keys)
