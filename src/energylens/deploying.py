"""Between a choice and an engine: write what to run."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from energylens import catalog
from energylens.capacity import TOKENS_PER_PASS, largest_batch
from energylens.decisions import Entry
from energylens.errors import UsageError
from energylens.records import Configuration, Gpu, Llm, Precision

VLLM_IMAGE = "vllm/vllm-openai:v0.11.1"
NODE_GPUS = 8  # beyond which replicas are servers of their own
LENGTH_STEP = 256  # tokens to which a shortened context is rounded down
ROOM = 1.1  # times what a sequence takes, that the cache must hold: memory is known to a tenth
PORT = 8000
SHARED_GIB = 16  # of /dev/shm


@dataclass(frozen=True, kw_only=True)
class _Told:
    """A choice, and what the engine is told of its LLM, GPU type and number format."""

    llm: str
    entry: Entry
    gpu: Gpu
    precision: Precision

    @property
    def apart(self) -> bool:
        """Whether replicas are servers of their own: of one server they would span nodes."""
        c = self.entry.configuration
        alone = c.expert_parallel <= c.tensor_parallel
        return c.data_parallel > 1 and c.gpus > NODE_GPUS and alone

    @property
    def limit(self) -> int:
        """Sequences of one replica."""
        return max(int(self.entry.batch_limit), 1)


def _longest(told: _Told) -> int | None:
    """Context that the cache of a replica holds, where it is shorter than that of the LLM.

    vLLM does not start where its cache is too small for one sequence as long as the LLM allows.
    """
    llm_id, _ = catalog.split_precision(told.llm)
    context, c = catalog.context_tokens(llm_id), told.entry.configuration
    if not context:
        return None
    limit = float(told.limit * c.data_parallel)
    return _held_tokens(catalog.llm(llm_id), told.gpu, told.precision, c, limit, context)


@lru_cache(maxsize=32)  # each engine's line of a choice asks, and a slider seldom moves the choice
def _held_tokens(
    llm: Llm, gpu: Gpu, precision: Precision, c: Configuration, limit: float, context: int
) -> int | None:
    lengths = np.append(np.arange(LENGTH_STEP, context, LENGTH_STEP, dtype=np.float64), context)
    held = largest_batch(
        llm,
        gpu,
        precision,
        **c.degrees,
        input_tokens=lengths,
        output_tokens=1.0,
        batch_size=limit,
    )
    fits = lengths[held / c.data_parallel >= ROOM]
    if not len(fits) or fits[-1] >= context:
        return None
    return int(fits[-1])


def _vllm_arguments(told: _Told, *, replicas: bool) -> list[str]:
    """Arguments of ``vllm serve``, of one replica or of all (0.11)."""
    c = told.entry.configuration
    name, narrowed, _ = _checkpoint(told.llm, told.entry.precision)
    arguments = [name]
    arguments += ["--tensor-parallel-size", f"{c.tensor_parallel}"]
    if c.pipeline_parallel > 1:
        arguments += ["--pipeline-parallel-size", f"{c.pipeline_parallel}"]
    if replicas and c.data_parallel > 1:
        arguments += ["--data-parallel-size", f"{c.data_parallel}"]
    if c.expert_parallel > 1:
        arguments += ["--enable-expert-parallel"]
    arguments += ["--max-num-seqs", f"{told.limit}"]
    arguments += ["--max-num-batched-tokens", f"{TOKENS_PER_PASS}"]
    if (longest := _longest(told)) is not None:
        arguments += ["--max-model-len", f"{longest}"]
    if told.gpu.memory_share_ratio != catalog.gpu(told.entry.gpu).memory_share_ratio:
        arguments += ["--gpu-memory-utilization", f"{told.gpu.memory_share_ratio:g}"]
    if told.precision.kv_bits != catalog.precision(told.entry.precision).kv_bits:
        arguments += ["--kv-cache-dtype", "fp8" if told.precision.kv_bits == 8 else "bfloat16"]
    return arguments + (["--quantization", "fp8"] if narrowed else [])


def _checkpoint(asked: str, precision: str) -> tuple[str, bool, str]:
    """What to load: its name, whether the engine narrows it to FP8, and what to look after."""
    llm_id, stated = catalog.split_precision(asked)
    llm, short = catalog.llm(llm_id), llm_id.rpartition("/")[2]
    if stated == precision:
        known = "/" not in asked and asked.casefold().startswith(short.casefold())
        return (llm_id + asked[len(short) :].upper() if known else asked), False, ""
    if precision == llm.native_precision:
        return llm_id, False, ""
    if precision in ("fp8", "fp8-block"):
        return llm_id, True, ""
    remark = f"# Put a checkpoint in {precision} in place of {llm_id}, which holds "
    return llm_id, False, f"{remark}{llm.native_precision}.\n"


def _command(words: list[str]) -> str:
    """One option a line."""
    lines, current = [], ""
    for word in words:
        if word.startswith("--") and current:
            lines.append(current)
            current = shlex.quote(word)
        else:
            current = f"{current} {shlex.quote(word)}".strip()
    return " \\\n  ".join([*lines, current])


def _each_alone(told: _Told, text: str) -> str:
    """Say how many of one replica's servers are meant."""
    return f"# {told.entry.configuration.data_parallel} of these, behind a load balancer\n{text}"


def vllm(told: _Told) -> str:
    """Command line of ``vllm serve``."""
    text = _command(["vllm", "serve", *_vllm_arguments(told, replicas=not told.apart)])
    return _each_alone(told, text) if told.apart else text


def sglang(told: _Told) -> str:
    """Command line of ``python -m sglang.launch_server``.

    ``--max-running-requests`` is that of one replica. Only with attention in data parallel, which
    spreads experts over replicas, is it that of all, and ``--tp-size`` counts all GPUs
    (``req_to_token_pool`` is sized so in SGLang 0.5).
    """
    c = told.entry.configuration
    name, narrowed, _ = _checkpoint(told.llm, told.entry.precision)
    spread = c.expert_parallel > c.tensor_parallel
    together = c.data_parallel if spread else 1
    words = ["python", "-m", "sglang.launch_server", "--model-path", name]
    words += ["--tp-size", f"{c.tensor_parallel * together}"]
    words += ["--pp-size", f"{c.pipeline_parallel}"] if c.pipeline_parallel > 1 else []
    if c.data_parallel > 1 and not told.apart:
        words += ["--dp-size", f"{c.data_parallel}"]
    words += ["--enable-dp-attention"] if spread else []
    words += ["--ep-size", f"{c.expert_parallel}"] if c.expert_parallel > 1 else []
    words += ["--max-running-requests", f"{told.limit * together}"]
    words += ["--chunked-prefill-size", f"{TOKENS_PER_PASS * together}"]
    text = _command(words + (["--quantization", "fp8"] if narrowed else []))
    return _each_alone(told, text) if told.apart else text


def trtllm(told: _Told) -> str:
    """Command line of ``trtllm-serve``, which serves one replica."""
    c = told.entry.configuration
    name, narrowed, _ = _checkpoint(told.llm, told.entry.precision)
    words = ["trtllm-serve", name, "--tp_size", f"{c.tensor_parallel}"]
    words += ["--pp_size", f"{c.pipeline_parallel}"] if c.pipeline_parallel > 1 else []
    words += ["--ep_size", f"{c.expert_parallel}"] if c.expert_parallel > 1 else []
    words += ["--max_batch_size", f"{told.limit}"]
    words += ["--max_num_tokens", f"{TOKENS_PER_PASS}"]
    text = _command(words)
    if c.data_parallel > 1:
        text = _each_alone(told, text)
    if narrowed:
        text = f"# Put a checkpoint in {told.entry.precision} in place of {name}.\n{text}"
    return text


def kubernetes(told: _Told) -> str:
    """A Deployment with one replica a pod, and the claim that keeps the weights."""
    c = told.entry.configuration
    gpus = c.tensor_parallel * c.pipeline_parallel
    shared = c.expert_parallel > c.tensor_parallel  # experts spread over replicas: one pod
    replicas = 1 if shared else c.data_parallel
    gpus = gpus * c.data_parallel if shared else gpus
    arguments = json.dumps(_vllm_arguments(told, replicas=shared))
    name = re.sub(r"[^a-z0-9]+", "-", told.llm.lower())[:50].strip("-")
    llm = catalog.llm(catalog.split_precision(told.llm)[0])
    bits = max(told.precision.weight_bits, catalog.precision(llm.native_precision).weight_bits)
    size = 20 + int(np.ceil(llm.total_parameters * bits / 8e9 / 10)) * 10
    return f"""\
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: {name}
spec:
  accessModes: [{"ReadWriteMany" if replicas > 1 else "ReadWriteOnce"}]
  resources:
    requests: {{storage: {size}Gi}}
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {name}
spec:
  replicas: {replicas}
  selector:
    matchLabels: {{app: {name}}}
  template:
    metadata:
      labels: {{app: {name}}}
    spec:
      containers:
        - name: vllm
          image: {VLLM_IMAGE}
          args: {arguments}
          env:
            - name: HF_TOKEN  # kubectl create secret generic hf-token --from-literal=token=...
              valueFrom:
                secretKeyRef: {{name: hf-token, key: token, optional: true}}
          ports: [{{containerPort: {PORT}}}]
          startupProbe:
            httpGet: {{path: /health, port: {PORT}}}
            periodSeconds: 10
            failureThreshold: 360
          readinessProbe:
            httpGet: {{path: /health, port: {PORT}}}
          resources:
            limits: {{nvidia.com/gpu: {gpus}}}
          volumeMounts:
            - {{name: weights, mountPath: /root/.cache/huggingface}}
            - {{name: shm, mountPath: /dev/shm}}
      volumes:
        - name: weights
          persistentVolumeClaim: {{claimName: {name}}}
        - name: shm  # processes of a replica pass tensors through it
          emptyDir: {{medium: Memory, sizeLimit: {SHARED_GIB}Gi}}"""


def compose(told: _Told) -> str:
    """A service for Docker Compose, all replicas in one server where one node has the GPUs."""
    c = told.entry.configuration
    arguments = json.dumps(_vllm_arguments(told, replicas=not told.apart))
    gpus = c.tensor_parallel * c.pipeline_parallel if told.apart else c.gpus
    text = f"""\
services:
  vllm:
    image: {VLLM_IMAGE}
    command: {arguments}
    ports: ["{PORT}:{PORT}"]
    ipc: host
    environment: ["HF_TOKEN=${{HF_TOKEN:-}}"]
    volumes: ["weights:/root/.cache/huggingface"]
    deploy:
      resources:
        reservations:
          devices: [{{driver: nvidia, count: {gpus}, capabilities: [gpu]}}]
volumes:
  weights:"""
    return _each_alone(told, text) if told.apart else text


EMITTERS: dict[str, Callable[[_Told], str]] = {
    "vllm": vllm,
    "sglang": sglang,
    "trtllm": trtllm,
    "kubernetes": kubernetes,
    "compose": compose,
}


#: What names an image, or an engine, of CUDA.
CUDA = ("trtllm", "kubernetes", "compose")
OTHER_MAKERS = r"MI\d|Gaudi|EPYC|Xeon"


def emit(
    kind: str,
    llm: str,
    entry: Entry,
    *,
    gpu: Gpu | None = None,
    precision: Precision | None = None,
) -> str:
    """Write the command line or manifest of a choice.

    Parameters
    ----------
    kind : {"vllm", "sglang", "trtllm", "kubernetes", "compose"}
    llm : str
        As asked for: a name of the catalog, with or without a precision suffix.

    Raises
    ------
    UsageError
        If there is no such kind, or the engine has no such layout.
    UnknownNameError
        If the LLM is in no catalog.
    """
    if kind not in EMITTERS:
        raise UsageError(f"--emit must be one of {', '.join(EMITTERS)}, not {kind!r}")
    if kind in CUDA and re.match(OTHER_MAKERS, entry.gpu):
        raise UsageError(
            f"--emit {kind} is for GPUs of NVIDIA, and the choice is {entry.gpu}: take "
            "--emit vllm or sglang, the command line inside the image of its maker"
        )
    c = entry.configuration
    whole = c.tensor_parallel * c.data_parallel
    if kind != "sglang" and c.expert_parallel not in (1, c.tensor_parallel, whole):
        raise UsageError(
            f"vLLM spreads experts over all {whole} GPUs or none, not over {c.expert_parallel}"
        )
    own_gpu, own = catalog.gpu(entry.gpu), catalog.precision(entry.precision)
    told = _Told(
        llm=llm,
        entry=entry,
        gpu=gpu if gpu is not None and gpu.id == own_gpu.id else own_gpu,
        precision=precision if precision is not None and precision.id == own.id else own,
    )
    text = _checkpoint(llm, entry.precision)[2] + EMITTERS[kind](told)
    return _held_down(c) + text


def _held_down(c: Configuration) -> str:
    """What no engine sets, and the joules of the choice rest on: as comments."""
    said = ""
    if c.power_cap_w is not None:
        said += f"# Before it starts, limit its GPUs, as root: nvidia-smi -pl {c.power_cap_w:g}\n"
    if c.clock_mhz is not None:
        clock = f"{c.clock_mhz:.0f}"
        said += f"# Before it starts, lock its GPUs, as root: nvidia-smi -lgc {clock},{clock}\n"
    return said
