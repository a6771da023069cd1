"""From a comparison to its cells, everything checked that can be checked without weights."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svf_rl.errors import SVFError
from svf_rl.reproduce.cell_plans import (
    TrainingRun,
    adaptation_cell,
    evaluation_cell,
    reserve,
    shot_counts,
    training_cell,
    with_data,
)
from svf_rl.reproduce.cells import Cell
from svf_rl.reproduce.comparison import Comparison, ExpertRecipe, Unseen, slug
from svf_rl.reproduce.methods import DISPATCH, LORA, SVF
from svf_rl.settings.dry_run import check_recipe
from svf_rl.settings.recipe import load_recipe
from svf_rl.tasks import find_task


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
            if self.labelled
            else "none",
            "ablations": (", ".join(comparison.ablations.variants) if "ablations" in self.parts else "") or "none",
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
    cells = [training_cell(run, out, launcher) for run in sorted(runs, key=lambda run: run.seed)]
    made = {cell.name: cell for cell in cells}
    if adapts:
        cells += [adaptation_cell(comparison, seed, runs, made, out, parts, data_dir) for seed in comparison.seeds]
    # behind the experts and before the baselines: an adaptation takes longest
    early = {need for cell in cells if cell.kind == "adaptation" for need in cell.needs}
    cells.sort(key=lambda cell: 0 if cell.name in early else (1 if cell.kind == "adaptation" else 2))
    cells += [evaluation_cell(comparison, expert, runs, made, out) for expert in evaluated(comparison, parts, runs)]
    return Plan(comparison, out, tuple(parts), runs, cells, labelled, list(dict.fromkeys(notes)))


def evaluated(comparison: Comparison, parts: Sequence[str], runs: Sequence[TrainingRun]) -> list[str]:
    """The experts that a table shows on their own task."""
    wanted: set[str] = {DISPATCH}
    if "fine_tuning" in parts:
        wanted |= set(comparison.experts)
    if "ablations" in parts:
        wanted |= set(comparison.ablations.experts)
    return [expert for expert in dict.fromkeys(run.expert for run in runs) if expert in wanted]


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
            notes += check_recipe(recipe).notes
        except SVFError as error:
            raise SVFError(f"{expert.name} ({method}): {error}") from error
        runs += [TrainingRun(expert.name, method, seed, recipe, arguments) for seed in comparison.seeds]
    return runs


def _as_arguments(overrides: Mapping[str, Any]) -> list[str]:
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in overrides.items()]


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
    options = with_data(task.options, data_dir)
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
        labelled = min(reserve(comparison), len(test))
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
