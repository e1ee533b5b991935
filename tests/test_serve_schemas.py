"""The published schemas are those of the code, and what the commands print keeps to them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tools.schemas import FOLDER, text_of

from energylens import schemas
from energylens.cli import main
from energylens.schemas import PUBLISHED, Question

LLAMA = "meta-llama/Llama-3.3-70B-Instruct"
AGAIN = "write them again: python -m tools.schemas"


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_a_published_schema_is_that_of_the_code(name: str) -> None:
    assert (FOLDER / f"{name}.schema.json").read_text(encoding="utf-8") == text_of(name), AGAIN


def test_nothing_else_is_published() -> None:
    names = {path.name for path in FOLDER.iterdir()}
    assert names == {f"{name}.schema.json" for name in PUBLISHED}


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def keys_kept(document: object, read: object) -> None:
    """Nothing that was printed is missing from the schema."""
    if isinstance(document, dict) and isinstance(read, dict):
        assert set(document) <= set(read)
        for key, value in document.items():
            keys_kept(value, read[key])
    elif isinstance(document, list) and isinstance(read, list):
        for one, other in zip(document, read, strict=True):
            keys_kept(one, other)


def test_what_the_commands_print_keeps_to_the_schemas(
    capsys: pytest.CaptureFixture[str],
) -> None:
    case = ("--llm", LLAMA, "--gpu", "H100", "--input-tokens", "2000", "--output-tokens", "300")
    decided = printed(
        capsys, "select", *case, "--precision", "fp8", "--rate", "3", "--tpot", "50ms",
        "--current", "TP8 B256", "--front",
    )  # fmt: skip
    read = schemas.Decision.model_validate(decided)
    keys_kept(decided, read.model_dump(by_alias=True, mode="json"))
    assert read.certain
    assert read.month["best"].kwh_per_month < read.month["current"].kwh_per_month

    explained = printed(
        capsys, "explain", "h100-vllm-0.11", *case, "--tensor-parallel", "4", "--batch-size", "64"
    )
    again = schemas.Explanation.model_validate(explained)
    keys_kept(explained, again.model_dump(by_alias=True, mode="json"))

    listed = printed(capsys, "models")
    keys_kept(listed, schemas.Models.model_validate(listed).model_dump())
    schemas.Gpus.model_validate(printed(capsys, "gpu", "list"))
    schemas.Llms.model_validate(printed(capsys, "llm", "list"))


def test_a_flat_question_says_what_a_decision_file_says() -> None:
    asked = Question(
        llm=LLAMA, gpu=["H100", "A100"], precision=["bf16", "fp8"], rate=3.0,
        input_tokens=2000, output_tokens=300, tpot="50ms", current="TP8 B256", price=0.2,
    )  # fmt: skip
    document = asked.document()
    assert document.choose.knobs is not None
    assert {"gpu", "precision"} <= set(document.choose.knobs)
    assert document.choose.gpus == ["H100", "A100"]
    assert document.serve.precision is None
    assert document.load.rate_per_s == 3.0
    assert document.current is not None
    assert document.current.configuration == "TP8 B256"
    assert document.prices.price == 0.2
