"""What the campaign measures: LLM shapes, batches and lengths, most wanted first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from energylens import catalog
from energylens.catalog.scaling import rank_shard, scaled_down
from energylens.errors import UsageError
from energylens.instrument import planning
from energylens.instrument.engine import Media
from energylens.instrument.plan import Mode, Plan, PlannedCase, Procedure
from energylens.instrument.planning import Space, case_seconds
from energylens.records import Case, Configuration, Llm, Workload

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
INPUTS = (128, 512, 2048, 8192)
INPUTS_WITH_MEDIA = (2048, 4096, 8192)
OUTPUTS = (32, 128, 512, 1024)

IMAGE = Media(images=1, image_pixels=(672, 672))
IMAGES = Media(images=4, image_pixels=(448, 448))
FRAMES = Media(frames=16, frame_pixels=(336, 336))

# Short on purpose: minutes on a GPU are few. Ten updates of a counter that moves every 0.1 s
# make a window of one second; three of them, and no fourth if they agree.
PROCEDURE = Procedure(
    min_periods=10.0,
    min_window_s=1.0,
    min_windows=3,
    max_windows=4,
    max_warmup_halves=4,
    idle_s=3.0,
    cooldown_s=0.3,
    phase_limit_s=25.0,
    whole=False,
    steady_window_s=5.0,
    reference_every=12,
    case_limit_s=420.0,
)
REHEARSAL = replace(
    PROCEDURE,
    min_periods=0.0,
    min_window_s=0.05,
    min_windows=2,
    max_windows=2,
    max_warmup_halves=2,
    idle_s=0.1,
    cooldown_s=0.0,
    reference_every=0,
)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One LLM in one precision: ``cases`` spread over batches and lengths."""

    llm: str
    precision: str
    cases: int
    media: tuple[Media, ...] = (Media(),)
    steady: int = 0
    shard: tuple[int, int] | None = None


PARTS = (
    Part(llm="meta-llama/Llama-3.1-8B", precision="bf16", cases=18, steady=4),
    Part(llm="Qwen/Qwen3-30B-A3B", precision="bf16", cases=14, steady=2),
    Part(llm="Qwen/Qwen3-1.7B", precision="bf16", cases=14, steady=2),
    Part(llm="meta-llama/Llama-3.1-8B", precision="fp8", cases=14),
    Part(llm="nvidia/NVIDIA-Nemotron-Nano-9B-v2", precision="bf16", cases=14),
    Part(
        llm="Qwen/Qwen2.5-VL-7B-Instruct",
        precision="bf16",
        cases=16,
        media=(IMAGE, IMAGES, FRAMES),
    ),
    Part(llm="Qwen/Qwen3-14B", precision="bf16", cases=12, steady=2),
    Part(llm="Qwen/Qwen3-0.6B", precision="bf16", cases=10),
    Part(llm="Qwen/Qwen3-32B", precision="fp8", cases=12),
    Part(llm="Qwen/Qwen3-4B", precision="bf16", cases=12),
    Part(llm="Qwen/Qwen2.5-32B", precision="bf16", cases=8),
    Part(llm="meta-llama/Llama-3.1-8B", precision="int4", cases=10),
    Part(llm="state-spaces/mamba2-2.7b", precision="bf16", cases=10),
    Part(llm="Qwen/Qwen3-VL-30B-A3B-Instruct", precision="fp8", cases=8, media=(IMAGE, FRAMES)),
)

SHARDS = tuple(
    Part(llm=llm, precision="bf16", cases=6, shard=degrees)
    for llm, layouts in (
        ("meta-llama/Llama-3.1-8B", ((2, 1), (4, 1), (1, 2), (2, 2))),
        ("meta-llama/Llama-3.1-70B", ((4, 1), (8, 1), (4, 2), (2, 4))),
        ("Qwen/Qwen3-32B", ((2, 1), (4, 1), (1, 2))),
        ("Qwen/Qwen3-30B-A3B", ((2, 1), (4, 1))),
    )
    for degrees in layouts
)

SHARD_NUMBERS = (  # batch, input and output tokens
    *((1, 512, 128), (8, 512, 128), (32, 512, 128)),
    *((128, 512, 64), (16, 2048, 128), (4, 8192, 64)),
)

# What only an engine with its own kernels and scheduler can do.
VLLM_ONLY = ("fp8", "int4")


def campaign(
    engine: str,
    gpu: str,
    *,
    options: Mapping[str, str],
    shards: bool = False,
    rehearsal: bool = False,
    longest_case_s: float = 40.0,
) -> Plan:
    """Return the plan for an engine on a GPU type, the most wanted layouts first.

    Parameters
    ----------
    engine, gpu : str
        ``vllm`` or ``transformers``; a GPU of the catalog.
    options : mapping of str to str
        For the engine.
    shards : bool
        One GPU's part of larger layouts in place of whole LLMs.
    rehearsal : bool
        The same path in minutes without a GPU: small LLMs of two layers in place of the real
        ones.
    longest_case_s : float
        Cases that would take longer are left out.
    """
    procedure = REHEARSAL if rehearsal else PROCEDURE
    cases: list[PlannedCase] = []
    for part in SHARDS if shards else PARTS:
        if engine != "vllm" and _needs_vllm(part):
            continue
        if rehearsal:
            cases += _rehearsal(part, engine, gpu, options)
        elif part.shard is not None:
            cases += _shard_cases(part, part.shard, engine, gpu, options)
        else:
            cases += _cases(part, engine, gpu, options, procedure, longest_case_s)
    once = {case.key: case for case in cases}  # rehearsals of several parts are the same
    return Plan(cases=tuple(once.values()), procedure=procedure)


def _needs_vllm(part: Part) -> bool:
    # Without their kernels, transformers runs state-space layers in slow reference code.
    return part.precision in VLLM_ONLY or catalog.llm(part.llm).state_space is not None


def _cases(
    part: Part,
    engine: str,
    gpu: str,
    options: Mapping[str, str],
    procedure: Procedure,
    longest_case_s: float,
) -> Iterator[PlannedCase]:
    space = Space(
        llms=(part.llm,),
        gpus=(gpu,),
        engine=engine,
        precisions=(part.precision,),
        batch_sizes=BATCHES,
        input_tokens=INPUTS if part.media == (Media(),) else INPUTS_WITH_MEDIA,
        output_tokens=OUTPUTS,
        media=part.media,
        options=options,
    )
    # The fewer LLMs an engine can run, the more cases each of them gets.
    phases = part.cases if engine == "vllm" else round(1.5 * part.cases)
    for mode, wanted in ((Mode.PHASES, phases), (Mode.STEADY, part.steady)):
        if not wanted or (mode is Mode.STEADY and engine != "vllm"):
            continue
        made = _feasible(replace(space, mode=mode), procedure, longest_case_s)
        yield from made[:wanted]


def _feasible(space: Space, procedure: Procedure, longest_case_s: float) -> list[PlannedCase]:
    """Return cases that fit and do not take too long, each as far as can be from those before."""
    try:
        draft = planning.plan(space, design="spread", budget_cases=60, procedure=procedure)
    except UsageError:
        return []  # nothing of it fits on this GPU
    return [case for case in draft.plan.cases if case_seconds(case, procedure) <= longest_case_s]


def _planned(
    llm: Llm, engine: str, gpu: str, options: Mapping[str, str], numbers: tuple[int, int, int]
) -> PlannedCase:
    batch, prompt, output = numbers
    return PlannedCase(
        case=Case(
            llm=llm,
            gpu=catalog.gpu(gpu),
            precision=catalog.precision("bf16"),
            workload=Workload(input_tokens=prompt, output_tokens=output),
            configuration=Configuration(batch_size=batch),
        ),
        engine=engine,
        options=options,
    )


def _as_shard(planned: PlannedCase, shard: tuple[int, int]) -> PlannedCase:
    """Say that what one GPU does is its part of a larger layout."""
    layout = replace(
        planned.case.configuration, tensor_parallel=shard[0], pipeline_parallel=shard[1]
    )
    return replace(planned, case=replace(planned.case, configuration=layout), shard=shard)


def _shard_cases(
    part: Part, shard: tuple[int, int], engine: str, gpu: str, options: Mapping[str, str]
) -> Iterator[PlannedCase]:
    whole = catalog.llm(part.llm)
    alone = rank_shard(whole, *shard)
    for numbers in SHARD_NUMBERS:
        if planning.problem(_planned(alone, engine, gpu, options, numbers)) is None:
            yield _as_shard(_planned(whole, engine, gpu, options, numbers), shard)


def _rehearsal(
    part: Part, engine: str, gpu: str, options: Mapping[str, str]
) -> Iterator[PlannedCase]:
    """Two small cases of a small LLM cut to two layers, in the same guise as the real ones."""
    pictures = any(media.images or media.frames for media in part.media)
    name = "Qwen/Qwen3-VL-2B-Instruct" if pictures else "Qwen/Qwen3-0.6B"
    llm = scaled_down(catalog.llm(name), 2)
    for batch in (1, 2):
        planned = _planned(llm, engine, gpu, options, (batch, 48, 4))
        planned = replace(planned, scaled_layers=2)
        if pictures:
            planned = replace(planned, media=Media(images=1, image_pixels=(64, 64)))
        yield planned if part.shard is None else _as_shard(planned, (part.shard[0], 1))
