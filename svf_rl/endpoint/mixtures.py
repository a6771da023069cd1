"""Mixtures under names that requests can give."""

import asyncio
from typing import Any

from vllm.lora.request import LoRARequest

from svf_rl.errors import SVFError, one_line
from svf_rl.generation.vllm.mixture import Mixture

KEPT = 64
"""How many keep their names, those that were used last."""


class NamedMixtures:
    """What of vLLM's table of adapters are mixtures."""

    def __init__(self) -> None:
        self._requests: dict[str, LoRARequest] = {}
        self._one_at_a_time = asyncio.Lock()

    def __contains__(self, name: str) -> bool:
        return name in self._requests

    async def add(self, models: Any, name: str, mixture: Mixture) -> None:
        """
        Let requests give `name` for the mixture; again, where they could before.

        Args:
            models (`OpenAIServingModels`): Of vLLM's server.

        Raises:
            SVFError: the worker cannot make it.
        """
        async with self._one_at_a_time:
            if name in self._requests and name in models.lora_requests:
                self._requests[name] = self._requests.pop(name)
                return
            request = LoRARequest(name, models.lora_id_counter.inc(1), mixture.path)
            try:
                await models.engine_client.add_lora(request)
            except Exception as error:  # vLLM raises this very class for what a worker raised
                raise SVFError(f"{name} cannot be made: {one_line(error)}") from error
            models.lora_requests[name] = self._requests[name] = request
            for old in list(self._requests)[:-KEPT]:
                del self._requests[old]
                models.lora_requests.pop(old, None)
