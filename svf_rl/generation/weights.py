"""The weights of an adapted model, rebuilt one at a time for a generator to load, under the names of its files."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers.core_model_loading import revert_weight_conversion

from svf_rl.errors import SVFError
from svf_rl.models.kinds import kind_of_model
from svf_rl.svf.layer import SVFFactors, SVFLinear, svf_layers
from svf_rl.svf.sharding import gather_parameters
from svf_rl.svf.targets import fused_experts

# of a base model's layers; transformers walks through the whole model for each name, and a sync needs them all
_STORED_PATHS: WeakKeyDictionary[nn.Module, dict[str, str]] = WeakKeyDictionary()
_REMEDY = "use an SVF or LoRA adapter, plain and unmerged"


def stored_weights(model: nn.Module, everything: bool = False) -> Iterator[tuple[str, Tensor]]:
    """
    [`adapted_weights`] under the names and in the layout of the model's files, which are what vLLM's loaders take:
    transformers renames and fuses some weights when it loads them.

    The experts of a mixture are left out: an engine lays them out anew once it has loaded them, so that they cannot be
    loaded a second time. Raises `SVFError` where they are trained, and where one of two tied embeddings is, which an
    engine holds once.
    """
    whole = r"\.(original_module|modules_to_save\.[^.]+)(?=\.)"  # what PEFT puts between, for a module trained in full
    experts = tuple(re.sub(whole, "", f"{base_name(name)}.") for name in fused_experts(_base(model)))
    frozen = {base_name(name) for name, _ in _outside_of_adapters(model)}
    tied = tied_embeddings(_base(model))
    for name, weight in adapted_weights(model, everything):
        if name in tied and name not in frozen:
            raise SVFError(
                f"{name} is trained, and the model ties it to its other embedding, which vLLM holds as one with it: "
                "take it out of the adapter (modules_to_save), or set use_vllm: false"
            )
        if not name.startswith(experts):
            yield from as_stored(model, name, weight).items()
        elif name not in frozen:
            raise SVFError(f"{name} is trained, and vLLM cannot take experts again: take it out of modules_to_save")
        del weight  # before the next one is rebuilt


def stored_name(model: nn.Module, name: str, shape: Sequence[int] = (1, 1)) -> str:
    """The name in the model's files of its parameter `name`. Raises `SVFError` where they hold it in several parts."""
    names = list(as_stored(model, base_name(name), torch.empty(*shape, device="meta")))
    if len(names) != 1:
        raise SVFError(f"{name} is stored in parts ({', '.join(names[:3])}, ...), which a server cannot rebuild")
    return names[0]


@dataclass(frozen=True)
class SharedWeights:
    """
    What a model with SVF and an engine hold once.

    Args:
        factors (`dict[str, SVFFactors]`): Of each adapted layer, by its path in the model's files.
        parameters (`dict[str, nn.Parameter]`): What no adapter changes, by their names there; what the files hold in
            parts is not among them.
    """

    factors: dict[str, SVFFactors]
    parameters: dict[str, nn.Parameter]

    @classmethod
    def of(cls, model: nn.Module) -> "SharedWeights":
        parameters = {}
        for name, parameter in _outside_of_adapters(model):
            with suppress(SVFError):
                parameters[stored_name(model, name, parameter.shape)] = parameter
        factors = {_stored_path(model, path): layer.svf_factors for path, layer in svf_layers(model).items()}
        return cls(factors, {name: p for name, p in parameters.items() if not p.requires_grad})

    @contextmanager
    def parked(self) -> Iterator[None]:
        """Within it, an engine on the device of the parameters loads its own; they are on the CPU meanwhile."""
        devices = {name: parameter.device for name, parameter in self.parameters.items()}
        for parameter in self.parameters.values():
            parameter.data = parameter.data.cpu()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        try:
            yield
        finally:
            for name, parameter in self.parameters.items():
                parameter.data = parameter.data.to(devices[name])


def active_multipliers(model: nn.Module) -> dict[str, Tensor]:
    """`m` (r,) of the active adapters by the same paths: all that a factored engine needs of them. Raises `SVFError`
    where anything else is trained."""
    refuse_other_trained_parameters(model)
    for name, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            raise SVFError(f"{base_name(name)} is trained in full, which an engine cannot hold for one adapter of many")
        if isinstance(module, SVFLinear) and module.more_than_multiplier():
            raise SVFError(
                f"the adapter of {base_name(name)} is more than multipliers of singular values, which is all that an "
                "engine can hold for one adapter of many: use core: diagonal without biases"
            )
    with torch.no_grad():
        found = {_stored_path(model, path): layer.active_multiplier() for path, layer in svf_layers(model).items()}
    return {path: m for path, m in found.items() if m is not None}


def _stored_path(model: nn.Module, path: str) -> str:
    known = _STORED_PATHS.setdefault(_base(model), {})
    if path not in known:
        known[path] = stored_name(model, f"{path}.weight").removesuffix(".weight")
    return known[path]


def as_stored(model: nn.Module, name: str, weight: Tensor) -> dict[str, Tensor]:
    """One weight under its name, or in its parts under theirs, as the model's files hold it: undoes what
    `from_pretrained` did."""
    return revert_weight_conversion(_base(model), {name: weight})


def tied_embeddings(base: Any) -> set[str]:
    """Names of the weights of both embeddings, where the model's files hold one for the two."""
    if not getattr(base.config.get_text_config(), "tie_word_embeddings", False):
        return set()
    ends = (base.get_input_embeddings(), base.get_output_embeddings())
    return {f"{base_name(name)}.weight" for name, module in base.named_modules() if any(module is end for end in ends)}


def _base(model: nn.Module) -> Any:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def adapted_weights(model: nn.Module, everything: bool = False) -> Iterator[tuple[str, Tensor]]:
    """
    Every weight that the active adapters change, as `(name in the base model, W')`, in the type of `W`; then, with
    `everything`, all others of the base model.

    Each `W'` is rebuilt from the untouched `W` when the iterator reaches it, so that only one of them is in memory.
    """
    refuse_other_trained_parameters(model)
    changed = set()  # biases
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            # no_grad here and not on the whole iterator, which would then keep the last weight in memory
            with torch.no_grad(), gather_parameters(module.parameters()):
                kind = kind_of_model(model)
                weight, bias = kind.rebuilt_weight(module), kind.rebuilt_bias(module)
            if weight is None:
                raise SVFError(f"{name} is a {type(module).__name__}, whose weight cannot be rebuilt: {_REMEDY}")
            yield f"{base_name(name)}.weight", weight
            del weight  # or it would still be in memory while the next one is rebuilt
            if bias is not None:
                changed.add(f"{name}.base_layer.bias")
                yield f"{base_name(name)}.bias", bias
        elif isinstance(module, ModulesToSaveWrapper):
            for adapter in module.active_adapters:
                if adapter in module.modules_to_save:
                    for key, parameter in module.modules_to_save[adapter].named_parameters():
                        with gather_parameters([parameter]):
                            yield f"{base_name(name)}.{key}", parameter.data
    for name, parameter in _outside_of_adapters(model) if everything else ():
        if name in changed:
            continue
        with gather_parameters([parameter]):
            yield base_name(name), parameter.data


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


def base_name(name: str) -> str:
    """The name in the base model of the parameter or module `name` of an adapted model."""
    return name.removeprefix("base_model.model.").replace(".base_layer", "").replace("_checkpoint_wrapped_module.", "")
