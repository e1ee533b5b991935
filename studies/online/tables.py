"""The page and the figure of the study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from energylens.charts.parts import chart, table
from energylens.charts.render import svg
from energylens.words import signed

ORDER = ("static-deployed", "static-full-batch", "static-service", "queue", "ours", "oracle")


JOULES = "simulated_energy_per_request_j"
SHARE = 0.99
WORDS = {
    "static-deployed": "the fleet as deployed",
    "static-full-batch": "the best static by full batches",
    "static-service": "the best static by the service model",
    "queue": "scaling by queue",
}


def meets(one: dict[str, Any], share: float) -> bool:
    """Whether a policy is within the limits as often as asked."""
    return bool(one["within_limits_ratio"] >= share - 5e-5)


def reached(cell: dict[str, Any]) -> float | None:
    """Share of the oracle's saving that ours reaches; None where either misses the limits."""
    p, share = cell["policies"], cell["share_ratio"]
    if "oracle" not in p or not (meets(p["ours"], share) and meets(p["oracle"], share)):
        return None
    name = "simulated_energy_per_request_j"
    most = p["static-deployed"][name] - p["oracle"][name]
    if most < 0.005 * p["static-deployed"][name]:
        return None
    return float((p["static-deployed"][name] - p["ours"][name]) / most)


def above(cell: dict[str, Any]) -> float | None:
    """Share by which the oracle is above the best policy that meets the limits; None: no bound."""
    p, share = cell["policies"], cell["share_ratio"]
    if "oracle" not in p or not meets(p["oracle"], share):
        return None
    others = [one[JOULES] for name, one in p.items() if name != "oracle" and meets(one, share)]
    return float(p["oracle"][JOULES] / min(others) - 1.0)


def _saved(cell: dict[str, Any], other: str) -> float | None:
    """Share of the joules of another policy that ours saves, where both meet the share."""
    p, share = cell["policies"], cell["share_ratio"]
    if not (meets(p["ours"], share) and meets(p[other], share)):
        return None
    name = "simulated_energy_per_request_j"
    return float(1.0 - p["ours"][name] / p[other][name])


def summary(results: dict[str, Any]) -> dict[str, Any]:
    """The figures of the text."""
    cells = results["cells"]
    found: dict[str, Any] = {"cells": len(cells)}
    found["ours_meets"] = sum(
        meets(c["policies"]["ours"], c["share_ratio"]) for c in cells.values()
    )
    found["missed_by"] = [
        c["share_ratio"] - c["policies"]["ours"]["within_limits_ratio"]
        for c in cells.values()
        if not meets(c["policies"]["ours"], c["share_ratio"])
    ]
    for name, key in (
        ("queue", "queue_meets"), ("static-service", "service_meets"),
        ("static-full-batch", "full_meets"),
    ):  # fmt: skip
        found[key] = sum(meets(c["policies"][name], c["share_ratio"]) for c in cells.values())
    shares = [r for c in cells.values() if (r := reached(c)) is not None]
    found["reached_median"] = float(np.median(shares))
    found["reached_least"] = float(min(shares))
    found["reached_80"] = sum(r >= 0.8 for r in shares)
    found["reached_of"] = len(shares)
    bounds = [b for c in cells.values() if (b := above(c)) is not None]
    found["bounds"] = len(bounds)
    found["above"] = max(bounds)
    found["searched"] = sum("oracle" in c["policies"] for c in cells.values())
    for other in ORDER[:4]:
        saved = [s for c in cells.values() if (s := _saved(c, other)) is not None]
        found[other] = {
            "of": len(saved),
            "median": float(np.median(saved)),
            "least": float(min(saved)),
            "most": float(max(saved)),
        }
    return found


def document(results: dict[str, Any]) -> str:
    """Write the page."""
    s = summary(results)
    against = [
        f"- **Simulated joules against {words}**, where both are within the limits "
        f"({s[other]['of']} cells): {abs(round(100 * s[other]['median']))} % "
        f"{'more' if round(100 * s[other]['median']) < 0 else 'fewer'} in the median, "
        f"{round(100 * s[other]['least'])} to {round(100 * s[other]['most'])} % fewer."
        for other, words in WORDS.items()
    ]
    rows = [
        "| cell | requests | " + " | ".join(ORDER) + " | reached |",
        "|---|---:|" + "---:|" * (len(ORDER) + 1),
    ]
    for name, cell in results["cells"].items():
        row = [f"{name} x", f"{cell['requests']:,}"]
        for policy in ORDER:
            if policy not in cell["policies"]:
                row.append("–")
                continue
            one = cell["policies"][policy]
            text = f"{one['simulated_energy_per_request_j']:.0f}"
            if one["within_limits_ratio"] < 0.98995:
                text += f" ({100 * one['within_limits_ratio']:.0f} %)"
            row.append(text)
        r = reached(cell)
        row.append("–" if r is None else f"{100 * r:.0f} %")
        rows.append("| " + " | ".join(row) + " |")
    wrong = results["sensitivity"]
    beliefs = ["| belief | " + " | ".join(wrong) + " |", "|---|" + "---:|" * len(wrong)]
    for belief in next(iter(wrong.values())):
        cells = [
            f"{one[belief]['simulated_energy_per_request_j']:.0f}, "
            f"{100 * one[belief]['within_limits_ratio']:.1f} %"
            for one in wrong.values()
        ]
        beliefs.append("| " + " | ".join([belief, *cells]) + " |")
    daring = [
        "| most that is asked | cells within limits | simulated joules against 1.1: mean | least | "
        "most |",
        "|---:|---:|---:|---:|---:|",
    ]
    as_it_is = results["boldness"]["1.1"]
    for most, tried in results["boldness"].items():
        joules = [one[JOULES] / as_it_is[name][JOULES] - 1 for name, one in tried.items()]
        within = sum(meets(one, SHARE) for one in tried.values())
        changes = (signed(x) for x in (np.mean(joules), min(joules), max(joules)))
        daring.append(f"| {most} | {within} of {len(tried)} | {' | '.join(changes)} |")
    template = Path(__file__).with_name("page.md").read_text(encoding="utf-8")
    return template.format(
        minutes=f"{results['seconds'] / 60:.0f}",
        seed=results["seed"],
        cells=s["cells"],
        ours_meets=s["ours_meets"],
        missed_by=", ".join(f"{100 * by:.2g}" for by in s["missed_by"]),
        queue_meets=s["queue_meets"],
        service_meets=s["service_meets"],
        full_meets=s["full_meets"],
        against="\n".join(against),
        reached_median=f"{100 * s['reached_median']:.0f}",
        reached_80=s["reached_80"],
        reached_of=s["reached_of"],
        reached_least=f"{100 * s['reached_least']:.0f}",
        bounds=s["bounds"],
        searched=s["searched"],
        above="no policy is below it"
        if s["above"] <= 0
        else f"it is at most {100 * s['above']:.1f} % above the best policy",
        table="\n".join(rows),
        beliefs="\n".join(beliefs),
        daring="\n".join(daring),
    )


def figure(results: dict[str, Any], path: Path) -> None:
    """Draw simulated joules a request against the rate, a panel for each LLM and trace."""
    rows: dict[str, list[Any]] = {
        "panel": [], "rate": [], "policy": [], "joules": [], "within": [],
    }  # fmt: skip
    for name, cell in results["cells"].items():
        llm, mix, rate = name.split(", ")
        for policy in ORDER:
            if policy not in cell["policies"]:
                continue
            one = cell["policies"][policy]
            rows["panel"].append(f"{llm}, {mix}")
            rows["rate"].append(float(rate))
            rows["policy"].append(policy)
            rows["joules"].append(
                100.0 * float(one[JOULES]) / cell["policies"]["static-deployed"][JOULES]
            )
            rows["within"].append(
                "within limits" if meets(one, cell["share_ratio"]) else "limits missed"
            )
    x = {
        "field": "rate", "type": "quantitative", "title": "rate, times that of the trace",
        "scale": {"type": "log", "base": 2}, "axis": {"values": [0.25, 0.5, 1, 2, 4]},
    }  # fmt: skip
    y = {
        "field": "joules", "type": "quantitative", "title": "% of the simulated J as deployed",
        "scale": {"domain": [0, 110]},
    }  # fmt: skip
    colours = {
        "field": "policy", "type": "nominal", "title": None,
        "scale": {"domain": list(ORDER), "range": COLOURS}, "legend": {"orient": "top"},
    }  # fmt: skip
    body = {
        "data": table(**rows),
        "facet": {"field": "panel", "type": "nominal", "title": None},
        "columns": 2,
        "spec": {
            "width": 270,
            "height": 150,
            "layer": [
                {"mark": {"type": "line", "strokeWidth": 1.5},
                 "encoding": {"x": x, "y": y, "color": colours}},
                {"mark": {"type": "point", "size": 36},
                 "encoding": {
                     "x": x, "y": y, "color": colours,
                     "shape": {
                         "field": "within", "type": "nominal", "title": None,
                         "scale": {"domain": ["within limits", "limits missed"],
                                   "range": ["circle", "cross"]},
                         "legend": {"orient": "top"},
                     },
                 }},
            ],
        },
    }  # fmt: skip
    drawn = svg(chart("Simulated joules a request by rate, LLM, trace and policy", body))
    path.write_text(drawn + "\n", encoding="utf-8")


#: Told apart by people who cannot tell all colours apart, on light paper (Okabe and Ito).
COLOURS = ["#888888", "#e69f00", "#56b4e9", "#cc79a7", "#0072b2", "#000000"]
