"""All that is replaced in vLLM to serve factors: who manages the adapters of a model runner, and where it allocates
weights that are shared."""

from contextlib import nullcontext
from inspect import signature
from typing import Any

from svf_rl.errors import SVFError
from svf_rl.generation.vllm.factored.adapters import AdapterRows

KEPT = 256
"""How many adapters of folders stay in memory at least. Each takes 4 bytes a singular value, and `--max-cpu-loras` of
vLLM, by which it asks for more, is a batch's by default."""

# What is replaced, with its arguments, and what vLLM asks of a manager when it runs, tries and captures a model
_RUNNERS = {"load_lora_model": ["self", "model", "vllm_config", "device"]}
_WORKERS = {"_maybe_get_memory_pool_context": ["self", "tag"]}
_MANAGERS = {
    "set_active_adapters": ["self", "requests", "mapping"],
    "add_dummy_lora": ["self", "lora_request", "rank"],
    "dummy_lora_cache": ["self"],
    "remove_all_adapters": ["self"],
}


def patch_adapters() -> None:
    """From now on, engines whose model has a `svf_table` take each request's row from it; others stay as they are.
    Raises `SVFError` for a vLLM that works in another way."""
    from vllm import __version__
    from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager as Manager
    from vllm.v1.worker.gpu_worker import Worker
    from vllm.v1.worker.lora_model_runner_mixin import LoRAModelRunnerMixin as Runner

    from svf_rl.generation.vllm.factored.loader import is_sharing

    for owner, known in ((Manager, _MANAGERS), (Runner, _RUNNERS), (Worker, _WORKERS)):
        for name, arguments in known.items():
            if list(signature(getattr(owner, name, lambda: None)).parameters) != arguments:
                raise SVFError(
                    f"vLLM {__version__} is not known to serve factors ({name} is another one there): install a "
                    "version in the range of the package's extras"
                )
    load_theirs, pool_theirs = Runner.load_lora_model, Worker._maybe_get_memory_pool_context
    if hasattr(load_theirs, "serves_factors"):
        return

    def load_lora_model(self: Any, model: Any, vllm_config: Any, device: Any) -> Any:
        if not hasattr(model, "svf_table"):
            return load_theirs(self, model, vllm_config, device)
        if model.svf_table is None:  # it has whole weights after all
            self.lora_config = None
            return model
        kept = None if model.svf_read is None else max(KEPT, vllm_config.lora_config.max_cpu_loras)
        self.lora_manager = AdapterRows(model.svf_table, model.svf_read, kept)
        return model

    def memory_pool(self: Any, tag: str) -> Any:
        """The pool of weights is freed while the engine sleeps."""
        return nullcontext() if tag == "weights" and is_sharing() else pool_theirs(self, tag)

    load_lora_model.serves_factors = True  # type: ignore[attr-defined]
    Runner.load_lora_model = load_lora_model
    Worker._maybe_get_memory_pool_context = memory_pool
