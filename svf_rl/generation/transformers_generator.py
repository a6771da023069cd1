"""Completions from the trained model itself, by transformers' `generate`: slower than vLLM, nothing to sync."""

import inspect
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest.mock import patch

import torch
from peft import PeftModel
from torch import Tensor, nn
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedTokenizerBase

from svf_rl.errors import SVFError
from svf_rl.generation.prompts import join_continuations
from svf_rl.generation.sampling import Completion, Sampling, SyncReport

# Most positions of a batch for which logits are computed: 1 GB in bf16 at a vocabulary of 128k. A single longer
# continuation is allowed.
_LOGITS = 4096


class TransformersGenerator:
    """
    Args:
        model (`PreTrainedModel` or `PeftModel`): The model in training.
        eos_token_ids (`list[int]`): Tokens that end a completion.
        pad_token_id (`int`): Token that pads shorter prompts.
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
            raise SVFError("stop strings need a tokenizer: build TransformersGenerator with tokenizer=")
        completions: list[Completion] = []
        with self._evaluating():
            for start in tqdm(range(0, len(prompts), self._batch_size), desc="Completions", disable=not progress):
                batch = slice(start, start + self._batch_size)
                completions += self._batch_within_positions(prompts[batch], sampling, seeds[batch])
        return completions

    def _positions(self) -> int | None:
        return getattr(self._model.config.get_text_config(), "max_position_embeddings", None)

    def _batch_within_positions(
        self, prompts: Sequence[list[int]], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Completion]:
        """Prompts that leave the positions of the model less room than the others are decoded apart."""
        positions = self._positions()
        rooms = [max(1, positions - len(prompt)) if positions else sampling.max_tokens for prompt in prompts]
        if min(rooms) >= sampling.max_tokens:
            return self._batch(prompts, sampling, seeds[0])
        made: dict[int, Completion] = {}
        for most in {min(room, sampling.max_tokens) for room in rooms}:
            rows = [row for row, room in enumerate(rooms) if min(room, sampling.max_tokens) == most]
            found = self._batch([prompts[row] for row in rows], sampling.within(most), seeds[rows[0]])
            made |= zip(rows, found, strict=True)
        return [made[row] for row in range(len(prompts))]

    def loglikelihood(self, prompts: Sequence[list[int]], continuations: Sequence[list[int]]) -> list[list[float]]:
        sequences = join_continuations(prompts, continuations, self._positions())
        scores: list[list[float]] = [[] for _ in sequences]
        lengths = [len(continuation) for continuation in continuations]
        with self._evaluating():
            for batch in self._batches_of_like_length(sequences, lengths):
                found = self._scores([sequences[i] for i in batch], [lengths[i] for i in batch])
                for i, values in zip(batch, found, strict=True):
                    scores[i] = values
        return scores

    def _batches_of_like_length(self, sequences: Sequence[list[int]], lengths: Sequence[int]) -> Iterator[list[int]]:
        """Indices of sequences for one forward pass: with little padding, and at most `_LOGITS` positions."""
        batch: list[int] = []
        for index in sorted(range(len(sequences)), key=lambda i: (len(sequences[i]), lengths[i])):
            longest = max(lengths[i] for i in [*batch, index])
            if batch and (len(batch) == self._batch_size or (len(batch) + 1) * longest > _LOGITS):
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    @torch.no_grad()
    def _scores(self, sequences: Sequence[list[int]], lengths: Sequence[int]) -> list[list[float]]:
        """Log p of the last `lengths[i]` tokens of each sequence. The last token predicts nothing and is left out; with
        padding on the left, the wanted logits are the last ones of each row."""
        ids, mask = self._padded([sequence[:-1] for sequence in sequences])
        wanted = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0), "logits_to_keep": max(lengths)}
        base = self._model.get_base_model() if isinstance(self._model, PeftModel) else self._model
        taken = inspect.signature(base.forward).parameters  # not every architecture knows both
        output = self._model(
            input_ids=ids, attention_mask=mask, use_cache=False, **{k: v for k, v in wanted.items() if k in taken}
        )
        scores = []
        for row, sequence, length in zip(output.logits, sequences, lengths, strict=True):
            logps = row[-length:].float().log_softmax(-1)  # row by row: fp32 takes twice the memory of bf16
            labels = torch.tensor(sequence[-length:], device=logps.device)
            scores.append(logps.gather(1, labels[:, None])[:, 0].tolist())
        return scores

    @contextmanager
    def _only_as_asked(self) -> Iterator[None]:
        """Without what the model's `generation_config` adds to a request (beams, suppressed tokens, penalties): vLLM
        reads none of it, and what is trained is the distribution that was asked for."""
        base = self._model.get_base_model() if isinstance(self._model, PeftModel) else self._model
        neutral = GenerationConfig(bos_token_id=base.generation_config.bos_token_id)
        # PEFT puts its own upon the base model's
        with patch.object(self._model, "generation_config", neutral), patch.object(base, "generation_config", neutral):
            yield

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Without dropout; afterwards the model has its former mode."""
        was_training = self._model.training
        self._model.eval()
        try:
            yield
        finally:
            self._model.train(was_training)

    def _padded(self, sequences: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        """Token ids and mask, `(B, longest)` each, padded on the left."""
        width = max(map(len, sequences))
        device = next(self._model.parameters()).device
        ids = torch.tensor([[self._pad] * (width - len(s)) + list(s) for s in sequences], device=device)
        mask = torch.tensor([[0] * (width - len(s)) + [1] * len(s) for s in sequences], device=device)
        return ids, mask

    def sync(self, model: nn.Module, everything: bool = False) -> SyncReport:
        self._model = model
        return SyncReport()

    @torch.no_grad()
    def _batch(self, prompts: Sequence[list[int]], sampling: Sampling, seed: int) -> list[Completion]:
        """`generate` samples a whole batch from the process's random state, so a batch has one seed: its first
        sample's."""
        ids, mask = self._padded(prompts)
        draw = {name: getattr(sampling, name) for name in ("temperature", "top_p", "top_k", "min_p")}
        stop = {"stop_strings": list(sampling.stop), "tokenizer": self._tokenizer} if sampling.stop else {}
        with torch.random.fork_rng(), self._only_as_asked():
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
        return [self._completion(row, sampling.stop) for row in output[:, ids.shape[1] :].tolist()]

    def _completion(self, row: list[int], stop: tuple[str, ...]) -> Completion:
        """A row of `generate`, which is padded after its end where other rows of the batch are longer."""

        def has_stop(count: int) -> bool:
            assert self._tokenizer is not None
            text = self._tokenizer.decode(row[:count], skip_special_tokens=True)
            return any(string in text for string in stop)

        ends = [i + 1 for i, token in enumerate(row) if token in self._eos][:1]
        if stop and has_stop(len(row)):
            ends.append(bisect_left(range(len(row) + 1), True, key=has_stop))
        return Completion(row[: min(ends)] if ends else row, None, bool(ends))
