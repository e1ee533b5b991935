"""Files that lie beside results and hold no run: told by their content, refused by what they lack.

A benchmark writes more than its summary, and a meter can be asked in ways that no run can be joined
with. A file of these is refused with what to give instead; within a folder it is passed over.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from energylens.importers.documents import Document


@dataclass(frozen=True, kw_only=True)
class Beside:
    """One kind of file: an object with all of ``keys`` and none of ``without``, or a text.

    Of the first of a list of objects; a key with a point in it is one within another.
    """

    name: str
    keys: frozenset[str] = frozenset()
    without: frozenset[str] = frozenset()
    text: str = ""
    lacks: str

    def matches(self, document: Document) -> bool:
        """Whether a file is of this kind."""
        if self.text:
            found = re.search(self.text, document.text[:4096], re.MULTILINE)
            return not document.objects and found is not None
        item = document.objects[0] if document.objects else None
        while isinstance(item, list) and item:
            item = item[0]
        return (
            isinstance(item, Mapping)
            and bool(self.keys)
            and all(_has(item, key) for key in self.keys)
            and not self.without & item.keys()
        )


def _has(item: Mapping[str, object], key: str) -> bool:
    name, _, rest = key.partition(".")
    inner = item.get(name)
    return name in item and (not rest or (isinstance(inner, Mapping) and _has(inner, rest)))


def _object(name: str, keys: str, lacks: str, without: str = "") -> Beside:
    return Beside(
        name=name, keys=frozenset(keys.split()), without=frozenset(without.split()), lacks=lacks
    )


def _text(name: str, pattern: str, lacks: str) -> Beside:
    return Beside(name=name, text=pattern, lacks=lacks)


_SMI = "log nvidia-smi --query-gpu=timestamp,index,power.draw --format=csv -lms 500"
_SUMMARY = "give its profile_export_aiperf.json"

KINDS = (
    _object(
        "a run of vllm bench latency",
        "avg_latency latencies",
        "it states neither tokens nor when it ran: run vllm bench serve",
    ),
    _object(
        "a run of vllm bench throughput",
        "elapsed_time num_requests total_num_tokens",
        "it counts tokens of prompt and output together: run vllm bench serve",
    ),
    _object(
        "a benchmark of embeddings or reranking",
        "duration completed total_input_tokens total_token_throughput",
        "nothing is generated in it, so it has no joules an output token",
        "total_output_tokens",
    ),
    _object(
        "a copy for PyTorch's dashboard",
        "benchmark model metric",
        "give the JSON beside it",
    ),
    _object("AIPerf's records of single requests", "metadata.request_start_ns metrics", _SUMMARY),
    _object(
        "AIPerf's aggregate of several runs",
        "metadata.aggregation_type metrics",
        "its figures are of no one run: give the profile_export_aiperf.json of each",
    ),
    _object(
        "perf_analyzer's records", "experiments version", "give profile_export_genai_perf.json"
    ),
    _object(
        "inference-perf's records of single requests",
        "start_time end_time request",
        "give stage_N_lifecycle_metrics.json",
    ),
    _object(
        "a configuration of inference-perf",
        "load server",
        "give stage_N_lifecycle_metrics.json",
    ),
    _text(
        "nvidia-smi pmon",
        r"^#\s*gpu\s+pid\s+type",
        f"it lists processes, not watts: {_SMI}",
    ),
    _text(
        "nvidia-smi -q",
        r"^=+NVSMI LOG=+|<nvidia_smi_log>",
        f"it is a report, not a log of readings with their times: {_SMI}",
    ),
    _text(
        "the table of nvidia-smi",
        r"^\| NVIDIA-SMI ",
        f"it is a report, not a log of readings with their times: {_SMI}",
    ),
    _text(
        "dcgmi dmon",
        r"^#\s*Entity\s",
        "it has no time stamps: query Prometheus over the run (query_range)",
    ),
    _text(
        "the table of rocm-smi",
        r"ROCm System Management Interface",
        "it has no time stamps: log amd-smi metric --power --csv --watch 1",
    ),
    _text(
        "ipmitool sensor",
        r"^\S.*\|\s*[\d.]+\s*\|\s*Watts\b|^\S.*\|\s*\d+ Watts\s*$",
        "it has no time stamps: log ipmitool dcmi power reading, which has them",
    ),
)


def told(document: Document) -> Beside | None:
    """Tell which kind of file this is, None if it is none of these."""
    return next((kind for kind in KINDS if kind.matches(document)), None)
