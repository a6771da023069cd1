"""How the first pass of dispatch finds the class of a prompt: one file a strategy, found by its name.

To add one, copy `loglikelihood.py` and give its `STRATEGY` a new name.
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from svf_rl.errors import SVFError
from svf_rl.experts.pool import ExpertPool


@dataclass(frozen=True)
class Classified:
    """What the classifier says of a prompt."""

    label: str | None  # one of the classes, such as `code` or `other`; `None` where its text names none of them
    text: str = ""  # what it wrote; empty where it writes nothing
    logprobs: Mapping[str, float] | None = None  # log p of each class, where the strategy knows it; the p add up to 1


@dataclass(frozen=True)
class Strategy:
    """
    Args:
        name (`str`): as `--method` takes it.
        classify (`Callable`): from a pool that uses the classifier, prompts (token ids), the tokenizer, `max_tokens` of
            what the classifier may write and the classes to the [`Classified`] of each prompt, in order.
        count_tokens (`Callable`): how many tokens a prompt must leave room for, from the tokenizer, `max_tokens` and
            the classes.
    """

    name: str
    classify: Callable[[ExpertPool, Sequence[list[int]], PreTrainedTokenizerBase, int, Sequence[str]], list[Classified]]
    count_tokens: Callable[[PreTrainedTokenizerBase, int, Sequence[str]], int]


def find_strategy(name: str) -> Strategy:
    """The strategy of that name. Raises `SVFError` when there is none."""
    files = [importlib.import_module(f"{__name__}.{file.name}") for file in pkgutil.iter_modules(__path__)]
    strategies: dict[str, Strategy] = {file.STRATEGY.name: file.STRATEGY for file in files}
    if name not in strategies:
        raise SVFError(f"unknown method {name!r}: use {' or '.join(sorted(strategies))}")
    return strategies[name]
