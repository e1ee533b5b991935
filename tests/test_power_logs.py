"""Each power log: a 120 s run at 400 W found in one of ours, and what is refused."""

import json
import re
from datetime import UTC, datetime

import numpy as np
import pytest
from tests.import_fixtures import NOON, smi_csv, step, step_times, vllm_bench

from energylens.errors import EnergyLensError
from energylens.importers import auto, documents
from energylens.importers.declared import Setup
from energylens.importers.energy_join import JoinOptions, join
from energylens.importers.power.series import Clock
from energylens.importers.power.stamps import local_seconds
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


def dmon():
    """Two GPUs of which the first served, as ``nvidia-smi dmon -s pu -o DT`` writes them."""
    lines = [
        "#Date       Time        gpu    pwr  gtemp     sm",
        "#YYYYMMDD   HH:MM:SS    Idx      W      C      %",
    ]
    for t, w in zip(stamps("%Y%m%d   %H:%M:%S"), WATTS, strict=True):
        lines += [f" {t}      0    {w:.0f}     36     90", f" {t}      1     70      -      0"]
    return "\n".join(lines) + "\n"


ZEUS = (
    "start_time,window_name,elapsed_time,gpu0_energy,gpu1_energy\n"
    "13586624.1,warmup,33.2,3991.3,4170.0\n"
    "13586667.1,bench,120.5,28000.5,20000.0\n"
)


def codecarbon(columns, *rows):
    return ",".join(columns) + "\n" + "".join(",".join(map(str, r)) + "\n" for r in rows)


EMISSIONS = codecarbon(
    ("timestamp", "project_name", "run_id", "duration", "emissions", "gpu_energy", "gpu_count"),
    ("2026-08-16T16:05:00", "p", "a", 121.0, 2e-5, 48000 / 3.6e6, "1"),
)

#: Each power log: how it is made; what another version of it may look like, with what is then said;
#: and what makes it ambiguous.
EACH = {
    "nvidia-smi CSV": (
        lambda: smi_csv(TIMES, [WATTS]),
        ("power.draw [W]", "power.now [W]", "no power log known here|must have the columns"),
        ("power.draw [W]", "power.draw [W], power.draw [mW]", "cells where the others have"),
    ),
    "nvidia-smi dmon": (
        dmon,
        ("#Date       Time ", "#When       Clock", "no power log known here"),
        ("#Date       Time        gpu", "#Time        gpu", "no date and time with each reading"),
    ),
    "DCGM exporter text": (
        exporter,
        ("DCGM_FI_DEV_", "DCGM_FI_V9_", "has neither DCGM_FI_DEV_POWER_USAGE nor"),
        ('gpu="1"', 'gpu="0"', "which cannot both be|its clock goes back"),
    ),
    "Prometheus range query": (
        prometheus,
        ('"resultType": "matrix"', '"resultType": "frames"', "ask for a range"),
        ('"__name__": "DCGM_FI_DEV_POWER_USAGE", ', "", "has no __name__"),
    ),
    "amd-smi CSV": (
        amd,
        ("power_usage", "power_now", "no power log known here"),
        ("gfx", "power_usage", "2 columns of power_usage"),
    ),
    "rocm-smi CSV": (
        rocm,
        ("Package Power (W)", "Package Power (kW/10)", "no power log known here"),
        ("timestamp,", "moment,", "no column of time stamps"),
    ),
    "hl-smi CSV": (
        gaudi,
        ("power.draw [W]", "power.draw [%]", "must be in W, mW or kW"),
        ("utilization.aip [%]", "power.draw [mW]", "2 columns of power.draw"),
    ),
    "PTDaemon log": (
        ptdaemon,
        (",Watts,", ",Power,", "'Time' is no time stamp"),
        ("Time,08-16-2026", "Time,16-16-2026", "no reading with a time"),
    ),
    "ipmitool dcmi power reading": (
        ipmi,
        (" Watts\n    Minimum", " BTU\n    Minimum", "its power is in BTU, not in W"),
        ("IPMI timestamp", "IPMI moment", "480 readings and 0 times"),
    ),
    "PDU or IPMI CSV": (
        pdu,
        ("Active Power (kW)", "Active Power (BTU/h)", "no power log known here"),
        ("outlet", "Input Power (W)", "2 of its columns may be the power"),
    ),
    "ML.ENERGY or Zeus power timeline": (
        timeline,
        ("device_instant", "device_v9", "no power log known here|of no format known here"),
        ("device_instant", "memory_average", "power of the memory alone"),
    ),
    "Zeus CSV": (
        lambda: ZEUS,
        ("_energy", "_joules", "no GPU was measured"),
        ("33.2", "120.1", "2 took as long as the benchmark"),
    ),
    "CodeCarbon emissions.csv": (
        lambda: EMISSIONS,
        ("gpu_energy", "energy_consumed", "adds estimates of CPU and RAM"),
        (
            "2026-08-16T16:05:00,p,a",
            "2026-08-16T16:01:00,p,b,120.0,2e-5,0.02,1\n2026-08-16T16:05:00,p,a",
            "2 took as long as the benchmark",
        ),
    ),
}
OF_WINDOWS = ("Zeus CSV", "CodeCarbon emissions.csv")
SERVED = {"Zeus CSV": 2}


def joules_of(text, form):
    found = log(text)
    if found is None:
        raise RefusedFileError("no power log known here")
    joined = join(found, RUN, serving=SERVED.get(form, 1), options=UTC_LOGS)
    return joined, joined.active_j or joined.node_j or joined.wall_j


@pytest.mark.parametrize("form", EACH)
def test_joules_of_the_run_within_a_percent(form):
    text = EACH[form][0]()
    assert log(text).format == form
    joined, joules = joules_of(text, form)
    assert joules == pytest.approx(400 * 120, rel=0.01)
    wall = form in ("PTDaemon log", "ipmitool dcmi power reading", "PDU or IPMI CSV")
    assert (joined.wall_j is None) != wall
    if form not in OF_WINDOWS:
        assert abs(joined.offset_s) <= 1.0
        assert joined.idle_before_w == pytest.approx(70, rel=0.01)


@pytest.mark.parametrize("form", EACH)
@pytest.mark.parametrize("share", [0.1, 0.3, 0.55])
def test_a_log_cut_within_the_run_is_refused(form, share):
    text = EACH[form][0]()
    with pytest.raises(
        EnergyLensError, match=r"do(es)? not cover the run|breaks? off|no power|no li"
    ):
        joules_of(text[: int(len(text) * share)], form)


@pytest.mark.parametrize("form", [form for form in EACH if form not in OF_WINDOWS])
@pytest.mark.parametrize("lost", [1, 2, 5, 9, 14])
def test_a_log_whose_last_line_was_cut_gives_the_joules_of_the_others(form, lost):
    text = EACH[form][0]()
    if text.startswith("{"):
        with pytest.raises(EnergyLensError, match="breaks off"):
            log(text[:-lost])
        return
    assert joules_of(text[:-lost], form)[1] == pytest.approx(400 * 120, rel=0.01)


@pytest.mark.parametrize("form", OF_WINDOWS)
def test_a_window_whose_last_number_may_be_cut_is_left_out(form):
    text = EACH[form][0]()
    for lost in range(1, 40):
        try:
            joules = joules_of(text[:-lost], form)[1]
        except EnergyLensError:
            continue
        assert joules == pytest.approx(48000, rel=0.001), lost


@pytest.mark.parametrize("form", EACH)
def test_a_log_of_another_version_is_refused(form, tmp_path):
    make, (known, other, said), _ = EACH[form]
    text = make()
    assert known in text
    (tmp_path / "power.log").write_text(text.replace(known, other))
    bench = tmp_path / "bench.json"
    bench.write_text(json.dumps(vllm_bench()))
    setup = Setup(gpu="H100", gpus=SERVED.get(form, 1), tensor_parallel=SERVED.get(form, 1))
    options = auto.Options(setup=setup, join=UTC_LOGS, power=(str(tmp_path / "power.log"),))
    with pytest.raises(EnergyLensError, match=said):
        auto.read([bench], options)


@pytest.mark.parametrize("form", EACH)
def test_an_ambiguous_log_is_refused(form):
    make, _, (known, other, said) = EACH[form]
    text = make()
    assert known in text
    with pytest.raises(EnergyLensError, match=said):
        joules_of(text.replace(known, other), form)


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


@pytest.mark.parametrize(
    "saved",
    [
        lambda text: "# node n1, 8 GPUs\n" + text,
        lambda text: re.sub(r"([^,\n]+)", lambda cell: f'"{cell[1].strip()}"', text),
        lambda text: text.replace(", ", "\t"),
        lambda text: text.replace(", ", ";").replace(".00 W", ",00 W"),
    ],
    ids=["comment", "quotes", "tabs", "decimal comma"],
)
def test_a_log_saved_again_reads_as_it_was(saved):
    assert joules_of(saved(smi_csv(TIMES, [WATTS])), "")[1] == pytest.approx(48000, rel=0.01)


def test_gpus_without_an_index_are_told_by_repeating_stamps():
    found = log(smi_csv(TIMES, [WATTS, WATTS, WATTS * 0 + 70], index=False))
    assert len(found.series) == 3
    assert join(found, RUN, serving=2, options=UTC_LOGS).active == ("0", "1")


def rocm_looped():
    """An MI250, whose second die has no power of its own, behind ``date`` in a loop."""
    energy = np.concatenate([[0.0], np.cumsum(WATTS[1:])])
    rows = [
        (
            f"card0,{w:.1f},N/A,98,{(5e8 + e) * 1e6:.2f}\n",
            "card1,N/A,N/A (Secondary die),97,0.0\n\n",
        )
        for w, e in zip(WATTS, energy, strict=True)
    ]
    header = (
        "device,Current Socket Graphics Package Power (W),Average Graphics Package Power (W),"
        "GPU use (%),Accumulated Energy (uJ)"
    )
    times = stamps("%a %b %d %H:%M:%S UTC %Y")
    return "".join(
        f"{t}\nWARNING: AMD GPU device(s) is/are in a low-power state.\n{header}\n{''.join(row)}"
        for t, row in zip(times, rows, strict=True)
    )


def amd_watched(column, power="{:.0f}", more="", value="", end="\n"):
    """What ``amd-smi ... --watch 1 --csv`` prints: its banner, and the header again each time."""
    header = f"timestamp,gpu,{column}{more}"
    lines = []
    for t, w in zip(TIMES, WATTS, strict=True):
        lines += [header, f"{int(t)},0,{power.format(w)}{value}", f"{int(t)},1,N/A{value}", ""]
    return end.join(["'CTRL' + 'C' to stop watching output:", *lines])


def amd_partitioned():
    """``amd-smi monitor`` of ROCm 7: a line for each partition, watts with the first."""
    lines = ["timestamp,gpu,xcp,power_usage,max_power,gfx"]
    for t, w in zip(TIMES, WATTS, strict=True):
        lines += [f"{int(t)},0,0,{w:.0f},750,99"]
        lines += [f"{int(t)},0,{x},N/A,N/A,99" for x in range(1, 4)]
    return "\n".join(lines) + "\n"


def amd_counted():
    energy = np.concatenate([[0.0], np.cumsum(WATTS[1:])])
    return "timestamp,gpu,total_energy_consumption\n" + "".join(
        f"{int(t)},0,{123456.789 + e:.3f}\n" for t, e in zip(TIMES, energy, strict=True)
    )


def own_logger(power="power_w", gpu="gpu_index", scale=1.0):
    return f"timestamp_unix,hostname,{gpu},gpu_uuid,{power}\n" + "".join(
        f"{t:.3f},n1,{name},{u},{p * scale:.1f}\n"
        for t, w in zip(TIMES, WATTS, strict=True)
        for name, u, p in (("0", "GPU-a", w), ("1", "GPU-b", 70.0))
    )


def gaudi_bare():
    """``-f csv,noheader`` of 8 devices, watts whole and with their unit."""
    return "".join(
        f"{t}, {i}, AM0{i}, 0000:{i}3:00.0, 512 MiB, 31 C, {u} %, {w:.0f} W\n"
        for t, watts in zip(stamps("%a %b %d %H:%M:%S UTC %Y"), WATTS, strict=True)
        for i, w, u in [(0, watts, 90), *((i, 70.0, 0) for i in range(1, 8))]
    )


def ptdaemon_faulty():
    """Days first, as its read-me has them, with a fault, a channel and what it prints besides."""
    lines = ["PTDaemon, version 1.10.0", "Mark,2026-08-16_run_ranging"]
    for i, (t, w) in enumerate(zip(stamps("%d-%m-%Y %H:%M:%S.%f"), WATTS, strict=True)):
        if i == 200:
            lines.append(f"Time,{t},ERROR,Bad volts reading nan from WT310")
            lines.append("Buffer was 1.000E+00;1;300.0E+00;1")
        lines.append(
            f"Time,{t},Watts,{w:.6f},Volts,228.57,Amps,0.2,PF,0.48,Mark,run_testing,"
            f"Ch1,Watts,{w:.6f},Volts,228.57"
        )
    return "\r\n".join(lines) + "\r\n"


VERSIONS = {
    "amd-smi monitor, watched": (
        lambda: amd_watched("power_usage", more=",gfx,gfx_clock", value=",99,2100"),
        "amd-smi CSV",
    ),
    "amd-smi metric, watched": (
        lambda: amd_watched(
            "socket_power", more=",gfx_voltage,vcn_activity", value=",N/A,\"['N/A', 'N/A']\""
        ),
        "amd-smi CSV",
    ),
    "amd-smi of Windows ends of line": (
        lambda: amd_watched("power_usage", end="\r\n"),
        "amd-smi CSV",
    ),
    "amd-smi monitor, partitions": (amd_partitioned, "amd-smi CSV"),
    "amd-smi metric, counter": (amd_counted, "amd-smi CSV"),
    "rocm-smi in a loop": (rocm_looped, "rocm-smi CSV"),
    "rocm-smi of ROCm 5": (
        lambda: rocm().replace("Current Socket", "Average"),
        "rocm-smi CSV",
    ),
    "hl-smi without header": (gaudi_bare, "hl-smi CSV"),
    "hl-smi without units": (
        lambda: gaudi().replace(" W,", ",").replace(" %\n", "\n"),
        "hl-smi CSV",
    ),
    "PTDaemon with a fault": (ptdaemon_faulty, "PTDaemon log"),
    "a logger of one's own": (own_logger, "CSV of a GPU power logger"),
    "a logger of one's own, in mW": (
        lambda: own_logger("power_mw", "gpu", 1000.0),
        "CSV of a GPU power logger",
    ),
}


@pytest.mark.parametrize("version", VERSIONS)
def test_each_version_of_a_tool_gives_the_same_joules(version):
    make, form = VERSIONS[version]
    text = make()
    found = log(text)
    assert found.format == form
    served = join(found, RUN, serving=1, options=UTC_LOGS)
    assert (served.active_j or served.wall_j) == pytest.approx(48000, rel=0.01)
    assert served.counted == ("counter" in version or "loop" in version)


def test_a_second_die_is_left_out_and_said():
    found = log(rocm_looped())
    assert [s.label for s in found.series] == ["0"]
    assert any("second die" in note for note in found.notes)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "Time,Power\n2026-08-16 16:00:00.708783111,32402\n2026-08-16 16:00:01.7,32402\n",
            "Power names no unit",
        ),
        ("time,power_w\n1786000000,300\n", "does not say whose power it is"),
        (own_logger().replace(",n1,", ",n2,", 1), "readings of several of hostname"),
        (own_logger().replace("gpu_uuid", "socket_power_w"), "2 of its columns may be"),
        (amd().replace("timestamp", "moment"), "no column of time stamps"),
    ],
)
def test_whose_power_and_in_what_unit_is_never_guessed(text, said):
    with pytest.raises(RefusedFileError, match=said):
        log(text)


def zeus_of_the_day(start=RUN.start_s):
    """Releases since 2024 stamp windows with the time of day."""
    return (
        "start_time,window_name,elapsed_time,gpu0_energy\n"
        f"{start - 200},warmup,120.2,30000.0\n"
        f"{start - 0.2},bench,120.4,48000.0\n"
        f"{start + 400},again,120.1,50000.0\n"
    )


def test_windows_with_a_time_of_day_are_told_by_it():
    joined = join(log(zeus_of_the_day()), RUN, serving=1)
    assert joined.active_j == pytest.approx(48000)
    with pytest.raises(RefusedFileError, match="none of its windows ended when the benchmark did"):
        join(log(zeus_of_the_day(RUN.start_s + 86400)), RUN, serving=1)


def test_emissions_of_another_hour_are_not_the_run_s(tmp_path):
    bench = tmp_path / "bench.json"
    bench.write_text(json.dumps(vllm_bench()))
    (tmp_path / "emissions.csv").write_text(EMISSIONS.replace("T16:05", "T09:17"))
    power = (str(tmp_path / "emissions.csv"),)
    options = auto.Options(setup=Setup(gpu="H100", gpus=1), power=power)
    with pytest.raises(RefusedFileError, match="say --power-window a"):
        auto.read([bench], options)
    forced = auto.Options(
        setup=Setup(gpu="H100", gpus=1), power=power, join=JoinOptions(power_window="a")
    )
    assert auto.read([bench], forced)[0].dataset.energy_per_request_j[0] == pytest.approx(200)


def test_zeus_joules_are_those_of_the_window_as_long_as_the_run():
    joined = join(log(ZEUS), RUN, serving=2)
    assert joined.active_j == pytest.approx(48000.5)
    one = join(log(ZEUS), RUN, serving=1, options=JoinOptions(gpus_active=("1",)))
    assert one.active_j == pytest.approx(20000)
    with pytest.raises(RefusedFileError, match="2 GPUs, but the deployment has 1"):
        join(log(ZEUS), RUN, serving=1)
    with pytest.raises(RefusedFileError, match="leave a part of the run out"):
        join(log(ZEUS), RUN, serving=2, options=JoinOptions(power_window="warmup"))
    longer = ZEUS.replace("120.5", "140.5")
    with pytest.raises(RefusedFileError, match="include a warm-up"):
        join(log(longer), RUN, serving=2, options=JoinOptions(power_window="bench"))


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


def test_codecarbon_joules_are_of_as_many_gpus_as_it_counts_and_without_pue(tmp_path):
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(vllm_bench()))

    def read(text, **setup):
        (tmp_path / "emissions.csv").write_text(text)
        options = auto.Options(
            setup=Setup(gpu="H100", **setup), power=(str(tmp_path / "emissions.csv"),)
        )
        return auto.read([path], options)[0].dataset

    one = read(EMISSIONS, gpus=1)
    assert one.energy_per_request_j[0] == pytest.approx(48000 / 240)
    assert list(one.boundary) == ["active_gpus"]
    # Eight GPUs were metered and one served: that is the node, never the one.
    eight = EMISSIONS.replace(",1\n", ",8\n")
    node = read(eight, gpus=1)
    assert list(node.boundary) == ["node"]
    assert node.cases.node_gpus[0] == 8
    with pytest.raises(RefusedFileError, match="no joules of the boundary active_gpus"):
        read(eight, gpus=1, boundary="active_gpus")
    with pytest.raises(auto.IncompleteError, match="--node-gpus"):
        read(EMISSIONS.replace("gpu_count", "n_gpus"), gpus=1)
    building = EMISSIONS.replace("gpu_count\n", "gpu_count,pue\n").replace(",1\n", ",1,1.5\n")
    assert read(building, gpus=1).energy_per_request_j[0] == pytest.approx(32000 / 240)
    with pytest.raises(RefusedFileError, match="pue must be 1 or more"):
        read(building.replace("1.5", "0.5"), gpus=1)


def test_two_readings_of_one_gpu_at_one_time_are_one_if_they_agree():
    text = exporter()
    again = text.replace('Hostname="n"', 'Hostname="n",pod="b"')
    assert joules_of(text + again, "")[1] == pytest.approx(joules_of(text, "")[1])


def test_the_list_that_promtool_prints_is_a_range_query():
    listed = json.dumps(json.loads(prometheus())["data"]["result"])
    assert joules_of(listed, "")[1] == pytest.approx(48000, rel=0.01)
    with pytest.raises(RefusedFileError, match="ask for a range"):
        log(listed.replace('"values"', '"value"'))


@pytest.mark.parametrize("word", ["[N/A]", "[Not Supported]", "[GPU is lost]", "N/A", "ERR!", "-"])
def test_what_a_sensor_did_not_give_is_a_gap(word):
    text = smi_csv(TIMES, [WATTS]).replace("400.00 W", word, 3)
    assert joules_of(text, "")[1] == pytest.approx(48000, rel=0.01)


@pytest.mark.parametrize(
    ("stamp", "clock"),
    [
        ("2026-08-16T16:03:00Z", Clock.EPOCH), ("2026-08-16 18:03:00+02:00", Clock.EPOCH),
        ("2026-08-16 16:03:00 UTC", Clock.EPOCH), ("Sun Aug 16 16:03:00 UTC 2026", Clock.EPOCH),
        ("Sun Aug 16 04:03:00 PM UTC 2026", Clock.EPOCH), ("08/16/26 16:03:00 UTC", Clock.EPOCH),
        ("08/16/2026 16:03:00 GMT", Clock.EPOCH), ("1786896180", Clock.EPOCH),
        ("1786896180000", Clock.EPOCH), ("Sun Aug 16 16:03:00 2026", Clock.LOCAL),
        ("Sun Aug 16 16:03:00 CEST 2026", Clock.LOCAL), ("2026/08/16 16:03:00.000", Clock.LOCAL),
        ("08-16-2026 16:03:00.000", Clock.LOCAL), ("08/16/2026 04:03:00 PM", Clock.LOCAL),
        ("16.08.2026 16:03:00", Clock.LOCAL), ("20260816-160300", Clock.LOCAL),
    ],
)  # fmt: skip
def test_a_time_is_read_however_it_is_written(stamp, clock):
    assert local_seconds(stamp) == (NOON + 180, clock)


def test_a_clock_that_goes_back_is_refused():
    text = smi_csv(np.concatenate([TIMES[:300], TIMES[100:]]), [np.resize(WATTS, 680)])
    with pytest.raises(RefusedFileError, match="clock goes back by 199 s"):
        log(text)
