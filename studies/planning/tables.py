"""From results to the tables between the markers of docs/studies/planning.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from energylens.words import percent
from studies.planning.replay import as_telling, needed
from studies.results.tables import Results, Tables, markdown

SOURCES = {
    "v3": "ML.ENERGY v3, H100 pooled",
    "v2-a100": "ML.ENERGY v2, A100",
    "v2-h100": "ML.ENERGY v2, H100",
    "argonne": "Argonne, node",
}
LAWS = {"law, no prior": "no prior", "law": "datasheet prior"}
TOLD_ROWS = (8, 16, 32)
CURVE_SIZES = (4, 8, 12, 16, 32, 48, 128, 300)


def _rows(value: int | None, most: int) -> str:
    return f"> {most}" if value is None else str(value)


def _most(result: Results, way: str, fit: str) -> int:
    sizes = next(c["sizes"] for c in result["curves"] if (c["way"], c["fit"]) == (way, fit))
    return int(max(sizes))


def _needed(question: str) -> Callable[[Results], str]:
    ways = ("planned", "coefficients only", "choice only", "random")

    def table(results: Results) -> str:
        rows = []
        for source, title in SOURCES.items():
            if source not in results:
                continue
            result = results[source]
            for fit, fit_title in LAWS.items():
                counts = {way: needed(result, way, fit, question) for way in ways}
                cells = [_rows(counts[way], _most(result, way, fit)) for way in ways]
                plan, chance = counts["planned"], counts["random"]
                rows.append((title, fit_title, *cells, _fewer(result, fit, plan, chance)))
        header = ("rows", "fit", "planned", "for coefficients only", "for the choice only",
                  "random", "random over planned")  # fmt: skip
        return markdown(header, rows)

    return table


def _marks(results: Results) -> str:
    def three(score: Mapping[str, float]) -> str:
        return (
            f"{percent(score['top1_ratio'], 0)} / {percent(score['regret_ratio'], 2)} / "
            f"{percent(score['mape_ratio'])}"
        )

    rows = [
        (
            title,
            str(results[source]["rows"]),
            str(results[source]["scenarios"]),
            three(results[source]["datasheet"]),
            *(three(results[source]["final"][fit]) for fit in LAWS),
        )
        for source, title in SOURCES.items()
        if source in results
    ]
    return markdown(
        ("Top-1 / regret / MAPE", "rows", "scenarios", "datasheet alone",
         *(f"all rows, {title}" for title in LAWS.values())),
        rows,
    )  # fmt: skip


def _fewer(result: Results, fit: str, plan: int | None, chance: int | None) -> str:
    if plan is None:
        return "-"
    if chance is None:
        return f"> {_most(result, 'random', fit) / plan:.1f}"
    return f"{chance / plan:.1f}"


def _ensembles(results: Results) -> str:
    rows = []
    for source, title in SOURCES.items():
        if source not in results:
            continue
        result = results[source]
        cells = [
            _rows(needed(result, way, fit, "choice"), _most(result, way, fit))
            for way, fit in (
                ("planned", "law"), ("planned", "law, no prior"), ("random", "law"),
                ("random", "law, no prior"), ("random", "random-forest"), ("random", "xgboost"),
            )
        ]  # fmt: skip
        rows.append((title, *cells))
    header = ("rows", "law, planned", "law without prior, planned", "law, random",
              "law without prior, random", "random forest, random", "xgboost, random")  # fmt: skip
    return markdown(header, rows)


def _curve(source: str, fit: str) -> Callable[[Results], str]:
    def table(results: Results) -> str:
        result = results[source]
        rows = []
        for c in result["curves"]:
            if c["fit"] not in (fit, "random-forest", "xgboost"):
                continue
            shown = c["fit"] if c["fit"] != fit else "law"
            cells = []
            for size in CURVE_SIZES:
                if size in c["sizes"]:
                    i = c["sizes"].index(size)
                    top1, regret, mape = (
                        c[m][i] for m in ("top1_ratio", "regret_ratio", "mape_ratio")
                    )
                    cells.append(
                        f"{100 * top1[0]:.0f} / {100 * regret[0]:.2f} ({100 * regret[2]:.2f}) / "
                        + (f"{100 * mape[0]:.1f}" if mape[0] < 10 else "> 1000")
                    )
                else:
                    cells.append("-")
            rows.append((f"{shown}, {c['way']}", *cells))
        final = result["final"][fit]
        rows.append(
            ("all rows", *[""] * (len(CURVE_SIZES) - 1),
             f"{100 * final['top1_ratio']:.0f} / {100 * final['regret_ratio']:.2f} / "
             f"{100 * final['mape_ratio']:.1f}")
        )  # fmt: skip
        return markdown(
            ("Top-1 / regret (its 90th percentile) / MAPE, in %", *map(str, CURVE_SIZES)), rows
        )

    return table


def _told(results: Results) -> str:
    rows = []
    for source, title in SOURCES.items():
        if source in results:
            cells = []
            for planned in TOLD_ROWS:
                same = as_telling(results[source], "coefficients only", planned)
                cells.append(_rows(same, _most(results[source], "random", "law")))
            rows.append((title, *cells))
    return markdown(
        ("random rows that tell as much as", *(f"{n} planned" for n in TOLD_ROWS)), rows
    )


def _verdicts(results: Results) -> str:
    rows = []
    for source in ("v3", "argonne"):
        for line in results.get(source, {}).get("verdicts", ()):
            rows.append(
                (
                    f"{SOURCES[source]}, {line['way']}",
                    str(line["rows"]),
                    f"{line['probability_ratio']:.2f}",
                    f"{line['top1_ratio']:.2f}",
                    percent(line["expected_regret_ratio"], 2),
                    percent(line["regret_ratio"], 2),
                    percent(line["change_ratio"], 2),
                    percent(line["stop_ratio"], 0),
                )
            )
    header = ("rows", "measured", "says: best", "is best", "says: regret", "is regret",
              "says: four more change it by", "says stop")  # fmt: skip
    return markdown(header, rows)


TABLES: Tables = {
    "marks": _marks,
    "choice": _needed("choice"),
    "error": _needed("error"),
    "ensembles": _ensembles,
    "told": _told,
    "verdicts": _verdicts,
    "curve-v3": _curve("v3", "law, no prior"),
    "curve-argonne": _curve("argonne", "law"),
}
