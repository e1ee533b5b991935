"""One small document of our own in each benchmark format, with figures that are easy to reckon."""

import copy


def statistics(mean, median=None, **more):
    return {"mean": mean, "median": median or mean, "p90": mean * 1.2, "p99": mean * 1.5} | more


def aiperf(**changes):
    """96 requests in 128 s on four GPUs of which one served; counters over 160 s."""

    def metric(unit, avg, **more):
        return {"unit": unit, "avg": avg} | more

    def gpu(low, high, use):
        return {
            "gpu_name": "NVIDIA H100 80GB HBM3",
            "gpu_uuid": "GPU-0",
            "hostname": "node",
            "metrics": {
                "gpu_power_usage": metric("W", 100.0, min=60.0, max=400.0),
                "energy_consumption": metric("MJ", (low + high) / 2, min=low, max=high),
                "gpu_utilization": metric("%", use, min=0.0, max=use),
            },
        }

    return {
        "schema_version": "1.3",
        "aiperf_version": "0.10.0",
        "request_throughput": metric("requests/sec", 0.75),
        "request_latency": metric("ms", 2600.0, p50=2500.0, p90=3000.0, p99=4000.0, count=96),
        "request_count": metric("requests", 96.0),
        "time_to_first_token": metric("ms", 150.0, p50=140.0, p99=290.0),
        "inter_token_latency": metric("ms", 5.6, p50=5.5, p99=7.0),
        "inter_chunk_latency": metric("ms", 5.7, p50=5.4, p99=6.8),
        "output_sequence_length": metric("tokens", 430.0),
        "input_sequence_length": metric("tokens", 2800.0),
        "benchmark_duration": metric("sec", 128.0),
        "goodput": None,
        "telemetry_data": {
            "summary": {
                "start_time": "2026-07-03T05:15:30",
                "end_time": "2026-07-03T05:18:10",
            },
            "endpoints": {
                "http://localhost:9401/metrics": {
                    "gpus": {
                        "gpu_0": gpu(300.0, 300.064, 90.0),
                        "gpu_1": gpu(310.0, 310.011, 0.0),
                        "gpu_2": gpu(320.0, 320.011, 0.0),
                        "gpu_3": gpu(330.0, 330.011, 0.0),
                    }
                }
            },
        },
        "input_config": {
            "models": {"items": [{"name": "Qwen/Qwen3-8B"}]},
            "phases": [
                {"name": "warmup", "exclude_from_results": True, "concurrency": 4},
                {"name": "profiling", "requests": 96, "concurrency": 2},
            ],
        },
        "was_cancelled": False,
        "start_time": "2026-07-03T05:15:30",
        "end_time": "2026-07-03T05:18:10",
    } | changes


def genai_perf(**changes):
    """100 requests at 2 a second, two GPUs of which both served, at 300 and 310 W."""
    return {
        "request_throughput": {"unit": "requests/sec", "avg": 2.0},
        "request_latency": {"unit": "ms", "avg": 4000.0, "p50": 3900.0, "p99": 5000.0},
        "time_to_first_token": {"unit": "ms", "avg": 100.0, "p50": 90.0},
        "inter_token_latency": {"unit": "ms", "avg": 31.0, "p50": 30.0},
        "output_token_throughput": {"unit": "tokens/sec", "avg": 256.0},
        "output_sequence_length": {"unit": "tokens", "avg": 128.0},
        "input_sequence_length": {"unit": "tokens", "avg": 512.0},
        "telemetry_stats": {
            "gpu_power_usage": {"unit": "W", "gpu0": {"avg": 300.0}, "gpu1": {"avg": 310.0}},
            "gpu_utilization": {"unit": "%", "gpu0": {"avg": 80.0}, "gpu1": {"avg": 80.0}},
        },
        "input_config": {
            "model": ["x"],
            "model_names": ["Qwen/Qwen3-8B"],
            "perf_analyzer": {"stimulus": {"concurrency": 8}},
            "input": {"num_prompts": 100},
        },
    } | changes


def llmd(**changes):
    """500 requests in 50 s on two replicas of TP 4."""

    def quantity(units, mean):
        return {"units": units, "mean": mean, "p50": mean, "p90": mean * 1.1, "p99": mean * 1.3}

    return {
        "version": "0.2",
        "run": {
            "uid": "1",
            "time": {
                "start": "2025-11-05T18:00:00Z",
                "end": "2025-11-05T18:00:50Z",
                "duration": "PT50S",
            },
        },
        "scenario": {
            "stack": [
                {
                    "metadata": {"label": "vllm"},
                    "standardized": {
                        "kind": "inference_engine",
                        "tool": "vllm",
                        "tool_version": "docker.io/vllm/vllm-openai:v0.11.1",
                        "role": "aggregate",
                        "replicas": 2,
                        "model": {"name": "Qwen/Qwen3-32B"},
                        "accelerator": {
                            "model": "NVIDIA-H100-80GB-HBM3",
                            "count": 4,
                            "parallelism": {"tp": 4, "pp": 1, "dp": 1, "ep": 1},
                        },
                    },
                },
                {"standardized": {"kind": "generic", "tool": "router", "tool_version": "1"}},
            ],
            "load": {"standardized": {"rate_qps": 10, "concurrency": float("inf")}},
        },
        "results": {
            "request_performance": {
                "aggregate": {
                    "requests": {
                        "total": 500,
                        "failures": 0,
                        "input_length": quantity("count", 2000.0),
                        "output_length": quantity("count", 100.0),
                    },
                    "throughput": {"request_rate": quantity("queries/s", 10.0)},
                    "latency": {
                        "time_to_first_token": quantity("s", 0.2),
                        "time_per_output_token": quantity("ms/token", 20.0),
                        "inter_token_latency": quantity("s/token", 0.02),
                        "request_latency": quantity("s", 2.18),
                    },
                }
            }
        },
    } | changes


def llmd_first(**changes):
    """The same in version 0.1."""
    second = llmd()["results"]["request_performance"]["aggregate"]
    accelerator = {
        "model": "NVIDIA-H100-80GB-HBM3",
        "count": 4,
        "parallelism": {"tp": 4, "dp": 1, "workers": 1},
    }
    return {
        "version": "0.1",
        "scenario": {
            "model": {"name": "Qwen/Qwen3-32B"},
            "host": {"type": ["replica"] * 2, "accelerator": [accelerator] * 2},
            "platform": {"engine": [{"name": "vllm/vllm-openai:v0.11.1"}]},
            "load": {"name": "vllm-benchmark", "args": {"request_rate": 10}},
        },
        "metrics": {
            "time": {"duration": 50.0, "start": 1762365600},
            "requests": second["requests"],
            "latency": second["latency"],
            "throughput": {"requests_per_sec": 10.0},
        },
    } | changes


def trtllm(**changes):
    """1000 requests in 100 s on TP 4 at 2000 W: 200 kJ."""
    return {
        "engine": {
            "model": "meta-llama/Llama-3.1-70B-Instruct",
            "version": "1.2.0",
            "backend": "Pytorch",
            "dtype": "bfloat16",
            "kv_cache_dtype": "FP8",
            "quantization": "FP8",
        },
        "machine": {"name": "NVIDIA H100 80GB HBM3", "memory.total": 79.1, "clocks.mem": 2.6},
        "world_info": {
            "tp_size": 4,
            "pp_size": 1,
            "ep_size": None,
            "world_size": 4,
            "max_batch_size": 256,
            "max_num_tokens": 8192,
        },
        "request_info": {
            "num_requests": 1000,
            "avg_num_concurrent_requests": 200.0,
            "avg_input_length": 1024.0,
            "avg_output_length": 256.0,
        },
        "performance": {
            "total_latency_ms": 100000.0,
            "avg_request_latency_ms": 20000.0,
            "request_throughput_req_s": 10.0,
            "system_output_throughput_tok_s": 2560.0,
            "request_latency_percentiles_ms": {"p50": 19000.0, "p99": 30000.0, "average": 20000.0},
        },
        "streaming_metrics": {
            "avg_ttft_ms": 500.0,
            "avg_tpot_ms": 76.0,
            "ttft_percentiles": {"p50": 450.0, "p99": 900.0},
            "tpot_percentiles": {"p50": 75.0, "p99": 90.0},
        },
        "energy": {
            "total_energy_j": 200000.0,
            "output_tps_per_w": 1.28,
            "average_gpu_power": 500.0,
        },
        "dataset": {"isl_stats": {}},
    } | changes


def inferencex(**changes):
    """9600 J a query of 30,000 / 30 = 1000 output tokens and 8000 input tokens."""
    return {
        "hw": "h200",
        "conc": 64,
        "image": "vllm/vllm-openai:v0.11.0",
        "model": "deepseek-ai/DeepSeek-R1",
        "framework": "vllm",
        "precision": "fp8",
        "spec_decoding": "none",
        "disagg": False,
        "is_multinode": False,
        "isl": 8192,
        "osl": 1024,
        "tp": 8,
        "ep": 1,
        "dp_attention": False,
        "tput_per_gpu": 1000.0,
        "output_tput_per_gpu": 110.0,
        "mean_ttft": 0.8,
        "median_ttft": 0.7,
        "mean_tpot": 0.03,
        "median_tpot": 0.029,
        "median_intvty": 34.0,
        "mean_e2el": 30.8,
        "power_metric_schema_version": 2,
        "power_valid": 1,
        "avg_power_w": 600.0,
        "joules_per_successful_query": 9600.0,
        "joules_per_output_token": 9.6,
        "joules_per_input_token": 1.2,
    } | changes


def guidellm(**changes):
    """200 requests at 2 a second from 1786896180 on, in version 2."""

    def metric(mean):
        percentiles = {"p50": mean, "p90": mean * 1.2, "p95": mean * 1.3, "p99": mean * 1.5}
        good = {"mean": mean, "median": mean, "percentiles": percentiles}
        none = {"mean": 0.0, "median": 0.0, "percentiles": {}}
        return {"successful": good, "errored": none, "incomplete": none, "total": good}

    return {
        "metadata": {"version": 2, "guidellm_version": "0.8.0"},
        "config": {"spec": {"backend": {"target": "http://x", "model": "Qwen/Qwen3-8B"}}},
        "benchmarks": [
            {
                "type_": "generative_benchmark",
                "config": {"strategy": {"type_": "constant", "rate": 2.0}},
                "metrics": {
                    "request_totals": {"successful": 200, "errored": 0, "incomplete": 0},
                    "requests_per_second": metric(2.0),
                    "request_concurrency": metric(8.0),
                    "request_latency": metric(4.0),
                    "prompt_token_count": metric(512.0),
                    "output_token_count": metric(128.0),
                    "time_to_first_token_ms": metric(100.0),
                    "time_per_output_token_ms": metric(31.25),
                    "inter_token_latency_ms": metric(30.7),
                },
                "start_time": 1786896180.0,
                "end_time": 1786896280.0,
                "duration": 100.0,
            }
        ],
    } | changes


def guidellm_first(**changes):
    """The same in version 1, which has no metadata and another place for the load."""
    item = copy.deepcopy(guidellm()["benchmarks"][0])
    item["args"] = {"strategy": item.pop("config")["strategy"]}
    item["request_totals"] = item["metrics"].pop("request_totals")
    item["worker"] = {"backend_model": "Qwen/Qwen3-8B"}
    item["run_stats"] = {"start_time": item.pop("start_time"), "end_time": item.pop("end_time")}
    return {"benchmarks": [item]} | changes


def inference_perf(**changes):
    """60 requests in 60 s at 1 a second."""
    return {
        "load_summary": {"count": 60, "requested_rate": 1.0, "achieved_rate": 1.0},
        "successes": {
            "count": 60,
            "latency": {
                "request_latency": statistics(0.48),
                "time_to_first_token": statistics(0.033),
                "time_per_output_token": statistics(0.0071),
                "inter_token_latency": statistics(0.0035, median=3.4e-5),
            },
            "throughput": {"requests_per_sec": 1.0, "output_tokens_per_sec": 64.0},
            "prompt_len": statistics(200.0),
            "output_len": statistics(64.0),
        },
        "failures": {"count": 0, "request_latency": None},
        "benchmark_time_seconds": 60.0,
    } | changes


def sglang(**changes):
    """300 requests in 300 s at 1 a second."""
    return {
        "backend": "sglang",
        "dataset_name": "random",
        "request_rate": 1.0,
        "max_concurrency": None,
        "total_input_tokens": 153600,
        "total_output_tokens": 160200,
        "total_output_tokens_retokenized": 160000,
        "mean_e2e_latency_ms": 7800.0,
        "median_e2e_latency_ms": 7700.0,
        "mean_ttft_ms": 90.0,
        "median_ttft_ms": 85.0,
        "mean_tpot_ms": 14.4,
        "median_tpot_ms": 14.0,
        "median_itl_ms": 13.6,
        "output_throughput": 534.0,
        "random_input_len": 1024,
        "random_output_len": 1024,
        "random_range_ratio": 0.0,
        "duration": 300.0,
        "completed": 300,
        "request_throughput": 1.0,
        "concurrency": 7.8,
        "server_info": {"tp_size": 2, "version": "0.5.3", "model_path": "Qwen/Qwen3-32B"},
    } | changes


def optimum(**changes):
    """Batches of 4 of 512 + 128 tokens: 0.0001 and 0.0004 kWh a call, 360 and 1440 J."""

    def part(kwh, mean):
        energy = {"unit": "kWh", "cpu": 1e-5, "ram": 1e-6, "gpu": kwh, "total": kwh + 1.1e-5}
        latency = {"unit": "s", "mean": mean, "p50": mean, "p90": mean, "p95": mean, "p99": mean}
        return {"memory": None, "latency": latency, "throughput": None, "energy": energy}

    return {
        "config": {
            "name": "text_generation",
            "backend": {
                "name": "pytorch",
                "version": "2.7.0",
                "model": "meta-llama/Llama-3.1-8B-Instruct",
                "device_ids": "0",
                "torch_dtype": "bfloat16",
            },
            "scenario": {
                "name": "inference",
                "input_shapes": {"batch_size": 4, "sequence_length": 512},
                "generate_kwargs": {"max_new_tokens": 128, "min_new_tokens": 128},
            },
            "launcher": {"name": "process"},
            "environment": {
                "gpu": ["NVIDIA H100 80GB HBM3"],
                "gpu_count": 1,
                "transformers_version": "4.52.3",
                "optimum_benchmark_version": "0.6.0",
            },
        },
        "report": {
            "load_model": part(0.0006, 10.0),
            "prefill": part(0.0001, 0.1),
            "decode": part(0.0004, 2.54),
        },
    } | changes


def mlenergy(**changes):
    """0.5 J a token of 200 tokens: 100 J a request, at 1000 W in the steady window."""
    return {
        "date": "20260101-120000",
        "endpoint_type": "openai-chat",
        "model_id": "Qwen/Qwen3-8B",
        "gpu_model": "H100",
        "num_gpus": 1,
        "max_num_seqs": 64,
        "num_prompts": 1000,
        "request_rate": "inf",
        "burstiness": 1.0,
        "duration": 120.0,
        "completed": 1000,
        "total_input_tokens": 600000,
        "total_output_tokens": 200000,
        "request_throughput": 8.333,
        "steady_state_duration": 60.0,
        "steady_state_energy": 60000.0,
        "steady_state_energy_per_token": 0.5,
        "steady_state_measurement": {"time": 60.0, "gpu_energy": {"0": 60000.0}},
        "mean_ttft_ms": 100.0,
        "median_ttft_ms": 90.0,
        "mean_tpot_ms": 35.0,
        "median_tpot_ms": 34.0,
        "median_itl_ms": 30.0,
        "mean_e2el_ms": 7065.0,
    } | changes
