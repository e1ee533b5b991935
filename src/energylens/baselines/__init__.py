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
``...-enhanced``            each of the five on what a power law leaves (arXiv 1904.10416)
``random-forest-tuned``, ``extra-trees-tuned``, ``xgboost-tuned``, ``lightgbm-tuned``
                            settings and target by cross-validated random search
==========================  ==================================================================

Nothing here imports the law or how it is fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from energylens.baselines import analytical, ensembles, latency, trivial
from energylens.protocols import Estimator

Factory = Callable[[int], Estimator]

#: What an evaluation runs if nobody chooses.
DEFAULT_ESTIMATORS: tuple[str, ...] = (
    "random",
    "fewest-gpus",
    "largest-batch",
    "largest-batch-per-gpu",
    "latency-measured",
    "latency-predicted",
    "tdp-time",
    "tdp-time-predicted",
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
    "random-forest-enhanced",
    "random-forest-tuned",
    "xgboost-tuned",
)


def _fixed(estimator: Estimator, seed: int) -> Estimator:  # noqa: ARG001
    return estimator


def _ensemble(
    name: str, build: ensembles.Build, base: ensembles.Base | None, seed: int
) -> Estimator:
    return ensembles.Ensemble(name=name, build=build, base=base, seed=seed)


def _tuned(kind: str, seed: int) -> Estimator:
    # Forests judge as well with a few trees; boosting needs its rounds at a slow rate.
    choices, trial, draws = {
        "random-forest": (ensembles.FOREST_CHOICES, {"n_estimators": 20}, 5),
        "extra-trees": (ensembles.FOREST_CHOICES, {"n_estimators": 20}, 5),
        "xgboost": (ensembles.XGBOOST_CHOICES, {}, 5),
        "lightgbm": (ensembles.LIGHTGBM_CHOICES, {}, 4),
    }[kind]
    return ensembles.TunedEnsemble(
        name=f"{kind}-tuned",
        build=ensembles.KINDS[kind],
        choices=choices,
        trial=trial,
        seed=seed,
        draws=draws,
    )


def _registry() -> dict[str, Factory]:
    fixed: tuple[Estimator, ...] = (
        *trivial.RULES,
        latency.LatencyMeasured(),
        latency.LatencyPredicted(),
        *latency.POWERS_TIMES_TIME,
        *analytical.LENGTH_LAWS,
        analytical.LogLinear(),
        analytical.LogisticBatch(),
    )
    registry: dict[str, Factory] = {each.name: partial(_fixed, each) for each in fixed}
    for kind, build in ensembles.KINDS.items():
        registry[kind] = partial(_ensemble, kind, build, None)
        name = f"{kind}-enhanced"
        registry[name] = partial(_ensemble, name, build, analytical.LogLinear().fit)
    for kind in ("random-forest", "extra-trees", "xgboost", "lightgbm"):
        registry[f"{kind}-tuned"] = partial(_tuned, kind)
    return registry


#: From every name to what makes the estimator of a seed.
ESTIMATORS: Mapping[str, Factory] = MappingProxyType(_registry())
