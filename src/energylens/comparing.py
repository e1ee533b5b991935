"""What changed between two tables, two models, or a table and what a model said of it.

Rows are matched by what was served and how; what the two sides share no value of (GPU types,
engine versions, number formats) is what they are compared across. A change counts where it is
beyond the noise: the spread of repeats, or what the fits left uncertain. All tests of one
comparison together are wrong with a probability of 5 % at most (Holm's procedure).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import Any

import numpy as np

from energylens import catalog, fitting
from energylens.capacity import laid_out, room
from energylens.cases import BoolArray, Cases, FloatArray, IntArray
from energylens.dataset import Dataset, group_rows
from energylens.errors import CheckError, FitError, UnknownNameError, UsageError
from energylens.explanation import describe
from energylens.fitting import FitOptions
from energylens.model import EnergyModel
from energylens.records import (
    UNKNOWN_ENGINE,
    Boundary,
    Case,
    Configuration,
    Gpu,
    Llm,
    Precision,
    Workload,
)
from energylens.words import plural

#: With which probability any finding of a comparison may be chance.
ALPHA = 0.05

#: Spread of one run over another where nothing was measured twice: assumed, and said.
ASSUMED_NOISE_RATIO = 0.05

#: Repeats that are alike to the last digit still stand for a meter with so much noise.
LEAST_NOISE_RATIO = 1e-4

#: A smaller change is none, however sure.
LEAST_CHANGE_RATIO = 0.01

#: How far one term may move, a priori, as a share of itself.
TERM_SPREAD = 0.5

#: Standard deviations on either side of an 80 % interval.
NORMAL_80 = 1.2816

#: What two sides may have no value of in common, and is then what they are compared across.
ACROSS = ("gpu", "engine", "precision", "llm")

#: Ways in which a comparison fails a check.
CHECKS = ("higher", "lower", "changed", "winner")

BATCHES, TOKENS, LAYOUTS = 5, 3, 8  # values that two models are compared at, at most


@dataclass(frozen=True, kw_only=True)
class Change:
    """One case on both sides: joules of A and B per request, and B over A with its interval.

    ``verdict`` is higher, lower or same, of B against A.
    """

    case: str
    runs_a: int
    runs_b: int
    energy_per_request_a_j: float
    energy_per_request_b_j: float
    energy_per_output_token_a_j: float
    energy_per_output_token_b_j: float
    energy_per_total_token_a_j: float
    energy_per_total_token_b_j: float
    ratio: float
    low_ratio: float
    high_ratio: float
    verdict: str


@dataclass(frozen=True, kw_only=True)
class Winner:
    """A scenario whose configuration of the fewest joules is another in B than in A.

    ``keeping_ratio`` is what A's winner takes in B over B's own, less 1.
    """

    scenario: str
    winner_a: str
    winner_b: str
    keeping_ratio: float
    beyond_noise: bool


@dataclass(frozen=True, kw_only=True)
class TermChange:
    """What one term of the law has to do with the change.

    ``share_ratio`` is its joules in B less those in A, over all joules of A, as a mean over the
    matched cases, with its 80 % interval.
    """

    term: str
    share_ratio: float
    low_ratio: float
    high_ratio: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A compared with B; ratios are of B over A, at A's output lengths."""

    a: str
    b: str
    kind: str
    across: dict[str, list[list[str]]]
    noise_ratio: float
    noise: str
    matched: int
    only_a: int
    only_b: int
    overall_ratio: float
    overall_low_ratio: float
    overall_high_ratio: float
    overall_verdict: str
    counts: dict[str, int]
    changes: tuple[Change, ...]
    scenarios: int
    winners: tuple[Winner, ...]
    terms: tuple[TermChange, ...]
    unexplained_ratio: float | None
    times: dict[str, float]
    notes: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """Give it as JSON has it."""
        return asdict(self)

    def fails(self, check: str) -> str:
        """Say in which way it fails a check of :data:`CHECKS`; empty where it does not."""
        if check == "winner":
            sure = [w for w in self.winners if w.beyond_noise]
            return (
                f"the configuration of the fewest joules changed in {plural(len(sure), 'scenario')}"
                if sure
                else ""
            )
        kinds = ("higher", "lower") if check == "changed" else (check,)
        number = sum(self.counts[kind] for kind in kinds)
        if number:
            what = {"higher": "take more joules", "lower": "take fewer joules"}
            return f"{number} of {plural(self.matched, 'case')} {what.get(check, 'changed')} in B"
        if self.overall_verdict in kinds:
            return f"the mean change is {self.overall_ratio - 1:+.1%}, beyond the noise"
        return ""

    def require(self, checks: Collection[str]) -> None:
        """Pass, or say what fails.

        Raises
        ------
        CheckError
            If one of the checks fails.
        UsageError
            If there is no such check.
        """
        for check in checks:
            if check not in CHECKS:
                raise UsageError(f"a comparison can fail on {', '.join(CHECKS)}, not on {check!r}")
        failed = [reason for check in checks if (reason := self.fails(check))]
        if failed:
            raise CheckError(f"check failed: {'; '.join(failed)}")


@dataclass(frozen=True, kw_only=True, eq=False)
class _Sides:
    """Matched cases: m of them, joules of both sides, and the noise of each logarithm."""

    cases_a: Cases
    cases_b: Cases
    rows: Dataset | None  # of A, or of the only table, one for each case: what scenarios are of
    joules_a: FloatArray
    joules_b: FloatArray
    runs_a: IntArray
    runs_b: IntArray
    deviation: FloatArray  # standard deviation of log(B / A)
    degrees: float  # of freedom behind it
    noise_ratio: float
    noise: str
    kind: str
    only_a: int = 0
    only_b: int = 0
    across: dict[str, list[list[str]]] = field(default_factory=dict)
    parts: tuple[FloatArray, FloatArray] | None = None  # joules by term of A and B, where known
    terms: tuple[str, ...] = ()
    times: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def compare_tables(
    a: Dataset,
    b: Dataset,
    names: tuple[str, str],
    *,
    choose: Sequence[str] = ("parallelism", "batch_size"),
    noise_ratio: float | None = None,
    least_ratio: float = LEAST_CHANGE_RATIO,
) -> Comparison:
    """Compare two tables of measured rows.

    Parameters
    ----------
    a, b : Dataset
    names : (str, str)
        What they are called.
    choose : sequence of str
        Knobs whose best value may change (names of :data:`energylens.dataset.KNOBS`).
    noise_ratio : float, optional
        Spread of one run, as a standard deviation over the mean; by default that of the repeats
        in both tables, and where there are none :data:`ASSUMED_NOISE_RATIO`.
    least_ratio : float
        A smaller change is none.

    Raises
    ------
    UsageError
        If no case of A is in B.
    """
    return _compare(_match(a, b, noise_ratio), names, choose, least_ratio)


def compare_models(
    a: EnergyModel,
    b: EnergyModel,
    names: tuple[str, str],
    *,
    llms: Sequence[str] = (),
    gpus: Sequence[str] = (),
    input_tokens: float | None = None,
    output_tokens: float | None = None,
    choose: Sequence[str] = ("parallelism", "batch_size"),
    least_ratio: float = LEAST_CHANGE_RATIO,
) -> Comparison:
    """Compare what two models say of cases within the scope of both.

    Parameters
    ----------
    a, b : EnergyModel
    names : (str, str)
    llms, gpus : sequence of str
        Which to compare them at; by default those that both were fitted to.
    input_tokens, output_tokens : float, optional
        Lengths of the requests; by default three within the ranges of both fits.
    choose, least_ratio
        As for :func:`compare_tables`.

    Raises
    ------
    UsageError
        If their scopes have nothing in common.
    """
    sides = _grids(a, b, llms, gpus, input_tokens, output_tokens)
    return _compare(sides, names, choose, least_ratio)


def compare_model_with_table(
    model: EnergyModel,
    table: Dataset,
    names: tuple[str, str],
    *,
    choose: Sequence[str] = ("parallelism", "batch_size"),
    noise_ratio: float | None = None,
    least_ratio: float = LEAST_CHANGE_RATIO,
) -> Comparison:
    """Compare what a model says (A) with what was measured (B).

    A case changed where its joules lie outside of what the model expects of a new measurement.

    Parameters
    ----------
    model : EnergyModel
    table : Dataset
        Rows of a full queue: a model of energy says nothing of a load.
    names : (str, str)
    choose, noise_ratio, least_ratio
        As for :func:`compare_tables`.
    """
    if table.under_load.any():
        raise UsageError(
            f"{names[1]} has rows under load, of which {names[0]} says nothing by itself: compare "
            "it with rows of a full queue, or two tables with each other"
        )
    key, _ = _keys(table, table.take(slice(0, 0)))
    joules, runs, first, spread, degrees = _means(table, key)
    noise, said, _ = _noise(noise_ratio, spread, degrees)
    rows = table.take(first)
    predicted = model.predict_energy_j(rows.cases)
    low, high = model.interval_energy_j(rows.cases, 0.8)
    expected = np.log(high / low) / (2.0 * NORMAL_80)
    notes = (model.caution,) if model.caution else ()
    return _compare(
        _Sides(
            cases_a=rows.cases,
            cases_b=rows.cases,
            rows=rows,
            joules_a=predicted,
            joules_b=joules,
            runs_a=np.zeros(len(rows), dtype=np.intp),
            runs_b=runs,
            deviation=np.sqrt(expected**2 + noise**2 / runs),
            degrees=np.inf,
            noise_ratio=float(np.median(expected)),
            noise=f"what the model expects of a new measurement; {said}",
            kind="model and table",
            parts=(sum_parts(model, rows.cases),) * 2,
            terms=tuple(term.name for term in model.terms),
            notes=notes,
        ),
        names,
        choose,
        least_ratio,
    )


def sum_parts(model: EnergyModel, cases: Cases) -> FloatArray:
    """Joules per request by term, both phases together, shape (n, terms)."""
    prefill, decode = model.predict_parts_j(cases)
    return prefill + decode


# ------------------------------------------------------------------------------------- matching


def _ids(dataset: Dataset) -> dict[str, FloatArray]:
    return {
        "gpu": dataset.gpu_ids.astype(str),
        "engine": dataset.engine_ids.astype(str),
        "precision": dataset.precision_ids.astype(str),
        "llm": dataset.llm_ids.astype(str),
    }


def _keys(a: Dataset, b: Dataset) -> tuple[IntArray, dict[str, list[list[str]]]]:
    """Number of each row's case, those of A first, and what the sides are compared across."""
    both = Dataset.concatenate([a, b]) if len(b) else a
    ids, n = _ids(both), len(a)
    across = {}
    for name in ACROSS:
        mine, other = sorted(set(ids[name][:n])), sorted(set(ids[name][n:]))
        if len(b) and not set(mine) & set(other):
            across[name] = [mine, other]
    several = [name for name, (mine, other) in across.items() if len(mine) > 1 or len(other) > 1]
    if several:
        name = several[0]
        raise UsageError(
            f"the two sides have no {name} in common, and one of them has several "
            f"({', '.join(across[name][0])}; {', '.join(across[name][1])}): keep one of each, as "
            f"with --where {name}=..."
        )
    c = both.cases
    keys: list[Any] = [ids[name] for name in ACROSS if name not in across]
    keys += [both.workload_index, both.boundary.astype(str)]
    keys += [np.where(c.node_boundary, c.node_gpus, 0.0)]
    keys += [
        getattr(c, name)
        for name in (
            "tensor_parallel",
            "pipeline_parallel",
            "expert_parallel",
            "data_parallel",
            "batch_size",
            "power_cap_w",
        )
    ]
    return group_rows(keys), across


def _means(dataset: Dataset, key: IntArray) -> tuple[FloatArray, IntArray, IntArray, float, int]:
    """Mean joules, runs and first row of each case in the order of keys, and the repeats' spread.

    The mean is that of the logarithm of joules per output token, at the length of the first row;
    the spread the sum of squares about it, over all cases.
    """
    _, first, case, runs = np.unique(
        key, return_index=True, return_inverse=True, return_counts=True
    )
    # Lengths of one task scatter from run to run; what they bring along is no noise of a meter.
    logs = np.log(dataset.energy_per_request_j / dataset.cases.output_tokens)
    mean = np.bincount(case, logs) / runs
    degrees = int((runs - 1).sum())
    squares = float(((logs - mean[case]) ** 2).sum())
    return np.exp(mean) * dataset.cases.output_tokens[first], runs, first, squares, degrees


def _noise(given: float | None, squares: float, degrees: int) -> tuple[float, str, float]:
    """Spread of one run, what it rests on, and the degrees of freedom behind it."""
    if given is not None:
        return given, f"a spread of {given:.1%} of one run, as given", np.inf
    if degrees == 0:
        return (
            ASSUMED_NOISE_RATIO,
            f"nothing was measured twice: a spread of {ASSUMED_NOISE_RATIO:.0%} of one run is "
            "assumed (--noise)",
            np.inf,
        )
    spread = max(float(np.sqrt(squares / degrees)), LEAST_NOISE_RATIO)
    return (
        spread,
        f"repeats spread by {spread:.1%} ({plural(degrees, 'degree')} of freedom)",
        degrees,
    )


def _match(a: Dataset, b: Dataset, noise_ratio: float | None) -> _Sides:
    key, across = _keys(a, b)
    key_a, key_b = key[: len(a)], key[len(a) :]
    mean_a, runs_a, first_a, squares_a, degrees_a = _means(a, key_a)
    mean_b, runs_b, first_b, squares_b, degrees_b = _means(b, key_b)
    cases_a, cases_b = np.unique(key_a), np.unique(key_b)
    shared, place_a, place_b = np.intersect1d(cases_a, cases_b, return_indices=True)
    if not len(shared):
        raise UsageError(
            f"none of the {plural(len(cases_a), 'case')} of A is in B ({len(cases_b)}): the two "
            "must have LLM, lengths, load, layout, batch and boundary of some rows in common"
        )
    order = np.argsort(first_a[place_a], kind="stable")
    place_a, place_b = place_a[order], place_b[order]
    noise, said, degrees = _noise(noise_ratio, squares_a + squares_b, degrees_a + degrees_b)
    rows_a, rows_b = a.take(first_a[place_a]), b.take(first_b[place_b])
    mine, other = runs_a[place_a], runs_b[place_b]
    notes = list(_row_notes(a, b, rows_a, rows_b))
    parts = None
    terms: tuple[str, ...] = ()
    if not rows_a.under_load.any():
        pooled = Dataset.concatenate(
            [a.take(np.isin(key_a, shared)), b.take(np.isin(key_b, shared))]
        )
        try:
            model = fitting.fit(pooled, FitOptions(per=()))
        except (FitError, UsageError) as error:
            notes.append(f"Which terms changed cannot be told: {error}")
        else:
            parts = (sum_parts(model, rows_a.cases), sum_parts(model, rows_b.cases))
            terms = tuple(term.name for term in model.terms)
    else:
        notes.append("Which terms changed is told for rows of a full queue alone.")
    return _Sides(
        cases_a=rows_a.cases,
        cases_b=rows_b.cases,
        rows=rows_a,
        joules_a=mean_a[place_a],
        joules_b=mean_b[place_b],
        runs_a=mine,
        runs_b=other,
        deviation=noise * np.sqrt(1.0 / mine + 1.0 / other),
        degrees=degrees,
        noise_ratio=noise,
        noise=said,
        kind="tables",
        only_a=len(cases_a) - len(shared),
        only_b=len(cases_b) - len(shared),
        across=across,
        parts=parts,
        terms=terms,
        times=_times(rows_a.cases, rows_b.cases),
        notes=tuple(notes),
    )


def _row_notes(a: Dataset, b: Dataset, rows_a: Dataset, rows_b: Dataset) -> Iterator[str]:
    sources = [", ".join(side.source_counts()) for side in (a, b)]
    if sources[0] != sources[1]:
        yield f"The joules of A are {sources[0]}, those of B {sources[1]}."
    if not all(side.carries_accuracy_claim.all() for side in (a, b)):
        yield "Some joules are neither measured nor published: nothing here is a claim about GPUs."
    lengths = np.abs(rows_b.cases.output_tokens / rows_a.cases.output_tokens - 1.0)
    if lengths.max() > LEAST_CHANGE_RATIO:
        yield (
            f"Mean output lengths differ by up to {lengths.max():.0%} between the matched rows; "
            "ratios are at the length of A, as joules per output token are."
        )


def _times(a: Cases, b: Cases) -> dict[str, float]:
    """Median ratio of each time that both sides have."""
    found = {}
    for name in ("request_latency_s", "tpot_s", "ttft_s"):
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = getattr(b, name) / getattr(a, name)
        ratio = ratio[np.isfinite(ratio)]
        if len(ratio):
            found[name.removesuffix("_s")] = float(np.median(ratio))
    return found


# ---------------------------------------------------------------------------- two models' cases


def _grids(
    a: EnergyModel,
    b: EnergyModel,
    llms: Sequence[str],
    gpus: Sequence[str],
    input_tokens: float | None,
    output_tokens: float | None,
) -> _Sides:
    """Make cases within the scope of both, and ask both."""
    across = {}
    values: dict[str, list[tuple[str, str]]] = {}
    asked = {"llm": llms, "gpu": gpus, "precision": ()}
    lookup: dict[str, Callable[[str], Llm | Gpu | Precision]] = {
        "llm": catalog.llm,
        "gpu": catalog.gpu,
        "precision": catalog.precision,
    }
    for name, scopes in (
        ("llm", (a.scope.llms, b.scope.llms)),
        ("gpu", (a.scope.gpus, b.scope.gpus)),
        ("precision", (a.scope.precisions, b.scope.precisions)),
    ):
        if asked[name]:
            values[name] = [(lookup[name](n).id,) * 2 for n in asked[name]]
            continue
        mine, other = scopes[0] or scopes[1], scopes[1] or scopes[0]
        if not mine:
            raise UsageError(
                f"neither model was fitted to rows, so the {name} must be named (--{name})"
                if name != "precision"
                else "neither model was fitted to rows: there is nothing to compare"
            )
        common = sorted(set(mine) & set(other))
        if common:
            values[name] = [(n, n) for n in common]
        elif len(mine) == len(other) == 1:
            across[name] = [list(mine), list(other)]
            values[name] = [(mine[0], other[0])]
        else:
            raise UsageError(
                f"the two models have no {name} in common ({', '.join(mine)}; "
                f"{', '.join(other)}): name some, or fit models of one {name} each"
            )
    engines = [tuple(model.scope.engines) for model in (a, b)]
    if all(engines) and not set(engines[0]) & set(engines[1]):
        across["engine"] = [sorted(engines[0]), sorted(engines[1])]
    sides: tuple[list[Case], list[Case]] = ([], [])
    for llm, gpu, precision in product(values["llm"], values["gpu"], values["precision"]):
        for workload, configuration in _points(a, b, input_tokens, output_tokens):
            for side in (0, 1):
                try:
                    case = Case(
                        llm=catalog.llm(llm[side]),
                        gpu=catalog.gpu(gpu[side]),
                        precision=catalog.precision(precision[side]),
                        workload=workload,
                        configuration=configuration,
                        boundary=Boundary.ACTIVE_GPUS,
                        engine=UNKNOWN_ENGINE,
                    )
                except UnknownNameError:  # fitted with a catalog of someone else
                    continue
                sides[side].append(case)
    if not sides[0] or len(sides[0]) != len(sides[1]):
        raise UsageError("the LLMs and GPU types of the models must be in the catalog")
    cases = [Cases.of(side) for side in sides]
    runs = np.logical_and.reduce(
        [laid_out(side) & (room(side) >= side.batch_size) for side in cases]
    )
    if not runs.any():
        raise UsageError(
            "no case within the scope of both models fits in memory: name an --llm, --gpu, "
            "--input-tokens and --output-tokens that do"
        )
    of_a, of_b = (side.take(runs) for side in cases)
    variance = a.log_variance(of_a) + b.log_variance(of_b)
    same = tuple(term.name for term in a.terms) == tuple(term.name for term in b.terms)
    none = np.zeros(len(of_a), dtype=np.intp)
    deviation = np.sqrt(np.maximum(variance, LEAST_NOISE_RATIO**2))
    return _Sides(
        cases_a=of_a,
        cases_b=of_b,
        rows=None,
        joules_a=a.predict_energy_j(of_a),
        joules_b=b.predict_energy_j(of_b),
        runs_a=none,
        runs_b=none,
        deviation=deviation,
        degrees=np.inf,
        noise_ratio=float(np.median(deviation)),
        noise="what the two fits left uncertain, as if their rows had nothing in common",
        kind="models",
        across=across,
        parts=(sum_parts(a, of_a), sum_parts(b, of_b)) if same else None,
        terms=tuple(term.name for term in a.terms),
        notes=tuple(dict.fromkeys(model.caution for model in (a, b) if model.caution))
        + (() if same else ("They have other extensions: which terms changed cannot be told.",)),
    )


def _points(
    a: EnergyModel, b: EnergyModel, input_tokens: float | None, output_tokens: float | None
) -> list[tuple[Workload, Configuration]]:
    """Lengths, layouts and batches within the ranges of both fits."""

    def span(name: str, otherwise: tuple[float, float]) -> tuple[float, float]:
        given = [m.scope.ranges[name] for m in (a, b) if name in m.scope.ranges]
        given = given or [otherwise]
        low, high = max(r[0] for r in given), min(r[1] for r in given)
        if low > high:
            raise UsageError(
                f"the fits of the two models have no {name} in common: "
                f"{' and '.join(f'{r[0]:g} to {r[1]:g}' for r in given)}"
            )
        return low, high

    def powers(name: str, otherwise: tuple[float, float], most: int) -> list[int]:
        low, high = span(name, otherwise)
        first, last = int(np.ceil(np.log2(low))), int(np.floor(np.log2(high)))
        if first > last:
            return [max(round(float(np.sqrt(low * high))), 1)]
        picked = np.unique(np.rint(np.linspace(first, last, min(most, last - first + 1))))
        return [2 ** int(k) for k in picked]

    def tokens(name: str, given: float | None) -> list[float]:
        if given is not None:
            return [given]
        return [float(round(x)) for x in np.geomspace(*span(name, (256.0, 2048.0)), TOKENS)]

    prompts, outputs = tokens("input_tokens", input_tokens), tokens("output_tokens", output_tokens)
    lengths = dict.fromkeys(
        (prompts[min(k, len(prompts) - 1)], outputs[min(k, len(outputs) - 1)])
        for k in range(max(len(prompts), len(outputs)))
    )
    layouts = list(
        product(
            powers("tensor_parallel", (1, 8), LAYOUTS), powers("pipeline_parallel", (1, 1), LAYOUTS)
        )
    )
    return [
        (
            Workload(input_tokens=prompt, output_tokens=output),
            Configuration(tensor_parallel=tensor, pipeline_parallel=pipeline, batch_size=batch),
        )
        for (prompt, output), (tensor, pipeline), batch in product(
            lengths, layouts, powers("batch_size", (1, 256), BATCHES)
        )
    ]


# ------------------------------------------------------------------------------------ comparing


def _compare(
    sides: _Sides, names: tuple[str, str], choose: Sequence[str], least_ratio: float
) -> Comparison:
    from scipy.stats import t as student

    logs = np.log(_at_one_length(sides) / sides.joules_a)
    # Where no repeats stand behind the noise, it is taken as known.
    law = student(sides.degrees if np.isfinite(sides.degrees) else 1e9)
    chance = 2.0 * law.sf(np.abs(logs) / sides.deviation)
    m = len(logs)
    mean = float(logs.mean())
    error, degrees = _mean_error(sides, logs)
    overall = law if degrees is None else student(degrees)
    reach = float(overall.ppf(1.0 - ALPHA / 2.0)) * error
    found = _holm(np.append(chance, 2.0 * overall.sf(abs(mean) / error)))
    large = np.abs(logs) > np.log1p(least_ratio)
    beyond = found[:-1] & large
    verdicts = np.where(~beyond, "same", np.where(logs > 0, "higher", "lower"))
    sure = bool(found[-1]) and abs(mean) > np.log1p(least_ratio)
    widths = float(law.ppf(1.0 - ALPHA / 2.0)) * sides.deviation
    order = np.argsort(-np.abs(logs) * (1 + m * beyond), kind="stable")
    winners, scenarios = _winners(sides, choose, law, least_ratio)
    terms, rest = _terms(sides, logs)
    return Comparison(
        a=names[0],
        b=names[1],
        kind=sides.kind,
        across=sides.across,
        noise_ratio=sides.noise_ratio,
        noise=sides.noise,
        matched=m,
        only_a=sides.only_a,
        only_b=sides.only_b,
        overall_ratio=float(np.exp(mean)),
        overall_low_ratio=float(np.exp(mean - reach)),
        overall_high_ratio=float(np.exp(mean + reach)),
        overall_verdict=("higher" if mean > 0 else "lower") if sure else "same",
        counts={kind: int((verdicts == kind).sum()) for kind in ("higher", "lower", "same")},
        changes=tuple(
            _change(sides, int(i), float(logs[i]), float(widths[i]), str(verdicts[i]))
            for i in order
        ),
        scenarios=scenarios,
        winners=winners,
        terms=terms,
        unexplained_ratio=rest,
        times=sides.times,
        notes=sides.notes,
    )


def _mean_error(sides: _Sides, logs: FloatArray) -> tuple[float, int | None]:
    """Standard error of the mean, and degrees of freedom where the cases tell it themselves.

    Runs err by themselves. What a model says of two cases errs alike, and so do its residuals of
    one LLM: there, LLMs count and not cases.
    """
    m = len(logs)
    if sides.kind == "tables":
        of_noise = float(np.sqrt((sides.deviation**2).sum()) / m)
        groups, means = m, logs
    else:
        of_noise = float(sides.deviation.mean())
        llms, place = np.unique(sides.cases_a.llm_index, return_inverse=True)
        groups, means = len(llms), np.bincount(place, logs) / np.bincount(place)
        if sides.kind == "model and table":
            of_noise /= np.sqrt(groups)
    # A few that happen to move alike say less than the noise of each does.
    between = float(means.std(ddof=1) / np.sqrt(groups)) if groups >= 3 else 0.0
    return (between, groups - 1) if between > of_noise else (of_noise, None)


def _at_one_length(sides: _Sides) -> FloatArray:
    """Joules of B per request with as many output tokens as A's, shape (m,)."""
    ratio = sides.cases_a.output_tokens / sides.cases_b.output_tokens
    joules: FloatArray = sides.joules_b * ratio
    return joules


def _change(sides: _Sides, i: int, log: float, width: float, verdict: str) -> Change:
    mine, other = sides.cases_a.case(i), sides.cases_b.case(i)
    joules_a, joules_b = float(sides.joules_a[i]), float(sides.joules_b[i])

    def totals(case: Case) -> float:
        return case.workload.input_tokens + case.workload.output_tokens

    return Change(
        case=describe(mine),
        runs_a=int(sides.runs_a[i]),
        runs_b=int(sides.runs_b[i]),
        energy_per_request_a_j=joules_a,
        energy_per_request_b_j=joules_b,
        energy_per_output_token_a_j=joules_a / mine.workload.output_tokens,
        energy_per_output_token_b_j=joules_b / other.workload.output_tokens,
        energy_per_total_token_a_j=joules_a / totals(mine),
        energy_per_total_token_b_j=joules_b / totals(other),
        ratio=float(np.exp(log)),
        low_ratio=float(np.exp(log - width)),
        high_ratio=float(np.exp(log + width)),
        verdict=verdict,
    )


def _holm(chances: FloatArray) -> BoolArray:
    """Which findings hold, all of them together being wrong with a probability of ALPHA at most."""
    order = np.argsort(chances, kind="stable")
    steps = chances[order] <= ALPHA / np.arange(len(chances), 0, -1)
    kept = np.cumprod(steps).astype(np.bool_)
    found = np.zeros(len(chances), dtype=np.bool_)
    found[order] = kept
    return found


def _scenario_rows(sides: _Sides) -> Dataset:
    """The matched cases as rows, so that they can be told into scenarios."""
    if sides.rows is not None:
        return sides.rows
    n = len(sides.cases_a)
    blank = np.full(n, "", dtype=object)
    return Dataset(
        cases=sides.cases_a,
        energy_per_request_j=sides.joules_a,
        prefill_energy_per_request_j=np.full(n, np.nan),
        decode_energy_per_request_j=np.full(n, np.nan),
        modality=np.full(n, "text", dtype=object),
        source=np.full(n, "derived", dtype=object),
        task=blank,
        origin=blank,
        assumed=blank,
    )


def _winners(
    sides: _Sides, choose: Sequence[str], law: Any, least_ratio: float
) -> tuple[tuple[Winner, ...], int]:
    """Scenarios whose best configuration changed, and how many there are."""
    groups = _scenario_rows(sides).scenarios(choose)
    joules_b = _at_one_length(sides)
    moved, chances, costs = [], [], []
    for rows in groups:
        mine = rows[np.argmin(sides.joules_a[rows])]
        other = rows[np.argmin(joules_b[rows])]
        cost = float(np.log(joules_b[mine] / joules_b[other]))
        if mine == other or cost <= 0.0:
            continue
        # Only B's own runs say what keeping A's choice costs there.
        own = np.hypot(sides.deviation[mine], sides.deviation[other])
        moved.append((int(mine), int(other)))
        chances.append(float(law.sf(cost / own)))
        costs.append(cost)
    sure = _holm(np.array(chances)) if chances else np.empty(0, dtype=np.bool_)
    found = []
    for (mine, other), cost, held in zip(moved, costs, sure, strict=True):
        before, after = sides.cases_a.case(mine), sides.cases_a.case(other)
        w = before.workload
        found.append(
            Winner(
                scenario=f"{before.llm.id} {before.precision.id} on {before.gpu.id}, "
                f"{w.input_tokens:g} tokens in, {w.output_tokens:g} out",
                winner_a=before.configuration.describe(),
                winner_b=after.configuration.describe(),
                keeping_ratio=float(np.expm1(cost)),
                beyond_noise=bool(held and cost > np.log1p(least_ratio)),
            )
        )
    found.sort(key=lambda w: (not w.beyond_noise, -w.keeping_ratio))
    return tuple(found), len(groups)


def _terms(sides: _Sides, logs: FloatArray) -> tuple[tuple[TermChange, ...], float | None]:
    """Share the change among terms, and say what none of them explains.

    What the law says of both sides is taken as it is. The rest is shared by ridge regression:
    each term may move by a share of itself of about :data:`TERM_SPREAD`, and the rows say by how
    much; so what moves alike in every case is spread over the terms that are large.
    """
    if sides.parts is None:
        return (), None
    before, after = sides.parts
    after = after * (sides.cases_a.output_tokens / sides.cases_b.output_tokens)[:, None]
    joules_a = sides.joules_a
    expected = (after - before) / joules_a[:, None]
    change = np.expm1(logs)
    rest = change - expected.sum(axis=1)
    share = (before + after) / 2.0 / joules_a[:, None]
    if sides.kind == "models":  # the two laws say all there is
        moved, covariance = np.zeros(share.shape[1]), np.zeros((share.shape[1],) * 2)
    else:
        weight = 1.0 / sides.deviation**2
        precision = (share.T * weight) @ share + np.eye(share.shape[1]) / TERM_SPREAD**2
        covariance = np.linalg.inv(precision).astype(np.float64)
        moved = covariance @ (share.T @ (weight * rest))
        left = rest - share @ moved
        # Terms cannot be surer than the fit of them is good.
        scale = max(float((weight * left**2).sum()) / max(len(left) - 1, 1), 1.0)
        covariance = covariance * scale
    mean_share = share.mean(axis=0)
    values = expected.mean(axis=0) + moved * mean_share
    reach = NORMAL_80 * np.sqrt(np.diag(covariance)) * mean_share
    found = [
        TermChange(
            term=name,
            share_ratio=float(values[k]),
            low_ratio=float(values[k] - reach[k]),
            high_ratio=float(values[k] + reach[k]),
        )
        for k, name in enumerate(sides.terms)
        if mean_share[k] > 0
    ]
    found.sort(key=lambda t: -abs(t.share_ratio))
    return tuple(found), float(change.mean() - values.sum())
