from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from energylens import catalog
from energylens import counts as counts_module
from energylens.cases import Cases
from energylens.counts import Counts, count
from energylens.errors import InputError, UnknownNameError
from energylens.formula import (
    EXTENSIONS,
    NAMES,
    OVERLAPS,
    SPREADS,
    TERMS,
    datasheet,
    design,
    design_by_phase,
    energy,
    slopes,
    terms_of,
)
from energylens.model import (
    LABEL_DOUBLINGS,
    OWN_RATIO,
    Coefficients,
    EnergyModel,
    Scope,
    conformal_quantiles,
    draw_theta,
)
from energylens.records import Boundary, Case, Configuration, Engine, Workload

GPUS = ("H100", "A100-SXM-80GB", "L4")
FAST = settings(max_examples=40, deadline=None)
THETAS = st.lists(st.floats(0, 10), min_size=12, max_size=12).map(np.array)
POSITIVE_THETAS = st.lists(st.floats(0.01, 10), min_size=12, max_size=12).map(np.array)
# At n residuals from -1 to 1 the conformal quantiles are easy to say.
RESIDUALS = np.linspace(-1.0, 1.0, 99)


def coefficients(theta, **changes):
    return Coefficients(
        **{
            "theta": np.asarray(theta, dtype=float),
            "covariance": np.diag(np.full(12, 0.01)),
            "residuals_seen": RESIDUALS * 0.1,
            "residuals_unseen": RESIDUALS * 0.5,
            "llms": 99,
            "spread_ratio": 0.1,
            "design_effect": 0.0,
            "within_ratio": 0.05,
            "between_ratio": 0.1,
            "reach_doublings": 3.0,
            "rows": 99,
        }
        | changes
    )


def model_of(theta, **changes):
    scope = Scope(llms=("Qwen/Qwen3-32B",), gpus=("H100-SXM-80GB",), precisions=("bf16",))
    return EnergyModel(pooled=coefficients(theta), scope=scope, **changes)


def knowing_gpus(model, cases):
    return replace(model, scope=replace(model.scope, gpus=tuple(g.id for g in cases.gpus)))


@pytest.fixture(scope="module")
def cases(draw_cases):
    return Cases.of(draw_cases(80, seed=4, gpus=GPUS, precisions=("bf16", "fp8")))


@pytest.fixture(scope="module")
def x(cases):
    return design(cases)


# ---------------------------------------------------------------------------- the twelve


def test_there_are_twelve_terms_each_with_its_own_name_and_symbol():
    assert len(TERMS) == 12
    assert len(set(NAMES)) == len({term.symbol for term in TERMS}) == 12
    assert tuple(term.name for term in TERMS) == NAMES


@pytest.mark.parametrize("term", TERMS, ids=NAMES)
def test_every_term_says_what_it_means_and_what_would_determine_it(term):
    assert term.unit in {"J/kernel", "J/byte", "J/FLOP", "J/token", "W"}
    assert term.meaning
    assert term.needs
    assert 0 <= term.lower_bound < 1
    assert term.expected == (0 if term.name == "narrow_weights" else 1)
    assert term.spread > 0
    assert term.prefill or term.decode
    for gpu in GPUS:
        assert term.datasheet(catalog.gpu(gpu)) > 0


def test_extensions_are_surcharges_that_cost_nothing_unless_rows_say_so():
    names = [term.name for term in terms_of(tuple(EXTENSIONS))]
    assert len(set(names)) == len(names) > 12
    assert tuple(names[:12]) == NAMES
    assert terms_of() == TERMS
    for terms in EXTENSIONS.values():
        for term in terms:
            assert (term.expected == 0) == (not term.name.startswith("capped_"))
            assert term.meaning
            assert term.needs
            assert term.name in names[12:]
    with pytest.raises(UnknownNameError, match="unknown extension 'lenght'"):
        terms_of(("lenght",))


def test_extensions_add_to_the_equation(cases):
    extend = tuple(EXTENSIONS)
    terms = terms_of(extend)
    theta = np.linspace(0.2, 2, len(terms))
    wide = coefficients(theta, covariance=np.zeros((len(terms), len(terms))))
    model = replace(model_of(np.ones(12)), pooled=wide, extensions=extend)
    x = design(cases, terms)
    assert (x[:, 12:].max(axis=0) > 0).sum() >= 5  # no row here is in a weight-only format
    joules = model.predict_energy_j(cases)
    assert joules == pytest.approx(
        model_of(theta[:12]).predict_energy_j(cases) + x[:, 12:] @ theta[12:]
    )
    prefill, decode = model.predict_parts_j(cases)
    assert prefill.shape == (80, len(terms))
    assert (prefill + decode).sum(axis=1) == pytest.approx(joules)
    assert model.sample_energy_j(cases.take(slice(0, 3)), 5, 0).shape == (5, 3)
    theta[12:] = 0.0
    none = replace(model, pooled=replace(wide, theta=theta))
    assert none.predict_energy_j(cases) == pytest.approx(
        model_of(theta[:12]).predict_energy_j(cases)
    )


def test_reading_and_multiplying_overlap_while_decoding():
    assert [(NAMES[a], NAMES[b]) for a, b in OVERLAPS] == [
        ("decode_weights", "decode_compute"),
    ]


def test_every_term_counts_for_some_case(x):
    assert (x.max(axis=0) > 0).all()
    assert (x >= 0).all()


# -------------------------------------------------------- the equation, written out once more


def naive_energy_j(case, theta):
    """The law as docs/formula.md has it, for one case, in plain arithmetic."""
    columns = count(Cases.of([case]))
    n = {name: float(getattr(columns, name)[0]) for name in Counts.__dataclass_fields__}
    gpu = case.gpu
    at_work, waiting = 0.7 * gpu.tdp_w, 0.4 * gpu.tdp_w
    per_byte = at_work / (0.8 * gpu.memory_bandwidth_bytes_per_s)
    per_flop = at_work / (0.5 * gpu.bf16_flop_per_s)
    per_link_byte = at_work / (0.5 * (gpu.link_bandwidth_bytes_per_s or 64e9))
    t = dict(zip(NAMES, theta, strict=True))
    launch = waiting * 10e-6 * n["kernels"] * n["launch_ratio"]
    prefill = (
        t["prefill_launch"] * launch * n["pass_gpus"]
        # reading the weights, as FLOPs that would take as long
        + t["prefill_compute"]
        * per_flop
        * np.hypot(
            n["prefill_flop"],
            n["pass_weight_bytes"]
            * (0.5 * gpu.bf16_flop_per_s)
            / (0.8 * gpu.memory_bandwidth_bytes_per_s),
        )
        + t["vision"] * per_flop * n["vision_flop"]
    )
    narrow = max(n["narrow_ratio"], n["weight_only_ratio"])
    decode = (
        t["decode_launch"] * launch * n["step_gpus"]
        + np.hypot(
            t["decode_weights"] * per_byte * n["step_weight_bytes"],
            t["decode_compute"] * per_flop * n["decode_flop"],
        )
        + t["narrow_weights"] * per_byte * n["step_weight_bytes"] * narrow
        + t["decode_sequence"]
        * waiting
        * 100e-6
        * n["sequence_ratio"]
        * n["replica_gpus"]
        * n["output_tokens"]
        + t["decode_cache"] * per_byte * n["cache_bytes"]
    )
    layout = (
        t["tensor_parallel"] * per_link_byte * (n["prefill_link_bytes"] + n["decode_link_bytes"])
        + t["pipeline_parallel"] * waiting * (n["prefill_stage_gpu_s"] + n["decode_stage_gpu_s"])
        + t["idle_gpus"]
        * (gpu.idle_power_w or 0.1 * gpu.tdp_w)
        * n["idle_gpus"]
        * (n["prefill_s"] + n["decode_s"])
    )
    return prefill + decode + layout


@FAST
@given(st.integers(0, 79), THETAS)
def test_the_prediction_is_the_equation(cases, row, theta):
    case = cases.case(row)
    predicted = model_of(theta).predict_energy_j(cases.take(np.array([row])))[0]
    assert predicted == pytest.approx(naive_energy_j(case, theta), rel=1e-12, abs=1e-300)


def test_the_datasheet_speaks_for_each_gpu(cases):
    expected = datasheet(cases.gpus)
    assert expected.shape == (3, 12)
    launch = NAMES.index("decode_launch")
    for gpu, row in zip(cases.gpus, expected, strict=True):
        assert row[launch] == pytest.approx(0.4 * gpu.tdp_w * 10e-6)
    assert datasheet(()).shape == (0, 12)


# -------------------------------------------------------------------------- its properties


@FAST
@given(POSITIVE_THETAS)
def test_the_parts_add_up_to_the_prediction(cases, theta):
    model = model_of(theta)
    prefill, decode = model.predict_parts_j(cases)
    total = (prefill + decode).sum(axis=1)
    assert np.allclose(total, model.predict_energy_j(cases), rtol=1e-12)
    assert (prefill >= 0).all()
    assert (decode >= 0).all()


def test_parts_add_up_where_coefficients_are_zero_too(cases):
    for zero in range(12):
        theta = np.ones(12)
        theta[zero] = 0.0
        model = model_of(theta)
        prefill, decode = model.predict_parts_j(cases)
        assert (prefill[:, zero] == 0).all()
        assert (decode[:, zero] == 0).all()
        assert np.allclose((prefill + decode).sum(axis=1), model.predict_energy_j(cases))
    model = model_of(np.zeros(12))
    assert (model.predict_energy_j(cases) == 0).all()
    assert (np.array(model.predict_parts_j(cases)) == 0).all()


def test_each_part_is_in_its_phase(cases):
    prefill, decode = design_by_phase(cases)
    for k, name in enumerate(NAMES):
        if name.startswith("prefill") or name == "vision":
            assert (decode[:, k] == 0).all(), name
        if name.startswith("decode"):
            assert (prefill[:, k] == 0).all(), name
    assert np.array_equal(design(cases), prefill + decode)


@FAST
@given(POSITIVE_THETAS)
def test_energy_is_above_zero_wherever_coefficients_are(cases, theta):
    assert (model_of(theta).predict_energy_j(cases) > 0).all()


@FAST
@given(THETAS, st.floats(0, 100))
def test_energy_is_homogeneous_of_degree_one(x, theta, factor):
    assert np.allclose(energy(x, factor * theta), factor * energy(x, theta), rtol=1e-9, atol=1e-12)


@FAST
@given(THETAS, st.integers(0, 11), st.floats(0, 10))
def test_no_coefficient_lowers_the_energy_by_growing(x, theta, k, more):
    grown = theta.copy()
    grown[k] += more
    assert (energy(x, grown) >= energy(x, theta) * (1 - 1e-12)).all()


@FAST
@given(THETAS)
def test_the_slopes_times_the_coefficients_are_the_energy(x, theta):
    slope = slopes(x, theta)
    assert (slope >= 0).all()
    assert np.allclose(slope @ theta, energy(x, theta), rtol=1e-9, atol=1e-12)


@FAST
@given(POSITIVE_THETAS, st.integers(0, 11))
def test_the_slopes_are_the_derivatives(x, theta, k):
    step = np.zeros(12)
    step[k] = 1e-6 * theta[k]
    numeric = (energy(x, theta + step) - energy(x, theta - step)) / (2 * step[k])
    assert np.allclose(slopes(x, theta)[:, k], numeric, rtol=1e-4, atol=1e-7 * x.max())


def test_the_larger_of_two_overlapping_terms_counts_and_the_smaller_hardly_shows():
    for a, b in OVERLAPS:
        row = np.zeros((1, 12))
        row[0, a], row[0, b] = 3.0, 4.0
        assert energy(row, np.ones(12))[0] == 5.0
        row[0, a] = 0.04
        assert 4.0 < energy(row, np.ones(12))[0] < 4.001


def test_many_cases_at_once_are_each_case_alone(cases, monkeypatch):
    model = model_of(np.linspace(0.1, 2, 12))
    together = model.predict_energy_j(cases)
    alone = [model.predict_energy_j(Cases.of([cases.case(i)]))[0] for i in range(20)]
    assert np.allclose(together[:20], alone, rtol=1e-13)
    monkeypatch.setattr(counts_module, "CHUNK", 7)
    assert np.allclose(model.predict_energy_j(cases), together, rtol=1e-13)
    assert np.allclose(energy(design(cases), model.pooled.theta), together, rtol=1e-13)


def test_the_order_of_cases_does_not_matter(cases):
    model = model_of(np.linspace(0.1, 2, 12))
    order = np.random.default_rng(1).permutation(len(cases))
    assert np.array_equal(
        model.predict_energy_j(cases.take(order)), model.predict_energy_j(cases)[order]
    )


def test_another_name_for_a_gpu_or_llm_does_not_change_its_energy(cases):
    model = model_of(np.ones(12))
    renamed = replace(cases, gpus=tuple(replace(g, id=f"my {g.id}") for g in cases.gpus))
    assert np.array_equal(model.predict_energy_j(renamed), model.predict_energy_j(cases))


# ----------------------------------------------------------------------------------- groups


def test_a_group_answers_for_its_cases_and_the_pooled_set_for_all_others(cases):
    own = np.full(12, 3.0)
    model = model_of(np.ones(12), per=("gpu",), groups={"A100-SXM-80GB": coefficients(own)})
    on_a100 = np.array([cases.gpus[i].id == "A100-SXM-80GB" for i in cases.gpu_index])
    ones = model_of(np.ones(12)).predict_energy_j(cases)
    predicted = model.predict_energy_j(cases)
    assert np.allclose(predicted[on_a100], 3 * ones[on_a100])
    assert np.allclose(predicted[~on_a100], ones[~on_a100])
    prefill, decode = model.predict_parts_j(cases)
    assert np.allclose((prefill + decode).sum(axis=1), predicted)


def test_several_columns_name_a_group_together():
    theta = np.full(12, 2.0)
    model = model_of(
        np.ones(12),
        per=("llm", "precision"),
        groups={"Qwen/Qwen3-32B fp8": coefficients(theta)},
    )
    assert model.coefficients("Qwen/Qwen3-32B", "any", "fp8", "").theta[0] == 2
    assert model.coefficients("Qwen/Qwen3-32B", "any", "bf16", "").theta[0] == 1


@pytest.mark.parametrize("per", [(), ("gpu",)])
def test_no_cases_get_no_predictions(cases, per):
    groups = {"A100-SXM-80GB": coefficients(np.ones(12))} if per else {}
    model = model_of(np.ones(12), per=per, groups=groups)
    none = cases.take(slice(0, 0))
    assert model.predict_energy_j(none).shape == (0,)
    assert model.predict_parts_j(none)[0].shape == (0, 12)
    assert model.interval_energy_j(none)[0].shape == (0,)
    assert model.sample_energy_j(none, 3, seed=0).shape == (3, 0)


# --------------------------------------------------------------------------- measured power


def test_measured_power_scales_the_law_by_what_each_gpu_drew(cases):
    theta = np.linspace(0.5, 1.5, 12)
    watts = np.linspace(100, 3000, len(cases))
    with_power = model_of(theta, measured_power=True)
    known = cases.replace(average_power_w=watts)
    gpus = np.where(cases.node_boundary, cases.node_gpus, cases.occupied_gpus)
    ratio = watts / gpus / (0.7 * cases.of_gpu(lambda g: g.tdp_w))
    plain = model_of(theta).predict_energy_j(cases)
    assert np.allclose(with_power.predict_energy_j(known), ratio * plain)
    prefill, decode = with_power.predict_parts_j(known)
    assert np.allclose((prefill + decode).sum(axis=1), ratio * plain)
    draws = with_power.sample_energy_j(known, 200, seed=0)
    assert np.allclose(np.median(draws, axis=0) / (ratio * plain), 1, atol=0.15)


def test_measured_power_that_is_missing_is_an_error(cases):
    model = model_of(np.ones(12), measured_power=True)
    watts = np.full(len(cases), 400.0)
    watts[3:5] = np.nan
    with pytest.raises(InputError, match="average_power_w; 2 of 80 have none"):
        model.predict_energy_j(cases.replace(average_power_w=watts))


# -------------------------------------------------------------------- intervals and samples


def test_intervals_are_wider_for_an_llm_that_the_fit_has_not_seen(cases):
    model = knowing_gpus(model_of(np.ones(12)), cases)
    low, high = model.interval_energy_j(cases, 0.8)
    joules = model.predict_energy_j(cases)
    seen = np.array([cases.llms[i].id == "Qwen/Qwen3-32B" for i in cases.llm_index])
    # of 99 even residuals from -1 to 1, the 10th and the 90th lie at -0.816 and 0.816
    assert np.allclose(high[seen] / joules[seen], np.exp(0.1 * 0.81633), rtol=1e-4)
    assert np.allclose(low[~seen] / joules[~seen], np.exp(-0.5 * 0.81633), rtol=1e-4)
    assert seen.any()
    assert not seen.all()


@FAST
@given(
    st.lists(st.floats(-3, 3), min_size=1, max_size=40).map(sorted).map(np.array),
    st.floats(0.1, 0.95),
    st.floats(0.1, 0.95),
)
def test_a_higher_coverage_is_never_a_narrower_interval(residuals, one, other):
    narrow = conformal_quantiles(residuals, min(one, other))
    wide = conformal_quantiles(residuals, max(one, other))
    assert wide[0] <= narrow[0] + 1e-12
    assert wide[1] >= narrow[1] - 1e-12
    assert narrow[0] <= narrow[1]


def test_too_few_residuals_for_a_quantile_widen_the_interval():
    low, high = conformal_quantiles(np.array([-0.1, 0.2]), 0.8)
    assert low < -0.1 * 1.25
    assert high > 0.2 * 1.25
    assert conformal_quantiles(np.array([0.3]), 0.8)[0] == 0  # it must hold the prediction


def test_residuals_that_err_together_count_as_one_for_each_group():
    # Two-sided 80 % of 10 groups leaves (1 - 0.8 * 11 / 10) / 2 = 6 % on either side, not 10 %.
    groups = np.repeat(np.linspace(-1.0, 1.0, 10), 100)
    low, high = conformal_quantiles(groups, 0.8, 10)
    assert (low, high) == (-1.0, 1.0)
    smooth = np.linspace(-1.0, 1.0, 1001)
    assert conformal_quantiles(smooth, 0.8, 10)[1] == pytest.approx(1 - 2 * 0.06, abs=0.005)
    assert conformal_quantiles(smooth, 0.8, 1001) == conformal_quantiles(smooth, 0.8)
    assert conformal_quantiles(smooth, 0.8, 3)[1] > 1.25


def interval_width(model, cases):
    low, high = model.interval_energy_j(cases)
    return np.log(high / low)


def test_coefficients_that_are_uncertain_widen_the_intervals_of_cases_that_need_them(cases):
    # Only decode_cache is uncertain: an interval grows with its share of the prediction.
    k = NAMES.index("decode_cache")
    covariance = np.zeros((12, 12))
    covariance[k, k] = 0.3**2
    sure = knowing_gpus(model_of(np.ones(12)), cases)
    unsure = replace(
        sure, pooled=coefficients(np.ones(12), covariance=covariance, design_effect=2.0)
    )
    share = sum(part[:, k] for part in sure.predict_parts_j(cases)) / sure.predict_energy_j(cases)
    expected = np.sqrt(1 + 2.0 * (0.3 * share) ** 2 / 0.1**2)
    grown = interval_width(unsure, cases) / interval_width(sure, cases)
    assert grown == pytest.approx(expected, rel=1e-6)
    assert grown.max() > 1.5 > 1.1 > grown.min()


def test_a_gpu_type_that_no_row_speaks_of_has_wider_intervals(cases):
    strange = np.array([g.id != "H100-SXM-80GB" for g in cases.gpus])[cases.gpu_index]
    model = model_of(np.ones(12))
    grown = interval_width(model, cases) / interval_width(knowing_gpus(model, cases), cases)
    assert (grown[~strange] == 1).all()
    assert (grown[strange] > 1.5).all()


def test_an_engine_that_no_row_speaks_of_has_wider_intervals_and_one_not_named_has_not(cases):
    model = model_of(np.ones(12))
    model = replace(
        model, scope=replace(model.scope, engines={"vllm 1": model.scope, "vllm 2": model.scope})
    )
    seen = cases.served_by(Engine(name="vllm", version="2"))
    strange = cases.served_by(Engine(name="vllm", version="3"))
    plain = interval_width(model, cases.served_by(Engine(name="vllm")))
    known = interval_width(model, seen)
    assert (interval_width(model, strange) > 1.1 * known).all()
    unnamed = replace(model, scope=replace(model.scope, engines={}))
    assert known == pytest.approx(interval_width(unnamed, seen))
    assert plain == pytest.approx(interval_width(unnamed, cases.served_by(Engine(name="vllm"))))


def test_an_interval_about_which_nothing_is_known_is_finite(cases):
    lost = coefficients(np.ones(12), covariance=np.diag(np.full(12, 1e12)), design_effect=1.0)
    low, high = replace(model_of(np.ones(12)), pooled=lost).interval_energy_j(cases)
    assert (low > 0).all()
    assert np.isfinite(high).all()


def test_samples_spread_as_the_residuals_do(cases):
    part = cases.take(np.arange(12))
    model = knowing_gpus(model_of(np.ones(12)), cases)
    sharp = replace(model, pooled=coefficients(np.ones(12), covariance=np.zeros((12, 12))))
    draws = np.log(sharp.sample_energy_j(part, 4000, seed=1) / sharp.predict_energy_j(part))
    assert draws.shape == (4000, 12)
    assert draws.std(axis=0).mean() == pytest.approx(0.1, rel=0.05)
    shared = np.corrcoef(draws, rowvar=False)[np.triu_indices(12, 1)]
    assert shared.min() > 1 - OWN_RATIO - 0.05  # common to all, however far apart
    assert np.array_equal(
        sharp.sample_energy_j(part, 5, seed=3), sharp.sample_energy_j(part, 5, seed=3)
    )
    assert not np.array_equal(
        sharp.sample_energy_j(part, 5, seed=3), sharp.sample_energy_j(part, 5, seed=4)
    )


def test_near_configurations_err_alike_and_far_ones_less(draw_cases):
    base = draw_cases(1, seed=0, node=False)[0]

    def at(batch, gpu="H100"):
        layout = replace(base.configuration, batch_size=batch, mean_batch_size=batch)
        return replace(base, configuration=layout, gpu=catalog.gpu(gpu))

    model = replace(
        model_of(np.ones(12)), pooled=coefficients(np.ones(12), covariance=np.zeros((12, 12)))
    )
    # Three GPU types: whichever two of them, they are equally far apart.
    cases = Cases.of([at(1), at(2), at(64), at(1, "A100-SXM-80GB"), at(1, "L4")])
    model = knowing_gpus(model, cases)
    draws = np.log(model.sample_energy_j(cases, 20_000, seed=0))
    shared = 1 - OWN_RATIO
    r = (np.corrcoef(draws, rowvar=False) - shared) / OWN_RATIO
    assert r[0, 1] == pytest.approx(np.exp(-1 / 3), abs=0.03)
    assert r[0, 2] == pytest.approx(np.exp(-6 / 3), abs=0.03)
    for a, b in ((0, 3), (0, 4), (3, 4)):
        assert r[a, b] == pytest.approx(np.exp(-LABEL_DOUBLINGS / 3), abs=0.03)


def test_draws_of_a_gpu_type_or_engine_without_rows_wander_as_its_interval_is_wide(cases):
    part = cases.take(np.arange(12))
    known = replace(
        knowing_gpus(model_of(np.ones(12)), part),
        pooled=coefficients(np.ones(12), covariance=np.zeros((12, 12))),
    )
    engine = Engine(name="vllm", version="2")
    known = replace(known, scope=replace(known.scope, engines={engine.id: known.scope}))
    served = part.served_by(engine)
    spread = np.log(known.sample_energy_j(served, 2000, seed=0)).std(axis=0)
    newer = part.served_by(Engine(name="vllm", version="3"))
    assert (np.log(known.sample_energy_j(newer, 2000, seed=0)).std(axis=0) > 1.1 * spread).all()
    other = replace(known, scope=replace(known.scope, gpus=("V100-SXM-16GB",), engines={}))
    assert (np.log(other.sample_energy_j(part, 2000, seed=0)).std(axis=0) > 1.1 * spread).all()
    # the GPUs of one type err together: their order is surer than their joules
    apart = np.log(other.sample_energy_j(part, 2000, seed=0))
    alike = np.flatnonzero(part.gpu_index == part.gpu_index[0])[:2]
    assert (apart[:, alike[0]] - apart[:, alike[1]]).std() < apart[:, alike].std(axis=0).max()


def test_coefficients_are_drawn_from_their_covariance_and_energies_not_below_zero(cases):
    rng = np.random.default_rng(0)
    covariance = np.diag(SPREADS**2)
    covariance[0, 1] = covariance[1, 0] = 0.5 * SPREADS[0] * SPREADS[1]
    uncertain = coefficients(np.ones(12), covariance=covariance)
    draws = draw_theta(uncertain, 20_000, rng)
    assert np.allclose(draws.mean(axis=0), 1, atol=0.1)
    assert np.allclose(np.cov(draws, rowvar=False), covariance, atol=0.4)
    assert (draws < 0).any()
    model = replace(model_of(np.ones(12)), pooled=uncertain)
    assert (model.sample_energy_j(cases, 50, seed=0) >= 0).all()


# ------------------------------------------------------------------------------- power caps

CAPPED = terms_of(("power_cap",))


def capped_model(theta):
    wide = coefficients(theta, covariance=np.zeros((len(CAPPED), len(CAPPED))))
    return replace(model_of(np.ones(12)), pooled=wide, extensions=("power_cap",))


def under(cases, ratio):
    return cases.replace(power_cap_w=ratio * cases.of_gpu(lambda gpu: gpu.tdp_w))


@pytest.fixture(scope="module")
def served():
    """A long prompt, all products, and decode of one sequence, all reading."""
    base = {
        "llm": catalog.llm("Qwen/Qwen3-32B"),
        "gpu": catalog.gpu("H100"),
        "precision": catalog.precision("bf16"),
    }
    return Cases.of(
        Case(**base, workload=Workload(input_tokens=i, output_tokens=o), configuration=c)
        for i, o, c in (
            (16_000, 1, Configuration(batch_size=256, mean_batch_size=256)),
            (8, 500, Configuration(batch_size=1, mean_batch_size=1)),
        )
    )


def test_a_cap_at_the_tdp_is_no_cap_and_none_changes_nothing(cases):
    theta = np.linspace(0.2, 2, len(CAPPED))
    model, plain = capped_model(theta), model_of(theta[:12])
    joules = plain.predict_energy_j(cases)
    assert np.array_equal(model.predict_energy_j(cases), joules)
    for ratio in (1.0, 1.05):
        assert model.predict_energy_j(under(cases, ratio)) == pytest.approx(joules, rel=1e-12)


def test_a_law_without_the_extension_does_not_see_a_cap(cases):
    model = model_of(np.ones(12))
    joules = model.predict_energy_j(cases)
    assert np.array_equal(model.predict_energy_j(under(cases, 0.5)), joules)
    assert np.array_equal(design(under(cases, 0.5)), design(cases))


def test_a_prefill_that_draws_the_tdp_takes_the_cube_root_of_the_power_in_speed(served):
    model = capped_model(np.ones(14))
    free = model.predict_energy_j(served)[0]
    for ratio in (0.9, 0.7, 0.5):
        clock = ((ratio - 0.3) / 0.7) ** (1 / 3)
        held = model.predict_energy_j(under(served, ratio))[0]
        assert held / free == pytest.approx(ratio / clock, rel=0.01)


def test_at_the_datasheet_decode_that_draws_less_than_the_cap_does_not_feel_it(served):
    model = capped_model(np.ones(14))
    free = model.predict_energy_j(served)[1]
    assert model.predict_energy_j(under(served, 0.75))[1] == pytest.approx(free, rel=0.005)
    # Below what it draws, 0.4 + 0.3 of the time that it reads, power is left in proportion.
    halves = [model.predict_energy_j(under(served, ratio))[1] for ratio in (0.4, 0.5)]
    assert halves[0] < halves[1] < 0.9 * free
    assert halves[0] / halves[1] == pytest.approx(0.4 / 0.5, rel=0.02)


@FAST
@given(st.floats(0.75, 1.0), st.lists(st.floats(0.0, 3), min_size=14, max_size=14).map(np.array))
def test_above_the_draw_a_cap_does_nothing_only_where_fit_and_headroom_agree(served, ratio, theta):
    theta[:12] += 0.01
    decode = served.take(np.array([1]))
    free = capped_model(theta).predict_energy_j(decode)
    expected = model_of(np.ones(12)).predict_energy_j(decode)
    felt = capped_model(theta).predict_energy_j(under(decode, ratio)) - free
    # The formula of docs/formula.md where p >= u; here u is 0.4 + 0.3 of the time that it reads.
    assert felt == pytest.approx((1 - ratio) * (theta[12] * expected - free), rel=1e-9, abs=1e-9)
    agreed = np.append(theta[:12], [free[0] / expected[0], theta[13]])
    assert capped_model(agreed).predict_energy_j(under(decode, ratio)) == pytest.approx(free)


def test_without_the_surcharges_a_cap_leaves_its_share_of_the_joules(served):
    model = capped_model(np.append(np.ones(12), [0.0, 0.0]))
    joules = model.predict_energy_j(under(served, 0.6))
    assert joules == pytest.approx(0.6 * model.predict_energy_j(served))


def test_idle_gpus_go_on_drawing_what_they_drew():
    case = Case(
        llm=catalog.llm("Qwen/Qwen3-8B"),
        gpu=catalog.gpu("H100"),
        precision=catalog.precision("bf16"),
        workload=Workload(input_tokens=500, output_tokens=100),
        configuration=Configuration(batch_size=8),
        boundary=Boundary.NODE,
        node_gpus=8,
    )
    idle = NAMES.index("idle_gpus")
    free, half = (
        design(Cases.of([case]).replace(power_cap_w=cap), CAPPED)[0] for cap in (np.nan, 350.0)
    )
    assert half[idle] == free[idle] > 0
    assert half[:idle] == pytest.approx(0.5 * free[:idle])


@FAST
@given(st.floats(0.11, 1.0), st.lists(st.floats(0.0, 3), min_size=14, max_size=14).map(np.array))
def test_under_any_cap_the_joules_are_finite_positive_and_add_up(cases, ratio, theta):
    theta[:12] += 0.01
    model, capped = capped_model(theta), under(cases, ratio)
    joules = model.predict_energy_j(capped)
    assert np.isfinite(joules).all()
    assert (joules >= ratio * model_of(theta[:12]).predict_energy_j(cases) * (1 - 1e-9)).all()
    prefill, decode = model.predict_parts_j(capped)
    assert (prefill + decode).sum(axis=1) == pytest.approx(joules)
    assert energy(design(capped, CAPPED), theta) == pytest.approx(joules)
    assert (design(capped, CAPPED) >= 0).all()


def test_caps_are_counted_in_chunks_as_at_once(cases, monkeypatch):
    capped = under(cases, 0.6).replace(
        power_cap_w=np.where(np.arange(len(cases)) % 3, np.nan, 60.0)
    )
    model = capped_model(np.linspace(0.2, 2, 14))
    whole = model.predict_energy_j(capped)
    monkeypatch.setattr(counts_module, "CHUNK", 7)
    assert np.array_equal(model.predict_energy_j(capped), whole)
