r"""What a locked core clock does to power and time: one place for the joule law and the time law.

A core locked to the share c of its highest clock multiplies c times as fast. The host launches
kernels when it does, and memory has a clock of its own; but below 0.7 the core asks for bytes more
slowly than memory and links could give them. Dynamic power is :math:`f V^2`, and the voltage falls
with the clock, but not to nothing:

.. math:: d(c) = c \, (0.55 + 0.45 c)^2

of the dynamic power is left. 0.3 of the TDP, memory and leakage, does not follow the core clock; a
GPU draws 0.4 of its TDP while it waits, 0.7 while it moves bytes and all of it while it multiplies
(the same shares that power caps meet). So

.. math:: w = \frac{0.3 + 0.1 d}{0.4}, \qquad
          r = \frac{0.3 + 0.4 d}{0.7} \max\Big(1, \frac{0.7}{c}\Big), \qquad
          m = \frac{0.3 + 0.7 d}{c}

of the joules of a second of waiting, of a byte and of a FLOP are left: those of a FLOP are least at
c = 0.74, of a byte at 0.7; below, what does not follow the clock is paid for longer than voltage
saves. Published: joules of prefill and of decode over the clock are U-shaped on an A100, with the
least near 1005 of 1410 MHz, which is 0.71 (VoltanaLLM, arXiv 2509.04827).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from energylens.cases import Cases, FloatArray

WAITING_RATIO, READING_RATIO, MULTIPLYING_RATIO = 0.4, 0.7, 1.0  # of the TDP, drawn meanwhile
CLOCKLESS_RATIO = 0.3  # of the TDP, that does not follow the core clock
# The next two are chosen so that the least lies where it was published to lie, as said above.
READING_CLOCK_RATIO = 0.7  # of the highest clock, that a core needs to ask for all the bytes
VOLTAGE_FLOOR_RATIO = 0.55  # of the highest voltage, that the lowest clock would need
#: Spread of the logarithm of joules, and of seconds, for each unit of log clock that no row has
#: seen: a voltage that stayed where it is would cost 0.4 more, one that followed the clock all the
#: way 0.4 less; a core that asked for bytes fast enough all the way would lose no time over them.
JOULES_SPREAD, SECONDS_SPREAD = 0.4, 0.3


@dataclass(frozen=True, kw_only=True, eq=False)
class Clocked:
    """What is left of joules by what they are spent on, and of speed; each of shape (n,)."""

    speed: FloatArray  # of multiplying
    reading_speed: FloatArray
    waiting_j: FloatArray
    reading_j: FloatArray
    multiplying_j: FloatArray

    @classmethod
    def of(cls, speed: FloatArray) -> Clocked:
        """Of cores locked to these shares of their highest clock."""
        dynamic = speed * (VOLTAGE_FLOOR_RATIO + (1.0 - VOLTAGE_FLOOR_RATIO) * speed) ** 2

        def power(drawn: float) -> FloatArray:
            left: FloatArray = (CLOCKLESS_RATIO + (drawn - CLOCKLESS_RATIO) * dynamic) / drawn
            return left

        reading_speed = np.minimum(speed / READING_CLOCK_RATIO, 1.0)
        return cls(
            speed=speed,
            reading_speed=reading_speed,
            waiting_j=power(WAITING_RATIO),
            reading_j=power(READING_RATIO) / reading_speed,
            multiplying_j=power(MULTIPLYING_RATIO) / speed,
        )


def log_variance(cases: Cases, spread: float, lowest_seen: float = 1.0) -> FloatArray:
    """Variance of a logarithm for clocks lower than any seen in rows; shape (n,)."""
    beyond = np.maximum(np.log(lowest_seen) - np.log(cases.clock_ratio), 0.0)
    variance: FloatArray = (spread * beyond) ** 2
    return variance
