"""What the verbs share: tables, JSON, progress, and arguments that several of them take."""

from __future__ import annotations

import argparse
import json
import math
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TypeVar

from energylens.errors import ExitCode, InputError, UnknownChoiceError, UsageError
from energylens.words import WIDTH, plural, table_lines, wrapped

if TYPE_CHECKING:
    from energylens.dataset import Dataset
T = TypeVar("T")
MOST = 1e9  # tokens of a request, or watts: beyond it somebody mistyped
SLOW_S = 1.0  # work shorter than this shows no progress


class Subparsers:
    """The verbs of one parser, each with its examples."""

    def __init__(self, verbs: Any) -> None:
        self.verbs = verbs

    def add(
        self,
        name: str,
        summary: str,
        run: Callable[[argparse.Namespace], ExitCode | None],
        examples: Sequence[str] = (),
    ) -> argparse.ArgumentParser:
        """Add a verb; ``run`` gets its parsed arguments, and may say what to end with."""
        lines = [
            " \\\n      ".join(textwrap.wrap(line, WIDTH - 8, break_on_hyphens=False))
            for line in examples
        ]
        epilog = "examples:\n" + "\n".join(f"  {line}" for line in lines) if lines else None
        parser: argparse.ArgumentParser = self.verbs.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.set_defaults(run=run)
        return parser


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``."""
    parser.add_argument("--json", action="store_true", help="print one JSON document instead")


def add_seed(parser: argparse.ArgumentParser) -> None:
    """Add ``--seed``."""
    parser.add_argument(
        "--seed", type=seed, default=0, metavar="N", help="of all chance (default: 0)"
    )


def add_choose(parser: argparse.ArgumentParser, meaning: str) -> None:
    """Add ``--choose``, by default all degrees of parallelism and the batch size."""
    parser.add_argument(
        "--choose",
        type=comma_list,
        default=("parallelism", "batch_size"),
        metavar="KNOBS",
        help=f"{meaning} (default: parallelism,batch_size)",
    )


def add_max_gpus(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add ``--max-gpus``."""
    meaning = "GPUs to use at most (default: 8)"
    parser.add_argument("--max-gpus", type=positive_int, default=8, metavar="N", help=meaning)


class Answer:
    """The one JSON document that ``--json`` puts on stdout.

    Attributes
    ----------
    verb : str
        What is running: documents are named after it.
    as_json : bool
        Whether the command asks for JSON.
    printed : bool
        Whether stdout has the document.
    """

    verb: ClassVar[str] = ""
    as_json: ClassVar[bool] = False
    printed: ClassVar[bool] = False

    @classmethod
    def begin(cls, given: Sequence[str]) -> None:
        """Start anew, with the words of a command line that may be wrong."""
        cls.verb = next((word for word in given[:1] if not word.startswith("-")), "")
        cls.as_json, cls.printed = "--json" in given, False


def print_json(document: Mapping[str, Any]) -> None:
    """Print the one JSON document of a command; NaN in it is a bug.

    Every document says its ``format``, ``energylens-VERB``, and the ``version`` of it; those that
    are files of ours too say theirs.
    """
    head = {"format": f"energylens-{Answer.verb}", "version": 1}
    print(json.dumps({**head, **document}, indent=2, allow_nan=False, ensure_ascii=False))
    Answer.printed = True


def print_json_line(document: Mapping[str, Any]) -> None:
    """Print one of many JSON documents of a command that goes on: a line for each."""
    head = {"format": f"energylens-{Answer.verb}", "version": 1}
    line = json.dumps({**head, **document}, allow_nan=False, ensure_ascii=False)
    print(line, flush=True)
    Answer.printed = True


def print_json_error(kind: str, message: str, code: int) -> None:
    """Print an error as JSON: as a line on stderr, and on stdout where no answer has gone there."""
    document = {
        "format": "energylens-error",
        "version": 1,
        "verb": Answer.verb,
        "kind": kind,
        "error": message,
        "exit_code": int(code),
    }
    print(json.dumps(document, ensure_ascii=False), file=sys.stderr)
    if not Answer.printed:
        print(json.dumps(document, indent=2, ensure_ascii=False))
        Answer.printed = True


class Parser(argparse.ArgumentParser):
    """A parser that complains in one line, or in JSON where the command asks for JSON."""

    def error(self, message: str) -> NoReturn:
        """Complain of wrong usage, and end."""
        if Answer.as_json:
            print_json_error("UsageError", message, ExitCode.USAGE)
            self.exit(ExitCode.USAGE)
        said = message.rstrip(".")
        self.exit(ExitCode.USAGE, f"{self.prog}: error: {said}. Options: {self.prog} --help\n")


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> None:
    """Print a table."""
    print("\n".join(table_lines(header, rows, left=left)))


def print_paragraph(text: str, indent: str = "", hanging: str = "") -> None:
    """Print wrapped text, lines after the first indented by ``hanging`` too."""
    print("\n".join(wrapped(text, indent=indent + hanging, first=indent)))


def print_wrapped(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table whose first column goes on below where it is too wide."""
    print("\n".join(wrapped_table(header, rows)))


def wrapped_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Set a table whose first column goes on below where it is too wide."""
    rest = [max(len(row[i]) for row in [header, *rows]) for i in range(1, len(header))]
    room = max(WIDTH - sum(rest) - 2 * len(rest), len(header[0]))
    lines: list[Sequence[str]] = []
    for first, *cells in rows:
        head, *more = textwrap.wrap(first, room, subsequent_indent="  ", break_on_hyphens=False)
        lines.append((head, *cells))
        lines += [(line, *("" for _ in rest)) for line in more]
    return table_lines(header, lines)


def flag(name: str) -> str:
    """Name the option that an argument comes from."""
    return "--" + name.replace("_", "-")


class Line:
    """A line on stderr about work under way: it moves on a terminal, and a log gets new ones.

    Parameters
    ----------
    pause_s, log_pause_s : float
        Seconds between two of them on a terminal, and in a log.
    wait_s : float
        Work that is done by then shows none.
    """

    def __init__(self, pause_s: float, log_pause_s: float, wait_s: float = 0.0) -> None:
        self.live = sys.stderr.isatty()
        self.pause_s = pause_s if self.live else log_pause_s
        self.due_s = time.monotonic() + (wait_s if self.live else log_pause_s)
        self.wide = 0

    def show(self, words: Callable[[], str]) -> None:
        """Say how far the work is, where it is time to."""
        if time.monotonic() < self.due_s:
            return
        self.due_s, line = time.monotonic() + self.pause_s, words()
        self.wide = max(self.wide, len(line))
        moving = {"end": "", "flush": True} if self.live else {"flush": True}
        print(f"\r{line:<{self.wide}}" if self.live else line, file=sys.stderr, **moving)

    def close(self) -> None:
        """Wipe it off a terminal."""
        if self.live and self.wide:
            print(f"\r{'':<{self.wide}}\r", end="", file=sys.stderr, flush=True)


class Progress(Line):
    """A line for work that takes longer than a second; none in a log."""

    def __init__(self, what: str) -> None:
        super().__init__(0.2, math.inf, SLOW_S)
        self.what, self.start_s = what, time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Show how far the work is."""
        left = (time.monotonic() - self.start_s) / max(done, 1) * (total - done)
        self.show(lambda: f"{self.what}: {done} of {total}, {left:.0f} s left")


def comma_list(text: str) -> tuple[str, ...]:
    """Read a comma list."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def numbers(text: str) -> tuple[int, ...]:
    """Read a comma list of whole numbers, one at least (an argparse type)."""
    try:
        return listed(int)(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be whole numbers separated by commas, not {text!r}"
        ) from None


def assignments(texts: Sequence[str], option: str) -> dict[str, float]:
    """Read repeated ``TASK=N``."""
    values = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            values[name.strip()] = float(value)
        except ValueError:
            raise UsageError(f"{option} takes TASK=N with a number N, not {text!r}") from None
    return values


# ------------------------------------------------------------------------- arguments in common


def add_tables(parser: argparse.ArgumentParser) -> None:
    """Add the tables to read and the rows to keep."""
    parser.add_argument(
        "tables", nargs="+", metavar="FILE", help="tidy tables (CSV, JSON Lines, Parquet; - stdin)"
    )
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="COLUMN=VALUE",
        help="keep only rows with this llm, gpu, precision, task, modality, engine, "
        "engine_version, source or boundary (repeat to narrow; values separated by | are "
        "alternatives)",
    )


def read_tables(arguments: argparse.Namespace, *, joules: bool = True) -> Dataset:
    """Read and pool the tables, less the rows that ``--where`` leaves out.

    ``joules`` says whether every row must have them, as in `table.read`.
    """
    import numpy as np

    from energylens import table
    from energylens.dataset import Dataset

    parts = [table.read(path, joules=joules) for path in arguments.tables]
    dataset = Dataset.concatenate(parts) if len(parts) > 1 else parts[0]
    columns = {
        "llm": dataset.llm_ids,
        "gpu": dataset.gpu_ids,
        "precision": dataset.precision_ids,
        "task": dataset.task,
        "modality": dataset.modality,
        "engine": dataset.engine,
        "engine_version": dataset.engine_version,
        "source": dataset.source,
        "boundary": dataset.boundary,
    }
    for condition in arguments.where:
        name, equals, value = condition.partition("=")
        if not equals:
            raise UsageError(
                f"--where takes COLUMN=VALUE, as in --where gpu=H100-SXM-80GB, not {condition!r}"
            )
        if name not in columns:
            raise UnknownChoiceError(
                "column for --where", name, columns, f"It takes {', '.join(columns)}."
            )
        column = columns[name].astype(str)
        wanted = [_known_as(name, part) for part in value.split("|")]
        keep = np.isin(column, wanted)
        if not keep.any():
            present = sorted(set(column))
            named = ", ".join(present[:12])
            more = f" and {len(present) - 12} more" if len(present) > 12 else ""
            raise UsageError(f"no row has {name} {value}; there are {named}{more}")
        dataset = dataset.take(keep)
        columns = {key: values[keep] for key, values in columns.items()}
    return dataset


def _known_as(column: str, name: str) -> str:
    """Give the name that tables have for what the catalog knows by several."""
    from energylens import catalog

    try:
        if column == "llm":
            return catalog.llm(name).id
        if column == "gpu":
            return catalog.gpu(name).id
        return catalog.precision(name).id if column == "precision" else name
    except InputError:
        return name


def positive_int(text: str) -> int:
    """Read a whole number of 1 or more (an argparse type)."""
    return _whole(text, 1)


def not_negative_int(text: str) -> int:
    """Read a whole number of 0 or more (an argparse type)."""
    return _whole(text, 0)


def port(text: str) -> int:
    """Read the number of a port; 0 takes a free one (an argparse type)."""
    if not text.isdecimal() or not text.isascii() or int(text[:6]) > 65535:
        raise argparse.ArgumentTypeError(f"must be a port from 0 to 65535, not {text[:40]!r}")
    return int(text)


def seed(text: str) -> int:
    """Read a seed (an argparse type)."""
    return _whole(text, 0, 2**64 - 1)


def number(must: str, holds: Callable[[float], bool]) -> Callable[[str], float]:
    """Make an argparse type of the numbers of which something holds, which ``must`` says."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not holds(value):
            raise argparse.ArgumentTypeError(f"must be {must}, not {text[:40]!r}")
        return value

    return read


def number_between(low: float, high: float) -> Callable[[str], float]:
    """Make an argparse type of numbers from ``low`` to ``high``, both included."""
    return number(f"a number from {low:g} to {high:g}", lambda value: low <= value <= high)


share = number("a share above 0, at most 1", lambda value: 0 < value <= 1)
positive = number(f"a number above 0, at most {MOST:g}", lambda value: 0 < value <= MOST)


def listed(read: Callable[[str], T]) -> Callable[[str], tuple[T, ...]]:
    """Make an argparse type of comma lists, of one or more, of what another one reads."""

    def read_all(text: str) -> tuple[T, ...]:
        found = tuple(read(part) for part in comma_list(text))
        if not found:
            raise argparse.ArgumentTypeError(f"must list one value at least, not {text!r}")
        return found

    return read_all


def _whole(text: str, low: int, most: int = int(MOST)) -> int:
    try:
        value = int(text)
    except ValueError:
        value = low - 1
    if value < low:
        raise argparse.ArgumentTypeError(f"must be a whole number of {low} or more, not {text!r}")
    if value > most:
        raise argparse.ArgumentTypeError(f"must be at most {most}, not {text[:40]!r}")
    return value


def name_value_pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    """Read repeated ``NAME=VALUE``."""
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"{option} takes NAME=VALUE, not {text!r}")
        pairs[name] = value
    return pairs


def about_minutes(minutes: float) -> str:
    """Write minutes as a rough number."""
    rough = round(minutes)
    return f"about {plural(rough, 'minute')}" if rough else "less than a minute"


def add_meter(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add ``--meter``."""
    parser.add_argument(
        "--meter",
        default="auto",
        metavar="NAME",
        help="auto (default), nvml, nvml-power, zeus, estimated, replay:FILE or http://HOST:PORT",
    )
