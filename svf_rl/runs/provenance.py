"""Where an adapter comes from, in names that mean something on any machine, and without what is secret."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from svf_rl.errors import SVFError
from svf_rl.quickstart import MODELS
from svf_rl.runs.summary import RunSummary

BUNDLED = "quickstart"

_LATER = "leave push_to_hub out, and give its name on the Hub to svf-rl push FOLDER TARGET --base-model"

_OF_THIS_MACHINE = (
    "output_dir", "logging_dir", "run_name", "resume_from_checkpoint", "vllm_server_base_url", "vllm_server_host",
    "vllm_server_port", "vllm_server_folder",
)  # fmt: skip
# An absolute path of at least three parts within a text. (A mark such as `</answer>` is none.)
_PATH = re.compile(r"(?<![\w.:/<~-])~?(?:/[\w.@+-]+){3,}/?")

# Not `eos_token`, `classifier_tokens` and the like.
_SECRET_NAME = re.compile(
    r"(?i)(?:^|_)(?:passwd|password|secret|credentials?|api_?key|(?:hub|hf|access|auth|api|bearer|refresh)_?token)$|^token$"
)
_IN_ADDRESS = re.compile(r"(\b[a-zA-Z][a-zA-Z0-9+.-]*://)[^\s/?#]*@")
_IN_QUERY = re.compile(
    r"""([?&;][\w.-]*(?i:token|key|secret|passw(?:or)?d|signature|sig|credential|auth)[\w.-]*=)[^&;\s"'<>)]+"""
)
_TOKEN = re.compile(
    r"()\b(?:(?:hf_|sk-|gh[oprsu]_|github_pat_|glpat-|xox[abprs]-|AKIA|eyJ[\w-]+\.eyJ)[\w.-]{12,}"
    r"|Bearer [\w.~+/-]{8,}=*)"
)

# `~/.cache/huggingface/hub/models--owner--name/snapshots/<commit>`
_IN_HUB_CACHE = re.compile(r"(?:^|/)models--([^/]+?)(?:--([^/]+))?/snapshots/")


def find_base(adapter_config: Mapping[str, Any], summary: RunSummary) -> str | None:
    """The base model as the adapter's files name it."""
    return adapter_config.get("base_model_name_or_path") or summary.recipe.get("model_name_or_path")


def base_name(location: str | None) -> str:
    """`quickstart` (or `quickstart-tools`) for a bundled model, the Hub's name, the last name of a folder, or
    `unknown`."""
    if not location:
        return "unknown"
    for name, folder in MODELS.items():
        if location == name or location.rstrip("/").endswith(f"svf_rl/quickstart/{folder}"):
            return name
    cached = _IN_HUB_CACHE.search(location)
    if cached:
        return "/".join(part for part in cached.groups() if part)
    return Path(location).name if looks_local(location) else location


def is_known_elsewhere(location: str | None) -> bool:
    """Whether `base_name(location)` finds the model on any machine: the bundled one, or one on the Hub."""
    if not location:
        return False
    return base_name(location) in MODELS or bool(_IN_HUB_CACHE.search(location)) or not looks_local(location)


def check_base(base: str | None, what: str = "push_to_hub", remedy: str = _LATER) -> str:
    """The name by which others know the base model. Raises `SVFError` for one in a folder of this machine."""
    if base is None or not is_known_elsewhere(base):
        raise SVFError(f"the base model of {what} is a folder of this machine ({base_name(base)}): {remedy}")
    return base_name(base)


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
    part = {"quickstart": recipe.get("skill", "math"), "reasoning_gym": recipe.get("dataset")}.get(task)
    return [f"{task}:{part}" if part else str(task)]


def remove_secrets(value: Any) -> Any:
    """`value` (JSON) without tokens, passwords and keys: by the names under which they stand, in addresses, and by
    their own form."""
    if isinstance(value, Mapping):
        return {key: remove_secrets(item) for key, item in value.items() if not _SECRET_NAME.search(str(key))}
    if isinstance(value, list | tuple):
        return [remove_secrets(item) for item in value]
    if not isinstance(value, str):
        return value
    for secret in (_IN_ADDRESS, _IN_QUERY, _TOKEN):
        value = secret.sub(r"\1", value)
    return value


def remove_paths(value: Any) -> Any:
    """`value` (JSON) without what is secret ([`remove_secrets`]) or means nothing elsewhere: every path is cut to its
    last name, and folders, name and servers of the run are left out."""
    return _cut_paths(remove_secrets(value))


def _cut_paths(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _cut_paths(item) for key, item in value.items() if key not in _OF_THIS_MACHINE}
    if isinstance(value, list):
        return [_cut_paths(item) for item in value]
    if not isinstance(value, str):
        return value
    if value.startswith(("/", "./", "../", "~")) or Path(value).is_absolute():
        return base_name(value)
    return _PATH.sub(lambda found: base_name(found[0]), value)
