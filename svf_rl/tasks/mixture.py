"""Task `mixture`: several tasks at once, in given proportions, each row graded as its own task's.

    task: mixture
    mixture: {gsm8k: 2, mbpp: 1}

- data: each task reads its own, from the Hub or from `data_dir`; `quickstart:choice` means that skill, and
  `reasoning_gym:word_sorting` that data set, whose settings are in `config: {word_sorting: {...}}`
- split: in each of the three splits, rows of the tasks in proportion to the weights, none twice, as many as there are
  until a task that is next in turn has no more. Which rows of a task: its own rows in a fixed random order. Tasks take
  turns, so that the first rows of a split hold all of them in proportion
- answer: `answer`, as JSON where the task's is a mapping, with `task` and `verifier`; graded by `verified`,
  with the partial scores of data sets of reasoning-gym
- target: that of the task; none where it has none
- parts: any task with data and a verifier of its own; `dispatch` without `classes`
- metric: accuracy, and that of each task

A mixture has no stop strings: one that ends a program would cut off a worked solution that quotes code. (A completion
may then continue after its program; the grading of programs reads the first block.)
"""

import json
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

from datasets import Dataset

from svf_rl.errors import SVFError
from svf_rl.tasks.options import TaskOptions
from svf_rl.tasks.parts import check_config, find_part
from svf_rl.tasks.task import SPLITS, TRAINING_COLUMNS, RewardSpec, Splits, Task

ORDER_SEED = 0


def read(options: TaskOptions) -> Splits:
    """`prompt`, `answer`, `target`, `task`, `verifier`."""
    weights = _weights(options)
    tables: dict[str, dict[str, list[dict[str, Any]]]] = {split: {} for split in SPLITS}
    for name in weights:
        task, own = find_part(name, options, "mixture")
        spec = task.rewards(own)[0]
        spec = {"name": spec} if isinstance(spec, str) else spec
        verifier, column = str(spec["name"]), str(spec.get("column", "answer"))
        for split, rows in task.load(own).items():
            if rows is None:
                raise SVFError(f"task {name} has no {split} rows: leave it out of the mixture")
            tables[split][name] = [_graded(row, name, verifier, column) for row in rows.shuffle(seed=ORDER_SEED)]
    return {split: Dataset.from_list(list(_in_turn(parts, weights))) for split, parts in tables.items()}


def _weights(options: TaskOptions) -> dict[str, Fraction]:
    if not options.mixture:
        raise SVFError("task mixture needs the tasks and their weights, as in mixture: {gsm8k: 2, mbpp: 1}")
    if options.data_path is not None or options.dataset_name is not None:
        raise SVFError("a mixture reads the data of several tasks: give data_dir instead of data_path or dataset_name")
    if options.curriculum is not None:
        raise SVFError("curriculum is for one data set of reasoning_gym: leave it out of a mixture")
    if options.classes is not None and any(str(name).partition(":")[0] == "dispatch" for name in options.mixture):
        raise SVFError(
            "mixture: dispatch with classes cannot be a part of it, which grades by code, math, reasoning and other: "
            "train it alone with task: dispatch, or leave classes out"
        )
    for name, weight in options.mixture.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
            raise SVFError(f"mixture: the weight of {name} must be a number above 0, not {weight!r}")
    check_config(options.mixture, options, "mixture")
    exact = {str(name): Fraction(weight) for name, weight in options.mixture.items()}
    return {name: weight.limit_denominator(10**6) or weight for name, weight in exact.items()}


def _graded(row: dict[str, Any], name: str, verifier: str, column: str) -> dict[str, Any]:
    answer = json.dumps(row[column]) if isinstance(row[column], dict) else row[column]
    return {"prompt": row["prompt"], "answer": answer, "target": row.get("target"), "task": name, "verifier": verifier}


def _in_turn(tables: dict[str, list[dict[str, Any]]], weights: dict[str, Fraction]) -> Iterator[dict[str, Any]]:
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
    return all(task.is_local(own) for task, own in (find_part(name, options, "mixture") for name in _weights(options)))


def rewards(options: TaskOptions) -> tuple[RewardSpec, ...]:
    """`verified`, with partial scores where a part has them."""
    parts = (find_part(str(name), options, "mixture") for name in options.mixture or {})
    specs = [spec for task, own in parts for spec in task.rewards(own)]
    partial = any(isinstance(spec, Mapping) and spec.get("partial") is True for spec in specs)
    return ({"name": "verified", "partial": True} if partial else {"name": "verified"},)


COLUMNS = TRAINING_COLUMNS | {"task", "verifier"}
READS = frozenset({"mixture", "config", "skill", "wording"})
TASK = Task("mixture", read, rewards, is_local, columns=COLUMNS, max_tokens=1024, reads_shots=True, reads=READS)
