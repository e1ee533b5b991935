"""What an evaluation is asked: the protocol, what is drawn, and what predictors may know."""

from __future__ import annotations

from dataclasses import dataclass

from energylens.errors import UsageError
from energylens.records import DEFAULT_CHOOSE

#: What ``protocol`` may be; :data:`energylens.evaluation.folds.FOLDS` says what each draws.
PROTOCOLS = (
    "few-shot",
    "learning-curve",
    "unseen-batch",
    "unseen-length",
    "unseen-llm",
    "unseen-hardware",
    "unseen-modality",
    "unseen-engine",
    "no-power",
    "split",
    "all",
)
DEFAULT_CURVE = (10, 15, 25, 50, 100, 200)
_CHOICES = {
    "protocol": PROTOCOLS,
    "objective": ("request", "output_token"),
    "batch": ("limit", "observed"),
    "lengths": ("scenario", "own"),
    "direction": ("larger", "smaller"),
    "leave": ("architecture", "backbone", "id"),
}


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """How :func:`energylens.evaluation.judge.evaluate` judges.

    Attributes
    ----------
    protocol : str
        One of :data:`PROTOCOLS`.
    choose : sequence of str
        The free knobs, names from :data:`energylens.dataset.KNOBS`.
    train : int, optional
        Training rows (of each group of ``per``). Default: 50 where the protocol is about few
        rows, four fifths for ``split``, else all rows that the protocol allows.
    repeats : int, optional
        Draws. Default: 50 where rows are drawn, 1 where nothing is.
    seed : int
        Source of all chance.
    noise_ratio : float
        Repeatability of a measurement, relative: choices this close to the best count as within
        noise, candidate pairs this close as near ties.
    strict : bool
        Score only scenarios none of whose candidates was trained on.
    objective : str
        ``request``: joules per request as measured. ``output_token``: joules over output
        tokens, which takes the scatter of output lengths between runs out of the ranking.
    batch : str
        What predictors know of the batch of judged cases: the configured ``limit``, which is all
        that is known before running, or the ``observed`` mean. Fits see what was observed.
    lengths : str
        What they know of the lengths of judged cases: the mean over the rows of an LLM and task
        (``scenario``), the same for all candidates, or each row's ``own``, an outcome of its run.
    curve : sequence of int
        Training sizes of ``learning-curve``; those that the rows cannot serve are left out.
    calibration : sequence of int
        Rows of the group left out that are trained on (``unseen-llm``, ``unseen-hardware``,
        ``unseen-modality``, ``unseen-engine``); several numbers give a curve whose headline is
        the first.
    direction : str
        Which side of the cut ``unseen-batch`` and ``unseen-length`` judge: ``larger`` or
        ``smaller``.
    batch_cut : float, optional
        Largest batch of the smaller side. Default: the median of the distinct batches of each
        group of ``per``, or of each (LLM, GPU, precision, task).
    length_cut : float, optional
        Largest sequence, input and output tokens together, of the smaller side. Default: the
        median of the distinct lengths of each group of ``per``, or of each (LLM, GPU,
        precision, modality).
    per : sequence of str
        Fit separately for each of these: llm, gpu, precision, modality, task, engine (with
        its version), engine_version.
    leave : str
        What leaves together in ``unseen-llm``: ``architecture`` (all LLMs of the same
        architecture), ``backbone`` (vision towers apart) or ``id``.
    interval_ratio : float
        Nominal coverage of the intervals that are judged.
    allow_simulated : bool
        Judge rows that carry no accuracy claim, too; the result is labelled.
    """

    protocol: str = "few-shot"
    choose: tuple[str, ...] = DEFAULT_CHOOSE
    train: int | None = None
    repeats: int | None = None
    seed: int = 0
    noise_ratio: float = 0.02
    strict: bool = False
    objective: str = "request"
    batch: str = "limit"
    lengths: str = "scenario"
    curve: tuple[int, ...] = DEFAULT_CURVE
    calibration: tuple[int, ...] = (0,)
    direction: str = "larger"
    batch_cut: float | None = None
    length_cut: float | None = None
    per: tuple[str, ...] = ()
    leave: str = "architecture"
    interval_ratio: float = 0.8
    allow_simulated: bool = False

    def __post_init__(self) -> None:
        for name in ("choose", "curve", "calibration", "per"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, allowed in _CHOICES.items():
            given = getattr(self, name)
            if given not in allowed:
                raise UsageError(f"{name} must be one of {', '.join(allowed)}; given {given!r}")
        for name, number, least in (
            ("train", self.train, 1),
            ("repeats", self.repeats, 1),
            ("the smallest of the curve", min(self.curve, default=None), 1),
            ("the smallest of the calibration rows", min(self.calibration, default=None), 0),
        ):
            if number is not None and number < least:
                raise UsageError(f"{name} must be {least} or more, not {number}")
        if not 0 <= self.noise_ratio < 1:
            raise UsageError(f"the noise must be a ratio from 0 to below 1, not {self.noise_ratio}")
        if not 0 < self.interval_ratio < 1:
            raise UsageError(
                f"interval_ratio must be above 0 and below 1, not {self.interval_ratio}"
            )
