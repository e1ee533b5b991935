"""Between a choice and an engine: read what runs today, write what to run."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable

from energylens import catalog
from energylens.deciding import Entry
from energylens.errors import UsageError
from energylens.records import Configuration

DEFAULT_SEQUENCES = 256.0  # max_num_seqs where a command line says nothing (vLLM 0.11 on a server)
TOKENS_PER_PASS = 8192
PORT = 8000

# --------------------------------------------------------------------- what runs today

_WHOLE = "0{0,9}[1-9][0-9]{0,8}"
_KNOBS = {"TP": "tensor_parallel", "PP": "pipeline_parallel", "EP": "expert_parallel"}
_KNOBS |= {"DP": "data_parallel"}
_FLAGS = {
    "tensor-parallel-size": "tensor_parallel",
    "tp": "tensor_parallel",
    "pipeline-parallel-size": "pipeline_parallel",
    "pp": "pipeline_parallel",
    "data-parallel-size": "data_parallel",
    "dp": "data_parallel",
    "max-num-seqs": "batch",
}


def read_configuration(text: str) -> Configuration:
    """Read ``TP8 B256``, or the command line of ``vllm serve``.

    The batch limit of a command line is that of one replica; B is that of all together, as
    elsewhere.

    Raises
    ------
    UsageError
        If the text is neither.
    """
    if re.search(r"--|\bserve\b", text):
        return _of_command_line(text)
    degrees: dict[str, int] = {}
    batch: float | None = None
    # As select prints it: '2 x TP4, batch limit 200', the limit that of one replica.
    told = re.fullmatch(rf"(?:({_WHOLE}) [x×] )?(TP.*), batch limit ({_WHOLE})", text.strip())
    if told:
        replicas = int(told[1] or 1)
        text = f"{told[2]} DP{replicas} B{int(told[3]) * replicas}"
    for word in re.split(r"[\s,+/]+|(?<=\d)[x×*](?=[A-Za-z])", text.strip()):
        match = re.fullmatch(rf"(TP|PP|EP|DP|B)[ =]?({_WHOLE})", word, re.IGNORECASE)
        if not match:
            raise UsageError(
                "--current must be a layout and batch limit such as 'TP8 B256' or 'TP2 DP4 B512', "
                f"or a vllm serve command line; {word[:60]!r} is no part of one"
            )
        name, value = match[1].upper(), int(match[2])
        if name == "B":
            batch = float(value)
        else:
            degrees[_KNOBS[name]] = value
    replicas = degrees.get("data_parallel", 1)
    return Configuration(**degrees, batch_size=batch or DEFAULT_SEQUENCES * replicas)


def _of_command_line(text: str) -> Configuration:
    try:
        words = shlex.split(text.replace("\\\n", " "))
    except ValueError as error:
        raise UsageError(
            f"--current is no command line that a shell could read: {error}"
        ) from error
    degrees = {"tensor_parallel": 1, "pipeline_parallel": 1, "data_parallel": 1}
    batch, experts = DEFAULT_SEQUENCES, False
    for i, word in enumerate(words):
        if not word.startswith("-"):
            continue
        name, _, value = word.lstrip("-").replace("_", "-").partition("=")
        if name in ("enable-expert-parallel", "ep"):
            experts = True
        if name not in _FLAGS:
            continue
        value = value or (words[i + 1] if i + 1 < len(words) else "")
        if not re.fullmatch(_WHOLE, value):
            raise UsageError(
                f"--current: --{name} must be a whole number from 1 to 999999999, not "
                f"{value[:60]!r}"
            )
        if _FLAGS[name] == "batch":
            batch = float(value)
        else:
            degrees[_FLAGS[name]] = int(value)
    replicas = degrees["data_parallel"]
    spread = degrees["tensor_parallel"] * replicas if experts else 1
    return Configuration(**degrees, expert_parallel=spread, batch_size=batch * replicas)


# ------------------------------------------------------------------------- what to run


def _vllm_arguments(llm: str, entry: Entry, *, replicas: bool) -> list[str]:
    """Arguments of ``vllm serve``, of one replica or of all (0.11)."""
    c = entry.configuration
    name, narrowed, _ = _checkpoint(llm, entry.precision)
    arguments = [name]
    arguments += ["--tensor-parallel-size", f"{c.tensor_parallel}"]
    if c.pipeline_parallel > 1:
        arguments += ["--pipeline-parallel-size", f"{c.pipeline_parallel}"]
    if replicas and c.data_parallel > 1:
        arguments += ["--data-parallel-size", f"{c.data_parallel}"]
    if c.expert_parallel > 1:
        arguments += ["--enable-expert-parallel"]
    arguments += ["--max-num-seqs", f"{max(int(entry.batch_limit), 1)}"]
    arguments += ["--max-num-batched-tokens", f"{TOKENS_PER_PASS}"]
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


def vllm(llm: str, entry: Entry) -> str:
    """Command line of ``vllm serve``."""
    return _command(["vllm", "serve", *_vllm_arguments(llm, entry, replicas=True)])


def sglang(llm: str, entry: Entry) -> str:
    """Command line of ``python -m sglang.launch_server``; it divides the limit over replicas."""
    c = entry.configuration
    name, narrowed, _ = _checkpoint(llm, entry.precision)
    words = ["python", "-m", "sglang.launch_server", "--model-path", name]
    words += ["--tp-size", f"{c.tensor_parallel}"]
    words += ["--pp-size", f"{c.pipeline_parallel}"] if c.pipeline_parallel > 1 else []
    words += ["--dp-size", f"{c.data_parallel}"] if c.data_parallel > 1 else []
    words += ["--ep-size", f"{c.expert_parallel}"] if c.expert_parallel > 1 else []
    limit = max(int(entry.batch_limit), 1) * c.data_parallel
    words += ["--max-running-requests", f"{limit}", "--chunked-prefill-size", f"{TOKENS_PER_PASS}"]
    return _command(words + (["--quantization", "fp8"] if narrowed else []))


def trtllm(llm: str, entry: Entry) -> str:
    """Command line of ``trtllm-serve``, which serves one replica."""
    c = entry.configuration
    name, narrowed, _ = _checkpoint(llm, entry.precision)
    words = ["trtllm-serve", name, "--tp_size", f"{c.tensor_parallel}"]
    words += ["--pp_size", f"{c.pipeline_parallel}"] if c.pipeline_parallel > 1 else []
    words += ["--ep_size", f"{c.expert_parallel}"] if c.expert_parallel > 1 else []
    words += ["--max_batch_size", f"{max(int(entry.batch_limit), 1)}"]
    words += ["--max_num_tokens", f"{TOKENS_PER_PASS}"]
    text = _command(words)
    if c.data_parallel > 1:
        text = f"# {c.data_parallel} of these, behind a load balancer\n{text}"
    if narrowed:
        text = f"# Put a checkpoint in {entry.precision} in place of {name}.\n{text}"
    return text


def kubernetes(llm: str, entry: Entry) -> str:
    """A Deployment with one replica a pod."""
    c = entry.configuration
    gpus = c.tensor_parallel * c.pipeline_parallel
    shared = c.expert_parallel > c.tensor_parallel  # experts spread over replicas: one pod
    replicas = 1 if shared else c.data_parallel
    gpus = gpus * c.data_parallel if shared else gpus
    arguments = json.dumps(_vllm_arguments(llm, entry, replicas=shared))
    name = re.sub(r"[^a-z0-9]+", "-", llm.lower()).strip("-")[:50]
    return f"""\
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
          image: vllm/vllm-openai:v0.11.1
          args: {arguments}
          ports: [{{containerPort: {PORT}}}]
          resources:
            limits: {{nvidia.com/gpu: {gpus}}}"""


def compose(llm: str, entry: Entry) -> str:
    """A service for Docker Compose, all replicas in one server."""
    arguments = json.dumps(_vllm_arguments(llm, entry, replicas=True))
    return f"""\
services:
  vllm:
    image: vllm/vllm-openai:v0.11.1
    command: {arguments}
    ports: ["{PORT}:{PORT}"]
    ipc: host
    deploy:
      resources:
        reservations:
          devices: [{{driver: nvidia, count: {entry.configuration.gpus}, capabilities: [gpu]}}]"""


EMITTERS: dict[str, Callable[[str, Entry], str]] = {
    "vllm": vllm,
    "sglang": sglang,
    "trtllm": trtllm,
    "kubernetes": kubernetes,
    "compose": compose,
}


#: What names an image, or an engine, of CUDA.
CUDA = ("trtllm", "kubernetes", "compose")
OTHER_MAKERS = r"MI\d|Gaudi|EPYC|Xeon"


def emit(kind: str, llm: str, entry: Entry) -> str:
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
    text = _checkpoint(llm, entry.precision)[2] + EMITTERS[kind](llm, entry)
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
