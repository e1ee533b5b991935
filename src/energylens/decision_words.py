"""What a decision under load is said in: names of its configurations, and which limit binds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from energylens.decisions import NAMES, seconds
from energylens.words import joules, percent, rounded_down, saving

if TYPE_CHECKING:
    from energylens.decisions import Decision, Entry

WORTH_SAYING = 0.005  # joules that a relaxed limit saves


def types(decision: Decision) -> tuple[set[str], set[str]]:
    """GPU types and number formats that are spoken of."""
    gpus = {e.gpu for e in decision.entries} | {decision.scenario.gpu.id}
    return gpus, {e.precision for e in decision.entries} | {decision.scenario.precision.id}


def named(decision: Decision, entry: Entry, *, short: bool = False) -> str:
    """Name a configuration, with what else was free."""
    gpus, formats = types(decision)
    name, gpu = entry.describe(), entry.gpu
    if short and len({each.partition("-")[0] for each in gpus}) == len(gpus):
        gpu = gpu.partition("-")[0]
    name += f", {gpu}" if len(gpus) > 1 else ""
    return name + (f", {entry.precision}" if len(formats) > 1 else "")


def binding(decision: Decision) -> str:
    """Say what limits, and the probability with which they must hold, cost."""
    if not decision.limits:
        return "No limit on latency was asked for."
    said = []
    for i, limit in enumerate(decision.limits):
        for s in decision.shadows:
            if s.limit == limit and s.saving_ratio >= WORTH_SAYING:
                then = f"{named(decision, s.entry)}, {seconds(s.entry.values_s[i])}"
                said.append(
                    f"{NAMES[limit.measure]} binds: {seconds(limit.seconds)} -> "
                    f"{seconds(s.relaxed_s)} saves {saving(s.saving_ratio)} ({then})."
                )
    for price in decision.meet_prices:
        if price.entry is None:
            said.append(f"With --meet {price.meet:g} nothing meets.")
        elif price.saving_ratio is not None:
            much = f"saves {saving(price.saving_ratio)}"
            if price.saving_ratio < 0:
                more = price.entry.energy_per_request_j / decision.best.energy_per_request_j - 1
                much = f"costs {percent(more, 0)}"
            said.append(f"--meet {price.meet:g} {much} ({named(decision, price.entry)}).")
    beyond = decision.beyond
    if any(s.saving_ratio >= WORTH_SAYING for s in decision.shadows):
        return " ".join(said)
    if beyond is None:
        return " ".join(["No limit binds: nothing that keeps up takes fewer joules.", *said])
    odds, relaxed = (
        percent(rounded_down(p), 0)
        for p in (beyond.entry.probability_of_meeting_ratio, beyond.relaxed_odds)
    )
    first = (
        f"No limit alone binds: {named(decision, beyond.entry)} takes "
        f"{joules(beyond.entry.energy_per_request_j)}, but meets with {odds}, and with {relaxed} "
        f"at {beyond.relaxed_ratio:g} times the limits."
    )
    return " ".join([first, *said])
