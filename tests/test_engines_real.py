"""Real engines on the CPU, tiny LLMs: vLLM and transformers, and vLLM's own server.

They need the environment that ``tools/engine_env/build.py`` makes; ``make test-engines`` builds
it and runs this file there (16 minutes). Nothing is asserted about how long work takes.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import shlex
import subprocess
import sys
import threading
import time
import tomllib
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from energylens import catalog
from energylens.catalog.hf_write import config_for
from energylens.cli import main
from energylens.instrument.engine import (
    Batch,
    Capabilities,
    EngineError,
    Layout,
    Load,
    Media,
    Phase,
    Progress,
    Reason,
    Repetition,
)
from energylens.instrument.engines import open_engine
from energylens.instrument.engines.folders import write_folder
from energylens.instrument.engines.vllm_server import VllmServer
from energylens.records import (
    Attention,
    Experts,
    FeedForward,
    Llm,
    Modality,
    StateSpace,
    Vision,
)
from energylens.scraping import fetch, parse

ROOT = Path(__file__).parents[1]

# Read when torch is loaded, which is before any fixture.
os.environ.setdefault("OMP_NUM_THREADS", "1")

HAS_VLLM = importlib.util.find_spec("vllm") is not None
HAS_TRANSFORMERS = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
HAS_TORCHAO = importlib.util.find_spec("torchao") is not None
with_vllm = pytest.mark.skipif(not HAS_VLLM, reason="vLLM is not installed: make test-engines")
with_transformers = pytest.mark.skipif(
    not HAS_TRANSFORMERS, reason="torch and transformers are not installed: make test-engines"
)
pytestmark = [
    pytest.mark.slow,
    # an engine that crashes is one failed test, with its reason
    pytest.mark.own_process("torch", "transformers"),
    # what the engines themselves warn of is not ours to mend
    pytest.mark.filterwarnings("default"),
]

COUNTS = {"total_parameters": 10**7, "active_parameters": 10**7}
SHAPE = {"layers": 4, "hidden_size": 256, "vocabulary_size": 2048} | COUNTS
ATTENTION = Attention(layers=4, heads=4, kv_heads=2, head_size=64)
FEED_FORWARD = FeedForward(layers=4, size=768)
EXPERTS = Experts(layers=4, experts=4, active_experts=2, size=256)
MAMBA = StateSpace(layers=4, inner_size=512, state_size=64, heads=16)
TOWER = Vision(
    parameters=5_000_000, layers=4, hidden_size=160, patch_pixels=14, patches_per_token=4.0
)


def llm(name: str, **parts: Any) -> Llm:
    return Llm(id=name, **(SHAPE | parts))  # type: ignore[arg-type]


DENSE = llm("dense", attention=ATTENTION, feed_forward=FEED_FORWARD)
MOE = llm("moe", attention=ATTENTION, experts=EXPERTS)
SSM = llm("ssm", state_space=MAMBA)
HYBRID = llm(
    "hybrid",
    attention=replace(ATTENTION, layers=1),
    state_space=replace(MAMBA, layers=3),
    feed_forward=FEED_FORWARD,
)
VISION = llm("vision", attention=ATTENTION, feed_forward=FEED_FORWARD, vision=TOWER)
VISION_MOE = llm("vision-moe", attention=ATTENTION, experts=EXPERTS, vision=TOWER)

TEXT = Batch(requests=4, input_tokens=96, output_tokens=12)
IMAGES = replace(TEXT, media=Media(images=2, image_pixels=(84, 112)))
VIDEO = replace(TEXT, media=Media(frames=4, frame_pixels=(84, 112)))
IMAGE_TOKENS = 12  # of 84 x 112 pixels in patches of 14, four to a token
MEDIA = {Modality.IMAGE: (IMAGES, 2 * IMAGE_TOKENS), Modality.VIDEO: (VIDEO, 2 * IMAGE_TOKENS)}


@pytest.fixture(autouse=True)
def few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def start() -> Iterator[Callable[..., Any]]:
    engines = []

    def started(name: str, of: Llm, precision: str = "bf16", **settings: Any) -> Any:
        engine = open_engine(name)
        engines.append(engine)
        options = {"threads": "1"} if name == "transformers" else {}
        options |= settings.pop("options", {})
        layout = Layout(
            llm=of,
            precision=catalog.precision(precision),
            max_sequences=8,
            max_sequence_tokens=256,
            step_tokens=settings.pop("step_tokens", 2048),
            options=options,
            **settings,
        )
        facts = engine.start(layout)
        assert facts["engine_version"] != "unknown"
        return engine, facts

    yield started
    for engine in engines:
        engine.close()


def check_counts(done: Repetition, phase: Phase, batch: Batch, vision_tokens: int = 0) -> None:
    generated = {Phase.PREFILL: 1, Phase.DECODE: 11, Phase.REQUEST: 12, Phase.ENCODE: 0}[phase]
    prefilled = batch.input_tokens if phase in (Phase.PREFILL, Phase.REQUEST) else 0
    assert done.requests == batch.requests
    assert done.input_tokens == batch.requests * prefilled
    assert done.output_tokens == batch.requests * generated
    if phase is not Phase.DECODE:
        assert done.vision_tokens == batch.requests * vision_tokens


def run(engine: Any, batch: Batch, vision_tokens: int = 0) -> Repetition:
    """Run every phase that the engine has; return the whole request."""
    able: Capabilities = engine.capabilities
    phases = [
        phase
        for phase in Phase
        if phase in able.phases
        and (phase is not Phase.ENCODE or batch.media.modality is not Modality.TEXT)
    ]
    engine.prepare(batch, phases)
    boundaries: list[bool] = []
    for repetition, phase in enumerate(phases):
        if phase is Phase.REQUEST:
            whole = engine.run_phase(phase, batch, repetition, lambda: boundaries.append(True))
            check_counts(whole, phase, batch, vision_tokens)
        else:
            check_counts(engine.run_phase(phase, batch, repetition), phase, batch, vision_tokens)
    assert len(boundaries) == (1 if able.splits_requests else 0)
    if able.splits_requests:
        total = max(timing.latency_s for timing in whole.timings)
        assert whole.prefill_s + whole.decode_s == pytest.approx(total, rel=0.01)
    return whole


def check_steady(engine: Any) -> None:
    load = Load(concurrency=5, input_tokens=40, output_tokens=10)
    seen: list[Progress] = []
    with closing(engine.steady(load)) as stream:
        for progress in itertools.islice(stream, 2000):
            seen.append(progress)
            if progress.completed_requests >= 15:
                break
    assert seen[-1].completed_requests >= 15
    assert max(progress.running_requests for progress in seen) == 5
    ended = [timing for progress in seen for timing in progress.finished]
    assert seen[-1].output_tokens >= sum(timing.output_tokens for timing in ended)


# ---------------------------------------------------------------------------- transformers


@with_transformers
@pytest.mark.parametrize("of", [DENSE, MOE, SSM, HYBRID, VISION, VISION_MOE], ids=lambda x: x.id)
def test_transformers_runs_every_family_phase_by_phase(start: Callable[..., Any], of: Llm) -> None:
    engine, facts = start("transformers", of, step_tokens=200)  # two requests to a prefill pass
    whole = run(engine, TEXT)
    assert whole.steps == 2 + 11
    assert facts["weights"] == "dummy normal 0.02"
    loaded = int(facts["weight_bytes_bfloat16"])
    assert loaded == pytest.approx(2 * of.counted_parameters, rel=0.02)


@with_transformers
@pytest.mark.parametrize("modality", list(MEDIA))
@pytest.mark.parametrize("of", [VISION, VISION_MOE], ids=lambda x: x.id)
def test_transformers_encodes_images_and_videos(
    start: Callable[..., Any], of: Llm, modality: Modality
) -> None:
    engine, _ = start("transformers", of)
    batch, tokens = MEDIA[modality]
    run(engine, batch, tokens)


@with_transformers
@pytest.mark.skipif(not HAS_TORCHAO, reason="torchao is not installed: make test-engines")
@pytest.mark.parametrize("precision", ["int8", "w8a16", "nf4", "fp16"])
def test_transformers_holds_the_format_that_was_asked_for(
    start: Callable[..., Any], precision: str
) -> None:
    engine, facts = start("transformers", DENSE, precision)
    run(engine, TEXT)
    narrow = {"int8": "int8", "w8a16": "int8", "nf4": "uint8", "fp16": "float16"}[precision]
    assert int(facts[f"weight_bytes_{narrow}"]) > 1_000_000


@with_transformers
def test_transformers_refuses_formats_that_would_be_names_only(start: Callable[..., Any]) -> None:
    with pytest.raises(EngineError, match="experts") as refused:
        start("transformers", MOE, "int8")
    assert refused.value.reason is Reason.UNSUPPORTED
    with pytest.raises(EngineError) as refused:
        start("transformers", DENSE, "fp8")  # no such unit in a CPU
    assert refused.value.reason is Reason.UNSUPPORTED


@with_transformers
def test_transformers_prefills_the_cache_that_it_decodes_from(start: Callable[..., Any]) -> None:
    """What a decode step reads is what prefill left: the same prompt gives the same cache."""
    import torch

    engine, _ = start("transformers", DENSE, step_tokens=100)  # one request to a pass
    engine.prepare(TEXT, [Phase.REQUEST])

    def keys(repetition: int) -> torch.Tensor:
        engine.run_phase(Phase.PREFILL, TEXT, repetition)
        layer = engine._prepared.cache.layers[1]
        return layer.keys[:, :, : TEXT.input_tokens].clone()

    first, second, again = keys(1), keys(2), keys(1)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    # as wide as the mean context, not as the longest
    assert engine._prepared.cache.layers[1].keys.shape[2] == 96 + 6


@with_transformers
def test_transformers_refuses_what_it_is_not_made_for(start: Callable[..., Any]) -> None:
    with pytest.raises(EngineError, match="one GPU"):
        start("transformers", DENSE, tensor_parallel=2)
    engine, _ = start("transformers", DENSE)
    with pytest.raises(EngineError, match="continuous batching"):
        next(iter(engine.steady(Load(concurrency=1, input_tokens=8, output_tokens=2))))
    with pytest.raises(EngineError, match="llama") as refused:
        engine.prepare(IMAGES, [Phase.PREFILL])
    assert refused.value.usable


@with_transformers
def test_an_llm_that_cannot_be_captured_runs_without_a_graph_and_says_so(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _ = start("transformers", DENSE)
    replayed: list[int] = []
    monkeypatch.setattr(engine, "_graphs", True)
    monkeypatch.setattr(engine, "_capture", lambda _: lambda: replayed.append(1))
    assert engine._probed_graphs() == "true"
    run(engine, TEXT)
    assert len(replayed) == 2 * 11  # a decode phase and that of a whole request

    def refused(_: object) -> None:
        raise EngineError("it synchronizes", reason=Reason.UNSUPPORTED)

    monkeypatch.setattr(engine, "_capture", refused)
    assert engine._probed_graphs() == "false (it synchronizes)"
    run(engine, TEXT)


@with_transformers
def test_a_catalog_llm_runs_cut_down_and_as_a_shard(start: Callable[..., Any]) -> None:
    small = catalog.llm("Qwen/Qwen3-0.6B")
    engine, facts = start("transformers", small, scaled_layers=2)
    run(engine, replace(TEXT, requests=1))
    whole = int(facts["weight_bytes_bfloat16"])
    engine.close()
    engine, facts = start("transformers", small, scaled_layers=2, shard=(2, 1))
    run(engine, replace(TEXT, requests=1))
    assert int(facts["weight_bytes_bfloat16"]) == pytest.approx(whole / 2, rel=0.01)


# ------------------------------------------------------------------------------------- vLLM


@with_vllm
@pytest.mark.parametrize("of", [DENSE, MOE, SSM, HYBRID], ids=lambda x: x.id)
def test_vllm_serves_every_family_with_exact_phases(start: Callable[..., Any], of: Llm) -> None:
    engine, facts = start("vllm", of)
    whole = run(engine, TEXT)
    assert whole.steps == 1 + 11
    assert len({timing.ttft_s for timing in whole.timings}) == 1
    assert all(len(timing.token_times_s) == 12 for timing in whole.timings)
    loaded = int(facts["weight_bytes_bfloat16"])
    assert loaded == pytest.approx(2 * of.counted_parameters, rel=0.05)
    check_steady(engine)


@with_vllm
def test_vllm_claims_no_boundary_where_prefill_and_decode_overlap(
    start: Callable[..., Any],
) -> None:
    engine, _ = start("vllm", DENSE, step_tokens=128)  # the prompts of 4 requests need 3 steps
    engine.prepare(TEXT, [Phase.REQUEST])
    done = engine.run_phase(Phase.REQUEST, TEXT, 0, lambda: pytest.fail("no boundary"))
    assert done.prefill_s is None
    assert done.output_tokens == 48
    with pytest.raises(EngineError) as refused:
        engine.prepare(replace(TEXT, requests=9), [])
    assert refused.value.reason is Reason.DOES_NOT_FIT
    assert refused.value.usable


@with_vllm
@pytest.mark.parametrize("degrees", [(2, 1), (1, 2)], ids=["TP2", "PP2"])
def test_vllm_spreads_an_llm_over_processes(
    start: Callable[..., Any], degrees: tuple[int, int]
) -> None:
    tensor, pipeline = degrees
    engine, facts = start("vllm", DENSE, tensor_parallel=tensor, pipeline_parallel=pipeline)
    run(engine, TEXT)
    assert int(facts["weight_bytes_bfloat16"]) == pytest.approx(
        2 * DENSE.counted_parameters, rel=0.05
    )


@with_vllm
@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_vllm_reads_the_command_line_that_a_decision_prints(
    precision: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    llm = "Qwen/Qwen3-30B-A3B"
    asked = ["select", "--llm", llm, "--gpu", "H100", "--precision", precision, "--rate", "20"]
    asked += ["--input-tokens", "2000", "--output-tokens", "300", "--max-gpus", "8"]
    assert main([*asked, "--json"]) == 0
    best = json.loads(capsys.readouterr().out)["configurations"][0]
    assert main([*asked, "--emit", "vllm"]) == 0
    words = shlex.split(capsys.readouterr().out.replace("\\\n", " "))
    assert words[:2] == ["vllm", "serve"]
    read = make_arg_parser(FlexibleArgumentParser()).parse_args(words[2:])
    assert (read.model_tag, read.quantization) == (llm, "fp8" if precision == "fp8" else None)
    for name in ("tensor_parallel", "pipeline_parallel", "data_parallel"):
        assert getattr(read, f"{name}_size") == best[name]
    assert read.max_num_seqs == int(best["batch_limit_per_replica"])


@with_vllm
def test_vllm_takes_images_and_videos(start: Callable[..., Any]) -> None:
    engine, _ = start("vllm", VISION)
    run(engine, TEXT)
    for batch, tokens in MEDIA.values():
        run(engine, batch, tokens)


@with_vllm
def test_vllm_runs_a_narrow_format_or_says_that_it_cannot(start: Callable[..., Any]) -> None:
    engine, facts = start("vllm", DENSE, "int8")
    run(engine, TEXT)
    assert "Int8" in facts["quantization_methods"]
    engine.close()
    with pytest.raises(EngineError, match="nf4"):
        start("vllm", DENSE, "nf4")


@with_vllm
def test_a_server_that_energylens_starts_serves_text_images_and_videos(
    start: Callable[..., Any],
) -> None:
    engine, facts = start("vllm", VISION, options={"mode": "server"})
    assert facts["mode"] == "server"
    assert int(facts["weight_bytes_bfloat16"]) > 0
    assert engine.capabilities.local
    whole = run(engine, TEXT)
    assert all(timing.ttft_s for timing in whole.timings)
    for batch, tokens in MEDIA.values():
        run(engine, batch, tokens)
    check_steady(engine)
    for options in ({"prompts": "text"}, {"api": "chat"}):  # as a server without token ids
        client, _ = start("openai", VISION, options={"url": engine._server.url} | options)
        run(client, TEXT)


@with_vllm
def test_the_openai_engine_is_exact_against_a_server_given_by_url(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    folder = write_folder(config_for(DENSE).config, tmp_path)
    arguments = {
        "model": str(folder),
        "served_model_name": "tiny",
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "enforce_eager": True,
        "max_model_len": 256,
        "max_num_seqs": 8,
        "dtype": "bfloat16",
    }
    environment = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    with closing(VllmServer(arguments, os.environ | environment, 600.0)) as server:
        engine, facts = start("openai", DENSE, options={"url": server.url})
        assert facts["served_llm"] == "tiny"
        assert facts["prompts"] == "token ids"
        assert not engine.capabilities.local
        run(engine, TEXT)
        check_steady(engine)
        with pytest.raises(EngineError, match="maximum") as refused:
            engine.prepare(replace(TEXT, input_tokens=500), [])
        assert refused.value.usable


# ------------------------------------------------------------- watched while it serves


@with_vllm
def test_a_server_is_watched_from_outside_and_shows_the_joules_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Real engine, estimated joules: nothing is asserted about how many there are.
    pytest.importorskip("prometheus_client")
    folder = write_folder(config_for(DENSE).config, tmp_path / "tiny-llm")
    if "energylens" not in {p.name for p in entry_points(group="vllm.stat_logger_plugins")}:
        made = tmp_path / "plugin" / "energylens_plugin-0.dist-info"
        made.mkdir(parents=True)
        made.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: x\nVersion: 0\n")
        plugins = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
        [[name, target]] = plugins["vllm.stat_logger_plugins"].items()
        made.joinpath("entry_points.txt").write_text(
            f"[vllm.stat_logger_plugins]\n{name} = {target}\n"
        )
        paths = (str(made.parent), os.environ.get("PYTHONPATH", ""))
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    arguments = {
        "model": str(folder),
        "served_model_name": "tiny",
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "enforce_eager": True,
        "max_model_len": 256,
        "max_num_seqs": 8,
        "dtype": "bfloat16",
        "enable_mfu_metrics": True,
        "enable_prefix_caching": False,
    }
    environment = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "ENERGYLENS_WATCH": "1",
        "ENERGYLENS_WATCH_METER": "estimated",
        "ENERGYLENS_WATCH_MODEL": "datasheet",
        "ENERGYLENS_WATCH_GPU": "EPYC-7763",
        "ENERGYLENS_WATCH_WINDOW": "1",
        "ENERGYLENS_WATCH_POLL": "0.1",
    }
    with closing(VllmServer(arguments, os.environ | environment, 600.0)) as server:
        prompt = {"model": "tiny", "prompt": [7] * 60, "max_tokens": 12, "min_tokens": 12}
        prompt |= {"ignore_eos": True, "detokenize": False, "return_token_ids": True}
        stop = threading.Event()

        def keep_asking() -> None:
            while not stop.is_set():
                request = urllib.request.Request(
                    f"{server.url}/v1/completions",
                    json.dumps(prompt).encode(),
                    {"content-type": "application/json"},
                )
                with urllib.request.urlopen(request, timeout=60) as answer:
                    answer.read()

        asking = threading.Thread(target=keep_asking)
        asking.start()
        try:
            code = main(
                [
                    *("watch", "datasheet", "--engine", server.url, "--meter", "estimated"),
                    *("--llm", str(folder), "--gpu", "EPYC-7763", "--current", "B8", "--json"),
                    *("--window", "2", "--poll", "0.2", "--windows", "3"),
                ]
            )
            assert code == 0
            told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
            text = fetch(f"{server.url}/metrics")
            while "energylens_energy_per_output_token_joules" not in text:
                time.sleep(0.2)
                text = fetch(f"{server.url}/metrics")
        finally:
            stop.set()
            asking.join()
        for window in told:
            assert window["problem"] is None, window
            assert window["source"] == "estimated"
            assert window["output_tokens"] == pytest.approx(12 * window["requests"], abs=12)
            assert window["energy_per_output_token_j"] > 0
            assert window["expected_energy_per_output_token_j"] > 0
        # vLLM reckons the operations and bytes of its own steps: ours of its tokens are alike.
        assert [w["expected_basis"] for w in told] == ["engine work"] * 3
        for window in told:
            flop, moved = window["work_ratio"]
            assert flop == pytest.approx(1.0, rel=0.25)
            assert moved == pytest.approx(1.0, rel=0.25)
        shown = {s.name: s for s in parse(text, ("energylens_", "gen_ai_"))}
        for name in ("energylens_power_watts", "gen_ai_infrastructure_energy_joules_total"):
            assert shown[name].value > 0
            assert shown[name].labels["source"] == "estimated"
        assert shown["energylens_expected_energy_per_request_joules"].value > 0
        assert shown["energylens_watch_info"].labels["llm"] == Path(folder).name
        assert "vllm:generation_tokens_total" in text


# ------------------------------------------------------------------ from a plan to a choice


CASES = (
    *("--gpu", "EPYC-7763", "--gpus", "2", "--batch-sizes", "1,4", "--input-tokens", "64"),
    *("--output-tokens", "8", "--quick"),
)


def sweep(folder: Path, of: Llm, *arguments: str) -> list[dict[str, Any]]:
    """Plan and measure as a user does, into one table; return its rows."""
    checkpoint = write_folder(config_for(of).config, folder)
    plan, table = str(folder / "plan.jsonl"), folder / "runs.jsonl"
    made = ["plan", "--llm", str(checkpoint), *CASES, *arguments, "-o", plan]
    assert main(made) == 0
    assert main(["measure", plan, "-o", str(table), "--meter", "estimated"]) == 0
    records = table.with_suffix(".records.jsonl").read_text().splitlines()
    failed = [r for r in map(json.loads, records) if r.get("reason")]
    assert not failed
    return [json.loads(line) for line in table.read_text().splitlines()]


def choose(
    folder: Path, rows: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> dict[str, Any]:
    """Fit the rows and rank the configurations of their LLM; return what select says."""
    model = str(folder / "model.json")
    assert main(["fit", str(folder / "runs.jsonl"), "-o", model]) == 0
    capsys.readouterr()
    asked = ["select", model, "--llm", rows[0]["llm"], "--gpu", "EPYC-7763", "--max-gpus", "2"]
    asked += ["--input-tokens", "64", "--output-tokens", "8", "--json"]
    asked += ["--choose", "parallelism,batch_size", "--batch-sizes", "1,4"]
    assert main(asked) == 0
    ranked: dict[str, Any] = json.loads(capsys.readouterr().out)
    return ranked


@with_vllm
@pytest.mark.parametrize(
    ("of", "precisions"), [(DENSE, "bf16,int8"), (MOE, "bf16")], ids=["dense", "moe"]
)
def test_a_plan_is_measured_on_vllm_fitted_and_chosen_from(
    of: Llm,
    precisions: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ENERGYLENS_HOME", str(tmp_path / "home"))
    layouts = ("--tensor-parallel", "1,2", "--pipeline-parallel", "1,2")
    rows = sweep(tmp_path, of, "--engine", "vllm", "--precision", precisions, *layouts)
    seen = {(r["precision"], r["tensor_parallel"], r["pipeline_parallel"]) for r in rows}
    assert seen == {
        (precision, tensor, pipeline)
        for precision in precisions.split(",")
        for tensor, pipeline in ((1, 1), (2, 1), (1, 2))
    }
    assert len({r["x_case"] for r in rows}) == len(rows) == 2 * len(seen)
    for row in rows:
        assert row["source"] == "estimated"
        assert row["engine"] == "vllm"
        assert row["energy_per_request_j"] > 0
    assert choose(tmp_path, rows, capsys)["feasible"] >= 2 * 3


@with_vllm
def test_a_plan_is_measured_on_a_server_that_energylens_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENERGYLENS_HOME", str(tmp_path / "home"))
    rows = sweep(tmp_path, DENSE, "--engine", "vllm", "--option", "mode=server")
    assert len(rows) == 2
    assert all(row["ttft_s"] > 0 for row in rows)
    assert choose(tmp_path, rows, capsys)["ranking"]


@with_transformers
def test_a_plan_is_measured_on_transformers_fitted_and_chosen_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENERGYLENS_HOME", str(tmp_path / "home"))
    rows = sweep(tmp_path, DENSE, "--engine", "transformers")
    assert {row["x_decode_method"] for row in rows} == {"windows"}
    assert choose(tmp_path, rows, capsys)["ranking"]


@with_transformers
def test_a_campaign_on_a_cpu_engine_ends_in_an_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENERGYLENS_HOME", str(tmp_path / "home"))
    checkpoint = write_folder(config_for(DENSE).config, tmp_path / "llm")
    asked = ["campaign", "--minutes", "2", "--llm", str(checkpoint), "--engine", "transformers"]
    asked += ["--gpu", "EPYC-7763", "--gpus", "1", "--meter", "estimated", "--quick"]
    asked += ["--input-tokens", "32", "--output-tokens", "8", "--batch-sizes", "1,4"]
    asked += ["-o", str(tmp_path / "node"), "--json"]
    assert main(asked) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["rows"] >= 3
    assert answer["sources"] == ["estimated"]
    records = (tmp_path / "node" / "runs.records.jsonl").read_text().splitlines()
    cases = [r["case"] for r in map(json.loads, records) if r.get("status") == "measured"]
    assert len(set(cases)) == len(cases) == answer["rows"]


@with_transformers
def test_a_campaign_on_a_cpu_engine_killed_twice_has_every_case_once_and_an_answer(
    tmp_path: Path,
) -> None:
    checkpoint = write_folder(config_for(DENSE).config, tmp_path / "llm")
    folder = tmp_path / "node"
    command = [sys.executable, "-m", "energylens", "campaign", "--minutes", "5"]
    command += ["--llm", str(checkpoint), "--engine", "transformers", "--gpu", "EPYC-7763"]
    command += ["--gpus", "1", "--meter", "estimated", "--quick", "--input-tokens", "32"]
    command += ["--output-tokens", "8", "--batch-sizes", "1,4", "-o", str(folder), "--json"]
    environment = os.environ | {"ENERGYLENS_HOME": str(tmp_path / "home")}

    def measured() -> list[str]:
        records = folder / "runs.records.jsonl"
        lines = records.read_text().splitlines() if records.exists() else []
        whole = [json.loads(line) for line in lines if line.endswith("}")]
        return [record["case"] for record in whole if record.get("status") == "measured"]

    for rows in (1, 2):
        running = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        while len(measured()) < rows:
            assert running.poll() is None, running.communicate()
            time.sleep(0.05)
        before = measured()
        running.kill()
        running.communicate()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    cases = measured()
    assert cases[: len(before)] == before  # nothing that was measured is lost
    assert len(set(cases)) == len(cases) == answer["rows"] >= 3
    assert answer["sources"] == ["estimated"]


@with_transformers
def test_a_choice_is_verified_on_a_cpu_engine_with_its_batch_kept_full(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENERGYLENS_HOME", str(tmp_path / "home"))
    checkpoint = write_folder(config_for(DENSE).config, tmp_path / "llm")
    folder = tmp_path / "node"
    asked = ["verify", "--llm", str(checkpoint), "--gpu", "EPYC-7763", "--max-gpus", "1"]
    asked += ["--input-tokens", "32", "--output-tokens", "8", "--choose", "batch_size"]
    asked += ["--batch-sizes", "1,2,4", "--latency", "1min", "--measure", "transformers"]
    asked += ["--meter", "estimated", "--quick", "-o", str(folder), "--json"]
    assert main(asked) == 0
    document = json.loads(capsys.readouterr().out)
    rows = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
    assert 1 <= document["runs"] == len(rows) <= 3
    assert document["meets"] is True
    assert document["answer_source"] == "estimated"
    assert document["answer_energy_per_request_j"] == min(r["energy_per_request_j"] for r in rows)
    assert main(asked) == 0  # nothing is measured twice
    assert json.loads(capsys.readouterr().out) == document
