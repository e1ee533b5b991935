"""The studies: which rows, which protocol, whom to judge. Each returns plain JSON values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from energylens import fitting, importers
from energylens.cases import FloatArray
from energylens.cli.judging import contestants
from energylens.dataset import Dataset
from energylens.evaluation.judge import EstimatorFactory, evaluate
from energylens.evaluation.result import Score
from energylens.model import EnergyModel
from energylens.protocols import Estimator, Predictor
from energylens.records import UNKNOWN_ENGINE
from studies.structure.split import choosing

SEED = 0
REPEATS = 50
CURVE_REPEATS = 20  # at each of six sizes
SIDES = ("larger", "smaller")  # of a cut: which is judged
FEW_GROUPS = 4  # things left out: as many are shown one by one
LONG_TOKENS = 4000.0  # between the chats of ML.ENERGY v3 and its long reasoning answers
FREE = ("parallelism", "batch_size")
KNOBS = {"both": FREE, "parallelism": ("parallelism",), "batch size": ("batch_size",)}
SAMPLES = 400  # joint draws behind each stated probability
SURE_RATIO = 0.95  # of the draws: above it a scenario is not counted as missed
ENSEMBLES = ("random-forest", "extra-trees", "gradient-boosting", "xgboost", "lightgbm")
ENHANCED = tuple(f"{name}-enhanced" for name in ENSEMBLES)
TUNED = ("random-forest-tuned", "xgboost-tuned")
ANALYTICAL = (
    "log-linear",
    "logistic-batch",
    "workload",
    "workload-ols",
    "sequence-length",
    "tdp-time",
    "tdp-time-predicted",
    "utilisation-power",
    "utilisation-power-predicted",
    "latency-measured",
    "latency-predicted",
)
TRIVIAL = ("largest-batch", "largest-batch-per-gpu", "fewest-gpus", "random")
OURS = ("energylens", "energylens-extended", "energylens-no-prior", "energylens-datasheet")
EVERYONE = (*OURS, *ENSEMBLES, *ENHANCED, *ANALYTICAL, *TRIVIAL)
# Those that are told a row's engine, and the name of each when it is not.
TOLD = (
    "energylens",
    *ENSEMBLES,
    *ENHANCED,
    "log-linear",
    "logistic-batch",
    "tdp-time-predicted",
    "utilisation-power-predicted",
    "workload",
    "workload-ols",
    "sequence-length",
)
UNTOLD = {f"{name}-untold": name for name in TOLD}
SCALED = "energylens-datasheet-scaled"
METRICS = (
    "train_rows",
    "top1_ratio",
    "top1_within_noise_ratio",
    "pairwise_ratio",
    "pairwise_clear_ratio",
    "regret_mean_ratio",
    "regret_p95_ratio",
    "mape_ratio",
    "median_ape_ratio",
    "mape_group_median_ratio",
    "interval_coverage_ratio",
    "fit_s",
)

Names = Sequence[str] | None
Result = dict[str, Any]


class Data:
    """The public measurements, imported when first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, source: str, path: str, **assumed: Mapping[str, float]) -> Dataset:
        """Import one source."""
        lengths = {"assume_input_tokens": {}, "assume_vision_tokens": {}, **assumed}
        return importers.reader(source)(self.folder / path, **lengths).dataset

    @cached_property
    def v3(self) -> Dataset:
        """ML.ENERGY leaderboard v3."""
        return self.read("mlenergy-v3", "mlenergy-v3")

    @cached_property
    def v2(self) -> Dataset:
        """ML.ENERGY leaderboard v2."""
        return self.read("mlenergy-v2", "mlenergy-v2")

    @cached_property
    def engines(self) -> Dataset:
        """The H100 rows of ML.ENERGY v2 and v3: two versions of vLLM."""
        return Dataset.concatenate([self.v2.take(self.v2.gpu_ids == "H100-SXM-80GB"), self.v3])

    @cached_property
    def argonne(self) -> Dataset:
        """DeciLM-7B on a node of four H100 of Argonne's LLM-Inference-Bench."""
        every = self.read("argonne", "argonne/power.csv")
        return every.take((every.llm_ids == "Deci/DeciLM-7B") & (every.gpu_ids == "H100-SXM-80GB"))

    @cached_property
    def code(self) -> Dataset:
        """energy-code-eval on one A100."""
        return self.read("energy-code-eval", "energy-code-eval/batching_a100.csv")


@dataclass(frozen=True)
class Untold:
    """An estimator that is not told which engine serves its training rows."""

    told: Estimator
    ranks_only: bool = False

    @property
    def name(self) -> str:
        """Name of the estimator, and what is kept from it."""
        return f"{self.told.name}-untold"

    def fit(self, dataset: Dataset) -> Predictor:
        """Fit to the same rows, of an unknown engine."""
        return self.told.fit(replace(dataset, cases=dataset.cases.served_by(UNKNOWN_ENGINE)))


def _estimators(names: Sequence[str]) -> dict[str, EstimatorFactory]:
    plain, _ = contestants(tuple(UNTOLD.get(name, name) for name in names))

    def make(name: str) -> EstimatorFactory:
        if name not in UNTOLD:
            return plain[name]
        return lambda seed: Untold(plain[UNTOLD[name]](seed))

    return {name: make(name) for name in names}


def judge(dataset: Dataset, names: Names, default: Sequence[str], **options: Any) -> Result:
    """Evaluate, and keep the headline of each estimator."""
    estimators = _estimators(names or default)
    evaluation = evaluate(dataset, estimators, seed=SEED, **options)
    points = [
        {name: _kept(score) for name, score in point.scores.items()} for point in evaluation.points
    ]
    document = evaluation.to_json()
    kept = {
        key: document[key]
        for key in ("protocol", "choose", "seed", "repeats", "rows", "scenarios", "dataset_digest")
    }
    kept["estimators"] = points[evaluation.headline]
    if len(points) > 1:
        kept["curve"] = points
    kept["modalities"] = {
        name: {
            modality: {key: value for key, value in m.to_json().items() if key in METRICS and value}
            for modality, m in score.modalities.items()
        }
        for name, score in evaluation.estimators.items()
        if name in OURS
    }
    if evaluation.protocol == "unseen-llm":
        kept["covered"] = {
            name: {group: m.interval_coverage_ratio for group, m in score.groups.items()}
            for name, score in evaluation.estimators.items()
            if name in OURS
        }
    return kept


def _kept(score: Score) -> Result:
    """Keep the headline, and of the error the median over draws: one bad draw ruins a mean."""
    kept = {m: value for m in METRICS if (value := score.to_json().get(m)) is not None}
    if band := score.bands.get("mape_ratio"):
        kept["mape_median_of_draws_ratio"] = band[1]
    if 1 < len(score.groups) <= FEW_GROUPS:
        kept["groups"] = {
            name: {m: value for m, value in group.to_json().items() if m in METRICS and value}
            for name, group in score.groups.items()
        }
    return kept


def few_shot(data: Data, names: Names) -> Result:
    """Learn from 50 rows drawn at random; all measured rows are candidates."""
    return judge(
        data.v3, names, EVERYONE, protocol="few-shot", choose=FREE, train=50, repeats=REPEATS
    )


def curve(data: Data, names: Names) -> Result:
    """Learn from 10 to 200 rows drawn at random."""
    return judge(
        data.v3,
        names,
        EVERYONE,
        protocol="learning-curve",
        choose=FREE,
        train=50,
        repeats=CURVE_REPEATS,
    )


def tuned(data: Data, names: Names) -> Result:
    """Let ensembles tune themselves on the 50 training rows."""
    return judge(
        data.v3, names, ("energylens", *TUNED), protocol="few-shot", choose=FREE, train=50,
        repeats=REPEATS,
    )  # fmt: skip


def strict(data: Data, names: Names) -> Result:
    """Score only scenarios none of whose rows were trained on."""
    return judge(
        data.v3, names, EVERYONE, protocol="few-shot", choose=FREE, train=50,
        repeats=REPEATS, strict=True,
    )  # fmt: skip


def limit(data: Data, names: Names) -> Result:
    """Know only the batch limit, in training and judgement: what one knows beforehand."""
    return judge(
        data.v3, names, EVERYONE, protocol="few-shot", choose=FREE, train=50,
        repeats=REPEATS, batch="limit",
    )  # fmt: skip


def power(data: Data, names: Names) -> Result:
    """Know each configuration's measured power, or not."""
    return judge(
        data.v3, names, (*OURS, "energylens-measured-power"), protocol="few-shot", choose=FREE,
        train=50, repeats=REPEATS,
    )  # fmt: skip


def unseen_llm(data: Data, names: Names) -> Result:
    """Leave out each LLM architecture, whatever the names of its variants."""
    return judge(data.v3, names, EVERYONE, protocol="unseen-llm", choose=FREE)


def unseen_backbone(data: Data, names: Names) -> Result:
    """Leave out each text backbone: with an LLM go those that see and are built on it."""
    return judge(data.v3, names, EVERYONE, protocol="unseen-llm", choose=FREE, leave="backbone")


def unseen_modality(data: Data, names: Names) -> Result:
    """Leave out text, images or video."""
    return judge(data.v3, names, EVERYONE, protocol="unseen-modality", choose=FREE)


def unseen_gpu(data: Data, names: Names) -> Result:
    """Leave out A100 or H100; then give back a few of its rows."""
    return judge(
        data.v2, names, EVERYONE, protocol="unseen-hardware", choose=FREE,
        calibration=(0, 3, 5, 10), repeats=20,
    )  # fmt: skip


def unseen_gpu_knobs(data: Data, names: Names) -> Result:
    """The same with no row given back, one free knob at a time."""
    return {
        label: judge(
            data.v2, names, EVERYONE, protocol="unseen-hardware", choose=choose, repeats=1,
        )
        for label, choose in KNOBS.items()
    }  # fmt: skip


def misses(data: Data, _: Names) -> Result:
    """Scenarios whose best candidate the law misses in a twentieth of the draws or more."""
    options: dict[str, tuple[Dataset, dict[str, Any]]] = {
        "v3, 50 rows": (data.v3, {"protocol": "few-shot", "train": 50, "repeats": REPEATS}),
        "v3, unseen LLM": (data.v3, {"protocol": "unseen-llm"}),
        "v2, unseen GPU": (data.v2, {"protocol": "unseen-hardware", "repeats": 1}),
    }
    estimators, _ = contestants(("energylens", "energylens-extended"))
    result: Result = {}
    for label, (dataset, how) in options.items():
        judged = evaluate(dataset, estimators, seed=SEED, choose=FREE, **how)
        result[label] = {
            name: [
                s.to_json()
                for s in sorted(score.scenarios, key=lambda s: -s.regret_mean_ratio)
                if s.top1_ratio <= SURE_RATIO
            ]
            for name, score in judged.estimators.items()
        }
        result[label]["scenarios"] = judged.scenarios
    return result


def argonne(data: Data, names: Names) -> Result:
    """Choose tensor parallelism on a node whose idle GPUs count; learn from 40 rows."""
    return judge(
        data.argonne, names, EVERYONE, protocol="few-shot", choose=("tensor_parallel",),
        train=40, repeats=REPEATS,
    )  # fmt: skip


def batch(data: Data, names: Names) -> Result:
    """Fit each LLM and format of energy-code-eval on one side of batch 32, judge the other."""
    sides = {
        side: judge(
            data.code, names, EVERYONE, protocol="unseen-batch", choose=("batch_size",),
            per=("llm", "precision"), batch_cut=32, direction=side,
        )
        for side in SIDES
    }  # fmt: skip
    return {**sides, "phases": _phases(data.code)}


def batch_pooled(data: Data, names: Names) -> Result:
    """Cut batches at the median of each scenario of ML.ENERGY; fit pooled, and each alone."""
    return {
        f"{source} {fitted} {side}": judge(
            getattr(data, source), names, EVERYONE, protocol="unseen-batch", choose=FREE,
            per=per, direction=side,
        )
        for source in ("v3", "v2")
        for fitted, per in (("pooled", ()), ("alone", ("llm", "gpu", "precision", "task")))
        for side in SIDES
    }  # fmt: skip


def unseen_length(data: Data, names: Names) -> Result:
    """Fit short sequences and judge long ones, and the reverse, where sources hold both.

    energy-code-eval and Argonne sweep lengths: the cut is the median. In ML.ENERGY v3 lengths
    are those of tasks, and no row on the judged side of one cut for all is fitted.
    """
    sources: dict[str, tuple[Dataset, Mapping[str, Any]]] = {
        "code": (data.code, {"choose": ("batch_size",), "per": ("llm", "precision")}),
        "argonne": (data.argonne, {"choose": ("tensor_parallel",)}),
        "v3": (data.v3, {"choose": FREE, "length_cut": LONG_TOKENS}),
    }
    return {
        f"{source} {side}": judge(
            dataset, names, EVERYONE, protocol="unseen-length", direction=side, **options
        )
        for source, (dataset, options) in sources.items()
        for side in SIDES
    }


def unseen_engine(data: Data, names: Names) -> Result:
    """Leave out vLLM 0.5.4 or 0.11.1; then give back a few of its rows."""
    return judge(
        data.engines, names, (*EVERYONE, SCALED, *UNTOLD), protocol="unseen-engine", choose=FREE,
        calibration=(0, 3, 5, 10), repeats=20,
    )  # fmt: skip


def unseen_source(data: Data, names: Names) -> Result:
    """Leave out each source, with its GPUs, engine version and LLMs; then give ten rows back."""
    return judge(
        Dataset.concatenate([data.v2, data.v3, data.argonne, data.code]), names,
        (*EVERYONE, SCALED), protocol="unseen-engine", choose=FREE, calibration=(0, 10), repeats=5,
    )  # fmt: skip


def engines_together(data: Data, names: Names) -> Result:
    """Learn from 50 rows of several engine versions: each fitted by itself, or all together."""
    every = [data.v2, data.v3]
    return {
        label: judge(
            Dataset.concatenate(parts), names, ("energylens", "energylens-untold"),
            protocol="few-shot", choose=FREE, train=50, repeats=REPEATS,
        )
        for label, parts in (
            ("ML.ENERGY v2 and v3", every), ("all four", [*every, data.argonne, data.code])
        )
    }  # fmt: skip


def _phases(dataset: Dataset) -> Result:
    """Errors of the law's prefill and decode parts where those were measured apart.

    Fitted per LLM and format on batches up to 32, to totals alone: no phase is ever shown.
    """
    measured = ~np.isnan(dataset.prefill_energy_per_request_j)
    keys = np.array(
        [f"{a} {b}" for a, b in zip(dataset.llm_ids, dataset.precision_ids, strict=True)]
    )
    errors: dict[str, list[float]] = {"prefill": [], "decode": []}
    for key in np.unique(keys):
        small = (keys == key) & (dataset.cases.batch_size <= 32)
        large = (keys == key) & (dataset.cases.batch_size > 32) & measured
        if small.sum() < 3 or not large.any():
            continue
        model = fitting.fit(dataset.take(small))
        judged = dataset.take(large)
        for phase, part in zip(errors, model.predict_parts_j(judged.cases), strict=True):
            truth = getattr(judged, f"{phase}_energy_per_request_j")
            errors[phase].append(float(np.abs(part.sum(axis=1) / truth - 1).mean()))
    return {
        phase: {"groups": len(values), "mape_group_median_ratio": float(np.median(values))}
        for phase, values in errors.items()
    }


def intervals(data: Data, _names: Names) -> Result:
    """Coverage of 80 % intervals on the half of ML.ENERGY v3 that chose how they are made.

    And on the other half, which was looked at afterwards: each fitted and judged alone.
    """
    chose = choosing(data.v3)
    asked: dict[str, Mapping[str, Any]] = {
        "50 rows": {"protocol": "few-shot", "train": 50, "repeats": REPEATS},
        "50 rows, strict": {
            "protocol": "few-shot",
            "train": 50,
            "repeats": REPEATS,
            "strict": True,
        },
        "unseen LLM": {"protocol": "unseen-llm"},
        "unseen modality": {"protocol": "unseen-modality"},
        "larger batches": {"protocol": "unseen-batch", "direction": "larger"},
        "smaller batches": {"protocol": "unseen-batch", "direction": "smaller"},
    }
    return {
        half: {
            name: judge(data.v3.take(rows), ("energylens",), (), choose=FREE, **options)[
                "estimators"
            ]["energylens"]["interval_coverage_ratio"]
            for name, options in asked.items()
        }
        for half, rows in (("chose", chose), ("did not choose", ~chose))
    }


def workload(data: Data, _names: Names) -> Result:
    """Fit the published three-term law (arXiv 2407.04014) under either loss, in sample.

    Its authors fit each LLM on each system; here each group also has one layout and one batch
    or all of them. In both sources input lengths are fixed or equal the output, so only two of
    its three terms can be told apart; the fit they span is the same.
    """
    c = data.argonne.cases
    code = data.code.take(
        (data.code.llm_ids == "codellama/CodeLlama-7b-Instruct-hf")
        & (data.code.precision_ids == "bf16")
    )
    sets = {
        "Argonne DeciLM-7B, H100, TP 1, batch 1": data.argonne.take(
            (c.tensor_parallel == 1) & (c.batch_size == 1)
        ),
        "Argonne DeciLM-7B, H100, every layout and batch": data.argonne,
        "energy-code-eval CodeLlama-7b bf16, A100, batch 1": code.take(code.cases.batch_size == 1),
        "energy-code-eval CodeLlama-7b bf16, A100, every batch": code,
    }
    result: Result = {}
    for name, rows in sets.items():
        lin, lout = rows.cases.input_tokens, rows.cases.output_tokens
        y = rows.energy_per_request_j
        terms = np.column_stack([lin, lout, lin * lout])
        scale = np.abs(terms).max(axis=0)
        result[name] = {"rows": len(rows)}
        for loss, weight in (("ordinary", np.ones_like(y)), ("relative", 1.0 / y)):
            solution = np.linalg.lstsq(terms / scale * weight[:, None], y * weight, rcond=1e-10)[0]
            error = np.abs(terms / scale @ solution / y - 1)
            result[name][f"{loss}_mape_ratio"] = float(error.mean())
    return result


def assumptions(data: Data, _names: Names) -> Result:
    """Halve and double every assumed prompt length."""
    tasks = sorted(set(data.v3.task))
    middle = {task: data.v3.take(data.v3.task == task) for task in tasks}
    text = {
        task: float(np.median(d.cases.input_tokens - d.cases.vision_tokens))
        for task, d in middle.items()
    }
    vision = {
        task: float(np.median(d.cases.vision_tokens))
        for task, d in middle.items()
        if d.cases.vision_tokens.any()
    }
    result = {}
    for label, factor in (("as documented", None), ("halved", 0.5), ("doubled", 2.0)):
        dataset = data.v3
        if factor is not None:
            dataset = data.read(
                "mlenergy-v3",
                "mlenergy-v3",
                assume_input_tokens={task: factor * n for task, n in text.items()},
                assume_vision_tokens={task: factor * n for task, n in vision.items()},
            )
        result[label] = judge(
            dataset, None, ("energylens",), protocol="few-shot", choose=FREE, train=50,
            repeats=REPEATS,
        )["estimators"]["energylens"]  # fmt: skip
    return result


def calibration(data: Data, _names: Names) -> Result:
    """Compare the stated probability of being best with how often candidates are.

    Learned from 50 rows, 20 draws. Every candidate of every scenario is one statement, and what
    is said of the candidate chosen, the one predicted to take least, is shown by itself: over
    all scenarios and over those that hold no training row. And the choices of each source: how
    probabilities are stated was chosen on the first four.
    """
    edges = np.array([0.0, 0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0])
    every = _statements(data.v3, FREE)
    chosen = every[every[:, 3] > 0]

    def outcome(statements: FloatArray) -> Result:
        stated, best, near = statements[:, :3].mean(axis=0).tolist()
        return {
            "candidates": len(statements),
            "stated_ratio": stated,
            "best_ratio": best,
            "within_noise_ratio": near,
        }

    def bins(statements: FloatArray) -> list[Result]:
        place = np.clip(np.digitize(statements[:, 0], edges) - 1, 0, len(edges) - 2)
        return [
            {
                "from_ratio": float(edges[k]),
                "to_ratio": float(edges[k + 1]),
                **outcome(statements[place == k]),
            }
            for k in range(len(edges) - 1)
            if (place == k).any()
        ]

    def source(dataset: Dataset, choose: Sequence[str], train: int = 50) -> Result:
        said = _statements(dataset, choose, train)
        picked = said[said[:, 3] > 0]
        stated = np.clip(said[:, 0], 0.5 / SAMPLES, 1.0 - 0.5 / SAMPLES)
        kept = np.where(said[:, 1] > 0, stated, 1.0 - stated)
        return {
            "scenarios": len(dataset.scenarios(choose)),
            **outcome(picked),
            "stated_regret_ratio": float(picked[:, 5].mean()),
            "regret_ratio": float(picked[:, 6].mean()),
            "log_loss_nats": float(-np.log(kept).sum() / len(picked)),
        }

    chose = choosing(data.v3)
    return {
        "bins": bins(every),
        "chosen": bins(chosen),
        "chosen_in_all": outcome(chosen),
        "chosen_untrained": outcome(chosen[chosen[:, 4] > 0]),
        "sources": {
            "ML.ENERGY v3, the half that chose": source(data.v3.take(chose), FREE),
            "ML.ENERGY v2": source(data.v2, FREE),
            "Argonne": source(data.argonne, ("tensor_parallel",), 40),
            "energy-code-eval": source(data.code, ("batch_size",)),
            "ML.ENERGY v3, the half that did not choose": source(data.v3.take(~chose), FREE),
        },
    }


def _statements(dataset: Dataset, choose: Sequence[str], train: int = 50) -> FloatArray:
    """Make one row for each candidate, scenario and draw of training rows.

    Columns: probability stated, whether it is the best, whether it is within 2 %, whether it is
    the one chosen, whether the scenario holds no training row, and the regret of the scenario's
    choice, as stated and as it is.
    """
    energy, said = dataset.energy_per_request_j, []
    for draw in range(20):
        trained = np.random.default_rng([SEED, draw]).permutation(len(energy))[:train]
        model = fitting.fit(dataset.take(trained))
        for rows in dataset.scenarios(choose):
            cases = dataset.cases.take(rows)
            drawn = model.sample_energy_j(cases, SAMPLES, draw)
            predicted = model.predict_energy_j(cases)
            lowest, choice = drawn.min(axis=1), int(predicted.argmin())
            best = energy[rows].min()
            said.append(
                np.column_stack(
                    [
                        (drawn == lowest[:, None]).mean(axis=0),
                        energy[rows] == best,
                        energy[rows] <= 1.02 * best,
                        np.arange(len(rows)) == choice,
                        np.full(len(rows), not np.isin(rows, trained).any()),
                        np.full(len(rows), np.mean(drawn[:, choice] / lowest) - 1.0),
                        np.full(len(rows), energy[rows[choice]] / best - 1.0),
                    ]
                )
            )
    return np.concatenate(said)


def coefficients(data: Data, _names: Names) -> Result:
    """The twelve on each source."""

    def theta(model: EnergyModel) -> list[float]:
        return [round(float(v), 4) for v in model.pooled.theta]

    v2 = data.v2
    return {
        "ML.ENERGY v3, H100": theta(fitting.fit(data.v3)),
        "ML.ENERGY v2, H100": theta(fitting.fit(v2.take(v2.gpu_ids == "H100-SXM-80GB"))),
        "ML.ENERGY v2, A100": theta(fitting.fit(v2.take(v2.gpu_ids == "A100-SXM-40GB"))),
        "Argonne, H100 node": theta(fitting.fit(data.argonne)),
        "energy-code-eval, A100": theta(fitting.fit(data.code)),
    }


STUDIES: dict[str, Callable[[Data, Names], Result]] = {
    "coefficients": coefficients,
    "workload": workload,
    "argonne": argonne,
    "unseen-llm": unseen_llm,
    "unseen-backbone": unseen_backbone,
    "power": power,
    "limit": limit,
    "assumptions": assumptions,
    "batch": batch,
    "unseen-modality": unseen_modality,
    "unseen-gpu": unseen_gpu,
    "unseen-gpu-knobs": unseen_gpu_knobs,
    "misses": misses,
    "unseen-engine": unseen_engine,
    "unseen-source": unseen_source,
    "engines-together": engines_together,
    "unseen-length": unseen_length,
    "batch-pooled": batch_pooled,
    "intervals": intervals,
    "calibration": calibration,
    "few-shot": few_shot,
    "strict": strict,
    "tuned": tuned,
    "curve": curve,
}
