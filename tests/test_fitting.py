from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from energylens import catalog, factors
from energylens.cases import Cases
from energylens.dataset import Dataset
from energylens.errors import FitError, InputError, UnknownNameError, UsageError
from energylens.explanation import scope_notes
from energylens.fitting import (
    LOSSES,
    PRIORS,
    Datasheet,
    EnergyLens,
    FitOptions,
    bootstrap,
    diagnose,
    fit,
    from_datasheet,
    problem,
)
from energylens.formula import EXTENSIONS, NAMES, SPREADS, TERMS, datasheet, design, energy
from energylens.records import UNKNOWN_ENGINE, Engine

PLANTED = np.array([0.6, 1.4, 0.9, 1.8, 0.6, 1.1, 2.0, 0.7, 1.3, 0.5, 1.6, 0.8])
NO_PRIOR = FitOptions(prior="none")
LLAMA_8B = "meta-llama/Llama-3.1-8B-Instruct"


@pytest.fixture(scope="module")
def cases(draw_cases):
    return Cases.of(draw_cases(400))


@pytest.fixture(scope="module")
def exact(cases, make_dataset):
    return make_dataset(cases, theta=PLANTED)


@pytest.fixture(scope="module")
def noisy(cases, make_dataset):
    return make_dataset(cases, theta=PLANTED, noise_ratio=0.02)


@pytest.fixture(scope="module")
def small(draw_cases, make_dataset):
    """Sixty rows as one might really measure them: noise of a tenth."""
    return make_dataset(draw_cases(60, seed=2), theta=PLANTED, noise_ratio=0.1)


def only(dataset, keep):
    rows = np.flatnonzero(keep)
    assert len(rows) > 20
    return dataset.take(rows)


# ------------------------------------------------------------------------ what was planted


@given(st.lists(st.floats(0.2, 3), min_size=12, max_size=12).map(np.array))
@settings(max_examples=8, deadline=None)
def test_without_noise_and_prior_the_planted_coefficients_come_back(cases, make_dataset, theta):
    model = fit(make_dataset(cases.take(slice(0, 150)), theta=theta), NO_PRIOR)
    assert model.pooled.theta == pytest.approx(theta, rel=1e-5)


def test_with_the_prior_many_rows_overrule_it(exact):
    model = fit(exact)
    assert model.pooled.theta == pytest.approx(PLANTED, rel=3e-3)
    assert model.predict_energy_j(exact.cases) == pytest.approx(
        exact.energy_per_request_j, rel=1e-3
    )


def test_two_percent_of_noise_moves_the_coefficients_as_far_as_they_say(noisy):
    model = fit(noisy)
    assert model.pooled.theta == pytest.approx(PLANTED, rel=0.15)
    off = (model.pooled.theta - PLANTED) / np.sqrt(np.diag(model.pooled.covariance))
    assert np.abs(off).max() < 4
    assert np.sqrt((off**2).mean()) == pytest.approx(1, abs=0.6)
    ratio = model.predict_energy_j(noisy.cases) / noisy.energy_per_request_j
    assert np.median(ratio) == pytest.approx(1, abs=0.005)
    assert np.log(ratio).std() == pytest.approx(0.02, rel=0.15)


def test_the_spread_of_the_residuals_is_reported(noisy):
    pooled = fit(noisy).pooled
    # no row shares its scenario with another, so the spread is split between the two
    assert np.hypot(pooled.within_ratio, pooled.between_ratio) == pytest.approx(0.02, rel=0.15)
    assert pooled.residuals_seen.std() == pytest.approx(0.02, rel=0.15)
    assert (np.diff(pooled.residuals_seen) >= 0).all()
    assert (np.diff(pooled.residuals_unseen) >= 0).all()
    assert pooled.rows == 400


def test_spread_within_scenarios_is_told_from_that_between_them(draw_cases, make_dataset):
    rng = np.random.default_rng(3)
    rows, factors = [], []
    for case in draw_cases(60, seed=5):
        common = rng.normal(0, 0.2)
        for batch in (1, 2, 4, 8, 16):
            layout = replace(case.configuration, batch_size=batch, mean_batch_size=batch)
            rows.append(replace(case, configuration=layout))
            factors.append(np.exp(common + rng.normal(0, 0.05)))
    planted = energy(design(Cases.of(rows)), PLANTED)
    pooled = fit(make_dataset(rows, planted * np.array(factors))).pooled
    assert pooled.within_ratio == pytest.approx(0.05, rel=0.25)
    assert pooled.between_ratio == pytest.approx(0.2, rel=0.25)


def test_residuals_that_wander_reach_as_far_as_all_their_pairs_say():
    rng = np.random.default_rng(0)
    scenario = np.repeat(np.arange(200), 6)
    place = np.zeros((1200, 5))
    place[:, 0] = rng.uniform(0, 4, 1200)
    place[:, 1] = rng.integers(0, 3, 1200)
    apart = np.abs(place[:, None] - place[None]).sum(axis=2)
    alike = np.where(scenario[:, None] == scenario, 0.6 + 0.4 * np.exp(-apart / 8), 0.0)
    logs = 0.1 * np.linalg.cholesky(alike + 1e-9 * np.eye(1200)) @ rng.standard_normal(1200)
    _, _, reach = problem.spreads(logs, scenario, place)
    i, j = np.triu_indices(1200, 1)
    pairs = scenario[i] == scenario[j]
    i, j = i[pairs], j[pairs]
    twice = 2 * (logs**2).mean()
    told = twice * (apart[i, j].sum() + 15) / (((logs[i] - logs[j]) ** 2).sum() + 5 * twice)
    assert reach == pytest.approx(told)
    # The 0.4 of the variance that distance takes away, and pairs that are not short beside 8.
    assert reach == pytest.approx(8 / 0.4, rel=0.35)


def test_how_far_residuals_reach_is_a_guess_where_no_two_rows_share_a_scenario(noisy):
    assert fit(noisy).pooled.reach_doublings == problem.REACH_DOUBLINGS


# --------------------------------------------------------------------------------- bounds


@pytest.mark.parametrize("prior", PRIORS)
def test_no_coefficient_is_ever_below_its_bound(draw_cases, make_dataset, prior):
    for seed in range(6):
        cases = Cases.of(draw_cases(25, seed=seed))
        joules = np.exp(np.random.default_rng(seed).normal(4, 2, 25))  # nothing to do with it
        model = fit(make_dataset(cases, joules), FitOptions(prior=prior))
        least = [term.lower_bound if prior == "datasheet" else 0.0 for term in TERMS]
        assert (model.pooled.theta >= np.array(least) - 1e-12).all()
        assert np.isfinite(model.pooled.theta).all()
        assert np.isfinite(model.pooled.covariance).all()


def test_a_coefficient_that_rows_ask_to_be_zero_is_zero(cases, make_dataset):
    theta = PLANTED.copy()
    theta[NAMES.index("decode_sequence")] = 0.0
    model = fit(make_dataset(cases, theta=theta), NO_PRIOR)
    assert model.pooled.theta == pytest.approx(theta, abs=1e-4)


# --------------------------------------------------------------------------------- losses


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_finds_what_was_planted_without_noise(exact, loss):
    model = fit(exact, FitOptions(loss=loss, prior="none"))
    assert model.pooled.theta == pytest.approx(PLANTED, rel=1e-3)
    assert model.options["loss"] == loss


def test_the_huber_loss_resists_rows_that_are_wrong(noisy):
    joules = noisy.energy_per_request_j.copy()
    joules[::12] *= 2.5
    spoilt = replace(noisy, energy_per_request_j=joules)

    def error(loss):
        predicted = fit(spoilt, FitOptions(loss=loss)).predict_energy_j(noisy.cases)
        return np.abs(predicted / noisy.energy_per_request_j - 1).mean()

    assert error("huber") < 0.9 * error("relative")


def test_the_log_loss_has_no_bias_toward_underprediction(cases, make_dataset):
    data = make_dataset(cases, theta=PLANTED, noise_ratio=0.4)

    def bias(loss):
        model = fit(data, FitOptions(loss=loss))
        return np.log(model.predict_energy_j(cases) / data.energy_per_request_j).mean()

    assert abs(bias("log")) < 0.6 * abs(bias("relative"))
    assert bias("relative") < 0  # a miss of a factor of two counts more above than below


@pytest.mark.parametrize(("loss", "power"), [("relative", 0), ("absolute", 2)])
def test_no_other_coefficients_have_a_smaller_loss(cases, make_dataset, loss, power):
    data = make_dataset(cases, theta=PLANTED, noise_ratio=0.3)
    x, y = design(cases), data.energy_per_request_j
    theta = fit(data, FitOptions(loss=loss, prior="none")).pooled.theta

    def squares(tried):
        return (y**power * (energy(x, tried) / y - 1) ** 2).sum()

    least = squares(theta)
    assert least < squares(PLANTED)
    for k in range(12):
        for step in (-0.03, 0.03):
            tried = theta.copy()
            tried[k] = max(tried[k] + step, 0.0)
            assert squares(tried) >= least * (1 - 1e-3), NAMES[k]


# -------------------------------------------------------------------------------- weights


def test_a_weight_of_two_is_a_row_given_twice(small):
    twice = np.arange(60) % 3 == 0
    weighted = fit(small, NO_PRIOR, weights=np.where(twice, 2.0, 1.0))
    repeated = small.take(np.concatenate([np.arange(60), np.flatnonzero(twice)]))
    assert weighted.pooled.theta == pytest.approx(fit(repeated, NO_PRIOR).pooled.theta, rel=1e-3)
    assert fit(small, NO_PRIOR).pooled.theta != pytest.approx(weighted.pooled.theta, rel=1e-3)


def test_the_scale_of_all_weights_does_not_matter_without_a_prior(small):
    one, ten = (fit(small, NO_PRIOR, weights=np.full(60, w)) for w in (1.0, 10.0))
    assert one.pooled.theta == pytest.approx(ten.pooled.theta, rel=1e-4)


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_a_weight_that_is_none_is_refused(small, bad):
    weights = np.ones(60)
    weights[9] = bad
    with pytest.raises(FitError, match="weights must be finite numbers above 0"):
        fit(small, weights=weights)
    with pytest.raises(FitError, match="one for each row"):
        fit(small, weights=np.ones(59))


# ---------------------------------------------------------------- idle power, measured power


def test_known_idle_power_fixes_its_coefficient(small):
    k = NAMES.index("idle_gpus")
    expected = datasheet(small.cases.gpus)[0, k]
    model = fit(small, FitOptions(idle_power_w=95.0))
    assert model.pooled.theta[k] * expected == pytest.approx(95.0, rel=1e-4)
    assert np.sqrt(model.pooled.covariance[k, k]) < 1e-4
    assert model.options["idle_power_w"] == "95"
    assert fit(small).pooled.theta[k] * expected != pytest.approx(95.0, rel=1e-2)
    assert "idle_gpus" not in diagnose(model, small).undetermined


def test_idle_power_stays_fixed_where_no_row_speaks_of_it(draw_cases, make_dataset):
    k = NAMES.index("idle_gpus")
    data = make_dataset(draw_cases(40, node=False), theta=PLANTED)
    for prior in PRIORS:
        model = fit(data, FitOptions(idle_power_w=60.0, prior=prior))
        assert model.pooled.theta[k] * datasheet(data.cases.gpus)[0, k] == pytest.approx(60.0)


def test_measured_power_explains_what_time_cannot(cases, make_dataset):
    rng = np.random.default_rng(1)
    gpus = np.where(cases.node_boundary, cases.node_gpus, cases.occupied_gpus)
    ratio = rng.uniform(0.4, 1.6, 400)  # GPUs that happen to draw more or less
    watts = ratio * gpus * 0.7 * cases.of_gpu(lambda g: g.tdp_w)
    joules = energy(design(cases), PLANTED) * ratio
    data = make_dataset(cases, joules, power_w=watts)
    model = fit(data, FitOptions(measured_power=True, prior="none"))
    assert model.measured_power
    assert model.pooled.theta == pytest.approx(PLANTED, rel=1e-4)
    assert model.predict_energy_j(data.cases) == pytest.approx(joules, rel=1e-4)
    assert diagnose(model, data).mape_ratio < 1e-4
    assert diagnose(fit(data), data).mape_ratio > 0.2


def test_measured_power_that_a_row_lacks_is_an_error(small):
    with pytest.raises(InputError, match="average_power_w; 60 of 60 have none"):
        fit(small, FitOptions(measured_power=True))


# --------------------------------------------------------------------------------- groups


@pytest.fixture(scope="module")
def two_gpus(draw_cases, make_dataset):
    cases = Cases.of(draw_cases(300, seed=6, gpus=("H100", "A100-SXM-80GB")))
    first = cases.gpu_index == 0
    planted = energy(design(cases), np.where(first[:, None], 0.7, 1.5) * np.ones(12))
    noise = np.exp(np.random.default_rng(0).normal(0, 0.03, 300))
    return make_dataset(cases, planted * noise)


def test_gpu_types_get_their_own_coefficients_where_there_are_several(two_gpus, small):
    model = fit(two_gpus)
    assert model.per == ("gpu",)
    assert set(model.groups) == set(two_gpus.gpu_ids)
    first = model.groups[two_gpus.cases.gpus[0].id]
    other = model.groups[two_gpus.cases.gpus[1].id]
    decode = NAMES.index("decode_weights")
    assert first.theta[decode] == pytest.approx(0.7, rel=0.05)
    assert other.theta[decode] == pytest.approx(1.5, rel=0.05)
    assert first.rows + other.rows == model.pooled.rows == 300
    assert diagnose(model, two_gpus).mape_ratio < 0.05
    assert fit(small).per == ()
    assert fit(small).groups == {}


OLD, NEW = Engine(name="vllm", version="0.5.4"), Engine(name="vllm", version="0.11.1")


def test_engine_versions_get_their_own_coefficients_where_there_are_several(two_gpus):
    engines = [OLD if i % 2 else NEW for i in range(300)]
    dearer = np.array([2.0 if e is OLD else 1.0 for e in engines])
    data = replace(
        two_gpus,
        cases=two_gpus.cases.served_by(engines),
        energy_per_request_j=two_gpus.energy_per_request_j * dearer,
    )
    model = fit(data)
    assert model.per == ("gpu", "engine")
    h100, a100 = (gpu.id for gpu in data.cases.gpus)
    pairs = {f"{gpu} {e.id}" for gpu in (h100, a100) for e in (OLD, NEW)}
    assert set(model.groups) == pairs | {h100, a100, OLD.id, NEW.id}
    assert diagnose(model, data).mape_ratio < 0.07
    assert diagnose(fit(data, FitOptions(per=("gpu",))), data).mape_ratio > 0.1
    # an engine that is not named, or not seen, is answered by all rows of its GPU type
    level = model.groups[h100].theta
    for engine in ("", "vllm 9"):
        assert model.coefficients("any", h100, "bf16", engine).theta is level
    # an engine without rows on a GPU type is answered by its rows on others, less surely
    only_old = data.take((data.engine_ids == OLD.id) | (data.gpu_ids == a100))
    asked = data.cases.take(data.gpu_ids == h100)
    model = fit(only_old)
    assert f"{h100} {NEW.id}" not in model.groups
    assert model.coefficients("any", h100, "bf16", NEW.id) is model.groups[NEW.id]
    low, high = model.interval_energy_j(asked.served_by(NEW))
    known = replace(model, scope=replace(model.scope, engines={NEW.id: model.scope}))
    lower, upper = known.interval_energy_j(asked.served_by(NEW))
    assert (np.log(high / low) > 1.1 * np.log(upper / lower)).all()
    alone = fit(data, FitOptions(per=("engine",)))
    assert set(alone.groups) == {OLD.id, NEW.id}
    assert alone.coefficients("any", h100, "bf16", "") is alone.pooled


def test_rows_of_an_engine_with_and_without_its_version_are_of_one_engine(small):
    bare = Engine(name="vllm")
    cases = small.cases.served_by([bare if i % 2 else NEW for i in range(60)])
    mixed = fit(replace(small, cases=cases))
    whole = fit(replace(small, cases=small.cases.served_by(NEW)))
    assert mixed.per == ()
    assert set(mixed.scope.engines) == {NEW.id}
    asked = small.cases.take(slice(0, 5)).served_by(NEW)
    # but for the times of the generation, which rows without a version do not tell
    assert mixed.predict_energy_j(asked) == pytest.approx(whole.predict_energy_j(asked), rel=0.05)
    # with two versions nobody knows which of them a row without one is of
    three = small.cases.served_by([(bare, NEW, OLD)[i % 3] for i in range(60)])
    told = fit(replace(small, cases=three))
    assert {NEW.id, OLD.id} <= set(told.groups)
    # and a version that alone is known answers for the engine's name
    two = small.cases.served_by([Engine(name="sglang"), NEW] * 30)
    told = fit(replace(small, cases=two))
    gpu = small.cases.gpus[0].id
    assert told.coefficients("any", gpu, "bf16", "vllm") is told.groups[NEW.id]


def test_a_coefficient_below_what_hardware_needs_is_flagged(draw_cases, make_dataset):
    theta = np.ones(12)
    theta[NAMES.index("prefill_compute")] = 0.2
    data = make_dataset(draw_cases(150, seed=4), theta=theta, noise_ratio=0.02)
    model = fit(data)
    k = NAMES.index("prefill_compute")
    assert model.pooled.theta[k] == TERMS[k].lower_bound
    said = diagnose(model, data).below_physics["prefill_compute"]
    assert "prompts may be shorter than counted (assumed lengths, prefix caching)" in said
    loose = fit(data, NO_PRIOR)
    assert loose.pooled.theta[k] == pytest.approx(0.2, rel=0.3)
    assert "prefill_compute is 0.2" in diagnose(loose, data).below_physics["prefill_compute"]
    assert diagnose(fit(make_dataset(draw_cases(150, seed=4), theta=np.ones(12))), data)


def test_a_bootstrap_chooses_extensions_once(draw_cases, make_dataset):
    cases = Cases.of(draw_cases(80))
    data = make_dataset(cases, theta=np.append(PLANTED, 8.0), extend=("frames",), noise_ratio=0.05)
    draws = bootstrap(data, FitOptions(extend=("auto",)), samples=4)
    assert draws.shape == (4, 13)
    with pytest.raises(UsageError, match="the seed must be 0 or above, not -1"):
        bootstrap(data, samples=2, seed=-1)


def test_a_diagnosis_is_by_the_weights_and_the_prior_of_the_fit(small):
    weights = np.where(np.arange(60) == 7, 50.0, 1.0)
    model = fit(small, weights=weights)
    assert diagnose(model, small, weights=weights).leverage_row == 7
    assert (
        diagnose(model, small, weights=weights).leverage_max_ratio
        > diagnose(model, small).leverage_max_ratio
    )
    without = diagnose(fit(small, NO_PRIOR), small)
    assert without.effective_parameters == pytest.approx(
        np.count_nonzero(fit(small, NO_PRIOR).pooled.theta), abs=0.1
    )


def test_an_engine_version_is_fitted_as_if_alone_whatever_rows_of_others_say(two_gpus):
    many = two_gpus.cases.served_by(OLD)
    few = Dataset.concatenate([replace(two_gpus, cases=many), two_gpus.take(slice(0, 8))])
    few = replace(
        few,
        cases=few.cases.served_by([OLD] * 300 + [NEW] * 8),
        energy_per_request_j=np.append(
            two_gpus.energy_per_request_j, 2.0 * two_gpus.energy_per_request_j[:8]
        ),
    )
    model = fit(few)
    asked = few.cases.take(slice(50, 60))
    doubled = model.predict_energy_j(asked.served_by(NEW)) / model.predict_energy_j(asked)
    assert np.median(doubled) > 1.4  # eight rows between two GPU types
    alone = fit(few.take(few.engine_ids == NEW.id))
    strangers = asked.served_by(NEW)
    assert model.predict_energy_j(strangers) == pytest.approx(alone.predict_energy_j(strangers))
    before = fit(replace(two_gpus, cases=many)).predict_energy_j(asked)
    assert model.predict_energy_j(asked) == pytest.approx(before, rel=0.02)


def test_what_an_engine_version_was_fitted_to_is_what_its_answers_are_sure_of(two_gpus):
    llms = two_gpus.llm_ids
    first = llms == llms[0]
    old, new = two_gpus.take(first), two_gpus.take(~first)
    both = Dataset.concatenate(
        [
            replace(old, cases=old.cases.served_by(OLD)),
            replace(new, cases=new.cases.served_by(NEW)),
        ]
    )
    model = fit(both)
    assert model.scope_of(OLD.id).llms == (llms[0],)
    assert model.scope_of("").llms == tuple(sorted(set(llms)))
    # an LLM that only the other version has served is one never seen, to this one
    asked = new.cases.served_by(OLD)
    knowing = replace(model, scope=replace(model.scope, engines={OLD.id: model.scope}))
    low, high = model.interval_energy_j(asked)
    lower, upper = knowing.interval_energy_j(asked)
    assert not np.allclose(high / low, upper / lower)
    case = asked.case(0)
    notes = scope_notes(model, case)
    assert f"No row of {OLD.id} has the LLM {case.llm.id}." in notes


def test_rows_whose_engine_is_unknown_are_no_group_of_their_own(two_gpus):
    cases = two_gpus.cases.served_by([OLD, NEW, UNKNOWN_ENGINE] * 100)
    model = fit(replace(two_gpus, cases=cases), FitOptions(per=("engine",)))
    assert set(model.groups) == {OLD.id, NEW.id}
    assert set(model.scope.engines) == {OLD.id, NEW.id}


def test_rows_that_are_all_of_a_group_are_fitted_once(two_gpus):
    # each GPU type has one engine version: naming it adds nothing
    engines = [(OLD, NEW)[i] for i in two_gpus.cases.gpu_index]
    model = fit(replace(two_gpus, cases=two_gpus.cases.served_by(engines)))
    assert set(model.groups) == {*two_gpus.gpu_ids, OLD.id, NEW.id}
    assert fit(two_gpus.take(two_gpus.cases.gpu_index == 0), FitOptions(per=("gpu",))).groups == {}


def test_one_pooled_fit_is_had_by_asking(two_gpus):
    model = fit(two_gpus, FitOptions(per=()))
    assert model.groups == {}
    assert diagnose(model, two_gpus).mape_ratio > 0.2


def test_llms_and_precisions_may_have_their_own_coefficients(draw_cases, make_dataset):
    llms = ("Qwen/Qwen3-8B", "Qwen/Qwen3-32B")
    cases = Cases.of(draw_cases(200, llms=llms, precisions=("bf16", "fp8"), images=False))
    factor = np.where(cases.llm_index == 0, 0.8, 1.25)
    data = make_dataset(cases, factor * energy(design(cases), PLANTED))
    model = fit(data, FitOptions(per=("llm", "precision")))
    assert set(model.groups) == {f"{m} {p}" for m in llms for p in ("bf16", "fp8")}
    assert diagnose(model, data).mape_ratio < 0.02
    assert diagnose(fit(data), data).mape_ratio > 0.05
    # a group that nobody measured gets the pooled answer
    unseen = data.cases.case(0)
    unseen = Cases.of([replace(unseen, precision=catalog.precision("awq-int4"))])
    assert model.predict_energy_j(unseen) == pytest.approx(
        fit(data, FitOptions(per=())).predict_energy_j(unseen)
    )


def test_a_group_of_few_rows_stays_near_the_pooled_fit(draw_cases, make_dataset):
    many = draw_cases(200, seed=1, llms=("Qwen/Qwen3-8B",), images=False)
    few = draw_cases(8, seed=2, llms=("Qwen/Qwen3-32B",), images=False)
    data = make_dataset(many + few, theta=PLANTED, noise_ratio=0.3)
    model = fit(data, FitOptions(per=("llm",)))
    alone = model.groups["Qwen/Qwen3-32B"]
    assert alone.rows == 8
    assert (np.abs(alone.theta - model.pooled.theta) / SPREADS).max() < 0.5


# ----------------------------------------------------------------------------- extensions


@pytest.mark.parametrize("name", sorted(EXTENSIONS))
def test_a_planted_surcharge_is_found_by_its_extension(draw_cases, make_dataset, name):
    cases = Cases.of(draw_cases(200, precisions=("bf16", "fp8", "awq-int4")))
    if name == "power_cap":
        cases = with_caps(cases)
    surcharges = np.full(len(EXTENSIONS[name]), 1.5)
    theta = np.concatenate([PLANTED, surcharges])
    data = make_dataset(cases, theta=theta, extend=(name,))
    extended = fit(data, FitOptions(prior="none", extend=(name,)))
    assert extended.extensions == (name,)
    assert extended.pooled.theta == pytest.approx(theta, rel=1e-3)
    assert diagnose(extended, data).undetermined == {}
    plain = diagnose(fit(data, NO_PRIOR), data)
    assert diagnose(extended, data).mape_ratio < 0.1 * plain.mape_ratio


def test_a_surcharge_that_no_row_asks_for_stays_at_zero(draw_cases, make_dataset):
    wide = make_dataset(
        draw_cases(60, seed=2, precisions=("bf16",)), theta=PLANTED, noise_ratio=0.1
    )
    model = fit(wide, FitOptions(extend=("quantization",)))
    narrow = ("narrow_weights", "weight_only_weights", "narrow_steps")
    for name, theta in zip((t.name for t in model.terms), model.pooled.theta, strict=True):
        assert name not in narrow or theta == pytest.approx(0, abs=1e-9)
    assert set(diagnose(model, wide).undetermined) >= set(narrow)


def test_extensions_are_taken_in_where_they_pay_and_not_elsewhere(draw_cases, make_dataset):
    cases = Cases.of(draw_cases(150))
    media = np.append(PLANTED, 8.0)
    paying = make_dataset(cases, theta=media, extend=("frames",), noise_ratio=0.05)
    assert fit(paying, FitOptions(extend=("auto",))).extensions == ("frames",)
    plain = make_dataset(cases, theta=PLANTED, noise_ratio=0.05)
    model = fit(plain, FitOptions(extend=("auto",)))
    assert model.extensions == ()
    assert np.array_equal(model.pooled.theta, fit(plain).pooled.theta)


def test_an_extension_that_pays_is_seen_beside_rows_of_an_engine_that_takes_three_times_as_much(
    draw_cases, make_dataset
):
    theta = np.append(PLANTED, [0.0, 0.6])
    cases = Cases.of(draw_cases(150, precisions=("bf16", "fp8")))
    new = make_dataset(cases, theta=theta, extend=("quantization",), noise_ratio=0.1)
    auto = FitOptions(extend=("auto",))
    assert fit(new, auto).extensions == ("quantization",)
    plain = make_dataset(draw_cases(150, seed=3), theta=3.0 * PLANTED, noise_ratio=0.1)
    both = Dataset.concatenate(
        [
            replace(new, cases=new.cases.served_by(NEW)),
            replace(plain, cases=plain.cases.served_by(OLD)),
        ]
    )
    assert fit(both, auto).extensions == ("quantization",)
    together = FitOptions(extend=("auto",), per=())
    assert fit(both, together).extensions == ()


def with_caps(cases, *, seed=7):
    """A third of the cases each: no cap, and caps somewhere below the TDP."""
    rng = np.random.default_rng(seed)
    ratio = np.where(rng.random(len(cases)) < 0.33, np.nan, rng.uniform(0.4, 0.95, len(cases)))
    return cases.replace(power_cap_w=ratio * cases.of_gpu(lambda gpu: gpu.tdp_w))


def test_power_caps_are_taken_in_where_they_pay_and_not_where_they_are_not_felt(
    draw_cases, make_dataset
):
    cases = with_caps(Cases.of(draw_cases(150)))
    felt = make_dataset(
        cases, theta=np.append(PLANTED, [0.4, 1.2]), extend=("power_cap",), noise_ratio=0.05
    )
    model = fit(felt, FitOptions(extend=("auto",)))
    assert model.extensions == ("power_cap",)
    assert model.pooled.theta[12:] == pytest.approx([0.4, 1.2], abs=0.25)
    assert diagnose(model, felt).mape_ratio < 0.4 * diagnose(fit(felt), felt).mape_ratio
    assert model.scope.ranges["power_cap_w"][1] <= 700
    # Drawn below every cap, as decode on some GPUs: the column is there, and says nothing.
    unfelt = make_dataset(cases, theta=PLANTED, noise_ratio=0.05)
    assert fit(unfelt, FitOptions(extend=("auto",))).extensions == ()


def test_rows_with_caps_are_fitted_without_them_unless_asked(draw_cases, make_dataset):
    cases = Cases.of(draw_cases(60))
    plain = make_dataset(cases, theta=PLANTED, noise_ratio=0.1)
    capped = make_dataset(with_caps(cases), plain.energy_per_request_j)
    assert fit(capped).pooled.theta == pytest.approx(fit(plain).pooled.theta, rel=0.02)


def test_power_caps_are_refused_where_no_row_has_one(small):
    asked = FitOptions(extend=("power_cap",))
    with pytest.raises(FitError, match="needs rows with a power_cap_w, and none of these 60 has"):
        fit(small, asked)
    # A fold, or a draw, may have none all the same: the datasheet then stands for them.
    assert EnergyLens(options=asked).fit(small).pooled.theta[12:] == pytest.approx([1, 1])
    few = np.where(np.arange(len(small)) == 5, 300.0, np.nan)
    one = replace(small, cases=small.cases.replace(power_cap_w=few))
    assert bootstrap(one, asked, samples=8).shape == (8, 14)


def test_power_caps_and_measured_power_exclude_each_other(draw_cases, make_dataset):
    with pytest.raises(UsageError, match="take one of the two"):
        FitOptions(extend=("power_cap",), measured_power=True)
    cases = with_caps(Cases.of(draw_cases(60)))
    data = make_dataset(cases, theta=PLANTED, power_w=300.0)
    options = FitOptions(extend=("auto",), measured_power=True)
    assert "power_cap" not in fit(data, options).extensions


def test_an_unknown_extension_is_refused(small):
    with pytest.raises(UnknownNameError, match="unknown extension 'colour'"):
        fit(small, FitOptions(extend=("colour",)))
    with pytest.raises(UsageError, match="each name at most once"):
        FitOptions(extend=("length", "length"))


# -------------------------------------------------------------------------- few, or odd rows


def test_one_row_is_enough(small):
    for row in range(0, 60, 10):
        one = small.take(np.array([row]))
        model = fit(one)
        before = from_datasheet().predict_energy_j(one.cases) / one.energy_per_request_j
        after = model.predict_energy_j(one.cases) / one.energy_per_request_j
        # the datasheet times one factor, shrunk: nearer, and on the same side
        assert 0 < np.log(after[0]) / np.log(before[0]) < 1
        theta = model.pooled.theta[np.array([t.expected > 0 for t in TERMS])]
        assert np.ptp(theta) < 1e-12
        diagnosis = diagnose(model, one)
        assert diagnosis.rows == 1
        assert diagnosis.leverage_row == 0
        low, high = model.interval_energy_j(one.cases)
        assert 0 < low[0] <= high[0]


def test_repeats_of_one_row_are_fitted_and_diagnosed(small):
    for options in (FitOptions(), NO_PRIOR):
        repeats = small.take(np.array([4, 4, 4]))
        model = fit(repeats, options)
        if options.prior == "none":  # without a prior nothing is shrunk
            assert model.predict_energy_j(repeats.cases) == pytest.approx(
                repeats.energy_per_request_j, rel=0.01
            )
        assert np.isfinite(diagnose(model, repeats).condition_number)


def test_no_row_is_an_error(small):
    with pytest.raises(FitError, match="needs one measured row or more"):
        fit(small.take(slice(0, 0)))


@pytest.mark.parametrize("factor", [1e-300, 1e-12, 1e12, 1e300])
def test_energy_in_no_unit_of_joules_is_an_error_that_names_the_row(small, factor):
    joules = small.energy_per_request_j.copy()
    joules[17] *= factor
    for loss in LOSSES:
        with pytest.raises(FitError, match=r"row 17 .*Look at its unit"):
            fit(replace(small, energy_per_request_j=joules), FitOptions(loss=loss))


@pytest.mark.parametrize("factor", [1e-4, 1e4])
def test_rows_off_by_orders_of_magnitude_give_finite_numbers(small, factor):
    joules = small.energy_per_request_j.copy()
    joules[::20] *= factor
    for loss in LOSSES:
        for prior in PRIORS:
            odd = replace(small, energy_per_request_j=joules)
            model = fit(odd, FitOptions(loss=loss, prior=prior))
            for numbers in (model.pooled.theta, model.pooled.covariance):
                assert np.isfinite(numbers).all()
            assert np.isfinite(model.pooled.residuals_unseen).all()
            assert np.isfinite(diagnose(model, odd).mape_ratio)


def test_the_order_of_rows_does_not_matter(small):
    order = np.random.default_rng(0).permutation(60)
    shuffled = fit(small.take(order)).pooled
    assert shuffled.theta == pytest.approx(fit(small).pooled.theta, rel=1e-5)
    assert shuffled.residuals_seen == pytest.approx(fit(small).pooled.residuals_seen, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "squared"}, "loss must be one of relative"),
        ({"prior": "flat"}, "prior must be one of datasheet, none"),
        ({"per": ("task",)}, "per takes gpu, llm, precision"),
        ({"per": ("gpu", "gpu")}, "each at most once"),
        ({"idle_power_w": 0.0}, "above 0 W"),
        ({"idle_power_w": float("nan")}, "above 0 W"),
    ],
)
def test_options_that_are_none_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        FitOptions(**options)


# --------------------------------------------------------------------- rows left out, intervals


def fitted(dataset):
    """The minimum and what it knows of rows left out, before any widening is divided out."""
    least_squares = problem.Problem(dataset, np.ones(len(dataset)), FitOptions())
    everything = np.arange(len(dataset))
    return least_squares._minimise(everything, least_squares.expected, least_squares.spread)


def plain(model):
    """Take the factors from a model: what is left is the law."""
    return replace(model, pooled=replace(model.pooled, factors=factors.none()))


def test_residuals_of_rows_left_out_are_those_of_real_refits(small):
    stated = np.sort(fitted(small).without_rows()[0])
    refitted = []
    for row in range(60):
        without = plain(fit(small.take(np.arange(60) != row)))
        held = small.take(np.array([row]))
        refitted.append(np.log(held.energy_per_request_j / without.predict_energy_j(held.cases))[0])
    assert np.sort(refitted) == pytest.approx(stated, abs=0.03)
    assert np.std(refitted) == pytest.approx(stated.std(), rel=0.05)
    in_sample = plain(fit(small)).predict_energy_j(small.cases) / small.energy_per_request_j
    in_sample = np.log(in_sample)
    assert np.std(in_sample) < 0.95 * np.std(refitted)  # so the test can tell them apart


def test_residuals_of_llms_left_out_are_those_of_real_refits(draw_cases, make_dataset):
    llms = ("meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen3-30B-A3B", "Qwen/Qwen3-VL-8B-Instruct")
    part = Cases.of(draw_cases(120, seed=3, llms=llms))
    own = np.array([-0.15, 0.0, 0.15])[part.llm_index]
    data = make_dataset(part, np.exp(own) * energy(design(part), PLANTED))
    minimum = fitted(data)
    refitted = []
    for llm in llms:
        without = fit(data.take(data.llm_ids != llm))
        held = data.take(data.llm_ids == llm)
        refitted += np.log(
            held.energy_per_request_j / without.predict_energy_j(held.cases)
        ).tolist()
    stated = np.sort(minimum.without_groups(data.cases.llm_index)[0])
    assert np.sort(refitted) == pytest.approx(stated, abs=0.15)
    assert np.std(refitted) == pytest.approx(stated.std(), rel=0.15)
    assert stated.std() > 1.3 * minimum.without_rows()[0].std()


def test_the_leverage_of_a_row_left_out_is_that_by_the_moments_of_the_others(small):
    minimum = fitted(small)
    group = small.cases.llm_index
    by_group, alone = minimum.without_groups(group)[1], minimum.without_rows()[1]
    for row in range(0, 60, 7):
        for left_out, stated in ((group == group[row], by_group), (np.arange(60) == row, alone)):
            others = minimum.b[~left_out]
            moments = others.T @ others + np.diag(minimum.pull[minimum.theta > 0])
            b = minimum.b[row]
            assert stated[row] == pytest.approx(b @ np.linalg.solve(moments, b))
    assert (by_group > alone).all()


def test_rows_of_one_llm_that_err_alike_count_for_less_than_independent_ones(
    draw_cases, make_dataset
):
    part = Cases.of(draw_cases(200, seed=3))
    joules = energy(design(part), PLANTED)
    rng = np.random.default_rng(0)
    alone = make_dataset(part, joules * np.exp(rng.normal(0, 0.15, 200)))
    common = rng.normal(0, 0.15, len(part.llms))[part.llm_index]
    together = make_dataset(part, joules * np.exp(common))
    effects = [fit(data).pooled.design_effect for data in (alone, together)]
    assert effects[0] < 2
    assert effects[1] > 2 * effects[0]
    one_llm = alone.take(part.llm_index == 0)
    assert fit(one_llm).pooled.design_effect == 1


def test_variants_of_one_architecture_are_left_out_together(draw_cases, make_dataset):
    names = ("meta-llama/Llama-3.1-70B-Instruct", "meta-llama/Llama-3.3-70B-Instruct", LLAMA_8B)
    data = make_dataset(draw_cases(60, seed=3, llms=names), theta=PLANTED, noise_ratio=0.05)
    assert len(np.unique(data.cases.llm_index)) == 3
    assert fit(data).pooled.llms == 2


@pytest.mark.parametrize("larger", [True, False])
def test_intervals_cover_cases_outside_the_range_of_the_rows(draw_cases, make_dataset, larger):
    covered, narrow = [], []
    for seed in range(6):
        data = make_dataset(draw_cases(150, seed=seed), theta=PLANTED, noise_ratio=0.05, seed=seed)
        judged = (data.cases.batch_size > 8) == larger
        model = fit(data.take(~judged))
        test = data.take(judged)
        for pooled, shares in (
            (model.pooled, covered),
            (replace(model.pooled, design_effect=0.0), narrow),
        ):
            low, high = replace(model, pooled=pooled).interval_energy_j(test.cases)
            joules = test.energy_per_request_j
            shares.append(((low <= joules) & (joules <= high)).mean())
    assert 0.72 < np.mean(covered) < 0.95
    assert np.mean(narrow) < np.mean(covered) - 0.01


def test_rows_in_a_format_that_errs_more_have_wider_intervals(draw_cases, make_dataset):
    rows = draw_cases(240, seed=3, precisions=("bf16", "fp8"))
    narrow = np.array([row.precision.id == "fp8" for row in rows])
    noise = np.random.default_rng(0).normal(0, np.where(narrow, 0.3, 0.05))
    data = make_dataset(rows, energy(design(Cases.of(rows)), PLANTED) * np.exp(noise))
    model = fit(data)
    low, high = model.interval_energy_j(data.cases)
    joules = data.energy_per_request_j
    inside = (low <= joules) & (joules <= high)
    assert 0.7 < inside[narrow].mean() < 0.92
    assert 0.7 < inside[~narrow].mean() < 0.92
    width = np.log(high / low)
    assert np.median(width[narrow]) > 2 * np.median(width[~narrow])
    # of a kind of format without rows nothing better is known than of the worst
    other = [replace(row, precision=catalog.precision("awq-int4")) for row in rows[:20]]
    low, high = model.interval_energy_j(Cases.of(other))
    assert np.median(np.log(high / low)) > 2 * np.median(width[~narrow])


def test_a_gpu_type_with_few_rows_borrows_the_residuals_of_all(draw_cases, make_dataset):
    data = make_dataset(
        draw_cases(90, seed=1, gpus=("H100", "A100-SXM-80GB")), theta=PLANTED, noise_ratio=0.1
    )
    mine = np.flatnonzero(data.gpu_ids == "A100-SXM-80GB")
    few = np.concatenate([np.flatnonzero(data.gpu_ids != "A100-SXM-80GB"), mine[:3]])
    model = fit(data.take(few))
    group, pooled = model.groups["A100-SXM-80GB"], model.pooled
    assert len(group.residuals_seen) == len(pooled.residuals_seen)
    scaled = pooled.residuals_seen * (group.spread_ratio / pooled.spread_ratio)
    assert group.residuals_seen == pytest.approx(scaled)
    many = fit(data).groups["A100-SXM-80GB"]
    assert len(many.residuals_seen) == many.rows == len(mine)


@pytest.mark.parametrize("noise", [0.05, 0.2])
def test_an_80_percent_interval_covers_80_percent(draw_cases, make_dataset, noise):
    rows = Cases.of(draw_cases(1200, seed=11))
    test = make_dataset(rows.take(slice(800, 1200)), theta=PLANTED, noise_ratio=noise, seed=2)
    joules = test.energy_per_request_j
    below, above = [], []
    for seed in range(8):
        part = rows.take(slice(100 * seed, 100 * (seed + 1)))
        train = make_dataset(part, theta=PLANTED, noise_ratio=noise, seed=10 + seed)
        low, high = fit(train).interval_energy_j(test.cases, 0.8)
        below.append((joules < low).mean())
        above.append((joules > high).mean())
    assert 0.75 < 1 - np.mean(below) - np.mean(above) < 0.85
    assert np.mean(below) == pytest.approx(np.mean(above), abs=0.06)


def test_few_rows_give_wider_intervals_and_not_too_narrow_ones(draw_cases, make_dataset):
    test = make_dataset(draw_cases(300, seed=12), theta=PLANTED, noise_ratio=0.1, seed=2)
    covered, width = [], []
    for seed in range(8):
        few = make_dataset(draw_cases(12, seed=seed), theta=PLANTED, noise_ratio=0.1, seed=seed)
        low, high = fit(few).interval_energy_j(test.cases, 0.8)
        covered.append(
            ((low < test.energy_per_request_j) & (test.energy_per_request_j < high)).mean()
        )
        width.append(np.log(high / low).mean())
    assert np.mean(covered) > 0.65
    assert np.mean(width) > 2 * 1.2816 * 0.1


# ----------------------------------------------------------------------------- diagnostics


@pytest.mark.parametrize(
    ("missing", "name", "needs"),
    [
        ({"pipeline": (1,)}, "pipeline_parallel", "pipeline_parallel above 1"),
        ({"images": False}, "vision", "images or video"),
        ({"node": False}, "idle_gpus", "node boundary"),
    ],
)
def test_what_no_row_speaks_of_is_named_with_what_would(
    draw_cases, make_dataset, missing, name, needs
):
    data = make_dataset(draw_cases(120, **missing), theta=PLANTED, noise_ratio=0.02)
    for options in (FitOptions(), NO_PRIOR):
        model = fit(data, options)
        undetermined = diagnose(model, data).undetermined
        assert needs in undetermined[name]
        assert set(undetermined) == {name}
        assert model.pooled.theta[NAMES.index(name)] == pytest.approx(1.0)


def test_a_good_dataset_leaves_nothing_undetermined(noisy):
    diagnosis = diagnose(fit(noisy), noisy)
    assert diagnosis.undetermined == {}
    assert diagnosis.at_bound == ()
    assert diagnosis.rows == 400
    assert diagnosis.effective_parameters == pytest.approx(12, abs=0.5)
    assert 1 < diagnosis.condition_number < 100
    assert diagnosis.bias_ratio == pytest.approx(0, abs=0.005)
    # mean and median of |N(0, 0.02)|
    assert diagnosis.mape_ratio == pytest.approx(0.016, rel=0.2)
    assert diagnosis.median_ape_ratio == pytest.approx(0.0135, rel=0.25)


def test_a_coefficient_at_its_bound_is_named(cases, make_dataset):
    theta = PLANTED.copy()
    theta[NAMES.index("decode_cache")] = -0.02  # rows that ask for less than nothing
    data = make_dataset(cases, energy(design(cases), theta))
    model = fit(data, NO_PRIOR)
    assert diagnose(model, data).at_bound == ("decode_cache",)
    assert model.pooled.theta[NAMES.index("decode_cache")] == 0


def test_the_worst_rows_and_the_most_decisive_one_are_named(noisy):
    joules = noisy.energy_per_request_j.copy()
    joules[123] *= 4.0
    spoilt = replace(noisy, energy_per_request_j=joules)
    diagnosis = diagnose(fit(spoilt), spoilt)
    row, ratio = diagnosis.worst[0]
    assert row == 123
    assert ratio == pytest.approx(0.25, abs=0.05)
    assert len(diagnosis.worst) == 5
    alone = np.concatenate([np.flatnonzero(noisy.cases.images == 0), [0]])
    alone[-1] = np.flatnonzero(noisy.cases.images > 0)[0]
    lonely = noisy.take(alone)
    decisive = diagnose(fit(lonely, NO_PRIOR), lonely)
    assert decisive.leverage_row == len(alone) - 1
    assert decisive.leverage_max_ratio > 0.7


# ------------------------------------------------------------------------------- bootstrap


def test_a_bootstrap_is_its_seed_and_agrees_with_the_covariance(noisy):
    part = noisy.take(slice(0, 150))
    draws = bootstrap(part, samples=40, seed=5)
    assert draws.shape == (40, 12)
    assert np.array_equal(draws[:3], bootstrap(part, samples=3, seed=5))
    assert not np.array_equal(draws[:3], bootstrap(part, samples=3, seed=6))
    assert (draws >= 0).all()
    model = fit(part)
    assert draws.mean(axis=0) == pytest.approx(model.pooled.theta, rel=0.15)
    spread = draws.std(axis=0) / np.sqrt(np.diag(model.pooled.covariance))
    assert ((spread > 0.5) & (spread < 2)).all()


def test_a_bootstrap_of_no_samples_is_refused(small):
    with pytest.raises(UsageError, match="1 sample or more, not 0"):
        bootstrap(small, samples=0)


# ----------------------------------------------------------------------- what a model carries


def test_a_model_carries_its_scope_and_where_its_rows_come_from(small):
    model = fit(small)
    assert model.scope.llms == tuple(sorted(set(small.llm_ids)))
    assert model.scope.gpus == ("H100-SXM-80GB",)
    assert model.scope.precisions == ("awq-int4", "bf16", "fp8")
    batch = small.cases.batch_size
    assert model.scope.ranges["batch_size"] == (batch.min(), batch.max())
    assert model.dataset_digest == small.digest
    assert model.sources == {"measured": 60}
    assert model.energylens_version


def test_a_fit_is_deterministic(small):
    assert np.array_equal(fit(small).pooled.theta, fit(small).pooled.theta)


def test_the_law_is_an_estimator_in_line_with_the_others(small):
    contestant = EnergyLens(options=NO_PRIOR, name="ours")
    assert (contestant.name, contestant.ranks_only) == ("ours", False)
    assert np.array_equal(contestant.fit(small).pooled.theta, fit(small, NO_PRIOR).pooled.theta)
    assert Datasheet().fit(small).pooled.rows == 0


def test_before_the_first_measurement_the_datasheet_speaks(small):
    model = from_datasheet()
    joules = model.predict_energy_j(small.cases)
    assert joules == pytest.approx(energy(design(small.cases), np.ones(12)))
    low, high = model.interval_energy_j(small.cases, 0.8)
    assert (low > 0.5 * joules).all()
    assert (high < 2 * joules).all()
    assert (high > 1.5 * joules).all()


def test_a_known_idle_power_of_several_gpu_types_is_refused(draw_cases, make_dataset):
    rows = make_dataset(Cases.of(draw_cases(20, gpus=("H100", "A100-SXM-80GB"))))
    with pytest.raises(UsageError, match="belongs to one GPU type"):
        fit(rows, FitOptions(idle_power_w=70.0))
