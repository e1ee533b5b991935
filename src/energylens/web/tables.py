"""What the page offers to choose from, and what its second view shows of a table of rows."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import numpy as np
from pydantic_core import to_json

from energylens import __version__, audit, catalog
from energylens.cases import FloatArray
from energylens.charts import judged as judged_charts
from energylens.charts import service as service_charts
from energylens.charts.parts import NARROW, WIDTH
from energylens.charts.theme import CATEGORIES, Spec, turned
from energylens.dataset import Dataset
from energylens.discovery import Front
from energylens.formula import EXTENSIONS, terms_of
from energylens.latency_terms import TERMS as TIME_TERMS
from energylens.lengths import MIXES
from energylens.report.judged import METRICS, discovery_front
from energylens.savings import Prices
from energylens.schemas import headed
from energylens.web.answers import IDLE, NODE, short
from energylens.web.models import Loaded

WIDE = 1180  # of figures on a wide page, in pixels
MOST_ROWS = 5_000  # that the second view draws; of more, evenly spread ones
_LONG = re.compile(r"\d+\.\d{3,}(?:[eE][-+]?\d+)?")  # a number with more digits than are read
#: Estimators of the learning curve: none needs an optional package.
JUDGED = ("energylens", "energylens-datasheet", "log-linear", "largest-batch")
CURVE = (10, 25, 50, 100, 200, 400)
REPEATS = 5


@lru_cache(maxsize=1)
def _llms() -> list[tuple[str, dict[str, Any]]]:
    return [(name.lower(), asdict(llm)) for name, llm in catalog.llms().items()]


@lru_cache(maxsize=1)
def _gpus() -> list[tuple[str, dict[str, Any]]]:
    return [(name.lower(), asdict(gpu)) for name, gpu in catalog.gpus().items()]


def llms(contains: str = "") -> bytes:
    """LLMs whose name contains a text, as ``llm list --json`` prints them."""
    part = contains.lower()
    found = [record for name, record in _llms() if part in name]
    return to_json(headed("llm", {"llms": found}), inf_nan_mode="null")


def gpus(contains: str = "") -> bytes:
    """GPU types whose name contains a text, as ``gpu list --json`` prints them."""
    part = contains.lower()
    found = [record for name, record in _gpus() if part in name]
    return to_json(headed("gpu", {"gpus": found}), inf_nan_mode="null")


# ----------------------------------------------------------------------------- the first view


def _words(name: str) -> str:
    return service_charts.WORDS.get(name, name.replace("_", " ").replace("gpus", "GPUs"))


def _joule_terms() -> list[tuple[str, str, str]]:
    """Name, words and colour role of all terms, in the order of the stack."""
    roles = service_charts.JOULE_ROLES
    listed = [(t.name, _words(t.name), roles[t.name]) for t in terms_of(tuple(EXTENSIONS))]
    last = [term for term in listed if term[0] == "idle_gpus"]
    return [*(t for t in listed if t not in last), (IDLE, IDLE, "muted"),
            (NODE, NODE, "layout-3"), *last]  # fmt: skip


def _time_terms() -> list[tuple[str, str, str]]:
    roles = service_charts.TIME_ROLES
    listed = [(t.name, _words(t.name), roles[t.name]) for t in TIME_TERMS]
    return [*listed, ("waiting", "waiting", roles["waiting"])]


def specs(*, dark: bool) -> dict[str, Spec]:
    """All charts of the page, by the id of where they are drawn."""
    stacked = service_charts.stacked
    return {
        "front": service_charts.front(dark=dark),
        "joules": stacked(_joule_terms(), field="j", title="joules a request", dark=dark),
        "seconds": stacked(_time_terms(), field="s", title="seconds of a request", dark=dark),
        "curve-energy": service_charts.curve("j", "J a request", last=False, dark=dark),
        "curve-tpot": service_charts.curve("tpot_ms", "ms a token", last=True, dark=dark),
        "residuals": judged_charts.every_row(dark=dark),
    }


def _colours() -> dict[str, list[str]]:
    from energylens.charts.theme import colour

    return {
        name: [colour(role, dark=dark) for role in CATEGORIES]
        for name, dark in (("light", False), ("dark", True))
    }


def start(loaded: Loaded) -> bytes:
    """Give what the page's form offers, and the charts in both themes."""
    prices = Prices()
    return to_json(
        {
            "version": __version__,
            "llms": [record["id"] for _, record in _llms()],
            "seeing": [record["id"] for _, record in _llms() if record["vision"]],
            "gpus": [record["id"] for _, record in _gpus()],
            "precisions": list(catalog.precisions()),
            "models": loaded.names(),
            "given": loaded.name,
            "table": loaded.dataset_name if loaded.dataset is not None else "",
            "mixes": {name: [mix.input_tokens, mix.output_tokens] for name, mix in MIXES.items()},
            "prices": {
                "price": prices.price_per_kwh,
                "carbon": prices.carbon_kg_per_kwh,
                "pue": prices.pue,
            },
            "charts": {"light": specs(dark=False), "dark": specs(dark=True)},
            "colours": _colours(),
        }
    )


# ---------------------------------------------------------------------------- the second view


def rows(loaded: Loaded) -> dict[str, Any]:
    """Audit, residuals and discovered forms of the table that the server was started with."""
    dataset = loaded.dataset
    assert dataset is not None
    head, *said = audit.lines(audit.audit(dataset, loaded.dataset_name))
    return {
        "name": loaded.dataset_name,
        "head": head,
        "audit": said,
        "sources": {str(name): count for name, count in dataset.source_counts().items()},
        "claim": bool(dataset.carries_accuracy_claim.all()),
        "residuals": residuals(loaded, dataset),
        "forms": None if loaded.front is None else forms(loaded.front),
    }


def residuals(loaded: Loaded, dataset: Dataset) -> dict[str, Any]:
    """Columns of predicted and measured joules, a row each; at most ``MOST_ROWS``, evenly spread.

    Whether the model has seen these very rows is said too.
    """
    model = loaded.model
    if model is None:
        model, _ = loaded.model_for(None, dataset.gpu_ids[0], "")
    kept = np.unique(np.linspace(0, len(dataset) - 1, min(len(dataset), MOST_ROWS)).astype(int))
    shown = dataset.take(kept)
    cases = shown.cases
    predicted = model.predict_energy_j(cases)
    gpus_shown = sorted(set(shown.gpu_ids.tolist()))
    return {
        "rows": len(dataset),
        "shown": len(shown),
        "in_sample": bool(model.dataset_digest) and loaded.fitted_to_rows,
        "model_rows": model.pooled.rows,
        "gpus": gpus_shown,
        "llm": shown.llm_ids.tolist(),
        "gpu": shown.gpu_ids.tolist(),
        "precision": shown.precision_ids.tolist(),
        "configuration": [cases.case(i).configuration.describe() for i in range(len(shown))],
        "input_tokens": short(cases.input_tokens),
        "output_tokens": short(cases.output_tokens),
        "source": [str(value) for value in shown.source],
        "measured_j": short(shown.energy_per_request_j),
        "predicted_j": short(predicted),
    }


def by_width(draw: Callable[[int], Spec]) -> list[dict[str, Any]]:
    """Draw for a wide page, a page and a telephone, on light paper and on dark."""
    drawn = [(width, draw(width)) for width in (WIDE, WIDTH, NARROW)]
    return [{"width": width, "light": spec, "dark": turned(spec)} for width, spec in drawn]


def forms(front: Front) -> dict[str, Any]:
    """Discovered forms, from simple to complex, and the report's figure of them."""
    picture = discovery_front(front)
    return {
        "drawn": by_width(picture.draw),
        "caption": picture.caption,
        "notes": [*front.cautions, *front.notes],
        "listed": [
            {
                "form": _LONG.sub(lambda m: f"{float(m.group()):.3g}", point.expression.text),
                "terms": len(point.terms),
                "complexity": point.complexity,
                "in_sample_percent": 100 * point.in_sample_mape_ratio,
                "error_percent": 100 * point.held_out_mape_ratio,
                "top1_percent": _percent(point.top1_ratio),
                "regret_percent": _percent(point.regret_mean_ratio),
                "knee": point.knee,
            }
            for point in front.points
        ],
    }


def judging(path: str, dataset: Dataset) -> list[str]:
    """Arguments of the command that judges a table by a learning curve."""
    sizes = [size for size in CURVE if size <= 0.8 * len(dataset)] or [max(len(dataset) // 2, 1)]
    return [
        "evaluate", path, "--protocol", "learning-curve",
        "--choose", "parallelism,batch_size", "--estimators", ",".join(JUDGED),
        "--curve", ",".join(map(str, sizes)), "--train", str(sizes[-1]),
        "--repeats", str(REPEATS), "--seed", "0", "--allow-simulated", "--json",
    ]  # fmt: skip


def learning(document: dict[str, Any]) -> dict[str, Any]:
    """Points of a learning curve, from what the judge printed."""
    points = [
        {
            "rows": point["train_rows"],
            "name": name,
            "error_percent": _percent(score.get("mape_ratio")),
            "regret_percent": _percent(score.get("regret_mean_ratio")),
            "top1_percent": _percent(score.get("top1_ratio")),
        }
        for point in document["curve"]
        for name, score in point["estimators"].items()
    ]
    return {
        "drawn": by_width(lambda width: _curves(document["curve"], width)),
        "points": points,
        "repeats": document["repeats"],
        "scenarios": document["scenarios"],
        "notes": document["notes"],
    }


def _curves(curve: list[dict[str, Any]], width: int) -> Spec:
    """Draw the report's three metrics against the rows trained on."""
    names = [n for n in JUDGED if all(n in point["estimators"] for point in curve)]

    def means(metric: str) -> dict[str, FloatArray]:
        return {
            name: 100 * np.array([point["estimators"][name][metric] for point in curve], float)
            for name in names
        }

    def band(metric: str) -> FloatArray:
        found = [(point["estimators"][names[0]]["bands"] or {}).get(metric) for point in curve]
        ends = [(b["p05"], b["p95"]) if b else (None, None) for b in found]
        return 100 * np.array(ends, dtype=np.float64)

    panels = [(kind, title, means(metric), band(metric)) for metric, kind, title in METRICS]
    return judged_charts.learning(
        [panel for panel in panels if np.isfinite(panel[2][names[0]]).any()],
        [point["train_rows"] for point in curve],
        named=names,
        others=[],
        width=width,
    )


def _percent(ratio: float | None) -> float | None:
    return None if ratio is None else 100 * ratio
