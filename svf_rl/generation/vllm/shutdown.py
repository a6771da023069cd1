"""The end of one vLLM engine among several in a process."""

import gc
import weakref
from typing import Any
from unittest.mock import patch

import torch


class LivingEngines:
    """The vLLM engines of this process. One that is garbage-collected destroys every process group: those of the other
    engines, and those of the training. Here the last engine destroys them, and only if the first one created them."""

    def __init__(self) -> None:
        self._cores: list[Any] = []
        self._made_the_groups = False

    def before_start(self) -> None:
        """Must be called before an engine is built."""
        if not self._cores:
            self._made_the_groups = not torch.distributed.is_initialized()

    def add(self, llm: Any) -> None:
        """Control the shutdown of `llm`, a `vllm.LLM` of this process."""
        client = llm.llm_engine.engine_core
        finalizer = getattr(client, "_finalizer", None)  # vLLM before 0.31 has none
        if finalizer is not None:
            finalizer.detach()
        self._cores.append(client.engine_core)
        weakref.finalize(client, self._end, client.engine_core)

    def _end(self, core: Any) -> None:
        from vllm.v1.engine import core as module

        self._cores = [other for other in self._cores if other is not core]
        keeps_groups = bool(self._cores) or not self._made_the_groups
        clean_up = _free_memory if keeps_groups else module.cleanup_dist_env_and_memory
        with patch.object(module, "cleanup_dist_env_and_memory", clean_up):
            core.shutdown()


def _free_memory() -> None:
    gc.collect()
    torch.cuda.empty_cache()


LIVING_ENGINES = LivingEngines()
