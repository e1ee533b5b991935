"""Cases within the scope of two models, at which both are asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np

from energylens import catalog
from energylens.capacity import laid_out, room
from energylens.cases import Cases
from energylens.comparing.matching import LEAST_NOISE_RATIO, Sides, sum_parts
from energylens.errors import UnknownNameError, UsageError
from energylens.model import EnergyModel
from energylens.records import (
    UNKNOWN_ENGINE,
    Boundary,
    Case,
    Configuration,
    Gpu,
    Llm,
    Precision,
    Workload,
)

BATCHES, TOKENS, LAYOUTS = 5, 3, 8  # values that two models are compared at, at most


def grids(
    a: EnergyModel,
    b: EnergyModel,
    llms: Sequence[str],
    gpus: Sequence[str],
    input_tokens: float | None,
    output_tokens: float | None,
) -> Sides:
    """Make cases within the scope of both, and ask both."""
    across = {}
    values: dict[str, list[tuple[str, str]]] = {}
    asked = {"llm": llms, "gpu": gpus, "precision": ()}
    lookup: dict[str, Callable[[str], Llm | Gpu | Precision]] = {
        "llm": catalog.llm,
        "gpu": catalog.gpu,
        "precision": catalog.precision,
    }
    for name, scopes in (
        ("llm", (a.scope.llms, b.scope.llms)),
        ("gpu", (a.scope.gpus, b.scope.gpus)),
        ("precision", (a.scope.precisions, b.scope.precisions)),
    ):
        if asked[name]:
            values[name] = [(lookup[name](n).id,) * 2 for n in asked[name]]
            continue
        mine, other = scopes[0] or scopes[1], scopes[1] or scopes[0]
        if not mine:
            raise UsageError(
                f"neither model was fitted to rows, so the {name} must be named (--{name})"
                if name != "precision"
                else "neither model was fitted to rows: there is nothing to compare"
            )
        common = sorted(set(mine) & set(other))
        if common:
            values[name] = [(n, n) for n in common]
        elif len(mine) == len(other) == 1:
            across[name] = [list(mine), list(other)]
            values[name] = [(mine[0], other[0])]
        else:
            raise UsageError(
                f"the two models have no {name} in common ({', '.join(mine)}; "
                f"{', '.join(other)}): name some, or fit models of one {name} each"
            )
    engines = [tuple(model.scope.engines) for model in (a, b)]
    if all(engines) and not set(engines[0]) & set(engines[1]):
        across["engine"] = [sorted(engines[0]), sorted(engines[1])]
    sides: tuple[list[Case], list[Case]] = ([], [])
    for llm, gpu, precision in product(values["llm"], values["gpu"], values["precision"]):
        for workload, configuration in _points(a, b, input_tokens, output_tokens):
            for side in (0, 1):
                try:
                    case = Case(
                        llm=catalog.llm(llm[side]),
                        gpu=catalog.gpu(gpu[side]),
                        precision=catalog.precision(precision[side]),
                        workload=workload,
                        configuration=configuration,
                        boundary=Boundary.ACTIVE_GPUS,
                        engine=UNKNOWN_ENGINE,
                    )
                except UnknownNameError:  # fitted with a catalog of someone else
                    continue
                sides[side].append(case)
    if not sides[0] or len(sides[0]) != len(sides[1]):
        raise UsageError("the LLMs and GPU types of the models must be in the catalog")
    cases = [Cases.of(side) for side in sides]
    runs = np.logical_and.reduce(
        [laid_out(side) & (room(side) >= side.batch_size) for side in cases]
    )
    if not runs.any():
        raise UsageError(
            "no case within the scope of both models fits in memory: name an --llm, --gpu, "
            "--input-tokens and --output-tokens that do"
        )
    of_a, of_b = (side.take(runs) for side in cases)
    variance = a.log_variance(of_a) + b.log_variance(of_b)
    same = tuple(term.name for term in a.terms) == tuple(term.name for term in b.terms)
    none = np.zeros(len(of_a), dtype=np.intp)
    deviation = np.sqrt(np.maximum(variance, LEAST_NOISE_RATIO**2))
    return Sides(
        cases_a=of_a,
        cases_b=of_b,
        rows=None,
        joules_a=a.predict_energy_j(of_a),
        joules_b=b.predict_energy_j(of_b),
        runs_a=none,
        runs_b=none,
        deviation=deviation,
        degrees=np.inf,
        noise_ratio=float(np.median(deviation)),
        noise="what the two fits left uncertain, as if their rows had nothing in common",
        kind="models",
        across=across,
        parts=(sum_parts(a, of_a), sum_parts(b, of_b)) if same else None,
        terms=tuple(term.name for term in a.terms),
        notes=tuple(dict.fromkeys(model.caution for model in (a, b) if model.caution))
        + (() if same else ("They have other extensions: which terms changed cannot be told.",)),
    )


def _points(
    a: EnergyModel, b: EnergyModel, input_tokens: float | None, output_tokens: float | None
) -> list[tuple[Workload, Configuration]]:
    """Lengths, layouts and batches within the ranges of both fits."""

    def span(name: str, otherwise: tuple[float, float]) -> tuple[float, float]:
        given = [m.scope.ranges[name] for m in (a, b) if name in m.scope.ranges]
        given = given or [otherwise]
        low, high = max(r[0] for r in given), min(r[1] for r in given)
        if low > high:
            raise UsageError(
                f"the fits of the two models have no {name} in common: "
                f"{' and '.join(f'{r[0]:g} to {r[1]:g}' for r in given)}"
            )
        return low, high

    def powers(name: str, otherwise: tuple[float, float], most: int) -> list[int]:
        low, high = span(name, otherwise)
        first, last = int(np.ceil(np.log2(low))), int(np.floor(np.log2(high)))
        if first > last:
            return [max(round(float(np.sqrt(low * high))), 1)]
        picked = np.unique(np.rint(np.linspace(first, last, min(most, last - first + 1))))
        return [2 ** int(k) for k in picked]

    def tokens(name: str, given: float | None) -> list[float]:
        if given is not None:
            return [given]
        return [float(round(x)) for x in np.geomspace(*span(name, (256.0, 2048.0)), TOKENS)]

    prompts, outputs = tokens("input_tokens", input_tokens), tokens("output_tokens", output_tokens)
    lengths = dict.fromkeys(
        (prompts[min(k, len(prompts) - 1)], outputs[min(k, len(outputs) - 1)])
        for k in range(max(len(prompts), len(outputs)))
    )
    layouts = list(
        product(
            powers("tensor_parallel", (1, 8), LAYOUTS), powers("pipeline_parallel", (1, 1), LAYOUTS)
        )
    )
    return [
        (
            Workload(input_tokens=prompt, output_tokens=output),
            Configuration(tensor_parallel=tensor, pipeline_parallel=pipeline, batch_size=batch),
        )
        for (prompt, output), (tensor, pipeline), batch in product(
            lengths, layouts, powers("batch_size", (1, 256), BATCHES)
        )
    ]
