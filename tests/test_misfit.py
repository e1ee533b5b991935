"""A fit that its own rows contradict: joules of another unit are refused, large errors owned up."""

import json
from dataclasses import replace

import numpy as np
import pytest

import energylens as el
from energylens import fitting, table
from energylens.cli import main
from energylens.errors import FitError

LLM = "meta-llama/Llama-3.1-8B-Instruct"
CASE = ("--llm", LLM, "--gpu", "H100", "--input-tokens", "500", "--output-tokens", "200")


@pytest.fixture(scope="module")
def rows():
    from importlib.resources import files

    demo = table.read(str(files("energylens") / "data" / "simulated-demo.csv"))
    return demo.take((demo.llm_ids == LLM) & (demo.gpu_ids == "H100-SXM-80GB"))


@pytest.mark.parametrize("factor", [1000.0, 1 / 3600])
def test_joules_of_another_unit_are_refused_unless_they_are_confirmed(rows, tmp_path, factor):
    wrong = replace(
        rows,
        energy_per_request_j=rows.energy_per_request_j * factor,
        prefill_energy_per_request_j=rows.prefill_energy_per_request_j * factor,
        decode_energy_per_request_j=rows.decode_energy_per_request_j * factor,
    )
    with pytest.raises(FitError, match="in another unit than joules"):
        el.fit(wrong)
    assert "misfit_ratio" in el.fit(wrong, accept_misfit=True).options
    path, model = tmp_path / "wrong.csv", tmp_path / "model.json"
    table.write(wrong, path)
    assert main(["fit", str(path), "-o", str(model)]) == 1
    assert not model.exists()
    # A table as a model is fitted on the way: refused as well.
    assert main(["explain", str(path), *CASE]) == 1
    assert main(["fit", str(path), "-o", str(model), "--accept-misfit"]) == 0


def test_a_fit_beyond_use_says_so_and_select_repeats_it(rows, tmp_path, capsys):
    chance = np.random.default_rng(0)
    part = rows.take(np.arange(len(rows)) < 80)
    noise = np.exp(chance.normal(0.0, 1.2, len(part)))
    noisy = replace(
        part,
        energy_per_request_j=part.energy_per_request_j * noise,
        prefill_energy_per_request_j=part.prefill_energy_per_request_j * noise,
        decode_energy_per_request_j=part.decode_energy_per_request_j * noise,
    )
    assert "misfit_ratio" in fitting.fit(noisy).options
    path, model = tmp_path / "noisy.csv", tmp_path / "model.json"
    table.write(noisy, path)
    assert main(["fit", str(path), "-o", str(model)]) == 0
    assert "beyond use" in " ".join(capsys.readouterr().out.split())
    for words in (("explain", str(model), *CASE), ("select", str(model), *CASE)):
        assert main([*words, "--json"]) == 0
        notes = json.loads(capsys.readouterr().out)["notes"]
        assert any("beyond use, do not choose by it" in note for note in notes)
        assert main([*words]) == 0
        assert "do not choose by it" in " ".join(capsys.readouterr().out.split())


def test_a_fit_that_is_good_says_nothing(rows):
    assert "misfit_ratio" not in el.fit(rows).options


def test_a_request_longer_than_the_context_of_its_llm_is_said(capsys):
    asked = ("datasheet", "--llm", "Qwen/Qwen3-8B", "--gpu", "H100", "--output-tokens", "200")
    for words in (
        ("explain", *asked),
        ("select", *asked),
        ("select", *asked, "--rate", "0.1", "--max-gpus", "8"),
    ):
        main([*words, "--input-tokens", "45000"])
        told = " ".join(capsys.readouterr().out.split())
        assert "45,200 tokens is longer than the context of Qwen/Qwen3-8B, 40,960 tokens" in told
        main([*words, "--input-tokens", "1000"])
        assert "longer than the context" not in capsys.readouterr().out


def test_contexts_are_of_llms_that_the_catalog_has():
    from fnmatch import fnmatchcase

    from energylens import catalog
    from energylens.catalog import _contexts

    names = list(catalog.llms())
    for pattern, tokens in _contexts().items():
        assert any(fnmatchcase(name, pattern) for name in names), pattern
        assert tokens >= 0
    assert catalog.context_note("nobody/has-it", 1e9) == ""
    assert catalog.context_note("Qwen/Qwen3-30B-A3B-Instruct-2507", 262_144) == ""
    assert "262,144" in catalog.context_note("Qwen/Qwen3-30B-A3B-Instruct-2507", 262_145)
