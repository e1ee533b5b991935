"""A discovered form where a model stands: select, explain, evaluate."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import energylens
from energylens import discovery, table
from energylens.cli import main
from energylens.errors import InputError

CASE = [
    "--llm",
    "Qwen/Qwen3-8B",
    "--gpu",
    "H100",
    "--input-tokens",
    "512",
    "--output-tokens",
    "256",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 60 rows and the front that a search finds in it."""
    place = tmp_path_factory.mktemp("front")
    every = table.read(Path(energylens.__file__).parent / "data" / "simulated-demo.csv")
    rows = every.take(np.linspace(0, len(every) - 1, 60).astype(np.intp))
    table.write(rows, place / "rows.csv")
    front = discovery.discover(rows, discovery.engine("own"), samples=0)
    (place / "front.json").write_text(json.dumps(front.to_json()))
    return place


def test_a_form_ranks_and_explains_by_its_own_numbers(folder: Path, capsys) -> None:
    form = f"{folder}/front.json#1"
    assert main(["select", form, *CASE, "--choose", "batch_size", "--json"]) == 0
    ranking = json.loads(capsys.readouterr().out)
    best = ranking["ranking"][0]
    assert "structure of this form was chosen on the 60 rows" in " ".join(ranking["notes"])
    size = str(int(best["batch_size"]))
    assert main(["explain", form, *CASE, "--batch-size", size, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["energy_per_request_j"] == pytest.approx(best["energy_per_request_j"])
    assert sum(told["terms"].values()) == pytest.approx(told["energy_per_request_j"])
    for verb in ("select", "explain"):
        assert main([verb, form, *CASE]) == 0
        assert "was chosen on" in " ".join(capsys.readouterr().out.split())


def test_a_form_is_judged_beside_the_law(folder: Path, capsys) -> None:
    form = f"{folder}/front.json#2"
    command = ["evaluate", f"{folder}/rows.csv", "--estimators", f"energylens,{form}"]
    options = ["--choose", "parallelism,batch_size", "--train", "30", "--repeats", "2"]
    assert main([*command, *options, "--allow-simulated", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["estimators"][form]["mape_ratio"] > 0
    (said,) = document["notes"]
    assert "structure of this form was chosen on" in said
    with pytest.raises(InputError, match="is a discovered form"):
        energylens.select(
            form, llm="Qwen/Qwen3-8B", gpu="H100", input_tokens=500, output_tokens=300
        )


def test_a_form_that_is_not_there_is_refused(folder: Path, capsys) -> None:
    assert main(["select", f"{folder}/front.json#99", *CASE]) in (1, 2)
    assert "#1 (the simplest) to #" in capsys.readouterr().err
    assert main(["select", f"{folder}/front.json#1", *CASE, "--rate", "3"]) == 2
    assert "leave --rate out" in capsys.readouterr().err
