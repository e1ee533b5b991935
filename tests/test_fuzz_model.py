"""Thousands of damaged model files: each gives the very same model, or one clear error of ours."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest

from energylens import files, modelfile
from energylens.cases import Cases
from energylens.errors import EnergyLensError
from energylens.fitting import FitOptions, fit

MUTATIONS = 5000

PIECES = (
    b"0 -0 -0.0 1 1.0 1e400 -1e-320 nan NaN Infinity null true false {} [] [[]] \"\" \"x\" "
    b"\"vision\" , : { } [ ] \" \\ \\u0000 \\ud800 \xff \xc3\x28 \xef\xbb\xbf \x00 \n \t \x0b 1_0 "
    b"99999999999999999999999999 0.1000000000000000055511151231257827021181583404541015625"
).split(b" ")  # fmt: skip


@pytest.fixture(scope="module")
def document(draw_cases, make_dataset):
    return modelfile.to_json(fit(make_dataset(draw_cases(8), noise_ratio=0.1)))


def mutate(text: bytes, chance: random.Random) -> bytes:
    """Damage the text of a file in one to three ways."""
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        at, other = sorted((chance.randrange(len(text)), chance.randrange(len(text))))
        way = chance.randrange(8)
        if way == 0:  # flip a bit
            text = text[:at] + bytes([text[at] ^ 1 << chance.randrange(8)]) + text[at + 1 :]
        elif way == 1:  # any byte
            text = text[:at] + bytes([chance.randrange(256)]) + text[at + 1 :]
        elif way == 2:  # something strange
            text = text[:at] + chance.choice(PIECES) + text[at:]
        elif way == 3:  # lose some
            text = text[:at] + text[at + chance.randrange(1, 40) :]
        elif way == 4:  # torn off
            text = text[: at + 1]
        elif way == 5:  # a digit more
            digit = text.find(b".", at)
            text = text[: digit + 1] + b"0123456789"[chance.randrange(10) :][:1] + text[digit + 1 :]
        elif way == 6:  # harmless: space between the parts
            comma = text.find(b",", at)
            text = text[: comma + 1] + b"  \n"[: chance.randrange(1, 4)] + text[comma + 1 :]
        else:  # a piece moved
            text = text[:at] + text[other : other + 30] + text[at:]
    return text


def alter(value: object, chance: random.Random) -> object:
    """Change something in the parsed document: what no flipped bit would find."""
    strange = (None, True, 0, -1, 1e308, -1e308, 1e-320, "", "x", [], {}, [[]], {"x": 1}, 2**70)
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(list(value))
        way = chance.randrange(6)
        if way == 0:
            del value[key]
        elif way == 1:
            value[key + "x"] = value[key]
        else:
            value[key] = alter(value[key], chance)
        return value
    if isinstance(value, list) and value and chance.random() < 0.9:
        place = chance.randrange(len(value))
        way = chance.randrange(5)
        if way == 0:
            del value[place]
        elif way == 1:
            value.append(value[place])
        else:
            value[place] = alter(value[place], chance)
        return value
    if isinstance(value, float) and chance.random() < 0.5:
        return value * chance.choice((1 + 1e-15, 0.5, -1.0, 1e300, 0.0))
    return chance.choice(strange)


def read(text: bytes) -> dict[str, object]:
    return modelfile.to_json(modelfile.from_json(files.parse_json(text, "fuzz"), "fuzz"))


def test_a_damaged_model_is_the_very_same_or_refused(document):
    chance = random.Random(20_260_102)
    text = json.dumps(document).encode()
    outcomes = Counter()
    for _ in range(MUTATIONS):
        damaged = mutate(text, chance)
        try:
            again = read(damaged)
        except EnergyLensError as error:
            outcomes["refused"] += 1
            outcomes["unclear"] += "\n" in str(error) or not 10 < len(str(error)) < 1000
        else:
            outcomes["read"] += 1
            assert again == document, damaged
    assert not outcomes["unclear"]
    assert outcomes["read"] > MUTATIONS // 50  # both ends are met,
    assert outcomes["refused"] > MUTATIONS // 2  # so the test means something


def test_a_model_altered_with_intent_and_sealed_again_is_sound_or_refused(draw_cases, make_dataset):
    """The seal guards against accidents; whoever renews it must still not break the program."""
    chance = random.Random(20_260_103)
    cases = Cases.of(draw_cases(4, seed=1, gpus=("H100", "A100-SXM-80GB")))
    cases = cases.replace(average_power_w=500.0)
    rows = make_dataset(draw_cases(8), noise_ratio=0.1)
    options = FitOptions(per=("gpu",), extend=("length",))
    text = json.dumps(modelfile.to_json(fit(rows, options)))
    outcomes = Counter()
    for _ in range(600):
        altered = alter(json.loads(text), chance)
        if isinstance(altered, dict):
            content = {key: value for key, value in altered.items() if key != "seal"}
            altered = {**content, "seal": modelfile._seal(content)}
        try:
            model = modelfile.from_json(altered, "fuzz")
        except EnergyLensError:
            outcomes["refused"] += 1
        else:
            outcomes["read"] += 1
            assert model.pooled.theta.min() >= 0
            assert model.predict_energy_j(cases).shape == (4,)
    assert outcomes["read"] > 30
    assert outcomes["refused"] > 200
