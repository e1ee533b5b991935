"""What an engine has counted, in one vocabulary: vLLM's and SGLang's names, old and new.

Counters only grow while an engine lives. One that is smaller than at the look before tells that
the engine started anew, and nothing is said of the time between the two looks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

from energylens.errors import MeasurementError
from energylens.foreign import printable
from energylens.scraping import Series, parse, total

#: Names of each engine, newest first.
NAMES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "vllm": {
        "started_s": ("vllm:prompt_tokens_created", "process_start_time_seconds"),
        "requests": ("vllm:request_success_total",),
        "prompt_tokens": ("vllm:prompt_tokens_total",),
        "cached_tokens": ("vllm:prompt_tokens_cached_total", "vllm:prefix_cache_hits_total"),
        "output_tokens": ("vllm:generation_tokens_total",),
        "steps": ("vllm:iteration_tokens_total_count",),
        "first_tokens": ("vllm:time_to_first_token_seconds_count",),
        "first_token_s": ("vllm:time_to_first_token_seconds_sum",),
        "gaps": (
            "vllm:inter_token_latency_seconds_count",
            "vllm:time_per_output_token_seconds_count",
        ),
        "gaps_s": (
            "vllm:inter_token_latency_seconds_sum",
            "vllm:time_per_output_token_seconds_sum",
        ),
        "flop_per_gpu": ("vllm:estimated_flops_per_gpu_total",),
        "read_bytes_per_gpu": ("vllm:estimated_read_bytes_per_gpu_total",),
        "written_bytes_per_gpu": ("vllm:estimated_write_bytes_per_gpu_total",),
        "running": ("vllm:num_requests_running",),
        "waiting": ("vllm:num_requests_waiting",),
    },
    "sglang": {
        "started_s": ("sglang:prompt_tokens_created", "process_start_time_seconds"),
        "requests": ("sglang:num_requests_total", "sglang_num_requests_total"),
        "prompt_tokens": ("sglang:prompt_tokens_total", "sglang_prompt_tokens_total"),
        "cached_tokens": ("sglang:cached_tokens_total", "sglang_cached_tokens_total"),
        "output_tokens": ("sglang:generation_tokens_total", "sglang_generation_tokens_total"),
        "first_tokens": (
            "sglang:time_to_first_token_seconds_count",
            "sglang_time_to_first_token_seconds_count",
        ),
        "first_token_s": (
            "sglang:time_to_first_token_seconds_sum",
            "sglang_time_to_first_token_seconds_sum",
        ),
        "gaps": (
            "sglang:inter_token_latency_seconds_count",
            "sglang:time_per_output_token_seconds_count",
        ),
        "gaps_s": (
            "sglang:inter_token_latency_seconds_sum",
            "sglang:time_per_output_token_seconds_sum",
        ),
        "running": ("sglang:num_running_reqs", "sglang_num_running_reqs"),
        "waiting": ("sglang:num_queue_reqs", "sglang_num_queue_reqs"),
    },
}
PREFIXES = ("vllm:", "sglang:", "sglang_", "process_start_time_seconds")
NEEDED = ("requests", "prompt_tokens", "output_tokens")
NO_COUNTS = ("running", "waiting", "started_s")
#: What early vLLM V1 said of its cache: queries, hits, and the size of its blocks.
EARLY = (
    "vllm:gpu_prefix_cache_queries_total",
    "vllm:gpu_prefix_cache_hits_total",
    "vllm:cache_config_info",
)
#: Tokens of a block of the cache where vLLM does not say, and what tells blocks from tokens.
BLOCK_TOKENS, MANY_TOKENS = 16.0, 4.0
#: Histograms that the spread of prompts and of outputs is read from.
_LENGTHS = {
    "vllm": ("vllm:request_prompt_tokens", "vllm:request_generation_tokens"),
    "sglang": ("sglang:prompt_tokens_histogram", "sglang:generation_tokens_histogram"),
}
#: Histograms of the time to the first token and of the time per token after it, by request.
TIMES = {
    "vllm": ("vllm:time_to_first_token_seconds", "vllm:request_time_per_output_token_seconds"),
    "sglang": ("sglang:time_to_first_token_seconds", ""),
}
Buckets = tuple[tuple[float, float], ...]


class MetricsError(MeasurementError):
    """An endpoint has no metrics of an engine, or not those that joules are told from."""


@dataclass(frozen=True, kw_only=True)
class Counters:
    """What one engine process has counted since its start; None: it does not say.

    ``running`` and ``waiting`` are requests now. The numbers per GPU are those of
    ``--enable-mfu-metrics``, added up over data-parallel engines.
    """

    engine: str
    model_names: tuple[str, ...]
    requests: float
    prompt_tokens: float
    output_tokens: float
    started_s: float | None = None
    cached_tokens: float | None = None
    steps: float | None = None
    first_tokens: float | None = None
    first_token_s: float | None = None
    gaps: float | None = None
    gaps_s: float | None = None
    flop_per_gpu: float | None = None
    read_bytes_per_gpu: float | None = None
    written_bytes_per_gpu: float | None = None
    running: float | None = None
    waiting: float | None = None
    cv: tuple[float | None, float | None] = field(default=(None, None))  # of prompts and outputs
    ttft: Buckets = ()  # requests up to each of some times, as TIMES has them
    tpot: Buckets = ()

    def since(self, before: Counters) -> dict[str, float | None] | None:
        """What was counted since an earlier look; None where the engine has started anew."""
        if (self.engine, self.model_names) != (before.engine, before.model_names):
            return None
        if None not in (self.started_s, before.started_s) and self.started_s != before.started_s:
            return None
        counted: dict[str, float | None] = {}
        for one in fields(self):
            now, then = getattr(self, one.name), getattr(before, one.name)
            if one.name in NO_COUNTS or not isinstance(now, float) or not isinstance(then, float):
                continue
            if now < then:
                return None
            counted[one.name] = now - then
        return counted


def read_counters(text: str, *, model_name: str = "", where: str = "the endpoint") -> Counters:
    """Read an engine's metrics.

    Parameters
    ----------
    text : str
        In Prometheus's format.
    model_name : str
        Which of several served models is meant, as the label ``model_name`` says; all by default.
    where : str
        What the source is called in messages.

    Raises
    ------
    MetricsError
        If there are none of vLLM or SGLang, or not the ones needed, or not of that model.
    """
    series = parse(text, PREFIXES, where)
    engine = next((e for e in NAMES if any(s.name.startswith(e) for s in series)), None)
    if engine is None:
        raise MetricsError(
            f"{where} must show metrics of vLLM or SGLang (vllm:..., sglang:...), and shows none: "
            "give the engine's own /metrics; SGLang needs --enable-metrics."
        )
    series = _once([s for s in series if s.name.startswith((engine, "process_"))])
    served = sorted({s.labels["model_name"] for s in series if s.labels.get("model_name")})
    if model_name:
        if model_name not in served:
            raise MetricsError(
                f"{where} serves {', '.join(printable(n, 80) for n in served) or 'no model'}, "
                f"not {printable(model_name, 80)!r}."
            )
        series = [s for s in series if s.labels.get("model_name", model_name) == model_name]
        served = [model_name]
    values = {field: total(series, *names) for field, names in NAMES[engine].items()}
    if engine == "vllm" and values["cached_tokens"] is None:
        values["cached_tokens"] = _early_hits(series, values["prompt_tokens"])
    if missing := [NAMES[engine][name][0] for name in NEEDED if values[name] is None]:
        raise MetricsError(
            f"{where} does not show {' and '.join(missing)} as numbers: a router or a cache hides "
            "them, or this is no engine's endpoint."
        )
    return Counters(
        engine=engine,
        model_names=tuple(printable(name, 200) for name in served),
        cv=(_spread(series, _LENGTHS[engine][0]), _spread(series, _LENGTHS[engine][1])),
        ttft=_buckets(series, TIMES[engine][0]),
        tpot=_buckets(series, TIMES[engine][1]),
        **values,  # type: ignore[arg-type]
    )


RANKS = ("tp_rank", "pp_rank", "moe_ep_rank")


def _once(series: Sequence[Series]) -> list[Series]:
    """Leave out what is said twice: by every rank of a replica, and by a total beside its parts.

    With data-parallel attention SGLang numbers the ranks of all replicas through: the first of the
    second replica has not number 0.
    """
    found: dict[tuple[str, frozenset[tuple[str, str]]], tuple[tuple[int, ...], Series]] = {}
    for one in series:
        rest = frozenset((k, v) for k, v in one.labels.items() if k not in RANKS)
        ranks = tuple(int(r) if (r := one.labels.get(k, "")).isdecimal() else 0 for k in RANKS)
        before = found.get((one.name, rest))
        if before is None or ranks < before[0]:
            found[one.name, rest] = (ranks, one)
    kept = [one for _, one in found.values()]
    parts = {s.name for s in kept if s.labels.get("cache_source", "total") != "total"}
    return [s for s in kept if s.labels.get("cache_source") != "total" or s.name not in parts]


def _early_hits(series: Sequence[Series], prompt_tokens: float | None) -> float | None:
    """Tokens found in the cache by early vLLM V1, which counts blocks at first and tokens later."""
    asked, hits, room = EARLY
    asked_for, found = total(series, asked), total(series, hits)
    if found is None or asked_for is None or prompt_tokens is None:
        return None
    blocks = asked_for * MANY_TOKENS < prompt_tokens
    sizes = (s.labels.get("block_size", "") for s in series if s.name == room)
    size = next((float(word) for word in sizes if word.isdecimal()), BLOCK_TOKENS)
    return found * size if blocks else found


def _buckets(series: Sequence[Series], name: str) -> Buckets:
    """Edges of a histogram, ascending, and what was counted up to each; empty without one."""
    counts: dict[float, float] = {}
    for one in series:
        if name and one.name == f"{name}_bucket":
            try:
                edge = float(one.labels.get("le", ""))
            except ValueError:
                return ()
            counts[edge] = counts.get(edge, 0.0) + one.value
    return tuple(sorted(counts.items()))


def above(buckets: Buckets, limit: float) -> float:
    """Count what lies above a limit, even within the bucket that it lies in."""
    before, below = 0.0, 0.0
    for edge, up_to in buckets:
        if limit < edge:
            inside = 0.0 if edge == float("inf") else (limit - before) / (edge - before)
            return buckets[-1][1] - below - inside * (up_to - below)
        before, below = edge, up_to
    return 0.0


def _spread(series: Sequence[Series], name: str) -> float | None:
    """Coefficient of variation of a histogram, each bucket at its middle; None without one."""
    below = first = second = edge_before = 0.0
    for edge, up_to in _buckets(series, name):
        here, below = up_to - below, up_to
        if edge == float("inf"):
            middle = edge_before
        else:
            middle, edge_before = (edge_before + edge) / 2, edge
        first += here * middle
        second += here * middle**2
    if below < 30 or first <= 0:
        return None
    mean = first / below
    variance = max(second / below - mean**2, 0.0)
    return float(min(variance**0.5 / mean, 5.0))
