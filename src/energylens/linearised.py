"""Relative least squares with a prior and bounds, solved in steps that are linear.

The laws of joules and of seconds are homogeneous in their coefficients, so that each Gauss-Newton
step is one non-negative least-squares problem, and what rows left out would change follows from
the last one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from energylens.cases import BoolArray, FloatArray, IntArray
from energylens.errors import FitError


def bounded(
    a: FloatArray,
    weights: FloatArray,
    mean: FloatArray,
    pull: FloatArray,
    least: FloatArray,
    what: str,
) -> FloatArray:
    """Least squares of ``a theta - 1`` and of the pull toward the mean, theta not below least."""
    from scipy.optimize import nnls

    root, tug = np.sqrt(weights), np.sqrt(pull)
    stacked = np.vstack([a * root[:, None], np.diag(tug)])
    # Columns differ by orders of magnitude where a term hardly occurs: NNLS wants them alike.
    size = np.sqrt((stacked**2).sum(axis=0))
    size[size == 0] = 1.0
    # What is solved for is how far each lies above its least.
    target = np.concatenate([root * (1.0 - a @ least), (mean - least) * tug])
    try:
        solution, _ = nnls(stacked / size, target, maxiter=100 * len(size))
    except RuntimeError as error:
        raise FitError(
            f"the least-squares problem did not converge; look for rows whose {what} is off by "
            "orders of magnitude (energylens check)"
        ) from error
    above: FloatArray = np.asarray(solution / size, dtype=np.float64)
    return least + above


def left_out_log(residual: FloatArray) -> FloatArray:
    """log(measured / predicted) of relative residuals."""
    logs: FloatArray = -np.log(np.maximum(1.0 + residual, 0.05))
    return logs


@dataclass(frozen=True, kw_only=True, eq=False)
class Linearised:
    """The minimum of a problem, linearised there: what it would have been without some rows.

    Exact for the coefficients that are not at their bound: leaving rows g out of a ridge fit with
    N = B^T B + prior changes their residuals to (I - B_g N^-1 B_g^T)^-1 r_g.
    """

    theta: FloatArray
    free: BoolArray  # which coefficients are off their bound
    slopes: FloatArray  # of predicted over measured, shape (n, terms)
    weights: FloatArray
    residual: FloatArray  # relative: predicted / measured - 1
    pull: FloatArray  # of the prior
    variance: float

    @cached_property
    def root(self) -> FloatArray:
        """Square roots of the weights."""
        return np.sqrt(self.weights)

    @cached_property
    def b(self) -> FloatArray:
        """Weighted slopes of the free coefficients."""
        weighted: FloatArray = self.slopes[:, self.free] * self.root[:, None]
        return weighted

    @cached_property
    def normal(self) -> FloatArray:
        """Second moments of the free coefficients, prior included."""
        moments: FloatArray = self.b.T @ self.b + np.diag(self.pull[self.free])
        return moments

    @cached_property
    def leverage(self) -> FloatArray:
        """How much of its own prediction each row is; at most 1."""
        own: FloatArray = (self.b * np.linalg.solve(self.normal, self.b.T).T).sum(axis=1)
        return own

    def without_rows(self) -> tuple[FloatArray, FloatArray]:
        """log(measured / predicted) of each row by a fit without it, and its leverage on that.

        The leverage is the variance that the coefficients add to the prediction, in units of that
        of a residual.
        """
        rest = np.maximum(1.0 - self.leverage, 1e-3)
        return left_out_log(self.residual / rest), self.leverage / rest

    def without_groups(self, group: IntArray) -> tuple[FloatArray, FloatArray]:
        """Leave out each row with all rows of its group.

        (I - B_g N^-1 B_g^T)^-1 r_g = r_g + B_g (N - B_g^T B_g)^-1 B_g^T r_g (Woodbury): one small
        system for each group, all solved at once.
        """
        order, starts, moment = self._moments(group)
        sorted_b = self.b[order]
        own = np.add.reduceat(sorted_b[:, :, None] * sorted_b[:, None, :], starts)
        inverse = np.linalg.inv(self.normal - own)
        place = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(order))))
        gain = np.einsum("ij,ijk->ik", sorted_b, inverse[place])
        together, leverage = np.empty_like(self.residual), np.empty_like(self.residual)
        together[order] = (gain * moment[place]).sum(axis=1)
        together += self.residual * self.root
        leverage[order] = (gain * sorted_b).sum(axis=1)
        return left_out_log(together / self.root), leverage

    def design_effect(self, group: IntArray) -> float:
        """How much larger the variance of predictions is because rows of one group err alike.

        The sandwich estimate of clusters (Liang and Zeger, 1986) over that of independent rows,
        averaged over the rows; not below 1, and 1 for fewer than three groups.
        """
        _, starts, moment = self._moments(group)
        count = len(starts)
        if count < 3:
            return 1.0
        pushed = np.linalg.solve(self.normal, moment.T)
        clustered = ((self.b @ pushed) ** 2).sum() * count / (count - 1)
        return float(max(clustered / (self.variance * self.leverage.sum()), 1.0))

    def _moments(self, group: IntArray) -> tuple[IntArray, IntArray, FloatArray]:
        """Rows in the order of their groups, where each starts, and its share of the gradient."""
        order = np.argsort(group, kind="stable")
        starts = np.flatnonzero(np.diff(group[order], prepend=-1))
        scaled = (self.residual * self.root)[order]
        return order, starts, np.add.reduceat(self.b[order] * scaled[:, None], starts)
