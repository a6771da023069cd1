"""What a task is: rows with prompts, in up to three splits, and the rewards that grade them by default."""

import importlib
import pkgutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from svf_rl.errors import SVFError, short_repr
from svf_rl.tasks.examples import with_examples
from svf_rl.tasks.options import TaskOptions

if TYPE_CHECKING:  # the flags of commands are made from this package, and `--help` is to answer at once
    from datasets import Dataset

SPLITS = ("train", "validation", "test")
Splits = dict[str, "Dataset | None"]
"""`train`, `validation` and `test`. `train` and `validation` are `None` for a task that is only for evaluation, `test`
is `None` where the user's own dataset has no test rows."""

RewardSpec = str | Mapping[str, Any]

TRAINING_COLUMNS = frozenset({"prompt", "answer", "target"})


@dataclass(frozen=True)
class Hub:
    """A dataset on the Hugging Face Hub: `name`, and `config` where it has several; `folder` has its files in
    `data_dir`."""

    name: str
    config: str | None
    folder: str


def has_files(options: TaskOptions) -> bool:
    """Whether the rows are local files."""
    return options.data_path is not None or options.data_dir is not None


# Where the published code of Transformer² ends every completion, including valid answers that contain these words.
REFERENCE_STOP = ("Instruction:", "Instruction", "Response:", "Response")


@dataclass(frozen=True)
class Task:
    """One task. It is found by its `name`, that in recipes, when a module in this folder defines it as `TASK`."""

    name: str
    # All rows of each split. A row has `prompt`, a list of `{"role", "content"}` messages, and the columns that rewards
    # read (`answer`); for next-token training also `target`, a right completion. The last message is the user's, or the
    # beginning of the assistant's turn (a prefilled turn), which a completion continues and does not repeat.
    read: Callable[[TaskOptions], Splits]
    # The rewards of recipes that name none, as `svf_rl.rewards.load_reward` takes them; the first decides what is
    # correct. See `graded_by`.
    rewards: Callable[[TaskOptions], tuple[RewardSpec, ...]]
    # Whether `read` works without the network.
    is_local: Callable[[TaskOptions], bool] = has_files
    # Those that `read` returns, for checks without the network; `None` when they depend on the data.
    columns: frozenset[str] | None = None
    hub: Hub | None = None  # what is read when no local files are given
    max_tokens: int = 512  # of a completion in evaluation; a recipe has its own
    stop: tuple[str, ...] = ()  # strings that end a completion, see `stop_strings`
    # Accuracy of one greedy completion an item, or the chance that one of `k` passes.
    metric: Literal["accuracy", "pass_at_k"] = "accuracy"
    trainable: bool = True  # whether there are training rows
    reads_shots: bool = False  # whether `read` gives the rows their worked examples itself
    # Options that it reads and not every task does: where they are given to a task without them, a note says so.
    reads: frozenset[str] = frozenset()

    def load(self, options: TaskOptions) -> Splits:
        """The rows of each split, as many as `options` say. Raises `SVFError` for a split without rows, or where there
        are no worked examples."""
        tables = self.read(options)
        if options.shots and not self.reads_shots:
            tables = with_examples(tables, options.shots, self.name)
        splits: Splits = {}
        for split in SPLITS:
            rows = tables.get(split)
            splits[split] = None if rows is None else limit_rows(split, rows, getattr(options, f"{split}_items"))
        return splits

    def stop_strings(self, options: TaskOptions) -> tuple[str, ...]:
        """The strings that end a completion: those of `options`, or of the task, or of the `reference` profile.
        Raises `SVFError` for an empty one."""
        if options.stop_strings is not None:
            if "" in options.stop_strings:
                raise SVFError("stop_strings must not contain an empty string, which matches everywhere: remove it")
            return tuple(options.stop_strings)
        return REFERENCE_STOP if options.profile == "reference" else self.stop


def graded_by(reward: str) -> Callable[[TaskOptions], tuple[RewardSpec, ...]]:
    """`Task.rewards` of a task that always has this one reward."""
    return lambda options: ({"name": reward},)


def load_tasks() -> dict[str, Task]:
    """Every `TASK` of the modules in this folder, by name."""
    modules = [
        importlib.import_module(f"{__package__}.{module.name}")
        for module in pkgutil.iter_modules([str(Path(__file__).parent)])
    ]
    return {module.TASK.name: module.TASK for module in modules if hasattr(module, "TASK")}


def not_read(task: Task, given: Collection[str]) -> list[str]:
    """Which of the options that are `given` other tasks read, and this one does not."""
    others = frozenset[str]().union(*(other.reads for other in load_tasks().values()))
    return sorted((others - task.reads).intersection(given))


def find_task(name: str) -> Task:
    """The task of that name. Raises `SVFError` when there is none."""
    tasks = load_tasks()
    if name not in tasks:
        raise SVFError(f"unknown task {name!r}: use one of {', '.join(sorted(tasks))}")
    return tasks[name]


def chat(question: str, system_prompt: str | None, beginning: str = "") -> list[dict[str, str]]:
    """`question` as a conversation: after the system prompt, and before the beginning of an answer, if there are."""
    turns = {"system": system_prompt or "", "user": question, "assistant": beginning}
    return [{"role": role, "content": text} for role, text in turns.items() if text or role == "user"]


def limit_rows(split: str, rows: "Dataset", items: int | None) -> "Dataset":
    """The first `items` rows, or all for `None`. Raises `SVFError` when there are none."""
    check_items(split, items)
    if len(rows) == 0:
        raise SVFError(f"the {split} split has no rows: give it some, or leave the split out")
    return rows if items is None else rows.select(range(min(items, len(rows))))


def check_items(split: str, items: int | None) -> None:
    """Raises `SVFError` where fewer rows than one are asked for."""
    if items is not None and items < 1:
        raise SVFError(f"{split}_items must be at least 1, not {items}")


def check_has_columns(rows: "Dataset", wanted: Sequence[str], where: str) -> None:
    """Raises `SVFError`, listing the existing columns, unless `rows` has all the wanted ones."""
    for name in wanted:
        if name not in rows.column_names:
            raise SVFError(f"{where} has no column {name!r}; it has: {', '.join(rows.column_names) or 'none'}")


def check_texts(rows: "Dataset", wanted: Sequence[str], where: str) -> None:
    """Raises `SVFError` unless `rows` has all the wanted columns, and text in each of their cells."""
    check_has_columns(rows, wanted, where)
    for name in wanted:
        for number, value in enumerate(rows[name]):
            check_text(value, f"{where}, row {number}: {name}")


def check_text(value: Any, where: str) -> str:
    """`value`. Raises `SVFError`, which begins with `where`, unless it is text and not blank."""
    if not isinstance(value, str) or not value.strip():
        raise SVFError(f"{where} must be text, not {short_repr(value)}")
    return value
