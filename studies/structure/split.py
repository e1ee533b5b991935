"""Which architectures of ML.ENERGY v3 choose the structure, and which judge it.

Fixed before the first look at their energies: within each family (dense, moe, hybrid; with a
vision tower or without), architectures sorted by their number of parameters go to one side and
the other in turn, the smallest to the choosing side.
"""

from __future__ import annotations

import numpy as np

from energylens.cases import BoolArray
from energylens.dataset import Dataset


def choosing(dataset: Dataset) -> BoolArray:
    """Tell whether each row belongs to the half that chooses the structure, shape (n,)."""
    families: dict[tuple[str, bool], dict[tuple[float, ...], list[int]]] = {}
    for place, llm in enumerate(dataset.cases.llms):
        architecture = (llm.counted_parameters, llm.layers, llm.hidden_size)
        family = families.setdefault((llm.family, llm.vision is not None), {})
        family.setdefault(architecture, []).append(place)
    first = {
        place
        for family in families.values()
        for number, architecture in enumerate(sorted(family))
        if number % 2 == 0
        for place in family[architecture]
    }
    chosen = np.array([place in first for place in range(len(dataset.cases.llms))])
    rows: BoolArray = chosen[dataset.cases.llm_index]
    return rows
