"""The loop around every engine: leave groups out, search, judge, resample, pick the knee."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from energylens.cases import FloatArray, IntArray
from energylens.dataset import Dataset, freed_columns, group_rows
from energylens.discovery.engines import Engine, Found, Problem
from energylens.discovery.expression import Expression
from energylens.discovery.front import Front, FrontPoint, FrontTerm, Reference
from energylens.discovery.library import quantity_columns, quantity_units
from energylens.discovery.units import JOULES_PER_REQUEST
from energylens.errors import FitError, InputError, UsageError
from energylens.formula import STRUCTURE, TERMS, design, energy, slopes
from energylens.records import DEFAULT_CHOOSE

GROUPS = ("llm", "workload", "row")
FEWEST_ROWS = 8
FEWEST_GROUPS = 4  # of a kind, for that kind to be what is left out
GAUSS_NEWTON_STEPS = 12  # half steps, of the frozen law
STAND_INS = 3  # of a term that are kept, the most frequent
WORST_RATIO = 19.0  # relative error that a held-out prediction counts as at most, or if missing

#: From held-out predictions to the share of scenarios chosen rightly and the mean regret.
Scorer = Callable[[Dataset, FloatArray], tuple[float | None, float | None]]


def discover(
    dataset: Dataset,
    engine: Engine,
    *,
    choose: Sequence[str] = DEFAULT_CHOOSE,
    leave: str = "auto",
    folds: int | None = None,
    samples: int | None = None,
    seed: int = 0,
    uncertainty_ratio: FloatArray | None = None,
    scorer: Scorer | None = None,
) -> Front:
    """Search for the structure of energy in measured rows.

    Parameters
    ----------
    dataset : Dataset
        n rows, 8 or more.
    choose : sequence of str
        Knobs left free where Top-1 and regret are computed.
    leave : {"auto", "llm", "workload", "row"}
        What is left out together; auto takes the first with four or more groups.
    folds : int, optional
        Groups are dealt to this many folds, 2 or more; by default what suits the engine's speed.
    samples : int, optional
        Resamples of the rows, each with a seed of its own, that the stability of terms is
        counted over; 0 for none. By default what suits the engine's speed.
    uncertainty_ratio : ndarray, shape (n,), optional
        Relative uncertainty of each row's joules; equal by default.
    scorer : callable, optional
        From the dataset and held-out predictions (NaN: none) to Top-1 and mean regret;
        the strict metrics over ``dataset.scenarios(choose)`` by default.

    Raises
    ------
    UsageError
        If an option is out of range.
    FitError
        If there are too few rows, or the engine finds nothing.
    """
    n = len(dataset)
    if n < FEWEST_ROWS:
        raise FitError(f"discovery needs {FEWEST_ROWS} measured rows or more; given {n}")
    folds = engine.folds if folds is None else folds
    samples = engine.samples if samples is None else samples
    if folds < 2 or samples < 0:
        raise UsageError(f"folds must be 2 or more and samples 0 or more, not {folds}, {samples}")
    freed_columns(choose)
    problem = _problem(dataset, uncertainty_ratio)
    left, group = _groups(dataset, leave)
    fold = _deal(group, folds, seed)
    score = scorer or (lambda data, predicted: choice_scores(data, predicted, choose))
    path, refused = _in_units(engine, engine.search(problem, seed=seed, largest=None))
    if not path:
        raise FitError(f"the {engine.name} engine found no expression for these {n} rows")
    held_out = np.full((len(path), n), np.nan)
    for k in range(fold.max() + 1):
        inside, outside = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        rivals, _ = _in_units(
            engine, engine.search(problem.take(inside), seed=seed + k + 1, largest=path[-1].size)
        )
        columns = problem.take(outside).columns
        for i, found in enumerate(path):
            best = _of_size(rivals, found.size)
            if best is not None:
                held_out[i, outside] = best.predict_energy_j(columns)
    resampled = _resampled(engine, problem, path, samples, seed)
    errors = _errors(held_out, dataset.energy_per_request_j)
    knee = _knee(path, errors, problem.weights, group)
    points = []
    for i, found in enumerate(path):
        top1, regret = score(dataset, held_out[i])
        points.append(
            FrontPoint(
                terms=_terms(engine, found, problem, resampled[i], samples),
                size=found.size,
                complexity=sum(e.complexity + 2 for _, e in found.terms) + len(found.terms) - 1,
                criterion=found.criterion,
                in_sample_mape_ratio=_mean(
                    _errors(found.predict_energy_j(problem.columns), problem.energy_j), problem
                ),
                held_out_mape_ratio=_mean(errors[i], problem),
                held_out_error_ratio=_standard_error(errors[i], problem.weights, group),
                top1_ratio=top1,
                regret_mean_ratio=regret,
                knee=i == knee,
            )
        )
    return Front(
        engine=engine.name,
        points=_pareto(points),
        reference=_reference(dataset, problem, fold, score),
        rows=n,
        candidates=engine.candidates(problem),
        groups=left,
        folds=int(fold.max()) + 1,
        samples=samples,
        seed=seed,
        choose=tuple(choose),
        dataset_digest=dataset.digest,
        sources=dataset.source_counts(),
        notes=_notes(dataset, refused),
    )


def _problem(dataset: Dataset, uncertainty_ratio: FloatArray | None) -> Problem:
    n = len(dataset)
    weights = np.ones(n)
    if uncertainty_ratio is not None:
        given = np.asarray(uncertainty_ratio, dtype=np.float64)
        if given.shape != (n,) or not (np.isfinite(given) & (given > 0)).all():
            raise InputError(
                f"uncertainty_ratio must be a finite number above 0 for each of the {n} rows"
            )
        weights = 1.0 / given**2
        weights /= weights.mean()
    return Problem(
        columns=quantity_columns(dataset.cases),
        energy_j=dataset.energy_per_request_j,
        weights=weights,
        by_datasheet=len(np.unique(dataset.cases.gpu_index)) > 1,
    )


def _groups(dataset: Dataset, leave: str) -> tuple[str, IntArray]:
    """What is left out together, and the group of each row."""
    c = dataset.cases
    keys = {
        "llm": group_rows([c.llm_index]),
        "workload": group_rows(
            [c.llm_index, c.gpu_index, c.precision_index, dataset.workload_index]
        ),
        "row": np.arange(len(dataset)),
    }
    if leave == "auto":
        leave = next(k for k in GROUPS if k == "row" or len(np.unique(keys[k])) >= FEWEST_GROUPS)
    if leave not in keys:
        raise UsageError(f"leave must be auto, {', '.join(GROUPS)}, not {leave!r}")
    if len(np.unique(keys[leave])) < 2:
        raise UsageError(
            f"leaving out by {leave} needs two or more; the rows have one. "
            "Leave out by workload or row instead."
        )
    return leave, keys[leave]


def _deal(group: IntArray, folds: int, seed: int) -> IntArray:
    """Fold of each row: large groups first, each to the fold with the fewest rows so far."""
    names, place, counts = np.unique(group, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-counts[order], kind="stable")]
    filled = np.zeros(min(folds, len(names)))
    fold = np.empty(len(names), dtype=np.intp)
    for name in order:
        fold[name] = np.argmin(filled)
        filled[fold[name]] += counts[name]
    return fold[place.reshape(-1)]


def _of_size(rivals: list[Found], size: int) -> Found | None:
    """The best of at most this size."""
    small = [found for found in rivals if found.size <= size]
    return min(small, key=lambda found: found.loss, default=None)


def _in_units(engine: Engine, path: list[Found]) -> tuple[list[Found], int]:
    """Drop expressions that add unlike units, or are not joules per request."""
    units = quantity_units()
    kept = []
    for found in path:
        try:
            for _, expression in found.terms:
                expression.unit(units, free_constants=engine.fitted_constants)
        except InputError:
            continue
        kept.append(found)
    return kept, len(path) - len(kept)


@dataclass(frozen=True, kw_only=True)
class _Resampled:
    """How many resampled searches have an addend, and what the others have in its place."""

    having: Counter[str] = field(default_factory=Counter)
    instead: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))


def _resampled(
    engine: Engine, problem: Problem, path: list[Found], samples: int, seed: int
) -> list[_Resampled]:
    """Search resampled rows, and compare the addends of each size with those on the path."""
    n = len(problem.energy_j)
    results = [_Resampled() for _ in path]
    directions: dict[str, FloatArray] = {}

    def direction(expression: Expression) -> FloatArray:
        known = directions.get(expression.text)
        if known is None:
            column = np.nan_to_num(problem.relative([expression])[:, 0], posinf=0.0, neginf=0.0)
            known = directions[expression.text] = column / (np.linalg.norm(column) or 1.0)
        return known

    rng = np.random.default_rng([seed, 1])
    for s in range(samples):
        draw = np.sort(rng.integers(0, n, n))
        rivals, _ = _in_units(
            engine, engine.search(problem.take(draw), seed=seed + 1000 + s, largest=path[-1].size)
        )
        for found, result in zip(path, results, strict=True):
            best = _of_size(rivals, found.size)
            if best is None:
                continue
            ours = dict(zip(found.skeletons, (e for _, e in found.terms), strict=True))
            theirs = dict(zip(best.skeletons, (e for _, e in best.terms), strict=True))
            result.having.update(ours.keys() & theirs.keys())
            absent = [name for name in ours if name not in theirs]
            for name, expression in theirs.items():
                if name in ours or not absent:
                    continue
                # It does the work of the absent addend that it is most in proportion to.
                place = max(absent, key=lambda a: float(direction(ours[a]) @ direction(expression)))
                result.instead[place][name] += 1
    return results


def _errors(predicted: FloatArray, energy_j: FloatArray) -> FloatArray:
    """|predicted / measured - 1|, shape of predicted, at most WORST_RATIO."""
    ratio = np.where(np.isfinite(predicted), predicted, np.inf) / energy_j
    return np.minimum(np.abs(ratio - 1.0), WORST_RATIO)


def _mean(errors: FloatArray, problem: Problem) -> float:
    return float(np.average(errors, weights=problem.weights))


def _standard_error(values: FloatArray, weights: FloatArray, group: IntArray) -> float:
    """Of the weighted mean of values, shape (n,), whose groups vary together."""
    mean = np.average(values, weights=weights)
    sums = np.bincount(group, weights * (values - mean))
    g = len(np.unique(group))
    return float(np.sqrt((sums**2).sum() * g / max(g - 1, 1)) / weights.sum())


def _knee(path: list[Found], errors: FloatArray, weights: FloatArray, group: IntArray) -> int:
    means = errors @ weights / weights.sum()
    best = int(np.argmin(means))
    knee = next(
        i
        for i in range(best + 1)
        if means[i] - means[best] <= _standard_error(errors[i] - errors[best], weights, group)
    )
    return min(knee, int(np.argmin([found.criterion for found in path])))


def _pareto(points: list[FrontPoint]) -> tuple[FrontPoint, ...]:
    """Drop what is more complex than another and no better held out; never the knee."""
    kept: list[FrontPoint] = []
    for point in sorted(points, key=lambda p: (p.complexity, p.held_out_mape_ratio)):
        best = min((p.held_out_mape_ratio for p in kept), default=np.inf)
        if point.knee or point.held_out_mape_ratio < best:
            kept.append(point)
    return tuple(kept)


def _terms(
    engine: Engine, found: Found, problem: Problem, resampled: _Resampled, samples: int
) -> tuple[FrontTerm, ...]:
    units = quantity_units()
    n = len(problem.energy_j)
    parts = np.array(
        [np.broadcast_to(c * e.evaluate(problem.columns), (n,)) for c, e in found.terms]
    )
    shares = (parts / problem.energy_j).mean(axis=1)
    shares = shares / shares.sum()
    terms = []
    for i, (coefficient, expression) in enumerate(found.terms):
        skeleton = found.skeletons[i]
        others = resampled.instead.get(skeleton, Counter()).most_common(STAND_INS)
        own = expression.unit(units, free_constants=engine.fitted_constants)
        terms.append(
            FrontTerm(
                expression=expression,
                coefficient=coefficient,
                unit="fitted" if own is None else str(JOULES_PER_REQUEST / own),
                meaning=found.meanings[i] if found.meanings else "",
                share_ratio=float(shares[i]),
                stability_ratio=resampled.having[skeleton] / samples if samples else None,
                stand_ins={text: count / samples for text, count in others},
            )
        )
    return tuple(sorted(terms, key=lambda term: -term.share_ratio))


def _reference(dataset: Dataset, problem: Problem, fold: IntArray, scorer: Scorer) -> Reference:
    """The frozen law under the same relative loss, without its prior."""
    from scipy.optimize import nnls

    x, y = design(dataset.cases), problem.energy_j

    def fitted(rows: IntArray) -> FloatArray:
        theta = np.ones(x.shape[1])
        for _ in range(GAUSS_NEWTON_STEPS):
            # The law is of first degree in theta, so its slopes times theta are the law.
            a = slopes(x[rows], theta) * (problem.target / y)[rows, None]
            size = np.sqrt((a**2).sum(axis=0))
            size[size == 0] = 1.0
            step = nnls(a / size, problem.target[rows], maxiter=1000)[0] / size
            theta = (theta + step) / 2.0
        return theta

    held_out = np.empty(len(y))
    for k in range(fold.max() + 1):
        held_out[fold == k] = energy(x[fold == k], fitted(np.flatnonzero(fold != k)))
    top1, regret = scorer(dataset, held_out)
    return Reference(
        name=f"frozen law {STRUCTURE}",
        terms=len(TERMS),
        in_sample_mape_ratio=_mean(_errors(energy(x, fitted(np.arange(len(y)))), y), problem),
        held_out_mape_ratio=_mean(_errors(held_out, y), problem),
        top1_ratio=top1,
        regret_mean_ratio=regret,
    )


def choice_scores(
    dataset: Dataset, predicted: FloatArray, choose: Sequence[str]
) -> tuple[float | None, float | None]:
    """Strict Top-1 and mean regret of choosing by predictions, over scenarios.

    Parameters
    ----------
    predicted : ndarray, shape (n,)
        Scenarios with a prediction that is not finite are left out.

    Returns
    -------
    top1_ratio, regret_mean_ratio : float or None
        Tied predictions count as a random pick; None where no scenario is left.
    """
    top1, regret = [], []
    for scenario in dataset.scenarios(choose):
        guess, energy = predicted[scenario], dataset.energy_per_request_j[scenario]
        if not np.isfinite(guess).all():
            continue
        chosen = guess <= guess.min() * (1 + 1e-9)
        top1.append((energy[chosen] == energy.min()).mean())
        regret.append((energy[chosen] / energy.min() - 1).mean())
    if not top1:
        return None, None
    return float(np.mean(top1)), float(np.mean(regret))


def _notes(dataset: Dataset, refused: int) -> tuple[str, ...]:
    notes = []
    claims = int(dataset.carries_accuracy_claim.sum())
    if claims < len(dataset):
        notes.append(
            f"{len(dataset) - claims} of {len(dataset)} rows were neither measured nor published: "
            "what is found in them is how they were made."
        )
    if refused:
        notes.append(f"{refused} expressions were refused because they add unlike units.")
    return tuple(notes)
