"""The page's answer to one question as a report: charts that stand still, and no server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from energylens.charts.theme import Spec
from energylens.decisions import seconds
from energylens.report.document import (
    Banner,
    Block,
    Facts,
    Figure,
    Items,
    Prose,
    Report,
    Section,
    Table,
)
from energylens.report.drawing import Picture
from energylens.web.tables import specs
from energylens.words import joules, likelihood, listed, percent, plural, saving

Made = Mapping[str, Any]


def report_of(made: Made, question: str) -> Report:
    """Set what `answers.page` says of a question, its certainties included, as a report.

    Parameters
    ----------
    made : mapping
        Of a question that some configuration answers.
    question : str
        The question in words.
    """
    best, behind = made["decision"]["configurations"][0], made["behind"]
    published = set(behind["sources"]) <= {"measured", "published"}
    counted = ", ".join(f"{count} {name}" for name, count in behind["sources"].items())
    return Report(
        title=f"Run {made['names'][0]} on {best['gpus']} x {best['gpu']}",
        subtitle=question,
        banner=Banner(
            loud=not published,
            headline=f"The model behind this was fitted to {counted or 'no'} rows",
            lines=tuple(made["decision"]["notes"]),
        ),
        sections=(
            Section(name="answer", title="The answer", blocks=_answer(made)),
            Section(
                name="why",
                title="Why",
                blocks=(
                    _front(made),
                    _stacked(made, "joules", "j", "Where the joules go"),
                    _stacked(made, "seconds", "s", "Where the seconds go"),
                ),
            ),
            Section(
                name="rates",
                title="At other rates",
                blocks=(
                    _curve(made, "curve-energy", "Joules a request against the rate"),
                    _curve(made, "curve-tpot", "Time per token against the rate"),
                ),
            ),
            Section(name="law", title="The law, with its numbers", blocks=(_law(made),)),
        ),
    )


def _answer(made: Made) -> tuple[Block, ...]:
    decision = made["decision"]
    best, now, month = decision["configurations"][0], decision["current"], decision["month"]
    facts = [
        (
            "a request",
            joules(best["energy_per_request_j"]),
            f"{joules(best['lower_j'])} to {joules(best['upper_j'])}",
        ),
        ("draws", f"{best['power_w']:,.0f} W", f"{percent(best['utilisation_ratio'], 0)} full"),
        ("TPOT", seconds(best["tpot_s"]), ""),
        ("TTFT", seconds(best["ttft_s"]), ""),
        ("meets the limits", likelihood(best["probability_of_meeting_ratio"]), ""),
    ]
    if now is not None and best["saving_ratio"] is None:
        why = "does not keep up" if now["ttft_s"] is None else "does not meet the limits"
        facts += [("today", why, "a saving against it would mean nothing")]
    elif now is not None:
        today, then = month["current"], month["best"]
        facts += [
            (
                "less than today",
                saving(best["saving_ratio"]),
                f"of {joules(now['energy_per_request_j'])}",
            ),
            ("kWh a month", f"{today['kwh_per_month'] - then['kwh_per_month']:,.0f}", "saved"),
            (
                "kg CO2 a month",
                f"{today['co2_kg_per_month'] - then['co2_kg_per_month']:,.0f}",
                "saved",
            ),
        ]
    return (
        Facts(facts=tuple(facts)),
        Prose(text=" ".join(made["sentences"])),
        Items(title="The line to run", items=(made["commands"]["vllm"].replace(" \\\n ", ""),)),
        Table(
            title="Ranking",
            caption="The best batch limit of each layout that meets the limits",
            columns=("configuration", "GPUs", "a request", "power", "TPOT", "TTFT", "meets"),
            rows=tuple(
                (
                    name,
                    f"{entry['gpus']}",
                    joules(entry["energy_per_request_j"]),
                    f"{entry['power_w']:,.0f} W",
                    seconds(entry["tpot_s"]),
                    seconds(entry["ttft_s"]),
                    likelihood(entry["probability_of_meeting_ratio"]),
                )
                for name, entry in zip(made["names"], decision["configurations"], strict=True)
            ),
            highlight=made["names"][0],
        ),
    )


# --------------------------------------------------------------------------------- the charts


def _drawn(name: str, width: int, datasets: Mapping[str, Sequence[Mapping[str, Any]]]) -> Spec:
    """One of the page's charts with its data, for one width."""
    return {**specs(dark=False)[name], "width": width, "datasets": dict(datasets)}


def _figure(
    name: str, title: str, caption: str, alternative: str, draw: Any, table: Table | None = None
) -> Figure:
    picture = Picture(name=name, title=title, caption=caption, alternative=alternative, draw=draw)
    return Figure(picture=picture, table=table)


def _tpot_limit(made: Made) -> list[dict[str, float]]:
    limits = made["decision"]["question"]["limits"]
    return [{"tpot_ms": 1e3 * each["seconds"]} for each in limits if each["of"] == "tpot"][:1]


def _front(made: Made) -> Figure:
    columns, now = made["pareto"]["candidates"], made["decision"]["current"]
    kinds = list(dict.fromkeys(columns["gpu"]))

    def point(i: int) -> dict[str, Any]:
        return {
            "name": columns["configuration"][i],
            "gpu": columns["gpu"][i],
            "g": f"{kinds.index(columns['gpu'][i])}",
            "gpus": columns["gpus"][i],
            "j": columns["energy_per_request_j"][i],
            "tpot_ms": 1e3 * columns["tpot_s"][i],
            "ok": columns["meets"][i],
        }

    every = [
        point(i)
        for i in range(len(columns["gpu"]))
        if columns["tpot_s"][i] is not None and columns["energy_per_request_j"][i] is not None
    ]
    top = [point(i) for i in made["pareto"]["front"]]
    today = [{"j": now["energy_per_request_j"], "tpot_ms": 1e3 * now["tpot_s"]}] if now else []
    data = {
        "points": every,
        "top": top,
        "front": top,
        "chosen": [point(made["rows"][0])],
        "current": today,
        "limit": _tpot_limit(made),
    }
    return _figure(
        "front",
        "Energy against latency",
        "Each mark is a configuration; strong ones meet the limits. The line joins those that no "
        "other beats in both; the diamond is the choice, the dashed rule the limit, the cross what "
        "runs today.",
        f"{plural(len(every), 'configuration')}; on the front "
        + listed([f"{p['name']} ({joules(p['j'])}, {p['tpot_ms']:.3g} ms)" for p in top[:6]]),
        lambda width: _drawn("front", width, data),
    )


def _stacked(made: Made, name: str, unit: str, title: str) -> Figure:
    base = specs(dark=False)[name]
    words = {term: said for term, (said, _) in base["usermeta"]["key"].items()}
    colours = {term: hue for term, (_, hue) in base["usermeta"]["key"].items()}
    rows = [
        {**row, "name": made["bars"][row["rank"]].replace("batch limit ", "B")}
        for row in made[name]
    ]
    used = list(dict.fromkeys(row["term"] for row in sorted(rows, key=lambda row: row["k"])))

    def draw(width: int) -> Spec:
        chart = _drawn(name, width, {"bars": [{**r, "term": words[r["term"]]} for r in rows]})
        scale = {"domain": [words[t] for t in used], "range": [colours[t] for t in used]}
        legend = {"orient": "top", "columns": 3, "title": None, "symbolLimit": 0}
        hue = {**chart["encoding"]["color"], "scale": scale, "legend": legend}
        return {
            **chart,
            "height": len(made["bars"]) * base["usermeta"]["step"],
            "encoding": {**chart["encoding"], "color": hue},
        }

    largest = sorted((r for r in rows if r["rank"] == 0), key=lambda r: -r[unit])[:3]
    total = sum(r[unit] for r in rows if r["rank"] == 0)
    shares = [f"{words[r['term']]} {percent(r[unit] / total, 0)}" for r in largest]
    return _figure(
        name,
        title,
        f"Of the choice, {listed(shares)} are the most.",
        f"Of {made['bars'][0]}: {listed(shares)}.",
        draw,
    )


def _curve(made: Made, name: str, title: str) -> Figure:
    curve, asked = made["curve"], made["decision"]["question"]["rate_per_s"]
    rows = [
        {"rate": rate, "j": energy, "tpot_ms": None if tpot is None else 1e3 * tpot}
        for rate, energy, tpot in zip(
            curve["rate_per_s"], curve["energy_per_request_j"], curve["tpot_s"], strict=True
        )
    ]
    ends = curve["breaks_at_rate_per_s"]
    data = {
        "curve": rows,
        "now": [{"rate": asked}],
        "break": [{"rate": ends}] if ends else [],
        "limit": _tpot_limit(made) if name == "curve-tpot" else [],
    }
    said = f"{curve['configuration']}: " + (
        f"meets the limits up to {ends:.3g} requests/s; " if ends else ""
    )
    return _figure(
        name,
        title,
        f"{said}beyond {curve['saturation_rate_per_s']:.3g} the queue grows without end. The solid "
        "rule is the rate asked for.",
        f"From {rows[0]['rate']:.2g} to {rows[-1]['rate']:.3g} requests/s, "
        f"{joules(rows[0]['j'])} to {joules(rows[-1]['j'])} a request.",
        lambda width: _with_rate_named(_drawn(name, width, data)),
    )


def _with_rate_named(chart: Spec) -> Spec:
    """Name the axis below each panel: here they stand apart."""
    *marks, line = chart["layer"]
    encoding = line["encoding"]
    x = {**encoding["x"], "title": "requests a second"}
    return {**chart, "layer": [*marks, {**line, "encoding": {**encoding, "x": x}}]}


def _law(made: Made) -> Table:
    return Table(
        caption=f"Coefficients for {made['law']['gpu']}; 1 is what its datasheet suggests",
        columns=("term", "coefficient", "80 % interval", "what it is"),
        rows=tuple(
            (
                term["name"].replace("_", " "),
                f"{term['theta']:.2f}",
                f"{term['low']:.2f} to {term['high']:.2f}",
                term["meaning"],
            )
            for term in made["law"]["terms"]
        ),
    )
