"""Requests arriving at a simulated replica one by one: a discrete-event simulation.

Continuous batching as vLLM schedules it: running sequences get their token first, prompts fill
what the token budget of a step leaves, in chunks where they are longer; a request waits while all
slots are taken or the cache has no room, and the one admitted last is preempted where the cache
runs over. How long a step takes, and what it draws, is read off a table of
`energylens.instrument.engines.simulated_gpu`. Nothing here knows a closed form, so that those can
be checked against it; nothing that comes out of it is a measurement.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from energylens.cases import FloatArray
from energylens.instrument.engines.simulated_gpu import Passes
from energylens.instrument.engines.simulation import STEP_TOKENS, _Server
from energylens.records import Case

BATCHES = 16  # points of a table along each axis
CONTEXTS = 5
PROMPTS = 10
WATERMARK = 0.99  # of the cache, up to which requests are admitted
LONGEST_PAIRED = 2048.0  # tokens that a prompt token attends to at most, in a table


@dataclass(frozen=True, kw_only=True, eq=False)
class StepTable:
    """Seconds and joules of a step by sequences decoding, their context, and prompt tokens.

    ``seconds`` and ``joules`` have the shape (batches, contexts, prompts); values between points
    are read off straight lines. ``idle_w`` is what the replica draws with nothing to do.
    """

    batches: FloatArray
    contexts: FloatArray
    prompts: FloatArray
    seconds: FloatArray
    joules: FloatArray
    idle_w: float

    @classmethod
    def of(
        cls, case: Case, longest: float, seed: int = 0, *, clock_ratio: float = 1.0
    ) -> StepTable:
        """Run the steps of one replica of a case, for contexts up to ``longest`` tokens.

        Parameters
        ----------
        case : Case
            Its batch size is the most sequences a step may have. No pipeline.
        longest : float
            The longest context.
        seed : int
            Of the replica's start.
        clock_ratio : float
            Share of the top clock that the GPUs are locked to. The case's power cap holds too.
        """
        server = _Server.of(case, seed, queue=True)
        shard = replace(
            server.shard, clock_ratio=clock_ratio, power_cap_w=case.configuration.power_cap_w
        )
        most = max(case.configuration.batch_size, 2.0)
        batches = np.concatenate([[0.0], np.geomspace(1.0, most, BATCHES - 1)])
        contexts = np.linspace(1.0, longest, CONTEXTS)
        prompts = np.concatenate([[0.0], np.geomspace(16.0, STEP_TOKENS, PROMPTS - 1)])
        n, c, p = (a.reshape(-1) for a in np.meshgrid(batches, contexts, prompts, indexing="ij"))
        window = server._window
        passes = Passes(
            repeats=np.ones(len(n)),
            tokens=np.maximum(n + p, 1.0),
            answered=np.maximum(n, 1.0),
            eager=(p > 0).astype(np.float64),
            decoding=n,
            cached=n * c,
            cached_window=n * np.minimum(c, window),
            pairs=p * np.minimum(p, LONGEST_PAIRED) / 2.0,
            pairs_window=p * np.minimum(p, min(LONGEST_PAIRED, window)) / 2.0,
        )
        busy_s, busy_j = (part.sum(axis=0) for part in shard.run(passes))
        wall_s = busy_s + server._host_s(busy_s, n, 0.0)
        joules = server._outcome(wall_s, busy_s, busy_j).energy_j
        shape = (len(batches), len(contexts), len(prompts))
        return cls(
            batches=batches,
            contexts=contexts,
            prompts=prompts,
            seconds=wall_s.reshape(shape),
            joules=joules.reshape(shape),
            idle_w=case.configuration.tensor_parallel * server.board.waiting_w,
        )

    def reader(self) -> Callable[[float, float, float], tuple[float, float]]:
        """Seconds and joules of one step, by sequences decoding, their context, prompt tokens."""
        return _lookup(self)


class Replica:
    """One simulated replica that is offered requests, and lives up to a moment at a time.

    Parameters
    ----------
    slots : int
        Sequences that may run at once.
    cache_tokens : float
        Tokens that the cache holds.
    budget : float
        Tokens of a step.
    slower : float
        Seconds of every step over those of the table; joules stay.

    Attributes
    ----------
    now_s : float
        Where it is: the end of the step last done.
    busy_j, busy_s, idle_s : float
        Joules and seconds of steps, and seconds without, between ``count_from_s`` and
        ``count_to_s`` (all time by default).
    area : float
        Sequences running times seconds, in that time.
    first_s, done_s : list of float
        When each request had its first and its last token; 0 before.
    finished : int
    prompt_tokens_done, output_tokens_done, steps_done : int
        Tokens computed and made, and steps, since the start.
    preempted : int
    """

    def __init__(
        self,
        table: StepTable,
        *,
        slots: int,
        cache_tokens: float,
        budget: float = STEP_TOKENS,
        slower: float = 1.0,
    ) -> None:
        self.idle_w = table.idle_w
        self.slots, self.room, self.budget, self.slower = slots, cache_tokens, budget, slower
        self.look = _lookup(table)
        self.arrivals: list[float] = []
        self.left: list[int] = []
        self.outputs: list[int] = []
        self.first_s: list[float] = []
        self.done_s: list[float] = []
        self.made: list[int] = []
        self.context: list[int] = []
        self.since: list[int] = []  # step at which it began to decode, less what it had made
        self.turn: list[int] = []  # grows with each admission, so that old ends lapse
        self.waiting: deque[int] = deque()
        self.prefilling: list[int] = []
        self.running: dict[int, None] = {}  # decoding or prefilling, in order of admission
        self.ends: list[tuple[int, int, int]] = []
        self.decoding, self.context_sum, self.used = 0, 0, 0.0
        self.step, self.preempted, self.following, self.finished = 0, 0, 0, 0
        self.now_s = self.busy_j = self.busy_s = self.idle_s = self.area = 0.0
        self.prompt_tokens_done = self.output_tokens_done = self.steps_done = 0
        self.count_from_s, self.count_to_s = -math.inf, math.inf

    @property
    def outstanding(self) -> int:
        """Requests offered and not finished."""
        return len(self.arrivals) - self.finished

    def set_table(self, table: StepTable) -> None:
        """Go on at the speed and power of another table (a clock, a cap)."""
        self.idle_w, self.look = table.idle_w, _lookup(table)

    def offer(self, arrival_s: float, input_tokens: int, output_tokens: int) -> int:
        """Take a request that arrives not before those offered earlier; return its number."""
        self.arrivals.append(arrival_s)
        self.left.append(int(input_tokens))
        self.outputs.append(max(int(output_tokens), 1))
        for column in (self.first_s, self.done_s):
            column.append(0.0)
        for counts in (self.made, self.context, self.since, self.turn):
            counts.append(0)
        return len(self.arrivals) - 1

    def advance(self, until_s: float) -> None:
        """Do all steps that begin before a moment; with infinity, all work there is."""
        arrivals = self.arrivals
        n = len(arrivals)
        begin, end = self.count_from_s, self.count_to_s
        while self.now_s < until_s:
            now = self.now_s
            while self.following < n and arrivals[self.following] <= now:
                self.waiting.append(self.following)
                self.following += 1
            coming = arrivals[self.following] if self.following < n else math.inf
            if not self.running and not self.waiting:
                then = min(coming, until_s)
                if then == math.inf:
                    return
                self.idle_s += max(min(then, end) - max(now, begin), 0.0)
                self.now_s = then
                continue
            self._preempt()
            chunks, tokens = self._prompts()
            many = 1
            context = self.context_sum / self.decoding if self.decoding else 0.0
            seconds, energy = self.look(self.decoding, context, tokens)
            if not chunks:
                many = max(self._steps_ahead(), 1)
                if len(self.running) < self.slots:
                    coming = min(coming, until_s)
                    if coming < math.inf:
                        ahead = int((coming - now) / (seconds * self.slower)) + 1
                        many = max(min(many, ahead), 1)
                elif until_s < math.inf:
                    many = max(min(many, int((until_s - now) / (seconds * self.slower)) + 1), 1)
                if many > 1:
                    seconds, energy = self.look(self.decoding, context + (many - 1) / 2.0, 0.0)
            span = seconds * self.slower * many
            inside = min(now + span, end) - max(now, begin)
            if inside > 0:
                self.busy_j += energy * many * inside / span
                self.busy_s += inside
                self.area += len(self.running) * inside
            self.now_s = now + span
            self.steps_done += many
            self.output_tokens_done += self.decoding * many
            self.prompt_tokens_done += int(tokens)
            self.finished += self._after(chunks, many, self.now_s)

    def quiet_until_s(self) -> float:
        """A moment before which nothing ends, if nothing is offered: ``advance`` may wait.

        Steps grow longer as contexts grow, so that the present one, taken as often as it is until
        the next sequence ends, is the least that it takes.
        """
        if self.prefilling or self.waiting or self.following < len(self.arrivals):
            return self.now_s
        if not self.decoding:
            return math.inf
        seconds, _ = self.look(self.decoding, self.context_sum / self.decoding, 0.0)
        return self.now_s + max(self._steps_ahead() - 1, 0) * seconds * self.slower

    def _steps_ahead(self) -> int:
        """Steps until a sequence ends or the cache may run over."""
        ends = self.ends
        while ends and self.turn[ends[0][2]] != ends[0][1]:
            heapq.heappop(ends)
        ahead = ends[0][0] - self.step if ends else 1
        return min(ahead, int((self.room - self.used) / max(self.decoding, 1)))

    def _preempt(self) -> None:
        """Take the cache away from those admitted last, while there is no room for a step."""
        while self.used + self.decoding > self.room and len(self.running) > 1:
            last, _ = self.running.popitem()
            self.preempted += 1
            self.turn[last] += 1
            if last in self.prefilling:
                self.prefilling.remove(last)
                self.left[last] += self.context[last]
            else:
                held = self.context[last] + self.step - self.since[last]
                self.made[last] += self.step - self.since[last]
                self.decoding -= 1
                self.context_sum -= held
                self.left[last] = self.context[last] = held
            self.used -= self.context[last]
            self.context[last] = 0
            self.waiting.appendleft(last)

    def _prompts(self) -> tuple[list[tuple[int, int]], float]:
        """Chunks of prompts in the next step, and their tokens."""
        budget, chunks, total = self.budget - self.decoding, [], 0
        for request in self.prefilling:
            take = min(self.left[request], int(budget))
            if take >= 1:
                chunks.append((request, take))
                budget -= take
                total += take
        while self.waiting and len(self.running) < self.slots and budget >= 1:
            request = self.waiting[0]
            take = min(self.left[request], int(budget))
            needed = self.used + self.decoding + total + take
            if self.running and needed > WATERMARK * self.room:
                break
            self.waiting.popleft()
            self.running[request] = None
            self.prefilling.append(request)
            chunks.append((request, take))
            budget -= take
            total += take
        return chunks, float(total)

    def _after(self, chunks: list[tuple[int, int]], many: int, now: float) -> int:
        """Count tokens of the steps just done; return how many requests they ended."""
        self.step += many
        self.used += self.decoding * many
        self.context_sum += self.decoding * many
        ended = 0
        while self.ends and self.ends[0][0] <= self.step:
            _, turn, request = heapq.heappop(self.ends)
            if self.turn[request] != turn:
                continue
            held = self.context[request] + self.step - self.since[request]
            self.decoding -= 1
            self.context_sum -= held
            self.used -= held
            del self.running[request]
            self.done_s[request] = now
            ended += 1
        for request, take in chunks:
            self.left[request] -= take
            self.context[request] += take
            self.used += take
            if self.left[request]:
                continue
            self.prefilling.remove(request)
            if not self.made[request]:
                self.first_s[request] = now
            self.made[request] += 1
            self.output_tokens_done += 1
            more = self.outputs[request] - self.made[request]
            if more <= 0:
                self.used -= self.context[request]
                del self.running[request]
                self.done_s[request] = now
                ended += 1
                continue
            self.since[request] = self.step
            self.decoding += 1
            self.context_sum += self.context[request]
            heapq.heappush(self.ends, (self.step + more, self.turn[request], request))
        return ended


def _lookup(table: StepTable) -> Callable[[float, float, float], tuple[float, float]]:
    """Read a table off straight lines, in plain numbers: it is asked a million times."""
    axes = [a.tolist() for a in (table.batches, table.contexts, table.prompts)]
    seconds, joules = table.seconds.tolist(), table.joules.tolist()

    def place(axis: list[float], value: float) -> tuple[int, float]:
        low = min(max(bisect_right(axis, value) - 1, 0), len(axis) - 2)
        return low, max((value - axis[low]) / (axis[low + 1] - axis[low]), 0.0)

    def look(running: float, context: float, prompt: float) -> tuple[float, float]:
        i, x = place(axes[0], running)
        j, y = place(axes[1], context)
        k, z = place(axes[2], prompt) if prompt else (0, 0.0)
        total_s = total_j = 0.0
        for a, u in ((i, 1.0 - x), (i + 1, x)):
            for b, v in ((j, 1.0 - y), (j + 1, y)):
                for c, w in ((k, 1.0 - z), (k + 1, z)):
                    weight = u * v * w
                    if weight:
                        total_s += weight * seconds[a][b][c]
                        total_j += weight * joules[a][b][c]
        return total_s, total_j

    return look
