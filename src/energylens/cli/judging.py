"""Verbs that judge: evaluate, report and demo."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from energylens.cli import front_form, timing
from energylens.cli.console import (
    Progress,
    Subparsers,
    add_json,
    add_seed,
    add_tables,
    comma_list,
    number_between,
    numbers,
    positive,
    positive_int,
    print_json,
    print_paragraph,
    print_table,
    read_tables,
)
from energylens.errors import UnknownChoiceError, UsageError
from energylens.evaluation.options import DEFAULT_CURVE, PROTOCOLS, EvaluationOptions
from energylens.records import DEFAULT_CHOOSE
from energylens.viewing import picked
from energylens.words import percent

if TYPE_CHECKING:
    from energylens.evaluation.result import Evaluation
    from energylens.protocols import Estimator

#: Judged unless others are named. The tuned ensembles take a second a fit, so they wait for that.
CONTESTANTS = (
    "energylens",
    "energylens-datasheet",
    "random-forest",
    "extra-trees",
    "gradient-boosting",
    "xgboost",
    "lightgbm",
    "extra-trees-on-datasheet",
    "gradient-boosting-on-datasheet",
    "energylens-smooth",
    "log-linear",
    "logistic-batch",
    "workload",
    "sequence-length",
    "tdp-time",
    "tdp-time-predicted",
    "utilisation-power",
    "latency-measured",
    "latency-predicted",
    "largest-batch",
    "largest-batch-per-gpu",
    "fewest-gpus",
    "random",
)
FEW = 3  # candidates of a scenario, among which there is little to choose
ALIKE = 3  # estimators that choose alike, at which it is said
ENSEMBLE_PACKAGES = ("sklearn", "xgboost", "lightgbm")
ENSEMBLE_WORDS = ("forest", "trees", "boosting", "xgboost", "lightgbm")


def add_verbs(verbs: Any) -> None:
    """Add the verbs of this module."""
    parser = Subparsers(verbs).add(
        "evaluate",
        "judge the law against every baseline on measured rows",
        _evaluate,
        (
            "energylens evaluate runs.csv --protocol few-shot "
            "--choose parallelism,batch_size --train 50 --repeats 50 --seed 0",
            "energylens evaluate runs.csv --protocol unseen-llm --choose batch_size --json",
            "energylens evaluate runs.csv --protocol unseen-engine --calibration 0,3,5,10",
            "energylens evaluate runs.csv --protocol learning-curve "
            "--estimators energylens,random-forest",
        ),
    )
    add_tables(parser)
    timing.add_time_options(parser)
    parser.add_argument("--protocol", choices=PROTOCOLS, default="few-shot")
    parser.add_argument(
        "--choose",
        type=comma_list,
        default=DEFAULT_CHOOSE,
        metavar="KNOBS",
        help="free knobs: tensor_parallel, pipeline_parallel, expert_parallel, data_parallel, "
        "parallelism, batch_size, precision, gpu, power_cap, clock",
    )
    parser.add_argument(
        "--train", type=positive_int, metavar="N", help="training rows (default: 50)"
    )
    parser.add_argument("--repeats", type=positive_int, metavar="N", help="draws (default: 50)")
    add_seed(parser)
    parser.add_argument(
        "--estimators",
        type=comma_list,
        metavar="NAMES",
        help="whom to judge: energylens, energylens-no-prior, -extended, -pooled, -datasheet, "
        "-measured-power and the names of docs/baselines.md",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="score only scenarios none of whose candidates was trained on",
    )
    parser.add_argument(
        "--batch",
        choices=("limit", "observed", "limit-judged"),
        default="limit",
        help="what predictors know of the batch of judged cases: the limit set, which is known "
        "beforehand (default), or the observed mean (limit-judged: an older name of limit)",
    )
    parser.add_argument(
        "--lengths",
        choices=("scenario", "own"),
        default="scenario",
        help="what they know of lengths: the means of an LLM and task, the same for all "
        "candidates (default), or each run's own",
    )
    parser.add_argument(
        "--objective",
        choices=("request", "output_token"),
        default="request",
        help="what is minimised: joules a request (default) or an output token",
    )
    parser.add_argument(
        "--noise",
        type=number_between(0.0, 1.0),
        default=0.02,
        metavar="RATIO",
        help="repeatability of a measurement (default: 0.02)",
    )
    parser.add_argument(
        "--curve", type=numbers, metavar="LIST", help="training sizes of the learning curve"
    )
    parser.add_argument(
        "--calibration",
        type=numbers,
        default=(0,),
        metavar="LIST",
        help="rows of what is unseen that are trained on after all",
    )
    parser.add_argument(
        "--direction",
        choices=("larger", "smaller"),
        default="larger",
        help="side of the cut that unseen-batch and unseen-length judge (default: larger)",
    )
    parser.add_argument(
        "--batch-cut",
        type=positive,
        metavar="B",
        help="largest batch of the smaller side (default: the median of each group)",
    )
    parser.add_argument(
        "--length-cut",
        type=positive,
        metavar="TOKENS",
        help="longest sequence, input and output together, of the smaller side "
        "(default: the median of each group)",
    )
    parser.add_argument(
        "--per", type=comma_list, default=(), metavar="COLUMNS", help="fit apart for each of these"
    )
    parser.add_argument(
        "--leave",
        choices=("architecture", "backbone", "id"),
        default="architecture",
        help="what leaves together in unseen-llm: LLMs of the same architecture (default), those "
        "that are the same but for a vision tower (backbone), or none (id)",
    )
    parser.add_argument(
        "--allow-simulated",
        action="store_true",
        help="judge rows that carry no accuracy claim; the result says so",
    )
    add_json(parser)


def contestants(
    names: tuple[str, ...] | None,
) -> tuple[Mapping[str, Callable[[int], Estimator]], tuple[str, ...]]:
    """Make what the names stand for; with no names, the default ones.

    Returns
    -------
    estimators : mapping of str to callable
        From a name to what makes the estimator of a seed.
    left_out : tuple of str
        Default contestants whose packages are not installed.
    """
    from importlib.util import find_spec

    from energylens import baselines
    from energylens.baselines.residual import SmoothResidual
    from energylens.discovery import Structure
    from energylens.fitting import Datasheet, EnergyLens, FitOptions, ScaledDatasheet

    ours = {
        "energylens": FitOptions(),
        "energylens-no-prior": FitOptions(prior="none"),
        "energylens-pooled": FitOptions(per=()),
        "energylens-extended": FitOptions(extend=("auto",)),
        "energylens-measured-power": FitOptions(measured_power=True),
    }
    unfitted: dict[str, Estimator] = {e.name: e for e in (Datasheet(), ScaledDatasheet())}
    left_out: tuple[str, ...] = ()
    if names is None:
        missing = {package for package in ENSEMBLE_PACKAGES if not find_spec(package)}
        left_out = tuple(n for n in CONTESTANTS if _package_of(n) in missing)
        names = tuple(n for n in CONTESTANTS if n not in left_out)
    # Trees that learn what the datasheet, or the fitted law, leaves.
    on_ours = {
        **{
            f"{kind}-on-datasheet": partial(
                baselines.ensembles.Ensemble, build=build, base=Datasheet().fit
            )
            for kind, build in baselines.ensembles.KINDS.items()
        },
        "energylens-extra-trees": partial(
            baselines.ensembles.Ensemble,
            build=baselines.ensembles.KINDS["extra-trees"],
            base=EnergyLens().fit,
            shrunk=True,
        ),
    }
    smooth = SmoothResidual(name="energylens-smooth", base=EnergyLens().fit)
    known: dict[str, Callable[[int], Estimator]] = {
        **baselines.ESTIMATORS,
        smooth.name: lambda _seed: smooth,
        **{name: partial(_seeded, make, name) for name, make in on_ours.items()},
    }

    def maker(name: str) -> Callable[[int], Estimator]:
        if name in unfitted:
            return lambda _seed: unfitted[name]
        if name in ours:
            return lambda _seed: EnergyLens(name=name, options=ours[name])
        if front_form.is_form(name):
            form = Structure.of(front_form.read_form(name)[1], name=name)
            return lambda _seed: form
        if name not in known:
            raise UnknownChoiceError(
                "estimator",
                name,
                [*unfitted, *ours, *known],
                f"There are {', '.join(CONTESTANTS)}, and more in docs/baselines.md.",
            )
        return known[name]

    return {name: maker(name) for name in names}, left_out


def _seeded(make: Callable[..., Estimator], name: str, seed: int) -> Estimator:
    return make(name=name, seed=seed)


def _package_of(name: str) -> str | None:
    """Name the package that an ensemble needs; None for what needs none."""
    if "xgboost" in name or "lightgbm" in name:
        return "xgboost" if "xgboost" in name else "lightgbm"
    return "sklearn" if any(word in name for word in ENSEMBLE_WORDS) else None


def _evaluate(arguments: argparse.Namespace) -> None:
    from energylens.evaluation.judge import evaluate

    for what, cut in (("batch", arguments.batch_cut), ("length", arguments.length_cut)):
        if cut is not None and arguments.protocol != f"unseen-{what}":
            raise UsageError(
                f"--{what}-cut is for --protocol unseen-{what}, not {arguments.protocol}"
            )
    named = arguments.estimators if arguments.target == "energy" else None
    estimators, left_out = contestants(named)
    rows = read_tables(arguments, joules=arguments.target == "energy")
    dataset, estimators = timing.on_time(arguments, rows, estimators)
    options = EvaluationOptions(
        **picked(
            arguments,
            "protocol choose train repeats seed strict objective lengths calibration direction "
            "batch_cut length_cut per leave allow_simulated",
        ),
        noise_ratio=arguments.noise,
        batch="limit" if arguments.batch == "limit-judged" else arguments.batch,
        curve=arguments.curve or DEFAULT_CURVE,
    )
    progress = Progress("fitting")
    try:
        evaluation = evaluate(dataset, estimators, options, progress=progress)
    finally:
        progress.close()
    judged = timing.limits(arguments, dataset, estimators)
    forms = [name for name in estimators if front_form.is_form(name)]
    notes = [f"{name}: {front_form.note(*front_form.read_form(name))}" for name in forms]
    if arguments.json:
        document = timing.attach(evaluation.to_json(), judged)
        print_json({**document, "notes": notes} if notes else document)
        return
    print_evaluation(evaluation, "joules" if arguments.target == "energy" else "seconds")
    timing.print_limits(judged)
    for note in notes:
        print_paragraph(f"Note: {note}")
    if left_out:
        print_paragraph(
            f"Not judged, for want of their packages: {', '.join(left_out)}. "
            "pip install 'energylens[ensembles]' brings them."
        )


def print_evaluation(evaluation: Evaluation, unit: str = "joules") -> None:
    """Print what came of judging joules, or seconds, best regret first."""
    asked = evaluation.asked
    print_paragraph(
        f"{asked.protocol}: {evaluation.rows} rows, {evaluation.scenarios} scenarios "
        f"(free: {', '.join(asked.choose)}), {evaluation.repeats} "
        f"repeat{'s' * (evaluation.repeats > 1)}, seed {asked.seed}"
        + (", strictly held-out scenarios" if asked.strict else "")
        + f"; --batch {asked.batch} --lengths {asked.lengths}"
    )
    sources = ", ".join(f"{n} {name}" for name, n in evaluation.source_counts.items())
    print_paragraph(f"Source of the {unit}: {sources}.")
    if not evaluation.accuracy_claim:
        print_paragraph(
            "NO ACCURACY CLAIM: "
            + (
                "the rows judged were trained on."
                if evaluation.in_sample
                else "some of these rows are neither measured nor published."
            )
        )
    for number, point in enumerate(evaluation.points):
        print()
        if len(evaluation.points) > 1:
            rows = max(score.train_rows for score in point.scores.values())
            print(
                f"{rows} training rows"
                + (f", {point.calibration} of them of the group left out" * bool(point.calibration))
                + ("" if point.power_known else ", power not known")
                + (" (headline)" if number == evaluation.headline else "")
            )
        scores = sorted(
            point.scores.items(),
            key=lambda item: (
                item[1].metrics.regret_mean_ratio is None,
                item[1].metrics.regret_mean_ratio or 0.0,
            ),
        )
        print_table(
            ("estimator", "Top-1", "noise", "pairs", "regret", "MAPE", "covers"),
            [
                (
                    name,
                    percent(s.metrics.top1_ratio),
                    percent(s.metrics.top1_within_noise_ratio),
                    percent(s.metrics.pairwise_ratio),
                    _over(s.metrics.regret_mean_ratio, 2),
                    _over(s.metrics.mape_ratio, 1),
                    percent(s.metrics.interval_coverage_ratio, 0),
                )
                for name, s in scores
            ],
        )
    print()
    if asked.per:
        for name, score in evaluation.estimators.items():
            if score.mape_group_median_ratio is not None:
                print(f"{name}: median MAPE over groups {percent(score.mape_group_median_ratio)}")
    failed: dict[str, list[str]] = {}
    for name, score in evaluation.estimators.items():
        if score.failed_fits:
            what = f"{score.failed_fits} of {score.fits} fits failed ({score.failure})"
            failed.setdefault(what, []).append(name)
    for what, names in failed.items():
        print_paragraph(f"{', '.join(names)}: {what}")
    for note in (*evaluation.notes, *_indistinct(evaluation)):
        print_paragraph(f"Note: {note}")
    print_paragraph(
        "Top-1: the predicted best is the best; noise: within "
        f"{100 * asked.noise_ratio:g} % of it; pairs: ordered rightly; regret: {unit} of the "
        f"choice over the best, minus 1; MAPE: mean error of the {unit}"
        f"{', its median over repeats' * (evaluation.repeats > 1)}; covers: rows that lie in "
        f"their {100 * asked.interval_ratio:g} % interval. docs/evaluation.md defines each."
    )


def _over(value: float | None, digits: int) -> str:
    """Write a ratio of at least 0 in seven columns: far above 1 its digits say nothing."""
    if value is None or value < 1:
        return percent(value, digits)
    return percent(value) if value <= 10 else ">1000 %"


def _indistinct(evaluation: Evaluation) -> list[str]:
    """Say where the scenarios leave too little to choose for estimators to be told apart."""
    scores = evaluation.estimators
    alike: dict[tuple[str, ...], list[str]] = {}
    for name, score in scores.items():
        m = score.metrics
        key = (percent(m.top1_ratio), percent(m.pairwise_ratio), percent(m.regret_mean_ratio, 2))
        if m.regret_mean_ratio is not None:
            alike.setdefault(key, []).append(name)
    same = max(alike.values(), key=len, default=[])
    sizes = [s.candidates for s in next(iter(scores.values())).scenarios]
    few = sum(size <= FEW for size in sizes)
    notes = []
    if pairs := evaluation.scenarios_of_one_pair:
        notes.append(
            f"{pairs} of {len(sizes)} scenarios have one pair of candidates: a pick at random is "
            "right in half of them."
        )
    if len(same) >= ALIKE:
        notes.append(
            f"{', '.join(same[:-1])} and {same[-1]} have the same Top-1, pairs and regret: these "
            "scenarios cannot tell their choices apart."
        )
    if 2 * few > len(sizes):
        frees = "; --choose parallelism,batch_size frees more."
        notes.append(
            f"{few} of {len(sizes)} scenarios have three candidates or fewer, among which there "
            f"is little to choose{'.' if 'batch_size' in evaluation.asked.choose else frees}"
        )
    return notes
