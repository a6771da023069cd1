"""A warm-up: next-token training on right answers before a run, as a run of its own in the folder of the other."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from svf_rl.errors import SVFError
from svf_rl.settings.recipe import Recipe, load_recipe

WARM_UP = "warm_up"
"""Folder of the warm-up in that of its run."""


def load_warm_up(recipe: Recipe, overrides: Sequence[str] = ()) -> Recipe | None:
    """
    The recipe of the warm-up of `recipe` (read with `overrides`); `None` for a run without one.

    It is the recipe itself with `objective: next_token`. It makes all of its steps and keeps the last values, whatever
    the evaluations say: which values are best is for the run to find.

    Raises:
        SVFError: as [`load_recipe`], and where a run cannot start from a warm-up.
    """
    steps, training, output = recipe.runs.warm_up_steps, recipe.training, Path(recipe.training.output_dir)
    if not steps:
        return None
    if training.objective == "next_token":
        raise SVFError("warm_up_steps comes before another objective than next_token: remove it, or raise max_steps")
    if recipe.adapter.adapter == "combination":
        raise SVFError("warm_up_steps has no adapter: combination, which is saved as another kind: remove it")
    if recipe.data.curriculum:
        raise SVFError("warm_up_steps does not go with a curriculum, which goes by rewards: remove one of them")
    changes: dict[str, Any] = {
        "objective": "next_token",
        "warm_up_steps": 0,
        "max_steps": steps,
        "output_dir": str(output / WARM_UP),
        "vllm_weights": training.vllm_weights,  # it is the engine of the run, too
        "load_best_model_at_end": False,
        "early_stopping_patience": None,
        "push_to_hub": False,
        # others have one run a process
        "report_to": ["tensorboard"] if "tensorboard" in (training.report_to or ()) else ["none"],
        "resume_from_checkpoint": "auto" if training.resume_from_checkpoint else None,
    }
    try:
        found = load_recipe(recipe.path, overrides, changes=changes)
    except SVFError as error:
        raise SVFError(f"warm_up_steps: {error}") from error
    del found.raw["warm_up_steps"]  # as if it were alone
    return found
