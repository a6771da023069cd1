"""The embedded default: skills with checkable answers and two models that half know them. Imports no torch."""

from pathlib import Path

from svf_rl.quickstart.skills import SKILLS, make_rows

__all__ = ["MODELS", "SKILLS", "make_rows", "model_path"]


MODELS = {"quickstart": "model", "quickstart-tools": "tool_model"}
"""The bundled models, by the names that recipes have for them, and their folders."""


def model_path(name: str = "quickstart") -> Path:
    """The folder of a bundled model, as `from_pretrained` and vLLM take it."""
    return Path(__file__).parent / MODELS[name]
