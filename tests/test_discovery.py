from __future__ import annotations

import itertools
import json
import math
import os
import sys
import types
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from benchmarks import planted_laws
from hypothesis import given, settings
from hypothesis import strategies as st

from energylens import catalog, discovery, formula, table
from energylens.cases import Cases, FloatArray
from energylens.cli import main
from energylens.dataset import Dataset
from energylens.discovery import (
    Discovery,
    Expression,
    Found,
    Front,
    FrontPoint,
    FrontTerm,
    OperonEngine,
    OwnEngine,
    Problem,
    PysrEngine,
    Structure,
    Term,
    Unit,
    discover,
    physical_terms,
    quantities,
    quantity_columns,
    subsets,
)
from energylens.discovery import search as loop
from energylens.discovery.library import quantity_units
from energylens.discovery.subsets import Gram, best_subsets, distinct_columns
from energylens.discovery.symbolic import Inputs
from energylens.errors import (
    ArtefactError,
    FitError,
    InputError,
    MissingExtraError,
    UnknownNameError,
    UsageError,
)

DATA = Path(
    os.environ.get("ENERGYLENS_DATA", Path(__file__).resolve().parents[1] / "../shared/data")
)
DOCS = Path(__file__).resolve().parents[1] / "docs" / "studies" / "discovery.md"
SPLIT = next(law for law in planted_laws.STRUCTURES if law.name == "prefill + decode")
UNITS = quantity_units()


def planted(
    law: planted_laws.Planted = SPLIT, rows: int = 120, noise_ratio: float = 0.02, seed: int = 5
) -> Dataset:
    rng = np.random.default_rng(seed)
    cases = planted_laws.draw_cases(law, rows, rng)
    values = planted_laws.term_values(law.terms, cases)
    energy_j = values @ planted_laws.plant(values, quantity_columns(cases)["scale_j"], rng)
    return planted_laws.dataset_of(
        cases, energy_j * (1.0 + noise_ratio * rng.standard_normal(rows))
    )


DATASET = planted()
FRONT = discover(DATASET, OwnEngine(), samples=2)


def texts(point: FrontPoint) -> set[str]:
    return {term.expression.text for term in point.terms}


# -------------------------------------------------------------------------------------- units


def test_a_term_that_adds_joules_to_joules_per_token_is_refused() -> None:
    with pytest.raises(InputError, match=r"like units.*J/request and J/token"):
        Term.of("scale_j + scale_j / output_tokens", "1")


def test_a_coefficient_per_token_on_no_tokens_is_refused_with_the_unit_it_needs() -> None:
    with pytest.raises(InputError, match=r"'gpus' .*J/token.*needs a coefficient in J/request"):
        Term.of("gpus", "J/token")


@pytest.mark.parametrize(
    "text",
    [
        "log2(output_tokens)",
        "max(output_tokens, prefill_flop)",
        "prefill_flop - passes",
        "2 ** output_tokens",
        "output_tokens ** running",
    ],
)
def test_expressions_without_a_unit_are_refused(text: str) -> None:
    with pytest.raises(InputError):
        Expression(text).unit(UNITS)


def test_fitted_numbers_may_carry_units_but_plain_sums_may_not() -> None:
    fitted = Expression("2.5 * prefill_flop + 0.1 * output_tokens")
    assert fitted.unit(UNITS, free_constants=True) is None
    with pytest.raises(InputError, match="like units"):
        fitted.unit(UNITS)
    with pytest.raises(InputError, match="like units"):
        Expression("prefill_flop + output_tokens").unit(UNITS, free_constants=True)


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("gpus * kernels * steps", "kernel/request"),
        ("cache_bytes / bandwidth_bytes_per_s", "s/request"),
        ("sqrt(prefill_flop * decode_flop)", "FLOP/request"),
        ("prefill_flop ** (1 / 2)", "FLOP^1/2/request^1/2"),
        ("running / (running + 64)", "1"),
        ("-log2(tensor_parallel)", "1"),
    ],
)
def test_units_follow_the_arithmetic(text: str, unit: str) -> None:
    assert str(Expression(text).unit(UNITS)) == unit


@given(st.lists(st.tuples(st.sampled_from(["J", "s", "byte"]), st.integers(-3, 3)), max_size=5))
def test_units_survive_being_written_and_multiplying_back(parts: list[tuple[str, int]]) -> None:
    unit = Unit.parse("1")
    for name, power in parts:
        unit = unit * Unit.parse(f"{name}^{power}")
    assert Unit.parse(str(unit)) == unit
    assert unit * Unit.parse("J/s") / Unit.parse("J/s") == unit


def test_a_unit_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match=r"'J per byte\?'"):
        Unit.parse("J per byte?")


# -------------------------------------------------------------------------------- expressions


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')",
        "gpus.real",
        "(lambda: 1)()",
        "[gpus]",
        "gpus if 1 else 2",
        "'a'",
        "True",
        "max(gpus)",
        "sqrt(x=gpus)",
        "1e999",
        "gpus //2",
        "",
        "(" * 5000,
    ],
)
def test_what_is_not_plain_arithmetic_is_not_an_expression(text: str) -> None:
    with pytest.raises(InputError):
        Expression(text)


def test_an_unknown_quantity_is_named() -> None:
    with pytest.raises(InputError, match="'joules'"):
        Expression("2 * joules").evaluate({"gpus": np.ones(3)})
    with pytest.raises(InputError, match="'joules'"):
        Term.of("2 * joules", "1")


NUMBERS = st.sampled_from(["0.5", "2.0", "3"])
LEAVES = st.sampled_from(["tensor_parallel", "running", "gpus"]) | NUMBERS
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})")
        | st.tuples(st.sampled_from(["max", "min"]), inner, inner).map(
            lambda t: f"{t[0]}({t[1]}, {t[2]})"
        )
        | inner.map(lambda t: f"log2(1 + abs({t}))")
    ),
    max_leaves=6,
)


@given(TREES)
@settings(max_examples=25, deadline=None)
def test_value_numpy_source_and_sympy_agree(text: str) -> None:
    columns = {
        "tensor_parallel": np.array([1.0, 4.0]),
        "running": np.array([3.0, 70.0]),
        "gpus": np.array([2.0, 8.0]),
    }
    expression = Expression(text)
    value = np.broadcast_to(expression.evaluate(columns), (2,))
    with np.errstate(all="ignore"):
        try:
            source = eval(expression.to_numpy(), {"np": np, **columns})
        except ZeroDivisionError:  # of two plain numbers
            return
    np.testing.assert_array_equal(np.broadcast_to(source, (2,)), value)
    if np.isfinite(value).all():
        symbolic = expression.to_sympy()
        for row in range(2):
            at = {s: columns[str(s)][row] for s in symbolic.free_symbols}
            known = complex(symbolic.subs(at))
            assert known == pytest.approx(value[row], rel=1e-9, abs=1e-9)


def test_complexity_counts_names_numbers_operators_and_functions() -> None:
    assert Expression("gpus").complexity == 1
    assert Expression("gpus * steps / (running + 8)").complexity == 7
    assert Expression("log2(tensor_parallel)").complexity == 2


def test_every_library_term_typesets_as_mathml() -> None:
    converter = pytest.importorskip("latex2mathml.converter")
    symbols = {name: quantity.symbol for name, quantity in quantities().items()}
    terms = [term.expression.to_latex(symbols) for term in physical_terms()]
    for tex in (*terms, FRONT.knee.to_latex()):
        typeset = ElementTree.fromstring(converter.convert(tex))
        letters = "".join(typeset.itertext())
        assert "\\" not in letters, tex  # no command is left over


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("gpus * (running + 8)", r"G \, \left(B + 8\right)"),
        ("steps / (running + 8)", r"\frac{n_d}{B + 8}"),
        ("gpus - (steps - 1)", r"G - \left(n_d - 1\right)"),
        ("(gpus + 1) ** 2", r"\left(G + 1\right)^{2}"),
        ("sqrt(max(gpus, steps))", r"\sqrt{\max\left(G, n_d\right)}"),
    ],
)
def test_latex_keeps_the_order_of_operations(text: str, latex: str) -> None:
    assert Expression(text).to_latex({"gpus": "G", "steps": "n_d", "running": "B"}) == latex


# ------------------------------------------------------------------------------------ library


def every_kind_of_case() -> Cases:
    kinds = [
        planted_laws.draw_cases(replace(SPLIT, llms=llms, pipeline=True), 60, rng)
        for llms, rng in (
            (planted_laws.MOE, np.random.default_rng(0)),
            (planted_laws.VISION, np.random.default_rng(1)),
            (
                ("nvidia/Nemotron-H-8B-Base-8K", "state-spaces/mamba2-2.7b"),
                np.random.default_rng(2),
            ),
        )
    ]
    return Cases.concatenate(kinds)


CASES = every_kind_of_case()


def test_every_library_term_is_joules_per_request_and_never_negative() -> None:
    columns = quantity_columns(CASES)
    assert {name: c.shape for name, c in columns.items()} == dict.fromkeys(
        quantities(), (len(CASES),)
    )
    for term in (*physical_terms(), *physical_terms(by_datasheet=True)):
        term.check()
        value = term.expression.evaluate(columns)
        assert np.isfinite(value).all(), term.expression.text
        assert (value >= 0).all(), term.expression.text


def test_the_library_holds_each_form_of_the_issue_once() -> None:
    library = [term.expression.text for term in physical_terms()]
    assert len(set(library)) == len(library) >= 80
    joined = " ".join(library)
    for form in ("/ tensor_parallel", "log2(", "(pipeline_parallel - 1)", "max(", "/ running"):
        assert form in joined


def test_the_frozen_law_can_be_written_with_library_terms() -> None:
    from scipy.optimize import nnls

    columns = quantity_columns(CASES)
    library = np.column_stack([t.expression.evaluate(columns) for t in physical_terms()])
    scale = columns["scale_j"][:, None]
    library = library[:, library.any(axis=0)] / scale
    library /= library.max(axis=0)
    for name, column in zip(formula.NAMES, formula.design(CASES).T / scale[:, 0], strict=True):
        if column.any():
            # 1e-5: the scale of the columns' own relative error budget in counts.py
            assert nnls(library, column / column.max(), maxiter=5000)[1] < 1e-5, name


def test_the_parts_of_quantities_add_up_to_the_whole() -> None:
    c = quantity_columns(CASES)
    np.testing.assert_allclose(
        c["step_always_bytes"] + c["step_expert_bytes"], c["step_weight_bytes"]
    )
    dense = CASES.of_llm(lambda m: float(m.experts is None)) > 0
    assert (c["step_expert_bytes"][dense] == 0).all()
    assert (c["step_expert_bytes"][~dense] > 0).all()
    assert (c["step_all_bytes"] >= c["step_weight_bytes"] * (1 - 1e-12)).all()
    no_attention = CASES.of_llm(lambda m: float(m.attention is None)) > 0
    assert no_attention.any()
    assert (c["prefill_attention_flop"][no_attention] == 0).all()
    assert (c["prefill_attention_flop"][~no_attention] > 0).all()


def test_several_gpu_types_are_priced_by_their_datasheets() -> None:
    a100 = catalog.gpu("A100-SXM-80GB")
    cases = replace(
        DATASET.cases,
        gpus=(*DATASET.cases.gpus, a100),
        gpu_index=np.arange(len(DATASET)) % 2,
    )
    front = discover(replace(DATASET, cases=cases), OwnEngine(largest=4), folds=2, samples=0)
    units = {
        (term.expression.text.split(" * ")[0], term.unit)
        for point in front.points
        for term in point.terms
    }
    assert ("step_weight_bytes", "1") in units or ("prefill_flop", "1") in units
    assert all("tdp_w" in term.expression.text for term in front.knee.terms)


# ------------------------------------------------------------------------------- best subsets


def random_problem(seed: int, columns: int = 10) -> tuple[FloatArray, Gram]:
    rng = np.random.default_rng(seed)
    base = rng.lognormal(0, 1, (50, 4))
    x = (base @ rng.random((4, columns))) * rng.lognormal(0, 0.3, (50, columns))
    y = x @ (rng.random(columns) * (rng.random(columns) < 0.4) + 1e-3)
    a = x / (y * (1 + 0.1 * rng.standard_normal(50)))[:, None]
    return a, Gram.of(a, np.ones(50), np.zeros(columns))


@pytest.mark.parametrize("seed", range(6))
def test_best_subsets_are_those_of_exhaustive_search(seed: int) -> None:
    _, gram = random_problem(seed)
    found = best_subsets(gram, 5, width=4)
    assert len(found) >= 3
    for subset in found:
        every = np.array(list(itertools.combinations(range(10), len(subset))))
        losses = gram.losses(every)
        assert tuple(every[losses.argmin()].tolist()) == subset


@pytest.mark.parametrize("seed", [13, 15, 19])
def test_swaps_reach_what_single_steps_miss(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    _, gram = random_problem(seed)

    def losses() -> FloatArray:
        found = best_subsets(gram, 5, width=1)
        return np.array([gram.losses(np.array([subset]))[0] for subset in found])

    with_swaps = losses()
    monkeypatch.setattr(subsets, "ROUNDS", 0)
    assert (with_swaps < losses() * (1 - 1e-9)).any()


@given(st.integers(0, 50), st.permutations(range(10)))
@settings(max_examples=15, deadline=None)
def test_the_order_and_the_units_of_columns_do_not_matter(seed: int, order: list[int]) -> None:
    a, gram = random_problem(seed)
    found = best_subsets(gram, 4, width=4)
    size = 10.0 ** np.linspace(-9, 9, 10)
    shuffled = Gram.of((a * size)[:, order], np.ones(50), np.zeros(10))
    again = [
        tuple(sorted(order[j] for j in subset)) for subset in best_subsets(shuffled, 4, width=4)
    ]
    assert again == found


def test_a_subset_that_wants_a_negative_coefficient_is_never_returned() -> None:
    x = np.random.default_rng(0).lognormal(0, 1, (40, 2))
    a = np.column_stack([x[:, 0] + x[:, 1], x[:, 1]]) / x[:, :1]  # target = first - second
    found = best_subsets(Gram.of(a, np.ones(40), np.zeros(2)), 2, width=4)
    assert [len(subset) for subset in found] == [1]


def test_columns_that_rows_cannot_tell_apart_are_searched_once() -> None:
    x = np.random.default_rng(0).lognormal(0, 1, (30, 2))
    columns = np.column_stack([x[:, 0], 0 * x[:, 0], 7 * x[:, 0], x[:, 1], x[:, 1] * np.nan])
    assert distinct_columns(columns).tolist() == [0, 3]


# ----------------------------------------------------------------------------------- the loop


def test_a_planted_law_is_found_with_its_coefficients_units_and_stability() -> None:
    assert texts(FRONT.knee) == set(SPLIT.terms)
    units = {term.expression.text: term.unit for term in FRONT.knee.terms}
    assert units["prefill_flop"] == "J/FLOP"
    assert units["cache_bytes"] == "J/byte"
    assert sum(term.share_ratio for term in FRONT.knee.terms) == pytest.approx(1.0)
    assert all(term.stability_ratio >= 0.5 for term in FRONT.knee.terms)
    assert 0.01 < FRONT.knee.held_out_mape_ratio < 0.025
    assert FRONT.groups == "llm"
    assert FRONT.folds == 7


def test_the_front_falls_in_error_as_it_grows_in_complexity() -> None:
    assert sum(point.knee for point in FRONT.points) == 1
    for simple, complex_ in itertools.pairwise(FRONT.points):
        assert simple.complexity < complex_.complexity
        assert simple.held_out_mape_ratio > complex_.held_out_mape_ratio


def test_the_same_rows_give_the_same_bytes() -> None:
    again = discover(DATASET, OwnEngine(), samples=2)
    assert json.dumps(again.to_json()) == json.dumps(FRONT.to_json())


def test_energy_that_follows_no_law_gets_a_small_knee() -> None:
    rng = np.random.default_rng(0)
    noise = planted_laws.dataset_of(DATASET.cases, rng.lognormal(3, 0.5, len(DATASET)))
    knee = discover(noise, OwnEngine(), samples=0, folds=4).knee
    assert knee.size <= 2
    assert knee.held_out_mape_ratio > 0.3


def test_rows_of_great_uncertainty_count_little() -> None:
    spoilt = DATASET.energy_per_request_j.copy()
    spoilt[::3] *= np.random.default_rng(1).lognormal(0.0, 1.0, len(spoilt[::3]))
    rows = planted_laws.dataset_of(DATASET.cases, spoilt)
    uncertainty = np.full(len(rows), 0.02)
    misled = discover(rows, OwnEngine(), samples=0, folds=3)
    assert texts(misled.knee) != set(SPLIT.terms)
    uncertainty[::3] = 20.0
    front = discover(rows, OwnEngine(), samples=0, folds=3, uncertainty_ratio=uncertainty)
    # A term may have a near equivalent in its place; what it predicts is not spoilt.
    assert {"step_weight_bytes", "cache_bytes"} <= texts(front.knee)
    assert front.knee.held_out_mape_ratio < 0.025


def test_simulated_rows_are_noted() -> None:
    assert any("neither measured nor published" in note for note in FRONT.notes)


def test_the_frozen_law_is_judged_on_the_same_folds() -> None:
    reference = FRONT.reference
    assert reference is not None
    assert reference.name == f"frozen law {formula.STRUCTURE}"
    assert reference.terms == len(formula.TERMS)
    assert reference.in_sample_mape_ratio < reference.held_out_mape_ratio < 0.2


@dataclass(frozen=True)
class Watched(OwnEngine):
    """The own engine, which writes down the energies that it is shown."""

    seen: list[set[float]] = field(default_factory=list)

    def search(self, problem: Problem, *, seed: int, largest: int | None) -> list[Found]:
        self.seen.append(set(problem.energy_j.tolist()))
        return super().search(problem, seed=seed, largest=largest)


def test_whole_llms_are_left_out_and_every_one_once() -> None:
    engine = Watched(largest=3)
    discover(DATASET, engine, samples=0, folds=3, leave="llm")
    whole, *folds = engine.seen
    energies = [
        set(DATASET.energy_per_request_j[DATASET.cases.llm_index == k].tolist()) for k in range(7)
    ]
    assert whole == set.union(*energies)
    left_out = [[not (shown & llm) for llm in energies] for shown in folds]
    for shown, out in zip(folds, left_out, strict=True):
        assert shown == set.union(
            *(llm for llm, gone in zip(energies, out, strict=True) if not gone)
        )
    assert np.sum(left_out, axis=0).tolist() == [1] * 7


def found(size: int, criterion: float) -> Found:
    return Found(terms=(), size=size, loss=1.0, criterion=criterion, skeletons=())


@pytest.mark.parametrize(
    ("means", "spread", "criteria", "knee"),
    [
        ([0.5, 0.2, 0.11, 0.10], 0.001, [4, 3, 2, 1], 3),  # each step is worth more than its error
        ([0.5, 0.2, 0.11, 0.10], 0.05, [4, 3, 2, 1], 2),  # the last is not
        ([0.5, 0.2, 0.11, 0.10], 0.05, [4, 1, 2, 3], 1),  # the criterion stops before
        ([0.5, 0.1, 0.2, 0.3], 0.001, [4, 3, 2, 1], 1),  # more terms carry worse
    ],
)
def test_the_knee_is_the_simplest_within_one_standard_error(
    means: list[float], spread: float, criteria: list[float], knee: int
) -> None:
    path = [found(i + 1, float(criterion)) for i, criterion in enumerate(criteria)]
    group = np.repeat(np.arange(8), 5)
    wobble = np.where(group % 2, 1.0, -1.0)[None] * spread * np.arange(4)[:, None]
    errors = np.array(means)[:, None] + wobble
    assert loop._knee(path, errors, np.ones(40), group) == knee


def test_the_criterion_charges_for_terms_rivals_and_nodes() -> None:
    problem = loop._problem(DATASET, None)
    for item in OwnEngine(largest=4).search(problem, seed=0, largest=4):
        n, k, p = len(DATASET), item.size, OwnEngine().candidates(problem)
        nodes = sum(e.complexity + 2 * ("step_weight_bytes" in e.names) for _, e in item.terms)
        expected = n * math.log(item.loss / n) + k * math.log(n)
        expected += 2 * math.log(math.comb(p, k)) + 0.5 * (nodes - k)
        assert item.criterion == pytest.approx(expected)
        assert item.loss == pytest.approx(
            ((item.predict_energy_j(problem.columns) / problem.energy_j - 1) ** 2).sum()
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 1}, "folds must be 2 or more"),
        ({"samples": -1}, "samples 0 or more"),
        ({"leave": "gpu"}, "leave must be auto, llm, workload, row"),
        ({"choose": ("speed",)}, "free knobs"),
        ({"uncertainty_ratio": np.ones(3)}, "each of the 120 rows"),
        ({"uncertainty_ratio": np.zeros(120)}, "above 0"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        discover(DATASET, OwnEngine(), **options)


def test_a_single_llm_cannot_be_left_out_but_its_workloads_can() -> None:
    one = DATASET.take(np.flatnonzero(DATASET.cases.llm_index == 0))
    with pytest.raises(UsageError, match="rows have one"):
        discover(one, OwnEngine(), leave="llm")
    front = discover(one, OwnEngine(largest=4), samples=0, folds=3)
    assert front.groups == "workload"


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(FitError, match="8 measured rows or more; given 5"):
        discover(DATASET.take(np.arange(5)), OwnEngine())


def test_a_library_that_no_row_has_is_a_sentence() -> None:
    with pytest.raises(FitError, match="own engine found no expression"):
        discover(DATASET, OwnEngine(terms=(Term.of("vision_flop", "J/FLOP"),)), folds=2)


def test_a_users_own_term_takes_part() -> None:
    text = "step_weight_bytes * (tensor_parallel - 1) * (pipeline_parallel - 1)"
    law = next(law for law in planted_laws.STRUCTURES if law.name == "TP x PP interaction")
    engine = OwnEngine(terms=(*physical_terms(), Term.of(text, "J/byte", "both at once")))
    knee = discover(planted(law), engine, samples=0).knee
    assert texts(knee) == set(law.terms)
    assert "both at once" in {term.meaning for term in knee.terms}


def scenario_dataset(energy_j: list[float]) -> Dataset:
    """One LLM and workload; tensor parallelism is all that differs."""
    cases = DATASET.cases.take(np.zeros(len(energy_j), dtype=np.intp))
    cases = cases.replace(tensor_parallel=2.0 ** np.arange(len(energy_j)))
    return planted_laws.dataset_of(cases, np.array(energy_j))


@pytest.mark.parametrize(
    ("predicted", "top1", "regret"),
    [
        ([1.0, 2.0, 3.0], 1.0, 0.0),
        ([3.0, 1.0, 2.0], 0.0, 0.2),
        ([1.0, 1.0, 2.0], 0.5, 0.1),
        ([math.nan, 1.0, 2.0], None, None),
    ],
)
def test_top1_and_regret_of_a_choice(
    predicted: list[float], top1: float | None, regret: float | None
) -> None:
    dataset = scenario_dataset([10.0, 12.0, 15.0])
    scores = loop.choice_scores(dataset, np.array(predicted), ("tensor_parallel",))
    assert scores == (top1, None if regret is None else pytest.approx(regret))


def test_a_scorer_of_ones_own_is_given_held_out_predictions() -> None:
    seen = []

    def scorer(dataset: Dataset, predicted: FloatArray) -> tuple[float, float]:
        seen.append(np.abs(predicted / dataset.energy_per_request_j - 1).mean())
        return 0.25, 0.5

    front = discover(DATASET, OwnEngine(largest=4), folds=3, samples=0, scorer=scorer)
    assert (front.knee.top1_ratio, front.knee.regret_mean_ratio) == (0.25, 0.5)
    assert any(front.knee.held_out_mape_ratio == pytest.approx(value) for value in seen)


@dataclass(frozen=True)
class Careless:
    """An engine whose second formula adds unlike units."""

    name: str = "careless"
    fitted_constants: bool = True
    folds: int = 2
    samples: int = 0

    def candidates(self, problem: Problem) -> int:
        return len(problem.columns)

    def search(self, problem: Problem, *, seed: int, largest: int | None) -> list[Found]:
        del seed, largest
        made = []
        for size, text in ((1, "prefill_flop"), (2, "prefill_flop + output_tokens")):
            a = problem.relative([Expression(text)])
            c = float(a[:, 0] @ problem.target / (a[:, 0] @ a[:, 0]))
            loss = float(((a[:, 0] * c - 1) ** 2).sum())
            made.append(
                Found(
                    terms=((c, Expression(text)),),
                    size=size,
                    loss=loss,
                    criterion=loss,
                    skeletons=(text,),
                )
            )
        return made


def test_formulas_that_add_unlike_units_are_dropped_and_counted() -> None:
    front = discover(DATASET, Careless())
    assert [texts(point) for point in front.points] == [{"prefill_flop"}]
    assert any("1 expressions were refused" in note for note in front.notes)


# ----------------------------------------------------------------------------------- exports


def test_exported_python_computes_what_the_point_predicts() -> None:
    for point in FRONT.points:
        scope: dict[str, Any] = {}
        exec(point.to_python(), scope)
        columns = quantity_columns(DATASET.cases)
        names = point.expression.names
        value = scope["energy_per_request_j"](**{name: columns[name] for name in names})
        np.testing.assert_allclose(value, point.predict_energy_j(DATASET.cases), rtol=1e-12)
        assert all(f"{name}:" in scope["energy_per_request_j"].__doc__ for name in names)


def test_exported_sympy_computes_what_the_point_predicts() -> None:
    point = FRONT.points[-1]
    columns = quantity_columns(DATASET.cases)
    symbolic = point.to_sympy()
    at = {s: columns[str(s)][3] for s in symbolic.free_symbols}
    assert float(symbolic.subs(at)) == pytest.approx(point.predict_energy_j(DATASET.cases)[3])


def test_the_whole_expression_is_in_joules_and_equals_its_terms() -> None:
    for point in FRONT.points:
        value = point.expression.evaluate(quantity_columns(DATASET.cases))
        np.testing.assert_allclose(value, point.predict_energy_j(DATASET.cases), rtol=1e-12)


def test_latex_writes_signs_and_powers_of_ten() -> None:
    def term(coefficient: float, text: str) -> FrontTerm:
        return FrontTerm(expression=Expression(text), coefficient=coefficient, unit="1")

    point = replace(FRONT.knee, terms=(term(1.5e-9, "cache_bytes"), term(-2.0, "passes + steps")))
    assert point.to_latex() == (r"E = 1.5 \times 10^{-9} \, C - 2 \, \left(n_p + n_d\right)")
    energy = point.predict_energy_j(DATASET.cases)
    columns = quantity_columns(DATASET.cases)
    expected = 1.5e-9 * columns["cache_bytes"] - 2.0 * (columns["passes"] + columns["steps"])
    assert (expected < 0).any()
    np.testing.assert_allclose(energy, np.where(expected > 0, expected, np.nan))


def test_a_front_survives_json() -> None:
    document = json.loads(json.dumps(FRONT.to_json()))
    assert Front.from_json(document, "front.json") == FRONT


def test_the_legend_names_every_quantity_of_the_front() -> None:
    legend = FRONT.to_json()["legend"]
    assert legend["prefill_flop"] == {
        "symbol": "F_p",
        "unit": "FLOP/request",
        "meaning": "operations of prefill",
    }
    assert set(legend) == {n for point in FRONT.points for n in point.expression.names}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "energylens-model"}, "written by energylens discover"),
        ({"version": 2}, "upgrade energylens"),
        ({"points": []}, "knee"),
        ({"points": [{"terms": [{"expression": "import os"}]}]}, "not a whole front"),
        ({"points": [{"terms": []}]}, "a point has no terms"),
        ({"rows": "<b>many</b>"}, "rows must be int, not '<b>many</b>'"),
        ({"samples": True}, "samples must be int, not True"),
        ({"notes": ["fine", 3]}, "notes must be"),
        ({"sources": {"measured": "all"}}, "sources must be"),
        ({"reference": {"name": "frozen"}}, "not a whole front"),
        ({"reference": {"name": 1}}, "not a whole front"),
        ({"choose": None}, "not a whole front"),
    ],
)
def test_a_document_that_is_no_front_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtefactError, match=message):
        Front.from_json(FRONT.to_json() | change, "front.json")


def test_a_front_from_before_stand_ins_were_counted_is_read() -> None:
    document = FRONT.to_json()
    for point in document["points"]:
        for term in point["terms"]:
            del term["stand_ins"]
    terms = [
        term for point in Front.from_json(document, "front.json").points for term in point.terms
    ]
    assert terms
    assert all(term.stand_ins == {} for term in terms)


def test_a_front_of_unknown_quantities_is_refused() -> None:
    document = json.loads(json.dumps(FRONT.to_json()).replace("cache_bytes", "crash_bytes"))
    with pytest.raises(ArtefactError, match="unknown quantities"):
        Front.from_json(document, "front.json")


# -------------------------------------------------------------------------------- contestants


def test_a_frozen_structure_is_refitted_without_its_coefficients() -> None:
    exact = planted(noise_ratio=0.0)
    fitted = Structure(expressions=tuple(map(Expression, SPLIT.terms))).fit(
        exact.take(np.arange(30))
    )
    np.testing.assert_allclose(
        fitted.predict_energy_j(exact.cases), exact.energy_per_request_j, rtol=1e-6
    )
    assert Structure.of(FRONT.knee, "found").name == "found"
    assert all(c >= 0 for c in Structure.of(FRONT.knee).fit(DATASET).coefficients)


def test_a_structure_refuses_rows_that_say_nothing_of_it() -> None:
    vision = Structure(expressions=(Expression("vision_flop"),))
    with pytest.raises(FitError, match="above 0 on some"):
        vision.fit(DATASET)
    with pytest.raises(FitError, match="has none"):
        vision.fit(DATASET.take(np.arange(0)))


def test_discovery_is_an_estimator() -> None:
    estimator = Discovery(engine=OwnEngine(largest=5))
    assert (estimator.name, estimator.ranks_only) == ("discovered", False)
    energy = estimator.fit(DATASET).predict_energy_j(DATASET.cases)
    assert np.median(np.abs(energy / DATASET.energy_per_request_j - 1)) < 0.03


def test_engines_are_found_by_name() -> None:
    assert [discovery.engine(name).name for name in discovery.ENGINES] == list(discovery.ENGINES)
    with pytest.raises(UnknownNameError, match="There are own, operon, pysr"):
        discovery.engine("gplearn")
    with pytest.raises(UsageError, match="largest must be 1 or more"):
        OwnEngine(largest=0)


# ------------------------------------------------------------------------- pyoperon and PySR

TWO = next(law for law in planted_laws.STRUCTURES if law.name == "memory-bound decode")


def test_operon_finds_two_planted_terms() -> None:
    pytest.importorskip("pyoperon")
    engine = OperonEngine(evaluations=6000, population=150, largest=9)
    found = [discover(planted(TWO, rows=60), engine, folds=2, samples=0, seed=s) for s in range(4)]
    front = found[0]
    # Chance decides what a small population meets: each start finds one of the two at least.
    assert all(texts(each.knee) & set(TWO.terms) for each in found)
    assert any(set(TWO.terms) <= texts(each.knee) for each in found)
    assert front.engine == "operon"


def test_operon_repeats_itself_for_a_seed() -> None:
    pytest.importorskip("pyoperon")
    engine = OperonEngine(evaluations=1000, population=100, largest=9)
    problem = loop._problem(planted(TWO, rows=60), None)
    first = engine.search(problem, seed=1, largest=None)
    assert first == engine.search(problem, seed=1, largest=None)
    assert first != engine.search(problem, seed=2, largest=None)


class StubRegressor:
    """Answers what PySR would, and keeps what it was asked."""

    made: list[StubRegressor]

    def __init__(self, **options: Any) -> None:
        self.options = options
        type(self).made.append(self)

    def fit(
        self, x: FloatArray, y: FloatArray, *, weights: FloatArray, variable_names: list[str]
    ) -> None:
        self.rows, self.weights = (x, y), weights
        names = ("step_weight_bytes", "cache_bytes")
        inputs = Inputs.of(loop._problem(planted(TWO, rows=60), None))
        i, j = (
            next(k for k, text in enumerate(inputs.texts) if name in text) + 1 for name in names
        )
        assert variable_names[i - 1] == f"x{i}"
        self.equations_ = {
            "complexity": [1, 5, 9, 11],
            "equation": [
                f"x{i}",
                f"(x{i} * 0.3) + x{j}",
                f"((x{i} * 0.3) + x{j}) * 1.01 + 0.0",
                f"log(x{i} - 1.0e9)",  # not finite anywhere
            ],
        }


@pytest.fixture
def stub_pysr(monkeypatch: pytest.MonkeyPatch) -> type[StubRegressor]:
    module = types.ModuleType("pysr")
    StubRegressor.made = []
    module.PySRRegressor = StubRegressor  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pysr", module)
    return StubRegressor


def test_pysr_is_asked_for_relative_errors_and_its_formulas_become_terms(
    stub_pysr: type[StubRegressor],
) -> None:
    dataset = planted(TWO, rows=60)
    front = discover(dataset, PysrEngine(), folds=2, samples=0, seed=7)
    assert texts(front.knee) == set(TWO.terms)
    assert [point.size for point in front.points] == [1, 5]  # the third is no better
    first = stub_pysr.made[0]
    assert first.options["random_state"] == 7
    assert first.options["deterministic"]
    assert first.options["parallelism"] == "serial"
    np.testing.assert_allclose(first.weights * first.rows[1] ** 2, 1.0)


@pytest.mark.parametrize(
    ("engine", "module", "extra"),
    [
        (OperonEngine(), "pyoperon.sklearn", r"energylens\[discover\]"),
        (PysrEngine(), "pysr", r"energylens\[pysr\]"),
    ],
)
def test_an_absent_engine_names_its_extra(
    engine: OperonEngine | PysrEngine, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=extra):
        discover(DATASET, engine)


def test_without_sympy_only_the_symbolic_export_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "sympy", None)
    assert "np.sqrt(running)" in FRONT.points[0].to_python()
    with pytest.raises(MissingExtraError, match="sympy"):
        FRONT.knee.to_sympy()


# --------------------------------------------------------------------------- what is not settled


@dataclass(frozen=True)
class Wavering(OwnEngine):
    """Finds one term in the rows as they are, and another in those resampled with an odd seed."""

    def search(self, problem: Problem, *, seed: int, largest: int | None) -> list[Found]:
        del problem, largest
        odd = seed >= 1000 and seed % 2 == 1
        texts = (
            "step_weight_bytes / tensor_parallel" if odd else "step_weight_bytes",
            "cache_bytes",
        )
        return [
            Found(
                terms=tuple((1e-9, Expression(text)) for text in texts),
                size=2,
                loss=1.0,
                criterion=0.0,
                skeletons=texts,
            )
        ]


def test_what_takes_the_place_of_a_term_is_counted_for_the_term_whose_work_it_does() -> None:
    front = discover(DATASET, Wavering(), samples=4)
    weights, cache = sorted(front.knee.terms, key=lambda term: term.expression.text, reverse=True)
    assert weights.stability_ratio == 0.5
    assert weights.stand_ins == {"step_weight_bytes / tensor_parallel": 0.5}
    assert (cache.stability_ratio, cache.stand_ins) == (1.0, {})


def unsettled(**terms: Any) -> tuple[str, ...]:
    """What is said of a knee of one such term."""
    term = replace(FRONT.knee.terms[0], meaning="a meaning", **terms)
    return replace(FRONT, points=(replace(FRONT.knee, terms=(term,)),)).cautions


def test_terms_that_half_of_the_resamples_find_are_passed_over_in_silence() -> None:
    assert unsettled(stability_ratio=0.5) == ()
    assert unsettled(stability_ratio=0.9, stand_ins={"steps": 0.19}) == ()
    assert unsettled(stability_ratio=None) == ()


def test_an_unstable_term_is_named_with_what_stands_in_for_it() -> None:
    name = repr(FRONT.knee.terms[0].expression.text)
    (said,) = unsettled(stability_ratio=0.35, stand_ins={"steps": 0.4, "passes": 0.1})
    assert said.startswith(f"{name} (a meaning) is not settled: only 35 % of the resamples have it")
    assert "'steps' (40 %) in its place" in said
    assert "passes" not in said
    (said,) = unsettled(stability_ratio=0.35)
    assert "no one term takes its place" in said


def test_a_stable_term_with_a_near_equivalent_is_named_too() -> None:
    (said,) = unsettled(stability_ratio=0.6, stand_ins={"steps": 0.3})
    assert "has a near equivalent: some resamples have 'steps' (30 %) instead" in said


def test_the_command_warns_of_unsettled_terms_in_plain_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    table.write(DATASET, tmp_path / "rows.csv")
    asked = ["discover", str(tmp_path / "rows.csv"), "--samples", "1"]
    assert main(asked) == 0
    assert "Warning" not in capsys.readouterr().out
    monkeypatch.setattr(discovery, "engine", lambda _: Wavering())
    assert main([*asked, "--seed", "1"]) == 0  # the one resample is searched with an odd seed
    said = " ".join(capsys.readouterr().out.split())
    assert "Warning: not every term of the knee is settled by these rows." in said
    assert "'step_weight_bytes' is not settled: only 0 % of the resamples have it" in said
    assert "'step_weight_bytes / tensor_parallel' (100 %) in its place" in said


# ------------------------------------------------------------------------------- planted laws


def test_planted_rows_are_feasible_and_those_beyond_lie_outside() -> None:
    rng = np.random.default_rng(0)
    cases = planted_laws.draw_cases(SPLIT, 50, rng)
    beyond = planted_laws.draw_cases(SPLIT, 50, rng, beyond=True)
    for name, factor in (("batch_size", 4), ("input_tokens", 2), ("output_tokens", 2)):
        inside, outside = getattr(cases, name), getattr(beyond, name)
        assert inside.max() <= outside.min()
        assert outside.max() <= factor * planted_laws.LARGEST[name]


def test_every_planted_term_carries_its_part_of_the_energy() -> None:
    for law in planted_laws.STRUCTURES:
        rng = np.random.default_rng(1)
        cases = planted_laws.draw_cases(law, 100, rng)
        values = planted_laws.term_values(law.terms, cases)
        coefficients = planted_laws.plant(values, quantity_columns(cases)["scale_j"], rng)
        parts = values * coefficients
        shares = parts / parts.sum(axis=1, keepdims=True)
        carried = [share[share > 0].mean() for share in shares.T]
        assert min(carried) > 0.3 / len(law.terms), law.name


def test_planted_laws_are_in_the_library_or_said_not_to_be() -> None:
    library = {term.expression.text for term in physical_terms()}
    for law in planted_laws.STRUCTURES:
        assert (set(law.terms) <= library) == law.in_library, law.name


def trials() -> list[planted_laws.Trial]:
    """What the last run of the suite gave."""
    return planted_laws.load(Path(planted_laws.__file__).with_name("planted-laws.json"))


def test_the_tables_and_the_figure_of_planted_laws_are_those_of_the_results_file() -> None:
    page = DOCS.read_text(encoding="utf-8")
    stated = page.split("<!-- planted -->\n")[1].split("\n<!-- /planted -->")[0]
    assert stated == planted_laws.tables(trials())
    drawn = (DOCS.parents[1] / "figures" / "planted-laws.svg").read_text(encoding="utf-8")
    assert f'aria-label="{planted_laws.picture(trials()).alternative}"' in drawn


def test_trials_of_planted_laws_can_be_had_again() -> None:
    vision = next(law for law in planted_laws.STRUCTURES if law.name == "vision")
    stated = {(t.law, t.rows, t.noise_ratio, t.seed): t for t in trials() if t.engine == "own"}
    again = [*planted_laws.quick(), planted_laws.trial(vision, 50, 0.05, 9, "own")]
    assert len(again) == 4
    for now in again:
        then = stated[now.law, now.rows, now.noise_ratio, now.seed]
        assert (now.near, now.terms) == (then.near, then.terms), now.law
        assert now.held_out_mape_ratio == pytest.approx(then.held_out_mape_ratio, rel=1e-3), now.law


def test_planted_laws_within_the_library_are_recovered_and_carry_beyond_the_rows() -> None:
    every = [t for t in trials() if t.engine == "own"]
    assert len(every) == 4 * 10 * len(planted_laws.STRUCTURES)
    judged = [t for t in every if t.in_library and (t.rows, t.noise_ratio) == (200, 0.02)]
    assert len({t.law for t in judged}) >= 12
    assert {t.seed for t in judged} == set(range(10))
    assert np.mean([t.near for t in judged]) >= 0.95
    assert (sum(not t.recovered for t in judged), sum(not t.near for t in judged)) == (34, 5)
    assert np.median([t.extrapolation_ratio for t in judged]) <= 0.05


def test_a_neighbour_that_predicts_alike_counts_to_one_percent_and_not_as_the_term_itself() -> None:
    law = next(law for law in planted_laws.STRUCTURES if law.name == "rooflines in quadrature")
    judged = [planted_laws.trial(law, 200, 0.02, seed, "own") for seed in range(1, 6)]
    assert any(t.recovered for t in judged)
    assert all(t.near for t in judged if t.recovered)
    assert sum(t.near for t in judged) >= 2
    assert all(t.near for t in trials() if t.recovered)
    assert all(t.near == t.recovered for t in trials() if t.engine not in planted_laws.EXACT)


def test_a_run_of_planted_laws_that_was_stopped_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = trials()[:3]
    planted_laws.save(few, tmp_path / "log.json")
    assert planted_laws.load(tmp_path / "log.json") == few
    asked: list[tuple[str, int, float, int]] = []
    monkeypatch.setattr(
        planted_laws, "trial", lambda law, *others: asked.append((law.name, *others[:3]))
    )
    seeds = {"own": range(2)}
    list(planted_laws.suite(["own"], seeds, few))
    every = len(planted_laws.CELLS) * len(planted_laws.STRUCTURES) * 2
    done = [(t.law, t.rows, t.noise_ratio, t.seed) for t in few if t.seed < 2]
    assert done
    assert len(asked) == every - len(done)
    assert not set(done) & set(asked)


# ---------------------------------------------------------------------------------- real rows


def test_a_law_for_all_of_mlenergy_v3_is_found_in_seconds_and_carries_to_unseen_llms() -> None:
    folder = DATA / "mlenergy-v3"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}")
    from energylens.importers import mlenergy_v3

    dataset = mlenergy_v3.read(folder, assume_input_tokens={}, assume_vision_tokens={}).dataset
    front = discover(dataset, OwnEngine(), samples=0, choose=("parallelism", "batch_size"))
    assert front.groups == "llm"
    assert 6 <= front.knee.size <= 14
    assert front.knee.held_out_mape_ratio < 0.17
    assert front.reference is not None
    # As good as the twelve terms, which were not chosen on these rows.
    assert front.knee.held_out_mape_ratio < 1.1 * front.reference.held_out_mape_ratio
