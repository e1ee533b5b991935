from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from energylens.cases import Cases, factorize
from energylens.errors import InputError
from energylens.records import UNKNOWN_ENGINE, Boundary, Engine, Modality


@pytest.fixture(scope="module")
def several(draw_cases):
    return draw_cases(40, seed=3, gpus=("H100", "A100-SXM-80GB"), precisions=("bf16", "fp8"))


def same(a, b):
    """Whether two columns of cases hold the same cases, however they number their records."""
    return all(
        np.array_equal(getattr(a, name), getattr(b, name), equal_nan=True)
        for name in Cases.column_names()
        if not name.endswith("_index")
    ) and all(
        [getattr(a, group)[i].id for i in getattr(a, index)]
        == [getattr(b, group)[i].id for i in getattr(b, index)]
        for group, index in (
            ("llms", "llm_index"),
            ("gpus", "gpu_index"),
            ("precisions", "precision_index"),
        )
    )


def test_records_become_columns_and_come_back(several):
    cases = Cases.of(several)
    assert len(cases) == 40
    for row, record in enumerate(several):
        assert cases.case(row) == record


def test_each_record_is_kept_once(several):
    cases = Cases.of(several)
    assert len({llm.id for llm in cases.llms}) == len(cases.llms)
    assert len(cases.gpus) == len(cases.precisions) == 2
    assert cases.llms[cases.llm_index[0]] == several[0].llm


def test_not_known_is_nan_in_columns_and_none_in_records(several):
    unknown = replace(
        several[0], configuration=replace(several[0].configuration, mean_batch_size=None)
    )
    cases = Cases.of([unknown])
    assert np.isnan(cases.mean_batch_size[0])
    assert np.isnan(cases.average_power_w[0])
    assert cases.case(0).configuration.mean_batch_size is None


def test_a_video_comes_back_as_a_video(several):
    video = replace(
        several[0],
        workload=replace(
            several[0].workload,
            input_tokens=5000,
            vision_tokens=4000,
            images=0,
            frames=16,
            modality=Modality.VIDEO,
        ),
    )
    assert Cases.of([video]).case(0) == video


def test_the_boundary_and_the_node_survive(several):
    node = replace(several[0], boundary=Boundary.NODE, node_gpus=8)
    cases = Cases.of([node, replace(several[0], boundary=Boundary.ACTIVE_GPUS, node_gpus=None)])
    assert cases.node_boundary.tolist() == [True, False]
    assert cases.node_gpus[0] == 8
    assert np.isnan(cases.node_gpus[1])


def test_occupied_gpus_are_the_product_of_three_degrees(several):
    cases = Cases.of(several)
    assert cases.occupied_gpus.tolist() == [c.configuration.gpus for c in several]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 39), max_size=12))
def test_taking_rows_takes_those_rows(several, rows):
    taken = Cases.of(several).take(np.array(rows, dtype=np.intp))
    assert same(taken, Cases.of([several[i] for i in rows]))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=4))
def test_parts_joined_are_the_whole(several, cuts):
    edges = [0, *sorted(cuts), 40]
    parts = [Cases.of(several[a:b]) for a, b in pairwise(edges)]
    assert same(Cases.concatenate(parts), Cases.of(several))


def test_a_slice_and_a_mask_take_the_same(several):
    cases = Cases.of(several)
    mask = np.arange(40) < 7
    assert same(cases.take(slice(0, 7)), cases.take(mask))


def test_joining_nothing_is_refused():
    with pytest.raises(InputError, match="no cases at all"):
        Cases.concatenate([])


def test_no_cases_at_all_have_columns_too():
    empty = Cases.of([])
    assert len(empty) == 0
    assert empty.occupied_gpus.shape == (0,)
    assert empty.of_llm(lambda llm: llm.layers).shape == (0,)


def test_a_column_is_replaced_by_a_number_or_by_values(several):
    cases = Cases.of(several)
    assert set(cases.replace(batch_size=7.0).batch_size) == {7.0}
    values = np.arange(40.0) + 1
    changed = cases.replace(output_tokens=values, input_tokens=3.0)
    assert np.array_equal(changed.output_tokens, values)
    assert np.array_equal(changed.batch_size, cases.batch_size)
    assert cases.input_tokens[0] == several[0].workload.input_tokens  # the original is untouched


def test_an_unknown_column_is_refused_by_name(several):
    with pytest.raises(InputError, match="no such column of cases: batchsize"):
        Cases.of(several).replace(batchsize=1.0)


def test_columns_of_different_length_are_refused(several):
    cases = Cases.of(several)
    columns = {name: getattr(cases, name) for name in Cases.column_names()}
    columns["images"] = np.zeros(3)
    with pytest.raises(InputError, match=r"length of the first \(40\); images has shape \(3,\)"):
        Cases(
            llms=cases.llms,
            gpus=cases.gpus,
            precisions=cases.precisions,
            engines=cases.engines,
            **columns,
        )


def test_a_number_is_looked_up_in_the_record_of_each_row(several):
    cases = Cases.of(several)
    assert cases.of_llm(lambda m: m.layers).tolist() == [c.llm.layers for c in several]
    assert cases.of_gpu(lambda g: g.tdp_w).tolist() == [c.gpu.tdp_w for c in several]
    assert cases.of_precision(lambda p: p.weight_bits).tolist() == [
        c.precision.weight_bits for c in several
    ]


def test_cases_keep_their_engines_apart_when_they_are_taken_joined_and_read(several):
    two = [Engine(name="vllm", version="0.5.4"), Engine(name="vllm", version="0.11.1")]
    cases = Cases.of(several).served_by(two * 20)
    assert cases.engines == tuple(two)
    assert cases.case(1).engine.id == "vllm 0.11.1"
    joined = Cases.concatenate([cases.take([1]), Cases.of(several), cases])
    assert [e.id for e in joined.engines] == ["vllm 0.5.4", "vllm 0.11.1", ""]
    assert [joined.case(i).engine for i in (0, 1, 41, 42)] == [two[1], UNKNOWN_ENGINE, *two]
    # "a b c" names two engines, and they stay two
    alike = [Engine(name="a b", version="c"), Engine(name="a", version="b c")]
    assert Cases.of(several).served_by(alike * 20).engines == tuple(alike)


@given(st.lists(st.sampled_from(["", "a", "b", "ab"])))
def test_factorizing_keeps_the_first_of_each_in_order(items):
    distinct, index = factorize(items, str)
    assert [distinct[i] for i in index] == items
    assert list(distinct) == list(dict.fromkeys(items))


def test_a_power_cap_goes_from_the_record_to_the_column_and_back(several):
    cases = Cases.of(several)
    assert not cases.capped.any()
    assert cases.case(0).configuration.power_cap_w is None
    capped = cases.replace(power_cap_w=np.where(np.arange(len(cases)) < 3, 300.0, np.nan))
    assert capped.capped.sum() == 3
    again = Cases.of(capped.case(i) for i in range(len(capped)))
    assert np.array_equal(again.power_cap_w, capped.power_cap_w, equal_nan=True)
    assert capped.case(0).configuration.power_cap_w == 300.0
