"""Checks of references and options that verifiers share."""

import typing
from decimal import Decimal
from typing import Any

from svf_rl.errors import SVFError

_MOST_DIGITS = 1000  # of a whole number


class WrittenObject(dict[str, Any]):
    """A JSON object, and the text that it was read from."""

    def __init__(self, content: dict[str, Any], text: str):
        super().__init__(content)
        self.text = text


def reference_text(name: str, reference: Any, numbers: bool = False) -> str:
    """
    A reference as text. With `numbers`, an `int` or `float` is accepted too.

    Raises:
        SVFError: it is not text, or empty; `name` is the verifier's, for the message.
    """
    if numbers and is_number(reference):
        if isinstance(reference, int) and abs(reference) >= 10**_MOST_DIGITS:
            raise SVFError(f"{name}: an answer has more than {_MOST_DIGITS:,} digits; leave such rows out of the data")
        # `str(1e22)` has an exponent, which is not part of a number in running text
        return format(Decimal(str(reference)), "f")
    if isinstance(reference, WrittenObject):
        reference = reference.text
    if not isinstance(reference, str):
        raise SVFError(f"{name}: an answer must be text, not {type(reference).__name__} ({shorten(reference)})")
    if not reference.strip():
        raise SVFError(f"{name}: an answer is empty; leave such rows out of the data")
    return reference


def check_argument(owner: str, name: str, annotation: Any, value: Any) -> None:
    """Raises `SVFError` for an argument `name` of `owner` that is none of those that its `Literal` annotation lists, or
    text where that is `bool`, `int` or `float`: any text would be true."""
    choices = typing.get_args(annotation) if typing.get_origin(annotation) is typing.Literal else (value,)
    if value not in choices:
        raise SVFError(f"{owner}: {name} must be {' or '.join(map(str, choices))}, not {value!r}")
    if isinstance(value, str) and annotation in (bool, int, float):
        wanted = "true or false" if annotation is bool else "a number"
        raise SVFError(f"{owner}: {name} must be {wanted}, not {value!r}")


def is_number(value: Any) -> bool:
    """Whether `value` is an `int` or `float`, and not a `bool`."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def shorten(value: Any, length: int = 100) -> str:
    """`repr(value)`, cut to `length` characters."""
    shown = repr(value)
    return shown if len(shown) <= length else f"{shown[: length - 3]}..."
