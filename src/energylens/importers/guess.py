"""A mapping drafted from the names of a table's columns and the size of what they hold.

Nothing here is taken for true: `import table --guess` shows the draft and what it makes of the
first rows, and asks. What names and sizes leave open is asked, never chosen.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from energylens import catalog
from energylens.columns import BY_NAME
from energylens.errors import InputError, TableError
from energylens.importers import foreign, quantities
from energylens.importers.collecting import Unusable
from energylens.importers.declared import ASKED
from energylens.importers.foreign import Rows
from energylens.importers.mapping import ColumnMap, FileForm, Mapped, Pivot

_TEXTS: Mapping[str, str] = {
    "llm": r"(llm|model)( name| id)?|hf model|checkpoint",
    "gpu": r"gpu( type| model| name)?|device( name)?|hardware|hw|accelerator( name| type)?",
    "precision": r"(weight )?precision|d ?type|quant(i[sz]ation)?|(number |weight )?format|config",
    "engine": r"(serving |inference )?(engine|framework|backend)",
    "engine_version": r"(engine |framework |vllm |sglang )?version",
    "task": r"task|data ?set( name)?|workload|use case",
}
_MEAN = r"(avg |average |mean )?"
_ENDS = r"( s| ms| us| w| k w| kw| j| k j| kj| wh| k wh| kwh| sec| seconds| watts?| joules?)?"
_NUMBERS: Mapping[str, str] = {
    "tensor_parallel": r"tp( size| degree)?|tensor parallel( size| degree|ism)?",
    "pipeline_parallel": r"pp( size| degree)?|pipeline parallel( size| degree|ism)?",
    "expert_parallel": r"ep( size| degree)?|expert parallel( size| degree|ism)?",
    "data_parallel": r"dp( size| degree)?|data parallel( size| degree|ism)?",
    "gpus": r"(n|num|number of|total|anzahl) ?gpus?|gpus|gpu count|count gpus?",
    "mean_batch_size": r"(avg|average|mean) (batch|concurrency|batch size)|running requests",
    "batch_size": r"(max )?(conc|concurrency|batch|bs|batch size|num seqs|batchsize)|"
    r"(num |n )?(users|streams|clients)",
    "request_rate_per_s": r"(request |offered |arrival )?rate( rps| qps| req s)?|rps|qps",
    "input_tokens": _MEAN
    + r"(isl|(num )?(input|prompt|prefill|in|context) ?(len|length|tokens?|seq len|sequence length|"
    r"size)|prompt|input|in)",
    "output_tokens": _MEAN
    + r"(osl|(num )?(output|generated|generation|completion|gen|decode|out|new|max new|answer|"
    r"response|antwort) ?(len|length|tokens?|seq len|sequence length|size)|generated|output|out)",
    "ttft_s": _MEAN + r"(ttft|time to first token)" + _ENDS,
    "tpot_s": _MEAN + r"(tpot|time per output token)" + _ENDS,
    "request_latency_s": _MEAN
    + r"((e2e|e2el|end to end|request|total|response|inference) )?(latency|e2el?|response time|"
    r"end to end|time per request|request time)" + _ENDS,
    "average_power_w": r"(avg|average|mean|total)? ?(gpu |total )?power( draw| usage)?( avg| mean)?"
    + _ENDS,
    "power_cap_w": r"(gpu )?power (cap|limit)" + _ENDS,
}
_STATED = {
    "p50": "p50",
    "median": "p50",
    "p90": "p90",
    "p95": "p95",
    "p99": "p99",
}
_STEMS = {
    "ttft": "ttft",
    "time to first token": "ttft",
    "tpot": "tpot",
    "itl": "itl",
    "inter token latency": "itl",
    "e2el": "request_latency",
    "e2e latency": "request_latency",
    "request latency": "request_latency",
    "latency": "request_latency",
}
_ENERGY = re.compile(r"energy|joules?|\b(k|m)?j\b|\b(k|m)?wh\b|\bk wh\b")
_NO_ENERGY = re.compile(
    r"co2|cost|price|emission|efficien|per (joule|wh|kwh|j)\b|std|min\b|max\b|peak|cpu|dram|cv"
)
_REQUESTS = r"(num |n |total |number of |completed )?(requests?|prompts|samples|queries)|completed"
_OF_ONE = re.compile(r"\b(per|pro|each|a) (single )?(requests?|req|query|prompt|anfrage)\b")
_SPEED = (
    r"(output |gen |generation |decode )?(token )?(throughput|tps)( tok s| tokens s| tps)?|"
    r"(output |out )?(tokens|tok) (per )?s(ec(ond)?)?"
)

#: Joules that an LLM on a GPU has been seen to take for an output token, with room to spare.
_PLAUSIBLE_J_A_TOKEN = (3e-3, 80.0)
#: How far a figure may be from the one that power and time give, to be taken for the same.
_AGREES = 1.6


@dataclass
class Profile:
    """What a column holds: numbers in the unit it states, or text."""

    name: str
    words: str
    cells: list[object]
    unit: quantities.Unit | None = None
    numbers: list[float | None] = field(default_factory=list)
    root: bool = False

    @property
    def known(self) -> list[float]:
        """The numbers that are there."""
        return [number for number in self.numbers if number is not None]

    @property
    def median(self) -> float:
        """Of the numbers."""
        return statistics.median(self.known)


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A drafted mapping.

    Attributes
    ----------
    mapped : Mapped
        What it says.
    text : str
        The same as TOML, with reasons.
    missing : tuple of str
        Columns that a row needs and that neither file nor operator gives.
    questions : tuple of str
        What names and sizes leave open.
    """

    mapped: Mapped
    text: str
    missing: tuple[str, ...]
    questions: tuple[str, ...]

    @property
    def flags(self) -> str:
        """The options that give what is missing; joules have none."""
        return ", ".join(ASKED[name] for name in self.missing if name in ASKED)


def draft(
    path: str | Path,
    declared: Mapping[str, object] | None = None,
    form: FileForm | None = None,
) -> Draft:
    """Draft a mapping for a file.

    Parameters
    ----------
    path : str or Path
        The table.
    declared : mapping of str to object, optional
        What the operator says, by columns of the tidy table.
    form : FileForm, optional
        What the operator says of how the file is written.

    Raises
    ------
    TableError, ArtefactError
        If the file cannot be read as a table.
    """
    return _Drafter(path, dict(declared or {}), form or FileForm()).made()


def words_of(header: str) -> str:
    """Spell the words of a column's name: ``AvgPower_W`` as ``avg power w``."""
    header = header.rsplit(".", 1)[-1] if "." in header and " " not in header else header
    header = re.sub(r"^#\s*(of )?", "number of ", header.replace("GPUs", " gpus").strip())
    if not re.search("[a-z]", header) or re.match(r"^[A-Z]{2,}[a-z]?_", header):
        header = header.lower()
    found = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+[a-z]*|[a-z]\d+", header)
    words = " ".join(found).lower()
    return re.sub(r"\b(p|e) (\d+)", r"\1\2", words).replace("e2 e", "e2e")


class _Drafter:
    def __init__(self, path: str | Path, declared: dict[str, object], form: FileForm) -> None:
        self.path, self.declared, self.form = path, declared, form
        self.rows = self._rows()
        self.columns: dict[str, ColumnMap] = {}
        self.why: dict[str, str] = {}
        self.questions: list[str] = []
        self.profiles = self._profiles()
        self.used: set[str] = set()

    # ------------------------------------------------------------------------------- the file

    def _rows(self) -> Rows:
        rows = foreign.load(self.path, self.form)
        if rows.separator not in (None, ","):
            self.form = replace(self.form, separator=rows.separator)
        if rows.nested and len(rows.cells) == 1:
            place = _longest_list(rows.root)
            if place is not None:
                self.form = replace(self.form, rows=place)
                rows = foreign.load(self.path, self.form)
        pivot = _long_form(rows)
        if pivot is not None:
            self.form = replace(self.form, pivot=pivot)
            rows = foreign.pivoted(rows, pivot, "the draft")
        return rows

    def _profiles(self) -> list[Profile]:
        """Profile every column, those of objects within rows too."""
        if self.rows.nested and self.form.pivot is None:
            flat = [foreign.flat(row) for row in self.rows.cells]
            names = list(dict.fromkeys(name for row in flat for name in row))
            columns = {name: [row.get(name) for row in flat] for name in names}
        else:
            columns = {name: self.rows.column(name) for name in self.rows.columns}
        profiles = [
            Profile(name=name, words=words_of(name), cells=cells) for name, cells in columns.items()
        ]
        if self.form.rows is not None and isinstance(self.rows.root, Mapping):
            profiles += [
                Profile(name=name, words=words_of(name), cells=[cell], root=True)
                for name, cell in foreign.flat(self.rows.root).items()
            ]
        written = [p for p in profiles if _looks_like_numbers(p.cells)]
        decimal = self.form.decimal or quantities.decimal_sign(
            (cell for p in written for cell in p.cells), self.rows.name
        )
        if decimal == ",":
            self.form = replace(self.form, decimal=decimal)
        for profile in written:
            _read_numbers(profile, decimal)
        return profiles

    # ------------------------------------------------------------------------------- choosing

    def made(self) -> Draft:
        """Choose columns, and write the draft."""
        for profile in self.profiles:  # what is called as here is meant so
            if profile.name in BY_NAME and profile.name not in self.declared and not profile.root:
                self._take(profile.name, self._source(profile))
        self._texts()
        for key, pattern in _NUMBERS.items():
            if key not in self.declared and key not in self.columns:
                self._number(key, pattern)
        self._percentiles()
        self._totals()
        self._time_units()
        self._energies()
        self._names()
        declared = dict(self.declared)
        constants: dict[str, object] = {}
        if "source" not in declared and "source" not in self.columns:
            constants["source"] = "self_measured"  # one's own table, until its owner says else
        mapped = Mapped(
            columns=self.columns,
            constants=constants,
            declared=declared,
            names=self.names,
            form=self.form,
        )
        missing = tuple(name for name in self._needed() if name not in {**self.columns, **declared})
        return Draft(
            mapped=mapped,
            text=self._text(mapped, missing),
            missing=missing,
            questions=tuple(self.questions),
        )

    def _needed(self) -> list[str]:
        needed = ["llm", "gpu", "input_tokens", "output_tokens", "energy_per_request_j"]
        if "request_rate_per_s" not in {**self.columns, **self.declared}:
            needed.insert(2, "batch_size")
        return needed

    def _take(self, key: str, source: ColumnMap, why: str = "") -> None:
        self.columns[key] = source
        self.used.update(source.own)
        if why:
            self.why[key] = why

    def _source(self, profile: Profile, **more: Any) -> ColumnMap:
        if profile.root:
            return ColumnMap(root=profile.name, **more)
        return ColumnMap(column=profile.name, **more)

    def _find(self, pattern: str, *, numbers: bool = True) -> Profile | None:
        """Give the first unused column of that name."""
        for profile in self.profiles:
            if profile.name in self.used or bool(profile.known) is not numbers:
                continue
            if re.fullmatch(pattern, profile.words):
                return profile
        return None

    def _texts(self) -> None:
        """Choose columns of text: by what the catalog knows of their cells, then by name."""
        lookups: dict[str, Callable[[str], object]] = {
            "llm": catalog.llm,
            "gpu": catalog.gpu,
            "precision": catalog.precision,
        }
        for key, pattern in _TEXTS.items():
            if key in self.declared or key in self.columns:
                continue
            best: tuple[float, Profile] | None = None
            for profile in self.profiles:
                texts = list(dict.fromkeys(c for c in profile.cells if isinstance(c, str) and c))
                if profile.name in self.used or profile.known or not texts:
                    continue
                score = 1.0 if re.fullmatch(pattern, profile.words) else 0.0
                if key in lookups:
                    score += 2 * _share_known(lookups[key], texts[:40])
                if score >= 1.0 and (best is None or score > best[0]):
                    best = score, profile
            if best is not None:
                self._take(key, self._source(best[1]))

    def _number(self, key: str, pattern: str) -> None:
        found = self._find(pattern)
        if found is not None:
            self._take(key, self._source(found))

    def _percentiles(self) -> None:
        for profile in self.profiles:
            parts = profile.words.split()
            stated = [word for word in parts if word in _STATED]
            if len(stated) != 1 or profile.name in self.used or not profile.known:
                continue
            rest = " ".join(w for w in parts if w not in (*stated, "ms", "s", "us", "sec"))
            stem = _STEMS.get(rest)
            if stem is None:
                continue
            percent = _STATED[stated[0]]
            key = "median_itl_s" if (stem, percent) == ("itl", "p50") else f"{stem}_{percent}_s"
            if key in BY_NAME and key not in self.columns:
                self._take(key, self._source(profile))

    def _totals(self) -> None:
        """Divide tokens of a whole run by its requests."""
        requests = self._find(_REQUESTS)
        for key, kind in (("input_tokens", "(input|prompt)"), ("output_tokens", "(output|gen.*)")):
            if key in self.columns or key in self.declared:
                continue
            whole = self._find(rf"total {kind} tokens")
            if whole is not None and requests is not None and not whole.root:
                self._take(key, self._source(whole, divide_by=(requests.name,)))

    def _profile(self, key: str) -> Profile | None:
        source = self.columns.get(key)
        if source is None:
            return None
        name = source.root or source.own[0]
        return next(p for p in self.profiles if p.name == name and p.root == bool(source.root))

    def _series(self, key: str) -> list[float | None] | None:
        """A column of the tidy table row by row, in its unit, as far as chosen."""
        said = self.declared.get(key)
        if isinstance(said, int | float):
            return [float(said)] * len(self.rows.cells)
        profile, source = self._profile(key), self.columns.get(key)
        if profile is None or source is None or not profile.known:
            return None
        if source.multiply_by or source.divide_by:
            return None
        unit = profile.unit or (quantities.unit(source.unit) if source.unit else None)
        factor = unit.factor if unit else 1.0
        numbers = profile.numbers * len(self.rows.cells) if profile.root else profile.numbers
        return [None if number is None else number * factor for number in numbers]

    # ---------------------------------------------------------------------------------- units

    def _time_units(self) -> None:
        """Tell s from ms where neither name nor cells do."""
        for key in [k for k in self.columns if k.endswith("_s") and k != "request_rate_per_s"]:
            if key.endswith("per_s"):
                continue
            profile = self._profile(key)
            if profile is None:
                continue
            if not _in(profile, "s"):
                self._drop(key, f"{profile.name!r} is in {profile.unit and profile.unit.name}")
                continue
            if profile.unit is not None:
                self._said(key, profile)
                continue
            small, large = _WINDOWS.get(key.split("_")[0], (60.0, 600.0))
            middle = profile.median
            if middle < small:
                self._unit(key, "s", f"{middle:g} would be too little as ms")
            elif middle > large:
                self._unit(key, "ms", f"{middle:g} would be too much as s")
            else:
                self._drop(key, f"is {profile.name!r}, {middle:g} in the middle, in s or in ms?")
        for key in ("average_power_w", "power_cap_w"):
            profile = self._profile(key)
            if profile is None:
                continue
            if not _in(profile, "W"):
                self._drop(key, f"{profile.name!r} is in {profile.unit and profile.unit.name}")
            elif profile.unit is not None:
                self._said(key, profile)
            elif profile.median < 15:
                self._drop(key, f"is {profile.name!r}, {profile.median:g} in the middle, in kW?")

    def _said(self, key: str, profile: Profile) -> None:
        """Take the unit that the name of a column states; cells that state theirs need none."""
        if profile.unit is not None and not _cells_say(profile) and profile.unit.factor != 1:
            self.columns[key] = replace(self.columns[key], unit=profile.unit.name)
            self.why[key] = "the unit is in the name"

    def _unit(self, key: str, unit: str, why: str) -> None:
        if unit != "s":
            self.columns[key] = replace(self.columns[key], unit=unit)
        self.why[key] = f"in {unit}: {why}"

    def _drop(self, key: str, question: str) -> None:
        source = self.columns.pop(key)
        self.used.difference_update(source.own)
        self.questions.append(f"{key}: {question}")

    # --------------------------------------------------------------------------------- joules

    def _energies(self) -> None:
        if "energy_per_request_j" in {**self.declared, **self.columns}:
            return
        found = [
            profile
            for profile in self.profiles
            if profile.known
            and not profile.root
            and profile.name not in self.used
            and _ENERGY.search(profile.words)
            and not _NO_ENERGY.search(profile.words)
            and _in(profile, "J", "J/token")
        ]
        for phase in ("prefill", "decode"):
            part = next((p for p in found if phase in p.words), None)
            if part is not None:
                found.remove(part)
        offers = [offer for profile in found for offer in self._readings(profile)]
        sound = [offer for offer in offers if offer.agrees]
        likely = sound or [offer for offer in offers if offer.agrees is None and offer.stated]
        likely = likely or [offer for offer in offers if offer.agrees is None]
        # Only their name tells joules of a request from those of all: where it does not, ask.
        open_to_all = not sound and any(offer.of_run for offer in likely)
        if len({offer.source for offer in likely}) > 1 and not sound and not open_to_all:
            likely = [offer for offer in likely if offer.rank == min(o.rank for o in likely)]
        distinct = list({offer.source: offer for offer in likely}.values())
        if not distinct:
            names = ", ".join(repr(profile.name) for profile in found[:4])
            if names:
                self.questions.append(
                    f"energy_per_request_j: {names}, in which unit, and of one request, of one "
                    "token or of the whole run?"
                )
            return
        best = min(distinct, key=lambda offer: (offer.distance, offer.rank))
        rivals = [o for o in distinct if o is not best and o.distance == best.distance]
        if rivals and not sound:
            ways = " or ".join(dict.fromkeys(o.why for o in (best, *rivals)))
            self.questions.append(f"energy_per_request_j: {ways}?")
            return
        self._take("energy_per_request_j", best.source, best.why)

    def _readings(self, profile: Profile) -> list[_Reading]:
        """Every way to read a column of joules that is physically possible."""
        output = self._series("output_tokens")
        requests = self._find(_REQUESTS)
        said = profile.unit
        names = [said.name] if said is not None else _either(profile) or ["J", "Wh", "kWh", "kJ"]
        per_token = bool(re.search(r"\b(tok|toks|token|tokens)\b", profile.words)) or (
            said is not None and said.dimension == "J/token"
        )
        of_one = bool(_OF_ONE.search(profile.words))
        whole_run = bool(re.search(r"\b(total|run|overall|cumulative)\b", profile.words))
        of_batch = bool(re.search(r"\b(per |a )?batch\b", profile.words))
        made = []
        for name in names:
            unit = quantities.UNITS[name]
            joules = _times(profile.numbers, unit.factor)
            base = self._source(profile)
            stated = _cells_say(profile) or unit_in_name(profile) is not None
            if not _cells_say(profile) and unit.factor != 1:
                base = replace(base, unit=name)
            if per_token:
                if re.search(r"\b(total|all|input|prefill|prompt)\b", profile.words):
                    continue
                if output is None or not re.search(
                    r"\b(out|output|gen|generated)\b", profile.words
                ):
                    self.questions.append(
                        f"energy_per_request_j: {profile.name!r} is of a token: of an output token "
                        "(multiply_by the output tokens), or of either kind?"
                    )
                    break
                source = replace(base, multiply_by=("output_tokens",))
                joules = _times(joules, output)
                made.append(self._reading(source, joules, stated, 0, f"{name} an output token"))
                continue
            if of_batch:
                sizes = next((k for k in ("mean_batch_size", "batch_size") if self._series(k)), "")
                if not sizes:
                    self.questions.append(
                        f"energy_per_request_j: {profile.name!r} is of a batch: of how many "
                        "requests?"
                    )
                    break
                source = replace(base, divide_by=(sizes,))
                each = _over(joules, self._series(sizes) or [])
                made.append(self._reading(source, each, stated, 0, f"{name} of a batch"))
                continue
            if not whole_run:
                made.append(self._reading(base, joules, stated, 1, f"{name} a request"))
            if requests is not None and not of_one:
                source = replace(base, divide_by=(requests.name,))
                each = _times(joules, [1 / n if n else None for n in requests.numbers])
                rank = 0 if whole_run else 2
                whole = self._reading(source, each, stated, rank, f"{name} of a whole run")
                made.append(whole and replace(whole, of_run=not whole_run))
        return [reading for reading in made if reading is not None]

    def _reading(
        self, source: ColumnMap, joules: _Series, stated: bool, rank: int, why: str
    ) -> _Reading | None:
        output, reference = self._series("output_tokens"), self._reference()
        low, high = _PLAUSIBLE_J_A_TOKEN
        if not any(joules):
            return None
        if output is not None:
            each = _middle(_over(joules, output))
            if each is None or not low <= each <= high:
                return None
        ratio = None if reference is None else _middle(_over(joules, reference))
        if ratio is None:
            return _Reading(source, None, stated, 0.0, rank, f"read as {why}")
        distance = max(ratio, 1 / ratio)
        if distance > _AGREES:
            return None
        why = f"read as {why}: {ratio:.2g} times what power and time give"
        return _Reading(source, True, stated, round(distance, 2), rank, why)

    def _reference(self) -> _Series | None:
        """Joules of a request by power and time, None where the table has none."""
        power, batch = self._series("average_power_w"), self._series("mean_batch_size")
        batch = batch or self._series("batch_size")
        if power is None:
            return None
        latency, output = self._series("request_latency_s"), self._series("output_tokens")
        speed = self._find(_SPEED)
        if latency and batch:
            return _over(_times(power, latency), batch)
        if speed is not None and output:
            return _times(_over(power, speed.numbers), output)
        tpot = self._series("tpot_s")
        if tpot and batch and output:
            return _over(_times(_times(power, tpot), output), batch)
        return None

    # ---------------------------------------------------------------------------------- names

    def _names(self) -> None:
        """Names that no catalog knows, and what comes nearest."""
        self.names: dict[str, dict[str, str]] = {}
        self.unknown: dict[str, dict[str, str]] = {}
        for key, lookup in (
            ("llm", catalog.llm),
            ("gpu", catalog.gpu),
            ("precision", catalog.precision),
        ):
            profile = self._profile(key)
            for text in (
                dict.fromkeys(str(c).strip() for c in profile.cells if c) if profile else ()
            ):
                try:
                    lookup(catalog.split_precision(text)[0] if key == "llm" else text)
                except InputError as error:
                    near = re.search(r"Did you mean (.*?)(?: or .*)?\?", str(error))
                    self.unknown.setdefault(key, {})[text] = near[1] if near else ""

    # ----------------------------------------------------------------------------------- text

    def _text(self, mapped: Mapped, missing: Sequence[str]) -> str:
        lines = [f"# How to read {Path(str(self.path)).name}: a draft, to be looked through."]
        form = []
        if mapped.form.separator:
            form.append(f"separator = {_toml(mapped.form.separator)}")
        if mapped.form.decimal:
            form.append(f"decimal = {_toml(mapped.form.decimal)}")
        if mapped.form.rows:
            form.append(f"rows = {_toml(mapped.form.rows)}")
        if mapped.form.pivot:
            pivot = mapped.form.pivot
            form.append(
                f"pivot = {{ names = {_toml(pivot.names)}, values = {_toml(pivot.values)}"
                + (f", units = {_toml(pivot.units)}" if pivot.units else "")
                + " }"
            )
        lines += ["", "[file]", *form] if form else []
        if mapped.constants:
            lines += ["", "[constants]"]
            lines += [f"{key} = {_toml(value)}" for key, value in mapped.constants.items()]
        if mapped.declared:
            lines += ["", "[declared]"]
            lines += [f"{key} = {_toml(value)}" for key, value in mapped.declared.items()]
        lines += ["", "[columns]"]
        order = list(BY_NAME)
        for key in sorted(mapped.columns, key=order.index):
            why = f"  # {self.why[key]}" if key in self.why else ""
            lines.append(f"{key} = {_toml_source(mapped.columns[key])}{why}")
        lines += [f"# {question}" for question in self.questions]
        lines += [f"# {name} = ?  (not in the file)" for name in missing if not self._asked(name)]
        unread = [profile.name for profile in self.profiles if profile.name not in self.used]
        if unread and not self.form.pivot:
            shown = ", ".join(map(repr, unread[:12])) + ", ..." * (len(unread) > 12)
            lines.append(f"# not read: {shown}")
        for key, names in self.unknown.items():
            lines += ["", f"[names.{key}]"]
            lines += [
                f"# {_toml(text)} = {_toml(near) if near else '?'}  (in no catalog)"
                for text, near in list(names.items())[:40]
            ]
        return "\n".join(lines) + "\n"

    def _asked(self, name: str) -> bool:
        return any(question.startswith(f"{name}:") for question in self.questions)


_Series = list[float | None]


def _times(first: Sequence[float | None], second: Sequence[float | None] | float) -> _Series:
    others = [second] * len(first) if isinstance(second, float) else second
    return [None if None in (a, b) else a * b for a, b in zip(first, others, strict=True)]  # type: ignore[operator]


def _over(first: Sequence[float | None], second: Sequence[float | None]) -> _Series:
    return _times(first, [1 / value if value else None for value in second])


def _middle(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value]
    return statistics.median(known) if known else None


#: Below the first a time is in s, above the second in ms.
_WINDOWS = {"ttft": (5.0, 20.0), "tpot": (1.0, 2.0), "itl": (1.0, 2.0), "median": (1.0, 2.0)}


@dataclass(frozen=True)
class _Reading:
    """One way to read a column of joules; ``agrees`` with power and time, None if those lack."""

    source: ColumnMap
    agrees: bool | None
    stated: bool
    distance: float
    rank: int
    why: str
    of_run: bool = False  # of all requests together, which its name does not say


def _looks_like_numbers(cells: Sequence[object]) -> bool:
    known = [c for c in cells if c not in (None, "") and not isinstance(c, bool)]
    numbers = [
        c
        for c in known
        if isinstance(c, int | float) or (isinstance(c, str) and re.match(r"\s*[+-]?[.,]?\d", c))
    ]
    texts = [c for c in numbers if isinstance(c, str) and re.search("[A-Za-z]{4}", c)]
    return len(numbers) > 0.7 * len(known) and len(texts) < 0.5 * max(len(known), 1)


def _read_numbers(profile: Profile, decimal: str) -> None:
    units: set[quantities.Unit] = set()
    numbers: list[float | None] = []
    for cell in profile.cells:
        try:
            found = quantities.quantity(cell, profile.name, decimal)
        except Unusable:
            found = None
        numbers.append(None if found is None else found.value)
        if found is not None and found.unit is not None:
            units.add(found.unit)
    known = sum(number is not None for number in numbers)
    if not known or len(units) > 1 or known < 0.6 * sum(c not in (None, "") for c in profile.cells):
        return
    try:
        named = quantities.unit_of_header(profile.name)
    except TableError:
        named = None
    named = named or unit_in_name(profile)
    if units and named is not None and named not in units and not _cells_say(profile):
        return  # some cells in the unit of the name, some in another: no one unit for all
    profile.numbers = numbers
    profile.unit = next(iter(units), named)


def unit_in_name(profile: Profile) -> quantities.Unit | None:
    """Tell the unit of joules from a word of a column's name, as in ``energy_j_1k``."""
    spelt = set(re.findall(r"(?<![A-Za-z])[mkM]?(?:Wh|J)(?![A-Za-z])", profile.name))
    if len(spelt) == 1:
        return quantities.unit(spelt.pop())
    words = profile.words.replace("k wh", "kwh").replace("k j", "kj").split()
    found = {word for word in words if word in ("j", "joule", "joules", "kj", "wh", "kwh")}
    return quantities.unit(found.pop()) if len(found) == 1 else None


def _either(profile: Profile) -> list[str]:
    """Both units that a name in small letters may mean, as in ``energy_mwh``; sizes tell which."""
    spelt = re.search(r"(?:^|[^a-z])(mwh|mj)(?![a-z])", profile.name.lower())
    return [] if spelt is None else {"mwh": ["mWh", "MWh"], "mj": ["mJ", "MJ"]}[spelt[1]]


def _in(profile: Profile, *dimensions: str) -> bool:
    return profile.unit is None or profile.unit.dimension in dimensions


def _cells_say(profile: Profile) -> bool:
    said = [
        isinstance(c, str) and bool(re.search(r"[A-Za-zµμ%]\s*$", c)) for c in profile.cells if c
    ]
    return bool(said) and all(said)


def _share_known(lookup: Callable[[str], object], texts: Iterable[str]) -> float:
    found, total = 0, 0
    for text in texts:
        total += 1
        try:
            lookup(text.strip())
            found += 1
        except InputError:
            pass
    return found / max(total, 1)


def _long_form(rows: Rows) -> Pivot | None:
    for values in rows.columns:
        if not _VALUES.fullmatch(values.strip().lower()):
            continue
        found = foreign.kinds_within(rows, values, ())
        if found is None:
            continue
        units = next((name for name in rows.columns if name.strip().lower() in _UNITS), None)
        return Pivot(names=found[0], values=values, units=units)
    return None


_VALUES = re.compile("values?|val|amount|reading|result|measurement")
_UNITS = ("unit", "units", "uom")


def _longest_list(root: object) -> str | None:
    """The JMESPath of the longest list of objects within a document, None if there is none."""
    best: tuple[int, str] | None = None
    stack: list[tuple[str, object, int]] = [("", root, 0)]
    while stack:
        path, value, depth = stack.pop()
        if isinstance(value, Mapping) and depth < 4:
            for key, inner in value.items():
                step = foreign.step(str(key))
                stack.append((f"{path}.{step}" if path else step, inner, depth + 1))
        elif (
            isinstance(value, list)
            and all(isinstance(v, Mapping) for v in value)
            and len(value) > (best[0] if best else 0)
        ):
            best = len(value), f"{path}[]" if path else "[]"
    return None if best is None else best[1]


def _toml(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, ensure_ascii=False)


def _toml_source(source: ColumnMap) -> str:
    if source == ColumnMap(column=source.column):
        return _toml(source.column)
    parts: dict[str, object] = {
        "column": source.column,
        "root": source.root,
        "min": list(source.least),
        "max": list(source.most),
        "unit": source.unit,
        "scale": source.scale,
        "multiply_by": list(source.multiply_by),
        "divide_by": list(source.divide_by),
    }
    said = {key: value for key, value in parts.items() if value not in (None, [])}
    one = {k: v[0] if isinstance(v, list) and len(v) == 1 else v for k, v in said.items()}
    return f"{{ {', '.join(f'{key} = {_toml(value)}' for key, value in one.items())} }}"
