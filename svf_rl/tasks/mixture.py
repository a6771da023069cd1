"""Task `mixture`: several tasks at once, in given proportions, each row graded as its own task's.

    task: mixture
    mixture: {gsm8k: 2, mbpp: 1}

- data: each task reads its own, from the Hub or from `data_dir`; `quickstart:choice` means that skill
- split: in each of the three splits, rows of the tasks in proportion to the weights, none twice, as many as there are
  until a task that is next in turn has no more. Which rows of a task: its own rows in a fixed random order. Tasks take
  turns, so that the first rows of a split hold all of them in proportion
- answer: `answer`, as JSON where the task's is a mapping, with `task` and `verifier`; graded by `verified`
- target: that of the task; none where it has none
- metric: accuracy, and that of each task

A mixture has no stop strings: one that ends a program would cut off a worked solution that quotes code. (A completion
may then continue after its program; the grading of programs reads the first block.)
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

from datasets import Dataset

from svf_rl.errors import SVFError
from svf_rl.tasks.benchmark import from_rows
from svf_rl.tasks.options import TaskOptions
from svf_rl.tasks.task import Splits, Task, find_task, graded_by, limit_rows

ORDER_SEED = 0
COLUMNS = frozenset({"prompt", "answer", "target", "task", "verifier"})


def load(options: TaskOptions) -> Splits:
    """`prompt`, `answer`, `target`, `task`, `verifier`."""
    weights = _weights(options)
    tables: dict[str, dict[str, Dataset]] = {split: {} for split in ("train", "validation", "test")}
    for name in weights:
        task, own = _part(name, options)
        spec = task.rewards(own)[0]
        verifier = spec if isinstance(spec, str) else str(spec["name"])
        for split, rows in task.load(own).items():
            if rows is None:
                raise SVFError(f"task {name} has no {split} rows: leave it out of the mixture")
            tables[split][name] = _graded(rows.shuffle(seed=ORDER_SEED), name, verifier)
    items = {"train": options.train_items, "validation": options.validation_items, "test": options.test_items}
    return {split: limit_rows(split, from_rows(_in_turn(tables[split], weights)), items[split]) for split in tables}


def _weights(options: TaskOptions) -> dict[str, Fraction]:
    if not options.mixture:
        raise SVFError("task mixture needs the tasks and their weights, as in mixture: {gsm8k: 2, mbpp: 1}")
    if options.data_path is not None or options.dataset_name is not None:
        raise SVFError("a mixture reads the data of several tasks: give data_dir instead of data_path or dataset_name")
    for name, weight in options.mixture.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
            raise SVFError(f"mixture: the weight of {name} must be a number above 0, not {weight!r}")
    return {str(name): Fraction(weight).limit_denominator(10**6) for name, weight in options.mixture.items()}


def _part(name: str, options: TaskOptions) -> tuple[Task, TaskOptions]:
    """The task, and its options: those of the mixture, without the limits on rows."""
    base, _, skill = name.partition(":")
    if base in ("mixture", "columns"):
        raise SVFError(f"mixture: {base} cannot be a part of a mixture, only a task that has its own data and verifier")
    own = replace(options, mixture=None, train_items=None, validation_items=None, test_items=None)
    return find_task(base), replace(own, skill=skill) if skill else own


def _graded(rows: Dataset, name: str, verifier: str) -> Dataset:
    answers = [json.dumps(answer) if isinstance(answer, dict) else answer for answer in rows["answer"]]
    targets = rows["target"][:] if "target" in rows.column_names else [None] * len(rows)
    columns = {"prompt": rows["prompt"][:], "answer": answers, "target": targets}
    return Dataset.from_dict({**columns, "task": [name] * len(rows), "verifier": [verifier] * len(rows)})


def _in_turn(tables: dict[str, Dataset], weights: dict[str, Fraction]) -> Iterator[dict[str, Any]]:
    """Each next row comes from the task that is furthest behind its share; ends when that task has no more rows."""
    taken = dict.fromkeys(tables, 0)
    while True:
        name = min(tables, key=lambda task: (taken[task] + 1) / weights[task])
        if taken[name] == len(tables[name]):
            return
        yield tables[name][taken[name]]
        taken[name] += 1


def is_local(options: TaskOptions) -> bool:
    """Whether the rows of all tasks are local."""
    parts = [_part(name, options) for name in _weights(options)]
    return all(task.is_local(own) for task, own in parts)


TASK = Task("mixture", load, graded_by("verified"), is_local, columns=COLUMNS, max_tokens=1024)
