import json
import os
from pathlib import Path

import numpy as np
import pytest

from energylens import catalog, files, importers, table
from energylens.errors import ArtefactError, InputError, TableError, UnknownNameError, UsageError
from energylens.importers import argonne, energy_code_eval, mlenergy_v2, mlenergy_v3
from energylens.importers import table as foreign
from energylens.importers.collecting import Collector, Fields, Unusable

DATA = Path(
    os.environ.get("ENERGYLENS_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")
)
NOTHING = {"assume_input_tokens": {}, "assume_vision_tokens": {}}
DOCS = Path(__file__).resolve().parents[1] / "docs" / "data-format.md"


def public(name):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"the public data set {name} is not at hand ($ENERGYLENS_DATA)")
    return path


def reasons(imported):
    return {s.reason: s.rows for s in imported.skipped}


# --------------------------------------------------------------------- ML.ENERGY v3, by hand


def v3_configuration(**changes):
    configuration = {
        "avg_batch_size": 30.0,
        "avg_output_len": 500.0,
        "avg_power_watts": 600.0,
        "energy_per_request_joules": 150.0,
        "energy_per_token_joules": 0.3,
        "gpu_model": "H100",
        "max_num_seqs": 32,
        "median_itl_ms": 14.0,
        "num_gpus": 1,
        "output_throughput_tokens_per_sec": 2000.0,
        "parallelization": {"tensor_parallel": 1, "expert_parallel": 1, "data_parallel": 1},
    }
    return configuration | changes


def v3(*configurations, llm="Qwen/Qwen3-8B", task="lm-arena-chat", precision="bfloat16", **assume):
    document = {
        "model_id": llm,
        "task": task,
        "weight_precision": precision,
        "configurations": list(configurations) or [v3_configuration()],
    }
    return mlenergy_v3.parse({"f.json": document}, "v3", **(NOTHING | assume))


def test_v3_fields_become_columns_with_their_units():
    data = v3().dataset
    row = {name: cells[0] for name, cells in table.columns_of(data).items()}
    assert row["energy_per_request_j"] == 150
    assert (row["median_itl_s"], row["tpot_s"]) == (0.014, None)
    assert row["request_latency_s"] == 30 * 500 / 2000  # Little's law
    assert (row["batch_size"], row["mean_batch_size"]) == (32, 30)
    assert (row["engine"], row["engine_version"]) == ("vllm", "0.11.1")
    assert (row["source"], row["boundary"]) == ("published", "active_gpus")
    assert row["origin"] == "ML.ENERGY v3 f.json"
    assert (row["input_tokens"], row["assumed"]) == (634, "input_tokens")
    assert (row["ttft_s"], row["node_gpus"]) == (None, None)


@pytest.mark.parametrize(
    ("degrees", "gpus", "layout"),
    [
        ((1, 1, 1), 1, (1, 1, 1)),
        ((4, 1, 1), 4, (4, 1, 1)),
        ((1, 8, 1), 8, (8, 8, 1)),
        ((1, 8, 8), 8, (1, 8, 8)),
        ((1, 1, 2), 2, (1, 1, 2)),
    ],
)
def test_v3_layouts_are_what_the_engine_was_started_with(degrees, gpus, layout):
    tensor, expert, data = degrees
    configuration = v3_configuration(
        num_gpus=gpus,
        parallelization={
            "tensor_parallel": tensor,
            "expert_parallel": expert,
            "data_parallel": data,
        },
    )
    cases = v3(configuration).dataset.cases
    assert (
        cases.tensor_parallel[0],
        cases.expert_parallel[0],
        cases.data_parallel[0],
    ) == layout
    assert cases.occupied_gpus[0] == gpus


def test_v3_takes_any_gpu_and_precision_that_the_catalog_knows():
    configuration = v3_configuration(gpu_model="B200")
    data = v3(configuration, llm="Qwen/Qwen3-32B-FP8", precision="fp8").dataset
    assert (data.gpu_ids[0], data.llm_ids[0]) == ("B200", "Qwen/Qwen3-32B")
    assert data.precision_ids[0] == "fp8-block"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"gpu_model": "H900"}, "the GPU 'H900' is in no catalog"),
        ({"energy_per_request_joules": 0}, "energy_per_request_joules is not a number above 0"),
        ({"energy_per_request_joules": 160.0}, "energy_per_token_joules x avg_output_len"),
        ({"avg_power_watts": 900.0}, "avg_power_watts / output_throughput"),
        ({"num_gpus": 2}, "num_gpus is not the product of its degrees"),
        ({"avg_output_len": None}, "it has no avg_output_len"),
        ({"parallelization": 3}, "it has no parallelization"),
        ({"max_num_seqs": "many"}, "max_num_seqs is not a number"),
        ({"max_num_seqs": 0.5}, "its batch_size cannot be right"),
        ({"avg_batch_size": 40}, "its mean_batch_size cannot be right"),
    ],
)
def test_a_v3_row_that_cannot_be_used_is_counted_under_its_reason(changes, reason):
    imported = v3(v3_configuration(), v3_configuration(**changes))
    assert len(imported.dataset) == 1
    ((said, rows),) = reasons(imported).items()
    assert reason in said
    assert rows == 1
    assert "f.json configuration 2" in imported.skipped[0].example


def test_rows_of_an_unknown_llm_are_counted_by_its_name_and_alone_they_are_an_error():
    with pytest.raises(InputError, match=r"no row that can be used. 2 rows: the LLM 'Qwem/X'"):
        v3(v3_configuration(), v3_configuration(), llm="Qwem/X")


def test_a_configuration_that_is_no_object_and_a_file_that_is_no_result_are_told_apart():
    assert reasons(v3(v3_configuration(), 5)) == {"it is no object with fields": 1}
    for document in ([], {"configurations": {}}, {"a": 1}):
        with pytest.raises(ArtefactError, match="no result file"):
            mlenergy_v3.parse({"f.json": document}, "v3", **NOTHING)


def test_the_user_may_assume_other_lengths_and_the_rows_say_so():
    text = v3(assume_input_tokens={"lm-arena-chat": 99.0}).dataset
    assert (text.cases.input_tokens[0], text.assumed[0]) == (99, "input_tokens")
    image = v3(
        llm="Qwen/Qwen3-VL-8B-Instruct",
        task="image-chat",
        assume_input_tokens={"image-chat": 10.0},
        assume_vision_tokens={"image-chat": 500.0},
    ).dataset
    assert (image.cases.input_tokens[0], image.cases.vision_tokens[0]) == (510, 500)
    assert (image.modality[0], image.cases.images[0]) == ("image", 1)
    assert image.assumed[0] == "input_tokens vision_tokens"


def test_vision_tokens_are_those_of_the_tower_of_each_llm():
    for name in ("google/gemma-3-12b-it", "Qwen/Qwen3-VL-8B-Instruct"):
        data = v3(llm=name, task="image-chat").dataset
        assert data.cases.vision_tokens[0] == catalog.llm(name).vision.tokens_per_image
        assert data.cases.input_tokens[0] == 100 + data.cases.vision_tokens[0]


def test_qwen3_vl_sees_four_of_the_thirty_two_frames_and_says_that_this_is_assumed():
    seen = v3(llm="Qwen/Qwen3-VL-8B-Instruct", task="video-chat").dataset
    all_of_them = v3(llm="Qwen/Qwen3-Omni-30B-A3B-Instruct", task="video-chat").dataset
    assert (seen.cases.frames[0], seen.cases.vision_tokens[0]) == (4, 1200)
    assert (all_of_them.cases.frames[0], all_of_them.cases.vision_tokens[0]) == (32, 9600)
    assert seen.assumed[0] == "input_tokens vision_tokens frames"
    assert seen.modality[0] == "video"


@pytest.mark.parametrize(
    ("assume", "words"),
    [
        (
            {"assume_input_tokens": {"lm-arena": 5.0}},
            "no row has that task; there are lm-arena-chat",
        ),
        ({"assume_vision_tokens": {"lm-arena-chat": 5.0}}, "no row has that task"),
        ({"assume_input_tokens": {"lm-arena-chat": 0.0}}, "above 0"),
        ({"assume_input_tokens": {"lm-arena-chat": float("nan")}}, "above 0"),
    ],
)
def test_an_assumption_that_nothing_rests_on_is_refused(assume, words):
    with pytest.raises(UsageError, match=words):
        v3(**assume)


def test_a_task_that_is_not_known_needs_a_length_and_takes_one():
    with pytest.raises(InputError, match="give --assume-input-tokens poetry=N"):
        v3(task="poetry")
    data = v3(task="poetry", assume_input_tokens={"poetry": 40.0}).dataset
    assert (data.cases.input_tokens[0], data.task[0], data.modality[0]) == (40, "poetry", "text")


def test_the_folder_of_results_the_one_above_and_a_single_file_read_alike(tmp_path):
    document = {
        "model_id": "Qwen/Qwen3-8B",
        "task": "gpqa",
        "weight_precision": "bfloat16",
        "configurations": [v3_configuration()],
    }
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "a.json").write_text(json.dumps(document))
    digests = {
        mlenergy_v3.read(path, **NOTHING).dataset.digest
        for path in (tmp_path, folder, folder / "a.json")
    }
    assert len(digests) == 1
    (folder / "b.json").write_text('{"configurations": [')
    with pytest.raises(ArtefactError, match=r"b\.json is not valid JSON"):
        mlenergy_v3.read(tmp_path, **NOTHING)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtefactError, match="must hold"):
        mlenergy_v3.read(tmp_path / "empty", **NOTHING)


# ------------------------------------------------------------------------------ ML.ENERGY v2


def v2_file(folder, name="bs32+tp8+pp2.json", **changes):
    folder.mkdir(parents=True, exist_ok=True)
    result = {
        "Model": "mistralai/Mixtral-8x22B-Instruct-v0.1",
        "GPU": "NVIDIA H100 80GB HBM3",
        "TP": 8,
        "PP": 2,
        "Energy/req (J)": 100.0,
        "Avg TPOT (s)": 0.1,
        "Token tput (tok/s)": 800.0,
        "Avg Output Tokens": 400.0,
        "Avg BS (reqs)": 60.0,
        "Max BS (reqs)": 64,
    }
    (folder / name).write_text(json.dumps(result | changes))


def test_v2_fields_become_columns_and_the_folder_tells_the_task(tmp_path):
    v2_file(tmp_path / "llm_text_generation" / "chat" / "H100 80GB HBM3")
    columns = table.columns_of(mlenergy_v2.read(tmp_path, **NOTHING).dataset)
    row = {name: cell for name, (cell,) in columns.items()}
    assert (row["tensor_parallel"], row["pipeline_parallel"], row["batch_size"]) == (8, 2, 64)
    assert (row["task"], row["input_tokens"], row["assumed"]) == ("chat", 120, "input_tokens")
    assert row["request_latency_s"] == 60 / (800 / 400)
    assert row["average_power_w"] == 100 * 800 / 400
    assert (row["gpu"], row["engine_version"]) == ("H100-SXM-80GB", "0.5.4")


def test_v2_files_outside_a_text_task_are_counted_not_read(tmp_path):
    v2_file(tmp_path / "llm_text_generation" / "code")
    v2_file(tmp_path / "diffusion" / "text-to-image", "bs1.json")
    imported = mlenergy_v2.read(tmp_path, **NOTHING)
    assert len(imported.dataset) == 1
    assert reasons(imported) == {"it lies in no folder of a text generation task": 1}
    assert mlenergy_v2.read(tmp_path / "llm_text_generation", **NOTHING).dataset.task[0] == "code"


# ------------------------------------------------------------------------ Argonne, grids

ARGONNE = (
    "source,gpu,n_gpus,framework,model,io_len,batch_size,latency_s,avg_power_w,energy_j_batch\n"
)


def argonne_file(tmp_path, *rows, header=ARGONNE):
    path = tmp_path / "power.csv"
    path.write_text(header + "\n".join(rows) + "\n")
    return path


def test_argonne_figures_say_which_gpus_their_joules_cover(tmp_path):
    path = argonne_file(
        tmp_path,
        "Fig_10,Nvidia H100 GPU,2,vLLM,Qwen/Qwen2-7B,128,16,2,700,1400",
        "Fig_10,Nvidia GH200 GPU,1,vLLM,Qwen/Qwen2-7B,128,16,2,700,1400",
        "Fig_16_a_b,Nvidia A100 GPU,1,TensorRT-LLM,Qwen/Qwen2-7B,128,16,2,700,1400",
        "Fig_99,Nvidia A100 GPU,1,vLLM,Qwen/Qwen2-7B,128,16,2,700,1400",
        "Fig_10,Nvidia H100 GPU,2,vLLM,Qwen/Qwen2-7B,128,16,2,700,1500",
        "Fig_10,Nvidia H100 GPU,2,vLLM,Qwen/Qwen2-7B,128,16,2,700,0",
    )
    imported = argonne.read(path, **NOTHING)
    cells = table.columns_of(imported.dataset)
    assert cells["boundary"] == ["node", "active_gpus", "active_gpus"]
    assert cells["node_gpus"] == [4, None, None]
    assert cells["energy_per_request_j"] == [1400 / 16] * 3
    assert cells["engine"] == ["vllm", "vllm", "tensorrt-llm"]
    assert cells["tensor_parallel"] == [2, 1, 1]
    assert reasons(imported) == {
        "it is not known which GPUs the power of Fig_99 on Nvidia A100 GPU covers": 1,
        "its energy_j_batch is not avg_power_w x latency_s within 1 %": 1,
        "its energy_j_batch is not a number above 0": 1,
    }


def test_argonne_refuses_a_file_of_latencies_and_assumptions_it_does_not_need(tmp_path):
    path = argonne_file(tmp_path, "A100,1", header="gpu,latency_s\n")
    with pytest.raises(TableError, match="latencies alone say nothing of joules"):
        argonne.read(path, **NOTHING)
    with pytest.raises(UsageError):
        argonne.read(path, assume_input_tokens={"chat": 5.0}, assume_vision_tokens={})


CODE_EVAL = {
    "gpu": "A100-80GB",
    "base_model": "CodeLlama-7b-Instruct",
    "quant": "AWQ-4bit",
    "window_name": "w",
    "max_num_seqs": 32,
    "n_samples": 128,
    "input_len": 133.0,
    "output_len": 256.0,
    "elapsed_s": 40.0,
    "gpu_energy_j": 12800.0,
    "avg_power_w": 320.0,
    "est_prefill_energy_j": 1280.0,
    "est_decode_energy_j": 11520.0,
    "split_ok": "True",
    "decode_time_per_token_ms": 1.0,
}


def code_eval(tmp_path, *changes):
    path = tmp_path / "batching.csv"
    rows = [CODE_EVAL | change for change in changes]
    files.write_table(path, {name: [row[name] for row in rows] for name in CODE_EVAL})
    cells = table.columns_of(energy_code_eval.read(path, **NOTHING).dataset)
    return [dict(zip(cells, row, strict=True)) for row in zip(*cells.values(), strict=True)]


def test_a_run_of_many_requests_becomes_joules_of_one(tmp_path):
    full, no_split, ragged, small = code_eval(
        tmp_path,
        {},
        {"split_ok": "False"},
        {"n_samples": 80},
        {"max_num_seqs": 512, "n_samples": 128},
    )
    assert full["energy_per_request_j"] == 100
    assert (full["prefill_energy_per_request_j"], full["decode_energy_per_request_j"]) == (10, 90)
    assert (full["batch_size"], full["mean_batch_size"], full["assumed"]) == (32, None, "")
    assert (full["request_latency_s"], full["tpot_s"]) == (10, 0.032)
    assert (full["task"], full["precision"], full["input_tokens"]) == ("", "awq-int4", 133)
    assert no_split["prefill_energy_per_request_j"] is None
    assert no_split["tpot_s"] is None
    assert ragged["mean_batch_size"] == pytest.approx(80 / 3)
    assert ragged["assumed"] == "mean_batch_size"
    assert small["batch_size"] == 128


# --------------------------------------------------------------------- any table, by mapping

MAPPING = """
[constants]
gpu = "H100"
source = "published"

[columns]
llm = "model"
input_tokens = "prompt"
output_tokens = "generated"
batch_size = "concurrency"
task = "what"
energy_per_request_j = { column = "energy_wh", scale = 3600, divide_by = "requests" }

[names.llm]
"qwen 8" = "Qwen/Qwen3-8B"
"""
FOREIGN = "model,prompt,generated,concurrency,what,energy_wh,requests,memo\n"


def mapped(tmp_path, rows, mapping=MAPPING, **assume):
    path = tmp_path / "their.csv"
    path.write_text(FOREIGN + rows)
    path.with_suffix(".toml").write_text(mapping)
    return foreign.read(path, **(NOTHING | assume))


def test_a_mapping_renames_columns_and_names_and_converts_units(tmp_path):
    imported = mapped(tmp_path, "qwen 8,100,200,8,chat,0.5,10,x\nnobody,100,200,8,chat,1,1,\n")
    data = imported.dataset
    assert data.energy_per_request_j[0] == 0.5 * 3600 / 10
    assert (data.llm_ids[0], data.gpu_ids[0]) == ("Qwen/Qwen3-8B", "H100-SXM-80GB")
    assert reasons(imported) == {"the LLM 'nobody' is in no catalog": 1}
    assert imported.notes[0] == "Columns of the file that are left out: memo."


def test_a_mapped_row_without_a_length_takes_the_assumed_one_and_says_so(tmp_path):
    rows = "qwen 8,,200,8,chat,0.5,10,\nqwen 8,70,200,8,chat,0.5,10,\n"
    data = mapped(tmp_path, rows, assume_input_tokens={"chat": 50.0}).dataset
    assert data.cases.input_tokens.tolist() == [50, 70]
    # Neither layout nor boundary is anywhere.
    unsaid = "tensor_parallel boundary"
    assert data.assumed.tolist() == [f"{unsaid} input_tokens", unsaid]
    assert reasons(mapped(tmp_path, rows)) == {"its input_tokens cannot be right": 1}


@pytest.mark.parametrize(
    ("mapping", "error", "words"),
    [
        ("[column]\n", ArtefactError, "unknown table 'column'. Did you mean columns"),
        ('[columns]\nlmm = "a"\n', ArtefactError, "Did you mean llm"),
        ("[columns]\nllm = 5\n", ArtefactError, "must be the name of a column"),
        ('[columns]\nllm = { colum = "a" }\n', ArtefactError, "unknown key 'colum'"),
        ('[columns]\nllm = { column = "a", scale = 2 }\n', ArtefactError, "is no number"),
        ('[columns]\nttft_s = { column = "a", scale = nan }\n', ArtefactError, "scale of ttft_s"),
        ("[columns]\nttft_s = { scale = 2 }\n", ArtefactError, "must name a column"),
        ('[columns]\nllm = "a"\n[constants]\nllm = "b"\n', ArtefactError, "not both"),
        ("[constants]\nttft_s = true\n", ArtefactError, "text or a number above 0"),
        ("[names]\nllm = 3\n", ArtefactError, "must give a text for each name"),
        ("columns = 3\n", ArtefactError, r"\[columns\] must be a table"),
        ('[columns]\nllm = "modell"\n', TableError, "Did you mean model"),
        ("[columns\n", ArtefactError, "not valid TOML"),
    ],
)
def test_a_mapping_that_means_nothing_is_refused_in_words(tmp_path, mapping, error, words):
    with pytest.raises(error, match=words):
        mapped(tmp_path, "qwen 8,100,200,8,chat,0.5,10,x\n", mapping)


def test_without_a_mapping_file_one_is_asked_for(tmp_path):
    path = tmp_path / "their.csv"
    path.write_text(FOREIGN)
    told = rf"needs a mapping file .* \(model, prompt, .*\): .* or write {tmp_path}/their.toml"
    with pytest.raises(ArtefactError, match=told):
        foreign.read(path, **NOTHING)


def test_a_tidy_table_needs_no_mapping_and_comes_through_as_it_is(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text(
        "llm,gpu,precision,tensor_parallel,batch_size,input_tokens,output_tokens,task,"
        "energy_per_request_j,source,x_run\n"
        "Qwen/Qwen3-8B,H100,fp8,2,8,100,200,chat,12.345678901234567,measured,7\n"
        "Qwen/Qwen3-8B,H100,fp8,2,8,,200,chat,12.5,measured,8\n"
    )
    imported = foreign.read(path, **NOTHING)
    assert reasons(imported) == {"its input_tokens cannot be right": 1}
    assert imported.notes == ("Columns of the file that are left out: x_run.",)
    table.write(imported.dataset, tmp_path / "again.jsonl")
    again = foreign.read(tmp_path / "again.jsonl", **NOTHING)
    assert again.dataset.digest == imported.dataset.digest
    assert again.dataset.energy_per_request_j[0] == 12.345678901234567
    assert foreign.read(path, **NOTHING | {"assume_input_tokens": {"chat": 50.0}}).skipped == ()


def test_the_mapping_of_the_documentation_works(tmp_path):
    page = DOCS.read_text(encoding="utf-8")
    mapping = page.split("```toml\n")[1].split("```")[0]
    path = tmp_path / "their.csv"
    path.write_text(
        "model,prompt,generated,concurrency,energy_wh,requests\nllama 70b,100,200,8,0.5,10\n"
    )
    path.with_suffix(".toml").write_text(mapping)
    data = foreign.read(path, **NOTHING).dataset
    assert data.energy_per_request_j[0] == 180
    assert data.llm_ids[0] == "meta-llama/Llama-3.1-70B-Instruct"


# ------------------------------------------------------------------------------- shared parts


def test_readers_are_found_by_name_and_near_names_suggested():
    assert set(importers.READERS) == {
        "mlenergy-v3",
        "mlenergy-v2",
        "argonne",
        "energy-code-eval",
        "table",
    }
    with pytest.raises(UnknownNameError, match=r"Did you mean .*mlenergy-v3"):
        importers.reader("mlenergy-v4")


@pytest.mark.parametrize("value", ["x", -1, 0, True, [1], {}, float("inf"), 1e-300, 10**400])
def test_a_field_that_is_no_number_above_zero_makes_its_row_unusable(value):
    with pytest.raises(Unusable):
        Fields({"a": value}).known("a")


def test_a_source_of_nothing_is_an_error():
    with pytest.raises(InputError, match="gave no row"):
        Collector("nothing").finish()


def test_every_default_length_has_its_grounds_on_the_page():
    page = DOCS.read_text(encoding="utf-8")
    for module, mark in ((mlenergy_v3, ""), (mlenergy_v2, " (v2)")):
        for task, lengths in module.TASKS.items():
            assert f"| {task}{mark} | {lengths.text_tokens:g} |" in page
            assert len(lengths.grounds) > 20


# ------------------------------------------------------------------------ the public data sets


def test_all_of_ml_energy_v3_is_read():
    imported = mlenergy_v3.read(public("mlenergy-v3"), **NOTHING)
    data = imported.dataset
    assert (len(data), imported.skipped) == (405, ())
    scenarios = data.scenarios(["batch_size", "parallelism"])
    assert (len(scenarios), sum(map(len, scenarios))) == (44, 405)
    assert set(data.gpu_ids) == {"H100-SXM-80GB"}
    assert set(data.precision_ids) == {"bf16", "fp8", "fp8-block", "mxfp4"}
    assert sorted(set(data.cases.occupied_gpus)) == [1, 2, 4, 8]
    assert (data.cases.expert_parallel > 1).sum() == 176
    assert all("input_tokens" in value for value in data.assumed)


def test_all_of_ml_energy_v2_is_read():
    imported = mlenergy_v2.read(public("mlenergy-v2"), **NOTHING)
    data = imported.dataset
    assert (len(data), imported.skipped) == (356, ())
    assert set(data.gpu_ids) == {"H100-SXM-80GB", "A100-SXM-40GB"}
    assert set(data.task) == {"chat", "code", "multimodal-chat"}
    assert len(data.scenarios(["tensor_parallel", "pipeline_parallel"])) == 22


def test_all_of_argonne_is_read_and_its_node_power_told_apart():
    imported = argonne.read(public("argonne/power.csv"), **NOTHING)
    data = imported.dataset
    assert (len(data), imported.skipped) == (209, ())
    deci = data.take((data.llm_ids == "Deci/DeciLM-7B") & (data.gpu_ids == "H100-SXM-80GB"))
    assert (len(deci), deci.cases.node_boundary.all()) == (61, True)
    assert set(deci.cases.tensor_parallel) == {1, 2, 4}
    with pytest.raises(TableError, match="joules"):
        argonne.read(public("argonne/tp_pp_latency_no_power.csv"), **NOTHING)


def test_all_of_energy_code_eval_is_read_and_its_split_where_it_is_good():
    imported = energy_code_eval.read(public("energy-code-eval/batching_a100.csv"), **NOTHING)
    data = imported.dataset
    assert (len(data), imported.skipped) == (1041, ())
    split = ~np.isnan(data.prefill_energy_per_request_j)
    assert split.sum() == 336
    assert np.allclose(
        (data.prefill_energy_per_request_j + data.decode_energy_per_request_j)[split],
        data.energy_per_request_j[split],
        rtol=0.01,
    )
    assert set(data.precision_ids) == {"bf16", "awq-int4", "gptq-int4", "hqq-int4"}
