"""The sequences that run in a replica: a birth-death chain, solved in closed form.

Born at the rate of arrivals, they die the faster the more of them share a step; beyond the slots
they wait.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from energylens.cases import FloatArray

LOG_NEVER = -32.0  # of a share that no double tells from none


@dataclass(frozen=True, eq=False)
class Chain:
    """The stationary chain of n configurations; each of shape (n,).

    ``full`` is the probability that all slots are taken, ``queue`` how many wait then, on average
    over all time; ``ratio`` below 1 where there is a steady state at all.
    """

    empty: FloatArray
    full: FloatArray
    mean: FloatArray
    variance: FloatArray
    queue: FloatArray
    ratio: FloatArray


def batch_chain(
    offered: FloatArray,
    alpha: FloatArray,
    beta: FloatArray,
    slots: FloatArray,
    ratio: FloatArray,
    *,
    moments: bool,
) -> Chain:
    """Solve births at ``offered`` (in tokens' steps) against deaths at n / (alpha + beta n).

    The weights of n are those of a negative binomial with r = alpha / beta + 1 and
    p = offered beta, so that sums up to the slots are incomplete beta functions; beyond the slots
    they fall by ``ratio``, that of arrivals to what full slots serve: below 1 exactly below
    saturation, whatever the line near the mean would say of full slots. Where the slots are hardly
    ever taken (Chernoff's bound of the tail of the second moment says so) the sums have no end.
    """
    r = alpha / beta + 1.0
    odds = offered * beta
    p = np.minimum(np.maximum(odds, 1e-12), 0.999999)
    steady = ratio < 1.0
    log_sum = -r * np.log1p(-p)
    left = np.where(steady, 1.0 - ratio, 1.0)
    most, more = np.maximum(slots - 1.0, 1e-9), r + 2.0
    share = most / (most + more)
    tail = -most * np.log(share / p) - more * np.log((1.0 - share) / (1.0 - p))
    ended = steady & ((share <= p) | (tail > LOG_NEVER + 2.0 * np.log(left)))
    ends = np.flatnonzero(ended)
    empty = np.where(steady, np.exp(-log_sum), 0.0)
    held, first, second, waiting, at_full = _up_to(
        r[ends], p[ends], odds[ends], ratio[ends], log_sum[ends], slots[ends], moments=moments
    )
    empty[ends] /= held
    if not moments:
        zero = np.zeros_like(empty)
        return Chain(empty, zero, zero, zero, zero, ratio)
    up = p / (1.0 - p)
    mean = np.where(steady, r * up, slots)
    variance = np.where(steady, r * up / (1.0 - p), 0.0)
    mean[ends] = (first + slots[ends] * waiting) / held
    variance[ends] = np.maximum((second + slots[ends] ** 2 * waiting) / held - mean[ends] ** 2, 0.0)
    full, queue = np.where(steady, 0.0, 1.0), np.where(steady, 0.0, np.inf)
    full[ends] = (at_full + waiting) / held
    queue[ends] = waiting / left[ends] / held
    return Chain(empty, full, mean, variance, queue, ratio)


def _up_to(
    r: FloatArray,
    p: FloatArray,
    odds: FloatArray,
    ratio: FloatArray,
    log_sum: FloatArray,
    slots: FloatArray,
    *,
    moments: bool,
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray, FloatArray]:
    """Sums of the weights of a steady chain: all, times n and n^2 up to the slots; beyond; at."""
    from scipy.special import betainc, gammaln

    below = betainc(r, slots + 1.0, 1.0 - p)  # share of the sum at n <= B
    log_full = (
        gammaln(slots + r) - gammaln(slots + 1.0) - gammaln(r)
        + slots * np.log(np.maximum(odds, 1e-300)) - log_sum
    )  # fmt: skip
    at_full = np.exp(np.minimum(log_full, 700.0))
    waiting = at_full * ratio / (1.0 - ratio)
    held = below + waiting
    if not moments:
        return held, held, held, waiting, at_full
    first = r * p / (1.0 - p) * betainc(r + 1.0, slots, 1.0 - p)
    second = r * (r + 1.0) * (p / (1.0 - p)) ** 2
    second = second * betainc(r + 2.0, np.maximum(slots - 1.0, 1e-9), 1.0 - p)
    second = np.where(slots > 1.0, second, 0.0) + first
    return held, first, second, waiting, at_full
