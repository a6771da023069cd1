"""The cells of a comparison: what each is made with, what decides its result, and the command that makes it."""

import hashlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from transformers import AutoConfig

from svf_rl.evaluation.base_model import model_fingerprint
from svf_rl.reproduce.cells import Cell, record_path
from svf_rl.reproduce.comparison import Comparison
from svf_rl.reproduce.methods import DISPATCH, SVF, slug
from svf_rl.reproduce.probes import pass_ks
from svf_rl.settings.recipe import Recipe
from svf_rl.storage.json_files import normalize_json
from svf_rl.tasks import TaskOptions


@dataclass(frozen=True)
class TrainingRun:
    """One expert (or the dispatch expert), trained in one way from one seed, which is not in `recipe`."""

    expert: str
    method: str
    seed: int
    recipe: Recipe
    cell: Cell

    @property
    def task(self) -> str:
        """The task as evaluations call it, with its skill where it has one."""
        data = self.recipe.data
        part = {"quickstart": data.skill, "reasoning_gym": data.dataset}.get(data.task)
        return f"{data.task}:{part}" if part else data.task


@dataclass(frozen=True)
class Table:
    """What a table of the report is of: `runs` of one expert on the task of the run `on`, or on a text, as the `probe`
    has it or without one as they were trained; `cells` has one for each model, its type included, that they were
    trained on: what was trained in float32 is another model in bfloat16. The base model's answers are those of the cell
    `base`, of the usual type."""

    probe: str | None
    runs: list[TrainingRun]
    on: TrainingRun
    cells: list[Cell]
    base: Cell | None


def training_cell(name: str, recipe: Recipe, overrides: Sequence[str], seed: int, out: Path, start: list[str]) -> Cell:
    """A run of `svf_rl.train` with the recipe, as it is with the `overrides`, which `start` starts; one that was
    interrupted resumes."""
    folder = out / "runs" / name
    settings = {key: value for key, value in recipe.raw.items() if key != "output_dir"} | {"seed": seed}
    if os.path.isdir(recipe.model.location):  # noqa: PTH112  (Path raises for one too long): where other weights may come to lie
        config = AutoConfig.from_pretrained(recipe.model.location, trust_remote_code=recipe.model.trust_remote_code)
        settings["model_fingerprint"] = model_fingerprint(recipe.model.location, config)
    own = [f"--seed={seed}", f"--output_dir={folder}", "--resume_from_checkpoint=auto"]
    return Cell(
        name=name,
        kind="training",
        folder=folder,
        settings=normalize_json(settings),
        command=[*start, "-m", "svf_rl.train", str(recipe.path), *overrides, *own],
    )


def evaluation_table(
    comparison: Comparison, runs: Sequence[TrainingRun], every: Sequence[TrainingRun], out: Path
) -> Table:
    """The base model and the adapters of `runs` of an expert, on those rows of its task that no run has seen; `every`
    run of the expert counts for names and for what is asked, whichever methods are wanted."""

    def cell(suffix: str, group: Sequence[TrainingRun]) -> Cell:
        name = group[0].expert + suffix
        settings = _evaluation(group[0], every[0], asdict(comparison.evaluation), {})
        return _worker_cell("evaluation", f"{name}-evaluation", out, name, settings, group, _adapters(group))

    return _table(None, runs, every, every[0], cell)


def probe_tables(
    comparison: Comparison,
    name: str,
    runs: Sequence[TrainingRun],
    every: Mapping[str, Sequence[TrainingRun]],
    out: Path,
) -> list[Table]:
    """Those of one probe; `every` has all runs of each expert, whichever methods are wanted."""
    probe = comparison.probes[name]
    methods = [slug(method) for method in probe.methods]
    own = {
        expert: [run for run in runs if run.expert == expert and (not methods or run.method in methods)]
        for expert in comparison.experts
    }
    asked = {
        expert: [run for run in every[expert] if not methods or run.method in methods] for expert in own if own[expert]
    }

    def table(expert: str, on: TrainingRun) -> Table:
        def cell(suffix: str, group: Sequence[TrainingRun]) -> Cell:
            if probe.text is not None:
                return _text_cell(comparison, name, suffix, group, out)
            return _probe_cell(comparison, name, suffix, group, on, out)

        return _table(name, own[expert], asked[expert], on, cell)

    return [table(expert, every[on][0]) for expert in asked for on in own if (expert != on) is probe.others]


def _table(
    probe: str | None,
    runs: Sequence[TrainingRun],
    every: Sequence[TrainingRun],
    on: TrainingRun,
    cell: Callable[[str, Sequence[TrainingRun]], Cell],
) -> Table:
    """With a `cell` for each model that the runs were trained on, by the end of its name. Of `every` run that could be
    asked, the first ones are of the usual model, whose cells have no end; those of others end with a method."""
    groups: list[list[TrainingRun]] = []
    for run in every:
        same = [group for group in groups if group[0].recipe.model == run.recipe.model]
        if same:
            same[0].append(run)
        else:
            groups.append([run])
    wanted = {
        f"-{group[0].method}" if place else "": [run for run in group if run in runs]
        for place, group in enumerate(groups)
    }
    cells = {suffix: cell(suffix, group) for suffix, group in wanted.items() if group}
    return Table(probe, list(runs), on, list(cells.values()), cells.get(""))


def _probe_cell(
    comparison: Comparison, name: str, suffix: str, runs: Sequence[TrainingRun], on: TrainingRun, out: Path
) -> Cell:
    probe, expert = comparison.probes[name], runs[0].expert
    limit = comparison.evaluation.limit if probe.limit is None else probe.limit
    sampled: dict[str, Any] = {"limit": limit, "temperature": probe.temperature, "samples": probe.samples}
    sampled["k"] = pass_ks(probe.samples)
    changes = {**probe.options, **probe.experts.get(on.expert, {})}
    settings = _evaluation(runs[0], on, asdict(comparison.evaluation) | sampled, changes)
    below = f"{slug(name)}/{expert}" + (f"-on-{on.expert}" if on.expert != expert else "") + suffix
    cell = f"probe-{below.replace('/', '-')}"
    return _worker_cell("evaluation", cell, out, below, settings, runs, _adapters(runs), "probes")


def _text_cell(comparison: Comparison, name: str, suffix: str, runs: Sequence[TrainingRun], out: Path) -> Cell:
    """The base model and the adapters of the runs on the text of the probe `name`."""
    probe, expert = comparison.probes[name], runs[0].expert
    assert probe.text is not None
    settings = {
        "model": asdict(runs[0].recipe.model),
        "evaluation": {**asdict(comparison.evaluation), "limit": None},  # of items, which a text has not
        "text": hashlib.sha256(Path(probe.text).read_bytes()).hexdigest(),
        "window": probe.window,
        "limit": probe.limit,
    }
    places = {**_adapters(runs), "file": probe.text}
    below = f"{slug(name)}/{expert}{suffix}"
    return _worker_cell("text", f"probe-{below.replace('/', '-')}", out, below, settings, runs, places, "probes")


def changes_cell(runs: Sequence[TrainingRun], out: Path) -> Cell:
    """What every run of an expert moved, measured against the base weights in the type of its training."""
    name, model = runs[0].expert, {**asdict(runs[0].recipe.model), "dtype": "auto"}
    return _worker_cell("changes", f"{name}-changes", out, name, {"model": model}, runs, _adapters(runs))


def _evaluation(
    run: TrainingRun, on: TrainingRun, evaluation: Mapping[str, Any], changes: Mapping[str, Any]
) -> dict[str, Any]:
    """What decides the answers of the model of a run to the task of the run `on`, with some of its options changed."""
    recipe, rewards = on.recipe, on.recipe.data.rewards
    options = {f.name: getattr(recipe.data, f.name) for f in fields(TaskOptions)}
    return {
        "model": asdict(run.recipe.model),
        "task": on.task,
        # how many items are reported is for `evaluation` to say, and not for the recipe
        "options": {**options, "test_items": None, **changes},
        "reward": rewards[0] if isinstance(rewards, list) and rewards else None,
        "max_tokens": recipe.training.max_completion_length,
        "chat_template_kwargs": recipe.training.chat_template_kwargs or {},
        "evaluation": evaluation,
    }


def _adapters(runs: Sequence[TrainingRun]) -> dict[str, Any]:
    return {"adapters": {run.cell.name: str(run.cell.folder) for run in runs}}


def adaptation_cell(
    comparison: Comparison,
    parts: Sequence[str],
    shots: Sequence[int],
    seed: int,
    runs: Sequence[TrainingRun],
    out: Path,
) -> Cell:
    """All ways of adapting to the unseen tasks with the experts of one seed."""
    mine = {run.expert: run for run in runs if run.method == SVF and run.seed == seed}
    experts = {name: mine[name] for name in comparison.experts}
    recipe = next(iter(experts.values())).recipe
    dispatch, tasks = mine.get(DISPATCH), [run.task for run in experts.values()]
    settings = {
        "model": asdict(recipe.model),
        "chat_template_kwargs": recipe.training.chat_template_kwargs or {},
        "seed": seed,
        "unseen": {task.label: {"task": task.task, "options": asdict(task.options)} for task in comparison.unseen},
        # whose items are an expert's own: nobody's where two have the same task
        "tasks": {run.task: expert for expert, run in experts.items() if tasks.count(run.task) == 1},
        "classes": comparison.classes,
        "compare": "adaptation" in parts,
        # the base model has no seed: once is enough
        "base": seed == comparison.seeds["adaptation"][0],
        "few_shot": asdict(comparison.few_shot),
        "shots": shots,
        "reserve": comparison.reserve,
        "evaluation": asdict(comparison.evaluation),
    }
    places = {
        "experts": {expert: str(run.cell.folder) for expert, run in experts.items()},
        "dispatch": None if dispatch is None else str(dispatch.cell.folder),
    }
    needed = [*experts.values(), *([dispatch] if dispatch else [])]
    return _worker_cell("adaptation", f"adaptation-seed{seed}", out, f"seed{seed}", settings, needed, places)


def _worker_cell(
    kind: Literal["evaluation", "adaptation", "changes", "text"],
    name: str,
    out: Path,
    below: str,
    settings: Mapping[str, Any],
    runs: Sequence[TrainingRun],
    places: Mapping[str, Any],
    room: str | None = None,
) -> Cell:
    """A cell that `svf_rl.reproduce.worker` makes of what the `runs` left: how these were trained decides it too, and
    `places` says where they are."""
    folder = out / (room or kind) / below
    return Cell(
        name=name,
        kind=kind,
        folder=folder,
        settings=normalize_json({**settings, "adapters": {run.cell.name: run.cell.settings for run in runs}}),
        command=[sys.executable, "-m", "svf_rl.reproduce.worker", str(record_path(out, name))],
        needs=tuple(run.cell.name for run in runs),
        spec=normalize_json({**settings, **places, "out": str(folder)}),
    )
