"""An hour on a node: from nothing to an answer, in rounds of the most telling runs.

Each round asks which of all feasible runs would tell most (`energylens.nextruns`), measures them
(`energylens.instrument`), fits, and writes what is then the answer. Everything is in one folder,
line by line on the disk, so that an interrupt at any moment leaves an answer from what is there,
and the same command goes on where it was stopped or killed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from energylens import capacity, files, fitting, modelfile
from energylens.cases import Cases
from energylens.catalog.scaling import scaled_down
from energylens.dataset import Dataset
from energylens.errors import InfeasibleError, InputError, UsageError
from energylens.instrument import planning, sweep
from energylens.instrument.folder import Instrument, SweepFolder
from energylens.instrument.plan import Mode, PlannedCase
from energylens.model import EnergyModel
from energylens.nextruns import verbs as nextruns
from energylens.nextruns.answers import Verdict
from energylens.records import Engine, Gpu, Llm, Precision, Workload
from energylens.scenarios import Candidates, Scenario
from energylens.selection import Ranking, select
from energylens.viewing import picked
from energylens.words import joules, percent, plural

CHOOSE = ("tensor_parallel", "pipeline_parallel", "batch_size")
BATCH_SIZES = (1, 8, 32, 128, 512)
#: Runs of a round: few, so that each is chosen by all that is known.
ROUND = 6
#: Shares of what the best configuration serves when full, at which load is offered.
LOADS = (0.25, 0.5, 0.75)
#: Share of the minutes after which the load is measured, if nothing ended the rounds before.
CHOICE_SHARE = 0.7
#: What another half hour would change is said for so many seconds.
HALF_HOUR_S = 1800.0
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is to be answered, on which node.

    ``batch_sizes`` and the powers of two up to ``gpus`` span the configurations; ``workload``
    is the user's own, and shorter ones are measured beside it.
    """

    llm: str
    gpu: str
    engine: str
    gpus: int
    minutes: float
    input_tokens: int = 1024
    output_tokens: int = 256
    precisions: tuple[str, ...] = ()
    batch_sizes: tuple[int, ...] = BATCH_SIZES
    weights: str = "dummy"
    options: tuple[tuple[str, str], ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.minutes <= 10_000:
            raise UsageError(f"a campaign takes minutes above 0, at most 10000, not {self.minutes}")
        if self.gpus < 1:
            raise UsageError(f"a campaign needs a GPU or more, not {self.gpus}")

    def degrees(self) -> tuple[int, ...]:
        """Powers of two up to the GPUs of the node."""
        return tuple(1 << i for i in range(self.gpus.bit_length()) if 1 << i <= self.gpus)

    def space(self, **changes: Any) -> planning.Space:
        """Everything that may be measured."""
        whole = planning.Space(
            llms=(self.llm,),
            gpus=(self.gpu,),
            engine=self.engine,
            tensor_parallel=self.degrees(),
            pipeline_parallel=self.degrees(),
            batch_sizes=self.batch_sizes,
            input_tokens=_lengths(self.input_tokens),
            output_tokens=_lengths(self.output_tokens),
            weights=self.weights,
            options=dict(self.options),
            seed=self.seed,
            precisions=self.precisions,
        )
        return replace(whole, **changes)


def _lengths(tokens: int) -> tuple[int, ...]:
    return tuple(sorted({max(2, tokens // 4), tokens}))


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What is known at one moment of a campaign."""

    rows: int
    failed: int
    planned: int
    minutes_used: float
    sources: tuple[str, ...]
    loaded_idle_w: float | None  # of a GPU with the LLM loaded
    rates_per_s: tuple[float, ...]
    model: EnergyModel
    ranking: Ranking
    verdict: Verdict | None
    interrupted: bool = False

    def sentences(self) -> tuple[str, ...]:
        """Say what to run, how sure that is, and what more time would change."""
        best = self.ranking.best
        what = f"{best.gpu} {best.precision} {best.configuration.describe()}"
        interval = (
            f" (80 %: {joules(best.lower_j)} to {joules(best.upper_j)})"
            if best.lower_j is not None and best.upper_j is not None
            else ""
        )
        said = [
            f"For {self.ranking.scenario.describe()}: {what}, "
            f"{joules(best.energy_per_request_j)} a request{interval}."
        ]
        if not self.rows:
            said.append("Nothing is measured yet: this is what the datasheet suggests.")
        else:
            kinds = " and ".join(self.sources)
            said.append(
                f"{plural(self.rows, 'row')} ({kinds}) of {self.planned} planned, {self.failed} "
                f"failed, in {self.minutes_used:.1f} minutes."
            )
        if self.loaded_idle_w is not None:
            said.append(f"A GPU with the LLM loaded and idle draws {self.loaded_idle_w:.0f} W.")
        if self.rates_per_s:
            offered = ", ".join(f"{rate:.2g}" for rate in self.rates_per_s)
            said.append(f"Under load: {offered} requests/s were offered.")
        if self.verdict is not None:
            v = self.verdict
            said.append(
                f"Choosing it is expected to cost {percent(v.expected_regret_ratio)} over the "
                f"best; another half hour ({v.more_runs} runs) would make that "
                f"{percent(max(0.0, v.expected_regret_ratio + v.change_ratio))}."
            )
        return tuple(said)

    def to_json(self) -> dict[str, Any]:
        """Names and values."""
        verdict = self.verdict
        return {
            "format": "energylens_campaign",
            "version": VERSION,
            **picked(self, "rows failed planned minutes_used"),
            "sources": list(self.sources),
            "loaded_idle_w": self.loaded_idle_w,
            "rates_per_s": list(self.rates_per_s),
            "interrupted": self.interrupted,
            "best": self.ranking.best.to_json(),
            "expected_regret_ratio": verdict.expected_regret_ratio if verdict else None,
            "probability_best_ratio": verdict.probability_best_ratio if verdict else None,
            "half_hour_runs": verdict.more_runs if verdict else None,
            "half_hour_change_ratio": verdict.change_ratio if verdict else None,
            "answer": list(self.sentences()),
        }


class Campaign:
    """One folder's campaign.

    Parameters
    ----------
    folder : str or Path
        Where plan, rows, records, model and answer lie. One that has some goes on from there.
    instrument : Instrument
        What measures; its executor is made anew for each round.
    told : callable, optional
        Told in a sentence what is done.
    on_progress : callable, optional
        Told of each change in a round, with the seconds left.
    """

    def __init__(
        self,
        question: Question,
        folder: str | Path,
        instrument: Instrument,
        *,
        told: Callable[[str], None] = lambda _: None,
        on_progress: Callable[[sweep.SweepProgress, float], None] = lambda _, __: None,
    ) -> None:
        self.question = question
        self._procedure = instrument.procedure
        self._told = told
        self._on_progress = on_progress
        self._work = SweepFolder(folder, instrument)
        self.folder = self._work.path
        self._began_s = time.monotonic()
        self._earlier_s = self._read_clock()
        draft = planning.plan(
            question.space(),
            gpus=question.gpus,
            order="given",
            procedure=self._procedure,
            scale=scaled_down,
        )
        # A batch is measured as a whole: one that would queue in part is no run of its own.
        fitting_ = [case for case in draft.plan.cases if capacity.memory(case.case).fits]
        if not fitting_:
            raise UsageError(
                f"no batch of these fits in memory: take more GPUs, a smaller LLM or batch than "
                f"{min(question.batch_sizes)}."
            )
        self._candidates = fitting_
        first = self._candidates[0].case
        for case in self._work.cases:
            asked, planned = (first.llm.id, first.gpu.id), (case.case.llm.id, case.case.gpu.id)
            if asked != planned or case.engine != question.engine:
                raise UsageError(
                    f"{self.folder} holds a campaign about {planned[0]} on {planned[1]} with "
                    f"{case.engine}, not about {asked[0]} on {asked[1]} with {question.engine}: "
                    "give another folder."
                )

    # ---------------------------------------------------------------------------------- time

    def _read_clock(self) -> float:
        path = self._work.file("clock.json")
        if not path.exists():
            return 0.0
        seconds = files.read_json(path)
        if isinstance(seconds, dict) and isinstance(seconds.get("seconds"), int | float):
            return float(seconds["seconds"])
        raise InputError(f"{path} does not say how long this campaign has run: remove it.")

    def used_s(self) -> float:
        """Seconds used, those before a kill too; on a simulated clock those that it would take."""
        wall = self._earlier_s + time.monotonic() - self._began_s
        return max(wall, self._measured_s())

    def _measured_s(self) -> float:
        return sum(
            planning.case_seconds(case, self._procedure)
            for case in self._work.cases
            if case.key in self._work.done()
        )

    def left_s(self) -> float:
        """Seconds left."""
        return 60.0 * self.question.minutes - self.used_s()

    def dataset(self) -> Dataset | None:
        """Rows measured so far; None if there are none."""
        return self._work.dataset()

    # ---------------------------------------------------------------------------------- rounds

    def run(self, *, measuring: bool = True) -> Answer:
        """Measure until the time is over, all is measured, or somebody interrupts.

        Parameters
        ----------
        measuring : bool
            False where somebody interrupted before: nothing more is measured.

        Returns
        -------
        Answer
            From whatever is there, after an interrupt too.
        """
        interrupted = not measuring
        try:
            while measuring and (self._work.unfinished() or self._plan_next()):
                if self.left_s() <= 0:
                    self._told("The time is over.")
                    break
                interrupted = self._measure()
                self.answer()
                if interrupted:
                    break
        except KeyboardInterrupt:
            interrupted = True
        finally:
            files.write_json(self._work.file("clock.json"), {"seconds": self._wall_s()})
        try:
            return self.answer(interrupted=interrupted)
        except KeyboardInterrupt:
            return self.answer(interrupted=True)

    def _wall_s(self) -> float:
        return self._earlier_s + time.monotonic() - self._began_s

    def _plan_next(self) -> bool:
        """Choose the next round; False where nothing is left to learn in the time."""
        measured = self.dataset()
        share = self.used_s() / (60.0 * self.question.minutes)
        chosen: list[PlannedCase] = []
        if share < CHOICE_SHARE:
            chosen = self._most_telling(measured)
        if not chosen and not any(case.request_rate_per_s for case in self._work.cases):
            chosen = self._loads(measured)
        if not chosen:
            return False
        self._work.add(chosen)
        return True

    def _most_telling(self, measured: Dataset | None) -> list[PlannedCase]:
        planned = {case.key for case in self._work.cases}
        open_ = [case for case in self._candidates if case.key not in planned]
        room = CHOICE_SHARE * 60.0 * self.question.minutes - self.used_s()
        count = min(ROUND, len(open_))
        shortest = min((self._seconds(case) for case in open_), default=0.0)
        if not open_ or (shortest > room and self._work.cases):
            return []
        if measured is not None:
            verdict = self._verdict(measured, more_runs=count)
            if verdict is not None and verdict.stop:
                self._told("More runs would hardly change the choice.")
                return []
        candidates = Cases.of([case.case for case in open_]).served_by(self._engine())
        try:
            batch = nextruns.next_runs(
                candidates, measured, choose=CHOOSE, count=count, seed=self.question.seed
            )
        except InfeasibleError:
            return []
        chosen = self._within(room, [open_[i] for i in batch.index])
        if chosen:
            self._told(f"Next: {', '.join(case.describe() for case in chosen)}.")
        return chosen

    def _seconds(self, case: PlannedCase) -> float:
        return planning.case_seconds(case, self._procedure)

    def _within(self, room_s: float, cases: Sequence[PlannedCase]) -> list[PlannedCase]:
        """Keep those that the time suffices for, in their order; the very first run always."""
        kept: list[PlannedCase] = []
        for case in cases:
            seconds = self._seconds(case)
            if seconds <= room_s or not (kept or self._work.cases):
                kept.append(case)
                room_s -= seconds
        return kept

    def _engine(self) -> Engine:
        # Behind an OpenAI interface any engine may serve: which one is not known.
        return Engine(name="" if self.question.engine == "openai" else self.question.engine)

    def _loads(self, measured: Dataset | None) -> list[PlannedCase]:
        """Arrivals by chance at shares of what the best configuration serves when full."""
        if measured is None:
            return []
        best = self._ranking(self._fitted(measured)[0]).best.configuration
        if best.pipeline_parallel > 1 and self.question.engine == "simulated":
            return []  # whose replicas under arrivals have no pipeline
        space = self.question.space(
            tensor_parallel=(best.tensor_parallel,),
            pipeline_parallel=(best.pipeline_parallel,),
            batch_sizes=(int(best.batch_size),),
            input_tokens=(self.question.input_tokens,),
            output_tokens=(self.question.output_tokens,),
        )
        try:
            steady = replace(space, mode=Mode.STEADY)  # a limit beyond memory lets the rest wait
            full = planning.plan(steady, gpus=self.question.gpus, order="given", scale=scaled_down)
        except UsageError:
            return []
        served = best.batch_size / sum(planning.phase_seconds(full.plan.cases[0]))
        rows = measured.cases
        same = (
            (rows.tensor_parallel == best.tensor_parallel)
            & (rows.pipeline_parallel == best.pipeline_parallel)
            & (rows.input_tokens == self.question.input_tokens)
            & (rows.output_tokens == self.question.output_tokens)
            & (rows.request_latency_s > 0)
        )
        if same.any():  # rather what was measured than a roofline
            served = float((rows.batch_size[same] / rows.request_latency_s[same]).max())
        rates = tuple(float(f"{share * served:.2g}") for share in LOADS)
        drafted = planning.plan(
            replace(space, request_rates_per_s=rates), order="given", scale=scaled_down
        ).plan.cases
        if self.left_s() < sum(map(self._seconds, drafted)):
            drafted = drafted[1:2]  # one rate, in the middle
        chosen = self._within(self.left_s(), drafted)
        if chosen:
            self._told(f"Under load: {', '.join(case.describe() for case in chosen)}.")
        return chosen

    def _measure(self) -> bool:
        """Measure what is planned; True if somebody interrupted."""
        result = self._work.measure(lambda progress: self._on_progress(progress, self.left_s()))
        files.write_json(self._work.file("clock.json"), {"seconds": self._wall_s()})
        return result.interrupted

    # ---------------------------------------------------------------------------------- answers

    def _fitted(self, measured: Dataset | None) -> tuple[EnergyModel, int]:
        full = None if measured is None else measured.take(~measured.under_load)
        if full is None or not len(full):
            return fitting.from_datasheet(), 0
        return fitting.fit(full), len(full)

    def _scenario(self) -> Scenario:
        first = self._candidates[0].case
        llm: Llm = first.llm
        gpu: Gpu = first.gpu
        precision: Precision = first.precision
        return Scenario(
            llm=llm,
            gpu=gpu,
            precision=precision,
            workload=Workload(
                input_tokens=self.question.input_tokens, output_tokens=self.question.output_tokens
            ),
            max_gpus=self.question.gpus,
            engine=self._engine(),
        )

    def _ranking(self, model: EnergyModel) -> Ranking:
        formats = {case.case.precision.id: case.case.precision for case in self._candidates}
        return select(
            model,
            self._scenario(),
            choose=(*CHOOSE, "precision") if len(formats) > 1 else CHOOSE,
            candidates=Candidates(
                tensor_parallel=self.question.degrees(),
                pipeline_parallel=self.question.degrees(),
                batch_size=tuple(map(float, self.question.batch_sizes)),
                precisions=tuple(formats.values()) if len(formats) > 1 else (),
            ),
            seed=self.question.seed,
        )

    def _verdict(self, measured: Dataset, more_runs: int) -> Verdict | None:
        own = [
            case.case
            for case in self._candidates
            if (case.case.workload.input_tokens, case.case.workload.output_tokens)
            == (self.question.input_tokens, self.question.output_tokens)
        ]
        full = measured.take(~measured.under_load)
        if not len(full):
            return None
        try:
            return nextruns.verdict(
                Cases.of(own).served_by(self._engine()),
                full,
                choose=CHOOSE,
                more_runs=more_runs,
                seed=self.question.seed,
            )
        except (UsageError, InfeasibleError):  # no two configurations compete
            return None

    def answer(self, *, interrupted: bool = False) -> Answer:
        """Fit what is there, and write model and answer."""
        measured = self.dataset()
        model, _ = self._fitted(measured)
        ends = self._work.ended()
        idle = []
        rates = []
        if measured is not None:
            idle = [w for w in measured.cases.loaded_idle_w.tolist() if w > 0]
            rates = sorted(r for r in set(measured.cases.request_rate_per_s.tolist()) if r > 0)
        each = statistics.fmean(
            planning.case_seconds(case, self._procedure) for case in self._candidates
        )
        more = max(1, min(len(self._candidates), round(HALF_HOUR_S / each), 32))
        found = Answer(
            rows=0 if measured is None else len(measured),
            failed=sum(end.get("status") == "failed" for end in ends.values()),
            planned=len(self._work.cases),
            minutes_used=self.used_s() / 60.0,
            sources=() if measured is None else tuple(sorted(set(measured.source.tolist()))),
            loaded_idle_w=statistics.median(idle) if idle else None,
            rates_per_s=tuple(rates),
            model=model,
            ranking=self._ranking(model),
            verdict=None if measured is None else self._verdict(measured, more),
            interrupted=interrupted,
        )
        modelfile.save(model, self._work.file("model.json"))
        files.write_json(self._work.file("answer.json"), found.to_json())
        files.write_text(self._work.file("answer.txt"), "\n".join(found.sentences()) + "\n")
        return found
