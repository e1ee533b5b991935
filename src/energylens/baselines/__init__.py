"""Every contestant the law is judged against, each an Estimator with its source.

==========================  ==================================================================
name                        what it is
==========================  ==================================================================
``random``                  every candidate ties
``first-candidate``         the order given
``fewest-gpus``             rule of thumb
``largest-batch``           rule of thumb
``largest-batch-per-gpu``   both rules in one
``latency-measured``        rank by the measured latency
``latency-predicted``       rank by a fitted roofline of latency
``tdp-time``                TDP x GPUs x time; measured time where a case has one
``tdp-time-predicted``      the same, time always predicted, one factor calibrated
``utilisation-power``       power from utilisation (arXiv 2507.11417) x time
``utilisation-power-predicted``  the same, time always predicted, one factor calibrated
``workload``                Wilkins et al. (arXiv 2407.04014), relative loss
``workload-ols``            the same, as published
``sequence-length``         six terms of the lengths (arXiv 2602.05695), relative loss
``log-linear``              a power law in every knob
``logistic-batch``          logistic in log2 of the batch (ML.ENERGY)
``random-forest``, ``extra-trees``, ``gradient-boosting``, ``xgboost``, ``lightgbm``
                            log energy from the law's counts and their products
``...-roofline``            each of the five on log of energy over a roofline's
``random-forest-tuned``, ``extra-trees-tuned``, ``xgboost-tuned``, ``lightgbm-tuned``
                            settings and target by cross-validated random search
==========================  ==================================================================

Nothing here imports the law or how it is fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from energylens.baselines import analytical, ensembles, latency, trivial
from energylens.baselines.analytical import fit_workload_coefficients
from energylens.errors import UnknownNameError
from energylens.protocols import Estimator

__all__ = ["DEFAULT_ESTIMATORS", "choose", "estimators", "fit_workload_coefficients"]

#: What an evaluation runs if nobody chooses.
DEFAULT_ESTIMATORS: tuple[str, ...] = (
    "random",
    "fewest-gpus",
    "largest-batch",
    "latency-measured",
    "latency-predicted",
    "tdp-time",
    "utilisation-power-predicted",
    "workload",
    "workload-ols",
    "sequence-length",
    "log-linear",
    "logistic-batch",
    "random-forest",
    "extra-trees",
    "gradient-boosting",
    "xgboost",
    "lightgbm",
    "random-forest-roofline",
    "random-forest-tuned",
    "xgboost-tuned",
)

_KINDS: Mapping[str, ensembles.Build] = {
    "random-forest": ensembles.build_random_forest,
    "extra-trees": ensembles.build_extra_trees,
    "gradient-boosting": ensembles.build_gradient_boosting,
    "xgboost": ensembles.build_xgboost,
    "lightgbm": ensembles.build_lightgbm,
}


def estimators(seed: int) -> Mapping[str, Callable[[], Estimator]]:
    """Every contestant by name.

    Parameters
    ----------
    seed : int
        Chance of those that draw; the others ignore it.

    Returns
    -------
    mapping of str to callable
        Each call makes an unfitted estimator.
    """
    rules: tuple[Callable[[], Estimator], ...] = (
        trivial.random_pick,
        trivial.first_candidate,
        trivial.fewest_gpus,
        trivial.largest_batch,
        trivial.largest_batch_per_gpu,
        latency.LatencyMeasured,
        latency.LatencyPredicted,
        latency.tdp_time,
        latency.tdp_time_predicted,
        latency.utilisation_power,
        latency.utilisation_power_predicted,
        analytical.workload,
        analytical.workload_ols,
        analytical.sequence_length,
        analytical.LogLinear,
        analytical.LogisticBatch,
        *(_ensemble(name, build, seed, False) for name, build in _KINDS.items()),
        *(_ensemble(f"{name}-roofline", build, seed, True) for name, build in _KINDS.items()),
        *(
            _tuned(name, seed)
            for name in ("random-forest", "extra-trees", "xgboost", "lightgbm")
        ),
    )
    return {make().name: make for make in rules}


def _ensemble(
    name: str, build: ensembles.Build, seed: int, per_roofline: bool
) -> Callable[[], Estimator]:
    return lambda: ensembles.Ensemble(
        name=name, build=build, seed=seed, per_roofline=per_roofline
    )


def _tuned(kind: str, seed: int) -> Callable[[], Estimator]:
    choices, trial, draws = {
        "random-forest": (ensembles.FOREST_CHOICES, {"n_estimators": 20}, 8),
        "extra-trees": (ensembles.FOREST_CHOICES, {"n_estimators": 20}, 8),
        "xgboost": (ensembles.XGBOOST_CHOICES, {"n_estimators": 80}, 8),
        "lightgbm": (ensembles.LIGHTGBM_CHOICES, {"n_estimators": 80}, 12),
    }[kind]
    return lambda: ensembles.TunedEnsemble(
        name=f"{kind}-tuned",
        build=_KINDS[kind],
        choices=choices,
        trial=trial,
        seed=seed,
        draws=draws,
    )


def choose(names: Iterable[str], seed: int) -> list[Estimator]:
    """Make the estimators named, in the order given.

    Raises
    ------
    UnknownNameError
        If a name is not in :func:`estimators`; the nearest are suggested.
    """
    known = estimators(seed)
    chosen = []
    for name in names:
        if name not in known:
            raise UnknownNameError("estimator", name, known)
        chosen.append(known[name]())
    return chosen
