"""The vLLM engine in the process of the trainer."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from svf_rl.errors import SVFError, one_line


class CannotServeFactors(SVFError):
    """Factored layers do not suit the model or the engine; whole weights do."""


def require_vllm() -> None:
    """Raises `SVFError` where vLLM is not installed."""
    if find_spec("vllm") is None:
        raise SVFError(
            "vLLM is not installed: pip install 'svf-rl[cuda]' (without a GPU: 'svf-rl[cpu]'), or generate with "
            "transformers (use_vllm: false in a recipe, --backend transformers on the command line)"
        )


@contextmanager
def vllm_errors(what: str) -> Iterator[None]:
    """What vLLM and torch raise, as an `SVFError`: they use the whole of Python's errors, for bad settings too."""
    try:
        yield
    except SVFError:
        raise
    except _known_errors() as error:
        # pydantic's own text names types and values before it says what is wrong
        text = error.errors()[0]["msg"] if hasattr(error, "errors") else str(error)
        raise SVFError(f"{what}: {type(error).__name__}: {one_line(text)} (--debug shows where)") from error


def _known_errors() -> tuple[type[Exception], ...]:
    """Python's, and vLLM's own, which are none of them."""
    exceptions = sys.modules.get("vllm.exceptions")
    own = [getattr(exceptions, name) for name in ("VLLMError", "VLLMValidationError") if hasattr(exceptions, name)]
    return (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError,
            ValueError, *own)  # fmt: skip
