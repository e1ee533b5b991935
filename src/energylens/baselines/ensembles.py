"""Tree ensembles on log energy, with the law's own counts and their products as features.

The logarithm makes the squared loss relative, as the law's loss is. All run on one core and
repeat exactly for a given seed. The outside packages are imported when something is fitted.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from energylens.baselines.features import features, roofline_energy_j
from energylens.cases import Cases, FloatArray
from energylens.dataset import Dataset
from energylens.errors import FitError, MissingExtraError

FEWEST_ROWS = 5
FOLDS = 4

Settings = Mapping[str, Any]


class Regressor(Protocol):
    """What the outside packages have in common."""

    def fit(self, columns: FloatArray, target: FloatArray) -> Any:
        """Fit in place."""
        ...

    def predict(self, columns: FloatArray) -> Any:
        """Predict, shape (n,)."""
        ...


def _package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = {"sklearn.ensemble": "scikit-learn"}.get(name, name)
        raise MissingExtraError(package, "ensembles", "this baseline") from error


# ------------------------------------------------------- kinds, with defaults for 10-500 rows
# Every default was chosen on public rows for low log error at 50 rows, not left as shipped:
# the shipped LightGBM, for one, does not split at all below 40 rows.


def build_random_forest(settings: Settings, rows: int, seed: int) -> Regressor:  # noqa: ARG001
    """Breiman, Machine Learning 45 (2001), 5-32; a third of the features for each split."""
    defaults = {"n_estimators": 150, "max_features": 1 / 3}
    forest: Regressor = _package("sklearn.ensemble").RandomForestRegressor(
        **defaults | dict(settings), random_state=seed, n_jobs=1
    )
    return forest


def build_extra_trees(settings: Settings, rows: int, seed: int) -> Regressor:  # noqa: ARG001
    """Geurts, Ernst and Wehenkel, Machine Learning 63 (2006), 3-42; half of the features."""
    defaults = {"n_estimators": 150, "max_features": 0.5}
    forest: Regressor = _package("sklearn.ensemble").ExtraTreesRegressor(
        **defaults | dict(settings), random_state=seed, n_jobs=1
    )
    return forest


def build_gradient_boosting(settings: Settings, rows: int, seed: int) -> Regressor:  # noqa: ARG001
    """Friedman, Annals of Statistics 29 (2001), 1189-1232; stochastic, slow learning rate."""
    defaults = {
        "n_estimators": 200,
        "learning_rate": 0.05,
        "max_depth": 5,
        "subsample": 0.5,
        "max_features": 0.2,
    }
    boosted: Regressor = _package("sklearn.ensemble").GradientBoostingRegressor(
        **defaults | dict(settings), random_state=seed
    )
    return boosted


def build_xgboost(settings: Settings, rows: int, seed: int) -> Regressor:  # noqa: ARG001
    """Chen and Guestrin, KDD 2016 (arXiv 1603.02754)."""
    defaults = {
        "n_estimators": 200,
        "learning_rate": 0.08,
        "max_depth": 4,
        "subsample": 0.6,
        "colsample_bynode": 0.25,
        "reg_lambda": 0.1,
    }
    boosted: Regressor = _package("xgboost").XGBRegressor(
        **defaults | dict(settings), random_state=seed, n_jobs=1, verbosity=0
    )
    return boosted


@dataclass(kw_only=True)
class _LightGbm:
    # The package's own scikit-learn wrapper warns about feature names that arrays lack.
    settings: Settings
    booster: Any = None

    def fit(self, columns: FloatArray, target: FloatArray) -> None:
        lightgbm = _package("lightgbm")
        settings = dict(self.settings)
        rounds = settings.pop("n_estimators")
        data = lightgbm.Dataset(
            columns, target, params={"verbose": -1, "min_data_in_bin": 1}, free_raw_data=True
        )
        self.booster = lightgbm.train(settings, data, num_boost_round=rounds)

    def predict(self, columns: FloatArray) -> Any:
        return self.booster.predict(columns, num_threads=1)


def build_lightgbm(settings: Settings, rows: int, seed: int) -> Regressor:
    """Ke et al., NeurIPS 2017; leaves and bins small enough for few rows."""
    _package("lightgbm")
    defaults = {
        "n_estimators": 200,
        "learning_rate": 0.08,
        "num_leaves": 15,
        "min_data_in_leaf": 2 if rows < 100 else 4,
        "min_sum_hessian_in_leaf": 0.0,
        "bagging_fraction": 0.7,
        "bagging_freq": 1,
        "feature_fraction_bynode": 0.25,
        "lambda_l2": 0.1,
    }
    fixed = {
        "objective": "regression",
        "seed": seed,
        "num_threads": 1,
        "deterministic": True,
        "force_row_wise": True,
        "min_data_in_bin": 1,
        "verbose": -1,
    }
    return _LightGbm(settings=defaults | dict(settings) | fixed)


Build = Callable[[Settings, int, int], Regressor]

# ------------------------------------------------------------------------------- contestants


@dataclass(frozen=True, kw_only=True, eq=False)
class _EnsemblePredictor:
    regressor: Regressor
    per_roofline: bool

    def predict_energy_j(self, cases: Cases) -> FloatArray:
        if len(cases) == 0:
            return np.empty(0)
        columns = features(cases)[1]
        energy: FloatArray = np.exp(np.asarray(self.regressor.predict(columns), dtype=np.float64))
        return energy * roofline_energy_j(cases) if self.per_roofline else energy


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """A tree ensemble with fixed settings.

    Parameters
    ----------
    name : str
        As tables print it.
    build : callable
        Makes an unfitted regressor from settings, number of rows and seed.
    seed : int
        Chance of the ensemble.
    per_roofline : bool
        Learn the log of energy over :func:`~energylens.baselines.features.roofline_energy_j`
        instead of the log of joules: what no tree can extrapolate, physics supplies.
    """

    name: str
    build: Build
    seed: int
    per_roofline: bool = False
    ranks_only: bool = False

    def fit(self, dataset: Dataset) -> _EnsemblePredictor:
        """Fit; raises FitError with fewer than five rows, MissingExtraError without the extra."""
        columns, joules, roofline = _training_rows(dataset)
        target = np.log(joules / roofline) if self.per_roofline else np.log(joules)
        regressor = self.build({}, len(target), self.seed)
        regressor.fit(columns, target)
        return _EnsemblePredictor(regressor=regressor, per_roofline=self.per_roofline)


def _training_rows(dataset: Dataset) -> tuple[FloatArray, FloatArray, FloatArray]:
    if len(dataset) < FEWEST_ROWS:
        raise FitError(
            f"a tree ensemble needs {FEWEST_ROWS} rows or more; given {len(dataset)}: "
            "add rows or leave this baseline out"
        )
    columns = features(dataset.cases)[1]
    return columns, dataset.energy_per_request_j, roofline_energy_j(dataset.cases)


@dataclass(frozen=True, kw_only=True)
class TunedEnsemble:
    """A tree ensemble whose settings a seeded random search picks by cross-validation.

    Every draw is judged by the mean squared error of log energy over the held-out folds of the
    training rows; whether the target is joules or joules over the roofline is one of the
    things drawn. The number of draws is fixed, so the time is bounded and results repeat.

    Parameters
    ----------
    name : str
        As tables print it.
    build : callable
        Makes an unfitted regressor from settings, number of rows and seed.
    choices : mapping of str to tuple
        What each setting may be.
    trial : mapping
        Settings that hold while searching only, for speed.
    seed : int
        Chance of the search, the folds and the ensemble.
    draws : int
        Combinations tried.
    """

    name: str
    build: Build
    choices: Mapping[str, tuple[Any, ...]]
    trial: Settings
    seed: int
    draws: int
    ranks_only: bool = False

    def fit(self, dataset: Dataset) -> _EnsemblePredictor:
        """Search and fit; raises as :meth:`Ensemble.fit` does."""
        columns, joules, roofline = _training_rows(dataset)
        rows = len(joules)
        chance = np.random.default_rng(self.seed)
        fold = chance.permutation(rows) % min(FOLDS, rows)
        every = [
            (per_roofline, dict(zip(self.choices, values, strict=True)))
            for per_roofline in (False, True)
            for values in itertools.product(*self.choices.values())
        ]
        drawn = chance.choice(len(every), size=min(self.draws, len(every)), replace=False)

        def error(per_roofline: bool, settings: Settings) -> float:
            target = np.log(joules / roofline) if per_roofline else np.log(joules)
            squares = 0.0
            for held_out in range(int(fold.max()) + 1):
                train, test = fold != held_out, fold == held_out
                regressor = self.build({**settings, **self.trial}, int(train.sum()), self.seed)
                regressor.fit(columns[train], target[train])
                squares += float(((regressor.predict(columns[test]) - target[test]) ** 2).sum())
            return squares

        per_roofline, settings = min((every[i] for i in drawn), key=lambda draw: error(*draw))
        target = np.log(joules / roofline) if per_roofline else np.log(joules)
        regressor = self.build(settings, rows, self.seed)
        regressor.fit(columns, target)
        return _EnsemblePredictor(regressor=regressor, per_roofline=per_roofline)


FOREST_CHOICES: Mapping[str, tuple[Any, ...]] = {
    "max_features": (0.15, 0.25, 1 / 3, 0.5, 0.75, 1.0),
    "min_samples_leaf": (1, 2, 3),
    "max_depth": (None, 4, 8),
}
XGBOOST_CHOICES: Mapping[str, tuple[Any, ...]] = {
    "learning_rate": (0.05, 0.1, 0.2),
    "max_depth": (2, 3, 4, 6),
    "subsample": (0.5, 0.7, 1.0),
    "colsample_bynode": (0.15, 0.3, 0.6, 1.0),
    "reg_lambda": (0.01, 0.1, 1.0),
    "min_child_weight": (1, 2, 4),
}
LIGHTGBM_CHOICES: Mapping[str, tuple[Any, ...]] = {
    "learning_rate": (0.05, 0.1, 0.2),
    "num_leaves": (3, 7, 15, 31),
    "min_data_in_leaf": (1, 2, 4, 8),
    "bagging_fraction": (0.5, 0.7, 1.0),
    "feature_fraction_bynode": (0.15, 0.3, 0.6, 1.0),
    "lambda_l2": (0.01, 0.1, 1.0),
}
