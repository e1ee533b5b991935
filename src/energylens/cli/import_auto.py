"""``energylens import auto``: benchmark files of whatever tool, and power logs beside them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from energylens.cli.console import comma_list, number, positive, positive_int
from energylens.errors import UsageError
from energylens.viewing import picked
from energylens.words import J_PER_KWH, plural

if TYPE_CHECKING:
    from energylens.importers.auto import Options, Taken
    from energylens.importers.energy_join import Joined

_WHOLE = (
    ("gpus", "GPUs of the deployment"),
    ("tensor-parallel", "its tensor-parallel degree"),
    ("pipeline-parallel", "its pipeline-parallel degree"),
    ("expert-parallel", "its expert-parallel degree"),
    ("data-parallel", "its data-parallel degree"),
    ("node-gpus", "GPUs that joules of the boundary node cover"),
)
_NUMBERS = (
    ("batch-size", "the engine's limit on sequences in flight, as --max-num-seqs"),
    ("input-tokens", "mean tokens of a prompt"),
    ("output-tokens", "mean tokens generated a request"),
    ("vision-tokens", "those of the prompt from images or frames"),
    ("images", "images a request"),
    ("frames", "video frames a request"),
    ("power-cap-w", "power limit of each GPU"),
    ("clock-mhz", "clock that the core of each GPU was locked to"),
)
_TEXTS = (
    ("llm", "what was served: a name from energylens llm list"),
    ("gpu", "GPU type: a name from energylens gpu list"),
    ("precision", "number format of the weights"),
    ("boundary", "which GPUs the joules cover: active_gpus, node or wall"),
    ("engine", "what served it, as in vllm"),
    ("engine-version", "its version"),
    ("task", "the workload, where lengths are means that scatter"),
    ("source", "where the joules come from (default: measured)"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``import auto``."""
    group = parser.add_argument_group(
        "what the files do not state (import auto, import table)",
        "declared by the operator and marked as such, by flags or by --setup",
    )
    group.add_argument("--setup", metavar="FILE.toml", help="the same names, in a file")
    for name, meaning in _TEXTS:
        group.add_argument(f"--{name}", dest=_dest(name), metavar="NAME", help=meaning)
    for name, meaning in _WHOLE:
        group.add_argument(f"--{name}", type=positive_int, metavar="N", help=meaning)
    for name, meaning in _NUMBERS:
        group.add_argument(f"--{name}", type=positive, metavar="N", help=meaning)
    group = parser.add_argument_group("a power log of the run (import auto)")
    group.add_argument("--power", action="append", default=[], metavar="LOG", help="the log")
    group.add_argument("--timezone", metavar="ZONE", help="of local times in the files")
    group.add_argument("--power-timezone", metavar="ZONE", help="of the log's, if another")
    group.add_argument("--gpus-active", metavar="0-3", help="GPUs that served, as 0-3 or 0,2")
    group.add_argument(
        "--clock-offset", type=_seconds, metavar="S", help="seconds the log's clock is ahead"
    )
    group.add_argument(
        "--max-clock-offset",
        type=_seconds,
        default=30.0,
        metavar="S",
        help="offsets beyond it are not bridged (default: 30)",
    )
    group.add_argument("--max-gap", type=positive, metavar="S", help="gap allowed in the log")
    group.add_argument("--power-columns", metavar="LIST", help="of a log without header")
    group.add_argument("--power-window", metavar="NAME", help="which window of joules is the run's")
    group.add_argument("--start", metavar="TIME", help="when the run began, if no file says")


def _dest(name: str) -> str:
    """Where an option is kept; the positional SOURCE has taken that name."""
    return "row_source" if name == "source" else name.replace("-", "_")


_seconds = number("a number of seconds", lambda value: abs(value) <= 1e9)


def options_of(arguments: argparse.Namespace) -> Options:
    """Read the options of ``import auto``."""
    from energylens.importers.auto import Options
    from energylens.importers.declared import Setup, read_setup
    from energylens.importers.energy_join import JoinOptions

    names = [name for name, _ in (*_TEXTS, *_WHOLE, *_NUMBERS)]
    said = Setup(**{name.replace("-", "_"): getattr(arguments, _dest(name)) for name in names})
    if arguments.setup:
        said = read_setup(arguments.setup).updated(said)
    return Options(
        setup=said,
        join=JoinOptions(
            timezone=arguments.timezone,
            power_timezone=arguments.power_timezone,
            gpus_active=gpu_list(arguments.gpus_active) if arguments.gpus_active else None,
            clock_offset_s=arguments.clock_offset,
            largest_offset_s=arguments.max_clock_offset,
            largest_gap_s=arguments.max_gap,
            power_window=arguments.power_window,
        ),
        power=tuple(arguments.power),
        power_columns=comma_list(arguments.power_columns or ""),
        start=arguments.start,
    )


def gpu_list(text: str) -> tuple[str, ...]:
    """Read which GPUs: ranges and names, as in ``0-3`` or ``0,2`` or bus addresses."""
    found: list[str] = []
    for part in comma_list(text):
        low, dash, high = part.partition("-")
        if dash and low.isdigit() and high.isdigit():
            if not int(low) <= int(high) < int(low) + 4096:
                raise UsageError(f"--gpus-active takes ranges that rise, as 0-3, not {part!r}")
            found += [str(i) for i in range(int(low), int(high) + 1)]
        else:
            found.append(part)
    if not found:
        raise UsageError("--gpus-active takes the GPUs that served, as 0-3 or 0,2")
    return tuple(dict.fromkeys(found))


def describe(taken: list[Taken]) -> list[dict[str, Any]]:
    """Say what was taken of each run, as JSON has it."""
    return [
        {
            "where": item.run.where,
            "format": item.run.format,
            "format_version": item.run.version,
            "requests": item.run.completed,
            "declared": list(item.row.declared),
            "missing": list(item.row.missing),
            "stated": {
                **picked(
                    item.run, "llm gpu input_tokens output_tokens duration_s request_rate_per_s"
                ),
                "ttft_s": item.run.ttft.mean_s,
                "tpot_s": item.run.tpot.mean_s,
                "median_itl_s": item.run.itl.median_s,
                "request_latency_s": item.run.request_latency.mean_s,
            },
            "energy_per_request_j": item.row.cells.get("energy_per_request_j"),
            **_per_token(item),
            "power": None if item.joined is None else _power(item.joined),
        }
        for item in taken
    ]


def _per_token(item: Taken) -> dict[str, float | None]:
    """Joules a request, an output token and a token, side by side, and in kWh."""
    joules = item.row.cells.get("energy_per_request_j")
    sent, made = (item.row.cells.get(f"{name}_tokens") for name in ("input", "output"))
    if not isinstance(joules, float) or not isinstance(sent, float | int):
        return {}
    if not isinstance(made, float | int):
        return {}
    return {
        "energy_per_output_token_j": joules / made,
        "energy_per_total_token_j": joules / (sent + made),
        "energy_per_request_kwh": joules / J_PER_KWH,
    }


def _power(joined: Joined) -> dict[str, Any]:
    return {
        "active_gpus_j": joined.active_j,
        "node_j": joined.node_j,
        "wall_j": joined.wall_j,
        "gpus_active": list(joined.active),
        "gpus_listed": list(joined.listed),
        "clock_offset_s": joined.offset_s,
        "clock_offset_known": joined.offset_known,
        **picked(joined, "idle_before_w idle_after_w mean_w largest_gap_s period_s"),
        "from_counter": joined.counted,
    }


def lines_of(taken: list[Taken]) -> list[str]:
    """Say what was taken of each run, for people."""
    lines = []
    for item in taken[:20]:
        tokens = _per_token(item)
        joules = item.row.cells.get("energy_per_request_j")
        lines.append(f"{item.run.where}: {item.run.format}, {item.run.completed:g} requests")
        if tokens and isinstance(joules, float):
            lines.append(
                f"  {joules:.6g} J a request, {tokens['energy_per_output_token_j']:.4g} J an "
                f"output token, {tokens['energy_per_total_token_j']:.4g} J a token of either kind "
                f"({tokens['energy_per_request_kwh']:.3g} kWh a request)"
            )
        if item.joined is not None:
            lines += _lines_of_power(item.joined)
        if item.row.declared:
            lines.append(f"  declared, not measured: {', '.join(item.row.declared)}")
    if len(taken) > 20:
        lines.append(f"and {len(taken) - 20} more runs")
    return lines


def _lines_of_power(joined: Joined) -> list[str]:
    parts = [
        f"{joules:.6g} J {what}"
        for joules, what in (
            (joined.active_j, f"of the {plural(len(joined.active), 'GPU')} that served"),
            (
                joined.node_j if joined.active != joined.listed else None,
                f"of {plural(joined.covered, 'GPU')} in all that the log has"
                if joined.covered
                else "of all GPUs that were metered",
            ),
            (joined.wall_j, "of the server at its plug"),
        )
        if joules is not None
    ]
    idle = [
        f"{watts:.4g} W {when}"
        for watts, when in ((joined.idle_before_w, "before"), (joined.idle_after_w, "after"))
        if watts is not None
    ]
    lines = [f"  {'; '.join(parts)}; {joined.mean_w:.4g} W in the mean"]
    if joined.period_s:
        told = "told by the step in power" if joined.offset_known else "not told"
        lines.append(
            f"  clock offset {joined.offset_s:+.2f} s ({told}), a reading every "
            f"{joined.period_s:.3g} s, largest gap {joined.largest_gap_s:.3g} s"
        )
    if idle:
        lines.append(f"  idle: {', '.join(idle)}")
    return lines
