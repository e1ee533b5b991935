"""Write the schemas of docs/schemas again: ``python -m tools.schemas``."""

from __future__ import annotations

import json
from pathlib import Path

from energylens.schemas import PUBLISHED, schema_of

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "schemas" / "v1"


def text_of(name: str) -> str:
    """Text of the file of one published document."""
    return json.dumps(schema_of(name), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in PUBLISHED:
        (FOLDER / f"{name}.schema.json").write_text(text_of(name), encoding="utf-8")
    print(f"{len(PUBLISHED)} schemas written to {FOLDER}")
