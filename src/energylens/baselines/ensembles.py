"""Tree ensembles on log energy, with the law's own counts and their products as features.

The logarithm makes the squared loss relative, as the law's loss is. All run on one core and
repeat exactly for a given seed. The outside packages are imported when something is fitted.

Trees turn a last bit of a target into another split, so features and targets are rounded to
seven digits before they are grown: another processor grows the same ones.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from energylens.baselines.features import engines_apart, features, rounded
from energylens.cases import BoolArray, Cases, FloatArray
from energylens.dataset import Dataset
from energylens.errors import FitError, MissingExtraError
from energylens.protocols import Predictor

FEWEST_ROWS = 5
FOLDS = 3

Settings = Mapping[str, Any]
#: From rows to what predicts them first; an ensemble then learns what that leaves.
Base = Callable[[Dataset], Predictor]


class Regressor(Protocol):
    """What the outside packages have in common."""

    def fit(self, columns: FloatArray, target: FloatArray) -> Any:
        """Fit in place."""

    def predict(self, columns: FloatArray) -> Any:
        """Predict, shape (n,)."""


def _package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError: a shared library of the package is missing
        package = {"sklearn.ensemble": "scikit-learn"}.get(name, name)
        raise MissingExtraError(package, "ensembles", "this baseline") from error


# ------------------------------------------------------- kinds, with defaults for 10-500 rows
# Every default was chosen by how well it ranks and predicts public rows from 50 of them, not
# left as shipped: the shipped LightGBM, for one, does not split at all below 40 rows. Slow
# learning with few columns a split ranks far better here than the usual rates.


def _grown(
    package: str, kind: str, defaults: Settings, settings: Settings, rows: int, seed: int
) -> Regressor:
    del rows  # LightGBM's alone depend on their number
    made: Regressor = getattr(_package(package), kind)(
        **{**defaults, **settings}, random_state=seed
    )
    return made


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


def _lightgbm(settings: Settings, rows: int, seed: int) -> Regressor:
    _package("lightgbm")
    defaults = {
        "n_estimators": 200,
        "learning_rate": 0.03,
        "num_leaves": 15,
        "min_data_in_leaf": 2 if rows < 100 else 4,
        "min_sum_hessian_in_leaf": 0.0,
        "bagging_fraction": 0.6,
        "bagging_freq": 1,
        "feature_fraction_bynode": 0.15,
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

_FOREST = {"n_estimators": 150, "n_jobs": 1}
_BOOSTED = {"n_estimators": 200, "learning_rate": 0.03, "max_depth": 3, "subsample": 0.5}
_XGBOOST = {
    "colsample_bylevel": 0.2,
    "reg_lambda": 0.1,
    "tree_method": "exact",
    "n_jobs": 1,
    "verbosity": 0,
}

#: What makes an unfitted regressor from settings, number of rows and seed, by name.
KINDS: Mapping[str, Build] = {
    # Breiman, Machine Learning 45 (2001), 5-32; a third of the features for each split.
    "random-forest": partial(
        _grown, "sklearn.ensemble", "RandomForestRegressor", {**_FOREST, "max_features": 1 / 3}
    ),
    # Geurts, Ernst and Wehenkel, Machine Learning 63 (2006), 3-42; half of the features.
    "extra-trees": partial(
        _grown, "sklearn.ensemble", "ExtraTreesRegressor", {**_FOREST, "max_features": 0.5}
    ),
    # Friedman, Annals of Statistics 29 (2001), 1189-1232; stochastic, slow learning rate.
    "gradient-boosting": partial(
        _grown, "sklearn.ensemble", "GradientBoostingRegressor", {**_BOOSTED, "max_features": 0.2}
    ),
    # Chen and Guestrin, KDD 2016 (arXiv 1603.02754).
    "xgboost": partial(_grown, "xgboost", "XGBRegressor", {**_BOOSTED, **_XGBOOST}),
    # Ke et al., NeurIPS 2017; leaves and bins small enough for few rows.
    "lightgbm": _lightgbm,
}

# ------------------------------------------------------------------------------- contestants


@dataclass(frozen=True, kw_only=True, eq=False)
class _EnsemblePredictor:
    regressor: Regressor
    engines: tuple[str, ...]
    base: Predictor | None
    share: float = 1.0  # of what the trees add to the base

    def predict_energy_j(self, cases: Cases) -> FloatArray:
        if len(cases) == 0:
            return np.empty(0)
        columns = features(cases, self.engines)[1]
        log_energy = np.asarray(self.regressor.predict(columns), dtype=np.float64)
        energy: FloatArray = np.exp(self.share * log_energy)
        return energy if self.base is None else energy * self.base.predict_energy_j(cases)


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
    base : callable, optional
        Fit this first and learn the logarithm of what it leaves: the power law
        (regression-enhanced random forests, Zhang, Nettleton and Zhu, arXiv 1904.10416; trees
        cannot extrapolate, the power law does it for them), a datasheet, or any other model.
    shrunk : bool
        Take only so much of what the trees add as three-fold cross-validation on the training
        rows bears out: nothing, where they foretell nothing.
    """

    name: str
    build: Build
    seed: int
    base: Base | None = None
    shrunk: bool = False
    ranks_only: bool = False

    def fit(self, dataset: Dataset) -> _EnsemblePredictor:
        """Fit; raises FitError with fewer than five rows, MissingExtraError without the extra."""
        rows, base = _Rows.of(dataset, self.base)
        regressor = self.build({}, len(rows.target), self.seed)
        share = self._share(rows) if self.shrunk else 1.0
        regressor.fit(rows.columns, rows.target)
        return _EnsemblePredictor(regressor=regressor, engines=rows.engines, base=base, share=share)

    def _share(self, rows: _Rows) -> float:
        added = np.empty(len(rows.target))
        for train, test, held_out in rows.folds(np.random.default_rng(self.seed)):
            regressor = self.build({}, len(train.target), self.seed)
            regressor.fit(train.columns, train.target)
            added[held_out] = regressor.predict(test.columns)
        size = float(added @ added)
        return float(np.clip(added @ rows.target / size, 0.0, 1.0)) if size > 0 else 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class _Rows:
    engines: tuple[str, ...]
    columns: FloatArray
    target: FloatArray  # log of joules, or of joules over those of a base

    @classmethod
    def of(cls, dataset: Dataset, under: Base | None = None) -> tuple[_Rows, Predictor | None]:
        """Make rows, and fit what is under the trees to them."""
        if len(dataset) < FEWEST_ROWS:
            raise FitError(
                f"a tree ensemble needs {FEWEST_ROWS} rows or more; given {len(dataset)}: "
                "add rows or leave this baseline out"
            )
        base = None if under is None else under(dataset)
        engines = engines_apart(dataset.cases)
        energy = dataset.energy_per_request_j
        if base is not None:
            energy = energy / base.predict_energy_j(dataset.cases)
        columns = features(dataset.cases, engines)[1]
        return cls(engines=engines, columns=columns, target=np.log(rounded(energy)).round(6)), base

    def take(self, index: BoolArray) -> _Rows:
        return _Rows(engines=self.engines, columns=self.columns[index], target=self.target[index])

    def folds(self, chance: np.random.Generator) -> list[tuple[_Rows, _Rows, BoolArray]]:
        """Rows kept and held out, three times, each row held out once."""
        fold = chance.permutation(len(self.target)) % FOLDS
        held_out = [np.asarray(fold == k) for k in range(FOLDS)]
        return [(self.take(~out), self.take(out), out) for out in held_out]


@dataclass(frozen=True, kw_only=True)
class TunedEnsemble:
    """A tree ensemble whose settings a seeded random search picks by cross-validation.

    Every draw is judged by the mean squared error of log energy over the held-out folds of the
    training rows. The number of draws is fixed, so the time is bounded and results repeat.

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
        Combinations tried beside the fixed settings of :class:`Ensemble`.
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
        rows, _ = _Rows.of(dataset)
        chance = np.random.default_rng(self.seed)
        folds = rows.folds(chance)
        grid = [
            dict(zip(self.choices, values, strict=True))
            for values in itertools.product(*self.choices.values())
        ]
        drawn = chance.choice(len(grid), size=min(self.draws, len(grid)), replace=False)
        candidates: list[Settings] = [{}, *(grid[place] for place in drawn)]

        def error(settings: Settings) -> float:
            squares = 0.0
            for train, test, _ in folds:
                regressor = self.build({**settings, **self.trial}, len(train.target), self.seed)
                regressor.fit(train.columns, train.target)
                squares += float(((regressor.predict(test.columns) - test.target) ** 2).sum())
            return squares

        errors = [error(settings) for settings in candidates]
        # Of errors that tie, the settings tried first: the fixed ones before all others.
        least = next(i for i, e in enumerate(errors) if e <= min(errors) * (1.0 + 1e-6))
        regressor = self.build(candidates[least], len(rows.target), self.seed)
        regressor.fit(rows.columns, rows.target)
        return _EnsemblePredictor(regressor=regressor, engines=rows.engines, base=None)


FOREST_CHOICES: Mapping[str, tuple[Any, ...]] = {
    "max_features": (0.15, 0.25, 1 / 3, 0.5, 0.75, 1.0),
    "min_samples_leaf": (1, 2, 3),
    "max_depth": (None, 4, 8),
}
XGBOOST_CHOICES: Mapping[str, tuple[Any, ...]] = {
    "learning_rate": (0.02, 0.03, 0.05),
    "max_depth": (2, 3, 4, 6),
    "subsample": (0.4, 0.5, 0.7),
    "colsample_bylevel": (0.1, 0.2, 0.4),
    "reg_lambda": (0.03, 0.1, 1.0),
}
LIGHTGBM_CHOICES: Mapping[str, tuple[Any, ...]] = {
    "learning_rate": (0.02, 0.03, 0.05),
    "num_leaves": (4, 8, 15, 31),
    "min_data_in_leaf": (1, 2, 4),
    "bagging_fraction": (0.5, 0.6, 0.8),
    "feature_fraction_bynode": (0.1, 0.15, 0.3),
}
