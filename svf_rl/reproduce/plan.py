"""From a comparison to its cells, everything checked that can be checked without weights."""

import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from svf_rl.errors import SVFError
from svf_rl.evaluation.adapters import model_fingerprint
from svf_rl.reproduce.cells import Cell, as_json, record_path
from svf_rl.reproduce.comparison import Comparison, ExpertRecipe, Unseen, slug
from svf_rl.reproduce.methods import DISPATCH, LORA, SVF
from svf_rl.tasks import TaskOptions, find_task
from svf_rl.training.plan import check
from svf_rl.training.recipe import Recipe, load_recipe

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


@dataclass(frozen=True)
class Plan:
    """
    The cells of a comparison, those that others wait for first.

    Args:
        runs (`list[TrainingRun]`): the training cells.
        cells (`list[Cell]`): all cells.
        labelled (`dict[str, tuple[int, int] | None]`): by unseen task, how many rows shots are drawn from and how many
            are reported; `None` where the rows are not at hand.
        notes (`list[str]`): what to know before the start.
    """

    comparison: Comparison
    out: Path
    parts: tuple[str, ...]
    runs: list[TrainingRun]
    cells: list[Cell]
    labelled: dict[str, tuple[int, int] | None]
    notes: list[str]

    def __str__(self) -> str:
        comparison, kinds = self.comparison, [cell.kind for cell in self.cells]
        lines = {
            "model": comparison.model,
            "seeds": ", ".join(map(str, comparison.seeds)),
            "parts": ", ".join(self.parts),
            "experts": ", ".join(f"{name} ({self.task_of(name)})" for name in self.experts()),
            "unseen tasks": ", ".join(_described(task, self.labelled[task.label]) for task in comparison.unseen)
            if "adaptation" in self.parts
            else "none",
            "ablations": ", ".join(comparison.ablations.variants) if "ablations" in self.parts else "none",
            "cells": f"{kinds.count('training')} training runs, {kinds.count('evaluation')} evaluations, "
            f"{kinds.count('adaptation')} adaptations",
            "output": str(self.out),
        }
        notes = [f"note: {note}" for note in self.notes]
        return "\n".join([*(f"{name + ':':14}{text}" for name, text in lines.items()), *notes])

    def experts(self) -> list[str]:
        """The experts that are trained, the dispatch expert last."""
        return list(dict.fromkeys(run.expert for run in sorted(self.runs, key=lambda run: run.expert == DISPATCH)))

    def task_of(self, expert: str) -> str:
        return next(run.task for run in self.runs if run.expert == expert)

    def methods(self, expert: str) -> list[str]:
        """The ways in which an expert is trained."""
        return list(dict.fromkeys(run.method for run in self.runs if run.expert == expert))


def make_plan(
    comparison: Comparison,
    out: Path,
    parts: Sequence[str],
    launcher: str | None = None,
    data_dir: str | None = None,
) -> Plan:
    """
    Check every recipe as `svf-rl train --dry-run` does, and lay out the cells.

    Args:
        comparison ([`Comparison`]): what to compare.
        out (`Path`): where all of it goes; nothing is written yet.
        parts (`Sequence[str]`): those of `PARTS` that are wanted.
        launcher (`str`, *optional*): a command that starts training runs, such as `accelerate launch`.
        data_dir (`str`, *optional*): a folder with the benchmarks, in place of the Hub.

    Raises:
        SVFError: a recipe, a task or a combination of settings would not run.
    """
    notes: list[str] = []
    runs = _training_runs(comparison, parts, data_dir, notes)
    adapts = _adapts(comparison, parts)
    labelled = {}
    if adapts:
        _check_same_targets([run for run in runs if run.method == SVF])
        labelled = {task.label: _labelled_rows(task, comparison, parts, data_dir, notes) for task in comparison.unseen}
        _warn_of_seen_tasks(comparison, runs, notes)
    cells = [_training_cell(run, out, launcher) for run in runs]
    made = {cell.name: cell for cell in cells}
    if adapts:
        cells += [_adaptation_cell(comparison, seed, runs, made, out, parts, data_dir) for seed in comparison.seeds]
    # behind the experts and before the baselines: an adaptation takes longest
    early = {need for cell in cells if cell.kind == "adaptation" for need in cell.needs}
    cells.sort(key=lambda cell: 0 if cell.name in early else (1 if cell.kind == "adaptation" else 2))
    cells += [_evaluation_cell(comparison, expert, runs, made, out) for expert in evaluated(comparison, parts, runs)]
    return Plan(comparison, out, tuple(parts), runs, cells, labelled, list(dict.fromkeys(notes)))


def task_name(recipe: Recipe) -> str:
    """The recipe's task, with its skill where it has one."""
    return recipe.data.task + (f":{recipe.data.skill}" if recipe.data.task == "quickstart" else "")


def evaluated(comparison: Comparison, parts: Sequence[str], runs: Sequence[TrainingRun]) -> list[str]:
    """The experts that a table shows on their own task."""
    wanted: set[str] = {DISPATCH}
    if "fine_tuning" in parts:
        wanted |= set(comparison.experts)
    if "ablations" in parts:
        wanted |= set(comparison.ablations.experts)
    return [expert for expert in dict.fromkeys(run.expert for run in runs) if expert in wanted]


def shot_counts(comparison: Comparison, parts: Sequence[str]) -> list[int]:
    """From how many labelled prompts few-shot adaptation starts, in each of its variants."""
    shots = [comparison.few_shot.shots]
    if "ablations" in parts:
        shots += comparison.ablations.shots
    return sorted(set(shots))


def _adapts(comparison: Comparison, parts: Sequence[str]) -> bool:
    shots = "ablations" in parts and comparison.ablations.shots
    return bool(comparison.unseen) and ("adaptation" in parts or bool(shots))


def _training_runs(
    comparison: Comparison, parts: Sequence[str], data_dir: str | None, notes: list[str]
) -> list[TrainingRun]:
    adapts = _adapts(comparison, parts)
    wanted: list[tuple[ExpertRecipe, str, Mapping[str, Any]]] = []
    for expert in comparison.experts.values():
        ablated = "ablations" in parts and expert.name in comparison.ablations.experts
        if "fine_tuning" in parts or adapts or ablated:
            wanted.append((expert, SVF, {}))
        if "fine_tuning" in parts and comparison.lora:
            wanted.append((expert, LORA, comparison.lora))
        if ablated:
            wanted += [(expert, slug(name), changes) for name, changes in comparison.ablations.variants.items()]
    if adapts and comparison.dispatch is not None and "adaptation" in parts:
        wanted.append((comparison.dispatch, SVF, {}))
    if not wanted:
        raise SVFError(f"{comparison.path} has nothing for {', '.join(parts)}: add unseen tasks or ablations")
    runs = []
    for expert, method, changes in wanted:
        overrides = {**comparison.training, **expert.overrides, **changes, "model_name_or_path": comparison.model}
        if data_dir is not None:
            overrides["data_dir"] = data_dir
        arguments = _as_arguments(overrides)
        try:
            recipe = load_recipe(expert.path, arguments)
            notes += check(recipe).notes
        except SVFError as error:
            raise SVFError(f"{expert.name} ({method}): {error}") from error
        runs += [TrainingRun(expert.name, method, seed, recipe, arguments) for seed in comparison.seeds]
    return runs


def _as_arguments(overrides: Mapping[str, Any]) -> list[str]:
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in overrides.items()]


def _training_cell(run: TrainingRun, out: Path, launcher: str | None) -> Cell:
    folder = out / "runs" / run.name
    start = [sys.executable, "-m"] if launcher is None else [*_launcher(launcher), "-m"]
    own = [f"--seed={run.seed}", f"--output_dir={folder}"]
    settings = {key: value for key, value in run.recipe.raw.items() if key != "output_dir"}
    return Cell(
        name=run.name,
        kind="training",
        folder=folder,
        settings=as_json({**settings, "seed": run.seed, **_weights(run.recipe)}),
        command=[
            *start,
            "svf_rl.train",
            str(run.recipe.path),
            *run.arguments,
            f"--seed={run.seed}",
            f"--output_dir={folder}",
        ],
    )


def _launcher(text: str) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise SVFError(f"--launch {text!r}: {error}") from error
    if not words:
        raise SVFError("--launch is empty: give a command such as 'accelerate launch --config_file FILE'")
    if words[:2] == ["accelerate", "launch"]:  # that of this Python, whatever the search path holds
        return [sys.executable, "-m", "accelerate.commands.launch", *words[2:]]
    return words


def _weights(recipe: Recipe) -> dict[str, Any]:
    """The fingerprint of a model that lies in a folder, where other weights may come to lie."""
    from transformers import AutoConfig

    location = recipe.model.location
    if not Path(location).is_dir():
        return {}
    config = AutoConfig.from_pretrained(location, trust_remote_code=recipe.model.trust_remote_code)
    return {"model_fingerprint": model_fingerprint(location, config)}


def _evaluation_cell(
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
        settings=as_json({**settings, "adapters": {run.name: made[run.name].settings for run in mine}}),
        command=_worker(out, name),
        needs=tuple(run.name for run in mine),
        spec=as_json(
            {
                **settings,
                "adapters": {run.name: str(made[run.name].folder) for run in mine},
                "out": str(out / "evaluation" / expert),
            }
        ),
    )


def _adaptation_cell(
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
            task.label: {"task": task.task, "options": asdict(_with_data(task.options, data_dir))}
            for task in comparison.unseen
        },
        "tasks": {run.task: expert for expert, run in experts.items()},
        "classes": comparison.classes,
        "compare": "adaptation" in parts,
        # the base model has no seed: once is enough
        "base": seed == comparison.seeds[0],
        "few_shot": asdict(comparison.few_shot),
        "shots": shot_counts(comparison, parts),
        "reserve": RESERVE * max(shot_counts(comparison, parts)),
        "evaluation": asdict(comparison.evaluation),
    }
    needed = [run.name for run in (*experts.values(), *([dispatch] if dispatch else []))]
    return Cell(
        name=name,
        kind="adaptation",
        folder=out / "adaptation" / f"seed{seed}",
        settings=as_json({**settings, "adapters": {name: made[name].settings for name in needed}}),
        command=_worker(out, name),
        needs=tuple(needed),
        spec=as_json(
            {
                **settings,
                "experts": {expert: str(made[run.name].folder) for expert, run in experts.items()},
                "dispatch": None if dispatch is None else str(made[dispatch.name].folder),
                "out": str(out / "adaptation" / f"seed{seed}"),
            }
        ),
    )


def _worker(out: Path, name: str) -> list[str]:
    return [sys.executable, "-m", "svf_rl.reproduce.worker", str(record_path(out, name))]


def _with_data(options: TaskOptions, data_dir: str | None) -> TaskOptions:
    return options if data_dir is None else replace(options, data_dir=data_dir)


def _check_same_targets(runs: Sequence[TrainingRun]) -> None:
    """Raises `SVFError` for experts of different matrices, which cannot be mixed: better known now than after hours."""
    first = runs[0]
    for run in runs:
        for key in ("adapter", "target_modules", "exclude_modules", "layers_to_transform"):
            here, there = getattr(run.recipe.adapter, key), getattr(first.recipe.adapter, key)
            if here != there:
                raise SVFError(
                    f"experts {first.expert} and {run.expert} cannot be mixed: {key} is {there!r} and {here!r}"
                )


def _labelled_rows(
    task: Unseen, comparison: Comparison, parts: Sequence[str], data_dir: str | None, notes: list[str]
) -> tuple[int, int] | None:
    """How many rows there are for shots and how many are reported."""
    options = _with_data(task.options, data_dir)
    if not find_task(task.task).is_local(options):
        notes.append(f"the rows of {task.label} come from the Hub: their number was not checked")
        return None
    splits = find_task(task.task).load(options)
    test, validation = splits["test"], splits["validation"]
    if test is None:
        raise SVFError(f"unseen task {task.label}: {task.task} has no test rows here")
    most, limit = max(shot_counts(comparison, parts)), comparison.evaluation.limit
    if validation is not None:
        labelled, reported = len(validation), len(test)
    else:
        labelled = min(RESERVE * most, len(test))
        reported = len(test) - labelled
        notes.append(f"{task.label} has no validation rows: shots are {labelled} test rows, which are not reported")
    if labelled < most or reported < 1:
        raise SVFError(f"unseen task {task.label} has {labelled} labelled rows for {most} shots: lower the shots")
    return labelled, reported if limit is None else min(limit, reported)


def _warn_of_seen_tasks(comparison: Comparison, runs: Sequence[TrainingRun], notes: list[str]) -> None:
    trained = {re.sub(":.*", "", run.task): run.expert for run in runs}
    for task in comparison.unseen:
        if task.task in trained:
            notes.append(f"{task.label} is not unseen: the expert {trained[task.task]} is trained on {task.task}")


def _described(task: Unseen, rows: tuple[int, int] | None) -> str:
    return task.label if rows is None else f"{task.label} ({rows[1]} items reported)"
