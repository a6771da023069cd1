"""The engine behind vLLM's server, as this package's own part of the server asks it."""

import asyncio
import uuid
from collections.abc import Sequence
from typing import Any

from vllm import SamplingParams
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind

from svf_rl.generation import Completion, Sampling
from svf_rl.generation.vllm import vllm_errors
from svf_rl.generation.vllm.mixture import Mixture
from svf_rl.generation.vllm.settings import completion_of, sampling_params


class ServedEngine:
    """
    Args:
        state: Of vLLM's application (`app.state`).
    """

    def __init__(self, state: Any):
        self._engine = state.engine_client
        self.models = state.openai_serving_models
        """vLLM's table of what requests can name."""
        self._numbers: dict[str, int] = {}

    @property
    def longest(self) -> int:
        """Prompt and answer, in tokens."""
        length: int = self.models.model_config.max_model_len
        return length

    async def next_token(self, adapter: str | None, prompt: list[int], tokens: list[int]) -> list[float]:
        """Log-probabilities of these `tokens` after a prompt, by the adapter of that name, or by the base model where
        there is none."""
        params = SamplingParams(temperature=0, max_tokens=1, logprob_token_ids=tokens, detokenize=False)
        output = await self._ask(prompt, params, None if adapter is None else self.models.lora_requests.get(adapter))
        logprobs = output.outputs[0].logprobs[0]
        return [logprobs[token].logprob for token in tokens]

    async def complete(
        self, prompts: Sequence[list[int]], sampling: Sequence[Sampling], seeds: Sequence[int], which: Sequence[Mixture]
    ) -> list[Completion]:
        """The completion of each prompt, with its sampling, seed and mixture. Raises `SVFError` where vLLM fails."""
        for mixture in which:
            if mixture.path not in self._numbers:
                self._numbers[mixture.path] = self.models.lora_id_counter.inc(1)
        with vllm_errors("vLLM failed"):
            return await asyncio.gather(*map(self._complete_one, prompts, sampling, seeds, which))

    async def _complete_one(self, prompt: list[int], sampling: Sampling, seed: int, mixture: Mixture) -> Completion:
        params = sampling_params(sampling, seed)
        params.output_kind = RequestOutputKind.FINAL_ONLY
        adapter = LoRARequest(mixture.path, self._numbers[mixture.path], mixture.path)
        return completion_of(await self._ask(prompt, params, adapter))

    async def _ask(self, prompt: list[int], params: SamplingParams, adapter: LoRARequest | None) -> Any:
        """vLLM's last output for the request."""
        name = f"svf-rl-{uuid.uuid4().hex}"
        outputs = self._engine.generate({"prompt_token_ids": prompt}, params, name, lora_request=adapter)
        return [output async for output in outputs][-1]
