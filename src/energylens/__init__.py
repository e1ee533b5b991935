"""EnergyLens: closed-form energy models for LLM inference serving."""

__version__ = "0.1.0"
