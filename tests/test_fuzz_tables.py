"""Thousands of damaged files: each gives a dataset that is right, or one clear error of ours."""

import json
import random
from collections import Counter

import numpy as np
import pytest

from energylens import files, table
from energylens.errors import EnergyLensError
from energylens.importers import mlenergy_v3

MUTATIONS = (1000, pytest.param(5000, marks=pytest.mark.soak))

EXTREMES = (
    b"0 -0 -1 1e400 1e308 1e-320 nan NaN inf Infinity -Infinity 99999999999999999999999 0x10 1_0 "
    b'null true false "" "x" [] {} [[[[ " , , \xff \xc3\x28 \xef\xbb\xbf \x00 \r \x0b \xe2\x80\xa8 '
    b"\xd9\xa3 measured node video Qwen/Qwen3-32B \\ud800"
).split(b" ")


def tidy_rows():
    rows = []
    for i in range(6):
        rows.append(
            {
                "llm": "Qwen/Qwen3-8B" if i % 2 else "Qwen/Qwen3-VL-8B-Instruct",
                "gpu": "H100-SXM-80GB",
                "precision": "bf16",
                "tensor_parallel": 2,
                "batch_size": 2**i,
                "mean_batch_size": 2**i * 0.9,
                "modality": "text" if i % 2 else "image",
                "input_tokens": 1200 + i,
                "output_tokens": 250.5,
                "vision_tokens": 0 if i % 2 else 1024,
                "images": 0 if i % 2 else 1,
                "energy_per_request_j": 100.25 + i,
                "prefill_energy_per_request_j": 20.0 + i,
                "decode_energy_per_request_j": 80.25,
                "ttft_s": None if i % 3 else 0.25,
                "boundary": "node",
                "node_gpus": 8,
                "source": "measured",
                "origin": f"run {i}",
                "assumed": "input_tokens",
            }
        )
    return rows


def tidy_csv():
    rows = tidy_rows()
    lines = [",".join(rows[0])]
    for row in rows:
        lines.append(",".join("" if cell is None else str(cell) for cell in row.values()))
    return ("\n".join(lines) + "\n").encode()


def tidy_json_lines():
    return "".join(json.dumps(row) + "\n" for row in tidy_rows()).encode()


def mlenergy_json():
    """A small result file of the leaderboard's layout, a configuration on each line."""
    lines = []
    for i in range(5):
        output, power, throughput = 640.0 + i, 500.0 + 20 * i, 900.0 + 100 * i
        per_token = power / throughput
        configuration = {
            "avg_batch_size": 8.0 * 2**i - 0.5,
            "avg_output_len": output,
            "avg_power_watts": power,
            "energy_per_request_joules": per_token * output,
            "energy_per_token_joules": per_token,
            "gpu_model": "H100",
            "max_num_seqs": 8 * 2**i,
            "median_itl_ms": 12.5 + i,
            "num_gpus": 2,
            "output_throughput_tokens_per_sec": throughput,
            "parallelization": {
                "data_parallel": 1,
                "expert_parallel": 2,
                "notes": "",
                "tensor_parallel": 1,
            },
        }
        lines.append(json.dumps(configuration))
    head = (
        '{"architecture": "MoE",\n"model_id": "Qwen/Qwen3-30B-A3B-Instruct-2507",\n'
        '"task": "lm-arena-chat",\n"weight_precision": "bfloat16",\n"configurations": [\n'
    )
    return (head + ",\n".join(lines) + "\n]}\n").encode()


def mutate(data, chance):
    """Damage a file in one to three ways."""
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        if not data:
            break
        at = chance.randrange(len(data))
        way = chance.randrange(9)
        if way == 0:  # flip a bit
            data = data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
        elif way == 1:  # any byte
            data = data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]
        elif way == 2:
            data = data[:at] + chance.choice(EXTREMES) + data[at:]
        elif way == 3:  # lose some
            data = data[:at] + data[at + chance.randrange(1, 12) :]
        elif way == 4:  # torn off
            data = data[:at]
        else:
            data = mutate_line(data, way, chance)
    return data


def mutate_line(data, way, chance):
    lines = data.split(b"\n")
    i, j = chance.randrange(len(lines)), chance.randrange(len(lines))
    if way == 5:
        del lines[i]
    elif way == 6:
        lines.insert(j, lines[i])
    else:
        fields = lines[i].split(b",")
        a, b = chance.randrange(len(fields)), chance.randrange(len(fields))
        if way == 7:
            fields[a], fields[b] = fields[b], fields[a]
        else:  # an extreme in place of a value
            key, colon, _ = fields[a].rpartition(b": ")
            fields[a] = key + colon + chance.choice(EXTREMES)
        lines[i] = b",".join(fields)
    return b"\n".join(lines)


def rows_of(data):
    return list(zip(*table.columns_of(data).values(), strict=True))


def read_csv(data):
    return table.dataset_from_table(files.parse_table(data, "fuzz.csv", "csv"))


def read_json_lines(data):
    return table.dataset_from_table(files.parse_table(data, "fuzz.jsonl", "jsonl"))


def read_mlenergy(data):
    documents = {"fuzz.json": files.parse_json(data, "fuzz.json")}
    return mlenergy_v3.parse(
        documents, "fuzz", assume_input_tokens={}, assume_vision_tokens={}
    ).dataset


@pytest.mark.parametrize("mutations", MUTATIONS)
@pytest.mark.parametrize(
    ("read", "original", "head_lines"),
    [
        (read_csv, tidy_csv(), 1),
        (read_json_lines, tidy_json_lines(), 0),
        (read_mlenergy, mlenergy_json(), 5),
    ],
    ids=["csv", "json-lines", "ml-energy-json"],
)
def test_a_damaged_file_is_read_right_or_refused(
    read, original, head_lines, mutations, monkeypatch
):
    # Finding near names takes longer than all the rest, and is not what is tested here.
    monkeypatch.setattr("difflib.get_close_matches", lambda *_, **__: [])
    chance = random.Random(20_260_101)
    true_rows = Counter(rows_of(read(original)))
    lines = original.split(b"\n")
    outcomes = Counter()
    for _ in range(mutations):
        damaged = mutate(original, chance)
        try:
            data = read(damaged)
        except EnergyLensError as error:
            outcomes["refused"] += 1
            outcomes["unclear"] += "\n" in str(error) or not 10 < len(str(error)) < 4000
            continue
        outcomes["read"] += 1
        energy = data.energy_per_request_j
        assert (np.isfinite(energy) & (energy > 0)).all()
        now = damaged.removeprefix(b"\xef\xbb\xbf").split(b"\n")
        if now[:head_lines] == lines[:head_lines]:
            # A row that is not one of the original ones must come from a line that was damaged.
            new_lines = (Counter(now) - Counter(lines)).total() + damaged.count(b"\r")
            strange = Counter(rows_of(data)) - true_rows
            assert strange.total() <= new_lines, damaged
    assert not outcomes["unclear"]
    assert outcomes["read"] > mutations // 50  # both ends are met,
    assert outcomes["refused"] > mutations // 4  # so the test means something
