"""What would go wrong in the process of a cell, known when the cells are laid out."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from svf_rl.errors import SVFError
from svf_rl.reproduce.cell_plans import Table, TrainingRun
from svf_rl.reproduce.cells import Cell, evaluation_arguments, find_windows
from svf_rl.reproduce.comparison import Comparison
from svf_rl.reproduce.methods import LORA, SVF, slug
from svf_rl.tasks import find_task

# Keys of a recipe that a comparison sets itself; several runs (seeds, runs) are refused apart.
OWN = {"model_name_or_path", "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "seed"}
_LONGEST_NAME = 200  # bytes; endings come behind it


def check_names(cells: Sequence[Cell], runs: Sequence[TrainingRun]) -> None:
    """Raises `SVFError` for cells that would share a name or a folder, and names that are too long for a file."""
    trained = {id(run.cell): f"expert {run.expert} trained as {run.method}" for run in runs}
    seen: dict[str | Path, str] = {}
    for cell in cells:
        what = trained.get(id(cell), str(cell.folder))
        if other := seen.get(cell.name) or seen.get(cell.folder):
            raise SVFError(
                f"{other} and {what} would both be called {cell.name}: rename an expert, a variant or a probe"
            )
        if len(os.fsencode(cell.name)) > _LONGEST_NAME:
            raise SVFError(f"{cell.name} is too long for a file's name: shorten those of expert, variant or probe")
        seen |= {cell.name: what, cell.folder: what}


def check_asked(table: Table) -> None:
    """Raises `SVFError` for what the process of a cell would refuse: better known now than after hours."""
    spec, task = table.cells[0].spec, find_task(table.on.recipe.data.task)
    with naming("evaluation" if table.probe is None else f"probe {table.probe!r} on {table.on.task}"):
        if table.cells[0].kind == "text":
            find_windows(spec)
            return
        options = evaluation_arguments(spec).options
        own = {**vars(table.on.recipe.data), "test_items": None}  # whose rows are known to be there
        if not vars(options).items() <= own.items() and task.is_local(options):
            task.load(options)


@contextmanager
def naming(what: str) -> Iterator[None]:
    """What is refused within is said to be of `what`."""
    try:
        yield
    except SVFError as error:
        raise SVFError(f"{what}: {error}") from error


def check_methods(comparison: Comparison, methods: Sequence[str] | None) -> list[str]:
    """The methods that are asked for, as runs are called by them; `None`: all. Raises `SVFError` for one that the
    comparison has not."""
    every = [SVF, *([LORA] if comparison.lora else []), *comparison.ablations.variants]
    wanted = every if methods is None else methods
    for method in wanted or [""]:
        if method not in [*every, *map(slug, every)]:
            raise SVFError(f"there is no method {method!r}: use some of {', '.join(every)}")
    return [slug(method) for method in every if {method, slug(method)} & set(wanted)]


def check_same_targets(runs: Sequence[TrainingRun]) -> None:
    """Raises `SVFError` for experts of different matrices, which cannot be mixed: better known now than after hours."""
    first = runs[0]
    for run in runs:
        for key in ("adapter", "target_modules", "exclude_modules", "layers_to_transform"):
            here, there = getattr(run.recipe.adapter, key), getattr(first.recipe.adapter, key)
            if here != there:
                raise SVFError(
                    f"experts {first.expert} and {run.expert} cannot be mixed: {key} is {there!r} and {here!r}"
                )
