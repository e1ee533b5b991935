"""What the learned contestants see: everything the law sees, and the ratios trees cannot form.

The law multiplies counts with one another before it fits a coefficient. A tree splits on one
column at a time and would need many rows to learn a product, so the products are columns here
too; otherwise the comparison would be of feature engineering and not of models.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from energylens.cases import Cases, FloatArray
from energylens.counts import count, in_flight

# Digits that trees see: values equal but for their last bits are equal to a split as well, so that
# another processor grows the same trees.
DIGITS = 7

#: Bandwidth between GPUs where the datasheet names no link: PCIe 5.0 x16, one direction.
PCIE_BYTES_PER_S = 64e9


def knobs(cases: Cases) -> dict[str, FloatArray]:
    """Columns that somebody sets or looks up, all above 0, each of shape (n,).

    The batch is the number of sequences in flight, as the law has it; a zero that means
    "none" (vision tokens, images, frames) is shifted by one so that logarithms exist.
    """
    return {
        "tensor_parallel": cases.tensor_parallel,
        "pipeline_parallel": cases.pipeline_parallel,
        "expert_parallel": cases.expert_parallel,
        "data_parallel": cases.data_parallel,
        "running": in_flight(cases),
        # The rate offered, of rows under load; 1 where a queue is never empty.
        "request_rate": np.where(cases.request_rate_per_s > 0, cases.request_rate_per_s, 1.0),
        "input_tokens": cases.input_tokens,
        "output_tokens": cases.output_tokens,
        "vision_tokens_plus_1": 1.0 + cases.vision_tokens,
        "images_plus_1": 1.0 + cases.images,
        "frames_plus_1": 1.0 + cases.frames,
        "total_parameters": cases.of_llm(lambda m: m.total_parameters),
        "active_parameters": cases.of_llm(lambda m: m.active_parameters),
        "layers": cases.of_llm(lambda m: m.layers),
        "hidden_size": cases.of_llm(lambda m: m.hidden_size),
        "weight_bits": cases.of_precision(lambda p: p.weight_bits),
        "compute_bits": cases.of_precision(lambda p: p.compute_bits),
        "kv_bits": cases.of_precision(lambda p: p.kv_bits),
        "bandwidth_bytes_per_s": cases.of_gpu(lambda g: g.memory_bandwidth_bytes_per_s),
        "flop_per_s": cases.of_gpu(lambda g: g.bf16_flop_per_s),
        "tdp_w": cases.of_gpu(lambda g: g.tdp_w),
        "gpus_in_boundary": boundary_gpus(cases),
    }


def engines_apart(cases: Cases) -> tuple[str, ...]:
    """Engines that serve the cases, by id, where they are several: what training can tell apart."""
    names = {cases.engines[i].id for i in np.unique(cases.engine_index)}
    return tuple(sorted(names)) if len(names) > 1 else ()


def engine_columns(cases: Cases, engines: Sequence[str]) -> FloatArray:
    """Give 1 where an engine serves a case, else 0; shape (n, len(engines))."""
    names = np.array([engine.id for engine in cases.engines], dtype=object)[cases.engine_index]
    served: FloatArray = np.equal(names[:, None], np.array(engines, dtype=object)).astype(float)
    return served


def boundary_gpus(cases: Cases) -> FloatArray:
    """GPUs whose joules a row covers; shape (n,)."""
    known = cases.node_boundary & ~np.isnan(cases.node_gpus)
    return np.where(known, np.maximum(cases.node_gpus, cases.occupied_gpus), cases.occupied_gpus)


def features(cases: Cases, engines: Sequence[str] = ()) -> tuple[tuple[str, ...], FloatArray]:
    """Names and values of all columns for tree ensembles.

    Parameters
    ----------
    cases : Cases
        n cases.
    engines : sequence of str
        Those to be told apart, each by a column of its own.

    Returns
    -------
    names : tuple of str
        k names.
    values : ndarray of float, shape (n, k)
        Finite everywhere: the knobs; all of :class:`energylens.counts.Counts`; products of
        counts such as the law's terms are; and ratios between them.
    """
    counts = count(cases)
    count_names, count_values = counts.matrix()
    columns = knobs(cases)
    columns["batch_size"] = np.where(
        np.isfinite(cases.batch_size), cases.batch_size, counts.running
    )
    columns |= dict(zip(count_names, count_values.T, strict=True))

    gpu_steps = counts.gpus * counts.steps
    moved_bytes = counts.step_weight_bytes + counts.pass_weight_bytes + counts.cache_bytes
    flop = counts.prefill_flop + counts.decode_flop + counts.vision_flop
    columns |= {
        "gpu_steps": gpu_steps,
        "gpu_passes": counts.gpus * counts.passes,
        "idle_gpu_steps": counts.idle_gpus * counts.steps,
        "kernel_gpu_steps": counts.kernels * gpu_steps,
        "kernel_gpu_passes": counts.kernels * counts.gpus * counts.passes,
        "hop_steps": counts.stage_hops * counts.steps,
        "hop_passes": counts.stage_hops * counts.passes,
        "moved_bytes": moved_bytes,
        "flop": flop,
        "link_bytes": counts.prefill_link_bytes + counts.decode_link_bytes,
        "roofline_energy_j": roofline_energy_j(cases),
        "running_per_gpu": counts.running / counts.gpus,
        "step_bytes_per_gpu": counts.step_weight_bytes / gpu_steps,
        "flop_per_byte": flop / moved_bytes,
        "step_share_of_bytes": counts.step_weight_bytes / moved_bytes,
        "cache_share_of_bytes": counts.cache_bytes / moved_bytes,
        "gpu_steps_per_byte": gpu_steps / moved_bytes,
        "gpu_steps_per_flop": gpu_steps / flop,
        "link_share_of_bytes": (counts.prefill_link_bytes + counts.decode_link_bytes) / moved_bytes,
    }
    columns |= dict(zip(engines, engine_columns(cases, engines).T, strict=True))
    return tuple(columns), rounded(np.column_stack(list(columns.values())))


def rounded(values: ArrayLike) -> FloatArray:
    """Round to seven significant digits; any shape, finite."""
    exact = np.asarray(values, dtype=np.float64)
    size = np.where(exact == 0.0, 1.0, np.abs(exact))
    unit = 10.0 ** (np.floor(np.log10(size)) - (DIGITS - 1))
    return np.asarray(np.round(exact / unit) * unit, dtype=np.float64)


def roofline_energy_j(cases: Cases) -> FloatArray:
    """Joules per request if every byte and operation ran at datasheet speed and TDP.

    ``GPUs * TDP * roofline seconds``: nothing is fitted, and because the work is shared among
    the GPUs their number cancels. A physical unit to measure energies in, from which an
    ensemble learns the departure.

    Returns
    -------
    ndarray of float, shape (n,)
        Joules, above 0.
    """
    counts = count(cases)
    seconds = counts.prefill_roofline_s + counts.decode_roofline_s
    return counts.gpus * cases.of_gpu(lambda g: g.tdp_w) * seconds
