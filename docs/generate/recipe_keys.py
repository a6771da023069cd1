"""The keys of a recipe with type and default, read from the dataclasses that a recipe becomes."""

import dataclasses
import inspect
import types
import typing
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent.parent


@cache
def _parts() -> dict[str, type]:
    from svf_rl.settings.recipe import load_recipe

    recipe = load_recipe(REPOSITORY / "recipes/quickstart.yaml")
    return {name: type(getattr(recipe, name)) for name in ("model", "adapter", "data", "training", "runs")}


@cache
def _refused() -> frozenset[str]:
    """Fields of TRL's and transformers' classes that are an error in a recipe."""
    from svf_rl.settings.refused_options import NOT_READ, UNSUPPORTED

    return frozenset({*UNSUPPORTED, *NOT_READ, "reward_weights"})


def recipe_keys() -> dict[str, dataclasses.Field[Any]]:
    """Every key that a recipe may hold."""
    found = {field.name: field for part in _parts().values() for field in dataclasses.fields(part) if field.init}
    return {name: field for name, field in found.items() if name not in _refused()}


def table(which: str) -> str:
    """
    A Markdown table of keys.

    Args:
        which (`str`): `model`, `adapter`, `data`, `runs`; `training` (the trainer's own keys, and those whose default
            differs from TRL's), `trl` (as in TRL's `GRPOConfig`) or `transformers` (as in `TrainingArguments`).
    """
    if which in ("model", "adapter", "data", "runs"):
        return _explained(list(dataclasses.fields(_parts()[which])))
    from transformers import TrainingArguments
    from trl import GRPOConfig

    config = _parts()["training"]
    own = set(inspect.get_annotations(config))
    fields = [field for field in dataclasses.fields(config) if field.init and field.name not in _refused()]
    theirs = {field.name for field in dataclasses.fields(TrainingArguments)} - set(inspect.get_annotations(GRPOConfig))
    groups = {
        "training": [field for field in fields if field.name in own],
        "transformers": [field for field in fields if field.name not in own and field.name in theirs],
        "trl": [field for field in fields if field.name not in own and field.name not in theirs],
    }
    return _explained(groups[which]) if which == "training" else _plain(groups[which])


def _explained(fields: list[dataclasses.Field[Any]]) -> str:
    rows = [
        f"| `{field.name}` | {_type(field.type)} | {_default(field)} | {_cell(str(field.metadata.get('help', '')))} |"
        for field in fields
        if field.init and field.name not in _refused()
    ]
    return "\n".join(["| key | type | default | what it is |", "|---|---|---|---|", *rows])


def _plain(fields: list[dataclasses.Field[Any]]) -> str:
    rows = [f"| `{field.name}` | {_type(field.type)} | {_default(field)} |" for field in fields]
    return "\n".join(["| key | type | default |", "|---|---|---|", *rows])


_NAMES = {str: "text", int: "integer", float: "number", bool: "true or false", dict: "mapping", list: "list",
          types.NoneType: "null", Any: "anything"}  # fmt: skip


def _type(wanted: Any) -> str:
    """As one reads it in a recipe."""
    if isinstance(wanted, str):
        wanted = _evaluated(wanted)
    origin, inner = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        has_enum = any(isinstance(member, type) and issubclass(member, Enum) for member in inner)
        return " or ".join(dict.fromkeys(_type(member) for member in inner if not (has_enum and member is str)))
    if origin is typing.Literal:
        return ", ".join(f"`{choice}`" for choice in inner)
    if isinstance(wanted, type) and issubclass(wanted, Enum):
        names = [f"`{choice.value}`" for choice in wanted]
        return ", ".join(names if len(names) < 8 else [*names[:4], f"… ({len(names)} names)"])
    if origin is list and inner:
        return f"list of {_type(inner[0])}"
    return _NAMES.get(origin or wanted, "anything")


def _evaluated(text: str) -> Any:
    return {"str": str, "int": int, "float": float, "bool": bool}.get(text, Any)


def _default(field: dataclasses.Field[Any]) -> str:
    value: Any = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if value is dataclasses.MISSING:
        return ""
    if isinstance(value, Enum):
        value = value.value
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`" if value != "" else '`""`'


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
