"""What other programs read, checked against what their readers ask for."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.interpolate import griddata, interp1d

from energylens import catalog, exporting, packaged, table
from energylens.cases import Cases
from energylens.cli import main
from energylens.errors import UsageError
from energylens.importers.bench import inferencex
from energylens.records import Case, Configuration, Engine, Workload
from energylens.service import JouleSteps, Lengths

CASE = [
    "--llm", "Qwen/Qwen3-32B", "--gpu", "H100", "--tensor-parallel", "2", "--batch-size", "64",
    "--input-tokens", "500", "--output-tokens", "300",
]  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return packaged.named("h100-vllm-0.11").model()


@pytest.fixture(scope="module")
def case():
    return Case(
        llm=catalog.llm("Qwen/Qwen3-32B"),
        gpu=catalog.gpu("H100"),
        precision=catalog.precision("bf16"),
        workload=Workload(input_tokens=500, output_tokens=300),
        configuration=Configuration(tensor_parallel=2, batch_size=64),
        engine=Engine(name="vllm", version="0.11.1"),
    )


def test_measured_rows_come_back_from_inferencex_as_they_were(tmp_path, capsys):
    rows = tmp_path / "runs.csv"
    rows.write_text(
        "llm,gpu,tensor_parallel,batch_size,input_tokens,output_tokens,energy_per_request_j,"
        "ttft_s,tpot_s,request_latency_s,average_power_w,engine,engine_version,source\n"
        "meta-llama/Llama-3.1-8B-Instruct,H100,2,8,1024,128,90,0.2,0.02,2.74,262.77,vllm,0.11.1,"
        "measured\n"
    )
    points = tmp_path / "points.json"
    assert main(["export", str(rows), "--to", "inferencex", "-o", str(points)]) == 0
    (point,) = json.loads(points.read_text())
    assert point["power_metric_schema_version"] == 2
    assert point["power_valid"] == 1
    # By hand: 90 J over 1024 and 128 tokens; 8 requests in 2.74 s on 2 GPUs.
    assert point["joules_per_output_token"] == pytest.approx(90 / 128)
    assert point["joules_per_total_token"] == pytest.approx(90 / 1152)
    assert point["tput_per_gpu"] == pytest.approx(8 / 2.74 * 1152 / 2)
    assert point["mean_intvty"] == pytest.approx(50.0)
    read = inferencex.read(point, "points.json")
    assert read.energy.joules == pytest.approx(90)
    assert (read.input_tokens, read.output_tokens) == (pytest.approx(1024), pytest.approx(128))
    assert (read.tensor_parallel, read.engine, read.gpu) == (2, "vllm", "H100")
    assert read.ttft.mean_s == pytest.approx(0.2)
    assert "Written" in capsys.readouterr().out


def test_what_nobody_measured_is_not_called_valid(model, case):
    (point,) = json.loads(exporting.inferencex(exporting.points_of_model(model, case)).files[""])
    assert point["power_valid"] == 0
    assert point["energy_source"] == "predicted by energylens"
    dp = replace(case, configuration=Configuration(data_parallel=2, batch_size=64))
    with pytest.raises(UsageError, match="data-parallel"):
        exporting.inferencex(exporting.points_of_model(model, dp))


def test_metrics_have_the_drafted_names_units_and_kinds(model, case):
    export = exporting.otel(exporting.points_of_model(model, case), 1_795_849_662_000_000_000)
    document = json.loads(export.files[""])
    (scope,) = document["resourceMetrics"][0]["scopeMetrics"]
    metrics = {metric["name"]: metric for metric in scope["metrics"]}
    assert {name: metric["unit"] for name, metric in metrics.items()} == {
        "gen_ai.infrastructure.energy.per_token": "J",
        "gen_ai.infrastructure.power": "W",
    }
    (point,) = metrics["gen_ai.infrastructure.energy.per_token"]["gauge"]["dataPoints"]
    joules = float(model.predict_energy_j(Cases.of([case]))[0])
    assert point["asDouble"] == pytest.approx(joules / 300)
    attributes = {a["key"]: a["value"]["stringValue"] for a in point["attributes"]}
    assert attributes["gen_ai.request.model"] == "Qwen/Qwen3-32B"
    assert attributes["gen_ai.provider.name"] == "vllm"
    assert attributes["energylens.energy.source"] == "predicted by energylens"
    proto = pytest.importorskip("opentelemetry.proto.metrics.v1.metrics_pb2")
    from google.protobuf import json_format

    parsed = json_format.Parse(export.files[""], proto.MetricsData())
    assert len(parsed.resource_metrics[0].scope_metrics[0].metrics) == 2


def test_a_variant_is_what_the_resource_definition_admits(tmp_path, model, case):
    yaml = pytest.importorskip("yaml")
    ranking = tmp_path / "ranking.json"
    (point,) = exporting.points_of_model(model, case)
    two = replace(
        point,
        case=replace(case, configuration=Configuration(data_parallel=4, batch_size=64)),
        power_w=2000.0,
    )
    parts = list(yaml.safe_load_all(exporting.wva([point, two]).files[""]))
    # The same replica more often is the same variant: one object, as the first says.
    c = point.case.configuration
    twice = replace(c, data_parallel=2 * c.data_parallel, batch_size=2 * c.batch_size)
    more = replace(point, case=replace(point.case, configuration=twice))
    assert list(yaml.safe_load_all(exporting.wva([point, two, more]).files[""])) == parts
    assert [part["spec"]["variantCost"] for part in parts] == [f"{point.power_w:.1f}", "500.0"]
    for part in parts:
        assert (part["apiVersion"], part["kind"]) == ("llmd.ai/v1alpha1", "VariantAutoscaling")
        spec = part["spec"]
        assert re.fullmatch(r"\d+(\.\d+)?", spec["variantCost"])
        assert isinstance(spec["variantCost"], str)
        assert 1 <= len(spec["modelID"]) <= 128
        assert spec["scaleTargetRef"]["kind"] == "Deployment"
        for name in (part["metadata"]["name"], spec["scaleTargetRef"]["name"]):
            assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name)
    for part in yaml.safe_load_all(exporting.wva([point, two], variants=True).files[""]):
        spec = part["spec"]
        assert set(spec) == {
            "scaleTargetRef", "modelID", "variantCost", "variantID", "accelerator",
            "acceleratorCount",
        }  # fmt: skip
        assert re.fullmatch(r".+-[A-Za-z0-9_-]+-[1-9][0-9]*", spec["variantID"])
        assert spec["variantID"].endswith(f"-{spec['acceleratorCount']}")
        assert 1 <= len(spec["accelerator"]) <= 64
        assert spec["scaleTargetRef"]["kind"] == "Deployment"
    with pytest.raises(UsageError, match="watts of none"):
        exporting.wva([replace(point, power_w=None)])
    assert not ranking.exists()


def test_a_variant_without_the_resource_has_its_watts_in_annotations(model, case):
    yaml = pytest.importorskip("yaml")
    (point,) = exporting.points_of_model(model, case)
    export = exporting.wva([point], annotated=True)
    (part,) = yaml.safe_load_all(export.files[""])
    assert (part["apiVersion"], part["kind"]) == ("autoscaling/v2", "HorizontalPodAutoscaler")
    assert "spec" not in part
    said = part["metadata"]["annotations"]
    assert said["llm-d.ai/managed"] == "true"
    assert said["llm-d.ai/model-id"] == case.llm.id
    assert said["llm-d.ai/variant-cost"] == f"{point.power_w:.1f}"
    assert any("apply --server-side" in note for note in export.notes)


def test_a_planner_profile_interpolates_as_the_planner_does(tmp_path, model, case, capsys):
    folder = tmp_path / "profile"
    arguments = ["export", "h100-vllm-0.11", "--to", "dynamo", *CASE, "--max-context", "4096"]
    assert main([*arguments, "-o", str(folder)]) == 0
    with np.load(folder / "selected_prefill_interpolation" / "raw_data.npz") as raw:
        isl, ttft, rate = (
            raw[name] for name in ("prefill_isl", "prefill_ttft", "prefill_thpt_per_gpu")
        )
    assert isl.ndim == 1
    assert len(isl) >= 4  # the planner's interpolation is cubic
    assert (np.diff(isl) > 0).all()
    assert (ttft > 0).all()
    assert rate == pytest.approx(isl / (ttft / 1000) / 2)  # tokens a second and GPU, of 2 GPUs
    one = Cases.of([case]).replace(input_tokens=1000.0, batch_size=1.0, mean_batch_size=1.0)
    expected = float(model.time.predict_s(one, "ttft")[0])
    assert float(interp1d(isl, ttft / 1000, kind="cubic")(1000)) == pytest.approx(
        expected, rel=0.02
    )
    with np.load(folder / "selected_decode_interpolation" / "raw_data.npz") as raw:
        x, y, itl, rate = (
            raw[n] for n in ("x_kv_usage", "y_context_length", "z_itl", "z_thpt_per_gpu")
        )
        most = int(raw["max_kv_tokens"][0])
    assert ((x > 0) & (x <= 1)).all()
    assert len(x) == len(np.unique(x)) * len(np.unique(y))  # a whole grid
    running = x * most / y
    assert (running >= 1 - 1e-4).all()
    assert rate == pytest.approx(running / (itl / 1000) / 2, rel=1e-4)
    # Between points, as the planner reads it: 64 sequences of 650 tokens.
    usage = 64 * 650 / most
    read = float(griddata((x, y), itl, (usage, 650.0), method="cubic")) / 1000
    steps = model.time.steps(Cases.of([case]).replace(input_tokens=500.0, output_tokens=300.0))
    assert read == pytest.approx(float(steps.step_s(np.array([64.0]))[0]), rel=0.1)
    assert main(arguments) == 2
    assert "name it with -o" in capsys.readouterr().err


def test_a_simulator_profile_has_the_constants_that_it_is_made_of(model, case):
    profile = json.loads(exporting.semantic_router(model, case, 2.5).files[""])
    # The arguments of its constructor, neither more nor fewer.
    assert set(profile) == {
        "name", "W", "H", "chunk", "blk_size", "total_kv_blks", "max_slots", "cost_per_hr",
        "calibration_ctx", "power_idle_w", "power_nominal_w", "power_logistic_k",
        "power_logistic_x0",
    }  # fmt: skip
    assert profile["cost_per_hr"] == 5.0  # two GPUs
    assert profile["calibration_ctx"] == 800
    assert profile["max_slots"] == 64
    assert profile["max_slots"] * 800 <= profile["total_kv_blks"] * profile["blk_size"]
    cases = Cases.of([case])
    steps = model.time.steps(cases)
    lengths = Lengths(input_tokens=500, output_tokens=300, input_cv=0, output_cv=0)
    joules = JouleSteps.of(model, cases, lengths)
    for n in (1.0, 8.0, 64.0):
        step = float(steps.step_s(np.array([n]))[0])
        assert profile["W"] + profile["H"] * n == pytest.approx(step, rel=0.1)
        lift = 1 + math.exp(
            -profile["power_logistic_k"] * (math.log2(n) - profile["power_logistic_x0"])
        )
        span = profile["power_nominal_w"] - profile["power_idle_w"]
        watts = float(joules.step_j(np.array([n]))[0]) / step
        assert profile["power_idle_w"] + span / lift == pytest.approx(watts, rel=0.1)


def test_a_ranking_is_read_back(tmp_path, capsys):
    select = ["select", "h100-vllm-0.11", "--llm", "Qwen/Qwen3-32B", "--gpu", "H100", "--json"]
    lengths = ["--input-tokens", "500", "--output-tokens", "300"]
    for extra in ([], ["--rate", "2", "--tpot", "50ms"]):
        assert main([*select, *lengths, *extra]) == 0
        text = capsys.readouterr().out
        path = tmp_path / "ranking.json"
        path.write_text(text)
        document = json.loads(text)
        entries = document.get("configurations") or document["ranking"]
        assert main(["export", str(path), "--to", "otel"]) == 0
        metrics = json.loads(capsys.readouterr().out)["resourceMetrics"][0]["scopeMetrics"][0]
        points = metrics["metrics"][0]["gauge"]["dataPoints"]
        joules = [entry["energy_per_request_j"] / 300 for entry in entries]
        assert [point["asDouble"] for point in points] == pytest.approx(joules)
        if extra:
            assert main(["export", str(path), "--to", "wva", "--json"]) == 0
            written = json.loads(capsys.readouterr().out)["content"]
            watts = entries[0]["power_w"] / entries[0]["data_parallel"]
            assert f'variantCost: "{watts:.1f}"' in written


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["h100-vllm-0.11", "--to", "otel"], "name the case, --llm, --gpu"),
        (["h100-vllm-0.11", "--to", "semantic-router", *CASE], "give --gpu-hour"),
        (["datasheet", "--to", "dynamo", *CASE, "-o", "x"], "has no time law"),
        (["h100-vllm-0.11", "--to", "otel", *CASE, "--gpu-hour", "2"], "--gpu-hour is for"),
        (
            ["h100-vllm-0.11", "--to", "dynamo", *CASE, "--data-parallel", "2", "-o", "x"],
            "of one engine",
        ),
        (
            ["h100-vllm-0.11", "--to", "dynamo", *CASE, "--max-context", "1e8", "-o", "x"],
            "the KV cache holds",
        ),
        (["h100-vllm-0.11", "--to", "dynamo", *CASE, "--max-context", "200", "-o", "x"], "400"),
    ],
)
def test_what_cannot_be_written_is_refused_in_one_sentence(arguments, said, capsys):
    assert main(["export", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_a_document_that_is_no_ranking_is_refused(tmp_path, capsys):
    path = Path(tmp_path, "x.json")
    entry = {
        "gpu": "H100", "precision": "bf16", "tensor_parallel": 1, "pipeline_parallel": 1,
        "expert_parallel": 1, "data_parallel": 1, "batch_size": 4, "energy_per_request_j": 5.0,
    }  # fmt: skip
    question = {"llm": "Qwen/Qwen3-8B", "input_tokens": 10, "output_tokens": 10}
    broken = [{"ranking": []}, {"ranking": [1], **question}, {"configurations": {}}]
    broken += [{"ranking": [entry], **question, "llm": 3}]
    broken += [
        {"ranking": [{**entry, "energy_per_request_j": x}], **question} for x in (-5, "x", 0)
    ]
    broken += [{"ranking": [{**entry, "power_w": "x"}], **question}]
    broken += [{"ranking": [{**entry, "gpu": 1}], **question}]
    broken += [{"ranking": [{**entry, "tensor_parallel": None}], **question}]
    broken += [{"ranking": [entry], **question, "input_tokens": True}]
    for document in broken:
        path.write_text(json.dumps(document))
        for to in ("otel", "wva", "inferencex"):
            assert main(["export", str(path), "--to", to]) == 1
            error = capsys.readouterr().err
            assert "print it again" in error
            assert "Traceback" not in error
    path.write_text(json.dumps({"ranking": [entry], **question}))
    assert main(["export", str(path), "--to", "otel"]) == 0


def test_rows_of_a_table_without_watts_are_told(tmp_path, draw_cases, make_dataset, capsys):
    path = tmp_path / "t.csv"
    table.write(make_dataset(draw_cases(3, images=False, node=False)), path)
    assert main(["export", str(path), "--to", "otel"]) == 0
    assert "3 points have no watts" in capsys.readouterr().err
    assert main(["export", str(path), "--to", "wva"]) == 2
    assert "watts of none of these are known" in capsys.readouterr().err
