"""Settings that must agree: those of what is on the disk and those that are given now."""

import json
from collections.abc import Collection, Mapping
from typing import Any

from svf_rl.errors import SVFError
from svf_rl.storage.json_files import normalize_json


class OtherSettings(SVFError):
    """What is on the disk was made with other settings."""


def check_same_settings(
    there: Mapping[str, Any], here: Mapping[str, Any], made: str, remedy: str, ignored: Collection[str] = ()
) -> None:
    """
    Raises [`OtherSettings`] where settings differ: `<made> with other settings (seed: 0 there, 1 here): <remedy>`.

    Args:
        there (`Mapping`): those of what is on the disk.
        here (`Mapping`): those that are given now.
        made (`str`): what is on the disk, as in `runs/math was trained`.
        remedy (`str`): what to do about it.
        ignored (`Collection[str]`, *optional*): names that may differ.
    """
    if found := difference(there, here, ignored):
        raise OtherSettings(f"{made} with other settings ({found}): {remedy}")


def difference(there: Mapping[str, Any] | None, here: Mapping[str, Any], ignored: Collection[str] = ()) -> str:
    """
    All settings in which two mappings differ, in words; empty where they agree. Values are compared as JSON holds them;
    what is missing, `None` and an empty text or collection are the same. Mappings in mappings are compared by key:
    `model.dtype: "float32" there, "bfloat16" here`.
    """
    one, other = ({k: v for k, v in (side or {}).items() if k not in ignored} for side in (there, here))
    return "; ".join(_differing(normalize_json(one), normalize_json(other), ""))


def _differing(there: Any, here: Any, name: str) -> list[str]:
    there, here = (None if value in ("", [], {}) else value for value in (there, here))
    if all(value is None or isinstance(value, dict) for value in (there, here)):
        there, here = there or {}, here or {}
        below = [(key, f"{name}.{key}" if name else key) for key in sorted(there.keys() | here.keys())]
        return [text for key, path in below for text in _differing(there.get(key), here.get(key), path)]
    return [] if there == here else [f"{name}: {_shorten(there)} there, {_shorten(here)} here"]


def _shorten(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
