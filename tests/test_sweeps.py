"""A sweep survives kills, crashes, hangs and interrupts, in processes, on Ray and under Slurm."""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from energylens import files, table
from energylens.errors import ArtefactError, MissingExtraError, UsageError
from energylens.instrument import ledger
from energylens.instrument import sweep as measurement
from energylens.instrument.executor import Executor, Place, ReportKind, Task
from energylens.instrument.executors.local import InlineExecutor, LocalExecutor
from energylens.instrument.executors.ray import RayExecutor
from energylens.instrument.executors.slurm import SlurmExecutor
from energylens.instrument.plan import Plan
from energylens.instrument.sweep import SweepProgress, SweepResult
from instrument_fakes import (
    CRASHES,
    CRASHES_ONCE,
    HANGS,
    FakeEngine,
    make_engine,
    no_meter,
    plan_of,
    planned,
)

TESTS = Path(__file__).parent
SOURCE = TESTS.parent / "src"


@pytest.fixture(autouse=True)
def fake_engine_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_ENGINE_FOLDER", str(tmp_path))
    # Jobs and actors import these fakes and the package by name.
    monkeypatch.setenv("PYTHONPATH", f"{SOURCE}{os.pathsep}{TESTS}")


def sweep(tmp_path: Path, plan: Plan, executor: Executor, **options: Any) -> SweepResult:
    return measurement.measure(
        plan, make_engine, no_meter, tmp_path / "runs.jsonl", executor=executor, **options
    )


def rows_of(tmp_path: Path) -> list[dict[str, Any]]:
    return files.read_json_lines(tmp_path / "runs.jsonl")


def records_of(tmp_path: Path) -> list[dict[str, Any]]:
    return files.read_json_lines(tmp_path / "runs.records.jsonl")


def measured_keys(tmp_path: Path) -> Counter[str]:
    return Counter(r["case"] for r in records_of(tmp_path) if r.get("status") == "measured")


# ------------------------------------------------------------------------------- kill and resume


def _sweep_eight(folder: str) -> None:
    measurement.measure(
        plan_of(*(planned(batch) for batch in range(1, 9))),
        lambda _: FakeEngine(),
        no_meter,
        Path(folder) / "runs.jsonl",
        executor=InlineExecutor(),
    )


def _calls_of(work: Callable[[], None], last: float = math.inf) -> int:
    """Do a piece of work and count its function calls; at call number ``last`` it is killed.

    Calls count how far the work is, however fast the machine: an instant that the clock names
    may lie before the beginning on one machine and after the end on another.
    """
    calls = 0

    def look(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += 1
        if calls >= last:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(look)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Python 3.12
@pytest.mark.parametrize("seed", [0, 1])
def test_a_sweep_killed_at_twenty_instants_has_every_case_exactly_once(
    tmp_path: Path, seed: int
) -> None:
    context = multiprocessing.get_context("fork")
    chance = random.Random(seed)
    for name in ("first", "whole"):  # the first one imports and fills caches too
        (tmp_path / name).mkdir()
        whole = _calls_of(partial(_sweep_eight, str(tmp_path / name)))
    for part in range(10):
        folder = tmp_path / f"killed-{part}"
        folder.mkdir()
        seen: set[str] = set()
        # In each tenth of a sweep once, and once more in the first half of what then is left.
        for instant in ((part + chance.random()) / 10.5, chance.uniform(0.0, 0.5 - part / 20)):
            work = partial(_sweep_eight, str(folder))
            process = context.Process(target=_calls_of, args=(work, instant * whole))
            process.start()
            process.join()
            assert process.exitcode == -signal.SIGKILL
            process.close()
            records = folder / "runs.records.jsonl"
            if records.exists():
                written = files.read_json_lines(records, allow_torn_end=True)
                now = {r["case"] for r in written if r.get("status") == "measured"}
                assert seen <= now  # nothing is lost
                seen = now
        _sweep_eight(str(folder))
        keys = measured_keys(folder)
        assert len(keys) == 8
        assert set(keys.values()) == {1}
        rows = rows_of(folder)  # strict: no torn line is left
        assert Counter(row["x_case"] for row in rows) == keys
        assert len(table.read(folder / "runs.jsonl")) == 8


@pytest.mark.parametrize("cut", [1, 40, 400])
def test_a_torn_line_is_cut_off_and_its_case_measured_again(tmp_path: Path, cut: int) -> None:
    plan = plan_of(planned(1), planned(2), planned(3))
    sweep(tmp_path, plan, InlineExecutor())
    records = tmp_path / "runs.records.jsonl"
    whole = records.read_bytes()
    records.write_bytes(whole[:-cut])
    rows = tmp_path / "runs.jsonl"
    lines = rows.read_bytes().splitlines(keepends=True)
    rows.write_bytes(b"".join(lines[:-1]))  # the row follows its record
    sweep(tmp_path, plan, InlineExecutor())
    assert set(measured_keys(tmp_path).values()) == {1}
    assert len(rows_of(tmp_path)) == 3


def test_a_row_that_a_kill_kept_out_of_the_table_is_added(tmp_path: Path) -> None:
    plan = plan_of(planned(1), planned(2))
    sweep(tmp_path, plan, InlineExecutor())
    rows = tmp_path / "runs.jsonl"
    lines = rows.read_text().splitlines(keepends=True)
    rows.write_text(lines[0] + lines[1][:50])
    result = sweep(tmp_path, plan, InlineExecutor())
    assert result.energy_j == 0  # nothing was measured anew
    assert len(rows_of(tmp_path)) == 2


def test_measuring_again_measures_only_what_is_new(tmp_path: Path) -> None:
    sweep(tmp_path, plan_of(planned(1)), InlineExecutor())
    result = sweep(tmp_path, plan_of(planned(1), planned(2)), InlineExecutor())
    assert result.measured == 2
    assert measured_keys(tmp_path).total() == 2


def test_failed_cases_are_tried_again_only_when_asked(tmp_path: Path) -> None:
    plan = plan_of(planned(1), planned(2, input_tokens=CRASHES_ONCE))

    def crashes_in_words(_: str) -> FakeEngine:
        engine = FakeEngine()

        def fails_once(prompt: int) -> None:
            marker = tmp_path / "failed"
            if prompt == CRASHES_ONCE and not marker.exists():
                marker.touch()
                raise RuntimeError("a bad moment")

        engine._misbehave = fails_once  # type: ignore[method-assign]
        return engine

    def again(**options: Any) -> SweepResult:
        return measurement.measure(
            plan,
            crashes_in_words,
            no_meter,
            tmp_path / "runs.jsonl",
            executor=InlineExecutor(),
            **options,
        )

    assert len(again().failed) == 1
    assert len(again().failed) == 1
    assert not again(retry_failed=True).failed
    assert len(rows_of(tmp_path)) == 2


def test_two_sweeps_cannot_write_to_one_table(tmp_path: Path) -> None:
    records = ledger.records_path(tmp_path / "runs.jsonl")
    with (
        ledger._locked(records),
        pytest.raises(ArtefactError, match="another sweep"),
    ):
        sweep(tmp_path, plan_of(planned()), InlineExecutor())


def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    records = tmp_path / "runs.records.jsonl"
    records.write_text('{"a": 1}\n')
    with pytest.raises(ArtefactError, match="records of a sweep"):
        sweep(tmp_path, plan_of(planned()), InlineExecutor())
    assert records.read_text() == '{"a": 1}\n'


# -------------------------------------------------------------------------------- local processes


def test_engines_run_in_processes_side_by_side(tmp_path: Path) -> None:
    cases = [
        planned(4, tensor_parallel=tp, options={"copy": str(copy)})
        for tp in (1, 2)
        for copy in range(2)
    ]
    told: list[SweepProgress] = []
    executor = LocalExecutor(gpus=(0, 1, 2, 3), log_folder=tmp_path / "logs")
    result = sweep(tmp_path, plan_of(*cases), executor, on_progress=told.append)
    assert result.measured == 4
    assert len(table.read(tmp_path / "runs.jsonl")) == 4
    places = [r["active"] for r in records_of(tmp_path)]
    assert [len(p) for p in sorted(places, key=len)] == [1, 1, 2, 2]
    assert len(list((tmp_path / "logs").glob("*.log"))) >= 3
    assert told[-1].done == 4
    assert told[-1].energy_j == pytest.approx(result.energy_j)
    # Neighbours draw power too, so the node's joules mean nothing.
    assert not any("x_node_energy_per_request_j" in row for row in rows_of(tmp_path))


def test_alone_on_the_node_both_boundaries_come_from_one_run(tmp_path: Path) -> None:
    executor = LocalExecutor(gpus=(0, 1, 2, 3), exclusive=True)
    sweep(tmp_path, plan_of(planned(tensor_parallel=2)), executor)
    row = rows_of(tmp_path)[0]
    assert row["x_node_gpus"] == 4
    assert row["x_node_energy_per_request_j"] > row["energy_per_request_j"]


def test_a_layout_is_divided_so_that_no_gpu_is_idle() -> None:
    cases = [planned(batch) for batch in range(1, 8)]
    parts = measurement._spread([cases], room=4)
    assert sorted(map(len, parts)) == [1, 2, 2, 2]
    assert sorted(c.key for p in parts for c in p) == sorted(c.key for c in cases)
    assert measurement._spread([cases], room=0) == [cases]


def test_a_case_that_kills_its_engine_is_recorded_and_the_sweep_goes_on(tmp_path: Path) -> None:
    cases = [planned(1), planned(2, input_tokens=CRASHES), planned(3)]
    result = sweep(tmp_path, plan_of(*cases), LocalExecutor())
    assert result.measured == 2
    assert "SIGKILL" in next(iter(result.failed.values()))
    failed = [r for r in records_of(tmp_path) if r.get("status") == "failed"]
    assert [r["reason"] for r in failed] == ["worker_lost"]
    assert sum(r["kind"] == "lost" for r in records_of(tmp_path)) == 2  # it had two attempts


def test_a_case_whose_worker_was_killed_once_is_measured_after_all(tmp_path: Path) -> None:
    cases = [planned(1), planned(2, input_tokens=CRASHES_ONCE), planned(3)]
    result = sweep(tmp_path, plan_of(*cases), LocalExecutor())
    assert (result.measured, len(result.failed)) == (3, 0)


def test_a_hang_past_its_limit_is_killed_and_recorded(tmp_path: Path) -> None:
    hung = tmp_path / "hung"  # written by the engine that hangs, when it does
    hours = 0

    def clock() -> float:
        # Hours go by while the engine hangs, and only then, however slow the machine is.
        nonlocal hours
        hours += hung.exists()
        return time.monotonic() + 3600.0 * hours

    def wake(progress: SweepProgress) -> None:
        if progress.failed:
            hung.unlink(missing_ok=True)

    cases = [planned(1), planned(2, input_tokens=HANGS), planned(3)]
    result = sweep(tmp_path, plan_of(*cases), LocalExecutor(clock=clock), on_progress=wake)
    assert result.measured == 2
    failed = [r for r in records_of(tmp_path) if r.get("status") == "failed"]
    assert [r["reason"] for r in failed] == ["timed_out"]


def _writes_garbage(payload: bytes, place: Place) -> Iterator[Any]:
    """As an engine that writes to the descriptors it finds open."""
    yield {"kind": "start"}
    for descriptor in range(3, 4096):
        with contextlib.suppress(OSError):
            os.write(descriptor, payload)
    time.sleep(3600)


@pytest.mark.parametrize(
    "garbage", [b"\x80\x04garbage\n", b'["run", "me"]\n', b"[" * 50_000 + b"\n", b"7\n"]
)
def test_garbage_on_a_worker_s_pipe_is_a_lost_worker(garbage: bytes) -> None:
    executor = LocalExecutor()
    executor.begin(_writes_garbage)
    executor.submit(Task(id="a", gpus=0, payload=garbage, limit_s=1e6))
    found: list[Any] = []
    while not any(report.kind is ReportKind.LOST for report in found):
        found += executor.reports(0.1)
    assert "no report" in found[-1].message
    executor.close()


def test_an_interrupt_while_a_worker_starts_leaves_no_traceback(tmp_path: Path) -> None:
    """Ctrl-C reaches every process of the terminal, also one that is not yet ready for it."""
    seen = 0
    for instant in range(6):
        folder = tmp_path / str(instant)
        folder.mkdir()
        driver = start_driver(folder, pause_s=0.0, stderr=subprocess.PIPE, start_new_session=True)
        wait_for(lambda: len(children_of(driver.pid)) >= 2 or driver.poll() is not None)  # noqa: B023
        time.sleep(0.02 * instant)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(driver.pid, signal.SIGINT)
        _, error = driver.communicate()
        assert b"Traceback" not in error, error.decode()
        seen += driver.returncode == 130
    assert seen


def test_what_cannot_be_sent_to_a_process_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="picklable"):
        measurement.measure(
            plan_of(planned()),
            lambda _: FakeEngine(),
            no_meter,
            tmp_path / "runs.jsonl",
            executor=LocalExecutor(),
        )


DRIVER = """
    import sys
    sys.path[:0] = [{tests!r}, {source!r}]
    from pathlib import Path
    from instrument_fakes import make_engine, no_meter, plan_of, planned
    from energylens.instrument import sweep as measurement
    from energylens.instrument.executors.local import LocalExecutor

    if __name__ == "__main__":
        cases = [planned(batch) for batch in range(1, 7)]
        result = measurement.measure(
            plan_of(*cases), make_engine, no_meter, Path({folder!r}) / "runs.jsonl",
            executor=LocalExecutor(),
        )
        sys.exit(130 if result.interrupted else 0)
"""


def start_driver(tmp_path: Path, pause_s: float, **options: Any) -> subprocess.Popen[bytes]:
    script = tmp_path / "driver.py"
    script.write_text(
        textwrap.dedent(DRIVER).format(tests=str(TESTS), source=str(SOURCE), folder=str(tmp_path))
    )
    environment = os.environ | {"FAKE_ENGINE_PAUSE_S": str(pause_s)}
    return subprocess.Popen([sys.executable, str(script)], env=environment, **options)


def wait_for(condition: Any) -> None:
    """Wait for what must happen, however slow the machine; the limit is for what never will."""
    deadline = time.monotonic() + 600.0
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def children_of(process: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:
            continue
        if int(text.rpartition(")")[2].split()[1]) == process:
            found.append(int(stat.parent.name))
    return found


def alive(process: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def test_workers_die_with_a_driver_that_is_killed_and_the_sweep_resumes(tmp_path: Path) -> None:
    driver = start_driver(tmp_path, pause_s=0.002)
    wait_for(lambda: count_lines(tmp_path / "runs.jsonl") >= 2)
    workers = children_of(driver.pid)
    driver.kill()
    driver.wait()
    wait_for(lambda: not any(map(alive, workers)))
    done = set(measured_keys(tmp_path))
    assert 2 <= len(done) < 6
    assert start_driver(tmp_path, pause_s=0.0).wait() == 0
    keys = measured_keys(tmp_path)
    assert done <= set(keys)
    assert (len(keys), set(keys.values())) == (6, {1})


def test_an_interrupt_finishes_the_window_and_keeps_what_is_measured(tmp_path: Path) -> None:
    driver = start_driver(tmp_path, pause_s=0.002)
    wait_for(lambda: count_lines(tmp_path / "runs.jsonl") >= 1)
    driver.send_signal(signal.SIGINT)
    assert driver.wait() == 130
    done = measured_keys(tmp_path)
    assert 1 <= len(done) < 6
    assert not [r for r in records_of(tmp_path) if r.get("status") == "failed"]
    assert start_driver(tmp_path, pause_s=0.0).wait() == 0
    assert len(measured_keys(tmp_path)) == 6


def test_a_sigterm_ends_at_once_with_the_workers_and_keeps_what_is_measured(
    tmp_path: Path,
) -> None:
    driver = start_driver(tmp_path, pause_s=0.002)
    wait_for(lambda: count_lines(tmp_path / "runs.jsonl") >= 1)
    workers = children_of(driver.pid)
    driver.send_signal(signal.SIGTERM)
    assert driver.wait() == -signal.SIGINT  # a KeyboardInterrupt, as of Ctrl-C
    wait_for(lambda: not any(map(alive, workers)))
    assert 1 <= len(measured_keys(tmp_path)) < 6
    assert start_driver(tmp_path, pause_s=0.0).wait() == 0
    assert len(measured_keys(tmp_path)) == 6


# ------------------------------------------------------------------------------------------ Slurm


def test_slurm_without_submitit_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(MissingExtraError, match=r"energylens\[slurm\]"):
        SlurmExecutor(tmp_path)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # submitit never waits for its jobs
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_jobs_report_through_the_shared_folder(tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="needs the extra slurm")
    cases = [
        planned(1),
        planned(2, input_tokens=CRASHES_ONCE),
        planned(3),
        planned(4, options={"copy": "1"}),
    ]
    executor = SlurmExecutor(
        tmp_path / "jobs", cluster="local", gpus=0, parameters={"gpus_per_node": 0}
    )
    result = sweep(tmp_path, plan_of(*cases), executor)
    assert (result.measured, len(result.failed)) == (4, 0)
    assert set(measured_keys(tmp_path).values()) == {1}


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_jobs_wrote_for_a_killed_driver_is_taken_in(tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="needs the extra slurm")
    plan = plan_of(planned(1), planned(2))
    sweep(tmp_path / "other", plan, InlineExecutor())
    folder = tmp_path / "jobs"
    folder.mkdir()
    record = records_of(tmp_path / "other")[0]
    (folder / "old.jsonl").write_text(json.dumps(["piece", record]) + "\n")
    (folder / "old.job.json").write_text(json.dumps({"job": "1", "pieces": "old.jsonl"}))
    executor = SlurmExecutor(folder, cluster="local", gpus=0, parameters={"gpus_per_node": 0})
    sweep(tmp_path, plan, executor)
    runs = [r["run"] for r in records_of(tmp_path) if r.get("status") == "measured"]
    assert len(runs) == 2
    assert record["run"] in runs


# -------------------------------------------------------------------------------------------- Ray


def test_ray_that_is_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"energylens\[ray\]"):
        RayExecutor()


@pytest.fixture
def ray_cluster(tmp_path: Path) -> Iterator[Any]:
    """A Ray cluster of two nodes with two simulated GPUs each, beside a head without any."""
    ray = pytest.importorskip("ray", reason="needs the extra ray")
    from ray.cluster_utils import Cluster

    environment = {name: os.environ[name] for name in ("PYTHONPATH", "FAKE_ENGINE_FOLDER")} | {
        "FAKE_ENGINE_PAUSE_S": "0.002"
    }
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "num_gpus": 0, "include_dashboard": False},
    )
    nodes = [cluster.add_node(num_cpus=3, num_gpus=2) for _ in range(2)]
    cluster.wait_for_nodes()
    ray.init(
        address=cluster.address,
        log_to_driver=False,
        runtime_env={"env_vars": environment},
    )
    cluster.gpu_nodes = nodes
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_ray_cluster_that_loses_a_worker_and_a_node_gives_every_row_once(
    tmp_path: Path, ray_cluster: Any
) -> None:
    cases = [planned(batch, options={"copy": str(batch % 4)}) for batch in range(1, 8)]
    cases.append(planned(8, input_tokens=CRASHES_ONCE, options={"copy": "0"}))
    gone = []

    def lose_a_node(progress: SweepProgress) -> None:
        if progress.done >= 2 and not gone:
            gone.append(progress.done)
            ray_cluster.remove_node(ray_cluster.gpu_nodes[1], allow_graceful=False)

    # The node may take along the very case that has crashed before: that is two losses of one.
    plan = plan_of(*cases, attempts=3)
    result = sweep(tmp_path, plan, RayExecutor(), on_progress=lose_a_node)
    assert gone
    assert (tmp_path / "crashed").exists()
    assert (result.measured, len(result.failed)) == (8, 0)
    assert set(measured_keys(tmp_path).values()) == {1}
    assert len(rows_of(tmp_path)) == 8


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_task_larger_than_a_node_spans_nodes_and_reads_both_meters(
    tmp_path: Path, ray_cluster: Any
) -> None:
    from instrument_fakes import open_fake_meter

    case = planned(4, tensor_parallel=2, pipeline_parallel=2)
    result = measurement.measure(
        plan_of(case, whole=False),
        partial(make_engine_without_meter),
        open_fake_meter,
        tmp_path / "runs.jsonl",
        executor=RayExecutor(meter_factory=open_fake_meter),
    )
    assert result.measured == 1, result.failed
    record = records_of(tmp_path)[0]
    assert len(record["channels"]) == 4
    assert len(record["active"]) == 4
    assert "node1_meter_clock_offset_s" in record["provenance"]


def make_engine_without_meter(name: str) -> FakeEngine:
    from instrument_fakes import RealTimeEngine

    return RealTimeEngine()


# ---------------------------------------------------------------------------------------- the seam


def test_an_inline_executor_that_is_asked_to_stop_starts_nothing_new() -> None:
    executor = InlineExecutor()

    def work(payload: Any, place: Place) -> Iterator[Any]:
        assert not place.stopping()
        yield payload

    executor.begin(work)
    executor.submit(Task(id="a", gpus=0, payload=1, limit_s=1.0))
    executor.submit(Task(id="b", gpus=0, payload=2, limit_s=1.0))
    assert [r.piece for r in executor.reports(0.0)] == [1]
    executor.finish_soon()
    kinds = [executor.reports(0.0)[0].kind for _ in range(2)]
    assert kinds == [ReportKind.DONE, ReportKind.DONE]
    assert executor.reports(0.0) == []
    executor.close()


def test_an_executor_must_be_told_what_to_do() -> None:
    executor = InlineExecutor()
    executor.submit(Task(id="a", gpus=0, payload=1, limit_s=1.0))
    with pytest.raises(UsageError, match="begin"):
        executor.reports(0.0)
