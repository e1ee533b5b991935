"""Questions and answers as documents: one schema for the command, the API and the files.

``select --json``, ``explain --json``, ``models --json`` and the API give these answers, and a
decision file or the body of a request asks in the terms of :class:`DecisionFile`. The schemas are
published in docs/schemas; a number that is not known is null, never NaN.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

VERSION = 1  # of every answer: it goes up with a change that breaks a reader

Knob = Literal[
    "tensor_parallel", "pipeline_parallel", "expert_parallel", "data_parallel", "parallelism",
    "batch_size", "precision", "gpu", "power_cap", "clock",
]  # fmt: skip

MOST_TOKENS = 1e8
MOST_IMAGES = 100_000
MOST_RATE = 1e6
MOST_GPUS = 1024
Name = Annotated[str, Field(min_length=1, max_length=200)]
Text = Annotated[str, Field(max_length=4000)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


# ------------------------------------------------------------------------------- questions


class Serve(_Strict):
    """What is served, and on what."""

    llm: str
    gpu: str
    precision: str | None = None
    engine: str | None = None
    model: str | None = Field(default=None, description="a model.json, or a packaged model's name")
    max_gpus: int | None = Field(default=None, ge=1)
    node_gpus: int | None = Field(default=None, ge=1, description="count idle GPUs of such a node")
    power_cap_w: float | None = Field(default=None, gt=0, description="of each GPU")
    clock_mhz: float | None = Field(default=None, gt=0, description="locked, of each GPU's core")


class Load(_Strict):
    """What arrives."""

    rate_per_s: float = Field(gt=0)
    input_tokens: float | None = Field(default=None, gt=0)
    output_tokens: float | None = Field(default=None, gt=0)
    input_cv: float | None = Field(default=None, ge=0)
    output_cv: float | None = Field(default=None, ge=0)
    lengths: str | None = Field(default=None, description="a trace in CSV, in place of the means")
    mix: str | None = None
    images: int | None = Field(default=None, ge=0, description="a request, on top of the tokens")
    frames: int | None = Field(default=None, ge=0, description="of its video, likewise")
    vision_tokens: float | None = Field(
        default=None, ge=0, description="those of images or frames among the input tokens"
    )
    cached_share: float | None = Field(default=None, ge=0, lt=1)
    profile: str | None = Field(default=None, description="a day's rates in CSV")


class Limits(_Strict):
    """Times as in 50ms or 1s:p99, and the probability with which they must be met."""

    tpot: str | None = None
    ttft: str | None = None
    latency: str | None = None
    meet: float | None = Field(default=None, gt=0, lt=1)


class Choose(_Strict):
    """The free knobs, and their values."""

    knobs: list[Knob] | None = None
    batch_sizes: list[float] | None = Field(default=None, description="batch limits of one replica")
    gpus: list[str] = []
    precisions: list[str] = []
    power_caps: list[float] | None = None
    clocks: list[float] | None = Field(default=None, description="locked clocks of the core, MHz")


class Current(_Strict):
    """What runs today, as TP8 B256 or the command line of an engine."""

    configuration: str
    at_most_percent_above_best: float | None = Field(default=None, ge=0)


class Prices(_Strict):
    """Per kWh and GPU hour."""

    price: float | None = Field(default=None, ge=0)
    carbon: float | None = Field(default=None, ge=0)
    pue: float | None = Field(default=None, ge=1)
    gpu_hour: float | None = Field(default=None, ge=0)


class DecisionFile(_Strict):
    """A question to ``energylens select``."""

    serve: Serve
    load: Load
    limits: Limits = Limits()
    choose: Choose = Choose()
    current: Current | None = None
    prices: Prices = Prices()

    @model_validator(mode="after")
    def _one_precision(self) -> DecisionFile:
        if self.serve.precision and "precision" in (self.choose.knobs or ()):
            raise ValueError(
                f"serve.precision {self.serve.precision} has no effect where precision is free "
                "(choose.knobs): leave one of the two out"
            )
        return self


class Question(_Strict):
    """The same question as one flat list of names, those of the command's options.

    Several GPU types, or precisions, are chosen among.
    """

    llm: Name
    gpu: list[Name] = Field(default=["H100-SXM-80GB"], min_length=1, max_length=8)
    precision: list[Name] = Field(default=[], max_length=8, description="the LLM's own if none")
    engine: Name | None = Field(default=None, description="as in vllm 0.11.1")
    model: Name | None = Field(default=None, description="a name that /v1/models lists")
    max_gpus: int = Field(default=8, ge=1, le=MOST_GPUS)
    node_gpus: int | None = Field(default=None, ge=1, le=MOST_GPUS)
    rate: float = Field(gt=0, le=MOST_RATE, description="requests a second, over all replicas")
    input_tokens: float | None = Field(default=None, gt=0, le=MOST_TOKENS)
    output_tokens: float | None = Field(default=None, gt=0, le=MOST_TOKENS)
    input_cv: float | None = Field(default=None, ge=0, lt=100)
    output_cv: float | None = Field(default=None, ge=0, lt=100)
    mix: Name | None = Field(default=None, description="conversation or code, for the lengths")
    images: int = Field(default=0, ge=0, le=MOST_IMAGES, description="on top of the tokens")
    frames: int = Field(default=0, ge=0, le=MOST_IMAGES, description="of a video, likewise")
    vision_tokens: float | None = Field(
        default=None, ge=0, le=MOST_TOKENS, description="those of images or frames in the prompt"
    )
    cached_share: float | None = Field(default=None, ge=0, lt=1)
    tpot: Name | None = Field(default=None, description="as in 50ms or 50ms:p90")
    ttft: Name | None = Field(default=None, description="as in 1s or 1s:p99")
    latency: Name | None = None
    meet: float | None = Field(default=None, gt=0, lt=1)
    choose: list[Knob] = Field(default=[], max_length=10)
    batch_sizes: list[float] = Field(default=[], max_length=64)
    power_caps: list[float] = Field(default=[], max_length=16)
    clocks: list[float] = Field(default=[], max_length=16, description="locked clocks, MHz")
    power_cap_w: float | None = Field(default=None, gt=0, le=1e5, description="of each GPU")
    clock_mhz: float | None = Field(default=None, gt=0, le=1e5, description="locked, of each GPU")
    current: Text | None = Field(default=None, description="as TP8 B256, or a command line")
    price: float | None = Field(default=None, ge=0, le=1e6)
    carbon: float | None = Field(default=None, ge=0, le=1e6)
    pue: float | None = Field(default=None, ge=1, le=1e3)
    gpu_hour: float | None = Field(default=None, ge=0, le=1e6)

    @field_validator(
        "gpu", "precision", "choose", "batch_sizes", "power_caps", "clocks", mode="before"
    )
    @classmethod
    def _listed(cls, values: Any) -> Any:
        """Take lists with commas too, as the command does: no name has one."""
        if not isinstance(values, list):
            return values
        return [
            part
            for value in values
            for part in (value.split(",") if isinstance(value, str) else [value])
        ]

    def document(self) -> DecisionFile:
        """Say it as a decision file does."""
        knobs: list[Knob] = list(self.choose)
        if not knobs:
            knobs = ["tensor_parallel", "pipeline_parallel", "data_parallel", "batch_size"]
        if len(self.gpu) > 1 and "gpu" not in knobs:
            knobs.append("gpu")
        if len(self.precision) > 1 and "precision" not in knobs:
            knobs.append("precision")
        free = "precision" in knobs
        return DecisionFile(
            serve=Serve(
                gpu=self.gpu[0],
                precision=self.precision[0] if self.precision and not free else None,
                **self._part(Serve),
            ),
            load=Load(rate_per_s=self.rate, **self._part(Load)),
            limits=Limits(**self._part(Limits)),
            choose=Choose(
                knobs=knobs,
                batch_sizes=self.batch_sizes or None,
                gpus=self.gpu if "gpu" in knobs else [],
                precisions=self.precision if free else [],
                power_caps=self.power_caps or None,
                clocks=self.clocks or None,
            ),
            current=Current(configuration=self.current) if self.current else None,
            prices=Prices(**self._part(Prices)),
        )

    def _part(self, kind: type[_Strict]) -> dict[str, Any]:
        """What a table of the file calls by the same name, and holds once."""
        names = kind.model_fields.keys() & type(self).model_fields.keys() - {"gpu", "precision"}
        return {name: getattr(self, name) for name in sorted(names)}


class CaseQuestion(_Strict):
    """One configuration to explain, by the names of the options of ``energylens explain``."""

    llm: Name
    gpu: Name = "H100-SXM-80GB"
    model: Name | None = Field(default=None, description="a name that /v1/models lists")
    precision: Name | None = None
    engine: Name | None = None
    tensor_parallel: int = Field(default=1, ge=1, le=MOST_GPUS)
    pipeline_parallel: int = Field(default=1, ge=1, le=MOST_GPUS)
    expert_parallel: int = Field(default=1, ge=1, le=MOST_GPUS)
    data_parallel: int = Field(default=1, ge=1, le=MOST_GPUS)
    batch_size: int = Field(default=32, ge=1, le=1_000_000)
    power_cap_w: float | None = Field(default=None, gt=0, le=1e5, description="of each GPU")
    clock_mhz: float | None = Field(default=None, gt=0, le=1e5, description="locked, of each GPU")
    input_tokens: float = Field(gt=0, le=MOST_TOKENS)
    output_tokens: float = Field(gt=0, le=MOST_TOKENS)
    images: int = Field(default=0, ge=0, le=MOST_IMAGES, description="on top of the tokens")
    frames: int = Field(default=0, ge=0, le=MOST_IMAGES, description="of a video, likewise")
    vision_tokens: float | None = Field(
        default=None, ge=0, le=MOST_TOKENS, description="those of images or frames in the prompt"
    )
    node_gpus: int | None = Field(default=None, ge=1, le=MOST_GPUS)


# --------------------------------------------------------------------------------- answers


class Answer(BaseModel):
    """What all answers allow: fields that a later version adds."""

    model_config = ConfigDict(extra="ignore")


class Entry(Answer):
    """One configuration under the load; joules and watts are those of the whole deployment."""

    tensor_parallel: int
    pipeline_parallel: int
    expert_parallel: int
    data_parallel: int
    batch_size: float = Field(description="summed over replicas")
    batch_limit_per_replica: float
    power_cap_w: float | None
    clock_mhz: float | None = Field(default=None, description="of the core, where it is locked")
    gpu: str
    precision: str
    gpus: int
    mean_batch_size: float = Field(description="sequences that run in a replica, on average")
    energy_per_request_j: float
    lower_j: float
    upper_j: float
    tpot_s: float | None
    ttft_s: float | None
    request_latency_s: float | None
    power_w: float
    utilisation_ratio: float
    saturation_rate_per_s: float
    probability_of_meeting_ratio: float | None = Field(description="null: not worked out")
    limit_values_s: list[float | None]
    saving_ratio: float | None
    probability_best_ratio: float | None = Field(
        default=None, description="of the fewest joules of all that meet; null: not worked out"
    )


class Limited(Answer):
    """One limit on a time."""

    of: Literal["tpot", "ttft", "latency"]
    seconds: float
    quantile: float | None = Field(description="null: the mean")


class Asked(Answer):
    """The question as it was understood."""

    llm: str
    rate_per_s: float
    input_tokens: float
    vision_tokens: float = Field(default=0.0, description="those of images or frames among them")
    output_tokens: float
    input_cv: float
    output_cv: float
    cached_share: float
    meet: float
    max_gpus: int
    node_gpus: int | None
    limits: list[Limited]


class ShadowPrice(Answer):
    """What one limit costs: relaxed to ``relaxed_s`` it would save ``saving_ratio``."""

    limit: str
    relaxed_s: float
    saving_ratio: float
    configuration: str


class MeetPrice(Answer):
    """What another probability of meeting would change; below 0: it costs."""

    meet: float
    saving_ratio: float | None = Field(description="null: nothing meets")
    configuration: str | None


class Month(Answer):
    """A month of one deployment."""

    kwh_per_month: float
    cost_per_month: float
    co2_kg_per_month: float
    energy_per_output_token_j: float
    energy_per_total_token_j: float
    cost_per_million_output_tokens: float
    cost_per_million_total_tokens: float
    co2_kg_per_million_total_tokens: float


class Decision(Answer):
    """Answer to ``select --rate``: configurations within the limits, fewest joules first."""

    format: Literal["energylens-select"]
    version: Literal[1]
    question: Asked
    configurations: list[Entry]
    missed: list[Entry]
    current: Entry | None
    fewest_gpus: Entry | None
    shadow_prices: list[ShadowPrice]
    meet_prices: list[MeetPrice] = []
    saving_interval_ratio: tuple[float, float] | None = Field(
        default=None, description="80 %, of the first against what runs today"
    )
    breaks_at_rate_per_s: float | None
    front: list[Entry]
    considered: int
    ruled_out: int
    certain: bool = Field(description="whether probabilities were worked out")
    notes: list[str]
    month: dict[Literal["best", "current"], Month]
    check: str | None = None


class TermShare(Answer):
    """Joules a request of one term."""

    prefill_j: float
    decode_j: float
    interval_80_j: tuple[float, float]


class Change(Answer):
    """What another setting would cost."""

    what: str
    energy_per_request_j: float
    difference_j: float
    feasible: bool
    reason: str
    running_batch_size: float | None


class KindOfTime(Answer):
    """Seconds and joules of a request in which GPUs do one thing."""

    seconds: float
    joules: float
    watts_per_gpu: float | None
    plausible: bool


class ExplainedTime(Answer):
    """Where the seconds of a full batch go."""

    tpot_s: float
    request_latency_s: float
    requests_per_s: float
    terms_s: dict[str, float]
    watts: dict[str, KindOfTime]


class RequestShare(Answer):
    """What one request takes of the joules of its batch."""

    input_tokens: float
    output_tokens: float
    energy_per_request_j: float
    interval_80_j: tuple[float, float]
    energy_per_output_token_j: float
    energy_per_total_token_j: float
    prefill_energy_per_request_j: float
    decode_energy_per_request_j: float
    ratio_to_mean_request: float
    terms_j: dict[str, float]


class Explanation(Answer):
    """Answer to ``explain``: what a configuration costs at a full batch, and why."""

    format: Literal["energylens-explain"]
    version: Literal[1]
    case: str
    energy_per_request_j: float
    energy_per_output_token_j: float
    energy_per_total_token_j: float
    energy_per_request_kwh: float
    interval_80_j: tuple[float, float]
    prefill_energy_per_request_j: float
    decode_energy_per_request_j: float
    terms: dict[str, TermShare]
    input_token_j: float
    output_token_j: float
    factors: dict[str, float]
    changes: list[Change]
    notes: list[str]
    sentences: list[str]
    memory: dict[str, Any]
    time: ExplainedTime | None
    requests: list[RequestShare] = Field(default=[], description="those asked for by --request")


class Service(Answer):
    """One configuration at many rates: joules, watts and times in columns of one length.

    A time is null where more arrives than is served. ``breaks_at_rate_per_s`` is the rate up to
    which the limits are met with the probability asked; null where none is named or none meets.
    """

    format: Literal["energylens-service"]
    version: Literal[1]
    configuration: str
    gpu: str
    precision: str
    rate_per_s: list[float]
    energy_per_request_j: list[float]
    power_w: list[float]
    tpot_s: list[float]
    ttft_s: list[float | None]
    request_latency_s: list[float | None]
    mean_batch_size: list[float]
    utilisation_ratio: list[float]
    saturation_rate_per_s: float
    breaks_at_rate_per_s: float | None
    notes: list[str]


class Columns(Answer):
    """All candidates, in columns of one length."""

    configuration: list[str]
    gpu: list[str]
    precision: list[str]
    gpus: list[int]
    energy_per_request_j: list[float]
    tpot_s: list[float]
    ttft_s: list[float | None]
    power_w: list[float]
    meets: list[bool]
    probability_of_meeting_ratio: list[float] | None


class Pareto(Answer):
    """Every candidate, and the places of those that none beats in joules and time per token."""

    format: Literal["energylens-pareto"]
    version: Literal[1]
    certain: bool = Field(description="whether meets rests on probabilities, or on means alone")
    candidates: Columns
    front: list[int]
    considered: int
    ruled_out: int
    notes: list[str]


class Model(Answer):
    """A fitted model that answers; ``models --json`` lists those that come with the package."""

    name: str
    source: str
    licence: str
    date: str
    rows: int
    llms: int
    gpus: list[str]
    engine: str
    dataset_digest: str


class Gpu(Answer):
    """A GPU type of the catalog, as ``gpu list --json`` has it."""

    id: str
    memory_bytes: float
    memory_bandwidth_bytes_per_s: float
    bf16_flop_per_s: float
    tdp_w: float
    aliases: list[str]
    source: str
    date: str


class Llm(Answer):
    """An LLM of the catalog, as ``llm list --json`` has it."""

    id: str
    layers: int
    hidden_size: int
    total_parameters: float | None
    active_parameters: float | None
    native_precision: str
    aliases: list[str]
    source: str
    date: str


class Models(Answer):
    """Answer to ``models --json``: the models that answer, the default first."""

    format: Literal["energylens-models"]
    version: Literal[1]
    models: list[Model]


class Gpus(Answer):
    """Answer to ``gpu list --json``."""

    format: Literal["energylens-gpu"]
    version: Literal[1]
    gpus: list[Gpu]


class Llms(Answer):
    """Answer to ``llm list --json``."""

    format: Literal["energylens-llm"]
    version: Literal[1]
    llms: list[Llm]


class Problem(Answer):
    """What went wrong, as RFC 9457 has it."""

    type: str
    title: str
    status: int
    detail: str


#: Everything that is published, by the name of its file in docs/schemas.
PUBLISHED: dict[str, type[BaseModel]] = {
    "decision-file": DecisionFile,
    "question": Question,
    "case-question": CaseQuestion,
    "decision": Decision,
    "explanation": Explanation,
    "service": Service,
    "pareto": Pareto,
    "models": Models,
    "gpus": Gpus,
    "llms": Llms,
    "problem": Problem,
}


def headed(verb: str, document: Mapping[str, Any]) -> dict[str, Any]:
    """Put before an answer what it calls itself, as every ``--json`` does."""
    return {"format": f"energylens-{verb}", "version": VERSION, **document}


def schema_of(name: str) -> dict[str, Any]:
    """JSON Schema of a published document.

    Parameters
    ----------
    name : str
        A key of :data:`PUBLISHED`.
    """
    made = PUBLISHED[name].model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}
