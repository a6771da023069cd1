"""The `W` of adapted layers offloaded: the factors compute in its place, and it is read where a merge or a
disabled adapter needs it."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from svf_rl.errors import SVFError
from svf_rl.svf.checkpoint import read_weight
from svf_rl.svf.decompose import fingerprint
from svf_rl.svf.layer import SVFLinear, svf_layers
from svf_rl.svf.offload_hook import OffloadedWeight, offload, onload
from svf_rl.svf.original import files_of
from svf_rl.svf.stored_weights import StoredWeights


def offload_weights(model: nn.Module) -> None:
    """
    Free the `W` of each adapted layer of `model`, which from then on is read from the checkpoint at its `name_or_path`
    or, where that has another one, from a copy on the CPU. Layers that are quantised, merged or shared out keep theirs,
    and so does one on the CPU whose weight is in no file.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    files = None
    with suppress(SVFError):  # made in memory, or of files that are none of a checkpoint
        files = files_of(base)
    for name, layer in svf_layers(base).items():
        linear: Any = layer.get_base_layer()
        weight = linear.weight
        if layer.quantized or layer.merged or type(weight) is not nn.Parameter or hasattr(linear, "_hf_hook"):
            continue
        layer.check_weight(look=True)
        read: Callable[[], Tensor] | None = None
        if files is not None and f"{name}.weight" in files[2]:  # or it was added in memory
            plain, stored, names = files
            in_file = partial(_read, stored, names[f"{name}.weight"], plain.get_submodule(name), layer, weight.dtype)
            with suppress(SVFError):
                in_file()
                read = in_file
        if read is None and weight.device.type != "cpu":
            read = weight.detach().cpu().clone
        if read is not None:
            offload(linear, OffloadedWeight(read, layer.svf_factors))


def _read(stored: StoredWeights, key: str, module: nn.Module, layer: SVFLinear, dtype: torch.dtype) -> Tensor:
    """The weight that the files call `key`. Raises `SVFError` where it is not that of which `layer` has the factors."""
    weight = read_weight(stored, key, module).to(dtype)  # (out, in)
    if fingerprint(weight) != layer.weight_id:
        raise SVFError(f"{stored.find(key)[0]} was changed since {layer.path} was decomposed: put the old file back")
    return weight.T if layer.transposed else weight


def onload_weights(model: nn.Module) -> None:
    """Undo [`offload_weights`]."""
    for layer in svf_layers(model).values():
        onload(layer.get_base_layer())
