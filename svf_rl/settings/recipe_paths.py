"""Files that a recipe names."""

import os
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any


def with_resolved_paths(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Files that do not exist relative to the working directory are taken from the recipe's folder, if they exist
    there."""

    def resolve(name: str) -> str:
        path = os.path.expanduser(name)  # noqa: PTH111  (pathlib raises for an unknown user, and for long names)
        if not os.path.exists(path) and os.path.exists(folder / path):  # noqa: PTH110
            return str(folder / path)
        return path

    def resolve_code(spec: Any, in_keys: Collection[str]) -> Any:
        if isinstance(spec, Mapping):
            return {name: resolve_code(v, in_keys) if name in in_keys else v for name, v in spec.items()}
        if isinstance(spec, str):
            file, colon, function = spec.rpartition(":")
            return resolve(file) + colon + function if file.endswith(".py") else spec
        return spec

    resolved = dict(values)
    code = {"rewards", "tools", "environment", "rollout_func"}
    for key in {"data_path", "data_dir", "adapter_path", "experts", *code} & resolved.keys():
        value = resolved[key]
        names = value.keys() if key == "environment" and isinstance(value, Mapping) else ("name",)
        find = partial(resolve_code, in_keys=names) if key in code else resolve
        if value is not None:
            resolved[key] = [find(each) for each in value] if isinstance(value, list) else find(value)
    return resolved
