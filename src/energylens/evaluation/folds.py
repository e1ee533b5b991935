"""Which rows are fitted to and which are judged: the protocols of the judge."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from energylens.cases import BoolArray, Cases, FloatArray, IntArray
from energylens.dataset import Dataset, StrArray, group_rows
from energylens.errors import UsageError
from energylens.evaluation.options import EvaluationOptions
from energylens.evaluation.scoring import Board
from energylens.records import Llm, Vision

DEFAULT_TRAIN = 50
SPLIT_TRAIN_RATIO = 0.8


@dataclass(frozen=True, kw_only=True, eq=False)
class Fold:
    """One fit and what is judged by it."""

    train: IntArray
    judged: IntArray  # rows whose joules are judged: none of them trained on
    scored: BoolArray  # scenarios whose choice is judged; shape (scenarios,)


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What a protocol varies: the training rows asked for, and what is given back or hidden."""

    train: int | None
    calibration: int = 0
    power_known: bool = True


@dataclass(frozen=True, kw_only=True, eq=False)
class Setting:
    """What the protocols draw their folds from."""

    dataset: Dataset
    board: Board
    strict: bool
    judged_side: BoolArray  # unseen-batch, unseen-length: rows on the judged side of the cut
    left_out: StrArray  # leave-one-out: what leaves together, of each row
    groups: StrArray  # what errors are summed up by besides

    @cached_property
    def rank(self) -> IntArray:
        """Place of each row by what it holds, so that draws do not depend on the table's order."""
        return np.argsort(self.dataset.by_content)

    def in_order(self, rows: IntArray) -> IntArray:
        """Sort rows by what they hold."""
        return rows[np.argsort(self.rank[rows], kind="stable")]


def _draw(
    setting: Setting, pool: IntArray, train: int | None, rng: np.random.Generator
) -> IntArray:
    """``train`` rows at random, or all. Draws of one generator state are nested."""
    if train is None:
        return pool
    if train > len(pool):
        raise UsageError(
            f"the training rows must fit in the rows that may be trained on ({len(pool)}); "
            f"given {train}: ask for fewer, or bring more rows"
        )
    return rng.permutation(setting.in_order(pool))[:train]


def _scenarios_within(setting: Setting, rows: IntArray) -> BoolArray:
    outside = np.ones(len(setting.dataset), dtype=np.bool_)
    outside[rows] = False
    return ~setting.board.touching(outside)


def _drawn(
    setting: Setting, rows: IntArray, condition: Condition, rng: np.random.Generator
) -> Iterator[Fold]:
    """Few-shot: rows drawn from all rows, every scenario scored, the other rows judged."""
    board, train = setting.board, condition.train or len(rows)
    scored = _scenarios_within(setting, rows)
    if not setting.strict:
        if train >= len(rows):
            raise UsageError(
                f"the training rows must be fewer than the rows ({len(rows)}"
                f"{f' of {apart}' if (apart := setting.groups[rows[0]]) else ''}), so that some "
                f"are left to judge; given {train}"
            )
        chosen = _draw(setting, rows, train, rng)
        yield Fold(train=chosen, judged=np.setdiff1d(rows, chosen), scored=scored)
        return
    # Strictly held out: whole scenarios leave first, half of them or as many as the training
    # rows allow, and the training rows come from what stays.
    firsts = np.full(len(board.labels), len(setting.dataset))
    np.minimum.at(firsts, board.owner[board.row_candidate], setting.rank[board.rows])
    order = rng.permutation(np.argsort(firsts)[scored[np.argsort(firsts)]])
    sizes = np.bincount(board.owner[board.row_candidate], minlength=len(board.labels))
    out, spare = np.zeros_like(scored), len(rows) - train
    for scenario in order:
        if 2 * np.count_nonzero(out) < len(order) and sizes[scenario] <= spare:
            out[scenario] = True
            spare -= sizes[scenario]
    if not out.any():
        raise UsageError(
            f"a strict draw of {train} training rows must leave at least one of the "
            f"{len(order)} scenarios untouched, and {len(rows)} rows do not: ask for fewer"
        )
    held_rows = np.unique(board.rows[out[board.owner[board.row_candidate]]])
    chosen = _draw(setting, np.setdiff1d(rows, held_rows), train, rng)
    yield Fold(train=chosen, judged=held_rows, scored=out)


def _split(
    setting: Setting, rows: IntArray, condition: Condition, rng: np.random.Generator
) -> Iterator[Fold]:
    """Four rows in five train, unless a number is given; the rest are judged."""
    train = condition.train or max(1, int(SPLIT_TRAIN_RATIO * len(rows)))
    return _drawn(setting, rows, replace(condition, train=train), rng)


def _in_sample(
    setting: Setting, rows: IntArray, condition: Condition, rng: np.random.Generator
) -> Iterator[Fold]:
    """Fit on all rows and judge the same rows."""
    chosen = _draw(setting, rows, condition.train, rng)
    yield Fold(train=chosen, judged=rows, scored=_scenarios_within(setting, rows))


def _across_cut(
    setting: Setting, rows: IntArray, condition: Condition, rng: np.random.Generator
) -> Iterator[Fold]:
    """Fit one side of the cut, judge the other; candidates are those of that side."""
    judged = rows[setting.judged_side[rows]]
    pool = rows[~setting.judged_side[rows]]
    if len(judged) and len(pool):
        yield Fold(
            train=_draw(setting, pool, condition.train, rng),
            judged=judged,
            scored=_scenarios_within(setting, judged),
        )


def _leave_one_out(
    setting: Setting, rows: IntArray, condition: Condition, rng: np.random.Generator
) -> Iterator[Fold]:
    """Leave out each group in turn, but for a few calibration rows."""
    for label in sorted(set(setting.left_out[rows])):
        out = setting.left_out[rows] == label
        pool = _draw(setting, rows[~out], condition.train, rng)
        order = rng.permutation(setting.in_order(rows[out]))
        known, judged = order[: condition.calibration], order[condition.calibration :]
        if len(pool) == 0 or len(judged) == 0:
            continue
        mask = np.zeros(len(setting.dataset), dtype=np.bool_)
        mask[rows[out]] = True
        scored = setting.board.touching(mask)
        train = np.concatenate([pool, known])
        if setting.strict:
            trained = np.zeros_like(mask)
            trained[train] = True
            scored &= ~setting.board.touching(trained)
        yield Fold(train=train, judged=judged, scored=scored)


def _not_judged(setting: Setting, parts: Sequence[IntArray], calibration: int) -> list[str]:
    """Name the groups that :func:`_leave_one_out` passes over, and why."""
    small, alone = [], []
    for rows in parts:
        labels, sizes = np.unique(setting.left_out[rows].astype(str), return_counts=True)
        if len(labels) == 1:
            alone.append(f"{labels[0]} ({sizes[0]} rows)")
        else:
            few = sizes <= calibration
            small += [
                f"{name} ({size})" for name, size in zip(labels[few], sizes[few], strict=True)
            ]
    notes = []
    if small:
        notes.append(
            f"with {calibration} calibration rows not judged, for want of rows that are left: "
            + ", ".join(small)
        )
    if alone:
        notes.append(
            "not judged, since nothing else is there to fit to: " + ", ".join(dict.fromkeys(alone))
        )
    return notes


def _largest_group(setting: Setting, parts: Sequence[IntArray]) -> int:
    """Most rows that leave together, where others stay to be fitted to."""
    sizes = [np.unique(setting.left_out[rows].astype(str), return_counts=True)[1] for rows in parts]
    return max((int(size.max()) for size in sizes if len(size) > 1), default=0)


Folds = Callable[[Setting, IntArray, Condition, np.random.Generator], Iterator[Fold]]

# What each protocol draws. A new one is one row here, and one function if it draws anew.
FOLDS: dict[str, Folds] = {
    "few-shot": _drawn,
    "learning-curve": _drawn,
    "no-power": _drawn,
    "split": _split,
    "all": _in_sample,
    "unseen-batch": _across_cut,
    "unseen-length": _across_cut,
    "unseen-llm": _leave_one_out,
    "unseen-hardware": _leave_one_out,
    "unseen-modality": _leave_one_out,
    "unseen-engine": _leave_one_out,
}


def _backbone(llm: Llm) -> tuple[object, ...]:
    """Take the vision tower from what an LLM computes with: what is left reads and writes text."""
    return tuple(None if isinstance(part, Vision) else part for part in llm.architecture)


#: What ``leave`` may be, but for single ids, and what LLMs that leave together have in common.
ALIKE: dict[str, Callable[[Llm], tuple[object, ...]]] = {
    "architecture": lambda llm: llm.architecture,
    "backbone": _backbone,
}


def _alike(cases: Cases, leave: str) -> StrArray:
    """Name each row by all LLMs that have what its own has: variants of one leave together."""
    keys = {
        llm.id: ALIKE[leave](llm) for llm in (cases.llms[i] for i in np.unique(cases.llm_index))
    }
    names = {
        name: " / ".join(sorted(other for other, k in keys.items() if k == key))
        for name, key in keys.items()
    }
    return np.array([names.get(llm.id, "") for llm in cases.llms], dtype=object)[cases.llm_index]


# What ``per`` may name, and the label of each row under it.
_PER: dict[str, Callable[[Dataset], StrArray]] = {
    "llm": lambda d: d.llm_ids,
    "gpu": lambda d: d.gpu_ids,
    "precision": lambda d: d.precision_ids,
    "modality": lambda d: d.modality,
    "task": lambda d: d.task,
    "engine": lambda d: d.engine_ids,
    "engine_version": lambda d: d.engine_version,
}


# What is cut in two (one, several of them), and in what groups unless the fits are apart. Lengths
# mostly differ by task, so tasks are not cut one by one there.
_CUTS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "unseen-batch": ("batch", "batch sizes", ("llm", "gpu", "precision", "task")),
    "unseen-length": ("length", "lengths", ("llm", "gpu", "precision", "modality")),
}


def _group_labels(dataset: Dataset, per: Sequence[str]) -> StrArray:
    """Label each row by what ``per`` names, as in ``Qwen3-14B | bf16``."""
    for name in per:
        if name not in _PER:
            raise UsageError(f"per must name some of {', '.join(_PER)}; given {name!r}")
    labels = [_PER[name](dataset) for name in per]
    joined = [" | ".join(map(str, parts)) for parts in zip(*labels, strict=True)]
    return np.array(joined or [""] * len(dataset), dtype=object)


def _left_out_labels(dataset: Dataset, protocol: str, leave: str) -> StrArray:
    if protocol == "unseen-hardware":
        return dataset.gpu_ids
    if protocol == "unseen-modality":
        return np.array([str(value) for value in dataset.modality], dtype=object)
    if protocol == "unseen-engine":
        return np.where(dataset.engine_ids == "", "no engine", dataset.engine_ids)
    if protocol == "unseen-llm" and leave in ALIKE:
        return _alike(dataset.cases, leave)
    return dataset.llm_ids


def _sequence_lengths(dataset: Dataset, groups: StrArray) -> FloatArray:
    """Mean input and output tokens of each row's workload in its group, shape (n,).

    Output lengths scatter between runs of one task: what is cut is workloads, never runs of one.
    """
    tokens = dataset.cases.input_tokens + dataset.cases.output_tokens
    _, group = np.unique(groups.astype(str), return_inverse=True)
    index = group_rows([group, dataset.workload_index])
    mean: FloatArray = np.bincount(index, tokens) / np.bincount(index)
    return mean[index]


def _judged_side(
    values: FloatArray, groups: StrArray, cut: float | None, direction: str
) -> BoolArray:
    """Rows on the judged side of the cut: by default the median distinct value of each group."""
    judged = np.zeros(len(values), dtype=np.bool_)
    for group in set(groups):
        rows = groups == group
        distinct = np.unique(values[rows])
        if cut is None and len(distinct) == 1:
            continue  # nothing in it is unseen
        larger = values[rows] > (np.median(distinct) if cut is None else cut)
        judged[rows] = larger if direction == "larger" else ~larger
    return judged


def lay_out(dataset: Dataset, asked: EvaluationOptions) -> tuple[Setting, list[IntArray]]:
    """Number the scenarios, label what is grouped or leaves together; rows of separate fits."""
    protocol, per = asked.protocol, asked.per
    fitted_apart = _group_labels(dataset, per)
    parts = [np.flatnonzero(fitted_apart == label) for label in sorted(set(fitted_apart))]
    left_out, groups = fitted_apart, fitted_apart
    judged_side = np.ones(len(dataset), dtype=np.bool_)
    if FOLDS[protocol] is _leave_one_out:
        left_out = _left_out_labels(dataset, protocol, asked.leave)
        if len(set(left_out)) < 2:
            raise UsageError(
                f"{protocol} leaves one out and fits the others, so the rows must hold two or "
                f"more; they hold only {left_out[0]}"
            )
        groups = groups if per else left_out
    elif protocol in _CUTS:
        what, plural, apart = _CUTS[protocol]
        groups = _group_labels(dataset, per or apart)
        values = dataset.cases.batch_size
        if protocol == "unseen-length":
            values = _sequence_lengths(dataset, groups)
        cut = asked.length_cut if protocol == "unseen-length" else asked.batch_cut
        judged_side = _judged_side(values, groups, cut, asked.direction)
        if judged_side.all() or not judged_side.any():
            raise UsageError(
                f"{protocol} needs rows on both sides of the {what} cut; all lie on one: "
                f"give another {what}_cut, or rows with more {plural}"
            )
    whole = protocol == "unseen-length"
    setting = Setting(
        dataset=dataset,
        board=Board.of(dataset, asked.choose, asked.objective, judged_side, whole=whole),
        strict=asked.strict,
        judged_side=judged_side,
        left_out=left_out,
        groups=groups,
    )
    return setting, parts


def conditions_of(
    setting: Setting, parts: Sequence[IntArray], asked: EvaluationOptions, notes: list[str]
) -> list[Condition]:
    """What is varied, in order. Sizes of a curve that the rows cannot serve are noted."""
    protocol, train = asked.protocol, asked.train
    few = train
    if train is None:
        # As many as published figures have, or half of what there is.
        least = min(map(len, parts))
        few = min(DEFAULT_TRAIN, max(least // 2, 1))
        if few < DEFAULT_TRAIN and protocol in ("few-shot", "no-power"):
            notes.append(f"each draw trains on half of the rows, {few}, unless --train is given")
    if protocol == "few-shot":
        return [Condition(train=few)]
    if protocol == "no-power":
        return [Condition(train=few, power_known=known) for known in (False, True)]
    if FOLDS[protocol] is _leave_one_out:
        wanted = [Condition(train=train, calibration=k) for k in dict.fromkeys(asked.calibration)]
        notes += [note for c in wanted for note in _not_judged(setting, parts, c.calibration)]
        # With none left to judge a size is in the notes, unless no other is asked for.
        left = [c for c in wanted if _largest_group(setting, parts) > c.calibration]
        return left or wanted
    if protocol != "learning-curve":
        return [Condition(train=train)]
    served = []
    for size in sorted({*asked.curve, *([train] if train else [])}):
        condition = Condition(train=size)
        try:
            for part in parts:
                list(_drawn(setting, part, condition, np.random.default_rng([asked.seed, 0])))
        except UsageError as error:
            notes.append(f"left out of the curve: {size} training rows; {error}")
        else:
            served.append(condition)
    if not served:
        raise UsageError(f"no size of the curve can be served: {notes[-1]}")
    return served
