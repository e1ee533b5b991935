"""Inside of vLLM: its own ``/metrics`` carries the joules, without a sidecar.

An entry point of ``vllm.stat_logger_plugins``, which vLLM loads wherever energylens is installed.
It does nothing unless ``ENERGYLENS_WATCH=1`` is set; then a thread of the API server's process
watches as ``energylens watch`` does. What it reads are the numbers that vLLM gives to Prometheus,
not its stats objects, which vLLM keeps free to change.

======================================  =========================================================
variable                                meaning
======================================  =========================================================
``ENERGYLENS_WATCH``                    1 to watch
``ENERGYLENS_WATCH_METER``              as ``--meter`` (default: auto)
``ENERGYLENS_WATCH_MODEL``              a model.json, a packaged model's name, or ``datasheet``
``ENERGYLENS_WATCH_LLM``                the LLM, where vLLM's own name of it is in no catalog
``ENERGYLENS_WATCH_GPU``                the GPU type, where vLLM's own name of it is in no catalog
``ENERGYLENS_WATCH_PRECISION``          the number format, where vLLM's own word for it is none
``ENERGYLENS_WATCH_LOADED_IDLE``        as ``--loaded-idle``
``ENERGYLENS_WATCH_WINDOW``             seconds of a window (default: 60)
``ENERGYLENS_WATCH_POLL``               seconds between two looks (default: 1)
``ENERGYLENS_WATCH_TPOT``, ``_TTFT``    limits that the best configuration must meet
======================================  =========================================================
"""

from __future__ import annotations

import logging
import os
import threading
from typing import Any

from vllm.v1.metrics.loggers import AggregateStatLoggerBase

from energylens.errors import EnergyLensError, UsageError
from energylens.foreign import printable
from energylens.watching.counters import EARLY, NAMES, Counters, read_counters
from energylens.watching.expecting import Expectation
from energylens.watching.publishing import WatchCollector
from energylens.watching.watcher import POLL_S, WINDOW_S, Watcher

SWITCH = "ENERGYLENS_WATCH"
#: What vLLM calls formats that have another name here.
FORMATS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}

logger = logging.getLogger("vllm.energylens")


def _said(name: str) -> str:
    return os.environ.get(f"{SWITCH}_{name}", "").strip()


def _number(name: str, default: float | None) -> float | None:
    text = _said(name)
    try:
        return float(text) if text else default
    except ValueError:
        raise UsageError(f"{SWITCH}_{name} must be a number, not {printable(text, 60)!r}") from None


class EnergyLensStatLogger(AggregateStatLoggerBase):  # type: ignore[misc]
    """Watches the engines of one API server.

    Parameters
    ----------
    engine_indexes : list of int
        The data-parallel engines that this process speaks for.
    """

    def __init__(self, vllm_config: Any, engine_indexes: list[int]) -> None:
        self._stop = threading.Event()
        self._watcher: Watcher | None = None
        if os.environ.get(SWITCH, "") not in ("1", "true", "yes", "on"):
            return
        try:
            self._watcher = self._begin(vllm_config, len(engine_indexes))
        except EnergyLensError as error:
            logger.warning("energylens does not watch this server: %s", error)
        except Exception:
            # Whatever is wrong with watching, serving must go on.
            logger.exception("energylens does not watch this server")

    def _begin(self, config: Any, engines: int) -> Watcher:
        import prometheus_client

        from energylens.instrument.meters import open_meter

        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            raise UsageError(
                "several API servers share vLLM's metrics through files, which takes in nothing of "
                "a plugin: run energylens watch beside it"
            )
        expectation, why = None, ""
        try:
            expectation = _expectation(config, engines)
        except EnergyLensError as error:
            why = str(error)
        meter = open_meter(_said("METER") or "auto")
        registry = prometheus_client.REGISTRY
        names = {name for every in NAMES["vllm"].values() for name in every}
        names |= {
            *EARLY,
            "vllm:request_prompt_tokens_bucket",
            "vllm:request_generation_tokens_bucket",
        }

        def look() -> Counters:
            shown = prometheus_client.generate_latest(registry.restricted_registry(sorted(names)))
            return read_counters(shown.decode(), where="vLLM")

        window_s = _number("WINDOW", WINDOW_S) or WINDOW_S
        watcher = Watcher(
            look,
            meter,
            expectation,
            window_s=window_s,
            poll_s=min(_number("POLL", POLL_S) or POLL_S, window_s),
            learn_idle=not _said("LOADED_IDLE"),
        )
        registry.register(WatchCollector(watcher))
        threading.Thread(
            target=self._watch, args=(watcher,), name="energylens-watch", daemon=True
        ).start()
        if expectation is None:
            logger.warning("energylens measures this server's joules and expects none: %s", why)
        else:
            logger.info("energylens watches this server: %s", expectation.case.llm.id)
        return watcher

    def _watch(self, watcher: Watcher) -> None:
        while not self._stop.is_set():
            try:
                window = watcher.poll()
                if window is not None:
                    logger.info("energylens: %s", window.line())
            except Exception:
                logger.exception("energylens has stopped watching")
                return
            watcher.wait()

    def record(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: numbers are read where vLLM gives them to Prometheus."""

    def log(self) -> None:
        """Nothing: a window is logged when it closes."""

    def log_engine_initialized(self) -> None:
        """Nothing to add."""


def _expectation(config: Any, engines: int) -> Expectation:
    """Make the law ready for what this server says that it runs."""
    from energylens import catalog, packaged
    from energylens.answering import engine_meant, parse_limit
    from energylens.instrument.planning import find_llm
    from energylens.records import Case, Configuration, Engine, Workload

    parallel, served = config.parallel_config, config.model_config
    replicas = max(int(parallel.data_parallel_size), engines)
    named = _said("LLM") or str(served.model)
    llm, _ = find_llm(named)
    gpu = catalog.gpu(_said("GPU") or _gpu_name())
    word = _said("PRECISION") or served.quantization or str(served.dtype).removeprefix("torch.")
    precision = catalog.precision(FORMATS.get(str(word), str(word)))
    engine = Engine(name="vllm", version=_version())
    model, notes = packaged.model_for(_said("MODEL") or None, gpu.id, engine)
    for note in notes:
        logger.info("energylens: %s", note)
    case = Case(
        llm=llm,
        gpu=gpu,
        precision=precision,
        workload=Workload(input_tokens=1.0, output_tokens=1.0),
        configuration=Configuration(
            tensor_parallel=int(parallel.tensor_parallel_size),
            pipeline_parallel=int(parallel.pipeline_parallel_size),
            data_parallel=replicas,
            batch_size=float(config.scheduler_config.max_num_seqs * replicas),
        ),
        engine=engine_meant(engine, model),
    )
    limits = tuple(
        parse_limit(text, name, f"{SWITCH}_{name.upper()}")
        for name in ("tpot", "ttft")
        if (text := _said(name.upper()))
    )
    return Expectation(model, case, loaded_idle_w=_number("LOADED_IDLE", None), limits=limits)


def _gpu_name() -> str:
    from vllm.platforms import current_platform

    try:
        return str(current_platform.get_device_name(0))
    except Exception as error:  # a platform without names
        raise UsageError(
            f"vLLM does not say which GPU it runs on ({printable(error, 80)}): set {SWITCH}_GPU"
        ) from None


def _version() -> str:
    import vllm

    return str(getattr(vllm, "__version__", "")).partition("+")[0]
