"""What runs today is read as its words mean, and what is written to run would start."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from energylens import catalog, packaged
from energylens.capacity import largest_batch
from energylens.cli import main
from energylens.deciding import decide
from energylens.decisions import Decision, Load
from energylens.deploying import emit
from energylens.errors import UsageError
from energylens.records import Configuration, Workload
from energylens.running import read_configuration
from energylens.scenarios import Candidates, Scenario
from energylens.service import Lengths
from energylens.solving import Engine
from energylens.words import Note, notes_in_order

LARGE = "meta-llama/Llama-3.3-70B-Instruct"
ASKED = ["select", "--gpu", "H100", "--input-tokens", "900", "--output-tokens", "200", "--llm"]


@cache
def chosen(llm: str, precision: str, rate: float, gpus: int, replicas: int = 1) -> Decision:
    scenario = Scenario(
        llm=catalog.llm(llm),
        gpu=catalog.gpu("H100"),
        precision=catalog.precision(precision),
        workload=Workload(input_tokens=900, output_tokens=200),
        max_gpus=gpus,
    )
    load = Load(rate_per_s=rate, lengths=Lengths(input_tokens=900, output_tokens=200))
    model = packaged.for_gpu("H100-SXM-80GB")[0].model()
    return decide(Engine(model), scenario, load, candidates=Candidates(data_parallel=(replicas,)))


def option(text: str, name: str) -> int | None:
    found = re.search(rf"{name} (\d+)", text)
    return None if found is None else int(found[1])


@pytest.mark.parametrize(
    ("text", "degrees", "batch"),
    [
        ("3 x TP2 B40", {"tensor_parallel": 2, "data_parallel": 3}, 120),
        ("3 x TP2, batch limit 40", {"tensor_parallel": 2, "data_parallel": 3}, 120),
        ("TP2 DP3 B120", {"tensor_parallel": 2, "data_parallel": 3}, 120),
        ("5x TP1 PP2 B8", {"pipeline_parallel": 2, "data_parallel": 5}, 40),
        ("3 x TP2", {"tensor_parallel": 2, "data_parallel": 3}, 3 * 256),
    ],
)
def test_a_limit_behind_a_number_of_replicas_is_that_of_one(
    text: str, degrees: dict[str, int], batch: int
) -> None:
    assert read_configuration(text) == Configuration(**degrees, batch_size=float(batch))


@pytest.mark.parametrize("wrong", ["3 x", "x TP2", "0 x TP2 B4", "3 x TP2 DP2 B8", "3 x 4 x TP2"])
def test_refuses_what_is_no_number_of_replicas(wrong: str) -> None:
    with pytest.raises(UsageError, match="--current must be"):
        read_configuration(wrong)


@pytest.mark.parametrize(
    ("gpu", "sequences"),
    [("H200", 1024), ("B200", 1024), ("MI300X", 1024), ("A100", 256), ("L40S", 256)],
)
def test_what_says_no_limit_has_the_one_of_the_engine_on_that_gpu(gpu: str, sequences: int) -> None:
    line = "vllm serve m --tensor-parallel-size 2 --data-parallel-size 2"
    for text in (line, "TP2 DP2"):
        assert read_configuration(text, catalog.gpu(gpu)).batch_size == 2 * sequences
    told = read_configuration(f"{line} --max-num-seqs 8", catalog.gpu(gpu))
    assert told.batch_size == 16


@pytest.mark.parametrize(
    ("llm", "gpus"),
    [
        ("mistralai/Mistral-Small-24B-Instruct-2501", 8),
        ("Qwen/Qwen2.5-32B-Instruct", 1),
        ("Qwen/Qwen3-32B", 8),
    ],
)
def test_a_cache_shorter_than_the_context_is_said(llm: str, gpus: int) -> None:
    best = chosen(llm, "bf16", 0.4, gpus).best
    best = replace(best, configuration=replace(best.configuration, tensor_parallel=gpus))
    text = emit("vllm", llm, best)
    context, said = catalog.context_tokens(llm), option(text, "--max-model-len")
    c = best.configuration
    held = largest_batch(
        catalog.llm(llm), catalog.gpu("H100"), catalog.precision("bf16"),
        tensor_parallel=c.tensor_parallel, input_tokens=float(said or context), output_tokens=1.0,
        batch_size=float(int(best.batch_limit)),
    )  # fmt: skip
    assert held >= 1.0
    assert (said is None) is (gpus == 8)
    assert said is None or said < context
    assert option(emit("kubernetes", llm, best).replace('", "', " "), "--max-model-len") == said
    # More memory for the cache holds a longer one.
    more = emit("vllm", llm, best, gpu=replace(catalog.gpu("H100"), memory_share_ratio=0.95))
    assert "--gpu-memory-utilization 0.95" in more
    if said is not None:
        assert (option(more, "--max-model-len") or context) > said


def test_limits_of_sglang_are_of_a_replica_but_with_attention_in_data_parallel() -> None:
    best = chosen("Qwen/Qwen3-30B-A3B", "bf16", 3.0, 8, 2).best
    limit = int(best.batch_limit)
    tp = best.configuration.tensor_parallel
    text = emit("sglang", "Qwen/Qwen3-30B-A3B", best)
    assert option(text, "--max-running-requests") == limit
    assert option(text, "--dp-size") == 2
    spread = replace(best, configuration=replace(best.configuration, expert_parallel=2 * tp))
    text = emit("sglang", "Qwen/Qwen3-30B-A3B", spread)
    assert "--enable-dp-attention" in text
    assert option(text, "--max-running-requests") == 2 * limit
    assert option(text, "--tp-size") == 2 * tp


def test_replicas_beyond_a_node_are_servers_of_their_own() -> None:
    best = chosen("Qwen/Qwen3-32B", "bf16", 60.0, 40, 11).best
    for kind in ("vllm", "sglang", "trtllm", "compose"):
        text = emit(kind, "Qwen/Qwen3-32B", best)
        assert text.startswith("# 11 of these")
        assert not re.search(r"--(data-parallel|dp)-size", text)


def test_a_manifest_has_all_that_a_pod_needs() -> None:
    yaml = pytest.importorskip("yaml")
    best = chosen("Qwen/Qwen3-32B", "bf16", 6.0, 8, 2).best
    claim, deployment = yaml.safe_load_all(emit("kubernetes", "Qwen/Qwen3-32B", best))
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    mounted = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    volumes = {each["name"]: each for each in pod["volumes"]}
    assert mounted.keys() == volumes.keys()
    assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
    assert mounted["shm"] == "/dev/shm"
    assert volumes["weights"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    weights_gib = catalog.llm("Qwen/Qwen3-32B").total_parameters * 2 / 2**30
    assert int(claim["spec"]["resources"]["requests"]["storage"][:-2]) > weights_gib
    (token,) = container["env"]
    assert token["valueFrom"]["secretKeyRef"]["optional"] is True
    assert container["readinessProbe"]["httpGet"] == {"path": "/health", "port": 8000}
    assert deployment["spec"]["replicas"] == 2
    service = yaml.safe_load(emit("compose", "Qwen/Qwen3-32B", best))
    assert service["volumes"].keys() == {"weights"}


# ------------------------------------------------------------------------ against what runs today


def said(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    assert main([*ASKED, *words]) == code
    done = capsys.readouterr()
    return " ".join((done.out + done.err).split())


def test_no_saving_is_counted_against_what_does_not_keep_up(
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = ("Qwen/Qwen3-32B", "--rate", "9", "--current", "1 x TP2 B12")
    text = said(capsys, *asked)
    assert re.search(r"Today TP2, batch limit 12,? does not keep up", text)
    assert "The choice takes" not in text
    assert main([*ASKED, *asked, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert all(each["saving_ratio"] is None for each in document["configurations"])
    assert document["month"].keys() == {"best"}
    assert "does not keep up" in said(capsys, *asked, "--check", "10", code=1)


def test_no_saving_is_counted_against_what_breaks_limits(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = said(
        capsys, "Qwen/Qwen3-32B", "--rate", "6", "--tpot", "24ms", "--current", "2 x TP1 B40"
    )
    assert re.search(r"Today 2 x TP1.*it meets the limits with \d+ % only", text)
    assert "The choice takes" not in text


def test_what_runs_today_is_kept_where_nothing_takes_less(
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = ("Qwen/Qwen3-14B", "--rate", "4")
    assert main([*ASKED, *asked, "--json"]) == 0
    best = json.loads(capsys.readouterr().out)["configurations"][0]
    today = f"{best['data_parallel']} x TP{best['tensor_parallel']} PP{best['pipeline_parallel']} "
    text = said(
        capsys,
        *asked,
        "--current",
        f"{today} B{best['batch_limit_per_replica']:.0f}".replace("  ", " "),
    )
    assert "Keep what you run" in text
    assert "The choice takes" not in text


def test_a_month_of_the_choice_is_said_without_another(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = said(capsys, "Qwen/Qwen3-8B", "--rate", "4")
    watts = float(re.search(r"(\d+) W", text)[1])  # type: ignore[index]
    kwh = float(re.search(r"at this rate: (\d+) kWh", text)[1])  # type: ignore[index]
    assert kwh == pytest.approx(watts * 1.56 * 0.73, rel=0.01)
    day = tmp_path / "day.csv"
    day.write_text("hour,rate_per_s\n0,1\n1,2\n2,4\n")
    calm = said(capsys, "Qwen/Qwen3-8B", "--rate", "4", "--profile", str(day))
    assert "the day of the profile" in calm
    assert float(re.search(r"month.*?: (\d+) kWh", calm)[1]) < kwh  # type: ignore[index]


@pytest.mark.parametrize(
    "words",
    [
        ("--current", f"vllm serve {LARGE} -tp 2 --gpu-memory-utilization 0.98"),
        ("--kv-cache-dtype", "fp8", "--current", "TP2 B64"),
    ],
)
def test_a_day_at_the_rate_asked_is_the_month_at_that_rate(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Cache format and memory share, of the question or of what runs today, are not forgotten."""
    day = tmp_path / "day.csv"
    day.write_text("hour,rate_per_s\n0,0.6\n1,0.6\n")
    months = []
    for more in ((), ("--profile", str(day))):
        assert main([*ASKED, LARGE, "--rate", "0.6", *words, *more, "--json"]) == 0
        months.append(json.loads(capsys.readouterr().out)["month"])
    assert set(months[0]) == {"best", "current"}
    for name, month in months[0].items():
        assert months[1][name]["kwh_per_month"] == pytest.approx(month["kwh_per_month"], rel=1e-6)


def test_a_profile_beyond_the_rate_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    day = tmp_path / "day.csv"
    day.write_text("hour,rate_per_s\n0,1\n1,17.5\n")
    text = said(capsys, "Qwen/Qwen3-8B", "--rate", "4", "--profile", str(day), code=1)
    assert "give --rate 17.5" in text


def test_rent_and_price_contradict_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--rate", "4", "--price", "0.2", "--gpu-hour", "2")
    assert "--price has no effect beside --gpu-hour" in said(
        capsys, "Qwen/Qwen3-8B", *words, code=2
    )


CROWDED = ("--meet", "0.95", "--ttft", "1s", "--tpot", "50ms", "--current", "TP4 DP2 B96")


@pytest.mark.parametrize(
    ("words", "first", "others"),
    [
        (("Qwen/Qwen3-32B", "--gpu", "B200", *CROWDED), "of B200: ", ("H100",)),
        (
            ("deepseek-ai/DeepSeek-R1", "--gpu", "H200", "--max-gpus", "16", "--ttft", "1s"),
            "has the LLM deepseek-ai/DeepSeek-R1",
            ("of H200",),
        ),
        (("Qwen/Qwen3-32B", "--clock-mhz", "1300", *CROWDED), "locked clock", ("physics alone",)),
        (
            ("Qwen/Qwen3-14B", "--power-cap-w", "450", "--engine", "sglang", *CROWDED),
            "sglang",
            ("has a power cap",),
        ),
        (
            ("Qwen/Qwen3-32B", "--gpu", "H200", "--clock-mhz", "1300", "--engine", "sglang",
             "--precision", "fp8", *CROWDED),
            "No row",
            ("H200", "sglang", "clock: what one does is physics alone"),
        ),
    ],
)  # fmt: skip
def test_what_no_row_is_of_is_said_before_all_else(
    words: tuple[str, ...],
    first: str,
    others: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = [*ASKED, *words, "--rate", "3"]
    assert main(text) == 0
    said = capsys.readouterr().out
    assert len(said.splitlines()) <= 24
    notes = " ".join(said.partition("Note: ")[2].split()).split("Note: ")
    assert first in notes[0]
    for other in others:
        assert any(other in note for note in notes)
    shared = [i for i, note in enumerate(notes) if note.startswith(("Prompt", "Money"))]
    assert all(i > len(notes) - 3 - len(shared) for i in shared)
    assert main([*text, "--json"]) == 0
    kept = json.loads(capsys.readouterr().out)["notes"]
    assert kept[-1].startswith("Money")
    assert kept[-2].startswith("Prompt lengths")


def test_a_model_that_is_named_says_which_gpu_it_has_no_row_of(
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = ["select", "a100-vllm-0.5", *ASKED[1:], "meta-llama/Llama-3.1-8B-Instruct"]
    assert main([*asked, "--rate", "1"]) == 0
    assert "No row is of H100-SXM-80GB" in " ".join(capsys.readouterr().out.split())


def test_notes_are_sorted_by_what_they_do_to_an_answer() -> None:
    notes = [
        Note("money", rank=Note.MONEY), "anything", Note("of no row", rank=Note.UNSEEN, brief="no")
    ]  # fmt: skip
    kept = notes_in_order(notes)
    assert kept == ["of no row", "anything", "money"]
    assert [note.brief for note in kept] == ["no", "anything", "money"]
    assert copy.deepcopy(kept[0]).rank == Note.UNSEEN


def test_under_a_cap_no_gpu_draws_more_than_it(capsys: pytest.CaptureFixture[str]) -> None:
    words: tuple[Any, ...] = ("Qwen/Qwen3-32B", "--rate", "5")
    caps = (
        "--choose",
        "tensor_parallel,data_parallel,batch_size,power_cap",
        "--power-caps",
        "350,550",
    )
    assert main([*ASKED, *words, *caps, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {each["power_cap_w"] for each in document["configurations"]} == {350.0, 550.0}
    for each in document["configurations"]:
        assert each["power_w"] <= each["gpus"] * each["power_cap_w"] * 1.001
    assert any("power cap" in note for note in document["notes"])
    assert main([*ASKED, words[0], *caps]) == 2  # without a rate nothing paces a step
