r"""The best few of many columns, by their Gram matrix alone.

With :math:`a_i = x_i / y_i` (every candidate term over the measured joules) the loss of
a set S of terms is :math:`\min_{c \ge 0} \sum_i w_i (a_{iS} c - 1)^2`. Everything about it is in
:math:`A^T A` and :math:`A^T 1`, computed once; thousands of sets are then tried in milliseconds.
A set whose unconstrained solution has a coefficient at or below zero has the loss of a smaller
set, so only sets with a positive solution are kept: this is exact for the non-negative problem.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from energylens.cases import FloatArray

Subset = tuple[int, ...]

PERFECT = 1e-14  # mean squared relative error below which a fit is exact
RIDGE = 1e-11  # of the unit diagonal: what floating point leaves of a Gram matrix
SAME_COLUMN = 1e-9  # 1 - cosine below which two columns are one
ROUNDS = 20  # of swaps for one size; they stop by themselves after a few


@dataclass(frozen=True, kw_only=True, eq=False)
class Gram:
    """Inner products of columns scaled to length 1, and of each with the target.

    Attributes
    ----------
    products : ndarray, shape (p, p)
    target : ndarray, shape (p,)
    target_square : float
        Squared length of the target: the loss of the empty set.
    rows : int
    penalties : ndarray, shape (p,)
        What the score of a set pays for each member.
    """

    products: FloatArray
    target: FloatArray
    target_square: float
    rows: int
    penalties: FloatArray

    @classmethod
    def of(cls, columns: FloatArray, target: FloatArray, penalties: FloatArray) -> Gram:
        """Compute it for columns, shape (n, p), a target, shape (n,), and penalties, (p,)."""
        size = np.sqrt((columns**2).sum(axis=0))
        scaled = columns / np.where(size > 0, size, 1.0)
        products = scaled.T @ scaled
        products[np.diag_indices_from(products)] += RIDGE
        return cls(
            products=products,
            target=scaled.T @ target,
            target_square=float(target @ target),
            rows=len(target),
            penalties=penalties,
        )

    def scores(self, subsets: NDArray[np.intp], losses: FloatArray) -> FloatArray:
        """``n log(loss / n)`` plus penalties of each subset, shape (m,); lower is better."""
        scores: FloatArray = self._fit(losses) + self.penalties[subsets].sum(axis=1)
        return scores

    def _fit(self, losses: FloatArray) -> FloatArray:
        return self.rows * np.log(np.maximum(losses / self.rows, PERFECT))

    def losses(self, subsets: NDArray[np.intp]) -> FloatArray:
        """Loss of each subset, shape (m,); infinite unless all coefficients are positive.

        Parameters
        ----------
        subsets : ndarray of int, shape (m, k)
        """
        square = self.products[subsets[:, :, None], subsets[:, None, :]]
        side = self.target[subsets]
        solution = np.linalg.solve(square, side[:, :, None])[:, :, 0]
        loss = self.target_square - (side * solution).sum(axis=1)
        return np.where((solution > 0).all(axis=1), np.maximum(loss, 0.0), np.inf)

    def additions(self, subsets: NDArray[np.intp]) -> FloatArray:
        """Score of each subset with each column added, shape (m, p).

        Infinite where a coefficient would not be positive, and for columns already there.

        Parameters
        ----------
        subsets : ndarray of int, shape (m, k); k may be 0
        """
        m, k = subsets.shape
        if k == 0:
            gain = np.where(self.target > 0, self.target**2 / np.diag(self.products), np.nan)
            loss = np.where(np.isnan(gain), np.inf, self.target_square - gain)
            return self._added(subsets, np.broadcast_to(loss, (m, len(self.target))))
        inverse = np.linalg.inv(self.products[subsets[:, :, None], subsets[:, None, :]])
        side = self.target[subsets]
        own = np.einsum("mij,mj->mi", inverse, side)
        cross = self.products[subsets]  # (m, k, p)
        lean = inverse @ cross  # how much of each column the subset has already
        left = np.diag(self.products) - (cross * lean).sum(axis=1)
        pull = self.target - np.einsum("mkp,mk->mp", cross, own)
        left = np.where(left > 1e-10, left, np.nan)
        coefficient = pull / left
        loss = self.target_square - (side * own).sum(axis=1)[:, None] - pull * coefficient
        positive = coefficient > 0
        positive &= (own[:, :, None] - lean * coefficient[:, None, :] > 0).all(axis=1)
        loss = np.where(positive, np.maximum(loss, 0.0), np.inf)
        np.put_along_axis(loss, subsets, np.inf, axis=1)
        return self._added(subsets, loss)

    def _added(self, subsets: NDArray[np.intp], losses: FloatArray) -> FloatArray:
        paid: FloatArray = self.penalties[subsets].sum(axis=1)
        scores: FloatArray = self._fit(losses) + paid[:, None] + self.penalties
        return scores


def distinct_columns(columns: FloatArray) -> NDArray[np.intp]:
    """Places of columns worth searching: finite, not all zero, none a multiple of one before.

    Parameters
    ----------
    columns : ndarray, shape (n, p)
    """
    size = np.sqrt((columns**2).sum(axis=0))
    usable = np.flatnonzero(np.isfinite(size) & (size > 0))
    directions = columns[:, usable] / size[usable]
    same = np.triu(directions.T @ directions > 1.0 - SAME_COLUMN, 1).any(axis=0)
    return np.asarray(usable[~same])


def best_subsets(gram: Gram, largest: int, *, width: int) -> list[Subset]:
    """Find the best subset of each size.

    Forward steps from the ``width`` best subsets of the size below; every swap of one member for
    one outsider, until none helps; then backward from the largest, with swaps again.

    Parameters
    ----------
    largest : int
        Size to stop at.
    width : int
        How many subsets of each size are carried along.

    Returns
    -------
    list of tuple of int
        By size, from 1; ascending places. Shorter than ``largest`` where no larger subset has
        all coefficients positive.
    """
    empty = np.zeros((1, 0), dtype=np.intp)
    beams = [empty]
    for _ in range(min(largest, len(gram.target))):
        beam = _swapped(gram, *_grown(gram, beams[-1], width), width)
        if len(beam) == 0:
            break
        beams.append(beam)
    for k in range(len(beams) - 2, 0, -1):
        pool = np.concatenate([beams[k], _shrunk(beams[k + 1])])
        beams[k] = _swapped(gram, *_best(pool, gram.scores(pool, gram.losses(pool)), width), width)
    best = [beam[np.argmin(gram.scores(beam, gram.losses(beam)))] for beam in beams[1:]]
    return [tuple(subset.tolist()) for subset in best]


def _best(
    subsets: NDArray[np.intp], scores: FloatArray, width: int
) -> tuple[NDArray[np.intp], FloatArray]:
    """The ``width`` distinct subsets of lowest finite score, members ascending."""
    finite = np.flatnonzero(np.isfinite(scores))
    # Equal subsets have scores that differ by rounding at most, so they sit side by side.
    order = finite[np.argsort(scores[finite], kind="stable")][: 8 * width]
    members = np.sort(subsets[order], axis=1)
    _, first = np.unique(members, axis=0, return_index=True)
    first = np.sort(first)[:width]
    return members[first], scores[order][first]


def _grown(gram: Gram, beam: NDArray[np.intp], width: int) -> tuple[NDArray[np.intp], FloatArray]:
    return _flattened(beam, gram.additions(beam), width)


def _flattened(
    stems: NDArray[np.intp], scores: FloatArray, width: int
) -> tuple[NDArray[np.intp], FloatArray]:
    """The best of stems (m, k), each with one column added at the scores, shape (m, p)."""
    flat = scores.reshape(-1)
    take = min(16 * width, flat.size)
    places = np.argpartition(flat, take - 1)[:take]
    stem, added = np.divmod(places, scores.shape[1])
    return _best(np.column_stack([stems[stem], added]), flat[places], width)


def _shrunk(beam: NDArray[np.intp]) -> NDArray[np.intp]:
    """Every subset with one member less, shape (m k, k - 1)."""
    k = beam.shape[1]
    keep = np.array([[j for j in range(k) if j != i] for i in range(k)], dtype=np.intp)
    return beam[:, keep.reshape(k, k - 1)].reshape(len(beam) * k, k - 1)


def _swapped(
    gram: Gram, beam: NDArray[np.intp], scores: FloatArray, width: int
) -> NDArray[np.intp]:
    """Exchange one member for one outsider in every way, until the best few stay the same."""
    for _ in range(ROUNDS):
        if len(beam) == 0:
            break
        stems = np.unique(_shrunk(beam), axis=0)
        near, near_scores = _flattened(stems, gram.additions(stems), width)
        merged, merged_scores = _best(
            np.concatenate([beam, near]), np.concatenate([scores, near_scores]), width
        )
        if merged.shape == beam.shape and (merged == beam).all():
            break
        beam, scores = merged, merged_scores
    return beam
