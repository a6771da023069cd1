"""Rollouts from the model in training itself, through transformers' `generate`: slower than vLLM, nothing to sync."""

from collections.abc import Sequence

import torch
from torch import nn
from tqdm import tqdm

from svf_rl.generation.sampling import Completion, Sampling, SyncReport


class TransformersRollouts:
    """
    Args:
        model (`PreTrainedModel` or `PeftModel`): The model in training.
        eos_token_ids (`list[int]`): Tokens that end a completion.
        pad_token_id (`int`): Token to fill up shorter prompts with.
        batch_size (`int`, *optional*, defaults to 64): Prompts decoded together.
    """

    stale = False

    def __init__(self, model: nn.Module, *, eos_token_ids: list[int], pad_token_id: int, batch_size: int = 64):
        self._model, self._eos, self._pad, self._batch_size = model, eos_token_ids, pad_token_id, batch_size

    def generate(
        self, prompts: Sequence[list[int]], sampling: Sampling, seeds: Sequence[int], progress: bool = False
    ) -> list[Completion]:
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
                **sampling.extra,
            )
        return [Completion(self._until_eos(row), None) for row in output[:, width:].tolist()]

    def _until_eos(self, row: list[int]) -> list[int]:
        ends = [i for i, token in enumerate(row) if token in self._eos]
        return row[: ends[0] + 1] if ends else row
