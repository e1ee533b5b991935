"""The study of a fleet on two traces: the page says what the numbers say, a part runs again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from studies.online import tables
from studies.online.__main__ import (
    RESULTS,
    TRACES,
    fleet_for,
    summary,
    traces,
)

ROOT = Path(__file__).parents[1]
AZURE = ROOT.parent / "shared" / "data" / "azure-llm-trace"


def test_the_page_says_what_the_numbers_say() -> None:
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "studies" / "online.md").read_text(encoding="utf-8")
    assert page == tables.document(results)
    assert RESULTS.stat().st_size < 300_000


def test_no_policy_that_meets_the_limits_is_below_an_oracle_that_does() -> None:
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    bounds = [b for c in results["cells"].values() if (b := tables.above(c)) is not None]
    assert len(bounds) >= len(results["cells"]) / 3
    assert max(bounds) < 0.001


@pytest.mark.skipif(not AZURE.exists(), reason="the Azure traces are not here")
def test_a_part_of_the_study_comes_out_again() -> None:
    from energylens.online.knowledge import Knowledge
    from energylens.online.plans import Plan
    from energylens.online.policies import policy
    from energylens.online.rehearsal import rehearse

    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    past, trace = traces(AZURE / TRACES["code"], 0.5)
    fleet = fleet_for("8B", "code")
    kept = results["cells"]["8B, code, 0.5"]
    assert kept["requests"] == len(trace)
    known, plan = Knowledge(fleet, past.lengths), Plan.of(past)
    for name in ("static-deployed", "queue", "ours"):
        again = summary(rehearse(fleet, trace, policy(name, fleet, known, plan)))
        for measure in (tables.JOULES, "within_limits_ratio", "mean_replicas"):
            assert again[measure] == pytest.approx(kept["policies"][name][measure], rel=0.01)
