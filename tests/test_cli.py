"""The command line from outside: what is typed, what is printed, and the exit code."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files as resources
from pathlib import Path

import pytest

from energylens import words as words_module
from energylens.baselines import ESTIMATORS
from energylens.cli import build_parser, configuring, judging, main

COMMAND = Path(sys.executable).with_name("energylens")
LLM = "meta-llama/Llama-3.1-8B-Instruct"
CASE = ("--llm", LLM, "--gpu", "H100", "--input-tokens", "256", "--output-tokens", "512")
WIDTH = 80


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    def json(self):
        """The one document on stdout."""
        assert self.code in (0, 3), self.err
        return json.loads(self.out)


@pytest.fixture(autouse=True)
def own_catalog(tmp_path, monkeypatch):
    monkeypatch.setenv("ENERGYLENS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", str(WIDTH))


@pytest.fixture
def run(capsys, monkeypatch) -> Callable[..., Result]:
    """Run a command in this process."""

    def call(*arguments: object, stdin: bytes = b"") -> Result:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        try:
            code = main([str(a) for a in arguments])
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        said = capsys.readouterr()
        return Result(code, said.out, said.err)

    return call


def command(*arguments: object, stdin: bytes | None = None) -> Result:
    """Run the installed command in a process of its own."""
    done = subprocess.run(
        [COMMAND, *map(str, arguments)],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        timeout=600,
        env=clean_environment(),
    )
    return Result(done.returncode, done.stdout.decode(), done.stderr.decode())


def clean_environment():
    return {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A table of some forty rows of the packaged, simulated ones."""
    text = (resources("energylens") / "data" / "simulated-demo.csv").read_text()
    header, *lines = text.splitlines()
    kept = [
        line
        for line in lines
        if re.match(rf"({LLM}|Qwen/Qwen3-VL-8B-Instruct),H100-SXM-80GB,bf16,[124],[12],", line)
    ]
    assert 40 < len(kept) < 120
    path = tmp_path_factory.mktemp("runs") / "runs.csv"
    path.write_text("\n".join([header, *kept]) + "\n")
    return path


@pytest.fixture(scope="module")
def model(runs) -> Path:
    path = runs.with_name("model.json")
    assert main(["fit", str(runs), "-o", str(path)]) == 0
    return path


def rows_of(path):
    return [line.split(",") for line in path.read_text().splitlines()]


def changed(runs, tmp_path, column, value, row=3):
    """A copy of the table with one cell changed."""
    rows = rows_of(runs)
    rows[row][rows[0].index(column)] = value
    path = tmp_path / "changed.csv"
    path.write_text("\n".join(map(",".join, rows)) + "\n")
    return path


def assert_refused(result, *words, code=None):
    """One paragraph on stderr, nothing on stdout."""
    assert result.code in ((1, 2) if code is None else (code,))
    assert result.out == ""
    assert result.err.count("\n") == 1, result.err
    assert re.match(r"energylens \w+: .{15,}\n$", result.err), result.err
    for word in words:
        assert word in result.err


def assert_narrow(result):
    assert result.code == 0, result.err
    wide = [line for line in result.out.splitlines() if len(line) > WIDTH]
    assert not [line for line in wide if "/" not in line]  # a path may be as long as it is


# ------------------------------------------------------------------------------------ help


def verbs():
    return list(build_parser()._subparsers._group_actions[0].choices)


def test_all_verbs_are_there():
    expected = {"import", "check", "fit", "explain", "select", "evaluate", "report", "demo"}
    assert expected | {"llm", "gpu", "doctor"} <= set(verbs())


@pytest.mark.parametrize("verb", verbs())
def test_the_help_of_every_verb_has_examples_that_parse(run, verb):
    said = run(verb, "--help")
    assert said.code == 0
    assert said.err == ""
    assert "--json" in said.out
    assert "\nexamples:\n" in said.out
    examples = said.out.partition("\nexamples:\n")[2].replace("\\\n", " ").strip().splitlines()
    assert examples
    for example in examples:
        program, *arguments = shlex.split(example)
        assert program == "energylens"
        assert build_parser().parse_args(arguments).verb == verb


def test_the_help_lists_every_verb(run):
    said = run("--help")
    for verb in verbs():
        assert re.search(rf"^    {verb} +\w", said.out, re.MULTILINE)
    assert_narrow(said)


# ------------------------------------------------------------------------------ exit codes


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("bake",),
        ("fit",),
        ("fit", "runs.csv", "--colour"),
        ("import", "somewhere", "x", "-o", "y"),
        ("import", "argonne", "x"),
        ("explain", "model.json", "--gpu", "H100", "--input-tokens", "1", "--output-tokens", "1"),
        ("explain", "model.json", *CASE, "--batch-size", "0"),
        ("explain", "model.json", *CASE, "--tensor-parallel", "1.5"),
        ("explain", "model.json", *CASE, "--output-tokens", "nan"),
        ("explain", "model.json", *CASE, "--output-tokens", "1e300"),
        ("select", "model.json", *CASE, "--batch-sizes", "1,x"),
        ("select", "model.json", *CASE, "--seed", "-1"),
        ("select", "model.json", *CASE, "--top", "0"),
        ("fit", "runs.csv", "--bootstrap", "-3"),
        ("fit", "runs.csv", "--seed", "-3"),
        ("evaluate", "runs.csv", "--protocol", "guess"),
        ("llm", "forget"),
    ],
)
def test_wrong_usage_exits_with_2_and_says_what_is_wrong(run, arguments):
    said = run(*arguments)
    assert said.code == 2
    assert said.out == ""
    assert re.search(r"^energylens.*: error: ", said.err, re.MULTILINE)


def test_an_interrupted_command_exits_with_130(run, runs, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("energylens.fitting.fit", interrupt)
    assert run("fit", runs) == Result(130, "", "energylens fit: interrupted\n")


def test_the_version_is_printed(run):
    assert re.fullmatch(r"energylens \d+\.\d+\.\d+\n", run("--version").out)


# ---------------------------------------------------------------------------------- import


@pytest.fixture
def leaderboard(tmp_path):
    """A small copy of the leaderboard's layout: one file of three configurations."""

    def configuration(gpus, limit, power, throughput, **changes):
        per_token = power / throughput
        return {
            "avg_batch_size": limit - 0.5,
            "avg_output_len": 500.0,
            "avg_power_watts": power,
            "energy_per_request_joules": 500.0 * per_token,
            "energy_per_token_joules": per_token,
            "gpu_model": "H100",
            "max_num_seqs": limit,
            "median_itl_ms": 12.5,
            "num_gpus": gpus,
            "output_throughput_tokens_per_sec": throughput,
            "parallelization": {
                "data_parallel": 1,
                "expert_parallel": 1,
                "tensor_parallel": gpus,
            },
        } | changes

    folder = tmp_path / "data" / "models"
    folder.mkdir(parents=True)
    document = {
        "model_id": "Qwen/Qwen3-8B",
        "task": "lm-arena-chat",
        "weight_precision": "bfloat16",
        "configurations": [
            configuration(1, 32, 600.0, 2000.0),
            configuration(2, 64, 1000.0, 4000.0),
            configuration(2, 8, 900.0, 900.0, energy_per_request_joules=0),
        ],
    }
    (folder / "qwen.json").write_text(json.dumps(document))
    return folder.parent


def test_importing_says_what_was_written_skipped_and_assumed(run, leaderboard, tmp_path):
    said = run("import", "mlenergy-v3", leaderboard, "-o", tmp_path / "runs.csv")
    assert said.code == 3
    assert "2 rows of 1 LLM on H100-SXM-80GB" in said.out
    assert "1 row skipped" in said.out
    assert re.search(r"1 skipped: .*energy_per_request_joules.* above 0", said.out)
    document = run(
        "import", "mlenergy-v3", leaderboard, "-o", tmp_path / "runs.jsonl", "--json"
    ).json()
    assert document["rows"] == 2
    assert document["skipped_rows"] == 1
    assert document["skipped"][0]["rows"] == 1
    assert document["assumed_rows"] == 2
    assert document["sources"] == {"published": 2}
    assert run("check", tmp_path / "runs.jsonl", "--json").json()["rows"] == 2


def test_an_assumed_length_is_set_by_task(run, leaderboard, tmp_path):
    for tokens in (100, 900):
        said = run(
            "import",
            "mlenergy-v3",
            leaderboard,
            "--assume-input-tokens",
            f"lm-arena-chat={tokens}",
            "-o",
            tmp_path / "runs.csv",
        )
        assert said.code == 3
        rows = rows_of(tmp_path / "runs.csv")
        assert rows[1][rows[0].index("input_tokens")] == str(tokens)
        assert rows[1][rows[0].index("assumed")] == "input_tokens"
    wrong = run(
        "import", "mlenergy-v3", leaderboard, "--assume-input-tokens", "chat", "-o", "x.csv"
    )
    assert_refused(wrong, "TASK=N", "'chat'")


def test_a_table_on_stdout_has_nothing_else_beside_it(run, leaderboard):
    said = run("import", "mlenergy-v3", leaderboard, "-o", "-")
    assert said.code == 3
    assert said.out.startswith("llm,gpu,precision,")
    assert len(said.out.splitlines()) == 3
    assert "2 rows of 1 LLM" in said.err
    assert run("check", "-", "--json", stdin=said.out.encode()).json()["valid"]
    both = run("import", "mlenergy-v3", leaderboard, "-o", "-", "--json")
    assert both.code == 2
    assert "cannot both go to stdout" in json.loads(both.out)["error"]


@pytest.mark.parametrize(
    ("source", "content"),
    [
        (
            "argonne",
            "source,gpu,n_gpus,framework,model,io_len,batch_size,latency_s,avg_power_w,"
            "energy_j_batch\n"
            "Fig_16_a_b,Nvidia H100 GPU,1,vLLM,meta-llama/Llama-2-7b-hf,1024,16,20,400,8000\n",
        ),
        (
            "energy-code-eval",
            "gpu,base_model,quant,window_name,max_num_seqs,n_samples,input_len,output_len,"
            "elapsed_s,gpu_energy_j,avg_power_w,est_prefill_energy_j,est_decode_energy_j,"
            "split_ok,decode_time_per_token_ms\n"
            "A100-80GB,codellama/CodeLlama-7b-hf,bf16,w,8,16,512,256,10,3000,300,600,2400,True,20\n",
        ),
    ],
)
def test_other_sources_come_in_by_name(run, tmp_path, source, content):
    path = tmp_path / "theirs.csv"
    path.write_text(content)
    document = run("import", source, path, "-o", tmp_path / "runs.csv", "--json").json()
    assert (document["rows"], document["sources"]) == (1, {"published": 1})


def test_a_foreign_table_comes_in_by_its_mapping(run, tmp_path):
    (tmp_path / "mine.csv").write_text("name,wh,n,out\nllama 8b,0.1,8,200\n")
    (tmp_path / "mapping.toml").write_text(
        '[constants]\ngpu = "H100"\nsource = "measured"\ninput_tokens = 100\n'
        'precision = "bf16"\n'
        '[columns]\nllm = "name"\nbatch_size = "n"\noutput_tokens = "out"\n'
        'energy_per_request_j = { column = "wh", scale = 3600 }\n'
        f'[names.llm]\n"llama 8b" = "{LLM}"\n'
    )
    path = tmp_path / "runs.csv"
    said = run(
        "import", "table", tmp_path / "mine.csv", "--mapping", tmp_path / "mapping.toml", "-o", path
    )
    assert said.code == 0, said.err
    rows = rows_of(path)
    assert rows[1][rows[0].index("energy_per_request_j")] == "360"
    (tmp_path / "mapping.toml").rename(tmp_path / "mine.toml")
    assert run("import", "table", tmp_path / "mine.csv", "-o", path).code == 0


def test_whoever_imports_a_foreign_table_wrongly_is_told_a_command_that_works(
    run, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("my runs.csv").write_text("name,j,n,out\nllama 8b,0.1,8,200\n")

    def told(*words):
        said = run(*words)
        assert said.code in (1, 2)
        return shlex.split(" ".join(said.err.split()).partition(" run: energylens ")[2])

    asked = told("import", "table", "my runs.csv", "-o", "runs.csv")
    assert asked[:3] == ["import", "table", "my runs.csv"]
    assert asked[3:] == ["--mapping", "my runs.toml", "-o", "runs.csv"]
    checked = told("check", "my runs.csv")
    assert checked == [*asked[:3], "--guess", *asked[5:]]
    Path("my runs.toml").write_text(
        f'[constants]\ngpu = "H100"\nsource = "measured"\ninput_tokens = 100\nllm = "{LLM}"\n'
        'precision = "bf16"\n[columns]\nbatch_size = "n"\noutput_tokens = "out"\n'
        'energy_per_request_j = "j"\n'
    )
    argonne = ("import", "argonne", "my runs.csv", "--mapping", "my runs.toml", "-o", "runs.csv")
    assert told(*argonne) == asked
    assert run(*asked).code == 0
    # A table in the tidy columns is converted without one.
    assert run("import", "table", "runs.csv", "-o", "runs.jsonl").code == 0
    plan = ("plan", "--llm", LLM, "--gpu", "H100", "--engine", "simulated", "-o", "plan.jsonl")
    assert run(*plan).code == 0
    converted = told("measure", "plan.jsonl", "-o", "runs.csv")
    assert converted == ["import", "table", "runs.jsonl", "-o", "runs.csv"]
    assert run(*converted).code == 0


# ----------------------------------------------------------------------------------- check


def test_a_valid_table_is_summed_up(run, runs):
    said = run("check", runs)
    assert_narrow(said)
    n = len(rows_of(runs)) - 1
    assert f"{n} rows, all valid" in said.out
    assert "LLMs (2)" in said.out
    assert f"source of the joules: {n} simulated" in said.out
    assert "no accuracy claim" in said.out
    assert run("check", runs, "--json").json() == {
        "format": "energylens-check",
        "version": 1,
        "valid": True,
        "problems": [],
        "rows": n,
        "sources": {"simulated": n},
        "doubts": [],
    }


def test_what_is_wrong_with_a_table_is_listed_by_line_within_80_columns(run, runs, tmp_path):
    path = changed(runs, tmp_path, "precision", "bf17")
    rows = rows_of(path)
    rows[5][rows[0].index("energy_per_request_j")] = "nan"
    path.write_text("\n".join(map(",".join, rows)) + "\n")
    said = run("check", path)
    assert said.code == 1
    assert re.search(r"^line 4, precision: .*'bf17'", said.out, re.MULTILINE)
    assert re.search(r"^line 6, energy_per_request_j: ", said.out, re.MULTILINE)
    assert max(map(len, said.out.splitlines())) <= WIDTH
    assert re.fullmatch(r"energylens check: .* has 2 problems.*\n", said.err)
    machine = run("check", path, "--json")
    assert machine.code == 1
    document = json.loads(machine.out)
    assert not document["valid"]
    assert [p["line"] for p in document["problems"]] == [4, 6]


# -------------------------------------------------------------------------- garbage coming in


@pytest.mark.parametrize("verb", [("check",), ("fit",), ("evaluate", "--allow-simulated")])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\n\n \n", "is empty"),
        (bytes(range(256)), "UTF-8"),
        (b"\x1f\x8b\x08\x00garbage", "gzip"),
        (b"llm,gpu,gpu\na,b,c\n", "twice"),
        (b"llm,gpu\na,b,c\n", "3 cells"),
        (b"a;b\n1;2\n", "separated by commas"),
        (b'llm,gpu\n"a,b\n', "not valid CSV"),
    ],
)
def test_a_file_that_is_no_table_gets_one_clear_sentence(run, tmp_path, verb, content, words):
    path = tmp_path / "garbage.csv"
    path.write_bytes(content)
    assert_refused(run(*verb, path), "garbage.csv", words)


@pytest.mark.parametrize("verb", [("fit",), ("evaluate", "--allow-simulated")])
@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("energy_per_request_j", "nan", "line 4"),
        ("energy_per_request_j", "0", "line 4"),
        ("energy_per_request_j", "-5", "line 4"),
        ("energy_per_request_j", "", "line 4"),
        ("energy_per_request_j", "1e999", "line 4"),
        ("llm", "Llama-3.1-8C-Instruct", "Did you mean"),
        ("gpu", "H1000", "line 4"),
        ("output_tokens", "-3", "line 4"),
        ("boundary", "house", "line 4"),
    ],
)
def test_a_row_that_is_no_measurement_gets_one_clear_sentence(
    run, runs, tmp_path, verb, column, value, words
):
    path = changed(runs, tmp_path, column, value)
    assert_refused(run(*verb, path), "changed.csv", column, words)


def test_a_missing_column_is_named(run, runs, tmp_path):
    rows = rows_of(runs)
    place = rows[0].index("energy_per_request_j")
    path = tmp_path / "less.csv"
    path.write_text("\n".join(",".join(r[:place] + r[place + 1 :]) for r in rows) + "\n")
    assert_refused(run("fit", path), "less.csv", "energy_per_request_j")
    path.write_text(",".join(rows[0]) + "\n")
    assert_refused(run("fit", path), "less.csv")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("energy", "energy_per_request_j? "),
        ("Energy_per_request", "energy_per_request_j? "),
        ("tokens", "input_tokens or output_tokens or vision_tokens? "),
        ("outputtokens", "output_tokens"),
    ],
)
def test_a_column_is_guessed_by_the_words_of_its_name(run, runs, tmp_path, given, meant):
    path = tmp_path / "mine.csv"
    path.write_text(runs.read_text().replace("energy_per_request_j", given, 1))
    said = " ".join(run("check", path).out.split())
    assert f"unknown column {given!r}. Did you mean {meant}" in said


def test_whoever_reads_a_wrong_table_is_told_the_command_that_lists_all(run, runs, tmp_path):
    path = tmp_path / "my runs.csv"
    path.write_text(runs.read_text().replace("energy_per_request_j", "energy", 1))
    told = f"There is 1 more problem; to list all, run: energylens check '{path}'"
    said = run("fit", path)
    assert said.err.rstrip().endswith(told)
    assert "2 problems" in run("check", path).err


def test_a_table_of_one_row_has_one_row(run, runs, tmp_path):
    path = tmp_path / "one.csv"
    path.write_text("".join(runs.read_text().splitlines(keepends=True)[:2]))
    assert "one.csv: 1 row, valid." in run("check", path).out


def test_a_search_without_resamples_says_so(run, runs):
    said = " ".join(run("discover", runs, "--samples", "0").out.split())
    assert "of the energy, not resampled" in said
    assert "of the resamples" not in said
    assert "rows were neither measured nor published" in said


@pytest.mark.parametrize("verb", ["check", "fit", "evaluate"])
def test_a_file_that_is_not_there_is_named(run, tmp_path, verb):
    assert_refused(run(verb, tmp_path / "no.csv"), "no.csv cannot be read")
    assert_refused(run(verb, tmp_path), "cannot be read") if verb != "check" else None
    assert_refused(run(verb, tmp_path / "no.xlsx"), "no.xlsx")


@pytest.mark.parametrize("verb", ["explain", "select"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\x00\x01", "NUL"),
        (b"{", "not valid JSON"),
        (b"llm,gpu\na,b\n", "not valid JSON"),
        (b"[]", "not an energy model"),
        (b'{"format": "energylens-plan"}', "not an energy model"),
        (b'{"format": "energylens-model", "version": 99}', "version 99"),
        (b'{"format": "energylens-model", "version": 4}', "not a valid energy model"),
    ],
)
def test_a_file_that_is_no_model_gets_one_clear_sentence(run, tmp_path, verb, content, words):
    path = tmp_path / "wrong.json"
    path.write_bytes(content)
    assert_refused(run(verb, path, *CASE), "wrong.json", words)


def test_a_model_that_was_tampered_with_is_refused(run, model, tmp_path):
    document = json.loads(model.read_text())
    document["pooled"]["theta"]["vision"] += 1.0
    path = tmp_path / "tampered.json"
    path.write_text(json.dumps(document))
    assert_refused(run("explain", path, *CASE), "tampered.json", "changed or damaged")
    assert_refused(run("explain", tmp_path / "none.json", *CASE), "none.json cannot be read")


# ------------------------------------------------------------------------------------- fit


def test_rows_are_kept_by_any_name_that_the_catalog_knows(run, runs):
    plain = run("fit", runs, "--where", "gpu=H100-SXM-80GB", "--json").json()
    assert run("fit", runs, "--where", "gpu=H100", "--json").json() == plain
    assert_refused(run("fit", runs, "--where", "colour=red"), "It takes llm, gpu, precision")


@pytest.mark.parametrize(
    ("ratio", "words"), [(1.0, "over 99 %"), (0.995, "over 99 %"), (0.99, "99 %"), (None, "-")]
)
def test_no_probability_is_a_certainty(ratio, words):
    assert words_module.likelihood(ratio) == words


@pytest.mark.parametrize(
    ("ratio", "words"), [(0.9999, "over 99 %"), (0.5, "50 %"), (0.004, "0.4 %")]
)
def test_nothing_saves_all(ratio, words):
    assert words_module.saving(ratio) == words


def test_a_fit_prints_its_coefficients_and_its_weaknesses(run, runs, tmp_path):
    path = tmp_path / "m.json"
    said = run("fit", runs, "-o", path)
    assert_narrow(said)
    for name in ("prefill_launch", "decode_weights", "idle_gpus"):
        assert re.search(rf"^{name} +\d+\.\d+ ", said.out, re.MULTILINE)
    assert "In-sample error" in said.out
    assert "no accuracy claim" in said.out
    assert f"Model written to {path}." in said.out.replace("\n", " ")
    assert path.exists()


def test_a_fit_as_json_is_one_document(run, runs, tmp_path):
    document = run("fit", runs, "-o", tmp_path / "m.json", "--json").json()
    assert document["rows"] == len(rows_of(runs)) - 1
    assert len(document["parameters"]) == 12
    low, high = document["parameters"]["decode_weights"]["interval_80"]
    assert low <= document["parameters"]["decode_weights"]["theta"] <= high
    assert document["diagnostics"]["rows"] == document["rows"]
    saved = json.loads((tmp_path / "m.json").read_text())
    assert saved["dataset_digest"] == document["dataset_digest"]
    assert saved["pooled"]["theta"] == {
        name: value["theta"] for name, value in document["parameters"].items()
    }


@pytest.mark.parametrize(
    ("options", "key", "value"),
    [
        (("--loss", "huber"), "loss", "huber"),
        (("--prior", "none"), "prior", "none"),
        (("--idle-power-w", "70"), "idle_power_w", "70"),
    ],
)
def test_options_of_the_fit_are_kept_in_the_model(run, runs, tmp_path, options, key, value):
    path = tmp_path / "m.json"
    assert run("fit", runs, *options, "-o", path).code == 0
    assert json.loads(path.read_text())["options"][key] == value


def test_groups_power_and_resamples_are_had_by_asking(run, runs, tmp_path):
    path = tmp_path / "m.json"
    assert_narrow(run("fit", runs, "--per", "llm,precision", "-o", path))
    assert set(json.loads(path.read_text())["groups"]) == {
        f"{LLM} bf16",
        "Qwen/Qwen3-VL-8B-Instruct bf16",
    }
    assert run("fit", runs, "--measured-power", "-o", path).code == 0
    assert json.loads(path.read_text())["measured_power"]
    drawn = run("fit", runs, "--bootstrap", "5", "--seed", "1", "--json").json()
    assert drawn == run("fit", runs, "--bootstrap", "5", "--seed", "1", "--json").json()
    assert drawn["parameters"] != run("fit", runs, "--json").json()["parameters"]


def test_extensions_are_taken_in_by_name(run, runs, model, tmp_path):
    path = tmp_path / "m.json"
    said = run("fit", runs, "--extend", "length,frames", "-o", path)
    assert_narrow(said)
    assert "tensor_length" in said.out
    assert json.loads(path.read_text())["extensions"] == ["length", "frames"]
    assert "tensor_length" in run("explain", path, *CASE, "--json").json()["terms"]
    assert run("fit", runs, "--extend", "auto").code == 0
    assert_refused(run("fit", runs, "--extend", "lenght"), "Did you mean length?")


def test_power_caps_are_fitted_explained_and_chosen(run, runs, model, tmp_path):
    header, *rows = rows_of(runs)
    joules = header.index("energy_per_request_j")
    parts = [header.index(f"{phase}_energy_per_request_j") for phase in ("prefill", "decode")]
    for i, row in enumerate(rows):
        row.append("400" if i % 2 else "")
        for place in (joules, *parts):
            row[place] = str(float(row[place]) * (0.75 if i % 2 else 1)) if row[place] else ""
    table = tmp_path / "capped.csv"
    table.write_text("\n".join(map(",".join, [[*header, "power_cap_w"], *rows])) + "\n")
    half = len(rows) // 2
    unaware = run("fit", table)
    assert f"{half} of the rows have a power cap" in " ".join(unaware.out.split())
    assert_refused(run("fit", runs, "--extend", "power_cap"), "needs rows with a power_cap_w")

    fitted = tmp_path / "capped.json"
    said = run("fit", table, "--extend", "auto", "-o", fitted)
    assert "capped_headroom" in said.out
    assert_narrow(said)
    explained = run("explain", fitted, *CASE, "--power-cap-w", "400")
    assert_narrow(explained)
    assert "400W" in explained.out
    assert "the cap is ignored" in run("explain", model, *CASE, "--power-cap-w", "400").out

    choose = (*CASE, "--choose", "power_cap,batch_size", "--batch-sizes", "8,64")
    chosen = run("select", fitted, *choose, "--power-caps", "400,700")
    assert_narrow(chosen)
    assert re.search(r"Run TP1 PP1 B64 400W: ", chosen.out)
    assert_refused(run("select", fitted, *choose), "the candidates must list some")
    assert_refused(run("select", fitted, *choose, "--power-caps", "400000"), "70 and 735 W")
    assert_refused(run("select", fitted, *CASE, "--power-cap-w", "40"), "70 and 735 W")
    assert_refused(
        run("select", model, *choose, "--power-caps", "400,700"), "takes a model that knows some"
    )


def test_rows_are_kept_by_what_they_hold(run, runs):
    every = run("fit", runs, "--json").json()["rows"]
    llama = run("fit", runs, "--where", f"llm={LLM}", "--json").json()["rows"]
    images = run("fit", runs, "--where", "modality=image", "--json").json()["rows"]
    either = run("fit", runs, "--where", "modality=image|text", "--json").json()["rows"]
    assert 0 < images < every
    assert images + llama == every == either
    assert_refused(run("fit", runs, "--where", "llm=nobody"), "no row has llm nobody", LLM)
    assert_refused(run("fit", runs, "--where", "colour=red"), "colour")


def test_tables_are_pooled(run, runs):
    one = run("fit", runs, "--json").json()["rows"]
    assert run("fit", runs, runs, "--json").json()["rows"] == 2 * one


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--loss", "cubic"), "loss must be one of"),
        (("--prior", "flat"), "prior must be one of"),
        (("--per", "task"), "per takes"),
        (("--idle-power-w", "-1"), "above 0"),
        (("--idle-power-w", "nan"), "above 0"),
    ],
)
def test_options_of_the_fit_that_are_none_are_refused(run, runs, options, words):
    assert_refused(run("fit", runs, *options), words)


def test_a_failed_fit_leaves_the_model_that_was_there(run, runs, model, tmp_path):
    path = tmp_path / "m.json"
    path.write_bytes(model.read_bytes())
    bad = changed(runs, tmp_path, "energy_per_request_j", "nan")
    assert run("fit", bad, "-o", path).code == 1
    assert path.read_bytes() == model.read_bytes()
    assert_refused(run("fit", runs, "-o", tmp_path / "no" / "m.json"), "cannot be written")


# ------------------------------------------------------------------------- explain and select


def test_an_explanation_is_words_and_a_narrow_table(run, model):
    said = run("explain", model, *CASE, "--tensor-parallel", "2", "--batch-size", "64")
    assert_narrow(said)
    text = " ".join(said.out.split())
    assert "A request costs" in text
    assert "With tensor parallelism of 2, sending" in text
    assert "where the joules go" in text
    machine = run("explain", model, *CASE, "--tensor-parallel", "2", "--json").json()
    assert len(machine["terms"]) == 12
    assert machine["interval_80_j"][0] < machine["energy_per_request_j"]


def test_images_add_the_tokens_that_the_catalog_knows(run, model):
    vlm = ("--llm", "Qwen/Qwen3-VL-8B-Instruct", *CASE[2:])
    plain = run("explain", model, *vlm, "--json").json()
    seeing = run("explain", model, *vlm, "--images", "2", "--json").json()
    assert plain["terms"]["vision"]["prefill_j"] == 0
    assert seeing["terms"]["vision"]["prefill_j"] > 0
    assert "256 tokens in" in plain["case"]
    assert "2304 tokens in" in seeing["case"]
    own = run("explain", model, *vlm, "--images", "2", "--vision-tokens", "100", "--json").json()
    assert "256 tokens in" in own["case"]
    assert_refused(run("explain", model, *CASE, "--images", "1"), "no vision tower")


def test_the_node_boundary_adds_idle_gpus(run, model):
    node = run("explain", model, *CASE, "--node-gpus", "8", "--json").json()
    alone = run("explain", model, *CASE, "--json").json()
    assert node["terms"]["idle_gpus"]["decode_j"] > 0
    assert alone["terms"]["idle_gpus"]["decode_j"] == 0


def test_a_case_outside_the_fit_is_noted(run, model):
    said = run("explain", model, "--llm", "Qwen/Qwen3-32B", *CASE[2:])
    assert "No row of the fit has the LLM Qwen/Qwen3-32B." in " ".join(said.out.split())


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--llm", "Llama-3.1-8C-Instruct", "Did you mean"),
        ("--gpu", "H1000", "unknown GPU"),
        ("--precision", "bf17", "unknown precision"),
    ],
)
@pytest.mark.parametrize("verb", ["explain", "select"])
def test_an_unknown_name_comes_with_the_nearest(run, model, verb, option, value, words):
    assert_refused(run(verb, model, *CASE, option, value), words, value)


def test_a_ranking_is_a_narrow_table_with_reasons(run, model):
    said = run("select", model, *CASE, "--choose", "parallelism,batch_size")
    assert_narrow(said)
    text = " ".join(said.out.split())
    assert "configuration GPUs per request" in text
    assert re.search(r"Run TP\d PP\d", text)
    assert "It is the best with probability" in text


def test_a_ranking_as_json_is_one_document(run, model):
    arguments = ("select", model, *CASE, "--choose", "tensor_parallel,batch_size", "--json")
    document = run(*arguments, "--batch-sizes", "1,64").json()
    assert document == run(*arguments, "--batch-sizes", "1,64").json()
    energies = [entry["energy_per_request_j"] for entry in document["ranking"]]
    assert energies == sorted(energies)
    assert len(energies) > 3
    assert document["explanation"]["energy_per_request_j"] == pytest.approx(energies[0])


def test_gpus_and_precisions_may_be_chosen_too(run, model):
    said = run(
        "select",
        model,
        *CASE,
        "--choose",
        "gpu,precision,tensor_parallel",
        "--gpus",
        "H100,A100",
        "--precisions",
        "bf16,fp8",
        "--top",
        "30",
    )
    assert_narrow(said)
    for name in ("H100-SXM-80GB", "A100-SXM-80GB", "bf16", "fp8"):
        assert name[:5] in said.out


def test_configurations_that_do_not_fit_are_listed_with_the_reason(run, model):
    large = ("--llm", "meta-llama/Llama-3.1-70B-Instruct", *CASE[2:])
    said = run("select", model, *large)
    assert_narrow(said)
    text = " ".join(said.out.split())
    assert "Not feasible: " in text
    assert "weights take" in text
    alone = run("select", model, *large, "--max-gpus", "1")
    assert_refused(alone, "weights take", code=4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--choose", "colour"), "free knobs must be"),
        (("--choose", ","), "free knobs must be"),
        (("--max-gpus", "0"), "--max-gpus: must be a whole number of 1 or more"),
        (("--choose", "batch_size", "--batch-sizes", "0"), "batch_size"),
    ],
)
def test_a_choice_that_is_none_is_refused(run, model, options, words):
    assert_refused(run("select", model, *CASE, *options), words)


# -------------------------------------------------------------------------------- evaluate

JUDGED = ("--estimators", "energylens,fewest-gpus", "--choose", "parallelism,batch_size")


def test_simulated_rows_are_judged_only_by_asking_and_never_as_a_claim(run, runs):
    assert_refused(run("evaluate", runs, *JUDGED), "simulated")
    said = run("evaluate", runs, *JUDGED, "--allow-simulated", "--train", "15", "--repeats", "2")
    assert_narrow(said)
    assert "NO ACCURACY CLAIM" in said.out
    assert re.search(r"^energylens +\d+\.\d %", said.out, re.MULTILINE)


def test_a_judgement_as_json_is_one_document_of_the_agreed_shape(run, runs):
    arguments = (
        *("evaluate", runs, "--protocol", "few-shot", "--choose", "parallelism,batch_size"),
        *("--train", "20", "--repeats", "2", "--seed", "3"),
        *("--estimators", "energylens,largest-batch,random", "--allow-simulated", "--json"),
    )
    document, again = run(*arguments).json(), run(*arguments).json()
    assert document["protocol"] == "few-shot"
    assert document["choose"] == ["parallelism", "batch_size"]
    assert document["seed"] == 3
    assert document["rows"] == len(rows_of(runs)) - 1
    assert document["scenarios"] >= 2
    ours = document["estimators"]["energylens"]
    assert set(document["estimators"]) == {"energylens", "largest-batch", "random"}
    assert ours["train_rows"] == 20
    for name in (
        "top1_ratio",
        "top1_within_noise_ratio",
        "pairwise_ratio",
        "regret_mean_ratio",
        "regret_p95_ratio",
        "mape_ratio",
        "median_ape_ratio",
        "interval_coverage_ratio",
        "fit_s",
    ):
        assert ours[name] >= 0, name
        assert name in document["estimators"]["random"]
    assert ours["top1_ratio"] <= ours["top1_within_noise_ratio"] <= 1

    def timeless(value):
        if isinstance(value, dict):
            return {k: timeless(v) for k, v in value.items() if not k.endswith("_s")}
        return [timeless(v) for v in value] if isinstance(value, list) else value

    assert timeless(document) == timeless(again)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--estimators", "oracel"), "unknown estimator 'oracel'"),
        (("--estimators", "foo"), "There are energylens, energylens-datasheet, random-forest"),
        (("--estimators", "energylens", "--choose", "colour"), "free knobs"),
        (("--estimators", "energylens", "--train", "0"), "train"),
        (("--estimators", "energylens", "--repeats", "0"), "repeats"),
        (("--estimators", "energylens", "--noise", "2"), "--noise: must be a number from 0 to 1"),
        (("--estimators", "energylens", "--noise", "nan"), "--noise: must be"),
    ],
)
def test_a_judgement_that_makes_no_sense_is_refused(run, runs, options, words):
    assert_refused(run("evaluate", runs, "--allow-simulated", *options), words)


def test_every_name_of_the_table_can_be_given_back(run, runs):
    longest = "utilisation-power-predicted"
    assert longest == max(ESTIMATORS, key=len)
    judged = ("--estimators", f"energylens,{longest}", "--choose", "parallelism,batch_size")
    said = run("evaluate", runs, *judged, "--allow-simulated", "--train", "15", "--repeats", "2")
    assert_narrow(said)
    assert re.search(rf"^{longest} +\d", said.out, re.MULTILINE)


def test_an_error_beyond_all_sense_is_not_given_to_the_digit():
    assert [judging._over(value, 2) for value in (None, 0.0123, 1.2354, 24443.9)] == [
        "-", "1.23 %", "123.5 %", ">1000 %",
    ]  # fmt: skip


def test_scenarios_that_cannot_tell_estimators_apart_are_owned_up_to(run, runs):
    rules = ("--estimators", "random,fewest-gpus,largest-batch-per-gpu,first-candidate")
    options = ("--allow-simulated", "--train", "40", "--repeats", "1", "--choose")
    said = " ".join(run("evaluate", runs, *rules, *options, "pipeline_parallel").out.split())
    assert re.search(r"(\d+) of \1 scenarios have three candidates or fewer", said)
    assert (
        "Note: fewest-gpus, largest-batch-per-gpu and first-candidate have the same Top-1, pairs "
        "and regret"
    ) in said
    assert "Note: " not in run("evaluate", runs, *rules, *options, "parallelism,batch_size").out


@pytest.mark.parametrize("name", ["x.txt", "html", "-"])
def test_a_page_under_a_name_that_no_browser_opens_is_refused_at_once(run, runs, name, tmp_path):
    assert_refused(run("report", runs, "-o", tmp_path / name), ".html or .htm")
    assert_refused(run("demo", "-o", tmp_path / name), ".html or .htm")
    assert not (tmp_path / name).exists()


# ------------------------------------------------------------------------------ llm and gpu


def test_the_catalog_is_listed_and_shown_within_80_columns(run):
    for arguments in (("llm", "list"), ("gpu", "list"), ("gpu", "show", "H100")):
        assert_narrow(run(*arguments))
    for name in ("Qwen/Qwen3-VL-8B-Instruct", "deepseek-ai/DeepSeek-V3"):
        assert_narrow(run("llm", "show", name))
    assert "H100-SXM-80GB" in run("gpu", "list", "h100").out
    assert "L40S" not in run("gpu", "list", "h100").out
    assert run("llm", "show", LLM, "--json").json()["id"] == LLM
    assert run("gpu", "show", "H100", "--json").json()["tdp_w"] == 700
    assert {m["id"] for m in run("llm", "list", "llama-3.1", "--json").json()["llms"]} >= {LLM}
    assert len(run("gpu", "list", "--json").json()["gpus"]) >= 15


def test_a_name_that_is_missing_or_unknown_is_refused(run):
    assert_refused(run("llm", "show"), "needs a name")
    assert_refused(run("gpu", "show"), "needs a name")
    assert_refused(run("llm", "show", "Llama-3.1-8C-Instruct"), "Did you mean")
    assert_refused(run("gpu", "show", "H1000"), "unknown GPU")


CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}


def test_an_llm_is_added_from_its_config_and_used(run, model, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))
    said = run("llm", "add", path, "--name", "mine/small")
    assert said.code == 0, said.err
    assert "mine/small (dense, 1.2 B parameters counted) added to" in said.out
    assert run("llm", "show", "mine/small", "--json").json()["layers"] == 16
    assert run("explain", model, "--llm", "mine/small", *CASE[2:]).code == 0
    assert_refused(run("llm", "add", path), "--name ORG/NAME")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"model_type": "toaster"}', "\x00"])
def test_a_config_that_is_none_is_refused(run, tmp_path, content):
    path = tmp_path / "config.json"
    path.write_text(content)
    assert_refused(run("llm", "add", path, "--name", "mine/small"))


def test_a_catalog_that_cannot_be_written_is_an_error_of_ours(run, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ENERGYLENS_HOME", str(tmp_path / "file" / "home"))
    assert_refused(
        run("llm", "add", tmp_path / "config.json", "--name", "mine/small"), "cannot write"
    )


# ------------------------------------------------------------- from other people's files on


def test_published_measurements_go_all_the_way_to_a_judgement(run, public_data, tmp_path):
    table, model = tmp_path / "runs.csv", tmp_path / "model.json"
    source = public_data("argonne") / "power.csv"
    imported = run("import", "argonne", source, "-o", table, "--json").json()
    assert imported["sources"] == {"published": imported["rows"]}
    fitted = run("fit", table, "-o", model, "--json").json()
    assert fitted["rows"] == imported["rows"]
    assert fitted["diagnostics"]["median_ape_ratio"] < 0.25
    case = ("--llm", "meta-llama/Llama-2-7b-hf", "--gpu", "H100")
    lengths = ("--input-tokens", "512", "--output-tokens", "512")
    assert_narrow(run("explain", model, *case, *lengths))
    judged = ("--estimators", "energylens,random", "--choose", "batch_size", "--repeats", "2")
    document = run("evaluate", table, *judged, "--json").json()
    ours, chance = document["estimators"]["energylens"], document["estimators"]["random"]
    assert ours["regret_mean_ratio"] < 0.2 * chance["regret_mean_ratio"]


# ------------------------------------------------------------------ the command as installed


def test_the_installed_command_does_the_whole_job_through_pipes(leaderboard, tmp_path):
    table = command("import", "mlenergy-v3", leaderboard, "-o", "-")
    assert table.code == 3, table.err
    path = tmp_path / "model.json"
    fitted = command("fit", "-", "-o", path, "--json", stdin=table.out.encode())
    assert fitted.json()["rows"] == 2
    assert fitted.err == ""
    explained = command("explain", path, "--llm", "Qwen/Qwen3-8B", *CASE[2:], "--json")
    assert explained.json()["energy_per_request_j"] > 0


def test_an_error_in_a_pipe_is_one_line_and_no_traceback():
    assert_refused(command("fit", "-", stdin=b""), "standard input is empty")
    assert_refused(command("fit", "-", stdin=b"\xff\xfe\x00"), "UTF-8")
    assert command("fit").code == 2


@pytest.mark.parametrize("arguments", [["llm", "list", "--json"], ["--help"]])
def test_a_reader_that_has_enough_ends_the_command_in_silence(arguments):
    process = subprocess.Popen(
        [COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=clean_environment(),
    )
    process.stdout.close()  # as head does
    error = process.stderr.read()
    process.stderr.close()
    assert (process.wait(timeout=600), error) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_is_said_and_not_passed_over():
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [COMMAND, "gpu", "list"],
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=600,
            env=clean_environment(),
        )
    assert done.returncode == 1
    assert done.stderr == b"energylens gpu: cannot write: No space left on device\n"


def test_the_package_runs_as_a_module_too():
    done = subprocess.run(
        [sys.executable, "-m", "energylens", "--version"], capture_output=True, timeout=600
    )
    assert done.stdout.startswith(b"energylens ")
    assert done.returncode == 0


def documented_commands() -> list[str]:
    """Every energylens command in a code block of the README and the documents."""
    root = Path(__file__).parents[1]
    found = []
    for page in (root / "README.md", *sorted((root / "docs").rglob("*.md"))):
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in text.splitlines():
            command = line.strip().removeprefix("$ ")
            if re.match(r"energylens [a-z]+( |$)", command) and "..." not in command:
                found.append(re.split(r" && | \| | > |  +#", command)[0])
    return found


@pytest.mark.parametrize("command", documented_commands())
def test_a_command_of_the_documents_can_be_typed(command):
    build_parser().parse_args(shlex.split(command)[1:])


# ------------------------------------------------------------------- what a newcomer may try


def words(result):
    """What was printed, on one line."""
    assert_narrow(result)
    return " ".join(result.out.split())


@pytest.fixture(scope="module")
def capped_model(runs) -> Path:
    """A fit whose rows have caps of 300 and 500 W, and none."""
    header, *rows = rows_of(runs)
    for i, row in enumerate(rows):
        row.append(("", "300", "500")[i % 3])
    table = runs.with_name("caps.csv")
    table.write_text("\n".join(map(",".join, [[*header, "power_cap_w"], *rows])) + "\n")
    path = runs.with_name("caps.json")
    assert main(["fit", str(table), "--extend", "power_cap", "-o", str(path)]) == 0
    return path


LARGE = ("--llm", "Qwen/Qwen3-32B", *CASE[2:])


def test_a_batch_limit_beyond_memory_is_shown_with_what_runs(run, model):
    choose = ("--choose", "batch_size", "--batch-sizes", "8,100000,200000")
    said = words(run("select", model, *LARGE, *choose))
    assert re.search(r"Run TP1 PP1 B200000 \((\d+) at once\): .* holds about \1 sequences", said)
    assert "Note: A batch size is a limit: beyond what memory holds" in said
    explained = words(run("explain", model, *LARGE, "--batch-size", "100000"))
    assert "B100000 is a limit: memory holds about" in explained
    assert "Twice the batch would change nothing" in explained
    document = run("select", model, *LARGE, *choose, "--json").json()
    assert any(note.startswith("A batch size is a limit") for note in document["notes"])
    assert "A batch size is a limit" not in words(run("select", model, *CASE))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ("--choose", "tensor_parallel", "--tensor-parallel", "4"),
            "--tensor-parallel 4 has no effect: tensor_parallel is free",
        ),
        (
            ("--choose", "parallelism", "--pipeline-parallel", "1"),
            "--pipeline-parallel 1 has no effect",
        ),
        (("--choose", "parallelism", "--data-parallel", "2"), "--data-parallel 2 has no effect"),
        (("--choose", "parallelism", "--expert-parallel", "2"), "--expert-parallel 2 has no"),
        (("--choose", "batch_size", "--batch-size", "32"), "--batch-size 32 has no effect"),
        (
            ("--choose", "precision", "--precisions", "fp8", "--precision", "fp8"),
            "--precision fp8 has no effect",
        ),
        (
            ("--choose", "power_cap", "--power-caps", "300", "--power-cap-w", "300"),
            "--power-cap-w 300 has no effect: power_cap is free",
        ),
        (("--batch-sizes", "1,2"), "--batch-sizes has no effect: batch_size is not free"),
        (("--gpus", "A100"), "--gpus has no effect: gpu is not free"),
        (("--precisions", "fp8"), "--precisions has no effect: precision is not free"),
        (("--power-caps", "300"), "--power-caps has no effect: power_cap is not free"),
        (("--choose", "gpu"), "give --gpus"),
        (("--choose", "precision"), "give --precisions"),
        (("--choose", "power_cap"), "give --power-caps"),
    ],
)
def test_an_option_of_select_without_effect_is_refused_and_one_missing_is_named(
    run, capped_model, options, words
):
    assert_refused(run("select", capped_model, *CASE, *options), words)


def test_a_knob_that_is_not_free_is_fixed_by_its_option(run, model):
    fixed = ("--choose", "batch_size", "--tensor-parallel", "2", "--precision", "fp8", "--json")
    document = run("select", model, *CASE, *fixed).json()
    assert {entry["tensor_parallel"] for entry in document["ranking"]} == {2}
    assert {entry["precision"] for entry in document["ranking"]} == {"fp8"}
    default = run("select", model, *CASE, "--json").json()
    assert {entry["batch_size"] for entry in default["ranking"]} == {32}


def test_a_cap_that_the_fit_has_not_seen_or_a_gpu_cannot_have_is_not_feasible(run, capped_model):
    caps = ("--choose", "power_cap,gpu", "--gpus", "H100,A100", "--power-caps", "71,300,600")
    said = words(run("select", capped_model, *CASE, *caps))
    assert "71 W on H100-SXM-80GB: the fit has seen caps from 300 to 700 W" in said
    assert "71 W on A100-SXM-80GB: the fit has seen caps from 171 to 400 W" in said
    assert "600 W on A100-SXM-80GB: power_cap_w must lie between 40 and 420 W" in said
    assert "No row of the fit has the GPU A100-SXM-80GB" in said
    document = run("select", capped_model, *CASE, *caps, "--json").json()
    ranked = {(entry["gpu"], entry["power_cap_w"]) for entry in document["ranking"]}
    assert ranked == {("H100-SXM-80GB", 300), ("H100-SXM-80GB", 600), ("A100-SXM-80GB", 300)}
    assert document["infeasible_counts"] == {"power caps seen": 2, "power cap": 1}


@pytest.mark.parametrize("verb", ["explain", "select"])
def test_a_format_that_contradicts_the_name_of_the_llm_is_refused(run, model, verb):
    case = ("--llm", "Qwen/Qwen3-32B-FP8", *CASE[2:])
    assert_refused(run(verb, model, *case, "--precision", "bf16"), "is bf16", "says fp8")
    assert run(verb, model, *case, "--precision", "fp8").code == 0


def test_a_degree_beyond_what_is_accounted_for_is_refused_with_the_limit(run, model):
    for degree, code in ((configuring.MOST_GPUS, 0), (configuring.MOST_GPUS + 1, 2)):
        said = run("explain", model, *CASE, "--data-parallel", degree)
        assert said.code == code
    assert_refused(said, "--data-parallel must be 32767 or less, not 32768")


def test_an_explanation_cuts_no_label(run, model):
    said = run("explain", model, *CASE, "--tensor-parallel", "2")
    assert "…" not in said.out
    assert re.search(r"^reading the weights for each decode +- .*\n  step$", said.out, re.MULTILINE)


def test_a_fit_says_what_its_extensions_and_its_table_are_of(run, runs, tmp_path):
    assert "--extend auto took in" in words(run("fit", runs, "--extend", "auto"))
    assert "took in" not in words(run("fit", runs))
    assert_refused(run("fit", runs, "--extend", "auto,length"), "--extend auto stands alone")
    table = changed(runs, tmp_path, "gpu", "A100-SXM-80GB")
    said = words(run("fit", table))
    assert "values are what it makes of H100-SXM-80GB, which has the most" in said
    assert "Predictions use the coefficients of each group" in said
    assert 'list them, under "groups"' in said


def test_a_fit_notes_rows_that_are_there_twice_and_several_engine_versions(run, runs, tmp_path):
    assert not run("fit", runs, "--json").json()["notes"]
    assert "Note: 1 row is there twice" in words(run("fit", twice(runs, tmp_path)))
    header, *rows = rows_of(runs)
    for i, row in enumerate(rows):
        row[header.index("engine")] = "vllm"
        row[header.index("engine_version")] = ("0.11.1", "0.5.4")[i % 2]
    table = tmp_path / "versions.csv"
    table.write_text("\n".join(map(",".join, [header, *rows])) + "\n")
    (note,) = run("fit", table, "--json").json()["notes"]
    assert "Rows of 2 engine versions (vllm 0.5.4, vllm 0.11.1)" in note
    assert "each is fitted by itself" in note
    assert not run("fit", table, "--where", "engine_version=0.5.4", "--json").json()["notes"]
    (note,) = run("fit", table, "--per", "gpu", "--json").json()["notes"]
    assert "add engine to --per" in note
    model = tmp_path / "versions.json"
    run("fit", table, "-o", model)
    assert "are of 2 engine versions" in words(run("explain", model, *CASE))
    known = words(run("explain", model, *CASE, "--engine", "vLLM==0.5.4"))
    assert "engine" not in known.partition("where the joules go")[0]
    assert "are of 2 engine versions" in words(run("explain", model, *CASE, "--engine", "vllm"))
    pooled = tmp_path / "pooled.json"
    run("fit", table, "--per", "none", "-o", pooled)
    told = words(run("explain", pooled, *CASE, "--engine", "vllm 0.5.4"))
    assert "this fit does not tell them apart: fit again with engine among --per" in told
    asked = words(run("select", model, *CASE, "--engine", "vllm 9"))
    assert "No row of the fit has the engine vllm 9: they are of vllm 0.11.1, vllm 0.5.4." in asked
    assert "joules may differ twofold" in asked
    assert "tokens, engine vllm 9" in asked


def twice(runs, tmp_path):
    """A copy of the table with its first row once more."""
    lines = runs.read_text().splitlines()
    path = tmp_path / "twice.csv"
    path.write_text("\n".join([*lines, lines[1]]) + "\n")
    return path


def test_a_coefficient_that_few_rows_speak_of_asks_for_more_of_them(run, runs, tmp_path):
    header, *rows = rows_of(runs)
    few = [rows[0], next(row for row in rows if row[header.index("tensor_parallel")] == "2")]
    table = tmp_path / "few.csv"
    table.write_text("\n".join(map(",".join, [header, *few])) + "\n")
    undetermined = run("fit", table, "--json").json()["diagnostics"]["undetermined"]
    assert undetermined["tensor_parallel"].startswith("more of: ")
    assert not undetermined["pipeline_parallel"].startswith("more of: ")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--where", "llm"), "--where takes COLUMN=VALUE"),
        (("--idle-power-w", "1e9"), "below the TDP of H100-SXM-80GB, 700 W"),
    ],
)
def test_an_option_of_the_fit_that_makes_no_sense_gets_one_sentence(run, runs, options, words):
    assert_refused(run("fit", runs, *options), words)


def test_a_node_smaller_than_its_deployment_is_refused(run):
    refused = run("explain", "datasheet", *CASE, "--tensor-parallel", "4", "--node-gpus", "2")
    assert refused.code == 2
    assert "--node-gpus must be at least the 4 GPUs of the deployment" in refused.err


@pytest.mark.parametrize("asked", [("--gpus", "H100,A100"), ("--gpu", "H100,A100")])
def test_a_gpu_type_that_is_free_is_not_asked_for(run, asked):
    document = run(
        "select", "datasheet", "--llm", "Qwen/Qwen3-8B", *asked, "--choose", "gpu",
        "--input-tokens", "100", "--output-tokens", "100", "--json",
    ).json()  # fmt: skip
    assert {entry["gpu"] for entry in document["ranking"]} == {"H100-SXM-80GB", "A100-SXM-80GB"}


def test_a_gpu_type_is_added_like_another(run, tmp_path, monkeypatch):
    monkeypatch.setenv("ENERGYLENS_HOME", str(tmp_path))
    added = run("gpu", "add", "H100-64", "--like", "H100", "--memory-gb", 64, "--json")
    assert added.code == 0, added.err
    shown = json.loads(run("gpu", "show", "h100-64", "--json").out)
    assert (shown["memory_bytes"], shown["tdp_w"], shown["source"]) == (64e9, 700, "like H100")
    assert_refused(run("gpu", "add", "New", "--memory-gb", 64), "--tdp-w", "--like GPU")


@pytest.mark.parametrize("verb", ["discover", "plan", "fit", "select", "evaluate"])
def test_a_negative_seed_is_wrong_usage(run, verb):
    refused = run(verb, "runs.csv", "--seed", "-1")
    assert refused.code == 2
    assert "--seed: must be a whole number of 0 or more, not '-1'" in refused.err


def test_check_doubts_rows_that_cannot_be_right(run, runs, tmp_path):
    assert run("check", runs, "--json").json()["doubts"] == []
    rows = rows_of(runs)
    columns = [i for i, name in enumerate(rows[0]) if name.endswith("energy_per_request_j")]
    for row in rows[1:]:
        for column in columns:
            row[column] = repr(float(row[column]) * 1000) if row[column] else ""
    path = tmp_path / "milli.csv"
    path.write_text("\n".join(map(",".join, rows)) + "\n")
    said = run("check", path, "--json").json()
    assert said["valid"]
    assert any("datasheet suggests" in doubt["what"] for doubt in said["doubts"])
    told = run("check", path)
    assert told.code == 3
    assert "Doubt: joules are" in told.out
