"""The weights of an adapted model under their checkpoint names, rebuilt one at a time for a generator to load."""

from collections.abc import Iterator

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn

from svf_rl.errors import SVFError
from svf_rl.models.kinds import kind_of_model
from svf_rl.svf.sharding import gather_parameters

_REMEDY = "use an SVF or LoRA adapter, plain and unmerged"


def adapted_weights(model: nn.Module, everything: bool = False) -> Iterator[tuple[str, Tensor]]:
    """
    Every weight that the active adapters change, as `(checkpoint name, W')`, in the type of `W`; then, with
    `everything`, all others of the base model.

    Each `W'` is rebuilt from the untouched `W` when the iterator reaches it, so that only one of them is in memory.
    """
    refuse_other_trained_parameters(model)
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            # no_grad here and not on the whole iterator, which would then keep the last weight in memory
            with torch.no_grad(), gather_parameters(module.parameters()):
                weight = kind_of_model(model).rebuilt_weight(module)
            if weight is None:
                raise SVFError(f"{name} is a {type(module).__name__}, whose weight cannot be rebuilt: {_REMEDY}")
            yield f"{checkpoint_name(name)}.weight", weight
            del weight  # or it would still be in memory while the next one is rebuilt
        elif isinstance(module, ModulesToSaveWrapper):
            for adapter in module.active_adapters:
                if adapter in module.modules_to_save:
                    for key, parameter in module.modules_to_save[adapter].named_parameters():
                        with gather_parameters([parameter]):
                            yield f"{checkpoint_name(name)}.{key}", parameter.data
    for name, parameter in _outside_of_adapters(model) if everything else ():
        with gather_parameters([parameter]):
            yield checkpoint_name(name), parameter.data


def refuse_other_trained_parameters(model: nn.Module) -> None:
    """Raises `SVFError` for a trained parameter outside of what is adapted: the generator would not get it."""
    for name, parameter in _outside_of_adapters(model):
        if parameter.requires_grad:
            raise SVFError(f"{name} is trained but cannot be sent to the generator: {_REMEDY}")


def _outside_of_adapters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that no rebuilt weight contains; the bias of an adapted layer is one of them."""
    kinds = (BaseTunerLayer, ModulesToSaveWrapper)
    inside = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, kinds))
    for name, parameter in model.named_parameters():
        if not name.startswith(inside) or name.endswith(".base_layer.bias"):
            yield name, parameter


def checkpoint_name(name: str) -> str:
    """The name in a checkpoint of the parameter or module `name` of an adapted model."""
    return name.removeprefix("base_model.model.").replace(".base_layer", "").replace("_checkpoint_wrapped_module.", "")
