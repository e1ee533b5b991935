"""ML.ENERGY leaderboard v3: one JSON file for each LLM and task.

Source: github.com/ml-energy/leaderboard, ``models/*.json``; what the fields mean was read in
the benchmark itself, github.com/ml-energy/benchmark. See ``docs/data-format.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from energylens import files
from energylens.errors import ArtefactError
from energylens.importers.collecting import Collector, Fields, Imported, Unusable
from energylens.importers.lengths import Lengths, TaskLengths
from energylens.records import Boundary, Source

#: The engine of every v3 run, as the benchmark pins its container.
ENGINE, ENGINE_VERSION = "vllm", "0.11.1"

#: How far figures of a file that say the same may be apart.
AGREEMENT_RATIO = 0.01

#: A frame of the videos at their own size: 1280 x 720 in one half of the data set's sources, about
#: 640 x 480 in the other, so 0.62 megapixels; 32 x 32 pixels of two frames make a token.
_QWEN_TOKENS_PER_FRAME = 300

#: What the prompts of each task measure; docs/data-format.md says more.
TASKS: Mapping[str, TaskLengths] = {
    "lm-arena-chat": TaskLengths(
        text_tokens=634,
        grounds="mean published by ML.ENERGY (blog on leaderboard v3.0, 2026-01-13): earlier "
        "turns of a conversation are part of the prompt",
    ),
    "gpqa": TaskLengths(
        text_tokens=224,
        grounds="mean published by ML.ENERGY (same blog); GPQA diamond, 198 questions",
    ),
    "sourcegraph-fim": TaskLengths(
        text_tokens=2000,
        grounds="no mean is published; from latencies: the time that prefills take from each "
        "request is 3.3 times that of lm-arena-chat for the same architecture on one H100",
    ),
    "image-chat": TaskLengths(
        text_tokens=100,
        images=1,
        vision_tokens=1024,
        grounds="94 tokens a first turn over 1000 requests of VisionArena-Chat "
        "(vllm-project/vllm pull request 15748), with a chat template",
    ),
    "video-chat": TaskLengths(
        text_tokens=45,
        frames=32,
        vision_tokens=32 * 256,
        encoded={
            # The benchmark writes its 32 frames as a video of 30 frames a second; Qwen3-VL's
            # processor then samples 2 a second, 4 at least. Qwen3-Omni takes all.
            "Qwen/Qwen3-VL-": (4, _QWEN_TOKENS_PER_FRAME),
            "Qwen/Qwen3-Omni-": (32, _QWEN_TOKENS_PER_FRAME),
        },
        grounds="one sentence that asks for a caption (LLaVA-Video-178K), with a chat template",
    ),
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
        The folder ``models``, the one that holds it, or one of its files.
    assume_input_tokens : mapping of str to float
        Text tokens of a prompt by task, in place of `TASKS`.
    assume_vision_tokens : mapping of str to float
        Vision tokens of a request by task, in place of what the LLM's tower makes.

    Raises
    ------
    ArtefactError
        If there is no such file, or one is not JSON of this layout.
    InputError
        If no row can be used.
    UsageError
        If an assumption is made for a task that no row has.
    """
    path = Path(path)
    folder = path / "models" if (path / "models").is_dir() else path
    paths = sorted(folder.glob("*.json")) if folder.is_dir() else [folder]
    if not paths:
        raise ArtefactError(f"{path} must hold models/*.json or *.json of ML.ENERGY v3.")
    return parse(
        {p.name: files.read_json(p) for p in paths},
        str(path),
        assume_input_tokens=assume_input_tokens,
        assume_vision_tokens=assume_vision_tokens,
    )


def parse(
    documents: Mapping[str, object],
    name: str,
    *,
    assume_input_tokens: Mapping[str, float],
    assume_vision_tokens: Mapping[str, float],
) -> Imported:
    """Read result files from memory: JSON documents by file name. As `read` otherwise."""
    rows = Collector(name)
    lengths = Lengths(
        TASKS, assume_input_tokens=assume_input_tokens, assume_vision_tokens=assume_vision_tokens
    )
    for file_name, document in documents.items():
        if not isinstance(document, Mapping) or not isinstance(
            document.get("configurations"), list
        ):
            raise ArtefactError(
                f"{file_name} is no result file of ML.ENERGY v3: it must be an object with a "
                "list of configurations."
            )
        for number, configuration in enumerate(document["configurations"], 1):
            where = f"{file_name} configuration {number}"
            with rows.row(where):
                cells = _cells(Fields(document), Fields(configuration), lengths)
                rows.add(where, cells | {"origin": f"ML.ENERGY v3 {file_name}"})
    return rows.finish(lengths.finish())


def _cells(head: Fields, row: Fields, lengths: Lengths) -> dict[str, object]:
    llm, output_tokens = head.text("model_id"), row.number("avg_output_len")
    energy_j = row.number("energy_per_request_joules")
    energy_per_token_j = row.number("energy_per_token_joules")
    power_w = row.number("avg_power_watts")
    tokens_per_s = row.number("output_throughput_tokens_per_sec")
    _agree(energy_j, energy_per_token_j * output_tokens, "energy_per_token_joules x avg_output_len")
    _agree(energy_per_token_j, power_w / tokens_per_s, "avg_power_watts / output_throughput")
    running = row.number("avg_batch_size")
    return {
        "llm": llm,
        "gpu": row.text("gpu_model"),
        "precision": head.text("weight_precision"),
        **_layout(row),
        **lengths.cells(head.text("task"), llm),
        "batch_size": row.number("max_num_seqs"),
        "mean_batch_size": running,
        "output_tokens": output_tokens,
        "energy_per_request_j": energy_j,
        # What the leaderboard calls TPOT is the median between two tokens, not the mean per token.
        "median_itl_s": row.number("median_itl_ms") / 1000,
        # Little's law: in a steady window the mean time in the engine is what runs over
        # what completes in a second.
        "request_latency_s": running * output_tokens / tokens_per_s,
        "average_power_w": power_w,
        "boundary": Boundary.ACTIVE_GPUS.value,
        "engine": ENGINE,
        "engine_version": ENGINE_VERSION,
        "source": Source.PUBLISHED.value,
    }


def _agree(value: float, other: float, meaning: str) -> None:
    if abs(other - value) > AGREEMENT_RATIO * value:
        raise Unusable(f"its energy is not {meaning}, which it must be within 1 %")


def _layout(row: Fields) -> dict[str, object]:
    """The real layout: the files call attention-parallel MoE deployments by their experts alone.

    ``tensor_parallel n`` is TP n. ``expert_parallel n`` with ``data_parallel 1`` is what
    ``--tensor-parallel-size n --enable-expert-parallel`` gives: attention TP n, experts EP n.
    ``expert_parallel n`` with ``data_parallel n`` has attention DP n instead.
    """
    degrees = row.inner("parallelization")
    tensor = degrees.known("tensor_parallel") or 1.0
    expert = degrees.known("expert_parallel") or 1.0
    data = degrees.known("data_parallel") or 1.0
    if expert > 1 and data == 1 and tensor == 1:
        tensor = expert
    if tensor * data != row.number("num_gpus"):
        raise Unusable("its num_gpus is not the product of its degrees")
    return {"tensor_parallel": tensor, "expert_parallel": expert, "data_parallel": data}
