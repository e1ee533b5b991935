"""Laws planted in rows of realistic cases: whether discovery finds them, and how far they carry.

    python -m benchmarks.planted_laws --quick                        # seconds
    OMP_NUM_THREADS=1 python -m benchmarks.planted_laws --docs       # 25 minutes of one core
    python -m benchmarks.planted_laws --read benchmarks/planted-laws.json --docs    # tables

``--docs`` writes every trial to ``benchmarks/planted-laws.json``, and from there the tables and the
figure of ``docs/studies/discovery.md``. A run that was stopped goes on with ``--docs --resume``.
Matrices here are small: more than one thread for them only takes CPU time.

Energies are computed from a known formula on feasible cases drawn from the catalog, with noise.
Because they are made here, nothing in these tables says how well energy itself is predicted:
they say whether the search finds what is there, and what it answers where its library lacks it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np

from energylens import capacity, catalog, files, records
from energylens.cases import Cases, FloatArray
from energylens.charts.parts import (
    beside,
    chart,
    colour,
    key,
    log,
    places,
    quantity,
    room,
    rule,
    table,
)
from energylens.charts.theme import SHAPES, Spec
from energylens.dataset import Dataset
from energylens.discovery import Engine, Expression, FrontPoint, OperonEngine, OwnEngine, discover
from energylens.discovery.library import quantity_columns
from energylens.report.drawing import Picture

DOCS = Path(__file__).resolve().parents[1] / "docs"
CELLS = ((200, 0.02), (200, 0.05), (50, 0.02), (50, 0.05))  # rows and noise
EXTRAPOLATION_BAR_RATIO = 0.05
EXACT = ("own",)  # engines without fitted numbers inside terms, judged to 1e-6 and to 1 %
SAME_RATIO, NEAR_RATIO = 1e-6, 1e-2
GPU = "H100-SXM-80GB"
DENSE = (
    "Qwen/Qwen2.5-1.5B-Instruct",
    "meta-llama/Llama-3.2-3B-Instruct",
    "meta-llama/Llama-3.1-8B-Instruct",
    "google/gemma-2-9b-it",
    "Qwen/Qwen3-14B",
    "Qwen/Qwen3-32B",
    "meta-llama/Llama-3.1-70B-Instruct",
)
MOE = (
    "allenai/OLMoE-1B-7B-0924-Instruct",
    "deepseek-ai/DeepSeek-V2-Lite-Chat",
    "Qwen/Qwen3-30B-A3B",
    "mistralai/Mixtral-8x7B-Instruct-v0.1",
    "microsoft/Phi-3.5-MoE-instruct",
    "meta-llama/Llama-3.1-8B-Instruct",
    "Qwen/Qwen3-32B",
)
VISION = (
    "Qwen/Qwen2.5-VL-3B-Instruct",
    "Qwen/Qwen2.5-VL-7B-Instruct",
    "google/gemma-3-12b-it",
    "google/gemma-3-27b-it",
    "Qwen/Qwen2.5-VL-72B-Instruct",
)
LARGEST = {"batch_size": 64.0, "input_tokens": 4096.0, "output_tokens": 1024.0}  # of the rows


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A law: the terms it is made of, each a share of the energy, on what kind of cases."""

    name: str
    terms: tuple[str, ...]
    llms: tuple[str, ...] = DENSE
    pipeline: bool = False
    node: bool = False
    in_library: bool = True


STRUCTURES: tuple[Planted, ...] = (
    Planted(name="memory-bound decode", terms=("step_weight_bytes", "cache_bytes")),
    Planted(
        name="prefill + decode",
        terms=("prefill_flop", "step_weight_bytes", "decode_flop", "cache_bytes"),
    ),
    Planted(
        name="launches",
        terms=(
            "gpus * kernels * passes",
            "prefill_flop",
            "gpus * kernels * steps",
            "step_weight_bytes",
        ),
    ),
    Planted(
        name="TP traffic",
        terms=("prefill_flop", "step_weight_bytes", "prefill_link_bytes + decode_link_bytes"),
    ),
    Planted(
        name="TP ring share",
        terms=(
            "prefill_flop",
            "step_weight_bytes",
            "decode_message_bytes * (tensor_parallel - 1) / tensor_parallel",
            "gpus * kernels * steps",
        ),
    ),
    Planted(
        name="TP tree",
        terms=(
            "prefill_flop",
            "step_weight_bytes",
            "gpus * steps * log2(tensor_parallel)",
            "gpus * output_tokens",
        ),
    ),
    Planted(
        name="PP hops",
        terms=(
            "prefill_flop",
            "step_weight_bytes",
            "cache_bytes",
            "gpus * (pipeline_parallel - 1) * (passes + steps)",
        ),
        pipeline=True,
    ),
    Planted(
        name="PP bubbles",
        terms=(
            "prefill_flop",
            "step_weight_bytes",
            "step_weight_bytes * (pipeline_parallel - 1) / running",
            "gpus * output_tokens",
        ),
        pipeline=True,
    ),
    Planted(
        name="MoE coverage",
        terms=("prefill_flop", "step_weight_bytes", "gpus * kernels * steps", "cache_bytes"),
        llms=MOE,
    ),
    Planted(
        name="MoE dispatch",
        terms=(
            "prefill_flop",
            "step_always_bytes",
            "step_expert_bytes",
            "output_tokens * routing",
        ),
        llms=MOE,
    ),
    Planted(
        name="saturating batch",
        terms=("prefill_flop", "step_weight_bytes", "decode_flop * running / (running + 64)"),
    ),
    Planted(
        name="max of rooflines",
        terms=(
            "max(pass_weight_bytes / bandwidth_bytes_per_s, prefill_flop / flop_per_s)",
            "max((step_weight_bytes + cache_bytes) / bandwidth_bytes_per_s, "
            "decode_flop / flop_per_s)",
            "gpus * output_tokens",
        ),
    ),
    Planted(
        name="rooflines in quadrature",
        terms=(
            "prefill_flop",
            "sqrt((step_weight_bytes / bandwidth_bytes_per_s) ** 2 "
            "+ (2 * decode_flop / flop_per_s) ** 2)",
            "cache_bytes",
        ),
    ),
    Planted(
        name="vision",
        terms=("vision_flop", "prefill_flop", "step_weight_bytes", "gpus * kernels * steps"),
        llms=VISION,
    ),
    Planted(
        name="idle node",
        terms=(
            "prefill_flop",
            "step_weight_bytes",
            "cache_bytes",
            "idle_gpus * (prefill_roofline_s + decode_roofline_s)",
        ),
        node=True,
    ),
    Planted(
        name="eight terms",
        terms=(
            "prefill_flop",
            "gpus * kernels * passes",
            "step_weight_bytes",
            "gpus * kernels * steps",
            "gpus * output_tokens",
            "cache_bytes",
            "prefill_link_bytes + decode_link_bytes",
            "gpus * (pipeline_parallel - 1) * (passes + steps)",
        ),
        pipeline=True,
    ),
    Planted(
        name="TP x PP interaction",
        terms=(
            "prefill_flop",
            "step_weight_bytes",
            "step_weight_bytes * (tensor_parallel - 1) * (pipeline_parallel - 1)",
        ),
        pipeline=True,
        in_library=False,
    ),
    Planted(
        name="power-law utilisation",
        terms=("prefill_flop", "step_weight_bytes ** 0.7 * decode_flop ** 0.3", "cache_bytes"),
        in_library=False,
    ),
    Planted(
        name="saturation off the grid",
        terms=("prefill_flop", "step_weight_bytes", "decode_flop * running / (running + 22)"),
        in_library=False,
    ),
    Planted(
        name="queueing knee",
        terms=("prefill_flop", "step_weight_bytes", "prefill_flop * max(running / 16 - 1, 0)"),
        in_library=False,
    ),
)


def draw_cases(law: Planted, rows: int, rng: np.random.Generator, *, beyond: bool = False) -> Cases:
    """Draw feasible cases at random; ``beyond``: 1-4x the largest batch, 1-2x the lengths."""
    gpu = catalog.gpu(GPU)
    llms = tuple(catalog.llm(name) for name in law.llms)
    precision = catalog.precision("bf16")
    m = 40 * rows
    if beyond:
        batch = np.round(LARGEST["batch_size"] * 4.0 ** rng.random(m))
    else:
        batch = np.exp2(rng.integers(0, 7, m).astype(float))
    spread = 2.0 if beyond else 1 / 32.0
    inputs = np.round(LARGEST["input_tokens"] * spread ** rng.random(m))
    outputs = np.round(LARGEST["output_tokens"] * spread ** rng.random(m))
    tensor = np.exp2(rng.integers(0, 4, m).astype(float))
    pipeline = np.exp2(rng.integers(0, 3, m).astype(float)) if law.pipeline else np.ones(m)
    llm_index = rng.integers(0, len(llms), m)
    images = rng.integers(0, 4, m).astype(float) if llms[0].vision else np.zeros(m)
    per_image = np.array(
        [(item.vision.tokens_per_image or 256) if item.vision else 0 for item in llms], dtype=float
    )
    vision = images * per_image[llm_index]
    room = np.zeros(m)
    for i, item in enumerate(llms):
        mine = llm_index == i
        room[mine] = capacity.largest_batch(
            item,
            gpu,
            precision,
            tensor_parallel=tensor[mine],
            pipeline_parallel=pipeline[mine],
            input_tokens=inputs[mine] + vision[mine],
            output_tokens=outputs[mine],
        )
    keep = np.flatnonzero((room >= batch) & (tensor * pipeline <= 8))[:rows]
    assert len(keep) == rows
    nan = np.full(rows, np.nan)
    zero = np.zeros(rows, dtype=np.intp)
    return Cases(
        llms=llms,
        gpus=(gpu,),
        precisions=(precision,),
        engines=(records.Engine(name="planted"),),
        llm_index=llm_index[keep].astype(np.intp),
        gpu_index=zero,
        precision_index=zero,
        engine_index=zero,
        tensor_parallel=tensor[keep],
        pipeline_parallel=pipeline[keep],
        expert_parallel=np.ones(rows),
        data_parallel=np.ones(rows),
        batch_size=batch[keep],
        mean_batch_size=nan,
        input_tokens=(inputs + vision)[keep],
        output_tokens=outputs[keep],
        vision_tokens=vision[keep],
        images=images[keep],
        frames=np.zeros(rows),
        node_boundary=np.full(rows, law.node),
        node_gpus=np.full(rows, 8.0) if law.node else nan,
        power_cap_w=nan,
        ttft_s=nan,
        tpot_s=nan,
        request_latency_s=nan,
        average_power_w=nan,
    )


def term_values(terms: Sequence[str], cases: Cases) -> FloatArray:
    """Compute terms, shape (n, k)."""
    columns = quantity_columns(cases)
    return np.column_stack(
        [np.broadcast_to(Expression(text).evaluate(columns), (len(cases),)) for text in terms]
    )


def plant(values: FloatArray, scale_j: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Coefficients that give each term its share of the energy on the rows that have it.

    Shares are drawn within a factor of 3 of each other; ``scale_j`` sets the joules.
    """
    shares = np.asarray(rng.uniform(0.5, 1.5, size=values.shape[1]))
    shares = shares / shares.sum()
    present = values > 0
    coefficients = np.asarray(shares / (values / scale_j[:, None]).mean(axis=0))
    for _ in range(50):
        parts = values * coefficients
        reached = (parts / parts.sum(axis=1, keepdims=True)).sum(axis=0) / present.sum(axis=0)
        coefficients *= np.sqrt(shares / reached)
    return np.asarray(coefficients / np.median(values @ coefficients / scale_j))


def dataset_of(cases: Cases, energy_j: FloatArray) -> Dataset:
    """Dress cases and joules as simulated measurements."""
    n = len(cases)
    nan = np.full(n, np.nan)
    texts = {
        "modality": "text",
        "task": "",
        "source": "simulated",
        "origin": "benchmarks.planted_laws",
        "assumed": "",
    }
    return Dataset(
        cases=cases,
        energy_per_request_j=energy_j,
        prefill_energy_per_request_j=nan,
        decode_energy_per_request_j=nan,
        **{name: np.array([text] * n, dtype=object) for name, text in texts.items()},  # type: ignore[arg-type]
    )


# -------------------------------------------------------------------------------- the verdict


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One engine on one planted law, once."""

    engine: str
    law: str
    in_library: bool
    rows: int
    noise_ratio: float
    seed: int
    recovered: bool  # to 1e-6; pyoperon to 1 %
    near: bool  # to 1 %
    terms: int
    held_out_mape_ratio: float
    extrapolation_ratio: float  # median error beyond the rows; 1 where there is no answer
    cpu_s: float


def engines(name: str) -> Engine:
    """An engine for the suite."""
    return OperonEngine(evaluations=100_000, folds=2) if name == "operon" else OwnEngine()


def trial(law: Planted, rows: int, noise_ratio: float, seed: int, engine_name: str) -> Trial:
    """Plant, discover, and compare."""
    rng = np.random.default_rng(seed)
    cases = draw_cases(law, rows, rng)
    values = term_values(law.terms, cases)
    coefficients = plant(values, quantity_columns(cases)["scale_j"], rng)
    noise = 1.0 + noise_ratio * rng.standard_normal(rows)
    dataset = dataset_of(cases, values @ coefficients * np.maximum(noise, 0.1))
    beyond = draw_cases(law, 200, rng, beyond=True)
    truth = term_values(law.terms, beyond) @ coefficients
    engine = engines(engine_name)
    start = time.process_time()
    knee = discover(dataset, engine, samples=0, seed=seed).knee
    cpu_s = time.process_time() - start
    error = np.abs(knee.predict_energy_j(beyond) / truth - 1.0)
    fresh = Cases.concatenate([draw_cases(law, 200, rng), beyond])
    exact = engine_name in EXACT
    near = recovered(knee, law, fresh, coefficients, NEAR_RATIO, products=not exact)
    return Trial(
        engine=engine_name,
        law=law.name,
        in_library=law.in_library,
        rows=rows,
        noise_ratio=noise_ratio,
        seed=seed,
        recovered=recovered(knee, law, fresh, coefficients, SAME_RATIO) if exact else near,
        near=near,
        terms=len(knee.terms),
        held_out_mape_ratio=knee.held_out_mape_ratio,
        extrapolation_ratio=float(np.median(np.nan_to_num(error, nan=1.0))),
        cpu_s=cpu_s,
    )


def recovered(
    knee: FrontPoint,
    law: Planted,
    fresh: Cases,
    coefficients: FloatArray,
    tolerance: float,
    *,
    products: bool = False,
) -> bool:
    """Whether found and planted terms are the same functions of cases that neither has seen.

    As sets: every planted term is a sum of found ones and the reverse, at most ``tolerance``
    apart (root mean square, relative). With ``products`` planted terms are taken apart into
    products first, for engines that give each product a factor of its own.
    """
    texts = law.terms
    if products:
        texts = tuple(sorted({part for text in texts for part in _products(text)}))
    truth = term_values(law.terms, fresh) @ coefficients
    found = term_values([term.expression.text for term in knee.terms], fresh)
    planted = term_values(texts, fresh) / truth[:, None]
    found = found / truth[:, None]
    return _spans(found, planted, tolerance) and _spans(planted, found, tolerance)


def _products(text: str) -> list[str]:
    from sympy import Add, expand

    from energylens.discovery.symbolic import as_text

    addends = Add.make_args(expand(Expression(text).to_sympy()))
    return [as_text(addend.as_coeff_Mul()[1]) for addend in addends]


def _spans(base: FloatArray, others: FloatArray, tolerance: float) -> bool:
    base = base / np.sqrt((base**2).mean(axis=0))
    others = others / np.sqrt((others**2).mean(axis=0))
    if not (np.isfinite(base).all() and np.isfinite(others).all()):
        return False
    solution, *_ = np.linalg.lstsq(base, others, rcond=1e-12)
    return bool((np.sqrt(((base @ solution - others) ** 2).mean(axis=0)) < tolerance).all())


# ---------------------------------------------------------------------------------- the suite

QUICK_LAWS = ("prefill + decode", "MoE coverage", "queueing knee")


def quick() -> list[Trial]:
    """A few trials of the suite, in seconds: 200 rows, 2 % noise, the first seed."""
    return [trial(law, 200, 0.02, 0, "own") for law in STRUCTURES if law.name in QUICK_LAWS]


def suite(
    names: Sequence[str], seeds: Mapping[str, range], done: Sequence[Trial] = ()
) -> Iterator[Trial]:
    """Every law, 200 and 50 rows, 2 and 5 % noise, every seed, every engine; not those done."""
    known = {(t.engine, t.rows, t.noise_ratio, t.law, t.seed) for t in done}
    for rows, noise_ratio in CELLS:
        for name in names:
            for law in STRUCTURES:
                for seed in seeds[name]:
                    if (name, rows, noise_ratio, law.name, seed) not in known:
                        yield trial(law, rows, noise_ratio, seed, name)


def tables(trials: Sequence[Trial]) -> str:
    """The results as Markdown."""
    names = list(dict.fromkeys(t.engine for t in trials))
    run = {t.law for t in trials}
    lines = [
        "| rows | noise | engine | laws x seeds | recovered to 1e-6 | to 1 % | "
        "extrapolation error, median over laws and seeds | CPU s each |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for rows, noise_ratio in CELLS:
        for name in names:
            some = [
                t
                for t in trials
                if (t.rows, t.noise_ratio, t.engine) == (rows, noise_ratio, name) and t.in_library
            ]
            if some:
                exact = _percent(np.mean([t.recovered for t in some])) if name in EXACT else "-"
                lines.append(
                    f"| {rows} | {noise_ratio:.0%} | {name} | {len(some)} | {exact} | "
                    f"{_percent(np.mean([t.near for t in some]))} | "
                    f"{_percent(np.median([t.extrapolation_ratio for t in some]))} | "
                    f"{np.median([t.cpu_s for t in some]):.1f} |"
                )
    for title, inside in (("True terms in the library", True), ("Not in the library", False)):
        laws = [law for law in STRUCTURES if law.in_library is inside and law.name in run]
        lines += ["", f"{title}, 200 rows, 2 % noise:", ""]
        head = "| law | " + " | ".join(
            f"{name}: {_judged(name)} | terms | held-out error | extrapolation (worst seed)"
            for name in names
        )
        lines += [head + " |", "|---" * (1 + 4 * len(names)) + "|"]
        for law in laws:
            cells = [law.name]
            for name in names:
                some = _cell(trials, name, law, *CELLS[0])
                if not some:
                    cells += ["-"] * 4
                    continue
                far = [t.extrapolation_ratio for t in some]
                cells += [
                    _share(some),
                    f"{np.median([t.terms for t in some]):g} of {len(law.terms)}",
                    _percent(np.median([t.held_out_mape_ratio for t in some])),
                    f"{_percent(np.median(far))} ({_percent(max(far))})",
                ]
            lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "Structure recovered, by rows and noise:", ""]
    head = " | ".join(f"{n}, {_judged(n)}: {r} rows, {x:.0%}" for n in names for r, x in CELLS)
    lines += [f"| law | {head} |", "|---" * (1 + len(CELLS) * len(names)) + "|"]
    for law in STRUCTURES:
        if law.in_library and law.name in run:
            shares = [_share(_cell(trials, name, law, *cell)) for name in names for cell in CELLS]
            lines.append("| " + " | ".join([law.name, *shares]) + " |")
    return "\n".join(lines)


def _cell(
    trials: Sequence[Trial], engine: str, law: Planted, rows: int, noise_ratio: float
) -> list[Trial]:
    wanted = (engine, law.name, rows, noise_ratio)
    return [t for t in trials if (t.engine, t.law, t.rows, t.noise_ratio) == wanted]


def _judged(engine: str) -> str:
    return "recovered to 1e-6 (to 1 %)" if engine in EXACT else "recovered to 1 %"


def _share(some: Sequence[Trial]) -> str:
    if not some:
        return "-"
    near = sum(t.near for t in some)
    both = f"{sum(t.recovered for t in some)} ({near})" if some[0].engine in EXACT else f"{near}"
    return f"{both} of {len(some)}"


def _percent(ratio: float | np.floating) -> str:
    return f"{100 * ratio:.1f} %"


def picture(trials: Sequence[Trial]) -> Picture:
    """Recovery and extrapolation of every law, engines side by side."""
    names = list(dict.fromkeys(t.engine for t in trials))
    said = []
    for name in names:
        some = [t for law in STRUCTURES for t in _cell(trials, name, law, *CELLS[0])]
        inside = [t for t in some if t.in_library]
        exactly = (
            f" and {_percent(np.mean([t.recovered for t in inside]))} to 1e-6"
            if name in EXACT
            else ""
        )
        said.append(
            f"{name} recovers {_percent(np.mean([t.near for t in inside]))} of the laws whose "
            f"terms are in the library to 1 %{exactly}, with a median extrapolation error of "
            f"{_percent(np.median([t.extrapolation_ratio for t in inside]))}"
        )

    labels = [f"{law.name}{'' if law.in_library else ' (not in library)'}" for law in STRUCTURES]
    trialled = [
        (name, y, some)
        for name in names
        for y, law in enumerate(STRUCTURES)
        if (some := _cell(trials, name, law, *CELLS[0]))
    ]

    def draw(width: int) -> Spec:
        far = [[100 * t.extrapolation_ratio for t in some] for _, _, some in trialled]
        data = table(
            engine=[name for name, _, _ in trialled],
            row=[y for _, y, _ in trialled],
            exact=[100 * float(np.mean([t.recovered for t in some])) for _, _, some in trialled],
            near=[100 * float(np.mean([t.near for t in some])) for _, _, some in trialled],
            low=[min(errors) for errors in far],
            middle=[float(np.median(errors)) for errors in far],
            high=[max(errors) for errors in far],
        )
        by = key("engine", names, [colour(f"category-{k + 1}") for k in range(len(names))], width)
        shape = key("engine", names, list(SHAPES[: len(names)]), width)
        beside_each_other = {"field": "engine", "scale": {"domain": names}}
        share = quantity("near", "structure recovered (% of seeds)", domain=[0, 100])
        ends = [value for errors in far for value in errors]
        error = log("middle", "error beyond the rows (%)", min(0.1, *ends) / 1.2, 1.2 * max(ends))

        def rows(shown: bool) -> Spec:
            return {"y": places(labels, shown=shown), "yOffset": beside_each_other, "color": by}

        recovered = [
            {
                "mark": {"type": "bar", "opacity": opacity, "aria": False},
                "encoding": {**rows(True), "x": {**share, "field": field}},
            }
            for field, opacity in (("near", 0.4), ("exact", 1))
        ]
        beyond = [
            rule("x", 100 * EXTRAPOLATION_BAR_RATIO, strokeDash=[5, 4]),
            {
                "mark": {"type": "rule", "aria": False},
                "encoding": {**rows(False), "x": {**error, "field": "low"},
                             "x2": {"field": "high"}},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 40, "opacity": 1,
                         "aria": False},
                "encoding": {**rows(False), "x": error, "shape": shape},
            },
        ]  # fmt: skip
        panels = [
            {"height": {"step": 9, "for": "offset"}, "data": data, "layer": layer}
            for layer in (recovered, beyond)
        ]
        return chart(
            "Planted laws: how often each engine recovers them, and the error beyond the rows.",
            {
                "resolve": {"scale": {"color": "shared", "shape": "shared"}},
                **beside(panels, width, indent=room(labels, width), shares=(1, 1)),
            },
        )

    return Picture(
        name="planted",
        title="Planted laws",
        caption="",
        alternative=f"Planted laws, 200 rows, 2 % noise: {'; '.join(said)}.",
        draw=draw,
    )


def write_between(path: Path, name: str, text: str) -> None:
    """Replace what stands between the markers ``<!-- name -->`` and ``<!-- /name -->``."""
    document = path.read_text(encoding="utf-8")
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, _, rest = document.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        sys.exit(f"{path} must hold the markers {begin} and {end}")
    files.write_text(path, f"{before}{begin}\n{text}\n{end}{after}")


def save(trials: Sequence[Trial], path: Path) -> None:
    """Write trials as JSON, a line each, numbers to six digits."""

    def short(value: object) -> object:
        return float(f"{value:.6g}") if isinstance(value, float) else value

    columns = json.dumps([field.name for field in fields(Trial)])
    rows = ",\n".join(json.dumps([short(value) for value in astuple(t)]) for t in trials)
    files.write_text(path, f'{{"columns": {columns},\n"trials": [\n{rows}\n]}}\n')


def load(path: Path) -> list[Trial]:
    """Read what :func:`save` wrote."""
    document = files.read_json(path)
    columns = document["columns"]
    return [Trial(**dict(zip(columns, row, strict=True))) for row in document["trials"]]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planted_laws", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three laws, one seed, own engine")
    parser.add_argument("--engines", default="own,operon", help="comma list of own, operon")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--operon-seeds", type=int, default=3, help="pyoperon takes longer")
    parser.add_argument("--first-seed", type=int, default=0, help="100 and up are for settling")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every trial")
    parser.add_argument("--resume", action="store_true", help="keep the trials that are there")
    parser.add_argument("--read", type=Path, nargs="+", metavar="FILE", help="run nothing")
    parser.add_argument("--docs", action="store_true", help="write docs/")
    given = parser.parse_args(arguments)
    log = given.json or (Path(__file__).with_name("planted-laws.json") if given.docs else None)
    trials: list[Trial] = []
    if given.read:
        trials = [t for path in given.read for t in load(path)]
    elif given.quick:
        trials = quick()
    else:
        if given.resume and log and log.exists():
            trials = load(log)
        first = given.first_seed
        counts = {"own": given.seeds, "operon": given.operon_seeds}
        seeds = {name: range(first, first + count) for name, count in counts.items()}
        for done in suite(given.engines.split(","), seeds, trials):
            trials.append(done)
            if log:  # after each, so that what was cut short is not lost
                save(trials, log)
            print(
                f"{done.engine} {done.rows} {done.noise_ratio} {done.law} {done.seed}: "
                f"{'found' if done.recovered else 'missed'} {done.extrapolation_ratio:.3f}",
                file=sys.stderr,
            )
    if log:
        save(trials, log)
    table = tables(trials)
    if given.docs:
        write_between(DOCS / "studies" / "discovery.md", "planted", table)
        files.write_text(DOCS / "figures" / "planted-laws.svg", picture(trials).standalone_svg())
    print(table)


if __name__ == "__main__":
    main()
