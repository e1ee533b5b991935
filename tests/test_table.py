import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from energylens import columns, files, table
from energylens.dataset import Dataset
from energylens.errors import TableError, UsageError
from energylens.records import BOUNDARIES, MODALITIES, SOURCES

DOCS = Path(__file__).resolve().parents[1] / "docs" / "data-format.md"

ROW = {
    "llm": "Qwen/Qwen3-8B",
    "gpu": "H100",
    "batch_size": 64,
    "input_tokens": 512,
    "output_tokens": 256,
    "energy_per_request_j": 123.5,
    "source": "measured",
}
VISION = {"llm": "Qwen/Qwen3-VL-8B-Instruct", "input_tokens": 1124}


def raw_of(*rows):
    columns = {name: None for row in rows for name in row}
    return files.RawTable(
        name="t.csv",
        columns={name: [row.get(name) for row in rows] for name in columns},
        lines=range(2, len(rows) + 2),
    )


def one(**changes):
    return table.dataset_from_table(raw_of(ROW | changes))


def refusal(**changes):
    with pytest.raises(TableError) as caught:
        one(**changes)
    return str(caught.value)


def csv_of(**changes):
    row = ROW | changes
    return ",".join(row) + "\n" + ",".join(map(str, row.values())) + "\n"


# ----------------------------------------------------------------------------- what is said


def test_a_minimal_row_takes_the_documented_defaults():
    data = one()
    cases = data.cases
    assert len(data) == 1
    assert data.llm_ids[0] == "Qwen/Qwen3-8B"
    assert data.gpu_ids[0] == "H100-SXM-80GB"
    assert data.precision_ids[0] == "bf16"
    assert [
        getattr(cases, f"{k}_parallel")[0] for k in ("tensor", "pipeline", "expert", "data")
    ] == [1] * 4
    assert data.modality[0] == "text"
    assert (cases.vision_tokens[0], cases.images[0], cases.frames[0]) == (0, 0, 0)
    assert not cases.node_boundary[0]
    assert np.isnan([cases.mean_batch_size[0], cases.node_gpus[0], cases.ttft_s[0]]).all()
    assert (data.task[0], data.engine[0], data.assumed[0]) == ("", "", "")


def test_an_absent_precision_is_the_one_the_checkpoint_or_its_name_says():
    assert one(llm="openai/gpt-oss-20b").precision_ids[0] == "mxfp4"
    assert one(llm="Qwen/Qwen3-8B-FP8").precision_ids[0] == "fp8-block"
    assert one(llm="Qwen/Qwen3-8B-FP8").llm_ids[0] == "Qwen/Qwen3-8B"
    assert one(llm="Qwen/Qwen3-8B-FP8", precision="float8").precision_ids[0] == "fp8-block"
    assert "the name of the LLM says fp8-block" in refusal(
        llm="Qwen/Qwen3-8B-FP8", precision="bf16"
    )


def test_an_id_that_ends_in_a_format_does_not_bind_the_precision():
    name = "nvidia/NVIDIA-Nemotron-Nano-12B-v2-VL-BF16"
    data = one(llm=name, precision="fp8")
    assert data.precision_ids[0] == "fp8"
    assert table.dataset_from_table(raw_of(ROW | {"llm": data.llm_ids[0], "precision": "fp8"}))


def test_modality_is_told_by_what_a_row_carries():
    image = one(**VISION, vision_tokens=1024, images=1)
    video = one(**VISION, vision_tokens=1024, frames=4)
    assert (image.modality[0], video.modality[0]) == ("image", "video")


def test_a_power_cap_is_read_and_one_that_the_gpu_cannot_have_is_refused():
    assert np.isnan(one().cases.power_cap_w[0])
    assert one(power_cap_w=400).cases.power_cap_w[0] == 400
    for cap in (40, 0.4e5):
        assert refusal(power_cap_w=cap).startswith(
            "t.csv line 2: power_cap_w must lie between 70 and 735 W, for the TDP of a "
            f"H100-SXM-80GB is 700 W; it is {cap:g}."
        )


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_power_caps_are_written_only_where_there_are_some(tmp_path, suffix):
    path = tmp_path / f"t{suffix}"
    table.write(one(), path)
    assert "power_cap_w" not in path.read_text()
    capped = table.dataset_from_table(raw_of(ROW, ROW | {"power_cap_w": 400}))
    table.write(capped, path)
    assert table.read(path).digest == capped.digest != one().digest
    assert table.read(path).cases.capped.tolist() == [False, True]


def test_columns_of_ones_own_are_ignored_and_others_refused_with_the_nearest_name():
    assert one(x_note="mine").digest == one().digest
    message = refusal(energy_per_request="5")
    assert "unknown column 'energy_per_request'. Did you mean energy_per_request_j" in message
    assert "Begin the name of a column of your own with x_" in message


def test_a_cell_of_text_or_number_reads_alike_from_every_format():
    typed = one()
    text = table.dataset_from_table(files.parse_table(csv_of(), "t.csv"))
    assert typed.digest == text.digest


def test_names_are_found_by_alias_and_written_as_ids():
    assert one(gpu="NVIDIA H100 80GB HBM3", llm="qwen3-8b").digest == one().digest


# ------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("name", [c.name for c in columns.COLUMNS if c.required])
def test_a_required_column_must_be_there_and_filled(name):
    row = {k: v for k, v in ROW.items() if k != name}
    with pytest.raises(TableError, match=f"line 1: {name} must be a column"):
        table.dataset_from_table(raw_of(row))
    assert f"line 2: {name} must be" in refusal(**{name: ""})
    assert f"line 2: {name} must be" in refusal(**{name: None})


@pytest.mark.parametrize("name", [c.name for c in columns.COLUMNS if c.is_number])
@pytest.mark.parametrize("value", ["abc", "nan", "inf", "1e999", "-1", -1, True, "0x10", 10**400])
def test_a_number_that_is_none_is_refused_with_line_column_and_value(name, value):
    message = refusal(**{name: value})
    assert f"line 2: {name} must be" in message
    assert repr(value)[:20] in message


@pytest.mark.parametrize(
    "name",
    [c.name for c in columns.COLUMNS if c.kind in ("positive", "whole")],
)
def test_zero_never_stands_for_unknown(name):
    assert f"line 2: {name} must be" in refusal(**{name: 0})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"energy_per_request_j": 1e13}, "energy_per_request_j must be a number above 0"),
        ({"tensor_parallel": 1.5}, "tensor_parallel must be a whole number"),
        ({"batch_size": 0.5}, "batch_size must be a number from 1"),
        ({"llm": "Qwen/Qwen3-8"}, "unknown LLM 'Qwen/Qwen3-8'. Did you mean Qwen/Qwen3-8B"),
        ({"gpu": "H1000"}, "unknown GPU 'H1000'"),
        ({"precision": "fp9"}, "unknown precision 'fp9'"),
        ({"source": "guessed"}, "source must be one of measured, self_measured, published"),
        ({"source": 5}, "source must be text"),
        ({"boundary": "rack"}, "boundary must be one of active_gpus, node"),
        ({"modality": "audio"}, "modality must be one of text, image, video"),
        ({"task": "a\x07b"}, "task must be printable"),
        ({"assumed": "inptu_tokens"}, "'inptu_tokens' is none"),
        ({"gpus": 2}, "gpus must be TP x PP x DP = 1, not 2"),
        ({"expert_parallel": 4}, "expert_parallel must divide TP x DP = 1"),
        ({"mean_batch_size": 70}, "(70) must not exceed the limit batch_size (64)"),
        ({"modality": "text", "frames": 5}, "frames must be empty or 0 where modality is text"),
        ({"modality": "image", **VISION}, "images must be above 0 where modality is image"),
        (
            {"modality": "image", "images": 1, **VISION},
            "vision_tokens must be above 0 where modality is image or video",
        ),
        ({"modality": "video", "vision_tokens": 5, **VISION}, "frames must be above 0"),
        (
            {**VISION, "images": 1, "vision_tokens": 2000},
            "(2000) must be a part of input_tokens (1124)",
        ),
        ({"images": 1, "vision_tokens": 9}, "Qwen/Qwen3-8B has no vision tower"),
        ({"boundary": "node"}, "node_gpus must be given where boundary is node"),
        (
            {"boundary": "node", "node_gpus": 4, "tensor_parallel": 8},
            "node_gpus must be at least the 8 GPUs",
        ),
        ({"node_gpus": 8}, "boundary must be given where node_gpus is"),
        (
            {"prefill_energy_per_request_j": 20, "decode_energy_per_request_j": 90},
            "must be the sum of its prefill and decode parts (110 J) within 5 %",
        ),
        ({"prefill_energy_per_request_j": 140}, "must not exceed energy_per_request_j"),
    ],
)
def test_a_row_that_contradicts_itself_is_refused_in_words(changes, words):
    assert words in refusal(**changes)


def test_parts_that_add_up_within_five_percent_and_a_slightly_high_mean_batch_are_taken():
    data = one(
        prefill_energy_per_request_j=20, decode_energy_per_request_j=100, mean_batch_size=64.5
    )
    assert data.prefill_energy_per_request_j[0] == 20


def test_gpus_and_experts_count_as_engines_count_them():
    data = one(tensor_parallel=2, data_parallel=4, expert_parallel=8, pipeline_parallel=2, gpus=16)
    assert data.cases.occupied_gpus[0] == 16


def test_a_table_without_rows_is_refused():
    with pytest.raises(TableError, match="one row or more"):
        table.dataset_from_table(files.parse_table(",".join(ROW), "t.csv"))


def test_check_lists_every_bad_row_in_order_and_reading_stops_at_the_first():
    rows = [ROW, ROW | {"energy_per_request_j": 0}, ROW, ROW | {"gpu": "X", "batch_size": -1}]
    found = table.problems(raw_of(*rows))
    assert [(p.line, p.column) for p in found] == [
        (3, "energy_per_request_j"),
        (5, "batch_size"),
        (5, "gpu"),
    ]
    assert str(found[0]).startswith("line 3: energy_per_request_j must be")
    with pytest.raises(TableError, match=r"^t\.csv line 3: .* There are 2 more problems"):
        table.dataset_from_table(raw_of(*rows))
    assert table.problems(raw_of(ROW)) == []


def test_line_numbers_are_those_of_the_file_blank_and_quoted_lines_included():
    text = csv_of() + "\n" + csv_of(energy_per_request_j=0, source='"measured"').splitlines()[1]
    with pytest.raises(TableError, match="line 4: energy_per_request_j"):
        table.dataset_from_table(files.parse_table(text, "t.csv"))


# ------------------------------------------------------------------------------ round trips

number = st.floats(1e-3, 1e6).map(lambda v: float(f"{v:.17g}"))
text = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=6)


@st.composite
def tidy_row(draw):
    def maybe(value):
        return draw(st.one_of(st.none(), value))

    modality = draw(st.sampled_from([m.value for m in MODALITIES]))
    tensor, data = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([1, 2]))
    vision = draw(st.floats(1, 5000)) if modality != "text" else None
    batch = draw(st.integers(1, 4096))
    boundary = draw(st.sampled_from([b.value for b in BOUNDARIES]))
    energy = draw(number)
    prefill = maybe(st.floats(0.01, 0.99).map(lambda share: share * energy))
    return {
        "llm": "Qwen/Qwen3-VL-8B-Instruct",
        "gpu": draw(st.sampled_from(["H100", "A100-SXM-80GB"])),
        "precision": draw(st.sampled_from(["bf16", "fp8", ""])),
        "tensor_parallel": tensor,
        "pipeline_parallel": maybe(st.sampled_from([1, 2])),
        "expert_parallel": draw(st.sampled_from([1, tensor, tensor * data])),
        "data_parallel": data,
        "batch_size": batch,
        "mean_batch_size": maybe(st.floats(0.1, 1).map(lambda share: share * batch)),
        "modality": modality,
        "task": draw(text),
        "input_tokens": draw(st.floats(1, 1e5)) + (vision or 0),
        "output_tokens": draw(number),
        "vision_tokens": vision,
        "images": draw(st.integers(1, 4)) if modality == "image" else None,
        "frames": draw(st.integers(1, 64)) if modality == "video" else None,
        "energy_per_request_j": energy,
        "prefill_energy_per_request_j": prefill,
        "decode_energy_per_request_j": None if prefill is None else energy - prefill,
        "ttft_s": maybe(number),
        "tpot_s": maybe(number),
        "request_latency_s": maybe(number),
        "average_power_w": maybe(number),
        "boundary": boundary,
        "node_gpus": 64 if boundary in ("node", "wall") else None,
        "engine": draw(text),
        "engine_version": draw(text),
        "source": draw(st.sampled_from([s.value for s in SOURCES])),
        "origin": draw(text),
        "assumed": draw(st.sampled_from(["", "input_tokens", "input_tokens vision_tokens"])),
    }


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@settings(max_examples=20, deadline=None)
@given(rows=st.lists(tidy_row(), min_size=1, max_size=4))
def test_a_table_written_and_read_again_is_the_same_to_the_last_bit(tmp_path_factory, suffix, rows):
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    data = table.dataset_from_table(raw_of(*rows))
    path = tmp_path_factory.mktemp("t") / f"t.{suffix}"
    table.write(data, path)
    again = table.read(path)
    assert again.digest == data.digest
    assert table.columns_of(again) == table.columns_of(data)


@settings(max_examples=20, deadline=None)
@given(rows=st.lists(tidy_row(), min_size=2, max_size=4), data=st.data())
def test_rows_and_columns_may_come_in_any_order(rows, data):
    order = data.draw(st.permutations(range(len(rows))))
    names = data.draw(st.permutations(list(rows[0])))
    shuffled = [{name: rows[i][name] for name in names} for i in order]
    straight = table.dataset_from_table(raw_of(*rows))
    assert (
        table.dataset_from_table(raw_of(*shuffled)).digest == straight.take(np.array(order)).digest
    )


@settings(max_examples=20, deadline=None)
@given(row=tidy_row())
def test_what_is_read_is_what_the_row_said(row):
    cells = table.columns_of(table.dataset_from_table(raw_of(row)))
    for name, value in row.items():
        if name in ("gpu", "precision"):
            continue
        expected = value
        if value is None:
            defaults = {"pipeline_parallel": 1, "vision_tokens": 0, "images": 0, "frames": 0}
            expected = defaults.get(name)
        assert cells[name][0] == expected, name
    assert math.isfinite(cells["energy_per_request_j"][0])


# ------------------------------------------------------------------------------------ docs


def test_the_page_on_the_data_format_describes_every_column_as_it_is():
    page = DOCS.read_text(encoding="utf-8")
    section = page[page.index("\n## Columns") : page.index("\n### What is not said")]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section.splitlines()
        if line.startswith("| `")
    ]
    assert [r[0].strip("`") for r in rows] == [c.name for c in columns.COLUMNS]
    for (_, holds, unit, required, meaning), column in zip(rows, columns.COLUMNS, strict=True):
        assert meaning == column.meaning
        assert unit == (column.unit or "-")
        assert required == ("yes" if column.required else "")
        for choice in column.choices:
            assert re.search(rf"\b{choice}\b", holds)


# ------------------------------------------------------------------------------------ under load


LOADED = {"request_rate_per_s": 2, "batch_size": None}


def test_a_row_under_load_may_leave_its_batch_limit_empty():
    row = one(**LOADED, mean_batch_size=3.5, achieved_rate_per_s=1.9)
    assert np.isnan(row.cases.batch_size[0])
    case = row.cases.case(0)
    assert case.workload.request_rate_per_s == 2
    assert math.isinf(case.configuration.batch_size)
    assert case.configuration.describe() == "TP1 PP1"


def test_a_row_of_a_full_queue_needs_its_batch_limit():
    words = "only a row that gives request_rate_per_s can do without"
    assert words in refusal(batch_size=None, request_rate_per_s=None)
    without = {name: value for name, value in ROW.items() if name != "batch_size"}
    with pytest.raises(TableError, match="batch_size must be a column"):
        table.dataset_from_table(raw_of(without))


def test_times_under_load_come_back_as_they_were(tmp_path):
    given = {
        **LOADED,
        "median_itl_s": 0.02,
        "ttft_p99_s": 1.5,
        "loaded_idle_w": 118,
        "declared": "gpu engine",
    }
    table.write(one(**given), tmp_path / "t.csv")
    row = table.read(tmp_path / "t.csv")
    assert row.percentile_s("ttft_p99_s").tolist() == [1.5]
    assert np.isnan(row.percentile_s("tpot_p90_s")).all()
    assert (row.cases.median_itl_s[0], row.cases.loaded_idle_w[0]) == (0.02, 118)
    assert row.declared.tolist() == ["gpu engine"]
    assert row.digest == one(**given).digest != one(**LOADED).digest


def test_columns_that_no_row_fills_are_not_written():
    assert not set(columns.SPARSE) & set(table.columns_of(one()))


def test_joules_at_the_wall_keep_their_boundary_and_are_never_pooled():
    wall = one(boundary="wall", node_gpus=8)
    assert wall.boundary.tolist() == ["wall"]
    assert wall.cases.case(0).boundary == "wall"
    wall.require_one_meter()
    both = Dataset.concatenate([wall, one()])
    with pytest.raises(UsageError, match="1 of 2 rows were metered at the power inlet"):
        both.require_one_meter()
    assert "node_gpus must be given where boundary is node or wall" in refusal(
        boundary="wall", node_gpus=None
    )


@pytest.mark.parametrize(("rate", "groups"), [(2.05, 1), (2.07, 0)])
def test_offered_rates_within_three_percent_are_one_scenario(rate, groups):
    rows = [ROW | LOADED, ROW | LOADED | {"request_rate_per_s": rate, "tensor_parallel": 2}]
    data = table.dataset_from_table(raw_of(*rows))
    assert len(data.scenarios(["tensor_parallel"])) == groups


def test_a_load_and_a_full_queue_are_different_scenarios():
    rows = [ROW | {"request_rate_per_s": None}, ROW | {"request_rate_per_s": 1, "batch_size": 4}]
    data = table.dataset_from_table(raw_of(*rows))
    assert not data.scenarios(["batch_size"])
