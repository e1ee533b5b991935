"""Rubbish for every argument of every verb: one clear sentence, soon, and never a traceback.

Verbs and options are listed by the parser itself. A verb without a command line in `WORKING` fails
the first test; each argument of it is then replaced, one at a time, by each kind of rubbish.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import selectors
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from energylens import streams
from energylens.cli import build_parser, main
from energylens.instrument.meters import record
from instrument_fakes import VirtualMeter

CASE = "--llm Qwen/Qwen3-8B --gpu H100 --input-tokens 500 --output-tokens 200"
LOADED = f"{CASE} --rate 2 --tpot 50ms --choose tensor_parallel --max-gpus 2"
#: A command line that works for each verb, from files in the folder where it runs.
WORKING = {
    "import": "import table runs.csv -o out.csv",
    "get": "get --url http://127.0.0.1:9/none.csv -o got",  # nobody listens there
    "check": "check runs.csv",
    "audit": "audit runs.csv",
    "compare": "compare runs.csv runs.csv",
    "export": f"export model.json --to semantic-router --gpu-hour 2 -o table.json {CASE}",
    "fit": "fit runs.csv -o model2.json",
    "explain": f"explain datasheet {CASE}",
    "select": f"select datasheet {LOADED}",
    "verify": f"verify datasheet {LOADED} --measured verified.csv",
    "models": "models",
    "serve": "serve none.json",
    "evaluate": "evaluate runs.csv --repeats 2 --train 4 --estimators energylens",
    "report": "report runs.csv -o report.html --repeats 2",
    "demo": "demo",
    "llm": "llm add config.json --name me/mine",
    "gpu": (
        "gpu add Mine --memory-gb 80 --memory-bandwidth-gb-per-s 3000 --bf16-tflop-per-s 900 "
        "--tdp-w 700 --link-bandwidth-gb-per-s 900 --source none"
    ),
    "doctor": "doctor --seconds 0.1",
    "plan": (
        "plan -o plan2.jsonl --llm Qwen/Qwen3-8B --gpu H100 --engine simulated --batch-sizes 1,8 "
        "--input-tokens 500 --output-tokens 200"
    ),
    "measure": "measure plan.jsonl --dry-run",
    "meter": "meter read --meter replay:recording.jsonl",
    "watch": "watch --engine http://127.0.0.1:9 --windows 1 --meter estimated",
    "rehearse": "rehearse trace.csv --fleet fleet.toml --policy static-deployed",
    "control": (
        "control --fleet fleet.toml --trace trace.csv --metrics http://127.0.0.1:9 --looks 1"
    ),
    "campaign": "campaign --minutes 1 --llm Qwen/Qwen3-8B --gpu H100 --engine simulated",
    "pack": "pack rows.jsonl -o pack2.zip",
    "unpack": "unpack pack.zip -o unpacked.jsonl",
    "discover": "discover runs.csv -o front.json --samples 0",
}  # fmt: skip
#: These serve or look until they are told to end.
LASTING = {"serve", "watch", "control", "meter"}
NUMBERS = (
    "0", "-1", "1e308", "nan", "inf", "-inf", "abc", "", "99999999999999999999", "1e400", "1,2",
    "0x10", "1" * 400, "\ud800", "x=y",
)  # fmt: skip
FILES = (
    "empty", "folder", "binary", "nul.csv", "loop", "fifo.csv", "/dev/zero", "/dev/null", "hidden",
    "utf16.csv", "crlf.csv", "bom.csv", "huge.json", "nan.json", "numbers.csv", "missing", "a/b/c",
    "/", ".", "..",
    "deep.json", "deep.toml", "list.json", "text.toml", "unknown.json", "zeros.csv", "half.parquet",
    "broken.csv.gz", "/proc/self/mem", "large.bin",
)  # fmt: skip
TRACE = "arrival_s,input_tokens,output_tokens\n" + "".join(f"{i},500,100\n" for i in range(30))
FLEET = """[serve]
llm = "meta-llama/Llama-3.1-8B-Instruct"
gpu = "H100"
replicas = 2
max_num_seqs = 64
[limits]
ttft = "2s"
tpot = "50ms"
[replica]
start_s = 20
"""
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 1024,
    "intermediate_size": 3072, "num_hidden_layers": 4, "num_attention_heads": 16,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 1000, "torch_dtype": "bfloat16",
}  # fmt: skip
CPU_S = 30  # of processor time, which a loaded machine does not shorten
IDLE_S = 120  # with nothing said and nothing done
MEMORY = 6 << 30


def verbs() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Give every verb with its parser."""
    for action in build_parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def places(verb: str, parser: argparse.ArgumentParser) -> Iterator[tuple[str, list[str]]]:
    """Give the command lines of a verb, each with one argument that is to be replaced: {}."""
    words = WORKING[verb].split()
    for action in parser._actions:
        if action.nargs == 0:
            continue
        if action.option_strings:
            names = [name for name in action.option_strings if name in words]
            if names:
                at = words.index(names[0]) + 1
                yield names[0], [*words[:at], "{}", *words[at + 1 :]]
            else:
                name = action.option_strings[-1]
                yield name, [*words, f"{name}={{}}"]
    for at, word in enumerate(words[1:], 1):
        if not word.startswith("-") and not words[at - 1].startswith("-"):
            yield f"argument {at}", [*words[:at], "{}", *words[at + 1 :]]


def fill(folder: Path) -> None:
    """Write what the command lines above need, and rubbish."""
    header = (
        "llm,gpu,tensor_parallel,batch_size,input_tokens,output_tokens,energy_per_request_j,"
        "average_power_w,request_latency_s,source\n"
    )
    lines = []
    for degree in (1, 2):
        for batch in (1, 4, 16, 64):
            joules = (200 + 1500 / batch) * (1 + 0.1 * degree)
            seconds = joules * batch / (450.0 * degree)
            lines.append(
                f"Qwen/Qwen3-8B,H100,{degree},{batch},500,200,{joules},{450 * degree},{seconds},"
                "measured\n"
            )
    table = header + "".join(lines)
    (folder / "runs.csv").write_text(table)
    (folder / "verified.csv").write_text("configuration,energy_per_request_j\nTP1 B8,300\n")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "trace.csv").write_text(TRACE)
    (folder / "fleet.toml").write_text(FLEET)
    (folder / "folder").mkdir()
    (folder / "empty").touch()
    (folder / "binary").write_bytes(random.Random(0).randbytes(5000))
    (folder / "large.bin").write_bytes(random.Random(0).randbytes(1 << 20))
    os.truncate(folder / "large.bin", 100 << 20)
    (folder / "nul.csv").write_text(table.replace("measured", "\0"))
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "fifo.csv")
    (folder / "hidden").write_text(table)
    (folder / "hidden").chmod(0)
    (folder / "utf16.csv").write_text(table, encoding="utf-16")
    (folder / "crlf.csv").write_text(table, newline="\r\n")
    (folder / "bom.csv").write_text(table, encoding="utf-8-sig")
    (folder / "huge.json").write_text('{"format": "energylens-model", "version": 1' + "0" * 5000)
    (folder / "nan.json").write_text('{"format": NaN, "model_type": Infinity}')
    (folder / "numbers.csv").write_text(header + "1e308,nan,-1,inf,1e400,0,-5,nan,inf,x\n" * 3)
    (folder / "deep.json").write_text("[" * 100_000)
    (folder / "deep.toml").write_text("a = " + "[" * 100_000)
    (folder / "list.json").write_text("[1, 2, 3]")
    (folder / "text.toml").write_text("serve = 3\n[limits]\nttft = []\n[[llm]]\nid = 4\n")
    (folder / "unknown.json").write_text('{"format": "energylens-none", "version": 99}')
    (folder / "zeros.csv").write_text(header + "Qwen/Qwen3-8B,H100,0,0,0,0,0,0,0,measured\n" * 3)
    (folder / "half.parquet").write_bytes(b"PAR1" + b"\0" * 100)
    (folder / "broken.csv.gz").write_bytes(b"\x1f\x8b\x08" + b"\0" * 40)
    for words in (
        ["fit", "runs.csv", "-o", "model.json"],
        WORKING["plan"].replace("plan2", "plan").split(),
        ["measure", "plan.jsonl", "-o", "rows.jsonl", "--executor", "inline"],
        ["pack", "rows.jsonl", "-o", "pack.zip"],
    ):
        assert main(words) == 0
    record(VirtualMeter(gpus=1), 1.0, folder / "recording.jsonl", poll_s=0.1)


class Ended:
    """How a command line ended."""

    def __init__(self, words: list[str], code: int | None, said: str, killed: str = "") -> None:
        self.words, self.code, self.said, self.killed = words, code, said, killed

    @property
    def faults(self) -> list[str]:
        """Give what is wrong with that."""
        found = []
        if self.killed:
            found.append(self.killed)
        elif self.code not in (0, 1, 2, 3, 4):
            found.append(f"exit code {self.code}")
        if "Traceback" in self.said or "pydantic" in self.said:
            found.append("traceback")
        if "not enough memory" in self.said:
            found.append("memory")
        if self.code in (1, 2) and "energylens" not in self.said.strip().splitlines()[-1:][0]:
            found.append("no sentence")
        if "\x1b" in self.said:
            found.append("escapes")
        return found


def run(words: list[str]) -> Ended:
    """Run a command line in a process of its own, with little memory and processor time."""
    source, sink = os.pipe()
    child = os.fork()
    if not child:
        os.close(source)
        code = 99
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S + 5))
            if words[0] not in ("report", "demo", "serve"):  # a browser engine reserves more
                resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(sink, 2)
            sys.stdout = os.fdopen(1, "w", closefd=False)
            sys.stderr = os.fdopen(2, "w", closefd=False)
            sys.stdin = os.fdopen(0, closefd=False)
            code = int(main(words))
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(code)
    os.close(sink)
    said, killed, status = b"", "", 0
    wait = 3.0 if words[0] in LASTING else IDLE_S
    with selectors.DefaultSelector() as selector:
        selector.register(source, selectors.EVENT_READ)
        ends = time.monotonic() + wait
        while True:
            if not selector.select(max(ends - time.monotonic(), 0)):
                os.kill(child, signal.SIGKILL)
                killed = "" if words[0] in LASTING else f"still running after {wait:.0f} s"
                break
            part = os.read(source, 1 << 16)
            if not part:
                break
            said += part
    os.close(source)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGXCPU or (code == -signal.SIGKILL and words[0] not in LASTING):
        killed = killed or f"more than {CPU_S} s of processor time"
    if killed == "" and code == -signal.SIGKILL:
        code = 0
    return Ended(words, code, said.decode("utf-8", "replace"), killed)


def drawn(number: int, seed: int, without: set[str]) -> Iterator[list[str]]:
    """Draw command lines with one argument each replaced by rubbish, all verbs alike."""
    rng = random.Random(seed)
    by_verb = {v: [w for _, w in places(v, p)] for v, p in verbs() if v not in without}
    for _ in range(number):
        words = rng.choice(by_verb[rng.choice(sorted(by_verb))] or [["models"]])
        rubbish = rng.choice(NUMBERS if rng.random() < 0.5 else FILES)
        yield [word.replace("{}", rubbish) for word in words]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ENERGYLENS_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(streams, "PIPE_PATIENCE_S", 0.2)
    fill(tmp_path)
    return tmp_path


def test_every_verb_has_a_command_line_that_works_and_more_arguments() -> None:
    assert {verb for verb, _ in verbs()} == set(WORKING)
    assert sum(len(list(places(*each))) for each in verbs()) > 300


@pytest.mark.usefixtures("folder")
def test_paths_without_a_file_behind_them_are_one_sentence() -> None:
    verbs = (["check"], ["import", "table"], ["pack"], ["llm", "add"], ["export"], ["audit"])
    for path, words in product(["", "/", "fifo.csv", "/dev/zero", "loop"], verbs):
        more = {
            "import": ["-o", "x.csv"], "pack": ["-o", "x.zip"], "llm": ["--name", "a/b"],
            "export": ["--to", "otel"],
        }  # fmt: skip
        ended = run([*words, path, *more.get(words[0], [])])
        assert not ended.faults, (ended.words, ended.faults, ended.said[-2000:])
        assert ended.code in (1, 2)
        assert len(ended.said.strip().splitlines()) == 1, ended.said


@pytest.mark.usefixtures("folder")
def test_rubbish_is_refused_in_a_sentence_or_does_no_harm() -> None:
    slow = {"report", "demo", "compare", "verify", *LASTING}
    for words in drawn(40, seed=1, without=slow):
        ended = run(words)
        assert not ended.faults, (words, ended.faults, ended.said[-2000:])


@pytest.mark.soak
@pytest.mark.usefixtures("folder")
def test_rubbish_for_every_verb() -> None:
    for words in drawn(3000, seed=2, without=set()):
        ended = run(words)
        assert not ended.faults, (words, ended.faults, ended.said[-2000:])
