"""All that is replaced in vLLM to serve factors: how its model runner treats requests that name an adapter."""

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import numpy as np

from svf_rl.errors import SVFError
from svf_rl.generation.vllm.factored.adapters import AdapterRows

# The methods, and the arguments by which they are called
_KNOWN = {
    "load_lora_model": ["self", "model", "vllm_config", "device"],
    "set_active_loras": ["self", "input_batch", "num_scheduled_tokens", "num_sampled_tokens", "mapping_type"],
    "maybe_select_dummy_loras": [
        "self", "lora_config", "num_scheduled_tokens", "mapping_type", "num_sampled_tokens", "num_active_loras",
    ],
}  # fmt: skip
_ours: dict[str, Any] = {}


def patch_adapters() -> None:
    """From now on, engines whose model has a `svf_table` take each request's row from it; others stay as they are.
    Raises `SVFError` for a vLLM that works in another way."""
    from vllm import __version__
    from vllm.v1.worker.lora_model_runner_mixin import LoRAModelRunnerMixin as Runner

    if _ours:
        return
    theirs: dict[str, Any] = {name: getattr(Runner, name, None) for name in _KNOWN}
    for name, method in theirs.items():
        if method is None or list(signature(method).parameters) != _KNOWN[name]:
            raise SVFError(
                f"vLLM {__version__} is not known to serve factors ({name} is another one there): install a version in "
                "the range of the package's extras"
            )

    def load_lora_model(self: Any, model: Any, vllm_config: Any, device: Any) -> Any:
        if not hasattr(model, "svf_table"):
            return theirs["load_lora_model"](self, model, vllm_config, device)
        self.lora_manager = AdapterRows(model.svf_table)
        return model

    def set_active_loras(
        self: Any, input_batch: Any, num_scheduled_tokens: np.ndarray, *more: Any, **named: Any
    ) -> None:
        if not isinstance(self.lora_manager, AdapterRows):
            theirs["set_active_loras"](self, input_batch, num_scheduled_tokens, *more, **named)
        else:
            self.lora_manager.assign(input_batch.request_lora_mapping[: input_batch.num_reqs], num_scheduled_tokens)

    @contextmanager
    def maybe_select_dummy_loras(self: Any, lora_config: Any, *more: Any, **named: Any) -> Iterator[None]:
        if isinstance(getattr(self, "lora_manager", None), AdapterRows):
            yield
            return
        with theirs["maybe_select_dummy_loras"](self, lora_config, *more, **named):
            yield

    _ours.update(
        load_lora_model=load_lora_model,
        set_active_loras=set_active_loras,
        maybe_select_dummy_loras=maybe_select_dummy_loras,
    )
    for name, method in _ours.items():
        setattr(Runner, name, method)
