"""From results to the tables between the markers of a document."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from energylens import files
from energylens.charts.parts import beside, chart, log_ticks
from energylens.charts.theme import Spec
from energylens.report.drawing import Picture
from energylens.words import percent
from studies.curves import Curve, panel

Results = Mapping[str, Any]
Tables = Mapping[str, Callable[[Results], str]]
#: Pages that hold the tables.
DOCUMENTS = ("README.md", "docs/results.md", "docs/studies/tables.md")
MARK = re.compile(r"(<!-- results:([a-z0-9-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

_OF_EACH = {
    "precisions": "format", "architectures": "architecture", "modalities": "modality",
    "layouts": "layout",
}  # fmt: skip
#: Who stands in the README's table.
SHOWN = (
    "energylens",
    "energylens-datasheet",
    "extra-trees-on-datasheet",
    "largest-batch-per-gpu",
)
COLUMNS = (
    ("Top-1", "top1_ratio", 1),
    ("pairwise", "pairwise_ratio", 1),
    ("regret", "regret_mean_ratio", 2),
    ("MAPE", "mape_ratio", 1),
    ("80 % covers", "interval_coverage_ratio", 0),
)
SOURCES = {
    "v3": "ML.ENERGY v3, H100",
    "v2": "ML.ENERGY v2, A100 and H100",
    "argonne": "Argonne, four H100, node",
    "code": "energy-code-eval, A100",
}


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


def _bold(name: str) -> str:
    return f"**{name}**" if name == "energylens" else name


def _cells(score: Mapping[str, float], columns: Any = COLUMNS) -> list[str]:
    return [percent(score.get(metric), digits) for _, metric, digits in columns]


def _by_regret(estimators: Mapping[str, Mapping[str, float]]) -> list[str]:
    return sorted(estimators, key=lambda n: estimators[n].get("regret_mean_ratio", float("inf")))


def scores(estimators: Mapping[str, Mapping[str, float]]) -> str:
    """One line for each estimator, least regret first."""
    rows = [[_bold(name), *_cells(estimators[name])] for name in _by_regret(estimators)]
    return markdown(("estimator", *(title for title, _, _ in COLUMNS)), rows)


def headline(results: Results) -> str:
    """What the README shows: 50 rows of v3, and an LLM that none of them speaks of."""
    few, unseen = results["few-shot"]["estimators"], results["unseen-llm"]["estimators"]
    columns, regret = COLUMNS[:1] + COLUMNS[2:4], COLUMNS[2:3]
    rows = [[_bold(n), *_cells(few[n], columns), *_cells(unseen[n], regret)] for n in SHOWN]
    titles = [title for title, _, _ in columns]
    return markdown(("estimator", *titles, "regret, unseen LLM"), rows)


def layouts(results: Results) -> str:
    """Parallelism at a fixed batch, source by source."""
    names = list(next(iter(results["parallelism"].values()))["estimators"])
    columns = (COLUMNS[0], COLUMNS[2])
    rows = []
    for source, judged in results["parallelism"].items():
        about = f"{SOURCES[source]}: {judged['scenarios']} scenarios, {judged['pairs']} of one pair"
        for name in names:
            rows.append([about, _bold(name), *_cells(judged["estimators"][name], columns)])
    return markdown(("source", "estimator", *(title for title, _, _ in columns)), rows)


def gpus(results: Results) -> str:
    """An unseen GPU type, with no row of it and with five."""
    none, five = results["unseen-gpu"]["curve"]
    columns = COLUMNS[2:]
    rows = [
        [_bold(n), *_cells(none[n], columns), *_cells(five[n], columns)] for n in _by_regret(none)
    ]
    titles = [title for title, _, _ in columns]
    return markdown(("estimator", *titles, *(f"{title}, 5 rows" for title in titles)), rows)


def curve(results: Results) -> str:
    """One to ten rows."""
    rows = [
        [str(point["energylens"]["train_rows"]),
         percent(point["energylens"].get("mape_ratio")),
         percent(point["energylens"].get("interval_coverage_ratio"), 0),
         percent(point["energylens-datasheet"].get("mape_ratio")),
         percent(point["log-linear"].get("mape_ratio"))]
        for point in results["few-rows"]["curve"]
    ]  # fmt: skip
    header = ("rows", "energylens, MAPE", "80 % covers", "datasheet, MAPE", "log-linear, MAPE")
    return markdown(header, rows)


def others(results: Results) -> str:
    """Other sources, as known beforehand."""
    rows = [
        [SOURCES[source], _bold(name), *_cells(judged["estimators"][name])]
        for source, judged in results["others"].items()
        for name in _by_regret(judged["estimators"])
    ]
    return markdown(("source", "estimator", *(title for title, _, _ in COLUMNS)), rows)


def covered(results: Results) -> str:
    """What the 80 % intervals hold, group by group, with 50 rows of v3."""
    rows = [
        [_OF_EACH[kind], name, percent(ratio, 0)]
        for kind, groups in results["few-shot-hindsight"]["covered"].items()
        for name, ratio in groups.items()
    ]
    return markdown(("of each", "group", "80 % covers"), rows)


def draw_curves(results: Results, path: Path) -> None:
    """Draw error and regret against training rows, as SVG that is the same each time."""
    points = results["curve"]["curve"]
    rows = [p["energylens"]["train_rows"] for p in points]
    names = list(points[0])
    roles = [f"category-{k + 1}" for k in range(len(names))]

    def draw(width: int) -> Spec:
        panels = []
        for metric, title in (
            ("mape_ratio", "error of joules (MAPE, %)"),
            ("regret_mean_ratio", "mean regret of the choice (%)"),
        ):
            known = {name: [p[name] for p in points if metric in p[name]] for name in names}
            curves = [
                Curve(
                    name=name,
                    rows=[p["train_rows"] for p in some],
                    values=[100 * p[metric] for p in some],
                )
                for name, some in known.items()
                if some
            ]
            values = [v for curve in curves for v in curve.values]
            limits = (0.8 * min(values), 1.25 * max(values))
            panels.append(
                panel(curves, names, roles, title=title, x_title="training rows", ticks=rows,
                      limits=limits, y_ticks=log_ticks(*limits), height=230)
            )  # fmt: skip
        return chart(
            "Error and regret against the rows fitted.",
            {
                "resolve": {"scale": {"color": "shared", "shape": "shared"}},
                **beside(panels, width, indent=36, shares=(1, 1), between=64),
            },
        )

    picture = Picture(
        name="learning-curves",
        title="Error and regret against training rows",
        caption="",
        alternative="Error of joules and mean regret of the choice against the rows fitted, for "
        + ", ".join(names)
        + ".",
        draw=draw,
    )
    files.write_text(path, picture.standalone_svg())


#: Every table by the name between its markers.
TABLES: dict[str, Callable[[Results], str]] = {
    "headline": headline,
    "parallelism": layouts,
    "few-shot": lambda r: scores(r["few-shot"]["estimators"]),
    "few-shot-hindsight": lambda r: scores(r["few-shot-hindsight"]["estimators"]),
    "unseen-llm": lambda r: scores(r["unseen-llm"]["estimators"]),
    "unseen-llm-hindsight": lambda r: scores(r["unseen-llm-hindsight"]["estimators"]),
    "unseen-gpu": gpus,
    "few-rows": curve,
    "others": others,
    "covered": covered,
}
