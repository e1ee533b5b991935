"""Engines by name, their options, and the number formats they are told of."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from energylens import catalog
from energylens.errors import MissingExtraError, UnknownNameError
from energylens.instrument.engine import EngineError, Layout, Phase, Reason
from energylens.instrument.engines import ENGINES, amx, open_engine, vllm_setup, vllm_worker
from energylens.instrument.engines.amx import Amx
from energylens.instrument.engines.options import Options
from energylens.instrument.engines.quantization import (
    check_loaded,
    dtype_of,
    loaded_provenance,
    vllm_quantization,
)
from energylens.instrument.engines.vllm import OPTIONS, VllmEngine
from energylens.instrument.engines.vllm_server import command_line, start_failure
from energylens.instrument.engines.vllm_setup import default_executor
from energylens.records import Source


def layout(**options: str) -> Layout:
    return Layout(
        llm=catalog.llm("Qwen/Qwen3-0.6B"),
        precision=catalog.precision("bf16"),
        max_sequences=1,
        max_sequence_tokens=8,
        options=options,
    )


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_by_name_says_what_it_can_do_before_it_starts(name: str) -> None:
    engine = open_engine(name)
    assert engine.name == name
    assert {Phase.PREFILL, Phase.REQUEST} <= engine.capabilities.phases
    simulated = engine.capabilities.source is Source.SIMULATED
    assert simulated == (name == "simulated") == (engine.own_meter() is not None)
    engine.close()
    engine.close()  # twice is harmless


def test_an_unknown_engine_is_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="transformers"):
        open_engine("transformer")


def test_engines_can_be_made_in_another_process() -> None:
    assert pickle.loads(pickle.dumps(open_engine)) is open_engine


def test_nothing_heavy_is_imported_with_the_engines() -> None:
    code = (
        "import sys, energylens.instrument.engines as e; "
        "[e.open_engine(n).capabilities for n in e.ENGINES]; "
        "print(sorted({'torch', 'vllm', 'transformers', 'httpx', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "told"),
    [("vllm", "an environment of its own"), ("transformers", r"energylens\[transformers\]")],
)
def test_an_engine_that_is_not_installed_says_how_to_get_it(
    name: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=told):
        open_engine(name).start(layout())


@pytest.mark.parametrize("name", ENGINES)
def test_an_option_that_an_engine_does_not_know_is_refused(name: str) -> None:
    with pytest.raises(EngineError, match="no option 'speed'") as refused:
        open_engine(name).start(layout(speed="11"))
    assert refused.value.reason is Reason.UNSUPPORTED


def test_options_are_read_by_kind() -> None:
    given = {"mode": "server", "eager": "True", "limit": "2.5"}
    options = Options("x", given, ("mode", "eager", "limit", "other"))
    assert options.choice("mode", ("offline", "server")) == "server"
    assert options.flag("eager", False)
    assert not options.flag("other", False)
    assert options.number("limit", 1.0) == 2.5
    assert options.number("other", 1.0) == 1.0
    for call in (
        lambda: options.choice("mode", ("a", "b")),
        lambda: options.flag("mode", True),
        lambda: options.number("mode", 1.0),
    ):
        with pytest.raises(EngineError, match="the x engine takes"):
            call()
    with pytest.raises(EngineError, match="did you mean eager"):
        Options("x", {"eagre": "1"}, ("eager",))


@pytest.mark.parametrize("value", ["-1", "0", "nan", "inf"])
def test_a_number_that_is_not_above_zero_is_refused(value: str) -> None:
    with pytest.raises(EngineError, match="above 0"):
        Options("x", {"limit": value}, ("limit",)).number("limit", 1.0)


# ------------------------------------------------------------------------------------ formats


def test_sixteen_bit_formats_quantize_nothing() -> None:
    for name in ("bf16", "fp16"):
        assert vllm_quantization(catalog.precision(name)) is None
    assert dtype_of(catalog.precision("fp16")) == "float16"
    assert dtype_of(catalog.precision("fp8")) == "bfloat16"


@pytest.mark.parametrize("name", ["fp8", "int8", "w8a16", "int4", "awq-int4", "gptq-int4", "nvfp4"])
def test_a_narrow_format_names_its_method_and_leaves_the_output_matrix_alone(name: str) -> None:
    config = vllm_quantization(catalog.precision(name))
    assert config is not None
    text = str(config)
    assert config["quant_method"] in ("fp8", "compressed-tensors", "awq", "gptq")
    assert "lm_head" in text or name == "gptq-int4"  # gptq leaves it by itself


def test_a_format_that_needs_a_checkpoint_is_refused_by_name() -> None:
    with pytest.raises(EngineError, match="nf4") as refused:
        vllm_quantization(catalog.precision("nf4"))
    assert refused.value.reason is Reason.UNSUPPORTED


def test_a_format_that_was_quietly_not_applied_is_refused() -> None:
    llm, int8 = catalog.llm("Qwen/Qwen3-8B"), catalog.precision("int8")
    wide = {"weight_bytes_bfloat16": str(round(2 * llm.counted_parameters))}
    with pytest.raises(EngineError, match="int8 was asked for"):
        check_loaded(int8, llm, wide)
    rest = llm.counted_parameters - llm.backbone_parameters
    narrow = {
        "weight_bytes_bfloat16": str(round(2 * rest)),
        "weight_bytes_int8": str(round(llm.backbone_parameters)),
    }
    check_loaded(int8, llm, narrow)
    # some kernels pack weights where no tensor shows them
    check_loaded(int8, llm, {"weight_bytes_bfloat16": str(round(2 * rest))})
    check_loaded(catalog.precision("bf16"), llm, wide)


def test_experts_left_wide_are_seen_in_a_format_for_experts_alone() -> None:
    llm, mxfp4 = catalog.llm("openai/gpt-oss-20b"), catalog.precision("mxfp4")
    rest = llm.counted_parameters - llm.expert_parameters
    check_loaded(mxfp4, llm, {"weight_bytes_bfloat16": str(round(2 * rest))})
    with pytest.raises(EngineError, match="mxfp4"):
        check_loaded(mxfp4, llm, {"weight_bytes_bfloat16": str(round(2 * llm.counted_parameters))})


def test_what_ranks_loaded_is_summed() -> None:
    ranks = [
        {"bytes": {"bfloat16": 10, "int8": 5}, "quantization_methods": ["A"]},
        {"bytes": {"bfloat16": 7}, "quantization_methods": ["B", "A"]},
    ]
    assert loaded_provenance(ranks) == {
        "weight_bytes_bfloat16": "17",
        "weight_bytes_int8": "5",
        "quantization_methods": "A,B",
    }


# ------------------------------------------------------------------------------------ vLLM


def test_engine_arguments_become_flags() -> None:
    words = command_line({"dtype": "bfloat16", "a_b": 3, "yes": True, "no_x": False, "none": None})
    assert words == ["--dtype", "bfloat16", "--a-b", "3", "--yes", "--no-no-x"]
    assert command_line({"compilation_config": {"mode": 0}}) == [
        "--compilation-config",
        '{"mode": 0}',
    ]


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried", Reason.OUT_OF_MEMORY),
        ("ValueError: No available memory for the KV cache blocks", Reason.DOES_NOT_FIT),
        (
            "RuntimeError: Engine core initialization failed\nValueError: head size 12",
            Reason.UNSUPPORTED,
        ),
        ("Segmentation fault", Reason.CRASHED),
        ("", Reason.CRASHED),
    ],
)
def test_why_vllm_did_not_start_is_told_with_its_kind(log: str, reason: Reason) -> None:
    error = start_failure(log, "exit status 1")
    assert error.reason is reason
    assert "vLLM did not start" in str(error)
    assert "\n" not in str(error)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's end")
def test_a_server_ends_with_the_process_that_started_it_however_that_ends() -> None:
    code = (
        "import subprocess, time; "
        "from energylens.instrument.engines.vllm_server import end_with_parent as e; "
        "p = subprocess.Popen(['sleep', '3600'], start_new_session=True, preexec_fn=e); "
        "print(p.pid, flush=True); time.sleep(3600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        server = int(parent.stdout.readline())
        os.kill(server, 0)  # it runs
        parent.kill()
        parent.wait()
    state = Path(f"/proc/{server}/stat")
    # It sleeps for an hour by itself: the limit is for a server that outlives its parent.
    deadline = time.monotonic() + 600
    while state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] != "Z":
        if time.monotonic() > deadline:
            os.kill(server, 9)
            pytest.fail("the server outlived its parent")
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("ranks", "bundles", "executor"), [(1, 2, "uni"), (2, 2, "ray"), (2, 1, "mp"), (2, None, "mp")]
)
def test_ranks_go_through_ray_only_where_a_task_has_gpus_on_several_nodes(
    monkeypatch: pytest.MonkeyPatch, ranks: int, bundles: int | None, executor: str
) -> None:
    group = None if bundles is None else SimpleNamespace(bundle_count=bundles)
    util = SimpleNamespace(get_current_placement_group=lambda: group)
    ray = SimpleNamespace(is_initialized=lambda: True, util=util)
    monkeypatch.setitem(sys.modules, "ray", ray)
    assert default_executor(ranks) == executor
    monkeypatch.delitem(sys.modules, "ray")
    assert default_executor(ranks) == ("uni" if ranks == 1 else "mp")


@pytest.mark.parametrize(
    ("settings", "asked", "absent"),
    [
        ({}, {"enforce_eager": False, "async_scheduling": False}, "max_num_batched_tokens"),
        ({"step_tokens": 4096}, {"max_num_batched_tokens": 4096}, "enable_expert_parallel"),
        ({"data_parallel": 2, "max_sequences": 9}, {"max_num_seqs": 5}, "async_scheduling"),
        (
            {"tensor_parallel": 2, "expert_parallel": 2},
            {"enable_expert_parallel": True, "distributed_executor_backend": "mp"},
            "data_parallel_size",
        ),
        ({"options": {"compilation": '{"mode": 0}'}}, {"compilation_config": {"mode": 0}}, "x"),
        ({"options": {"arguments": '{"block_size": 32}'}}, {"block_size": 32}, "x"),
        ({"weights": "/no/such/folder"}, {"load_format": "auto"}, "skip_tokenizer_init"),
    ],
)
def test_vllm_is_given_what_the_layout_says(
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    asked: dict[str, Any],
    absent: str,
) -> None:
    """As far as the arguments go; that vLLM takes them is for the tests of the real engine."""
    given: dict[str, Any] = {}

    def capture(_: object, *arguments: Any) -> dict[str, str]:
        given.update(arguments[-1])
        raise EngineError("enough", reason=Reason.CRASHED)

    monkeypatch.setattr("importlib.util.find_spec", lambda _: True)
    monkeypatch.setattr(VllmEngine, "_load", capture)
    monkeypatch.setattr(VllmEngine, "_serve", capture)
    monkeypatch.setattr("energylens.instrument.engines.vllm_setup.runs_on_cpu", lambda: False)
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "INFO")
    monkeypatch.delenv("VLLM_ENABLE_V1_MULTIPROCESSING", raising=False)
    with pytest.raises(EngineError, match="enough"):
        VllmEngine().start(replace(layout(), **settings))
    assert given.items() >= asked.items()
    assert absent not in given
    assert not given["enable_prefix_caching"]
    # what was set for the engine is gone with it, and what the user has set stays
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in os.environ
    assert os.environ["VLLM_LOGGING_LEVEL"] == "INFO"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data_parallel": 2, "options": {"mode": "offline"}}, "drop mode=offline"),
        ({"tensor_parallel": 2, "expert_parallel": 4}, "expert_parallel must be 2"),
        ({"options": {"arguments": "[1]"}}, "JSON object"),
        ({"weights": "auto", "scaled_layers": 2}, "real weights"),
    ],
)
def test_vllm_refuses_what_it_cannot_do_before_it_loads_anything(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: True)
    with pytest.raises(EngineError, match=message) as refused:
        VllmEngine().start(replace(layout(), **settings))
    assert refused.value.reason is Reason.UNSUPPORTED


# ------------------------------------------------------------------- what a processor really has


def test_a_matrix_unit_is_tried_in_a_child_that_may_die_of_it() -> None:
    assert amx._tried("import os, signal; os.kill(os.getpid(), signal.SIGILL)") is Amx.REFUSED
    assert amx._tried("raise SystemExit(3)") is Amx.ABSENT
    assert amx._tried("") is Amx.WORKS
    assert amx.amx() in set(Amx)  # this process lives on, whatever this machine has


@pytest.mark.parametrize("state", list(Amx))
def test_vllm_is_kept_from_a_kernel_that_would_end_it(
    monkeypatch: pytest.MonkeyPatch, state: Amx
) -> None:
    monkeypatch.setattr(vllm_setup, "amx", lambda: state)
    monkeypatch.setattr(vllm_setup, "runs_on_cpu", lambda: True)
    told = vllm_setup.environment(layout(), Options("vllm", {}, OPTIONS))
    assert (amx.NO_AMX_VARIABLE in told) == (state is Amx.REFUSED)
    facts = vllm_setup.processor_facts()
    assert facts["amx"] == str(state)
    assert ("kernels" in facts) == (state is Amx.REFUSED)


def test_torch_says_that_there_is_no_amx_once_it_is_told() -> None:
    cpu = SimpleNamespace(_is_amx_tile_supported=lambda: True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch", SimpleNamespace(cpu=cpu))
        vllm_worker._forget_amx()
    assert cpu._is_amx_tile_supported() is False


class Tensor:
    def __init__(self, elements: int, dtype: str = "torch.bfloat16", size: int = 2) -> None:
        self._elements, self.dtype, self._size = elements, dtype, size

    def numel(self) -> int:
        return self._elements

    def element_size(self) -> int:
        return self._size


class Layer:
    def __init__(self, method: str, **parameters: Tensor) -> None:
        self.weights = parameters
        self.quant_method = type(method, (), {})()

    def parameters(self, **_: bool) -> list[Tensor]:
        return list(self.weights.values())

    def named_buffers(self, **_: bool) -> list[tuple[str, Tensor]]:
        return [("rotary.cos_sin_cache", Tensor(9))]


def test_weights_are_counted_before_a_kernel_packs_them_out_of_sight() -> None:
    plain = Layer("UnquantizedLinearMethod", weight=Tensor(1000))
    narrow = Layer("Fp8LinearMethod", weight=Tensor(1000))
    tied = Layer("UnquantizedEmbeddingMethod", weight=plain.weights["weight"])
    model = SimpleNamespace(
        named_modules=lambda: [("plain", plain), ("narrow", narrow), ("tied", tied)]
    )
    vllm_worker.note_loaded(model)
    assert vllm_worker.weights_of(model)["bytes"] == {"bfloat16": 4000}
    plain.weights["weight"] = tied.weights["weight"] = Tensor(0)  # packed
    narrow.weights = {"weight": Tensor(1000, "torch.float8_e4m3fn", 1)}  # made narrow
    found = vllm_worker.weights_of(model)
    assert found["bytes"] == {"bfloat16": 2000, "float8_e4m3fn": 1000}
    assert "Fp8LinearMethod" in found["quantization_methods"]
