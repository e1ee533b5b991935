"""The command line: the only place that wires the rooms together.

Every verb reads files, writes one artefact or prints one answer, and takes ``--json``. Text for
people goes to stdout, progress to stderr. Commands end with an `energylens.errors.ExitCode`; with
``--json`` stdout holds one document, the answer or the error, and errors are JSON on stderr too.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from energylens import __version__
from energylens.cli.console import Answer, Parser, print_json_error
from energylens.errors import EnergyLensError, ExitCode, UsageError

#: Modules of this package in the order their verbs are listed; each has ``add_verbs(verbs)``.
_MODULES = (
    "import_",
    "get",
    "check",
    "audit",
    "compare",
    "export",
    "fit",
    "explain",
    "select",
    "verify",
    "models",
    "serve",
    "judging",
    "report",
    "demo",
    "names",
    "doctor",
    "plan",
    "measure",
    "meter",
    "watch",
    "rehearse",
    "control",
    "campaign",
    "discovering",
)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all verbs; imports nothing heavy."""
    from importlib import import_module

    parser = Parser(
        prog="energylens",
        description="Closed-form energy models for LLM inference serving:\nfrom measurements to "
        "the configuration with the fewest joules, and why.",
        epilog="A first look: energylens demo",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"energylens {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name in _MODULES:
        import_module(f"energylens.cli.{name}").add_verbs(verbs)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    arguments : sequence of str, optional
        Without the program's name; those of the process by default.

    Returns
    -------
    int
        The exit code.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    Answer.begin(given)
    for stream in (sys.stdout, sys.stderr):
        # Whatever a terminal cannot show, in its locale or of a file's name, is shown escaped.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            parsed = build_parser().parse_args(given)
        except SystemExit:  # --help and --version end here, and may write to a closed pipe
            print(end="", flush=True)
            raise
        Answer.verb, Answer.as_json = parsed.verb, getattr(parsed, "json", False)
        _spare(parsed)
        code = parsed.run(parsed)
        print(end="", flush=True)
        return int(code or ExitCode.DONE)
    except EnergyLensError as error:
        return _failed(type(error).__name__, str(error), error.exit_code)
    except KeyboardInterrupt:
        return _failed("KeyboardInterrupt", "interrupted", ExitCode.INTERRUPTED)
    except MemoryError:
        said = "this machine has not enough memory for that: give it fewer rows, or a smaller file"
        return _failed("MemoryError", said, ExitCode.FAILED)
    except BrokenPipeError:
        # Whoever read us has enough; keep Python from complaining at exit.
        _close_stdout()
        return ExitCode.DONE
    except OSError as error:  # what is read has errors of its own: this is about writing
        where = f" {error.filename}" if error.filename else ""
        said = f"cannot write{where}: {error.strerror}"
        if not error.filename:
            print(f"energylens {Answer.verb}: {said}", file=sys.stderr)
            _close_stdout()
            return ExitCode.FAILED
        return _failed("OSError", said, ExitCode.FAILED)


def _failed(kind: str, said: str, code: ExitCode) -> int:
    """Say what went wrong, as text or as JSON."""
    if not Answer.as_json:
        print(f"energylens {Answer.verb}".rstrip() + f": {said}", file=sys.stderr)
        return code
    try:
        print_json_error(kind, said, code)
        print(end="", flush=True)
    except OSError:  # nobody reads it
        _close_stdout()
    return code


def _spare(parsed: argparse.Namespace) -> None:
    """Refuse to write over what the command reads, and over measurements.

    Raises
    ------
    UsageError
        If it would.
    """
    output = getattr(parsed, "output", None)
    if not output or output == "-" or not os.path.isfile(output):  # noqa: PTH113 - imports nothing
        return
    for name, value in vars(parsed).items():
        for text in value if isinstance(value, list | tuple) else (value,):
            if name != "output" and isinstance(text, str) and _same(text, output):
                raise UsageError(
                    f"{output} is read by this command and would be written over: give -o another "
                    "name"
                )
    if parsed.verb not in ("measure", "import") and _is_table(output):
        raise UsageError(
            f"{output} is a table of measurements and would be written over: give -o another name, "
            "or remove it first"
        )


def _same(path: str, other: str) -> bool:
    try:
        return os.path.samefile(path, other)  # noqa: PTH121 - imports nothing
    except (OSError, ValueError):
        return False


def _is_table(path: str) -> bool:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - imports nothing
            first = file.readline(65536)
    except OSError:
        return False
    return first.startswith(b"PAR1") or (b"energy_per_request_j" in first and b"llm" in first)


def _close_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
