"""What answers as an exported model, beside what it came from: transformers, vLLM, llama.cpp."""

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from svf_rl.errors import SVFError
from svf_rl.experts.arguments import SHARE_ALONE, EngineArguments
from svf_rl.experts.backends import start_transformers, start_vllm
from svf_rl.generation import Completion, Sampling
from svf_rl.models.arguments import ModelArguments


class Engine(Protocol):
    """One that answers greedily."""

    name: str

    def answer(self, prompts: Sequence[list[int]], sampling: Sampling) -> list[Completion]: ...

    def logps(self, text: list[int], start: int) -> Tensor:
        """Log-probabilities of the tokens of `text` from `start` on: of every one in the vocabulary, (completion,
        vocabulary), or of the chosen ones alone, (completion, 1). fp32."""


class TransformersEngine:
    """
    Args:
        model: With an adapter or without.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        ends (`Sequence[int]`): Tokens that end a completion.
    """

    name = "transformers"

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]):
        self._model = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        model.generation_config.eos_token_id = list(ends)  # transformers reads another one from some GGUF files
        self._generator = start_transformers(model, tokenizer, None)

    def answer(self, prompts: Sequence[list[int]], sampling: Sampling) -> list[Completion]:
        return self._generator.generate(prompts, sampling, [0] * len(prompts))

    @torch.no_grad()
    def logps(self, text: list[int], start: int) -> Tensor:
        ids = torch.tensor([text], device=self._model.device)
        return self._model(input_ids=ids).logits[0, start - 1 : -1].float().log_softmax(1).cpu()


class VllmEngine:
    """The plain model in a folder."""

    name = "vLLM"

    def __init__(self, model: ModelArguments, engine: EngineArguments, max_length: int):
        self._generator, self._most = start_vllm(model, engine, max_length, SHARE_ALONE), max_length - 1

    def answer(self, prompts: Sequence[list[int]], sampling: Sampling) -> list[Completion]:
        return self._generator.generate(prompts, sampling, [0] * len(prompts))

    def logps(self, text: list[int], start: int) -> Tensor:
        # vLLM scores a text only where one more token would fit
        return torch.tensor(self._generator.loglikelihood([text[:start]], [text[start : self._most]])[0])[:, None]


def has_llama_cpp() -> bool:
    """Whether llama.cpp's Python package is installed."""
    return importlib.util.find_spec("llama_cpp") is not None


class LlamaCppEngine:
    """
    A GGUF file. The keys and values of attention are held in fp32, which llama.cpp does not do by itself, so that what
    differs is what the file says.

    Args:
        path (`Path`): The file.
        length (`int`): Tokens of the longest prompt with its completion.
        tokenizer (`PreTrainedTokenizerBase`): Of the model that was exported, for stop strings.
        ends (`Sequence[int]`): Tokens that end a completion.
    """

    name = "llama.cpp"

    def __init__(self, path: Path, length: int, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]):
        from llama_cpp import GGML_TYPE_F32, Llama

        try:
            self._model = Llama(
                str(path), n_ctx=length + 1, n_batch=512, logits_all=True, verbose=False,
                type_k=GGML_TYPE_F32, type_v=GGML_TYPE_F32, flash_attn=False,
            )  # fmt: skip
        except (ValueError, RuntimeError, AssertionError) as error:
            raise SVFError(f"llama.cpp does not load {path}: {error}") from error
        self._tokenizer, self._ends = tokenizer, frozenset(ends)

    def reads(self, text: str) -> list[int]:
        """The tokens of a rendered prompt by the file's own tokenizer."""
        return self._model.tokenize(text.encode(), add_bos=False, special=True)

    def answer(self, prompts: Sequence[list[int]], sampling: Sampling) -> list[Completion]:
        return [self._one(prompt, sampling) for prompt in prompts]

    def _one(self, prompt: list[int], sampling: Sampling) -> Completion:
        self._model.reset()
        self._model.eval(prompt)
        written: list[int] = []
        while len(written) < sampling.max_tokens:
            token = int(np.argmax(self._model.scores[self._model.n_tokens - 1]))
            written.append(token)
            if token in self._ends or self._stops(written, sampling):
                return Completion(written, None, True)
            if len(written) < sampling.max_tokens:
                self._model.eval([token])
        return Completion(written, None, False)

    def _stops(self, written: list[int], sampling: Sampling) -> bool:
        if not sampling.stop:
            return False
        text = self._tokenizer.decode(written, skip_special_tokens=True)
        return any(string in text for string in sampling.stop)

    def logps(self, text: list[int], start: int) -> Tensor:
        self._model.reset()
        self._model.eval(text)
        logits = torch.from_numpy(np.array(self._model.scores[start - 1 : len(text) - 1]))
        return logits.float().log_softmax(1)


def largest_difference(one: Tensor, other: Tensor, chosen: Sequence[int]) -> float:
    """Of log-probabilities (completion, vocabulary), or of the `chosen` tokens' where one engine tells no others, at
    the places that both know."""
    count = min(len(one), len(other))
    if not count:
        return 0.0
    one, other, chosen = one[:count], other[:count], chosen[:count]
    if one.shape != other.shape:
        places = torch.tensor(chosen)[:, None]
        one, other = (side.gather(1, places) if side.shape[1] > 1 else side for side in (one, other))
    difference = (one - other).abs().max().item()
    return difference if math.isfinite(difference) else math.inf
