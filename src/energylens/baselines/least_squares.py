"""The two linear fits that several contestants share.

Both have one solution for every design, whatever its rank, and it moves by no more than a
millionth where the last bit of the rows does: another processor or another BLAS gives the same
figures.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from energylens.cases import FloatArray
from energylens.errors import FitError

# Weight of the penalty on coefficients of unit columns: a hundred-millionth of a solution that the
# rows determine, and the least of all solutions where they do not.
DAMPING = 1e-4
# Leave-one-out errors this close, relatively, are a tie, which the larger penalty wins.
SAME_ERROR_RATIO = 1e-6


def fit_nonnegative(design: FloatArray, target: FloatArray) -> FloatArray:
    """Minimise ``|design x - target|`` over x >= 0; of many solutions, the least.

    Where columns cannot be told apart they share what they explain, instead of whichever the
    solver reached first taking it all.

    Parameters
    ----------
    design : ndarray of float, shape (n, k)
        Columns may differ by many decades, and may be zero, which gives a zero.
    target : ndarray of float, shape (n,)
        What to reach.

    Returns
    -------
    ndarray of float, shape (k,)
        The solution.

    Raises
    ------
    FitError
        If the solver does not converge.
    """
    size = np.linalg.norm(design, axis=0)
    size = np.where(size > 0, size, 1.0)
    try:
        scaled, _ = nnls(
            np.vstack([design / size, DAMPING * np.eye(design.shape[1])]),
            np.concatenate([target, np.zeros(design.shape[1])]),
        )
    except RuntimeError as error:
        raise FitError(
            f"non-negative least squares did not converge on these {len(target)} rows"
        ) from error
    return np.asarray(scaled / size, dtype=np.float64)


@dataclass(frozen=True, kw_only=True, eq=False)
class Ridge:
    """A fitted ridge regression."""

    mean: FloatArray
    spread: FloatArray
    slopes: FloatArray
    intercept: float

    def predict(self, columns: FloatArray) -> FloatArray:
        """Predict from columns of shape (n, k); shape (n,)."""
        predicted: FloatArray = self.intercept + (columns - self.mean) / self.spread @ self.slopes
        return predicted


def fit_ridge(columns: FloatArray, target: FloatArray) -> Ridge:
    """Ridge regression on standardised columns; the penalty is chosen by leave-one-out.

    The leave-one-out errors are the exact closed form through the hat matrix (Hastie,
    Tibshirani and Friedman, The Elements of Statistical Learning, eq. 7.64). Of errors that tie
    the largest penalty is taken.
    """
    mean, spread = columns.mean(axis=0), columns.std(axis=0)
    # A column that does not move in training gets no slope, wherever it moves later.
    moves = spread > 1e-9 * np.maximum(np.abs(mean), 1.0)
    spread = np.where(moves, spread, 1.0)
    standard = np.where(moves, (columns - mean) / spread, 0.0)
    intercept = float(target.mean())
    left, singular, right = np.linalg.svd(standard, full_matrices=False)
    along = left.T @ (target - intercept)
    best_error, best_slopes = np.inf, np.zeros(columns.shape[1])
    for penalty in 10.0 ** np.arange(3.0, -4.25, -0.5):
        shrunk = singular**2 / (singular**2 + penalty)
        leverage = (left**2) @ shrunk + 1.0 / len(target)
        residual = target - intercept - left @ (shrunk * along)
        error = float(np.mean((residual / np.maximum(1.0 - leverage, 1e-3)) ** 2))
        if error < best_error * (1.0 - SAME_ERROR_RATIO):
            best_error = error
            best_slopes = right.T @ (singular / (singular**2 + penalty) * along)
    return Ridge(mean=mean, spread=spread, slopes=best_slopes * moves, intercept=intercept)
