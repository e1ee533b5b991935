"""What is weak about a fit, said by the fit itself."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from energylens.cases import BoolArray, FloatArray
from energylens.dataset import Dataset
from energylens.fitting.problem import NO_PRIOR_SPREAD, VARIANCE_FLOOR
from energylens.formula import design, power_ratio, slopes
from energylens.linearised import Linearised
from energylens.loaded import rows_at_work, time_law, with_idle
from energylens.model import EnergyModel, physics_flags

EPSILON = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, kw_only=True)
class Diagnostics:
    """What is weak about a fit, said by the fit itself.

    Attributes
    ----------
    rows, effective_parameters : int, float
    at_bound : tuple of str
        Coefficients at 0: no row asks for them, or others explain their share.
    below_physics : dict of str to str
        Coefficients that are no more than hardware needs, and what that means.
    undetermined : dict of str to str
        Coefficients that the rows leave within nine tenths of the spread they had before, and
        the rows that would determine them.
    condition_number : float
        Of the relative terms, columns scaled alike; above 1000 some cannot be told apart.
    leverage_max_ratio : float
        Largest weight of one row in its own prediction (1: the fit goes through it).
    leverage_row : int
        That row's number, from 0.
    mape_ratio, median_ape_ratio, bias_ratio : float
        In-sample errors; the bias is the median of predicted over measured, minus 1.
    worst : tuple of (int, float)
        Rows with the largest relative error, and predicted over measured of each.
    """

    rows: int
    effective_parameters: float
    at_bound: tuple[str, ...]
    below_physics: dict[str, str]
    undetermined: dict[str, str]
    condition_number: float
    leverage_max_ratio: float
    leverage_row: int
    mape_ratio: float
    median_ape_ratio: float
    bias_ratio: float
    worst: tuple[tuple[int, float], ...]


def diagnose(
    model: EnergyModel, dataset: Dataset, *, weights: FloatArray | None = None
) -> Diagnostics:
    """Examine a fit against the rows it was made from.

    Parameters
    ----------
    dataset : Dataset
        The n rows that ``fit`` was given.
    weights : ndarray, shape (n,), optional
        The weights that ``fit`` was given.
    """
    if dataset.under_load.any():
        dataset = replace(dataset, cases=with_idle(dataset.cases, model.loaded_idle_w))
        dataset = rows_at_work(dataset, time_law(dataset))
    if weights is None:
        weights = np.ones(len(dataset))
    terms = model.terms
    spreads = np.array([term.spread for term in terms])
    x = design(dataset.cases, terms)
    if model.measured_power:
        x = x * power_ratio(dataset.cases)[:, None]
    y = dataset.energy_per_request_j
    predicted = model.predict_energy_j(dataset.cases)
    theta = model.pooled.theta
    a = slopes(x / y[:, None], theta)
    present: BoolArray = np.any(x > 0, axis=0)
    size = np.sqrt((a[:, present] ** 2).sum(axis=0))
    size[size == 0] = 1.0
    spread = np.sqrt(np.diag(model.pooled.covariance))
    told = spread / spreads
    rests_on_prior = ~present | (told > 0.9)
    alike = np.abs(model.pooled.covariance) / np.maximum(np.outer(spread, spread), 1e-300)
    np.fill_diagonal(alike, 0.0)

    def needs(k: int) -> str:
        """Say which rows would tell; with such rows there, more of them, and from what to tell."""
        if not present[k]:
            return terms[k].needs
        other = int(alike[k].argmax())
        least = f" (least told apart from {terms[other].name})" if alike[k, other] > 0.2 else ""
        return f"more of: {terms[k].needs}{least}"

    undetermined = {
        term.name: needs(k) for k, term in enumerate(terms) if rests_on_prior[k] and spread[k] > 0
    }
    active = (theta > 0) & present
    # By the fit's own loss and prior: rows count as they did, and without a prior none pulls.
    if model.options.get("loss") == "absolute":
        weights = weights * (y / y.mean()) ** 2
    variance = max(model.pooled.within_ratio**2 + model.pooled.between_ratio**2, VARIANCE_FLOOR)
    pulled = (
        spreads if model.options.get("prior") != "none" else np.full_like(spreads, NO_PRIOR_SPREAD)
    )
    ratio = predicted / y
    leverage = Linearised(
        theta=theta,
        free=active,
        slopes=a,
        weights=weights,
        residual=ratio - 1.0,
        pull=variance / pulled**2,
        variance=variance,
    ).leverage
    order = np.argsort(-np.abs(ratio - 1.0))[:5].tolist()
    return Diagnostics(
        rows=len(dataset),
        effective_parameters=float(leverage.sum()),
        at_bound=tuple(terms[k].name for k in np.flatnonzero((theta == 0) & present)),
        below_physics={
            name: said
            for name, said in physics_flags(theta, terms).items()
            if present[[term.name for term in terms].index(name)]
        },
        undetermined=undetermined,
        condition_number=float(min(np.linalg.cond(a[:, present] / size), 1.0 / EPSILON)),
        leverage_max_ratio=float(leverage.max()),
        leverage_row=int(leverage.argmax()),
        mape_ratio=float(np.abs(ratio - 1.0).mean()),
        median_ape_ratio=float(np.median(np.abs(ratio - 1.0))),
        bias_ratio=float(np.median(ratio) - 1.0),
        worst=tuple((i, float(ratio[i])) for i in order),
    )
