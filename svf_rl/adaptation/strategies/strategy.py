"""What a strategy of dispatch is, and where they are found."""

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from svf_rl.errors import SVFError
from svf_rl.generation import Completion, Sampling


class Scorer(Protocol):
    """What completes prompts and scores continuations, with the weights it has."""

    def generate(self, prompts: Sequence[list[int]], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        """One completion a prompt, in order."""

    def loglikelihood(self, prompts: Sequence[list[int]], continuations: Sequence[list[int]]) -> list[list[float]]:
        """Log p of each token of each continuation."""


@dataclass(frozen=True)
class Classified:
    """
    What the classifier says of a prompt.

    Args:
        label (`str` or `None`): `code`, `math`, `reasoning` or `other`; `None` where its text names none of them.
        text (`str`): what it wrote; empty where it writes nothing.
        logprobs (`dict[str, float]` or `None`): log p of each class, where the strategy knows it; the p add up to 1.
    """

    label: str | None
    text: str = ""
    logprobs: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Strategy:
    """
    Args:
        name (`str`): as `--method` takes it.
        classify (`Callable`): from a scorer with the classifier's weights, prompts (token ids), the tokenizer and
            `max_tokens` of what the classifier may write to the [`Classified`] of each prompt, in order.
        count_tokens (`Callable`): how many tokens a prompt must leave room for, from the tokenizer and `max_tokens`.
    """

    name: str
    classify: Callable[[Scorer, Sequence[list[int]], PreTrainedTokenizerBase, int], list[Classified]]
    count_tokens: Callable[[PreTrainedTokenizerBase, int], int]


def find_strategy(name: str) -> Strategy:
    """The strategy of that name. Raises `SVFError` when there is none."""
    files = [found.name for found in pkgutil.iter_modules([str(Path(__file__).parent)])]
    modules = [importlib.import_module(f"svf_rl.adaptation.strategies.{file}") for file in files]
    strategies = {module.STRATEGY.name: module.STRATEGY for module in modules if hasattr(module, "STRATEGY")}
    if name not in strategies:
        raise SVFError(f"unknown method {name!r}: use {' or '.join(sorted(strategies))}")
    return strategies[name]
