"""The weight of a linear layer offloaded from its device, and read where it is needed."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from torch import Tensor, nn


class OffloadedWeight(ModelHook):
    """
    Between the calls of a linear layer its weight is a tensor on the meta device and no parameter, so that DDP,
    DeepSpeed, `to` and `state_dict` pass it by.

    Args:
        read (`Callable`): Gives the weight, in the layer's own layout, for each use.
        factors ([`SVFFactors`]): On whose device, and in whose type, it is used.
    """

    def __init__(self, read: Callable[[], Tensor], factors: Any):
        self._read, self._factors, self._kept = read, factors, False

    def init_hook(self, module: Any) -> Any:
        weight = module._parameters.pop("weight")
        module.weight = torch.empty_like(weight, device="meta", requires_grad=False)
        return module

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        if module.weight.is_meta:
            module.weight = self._read().to(self._factors.Vt)
        return args, kwargs

    def post_forward(self, module: Any, output: Any) -> Any:
        if not self._kept:
            module.weight = torch.empty_like(module.weight, device="meta")
        return output

    def keep(self, module: Any, kept: bool) -> None:
        """Whether the weight stays after its next use."""
        self._kept = kept
        self.post_forward(module, None)

    def detach_hook(self, module: Any) -> Any:
        self.pre_forward(module)
        weight = module.__dict__.pop("weight")
        module.weight = nn.Parameter(weight, requires_grad=False)
        return module


def offload(linear: nn.Module, hook: OffloadedWeight) -> None:
    """Free the weight of a linear layer."""
    add_hook_to_module(linear, hook)
    linear.forward = partial(_forward, linear)  # accelerate's own cannot be pickled


def _forward(linear: Any, *args: Any, **kwargs: Any) -> Any:
    args, kwargs = linear._hf_hook.pre_forward(linear, *args, **kwargs)
    return linear._hf_hook.post_forward(linear, linear._old_forward(*args, **kwargs))


def onload(linear: nn.Module) -> None:
    """Give a linear layer its weight again where it is offloaded."""
    if is_offloaded(linear):
        remove_hook_from_module(linear)


def keep_onloaded(linear: nn.Module, kept: bool) -> None:
    """Whether an offloaded weight stays where it is used, as it does for as long as adapters are disabled."""
    if is_offloaded(linear):
        linear._hf_hook.keep(linear, kept)


def cast_offloaded(linear: Any, dtype: torch.dtype) -> None:
    """Where the weight is offloaded: say of what type it will come back, as the model was cast."""
    if is_offloaded(linear):
        linear.weight = linear.weight.to(dtype)


def is_offloaded(linear: nn.Module) -> bool:
    """Whether its weight is read for each use."""
    return isinstance(getattr(linear, "_hf_hook", None), OffloadedWeight)
