"""GGUF, the one-file format of llama.cpp: what reading and writing it share, and reading."""

import importlib.util

from svf_rl.errors import SVFError


def require_gguf() -> None:
    """Raises `SVFError` where the package that knows the format is not installed."""
    if importlib.util.find_spec("gguf") is None:
        raise SVFError("GGUF files need the package gguf: pip install 'svf-rl[gguf]'")
