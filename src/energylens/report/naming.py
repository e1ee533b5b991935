"""What rows, configurations and terms are called beside a figure and in a table."""

from __future__ import annotations

import numpy as np

from energylens.cases import Cases, FloatArray, IntArray
from energylens.dataset import Dataset
from energylens.formula import Term
from energylens.records import Configuration
from energylens.words import short_name

POINTS = 1500  # most rows that a scatter draws
BARS = 12  # most configurations or scenarios that a figure lists

LABEL = 40  # most letters of a name beside an axis

OURS = "energylens"


def known_latency(dataset: Dataset) -> tuple[FloatArray, str]:
    """Give the latency that more rows have, shape (rows,) in seconds, and what it is called."""
    cases = dataset.cases
    if np.isfinite(cases.request_latency_s).sum() >= np.isfinite(cases.tpot_s).sum():
        return cases.request_latency_s, "request latency"
    return cases.tpot_s, "time per output token"


def latency_word(dataset: Dataset) -> str:
    """Say what the latencies of these rows are: those of other rows may well be measured."""
    word = known_as(dataset)
    return word if word in ("measured", "simulated") else "recorded"


def spread(count: int, limit: int) -> IntArray:
    """Return all places of ``count``, or ``limit`` of them, evenly spread, both ends included."""
    return np.unique(np.linspace(0, count - 1, min(count, limit)).round().astype(np.intp))


def row_names(dataset: Dataset, rows: IntArray) -> list[str]:
    """Say what rows are, briefly: what a hover over one of them says."""
    cases = dataset.cases.take(rows)
    names = [configuration_name(cases.case(i).configuration) for i in range(len(cases))]
    return [
        f"{short_name(str(llm))}, {gpu} {precision}, {names[i]}"
        for i, (llm, gpu, precision) in enumerate(
            zip(
                dataset.llm_ids[rows],
                dataset.gpu_ids[rows],
                dataset.precision_ids[rows],
                strict=True,
            )
        )
    ]


def known_as(dataset: Dataset) -> str:
    """Say in a word what the joules of the rows are: "measured" only if all of them are."""
    if dataset.carries_accuracy_claim.all():
        return "measured"
    kinds = set(dataset.source.astype(str))
    return str(kinds.pop()) if len(kinds) == 1 else "recorded"


def scenario_name(dataset: Dataset, rows: IntArray, separator: str = ", ") -> str:
    """Name what rows of a scenario share; a line break as separator sets it beside an axis."""
    cases, row = dataset.cases, int(rows[0])
    lengths = f"{cases.input_tokens[row]:.0f}+{cases.output_tokens[rows].mean():.0f} tokens"
    details = (
        str(dataset.gpu_ids[row]),
        str(dataset.precision_ids[row]),
        str(dataset.task[row]) or lengths,
    )
    name = short_name(str(dataset.llm_ids[row]))
    if separator == "\n":  # in the margin of a figure
        name = name if len(name) <= LABEL else f"{name[: LABEL - 1]}…"
    return f"{name}{separator}{', '.join(details)}"


def configuration_name(configuration: Configuration) -> str:
    """Name a configuration as prose, tables and figures of a report do: ``TP8 EP8 B64``."""
    name = configuration.describe()
    return name.replace(" PP1", "", 1) if configuration.pipeline_parallel == 1 else name


def configuration_labels(cases: Cases) -> tuple[str, ...]:
    """Name configurations beside an axis; GPU types and number formats where they differ."""
    names = [[configuration_name(cases.case(i).configuration)] for i in range(len(cases))]
    for records, index in (
        (cases.precisions, cases.precision_index),
        (cases.gpus, cases.gpu_index),
    ):
        if len(set(index.tolist())) > 1:
            for i, place in enumerate(index):
                names[i].append(records[place].id)
    return tuple(" ".join(parts) for parts in names)


def term_title(term: Term) -> str:
    """Write the name of a term as words."""
    words = term.name.replace("_", " ").replace("gpus", "GPUs")
    return words[0].upper() + words[1:]
