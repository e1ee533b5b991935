"""What the page offers to choose from, and what its second view shows of a table of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import numpy as np
from pydantic_core import to_json

from energylens import __version__, audit, catalog
from energylens.charts import rows as row_charts
from energylens.charts import service as service_charts
from energylens.charts.theme import CATEGORIES, Spec
from energylens.dataset import Dataset
from energylens.discovery import Front
from energylens.formula import EXTENSIONS, Term, terms_of
from energylens.latency_terms import TERMS as TIME_TERMS
from energylens.lengths import MIXES
from energylens.savings import Prices
from energylens.schemas import headed
from energylens.web.answers import IDLE, NODE, short
from energylens.web.models import Loaded

MOST_ROWS = 5_000  # that the second view draws; of more, evenly spread ones
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
    return name.replace("_", " ").replace("gpus", "GPUs")


def _joule_terms() -> list[tuple[str, str, str]]:
    """Name, words and colour role of all terms: shades of a hue for each phase."""
    shades = {"prefill": 4, "decode": 5, "layout": 3}
    used = dict.fromkeys(shades, 0)

    def role(term: Term) -> str:
        phase = "decode" if term.prefill is None else "prefill" if term.decode is None else "layout"
        used[phase] += 1
        return f"{phase}-{(used[phase] - 1) % shades[phase] + 1}"

    every = {term.name: term for term in terms_of(tuple(EXTENSIONS))}
    made = [(name, _words(name), role(term)) for name, term in every.items()]
    return [(n, w, r) for n, w, r in made if n != "idle_gpus"] + [
        (IDLE, IDLE, "muted"),
        (NODE, NODE, "category-6"),
        *((n, w, r) for n, w, r in made if n == "idle_gpus"),
    ]


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
        "residuals": row_charts.residuals(dark=dark),
        "learning": row_charts.learning(dark=dark),
        "forms": row_charts.forms(dark=dark),
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


def forms(front: Front) -> list[dict[str, Any]]:
    """Discovered forms, from simple to complex."""
    return [
        {
            "form": point.expression.text,
            "complexity": point.complexity,
            "error_percent": 100 * point.held_out_mape_ratio,
            "spread_percent": 100 * point.held_out_error_ratio,
            "top1_percent": None if point.top1_ratio is None else 100 * point.top1_ratio,
            "knee": point.knee,
        }
        for point in front.points
    ]


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
        "estimators": list(dict.fromkeys(point["name"] for point in points)),
        "points": points,
        "repeats": document["repeats"],
        "scenarios": document["scenarios"],
        "notes": document["notes"],
    }


def _percent(ratio: float | None) -> float | None:
    return None if ratio is None else 100 * ratio


__all__: Sequence[str] = ["forms", "gpus", "judging", "learning", "llms", "rows", "start"]
