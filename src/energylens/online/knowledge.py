"""What a policy knows of a replica: watts and times at any rate, looked up in closed form.

The service model (:mod:`energylens.service`) is solved once for a grid of rates, batch limits,
power caps and clocks; every decision after that is a look-up. Two factors, of time and of
joules, bring the model to what was measured of this deployment, as ``energylens verify`` does; in
a rehearsal the simulated engine stands in for the measurement.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from energylens import latency, modelfile, packaged, service
from energylens.cases import Cases, FloatArray
from energylens.fitting import from_datasheet
from energylens.latency import Steps
from energylens.model import EnergyModel
from energylens.online.fleet import AS_SHIPPED, Fleet, Setting
from energylens.service import JouleSteps, Lengths

RATES = 48  # points of a grid
LEAST_LOAD_RATIO = 0.005
MOST_LOAD_RATIO = 0.97
#: Standard deviation, as a log, of what the closed form's percentiles are off by, over all loads.
QUEUE_SPREADS = {"ttft": 0.33, "tpot": 0.13}
CALIBRATION_RUNNING = (8.0, 32.0)  # sequences at which steps are measured, prompts in them too


def model_of(fleet: Fleet) -> EnergyModel:
    """Read the model that the fleet names, or take the packaged one of its GPU type."""
    name = fleet.file.serve.model
    if name is None:
        return packaged.for_gpu(fleet.gpu.id)[0].model()
    if name.lower() == "datasheet":
        return from_datasheet()
    known = packaged.named(name)
    return modelfile.load(name) if known is None else known.model()


@dataclass(frozen=True, kw_only=True)
class Belief:
    """How far off what a policy believes is made, to see what that costs; 1: not."""

    joules: float = 1.0
    times: float = 1.0
    forecast: float = 1.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Known:
    """One replica of a layout at one power cap or clock, over batch limits and rates.

    Attributes
    ----------
    limits : ndarray, shape (l,)
        Batch limits, ascending.
    rates : ndarray, shape (l, r)
        Requests a second at which it was solved, up to near saturation.
    power_w : ndarray, shape (l, r)
        Mean watts of the replica.
    meets_s : ndarray, shape (2, l, r)
        TTFT and TPOT, seconds, that the share of requests asked for stays within, margins
        for the errors of the closed form included.
    full_tpot_s : ndarray, shape (l,)
        Mean time per token of a replica kept full.
    most_rate : ndarray, shape (l,)
        The largest rate that meets the limits; 0 where none does.
    idle_w : float
    mean_batch : ndarray, shape (l, r)
    request_s : ndarray, shape (l, r)
    """

    tensor_parallel: int
    setting: Setting
    limits: FloatArray
    rates: FloatArray
    power_w: FloatArray
    meets_s: FloatArray
    full_tpot_s: FloatArray
    most_rate: FloatArray
    idle_w: float
    mean_batch: FloatArray
    request_s: FloatArray
    saturation: FloatArray

    def power_at(self, rate: FloatArray | float, row: int) -> FloatArray:
        """Watts of a replica at a rate, for one batch limit."""
        at = np.asarray(rate, dtype=np.float64)
        grid, watts = self.rates[row], self.power_w[row]
        low = self.idle_w + (watts[0] - self.idle_w) * at / grid[0]
        found: FloatArray = np.where(at < grid[0], low, np.interp(at, grid, watts))
        return found


@dataclass(frozen=True, kw_only=True)
class Factors:
    """Measured over predicted: seconds and joules of a step, and of a prompt that joins one."""

    step_s: float = 1.0
    prompts_s: float = 1.0
    step_j: float = 1.0
    prompts_j: float = 1.0

    def times(self, belief: Belief) -> Factors:
        """Make them wrong on purpose."""
        return Factors(
            step_s=self.step_s * belief.times,
            prompts_s=self.prompts_s * belief.times,
            step_j=self.step_j * belief.joules,
            prompts_j=self.prompts_j * belief.joules,
        )


NO_FACTORS = Factors()


@dataclass(frozen=True, eq=False)
class _Told:
    """Steps of a model, told what was measured: factors on times and joules."""

    steps: Steps
    joules: JouleSteps
    factors: Factors

    @property
    def idle_w(self) -> FloatArray:
        return self.joules.idle_w

    def step_s(self, running: FloatArray) -> FloatArray:
        return self.factors.step_s * self.steps.step_s(running)

    def prompts_s(self, tokens: FloatArray, running: FloatArray) -> FloatArray:
        return self.factors.prompts_s * self.steps.prompts_s(tokens, running)

    def step_j(self, running: FloatArray) -> FloatArray:
        return self.factors.step_j * self.joules.step_j(running)

    def prompts_j(self, tokens: FloatArray, running: FloatArray) -> FloatArray:
        return self.factors.prompts_j * self.joules.prompts_j(tokens, running)

    def media_s(self, tokens: FloatArray) -> FloatArray:
        return self.factors.prompts_s * self.steps.media_s(tokens)

    def media_j(self, tokens: FloatArray) -> FloatArray:
        return self.factors.prompts_j * self.joules.media_j(tokens)


class Knowledge:
    """Closed-form answers about the replicas of a fleet.

    Parameters
    ----------
    lengths : Lengths
        Of the requests.
    belief : Belief
        Errors put in on purpose.
    calibrate : bool
        Whether the engine was measured at two batches for each layout and setting. Without, the
        model stands as it is, and only the deployed one is known.
    """

    def __init__(
        self,
        fleet: Fleet,
        lengths: Lengths,
        belief: Belief = Belief(),
        *,
        calibrate: bool = True,
    ) -> None:
        self.fleet, self.lengths, self.belief, self.calibrate = fleet, lengths, belief, calibrate
        self.model = model_of(fleet)
        self.time = (self.model.time or latency.from_datasheet()).without_factors()
        self._known: dict[tuple[int, Setting], Known] = {}
        self._prices: dict[tuple[int, Setting], Factors] = {}

    def told(self, lengths: Lengths) -> Knowledge:
        """Make the same for requests of other lengths."""
        return Knowledge(self.fleet, lengths, self.belief, calibrate=self.calibrate)

    @property
    def settings(self) -> tuple[Setting, ...]:
        """Caps and clocks of which something is known."""
        return self.fleet.settings if self.calibrate else self.fleet.settings[:1]

    def _cases(self, degree: int, limits: FloatArray) -> Cases:
        one = Cases.of(
            [self.fleet.case(degree, 1, self.lengths.input_tokens, self.lengths.output_tokens)]
        )
        return one.take(np.zeros(len(limits), dtype=np.intp)).replace(batch_size=limits)

    def _solve(
        self, degree: int, limits: FloatArray, rates: FloatArray, factors: Factors
    ) -> service.Service:
        cases = self._cases(degree, limits)
        told = _Told(
            self.time.steps(cases, self.lengths.output_cv),
            JouleSteps.of(self.model, cases, self.lengths, self._idle_w),
            factors,
        )
        held = np.maximum(service.slots(cases, self.lengths), 1.0)
        return service.steady_state(
            told, rate_per_s=rates, lengths=self.lengths, slots=held, joules=told
        )

    def _idle_w(self, gpu: Any) -> float:
        # Loaded idle is read off a running engine in a minute; here off the simulated one.
        if self.calibrate:
            degree = self.fleet.layouts[0]
            return self.fleet.table(degree, AS_SHIPPED).idle_w / degree
        return service.idle_of(self.model)(gpu)

    def factors(self, degree: int, setting: Setting) -> Factors:
        """Measured over predicted, of one layout and setting."""
        if not self.calibrate:
            return NO_FACTORS
        key = (degree, setting)
        if key not in self._prices:
            lengths, table = self.lengths, self.fleet.table(degree, setting)
            prompt = lengths.input_tokens
            context = prompt + lengths.output_tokens * lengths.running_output_ratio
            running = np.minimum(CALIBRATION_RUNNING, table.batches[-1])
            cases = self._cases(degree, running)
            told = _Told(
                self.time.steps(cases, lengths.output_cv),
                JouleSteps.of(self.model, cases, lengths, self._idle_w),
                NO_FACTORS,
            )
            tokens = np.full(len(running), min(prompt, float(table.prompts[-1])))
            look = table.reader()
            bare = np.array([look(n, context, 0.0) for n in running.tolist()]).T
            joined = np.array([look(n, context, tokens[0]) for n in running.tolist()]).T - bare
            ratios = np.array(
                [
                    bare[0] / told.step_s(running),
                    joined[0] / told.prompts_s(tokens, running),
                    bare[1] / told.step_j(running),
                    joined[1] / told.prompts_j(tokens, running),
                ]
            )
            step_s, prompts_s, step_j, prompts_j = np.exp(np.log(ratios).mean(axis=1)).tolist()
            self._prices[key] = Factors(
                step_s=step_s, prompts_s=prompts_s, step_j=step_j, prompts_j=prompts_j
            )
        return self._prices[key]

    def of(self, degree: int, setting: Setting) -> Known:
        """Everything about a layout at a power cap or clock."""
        key = (degree, setting)
        if key not in self._known:
            self._known[key] = self._solve_all(degree, setting)
        return self._known[key]

    def _solve_all(self, degree: int, setting: Setting) -> Known:
        fleet = self.fleet
        factors = self.factors(degree, setting).times(self.belief)
        most = int(fleet.table(degree, setting).batches[-1])
        grid = np.unique(np.rint(2.0 ** np.arange(0, np.log2(most) + 1e-9, 0.5)))
        limits = np.unique(np.append(grid, float(most)))
        tiny = self._solve(degree, limits, np.full(len(limits), 1e-3), factors)
        saturation = tiny.saturation_rate_per_s
        loads = np.geomspace(LEAST_LOAD_RATIO, MOST_LOAD_RATIO, RATES)
        rates = saturation[:, None] * loads
        state = self._solve(degree, np.repeat(limits, RATES), rates.reshape(-1), factors)
        shape = (len(limits), RATES)
        share = fleet.file.limits.share
        # Two limits share what may be late.
        quantile = 1.0 - (1.0 - share) / 2.0
        from scipy.special import ndtri

        sure = float(ndtri(fleet.file.limits.probability))
        ttft = state.ttft_quantile_s(quantile) * np.exp(sure * QUEUE_SPREADS["ttft"])
        tpot = state.tpot_quantile_s(quantile) * np.exp(sure * QUEUE_SPREADS["tpot"])
        meets = np.stack([ttft.reshape(shape), tpot.reshape(shape)])
        good = (meets[0] <= fleet.ttft_s) & (meets[1] <= fleet.tpot_s)
        # Up to the first rate that does not meet.
        upto = np.where(good.all(axis=1), RATES, np.argmin(good, axis=1))
        largest = np.where(
            upto > 0, np.take_along_axis(rates, np.maximum(upto - 1, 0)[:, None], 1)[:, 0], 0.0
        )
        full_tpot = limits / np.maximum(saturation, 1e-12) / self.lengths.output_tokens
        return Known(
            tensor_parallel=degree,
            setting=setting,
            limits=limits,
            rates=rates,
            power_w=state.power_w.reshape(shape),
            meets_s=meets,
            full_tpot_s=full_tpot,
            most_rate=largest,
            idle_w=float(self._idle_w(fleet.gpu) * degree),
            mean_batch=state.mean_batch_size.reshape(shape),
            request_s=state.request_latency_s.reshape(shape),
            saturation=saturation,
        )
