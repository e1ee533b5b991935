"""The coefficients of the time law: what each multiplies, and what is expected of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from energylens.cases import FloatArray


@dataclass(frozen=True, kw_only=True)
class TimeTerm:
    """One coefficient of the time law, and what it multiplies.

    ``group`` says what the hardware does in that time: ``memory``, ``compute``, ``wait``, ``link``
    or ``host``. ``expected`` is theta before any measurement: 1, or 0 for a surcharge. ``spread``
    says how far from it theta may lie, ``lower_bound`` what physics leaves at least.
    """

    name: str
    unit: str
    meaning: str
    group: str
    expected: float = 1.0
    spread: float = 1.0
    lower_bound: float = 0.0
    needs: str = ""


TERMS: tuple[TimeTerm, ...] = (
    TimeTerm(
        name="step_weights",
        unit="s/byte",
        meaning="reading the weights that the batch activates, each decode step",
        group="memory",
        lower_bound=0.8,
        needs="small batches on LLMs of different size",
    ),
    TimeTerm(
        name="step_narrow_weights",
        unit="s/byte",
        meaning="narrowing activations to the 8 bits or fewer of the weights",
        group="memory",
        expected=0.0,
        needs="rows in an 8-bit format beside rows in 16 bits",
    ),
    TimeTerm(
        name="step_weight_only",
        unit="s/byte",
        meaning="widening weights that alone are in fewer bits",
        group="memory",
        expected=0.0,
        needs="rows in a weight-only format beside rows in 16 bits",
    ),
    TimeTerm(
        name="step_compute",
        unit="s/FLOP",
        meaning="multiplying each new token with the weights",
        group="compute",
        lower_bound=0.5,
        needs="large batches",
    ),
    TimeTerm(
        name="step_cache",
        unit="s/byte",
        meaning="reading the KV cache, or reading and writing the state, for each new token",
        group="memory",
        lower_bound=0.8,
        needs="different context lengths at large batch",
    ),
    TimeTerm(
        name="step_launch",
        unit="s/kernel",
        meaning="launching the kernels of a step",
        group="wait",
        spread=3.0,
        needs="small batches on LLMs of different depth",
    ),
    TimeTerm(
        name="step_sequence",
        unit="s/token",
        meaning="the engine's own work on one sequence of a step",
        group="host",
        spread=3.0,
        needs="large batches of small LLMs",
    ),
    TimeTerm(
        name="step_synchronisation",
        unit="s/reduction",
        meaning="GPUs waiting for each other before every all-reduce",
        group="wait",
        spread=3.0,
        needs="small batches with tensor_parallel above 1",
    ),
    TimeTerm(
        name="step_link",
        unit="s/byte",
        meaning="sending activations between GPUs, each decode step",
        group="link",
        lower_bound=0.5,
        needs="large batches with tensor_parallel above 1",
    ),
    TimeTerm(
        name="step_stage",
        unit="s/hop",
        meaning="handing over to the next pipeline stage",
        group="wait",
        spread=3.0,
        needs="rows with pipeline_parallel above 1 at batch 1",
    ),
    TimeTerm(
        name="step_bubble",
        unit="s/s",
        meaning="microbatches waiting for a pipeline stage to be free",
        group="wait",
        expected=0.3,
        needs="rows with pipeline_parallel above 1 at batch 4 or more",
    ),
    TimeTerm(
        name="prompt_compute",
        unit="s/FLOP",
        meaning="multiplying the prompt with the weights, and with itself in attention",
        group="compute",
        lower_bound=0.5,
        needs="prompts of different length, long ones among them",
    ),
    TimeTerm(
        name="prompt_launch",
        unit="s/kernel",
        meaning="launching the kernels of a pass with a prompt, which no graph holds",
        group="wait",
        spread=3.0,
        needs="short prompts, and LLMs of different depth",
    ),
    TimeTerm(
        name="vision",
        unit="s/FLOP",
        meaning="encoding images or video frames in the vision tower",
        group="compute",
        lower_bound=0.5,
        needs="requests with images or video",
    ),
    TimeTerm(
        name="media",
        unit="s/image",
        meaning="preparing an image or frame",
        group="host",
        spread=3.0,
        needs="requests with different numbers of images or frames",
    ),
    TimeTerm(
        name="prompt_link",
        unit="s/byte",
        meaning="sending the activations of a prompt between GPUs",
        group="link",
        lower_bound=0.5,
        needs="long prompts with tensor_parallel above 1",
    ),
    TimeTerm(
        name="lockstep",
        unit="s/FLOP",
        meaning="data-parallel replicas that share experts waiting for each other's prompts",
        group="wait",
        spread=3.0,
        needs="rows with expert_parallel over data_parallel replicas",
    ),
)
NAMES: tuple[str, ...] = tuple(term.name for term in TERMS)
EXPECTED: FloatArray = np.array([term.expected for term in TERMS])
SPREADS: FloatArray = np.array([term.spread for term in TERMS])
LOWER_BOUNDS: FloatArray = np.array([term.lower_bound for term in TERMS])
