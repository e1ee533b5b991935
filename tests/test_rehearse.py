"""Rehearsal of a fleet on a trace: conservation, equal terms, and an oracle that none beats."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from energylens.cli import main
from energylens.errors import ArtefactError, InfeasibleError, InputError
from energylens.online.fleet import Fleet, Setting, fleet_of
from energylens.online.forecast import Forecast
from energylens.online.knowledge import Belief, Knowledge
from energylens.online.oracle import Moves, oracle, plan
from energylens.online.ours import Ours, hold_saving
from energylens.online.plans import Plan
from energylens.online.policies import POLICIES, Fixed, policy
from energylens.online.rehearsal import Action, Rehearsal, Seen, State, World, rehearse
from energylens.online.trace import Trace, read_trace

AZURE = Path(__file__).parents[2] / "shared" / "data" / "azure-llm-trace"
FILE = {
    "serve": {
        "llm": "meta-llama/Llama-3.1-8B-Instruct",
        "gpu": "H100",
        "tensor_parallel": 1,
        "replicas": 3,
        "max_num_seqs": 128,
    },
    "limits": {"ttft": "1s", "tpot": "40ms"},
    "replica": {"start_s": 20},
    "control": {"power_caps_w": [400], "clock_ratios": [0.7]},
}


@pytest.fixture(scope="module")
def fleet() -> Fleet:
    return fleet_of(FILE, "test")


def made(n: int = 1200, seed: int = 0) -> Trace:
    """Make a trace of a calm half and a busy half."""
    rng = np.random.default_rng(seed)
    gaps = rng.exponential(1.0, n) * np.where(np.arange(n) < n // 3, 1.0, 0.12)
    return Trace(
        name="made",
        arrivals_s=np.cumsum(gaps) - gaps[0],
        input_tokens=rng.integers(50, 1500, n),
        output_tokens=1 + rng.geometric(1 / 120, n),
    )


@pytest.fixture(scope="module")
def known(fleet: Fleet) -> Knowledge:
    return Knowledge(fleet, made(seed=7).lengths)


@pytest.fixture(scope="module")
def past() -> Plan:
    return Plan.of(made(seed=7))


@pytest.fixture(scope="module")
def rehearsals(fleet: Fleet, known: Knowledge, past: Plan) -> dict[str, Rehearsal]:
    trace = made()
    return {name: rehearse(fleet, trace, policy(name, fleet, known, past)) for name in POLICIES}


def test_every_request_is_served_once_under_every_policy(
    rehearsals: dict[str, Rehearsal],
) -> None:
    for r in rehearsals.values():
        assert r.requests == 1200
        assert np.all(r.ttft_s > 0)
        assert np.all(np.isfinite(r.tpot_s))
        assert all(value >= 0 for value in r.simulated_joules.values())


def test_the_joules_of_an_idle_fleet_are_its_watts_times_the_time(fleet: Fleet) -> None:
    trace = replace(made(2), arrivals_s=np.array([0.0, 1000.0]), output_tokens=np.array([1, 1]))
    world = World(fleet, trace, Action(replicas=2, batch_limit=8))
    world.live(500.0)
    parts = world.joules()
    assert parts["loaded_idle"] == pytest.approx(
        2 * fleet.table(1, Setting()).idle_w * 500, rel=0.01
    )
    assert parts["sleeping"] == pytest.approx(fleet.sleep_w(1) * 500, rel=1e-9)


def test_a_start_takes_its_time_and_joules_and_a_stop_drains(fleet: Fleet) -> None:
    trace = made()
    world = World(fleet, trace, Action(replicas=1, batch_limit=64))
    world.live(50.0)
    world.act(Action(replicas=2, batch_limit=64))
    assert world.count(State.STARTING) == 1
    world.live(65.0)
    assert world.count(State.STARTING) == 1
    world.live(75.0)
    assert world.count(State.AWAKE) == 2
    assert world.joules()["starting"] == pytest.approx(fleet.start_energy_j(1))
    world.live(460.0)
    running = world.in_flight
    world.act(Action(replicas=1, batch_limit=64))
    assert running > 0
    assert world.count(State.DRAINING) + world.count(State.ASLEEP) == 2
    world.finish()
    assert world.in_flight == 0


def test_joules_by_interval_are_all_joules(rehearsals: dict[str, Rehearsal]) -> None:
    for r in rehearsals.values():
        assert r.joules_by_interval.sum() == pytest.approx(r.simulated_energy_j)
        assert np.all(r.joules_by_interval > 0)


def test_what_a_policy_is_told_of_late_requests_is_what_happened(fleet: Fleet) -> None:
    trace = made(400)
    world = World(fleet, trace, Action(replicas=1, batch_limit=2))
    for until in (20.0, 60.0, 100.0, 400.0):
        world.live(until)
        judged = world.judged()
        ttft, tpot = world.times()
        done = np.isfinite(tpot)
        late = (ttft > fleet.ttft_s) | (tpot > fleet.tpot_s)
        waits = np.isnan(ttft) & (until - trace.arrivals_s[: len(ttft)] > fleet.ttft_s)
        begun = ~done & (ttft > fleet.ttft_s)
        assert judged.finished == done.sum()
        assert judged.late == (done & late).sum() + waits.sum() + begun.sum()
        assert judged.output_tokens == trace.output_tokens[: len(ttft)][done].sum()
    assert judged.late > 0


# ------------------------------------------------------------------------------- layouts

MIXTURE = {
    "serve": {
        "llm": "Qwen/Qwen3-30B-A3B-Instruct-2507",
        "gpu": "H100",
        "precision": "bf16",
        "tensor_parallel": 2,
        "replicas": 1,
        "max_num_seqs": 128,
    },
    "limits": {"ttft": "1s", "tpot": "20ms"},
    "replica": {"start_s": 30, "swap_s": 60},
    "control": {"max_gpus": 3},
}


def phases(*spans: tuple[float, float], seed: int = 1) -> Trace:
    """Make a trace of spans of a rate and seconds."""
    rng = np.random.default_rng(seed)
    arrivals, begin = [], 0.0
    for rate, seconds in spans:
        arrivals += sorted(begin + rng.uniform(0.0, seconds, rng.poisson(rate * seconds)))
        begin += seconds
    n = len(arrivals)
    return Trace(
        name="phases",
        arrivals_s=np.array(arrivals) - arrivals[0],
        input_tokens=rng.integers(50, 1500, n),
        output_tokens=1 + rng.geometric(1 / 120, n),
    )


def test_a_layout_is_swapped_by_rolling_and_every_gpu_second_is_accounted_for() -> None:
    fleet = fleet_of(FILE | {"serve": FILE["serve"] | {"replicas": 4}}, "test")
    trace = made(1200, seed=2)
    old = Action(replicas=4, batch_limit=64)
    world = World(fleet, trace, old)
    world.live(200.0)
    world.act(replace(old, replicas=2, tensor_parallel=2))
    # No GPU is free: two replicas stop first, and two serve on while TP2 starts in their place.
    assert world.count(State.AWAKE) == 2
    least, until = 2, 200.0
    while world.seen().swapping:
        until += 1.0
        assert until < 400.0
        world.live(until)
        least = min(least, world.count(State.AWAKE))
        taken = sum(p.degree for p in world.places if p.state is not State.ASLEEP)
        assert taken + world.free_gpus == fleet.gpus
        assert taken <= fleet.gpus
    assert least >= 1
    up = [p for p in world.places if p.state in (State.AWAKE, State.STARTING)]
    assert [p.degree for p in up] == [2, 2]
    starts = [c for c in world.changes if c.what == "start"]
    assert len(starts) == 2
    assert sum(c.drained_requests for c in world.changes if c.what == "stop") > 0
    assert world.joules()["starting"] == pytest.approx(2 * fleet.start_energy_j(2, cold=True))
    world.finish()
    ttft, tpot = world.times()
    assert np.all(ttft > 0)
    assert np.all(np.isfinite(tpot))
    parts = world.joules()
    assert all(v >= 0 for v in parts.values())


def test_the_only_replica_is_never_stopped_for_a_swap() -> None:
    serve = MIXTURE["serve"]
    fleet = fleet_of(MIXTURE | {"control": {"max_gpus": 2}, "serve": serve}, "test")
    trace = phases((2.0, 200.0))
    world = World(fleet, trace, Action(replicas=1, batch_limit=64, tensor_parallel=2))
    world.live(50.0)
    world.act(Action(replicas=2, batch_limit=64, tensor_parallel=1))
    world.live(150.0)
    assert [p.degree for p in world.places if p.state is State.AWAKE] == [2]
    world.finish()
    assert np.all(np.isfinite(world.times()[1]))


def test_a_swap_pays_in_a_long_calm_and_is_left_alone_in_short_ones() -> None:
    fleet = fleet_of(MIXTURE, "test")
    before = phases((12.0, 300.0), seed=0)
    known, past = Knowledge(fleet, before.lengths), Plan.of(before)

    def both(trace: Trace) -> tuple[Rehearsal, Rehearsal, Ours]:
        swapping = Ours(fleet, known, past)
        still = Ours(fleet, known, past, swaps=False)
        return rehearse(fleet, trace, swapping), rehearse(fleet, trace, still), swapping

    ramp = [(rate, 50.0) for rate in (2.0, 3.0, 4.0, 6.0, 8.0, 10.0)]
    swapped, still, policy_ = both(phases((12.0, 60.0), (1.0, 1400.0), *ramp, (12.0, 60.0)))
    names = [c.what for c in swapped.changes if c.what.startswith("swap")]
    assert names == ["swap TP2 for TP1", "swap TP1 for TP2"]
    assert any("pay back in" in reason for reason in policy_.reasons)
    assert swapped.within_ratio >= fleet.file.limits.share
    assert swapped.simulated_energy_j < 0.98 * still.simulated_energy_j
    short = [(12.0, 60.0), (1.0, 60.0)] * 2 + [(12.0, 60.0)]
    swapped, still, _ = both(phases(*short))
    assert not [c for c in swapped.changes if c.what.startswith("swap")]
    assert swapped.simulated_energy_j == still.simulated_energy_j
    # Told to swap all the same, it breaks the limits.
    base = still.actions[0][1]

    class There(Fixed):
        def decide(self, seen: Seen) -> Action:
            calm = 60.0 < seen.now_s <= 120.0 or 180.0 < seen.now_s <= 240.0
            return replace(base, tensor_parallel=1 if calm else 2, fill=None)

    forced = rehearse(fleet, phases(*short), There("there and back", base))
    assert len([c for c in forced.changes if c.what.startswith("swap")]) == 4
    assert forced.within_ratio < fleet.file.limits.share
    assert still.within_ratio > forced.within_ratio


def test_a_lower_clock_is_the_cheapest_up_to_a_point(fleet: Fleet) -> None:
    # The U shape, simulated: time grows as the clock falls, power falls with its square of volts.
    table = {c: fleet.table(1, Setting(clock_ratio=c)) for c in (1.0, 0.85, 0.7, 0.55, 0.4)}
    prompts = {c: t.reader()(0.0, 0.0, 2000.0)[1] for c, t in table.items()}
    best = min(prompts, key=lambda c: prompts[c])
    assert 0.4 < best < 1.0
    assert prompts[1.0] > prompts[best] < prompts[0.4]


def test_holding_and_filling_save_joules_where_replicas_are_often_empty(fleet: Fleet) -> None:
    rng = np.random.default_rng(3)
    n = 400
    trace = Trace(
        name="sparse",
        arrivals_s=np.cumsum(rng.exponential(0.4, n)),
        input_tokens=np.full(n, 300),
        output_tokens=np.full(n, 20),
    )

    def joules(action: Action) -> float:
        world = World(fleet, trace, action)
        world.finish()
        return world.joules()["steps"]

    plain = joules(Action(replicas=3, batch_limit=64))
    assert joules(Action(replicas=3, batch_limit=64, fill=32)) < plain
    filled = Action(replicas=3, batch_limit=64, fill=32)
    assert joules(replace(filled, hold_s=0.8)) < joules(filled)


def test_holding_saves_nothing_where_a_replica_is_never_empty_or_nobody_comes() -> None:
    assert hold_saving(20.0, 5.0, 1.0) == pytest.approx(0.0, abs=1e-6)
    assert hold_saving(1e-6, 1.0, 1.0) == pytest.approx(0.0, abs=1e-3)
    assert hold_saving(2.0, 0.3, 1.0) > 0.1


# ------------------------------------------------------------------------------ the oracle


def random_moves(rng: np.random.Generator) -> tuple[Moves, np.ndarray]:
    """Make three positions, one state in which something starts, and one swap of two intervals."""
    step = np.full((4, 4), np.inf)
    np.fill_diagonal(step, 0.0)
    step[0, 3] = rng.uniform(0, 2)  # start: serves as 0, then 1
    step[1, 0] = rng.uniform(0, 2)  # stop
    moves = Moves(
        serving=np.array([0, 1, 2, 0]),
        following=np.array([0, 1, 2, 1]),
        own=np.array([0.0, 0.0, 0.0, rng.uniform(0, 0.5)]),
        step=step,
        swaps=np.array([[0, 2, 2, 0], [2, 1, 3, 2]]),
        swap_j=rng.uniform(0, 3, 2),
    )
    return moves, rng.uniform(0, 3, (6, 3))


def by_force(moves: Moves, costs: np.ndarray, at: int, state: int) -> float:
    """Cost of the cheapest course from a state at an interval on, every course tried."""
    t = len(costs)
    if at == t:
        return 0.0
    found = []
    for gone in np.flatnonzero(np.isfinite(moves.step[state])):
        here = moves.step[state, gone] + costs[at, moves.serving[gone]] + moves.own[gone]
        found.append(here + by_force(moves, costs, at + 1, int(moves.following[gone])))
    for (source, target, span, serving), joules in zip(moves.swaps, moves.swap_j, strict=True):
        if source == state and at > 0:
            end = min(at + span, t)
            rest = by_force(moves, costs, end, int(target))
            found.append(joules + costs[at:end, serving].sum() + rest)
    return float(min(found))


@pytest.mark.parametrize("seed", range(20))
def test_the_programme_is_exact_for_its_table(seed: int) -> None:
    moves, costs = random_moves(np.random.default_rng(seed))
    value, decided = plan(costs, moves)
    assert value == pytest.approx(min(by_force(moves, costs, 0, s) for s in range(3)))
    assert decided[0][0] == 0
    assert [at for at, _ in decided] == sorted(at for at, _ in decided)


def test_the_oracle_is_as_good_as_every_course_of_a_small_fleet_tried() -> None:
    small = {"interval_s": 30}
    fleet = fleet_of(FILE | {"serve": FILE["serve"] | {"replicas": 2}, "control": small}, "small")
    trace = phases((1.0, 30.0), (16.0, 30.0), (1.0, 58.0), seed=3)
    best = oracle(fleet, trace)
    slots = int(trace.duration_s / 30) + 1
    share = fleet.file.limits.share
    modes = {(a.fill, a.hold_s, a.batch_limit) for _, a in best.actions}
    found = []
    for mode in modes:
        fill, hold_s, limit = mode
        for course in itertools.product((1, 2), repeat=slots):
            actions = [
                Action(replicas=k, batch_limit=limit, fill=fill, hold_s=hold_s) for k in course
            ]

            class Course(Fixed):
                def decide(self, seen: Seen, actions: list[Action] = actions) -> Action:
                    return actions[min(round(seen.now_s / 30), len(actions) - 1)]

            found.append(rehearse(fleet, trace, Course("course", actions[0])))
    good = [r for r in found if r.within_ratio >= share]
    assert len(good) > 1
    least = min(r.simulated_energy_j for r in good)
    assert best.within_ratio >= share
    assert best.simulated_energy_j <= 1.005 * least


def test_no_policy_beats_the_oracle(fleet: Fleet, rehearsals: dict[str, Rehearsal]) -> None:
    share = fleet.file.limits.share
    best = oracle(fleet, made())  # told nothing of what the policies did
    assert best.within_ratio >= share
    for r in rehearsals.values():
        if r.within_ratio >= share:
            assert best.simulated_energy_j <= 1.005 * r.simulated_energy_j, r.policy
    assert best.simulated_energy_j < 0.9 * rehearsals["static-deployed"].simulated_energy_j


def test_ours_saves_against_what_is_deployed_within_the_limits(
    rehearsals: dict[str, Rehearsal], fleet: Fleet
) -> None:
    ours, deployed = rehearsals["ours"], rehearsals["static-deployed"]
    assert ours.within_ratio >= fleet.file.limits.share
    assert ours.simulated_energy_j < deployed.simulated_energy_j


def test_a_policy_that_believes_times_a_fifth_longer_takes_no_fewer_replicas(
    fleet: Fleet,
) -> None:
    trace = made()
    right = Knowledge(fleet, trace.lengths).of(1, Setting())
    slow = Knowledge(fleet, trace.lengths, Belief(times=1.2)).of(1, Setting())
    assert slow.most_rate.max() < right.most_rate.max()


def test_what_is_known_of_a_replica_is_near_what_it_does(fleet: Fleet, known: Knowledge) -> None:
    k = known.of(1, Setting())
    row = len(k.limits) - 1
    rng = np.random.default_rng(5)
    n, rate = 1500, 4.0
    trace = made()
    pick = rng.integers(0, len(trace), n)
    steady = Trace(
        name="steady",
        arrivals_s=np.cumsum(rng.exponential(1 / rate, n)),
        input_tokens=trace.input_tokens[pick],
        output_tokens=trace.output_tokens[pick],
    )
    world = World(fleet, steady, Action(replicas=1, batch_limit=int(k.limits[row])))
    world.finish()
    parts = world.joules()
    watts = (parts["steps"] + parts["loaded_idle"]) / world.now_s
    assert float(k.power_at(rate, row)) == pytest.approx(watts, rel=0.15)


def test_an_upper_forecast_learns_what_came_after_rates_like_this_one() -> None:
    forecast = Forecast(lead_s=30.0, prior_per_s=7.0)
    calm = np.arange(0.0, 3000.0, 1.0)
    assert forecast(60.0, calm[:61]) == (pytest.approx(1.0, rel=0.05), 7.0)
    for now in np.arange(75.0, 1500.0, 15.0):
        mean, upper = forecast(now, calm[calm < now])
    assert mean == pytest.approx(1.0, rel=0.05)
    assert upper == pytest.approx(1.0, rel=0.15)
    bursts = np.sort(np.append(calm, np.concatenate(
        [np.arange(t, t + 10.0, 0.1) for t in np.arange(1500.0, 3000.0, 200.0)]
    )))  # fmt: skip
    for now in np.arange(1500.0, 3000.0, 15.0):
        mean, upper = forecast(now, bursts[bursts < now])
    assert upper > 5.0


# ------------------------------------------------------------------------------- traces


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_trace_as_azure_writes_it(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.csv",
        [
            "TIMESTAMP,ContextTokens,GeneratedTokens",
            "2023-11-16 18:15:50.9951690,396,109",
            "2023-11-16 18:15:46.6805900,374,44",
        ],
    )
    trace = read_trace(path)
    assert trace.arrivals_s.tolist() == [0.0, pytest.approx(4.314579, abs=1e-6)]
    assert trace.input_tokens.tolist() == [374, 396]


def test_seconds_and_other_names(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", ["arrival_s,input_tokens,output_tokens", "5,10,3", "6.5,20,4"])
    assert read_trace(path).arrivals_s.tolist() == [0.0, 1.5]


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["a,b", "1,2"], "column of"),
        (["TIMESTAMP,ContextTokens,GeneratedTokens"], "column|two requests"),
        (["TIMESTAMP,ContextTokens,GeneratedTokens", "yesterday,1,2", "x,1,2"], "date and time"),
        (["TIMESTAMP,ContextTokens,GeneratedTokens", "1,many,2", "2,1,2"], "must be a number"),
        (["TIMESTAMP,ContextTokens,GeneratedTokens", "1,-5,2", "2,1,2"], "from 0 to"),
        (["TIMESTAMP,ContextTokens,GeneratedTokens", "1,5,2", "1,1,2"], "different moments"),
        (["TIMESTAMP,ContextTokens,GeneratedTokens", "nan,5,2", "1,1,2"], "finite"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path: Path, lines: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_trace(write(tmp_path / "t.csv", lines))


def test_a_scaled_trace_keeps_its_time_and_says_what_was_done() -> None:
    trace = made()
    for ratio in (0.25, 2.5):
        scaled = trace.scaled(ratio)
        assert len(scaled) == pytest.approx(ratio * len(trace), rel=0.15)
        assert scaled.duration_s == pytest.approx(trace.duration_s, rel=0.05)
        assert np.all(np.diff(scaled.arrivals_s) >= 0)
        assert f"{ratio:g} times" in scaled.made
    with pytest.raises(InputError, match="above 0"):
        trace.scaled(0)


def test_a_day_is_made_and_says_so() -> None:
    day = made().day()
    assert "made" in day.made
    assert "not recorded" in day.made
    rates = day.rates_per_s(3600.0)
    assert rates[14:16].mean() > 2.5 * rates[2:4].mean()


@pytest.mark.skipif(not AZURE.exists(), reason="the Azure traces are not here")
def test_the_azure_traces_read_whole() -> None:
    assert len(read_trace(AZURE / "conv-2023.csv")) == 19_366
    assert len(read_trace(AZURE / "code-2023.csv")) == 8_819


# ------------------------------------------------------------------------------ the verb

TOML = """
[serve]
llm = "meta-llama/Llama-3.1-8B-Instruct"
gpu = "H100"
replicas = 2
max_num_seqs = 64
[limits]
ttft = "1s"
tpot = "40ms"
[replica]
start_s = 20
"""


def on_disk(tmp_path: Path, toml: str = TOML) -> list[str]:
    trace = made(300)
    lines = ["arrival_s,input_tokens,output_tokens"]
    rows = zip(trace.arrivals_s, trace.input_tokens, trace.output_tokens, strict=True)
    lines += [f"{a},{p},{o}" for a, p, o in rows]
    write(tmp_path / "trace.csv", lines)
    write(tmp_path / "fleet.toml", [toml])
    return ["rehearse", str(tmp_path / "trace.csv"), "--fleet", str(tmp_path / "fleet.toml")]


def test_the_verb_says_simulated_and_gives_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = on_disk(tmp_path)
    assert main([*arguments, "--policy", "ours", "--policy", "queue", "--reasons"]) == 0
    text = capsys.readouterr().out
    for line in text.splitlines():
        if "J" in line.split() or "J/request" in line:
            assert "simulated" in line
    assert main([*arguments, "--policy", "static-deployed,ours", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["source"] == "simulated"
    assert [p["policy"] for p in document["policies"]] == ["static-deployed", "ours"]
    for p in document["policies"]:
        assert p["simulated_energy_j"] == pytest.approx(
            sum(p["simulated_energy_by_part_j"].values())
        )


def test_mistakes_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = on_disk(tmp_path)
    for name in ("best", ""):
        with pytest.raises(SystemExit) as left:
            main([*arguments, "--policy", name])
        assert left.value.code == 2
        assert "no policy is called" in capsys.readouterr().err
    long = on_disk(tmp_path)
    (tmp_path / "trace.csv").write_text(
        "arrival_s,input_tokens,output_tokens\n" + "".join(f"{k},9000000,5\n" for k in range(20))
    )
    assert main([*long, "--policy", "static-deployed"]) != 0
    assert "9,000,005 tokens" in capsys.readouterr().err
    arguments = on_disk(tmp_path)
    assert main([*arguments, "--past", "1e9"]) == 2
    assert "--past must be above 0" in capsys.readouterr().err
    arguments = on_disk(tmp_path, TOML.replace("replicas = 2", "replicas = 0"))
    assert main(arguments) == 1
    assert "serve.replicas" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"serve": FILE["serve"] | {"tensor_parallel": 3}}, InfeasibleError),
        ({"limits": {"ttft": "1s:p99", "tpot": "40ms"}}, ArtefactError),
        ({"replica": {"start_s": -1}}, ArtefactError),
        ({"control": {"max_gpus": 2}}, ArtefactError),
        ({"replica": {"start_s": 1, "speed": 3}}, ArtefactError),
        ({"limits": {"ttft": "soon", "tpot": "40ms"}}, InputError),
    ],
)
def test_a_fleet_that_cannot_be_is_refused(change: dict[str, object], kind: type) -> None:
    with pytest.raises(kind):
        fleet_of(FILE | change, "fleet.toml")


@pytest.mark.parametrize(
    ("llm", "precision"),
    [("Qwen/Qwen3-30B-A3B-FP8", "fp8-block"), ("Qwen/Qwen3-30B-A3B", "bf16")],
)
def test_a_fleet_serves_the_format_that_the_name_states(llm: str, precision: str) -> None:
    read = fleet_of(FILE | {"serve": FILE["serve"] | {"llm": llm}}, "fleet.toml")
    assert read.precision.id == precision
