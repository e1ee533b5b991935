"""The verb watch: measured and expected joules of a running server, live."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from energylens.cli.configuring import add_memory, gpu_of, precision_of
from energylens.cli.console import (
    Subparsers,
    add_json,
    port,
    positive,
    positive_int,
    print_json_line,
    print_paragraph,
)
from energylens.errors import MeasurementError, UsageError
from energylens.records import Engine

if TYPE_CHECKING:
    from energylens.watching.expecting import Expectation
    from energylens.watching.watcher import Watcher
    from energylens.watching.windows import Window

NO_METER = "none"


def add_verbs(verbs: Any) -> None:
    """Add the verb."""
    parser = Subparsers(verbs).add(
        "watch",
        "measured and expected joules of a running vLLM or SGLang, with an alarm",
        _watch,
        (
            "energylens watch --engine http://127.0.0.1:8000 --llm Qwen/Qwen3-32B --gpu H100 "
            "--current 'TP2 B256' --meter nvml:0,1 --serve 9465",
            "energylens watch model.json --engine http://node:30000 --llm Qwen/Qwen3-32B "
            "--gpu H100 --current 'TP2 B256' --meter 'dcgm:http://node:9400?gpu=0,1'",
            "energylens watch --engine http://127.0.0.1:8000 --meter zeusd:http://127.0.0.1:4938",
        ),
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        help="a model.json, a tidy table (fitted as fit does), the name of a packaged model or the "
        "word datasheet; by default the packaged model of the GPU type",
    )
    parser.add_argument(
        "--engine",
        dest="endpoint",
        required=True,
        metavar="URL",
        help="the engine's own /metrics, as http://127.0.0.1:8000",
    )
    parser.add_argument(
        "--model-name", default="", help="which of several served models (label model_name)"
    )
    parser.add_argument(
        "--meter",
        default="auto",
        metavar="NAME",
        help="auto (default), nvml:0,1, zeus, zeusd:URL, dcgm:URL?gpu=0,1, http://HOST:PORT, "
        "estimated, or none to expect joules without measuring",
    )
    group = parser.add_argument_group("what runs (without it joules are measured, none expected)")
    group.add_argument("--llm", help="a name from energylens llm list, or a checkpoint's folder")
    group.add_argument("--gpu", help="a name from energylens gpu list")
    group.add_argument("--precision", help="a number format; the LLM's own by default")
    group.add_argument(
        "--current",
        default="TP1",
        metavar="'TP2 B256'",
        help="the configuration, or its vllm serve command line (default: TP1)",
    )
    add_memory(group)
    group.add_argument("--node-gpus", type=positive_int, metavar="N", help="the meter reads a node")
    group.add_argument(
        "--engine-version", type=Engine.named, metavar="'NAME VERSION'", help="as in 'vllm 0.11.1'"
    )
    group.add_argument(
        "--loaded-idle",
        type=positive,
        metavar="W",
        help="watts of one GPU with weights and no request; measured in empty windows by default",
    )
    group = parser.add_argument_group("what is best")
    group.add_argument("--max-gpus", type=positive_int, default=8, metavar="N")
    for name, what in (("tpot", "token"), ("ttft", "first token"), ("latency", "request")):
        group.add_argument(f"--{name}", metavar="T[:pN]", help=f"limit on the time of a {what}")
    group = parser.add_argument_group("watching")
    group.add_argument("--window", type=positive, default=60.0, metavar="S", help="default: 60 s")
    group.add_argument("--poll", type=positive, default=1.0, metavar="S", help="default: 1 s")
    group.add_argument(
        "--drift",
        type=positive,
        default=10.0,
        metavar="PERCENT",
        help="joules off by so much in two windows raise the alarm (default: 10)",
    )
    group.add_argument(
        "--windows", type=positive_int, metavar="N", help="end after so many; default: go on"
    )
    group.add_argument(
        "--serve", type=port, metavar="PORT", help="publish /metrics for Prometheus on this port"
    )
    group.add_argument(
        "--host", default="127.0.0.1", help="where to publish (default: this machine alone)"
    )
    add_json(parser)


def _watch(arguments: argparse.Namespace) -> None:
    from energylens.instrument.meters import open_meter
    from energylens.scraping import endpoint, fetch, parse
    from energylens.watching.counters import Counters, read_counters
    from energylens.watching.publishing import serve_metrics
    from energylens.watching.watcher import Watcher

    expectation, notes = _expectation(arguments)
    url = endpoint(arguments.endpoint)

    def look() -> Counters:
        return read_counters(fetch(url), model_name=arguments.model_name, where=url)

    if arguments.meter == NO_METER and expectation is None:
        raise UsageError(
            "with --meter none joules are expected alone: say what runs with --llm and --gpu"
        )
    meter = None if arguments.meter == NO_METER else open_meter(arguments.meter)
    stop = _nothing
    try:
        watcher = Watcher(
            look,
            meter,
            expectation,
            window_s=arguments.window,
            poll_s=min(arguments.poll, arguments.window),
            drift_ratio=arguments.drift / 100.0,
            learn_idle=arguments.loaded_idle is None,
        )
        parse("", ())  # which needs its package, before anything is watched
        if arguments.serve is not None:
            address, stop = serve_metrics(watcher, arguments.host, arguments.serve)
            print(f"Metrics for Prometheus at {address}", file=sys.stderr, flush=True)
        for note in notes:
            print(note, file=sys.stderr)
        try:
            look()
        except MeasurementError as error:
            print(f"Waiting for the engine: {error}", file=sys.stderr, flush=True)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _interrupt)
        _tell(watcher, arguments)
    finally:
        stop()
        if meter is not None:
            meter.close()


def _nothing() -> None:
    """There is nothing to stop."""


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _tell(watcher: Watcher, arguments: argparse.Namespace) -> None:
    import datetime

    said: set[str] = set()

    def tell(window: Window) -> None:
        if arguments.json:
            print_json_line(window.to_json())
            return
        for note in window.notes:
            if note not in said:
                said.add(note)
                print_paragraph(f"Note: {note}.")
        at = datetime.datetime.fromtimestamp(window.time_s).strftime("%H:%M:%S")
        print(f"{at}  {window.line()}", flush=True)

    watcher.run(arguments.windows, tell)


def _expectation(arguments: argparse.Namespace) -> tuple[Expectation | None, list[str]]:
    """Make the law ready for what runs; None where that was not said."""
    from energylens import catalog
    from energylens.answering import NO_TIMES, engine_meant
    from energylens.cli.serving import limits_of
    from energylens.instrument.planning import find_llm
    from energylens.packaged import model_for
    from energylens.records import UNKNOWN_ENGINE, Boundary, Case, Workload
    from energylens.running import read_running
    from energylens.watching.expecting import Expectation

    if arguments.llm is None and arguments.gpu is None:
        if arguments.model is not None:
            raise UsageError("a model needs to know what runs: give --llm and --gpu too")
        return None, ["Joules are measured, and none expected: say what runs with --llm and --gpu."]
    if arguments.llm is None or arguments.gpu is None:
        raise UsageError("what runs is said with both --llm and --gpu")
    llm, folder = find_llm(arguments.llm)
    given = arguments.precision or ""
    served = (
        (given or llm.native_precision)
        if folder
        else catalog.checkpoint_precision(arguments.llm, given).id
    )
    gpu, precision = gpu_of(arguments, arguments.gpu), precision_of(arguments, served)
    running = read_running(arguments.current, llm, gpu, precision)
    configuration = running.configuration
    if running.memory_share_ratio is not None and arguments.gpu_memory_utilization is None:
        gpu = replace(gpu, memory_share_ratio=running.memory_share_ratio)
    if arguments.node_gpus and arguments.node_gpus < configuration.gpus:
        raise UsageError(
            f"--node-gpus must be at least the {configuration.gpus} GPUs of the deployment, not "
            f"{arguments.node_gpus}"
        )
    model, notes = model_for(arguments.model, arguments.gpu, arguments.engine_version)
    engine = arguments.engine_version or UNKNOWN_ENGINE
    case = Case(
        llm=llm,
        gpu=gpu,
        precision=running.precision or precision,
        workload=Workload(input_tokens=1.0, output_tokens=1.0),
        configuration=configuration,
        boundary=Boundary.NODE if arguments.node_gpus else Boundary.ACTIVE_GPUS,
        node_gpus=arguments.node_gpus,
        engine=engine_meant(engine, model),
    )
    said = [*notes, *running.notes, *([model.caution] if model.caution else [])]
    if model.time is None:
        said.append(NO_TIMES)
    return (
        Expectation(
            model,
            case,
            loaded_idle_w=arguments.loaded_idle,
            limits=limits_of(arguments),
            max_gpus=arguments.max_gpus,
        ),
        said,
    )
