"""Each benchmark format: one of ours read as worked out by hand, and refused where it must be."""

import copy
import json
import os
from pathlib import Path

import pytest
from tests import import_documents as ours
from tests.import_fixtures import NOON, smi_csv, step, step_times, vllm_bench

from energylens.errors import EnergyLensError
from energylens.importers import auto, documents
from energylens.importers.declared import Setup
from energylens.importers.energy_join import JoinOptions
from energylens.importers.runs import RefusedFileError

SAMPLES = Path(
    os.environ.get("ENERGYLENS_SAMPLES", Path(__file__).resolve().parents[2] / "shared" / "samples")
)

MAKERS = {
    "vllm bench serve": vllm_bench,
    "AIPerf": ours.aiperf,
    "genai-perf": ours.genai_perf,
    "llm-d benchmark report": ours.llmd,
    "trtllm-bench": ours.trtllm,
    "InferenceX aggregate": ours.inferencex,
    "GuideLLM": ours.guidellm,
    "inference-perf": ours.inference_perf,
    "SGLang bench_serving": ours.sglang,
    "optimum-benchmark": ours.optimum,
    "ML.ENERGY results": ours.mlenergy,
}


def runs(document, name="f.json"):
    return auto.runs_of(documents.parse(json.dumps(document).encode(), name))


def row(tmp_path, document, power=None, name="f.json", join=None, **setup):
    path = tmp_path / name
    path.write_text(json.dumps(document))
    logs = ()
    if power is not None:
        (tmp_path / "power.csv").write_text(power)
        logs = (str(tmp_path / "power.csv"),)
    options = auto.Options(setup=Setup(**setup), power=logs, join=join or JoinOptions())
    imported, taken = auto.read([path], options)
    return imported.dataset, taken


def sample(name):
    path = SAMPLES / name
    if not path.exists():
        pytest.skip(f"the sample {name} is not at hand ($ENERGYLENS_SAMPLES)")
    return path


@pytest.mark.parametrize("form", MAKERS)
def test_each_format_is_told_by_its_content(form):
    found = runs(MAKERS[form]())
    assert [run.format for run in found] == [form]


@pytest.mark.parametrize("form", MAKERS)
@pytest.mark.parametrize("share", [0.3, 0.7, 0.98])
def test_a_truncated_file_is_refused(form, share):
    text = json.dumps(MAKERS[form]())
    with pytest.raises(EnergyLensError, match=r"breaks off|is no JSON"):
        auto.runs_of(documents.parse(text[: int(len(text) * share)].encode(), "f.json"))


def of_another_version(value, kept, depth=0):
    """The same document with other names below so many levels, as a version to come may have."""
    if isinstance(value, dict):
        return {
            (key if depth < kept else f"{key}_v9"): of_another_version(inner, kept, depth + 1)
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [of_another_version(inner, kept, depth) for inner in value]
    return value


@pytest.mark.parametrize("form", MAKERS)
def test_a_file_of_another_version_is_refused_or_only_what_is_known_is_taken(form):
    with pytest.raises(RefusedFileError, match="of no format known here, or of a version that is"):
        runs(of_another_version(MAKERS[form](), 0))
    known = runs(MAKERS[form]())[0]
    for kept in (1, 2):
        try:
            found = runs(of_another_version(MAKERS[form](), kept))[0]
        except RefusedFileError:
            continue
        for name in ("input_tokens", "output_tokens", "duration_s", "energy"):
            assert getattr(found, name) in (None, getattr(known, name)), name
        for name in ("ttft", "tpot", "request_latency"):
            mean_s = getattr(found, name).mean_s
            assert mean_s in (None, getattr(known, name).mean_s), name


@pytest.mark.parametrize("form", MAKERS)
def test_a_file_that_may_be_of_two_formats_is_refused(form):
    other = "AIPerf" if form == "trtllm-bench" else "trtllm-bench"
    both = MAKERS[form]() | MAKERS[other]()
    with pytest.raises(RefusedFileError, match="it is ambiguous"):
        runs(both)


# --------------------------------------------------------- what other versions and options write


def changed(document, path, value):
    """Give a copy with the value at a path, as in "a/0/c", changed; None takes it out."""
    document = copy.deepcopy(document)
    *steps, last = [int(key) if key.isdigit() else key for key in path.split("/")]
    place = document
    for key in steps:
        place = place[key]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return document


EMBEDDING = {
    name: vllm_bench()[name]
    for name in ("date", "backend", "model_id", "num_prompts", "duration", "completed")
} | {"total_input_tokens": 9, "total_token_throughput": 1.0, "mean_e2el_ms": 3.0}


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (
            vllm_bench(ramp_up_strategy="linear", ramp_up_start_rps=1, ramp_up_end_rps=9),
            "ramps up from 1 to 9 a second, so its joules are of no one load",
        ),
        (vllm_bench(ramp_up_strategy="linear"), "its request rate ramps up"),
        (vllm_bench(completed=100, failed=140), "140 requests failed or did not finish and 100"),
        (
            changed(ours.guidellm(), "benchmarks/0/metrics/request_totals/incomplete", 201),
            "201 requests failed or did not finish and 200 did",
        ),
        (changed(ours.inference_perf(), "load_summary/requested_rate", None), "over all stages"),
        (
            changed(ours.inference_perf(), "successes/audio", {"count": {"mean": 1.0}}),
            "its requests carry audio",
        ),
    ],
)
def test_runs_of_no_one_load_are_refused(document, said):
    with pytest.raises(RefusedFileError, match=said):
        runs(document)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (EMBEDDING, "a benchmark of embeddings or reranking: nothing is generated"),
        ({"avg_latency": 1.0, "latencies": [1.0], "percentiles": {}}, "vllm bench latency"),
        ({"elapsed_time": 1.0, "num_requests": 2, "total_num_tokens": 9}, "vllm bench throughput"),
        (
            {"metadata": {"request_start_ns": 1}, "metrics": {}},
            "AIPerf's records of single requests: give its profile_export_aiperf.json",
        ),
        (
            {"aiperf_version": "0.10", "metadata": {"aggregation_type": "c"}, "metrics": {}},
            "of no one run: give the profile_export_aiperf.json of each",
        ),
        ({"experiments": [], "version": "1"}, "give profile_export_genai_perf.json"),
        ({"load": {}, "server": {}}, "a configuration of inference-perf"),
        ([{"start_time": 1, "end_time": 2, "request": "x"}], "records of single requests"),
        ("# gpu   pid  type   sm\n# Idx  #  C/G  %\n  0  1  C  1\n", "processes, not watts"),
        ("==============NVSMI LOG==============\n\nTimestamp : x\n", "nvidia-smi -q: it is a rep"),
        ("<?xml version='1.0'?>\n<nvidia_smi_log>\n", "nvidia-smi -q: it is a report"),
        ("#Entity   POWER\nID   W\nGPU 0    30.1\n", "dcgmi dmon: it has no time stamps"),
        ("Pwr Consumption  | 210.000    | Watts      | ok\n", "ipmitool dcmi power reading"),
    ],
)
def test_what_lies_beside_results_is_told(document, said, tmp_path):
    path = tmp_path / "f"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    bench = tmp_path / "bench.json"
    bench.write_text(json.dumps(vllm_bench()))
    for paths, logs in (([path], ()), ([bench], (str(path),))):
        with pytest.raises(RefusedFileError, match=said):
            auto.read(paths, auto.Options(power=logs, setup=Setup(gpu="H100", gpus=1)))


def newer_aiperf(vendor="nvidia", joules=38400.0, **changes):
    """The telemetry of versions since 2026: the counter's difference over the profiling alone."""
    document = ours.aiperf(**changes)
    gpus = document["telemetry_data"]["endpoints"]["http://localhost:9401/metrics"]["gpus"]
    busy = "amd_gfx_activity" if vendor == "amd" else "nvidia_gpu_utilization"
    for label, gpu in gpus.items():
        served = label == "gpu_0"
        gpu["gpu_uuid"] = f"GPU-{label}"
        gpu["metrics"] = {
            f"{vendor}_power" if vendor == "amd" else "nvidia_power_usage": {
                "unit": "W",
                "avg": 300.0 if served else 60.0,
            },
            f"{vendor}_energy_consumption": {
                "unit": "MJ",
                "avg": (joules if served else 7680.0) * 1e-6,
            },
            busy: {"unit": "%", "avg": 90.0 if served else 0.0},
        }
    return document


@pytest.mark.parametrize("vendor", ["nvidia", "amd"])
def test_aiperf_since_2026_gives_the_counters_difference_itself(vendor, tmp_path):
    # 300 W for 128 s are 38,400 J, and the counter went on by as much.
    dataset, taken = row(tmp_path, newer_aiperf(vendor), gpus=1)
    assert dataset.energy_per_request_j[0] == pytest.approx(38400 / 96)
    assert taken[0].joined.active == ("0",)
    with pytest.raises(RefusedFileError, match="may be the mean of a counter"):
        row(tmp_path, newer_aiperf(vendor, joules=3e8), gpus=1)


def test_aiperf_gpus_that_two_exporters_list_are_counted_once(tmp_path):
    document = newer_aiperf()
    endpoints = document["telemetry_data"]["endpoints"]
    endpoints["http://localhost:9400/metrics"] = endpoints["http://localhost:9401/metrics"]
    dataset, _ = row(tmp_path, document, gpus=1)
    assert dataset.energy_per_request_j[0] == pytest.approx(38400 / 96)


def test_guidellm_windows_leave_the_warm_up_out():
    item = "benchmarks/0/scheduler_metrics"
    times = {"measure_start_time": 1786896200.0, "measure_end_time": 1786896280.0}
    (run,) = runs(changed(ours.guidellm(), item, times))
    assert (run.window.start_s, run.duration_s) == (1786896200.0, 80.0)
    (run,) = runs(changed(ours.guidellm_first(), "benchmarks/0/args/warmup_duration", 20.0))
    assert (run.window.start_s, run.duration_s) == (1786896200.0, 80.0)
    (run,) = runs(changed(ours.guidellm_first(), "benchmarks/0/args/warmup_number", 5))
    assert run.window is None


def test_inference_perf_takes_the_servers_count_of_tokens_and_images():
    document = changed(ours.inference_perf(), "successes/prompt_tokens", {"mean": 220.0})
    document = changed(document, "successes/output_tokens", {"mean": 63.0})
    document = changed(document, "successes/image", {"count": {"mean": 2.0}, "pixels": None})
    (run,) = runs(document)
    assert (run.input_tokens, run.output_tokens, run.images) == (220.0, 63.0, 2.0)


@pytest.mark.parametrize(
    ("changes", "missing"),
    [({"total_input_vision_tokens": 3000}, "--images N"), ({"total_input_vision_tokens": 0}, None)],
)
def test_a_run_with_images_is_no_run_of_text(changes, missing, tmp_path):
    setup = {"gpu": "H100", "batch_size": 64}
    with pytest.raises(auto.IncompleteError, match="--power") as caught:
        row(tmp_path, ours.sglang(**changes), **setup)
    assert (missing or "--images") in str(caught.value) or missing is None
    assert ("images" in caught.value.missing) == (missing is not None)


@pytest.mark.parametrize(
    ("server", "degrees"),
    [
        ({"tp_size": 8, "dp_size": 2}, (8, 2)),
        ({"tp_size": 8, "dp_size": 8, "enable_dp_attention": True}, (1, 8)),
        ({"tp_size": 8, "dp_size": 2, "enable_dp_attention": True}, (4, 2)),
    ],
)
def test_sglang_copies_of_attention_are_on_the_same_gpus(server, degrees):
    (run,) = runs(ours.sglang(server_info=server))
    assert (run.tensor_parallel, run.data_parallel) == degrees


def test_llmd_watts_are_not_taken_and_the_reason_is_said(tmp_path):
    observed = {"components": [{"aggregate": {"power_consumption": {"units": "W", "mean": 300}}}]}
    document = changed(ours.llmd(), "results/observability", observed)
    with pytest.raises(auto.IncompleteError, match=r"neither one GPU's nor their sum.*--power LOG"):
        row(tmp_path, document)


# ------------------------------------------------------------------------ worked out by hand


def test_aiperf_joules_are_the_counters_difference_of_busy_gpus_over_the_benchmark(tmp_path):
    # 0.064 MJ of GPU 0 over 160 s of telemetry, of which the benchmark is 128 s: 51,200 J.
    dataset, taken = row(tmp_path, ours.aiperf(), gpus=1)
    assert dataset.energy_per_request_j[0] == pytest.approx(51200 / 96)
    assert taken[0].joined.active == ("0",)
    assert dataset.cases.tpot_s[0] == pytest.approx(0.0056)
    assert dataset.cases.batch_size[0] == 2


def test_aiperf_counters_averaged_as_gauges_are_refused():
    document = ours.aiperf()
    gpus = document["telemetry_data"]["endpoints"]["http://localhost:9401/metrics"]["gpus"]
    for gpu in gpus.values():
        del gpu["metrics"]["energy_consumption"]["min"]
    with pytest.raises(RefusedFileError, match="mean of a counter since boot"):
        runs(document)


def test_aiperf_gpus_of_the_host_that_served_nothing_are_not_counted(tmp_path):
    document = ours.aiperf()
    gpus = document["telemetry_data"]["endpoints"]["http://localhost:9401/metrics"]["gpus"]
    for gpu in gpus.values():
        gpu["metrics"].pop("gpu_utilization")
    with pytest.raises(RefusedFileError, match=r"has the joules of 4 GPUs, but .* has 1"):
        row(tmp_path, document, gpus=1)
    dataset, _ = row(tmp_path, document, gpus=1, join=JoinOptions(gpus_active=("0",)))
    assert dataset.energy_per_request_j[0] == pytest.approx(51200 / 96)


def test_aiperf_csv_says_the_same_as_its_json():
    text = (
        "Metric,avg,min,max,sum,p1,p5,p10,p25,p50,p75,p90,p95,p99,std\n"
        "Input Sequence Length (tokens),512.00,1,1,1,1,1,1,1,1,1,1,1,1,1\n"
        "Output Sequence Length (tokens),128.00,1,1,1,1,1,1,1,1,1,1,1,1,1\n"
        "Inter Token Latency (ms),30.00,1,1,1,1,1,1,1,29.0,1,1,1,1,1\n"
        "Request Latency (ms),3870.00,1,1,1,1,1,1,1,3800,1,1,1,1,1\n"
        "Time to First Token (ms),60.00,1,1,1,1,1,1,1,1,1,1,1,1,1\n"
        "\n"
        "Metric,Value\n"
        "Benchmark Duration (sec),120.00\n"
        "Request Count,240.00\n"
        "Request Throughput (requests/sec),2.00\n"
        "\n"
        "Endpoint,GPU_Index,GPU_Name,GPU_UUID,Metric,avg,min,max\n"
        "localhost,0,NVIDIA H100 80GB HBM3,GPU-1,GPU Power Usage (W),480.00,60.0,500.0\n"
    )
    document = documents.parse(text.encode(), "f.csv")
    run = auto.TEXT_FORMATS[0].read(document.text, document.name)
    assert run.tpot.mean_s == pytest.approx(0.03)
    assert run.tpot.median_s == pytest.approx(0.029)
    assert run.power.windows[0].joules == {"0": pytest.approx(480.0 * 120)}
    with pytest.raises(RefusedFileError, match="breaks off"):
        auto.TEXT_FORMATS[0].read(text[: text.index("Metric,Value")], "f.csv")


def test_genai_perf_joules_are_mean_watts_times_time(tmp_path):
    # 100 requests at 2 a second take 50 s: (300 + 310) W x 50 s / 100.
    dataset, _ = row(tmp_path, ours.genai_perf(), gpu="H100", tensor_parallel=2)
    assert dataset.energy_per_request_j[0] == pytest.approx(305.0)
    assert dataset.cases.batch_size[0] == 8


@pytest.mark.parametrize("document", [ours.llmd(), ours.llmd_first()])
def test_llmd_reports_state_their_layout_and_obey_units(document):
    (run,) = runs(document)
    assert (run.tensor_parallel, run.data_parallel) == (4, 2)
    assert (run.engine, run.engine_version) == ("vllm", "0.11.1")
    assert run.tpot.mean_s == pytest.approx(0.02)
    assert run.itl.mean_s == pytest.approx(0.02)
    assert run.request_rate_per_s == 10
    assert run.window.end_s - run.window.start_s == pytest.approx(50)
    assert run.window.start_s == pytest.approx(1762365600)


def test_llmd_reports_that_contradict_themselves_are_refused():
    document = ours.llmd()
    latency = document["results"]["request_performance"]["aggregate"]["latency"]
    latency["time_to_first_token"]["units"] = "ms"  # seconds said to be ms
    with pytest.raises(RefusedFileError, match="another unit"):
        runs(document | {"results": _with_latency(document, "request_latency", "ms")["results"]})
    with pytest.raises(RefusedFileError, match="must be in one of"):
        runs(_with_latency(ours.llmd(), "time_to_first_token", "fortnights"))
    with pytest.raises(RefusedFileError, match=r"version 0\.9"):
        runs(ours.llmd(version="0.9"))


def _with_latency(document, key, units):
    document = copy.deepcopy(document)
    latency = document["results"]["request_performance"]["aggregate"]["latency"]
    latency[key]["units"] = units
    return document


def test_llmd_prefill_and_decode_apart_is_refused():
    document = ours.llmd()
    stack = document["scenario"]["stack"]
    other = copy.deepcopy(stack[0])
    stack[0]["standardized"]["role"], other["standardized"]["role"] = "decode", "prefill"
    stack.append(other)
    with pytest.raises(RefusedFileError, match="prefill and decode on GPUs of their own"):
        runs(document)


def test_trtllm_joules_are_those_of_its_gpus(tmp_path):
    dataset, _ = row(tmp_path, ours.trtllm())
    assert dataset.energy_per_request_j[0] == pytest.approx(200.0)
    assert dataset.cases.average_power_w[0] == pytest.approx(2000.0)
    assert dataset.cases.mean_batch_size[0] == pytest.approx(200.0)
    assert dataset.precision_ids[0] == "fp8"
    assert dataset.cases.ttft_s[0] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("algorithm", "precision"),
    [(None, "bfloat16"), ("NO_QUANT", "bfloat16"), ("NVFP4", "nvfp4"), ("W8A16_GPTQ", "w8a16"),
     ("FP8_PER_CHANNEL_PER_TOKEN", "fp8"), ("FP8_BLOCK_SCALES", "fp8-block"),
     ("W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN", "int8"), ("NVFP4_AWQ", "nvfp4")],
)  # fmt: skip
def test_trtllm_number_formats_by_its_own_names(algorithm, precision):
    document = ours.trtllm()
    document["engine"]["quantization"] = algorithm
    document["machine"] = None  # where torch sees no GPU
    (run,) = runs(document)
    assert (run.precision, run.gpu) == (precision, None)


def test_trtllm_energy_of_other_hosts_is_refused():
    document = ours.trtllm()
    document["world_info"] |= {"world_size": 16, "tp_size": 8, "pp_size": 2}
    with pytest.raises(RefusedFileError, match="one host's 8 multiplied, not measured"):
        runs(document)
    document = ours.trtllm(energy={"total_energy_j": 0.0})
    with pytest.raises(RefusedFileError, match="a meter that gave nothing"):
        runs(document)


def test_inferencex_joules_a_query_and_the_lengths_they_imply(tmp_path):
    dataset, _ = row(tmp_path, ours.inferencex())
    assert dataset.energy_per_request_j[0] == pytest.approx(9600.0)
    assert dataset.cases.output_tokens[0] == pytest.approx(1000.0)
    assert dataset.cases.input_tokens[0] == pytest.approx(8000.0)
    assert dataset.cases.batch_size[0] == 64
    assert dataset.cases.ttft_s[0] == pytest.approx(0.8)
    (run,) = runs(ours.inferencex(pp=2, num_decode_gpu=16))
    assert (run.tensor_parallel, run.pipeline_parallel, run.gpus) == (8, 2, 16)
    (run,) = runs(ours.inferencex(dp_attention="true", ep=8))
    assert (run.tensor_parallel, run.data_parallel, run.expert_parallel) == (1, 8, 8)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"power_metric_schema_version": 1}, "power_metric_schema_version 1"),
        ({"power_metric_schema_version": None}, "power_metric_schema_version None"),
        ({"power_valid": 0}, "found the joules invalid"),
        ({"disagg": True}, "GPUs of their own"),
        ({"pp": 2, "num_decode_gpu": 8}, "ran on 8 GPUs, but its degrees make 16"),
        ({"benchmark_type": "agentic_traces"}, "prompts in the cache"),
        ({"mean_ttft": 800.0, "median_ttft": 700.0}, "another unit"),
    ],
)
def test_inferencex_is_refused_by_rule(changes, said):
    with pytest.raises(RefusedFileError, match=said):
        runs(ours.inferencex(**changes))


@pytest.mark.parametrize("document", [ours.guidellm(), ours.guidellm_first()])
def test_guidellm_tpot_is_without_the_first_token(document, tmp_path):
    (run,) = runs(document)
    assert run.tpot.mean_s == pytest.approx(0.0307)
    assert run.request_latency.mean_s == pytest.approx(4.0)
    assert run.request_rate_per_s == pytest.approx(2.0)
    assert run.llm == "Qwen/Qwen3-8B"
    # Its times are UTC, the log's local: 400 W from 16:03:00 to 16:04:40 UTC.
    times = step_times(1.0)
    log = smi_csv(times, [step(times, NOON + 180, NOON + 280, 70.0, 400.0)])
    dataset, _ = row(
        tmp_path,
        document,
        log,
        join=JoinOptions(timezone="UTC"),
        gpu="H100",
        gpus=1,
        batch_size=64,
    )
    assert dataset.energy_per_request_j[0] == pytest.approx(400 * 100 / 200, rel=0.01)
    assert dataset.cases.mean_batch_size[0] == pytest.approx(8.0)


def test_guidellm_of_an_unknown_version_or_all_failed_is_refused():
    with pytest.raises(RefusedFileError, match="report of version 3"):
        runs(ours.guidellm(metadata={"version": 3}))
    document = ours.guidellm()
    document["benchmarks"][0]["metrics"]["request_totals"]["successful"] = 0
    with pytest.raises(RefusedFileError, match="none of its requests succeeded"):
        runs(document)


def test_inference_perf_is_in_seconds_and_takes_no_chunks_for_tokens():
    (run,) = runs(ours.inference_perf())
    assert run.tpot.mean_s == pytest.approx(0.0071)
    assert not run.itl.known
    assert run.request_rate_per_s == pytest.approx(1.0)
    summary = {"load_summary": {}, "successes": {"count": 9, "rate": 1.0, "queue_len": {}}}
    with pytest.raises(RefusedFileError, match="Prometheus summary"):
        runs(summary)


def test_sglang_lines_are_runs_with_mean_lengths():
    text = "\n".join(json.dumps(ours.sglang(request_rate=r)) for r in (1.0, 2.0)) + "\n"
    found = auto.runs_of(documents.parse(text.encode(), "f.jsonl"))
    assert [run.request_rate_per_s for run in found] == [1.0, 2.0]
    assert found[0].input_tokens == pytest.approx(512.0)
    assert found[0].output_tokens == pytest.approx(534.0)
    assert found[0].tensor_parallel == 2
    bare = json.dumps(ours.sglang(request_rate=1.0)).replace("1.0,", "Infinity,", 1)
    (run,) = auto.runs_of(documents.parse(bare.encode(), "f.jsonl"))
    assert not run.open_loop


def test_optimum_times_of_all_samples_together_are_no_latencies():
    document = ours.optimum()
    document["config"]["scenario"] |= {"name": "energy_star", "num_samples": 100}
    (run,) = runs(document)
    assert run.completed == 100
    assert not run.ttft.known
    assert not run.tpot.known


def test_optimum_joules_are_kwh_of_a_batch(tmp_path):
    dataset, _ = row(tmp_path, ours.optimum())
    assert dataset.energy_per_request_j[0] == pytest.approx(450.0)
    assert dataset.prefill_energy_per_request_j[0] == pytest.approx(90.0)
    assert dataset.decode_energy_per_request_j[0] == pytest.approx(360.0)
    assert dataset.cases.tpot_s[0] == pytest.approx(2.54 / 127)
    with pytest.raises(RefusedFileError, match="the report alone"):
        runs(ours.optimum()["report"])


def test_mlenergy_joules_are_those_of_the_steady_window(tmp_path):
    dataset, _ = row(tmp_path, ours.mlenergy())
    assert dataset.energy_per_request_j[0] == pytest.approx(100.0)
    assert dataset.cases.average_power_w[0] == pytest.approx(1000.0)
    with pytest.raises(RefusedFileError, match="sum to 50000 J"):
        runs(ours.mlenergy(steady_state_measurement={"gpu_energy": {"0": 50000.0}}))
    with pytest.raises(RefusedFileError, match="no steady window"):
        runs(ours.mlenergy(steady_state_energy=0))


def test_open_loops_are_rows_under_load(tmp_path):
    times = step_times(1.0)
    log = smi_csv(times, [step(times, NOON + 180, NOON + 300, 70.0, 400.0)])
    document = vllm_bench(request_rate=2.0, max_concurrency=None)
    dataset, _ = row(tmp_path, document, log, gpu="H100", gpus=1)
    assert dataset.cases.request_rate_per_s[0] == pytest.approx(2.0)
    assert dataset.cases.achieved_rate_per_s[0] == pytest.approx(2.0)
    assert dataset.cases.tpot_s[0] == pytest.approx(0.03)
    assert dataset.cases.median_itl_s[0] == pytest.approx(0.027)
    assert dataset.declared[0] == "gpu tensor_parallel"


# --------------------------------------------------------------------- real files, if at hand


@pytest.mark.parametrize(
    ("name", "form", "ttft_s", "tpot_s", "tokens"),
    [
        ("vllm_bench_serve/bench_serve_v0.25.1.json", "vllm bench serve", 0.215536, 0.0112658, 16),
        (
            "aiperf/profile_export_aiperf_qwen36_nvfp4_5090_agent_c2.json",
            "AIPerf",
            0.154264,
            0.00567004,
            434.708,
        ),
        (
            "aiperf/profile_export_aiperf_qwen36_nvfp4_5090_agent_c2.csv",
            "AIPerf",
            0.15426,
            0.00567,
            434.71,
        ),
        ("guidellm/guidellm_report_v2.json", "GuideLLM", 0.0114812, 0.00115085, 8),
        (
            "inference_perf/stage_0_lifecycle_metrics.json",
            "inference-perf",
            0.0333190,
            0.00347758,
            62.35,
        ),
        ("sglang_bench_serving/llama_3_3_70b_online_output.jsonl", "SGLang bench_serving",
         None, None, 160347 / 300),
        ("optimum_benchmark/benchmark.json", "optimum-benchmark", None, None, None),
    ],
)  # fmt: skip
def test_real_files_are_read(name, form, ttft_s, tpot_s, tokens):
    document = documents.load(sample(name))
    if document.objects:
        run = auto.runs_of(document)[0]
    else:
        run = auto.TEXT_FORMATS[0].read(document.text, document.name)
    assert run.format == form
    assert run.output_tokens == (None if tokens is None else pytest.approx(tokens))
    assert run.ttft.mean_s == (None if ttft_s is None else pytest.approx(ttft_s, rel=1e-4))
    assert run.tpot.mean_s == (None if tpot_s is None else pytest.approx(tpot_s, rel=1e-4))


def test_the_real_energy_star_run_gives_joules_worked_out_by_hand():
    (run,) = auto.runs_of(documents.load(sample("optimum_benchmark/benchmark.json")))
    assert run.completed == 1000
    assert run.prefill_energy_j == pytest.approx(0.07468241252354346 * 3.6e6)
    assert run.energy.joules == pytest.approx((0.07468241252354346 + 0.11994518651169983) * 3.6e6)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("llmd_benchmark_report/br_v0_2_example.yaml", "another unit|contradicts itself"),
        ("inference_perf/stage_0_prometheus_metrics.json", "Prometheus summary"),
        ("optimum_benchmark/benchmark_report.json", "the report alone"),
        ("optimum_benchmark/benchmark_config.json", "the configuration alone"),
        ("nvidia_smi_csv/job_info.yaml", "of no format known here"),
        ("dcgm/default-counters.csv", "of no format known here"),
        ("vllm_metrics/metrics_vllm_0_25_1_idle.txt", "of no format known here"),
        ("dcgm/dcgm-gb200.txt", "a scrape without time stamps"),
        ("zeus/zeus_monitor_A40_4gpu.csv", "a power log says when"),
        ("codecarbon/emissions.csv", "a power log says when"),
        ("nvidia_smi_csv/nvidia-smi-wilkins-1.csv", "a power log says when"),
    ],
)
def test_real_files_are_refused_for_the_right_reason(name, said):
    with pytest.raises(EnergyLensError, match=said):
        auto.read([sample(name)])


def test_a_run_that_does_not_count_failures_is_read():
    document = {
        "model_id": "Qwen/Qwen3-8B",
        "duration": 120.0,
        "completed": 1000,
        "total_input_tokens": 600000,
        "total_output_tokens": 200000,
        "request_throughput": 8.333,
        "request_rate": 8.0,
    }
    (run,) = runs(document)
    assert run.notes == ()
