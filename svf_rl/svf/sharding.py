"""Weights that DeepSpeed's ZeRO-3 or torch's FSDP has sharded over the processes: their shapes, and access to their
values."""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.integrations import deepspeed as integration

from svf_rl.errors import SVFError


def is_sharded(parameter: Tensor) -> bool:
    """Whether ZeRO-3 holds this parameter: outside of `gather_parameters` its own tensor is empty."""
    return hasattr(parameter, "ds_id")


def is_dtensor(tensor: Tensor) -> bool:
    """Whether it is sharded as FSDP2 and tensor parallelism do it."""
    return isinstance(tensor, DTensor)


def will_be_sharded(parameter: Tensor) -> bool:
    """Whether what lies beside `parameter` must be parameters too, so that ZeRO-3 or FSDP shares it out."""
    # set by `accelerate launch`; FSDP wraps the model only later
    return is_sharded(parameter) or os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true")


def whole(tensor: Tensor) -> Tensor:
    """All of it: what FSDP2 shares out is collected, by all processes together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shared_out_like(tensor: Tensor, other: Tensor) -> Tensor:
    """`tensor`, shared out as `other` is."""
    return distribute_tensor(tensor, other.device_mesh, other.placements) if isinstance(other, DTensor) else tensor


def put_into(parameter: Tensor, values: Tensor) -> Tensor:
    """Give `parameter` other values; returns the old ones. FSDP2 has the memory of its parameters elsewhere too, so
    that they are written into, and the old ones copied."""
    old = parameter.data
    if isinstance(values, DTensor) and not isinstance(parameter, DTensor):
        raise SVFError("under FSDP an adapter cannot be unmerged within a forward pass: call unmerge_adapter before it")
    if isinstance(parameter, DTensor):
        old = old.clone()
        parameter.data.copy_(values)
    else:
        parameter.data = values
    return old


def plain_path(name: str) -> str:
    """A module's or parameter's path without what FSDP, torch.compile and activation checkpointing put into it."""
    return re.sub(r"(?<![^.])(?:_fsdp_wrapped_module|_orig_mod|_checkpoint_wrapped_module)\.", "", name)


def full_shape(parameter: Tensor) -> torch.Size:
    """The parameter's shape, sharded or not."""
    return torch.Size(parameter.ds_shape) if is_sharded(parameter) else parameter.shape


def gather_parameters(parameters: Iterable[Tensor]) -> AbstractContextManager[None]:
    """Within it, every process can read these parameters in full. All processes must enter it together, since they
    communicate; it does nothing where nothing is sharded."""
    sharded = [parameter for parameter in parameters if is_sharded(parameter)]
    if not sharded:
        return nullcontext()
    import deepspeed

    gathered: AbstractContextManager[None] = deepspeed.zero.GatheredParameters(sharded)
    return gathered


@contextmanager
def loaded(module: nn.Module) -> Iterator[None]:
    """Within it, `module` has the weights that a hook of accelerate holds elsewhere between its calls."""
    hook: Any = getattr(module, "_hf_hook", None)
    held = (getattr(module, "weight", None), getattr(module, "bias", None))
    offloaded = hook is not None and any(tensor.is_meta for tensor in held if tensor is not None)
    if offloaded:
        hook.pre_forward(module)
    try:
        yield
    finally:
        if offloaded:
            hook.post_forward(module, torch.tensor([]))


@contextmanager
def without_values() -> Iterator[None]:
    """Within it, models are built on the meta device, even where transformers would shard them at once."""
    config = integration._hf_deepspeed_config_weak_ref
    integration.unset_hf_deepspeed_config()
    try:
        with torch.device("meta"):
            yield
    finally:
        integration._hf_deepspeed_config_weak_ref = config


def shard_like(module: nn.Module, parameter: Tensor) -> None:
    """Shard the parameters of `module` if `parameter` is sharded; they get the values of process 0."""
    if is_sharded(parameter):
        import deepspeed

        deepspeed.zero.Init(module=module, config_dict_or_path=integration.deepspeed_config())
