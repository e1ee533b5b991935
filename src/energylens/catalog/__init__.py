"""What is known of LLMs, GPUs and number formats: rows of TOML files, found by name.

The packaged rows lie beside this module. A user's own ``llms.toml`` and ``gpus.toml`` in
``$ENERGYLENS_HOME`` (``~/.config/energylens`` where that is not set) come on top of them and
win where both have a name. Files are read at the first question, and again when they change.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields, replace
from fnmatch import fnmatchcase
from functools import cache, lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from energylens.errors import ArtefactError, InputError, UnknownNameError
from energylens.records import (
    Attention,
    Engine,
    Experts,
    FeedForward,
    Generation,
    Gpu,
    Llm,
    Precision,
    StateSpace,
    Vision,
)

Row = TypeVar("Row", bound=Llm | Gpu | Precision | Generation)

_FP8 = "fp8"
_MLP = "-mlp"  # after a format: the feed-forward layers alone have it

_PARTS: dict[str, type[Any]] = {
    "attention": Attention,
    "feed_forward": FeedForward,
    "experts": Experts,
    "state_space": StateSpace,
    "vision": Vision,
}
_HOME = "~/.config/energylens"  # unless ENERGYLENS_HOME says otherwise
_ADVICE_LLM = (
    "To see all, run: energylens llm list; to add one, run: energylens llm add config.json "
    "--name ORG/NAME"
)
_ADVICE_GPU = (
    "To see all, run: energylens gpu list; to add one, run: energylens gpu add NAME --like "
    "ANOTHER --tdp-w 400 (see energylens gpu --help), or write a [[gpu]] table to gpus.toml in "
    "{folder}"
)


def llm(name: str) -> Llm:
    """Find a language model.

    Parameters
    ----------
    name : str
        Its id, an alias, or the part after the ``/`` where that is unambiguous, in any case.
        A precision suffix (``-FP8``, ``-AWQ``) is ignored: see `split_precision`.

    Raises
    ------
    UnknownNameError
        If no catalog has it; the nearest names are given.
    """
    return _split(name)[0]


def split_precision(llm_name: str) -> tuple[str, str | None]:
    """Take the precision suffix off the name of a checkpoint.

    Parameters
    ----------
    llm_name : str
        As in ``"Qwen/Qwen3-235B-A22B-Instruct-2507-FP8"``.

    Returns
    -------
    tuple of str and (str or None)
        The id of the LLM, and of the precision that the name states: here
        ``("Qwen/Qwen3-235B-A22B-Instruct-2507", "fp8-block")``, for that is what this
        publisher's FP8 checkpoints hold. None where it states none;
        ``Llm.native_precision`` is then what the checkpoint holds.

    Raises
    ------
    UnknownNameError
        If the LLM is in no catalog.
    """
    row, stated = _split(llm_name)
    return row.id, stated


def checkpoint_precision(llm_name: str, given: str = "") -> Precision:
    """Find the number format that a checkpoint is served in.

    Parameters
    ----------
    llm_name : str
        The name of the checkpoint, with or without a precision suffix.
    given : str
        The format that a row or flag states, if one does. Where it says FP8 of a checkpoint
        whose own FP8 is scaled by blocks, that is what it means.

    Returns
    -------
    Precision
        What is given; else what the name states; else what the checkpoint holds.

    Raises
    ------
    UnknownNameError
        If the LLM or the format is in no catalog.
    """
    row, stated = _split(llm_name)
    # A name says the format, not whether every layer has it, as the row itself may.
    parts = stated is not None and row.native_precision.startswith(f"{stated}-")
    own = precision(row.native_precision if parts or not stated else stated)
    if not given:
        return own
    asked = precision(given)
    return own if asked.id == _FP8 and own.publishers else asked


def published_fp8(llm: Llm) -> Precision:
    """What the publisher of an LLM calls FP8: scaled by blocks, or by tensor or channel."""
    publisher = llm.id.partition("/")[0].casefold()
    for row in _precision_shelf().rows.values():
        if publisher in map(str.casefold, row.publishers):
            return row
    return precision(_FP8)


def gpu(name: str) -> Gpu:
    """Find a GPU type by id or alias, in any case.

    Raises
    ------
    UnknownNameError
        If no catalog has it; the nearest names are given.
    """
    shelf = _gpu_shelf()
    if (found := shelf.find(name)) is not None:
        return found
    advice = _ADVICE_GPU.format(folder=user_folder())
    count = re.fullmatch(r"(\d+)\s*[xX*]?\s*([A-Za-z].*)", name)
    if count and (kind := shelf.find(count[2])):
        advice = f"A type has no count in it: say {kind.id}, and the count as --max-gpus {count[1]}"
    return shelf.refuse("GPU", name, advice)


def precision(name: str) -> Precision:
    """Find a number format by id or alias, in any case.

    Raises
    ------
    UnknownNameError
        If there is none of that name; the nearest names are given.
    """
    shelf = _precision_shelf()
    advice = (
        f"Known are {', '.join(shelf.rows)}; with -mlp after it a format is that of the "
        "feed-forward layers alone."
    )
    return shelf.find(name) or _of_feed_forward(name) or shelf.refuse("precision", name, advice)


def _of_feed_forward(name: str) -> Precision | None:
    """Find a format that a checkpoint has in its feed-forward layers alone: ``nvfp4-mlp``."""
    own, suffix = _key(name)[: -len(_MLP)], _key(name)[-len(_MLP) :]
    row = _precision_shelf().find(own) if suffix == _MLP else None
    if row is None or row.scope != "linear" or row.weight_bits >= 16:
        return None
    return replace(row, id=row.id + _MLP, scope="feed_forward", publishers=(), aliases=())


def generations() -> Mapping[str, Generation]:
    """All engine generations by id; the first is what an engine that none of them names has."""
    return _generations()


def generation(engine: Engine) -> Generation:
    """Find the generation of an engine by its name and version.

    Where that names none of them, as without a version of an engine that has several, it is the
    first row, whose times are round numbers between those of the others.
    """
    rows = _generations()
    own = [row for row in rows.values() if row.engine and row.engine == engine.name.lower()]
    version = _version(engine.version)
    for row in own if version else ():
        since, before = _version(row.since), _version(row.before)
        if since <= version and (not before or version < before):
            return row
    return own[0] if len(own) == 1 else next(iter(rows.values()))


def _version(text: str) -> tuple[int, ...]:
    """Read the leading numbers of a version: ``0.11.1rc2+cu128`` is (0, 11, 1)."""
    found = re.match(r"v?(\d+(?:\.\d+)*)", text.strip())
    return tuple(map(int, found[1].split("."))) if found else ()


@cache
def _generations() -> Mapping[str, Generation]:
    return MappingProxyType(_read(Generation, Path(__file__).with_name("engines.toml")))


def context_note(llm_id: str, tokens: float) -> str:
    """Say so where a request is longer than the context of an LLM; empty where it is not.

    Parameters
    ----------
    llm_id : str
        As the catalog has it; one whose longest context is not known gets no note.
    tokens : float
        Of prompt and output together.
    """
    longest = context_tokens(llm_id)
    if not longest or tokens <= longest:
        return ""
    return (
        f"A request of {tokens:,.0f} tokens is longer than the context of {llm_id}, "
        f"{longest:,} tokens: engines refuse it unless they are told to go further."
    )


def context_tokens(llm_id: str) -> int:
    """Longest context of an LLM, prompt and output together; 0 where it is not known."""
    row = llms().get(llm_id)
    return (row.context_tokens if row else None) or next(
        (n for name, n in _contexts().items() if fnmatchcase(llm_id, name)), 0
    )


@cache
def _contexts() -> Mapping[str, int]:
    import tomllib

    text = Path(__file__).with_name("contexts.toml").read_text(encoding="utf-8")
    return MappingProxyType(tomllib.loads(text)["contexts"])


def llms() -> Mapping[str, Llm]:
    """All language models by id, the user's included."""
    return _llm_shelf().rows


def gpus() -> Mapping[str, Gpu]:
    """All GPU types by id, the user's included."""
    return _gpu_shelf().rows


def precisions() -> Mapping[str, Precision]:
    """All number formats by id."""
    return _precision_shelf().rows


def user_folder() -> Path:
    """The folder of the user's own catalog; it need not exist."""
    home = os.environ.get("ENERGYLENS_HOME")
    return Path(home) if home else Path(_HOME).expanduser()


def add_llm(row: Llm) -> Path:
    """Write a language model to the user's catalog, over a row of the same id.

    Returns
    -------
    Path
        The file written, whole or not at all.

    Raises
    ------
    ArtefactError
        If the file that is there cannot be read.
    """
    return _add(row, "llms.toml", _packaged_llms())


def add_gpu(row: Gpu) -> Path:
    """Write a GPU type to the user's catalog, over a row of the same id.

    Returns
    -------
    Path
        The file written, whole or not at all.

    Raises
    ------
    ArtefactError
        If the file that is there cannot be read.
    """
    return _add(row, "gpus.toml", _packaged_gpus())


def _add(row: Llm | Gpu, name: str, packaged: Mapping[str, Any]) -> Path:
    """Add a row to a user's file, one process at a time."""
    path = user_folder() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.parent):
        present = dict(_read(type(row), path, packaged)) if path.exists() else {}
        if row.id in present:  # its table may be anywhere in the file: write all of them anew
            present[row.id] = row
            text = "\n".join(map(_to_toml, present.values()))
        else:
            before = path.read_text(encoding="utf-8").strip("\n") if path.exists() else ""
            text = (before + "\n\n" if before else "") + _to_toml(row)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".catalog-", suffix=".toml")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    return path


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, waiting for whoever has it."""
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


# ------------------------------------------------------------------------------ finding by name


def _key(name: str) -> str:
    return re.sub(r"[\s_-]+", "-", name.strip()).lower()


@dataclass(frozen=True)
class _Shelf(Generic[Row]):
    """Rows by id, and every name that leads to one."""

    rows: Mapping[str, Row]
    names: Mapping[str, str]

    def find(self, name: str) -> Row | None:
        """Look up a name as it is, then without the organisation before the ``/``.

        Quantised copies are mostly published by other organisations under the same name.
        """
        key = _key(name)
        row_id = self.names.get(key) or self.names.get(key.rsplit("/", 1)[-1])
        return self.rows[row_id] if row_id else None

    def refuse(self, kind: str, name: str, advice: str) -> Row:
        known = [alias for row in self.rows.values() for alias in (row.id, *row.aliases)]
        raise UnknownNameError(kind, name, known, advice)


def _shelve(*layers: Mapping[str, Row]) -> _Shelf[Row]:
    """Put later layers over earlier ones; short names count only where one row alone has them."""
    rows: dict[str, Row] = {}
    for layer in layers:
        rows.update(layer)
    short: dict[str, set[str]] = {}
    for entry in rows.values():
        for name in (entry.id, *entry.aliases):
            short.setdefault(_key(name.rsplit("/", 1)[-1]), set()).add(entry.id)
    names = {key: min(ids) for key, ids in short.items() if len(ids) == 1}
    for layer in layers:
        for entry in layer.values():
            names.update({_key(alias): entry.id for alias in entry.aliases})
        names.update({_key(row_id): row_id for row_id in layer})
    return _Shelf(MappingProxyType(rows), MappingProxyType(names))


def _split(name: str) -> tuple[Llm, str | None]:
    """Find an LLM and the precision that its name states.

    The longest suffix that names a format counts, as in ``_4bits64gs_HQQ``. The whole name is
    looked up first, for some checkpoints have the format as a part of their own id.
    """
    return _split_on(name, *_stamp("llms.toml"))


@lru_cache(maxsize=1024)
def _split_on(name: str, path: str, state: tuple[int, ...] | None) -> tuple[Llm, str | None]:
    shelf, formats = _load_llms(path, state), _precision_shelf()
    whole, key = shelf.find(name), _key(name)
    for cut in re.finditer(r"[-.]", key):
        stated = formats.names.get(key[cut.end() :])
        row = whole or (shelf.find(key[: cut.start()]) if stated else None)
        if stated and row:
            return row, published_fp8(row).id if key[cut.end() :] == _FP8 else stated
    return whole or shelf.refuse("LLM", name, _ADVICE_LLM), None


# ---------------------------------------------------------------------------- reading the files


def _llm_shelf() -> _Shelf[Llm]:
    return _load_llms(*_stamp("llms.toml"))


def _gpu_shelf() -> _Shelf[Gpu]:
    return _load_gpus(*_stamp("gpus.toml"))


def _stamp(file_name: str) -> tuple[str, tuple[int, ...] | None]:
    """A user's file and what tells one state of it from another, None if there is none."""
    # Asked at every look-up, where pathlib would take most of the time.
    home = os.environ.get("ENERGYLENS_HOME") or os.path.expanduser(_HOME)  # noqa: PTH111
    path = os.path.join(home, file_name)  # noqa: PTH118
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return path, None
    return path, (status.st_ino, status.st_mtime_ns, status.st_size)


@cache
def _packaged_llms() -> Mapping[str, Llm]:
    return _read(Llm, Path(__file__).with_name("llms.toml"))


@cache
def _packaged_gpus() -> Mapping[str, Gpu]:
    return _read(Gpu, Path(__file__).with_name("gpus.toml"))


@cache
def _precision_shelf() -> _Shelf[Precision]:
    return _shelve(_read(Precision, Path(__file__).with_name("precisions.toml")))


@lru_cache(maxsize=8)
def _load_llms(path: str, state: tuple[int, ...] | None) -> _Shelf[Llm]:
    packaged = _packaged_llms()
    return _shelve(packaged, _read(Llm, Path(path), packaged)) if state else _shelve(packaged)


@lru_cache(maxsize=8)
def _load_gpus(path: str, state: tuple[int, ...] | None) -> _Shelf[Gpu]:
    packaged = _packaged_gpus()
    return _shelve(packaged, _read(Gpu, Path(path), packaged)) if state else _shelve(packaged)


def _read(kind: type[Row], path: Path, base: Mapping[str, Row] | None = None) -> dict[str, Row]:
    """Read every ``[[llm]]``, ``[[gpu]]`` or ``[[precision]]`` table of one file."""
    import tomllib

    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, no TOML, endless integers
        why = " ".join(str(error).split())[:300]
        raise ArtefactError(f"{path} cannot be read as TOML: {why}. Mend or remove it.") from None
    except RecursionError:
        raise ArtefactError(f"{path} is nested too deeply to be a catalog. Mend it.") from None
    table = kind.__name__.lower()
    entries = document.pop(table, [])
    if document or not isinstance(entries, list):
        raise ArtefactError(f"{path} may hold [[{table}]] tables and nothing else.")
    rows: dict[str, Row] = {}
    for number, entry in enumerate(entries, 1):
        named = entry.get("id") if isinstance(entry, dict) else None
        where = f"{path}, [[{table}]] number {number}" + (f" ({named})" if named else "")
        try:
            row = _row(kind, entry, {**(base or {}), **rows})
        except InputError as error:
            raise ArtefactError(f"{where}: {error}") from None
        if row.id in rows:
            raise ArtefactError(f"{where}: the id is already taken by an earlier row.")
        rows[row.id] = row
    return rows


def _row(kind: type[Row], entry: object, known: Mapping[str, Row]) -> Row:
    """Make one record, strictly; ``like`` takes what is not stated from an earlier row."""
    if not isinstance(entry, dict):
        raise InputError("must be a table")
    entry = dict(entry)
    model = entry.pop("like", None)
    if model is None:
        return _record(kind, entry)
    if not isinstance(model, str) or model not in known:
        raise InputError(f"like must name an earlier row by its id, not {model!r}")
    inherited = {f.name: getattr(known[model], f.name) for f in fields(known[model])}
    # Names and provenance belong to one row alone.
    inherited |= {"aliases": (), "source": "", "date": ""}
    return _record(kind, entry, inherited)


Part = TypeVar("Part")


def _record(
    kind: type[Part], entry: dict[str, Any], inherited: dict[str, Any] | None = None
) -> Part:
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(entry) - set(known)):
        raise InputError(
            f"unknown key {unknown[0]!r} in {kind.__name__}; known are {', '.join(known)}"
        )
    values = dict(inherited or {})
    values.update({key: _value(key, str(known[key].type), given) for key, given in entry.items()})
    for name, field in known.items():
        if name not in values and field.default is MISSING:
            raise InputError(f"{kind.__name__} needs the key {name!r}")
    return kind(**values)


def _value(key: str, declared: str, given: Any) -> Any:
    """Check one TOML value against the annotation of the record's field."""
    if key in _PARTS and isinstance(given, dict):
        return _record(_PARTS[key], given)
    if "tuple" in declared and isinstance(given, list) and all(isinstance(s, str) for s in given):
        return tuple(given)
    kinds: dict[str, type | tuple[type, ...]] = {
        "str": str,
        "bool": bool,
        "int": int,
        "float": (int, float),
    }
    expected = kinds.get(declared.split(" ")[0])
    if expected is None or not isinstance(given, expected):
        raise InputError(f"{key} must be of type {declared}, not {given!r}")
    if isinstance(given, int) and given.bit_length() > 64:
        raise InputError(f"{key} must be a number that something real has, not one of 20 digits")
    if isinstance(given, bool) and declared != "bool":
        raise InputError(f"{key} must be of type {declared}, not {given!r}")
    return given


# ------------------------------------------------------------------------------ writing a record


def _to_toml(row: Llm | Gpu) -> str:
    lines = [f"{key} = {_literal(value)}" for key, value in _stated(row)]
    return "\n".join([f"[[{type(row).__name__.lower()}]]", *lines, ""])


def _stated(record: Any) -> Iterator[tuple[str, Any]]:
    """What differs from the field's default."""
    for field in fields(record):
        value = getattr(record, field.name)
        if field.default is MISSING or value != field.default:
            yield field.name, value


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, tuple):
        return _joined("[", map(_literal, value), "]")
    return _joined("{ ", (f"{key} = {_literal(part)}" for key, part in _stated(value)), " }")


def _joined(opening: str, parts: Iterable[str], closing: str) -> str:
    return opening + ", ".join(parts) + closing


def _quoted(text: str) -> str:
    """Quote a basic string of TOML: backslash, quote and control characters escaped."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    escaped = re.sub(r"[\x00-\x1f\x7f]", lambda match: f"\\u{ord(match.group()):04x}", escaped)
    return f'"{escaped}"'
