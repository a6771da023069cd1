"""The cells of a comparison: what each is made with, what decides its result, and the command that makes it."""

import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from svf_rl.errors import SVFError
from svf_rl.evaluation.base_model import model_fingerprint
from svf_rl.reproduce.cells import Cell, record_path
from svf_rl.reproduce.comparison import Comparison
from svf_rl.reproduce.methods import DISPATCH, SVF
from svf_rl.settings.recipe import Recipe
from svf_rl.storage.json_files import normalize_json
from svf_rl.tasks import TaskOptions

# Test rows of a task without validation rows are set aside for the shots: so many times the largest number of shots.
RESERVE = 2


@dataclass(frozen=True)
class TrainingRun:
    """One expert (or the dispatch expert), trained in one way from one seed, which is not in `recipe`."""

    expert: str
    method: str
    seed: int
    recipe: Recipe
    arguments: list[str]

    @property
    def name(self) -> str:
        return f"{self.expert}-{self.method}-seed{self.seed}"

    @property
    def task(self) -> str:
        """The task as evaluations call it."""
        return task_name(self.recipe)


def training_cell(run: TrainingRun, out: Path, launcher: str | None) -> Cell:
    """A run of `svf_rl.train`, started by this Python or by `launcher`; one that was interrupted resumes."""
    folder = out / "runs" / run.name
    start = [sys.executable, "-m"] if launcher is None else [*_launcher(launcher), "-m"]
    own = [f"--seed={run.seed}", f"--output_dir={folder}", "--resume_from_checkpoint=auto"]
    settings = {key: value for key, value in run.recipe.raw.items() if key != "output_dir"}
    return Cell(
        name=run.name,
        kind="training",
        folder=folder,
        settings=normalize_json({**settings, "seed": run.seed, **_weights(run.recipe)}),
        command=[*start, "svf_rl.train", str(run.recipe.path), *run.arguments, *own],
    )


def evaluation_cell(
    comparison: Comparison, expert: str, runs: Sequence[TrainingRun], made: Mapping[str, Cell], out: Path
) -> Cell:
    """The base model and every adapter that was trained for the expert's task, on the rows that no run has seen."""
    mine = [run for run in runs if run.expert == expert]
    recipe = mine[0].recipe
    name = f"{expert}-evaluation"
    # how many items are reported is for `evaluation` to say, and not for the recipe
    options = {f.name: getattr(recipe.data, f.name) for f in fields(TaskOptions)} | {"test_items": None}
    rewards = recipe.data.rewards
    settings = {
        "model": asdict(recipe.model),
        "task": task_name(recipe),
        "options": options,
        "reward": rewards[0] if isinstance(rewards, list) and rewards else None,
        "max_tokens": recipe.training.max_completion_length,
        "chat_template_kwargs": recipe.training.chat_template_kwargs or {},
        "evaluation": asdict(comparison.evaluation),
    }
    return Cell(
        name=name,
        kind="evaluation",
        folder=out / "evaluation" / expert,
        settings=normalize_json({**settings, "adapters": {run.name: made[run.name].settings for run in mine}}),
        command=_worker(out, name),
        needs=tuple(run.name for run in mine),
        spec=normalize_json(
            {
                **settings,
                "adapters": {run.name: str(made[run.name].folder) for run in mine},
                "out": str(out / "evaluation" / expert),
            }
        ),
    )


def adaptation_cell(
    comparison: Comparison,
    seed: int,
    runs: Sequence[TrainingRun],
    made: Mapping[str, Cell],
    out: Path,
    parts: Sequence[str],
    data_dir: str | None,
) -> Cell:
    """All ways of adapting to the unseen tasks with the experts of one seed."""
    mine = {run.expert: run for run in runs if run.method == SVF and run.seed == seed}
    experts = {name: mine[name] for name in comparison.experts}
    recipe = next(iter(experts.values())).recipe
    dispatch = mine.get(DISPATCH)
    name = f"adaptation-seed{seed}"
    settings = {
        "model": asdict(recipe.model),
        "chat_template_kwargs": recipe.training.chat_template_kwargs or {},
        "seed": seed,
        "unseen": {
            task.label: {"task": task.task, "options": asdict(with_data(task.options, data_dir))}
            for task in comparison.unseen
        },
        "tasks": {run.task: expert for expert, run in experts.items()},
        "classes": comparison.classes,
        "compare": "adaptation" in parts,
        # the base model has no seed: once is enough
        "base": seed == comparison.seeds[0],
        "few_shot": asdict(comparison.few_shot),
        "shots": shot_counts(comparison, parts),
        "reserve": reserve(comparison),
        "evaluation": asdict(comparison.evaluation),
    }
    needed = [run.name for run in (*experts.values(), *([dispatch] if dispatch else []))]
    return Cell(
        name=name,
        kind="adaptation",
        folder=out / "adaptation" / f"seed{seed}",
        settings=normalize_json({**settings, "adapters": {name: made[name].settings for name in needed}}),
        command=_worker(out, name),
        needs=tuple(needed),
        spec=normalize_json(
            {
                **settings,
                "experts": {expert: str(made[run.name].folder) for expert, run in experts.items()},
                "dispatch": None if dispatch is None else str(made[dispatch.name].folder),
                "out": str(out / "adaptation" / f"seed{seed}"),
            }
        ),
    )


def task_name(recipe: Recipe) -> str:
    """The recipe's task, with its skill where it has one."""
    return recipe.data.task + (f":{recipe.data.skill}" if recipe.data.task == "quickstart" else "")


def shot_counts(comparison: Comparison, parts: Sequence[str]) -> list[int]:
    """From how many labelled prompts few-shot adaptation starts, in each of its variants."""
    shots = [comparison.few_shot.shots]
    if "ablations" in parts:
        shots += comparison.ablations.shots
    return sorted(set(shots))


def reserve(comparison: Comparison) -> int:
    """How many test rows are set aside for shots where there are no validation rows, whatever parts are made now."""
    return RESERVE * max([comparison.few_shot.shots, *comparison.ablations.shots])


def with_data(options: TaskOptions, data_dir: str | None) -> TaskOptions:
    """The options with another folder of benchmarks, if there is one."""
    return options if data_dir is None else replace(options, data_dir=data_dir)


def _launcher(text: str) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise SVFError(f"--launch {text!r}: {error}") from error
    if not words:
        raise SVFError("--launch is empty: give a command such as 'accelerate launch --config_file FILE'")
    if words[:2] == ["accelerate", "launch"]:  # that of this Python, whatever the search path holds
        return [sys.executable, "-m", "accelerate.commands.launch", *words[2:]]
    if shutil.which(words[0]) is None:
        raise SVFError(f"--launch {text!r}: there is no program {words[0]!r}")
    return words


def _weights(recipe: Recipe) -> dict[str, Any]:
    """The fingerprint of a model that lies in a folder, where other weights may come to lie."""
    location = recipe.model.location
    if not Path(location).is_dir():
        return {}
    config = AutoConfig.from_pretrained(location, trust_remote_code=recipe.model.trust_remote_code)
    return {"model_fingerprint": model_fingerprint(location, config)}


def _worker(out: Path, name: str) -> list[str]:
    return [sys.executable, "-m", "svf_rl.reproduce.worker", str(record_path(out, name))]
