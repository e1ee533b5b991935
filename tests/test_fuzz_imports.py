"""Mutated files of every format: a right row, or one sentence; never a traceback."""

import json

import numpy as np
import pytest
from tests.test_import_formats import MAKERS
from tests.test_power_logs import (
    ZEUS,
    amd,
    exporter,
    gaudi,
    ipmi,
    pdu,
    prometheus,
    ptdaemon,
    rocm,
    timeline,
)
from tests.test_power_logs import log as read_log

from energylens.errors import EnergyLensError
from energylens.importers import auto, documents
from energylens.importers.declared import Setup, row_of

JUNK = (None, True, "", "x", "NaN", "inf", -1, 0, 1e308, 10**400, [], {}, [1], {"a": 1}, 0.5, "7")
SETUP = Setup(llm="Qwen/Qwen3-8B", gpu="H100", batch_size=8)
LOGS = {
    "dcgm": exporter,
    "prometheus": prometheus,
    "zeus": lambda: ZEUS,
    "amd": amd,
    "rocm": rocm,
    "gaudi": gaudi,
    "ptdaemon": ptdaemon,
    "ipmi": ipmi,
    "pdu": pdu,
    "timeline": timeline,
}


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


def one_sentence(said):
    assert "\n" not in said
    assert len(said) < 700


def check_benchmark(data):
    try:
        for run in auto.runs_of(documents.parse(data, "f.json")):
            row = row_of(run, SETUP)
    except EnergyLensError as error:
        one_sentence(str(error))
        return
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
    text = text if form in ("prometheus", "zeus", "timeline") else text[: len(text) // 8]
    for _ in range(number):
        try:
            read_log(torn(text, rng))
        except EnergyLensError as error:
            one_sentence(str(error))


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
