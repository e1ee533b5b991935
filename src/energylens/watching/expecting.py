"""Joules that the law expects of what an engine did in a window, and of the load that it met.

Two questions, two answers. *Of what it did*: prompts, steps and idle time as counted, each at the
joules that the law gives it; this is what is measured against. *Of the load*: the steady state of
the present configuration and of the best one at the rate and lengths of the window; this is what
could be saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from energylens import latency
from energylens.cases import Cases, FloatArray
from energylens.deciding import MEET, decide
from energylens.decisions import LatencyLimit, Load
from energylens.errors import InfeasibleError
from energylens.model import EnergyModel
from energylens.records import Case, Gpu, Workload
from energylens.scenarios import Scenario
from energylens.service import JouleSteps, Lengths, idle_of
from energylens.solving import Engine
from energylens.watching.work import work_of_tokens

LEAST_LOOKS = 8  # at the requests in flight, for the spread of batches to be known
STEPS = 32  # that stand for all of a window
#: Beyond it engine and law do not count the same work: the engine's numbers are then left alone.
LARGEST_WORK_RATIO = 3.0
MOSTLY_DECODE, MOSTLY_BUSY = 0.9, 0.8
COMPUTE = ("prefill_compute", "decode_compute")
MEMORY = ("decode_weights", "narrow_weights", "weight_only_weights", "decode_cache")


@dataclass(frozen=True, kw_only=True)
class Done:
    """What a deployment did in some seconds, over all its replicas.

    Attributes
    ----------
    seconds : float
    requests : float
        That ended.
    prompts, prompt_tokens : float
        Prompts that were begun and their tokens, those found in a cache left out.
    output_tokens : float
    steps : float or None
        Passes of all engines, where the engine counts them.
    running : tuple of float
        Requests in flight at moments evenly spread over the window; empty where it was not
        looked at.
    empty_ratio : float or None
        Share of the time in which nothing ran; the time law says it where it was not looked at.
    input_cv, output_cv : float
        Spread of lengths.
    flop_per_gpu, moved_bytes_per_gpu : float or None
        As the engine reckons them, summed over engines.
    """

    seconds: float
    requests: float
    prompts: float
    prompt_tokens: float
    output_tokens: float
    steps: float | None
    running: tuple[float, ...]
    empty_ratio: float | None
    input_cv: float = 1.0
    output_cv: float = 1.0
    flop_per_gpu: float | None = None
    moved_bytes_per_gpu: float | None = None

    @property
    def lengths(self) -> Lengths | None:
        """Lengths of its requests; None where nothing was computed."""
        begun = self.prompts or self.requests
        ended = self.requests or self.prompts
        if begun <= 0 or self.output_tokens <= 0:
            return None
        return Lengths(
            input_tokens=max(self.prompt_tokens / begun, 1.0),
            output_tokens=max(self.output_tokens / ended, 1.0),
            input_cv=self.input_cv,
            output_cv=self.output_cv,
        )


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What the law says of a window.

    Attributes
    ----------
    energy_j, idle_j, empty_ratio : float
        Of all GPUs, the part of the time in which nothing ran, and the share of that time.
    mean_batch_size : float
        Sequences that shared a step of a replica.
    basis : str
        What it rests on: ``engine work``, ``engine steps`` or ``token rates``.
    tpot_s : float or None
        Seconds of a step at that batch, prompts among them; None without a time law.
    busy_s : float or None
        Seconds of all steps and prompts of a replica, where the engine counts its steps.
    decode_ratio : float
        Share of decoding in the seconds of a step.
    work_ratio : (float, float) or None
        FLOPs and bytes as the engine reckons them over those of its tokens.
    """

    energy_j: float
    idle_j: float
    empty_ratio: float
    mean_batch_size: float
    basis: str
    tpot_s: float | None = None
    busy_s: float | None = None
    decode_ratio: float = 0.0
    work_ratio: tuple[float, float] | None = None

    def time_ratio(self, done: Done, tpot_s: float | None) -> float | None:
        """Measured over expected time; None where chance would say more than the engine.

        Where prompts take little of a step it is that of a token. Where they take more, tokens that
        come in bursts wait for more of them than the mean step has: then it is the time in which
        something ran, which the looks know well enough where it is most of the window.
        """
        if tpot_s and self.tpot_s and self.decode_ratio >= MOSTLY_DECODE:
            return tpot_s / self.tpot_s
        busy = 0.0 if done.empty_ratio is None else 1.0 - done.empty_ratio
        if self.busy_s and busy >= MOSTLY_BUSY:
            return busy * done.seconds / self.busy_s
        return None


def _stretch(drawn: FloatArray, batch: float) -> float:
    """Factor of batches above one that gives them their mean."""
    over = float(drawn.mean()) - 1.0
    return (batch - 1.0) / over if over > 0 else 1.0


@dataclass(frozen=True, kw_only=True)
class Saving:
    """The present configuration and the best one at a load, both by the law."""

    configuration: str
    current_energy_per_request_j: float
    best_energy_per_request_j: float
    best_power_w: float
    best_gpus: int

    @property
    def ratio(self) -> float:
        """Share of today's joules that the best configuration would not draw."""
        return max(0.0, 1.0 - self.best_energy_per_request_j / self.current_energy_per_request_j)


class Expectation:
    """The law, asked about one deployment.

    Parameters
    ----------
    case : Case
        What is served, where, and in which configuration; its lengths play no part.
    loaded_idle_w : float, optional
        Watts of one GPU with weights loaded and no request; that of its type by default.
    limits : sequence of LatencyLimit
        That the best configuration must meet.
    max_gpus : int
        That it may take.
    """

    def __init__(
        self,
        model: EnergyModel,
        case: Case,
        *,
        loaded_idle_w: float | None = None,
        limits: Sequence[LatencyLimit] = (),
        max_gpus: int = 8,
        meet: float = MEET,
    ) -> None:
        self.model, self.case = model, case
        self._idle_of_type = idle_of(model)
        self.loaded_idle_w = (
            self._idle_of_type(case.gpu) if loaded_idle_w is None else loaded_idle_w
        )
        self.limits, self.meet = tuple(limits), meet
        self.max_gpus = max(max_gpus, case.configuration.gpus)
        self.time = model.time

    def _idle_w(self, gpu: Gpu) -> float:
        """Watts as measured here for GPUs of this type; of another, what is known of its type."""
        return self.loaded_idle_w if gpu.id == self.case.gpu.id else self._idle_of_type(gpu)

    def of(self, done: Done) -> Expected:
        """Say what the law expects of what was done."""
        replicas = self.case.configuration.data_parallel
        gpus = self.case.configuration.gpus
        lengths = done.lengths
        if lengths is None:
            empty = 1.0 if done.empty_ratio is None else done.empty_ratio
            idle_j = gpus * self.loaded_idle_w * empty * done.seconds
            return Expected(
                energy_j=idle_j,
                idle_j=idle_j,
                empty_ratio=empty,
                mean_batch_size=0.0,
                basis="idle time",
            )
        case = replace(
            self.case,
            workload=Workload(
                input_tokens=lengths.input_tokens, output_tokens=lengths.output_tokens
            ),
        )
        cases = Cases.of([case])
        joules = JouleSteps.of(self.model, cases, lengths, self._idle_w)
        basis = "engine steps"
        if done.steps:
            batch = max(done.output_tokens / done.steps, 1.0)
        elif any(done.running):
            # Each of those in flight gets a token from every step.
            batch, basis = float(np.mean([n for n in done.running if n])) / replicas, "token rates"
        else:
            batch, basis = 1.0, "token rates"
        batch = max(batch, 1.0)
        steps = done.output_tokens / batch
        # Joules and seconds of a step bend with its batch, as where experts are read: they are
        # those of the batches met, not of their mean.
        batches = self._batches(done, cases, lengths, batch)
        prompt_parts, _ = self._parts(cases, lengths, batch * replicas)
        prompts_j = done.prompt_tokens / lengths.input_tokens * float(prompt_parts.sum())
        steps_j = steps * float(np.mean(joules.step_j(batches)))
        ratio = self._work(done, lengths, done.steps or steps)
        if ratio is not None:
            basis = "engine work"
            shares = self._shares(cases, lengths, batch * replicas)
            more = [
                1.0 + compute * (ratio[0] - 1.0) + memory * (ratio[1] - 1.0)
                for compute, memory in shares
            ]
            prompts_j, steps_j = prompts_j * more[0], steps_j * more[1]
        step_s = busy_s = None
        decode_ratio = 0.0
        if self.time is not None:
            law = self.time.without_factors().steps(cases, lengths.output_cv)
            one = np.array([batch])
            prompt_s = float(law.prompts_s(np.array([lengths.input_tokens]), one)[0])
            prompt_s *= done.prompts / steps
            step_s = float(law.step_s(one)[0]) + prompt_s
            decode_ratio = 1.0 - prompt_s / step_s
            if done.steps:
                own_s = float(np.mean([law.step_s(np.array([n]))[0] for n in batches]))
                busy_s = done.steps / replicas * (own_s + prompt_s)
        if done.empty_ratio is not None:
            empty = done.empty_ratio
        else:
            busy_s = done.seconds if step_s is None else steps / replicas * step_s
            empty = max(0.0, 1.0 - busy_s / done.seconds)
        idle_j = gpus * self.loaded_idle_w * empty * done.seconds
        return Expected(
            energy_j=prompts_j + steps_j + idle_j,
            idle_j=idle_j,
            empty_ratio=empty,
            mean_batch_size=batch,
            basis=basis,
            tpot_s=step_s,
            busy_s=busy_s,
            decode_ratio=decode_ratio,
            work_ratio=ratio,
        )

    def _work(self, done: Done, lengths: Lengths, steps: float) -> tuple[float, float] | None:
        """The engine's FLOPs and bytes over those of its tokens; None where they say nothing."""
        if not done.flop_per_gpu or not done.moved_bytes_per_gpu or not done.prompts:
            return None
        own = work_of_tokens(
            self.case,
            prompts=done.prompts,
            prompt_tokens=done.prompt_tokens,
            decoded_tokens=max(done.output_tokens - done.prompts, 0.0),
            steps=steps,
            context_tokens=lengths.input_tokens
            + lengths.output_tokens * lengths.running_output_ratio,
            prompt_cv=done.input_cv,
        )
        ratio = (done.flop_per_gpu / own.flop, done.moved_bytes_per_gpu / own.moved_bytes)
        alike = all(1 / LARGEST_WORK_RATIO < r < LARGEST_WORK_RATIO for r in ratio)
        return ratio if alike else None

    def _parts(
        self, cases: Cases, lengths: Lengths, running: float
    ) -> tuple[FloatArray, FloatArray]:
        """Joules of a request, term by term, of prompt and of output, each of shape (1, terms)."""
        full = cases.replace(
            mean_batch_size=np.array([running]),
            output_tokens=np.array([2.0 * lengths.output_tokens * lengths.running_output_ratio]),
        )
        return self.model.without_factors().predict_parts_j(full)

    def _batches(self, done: Done, cases: Cases, lengths: Lengths, batch: float) -> FloatArray:
        """Batches of some steps that stand for all, with the mean given.

        As many steps fall on a moment as its step is short.
        """
        replicas = self.case.configuration.data_parallel
        met = np.array([n for n in done.running if n > 0]) / replicas
        if len(met) < LEAST_LOOKS:
            return np.array([batch])
        met = np.maximum(met, 1.0)
        time = self.time or latency.from_datasheet()
        law = time.without_factors().steps(cases, lengths.output_cv)
        often = 1.0 / np.concatenate([law.step_s(np.array([n])) for n in met])
        places = (np.arange(STEPS) + 0.5) / STEPS
        order = np.argsort(met)
        share = np.cumsum(often[order]) / often.sum()
        drawn = met[order][np.minimum(np.searchsorted(share, places), len(met) - 1)]
        scaled: FloatArray = np.maximum(1.0, 1.0 + (drawn - 1.0) * _stretch(drawn, batch))
        return scaled

    def _shares(
        self, cases: Cases, lengths: Lengths, running: float
    ) -> tuple[tuple[float, float], tuple[float, float]]:
        """Shares of computing and of moving in the joules of prompts and of steps."""
        names = [term.name for term in self.model.terms]
        found = []
        for parts in self._parts(cases, lengths, running):
            whole = float(parts.sum())
            found.append(
                tuple(
                    float(sum(parts[0, k] for k, name in enumerate(names) if name in kind)) / whole
                    if whole
                    else 0.0
                    for kind in (COMPUTE, MEMORY)
                )
            )
        return found[0], found[1]  # type: ignore[return-value]

    def saving(self, done: Done) -> Saving | None:
        """Compare the present configuration with the best at this load; None where none is asked.

        A load that the present configuration cannot serve without end has no steady state.
        """
        lengths, rate = done.lengths, done.requests / done.seconds
        if lengths is None or rate <= 0:
            return None
        case = self.case
        served = Workload(input_tokens=lengths.input_tokens, output_tokens=lengths.output_tokens)
        scenario = Scenario.of(replace(case, workload=served), self.max_gpus)
        try:
            decision = decide(
                Engine(self.model),
                scenario,
                Load(rate_per_s=rate, lengths=lengths),
                self.limits,
                meet=self.meet,
                current=case.configuration,
                odds=bool(self.limits),
            )
            best, current = decision.best, decision.current
        except InfeasibleError:
            return None
        if current is None or not np.isfinite(current.energy_per_request_j):
            return None
        if current.energy_per_request_j <= best.energy_per_request_j:
            best = current
        return Saving(
            configuration=best.configuration.describe(),
            current_energy_per_request_j=current.energy_per_request_j,
            best_energy_per_request_j=best.energy_per_request_j,
            best_power_w=best.power_w,
            best_gpus=best.configuration.gpus,
        )
