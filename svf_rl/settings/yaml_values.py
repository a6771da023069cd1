"""YAML values fitted to the types of dataclass fields, with errors that name the key."""

import difflib
import math
import sys
import types
import typing
from enum import Enum
from pathlib import Path
from typing import Any

from svf_rl.errors import SVFError
from svf_rl.storage.yaml_files import parse_yaml, read_yaml

_MISFIT = object()


def read_mapping(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file. Raises `SVFError` for no such file, invalid YAML, no mapping, or a key given
    twice."""
    values = read_yaml(path, "recipe")
    if not isinstance(values, dict):
        raise SVFError(f"recipe {path} must be a mapping of `key: value` lines")
    return {str(key): value for key, value in values.items()}


def parse_override(key: str, text: str | None, wanted: Any) -> Any:
    """The value of `--key text`, read as YAML and fitted to `wanted`; no text means true.

    For a string the text is used as it is, since YAML would cut it at a ` #`.
    """
    members = _members_of_key(wanted)
    if text is None:
        if bool not in members:
            raise SVFError(f"--{key} needs a value")
        return True
    try:
        value = parse_yaml(text)
    except SVFError:
        value = text
    quoted = text.startswith(("'", '"'))
    if str in members and not quoted and (isinstance(value, str) or _fit(value, members) is _MISFIT):
        return text
    return fit(key, value, wanted)


def fit(key: str, value: Any, wanted: Any) -> Any:
    """`value` as one of the types that `wanted` names: an integer becomes a float for a float, 16.0 an int for an int.
    Raises `SVFError` where it is none of them, with the key, the expected types, and the value."""
    members = _members_of_key(wanted)
    fitted = _fit(value, members)
    if fitted is _MISFIT:
        kind = "" if value is None else f" ({type(value).__name__})"
        wanted = _described(members, value)
        raise SVFError(f"{key} must be {wanted}, not {'null' if value is None else shown(value)}{kind}")
    return fitted


def shown(value: Any) -> str:
    """`value` as a message shows it: on one line, and not the whole of a long one."""
    if isinstance(value, int) and abs(value) >= 10**40:  # Python refuses to write out one of thousands of digits
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:70]}… ({len(text)} characters)"


def _members(wanted: Any) -> tuple[Any, ...]:
    """The types that `wanted` allows. `IntervalStrategy | str` means the strategies' names, and not any string."""
    union = typing.get_origin(wanted) in (typing.Union, types.UnionType)
    members = typing.get_args(wanted) if union else (wanted,)
    has_enum = any(isinstance(member, type) and issubclass(member, Enum) for member in members)
    return tuple(member for member in members if not (has_enum and member is str))


def _members_of_key(wanted: Any) -> tuple[Any, ...]:
    """The same for the value of a key, where `dict | str` means a mapping: transformers takes JSON in a string too. In
    that order; `str | dict` means either."""
    members = _members(wanted)
    plain = [typing.get_origin(member) or member for member in members]
    is_mapping = dict in plain and list not in plain and str in plain[plain.index(dict) :]
    return tuple(member for member in members if not (is_mapping and member is str))


def _choices(member: Any) -> tuple[Any, ...]:
    """The values of an enum or a `Literal`."""
    if isinstance(member, type) and issubclass(member, Enum):
        return tuple(choice.value for choice in member)
    return typing.get_args(member) if typing.get_origin(member) is typing.Literal else ()


def _fit(value: Any, members: tuple[Any, ...]) -> Any:
    fitted = (_fit_one(value, member) for member in members)
    return next((each for each in fitted if each is not _MISFIT), _MISFIT)


def _fit_one(value: Any, member: Any) -> Any:
    plain = typing.get_origin(member) or member
    if member is Any:
        return value
    if member is types.NoneType:
        return None if value is None else _MISFIT
    if member is float:
        if not isinstance(value, int | float) or isinstance(value, bool):
            return _MISFIT
        return (
            float(value) if abs(value) <= sys.float_info.max or value != value else math.inf * (1 if value > 0 else -1)
        )
    if member is int:
        is_integer = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        return int(value) if is_integer and not isinstance(value, bool) else _MISFIT
    if choices := _choices(member):
        name = "no" if value is False and "no" in choices else value  # YAML reads a bare `no` as false
        return name if name in choices else _MISFIT
    if plain is list:
        (item,) = typing.get_args(member) or (Any,)
        items = [_fit(each, _members(item)) for each in value] if isinstance(value, list) else [_MISFIT]
        return _MISFIT if any(each is _MISFIT for each in items) else items
    if plain is dict and isinstance(value, dict):
        return value if all(isinstance(key, str) for key in value) else _MISFIT
    return value if plain in (bool, str) and isinstance(value, plain) else _MISFIT


_NAMES = {
    bool: "true or false", int: "an integer", float: "a number", str: "a string", list: "a list",
    dict: "a mapping of names to values",
    types.NoneType: "null", list[int]: "a list of integers", list[float]: "a list of numbers",
    list[str]: "a list of strings",
}  # fmt: skip


def _described(members: tuple[Any, ...], value: Any) -> str:
    """The types in words; of many names only those that are near to `value`."""
    parts: list[str] = []
    for member in members:
        plain, choices = typing.get_origin(member) or member, [str(choice) for choice in _choices(member)]
        if len(choices) > 12:
            near = difflib.get_close_matches(str(value)[:80], choices, n=3) or choices[:3]
            choices = [f"one of {len(choices)} names such as {', '.join(near)}"]
        parts += choices or [_NAMES.get(member, _NAMES.get(plain, str(member)))]
    return " or ".join(dict.fromkeys(parts))
