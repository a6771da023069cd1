"""What a task is: rows with prompts, in up to three splits, and the rewards that grade them by default."""

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from svf_rl.errors import SVFError
from svf_rl.tasks.options import TaskOptions

Splits = dict[str, Dataset | None]
"""`train`, `validation` and `test`. The first two are always there; without test rows, `test` is `None`."""

RewardSpec = str | Mapping[str, Any]


@dataclass(frozen=True)
class Task:
    """
    One task. Its module in this folder holds it as `TASK`; that is all it takes to be found by name.

    Args:
        name (`str`): the name in recipes.
        load (`Callable`):
            The rows of each split. Each row has `prompt`, a list of `{"role", "content"}` messages that ends with the
            user's, and the columns that rewards read.
        rewards (`Callable`): the rewards of recipes that name none, as [`svf_rl.rewards.load_reward`] takes them.
        is_local (`Callable`): whether `load` gets by without the network.
        columns (`frozenset[str]`, *optional*):
            The columns that `load` gives, for checks without the network; `None` when they depend on the data.
    """

    name: str
    load: Callable[[TaskOptions], Splits]
    rewards: Callable[[TaskOptions], tuple[RewardSpec, ...]]
    is_local: Callable[[TaskOptions], bool]
    columns: frozenset[str] | None = None


def all_tasks() -> dict[str, Task]:
    """Every `TASK` of the modules in this folder, by name."""
    modules = [
        importlib.import_module(f"{__package__}.{module.name}")
        for module in pkgutil.iter_modules([str(Path(__file__).parent)])
    ]
    return {module.TASK.name: module.TASK for module in modules if hasattr(module, "TASK")}


def find_task(name: str) -> Task:
    """The task of that name. Raises `SVFError` when there is none."""
    tasks = all_tasks()
    if name not in tasks:
        raise SVFError(f"unknown task {name!r}: use one of {', '.join(sorted(tasks))}")
    return tasks[name]


def chat(question: str, system_prompt: str | None) -> list[dict[str, str]]:
    """`question` as a conversation of one turn, after the system prompt if there is one."""
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    return [*system, {"role": "user", "content": question}]


def limited(split: str, rows: Dataset, items: int | None) -> Dataset:
    """The first `items` rows (all for `None`). Raises `SVFError` when none are left."""
    if items is not None and items < 1:
        raise SVFError(f"{split}_items must be at least 1, not {items}")
    if len(rows) == 0:
        raise SVFError(f"the {split} split has no rows: give it some, or leave the split out")
    return rows if items is None else rows.select(range(min(items, len(rows))))


def check_has_columns(rows: Dataset, wanted: Sequence[str], where: str) -> None:
    """Raises `SVFError`, naming the columns there are, unless `rows` has all that are wanted."""
    for name in wanted:
        if name not in rows.column_names:
            raise SVFError(f"{where} has no column {name!r}; it has: {', '.join(rows.column_names) or 'none'}")
