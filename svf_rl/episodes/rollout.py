"""Completions as the loss, the rewards and the metrics take them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from trl.trainer.utils import pad

from svf_rl.generation import Completion, cut_at_stop

Answer = str | list[dict[str, Any]]
"""A completion as rewards take it: text, or where the prompt is a conversation the assistant's message, or all messages
of an episode with tools."""


@dataclass
class EpisodeCounts:
    """Of the `episodes` of one process: calls of tools, those that failed, those of them that did not end in time, and
    episodes that outgrew the context."""

    episodes: int = 0
    calls: int = 0
    failures: int = 0
    timeouts: int = 0
    outgrown: int = 0


@dataclass(frozen=True)
class Rollout:
    """
    `B` prompts of one process with a completion each.

    Args:
        prompts (`list`): As the rows have them: texts or conversations.
        prompt_ids, completion_ids (`list[list[int]]`): Their tokens.
        completions (`list[Answer]`): The completions as rewards take them, what follows a stop string included.
        finished (`list[bool]`): Whether a completion ended by itself, or was cut off.
        logprobs (`list[list[float]]`, *optional*): Log-probabilities of the tokens under the generator.
        tool_masks (`list[list[int]]`, *optional*): For each token 1, or 0 where a tool or an environment wrote it.
        extra (`dict[str, list]`, *optional*): What a `rollout_func` gave for the rewards, one value a prompt.
        counts ([`EpisodeCounts`], *optional*): What the episodes with tools or environments came to.
    """

    prompts: list[Any]
    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    completions: list[Answer]
    finished: list[bool]
    logprobs: list[list[float]] | None = None
    tool_masks: list[list[int]] | None = None
    extra: dict[str, list[Any]] = field(default_factory=dict)
    counts: EpisodeCounts | None = None

    @property
    def lengths(self) -> list[int]:
        """Tokens of each completion that the model wrote."""
        if self.tool_masks is None:
            return [len(ids) for ids in self.completion_ids]
        return [sum(mask) for mask in self.tool_masks]

    @classmethod
    def of(
        cls,
        prompts: list[Any],
        prompt_ids: list[list[int]],
        completions: Sequence[Completion],
        tokenizer: PreTrainedTokenizerBase,
    ) -> "Rollout":
        """From what a generator gave for `prompt_ids`."""
        ids = [completion.token_ids for completion in completions]
        answers: list[Answer] = tokenizer.batch_decode(ids, skip_special_tokens=True)
        if not isinstance(prompts[0], str):
            answers = [[{"role": "assistant", "content": text}] for text in answers]
        finished = [completion.finished for completion in completions]
        logprobs = [completion.logprobs for completion in completions if completion.logprobs is not None]
        return cls(prompts, prompt_ids, ids, answers, finished, logprobs if len(logprobs) == len(ids) else None)

    def tensors(self, pad_token_id: int, device: torch.device, multiple_of: int | None = None) -> dict[str, Tensor]:
        """`prompt_ids` and `prompt_mask` (B, P), padded on the left, `completion_ids` and `completion_mask` (B, T), on
        the right, and where there are any `tool_mask` and `sampling_per_token_logps` (B, T), NaN where the generator
        knows none."""

        def padded(rows: Sequence[Sequence[Any]], value: int, side: str, dtype: torch.dtype = torch.long) -> Tensor:
            return pad([torch.tensor(row, dtype=dtype) for row in rows], value, side, multiple_of).to(device)

        tensors = {
            "prompt_ids": padded(self.prompt_ids, pad_token_id, "left"),
            "prompt_mask": padded([[1] * len(ids) for ids in self.prompt_ids], 0, "left"),
            "completion_ids": padded(self.completion_ids, pad_token_id, "right"),
            "completion_mask": padded([[1] * len(ids) for ids in self.completion_ids], 0, "right"),
        }
        if self.tool_masks is not None:
            tensors["tool_mask"] = padded(self.tool_masks, 0, "right")
        if self.logprobs is not None:
            tensors["sampling_per_token_logps"] = padded(self.logprobs, 0, "right", torch.float)
        return tensors


def before_stop(completion: Answer, stop: Sequence[str]) -> Answer:
    """`completion` up to the first stop string in it."""
    if isinstance(completion, str):
        return cut_at_stop(completion, stop)
    return [
        {**message, "content": cut_at_stop(message.get("content") or "", stop)}
        if message["role"] == "assistant"
        else message
        for message in completion
    ]
