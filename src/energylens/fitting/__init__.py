r"""Measurements in, energy model out.

The loss is the relative error. The twelve ratios solve

.. math:: \min_{\theta \ge 0} \sum_i w_i \left( \frac{E_i(\theta)}{y_i} - 1 \right)^2
          + s^2 \sum_k \left( \frac{\theta_k - \mu_k}{\rho_k} \right)^2

The law is homogeneous in theta, so linearising it at any point gives :math:`a_i \theta` with
:math:`a_i = \partial E_i / \partial \theta / y_i` and no constant: each Gauss-Newton step is one
non-negative least-squares problem, and a handful of them converge from the datasheet. The
second sum is the datasheet speaking where rows do not: ``mu`` is 1, ``rho``
the spread of each term, ``s`` the spread of the residuals themselves, so that its weight is
that of a fraction of one row. ``prior="none"`` leaves it out.
"""

from __future__ import annotations

from energylens.fitting.contestants import Datasheet, EnergyLens, ScaledDatasheet
from energylens.fitting.diagnosing import Diagnostics, diagnose
from energylens.fitting.law import bootstrap, fit, from_datasheet, paying_extensions, refuse_misfit
from energylens.fitting.options import GROUPINGS, LOSSES, PRIORS, FitOptions

__all__ = [
    "GROUPINGS",
    "LOSSES",
    "PRIORS",
    "Datasheet",
    "Diagnostics",
    "EnergyLens",
    "FitOptions",
    "ScaledDatasheet",
    "bootstrap",
    "diagnose",
    "fit",
    "from_datasheet",
    "paying_extensions",
    "refuse_misfit",
]
