"""EnergyLens: closed-form energy models for LLM inference serving.

::

    import energylens as el

    rows = el.read("runs.csv")                     # or a pandas or polars frame
    model = el.fit(rows)
    ranking = el.select(model, llm="Qwen/Qwen3-32B", gpu="H100", input_tokens=500,
                        output_tokens=300, choose=("parallelism", "batch_size"))
    print(ranking)                                 # what to run, what it saves, how sure that is

Nothing is loaded before it is used: every name below is looked up when it is first asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from energylens.catalog import gpu, llm
    from energylens.dataset import Dataset
    from energylens.door import (
        discover,
        evaluate,
        explain,
        fit,
        load,
        measure,
        plan,
        read,
        report,
        select,
    )
    from energylens.errors import EnergyLensError
    from energylens.model import EnergyModel
    from energylens.records import Case

__version__ = "0.1.0"

#: The public names, and the module that each comes from.
_NAMES = {
    "Case": "records",
    "Dataset": "dataset",
    "EnergyLensError": "errors",
    "EnergyModel": "model",
    "discover": "door",
    "evaluate": "door",
    "explain": "door",
    "fit": "door",
    "gpu": "catalog",
    "llm": "catalog",
    "load": "door",
    "measure": "door",
    "plan": "door",
    "read": "door",
    "report": "door",
    "select": "door",
}

__all__ = [
    "Case",
    "Dataset",
    "EnergyLensError",
    "EnergyModel",
    "discover",
    "evaluate",
    "explain",
    "fit",
    "gpu",
    "llm",
    "load",
    "measure",
    "plan",
    "read",
    "report",
    "select",
]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'energylens' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"energylens.{_NAMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
