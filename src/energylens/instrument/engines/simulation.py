"""A serving engine simulated in time. Nothing that comes out of it is a measurement.

It stands in for a GPU node where there is none: tests, tutorials, dry runs, the packaged demo.
Prompts are prefilled in passes of a token budget, sequences are decoded step by step from a
paged cache, stages of a pipeline wait for each other, a host schedules between the steps, and
``simulated_gpu`` says how long each GPU takes and what it draws. None of
this knows the energy law, so that a fit to simulated rows is a fair rehearsal; it is no
evidence of accuracy, and every row made from it says ``simulated``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from energylens import capacity
from energylens.cases import FloatArray
from energylens.instrument.engine import EngineError, Reason
from energylens.instrument.engines.simulated_gpu import INLET_C, Board, Passes, Shard, steady_hash
from energylens.records import Boundary, Case

#: Grows with every change that alters a joule; the ``engine_version`` of simulated rows.
VERSION = "1"

STEP_TOKENS = 8192  # token budget of one scheduler step
PAGE_TOKENS = 16  # reads of the cache round up to whole blocks
DECODE_SAMPLES = 48  # context lengths at which a long decode is integrated
STAGE_HOP_S = 12e-6  # from one stage of a pipeline to the next
HOST_STEP_S = 0.7e-3  # scheduling one step, and 8 % more for every further GPU of a stage,
HOST_SEQUENCE_S = 18e-6  # and each sequence in it;
HOST_EXPOSED_SHARE = 0.4  # of it never runs beside the GPU
PICTURE_HOST_S = 2.5e-3  # preprocessing of an image or frame that no GPU work hides

# What repeats of one run differ by (standard deviations): a draw that all runs of one engine
# start share, and one that each run has for itself.
START_SPREAD, INLET_SPREAD_K = 0.005, 1.5
TIME_SPREAD, METER_SPREAD = 0.004, 0.007


@dataclass(frozen=True, kw_only=True)
class SimulatedRun:
    """One batch served from first prompt to last token; joules over the case's boundary.

    Attributes
    ----------
    requests, output_tokens : int
        Requests in the batch, and tokens generated for each.
    prefill_s, decode_s : float
        Seconds from the start to the last first token, and from there to the end.
    prefill_energy_j, decode_energy_j : float
        Joules of the whole batch in these two parts; 0 decode if there is one token only.
    prefill_passes, decode_steps : int
        Forward passes of a replica in each part.
    ttft_s : float
        Mean seconds to a request's first token.
    """

    requests: int
    output_tokens: int
    prefill_s: float
    decode_s: float
    prefill_energy_j: float
    decode_energy_j: float
    prefill_passes: int
    decode_steps: int
    ttft_s: float

    @property
    def duration_s(self) -> float:
        """Seconds of the whole run."""
        return self.prefill_s + self.decode_s

    @property
    def mean_batch_size(self) -> float:
        """Sequences in flight: all of them, from start to end."""
        return float(self.requests)

    @property
    def energy_per_request_j(self) -> float:
        """Joules of a request."""
        return (self.prefill_energy_j + self.decode_energy_j) / self.requests

    @property
    def prefill_energy_per_request_j(self) -> float:
        """Joules of a request up to its first token."""
        return self.prefill_energy_j / self.requests

    @property
    def decode_energy_per_request_j(self) -> float | None:
        """Joules of a request after its first token; None if there is no second one."""
        return self.decode_energy_j / self.requests if self.decode_steps else None

    @property
    def tpot_s(self) -> float | None:
        """Mean seconds between two tokens of a request; None if there is no second one."""
        return self.decode_s / self.decode_steps if self.decode_steps else None

    @property
    def request_latency_s(self) -> float:
        """Seconds from the start to the last token, which all requests get together."""
        return self.duration_s

    @property
    def average_power_w(self) -> float:
        """Watts of all GPUs of the boundary over the whole run."""
        return (self.prefill_energy_j + self.decode_energy_j) / self.duration_s


@dataclass(frozen=True, kw_only=True, eq=False)
class SimulatedSteadyState:
    """Continuous batching with requests always waiting, step by step after a warm-up.

    Arrays have one value for each scheduler step, shape (n,), summed over all replicas; joules
    are over the case's boundary. Steps mix prefill and decode, so their joules are not apart.
    """

    step_s: FloatArray
    step_energy_j: FloatArray
    running: FloatArray  # sequences in flight
    input_tokens: FloatArray  # tokens prefilled, again after a preemption too
    output_tokens: FloatArray  # tokens generated
    preemptions: int
    tokens_per_request: int
    ttft_s: float  # mean from admission to the first token

    @property
    def requests(self) -> float:
        """Requests' worth of output in the window."""
        return float(self.output_tokens.sum()) / self.tokens_per_request

    @property
    def duration_s(self) -> float:
        """Seconds of the window."""
        return float(self.step_s.sum())

    @property
    def mean_batch_size(self) -> float:
        """Sequences in flight, averaged over time."""
        return float(np.average(self.running, weights=self.step_s))

    @property
    def energy_per_request_j(self) -> float:
        """Joules of the window over its requests."""
        return float(self.step_energy_j.sum()) / self.requests

    @property
    def tpot_s(self) -> float:
        """Mean seconds between two tokens of a request: those in flight over the token rate."""
        return self.mean_batch_size * self.duration_s / float(self.output_tokens.sum())

    @property
    def request_latency_s(self) -> float:
        """Mean seconds from admission to the last token."""
        return self.ttft_s + self.tpot_s * (self.tokens_per_request - 1)

    @property
    def average_power_w(self) -> float:
        """Watts of all GPUs of the boundary."""
        return float(self.step_energy_j.sum()) / self.duration_s


def simulate(case: Case, seed: int) -> SimulatedRun:
    """Serve one batch of equal requests: all prompts first, then all outputs.

    Parameters
    ----------
    case : Case
        What is served, and how. Lengths and batch size are rounded to whole numbers.
    seed : int
        Fixes the scatter between repeats: the same case and seed give the same run.

    Raises
    ------
    EngineError
        ``UNSUPPORTED`` if the LLM cannot be laid out so, ``DOES_NOT_FIT`` if the whole batch
        is not in memory at once.
    """
    server = _Server.of(case, seed, queue=False)
    prefill, finished_s, answered = server.prefill()
    decode = server.steps(server.decode_passes())
    draws = server.chance.randn(4)
    longer, metered = 1 + TIME_SPREAD * draws[:2], 1 + METER_SPREAD * draws[2:]
    return SimulatedRun(
        requests=server.requests,
        output_tokens=server.output,
        prefill_s=float(prefill.wall_s.sum() * longer[0]),
        decode_s=float(decode.wall_s.sum() * longer[1]),
        prefill_energy_j=float(server.energy_j(prefill).sum() * longer[0] * metered[0]),
        decode_energy_j=float(server.energy_j(decode).sum() * longer[1] * metered[1]),
        prefill_passes=len(answered),
        decode_steps=server.output - 1,
        ttft_s=float(np.average(finished_s, weights=answered) * longer[0]),
    )


def simulate_steady_state(case: Case, seed: int, steps: int | None = None) -> SimulatedSteadyState:
    """Keep the batch full by continuous batching, and watch it for a while.

    Requests are admitted while the cache has room; when it runs full, the one admitted last
    loses its cache and is prefilled again later.

    Parameters
    ----------
    case, seed
        As in :func:`simulate`.
    steps : int, optional
        Scheduler steps of the window; by default one output length, within 200 and 1000.

    Raises
    ------
    EngineError
        ``UNSUPPORTED`` if the LLM cannot be laid out so, ``DOES_NOT_FIT`` if there is no room
        for a single request.
    """
    server = _Server.of(case, seed, queue=True)
    if steps is None:
        steps = int(np.clip(server.output, 200, 1000))
    passes, log = server.schedule(steps)
    outcome = server.steps(passes)
    longer = 1 + TIME_SPREAD * server.chance.randn()
    metered = 1 + METER_SPREAD * server.chance.randn()
    wall_s, replicas = outcome.wall_s * longer, server.replicas
    return SimulatedSteadyState(
        step_s=wall_s,
        step_energy_j=server.energy_j(outcome) * longer * metered,
        running=log.running * replicas,
        input_tokens=log.prefilled * replicas,
        output_tokens=passes.answered * replicas,
        preemptions=int(log.preempted.sum()) * replicas,
        tokens_per_request=server.output,
        ttft_s=float((wall_s * log.unanswered).sum() / max(log.first_tokens.sum(), 1.0)),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Outcome:
    """Seconds, and joules of one replica's GPUs, repeats counted; shape (n,)."""

    wall_s: FloatArray
    energy_j: FloatArray


@dataclass(frozen=True, kw_only=True, eq=False)
class _Log:
    """What the scheduler of one replica did in each step; shape (n,)."""

    running: FloatArray
    prefilled: FloatArray
    first_tokens: FloatArray
    unanswered: FloatArray  # sequences admitted that have no token yet
    preempted: FloatArray


@dataclass(frozen=True, kw_only=True, eq=False)
class _Server:
    """One replica of the case, started."""

    case: Case
    board: Board
    shard: Shard
    chance: np.random.RandomState
    requests: int  # over all replicas
    replicas: int  # those with requests
    batch: int  # requests of one replica
    prompt: int
    output: int

    @classmethod
    def of(cls, case: Case, seed: int, *, queue: bool) -> _Server:
        """Start it; with ``queue`` requests may wait for room in the cache."""
        c, w, llm = case.configuration, case.workload, case.llm
        layout = c.degrees
        name = f"{llm.id} in {case.precision.id} as {c.describe()} on {case.gpu.id}"
        if problem := capacity.layout_problem(llm, case.precision, **layout):
            message = f"{name} cannot be laid out: {problem}. Choose other degrees of parallelism."
            raise EngineError(message, reason=Reason.UNSUPPORTED, usable=True)
        memory = capacity.memory(case)
        if not (memory.fits or (queue and memory.runs)):
            message = f"{name} does not fit: {memory.reason}. Take more GPUs or serve less at once."
            raise EngineError(message, reason=Reason.DOES_NOT_FIT, usable=True)
        start = (seed, llm.id, case.gpu.id, case.precision.id, *layout.values())
        # RandomState: its streams are frozen, which those of newer generators are not, and the
        # packaged data set must come out the same under any numpy.
        warmer_k, slower = np.random.RandomState(steady_hash("start", *start)).randn(2)
        requests = max(round(c.batch_size), 1)
        batch = math.ceil(requests / c.data_parallel)
        replicas = math.ceil(requests / batch)
        board = Board(gpu=case.gpu, inlet_c=INLET_C + INLET_SPREAD_K * float(warmer_k))
        numbers = (w.input_tokens, w.output_tokens, w.vision_tokens, w.images, w.frames)
        even, more = divmod(llm.layers, c.pipeline_parallel)
        stages = [even + (stage < more) for stage in range(c.pipeline_parallel)]
        return cls(
            case=case,
            board=board,
            shard=Shard(
                case=case,
                board=board,
                replicas=replicas,
                stage_layers=np.array(stages, dtype=np.float64),
                slower=1.0 + START_SPREAD * float(slower),
                clock_ratio=min(c.clock_mhz / case.gpu.max_clock_mhz, 1.0)
                if c.clock_mhz and case.gpu.max_clock_mhz
                else 1.0,
            ),
            chance=np.random.RandomState(
                steady_hash(
                    "run", *start, requests, *map(float, numbers), case.boundary.value, queue
                )
            ),
            requests=requests,
            replicas=replicas,
            batch=batch,
            prompt=max(round(w.input_tokens), 1),
            output=max(round(w.output_tokens), 1),
        )

    # --------------------------------------------------------------------- what a request is

    @property
    def _window(self) -> float:
        attention = self.case.llm.attention
        return float(attention.window_tokens or math.inf) if attention else math.inf

    @property
    def _pictures(self) -> float:
        """Images and frames of one request."""
        w = self.case.workload
        if self.case.llm.vision is None or not w.vision_tokens:
            return 0.0
        return float(w.images + w.frames) or 1.0

    @property
    def _patches(self) -> float:
        """Patches of all of them."""
        vision = self.case.llm.vision
        return self.case.workload.vision_tokens * vision.patches_per_token if vision else 0.0

    def _vision(self, requests: FloatArray) -> dict[str, FloatArray]:
        """Work of the vision tower for the requests that begin in each pass."""
        return {"pictures": requests * self._pictures, "patches": requests * self._patches}

    def _pairs(self, position: FloatArray, window: float) -> FloatArray:
        """Query-key pairs of a prompt's first tokens, each of which sees at most a window."""
        inside = np.minimum(position, window)
        return np.asarray(inside * (inside + 1) / 2 + (position - inside) * inside)

    # ----------------------------------------------------------------------- time and joules

    def _host_s(
        self,
        busy_s: FloatArray,
        sequences: FloatArray,
        pictures: FloatArray | float,
        microbatches: int = 1,
    ) -> FloatArray:
        """Seconds of host work that no GPU work hides."""
        each = HOST_STEP_S * (1 + 0.08 * (self.case.configuration.tensor_parallel - 1))
        work = each * microbatches + HOST_SEQUENCE_S * sequences
        exposed = np.maximum(HOST_EXPOSED_SHARE * work, work - busy_s)
        return np.asarray(exposed + PICTURE_HOST_S * pictures)

    def _outcome(self, wall_s: FloatArray, busy_s: FloatArray, busy_j: FloatArray) -> _Outcome:
        """Add what GPUs draw while they wait; busy sums are over one GPU of each stage."""
        stages = len(self.shard.stage_layers)
        waiting_j = (stages * wall_s - busy_s) * self.board.waiting_w
        gpus = self.case.configuration.tensor_parallel
        return _Outcome(wall_s=wall_s, energy_j=gpus * (busy_j + waiting_j))

    def energy_j(self, outcome: _Outcome) -> FloatArray:
        """Joules of all replicas and of the GPUs within the boundary that stand idle."""
        c, case = self.case.configuration, self.case
        idle = (c.data_parallel - self.replicas) * c.tensor_parallel * c.pipeline_parallel
        if case.boundary is Boundary.NODE and case.node_gpus is not None:
            idle += max(case.node_gpus - c.gpus, 0)
        idle_j = idle * self.board.idle_w * outcome.wall_s
        return np.asarray(outcome.energy_j * self.replicas + idle_j)

    def prefill(self) -> tuple[_Outcome, FloatArray, FloatArray]:
        """Prefill all prompts, one after the other, in passes of the token budget.

        Returns
        -------
        outcome : _Outcome
            Of shape (1,).
        finished_s, answered : ndarray of float, shape (n,)
            When each pass ends, and how many requests it gives their first token.
        """
        total = self.batch * self.prompt
        edges = np.append(np.arange(0.0, total, STEP_TOKENS), total)
        whole, part = np.divmod(edges, self.prompt)
        prompt = np.array(float(self.prompt))
        pairs, pairs_window = (
            np.diff(whole * self._pairs(prompt, window) + self._pairs(part, window))
            for window in (math.inf, self._window)
        )
        passes = Passes(
            repeats=np.ones(len(edges) - 1),
            tokens=np.diff(edges),
            answered=np.diff(whole),
            eager=1.0,
            pairs=pairs,
            pairs_window=pairs_window,
            **self._vision(np.diff(np.ceil(edges / self.prompt))),
        )
        seconds, joules = self.shard.run(passes)
        host_s = self._host_s(seconds.sum(axis=0), passes.answered, passes.pictures)
        finished = np.cumsum(seconds[0] + host_s)
        # A pass enters a stage when it has left the one before and the stage is free.
        for stage_s in seconds[1:]:
            done = np.cumsum(stage_s)
            entered = np.maximum.accumulate(finished + STAGE_HOP_S - (done - stage_s))
            finished = entered + done
        outcome = self._outcome(finished[-1:], seconds.sum(), joules.sum())
        return outcome, finished, passes.answered

    def decode_passes(self) -> Passes:
        """All steps after the first token, integrated over some of the context lengths."""
        steps = self.output - 1
        edges = np.linspace(0, steps, min(steps, DECODE_SAMPLES) + 1)
        context = self.prompt + 1 + (edges[:-1] + edges[1:]) / 2
        paged = np.ceil(context / PAGE_TOKENS) * PAGE_TOKENS
        all_of_them = np.full(len(context), float(self.batch))
        return Passes(
            repeats=np.diff(edges),
            tokens=all_of_them,
            answered=all_of_them,
            decoding=all_of_them,
            cached=self.batch * paged,
            cached_window=self.batch * np.minimum(paged, self._window),
        )

    def steps(self, p: Passes) -> _Outcome:
        """Steps in which every sequence goes through all stages once.

        Sequences are divided into as many microbatches as there are stages. A step takes as
        long as one microbatch through all stages, or as all of them through the slowest stage.
        """
        if not len(p.tokens):
            return _Outcome(wall_s=np.zeros(0), energy_j=np.zeros(0))
        stages = len(self.shard.stage_layers)
        parts = int(np.clip(p.tokens.min(), 1, stages))
        seconds, joules = self.shard.run(p.divided(parts))
        hop_s = STAGE_HOP_S * (stages > 1)
        period_s = np.maximum(
            seconds.sum(axis=0) + stages * hop_s, parts * (seconds.max(axis=0) + hop_s)
        )
        wall_s = period_s + self._host_s(period_s, p.answered, p.pictures, parts)
        busy_s, busy_j = parts * seconds.sum(axis=0), parts * joules.sum(axis=0)
        return self._outcome(wall_s * p.repeats, busy_s * p.repeats, busy_j * p.repeats)

    # -------------------------------------------------------------------------- the scheduler

    def schedule(self, steps: int) -> tuple[Passes, _Log]:
        """Continuous batching with requests always waiting, from sequences of mixed ages on."""
        slots, prompt, output = self.batch, self.prompt, self.output
        memory, warm_up = capacity.memory(self.case), min(output, 256)
        # Memory is counted in sequences that have all their tokens.
        room = max(memory.largest_batch / self.case.configuration.data_parallel, 1.0)
        fixed = memory.state_bytes / (memory.state_bytes + memory.kv_cache_bytes)
        generated = np.floor(self.chance.permutation(slots) * output / slots)
        context = prompt + generated  # tokens in the cache
        left = np.zeros(slots)  # tokens still to prefill
        running = np.ones(slots, dtype=np.bool_)
        turn = np.arange(slots)  # order of admission
        rows: list[tuple[float, ...]] = []

        def paged(tokens: FloatArray) -> FloatArray:
            return np.asarray(np.ceil(tokens / PAGE_TOKENS) * PAGE_TOKENS)

        for _ in range(warm_up + steps):
            needs = fixed + (1 - fixed) * paged(context + left + 1) / (prompt + output)
            preempted = 0
            while running.sum() > 1 and needs[running].sum() > room:
                newest = np.flatnonzero(running)[np.argmax(turn[running])]
                running[newest], left[newest], context[newest] = False, context[newest], 0.0
                preempted += 1
            used = needs[running].sum()
            queue = np.flatnonzero(~running)
            for slot in queue[np.argsort(turn[queue])]:
                # One percent is kept for the tokens to come.
                if preempted or (running.any() and used + needs[slot] > 0.99 * room):
                    break
                running[slot], used = True, used + needs[slot]
                turn[slot] = turn.max() + 1
            decoding = running & (left == 0)
            order = np.argsort(turn)
            wanted = np.where(running, left, 0.0)[order]
            budget = max(STEP_TOKENS - float(decoding.sum()), 0.0)
            taken = np.empty(slots)
            taken[order] = np.clip(budget - (np.cumsum(wanted) - wanted), 0.0, wanted)
            before, context, left = context, context + taken, left - taken
            prefilling, fresh = taken > 0, generated == 0
            answered = decoding | (prefilling & (left == 0))
            reads = paged(before)[decoding]
            rows.append(
                (
                    taken.sum(),
                    answered.sum(),
                    decoding.sum(),
                    reads.sum(),
                    np.minimum(reads, self._window).sum(),
                    *(
                        (self._pairs(context, w) - self._pairs(before, w))[prefilling].sum()
                        for w in (math.inf, self._window)
                    ),
                    (prefilling & fresh & (before == 0)).sum(),
                    running.sum(),
                    (answered & fresh).sum(),
                    (running & fresh).sum(),
                    preempted,
                )
            )
            generated = generated + answered
            context = context + decoding
            done = answered & (generated >= output)
            generated[done] = context[done] = 0.0
            left[done] = prompt
            turn[done] = turn.max() + 1 + np.arange(done.sum())
        table = np.array(rows[warm_up:], dtype=np.float64).T
        prefilled, answered_n, decoding_n, cached, cached_window, pairs, pairs_window, begun = (
            table[:8]
        )
        passes = Passes(
            repeats=np.ones(steps),
            tokens=np.maximum(prefilled + decoding_n, 1.0),
            answered=answered_n,
            eager=(prefilled > 0).astype(np.float64),
            decoding=decoding_n,
            cached=cached,
            cached_window=cached_window,
            pairs=pairs,
            pairs_window=pairs_window,
            **self._vision(begun),
        )
        running_n, first_tokens, unanswered, preempted_n = table[8:]
        log = _Log(
            running=running_n,
            prefilled=prefilled,
            first_tokens=first_tokens,
            unanswered=unanswered,
            preempted=preempted_n,
        )
        return passes, log
