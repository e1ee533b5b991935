"""How far a report is to be trusted: what evaluations say, and where the model is worst."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from energylens.cases import FloatArray
from energylens.dataset import Dataset
from energylens.evaluation.result import Evaluation, Score
from energylens.model import EnergyModel
from energylens.report import judged
from energylens.report.document import Block, Figure, Items, Prose, Section, Table
from energylens.report.naming import OURS
from energylens.words import listed, percent, plural

TIE_RATIO = 0.001  # of mean regret: estimators closer than this choose as well as each other

DATASHEET = "energylens-datasheet"  # the law without a fit

_PROTOCOLS = {
    "few-shot": "fitted to rows drawn at random, judged on the others",
    "learning-curve": "fitted to more and more rows drawn at random, judged on the others",
    "unseen-batch": "fitted to some batch sizes, judged on the others",
    "unseen-length": "fitted to some sequence lengths, judged on the others",
    "unseen-llm": "every LLM left out in turn, and judged by a fit to the others",
    "unseen-hardware": "every GPU type left out in turn, and judged by a fit to the others",
    "unseen-modality": "every modality left out in turn, and judged by a fit to the others",
    "unseen-engine": "every engine version left out in turn, and judged by a fit to the others",
    "no-power": "without measured power, and with it",
    "split": "fitted to most rows, judged on the rest",
    "all": "judged on the very rows that it was fitted to: no test of anything but the form",
}


def judgement(model: EnergyModel, dataset: Dataset, evaluations: Sequence[Evaluation]) -> Section:
    """Show how well the model predicts what it has not seen."""
    seen = model.dataset_digest == dataset.digest
    blocks: list[Block] = []
    if not evaluations:
        blocks.append(
            Prose(
                text="The model was not judged: that takes rows enough to fit it to some and to "
                "compare it with the others. How far off it is on these rows stands below."
            )
        )
    blocks.append(Figure.of(judged.predicted_against_measured(model, dataset, in_sample=seen)))
    for evaluation in evaluations:
        blocks += _evaluation_blocks(evaluation, dataset)
    errors, held_out = _errors(model, dataset, evaluations)
    worst = judged.residuals_by_scenario(dataset, errors, held_out=held_out)
    if worst is not None:
        blocks.append(Figure.of(worst))
    curve = [b for b in blocks if isinstance(b, Figure) and b.picture.name == "learning-curve"]
    first = curve[:1] or blocks[:1]
    blocks = [*first, *(block for block in blocks if block not in first)]
    return Section(
        name="judgement", title="How far to trust it", blocks=tuple(blocks), open_blocks=1
    )


def _errors(
    model: EnergyModel, dataset: Dataset, evaluations: Sequence[Evaluation]
) -> tuple[FloatArray, bool]:
    """Relative error of each row, by fits without it where an evaluation of these rows has any."""
    for evaluation in evaluations:
        ours = evaluation.estimators.get(OURS)
        if (
            ours is not None
            and not evaluation.in_sample
            and evaluation.dataset_digest == dataset.digest
            and np.isfinite(ours.row_error_ratio).any()
        ):
            return ours.row_error_ratio, True
    predicted = model.predict_energy_j(dataset.cases)
    return predicted / dataset.energy_per_request_j - 1.0, model.dataset_digest != dataset.digest


def evaluation_words(evaluation: Evaluation) -> str:
    """Say what an evaluation found, in a few sentences."""
    scores = evaluation.estimators
    said = f"{protocol_title(evaluation)}: "
    if OURS in scores:
        ours = scores[OURS].metrics
        parts = []
        if ours.top1_within_noise_ratio is not None:
            parts.append(
                f"the choice is within {percent(evaluation.asked.noise_ratio, 0)} of the best in "
                f"{percent(ours.top1_within_noise_ratio)} of "
                f"{plural(evaluation.scenarios, 'scenario')}"
            )
        if ours.regret_mean_ratio is not None:
            parts.append(f"it costs {percent(ours.regret_mean_ratio, 2)} too much on average")
        if ours.mape_ratio is not None:
            parts.append(f"joules are off by {percent(ours.mape_ratio)}")
        said += listed(parts) if parts else "nothing could be judged"
        said += "".join(f". {words}" for words in _others_words(evaluation))
    else:
        said += f"judged {listed(scores)}"
    return f"{said}." + ("" if evaluation.accuracy_claim else " No accuracy claim rests on this.")


def _others_words(evaluation: Evaluation) -> list[str]:
    """Say along the learning curve, and of the others, what the headline alone would hide."""
    scores, said = evaluation.estimators, []
    ours = scores[OURS].metrics
    near = f"within {percent(evaluation.asked.noise_ratio, 0)}"
    points = evaluation.points if evaluation.asked.protocol == "learning-curve" else ()
    along = [point.scores[OURS].metrics.top1_within_noise_ratio for point in points]
    if len(along) > 1 and None not in along:
        said.append(
            f"With {listed(f'{point.train}' for point in points)} rows it is {near} in "
            f"{listed(percent(value) for value in along)}"
        )
    others = [name for name in by_regret(evaluation) if name != OURS]
    judged = [(name, scores[name].metrics) for name in others]
    if not judged:
        return said
    name, best = judged[0]
    ahead = [
        other
        for other, m in judged
        if m.regret_mean_ratio is not None
        and ours.regret_mean_ratio is not None
        and m.regret_mean_ratio <= ours.regret_mean_ratio + TIE_RATIO
    ]
    place = "First" if ahead and by_regret(evaluation)[0] != OURS else "Next"
    said.append(
        f"{place} by regret is {name}: {near} in {percent(best.top1_within_noise_ratio)}, "
        f"{percent(best.regret_mean_ratio, 2)} too much"
        + (
            ", and it predicts no joules"
            if best.mape_ratio is None
            else f", joules off by {percent(best.mape_ratio)}"
        )
    )
    often, most = max(judged, key=lambda item: item[1].top1_within_noise_ratio or 0.0)
    top = most.top1_within_noise_ratio or 0.0
    if top > max(best.top1_within_noise_ratio or 0.0, ours.top1_within_noise_ratio or 0.0):
        said.append(f"Most often {near} is {often}, in {percent(top)}")
    if ahead:
        said.append(
            f"For the choice alone {listed(ahead)} would have done as well as the law or better"
        )
    if DATASHEET in ahead:
        said.append(
            "To choose, no fit was needed here: the datasheet alone costs "
            f"{percent(scores[DATASHEET].metrics.regret_mean_ratio, 2)} too much"
        )
    return said


def by_regret(evaluation: Evaluation) -> list[str]:
    """Estimators from the lowest mean regret up, those without one last."""

    def regret(name: str) -> float:
        value = evaluation.estimators[name].metrics.regret_mean_ratio
        return float("inf") if value is None else value

    return sorted(evaluation.estimators, key=regret)


def protocol_title(evaluation: Evaluation) -> str:
    """Name a protocol and its training rows."""
    title = evaluation.asked.protocol.replace("-", " ").replace("llm", "LLM")
    point = evaluation.points[evaluation.headline]
    rows = f", {point.train} training rows" if point.train else ""
    return f"{title[0].upper()}{title[1:]}{rows}"


def _evaluation_blocks(evaluation: Evaluation, dataset: Dataset) -> list[Block]:
    scores = evaluation.estimators
    how = _PROTOCOLS.get(evaluation.asked.protocol, evaluation.asked.protocol)
    caption = (
        f"{how[0].upper()}{how[1:]}. "
        f"{plural(evaluation.rows, 'row')}, {plural(evaluation.scenarios, 'scenario')}, free "
        f"{listed(name.replace('_', ' ') for name in evaluation.asked.choose)}, "
        f"{plural(evaluation.repeats, 'draw')}, seed {evaluation.asked.seed}; within noise means "
        f"within {percent(evaluation.asked.noise_ratio, 0)} of the best."
    )
    if not evaluation.accuracy_claim:
        caption += " No accuracy claim rests on these figures."
    if evaluation.dataset_digest != dataset.digest:
        caption += f" Judged on other rows than those shown ({evaluation.dataset_digest[:16]})."
    blocks: list[Block] = [
        Prose(text=evaluation_words(evaluation)),
        Table(
            title=protocol_title(evaluation),
            caption=caption,
            columns=(
                "Estimator",
                "Rows fitted",
                "Top-1",
                "Within noise",
                "Pairs in order",
                "Mean regret",
                "95 % regret",
                "Mean error",
                "Median error",
                f"{percent(evaluation.asked.interval_ratio, 0)} interval covers",
            ),
            rows=tuple(_score_row(name, scores[name]) for name in by_regret(evaluation)),
            highlight=OURS,
        ),
    ]
    failures = tuple(
        f"{name}: {score.failed_fits} of {plural(score.fits, 'fit')} failed ({score.failure})."
        for name, score in scores.items()
        if score.failed_fits
    )
    if failures or evaluation.notes:
        blocks.append(Items(items=(*failures, *evaluation.notes)))
    if evaluation.asked.protocol == "learning-curve":
        blocks.append(Figure.of(judged.learning_curves(evaluation)))
    ours = scores.get(OURS)
    if ours is not None and ours.misses:
        missed = ours.misses
        blocks.append(
            Table(
                title="Where it chose wrong",
                caption=f"{protocol_title(evaluation)}: scenarios in which {OURS} did not always "
                f"choose within noise, costliest first ({min(8, len(missed))} of {len(missed)}).",
                columns=("Scenario", "Best", "Chosen", "Within noise", "Mean regret"),
                rows=tuple(
                    (
                        s.scenario,
                        s.best,
                        s.chosen or "-",
                        percent(s.top1_within_noise_ratio, 0),
                        percent(s.regret_mean_ratio),
                    )
                    for s in missed[:8]
                ),
            )
        )
    return blocks


def _score_row(name: str, score: Score) -> tuple[str, ...]:
    m = score.metrics
    return (
        name,
        f"{score.train_rows}",
        percent(m.top1_ratio),
        percent(m.top1_within_noise_ratio),
        percent(m.pairwise_ratio),
        percent(m.regret_mean_ratio, 2),
        percent(m.regret_p95_ratio),
        percent(m.mape_ratio),
        percent(m.median_ape_ratio),
        percent(m.interval_coverage_ratio),
    )
