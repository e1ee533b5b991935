"""Fit the models that come with the package, and write coefficients alone.

python -m studies.packaged --data ../shared/data --date 2026-11-28
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path

from energylens import files, modelfile
from energylens.fitting import FitOptions, fit
from energylens.importers import mlenergy_v2, mlenergy_v3
from energylens.latency_fitting import fit_latency

TARGET = Path(__file__).resolve().parents[2] / "src" / "energylens" / "data" / "models"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What one model is fitted to."""

    name: str
    folder: str
    gpu: str
    engine: str
    source: str


V3 = "ML.ENERGY leaderboard v3, github.com/ml-energy/leaderboard @0cd52da"
V2 = "ML.ENERGY leaderboard v2, github.com/ml-energy/leaderboard-v2 @c3af7f3"
RECIPES = (
    Recipe(
        name="h100-vllm-0.11", folder="mlenergy-v3", gpu="H100-SXM-80GB",
        engine="vllm 0.11.1", source=V3,
    ),
    Recipe(
        name="h100-vllm-0.5", folder="mlenergy-v2", gpu="H100-SXM-80GB",
        engine="vllm 0.5.4", source=V2,
    ),
    Recipe(
        name="a100-vllm-0.5", folder="mlenergy-v2", gpu="A100-SXM-40GB",
        engine="vllm 0.5.4", source=V2,
    ),
)  # fmt: skip


def make(recipe: Recipe, data: Path, date: str) -> dict[str, object]:
    """Fit one model."""
    reader = mlenergy_v3 if recipe.folder == "mlenergy-v3" else mlenergy_v2
    rows = reader.read(
        data / recipe.folder, assume_input_tokens={}, assume_vision_tokens={}
    ).dataset
    rows = rows.take(rows.gpu_ids == recipe.gpu)
    model = replace(fit(rows, FitOptions()), time=fit_latency(rows))
    return {
        "about": {
            "name": recipe.name,
            "source": recipe.source,
            "licence": "Apache-2.0",
            "date": date,
            "rows": len(rows),
            "llms": len(set(rows.llm_ids)),
            "gpus": [recipe.gpu],
            "engine": recipe.engine,
            "dataset_digest": rows.digest,
        },
        "model": modelfile.to_json(model),
    }


def main() -> None:
    """Write all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--date", required=True)
    parser.add_argument("-o", "--output", type=Path, default=TARGET)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for recipe in RECIPES:
        document = make(recipe, arguments.data, arguments.date)
        files.write_json(arguments.output / f"{recipe.name}.json", document)
        print(json.dumps(document["about"]))


if __name__ == "__main__":
    main()
