"""What other programs read: joules, watts and seconds in their fields and units.

Names, units and checks are those of the readers as of November 2026:

- ``inferencex``: points as InferenceX's aggregate JSON has them, with power schema 2.
- ``otel``: OTLP/JSON metrics by the drafted names ``gen_ai.infrastructure.energy.per_token`` and
  ``gen_ai.infrastructure.power`` (a proposal for OpenTelemetry's GenAI conventions, aitra-meter).
- ``dynamo``: the profile that NVIDIA Dynamo's planner interpolates: two ``raw_data.npz``.
- ``wva``: a ``VariantAutoscaling`` of llm-d's workload variant autoscaler, whose ``variantCost`` is
  the watts of a replica: what its solver then minimises are joules. ``wva-variants``: with the
  variant's id and accelerator, which some of its releases require. ``wva-annotations``: the same
  for releases without such a resource, which read ``llm-d.ai/variant-cost`` off a variant's HPA.
- ``semantic-router``: the constants of a ``ManualProfile`` of the fleet simulator of vLLM's
  semantic router.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from energylens import __version__, capacity, catalog
from energylens.audit import rate_per_s
from energylens.cases import Cases, FloatArray
from energylens.dataset import Dataset
from energylens.errors import ArtefactError, UsageError
from energylens.latency import TimeModel
from energylens.model import EnergyModel
from energylens.pacing import Paced, full_batch
from energylens.records import PARALLELISM, Boundary, Case, Configuration, Source, Workload
from energylens.service import JouleSteps, Lengths
from energylens.words import percent

FORMATS = (
    "inferencex",
    "otel",
    "dynamo",
    "wva",
    "wva-variants",
    "wva-annotations",
    "semantic-router",
)

#: Formats that want one deployment at many batches, and so a model and not a list of points.
OF_A_MODEL = ("dynamo", "semantic-router")

PREDICTED = "predicted by energylens"
POWER_SCHEMA = 2
LLM_NAME = 128  # letters of a modelID there, at most
ISLS, CONTEXTS, USAGES = 16, 8, 10  # points of a planner profile
SHORTEST = 100  # prompt tokens that such a profile begins with
BLOCK_TOKENS = 16  # of a block of the KV cache, by default in vLLM
MOST = 1e15  # of any number in a document: more is none
WATTS_OFF = 0.05  # of a power curve: more is worth a note


@dataclass(frozen=True, kw_only=True)
class Point:
    """One deployment with what it takes; None is not known.

    Joules are per request, watts and requests a second those of the whole deployment.
    """

    case: Case
    energy_per_request_j: float
    source: str
    requests_per_s: float | None = None
    power_w: float | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None
    request_latency_s: float | None = None

    @property
    def measured(self) -> bool:
        """Whether somebody measured its joules."""
        known = self.source in {str(source) for source in Source}
        return known and Source(self.source).carries_accuracy_claim


@dataclass(frozen=True, kw_only=True)
class Export:
    """Files by name ("" where there is one), and what their reader must know."""

    files: Mapping[str, bytes]
    notes: tuple[str, ...] = ()


# --------------------------------------------------------------------------------------- points


def points_of_model(model: EnergyModel, case: Case) -> list[Point]:
    """Predict one deployment in a batch that is kept full."""
    cases = Cases.of([capacity.as_run(case)])
    joules = float(model.predict_energy_j(cases)[0])
    if model.time is None:
        return [Point(case=case, energy_per_request_j=joules, source=PREDICTED)]
    full = full_batch(model, model.time, cases)
    rate = float(full.requests_per_s[0])
    return [
        Point(
            case=case,
            energy_per_request_j=joules,
            source=PREDICTED,
            requests_per_s=rate,
            power_w=joules * rate,
            ttft_s=float(full.ttft_s[0]),
            tpot_s=float(full.tpot_s[0]),
            request_latency_s=float(full.latency_s[0]),
        )
    ]


def points_of_table(dataset: Dataset) -> list[Point]:
    """Take the rows of a table."""

    def known(values: FloatArray, row: int) -> float | None:
        return float(values[row]) if np.isfinite(values[row]) else None

    rates, c = rate_per_s(dataset), dataset.cases
    return [
        Point(
            case=c.case(row),
            energy_per_request_j=float(dataset.energy_per_request_j[row]),
            source=str(dataset.source[row]),
            requests_per_s=known(rates, row),
            power_w=known(c.average_power_w, row),
            ttft_s=known(c.ttft_s, row),
            tpot_s=known(c.tpot_s, row),
            request_latency_s=known(c.request_latency_s, row),
        )
        for row in range(len(dataset))
    ]


def points_of_ranking(document: Mapping[str, Any], name: str) -> list[Point]:
    """Take the configurations that ``select --json`` lists.

    Raises
    ------
    ArtefactError
        If the document is no such list.
    """
    asked = document.get("question", document)
    entries = document.get("configurations", document.get("ranking"))
    if (
        not isinstance(asked, Mapping)
        or not isinstance(asked.get("llm"), str)
        or not isinstance(entries, list)
        or not entries
        or not all(isinstance(entry, Mapping) for entry in entries)
    ):
        raise ArtefactError(
            f"{name} must be what select --json prints, with llm, input_tokens, output_tokens and "
            "a list of configurations: print it again"
        )
    workload = Workload(
        input_tokens=_needed(asked, "input_tokens", name),
        output_tokens=_needed(asked, "output_tokens", name),
        request_rate_per_s=_known(asked, "rate_per_s", name),
    )
    return [_point_of_entry(entry, asked["llm"], workload, name) for entry in entries]


def _point_of_entry(entry: Mapping[str, Any], llm: str, workload: Workload, name: str) -> Point:
    degrees = {degree: _needed(entry, degree, name) for degree in PARALLELISM}
    running = _known(entry, "mean_batch_size", name)
    labels = [entry.get(label) for label in ("gpu", "precision")]
    if not all(isinstance(label, str) for label in labels):
        raise ArtefactError(
            f"{name}: every configuration must name its gpu and precision: print it again"
        )
    case = Case(
        llm=catalog.llm(llm),
        gpu=catalog.gpu(str(labels[0])),
        precision=catalog.precision(str(labels[1])),
        workload=workload,
        configuration=Configuration(
            **{degree: int(value) for degree, value in degrees.items()},
            batch_size=_needed(entry, "batch_size", name),
            mean_batch_size=None if running is None else running * degrees["data_parallel"],
        ),
    )
    return Point(
        case=case,
        energy_per_request_j=_needed(entry, "energy_per_request_j", name),
        source=PREDICTED,
        requests_per_s=workload.request_rate_per_s,
        power_w=_known(entry, "power_w", name),
        ttft_s=_known(entry, "ttft_s", name),
        tpot_s=_known(entry, "tpot_s", name),
        request_latency_s=_known(entry, "request_latency_s", name),
    )


def _known(fields: Mapping[str, Any], key: str, name: str) -> float | None:
    """Read a number above 0; None where it is not known."""
    value = fields.get(key)
    if value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < MOST:
        raise ArtefactError(
            f"{name}: {key} must be a number above 0, not {repr(value)[:40]}: print it again with "
            "select --json"
        )
    return float(value)


def _needed(fields: Mapping[str, Any], key: str, name: str) -> float:
    value = _known(fields, key, name)
    if value is None:
        raise ArtefactError(f"{name}: {key} is missing: print it again with select --json")
    return value


# -------------------------------------------------------------------------------- list formats


def inferencex(points: Sequence[Point]) -> Export:
    """Write points as InferenceX's aggregate JSON has them; latencies are in seconds.

    Only joules that were measured are marked valid (``power_valid``).

    Raises
    ------
    UsageError
        If no point is left: data-parallel replicas, and joules of more than the deployment's GPUs,
        have no place there.
    """
    written, notes = [], []
    for point in points:
        c, w = point.case.configuration, point.case.workload
        if c.data_parallel > 1 or point.case.boundary is not Boundary.ACTIVE_GPUS:
            continue
        joules, total = point.energy_per_request_j, w.input_tokens + w.output_tokens
        fields: dict[str, Any] = {
            "hw": re.split(r"[-_ ]", point.case.gpu.id)[0].lower(),
            "framework": point.case.engine.name or "unknown",
            "framework_version": point.case.engine.version or None,
            "model": point.case.llm.id,
            "precision": {"nvfp4": "fp4"}.get(point.case.precision.id, point.case.precision.id),
            "tp": c.tensor_parallel,
            "pp": c.pipeline_parallel,
            "ep": c.expert_parallel,
            "dp_attention": False,
            "disagg": False,
            "conc": round(c.mean_batch_size or c.batch_size)
            if np.isfinite(c.mean_batch_size or c.batch_size)
            else None,
            "isl": w.input_tokens,
            "osl": w.output_tokens,
            "mean_ttft": point.ttft_s,
            "mean_tpot": point.tpot_s,
            "mean_e2el": point.request_latency_s,
            "mean_intvty": 1.0 / point.tpot_s if point.tpot_s else None,
            "power_metric_schema_version": POWER_SCHEMA,
            "power_valid": int(point.measured),
            "energy_source": point.source,
            "joules_per_successful_query": joules,
            "joules_per_input_token": joules / w.input_tokens,
            "joules_per_output_token": joules / w.output_tokens,
            "joules_per_total_token": joules / total,
        }
        if point.requests_per_s is not None:
            per_gpu = point.requests_per_s / c.gpus
            fields["tput_per_gpu"] = per_gpu * total
            fields["output_tput_per_gpu"] = per_gpu * w.output_tokens
            fields["input_tput_per_gpu"] = per_gpu * w.input_tokens
        if point.power_w is not None:
            fields["avg_total_gpu_power_w"] = point.power_w
            fields["avg_power_w"] = point.power_w / c.gpus
        written.append({key: value for key, value in fields.items() if value is not None})
    left = len(points) - len(written)
    if not written:
        raise UsageError(
            "none of these points can be written so: it has no field for data-parallel replicas, "
            "and its joules are those of the deployment's GPUs"
        )
    if left:
        notes.append(f"{left} points with data-parallel replicas or wider joules are left out.")
    if not all(point.measured for point in points):
        notes.append("Joules that nobody measured have power_valid 0: readers will not show them.")
    return Export(files={"": _json(written)}, notes=tuple(notes))


def otel(points: Sequence[Point], at_ns: int) -> Export:
    """Write joules an output token and watts as OTLP/JSON metrics.

    The counter ``gen_ai.infrastructure.energy`` is left to whoever counts joules as they flow.

    Parameters
    ----------
    at_ns : int
        Time stamp of all of them, in ns since 1970.
    """
    per_token, power = [], []
    for point in points:
        c = point.case.configuration
        attributes = {
            "gen_ai.request.model": point.case.llm.id,
            "gen_ai.provider.name": point.case.engine.name,
            "energylens.energy.source": point.source,
            "energylens.energy.boundary": str(point.case.boundary),
            "energylens.configuration": c.describe(),
            "energylens.gpu": point.case.gpu.id,
            "energylens.precision": point.case.precision.id,
        }
        common = {
            "timeUnixNano": str(at_ns),
            "attributes": [
                {"key": key, "value": {"stringValue": value}}
                for key, value in attributes.items()
                if value
            ],
        }
        joules = point.energy_per_request_j / point.case.workload.output_tokens
        per_token.append({**common, "asDouble": joules})
        if point.power_w is not None:
            power.append({**common, "asDouble": point.power_w})
    metrics = [
        {
            "name": f"gen_ai.infrastructure.{name}",
            "unit": unit,
            "description": description,
            "gauge": {"dataPoints": measured},
        }
        for name, unit, description, measured in (
            ("energy.per_token", "J", "Energy per generated output token", per_token),
            ("power", "W", "Accelerator power draw", power),
        )
        if measured
    ]
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "energylens"}}]}
    scope = {"name": "energylens", "version": __version__}
    document = {
        "resourceMetrics": [
            {"resource": resource, "scopeMetrics": [{"scope": scope, "metrics": metrics}]}
        ]
    }
    return Export(files={"": _json(document)}, notes=_without_power(points))


def wva(points: Sequence[Point], *, annotated: bool = False, variants: bool = False) -> Export:
    """Write the watts of a replica of each point as the cost of a variant.

    A ``VariantAutoscaling`` for each; with ``annotated`` the annotations of its autoscaler instead;
    with ``variants`` the fields ``variantID``, ``accelerator`` and ``acceleratorCount`` too, which
    the definition of some releases requires and that of others does not know.
    Points that differ in the number of replicas alone are one variant: the first of them, which a
    choice puts first, says its watts.

    Raises
    ------
    UsageError
        If the watts of no point are known.
    """
    parts = []
    named = set()
    for point in points:
        if point.power_w is None:
            continue
        c, llm = point.case.configuration, point.case.llm.id
        watts = point.power_w / c.data_parallel
        if not watts > 0 or len(llm) > LLM_NAME:
            raise UsageError(
                f"a variant needs watts above 0 and a model name of {LLM_NAME} letters at most; "
                f"{llm[:60]} has {watts:g} W"
            )
        cost = f"{watts:.1f}"
        name = _dns_name(
            f"{llm.rsplit('/', 1)[-1]}-{point.case.gpu.id}-tp{c.tensor_parallel}-"
            f"pp{c.pipeline_parallel}-b{c.batch_size / c.data_parallel:g}"
        )
        if name in named:
            continue
        named.add(name)
        version, kind = ("autoscaling/v2", "HorizontalPodAutoscaler")
        if not annotated:
            version, kind = ("llmd.ai/v1alpha1", "VariantAutoscaling")
        head = (
            f"apiVersion: {version}\n"
            f"kind: {kind}\n"
            "metadata:\n"
            f"  name: {name}\n"
            "  annotations:\n"
            f"    energylens/energy-source: {json.dumps(point.source)}\n"
            f"    energylens/configuration: {json.dumps(c.describe())}\n"
        )
        parts.append(
            head + '    llm-d.ai/managed: "true"\n'
            f"    llm-d.ai/model-id: {json.dumps(llm)}\n"
            f'    llm-d.ai/variant-cost: "{cost}"  # W of a replica\n'
            if annotated
            else head + "spec:\n"
            "  scaleTargetRef:\n"
            "    apiVersion: apps/v1\n"
            "    kind: Deployment\n"
            f"    name: {name}\n"
            f"  modelID: {json.dumps(llm)}\n"
            f'  variantCost: "{cost}"  # W of a replica\n' + (_variant(point) if variants else "")
        )
    if not parts:
        raise UsageError(
            "the watts of none of these are known: give rows with average_power_w, what select "
            "--rate --json prints, or a model with a time law"
        )
    notes = (
        "Each names an autoscaler that is there: set its name, and kubectl apply --server-side."
        if annotated
        else "scaleTargetRef names a Deployment of the same name as the variant: set yours. Where "
        "the cluster has no VariantAutoscaling: --to wva-annotations; where its definition asks "
        "for variantID and accelerator: --to wva-variants.",
        "All variants of one model must have watts for their cost: the solver adds them up.",
        *_without_power(points),
    )
    return Export(files={"": "---\n".join(parts).encode()}, notes=notes)


def _variant(point: Point) -> str:
    c, gpu = point.case.configuration, re.sub(r"[^A-Za-z0-9_-]", "-", point.case.gpu.id)
    count = c.gpus // c.data_parallel
    name = json.dumps(f"{point.case.llm.id}-{gpu}-{count}")
    return f"  variantID: {name}\n  accelerator: {json.dumps(gpu)}\n  acceleratorCount: {count}\n"


def _without_power(points: Iterable[Point]) -> tuple[str, ...]:
    without = sum(point.power_w is None for point in points)
    return (f"{without} points have no watts and are written without.",) if without else ()


def _dns_name(text: str) -> str:
    """Make a name of Kubernetes of it: RFC 1123, 63 letters at most."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:63].strip("-")


# --------------------------------------------------------------------------- formats of a model


def dynamo(model: EnergyModel, case: Case, longest_tokens: float) -> Export:
    """Write the profile that Dynamo's planner interpolates, from the time law.

    ``selected_prefill_interpolation/raw_data.npz`` has time to the first token (ms) and prompt
    tokens a second and GPU of prompts one at a time; ``selected_decode_interpolation/raw_data.npz``
    time between tokens (ms) and tokens a second and GPU over the share of the KV cache in use and
    the context, on a whole grid.

    Parameters
    ----------
    model : EnergyModel
        With a time law.
    case : Case
        One engine: no data-parallel replicas.
    longest_tokens : float
        Longest prompt and context of the profile.

    Raises
    ------
    UsageError
        If there is no time law, no KV cache, or no room for one sequence of that length.
    """
    time, cache = _one_engine(model, case)
    if not SHORTEST * 4 <= longest_tokens <= cache:
        raise UsageError(
            f"the longest context must lie between {SHORTEST * 4} tokens and the {cache:,.0f} that "
            f"the KV cache holds, not {longest_tokens:g} (--max-context)"
        )
    output = min(case.workload.output_tokens, longest_tokens / 4.0)

    def served(prompts: FloatArray) -> Cases:
        many = Cases.of([case] * len(prompts))
        return many.replace(
            input_tokens=prompts, output_tokens=output, batch_size=1.0, mean_batch_size=1.0
        )

    gpus = case.configuration.gpus
    isl = np.unique(np.rint(np.geomspace(SHORTEST, longest_tokens, ISLS)))
    ttft_s = full_batch(model, time, served(isl)).ttft_s
    # At least one sequence of the longest context runs, so that the grid is whole.
    usage = np.geomspace(longest_tokens / cache, 1.0, USAGES)
    shortest = output / 2.0 + 1.0
    context = np.unique(np.rint(np.geomspace(max(shortest, SHORTEST), longest_tokens, CONTEXTS)))
    x, y = (axis.ravel() for axis in np.meshgrid(usage, context, indexing="ij"))
    running = x * cache / y
    at_once = served(y - output / 2.0).replace(batch_size=running, mean_batch_size=running)
    itl_s = full_batch(model, time.without_factors(), at_once).step_s
    return Export(
        files={
            "selected_prefill_interpolation/raw_data.npz": _npz(
                prefill_isl=isl.astype(np.int64),
                prefill_ttft=1e3 * ttft_s,
                prefill_thpt_per_gpu=isl / ttft_s / gpus,
            ),
            "selected_decode_interpolation/raw_data.npz": _npz(
                max_kv_tokens=np.array([int(cache)]),
                x_kv_usage=x,
                y_context_length=y,
                z_itl=1e3 * itl_s,
                z_thpt_per_gpu=running / itl_s / gpus,
            ),
        },
        notes=(
            f"Predicted by the time law ({time.pooled.rows} rows), not profiled on a GPU.",
            *((model.caution,) if model.caution else ()),
        ),
    )


def semantic_router(model: EnergyModel, case: Case, gpu_hour: float) -> Export:
    """Write the constants of a ``ManualProfile``, from the time law and the joules.

    An engine stands for one "GPU" of the simulator: its step takes ``W + H n`` seconds with n
    sequences, fitted to the time law at the lengths of the case; its watts are a logistic in
    log2 n, fitted to joules over seconds of a step. ``chunk`` is such that a prompt takes the
    time that the time law says.

    Parameters
    ----------
    model : EnergyModel
        With a time law.
    case : Case
        One engine; its batch size limits the slots.
    gpu_hour : float
        Price of an hour of one GPU.

    Raises
    ------
    UsageError
        If there is no time law, no KV cache, or no room for one sequence.
    """
    from scipy.optimize import least_squares, nnls

    time, cache = _one_engine(model, case)
    w, gpus = case.workload, case.configuration.gpus
    whole = w.input_tokens + w.output_tokens
    slots = int(min(case.configuration.batch_size, cache // whole))
    if slots < 1:
        raise UsageError(
            f"the KV cache holds {cache:,.0f} tokens, not one sequence of {whole:g}: give shorter "
            "lengths or more GPUs"
        )
    batches = np.unique(np.rint(np.geomspace(1, max(slots, 2), 24)))
    cases = Cases.of([case] * len(batches))
    lengths = Lengths(
        input_tokens=w.input_tokens, output_tokens=w.output_tokens, input_cv=0.0, output_cv=0.0
    )
    joules, own = JouleSteps.of(model, cases, lengths), time.steps(cases)
    steps = Paced.of(cases, own, joules, np.ones(len(batches)))
    step_s = steps.step_s(batches)
    columns = np.column_stack([np.ones_like(batches), batches]) / step_s[:, None]
    (base, slope), _ = nnls(columns, np.ones_like(batches))
    straight = base + slope * batches
    watts = joules.step_j(batches) / step_s
    place = np.log2(batches)

    def curve(p: FloatArray) -> FloatArray:
        drawn: FloatArray = p[0] + p[1] / (1.0 + np.exp(-p[2] * (place - p[3])))
        return drawn

    top = float(watts.max())

    def off(p: FloatArray) -> FloatArray:
        return curve(p) / watts - 1.0

    found = least_squares(
        off,
        [max(0.8 * float(watts.min()), 1e-3), 0.5 * top, 1.0, float(place.mean())],
        bounds=([1e-6 * top, 1e-6 * top, 1e-3, -20.0], [2.0 * top, 20.0 * top, 10.0, 40.0]),
    ).x
    passes = own.times.prompt_passes
    prompt_s = float((steps.prompts_s(w.input_tokens / passes, batches) * passes)[-1])
    profile = {
        "name": f"{case.llm.id} {case.precision.id} on {gpus} x {case.gpu.id}, {PREDICTED}",
        "W": float(base),
        "H": float(slope),
        "chunk": max(round(w.input_tokens * float(straight[-1]) / prompt_s), 1),
        "blk_size": BLOCK_TOKENS,
        "total_kv_blks": int(cache // BLOCK_TOKENS),
        "max_slots": slots,
        "cost_per_hr": gpu_hour * gpus,
        "calibration_ctx": round(whole),
        "power_idle_w": float(found[0]),
        "power_nominal_w": float(found[0] + found[1]),
        "power_logistic_k": float(found[2]),
        "power_logistic_x0": float(found[3]),
    }
    off_s = float(np.abs(straight / step_s - 1.0).max())
    off_w = float(np.abs(curve(found) / watts - 1.0).max())
    notes = [
        f"W and H stand for the {gpus} GPUs of one engine, as one GPU of the simulator; predicted "
        f"by the time law, whose steps they meet within {percent(off_s, 0)}. Watts are those "
        "of decode steps."
    ]
    if off_w > WATTS_OFF:
        notes.append(f"The logistic of watts is off the law by up to {percent(off_w, 0)}.")
    return Export(
        files={"": _json(profile)},
        notes=(*notes, *((model.caution,) if model.caution else ())),
    )


def _one_engine(model: EnergyModel, case: Case) -> tuple[TimeModel, float]:
    """The time law, and tokens that the KV cache of one engine holds."""
    if model.time is None:
        raise UsageError(
            "such a profile is made of times, and this model has no time law: fit it to rows that "
            "have request_latency_s, tpot_s or ttft_s"
        )
    if case.configuration.data_parallel > 1:
        raise UsageError("such a profile is of one engine: leave --data-parallel out")
    one = replace(case, configuration=replace(case.configuration, batch_size=1.0))
    room = capacity.memory(one)
    if not room.runs:
        raise UsageError(f"nothing runs there: {room.reason}")
    tokens = room.cache_tokens
    if not np.isfinite(tokens) or tokens <= 0:
        raise UsageError(f"{case.llm.id} keeps no KV cache, over which such a profile is laid")
    return model.time, float(tokens)


# --------------------------------------------------------------------------------------- bytes


def _json(document: Any) -> bytes:
    text = json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False)
    return f"{text}\n".encode()


def _npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()
