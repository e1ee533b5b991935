"""Which cases to measure: all combinations, or a sample spread over them, within a budget.

A plan is a file that a person can read and edit: JSON Lines, a header and then one case a
line, in the order in which they are measured. What it holds is decided here, before anything
is started; ``measurement`` only does what it says.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from energylens import capacity, catalog
from energylens.cases import FloatArray
from energylens.catalog.hf_read import llm_from_path
from energylens.errors import InputError, UsageError
from energylens.instrument.engine import EngineError, Media, Phase
from energylens.instrument.engines import ENGINES
from energylens.instrument.engines.options import Options
from energylens.instrument.plan import WINDOW_ARRIVALS, Mode, Plan, PlannedCase, Procedure
from energylens.records import Boundary, Case, Configuration, Llm, Modality, Workload

VERSION = 1

#: Cases among which a spread sample is looked for; of a larger grid, so many drawn at random.
LARGEST_POOL = 20_000
#: What is assumed of engines and GPUs where only minutes depend on it.
START_S = {"vllm": 90.0, "openai": 90.0, "transformers": 30.0, "simulated": 0.1}
LOADED_BYTES_PER_S = 2e9
ACHIEVED_FLOP_RATIO, ACHIEVED_BANDWIDTH_RATIO = 0.4, 0.5
STEP_OVERHEAD_S = 1e-4  # per layer: kernels of a step that has nothing to do

#: Cuts an LLM down to so many layers (``engines.llm_folders.scaled_down``).
Scale = Callable[[Llm, int], Llm]


def _no_scale(llm: Llm, layers: int) -> Llm:
    raise UsageError(f"{llm.id} cannot be scaled to {layers} layers here.")


# ------------------------------------------------------------------------------------- the space


@dataclass(frozen=True, kw_only=True)
class Space:
    """Every combination of these is a case, as far as it is feasible.

    ``llms`` are names of the catalog, folders with a ``config.json``, or such files. Without
    ``precisions`` each is served in the format that its name or its checkpoint states. With rates
    of requests the largest batch size is the limit that engines get, and each rate a case.
    """

    llms: tuple[str, ...]
    gpus: tuple[str, ...]
    engine: str
    precisions: tuple[str, ...] = ()
    tensor_parallel: tuple[int, ...] = (1,)
    pipeline_parallel: tuple[int, ...] = (1,)
    expert_parallel: tuple[int, ...] = (1,)
    data_parallel: tuple[int, ...] = (1,)
    batch_sizes: tuple[int, ...] = (1, 8, 64)
    input_tokens: tuple[int, ...] = (128, 1024)
    output_tokens: tuple[int, ...] = (128,)
    media: tuple[Media, ...] = (Media(),)
    mode: Mode = Mode.PHASES
    clocks_mhz: tuple[float | None, ...] = (None,)  # that the core is locked to; None: not locked
    request_rates_per_s: tuple[float, ...] = ()  # each a steady load of arrivals by chance
    boundary: Boundary = Boundary.ACTIVE_GPUS
    node_gpus: int | None = None
    weights: str = "dummy"
    scaled_layers: int | None = None
    step_tokens: int | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A plan, and what was left out of it."""

    plan: Plan
    feasible: int  # cases before the budget was applied
    skipped: Mapping[str, int]  # infeasible cases by reason
    minutes: float  # estimate for one GPU set, engine starts included


def find_llm(name: str) -> tuple[Llm, str | None]:
    """Find an LLM by catalog name, folder or ``config.json``.

    Returns
    -------
    tuple of Llm and (str or None)
        The record, and the path it was read from.

    Raises
    ------
    UnknownNameError
        If no catalog has the name, and it is no path either.
    InputError
        If the configuration cannot be read.
    """
    path = Path(name)
    if path.is_dir() or (path.name.endswith(".json") and path.is_file()):
        named = path.parent if path.name == "config.json" else path
        return llm_from_path(path, named.resolve().name.removesuffix(".json")), str(path)
    return catalog.llm(name), None


def llms_beyond_catalog(plan: Plan) -> list[Llm]:
    """LLMs of a plan that no catalog holds: add them, or the rows cannot be read later."""
    known = catalog.llms()
    found = {case.case.llm.id: case.case.llm for case in plan.cases}
    return [llm for name, llm in found.items() if name not in known]


def _found(name: str, layers: int | None, scale: Scale) -> tuple[Llm, str | None]:
    llm, path = find_llm(name)
    return _cut(llm, layers, scale), path


def _cut(llm: Llm, layers: int | None, scale: Scale) -> Llm:
    """Cut an LLM down to so many layers, if it has more."""
    if layers is None or layers == llm.layers:
        return llm
    if layers > llm.layers:
        raise UsageError(
            f"an LLM can be cut down to fewer layers only: {llm.id} has {llm.layers}, not {layers}."
        )
    return scale(llm, layers)


def _combinations(space: Space, scale: Scale) -> Iterator[PlannedCase]:
    llms = [_found(name, space.scaled_layers, scale) for name in space.llms]
    gpus = [catalog.gpu(name) for name in space.gpus]
    lengths = list(itertools.product(space.media, space.input_tokens, space.output_tokens))
    for (llm, path), asked in zip(llms, space.llms, strict=True):
        named = llm.native_precision if path else catalog.checkpoint_precision(asked).id
        precisions = [catalog.precision(name) for name in space.precisions or (named,)]
        loads = [
            (media, _workload(llm, media, prompt, output)) for media, prompt, output in lengths
        ]
        layouts: Iterator[Any] = itertools.product(
            gpus,
            precisions,
            space.tensor_parallel,
            space.pipeline_parallel,
            space.expert_parallel,
            space.data_parallel,
        )
        for gpu, precision, tp, pp, ep, dp in layouts:
            configurations = [
                Configuration(
                    tensor_parallel=tp,
                    pipeline_parallel=pp,
                    expert_parallel=ep,
                    data_parallel=dp,
                    batch_size=batch,
                    clock_mhz=clock,
                )
                for batch in (
                    (max(space.batch_sizes),) if space.request_rates_per_s else space.batch_sizes
                )
                for clock in space.clocks_mhz
            ]
            for (media, workload), configuration, rate in itertools.product(
                loads, configurations, space.request_rates_per_s or (None,)
            ):
                yield PlannedCase(
                    case=Case(
                        llm=llm,
                        gpu=gpu,
                        precision=precision,
                        workload=workload,
                        configuration=configuration,
                        boundary=space.boundary,
                        node_gpus=space.node_gpus,
                    ),
                    engine=space.engine,
                    mode=space.mode if rate is None else Mode.STEADY,
                    request_rate_per_s=rate,
                    media=media,
                    weights=space.weights,
                    model_path=path,
                    scaled_layers=space.scaled_layers,
                    step_tokens=space.step_tokens,
                    options=space.options,
                    seed=space.seed,
                )


def _workload(
    llm: Llm, media: Media, input_tokens: int, output_tokens: int, task: str = ""
) -> Workload:
    """Make a workload; vision tokens are expected ones, the row will have those counted."""
    vision = llm.vision
    expected = 0.0
    if vision is not None:
        for number, pixels, each in (
            (media.images, media.image_pixels, vision.tokens_per_image),
            (media.frames, media.frame_pixels, vision.tokens_per_frame),
        ):
            if number and pixels:
                patches = pixels[0] * pixels[1] / vision.patch_pixels**2
                expected += number * (each or patches / vision.patches_per_token)
    return Workload(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        vision_tokens=min(expected, input_tokens),
        images=media.images,
        frames=media.frames,
        modality=media.modality,
        task=task,
    )


def problem(planned: PlannedCase, gpus: int | None = None) -> str | None:
    """Say why a case cannot be measured, as far as that is known beforehand; None if it can.

    Parameters
    ----------
    gpus : int, optional
        GPUs that there are.
    """
    case, c = planned.case, planned.case.configuration
    if gpus is not None and planned.gpus > gpus:
        there = "one GPU there is" if gpus == 1 else f"{gpus} GPUs there are"
        return f"needs more than the {there}"
    if planned.media.modality is not Modality.TEXT and case.llm.vision is None:
        return "the LLM has no vision tower"
    if case.precision.scope == "experts" and case.llm.experts is None:
        return f"{case.precision.id} is a format of experts, and the LLM has none"
    if c.batch_size < c.data_parallel:
        return "the batch is smaller than the number of replicas"
    layout = capacity.layout_problem(case.llm, case.precision, **c.degrees)
    if layout is not None:
        return f"the LLM cannot be laid out so: {layout}"
    if (refused := capacity.format_problem(case.gpu, case.precision)) is not None:
        return refused
    memory = memory_of(planned)
    # A batch that starts together has to be in memory at once; a server lets the rest wait.
    if planned.mode is Mode.PHASES and not memory.fits:
        waits = " at once (--mode steady lets the rest wait)" if memory.runs else ""
        return f"does not fit in memory{waits}"
    return None if memory.runs else "does not fit in memory"


def memory_of(planned: PlannedCase) -> capacity.Memory:
    """Account for the memory of a case, with what its engine is told of it.

    Raises
    ------
    InputError
        If an option is no share of the memory.
    """
    case, options = planned.case, planned.options
    if (bits := capacity.KV_BITS.get(options.get("kv_cache_dtype", "auto"))) is not None:
        case = replace(case, precision=replace(case.precision, kv_bits=bits))
    if (share := options.get("gpu_memory_utilization")) is not None:
        try:
            case = replace(case, gpu=replace(case.gpu, memory_share_ratio=float(share)))
        except ValueError:
            raise InputError(
                f"gpu_memory_utilization must be a share above 0, up to 1, not {share!r}"
            ) from None
    return capacity.memory(case)


# -------------------------------------------------------------------------------------- planning


def plan(
    space: Space,
    *,
    design: str = "grid",
    budget_cases: int | None = None,
    budget_minutes: float | None = None,
    gpus: int | None = None,
    repeats: int = 1,
    order: str = "shuffled",
    seed: int = 0,
    procedure: Procedure | None = None,
    scale: Scale = _no_scale,
) -> Draft:
    """Choose cases and their order.

    Parameters
    ----------
    space : Space
        What may be chosen from.
    design : {"grid", "spread"}
        All feasible cases, or a sample in which each is as far as can be from those before it
        (greedy maximin over the logarithms of all knobs).
    budget_cases, budget_minutes : int, float, optional
        Most cases, and most minutes, engine starts included. A grid that exceeds them is an
        error; a spread sample ends there.
    gpus : int, optional
        GPUs that there are; what needs more is infeasible.
    repeats : int
        How often each case is measured.
    order : {"shuffled", "interleaved", "given"}
        Within a layout: at random; round by round, every case once before any is repeated, each
        round at random; or as the combinations come. Layouts follow each other whole, in
        random order unless ``given``.
    seed : int
        Fixes sample and order.
    procedure : Procedure, optional
        How cases are measured; the estimate of minutes depends on it.
    scale : callable
        Cuts an LLM down, for ``space.scaled_layers``.

    Raises
    ------
    UsageError
        If nothing is feasible, a grid exceeds its budget, or the engine has no such option.
    """
    _require(design in ("grid", "spread"), f"design must be grid or spread, not {design!r}")
    _require(
        order in ("shuffled", "interleaved", "given"),
        f"order must be shuffled, interleaved or given, not {order!r}",
    )
    _require(repeats >= 1, f"repeats must be 1 or more, not {repeats}")
    for name, budget in (("cases", budget_cases), ("minutes", budget_minutes)):
        _require(budget is None or budget > 0, f"a budget of {name} must be above 0, not {budget}")
    check_options(space.engine, space.options)
    procedure = procedure or Procedure()
    skipped: Counter[str] = Counter()
    feasible = []
    for planned in _combinations(space, scale):
        reason = problem(planned, gpus)
        if reason is None:
            feasible.append(planned)
        else:
            skipped[reason] += 1
    if not feasible:
        reasons = "; ".join(f"{reason} ({number})" for reason, number in skipped.items())
        raise UsageError(f"no case of this space can be measured: {reasons or 'it is empty'}.")
    random = np.random.default_rng(seed)
    chosen = feasible
    if design == "spread":
        chosen = _spread(feasible, procedure, budget_cases, budget_minutes, repeats, random)
    else:
        _check_grid(feasible, procedure, budget_cases, budget_minutes, repeats)
    cases = _ordered(chosen, repeats, order, random)
    made = Plan(cases=tuple(cases), procedure=procedure, seed=seed)
    return Draft(plan=made, feasible=len(feasible), skipped=dict(skipped), minutes=minutes(made))


def check_options(engine: str, given: Mapping[str, str]) -> None:
    """Refuse options that one of our engines does not have, before it is started.

    Raises
    ------
    UsageError
        If it has no option of a name.
    """
    if "@" in given.get("url", ""):
        raise UsageError(
            "the address of a server must hold no name and password, which a plan would show to "
            "everybody: give the key in an environment variable (api_key_env=NAME)."
        )
    if given.get("url"):
        try:
            _ = urlsplit(given["url"]).port
        except ValueError as error:
            raise UsageError(
                f"url must be an address as http://host:8000, not {given['url'][:80]!r}: {error}"
            ) from None
    if engine not in ENGINES:
        return
    known = import_module(f"energylens.instrument.engines.{engine}").OPTIONS
    try:
        Options(engine, given, known)
    except EngineError as error:
        raise UsageError(str(error)) from None


def _require(condition: bool, must: str) -> None:
    if not condition:
        raise UsageError(must)


def _check_grid(
    cases: Sequence[PlannedCase],
    procedure: Procedure,
    budget_cases: int | None,
    budget_minutes: float | None,
    repeats: int,
) -> None:
    if budget_cases is None and budget_minutes is None:
        return
    runs = len(cases) * repeats
    needed = repeats * _seconds_together(cases, procedure) / 60
    over = budget_cases is not None and runs > budget_cases
    if over or (budget_minutes is not None and needed > budget_minutes):
        raise UsageError(
            f"the grid has {runs} runs of about {needed:.0f} minutes, more than the budget: "
            "take --design spread, a larger budget, or fewer values."
        )


def _coordinates(cases: Sequence[PlannedCase]) -> FloatArray:
    """Cases as points: each numeric knob by its logarithm within 0 and 1, each name an axis."""
    numbers = np.array(
        [
            (
                c.case.configuration.tensor_parallel,
                c.case.configuration.pipeline_parallel,
                c.case.configuration.expert_parallel,
                c.case.configuration.data_parallel,
                c.case.configuration.batch_size,
                c.case.workload.input_tokens,
                c.case.workload.output_tokens,
                1 + c.media.images,
                1 + c.media.frames,
                c.case.configuration.clock_mhz or c.case.gpu.max_clock_mhz or 1.0,
            )
            for c in cases
        ],
        dtype=np.float64,
    )
    logs = np.log2(numbers)
    spans = np.ptp(logs, axis=0)
    points = [(logs[:, spans > 0] - logs.min(axis=0)[spans > 0]) / spans[spans > 0]]
    for names in (
        [c.case.llm.id for c in cases],
        [c.case.gpu.id for c in cases],
        [c.case.precision.id for c in cases],
    ):
        distinct, index = np.unique(names, return_inverse=True)
        if len(distinct) > 1:
            # Two names are as far apart as the ends of a knob.
            points.append(np.eye(len(distinct))[index] / math.sqrt(2))
    return np.hstack(points)


def _spread(
    cases: Sequence[PlannedCase],
    procedure: Procedure,
    budget_cases: int | None,
    budget_minutes: float | None,
    repeats: int,
    random: np.random.Generator,
) -> list[PlannedCase]:
    if budget_cases is None and budget_minutes is None:
        raise UsageError("a spread sample needs a budget, in cases or in minutes.")
    pool = list(cases)
    if len(pool) > LARGEST_POOL:
        pool = [pool[i] for i in random.choice(len(pool), LARGEST_POOL, replace=False)]
    points = _coordinates(pool)
    seconds = repeats * np.array([case_seconds(case, procedure) for case in pool])
    starts = {case.layout_key: start_seconds(case) for case in pool}
    most = math.inf if budget_cases is None else budget_cases // repeats
    left_s = math.inf if budget_minutes is None else budget_minutes * 60
    distance = np.full(len(pool), np.inf)
    at = int(random.integers(len(pool)))
    chosen: list[PlannedCase] = []
    started: set[str] = set()
    while distance[at] > 0 and len(chosen) < most:
        case = pool[at]
        cost = seconds[at] + (0.0 if case.layout_key in started else starts[case.layout_key])
        if cost <= left_s:
            left_s -= cost
            started.add(case.layout_key)
            chosen.append(case)
            distance = np.minimum(distance, np.linalg.norm(points - points[at], axis=1))
        distance[at] = 0.0  # chosen, or too long for what is left
        at = int(np.argmax(distance))
    if not chosen:
        raise UsageError(
            f"not one case fits into the budget: the shortest takes about "
            f"{seconds.min() / 60:.1f} minutes and its engine start."
        )
    return chosen


def _ordered(
    cases: Sequence[PlannedCase], repeats: int, order: str, random: np.random.Generator
) -> list[PlannedCase]:
    groups = Plan(cases=tuple(cases)).groups()
    if order != "given":
        groups = [groups[i] for i in random.permutation(len(groups))]
    ordered: list[PlannedCase] = []
    for group in groups:
        rounds = [
            [replace(c, repeat=number) if number else c for c in group] for number in range(repeats)
        ]
        if order == "shuffled":
            every = [case for one in rounds for case in one]
            rounds = [every]
        for one in rounds:
            places = range(len(one)) if order == "given" else random.permutation(len(one))
            ordered += [one[i] for i in places]
    return ordered


# ---------------------------------------------------------------------------------- how long


def start_seconds(planned: PlannedCase) -> float:
    """Estimate the seconds of an engine start."""
    weights = capacity.memory(planned.case).weights_bytes
    return START_S.get(planned.engine, 60.0) + weights / LOADED_BYTES_PER_S


def phase_seconds(planned: PlannedCase) -> tuple[float, float]:
    """Estimate the seconds of prefill and of decode of one batch, by a roofline.

    Good enough to plan an afternoon; nothing else rests on it.
    """
    case, llm, w = planned.case, planned.case.llm, planned.case.workload
    gpus, batch = case.configuration.gpus, case.configuration.batch_size
    flop_per_s = ACHIEVED_FLOP_RATIO * case.gpu.flop_per_s(case.precision.compute_bits) * gpus
    bytes_per_s = ACHIEVED_BANDWIDTH_RATIO * case.gpu.memory_bandwidth_bytes_per_s * gpus
    weight_bytes = capacity.memory(case).weights_bytes * gpus
    overhead = STEP_OVERHEAD_S * llm.layers
    token_flop = 2 * llm.computing_parameters
    prompt_flop = token_flop * w.input_tokens
    cached_bytes = 0.0  # per token of context
    if llm.attention is not None:
        a = llm.attention
        prompt_flop += 2 * a.layers * a.heads * a.head_size * w.input_tokens**2
        cached_bytes = a.layers * a.kv_elements_per_token_layer * case.precision.kv_bits / 8
    passes = max(batch * w.input_tokens / capacity.TOKENS_PER_PASS, 1.0)
    prefill = max(batch * prompt_flop / flop_per_s, passes * weight_bytes / bytes_per_s)
    steps = max(w.output_tokens - 1, 0)
    read_bytes = weight_bytes + batch * cached_bytes * (w.input_tokens + steps / 2)
    step = max(read_bytes / bytes_per_s, batch * token_flop / flop_per_s) + overhead
    return prefill + passes * overhead, steps * step


def case_seconds(planned: PlannedCase, procedure: Procedure, period_s: float = 0.1) -> float:
    """Estimate the seconds of one case, with a counter that moves every ``period_s``."""
    prefill, decode = phase_seconds(planned)
    window = max(procedure.min_window_s, procedure.min_periods * period_s)
    windows = procedure.min_windows
    if planned.mode is Mode.STEADY:
        arrivals = WINDOW_ARRIVALS / (planned.request_rate_per_s or math.inf)
        length = max(window, procedure.steady_window_s, arrivals)
        return procedure.cooldown_s + (1 + windows) * length
    lengths = {Phase.PREFILL: prefill}
    if planned.case.workload.output_tokens > 1:
        lengths[Phase.REQUEST] = prefill + decode
    total = procedure.cooldown_s
    for length in lengths.values():
        halves = 2 * max(length, window / 2)
        total += min(halves + windows * max(length, window), procedure.phase_limit_s + 2 * length)
    return total


def _seconds_together(cases: Sequence[PlannedCase], procedure: Procedure) -> float:
    groups = Plan(cases=tuple(cases)).groups()
    starts = sum(start_seconds(group[0]) + procedure.idle_s for group in groups)
    return starts + sum(case_seconds(case, procedure) for case in cases)


def minutes(made: Plan) -> float:
    """Estimate the minutes of a whole plan, one case after the other."""
    return _seconds_together(made.cases, made.procedure) / 60


@dataclass(frozen=True, kw_only=True)
class Preview:
    """One case of a dry run."""

    case: PlannedCase
    gpus: int
    memory_bytes: float  # on its fullest GPU
    available_bytes: float
    seconds: float
    problem: str | None


def preview(made: Plan, gpus: int | None = None) -> list[Preview]:
    """Say of each case what it needs, whether it fits, and how long it takes."""
    rows = []
    for planned in made.cases:
        memory = memory_of(planned)
        rows.append(
            Preview(
                case=planned,
                gpus=planned.gpus,
                memory_bytes=memory.total_bytes,
                available_bytes=memory.available_bytes,
                seconds=case_seconds(planned, made.procedure),
                problem=problem(planned, gpus) and (memory.reason or problem(planned, gpus)),
            )
        )
    return rows
