"""``select`` with a load: what is asked, and how the answer reads."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from energylens.cli import against
from energylens.cli.configuring import candidates_of
from energylens.cli.console import (
    number,
    number_between,
    positive,
    print_json,
    print_paragraph,
    print_table,
    share,
    wrapped_table,
)
from energylens.errors import CheckError, InfeasibleError, InputError, UsageError
from energylens.words import (
    SURE_RATIO,
    Note,
    energies,
    joules,
    likelihood,
    notes_in_order,
    percent,
    plural,
    rounded_down,
    wrapped,
)

if TYPE_CHECKING:
    from energylens.cases import Cases
    from energylens.decisions import Decision, LatencyLimit, Load
    from energylens.model import EnergyModel
    from energylens.records import Case
    from energylens.savings import Prices
    from energylens.scenarios import Scenario
    from energylens.schemas import Month
    from energylens.service import Lengths
    from energylens.time_explained import ExplainedTime

#: Options that only mean something with --rate.
NEED_RATE = (
    "tpot", "ttft", "latency", "meet", "lengths", "mix", "input_cv", "output_cv", "cached_share",
    "current", "price", "carbon", "pue", "gpu_hour", "profile", "front", "emit", "candidates",
    "check",
)  # fmt: skip
SHOWN, LEAST_SHOWN = 4, 2  # configurations in the table of the answer
LINES = 24  # of an answer
BRACKETS = re.compile(r" \([^()]{60,}\)\.")  # of a note that has to be short
LEAST_SHARE = 0.01  # of capacity, below which it is not told in digits


def add_load_options(parser: argparse.ArgumentParser) -> None:
    """Add what describes a load, its limits and what the answer is compared with."""
    group = parser.add_argument_group(
        "under load (without --rate a full batch is assumed)",
    )
    group.add_argument(
        "--rate",
        type=positive,
        metavar="R",
        help="requests that arrive in a second, over all replicas",
    )
    group.add_argument(
        "--tpot", metavar="T[:pN]", help="limit on the mean time per token, as in 50ms or 50ms:p90"
    )
    group.add_argument(
        "--ttft", metavar="T[:pN]", help="limit on the time to the first token, as in 1s or 1s:p99"
    )
    group.add_argument("--latency", metavar="T[:pN]", help="limit on the time of a request")
    group.add_argument(
        "--meet",
        type=share,
        metavar="P",
        help="probability with which the limits must be met (default: 0.9)",
    )
    group.add_argument(
        "--lengths", metavar="TRACE.csv", help="take the lengths of requests from a trace"
    )
    group.add_argument("--mix", metavar="NAME", help="named lengths: conversation or code")
    group.add_argument(
        "--input-cv",
        type=number_between(0.0, 100.0),
        metavar="CV",
        help="spread of prompt lengths (default: 1)",
    )
    group.add_argument(
        "--output-cv",
        type=number_between(0.0, 100.0),
        metavar="CV",
        help="spread of output lengths (default: 1)",
    )
    group.add_argument(
        "--cached-share",
        type=number_between(0.0, 1.0),
        metavar="S",
        help="share of prompts found in the prefix cache (default: 0)",
    )
    group.add_argument(
        "--current",
        metavar="'TP8 B256'",
        help="what runs today, or its vllm serve command line: savings are against it",
    )
    group.add_argument(
        "--price", type=number_between(0.0, 1e6), metavar="USD", help="of a kWh (default: 0.13)"
    )
    group.add_argument(
        "--carbon", type=number_between(0.0, 1e6), metavar="KG", help="CO2 of a kWh (default: 0.37)"
    )
    group.add_argument(
        "--pue", type=number_between(1.0, 100.0), metavar="X", help="of the site (default: 1.56)"
    )
    group.add_argument("--gpu-hour", type=positive, metavar="USD", help="rent of a GPU for an hour")
    group.add_argument(
        "--profile", metavar="DAY.csv", help="a day's rate: hour,rate_per_s; --rate is its peak"
    )
    group.add_argument("--front", action="store_true", help="list the energy-latency front")
    group.add_argument(
        "--emit", metavar="KIND", help="print only: vllm, sglang, trtllm, kubernetes or compose"
    )
    group.add_argument(
        "--check",
        type=percent_over,
        metavar="X",
        help="exit 1 where the current configuration takes more than X %% above the best, or "
        "breaks a limit",
    )
    group.add_argument(
        "--candidates",
        metavar="FILE.json",
        help="rank the candidates of AIConfigurator or AISimulate instead",
    )


def percent_over(text: str) -> float:
    """Read a percentage of 0 or more (an argparse type)."""
    return number("0 % or more", lambda value: 0 <= value < math.inf)(text.rstrip("%"))


def limits_of(arguments: argparse.Namespace) -> tuple[LatencyLimit, ...]:
    """Read all limits given."""
    from energylens.answering import parse_limit

    given = ((name, getattr(arguments, name)) for name in ("tpot", "ttft", "latency"))
    return tuple(parse_limit(text, name, f"--{name}") for name, text in given if text)


def lengths_of(arguments: argparse.Namespace) -> Lengths:
    """Read lengths: of a trace, a named mix, or means with their spread.

    Raises
    ------
    UsageError
        If none or several of these are given.
    """
    from energylens.lengths import MIXES, read_lengths
    from energylens.service import Lengths

    means = arguments.input_tokens is not None or arguments.output_tokens is not None
    if sum((means, arguments.lengths is not None, arguments.mix is not None)) != 1:
        raise UsageError(
            "lengths come from one place: --input-tokens and --output-tokens, or --lengths "
            "TRACE.csv, or --mix"
        )
    if arguments.lengths:
        return read_lengths(arguments.lengths)
    if arguments.mix:
        if arguments.mix not in MIXES:
            raise UsageError(f"--mix must be one of {', '.join(MIXES)}, not {arguments.mix!r}")
        return MIXES[arguments.mix]
    if arguments.input_tokens is None or arguments.output_tokens is None:
        raise UsageError("both --input-tokens and --output-tokens must be given")
    return Lengths(
        input_tokens=arguments.input_tokens,
        output_tokens=arguments.output_tokens,
        input_cv=1.0 if arguments.input_cv is None else arguments.input_cv,
        output_cv=1.0 if arguments.output_cv is None else arguments.output_cv,
    )


def prices_of(arguments: argparse.Namespace) -> Prices:
    """Read prices, or their defaults."""
    from energylens.savings import Prices

    if arguments.price is not None and arguments.gpu_hour is not None:
        raise UsageError(
            "--price has no effect beside --gpu-hour, whose rent includes energy: leave one out"
        )
    return Prices.asked(arguments.price, arguments.carbon, arguments.pue, arguments.gpu_hour)


def refuse_without_rate(arguments: argparse.Namespace, *, but: Collection[str] = ()) -> None:
    """Refuse options that would have no effect, ``but`` for some.

    Raises
    ------
    UsageError
        If one is given.
    """
    for name in NEED_RATE:
        if name not in but and getattr(arguments, name) not in (None, False):
            raise UsageError(
                f"--{name.replace('_', '-')} has no effect without --rate: give the requests that "
                "arrive in a second, or leave it out"
            )


@dataclass(frozen=True, kw_only=True)
class UnderLoad:
    """A question under load: what :func:`energylens.deciding.decide` takes, and what to note."""

    scenario: Scenario
    load: Load
    limits: tuple[LatencyLimit, ...]
    question: dict[str, Any]
    notes: list[str]


def notes_on(model: EnergyModel, case: Case, notes: Sequence[str]) -> list[str]:
    """What the reader must know of a model, and of requests too long for the LLM."""
    from energylens.answering import model_notes, notes_of

    return [*model_notes(model, case), *notes_of(model, notes)]


def under_load(
    arguments: argparse.Namespace,
    model: EnergyModel,
    case: Case,
    lengths: Lengths,
    notes: Sequence[str],
) -> UnderLoad:
    """Read what is asked under a load."""
    from energylens.deciding import MEET
    from energylens.decisions import Load
    from energylens.running import read_running
    from energylens.scenarios import Scenario

    load = Load(
        rate_per_s=arguments.rate,
        lengths=lengths,
        cached_share=arguments.cached_share or 0.0,
    )
    scenario = Scenario.of(case, arguments.max_gpus)
    question: dict[str, Any] = {
        "meet": MEET if arguments.meet is None else arguments.meet,
        "choose": arguments.choose,
        "candidates": candidates_of(arguments),
        "current": read_running(arguments.current, case.llm, case.gpu, case.precision)
        if arguments.current
        else None,
        "front": arguments.front or arguments.json,
        "compared": True,
        **_grid(arguments),
    }
    known = notes_on(model, case, notes)
    if arguments.candidates:
        question["cases"], more = _recommended(arguments.candidates, scenario, load)
        known += more
    return UnderLoad(
        scenario=scenario, load=load, limits=limits_of(arguments), question=question, notes=known
    )


def answer(
    arguments: argparse.Namespace,
    model: EnergyModel,
    case: Case,
    lengths: Lengths,
    notes: Sequence[str],
) -> None:
    """Decide and print."""
    from energylens.answering import bills, document
    from energylens.deciding import decide
    from energylens.deploying import EMITTERS, emit
    from energylens.solving import Engine

    asked = under_load(arguments, model, case, lengths, notes)
    if arguments.check is not None and asked.question["current"] is None:
        raise UsageError("--check compares what runs today with the best: --current must be given")
    if arguments.emit and arguments.emit not in EMITTERS:
        raise UsageError(f"--emit must be one of {', '.join(EMITTERS)}, not {arguments.emit!r}")
    rates = read_profile(arguments.profile, arguments.rate) if arguments.profile else ()
    prices = prices_of(arguments)
    decision = decide(Engine(model), asked.scenario, asked.load, asked.limits, **asked.question)
    if arguments.emit:
        llm, told = arguments.llm or case.llm.id, decision.best
        print(emit(arguments.emit, llm, told, gpu=case.gpu, precision=case.precision))
        return
    month = bills(model, decision, prices, rates)
    notes = [*asked.notes, *([prices.describe()] if month else [])]
    if arguments.json:
        if not decision.entries:
            notes = [Note(decision.why_none(), rank=Note.UNCLAIMED), *notes]
        made = document(decision, month, notes)
        if arguments.check is not None:
            made["check"] = wanting(decision, arguments.check) or "passed"
        print_json(made)
    else:
        show(decision, month, [*decision.notes, *notes], day=bool(rates))
    if arguments.json and not decision.entries:
        raise InfeasibleError(decision.why_none())
    if arguments.check is not None and (reason := wanting(decision, arguments.check)):
        raise CheckError(f"check failed: {reason}")


def _recommended(path: str, scenario: Any, load: Load) -> tuple[Cases, list[str]]:
    """Read another tool's candidates; those that do not fit in memory are left out."""
    from energylens.cases import Cases
    from energylens.recommended import read_recommendation
    from energylens.service import slots
    from energylens.solving import case_of

    read = read_recommendation(path)
    cases = Cases.of([case_of(scenario, item.configuration) for item in read.candidates])
    fits = slots(cases, load.lengths) >= 1
    if not fits.any():
        raise InfeasibleError(f"no candidate of {path} has room in memory for one request")
    notes = [f"Ranked are {int(fits.sum())} feasible candidates of {path}."]
    if not fits.all():
        notes.append(f"{int((~fits).sum())} of its candidates do not fit in memory.")
    notes += [f"Left out: {n} that are {status}." for status, n in read.left_out.items()]
    return cases.take(fits), notes


def wanting(decision: Decision, percent_above: float) -> str:
    """Say what is wrong with what runs today; empty where nothing is."""
    today = decision.current
    assert today is not None
    if today.saturated:
        return (
            f"the current configuration does not keep up: it serves "
            f"{today.saturation_rate_per_s:.3g} requests/s at most, and "
            f"{decision.load.rate_per_s:g} arrive"
        )
    if today.probability_of_meeting_ratio < decision.meet:
        return (
            f"the current configuration meets its limits with probability "
            f"{rounded_down(today.probability_of_meeting_ratio):.2f}, below {decision.meet:g}"
        )
    if not decision.entries:
        return ""
    above = 100.0 * (today.energy_per_request_j / decision.best.energy_per_request_j - 1.0)
    if above > percent_above:
        return (
            f"the current configuration takes {above:.0f} % more joules a request than "
            f"{decision.best.describe()}, and {percent_above:g} % are allowed"
        )
    return ""


def _grid(arguments: argparse.Namespace) -> dict[str, Any]:
    sizes = arguments.batch_sizes
    return {"batch_limits": tuple(map(float, sizes))} if sizes else {}


# ------------------------------------------------------------------------------- the bill


def read_profile(path: str, peak_per_s: float) -> list[float]:
    """Read a day's rates: a CSV file with a column ``rate_per_s``, at even distances in time.

    None may be above ``peak_per_s``, the rate that what is chosen has to serve.

    Raises
    ------
    TableError
        If the file cannot be read.
    InputError
        If a rate is none.
    """
    from energylens import files

    try:
        rates = [float(row["rate_per_s"]) for row in files.read_rows(path)]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} must be CSV with a column rate_per_s of numbers, one line for each hour"
        ) from error
    if not rates or not all(0 < rate < float("inf") for rate in rates):
        raise InputError(f"{path}: every rate_per_s must be above 0, and there must be one")
    if max(rates) > 1.001 * peak_per_s:
        raise InputError(
            f"{path}: no rate_per_s may be above --rate, which what is chosen has to serve; the "
            f"largest is {max(rates):g} and --rate is {peak_per_s:g}: give --rate {max(rates):g}"
        )
    return rates


# ----------------------------------------------------------------------------- the words


def show(
    decision: Decision, bills: dict[str, Month], notes: Sequence[str], *, day: bool = False
) -> None:
    """Print the answer: at most 24 lines besides the front, the recommendation first.

    Where they do not hold everything, configurations of the table give way, then the length of
    notes, then those that do least to the answer. What no row is of is said rather than the table.
    """
    from energylens.decision_words import named
    from energylens.decisions import seconds

    said = [*wrapped(_asked(decision))]
    for sentence in _sentences(decision, bills, day=day):
        said += wrapped(sentence)
    fewest, best = decision.fewest_gpus, decision.best
    after: list[str] = []
    if fewest is not None and fewest.configuration.gpus < best.configuration.gpus:
        least = joules(fewest.energy_per_request_j)
        after = wrapped(f"Fewest GPUs: {named(decision, fewest)}, {least}.")
    known = notes_in_order(notes)
    told = sum(len(wrapped(f"Note: {note}")) for note in known)
    needed = [wrapped(f"Note: {note.brief}") for note in known if note.rank <= Note.UNSEEN]
    needs = sum(map(len, needed)) + (len(needed) < len(known))
    room = LINES - len(said) - len(after)
    rows = SHOWN
    while rows and len(_table(decision, rows)) + (needs if rows <= LEAST_SHOWN else told) > room:
        rows -= 1
    listed = _table(decision, rows)
    kept = _noted(known, room - len(listed))
    lines = [*said, *listed, *after]
    if decision.front:
        lines.append("Front (time per token against joules):")
        cells = [
            (named(decision, e), seconds(e.tpot_s), joules(e.energy_per_request_j))
            for e in decision.front
        ]
        lines += wrapped_table(("configuration", "TPOT", "a request"), cells)
    print("\n".join([*lines, *kept]))


def _noted(notes: Sequence[Note], room: int) -> list[str]:
    """Set notes as lines: in short from the last on, and without the last, as there is room."""
    told = [wrapped(f"Note: {note}") for note in notes]
    if sum(map(len, told)) > room:
        told = [wrapped(f"Note: {BRACKETS.sub('.', note)}") for note in notes]
    for i in reversed(range(len(told))):
        if sum(map(len, told)) > room:
            told[i] = min(told[i], wrapped(f"Note: {notes[i].brief}"), key=len)
    kept: list[str] = []
    for i, note in enumerate(told):
        if len(kept) + len(note) + (i + 1 < len(told)) > room:
            return [*kept, f"Note: {plural(len(told) - i, 'more note')} with --json."]
        kept += note
    return kept


def _asked(decision: Decision) -> str:
    """Say the question again, as it was understood."""
    from energylens.decision_words import types

    w, load = decision.load.lengths, decision.load
    limits = ", ".join(x.describe() for x in decision.limits)
    met = f"{limits}, met with probability {decision.meet:g}" if limits else "no limit on latency"
    seen = decision.scenario.workload.vision_tokens
    gpus, formats = types(decision)
    served = decision.scenario.llm.id
    served += f" in {formats.pop()}" if len(formats) == 1 else ""
    served += f" on {gpus.pop()}" if len(gpus) == 1 else ""
    return (
        f"{served} at {load.rate_per_s:g} requests/s, {w.input_tokens:.0f} "
        f"tokens in {f'({seen:.0f} of images or frames) ' if seen else ''}"
        f"and {w.output_tokens:.0f} out; {met}"
    )


def _sentences(decision: Decision, bills: dict[str, Month], *, day: bool) -> Iterator[str]:
    """Say what to run, what it takes, and what binds."""
    from energylens.decision_words import binding, named
    from energylens.decisions import seconds

    best, lengths = decision.best, decision.load.lengths
    words = "Keep what you run, " if decision.keeps else "Run "
    words += f"{named(decision, best)}: {joules(best.energy_per_request_j)} a request "
    words += f"(80 %: {joules(best.lower_j)} to {joules(best.upper_j)}), "
    busy, run = best.utilisation_ratio, best.mean_batch_size
    words += f"{best.power_w:.0f} W, {percent(busy, 0) if busy >= LEAST_SHARE else 'under 1 %'} "
    words += f"of capacity ({f'about {run:.0f}' if run >= 1 else 'fewer than 1'} request"
    words += f"{'s run' if run >= 1.5 else ' runs'} in each replica)."
    if best.probability_best_ratio is not None and len(decision.entries) > 1:
        odds = likelihood(best.probability_best_ratio)
        words += (
            f" Of {len(decision.entries)} layouts that qualify, it is best with probability {odds}."
        )
    yield words
    each = energies(best.energy_per_request_j, lengths.input_tokens, lengths.output_tokens)
    yield f"{'At its peak ' if day else ''}{each}."
    times = f"TPOT {seconds(best.tpot_s)}, TTFT {seconds(best.ttft_s)}, request "
    times += seconds(best.request_latency_s)
    if decision.limits:
        met = ", ".join(
            f"{x.describe()} with {likelihood(p)}"
            for x, p in zip(decision.limits, best.probabilities, strict=True)
        )
        sure = min(best.probabilities) > SURE_RATIO and len(decision.limits) > 1
        times += f"; {'each limit met with over 99 %' if sure else met}"
    yield f"{times}."
    name = "" if decision.current is None else named(decision, decision.current)
    yield from against.sentences(decision, bills, name, day=day)
    if decision.limits:
        yield binding(decision)
    if decision.breaks_at_per_s is not None:
        what = (
            "meets the limits"
            if decision.limits
            else f"keeps up with probability {decision.meet:g}"
        )
        yield (
            f"It {what} up to {decision.breaks_at_per_s:.3g} requests/s; beyond "
            f"{best.saturation_rate_per_s:.3g} the queue grows without end."
        )


def _table(decision: Decision, rows: int) -> list[str]:
    """Set the first configurations as lines; none where there are none to set."""
    from energylens.decision_words import named
    from energylens.decisions import seconds

    if not rows:
        return []

    cells = [
        (
            named(decision, entry, short=True),
            f"{entry.configuration.gpus}",
            joules(entry.energy_per_request_j),
            f"{entry.power_w:.0f} W",
            seconds(entry.tpot_s),
            seconds(entry.ttft_s),
            likelihood(entry.probability_of_meeting_ratio),
        )
        for entry in decision.entries[:rows]
    ]
    header = ("configuration", "GPUs", "a request", "power", "TPOT", "TTFT", "meets")
    return wrapped_table(header, cells)


def print_times(times: ExplainedTime) -> None:
    """Print where the seconds of a full batch go, and the watts that follow."""
    from energylens.decisions import seconds

    print_paragraph(
        f"Kept full, a request takes {seconds(times.request_latency_s)}, "
        f"{seconds(times.tpot_s)} an output token; {times.requests_per_s:.3g} requests complete in "
        "a second."
    )
    print_table(
        ("where the seconds go", "seconds", "share", "W a GPU"),
        [
            (
                kind.name,
                seconds(kind.seconds),
                f"{percent(kind.seconds / times.request_latency_s, 0)}",
                "-"
                if kind.watts_per_gpu is None
                else f"{kind.watts_per_gpu:.0f}" + ("" if kind.plausible else " (!)"),
            )
            for kind in sorted(times.kinds, key=lambda kind: -kind.seconds)
            if kind.seconds > 0
        ],
    )
    if times.implausible:
        print_paragraph(
            "(!): between idle and TDP no GPU draws that; joules and seconds of this row are "
            "divided over the terms in different ways, and only their sums can be relied on."
        )
