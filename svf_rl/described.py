"""Dataclass fields with a description."""

from dataclasses import field
from typing import Any


def described(default: Any, text: str) -> Any:
    """A dataclass field with its description, which the reference of recipe keys shows."""
    return field(default=default, metadata={"help": text})
