"""The sections of a comparison's file: mappings whose keys are known."""

import difflib
from collections.abc import Mapping
from typing import Any, get_type_hints

from svf_rl.errors import SVFError
from svf_rl.settings.yaml_values import fit, shown


def read_section(name: str, given: Mapping[str, Any], wanted: type, **more: Any) -> Any:
    """An object of the dataclass `wanted` with the values of a mapping, and `more` that were read already. Raises
    `SVFError` as [`fit_keys`]."""
    return wanted(**fit_keys(name, given, get_type_hints(wanted)), **more)


def fit_keys(name: str, given: Mapping[str, Any], types: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a mapping, fitted to the types of its known keys. Raises `SVFError` for what is no mapping, an
    unknown key (the line names the nearest one), and a value that does not fit."""
    if not isinstance(given, Mapping):
        raise SVFError(f"{name} must be a mapping of keys and values, not {shown(given)}")
    for key in map(str, given):
        if key not in types:
            near = difflib.get_close_matches(key, types, n=1, cutoff=0)
            raise SVFError(f"unknown key {key!r} in {name}; the nearest one is {near[0]!r}")
    return {str(key): fit(f"{name}: {key}", value, types[str(key)]) for key, value in given.items()}
