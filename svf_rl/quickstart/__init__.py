"""The embedded default: three skills with checkable answers and a model that half knows them. Imports no torch."""

from pathlib import Path

from svf_rl.quickstart.skills import SKILLS, make_rows

__all__ = ["SKILLS", "make_rows", "model_path"]


def model_path() -> Path:
    """The folder of the bundled model, as `from_pretrained` and vLLM take it."""
    return Path(__file__).parent / "model"
