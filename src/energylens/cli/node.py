"""What the verbs that measure by themselves share: the node, its engines, a line of progress."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from energylens.cli.console import Line, name_value_pairs
from energylens.errors import UnknownNameError, UsageError
from energylens.words import joules

if TYPE_CHECKING:
    from energylens.instrument.executor import Executor
    from energylens.instrument.folder import Instrument
    from energylens.instrument.sweep import SweepProgress
    from energylens.records import Llm

ENGINES = ("vllm", "transformers", "openai", "simulated")
SIMULATED_GPU, SIMULATED_GPUS = "H100-SXM-80GB", 8
PAUSE_S = 30.0  # between two lines of progress in a log


def add_engine_options(group: Any) -> None:
    """Add what engines are started with, and what measures."""
    group.add_argument("--weights", default="dummy", help="dummy (default), auto or a path")
    group.add_argument("--option", action="append", default=[], metavar="NAME=VALUE")
    group.add_argument("--meter", default="auto", metavar="NAME")
    group.add_argument(
        "--quick", action="store_true", help="short windows, to try it; not for results"
    )


def engine_options(arguments: argparse.Namespace) -> dict[str, str]:
    """Read ``--option``."""
    return dict(sorted(name_value_pairs(arguments.option, "--option").items()))


def told(sentence: str) -> None:
    """Say what is done, on stderr."""
    print(sentence, file=sys.stderr, flush=True)


def warn(engine: str, folder: str) -> None:
    """Say what of this machine stands in the way of good measurements."""
    from energylens.instrument.doctor import examine

    if engine == "simulated":
        return
    for finding in examine(folder if Path(folder).is_dir() else None).findings:
        if finding.status.value == "warning":
            told(f"{finding.name}: {finding.detail}. {finding.advice}")


def find_node(
    engine: str, meter: str, gpu: str | None, gpus: int | None
) -> tuple[str, int, tuple[int, ...]]:
    """GPU type, how many to use, and which; a simulated node has what it is told to have.

    Raises
    ------
    UsageError
        If the type is given and the meter sees another, or not given and not seen.
    """
    from energylens import catalog
    from energylens.instrument import meters
    from energylens.instrument.meter import ChannelKind

    if engine == "simulated":
        if meter != "auto":
            raise UsageError("the simulated engine brings a meter of its own: leave --meter out")
        named = catalog.gpu(gpu or SIMULATED_GPU).id
        return named, gpus or SIMULATED_GPUS, tuple(range(SIMULATED_GPUS))
    opened = meters.open_meter(meter)
    try:
        names = {c.name for c in opened.channels if c.kind is ChannelKind.GPU and c.name}
        seen = sum(c.kind is ChannelKind.GPU for c in opened.channels)
    finally:
        opened.close()
    if gpu is None:
        if len(names) != 1:
            raise UsageError(
                "the GPU type must be given with --gpu: the meter "
                + (f"sees {', '.join(sorted(names))}" if names else "does not name one")
            )
        gpu = names.pop()
    elif len(names) == 1:
        try:
            there = catalog.gpu(next(iter(names))).id
        except UnknownNameError:
            there = ""  # whose name the catalog does not know
        if there and there != catalog.gpu(gpu).id:
            raise UsageError(f"the GPUs here are {there}, not {catalog.gpu(gpu).id} (--gpu)")
    own = meters.gpu_indices() if meter.partition(":")[0] in ("auto", "nvml") else ()
    most = len(own) or seen or gpus or 1
    return catalog.gpu(gpu).id, min(gpus or most, most), own


def find_llm(name: str) -> tuple[Llm, str | None]:
    """Find an LLM; one of a folder is put into the user's catalog, so that its rows can be read."""
    from energylens import catalog
    from energylens.instrument import planning

    llm, path = planning.find_llm(name)
    if path is not None and llm.id not in catalog.llms():
        catalog.add_llm(llm)
        told(f"{llm.id} was added to your catalog, so that its rows can be read.")
    return llm, path


def instrument(
    arguments: argparse.Namespace, engine: str, gpus: int, own: tuple[int, ...]
) -> Instrument:
    """Make what measures on this node, with its logs in ``arguments.folder``."""
    from energylens.cli.plan import QUICK
    from energylens.instrument import engines, meters
    from energylens.instrument.executors.local import InlineExecutor, LocalExecutor
    from energylens.instrument.folder import Instrument
    from energylens.instrument.plan import Procedure

    def executor() -> Executor:
        if engine == "simulated":
            return InlineExecutor(own)
        return LocalExecutor(own[:gpus], exclusive=True, log_folder=Path(arguments.folder) / "logs")

    return Instrument(
        engine_factory=engines.open_engine,
        meter_factory=partial(meters.open_meter, arguments.meter),
        make_executor=executor,
        procedure=Procedure(**QUICK) if arguments.quick else Procedure(),
        gpus=gpus,
        seed=arguments.seed,
        options={"command_line": sys.argv, "meter_asked": arguments.meter},
    )


def drawn(energy_j: float, sources: Sequence[str]) -> str:
    """Write the joules of a sweep so far, and whether they are no measurement."""
    guessed = [name for name in sources if name in ("simulated", "estimated")]
    return f"{joules(energy_j)} {' and '.join(guessed) if guessed else 'drawn'}"


class SweepLine(Line):
    """A line on how far a sweep is, with ``more`` behind it."""

    def __init__(self, more: Callable[[SweepProgress], str]) -> None:
        super().__init__(0.5, PAUSE_S)
        self.more = more

    def __call__(self, now: SweepProgress) -> None:
        """Show how far it is."""
        self.show(
            lambda: (
                f"{now.done} of {now.cases} cases ({now.failed} failed), "
                f"{drawn(now.energy_j, now.sources)} so far{self.more(now)}"
            )
        )
