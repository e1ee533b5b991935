"""What runs today beside the choice, and a month of them: savings only against what serves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from energylens.words import joules, percent, rounded_down, saving

if TYPE_CHECKING:
    from energylens.decisions import Decision, Entry
    from energylens.schemas import Month

WORTH_A_RANGE = 0.01  # joules saved against today, of which an interval says more


def sentences(
    decision: Decision, bills: Mapping[str, Month], name: str, *, day: bool
) -> Iterator[str]:
    """Say what today takes, what is saved against it, and a month of the choice.

    Parameters
    ----------
    bills : mapping
        A month of the choice (best), and of what runs today (current) where that keeps up.
    name : str
        Of what runs today.
    day : bool
        Whether the bills are of a day's profile, not of the rate asked about.
    """
    when = "over the day of the profile" if day else "at this rate"
    today, counts = decision.current, decision.best.saving_ratio is not None
    if today is not None and not decision.keeps:
        yield _today(decision, today, name) + (_saved(decision, bills, when) if counts else ".")
        if counts:
            return
    if (own := bills.get("best")) is not None:
        tokens = f", {own.energy_per_output_token_j:.2f} J an output token" if day else ""
        yield (
            f"A month {when}: {own.kwh_per_month:.0f} kWh, {own.cost_per_month:.0f} USD and "
            f"{own.co2_kg_per_month:.0f} kg CO2{tokens}."
        )


def _today(decision: Decision, today: Entry, name: str) -> str:
    """Say what runs today: what it takes, or why it takes no part."""
    from energylens.decisions import seconds

    c = today.configuration
    if c.data_parallel > 1:
        name += f" each (B{c.batch_size:g} together)"
    if today.precision not in {decision.best.precision, decision.scenario.precision.id}:
        name += f" in {today.precision}"
    if c.gpus > decision.scenario.gpu_limit:
        name += f", {c.gpus} GPUs and so no candidate"
    if today.saturated:
        return (
            f"Today {name}, does not keep up: it serves {today.saturation_rate_per_s:.3g} "
            f"requests/s at most, so no saving is counted"
        )
    said = (
        f"Today {name}: {joules(today.energy_per_request_j)} a request, {today.power_w:.0f} W, "
        f"TPOT {seconds(today.tpot_s)}, TTFT {seconds(today.ttft_s)}"
    )
    odds = today.probability_of_meeting_ratio
    if odds < decision.meet:
        what = "meets the limits" if decision.limits else "keeps up"
        said += f"; it {what} with {percent(rounded_down(odds), 0)} only, so no saving is counted"
    return said


def _saved(decision: Decision, bills: Mapping[str, Month], when: str) -> str:
    """Say what the choice saves against what runs today."""
    today = decision.current
    assert today is not None
    ratio = 1.0 - decision.best.energy_per_request_j / today.energy_per_request_j
    much = f"{saving(ratio)} less" if ratio >= 0 else f"{saving(-ratio)} more"
    if decision.saving_interval is not None and ratio >= WORTH_A_RANGE:
        low, high = decision.saving_interval
        much += f" (80 %: {percent(low, 0)} to {percent(high, 0)})"
    said = f". The choice takes {much}"
    best, now = bills["best"], bills["current"]
    kwh = now.kwh_per_month - best.kwh_per_month
    cost = now.cost_per_month - best.cost_per_month
    co2 = now.co2_kg_per_month - best.co2_kg_per_month
    return said + (
        f"; {when} {kwh:.0f} of {now.kwh_per_month:.0f} kWh, {cost:.0f} USD and {co2:.0f} kg CO2 "
        f"a month, {best.energy_per_output_token_j:.2f} instead of "
        f"{now.energy_per_output_token_j:.2f} J an output token."
    )
