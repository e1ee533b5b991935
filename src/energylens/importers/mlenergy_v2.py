"""ML.ENERGY leaderboard v2: one JSON file for each configuration, in folders by task and GPU.

Source: github.com/ml-energy/leaderboard-v2, ``data/llm_text_generation`` and
``data/mllm_text_generation``. See ``docs/data-format.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from energylens import files
from energylens.errors import ArtefactError
from energylens.importers.collecting import Collector, Fields, Imported, Unusable
from energylens.importers.lengths import Lengths, TaskLengths
from energylens.records import Boundary, Source

#: The engine of every v2 run, as the benchmark pins its container.
ENGINE, ENGINE_VERSION = "vllm", "0.5.4"

_SYSTEM = "a system prompt of 17 tokens and a chat template"

TASKS: Mapping[str, TaskLengths] = {
    "chat": TaskLengths(
        text_tokens=120,
        grounds="the benchmark's 500 first turns of ShareGPT average 350 characters (counted in "
        f"its own file), about 90 tokens; {_SYSTEM} come on top",
    ),
    "code": TaskLengths(
        text_tokens=140,
        grounds="HumanEval+ prompts average 450 characters (evalscope's statistics less its "
        "instruction), 3.2 a token of code; no template",
    ),
    "multimodal-chat": TaskLengths(
        text_tokens=80,
        images=1,
        vision_tokens=1024,
        grounds="all questions of a LLaVA-Instruct conversation in a row: four or five of about "
        f"12 tokens; {_SYSTEM} come on top. An estimate, no mean is published",
    ),
}

#: Folder of a task to its name here.
_FOLDERS: Mapping[tuple[str, str], str] = {
    ("llm_text_generation", "chat"): "chat",
    ("llm_text_generation", "code"): "code",
    ("mllm_text_generation", "chat"): "multimodal-chat",
}


def read(
    path: str | Path,
    *,
    assume_input_tokens: Mapping[str, float],
    assume_vision_tokens: Mapping[str, float],
) -> Imported:
    """Read a folder of result files.

    Parameters
    ----------
    path : str or Path
        The folder that holds ``llm_text_generation`` or ``mllm_text_generation``, or any folder
        below.
    assume_input_tokens : mapping of str to float
        Text tokens of a prompt by task, in place of `TASKS`.
    assume_vision_tokens : mapping of str to float
        Vision tokens of a request by task, in place of what the LLM's tower makes.

    Raises
    ------
    ArtefactError
        If there is no result file, or one is not JSON.
    InputError
        If no row can be used.
    UsageError
        If an assumption is made for a task that no row has.
    """
    folder = Path(path)
    paths = sorted(folder.rglob("bs*.json")) if folder.is_dir() else [folder]
    if not paths:
        raise ArtefactError(f"{path} must hold bs*+tp*+pp*.json files of ML.ENERGY v2.")
    rows = Collector(str(path))
    lengths = Lengths(
        TASKS, assume_input_tokens=assume_input_tokens, assume_vision_tokens=assume_vision_tokens
    )
    for result in paths:
        where = str(result.relative_to(folder)) if folder.is_dir() else result.name
        document = files.read_json(result)
        with rows.row(where):
            cells = _cells(Fields(document), _task(result), lengths)
            rows.add(where, cells | {"origin": f"ML.ENERGY v2 {where}"})
    return rows.finish(lengths.finish())


def _task(path: Path) -> str:
    parts = path.resolve().parts
    for pair in pairwise(parts):
        if pair in _FOLDERS:
            return _FOLDERS[pair]
    raise Unusable("it lies in no folder of a text generation task")


def _cells(row: Fields, task: str, lengths: Lengths) -> dict[str, object]:
    llm, output_tokens = row.text("Model"), row.number("Avg Output Tokens")
    energy_j, tokens_per_s = row.number("Energy/req (J)"), row.number("Token tput (tok/s)")
    running = row.number("Avg BS (reqs)")
    requests_per_s = tokens_per_s / output_tokens
    return {
        "llm": llm,
        "gpu": row.text("GPU"),
        "tensor_parallel": row.number("TP"),
        "pipeline_parallel": row.number("PP"),
        **lengths.cells(task, llm),
        # Already over all pipeline stages: vLLM 0.5.4 applies its limit, which names the file,
        # to each stage's own scheduler.
        "batch_size": row.number("Max BS (reqs)"),
        "mean_batch_size": running,
        "output_tokens": output_tokens,
        "energy_per_request_j": energy_j,
        "tpot_s": row.number("Avg TPOT (s)"),
        "request_latency_s": running / requests_per_s,  # Little's law
        "average_power_w": energy_j * requests_per_s,
        "boundary": Boundary.ACTIVE_GPUS.value,
        "engine": ENGINE,
        "engine_version": ENGINE_VERSION,
        "source": Source.PUBLISHED.value,
    }
