"""What a deployment costs in a month: kWh, money, CO2, and joules a token.

Joules are those of the GPUs; the rest of the server and the cooling come in by the PUE alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from energylens.errors import UsageError
from energylens.schemas import Month
from energylens.words import Note

HOURS_PER_MONTH = 730.0

#: Defaults, and where they come from.
SOURCES = {
    "price": "0.13 USD/kWh: US commercial average of 2024 (EIA, Electric Power Monthly, table 5.3)",
    "carbon": "0.37 kg CO2/kWh: US average output rate of 2022 (EPA eGRID2022)",
    "pue": "1.56: global average of 2024 (Uptime Institute, Global Data Center Survey)",
}


@dataclass(frozen=True, kw_only=True)
class Prices:
    """What energy and GPUs cost.

    Attributes
    ----------
    price_per_kwh : float
    carbon_kg_per_kwh : float
    pue : float
        Energy of the site over that of its servers.
    gpu_hour : float or None
        Rent of one GPU for an hour, energy included; None where they are owned.
    """

    price_per_kwh: float = 0.13
    carbon_kg_per_kwh: float = 0.37
    pue: float = 1.56
    gpu_hour: float | None = None

    def __post_init__(self) -> None:
        for name, value, least in (
            ("--price", self.price_per_kwh, 0.0),
            ("--carbon", self.carbon_kg_per_kwh, 0.0),
            ("--pue", self.pue, 1.0),
            ("--gpu-hour", self.gpu_hour or 0.0, 0.0),
        ):
            if not (least <= value < float("inf")):
                raise UsageError(f"{name} must be {least:g} or more, not {value!r}")

    @classmethod
    def asked(
        cls, price: float | None, carbon: float | None, pue: float | None, gpu_hour: float | None
    ) -> Prices:
        """Take what somebody names, and the defaults for the rest."""
        names = ("price_per_kwh", "carbon_kg_per_kwh", "pue", "gpu_hour")
        given = zip(names, (price, carbon, pue, gpu_hour), strict=True)
        return cls(**{name: value for name, value in given if value is not None})

    def describe(self) -> str:
        """Say what money and CO2 rest on, in one sentence; defaults with their source."""

        def of(name: str, unit: str) -> str:
            value = getattr(self, name)
            source = f" ({_SHORT[name]})" if value == getattr(Prices, name) else ""
            return f"{value:g} {unit}{source}"

        rent = self.gpu_hour
        money = of("price_per_kwh", "USD/kWh") if rent is None else f"{rent:g} USD a GPU-hour"
        pue = of("pue", "PUE")
        said = f"Money and CO2: {money}, {of('carbon_kg_per_kwh', 'kg CO2/kWh')}, {pue}."
        return Note(said, rank=Note.MONEY, brief=re.sub(r" \([^()]*\)", "", said))


#: The sources of the defaults, as a sentence names them.
_SHORT = {"price_per_kwh": "EIA 2024", "carbon_kg_per_kwh": "EPA 2022", "pue": "Uptime 2024"}


def bill(
    power_w: float,
    gpus: int,
    *,
    rate_per_s: float,
    input_tokens: float,
    output_tokens: float,
    prices: Prices,
) -> Month:
    """Work a month out from watts: money is energy, or rent where GPUs are rented.

    Parameters
    ----------
    power_w : float
        Of all GPUs that count, on average over the month.
    gpus : int
        GPUs that are rented, if any are.
    rate_per_s : float
        Requests served in a second, on average over the month.
    input_tokens, output_tokens : float
        Of one request.
    """
    kwh = power_w * prices.pue * HOURS_PER_MONTH / 1000.0
    cost = kwh * prices.price_per_kwh
    if prices.gpu_hour is not None:
        cost = gpus * prices.gpu_hour * HOURS_PER_MONTH
    co2 = kwh * prices.carbon_kg_per_kwh
    requests = rate_per_s * HOURS_PER_MONTH * 3600.0
    output = requests * output_tokens
    total = requests * (input_tokens + output_tokens)
    return Month(
        kwh_per_month=kwh,
        cost_per_month=cost,
        co2_kg_per_month=co2,
        energy_per_output_token_j=power_w / (rate_per_s * output_tokens),
        energy_per_total_token_j=power_w / (rate_per_s * (input_tokens + output_tokens)),
        cost_per_million_output_tokens=cost / output * 1e6,
        cost_per_million_total_tokens=cost / total * 1e6,
        co2_kg_per_million_total_tokens=co2 / total * 1e6,
    )
