"""Recipes, accelerate configs and the SLURM script that come with the package, found by name."""

import difflib
import os
from pathlib import Path

from svf_rl.errors import SVFError
from svf_rl.storage.yaml_files import read_yaml

_PACKAGE = Path(__file__).parents[1]
BUNDLED = _PACKAGE / "bundled" if (_PACKAGE / "bundled").is_dir() else _PACKAGE.parent
"""The folder that holds `recipes/`, `accelerate_configs/` and `slurm/`."""


def bundled_files(folder: str) -> dict[str, Path]:
    """The YAML files in `recipes` or `accelerate_configs` by name: `recipes/reproduce/x.yaml` is `reproduce/x`."""
    top = BUNDLED / folder
    return {path.relative_to(top).with_suffix("").as_posix(): path for path in sorted(top.rglob("*.yaml"))}


def find_recipe(given: str | Path) -> Path:
    """
    The file of a recipe.

    Args:
        given (`str` or `Path`): a path, or else the name of a bundled recipe, as `quickstart` or
            `recipes/quickstart.yaml`. A missing file in another folder is returned as it is, for its reader to report.

    Raises:
        SVFError: neither a file nor a bundled recipe; the line names the nearest one.
    """
    return _find(given, "recipes", "recipe")


def check_recipe_file(given: str) -> None:
    """Raises `SVFError` for a recipe that is not there or no YAML, before anything slow is imported. A pipe, as
    `<(...)` in a shell, is left for its one reader."""
    path = find_recipe(given)
    if not path.is_fifo():
        read_yaml(path, "recipe")


def find_accelerate_config(given: str | Path) -> Path:
    """The file of an accelerate config, as [`find_recipe`] finds a recipe: `accelerate_configs/zero3.yaml`, `zero3`."""
    return _find(given, "accelerate_configs", "accelerate config")


def _find(given: str | Path, folder: str, kind: str) -> Path:
    path, known = Path(given), bundled_files(folder)
    there = os.path.exists(path)  # noqa: PTH110  (Path.exists raises for a name that is too long)
    if there and not path.is_dir():
        return path
    name = path.as_posix().removeprefix(f"{folder}/").removesuffix(".yaml")
    if name in known:
        return known[name]
    if there or path.parent != Path():
        return path
    (nearest,) = difflib.get_close_matches(name, known, n=1, cutoff=0)
    raise SVFError(
        f"{kind} {given} cannot be read: there is no such file, and the nearest bundled one is {nearest!r}; "
        "`svf-rl recipes` lists all"
    )


def describe(path: Path) -> str:
    """The first sentence of the comment at the head of a bundled file."""
    head = path.read_text(encoding="utf-8").split("\n#\n")[0].split("\n\n")[0]
    comment = " ".join(line[2:] for line in head.splitlines() if line.startswith("# "))
    return comment.split(". ")[0].removesuffix(".")
