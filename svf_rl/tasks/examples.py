"""Worked examples in the prompts of a task."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from svf_rl.errors import SVFError

if TYPE_CHECKING:
    from datasets import Dataset

Turns = list[dict[str, str]]


def with_examples(splits: Mapping[str, "Dataset | None"], shots: int, task: str) -> dict[str, "Dataset | None"]:
    """
    `splits` with the first `shots` training rows as turns before each question, behind the system message. They leave
    the training rows. What the assistant says in them is the row's `target`, or else its `answer`.

    Raises:
        SVFError: there are no training rows, too few of them, or one has no answer as text.
    """
    train = splits.get("train")
    if shots < 0 or train is None or len(train) <= shots:
        there = "no training rows" if train is None else f"{len(train)} training rows"
        raise SVFError(
            f"shots must be at least 0 and leave some of the training rows, not {shots}: task {task} has {there}"
        )
    turns: Turns = []
    for row in train.select(range(shots)):
        turns += _example(row, task)
    splits = {**splits, "train": train.select(range(shots, len(train)))}
    return {name: None if rows is None else _before_questions(rows, turns) for name, rows in splits.items()}


def _example(row: Mapping[str, Any], task: str) -> Turns:
    answer = next((row[key] for key in ("target", "answer") if isinstance(row.get(key), str) and row[key]), None)
    if answer is None:
        raise SVFError(f"shots: a training row of task {task} has no answer as text: leave shots out")
    question = _without_system(row["prompt"])
    if not question:
        raise SVFError(f"shots: a training row of task {task} has no question: leave shots out")
    *turns, last = question
    if last["role"] == "assistant":  # the beginning of the answer
        return [*turns, {"role": "assistant", "content": last["content"] + answer}]
    return [*turns, last, {"role": "assistant", "content": answer}]


def _before_questions(rows: "Dataset", turns: Turns) -> "Dataset":
    prompts = []
    for prompt in rows["prompt"]:
        question = _without_system(prompt)
        prompts.append([*prompt[: len(prompt) - len(question)], *turns, *question])
    return rows.remove_columns("prompt").add_column("prompt", prompts)


def _without_system(prompt: Sequence[dict[str, str]]) -> Turns:
    return list(prompt[1:] if prompt[0]["role"] == "system" else prompt)
