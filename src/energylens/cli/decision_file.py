"""``select decision.toml``: a whole question in one file, for review and CI.

The keys are those of the options, in tables that group them; an option on the command line wins.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from energylens.errors import ArtefactError, InputError
from energylens.records import Engine
from energylens.schemas import DecisionFile
from energylens.words import complaint


def parse(path: str) -> DecisionFile:
    """Read a decision file.

    Raises
    ------
    ArtefactError
        If it cannot be read, or is neither TOML nor YAML.
    InputError
        If a key is missing, unknown or has a value that is none.
    """
    from energylens import files

    document: Any
    if path.lower().endswith(".toml"):
        document = files.read_toml(path)
    else:
        text = files.read_text(path)
        try:
            import yaml  # type: ignore[import-untyped, unused-ignore]
        except ImportError as error:
            raise ArtefactError(
                f"{path} is YAML, which takes PyYAML (pip install pyyaml); TOML needs nothing"
            ) from error
        try:
            document = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ArtefactError(f"{path} is no YAML: {error}") from error
    try:
        return DecisionFile.model_validate(document)
    except ValidationError as error:
        raise InputError(
            f"{path}: {complaint(error.errors()[0])} "
            "(docs/schemas/v1/decision-file.schema.json has every key)"
        ) from error


def read(arguments: argparse.Namespace) -> None:
    """Fill in what the command line left open from the decision file it names."""
    path = arguments.model
    asked = parse(path)
    beside = Path(path).resolve().parent

    def near(name: str | None) -> str | None:
        """Paths are those beside the file, where there is one."""
        return str(beside / name) if name and (beside / name).exists() else name

    values: dict[str, Any] = {
        **asked.serve.model_dump(exclude={"model", "engine"}),
        "model": near(asked.serve.model),
        "rate": asked.load.rate_per_s,
        **asked.load.model_dump(exclude={"rate_per_s", "lengths", "profile"}),
        "lengths": near(asked.load.lengths),
        "profile": near(asked.load.profile),
        **asked.limits.model_dump(),
        **asked.prices.model_dump(),
        **asked.choose.model_dump(exclude={"knobs"}),
        "choose": tuple(asked.choose.knobs) if asked.choose.knobs else None,
    }
    if asked.serve.engine:
        values["engine"] = Engine.named(asked.serve.engine)
    if asked.current is not None:
        values["current"] = asked.current.configuration
        values["check"] = asked.current.at_most_percent_above_best
    arguments.model = None
    for name, value in values.items():
        given = getattr(arguments, name, None)
        if name == "max_gpus" and given == MOST_GPUS_BY_DEFAULT:
            given = None
        if value is not None and given in (None, (), False):
            setattr(arguments, name, value)


MOST_GPUS_BY_DEFAULT = 8
