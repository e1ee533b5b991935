"""What measured rows say by themselves, without a model.

Where the fastest choice and the one with the fewest joules differ, and what each wastes; what idle
costs at the loads seen; which precisions cost energy; which rows contradict themselves; what the
rows cannot answer, and which runs would help.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from energylens.capacity import laid_out, weights_fit
from energylens.cases import FloatArray, IntArray
from energylens.dataset import Dataset, group_rows
from energylens.words import plural

#: Power x time may differ from the joules by this before a row contradicts itself.
AGREEMENT_RATIO = 0.1

#: Boards draw a little more than their TDP for moments; a mean above this share of it is wrong.
TDP_RATIO = 1.05

#: The same where the time of the prompt is not known, so that the mean is only an upper bound.
UNTOLD_RATIO = 1.5

#: Share of a GPU's memory that weights may take for a run to be worth proposing.
WEIGHTS_SHARE = 0.8

#: Mean watts that fall by more than this share while the batch grows.
FALL_RATIO = 0.1

#: Prefill and decode have windows of their own: together they may exceed the whole by so much.
PHASES_RATIO = 0.1

#: Joules of one configuration, measured again, that differ by more are not of one thing.
REPEAT_RATIO = 2.0


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """How often a choice by time misses the fewest joules, and what it wastes.

    ``*_waste_*`` are joules of that choice over the fewest, less 1, over all scenarios. Of
    ``untimed`` scenarios fewer than two rows have a time.
    """

    free: str
    scenarios: int
    latency_differs_ratio: float | None
    latency_waste_median_ratio: float | None
    latency_waste_mean_ratio: float | None
    throughput_scenarios: int
    throughput_differs_ratio: float | None
    throughput_waste_median_ratio: float | None
    untimed: int = 0


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What the rows of one table say."""

    name: str
    rows: int
    fixed_batch: Divergence
    batch_free: Divergence
    idle: dict[str, float | int | str] | None
    precisions: tuple[dict[str, Any], ...]
    contradictions: tuple[dict[str, Any], ...]
    unanswered: tuple[str, ...]
    runs: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """Give it as JSON has it."""
        return asdict(self)


def audit(dataset: Dataset, name: str) -> Audit:
    """Audit a table.

    Parameters
    ----------
    dataset : Dataset
        n rows of one boundary or several; choices are compared within one.
    name : str
        What the table is called.
    """
    return Audit(
        name=name,
        rows=len(dataset),
        fixed_batch=_divergence(dataset, ("parallelism",), "layout at fixed batch"),
        batch_free=_divergence(dataset, ("parallelism", "batch_size"), "layout and batch"),
        idle=_idle(dataset),
        precisions=_precisions(dataset),
        contradictions=contradictions(dataset),
        unanswered=_unanswered(dataset),
        runs=_runs(dataset),
    )


def rate_per_s(dataset: Dataset) -> FloatArray:
    """Requests completed a second, shape (n,): as observed, else what runs over its time.

    How many run is the mean that was observed, else the batch limit of a loop that keeps it full;
    under an open load it is neither, and what arrives is what is completed.
    """
    cases = dataset.cases
    running = np.where(dataset.under_load, np.nan, cases.batch_size)
    running = np.where(np.isnan(cases.mean_batch_size), running, cases.mean_batch_size)
    with np.errstate(divide="ignore", invalid="ignore"):
        by_law = running / cases.request_latency_s
    observed = np.where(np.isnan(cases.achieved_rate_per_s), by_law, cases.achieved_rate_per_s)
    return np.where(np.isnan(observed), cases.request_rate_per_s, observed)


def _divergence(dataset: Dataset, free: Sequence[str], what: str) -> Divergence:
    cases, joules = dataset.cases, dataset.energy_per_request_j
    # Under an open load the rate is what was sent, and nobody's choice.
    rates = np.where(dataset.under_load, np.nan, rate_per_s(dataset))
    by_time, by_rate, untimed = [], [], 0
    for rows in dataset.scenarios(free):
        # A whole request's time and one token's are two things: what more of the rows have.
        times = max(
            (cases.request_latency_s, cases.tpot_s), key=lambda t: np.isfinite(t[rows]).sum()
        )
        timed = rows[np.isfinite(times[rows])]
        if len(timed) >= 2:
            by_time.append(joules[timed[np.argmin(times[timed])]] / joules[timed].min() - 1)
        else:
            untimed += 1
        rated = rows[np.isfinite(rates[rows])]
        if len(rated) >= 2:
            by_rate.append(joules[rated[np.argmax(rates[rated])]] / joules[rated].min() - 1)
    waste, other = np.array(by_time), np.array(by_rate)
    return Divergence(
        free=what,
        scenarios=len(waste),
        latency_differs_ratio=_mean(waste > 1e-9),
        latency_waste_median_ratio=_median(waste),
        latency_waste_mean_ratio=_mean(waste),
        throughput_scenarios=len(other),
        throughput_differs_ratio=_mean(other > 1e-9),
        throughput_waste_median_ratio=_median(other),
        untimed=untimed,
    )


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _median(values: np.ndarray) -> float | None:
    return float(np.median(values)) if len(values) else None


def _idle(dataset: Dataset) -> dict[str, float | int | str] | None:
    """Joules a request that GPUs would draw idle at the loads seen, as a share of all."""
    cases = dataset.cases
    gpus = cases.occupied_gpus
    sheet = np.array([gpu.idle_power_w or np.nan for gpu in cases.gpus])[cases.gpu_index]
    measured = cases.loaded_idle_w
    watts = np.where(np.isnan(measured), sheet, measured) * gpus
    with np.errstate(divide="ignore", invalid="ignore"):
        share = watts / rate_per_s(dataset) / dataset.energy_per_request_j
    known = np.isfinite(share) & (share <= 1)
    if not known.any():
        return None
    return {
        "rows": int(known.sum()),
        "idle_power": "measured"
        if np.isfinite(measured[known]).all()
        else "of the datasheet where not measured",
        "share_median_ratio": float(np.median(share[known])),
        "share_highest_ratio": float(share[known].max()),
    }


def _precisions(dataset: Dataset) -> tuple[dict[str, Any], ...]:
    """Joules of each precision over those of the widest measured in the same case."""
    cases, joules = dataset.cases, dataset.energy_per_request_j
    bits = np.array([p.weight_bits for p in cases.precisions])[cases.precision_index]
    found: dict[tuple[str, str], list[float]] = {}
    for rows in dataset.scenarios(["precision"]):
        widest = rows[np.argmax(bits[rows])]
        for index in np.unique(cases.precision_index[rows]):
            if index == cases.precision_index[widest]:
                continue
            of = rows[cases.precision_index[rows] == index]
            base = rows[cases.precision_index[rows] == cases.precision_index[widest]]
            key = (cases.precisions[index].id, cases.precisions[cases.precision_index[widest]].id)
            found.setdefault(key, []).append(float(joules[of].mean() / joules[base].mean()))
    return tuple(
        {
            "precision": narrow,
            "over": wide,
            "cases": len(ratios),
            "energy_median_ratio": float(np.median(ratios)),
            "costs_energy_share": float(np.mean(np.array(ratios) > 1)),
        }
        for (narrow, wide), ratios in sorted(found.items())
    )


#: Seen on real nodes too, where the queue runs dry: worth a look, and no proof of a wrong number.
UNUSUAL = "watts fall by more than 10 % while the batch grows"


def contradictions(dataset: Dataset) -> tuple[dict[str, Any], ...]:
    """Say what cannot be true of some rows: ``what``, how many ``rows``, and an ``example``."""
    cases = dataset.cases
    watts, rates = cases.average_power_w, rate_per_s(dataset)
    with np.errstate(divide="ignore", invalid="ignore"):
        off = dataset.energy_per_request_j * rates / watts - 1
    # Of what arrives a full deployment completes less, and draws less than that would take.
    offered = dataset.under_load & np.isnan(cases.achieved_rate_per_s)
    offered &= np.isnan(cases.mean_batch_size)
    off = np.where(offered & (off > 0), 0.0, np.abs(off))
    found = [
        _finding(dataset, off > AGREEMENT_RATIO, "joules are not mean power x time within 10 %")
    ]
    tdp = np.array([gpu.tdp_w for gpu in cases.gpus])[cases.gpu_index]
    node = np.where(cases.node_boundary, cases.node_gpus, cases.occupied_gpus)
    wall = cases.wall_boundary
    found.append(_finding(dataset, ~wall & (watts > TDP_RATIO * tdp * node), "watts above the TDP"))
    # Where no watts are told: a batch as full as its limit does no request in less than its tokens.
    with np.errstate(divide="ignore", invalid="ignore"):
        seconds = np.nan_to_num(cases.ttft_s) + cases.tpot_s * (cases.output_tokens - 1)
        full = dataset.energy_per_request_j * cases.batch_size / seconds
    untold = np.isnan(watts) & np.isnan(rates) & ~dataset.under_load & ~wall
    slack = np.where(np.isnan(cases.ttft_s), UNTOLD_RATIO, TDP_RATIO)
    found.append(
        _finding(
            dataset,
            untold & (full > slack * tdp * node),
            "joules and TPOT make watts above the TDP at a full batch",
        )
    )
    falls = np.zeros(len(dataset), dtype=np.bool_)
    for rows in dataset.scenarios(["batch_size"]):
        known = rows[np.isfinite(watts[rows])]
        known = known[np.argsort(cases.batch_size[known], kind="stable")]
        if len(known) >= 2:
            highest = np.maximum.accumulate(watts[known])
            falls[known] |= watts[known] < (1 - FALL_RATIO) * highest
    found.append(_finding(dataset, falls, UNUSUAL))
    joules = dataset.energy_per_request_j
    phases = np.nansum(
        [dataset.prefill_energy_per_request_j, dataset.decode_energy_per_request_j], axis=0
    )
    found.append(
        _finding(
            dataset, phases > (1 + PHASES_RATIO) * joules, "prefill and decode exceed the whole"
        )
    )
    late = cases.ttft_s > cases.request_latency_s
    found.append(_finding(dataset, late, "the first token comes after the request has ended"))
    found.append(_finding(dataset, ~laid_out(cases), "the LLM cannot be laid out so"))
    found.append(
        _finding(dataset, ~weights_fit(cases), "the weights take more than the memory of the GPUs")
    )
    told = (dataset.source == "measured") & (dataset.engine == "simulated")
    found.append(_finding(dataset, told, "called measured, and the engine is a simulation"))
    twice = np.zeros(len(dataset), dtype=np.bool_)
    keys = [cases.llm_index, cases.gpu_index, cases.precision_index, cases.engine_index]
    keys += [
        np.unique(np.nan_to_num(values, nan=-1.0), return_inverse=True)[1]
        for values in (
            cases.tensor_parallel, cases.pipeline_parallel, cases.expert_parallel,
            cases.data_parallel, cases.batch_size, cases.mean_batch_size, cases.input_tokens,
            cases.output_tokens, cases.node_boundary, cases.wall_boundary, cases.node_gpus,
            cases.power_cap_w, cases.clock_mhz, cases.request_rate_per_s,
        )
    ]  # fmt: skip
    group = group_rows(keys)
    for place in np.flatnonzero(np.bincount(group) > 1):
        rows = np.flatnonzero(group == place)
        twice[rows] = joules[rows].max() > REPEAT_RATIO * joules[rows].min()
    apart = f"the same configuration with joules more than {REPEAT_RATIO:g} times apart"
    found.append(_finding(dataset, twice, apart))
    return tuple(item for item in found if item["rows"])


def _finding(dataset: Dataset, bad: np.ndarray, what: str) -> dict[str, Any]:
    rows = np.flatnonzero(bad)
    example = ""
    if len(rows):
        case = dataset.cases.case(int(rows[0]))
        example = f"{case.llm.id} on {case.gpu.id}, {case.configuration.describe()}"
    return {"what": what, "rows": len(rows), "example": example}


def _unanswered(dataset: Dataset) -> tuple[str, ...]:
    cases = dataset.cases

    def blank(values: np.ndarray) -> bool:
        return bool(np.isnan(values).all())

    said = [
        (blank(cases.request_rate_per_s), "what an open load does: no row has a request rate"),
        (blank(dataset.prefill_energy_per_request_j), "how prefill and decode share the joules"),
        (blank(cases.ttft_s), "time to first token"),
        (bool((cases.pipeline_parallel == 1).all()), "pipeline parallelism: all rows have PP 1"),
        (len(cases.gpus) < 2, "how GPU types differ: all rows are of one"),
        (len(cases.engines) < 2, "how engine versions differ: all rows are of one"),
        (len(cases.precisions) < 2, "what a precision saves: all rows are of one"),
        (bool(dataset.lengths_assumed.all()), "how lengths matter: those of every row are assumed"),
    ]
    return tuple(text for holds, text in said if holds)


def _bits(dataset: Dataset, rows: IntArray) -> float:
    index = dataset.cases.precision_index[rows]
    return float(min(dataset.cases.precisions[i].weight_bits for i in index))


def _runs(dataset: Dataset, most: int = 5) -> tuple[str, ...]:
    """The cases of the most joules that were measured in one layout alone, in another."""
    groups: dict[tuple[int, int], list[int]] = {}
    cases = dataset.cases
    for row, key in enumerate(zip(cases.llm_index, cases.gpu_index, strict=True)):
        groups.setdefault((int(key[0]), int(key[1])), []).append(row)
    ranked = []
    for (llm, gpu), members in groups.items():
        rows: IntArray = np.array(members)
        layouts = {(cases.tensor_parallel[r], cases.pipeline_parallel[r]) for r in members}
        tensor = int(cases.tensor_parallel[rows].max())
        other = tensor * 2 if tensor < 8 else max(tensor // 2, 1)
        batches = cases.batch_size[rows]
        batches = batches[np.isfinite(batches)]
        load = f"B{float(np.median(batches)):g}" if len(batches) else "at the same load"
        weight = float(dataset.energy_per_request_j[rows].max()) / len(layouts) ** 2
        weights = cases.llms[llm].total_parameters * _bits(dataset, rows) / 8
        if weights / other > WEIGHTS_SHARE * cases.gpus[gpu].memory_bytes:
            continue
        text = f"{cases.llms[llm].id} on {cases.gpus[gpu].id}: TP{other} PP1 {load}"
        ranked.append((-weight, text, (other, 1) in layouts))
    return tuple(text for _, text, there in sorted(ranked) if not there)[:most]


# ---------------------------------------------------------------------------------- in words


def lines(item: Audit) -> list[str]:
    """Say an audit in sentences."""
    said = [f"{item.name}: {plural(item.rows, 'row')}"]
    said += [*_diverging(item.fixed_batch), *_diverging(item.batch_free)]
    if item.idle is not None:
        median, highest = (item.idle[f"share_{name}_ratio"] for name in ("median", "highest"))
        said.append(
            f"Idle power ({item.idle['idle_power']}) is {_percent(median)} of the joules at the "
            f"loads seen in the median, {_percent(highest)} at most."
        )
    for entry in item.precisions:
        said.append(
            f"{entry['precision']} takes {entry['energy_median_ratio']:.2f} times the joules of "
            f"{entry['over']} in the median of {plural(entry['cases'], 'case')}; it costs energy "
            f"in {_percent(entry['costs_energy_share'])} of them."
        )
    for entry in item.contradictions:
        said.append(f"{plural(entry['rows'], 'row')}: {entry['what']} (as {entry['example']}).")
    if item.unanswered:
        said.append(f"The rows cannot answer: {'; '.join(item.unanswered)}.")
    if item.runs:
        said.append(f"Runs that would help most: {'; '.join(item.runs)}.")
    return said


def _diverging(item: Divergence) -> list[str]:
    said = []
    if item.scenarios:
        said.append(
            f"With {item.free} free, the fastest choice is not the one with the fewest joules in "
            f"{_percent(item.latency_differs_ratio)} of {plural(item.scenarios, 'scenario')}, and "
            f"takes {_percent(item.latency_waste_median_ratio)} more in the median"
        )
    elif item.untimed:
        said.append(
            f"In {plural(item.untimed, 'scenario')} rows differ in {item.free} alone, but fewer "
            "than two of them have a time: which is the fastest is not told."
        )
    else:
        return [f"No two rows differ in {item.free} alone."]
    if not item.throughput_scenarios:
        return [f"{said[0].removesuffix('.')}."]
    differs, waste = (
        _percent(ratio)
        for ratio in (item.throughput_differs_ratio, item.throughput_waste_median_ratio)
    )
    if item.throughput_scenarios == item.scenarios:
        return [
            f"{said[0]}; that of the most requests a second differs in {differs}, and takes "
            f"{waste} more."
        ]
    return [
        f"{said[0].removesuffix('.')}.",
        f"That of the most requests a second differs in {differs} of "
        f"{plural(item.throughput_scenarios, 'scenario')}, and takes {waste} more in the median.",
    ]


def _percent(ratio: float | int | str | None) -> str:
    # Waste of thousands of percent is what an audit is for: words.percent would cut it short.
    return "-" if ratio is None or isinstance(ratio, str) else f"{100 * ratio:.0f} %"
