"""Time as a stand-in for energy: latency itself, TDP x time, and power from utilisation.

All of these rest on Little's law: a deployment that keeps ``b`` requests in flight, each for
``t`` seconds, completes ``b / t`` of them a second, so that ``P`` watts cost ``P t / b`` joules
a request.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from energylens.baselines.features import PCIE_BYTES_PER_S
from energylens.baselines.least_squares import fit_nonnegative
from energylens.cases import Cases, FloatArray
from energylens.counts import count
from energylens.dataset import Dataset
from energylens.errors import FitError

#: Utilisation power law of arXiv 2507.11417: the share of peak FLOP/s at which power saturates,
#: the exponent, and idle over maximum power of its A100 (100 W of 400 W), for GPUs whose idle
#: power is not known.
SATURATION_MFU = 0.45
UTILISATION_EXPONENT = 0.7
IDLE_SHARE_OF_TDP = 0.25


def measured_latency_s(cases: Cases) -> FloatArray:
    """Seconds from the first to the last token of a request, as measured; shape (n,).

    ``request_latency_s`` where a case has it, else ``tpot_s * output_tokens`` (plus ``ttft_s``
    if that is known too), else NaN.
    """
    from_parts = cases.tpot_s * cases.output_tokens + np.nan_to_num(cases.ttft_s, nan=0.0)
    return np.where(np.isnan(cases.request_latency_s), from_parts, cases.request_latency_s)


@dataclass(frozen=True, kw_only=True, eq=False)
class LatencyModel:
    """A roofline of request latency: each coefficient is a slowness over the datasheet's (>= 0).

    The terms, all over a request's whole life: a constant; decode steps; kernels of those steps;
    weight bytes; cache and state bytes of the batch; operations of decoding; operations of all
    prefills that run meanwhile (as many as there are requests in flight); bytes sent between
    GPUs; kernels that have to wait for other GPUs; hops between stages.
    """

    coefficients: FloatArray

    @classmethod
    def fit(cls, dataset: Dataset) -> LatencyModel:
        """Fit by relative-error non-negative least squares on the rows that have a latency.

        Raises
        ------
        FitError
            If no row has one.
        """
        latency = measured_latency_s(dataset.cases)
        rows = np.flatnonzero(np.isfinite(latency) & (latency > 0))
        if len(rows) == 0:
            raise FitError(
                "predicting latency needs rows that have one (request_latency_s, or tpot_s); "
                f"none of the {len(dataset)} rows has: leave this baseline out"
            )
        relative = latency_terms(dataset.cases.take(rows)) / latency[rows, None]
        return cls(coefficients=fit_nonnegative(relative, np.ones(len(rows))))

    def predict_latency_s(self, cases: Cases) -> FloatArray:
        """Predict seconds per request, shape (n,)."""
        return latency_terms(cases) @ self.coefficients


def latency_terms(cases: Cases) -> FloatArray:
    """Terms of :class:`LatencyModel`, shape (n, 10), those with a datasheet speed in seconds."""
    counts = count(cases)
    # Stages take turns on a token, but each holds only its share of the layers and works on its
    # share of the batch, so all GPUs shorten the path of a token alike.
    bandwidth = counts.gpus * cases.of_gpu(lambda g: g.memory_bandwidth_bytes_per_s)
    peak = counts.gpus * cases.of_gpu(lambda g: g.bf16_flop_per_s)
    link = counts.gpus * cases.of_gpu(lambda g: g.link_bandwidth_bytes_per_s or PCIE_BYTES_PER_S)
    steps, running = cases.output_tokens, counts.running
    # Counts are per request; all that is in flight waits for all of it.
    return np.column_stack(
        [
            np.ones(len(cases)),
            steps,
            steps * counts.kernels,
            running * counts.step_weight_bytes / bandwidth,
            running * counts.cache_bytes / bandwidth,
            running * counts.decode_flop / peak,
            running * (counts.prefill_flop + counts.vision_flop) / peak,
            running * (counts.prefill_link_bytes + counts.decode_link_bytes) / link,
            steps * counts.kernels * (cases.tensor_parallel * cases.data_parallel > 1),
            steps * counts.stage_hops,
        ]
    )


@dataclass(frozen=True, kw_only=True)
class LatencyMeasured:
    """Rank by the measured latency of each candidate, which the law is never shown.

    Latency as a proxy for energy is common practice; arXiv 2605.10556 and arXiv 2603.15699
    measure how far it carries. NaN (no answer) for a case without a measured latency.
    """

    name: str = "latency-measured"
    ranks_only: bool = True

    def fit(self, dataset: Dataset) -> LatencyMeasured:  # noqa: ARG002
        """Return itself: the latency comes with the case."""
        return self

    def predict_energy_j(self, cases: Cases) -> FloatArray:
        """Give the measured request latency, shape (n,): it orders, it is not joules."""
        return measured_latency_s(cases)


@dataclass(frozen=True, kw_only=True, eq=False)
class _LatencyRanker:
    model: LatencyModel

    def predict_energy_j(self, cases: Cases) -> FloatArray:
        return self.model.predict_latency_s(cases)


@dataclass(frozen=True, kw_only=True)
class LatencyPredicted:
    """Rank by the latency that :class:`LatencyModel` predicts, fitted to the training rows."""

    name: str = "latency-predicted"
    ranks_only: bool = True

    def fit(self, dataset: Dataset) -> _LatencyRanker:
        """Fit the latency model; raises FitError if no row has a latency."""
        return _LatencyRanker(model=LatencyModel.fit(dataset))


@dataclass(frozen=True, kw_only=True, eq=False)
class _PowerTimesTime:
    model: LatencyModel
    by_utilisation: bool
    use_measured_time: bool
    calibration: Mapping[str, float]  # by engine; "" for those not seen

    def predict_energy_j(self, cases: Cases) -> FloatArray:
        latency = self.model.predict_latency_s(cases)
        if self.use_measured_time:
            measured = measured_latency_s(cases)
            latency = np.where(np.isnan(measured), latency, measured)
        counts = count(cases)
        tdp = cases.of_gpu(lambda g: g.tdp_w)
        idle = cases.of_gpu(lambda g: g.idle_power_w or IDLE_SHARE_OF_TDP * g.tdp_w)
        power = tdp
        if self.by_utilisation:
            flop = counts.prefill_flop + counts.decode_flop + counts.vision_flop
            peak = counts.gpus * cases.of_gpu(lambda g: g.bf16_flop_per_s)
            mfu = counts.running * flop / latency / peak
            busy = np.minimum(mfu / SATURATION_MFU, 1.0) ** UTILISATION_EXPONENT
            power = idle + (tdp - idle) * busy
        watts = counts.gpus * power + counts.idle_gpus * idle
        factor = cases.of_engine(lambda e: self.calibration.get(e.id, self.calibration[""]))
        return factor * watts * latency / counts.running


@dataclass(frozen=True, kw_only=True)
class PowerTimesTime:
    """Joules from watts that the datasheet gives and the time a request takes.

    With ``by_utilisation`` false, watts are the TDP of every GPU in use, as carbon calculators
    have it (Green Algorithms, Advanced Science 2021; Lacoste et al., arXiv 1910.09700). With it
    true, they follow the share of peak FLOP/s achieved (Özcan et al., arXiv 2507.11417)::

        P = P_idle + (P_max - P_idle) * min(1, mfu / 0.45)^0.7

    where P_max is the TDP. GPUs of a node that are not in use draw idle power.

    Parameters
    ----------
    name : str
        As tables print it.
    by_utilisation : bool
        Which of the two.
    use_measured_time : bool
        Take the measured latency of a case where it has one. The law is never shown that; with
        false the time is always predicted, from the same training rows as everything else.
    calibrate : bool
        Multiply by the factor that fits the training rows of the engine best in relative error;
        where it has none, by that of all rows.
    """

    name: str
    by_utilisation: bool = False
    use_measured_time: bool = True
    calibrate: bool = False
    ranks_only: bool = False

    def fit(self, dataset: Dataset) -> _PowerTimesTime:
        """Fit the latency model; raises FitError if no row has a latency."""
        model = LatencyModel.fit(dataset)
        plain = _PowerTimesTime(
            model=model,
            by_utilisation=self.by_utilisation,
            use_measured_time=self.use_measured_time,
            calibration={"": 1.0},
        )
        if not self.calibrate:
            return plain
        predicted = plain.predict_energy_j(dataset.cases)
        return replace(plain, calibration=dataset.engine_factors(predicted))


#: Those that are ``predicted`` know no more than the law does: no measured time, one factor.
POWERS_TIMES_TIME = (
    PowerTimesTime(name="tdp-time"),
    PowerTimesTime(name="tdp-time-predicted", use_measured_time=False, calibrate=True),
    PowerTimesTime(name="utilisation-power", by_utilisation=True),
    PowerTimesTime(
        name="utilisation-power-predicted",
        by_utilisation=True,
        use_measured_time=False,
        calibrate=True,
    ),
)
