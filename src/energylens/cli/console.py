"""What the verbs share: tables, JSON, progress, and arguments that several of them take."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from energylens.errors import ExitCode, UsageError
from energylens.words import WIDTH, table_lines, wrapped

if TYPE_CHECKING:
    from energylens.dataset import Dataset
    from energylens.records import Case, Engine, Gpu, Precision

KV_FORMATS = ("auto", "bf16", "fp16", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2")
BATCH_SIZE = 32  # where none is named
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
        "--seed", type=not_negative_int, default=0, metavar="N", help="of all chance (default: 0)"
    )


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
    """A parser whose complaints are JSON where the command asks for JSON."""

    def error(self, message: str) -> NoReturn:
        """Complain of wrong usage, and end."""
        if Answer.as_json:
            print_json_error("UsageError", message, ExitCode.USAGE)
            self.exit(ExitCode.USAGE)
        super().error(message)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> None:
    """Print a table."""
    print("\n".join(table_lines(header, rows, left=left)))


def print_paragraph(text: str, indent: str = "", hanging: str = "") -> None:
    """Print wrapped text, lines after the first indented by ``hanging`` too."""
    print("\n".join(wrapped(text, indent=indent + hanging, first=indent)))


class Progress:
    """A line on stderr for work that takes longer than a second; silent where none is read."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.start = time.monotonic()
        self.shown = 0.0
        self.wide = 0

    def __call__(self, done: int, total: int) -> None:
        """Show how far the work is."""
        now = time.monotonic()
        if not sys.stderr.isatty() or now - self.start < SLOW_S or now - self.shown < 0.2:
            return
        self.shown = now
        left = (now - self.start) / max(done, 1) * (total - done)
        line = f"{self.what}: {done} of {total}, {left:.0f} s left"
        self.wide = max(self.wide, len(line))
        print(f"\r{line:<{self.wide}}", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Wipe the line."""
        if self.wide:
            print(f"\r{'':<{self.wide}}\r", end="", file=sys.stderr, flush=True)


def comma_list(text: str) -> tuple[str, ...]:
    """Read a comma list."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def numbers(text: str) -> tuple[int, ...]:
    """Read a comma list of whole numbers (an argparse type)."""
    try:
        return tuple(int(part) for part in comma_list(text))
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
    from energylens.errors import UnknownNameError

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
            raise UnknownNameError(
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
    from energylens.errors import InputError

    try:
        if column == "llm":
            return catalog.llm(name).id
        if column == "gpu":
            return catalog.gpu(name).id
        return catalog.precision(name).id if column == "precision" else name
    except InputError:
        return name


def add_case(parser: argparse.ArgumentParser) -> None:
    """Add what describes one case."""
    group = parser.add_argument_group("the case")
    group.add_argument("--llm", required=True, help="a name from energylens llm list")
    group.add_argument("--gpu", required=True, help="a name from energylens gpu list")
    group.add_argument("--precision", help="a number format; the LLM's own by default")
    for degree in ("tensor", "pipeline", "expert", "data"):
        group.add_argument(
            f"--{degree}-parallel", type=positive_int, default=1, metavar="N", help="default: 1"
        )
    group.add_argument(
        "--batch-size", type=positive_int, metavar="N", help=f"default: {BATCH_SIZE}"
    )
    group.add_argument(
        "--power-cap-w", type=positive, metavar="W", help="power limit of each GPU; default: none"
    )
    add_memory(group)
    group.add_argument("--input-tokens", type=positive, required=True, metavar="N")
    group.add_argument("--output-tokens", type=positive, required=True, metavar="N")
    group.add_argument(
        "--vision-tokens",
        type=positive,
        metavar="N",
        help="those of images or frames among the input tokens; by default what the catalog "
        "says, on top of them",
    )
    group.add_argument("--images", type=positive_int, default=0, metavar="N")
    group.add_argument("--frames", type=positive_int, default=0, metavar="N")
    group.add_argument(
        "--node-gpus",
        type=positive_int,
        metavar="N",
        help="count every GPU of a node of this size, idle ones too",
    )
    group.add_argument(
        "--engine",
        type=engine_of,
        metavar="'NAME VERSION'",
        help="what serves it, as in 'vllm 0.11.1', where the fit has rows of several",
    )


def add_memory(group: Any) -> None:
    """Add what an engine is told of the memory of its GPUs."""
    group.add_argument(
        "--gpu-memory-utilization",
        type=_share,
        metavar="RATIO",
        help="share of the GPU's memory that the engine may use; default: 0.9",
    )
    group.add_argument(
        "--kv-cache-dtype",
        choices=KV_FORMATS,
        default="auto",
        help="format of the KV cache; default: auto, that of the number format",
    )
    group.add_argument(
        "--max-num-seqs",
        type=positive_int,
        metavar="N",
        help="sequences of a replica that the engine may run, for which it sets memory aside; "
        "default: the batch size given, or where none is given the engine's own default",
    )


def gpu_of(arguments: argparse.Namespace, name: str) -> Gpu:
    """Look a GPU type up, with what the engine is told of its memory."""
    from energylens import capacity, catalog

    gpu, share = catalog.gpu(name), arguments.gpu_memory_utilization
    if share is not None:
        gpu = replace(gpu, memory_share_ratio=share)
    told = arguments.max_num_seqs
    if told is None and getattr(arguments, "engine_default_limit", False):
        told = capacity.default_sequences(gpu)
    return gpu if told is None else replace(gpu, max_num_seqs=told)


def precision_of(arguments: argparse.Namespace, name: str) -> Precision:
    """Look a number format up, with the format that the KV cache is given."""
    from energylens import capacity, catalog

    precision, bits = catalog.precision(name), capacity.KV_BITS[arguments.kv_cache_dtype]
    return precision if bits is None else replace(precision, kv_bits=bits)


def engine_of(text: str) -> Engine:
    """Read an engine and its version, as in ``vllm 0.11.1`` or ``vllm==0.11.1``."""
    from energylens.records import Engine

    name, _, version = text.replace("==", " ").strip().partition(" ")
    return Engine(name=name, version=version.strip())


def case_of(arguments: argparse.Namespace) -> Case:
    """Make the case that the arguments describe.

    The vision tokens that the catalog knows are added to the input tokens; those given with
    ``--vision-tokens`` are taken to be part of them.
    """
    from energylens import catalog
    from energylens.records import (
        UNKNOWN_ENGINE,
        Boundary,
        Case,
        Configuration,
        Modality,
        Workload,
    )

    gpus = arguments.tensor_parallel * arguments.pipeline_parallel * arguments.data_parallel
    if arguments.node_gpus and arguments.node_gpus < gpus:
        raise UsageError(
            f"--node-gpus must be at least the {gpus} GPUs of the deployment, tensor x pipeline x "
            f"data parallel ones; given {arguments.node_gpus}"
        )
    if arguments.batch_size is None:
        # Who names no limit starts an engine that takes its own.
        arguments.batch_size, arguments.engine_default_limit = BATCH_SIZE, True
    llm = catalog.llm(arguments.llm)
    stated = catalog.checkpoint_precision(arguments.llm, arguments.precision or "")
    precision = precision_of(arguments, stated.id)
    tokens, vision = arguments.input_tokens, arguments.vision_tokens
    if arguments.images or arguments.frames or vision:
        if llm.vision is None:
            raise UsageError(f"{llm.id} has no vision tower: leave images and frames out")
        if vision is None:
            vision = arguments.images * (llm.vision.tokens_per_image or 0)
            vision += arguments.frames * (llm.vision.tokens_per_frame or 0)
            if not vision:
                raise UsageError(
                    f"the catalog does not know how many tokens {llm.id} makes of an image or "
                    "frame: give --vision-tokens"
                )
            tokens += vision
    modality = Modality.VIDEO if arguments.frames else Modality.IMAGE if vision else Modality.TEXT
    return Case(
        llm=llm,
        gpu=gpu_of(arguments, arguments.gpu),
        precision=precision,
        workload=Workload(
            input_tokens=tokens,
            output_tokens=arguments.output_tokens,
            vision_tokens=vision or 0.0,
            images=arguments.images,
            frames=arguments.frames,
            modality=modality,
        ),
        configuration=Configuration(
            tensor_parallel=arguments.tensor_parallel,
            pipeline_parallel=arguments.pipeline_parallel,
            expert_parallel=arguments.expert_parallel,
            data_parallel=arguments.data_parallel,
            batch_size=arguments.batch_size,
            power_cap_w=arguments.power_cap_w,
        ),
        boundary=Boundary.NODE if arguments.node_gpus else Boundary.ACTIVE_GPUS,
        node_gpus=arguments.node_gpus,
        engine=arguments.engine or UNKNOWN_ENGINE,
    )


def positive_int(text: str) -> int:
    """Read a whole number of 1 or more (an argparse type)."""
    return _whole(text, 1)


def not_negative_int(text: str) -> int:
    """Read a whole number of 0 or more (an argparse type)."""
    return _whole(text, 0)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value <= 1.0:
        raise argparse.ArgumentTypeError(f"must be a share above 0, at most 1, not {text!r}")
    return value


def _whole(text: str, low: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = low - 1
    if value < low:
        raise argparse.ArgumentTypeError(f"must be a whole number of {low} or more, not {text!r}")
    return value


def positive(text: str) -> float:
    """Read a number above 0 (an argparse type)."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= MOST:
        raise argparse.ArgumentTypeError(
            f"must be a number above 0, at most {MOST:g}, not {text!r}"
        )
    return value


def name_value_pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    """Read repeated ``NAME=VALUE``."""
    from energylens.errors import UsageError

    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"{option} takes NAME=VALUE, not {text!r}")
        pairs[name] = value
    return pairs


def counted(number: int, what: str) -> str:
    """Write a number of things, in the plural where it is not one."""
    return f"{number} {what}{'s' * (number != 1)}"


def about_minutes(minutes: float) -> str:
    """Write minutes as a rough number."""
    return f"about {counted(round(minutes), 'minute')}"


def add_meter(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add ``--meter``."""
    parser.add_argument(
        "--meter",
        default="auto",
        metavar="NAME",
        help="auto (default), nvml, nvml-power, zeus, estimated, replay:FILE or http://HOST:PORT",
    )
