"""Serving engines: what does the work that is measured. They report time and tokens, never joules.

Heavy packages are imported when an engine starts; this module imports without any of them.
"""

from __future__ import annotations

from energylens.errors import UnknownChoiceError
from energylens.instrument.engine import Engine
from energylens.instrument.engines.openai import OpenAiEngine
from energylens.instrument.engines.simulated import SimulatedEngine
from energylens.instrument.engines.transformers import TransformersEngine
from energylens.instrument.engines.vllm import VllmEngine

ENGINES = ("vllm", "transformers", "openai", "simulated")


def open_engine(name: str) -> Engine:
    """Make an engine by name; nothing is loaded before it is started.

    Raises
    ------
    UnknownChoiceError
        If there is none of that name.

    Examples
    --------
    >>> open_engine("simulated").capabilities.source.value
    'simulated'
    """
    if name == "vllm":
        return VllmEngine()
    if name == "transformers":
        return TransformersEngine()
    if name == "openai":
        return OpenAiEngine()
    if name == "simulated":
        return SimulatedEngine()
    raise UnknownChoiceError("engine", name, ENGINES, f"Known are {', '.join(ENGINES)}.")
