"""Where an adapter comes from, in names that mean something on any machine."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from svf_rl.runs.summary import RunSummary

BUNDLED = "quickstart"

# `~/.cache/huggingface/hub/models--owner--name/snapshots/<commit>`
_IN_HUB_CACHE = re.compile(r"(?:^|/)models--([^/]+?)(?:--([^/]+))?/snapshots/")


def find_base(adapter_config: Mapping[str, Any], summary: RunSummary) -> str | None:
    """The base model as the adapter's files name it."""
    return adapter_config.get("base_model_name_or_path") or summary.recipe.get("model_name_or_path")


def base_name(location: str | None) -> str:
    """`quickstart` for the bundled model, the Hub's name, the last name of a folder, or `unknown`."""
    if not location:
        return "unknown"
    if location == BUNDLED or location.rstrip("/").endswith("svf_rl/quickstart/model"):
        return BUNDLED
    cached = _IN_HUB_CACHE.search(location)
    if cached:
        return "/".join(part for part in cached.groups() if part)
    return Path(location).name if looks_local(location) else location


def is_known_elsewhere(location: str | None) -> bool:
    """Whether `base_name(location)` finds the model on any machine: the bundled one, or one on the Hub."""
    if not location:
        return False
    return base_name(location) == BUNDLED or bool(_IN_HUB_CACHE.search(location)) or not looks_local(location)


def looks_local(name: str) -> bool:
    """Whether `name` is a folder here, or is not a valid name on the Hub, which is `name` or `owner/name`."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or os.path.isdir(name)  # noqa: PTH112  (any text)


def list_tasks(recipe: Mapping[str, Any]) -> list[str]:
    """What a run was trained on, as `svf-rl eval --tasks` takes it: `quickstart:math`, or each part of a mixture."""
    task = recipe.get("task")
    if task is None:
        return []
    if task == "mixture":
        return list(recipe.get("mixture") or {})
    return [f"{task}:{recipe.get('skill', 'math')}" if task == "quickstart" else str(task)]


def remove_paths(value: Any) -> Any:
    """`value` (JSON) with every path cut to its last name, and without tokens and folders of the run."""
    if isinstance(value, Mapping):
        hidden = ("hub_token", "output_dir", "logging_dir")
        return {key: remove_paths(item) for key, item in value.items() if key not in hidden}
    if isinstance(value, list):
        return [remove_paths(item) for item in value]
    if isinstance(value, str) and (value.startswith(("/", "./", "../", "~")) or Path(value).is_absolute()):
        return base_name(value)
    return value
