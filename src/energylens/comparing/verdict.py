"""Which cases, winners and terms changed beyond the noise, all tests taken together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from energylens.cases import BoolArray, FloatArray
from energylens.comparing.matching import Sides
from energylens.comparing.result import Change, Comparison, TermChange, Winner
from energylens.dataset import Dataset
from energylens.explanation import describe
from energylens.model import NORMAL_80
from energylens.records import Case

#: With which probability any finding of a comparison may be chance.
ALPHA = 0.05

#: How far one term may move, a priori, as a share of itself.
TERM_SPREAD = 0.5


def decide(
    sides: Sides, names: tuple[str, str], choose: Sequence[str], least_ratio: float
) -> Comparison:
    """Test every case, the mean, and every winner; share the change among the terms."""
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


def _mean_error(sides: Sides, logs: FloatArray) -> tuple[float, int | None]:
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


def _at_one_length(sides: Sides) -> FloatArray:
    """Joules of B per request with as many output tokens as A's, shape (m,)."""
    ratio = sides.cases_a.output_tokens / sides.cases_b.output_tokens
    joules: FloatArray = sides.joules_b * ratio
    return joules


def _change(sides: Sides, i: int, log: float, width: float, verdict: str) -> Change:
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


def _scenario_rows(sides: Sides) -> Dataset:
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
    sides: Sides, choose: Sequence[str], law: Any, least_ratio: float
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


def _terms(sides: Sides, logs: FloatArray) -> tuple[tuple[TermChange, ...], float | None]:
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
