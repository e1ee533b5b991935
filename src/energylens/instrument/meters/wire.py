"""What another process or a file says of a meter, believed only as far as it makes sense."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from energylens.foreign import printable
from energylens.instrument.meter import Channel, ChannelKind, DeviceState, MeterError, Reading

#: The slowest counters (a PDU, a BMC) move every few seconds.
LONGEST_PERIOD_S = 60.0
#: More joules than any device draws in its life: 10 kW for 30 years.
LARGEST_ENERGY_J = 1e13
MOST_CHANNELS = 4096
_LONGEST_NAME = 200
_LARGEST_POWER_W = 1e7


def number(value: object, what: str, low: float = -math.inf, high: float = math.inf) -> float:
    """Read a finite number.

    Raises
    ------
    MeterError
        If it is none, or lies outside ``low`` to ``high``.
    """
    found = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            found = float(value)
        except OverflowError:
            found = math.inf
    if not (math.isfinite(found) and low <= found <= high):
        bounds = f" from {low:g} to {high:g}" if math.isfinite(low) else ""
        raise MeterError(f"{what} must be a number{bounds}, not {printable(repr(value), 60)}.")
    return found


def period_s(value: object) -> float:
    """Read the update period of a counter; 0 for a continuous one."""
    return number(value, "the update period of a meter, in seconds,", 0.0, LONGEST_PERIOD_S)


def time_s(value: object) -> float:
    """Read a moment on a meter's clock."""
    return number(value, "the time of a reading, in seconds,", -1e12, 1e12)


def channels(documents: object) -> tuple[Channel, ...]:
    """Read the channels of a meter.

    Raises
    ------
    MeterError
        If they are none, or two have one name.
    """
    if not isinstance(documents, Sequence) or not 0 < len(documents) <= MOST_CHANNELS:
        raise MeterError(f"a meter must have 1 to {MOST_CHANNELS} channels.")
    found = tuple(map(_channel, documents))
    if len({channel.id for channel in found}) < len(found):
        raise MeterError("the channels of a meter must have names of their own.")
    return found


def _channel(document: Any) -> Channel:
    def watts(name: str) -> float | None:
        value = document.get(name)
        what = f"{name} of a meter's channel"
        return None if value is None else number(value, what, 0.0, _LARGEST_POWER_W)

    if not isinstance(document, Mapping) or document.get("kind") not in list(ChannelKind):
        raise MeterError(
            f"a channel of a meter must have an id and a kind ({', '.join(ChannelKind)}), not "
            f"{printable(repr(document), 100)}."
        )
    return Channel(
        id=printable(document.get("id", ""), _LONGEST_NAME),
        kind=ChannelKind(document["kind"]),
        index=int(number(document.get("index", 0), "the index of a channel", 0, 1e6)),
        name=printable(document.get("name", ""), _LONGEST_NAME),
        uuid_hash=printable(document.get("uuid_hash", ""), _LONGEST_NAME),
        limit_w=watts("limit_w"),
        power_cap_w=watts("power_cap_w"),
    )


def reading(document: Any, of: int) -> Reading:
    """Read a reading with as many numbers as the meter has channels.

    Raises
    ------
    MeterError
        If it has another number of them, or one is no number of joules.
    """
    values = document.get("energy_j") if isinstance(document, Mapping) else None
    if not isinstance(values, list) or len(values) != of:
        counted = len(values) if isinstance(values, list) else "none"
        raise MeterError(f"a reading must have one number for each of {of} channels, not {counted}")
    return Reading(
        time_s=time_s(document.get("time_s")),
        energy_j=tuple(number(v, "a reading, in joules,", 0.0, LARGEST_ENERGY_J) for v in values),
    )


def state(document: Any) -> DeviceState:
    """Read the state of a device."""
    if not isinstance(document, Mapping):
        raise MeterError(f"a device's state must have names and values, not {document!r:.60}.")

    def said(name: str) -> float | None:
        value = document.get(name)
        return None if value is None else number(value, f"{name} of a device", -1e3, 1e12)

    reasons = document.get("throttle_reasons")
    return DeviceState(
        channel=printable(document.get("channel", ""), _LONGEST_NAME),
        temperature_c=said("temperature_c"),
        sm_clock_hz=said("sm_clock_hz"),
        memory_clock_hz=said("memory_clock_hz"),
        power_w=said("power_w"),
        throttle_reasons=tuple(
            printable(reason, _LONGEST_NAME)
            for reason in (reasons if isinstance(reasons, list) else ())[:20]
        ),
    )
