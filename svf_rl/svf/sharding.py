"""Weights that DeepSpeed's ZeRO-3 has shared out over the processes: their shapes, their values, a layer at a time."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from transformers.integrations import deepspeed as integration


def is_sharded(parameter: Tensor) -> bool:
    """Whether ZeRO-3 holds this parameter: outside of `gather_parameters` its own tensor is empty."""
    return hasattr(parameter, "ds_id")


def full_shape(parameter: Tensor) -> torch.Size:
    """The parameter's shape, sharded or not."""
    return torch.Size(parameter.ds_shape) if is_sharded(parameter) else parameter.shape


def gather_parameters(parameters: Iterable[Tensor]) -> AbstractContextManager[None]:
    """Within it, every process has these parameters whole, to read. All processes enter it together, since they
    communicate; where nothing is sharded it does nothing."""
    sharded = [parameter for parameter in parameters if is_sharded(parameter)]
    if not sharded:
        return nullcontext()
    import deepspeed

    gathered: AbstractContextManager[None] = deepspeed.zero.GatheredParameters(sharded)
    return gathered


@contextmanager
def without_values() -> Iterator[None]:
    """Within it, models are built on the meta device, also where transformers would share them out at once."""
    config = integration._hf_deepspeed_config_weak_ref
    integration.unset_hf_deepspeed_config()
    try:
        with torch.device("meta"):
            yield
    finally:
        integration._hf_deepspeed_config_weak_ref = config


def shard_like(module: nn.Module, parameter: Tensor) -> None:
    """Share out the parameters of `module` as `parameter` is; they get the values that process 0 has."""
    if is_sharded(parameter):
        import deepspeed

        deepspeed.zero.Init(module=module, config_dict_or_path=integration.deepspeed_config())


def fetch_with(layer: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
    """Have ZeRO-3 gather those of `parameters` that it holds for the forward and backward of `layer`, which computes
    with them though they belong to modules below it that are never called."""
    sharded = [parameter for parameter in parameters if is_sharded(parameter)]
    if sharded:
        import deepspeed

        for parameter in sharded:
            deepspeed.zero.register_external_parameter(layer, parameter)
