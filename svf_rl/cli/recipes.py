"""`svf-rl recipes`."""

import argparse
from pathlib import Path

from svf_rl.cli.flags import Command
from svf_rl.errors import SVFError


def _fill(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--copy", metavar="NAME", help="write this one to a file")
    parser.add_argument("--to", metavar="FILE", help="with --copy: the file (default: NAME.yaml in this folder)")


def _run(known: argparse.Namespace) -> None:
    if known.copy is not None:
        _copy(known.copy, known.to)
    elif known.to is not None:
        raise SVFError("--to goes with --copy NAME")
    else:
        print(_listing())


def _copy(name: str, to: str | None) -> None:
    from svf_rl.storage.bundled import find_recipe

    source = find_recipe(name)
    target = Path(to or source.name)
    try:
        content = source.read_bytes()
        with target.open("xb") as file:
            file.write(content)
    except FileExistsError as error:
        raise SVFError(f"{target} exists already: give another file with --to") from error
    except OSError as error:
        raise SVFError(f"cannot copy {name} to {target}: {error.strerror}") from error
    print(f"{name} is copied to {target}")


def _listing() -> str:
    from svf_rl.settings.yaml_values import read_mapping
    from svf_rl.storage.bundled import BUNDLED, bundled_files, describe
    from svf_rl.text_table import aligned

    recipes, comparisons = [], []
    for name, path in bundled_files("recipes").items():
        values, description = read_mapping(path), describe(path)
        if name.startswith("reproduce/"):
            comparisons.append({"name": name, "model": values["model"], "description": description})
        else:
            row = {"name": name, "model": values["model_name_or_path"], "task": values["task"]}
            recipes.append({**row, "description": description})
    configs = [
        {"name": name, "description": describe(path)} for name, path in bundled_files("accelerate_configs").items()
    ]
    parts = {
        "Recipes: svf-rl train NAME, or svf-rl recipes --copy NAME for one to edit": recipes,
        "Comparisons: svf-rl reproduce NAME": comparisons,
        f"Accelerate configs: accelerate launch --config_file {BUNDLED}/accelerate_configs/NAME.yaml "
        "-m svf_rl.train RECIPE": configs,
    }
    tables = [f"{title}\n\n{aligned(rows, left=rows[0])}\n" for title, rows in parts.items()]
    return "\n".join([*tables, f"SLURM script: sbatch --nodes=N {BUNDLED}/slurm/train.slurm NAME"])


RECIPES = Command("recipes", "list the recipes that come with the package, or copy one to edit", _fill, _run)
