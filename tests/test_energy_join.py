import numpy as np
import pytest
from tests.import_fixtures import NOON, smi_csv, step, step_times

from energylens.importers.energy_join import JoinOptions, estimate_offset, join
from energylens.importers.integrating import integrate
from energylens.importers.power import nvidia_smi
from energylens.importers.power.series import Clock
from energylens.importers.runs import RefusedFileError, Window

IDLE, LOAD = 70.0, 520.0


def window(begin=180.0, length=120.0, clock=Clock.LOCAL, slack=1.0):
    return Window(start_s=NOON + begin, end_s=NOON + begin + length, clock=clock, slack_s=slack)


def log_of(times, watts, **how):
    return nvidia_smi.read(smi_csv(times, watts, **how), "smi.csv")


def stepped(period, *, offset=0.0, gpus=1, serving=1, begin=180.0, length=120.0, phase=0.0, **how):
    """A log whose clock is ahead by `offset`, of a run with a known energy."""
    times = step_times(period, **how) + phase
    first, last = NOON + begin + offset, NOON + begin + length + offset
    watts = [
        step(times, first, last, IDLE + g, LOAD if g < serving else IDLE + g) for g in range(gpus)
    ]
    return log_of(times, watts)


@pytest.mark.parametrize("period", [1.0, 0.25, 0.1])
@pytest.mark.parametrize("offset", [0.0, -29.7, 13.37, 29.9])
@pytest.mark.parametrize("length", [40.0, 119.5])
def test_a_step_gives_its_joules_within_a_percent_and_its_offset_within_a_sample(
    period, offset, length
):
    log = stepped(period, offset=offset, gpus=8, serving=4, length=length, phase=0.31 * period)
    joined = join(log, window(length=length), serving=4)
    assert joined.active == ("0", "1", "2", "3")
    assert joined.active_j == pytest.approx(4 * LOAD * length, rel=0.01)
    idle = sum(IDLE + g for g in range(4, 8))
    assert joined.node_j == pytest.approx((4 * LOAD + idle) * length, rel=0.01)
    assert abs(joined.offset_s - offset) <= period
    assert joined.offset_known
    assert joined.idle_before_w == pytest.approx(4 * IDLE + 6, rel=0.01)
    assert joined.idle_after_w == pytest.approx(4 * IDLE + 6, rel=0.01)


@pytest.mark.parametrize("seed", range(12))
def test_offset_gaps_and_gpus_that_idle_all_at_once(seed):
    """Any four of eight GPUs, an offset up to 30 s, and three gaps of up to 2.5 s."""
    rng = np.random.default_rng(seed)
    period = (1.0, 0.25, 0.1)[seed % 3]
    offset, length = rng.uniform(-29.9, 29.9), rng.uniform(40.0, 150.0)
    begin, end = NOON + 180 + offset, NOON + 180 + length + offset
    times = step_times(period) + rng.uniform(0.0, period)
    for gap in rng.uniform(NOON + 100, NOON + 400, 3):
        times = times[(times < gap) | (times > gap + rng.uniform(0.5, 2.5))]
    served = sorted(rng.choice(8, 4, replace=False).tolist())
    watts = [
        step(times, begin, end, IDLE + g, LOAD + 10 * g if g in served else IDLE + g)
        for g in range(8)
    ]
    joined = join(log_of(times, watts), window(length=length), serving=4)
    assert joined.active == tuple(map(str, served))
    assert joined.active_j == pytest.approx(sum(LOAD + 10 * g for g in served) * length, rel=0.01)
    assert abs(joined.offset_s - offset) <= period


@pytest.mark.parametrize("seed", range(4))
def test_noise_and_late_readings_do_not_move_the_offset(seed):
    rng = np.random.default_rng(seed)
    times = step_times(0.25, jitter=0.8, seed=seed)
    watts = step(times, NOON + 187.2, NOON + 307.2, IDLE, LOAD) + rng.normal(0, 25, len(times))
    joined = join(log_of(times, [np.abs(watts)]), window(), serving=1)
    assert abs(joined.offset_s - 7.2) <= 0.5
    assert joined.active_j == pytest.approx(LOAD * 120, rel=0.01)


def test_offsets_beyond_thirty_seconds_are_refused_unless_given():
    log = stepped(1.0, offset=44.0)
    with pytest.raises(RefusedFileError, match=r"\+4[34].[0-9] s .* beyond 31 s .* --clock-offset"):
        join(log, window(), serving=1)
    joined = join(log, window(), serving=1, options=JoinOptions(clock_offset_s=44.0))
    assert joined.active_j == pytest.approx(LOAD * 120, rel=0.01)


def test_an_offset_of_whole_hours_is_another_zone():
    log = stepped(1.0)
    far = window(begin=180.0 + 2 * 3600)
    with pytest.raises(RefusedFileError, match="--timezone or --power-timezone"):
        join(log, far, serving=1)
    zones = JoinOptions(timezone="Europe/Zurich", power_timezone="UTC")
    joined = join(log, far, serving=1, options=zones)
    assert joined.active_j == pytest.approx(LOAD * 120, rel=0.01)


def test_utc_beside_local_times_needs_a_zone():
    utc = window(clock=Clock.EPOCH)
    with pytest.raises(RefusedFileError, match="say the zone with --timezone"):
        join(stepped(1.0), utc, serving=1)
    joined = join(stepped(1.0), utc, serving=1, options=JoinOptions(timezone="UTC"))
    assert joined.offset_s == pytest.approx(0.0, abs=1.0)


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        (lambda t: t > NOON + 200, "do not cover the run"),
        (lambda t: t < NOON + 250, "do not cover the run"),
        (lambda t: t < NOON + 100, "does not cover the run"),
        (lambda t: (t < NOON + 220) | (t > NOON + 240), r"no reading for 22\.0 s within the run"),
    ],
)
def test_a_log_with_a_part_of_the_run_missing_is_refused(kept, said):
    times = step_times(1.0)
    times = times[kept(times)]
    watts = step(times, NOON + 180, NOON + 300, IDLE, LOAD)
    with pytest.raises(RefusedFileError, match=said):
        join(log_of(times, [watts]), window(), serving=1)


def test_short_gaps_are_bridged():
    times = step_times(1.0)
    times = times[(times < NOON + 220) | (times > NOON + 223)]
    watts = step(times, NOON + 180, NOON + 300, IDLE, LOAD)
    joined = join(log_of(times, [watts]), window(), serving=1)
    assert joined.largest_gap_s == pytest.approx(5.0)
    assert joined.active_j == pytest.approx(LOAD * 120, rel=0.01)


def test_many_short_gaps_are_refused():
    times = step_times(0.5)
    times = times[(np.floor(times) % 10 > 3) | (times < NOON + 150)]
    watts = step(times, NOON + 180, NOON + 300, IDLE, LOAD)
    with pytest.raises(RefusedFileError, match="more than a tenth"):
        join(log_of(times, [watts]), window(), serving=1)


def test_gpus_that_served_are_told_only_if_their_number_fits():
    log = stepped(1.0, gpus=8, serving=5)
    with pytest.raises(RefusedFileError, match=r"of which 5 drew more .* has 4: say which"):
        join(log, window(), serving=4)
    chosen = JoinOptions(gpus_active=("0", "1", "2", "3"))
    assert join(log, window(), serving=4, options=chosen).active_j == pytest.approx(
        4 * LOAD * 120, rel=0.01
    )
    with pytest.raises(RefusedFileError, match="has no GPU 9"):
        join(log, window(), serving=1, options=JoinOptions(gpus_active=("9",)))
    with pytest.raises(RefusedFileError, match="log all of them"):
        join(stepped(1.0), window(), serving=2)


def test_without_a_step_the_stamps_are_believed():
    times = step_times(1.0)
    joined = join(log_of(times, [np.full(len(times), 300.0)]), window(), serving=1)
    assert joined.active_j == pytest.approx(300 * 120)
    assert not joined.offset_known
    assert any("no step in power" in note for note in joined.notes)


def test_a_longer_load_leaves_the_offset_open():
    times = step_times(1.0)
    watts = step(times, NOON + 100, NOON + 400, IDLE, LOAD)
    joined = join(log_of(times, [watts]), window(), serving=1)
    assert joined.offset_s == 0.0
    assert not joined.offset_known
    assert joined.active_j == pytest.approx(LOAD * 120, rel=0.01)


@pytest.mark.parametrize("warm_up_w", [600.0, 900.0])
def test_a_warm_up_right_before_the_run_does_not_take_its_place(warm_up_w):
    times = step_times(1.0)
    watts = step(times, NOON + 180, NOON + 300, IDLE, 300.0)
    watts += step(times, NOON + 155, NOON + 180, 0.0, warm_up_w - IDLE)
    log = log_of(times, [watts])
    with pytest.raises(RefusedFileError, match="at load after the run so placed"):
        join(log, window(), serving=1)
    given = join(log, window(), serving=1, options=JoinOptions(clock_offset_s=0.0))
    assert given.active_j == pytest.approx(120 * 300.0, rel=0.01)


def test_the_next_run_of_a_series_is_load_of_its_own():
    times = step_times(1.0)
    watts = step(times, NOON + 190, NOON + 430, IDLE, LOAD)
    joined = join(log_of(times, [watts]), window(), serving=1, beside=[window(begin=300.0)])
    assert joined.offset_s == pytest.approx(10.0, abs=1.0)
    assert joined.active_j == pytest.approx(120 * LOAD, rel=0.01)


def test_power_is_interpolated_at_edges_that_are_no_step():
    # 100 W at 0 s rising by 10 W a second: from 2.5 to 7.5 s it is 125 to 175 W, 150 x 5 J.
    times = np.arange(0.0, 11.0)
    assert integrate(times, 100 + 10 * times, 2.5, 7.5) == pytest.approx(750.0)
    # Between two readings: the mean of 102 and 104 W for 0.2 s.
    assert integrate(times, 100 + 10 * times, 0.2, 0.4) == pytest.approx(20.6)


def test_a_step_inside_one_interval_is_held_at_its_edge():
    times = np.arange(0.0, 11.0)
    watts = np.where((times > 2.2) & (times < 7.9), 500.0, 50.0)
    assert integrate(times, watts, 2.2, 7.9) == pytest.approx(500 * 5.7)


def test_nothing_is_told_of_flat_power():
    times = np.arange(0.0, 100.0)
    assert estimate_offset(times, np.full(100, 80.0), np.array([[20.0, 50.0]]), 60.0) is None


def test_no_joules_is_no_measurement():
    times = step_times(1.0)
    with pytest.raises(RefusedFileError, match="0 J"):
        join(log_of(times, [np.zeros(len(times))]), window(), serving=1)
