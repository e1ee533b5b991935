"""What scripts rely on: exit codes, and one JSON document of a known format from every verb."""

import json
import re
from pathlib import Path

import pytest

from energylens import table
from energylens.cli import build_parser, main
from energylens.cli.console import Answer
from energylens.errors import EnergyLensError, ExitCode
from energylens.packaged import packaged

PAGE = Path(__file__).resolve().parents[1] / "docs" / "exit-codes.md"
QWEN = "Qwen/Qwen3-8B"
CASE = ("--llm", QWEN, "--gpu", "H100", "--input-tokens", "500", "--output-tokens", "200")
TOO_LARGE = ("--llm", "meta-llama/Llama-3.1-405B-Instruct", *CASE[2:])
HEADER = (
    "llm,gpu,tensor_parallel,batch_size,input_tokens,output_tokens,energy_per_request_j,"
    "average_power_w,request_latency_s,source\n"
)


def row(batch=8, joules=240.0, tensor_parallel=1, watts=600.0, seconds=3.2):
    return f"{QWEN},H100,{tensor_parallel},{batch},500,200,{joules},{watts},{seconds},measured\n"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ENERGYLENS_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(capsys):
    def call(*arguments):
        capsys.readouterr()
        try:
            code = main([str(a) for a in arguments])
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


@pytest.fixture
def runs(tmp_path):
    """A small table of a law: more GPUs cost more, larger batches less."""
    path = tmp_path / "runs.csv"
    lines = []
    for degree in (1, 2):
        for batch in (1, 4, 16, 64):
            joules = (200 + 1500 / batch) * (1 + 0.1 * degree)
            watts = 450.0 * degree
            lines.append(row(batch, joules, degree, watts, joules * batch / watts))
    path.write_text(HEADER + "".join(lines))
    return path


def test_the_page_has_every_code_and_no_other():
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", PAGE.read_text(), re.MULTILINE)}
    assert codes == {code.value for code in ExitCode}


def test_every_error_has_a_code_of_the_table():
    kinds = [EnergyLensError]
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        assert kind.exit_code in (ExitCode.FAILED, ExitCode.USAGE, ExitCode.IMPOSSIBLE), kind


def answer(code, out, err, expected):
    assert code == expected, (code, err)
    document = json.loads(out)
    assert isinstance(document["format"], str)
    assert document["format"].startswith("energylens"), document["format"]
    assert isinstance(document["version"], int)
    return document


VERBS = {
    "import": ("import", "table", "{runs}", "-o", "out.csv"),
    "check": ("check", "{runs}"),
    "audit": ("audit", "{runs}"),
    "compare": ("compare", "{runs}", "{runs}"),
    "fit": ("fit", "{runs}", "-o", "model.json"),
    "explain": ("explain", "datasheet", *CASE),
    "select": (
        *("select", "datasheet", "--llm", QWEN, "--gpu", "H100", "--choose", "tensor_parallel"),
        *("--input-tokens", "500", "--output-tokens", "200", "--max-gpus", "4"),
    ),
    "models": ("models",),
    "llm": ("llm", "list", "qwen3-8b"),
    "gpu": ("gpu", "list", "h100"),
    "doctor": ("doctor",),
}


def spelt(words, runs):
    return [str(runs) if word == "{runs}" else word for word in words]


@pytest.mark.parametrize("verb", VERBS)
def test_the_answer_of_a_verb_says_its_format_and_version(run, runs, verb):
    code, out, err = run(*spelt(VERBS[verb], runs), "--json")
    expected = code if verb == "doctor" else 0
    assert code in (0, ExitCode.IMPOSSIBLE)
    document = answer(code, out, err, expected)
    assert document["format"] == f"energylens-{verb}"


def test_answers_of_the_other_verbs_say_their_format_too(run, runs):
    assert run("fit", runs, "-o", "model.json")[0] == 0
    plan = ("plan", *CASE, "--engine", "simulated", "--quick", "-o", "plan.jsonl")
    for words, named in (
        (("explain", "model.json", *CASE), "energylens-explain"),
        (("llm", "show", QWEN), "energylens-llm"),
        (("gpu", "show", "H100"), "energylens-gpu"),
        (plan, "energylens-plan"),
        (("measure", "plan.jsonl", "--dry-run"), "energylens-measure"),
        (("measure", "plan.jsonl", "-o", "r.jsonl", "--executor", "inline"), "energylens-measure"),
        (("pack", "r.jsonl", "-o", "pack.zip"), None),
        (("unpack", "pack.zip", "-o", "u.jsonl"), None),
        (("discover", runs, "-o", "front.json", "--samples", "0"), "energylens-front"),
        (("evaluate", runs, "--repeats", "2", "--train", "4", "--estimators", "energylens"), None),
    ):
        code, out, err = run(*words, "--json")
        document = answer(code, out, err, ExitCode.DONE)
        assert named is None or document["format"] == named


def verbs():
    actions = build_parser()._subparsers._group_actions
    return sorted(actions[0].choices)


@pytest.mark.parametrize("verb", verbs())
def test_wrong_usage_of_every_verb_is_json_where_json_is_asked(run, verb):
    code, out, err = run(verb, "--json", "--no-such-option", "x")
    document = answer(code, out, err, ExitCode.USAGE)
    assert document["format"] == "energylens-error"
    assert document["exit_code"] == 2
    assert document["verb"] == verb
    assert json.loads(err) == document


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("check", "nothing.csv"), 1),
        (("audit", "nothing.csv"), 1),
        (("fit", "nothing.csv"), 1),
        (("explain", "nothing.json", *CASE), 1),
        (("explain", "datasheet", "--llm", "nobody", *CASE[2:]), 1),
        (("evaluate", "nothing.csv"), 1),
        (("import", "table", "nothing.csv", "-o", "x.csv"), 1),
        (("import", "nothing.json"), 2),
        (("measure", "nothing.jsonl", "-o", "x.jsonl"), 1),
        (("llm", "show", "nobody"), 1),
        (("gpu", "show", "nothing"), 1),
        (("fit", "runs.csv", "--extend", "colour"), 2),
        (("fit", "runs.csv", "--where", "colour=red"), 2),
        (("compare", "runs.csv", "runs.csv", "--fail-on", "foo"), 2),
        (("evaluate", "runs.csv", "--estimators", "nope"), 2),
        (("evaluate", "runs.csv", "--choose", "nope"), 2),
        (("discover", "runs.csv", "--engine", "nope"), 2),
        (("rehearse", "t.csv", "--fleet", "f.toml", "--policy", "nope"), 2),
        (
            (
                "control",
                "--fleet",
                "f",
                "--trace",
                "t",
                "--metrics",
                "http://h",
                "--act",
                "keda",
                "--allow",
                "x",
                "--bounds",
                "9,2",
            ),
            2,
        ),
        (("select", "datasheet", *CASE, "--rate", "2", "--tpot", "soon"), 2),
        (("select", "datasheet", *CASE, "--rate", "2", "--tpot", "50ms", "--emit", "foo"), 2),
        (("measure", "plan.jsonl", "-o", "x.jsonl", "--meter", "nope"), 1),  # no such plan
        (("import", "tabel", "runs.csv", "-o", "x.csv"), 2),
    ],
)
def test_an_error_is_json_on_both_streams(run, runs, words, code):
    assert runs.name == "runs.csv"
    ended, out, err = run(*words, "--json")
    document = answer(ended, out, err, code)
    assert document["format"] == "energylens-error"
    assert document["exit_code"] == code
    assert json.loads(err) == document
    # Without --json it is a sentence, and nothing on stdout.
    ended, out, err = run(*words)
    assert (ended, out) == (code, "")
    assert not err.startswith("{")


def test_an_import_that_leaves_rows_out_ends_with_3_and_writes_the_others(run, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(HEADER + row() + row(joules=""))
    code, out, err = run("import", "table", path, "-o", "out.csv", "--json")
    document = answer(code, out, err, ExitCode.PARTLY)
    assert (document["rows"], document["skipped_rows"]) == (1, 1)
    assert len(table.read(tmp_path / "out.csv")) == 1


def test_check_ends_with_1_for_wrong_rows_and_3_for_doubts(run, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(HEADER + row())
    assert run("check", path)[0] == 0
    path.write_text(HEADER + row(joules=0.067))  # in watt-hours
    code, out, err = run("check", path, "--json")
    assert answer(code, out, err, ExitCode.PARTLY)["doubts"]
    assert run("check", path)[0] == ExitCode.PARTLY
    path.write_text(HEADER + row(joules="many"))
    code, out, err = run("check", path, "--json")
    document = answer(code, out, err, ExitCode.FAILED)
    assert document["valid"] is False  # the answer is on stdout,
    assert json.loads(err)["format"] == "energylens-error"  # and the error on stderr alone


def test_what_cannot_be_ends_with_4(run):
    code, out, err = run("explain", "datasheet", *TOO_LARGE, "--json")
    document = answer(code, out, err, ExitCode.IMPOSSIBLE)
    assert "memory" in document  # the answer is given all the same
    assert run("explain", "datasheet", *TOO_LARGE)[0] == ExitCode.IMPOSSIBLE
    assert run("explain", "datasheet", *CASE, "--tensor-parallel", "7")[0] == ExitCode.IMPOSSIBLE
    assert run("explain", "datasheet", *CASE)[0] == ExitCode.DONE
    code, out, err = run(
        *("select", "datasheet", *TOO_LARGE, "--choose", "tensor_parallel", "--max-gpus", "1"),
        "--json",
    )
    document = answer(code, out, err, ExitCode.IMPOSSIBLE)
    assert document["kind"] == "InfeasibleError"


@pytest.mark.parametrize("can", [True, False])
def test_doctor_says_by_its_code_whether_this_machine_can_measure(run, monkeypatch, can):
    from energylens.instrument import doctor

    found = doctor.examine(None)
    monkeypatch.setattr(type(found), "can_measure", property(lambda _: can), raising=False)
    expected = ExitCode.DONE if can else ExitCode.IMPOSSIBLE
    assert run("doctor")[0] == expected
    code, out, err = run("doctor", "--json")
    assert answer(code, out, err, expected)["can_measure"] is can


@pytest.mark.parametrize("fault", [KeyboardInterrupt, MemoryError, OSError(28, "No space", "x")])
def test_what_comes_from_outside_is_one_sentence(run, runs, monkeypatch, fault):
    def fail(*_):
        raise fault

    monkeypatch.setattr("energylens.files.read_table", fail)
    code, out, err = run("check", runs, "--json")
    document = answer(code, out, err, 130 if fault is KeyboardInterrupt else 1)
    assert document["format"] == "energylens-error"
    code, out, err = run("check", runs)
    assert code == document["exit_code"]
    assert err.count("\n") == 1


def test_a_document_is_begun_anew_by_each_command(run):
    run("models", "--json")
    assert Answer.printed
    assert packaged()
    assert run("llm", "show", "nobody", "--json")[1]
