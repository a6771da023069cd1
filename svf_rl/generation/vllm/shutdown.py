"""The end of one vLLM engine among several in a process."""

import gc
import weakref
from typing import Any

import torch


class LivingEngines:
    """
    The vLLM engines of this process.

    When vLLM's engine is collected it ends every process group: those of the other engines, and those that the training
    communicates with. Here the last engine ends them, and only if the first one made them.
    """

    def __init__(self) -> None:
        self._cores: list[Any] = []
        self._made_the_groups = False

    def before_start(self) -> None:
        """To be called before an engine is built."""
        if not self._cores:
            self._made_the_groups = not torch.distributed.is_initialized()

    def add(self, llm: Any) -> None:
        """Take the end of `llm`, a `vllm.LLM` of this process, into one's own hands."""
        client = llm.llm_engine.engine_core
        client._finalizer.detach()
        self._cores.append(client.engine_core)
        weakref.finalize(client, self._end, client.engine_core)

    def _end(self, core: Any) -> None:
        from vllm.v1.engine import core as module

        self._cores = [other for other in self._cores if other is not core]
        clean_up = module.cleanup_dist_env_and_memory
        if self._cores or not self._made_the_groups:
            module.cleanup_dist_env_and_memory = _free_memory
        try:
            core.shutdown()
        finally:
            module.cleanup_dist_env_and_memory = clean_up


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


LIVING_ENGINES = LivingEngines()
