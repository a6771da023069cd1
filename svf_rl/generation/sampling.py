"""What a rollout is asked for and what it gives back, whatever generates it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from torch import nn


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. `temperature=0` is greedy; `top_k=0` and `top_p=1` leave the distribution whole. The first
    of the strings `stop` to appear ends a completion, like an end-of-sequence token."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    logprobs: bool = True  # whether those of the chosen tokens are wanted: in vLLM they take a third of the time
    extra: dict[str, Any] = field(default_factory=dict)  # passed on to the generator as it is

    def greedy(self) -> "Sampling":
        """The same request, decoded greedily."""
        return replace(self, temperature=0.0, top_p=1.0, top_k=0, min_p=0.0)

    def vllm_settings(self, seed: int) -> dict[str, Any]:
        """By vLLM's names, which its engine and its servers share; `extra` is left to them."""
        settings = {
            "seed": seed,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "stop": list(self.stop),
        }
        return {**settings, "logprobs": 0} if self.logprobs else settings  # 0: of the chosen token alone


@dataclass(frozen=True)
class Completion:
    """Tokens as the generator chose them, the end-of-sequence token or stop string included, and their
    log-probabilities where the generator knows them: under the distribution it sampled from, and for greedy tokens
    under that of temperature 1, so that they add up to what `CompletionGenerator.loglikelihood` gives. `finished` says
    whether the completion ended by itself, by either of these, or was cut off for its length."""

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
    """Whether it has lost its weights (sleep), so that it needs a `sync` before it can generate again."""

    def generate(
        self, prompts: Sequence[list[int]], sampling: Sampling, seeds: Sequence[int], progress: bool = False
    ) -> list[Completion]:
        """One completion a prompt, in order. `seeds` holds one seed a completion."""

    def loglikelihood(self, prompts: Sequence[list[int]], continuations: Sequence[list[int]]) -> list[list[float]]:
        """
        How likely the model holds each continuation to be after its prompt.

        Args:
            prompts (`Sequence[list[int]]`), continuations (`Sequence[list[int]]`): token ids, one continuation a
                prompt. An end-of-sequence token is a token like any other: name it where it is to count.

        Returns:
            `list[list[float]]`: log p of each token of each continuation, in nats, in order; at temperature 1 and
            under the whole distribution.

        Raises:
            SVFError: a prompt or continuation without tokens, or more tokens than fit.
        """

    def sync(self, model: nn.Module, everything: bool = False) -> SyncReport:
        """Generate from the weights of `model` from now on; `everything` pushes the frozen weights too."""


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """`text` up to the first stop string in it: what counts as the answer."""
    ends = [place for string in stop if (place := text.find(string)) >= 0]
    return text[: min(ends)] if ends else text


def sample_seed(run_seed: int, purpose: str, step: int, index: int) -> int:
    """The seed of one completion: a function of where it stands in the run and of nothing that happened before."""
    digest = hashlib.sha256(f"{run_seed}/{purpose}/{step}/{index}".encode()).digest()
    return int.from_bytes(digest[:4], "little") >> 1  # below 2³¹, which every generator accepts
