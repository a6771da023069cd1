"""What verifiers ask of a reference before they compare anything with it."""

from decimal import Decimal
from typing import Any

from svf_rl.errors import SVFError


def reference_text(name: str, reference: Any, numbers: bool = False) -> str:
    """
    A reference as text. With `numbers`, an `int` or `float` is taken too.

    Raises:
        SVFError: it is not text, or empty; `name` is the verifier's, for the message.
    """
    if numbers and isinstance(reference, int | float) and not isinstance(reference, bool):
        # `str(1e22)` has an exponent, which is no part of a number in running text
        return format(Decimal(str(reference)), "f")
    if not isinstance(reference, str):
        raise SVFError(f"{name}: an answer must be text, not {type(reference).__name__} ({shorten(reference)})")
    if not reference.strip():
        raise SVFError(f"{name}: an answer is empty; leave such rows out of the data")
    return reference


def shorten(value: Any, length: int = 100) -> str:
    """`repr(value)`, cut to `length` characters."""
    shown = repr(value)
    return shown if len(shown) <= length else f"{shown[: length - 3]}..."
