"""The columns of the tidy table: names, units, bounds and meanings, in one place.

`energylens.table` reads and checks by them; ``docs/data-format.md`` says the same to people.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from energylens.records import BOUNDARIES, MODALITIES, SOURCES


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of the tidy table.

    ``kind`` is one of name (of a catalog row), choice, text, whole (a whole number, 1 or more),
    positive (a number above 0) and count (a number, 0 or more). Numbers lie between ``low`` and
    ``high``; beyond them is a slip, not a measurement. A ``sparse`` column is written only where
    a row has a value for it.
    """

    name: str
    kind: str
    unit: str = ""
    required: bool = False
    meaning: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = float("inf")
    sparse: bool = False

    @property
    def is_number(self) -> bool:
        """Whether cells are numbers."""
        return self.kind in ("whole", "positive", "count")


def _degree(name: str, meaning: str) -> Column:
    return Column(name=name, kind="whole", unit="GPUs", low=1, high=1e5, meaning=meaning)


def _tokens(name: str, kind: str, required: bool, meaning: str) -> Column:
    low = 0.0 if kind == "count" else 1e-3
    return Column(
        name=name, kind=kind, unit="tokens", required=required, low=low, high=1e9, meaning=meaning
    )


def _joules(name: str, required: bool, meaning: str) -> Column:
    return Column(
        name=name,
        kind="positive",
        unit="J",
        required=required,
        low=1e-9,
        high=1e12,
        meaning=meaning,
    )


def _seconds(name: str, meaning: str, sparse: bool = False) -> Column:
    return Column(
        name=name, kind="positive", unit="s", low=1e-9, high=1e9, meaning=meaning, sparse=sparse
    )


def _rate(name: str, meaning: str) -> Column:
    return Column(
        name=name, kind="positive", unit="1/s", low=1e-9, high=1e9, meaning=meaning, sparse=True
    )


#: Times whose percentiles over requests (over tokens for ``itl``) a row may have, by the stem of
#: their columns.
_TIMES = {
    "ttft": "time to first token",
    "tpot": "a request's mean time per output token after the first",
    "itl": "time between two output tokens",
    "request_latency": "time from request to last token",
}

#: Percentile columns, as in ``ttft_p99_s``, and the percentile that each holds. The median of
#: the time between two tokens has a name of its own, ``median_itl_s``.
PERCENTILES: Mapping[str, int] = {
    f"{stem}_p{percent}_s": percent
    for stem in _TIMES
    for percent in (50, 90, 95, 99)
    if (stem, percent) != ("itl", 50)
}


COLUMNS: tuple[Column, ...] = (
    Column(name="llm", kind="name", required=True, meaning="language model: an id of the catalog"),
    Column(name="gpu", kind="name", required=True, meaning="GPU type: an id of the catalog"),
    Column(
        name="precision",
        kind="name",
        meaning="number format of the weights; empty: what the name of the LLM says, "
        "else what its checkpoint has",
    ),
    _degree("tensor_parallel", "tensor-parallel degree; empty: 1"),
    _degree("pipeline_parallel", "pipeline-parallel degree; empty: 1"),
    _degree("expert_parallel", "expert-parallel degree, inside TP x DP; empty: 1"),
    _degree("data_parallel", "data-parallel degree; empty: 1"),
    Column(
        name="batch_size",
        kind="positive",
        unit="requests",
        low=1,
        high=1e7,
        meaning="limit set on requests in flight, over all replicas; may be empty in a row that "
        "gives request_rate_per_s",
    ),
    Column(
        name="mean_batch_size",
        kind="positive",
        unit="requests",
        low=1e-6,
        high=1e7,
        meaning="observed mean of requests in flight, over all replicas",
    ),
    _rate(
        "request_rate_per_s",
        "requests offered a second, over all replicas, arriving on their own (open loop); empty: "
        "a queue that is never empty",
    ),
    _rate("achieved_rate_per_s", "requests completed a second, over all replicas"),
    Column(
        name="modality",
        kind="choice",
        choices=tuple(MODALITIES),
        meaning="what requests carry; empty: told by frames, images and vision_tokens",
    ),
    Column(name="task", kind="text", meaning="workload, where lengths are means that scatter"),
    _tokens("input_tokens", "positive", True, "tokens prefilled a request, vision tokens included"),
    _tokens("output_tokens", "positive", True, "tokens generated a request"),
    _tokens("vision_tokens", "count", False, "the part of input_tokens from images or frames"),
    Column(
        name="images", kind="count", unit="images", high=1e6, meaning="images encoded a request"
    ),
    Column(
        name="frames",
        kind="count",
        unit="frames",
        high=1e6,
        meaning="video frames encoded a request",
    ),
    _joules("energy_per_request_j", True, "energy a completed request, within the boundary"),
    _joules("prefill_energy_per_request_j", False, "its part spent in prefill"),
    _joules("decode_energy_per_request_j", False, "its part spent in decode"),
    _seconds("ttft_s", "time to first token, mean over requests"),
    _seconds("tpot_s", "time per output token after the first, mean over requests"),
    _seconds("median_itl_s", "time between two output tokens, median over all tokens", sparse=True),
    _seconds("request_latency_s", "time from request to last token, mean over requests"),
    *(
        _seconds(name, f"{_TIMES[name.rpartition('_p')[0]]}, {percent}th percentile", sparse=True)
        for name, percent in PERCENTILES.items()
    ),
    Column(
        name="average_power_w",
        kind="positive",
        unit="W",
        low=1e-3,
        high=1e9,
        meaning="mean power of all that is within the boundary",
    ),
    Column(
        name="loaded_idle_w",
        kind="positive",
        unit="W",
        low=1e-3,
        high=1e5,
        meaning="power of one GPU of the deployment with its weights loaded and no request",
        sparse=True,
    ),
    Column(
        name="boundary",
        kind="choice",
        choices=tuple(BOUNDARIES),
        meaning="what the joules cover: the deployment's GPUs, all GPUs of the node, or the whole "
        "server at its power inlet; empty: active_gpus",
    ),
    Column(
        name="node_gpus",
        kind="whole",
        unit="GPUs",
        low=1,
        high=1e5,
        meaning="GPUs that the joules of boundary node or wall cover",
    ),
    Column(
        name="power_cap_w",
        kind="positive",
        unit="W",
        low=1,
        high=1e5,
        meaning="limit set on the power of each GPU; empty: none, its TDP",
        sparse=True,
    ),
    Column(
        name="clock_mhz",
        kind="positive",
        unit="MHz",
        low=1,
        high=1e5,
        meaning="clock that the core (SM) of each GPU was locked to; empty: not locked",
        sparse=True,
    ),
    Column(name="engine", kind="text", meaning="serving engine, as in vllm"),
    Column(name="engine_version", kind="text", meaning="its version"),
    Column(
        name="source",
        kind="choice",
        required=True,
        choices=tuple(SOURCES),
        meaning="where the joules come from",
    ),
    Column(name="origin", kind="text", meaning="file or publication of the row"),
    Column(
        name="assumed",
        kind="text",
        meaning="columns of this row that are assumptions, separated by blanks",
    ),
    Column(
        name="declared",
        kind="text",
        meaning="columns of this row that whoever imported it declared, for its file does not "
        "state them; separated by blanks",
        sparse=True,
    ),
)

#: Accepted and checked, never needed: TP x PP x DP.
GPUS = Column(
    name="gpus", kind="whole", unit="GPUs", low=1, high=1e15, meaning="TP x PP x DP, checked"
)

BY_NAME: Mapping[str, Column] = {column.name: column for column in (*COLUMNS, GPUS)}

#: Columns that are written only where a row has a value for them.
SPARSE = tuple(column.name for column in COLUMNS if column.sparse)
