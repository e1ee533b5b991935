"""Plan files: a plan as lines of JSON, written and read strictly."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from energylens import catalog, files
from energylens.errors import ArtefactError, InputError
from energylens.instrument.engine import Media
from energylens.instrument.plan import Mode, Plan, PlannedCase, Procedure
from energylens.instrument.planning import (
    VERSION,
    Scale,
    _cut,
    _no_scale,
    _workload,
    check_options,
    find_llm,
)
from energylens.records import Boundary, Case, Configuration, Gpu, Llm

# --------------------------------------------------------------------------------- the plan file


def write_plan(path: str | Path, made: Plan) -> None:
    """Write a plan, whole or not at all.

    Raises
    ------
    ArtefactError
        If it cannot be written.
    """
    default = Procedure()
    header: dict[str, Any] = {"energylens_plan": VERSION, "seed": made.seed}
    changed = {
        f.name: getattr(made.procedure, f.name)
        for f in fields(Procedure)
        if getattr(made.procedure, f.name) != getattr(default, f.name)
    }
    if changed:
        header["procedure"] = changed
    encode = json.JSONEncoder(ensure_ascii=False).encode
    lines = [header, *map(_to_line, made.cases)]
    files.write_text(path, "".join(encode(line) + "\n" for line in lines))


# Keys of a line that are always written, and those that are only where they say something.
_NUMBERS = {
    "tensor_parallel": 1,
    "pipeline_parallel": 1,
    "expert_parallel": 1,
    "data_parallel": 1,
}
_LINE_KEYS: dict[str, tuple[type, ...]] = {
    "llm": (str,),
    "gpu": (str,),
    "precision": (str,),
    "engine": (str,),
    "mode": (str,),
    "tensor_parallel": (int,),
    "pipeline_parallel": (int,),
    "expert_parallel": (int,),
    "data_parallel": (int,),
    "batch_size": (int, float),
    "clock_mhz": (int, float),
    "input_tokens": (int, float),
    "output_tokens": (int, float),
    "task": (str,),
    "images": (int,),
    "image_pixels": (list,),
    "frames": (int,),
    "frame_pixels": (list,),
    "request_rate_per_s": (int, float),
    "boundary": (str,),
    "node_gpus": (int,),
    "step_tokens": (int,),
    "weights": (str,),
    "model_path": (str,),
    "scaled_layers": (int,),
    "shard": (list,),
    "options": (dict,),
    "seed": (int,),
    "repeat": (int,),
}
_KINDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    list: "a list of two whole numbers",
    dict: "an object of texts",
}
_NEEDED = ("llm", "gpu", "engine", "batch_size", "input_tokens", "output_tokens")


def _to_line(planned: PlannedCase) -> dict[str, Any]:
    case, m = planned.case, planned.media
    c, w = case.configuration, case.workload
    line: dict[str, Any] = {
        "llm": planned.model_path or _unscaled(case.llm.id, planned.scaled_layers),
        "gpu": case.gpu.id,
        "precision": case.precision.id,
        "engine": planned.engine,
        "mode": planned.mode.value,
        **c.degrees,
        "batch_size": int(c.batch_size),
        "input_tokens": int(w.input_tokens),
        "output_tokens": int(w.output_tokens),
    }
    extra: dict[str, Any] = {
        "clock_mhz": c.clock_mhz,
        "task": w.task,
        "images": m.images,
        "image_pixels": list(m.image_pixels or ()),
        "frames": m.frames,
        "frame_pixels": list(m.frame_pixels or ()),
        "request_rate_per_s": planned.request_rate_per_s,
        "boundary": "" if case.boundary is Boundary.ACTIVE_GPUS else case.boundary.value,
        "node_gpus": case.node_gpus,
        "step_tokens": planned.step_tokens,
        "weights": "" if planned.weights == "dummy" else planned.weights,
        "scaled_layers": planned.scaled_layers,
        "shard": list(planned.shard) if planned.shard else None,
        "options": dict(planned.options),
        "seed": planned.seed,
        "repeat": planned.repeat,
    }
    for name, value in _NUMBERS.items():
        if line[name] == value and name in ("expert_parallel", "data_parallel"):
            del line[name]
    return line | {key: value for key, value in extra.items() if value}


def _unscaled(llm_id: str, scaled_layers: int | None) -> str:
    """Take off what scaling an LLM adds to its name: the plan says it in a key of its own."""
    return llm_id.partition(" (")[0] if scaled_layers is not None else llm_id


def read_plan(path: str | Path, *, scale: Scale = _no_scale) -> Plan:
    """Read a plan.

    Parameters
    ----------
    scale : callable
        Cuts an LLM down, for cases with ``scaled_layers``.

    Raises
    ------
    ArtefactError
        If it is no plan, one of a later version, or a line is wrong; the message says which.
    """
    documents = files.read_json_lines(path)
    header = documents[0] if documents else None
    if not isinstance(header, dict) or "energylens_plan" not in header:
        raise ArtefactError(
            f"{path} must begin with the header of a plan: make one with `energylens plan`."
        )
    if header["energylens_plan"] != VERSION:
        raise ArtefactError(
            f"{path} is a plan of version {header['energylens_plan']!r}, and this energylens reads "
            f"version {VERSION}: use the energylens that wrote it."
        )
    unknown = sorted(set(header) - {"energylens_plan", "seed", "procedure"})
    if unknown:
        raise ArtefactError(f"{path}: the header has an unknown key {unknown[0]!r}.")
    cases: dict[str, int] = {}
    planned = []
    llms: dict[str, tuple[Llm, str | None]] = {}
    for number, line in enumerate(documents[1:], 1):
        where = f"{path}, case {number}"
        try:
            case = _from_line(line, scale, llms)
        except InputError as error:
            raise ArtefactError(f"{where}: {error}") from None
        if case.key in cases:
            raise ArtefactError(
                f"{where} is the same as case {cases[case.key]}: give it another repeat (0, 1, "
                "...) to measure it twice, or remove it."
            )
        cases[case.key] = number
        planned.append(case)
    if not planned:
        raise ArtefactError(f"{path} has no cases: add one a line, below the header.")
    try:
        procedure = _procedure(header.get("procedure", {}))
    except InputError as error:
        raise ArtefactError(f"{path}, procedure in the header: {error}") from None
    seed = header.get("seed", 0)
    if not isinstance(seed, int):
        raise ArtefactError(f"{path}: the seed must be a whole number, not {seed!r}.")
    return Plan(cases=tuple(planned), procedure=procedure, seed=seed)


def _procedure(given: Any) -> Procedure:
    if not isinstance(given, dict):
        raise InputError(f"it must be an object, not {given!r}")
    known = {f.name: f for f in fields(Procedure)}
    for key, value in given.items():
        if key not in known:
            raise InputError(f"unknown key {key!r}; known are {', '.join(known)}")
        kind = str(known[key].type)
        whole = isinstance(value, int) and not isinstance(value, bool)
        fine = {
            "bool": isinstance(value, bool),
            "int": whole,
            "float": whole or isinstance(value, float),
            "float | None": whole or value is None or isinstance(value, float),
        }[kind]
        if not fine:
            raise InputError(f"{key} must be of type {kind}, not {value!r}")
    return Procedure(**given)


def _from_line(line: Any, scale: Scale, llms: dict[str, tuple[Llm, str | None]]) -> PlannedCase:
    if not isinstance(line, dict):
        raise InputError(f"a case must be a JSON object, not {line!r}")
    for key, value in line.items():
        if key not in _LINE_KEYS:
            raise InputError(f"unknown key {key!r}; known are {', '.join(_LINE_KEYS)}")
        if isinstance(value, bool) or not isinstance(value, _LINE_KEYS[key]):
            raise InputError(f"{key} must be {_KINDS[_LINE_KEYS[key][-1]]}, not {value!r}")
    missing = [key for key in _NEEDED if key not in line]
    if missing:
        raise InputError(f"it needs {', '.join(missing)}")
    name = line["llm"]
    if name not in llms:
        llms[name] = find_llm(name)
    llm, path = llms[name]
    layers = line.get("scaled_layers")
    llm = _cut(llm, layers, scale)
    media = Media(
        images=line.get("images", 0),
        image_pixels=_pair(line, "image_pixels"),
        frames=line.get("frames", 0),
        frame_pixels=_pair(line, "frame_pixels"),
    )
    options = line.get("options", {})
    if not all(isinstance(value, str) for value in options.values()):
        raise InputError(f"options must be text, not {options!r}")
    check_options(line["engine"], options)
    gpu: Gpu = catalog.gpu(line["gpu"])
    return PlannedCase(
        case=Case(
            llm=llm,
            gpu=gpu,
            precision=catalog.precision(line.get("precision", llm.native_precision)),
            workload=_workload(
                llm, media, line["input_tokens"], line["output_tokens"], line.get("task", "")
            ),
            configuration=Configuration(
                **{key: line.get(key, value) for key, value in _NUMBERS.items()},
                batch_size=line["batch_size"],
                clock_mhz=line.get("clock_mhz"),
            ),
            boundary=_choice(Boundary, line.get("boundary", "active_gpus"), "boundary"),
            node_gpus=line.get("node_gpus"),
        ),
        engine=line["engine"],
        mode=_choice(Mode, line.get("mode", "phases"), "mode"),
        media=media,
        model_path=path or line.get("model_path"),
        shard=_pair(line, "shard"),
        options=options,
        **{
            f.name: line.get(f.name, f.default)
            for f in fields(PlannedCase)
            if f.default is not MISSING
            and f.name
            in ("request_rate_per_s", "step_tokens", "weights", "scaled_layers", "seed", "repeat")
        },
    )


def _choice(kind: Any, value: str, name: str) -> Any:
    if value not in list(kind):
        raise InputError(f"{name} must be one of {', '.join(kind)}, not {value!r}")
    return kind(value)


def _pair(line: Mapping[str, Any], key: str) -> tuple[int, int] | None:
    value = line.get(key)
    if value is None:
        return None
    if len(value) != 2 or not all(isinstance(n, int) and n >= 1 for n in value):
        raise InputError(f"{key} must be two whole numbers, 1 or more, not {value!r}")
    return value[0], value[1]
