"""From a comparison to its cells, everything checked that can be checked without weights."""

import json
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from svf_rl.errors import SVFError
from svf_rl.reproduce.cell_plans import (
    Table,
    TrainingRun,
    adaptation_cell,
    changes_cell,
    evaluation_table,
    probe_tables,
    training_cell,
)
from svf_rl.reproduce.cells import Cell, evaluation_arguments
from svf_rl.reproduce.comparison import Comparison, ExpertRecipe, Unseen
from svf_rl.reproduce.methods import DISPATCH, LORA, SVF, slug
from svf_rl.reproduce.plan_checks import OWN, check_asked, check_methods, check_names, check_same_targets, naming
from svf_rl.settings.dry_run import check_recipe
from svf_rl.settings.recipe import load_recipe, load_runs
from svf_rl.tasks import find_task

NOT_ADAPTED = f"{SVF} is not among the methods: nothing is adapted to the unseen tasks"

_MORE = {"text": "a text", "changes": "what moved"}


@dataclass(frozen=True)
class Plan:
    """
    The cells of a comparison, those that others wait for first.

    Args:
        runs (`list[TrainingRun]`): the training cells.
        cells (`list[Cell]`): all cells.
        tables (`list[Table]`): what evaluations and probes are shown in.
        shots (`list[int]`): from how many labelled prompts few-shot adaptation starts, in each of its variants.
        labelled (`dict[str, tuple[int, int] | None]`): by unseen task, how many rows shots are drawn from and how many
            are reported; `None` where the rows are not at hand.
        notes (`list[str]`): what to know before the start.
    """

    comparison: Comparison
    out: Path
    parts: tuple[str, ...]
    runs: list[TrainingRun]
    cells: list[Cell]
    tables: list[Table]
    shots: list[int]
    labelled: dict[str, tuple[int, int] | None]
    notes: list[str]

    def __str__(self) -> str:
        comparison, kinds = self.comparison, [cell.kind for cell in self.cells]
        experts = dict.fromkeys(run.expert for run in self.runs)
        unseen = [
            label if rows is None else f"{label} ({rows[1]} items reported)" for label, rows in self.labelled.items()
        ]
        lines = {
            "model": comparison.model,
            "seeds": self._seeds(),
            "parts": ", ".join(self.parts),
            "experts": ", ".join(f"{expert} ({self.task_of(expert)})" for expert in experts),
            "unseen tasks": ", ".join(unseen) or "none",
            "probes": (", ".join(comparison.probes) if "probes" in self.parts else "") or "none",
            "ablations": (", ".join(comparison.ablations.variants) if "ablations" in self.parts else "") or "none",
            "cells": f"{kinds.count('training')} training runs, {kinds.count('evaluation')} evaluations, "
            f"{kinds.count('adaptation')} adaptations"
            + "".join(f", {kinds.count(kind)} of {what}" for kind, what in _MORE.items() if kind in kinds),
            "output": str(self.out),
        }
        notes = [f"note: {note}" for note in self.notes]
        return "\n".join([*(f"{name + ':':14}{text}" for name, text in lines.items()), *notes])

    def _seeds(self) -> str:
        parts_of: dict[tuple[int, ...], list[str]] = {}
        adapts = any(cell.kind == "adaptation" for cell in self.cells)  # also for ablations of the number of shots
        for part in dict.fromkeys([*self.parts, *(["adaptation"] if adapts else [])]):
            parts_of.setdefault(tuple(self.comparison.seeds[part]), []).append(part)
        shown = {", ".join(map(str, seeds)): " and ".join(parts) for seeds, parts in parts_of.items()}
        return "; ".join(shown if len(shown) == 1 else [f"{seeds} of {parts}" for seeds, parts in shown.items()])

    def task_of(self, expert: str) -> str:
        return next(run.task for run in self.runs if run.expert == expert)


def make_plan(
    comparison: Comparison,
    out: Path,
    parts: Sequence[str],
    launcher: str | None = None,
    data_dir: str | None = None,
    methods: Sequence[str] | None = None,
) -> Plan:
    """
    Check every recipe as `svf-rl train --dry-run` does, and lay out the cells; nothing is written yet. The arguments
    are those of [`svf_rl.reproduce.run.reproduce`].

    Raises:
        SVFError: a recipe, a task or a combination of settings would not run.
    """
    if data_dir is not None:
        unseen = [replace(task, options=replace(task.options, data_dir=data_dir)) for task in comparison.unseen]
        comparison = replace(comparison, unseen=unseen)
    chosen = check_methods(comparison, methods)
    more_shots = comparison.ablations.shots if "ablations" in parts else []
    shots = sorted({comparison.few_shot.shots, *more_shots})
    adapts = bool(comparison.unseen) and ("adaptation" in parts or bool(more_shots)) and SVF in chosen
    notes: list[str] = []
    if "adaptation" in parts and comparison.unseen and not adapts:
        notes.append(NOT_ADAPTED)
    every = _training_runs(comparison, parts, chosen, adapts, data_dir, _start(launcher), out, notes)
    runs = [run for run in every if run.method in chosen]
    if not runs:
        raise SVFError(f"{comparison.path} trains nothing by {', '.join(chosen)} for {', '.join(parts)}")
    all_of = _by_expert(every)
    labelled, adaptations = {}, list[Cell]()
    if adapts:
        check_same_targets([run for run in runs if run.method == SVF])
        labelled = {task.label: _labelled_rows(task, comparison, shots[-1], notes) for task in comparison.unseen}
        trained = {task: run.expert for run in runs for task in (run.recipe.data.task, run.task)}
        for task in comparison.unseen:
            for part in task.options.mixture or [task.task]:
                if part in trained:
                    notes.append(f"{task.label} is not unseen: the expert {trained[part]} is trained on {part}")
        adaptations = [
            adaptation_cell(comparison, parts, shots, seed, runs, out) for seed in comparison.seeds["adaptation"]
        ]
        with naming("evaluation"):
            evaluation_arguments({**adaptations[0].spec, "task": comparison.unseen[0].task, "options": {}})
    # an adaptation takes longest: its experts come first, and it comes before the baselines
    early = {name for cell in adaptations for name in cell.needs}
    training = [run.cell for run in sorted(runs, key=lambda run: run.seed)]
    cells = [cell for cell in training if cell.name in early] + adaptations
    cells += [cell for cell in training if cell.name not in early]
    # the experts that a table shows on their own task
    shown = {DISPATCH, *(comparison.experts if "fine_tuning" in parts else [])}
    shown |= set(comparison.ablations.experts if "ablations" in parts else [])
    tables = [
        evaluation_table(comparison, mine, all_of[expert], out)
        for expert, mine in _by_expert(runs).items()
        if expert in shown
    ]
    probed = [run for run in runs if "probes" in parts and run.seed in comparison.seeds["probes"]]
    if "probes" in parts:
        for name in comparison.probes:
            probes = probe_tables(comparison, name, probed, all_of, out)
            if not probes and methods is None:
                notes.append(
                    f"the probe {name} asks nothing here: no run is by {', '.join(comparison.probes[name].methods)}"
                )
            tables += probes
    cells += [cell for table in tables for cell in table.cells]
    if comparison.weight_changes:
        cells += [changes_cell(mine, out) for expert, mine in _by_expert(probed).items() if expert != DISPATCH]
    check_names(cells, runs)
    for table in tables:
        check_asked(table)
    return Plan(comparison, out, tuple(parts), runs, cells, tables, shots, labelled, list(dict.fromkeys(notes)))


@dataclass(frozen=True)
class _Wanted:
    """An expert trained by a method, which changes these keys of its recipe, for the parts that need it."""

    expert: ExpertRecipe
    method: str
    changes: Mapping[str, Any]
    parts: list[str]


def _training_runs(
    comparison: Comparison,
    parts: Sequence[str],
    chosen: Sequence[str],
    adapts: bool,
    data_dir: str | None,
    start: list[str],
    out: Path,
    notes: list[str],
) -> list[TrainingRun]:
    made = [*parts, *(["adaptation"] if adapts else [])]
    wanted: list[_Wanted] = []
    for expert in comparison.experts.values():
        needs = {
            "fine_tuning": True,
            "adaptation": adapts,
            "ablations": expert.name in comparison.ablations.experts,
            "probes": bool(comparison.probes) or comparison.weight_changes,
        }
        wanted.append(_Wanted(expert, SVF, {}, [part for part in made if needs[part]]))
        if comparison.lora:
            wanted.append(_Wanted(expert, LORA, comparison.lora, [part for part in made if part == "fine_tuning"]))
        ablated = [part for part in made if part == "ablations" and needs[part]]
        variants = comparison.ablations.variants.items()
        wanted += [_Wanted(expert, slug(name), changes, ablated) for name, changes in variants]
    if adapts and comparison.dispatch is not None:
        wanted.append(_Wanted(comparison.dispatch, SVF, {}, [part for part in parts if part == "adaptation"]))
    wanted = [one for one in wanted if one.parts]
    if not wanted:
        raise SVFError(f"{comparison.path} has nothing for {', '.join(parts)}: add unseen tasks or ablations")
    fixed = {"model_name_or_path": comparison.model, **({} if data_dir is None else {"data_dir": data_dir})}
    runs = []
    for one in wanted:
        expert, method = one.expert, one.method
        keys = {**comparison.training, **expert.overrides, **one.changes}
        given = [
            f"--{key}={value if isinstance(value, str) else json.dumps(value, default=str)}"
            for key, value in (keys | fixed).items()
        ]
        with naming(f"{expert.name} ({method})"):
            if own := sorted(OWN & keys.keys()):
                raise SVFError(f"{', '.join(own)} is for the comparison to set: leave it out")
            recipe = load_recipe(expert.path, given)
            if load_runs(recipe, given):
                raise SVFError("the recipe has several runs (seeds, runs): leave them out, a comparison has seeds too")
            notes += check_recipe(recipe).notes if method in chosen else []
        for seed in comparison.seeds_of(one.parts):
            cell = training_cell(f"{expert.name}-{method}-seed{seed}", recipe, given, seed, out, start)
            runs.append(TrainingRun(expert.name, method, seed, recipe, cell))
    usual = {run.expert: run.recipe.model.dtype for run in reversed(runs)}
    notes += [
        f"{run.expert} ({run.method}): trained and compared with the base model in {run.recipe.model.dtype}, the "
        f"others in {usual[run.expert]}; seconds do not compare"
        for run in runs
        if run.method in chosen and run.recipe.model.dtype != usual[run.expert]
    ]
    return runs


def _by_expert(runs: Sequence[TrainingRun]) -> dict[str, list[TrainingRun]]:
    return {name: [run for run in runs if run.expert == name] for name in dict.fromkeys(run.expert for run in runs)}


def _start(launcher: str | None) -> list[str]:
    """What comes before `-m svf_rl.train`: this Python, or the words of `--launch`."""
    if launcher is None:
        return [sys.executable]
    try:
        words = shlex.split(launcher)
    except ValueError as error:
        raise SVFError(f"--launch {launcher!r}: {error}") from error
    if not words:
        raise SVFError("--launch is empty: give a command such as 'accelerate launch --config_file FILE'")
    if words[:2] == ["accelerate", "launch"]:  # that of this Python, whatever the search path holds
        return [sys.executable, "-m", "accelerate.commands.launch", *words[2:]]
    if shutil.which(words[0]) is None:
        raise SVFError(f"--launch {launcher!r}: there is no program {words[0]!r}")
    return words


def _labelled_rows(task: Unseen, comparison: Comparison, shots: int, notes: list[str]) -> tuple[int, int] | None:
    """How many rows there are for at most `shots` shots and how many are reported; `None` if that is not known here."""
    with naming(f"unseen task {task.label}"):
        find_task(task.task).rewards(task.options)
    if not find_task(task.task).is_local(task.options):
        notes.append(f"the rows of {task.label} come from the Hub: their number was not checked")
        return None
    splits = find_task(task.task).load(task.options)
    test, validation = splits["test"], splits["validation"]
    if test is None:
        raise SVFError(f"unseen task {task.label}: {task.task} has no test rows here")
    if validation is not None:
        labelled, reported = len(validation), len(test)
    else:
        labelled = min(comparison.reserve, len(test))
        reported = len(test) - labelled
        notes.append(f"{task.label} has no validation rows: shots are {labelled} test rows, which are not reported")
    if labelled < shots or reported < 1:
        raise SVFError(f"unseen task {task.label} has {labelled} labelled rows for {shots} shots: lower the shots")
    return labelled, min(comparison.evaluation.limit or reported, reported)
