"""Weights that DeepSpeed's ZeRO-3 has shared out over the processes: their shapes, their values, one module at a time."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn


def is_sharded(parameter: Tensor) -> bool:
    """Whether ZeRO-3 holds this parameter; its own tensor is empty then, outside of `gathered`."""
    return hasattr(parameter, "ds_id")


def full_shape(parameter: Tensor) -> torch.Size:
    """The parameter's shape, sharded or not."""
    return torch.Size(parameter.ds_shape) if is_sharded(parameter) else parameter.shape


def gathered(parameters: Iterable[Tensor]) -> AbstractContextManager[None]:
    """Within it, every process has these parameters whole, to read. All processes must enter it together, as it
    communicates; where nothing is sharded it does nothing."""
    sharded = [parameter for parameter in parameters if is_sharded(parameter)]
    if not sharded:
        return nullcontext()
    from deepspeed.zero import GatheredParameters

    return GatheredParameters(sharded)


def shard_like(module: nn.Module, weight: Tensor) -> None:
    """Share out the parameters of `module` as `weight` is; the values are those of process 0."""
    if is_sharded(weight):
        from deepspeed.zero import Init
        from transformers.integrations.deepspeed import deepspeed_config

        Init(module=module, config_dict_or_path=deepspeed_config())


def fetch_with(layer: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
    """Have ZeRO-3 gather `parameters`, which belong to modules below `layer`, for the forward and backward of `layer`,
    and only then."""
    from deepspeed.zero import register_external_parameter

    for parameter in parameters:
        register_external_parameter(layer, parameter)
