"""What a watcher knows, as metrics of Prometheus: our names, and OpenTelemetry's drafts beside.

A number that is not known has no series: there is no joule per token in a window without tokens,
and no saving where nothing was asked of the server. Names drafted for OpenTelemetry's GenAI
conventions (``gen_ai.infrastructure.energy``, ``.energy.per_token``, ``.power``) are written as
Prometheus writes those of OpenTelemetry, and may change with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from energylens import __version__
from energylens.errors import InputError, MissingExtraError
from energylens.watching.watcher import Watcher
from energylens.watching.windows import Window

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

Value = Callable[[Window], float | None]


def _of_done(name: str) -> Value:
    def value(window: Window) -> float | None:
        return None if window.done is None else getattr(window.done, name) / window.seconds

    return value


def _of(part: str, name: str) -> Value:
    def value(window: Window) -> float | None:
        held = getattr(window, part)
        return None if held is None else getattr(held, name)

    return value


#: Gauges of the last window: name, help, value.
GAUGES: tuple[tuple[str, str, Value], ...] = (
    (
        "energylens_energy_per_request_joules",
        "Measured joules of all GPUs over the requests that ended in the last window.",
        lambda w: w.energy_per_request_j,
    ),
    (
        "energylens_energy_per_output_token_joules",
        "Measured joules of all GPUs over the tokens generated in the last window.",
        lambda w: w.energy_per_output_token_j,
    ),
    (
        "energylens_power_watts",
        "Measured watts of all GPUs in the last window.",
        lambda w: w.power_w,
    ),
    (
        "energylens_expected_energy_per_request_joules",
        "Joules a request that the law expects of what the engine did in the last window.",
        lambda w: w.expected_energy_per_request_j,
    ),
    (
        "energylens_expected_energy_per_output_token_joules",
        "Joules an output token that the law expects of what the engine did in the last window.",
        lambda w: w.expected_energy_per_output_token_j,
    ),
    (
        "energylens_expected_power_watts",
        "Watts that the law expects of what the engine did in the last window.",
        lambda w: w.expected_power_w,
    ),
    (
        "energylens_loaded_idle_energy_ratio",
        "Share of the joules that GPUs draw while they hold the LLM and nothing runs.",
        lambda w: w.idle_energy_ratio,
    ),
    (
        "energylens_loaded_idle_time_ratio",
        "Share of the time in which nothing runs.",
        _of("expected", "empty_ratio"),
    ),
    (
        "energylens_request_rate_per_second",
        "Requests that ended in a second of the last window.",
        _of_done("requests"),
    ),
    (
        "energylens_output_token_rate_per_second",
        "Tokens generated in a second of the last window.",
        _of_done("output_tokens"),
    ),
    (
        "energylens_mean_batch_size",
        "Sequences that shared a step of a replica in the last window.",
        _of("expected", "mean_batch_size"),
    ),
    (
        "energylens_ttft_seconds",
        "Mean time to the first token in the last window, as the engine says.",
        lambda w: w.ttft_s,
    ),
    (
        "energylens_tpot_seconds",
        "Mean time between two tokens of a request in the last window, as the engine says.",
        lambda w: w.tpot_s,
    ),
    (
        "energylens_expected_tpot_seconds",
        "Time between two tokens that the time law expects at the batch of the last window.",
        lambda w: w.expected_tpot_s,
    ),
    (
        "energylens_best_power_watts",
        "Watts that the best configuration would draw at the load of the last window, by the law.",
        _of("saving", "best_power_w"),
    ),
    (
        "energylens_best_energy_per_request_joules",
        "Joules a request of the best configuration at the load of the last window, by the law.",
        _of("saving", "best_energy_per_request_j"),
    ),
    (
        "energylens_saving_open_ratio",
        "Share of today's joules that the best configuration would save at this load, by the law.",
        _of("saving", "ratio"),
    ),
    (
        "energylens_saving_open_watts",
        "The same in watts of what is measured.",
        lambda w: w.saving_w,
    ),
    (
        "energylens_drift_ratio",
        "Measured over expected joules of the last window.",
        lambda w: w.drift_ratio,
    ),
    (
        "energylens_drift_reference_ratio",
        "What that ratio was when watching began.",
        lambda w: w.drift_reference_ratio,
    ),
    (
        "energylens_time_drift_ratio",
        "Measured over expected time of tokens or steps in the last window.",
        lambda w: w.time_drift_ratio,
    ),
    (
        "energylens_time_drift_reference_ratio",
        "What that ratio was when watching began.",
        lambda w: w.time_drift_reference_ratio,
    ),
    ("energylens_window_seconds", "Length of the last window.", lambda w: w.seconds),
    (
        "energylens_last_window_timestamp_seconds",
        "When the last window ended, in seconds since 1970.",
        lambda w: w.time_s,
    ),
)
#: Drafts of OpenTelemetry's GenAI conventions, in Prometheus's spelling.
OTEL_GAUGES: tuple[tuple[str, str, Value], ...] = (
    (
        "gen_ai_infrastructure_energy_per_token_joules",
        "gen_ai.infrastructure.energy.per_token (draft): measured joules per output token.",
        lambda w: w.energy_per_output_token_j,
    ),
    (
        "gen_ai_infrastructure_power_watts",
        "gen_ai.infrastructure.power (draft): measured watts.",
        lambda w: w.power_w,
    ),
)
COUNTERS: tuple[tuple[str, str, str], ...] = (
    ("energylens_energy_joules_total", "Measured joules of all windows.", "energy_j"),
    (
        "energylens_expected_energy_joules_total",
        "Joules that the law expects of all windows.",
        "expected_energy_j",
    ),
    ("energylens_windows_total", "Windows closed.", "windows"),
    ("energylens_windows_invalid_total", "Windows of which nothing may be said.", "without"),
    ("energylens_engine_restarts_total", "Times that the engine has started anew.", "restarts"),
)
#: Those that are measured carry where their joules come from.
MEASURED = (
    "energylens_energy_joules_total",
    "energylens_energy_per_request_joules",
    "energylens_energy_per_output_token_joules",
    "energylens_power_watts",
)


class WatchCollector:
    """Gives a watcher's numbers to whoever scrapes.

    Parameters
    ----------
    labels : mapping of str to str, optional
        On every series, besides ``model``.
    """

    def __init__(self, watcher: Watcher, labels: dict[str, str] | None = None) -> None:
        self._watcher = watcher
        self._labels = dict(labels or {})

    def collect(self) -> Iterator[Metric]:
        """Make all metrics of now."""
        from prometheus_client.metrics_core import (
            CounterMetricFamily,
            GaugeMetricFamily,
            InfoMetricFamily,
        )

        watcher = self._watcher
        window, totals = watcher.last, watcher.totals
        own = {"model": ",".join(watcher.names), **self._labels}
        source = "" if watcher.source is None else str(watcher.source)

        def labelled(name: str) -> dict[str, str]:
            return own | ({"source": source} if name in MEASURED else {})

        def gauge(name: str, text: str, value: float, labels: dict[str, str]) -> Metric:
            family = GaugeMetricFamily(name, text, labels=list(labels))
            family.add_metric(list(labels.values()), float(value))
            return family

        def counter(name: str, text: str, value: float, labels: dict[str, str]) -> Metric:
            family = CounterMetricFamily(name, text, labels=list(labels))
            family.add_metric(list(labels.values()), float(value))
            return family

        yield gauge(
            "energylens_engine_up", "Whether the engine's metrics answer.", watcher.engine_up, own
        )
        if watcher.source is not None:
            yield gauge(
                "energylens_meter_up",
                "Whether the meter answers, and its counter moves.",
                watcher.meter_up,
                own,
            )
        for name, text, part in COUNTERS:
            if name == "energylens_energy_joules_total" and not source:
                continue
            if name.startswith("energylens_expected") and watcher.expectation is None:
                continue
            yield counter(name, text, getattr(totals, part), labelled(name))
        if source:
            yield counter(
                "gen_ai_infrastructure_energy_joules_total",
                "gen_ai.infrastructure.energy (draft): measured joules.",
                totals.energy_j,
                {"gen_ai_request_model": own["model"], "source": source},
            )
        if watcher.expectation is not None:
            yield gauge(
                "energylens_drift_alarm",
                "1 where joules or times no longer go with the law: measure this deployment again.",
                bool(watcher.alarm),
                own,
            )
        info = InfoMetricFamily("energylens_watch", "What is watched.", labels=list(own))
        info.add_metric(list(own.values()), self._info(window))
        yield info
        if window is None:
            return
        yield gauge(
            "energylens_window_valid",
            "0 where nothing may be said of the last window.",
            not window.problem,
            own,
        )
        for name, text, value in GAUGES:
            number = value(window)
            if number is not None:
                yield gauge(name, text, number, labelled(name))
        for name, text, value in OTEL_GAUGES:
            number = value(window)
            if number is not None:
                yield gauge(
                    name, text, number, {"gen_ai_request_model": own["model"], "source": source}
                )

    def _info(self, window: Window | None) -> dict[str, str]:
        expectation = self._watcher.expectation
        said = {"version": __version__}
        if expectation is not None:
            case = expectation.case
            said |= {
                "llm": case.llm.id,
                "gpu": case.gpu.id,
                "precision": case.precision.id,
                "configuration": case.configuration.describe(),
            }
        if window is not None and window.saving is not None:
            said["best_configuration"] = window.saving.configuration
        if window is not None and window.expected is not None:
            said["basis"] = window.expected.basis
        return said


def registry(watcher: Watcher, labels: dict[str, str] | None = None) -> CollectorRegistry:
    """Make a registry that holds a watcher's metrics and nothing else.

    Raises
    ------
    MissingExtraError
        If prometheus-client is not installed.
    """
    try:
        from prometheus_client import CollectorRegistry
    except ImportError:
        raise MissingExtraError("prometheus-client", "watch", "serving metrics") from None
    made = CollectorRegistry(auto_describe=False)
    made.register(WatchCollector(watcher, labels))
    return made


def serve_metrics(watcher: Watcher, host: str, port: int) -> tuple[str, Callable[[], None]]:
    """Serve ``/metrics`` in a thread; return its address, and what stops it.

    Raises
    ------
    InputError
        If the address cannot be listened on.
    """
    held = registry(watcher)
    from prometheus_client import start_http_server

    try:
        server, thread = start_http_server(port, addr=host, registry=held)
    except (OSError, OverflowError) as error:
        raise InputError(f"cannot listen on {host}:{port}: {error}") from None
    name = f"[{host}]" if ":" in host else host

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5.0)

    bound: Any = server.server_port
    return f"http://{name}:{bound}/metrics", stop
