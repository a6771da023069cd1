"""All that is replaced in vLLM to serve factors: who manages the adapters of a model runner."""

from inspect import signature
from typing import Any

from svf_rl.errors import SVFError
from svf_rl.generation.vllm.factored.adapters import AdapterRows

_METHOD, _ARGUMENTS = "load_lora_model", ["self", "model", "vllm_config", "device"]
# What vLLM asks of a manager when requests of a batch name adapters, and when it tries and captures the model
_ASKED = "set_active_adapters", "add_dummy_lora", "dummy_lora_cache", "remove_all_adapters"


def patch_adapters() -> None:
    """From now on, engines whose model has a `svf_table` take each request's row from it; others stay as they are.
    Raises `SVFError` for a vLLM that works in another way."""
    from vllm import __version__
    from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager as Manager
    from vllm.v1.worker.lora_model_runner_mixin import LoRAModelRunnerMixin as Runner

    theirs: Any = getattr(Runner, _METHOD, None)
    if getattr(theirs, "serves_factors", False):
        return
    lost = [name for name in _ASKED if not hasattr(Manager, name)]
    if lost or theirs is None or list(signature(theirs).parameters) != _ARGUMENTS:
        raise SVFError(
            f"vLLM {__version__} is not known to serve factors ({lost[0] if lost else _METHOD} is another one there): "
            "install a version in the range of the package's extras"
        )

    def load_lora_model(self: Any, model: Any, vllm_config: Any, device: Any) -> Any:
        if not hasattr(model, "svf_table"):
            return theirs(self, model, vllm_config, device)
        self.lora_manager = AdapterRows(model.svf_table)
        return model

    load_lora_model.serves_factors = True  # type: ignore[attr-defined]
    setattr(Runner, _METHOD, load_lora_model)
