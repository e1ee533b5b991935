"""The verb doctor: what this machine can measure, and what its GPUs draw at rest."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from energylens.cli.console import (
    Subparsers,
    add_json,
    add_meter,
    name_value_pairs,
    positive,
    positive_int,
    print_json,
    print_paragraph,
)
from energylens.errors import ExitCode, UsageError
from energylens.viewing import picked

if TYPE_CHECKING:
    from energylens.instrument.doctor import Idle

ENGINES = ("vllm", "transformers", "simulated")


def add_verbs(verbs: Any) -> None:
    """Add the verb."""
    parser = Subparsers(verbs).add(
        "doctor",
        "say what this machine can measure, and what to do about what is missing",
        _doctor,
        (
            "energylens doctor",
            "energylens doctor --folder /scratch",
            "energylens doctor --idle --llm Qwen/Qwen3-8B",
        ),
    )
    parser.add_argument("--folder", metavar="DIR", help="where results would go")
    group = parser.add_argument_group("what GPUs draw at rest")
    group.add_argument(
        "--idle",
        action="store_true",
        help="measure it: as they are now and, with --llm, with an LLM loaded and nothing to do",
    )
    add_meter(group)
    group.add_argument("--seconds", type=positive, default=10.0, metavar="N", help="default: 10")
    group.add_argument("--llm", help="catalog name, or folder with a config.json")
    group.add_argument("--gpu", help="of a simulated node (default: H100)")
    group.add_argument("--engine", choices=ENGINES, default="vllm")
    group.add_argument("--precision", help="default: the LLM's own")
    group.add_argument("--tensor-parallel", type=positive_int, default=1, metavar="N")
    group.add_argument("--weights", default="dummy", help="dummy (default), auto or a path")
    group.add_argument("--option", action="append", default=[], metavar="NAME=VALUE")
    add_json(parser)


def _doctor(arguments: argparse.Namespace) -> ExitCode:
    from energylens.instrument.doctor import examine

    idle = _idle(arguments) if arguments.idle else None
    if arguments.llm and not arguments.idle:
        raise UsageError("--llm is loaded for --idle alone")
    report = examine(arguments.folder)
    code = ExitCode.DONE if report.can_measure or idle else ExitCode.IMPOSSIBLE
    if arguments.json:
        print_json(
            {
                "meter": report.meter,
                "can_measure": report.can_measure,
                "findings": [
                    {
                        "name": f.name,
                        "status": f.status.value,
                        "detail": f.detail,
                        "advice": f.advice,
                    }
                    for f in report.findings
                ],
                **({"idle": _idle_json(idle)} if idle else {}),
            }
        )
        return code
    for finding in report.findings:
        print(f"{finding.status.value:8} {finding.name}")
        print_paragraph(finding.detail, "         ")
        if finding.advice:
            print_paragraph(f"-> {finding.advice}", "         ")
    print()
    for sentence in idle.sentences() if idle else ():
        print_paragraph(sentence)
    print_paragraph(
        f"Meter to use: {report.meter}."
        if report.can_measure
        else "There is no energy counter here: rows measured on this machine would be estimates, "
        "marked as such, and carry no accuracy claim. Results of others can be imported."
    )
    return code


def _idle(arguments: argparse.Namespace) -> Idle:
    from energylens import catalog
    from energylens.instrument import engines, meters, planning
    from energylens.instrument.doctor import measure_idle
    from energylens.instrument.engine import Layout

    simulated = arguments.llm and arguments.engine == "simulated"
    if simulated and arguments.meter != "auto":
        raise UsageError("the simulated engine brings a meter of its own: leave --meter out")
    meter = None if simulated else meters.open_meter(arguments.meter)
    try:
        if not arguments.llm:
            return measure_idle(meter, seconds=arguments.seconds)
        llm, path = planning.find_llm(arguments.llm)
        layout = Layout(
            llm=llm,
            precision=catalog.precision(arguments.precision or llm.native_precision),
            tensor_parallel=arguments.tensor_parallel,
            max_sequences=1,
            max_sequence_tokens=64,
            weights=arguments.weights,
            model_path=path,
            options=name_value_pairs(arguments.option, "--option"),
            gpu=catalog.gpu(arguments.gpu) if arguments.gpu else None,
        )
        engine = engines.open_engine(arguments.engine)
        return measure_idle(meter, engine=engine, layout=layout, seconds=arguments.seconds)
    finally:
        if meter is not None:
            meter.close()


def _idle_json(idle: Idle) -> dict[str, Any]:
    return {
        **picked(idle, "meter source devices seconds"),
        "now_w": list(idle.now_w),
        "loaded_w": list(idle.loaded_w),
        "loaded_idle_w": idle.loaded_idle_w,
        "llm": idle.llm or None,
        "engine": idle.engine or None,
        "engine_version": idle.engine_version or None,
    }
