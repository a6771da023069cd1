"""Rollouts from the model in training itself, through transformers' `generate`: slower than vLLM, nothing to sync."""

from bisect import bisect_left
from collections.abc import Sequence

import torch
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from svf_rl.errors import SVFError
from svf_rl.generation.sampling import Completion, Sampling, SyncReport


class TransformersRollouts:
    """
    Args:
        model (`PreTrainedModel` or `PeftModel`): The model in training.
        eos_token_ids (`list[int]`): Tokens that end a completion.
        pad_token_id (`int`): Token to fill up shorter prompts with.
        batch_size (`int`, *optional*, defaults to 64): Prompts decoded together.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): Needed for stop strings.
    """

    stale = False

    def __init__(
        self,
        model: nn.Module,
        *,
        eos_token_ids: list[int],
        pad_token_id: int,
        batch_size: int = 64,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ):
        self._model, self._eos, self._pad, self._batch_size = model, eos_token_ids, pad_token_id, batch_size
        self._tokenizer = tokenizer

    def generate(
        self, prompts: Sequence[list[int]], sampling: Sampling, seeds: Sequence[int], progress: bool = False
    ) -> list[Completion]:
        if sampling.stop and self._tokenizer is None:
            raise SVFError("stop strings need a tokenizer: build TransformersRollouts with tokenizer=")
        was_training = self._model.training
        self._model.eval()
        completions: list[Completion] = []
        try:
            for start in tqdm(range(0, len(prompts), self._batch_size), desc="Completions", disable=not progress):
                batch = slice(start, start + self._batch_size)
                completions += self._batch(prompts[batch], sampling, seeds[start])
        finally:
            self._model.train(was_training)
        return completions

    def sync(self, model: nn.Module, everything: bool = False) -> SyncReport:
        self._model = model
        return SyncReport()

    @torch.no_grad()
    def _batch(self, prompts: Sequence[list[int]], sampling: Sampling, seed: int) -> list[Completion]:
        """`generate` draws a whole batch from the process's generator, so a batch has one seed, its first sample's."""
        width = max(map(len, prompts))
        device = next(self._model.parameters()).device
        ids = torch.tensor([[self._pad] * (width - len(p)) + list(p) for p in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        draw = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
        }
        stop = {"stop_strings": list(sampling.stop), "tokenizer": self._tokenizer} if sampling.stop else {}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            output = self._model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=sampling.max_tokens,
                do_sample=sampling.temperature > 0,
                repetition_penalty=sampling.repetition_penalty,
                eos_token_id=self._eos,
                pad_token_id=self._pad,
                use_cache=True,
                **(draw if sampling.temperature > 0 else {}),
                **stop,
                **sampling.extra,
            )
        return [self._completion(row, sampling.stop) for row in output[:, width:].tolist()]

    def _completion(self, row: list[int], stop: tuple[str, ...]) -> Completion:
        """A row of `generate`, which goes on with padding where other rows of the batch were not at their end."""
        ends = [i + 1 for i, token in enumerate(row) if token in self._eos][:1]
        ends += self._stop_ends(row, stop)
        return Completion(row[: min(ends)] if ends else row, None, bool(ends))

    def _stop_ends(self, row: list[int], stop: tuple[str, ...]) -> list[int]:
        """How many tokens it took until the text first held a stop string; empty where it never does."""

        def holds(count: int) -> bool:
            assert self._tokenizer is not None
            text = self._tokenizer.decode(row[:count], skip_special_tokens=True)
            return any(string in text for string in stop)

        if not stop or not holds(len(row)):
            return []
        return [bisect_left(range(len(row) + 1), True, key=holds)]
