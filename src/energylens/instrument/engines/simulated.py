"""A serving engine that only computes: for tests, tutorials and dry runs.

Times and joules come from ``simulation``, which knows nothing of the
energy law. The engine keeps its own clock, which runs as fast as the machine can compute, and
its own meter. Every row made with it says ``simulated``.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from energylens import catalog
from energylens.errors import InputError
from energylens.instrument.engine import (
    Batch,
    Capabilities,
    EngineError,
    Layout,
    Load,
    Media,
    Phase,
    Progress,
    Reason,
    Repetition,
    RequestTiming,
)
from energylens.instrument.engines.folders import layout_llm
from energylens.instrument.engines.load import StepTable, _lookup
from energylens.instrument.engines.options import Options
from energylens.instrument.engines.simulated_gpu import Board
from energylens.instrument.engines.simulation import (
    METER_SPREAD,
    STEP_TOKENS,
    TIME_SPREAD,
    VERSION,
    SimulatedRun,
    SimulatedSteadyState,
    simulate,
    simulate_steady_state,
)
from energylens.instrument.engines.synthetic import (
    media_grids,
    poisson_arrivals,
    random_stream,
    text_tokens_beside,
)
from energylens.instrument.meter import (
    Channel,
    ChannelKind,
    DeviceState,
    Meter,
    MeterError,
    Reading,
)
from energylens.records import Case, Configuration, Modality, Source, Workload

OPTIONS = ("gpu",)
NODE_GPUS = 8
DEFAULT_GPU = "H100-SXM-80GB"
IDLE_PROGRESS_S = 0.1


class SimulatedMeter:
    """Counters of a node of eight GPUs, and the clock of the simulation.

    The first GPUs are those of the deployment; the others draw their idle power.
    """

    name = "simulated"
    source = Source.SIMULATED
    real_time = False  # only work and waiting move its clock
    period_s = 0.0  # it is continuous: nobody could look while simulated work goes on

    def __init__(self) -> None:
        self._now_s = 0.0
        self._idle_w = 0.0
        self.clock_mhz: float | None = None
        self._energy_j = (0.0,) * NODE_GPUS
        self.channels = tuple(
            Channel(id=f"gpu{i}", kind=ChannelKind.GPU, index=i) for i in range(NODE_GPUS)
        )

    def draw(self, idle_w: float) -> None:
        """Let every GPU draw so much from now on when it does nothing."""
        self._idle_w = idle_w

    def advance(self, seconds: float, energy_j: float, gpus: int) -> None:
        """Let time go by while the first ``gpus`` GPUs take ``energy_j`` joules together."""
        idle_j = self._idle_w * seconds
        self._now_s += seconds
        self._energy_j = tuple(
            before + (energy_j / gpus if i < gpus else idle_j)
            for i, before in enumerate(self._energy_j)
        )

    def read(self) -> Reading:
        """Read all counters."""
        return Reading(time_s=self._now_s, energy_j=self._energy_j)

    def states(self) -> tuple[DeviceState, ...]:
        """Nothing: a simulated GPU has no clocks to read."""
        return ()

    def provenance(self) -> Mapping[str, str]:
        """Say what it is."""
        return {"meter_note": "simulated joules; no evidence of accuracy"}

    def lock_clocks(self, places: Sequence[int], mhz: float | None) -> None:  # noqa: ARG002
        """Lock the core clock of the deployment's GPUs, or not (None)."""
        self.clock_mhz = mhz

    def now_s(self) -> float:
        """Return the simulation's time."""
        return self._now_s

    def wait(self, seconds: float) -> None:
        """Let time go by with every GPU idle.

        Raises
        ------
        MeterError
            If the time is negative.
        """
        if seconds < 0:
            raise MeterError(f"cannot wait {seconds} s")
        self.advance(seconds, self._idle_w * seconds * NODE_GPUS, NODE_GPUS)

    def close(self) -> None:
        """Do nothing."""


class SimulatedEngine:
    """Serves batches and loads in simulated time.

    Options (``Layout.options``)
    ----------------------------
    gpu
        GPU type where the plan names none (default H100-SXM-80GB).
    """

    name = "simulated"

    def __init__(self) -> None:
        self._meter = SimulatedMeter()
        self._base: Case | None = None
        self._seed, self._slots = 0, 1
        self._runs: dict[tuple[Batch, float | None], SimulatedRun] = {}

    @property
    def capabilities(self) -> Capabilities:
        """Every phase but the vision tower alone; steady loads; all modalities."""
        return Capabilities(
            phases=frozenset({Phase.PREFILL, Phase.DECODE, Phase.REQUEST}),
            splits_requests=True,
            steady=True,
            modalities=frozenset(Modality),
            source=Source.SIMULATED,
        )

    def start(self, layout: Layout) -> Mapping[str, str]:
        """Set the node up.

        Raises
        ------
        EngineError
            UNSUPPORTED for an unknown GPU, or for more GPUs than the node has.
        """
        options = Options(self.name, layout.options, OPTIONS)
        if layout.gpus > NODE_GPUS:
            raise EngineError(
                f"the simulated node has {NODE_GPUS} GPUs, and the layout needs {layout.gpus}: "
                "choose smaller degrees of parallelism",
                reason=Reason.UNSUPPORTED,
            )
        try:
            gpu = layout.gpu or catalog.gpu(options.text("gpu", DEFAULT_GPU))
        except InputError as error:
            raise EngineError(str(error), reason=Reason.UNSUPPORTED) from None
        # One batch of the layout's full size tells at once whether anything fits at all.
        self._base = Case(
            llm=layout_llm(layout),
            gpu=gpu,
            precision=layout.precision,
            workload=Workload(input_tokens=1, output_tokens=1),
            configuration=Configuration(
                tensor_parallel=layout.tensor_parallel,
                pipeline_parallel=layout.pipeline_parallel,
                expert_parallel=layout.expert_parallel,
                data_parallel=layout.data_parallel,
                batch_size=1,
            ),
        )
        self._seed, self._slots = layout.seed, layout.max_sequences
        self._runs.clear()
        simulate(self._base, self._seed)
        self._meter.draw(Board(gpu=gpu).idle_w)
        return {"engine_version": VERSION, "weights": "none (simulated)", "gpu": gpu.id}

    def own_meter(self) -> Meter | None:
        """Return the meter of the simulated node."""
        return self._meter

    def close(self) -> None:
        """Forget the layout."""
        self._base = None
        self._runs.clear()

    # ------------------------------------------------------------------------------ the work

    def _vision_tokens(self, media: Media) -> int:
        vision = self._started().llm.vision
        if media.modality is Modality.TEXT:
            return 0
        if vision is None:
            raise EngineError(
                "this LLM has no vision tower: images and videos need a vision-language LLM",
                reason=Reason.UNSUPPORTED,
                usable=True,
            )
        tower = {
            "patch_size": vision.patch_pixels,
            "spatial_merge_size": max(1, round(math.sqrt(vision.patches_per_token))),
            "temporal_patch_size": 2,
        }
        return sum(grid.tokens for grid in media_grids(tower, media))

    def _started(self) -> Case:
        if self._base is None:
            raise EngineError("the engine is not started", reason=Reason.CRASHED)
        return self._base

    def _case(self, work: Batch | Load, requests: float) -> Case:
        base, vision_tokens = self._started(), self._vision_tokens(work.media)
        text_tokens_beside(work, vision_tokens)
        return replace(
            base,
            workload=Workload(
                input_tokens=work.input_tokens,
                output_tokens=work.output_tokens,
                vision_tokens=vision_tokens,
                images=work.media.images,
                frames=work.media.frames,
                modality=work.media.modality,
            ),
            configuration=replace(
                base.configuration, batch_size=requests, clock_mhz=self._meter.clock_mhz
            ),
        )

    def prepare(self, batch: Batch, phases: Sequence[Phase]) -> None:
        """Simulate the batch once.

        Raises
        ------
        EngineError
            DOES_NOT_FIT, UNSUPPORTED.
        """
        del phases
        self._run(batch)

    def _run(self, batch: Batch) -> SimulatedRun:
        key = batch, self._meter.clock_mhz
        if key not in self._runs:
            self._runs[key] = simulate(self._case(batch, batch.requests), self._seed)
        return self._runs[key]

    def run_phase(
        self,
        phase: Phase,
        batch: Batch,
        repetition: int,
        at_decode: Callable[[], None] | None = None,
    ) -> Repetition:
        """Let the time and the joules of a phase go by.

        Raises
        ------
        EngineError
            UNSUPPORTED for the vision tower alone.
        """
        if phase not in self.capabilities.phases:
            raise EngineError(
                f"the simulated engine has no {phase.value} phase",
                reason=Reason.UNSUPPORTED,
                usable=True,
            )
        run = self._run(batch)
        random = random_stream(batch.seed, repetition)
        slower = 1 + TIME_SPREAD * random.standard_normal()
        metered = slower * (1 + METER_SPREAD * random.standard_normal())
        gpus = self._started().configuration.gpus
        began = self._meter.now_s()
        if phase is not Phase.DECODE:
            self._meter.advance(run.prefill_s * slower, run.prefill_energy_j * metered, gpus)
        boundary = self._meter.now_s()
        decodes = phase is not Phase.PREFILL and run.decode_steps > 0
        if phase is Phase.REQUEST and decodes and at_decode is not None:
            at_decode()
        if decodes:
            self._meter.advance(run.decode_s * slower, run.decode_energy_j * metered, gpus)
        ended = self._meter.now_s()
        whole = phase is Phase.REQUEST
        generated = {Phase.PREFILL: 1, Phase.DECODE: batch.output_tokens - 1}.get(
            phase, batch.output_tokens
        )
        prefills = phase is not Phase.DECODE
        timing = RequestTiming(
            ttft_s=run.ttft_s * slower, latency_s=ended - began, output_tokens=generated
        )
        return Repetition(
            requests=batch.requests,
            input_tokens=batch.requests * batch.input_tokens * prefills,
            output_tokens=batch.requests * generated,
            vision_tokens=batch.requests * self._vision_tokens(batch.media) * prefills,
            steps=run.prefill_passes * prefills + run.decode_steps * decodes,
            prefill_s=boundary - began if whole and decodes else None,
            decode_s=ended - boundary if whole and decodes else None,
            timings=(timing,) * batch.requests if prefills else (),
        )

    def steady(self, load: Load) -> Iterator[Progress]:
        """Serve a load step by step, over and over the same simulated stretch.

        Yields
        ------
        Progress
            After every step.

        Raises
        ------
        EngineError
            DOES_NOT_FIT; UNSUPPORTED if an open loop meets a pipeline, or brings more than can
            be served.
        """
        if load.request_rate_per_s is not None:
            yield from self._arrivals(load, load.request_rate_per_s)
            return
        state = self._steady_state(load)
        gpus = self._started().configuration.gpus
        vision_tokens = self._vision_tokens(load.media)
        timing = RequestTiming(
            ttft_s=state.ttft_s,
            latency_s=state.request_latency_s,
            output_tokens=load.output_tokens,
        )
        steps = completed = 0
        prefilled = generated = 0.0
        while True:
            for seconds, joules, running, tokens_in, tokens_out in zip(
                state.step_s,
                state.step_energy_j,
                state.running,
                state.input_tokens,
                state.output_tokens,
                strict=True,
            ):
                self._meter.advance(float(seconds), float(joules), gpus)
                steps += 1
                prefilled, generated = prefilled + tokens_in, generated + tokens_out
                ended = int(generated) // load.output_tokens - completed
                completed += ended
                yield Progress(
                    completed_requests=completed,
                    input_tokens=int(prefilled),
                    output_tokens=int(generated),
                    running_requests=int(running),
                    vision_tokens_per_request=vision_tokens,
                    steps=steps,
                    finished=(timing,) * ended,
                )

    def _arrivals(self, load: Load, rate_per_s: float) -> Iterator[Progress]:
        """Serve requests that arrive by chance, step by step, as `engines.load` does.

        One replica gets its share of them; all replicas draw as it does.
        """
        started = self._started().configuration
        if started.pipeline_parallel > 1:
            raise EngineError(
                "the simulated engine has no pipeline under arrivals: choose pipeline_parallel 1",
                reason=Reason.UNSUPPORTED,
                usable=True,
            )
        replicas = started.data_parallel
        slots = max(1, self._slots // replicas)
        case = self._case(load, slots * replicas)
        full = simulate_steady_state(case, self._seed)
        if rate_per_s * full.request_latency_s > slots * replicas:  # Little's law
            raise EngineError(
                f"{rate_per_s:g} requests/s are more than the simulated deployment can serve: "
                "lower the rate",
                reason=Reason.UNSUPPORTED,
                usable=True,
            )
        one = replace(case, configuration=replace(case.configuration, data_parallel=1))
        one = replace(one, configuration=replace(one.configuration, batch_size=slots))
        table = StepTable.of(one, load.input_tokens + load.output_tokens, self._seed)
        look = _lookup(table)
        random = random_stream(load.seed, 0)
        vision_tokens = self._vision_tokens(load.media)
        now, steps, completed, prefilled, generated = 0.0, 0, 0, 0, 0
        coming = poisson_arrivals(random, rate_per_s / replicas)
        waiting: deque[float] = deque()
        running: list[_Request] = []
        while True:
            while coming <= now:
                waiting.append(coming)
                coming += poisson_arrivals(random, rate_per_s / replicas)
            while waiting and len(running) < slots:
                running.append(_Request(arrived_s=waiting.popleft(), left=load.input_tokens))
            if running:
                decoding = [r for r in running if not r.left]
                budget = STEP_TOKENS - len(decoding)
                prompt = 0
                for request in running:
                    chunk = min(request.left, max(0, budget - prompt))
                    request.left -= chunk
                    prompt += chunk
                    request.fresh = chunk > 0 and not request.left
                held = sum(load.input_tokens + len(r.times_s) for r in decoding)
                context = held / len(decoding) if decoding else 0.0
                seconds, joules = look(float(len(decoding)), context, float(prompt))
            else:
                decoding, prompt, seconds = [], 0, min(coming - now, IDLE_PROGRESS_S)
                joules = table.idle_w * seconds
            now += seconds
            steps += bool(running)
            self._meter.advance(seconds, joules * replicas, started.gpus)
            finished: list[RequestTiming] = []
            for request in [*decoding, *(r for r in running if r.fresh)]:
                if request.fresh:
                    prefilled += load.input_tokens
                    request.fresh = False
                request.times_s.append(now - request.arrived_s)
                generated += 1
                if len(request.times_s) == load.output_tokens:
                    finished.append(request.timing())
            if finished:
                running = [r for r in running if len(r.times_s) < load.output_tokens]
                completed += len(finished)
            yield Progress(
                completed_requests=completed * replicas,
                input_tokens=prefilled * replicas,
                output_tokens=generated * replicas,
                running_requests=len(running) * replicas,
                vision_tokens_per_request=vision_tokens,
                steps=steps,
                finished=tuple(finished),
            )

    def _steady_state(self, load: Load) -> SimulatedSteadyState:
        return simulate_steady_state(self._case(load, load.concurrency or 1), self._seed)


@dataclass(kw_only=True)
class _Request:
    """One request of an open loop: when it came, what is left of its prompt, its tokens."""

    arrived_s: float
    left: int
    fresh: bool = False
    times_s: list[float] = field(default_factory=list)

    def timing(self) -> RequestTiming:
        return RequestTiming(
            ttft_s=self.times_s[0],
            latency_s=self.times_s[-1],
            output_tokens=len(self.times_s),
            token_times_s=tuple(self.times_s),
        )
