r"""A replica under load: batch, times and joules when requests arrive at a rate.

A full batch is what an engine does with a queue that is never empty. Here requests arrive by
chance (Poisson, ``rate`` per second and replica), each with a prompt and an output; the engine
batches them continuously. The number n of sequences that run then follows a birth-death chain:
born at the rate of arrivals, dying at :math:`n / (L\,\tau(n))`. With the step time a straight
line near the mean, :math:`\tau(n) \approx \alpha + \beta n`, n is negative binomial in closed
form, with a geometric tail beyond the slots; nothing is simulated. Prompts take the share
:math:`\rho = \lambda S_p` of the time and lengthen every step by :math:`1/(1-\rho)`.

Joules need one thing of that distribution, the probability :math:`\pi_0` that nothing runs: time
divides into :math:`1 = \pi_0 + \lambda S_p + \lambda L \beta + \nu \alpha`, what is left being the
:math:`\nu` steps a second, so that

.. math:: E = E_p + L e_1 + \frac{\nu e_0 + \pi_0 P_{idle}}{\lambda}

for steps of :math:`e_0 + e_1 n` joules and a loaded GPU that idles at :math:`P_{idle}`.

Use it so::

    steps = time_model.steps(cases, lengths.output_cv)
    joules = JouleSteps.of(energy_model, cases, lengths)
    state = steady_state(steps, rate_per_s=rate / cases.data_parallel, lengths=lengths,
                         slots=slots(cases, lengths), joules=joules)
    state.tpot_s, state.ttft_quantile_s(0.99), state.energy_per_request_j, state.power_w

All columns are of one replica; R replicas share the rate and each has this state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from energylens.batch_chain import batch_chain
from energylens.capacity import largest_batch
from energylens.cases import BoolArray, Cases, FloatArray, IntArray
from energylens.counts import TOKENS_PER_PASS
from energylens.dataset import group_rows
from energylens.errors import InputError
from energylens.formula import Term
from energylens.records import Gpu

ROUNDS = 14  # of the fixed point between batch and step time
EXACT_ROUNDS = (
    4  # of them, the last, with the slots; before them without, which is ten times faster
)
LOADED_IDLE_RATIO = 0.17  # of TDP, with weights loaded, where nothing says better
GRID_RATIO = 1.3  # between batches at which a step's joules are worked out
LARGEST_BATCH = 8192.0
CERTAIN = 0.9  # of a step and a prompt of one's own, which every first token takes
FULL = 0.998  # share of time for prompts beyond which none is left for steps


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Prompt and output lengths of the requests: means, and coefficients of variation.

    1 is that of an exponential, near what chat traffic shows; only percentiles depend on it much.
    The means may be arrays, one for each configuration.
    """

    input_tokens: float
    output_tokens: float
    input_cv: float = 1.0
    output_cv: float = 1.0

    def __post_init__(self) -> None:
        for name in ("input_tokens", "output_tokens"):
            value = getattr(self, name)
            if not np.all(np.isfinite(value) & (np.asarray(value) > 0)):
                raise InputError(f"lengths: {name} must be a number above 0, not {value!r}")
        for name in ("input_cv", "output_cv"):
            value = getattr(self, name)
            if not (np.isfinite(value) and 0 <= value < 100):
                raise InputError(f"lengths: {name} must be 0 or more, not {value!r}")

    @property
    def running_output_ratio(self) -> float:
        """Output that a running sequence has on average, over the mean output: (1 + CV^2) / 2."""
        return (1.0 + self.output_cv**2) / 2.0


class StepTime(Protocol):
    """How long the steps of one replica of n configurations take."""

    def step_s(self, running: FloatArray) -> FloatArray:
        """Seconds of a decode step with ``running`` sequences; shape (n,)."""

    def prompts_s(self, tokens: FloatArray, running: FloatArray) -> FloatArray:
        """Seconds that ``tokens`` prompt tokens add to one step; shape (n,)."""

    def media_s(self, tokens: FloatArray) -> FloatArray:
        """Seconds of these that their images and frames take; shape (n,)."""


class StepJoules(Protocol):
    """How many joules the steps of one replica take."""

    @property
    def idle_w(self) -> FloatArray:
        """Watts of the replica with its weights loaded and nothing to do; shape (n,)."""

    def step_j(self, running: FloatArray) -> FloatArray:
        """Joules of a decode step with ``running`` sequences; shape (n,)."""

    def prompts_j(self, tokens: FloatArray, running: FloatArray) -> FloatArray:
        """Joules that ``tokens`` prompt tokens add to one step; shape (n,)."""

    def media_j(self, tokens: FloatArray) -> FloatArray:
        """Joules of these that their images and frames take; shape (n,)."""


@dataclass(frozen=True)
class _Spared:
    """The same requests without the work on their images or (0) on their prompts at all."""

    steps: StepTime
    joules: StepJoules
    prompts: float

    @property
    def idle_w(self) -> FloatArray:
        return self.joules.idle_w

    def step_s(self, running: FloatArray) -> FloatArray:
        return self.steps.step_s(running)

    def step_j(self, running: FloatArray) -> FloatArray:
        return self.joules.step_j(running)

    def prompts_s(self, tokens: FloatArray, running: FloatArray) -> FloatArray:
        return self.prompts * (self.steps.prompts_s(tokens, running) - self.steps.media_s(tokens))

    def prompts_j(self, tokens: FloatArray, running: FloatArray) -> FloatArray:
        joules = self.joules.prompts_j(tokens, running) - self.joules.media_j(tokens)
        return self.prompts * joules

    def media_s(self, tokens: FloatArray) -> FloatArray:
        return np.zeros_like(tokens)

    media_j = media_s


# ------------------------------------------------------------------------ the steady state


@dataclass(frozen=True, kw_only=True, eq=False)
class Service:
    """The steady state of one replica of n configurations; each of shape (n,).

    Attributes
    ----------
    rate_per_s : ndarray
        Requests that arrive at the replica.
    mean_batch_size : ndarray
        Sequences that run, averaged over all time, empty or not.
    utilisation_ratio : ndarray
        The rate over the largest that the replica sustains; at 1 or more there is no steady state,
        and times are infinite.
    saturation_rate_per_s : ndarray
        That largest rate.
    empty_ratio : ndarray
        Share of the time in which nothing runs.
    steps_per_s : ndarray
        Steps with something to decode.
    full_ratio : ndarray
        Share of the time in which all slots are taken.
    tpot_s, ttft_s, request_latency_s : ndarray
        Means: per output token after the first, to the first token from arrival (waiting for a
        slot included), and of the request.
    energy_per_request_j, power_w : ndarray
        Of the replica, idle time included; NaN where no joules were given.
    """

    rate_per_s: FloatArray
    mean_batch_size: FloatArray
    utilisation_ratio: FloatArray
    saturation_rate_per_s: FloatArray
    empty_ratio: FloatArray
    steps_per_s: FloatArray
    full_ratio: FloatArray
    tpot_s: FloatArray
    ttft_s: FloatArray
    request_latency_s: FloatArray
    energy_per_request_j: FloatArray
    power_w: FloatArray
    _tpot_least_s: FloatArray
    _tpot_variance: FloatArray
    _ttft_variance: FloatArray
    _ttft_least_s: FloatArray
    _ready_s: FloatArray  # mean time to the first token, less the wait for a slot
    _slot_wait_s: FloatArray  # finite
    _output_tokens: FloatArray
    _output_cv: float

    def take(self, rows: IntArray | slice) -> Service:
        """Some of the configurations."""
        columns: dict[str, Any] = {
            name: column[rows]
            for name, column in vars(self).items()
            if isinstance(column, np.ndarray) and column.ndim
        }
        return replace(self, **columns)

    @property
    def saturated(self) -> BoolArray:
        """Whether more arrives than the replica sustains; shape (n,)."""
        over: BoolArray = ~np.isfinite(self.ttft_s)
        return over

    def tpot_quantile_s(self, ratio: float) -> FloatArray:
        """Seconds per token that ``ratio`` of the requests stay below; shape (n,)."""
        least = np.minimum(self._tpot_least_s, 0.98 * self.tpot_s)
        return least + _gamma(ratio, self.tpot_s - least, self._tpot_variance)

    def ttft_quantile_s(self, ratio: float) -> FloatArray:
        """Seconds to the first token that ``ratio`` of the requests stay below; shape (n,)."""
        least = self._ttft_least_s
        own = least + _gamma(ratio, self._ready_s - least, self._ttft_variance)
        full = np.clip(self.full_ratio, 1e-12, 1.0)
        waited = self._slot_wait_s / full * np.log(np.maximum(full / (1.0 - ratio), 1.0))
        late: FloatArray = np.maximum(own, np.where(waited > 0, self._ready_s + waited, 0.0))
        return np.where(self.saturated, np.inf, late)

    def latency_quantile_s(self, ratio: float) -> FloatArray:
        """Seconds of a request that ``ratio`` of them stay below; shape (n,).

        Lengths of outputs spread it most.
        """
        decode = self.tpot_s * np.maximum(self._output_tokens - 1.0, 0.0)
        variance = (
            self._ttft_variance
            + (decode * self._output_cv) ** 2
            + self._tpot_variance * self._output_tokens**2
            + self._slot_wait_s**2
        )
        return _gamma(ratio, self.request_latency_s, variance)


def _gamma(ratio: float, mean: FloatArray, variance: FloatArray) -> FloatArray:
    """Quantile of gamma distributions; infinite where the mean is."""
    from scipy.special import gammaincinv

    if not 0.0 < ratio < 1.0:
        raise InputError(f"a percentile must lie between 0 and 1, not {ratio!r}")
    finite = np.isfinite(mean) & np.isfinite(variance)
    m, v = np.where(finite, mean, 1.0), np.where(finite, np.maximum(variance, 1e-16), 1.0)
    quantile = gammaincinv(m * m / v, ratio) * v / m
    return np.where(finite, quantile, np.inf)


def steady_state(
    steps: StepTime,
    *,
    rate_per_s: FloatArray | float,
    lengths: Lengths,
    slots: FloatArray,
    joules: StepJoules | None = None,
    tokens_per_pass: float = TOKENS_PER_PASS,
) -> Service:
    """Solve the steady state of one replica of n configurations.

    Parameters
    ----------
    steps : StepTime
        As :meth:`energylens.latency.TimeModel.steps` gives.
    rate_per_s : float or ndarray, shape (n,)
        Requests a second that arrive at one replica.
    slots : ndarray, shape (n,)
        Sequences that may run at once in one replica: the batch limit, or what its memory holds.
    tokens_per_pass : float
        Token budget of a step (``max_num_batched_tokens``).

    Raises
    ------
    InputError
        If a rate or number of slots is not above 0.
    """
    rate, limit = np.broadcast_arrays(
        np.asarray(rate_per_s, dtype=np.float64), np.asarray(slots, dtype=np.float64)
    )
    for name, values in (("rate_per_s", rate), ("slots", limit)):
        if not np.all(np.isfinite(values) & (values > 0)):
            raise InputError(f"{name} must be finite numbers above 0")
    limit = np.maximum(limit, 1.0)
    prompt = np.asarray(lengths.input_tokens, dtype=np.float64)
    output = np.asarray(lengths.output_tokens, dtype=np.float64)
    scatter = 1.0 + lengths.input_cv**2
    budget = tokens_per_pass
    chunks = np.maximum(prompt / budget, 1.0)
    longest = prompt * (1.0 + max(lengths.input_cv, 1e-3))
    uneven = max(lengths.output_cv**2, 1e-9)
    one = np.ones_like(rate)

    def prompt_s(per_step: FloatArray, running: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Seconds of a prompt where some come in a step, which share what is paid once."""
        share = -np.expm1(-per_step) / per_step
        together = np.minimum(prompt / share, budget)
        return steps.prompts_s(together, running) * prompt / together, together

    full_step = steps.step_s(limit)
    full_prompt, _ = prompt_s(np.maximum(limit / output, 1e-9), limit)
    # With all slots taken: arrivals over what is served.
    ratio = rate * output * full_step / limit / np.maximum(1.0 - rate * full_prompt, 1e-9)
    # No more keep running than prompts join: a step takes no more of their tokens than its budget.
    joining = np.minimum(np.maximum(budget * output / prompt, 1.0), limit)
    joining_prompt, _ = prompt_s(np.maximum(joining / output, 1e-9), joining)
    cycle_s = output * steps.step_s(joining) + joining * joining_prompt
    saturation = np.minimum(limit / (output * full_step + limit * full_prompt), joining / cycle_s)
    batch = np.minimum(np.maximum(rate * output * steps.step_s(one), 1.0), limit)
    step = steps.step_s(batch)
    spread = np.zeros_like(rate)
    for turn in range(ROUNDS):
        own_prompt, together = prompt_s(np.maximum(rate * step, 1e-9), batch)
        rho = np.minimum(rate * own_prompt, FULL)
        low = np.minimum(np.maximum(0.6 * batch, 1.0), limit)  # np.clip takes five times as long
        high = np.maximum(np.minimum(np.maximum(1.5 * batch, low + 1.0), limit), low + 1.0)
        at_low = steps.step_s(low)
        beta = np.maximum((steps.step_s(high) - at_low) / (high - low), 0.0)
        alpha = np.maximum(at_low - beta * low, 1e-9)
        beta = np.maximum(beta, 1e-6 * alpha)
        offered = rate * output / (1.0 - rho)
        bare = alpha + beta * np.maximum(batch, 1.0)
        alone = steps.prompts_s(np.minimum(prompt, budget) * one, batch) * chunks
        own = alone + (chunks - 1.0) * bare
        # What a prompt costs whatever its length does not scatter.
        steeper = steps.prompts_s(np.minimum(longest, budget) * one, batch)
        steeper = steeper * np.maximum(longest / budget, 1.0)
        own_spread = np.maximum(steeper - alone, 0.0) / (longest - prompt) * prompt
        own_spread = own_spread * lengths.input_cv
        square = own_prompt**2 + own_spread**2
        mean_step = bare / (1.0 - rho)
        step_variance = mean_step * rate * square / np.maximum(1.0 - rho**2, 1e-3)
        step_variance = step_variance + (beta / (1.0 - rho)) ** 2 * spread
        # An arrival finds a longer step than the mean, but none beyond the token budget.
        most = np.maximum(bare + steps.prompts_s(budget * one, batch) - mean_step, 1e-9)
        over = step_variance / mean_step
        over = over * most / np.hypot(over, most)
        met, step_variance = mean_step + over, mean_step * over
        # A request's own prompt lengthens its life, and so do those who came meanwhile, whose
        # prompts are in its first steps; not where all slots are taken.
        extra = own + rho * (met - mean_step)
        # The mean of rho ** (output - 1) over outputs of a gamma distribution: short ones end
        # before the echo does.
        fading = 1.0 + uneven * np.maximum(output - 1.0, 0.0) * -np.log(np.maximum(rho, 1e-12))
        echo = rho / (1.0 - rho) * (1.0 - fading ** (-1.0 / uneven)) * extra
        longer = (extra + echo) * (1.0 - (np.minimum(batch, limit) / limit) ** 2)
        fixed = alpha + longer * (1.0 - rho) / output
        if turn < ROUNDS - EXACT_ROUNDS:
            odds = np.minimum(np.maximum(offered * beta, 1e-12), 0.999)
            mean = (fixed / beta + 1.0) * odds / (1.0 - odds)
            spread = np.where(mean < limit, mean / (1.0 - odds), 0.0)
        else:
            chain = batch_chain(offered, fixed, beta, limit, ratio, moments=True)
            mean = chain.mean
            spread = np.where(chain.ratio < 1.0, chain.variance, 0.0)
        batch = 0.5 * batch + 0.5 * np.minimum(np.maximum(mean, 1e-6), limit)
        step = 0.5 * step + 0.5 * (alpha + beta * np.maximum(batch, 1.0)) / (1.0 - rho)
    # Empty: nothing to prefill, and nothing to decode.
    empty = (1.0 - rho) * batch_chain(offered, alpha, beta, limit, ratio, moments=False).empty
    batch = chain.mean
    stable = rate < saturation

    busy = 1.0 - empty
    bare = alpha + beta * np.maximum(batch, 1.0)
    after = alpha + beta * (batch + 1.0) + own + busy * rho * met
    first = busy * 0.5 * met + after
    tpot = np.maximum((batch / rate - after) / np.maximum(output - 1.0, 0.5), alpha)
    # Prompts beyond the token budget of a step wait for the next one.
    pass_s = alpha + beta * batch + steps.prompts_s(budget * one, batch)
    served = prompt / budget * pass_s
    in_line = rate * served**2 * scatter / 2.0 / (1.0 - np.minimum(rate * served, 0.995))
    budget_wait = np.maximum(in_line - busy * (rho + 0.5) * met, 0.0)
    queue = np.where(np.isfinite(chain.queue), chain.queue, 0.0)
    slot_wait = np.where(stable, queue / rate * 0.5 * (1.0 + min(uneven, 1.5)), np.inf)
    ready = first + budget_wait
    infinite = np.where(stable, 0.0, np.inf)
    tpot = np.where(stable, tpot, cycle_s / output)
    ttft = ready + slot_wait
    # Spread of a request's mean time per token: the batch that it sees, which hardly changes over
    # a short life, and the prompts of others.
    ease = 1.0 - np.minimum(offered * beta, 0.999)
    frozen = 2.0 * (ease - 1.0 + np.exp(-ease)) / ease**2
    life = np.maximum(output / (1.0 + 0.5 * lengths.output_cv**2), 1.0)
    found_variance = step_variance * (1.0 + step_variance / mean_step**2)
    tpot_variance = (
        (beta / (1.0 - rho)) ** 2 * spread * frozen
        + rate * square * tpot / life / (1.0 - rho) ** 2
        + (rho / (1.0 - rho)) ** 2
        * (own_prompt**2 * lengths.input_cv**2 + rho**2 * found_variance)
        / life**2
    )
    ttft_variance = (
        busy * (met**2 + found_variance) / 12.0
        + own_spread**2
        + beta**2 * spread
        + rate * met * square * busy
        + (0.5 + rho) ** 2 * found_variance * busy
        + budget_wait**2
        + (met * (0.5 + rho)) ** 2 * busy * (1.0 - busy)
    )
    fewest = np.maximum(batch - np.sqrt(spread), 1.0)
    least = alpha + beta * fewest + np.maximum(own - own_spread, 0.0)
    steps_per_s = np.maximum(busy - rate * own_prompt - rate * output * beta, 0.0) / alpha
    nan = np.full_like(rate, np.nan)
    energy, power = nan, nan
    if joules is not None:
        idle_w = joules.idle_w
        # Whatever the two laws make of each other, no second draws less than idle.
        at_low_j = np.maximum(joules.step_j(low), idle_w * at_low)
        at_high_j = np.maximum(joules.step_j(high), idle_w * steps.step_s(high))
        each_j = (at_high_j - at_low_j) / (high - low)
        fixed_j = np.maximum(at_low_j - each_j * low, 0.0)
        prompt_j = joules.prompts_j(together, batch) * prompt / together
        media_s, media_j = steps.media_s(prompt * one), joules.media_j(prompt * one)
        text_s, text_j = own_prompt - media_s, prompt_j - media_j
        media_j, text_j = np.maximum(media_j, idle_w * media_s), np.maximum(text_j, idle_w * text_s)
        decode_j = output * each_j + fixed_j * steps_per_s / rate
        energy = decode_j + text_j + media_j + idle_w * empty / rate
        # Prompts hold up steps and so make batches fuller. That work saves joules is not believed.
        decode_s = np.maximum(busy / rate - own_prompt, 1e-12)
        for left, of_s, of_j in ((1.0, media_s, media_j), (0.0, text_s, text_j)):
            if (stable & (of_j * decode_s < decode_j * of_s)).any():
                spared = _Spared(steps, joules, left)
                state = steady_state(
                    spared, rate_per_s=rate, lengths=lengths, slots=limit, joules=spared,
                    tokens_per_pass=budget,
                )  # fmt: skip
                energy = np.maximum(energy, state.energy_per_request_j)
        full_j = joules.prompts_j(together, joining) * prompt / together  # beyond saturation
        full_j = full_j + output * joules.step_j(joining) / joining
        energy = np.where(stable, energy, np.maximum(full_j, idle_w / saturation))
        power = energy * np.minimum(rate, saturation)
    return Service(
        rate_per_s=np.array(rate),
        mean_batch_size=np.where(stable, batch, joining),
        utilisation_ratio=rate / saturation,
        saturation_rate_per_s=saturation,
        empty_ratio=np.where(stable, empty, 0.0),
        steps_per_s=np.where(stable, steps_per_s, output / cycle_s),
        full_ratio=np.where(stable, chain.full, 1.0),
        tpot_s=tpot,
        ttft_s=ttft,
        request_latency_s=ttft + tpot * np.maximum(output - 1.0, 0.0) + infinite,
        energy_per_request_j=energy,
        power_w=power,
        _tpot_least_s=steps.step_s(one),
        _tpot_variance=np.maximum(tpot_variance, 1e-14),
        _ttft_variance=ttft_variance,
        _ttft_least_s=CERTAIN * np.minimum(least, ready),
        _ready_s=ready,
        _slot_wait_s=np.where(stable, slot_wait, 0.0),
        _output_tokens=np.asarray(output, dtype=np.float64),
        _output_cv=lengths.output_cv,
    )


# ---------------------------------------------------------------------- joules of the law


class _Parts(Protocol):
    @property
    def terms(self) -> Sequence[Term]: ...

    def predict_parts_j(self, cases: Cases) -> tuple[FloatArray, FloatArray]: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class JouleSteps:
    """A joule law's answer to :class:`StepJoules`: steps from what it says of full batches.

    Of thousands of configurations a few engines differ (layout, format, GPU type); what a step of
    each costs is worked out at some batches and read off between them.
    """

    idle_w: FloatArray
    prompt_j: FloatArray
    seen_j: FloatArray  # of it, for images and frames
    input_tokens: float
    _table: FloatArray  # (engines, batches)
    _slope: FloatArray  # from each batch to the next, a sequence; (engines, batches)
    _engine: IntArray  # first place of each configuration in them

    @classmethod
    def of(
        cls,
        model: _Parts,
        cases: Cases,
        lengths: Lengths,
        loaded_idle_w: Callable[[Gpu], float] | None = None,
        *,
        engines: IntArray | None = None,
        most: float = LARGEST_BATCH,
    ) -> JouleSteps:
        """Ask a model about the replicas of n cases.

        Parameters
        ----------
        model : EnergyModel
            Whatever has ``predict_parts_j``.
        cases : Cases
            n cases; their batch plays no part.
        loaded_idle_w : callable, optional
            Watts of one idle GPU of a type with weights loaded; by default what the rows of the
            model told, or :func:`loaded_idle_w`.
        engines : ndarray of int, shape (n,), optional
            Numbers that tell apart all but batch limits, where they are known.
        most : float
            Sequences that a replica will be asked about.
        """
        engine = engines
        if engine is None:
            knobs = (
                cases.llm_index, cases.gpu_index, cases.precision_index, cases.engine_index,
                cases.tensor_parallel, cases.pipeline_parallel, cases.expert_parallel,
                cases.data_parallel, cases.power_cap_w, cases.clock_mhz,
            )  # fmt: skip
            engine = group_rows(list(knobs))
        _, rows, engine = np.unique(engine, return_index=True, return_inverse=True)
        distinct = cases.take(rows)
        top = np.clip(most + 1.0, 2.0, LARGEST_BATCH)
        count = int(np.ceil(np.log(top) / np.log(GRID_RATIO))) + 1
        batches = GRID_RATIO ** np.arange(count)
        # Running sequences see a longer context where lengths scatter: that of a longer output.
        longer = distinct.replace(
            node_boundary=False,
            input_tokens=lengths.input_tokens,
            output_tokens=lengths.output_tokens * 2.0 * lengths.running_output_ratio,
        )
        many = longer.take(np.repeat(np.arange(len(rows)), count))
        running = np.tile(batches, len(rows))
        many = many.replace(mean_batch_size=running * many.data_parallel)
        # Factors of LLMs were found in full batches, and do not carry to emptier ones.
        law: _Parts = getattr(model, "without_factors", lambda: model)()
        prefill, decode = law.predict_parts_j(many)
        step_j = decode.sum(axis=1) / many.output_tokens * running
        idle = loaded_idle_w or idle_of(model)
        gpus = cases.tensor_parallel * cases.pipeline_parallel
        # A prompt by itself, where a pipeline's other stages have as much to do.
        alone = np.searchsorted(batches[:-1], distinct.pipeline_parallel)
        alone = alone + count * np.arange(len(rows))
        seen = [term.name in ("vision", "media_waiting") for term in law.terms]
        return cls(
            idle_w=gpus * cases.of_gpu(idle),
            prompt_j=prefill.sum(axis=1)[alone][engine],
            seen_j=prefill[:, seen].sum(axis=1)[alone][engine],
            input_tokens=lengths.input_tokens,
            _table=(table := step_j.reshape(-1, count)),
            _slope=np.diff(table, append=table[:, -1:]) / np.diff(batches, append=np.inf),
            _engine=count * engine,
        )

    def take(self, rows: IntArray | slice) -> JouleSteps:
        """Some of the configurations."""
        names = ("idle_w", "prompt_j", "seen_j", "_engine")
        columns: dict[str, Any] = {name: getattr(self, name)[rows] for name in names}
        return replace(self, **columns)

    def step_j(self, running: FloatArray) -> FloatArray:
        """Joules of a decode step with ``running`` sequences; shape (n,)."""
        place = np.log(np.maximum(running, 1.0)) / np.log(GRID_RATIO)
        low = np.minimum(place.astype(np.intp), self._table.shape[1] - 2)
        at = self._engine + low
        line: FloatArray = self._slope.ravel()[at]
        line *= running - self._batches[low]
        line += self._table.ravel()[at]
        return line

    @cached_property
    def _batches(self) -> FloatArray:
        batches: FloatArray = GRID_RATIO ** np.arange(self._table.shape[1], dtype=np.float64)
        return batches

    def prompts_j(self, tokens: FloatArray, running: FloatArray) -> FloatArray:  # noqa: ARG002
        """Joules that ``tokens`` prompt tokens add to one step; shape (n,)."""
        return self.prompt_j * tokens / self.input_tokens

    def media_j(self, tokens: FloatArray) -> FloatArray:
        """Joules of :meth:`prompts_j` that images and frames take; shape (n,)."""
        return self.seen_j * tokens / self.input_tokens


def loaded_idle_w(gpu: Gpu) -> float:
    """Watts of one GPU with weights loaded and no request, from the catalog or its TDP."""
    return gpu.loaded_idle_w or LOADED_IDLE_RATIO * gpu.tdp_w


def idle_of(model: object) -> Callable[[Gpu], float]:
    """Give the loaded idle of a GPU type as a model's rows told it, or the catalog."""
    told: Mapping[str, float] = getattr(model, "loaded_idle_w", {})
    return lambda gpu: told.get(gpu.id) or loaded_idle_w(gpu)


def slots(cases: Cases, lengths: Lengths, *, limits: FloatArray | None = None) -> FloatArray:
    """Sequences that one replica of each case may run at once; 0 where its memory holds none.

    The batch limit, or what the memory holds at the mean context of running sequences.

    Parameters
    ----------
    cases : Cases
        n cases; ``batch_size`` is summed over replicas.
    limits : ndarray, shape (n,), optional
        Limits of one replica, in place of those of the cases.

    Returns
    -------
    ndarray, shape (n,)
    """
    wanted = cases.batch_size / cases.data_parallel if limits is None else limits
    fitting = room(cases, lengths, limits=wanted)
    held: FloatArray = np.where(fitting >= 1.0, np.minimum(wanted, fitting), 0.0)
    return held


def room(cases: Cases, lengths: Lengths, *, limits: FloatArray | float) -> FloatArray:
    """Sequences that the memory of one replica holds, where it starts with a limit; shape (n,).

    An engine sets memory aside to sample for its limit, and starts if that has room.
    """
    limits = np.broadcast_to(limits, (len(cases),))
    room = np.zeros(len(cases))
    shape = (len(cases.llms), len(cases.gpus), len(cases.precisions))
    key = np.ravel_multi_index((cases.llm_index, cases.gpu_index, cases.precision_index), shape)
    for place in np.unique(key):
        rows = np.flatnonzero(key == place)
        llm, gpu, precision = np.unravel_index(place, shape)
        room[rows] = largest_batch(
            cases.llms[llm],
            cases.gpus[gpu],
            cases.precisions[precision],
            **cases.degrees(rows),
            input_tokens=_rows(lengths.input_tokens, rows),
            output_tokens=_rows(lengths.output_tokens, rows),
            batch_size=limits[rows] * cases.data_parallel[rows],
            held_output_ratio=lengths.running_output_ratio,
        )
    fitting: FloatArray = np.floor(room / cases.data_parallel + 1e-9)
    return fitting


def _rows(values: Any, rows: IntArray) -> Any:
    return values[rows] if isinstance(values, np.ndarray) else values


@dataclass(frozen=True, kw_only=True, eq=False)
class Running:
    """What rows under load ran on average; each of shape (n,).

    Attributes
    ----------
    met : ndarray
        Sequences in a replica as a request meets them, itself among them.
    per_step : ndarray
        Sequences that share a decode step, over all replicas: what the joules of a full batch of
        as many have in common with the row.
    idle_j : ndarray
        Joules a request of the time in which nothing runs.
    """

    met: FloatArray
    per_step: FloatArray
    idle_j: FloatArray


def running_under_load(cases: Cases, steps: StepTime) -> Running:
    """Work out the batch of cases with a request rate, from their lengths and a time law.

    The rate achieved counts where it is known; where no batch limit is known, memory sets it.
    Idle watts are those of the row, or of its GPU type.

    Parameters
    ----------
    cases : Cases
        n cases, each with a ``request_rate_per_s``.
    steps : StepTime
        Of the same cases.
    """
    prompts: Any = cases.input_tokens  # an array in place of a number
    outputs: Any = cases.output_tokens
    lengths = Lengths(input_tokens=prompts, output_tokens=outputs)
    known = np.isfinite(cases.batch_size)
    limits = np.where(known, cases.batch_size / cases.data_parallel, LARGEST_BATCH)
    held = slots(cases, lengths, limits=limits)
    # A layout without room at all ran all the same if it was measured.
    held = np.where(held > 0, held, np.where(known, limits, 256.0))
    rate = np.where(
        cases.achieved_rate_per_s > 0, cases.achieved_rate_per_s, cases.request_rate_per_s
    )
    rate = rate / cases.data_parallel
    state = steady_state(steps, rate_per_s=rate, lengths=lengths, slots=held)
    watts = np.where(cases.loaded_idle_w > 0, cases.loaded_idle_w, cases.of_gpu(loaded_idle_w))
    gpus = cases.tensor_parallel * cases.pipeline_parallel
    share = rate * cases.output_tokens / np.maximum(state.steps_per_s, 1e-12)
    return Running(
        met=np.minimum(state.mean_batch_size + 1.0, held),
        per_step=np.clip(share, 1.0, held) * cases.data_parallel,
        idle_j=gpus * watts * state.empty_ratio / rate,
    )


def node_power_w(cases: Cases, power_w: FloatArray) -> FloatArray:
    """Watts of all replicas, and of the node's idle GPUs at the ``node`` boundary; shape (n,)."""
    total = power_w * cases.data_parallel
    idle = np.where(
        cases.node_boundary & (cases.node_gpus > cases.occupied_gpus),
        cases.node_gpus - cases.occupied_gpus,
        0.0,
    )
    return total + idle * cases.of_gpu(lambda gpu: gpu.idle_power_w or 0.1 * gpu.tdp_w)
