"""What moved: how a trained adapter changes each of its matrices."""

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn
from tqdm import tqdm
from transformers.pytorch_utils import Conv1D

from svf_rl.errors import SVFError
from svf_rl.experts.merged import trained_dtype
from svf_rl.generation.weights import base_name
from svf_rl.models.arguments import ModelArguments
from svf_rl.models.kinds import kind_of_model, load_saved
from svf_rl.models.loading import load_base
from svf_rl.svf.cache import FactorCache
from svf_rl.svf.change import Change, measure_change
from svf_rl.svf.decompose import Factors, fingerprint, thin_svd
from svf_rl.svf.expert import expert_folder
from svf_rl.svf.layer import SVFLinear
from svf_rl.svf.targets import logical_weight


@dataclass(frozen=True)
class MatrixChange:
    """The change of one matrix: the number of its layer, where its path has one, the rest of the path after that
    number (`mlp.up_proj`), or all of it, and the figures."""

    layer: int | None
    module: str
    change: Change

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it: `layer`, `module` and the fields of [`Change`]."""
        return {"layer": self.layer, "module": self.module, **asdict(self.change)}


def weight_changes(model: ModelArguments, adapter: str | Path) -> list[MatrixChange]:
    """
    Measure what a saved adapter of any trained kind changes, a matrix at a time, in fp32. Trained biases and other
    vectors are no matrices, and are left out.

    The base weights are those of the training, rounded as there: what the rounding of a weight moves is no change.

    Args:
        model ([`ModelArguments`]): the base model. `dtype: auto` is the type of the adapter's training, where its
            `summary.json` says it, or else that of the base model.
        adapter (`str` or `Path`): its folder, or its name on the Hub.

    Returns:
        `list[MatrixChange]`: in the order of the model's modules.

    Raises:
        SVFError: the adapter is missing, damaged, of another base model, or of a method without a weight to compare;
            or it changes no matrix.
    """
    folder = expert_folder(adapter)
    base = load_base(replace(model, dtype=trained_dtype(model, [folder])))
    dtype = base.dtype
    adapted = load_saved(base, model, folder).eval().requires_grad_(False)
    kinds = (BaseTunerLayer, ModulesToSaveWrapper)
    layers = [(base_name(name), module) for name, module in adapted.named_modules() if isinstance(module, kinds)]
    found = []
    for path, layer in tqdm(layers, desc="Changes", unit="matrix", delay=3, leave=False):
        layer.float()  # one at a time: the whole model in fp32 may be too large
        with torch.no_grad():
            for name, old, change in _changes(adapted, path, layer):
                number, module = _place(name)
                found.append(MatrixChange(number, module, measure_change(change, _factors(layer, old, dtype))))
        layer.to(dtype)
    if not found:
        raise SVFError(f"the adapter in {folder} changes no matrix: there is nothing to measure")
    return found


def _changes(model: nn.Module, path: str, layer: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Path, `W` and `W' − W`, both (out, in), of each matrix of a layer; a module that was trained whole may have
    several."""
    if isinstance(layer, ModulesToSaveWrapper):
        for name, new in layer.modules_to_save[layer.active_adapters[0]].named_parameters():
            if new.dim() == 2:
                old = layer.original_module.get_parameter(name)
                yield f"{path}.{name}".removesuffix(".weight"), old, new - old
        return
    base, new = layer.get_base_layer(), kind_of_model(model).rebuilt_weight(layer)
    if new is None:
        raise SVFError(f"{path} is a {type(layer).__name__}, whose weight cannot be rebuilt and compared")
    if new.dim() == 2:
        change = new - base.weight
        yield path, logical_weight(base), change.T if isinstance(base, Conv1D) else change


def _factors(layer: nn.Module, weight: Tensor, dtype: torch.dtype) -> Factors:
    """Those that SVF trains on, from the layer or the cache, where they are stored in the type of the training."""
    if isinstance(layer, SVFLinear):
        return Factors(*layer.svf_factors.tensors())
    return FactorCache().load(fingerprint(weight), dtype, weight.device, weight) or thin_svd(weight)


def _place(path: str) -> tuple[int | None, str]:
    """The first number in a path and what follows it."""
    found = re.search(r"(?:^|\.)(\d+)\.", path)
    return (int(found[1]), path[found.end() :]) if found else (None, path)
