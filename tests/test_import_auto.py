import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from tests import import_documents as ours
from tests.import_fixtures import NOON, smi_csv, step, step_times, vllm_bench, write_json

from energylens import table
from energylens.cli import main
from energylens.errors import UsageError
from energylens.importers import auto
from energylens.importers.declared import Setup
from energylens.importers.runs import RefusedFileError

PAGE = Path(__file__).resolve().parents[1] / "docs" / "tasks" / "benchmark-file.md"
SERVED = ["--gpu", "H100", "--gpus", "1", "--engine-version", "0.11.1"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A run of 240 requests in 120 s at 480 W, and its log 2 s ahead."""
    write_json(tmp_path / "bench.json", vllm_bench())
    times = step_times(1.0)
    watts = [step(times, NOON + 182, NOON + 302, 70.0, 480.0)]
    (tmp_path / "smi.csv").write_text(smi_csv(times, watts))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys, *arguments):
    code = main([*arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_two_commands_of_the_page_come_to_a_decision(folder, capsys):
    commands = re.findall(r"^energylens .*$", PAGE.read_text(), re.MULTILINE)
    assert len(commands) == 3
    said = []
    for command in commands:
        code, out, err = run(capsys, *shlex.split(command)[1:])
        assert code == 0, err
        said.append(out)
    assert "Run TP" in said[1]
    assert "cases of" in said[2]


def test_a_row_has_the_joules_and_latencies_worked_out_by_hand(folder, capsys):
    code, out, err = run(
        capsys, "import", "auto", "bench.json", "--power", "smi.csv", *SERVED, "-o", "r.csv",
        "--json",
    )  # fmt: skip
    assert code == 0, err
    said = json.loads(out)["runs"][0]
    assert said["power"]["active_gpus_j"] == pytest.approx(480 * 120)
    assert said["energy_per_request_j"] == pytest.approx(240.0)
    assert said["energy_per_output_token_j"] == pytest.approx(240 / 128)
    assert said["energy_per_total_token_j"] == pytest.approx(240 / 640)
    assert said["declared"] == ["gpu", "engine_version", "tensor_parallel"]
    rows = table.read("r.csv")
    assert rows.energy_per_request_j[0] == pytest.approx(240.0)
    cases = rows.cases
    assert cases.ttft_s[0] == pytest.approx(0.06)
    assert cases.tpot_s[0] == pytest.approx(0.03)
    assert cases.request_latency_s[0] == pytest.approx(0.06 + 0.03 * 127)
    # Little's law: 2 requests a second for 3.87 s each.
    assert cases.mean_batch_size[0] == pytest.approx(7.74)
    assert cases.average_power_w[0] == pytest.approx(480.0)


def test_the_word_auto_may_be_left_out(folder, capsys):
    code, _, err = run(capsys, "import", "bench.json", "--power", "smi.csv", *SERVED, "-o", "r.csv")
    assert code == 0, err


def test_everything_missing_is_asked_for_at_once(folder, capsys):
    code, _, err = run(capsys, "import", "auto", "bench.json", "-o", "r.csv")
    assert code == 1
    assert "vllm bench serve, 240 requests, 512 + 128 tokens, TTFT 0.06 s, TPOT 0.03 s" in err
    assert "does not state gpu, tensor_parallel and joules" in err
    for flag in ("--gpu", "--tensor-parallel", "--power", "--engine-version", "--setup"):
        assert flag in err
    assert err.count("\n") == 1


def test_a_setup_file_says_the_same_as_flags(folder, capsys):
    Path("setup.toml").write_text('gpu = "H100"\ntensor_parallel = 1\nengine_version = "0.11.1"\n')
    code, _, err = run(
        capsys, "import", "bench.json", "--power", "smi.csv", "--setup", "setup.toml", "-o", "r.csv"
    )
    assert code == 0, err
    Path("setup.toml").write_text("gpus = 1\nfoo = 2\n")
    code, _, err = run(
        capsys, "import", "bench.json", "--power", "smi.csv", "--setup", "setup.toml", "-o", "r.csv"
    )
    assert code == 1
    assert "foo means nothing here" in err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"completed": 0, "mean_ttft_ms": 0.0}, "none of its 240 requests completed"),
        ({"mean_ttft_ms": 60000000.0}, "another unit"),
        ({"mean_e2el_ms": 3.87}, "another unit"),
        ({"request_throughput": 9.0}, "contradicts itself"),
        ({"duration": "120"}, "duration must be a number"),
        ({"duration": 0}, "duration must be a number above 0"),
        ({"date": "yesterday"}, "date must be a time"),
        ({"tensor_parallel_size": "2"}, "2 is stated|TP x PP x DP = 2"),
        ({"model_id": "Qwen/Qwen3-8B"}, "it states the llm Qwen/Qwen3-8B, but"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(folder, capsys, changes, said):
    write_json(folder / "bench.json", vllm_bench(**changes))
    llm = ["--llm", "meta-llama/Llama-3.1-8B-Instruct"]
    code, _, err = run(
        capsys, "import", "bench.json", "--power", "smi.csv", *SERVED, *llm, "-o", "r.csv"
    )
    assert code == 1
    assert re.search(said, err), err
    assert err.count("\n") == 1


def test_seconds_under_a_name_without_unit_are_refused():
    document = vllm_bench()
    for name in ("mean_ttft_ms", "median_ttft_ms", "p99_ttft_ms", "std_ttft_ms"):
        document[name.removesuffix("_ms")] = document.pop(name) / 1000
    with pytest.raises(RefusedFileError, match="has no unit in its name"):
        auto.FORMATS[0].read(document, "bench.json")


def test_a_file_that_breaks_off_is_refused(folder, capsys):
    text = json.dumps(vllm_bench())
    (folder / "bench.json").write_text(text[: len(text) // 2])
    code, _, err = run(capsys, "import", "bench.json", "--power", "smi.csv", *SERVED, "-o", "r.csv")
    assert code == 1
    assert re.search("bench.json (breaks off|is no JSON)", err)


def test_a_sweep_is_read_by_its_runs(folder, capsys):
    inside = folder / "sweep" / "SERVE--max_num_seqs=4-BENCH--max_concurrency=8"
    inside.mkdir(parents=True)
    runs = [vllm_bench(run_number=n, max_num_seqs=4, end_s=NOON + 300 + 200 * n) for n in (0, 1)]
    for n, document in enumerate(runs):
        write_json(inside / f"run={n}.json", document)
    write_json(inside / "summary.json", runs)
    times = step_times(1.0, span_s=700)
    both = step(times, NOON + 180, NOON + 300, 0, 400.0) + step(
        times, NOON + 380, NOON + 500, 0, 500.0
    )
    (folder / "smi.csv").write_text(smi_csv(times, [both + 70]))
    imported, _ = auto.read(
        [folder / "sweep", folder / "smi.csv"],
        auto.Options(setup=Setup(gpu="H100", gpus=1)),
    )
    assert imported.dataset.energy_per_request_j == pytest.approx([235.0, 285.0])
    assert set(imported.dataset.cases.batch_size) == {4.0}


def test_json_without_a_file_says_what_was_taken_and_what_is_missing(folder, capsys):
    code, out, _ = run(capsys, "import", "auto", "bench.json", "--json")
    assert code == 1
    said = json.loads(out)
    assert said["missing"] == ["gpu", "tensor_parallel", "energy"]
    assert said["runs"][0]["format"] == "vllm bench serve"
    assert said["runs"][0]["stated"]["tpot_s"] == pytest.approx(0.03)
    code, out, err = run(capsys, "import", "auto", "bench.json", "--power", "smi.csv", *SERVED)
    assert code == 0, err
    assert out.startswith("llm,gpu")


def test_a_folder_gives_its_runs_each_with_the_log_beside_it(folder, capsys):
    for name, watts in (("a", 400.0), ("b", 500.0)):
        inside = folder / "runs" / name
        inside.mkdir(parents=True)
        write_json(inside / "bench.json", vllm_bench())
        times = step_times(1.0)
        (inside / "smi.csv").write_text(
            smi_csv(times, [step(times, NOON + 180, NOON + 300, 70.0, watts)])
        )
        (inside / "config.yaml").write_text("load: {}\nserver: {}\n")
        (inside / "server.log").write_text("INFO started\n")
    failed = vllm_bench(completed=0)
    write_json(folder / "runs" / "failed.json", failed)
    imported, _ = auto.read([folder / "runs"], auto.Options(setup=Setup(gpu="H100", gpus=1)))
    assert imported.dataset.energy_per_request_j == pytest.approx([200.0, 250.0], rel=0.01)
    assert [s.example for s in imported.skipped] == ["failed.json"]
    assert "none of its 240 requests completed" in imported.skipped[0].reason
    assert any(
        "passed over, as no results: a/config.yaml, a/server.log" in n for n in imported.notes
    )
    with pytest.raises(UsageError, match="give one power log for a benchmark, not 2"):
        auto.read([folder / "bench.json", folder / "runs"], auto.Options(setup=Setup(gpu="H100")))


def test_a_folder_without_results_says_so(folder):
    (folder / "empty").mkdir()
    with pytest.raises(RefusedFileError, match="a folder without a result file"):
        auto.read([folder / "empty"])
    write_json(folder / "empty" / "b.json", vllm_bench(completed=0))
    with pytest.raises(RefusedFileError, match=r"without a result file: b\.json: none of its 240"):
        auto.read([folder / "empty"])


def test_what_is_stated_twice_in_a_folder_is_one_row(folder):
    import gzip

    inside = folder / "twice"
    inside.mkdir()
    report = json.dumps(ours.guidellm())
    (inside / "benchmarks.json").write_text(report)
    (inside / "benchmarks.yaml").write_text(report)
    (inside / "bench.json.gz").write_bytes(gzip.compress(json.dumps(vllm_bench()).encode()))
    with pytest.raises(auto.IncompleteError) as caught:
        auto.read([inside])
    assert [item.run.format for item in caught.value.taken] == ["vllm bench serve", "GuideLLM"]


def test_the_clients_limit_below_the_engines_is_the_rows_and_is_said(folder, capsys):
    asked = ("import", "auto", "bench.json", "--power", "smi.csv", *SERVED, "-o", "r.csv")
    code, out, err = run(capsys, *asked, "--batch-size", "256")
    assert code == 0, err
    said = " ".join((out + err).split())
    assert "kept at most 8 requests in flight, fewer than --batch-size 256" in said
    assert "batch_size" not in table.read("r.csv").declared[0]
    code, out, err = run(capsys, *asked, "--batch-size", "4")
    assert code == 0, err
    rows = table.read("r.csv")
    assert (rows.cases.batch_size[0], "batch_size" in rows.declared[0]) == (4, True)


def test_a_power_log_without_watts_during_the_run_is_named_as_such(folder, capsys):
    times = step_times(1.0)
    watts = [step(times, NOON + 182, NOON + 302, 70.0, 480.0) for _ in range(2)]
    text = smi_csv(times, watts)
    lines = text.splitlines()
    header, rows = lines[0], lines[1:]
    within = np.repeat((times > NOON + 150) & (times < NOON + 350), 2)
    blank = [
        ",".join([*line.split(",")[:-1], " [N/A]"]) if run else line
        for line, run in zip(rows, within, strict=True)
    ]
    (folder / "smi.csv").write_text("\n".join([header, *blank]) + "\n")
    code, _, err = run(
        capsys, "import", "auto", "bench.json", "--power", "smi.csv", *SERVED, "-o", "r.csv"
    )
    assert code == 1
    assert "[N/A]" in err
