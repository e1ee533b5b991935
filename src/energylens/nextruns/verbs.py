r"""Which runs next, and when to stop: measurements chosen for what they would tell.

Two questions, and a part of each batch for each of them.

*Which coefficients?* A row that the law predicts as E tells of the twelve through
:math:`a = \partial \log E / \partial \theta`. Rows of one LLM and workload share an error of
spread b besides their own of spread w; with n of them measured, whose slopes add to v, one more
adds the rank-one term :math:`h h^\top / t^2` to the information about the coefficients, with

.. math:: h = a - \rho_n v, \qquad t^2 = w^2 (1 + \rho_n), \qquad
          \rho_n = \frac{b^2}{w^2 + n b^2}

and :math:`\log(1 + h^\top S h / t^2)` to its log determinant, S being the inverse information. The
datasheet's prior is the information before the first row; because the slopes depend on theta, the
rise is averaged over draws of it (Bayesian D-optimality: Chaloner and Verdinelli, Statistical
Science 10(3), 1995), and a greedy choice is improved by exchanges (Fedorov, *Theory of Optimal
Experiments*, 1972). Runs come whole and each at most once, so nothing is left to round.

*Which candidate?* The knowledge gradient with correlated beliefs (Frazier, Powell and Dayanik,
INFORMS Journal on Computing 21(4), 2009): the run after which the expected regret of choosing the
configuration with the lowest expected energy, averaged over scenarios, is lowest.

What is believed of a candidate is the law, its coefficients uncertain as the fit left them, plus
what its measured neighbours say of its own residual (kriging). :func:`verdict` draws from that
belief how probable it is that the winner is the best, and what regret to expect now and after more
runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from energylens import table
from energylens.cases import BoolArray, Cases, IntArray
from energylens.dataset import Dataset
from energylens.errors import InfeasibleError, UsageError
from energylens.fitting.problem import ENOUGH
from energylens.nextruns.answers import Batch, Verdict
from energylens.nextruns.deciding import (
    REPEAT_RATIO,
    _Belief,
    _best_linear,
    _contenders,
    _most_deciding,
    _within,
)
from energylens.nextruns.ground import _Ground
from energylens.nextruns.information import (
    Information,
    _in_order,
    _most_telling,
    _named,
    _pool,
    _what_it_tells,
)
from energylens.selection import probabilities_of_best

DEFAULT_WEIGHT = 0.5  # share of a batch that tells the candidates apart
DEFAULT_MORE = 4  # runs that a verdict looks ahead
DEFAULT_TARGET_RATIO = 0.01  # expected regret at which one may stop

THETA_DRAWS = 8  # of the coefficients, over which information is averaged
SAMPLES = 1000  # joint draws of a verdict
LARGEST_VERDICT = 8000  # ... and a verdict


# ------------------------------------------------------------------------------------ the verbs


def next_runs(
    candidates: Cases,
    measured: Dataset | None = None,
    *,
    choose: Sequence[str],
    count: int,
    seed: int = 0,
    weight: float = DEFAULT_WEIGHT,
    workload: IntArray | None = None,
    done: IntArray | None = None,
) -> Batch:
    """Choose the next measurements.

    Parameters
    ----------
    candidates : Cases
        n cases that could be measured. Those that do not fit in memory are left out, unless
        they have an observed ``mean_batch_size``, which says that they ran.
    measured : Dataset, optional
        m rows measured already.
    choose : sequence of str
        The free knobs, names from :data:`energylens.dataset.KNOBS`: candidates that differ in
        them alone compete.
    count : int
        Runs to choose; fewer come back if fewer are left.
    seed : int
        Source of the draws of coefficients.
    weight : float
        Share of the runs that are to tell the candidates apart, rather than the coefficients.
    workload : ndarray of int, shape (n,), optional
        Which workload each candidate serves (as ``Dataset.workload_index``), where mean
        lengths scatter. By default equal lengths are one workload.
    done : ndarray of int, shape (m,), optional
        Which candidate each measured row is of, -1 for none. By default the one with the same
        knobs and engine and the nearest lengths, within a ratio of 1.25.

    Raises
    ------
    UsageError
        If there is no candidate, or an argument is out of its range.
    InfeasibleError
        If no candidate is left to measure.
    """
    _check(count=count, weight=weight)
    ground = _Ground.of(candidates, measured, choose, workload, done)
    return _next_runs(ground, count, seed, weight)


def _next_runs(ground: _Ground, count: int, seed: int, weight: float) -> Batch:
    if not ground.open.any():
        measured = len(np.unique(ground.done[ground.done >= 0]))
        raise InfeasibleError(
            f"none of the {ground.n} candidates is left to measure: {measured} "
            f"are measured and {int((~ground.feasible).sum())} do not fit in memory; widen the "
            "candidates"
        )
    count = min(count, int(ground.open.sum()))
    # Before the first row every candidate might be the best: learn what the rows have in common.
    sure = len(ground.spot) > 0 and len(ground.scenarios) > 0
    for_choice = int(np.floor(weight * count + 0.5)) if sure else 0
    theta = ground.draw_theta(THETA_DRAWS, np.random.default_rng(seed))
    contenders = _contenders(ground, theta) if for_choice else []
    pool = _pool(ground, theta, contenders)
    rows = np.concatenate([pool, np.arange(ground.n, len(ground.cases))])
    cost = ground.batch_energy_j[pool]
    kin = np.unique(ground.kin[rows], return_inverse=True)[1].reshape(-1)
    before = Information(ground.x[rows], kin, theta, within=ground.within, between=ground.between)
    for place in range(len(pool), len(rows)):
        before.add(place)

    after, free = before.copy(), np.ones(len(pool), dtype=np.bool_)
    told = _most_telling(after, free, count - for_choice, cost)
    chosen = _most_deciding(ground, contenders, pool, free, for_choice) if for_choice else []
    for deciding in chosen:
        after.add(deciding.place)
    # Where nothing is left to decide, learn instead.
    told += _most_telling(after, free, count - len(told) - len(chosen), cost, exchanges=0)

    known, runs = before.copy(), []
    for place in _in_order(known, told, cost):
        gain, was = float(known.gains(np.array([place]))[0]), known.spreads()
        known.add(place)
        why = _what_it_tells(was, known.spreads())
        runs.append(ground.run(int(pool[place]), "coefficients", why, gain))
    runs += [ground.run(int(pool[one.place]), "choice", one.why, one.gain) for one in chosen]
    spoken: BoolArray = np.any(ground.x[: ground.n] > 0, axis=0)
    return Batch(
        runs=tuple(runs),
        spread_before=_named(before.spreads(), spoken),
        spread_after=_named(after.spreads(), spoken),
        information_nats=float((after.log_det() - before.log_det()).mean()),
        choose=ground.choose,
        weight=weight,
        seed=seed,
        candidates=ground.n,
        infeasible=int((~ground.feasible).sum()),
        measured_rows=len(ground.cases) - ground.n,
    )


def verdict(
    candidates: Cases,
    measured: Dataset | None = None,
    *,
    choose: Sequence[str],
    more_runs: int = DEFAULT_MORE,
    seed: int = 0,
    weight: float = DEFAULT_WEIGHT,
    target_ratio: float = DEFAULT_TARGET_RATIO,
    workload: IntArray | None = None,
    done: IntArray | None = None,
) -> Verdict:
    """Say how sure the choice is, and what more runs would change.

    The regret after more runs is a preposterior estimate: for each joint draw of all energies
    the runs that :func:`next_runs` would choose are "measured" in it, the energies are estimated
    anew (best linear estimate), and the configuration then chosen is compared with the best
    of the draw.

    Parameters
    ----------
    candidates, measured, choose, seed, weight, workload, done
        As in :func:`next_runs`.
    more_runs : int
        Runs to look ahead.
    target_ratio : float
        Expected regret, over the joules of the best, at which one may stop.

    Raises
    ------
    UsageError
        If there is no candidate, no scenario with two or more of them, or an argument is out
        of its range.
    """
    _check(count=max(more_runs, 1), weight=weight)
    if not 0.0 < target_ratio < 1.0:
        raise UsageError(f"target_ratio must lie between 0 and 1; given {target_ratio}")
    ground = _Ground.of(candidates, measured, choose, workload, done)
    if not ground.scenarios:
        raise UsageError(
            "there must be two or more feasible candidates that differ only in "
            f"{', '.join(ground.choose)}: free other knobs, or bring more candidates"
        )
    rng = np.random.default_rng(seed)
    every = _contenders(ground, ground.draw_theta(THETA_DRAWS, rng))
    judged = _within(every, LARGEST_VERDICT)
    contenders = [every[s] for s in judged]
    runs = np.empty(0, dtype=np.intp)
    if more_runs > 0 and ground.open.any():
        runs = _next_runs(ground, more_runs, seed, weight).index
    at = np.concatenate([*contenders, runs])
    belief = _Belief.of(ground, at)
    draws = belief.draw(ground, SAMPLES, rng)
    split = len(at) - len(runs)
    outcomes = draws[:, split:] + rng.normal(0.0, REPEAT_RATIO, (SAMPLES, len(runs)))
    updated = _best_linear(draws[:, :split], outcomes)

    choices, later_j, later = [], [], []
    starts = np.cumsum([0, *(len(rows) for rows in contenders)])
    for s, rows in enumerate(contenders):
        part = slice(starts[s], starts[s + 1])
        joules, lowest = np.exp(draws[:, part]), np.exp(draws[:, part].min(axis=1))
        winner = int(np.argmin(belief.mean[part]))
        lost = joules[:, winner] / lowest - 1.0
        then = joules[np.arange(SAMPLES), np.argmin(updated[:, part], axis=1)] / lowest - 1.0
        # In joules of what the best takes in the middle of the draws: with few rows their mean is
        # that of the few which are far too dear.
        typical_j = float(np.median(lowest))
        later_j.append(typical_j * float(then.mean()))
        later.append(float(then.mean()))
        choices.append(
            ground.choice(
                int(judged[s]),
                int(rows[winner]),
                probability_best_ratio=float(probabilities_of_best(joules)[winner]),
                expected_regret_j=typical_j * float(lost.mean()),
                expected_regret_ratio=float(lost.mean()),
            )
        )
    regret_j = float(np.mean([choice.expected_regret_j for choice in choices]))
    regret = float(np.mean([choice.expected_regret_ratio for choice in choices]))
    return Verdict(
        choices=tuple(choices),
        scenarios=len(ground.scenarios),
        probability_best_ratio=float(np.mean([c.probability_best_ratio for c in choices])),
        expected_regret_j=regret_j,
        expected_regret_ratio=regret,
        more_runs=len(runs),
        change_j=min(float(np.mean(later_j)) - regret_j, 0.0),
        change_ratio=min(float(np.mean(later)) - regret, 0.0),
        target_ratio=target_ratio,
        measured_rows=len(ground.cases) - ground.n,
        seed=seed,
        lacking=_lacking(ground),
        unclaimed=table.unclaimed(measured) if measured is not None else "",
    )


def _lacking(ground: _Ground) -> str:
    """Say which rows are missing before one may stop; empty if none are.

    How far the law is off on a GPU type and an engine can be told from rows of them alone. Where
    all that competes is measured, no law is asked.
    """
    competing = np.concatenate(ground.scenarios)
    if np.isin(competing, ground.done).all():
        return ""
    engines, kinds = ground.engine_names, ground.cases.gpu_index
    for gpu, engine in sorted({(int(kinds[row]), engines[row]) for row in competing}):
        same = kinds[ground.n :] == gpu
        if engine:
            same &= (engines[ground.n :] == engine) | (engines[ground.n :] == "")
        rows, most = int(same.sum()), ENOUGH
        if rows < most:
            of = f"of {ground.cases.gpus[gpu].id}" + (
                f" with the engine {engine}" if engine else ""
            )
            number = f"only {rows}" if rows else "no"
            return (
                f"{number} measured row{'s are' if rows > 1 else ' is'} {of}, and it takes {most} "
                "to know how far the law is off there"
            )
    return ""


def _check(*, count: int, weight: float) -> None:
    if count < 1:
        raise UsageError(f"the number of runs must be 1 or more, not {count}")
    if not 0.0 <= weight <= 1.0:
        raise UsageError(f"weight must lie between 0 and 1, both included; given {weight}")
