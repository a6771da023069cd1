"""Tasks by name, `gsm8k`, `quickstart:choice`, `reasoning_gym:word_sorting`, alone and as parts of another."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from svf_rl.errors import SVFError
from svf_rl.rewards.reward import nearest
from svf_rl.tasks.options import TaskOptions
from svf_rl.tasks.task import Task, find_task


def find_named_task(name: str, options: TaskOptions) -> tuple[Task, TaskOptions]:
    """The task that `name` says, with its skill (`quickstart:choice`) or data set (`reasoning_gym:word_sorting`) among
    the options. Raises `SVFError` where there is none."""
    base, colon, part = name.partition(":")
    task = find_task(base)
    if not colon:
        return task, options
    if base not in ("quickstart", "reasoning_gym"):
        raise SVFError(f"task {name!r}: only quickstart has skills, as in quickstart:choice, and reasoning_gym sets")
    return task, replace(options, skill=part) if base == "quickstart" else replace(options, dataset=part)


def check_config(parts: Collection[Any], options: TaskOptions, whole: str) -> None:
    """Raises `SVFError` where `config` has anything but the settings of data sets that are parts."""
    sets = [str(name).partition(":")[2] for name in parts if str(name).startswith("reasoning_gym:")]
    for name, settings in (options.config or {}).items():
        if name not in sets:
            raise SVFError(f"{whole}: config has {name!r}, which is no data set of its parts{nearest(str(name), sets)}")
        if not isinstance(settings, Mapping):
            raise SVFError(f"{whole}: config of {name} must be a mapping, as in {{min_words: 2}}, not {settings!r}")


def find_part(name: str, options: TaskOptions, whole: str) -> tuple[Task, TaskOptions]:
    """
    The task that a part names, and its options: those of the whole, without the limits on rows.

    Args:
        name (`str`): a task, with its skill or its data set behind a colon.
        options ([`TaskOptions`]): of the whole; `config` holds the settings of each data set of reasoning-gym by name.
        whole (`str`): the task that is made of parts, for messages.

    Raises:
        SVFError: there is no such task, or it has no data and verifier of its own.
    """
    base, _, part = name.partition(":")
    if base in ("mixture", "columns", whole):
        raise SVFError(f"{whole}: {base} cannot be a part of it, only a task that has its own data and verifier")
    config = (options.config or {}).get(part) if base == "reasoning_gym" else options.config
    own = replace(
        options, mixture=None, dataset=None, config=config, train_items=None, validation_items=None, test_items=None
    )
    return find_named_task(name, own)
