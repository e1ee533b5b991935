"""Mutated files of every format: a right row, or one sentence; never a traceback."""

import json

import numpy as np
import pytest
from tests.test_import_formats import MAKERS
from tests.test_power_logs import EACH, joules_of

from energylens.errors import EnergyLensError
from energylens.importers import auto, documents, guess
from energylens.importers import table as foreign
from energylens.importers.declared import Setup, row_of
from energylens.importers.mapping import parse_mapping

JUNK = (None, True, "", "x", "NaN", "inf", -1, 0, 1e308, 10**400, [], {}, [1], {"a": 1}, 0.5, "7")
SETUP = Setup(llm="Qwen/Qwen3-8B", gpu="H100", batch_size=8)
LOGS = {form: made[0] for form, made in EACH.items()}


def mutated(document, rng):
    """Change one value somewhere in a document, leave one out, or add one."""
    document = json.loads(json.dumps(document))
    place = document
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return document
        key = keys[int(rng.integers(len(keys)))]
        if isinstance(place[key], dict | list) and rng.random() < 0.85:
            place = place[key]
            continue
        kind = rng.random()
        if kind < 0.2 and isinstance(place, dict):
            del place[key]
        elif kind < 0.4 and isinstance(place[key], int | float):
            place[key] = place[key] * float(rng.choice([1e-3, 1e3, -1, 1e9]))
        else:
            place[key] = JUNK[int(rng.integers(len(JUNK)))]
        return document


def torn(text, rng):
    """Cut a text, or drop, double or garble a stretch of it."""
    a, b = sorted(rng.integers(0, len(text), 2).tolist())
    b = min(b, a + 40)
    kind = rng.integers(4)
    if kind == 0:
        return text[:a]
    if kind == 1:
        return text[:a] + text[b:]
    if kind == 2:
        return text[:b] + text[a:b] + text[b:]
    return text[:a] + "".join(rng.permutation(list(text[a:b]))) + text[b:]


def one_sentence(said, longest=700):
    assert "\n" not in said
    assert len(said) < longest


def check_benchmark(data):
    try:
        document = documents.parse(data, "f.json")
        read = auto.runs_of if document.objects else auto._text_runs
        rows = [row_of(run, SETUP) for run in read(document)]
    except EnergyLensError as error:
        one_sentence(str(error))
        return
    for row in rows:
        right(row)


def right(row):
    joules = row.cells.get("energy_per_request_j")
    assert joules is None or (np.isfinite(joules) and joules >= 0)
    for name, value in row.cells.items():
        if name.endswith("_s") and value is not None:
            assert np.isfinite(value), name
            assert value > 0, name


def _benchmarks(form, number, seed):
    rng = np.random.default_rng(seed)
    document = MAKERS[form]()
    text = json.dumps(document)
    for _ in range(number):
        if rng.random() < 0.8:
            changed = json.dumps(mutated(document, rng), allow_nan=True)
        else:
            changed = torn(text, rng)
        check_benchmark(changed.encode("utf-8", errors="replace"))


def _logs(form, number, seed):
    rng = np.random.default_rng(seed)
    text = LOGS[form]()
    for _ in range(number):
        try:
            joules = joules_of(torn(text, rng), form)[1]
        except EnergyLensError as error:
            one_sentence(str(error))
            continue
        assert np.isfinite(joules)
        assert joules > 0


@pytest.mark.parametrize("form", MAKERS)
def test_a_seeded_twentieth_of_the_mutations(form):
    _benchmarks(form, 250, seed=0)


@pytest.mark.parametrize("form", LOGS)
def test_a_seeded_share_of_torn_logs(form):
    _logs(form, 25, seed=0)


@pytest.mark.soak
@pytest.mark.parametrize("form", MAKERS)
def test_five_thousand_mutations(form):
    _benchmarks(form, 5000, seed=1)


@pytest.mark.soak
@pytest.mark.parametrize("form", LOGS)
def test_five_thousand_torn_logs(form):
    _logs(form, 5000, seed=1)


# ------------------------------------------------------------------- tables of anybody's

TABLES = {
    "units.csv": (
        "Model,TP,Conc,TPOT_ms,AvgPower,J_out_tok,osl\n"
        'Qwen/Qwen3-8B,1,64,15.21,"1,303 W",0.192,1024\n'
        'Qwen/Qwen3-8B,2,64,9.89,"1,205 W",0.192,1024\n'
        "Qwen/Qwen3-8B,4,8,4.05,794 W,0.725,1024\n"
    ),
    "commas.csv": (
        "model;batch;prompt;generated;energy_wh;requests;latency\n"
        "Qwen/Qwen3-8B;8;512;128;0,0512;100;2,6\nQwen/Qwen3-32B;32;512;128;1.300,25;9000;12,9\n"
    ),
    "long.csv": (
        "model,gpu,run,metric,value,unit\nQwen/Qwen3-8B,H100,1,energy,0.5,kWh\n"
        "Qwen/Qwen3-8B,H100,1,time,00:10:00,\nQwen/Qwen3-8B,H100,2,energy,0.6,kWh\n"
    ),
    "nested.json": json.dumps(
        {
            "model": "Qwen/Qwen3-8B",
            "gpu": "H100",
            "runs": [
                {"load": {"concurrency": n}, "out": {"output_tokens": 128}, "energy_j": 90.0 / n}
                for n in (1, 2, 4)
            ],
        }
    ),
}
GIVEN = {"gpu": "H100", "batch_size": 8, "input_tokens": 500, "output_tokens": 100}
MAPPINGS = {
    "units.csv": {
        "constants": {"source": "published", "gpu": "H100", "input_tokens": 1024},
        "columns": {
            "llm": "Model",
            "tensor_parallel": "TP",
            "batch_size": "Conc",
            "output_tokens": "osl",
            "average_power_w": "AvgPower",
            "tpot_s": {"column": "TPOT_ms", "scale": 0.001},
            "energy_per_request_j": {"column": "J_out_tok", "multiply_by": "osl"},
        },
    },
    "commas.csv": {
        "constants": {"source": "published", "gpu": "H100"},
        "columns": {
            "llm": "model",
            "batch_size": "batch",
            "input_tokens": "prompt",
            "output_tokens": "generated",
            "request_latency_s": "latency",
            "energy_per_request_j": {
                "column": "energy_wh",
                "scale": 3600,
                "divide_by": "requests",
            },
        },
    },
    "long.csv": {
        "file": {"pivot": {"names": "metric", "values": "value", "units": "unit"}},
        "constants": {"source": "published", **GIVEN} | {"gpu": "H100"},
        "columns": {"llm": "model", "energy_per_request_j": "energy", "request_latency_s": "time"},
    },
    "nested.json": {
        "file": {"rows": "runs[]"},
        "constants": {"source": "published", "gpu": "H100", "input_tokens": 500},
        "columns": {
            "llm": {"root": "model"},
            "batch_size": "load.concurrency",
            "output_tokens": "out.output_tokens",
            "energy_per_request_j": "energy_j",
        },
    },
}


def _tables(name, number, seed, folder):
    rng = np.random.default_rng(seed)
    text, mapping = TABLES[name], MAPPINGS[name]
    path = folder / name
    taken = 0
    for turn in range(number):
        if name.endswith(".json") and rng.random() < 0.8:
            changed = json.dumps(mutated(json.loads(text), rng))
        else:
            changed = torn(text, rng)
        path.write_text(changed, encoding="utf-8")
        plan = mutated(mapping, rng) if rng.random() < 0.3 else mapping
        try:
            if turn % 4 == 3:
                draft = guess.draft(path, GIVEN)
                if draft.missing:
                    continue
                chosen = draft.mapped
            else:
                chosen = parse_mapping(plan, "m.toml")
            imported = foreign.read(
                path, mapping=chosen, assume_input_tokens={}, assume_vision_tokens={}
            )
        except EnergyLensError as error:
            one_sentence(str(error), 2500)
            continue
        taken += 1
        joules = imported.dataset.energy_per_request_j
        assert (np.isfinite(joules) & (joules > 0)).all()
    return taken


@pytest.mark.parametrize("name", TABLES)
def test_a_seeded_share_of_damaged_tables(name, tmp_path):
    if name == "nested.json":
        pytest.importorskip("jmespath")
    assert _tables(name, 100, 0, tmp_path) > 5


@pytest.mark.soak
@pytest.mark.parametrize("name", TABLES)
def test_five_thousand_damaged_tables(name, tmp_path):
    if name == "nested.json":
        pytest.importorskip("jmespath")
    assert _tables(name, 5000, 1, tmp_path) > 100
