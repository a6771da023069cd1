"""`adapter_config.json` of any PEFT method, checked before PEFT reads it: it may come from anywhere, and PEFT's classes
take whatever it says."""

import math
import os
import re
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors import SafetensorError, safe_open

from svf_rl.errors import SVFError, one_line, short_repr
from svf_rl.storage.json_files import read_json
from svf_rl.svf.combine import check_record

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
REMEDY = "save the adapter again"

# Fields that name the size of a tensor: none is larger than the largest side of a stored one.
_SIZES = ("r", "init_r", "target_r", "rank_pattern", "num_virtual_tokens", "encoder_hidden_size", "num_vectors")


def read_config(folder: Path) -> PeftConfig:
    """The configuration of the adapter in `folder`, of any PEFT method. Raises `SVFError` where there is none that can
    be used."""
    check_config(read_json(folder / CONFIG, REMEDY, {"peft_type": str}), folder)
    try:
        return PeftConfig.from_pretrained(str(folder))
    except SVFError as error:
        raise SVFError(f"{folder / CONFIG}: {error}") from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SVFError(f"{folder / CONFIG} is not a valid adapter configuration: {one_line(error)}") from error


def check_config(content: Mapping[str, Any], folder: Path) -> None:
    """Raises `SVFError` for a value in `content`, that of `adapter_config.json`, of another type than its field has, or
    for a size that the weights beside it do not have, or where these are no file. Methods that PEFT does not know are
    not looked at."""
    weights = folder / WEIGHTS
    if os.path.lexists(weights) and not weights.is_file():  # reading a device or a pipe may never end
        raise SVFError(f"{weights} is no file: {REMEDY}")
    known: Any = PEFT_TYPE_TO_CONFIG_MAPPING.get(str(content["peft_type"]))
    if known is None:
        return
    damaged = _first_misfit(content, known)
    if damaged is not None:
        raise SVFError(
            f"{folder / CONFIG} is damaged ({damaged} cannot be {short_repr(_at(content, damaged))}): {REMEDY}"
        )
    if content.get("combination") is not None:
        try:
            check_record(content["combination"])
        except SVFError as error:
            raise SVFError(f"{folder / CONFIG} is damaged: {error}; {REMEDY}") from error
    largest = _largest_side(weights)
    number = re.search(r":(\d{1,18})", str(content.get("core") or ""))
    if largest is not None and number is not None and int(number[1]) > largest:
        raise SVFError(f"{folder / CONFIG} says core {content['core']!r:.40}, more than {WEIGHTS} holds: {REMEDY}")
    for name in _SIZES:
        value = content.get(name)
        for size in value.values() if isinstance(value, dict) else [value]:
            if largest is not None and isinstance(size, int) and size > max(largest, 1024):
                raise SVFError(
                    f"{folder / CONFIG} says {name} {size:.4g}, more than any side of the tensors in {WEIGHTS} "
                    f"({largest}): {REMEDY}"
                )


def _at(content: Mapping[str, Any], path: str) -> Any:
    """What stands at a dotted `path`."""
    value: Any = content
    for name in path.split("."):
        value = value[name]
    return value


def _largest_side(file: Path) -> int | None:
    """Of all tensors in a file; `None` where there is none that can be read, which its reader says."""
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as saved:
            return max((max(saved.get_slice(k).get_shape(), default=1) for k in saved.keys()), default=1)  # noqa: SIM118
    except (OSError, SafetensorError):
        return None


def _first_misfit(content: Mapping[str, Any], config: Any) -> str | None:
    """The dotted name of the first field whose value is of another type, or no plain value."""
    hints = get_type_hints(config)
    for field in fields(config):
        if field.name not in content or content[field.name] == field.default:
            continue
        value, hint = content[field.name], hints[field.name]
        nested = next((part for part in _members(hint) if is_dataclass(part)), None)
        if nested is not None and isinstance(value, dict):
            inner = _first_misfit(value, nested)
            if inner is not None:
                return f"{field.name}.{inner}"
        elif not _is_plain(value) or not any(_fits(value, member) for member in _members(hint)):
            return field.name
    return None


def _members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value of JSON can stand for one of the type `hint`."""
    plain = get_origin(hint) or hint
    if plain is Literal:  # PEFT's lists of names are not complete
        return any(type(value) is type(choice) for choice in get_args(hint))
    if plain in (list, set, tuple):
        inner = _members((get_args(hint) or (Any,))[0])
        return isinstance(value, list) and all(any(_fits(each, part) for part in inner) for each in value)
    if plain in (dict, Mapping):
        return isinstance(value, dict)
    if plain is types.NoneType:
        return value is None
    if plain is float:
        return type(value) in (int, float)
    if plain in (int, bool, str):
        return type(value) is plain
    if isinstance(plain, type) and issubclass(plain, Enum):
        return value is None or isinstance(value, str)
    return not is_dataclass(plain)  # `Any`, and what JSON has no form for


def _is_plain(value: Any, depth: int = 8) -> bool:
    """Whether every part of it is a number of a usual size, or text in one line."""
    if isinstance(value, dict | list):
        parts = [part for pair in value.items() for part in pair] if isinstance(value, dict) else value
        return depth > 0 and all(_is_plain(part, depth - 1) for part in parts)
    if isinstance(value, str):
        return value.isprintable()
    return not isinstance(value, int | float) or (math.isfinite(value) and abs(value) <= 2**31)
