"""The items of a task: what is asked, and how answers are graded."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from svf_rl.episodes.environments import check_environment_names
from svf_rl.episodes.toolbox import Toolbox
from svf_rl.errors import SVFError
from svf_rl.evaluation.arguments import EvaluationArguments
from svf_rl.evaluation.grading import EnvironmentGrader, Grader
from svf_rl.generation import Sampling
from svf_rl.generation.prompts import render_prompt
from svf_rl.quickstart.tool_skill import TOOLS
from svf_rl.tasks import Task, TaskOptions
from svf_rl.tasks.columns import read_rows
from svf_rl.tasks.files import kind_of_path
from svf_rl.tasks.parts import find_named_task
from svf_rl.tasks.task import limit_rows

Key = tuple[int, int]
"""An item and a sample of it."""


@dataclass(frozen=True)
class TaskItems:
    """A task made ready: its rows, what the model reads for each, and who grades."""

    name: str
    rows: list[dict[str, Any]]
    prompts: list[str]
    prompt_ids: list[list[int]]
    grader: Grader
    sampling: Sampling
    metric: str
    toolbox: Toolbox | None = None
    """What the model may call and act in."""

    @property
    def file(self) -> str:
        """Its name among files."""
        return self.name.replace(":", "-")

    def only(self, rows: Sequence[int]) -> "TaskItems":
        """The items of these rows."""
        kept: dict[str, Any] = {
            name: [getattr(self, name)[row] for row in rows] for name in ("rows", "prompts", "prompt_ids")
        }
        return replace(self, **kept)


def load_items(
    name: str,
    arguments: EvaluationArguments,
    tokenizer: PreTrainedTokenizerBase,
    splits: Sequence[str] = ("test",),
    toolbox: Toolbox | None = None,
) -> TaskItems:
    """
    The first `limit` rows of a task as prompts, and a grader that has accepted all their answers. They are of the first
    of the `splits` that the task has. With a `toolbox` prompts list its tools, and an environment's `get_reward` grades
    where no reward is given.

    Raises:
        SVFError: no such task or data, none of these splits, or an answer that nothing could match.
    """
    task, options = find_named_task(name, arguments.options)
    if task.name == "quickstart" and options.skill == TOOLS.name and toolbox is None:
        raise SVFError(
            "task quickstart:tools takes a calculator: svf-rl eval quickstart-tools --tools "
            "svf_rl.quickstart.tool_skill:calc gives it one"
        )
    grader = _grader(task, options, arguments, toolbox)
    rows = _rows(task, options, arguments.limit, splits)
    grader.check(rows, name)
    templates = [arguments.chat_template_kwargs] * len(rows)
    if toolbox is not None:
        if toolbox.several:
            check_environment_names(f"task {name}", rows, toolbox.factories or {}, "--environment")
        templates = [toolbox.template_of(own) for own in toolbox.names(rows)]
    prompts = [render_prompt(tokenizer, prompt, **own) for prompt, own in zip(rows["prompt"], templates, strict=True)]
    return TaskItems(
        name=name,
        rows=rows.to_list(),
        prompts=prompts,
        prompt_ids=tokenizer(prompts, add_special_tokens=False)["input_ids"],
        grader=grader,
        sampling=Sampling(
            max_tokens=arguments.max_tokens or task.max_tokens,
            temperature=arguments.temperature or 0.0,
            top_p=arguments.top_p,
            stop=task.stop_strings(options),
            logprobs=False,
        ),
        metric=task.metric,
        toolbox=toolbox,
    )


def _grader(task: Task, options: TaskOptions, arguments: EvaluationArguments, toolbox: Toolbox | None) -> Grader:
    if arguments.reward is None and toolbox is not None and toolbox.rewards:
        return EnvironmentGrader()
    specs = task.rewards(options) if arguments.reward is None else (arguments.reward,)
    return Grader(specs[0], arguments.max_failed)


def _rows(task: Task, options: TaskOptions, limit: int | None, splits: Sequence[str]) -> Dataset:
    if task.name == "columns" and options.data_path is not None and kind_of_path(Path(options.data_path)) == "file":
        if options.shots:
            raise SVFError("shots are training rows, and one file has none: give a folder with a train file")
        return limit_rows(splits[0], read_rows(options), limit)  # one file is evaluated whole
    there = task.load(options)
    for split in splits:
        rows = there[split]
        if rows is not None:
            return limit_rows(split, rows, limit)
    last = splits[-1]
    raise SVFError(f"task {task.name} has no {last} rows here: add a {last} file, or give one file as --data-path")


def check_lengths(tasks: Sequence[TaskItems], limit: int | None) -> int:
    """The longest prompt with its completion, in tokens, as far as the model reaches."""
    return max(room(f"task {t.name}, item", t.prompt_ids, t.sampling.max_tokens, limit) for t in tasks)


def room(what: str, prompts: Sequence[list[int]], max_tokens: int, limit: int | None) -> int:
    """Tokens that the longest prompt takes with `max_tokens` more, as far as the model reaches. Raises `SVFError` for a
    prompt that leaves no room for any."""
    for index, ids in enumerate(prompts):
        if limit is not None and len(ids) >= limit:
            raise SVFError(
                f"{what} {index}: the prompt has {len(ids)} tokens, and the model takes {limit}, completion included: "
                "use a model with a longer context"
            )
    length = max(map(len, prompts)) + max_tokens
    return length if limit is None else min(length, limit)
