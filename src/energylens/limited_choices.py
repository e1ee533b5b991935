"""Choosing within a limit on time, among measured candidates.

In every scenario a limit on the mean time per output token is set at a quantile of those of its
candidates. A contestant predicts joules and time; of the candidates whose time it expects to be
within the limit with the probability asked, it takes the one with the fewest joules. Judged are
how often the choice keeps the limit, and what it costs over the best that does.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from energylens.cases import Cases, FloatArray, IntArray
from energylens.dataset import Dataset
from energylens.errors import FitError, UsageError
from energylens.evaluation.scoring import TIE_RATIO
from energylens.latency_fitting import fit_latency
from energylens.protocols import Estimator
from energylens.time_contestants import OnDatasheet, as_target

FOLDS = 5  # in which a learner's own error on rows left out is found
REACH_DOUBLINGS = 4.0  # of knobs, at which errors of two configurations have little in common
COMMON_RATIO = 0.6  # share of the variance of errors that a scenario's configurations share
RUN_MARGIN = 1.03  # of the limit, kept by choices that are going to be measured

Factory = Callable[[int], Estimator]


@dataclass(frozen=True, kw_only=True)
class LimitScore:
    """What one contestant did at one quantile.

    ``meets_ratio``: how often its choice kept the limit; regret and Top-1 are among choices that
    did.
    """

    quantile: float
    meets_ratio: float
    regret_mean_ratio: float
    regret_median_ratio: float
    top1_ratio: float

    def to_json(self) -> dict[str, float]:
        """Names and values."""
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True, eq=False)
class Limits:
    """Scores by contestant; ``scenarios`` were judged, over ``repeats`` draws of rows.

    ``between`` candidates with interpolated joules and times lie between two measured batches.
    """

    meet: float
    verify_runs: int
    scenarios: int
    repeats: int
    train: int
    between: int = 0
    scores: dict[str, tuple[LimitScore, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Guess:
    """What a contestant says of all rows: a score to be least, and time per token.

    ``upper_s`` is the time that is kept with the probability asked.
    """

    score: FloatArray
    middle_s: FloatArray
    upper_s: FloatArray
    correctable: bool = True


def judge_limits(
    dataset: Dataset,
    energy: Mapping[str, Factory],
    *,
    choose: Sequence[str],
    quantiles: Sequence[float],
    meet: float = 0.8,
    verify_runs: int = 0,
    between: int = 0,
    train: int = 50,
    repeats: int = 50,
    seed: int = 0,
) -> Limits:
    """Judge choices within limits on the mean time per output token.

    Parameters
    ----------
    dataset : Dataset
        Measured rows; those without a request latency or mean time per token are left out.
    energy : dict of str to callable
        Contestants for joules. "energylens" takes its times from the time law, learners from
        themselves, fitted to the ratio to the datasheet's time.
    choose : sequence of str
        The free knobs.
    quantiles : sequence of float
        Of the candidates' measured times, at which limits are set.
    meet : float
        Probability with which a choice shall keep its limit.
    verify_runs : int
        How many choices are measured before the answer, each correcting the guesses.
    between : int
        How many batch limits stand as candidates between two measured ones of a layout; their
        joules and times are interpolated, on logarithms. Nobody is fitted to them.
    train, repeats, seed : int
        As for ``few-shot``.

    Raises
    ------
    UsageError
        If a number is out of range, or no scenario has two candidates with times.
    """
    for name, value in (("--meet", meet), *(("--limit-quantiles", q) for q in quantiles)):
        if not 0.0 < value < 1.0:
            raise UsageError(f"{name} takes numbers between 0 and 1, not {value!r}")
    for name, count in (("--verify-runs", verify_runs), ("--between", between)):
        if count < 0:
            raise UsageError(f"{name} must be 0 or more, not {count}")
    c = dataset.cases
    measured = np.where(c.request_latency_s > 0, c.request_latency_s / c.output_tokens, c.tpot_s)
    known = np.flatnonzero(measured > 0)
    if len(known) < 2:
        raise UsageError("limits on time need rows with request_latency_s or a mean tpot_s")
    known = known[dataset.take(known).by_content]  # draws follow from what rows hold
    rows, times = dataset.take(known), measured[known]
    scenarios = rows.scenarios(choose)
    if not scenarios:
        raise UsageError(f"no two rows with times differ only in {', '.join(choose)}")
    observed = len(rows)
    train = min(train, observed - 1)
    if between:
        rows, times, scenarios = _interpolated(rows, times, scenarios, between)
    named: dict[str, dict[float, list[tuple[bool, float]]]] = {}
    for repeat in range(repeats):
        order = np.random.default_rng([seed, repeat]).permutation(observed)
        training = np.sort(order[:train])
        estimator_seed = int(np.random.default_rng([seed, repeat, 1]).integers(2**31))
        guesses = _guesses(rows, times, training, energy, meet, estimator_seed)
        for name, guess in guesses.items():
            record = named.setdefault(name, {q: [] for q in quantiles})
            for candidates in scenarios:
                for q in quantiles:
                    limit = float(np.quantile(times[candidates], q))
                    runs = verify_runs if guess.correctable else 0
                    record[q].append(_outcome(rows, times, guess, candidates, limit, runs))
    return Limits(
        meet=meet,
        verify_runs=verify_runs,
        scenarios=len(scenarios),
        repeats=repeats,
        train=train,
        between=between,
        scores={
            name: tuple(_score(q, outcomes) for q, outcomes in record.items())
            for name, record in named.items()
        },
    )


def _interpolated(
    rows: Dataset, times: FloatArray, scenarios: Sequence[IntArray], between: int
) -> tuple[Dataset, FloatArray, list[IntArray]]:
    """Add candidates between two measured batches of a layout, with joules and times between."""
    c = rows.cases
    layout = np.column_stack(
        [c.tensor_parallel, c.pipeline_parallel, c.expert_parallel, c.data_parallel]
    )
    layout = np.column_stack(
        [
            layout,
            c.precision_index,
            c.gpu_index,
            np.nan_to_num(c.power_cap_w),
            np.nan_to_num(c.clock_mhz),
        ]
    )
    low: list[int] = []
    high: list[int] = []
    grown: list[list[int]] = []
    for candidates in scenarios:
        start = len(low)
        for kind in np.unique(layout[candidates], axis=0):
            mine = candidates[(layout[candidates] == kind).all(axis=1)]
            mine = mine[np.argsort(c.batch_size[mine], kind="stable")]
            for left, right in itertools.pairwise(mine):
                if c.batch_size[right] > c.batch_size[left] + between:
                    low += [int(left)] * between
                    high += [int(right)] * between
        grown.append([*candidates.tolist(), *range(len(rows) + start, len(rows) + len(low))])
    a, b = np.array(low, dtype=np.intp), np.array(high, dtype=np.intp)
    share = np.tile(np.arange(1, between + 1) / (between + 1), len(low) // between)

    def mixed(column: FloatArray) -> FloatArray:
        return np.exp((1.0 - share) * np.log(column[a]) + share * np.log(column[b]))

    whole = rows.take(np.concatenate([np.arange(len(rows)), a]))
    columns = {
        name: np.concatenate([getattr(c, name), mixed(getattr(c, name))])
        for name in ("batch_size", "mean_batch_size", "output_tokens")
    }
    dense = replace(
        whole,
        cases=whole.cases.replace(**columns),
        energy_per_request_j=np.concatenate(
            [rows.energy_per_request_j, mixed(rows.energy_per_request_j)]
        ),
    )
    return (
        dense,
        np.concatenate([times, mixed(times)]),
        [np.array(indices, dtype=np.intp) for indices in grown],
    )


def _score(quantile: float, outcomes: Sequence[tuple[bool, float]]) -> LimitScore:
    met = np.array([m for m, _ in outcomes])
    regret = np.array([r for m, r in outcomes if m])
    empty = not len(regret)
    return LimitScore(
        quantile=quantile,
        meets_ratio=float(met.mean()),
        regret_mean_ratio=float("nan") if empty else float(regret.mean()),
        regret_median_ratio=float("nan") if empty else float(np.median(regret)),
        top1_ratio=float((regret <= 1e-9).sum() / len(met)),
    )


def _guesses(
    rows: Dataset,
    times: FloatArray,
    training: IntArray,
    energy: Mapping[str, Factory],
    meet: float,
    seed: int,
) -> dict[str, _Guess]:
    """What every contestant says of all rows, fitted to the training rows."""
    hidden = rows.cases.replace(
        request_latency_s=np.nan, tpot_s=np.nan, ttft_s=np.nan, median_itl_s=np.nan
    )
    seen = rows.take(training)
    tokens = rows.cases.output_tokens
    latency = replace(
        seen, cases=seen.cases.replace(request_latency_s=times[training] * tokens[training])
    )
    law = fit_latency(latency, "latency")
    middle = law.predict_s(hidden, "latency") / tokens
    upper = middle * np.exp(law.logs(hidden, meet, "latency"))
    guesses: dict[str, _Guess] = {}
    for name, make in energy.items():
        estimator = make(seed)
        if estimator.ranks_only and name not in ("fewest-gpus", "largest-batch-per-gpu"):
            continue
        try:
            joules = estimator.fit(seen).predict_energy_j(hidden)
        except FitError:
            continue
        if name.startswith("energylens") or name == "fewest-gpus":
            guesses[name] = _Guess(score=joules, middle_s=middle, upper_s=upper)
        elif name == "largest-batch-per-gpu":
            # Throughput alone knows no limit.
            nothing = np.zeros(len(rows))
            guesses["throughput-only"] = _Guess(
                score=joules, middle_s=nothing, upper_s=nothing, correctable=False
            )
        elif not estimator.ranks_only:
            own = _own_times(latency, hidden, make, seed, meet)
            if own is not None:
                guesses[name] = _Guess(
                    score=joules, middle_s=own[0] / tokens, upper_s=own[1] / tokens
                )
    guesses["latency-only"] = _Guess(
        score=middle, middle_s=middle, upper_s=upper, correctable=False
    )
    return guesses


def _own_times(
    latency: Dataset, hidden: Cases, make: Factory, seed: int, meet: float
) -> tuple[FloatArray, FloatArray] | None:
    """A learner's own request latency, and what is kept with the probability asked."""
    seconds = as_target(latency, "latency")

    def fitted(part: Dataset) -> Any:
        return OnDatasheet(inner=make(seed), target="latency").fit(part)

    try:
        middle = fitted(seconds).predict_energy_j(hidden)
        fold = np.random.default_rng([seed, 2]).permutation(len(seconds)) % FOLDS
        logs = np.empty(len(seconds))
        for k in range(FOLDS):
            left = np.flatnonzero(fold == k)
            predicted = fitted(seconds.take(np.flatnonzero(fold != k))).predict_energy_j(
                seconds.take(left).cases
            )
            logs[left] = np.log(seconds.energy_per_request_j[left] / predicted)
    except FitError:
        return None
    return middle, middle * np.exp(np.quantile(logs, meet))


def _outcome(
    rows: Dataset,
    times: FloatArray,
    guess: _Guess,
    candidates: IntArray,
    limit: float,
    runs: int,
) -> tuple[bool, float]:
    """Whether the choice keeps the limit, and what it costs over the best that does."""
    joules, truth = rows.energy_per_request_j[candidates], times[candidates]
    least = float(joules[truth <= limit].min())
    if runs:
        choice = _measured(
            rows.cases.take(candidates), joules, truth, guess, candidates, limit, runs
        )
    else:
        choice = _choice(guess.score[candidates], guess.upper_s[candidates], limit)
    return bool(truth[choice] <= limit), float(joules[choice] / least - 1.0)


def _choice(score: FloatArray, upper_s: FloatArray, limit: float) -> int:
    """The least score among those expected to keep the limit; the fastest where none is.

    Of equal scores the one that uses most of the limit, as a rule that counts GPUs alone would
    take the larger batch.
    """
    within = upper_s <= limit
    if not within.any():
        return int(np.argmin(upper_s))
    least = score[within].min()
    tied = np.flatnonzero(within & (score <= least + TIE_RATIO * abs(least)))
    return int(tied[np.argmax(upper_s[tied])])


def _measured(
    cases: Cases,
    joules: FloatArray,
    truth: FloatArray,
    guess: _Guess,
    candidates: IntArray,
    limit: float,
    runs: int,
) -> int:
    """Measure the choice, correct, choose again; answer with the best measured one that keeps.

    Errors of time and of joules are taken to be a common part and one that configurations close
    to each other share (a Gaussian process in doublings of the knobs).
    """
    place = np.log2(
        np.column_stack(
            [
                cases.batch_size / cases.data_parallel, cases.tensor_parallel,
                cases.pipeline_parallel, cases.data_parallel, cases.expert_parallel,
            ]
        )
    )  # fmt: skip
    distance = np.abs(place[:, None] - place[None]).sum(axis=2)
    shared = COMMON_RATIO + (1.0 - COMMON_RATIO) * np.exp(-distance / REACH_DOUBLINGS)
    middle, score = guess.middle_s[candidates], guess.score[candidates]
    done: list[int] = []
    for _ in range(min(runs, len(cases))):
        known = np.array(done, dtype=np.intp)
        time_s, expected_j = middle, score
        if len(known):
            gain = shared[:, known] @ np.linalg.inv(
                shared[np.ix_(known, known)] + 1e-3 * np.eye(len(known))
            )
            time_s = middle * np.exp(gain @ np.log(truth[known] / middle[known]))
            expected_j = score * np.exp(gain @ np.log(joules[known] / score[known]))
        kept = known[truth[known] <= limit]
        # Worth a run: what may be better than the best so far, and was not measured yet.
        open_ = np.ones(len(cases), dtype=np.bool_)
        open_[known] = False
        within = open_ & (time_s * RUN_MARGIN <= limit)
        if len(kept):
            within &= expected_j < joules[kept].min()
            if not within.any():
                break
        if within.any():
            done.append(int(np.flatnonzero(within)[np.argmin(expected_j[within])]))
        elif open_.any():
            done.append(int(np.flatnonzero(open_)[np.argmin(time_s[open_])]))
    known = np.array(done, dtype=np.intp)
    kept = known[truth[known] <= limit]
    if len(kept):
        return int(kept[np.argmin(joules[kept])])
    return int(known[np.argmin(truth[known])])
