"""YAML values fitted to the types of dataclass fields, with errors that name the key."""

import re
import types
import typing
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from svf_rl.errors import SVFError

_MISFIT = object()


class _Loader(yaml.SafeLoader):
    """YAML, but `1e-3` is a number, and a key that appears twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise SVFError(f"key {key.value!r} appears twice, again in line {key.start_mark.line + 1}: keep one")
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_mapping(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file.

    Raises:
        SVFError: no such file, invalid YAML, not a mapping, or a key given twice.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # a subclass of the safe loader
    except OSError as error:
        raise SVFError(f"recipe {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SVFError(f"recipe {path} is not valid YAML: {' '.join(str(error).split())}") from error
    except SVFError as error:
        raise SVFError(f"recipe {path}: {error}") from error
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
        value = yaml.load(text, _Loader)
    except yaml.YAMLError:
        value = text
    takes_text = str in members and not any(_is_enum(member) for member in members)
    if takes_text and not text.startswith(("'", '"')) and (isinstance(value, str) or _fit(value, members) is _MISFIT):
        return text
    return fit(key, value, wanted)


def fit(key: str, value: Any, wanted: Any) -> Any:
    """`value` as one of the types that `wanted` names: an integer becomes a float for a float, 16.0 an int for an int.

    Raises:
        SVFError: it is none of them; the message gives the key, the expected types, and the value.
    """
    members = _members(wanted)
    fitted = _fit(value, members)
    if fitted is _MISFIT:
        kind = "" if value is None else f" ({type(value).__name__})"
        raise SVFError(f"{key} must be {_described(members)}, not {'null' if value is None else repr(value)}{kind}")
    return fitted


def _members(wanted: Any) -> tuple[Any, ...]:
    union = typing.get_origin(wanted) in (typing.Union, types.UnionType)
    return typing.get_args(wanted) if union else (wanted,)


def _is_enum(member: Any) -> bool:
    return isinstance(member, type) and issubclass(member, Enum)


def _fit(value: Any, members: tuple[Any, ...]) -> Any:
    # `IntervalStrategy | str` means the names of the strategies, and not any string
    if any(_is_enum(member) for member in members):
        members = tuple(member for member in members if member is not str)
    for member in members:
        if (fitted := _fit_one(value, member)) is not _MISFIT:
            return fitted
    return _MISFIT


def _fit_one(value: Any, member: Any) -> Any:
    origin = typing.get_origin(member)
    if member is Any:
        return value
    if member is types.NoneType:
        return None if value is None else _MISFIT
    if member is float:
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else _MISFIT
    if member is int:
        is_integer = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        return int(value) if is_integer and not isinstance(value, bool) else _MISFIT
    if _is_enum(member):
        name = "no" if value is False else value  # YAML reads a bare `no` as false
        return name if name in [choice.value for choice in member] else _MISFIT
    if origin is typing.Literal:
        return value if value in typing.get_args(member) else _MISFIT
    if member is list or origin is list:
        (item,) = typing.get_args(member) or (Any,)
        items = [_fit(each, _members(item)) for each in value] if isinstance(value, list) else [_MISFIT]
        return _MISFIT if any(each is _MISFIT for each in items) else items
    plain = origin or member
    return value if plain in (bool, str, dict) and isinstance(value, plain) else _MISFIT


_NAMES = {
    bool: "true or false", int: "an integer", float: "a number", str: "a string", list: "a list", dict: "a mapping",
    types.NoneType: "null",
}  # fmt: skip
_LISTS = {int: "a list of integers", float: "a list of numbers", str: "a list of strings"}


def _described(members: tuple[Any, ...]) -> str:
    parts: list[str] = []
    has_enum = any(_is_enum(member) for member in members)
    for member in members:
        if _is_enum(member):
            parts += [str(choice.value) for choice in member]
        elif typing.get_origin(member) is typing.Literal:
            parts += [str(choice) for choice in typing.get_args(member)]
        elif typing.get_origin(member) is list and typing.get_args(member)[0] in _LISTS:
            parts.append(_LISTS[typing.get_args(member)[0]])
        elif not (has_enum and member is str):
            parts.append(_NAMES.get(typing.get_origin(member) or member, str(member)))
    return " or ".join(dict.fromkeys(parts))
