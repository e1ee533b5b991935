"""What one request of a batch takes: the batch's joules shared among the requests in it.

Each term of the law is shared in proportion to what it counts for a request of those lengths served
at that batch: tokens multiplied, steps waited for, cache read. So the shares of a batch add up to
its joules, whatever the requests; none is below 0; and requests that are alike pay alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from energylens.capacity import as_run
from energylens.cases import Cases, FloatArray
from energylens.errors import UsageError
from energylens.formula import design_by_phase
from energylens.model import EnergyModel
from energylens.records import Case


@dataclass(frozen=True, kw_only=True)
class RequestShare:
    """What one request takes of its batch, with the 80 % interval of the batch's joules.

    ``ratio`` is over the mean request of the batch.
    """

    input_tokens: float
    output_tokens: float
    energy_j: float
    low_j: float
    high_j: float
    prefill_j: float
    decode_j: float
    ratio: float
    terms_j: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Give everything as plain JSON values."""
        return {
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "energy_per_request_j": self.energy_j,
            "interval_80_j": [self.low_j, self.high_j],
            "energy_per_output_token_j": self.energy_j / self.output_tokens,
            "energy_per_total_token_j": self.energy_j / (self.input_tokens + self.output_tokens),
            "prefill_energy_per_request_j": self.prefill_j,
            "decode_energy_per_request_j": self.decode_j,
            "ratio_to_mean_request": self.ratio,
            "terms_j": self.terms_j,
        }


def share(
    model: EnergyModel,
    case: Case,
    input_tokens: Sequence[float],
    output_tokens: Sequence[float],
    counts: Sequence[float] | None = None,
) -> tuple[RequestShare, ...]:
    """Share the joules of a batch among the requests in it.

    Parameters
    ----------
    case : Case
        How the batch is served. Its own lengths do not count: the batch has the mean lengths of
        the requests. Each carries the images or frames of the case's workload.
    input_tokens, output_tokens : sequence of float, length r
        Lengths of each kind of request.
    counts : sequence of float, length r, optional
        How many there are of each kind; 1 by default. Only their proportions matter.

    Returns
    -------
    tuple of RequestShare, length r
        One request of each kind. Times ``counts`` they add up to what the model says of as many
        requests of mean lengths.

    Raises
    ------
    UsageError
        If a length or count is not above 0, or a prompt is shorter than its images.
    """
    prompts = np.asarray(input_tokens, dtype=np.float64)
    outputs = np.asarray(output_tokens, dtype=np.float64)
    number = np.ones(len(prompts)) if counts is None else np.asarray(counts, dtype=np.float64)
    if not len(prompts) or not len(prompts) == len(outputs) == len(number):
        raise UsageError("a batch needs one request or more, each with both lengths and a count")
    for name, values in (("input", prompts), ("output", outputs)):
        if not (np.isfinite(values) & (values > 0)).all():
            raise UsageError(f"every request must have {name} tokens above 0; given {values.min()}")
    if not (np.isfinite(number) & (number >= 0)).all() or number.sum() <= 0:
        raise UsageError("counts of requests must be 0 or more, and some above 0")
    vision = case.workload.vision_tokens
    if prompts.min() < vision:
        raise UsageError(
            f"a request of this case carries {vision:g} tokens of images or frames, so its prompt "
            f"must be as long at least, not {prompts.min():g}"
        )
    weight = number / number.sum()
    mean = as_run(
        replace(
            case,
            workload=replace(
                case.workload,
                input_tokens=float(weight @ prompts),
                output_tokens=float(weight @ outputs),
            ),
        )
    )
    batch = Cases.of([mean])
    prefill, decode = (part[0] for part in model.predict_parts_j(batch))
    low, high = (float(end[0]) for end in model.interval_energy_j(batch))
    total = float(prefill.sum() + decode.sum())
    # The batch that runs is the same for each: only what a request itself counts differs.
    alone = Cases.of([mean] * len(prompts)).replace(input_tokens=prompts, output_tokens=outputs)
    joules = [
        part * _shares(counted, weight)
        for part, counted in zip(
            (prefill, decode), design_by_phase(alone, model.terms), strict=True
        )
    ]
    names = [term.name for term in model.terms]
    found = []
    for i, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
        terms = joules[0][i] + joules[1][i]
        own = float(terms.sum())
        found.append(
            RequestShare(
                input_tokens=float(prompt),
                output_tokens=float(output),
                energy_j=own,
                low_j=own * low / total,
                high_j=own * high / total,
                prefill_j=float(joules[0][i].sum()),
                decode_j=float(joules[1][i].sum()),
                ratio=own / total,
                terms_j={n: float(j) for n, j in zip(names, terms, strict=True) if j},
            )
        )
    return tuple(found)


def _shares(counted: FloatArray, weight: FloatArray) -> FloatArray:
    """Each request's count over the mean one's, by term, shape (r, terms); 1 where none counts."""
    mean = weight @ counted
    shares: FloatArray = np.where(mean > 0, counted / np.where(mean > 0, mean, 1.0), 1.0)
    return shares


def request_in_batch(
    model: EnergyModel, case: Case, input_tokens: float, output_tokens: float
) -> RequestShare:
    """Price one request among others that have the lengths of the case.

    The batch is the case's, one of whose requests is this one.

    Raises
    ------
    UsageError
        If the lengths are not above 0.
    """
    others = max(case.configuration.batch_size, 1.0) - 1.0
    return share(
        model,
        case,
        [input_tokens, case.workload.input_tokens],
        [output_tokens, case.workload.output_tokens],
        [1.0, others],
    )[0]
