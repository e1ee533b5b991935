"""``energylens import table``: a table of anybody's, by a mapping given, found or drafted."""

from __future__ import annotations

import argparse
import sys
from contextlib import redirect_stdout
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from energylens.cli import import_auto
from energylens.cli.console import name_value_pairs, print_json, print_table
from energylens.errors import UsageError

if TYPE_CHECKING:
    from energylens.importers import Imported
    from energylens.importers.mapping import FileForm

_SHOWN = (
    "llm",
    "gpu",
    "tensor_parallel",
    "batch_size",
    "input_tokens",
    "output_tokens",
    "energy_per_request_j",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``import table``."""
    group = parser.add_argument_group("a table of your own or of others (import table)")
    group.add_argument(
        "--mapping",
        metavar="FILE.toml",
        help="which column of a foreign table is which (docs/data-format.md); with --guess, where "
        "the draft goes",
    )
    group.add_argument(
        "--guess",
        action="store_true",
        help="draft the mapping from names and sizes, show it and three rows, and ask",
    )
    group.add_argument(
        "--separator", metavar="C", help="of cells, one character or tab; told by the file"
    )
    group.add_argument(
        "--decimal", choices=(".", ","), help="sign of decimals; told by the file where it can be"
    )
    group.add_argument("--yes", action="store_true", help="take the draft of --guess as it is")
    group.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="COLUMN=VALUE",
        help="keep only rows of the file whose cell is this (repeat to narrow; values separated by "
        "| are alternatives)",
    )


def refuse_elsewhere(arguments: argparse.Namespace) -> None:
    """Refuse options of ``import table`` for another source.

    Raises
    ------
    UsageError
        If one is given.
    """
    for option in ("guess", "yes", "where", "separator", "decimal"):
        if getattr(arguments, option):
            raise UsageError(
                f"--{option} is for import table: leave it out to read {arguments.source}"
            )


def declared(arguments: argparse.Namespace) -> dict[str, object]:
    """Give what the operator declares, by columns of the tidy table."""
    setup = import_auto.options_of(arguments).setup
    said = {field.name: getattr(setup, field.name) for field in fields(setup)}
    return {name: value for name, value in said.items() if value is not None}


def read(arguments: argparse.Namespace, assumed: dict[str, Any]) -> Imported:
    """Read the table that the arguments name."""
    from energylens.importers import mapping, table

    where = {
        name: mapping.condition(name, value.split("|"), "--where")
        for name, value in name_value_pairs(arguments.where, "--where").items()
    }
    said = declared(arguments)
    form = _form(arguments)
    if not arguments.guess:
        if arguments.yes:
            raise UsageError("--yes answers what --guess asks: give both, or leave it out")
        return table.read(
            arguments.path,
            mapping=arguments.mapping,
            declared=said,
            where=where,
            form=form,
            **assumed,
        )
    return _guessed(arguments, said, where, form, assumed)


def print_draft(arguments: argparse.Namespace) -> None:
    """Print the mapping that ``--guess`` drafts, and read nothing by it."""
    from energylens import files
    from energylens.importers import guess

    target = _target(arguments) if arguments.mapping else None
    draft = guess.draft(arguments.path, declared(arguments), _form(arguments))
    if target:
        files.write_text(target, draft.text)
    if arguments.json:
        asked = {"missing": list(draft.missing), "questions": list(draft.questions)}
        written = str(target) if target else None
        print_json({"mapping": draft.text, "written": written, **asked})
    else:
        print(draft.text, end="")
    if target:
        print(f"The draft is written to {target}.", file=sys.stderr)


def _form(arguments: argparse.Namespace) -> FileForm:
    """Read what the operator says of how the file is written."""
    from energylens.importers import mapping

    written = {"separator": arguments.separator, "decimal": arguments.decimal}
    return mapping.file_form({k: v for k, v in written.items() if v is not None}, "--separator")


def _guessed(
    arguments: argparse.Namespace,
    said: dict[str, object],
    where: Any,
    form: FileForm,
    assumed: dict[str, Any],
) -> Imported:
    """Draft a mapping, show what it makes of the first rows, and read by it after a yes."""
    from energylens import files
    from energylens.importers import guess, table

    target = _target(arguments)
    draft = guess.draft(arguments.path, said, form)
    print(draft.text, file=sys.stderr)
    if draft.missing:
        open_ = f" ({'; '.join(draft.questions)})" if draft.questions else ""
        give = f"give {draft.flags}; or " if draft.flags else ""
        raise UsageError(
            f"{arguments.path} does not state {', '.join(draft.missing)}, as far as its columns "
            f"tell{open_}: {give}mend the draft above, save it as {target} and leave --guess out"
        )
    imported = table.read(arguments.path, mapping=draft.mapped, where=where, **assumed)
    _show(imported)
    if not arguments.yes:
        _ask(arguments.path)
    files.write_text(target, draft.text)
    note = f"The mapping is written to {target}."
    return type(imported)(
        dataset=imported.dataset, skipped=imported.skipped, notes=(*imported.notes, note)
    )


def _target(arguments: argparse.Namespace) -> Path:
    """Give where a draft goes, which must not be there yet."""
    target = Path(arguments.mapping or _beside(arguments.path))
    if target.exists():
        raise UsageError(
            f"there is a mapping already, {target}: leave --guess out to use it, or name another "
            "with --mapping"
        )
    return target


def _beside(path: str) -> str:
    from energylens import streams

    return "mapping.toml" if path == "-" else str(streams.beside(path, ".toml"))


def _show(imported: Imported) -> None:
    """Show three rows as they are read."""
    from energylens import table

    columns = table.columns_of(imported.dataset)
    rows = [
        [_cell(columns[name][i]) for name in _SHOWN] for i in range(min(3, len(imported.dataset)))
    ]
    with redirect_stdout(sys.stderr):
        print_table(_SHOWN, rows)
        print(f"{len(imported.dataset)} rows; {sum(s.rows for s in imported.skipped)} left out.")


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _ask(path: str) -> None:
    """Ask whether the rows are right.

    Raises
    ------
    UsageError
        If they are not, or nobody can answer.
    """
    if path == "-" or not sys.stdin.isatty():
        raise UsageError("somebody must look at the draft above: say --yes if it is right")
    print("Are these rows right? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError("nothing is written: mend the draft above, and give it with --mapping")
