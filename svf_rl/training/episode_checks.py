"""Tools and environments that a trainer is given, refused by name where they cannot be used."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from datasets import Dataset

from svf_rl.episodes.environments import check_environment_names
from svf_rl.errors import SVFError, one_line
from svf_rl.settings.episodes import check_named_once, check_tool

if TYPE_CHECKING:
    from svf_rl.training.trainer import SVFReinforceTrainer


def check_functions(tools: Any, rollout_func: Any) -> None:
    """Raises `SVFError` for what is no function, and for two tools of the same name."""
    if rollout_func is not None and not callable(rollout_func):
        raise SVFError(f"rollout_func is a {type(rollout_func).__name__}: give a function")
    if tools is not None and not isinstance(tools, list | tuple):
        raise SVFError(f"tools is a {type(tools).__name__}: give a list of functions")
    for tool in tools or ():
        if not callable(tool) or not hasattr(tool, "__name__"):
            raise SVFError(f"tools has {tool!r:.60}: give functions")
    check_named_once(tools or ())


@contextmanager
def one_line_of_trl(given: bool) -> Iterator[None]:
    """What TRL's constructor says of tools and environments that were `given`, as one `SVFError`, and without its
    warnings that they are experimental."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You are using '(rollout_func|environment_factory)'")
        try:
            yield
        except SVFError:
            raise
        except (ValueError, TypeError, ImportError) as error:
            if not given:
                raise
            raise SVFError(one_line(error)) from error


def check_episodes(trainer: "SVFReinforceTrainer") -> None:
    """Raises `SVFError` where the model cannot be told of a tool, or rows do not fit tools and environments."""
    for tool in trainer.tools:
        check_tool(tool)
    if not trainer.tools and trainer.environment_factories is None:
        return
    held_out = trainer.eval_dataset if isinstance(trainer.eval_dataset, dict) else {"": trainer.eval_dataset}
    for name, rows in {"train_dataset": trainer.train_dataset, **held_out}.items():
        if isinstance(rows, Dataset):
            _check_rows(trainer, "train_dataset" if name == "train_dataset" else "eval_dataset", rows)


def _check_rows(trainer: "SVFReinforceTrainer", name: str, rows: Dataset) -> None:
    if "prompt" in rows.column_names and len(rows) and isinstance(rows[0]["prompt"], str):
        raise SVFError(f"{name}: tools and environments need conversations as prompts: give messages in place of texts")
    if trainer._multi_environment:
        check_environment_names(name, rows, trainer.environment_factories, "environment_factory")
