"""The weights of an adapted model under their checkpoint names, rebuilt one at a time for a generator to load."""

from collections.abc import Iterator

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn

from svf_rl.errors import SVFError
from svf_rl.svf import SVFLinear


@torch.no_grad()
def adapted_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """
    Every weight that the active adapters change, as `(checkpoint name, W')`, in the type of `W`.

    Each is rebuilt from the untouched `W` when the iterator reaches it, so that memory holds one of them at a time.
    """
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            yield f"{_checkpoint_name(name)}.weight", _rebuilt(name, module)
        elif isinstance(module, ModulesToSaveWrapper):
            for adapter in module.active_adapters:
                if adapter in module.modules_to_save:
                    for key, parameter in module.modules_to_save[adapter].named_parameters():
                        yield f"{_checkpoint_name(name)}.{key}", parameter.data


@torch.no_grad()
def frozen_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every other weight of the base model, as `(checkpoint name, tensor)`."""
    tuners = {name: m for name, m in model.named_modules() if isinstance(m, BaseTunerLayer)}
    saved = tuple(f"{name}." for name, m in model.named_modules() if isinstance(m, ModulesToSaveWrapper))
    inner = tuple(f"{name}." for name in tuners)
    biases = {f"{name}.base_layer.bias" for name in tuners}
    for name, parameter in model.named_parameters():
        if name in biases or not name.startswith(inner + saved):
            yield _checkpoint_name(name), parameter.data


def _rebuilt(name: str, layer: BaseTunerLayer) -> Tensor:
    if isinstance(layer, SVFLinear):
        return layer.merged_weight()
    if isinstance(layer, LoraLayer) and hasattr(layer, "get_delta_weight") and not layer.merged:
        weight = layer.get_base_layer().weight
        total = weight.float()
        for adapter in layer.active_adapters:
            if adapter in layer.lora_A:
                total = total + layer.get_delta_weight(adapter).float()
        return total.to(weight.dtype)
    raise SVFError(f"{name} is a {type(layer).__name__}, whose weight cannot be rebuilt: use an SVF or LoRA adapter")


def _checkpoint_name(name: str) -> str:
    return name.removeprefix("base_model.model.").replace(".base_layer", "").replace("_checkpoint_wrapped_module.", "")
