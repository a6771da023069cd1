"""The weights of an adapted model under their checkpoint names, rebuilt one at a time for a generator to load."""

from collections.abc import Iterator

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn

from svf_rl.errors import SVFError
from svf_rl.models.kinds import kind_of_layer
from svf_rl.svf.sharding import gather_parameters

_REMEDY = "use an SVF or LoRA adapter, plain and unmerged"


def adapted_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """
    Every weight that the active adapters change, as `(checkpoint name, W')`, in the type of `W`.

    Each is rebuilt from the untouched `W` when the iterator reaches it, so that only one of them is in memory.
    """
    refuse_other_trained_parameters(model)
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            with gather_parameters(module.parameters()):
                weight = _rebuild(name, module)
            yield f"{checkpoint_name(name)}.weight", weight
            del weight  # or it would still be in memory while the next one is rebuilt
        elif isinstance(module, ModulesToSaveWrapper):
            for adapter in module.active_adapters:
                if adapter in module.modules_to_save:
                    for key, parameter in module.modules_to_save[adapter].named_parameters():
                        with gather_parameters([parameter]):
                            yield f"{checkpoint_name(name)}.{key}", parameter.data


def frozen_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every other weight of the base model, as `(checkpoint name, tensor)`."""
    tuners = {name: m for name, m in model.named_modules() if isinstance(m, BaseTunerLayer)}
    saved = tuple(f"{name}." for name, m in model.named_modules() if isinstance(m, ModulesToSaveWrapper))
    inner = tuple(f"{name}." for name in tuners)
    biases = {f"{name}.base_layer.bias" for name in tuners}
    for name, parameter in model.named_parameters():
        if name in biases or not name.startswith(inner + saved):
            with gather_parameters([parameter]):
                yield checkpoint_name(name), parameter.data


def refuse_other_trained_parameters(model: nn.Module) -> None:
    """Raises `SVFError` for a trained parameter that no rebuilt weight contains: the generator would not get it."""
    kinds = (BaseTunerLayer, ModulesToSaveWrapper)
    covered = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, kinds))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and (not name.startswith(covered) or name.endswith("base_layer.bias")):
            raise SVFError(f"{name} is trained but cannot be sent to the generator: {_REMEDY}")


@torch.no_grad()  # not on the iterators above: it would keep the last weight in memory
def _rebuild(name: str, layer: BaseTunerLayer) -> Tensor:
    weight = kind_of_layer(layer).rebuilt_weight(layer)
    if weight is None:
        raise SVFError(f"{name} is a {type(layer).__name__}, whose weight cannot be rebuilt: {_REMEDY}")
    return weight


def checkpoint_name(name: str) -> str:
    """The name in a checkpoint of the parameter or module `name` of an adapted model."""
    return name.removeprefix("base_model.model.").replace(".base_layer", "").replace("_checkpoint_wrapped_module.", "")
