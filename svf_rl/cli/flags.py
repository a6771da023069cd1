"""Command-line flags made from the fields of dataclasses, where names, types, choices, defaults and help stand once."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from svf_rl.errors import SVFError
from svf_rl.storage.yaml_files import parse_yaml

Arguments = TypeVar("Arguments")


@dataclass(frozen=True)
class Command:
    """
    A sub-command.

    Args:
        name (`str`), help (`str`): as `svf-rl --help` shows them.
        fill (`Callable`): adds the flags, when the command is given: it may import what is slow.
        run (`Callable`): does it; `False` is exit status 1.
        interrupted (`str`, *optional*): what an interrupt leaves behind.
        description (`str`, *optional*): at the top of its own help.
        keys (`str`, *optional*): at the end of it, for a command whose other options are keys of a recipe.
    """

    name: str
    help: str
    fill: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], bool | None]
    interrupted: str | None = None
    description: str | None = None
    keys: str | None = None


def add_experts(parser: "argparse._ActionsContainer", metavar: str, help: str, **options: Any) -> None:
    """Add `--expert`, given once for each saved adapter."""
    parser.add_argument("--expert", action="append", dest="experts", metavar=metavar, help=help, **options)


def add_flags(
    parser: "argparse._ActionsContainer",
    arguments: type,
    names: Sequence[str] | None = None,
    suffix: str = "",
    **changes: dict[str, Any],
) -> None:
    """
    Add a flag for each field of a dataclass: `batch_size: int | None` becomes `--batch-size`.

    Args:
        parser (`argparse.ArgumentParser`): or a group of one.
        arguments (`type`): the dataclass; the metadata of a field may hold `help`.
        names (`Sequence[str]`, *optional*): of the fields that become flags; default: all.
        suffix (`str`, *optional*): behind the names of the flags.
        changes (`dict`): by field, what `add_argument` is to get in place of what the field says.
    """
    hints = get_type_hints(arguments)
    for field in fields(arguments):
        if names is not None and field.name not in names:
            continue
        default = field.default if field.default_factory is MISSING else field.default_factory()
        text = str(field.metadata.get("help", "")).removesuffix(".").replace("%", "%%")
        given: dict[str, Any] = {"help": text, "default": default, **_parse_as(hints[field.name])}
        if default is MISSING:
            given |= {"required": True, "default": None}
        elif isinstance(default, int | float | str) and not isinstance(default, bool) and "default" not in text:
            given["help"] = f"{text} (default: {default})".lstrip()
        parser.add_argument(f"--{field.name.replace('_', '-')}{suffix}", **(given | changes.get(field.name, {})))


def read_flags(known: argparse.Namespace, arguments: Callable[..., Arguments], **others: Any) -> Arguments:
    """What was given, as the dataclass; `others` goes before it. Raises `SVFError` for what does not fit."""
    hints = get_type_hints(arguments)
    given = {name: _read(value, hints[name]) for name, value in vars(known).items() if name in hints}
    return arguments(**{**given, **others})


def _split_names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _split_integers(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers, as in 1,10") from error


def _split_weights(text: str) -> list[list[float]] | list[float]:
    try:
        rows = [[float(number) for number in row.split(",")] for row in text.split(";")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of weights, as in 0.5,0.5") from error
    return rows if len(rows) > 1 else rows[0]


_LISTS: dict[Any, Callable[[str], Any]] = {str: _split_names, int: _split_integers, float: _split_weights}


def _parse_as(hint: Any) -> dict[str, Any]:
    """What `add_argument` must know of a type. Text of a mapping is read afterwards, by [`read_flags`]."""
    members = [member for member in _members(hint) if member is not NoneType]
    for member in members:
        if get_origin(member) is Literal:
            choices = get_args(member)
            return {"choices": list(choices), "type": type(choices[0])}
        if get_origin(member) is list and get_args(member)[0] in _LISTS:
            return {"type": _LISTS[get_args(member)[0]]}
        if member is bool:
            return {"action": "store_true"}
        if member in (int, float):
            return {"type": member}
    return {}


def _read(value: Any, hint: Any) -> Any:
    """The value as the field takes it: text in braces is a mapping where the field takes one."""
    members = _members(hint)
    if not isinstance(value, str) or not any(get_origin(member) in (dict, Mapping) for member in members):
        return value
    if str in members and not value.startswith("{"):
        return value
    try:
        mapping = parse_yaml(value)
    except SVFError:
        mapping = None
    if not isinstance(mapping, dict):
        raise SVFError(f"{value} is not a valid YAML mapping, such as {{key: value}}")
    return mapping


def _members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
