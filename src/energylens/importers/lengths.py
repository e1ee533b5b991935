"""Prompt lengths for tasks of sources that publish none: the assumptions, and their grounds.

A row that rests on one of these says so in its column ``assumed``. Text tokens are those of
the request with its chat template; the vision tokens of a request depend on the tower of the
LLM and come from the catalog where that knows them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from energylens import catalog
from energylens.errors import InputError
from energylens.importers.collecting import Unusable, refuse_idle_assumptions
from energylens.records import Modality


@dataclass(frozen=True, kw_only=True)
class TaskLengths:
    """What a request of a task brings, where its source does not say.

    ``vision_tokens`` is for towers that the catalog has no token count of. ``encoded`` gives, by
    how the name of an LLM begins, the frames that really reach its tower and the tokens of each.
    """

    text_tokens: float
    grounds: str
    images: float = 0.0
    frames: float = 0.0
    vision_tokens: float = 0.0
    encoded: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def modality(self) -> Modality:
        """What requests carry besides text."""
        if self.frames:
            return Modality.VIDEO
        return Modality.IMAGE if self.images else Modality.TEXT


class Lengths:
    """Defaults by task, with what the user assumes instead; gives the cells of a row."""

    def __init__(
        self,
        defaults: Mapping[str, TaskLengths],
        *,
        assume_input_tokens: Mapping[str, float],
        assume_vision_tokens: Mapping[str, float],
    ) -> None:
        self.defaults = defaults
        self.text = assume_input_tokens
        self.vision = assume_vision_tokens
        self.seen: dict[str, Modality] = {}

    def cells(self, task: str, llm: str) -> dict[str, object]:
        """Cells that describe the prompt of one request of a task to an LLM.

        Raises
        ------
        Unusable
            If nothing is known or assumed of the task.
        """
        known = self.defaults.get(task)
        modality = known.modality if known else Modality.TEXT
        self.seen[task] = modality
        text = self.text.get(task, known.text_tokens if known else None)
        if text is None:
            raise Unusable(
                f"the prompts of task {task!r} are of unknown length: "
                f"give --assume-input-tokens {task}=N"
            )
        cells: dict[str, object] = {"task": task, "modality": modality.value}
        if known is None or modality is Modality.TEXT:
            return cells | {"input_tokens": text, "assumed": "input_tokens"}
        frames, made, assumed = _encoded(llm, known)
        vision = self.vision.get(task, made)
        return cells | {
            "input_tokens": text + vision,
            "vision_tokens": vision,
            "images": known.images,
            "frames": frames,
            "assumed": f"input_tokens vision_tokens{assumed}",
        }

    def finish(self) -> list[str]:
        """Say what was assumed, after all rows.

        Raises
        ------
        UsageError
            If an assumption was made for a task that no row has.
        """
        refuse_idle_assumptions("--assume-input-tokens", self.text, list(self.seen))
        seeing = [task for task, modality in self.seen.items() if modality is not Modality.TEXT]
        refuse_idle_assumptions("--assume-vision-tokens", self.vision, seeing)
        told = []
        for task in sorted(self.seen):
            known = self.defaults.get(task)
            text = self.text.get(task, known.text_tokens if known else None)
            if text is None:
                continue
            seen = ""
            if task in seeing:
                given = self.vision.get(task)
                seen = f" + {given:g} vision" if given else " + the tower's vision"
            told.append(f"{task} {text:g} text{seen}")
        return [f"Prompt lengths are assumed, in tokens a request: {'; '.join(told)}."]


def _encoded(llm: str, task: TaskLengths) -> tuple[float, float, str]:
    """Frames that the tower encodes, vision tokens of a request, and what else that assumes."""
    for prefix, (frames, tokens) in task.encoded.items():
        if llm.startswith(prefix):
            return frames, frames * tokens, " frames"
    try:
        tower = catalog.llm(llm).vision
    except InputError:
        tower = None  # the table refuses the row by this name
    each = (tower.tokens_per_frame if task.frames else tower.tokens_per_image) if tower else None
    made = each * (task.frames or task.images) if each else task.vision_tokens
    return task.frames, made, ""
