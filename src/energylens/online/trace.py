"""Requests of a service as they arrived: read from a file, scaled in rate, stretched to a day."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np

from energylens.cases import FloatArray, IntArray
from energylens.errors import InputError
from energylens.files import read_table
from energylens.lengths import INPUT, OUTPUT
from energylens.service import Lengths

#: What the column of arrivals may be called: moments, or seconds.
ARRIVAL = ("TIMESTAMP", "timestamp", "arrival_s", "arrived_at", "arrival_time")
JITTER_S = 5.0  # by which copies of a request are moved where a rate is scaled up
DAY_S = 86_400.0
LONGEST_S = 31 * DAY_S
NIGHT_RATIO = 0.2  # rate at the lowest hour of a made day, of that at the highest
MOST_REQUESTS = 5_000_000


@dataclass(frozen=True, kw_only=True, eq=False)
class Trace:
    """Arrivals in ascending order, from 0, and the lengths of each request; shape (n,).

    ``made`` says what was done to what was read.
    """

    name: str
    arrivals_s: FloatArray
    input_tokens: IntArray
    output_tokens: IntArray
    made: str = ""

    def __len__(self) -> int:
        return len(self.arrivals_s)

    @property
    def duration_s(self) -> float:
        """Seconds to the last arrival."""
        return float(self.arrivals_s[-1])

    @property
    def rate_per_s(self) -> float:
        """Mean rate of arrivals."""
        return len(self) / max(self.duration_s, 1e-9)

    @property
    def lengths(self) -> Lengths:
        """Means and spreads of the lengths."""
        p, o = self.input_tokens, self.output_tokens
        return Lengths(
            input_tokens=float(p.mean()),
            output_tokens=float(o.mean()),
            input_cv=float(p.std() / p.mean()),
            output_cv=float(o.std() / o.mean()),
        )

    def rates_per_s(self, window_s: float) -> FloatArray:
        """Rates of successive windows."""
        edges = np.arange(0.0, self.duration_s + window_s, window_s)
        return np.histogram(self.arrivals_s, edges)[0] / window_s

    def first(self, seconds: float) -> Trace:
        """Keep the first seconds."""
        return self._take(np.flatnonzero(self.arrivals_s <= seconds), f"first {seconds:g} s")

    def split(self, past_s: float) -> tuple[Trace, Trace]:
        """Part it into what came before a moment, and what came after, from 0 again."""
        before = self.arrivals_s < past_s
        rest = self._take(np.flatnonzero(~before), f"from {past_s:g} s on")
        past = self._take(np.flatnonzero(before), f"before {past_s:g} s")
        return past, replace(rest, arrivals_s=rest.arrivals_s - rest.arrivals_s[0])

    def scaled(self, ratio: float, seed: int = 0) -> Trace:
        """Multiply the rate and keep the course of time.

        Below 1 requests are left out by chance; above 1 they are copied, each copy moved by up to
        :data:`JITTER_S` seconds either way.
        """
        if not (np.isfinite(ratio) and ratio > 0):
            raise InputError(f"a rate is scaled by a number above 0, not {ratio!r}")
        if ratio == 1:
            return self
        if ratio * len(self) > MOST_REQUESTS:
            raise InputError(
                f"{ratio:g} times {len(self)} requests are more than {MOST_REQUESTS}: take less"
            )
        rng = np.random.default_rng([seed, 1])
        copies = np.floor(ratio + rng.random(len(self))).astype(np.intp)
        rows = np.repeat(np.arange(len(self)), copies)
        if len(rows) < 2:
            raise InputError(f"{self.name} at {ratio:g} times its rate has no two requests left")
        first = np.append(True, rows[1:] != rows[:-1])
        moved = np.where(first, 0.0, rng.uniform(-JITTER_S, JITTER_S, len(rows)))
        arrivals = np.clip(self.arrivals_s[rows] + moved, 0.0, self.duration_s)
        order = np.argsort(arrivals, kind="stable")
        return replace(
            self._take(rows[order], f"{ratio:g} times its rate (seed {seed})"),
            arrivals_s=arrivals[order] - arrivals[order[0]],
        )

    def day(self, seed: int = 0) -> Trace:
        """Make 24 hours: the trace again and again, thinned to a cosine with its peak at 15 h."""
        times = int(np.ceil(DAY_S / max(self.duration_s, 1.0)))
        if times * len(self) > MOST_REQUESTS:
            raise InputError(f"a day of {self.name} has more than {MOST_REQUESTS} requests")
        rows = np.tile(np.arange(len(self)), times)
        period = self.duration_s + 1.0 / self.rate_per_s
        arrivals = self.arrivals_s[rows] + np.repeat(np.arange(times) * period, len(self))
        half = (1.0 - NIGHT_RATIO) / 2.0
        shape = NIGHT_RATIO + half * (1 + np.cos(2 * np.pi * (arrivals / DAY_S - 15 / 24)))
        kept = (np.random.default_rng([seed, 2]).random(len(rows)) < shape) & (arrivals < DAY_S)
        made = self._take(rows[kept], f"a day made of it by a cosine, not recorded (seed {seed})")
        return replace(made, arrivals_s=arrivals[kept] - arrivals[kept][0])

    def _take(self, rows: IntArray, made: str) -> Trace:
        if len(rows) < 2:
            raise InputError(f"{self.name}: fewer than two requests are left of {made}")
        return Trace(
            name=self.name,
            arrivals_s=self.arrivals_s[rows],
            input_tokens=self.input_tokens[rows],
            output_tokens=self.output_tokens[rows],
            made=", ".join(filter(None, (self.made, made))),
        )


def read_trace(path: str | Path, *, first_s: float | None = None) -> Trace:
    """Read a trace: one line a request, with its arrival, prompt tokens and output tokens.

    Parameters
    ----------
    path : str or Path
        CSV, JSON Lines or Parquet. Columns as in the Azure LLM inference traces (TIMESTAMP,
        ContextTokens, GeneratedTokens), or any that :data:`ARRIVAL`,
        :data:`~energylens.lengths.INPUT` and :data:`~energylens.lengths.OUTPUT` name. Requests
        without output are left out, lines need not be in order.
    first_s : float, optional
        Keep the first seconds only.

    Raises
    ------
    InputError
        If a column is missing, a value is none, or the trace lasts longer than `LONGEST_S`.
    """
    table = read_table(path)
    columns = table.columns

    def column(names: tuple[str, ...], what: str) -> tuple[str, Sequence[object]]:
        name = next((n for n in names if n in columns), None)
        if name is None:
            raise InputError(
                f"{path} must have a line for each request and a column of {what} "
                f"({', '.join(names)}); it has {', '.join(columns) or 'nothing'}"
            )
        return name, columns[name]

    def tokens(names: tuple[str, ...], what: str) -> FloatArray:
        name, values = column(names, what)
        try:
            found = np.array([float(str(v)) for v in values])
        except ValueError:
            raise InputError(f"{path}: {name} must be a number in every line") from None
        if not np.all(np.isfinite(found) & (found >= 0) & (found < 1e7)):
            raise InputError(f"{path}: {name} must be from 0 to 10 million in every line")
        return found

    prompts, outputs = tokens(INPUT, "prompt tokens"), tokens(OUTPUT, "output tokens")
    arrivals = _moments(*column(ARRIVAL, "arrivals"), str(path))
    kept = (outputs >= 1) & (prompts >= 1)
    order = np.flatnonzero(kept)[np.argsort(arrivals[kept], kind="stable")]
    if len(order) < 2 or arrivals[order[-1]] <= arrivals[order[0]]:
        raise InputError(f"{path} must have at least two requests, at different moments")
    trace = Trace(
        name=Path(path).name,
        arrivals_s=arrivals[order] - arrivals[order[0]],
        input_tokens=np.rint(prompts[order]).astype(np.intp),
        output_tokens=np.rint(outputs[order]).astype(np.intp),
    )
    if first_s is not None:
        trace = trace.first(first_s)
    if trace.duration_s > LONGEST_S:
        raise InputError(
            f"{path} spans {trace.duration_s / DAY_S:.3g} days, and a trace may last "
            f"{LONGEST_S / DAY_S:.0f}: arrivals must be seconds, or dates with times; --first "
            "SECONDS takes the beginning"
        )
    return trace


def _moments(name: str, values: Sequence[object], path: str) -> FloatArray:
    """Seconds of moments that are numbers, or dates with times."""
    try:
        found = np.array([float(str(v)) for v in values])
    except ValueError:
        try:
            # Seven digits of a second, as in the Azure traces, are one more than Python reads.
            moments = [datetime.fromisoformat(_shorter(str(v))) for v in values]
            found = np.array([(m - moments[0]).total_seconds() for m in moments])
        except (ValueError, TypeError):
            raise InputError(
                f"{path}: {name} must be seconds, or a date and time such as "
                "2023-11-16 18:15:46.680, in every line"
            ) from None
    if not np.all(np.isfinite(found)):
        raise InputError(f"{path}: {name} must be finite in every line")
    return found


def _shorter(text: str) -> str:
    head, dot, rest = text.strip().partition(".")
    digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
    return f"{head}.{digits[:6]:0<6}{rest[len(digits) :]}" if dot else head
