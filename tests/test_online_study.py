"""The study of a fleet on two traces: the page says what the numbers say, a part runs again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from studies.online import tables
from studies.online.__main__ import (
    RESULTS,
    SECONDS,
    SEED,
    TRACES,
    fleet_for,
    summary,
)

ROOT = Path(__file__).parents[1]
AZURE = ROOT.parent / "shared" / "data" / "azure-llm-trace"


def test_the_page_says_what_the_numbers_say() -> None:
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "studies" / "online.md").read_text(encoding="utf-8")
    assert page == tables.document(results)
    assert RESULTS.stat().st_size < 300_000


def test_no_policy_that_meets_the_limits_beats_the_oracle() -> None:
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    for cell in results["cells"].values():
        best = cell["policies"]["oracle"][tables.JOULES]
        for policy in cell["policies"].values():
            if tables.meets(policy, cell["share_ratio"]):
                assert best <= policy[tables.JOULES]


@pytest.mark.skipif(not AZURE.exists(), reason="the Azure traces are not here")
def test_a_part_of_the_study_comes_out_again() -> None:
    from energylens.online.knowledge import Knowledge
    from energylens.online.policies import policy
    from energylens.online.rehearsal import rehearse
    from energylens.online.trace import read_trace

    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    trace = read_trace(AZURE / TRACES["code"]).first(SECONDS).scaled(0.5, SEED)
    fleet = fleet_for("8B", "code")
    kept = results["cells"]["8B, code, 0.5"]
    assert kept["requests"] == len(trace)
    known = Knowledge(fleet, trace.lengths)
    for name in ("static-deployed", "queue", "ours"):
        again = summary(rehearse(fleet, trace, policy(name, fleet, known, trace)))
        for measure in (tables.JOULES, "within_limits_ratio", "mean_replicas"):
            assert again[measure] == pytest.approx(kept["policies"][name][measure], rel=0.01)
