from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from energylens import catalog
from energylens.cases import Cases
from energylens.dataset import KNOBS, Dataset, freed_columns, group_rows
from energylens.errors import InputError, UsageError
from energylens.records import Boundary, Case, Configuration, Engine, Workload


@pytest.fixture(scope="module")
def base():
    return Case(
        llm=catalog.llm("Qwen/Qwen3-8B"),
        gpu=catalog.gpu("H100"),
        precision=catalog.precision("bf16"),
        workload=Workload(input_tokens=500, output_tokens=200),
        configuration=Configuration(batch_size=8),
    )


@pytest.fixture(scope="module")
def planted(draw_cases, make_dataset):
    return make_dataset(draw_cases(30, gpus=("H100", "A100-SXM-80GB")), noise_ratio=0.1)


def laid_out(case, **configuration):
    return replace(case, configuration=replace(case.configuration, **configuration))


def asked(case, **workload):
    return replace(case, workload=replace(case.workload, **workload))


def scenarios(dataset, *choose):
    return [group.tolist() for group in dataset.scenarios(choose)]


# --------------------------------------------------------------------------------- joules


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_energy_that_is_no_energy_is_refused_with_its_row(planted, bad):
    energy = planted.energy_per_request_j.copy()
    energy[7] = bad
    with pytest.raises(InputError, match=rf"^energy_per_request_j must .* row 7 .*{bad!r} J$"):
        replace(planted, energy_per_request_j=energy)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_part_may_be_unknown_but_not_impossible(planted, phase):
    name = f"{phase}_energy_per_request_j"
    part = np.full(30, np.nan)
    assert len(replace(planted, **{name: part})) == 30
    part[3] = -2.0
    with pytest.raises(InputError, match=rf"^{name} must .* row 3 .*-2.0 J$"):
        replace(planted, **{name: part})


def test_a_column_of_another_length_is_refused(planted):
    with pytest.raises(InputError, match=r"each of its 30 cases; task has shape \(2,\)"):
        replace(planted, task=np.array(["a", "b"], dtype=object))


# ------------------------------------------------------------------------- columns and rows


def test_ids_are_those_of_the_records_of_each_row(planted):
    rows = range(30)
    assert planted.llm_ids.tolist() == [planted.cases.case(i).llm.id for i in rows]
    assert planted.gpu_ids.tolist() == [planted.cases.case(i).gpu.id for i in rows]
    assert planted.precision_ids.tolist() == [planted.cases.case(i).precision.id for i in rows]


def test_only_measured_and_published_rows_carry_an_accuracy_claim(make_dataset, base):
    sources = ["measured", "published", "simulated", "estimated", "derived", "simulated"]
    data = make_dataset([base] * 6, source=sources)
    assert data.carries_accuracy_claim.tolist() == [True, True, False, False, False, False]
    counts = data.source_counts()
    assert counts == {"simulated": 2, "measured": 1, "published": 1, "estimated": 1, "derived": 1}
    assert next(iter(counts)) == "simulated"


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 30))
def test_pooling_the_parts_gives_the_whole(planted, cut):
    parts = [planted.take(slice(0, cut)), planted.take(np.arange(cut, 30))]
    whole = Dataset.concatenate(parts)
    assert whole.digest == planted.digest
    assert whole.energy_per_request_j.tolist() == planted.energy_per_request_j.tolist()
    assert whole.llm_ids.tolist() == planted.llm_ids.tolist()


def test_pooling_nothing_is_refused():
    with pytest.raises(InputError, match="no datasets at all"):
        Dataset.concatenate([])


# ---------------------------------------------------------------------------------- digest


def test_the_digest_names_the_content_and_the_order(planted):
    assert planted.take(slice(None)).digest == planted.digest
    assert planted.take(np.arange(30)[::-1]).digest != planted.digest
    assert planted.take(slice(0, 29)).digest != planted.digest


@pytest.mark.parametrize("column", Dataset.column_names())
def test_any_changed_value_changes_the_digest(planted, column):
    values = getattr(planted, column).copy()
    values[4] = "other" if values.dtype == object else 3.5
    assert replace(planted, **{column: values}).digest != planted.digest


@pytest.mark.parametrize(
    "column", [name for name in Cases.column_names() if not name.endswith("_index")]
)
def test_any_changed_case_changes_the_digest(planted, column):
    values = getattr(planted.cases, column).copy()
    values[4] = ~values[4] if values.dtype == bool else 77.0
    assert replace(planted, cases=planted.cases.replace(**{column: values})).digest != (
        planted.digest
    )


def test_the_digest_knows_the_llm_and_where_a_text_stands(make_dataset, base):
    data = make_dataset([base])
    other = make_dataset([replace(base, llm=catalog.llm("Qwen/Qwen3-14B"))], energy_j=1.0)
    assert other.digest != make_dataset([base], energy_j=1.0).digest
    moved = [
        replace(data, cases=data.cases.served_by(Engine(name=a, version=b))).digest
        for a, b in (("vllm", "1"), ("vllm1", ""), ("", "vllm1"))
    ]
    assert len(set(moved)) == 3


# ------------------------------------------------------------------------------- scenarios


def test_configurations_of_one_workload_make_one_scenario(make_dataset, base):
    data = make_dataset(
        [
            base,
            laid_out(base, tensor_parallel=2),
            asked(base, output_tokens=400),
            laid_out(base, tensor_parallel=4),
            asked(laid_out(base, tensor_parallel=2), output_tokens=400),
        ]
    )
    assert scenarios(data, "tensor_parallel") == [[0, 1, 3], [2, 4]]
    assert scenarios(data, "parallelism") == [[0, 1, 3], [2, 4]]
    assert scenarios(data, "batch_size") == []


def test_what_is_not_free_must_be_the_same(make_dataset, base):
    rows = [base, laid_out(base, tensor_parallel=2, batch_size=64)]
    data = make_dataset(rows)
    assert scenarios(data, "tensor_parallel") == []
    assert scenarios(data, "tensor_parallel", "batch_size") == [[0, 1]]


@pytest.mark.parametrize(
    ("knob", "configuration"),
    [
        ("tensor_parallel", {"tensor_parallel": 2}),
        ("pipeline_parallel", {"pipeline_parallel": 2}),
        ("data_parallel", {"data_parallel": 2}),
        ("expert_parallel", {"expert_parallel": 2}),
        ("batch_size", {"batch_size": 16}),
    ],
)
def test_each_knob_frees_its_own_column(make_dataset, base, knob, configuration):
    data = make_dataset([base, laid_out(base, **configuration)])
    for other in KNOBS:
        free = other == knob or (other == "parallelism" and knob.endswith("parallel"))
        assert scenarios(data, other) == ([[0, 1]] if free else []), other


def test_precision_and_gpu_may_be_free(make_dataset, base):
    narrow = replace(base, precision=catalog.precision("fp8"))
    elsewhere = replace(base, gpu=catalog.gpu("A100-SXM-80GB"))
    data = make_dataset([base, narrow, elsewhere])
    assert scenarios(data, "precision") == [[0, 1]]
    assert scenarios(data, "gpu") == [[0, 2]]
    assert scenarios(data, "gpu", "precision") == [[0, 1, 2]]


def test_repeats_of_one_configuration_are_no_choice(make_dataset, base):
    wide = laid_out(base, tensor_parallel=2)
    assert scenarios(make_dataset([base, base]), "parallelism") == []
    assert scenarios(make_dataset([base, base, wide]), "parallelism") == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("task", "lengths", "expected"),
    [
        ("chat", (200, 249), 1),  # means of one task scatter,
        ("chat", (200, 251), 2),  # but not by more than a quarter
        ("chat", (200, 240, 290), 1),  # of their neighbour
        ("", (200, 201), 2),  # lengths without a task were set on purpose
        ("", (200, 200), 1),
    ],
)
def test_mean_lengths_of_one_task_may_scatter_and_set_ones_may_not(
    make_dataset, base, task, lengths, expected
):
    for length in ("input_tokens", "output_tokens"):
        rows = [asked(base, **{length: value}) for value in lengths]
        data = make_dataset(rows, task=task)
        assert len(set(data.workload_index)) == expected


def test_rows_of_different_tasks_are_different_workloads(make_dataset, base):
    data = make_dataset([base, laid_out(base, tensor_parallel=2)], task=["chat", "code"])
    assert scenarios(data, "parallelism") == []
    assert make_dataset([base, base], task="chat").workload_index.tolist() == [0, 0]


def test_images_are_part_of_the_workload(make_dataset, base):
    vlm = replace(base, llm=catalog.llm("Qwen/Qwen3-VL-8B-Instruct"))
    one = asked(vlm, input_tokens=1500, vision_tokens=1000, images=1)
    two = asked(vlm, input_tokens=1500, vision_tokens=1000, images=2)
    rows = [one, laid_out(two, tensor_parallel=2), laid_out(one, tensor_parallel=2)]
    assert scenarios(make_dataset(rows), "parallelism") == [[0, 2]]


def test_boundaries_nodes_and_engines_are_never_mixed(make_dataset, base):
    wide = laid_out(base, tensor_parallel=2)
    on_node = replace(wide, boundary=Boundary.NODE, node_gpus=8)
    assert scenarios(make_dataset([base, on_node]), "parallelism") == []
    nodes = [
        replace(base, boundary=Boundary.NODE, node_gpus=4),
        on_node,
        replace(base, boundary=Boundary.NODE, node_gpus=8),
    ]
    assert scenarios(make_dataset(nodes), "parallelism") == [[1, 2]]
    # the node that active GPUs happen to stand in is no part of their scenario
    stated = [base, replace(wide, node_gpus=8), on_node]
    assert scenarios(make_dataset(stated), "parallelism") == [[0, 1]]
    for column in ("engine", "engine_version"):
        data = make_dataset([base, wide], **{column: ["a", "b"]})
        assert scenarios(data, "parallelism") == []


@pytest.mark.parametrize("choose", [(), ("batch",), ("batch_size", "colour")])
def test_a_knob_that_is_none_is_refused_with_those_there_are(planted, choose):
    with pytest.raises(UsageError, match="tensor_parallel, pipeline_parallel"):
        planted.scenarios(choose)


def test_the_knobs_free_columns_that_cases_have():
    assert freed_columns(["parallelism", "gpu"]) == {
        "tensor_parallel",
        "pipeline_parallel",
        "expert_parallel",
        "data_parallel",
        "gpu_index",
    }
    assert freed_columns(list(KNOBS)) <= set(Cases.column_names())


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(12)))
def test_scenarios_do_not_depend_on_the_order_of_rows(make_dataset, base, order):
    rows = [
        asked(laid_out(base, tensor_parallel=t), output_tokens=o)
        for t in (1, 2, 4)
        for o in (100, 120, 300, 600)
    ]
    data = make_dataset(rows, energy_j=np.arange(12.0) + 1, task="chat")
    shuffled = data.take(np.array(order))

    def as_sets(d):
        return {frozenset(d.energy_per_request_j[g]) for g in d.scenarios(["parallelism"])}

    assert as_sets(shuffled) == as_sets(data)
    assert sorted(map(len, data.scenarios(["parallelism"]))) == [3, 3, 6]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from([0.0, 1.0, np.nan]))))
def test_grouping_numbers_equal_keys_alike(rows):
    keys = [np.array([a for a, _ in rows]), np.array([b for _, b in rows], dtype=float)]
    index = group_rows(keys)
    named = [(a, str(b)) for a, b in rows]
    for i, one in enumerate(named):
        for j, other in enumerate(named):
            assert (index[i] == index[j]) == (one == other)


def test_an_empty_dataset_has_no_scenarios(planted):
    empty = planted.take(slice(0, 0))
    assert len(empty) == 0
    assert empty.scenarios(["batch_size"]) == []
    assert empty.source_counts() == {}
    assert len(empty.digest) == 64


# -------------------------------------------------------------------------------- power caps


def test_rows_that_differ_in_their_power_cap_are_candidates_only_where_it_is_free(
    base, make_dataset
):
    cases = [laid_out(base, power_cap_w=cap) for cap in (None, 400.0, 500.0, 500.0)]
    data = make_dataset(cases)
    assert scenarios(data, "power_cap") == [[0, 1, 2, 3]]
    assert scenarios(data, "batch_size") == []


def test_a_digest_knows_power_caps_and_does_not_change_without_them(base, make_dataset):
    plain = make_dataset([base], 5.0)
    capped = make_dataset([laid_out(base, power_cap_w=400.0)], 5.0)
    assert plain.digest != capped.digest
    # As it was before tables had the column.
    assert plain.digest.startswith("cf5ca3e4161b")
