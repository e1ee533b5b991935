"""What runs today, read from a short name or from the command line that started it.

A command line says more than a layout: the LLM, its number format, the cache's format and the
share of memory are read, harmless options are passed over, and all others are named in a note.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from energylens import catalog
from energylens.capacity import KV_BITS, default_sequences
from energylens.decisions import Running
from energylens.errors import UnknownNameError, UsageError
from energylens.records import Configuration, Gpu, Llm, Precision

DEFAULT_SEQUENCES = 256.0  # max_num_seqs where nothing is said, nor the GPU type known
OWN_SEQUENCES = 2048.0  # of SGLang 0.5 (at least) and TensorRT-LLM 1.0, where nothing is said

_WHOLE = "0{0,9}[1-9][0-9]{0,8}"
_KNOBS = {"TP": "tensor_parallel", "PP": "pipeline_parallel", "EP": "expert_parallel"}
_KNOBS |= {"DP": "data_parallel"}


def read_configuration(text: str, gpu: Gpu | None = None) -> Configuration:
    """Read the layout and batch limit of ``TP8 B256``, ``2 x TP4 B128`` or a command line.

    The batch limit of a command line, or behind a number of replicas, is that of one replica; B
    beside DP is that of all together. Where none is said it is what vLLM takes on that GPU type
    (``get_batch_defaults`` of vLLM 0.11: 1024 from 70 GiB on but on A100, else 256); 2048 on a
    command line of SGLang or TensorRT-LLM.

    Raises
    ------
    UsageError
        If the text is neither.
    """
    default = DEFAULT_SEQUENCES if gpu is None else float(default_sequences(gpu))
    if _is_command_line(text):
        return _Line.of(text).configuration(default)
    degrees: dict[str, int] = {}
    batch: float | None = None
    # As select prints it, or '2 x TP4 B200': the limit is that of one replica.
    told = re.fullmatch(
        rf"(?:({_WHOLE}) ?[x×] ?)?(TP(?:(?!DP).)*?),? (?:batch limit |B[ =]?)({_WHOLE})",
        text.strip(),
        re.IGNORECASE,
    )
    if told:
        replicas = int(told[1] or 1)
        text = f"{told[2]} DP{replicas} B{int(told[3]) * replicas}"
    elif told := re.fullmatch(
        rf"({_WHOLE}) ?[x×] ?(TP(?:(?!DP|B).)*)", text.strip(), re.IGNORECASE
    ):
        text = f"{told[2]} DP{told[1]}"
    for word in re.split(r"[\s,+/]+|(?<=\d)[x×*](?=[A-Za-z])", text.strip()):
        match = re.fullmatch(rf"(TP|PP|EP|DP|B)[ =]?({_WHOLE})", word, re.IGNORECASE)
        if not match:
            raise UsageError(
                "--current must be a layout and batch limit such as 'TP8 B256' or '4 x TP2 B128', "
                "or the command line of vLLM, SGLang or TensorRT-LLM; "
                f"{word[:60]!r} is no part of one"
            )
        name, value = match[1].upper(), int(match[2])
        if name == "B":
            batch = float(value)
        else:
            degrees[_KNOBS[name]] = value
    replicas = degrees.get("data_parallel", 1)
    if batch is not None and batch % replicas:
        tp, each = degrees.get("tensor_parallel", 1), max(int(batch // replicas), 1)
        raise UsageError(
            f"--current: B{batch:g} beside DP{replicas} is the limit of all {replicas} replicas "
            f"together, {batch / replicas:.3g} each, and it must be a whole number each: say that "
            f"of one replica, as in '{replicas} x TP{tp} B{each}'"
        )
    return Configuration(**degrees, batch_size=batch or default * replicas)


def read_running(text: str, llm: Llm, gpu: Gpu, precision: Precision) -> Running:
    """Read what runs today, beside the LLM, GPU type and number format that are asked about.

    A short name says nothing of these, so they are those of the question. A command line says its
    own: the LLM must be the one asked about.

    Raises
    ------
    UsageError
        If it is neither, serves another LLM, or says something that cannot be taken into account.
    """
    if not _is_command_line(text):
        return Running(configuration=read_configuration(text, gpu))
    line = _Line.of(text)
    configuration = line.configuration(float(default_sequences(gpu)))
    notes = []
    stated = line.precision(llm)
    if stated is None and line.llm:
        notes.append(
            f"What runs today serves {line.llm}, which no catalog knows: it is taken for {llm.id} "
            f"in {precision.id}."
        )
    if line.ignored:
        notes.append(
            "Of what runs today these options are not taken into account: "
            f"{', '.join(dict.fromkeys(line.ignored))}."
        )
    own = stated or precision
    if stated is not None or "kv" in line.said:
        # Where its cache is not spoken of, that is in the number format's own.
        bits = line.kv_bits
        own = catalog.precision(own.id)
        own = own if bits is None else replace(own, kv_bits=bits)
    return Running(
        configuration=configuration,
        precision=own,
        memory_share_ratio=line.memory_share,
        notes=tuple(notes),
    )


def _is_command_line(text: str) -> bool:
    return re.search(r"--|\bserve\b", text) is not None


# ----------------------------------------------------------------------- command lines

#: Options by what they say, as vLLM, SGLang and TensorRT-LLM call them.
_SAYS = {
    "tensor-parallel-size": "tensor", "tp": "tensor", "tp-size": "tensor",
    "pipeline-parallel-size": "pipeline", "pp": "pipeline", "pp-size": "pipeline",
    "data-parallel-size": "data", "dp": "data", "dp-size": "data",
    "expert-parallel-size": "experts", "ep-size": "experts", "ep": "experts",
    "enable-expert-parallel": "spread",
    "enable-dp-attention": "attention",
    "max-num-seqs": "batch", "max-running-requests": "batch", "max-batch-size": "batch",
    "model": "model", "model-path": "model",
    "quantization": "quantization", "q": "quantization",
    "dtype": "dtype",
    "kv-cache-dtype": "kv",
    "gpu-memory-utilization": "memory", "mem-fraction-static": "memory",
    "config": "file", "extra-llm-api-options": "file",
}  # fmt: skip
_DEGREES = ("tensor", "pipeline", "data", "experts", "batch")
#: Options that change no joules of a request.
_HARMLESS = """
allow-credentials allowed-headers allowed-methods allowed-origins allowed-local-media-path
api-key api-server-count backend chat-template chat-template-content-format code-revision
collect-detailed-traces context-length data-parallel-address data-parallel-backend
data-parallel-hybrid-lb data-parallel-rank data-parallel-rpc-port data-parallel-size-local
data-parallel-start-rank device disable-access-log-for-endpoints disable-fastapi-docs
disable-frontend-multiprocessing disable-log-requests disable-log-stats
disable-uvicorn-access-log dist-init-addr distributed-executor-backend download-dir
enable-auto-tool-choice enable-force-include-usage enable-log-outputs enable-log-requests
enable-metrics enable-prompt-tokens-details enable-reasoning enable-request-id-headers
enable-server-load-tracking enable-ssl-refresh exclude-tools-when-tool-choice-none
file-storage-path generation-config grammar-backend guided-decoding-backend
h11-max-header-count h11-max-incomplete-event-size headless hf-config-path hf-token host
ignore-patterns limit-mm-per-prompt load-format log-config-file log-level log-level-http
log-requests log-requests-level master-addr master-port max-log-len max-logprobs max-model-len
max-seq-len media-io-kwargs middleware model-loader-extra-config nccl-port nnodes node-rank
num-postprocess-workers otlp-traces-endpoint override-generation-config port random-seed
reasoning-parser response-role return-tokens-as-token-ids revision root-path seed
served-model-name show-hidden-metrics-for-version show-time-cost skip-tokenizer-init
ssl-ca-certs ssl-cert-reqs ssl-certfile ssl-keyfile tokenizer tokenizer-mode tokenizer-path
tokenizer-revision tokenizer-worker-num tool-call-parser tool-parser-plugin tool-server
trust-remote-code trust-request-chat-template uvicorn-log-level uds use-tqdm-on-load
warmups watchdog-timeout
"""
#: Harmless options, and those that say something, which take no value.
_ALONE = """
allow-credentials data-parallel-hybrid-lb disable-fastapi-docs disable-log-requests
disable-frontend-multiprocessing disable-log-stats disable-uvicorn-access-log
enable-auto-tool-choice enable-dp-attention enable-expert-parallel enable-force-include-usage
enable-log-outputs enable-log-requests enable-metrics enable-prompt-tokens-details
enable-reasoning enable-request-id-headers enable-server-load-tracking enable-ssl-refresh
headless log-requests return-tokens-as-token-ids show-time-cost skip-tokenizer-init
trust-remote-code trust-request-chat-template
enforce-eager enable-prefix-caching no-enable-prefix-caching enable-chunked-prefill
no-enable-chunked-prefill disable-radix-cache disable-cuda-graph async-scheduling
disable-custom-all-reduce enable-torch-compile enable-lora enable-eplb enable-sleep-mode
calculate-kv-scales
"""
#: Formats of weights by the engine's name; those that name the container only say none.
_QUANTIZATIONS = {
    "awq": "awq-int4", "awq-marlin": "awq-int4",
    "gptq": "gptq-int4", "gptq-marlin": "gptq-int4", "moe-wna16": "int4",
    "bitsandbytes": "nf4", "hqq": "hqq-int4", "modelopt": "fp8", "modelopt-fp8": "fp8",
    "modelopt-fp4": "nvfp4", "fbgemm-fp8": "fp8", "ptpc-fp8": "fp8", "w8a8-fp8": "fp8",
    "w8a8-int8": "int8", "experts-int8": "w8a16",
}  # fmt: skip
_CONTAINERS = ("compressed-tensors", "quark", "auto-round", "inc", "torchao", "gguf")
_TYPES = {"half": "fp16", "float16": "fp16", "bfloat16": "bf16", "float": "fp32",
          "float32": "fp32"}  # fmt: skip


@dataclass(kw_only=True)
class _Line:
    """The command line of an engine: what its options say, and those that are left over."""

    engine: str
    said: dict[str, str] = field(default_factory=dict)
    named: dict[str, str] = field(default_factory=dict)  # how an option was written
    ignored: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, text: str) -> _Line:
        """Read the words of a command line."""
        try:
            words = shlex.split(text.replace("\\\n", " "))
        except ValueError as error:
            raise UsageError(
                f"--current is no command line that a shell could read: {error}"
            ) from error
        engine = "sglang" if "sglang" in text else "trtllm" if "trtllm" in text else "vllm"
        line = cls(engine=engine)
        start = _start(words)
        line._read(words[start:], launched=start > 0)
        if "file" in line.said:
            raise UsageError(
                f"--current: {line.named['file']} names a file, which is not read: give its options"
            )
        return line

    def _read(self, words: Sequence[str], *, launched: bool) -> None:
        """Sort options into those that say something, harmless ones, and all others."""
        i = 0
        while i < len(words):
            word = words[i]
            i += 1
            if not _is_option(word):
                if launched:  # what is no option and no value of one is the LLM
                    self.said.setdefault("model", word)
                continue
            option, _, value = word.partition("=")
            name = option.lstrip("-").replace("_", "-").lower()
            says = _SAYS.get(name)
            if name == "ep" and self.engine == "vllm":
                says = "spread"
            alone = name in _ALONE.split() or says in ("spread", "attention")
            if not value and not alone and i < len(words) and not _is_option(words[i]):
                value = words[i]
                i += 1
            if says is not None:
                self.said[says], self.named[says] = value, option
            elif name not in _HARMLESS.split():
                self.ignored.append(option)

    @property
    def llm(self) -> str:
        """What it serves; empty where that is not said."""
        return self.said.get("model", "")

    def configuration(self, default: float) -> Configuration:
        """Layout and batch limit of all replicas."""
        numbers = {name: self._whole(name) for name in _DEGREES if name in self.said}
        tensor, replicas = numbers.get("tensor", 1), numbers.get("data", 1)
        batch = float(numbers.get("batch", default if self.engine == "vllm" else OWN_SEQUENCES))
        experts = numbers.get("experts", 1)
        if "spread" in self.said:
            experts = tensor * replicas
        if "attention" in self.said and replicas > 1:
            # Of SGLang's attention in data parallel both are of all replicas together.
            if tensor % replicas:
                raise UsageError(
                    f"--current: with --enable-dp-attention {self.named['tensor']} must be a "
                    f"multiple of the {replicas} replicas, not {tensor}"
                    if "tensor" in self.named
                    else "--current: --enable-dp-attention needs --tp-size, that of all replicas"
                )
            tensor //= replicas
            batch = max(batch // replicas, 1.0)
        return Configuration(
            tensor_parallel=tensor,
            pipeline_parallel=numbers.get("pipeline", 1),
            data_parallel=replicas,
            expert_parallel=experts,
            batch_size=batch * replicas,
        )

    def _whole(self, name: str) -> int:
        value = self.said[name]
        if not re.fullmatch(_WHOLE, value):
            raise UsageError(
                f"--current: {self.named[name]} must be a whole number from 1 to 999999999, not "
                f"{value[:60]!r}"
            )
        return int(value)

    def precision(self, llm: Llm) -> Precision | None:
        """Number format of the LLM; None where it does not follow, as of a folder's name.

        Raises
        ------
        UsageError
            If another LLM is served, or in a format that has no name here.
        """
        found = _known(self.llm)
        if found is not None and found[0] != llm.id:
            raise UsageError(
                f"--current serves {found[0]}, and the question is about {llm.id}: ask about the "
                "LLM that runs"
            )
        stated = found[1] if found else None
        value = self.said.get("quantization", "").replace("_", "-").lower()
        if value and value != "none":
            if value in _CONTAINERS:
                if stated is None:
                    raise UsageError(
                        f"--current: {self.named['quantization']} {value} does not say in which "
                        "number format: name a checkpoint that does, as in one that ends in -FP8"
                    )
                return catalog.checkpoint_precision(self.llm)
            given = _format(value)
            if stated is not None:
                # A checkpoint's own name says more than the method that reads it.
                return catalog.precision(stated)
            return catalog.checkpoint_precision(llm.id, given.id)
        kind = self.said.get("dtype", "auto").lower()
        if stated is None and kind in ("float", "float32"):
            return catalog.precision(_TYPES[kind])
        if kind not in (*_TYPES, "auto"):
            raise UsageError(
                f"--current: --dtype must be auto or one of {', '.join(_TYPES)}, not {kind[:60]!r}"
            )
        return None if found is None else catalog.precision(stated or llm.native_precision)

    @property
    def kv_bits(self) -> float | None:
        """Bits of the cache's keys and values; None: those of the number format."""
        value = self.said.get("kv", "auto").lower()
        if value not in KV_BITS:
            raise UsageError(
                f"--current: --kv-cache-dtype must be one of {', '.join(KV_BITS)}, not "
                f"{value[:60]!r}"
            )
        return KV_BITS[value]

    @property
    def memory_share(self) -> float | None:
        """Share of the memory that the engine may use; None: that of the question."""
        if "memory" not in self.said:
            return Gpu.memory_share_ratio if self.engine == "vllm" and self.llm else None
        value = self.said["memory"]
        if not re.fullmatch(r"\d*\.?\d+|\d+\.", value) or not 0.0 < float(value) <= 1.0:
            raise UsageError(
                f"--current: {self.named['memory']} must be above 0, up to 1, not {value[:60]!r}"
            )
        return float(value)


def _is_option(word: str) -> bool:
    return re.match(r"--?[A-Za-z]", word) is not None


def _start(words: Sequence[str]) -> int:
    """Where what the engine is told begins: behind what starts it."""
    for i, word in enumerate(words):
        if word in ("serve", "trtllm-serve") or re.search(
            r"sglang\.launch_server|api_server|vllm/vllm-|/sglang:", word
        ):
            after = i + 1
            if word == "trtllm-serve" and words[after : after + 1] == ["serve"]:
                after += 1
            return after
    return 0


def _known(name: str) -> tuple[str, str | None] | None:
    """Id of an LLM and the format that its name states; None where no catalog has it."""
    for tried in (name, name.rstrip("/").rpartition("/")[2]):
        try:
            return catalog.split_precision(tried) if tried else None
        except UnknownNameError:
            continue
    return None


def _format(value: str) -> Precision:
    try:
        return catalog.precision(_QUANTIZATIONS.get(value, value))
    except UnknownNameError as error:
        raise UsageError(
            f"--current: --quantization {value[:60]} is no number format that the catalog knows"
        ) from error
