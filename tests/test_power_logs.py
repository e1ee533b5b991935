"""Each power log: a 120 s run at 400 W found in one of ours, and what is refused."""

import json
from datetime import UTC, datetime

import numpy as np
import pytest
from tests.import_fixtures import NOON, smi_csv, step, step_times

from energylens.errors import EnergyLensError
from energylens.importers import auto, documents
from energylens.importers.energy_join import JoinOptions, join
from energylens.importers.power.series import Clock
from energylens.importers.runs import RefusedFileError, Window

RUN = Window(start_s=NOON + 180, end_s=NOON + 300, clock=Clock.EPOCH, slack_s=1.0)
UTC_LOGS = JoinOptions(timezone="UTC")
TIMES = step_times(1.0)
WATTS = step(TIMES, NOON + 180, NOON + 300, 70.0, 400.0)


def log(text, name="power.csv", columns=()):
    return auto.log_of(documents.parse(text.encode(), name), columns)


def stamps(form):
    return [datetime.fromtimestamp(t, UTC).strftime(form) for t in TIMES]


def exporter(counter=True, stamped=True):
    """Two GPUs of which the first served; the counter in mJ from an arbitrary zero."""
    lines = []
    energy = np.concatenate([[0.0], np.cumsum(WATTS[1:])])
    for i, time in enumerate(TIMES):
        stamp = f" {int(time * 1000)}" if stamped else ""
        for gpu, watts in ((0, WATTS[i]), (1, 70.0)):
            labels = f'{{gpu="{gpu}",UUID="GPU-{gpu}",modelName="NVIDIA H100",Hostname="n"}}'
            lines.append(f"DCGM_FI_DEV_POWER_USAGE{labels} {watts}{stamp}")
            if counter:
                total = 5e9 + 1000 * (energy[i] if gpu == 0 else 70.0 * i)
                lines.append(f"DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{labels} {total:.0f}{stamp}")
    return "\n".join(lines) + "\n"


def prometheus(names=("DCGM_FI_DEV_POWER_USAGE",), **changes):
    result = []
    for name in names:
        values = [[float(t), f"{w:.3f}"] for t, w in zip(TIMES, WATTS, strict=True)]
        values[3][1] = "NaN"
        result.append({"metric": {"__name__": name, "gpu": "0"}, "values": values})
    data = {"resultType": "matrix", "result": result} | changes
    return json.dumps({"status": "success", "data": data})


def amd():
    lines = ["timestamp,gpu,power_usage,gfx"]
    for t, w in zip(TIMES, WATTS, strict=True):
        lines += [f"{int(t)},0,{w:.0f},90", f"{int(t)},1,N/A,0"]
    return "\n".join(lines) + "\n"


def rocm():
    lines = ["timestamp,device,Current Socket Graphics Package Power (W)"]
    for t, w in zip(TIMES, WATTS, strict=True):
        lines.append(f"{int(t)},card0,{w:.1f}")
    return "\n".join(lines) + "\n"


def gaudi():
    lines = ["timestamp, index, power.draw [W], utilization.aip [%]"]
    for t, w in zip(stamps("%a %b %d %H:%M:%S UTC %Y"), WATTS, strict=True):
        lines.append(f"{t}, 0, {w:.0f} W, 90 %")
    return "\n".join(lines) + "\n"


def ptdaemon():
    return "".join(
        f"Time,{t},Watts,{w:.6f},Volts,228.570000,Amps,0.206430,PF,0.486400,Mark,testing\n"
        for t, w in zip(stamps("%m-%d-%Y %H:%M:%S.%f"), WATTS, strict=True)
    )


def ipmi():
    return "".join(
        f"    Instantaneous power reading:              {w:.0f} Watts\n"
        "    Minimum during sampling period:             2 Watts\n"
        f"    IPMI timestamp:                           {t}\n"
        for t, w in zip(stamps("%a %b %d %H:%M:%S %Y"), WATTS, strict=True)
    )


def pdu():
    rows = zip(stamps("%Y-%m-%dT%H:%M:%SZ"), WATTS, strict=True)
    return "timestamp,outlet,Active Power (kW)\n" + "".join(
        f"{t},7,{w / 1000:.4f}\n" for t, w in rows
    )


def timeline():
    pairs = [[float(t), float(w)] for t, w in zip(TIMES, WATTS, strict=True)]
    return json.dumps({"timeline": {"power": {"device_instant": {"0": pairs}}}})


@pytest.mark.parametrize(
    ("text", "form", "wall"),
    [
        (smi_csv(TIMES, [WATTS]), "nvidia-smi CSV", False),
        (exporter(), "DCGM exporter text", False),
        (exporter(counter=False), "DCGM exporter text", False),
        (prometheus(), "Prometheus range query", False),
        (amd(), "amd-smi CSV", False),
        (rocm(), "rocm-smi CSV", False),
        (gaudi(), "hl-smi CSV", False),
        (ptdaemon(), "PTDaemon log", True),
        (ipmi(), "ipmitool dcmi power reading", True),
        (pdu(), "PDU or IPMI CSV", True),
        (timeline(), "ML.ENERGY or Zeus power timeline", False),
    ],
)
def test_joules_of_the_run_within_a_percent(text, form, wall):
    found = log(text)
    assert found.format == form
    joined = join(found, RUN, serving=1, options=UTC_LOGS)
    joules = joined.wall_j if wall else joined.active_j
    assert joules == pytest.approx(400 * 120, rel=0.01)
    assert (joined.wall_j is None) != wall
    assert abs(joined.offset_s) <= 1.0
    assert joined.idle_before_w == pytest.approx(70, rel=0.01)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        (smi_csv(TIMES, [WATTS]), "smi"),
        (exporter(), "dcgm"),
        (amd(), "amd"),
        (rocm(), "rocm"),
        (gaudi(), "gaudi"),
        (ptdaemon(), "ptdaemon"),
        (ipmi(), "ipmi"),
        (pdu(), "pdu"),
    ],
)
def test_a_cut_last_line_is_left_out_and_a_cut_run_is_refused(text, form):
    whole = text.rstrip("\n")
    late = join(log(whole[:-9]), RUN, serving=1, options=UTC_LOGS)
    assert (late.active_j or late.wall_j) == pytest.approx(400 * 120, rel=0.01)
    with pytest.raises(EnergyLensError, match=r"do(es)? not cover the run|breaks off"):
        join(log(text[: int(len(text) * 0.55)]), RUN, serving=1, options=UTC_LOGS)


def test_the_counter_is_read_where_there_is_one():
    joined = join(log(exporter()), RUN, serving=1)
    assert joined.counted
    without = join(log(exporter(counter=False)), RUN, serving=1)
    assert not without.counted
    assert any("watts" in note for note in without.notes)


def test_a_counter_that_falls_is_refused():
    lines = exporter().splitlines(keepends=True)
    start = sum(len(line) for line in lines[: len(lines) // 2])
    text = exporter()
    later = text[start:].replace(" 50", " 10")
    with pytest.raises(RefusedFileError, match="counter of GPU 0 falls"):
        join(log(text[:start] + later), RUN, serving=1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (exporter(stamped=False), "a scrape without time stamps"),
        (prometheus(resultType="vector"), "ask for a range"),
        (prometheus(names=("DCGM_FI_DEV_GPU_TEMP",)), "neither DCGM_FI_DEV_POWER_USAGE"),
        (prometheus().replace("success", "error"), "a query that failed"),
        (prometheus().replace("__name__", "job"), "has no __name__"),
        (smi_csv(TIMES, [WATTS]).replace("[W]", "[C]"), "must be in W, mW or kW"),
        (smi_csv(TIMES, [WATTS * 100]), "in another unit"),
        (smi_csv(TIMES, [WATTS], units=False, header=False, busy=[WATTS / 4])
         .replace(".00", ".25"), None),
        (rocm().replace("timestamp,", "x,"), "no column of time stamps"),
        (pdu().replace(",7,", ",8,", 3), "readings of several of outlet"),
        (pdu().replace("outlet", "Input Power (W)"), "2 of its columns may be the power"),
    ],
)  # fmt: skip
def test_what_is_ambiguous_is_refused(text, said):
    if said is None:
        assert log(text).series
        return
    with pytest.raises(RefusedFileError, match=said):
        log(text)


def test_columns_of_a_log_without_header_are_told_or_asked_for():
    bare = smi_csv(TIMES, [WATTS, WATTS], units=False, header=False)
    assert [s.label for s in log(bare).series] == ["0", "1"]
    two = bare.replace(".00\n", ".00, 700.00\n")
    with pytest.raises(RefusedFileError, match="--power-columns"):
        log(two)
    found = log(two, columns=("timestamp", "index", "power.draw", "power.limit"))
    assert join(found, RUN, serving=2, options=UTC_LOGS).active_j == pytest.approx(
        2 * 400 * 120, rel=0.01
    )


def test_gpus_without_an_index_are_told_by_repeating_stamps():
    found = log(smi_csv(TIMES, [WATTS, WATTS, WATTS * 0 + 70], index=False))
    assert len(found.series) == 3
    assert join(found, RUN, serving=2, options=UTC_LOGS).active == ("0", "1")


ZEUS = (
    "start_time,window_name,elapsed_time,gpu0_energy,gpu1_energy\n"
    "13586624.1,warmup,33.2,3991.3,4170.0\n"
    "13586667.1,bench,120.5,48000.0,36000.0\n"
)


def test_zeus_joules_are_those_of_the_window_as_long_as_the_run():
    joined = join(log(ZEUS), RUN, serving=2)
    assert joined.active_j == pytest.approx(84000)
    one = join(log(ZEUS), RUN, serving=1, options=JoinOptions(gpus_active=("1",)))
    assert one.active_j == pytest.approx(36000)
    with pytest.raises(RefusedFileError, match="2 GPUs, but the deployment has 1"):
        join(log(ZEUS), RUN, serving=1)
    with pytest.raises(RefusedFileError, match="leave a part of the run out"):
        join(log(ZEUS), RUN, serving=2, options=JoinOptions(power_window="warmup"))
    longer = ZEUS.replace("120.5", "140.5")
    with pytest.raises(RefusedFileError, match="include a warm-up"):
        join(log(longer), RUN, serving=2, options=JoinOptions(power_window="bench"))


def codecarbon(columns, *rows):
    return ",".join(columns) + "\n" + "".join(",".join(map(str, r)) + "\n" for r in rows)


@pytest.mark.parametrize("extra", [(), ("experiment_id",), ("experiment_id", "wue")])
def test_codecarbon_kwh_are_cumulative_within_a_run(extra):
    columns = ("timestamp", "project_name", "run_id", "duration", "emissions", "gpu_energy", *extra)
    more = ("x",) * len(extra)
    text = codecarbon(
        columns,
        ("2026-08-16T16:04:00", "p", "a", 60.0, 1e-5, 0.005, *more),
        ("2026-08-16T16:05:00", "p", "a", 121.0, 2e-5, 0.01, *more),
        ("2026-08-16T16:09:00", "p", "b", 500.0, 2e-5, 0.05, *more),
    )
    assert join(log(text), RUN, serving=1).node_j == pytest.approx(36000)
    with pytest.raises(RefusedFileError, match="0 kWh in every run"):
        log(text.replace("0.005", "0").replace("0.01", "0").replace("0.05", "0"))


def test_a_clock_that_goes_back_is_refused():
    text = smi_csv(np.concatenate([TIMES[:300], TIMES[100:]]), [np.resize(WATTS, 680)])
    with pytest.raises(RefusedFileError, match="clock goes back by 199 s"):
        log(text)
