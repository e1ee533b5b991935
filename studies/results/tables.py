"""From results to the tables between the markers of a document."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from energylens.formula import NAMES

Results = Mapping[str, Any]
Tables = Mapping[str, Callable[[Results], str]]
MARK = re.compile(r"(<!-- results:([a-z0-9-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

MODALITIES = ("text", "image", "video")
LISTED = 8  # scenarios missed, worst first

#: Who stands in the README's table.
SHOWN = (
    "energylens",
    "energylens-extended",
    "energylens-datasheet",
    "random-forest",
    "extra-trees-enhanced",
    "gradient-boosting",
    "gradient-boosting-enhanced",
    "xgboost",
    "lightgbm",
    "log-linear",
    "logistic-batch",
    "workload",
    "tdp-time-predicted",
    "utilisation-power-predicted",
    "latency-predicted",
    "largest-batch-per-gpu",
)

COLUMNS = (
    ("Top-1", "top1_ratio", 1),
    ("in noise", "top1_within_noise_ratio", 1),
    ("pairwise", "pairwise_ratio", 1),
    ("regret", "regret_mean_ratio", 2),
    ("MAPE", "mape_ratio", 1),
    ("80 % covers", "interval_coverage_ratio", 0),
)


def compact(results: Mapping[str, Any]) -> str:
    """Give a document as JSON with a line for each entry, in nine digits."""

    def rounded(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: rounded(item) for key, item in value.items()}
        if isinstance(value, list):
            return [rounded(item) for item in value]
        return float(f"{value:.9g}") if isinstance(value, float) else value

    lines = (f"{json.dumps(key)}: {json.dumps(rounded(v))}" for key, v in results.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def fill(text: str, results: Results, tables: Tables) -> str:
    """Replace what stands between each pair of markers by the table of its name."""

    def table(match: re.Match[str]) -> str:
        start, name, end = match.groups()
        try:
            return f"{start}{tables[name](results)}\n{end}"
        except KeyError:
            return match.group(0)  # not run yet: leave what stands there

    return MARK.sub(table, text)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Set a table, the first column flush left."""
    lines = ["| " + " | ".join(header) + " |"]
    lines.append("|---" + "|---:" * (len(header) - 1) + "|")
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def percent(value: float | None, digits: int = 1) -> str:
    """Write a ratio as a percentage."""
    if value is None:
        return "-"
    return "> 1000 %" if value > 10 else f"{100 * value:.{digits}f} %"


def _regret(item: tuple[str, Mapping[str, float]]) -> tuple[bool, float]:
    value = item[1].get("regret_mean_ratio")
    return value is None, value or 0.0


def _error(score: Mapping[str, float]) -> float | None:
    """MAPE, as the median over draws where there are several."""
    return score.get("mape_median_of_draws_ratio", score.get("mape_ratio"))


def _bold(name: str) -> str:
    return f"**{name}**" if name == "energylens" else name


def _cells(score: Mapping[str, float], columns: Any) -> list[str]:
    return [
        percent(_error(score) if metric == "mape_ratio" else score.get(metric), digits)
        for _, metric, digits in columns
    ]


#: What stands in one cell where a table compares conditions side by side.
TOGETHER = "Top-1 / pairwise / regret / MAPE, %"


def _together(score: Mapping[str, float], error: float | None) -> str:
    """Say how well an estimator chooses, orders and predicts, in one cell, in percent."""
    nought = 0.0 if "pairwise_ratio" in score else None  # groups are kept without their zeros
    values = (
        (score.get("top1_ratio", nought), 1),
        (score.get("pairwise_ratio"), 1),
        (score.get("regret_mean_ratio", nought), 2),
        (error, 1),
    )
    return " / ".join(percent(value, digits).removesuffix(" %") for value, digits in values)


def scores(estimators: Mapping[str, Mapping[str, float]], columns: Any = COLUMNS) -> str:
    """One line for each estimator, least regret first."""
    rows = [
        (_bold(name), *_cells(score, columns))
        for name, score in sorted(estimators.items(), key=_regret)
    ]
    return markdown(("estimator", *(title for title, _, _ in columns)), rows)


def _curve(results: Results, metric: str, digits: int) -> str:
    points = results["curve"]["curve"]
    sizes = [str(max(s["train_rows"] for s in point.values())) for point in points]
    names = sorted(points[2].items(), key=_regret)
    rows = [
        (
            _bold(name),
            *(
                percent(
                    _error(point[name]) if metric == "mape_ratio" else point[name].get(metric),
                    digits,
                )
                for point in points
            ),
        )
        for name, _ in names
    ]
    return markdown(("estimator", *(f"n = {size}" for size in sizes)), rows)


def _headline(results: Results) -> str:
    """The law, the law unfitted, and whoever else chooses best, with few rows or unseen LLMs."""
    few, unseen = results["few-shot"]["estimators"], results["unseen-llm"]["estimators"]
    others = [n for n in few if n in SHOWN and n in unseen and not n.startswith("energylens")]
    names = {
        "energylens",
        "energylens-datasheet",
        *(min(others, key=lambda name: _regret((name, scores[name]))) for scores in (few, unseen)),
    }
    rows = [
        (
            _bold(name),
            percent(score["top1_ratio"]),
            percent(score["regret_mean_ratio"], 2),
            percent(_error(score)),
            percent(unseen[name]["regret_mean_ratio"], 2),
        )
        for name, score in sorted(few.items(), key=_regret)
        if name in names
    ]
    return markdown(("estimator", "Top-1", "regret", "MAPE", "regret, unseen LLM"), rows)


def _modalities(results: Results) -> str:
    by_name = results["few-shot"]["modalities"]["energylens"]
    return markdown(
        ("modality", *(title for title, _, _ in COLUMNS)),
        [
            (name, *(percent(m.get(metric, 0.0), digits) for _, metric, digits in COLUMNS))
            for name, m in by_name.items()
        ],
    )


def _coverage_apart(results: Results) -> str:
    """How the law's coverage comes about: modality by modality."""
    studies = {
        "v3, 50 rows": "few-shot",
        "v3, 50 rows, strict": "strict",
        "v3, unseen LLM": "unseen-llm",
        "v3, unseen text backbone": "unseen-backbone",
        "v3, unseen modality": "unseen-modality",
    }
    rows = []
    for title, study in studies.items():
        law = results[study]["modalities"]["energylens"]
        overall = results[study]["estimators"]["energylens"]["interval_coverage_ratio"]
        apart = (law[m].get("interval_coverage_ratio", 0.0) for m in MODALITIES)
        rows.append((title, *(percent(value, 0) for value in (overall, *apart))))
    return markdown(("80 % intervals of the law hold", "all rows", *MODALITIES), rows)


def _coverage_llms(results: Results) -> str:
    """Architectures left out whose rows the law's intervals hold least often."""
    covered = results["unseen-llm"]["covered"]["energylens"]
    least = sorted(covered.items(), key=lambda item: item[1])
    rows = [(name, percent(value, 0)) for name, value in least if value < 1]
    whole = sum(value == 1 for value in covered.values())
    return markdown(
        ("architecture left out", "80 % intervals hold"),
        [*rows, (f"each of the other {whole}", "100 %")],
    )


def _batch(results: Results) -> str:
    titles = {
        "larger": "fitted to batch <= 32, judged above",
        "smaller": "fitted above, judged below",
    }
    return _columns(results["batch"], titles)


def _phases(results: Results) -> str:
    return markdown(
        ("part", "groups", "MAPE, median over groups"),
        [
            (phase, str(value["groups"]), percent(value["mape_group_median_ratio"]))
            for phase, value in results["batch"]["phases"].items()
        ],
    )


def _gpu(results: Results) -> str:
    points = results["unseen-gpu"]["curve"]
    return markdown(
        (TOGETHER, "0 rows", "3 rows", "5 rows", "10 rows"),
        [
            (_bold(name), *(_together(point[name], _error(point[name])) for point in points))
            for name in sorted(points[0], key=lambda n: _error(points[0][n]) or math.inf)
        ],
    )


def _knobs(results: Results) -> str:
    """Pairs ordered rightly, near ties left out in brackets, and choices within noise."""
    by_knob = results["unseen-gpu-knobs"]
    rows = []
    for name in next(iter(by_knob.values()))["estimators"]:
        cells = []
        for found in by_knob.values():
            score = found["estimators"][name]
            cells.append(
                f"{percent(score['pairwise_ratio'])} ({percent(score['pairwise_clear_ratio'])}) / "
                f"{percent(score['top1_within_noise_ratio'])}"
            )
        rows.append((_bold(name), *cells))
    heads = (f"free: {knob} ({found['scenarios']} scenarios)" for knob, found in by_knob.items())
    return markdown(("pairwise (clear pairs) / Top-1 in noise", *heads), rows)


def _misses(label: str) -> Callable[[Results], str]:
    def table(results: Results) -> str:
        found = results["misses"][label]
        other = {s["scenario"]: s for s in found["energylens-extended"]}
        rows = []
        for s in found["energylens"][:LISTED]:
            extended = other.get(s["scenario"], {}).get("top1_ratio")
            rows.append(
                (
                    s["scenario"].replace(" | ", ", "),
                    s["best"],
                    s["chosen"] or "-",
                    percent(s["regret_mean_ratio"]),
                    percent(s["top1_ratio"], 0),
                    "over 95 %" if extended is None else percent(extended, 0),
                )
            )
        header = ("scenario", "best", "chosen (most often)", "regret", "Top-1", "extended: Top-1")
        return markdown(header, rows)

    return table


def _columns(results: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    """Choice, order and error side by side under several conditions, least error first."""
    scores = {key: results[key]["estimators"] for key in titles}

    def error(score: Mapping[str, float]) -> float | None:
        return score.get("mape_group_median_ratio", score.get("mape_ratio"))

    def total(name: str) -> tuple[bool, float]:
        errors = [error(scores[key][name]) for key in titles]
        known = [value for value in errors if value is not None]
        return not known, sum(known)

    rows = [
        (
            _bold(name),
            *(_together(scores[key][name], error(scores[key][name])) for key in titles),
        )
        for name in sorted(next(iter(scores.values())), key=total)
    ]
    return markdown((TOGETHER, *titles.values()), rows)


def _batch_pooled(source: str) -> Callable[[Results], str]:
    titles = {
        f"{source} {fitted} {side}": f"{words}, {side} judged"
        for fitted, words in (("pooled", "one fit"), ("alone", "a fit each"))
        for side in ("larger", "smaller")
    }
    return lambda results: _columns(results["batch-pooled"], titles)


def _length(results: Results) -> str:
    titles = {
        f"{source} {side}": f"{words}, {judged} judged"
        for source, words in (("code", "code"), ("argonne", "Argonne"), ("v3", "v3"))
        for side, judged in (("larger", "longer"), ("smaller", "shorter"))
    }
    return _columns(results["unseen-length"], titles)


UNTOLD = "-untold"  # ends the names of estimators that are not told a row's engine


def _engine(engine: str) -> Callable[[Results], str]:
    """One engine version left out, then some of its rows given back."""

    def table(results: Results) -> str:
        points = results["unseen-engine"]["curve"]
        judged = [
            {n: score["groups"][engine] for n, score in p.items() if not n.endswith(UNTOLD)}
            for p in points
        ]
        rows = [
            (
                _bold(name),
                *(_together(p[name], p[name].get("mape_ratio")) for p in judged),
            )
            for name in sorted(judged[0], key=lambda n: judged[0][n].get("mape_ratio", math.inf))
        ]
        return markdown((TOGETHER, "0 rows", "3 rows", "5 rows", "10 rows"), rows)

    return table


def _untold(results: Results) -> str:
    """With ten rows of an engine version: errors of those told it, and not told."""
    judged = results["unseen-engine"]["curve"][-1]
    versions = ("vllm 0.11.1", "vllm 0.5.4")

    def errors(name: str) -> list[float]:
        return [
            judged[n]["groups"][version]["mape_ratio"]
            for version in versions
            for n in (name, name + UNTOLD)
        ]

    names = [name.removesuffix(UNTOLD) for name in judged if name.endswith(UNTOLD)]
    return markdown(
        ("MAPE", "0.11.1, told", "not told", "0.5.4, told", "not told"),
        [
            (_bold(name), *map(percent, errors(name)))
            for name in sorted(names, key=lambda n: sum(errors(n)))
        ],
    )


def _together_engines(results: Results) -> str:
    words = {"energylens": "each version by itself", "energylens-untold": "engines not told"}
    return markdown(
        ("rows of", "fitted", "Top-1", "pairwise", "regret", "MAPE", "80 % covers"),
        [
            (
                source,
                words[name],
                percent(score["top1_ratio"]),
                percent(score["pairwise_ratio"]),
                percent(score["regret_mean_ratio"], 2),
                percent(score["mape_ratio"]),
                percent(score["interval_coverage_ratio"], 0),
            )
            for source, study in results["engines-together"].items()
            for name, score in study["estimators"].items()
        ],
    )


# What the sources are told apart by: each has one version of vLLM, and Argonne names none.
SOURCES = {
    "vllm 0.5.4": "ML.ENERGY v2",
    "vllm 0.11.1": "ML.ENERGY v3",
    "vllm": "Argonne",
    "vllm 0.8.4": "energy-code-eval",
}


def _source(point: int) -> Callable[[Results], str]:
    """Each source left out; after so many calibration sizes. The least error first."""

    def table(results: Results) -> str:
        judged = results["unseen-source"]["curve"][point]

        def error(name: str) -> float:
            groups = judged[name]["groups"]
            return float(sum(groups[key].get("mape_ratio", math.inf) for key in SOURCES))

        rows = [
            (
                _bold(name),
                *(_together(g[key], g[key].get("mape_ratio")) for key in SOURCES),
            )
            for name in sorted(judged, key=error)
            for g in (judged[name]["groups"],)
        ]
        return markdown((TOGETHER, *SOURCES.values()), rows)

    return table


def _coverage(results: Results) -> str:
    """How often the law's 80 % intervals held, protocol by protocol."""
    conditions: list[tuple[str, Results]] = [
        ("v3, 50 rows", results["few-shot"]["estimators"]),
        ("v3, 50 rows, strict", results["strict"]["estimators"]),
        ("v3, batch limit alone", results["limit"]["estimators"]),
        ("v3, unseen LLM", results["unseen-llm"]["estimators"]),
        ("v3, unseen text backbone", results["unseen-backbone"]["estimators"]),
        ("v3, unseen modality", results["unseen-modality"]["estimators"]),
        *(
            (f"v2, unseen GPU, {k} rows", point)
            for k, point in zip((0, 3, 5, 10), results["unseen-gpu"]["curve"], strict=True)
        ),
        *(
            (f"H100, unseen engine version, {k} rows", point)
            for k, point in zip((0, 3, 5, 10), results["unseen-engine"]["curve"], strict=True)
        ),
        *(
            (f"{name} as an unseen source, {k} rows", _of_group(point, key))
            for key, name in SOURCES.items()
            for k, point in zip((0, 10), results["unseen-source"]["curve"], strict=True)
        ),
        ("Argonne, 40 rows", results["argonne"]["estimators"]),
        *(
            (f"energy-code-eval, {side} batches", results["batch"][side]["estimators"])
            for side in ("larger", "smaller")
        ),
        *(
            (
                f"{source}, {side} batches, {words}",
                results["batch-pooled"][f"{source} {fitted} {side}"]["estimators"],
            )
            for source in ("v3", "v2")
            for fitted, words in (("pooled", "one fit"), ("alone", "a fit each"))
            for side in ("larger", "smaller")
        ),
        *(
            (
                f"{words}, {judged} sequences",
                results["unseen-length"][f"{key} {side}"]["estimators"],
            )
            for key, words in (("code", "energy-code-eval"), ("argonne", "Argonne"), ("v3", "v3"))
            for side, judged in (("larger", "longer"), ("smaller", "shorter"))
        ),
    ]
    names = ("energylens", "energylens-extended", "energylens-no-prior", "energylens-datasheet")
    return markdown(
        ("80 % intervals hold", *names),
        [
            (title, *(percent(scores[name].get("interval_coverage_ratio"), 0) for name in names))
            for title, scores in conditions
        ],
    )


def _of_group(scores: Results, group: str) -> Results:
    return {name: score["groups"][group] for name, score in scores.items()}


def _halves(results: Results) -> str:
    halves = results["intervals"]
    return markdown(
        ("80 % intervals hold", *(f"LLMs that {half}" for half in halves)),
        [
            (name, *(percent(half[name], 0) for half in halves.values()))
            for name in next(iter(halves.values()))
        ],
    )


def _workload(results: Results) -> str:
    return markdown(
        ("rows", "number", "ordinary loss: MAPE", "relative loss: MAPE"),
        [
            (
                name,
                str(value["rows"]),
                percent(value["ordinary_mape_ratio"]),
                percent(value["relative_mape_ratio"]),
            )
            for name, value in results["workload"].items()
        ],
    )


def _assumptions(results: Results) -> str:
    return markdown(
        ("assumed lengths", *(title for title, _, _ in COLUMNS[:5])),
        [(name, *_cells(score, COLUMNS[:5])) for name, score in results["assumptions"].items()],
    )


def _coefficients(results: Results) -> str:
    sources = results["coefficients"]
    return markdown(
        ("coefficient", *sources),
        [
            (name, *(f"{theta[k]:.2f}" for theta in sources.values()))
            for k, name in enumerate(NAMES)
        ],
    )


def _calibration(results: Results) -> str:
    return markdown(
        ("stated", "candidates", "mean stated", "were best", "were within 2 % of it"),
        [(_from_to(b), *_kept(b)) for b in results["calibration"]["bins"]],
    )


def _calibration_chosen(results: Results) -> str:
    """Say what was said of the candidate chosen, by itself."""
    found = results["calibration"]
    return markdown(
        ("stated", "choices", "mean stated", "were best", "were within 2 % of it"),
        [
            *((_from_to(b), *_kept(b)) for b in found["chosen"]),
            ("all", *_kept(found["chosen_in_all"])),
            ("no training row in the scenario", *_kept(found["chosen_untrained"])),
        ],
    )


def _calibration_sources(results: Results) -> str:
    """Compare what was said of the candidates chosen in each source with what was true."""
    return markdown(
        (
            "source",
            "scenarios",
            "mean stated",
            "were best",
            "were within 2 % of it",
            "regret stated",
            "regret",
            "log loss",
        ),
        [
            (
                name,
                str(b["scenarios"]),
                *_kept(b)[1:],
                percent(b["stated_regret_ratio"], 2),
                percent(b["regret_ratio"], 2),
                f"{b['log_loss_nats']:.2f}",
            )
            for name, b in results["calibration"]["sources"].items()
        ],
    )


def _from_to(b: Mapping[str, float]) -> str:
    return f"{percent(b['from_ratio'], 0)} to {percent(b['to_ratio'], 0)}"


def _kept(b: Mapping[str, float]) -> tuple[str, ...]:
    ratios = (b[key] for key in ("stated_ratio", "best_ratio", "within_noise_ratio"))
    return str(b["candidates"]), *(percent(value) for value in ratios)


def _catching_up(results: Results) -> str:
    """Where each ensemble first stands as well as the law does after 50 rows."""
    points = results["curve"]["curve"]
    law = next(p["energylens"] for p in points if p["energylens"]["train_rows"] == 50)
    words = ("forest", "trees", "boost", "lightgbm")
    rows = []
    for name in sorted(n for n in points[0] if any(word in n for word in words)):
        cells = []
        for metric, better in (("top1_ratio", 1.0), ("regret_mean_ratio", -1.0)):
            reached = [
                str(p[name]["train_rows"])
                for p in points
                if better * (p[name][metric] - law[metric]) >= 0
            ]
            cells.append(reached[0] if reached else "not by 200")
        rows.append((name, *cells))
    first = next(
        p["energylens"]["train_rows"] for p in points if p["energylens"]["top1_ratio"] >= 0.882
    )
    rows.append(("the law passes Top-1 88.2 %", str(first), ""))
    return markdown(("ensemble", "Top-1 caught up at n =", "regret caught up at n ="), rows)


def draw_curves(results: Results, path: Path) -> None:
    """Draw Top-1 and regret against training rows, as SVG that is the same each time."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "energylens"
    from matplotlib import pyplot as plt

    points = results["curve"]["curve"]
    shown = ("energylens", "energylens-extended", "random-forest", "xgboost",
             "gradient-boosting-enhanced", "log-linear", "largest-batch-per-gpu")  # fmt: skip
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, metric, title in zip(
        axes, ("top1_ratio", "regret_mean_ratio"), ("Top-1 (%)", "mean regret (%)"), strict=True
    ):
        for name in shown:
            axis.plot(
                [p[name]["train_rows"] or 10 for p in points],
                [100 * p[name][metric] for p in points],
                "o-",
                label=name,
                linewidth=2.5 if name == "energylens" else 1.2,
                markersize=3,
            )
        axis.set_xscale("log", base=2)
        axis.set_xticks([10, 15, 25, 50, 100, 200], ["10", "15", "25", "50", "100", "200"])
        axis.set_xlabel("training rows")
        axis.set_title(title, loc="left", fontsize=10)
    axes[1].set_yscale("log")
    axes[0].legend(fontsize=7)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _simple(study: str) -> Callable[[Results], str]:
    return lambda results: scores(results[study]["estimators"])


TABLES: Tables = {
    "headline": _headline,
    "few-shot": _simple("few-shot"),
    "curve-top1": lambda results: _curve(results, "top1_ratio", 1),
    "curve-regret": lambda results: _curve(results, "regret_mean_ratio", 2),
    "curve-mape": lambda results: _curve(results, "median_ape_ratio", 1),
    "modalities": _modalities,
    "strict": _simple("strict"),
    "tuned": _simple("tuned"),
    "limit": _simple("limit"),
    "power": _simple("power"),
    "unseen-llm": _simple("unseen-llm"),
    "unseen-backbone": _simple("unseen-backbone"),
    "unseen-modality": _simple("unseen-modality"),
    "unseen-gpu": _gpu,
    "unseen-gpu-knobs": _knobs,
    "misses-few-shot": _misses("v3, 50 rows"),
    "misses-unseen-llm": _misses("v3, unseen LLM"),
    "misses-unseen-gpu": _misses("v2, unseen GPU"),
    "engine-new": _engine("vllm 0.11.1"),
    "engine-old": _engine("vllm 0.5.4"),
    "engine-untold": _untold,
    "engines-together": _together_engines,
    "source-unseen": _source(0),
    "source-few": _source(1),
    "unseen-length": _length,
    "batch-v3": _batch_pooled("v3"),
    "batch-v2": _batch_pooled("v2"),
    "argonne": _simple("argonne"),
    "batch": _batch,
    "phases": _phases,
    "workload": _workload,
    "assumptions": _assumptions,
    "coefficients": _coefficients,
    "catching-up": _catching_up,
    "calibration": _calibration,
    "calibration-chosen": _calibration_chosen,
    "calibration-sources": _calibration_sources,
    "coverage": _coverage,
    "coverage-modalities": _coverage_apart,
    "coverage-llms": _coverage_llms,
    "halves": _halves,
}
