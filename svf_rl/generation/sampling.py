"""The interface of generators: the request for completions, and what comes back."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from torch import nn


@dataclass(frozen=True)
class Sampling:
    """How tokens are sampled. `temperature=0` is greedy; `top_k=0` and `top_p=1` do not truncate the distribution. The
    first of the strings `stop` to appear ends a completion, like an end-of-sequence token."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    logprobs: bool = True  # return those of the chosen tokens: in vLLM they take a third of the time
    extra: dict[str, Any] = field(default_factory=dict)  # passed to the generator unchanged

    def greedy(self) -> "Sampling":
        """The same request, decoded greedily."""
        return replace(self, temperature=0.0, top_p=1.0, top_k=0, min_p=0.0)

    def within(self, room: int) -> "Sampling":
        """The same request for at most `room` tokens."""
        return self if room >= self.max_tokens else replace(self, max_tokens=room)

    def vllm_settings(self, seed: int) -> dict[str, Any]:
        """The settings for vLLM's engine and servers, whose names the fields have; without `extra`."""
        same = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        settings = {"seed": seed, **{name: getattr(self, name) for name in same}, "stop": list(self.stop)}
        return {**settings, "logprobs": 0} if self.logprobs else settings  # 0: only of the chosen token


@dataclass(frozen=True)
class Completion:
    """The chosen tokens, including the end-of-sequence token or stop string, and their log-probabilities where the
    generator knows them: under the distribution it sampled from, and for greedy tokens under that of temperature 1, so
    that their sum is what `CompletionGenerator.loglikelihood` returns. `finished`: the completion ended with one of
    these, and was not cut off at its maximum length."""

    token_ids: list[int]
    logprobs: list[float] | None
    finished: bool


@dataclass(frozen=True)
class SyncReport:
    """What one weight sync moved."""

    tensors: int = 0
    bytes: int = 0


class CompletionGenerator(Protocol):
    """A generator of completions."""

    stale: bool
    """Whether it has lost its weights (sleep mode) and needs a `sync` before it can generate again."""

    def generate(
        self, prompts: Sequence[list[int]], sampling: Sampling, seeds: Sequence[int], progress: bool = False
    ) -> list[Completion]:
        """One completion for each prompt, in order. `seeds` has one seed for each completion."""

    def loglikelihood(self, prompts: Sequence[list[int]], continuations: Sequence[list[int]]) -> list[list[float]]:
        """
        The log-likelihood of each continuation after its prompt.

        Args:
            prompts (`Sequence[list[int]]`), continuations (`Sequence[list[int]]`): token ids, one continuation per
                prompt. An end-of-sequence token is a token like any other: include it where it should count.

        Returns:
            `list[list[float]]`: log p of each token of each continuation, in nats, in order; at temperature 1 and
            under the untruncated distribution.

        Raises:
            SVFError: a prompt or continuation without tokens, or more tokens than fit.
        """

    def sync(self, model: nn.Module, everything: bool = False) -> SyncReport:
        """Generate from the weights of `model` from now on; `everything` pushes the frozen weights too."""


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """`text` up to its first stop string: this part counts as the answer."""
    ends = [place for string in stop if (place := text.find(string)) >= 0]
    return text[: min(ends)] if ends else text


def sample_seed(run_seed: int, purpose: str, step: int, index: int, turn: int = 0) -> int:
    """The seed of one completion, or of a later `turn` of one: it depends on the completion's place in the run and on
    nothing that happened before."""
    place = f"{run_seed}/{purpose}/{step}/{index}" + (f"/{turn}" if turn else "")
    digest = hashlib.sha256(place.encode()).digest()
    return int.from_bytes(digest[:4], "little") >> 1  # below 2³¹, which every generator accepts
