"""Locked clocks: what they leave of joules and speed, how sure that is, and how one is chosen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from energylens import catalog, latency, packaged, table
from energylens.cases import Cases
from energylens.cli import main
from energylens.clocks import JOULES_SPREAD, Clocked
from energylens.errors import InputError, UsageError
from energylens.explanation import explain
from energylens.instrument import meters
from energylens.instrument.meter import MeterError
from energylens.records import Case, Configuration, Workload
from energylens.scenarios import Candidates, Scenario
from energylens.selection import select
from instrument_fakes import FakeNvml

TOP_MHZ = 1980.0
SHARES = np.linspace(0.35, 1.0, 131)
ASKED = (
    "--llm", "Qwen/Qwen3-32B", "--gpu", "H100", "--input-tokens", "500", "--output-tokens", "500",
)  # fmt: skip


def served(input_tokens: float, output_tokens: float, batch: float, clock: float | None = None):
    return Case(
        llm=catalog.llm("Qwen/Qwen3-32B"),
        gpu=catalog.gpu("H100"),
        precision=catalog.precision("bf16"),
        workload=Workload(input_tokens=input_tokens, output_tokens=output_tokens),
        configuration=Configuration(tensor_parallel=2, batch_size=batch, clock_mhz=clock),
    )


PREFILL, DECODE, SINGLE = (16_000, 1, 8), (500, 500, 128), (500, 500, 1)


@pytest.fixture(scope="module")
def model():
    return packaged.for_gpu("H100-SXM-80GB")[0].model()


def over_clocks(model, *kind):
    """Joules at each share of the highest clock, over those without a lock."""
    one = Cases.of([served(*kind)])
    many = one.take(np.zeros(len(SHARES), dtype=np.intp)).replace(clock_mhz=SHARES * TOP_MHZ)
    return model.predict_energy_j(many) / model.predict_energy_j(one)


def test_joules_over_the_clock_are_u_shaped(model):
    best = {}
    for name, kind in (("prefill", PREFILL), ("decode", DECODE), ("single", SINGLE)):
        joules = over_clocks(model, *kind)
        least = int(joules.argmin())
        assert 0 < least < len(SHARES) - 1
        assert (np.diff(joules[: least + 1]) < 0).all()
        assert (np.diff(joules[least:]) > 0).all()
        best[name] = SHARES[least]
    # Published for serving on an A100: 0.71.
    assert all(0.65 < share < 0.8 for share in best.values()), best


def times(law, share):
    """Seconds of a step of one sequence at a share of the clock, over those without a lock."""
    free, locked = (
        law.predict_s(Cases.of([served(*SINGLE, c)]), "itl")[0] for c in (None, share * TOP_MHZ)
    )
    return locked / free


def test_multiplying_takes_longer_and_reading_only_below_a_clock():
    law = latency.from_datasheet()
    for kind, target, share, slower in (
        (PREFILL, "ttft", 0.7, 1 / 0.7), (SINGLE, "itl", 0.7, 1.0), (PREFILL, "ttft", 0.5, 2.0),
    ):  # fmt: skip
        free, locked = (
            law.predict_s(Cases.of([served(*kind, clock)]), target)[0]
            for clock in (None, share * TOP_MHZ)
        )
        assert locked / free == pytest.approx(slower, rel=0.05)
    # A core at half its clock asks for bytes more slowly than memory could give them.
    assert 1.0 < times(law, 0.5) < 0.7 / 0.5


def test_the_highest_clock_is_none_and_no_clock_changes_no_bit(model):
    for kind in (PREFILL, DECODE, SINGLE):
        free, top = Cases.of([served(*kind)]), Cases.of([served(*kind, TOP_MHZ)])
        assert model.predict_energy_j(top) == pytest.approx(model.predict_energy_j(free), rel=1e-12)
    # Beside a clocked case a free one is what it is alone.
    both = Cases.of([served(*DECODE), served(*DECODE, 1200.0)])
    alone = Cases.of([served(*DECODE)])
    assert model.predict_energy_j(both)[0] == model.predict_energy_j(alone)[0]
    prefill, decode = model.predict_parts_j(both)
    assert (prefill + decode).sum(axis=1) == pytest.approx(model.predict_energy_j(both))
    every = Clocked.of(np.array([1.0]))
    for left in (every.waiting_j, every.reading_j, every.multiplying_j, every.speed):
        assert left == pytest.approx(1.0, rel=1e-15)


def test_without_rows_at_clocks_the_interval_widens_with_them_and_it_is_said(model):
    free, high, low = (
        Cases.of([served(*DECODE, c) for c in (None, 1600.0, 900.0)]).take(np.arange(3)),
        1,
        2,
    )
    lower, upper = model.interval_energy_j(free)
    width = np.log(upper / lower)
    assert width[0] < width[high] < width[low]
    variance = model.log_variance(free)
    beyond = JOULES_SPREAD * np.log(TOP_MHZ / 900.0)
    assert variance[low] - variance[0] == pytest.approx(beyond**2, rel=0.2)
    said = explain(model, served(*DECODE, 900.0))
    assert any("physics alone" in note for note in said.notes)
    assert not any("clock" in note for note in explain(model, served(*DECODE)).notes)
    assert "900MHz" in said.case
    # Rows that went down to half the clock take the widening away down to there.
    seen = replace(model, scope=replace(model.scope, ranges={"clock_ratio": (0.4, 1.0)}))
    assert seen.log_variance(free)[high] < variance[high]
    assert not any("physics alone" in note for note in explain(seen, served(*DECODE, 900.0)).notes)


def test_the_draws_know_that_one_clock_is_as_wrong_as_the_next(model):
    clocks = Cases.of([served(*DECODE, c) for c in (None, 1000.0, 950.0)])
    draws = np.log(model.sample_energy_j(clocks, 4000, seed=3))
    assert draws[:, 1].std() > 1.5 * draws[:, 0].std()
    assert np.corrcoef(draws[:, 1], draws[:, 2])[0, 1] > 0.9


def test_select_finds_the_clock_between_the_ends(model):
    clocks = (1980.0, 1700.0, 1400.0, 1100.0, 700.0)
    for kind, best in ((PREFILL, {1400.0}), (DECODE, {1400.0})):
        scenario = Scenario.of(served(*kind), 2)
        ranking = select(
            model, scenario, choose=("clock",), candidates=Candidates(clocks_mhz=clocks)
        )
        assert ranking.best.configuration.clock_mhz in best
        assert ranking.to_json()["ranking"][0]["clock_mhz"] in best
        assert len(ranking.cases) == len(clocks)


def test_what_cannot_be_locked_is_refused_in_a_sentence(model):
    free = served(*DECODE)
    for gpu, configuration, words in (
        (free.gpu, Configuration(clock_mhz=2500.0), "clock_mhz must lie between 198 and 2079 MHz"),
        (free.gpu, Configuration(clock_mhz=1400.0, power_cap_w=400.0), "not be given together"),
        (catalog.gpu("Gaudi-3"), Configuration(clock_mhz=1400.0), "gpu add --max-clock-mhz"),
    ):
        with pytest.raises(InputError, match=words):
            replace(free, gpu=gpu, configuration=configuration)
    for clocks, words in (((), "must list some"), ((2500.0,), "clock_mhz must lie between")):
        with pytest.raises(UsageError, match=words):
            select(
                model, Scenario.of(free, 2), choose=("clock",),
                candidates=Candidates(clocks_mhz=clocks),
            )  # fmt: skip
    # One that a single GPU type of several can have is ruled out on the others.
    listed = Candidates(gpus=(free.gpu, catalog.gpu("A100")), clocks_mhz=(1200.0, 1980.0))
    ranking = select(model, Scenario.of(free, 4), choose=("gpu", "clock"), candidates=listed)
    [out] = ranking.infeasible()
    assert (out.gpu, out.cause, out.configuration.clock_mhz) == ("A100-SXM-80GB", "clock", 1980.0)


ROW = {
    "llm": "Qwen/Qwen3-8B", "gpu": "H100", "input_tokens": 100, "output_tokens": 100,
    "batch_size": 8, "energy_per_request_j": 50.0, "source": "measured",
}  # fmt: skip


def read(tmp_path, **cells):
    path = tmp_path / "runs.jsonl"
    path.write_text(json.dumps(ROW) + "\n" + json.dumps(ROW | cells) + "\n")
    return table.read(path)


def test_a_clock_is_a_column_and_a_table_without_one_is_what_it_was(tmp_path):
    without, clocked = read(tmp_path), read(tmp_path, clock_mhz=1400)
    assert clocked.cases.clock_mhz.tolist()[1] == 1400
    assert clocked.cases.case(1).configuration.clock_mhz == 1400
    assert clocked.digest != without.digest
    assert clocked.scenarios(["clock"])[0].tolist() == [0, 1]
    assert clocked.scenarios(["batch_size"]) == []
    for cells, words in (
        ({"clock_mhz": 14}, "line 2: clock_mhz must lie between 198 and 2079 MHz"),
        ({"clock_mhz": 1400, "power_cap_w": 400}, "power_cap_w below the TDP must not"),
        ({"clock_mhz": 1400, "gpu": "Gaudi-3"}, "needs the highest clock of a Gaudi-3"),
    ):
        with pytest.raises(InputError, match=words):
            read(tmp_path, **cells)


def test_the_command_explains_and_chooses_clocks_under_a_load(capsys):
    one = ("explain", *ASKED, "--tensor-parallel", "2", "--clock-mhz", "1400", "--json")
    assert main(one) == 0
    explained = json.loads(capsys.readouterr().out)
    assert any("physics alone" in note for note in explained["notes"])
    asked = (
        "select", *ASKED, "--rate", "2", "--tpot", "60ms", "--ttft", "3s", "--json",
        "--choose", "tensor_parallel,batch_size,clock", "--clocks", "1980,1400,900,700",
    )  # fmt: skip
    assert main(asked) == 0
    document = json.loads(capsys.readouterr().out)
    best = document["configurations"][0]
    assert best["clock_mhz"] in (900, 1400)
    assert any("physics alone" in note for note in document["notes"])
    clock = f"{best['clock_mhz']:g}"
    for kind in ("vllm", "kubernetes"):
        assert main([*asked[:-5], *asked[-4:], "--emit", kind]) == 0
        said = capsys.readouterr().out
        assert said.startswith(
            f"# Before it starts, lock its GPUs, as root: nvidia-smi -lgc {clock},"
        )
    for extra, words in (
        (("--choose", "clock"), "give --clocks"),
        (("--clocks", "1400"), "--clocks has no effect"),
        (("--choose", "clock", "--clocks", "1400", "--clock-mhz", "1400"), "clock is free"),
    ):
        assert main(["select", *ASKED, *extra]) == 2
        assert words in capsys.readouterr().err


# ------------------------------------------------------------------------------ measured


def planned(folder: Path, *options: str) -> Path:
    path = folder / "plan.jsonl"
    told = (
        "plan", "--llm", "Qwen/Qwen3-8B", "--gpu", "H100", "--engine", "simulated", "--quick",
        "--input-tokens", "2000", "--output-tokens", "50", "--batch-sizes", "32",
        "--clocks", "none,1980,1600,1400,1000", *options, "-o", str(path),
    )  # fmt: skip
    assert main(told) == 0
    return path


def test_clocks_are_a_factor_of_a_plan_that_the_simulated_node_is_measured_under(tmp_path, capsys):
    path, runs = planned(tmp_path), tmp_path / "runs.jsonl"
    assert "5 cases" in capsys.readouterr().out
    assert main(["measure", str(path), "-o", str(runs), "--executor", "inline"]) == 0
    data = table.read(runs)
    order = np.argsort(np.nan_to_num(data.cases.clock_mhz, nan=9e9))
    assert np.isnan(data.cases.clock_mhz[order[-1]])
    joules = data.energy_per_request_j[order]
    assert joules[3] == pytest.approx(joules[4], rel=0.03)  # the highest clock is none
    assert joules[1] < 0.95 * joules[3]  # and slower ones save, until leakage is paid for longer
    prefill = data.prefill_energy_per_request_j[order]
    assert prefill[:3].argmin() > 0 or prefill[0] < prefill[3]
    records = (tmp_path / "runs.records.jsonl").read_text().splitlines()
    assert len({json.loads(line)["provenance"]["engine_version"] for line in records}) == 1
    # Rows at clocks take the widening away.
    assert main(["fit", str(runs), "-o", str(tmp_path / "model.json")]) == 0
    capsys.readouterr()
    told = ("explain", str(tmp_path / "model.json"), *ASKED, "--clock-mhz")
    assert main([*told, "1400"]) == 0
    assert "physics alone" not in capsys.readouterr().out
    assert main([*told, "800"]) == 0
    assert "clock_ratio = 0.40404 lies outside" in capsys.readouterr().out
    for given in ("fast", "-3"):
        with pytest.raises(SystemExit, match="2"):
            planned(tmp_path, "--clocks", given)
    assert main(["plan", "--llm", "Qwen/Qwen3-8B", "--gpu", "H100", "--clocks", "3000", "-o",
                 str(tmp_path / "other.jsonl")]) == 1  # fmt: skip
    assert "clock_mhz must lie between" in capsys.readouterr().err


@pytest.fixture
def nvml(monkeypatch):
    library = FakeNvml(gpus=2)
    monkeypatch.setitem(sys.modules, "pynvml", library)
    return library


def test_nvml_locks_and_gives_back(nvml):
    meter = meters.NvmlMeter()
    meter.lock_clocks((0, 1), 1400.0)
    assert nvml.locked_mhz == {0: 1400, 1: 1400}
    meter.lock_clocks((0, 1), None)
    assert nvml.locked_mhz == {}
    nvml.lock_error = 4
    with pytest.raises(MeterError, match=r"gpu1 cannot be locked: permission is denied.*root"):
        meter.lock_clocks((0, 1), 1400.0)
    meter.lock_clocks((0, 1), None)
    meter.close()
    assert nvml.locked_mhz == {}


KILLED = """
import os, sys
sys.path.insert(0, sys.argv[1])
from instrument_fakes import FakeNvml
sys.modules["pynvml"] = FakeNvml()
from energylens.instrument import meters
meters.NvmlMeter().lock_clocks((0,), 1400.0)
os.kill(os.getpid(), 9)
"""


def test_whoever_dies_with_a_lock_has_it_taken_off(tmp_path):
    said = tmp_path / "said"
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho $@ >> {said}\n")
    program.chmod(0o755)
    paths = os.pathsep.join(filter(None, sys.path))
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(Path(__file__).parent)],
        env=os.environ | environment, check=False,
    )  # fmt: skip
    assert done.returncode == -9
    while not (said.exists() and said.read_text()):
        pass  # the guard outlives it
    assert said.read_text() == "-i 0 -rgc\n"
