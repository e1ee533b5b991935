"""An hour on a node, on the simulated engine: killed, interrupted, resumed, answered, packed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from energylens import campaign, contribution, files, modelfile, table
from energylens.cli import main
from energylens.errors import ArtefactError, InputError, UsageError
from energylens.instrument import engines
from energylens.instrument.executors.local import InlineExecutor
from energylens.instrument.folder import Instrument
from energylens.instrument.plan import Procedure
from instrument_fakes import no_meter

LLM = "Qwen/Qwen3-8B"
QUESTION = campaign.Question(
    llm=LLM,
    gpu="H100-SXM-80GB",
    engine="simulated",
    gpus=2,
    minutes=5.0,
    input_tokens=256,
    output_tokens=64,
    batch_sizes=(1, 16, 64),
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENERGYLENS_HOME", str(tmp_path / "home"))


def make(
    folder: Path,
    question: campaign.Question = QUESTION,
    procedure: Procedure | None = None,
    **options: Any,
) -> campaign.Campaign:
    made = Instrument(
        engine_factory=engines.open_engine,
        meter_factory=no_meter,
        make_executor=lambda: InlineExecutor(range(8)),
        procedure=procedure or Procedure(),
        gpus=question.gpus,
    )
    return campaign.Campaign(question, folder, made, **options)


def measured(folder: Path) -> Counter[str]:
    records = files.read_json_lines(folder / "runs.records.jsonl", allow_torn_end=True)
    return Counter(r["case"] for r in records if r.get("status") == "measured")


def check_answer(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = files.read_json(folder / "answer.json")
    assert document["format"] == "energylens_campaign"
    assert document["best"]["energy_per_request_j"] > 0
    assert (folder / "answer.txt").read_text().startswith("For Qwen/Qwen3-8B")
    modelfile.load(folder / "model.json")
    return document


def test_a_campaign_goes_from_nothing_to_an_answer_with_its_load(tmp_path: Path) -> None:
    told: list[str] = []
    found = make(tmp_path, told=told.append).run()
    assert found.rows >= 6
    assert found.sources == ("simulated",)
    assert found.loaded_idle_w is not None
    assert found.loaded_idle_w > 50
    assert found.rates_per_s  # load was offered
    assert found.verdict is not None
    assert 0 <= found.verdict.expected_regret_ratio < 0.5
    document = check_answer(tmp_path)
    assert document["rows"] == found.rows == len(table.read(tmp_path / "runs.jsonl"))
    assert set(measured(tmp_path).values()) == {1}
    assert any(sentence.startswith("Next") for sentence in told)
    assert any("another half hour" in sentence for sentence in found.sentences())
    # It is over: again, it measures nothing and answers the same.
    again = make(tmp_path).run()
    assert again.rows == found.rows
    assert again.ranking.best == found.ranking.best


def test_no_run_is_begun_that_the_minutes_do_not_suffice_for(tmp_path: Path) -> None:
    long = replace(QUESTION, minutes=1.5, input_tokens=1024, output_tokens=256, batch_sizes=(1, 64))
    answer = make(tmp_path / "c", long).run()
    assert answer.rows >= 3
    assert answer.minutes_used <= 1.5


def test_load_is_offered_where_the_best_limit_is_beyond_memory(tmp_path: Path) -> None:
    question = replace(QUESTION, minutes=20.0, gpus=1, output_tokens=2048, batch_sizes=(8, 1024))
    answer = make(tmp_path / "c", question).run()
    assert answer.ranking.best.configuration.batch_size == 1024
    assert answer.rates_per_s


def test_an_interrupt_before_anything_is_measured_leaves_the_datasheet_s_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = make(tmp_path)

    def interrupt(*_: object) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(work, "_most_telling", interrupt)
    found = work.run()
    assert (found.rows, found.interrupted) == (0, True)
    assert "datasheet" in (tmp_path / "answer.txt").read_text()
    check_answer(tmp_path)


def test_an_interrupt_while_it_is_made_ready_leaves_an_answer_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from energylens.instrument import planning

    # Whoever starts the tests in the background may have them ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    known = planning.find_llm

    def interrupted(name: str) -> Any:
        monkeypatch.setattr(planning, "find_llm", known)
        os.kill(os.getpid(), signal.SIGINT)
        return known(name)

    monkeypatch.setattr(planning, "find_llm", interrupted)
    folder = tmp_path / "campaign"
    asked = ["campaign", "--minutes", "1", "--llm", LLM, "--engine", "simulated", "--quick"]
    assert main([*asked, "--gpus", "2", "-o", str(folder)]) == 130
    assert "datasheet" in (folder / "answer.txt").read_text()
    assert "Interrupted: answering from what is there." in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [
        *("campaign", "--minutes", "5", "--llm", LLM, "--engine", "simulated", "--gpus", "2"),
        *("--input-tokens", "256", "--output-tokens", "64", "-o", str(folder)),
    ]
    return subprocess.Popen(
        [sys.executable, "-m", "energylens", *command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_campaign_killed_twice_and_interrupted_has_every_case_once_and_an_answer(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "node"
    seen: set[str] = set()
    for rows in (1, 3):
        running = start(folder)
        runs = folder / "runs.jsonl"
        while not (runs.exists() and runs.read_bytes().count(b"\n") >= rows):
            assert running.poll() is None
            time.sleep(0.005)
        running.kill()
        running.communicate()
        assert running.returncode == -signal.SIGKILL
        now = set(measured(folder))
        assert seen <= now
        seen = now
    running = start(folder)
    while len(measured(folder)) <= len(seen) and running.poll() is None:
        time.sleep(0.005)
    running.send_signal(signal.SIGINT)
    out, error = running.communicate()
    assert running.returncode in (0, 130), error
    assert "Traceback" not in error
    assert f"For {LLM}" in out
    check_answer(folder)
    out, error = start(folder, "--json").communicate()
    document = json.loads(out)
    assert document["rows"] == len(measured(folder)) >= 6
    assert set(measured(folder).values()) == {1}
    assert len(table.read(folder / "runs.jsonl")) == document["rows"]
    assert "left" not in document["answer"][0]


def test_a_folder_of_another_question_is_refused(tmp_path: Path) -> None:
    few = campaign.Question(**{**vars(QUESTION), "minutes": 0.5, "batch_sizes": (1,)})
    make(tmp_path, few, procedure=Procedure(idle_s=0.5)).run()
    other = campaign.Question(
        llm="Qwen/Qwen3-32B", gpu="H100-SXM-80GB", engine="simulated", gpus=2, minutes=1.0
    )
    with pytest.raises(UsageError, match="another folder"):
        make(tmp_path, other)
    for wrong in ({"minutes": 0.0}, {"minutes": float("nan")}, {"gpus": 0}):
        with pytest.raises(UsageError):
            campaign.Question(**{**vars(QUESTION), **wrong})


# ------------------------------------------------------------------------------ pack and unpack

SECRETS = (
    "node-17.cluster.example.org",
    "node-17",
    "jdoe",
    "/home/jdoe/llms",
    "10.1.2.3",
    "s3cret",
)


@pytest.fixture
def telling_table(tmp_path: Path) -> Path:
    """A sweep's table whose records name a host, a user and folders wherever they can."""
    folder = tmp_path / "sweep"
    make(folder, campaign.Question(**{**vars(QUESTION), "minutes": 0.5, "batch_sizes": (1,)})).run()
    for name in ("runs.jsonl", "runs.records.jsonl"):
        documents = files.read_json_lines(folder / name)
        for document in documents:
            document["x_note"] = "on node-17 as jdoe in /home/jdoe/llms at http://10.1.2.3:8000/v1"
            if name.startswith("runs.records"):
                document["provenance"] |= {
                    "host": "node-17.cluster.example.org",
                    "url": "http://jdoe:s3cret@node-17:8000",
                    "engine_arguments": '{"download_dir": "/home/jdoe/llms", "block_size": 16}',
                    "cuda_version": "13.0",
                }
                document["command_line"] = ["/home/jdoe/bin/energylens", "measure"]
        text = "".join(json.dumps(document) + "\n" for document in documents)
        (folder / name).write_text(text)
    return folder / "runs.jsonl"


def test_a_packed_file_names_no_host_user_or_folder(telling_table: Path, tmp_path: Path) -> None:
    out = tmp_path / "contribution.zip"
    assert main(["pack", str(telling_table), "-o", str(out)]) == 0
    with zipfile.ZipFile(out) as archive:
        whole = "".join(archive.read(name).decode() for name in archive.namelist())
    for secret in (*SECRETS, os.uname().nodename, str(tmp_path), str(Path.home())):
        assert secret not in whole, secret
    assert "block_size" in whole  # what matters to others is there
    assert "13.0" in whole
    assert LLM in whole
    back = tmp_path / "back.jsonl"
    assert main(["unpack", str(out), "-o", str(back)]) == 0
    before, after = table.read(telling_table), table.read(back)
    assert after.energy_per_request_j.tolist() == before.energy_per_request_j.tolist()
    assert main(["check", str(back)]) == 0
    assert contribution.pack(telling_table, tmp_path / "again.zip") == json.loads(
        whole[whole.index('{\n  "format"') :]
    )
    assert out.read_bytes() == (tmp_path / "again.zip").read_bytes()


@pytest.mark.parametrize(
    ("told", "kept", "gone"),
    [
        ("at gpu17.hpc.example.edu:8000 with TP 2", "with TP 2", "gpu17"),
        ("ask jane.doe+gpu@example.org, FP8", ", FP8", "jane"),
        ("ran on doe@gpu17 in vllm 0.11.1", "in vllm 0.11.1", "gpu17"),
        ("listening on [2001:db8::17]:8000 at 16:03:00", "at 16:03:00", "db8"),
        ("fe80::1ff:fe23:4567:890a%eth0 was up", "was up", "890a"),
        ("10.0.0.17:9400 answered in 0.11.1.2 s", "answered", "10.0.0.17"),
        ("C:\\\\Users\\\\Jane Doe\\\\llms\\\\Qwen3-8B", "", "Doe"),
        ("/home/jane doe/llms", "", "doe"),
        ("--download-dir ../doe/llms --block-size 16", "--block-size 16", "doe"),
        ("--model $HOME/llms/x --tp 4", "--tp 4", "llms"),
        ("file:///scratch/doe/run.json", "", "doe"),
        ("USER=doe HOSTNAME=gpu17 SLURM_NODELIST=gpu[17-18] CUDA_VISIBLE_DEVICES=0,1",
         "CUDA_VISIBLE_DEVICES=0,1", "gpu17"),
        ("--host gpu17 --port 8000", "--port 8000", "gpu17"),
        ("HF_TOKEN=abcdef123 VLLM_USE_V1=1", "VLLM_USE_V1=1", "abcdef123"),
        ("GPU-5f3c2b1a-0d24-aa0e-c42c-240a8f0f465b at 700 W", "at 700 W", "240a8f"),
        ("00:1a:2b:3c:4d:5e is its NIC", "is its NIC", "1a:2b"),
        ("NODE-17 was warm", "was warm", "NODE-17"),
    ],
)  # fmt: skip
def test_what_tells_where_and_who_is_hidden_and_the_rest_stays(
    told: str, kept: str, gone: str
) -> None:
    said = contribution.without_places({"x_note": told}, ["node-17"])["x_note"]
    assert gone not in said
    assert kept in said
    assert "[hidden]" in said


@pytest.mark.parametrize(
    "text",
    [
        "Qwen/Qwen3-8B@main", "meta-llama/Llama-3.1-8B-Instruct", "tokens/s", "vllm 0.11.1+cu129",
        "2026-08-16T16:03:00+02:00", "NVIDIA H100 80GB HBM3", "TP2 PP1 B64", "fp8", "J/token",
        '{"block_size": 16, "kv_cache_dtype": "fp8_e4m3"}', "vllm bench serve bench.json",
        "Qwen/Qwen3-8B@1a2b3c4d5e6f", "vllm.v1.engine.core", "6.8.0-45-generic", "::",
    ],
)  # fmt: skip
def test_what_tells_nothing_of_anybody_stays(text: str) -> None:
    assert contribution.without_places(text, ["node-17", "jdoe"]) == text


def test_a_column_that_says_where_is_hidden_whatever_is_in_it() -> None:
    row = {"x_host": "gpu17", "x_user": "doe", "x_model_path": "mine", "node_gpus": 8, "llm": "a/b"}
    assert contribution.without_places(row) == row | dict.fromkeys(
        ("x_host", "x_user", "x_model_path"), "[hidden]"
    )


def test_what_is_no_contribution_is_refused(telling_table: Path, tmp_path: Path) -> None:
    good = tmp_path / "good.zip"
    contribution.pack(telling_table, good)
    with zipfile.ZipFile(good) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}

    def refused(match: str, **changes: bytes) -> None:
        bad = tmp_path / "bad.zip"
        with zipfile.ZipFile(bad, "w") as archive:
            for name, data in (contents | changes).items():
                archive.writestr(name, data)
        with pytest.raises(ArtefactError, match=match):
            contribution.unpack(bad, tmp_path / "never.jsonl")

    refused("nothing else", **{"../evil": b"x"})
    refused("was changed", **{"rows.jsonl": contents["rows.jsonl"] + b"{}\n"})
    refused("version", **{"manifest.json": b'{"format": "energylens_contribution", "version": 2}'})
    refused("JSON", **{"manifest.json": b"{"})
    truncated = tmp_path / "cut.zip"
    truncated.write_bytes(good.read_bytes()[:-40])
    with pytest.raises(ArtefactError, match="zip"):
        contribution.unpack(truncated, tmp_path / "never.jsonl")
    assert not (tmp_path / "never.jsonl").exists()
    with pytest.raises(InputError, match="beside"):
        contribution.pack(good.with_name("alone.jsonl"), good)
