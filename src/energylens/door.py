"""The verbs of the package as functions: names and paths in, records out.

They take what people have at hand (a path, a data frame, the name of an LLM) and look up what
the records need; the rooms behind take records alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from energylens.errors import UsageError

if TYPE_CHECKING:
    from energylens.dataset import Dataset
    from energylens.discovery import Front
    from energylens.evaluation.result import Evaluation
    from energylens.explanation import Explanation
    from energylens.instrument.plan import Plan
    from energylens.instrument.sweep import SweepResult
    from energylens.model import EnergyModel
    from energylens.records import Case
    from energylens.selection import Ranking


def read(source: Any) -> Dataset:
    """Read measured rows.

    Parameters
    ----------
    source : str, Path, data frame or Dataset
        A tidy table (CSV, JSON Lines, Parquet), or a frame with its columns (pandas, polars,
        PyArrow; needs the extra ``frames``). ``energylens import`` makes one of other formats.

    Returns
    -------
    Dataset
        n rows; joules are per request.

    Raises
    ------
    TableError
        If anything in it is wrong; the first problem is told, the others counted.

    Examples
    --------
    >>> import energylens as el
    >>> rows = el.read("runs.csv")
    >>> len(rows)
    24
    """
    from energylens import table
    from energylens.dataset import Dataset

    if isinstance(source, Dataset):
        return source
    return table.read(source) if isinstance(source, str | Path) else Dataset.from_frame(source)


def load(name: str | Path) -> EnergyModel:
    """Load a fitted model.

    Parameters
    ----------
    name : str or Path
        A model file that ``energylens fit -o`` wrote, the name of one that comes with the
        package (``energylens models`` lists them), or ``"datasheet"``: no measurement at all.

    Raises
    ------
    ArtefactError
        If the file is no model, or damaged.
    InputError
        If a discovered form is named, as ``front.json#3``: commands take those.

    Examples
    --------
    >>> import energylens as el
    >>> el.load("datasheet").pooled.rows
    0
    """
    from energylens.errors import InputError
    from energylens.packaged import model_for

    path, mark, number = str(name).rpartition("#")
    if mark and path.endswith(".json") and number.isdigit():
        raise InputError(
            f"{name} is a discovered form, which the commands select, explain and evaluate take; "
            "here a model must be given: fit it with energylens.fit"
        )
    return model_for(str(name), "", None)[0]


def fit(
    rows: Any,
    *,
    per: Sequence[str] | None = None,
    loss: str = "relative",
    prior: str = "datasheet",
    extend: Sequence[str] = (),
    idle_power_w: float | None = None,
    measured_power: bool = False,
    accept_misfit: bool = False,
) -> EnergyModel:
    """Fit the energy model, and the time model where rows have times.

    Parameters
    ----------
    rows : Dataset, str, Path or data frame
        n measured rows; one is enough, for the datasheet speaks where rows do not.
    per : sequence of str, optional
        Columns whose values get coefficients of their own: gpu, llm, precision, engine. Default:
        gpu and engine, where there are several.
    loss : {"relative", "log", "huber", "absolute"}
    prior : {"datasheet", "none"}
    extend : sequence of str
        Extensions of the law (docs/studies/extensions.md), or ``("auto",)``.
    idle_power_w : float, optional
        Known draw of an idle GPU, in W.
    measured_power : bool
        Whether to scale the terms by each row's measured power.
    accept_misfit : bool
        Whether to keep a fit although its rows are several times what it predicts.

    Returns
    -------
    EnergyModel

    Raises
    ------
    FitError
        If there is no row, or the energy of one cannot be in joules per request; if all are
        several times what the fit predicts, as joules of another unit are.

    Examples
    --------
    >>> import energylens as el
    >>> model = el.fit("runs.csv")
    >>> model.pooled.rows
    24
    """
    from dataclasses import replace

    from energylens import fitting
    from energylens.latency_fitting import fitted_times

    dataset = read(rows)
    options = fitting.FitOptions(
        per=None if per is None else tuple(per),
        loss=loss,
        prior=prior,
        extend=tuple(extend),
        idle_power_w=idle_power_w,
        measured_power=measured_power,
    )
    model = fitting.fit(dataset, options)
    if not accept_misfit:
        fitting.refuse_misfit(model, dataset)
    return replace(model, time=fitted_times(dataset))


def _model(model: EnergyModel | str | Path | None, gpu: str, engine: Any) -> EnergyModel:
    if model is None:
        from energylens.packaged import model_for

        return model_for(None, gpu, engine)[0]
    return load(model) if isinstance(model, str | Path) else model


#: What describes a case besides its names, and what each is where it is not given.
_CASE = {
    "precision": None,
    "tensor_parallel": 1,
    "pipeline_parallel": 1,
    "expert_parallel": 1,
    "data_parallel": 1,
    "batch_size": None,
    "power_cap_w": None,
    "clock_mhz": None,
    "gpu_memory_utilization": None,
    "kv_cache_dtype": "auto",
    "max_num_seqs": None,
    "vision_tokens": None,
    "images": 0,
    "frames": 0,
    "node_gpus": None,
}


#: What only a question under load has.
_LOAD = {"rate", "rate_per_s", "tpot", "ttft", "latency", "meet", "mix", "cached_share", "current"}


def _asked(
    llm: str, gpu: str, input_tokens: float, output_tokens: float, engine: Any, others: Any
) -> argparse.Namespace:
    unknown = [name for name in others if name not in _CASE]
    if _LOAD & set(unknown):
        raise UsageError(
            f"{', '.join(sorted(_LOAD & set(unknown)))} are of a load, and this answers for a "
            "batch that is kept full: for a load make an energylens.schemas.DecisionFile and ask "
            "energylens.answering.query(it, model).decide(), as docs/tasks/python.md shows"
        )
    if unknown:
        raise UsageError(
            f"a case is described by llm, gpu, input_tokens, output_tokens, engine, "
            f"{', '.join(_CASE)}; given {', '.join(map(repr, unknown))}"
        )
    return argparse.Namespace(
        llm=llm,
        gpu=gpu,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        engine=_engine(engine),
        **(_CASE | others),
    )


def _engine(engine: Any) -> Any:
    from energylens.records import Engine

    return Engine.named(engine) if isinstance(engine, str) else engine


def explain(
    model: EnergyModel | str | Path | None = None,
    case: Case | None = None,
    *,
    llm: str = "",
    gpu: str = "",
    input_tokens: float | None = None,
    output_tokens: float | None = None,
    engine: str | None = None,
    **others: Any,
) -> Explanation:
    """Say what a case costs, term by term, and what a change would do.

    Parameters
    ----------
    model : EnergyModel, str or Path, optional
        As :func:`load` takes it. Default: the packaged model of the GPU type.
    case : Case, optional
        The case; or describe it by the names below.
    llm, gpu : str
        Names of the catalog.
    input_tokens, output_tokens : float
        Tokens of one request.
    engine : str, optional
        Engine and version, as in ``"vllm 0.11.1"``.
    **others
        precision, tensor_parallel, pipeline_parallel, expert_parallel, data_parallel,
        batch_size (32), power_cap_w, clock_mhz, images, frames, vision_tokens, node_gpus,
        gpu_memory_utilization, kv_cache_dtype, max_num_seqs.

    Returns
    -------
    Explanation
        Joules per request, each term with its 80 % interval.

    Raises
    ------
    UnknownNameError
        If no catalog has the LLM or the GPU type.
    UsageError
        If the case is not described.

    Examples
    --------
    >>> import energylens as el
    >>> told = el.explain("datasheet", llm="Qwen/Qwen3-8B", gpu="H100", input_tokens=500,
    ...                   output_tokens=300, batch_size=64)
    >>> told.energy_per_request_j > told.low_j > 0
    True
    """
    from energylens.cli.configuring import case_of
    from energylens.explanation import explain as explained

    if case is None:
        _require_described(llm, gpu, input_tokens, output_tokens)
        case = case_of(_asked(llm, gpu, input_tokens or 0.0, output_tokens or 0.0, engine, others))
    return explained(_model(model, case.gpu.id, _engine(engine)), case)


def _require_described(
    llm: str, gpu: str, input_tokens: float | None, output_tokens: float | None
) -> None:
    given = {"llm": llm, "gpu": gpu, "input_tokens": input_tokens, "output_tokens": output_tokens}
    missing = [name for name, value in given.items() if not value]
    if missing:
        raise UsageError(
            f"{' and '.join(missing)} must be given, as in llm='Qwen/Qwen3-8B', gpu='H100', "
            "input_tokens=500, output_tokens=300"
        )


def select(
    model: EnergyModel | str | Path | None = None,
    *,
    llm: str,
    gpu: str,
    input_tokens: float,
    output_tokens: float,
    choose: Sequence[str] = ("tensor_parallel", "pipeline_parallel"),
    max_gpus: int = 8,
    engine: str | None = None,
    batch_sizes: Sequence[float] = (),
    gpus: Sequence[str] = (),
    precisions: Sequence[str] = (),
    seed: int = 0,
    **others: Any,
) -> Ranking:
    """Rank the configurations that fit by predicted joules per request.

    Parameters
    ----------
    model : EnergyModel, str or Path, optional
        As :func:`load` takes it. Default: the packaged model of the GPU type.
    llm, gpu : str
        Names of the catalog.
    input_tokens, output_tokens : float
        Tokens of one request.
    choose : sequence of str
        What is free: tensor_parallel, pipeline_parallel, expert_parallel, data_parallel,
        parallelism (all four), batch_size, precision, gpu.
    max_gpus : int
        GPUs to use at most.
    engine : str, optional
        Engine and version, as in ``"vllm 0.11.1"``.
    batch_sizes, gpus, precisions : sequence
        Values of what is free; batch sizes are powers of two by default.
    seed : int
        Of the joint draws behind the probabilities.
    **others
        What is not free, as :func:`explain` takes it.

    Returns
    -------
    Ranking
        From the fewest joules up, with intervals and the probability that each is the best.

    Raises
    ------
    UnknownNameError
        If no catalog has the LLM or the GPU type.
    InfeasibleError
        If nothing fits in memory; the message says what comes closest.

    Examples
    --------
    >>> import energylens as el
    >>> ranking = el.select("datasheet", llm="Qwen/Qwen3-8B", gpu="H100", max_gpus=2,
    ...                     input_tokens=500, output_tokens=300, choose=("parallelism",))
    >>> ranking.best.configuration.describe()
    'TP1 PP1 B32'
    """
    from energylens import selection
    from energylens.cli.configuring import BATCH_SIZE, candidates_of, case_of
    from energylens.dataset import freed_columns
    from energylens.explanation import scope_notes
    from energylens.scenarios import Scenario

    _require_described(llm, gpu, input_tokens, output_tokens)
    if "batch_size" in freed_columns(tuple(choose)):
        # Each limit that is tried is what the engine is told.
        others = {"batch_size": BATCH_SIZE, **others}
    asked = _asked(llm, gpu, input_tokens, output_tokens, engine, others)
    vars(asked).update(
        gpus=gpus, precisions=precisions, batch_sizes=tuple(batch_sizes), power_caps=(), clocks=()
    )
    case = case_of(asked)
    fitted = _model(model, case.gpu.id, _engine(engine))
    ranking = selection.select(
        fitted,
        Scenario.of(case, max_gpus),
        choose=tuple(choose),
        candidates=candidates_of(asked),
        seed=seed,
    )
    return replace(ranking, known=scope_notes(fitted, ranking.cases.case(0)))


def evaluate(
    rows: Any,
    estimators: Sequence[str] | None = None,
    *,
    protocol: str = "few-shot",
    choose: Sequence[str] = ("tensor_parallel", "pipeline_parallel"),
    **options: Any,
) -> Evaluation:
    """Judge the law and others on measured rows.

    Parameters
    ----------
    rows : Dataset, str, Path or data frame
        n measured rows.
    estimators : sequence of str, optional
        Whom to judge, by the names of docs/baselines.md. Default: those that ``energylens
        evaluate`` judges.
    protocol : str
        As in docs/evaluation.md: few-shot, learning-curve, unseen-llm, unseen-hardware ...
    choose : sequence of str
        What is free in a scenario.
    **options
        As :func:`energylens.evaluation.judge.evaluate` takes them: train, repeats, seed ...

    Returns
    -------
    Evaluation

    Raises
    ------
    UnknownNameError
        If there is no estimator or protocol of that name.

    Examples
    --------
    >>> import energylens as el
    >>> judged = el.evaluate("runs.csv", ["energylens", "log-linear"], train=10, repeats=2,
    ...                      choose=("parallelism", "batch_size"), allow_simulated=True)
    >>> sorted(judged.estimators)
    ['energylens', 'log-linear']
    """
    from energylens.cli.judging import contestants
    from energylens.evaluation import judge

    chosen, _ = contestants(None if estimators is None else tuple(estimators))
    return judge.evaluate(read(rows), chosen, protocol=protocol, choose=tuple(choose), **options)


def plan(
    llms: str | Sequence[str],
    gpus: str | Sequence[str],
    *,
    engine: str = "vllm",
    design: str = "grid",
    budget_cases: int | None = None,
    budget_minutes: float | None = None,
    max_gpus: int | None = None,
    repeats: int = 1,
    seed: int = 0,
    **space: Any,
) -> Plan:
    """Plan which cases to measure.

    Parameters
    ----------
    llms, gpus : str or sequence of str
        Names of the catalog, or folders with a ``config.json``.
    engine : str
        vllm, transformers, openai, simulated ... (docs/engines.md).
    design : {"grid", "spread"}
        All feasible cases, or a sample in which each is far from the others.
    budget_cases, budget_minutes : int, float, optional
        Most cases, and most minutes.
    max_gpus : int, optional
        GPUs that there are.
    repeats : int
        How often each case is measured.
    seed : int
        Fixes sample and order.
    **space
        Values to combine, as :class:`energylens.instrument.planning.Space` takes them:
        tensor_parallel, batch_sizes, input_tokens, output_tokens ...

    Returns
    -------
    Plan

    Raises
    ------
    UsageError
        If nothing is feasible, or a grid exceeds its budget.

    Examples
    --------
    >>> import energylens as el
    >>> made = el.plan("Qwen/Qwen3-8B", "H100", engine="simulated", batch_sizes=(1, 8),
    ...                input_tokens=(128,), output_tokens=(16,))
    >>> len(made.cases)
    2
    """
    from energylens.instrument import planning

    def listed(names: str | Sequence[str]) -> tuple[str, ...]:
        return (names,) if isinstance(names, str) else tuple(names)

    try:
        asked = planning.Space(llms=listed(llms), gpus=listed(gpus), engine=engine, **space)
    except TypeError as error:
        known = ", ".join(planning.Space.__dataclass_fields__)
        raise UsageError(f"a space is described by {known}: {error}") from None
    return planning.plan(
        asked,
        design=design,
        budget_cases=budget_cases,
        budget_minutes=budget_minutes,
        gpus=max_gpus,
        repeats=repeats,
        seed=seed,
    ).plan


def measure(
    plan: Plan | str | Path,
    output: str | Path,
    *,
    meter: str = "auto",
    max_gpus: int | None = None,
    retry_failed: bool = False,
    on_progress: Callable[[Any], None] | None = None,
) -> SweepResult:
    """Measure every case of a plan that is not yet measured; call again after a kill.

    Parameters
    ----------
    plan : Plan, str or Path
        What to measure, or the file of a plan.
    output : str or Path
        The tidy table, ``.jsonl``. Rows are added to what is there.
    meter : str
        auto, nvml, nvml-power, zeus ... (docs/measurement.md).
    max_gpus : int, optional
        GPUs that a case may have at most.
    retry_failed : bool
        Try again what failed before.
    on_progress : callable, optional
        Told whenever something has changed.

    Returns
    -------
    SweepResult

    Raises
    ------
    MeasurementError
        If no case can be measured at all.

    Examples
    --------
    >>> import energylens as el
    >>> made = el.plan("Qwen/Qwen3-8B", "H100", engine="simulated", batch_sizes=(8,),
    ...                input_tokens=(128,), output_tokens=(16,))
    >>> el.measure(made, "mine.jsonl").measured
    1
    """
    from energylens.catalog.scaling import scaled_down
    from energylens.instrument import engines, meters, planfile
    from energylens.instrument.executors import local
    from energylens.instrument.sweep import measure as sweep

    made = planfile.read_plan(plan, scale=scaled_down) if isinstance(plan, str | Path) else plan
    simulated = {case.engine for case in made.cases} == {"simulated"}
    indices = () if simulated else meters.gpu_indices()
    return sweep(
        made,
        engines.open_engine,
        partial(meters.open_meter, meter),
        output,
        executor=local.InlineExecutor()
        if simulated
        else local.LocalExecutor(indices[:max_gpus] if max_gpus else indices),
        gpus=max_gpus,
        retry_failed=retry_failed,
        on_progress=on_progress,
    )


def discover(rows: Any, engine: str = "own", **options: Any) -> Front:
    """Search for the structure of energy in measured rows.

    Parameters
    ----------
    rows : Dataset, str, Path or data frame
        n measured rows, 8 or more.
    engine : {"own", "operon", "pysr"}
    **options
        As :func:`energylens.discovery.discover` takes them: choose, leave, samples, seed ...

    Returns
    -------
    Front
        Expressions from simple to complex; ``front.knee`` is the one to take.

    Raises
    ------
    InputError
        If there are fewer than 8 rows.

    Examples
    --------
    >>> import energylens as el
    >>> front = el.discover("runs.csv", samples=0)
    >>> front.rows
    24
    """
    from energylens import discovery

    return discovery.discover(read(rows), discovery.engine(engine), **options)


def report(
    rows: Any,
    output: str | Path,
    *,
    choose: Sequence[str] = ("parallelism", "batch_size"),
    repeats: int = 10,
    seed: int = 0,
    front: Front | None = None,
    current: str | None = None,
) -> None:
    """Fit, choose and judge on measured rows, and write one HTML page about it.

    Parameters
    ----------
    rows : Dataset, str, Path or data frame
        n measured rows.
    output : str or Path
        The page, ``.html``; it needs nothing from outside.
    choose : sequence of str
        What is free.
    repeats : int
        Draws of the learning curve.
    seed : int
    front : Front, optional
        What :func:`discover` found, to be shown beside the law.
    current : str, optional
        What runs today, to compare with: ``"TP8 B256"`` or its command line.

    Raises
    ------
    MissingExtraError
        If the extra ``report`` is not installed.

    Examples
    --------
    >>> import energylens as el
    >>> el.report("runs.csv", "report.html", repeats=1)
    """
    from energylens import files
    from energylens.cli.report import judged
    from energylens.report.content import gather
    from energylens.report.html import page

    found = judged(read(rows), choose=tuple(choose), repeats=repeats, seed=seed, current=current)
    files.write_text(output, page(gather(**found, front=front)))
