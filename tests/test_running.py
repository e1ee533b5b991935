"""What a command line says of what runs today is taken into account, refused or named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from energylens import catalog
from energylens.answering import query
from energylens.cli import main
from energylens.decisions import Decision, Running
from energylens.errors import UsageError
from energylens.fitting import from_datasheet
from energylens.records import Configuration
from energylens.running import read_configuration, read_running
from energylens.schemas import DecisionFile

LLM = "Qwen/Qwen3-14B"


def read(line: str, llm: str = LLM, precision: str = "bf16") -> Running:
    return read_running(line, catalog.llm(llm), catalog.gpu("H100"), catalog.precision(precision))


def decided(line: str, precision: str | None = None, llm: str = LLM) -> Decision:
    question: dict[str, Any] = {
        "serve": {"llm": llm, "gpu": "H100", "precision": precision},
        "load": {"rate_per_s": 4, "input_tokens": 700, "output_tokens": 150},
        "current": {"configuration": line},
    }
    return query(DecisionFile.model_validate(question), from_datasheet()).decide(odds=False)


@pytest.mark.parametrize(
    "line",
    [
        "vllm serve Qwen/Qwen3-32B -tp 2",
        "vllm serve --port 80 Qwen/Qwen3-8B -tp 2",
        "python -m vllm.entrypoints.openai.api_server --model Qwen/Qwen3-8B-FP8",
        "python3 -m sglang.launch_server --model-path meta-llama/Llama-3.1-8B-Instruct --tp 2",
        "trtllm-serve Qwen/Qwen3-32B --tp_size 2",
        "docker run --gpus all -p 8000:8000 vllm/vllm-openai:v0.11.1 --model Qwen/Qwen3-8B",
        "vllm serve /models/Qwen3-8B --tensor-parallel-size 2",
    ],
)
def test_another_llm_is_refused(line: str) -> None:
    with pytest.raises(UsageError, match=f"and the question is about {LLM}"):
        read(line)


def test_a_name_that_no_catalog_knows_is_taken_and_said() -> None:
    for line in ("vllm serve ./w -tp 2", "sglang serve --model-path /srv/w/ --tp-size=2"):
        told = read(line, precision="fp8")
        assert told.configuration.tensor_parallel == 2
        assert told.precision == catalog.precision("fp8")
        assert f"taken for {LLM} in fp8" in told.notes[0]
    assert read("--tensor-parallel-size 2").notes == ()


@pytest.mark.parametrize(
    ("line", "precision"),
    [
        (f"vllm serve {LLM}", "bf16"),
        (f"vllm serve {LLM} --dtype auto", "bf16"),
        (f"vllm serve {LLM} --quantization fp8", "fp8"),
        (f"vllm serve {LLM}-AWQ", "awq-int4"),
        (f"vllm serve {LLM}-AWQ -q awq_marlin", "awq-int4"),
        (f"vllm serve {LLM}-FP8 --quantization compressed-tensors", "fp8-block"),
        ("vllm serve ./w --quantization=gptq_marlin", "gptq-int4"),
        ("python -m sglang.launch_server --model-path w --quantization w8a8_int8", "int8"),
    ],
)
def test_the_number_format_is_the_one_that_is_said(line: str, precision: str) -> None:
    # Whatever the question is about.
    for asked in ("bf16", "fp8"):
        told = read(line, precision=asked).precision
        assert told is not None
        assert told.id == precision


def test_what_cannot_be_taken_into_account_is_refused() -> None:
    for more, why in (
        ("--quantization compressed-tensors", "does not say in which number format"),
        ("--quantization sorcery", "is no number format"),
        ("--kv-cache-dtype fp9", "--kv-cache-dtype must be one of"),
        ("--gpu-memory-utilization 90", "above 0, up to 1"),
        ("--dtype int3", "--dtype must be"),
        ("--config serve.yaml", "names a file"),
    ):
        with pytest.raises(UsageError, match=why):
            read(f"vllm serve {LLM} {more}")


def test_options_that_cost_joules_are_named_and_harmless_ones_are_not() -> None:
    told = read(
        f"vllm serve {LLM} -tp 2 --port 80 --host 0.0.0.0 --api-key k --served-model-name a "
        "--enforce-eager --max-num-batched-tokens 2048 --trust-remote-code "
        """--speculative-config '{"method": "ngram"}' --enable-prefix-caching -O3 """
        "--max-num-seqs 24 --max-model-len 4096"
    )
    (note,) = told.notes
    assert note.endswith(
        ": --enforce-eager, --max-num-batched-tokens, --speculative-config, "
        "--enable-prefix-caching, -O3."
    )
    assert told.configuration == Configuration(tensor_parallel=2, batch_size=24)
    assert not read(f"vllm serve {LLM} -tp 2 --port 80 --disable-log-requests").notes


@pytest.mark.parametrize(
    ("line", "tp", "dp", "ep", "batch"),
    [
        ("python -m sglang.launch_server --model-path w --tp 2 --dp 3 --max-running-requests 9",
         2, 3, 1, 27),
        ("python -m sglang.launch_server --model-path w --tp-size 8 --dp-size 4 --ep-size 8 "
         "--enable-dp-attention --max-running-requests 64", 2, 4, 8, 64),
        ("trtllm-serve w --tp_size 4 --ep_size 2 --max_batch_size 32", 4, 1, 2, 32),
        ("vllm serve w -tp=2 -dp=2 --enable-expert-parallel --max-num-seqs=16", 2, 2, 4, 32),
    ],
)  # fmt: skip
def test_other_engines_say_their_layout_too(
    line: str, tp: int, dp: int, ep: int, batch: int
) -> None:
    assert read_configuration(line) == Configuration(
        tensor_parallel=tp, data_parallel=dp, expert_parallel=ep, batch_size=batch
    )


def test_another_number_format_is_compared_and_no_candidate() -> None:
    line = f"vllm serve {LLM} -tp 2 --max-num-seqs 64"
    own, other = decided(line, "fp8"), decided(f"{line} --quantization fp8", "fp8")
    assert own.current is not None
    assert other.current is not None
    assert (own.current.precision, other.current.precision) == ("bf16", "fp8")
    alike = decided(line, "bf16").current
    assert alike is not None
    assert own.current.energy_per_request_j == pytest.approx(alike.energy_per_request_j)
    assert own.current.energy_per_request_j != pytest.approx(other.current.energy_per_request_j)
    assert {entry.precision for entry in own.entries} == {"fp8"}
    assert not own.keeps
    assert any("is in bf16, and the choice in fp8" in note for note in own.notes)
    assert not other.notes
    # The same layout and limit in another format are not what runs.
    best = own.best.configuration
    same = f"vllm serve {LLM} -tp {best.tensor_parallel} -dp {best.data_parallel}"
    same += f" --max-num-seqs {int(own.best.batch_limit)}"
    assert not decided(same, "fp8").keeps
    assert decided(f"{same} -q fp8", "fp8").keeps


def test_a_smaller_share_of_memory_holds_fewer_sequences() -> None:
    line = f"vllm serve {LLM} --max-num-seqs 900"
    much, little = decided(line), decided(f"{line} --gpu-memory-utilization 0.5")
    assert much.current is not None
    assert little.current is not None
    assert little.current.saturation_rate_per_s < 0.9 * much.current.saturation_rate_per_s
    (note,) = little.notes
    assert "allows 900 sequences in a replica, and its memory holds" in note


def test_a_cache_in_another_format_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    line = f"vllm serve {LLM} -tp 2 --kv-cache-dtype fp8"
    words = ["select", "--llm", LLM, "--gpu", "H100", "--rate", "4", "--input-tokens", "700",
             "--output-tokens", "150", "--current", line]  # fmt: skip
    assert main(words) == 2
    assert "keeps its cache in 8 bits" in capsys.readouterr().err
    assert main([*words, "--kv-cache-dtype", "fp8"]) == 0
    capsys.readouterr()


def test_a_decision_file_says_the_same(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "ask.toml"
    path.write_text(
        f"""
[serve]
llm = "{LLM}"
gpu = "H100"
[load]
rate_per_s = 4
input_tokens = 700
output_tokens = 150
[current]
configuration = "vllm serve {LLM}-AWQ --enforce-eager"
"""
    )
    assert main(["select", str(path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["current"]["precision"] == "awq-int4"
    assert any("--enforce-eager" in note for note in document["notes"])


@pytest.mark.parametrize(
    "text", ["vllm serve Qwen/Qwen3-8B --config x.yaml", "vllm serve --config=x"]
)
def test_options_in_a_file_are_asked_for_by_whoever_reads_the_line(text: str) -> None:
    with pytest.raises(UsageError, match="give its options"):
        read_configuration(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("TP1 DP3 B100", "33.3 each"),
        ("TP2 DP4 B2", "0.5 each.*as in '4 x TP2 B1'"),
        ("DP2 B33", "16.5 each.*as in '2 x TP1 B16'"),
    ],
)
def test_a_limit_that_replicas_cannot_share_is_refused(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        read_configuration(text)
