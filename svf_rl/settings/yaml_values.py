"""YAML values fitted to the types of dataclass fields, with errors that name the key."""

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
    members = _members(wanted)
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
    members = _members(wanted)
    fitted = _fit(value, members)
    if fitted is _MISFIT:
        kind = "" if value is None else f" ({type(value).__name__})"
        raise SVFError(f"{key} must be {_described(members)}, not {'null' if value is None else repr(value)}{kind}")
    return fitted


def _members(wanted: Any) -> tuple[Any, ...]:
    """The types that `wanted` allows. `IntervalStrategy | str` means the strategies' names, and not any string."""
    union = typing.get_origin(wanted) in (typing.Union, types.UnionType)
    members = typing.get_args(wanted) if union else (wanted,)
    has_enum = any(isinstance(member, type) and issubclass(member, Enum) for member in members)
    return tuple(member for member in members if not (has_enum and member is str))


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
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else _MISFIT
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
    return value if plain in (bool, str, dict) and isinstance(value, plain) else _MISFIT


_NAMES = {
    bool: "true or false", int: "an integer", float: "a number", str: "a string", list: "a list", dict: "a mapping",
    types.NoneType: "null", list[int]: "a list of integers", list[float]: "a list of numbers",
    list[str]: "a list of strings",
}  # fmt: skip


def _described(members: tuple[Any, ...]) -> str:
    parts: list[str] = []
    for member in members:
        plain = typing.get_origin(member) or member
        parts += [str(choice) for choice in _choices(member)] or [_NAMES.get(member, _NAMES.get(plain, str(member)))]
    return " or ".join(dict.fromkeys(parts))
