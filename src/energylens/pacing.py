"""Joules take time: no step is shorter than its joules take at the TDP, or under the power cap.

A GPU that would draw more lowers its clock. The laws of joules and of times are fitted apart and
may disagree; where they do the joules are believed, under load and in batches kept full alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from energylens.cases import Cases, FloatArray
from energylens.counts import in_flight
from energylens.latency import Target, TimeModel, prompts_per_step, units
from energylens.model import EnergyModel
from energylens.service import StepJoules, StepTime

BESIDE = "idle_gpus"  # the term of GPUs that are not in use, whose watts are their own


@dataclass(frozen=True, eq=False)
class Paced:
    """Steps that take longer by a factor of each case, and by as much as their joules ask for.

    ``most_w`` is that of one replica. Who is ``unsure`` of seconds by some factor is so of these
    as well.
    """

    steps: StepTime
    joules: StepJoules
    most_w: FloatArray
    factor: FloatArray

    @classmethod
    def of(
        cls,
        cases: Cases,
        steps: StepTime,
        joules: StepJoules,
        factor: FloatArray,
        unsure: FloatArray | float = 1.0,
    ) -> Paced:
        """Pace the steps of one replica of each case."""
        return cls(steps, joules, cases.most_w / cases.data_parallel / unsure, factor)

    def step_s(self, running: FloatArray) -> FloatArray:
        """Seconds of a decode step with ``running`` sequences; shape (n,)."""
        own = self.factor * self.steps.step_s(running)
        return np.maximum(own, self.joules.step_j(running) / self.most_w)

    def prompts_s(self, tokens: FloatArray, running: FloatArray) -> FloatArray:
        """Seconds that ``tokens`` prompt tokens add to one step; shape (n,)."""
        own = self.factor * self.steps.prompts_s(tokens, running)
        return np.maximum(own, self.joules.prompts_j(tokens, running) / self.most_w)

    def media_s(self, tokens: FloatArray) -> FloatArray:
        """Seconds of these that their images and frames take; shape (n,)."""
        own = self.factor * self.steps.media_s(tokens)
        return np.maximum(own, self.joules.media_j(tokens) / self.most_w)


# ------------------------------------------------------------------------- full batches


@dataclass(frozen=True, eq=False)
class FullBatch:
    """Seconds of n cases whose batches are kept full, one array (n,) a column.

    ``step_s`` is a step without prompts, ``held_back_s`` what of ``latency_s`` the joules ask for
    beyond the law of times.
    """

    running: FloatArray
    step_s: FloatArray
    latency_s: FloatArray
    tpot_s: FloatArray
    ttft_s: FloatArray
    held_back_s: FloatArray

    @property
    def requests_per_s(self) -> FloatArray:
        """Requests that complete in a second, all replicas together; shape (n,)."""
        return self.running / self.latency_s


def full_batch(model: EnergyModel, time: TimeModel, cases: Cases, factor: float = 1.0) -> FullBatch:
    """Predict the seconds of batches that are kept full.

    Parameters
    ----------
    model, time : EnergyModel, TimeModel
        The laws of joules and of times.
    cases : Cases
        n cases.
    factor : float
        By which measured times of this deployment were longer than predicted.
    """
    running = in_flight(cases)
    busy = np.array([term.name != BESIDE for term in model.terms])
    prefill, decode = (part[:, busy].sum(axis=1) for part in model.predict_parts_j(cases))
    most = cases.most_w
    # Each replica has its share of the batch, and of the watts.
    own_step_s, own_prompt_s = (factor * own for own in time.step_and_prompt_s(cases))
    step_s = np.maximum(own_step_s, decode * running / (cases.output_tokens * most))
    prompt_s = np.maximum(own_prompt_s, prefill * cases.data_parallel / most)

    def of(target: Target, step_s: FloatArray, prompt_s: FloatArray) -> FloatArray:
        prompts = prompts_per_step(cases, target, running / cases.data_parallel)
        total: FloatArray = units(cases, target) * (step_s + prompts * prompt_s)
        return total

    latency_s = of("latency", step_s, prompt_s)
    return FullBatch(
        running=running,
        step_s=step_s,
        latency_s=latency_s,
        tpot_s=of("tpot", step_s, prompt_s),
        ttft_s=of("ttft", step_s, prompt_s),
        held_back_s=latency_s - of("latency", own_step_s, own_prompt_s),
    )
